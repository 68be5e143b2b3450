//! Raft's view of its own log: an in-memory mirror of what is on disk past the last snapshot,
//! bounded by compaction. Durability is the log store's business (`store/`).

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::state::Position;

pub(crate) struct MirrorLog {
    pub(super) hard_state: HardState,
    /// The latest snapshot that is on disk and may be sent.
    snapshot: Position,
    /// The position before the first entry.
    before: (u64, u64),
    entries: VecDeque<Entry>,
    bytes: u64,
    /// Raft asked for a snapshot newer than ours.
    wanted: Cell<bool>,
}

/// What an entry weighs in memory, about.
pub(super) fn weight(entry: &Entry) -> u64 {
    (entry.data.len() + size_of::<Entry>()) as u64
}

impl MirrorLog {
    pub(super) fn new(snapshot: Position, hard_state: HardState, entries: Vec<Entry>) -> Self {
        let mut log = MirrorLog {
            hard_state,
            before: (snapshot.index, snapshot.term),
            snapshot,
            bytes: entries.iter().map(weight).sum(),
            entries: entries.into(),
            wanted: Cell::new(false),
        };
        // Entries kept behind the snapshot: the first gives its term to the position before the rest.
        if log.entries.front().is_some_and(|first| first.index <= log.snapshot.index)
            && let Some(first) = log.entries.pop_front()
        {
            log.bytes -= weight(&first);
            log.before = (first.index, first.term);
        }
        log
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a newer snapshot was asked for since the last call.
    pub(super) fn take_wanted(&self) -> bool {
        self.wanted.take()
    }

    pub(super) fn snapshot_index(&self) -> u64 {
        self.snapshot.index
    }

    pub(super) fn last(&self) -> u64 {
        self.entries.back().map_or(self.before.0, |entry| entry.index)
    }

    pub(super) fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.before.0 {
            return Some(self.before.1);
        }
        if index == self.snapshot.index {
            return Some(self.snapshot.term);
        }
        Some(self.entries.get(self.offset(index)?)?.term)
    }

    fn offset(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.before.0 + 1)?).ok()
    }

    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else {
            return;
        };
        while self.entries.back().is_some_and(|last| last.index >= first.index) {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes -= weight(&entry);
            }
        }
        for entry in entries {
            self.bytes += weight(entry);
            self.entries.push_back(entry.clone());
        }
    }

    /// A snapshot of a leader replaces the log.
    pub(super) fn install(&mut self, snapshot: Position) {
        self.entries.clear();
        self.bytes = 0;
        self.before = (snapshot.index, snapshot.term);
        self.snapshot = snapshot;
    }

    /// A snapshot of our own is on disk. Entries that it covers go, but for the last `keep_bytes`,
    /// by which a follower a little behind catches up. Returns the index up to which they went.
    pub(super) fn compact(&mut self, snapshot: Position, keep_bytes: u64) -> u64 {
        if snapshot.index <= self.snapshot.index {
            return self.before.0;
        }
        let index = snapshot.index;
        self.snapshot = snapshot;
        while self.bytes > keep_bytes && self.entries.front().is_some_and(|e| e.index <= index) {
            if let Some(entry) = self.entries.pop_front() {
                self.bytes -= weight(&entry);
                self.before = (entry.index, entry.term);
            }
        }
        // A long snapshot lets the log grow far beyond what is kept behind it.
        if self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
        self.before.0
    }
}

impl Storage for MirrorLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState {
            hard_state: self.hard_state.clone(),
            conf_state: self.snapshot.conf.clone(),
        })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let compacted = raft::Error::Store(StorageError::Compacted);
        let first = self.offset(low).ok_or(compacted)?;
        let max_size = max_size.into().unwrap_or(u64::MAX);
        let count = usize::try_from(high.saturating_sub(low)).unwrap_or(usize::MAX);
        let mut size = 0u64;
        let mut out = Vec::new();
        for entry in self.entries.iter().skip(first).take(count) {
            size = size.saturating_add(weight(entry));
            if size > max_size && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        if out.is_empty() && count > 0 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let error =
            if index < self.before.0 { StorageError::Compacted } else { StorageError::Unavailable };
        self.term_of(index).ok_or(raft::Error::Store(error))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.before.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// A node takes no snapshot that does not name it a member: one that joins waits for the next.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let conf = &self.snapshot.conf;
        let named = conf.voters.contains(&to)
            || conf.learners.contains(&to)
            || conf.voters_outgoing.contains(&to);
        if self.snapshot.index == 0 || self.snapshot.index < request_index || !named {
            self.wanted.set(true);
            let error = StorageError::SnapshotTemporarilyUnavailable;
            return Err(raft::Error::Store(error));
        }
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = self.snapshot.index;
        metadata.term = self.snapshot.term;
        metadata.set_conf_state(self.snapshot.conf.clone());
        Ok(snapshot)
    }
}
