//! Which transaction a message belongs to: RFC 3261 §17.2.3 for requests, with the rules for
//! peers of RFC 2543, and §8.2.2.2 for merged requests.
//!
//! Responses are matched by the branch that we minted (§17.1.3), which needs no key of its own.

use std::fmt;
use std::hash::Hasher as _;

use siphasher::sip128::{Hasher128 as _, SipHasher13};

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
            let mut text = Text::new(self.key, 1);
            text.push(branch);
            text.push_lower(via.host);
            text.number(u64::from(via.port.unwrap_or(0)));
            text.push(method.as_str());
            return Ok(text.print());
        }
        // RFC 2543: the To tag is left out, because the ACK's is the response's. That From tag,
        // Call-ID, CSeq, URI and Via agree and only the To tag differs does not happen.
        let line = request.header(HeaderName::Via).unwrap_or("");
        let top = List::new(line).next().unwrap_or("");
        let cseq = request.cseq()?.number;
        let uri = request.request_uri_str();
        let mut text = Text::new(self.key, 2);
        for part in [uri, request.from_tag(), request.call_id()?, top, method.as_str()] {
            text.push(part);
        }
        text.number(u64::from(cseq));
        Ok(text.print())
    }

    /// What merged requests have in common; `None` for a request within a dialog.
    pub(super) fn merged(&self, request: &Message) -> Option<Fingerprint> {
        if request.to_tag().is_some() {
            return None;
        }
        let (call_id, cseq) = (request.call_id().ok()?, request.cseq().ok()?);
        let mut text = Text::new(self.key, 3);
        for part in [request.from_tag(), call_id, cseq.method] {
            text.push(part);
        }
        text.number(u64::from(cseq.number));
        Some(text.print())
    }
}

fn lower(mut word: [u8; 8]) -> [u8; 8] {
    word.make_ascii_lowercase();
    word
}

/// What is compared, as it is hashed: each part behind its length and filled up to whole words, so that
/// no two lists of parts are the same words.
struct Text(SipHasher13);

impl Text {
    /// Rules of different kinds never give the same words.
    fn new(key: (u64, u64), kind: u64) -> Self {
        let mut text = Text(SipHasher13::new_with_keys(key.0, key.1));
        text.number(kind);
        text
    }

    fn number(&mut self, n: u64) {
        self.0.write_u64(n);
    }

    fn push(&mut self, part: &str) {
        self.words(part, |word| word);
    }

    fn push_lower(&mut self, part: &str) {
        self.words(part, lower);
    }

    #[inline]
    fn words(&mut self, part: &str, fold: impl Fn([u8; 8]) -> [u8; 8]) {
        self.number(part.len() as u64);
        let (words, rest) = part.as_bytes().as_chunks::<8>();
        for word in words {
            self.number(u64::from_le_bytes(fold(*word)));
        }
        if !rest.is_empty() {
            let mut word = [0; 8];
            word.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            self.number(u64::from_le_bytes(fold(word)));
        }
    }

    fn print(self) -> Fingerprint {
        let hash = self.0.finish128();
        Fingerprint(hash.h1, hash.h2)
    }
}
