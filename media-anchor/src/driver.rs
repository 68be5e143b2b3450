//! The thread between relay threads and the kernel: batches changes, reads counters, hands answers
//! back. It alone owns the [`Offload`] and may block on netlink; no packet passes through it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::plan_types::{FlowChange, FlowCounters, FlowId, FlowOutcome, Offload};
use crate::relay::{Letter, Mailbox};
use crate::standby::Book;
use crate::types::SessionId;

/// Changes of one transaction.
const BATCH: usize = 2048;

const TICK: Duration = Duration::from_millis(100);

/// Changes of calls that stand by, in between those of our own: few, so that ours never wait long.
const STANDBY_BATCH: usize = 256;

/// Flows that stand by are looked at once in this time: only to find those that are missing.
const STANDBY_EVERY: Duration = Duration::from_secs(60);

/// The kernel driver.
pub(crate) struct Driver {
    offload: Box<dyn Offload>,
    changes: Receiver<Vec<FlowChange>>,
    relays: Vec<Arc<Mailbox>>,
    installed: Installed,
    counters_every: Duration,
    book: Book,
    standing_by: Installed,
}

/// The flows in the kernel, in a list that counters are read along.
#[derive(Default)]
struct Installed {
    list: Vec<FlowId>,
    places: HashMap<FlowId, usize>,
    cursor: usize,
}

impl Driver {
    pub(crate) fn new(
        offload: Box<dyn Offload>,
        changes: Receiver<Vec<FlowChange>>,
        relays: Vec<Arc<Mailbox>>,
        counters_every: Duration,
        book: Book,
    ) -> Driver {
        let (installed, standing_by) = (Installed::default(), Installed::default());
        Driver { offload, changes, relays, installed, counters_every, book, standing_by }
    }

    /// Runs until every relay thread is gone; dropping the offload then clears the kernel.
    pub(crate) fn run(mut self) {
        let mut next_tick = Instant::now() + TICK;
        let mut outcomes = Vec::new();
        let mut behind = false;
        loop {
            let wait = match behind {
                true => Duration::ZERO,
                false => next_tick.saturating_duration_since(Instant::now()),
            };
            match self.changes.recv_timeout(wait) {
                Ok(first) => {
                    let batch = self.gather(first);
                    self.offload.apply(&batch, &mut outcomes);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // Also when changes never cease.
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                self.offload.poll(&mut outcomes);
                self.read_counters();
            }
            behind = self.stand_by(&mut outcomes);
            self.hand_back(&mut outcomes);
        }
    }

    /// Changes of other nodes' calls, after those of our own; true when there may be more.
    fn stand_by(&mut self, outcomes: &mut Vec<FlowOutcome>) -> bool {
        let mut changes = Vec::new();
        self.book.poll(Instant::now(), STANDBY_BATCH, &mut changes);
        if !changes.is_empty() {
            self.offload.apply(&changes, outcomes);
        }
        !changes.is_empty()
    }

    /// What has queued up, bounded.
    fn gather(&self, mut batch: Vec<FlowChange>) -> Vec<FlowChange> {
        while batch.len() < BATCH {
            match self.changes.try_recv() {
                Ok(more) => batch.extend(more),
                Err(_) => break,
            }
        }
        batch
    }

    fn hand_back(&mut self, outcomes: &mut Vec<FlowOutcome>) {
        let mut by_relay: Vec<Vec<FlowOutcome>> = vec![Vec::new(); self.relays.len()];
        let now = Instant::now();
        for outcome in outcomes.drain(..) {
            let standby = outcome.id().is_standby();
            let list = if standby { &mut self.standing_by } else { &mut self.installed };
            match outcome {
                FlowOutcome::Installed(id) => list.insert(id),
                FlowOutcome::Removed(id, _) | FlowOutcome::Evicted(id, _, _) => list.remove(id),
                FlowOutcome::Refused(..) => {}
            }
            if standby {
                self.book.outcome(now, &outcome);
                continue;
            }
            let relay = relay_of(outcome.id().session, self.relays.len());
            by_relay[relay].push(outcome);
        }
        for (relay, outcomes) in self.relays.iter().zip(by_relay) {
            if !outcomes.is_empty() {
                relay.post(Letter::Outcomes(outcomes));
            }
        }
    }

    /// Reads one part of the flows, so that each is read once per `counters_every`.
    fn read_counters(&mut self) {
        let standing_by = self.standing_by.part(STANDBY_EVERY);
        let ids = self.installed.part(self.counters_every);
        let mut counters = Vec::with_capacity(ids.len().max(standing_by.len()));
        if !standing_by.is_empty() {
            self.offload.counters(&standing_by, &mut counters);
            counters.clear();
        }
        if ids.is_empty() {
            return;
        }
        self.offload.counters(&ids, &mut counters);
        let mut by_relay: Vec<Vec<(FlowId, FlowCounters)>> = vec![Vec::new(); self.relays.len()];
        for (id, counters) in counters {
            by_relay[relay_of(id.session, self.relays.len())].push((id, counters));
        }
        for (relay, counters) in self.relays.iter().zip(by_relay) {
            if !counters.is_empty() {
                relay.post(Letter::Counters(counters));
            }
        }
    }
}

impl Drop for Driver {
    /// However the thread ends: no relay waits for its answers any more.
    fn drop(&mut self) {
        for relay in &self.relays {
            relay.post(Letter::KernelGone);
        }
    }
}

impl Installed {
    fn insert(&mut self, id: FlowId) {
        let list = &mut self.list;
        self.places.entry(id).or_insert_with(|| {
            list.push(id);
            list.len() - 1
        });
    }

