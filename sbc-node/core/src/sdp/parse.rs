//! From bytes to lines and sections. Line ends may be LF; order within a section is kept.

use std::borrow::Cow;

use super::line::Line;
use super::media::Media;
use super::session::Sdp;
use crate::lines::Lines;

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
    let text = std::str::from_utf8(body).ok();
    let mut lines = Lines::new(body, 0);
    let (mut number, mut next) = (0, 0);
    while next < body.len() {
        number += 1;
        let start = next;
        let end = match lines.next_line() {
            Some(found) => {
                next = found.next;
                found.end
            }
            // The last line needs no end.
            None => {
                next = body.len();
                body.len() - usize::from(body.ends_with(b"\r"))
            }
        };
        let raw = body.get(start..end).unwrap_or_default();
        if raw.is_empty() {
            // Blank lines end many bodies in the wild; nothing may follow that means something.
            continue;
        }
        if number > LINES_MAX {
            return Err(SdpError::new(SdpErrorKind::TooMany, number));
        }
        let bad = SdpError::new(SdpErrorKind::BadLine, number);
        let (kind, value) = match raw.split_first_chunk::<2>() {
            Some(([kind, b'='], value)) if kind.is_ascii_lowercase() => (*kind, value),
            _ => return Err(bad),
        };
        if lines.odd && memchr::memchr2(b'\r', 0, value).is_some() {
            return Err(bad);
        }
        let first = sdp.session.is_empty() && sdp.media.is_empty();
        if first && !(kind == b'v' && value.trim_ascii() == b"0") {
            return Err(SdpError::new(SdpErrorKind::NoVersion, number));
        }
        let value = match text.and_then(|text| text.get(end - value.len()..end)) {
            Some(value) => Cow::Borrowed(value),
            None => String::from_utf8_lossy(value),
        };
        if kind == b'm' {
            if sdp.media.len() >= STREAMS_MAX {
                return Err(SdpError::new(SdpErrorKind::TooMany, number));
            }
            let media = media(&value).ok_or(SdpError::new(SdpErrorKind::BadMedia, number))?;
            sdp.media.push(media);
        } else {
            let section = match sdp.media.last_mut() {
                Some(media) => &mut media.lines,
                None => &mut sdp.session,
            };
            section.push(Line::clean(kind, value));
        }
    }
    if sdp.session.is_empty() {
        return Err(SdpError::new(SdpErrorKind::NoVersion, 0));
    }
    sdp.check()?;
    Ok(sdp)
}

/// The streams of a description that was parsed or written before, each with its `a=rtpmap` lines and
/// no others: enough to name codecs, at a fifth of the cost.
pub fn formats(description: &[u8]) -> Vec<Media<'_>> {
    let mut media: Vec<Media<'_>> = Vec::new();
    for line in std::str::from_utf8(description).unwrap_or_default().lines() {
        if let Some(value) = line.strip_prefix("m=") {
            media.extend(Media::parse(value));
        } else if let (Some(stream), Some(value)) = (media.last_mut(), line.strip_prefix("a=")) {
            let line = Line::clean(b'a', Cow::Borrowed(value));
            if line.is_attribute("rtpmap") {
                stream.lines.push(line);
            }
        }
    }
    media
}

fn media<'a>(text: &Cow<'a, str>) -> Option<Media<'a>> {
    match text {
        Cow::Borrowed(text) => Media::parse(text),
        Cow::Owned(text) => Media::parse(text).map(Media::into_owned),
    }
}
