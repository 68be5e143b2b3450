//! Admission: concurrent calls and new calls per second, for trunk, group and node.
//!
//! A [`Gate`] is a pair of atomics shared by all shards, so that a limit is exact for the node. A
//! [`Permit`] counts a call in its gates until it is dropped; it cannot leak or count twice.
//! Emergency calls are counted but never refused. In a cluster a gate is given this node's share of
//! its limits; how shares are agreed upon never lives here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use smallvec::SmallVec;

use super::trunk::TrunkState;
use super::{Reject, RejectCause};

/// Limits of one gate; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CallLimits {
    /// Calls up or in set-up at the same time.
    pub max_calls: Option<u32>,
    /// New calls per second; a token bucket that holds one second's worth.
    pub max_cps: Option<f64>,
}

/// Counts calls and their rate. The rate is a GCRA (a token bucket written as one number): the
/// time at which the bucket would be full again, in nanoseconds since the table's epoch.
#[derive(Debug)]
pub(super) struct Gate {
    calls: AtomicU32,
    full_at_ns: AtomicU64,
    /// New calls asked for since the start, admitted or not.
    asked: AtomicU64,
    /// This node's shares of the limits: calls, and thousandths of calls per second.
    share_calls: AtomicU32,
    share_mcps: AtomicU32,
}

impl Default for Gate {
    fn default() -> Self {
        Gate {
            calls: AtomicU32::new(0),
            full_at_ns: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            share_calls: AtomicU32::new(u32::MAX),
            share_mcps: AtomicU32::new(u32::MAX),
        }
    }
}

/// What this node may use of a limit that the whole cluster shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub calls: u32,
    /// Thousandths of calls per second.
    pub mcps: u32,
}

/// How much of a limit is used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    pub calls: u32,
    /// New calls asked for since the start, admitted or not.
    pub asked: u64,
}

const SECOND_NS: f64 = 1e9;

impl Gate {
    pub(super) fn calls(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }

    pub(super) fn used(&self) -> Use {
        Use { calls: self.calls(), asked: self.asked.load(Ordering::Relaxed) }
    }

    /// `None` where no other node shares the limits.
    pub(super) fn share(&self) -> Option<Share> {
        let calls = self.share_calls.load(Ordering::Relaxed);
        let mcps = self.share_mcps.load(Ordering::Relaxed);
        (calls != u32::MAX || mcps != u32::MAX).then_some(Share { calls, mcps })
    }

    pub(super) fn set_share(&self, share: Share) {
        self.share_calls.store(share.calls, Ordering::Relaxed);
        self.share_mcps.store(share.mcps, Ordering::Relaxed);
    }

    /// The limits as they hold on this node.
    fn shared(&self, limits: &CallLimits) -> CallLimits {
        let share = self.share_calls.load(Ordering::Relaxed);
        let cps = f64::from(self.share_mcps.load(Ordering::Relaxed)) / 1_000.0;
        CallLimits {
            max_calls: limits.max_calls.map(|max| max.min(share)),
            max_cps: limits.max_cps.map(|max| max.min(cps)),
        }
    }

    /// Whether a call would be admitted now; takes nothing.
    pub(super) fn has_room(&self, limits: &CallLimits, now_ns: u64) -> bool {
        let limits = self.shared(limits);
        let room = limits.max_calls.is_none_or(|max| self.calls() < max)
            && limits.max_cps.is_none_or(|cps| {
                next_full_at(self.full_at_ns.load(Ordering::Relaxed), cps, now_ns).is_some()
            });
        if !room {
            // Nobody is sent here, and yet somebody wanted in: the share is to grow.
            self.asked.fetch_add(1, Ordering::Relaxed);
        }
        room
    }

    /// Counts a call in, or says which limit is against it. `force` counts it in any case.
    fn enter(&self, limits: &CallLimits, now_ns: u64, force: bool) -> Result<(), RejectCause> {
        let limits = self.shared(limits);
        self.asked.fetch_add(1, Ordering::Relaxed);
        let max = if force { None } else { limits.max_calls };
        self.calls
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                if max.is_some_and(|max| n >= max) { None } else { n.checked_add(1) }
            })
            .map_err(|_| RejectCause::MaxCalls)?;
        if let (Some(cps), false) = (limits.max_cps, force) {
            let taken = self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| {
                next_full_at(at, cps, now_ns)
            });
            if taken.is_err() {
                self.leave();
                return Err(RejectCause::MaxCps);
            }
        }
        Ok(())
    }

    fn leave(&self) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The bucket after taking one token at `now_ns`; `None` when there is none. The bucket holds one
/// second's worth, and at least one call.
fn next_full_at(full_at_ns: u64, cps: f64, now_ns: u64) -> Option<u64> {
    if cps <= 0.0 {
        return None;
    }
    let per_call = ns(SECOND_NS / cps);
    let depth = ns((SECOND_NS / cps) * cps.max(1.0));
    let next = full_at_ns.max(now_ns).saturating_add(per_call);
    if next - now_ns > depth { None } else { Some(next) }
}

#[expect(clippy::cast_possible_truncation, reason = "saturates; a positive number of nanoseconds")]
#[expect(clippy::cast_sign_loss, reason = "saturates at zero")]
fn ns(value: f64) -> u64 {
    value as u64
}

/// What a permit can count in.
#[derive(Clone, Debug)]
pub(super) enum Counted {
    Trunk(Arc<TrunkState>),
    Group(Arc<Gate>),
    Node(Arc<Gate>),
    /// A user, or the numbers of a limit.
    Caller(Arc<Gate>),
}