    fn remove(&mut self, id: FlowId) {
        let Some(place) = self.places.remove(&id) else { return };
        self.list.swap_remove(place);
        if let Some(moved) = self.list.get(place) {
            self.places.insert(*moved, place);
        }
    }

    /// The flows of one tick, so that each has its turn once per `every`.
    fn part(&mut self, every: Duration) -> Vec<FlowId> {
        let ticks = (every.as_millis() / TICK.as_millis()).max(1);
        let part = self.list.len().div_ceil(usize::try_from(ticks).unwrap_or(1));
        self.next(part)
    }

    /// The next `count` flows, round and round.
    fn next(&mut self, count: usize) -> Vec<FlowId> {
        let len = self.list.len();
        let count = count.min(len);
        let from = if self.cursor >= len { 0 } else { self.cursor };
        self.cursor = from + count;
        self.list.iter().cycle().skip(from).take(count).copied().collect()
    }
}

/// The relay thread of a session.
pub(crate) fn relay_of(session: SessionId, relays: usize) -> usize {
    let mixed = (session.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
    mixed % relays.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Component, Side};

    fn flow(n: u64) -> FlowId {
        FlowId { session: SessionId(n), stream: 0, from: Side::A, component: Component::Rtp }
    }

    #[test]
    fn every_installed_flow_is_read_in_turn() {
        let mut installed = Installed::default();
        for n in 0..5 {
            installed.insert(flow(n));
            installed.insert(flow(n));
        }
        installed.remove(flow(1));
        let mut seen: Vec<u64> =
            (0..2).flat_map(|_| installed.next(2)).map(|id| id.session.0).collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 2, 3, 4]);
        for n in 0..5 {
            installed.remove(flow(n));
        }
        assert!(installed.next(10).is_empty() && installed.places.is_empty());
    }

    #[test]
    fn consecutive_sessions_spread_over_relay_threads() {
        let mut counts = [0; 4];
        for n in 0..4000 {
            counts[relay_of(SessionId(n), 4)] += 1;
        }
        assert!(counts.iter().all(|n| (900..1100).contains(n)), "{counts:?}");
    }
}
