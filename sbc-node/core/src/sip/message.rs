//! A parsed message: start line, headers in order, body. Values are parsed when asked for.
//!
//! Building messages lives in `write.rs` and `reply.rs`.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use smallvec::SmallVec;

use super::method::Method;
use super::name::{HeaderName, Repeat};
use super::scan::{List, Params, number, number_u32, trim};
use super::uri::UriRef;
use super::value::{CSeq, FromValue, NameAddr, ValueError, Via};

/// One header line: offsets into the message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) id: HeaderName,
    pub(super) name_len: u16,
    pub(super) name: u32,
    pub(super) value: u32,
    pub(super) end: u32,
}

#[derive(Debug)]
pub(super) enum Start {
    Request { method: Method, uri: (u32, u32), well_formed: bool },
    Response { status: u16, reason: (u32, u32) },
}

pub(super) struct Inner {
    data: Bytes,
    head_end: usize,
    body_end: usize,
    start: Start,
    lines: SmallVec<[Line; 24]>,
    seen: u128,
    repeated: u128,
    /// What is asked for again and again, parsed once.
    from: OnceLock<Result<Address, HeaderError>>,
    to: OnceLock<Result<Address, HeaderError>>,
    via: OnceLock<Result<Hop, HeaderError>>,
}

/// A piece of the head.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    from: u32,
    to: u32,
}

/// Where the parts of a From or To stand.
#[derive(Clone, Copy, Debug)]
struct Address {
    display: Span,
    uri: Span,
    params: Span,
    /// Empty where there is none.
    tag: Span,
}

/// Where the parts of the topmost Via stand.
#[derive(Clone, Copy, Debug)]
struct Hop {
    transport: Span,
    host: Span,
    params: Span,
    /// Empty where there is none.
    branch: Span,
    port: Option<u16>,
}

impl Inner {
    /// `data[..head_end]` must be UTF-8, checked with `from_utf8` (or the byte-wise equal of what
    /// was, with ASCII blanks for ASCII line ends), and all offsets must lie beside ASCII bytes of
    /// it: `slice` relies on both.
    pub(super) fn new(
        data: Bytes,
        head_end: usize,
        body_end: usize,
        start: Start,
        lines: SmallVec<[Line; 24]>,
        seen: u128,
        repeated: u128,
    ) -> Self {
        let (from, to, via) = Default::default();
        Inner { data, head_end, body_end, start, lines, seen, repeated, from, to, via }
    }
}

/// A SIP message. Cloning counts a reference.
#[derive(Clone)]
pub struct Message(pub(super) Arc<Inner>);

/// The first line of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartLine<'a> {
    Request { method: &'a Method, uri: &'a str },
    Response { status: u16, reason: &'a str },
}

/// One header line as it stands. `value` is trimmed, unfolded, and holds no CR, LF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    pub id: HeaderName,
    pub name: &'a str,
    pub value: &'a str,
}

/// A header that is missing, repeated, or not in its grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("missing {0}")]
    Missing(HeaderName),
    #[error("repeated {0}")]
    Repeated(HeaderName),
    #[error("bad {0}: {1}")]
    Bad(HeaderName, ValueError),
}

impl HeaderError {
    pub fn name(self) -> HeaderName {
        match self {
            HeaderError::Missing(name)
            | HeaderError::Repeated(name)
            | HeaderError::Bad(name, _) => name,
        }
    }
}

impl Message {
    #[inline]
    fn slice(&self, from: u32, to: u32) -> &str {
        let text = self.0.data.get(from as usize..to as usize).unwrap_or_default();
        debug_assert!(to as usize <= self.0.head_end && std::str::from_utf8(text).is_ok());
        // SAFETY: every offset that `parse::index` keeps lies in the head, which is UTF-8 (see
        // `Inner::new`), and beside an ASCII byte, so no character is cut.
        unsafe { std::str::from_utf8_unchecked(text) }
    }

