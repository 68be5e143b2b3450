//! The values of WWW-/Proxy-Authenticate and Authorization/Proxy-Authorization.

use std::fmt;

use super::Algorithm;
use crate::sip::{List, is_token};

/// Quality of protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Qop {
    Auth,
    AuthInt,
}

impl Qop {
    pub fn as_str(self) -> &'static str {
        match self {
            Qop::Auth => "auth",
            Qop::AuthInt => "auth-int",
        }
    }

    fn from_token(token: &str) -> Option<Self> {
        [Qop::Auth, Qop::AuthInt].into_iter().find(|q| q.as_str().eq_ignore_ascii_case(token))
    }
}

/// Why a value of this family is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HeaderFault {
    #[error("not a Digest value")]
    NotDigest,
    #[error("malformed parameters")]
    Malformed,
    #[error("parameter given twice")]
    Repeated,
    #[error("mandatory parameter missing")]
    Missing,
    #[error("algorithm or quality of protection not supported")]
    Unsupported,
}

/// `name=value` pairs of a Digest value. Values come without quotes, escapes left as they are
/// (RFC 7616 §3.4.2 hashes what stands between the quotes).
fn parameters(value: &str) -> Result<Vec<(&str, &str)>, HeaderFault> {
    let (scheme, rest) = value.trim().split_once([' ', '\t']).ok_or(HeaderFault::NotDigest)?;
    if !scheme.eq_ignore_ascii_case("Digest") {
        return Err(HeaderFault::NotDigest);
    }
    let mut all: Vec<(&str, &str)> = Vec::with_capacity(10);
    for element in List::new(rest) {
        let (name, value) = element.split_once('=').ok_or(HeaderFault::Malformed)?;
        let (name, value) = (name.trim(), value.trim());
        if !is_token(name) {
            return Err(HeaderFault::Malformed);
        }
        let value = match value.strip_prefix('"') {
            Some(inner) => inner.strip_suffix('"').ok_or(HeaderFault::Malformed)?,
            None if value.contains(['"', ' ', '\t']) => return Err(HeaderFault::Malformed),
            None => value,
        };
        // A second one is how a check is made to see another value than the computation.
        if all.iter().any(|(n, _)| n.eq_ignore_ascii_case(name)) {
            return Err(HeaderFault::Repeated);
        }
        all.push((name, value));
    }
    Ok(all)
}

fn find<'a>(all: &[(&str, &'a str)], name: &str) -> Option<&'a str> {
    all.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| *v)
}

fn algorithm(all: &[(&str, &str)]) -> Result<Algorithm, HeaderFault> {
    match find(all, "algorithm") {
        None => Ok(Algorithm::Md5),
        Some(token) => Algorithm::from_token(token).ok_or(HeaderFault::Unsupported),
    }
}

/// One challenge: a value of WWW-Authenticate or Proxy-Authenticate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge<'a> {
    pub realm: &'a str,
    pub nonce: &'a str,
    pub opaque: Option<&'a str>,
    /// The nonce was too old, the password right: try again without asking anyone.
    pub stale: bool,
    pub algorithm: Algorithm,
    /// `qop` holds `auth`.
    pub auth: bool,
    /// `qop` holds `auth-int`.
    pub auth_int: bool,
}

impl<'a> Challenge<'a> {
    /// # Errors
    /// [`HeaderFault`]; `Unsupported` for algorithms we do not know.
    pub fn parse(value: &'a str) -> Result<Self, HeaderFault> {
        let all = parameters(value)?;
        let qop = find(&all, "qop");
        let offers =
            |q: Qop| qop.is_some_and(|v| List::new(v).any(|t| Qop::from_token(t) == Some(q)));
        let challenge = Challenge {
            realm: find(&all, "realm").ok_or(HeaderFault::Missing)?,
            nonce: find(&all, "nonce").ok_or(HeaderFault::Missing)?,
            opaque: find(&all, "opaque"),
            stale: find(&all, "stale").is_some_and(|v| v.eq_ignore_ascii_case("true")),
            algorithm: algorithm(&all)?,
            auth: offers(Qop::Auth),
            auth_int: offers(Qop::AuthInt),
        };
        if qop.is_some() && !challenge.auth && !challenge.auth_int {
            return Err(HeaderFault::Unsupported);
        }
        Ok(challenge)
    }
}

/// The answer to a challenge: a value of Authorization or Proxy-Authorization.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Credentials<'a> {
    pub username: &'a str,
    pub realm: &'a str,
    pub nonce: &'a str,
    pub uri: &'a str,
    pub algorithm: Algorithm,
    pub qop: Option<Qop>,
    /// Nonce count as written, 8 hex digits; empty without `qop`.
    pub nc: &'a str,
    pub cnonce: &'a str,
    pub(super) response: &'a str,
}

impl<'a> Credentials<'a> {
    /// # Errors
    /// [`HeaderFault`] when a parameter that the check needs is missing or malformed.
    pub fn parse(value: &'a str) -> Result<Self, HeaderFault> {
        let all = parameters(value)?;
        let must = |name: &str| find(&all, name).ok_or(HeaderFault::Missing);
        let qop = match find(&all, "qop") {
            None => None,
            Some(token) => Some(Qop::from_token(token).ok_or(HeaderFault::Unsupported)?),
        };
        let (nc, cnonce) = match qop {
            Some(_) => (must("nc")?, must("cnonce")?),
            None => ("", find(&all, "cnonce").unwrap_or("")),
        };
        if qop.is_some() && (nc.len() != 8 || !nc.bytes().all(|b| b.is_ascii_hexdigit())) {
            return Err(HeaderFault::Malformed);
        }
        Ok(Credentials {
            username: must("username")?,
            realm: must("realm")?,
            nonce: must("nonce")?,
            uri: must("uri")?,
            algorithm: algorithm(&all)?,
            qop,
            nc,
            cnonce,
            response: must("response")?,
        })
    }

    /// The response itself, for who judges it elsewhere. Never to be logged.
    pub fn response(&self) -> &'a str {
        self.response
    }

    /// The nonce count as a number; 0 without `qop`.
    pub fn count(&self) -> u32 {
        u32::from_str_radix(self.nc, 16).unwrap_or(0)
    }
}

impl fmt::Debug for Credentials<'_> {
    /// Without the response: it lets a password be guessed off line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("realm", &self.realm)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}
