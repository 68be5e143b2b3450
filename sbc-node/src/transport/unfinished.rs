//! Bytes of messages and handshakes that are not whole yet, on all connections of the node, and which
//! connection of a shard gives way when they are too many: the one that has taken longest.
//!
//! Asked once per read of a connection: an addition, and two entries of a queue per message that
//! comes in pieces.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use sbc_core::net::ConnId;

/// The sum over all shards of a node.
#[derive(Clone, Debug, Default)]
pub struct Total(Arc<AtomicUsize>);

impl Total {
    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// A connection held `before` bytes and holds `after` now.
    pub(super) fn change(&self, before: usize, after: usize) {
        if after >= before {
            self.0.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.0.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

/// The connections of a shard with something unfinished, in the order in which that began. Entries of
/// what was finished since are passed over.
#[derive(Debug, Default)]
pub(super) struct Waiting(VecDeque<(Instant, ConnId)>);

impl Waiting {
    pub(super) fn began(&mut self, at: Instant, conn: ConnId) {
        self.0.push_back((at, conn));
    }

    /// The connection that has been at it longest; `still` says since when a connection has had
    /// something unfinished, if it has.
    pub(super) fn slowest(&mut self, still: impl Fn(ConnId) -> Option<Instant>) -> Option<ConnId> {
        while let Some((at, conn)) = self.0.pop_front() {
            if still(conn) == Some(at) {
                return Some(conn);
            }
        }
        None
    }

    /// Takes out what is over, when that may be most of it: `live` is how many connections there
    /// are.
    pub(super) fn tidy(&mut self, live: usize, still: impl Fn(ConnId) -> Option<Instant>) {
        if self.0.len() > 2 * live + 64 {
            self.0.retain(|(at, conn)| still(*conn) == Some(*at));
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_slowest_gives_way_and_what_is_finished_is_passed_over() {
        let t0 = Instant::now();
        let at = |s| t0 + Duration::from_secs(s);
        let mut waiting = Waiting::default();
        for n in 1..=4 {
            waiting.began(at(n), ConnId(n));
        }
        // The first has finished; the second has finished and begun anew.
        waiting.began(at(9), ConnId(2));
        let still = |conn: ConnId| match conn.0 {
            1 => None,
            2 => Some(at(9)),
            n => Some(at(n)),
        };
        assert_eq!(waiting.slowest(still), Some(ConnId(3)));
        assert_eq!(waiting.slowest(still), Some(ConnId(4)));
        assert_eq!(waiting.slowest(still), Some(ConnId(2)));
        assert_eq!(waiting.slowest(still), None);
    }

    #[test]
    fn what_is_over_does_not_gather() {
        let t0 = Instant::now();
        let mut waiting = Waiting::default();
        for n in 0..10_000 {
            waiting.began(t0, ConnId(n));
            waiting.tidy(10, |conn| (conn.0 > 9_990).then_some(t0));
            assert!(waiting.len() <= 85);
        }
        let total = Total::default();
        total.clone().change(0, 700);
        total.change(700, 20);
        assert_eq!(total.bytes(), 20);
    }
}