    #[inline]
    fn view(&self, line: &Line) -> Header<'_> {
        Header {
            id: line.id,
            name: self.slice(line.name, line.name + u32::from(line.name_len)),
            value: self.slice(line.value, line.end),
        }
    }

    pub fn start_line(&self) -> StartLine<'_> {
        match &self.0.start {
            Start::Request { method, uri, .. } => {
                StartLine::Request { method, uri: self.slice(uri.0, uri.1) }
            }
            Start::Response { status, reason } => {
                StartLine::Response { status: *status, reason: self.slice(reason.0, reason.1) }
            }
        }
    }

    #[inline]
    pub fn is_request(&self) -> bool {
        matches!(self.0.start, Start::Request { .. })
    }

    /// The request's method; `None` for responses (see [`Message::cseq`]).
    #[inline]
    pub fn method(&self) -> Option<&Method> {
        match &self.0.start {
            Start::Request { method, .. } => Some(method),
            Start::Response { .. } => None,
        }
    }

    /// The response's status code; `None` for requests.
    #[inline]
    pub fn status(&self) -> Option<u16> {
        match &self.0.start {
            Start::Request { .. } => None,
            Start::Response { status, .. } => Some(*status),
        }
    }

    /// The Request-URI as written; empty for responses.
    #[inline]
    pub fn request_uri_str(&self) -> &str {
        match &self.0.start {
            Start::Request { uri, .. } => self.slice(uri.0, uri.1),
            Start::Response { .. } => "",
        }
    }

    /// The Request-URI, parsed.
    pub fn request_uri(&self) -> Result<UriRef<'_>, ValueError> {
        UriRef::parse(self.request_uri_str())
    }

    /// Whether the request line has exactly one SP around its URI and nothing else blank.
    pub(super) fn start_is_well_formed(&self) -> bool {
        match &self.0.start {
            Start::Request { well_formed, .. } => *well_formed,
            Start::Response { .. } => true,
        }
    }

    /// All header lines in order.
    pub fn headers(&self) -> impl Iterator<Item = Header<'_>> + Clone {
        self.0.lines.iter().map(|line| self.view(line))
    }

    /// All lines of one header in order.
    pub fn headers_named(&self, name: HeaderName) -> impl Iterator<Item = Header<'_>> + Clone {
        let lines: &[Line] = if self.has(name) { &self.0.lines } else { &[] };
        lines.iter().filter(move |l| l.id == name).map(|line| self.view(line))
    }

    /// The first header that stands more than once and must not (RFC 3261 §7.3.1).
    pub(super) fn repeated_once(&self) -> Option<HeaderName> {
        if self.0.repeated & HeaderName::ONCE == 0 {
            return None;
        }
        let once = |id: HeaderName| id.bit() & self.0.repeated & HeaderName::ONCE != 0;
        self.0.lines.iter().map(|line| line.id).find(|id| once(*id))
    }

    /// Whether a header is present. Not for `Other`.
    #[inline]
    pub fn has(&self, name: HeaderName) -> bool {
        self.0.seen & name.bit() != 0
    }

    /// Whether a header stands on more than one line.
    #[inline]
    pub fn is_repeated(&self, name: HeaderName) -> bool {
        self.0.repeated & name.bit() != 0
    }

    /// Value of the first line of that name, unsplit.
    #[inline]
    pub fn header(&self, name: HeaderName) -> Option<&str> {
        if !self.has(name) {
            return None;
        }
        self.0.lines.iter().find(|l| l.id == name).map(|l| self.slice(l.value, l.end))
    }

    /// Values of all lines of that name, unsplit.
    pub fn lines(&self, name: HeaderName) -> impl Iterator<Item = &str> + Clone {
        let lines: &[Line] = if self.has(name) { &self.0.lines } else { &[] };
        lines.iter().filter(move |l| l.id == name).map(|l| self.slice(l.value, l.end))
    }

    /// Each value of that name: list headers are split at commas, the others are one per line.
    pub fn values(&self, name: HeaderName) -> impl Iterator<Item = &str> + Clone {
        let split = name.repeat() == Repeat::List;
        self.lines(name).flat_map(move |line| {
            let (list, whole) =
                if split { (List::new(line), None) } else { (List::end(), Some(line)) };
            whole.into_iter().chain(list)
        })
    }

    /// Value of the first line whose name is `name` in any case; for names without an id.
    pub fn other(&self, name: &str) -> Option<&str> {
        self.headers().find(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value)
    }

    /// The first value of a header, parsed; `None` when absent.
    pub fn first<'a, T: FromValue<'a>>(
        &'a self,
        name: HeaderName,
    ) -> Result<Option<T>, HeaderError> {
        match self.values(name).next() {
            None => Ok(None),
            Some(text) => T::from_value(text).map(Some).map_err(|e| HeaderError::Bad(name, e)),
        }
    }

    /// Every value of a header, parsed.
    pub fn all<'a, T: FromValue<'a>>(
        &'a self,
        name: HeaderName,
    ) -> impl Iterator<Item = Result<T, HeaderError>> {
        self.values(name)
            .map(move |text| T::from_value(text).map_err(|e| HeaderError::Bad(name, e)))
    }

    /// Whether a list header of tokens (Require, Supported, Allow, …) holds `token`, in any case.
    pub fn lists(&self, name: HeaderName, token: &str) -> bool {
        let split = name.repeat() == Repeat::List;
        self.lines(name).any(|line| match split {
            true => List::new(line).any(|v| v.eq_ignore_ascii_case(token)),
            false => line.eq_ignore_ascii_case(token),
        })
    }

    fn only(&self, name: HeaderName) -> Result<&str, HeaderError> {
        if self.is_repeated(name) {
            return Err(HeaderError::Repeated(name));
        }
        self.header(name).ok_or(HeaderError::Missing(name))
    }

    fn only_as<'a, T: FromValue<'a>>(&'a self, name: HeaderName) -> Result<T, HeaderError> {
        T::from_value(self.only(name)?).map_err(|e| HeaderError::Bad(name, e))
    }

    /// The topmost Via.
    pub fn via(&self) -> Result<Via<'_>, HeaderError> {
        let Hop { transport, host, params, port, .. } = self.hop()?;
        let text = |span: Span| self.slice(span.from, span.to);
        let (transport, host) = (text(transport), text(host));
        Ok(Via { transport, host, port, params: Params(text(params)) })
    }

    /// The branch of the topmost Via; empty where there is none.
    pub fn branch(&self) -> &str {
        self.hop().map_or("", |hop| self.slice(hop.branch.from, hop.branch.to))
    }

    fn hop(&self) -> Result<Hop, HeaderError> {
        *self.0.via.get_or_init(|| {
            let via = self.parse_via()?;
            let span = |text| self.span(text);
            Ok(Hop {
                transport: span(via.transport),
                host: span(via.host),
                params: span(via.params.0),
                branch: span(via.branch()),
                port: via.port,
            })
        })
    }

    fn parse_via(&self) -> Result<Via<'_>, HeaderError> {
        let line = self.header(HeaderName::Via).ok_or(HeaderError::Missing(HeaderName::Via))?;
        let first = List::new(line).next().unwrap_or("");
        Via::from_value(first).map_err(|e| HeaderError::Bad(HeaderName::Via, e))
    }

    pub fn from(&self) -> Result<NameAddr<'_>, HeaderError> {
        Ok(self.name_addr(self.address(HeaderName::From, &self.0.from)?))
    }

    pub fn to(&self) -> Result<NameAddr<'_>, HeaderError> {
        Ok(self.name_addr(self.address(HeaderName::To, &self.0.to)?))
    }

    /// From tag; empty where there is none (RFC 2543 peers).
    pub fn from_tag(&self) -> &str {
        let from = self.address(HeaderName::From, &self.0.from);
        from.map_or("", |from| self.slice(from.tag.from, from.tag.to))
    }

    /// To tag, `None` before a dialog exists.
    pub fn to_tag(&self) -> Option<&str> {
        let to = self.address(HeaderName::To, &self.0.to).ok()?;
        Some(self.slice(to.tag.from, to.tag.to)).filter(|tag| !tag.is_empty())
    }

    fn address(
        &self,
        name: HeaderName,
        known: &OnceLock<Result<Address, HeaderError>>,
    ) -> Result<Address, HeaderError> {
        *known.get_or_init(|| {
            let value: NameAddr<'_> = self.only_as(name)?;
            Ok(Address {
                display: self.span(value.display_raw),
                uri: self.span(value.uri_str),
                params: self.span(value.params.0),
                tag: self.span(value.tag().unwrap_or("")),
            })
        })
    }

    fn name_addr(&self, address: Address) -> NameAddr<'_> {
        let text = |span: Span| self.slice(span.from, span.to);
        let Address { display, uri, params, .. } = address;
        NameAddr::new(text(display), text(uri), text(params))
    }

    /// Where a slice of the head stands.
    fn span(&self, text: &str) -> Span {
        if text.is_empty() {
            return Span::default();
        }
        let from = (text.as_ptr() as usize).wrapping_sub(self.0.data.as_ptr() as usize);
        let at = |offset: usize| u32::try_from(offset).unwrap_or(0);
        let span = Span { from: at(from), to: at(from.wrapping_add(text.len())) };
        debug_assert_eq!(self.slice(span.from, span.to), text);
        span
    }

    pub fn call_id(&self) -> Result<&str, HeaderError> {
        let value = self.only(HeaderName::CallId)?;
        // No early exit: this way it is done 16 bytes at a time.
        if value.is_empty() || value.bytes().fold(false, |blank, b| blank | (b <= b' ')) {
            return Err(HeaderError::Bad(HeaderName::CallId, ValueError::Syntax));
        }
        Ok(value)
    }

    pub fn cseq(&self) -> Result<CSeq<'_>, HeaderError> {
        self.only_as(HeaderName::CSeq)
    }

    /// Max-Forwards, where present (RFC 3261 §20.22: 0–255).
    pub fn max_forwards(&self) -> Result<Option<u8>, HeaderError> {
        if !self.has(HeaderName::MaxForwards) {
            return Ok(None);
        }
        let value = number(self.only(HeaderName::MaxForwards)?).and_then(|n| u8::try_from(n).ok());
        value.map(Some).ok_or(HeaderError::Bad(HeaderName::MaxForwards, ValueError::Number))
    }

    /// Content-Length, where present.
    pub fn content_length(&self) -> Result<Option<u64>, HeaderError> {
        let mut value = None;
        for line in self.lines(HeaderName::ContentLength) {
            let n = number(line)
                .ok_or(HeaderError::Bad(HeaderName::ContentLength, ValueError::Number))?;
            match value {
                Some(before) if before != n => {
                    return Err(HeaderError::Repeated(HeaderName::ContentLength));
                }
                _ => value = Some(n),
            }
        }
        Ok(value)
    }

    /// A header that is one decimal number (Expires, Min-Expires, RSeq, …).
    pub fn number(&self, name: HeaderName) -> Result<Option<u32>, HeaderError> {
        match self.header(name) {
            None => Ok(None),
            Some(text) => {
                number_u32(trim(text)).map(Some).ok_or(HeaderError::Bad(name, ValueError::Number))
            }
        }
    }

    /// The first Contact; `None` when absent. `*` gives an error: see [`super::value::Contact`].
    pub fn contact(&self) -> Result<Option<NameAddr<'_>>, HeaderError> {
        self.first(HeaderName::Contact)
    }

    /// The body as Content-Length bounds it; what follows it in a datagram is not shown (§18.3).
    pub fn body(&self) -> &[u8] {
        self.0.data.get(self.0.head_end..self.0.body_end).unwrap_or_default()
    }

    /// The body as a slice that keeps the message's buffer alive.
    pub fn body_bytes(&self) -> Bytes {
        self.0.data.slice(self.0.head_end..self.0.body_end)
    }

    /// Bytes present after the head, whatever Content-Length says.
    pub(super) fn bytes_after_head(&self) -> usize {
        self.0.data.len() - self.0.head_end
    }

    /// The whole message as parsed (unfolded where it was folded).
    pub fn as_bytes(&self) -> &Bytes {
        &self.0.data
    }
}

impl fmt::Debug for Message {
    /// Start line only: headers and bodies hold personal data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.start_line() {
            StartLine::Request { method, .. } => write!(f, "Message({method})"),
            StartLine::Response { status, reason } => write!(f, "Message({status} {reason})"),
        }
    }
}
