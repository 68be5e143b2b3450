//! One `m=` section: kind, port, protocol, formats, direction, attributes.

use std::borrow::Cow;

use super::line::{self, Line};
use crate::media::StreamKind;

/// What runs below a stream, from the `m=` line's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// RTP/AVP, RTP/AVPF.
    Rtp,
    /// RTP/SAVP, RTP/SAVPF: keys in `a=crypto` (RFC 4568).
    Srtp,
    /// UDP/TLS/RTP/SAVP and SAVPF: keys by DTLS (RFC 5764).
    DtlsSrtp,
    /// T.38 over UDPTL.
    Udptl,
    /// Other media over UDP (`udp`, `UDP/BFCP`, `UDP/DTLS/SCTP`).
    OtherUdp,
    /// TCP and everything not known: cannot be relayed as datagrams.
    Other,
}

impl Protocol {
    pub(super) fn parse(text: &str) -> Self {
        let is = |name: &str| text.eq_ignore_ascii_case(name);
        if is("RTP/AVP") || is("RTP/AVPF") {
            Protocol::Rtp
        } else if is("RTP/SAVP") || is("RTP/SAVPF") {
            Protocol::Srtp
        } else if is("UDP/TLS/RTP/SAVP") || is("UDP/TLS/RTP/SAVPF") {
            Protocol::DtlsSrtp
        } else if is("udptl") || is("UDP/TLS/UDPTL") {
            Protocol::Udptl
        } else if is("udp") || text.get(..4).is_some_and(|t| t.eq_ignore_ascii_case("UDP/")) {
            Protocol::OtherUdp
        } else {
            Protocol::Other
        }
    }

    /// Whether packets are RTP, plain or not: RTCP exists and formats are payload types.
    pub fn is_rtp(self) -> bool {
        matches!(self, Protocol::Rtp | Protocol::Srtp | Protocol::DtlsSrtp)
    }

    /// Whether media is encrypted end to end.
    pub fn is_secure(self) -> bool {
        matches!(self, Protocol::Srtp | Protocol::DtlsSrtp)
    }
}

/// Direction attribute (RFC 3264 §5.1), as its writer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    SendRecv,
    SendOnly,
    RecvOnly,
    Inactive,
}

impl Direction {
    const ALL: [Direction; 4] =
        [Direction::SendRecv, Direction::SendOnly, Direction::RecvOnly, Direction::Inactive];

    pub fn as_str(self) -> &'static str {
        match self {
            Direction::SendRecv => "sendrecv",
            Direction::SendOnly => "sendonly",
            Direction::RecvOnly => "recvonly",
            Direction::Inactive => "inactive",
        }
    }

    pub fn new(sends: bool, receives: bool) -> Self {
        match (sends, receives) {
            (true, true) => Direction::SendRecv,
            (true, false) => Direction::SendOnly,
            (false, true) => Direction::RecvOnly,
            (false, false) => Direction::Inactive,
        }
    }

    pub fn sends(self) -> bool {
        matches!(self, Direction::SendRecv | Direction::SendOnly)
    }

    pub fn receives(self) -> bool {
        matches!(self, Direction::SendRecv | Direction::RecvOnly)
    }

    /// The same, seen from the other end.
    pub fn reversed(self) -> Self {
        Direction::new(self.receives(), self.sends())
    }

    pub(super) fn of(lines: &[Line<'_>]) -> Option<Self> {
        lines.iter().find_map(Self::of_line)
    }

    /// The direction that a line is, if it is one.
    fn of_line(line: &Line<'_>) -> Option<Self> {
        // All four have the same length.
        let value = line.value();
        if line.kind != b'a' || value.len() != Direction::SendRecv.as_str().len() {
            return None;
        }
        Self::ALL.into_iter().find(|d| value.eq_ignore_ascii_case(d.as_str()))
    }
}

/// One media section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Media<'a> {
    /// `audio`, `video`, `image`, …
    pub(super) kind: Cow<'a, str>,
    pub(super) port: u16,
    /// `/count` behind the port.
    pub(super) count: Option<u16>,
    pub(super) proto: Cow<'a, str>,
    pub(super) formats: Vec<Cow<'a, str>>,
    /// Every line below the `m=` line.
    pub(super) lines: Vec<Line<'a>>,
}

