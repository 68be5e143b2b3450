//! Which dialogs changed lately, for those who follow the table row by row. Not replicated, not in
//! snapshots: each node remembers what it has applied since it made its tables.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::types::DialogKey;

/// Changes remembered; who is further behind reads the whole table.
const KEPT: usize = 65_536;

/// How far a reader has come. The default has read nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DialogPlace {
    /// Of the tables; 0 for none.
    tables: u64,
    next: u64,
}

/// The keys of written, moved and removed dialogs, oldest first.
#[derive(Clone, Debug)]
pub(super) struct Changes {
    tables: u64,
    first: u64,
    keys: VecDeque<DialogKey>,
}

impl Changes {
    /// Of tables that no reader has seen.
    pub(super) fn new() -> Changes {
        static TABLES: AtomicU64 = AtomicU64::new(1);
        let tables = TABLES.fetch_add(1, Ordering::Relaxed);
        Changes { tables, first: 0, keys: VecDeque::new() }
    }

    pub(super) fn note(&mut self, key: DialogKey) {
        if self.keys.len() >= KEPT {
            self.keys.pop_front();
            self.first += 1;
        }
        self.keys.push_back(key);
    }

    /// At most `max` changes from `place` on, and the place behind them; `None` when they are not
    /// known any more: then the place is behind everything.
    pub(super) fn since(&self, place: &mut DialogPlace, max: usize) -> Option<Vec<DialogKey>> {
        let end = self.first + self.keys.len() as u64;
        let from = place.next;
        if place.tables != self.tables || !(self.first..=end).contains(&from) {
            *place = DialogPlace { tables: self.tables, next: end };
            return None;
        }
        let skip = usize::try_from(from - self.first).unwrap_or(usize::MAX);
        let keys: Vec<DialogKey> = self.keys.iter().skip(skip).take(max).copied().collect();
        place.next = from + keys.len() as u64;
        Some(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> DialogKey {
        let mut key = [0; 16];
        key[8..].copy_from_slice(&n.to_be_bytes());
        DialogKey(key)
    }

    #[test]
    fn a_reader_sees_each_change_in_order_and_knows_when_it_missed_some() {
        let mut changes = Changes::new();
        let mut place = DialogPlace::default();
        assert_eq!(changes.since(&mut place, 10), None, "the first look reads all");
        assert_eq!(changes.since(&mut place, 10), Some(vec![]));
        for n in [1, 2, 3] {
            changes.note(key(n));
        }
        assert_eq!(changes.since(&mut place, 2), Some(vec![key(1), key(2)]));
        assert_eq!(changes.since(&mut place, 2), Some(vec![key(3)]));
        changes.note(key(3));
        assert_eq!(changes.since(&mut place, 2), Some(vec![key(3)]), "written again");
        for n in 0..=KEPT as u64 {
            changes.note(key(n + 10));
        }
        assert_eq!(changes.since(&mut place, 10), None, "too far behind");
        assert_eq!(changes.since(&mut place, 10), Some(vec![]));
        let restored = Changes::new();
        assert_eq!(restored.since(&mut place, 10), None, "other tables");
    }
}
