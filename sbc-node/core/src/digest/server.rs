//! Requests that we challenge: nonces that need no table, and the check of the answer.

use std::borrow::Cow;
use std::net::IpAddr;

use sha2::{Digest as _, Sha256};

use super::header::{Credentials, HeaderFault};
use super::{Algorithm, Request, push_hex};
use crate::sip::UriRef;
use crate::text;

/// Two numbers of 64 bits and a MAC of 128, in hex.
const NONCE_LEN: usize = 64;

/// The key of our nonces. No `Debug`. Nodes that share it accept each other's nonces.
#[derive(Clone)]
pub struct NonceKey(pub [u8; 32]);

impl NonceKey {
    /// A key that follows from a secret that several nodes share.
    pub fn derive(secret: &[u8]) -> Self {
        let digest = Sha256::new().chain_update(b"sbc nonce\0").chain_update(secret).finalize();
        NonceKey(digest.into())
    }
}

/// The challenging side for one realm.
#[derive(Clone)]
pub struct Server {
    pub realm: String,
    pub key: NonceKey,
    /// How long a nonce lives.
    pub nonce_ttl_s: u64,
    /// Offered in this order, the best first (RFC 8760 §2.3).
    pub algorithms: Vec<Algorithm>,
}

/// The user is who the credentials say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified<'a> {
    pub username: &'a str,
    /// Together with `count`, names this use of the nonce: a registrar that wants no replay at
    /// all remembers the highest count per nonce until it expires.
    pub nonce: &'a str,
    pub count: u32,
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Denied {
    #[error("malformed credentials: {0}")]
    Malformed(HeaderFault),
    #[error("credentials for another realm")]
    WrongRealm,
    #[error("credentials for another request")]
    WrongUri,
    #[error("algorithm not offered")]
    WrongAlgorithm,
    /// Challenge again with `stale=true`: the response was right, the nonce was not fresh.
    #[error("nonce expired")]
    Stale,
    #[error("nonce not ours")]
    ForeignNonce,
    #[error("wrong user or password")]
    WrongPassword,
}

impl Server {
    /// One value of WWW-/Proxy-Authenticate per algorithm. `now_s` is any monotonic-enough second
    /// count that all nodes share; `salt` makes nonces of one second differ.
    pub fn challenge(
        &self,
        now_s: u64,
        salt: u64,
        source: Option<IpAddr>,
        stale: bool,
    ) -> Vec<String> {
        let nonce = self.nonce(now_s, salt, source);
        let stale = if stale { ", stale=true" } else { "" };
        self.algorithms
            .iter()
            .map(|a| {
                format!(
                    "Digest realm=\"{}\", nonce=\"{nonce}\"{stale}, algorithm={}, qop=\"auth\"",
                    self.realm,
                    a.as_str()
                )
            })
            .collect()
    }

    /// `time salt mac`, in hex. Bound to `source` where given.
    fn nonce(&self, now_s: u64, salt: u64, source: Option<IpAddr>) -> String {
        let mut text = String::with_capacity(NONCE_LEN);
        push_hex(&mut text, &now_s.to_be_bytes());
        push_hex(&mut text, &salt.to_be_bytes());
        let mut from = String::new();
        if let Some(ip) = source {
            text::push_ip(&mut from, ip);
        }
        let parts = [text.as_bytes(), self.realm.as_bytes(), from.as_bytes()];
        let mac = hmac(&self.key.0, &parts);
        push_hex(&mut text, mac.get(..16).unwrap_or_default());
        text
    }

