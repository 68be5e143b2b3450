//! A whole description: session lines, media sections, and what they say of each stream.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;

use super::address::{Connection, Origin, net_address, push_net_address};
use super::line::{self, Line};
use super::media::{Direction, Media, Protocol};
use super::parse::{SdpError, SdpErrorKind, parse};
use crate::media::StreamKind;
use crate::text::push_number;

/// A session description. Borrows from the body; lines that are changed own their text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sdp<'a> {
    pub(super) session: Vec<Line<'a>>,
    pub(super) media: Vec<Media<'a>>,
}

/// What a description says of one stream: session and media level taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream<'s> {
    pub kind: StreamKind,
    pub protocol: Protocol,
    /// The port is not 0.
    pub active: bool,
    pub connection: Option<Connection<'s>>,
    /// Where the writer receives RTP; `None` when refused, or the host is a name.
    /// The address may be of any class: see [`address_class`](super::address_class).
    pub rtp: Option<SocketAddr>,
    /// `a=rtcp` (RFC 3605), else the port after RTP; equal to `rtp` under `rtcp_mux`; `None`
    /// where the protocol has no RTCP.
    pub rtcp: Option<SocketAddr>,
    pub rtcp_mux: bool,
    /// The direction with `c=0.0.0.0` taken for what it means: the writer does not receive.
    pub direction: Direction,
}

/// What is blanked; NUL is refused by the parser.
fn is_control(b: u8) -> bool {
    b.is_ascii_control() && !matches!(b, b'\r' | b'\n' | b'\t' | 0)
}

impl<'a> Sdp<'a> {
    /// # Errors
    /// [`SdpError`] for what is no description, or one whose streams cannot be understood.
    pub fn parse(body: &'a [u8]) -> Result<Self, SdpError> {
        // Nothing goes on that a terminal or a careless parser on the other side would act on.
        if !body.iter().fold(false, |found, b| found | is_control(*b)) {
            return parse(body);
        }
        let blanked = body.iter().map(|b| if is_control(*b) { b' ' } else { *b });
        parse(&blanked.collect::<Vec<_>>()).map(Sdp::into_owned)
    }

