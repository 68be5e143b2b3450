//! From bytes to an index of lines: one pass, no copy, no header value looked at.
//!
//! What a message must hold to be valid lives in `validate.rs`.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use memchr::memchr;
use smallvec::SmallVec;

use super::message::{Inner, Line, Message, Start};
use super::method::Method;
use super::name::HeaderName;
use super::scan::{is_token, is_token_byte, number};
use crate::lines::{Found, Lines};

/// Bounds on what is parsed at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Start line and headers together, in bytes.
    pub head_bytes_max: usize,
    /// Header lines.
    pub headers_max: usize,
    /// Body, in bytes.
    pub body_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { head_bytes_max: 32 * 1024, headers_max: 256, body_bytes_max: 64 * 1024 }
    }
}

/// Why bytes are not a SIP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ParseErrorKind {
    #[error("empty message")]
    Empty,
    #[error("bad start line")]
    BadStartLine,
    #[error("SIP version not supported")]
    BadVersion,
    #[error("bad header line")]
    BadHeaderLine,
    #[error("control character in header")]
    ControlCharacter,
    #[error("headers do not end")]
    NoEndOfHeaders,
    #[error("headers too large")]
    HeadTooLarge,
    #[error("too many headers")]
    TooManyHeaders,
    #[error("body too large")]
    BodyTooLarge,
}

impl ParseErrorKind {
    /// The status that answers a request with this defect.
    pub fn status(self) -> u16 {
        match self {
            ParseErrorKind::BadVersion => 505,
            ParseErrorKind::HeadTooLarge
            | ParseErrorKind::TooManyHeaders
            | ParseErrorKind::BodyTooLarge => 513,
            ParseErrorKind::Empty
            | ParseErrorKind::BadStartLine
            | ParseErrorKind::BadHeaderLine
            | ParseErrorKind::ControlCharacter
            | ParseErrorKind::NoEndOfHeaders => 400,
        }
    }
}

/// What is wrong, and at which byte of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at byte {offset}")]
pub struct ParseError {
    pub kind: ParseErrorKind,
    pub offset: usize,
}

/// Parses one whole message: a datagram, or a frame cut out of a stream.
///
/// Lenient on purpose: line ends may be bare LF, values are not looked at. Folded lines are
/// unfolded and a head that is not UTF-8 is read as Latin-1, both into a copy; otherwise nothing
/// is copied. Call [`validate`](super::validate) before acting on the message.
///
/// # Errors
/// [`ParseError`] when the start line or a header line has not the shape of one, or a limit is
/// passed; [`salvage`] then says whether it can still be answered.
pub fn parse(mut data: Bytes, limits: &Limits) -> Result<Message, ParseError> {
    parse_from(&mut data, limits)
}

/// The same; what is no message stays in `data`, for [`salvage`].
///
/// # Errors
/// As [`parse`].
pub fn parse_from(data: &mut Bytes, limits: &Limits) -> Result<Message, ParseError> {
    index(data, limits, Mode::Strict)
}

/// Reads what is readable of a request that [`parse`] refused, to answer it: bad lines are
/// skipped, reading stops at the limits. `None` unless it is a request other than ACK with a Via.
pub fn salvage(mut data: Bytes, limits: &Limits) -> Option<Message> {
    let message = index(&mut data, limits, Mode::Salvage).ok()?;
    let answerable = message.method().is_some_and(|m| *m != Method::Ack);
    (answerable && message.via().is_ok()).then_some(message)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Strict,
    Salvage,
}

fn fail<T>(kind: ParseErrorKind, offset: usize) -> Result<T, ParseError> {
    Err(ParseError { kind, offset })
}

/// A `u32` offset into the head; the head limit keeps it in range.
fn at(offset: usize) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

