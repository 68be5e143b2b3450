//! When two URIs are the same (RFC 3261 §19.1.4, RFC 3966 §5), and how URIs are changed.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::scan::{is_user_byte, percent_decode};
use super::uri::{Scheme, Uri, UriRef};
use super::value::ValueError;

/// Parameters that must match when either URI has them.
const SIGNIFICANT: [&str; 4] = ["user", "ttl", "method", "maddr"];

impl UriRef<'_> {
    /// Whether both name the same resource (RFC 3261 §19.1.4; tel by RFC 3966 §5; others by
    /// text). Not transitive, as the RFC warns.
    pub fn is_equivalent(&self, other: &UriRef<'_>) -> bool {
        match (self.scheme(), other.scheme()) {
            (Scheme::Sip, Scheme::Sip) | (Scheme::Sips, Scheme::Sips) => self.same_sip(other),
            (Scheme::Tel, Scheme::Tel) => self.same_tel(other),
            (Scheme::Other, Scheme::Other) => {
                let rest = |u: &UriRef<'_>| u.as_str().len() - u.scheme_str().len();
                self.scheme_str().eq_ignore_ascii_case(other.scheme_str())
                    && rest(self) == rest(other)
                    && self.as_str().get(self.scheme_str().len()..)
                        == other.as_str().get(other.scheme_str().len()..)
            }
            _ => false,
        }
    }

    fn same_sip(&self, other: &UriRef<'_>) -> bool {
        let text = |t: Option<&str>| t.map(|t| percent_decode(t).into_owned());
        let same_host = match (self.ip(), other.ip()) {
            (Some(a), Some(b)) => a == b,
            _ => self.host().eq_ignore_ascii_case(other.host()),
        };
        if !same_host
            || self.port() != other.port()
            || text(self.user()) != text(other.user())
            || text(self.password()) != text(other.password())
        {
            return false;
        }
        let (a, b) = (self.params(), other.params());
        // A parameter given twice counts as its first.
        let shared = a.iter().all(|(name, _)| match b.get(name) {
            Some(theirs) => same_value(a.get(name).unwrap_or(""), theirs),
            None => !SIGNIFICANT.iter().any(|s| s.eq_ignore_ascii_case(name)),
        });
        let none_missing = SIGNIFICANT.iter().all(|s| a.has(s) || !b.has(s));
        // A transport given on one side only differs too: the examples of §19.1.4 say so.
        shared
            && none_missing
            && a.has("transport") == b.has("transport")
            && self.same_headers(other)
    }

    /// Header components are never ignored; their order does not matter.
    fn same_headers(&self, other: &UriRef<'_>) -> bool {
        let all = |u: &UriRef<'_>| {
            let mut all: Vec<_> = u
                .headers()
                .map(|(n, v)| {
                    (percent_decode(n).to_ascii_lowercase(), percent_decode(v).into_owned())
                })
                .collect();
            all.sort();
            all
        };
        all(self) == all(other)
    }

    /// Visual separators do not count; every parameter does, in any order (RFC 3966 §5).
    fn same_tel(&self, other: &UriRef<'_>) -> bool {
        let params = |u: &UriRef<'_>| {
            let mut all: Vec<_> = u
                .params()
                .iter()
                .map(|(n, v)| {
                    let v = v.unwrap_or("");
                    let number = n.eq_ignore_ascii_case("ext") || v.starts_with('+');
                    (
                        n.to_ascii_lowercase(),
                        if number { digits(v) } else { v.to_ascii_lowercase() },
                    )
                })
                .collect();
            all.sort();
            all
        };
        digits(self.user().unwrap_or("")) == digits(other.user().unwrap_or(""))
            && params(self) == params(other)
    }

    /// The number that the URI stands for: of a tel URI or of a user part that is one (RFC 3261
    /// §19.1.6), without separators, parameters and password. `None` when it is no number.
    pub fn telephone_number(&self) -> Option<Cow<'_, str>> {
        let user = self.user_decoded();
        let number = user.split(';').next().unwrap_or("");
        let plain = number.strip_prefix('+').unwrap_or(number);
        let legal =
            |b: u8| b.is_ascii_digit() || matches!(b, b'*' | b'#' | b'-' | b'.' | b'(' | b')');
        if !plain.bytes().any(|b| b.is_ascii_digit()) || !plain.bytes().all(legal) {
            return None;
        }
        Some(Cow::Owned(digits(number)))
    }
}

fn digits(number: &str) -> String {
    let separator = |c: &char| matches!(c, '-' | '.' | '(' | ')');
    number.chars().filter(|c| !separator(c)).map(|c| c.to_ascii_lowercase()).collect()
}

