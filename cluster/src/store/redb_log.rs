//! The log in redb: one table of entries by index, one of facts. A commit is atomic, so that a torn
//! write is as if it had not been begun; redb finds that out by itself when it opens the file. What
//! rots afterwards it does not see when it reads: each row carries a fingerprint of its own.

use std::path::Path;

use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::{LogContent, LogStore, StoreError};
use crate::core::Persist;
use crate::state::{Hasher, Position};

const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");

const HARD_STATE: &str = "hard_state";
const SNAPSHOT: &str = "snapshot";
const BOOT: &str = "boot";

const CACHE_BYTES: usize = 32 * 1024 * 1024;

pub(crate) struct RedbLog {
    db: Database,
    /// Index of the last entry, to know what an append replaces.
    last: u64,
}

fn damaged(error: impl std::fmt::Display) -> StoreError {
    StoreError::LogDamaged(error.to_string())
}

fn storage(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(e) => StoreError::io(Path::new("log.redb"), e),
        redb::Error::DatabaseAlreadyOpen => StoreError::InUse,
        other => damaged(other),
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

const SEAL_BYTES: usize = 16;

/// Facts are told apart by numbers that no entry's index ever reaches.
fn row_of(fact: &str) -> u64 {
    u64::MAX - fact.len() as u64
}

fn sealed_number(fact: &str, number: u64) -> Vec<u8> {
    seal(row_of(fact), number.to_be_bytes().to_vec())
}

fn fingerprint(row: u64, bytes: &[u8]) -> [u8; SEAL_BYTES] {
    Hasher::new(11).u64(row).bytes(bytes).finish().to_be_bytes()
}

/// The bytes of a row, followed by their fingerprint, which also says which row they are of.
fn seal(row: u64, mut bytes: Vec<u8>) -> Vec<u8> {
    let print = fingerprint(row, &bytes);
    bytes.extend_from_slice(&print);
    bytes
}

fn sealed(row: u64, bytes: &[u8]) -> Result<&[u8], StoreError> {
    match bytes.split_last_chunk() {
        Some((bytes, print)) if *print == fingerprint(row, bytes) => Ok(bytes),
        Some(_) | None if row >= row_of(HARD_STATE) => Err(damaged("a fact has rotted")),
        Some(_) | None => Err(damaged(format!("entry {row} has rotted"))),
    }
}

impl RedbLog {
    /// Opens the file that a node has (an empty one is none), reads all of it, and raises the boot
    /// counter. redb panics on some
    /// pages that it takes for impossible: that is damage too.
    pub(super) fn open(path: &Path) -> Result<(Self, LogContent), StoreError> {
        std::panic::catch_unwind(|| RedbLog::load(builder().open(path).map_err(storage)?))
            .unwrap_or_else(|_| Err(damaged("its pages contradict each other")))
    }

    /// The file of a node that is being made.
    pub(super) fn create(path: &Path) -> Result<Self, StoreError> {
        RedbLog::load(builder().create(path).map_err(storage)?).map(|(log, _)| log)
    }

    pub(super) fn load(db: Database) -> Result<(Self, LogContent), StoreError> {
        let txn = db.begin_write().map_err(storage)?;
        let boot = {
            txn.open_table(ENTRIES).map_err(storage)?;
            let mut facts = txn.open_table(FACTS).map_err(storage)?;
            let boot = number(&facts, BOOT)? + 1;
            facts.insert(BOOT, sealed_number(BOOT, boot).as_slice()).map_err(storage)?;
            boot
        };
        txn.commit().map_err(storage)?;

        let txn = db.begin_read().map_err(storage)?;
        let facts = txn.open_table(FACTS).map_err(storage)?;
        let snapshot = number(&facts, SNAPSHOT)?;
        let mut hard_state = HardState::default();
        if let Some(bytes) = facts.get(HARD_STATE).map_err(storage)? {
            let bytes = sealed(row_of(HARD_STATE), bytes.value())?;
            hard_state.merge_from_bytes(bytes).map_err(damaged)?;
        }
        let mut entries: Vec<Entry> = Vec::new();
        for row in txn.open_table(ENTRIES).map_err(storage)?.iter().map_err(storage)? {
            let (index, bytes) = row.map_err(storage)?;
            let mut entry = Entry::default();
            entry.merge_from_bytes(sealed(index.value(), bytes.value())?).map_err(damaged)?;
            let expected = entries.last().map_or(index.value(), |last| last.index + 1);
            if entry.index != index.value() || entry.index != expected {
                return Err(damaged(format!("entry {expected} is missing")));
            }
            entries.push(entry);
        }
        if entries.first().is_some_and(|first| first.index > snapshot + 1) {
            return Err(damaged(format!("entry {} is missing", snapshot + 1)));
        }
        let last = entries.last().map_or(snapshot, |entry| entry.index);
        let content = LogContent { snapshot, hard_state, entries, boot };
        Ok((RedbLog { db, last }, content))
    }

    /// The first state of a cluster's first node.
    pub(super) fn begin(&mut self, position: &Position) -> Result<(), StoreError> {
        let hard_state =
            HardState { term: position.term, commit: position.index, ..HardState::default() };
        self.write(&[Persist {
            number: 0,
            entries: Vec::new(),
            hard_state,
            snapshot: Some(position.clone()),
        }])
    }
}

fn number(
    facts: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<u64, StoreError> {
    match facts.get(key).map_err(storage)? {
        None => Ok(0),
        Some(bytes) => {
            let bytes = sealed(row_of(key), bytes.value())?;
            let bytes: [u8; 8] = bytes.try_into().map_err(damaged)?;
            Ok(u64::from_be_bytes(bytes))
        }
    }
}

impl LogStore for RedbLog {
    fn write(&mut self, batch: &[Persist]) -> Result<(), StoreError> {
        let Some(newest) = batch.last() else {
            return Ok(());
        };
        let mut txn = self.db.begin_write().map_err(storage)?;
        txn.set_durability(Durability::Immediate).map_err(damaged)?;
        let mut last = self.last;
        {
            let mut table = txn.open_table(ENTRIES).map_err(storage)?;
            let mut facts = txn.open_table(FACTS).map_err(storage)?;
            for persist in batch {
                if let Some(snapshot) = &persist.snapshot {
                    table.retain(|_, _| false).map_err(storage)?;
                    let index = sealed_number(SNAPSHOT, snapshot.index);
                    facts.insert(SNAPSHOT, index.as_slice()).map_err(storage)?;
                    last = snapshot.index;
                }
                if let Some(first) = persist.entries.first()
                    && first.index <= last
                {
                    table.retain_in(first.index.., |_, _| false).map_err(storage)?;
                }
                for entry in &persist.entries {
                    let bytes = seal(entry.index, entry.write_to_bytes().map_err(damaged)?);
                    table.insert(entry.index, bytes.as_slice()).map_err(storage)?;
                    last = entry.index;
                }
            }
            let bytes = newest.hard_state.write_to_bytes().map_err(damaged)?;
            let bytes = seal(row_of(HARD_STATE), bytes);
            facts.insert(HARD_STATE, bytes.as_slice()).map_err(storage)?;
        }
        txn.commit().map_err(storage)?;
        self.last = last;
        Ok(())
    }

    fn compact(&mut self, snapshot: u64, compact: u64) -> Result<(), StoreError> {
        let txn = self.db.begin_write().map_err(storage)?;
        {
            let mut table = txn.open_table(ENTRIES).map_err(storage)?;
            let mut facts = txn.open_table(FACTS).map_err(storage)?;
            // A leader's snapshot may have come in between.
            if snapshot > number(&facts, SNAPSHOT)? {
                let index = sealed_number(SNAPSHOT, snapshot);
                facts.insert(SNAPSHOT, index.as_slice()).map_err(storage)?;
                table.retain_in(..=compact, |_, _| false).map_err(storage)?;
            }
        }
        txn.commit().map_err(storage)
    }
}
