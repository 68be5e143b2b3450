//! Requests that we challenge: nonces that need no table, and the check of the answer.

use std::borrow::Cow;
use std::net::IpAddr;

use sha2::{Digest as _, Sha256};

use super::header::{Credentials, HeaderFault};
use super::{Algorithm, Hex, Request};
use crate::sip::UriRef;

/// Two numbers of 64 bits and a MAC of 128; twice as many characters of hex.
const NONCE_BYTES: usize = 32;
const MAC_BYTES: usize = 16;

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

/// The challenging side for one realm. No `Debug`.
#[derive(Clone)]
pub struct Server {
    realm: String,
    mac: Mac,
    nonce_ttl_s: u64,
    algorithms: Vec<Algorithm>,
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
    /// Nonces live for `nonce_ttl_s`; `algorithms` are offered in their order, the best first
    /// (RFC 8760 §2.3).
    pub fn new(
        realm: String,
        key: &NonceKey,
        nonce_ttl_s: u64,
        algorithms: Vec<Algorithm>,
    ) -> Self {
        let mac = Mac::new(key, &realm);
        Server { realm, mac, nonce_ttl_s, algorithms }
    }

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
        let stale = if stale { "\", stale=true" } else { "\"" };
        let one = |a: &Algorithm| {
            ["Digest realm=\"", &self.realm, "\", nonce=\"", nonce.as_str(), stale]
                .into_iter()
                .chain([", algorithm=", a.as_str(), ", qop=\"auth\""])
                .collect()
        };
        self.algorithms.iter().map(one).collect()
    }

    /// `time salt mac`, in hex. Bound to `source` where given.
    fn nonce(&self, now_s: u64, salt: u64, source: Option<IpAddr>) -> Hex {
        let mut nonce = [0; NONCE_BYTES];
        let (time, rest) = nonce.split_at_mut(8);
        let (salted, mac) = rest.split_at_mut(8);
        time.copy_from_slice(&now_s.to_be_bytes());
        salted.copy_from_slice(&salt.to_be_bytes());
        mac.copy_from_slice(&self.mac.of(now_s, salt, source));
        Hex::new(&nonce)
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
        let bytes = bytes_of(nonce)?;
        let (time, rest) = bytes.split_first_chunk()?;
        let (salt, mac) = rest.split_first_chunk()?;
        let (time, salt) = (u64::from_be_bytes(*time), u64::from_be_bytes(*salt));
        same_secret(&self.mac.of(time, salt, source), mac).then_some(time)
    }
}

/// What a nonce says. Only hex as we write it: the same nonce written otherwise would be another one
/// to who counts its uses.
fn bytes_of(nonce: &str) -> Option<[u8; NONCE_BYTES]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; NONCE_BYTES];
    let (pairs, rest) = nonce.as_bytes().as_chunks::<2>();
    if pairs.len() != NONCE_BYTES || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// Proves the nonces of one realm: a keyed hash of time, salt and source.
///
/// SHA-256 whose first block is the key. What follows it is one block of one length, so that this is the
/// cascade of Bellare, Canetti and Krawczyk (1996), as good a MAC as HMAC is and a third of its work; the
/// state behind the key is computed once.
#[derive(Clone)]
struct Mac(Sha256);

impl Mac {
    fn new(key: &NonceKey, realm: &str) -> Self {
        let half = |n: u8| hmac(&key.0, &[b"sbc nonce", realm.as_bytes(), &[n]]);
        Mac(Sha256::new().chain_update(half(0)).chain_update(half(1)))
    }

    fn of(&self, time: u64, salt: u64, source: Option<IpAddr>) -> [u8; MAC_BYTES] {
        let (kind, address) = match source {
            None => (0, 0),
            Some(IpAddr::V4(ip)) => (4, u128::from(u32::from(ip))),
            Some(IpAddr::V6(ip)) => (6, u128::from(ip)),
        };
        let mut text = [kind; 33];
        let (numbers, from) = text.split_at_mut(16);
        let (first, second) = numbers.split_at_mut(8);
        first.copy_from_slice(&time.to_be_bytes());
        second.copy_from_slice(&salt.to_be_bytes());
        if let Some(from) = from.first_chunk_mut() {
            *from = address.to_be_bytes();
        }
        let digest: [u8; 32] = self.0.clone().chain_update(text).finalize().into();
        digest.first_chunk().copied().unwrap_or_default()
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
