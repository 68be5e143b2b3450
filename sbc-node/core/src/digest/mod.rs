//! Digest authentication for SIP (RFC 8760 over RFC 7616 and RFC 2617), both sides.
//!
//! Who has which password, and what needs authentication, is policy and lives elsewhere.

mod client;
mod header;
mod server;

use md5::Md5;
use sha2::{Sha256, Sha512_256};

pub use client::{Account, AnswerError, Answerer};
pub use header::{Challenge, Credentials, HeaderFault, Qop};
pub use server::{Denied, NonceKey, Presented, Server, Verified};

/// A digest algorithm; the `-sess` variants bind HA1 to the nonces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Md5,
    Md5Sess,
    Sha256,
    Sha256Sess,
    Sha512Trunc256,
    Sha512Trunc256Sess,
}

impl Algorithm {
    const ALL: [Algorithm; 6] = [
        Algorithm::Md5,
        Algorithm::Md5Sess,
        Algorithm::Sha256,
        Algorithm::Sha256Sess,
        Algorithm::Sha512Trunc256,
        Algorithm::Sha512Trunc256Sess,
    ];

    /// The token of the `algorithm` parameter.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Md5 => "MD5",
            Algorithm::Md5Sess => "MD5-sess",
            Algorithm::Sha256 => "SHA-256",
            Algorithm::Sha256Sess => "SHA-256-sess",
            Algorithm::Sha512Trunc256 => "SHA-512-256",
            Algorithm::Sha512Trunc256Sess => "SHA-512-256-sess",
        }
    }

    /// `None` for algorithms that are not supported (AKAv1-MD5 among them).
    pub fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.as_str().eq_ignore_ascii_case(token))
    }

    /// How much a digest made by it is worth: the more the better (RFC 8760 §2.4, RFC 6194).
    fn strength(self) -> u8 {
        match self {
            Algorithm::Md5 => 0,
            Algorithm::Md5Sess => 1,
            Algorithm::Sha256 => 2,
            Algorithm::Sha256Sess => 3,
            Algorithm::Sha512Trunc256 => 4,
            Algorithm::Sha512Trunc256Sess => 5,
        }
    }

    fn is_session(self) -> bool {
        matches!(self, Algorithm::Md5Sess | Algorithm::Sha256Sess | Algorithm::Sha512Trunc256Sess)
    }

    /// Lower-case hex of the hash of `parts` joined by colons.
    fn hash(self, parts: &[&[u8]]) -> Hex {
        match self {
            Algorithm::Md5 | Algorithm::Md5Sess => hash::<Md5>(parts),
            Algorithm::Sha256 | Algorithm::Sha256Sess => hash::<Sha256>(parts),
            Algorithm::Sha512Trunc256 | Algorithm::Sha512Trunc256Sess => hash::<Sha512_256>(parts),
        }
    }

    /// HA1 of a user: what a server stores instead of the password (before `-sess`).
    pub fn ha1(self, username: &str, realm: &str, password: &str) -> String {
        let hash = self.hash(&[username.as_bytes(), realm.as_bytes(), password.as_bytes()]);
        hash.as_str().to_owned()
    }
}

fn hash<D: sha2::Digest>(parts: &[&[u8]]) -> Hex {
    let mut hasher = D::new();
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            hasher.update(b":");
        }
        hasher.update(part);
    }
    Hex::new(&hasher.finalize())
}

/// At most 32 bytes in lower-case hex, kept in place.
#[derive(Clone, Copy)]
struct Hex {
    text: [u8; 64],
    len: usize,
}

impl Hex {
    fn new(bytes: &[u8]) -> Self {
        const DIGITS: [u8; 16] = *b"0123456789abcdef";
        let mut text = [b'0'; 64];
        let (pairs, _) = text.as_chunks_mut::<2>();
        let mut len = 0;
        for (pair, byte) in pairs.iter_mut().zip(bytes) {
            *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
            len += 2;
        }
        Hex { text, len }
    }

    fn as_bytes(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

/// What a response is computed from (RFC 7616 §3.4.1).
struct Request<'a> {
    algorithm: Algorithm,
    ha1: &'a str,
    nonce: &'a str,
    /// `qop`, `nc` as written, `cnonce`; absent for RFC 2069 peers.
    quality: Option<(Qop, &'a str, &'a str)>,
    /// For `-sess` without `qop`.
    cnonce: &'a str,
    method: &'a str,
    uri: &'a str,
    body: &'a [u8],
}

impl Request<'_> {
    fn response(&self) -> Hex {
        let a = self.algorithm;
        let cnonce = self.quality.map_or(self.cnonce, |(_, _, cnonce)| cnonce);
        let session;
        let ha1 = if a.is_session() {
            session = a.hash(&[self.ha1.as_bytes(), self.nonce.as_bytes(), cnonce.as_bytes()]);
            session.as_bytes()
        } else {
            self.ha1.as_bytes()
        };
        let (method, uri) = (self.method.as_bytes(), self.uri.as_bytes());
        let ha2 = match self.quality {
            Some((Qop::AuthInt, _, _)) => a.hash(&[method, uri, a.hash(&[self.body]).as_bytes()]),
            Some((Qop::Auth, _, _)) | None => a.hash(&[method, uri]),
        };
        let nonce = self.nonce.as_bytes();
        match self.quality {
            Some((qop, nc, cnonce)) => {
                let qop = qop.as_str().as_bytes();
                a.hash(&[ha1, nonce, nc.as_bytes(), cnonce.as_bytes(), qop, ha2.as_bytes()])
            }
            None => a.hash(&[ha1, nonce, ha2.as_bytes()]),
        }
    }
}

#[cfg(test)]
mod tests;
