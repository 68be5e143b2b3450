//! Up or down, per peer: consecutive probe results against thresholds, and back-off on request.
//!
//! ```text
//!              down_after failures                 up_after successes
//!   Unknown ───────────────────────▶ Down ─────────────────────────────▶ Up
//!      │                              ▲                                   │
//!      └── first success ──▶ Up       └───────── down_after failures ─────┘
//! ```
//!
//! Who probes, and how, never lives here: results are told.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// How a peer is probed with OPTIONS (RFC 3261 §11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbePolicy {
    pub interval: Duration,
    /// No answer within this counts as a failure.
    pub timeout: Duration,
    /// Successes in a row that bring a peer up again.
    pub up_after: u32,
    /// Failures in a row that take it down.
    pub down_after: u32,
}

impl Default for ProbePolicy {
    fn default() -> ProbePolicy {
        ProbePolicy {
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(2),
            up_after: 2,
            down_after: 3,
        }
    }
}

/// What is known of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerHealth {
    /// Never probed, or too few results yet; calls are sent.
    Unknown,
    Up,
    Down,
}

/// A change worth an alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthChange {
    WentUp,
    WentDown,
}

/// The state of one peer, shared by all shards. Reading is one atomic load; the lock is taken only
/// by probe results and by selection of a peer that asked for back-off.
#[derive(Debug)]
pub struct Health {
    state: AtomicU8,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Results in a row that speak against the current state.
    streak: u32,
    hold_until: Option<Instant>,
}

const UNKNOWN: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;
/// Bit set while `hold_until` may be in the future.
const HELD: u8 = 4;

impl Default for Health {
    fn default() -> Health {
        Health { state: AtomicU8::new(UNKNOWN), inner: Mutex::new(Inner::default()) }
    }
}

impl Health {
    pub fn state(&self) -> PeerHealth {
        match self.state.load(Ordering::Relaxed) & !HELD {
            UP => PeerHealth::Up,
            DOWN => PeerHealth::Down,
            _ => PeerHealth::Unknown,
        }
    }

    /// Whether a new call may be sent now.
    pub fn is_usable(&self, now: Instant) -> bool {
        let bits = self.state.load(Ordering::Relaxed);
        if bits & !HELD == DOWN {
            return false;
        }
        bits & HELD == 0 || self.hold_is_over(now)
    }

    /// Tells the outcome of one probe.
    pub fn probed(&self, policy: &ProbePolicy, ok: bool) -> Option<HealthChange> {
        let mut inner = self.lock();
        let (next, need, change) = match (self.state(), ok) {
            (PeerHealth::Up, true) | (PeerHealth::Down, false) => {
                inner.streak = 0;
                return None;
            }
            (PeerHealth::Unknown, true) => (UP, 1, HealthChange::WentUp),
            (PeerHealth::Down, true) => (UP, policy.up_after, HealthChange::WentUp),
            (PeerHealth::Unknown | PeerHealth::Up, false) => {
                (DOWN, policy.down_after, HealthChange::WentDown)
            }
        };
        inner.streak += 1;
        if inner.streak < need {
            return None;
        }
        inner.streak = 0;
        let held = self.state.load(Ordering::Relaxed) & HELD;
        self.state.store(next | held, Ordering::Relaxed);
        Some(change)
    }

    /// The peer asked to be left alone (503 with Retry-After, RFC 3261 §21.5.4): no new calls
    /// before `until`.
    pub fn hold(&self, until: Instant) {
        self.lock().hold_until = Some(until);
        self.state.fetch_or(HELD, Ordering::Relaxed);
    }

    fn hold_is_over(&self, now: Instant) -> bool {
        let mut inner = self.lock();
        if inner.hold_until.is_some_and(|until| now < until) {
            return false;
        }
        inner.hold_until = None;
        self.state.fetch_and(!HELD, Ordering::Relaxed);
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic cannot happen while the lock is held; a poisoned lock still has valid data.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_results_in_a_row() {
        let p = ProbePolicy { up_after: 2, down_after: 3, ..ProbePolicy::default() };
        let h = Health::default();
        assert_eq!(h.state(), PeerHealth::Unknown);
        assert_eq!(h.probed(&p, true), Some(HealthChange::WentUp));
        assert_eq!(h.probed(&p, false), None);
        assert_eq!(h.probed(&p, false), None);
        assert_eq!(h.probed(&p, true), None);
        assert_eq!(h.probed(&p, false), None);
        assert_eq!(h.probed(&p, false), None);
        assert_eq!(h.state(), PeerHealth::Up);
        assert_eq!(h.probed(&p, false), Some(HealthChange::WentDown));
        assert_eq!(h.probed(&p, true), None);
        assert_eq!(h.probed(&p, false), None);
        assert_eq!(h.probed(&p, true), None);
        assert_eq!(h.probed(&p, true), Some(HealthChange::WentUp));
        assert_eq!(h.state(), PeerHealth::Up);
    }

    #[test]
    fn a_peer_never_seen_goes_down_by_the_threshold() {
        let p = ProbePolicy::default();
        let h = Health::default();
        assert_eq!(h.probed(&p, false), None);
        assert_eq!(h.probed(&p, false), None);
        assert_eq!(h.probed(&p, false), Some(HealthChange::WentDown));
        assert!(!h.is_usable(Instant::now()));
    }

    #[test]
    fn retry_after_holds_a_peer_that_is_up() {
        let h = Health::default();
        let t0 = Instant::now();
        h.hold(t0 + Duration::from_secs(5));
        assert!(!h.is_usable(t0));
        assert_eq!(h.probed(&ProbePolicy::default(), true), Some(HealthChange::WentUp));
        assert!(!h.is_usable(t0 + Duration::from_secs(4)));
        assert!(h.is_usable(t0 + Duration::from_secs(5)));
        assert!(h.is_usable(t0));
    }
}
