//! The state of a session, its streams and their sides.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::flows::FlowState;
use super::{Bound, Token};
use crate::cells::StreamCell;
use crate::latch::SideLatch;
use crate::rfc3550::Reception;
use crate::types::{Component, Latch, Remote, SessionId, Side, StreamKind, StreamStats, rtcp_of};

pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) shard: usize,
    timeout: Option<Duration>,
    /// Last packet of any endpoint, last signalling, or last report of silence.
    pub(super) active_at: Instant,
    reported_at: Option<Instant>,
    /// By `m=` line; a hole is a stream never bound or gone.
    streams: Vec<Option<Box<Stream>>>,
    pub(super) closing: bool,
    pub(super) had_kernel_flows: bool,
}

pub(super) struct Stream {
    pub(super) kind: StreamKind,
    sides: [SideState; 2],
    pub(super) cell: Arc<StreamCell>,
    /// Waits for its last kernel counters.
    pub(super) dropped: bool,
}

#[derive(Default)]
pub(super) struct SideState {
    pub(super) bound: Option<Bound>,
    remote: Option<Remote>,
    pub(super) latch: SideLatch,
    /// Learnt RTCP source; only ever at the endpoint's address.
    pub(super) rtcp_learnt: Option<SocketAddr>,
    pub(super) reception: Reception,
    flows: [FlowState; 2],
}

impl Session {
    pub(super) fn new(
        id: SessionId,
        shard: usize,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Session {
        Session {
            id,
            shard,
            timeout,
            active_at: now,
            reported_at: None,
            streams: Vec::new(),
            closing: false,
            had_kernel_flows: false,
        }
    }

    pub(super) fn stream_mut(&mut self, index: u8) -> Option<&mut Stream> {
        self.streams.get_mut(usize::from(index))?.as_deref_mut()
    }

    pub(super) fn stream_or_insert(
        &mut self,
        index: u8,
        make: impl FnOnce() -> Stream,
    ) -> &mut Stream {
        let index = usize::from(index);
        if self.streams.len() <= index {
            self.streams.resize_with(index + 1, || None);
        }
        self.streams[index].get_or_insert_with(|| Box::new(make()))
    }

    pub(super) fn streams_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.streams.iter_mut().filter_map(|stream| stream.as_deref_mut())
    }

    /// Streams by `m=` line, holes included.
    pub(super) fn slots_mut(&mut self) -> impl Iterator<Item = Option<&mut Stream>> {
        self.streams.iter_mut().map(Option::as_deref_mut)
    }

    /// Indexes and streams.
    pub(super) fn indexed(&self) -> impl Iterator<Item = (u8, &Stream)> {
        (0u8..).zip(&self.streams).filter_map(|(n, stream)| Some((n, stream.as_deref()?)))
    }

    pub(super) fn stats(&self) -> Vec<StreamStats> {
        self.streams
            .iter()
            .map(|stream| stream.as_ref().map_or_else(StreamStats::default, |s| s.cell.stats()))
            .collect()
    }

    pub(super) fn has_kernel_flows(&self) -> bool {
        self.indexed().any(|(_, stream)| stream.has_kernel_flows())
    }

    pub(super) fn forget_dropped(&mut self) {
        for stream in &mut self.streams {
            if stream.as_ref().is_some_and(|s| s.dropped && !s.has_kernel_flows()) {
                *stream = None;
            }
        }
    }

    /// New signalling: silence is counted from here.
    pub(super) fn signalled_at(&mut self, now: Instant) {
        self.active_at = now;
        self.reported_at = None;
    }

    /// How long the session has been silent, when that is longer than its timeout and somebody is
    /// expected to send. Reported once per timeout.
    pub(super) fn silent(&mut self, now: Instant) -> Option<Duration> {
        let timeout = self.timeout?;
        let silent = now.saturating_duration_since(self.active_at);
        if self.closing || silent < timeout || !self.expects_media() {
            return None;
        }
        let due = self
            .reported_at
            .is_none_or(|at| at < self.active_at || now.saturating_duration_since(at) >= timeout);
        due.then(|| {
            self.reported_at = Some(now);
            silent
        })
    }

    /// Whether both endpoints of some stream are known and one of them has its direction on.
    fn expects_media(&self) -> bool {
        self.indexed().any(|(_, stream)| {
            let [a, b] = &stream.sides;
            a.is_signalled() && b.is_signalled() && (a.sends_to(b) || b.sends_to(a))
        })
    }
}

impl Stream {
    pub(super) fn new(kind: StreamKind, cell: Arc<StreamCell>) -> Stream {
        Stream { kind, sides: [SideState::default(), SideState::default()], cell, dropped: false }
    }

