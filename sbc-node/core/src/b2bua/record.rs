//! What is written to the replicated state about a call: plain data, enough for another node to
//! carry on both legs.
//!
//! No behaviour and no encoding: the edge turns records into whatever the cluster stores.
//! Names (interface, trunk) are used instead of indexes, because indexes are local to a node.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use bytes::Bytes;

use crate::media::{Remote, StreamKind};
use crate::net::Transport;

/// Names a call in the whole cluster: random, minted by the node that took the INVITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for CallId {
    type Err = std::num::ParseIntError;

    /// Reads what `Display` wrote: hexadecimal digits.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(s, 16).map(CallId)
    }
}

/// A call as it is replicated: answered, or with [`CallRecord::early`] being set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallRecord {
    pub id: CallId,
    /// The shard hash that Call-IDs, tags and branches of this call carry.
    pub shard_hash: u32,
    pub a: LegRecord,
    pub b: LegRecord,
    /// Set while the call has no final response: then leg B is the dialog to be of the first
    /// attempt, and what is said of the answer says nothing.
    pub early: Option<Box<EarlyRecord>>,
    /// One entry per `m=` line, in order; empty for a call without media.
    pub streams: Vec<StreamRecord>,
    /// Unix time of the INVITE and of the 2xx, milliseconds.
    pub started_ms: u64,
    pub answered_ms: u64,
    /// When the call must end by the duration limit, Unix milliseconds.
    pub ends_by_ms: Option<u64>,
    /// Request-URI of the INVITE as the caller sent it, for the CDR.
    pub dialled: String,
    /// How to say the 2xx to the caller again; only in the first record of a call.
    pub answer: Option<AnswerRecord>,
    /// Counts the writes of this call; a higher one replaces a lower one.
    pub revision: u32,
}

/// The 2xx to the caller's INVITE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerRecord {
    /// Its bytes up to the description, which is the leg's `sdp_local`.
    pub head: Bytes,
    /// Where the INVITE came from, by UDP.
    pub source: SocketAddr,
    /// Its CSeq.
    pub seq: u32,
}

/// What a call that is being set up has beyond its legs and media.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlyRecord {
    /// The caller's INVITE as it came, by which transport, to which address of ours and from where.
    pub invite: Bytes,
    pub transport: Transport,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// The last provisional response that the caller got; empty if none.
    pub provisional: Bytes,
    /// Last RSeq given out towards the caller, and whether `provisional` waits for its PRACK.
    pub rseq: u32,
    pub unacknowledged: bool,
    /// The first 18x relayed to the caller, Unix milliseconds.
    pub ringing_ms: Option<u64>,
    /// Targets that failed before this one.
    pub failed: Vec<FailedRecord>,
    /// Where the target is being tried: at one place, or at several contacts of a user.
    pub attempts: Vec<AttemptRecord>,
}

/// One place being tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRecord {
    /// The dialog to be.
    pub leg: LegRecord,
    /// Our INVITE as it was sent: its branch, CSeq and offer.
    pub request: Bytes,
    /// A provisional response came.
    pub proceeding: bool,
    /// How many challenges were answered.
    pub challenges: u8,
    /// The session interval that the peer insists on, seconds.
    pub min_se: Option<u32>,
    /// Early dialogs, in the order of their making.
    pub forks: Vec<ForkRecord>,
}

/// A target that was tried and failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedRecord {
    pub trunk: String,
    pub peer: Option<SocketAddr>,
    pub status: u16,
}

/// One early dialog of leg B, and the tag by which the caller knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkRecord {
    /// Names it among the forks of the call.
    pub number: u8,
    pub a_tag: String,
    pub leg: LegRecord,
    /// Last RSeq taken from this fork (RFC 3262).
    pub rseq: Option<u32>,
    /// RSeq towards the caller and that of the fork which it stands for.
    pub reliable: Option<(u32, u32)>,
    /// The caller got a description from this fork.
    pub described: bool,
}

/// One leg: a confirmed dialog (RFC 3261 §12) and the way to its peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegRecord {
    pub trunk: String,
    pub interface: String,
    pub call_id: String,
    pub local_tag: String,
    pub remote_tag: String,
    /// From/To value that we write for ourselves and for the peer, without tag.
    pub local: String,
    pub remote: String,
    pub local_seq: u32,
    pub remote_seq: u32,
    /// Remote target (the peer's Contact URI).
    pub target: String,
    /// Route set in the order of use.
    pub routes: Vec<String>,
    /// A dialog of `sips:` URIs.
    pub secure: bool,
    pub transport: Transport,
    /// Where requests of this leg went last; `None` if it was never resolved.
    pub next_hop: Option<SocketAddr>,
    /// Requests went by a connection that the peer had opened from there.
    pub connection: bool,
    /// Bit sets of `sip::Method` and option tags that the peer announced.
    pub allow: u32,
    pub supported: u32,
    pub session_timer: Option<SessionTimerRecord>,
    /// Session id and version of our `o=` on this leg (RFC 4566 §5.2).
    pub sdp_session: u64,
    pub sdp_version: u64,
    /// The last description that we sent and received on this leg.
    pub sdp_local: Option<Bytes>,
    pub sdp_remote: Option<Bytes>,
}

/// A negotiated session timer (RFC 4028).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTimerRecord {
    pub expires_s: u32,
    /// True when we refresh, false when the peer does.
    pub we_refresh: bool,
}

/// One `m=` line of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRecord {
    pub kind: StreamKind,
    pub a: StreamSideRecord,
    pub b: StreamSideRecord,
}

/// One side of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamSideRecord {
    /// The ports that the peer was told (advertised), if the side is bound.
    pub local: Option<crate::media::Local>,
    /// Media interface of that side, by name, and its family.
    pub interface: String,
    pub ipv6: bool,
    pub remote: Option<Remote>,
    pub latched: Option<SocketAddr>,
}
