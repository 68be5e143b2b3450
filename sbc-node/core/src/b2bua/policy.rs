//! How calls behave on a node whatever their trunk; what a trunk says is in `routing`.

use std::time::Duration;

/// Settings of all calls of a node.
#[derive(Clone, Debug)]
pub struct CallPolicy {
    /// Calls one shard holds at most; beyond it INVITEs get 503 with Retry-After.
    pub max_calls: usize,
    /// Requests outside dialogs (MESSAGE, OPTIONS, …) that one shard forwards at a time.
    pub max_relays: usize,
    /// Subscriptions outside calls (SUBSCRIBE, REFER) that one shard holds; beyond it 503.
    pub max_subscriptions: usize,
    /// Seconds of Retry-After in our 503.
    pub retry_after_s: u32,
    /// A call may last this long; `None` for no limit. A trunk may ask for less.
    pub max_duration: Option<Duration>,
    /// No final answer in this time after a provisional one (timer C, RFC 3261 §16.6) where the
    /// trunk has no ring timeout of its own.
    pub ring_timeout: Duration,
    /// Both directions silent for this long end the call; `None` switches it off.
    pub media_timeout: Option<Duration>,
    /// Whether media is anchored at all; without it SDP passes untouched.
    pub anchor_media: bool,
    /// How long a 2xx may wait for its dialog to be committed; `None` does not write calls at all.
    pub commit_wait: Option<Duration>,
    /// Whether calls that are being set up are written as well; nothing waits for that.
    pub early_records: bool,
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
            max_subscriptions: 50_000,
            retry_after_s: 10,
            max_duration: None,
            ring_timeout: Duration::from_secs(180),
            media_timeout: Some(Duration::from_secs(300)),
            anchor_media: true,
            commit_wait: Some(Duration::from_millis(500)),
            early_records: false,
            adopt_cseq_step: 1000,
            max_attempts: 8,
            max_forks: 12,
            max_exchanges: 16,
        }
    }
}