impl<'a> Media<'a> {
    pub(super) fn parse(value: &'a str) -> Option<Self> {
        let mut fields = value.split([' ', '\t']).filter(|f| !f.is_empty());
        let kind = fields.next()?;
        let port = fields.next()?;
        let proto = fields.next()?;
        let (port, count) = match port.split_once('/') {
            Some((port, count)) => (port, Some(digits(count)?)),
            None => (port, None),
        };
        let formats: Vec<_> = fields.map(Cow::Borrowed).collect();
        if formats.is_empty() || !crate::sip::is_token(kind) {
            return None;
        }
        Some(Media {
            kind: Cow::Borrowed(kind),
            port: digits(port)?,
            count,
            proto: Cow::Borrowed(proto),
            formats,
            lines: Vec::with_capacity(12),
        })
    }

    pub(super) fn into_owned(self) -> Media<'static> {
        Media {
            kind: Cow::Owned(self.kind.into_owned()),
            port: self.port,
            count: self.count,
            proto: Cow::Owned(self.proto.into_owned()),
            formats: self.formats.into_iter().map(|f| Cow::Owned(f.into_owned())).collect(),
            lines: self.lines.into_iter().map(Line::into_owned).collect(),
        }
    }

    /// The media type as written: `audio`, `video`, `image`, …
    pub fn kind_str(&self) -> &str {
        &self.kind
    }

    /// What the relay must know of the stream's kind.
    pub fn kind(&self) -> StreamKind {
        let is = |name: &str| self.kind.eq_ignore_ascii_case(name);
        if is("image") || self.protocol() == Protocol::Udptl {
            StreamKind::Image
        } else if is("audio") {
            StreamKind::Audio
        } else if is("video") {
            StreamKind::Video
        } else {
            StreamKind::Application
        }
    }

    /// 0: the stream is refused or switched off.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sets the port; a `/count` is dropped, since the relay has one pair per stream.
    pub fn set_port(&mut self, port: u16) {
        self.port = port;
        self.count = None;
    }

    pub fn protocol(&self) -> Protocol {
        Protocol::parse(&self.proto)
    }

    pub fn protocol_str(&self) -> &str {
        &self.proto
    }

    /// Payload types or other formats, in order of preference.
    pub fn formats(&self) -> impl Iterator<Item = &str> {
        self.formats.iter().map(AsRef::as_ref)
    }

    /// Every line below the `m=` line.
    pub fn lines(&self) -> &[Line<'a>] {
        &self.lines
    }

    /// Value of the section's first attribute `name`; `Some("")` when it has none.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        line::attribute(&self.lines, name)
    }

    /// Adds an attribute at the end of the section.
    pub fn push_attribute(&mut self, name: &str, value: &str) {
        let text = if value.is_empty() { name.to_owned() } else { format!("{name}:{value}") };
        self.lines.push(Line::new(b'a', text));
    }

    /// Removes every attribute called `name`.
    pub fn remove_attribute(&mut self, name: &str) {
        self.lines.retain(|l| !l.is_attribute(name));
    }

    /// Replaces the direction attribute, in place where there is one.
    pub fn set_direction(&mut self, direction: Direction) {
        let is_direction = |l: &Line<'_>| Direction::ALL.iter().any(|d| l.is_attribute(d.as_str()));
        let at = self.lines.iter().position(is_direction);
        self.lines.retain(|l| !is_direction(l));
        let at = at.unwrap_or(self.lines.len()).min(self.lines.len());
        self.lines.insert(at, Line::new(b'a', direction.as_str()));
    }

    /// Refuses the stream (RFC 3264 §6): port 0, attributes gone, at least one format kept.
    pub fn reject(&mut self) {
        self.set_port(0);
        self.lines.clear();
    }
}

fn digits(text: &str) -> Option<u16> {
    let ok = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    ok.then(|| text.parse().ok()).flatten()
}
