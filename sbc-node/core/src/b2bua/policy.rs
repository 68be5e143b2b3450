//! What a trunk's calls are allowed to carry and how they behave: the settings of one leg.
//!
//! Plain values that the configuration converts into; decisions made with them live in the files
//! of the operation concerned (`hide.rs`, `answer.rs`, `failover.rs`, …).

use std::sync::Arc;
use std::time::Duration;

use crate::media::Latch;

/// Settings of one trunk as a leg of a call. `Default` is what a carrier trunk gets when its
/// configuration says nothing.
#[derive(Clone, Debug)]
pub struct LegPolicy {
    /// Whether the far end is in our trust domain (RFC 3325 §2.3): its P-Asserted-Identity is
    /// believed, and ours is told to it even when privacy is asked for.
    pub trusted: bool,
    /// Header names that pass beside the built-in ones; a trailing `*` matches any rest.
    pub pass_headers: Vec<Box<str>>,
    /// Header names that never pass, stronger than `pass_headers` and the built-in ones.
    pub drop_headers: Vec<Box<str>>,
    /// Host of the From (and identity) URIs that we write towards this trunk; our advertised host
    /// when `None`.
    pub from_host: Option<Arc<str>>,
    /// Host of the Request-URI and To that we write towards this trunk; the target's when `None`.
    pub to_host: Option<Arc<str>>,
    /// How this side's media source is found.
    pub latch: Latch,
    /// Requests inside a dialog go to where its last request came from, not to its Contact.
    pub symmetric_signalling: bool,
    /// Whether this side's media uses IPv6; follows its SDP (callers) or the signalling address
    /// (callees) when `None`.
    pub media_ipv6: Option<bool>,
    pub codecs: CodecPolicy,
    /// Answers 401/407 challenges of this trunk.
    pub credentials: Option<Credentials>,
    /// Final responses of this trunk that move the call to the next target (beside timeouts,
    /// transport errors and 503).
    pub failover_on: Vec<u16>,
    /// Whether REFER from this trunk is passed on; 403 otherwise.
    pub refer: bool,
    /// Offer `100rel` towards this trunk.
    pub rel100: bool,
    pub session_timer: SessionTimerPolicy,
    /// No 1xx in this time after the INVITE: next target. Timer B's 32 s when `None`.
    pub progress_timeout: Option<Duration>,
    /// No final response in this time after the first 18x: CANCEL and next target (timer C).
    pub answer_timeout: Duration,
}

impl Default for LegPolicy {
    fn default() -> Self {
        LegPolicy {
            trusted: false,
            pass_headers: Vec::new(),
            drop_headers: Vec::new(),
            from_host: None,
            to_host: None,
            latch: Latch::Auto,
            symmetric_signalling: false,
            media_ipv6: None,
            codecs: CodecPolicy::default(),
            credentials: None,
            failover_on: Vec::new(),
            refer: true,
            rel100: true,
            session_timer: SessionTimerPolicy::default(),
            progress_timeout: None,
            answer_timeout: Duration::from_secs(180),
        }
    }
}

/// Session timers towards a trunk (RFC 4028).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTimerPolicy {
    /// Whether sessions are refreshed at all.
    pub enabled: bool,
    /// Session-Expires that we ask for, seconds.
    pub expires_s: u32,
    /// Smallest interval that we accept (Min-SE), seconds; RFC 4028 §5 wants at least 90.
    pub min_s: u32,
}

impl Default for SessionTimerPolicy {
    fn default() -> Self {
        SessionTimerPolicy { enabled: true, expires_s: 1800, min_s: 90 }
    }
}

/// Which codecs a trunk may be offered and in what order. Names are encoding names as in
/// `a=rtpmap` (RFC 8866 §6.6), compared without case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodecPolicy {
    /// Only these pass; all when empty.
    pub allow: Vec<Box<str>>,
    /// These never pass.
    pub deny: Vec<Box<str>>,
    /// These come first, in this order.
    pub prefer: Vec<Box<str>>,
}

impl CodecPolicy {
    /// Whether nothing would be changed by the policy.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty() && self.prefer.is_empty()
    }
}

/// User and password of a trunk. Only a challenge for `realm` (any realm when `None`) is
/// answered, so that no peer can make us sign for another.
#[derive(Clone)]
pub struct Credentials {
    pub user: Arc<str>,
    pub realm: Option<Arc<str>>,
    pub password: Arc<str>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .field("realm", &self.realm)
            .finish_non_exhaustive()
    }
}

/// Settings of all calls of a node.
#[derive(Clone, Debug)]
pub struct CallPolicy {
    /// Calls one shard holds at most; beyond it INVITEs get 503 with Retry-After.
    pub max_calls: usize,
    /// Requests outside dialogs (MESSAGE, OPTIONS, …) that one shard forwards at a time.
    pub max_relays: usize,
    /// Seconds of Retry-After in our 503.
    pub retry_after_s: u32,
    /// A call may last this long; `None` for no limit.
    pub max_duration: Option<Duration>,
    /// Both directions silent for this long end the call; `None` switches it off.
    pub media_timeout: Option<Duration>,
    /// Whether media is anchored at all; without it SDP passes untouched.
    pub anchor_media: bool,
    /// How long a 2xx may wait for its dialog to be committed; `None` does not write calls at all.
    pub commit_wait: Option<Duration>,
    /// How far CSeq jumps when a call is carried on by another node.
    pub adopt_cseq_step: u32,
    /// Targets tried for one call at most.
    pub max_attempts: usize,
    /// Early dialogs held per call at most; further forks are ignored until one answers.
    pub max_forks: usize,
    /// Requests inside one call in flight at most; beyond it they get 503.
    pub max_exchanges: usize,
}

impl Default for CallPolicy {
    fn default() -> Self {
        CallPolicy {
            max_calls: 100_000,
            max_relays: 20_000,
            retry_after_s: 10,
            max_duration: None,
            media_timeout: Some(Duration::from_secs(300)),
            anchor_media: true,
            commit_wait: Some(Duration::from_millis(500)),
            adopt_cseq_step: 1000,
            max_attempts: 8,
            max_forks: 12,
            max_exchanges: 16,
        }
    }
}
