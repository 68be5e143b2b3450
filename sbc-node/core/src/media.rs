//! What the core asks of the media anchor, in the core's own types.
//!
//! The edge implements [`Anchor`] over the `media-anchor` crate; the simulator implements it with
//! plain counters. Calls are synchronous because port allocation is a local decision; packets
//! never pass through here.

use std::net::SocketAddr;
use std::time::Duration;

use crate::net::InterfaceId;

/// Names the media session of one call. Chosen by the core, unique per node for the call's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MediaId(pub u64);

/// The two sides of a session: A is the caller's, B the callee's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    A,
    B,
}

impl Side {
    pub fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }
}

/// What a stream carries, from its `m=` line; decides RTCP and defaults (DSCP, timeouts).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    Audio,
    Video,
    /// T.38 over UDPTL (`m=image ... udptl`): no RTCP, no RTP header checks.
    Image,
    /// Other datagram media (`m=application`, `m=text`, …).
    Application,
}

/// Where one side's ports come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SideSpec {
    pub interface: InterfaceId,
    pub ipv6: bool,
}

/// How the far endpoint of a stream is found (symmetric RTP).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Latch {
    /// Trust SDP: packets from elsewhere are dropped, nothing is learnt.
    Off,
    /// Learn once per offer/answer: first packets from the signalled address win, otherwise the
    /// first consistent source.
    Auto,
    /// The peer is behind NAT: ignore the signalled address, learn from packets.
    Force,
}

/// One side of one stream as signalled by SDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// `c=` and `m=` port; `None` while unknown (late offer, before the answer).
    pub rtp: Option<SocketAddr>,
    /// `a=rtcp` where given, otherwise RTP port + 1; ignored with `rtcp_mux`.
    pub rtcp: Option<SocketAddr>,
    pub rtcp_mux: bool,
    /// Whether packets *from* this side are to be relayed (`sendonly`/`sendrecv` of that side).
    pub sends: bool,
    /// Whether packets are to be relayed *to* this side.
    pub receives: bool,
    pub latch: Latch,
}

/// The local addresses of one side of one stream, as the peer shall see them (advertised).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    pub rtp: SocketAddr,
    pub rtcp: SocketAddr,
}

/// One side of a stream that another node held before (failover with its addresses).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub spec: SideSpec,
    /// What the peer was told there (advertised).
    pub local: Local,
    /// The source that was latched there, if any.
    pub latched: Option<SocketAddr>,
}

/// Counters of one side of one stream; packets are those *received from* that side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SideStats {
    pub packets: u64,
    pub bytes: u64,
    /// Received from that side and dropped: wrong source, direction off, no peer yet.
    pub dropped: u64,
    /// Expected minus received, RFC 3550 §A.3.
    pub lost: u64,
    /// Interarrival jitter in microseconds, RFC 3550 §A.8.
    pub jitter_us: u32,
    pub ssrc: u32,
    /// The latched source, if any.
    pub latched: Option<SocketAddr>,
    /// `kernel`, or why its media goes through userspace; for people.
    pub way: &'static str,
}

/// Counters of one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamStats {
    pub a: SideStats,
    pub b: SideStats,
    /// True while the kernel relays the stream.
    pub kernel: bool,
}

/// Why the anchor refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MediaError {
    #[error("no free media port on the interface")]
    NoPorts,
    #[error("the interface has no media address of that family")]
    NoAddress,
    #[error("too many media sessions")]
    TooManySessions,
    #[error("no such media session or stream")]
    Unknown,
    #[error("the media address may not be used: {0}")]
    Forbidden(SocketAddr),
}

/// The media anchor as seen by a call.
///
/// Streams are numbered by their `m=` line from 0. All calls are cheap and never block on I/O.
pub trait Anchor {
    /// Makes a session with no stream; media silence is reported after `timeout`.
    fn open(&mut self, id: MediaId, timeout: Option<Duration>) -> Result<(), MediaError>;

    /// Gives one side of stream `index` a port pair, or moves it to another interface (the old
    /// ports go into quarantine). Repeating the same spec returns the same ports.
    fn bind(
        &mut self,
        id: MediaId,
        index: usize,
        kind: StreamKind,
        side: Side,
        spec: SideSpec,
    ) -> Result<Local, MediaError>;

    /// Like [`Anchor::bind`], with the very ports that another node gave out before.
    fn rebind(
        &mut self,
        id: MediaId,
        index: usize,
        kind: StreamKind,
        side: Side,
        taken: &Taken,
    ) -> Result<(), MediaError>;

    /// Tells what SDP says of one side of a stream; opens a new learning window if `relearn`.
    fn remote(
        &mut self,
        id: MediaId,
        index: usize,
        side: Side,
        remote: &Remote,
        relearn: bool,
    ) -> Result<(), MediaError>;

    /// Ends one stream (port 0) and frees its ports.
    fn drop_stream(&mut self, id: MediaId, index: usize);

    /// Counters of every stream; empty when the session is unknown.
    fn stats(&mut self, id: MediaId) -> Vec<StreamStats>;

    /// Ends the session, frees everything, returns the last counters.
    fn close(&mut self, id: MediaId) -> Vec<StreamStats>;
}