    /// Credentials that are worth a question to who knows the user: for this realm and request, with
    /// a fresh nonce of ours.
    pub fn plausible<'a>(&self, request: &Presented<'a>, now_s: u64) -> Option<Credentials<'a>> {
        let c = Credentials::parse(request.authorization).ok()?;
        let ours = c.realm == self.realm
            && self.algorithms.contains(&c.algorithm)
            && same_uri(c.uri, request.request_uri);
        let minted_s = self.minted(c.nonce, request.source).filter(|_| ours)?;
        (now_s.abs_diff(minted_s) <= self.nonce_ttl_s).then_some(c)
    }

    /// The use of a nonce by credentials that were found right elsewhere.
    pub fn judged<'a>(c: &Credentials<'a>) -> Verified<'a> {
        Verified { username: c.username, nonce: c.nonce, count: c.count() }
    }

    /// Checks credentials. `ha1` gives the user's HA1 for an algorithm (see [`Algorithm::ha1`]);
    /// an unknown user must take as long as a wrong password, so the computation is done anyway.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn verify<'a, 'u>(
        &self,
        request: &Presented<'a>,
        now_s: u64,
        ha1: impl FnOnce(&str, Algorithm) -> Option<Cow<'u, str>>,
    ) -> Result<Verified<'a>, Denied> {
        let c = Credentials::parse(request.authorization).map_err(Denied::Malformed)?;
        if c.realm != self.realm {
            return Err(Denied::WrongRealm);
        }
        let plain = match c.algorithm {
            Algorithm::Md5 | Algorithm::Md5Sess => Algorithm::Md5,
            Algorithm::Sha256 | Algorithm::Sha256Sess => Algorithm::Sha256,
            Algorithm::Sha512Trunc256 | Algorithm::Sha512Trunc256Sess => Algorithm::Sha512Trunc256,
        };
        if !self.algorithms.contains(&c.algorithm) {
            return Err(Denied::WrongAlgorithm);
        }
        if !same_uri(c.uri, request.request_uri) {
            return Err(Denied::WrongUri);
        }
        let minted_s = self.minted(c.nonce, request.source).ok_or(Denied::ForeignNonce)?;
        let known = ha1(c.username, plain);
        let expected = Request {
            algorithm: c.algorithm,
            ha1: known.as_deref().unwrap_or("no such user"),
            nonce: c.nonce,
            quality: c.qop.map(|qop| (qop, c.nc, c.cnonce)),
            cnonce: c.cnonce,
            method: request.method,
            uri: c.uri,
            body: request.body,
        }
        .response();
        if !same_hex(expected.as_bytes(), c.response.as_bytes()) || known.is_none() {
            return Err(Denied::WrongPassword);
        }
        // A nonce of the future beyond clock skew is as good as an expired one.
        if now_s.abs_diff(minted_s) > self.nonce_ttl_s {
            return Err(Denied::Stale);
        }
        Ok(Verified { username: c.username, nonce: c.nonce, count: c.count() })
    }

    /// When we made a nonce; `None` if we did not.
    fn minted(&self, nonce: &str, source: Option<IpAddr>) -> Option<u64> {
        let field = |range| u64::from_str_radix(nonce.get(range)?, 16).ok();
        let (time, salt) = (field(0..16)?, field(16..32)?);
        same_secret(self.nonce(time, salt, source).as_bytes(), nonce.as_bytes()).then_some(time)
    }
}

/// The request whose credentials are checked.
#[derive(Clone, Copy)]
pub struct Presented<'a> {
    /// Value of Authorization or Proxy-Authorization.
    pub authorization: &'a str,
    pub method: &'a str,
    pub request_uri: &'a str,
    pub body: &'a [u8],
    /// As given to [`Server::challenge`].
    pub source: Option<IpAddr>,
}

/// Whether credentials are for this request: the same resource (RFC 7616 §3.4.6), compared by
/// user and host, since elements between rewrite ports and parameters.
fn same_uri(claimed: &str, actual: &str) -> bool {
    if claimed == actual {
        return true;
    }
    match (UriRef::parse(claimed), UriRef::parse(actual)) {
        (Ok(a), Ok(b)) => {
            a.user_decoded() == b.user_decoded()
                && a.host().eq_ignore_ascii_case(b.host())
                && !a.host().is_empty()
        }
        _ => false,
    }
}

/// The same for hex, of which the second may be in capitals.
fn same_hex(a: &[u8], b: &[u8]) -> bool {
    let differ = |diff, (a, b): (&u8, &u8)| diff | (a ^ b.to_ascii_lowercase());
    a.len() == b.len() && a.iter().zip(b).fold(0, differ) == 0
}

/// Compares without telling by time where the first difference is.
fn same_secret(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}

/// HMAC-SHA-256 (RFC 2104) over length-prefixed parts.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        for (b, k) in block.iter_mut().zip(key) {
            *b ^= k;
        }
        block
    };
    let mut inner = Sha256::new();
    inner.update(pad(0x36));
    for part in parts {
        inner.update((part.len() as u64).to_be_bytes());
        inner.update(part);
    }
    let mut outer = Sha256::new();
    outer.update(pad(0x5c));
    outer.update(inner.finalize());
    outer.finalize().into()
}
