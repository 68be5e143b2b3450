//! URIs: sip, sips, tel, and others kept as text (RFC 3261 §19.1, RFC 3966).
//!
//! [`UriRef`] is a view of text; [`Uri`] owns valid text. Comparison lives in `uri_eq.rs`.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::scan::{Params, hex, is_user_byte, percent_decode, user_run};
use super::value::parse_ip;
use super::value::{FromValue, Host, ValueError};
use super::write::{Out, WriteValue};

/// The scheme of a URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Sip,
    Sips,
    Tel,
    /// Anything else; only [`UriRef::as_str`] and [`UriRef::scheme_str`] say more.
    Other,
}

/// A parsed view of a URI's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UriRef<'a> {
    raw: &'a str,
    scheme: Scheme,
    user: Option<&'a str>,
    password: Option<&'a str>,
    host: &'a str,
    port: Option<u16>,
    params: &'a str,
    headers: &'a str,
}

impl<'a> UriRef<'a> {
    /// # Errors
    /// [`ValueError`] when the text is no URI, or a sip, sips or tel URI not in its grammar.
    #[inline]
    pub fn parse(raw: &'a str) -> Result<Self, ValueError> {
        match Self::plain(raw) {
            Some(uri) => Ok(uri),
            None => Self::any(raw),
        }
    }

    /// A sip or sips URI as most are, in one pass; `None` for what has to be looked at more closely,
    /// right or wrong.
    fn plain(raw: &'a str) -> Option<Self> {
        let (scheme, begin) = match raw.as_bytes() {
            [b's' | b'S', b'i' | b'I', b'p' | b'P', b':', ..] => (Scheme::Sip, 4),
            [b's' | b'S', b'i' | b'I', b'p' | b'P', b's' | b'S', b':', ..] => (Scheme::Sips, 5),
            _ => return None,
        };
        let bytes = raw.as_bytes();
        let (run, escaped) = user_run(bytes.get(begin..)?);
        let (user, host_at) = match bytes.get(begin + run) {
            Some(b'@') if run > 0 && !escaped => {
                (Some(raw.get(begin..begin + run)?), begin + run + 1)
            }
            // An empty user, or one whose escapes must be looked at.
            Some(b'@') => return None,
            None => (None, begin),
            // A port, or a password with an `@` behind it.
            Some(_) if memchr::memchr(b'@', bytes.get(begin + run..)?).is_some() => return None,
            Some(_) => (None, begin),
        };
        let (Host { host, port }, end) = Host::plain(raw, host_at)?;
        let mut uri = UriRef { scheme, user, host, port, ..Self::blank(raw) };
        match bytes.get(end) {
            None => {}
            Some(b';') => {
                uri.params = raw.get(end..)?;
                // Headers, a second `@`, and what may not stand in a URI.
                let odd = |b: u8| b <= b' ' || matches!(b, b'?' | b'@' | b'<' | b'>' | b'"' | 0x7f);
                if uri.params.bytes().any(odd) {
                    return None;
                }
            }
            Some(_) => return None,
        }
        Some(uri)
    }

    fn any(raw: &'a str) -> Result<Self, ValueError> {
        let colon = memchr::memchr(b':', raw.as_bytes()).ok_or(ValueError::Uri)?;
        let (scheme, rest) = raw.split_at_checked(colon).ok_or(ValueError::Uri)?;
        let rest = rest.get(1..).unwrap_or("");
        if raw.bytes().any(|b| b <= b' ' || matches!(b, b'<' | b'>' | b'"' | 0x7f)) {
            return Err(ValueError::Uri);
        }
        let known = match scheme.len() {
            3 if scheme.eq_ignore_ascii_case("sip") => Scheme::Sip,
            4 if scheme.eq_ignore_ascii_case("sips") => Scheme::Sips,
            3 if scheme.eq_ignore_ascii_case("tel") => Scheme::Tel,
            _ => Scheme::Other,
        };
        match known {
            Scheme::Sip | Scheme::Sips => Self::sip(raw, known, rest),
            Scheme::Tel => Self::tel(raw, rest),
            Scheme::Other => {
                let alpha = scheme.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
                let ok = alpha
                    && scheme
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
                if !ok || rest.is_empty() {
                    return Err(ValueError::Uri);
                }
                Ok(UriRef { scheme: Scheme::Other, ..Self::blank(raw) })
            }
        }
    }

    fn blank(raw: &'a str) -> Self {
        UriRef {
            raw,
            scheme: Scheme::Other,
            user: None,
            password: None,
            host: "",
            port: None,
            params: "",
            headers: "",
        }
    }