fn same_value(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b) || percent_decode(a).eq_ignore_ascii_case(&percent_decode(b))
}

/// `text` escaped so that it can stand as a user part (RFC 3261 §19.1.2).
pub fn escape_user(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        // '%' and '#' are taken as they are when reading, never when writing.
        if is_user_byte(b) && !matches!(b, b'%' | b'#') {
            out.push(char::from(b));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

impl Uri {
    /// `sip:user@host:port`; `user` is escaped, `host` may be IPv6 with or without brackets.
    ///
    /// # Errors
    /// [`ValueError`] when `host` is none.
    pub fn sip(user: Option<&str>, host: &str, port: Option<u16>) -> Result<Uri, ValueError> {
        let mut text = String::from("sip:");
        if let Some(user) = user.filter(|u| !u.is_empty()) {
            text.push_str(&escape_user(user));
            text.push('@');
        }
        push_host(&mut text, host, port);
        Uri::parse(&text)
    }

    /// The same URI with another user part (given unescaped; `None` takes it out) and no password.
    /// For tel URIs the number is replaced.
    ///
    /// # Errors
    /// [`ValueError`] when the result is no URI.
    pub fn with_user(&self, user: Option<&str>) -> Result<Uri, ValueError> {
        let view = self.view();
        if !view.is_sip() {
            return Uri::parse(&format!(
                "{}:{}{}",
                view.scheme_str(),
                user.unwrap_or(""),
                view.params().0
            ));
        }
        let user = user.filter(|u| !u.is_empty()).map(escape_user);
        rebuild(&view, user.as_deref(), view.host(), view.port(), view.params().0)
    }

    /// The same URI at another host.
    ///
    /// # Errors
    /// [`ValueError`] when the result is no URI.
    pub fn with_host(&self, host: &str, port: Option<u16>) -> Result<Uri, ValueError> {
        let view = self.view();
        rebuild(&view, view.user(), host, port, view.params().0)
    }

    /// The same URI with a parameter set (an empty value writes the name alone).
    ///
    /// # Errors
    /// [`ValueError`] when the result is no URI.
    pub fn with_param(&self, name: &str, value: &str) -> Result<Uri, ValueError> {
        let stripped = self.without_param(name)?;
        let view = stripped.view();
        let separator = if value.is_empty() { "" } else { "=" };
        let params = format!("{};{name}{separator}{value}", view.params().0);
        rebuild(&view, view.user(), view.host(), view.port(), &params)
    }

    /// The same URI without a parameter.
    ///
    /// # Errors
    /// [`ValueError`] when the result is no URI.
    pub fn without_param(&self, name: &str) -> Result<Uri, ValueError> {
        let view = self.view();
        let mut params = String::new();
        for (n, v) in view.params().iter().filter(|(n, _)| !n.eq_ignore_ascii_case(name)) {
            params.push(';');
            params.push_str(n);
            if let Some(v) = v {
                params.push('=');
                params.push_str(v);
            }
        }
        rebuild(&view, view.user(), view.host(), view.port(), &params)
    }
}

fn push_host(text: &mut String, host: &str, port: Option<u16>) {
    if host.contains(':') && !host.starts_with('[') {
        text.push('[');
        text.push_str(host);
        text.push(']');
    } else {
        text.push_str(host);
    }
    if let Some(port) = port {
        // Writing to a String cannot fail.
        let _ = write!(text, ":{port}");
    }
}

/// Writes a URI anew; `user` comes escaped. URIs without host keep only scheme, user and params.
fn rebuild(
    view: &UriRef<'_>,
    user: Option<&str>,
    host: &str,
    port: Option<u16>,
    params: &str,
) -> Result<Uri, ValueError> {
    let mut text = format!("{}:", view.scheme_str());
    if let Some(user) = user {
        text.push_str(user);
    }
    if view.is_sip() {
        if user.is_some() {
            text.push('@');
        }
        push_host(&mut text, host, port);
    }
    text.push_str(params);
    if !view.headers_str().is_empty() {
        text.push('?');
        text.push_str(view.headers_str());
    }
    Uri::parse(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: &str, b: &str) -> bool {
        let (a, b) = (UriRef::parse(a).expect(a), UriRef::parse(b).expect(b));
        assert_eq!(a.is_equivalent(&b), b.is_equivalent(&a), "{a} {b}");
        a.is_equivalent(&b)
    }

    #[test]
    fn rfc3261_19_1_4_examples() {
        for (a, b) in [
            ("sip:%61lice@atlanta.com;transport=TCP", "sip:alice@AtLanTa.CoM;Transport=tcp"),
            ("sip:carol@chicago.com", "sip:carol@chicago.com;newparam=5"),
            ("sip:carol@chicago.com", "sip:carol@chicago.com;security=on"),
            ("sip:carol@chicago.com;newparam=5", "sip:carol@chicago.com;security=on"),
            (
                "sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",
                "sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com",
            ),
            (
                "sip:alice@atlanta.com?subject=project%20x&priority=urgent",
                "sip:alice@atlanta.com?priority=urgent&subject=project%20x",
            ),
            ("sip:a@[2001:db8::1]", "sip:a@[2001:0DB8:0::1]"),
        ] {
            assert!(same(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("SIP:ALICE@AtLanTa.CoM;Transport=udp", "sip:alice@AtLanTa.CoM;Transport=UDP"),
            ("sip:bob@biloxi.com", "sip:bob@biloxi.com:5060"),
            ("sip:bob@biloxi.com", "sip:bob@biloxi.com;transport=udp"),
            ("sip:bob@biloxi.com", "sip:bob@biloxi.com:6000;transport=tcp"),
            ("sip:carol@chicago.com", "sip:carol@chicago.com?Subject=next%20meeting"),
            ("sip:bob@phone21.boxesbybob.com", "sip:bob@192.0.2.4"),
            ("sip:carol@chicago.com;security=on", "sip:carol@chicago.com;security=off"),
            ("sip:a@b", "sips:a@b"),
            ("sip:a@b", "sip:a@b;maddr=192.0.2.1"),
            ("sip:b", "sip:a@b"),
        ] {
            assert!(!same(a, b), "{a} {b}");
        }
    }

    #[test]
    fn rfc3966_5_comparison() {
        assert!(same("tel:+1-201-555-0123", "tel:+12015550123"));
        assert!(same("tel:7042;phone-context=Example.com", "TEL:7042;phone-context=example.COM"));
        assert!(same("tel:+1;ext=1-2;isub=3", "tel:+1;isub=3;ext=12"));
        assert!(!same("tel:+12015550123", "tel:12015550123"));
        assert!(!same("tel:7042;phone-context=a.com", "tel:7042;phone-context=b.com"));
        assert!(same("mailto:a@b", "MAILTO:a@b") && !same("mailto:a@b", "mailto:A@b"));
    }

    #[test]
    fn setters_keep_the_rest() {
        let uri = Uri::parse("sips:bob:pw@h.example:5061;transport=tcp;lr?Subject=x").expect("uri");
        let text = |u: Result<Uri, ValueError>| u.expect("valid").to_string();
        assert_eq!(
            text(uri.with_user(Some("a@b c%"))),
            "sips:a%40b%20c%25@h.example:5061;transport=tcp;lr?Subject=x"
        );
        assert_eq!(text(uri.with_user(None)), "sips:h.example:5061;transport=tcp;lr?Subject=x");
        assert_eq!(
            text(uri.with_host("2001:db8::1", None)),
            "sips:bob@[2001:db8::1];transport=tcp;lr?Subject=x"
        );
        assert_eq!(
            text(uri.without_param("LR")),
            "sips:bob@h.example:5061;transport=tcp?Subject=x"
        );
        assert_eq!(
            text(uri.with_param("transport", "ws")),
            "sips:bob@h.example:5061;lr;transport=ws?Subject=x"
        );
        assert_eq!(text(Uri::sip(Some("+1"), "192.0.2.1", Some(5080))), "sip:+1@192.0.2.1:5080");
        assert!(Uri::sip(None, "bad host", None).is_err());
        assert!(uri.with_param("x", "a b\r\nEvil: 1").is_err());
        let tel = Uri::parse("tel:+1-2;ext=3").expect("tel");
        assert_eq!(text(tel.with_user(Some("+44"))), "tel:+44;ext=3");
    }

    #[test]
    fn telephone_numbers() {
        for (uri, number) in [
            ("tel:+1-201-555-0123;ext=9", Some("+12015550123")),
            ("sip:+1(201)555@h;user=phone", Some("+1201555")),
            ("sip:00441%32;phone-context=+1@h", Some("004412")),
            ("sip:*31%23@h", Some("*31#")),
            ("sip:bob@h", None),
            ("sip:h", None),
        ] {
            assert_eq!(
                UriRef::parse(uri).expect(uri).telephone_number().as_deref(),
                number,
                "{uri}"
            );
        }
    }
}
