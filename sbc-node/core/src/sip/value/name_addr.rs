//! `name-addr` / `addr-spec` with header parameters: From, To, Contact, Route, Record-Route, Path,
//! Refer-To, Referred-By, P-Asserted-Identity, Remote-Party-ID, Diversion, History-Info, …

use std::borrow::Cow;
use std::fmt;

use super::{FromValue, ValueError};
use crate::sip::scan::{Params, find_outside, quoted_end, quotes_closed, trim, unquote};
use crate::sip::uri::UriRef;
use crate::sip::write::{Out, WriteValue};

/// A name, a URI, and the parameters of the header (never those of the URI).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameAddr<'a> {
    /// Display name as written, quotes and all; empty when absent.
    pub display_raw: &'a str,
    /// The URI as written, without `<>`.
    pub uri_str: &'a str,
    pub params: Params<'a>,
}

impl<'a> NameAddr<'a> {
    /// For writing: display name raw (see [`quote`](crate::sip::quote)), URI and `;a=b` parameters.
    pub fn new(display_raw: &'a str, uri_str: &'a str, params: &'a str) -> Self {
        NameAddr { display_raw, uri_str, params: Params(params) }
    }

    /// The display name without quotes and escapes; empty when absent.
    pub fn display_name(&self) -> Cow<'a, str> {
        unquote(self.display_raw)
    }

    /// # Errors
    /// [`ValueError`] when the URI is not in its grammar.
    pub fn uri(&self) -> Result<UriRef<'a>, ValueError> {
        UriRef::parse(self.uri_str)
    }

    /// The `tag` parameter, if there and not empty.
    #[inline]
    pub fn tag(&self) -> Option<&'a str> {
        self.params.get("tag").filter(|tag| !tag.is_empty())
    }
}

impl<'a> FromValue<'a> for NameAddr<'a> {
    #[inline]
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        let open = if text.starts_with('"') {
            let end = quoted_end(text, 0).ok_or(ValueError::Unclosed)?;
            let rest = text.get(end..).unwrap_or("");
            let skipped = rest.len() - rest.trim_ascii_start().len();
            // After a quoted display name only `<` may come.
            (rest.as_bytes().get(skipped) == Some(&b'<'))
                .then_some(end + skipped)
                .ok_or(ValueError::Syntax)?
        } else {
            match memchr::memchr(b'<', text.as_bytes()) {
                Some(open) => open,
                None => return addr_spec(text),
            }
        };
        let display_raw = match text.get(..open) {
            None | Some("") => "",
            Some(display) => trim(display.strip_suffix(' ').unwrap_or(display)),
        };
        // Peers write unquoted names with other characters than those of tokens; only what could
        // hide structure is refused (RFC 4475).
        let odd = |b: u8| matches!(b, b'"' | b';' | b',' | b'>' | b'\\');
        if !display_raw.starts_with('"') && display_raw.bytes().any(odd) {
            return Err(ValueError::Syntax);
        }
        let inner = text.get(open + 1..).unwrap_or("");
        let close = memchr::memchr(b'>', inner.as_bytes()).ok_or(ValueError::Unclosed)?;
        let uri_str = trim(inner.get(..close).unwrap_or(""));
        let params = inner.get(close + 1..).unwrap_or("");
        if uri_str.is_empty() {
            return Err(ValueError::Syntax);
        }
        if params.is_empty() {
            return Ok(NameAddr { display_raw, uri_str, params: Params("") });
        }
        let params = params.trim_ascii_start();
        if !(params.is_empty() || params.starts_with(';')) {
            return Err(ValueError::Syntax);
        }
        if !quotes_closed(params) {
            return Err(ValueError::Unclosed);
        }
        Ok(NameAddr { display_raw, uri_str, params: Params(params) })
    }
}

/// Without `<>`, what follows `;` belongs to the header, and `?` and `,` are not allowed
/// (RFC 3261 §20).
fn addr_spec(text: &str) -> Result<NameAddr<'_>, ValueError> {
    let end = find_outside(text, b';', b'?', false);
    let (uri, params) = text.split_at_checked(end).ok_or(ValueError::Syntax)?;
    let uri_str = trim(uri);
    if uri_str.is_empty() || params.starts_with('?') || uri_str.contains([' ', '\t', '"', '>']) {
        return Err(ValueError::Syntax);
    }
    if !quotes_closed(params) {
        return Err(ValueError::Unclosed);
    }
    Ok(NameAddr { display_raw: "", uri_str, params: Params(params) })
}

impl WriteValue for NameAddr<'_> {
    /// Always with `<>`, which is never wrong.
    fn write_value(&self, out: &mut Out<'_>) {
        if !self.display_raw.is_empty() {
            out.str(self.display_raw);
            out.str(" ");
        }
        out.str("<");
        out.str(self.uri_str);
        out.str(">");
        out.str(self.params.0);
    }
}

impl fmt::Display for NameAddr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.display_raw.is_empty() {
            write!(f, "{} ", self.display_raw)?;
        }
        write!(f, "<{}>{}", self.uri_str, self.params.0)
    }
}

/// One Contact of a REGISTER: an address, or `*` for all of them (RFC 3261 §10.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact<'a> {
    Star,
    Addr(NameAddr<'a>),
}

impl<'a> FromValue<'a> for Contact<'a> {
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        if text == "*" { Ok(Contact::Star) } else { NameAddr::from_value(text).map(Contact::Addr) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3261_20_10_forms() {
        for (text, display, uri, params) in [
            ("\"Mr. Watson\" <sip:w@b.com> ;q=0.7", "Mr. Watson", "sip:w@b.com", ";q=0.7"),
            ("sip:a@b;tag=1", "", "sip:a@b", ";tag=1"),
            ("<sip:a@b;lr>", "", "sip:a@b;lr", ""),
            ("A. B <sip:x>;tag=t", "A. B", "sip:x", ";tag=t"),
            ("\"<sip:fake>;tag=1\"<sip:x>;tag=2", "<sip:fake>;tag=1", "sip:x", ";tag=2"),
            ("\"\\\"q\\\\\"   <sip:x>", "\"q\\", "sip:x", ""),
            ("<tel:+1-2>", "", "tel:+1-2", ""),
        ] {
            let v = NameAddr::from_value(text).expect(text);
            assert_eq!(
                (&*v.display_name(), v.uri_str, v.params.0),
                (display, uri, params),
                "{text}"
            );
        }
    }

    #[test]
    fn malformed_addresses_are_refused() {
        for text in [
            "",
            "<>",
            "<sip:x",
            "\"open <sip:x>",
            "\"a\" sip:x",
            "\"a\"",
            "sip:x?Route=y",
            "a <sip:x> b",
            "\"a\" b <sip:x>",
            "sip:a b@c",
            "Bell, Alexander <sip:x>",
        ] {
            assert!(NameAddr::from_value(text).is_err(), "{text}");
        }
    }
}
