//! The values of WWW-/Proxy-Authenticate and Authorization/Proxy-Authorization.

use std::fmt;

use smallvec::SmallVec;

use super::Algorithm;
use crate::sip::{List, is_token, quoted_end};

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

/// The parameters that mean something to us.
#[derive(Clone, Copy)]
enum Name {
    Algorithm,
    Cnonce,
    Nc,
    Nonce,
    Opaque,
    Qop,
    Realm,
    Response,
    Stale,
    Uri,
    Username,
}

impl Name {
    /// In the order of the enum.
    const ALL: [(&str, Name); 11] = [
        ("algorithm", Name::Algorithm),
        ("cnonce", Name::Cnonce),
        ("nc", Name::Nc),
        ("nonce", Name::Nonce),
        ("opaque", Name::Opaque),
        ("qop", Name::Qop),
        ("realm", Name::Realm),
        ("response", Name::Response),
        ("stale", Name::Stale),
        ("uri", Name::Uri),
        ("username", Name::Username),
    ];

    fn of(text: &str) -> Option<Name> {
        Self::ALL.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, name)| *name)
    }
}

/// Parameters beside those; nobody sends more than a few.
const OTHERS_MAX: usize = 32;

/// What a Digest value says. Values come without quotes, escapes left as they are (RFC 7616 §3.4.2
/// hashes what stands between the quotes).
#[derive(Default)]
struct Parameters<'a>([Option<&'a str>; Name::ALL.len()]);

impl<'a> Parameters<'a> {
    fn parse(value: &'a str) -> Result<Self, HeaderFault> {
        let (scheme, rest) = value.trim().split_once([' ', '\t']).ok_or(HeaderFault::NotDigest)?;
        if !scheme.eq_ignore_ascii_case("Digest") {
            return Err(HeaderFault::NotDigest);
        }
        let mut known = Parameters::default();
        let mut others: SmallVec<[&str; 8]> = SmallVec::new();
        let mut rest = rest.trim_start_matches(SEPARATORS);
        while !rest.is_empty() {
            let (name, behind) = rest.split_once('=').ok_or(HeaderFault::Malformed)?;
            let name = trim(name);
            if !is_token(name) {
                return Err(HeaderFault::Malformed);
            }
            let (value, behind) = value_of(behind.trim_start_matches(BLANKS))?;
            rest = behind.trim_start_matches(SEPARATORS);
            // A second one is how a check is made to see another value than the computation.
            let again = match Name::of(name) {
                Some(name) => {
                    known.0.get_mut(name as usize).and_then(|p| p.replace(value)).is_some()
                }
                None if others.len() == OTHERS_MAX => return Err(HeaderFault::Malformed),
                None => {
                    let again = others.iter().any(|n| n.eq_ignore_ascii_case(name));
                    others.push(name);
                    again
                }
            };
            if again {
                return Err(HeaderFault::Repeated);
            }
        }
        Ok(known)
    }

    fn get(&self, name: Name) -> Option<&'a str> {
        self.0.get(name as usize).copied().flatten()
    }

    fn must(&self, name: Name) -> Result<&'a str, HeaderFault> {
        self.get(name).ok_or(HeaderFault::Missing)
    }

    fn algorithm(&self) -> Result<Algorithm, HeaderFault> {
        match self.get(Name::Algorithm) {
            None => Ok(Algorithm::Md5),
            Some(token) => Algorithm::from_token(token).ok_or(HeaderFault::Unsupported),
        }
    }
}

const BLANKS: [char; 2] = [' ', '\t'];
const SEPARATORS: [char; 3] = [' ', '\t', ','];

/// The value at the begin of `text`, and what is behind it: nothing or a comma.
fn value_of(text: &str) -> Result<(&str, &str), HeaderFault> {
    let bad = HeaderFault::Malformed;
    if !text.starts_with('"') {
        let end = memchr::memchr(b',', text.as_bytes()).unwrap_or(text.len());
        let (value, behind) = text.split_at_checked(end).ok_or(bad)?;
        let value = trim(value);
        let odd = value.bytes().any(|b| matches!(b, b'"' | b' ' | b'\t'));
        return if odd { Err(bad) } else { Ok((value, behind)) };
    }
    let end = quoted_end(text, 0).ok_or(bad)?;
    let value = text.get(1..end - 1).ok_or(bad)?;
    let behind = text.get(end..).ok_or(bad)?.trim_start_matches(BLANKS);
    if behind.is_empty() || behind.starts_with(',') { Ok((value, behind)) } else { Err(bad) }
}

/// Without blanks at its ends, of which there are seldom any.
fn trim(text: &str) -> &str {
    match text.as_bytes() {
        [b'!'..=b'~'] | [b'!'..=b'~', .., b'!'..=b'~'] => text,
        _ => text.trim(),
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
        let all = Parameters::parse(value)?;
        let qop = all.get(Name::Qop);
        let offers =
            |q: Qop| qop.is_some_and(|v| List::new(v).any(|t| Qop::from_token(t) == Some(q)));
        let challenge = Challenge {
            realm: all.must(Name::Realm)?,
            nonce: all.must(Name::Nonce)?,
            opaque: all.get(Name::Opaque),
            stale: all.get(Name::Stale).is_some_and(|v| v.eq_ignore_ascii_case("true")),
            algorithm: all.algorithm()?,
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
        let all = Parameters::parse(value)?;
        let qop = match all.get(Name::Qop) {
            None => None,
            Some(token) => Some(Qop::from_token(token).ok_or(HeaderFault::Unsupported)?),
        };
        let (nc, cnonce) = match qop {
            Some(_) => (all.must(Name::Nc)?, all.must(Name::Cnonce)?),
            None => ("", all.get(Name::Cnonce).unwrap_or("")),
        };
        if qop.is_some() && (nc.len() != 8 || !nc.bytes().all(|b| b.is_ascii_hexdigit())) {
            return Err(HeaderFault::Malformed);
        }
        Ok(Credentials {
            username: all.must(Name::Username)?,
            realm: all.must(Name::Realm)?,
            nonce: all.must(Name::Nonce)?,
            uri: all.must(Name::Uri)?,
            algorithm: all.algorithm()?,
            qop,
            nc,
            cnonce,
            response: all.must(Name::Response)?,
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
