//! `sbc_core::media::Anchor` over the `media-anchor` crate: one adapter per shard.
//!
//! The two sides name the same things with types of their own; only the translation lives here.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use hashbrown::HashMap;
use media_anchor::{self as relay, EventSink, Handle, MediaAnchor};
use sbc_core::core::Input;
use sbc_core::media::{
    Anchor, Latch, Local, MediaError, MediaId, Remote, Side, SideSpec, SideStats, StreamKind,
    StreamStats, Taken,
};

/// Events of one shard's sessions that may wait for it.
const EVENTS_MAX: usize = 8_192;

/// Something that the relay threads tell.
#[derive(Debug)]
pub enum MediaEvent {
    /// For the core.
    Input(Input),
    /// The last counters of a session that was closed while the kernel had streams of it.
    Final(MediaId, Vec<StreamStats>),
}

/// What the relay threads tell one shard.
pub struct MediaEvents(Receiver<relay::Event>);

impl MediaEvents {
    /// The next event.
    pub fn next_event(&self) -> Option<MediaEvent> {
        Some(match self.0.try_recv().ok()? {
            relay::Event::Timeout { session, .. } => {
                MediaEvent::Input(Input::MediaTimeout { session: MediaId(session.0) })
            }
            relay::Event::Latched { session, .. } => {
                MediaEvent::Input(Input::MediaLatched { session: MediaId(session.0) })
            }
            relay::Event::Final { session, streams } => {
                MediaEvent::Final(MediaId(session.0), streams.iter().map(stats).collect())
            }
        })
    }
}

/// One shard's hand on the media relay.
pub struct ShardAnchor {
    handle: Handle,
    /// What SDP said of a side that has no port yet: an offer's endpoint is known before the
    /// answer gives that side its port. Given on with the port.
    early: HashMap<MediaId, Vec<Early>>,
}

struct Early {
    index: usize,
    side: Side,
    remote: relay::Remote,
    relearn: bool,
}

impl ShardAnchor {
    /// The adapter of shard `shard`, and where its events come from. `wake` makes the shard look.
    pub fn new(
        anchor: &MediaAnchor,
        shard: usize,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> (ShardAnchor, MediaEvents) {
        let (sink, events) = EventSink::new(EVENTS_MAX, std::sync::Arc::new(wake));
        let handle = anchor.handle(shard, &sink);
        (ShardAnchor { handle, early: HashMap::new() }, MediaEvents(events))
    }
}

impl ShardAnchor {
    fn take_early(&mut self, id: MediaId, index: usize, side: Side) -> Option<Early> {
        let waiting = self.early.get_mut(&id)?;
        let at = waiting.iter().position(|e| e.index == index && e.side == side)?;
        let early = waiting.swap_remove(at);
        if waiting.is_empty() {
            self.early.remove(&id);
        }
        Some(early)
    }
}

impl Anchor for ShardAnchor {
    fn open(&mut self, id: MediaId, timeout: Option<Duration>) -> Result<(), MediaError> {
        self.handle.open(session(id), timeout).map_err(error)
    }

    fn bind(
        &mut self,
        id: MediaId,
        index: usize,
        kind: StreamKind,
        side: Side,
        spec: SideSpec,
    ) -> Result<Local, MediaError> {
        let (session, relay_side) = (session(id), side_of(side));
        let bound = self.handle.bind(session, index, kind_of(kind), relay_side, spec_of(spec));
        let bound = bound.map(local).map_err(error)?;
        if let Some(Early { remote, relearn, .. }) = self.take_early(id, index, side) {
            self.handle.remote(session, index, relay_side, &remote, relearn).map_err(error)?;
        }
        Ok(bound)
    }

    fn remote(
        &mut self,
        id: MediaId,
        index: usize,
        side: Side,
        remote: &Remote,
        relearn: bool,
    ) -> Result<(), MediaError> {
        let remote = remote_of(remote);
        match self.handle.remote(session(id), index, side_of(side), &remote, relearn) {
            Err(relay::MediaError::Unknown) => {
                // A caller whose media may go nowhere hears so before anybody rings.
                self.handle.check(&remote).map_err(error)?;
                self.take_early(id, index, side);
                let early = Early { index, side, remote, relearn };
                self.early.entry(id).or_default().push(early);
                Ok(())
            }
            other => other.map_err(error),
        }
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
        self.handle
            .bind_at(session(id), index, kind_of(kind), side_of(side), spec, port)
            .map_err(error)?;
        // What was latched stays latched: it may be in the kernel here already, where no packet of
        // it is seen. What SDP said of the side is told next.
        let Some(latched) = taken.latched else { return Ok(()) };
        self.handle.restore(session(id), index, side_of(side), latched).map_err(error)
    }

    fn drop_stream(&mut self, id: MediaId, index: usize) {
        for side in [Side::A, Side::B] {
            self.take_early(id, index, side);
        }
        self.handle.drop_stream(session(id), index);
    }

    fn stats(&mut self, id: MediaId) -> Vec<StreamStats> {
        self.handle.stats(session(id)).iter().map(stats).collect()
    }

    fn close(&mut self, id: MediaId) -> Vec<StreamStats> {
        self.early.remove(&id);
        self.handle.close(session(id)).iter().map(stats).collect()
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

pub(crate) fn kind_of(kind: StreamKind) -> relay::StreamKind {
    match kind {
        StreamKind::Audio => relay::StreamKind::Audio,
        StreamKind::Video => relay::StreamKind::Video,
        StreamKind::Image => relay::StreamKind::Image,
        StreamKind::Application => relay::StreamKind::Application,
    }
}

/// What SDP said of a side.
pub(crate) fn remote_of(remote: &Remote) -> relay::Remote {
    relay::Remote {
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
        way: side.path.label(),
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
