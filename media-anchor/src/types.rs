//! Values of the public surface: names of sessions and sides, what is asked for, what is answered.
//!
//! No sockets, threads or state machines live here. The shapes mirror the `Anchor` trait of
//! `sbc-core`, which this crate must not depend on.

use std::net::SocketAddr;
use std::time::Duration;

use crate::plan_types::Path;

/// Names the media session of one call; chosen by the caller, unique per node for the call's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Index of an interface of the running configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceId(pub u16);

/// The two sides of a session: A is the caller's, B the callee's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    A,
    B,
}

impl Side {
    /// The opposite side.
    pub fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }

    pub(crate) fn index(self) -> usize {
        match self {
            Side::A => 0,
            Side::B => 1,
        }
    }
}

/// What a stream carries; decides RTCP, header checks and the default DSCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    Audio,
    Video,
    /// T.38 over UDPTL: no RTCP, no RTP header checks.
    Image,
    /// Other datagram media: no RTP header checks.
    Application,
}

impl StreamKind {
    /// Whether the packets of the first port must look like RTP (RFC 3550 §5.1).
    pub fn is_rtp(self) -> bool {
        match self {
            StreamKind::Audio | StreamKind::Video => true,
            StreamKind::Image | StreamKind::Application => false,
        }
    }

    /// Whether the second port of the pair is opened for RTCP.
    pub fn has_rtcp(self) -> bool {
        match self {
            StreamKind::Audio | StreamKind::Video | StreamKind::Application => true,
            StreamKind::Image => false,
        }
    }
}

/// RTP or RTCP of a stream; UDPTL and other raw media count as [`Component::Rtp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    Rtp,
    Rtcp,
}

impl Component {
    pub(crate) fn index(self) -> usize {
        match self {
            Component::Rtp => 0,
            Component::Rtcp => 1,
        }
    }
}

/// The RTCP port beside an RTP port (RFC 3550 §11); port 0 where there is none.
pub(crate) fn rtcp_of(rtp: SocketAddr) -> SocketAddr {
    SocketAddr::new(rtp.ip(), rtp.port().checked_add(1).unwrap_or(0))
}

/// Where one side's ports come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SideSpec {
    pub interface: InterfaceId,
    pub ipv6: bool,
}

/// How the far endpoint of a stream is found (symmetric RTP, RFC 4961).
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// `c=` and `m=` port; `None` while unknown (late offer, `c=0.0.0.0`).
    pub rtp: Option<SocketAddr>,
    /// `a=rtcp` where given (RFC 3605), otherwise RTP port + 1; ignored with `rtcp_mux`.
    pub rtcp: Option<SocketAddr>,
    /// RTP and RTCP share the RTP port of this side (RFC 5761).
    pub rtcp_mux: bool,
    /// Whether packets *from* this side are to be relayed.
    pub sends: bool,
    /// Whether packets are to be relayed *to* this side.
    pub receives: bool,
    pub latch: Latch,
}

/// The local addresses of one side of one stream as the peer shall see them (advertised).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    pub rtp: SocketAddr,
    pub rtcp: SocketAddr,
}

/// Why a datagram was not relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Not from the latched or signalled source.
    Source,
    /// A source still on probation while the side is learning.
    Learning,
    /// The direction is off (hold, `sendonly`, `inactive`).
    Direction,
    /// The other side is not known yet.
    NoPeer,
    /// Not RTP or RTCP by its header.
    Garbage,
    /// Longer than the relay's buffer.
    Oversize,
    /// The kernel refused to send it (no route, full buffer, refused port).
    Send,
}

impl DropReason {
    /// Every reason, in the order of the counters.
    pub const ALL: [DropReason; 7] = [
        DropReason::Source,
        DropReason::Learning,
        DropReason::Direction,
        DropReason::NoPeer,
        DropReason::Garbage,
        DropReason::Oversize,
        DropReason::Send,
    ];

    /// Metric label.
    pub fn label(self) -> &'static str {
        match self {
            DropReason::Source => "source",
            DropReason::Learning => "learning",
            DropReason::Direction => "direction",
            DropReason::NoPeer => "no_peer",
            DropReason::Garbage => "garbage",
            DropReason::Oversize => "oversize",
            DropReason::Send => "send",
        }
    }

    pub(crate) fn index(self) -> usize {
        match self {
            DropReason::Source => 0,
            DropReason::Learning => 1,
            DropReason::Direction => 2,
            DropReason::NoPeer => 3,
            DropReason::Garbage => 4,
            DropReason::Oversize => 5,
            DropReason::Send => 6,
        }
    }
}

/// Counters of one side of one stream: what was *received from* that side.
///
/// Userspace and kernel are joined in `packets`, `bytes` and `rtcp_packets`; while the kernel relays,
/// `lost` and `jitter_us` are what the other side's RTCP reports of the source that userspace saw
/// last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SideStats {
    /// RTP (or raw) datagrams accepted from the side and relayed.
    pub packets: u64,
    /// Their UDP payload bytes.
    pub bytes: u64,
    /// RTCP datagrams accepted from the side and relayed.
    pub rtcp_packets: u64,
    /// Dropped by reason, in the order of [`DropReason::ALL`].
    pub dropped: [u32; 7],
    /// Expected minus received, RFC 3550 §A.3; never below 0 here.
    pub lost: u64,
    /// Interarrival jitter in microseconds, RFC 3550 §A.8, by the clock rate of static payload
    /// types (RFC 3551) and 90 kHz for dynamic video, 8 kHz for dynamic audio.
    pub jitter_us: u32,
    pub ssrc: u32,
    /// The latched RTP source, if any.
    pub latched: Option<SocketAddr>,
    /// Part of `packets` that the kernel relayed.
    pub kernel_packets: u64,
    /// The way of RTP from this side, and why.
    pub path: Path,
}

impl SideStats {
    /// All drops together.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().map(|n| u64::from(*n)).sum()
    }
}

/// Counters of one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamStats {
    pub a: SideStats,
    pub b: SideStats,
    /// True while the kernel relays RTP of the stream in at least one direction.
    pub kernel: bool,
}

impl StreamStats {
    /// The counters of `side`.
    pub fn side(&self, side: Side) -> &SideStats {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }
}

/// Why the anchor refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MediaError {
    /// The interface's range is in use or in quarantine.
    #[error("no free media port on the interface")]
    NoPorts,
    /// The process has no file descriptor or memory left for a socket.
    #[error("no socket for media: {0}")]
    NoSocket(std::io::ErrorKind),
    #[error("the interface has no media address of that family")]
    NoAddress,
    #[error("too many media sessions")]
    TooManySessions,
    /// More streams than [`crate::config::MAX_STREAMS`].
    #[error("too many streams in one session")]
    TooManyStreams,
    #[error("no such media session or stream")]
    Unknown,
    /// The relay thread does not keep up with its commands.
    #[error("the media relay is overloaded")]
    Overloaded,
    /// `open` of an id that is in use.
    #[error("the media session exists already")]
    Exists,
    /// The signalled address may not be sent to (own, loopback, multicast, …).
    #[error("the media address may not be used: {0}")]
    Forbidden(SocketAddr),
}

/// What the anchor reports by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Both directions of every stream have been silent for the session's timeout. Repeated once
    /// per timeout while the silence lasts.
    Timeout { session: SessionId, silent: Duration },
    /// An endpoint was latched or moved.
    Latched { session: SessionId, stream: usize, side: Side, addr: SocketAddr },
    /// The last kernel counters of a closed session came in; sent only for sessions that had a
    /// stream in the kernel when `close` was called.
    Final { session: SessionId, streams: Vec<StreamStats> },
}
