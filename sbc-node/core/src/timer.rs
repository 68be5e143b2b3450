//! A hierarchical timer wheel: millisecond resolution, O(1) insert and cancel, no allocation per
//! timer beyond a slab that grows to the high-water mark.
//!
//! The wheel never reads a clock and never calls back: its owner asks for [`TimerWheel::deadline`]
//! and drains [`TimerWheel::pop`]. What a timer means is the owner's `T`.
//!
//! Eight levels of 64 slots. A timer lies on the level of the highest group of six bits in which
//! its tick differs from the cursor; when the cursor enters a slot above level 0, the slot's timers
//! move down. Slots are doubly linked lists through the slab in order of insertion, so timers of
//! one millisecond come out in the order in which they were inserted.

use std::time::{Duration, Instant};

const LEVELS: usize = 8;
const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
const NIL: u32 = u32::MAX;
/// Ticks the levels can tell apart: 2^48 ms, 8,900 years.
const HORIZON: u64 = (1 << 48) - 1;

/// Names one armed timer. A key whose timer fired or was cancelled is dead for ever: its place may
/// be used again, its generation not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerKey {
    index: u32,
    generation: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry<T> {
    /// `None` while the entry is on the free list.
    value: Option<T>,
    tick: u64,
    prev: u32,
    next: u32,
    generation: u32,
    /// `level * 64 + slot`.
    place: u16,
}

#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
}

const EMPTY: List = List { head: NIL, tail: NIL };

/// Timers of one shard. `T` says what to do when one fires; it should be small.
///
/// The wheel itself has no limit: every timer belongs to an entry of an owner's bounded table.
#[derive(Debug)]
pub struct TimerWheel<T> {
    epoch: Instant,
    /// The tick up to which everything has been looked at.
    cursor: u64,
    entries: Vec<Entry<T>>,
    free: u32,
    len: usize,
    lists: Box<[List]>,
    occupied: [u64; LEVELS],
}

impl<T: Copy> TimerWheel<T> {
    /// A wheel whose time starts at `epoch`; earlier times count as `epoch`.
    pub fn new(epoch: Instant) -> Self {
        TimerWheel::with_room(epoch, 0)
    }

    /// One that is not copied to grow before it has `room` timers.
    pub fn with_room(epoch: Instant, room: usize) -> Self {
        TimerWheel {
            epoch,
            cursor: 0,
            entries: Vec::with_capacity(room),
            free: NIL,
            len: 0,
            lists: vec![EMPTY; LEVELS * SLOTS].into_boxed_slice(),
            occupied: [0; LEVELS],
        }
    }