impl Counted {
    fn gate(&self) -> &Gate {
        match self {
            Counted::Trunk(state) => &state.gate,
            Counted::Group(gate) | Counted::Node(gate) | Counted::Caller(gate) => gate,
        }
    }
}

/// Counts one call in its gates until dropped.
#[must_use = "dropping a permit gives its place away"]
#[derive(Debug)]
pub struct Permit {
    held: SmallVec<[Counted; 2]>,
}

impl Permit {
    /// Enters both gates or neither.
    pub(super) fn acquire(
        gates: [(Counted, CallLimits); 2],
        now_ns: u64,
        force: bool,
    ) -> Result<Permit, Reject> {
        let mut permit = Permit::none();
        for gate in gates {
            // An early return drops `permit`, which leaves the gates entered so far.
            permit.enter(gate, now_ns, force).map_err(Reject::limit)?;
        }
        Ok(permit)
    }

    /// Counts nowhere yet.
    pub(super) fn none() -> Permit {
        Permit { held: SmallVec::new() }
    }

    /// Holds what another one holds as well.
    pub(crate) fn join(&mut self, mut other: Permit) {
        self.held.append(&mut other.held);
    }

    /// Enters one more gate, or says which of its limits is against it.
    pub(super) fn enter(
        &mut self,
        (counted, limits): (Counted, CallLimits),
        now_ns: u64,
        force: bool,
    ) -> Result<(), RejectCause> {
        counted.gate().enter(&limits, now_ns, force)?;
        self.held.push(counted);
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        for counted in &self.held {
            counted.gate().leave();
        }
    }
}

impl Reject {
    fn limit(cause: RejectCause) -> Reject {
        Reject {
            status: 503,
            reason: if cause == RejectCause::MaxCps {
                "Call Rate Exceeded"
            } else {
                "Too Many Calls"
            },
            // A rate limit is open again within a second; nobody knows when a call ends.
            retry_after_s: (cause == RejectCause::MaxCps).then_some(1),
            silent: false,
            cause,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permit(gate: &Arc<Gate>, limits: CallLimits, now_ns: u64) -> Result<Permit, Reject> {
        let other = (Counted::Node(Arc::default()), CallLimits::default());
        Permit::acquire([(Counted::Group(gate.clone()), limits), other], now_ns, false)
    }

    #[test]
    fn a_permit_counts_until_it_is_dropped() {
        let gate = Arc::new(Gate::default());
        let limits = CallLimits { max_calls: Some(2), max_cps: None };
        let a = permit(&gate, limits, 0).unwrap();
        let _b = permit(&gate, limits, 0).unwrap();
        let full = permit(&gate, limits, 0).unwrap_err();
        assert_eq!((full.status, full.cause), (503, RejectCause::MaxCalls));
        drop(a);
        assert_eq!(gate.calls(), 1);
        let _c = permit(&gate, limits, 0).unwrap();
        assert_eq!(gate.calls(), 2);
    }

    #[test]
    fn the_rate_allows_a_second_of_burst_and_then_the_rate() {
        let gate = Arc::new(Gate::default());
        let limits = CallLimits { max_calls: None, max_cps: Some(10.0) };
        let admitted = |now_ns| permit(&gate, limits, now_ns).is_ok();
        assert_eq!((0..20).filter(|_| admitted(0)).count(), 10);
        assert!(!admitted(99_999_999));
        assert!(admitted(100_000_000));
        assert!(!admitted(100_000_001));
        assert_eq!((0..20).filter(|_| admitted(5_000_000_000)).count(), 10);
        assert_eq!(gate.calls(), 0);
    }

    #[test]
    fn a_share_holds_in_place_of_a_limit_and_makes_none() {
        let gate = Arc::new(Gate::default());
        let limits = CallLimits { max_calls: Some(5), max_cps: Some(10.0) };
        gate.set_share(Share { calls: 1, mcps: 2_000 });
        let _one = permit(&gate, limits, 0).unwrap();
        assert_eq!(permit(&gate, limits, 0).unwrap_err().cause, RejectCause::MaxCalls);
        gate.set_share(Share { calls: 9, mcps: 2_000 });
        let _two = permit(&gate, limits, 0).unwrap();
        assert_eq!(permit(&gate, limits, 0).unwrap_err().cause, RejectCause::MaxCps);
        let unlimited: Vec<_> =
            (0..20).map(|_| permit(&gate, CallLimits::default(), 0).unwrap()).collect();
        assert_eq!(gate.used(), Use { calls: 22, asked: 24 });
        assert_eq!(unlimited.len(), 20);
    }

    #[test]
    fn a_rate_below_one_per_second_admits_single_calls() {
        let gate = Arc::new(Gate::default());
        let limits = CallLimits { max_calls: None, max_cps: Some(0.5) };
        assert!(permit(&gate, limits, 0).is_ok());
        assert!(permit(&gate, limits, 1_999_000_000).is_err());
        assert!(permit(&gate, limits, 2_000_000_000).is_ok());
    }

    #[test]
    fn a_refusal_by_the_second_gate_leaves_the_first() {
        let (first, second) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
        let none = CallLimits { max_calls: Some(0), max_cps: None };
        let gates = |force| {
            let gates = [
                (Counted::Group(first.clone()), CallLimits::default()),
                (Counted::Node(second.clone()), none),
            ];
            Permit::acquire(gates, 0, force)
        };
        assert_eq!(gates(false).unwrap_err().cause, RejectCause::MaxCalls);
        assert_eq!((first.calls(), second.calls()), (0, 0));
        let emergency = gates(true).unwrap();
        assert_eq!((first.calls(), second.calls()), (1, 1));
        drop(emergency);
        assert_eq!((first.calls(), second.calls()), (0, 0));
    }
}
