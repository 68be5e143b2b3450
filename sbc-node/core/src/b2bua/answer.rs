//! Offer/answer and the media anchor (RFC 3264): a description that comes from one side is bound,
//! told to the anchor and written anew for the other side.
//!
//! Which transaction carries the description, and whether it is an offer, the operations know.

use std::net::SocketAddr;

use bytes::Bytes;
use smallvec::SmallVec;

use super::call::{Leg, SdpState};
use super::env::Cx;
use crate::media::{Latch, Local, MediaError, MediaId, Remote, Side, SideSpec, StreamKind};
use crate::routing::CodecPolicy;
use crate::sdp::{Anchoring, Sdp, Stream, StreamAnchor};

/// A description that cannot be carried on, and what its sender is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) reason: &'static str,
    /// The fault is ours and may pass: Retry-After.
    pub(crate) retry: bool,
}

impl From<MediaError> for Refusal {
    fn from(error: MediaError) -> Self {
        match error {
            MediaError::NoPorts | MediaError::TooManySessions => {
                Refusal { status: 503, reason: "No Media Port", retry: true }
            }
            MediaError::NoAddress | MediaError::Forbidden(_) => {
                Refusal { status: 488, reason: "Media Address Not Acceptable", retry: false }
            }
            MediaError::Unknown => {
                Refusal { status: 500, reason: "Media Session Lost", retry: false }
            }
        }
    }
}

/// Whether a description opens an exchange or closes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Offer,
    Answer,
}

/// One side of one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamSide {
    pub(crate) spec: Option<SideSpec>,
    pub(crate) local: Option<Local>,
    pub(crate) remote: Option<Remote>,
}

/// One `m=` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StreamState {
    pub(crate) kind: StreamKind,
    pub(crate) a: StreamSide,
    pub(crate) b: StreamSide,
}

impl StreamState {
    fn side(&mut self, side: Side) -> &mut StreamSide {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }
}

/// The media session of a call.
#[derive(Debug)]
pub(crate) struct Media {
    pub(crate) id: MediaId,
    pub(crate) open: bool,
    pub(crate) streams: SmallVec<[StreamState; 1]>,
    before: Option<Box<Before>>,
}

/// What held before the offer that is open in the dialog, to go back to.
#[derive(Debug)]
struct Before {
    streams: SmallVec<[StreamState; 1]>,
    /// The last description sent and received on each leg.
    a: Said,
    b: Option<Said>,
}

type Said = (Option<Bytes>, Option<Bytes>);

/// Whose description goes where.
pub(crate) struct Passing<'a> {
    /// The side that wrote it.
    pub(crate) from: Side,
    pub(crate) role: Role,
    pub(crate) sdp: &'a [u8],
    pub(crate) writer: &'a mut Leg,
    pub(crate) reader: &'a mut Leg,
}

impl Media {
    pub(crate) fn new(id: MediaId) -> Self {
        Media { id, open: false, streams: SmallVec::new(), before: None }
    }

    /// Takes a description from one side and yields the text for the other.
    pub(crate) fn pass(&mut self, cx: &mut Cx<'_>, p: Passing<'_>) -> Result<Bytes, Refusal> {
        let bad = |reason| Refusal { status: 488, reason, retry: false };
        let mut sdp = Sdp::parse(p.sdp).map_err(|_| bad("Bad Session Description"))?;
        if !cx.env.config.calls.anchor_media {
            let body = Bytes::copy_from_slice(p.sdp);
            p.reader.sdp.local = Some(body.clone());
            return Ok(body);
        }
        if p.role == Role::Offer {
            let mut left = apply_codecs(&mut sdp, &p.writer.trunk.config.codecs);
            left &= apply_codecs(&mut sdp, &p.reader.trunk.config.codecs);
            if !left && self.streams.is_empty() {
                return Err(bad("No Acceptable Media"));
            }
        }
        p.writer.sdp.ipv6 = is_ipv6(&sdp).or(p.writer.sdp.ipv6);
        if !self.open {
            let timeout = cx.env.config.calls.media_timeout;
            cx.anchor.open(self.id, timeout)?;
            self.open = true;
        }
        let anchors = self.bind(cx, &sdp, &p)?;
        let body = write(&mut sdp, &anchors, &mut p.reader.sdp);
        p.writer.sdp.remote = Some(Bytes::copy_from_slice(p.sdp));
        p.reader.sdp.local = Some(body.clone());
        Ok(body)
    }