/// Takes the data where it yields a message.
fn index(data: &mut Bytes, limits: &Limits, mode: Mode) -> Result<Message, ParseError> {
    let head_max = limits.head_bytes_max.min(u32::MAX as usize - 4);
    let begin = data.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(data.len());
    if begin == data.len() {
        return fail(ParseErrorKind::Empty, 0);
    }
    let mut scan = Lines::new(data, begin);
    let (line_end, mut next) = match scan.next_line() {
        Some(found) => (found.end, found.next),
        None if data.len() > head_max => return fail(ParseErrorKind::HeadTooLarge, head_max),
        None => return fail(ParseErrorKind::NoEndOfHeaders, data.len()),
    };
    let start = start_line(data, begin, line_end, mode)?;

    let mut lines: SmallVec<[Line; 24]> = SmallVec::new();
    let (mut seen, mut repeated) = (0u128, 0u128);
    let mut folded = false;
    let body_at = loop {
        let line_start = next;
        let Some(Found { mut end, next: mut after, mut colon }) = scan.next_line() else {
            match (mode, data.len() > head_max) {
                (Mode::Salvage, _) => break data.len(),
                (Mode::Strict, true) => return fail(ParseErrorKind::HeadTooLarge, head_max),
                (Mode::Strict, false) => return fail(ParseErrorKind::NoEndOfHeaders, data.len()),
            }
        };
        if end == line_start {
            break after;
        }
        while matches!(data.get(after), Some(b' ' | b'\t')) {
            let Some(fold) = scan.next_line() else { break };
            (end, after, colon, folded) = (fold.end, fold.next, colon.or(fold.colon), true);
        }
        next = after;
        if after > head_max || lines.len() >= limits.headers_max {
            if mode == Mode::Salvage {
                break data.len();
            }
            let too_large = after > head_max;
            let kind = if too_large {
                ParseErrorKind::HeadTooLarge
            } else {
                ParseErrorKind::TooManyHeaders
            };
            return fail(kind, line_start);
        }
        match header_line(data, line_start, end, colon) {
            Ok(line) => {
                repeated |= seen & line.id.bit();
                seen |= line.id.bit();
                lines.push(line);
            }
            Err(_) if mode == Mode::Salvage => {}
            Err(error) => return Err(error),
        }
    };

    let head_end = body_at.min(data.len());
    let head = data.get(..head_end).unwrap_or_default();
    // Looked at once more only where the scan saw what is rare.
    let odd = scan.odd;
    if odd && std::str::from_utf8(head).is_err() {
        // The copy is longer: offsets into it stay within what came.
        return index(&mut latin1(data, head_end), limits, mode)
            .map_err(|e| ParseError { offset: e.offset.min(data.len()), ..e });
    }
    if odd {
        let stray = |line: &Line| {
            let value = head.get(line.value as usize..line.end as usize).unwrap_or_default();
            misplaced_control(value).map(|offset| line.value as usize + offset)
        };
        match (mode, lines.iter().find_map(stray)) {
            (_, None) => {}
            (Mode::Strict, Some(offset)) => return fail(ParseErrorKind::ControlCharacter, offset),
            (Mode::Salvage, Some(_)) => lines.retain(|line| stray(line).is_none()),
        }
    }
    let unfolded = folded.then(|| unfold(data, &lines));
    let body_end = body_end(unfolded.as_ref().unwrap_or(data), &lines, head_end);
    if body_end - head_end > limits.body_bytes_max && mode == Mode::Strict {
        return fail(ParseErrorKind::BodyTooLarge, head_end);
    }
    let data = unfolded.unwrap_or_else(|| std::mem::take(data));
    Ok(Message(Arc::new(Inner::new(data, head_end, body_end, start, lines, seen, repeated))))
}

fn start_line(data: &[u8], begin: usize, end: usize, mode: Mode) -> Result<Start, ParseError> {
    let bad = ParseError { kind: ParseErrorKind::BadStartLine, offset: begin };
    let text = data.get(begin..end).ok_or(bad)?;
    // A NUL or CR here is no SIP at all.
    if memchr::memchr2(b'\r', 0, text).is_some() {
        return Err(bad);
    }
    let space = memchr(b' ', text).ok_or(bad)?;
    let first = text.get(..space).ok_or(bad)?;
    if memchr(b'/', first).is_some() {
        return status_line(text, begin, space, bad);
    }
    let method = std::str::from_utf8(first).ok().filter(|m| is_token(m)).ok_or(bad)?;
    let last = memchr::memrchr(b' ', text.trim_ascii_end()).filter(|l| *l > space).ok_or(bad)?;
    let version = text.get(last + 1..).ok_or(bad)?.trim_ascii_end();
    let known = version == b"SIP/2.0" || version.eq_ignore_ascii_case(b"SIP/2.0");
    if !known && mode == Mode::Strict {
        let sip = version.get(..4).is_some_and(|v| v.eq_ignore_ascii_case(b"SIP/"));
        let kind = if sip { ParseErrorKind::BadVersion } else { ParseErrorKind::BadStartLine };
        return fail(kind, begin + last + 1);
    }
    let uri = (at(begin + space + 1), at(begin + last));
    // Exactly one SP around the URI and none after the version (§7.1); `validate` answers 400.
    let well_formed = text.len() == last + 1 + version.len()
        && text.get(space + 1..last).is_some_and(|u| {
            !u.is_empty() && !u.iter().fold(false, |blank, b| blank | (*b <= b' '))
        });
    Ok(Start::Request { method: Method::new(method), uri, well_formed })
}

