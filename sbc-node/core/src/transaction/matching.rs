//! Which transaction a message belongs to: RFC 3261 §17.2.3 for requests, with the rules for
//! peers of RFC 2543, and §8.2.2.2 for merged requests.
//!
//! Responses are matched by the branch that we minted (§17.1.3), which needs no key of its own.

use std::fmt;
use std::hash::{DefaultHasher, Hasher};

use smallvec::SmallVec;

use crate::sip::{HeaderError, HeaderName, List, Message, Method};

/// 128 bits of keyed SipHash over what a match compares. Peers choose that text, so the key is
/// random: nobody can make two transactions meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint(u64, u64);

/// The hash key of one shard.
#[derive(Clone, Copy)]
pub(super) struct Matcher {
    key: (u64, u64),
}

impl fmt::Debug for Matcher {
    /// The key is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Matcher")
    }
}

impl Matcher {
    pub(super) fn new(key: (u64, u64)) -> Self {
        Matcher { key }
    }

    /// The server transaction of a request. ACK and CANCEL yield that of their INVITE, which is
    /// how RFC 3261 §9.2 and §17.2.3 match them.
    pub(super) fn server(&self, request: &Message) -> Result<Fingerprint, HeaderError> {
        let via = request.via()?;
        let method = match request.method() {
            None | Some(Method::Ack | Method::Cancel) => &Method::Invite,
            Some(method) => method,
        };
        let branch = request.branch();
        if crate::sip::has_cookie(branch) {
            let mut text = Text::new(1);
            text.push(branch.as_bytes());
            let host = text.push(via.host.as_bytes());
            host.make_ascii_lowercase();
            text.push(&via.port.unwrap_or(0).to_le_bytes());
            text.push(method.as_str().as_bytes());
            return Ok(self.hash(&text));
        }
        // RFC 2543: the To tag is left out, because the ACK's is the response's. That From tag,
        // Call-ID, CSeq, URI and Via agree and only the To tag differs does not happen.
        let line = request.header(HeaderName::Via).unwrap_or("");
        let top = List::new(line).next().unwrap_or("");
        let cseq = request.cseq()?.number;
        let uri = request.request_uri_str();
        let mut text = Text::new(2);
        for part in [uri, request.from_tag(), request.call_id()?, top, method.as_str()] {
            text.push(part.as_bytes());
        }
        text.push(&cseq.to_le_bytes());
        Ok(self.hash(&text))
    }

    /// What merged requests have in common; `None` for a request within a dialog.
    pub(super) fn merged(&self, request: &Message) -> Option<Fingerprint> {
        if request.to_tag().is_some() {
            return None;
        }
        let (call_id, cseq) = (request.call_id().ok()?, request.cseq().ok()?);
        let mut text = Text::new(3);
        for part in [request.from_tag(), call_id, cseq.method] {
            text.push(part.as_bytes());
        }
        text.push(&cseq.number.to_le_bytes());
        Some(self.hash(&text))
    }

    fn hash(&self, text: &Text) -> Fingerprint {
        let half = |key: u64| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u64(key);
            hasher.write(&text.0);
            hasher.finish()
        };
        Fingerprint(half(self.key.0), half(self.key.1))
    }
}

/// What is compared, in one piece: each part behind its length, so that no two lists of parts give
/// the same text.
struct Text(SmallVec<[u8; 256]>);

impl Text {
    /// Rules of different kinds never give the same text.
    fn new(kind: u8) -> Self {
        Text(SmallVec::from_slice(&[kind]))
    }

    /// Appends a part and yields it as it stands there.
    fn push(&mut self, part: &[u8]) -> &mut [u8] {
        self.0.extend_from_slice(&(part.len() as u64).to_le_bytes());
        let begin = self.0.len();
        self.0.extend_from_slice(part);
        self.0.get_mut(begin..).unwrap_or_default()
    }
}