    /// Number of armed timers.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Heap bytes held, for memory accounting.
    pub fn heap_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry<T>>() + self.lists.len() * size_of::<List>()
    }

    /// Arms a timer. It fires at the first [`pop`](Self::pop) whose time is not before `at`,
    /// rounded up to the next millisecond; a time that has passed fires at the next pop.
    pub fn insert(&mut self, at: Instant, value: T) -> TimerKey {
        let tick = self.tick_at_or_after(at).clamp(self.cursor, self.cursor | HORIZON);
        let index = self.allocate(value, tick);
        self.link(index);
        self.len += 1;
        TimerKey { index, generation: self.entries[index as usize].generation }
    }

    /// Disarms a timer; `None` when it fired or was cancelled before.
    pub fn cancel(&mut self, key: TimerKey) -> Option<T> {
        let entry = self.entries.get(key.index as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        entry.value?;
        self.unlink(key.index);
        self.release(key.index)
    }

    /// When to call [`pop`](Self::pop) next; `None` without timers.
    ///
    /// Never later than the earliest timer. It is earlier where that timer lies far ahead and the
    /// wheel first has to move it to a finer level (at most once per level); `pop` then yields
    /// nothing.
    pub fn deadline(&self) -> Option<Instant> {
        let (_, tick) = self.next_slot()?;
        self.epoch.checked_add(Duration::from_millis(tick))
    }

    /// Takes the next timer that is due at `now`, in the order of time, then of insertion.
    /// Yields the time for which it was set (in whole milliseconds since the epoch, rounded up).
    pub fn pop(&mut self, now: Instant) -> Option<(Instant, T)> {
        let now_tick = self.tick_at_or_before(now);
        loop {
            let Some((place, tick)) = self.next_slot().filter(|&(_, tick)| tick <= now_tick) else {
                self.cursor = self.cursor.max(now_tick);
                return None;
            };
            self.cursor = tick;
            if place < SLOTS {
                let index = self.lists[place].head;
                self.unlink(index);
                let at = self.epoch + Duration::from_millis(tick);
                return self.release(index).map(|value| (at, value));
            }
            self.cascade(place);
        }
    }

    /// Moves every timer of a slot above level 0 to the level that the new cursor asks for.
    fn cascade(&mut self, place: usize) {
        let mut index = self.lists[place].head;
        self.lists[place] = EMPTY;
        self.occupied[place / SLOTS] &= !(1 << (place % SLOTS));
        while index != NIL {
            let next = self.entries[index as usize].next;
            self.link(index);
            index = next;
        }
    }

    /// The first slot that holds a timer, and the tick at which the cursor enters it.
    ///
    /// A timer of a lower level is due before any of a higher one, and within a level no occupied
    /// slot lies behind the cursor.
    fn next_slot(&self) -> Option<(usize, u64)> {
        let (level, bits) = (0u32..).zip(self.occupied).find(|&(_, bits)| bits != 0)?;
        let slot = bits.trailing_zeros();
        let shift = BITS * level;
        let above = self.cursor >> shift >> BITS << BITS << shift;
        let start = above | (u64::from(slot) << shift);
        Some((level as usize * SLOTS + slot as usize, start.max(self.cursor)))
    }

    fn tick_at_or_before(&self, at: Instant) -> u64 {
        let elapsed = at.saturating_duration_since(self.epoch);
        u64::try_from(elapsed.as_millis()).unwrap_or(HORIZON).min(HORIZON)
    }

    fn tick_at_or_after(&self, at: Instant) -> u64 {
        let elapsed = at.saturating_duration_since(self.epoch);
        let millis = elapsed.as_nanos().div_ceil(1_000_000);
        u64::try_from(millis).unwrap_or(HORIZON).min(HORIZON)
    }

    fn allocate(&mut self, value: T, tick: u64) -> u32 {
        if self.free != NIL {
            let index = self.free;
            let entry = &mut self.entries[index as usize];
            self.free = entry.next;
            entry.value = Some(value);
            entry.tick = tick;
            return index;
        }
        let index = u32::try_from(self.entries.len())
            .ok()
            .filter(|&index| index != NIL)
            .expect("owners' tables hold far fewer than 2^32 timers");
        self.entries.push(Entry {
            value: Some(value),
            tick,
            prev: NIL,
            next: NIL,
            generation: 0,
            place: 0,
        });
        index
    }

    /// Puts an unlinked entry on the free list and yields what it held.
    fn release(&mut self, index: u32) -> Option<T> {
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.next = self.free;
        self.free = index;
        self.len -= 1;
        entry.value.take()
    }

    fn link(&mut self, index: u32) {
        let tick = self.entries[index as usize].tick;
        let differing = (tick ^ self.cursor) & HORIZON;
        let level = (63 - (differing | 1).leading_zeros()) / BITS;
        let slot = ((tick >> (BITS * level)) & 63) as usize;
        let place = level as usize * SLOTS + slot;
        let list = &mut self.lists[place];
        let tail = list.tail;
        list.tail = index;
        if tail == NIL {
            list.head = index;
        } else {
            self.entries[tail as usize].next = index;
        }
        let entry = &mut self.entries[index as usize];
        entry.prev = tail;
        entry.next = NIL;
        entry.place = u16::try_from(place).expect("LEVELS * SLOTS fits u16");
        self.occupied[level as usize] |= 1 << slot;
    }

    fn unlink(&mut self, index: u32) {
        let Entry { prev, next, place, .. } = self.entries[index as usize];
        let place = usize::from(place);
        if prev == NIL {
            self.lists[place].head = next;
        } else {
            self.entries[prev as usize].next = next;
        }
        if next == NIL {
            self.lists[place].tail = prev;
        } else {
            self.entries[next as usize].prev = prev;
        }
        if self.lists[place].head == NIL {
            self.occupied[place / SLOTS] &= !(1 << (place % SLOTS));
        }
    }
}

#[cfg(test)]
#[path = "timer_tests.rs"]
mod tests;
