//! Lexical helpers of RFC 3261 §25.1: tokens, white space, quoted strings, lists, parameters.
//!
//! Everything works on `&str` slices of the message and copies nothing unless unescaping must.

use std::borrow::Cow;

const TOKEN: u8 = 1;
const HOST: u8 = 2;
const USER: u8 = 4;
/// A user byte that begins an escape.
const ESCAPE: u8 = 8;

static CLASS: [u8; 256] = build_classes();

const fn build_classes() -> [u8; 256] {
    let mut table = [0u8; 256];
    let mut b = 0u8;
    loop {
        let i = b as usize;
        if b.is_ascii_alphanumeric() {
            table[i] = TOKEN | HOST | USER;
        }
        if matches!(b, b'-' | b'.' | b'!' | b'%' | b'*' | b'_' | b'+' | b'`' | b'\'' | b'~') {
            table[i] |= TOKEN;
        }
        // Underscore is no hostname character, but Windows domains have it.
        if matches!(b, b'-' | b'.' | b'_') {
            table[i] |= HOST;
        }
        // unreserved, escaped, user-unreserved (§25.1), and '#', which phones dial unescaped.
        let mark = matches!(b, b'-' | b'_' | b'.' | b'!' | b'~' | b'*' | b'\'' | b'(' | b')');
        if mark || matches!(b, b'&' | b'=' | b'+' | b'$' | b',' | b';' | b'?' | b'/' | b'%' | b'#')
        {
            table[i] |= USER;
        }
        if b == b'%' {
            table[i] |= ESCAPE;
        }
        if b == u8::MAX {
            return table;
        }
        b += 1;
    }
}

/// Whether a byte may stand in a `token`.
#[inline]
pub fn is_token_byte(b: u8) -> bool {
    CLASS[usize::from(b)] & TOKEN != 0
}

/// Whether `text` is a `token`: not empty, token bytes only.
#[inline]
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

/// Whether `text` could be a host name (not an address in brackets).
#[inline]
pub(crate) fn is_host_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| CLASS[usize::from(b)] & HOST != 0)
}

/// Whether a byte may stand in the user part of a SIP URI as it is.
#[inline]
pub(crate) fn is_user_byte(b: u8) -> bool {
    CLASS[usize::from(b)] & USER != 0
}

/// How many bytes from the begin of `bytes` may stand in a user part as they are, non-ASCII ones
/// among them, and whether an escape begins among them.
#[inline]
pub(crate) fn user_run(bytes: &[u8]) -> (usize, bool) {
    let (mut len, mut seen) = (0, 0);
    while let Some(b) = bytes.get(len) {
        let class = CLASS[usize::from(*b)];
        if class & USER == 0 && *b < 0x80 {
            break;
        }
        seen |= class;
        len += 1;
    }
    (len, seen & ESCAPE != 0)
}

/// How many bytes from the begin of `bytes` may stand in a host name.
#[inline]
pub(crate) fn host_run(bytes: &[u8]) -> usize {
    bytes.iter().position(|b| CLASS[usize::from(*b)] & HOST == 0).unwrap_or(bytes.len())
}

/// Strips linear white space from both ends.
#[inline]
pub(crate) fn trim(text: &str) -> &str {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) if *first > b' ' && *last > b' ' => return text,
        (None, _) | (_, None) => return text,
        (Some(_), Some(_)) => {}
    }
    text.trim_matches([' ', '\t', '\r', '\n'])
}