    /// A copy that borrows from nothing.
    pub fn into_owned(self) -> Sdp<'static> {
        Sdp {
            session: self.session.into_iter().map(Line::into_owned).collect(),
            media: self.media.into_iter().map(Media::into_owned).collect(),
        }
    }

    /// What parsing alone does not see: `o=` and `c=` are usable wherever they matter.
    pub(super) fn check(&self) -> Result<(), SdpError> {
        self.origin().ok_or(SdpError::new(SdpErrorKind::BadOrigin, 0))?;
        let session = self.session.iter().filter(|l| l.kind == b'c');
        let media = self.media.iter().flat_map(|m| &m.lines).filter(|l| l.kind == b'c');
        if session.chain(media).any(|l| Connection::parse(l.value()).is_none()) {
            return Err(SdpError::new(SdpErrorKind::BadConnection, 0));
        }
        let mut active = self.media.iter().filter(|m| m.port != 0);
        let session_level = self.session.iter().any(|l| l.kind == b'c');
        if !session_level && active.any(|m| !m.lines.iter().any(|l| l.kind == b'c')) {
            return Err(SdpError::new(SdpErrorKind::NoConnection, 0));
        }
        Ok(())
    }

    pub fn origin(&self) -> Option<Origin<'_>> {
        self.session.iter().find(|l| l.kind == b'o').and_then(|l| Origin::parse(l.value()))
    }

    /// Session-level lines in order, `v=` first.
    pub fn session_lines(&self) -> &[Line<'a>] {
        &self.session
    }

    /// Value of the first session-level attribute `name`; `Some("")` when it has none.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        line::attribute(&self.session, name)
    }

    /// The sections, in `m=` order.
    pub fn media(&self) -> &[Media<'a>] {
        &self.media
    }

    pub fn media_mut(&mut self) -> &mut [Media<'a>] {
        &mut self.media
    }

    /// What is said of stream `index` (its `m=` line from 0).
    pub fn stream(&self, index: usize) -> Option<Stream<'_>> {
        self.media.get(index).map(|m| self.stream_of(m))
    }

    /// All streams in `m=` order.
    pub fn streams(&self) -> impl Iterator<Item = Stream<'_>> {
        self.media.iter().map(|m| self.stream_of(m))
    }

    fn stream_of<'s>(&'s self, media: &'s Media<'a>) -> Stream<'s> {
        let own = media.lines.iter().find(|l| l.kind == b'c');
        let connection = own
            .or_else(|| self.session.iter().find(|l| l.kind == b'c'))
            .and_then(|l| Connection::parse(l.value()));
        let ip = connection.and_then(Connection::ip);
        let protocol = media.protocol();
        let rtp = ip.filter(|_| media.port != 0).map(|ip| SocketAddr::new(ip, media.port));
        let rtcp_mux = protocol.is_rtp() && media.attribute("rtcp-mux").is_some();
        let rtcp = rtp
            .filter(|_| protocol.is_rtp())
            .and_then(|rtp| if rtcp_mux { Some(rtp) } else { rtcp_address(media, rtp) });
        let direction = Direction::of(&media.lines)
            .or_else(|| Direction::of(&self.session))
            .unwrap_or(Direction::SendRecv);
        // RFC 3264 §8.4: 0.0.0.0 is hold by old peers.
        let held = ip.is_some_and(|ip| ip.is_unspecified());
        let direction = if held { Direction::new(direction.sends(), false) } else { direction };
        Stream {
            kind: media.kind(),
            protocol,
            active: media.port != 0,
            connection,
            rtp,
            rtcp,
            rtcp_mux,
            direction,
        }
    }

    /// Checks an answer against its offer (RFC 3264 §6): the same number of streams of the same
    /// kinds, nothing switched on that the offer had off.
    ///
    /// # Errors
    /// [`SdpErrorKind::AnswerMismatch`].
    pub fn check_answer(&self, offer: &Sdp<'_>) -> Result<(), SdpError> {
        let same = self.media.len() == offer.media.len()
            && self.media.iter().zip(&offer.media).all(|(answer, offer)| {
                answer.kind.eq_ignore_ascii_case(&offer.kind)
                    && (offer.port != 0 || answer.port == 0)
            });
        if same { Ok(()) } else { Err(SdpError::new(SdpErrorKind::AnswerMismatch, 0)) }
    }

    /// Whether any stream is on.
    pub fn has_active_stream(&self) -> bool {
        self.media.iter().any(|m| m.port != 0)
    }

    /// Replaces `o=` with our own identity.
    pub fn set_origin(&mut self, username: &str, session_id: u64, version: u64, address: IpAddr) {
        let mut value = String::with_capacity(96);
        value.push_str(username);
        for number in [session_id, version] {
            value.push(' ');
            push_number(&mut value, number);
        }
        value.push(' ');
        push_net_address(&mut value, address);
        line::set(&mut self.session, Line::new(b'o', value));
    }

    /// Replaces `s=`.
    pub fn set_session_name(&mut self, name: &'a str) {
        let name = if name.is_empty() { "-" } else { name };
        line::set(&mut self.session, Line::new(b's', Cow::Borrowed(name)));
    }

    /// Replaces every `c=`: at session level, and in sections that have their own.
    pub fn set_connection(&mut self, address: IpAddr) {
        line::set(&mut self.session, Line::new(b'c', net_address(address)));
        for media in &mut self.media {
            media.lines.retain(|l| l.kind != b'c');
        }
    }

    /// The description as a message body.
    pub fn to_bytes(&self) -> Bytes {
        // A leg keeps what it was told as long as it lives: no more than its own size.
        let mut text = String::with_capacity(1024);
        self.write_to(&mut text);
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn write_to(&self, out: &mut String) {
        fn lines(out: &mut String, lines: &[Line<'_>]) {
            for line in lines {
                out.push(char::from(line.kind));
                out.push('=');
                out.push_str(line.value());
                out.push_str("\r\n");
            }
        }
        lines(out, &self.session);
        for media in &self.media {
            out.push_str("m=");
            out.push_str(&media.kind);
            out.push(' ');
            push_number(out, media.port);
            if let Some(count) = media.count {
                out.push('/');
                push_number(out, count);
            }
            out.push(' ');
            out.push_str(&media.proto);
            for format in &media.formats {
                out.push(' ');
                out.push_str(format);
            }
            out.push_str("\r\n");
            lines(out, &media.lines);
        }
    }
}

fn rtcp_address(media: &Media<'_>, rtp: SocketAddr) -> Option<SocketAddr> {
    let next = || rtp.port().checked_add(1).map(|port| SocketAddr::new(rtp.ip(), port));
    let Some(value) = media.attribute("rtcp") else { return next() };
    let (port, address) = value.split_once(' ').unwrap_or((value, ""));
    let Some(port) = port.trim().parse::<u16>().ok().filter(|p| *p != 0) else { return next() };
    let ip = match Connection::parse(address) {
        Some(Connection::Ip(ip)) => ip,
        Some(Connection::Name(_)) | None => rtp.ip(),
    };
    Some(SocketAddr::new(ip, port))
}

impl fmt::Display for Sdp<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write_to(&mut text);
        f.write_str(&text)
    }
}
