//! What becomes of one datagram.

use std::net::SocketAddr;
use std::time::Instant;

use super::session::Stream;
use super::{At, Engine, Output, Token};
use crate::latch::{Ident, Judgement};
use crate::rtp::{Packet, RtpHeader, classify, reports};
use crate::types::{Component, DropReason, Event, Side};

/// The relay's answer to one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Send it unchanged by `by` to `to`.
    Relay {
        by: Token,
        to: SocketAddr,
        component: Component,
    },
    Drop(DropReason),
}

/// A datagram by what it is to the stream.
enum Content {
    Media(Option<RtpHeader>),
    Rtcp,
}

impl Engine {
    /// Judges one datagram that came to a socket, and counts it.
    pub(crate) fn packet(&mut self, now: Instant, at: At, src: SocketAddr, data: &[u8]) -> Verdict {
        let Some(session) = self.sessions.get_mut(at.slot as usize) else {
            return Verdict::Drop(DropReason::NoPeer);
        };
        let id = session.id;
        let shard = session.shard;
        let Some(stream) = session.stream_mut(at.stream) else {
            return Verdict::Drop(DropReason::NoPeer);
        };
        let content = match content(stream, at, data) {
            Some(content) => content,
            None => return refuse(stream, at, DropReason::Garbage),
        };
        let header = match content {
            Content::Rtcp => return rtcp(stream, at, src, data),
            Content::Media(header) => header,
        };
        let ident: Ident = header.map(|h| (h.ssrc, h.sequence));
        let addresses = &self.addresses;
        let latch = &mut stream.side_mut(at.side).latch;
        let judgement = latch.packet(now, src, ident, &self.learning, |a| addresses.usable(a));
        let newly = match judgement {
            Judgement::Accept => false,
            Judgement::Latched => true,
            Judgement::Probation => return refuse(stream, at, DropReason::Learning),
            Judgement::Stranger => return refuse(stream, at, DropReason::Source),
        };
        if newly {
            let side = stream.side_mut(at.side);
            side.rtcp_learnt = side.rtcp_learnt.filter(|rtcp| rtcp.ip() == src.ip());
            stream.cell.side(at.side).latched(Some(src));
        }
        let verdict = media(stream, now, at, header, data.len());
        session.active_at = now;
        if newly {
            let event = Event::Latched {
                session: id,
                stream: usize::from(at.stream),
                side: at.side,
                addr: src,
            };
            self.outputs.push_back(Output::Event { shard, event });
            self.changed(now, id);
        }
        verdict
    }

    /// A datagram that was longer than the buffer.
    pub(crate) fn oversize(&mut self, at: At) {
        if let Some(stream) = self.stream(at) {
            refuse(stream, at, DropReason::Oversize);
        }
    }

    /// A relayed datagram of `len` bytes could not be sent.
    pub(crate) fn unsent(&mut self, at: At, component: Component, len: usize) {
        if let Some(stream) = self.stream(at) {
            stream.cell.side(at.side).unsent(component, len);
        }
    }

    fn stream(&mut self, at: At) -> Option<&mut Stream> {
        self.sessions.get_mut(at.slot as usize)?.stream_mut(at.stream)
    }
}

/// What the datagram is; `None` for what does not belong to such a stream.
fn content(stream: &Stream, at: At, data: &[u8]) -> Option<Content> {
    if !stream.kind.is_rtp() {
        return Some(match at.component {
            Component::Rtp => Content::Media(None),
            Component::Rtcp => Content::Rtcp,
        });
    }
    match (classify(data), at.component) {
        (Packet::Rtp(header), Component::Rtp) => Some(Content::Media(Some(header))),
        (Packet::Rtcp, Component::Rtcp) => Some(Content::Rtcp),
        (Packet::Rtcp, Component::Rtp) if stream.side(at.side).rtcp_mux() => Some(Content::Rtcp),
        (Packet::Rtcp, Component::Rtp)
        | (Packet::Rtp(_), Component::Rtcp)
        | (Packet::Other, Component::Rtp | Component::Rtcp) => None,
    }
}

fn refuse(stream: &Stream, at: At, reason: DropReason) -> Verdict {
    stream.cell.side(at.side).drop(reason);
    Verdict::Drop(reason)
}

/// Media from the endpoint: on to the other side if the direction is on.
fn media(
    stream: &mut Stream,
    now: Instant,
    at: At,
    header: Option<RtpHeader>,
    len: usize,
) -> Verdict {
    let from = stream.side_mut(at.side);
    if let Some(header) = header.filter(|_| !from.flow(Component::Rtp).is_installed()) {
        from.reception.packet(now, &header);
        let (lost, jitter_us) = (from.reception.lost(), from.reception.jitter_us());
        stream.cell.side(at.side).reception(lost, jitter_us, header.ssrc);
    }
    let (from, to) = (stream.side(at.side), stream.side(at.side.other()));
    if !from.sends_to(to) {
        return refuse(stream, at, DropReason::Direction);
    }
    match (to.latch.destination(), to.exit(Component::Rtp)) {
        (Some(addr), Some((by, _))) => {
            stream.cell.side(at.side).media(len);
            Verdict::Relay { by, to: addr, component: Component::Rtp }
        }
        (None, _) | (_, None) => refuse(stream, at, DropReason::NoPeer),
    }
}

/// RTCP passes in both directions even on hold (RFC 3264 §5.1); it never latches a host.
fn rtcp(stream: &mut Stream, at: At, src: SocketAddr, data: &[u8]) -> Verdict {
    let from = stream.side_mut(at.side);
    let accepted = match at.component {
        Component::Rtp => from.latch.is_endpoint(src),
        Component::Rtcp => from.accepts_rtcp(src),
    };
    if !accepted {
        return refuse(stream, at, DropReason::Source);
    }
    heard(stream, at.side.other(), data);
    let to = stream.side(at.side.other());
    match (to.rtcp_destination(), to.exit(Component::Rtcp)) {
        (Some(addr), Some((by, _))) => {
            stream.cell.side(at.side).rtcp();
            Verdict::Relay { by, to: addr, component: Component::Rtcp }
        }
        (None, _) | (_, None) => refuse(stream, at, DropReason::NoPeer),
    }
}

/// Takes in what the far end says of the RTP of `side`, while the kernel relays that unseen.
fn heard(stream: &mut Stream, side: Side, data: &[u8]) {
    let from = stream.side_mut(side);
    if !from.flow(Component::Rtp).is_installed() {
        return;
    }
    for report in reports(data) {
        if from.reception.report(&report) {
            let (lost, jitter_us) = (from.reception.lost(), from.reception.jitter_us());
            stream.cell.side(side).reception(lost, jitter_us, report.ssrc);
            return;
        }
    }
}
