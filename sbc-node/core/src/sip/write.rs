//! Writing messages: straight to one buffer, and never a line that the caller did not mean.
//!
//! CR, LF and NUL in any value become a space, so no text can add a header or end the head.
//! Which headers belong into a response, an ACK or a CANCEL lives in `reply.rs`.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::net::IpAddr;

use bytes::Bytes;

use super::message::{Header, Message};
use super::method::{Method, reason_phrase};
use super::name::HeaderName;
use crate::net;
use crate::text::{Decimal, Dotted};

/// Where values are written to. What a value holds of CR, LF and NUL becomes spaces when it ends,
/// so a value cannot break out of its line.
pub struct Out<'a>(&'a mut Vec<u8>);

impl Out<'_> {
    /// Appends text.
    #[inline]
    pub fn str(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    /// Appends a decimal number.
    #[inline]
    pub fn int(&mut self, n: u64) {
        self.0.extend_from_slice(Decimal::new(n).as_bytes());
    }
}

impl fmt::Write for Out<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.str(s);
        Ok(())
    }
}

/// Blanks control characters (all but tabs) in what was written since `begin`.
#[inline]
fn clean(buf: &mut [u8], begin: usize) {
    let value = buf.get_mut(begin..).unwrap_or_default();
    let control = |b: u8| (b < b' ' && b != b'\t') || b == 0x7f;
    // Without a branch in the loop: it is done many bytes at a time.
    if value.iter().fold(false, |found, b| found | control(*b)) {
        for b in value.iter_mut().filter(|b| control(**b)) {
            *b = b' ';
        }
    }
}

/// Something that can be a header value.
pub trait WriteValue {
    fn write_value(&self, out: &mut Out<'_>);
}

impl<T: WriteValue + ?Sized> WriteValue for &T {
    fn write_value(&self, out: &mut Out<'_>) {
        (**self).write_value(out);
    }
}

impl WriteValue for str {
    fn write_value(&self, out: &mut Out<'_>) {
        out.str(self);
    }
}

impl WriteValue for String {
    fn write_value(&self, out: &mut Out<'_>) {
        out.str(self);
    }
}

impl WriteValue for fmt::Arguments<'_> {
    fn write_value(&self, out: &mut Out<'_>) {
        // `Out` never fails.
        let _ = out.write_fmt(*self);
    }
}

impl WriteValue for Method {
    fn write_value(&self, out: &mut Out<'_>) {
        out.str(self.as_str());
    }
}

impl WriteValue for IpAddr {
    fn write_value(&self, out: &mut Out<'_>) {
        match self {
            IpAddr::V4(ip) => out.0.extend_from_slice(Dotted::new(*ip).as_bytes()),
            IpAddr::V6(ip) => format_args!("{ip}").write_value(out),
        }
    }
}

impl WriteValue for net::Host {
    /// As its `Display`.
    fn write_value(&self, out: &mut Out<'_>) {
        match self {
            net::Host::Ip(ip @ IpAddr::V4(_)) => ip.write_value(out),
            net::Host::Ip(ip @ IpAddr::V6(_)) => ("[", ip, "]").write_value(out),
            net::Host::Name(name) => out.str(name),
        }
    }
}

macro_rules! write_ints {
    ($($t:ty)*) => {$(
        impl WriteValue for $t {
            fn write_value(&self, out: &mut Out<'_>) {
                out.int(u64::from(*self));
            }
        }
    )*};
}
write_ints!(u8 u16 u32 u64);

/// Several pieces written one after the other: `("sip:", user, "@", host)`.
macro_rules! write_tuples {
    ($(($($t:ident $i:tt),+))*) => {$(
        impl<$($t: WriteValue),+> WriteValue for ($($t,)+) {
            fn write_value(&self, out: &mut Out<'_>) {
                $(self.$i.write_value(out);)+
            }
        }
    )*};
}
write_tuples! {
    (A 0, B 1)
    (A 0, B 1, C 2)
    (A 0, B 1, C 2, D 3)
    (A 0, B 1, C 2, D 3, E 4)
    (A 0, B 1, C 2, D 3, E 4, F 5)
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6)
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7)
}

impl<T: WriteValue> WriteValue for Option<T> {
    fn write_value(&self, out: &mut Out<'_>) {
        if let Some(value) = self {
            value.write_value(out);
        }
    }
}

/// Writes one message. Headers appear in the order of the calls; Content-Length is written last.
#[derive(Debug)]
pub struct Builder {
    buf: Vec<u8>,
}

/// Messages are written into one buffer, which stays in the cache, and leave it as a copy of their own
/// size: transactions keep them for half a minute, and what is kept decides how much memory a call
/// walks through.
fn room() -> Vec<u8> {
    const CAPACITY: usize = 2048;
    let mut buf = SCRATCH.take();
    buf.reserve(CAPACITY);
    buf
}

