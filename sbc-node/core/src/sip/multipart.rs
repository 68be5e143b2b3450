//! Multipart bodies (RFC 2046 §5.1, RFC 5621): SDP beside ISUP, PIDF-LO and the like.
//!
//! What a part means never lives here.

use bytes::{BufMut, Bytes, BytesMut};

use super::scan::{trim, unquote};
use super::value::{ContentType, Disposition, FromValue};

/// Most parts taken; nested multiparts are parts like any other, opened only on request.
const PARTS_MAX: usize = 16;

/// Why a multipart body is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum MultipartError {
    #[error("no usable boundary parameter")]
    NoBoundary,
    #[error("closing boundary missing")]
    Unclosed,
    #[error("too many parts")]
    TooMany,
    #[error("bad part header")]
    BadHeader,
}

/// One part: its header lines as written, and its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// Header lines with their line ends, without the blank line.
    pub head: &'a str,
    pub body: &'a [u8],
}

impl<'a> Part<'a> {
    /// Value of a header of the part.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.head
            .lines()
            .filter_map(|l| l.split_once(':'))
            .find_map(|(n, v)| trim(n).eq_ignore_ascii_case(name).then_some(trim(v)))
    }

    /// Content-Type; `text/plain` where none is given is not assumed.
    pub fn content_type(&self) -> Option<ContentType<'a>> {
        self.header("Content-Type").and_then(|v| ContentType::from_value(v).ok())
    }

    pub fn disposition(&self) -> Option<Disposition<'a>> {
        self.header("Content-Disposition").and_then(|v| Disposition::from_value(v).ok())
    }
}

/// Splits a multipart body into its parts.
///
/// # Errors
/// [`MultipartError`].
pub fn parse_multipart<'a>(
    kind: &ContentType<'_>,
    body: &'a [u8],
) -> Result<Vec<Part<'a>>, MultipartError> {
    let boundary = kind.params.get("boundary").map(unquote).ok_or(MultipartError::NoBoundary)?;
    if boundary.is_empty() || boundary.len() > 70 {
        return Err(MultipartError::NoBoundary);
    }
    let mut parts = Vec::new();
    let mut open: Option<usize> = None;
    let mut at = 0;
    while let Some(line) = body.get(at..).filter(|rest| !rest.is_empty()) {
        let length = memchr::memchr(b'\n', line).map_or(line.len(), |lf| lf + 1);
        let text = line.get(..length).unwrap_or_default();
        if let Some(last) = delimiter(text, boundary.as_bytes()) {
            if let Some(begin) = open {
                if parts.len() >= PARTS_MAX {
                    return Err(MultipartError::TooMany);
                }
                parts.push(part(content(body, begin, at))?);
            }
            if last {
                return Ok(parts);
            }
            open = Some(at + length);
        }
        at += length;
    }
    Err(MultipartError::Unclosed)
}

/// Whether a line is a boundary; `Some(true)` for the closing one.
fn delimiter(line: &[u8], boundary: &[u8]) -> Option<bool> {
    let rest = line.strip_prefix(b"--")?.strip_prefix(boundary)?;
    match rest.strip_prefix(b"--") {
        Some(rest) if rest.trim_ascii().is_empty() => Some(true),
        _ if rest.trim_ascii().is_empty() => Some(false),
        _ => None,
    }
}

/// What stands between two boundary lines; the line end before the second belongs to it.
fn content(body: &[u8], begin: usize, end: usize) -> &[u8] {
    let text = body.get(begin..end).unwrap_or_default();
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    text.strip_suffix(b"\r").unwrap_or(text)
}

fn part(text: &[u8]) -> Result<Part<'_>, MultipartError> {
    let mut at = 0;
    while let Some(line) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let Some(lf) = memchr::memchr(b'\n', line) else { break };
        if matches!(line.get(..lf), Some(b"" | b"\r")) {
            let head = std::str::from_utf8(text.get(..at).unwrap_or_default());
            let head = head.map_err(|_| MultipartError::BadHeader)?;
            return Ok(Part { head, body: text.get(at + lf + 1..).unwrap_or_default() });
        }
        at += lf + 1;
    }
    // No blank line: headers only, no content.
    let head = std::str::from_utf8(text).map_err(|_| MultipartError::BadHeader)?;
    Ok(Part { head, body: b"" })
}

