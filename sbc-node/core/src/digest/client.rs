//! Our requests challenged by a peer: which challenge to answer, with which password.

use super::header::{Challenge, Qop};
use super::{Algorithm, Request};
use crate::sip::is_token_byte;

/// What we know to log in with. No `Debug`: it holds a password.
#[derive(Clone)]
pub struct Account {
    pub username: String,
    /// Only challenges of this realm are answered, so that a peer cannot draw a response for
    /// another trunk's realm out of us. `None` answers any realm.
    pub realm: Option<String>,
    pub password: String,
}

/// Why no answer is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AnswerError {
    #[error("no challenge that we understand")]
    NoUsableChallenge,
    #[error("challenged for a realm that the account is not for")]
    ForeignRealm,
}

/// A challenge taken, with which one or more requests are answered.
#[derive(Clone)]
pub struct Answerer {
    username: String,
    ha1: String,
    realm: String,
    nonce: String,
    opaque: Option<String>,
    /// As the challenge says; without it, none is sent (RFC 2069 peers choke on it).
    algorithm: Algorithm,
    qop: Option<Qop>,
    count: u32,
    stale: bool,
}

impl Answerer {
    /// Takes the strongest challenge that is understood and for the account's realm: who tampers
    /// with the order draws no weaker digest out of us (RFC 8760 §2.4 leaves that to policy). Among
    /// equals the first counts. `values` are the values of one header name.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn choose<'v>(
        values: impl Iterator<Item = &'v str>,
        account: &Account,
    ) -> Result<Self, AnswerError> {
        let mut error = AnswerError::NoUsableChallenge;
        let mut best: Option<Challenge<'v>> = None;
        for challenge in values.filter_map(|v| Challenge::parse(v).ok()) {
            if account.realm.as_ref().is_some_and(|realm| realm != challenge.realm) {
                error = AnswerError::ForeignRealm;
                continue;
            }
            let strength = challenge.algorithm.strength();
            if best.is_none_or(|b| b.algorithm.strength() < strength) {
                best = Some(challenge);
            }
        }
        let challenge = best.ok_or(error)?;
        let qop = match (challenge.auth, challenge.auth_int) {
            (true, _) => Some(Qop::Auth),
            (false, true) => Some(Qop::AuthInt),
            (false, false) => None,
        };
        let a = challenge.algorithm;
        Ok(Answerer {
            username: account.username.clone(),
            ha1: a.ha1(&account.username, challenge.realm, &account.password),
            realm: challenge.realm.to_owned(),
            nonce: challenge.nonce.to_owned(),
            opaque: challenge.opaque.map(str::to_owned),
            algorithm: a,
            qop,
            count: 0,
            stale: challenge.stale,
        })
    }

    /// The realm that it answers for.
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// Whether the challenge says that only the nonce was too old. A second challenge that is not
    /// stale means that the password is wrong: stop.
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// The nonce of the challenge.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// The value of Authorization or Proxy-Authorization for one request; counts `nc` up.
    /// `cnonce` must be fresh random text of token characters; `uri` the Request-URI as sent.
    pub fn authorize(&mut self, method: &str, uri: &str, body: &[u8], cnonce: &str) -> String {
        debug_assert!(cnonce.bytes().all(is_token_byte));
        self.count = self.count.saturating_add(1);
        let nc = format!("{:08x}", self.count);
        let response = Request {
            algorithm: self.algorithm,
            ha1: &self.ha1,
            nonce: &self.nonce,
            quality: self.qop.map(|qop| (qop, nc.as_str(), cnonce)),
            cnonce,
            method,
            uri,
            body,
        }
        .response();
        let response = response.as_str();
        // Realm, nonce and opaque go back as they came: still escaped.
        let mut out = format!(
            "Digest username=\"{}\", realm=\"{}\", nonce=\"{}\", uri=\"{uri}\", response=\"{response}\", algorithm={}",
            escape(&self.username),
            self.realm,
            self.nonce,
            self.algorithm.as_str(),
        );
        if let Some(opaque) = &self.opaque {
            out.push_str(&format!(", opaque=\"{opaque}\""));
        }
        match self.qop {
            Some(qop) => {
                out.push_str(&format!(", qop={}, nc={nc}, cnonce=\"{cnonce}\"", qop.as_str()));
            }
            None if self.algorithm.is_session() => out.push_str(&format!(", cnonce=\"{cnonce}\"")),
            None => {}
        }
        out
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}
