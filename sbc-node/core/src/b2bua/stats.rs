//! Counters of one shard's calls. Plain numbers: the edge reads them and makes metrics.

use crate::sip::Defect;

/// Monotonic counters since the shard started, and two gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Calls in the table now (gauge), whatever their phase.
    pub calls: u64,
    /// Calls answered and not ended (gauge).
    pub calls_up: u64,
    /// INVITEs that became a call.
    pub attempts: u64,
    pub answered: u64,
    /// INVITEs refused before a call existed.
    pub refused: u64,
    /// Calls that ended after they were answered.
    pub completed: u64,
    /// Calls that never were answered.
    pub failed: u64,
    /// Targets given up for the next one.
    pub failovers: u64,
    /// 2xx relayed although their dialog was not committed in time.
    pub unprotected: u64,
    /// Calls in the making that were too large to be written for another node.
    pub early_too_large: u64,
    pub media_timeouts: u64,
    /// Calls to the anchor that failed where nobody could be told.
    pub media_errors: u64,
    pub session_timeouts: u64,
    pub no_ack: u64,
    /// 2xx of forks that lost, or of calls that were gone.
    pub stray_answers: u64,
    /// Subscriptions outside calls (gauge).
    pub subscriptions: u64,
    /// Requests outside dialogs that were routed on.
    pub relayed: u64,
    /// Requests for dialogs that we do not know (481).
    pub unknown_dialogs: u64,
    /// Messages that could not be read, answered (400 and the like) or dropped, in the order of
    /// [`Defect::ALL`].
    pub malformed: [u64; Defect::ALL.len()],
    /// Requests of phones refused because who knows their users did not answer.
    pub unasked: u64,
    /// STUN responses to no keepalive of ours, or from elsewhere than it went.
    pub stray_stun: u64,
    /// Messages dropped unanswered.
    pub dropped: u64,
    /// Responses of ours for transactions that were gone.
    pub late_responses: u64,
    /// Challenges within dialogs that came from elsewhere than the trunk: no credentials were given.
    pub credentials_withheld: u64,
    /// Calls taken over from other nodes.
    pub adopted: u64,
    /// Records that could not be taken over: their trunk or interface is not configured here.
    pub adopt_failed: u64,
    /// Legs of calls taken over that accepted our addresses by re-INVITE, and final responses that
    /// refused them (the re-INVITE is sent again while the call lives).
    pub legs_moved: u64,
    pub move_refusals: u64,
    /// Legs that lost their connection and go by another.
    pub legs_rebound: u64,
}

impl Stats {
    pub(crate) fn malformed(&mut self, defect: Defect) {
        if let Some(count) = self.malformed.get_mut(defect as usize) {
            *count += 1;
        }
    }
}
