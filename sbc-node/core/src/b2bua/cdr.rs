//! Call detail records: what is said about one call attempt when it is over.
//!
//! The record's shape lives here; how it is written (JSON lines, rotation) belongs to the edge.

use std::net::SocketAddr;
use std::sync::Arc;

use super::record::CallId;
use crate::media::StreamStats;

/// Who ended the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// The side that sent the INVITE (BYE or CANCEL).
    Caller,
    /// The side that was called (BYE or a final failure).
    Callee,
    /// The SBC, for the reason given.
    Sbc(EndCause),
}

/// Why the SBC ended or refused a call by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndCause {
    /// Refused before any target was tried (routing, limits, bad request).
    Refused,
    /// The 2xx was never ACKed (64·T1).
    NoAck,
    /// Session timer ran out (RFC 4028 §10).
    SessionExpired,
    /// Both directions of the media were silent.
    MediaTimeout,
    /// The call duration limit.
    DurationLimit,
    /// A request inside the dialog got 481, 408 or no answer: that side is dead.
    PeerGone,
    /// `sbcctl calls hangup` or its API.
    Operator,
    /// The node is shutting down and its drain time is over.
    Shutdown,
    /// The caller was not answered in time.
    SetupTimeout,
    /// An offer/answer that cannot be carried on.
    Media,
    /// The process ended without a word while the call was up; told by the next one.
    Crash,
}

impl EndCause {
    /// A stable word for logs, CDRs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            EndCause::Refused => "refused",
            EndCause::NoAck => "no-ack",
            EndCause::SessionExpired => "session-expired",
            EndCause::MediaTimeout => "media-timeout",
            EndCause::DurationLimit => "duration-limit",
            EndCause::PeerGone => "peer-gone",
            EndCause::Operator => "operator",
            EndCause::Shutdown => "shutdown",
            EndCause::SetupTimeout => "setup-timeout",
            EndCause::Media => "media",
            EndCause::Crash => "crash",
        }
    }
}

/// One leg as a CDR shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CdrLeg {
    pub trunk: Arc<str>,
    pub call_id: String,
    pub local_tag: String,
    pub remote_tag: String,
    pub peer: Option<SocketAddr>,
}

impl CdrLeg {
    pub(crate) fn of(leg: &super::call::Leg) -> Self {
        CdrLeg {
            trunk: leg.trunk.config.name.clone(),
            call_id: str::to_owned(&leg.dialog.call_id),
            local_tag: str::to_owned(&leg.dialog.local_tag),
            remote_tag: str::to_owned(&leg.dialog.remote_tag),
            peer: Some(leg.hop.target.addr),
        }
    }
}

/// One target that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CdrAttempt {
    pub trunk: Arc<str>,
    pub peer: Option<SocketAddr>,
    /// Final status of that target, 408 for a timeout, 503 for a transport error.
    pub status: u16,
}

/// What the replicated state has of a call: decides who tells its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Written {
    /// Nothing was written: this node alone knows the call.
    #[default]
    Never,
    /// A write was begun and not confirmed.
    Unsure,
    /// A record was committed: another node may have carried the call on.
    Committed,
}

/// One call attempt, from INVITE to its end. Times are Unix milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cdr {
    pub call: CallId,
    pub started_ms: u64,
    /// First 18x relayed to the caller.
    pub ringing_ms: Option<u64>,
    pub answered_ms: Option<u64>,
    pub ended_ms: u64,
    /// Request-URI, From and To as the caller sent them.
    pub dialled: String,
    pub from: String,
    pub to: String,
    pub a: CdrLeg,
    /// `None` when no target was ever tried.
    pub b: Option<CdrLeg>,
    pub attempts: Vec<CdrAttempt>,
    /// Final status given to the caller; 200 when answered.
    pub status: u16,
    /// Reason phrase of that status.
    pub reason: String,
    pub ended_by: EndedBy,
    /// `Reason` header value of the BYE or CANCEL that ended the call, if it had one.
    pub end_reason: Option<String>,
    /// Codec names of the last answer, per `m=` line.
    pub codecs: Vec<String>,
    pub media: Vec<StreamStats>,
    /// Whether the dialog was committed to the replicated state before its 2xx left.
    pub protected: bool,
    pub written: Written,
}