fn done(mut buf: Vec<u8>) -> Bytes {
    const KEPT_MAX: usize = 64 * 1024;
    let message = Bytes::copy_from_slice(&buf);
    if buf.capacity() <= KEPT_MAX {
        buf.clear();
        SCRATCH.set(buf);
    }
    message
}

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Builder {
    /// Begins a request. Blanks and control characters in `uri` are percent-escaped.
    pub fn request(method: &Method, uri: impl WriteValue) -> Self {
        let mut buf = room();
        buf.extend_from_slice(method.as_str().as_bytes());
        buf.push(b' ');
        let begin = buf.len();
        uri.write_value(&mut Out(&mut buf));
        if buf.get(begin..).is_some_and(|u| u.iter().any(|b| *b <= b' ')) {
            let text = buf.split_off(begin);
            for b in text {
                match b {
                    0..=b' ' => buf.extend_from_slice(format!("%{b:02X}").as_bytes()),
                    b => buf.push(b),
                }
            }
        }
        buf.extend_from_slice(b" SIP/2.0\r\n");
        Builder { buf }
    }

    /// Begins a response; an empty `reason` stands for the registered phrase.
    pub fn response(status: u16, reason: &str) -> Self {
        let mut buf = room();
        buf.extend_from_slice(b"SIP/2.0 ");
        let begin = buf.len();
        let mut out = Out(&mut buf);
        out.int(u64::from(status));
        out.str(" ");
        out.str(if reason.is_empty() { reason_phrase(status) } else { reason });
        clean(&mut buf, begin);
        buf.extend_from_slice(b"\r\n");
        Builder { buf }
    }

    /// A header by id. `HeaderName::Other` has no name: use [`Builder::other`].
    #[inline]
    pub fn header(&mut self, name: HeaderName, value: impl WriteValue) -> &mut Self {
        debug_assert_ne!(name, HeaderName::Other);
        self.buf.extend_from_slice(name.as_str().as_bytes());
        self.value(value)
    }

    /// A header by name. A name that is no token is not written at all.
    pub fn other(&mut self, name: &str, value: impl WriteValue) -> &mut Self {
        if !super::scan::is_token(name) {
            return self;
        }
        self.buf.extend_from_slice(name.as_bytes());
        self.value(value)
    }

    #[inline]
    fn value(&mut self, value: impl WriteValue) -> &mut Self {
        self.buf.extend_from_slice(b": ");
        let begin = self.buf.len();
        value.write_value(&mut Out(&mut self.buf));
        clean(&mut self.buf, begin);
        self.buf.extend_from_slice(b"\r\n");
        self
    }

    /// One header line of a message as it stands there, name and value byte for byte.
    #[inline]
    pub fn line(&mut self, line: Header<'_>) -> &mut Self {
        self.buf.extend_from_slice(line.name.as_bytes());
        self.buf.extend_from_slice(b": ");
        // A parsed value holds neither CR nor LF; NUL only as a quoted pair.
        self.buf.extend_from_slice(line.value.as_bytes());
        self.buf.extend_from_slice(b"\r\n");
        self
    }

    /// The same for a line that crosses from one side to the other: control characters become
    /// blanks.
    #[inline]
    pub fn crossing(&mut self, line: Header<'_>) -> &mut Self {
        self.buf.extend_from_slice(line.name.as_bytes());
        self.value(line.value)
    }

    /// All lines of one header of a message, in order, byte for byte.
    pub fn copy(&mut self, from: &Message, name: HeaderName) -> &mut Self {
        for line in from.headers_named(name) {
            self.line(line);
        }
        self
    }

    /// Ends the message without a body: `Content-Length: 0`.
    pub fn finish(mut self) -> Bytes {
        self.buf.extend_from_slice(b"Content-Length: 0\r\n\r\n");
        done(self.buf)
    }

    /// Ends the message with a body; Content-Type and Content-Length are written here.
    pub fn finish_with(mut self, content_type: &str, body: &[u8]) -> Bytes {
        self.header(HeaderName::ContentType, content_type);
        self.header(HeaderName::ContentLength, body.len() as u64);
        self.buf.reserve(body.len() + 2);
        self.buf.extend_from_slice(b"\r\n");
        self.buf.extend_from_slice(body);
        done(self.buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_can_break_a_line() {
        let mut b = Builder::request(&Method::Invite, "sip:a\r\nEvil: 1@b c");
        b.header(HeaderName::Subject, "x\r\nEvil: 2\0")
            .other("X-A\r\nEvil", "3")
            .other("X-B", format_args!("{}", "a\nb"));
        assert_eq!(
            &b.finish()[..],
            b"INVITE sip:a%0D%0AEvil:%201@b%20c SIP/2.0\r\nSubject: x  Evil: 2 \r\nX-B: a b\r\nContent-Length: 0\r\n\r\n"
        );
        let b = Builder::response(400, "Bad\r\nEvil: 1\r\n\r\n");
        assert_eq!(&b.finish()[..], b"SIP/2.0 400 Bad  Evil: 1    \r\nContent-Length: 0\r\n\r\n");
    }

    #[test]
    fn values_of_all_kinds() {
        let mut b = Builder::response(200, "");
        b.header(HeaderName::Expires, 0u32)
            .header(HeaderName::Contact, ("<sip:", "a", "@h:", 5060u16, ">"));
        assert_eq!(
            &b.finish_with("text/plain", b"hi")[..],
            b"SIP/2.0 200 OK\r\nExpires: 0\r\nContact: <sip:a@h:5060>\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi"
        );
    }
}
