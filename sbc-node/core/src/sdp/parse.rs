//! From bytes to lines and sections. Line ends may be LF; order within a section is kept.

use std::borrow::Cow;

use super::line::Line;
use super::media::Media;
use super::session::Sdp;

/// Most `m=` lines taken.
const STREAMS_MAX: usize = 32;
/// Most lines taken in all.
const LINES_MAX: usize = 1000;

/// Why a description is refused; all of these answer an offer with 488 (RFC 3261 §21.4.26).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SdpErrorKind {
    #[error("not a session description")]
    NoVersion,
    #[error("bad line")]
    BadLine,
    #[error("no usable o= line")]
    BadOrigin,
    #[error("bad m= line")]
    BadMedia,
    #[error("bad c= line")]
    BadConnection,
    #[error("stream without c= line")]
    NoConnection,
    #[error("too many streams or lines")]
    TooMany,
    #[error("the answer's streams do not match the offer's")]
    AnswerMismatch,
    #[error("no stream is acceptable")]
    NothingAcceptable,
}

/// What is wrong, at which line (from 1; 0 where no line is to blame).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("SDP: {kind} (line {line})")]
pub struct SdpError {
    pub kind: SdpErrorKind,
    pub line: usize,
}

impl SdpError {
    pub(super) fn new(kind: SdpErrorKind, line: usize) -> Self {
        SdpError { kind, line }
    }

    /// The status that answers an offer with this defect.
    pub fn status(&self) -> u16 {
        488
    }
}

/// Parses a whole description.
pub(super) fn parse(body: &[u8]) -> Result<Sdp<'_>, SdpError> {
    let mut sdp = Sdp { session: Vec::with_capacity(12), media: Vec::new() };
    let mut number = 0;
    let mut rest = body;
    while !rest.is_empty() {
        number += 1;
        let (raw, after) = next_line(rest);
        rest = after;
        if raw.is_empty() {
            // Blank lines end many bodies in the wild; nothing may follow that means something.
            continue;
        }
        if number > LINES_MAX {
            return Err(SdpError::new(SdpErrorKind::TooMany, number));
        }
        let bad = SdpError::new(SdpErrorKind::BadLine, number);
        let (kind, text) = match raw.split_first_chunk::<2>() {
            Some(([kind, b'='], text)) if kind.is_ascii_lowercase() => (*kind, text),
            _ => return Err(bad),
        };
        if memchr::memchr2(b'\r', 0, text).is_some() {
            return Err(bad);
        }
        let first = sdp.session.is_empty() && sdp.media.is_empty();
        if first && !(kind == b'v' && text.trim_ascii() == b"0") {
            return Err(SdpError::new(SdpErrorKind::NoVersion, number));
        }
        let text = match std::str::from_utf8(text) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => String::from_utf8_lossy(text),
        };
        if kind == b'm' {
            if sdp.media.len() >= STREAMS_MAX {
                return Err(SdpError::new(SdpErrorKind::TooMany, number));
            }
            let media = media(&text).ok_or(SdpError::new(SdpErrorKind::BadMedia, number))?;
            sdp.media.push(media);
        } else {
            let lines = match sdp.media.last_mut() {
                Some(media) => &mut media.lines,
                None => &mut sdp.session,
            };
            lines.push(Line::new(kind, text));
        }
    }
    if sdp.session.is_empty() {
        return Err(SdpError::new(SdpErrorKind::NoVersion, 0));
    }
    sdp.check()?;
    Ok(sdp)
}

fn next_line(text: &[u8]) -> (&[u8], &[u8]) {
    let (line, rest) = match memchr::memchr(b'\n', text) {
        None => (text, &[][..]),
        Some(at) => (text.get(..at).unwrap_or_default(), text.get(at + 1..).unwrap_or_default()),
    };
    (line.strip_suffix(b"\r").unwrap_or(line), rest)
}

fn media<'a>(text: &Cow<'a, str>) -> Option<Media<'a>> {
    match text {
        Cow::Borrowed(text) => Media::parse(text),
        Cow::Owned(text) => Media::parse(text).map(Media::into_owned),
    }
}
