//! What a parsed message must hold before anything acts on it, and the status that says so.

use std::borrow::Cow;

use super::message::{HeaderError, Message};
use super::name::{HeaderName, Repeat};
use super::uri::UriRef;
use super::value::ValueError;

/// A refusal: the status and reason phrase to answer a request with. A response is dropped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status} {reason}")]
pub struct Reject {
    pub status: u16,
    pub reason: Cow<'static, str>,
}

impl Reject {
    pub fn new(status: u16, reason: impl Into<Cow<'static, str>>) -> Self {
        Reject { status, reason: reason.into() }
    }
}

impl From<HeaderError> for Reject {
    /// 400 with the header and what is wrong with it.
    fn from(error: HeaderError) -> Self {
        Reject::new(400, format!("Bad Request: {error}"))
    }
}

/// Checks what every element must check (RFC 3261 §8.1.1, §8.2, §16.3): mandatory headers once
/// and in their grammar, CSeq against the method, Request-URI, Content-Length against the body.
///
/// # Errors
/// [`Reject`] with 400, 416 or what the defect calls for.
pub fn validate(message: &Message) -> Result<(), Reject> {
    message.via()?;
    message.from()?.uri().map_err(|e| HeaderError::Bad(HeaderName::From, e))?;
    message.to()?.uri().map_err(|e| HeaderError::Bad(HeaderName::To, e))?;
    message.call_id()?;
    let cseq = message.cseq()?;
    if cseq.number >= 1 << 31 {
        return Err(HeaderError::Bad(HeaderName::CSeq, ValueError::Number).into());
    }
    message.max_forwards()?;
    no_repeats(message)?;
    match message.content_length()? {
        Some(length) if length > message.bytes_after_head() as u64 => {
            return Err(Reject::new(400, "Bad Request: body shorter than Content-Length"));
        }
        _ => {}
    }
    if let Some(method) = message.method() {
        if cseq.method != method.as_str() {
            return Err(Reject::new(400, "Bad Request: CSeq method differs from request method"));
        }
        request_line(message)?;
    }
    Ok(())
}

fn request_line(message: &Message) -> Result<(), Reject> {
    if !message.start_is_well_formed() {
        return Err(Reject::new(400, "Bad Request: malformed request line"));
    }
    UriRef::parse(message.request_uri_str())
        .map(|_| ())
        .map_err(|_| Reject::new(400, "Bad Request: malformed Request-URI"))
}

/// Headers that may stand only once: a second one is how values are smuggled past a check.
fn no_repeats(message: &Message) -> Result<(), Reject> {
    let repeated = message.headers().find(|h| {
        h.id != HeaderName::Other
            && h.id != HeaderName::ContentLength
            && message.is_repeated(h.id)
            && h.id.repeat() == Repeat::Once
    });
    match repeated {
        Some(header) => Err(HeaderError::Repeated(header.id).into()),
        None => Ok(()),
    }
}