    /// Binds every stream of a description on the reader's side and tells the anchor where its
    /// writer receives.
    fn bind(
        &mut self,
        cx: &mut Cx<'_>,
        sdp: &Sdp<'_>,
        p: &Passing<'_>,
    ) -> Result<SmallVec<[StreamAnchor; 2]>, Refusal> {
        let spec = side_spec(p.reader);
        let latch = p.writer.trunk.config.latch;
        let to = p.from.other();
        let mut anchors = SmallVec::new();
        for (index, stream) in sdp.streams().enumerate() {
            if self.streams.len() <= index {
                self.streams.push(StreamState {
                    kind: stream.kind,
                    a: StreamSide::default(),
                    b: StreamSide::default(),
                });
            }
            let Some(state) = self.streams.get_mut(index) else { break };
            if !stream.active {
                if p.role == Role::Answer && (state.a.local.is_some() || state.b.local.is_some()) {
                    cx.anchor.drop_stream(self.id, index);
                    *state = StreamState {
                        kind: stream.kind,
                        a: StreamSide::default(),
                        b: StreamSide::default(),
                    };
                }
                anchors.push(StreamAnchor::Off);
                continue;
            }
            state.kind = stream.kind;
            let local = cx.anchor.bind(self.id, index, stream.kind, to, spec)?;
            let reader = state.side(to);
            (reader.spec, reader.local) = (Some(spec), Some(local));
            anchors.push(StreamAnchor::Relay { rtp: local.rtp, rtcp: local.rtcp });
            let remote = remote_of(&stream, latch);
            self.tell(cx, index, p.from, remote)?;
            if p.role == Role::Answer {
                self.settle_mux(cx, index, to, stream.rtcp_mux)?;
            }
        }
        Ok(anchors)
    }

    /// Tells the anchor what SDP says of a side; learning starts anew where the address changed.
    fn tell(
        &mut self,
        cx: &mut Cx<'_>,
        index: usize,
        side: Side,
        remote: Remote,
    ) -> Result<(), Refusal> {
        let Some(state) = self.streams.get_mut(index) else { return Ok(()) };
        let known = state.side(side).remote.as_ref();
        if known == Some(&remote) {
            return Ok(());
        }
        let relearn = known.is_none_or(|k| k.rtp != remote.rtp || k.rtcp != remote.rtcp);
        cx.anchor.remote(self.id, index, side, &remote, relearn)?;
        state.side(side).remote = Some(remote);
        Ok(())
    }