fn status_line(
    text: &[u8],
    begin: usize,
    space: usize,
    bad: ParseError,
) -> Result<Start, ParseError> {
    let version = text.get(..space).ok_or(bad)?;
    if version != b"SIP/2.0" && !version.eq_ignore_ascii_case(b"SIP/2.0") {
        let sip = version.get(..4).is_some_and(|v| v.eq_ignore_ascii_case(b"SIP/"));
        let kind = if sip { ParseErrorKind::BadVersion } else { ParseErrorKind::BadStartLine };
        return fail(kind, begin);
    }
    let code =
        text.get(space + 1..space + 4).and_then(|c| std::str::from_utf8(c).ok()).ok_or(bad)?;
    let status = number(code).and_then(|c| u16::try_from(c).ok()).ok_or(bad)?;
    let reason = match text.get(space + 4) {
        None => text.len(),
        Some(b' ') => space + 5,
        Some(_) => return Err(bad),
    };
    if !(100..=699).contains(&status) {
        return Err(bad);
    }
    Ok(Start::Response { status, reason: (at(begin + reason), at(begin + text.len())) })
}

#[inline]
fn header_line(
    data: &[u8],
    start: usize,
    end: usize,
    colon: Option<usize>,
) -> Result<Line, ParseError> {
    let bad = ParseError { kind: ParseErrorKind::BadHeaderLine, offset: start };
    let colon = colon.ok_or(bad)?;
    let mut name = data.get(start..colon).ok_or(bad)?;
    // `Name  : value` is legal (§7.3.1, HCOLON).
    while let [rest @ .., b' ' | b'\t'] = name {
        name = rest;
    }
    let id = HeaderName::from_bytes(name);
    // A name that is known is a token; others must be looked at.
    if id == HeaderName::Other && (name.is_empty() || !name.iter().all(|b| is_token_byte(*b))) {
        return Err(bad);
    }
    // `Name: value`, as nearly everybody writes it.
    if let Some([b' ', first, .., last]) = data.get(colon + 1..end)
        && *first > b' '
        && *last > b' '
    {
        return Ok(Line {
            id,
            name_len: u16::try_from(name.len()).map_err(|_| bad)?,
            name: at(start),
            value: at(colon + 2),
            end: at(end),
        });
    }
    let mut value = data.get(colon + 1..end).ok_or(bad)?;
    while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = value {
        value = rest;
    }
    let value_at = end - value.len();
    while let [rest @ .., b' ' | b'\t' | b'\r' | b'\n'] = value {
        value = rest;
    }
    Ok(Line {
        id,
        name_len: u16::try_from(name.len()).map_err(|_| bad)?,
        name: at(start),
        value: at(value_at),
        end: at(value_at + value.len()),
    })
}

/// Offset of a CR that is not part of a fold, or of a NUL that is not a quoted pair of a quoted
/// string.
fn misplaced_control(value: &[u8]) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (i, b) in value.iter().enumerate() {
        let legal = match b {
            b'\r' => value.get(i + 1) == Some(&b'\n'),
            0 => quoted && escaped,
            _ => true,
        };
        if !legal {
            return Some(i);
        }
        quoted ^= *b == b'"' && !escaped;
        escaped = quoted && *b == b'\\' && !escaped;
    }
    None
}

/// Blanks the line ends inside folded values, so that no value holds CR or LF (§7.3.1).
fn unfold(data: &Bytes, lines: &[Line]) -> Bytes {
    let mut copy = BytesMut::from(data.as_ref());
    for line in lines {
        if let Some(value) = copy.get_mut(line.value as usize..line.end as usize) {
            for b in value.iter_mut().filter(|b| matches!(b, b'\r' | b'\n')) {
                *b = b' ';
            }
        }
    }
    copy.freeze()
}

/// The head read as Latin-1 and written as UTF-8; the body as it is.
fn latin1(data: &Bytes, head_end: usize) -> Bytes {
    let (head, body) = data.split_at_checked(head_end).unwrap_or((data, &[]));
    let text: String = head.iter().map(|b| char::from(*b)).collect();
    let mut out = BytesMut::with_capacity(text.len() + body.len());
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(body);
    out.freeze()
}

/// Where the body ends: at Content-Length where it is usable and met, else at the end of input.
fn body_end(data: &[u8], lines: &[Line], head_end: usize) -> usize {
    lines
        .iter()
        .find(|l| l.id == HeaderName::ContentLength)
        .and_then(|l| data.get(l.value as usize..l.end as usize))
        .and_then(|v| std::str::from_utf8(v).ok())
        .and_then(number)
        .and_then(|n| usize::try_from(n).ok())
        .and_then(|n| head_end.checked_add(n))
        .filter(|end| *end <= data.len())
        .unwrap_or(data.len())
}