    fn sip(raw: &'a str, scheme: Scheme, rest: &'a str) -> Result<Self, ValueError> {
        let (user, password, rest) = match memchr::memchr(b'@', rest.as_bytes()) {
            None => (None, None, rest),
            Some(at) => {
                let userinfo = rest.get(..at).unwrap_or("");
                let (user, password) = match memchr::memchr(b':', userinfo.as_bytes()) {
                    Some(colon) => (userinfo.get(..colon).unwrap_or(""), userinfo.get(colon + 1..)),
                    None => (userinfo, None),
                };
                if user.is_empty() || !well_escaped(user) || !password.is_none_or(well_escaped) {
                    return Err(ValueError::Uri);
                }
                (Some(user), password, rest.get(at + 1..).unwrap_or(""))
            }
        };
        let host_end = rest.bytes().position(|b| matches!(b, b';' | b'?')).unwrap_or(rest.len());
        let (hostport, rest) = rest.split_at_checked(host_end).ok_or(ValueError::Uri)?;
        let Host { host, port } = Host::parse(hostport)?;
        let question = memchr::memchr(b'?', rest.as_bytes()).unwrap_or(rest.len());
        let (params, headers) = rest.split_at_checked(question).ok_or(ValueError::Uri)?;
        if rest.contains('@') && user.is_some() && params.contains('@') {
            return Err(ValueError::Uri);
        }
        let headers = headers.get(1..).unwrap_or("");
        Ok(UriRef { raw, scheme, user, password, host, port, params, headers })
    }

    fn tel(raw: &'a str, rest: &'a str) -> Result<Self, ValueError> {
        let end = memchr::memchr(b';', rest.as_bytes()).unwrap_or(rest.len());
        let (number, params) = rest.split_at_checked(end).ok_or(ValueError::Uri)?;
        let digits = number.strip_prefix('+').unwrap_or(number);
        let legal =
            |b: u8| b.is_ascii_hexdigit() || matches!(b, b'*' | b'#' | b'-' | b'.' | b'(' | b')');
        if !digits.bytes().any(|b| b.is_ascii_hexdigit() || matches!(b, b'*' | b'#'))
            || !digits.bytes().all(legal)
        {
            return Err(ValueError::Uri);
        }
        Ok(UriRef { scheme: Scheme::Tel, user: Some(number), params, ..Self::blank(raw) })
    }

    /// The text as written.
    #[inline]
    pub fn as_str(&self) -> &'a str {
        self.raw
    }

    #[inline]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The scheme as written.
    pub fn scheme_str(&self) -> &'a str {
        self.raw.split(':').next().unwrap_or("")
    }

    /// Whether the scheme is sip or sips.
    #[inline]
    pub fn is_sip(&self) -> bool {
        matches!(self.scheme, Scheme::Sip | Scheme::Sips)
    }

    /// User part as written, with its own parameters (`;phone-context=…`); the number of a tel URI.
    #[inline]
    pub fn user(&self) -> Option<&'a str> {
        self.user
    }

    /// User part with escapes resolved; empty when absent.
    pub fn user_decoded(&self) -> Cow<'a, str> {
        self.user.map_or(Cow::Borrowed(""), percent_decode)
    }

    pub fn password(&self) -> Option<&'a str> {
        self.password
    }

    /// Host name or address (IPv6 in brackets); empty for tel and others.
    #[inline]
    pub fn host(&self) -> &'a str {
        self.host
    }

    /// The host as an address, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        parse_ip(self.host)
    }

    #[inline]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// URI parameters.
    #[inline]
    pub fn params(&self) -> Params<'a> {
        Params(self.params)
    }

    /// `a=b&c=d` behind the `?`, as written; empty when absent.
    pub fn headers_str(&self) -> &'a str {
        self.headers
    }

    /// Headers of the URI as `(name, value)`, still escaped.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.headers
            .split('&')
            .filter(|h| !h.is_empty())
            .map(|h| h.split_once('=').unwrap_or((h, "")))
    }

    /// Whether `lr` is set (RFC 3261 §16.12: loose routing).
    pub fn is_loose(&self) -> bool {
        self.params().has("lr")
    }

    /// An owned copy.
    pub fn to_uri(&self) -> Uri {
        Uri(self.raw.into())
    }
}

/// No stray `%` and no byte that must be escaped.
fn well_escaped(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().enumerate().all(|(i, b)| match b {
        b'%' => {
            let digit = |at: usize| bytes.get(at).copied().and_then(hex).is_some();
            digit(i + 1) && digit(i + 2)
        }
        b => is_user_byte(*b) || *b >= 0x80,
    })
}

impl<'a> FromValue<'a> for UriRef<'a> {
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        UriRef::parse(text)
    }
}

impl WriteValue for UriRef<'_> {
    fn write_value(&self, out: &mut Out<'_>) {
        out.str(self.raw);
    }
}

impl fmt::Display for UriRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.raw)
    }
}

/// A URI that owns its text. The text is always valid; cloning counts a reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Uri(Arc<str>);

impl Uri {
    /// # Errors
    /// As [`UriRef::parse`].
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        UriRef::parse(text).map(|u| u.to_uri())
    }

    /// The parsed view.
    pub fn view(&self) -> UriRef<'_> {
        UriRef::parse(&self.0).unwrap_or_else(|_| UriRef::blank(&self.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl WriteValue for Uri {
    fn write_value(&self, out: &mut Out<'_>) {
        out.str(&self.0);
    }
}
