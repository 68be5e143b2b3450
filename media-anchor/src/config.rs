//! What the anchor is told at start and on reload: interfaces, port ranges, limits, policy.
//!
//! The file form of the configuration lives in `sbc-node`; this is its converted part.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::types::{InterfaceId, StreamKind};

/// Streams (`m=` lines) of one session.
pub const MAX_STREAMS: usize = 8;

/// One address of an interface's media side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MediaAddr {
    /// The address bound.
    pub local: IpAddr,
    /// The address in SDP; the same as `local` without NAT in front.
    pub advertise: IpAddr,
}

/// Media side of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaInterface {
    pub id: InterfaceId,
    pub v4: Option<MediaAddr>,
    pub v6: Option<MediaAddr>,
    /// Ports of the range; pairs start at even ports (RFC 3550 §11), an odd first or an even last
    /// port is left out.
    pub ports: RangeInclusive<u16>,
    pub dscp: Dscp,
}

/// DSCP by stream kind, 0..=63; `None` leaves the socket's default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dscp {
    pub audio: Option<u8>,
    pub video: Option<u8>,
    pub other: Option<u8>,
}

impl Default for Dscp {
    /// EF for audio and AF41 for video (RFC 4594), nothing for the rest.
    fn default() -> Self {
        Dscp { audio: Some(46), video: Some(34), other: None }
    }
}

impl Dscp {
    /// The code point of a stream.
    pub fn of(&self, kind: StreamKind) -> Option<u8> {
        match kind {
            StreamKind::Audio => self.audio,
            StreamKind::Video => self.video,
            StreamKind::Image | StreamKind::Application => self.other,
        }
    }
}

/// How an unknown source becomes the latched one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learning {
    /// Packets of one source and one SSRC, with advancing sequence numbers, that make it
    /// consistent.
    pub packets: u8,
    /// With `Latch::Auto`: how long a consistent source waits for the signalled one.
    pub grace: Duration,
    /// With `Latch::Auto`: how long after its first packet a learnt source still gives way to the
    /// signalled one. Afterwards the latch is closed until a new offer/answer.
    pub window: Duration,
}

impl Default for Learning {
    fn default() -> Self {
        Learning { packets: 3, grace: Duration::from_millis(200), window: Duration::from_secs(3) }
    }
}

/// Addresses that SDP may not send us to (see `policy.rs` for those that are always refused).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressPolicy {
    /// Lets loopback and our own addresses (outside our port ranges) be used. For tests and for
    /// media servers on the same host.
    pub allow_local: bool,
    /// Further prefixes that are refused.
    pub deny: Vec<(IpAddr, u8)>,
}

/// When streams move into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffloadConfig {
    /// How long a latch must be closed before its flow is offered to the kernel.
    pub settle: Duration,
    /// Keep RTCP in userspace, so that it is seen.
    pub rtcp_in_userspace: bool,
    /// Each flow's kernel counters are read once in this time.
    pub counters_every: Duration,
    /// A refused flow is asked for again after this time.
    pub retry_after: Duration,
}

impl Default for OffloadConfig {
    fn default() -> Self {
        OffloadConfig {
            settle: Duration::from_millis(300),
            rtcp_in_userspace: true,
            counters_every: Duration::from_secs(5),
            retry_after: Duration::from_secs(10),
        }
    }
}

/// Everything the anchor is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub interfaces: Vec<MediaInterface>,
    /// Relay threads; one per core.
    pub relay_threads: usize,
    /// Signalling shards that will ask for a [`crate::Handle`]; port ranges are sliced by it.
    pub shards: usize,
    pub max_sessions: usize,
    /// How long a released port pair is not given out again.
    pub quarantine: Duration,
    /// In a range that would be exhausted otherwise, pairs are given out again after this time
    /// already, and counted; at least 100 ms.
    pub quarantine_min: Duration,
    /// A relay thread that has served what was ready rests this long before it looks again: the
    /// added latency is between 0 and this, a lone packet has none. Zero never rests.
    pub coalesce: Duration,
    pub learning: Learning,
    pub policy: AddressPolicy,
    pub offload: OffloadConfig,
    /// Bind addresses that this machine does not hold yet: floating ones of a standby.
    pub free_bind: bool,
    /// Seed of the port order; a random one outside tests.
    pub seed: u64,
}

impl Config {
    /// Defaults for `interfaces`: one relay thread, one shard, 50,000 sessions.
    pub fn new(interfaces: Vec<MediaInterface>) -> Self {
        Config {
            interfaces,
            relay_threads: 1,
            shards: 1,
            max_sessions: 50_000,
            quarantine: Duration::from_secs(10),
            quarantine_min: Duration::from_secs(1),
            coalesce: Duration::from_millis(2),
            learning: Learning::default(),
            policy: AddressPolicy::default(),
            offload: OffloadConfig::default(),
            free_bind: false,
            seed: 0,
        }
    }
}
