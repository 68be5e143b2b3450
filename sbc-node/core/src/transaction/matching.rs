//! Which transaction a message belongs to: RFC 3261 §17.2.3 for requests, with the rules for
//! peers of RFC 2543, and §8.2.2.2 for merged requests.
//!
//! Responses are matched by the branch that we minted (§17.1.3), which needs no key of its own.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

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
        if via.has_cookie() {
            let host = via.host.to_ascii_lowercase();
            return Ok(self.hash(&(1u8, via.branch(), host, via.port, method.as_str())));
        }
        // RFC 2543: the To tag is left out, because the ACK's is the response's. That From tag,
        // Call-ID, CSeq, URI and Via agree and only the To tag differs does not happen.
        let line = request.header(HeaderName::Via).unwrap_or("");
        let top = List::new(line).next().unwrap_or("");
        let cseq = request.cseq()?.number;
        let uri = request.request_uri_str();
        Ok(self.hash(&(
            2u8,
            uri,
            request.from_tag(),
            request.call_id()?,
            cseq,
            top,
            method.as_str(),
        )))
    }

    /// What merged requests have in common; `None` for a request within a dialog.
    pub(super) fn merged(&self, request: &Message) -> Option<Fingerprint> {
        if request.to_tag().is_some() {
            return None;
        }
        let (call_id, cseq) = (request.call_id().ok()?, request.cseq().ok()?);
        Some(self.hash(&(3u8, request.from_tag(), call_id, cseq.number, cseq.method)))
    }

    fn hash(&self, value: &impl Hash) -> Fingerprint {
        let half = |key: u64| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u64(key);
            value.hash(&mut hasher);
            hasher.finish()
        };
        Fingerprint(half(self.key.0), half(self.key.1))
    }
}
