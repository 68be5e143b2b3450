//! What a parsed message must hold before anything acts on it, and the status that says so.

use std::borrow::Cow;

use super::message::{HeaderError, Message};
use super::method::reason_phrase;
use super::name::HeaderName;
use super::parse::ParseErrorKind;
use super::scan::List;
use super::uri::Scheme;
use super::value::{Contact, FromValue, NameAddr, ValueError, Via};

/// A refusal: the status and reason phrase to answer a request with. A response is dropped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status} {reason}")]
pub struct Reject {
    pub status: u16,
    pub reason: Cow<'static, str>,
    /// What is wrong, as it is counted.
    pub defect: Defect,
}

/// Kinds of malformed messages, as they are counted: by what could not be read, not by header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The first line.
    StartLine,
    /// A SIP version other than 2.0.
    Version,
    /// A line of the head that is no header, a control character, a head without end.
    Framing,
    /// Larger than the limits of parsing.
    TooLarge,
    /// A header that must be there.
    Missing,
    /// A header that may stand once only.
    Repeated,
    /// A header's value.
    Value,
    /// Content-Length and body disagree.
    Length,
    /// CSeq names another method than the request.
    Method,
    /// The Request-URI, or its scheme.
    RequestUri,
}

impl Defect {
    pub const ALL: [Defect; 10] = [
        Defect::StartLine,
        Defect::Version,
        Defect::Framing,
        Defect::TooLarge,
        Defect::Missing,
        Defect::Repeated,
        Defect::Value,
        Defect::Length,
        Defect::Method,
        Defect::RequestUri,
    ];

    /// A stable word for metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Defect::StartLine => "start-line",
            Defect::Version => "version",
            Defect::Framing => "framing",
            Defect::TooLarge => "too-large",
            Defect::Missing => "missing-header",
            Defect::Repeated => "repeated-header",
            Defect::Value => "header-value",
            Defect::Length => "content-length",
            Defect::Method => "cseq-method",
            Defect::RequestUri => "request-uri",
        }
    }
}

impl From<ParseErrorKind> for Defect {
    fn from(kind: ParseErrorKind) -> Self {
        use ParseErrorKind as K;
        match kind {
            K::Empty | K::BadStartLine => Defect::StartLine,
            K::BadVersion => Defect::Version,
            K::BadHeaderLine | K::ControlCharacter | K::NoEndOfHeaders => Defect::Framing,
            K::HeadTooLarge | K::TooManyHeaders | K::BodyTooLarge => Defect::TooLarge,
        }
    }
}

impl Reject {
    fn new(defect: Defect, status: u16, reason: impl Into<Cow<'static, str>>) -> Self {
        Reject { status, reason: reason.into(), defect }
    }
}

impl From<HeaderError> for Reject {
    /// 400 with the header and what is wrong with it.
    fn from(error: HeaderError) -> Self {
        let defect = match error {
            HeaderError::Missing(_) => Defect::Missing,
            HeaderError::Repeated(_) => Defect::Repeated,
            HeaderError::Bad(..) => Defect::Value,
        };
        Reject::new(defect, 400, format!("Bad Request: {error}"))
    }
}

/// Checks what every element must check (RFC 3261 §8.1.1, §8.2, §16.3): mandatory headers once
/// and in their grammar, CSeq against the method, Request-URI, Content-Length against the body,
/// addresses and numbers that a B2BUA acts on.
///
/// # Errors
/// [`Reject`] with 400, or 416 for a Request-URI of a scheme that cannot be routed.
pub fn validate(message: &Message) -> Result<(), Reject> {
    // The topmost by the way that keeps it; an element must be there.
    message.via()?;
    let top = message.header(HeaderName::Via).map(List::new).and_then(|mut list| list.next());
    for line in message.lines(HeaderName::Via) {
        let others = List::new(line).filter(|via| !top.is_some_and(|top| std::ptr::eq(top, *via)));
        for via in others {
            Via::from_value(via).map_err(|e| HeaderError::Bad(HeaderName::Via, e))?;
        }
    }
    no_repeats(message)?;
    address(HeaderName::From, &message.from()?)?;
    address(HeaderName::To, &message.to()?)?;
    message.call_id()?;
    let cseq = message.cseq()?;
    if cseq.number >= 1 << 31 {
        return Err(HeaderError::Bad(HeaderName::CSeq, ValueError::Number).into());
    }
    message.max_forwards()?;
    for name in NUMBERS {
        message.number(name)?;
    }
    if message.content_length()?.is_some_and(|length| length > message.bytes_after_head() as u64) {
        return Err(Reject::new(
            Defect::Length,
            400,
            "Bad Request: body shorter than Content-Length",
        ));
    }
    for name in ADDRESSES {
        if !message.has(name) {
            continue;
        }
        for value in message.lines(name).flat_map(List::new) {
            match Contact::from_value(value).map_err(|e| HeaderError::Bad(name, e))? {
                Contact::Addr(value) => address(name, &value)?,
                Contact::Star => {}
            }
        }
    }
    match message.method() {
        Some(method) if cseq.method != method.as_str() => Err(Reject::new(
            Defect::Method,
            400,
            "Bad Request: CSeq method differs from request method",
        )),
        Some(_) => request_line(message),
        None => Ok(()),
    }
}

/// Headers of addresses that are followed: a bad one must not be found out in mid-call.
const ADDRESSES: [HeaderName; 3] =
    [HeaderName::Contact, HeaderName::RecordRoute, HeaderName::Route];

/// Headers that are one number (RFC 3261 §25.1 `delta-seconds`).
const NUMBERS: [HeaderName; 2] = [HeaderName::Expires, HeaderName::MinExpires];

fn address(name: HeaderName, value: &NameAddr<'_>) -> Result<(), HeaderError> {
    value.uri().map(|_| ()).map_err(|e| HeaderError::Bad(name, e))
}

fn request_line(message: &Message) -> Result<(), Reject> {
    if !message.start_is_well_formed() {
        return Err(Reject::new(Defect::StartLine, 400, "Bad Request: malformed request line"));
    }
    let Ok(uri) = message.request_uri() else {
        return Err(Reject::new(Defect::RequestUri, 400, "Bad Request: malformed Request-URI"));
    };
    if !uri.headers_str().is_empty() {
        return Err(Reject::new(Defect::RequestUri, 400, "Bad Request: headers in Request-URI"));
    }
    match uri.scheme() {
        Scheme::Sip | Scheme::Sips | Scheme::Tel => Ok(()),
        // Emergency and other services (RFC 5031).
        Scheme::Other if uri.scheme_str().eq_ignore_ascii_case("urn") => Ok(()),
        Scheme::Other => Err(Reject::new(Defect::RequestUri, 416, reason_phrase(416))),
    }
}

/// Headers that may stand only once: a second one is how values are smuggled past a check.
fn no_repeats(message: &Message) -> Result<(), Reject> {
    match message.repeated_once() {
        Some(id) => Err(HeaderError::Repeated(id).into()),
        None => Ok(()),
    }
}
