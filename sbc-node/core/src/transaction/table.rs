//! Storage of transactions: a bounded slab whose places carry a generation.

use slab::Slab;

/// A table of transactions. The bound is checked by [`Table::is_full`] before an insert, because
/// what happens then differs between clients and servers.
#[derive(Debug)]
pub(super) struct Table<T> {
    slab: Slab<(u32, T)>,
    max: usize,
    generation: u32,
}

const ROOM_MAX: usize = 1 << 18;

/// For how many of at most `max` room is set aside at once: of the process's addresses alone, since
/// the kernel gives memory where it is written to. A table that grew would be copied, millions of
/// bytes while everybody waits.
pub(super) fn room(max: usize) -> usize {
    max.min(ROOM_MAX)
}

impl<T> Table<T> {
    pub(super) fn new(max: usize) -> Self {
        Table { slab: Slab::with_capacity(room(max)), max, generation: 0 }
    }

    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.slab.len() >= self.max.min(u32::MAX as usize)
    }

    /// Whether only the last tenth is left, which is kept for requests within dialogs.
    pub(super) fn is_nearly_full(&self) -> bool {
        self.is_full() || self.slab.len() >= self.max - self.max / 10
    }

    /// Yields index and generation.
    pub(super) fn insert(&mut self, value: T) -> (u32, u32) {
        self.generation = self.generation.wrapping_add(1);
        let index = self.slab.insert((self.generation, value));
        (u32::try_from(index).expect("the table is bounded below 2^32"), self.generation)
    }

    /// The entry at an index that the layer itself remembers.
    pub(super) fn get(&mut self, index: u32) -> Option<(u32, &mut T)> {
        self.slab.get_mut(index as usize).map(|(generation, value)| (*generation, value))
    }

    /// The index again, if the entry is still the one that was named.
    pub(super) fn check(&self, index: u32, generation: u32) -> Option<u32> {
        self.slab.get(index as usize).filter(|entry| entry.0 == generation).map(|_| index)
    }

    pub(super) fn remove(&mut self, index: u32) -> Option<T> {
        self.slab.try_remove(index as usize).map(|(_, value)| value)
    }
}