/// Offset just after a quoted string that begins at `start` (which holds `"`); `None` if unclosed.
pub(crate) fn quoted_end(text: &str, start: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = start + 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes.get(at) == Some(&b'"') {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// Offset of the first of `a` or `b` outside quoted strings (and outside `<>` if `angles`);
/// `text.len()` when there is none or a quote is not closed.
pub(crate) fn find_outside(text: &str, a: u8, b: u8, angles: bool) -> usize {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut in_angles = false;
    while let Some(&c) = bytes.get(at) {
        if c == b'"' && !in_angles {
            match quoted_end(text, at) {
                Some(end) => at = end,
                None => return bytes.len(),
            }
            continue;
        }
        if in_angles {
            in_angles = c != b'>';
        } else if c == a || c == b {
            return at;
        } else if angles && c == b'<' {
            in_angles = true;
        }
        at += 1;
    }
    bytes.len()
}

/// Whether every quoted string that begins in `text` also ends in it. An open one would swallow
/// what is written behind it.
#[inline]
pub(crate) fn quotes_closed(text: &str) -> bool {
    let mut at = 0;
    while let Some(open) = memchr::memchr(b'"', text.as_bytes().get(at..).unwrap_or_default()) {
        match quoted_end(text, at + open) {
            Some(end) => at = end,
            None => return false,
        }
    }
    true
}

/// The elements of a comma-separated list, trimmed, empty ones skipped (RFC 3261 §7.3.1).
#[derive(Clone, Debug)]
pub struct List<'a> {
    rest: Option<&'a str>,
}

impl<'a> List<'a> {
    /// Splits at commas outside quoted strings and `<>`.
    pub fn new(text: &'a str) -> Self {
        List { rest: Some(text) }
    }

    /// The whole text as one element.
    pub(crate) fn end() -> Self {
        List { rest: None }
    }
}

impl<'a> Iterator for List<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            let text = self.rest?;
            let at = match memchr::memchr(b',', text.as_bytes()) {
                None => text.len(),
                Some(_) => find_outside(text, b',', b',', true),
            };
            self.rest = text.get(at + 1..);
            let element = trim(text.get(..at).unwrap_or(""));
            if !element.is_empty() {
                return Some(element);
            }
        }
    }
}

/// The parameters behind a value: `;a=b;c;d="e"` or, for URIs and MIME, the same shape.
///
/// Holds the raw text; names compare without case, values come as written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Params<'a>(pub &'a str);

impl<'a> Params<'a> {
    /// Value of the first parameter called `name`; `Some("")` when it has none.
    /// Quotes of a quoted value are kept: see [`unquote`].
    pub fn get(self, name: &str) -> Option<&'a str> {
        self.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.unwrap_or(""))
    }

    /// Whether a parameter of that name is there, with or without value.
    pub fn has(self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Each `(name, value)` in order.
    pub fn iter(self) -> ParamIter<'a> {
        ParamIter { rest: self.0 }
    }

    pub fn is_empty(self) -> bool {
        self.iter().next().is_none()
    }
}

/// See [`Params::iter`].
#[derive(Clone, Debug)]
pub struct ParamIter<'a> {
    rest: &'a str,
}

impl<'a> Iterator for ParamIter<'a> {
    type Item = (&'a str, Option<&'a str>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let bytes = self.rest.as_bytes();
            let mut begin = 0;
            while let Some(b';' | b' ' | b'\t') = bytes.get(begin) {
                begin += 1;
            }
            // One pass for the end of the parameter and for what divides it.
            let (mut end, mut equals) = (begin, None);
            loop {
                match bytes.get(end) {
                    None if end == begin => return None,
                    None | Some(b';') => break,
                    Some(b'"') => {
                        let text = self.rest.get(begin..).unwrap_or("");
                        end = begin + find_outside(text, b';', b';', false);
                        let one = bytes.get(begin..end).unwrap_or_default();
                        equals = equals.or(memchr::memchr(b'=', one).map(|at| begin + at));
                        break;
                    }
                    Some(b'=') if equals.is_none() => {
                        equals = Some(end);
                        // Values are long where names are short.
                        let rest = bytes.get(end + 1..).unwrap_or_default();
                        end += memchr::memchr2(b';', b'"', rest).unwrap_or(rest.len());
                    }
                    Some(_) => {}
                }
                end += 1;
            }
            let text = self.rest;
            self.rest = text.get(end + 1..).unwrap_or("");
            match equals {
                Some(at) => {
                    let name = trim(text.get(begin..at).unwrap_or(""));
                    let value = trim(text.get(at + 1..end).unwrap_or(""));
                    return Some((name, Some(value)));
                }
                None => {
                    let one = trim(text.get(begin..end).unwrap_or(""));
                    if !one.is_empty() {
                        return Some((one, None));
                    }
                }
            }
        }
    }
}

