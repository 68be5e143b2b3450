//! Writing netlink messages into one growing buffer, and walking received ones.
//!
//! Lengths are patched when a message or nest ends. No meaning of any family lives here.

pub(crate) const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_ACK: u16 = 4;
pub(crate) const NLM_F_ECHO: u16 = 8;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;

const HEADER_LEN: usize = 16;
const NESTED: u16 = 0x8000;

/// Messages for one send.
#[derive(Default)]
pub(crate) struct MsgBuf {
    buf: Vec<u8>,
    message_at: usize,
}

/// A nest that was begun; give it back to [`MsgBuf::end`].
#[must_use]
pub(crate) struct Nest(usize);

impl MsgBuf {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn clear(&mut self) {
        self.buf.clear();
        self.message_at = 0;
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buf
    }

    /// Begins a message; `fixed` is the family header behind nlmsghdr.
    pub(crate) fn message(&mut self, kind: u16, flags: u16, seq: u32, fixed: &[u8]) {
        self.message_at = self.buf.len();
        self.buf.extend_from_slice(&0u32.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&flags.to_ne_bytes());
        self.buf.extend_from_slice(&seq.to_ne_bytes());
        self.buf.extend_from_slice(&0u32.to_ne_bytes());
        self.buf.extend_from_slice(fixed);
        self.pad();
    }

    /// Ends the message that was begun last.
    pub(crate) fn finish(&mut self) {
        let len = u32::try_from(self.buf.len() - self.message_at).expect("a message is small");
        self.buf[self.message_at..self.message_at + 4].copy_from_slice(&len.to_ne_bytes());
    }

    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) {
        self.attr_parts(kind, &[value]);
    }

    /// One attribute whose value is the concatenation of `parts`.
    pub(crate) fn attr_parts(&mut self, kind: u16, parts: &[&[u8]]) {
        let len = 4 + parts.iter().map(|p| p.len()).sum::<usize>();
        let len = u16::try_from(len).expect("an attribute fits 64 KiB");
        self.buf.extend_from_slice(&len.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        for part in parts {
            self.buf.extend_from_slice(part);
        }
        self.pad();
    }

    pub(crate) fn attr_str(&mut self, kind: u16, value: &str) {
        self.attr_parts(kind, &[value.as_bytes(), &[0]]);
    }

    pub(crate) fn attr_be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub(crate) fn nest(&mut self, kind: u16) -> Nest {
        let at = self.buf.len();
        self.buf.extend_from_slice(&0u16.to_ne_bytes());
        self.buf.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        Nest(at)
    }

    /// Ends a nest.
    ///
    /// # Panics
    /// When the nest is longer than 64 KiB: callers bound their batches far below.
    pub(crate) fn end(&mut self, nest: Nest) {
        let len = u16::try_from(self.buf.len() - nest.0).expect("a nest fits 64 KiB");
        self.buf[nest.0..nest.0 + 2].copy_from_slice(&len.to_ne_bytes());
    }

    fn pad(&mut self) {
        let aligned = self.buf.len().next_multiple_of(4);
        self.buf.resize(aligned, 0);
    }
}

/// One received message.
#[derive(Clone, Copy)]
pub(crate) struct NlMsgView<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    pub(crate) payload: &'a [u8],
}

impl<'a> NlMsgView<'a> {
    /// For NLMSG_ERROR: the errno as a positive number, 0 for an acknowledgement.
    pub(crate) fn errno(&self) -> Option<i32> {
        if i32::from(self.kind) != libc::NLMSG_ERROR {
            return None;
        }
        let raw = i32::from_ne_bytes(self.payload.get(..4)?.try_into().ok()?);
        Some(raw.checked_neg().unwrap_or(i32::MAX))
    }

    pub(crate) fn is_done(&self) -> bool {
        i32::from(self.kind) == libc::NLMSG_DONE
    }

    /// The payload behind a family header of `len` bytes.
    pub(crate) fn after(&self, len: usize) -> &'a [u8] {
        self.payload.get(len..).unwrap_or(&[])
    }
}

/// Walks the messages of one datagram.
pub(crate) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(crate) fn new(datagram: &'a [u8]) -> Self {
        Messages { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = NlMsgView<'a>;

    fn next(&mut self) -> Option<NlMsgView<'a>> {
        let word = |at: usize| -> Option<u32> {
            Some(u32::from_ne_bytes(self.rest.get(at..at + 4)?.try_into().ok()?))
        };
        let half = |at: usize| -> Option<u16> {
            Some(u16::from_ne_bytes(self.rest.get(at..at + 2)?.try_into().ok()?))
        };
        let len = usize::try_from(word(0)?).ok()?;
        let view = NlMsgView {
            kind: half(4)?,
            flags: half(6)?,
            seq: word(8)?,
            payload: self.rest.get(HEADER_LEN..len)?,
        };
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(view)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Attrs;
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut buf = MsgBuf::new();
        buf.message(20, 5, 7, &[1, 2, 3, 4]);
        buf.attr_str(1, "abc");
        let nest = buf.nest(3);
        buf.attr_be32(1, 9);
        buf.end(nest);
        buf.finish();
        buf.message(21, 0, 8, &[]);
        buf.finish();
        let got: Vec<_> = Messages::new(buf.bytes()).collect();
        assert_eq!(got.len(), 2);
        assert_eq!((got[0].kind, got[0].flags, got[0].seq), (20, 5, 7));
        let attrs = Attrs::new(got[0].after(4));
        assert_eq!(attrs.find(1), Some(&b"abc\0"[..]));
        assert_eq!(attrs.nested(3).and_then(|n| n.find(1)), Some(&[0, 0, 0, 9][..]));
        assert_eq!((got[1].kind, got[1].payload.len()), (21, 0));
    }

    #[test]
    fn errors_are_positive_and_junk_ends_the_walk() {
        let mut buf = MsgBuf::new();
        buf.message(2, 0, 3, &(-17i32).to_ne_bytes());
        buf.finish();
        let msg = Messages::new(buf.bytes()).next().expect("one message");
        assert_eq!(msg.errno(), Some(17));
        assert_eq!(Messages::new(&[200, 0, 0, 0, 1, 0, 0, 0]).count(), 0);
        assert_eq!(Messages::new(&[1, 0]).count(), 0);
    }
}