    /// A side is bound: a stream that was dropped but whose flows have not left the kernel yet
    /// begins anew, flows apart.
    pub(super) fn bind(&mut self, kind: StreamKind, cell: Arc<StreamCell>) {
        if self.dropped {
            let fresh = Stream::new(kind, cell);
            let old = std::mem::replace(self, fresh);
            let cell = old.cell;
            for (side, old) in self.sides.iter_mut().zip(old.sides) {
                side.flows = old.flows.map(|flow| flow.hand_over(&cell));
            }
        }
        self.kind = kind;
    }

    pub(super) fn side(&self, side: Side) -> &SideState {
        let [a, b] = &self.sides;
        match side {
            Side::A => a,
            Side::B => b,
        }
    }

    pub(super) fn side_mut(&mut self, side: Side) -> &mut SideState {
        let [a, b] = &mut self.sides;
        match side {
            Side::A => a,
            Side::B => b,
        }
    }

    pub(super) fn take_bounds(&mut self) -> [Option<Bound>; 2] {
        let [a, b] = &mut self.sides;
        [a.bound.take(), b.bound.take()]
    }

    pub(super) fn has_kernel_flows(&self) -> bool {
        self.sides.iter().flat_map(|side| &side.flows).any(FlowState::is_in_kernel)
    }
}

impl SideState {
    /// Takes what SDP says of the side.
    pub(super) fn signal(&mut self, remote: &Remote, relearn: bool) {
        let before = self.latch.learnt();
        self.latch.signal(remote.rtp, remote.latch, relearn);
        if relearn || self.latch.learnt() != before {
            self.rtcp_learnt = None;
        }
        self.remote = Some(*remote);
    }

    /// Takes over what another node had latched; to be followed by what SDP said.
    pub(super) fn restore(&mut self, latched: SocketAddr) {
        self.latch.restore(latched);
        self.rtcp_learnt = None;
    }

    pub(super) fn is_signalled(&self) -> bool {
        self.remote.is_some_and(|remote| remote.rtp.is_some())
    }

    /// Whether media from here may go to `other`.
    pub(super) fn sends_to(&self, other: &SideState) -> bool {
        self.remote.is_some_and(|remote| remote.sends)
            && other.remote.is_some_and(|remote| remote.receives)
    }

    pub(super) fn rtcp_mux(&self) -> bool {
        self.remote.is_some_and(|remote| remote.rtcp_mux)
    }

    /// Whether RTCP of its own port may come from `src`: the signalled address, or the endpoint's
    /// host once that is known (then it is learnt). RTCP alone never latches a host.
    pub(super) fn accepts_rtcp(&mut self, src: SocketAddr) -> bool {
        let Some(remote) = self.remote else { return false };
        if let Some(learnt) = self.rtcp_learnt {
            return learnt == src;
        }
        let signalled = self.signalled_rtcp() == Some(src);
        let accepted = match remote.latch {
            Latch::Off => return signalled,
            Latch::Auto => signalled || self.latch.learnt().is_some_and(|a| a.ip() == src.ip()),
            Latch::Force => self.latch.learnt().is_some_and(|a| a.ip() == src.ip()),
        };
        if accepted {
            self.rtcp_learnt = Some(src);
        }
        accepted
    }

    /// Where RTCP to this side goes: with mux where RTP goes, else the learnt source, else the
    /// signalled address unless the endpoint turned out to be elsewhere.
    pub(super) fn rtcp_destination(&self) -> Option<SocketAddr> {
        let remote = self.remote?;
        if remote.rtcp_mux {
            return self.latch.destination();
        }
        let host = self.latch.destination()?.ip();
        self.rtcp_learnt.or_else(|| {
            self.signalled_rtcp().filter(|rtcp| rtcp.ip() == host || self.latch.learnt().is_none())
        })
    }

    /// Socket and component port that a component leaves by.
    pub(super) fn exit(&self, component: Component) -> Option<(Token, SocketAddr)> {
        let bound = self.bound?;
        match component {
            Component::Rtcp if !self.rtcp_mux() => Some((bound.rtcp_token?, rtcp_of(bound.rtp))),
            Component::Rtp | Component::Rtcp => Some((bound.rtp_token, bound.rtp)),
        }
    }

    pub(super) fn flow(&self, component: Component) -> &FlowState {
        let [rtp, rtcp] = &self.flows;
        match component {
            Component::Rtp => rtp,
            Component::Rtcp => rtcp,
        }
    }

    pub(super) fn flow_mut(&mut self, component: Component) -> &mut FlowState {
        let [rtp, rtcp] = &mut self.flows;
        match component {
            Component::Rtp => rtp,
            Component::Rtcp => rtcp,
        }
    }

    fn signalled_rtcp(&self) -> Option<SocketAddr> {
        let remote = self.remote?;
        remote.rtcp.or_else(|| remote.rtp.map(rtcp_of)).filter(|rtcp| rtcp.port() != 0)
    }
}
