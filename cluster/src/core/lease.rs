//! The lease: a node may act for its floating addresses only while a majority has lately confirmed
//! a leader that knows it alive.
//!
//! ```text
//! node   t0 ─ ReadIndex(node, n) ──▶ leader notes "heard at t1", asks the majority "still leader?"
//!        t3 ◀──── answer ─────────── a majority said yes at t2
//!        lease until t0 + lease      declared down not before t1 + handover, by this leader;
//!                                    by a later one as long after the last moment at which any
//!                                    of its voters can have said yes (`vouch.rs`)
//! ```
//!
//! With `lease < handover` and t0 ≤ t1 ≤ t2 the lease has run out before anyone may hand on what the
//! node held. The answer counts only once our tables have reached the index it names, so that what
//! was taken from us meanwhile is known by then. While a leader is declaring a node down it answers
//! it no more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use raft::eraftpb::Message;

use super::{Core, Time};
use crate::event::Event;
use crate::state::Next;
use crate::types::NodeId;

/// The lease as other threads see it: one atomic load.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeaseCell(Arc<AtomicU64>);

impl LeaseCell {
    pub(crate) fn is_valid(&self, now: Time) -> bool {
        now < Duration::from_nanos(self.0.load(Ordering::Acquire))
    }

    /// How long ago a lease of this length began that still runs.
    pub(crate) fn age(&self, now: Time, lease: Duration) -> Option<Duration> {
        let left = Duration::from_nanos(self.0.load(Ordering::Acquire)).checked_sub(now)?;
        (!left.is_zero()).then(|| lease.saturating_sub(left))
    }

    /// The node has stopped.
    pub(crate) fn revoke(&self) {
        self.set(Time::ZERO);
    }

    fn set(&self, until: Time) {
        let nanos = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(nanos, Ordering::Release);
    }
}

const RENEW_EVERY: Duration = Duration::from_millis(100);
/// An address is put on its device by a confirmation that is a few hundredths of a second old at
/// most. One that came too late on a busy machine is followed by the next this soon, for so long.
const HURRY_EVERY: Duration = Duration::from_millis(20);
const HURRY: Duration = Duration::from_millis(400);

pub(super) struct Lease {
    cell: LeaseCell,
    until: Time,
    was_valid: bool,
    /// Whether the dialogs that were ours before the start were handed to the edge.
    resumed: bool,
    next_seq: u64,
    renew_at: Time,
    /// Until when an address that is new here may wait for a confirmation.
    hurry_until: Time,
    /// When each unanswered renewal left.
    asked: BTreeMap<u64, Time>,
    /// Answered, but our tables are not that far yet: (index, lease end).
    waiting: Vec<(u64, Time)>,
    /// Addresses that the edge was told to hold.
    held: BTreeSet<String>,
}

impl Lease {
    pub(super) fn new(cell: LeaseCell) -> Self {
        cell.set(Time::ZERO);
        Lease {
            cell,
            until: Time::ZERO,
            was_valid: false,
            resumed: false,
            next_seq: 1,
            renew_at: Time::ZERO,
            hurry_until: Time::ZERO,
            asked: BTreeMap::new(),
            waiting: Vec::new(),
            held: BTreeSet::new(),
        }
    }

    pub(super) fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// When the next confirmation is to be asked for, while an address may wait for it.
    pub(super) fn hurries(&self, now: Time) -> Option<Time> {
        (now < self.hurry_until).then_some(self.renew_at)
    }

    pub(super) fn expires(&self) -> Option<Time> {
        self.was_valid.then_some(self.until)
    }
}