/// Writes parts as a body. `boundary` must not occur in any of them; returns the value for
/// Content-Type (`multipart/<sub>;boundary=…`) and the body.
pub fn write_multipart(sub: &str, boundary: &str, parts: &[Part<'_>]) -> (String, Bytes) {
    let mut out =
        BytesMut::with_capacity(parts.iter().map(|p| p.head.len() + p.body.len() + 100).sum());
    for part in parts {
        out.put_slice(b"--");
        out.put_slice(boundary.as_bytes());
        out.put_slice(b"\r\n");
        for line in part.head.lines().filter(|l| !l.is_empty()) {
            out.put_slice(line.as_bytes());
            out.put_slice(b"\r\n");
        }
        out.put_slice(b"\r\n");
        out.put_slice(part.body);
        out.put_slice(b"\r\n");
    }
    out.put_slice(b"--");
    out.put_slice(boundary.as_bytes());
    out.put_slice(b"--\r\n");
    (format!("multipart/{sub};boundary=\"{boundary}\""), out.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: &str, body: &'static [u8]) -> Result<Vec<Part<'static>>, MultipartError> {
        parse_multipart(&ContentType::from_value(kind).expect("type"), body)
    }

    const BODY: &[u8] = b"preamble\r\n--b1\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n\r\n--b1 \r\n\
        Content-Type: application/isup;version=itu\r\nContent-Disposition: signal; handling=optional\r\n\r\n\x01\0\r\n\x02\r\n--b1--\r\nepilogue";

    #[test]
    fn rfc2046_5_1_parts_come_out_as_they_went_in() {
        let parts = parse("multipart/mixed; boundary=\"b1\"", BODY).expect("parts");
        let [sdp, isup] = parts.as_slice() else { panic!("{parts:?}") };
        assert!(sdp.content_type().is_some_and(|t| t.is_sdp()));
        assert_eq!(sdp.body, b"v=0\r\n");
        assert_eq!(isup.body, b"\x01\0\r\n\x02");
        assert_eq!(isup.disposition().map(|d| (d.kind, d.optional)), Some(("signal", true)));
        let (kind, body) = write_multipart("mixed", "zz", &parts);
        let again = parse_multipart(&ContentType::from_value(&kind).expect("type"), &body)
            .expect("own output");
        assert_eq!(again.iter().map(|p| p.body).collect::<Vec<_>>(), [sdp.body, isup.body]);
        assert_eq!(
            again.iter().map(|p| p.header("content-type")).collect::<Vec<_>>(),
            [sdp.header("content-type"), isup.header("content-type")]
        );
    }

    #[test]
    fn nested_and_broken_bodies() {
        let nested = b"--a\r\nContent-Type: multipart/mixed;boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n\r\n--a--";
        let parts = parse("multipart/mixed;boundary=a", nested).expect("outer");
        assert_eq!(parts.len(), 1);
        let inner = parts.first().and_then(Part::content_type).expect("type");
        let body = parts.first().map_or(&b""[..], |p| p.body);
        assert_eq!(parse_multipart(&inner, body).map(|p| p.len()), Ok(1));
        assert_eq!(parse("multipart/mixed", b""), Err(MultipartError::NoBoundary));
        assert_eq!(parse("multipart/mixed;boundary=\"\"", b""), Err(MultipartError::NoBoundary));
        assert_eq!(
            parse("multipart/mixed;boundary=a", b"--a\r\n\r\nx"),
            Err(MultipartError::Unclosed)
        );
        assert_eq!(
            parse("multipart/mixed;boundary=a", b"--a\r\n\xff: x\r\n\r\nx\r\n--a--"),
            Err(MultipartError::BadHeader)
        );
    }
}
