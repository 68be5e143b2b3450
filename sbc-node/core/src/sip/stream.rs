//! Cutting whole messages out of a byte stream (RFC 3261 §18.3, RFC 5626 §3.5.1).
//!
//! Sockets and time never live here: the owner reads, pushes, and closes what stalls.

use bytes::{Buf, Bytes, BytesMut};

use super::name::HeaderName;
use super::parse::Limits;
use super::scan::number;

/// One thing cut out of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A whole message, head and body; give it to [`parse`](super::parse).
    Message(Bytes),
    /// CRLF CRLF between messages: answer with one CRLF (RFC 5626 §4.4.1).
    Ping,
    /// A single CRLF between messages: the answer to our own ping.
    Pong,
}

/// Why a stream cannot go on: where the next message begins is unknown. Close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum StreamError {
    #[error("headers too large")]
    HeadTooLarge,
    #[error("body too large")]
    BodyTooLarge,
    #[error("no Content-Length on a stream")]
    NoContentLength,
    #[error("bad Content-Length")]
    BadContentLength,
    #[error("not SIP")]
    NotSip,
}

/// Cuts one connection's stream into frames. Holds at most one incomplete message, bounded by the
/// limits, plus what one read brought.
#[derive(Debug)]
pub struct Framer {
    buf: BytesMut,
    limits: Limits,
    /// Bytes of the head already searched for its end.
    searched: usize,
    /// Length of the message under way, once its head is complete.
    expected: Option<usize>,
    failed: Option<StreamError>,
}

impl Framer {
    pub fn new(limits: Limits) -> Self {
        Framer { buf: BytesMut::new(), limits, searched: 0, expected: None, failed: None }
    }

    /// Adds what was read. After an error everything is thrown away.
    pub fn push(&mut self, data: &[u8]) {
        if self.failed.is_none() {
            self.buf.extend_from_slice(data);
        }
    }

    /// The buffer to read into directly (`read_buf`).
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buf
    }

    /// Bytes of an incomplete message: if they stay, the peer is slow or holds the connection open
    /// with half a message.
    pub fn pending(&self) -> usize {
        self.buf.len()
    }

    /// The next frame, or `None` until more is pushed.
    ///
    /// # Errors
    /// [`StreamError`], again on each further call; the bytes of the message at fault are kept
    /// readable by [`Framer::rest`] so that a 400 or 513 can be answered before closing.
    pub fn poll(&mut self) -> Result<Option<Frame>, StreamError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.cut();
        if let Err(error) = result {
            self.failed = Some(error);
        }
        result
    }

    /// What is left behind an error, for [`salvage`](super::salvage).
    pub fn rest(&mut self) -> Bytes {
        self.buf.split().freeze()
    }

    fn cut(&mut self) -> Result<Option<Frame>, StreamError> {
        if self.expected.is_none() {
            match self.buf.as_ref() {
                [b'\r', b'\n', b'\r', b'\n', ..] => {
                    self.buf.advance(4);
                    return Ok(Some(Frame::Ping));
                }
                // The second half of a ping may still be on its way; the owner sees it pending.
                [b'\r', b'\n', b'\r'] | [b'\r'] | [] => return Ok(None),
                [b'\r', b'\n'] => {
                    self.buf.advance(2);
                    return Ok(Some(Frame::Pong));
                }
                [b'\r', b'\n', ..] => {
                    self.buf.advance(2);
                    return Ok(Some(Frame::Pong));
                }
                [b'\n', ..] => {
                    self.buf.advance(1);
                    return Ok(Some(Frame::Pong));
                }
                [first, ..] if !super::scan::is_token_byte(*first) => {
                    return Err(StreamError::NotSip);
                }
                _ => {}
            }
            match self.head_end()? {
                None => return Ok(None),
                Some(head_end) => {
                    let head = self.buf.get(..head_end).unwrap_or_default();
                    let body = body_length(head, self.limits.body_bytes_max)?;
                    self.expected = Some(head_end + body);
                }
            }
        }
        match self.expected {
            Some(length) if self.buf.len() >= length => {
                self.expected = None;
                self.searched = 0;
                Ok(Some(Frame::Message(self.buf.split_to(length).freeze())))
            }
            _ => Ok(None),
        }
    }

    /// End of the head including its blank line; remembers how far it has looked.
    fn head_end(&mut self) -> Result<Option<usize>, StreamError> {
        let bytes = self.buf.as_ref();
        let mut from = self.searched;
        while let Some(found) = memchr::memchr(b'\n', bytes.get(from..).unwrap_or_default()) {
            let next = from + found + 1;
            let length = match bytes.get(next..) {
                Some([b'\r', b'\n', ..]) => Some(2),
                Some([b'\n', ..]) => Some(1),
                // The blank line may be cut in the middle: look at this line end again.
                Some([] | [b'\r']) => break,
                _ => None,
            };
            if let Some(length) = length {
                let end = next + length;
                let fits = end <= self.limits.head_bytes_max;
                return if fits { Ok(Some(end)) } else { Err(StreamError::HeadTooLarge) };
            }
            from = next;
        }
        if bytes.len() > self.limits.head_bytes_max {
            return Err(StreamError::HeadTooLarge);
        }
        self.searched = from;
        Ok(None)
    }
}

