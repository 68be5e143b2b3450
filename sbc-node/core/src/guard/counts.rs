//! What the guard dropped and refused, by reason: atomics that every shard counts in.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{BanReason, Finding, Reason, Severity, Verdict};

/// Every reason, in the order of its counters.
const REASONS: [Reason; 11] = [
    Reason::Banned(BanReason::Flood),
    Reason::Banned(BanReason::Scanner),
    Reason::Banned(BanReason::Dictionary),
    Reason::Banned(BanReason::Fraud),
    Reason::Banned(BanReason::Manual),
    Reason::Access,
    Reason::Flood,
    Reason::Scanner,
    Reason::RateLimit,
    Reason::Overload,
    Reason::Handshake,
];

impl Reason {
    /// A stable word for labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Banned(BanReason::Flood) => "ban-flood",
            Reason::Banned(BanReason::Scanner) => "ban-scanner",
            Reason::Banned(BanReason::Dictionary) => "ban-dictionary",
            Reason::Banned(BanReason::Fraud) => "ban-fraud",
            Reason::Banned(BanReason::Manual) => "ban-manual",
            Reason::Access => "access",
            Reason::Flood => "flood",
            Reason::Scanner => "scanner",
            Reason::RateLimit => "rate-limit",
            Reason::Overload => "overload",
            Reason::Handshake => "handshake",
        }
    }

    fn index(self) -> usize {
        REASONS.iter().position(|r| *r == self).unwrap_or(0)
    }
}

/// Counters of one guard.
#[derive(Debug, Default)]
pub struct Counts {
    dropped: [AtomicU64; REASONS.len()],
    refused: [AtomicU64; REASONS.len()],
    blocked: AtomicU64,
    /// Findings of the fraud profiles: warnings, critical ones, calls refused.
    fraud: [AtomicU64; 3],
}

impl Counts {
    pub(super) fn count(&self, verdict: &Verdict) {
        let cell = match verdict {
            Verdict::Pass => return,
            Verdict::Drop(reason) => self.dropped.get(reason.index()),
            Verdict::Reject { reason, .. } => self.refused.get(reason.index()),
        };
        if let Some(cell) = cell {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn blocked(&self) {
        self.blocked.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn found(&self, finding: &Finding) {
        let [warning, critical, refused] = &self.fraud;
        let cell = if finding.severity == Severity::Critical { critical } else { warning };
        cell.fetch_add(1, Ordering::Relaxed);
        refused.fetch_add(u64::from(finding.block), Ordering::Relaxed);
    }

    /// Findings of the fraud profiles: warnings, critical ones, calls refused.
    pub fn fraud(&self) -> [u64; 3] {
        self.fraud.each_ref().map(|cell| cell.load(Ordering::Relaxed))
    }

    /// Sources that pike blocked.
    pub fn blocks(&self) -> u64 {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Packets and requests dropped, by reason.
    pub fn dropped(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        each(&self.dropped)
    }

    /// Requests answered with a refusal, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        each(&self.refused)
    }
}

fn each(cells: &[AtomicU64; REASONS.len()]) -> impl Iterator<Item = (Reason, u64)> + '_ {
    REASONS.iter().zip(cells).map(|(reason, cell)| (*reason, cell.load(Ordering::Relaxed)))
}
