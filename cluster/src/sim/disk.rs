//! A disk in memory: what was synced is there after a crash, of the rest a random first part.

use std::collections::{BTreeMap, VecDeque};

use raft::eraftpb::{Entry, HardState};

use super::Chance;
use crate::core::{Persist, Recovered};
use crate::state::{Position, Tables};
use crate::store::{LogStore, StoreError};

/// The cluster's id.
pub(super) const CLUSTER: &[u8] = b"simulation";

#[derive(Default)]
pub(super) struct Disk {
    durable: Durable,
    /// Written and not synced.
    cached: VecDeque<Persist>,
    pub(super) snapshots: BTreeMap<u64, Vec<u8>>,
    pub(super) boot: u64,
}

#[derive(Default)]
struct Durable {
    snapshot: u64,
    hard_state: HardState,
    entries: BTreeMap<u64, Entry>,
}

impl LogStore for Durable {
    fn write(&mut self, batch: &[Persist]) -> Result<(), StoreError> {
        for persist in batch {
            if let Some(snapshot) = &persist.snapshot {
                self.entries.clear();
                self.snapshot = snapshot.index;
            }
            if let Some(first) = persist.entries.first() {
                self.entries.split_off(&first.index);
            }
            for entry in &persist.entries {
                self.entries.insert(entry.index, entry.clone());
            }
            self.hard_state = persist.hard_state.clone();
        }
        Ok(())
    }

    fn compact(&mut self, snapshot: u64, compact: u64) -> Result<(), StoreError> {
        if snapshot > self.snapshot {
            self.snapshot = snapshot;
            self.entries = self.entries.split_off(&(compact + 1));
        }
        Ok(())
    }
}

impl Disk {
    pub(super) fn first(tables: &Tables, position: &Position) -> Self {
        let mut disk = Disk::default();
        disk.save(&tables.freeze(), position);
        disk.durable.snapshot = position.index;
        disk.durable.hard_state.term = position.term;
        disk.durable.hard_state.commit = position.index;
        disk
    }

    pub(super) fn save(&mut self, rows: &crate::state::Frozen, position: &Position) {
        let mut bytes = Vec::new();
        rows.write(position, &mut bytes).expect("memory takes it");
        self.snapshots.insert(position.index, bytes);
    }

    pub(super) fn cache(&mut self, persist: Persist) {
        self.cached.push_back(persist);
    }

    /// One sync covers what has gathered; returns the number of the last write.
    pub(super) fn sync(&mut self) -> Option<u64> {
        let batch: Vec<Persist> = self.cached.drain(..).collect();
        self.durable.write(&batch).expect("memory takes it");
        batch.last().map(|persist| persist.number)
    }

    /// The writer thread keeps the order: what was cached before is synced first, and reported.
    pub(super) fn compact(&mut self, snapshot: u64, entries: u64) -> Option<u64> {
        let synced = self.sync();
        self.durable.compact(snapshot, entries).expect("memory takes it");
        self.snapshots = self.snapshots.split_off(&self.durable.snapshot);
        synced
    }

    /// The disk of a node that joins.
    pub(super) fn empty() -> Self {
        Disk::default()
    }

    /// Power goes: of what was not synced, the first few writes may have made it.
    pub(super) fn crash(&mut self, chance: &mut Chance) {
        let kept = chance.below(self.cached.len() as u64 + 1);
        for _ in 0..kept {
            if let Some(persist) = self.cached.pop_front() {
                self.durable.write(&[persist]).expect("memory takes it");
            }
        }
        self.cached.clear();
    }

    pub(super) fn recover(&mut self, format: u32) -> Recovered {
        self.boot += 1;
        if self.durable.snapshot == 0 {
            return Recovered {
                tables: Tables::new(CLUSTER),
                snapshot: Position::default(),
                hard_state: self.durable.hard_state.clone(),
                entries: self.durable.entries.values().cloned().collect(),
            };
        }
        let bytes = self.snapshots.get(&self.durable.snapshot);
        let bytes = bytes.expect("the log never names a snapshot that is not there");
        let (tables, snapshot) =
            Tables::restore(&mut bytes.as_slice(), format).unwrap_or_else(|e| panic!("{e}"));
        Recovered {
            tables,
            snapshot,
            hard_state: self.durable.hard_state.clone(),
            entries: self.durable.entries.values().cloned().collect(),
        }
    }
}