/// The meaning of a token or quoted string: quotes off, quoted pairs resolved.
pub fn unquote(text: &str) -> Cow<'_, str> {
    let text = trim(text);
    let Some(inner) = text.strip_prefix('"').map(|t| t.strip_suffix('"').unwrap_or(t)) else {
        return Cow::Borrowed(text);
    };
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Cow::Borrowed(inner);
    }
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// `text` as a quoted string: quotes around, `"` and `\` escaped, control characters dropped.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars().filter(|c| !c.is_control()) {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

/// Resolves `%hh` (RFC 3261 §19.1.2). What does not become UTF-8 is replaced by U+FFFD.
pub fn percent_decode(text: &str) -> Cow<'_, str> {
    if memchr::memchr(b'%', text.as_bytes()).is_none() {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&b, tail)) = rest.split_first() {
        rest = tail;
        match (b, tail.first().copied().and_then(hex), tail.get(1).copied().and_then(hex)) {
            (b'%', Some(high), Some(low)) => {
                out.push(high << 4 | low);
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => out.push(b),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

pub(crate) fn hex(b: u8) -> Option<u8> {
    match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    }
}

/// A decimal number with nothing around it: digits only, no sign, no overflow.
#[inline]
pub(crate) fn number(text: &str) -> Option<u64> {
    if text.is_empty() || text.len() > 19 {
        // Leading zeros are legal in 1*DIGIT.
        let short = text.trim_start_matches('0');
        return match (text.is_empty(), short.len()) {
            (true, _) => None,
            (false, 0) => Some(0),
            (false, 1..=19) => number(short),
            _ => None,
        };
    }
    let mut value = 0u64;
    for b in text.bytes() {
        if !b.is_ascii_digit() {
            return None;
        }
        value = value * 10 + u64::from(b - b'0');
    }
    Some(value)
}

/// A decimal `u32`.
#[inline]
pub(crate) fn number_u32(text: &str) -> Option<u32> {
    number(text).and_then(|n| u32::try_from(n).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_split_outside_quotes_and_angles() {
        let all: Vec<_> = List::new(r#" "a, \"b" <sip:a,b@c> , , <sip:x> ;q=1,y"#).collect();
        assert_eq!(all, [r#""a, \"b" <sip:a,b@c>"#, "<sip:x> ;q=1", "y"]);
        assert_eq!(List::new("").count(), 0);
        assert_eq!(List::new("\"unclosed, x").count(), 1);
    }

    #[test]
    fn params_keep_quoted_separators() {
        let params = Params(r#" ; a=1;B ; c = "x;y=\"z" ;; d="#);
        let all: Vec<_> = params.iter().collect();
        assert_eq!(
            all,
            [("a", Some("1")), ("B", None), ("c", Some(r#""x;y=\"z""#)), ("d", Some(""))]
        );
        assert_eq!(params.get("b"), Some(""));
        assert_eq!(params.get("C").map(unquote).as_deref(), Some("x;y=\"z"));
        assert_eq!(params.get("e"), None);
    }

    #[test]
    fn numbers_are_digits_only() {
        for (text, value) in [
            ("0", Some(0)),
            ("0009", Some(9)),
            ("00000000000000000000000000042", Some(42)),
            ("9999999999999999999", Some(9_999_999_999_999_999_999)),
            ("18446744073709551616", None),
            ("-1", None),
            ("+1", None),
            ("", None),
            ("1 ", None),
        ] {
            assert_eq!(number(text), value, "{text}");
        }
    }

    #[test]
    fn quoting_round_trips_and_drops_controls() {
        assert_eq!(quote("a\"b\\c\r\nd\0"), "\"a\\\"b\\\\cd\"");
        assert_eq!(unquote(&quote("say \"hi\" \\o/")), "say \"hi\" \\o/");
        assert_eq!(percent_decode("a%40b%2"), "a@b%2");
    }
}