/// Content-Length of a complete head. Two that differ, or one that is no number, would let a
/// second message hide in a body.
fn body_length(head: &[u8], max: usize) -> Result<usize, StreamError> {
    let mut length = None;
    let mut lines = head.split(|b| *b == b'\n').skip(1).peekable();
    while let Some(line) = lines.next() {
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        let (name, value) = line.split_at_checked(colon).unwrap_or_default();
        let folded_into_previous = matches!(name.first(), Some(b' ' | b'\t'));
        let name = name.trim_ascii_end();
        if folded_into_previous || HeaderName::from_bytes(name) != HeaderName::ContentLength {
            continue;
        }
        let mut value = value.get(1..).unwrap_or_default().trim_ascii();
        // Content-Length may be folded like any header.
        while let Some(next) = lines.next_if(|next| matches!(next.first(), Some(b' ' | b'\t'))) {
            if !value.is_empty() && !next.trim_ascii().is_empty() {
                return Err(StreamError::BadContentLength);
            }
            value = if value.is_empty() { next.trim_ascii() } else { value };
        }
        let n = std::str::from_utf8(value).ok().and_then(number);
        let n = n.ok_or(StreamError::BadContentLength)?;
        if length.is_some_and(|before| before != n) {
            return Err(StreamError::BadContentLength);
        }
        length = Some(n);
    }
    let length = length.ok_or(StreamError::NoContentLength)?;
    usize::try_from(length).ok().filter(|n| *n <= max).ok_or(StreamError::BodyTooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &[u8] = b"OPTIONS sip:a SIP/2.0\r\nl : 5\r\nVia: x\r\n\r\nhello";
    const B: &[u8] = b"BYE sip:b SIP/2.0\r\nContent-Length:\r\n 0\r\n\r\n";

    fn drain(framer: &mut Framer) -> Result<Vec<Frame>, StreamError> {
        let mut frames = Vec::new();
        while let Some(frame) = framer.poll()? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[test]
    fn any_cut_of_the_stream_gives_the_same_frames() {
        let stream = [A, b"\r\n\r\n"].concat();
        let stream = [stream.as_slice(), B, b"\r\n", A].concat();
        for step in 1..stream.len() {
            let mut framer = Framer::new(Limits::default());
            let mut messages = Vec::new();
            for piece in stream.chunks(step) {
                framer.push(piece);
                messages.extend(drain(&mut framer).expect("clean stream"));
            }
            messages.retain(|f| matches!(f, Frame::Message(_)));
            let expected: Vec<_> =
                [A, B, A].iter().map(|m| Frame::Message(Bytes::from_static(m))).collect();
            assert_eq!(messages, expected, "pieces of {step}");
            assert_eq!(framer.pending(), 0);
        }
    }

    #[test]
    fn rfc5626_keepalives() {
        let mut framer = Framer::new(Limits::default());
        framer.push(b"\r\n\r\n\r\n");
        assert_eq!(drain(&mut framer), Ok(vec![Frame::Ping, Frame::Pong]));
    }

    #[test]
    fn what_would_lose_the_boundary_ends_the_stream() {
        for (bytes, error) in [
            (&b"BYE sip:b SIP/2.0\r\nVia: x\r\n\r\n"[..], StreamError::NoContentLength),
            (
                b"BYE sip:b SIP/2.0\r\nl: 1\r\nContent-Length: 2\r\n\r\n",
                StreamError::BadContentLength,
            ),
            (b"BYE sip:b SIP/2.0\r\nl: -1\r\n\r\n", StreamError::BadContentLength),
            (b"BYE sip:b SIP/2.0\r\nl: 1\r\n 2\r\n\r\n", StreamError::BadContentLength),
            (b"BYE sip:b SIP/2.0\r\nl: 99999999999\r\n\r\n", StreamError::BodyTooLarge),
            (b"BYE sip:b SIP/2.0\r\nSubject: a\r\n l: 3\r\n\r\n", StreamError::NoContentLength),
            (b"\x16\x03\x01\x02\x00", StreamError::NotSip),
        ] {
            let mut framer = Framer::new(Limits::default());
            framer.push(bytes);
            assert_eq!(framer.poll(), Err(error));
            framer.push(A);
            assert_eq!(framer.poll(), Err(error), "stays failed");
            assert_eq!(&framer.rest()[..], bytes);
        }
    }

    #[test]
    fn an_endless_head_is_cut_off() {
        let limits = Limits { head_bytes_max: 1000, ..Limits::default() };
        let mut framer = Framer::new(limits);
        framer.push(b"OPTIONS sip:a SIP/2.0\r\n");
        let mut result = Ok(None);
        for _ in 0..100 {
            framer.push(b"X: aaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n");
            result = framer.poll();
            if result.is_err() {
                break;
            }
        }
        assert_eq!(result, Err(StreamError::HeadTooLarge));
        assert!(framer.pending() < 1100);
    }
}