    /// RTP and RTCP share a port only where both sides said so (RFC 5761 §5.1.1).
    fn settle_mux(
        &mut self,
        cx: &mut Cx<'_>,
        index: usize,
        side: Side,
        mux: bool,
    ) -> Result<(), Refusal> {
        let Some(state) = self.streams.get_mut(index) else { return Ok(()) };
        match state.side(side).remote.clone() {
            Some(remote) if remote.rtcp_mux && !mux => {
                self.tell(cx, index, side, Remote { rtcp_mux: false, ..remote })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Takes the answer to an offer that only repeated what is in force: nothing is written.
    pub(crate) fn note(
        &mut self,
        cx: &mut Cx<'_>,
        side: Side,
        leg: &mut Leg,
        sdp: &Bytes,
    ) -> Result<(), Refusal> {
        let bad = Refusal { status: 488, reason: "", retry: false };
        let parsed = Sdp::parse(sdp).map_err(|_| bad)?;
        for (index, stream) in parsed.streams().enumerate().filter(|(_, s)| s.active) {
            self.tell(cx, index, side, remote_of(&stream, leg.trunk.config.latch))?;
        }
        leg.sdp.remote = Some(Bytes::copy_from_slice(sdp));
        Ok(())
    }

    /// Whether a live stream was put on hold by either side: silence is then no sign of death.
    pub(crate) fn is_held(&self) -> bool {
        let both = |side: &StreamSide| {
            side.remote.as_ref().is_none_or(|r| r.sends && r.receives && r.rtp.is_some())
        };
        self.streams.iter().any(|s| s.a.local.is_some() && !(both(&s.a) && both(&s.b)))
    }

    /// Remembers how things are, before an offer inside the dialog is tried.
    pub(crate) fn begin_offer(&mut self, a: &Leg, b: Option<&Leg>) {
        let said = |leg: &Leg| (leg.sdp.local.clone(), leg.sdp.remote.clone());
        let streams = self.streams.clone();
        self.before = Some(Box::new(Before { streams, a: said(a), b: b.map(said) }));
    }

    /// The offer was answered.
    pub(crate) fn settle(&mut self) {
        self.before = None;
    }

    /// The offer was refused: everything is as before it (RFC 3261 §14.1).
    pub(crate) fn roll_back(&mut self, cx: &mut Cx<'_>, a: &mut Leg, b: Option<&mut Leg>) {
        let Some(before) = self.before.take() else { return };
        (a.sdp.local, a.sdp.remote) = before.a;
        if let (Some(b), Some(said)) = (b, before.b) {
            (b.sdp.local, b.sdp.remote) = said;
        }
        let before = before.streams;
        for index in 0..self.streams.len() {
            let Some(old) = before.get(index) else {
                cx.anchor.drop_stream(self.id, index);
                continue;
            };
            for (side, old) in [(Side::A, &old.a), (Side::B, &old.b)] {
                // A stream that was gone in between stays gone; the peers agree on it next time.
                if let Some(remote) = old.remote.clone()
                    && self.tell(cx, index, side, remote).is_err()
                {
                    cx.env.stats.media_errors += 1;
                }
            }
        }
        self.streams.truncate(before.len());
    }

    /// Codec or format names of the last description of ours, one entry per live stream.
    pub(crate) fn codecs(description: Option<&Bytes>) -> Vec<String> {
        let media = description.map_or_else(Vec::new, |d| crate::sdp::formats(d));
        let name = |m: &crate::sdp::Media<'_>| {
            m.first_codec().or_else(|| m.formats().next()).map(str::to_owned)
        };
        media.iter().filter(|m| m.port() != 0).filter_map(name).collect()
    }
}

/// Which media interface and family a leg uses: those of its signalling, the family as its trunk
/// or its own description says.
pub(crate) fn side_spec(leg: &Leg) -> SideSpec {
    let ipv6 = leg.trunk.config.media_ipv6.or(leg.sdp.ipv6);
    SideSpec { interface: leg.hop.interface, ipv6: ipv6.unwrap_or(leg.hop.target.addr.is_ipv6()) }
}

/// The family that a description uses, if it can be read.
pub(crate) fn family(description: Option<&Bytes>) -> Option<bool> {
    is_ipv6(&Sdp::parse(description?).ok()?)
}

/// The family of the first live stream.
fn is_ipv6(sdp: &Sdp<'_>) -> Option<bool> {
    let stream = sdp.streams().find(|s| s.active)?;
    Some(stream.connection?.ip()?.is_ipv6())
}

fn remote_of(stream: &Stream<'_>, latch: Latch) -> Remote {
    let real = |addr: &SocketAddr| !addr.ip().is_unspecified();
    Remote {
        rtp: stream.rtp.filter(real),
        rtcp: stream.rtcp.filter(real),
        rtcp_mux: stream.rtcp_mux,
        sends: stream.direction.sends(),
        receives: stream.direction.receives(),
        latch,
    }
}

/// Whether a stream is left on.
fn apply_codecs(sdp: &mut Sdp<'_>, policy: &CodecPolicy) -> bool {
    if policy.is_open() {
        return true;
    }
    let list = |names: &[Box<str>]| names.iter().map(|n| n.to_string()).collect();
    sdp.filter_codecs(&crate::sdp::CodecPolicy {
        allow: list(&policy.allow),
        deny: list(&policy.deny),
        prefer: list(&policy.prefer),
        telephone_event: true,
    })
}

/// Writes a description with our addresses. The version counts up only when the text differs from
/// what we said last on that leg (RFC 3264 §8).
fn write(sdp: &mut Sdp<'_>, streams: &[StreamAnchor], state: &mut SdpState) -> Bytes {
    let first = streams.iter().find_map(|s| match s {
        StreamAnchor::Relay { rtp, .. } => Some(rtp.ip()),
        StreamAnchor::Off => None,
    });
    // With every stream off any address will do; it must not be the other side's.
    let address = first.unwrap_or(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
    let mut anchoring = Anchoring {
        username: "-",
        session_id: state.session,
        version: state.version,
        address,
        streams,
        rtcp_mux: true,
        crypto: true,
        dtls: true,
    };
    sdp.anchor(&anchoring);
    let body = sdp.to_bytes();
    match &state.local {
        None => body,
        Some(last) if *last == body => body,
        Some(_) => {
            state.version += 1;
            anchoring.version = state.version;
            sdp.set_origin(anchoring.username, anchoring.session_id, state.version, address);
            sdp.to_bytes()
        }
    }
}
