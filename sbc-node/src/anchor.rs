//! `sbc_core::media::Anchor` over the `media-anchor` crate: one adapter per shard.
//!
//! The two sides name the same things with types of their own; only the translation lives here.

use std::net::SocketAddr;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use media_anchor::{self as relay, EventSink, Handle, MediaAnchor};
use sbc_core::core::Input;
use sbc_core::media::{
    Anchor, Latch, Local, MediaError, MediaId, Remote, Side, SideSpec, SideStats, StreamKind,
    StreamStats, Taken,
};

/// Events of one shard's sessions that may wait for it.
const EVENTS_MAX: usize = 8_192;

/// What the relay threads tell one shard.
pub struct MediaEvents(Receiver<relay::Event>);

impl MediaEvents {
    /// The next event that the core wants to hear of.
    pub fn next_input(&self) -> Option<Input> {
        loop {
            return Some(match self.0.try_recv().ok()? {
                relay::Event::Timeout { session, .. } => {
                    Input::MediaTimeout { session: MediaId(session.0) }
                }
                relay::Event::Latched { session, .. } => {
                    Input::MediaLatched { session: MediaId(session.0) }
                }
                // The call is gone with its CDR; the totals have these packets.
                relay::Event::Final { .. } => continue,
            });
        }
    }
}

/// One shard's hand on the media relay.
pub struct ShardAnchor(Handle);

impl ShardAnchor {
    /// The adapter of shard `shard`, and where its events come from. `wake` makes the shard look.
    pub fn new(
        anchor: &MediaAnchor,
        shard: usize,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> (ShardAnchor, MediaEvents) {
        let (sink, events) = EventSink::new(EVENTS_MAX, std::sync::Arc::new(wake));
        (ShardAnchor(anchor.handle(shard, &sink)), MediaEvents(events))
    }
}

impl Anchor for ShardAnchor {
    fn open(&mut self, id: MediaId, timeout: Option<Duration>) -> Result<(), MediaError> {
        self.0.open(session(id), timeout).map_err(error)
    }

    fn bind(
        &mut self,
        id: MediaId,
        index: usize,
        kind: StreamKind,
        side: Side,
        spec: SideSpec,
    ) -> Result<Local, MediaError> {
        let bound = self.0.bind(session(id), index, kind_of(kind), side_of(side), spec_of(spec));
        bound.map(local).map_err(error)
    }

    fn remote(
        &mut self,
        id: MediaId,
        index: usize,
        side: Side,
        remote: &Remote,
        relearn: bool,
    ) -> Result<(), MediaError> {
        let remote = relay::Remote {
            rtp: remote.rtp,
            rtcp: remote.rtcp,
            rtcp_mux: remote.rtcp_mux,
            sends: remote.sends,
            receives: remote.receives,
            latch: match remote.latch {
                Latch::Off => relay::Latch::Off,
                Latch::Auto => relay::Latch::Auto,
                Latch::Force => relay::Latch::Force,
            },
        };
        self.0.remote(session(id), index, side_of(side), &remote, relearn).map_err(error)
    }

    fn rebind(
        &mut self,
        id: MediaId,
        index: usize,
        kind: StreamKind,
        side: Side,
        taken: &Taken,
    ) -> Result<(), MediaError> {
        let (spec, port) = (spec_of(taken.spec), taken.local.rtp.port());
        self.0.bind_at(session(id), index, kind_of(kind), side_of(side), spec, port).map_err(error)?;
        // Known endpoints may send at once: the source that was latched is the one to expect.
        let Some(rtp) = taken.latched else { return Ok(()) };
        let remote = relay::Remote {
            rtp: Some(rtp),
            rtcp: Some(SocketAddr::new(rtp.ip(), rtp.port().wrapping_add(1))),
            rtcp_mux: false,
            sends: true,
            receives: true,
            latch: relay::Latch::Auto,
        };
        self.0.remote(session(id), index, side_of(side), &remote, false).map_err(error)
    }

    fn drop_stream(&mut self, id: MediaId, index: usize) {
        self.0.drop_stream(session(id), index);
    }

    fn stats(&mut self, id: MediaId) -> Vec<StreamStats> {
        self.0.stats(session(id)).iter().map(stats).collect()
    }

    fn close(&mut self, id: MediaId) -> Vec<StreamStats> {
        self.0.close(session(id)).iter().map(stats).collect()
    }
}

fn session(id: MediaId) -> relay::SessionId {
    relay::SessionId(id.0)
}

fn side_of(side: Side) -> relay::Side {
    match side {
        Side::A => relay::Side::A,
        Side::B => relay::Side::B,
    }
}

fn kind_of(kind: StreamKind) -> relay::StreamKind {
    match kind {
        StreamKind::Audio => relay::StreamKind::Audio,
        StreamKind::Video => relay::StreamKind::Video,
        StreamKind::Image => relay::StreamKind::Image,
        StreamKind::Application => relay::StreamKind::Application,
    }
}

fn spec_of(spec: SideSpec) -> relay::SideSpec {
    relay::SideSpec { interface: relay::InterfaceId(spec.interface.0), ipv6: spec.ipv6 }
}

fn local(local: relay::Local) -> Local {
    Local { rtp: local.rtp, rtcp: local.rtcp }
}

fn stats(stats: &relay::StreamStats) -> StreamStats {
    let side = |side: &relay::SideStats| SideStats {
        packets: side.packets,
        bytes: side.bytes,
        dropped: side.dropped_total(),
        lost: side.lost,
        jitter_us: side.jitter_us,
        ssrc: side.ssrc,
        latched: side.latched,
    };
    StreamStats { a: side(&stats.a), b: side(&stats.b), kernel: stats.kernel }
}

fn error(error: relay::MediaError) -> MediaError {
    match error {
        relay::MediaError::NoPorts | relay::MediaError::NoSocket(_) => MediaError::NoPorts,
        relay::MediaError::NoAddress => MediaError::NoAddress,
        relay::MediaError::TooManySessions
        | relay::MediaError::TooManyStreams
        | relay::MediaError::Overloaded => MediaError::TooManySessions,
        relay::MediaError::Unknown | relay::MediaError::Exists => MediaError::Unknown,
        relay::MediaError::Forbidden(addr) => MediaError::Forbidden(addr),
    }
}