/// The context of a renewal: node, boot, sequence number.
fn context(node: NodeId, boot: u64, seq: u64) -> Vec<u8> {
    [node.0, boot, seq].iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn parse(context: &[u8]) -> Option<(NodeId, u64, u64)> {
    let (words, rest) = context.as_chunks::<8>();
    match (words, rest) {
        ([node, boot, seq], []) => Some((
            NodeId(u64::from_be_bytes(*node)),
            u64::from_be_bytes(*boot),
            u64::from_be_bytes(*seq),
        )),
        _ => None,
    }
}

impl Core {
    /// Asks for a renewal, once per interval.
    pub(super) fn renew_lease(&mut self) {
        if self.now < self.lease.renew_at {
            return;
        }
        let hurries = self.lease.hurries(self.now).is_some();
        self.lease.renew_at = self.now + if hurries { HURRY_EVERY } else { RENEW_EVERY };
        let horizon = self.now.saturating_sub(self.config.lease);
        self.lease.asked.retain(|_, asked| *asked > horizon);
        if self.leader.is_none() {
            return;
        }
        let seq = self.lease.next_seq;
        self.lease.next_seq += 1;
        self.lease.asked.insert(seq, self.now);
        if self.is_leader() {
            self.heard(self.config.id);
        }
        self.raft.read_index(context(self.config.id, self.config.boot, seq));
    }

    /// As a leader: notes that the asking node lives. False when it must not be answered.
    pub(super) fn admit_read(&mut self, message: &Message) -> bool {
        let data = message.entries.first().map(|entry| &*entry.data);
        let Some((node, _, _)) = data.and_then(parse) else {
            self.counters.malformed += 1;
            return false;
        };
        if !self.is_leader() {
            return true;
        }
        if self.govern.is_condemned(node) {
            return false;
        }
        self.heard(node);
        true
    }

    pub(super) fn note_read(&mut self, index: u64, context: &[u8]) {
        let Some((node, boot, seq)) = parse(context) else {
            return;
        };
        if node != self.config.id || boot != self.config.boot {
            return;
        }
        let Some(asked) = self.lease.asked.remove(&seq) else {
            return;
        };
        self.lease.waiting.push((index, asked + self.config.lease));
        self.note_applied();
    }

    /// The tables have moved on: answers that waited for them count now.
    pub(super) fn note_applied(&mut self) {
        let applied = self.applied;
        let mut until = self.lease.until;
        self.lease.waiting.retain(|(index, end)| {
            if *index <= applied {
                until = until.max(*end);
            }
            *index > applied
        });
        if until > self.lease.until {
            self.lease.until = until;
            self.check_lease();
        }
    }

    /// Compares what we may hold with what the edge was told, and says the difference.
    pub(super) fn check_lease(&mut self) {
        let valid = self.now < self.lease.until;
        self.lease.cell.set(self.lease.until);
        let (wanted, up) = {
            let tables = self.tables.read().unwrap_or_else(|e| e.into_inner());
            let mine = |holder: Option<NodeId>| valid && holder == Some(self.config.id);
            let wanted: BTreeSet<String> = tables
                .addresses()
                .filter(|(_, row)| mine(row.holder) && row.next == Next::Stay)
                .map(|(address, _)| address.to_owned())
                .collect();
            let up = tables.node(self.config.id).is_some_and(|node| node.state.is_live());
            (wanted, up)
        };
        if wanted != self.lease.held {
            let add = wanted.difference(&self.lease.held).cloned().collect();
            let remove = self.lease.held.difference(&wanted).cloned().collect();
            if !wanted.is_subset(&self.lease.held) {
                self.lease.renew_at = self.now;
                self.lease.hurry_until = self.now + HURRY;
            }
            self.lease.held = wanted;
            self.event(Event::OwnedAddresses { add, remove });
        }
        if valid != self.lease.was_valid {
            self.lease.was_valid = valid;
            self.event(if valid { Event::QuorumRegained } else { Event::QuorumLost });
        }
        if valid && up && !self.lease.resumed {
            self.lease.resumed = true;
            self.resume_dialogs();
        }
    }

    /// After a start: the calls that are still ours.
    fn resume_dialogs(&mut self) {
        let from = self.config.id;
        let dialogs: Vec<_> = {
            let tables = self.tables.read().unwrap_or_else(|e| e.into_inner());
            tables.dialogs_of(from).map(|(key, _)| *key).collect()
        };
        if !dialogs.is_empty() {
            self.event(Event::AdoptDialogs { from, dialogs });
        }
    }

    /// Whether the lease runs at this moment.
    #[cfg(test)]
    pub(crate) fn leased(&self, now: Time) -> bool {
        now < self.lease.until
    }

    /// Whether the core believes, at this moment, that it holds the address.
    #[cfg(test)]
    pub(crate) fn holds(&self, now: Time, address: &str) -> bool {
        now < self.lease.until && self.lease.held.contains(address)
    }
}
