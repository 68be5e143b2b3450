//! Even/odd UDP port pairs of one address: giving out, quarantine after release, exhaustion.
//!
//! No sockets live here; a pair that turns out to be held by another process is reported back by
//! [`PortPool::occupied`]. A pool is cut into one slice per signalling shard. A shard takes from
//! its own slice and turns to the others only when that is exhausted, so that shards meet at a lock
//! only near exhaustion. The order of a slice is shuffled once: the next port cannot be guessed
//! from the last, and first-in-first-out use keeps a port out of use for as long as possible.

use std::collections::{HashSet, VecDeque};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// A pair held by another process is tried again after this time.
const OCCUPIED_FOR: Duration = Duration::from_secs(60);

/// All pairs of one address. Every operation is O(1) but [`PortPool::counts`].
pub(crate) struct PortPool {
    /// Pair `n` belongs to slice `n % slices`.
    slices: Box<[Mutex<Slice>]>,
    range: RangeInclusive<u16>,
    first: u16,
    occupied: AtomicU64,
    early: AtomicU64,
}

/// Pairs of one shard.
struct Slice {
    /// By time of release; an entry whose time is not its pair's `free_at` is stale.
    free: VecDeque<(Option<Instant>, u16)>,
    /// Pairs held by other processes, by the time to try again.
    occupied: VecDeque<(Instant, u16)>,
    pairs: Vec<Pair>,
    used: usize,
}

#[derive(Clone, Copy, Default)]
struct Pair {
    used: bool,
    /// End of quarantine; `None` when never used.
    free_at: Option<Instant>,
}

/// How many pairs are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounts {
    pub total: usize,
    pub used: usize,
    /// Released or occupied, and waiting.
    pub quarantined: usize,
    /// Times that a pair was found held by another process.
    pub occupied: u64,
    /// Times that a pair was given out before its quarantine was over.
    pub early: u64,
}

impl PortPool {
    /// Cuts `range` into pairs and those into `slices` slices (at least one); `seed` shuffles them.
    pub(crate) fn new(range: &RangeInclusive<u16>, slices: usize, seed: u64) -> PortPool {
        let first = u32::from(*range.start()).next_multiple_of(2);
        let end = u32::from(*range.end()) + 1;
        let pairs = u16::try_from(end.saturating_sub(first) / 2).unwrap_or(0);
        let slices = slices.max(1);
        let mut rng = StdRng::seed_from_u64(seed);
        let slices = (0..slices)
            .map(|index| {
                let mut own: Vec<u16> = (0..pairs).skip(index).step_by(slices).collect();
                let pairs = vec![Pair::default(); own.len()];
                own.shuffle(&mut rng);
                let free = own.into_iter().map(|pair| (None, pair)).collect();
                Mutex::new(Slice { free, occupied: VecDeque::new(), pairs, used: 0 })
            })
            .collect();
        PortPool {
            slices,
            range: range.clone(),
            first: u16::try_from(first).unwrap_or(0),
            occupied: AtomicU64::new(0),
            early: AtomicU64::new(0),
        }
    }

    /// The range as it was given.
    pub(crate) fn range(&self) -> RangeInclusive<u16> {
        self.range.clone()
    }

    /// Whether no pair is out.
    pub(crate) fn is_unused(&self) -> bool {
        (0..self.slices.len()).filter_map(|index| self.lock(index)).all(|slice| slice.used == 0)
    }

    /// Takes over what another pool of the same address knows of the pairs that both have: those
    /// that are out are not given out here until they are released here too, those in quarantine
    /// stay in it.
    pub(crate) fn claim_from(&self, other: &PortPool) {
        let count = other.slices.len();
        for index in 0..count {
            let Some(slice) = other.lock(index) else { continue };
            for (nth, pair) in slice.pairs.iter().enumerate() {
                let number = nth * count + index;
                let port = u16::try_from(usize::from(other.first) + number * 2).unwrap_or(0);
                if (pair.used || pair.free_at.is_some())
                    && self.take_port(port)
                    && let (false, Some(free_at)) = (pair.used, pair.free_at)
                {
                    self.release(port, free_at);
                }
            }
        }
    }

    /// The even port of a free pair, from slice `home` if it has one.
    pub(crate) fn take(&self, home: usize, now: Instant) -> Option<u16> {
        let count = self.slices.len();
        (0..count).find_map(|step| {
            let slice = (home + step) % count;
            let pair = self.lock(slice)?.pop(now, count)?;
            Some(self.first + pair * 2)
        })
    }

    /// As `take` when that has none: a pair whose quarantine has at most `early` left. Counted.
    pub(crate) fn take_early(&self, home: usize, now: Instant, early: Duration) -> Option<u16> {
        let port = self.take(home, now + early)?;
        self.early.fetch_add(1, Ordering::Relaxed);
        Some(port)
    }

    /// Takes the pair of a given even port (a call taken over from another node), quarantined or
    /// not; false when it is in use or not of this pool.
    pub(crate) fn take_port(&self, port: u16) -> bool {
        let Some((slice, index, _)) = self.locate(port) else { return false };
        let Some(mut slice) = self.lock(slice) else { return false };
        slice.claim(index, self.slices.len())
    }

    /// Gives a pair back; it is not given out again before `free_at`.
    pub(crate) fn release(&self, port: u16, free_at: Instant) {
        let Some((slice, index, pair)) = self.locate(port) else { return };
        let Some(mut slice) = self.lock(slice) else { return };
        let Some(entry) = slice.pairs.get_mut(index) else { return };
        if std::mem::take(&mut entry.used) {
            entry.free_at = Some(free_at);
            slice.used -= 1;
            slice.free.push_back((Some(free_at), pair));
        }
    }

    /// Gives a pair back that another process holds.
    pub(crate) fn occupied(&self, port: u16, now: Instant) {
        self.occupied.fetch_add(1, Ordering::Relaxed);
        let Some((slice, index, pair)) = self.locate(port) else { return };
        let Some(mut slice) = self.lock(slice) else { return };
        let Some(entry) = slice.pairs.get_mut(index) else { return };
        if std::mem::take(&mut entry.used) {
            entry.free_at = Some(now + OCCUPIED_FOR);
            slice.used -= 1;
            slice.occupied.push_back((now + OCCUPIED_FOR, pair));
        }
    }

    /// Whether `port` lies in one of the pool's pairs.
    pub(crate) fn contains(&self, port: u16) -> bool {
        self.locate(port & !1).is_some()
    }

    /// How many pairs are where.
    pub(crate) fn counts(&self, now: Instant) -> PortCounts {
        let mut counts = PortCounts {
            occupied: self.occupied.load(Ordering::Relaxed),
            early: self.early.load(Ordering::Relaxed),
            ..PortCounts::default()
        };
        for slice in (0..self.slices.len()).filter_map(|index| self.lock(index)) {
            counts.total += slice.pairs.len();
            counts.used += slice.used;
            let waits = |pair: &&Pair| !pair.used && pair.free_at.is_some_and(|at| at > now);
            counts.quarantined += slice.pairs.iter().filter(waits).count();
        }
        counts
    }

    /// Slice, index in the slice, and pair number of an even port.
    fn locate(&self, port: u16) -> Option<(usize, usize, u16)> {
        let offset = port.checked_sub(self.first).filter(|offset| offset % 2 == 0)?;
        let pair = offset / 2;
        let (slice, index) =
            (usize::from(pair) % self.slices.len(), usize::from(pair) / self.slices.len());
        (index < self.lock(slice)?.pairs.len()).then_some((slice, index, pair))
    }

    fn lock(&self, slice: usize) -> Option<MutexGuard<'_, Slice>> {
        Some(self.slices.get(slice)?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Slice {
    /// The first pair whose quarantine is over.
    fn pop(&mut self, now: Instant, slices: usize) -> Option<u16> {
        while let Some((at, pair)) = self.occupied.pop_front_if(|(at, _)| *at <= now) {
            let entry = self.pairs.get(usize::from(pair) / slices);
            if entry.is_some_and(|entry| !entry.used && entry.free_at == Some(at)) {
                self.free.push_front((Some(at), pair));
            }
        }
        while let Some((free_at, pair)) =
            self.free.pop_front_if(|(at, _)| at.is_none_or(|at| at <= now))
        {
            let Some(entry) = self.pairs.get_mut(usize::from(pair) / slices) else { continue };
            if !entry.used && entry.free_at == free_at {
                entry.used = true;
                self.used += 1;
                return Some(pair);
            }
        }
        None
    }

    /// Marks a pair as used wherever it is queued; its old entry turns stale.
    fn claim(&mut self, index: usize, slices: usize) -> bool {
        let Some(entry) = self.pairs.get_mut(index).filter(|pair| !pair.used) else { return false };
        entry.used = true;
        self.used += 1;
        if self.free.len() > self.pairs.len() * 2 {
            self.drop_stale(slices);
        }
        true
    }

    /// Keeps the queue bounded when pairs are only ever claimed by number. An entry's place says
    /// nothing of its age: a pair that was occupied comes back at the front.
    fn drop_stale(&mut self, slices: usize) {
        let (pairs, mut seen) = (&self.pairs, HashSet::new());
        self.free.retain(|(at, pair)| {
            let entry = pairs.get(usize::from(*pair) / slices);
            entry.is_some_and(|entry| !entry.used && entry.free_at == *at) && seen.insert(*pair)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUARANTINE: Duration = Duration::from_secs(10);

    #[test]
    fn pairs_start_even_and_stay_within_the_range() {
        let now = Instant::now();
        let pool = PortPool::new(&(10001..=10006), 1, 1);
        let ports: HashSet<u16> = std::iter::from_fn(|| pool.take(0, now)).collect();
        assert_eq!(ports, HashSet::from([10002, 10004]));
        assert_eq!(PortPool::new(&(7..=7), 1, 1).take(0, now), None);
        assert_eq!(PortPool::new(&(65534..=65535), 1, 1).take(0, now), Some(65534));
    }

    #[test]
    fn a_released_pair_waits_for_its_quarantine() {
        let now = Instant::now();
        let pool = PortPool::new(&(10000..=10003), 1, 7);
        let (one, two) = (pool.take(0, now), pool.take(0, now));
        assert_eq!(pool.take(0, now), None);
        pool.release(one.unwrap_or(0), now + QUARANTINE);
        assert_eq!(pool.take(0, now + QUARANTINE - Duration::from_millis(1)), None);
        assert_eq!(pool.take(0, now + QUARANTINE), one);
        assert_ne!(one, two);
        let counts = PortCounts { total: 2, used: 2, quarantined: 0, ..PortCounts::default() };
        assert_eq!(pool.counts(now), counts);
        pool.release(two.unwrap_or(0), now + QUARANTINE);
        assert_eq!((pool.counts(now).used, pool.counts(now).quarantined), (1, 1));
        assert_eq!(pool.counts(now + QUARANTINE).quarantined, 0);
    }

    #[test]
    fn an_exhausted_range_gives_pairs_out_early_the_oldest_first() {
        let now = Instant::now();
        let pool = PortPool::new(&(10000..=10003), 1, 7);
        let ports: Vec<u16> = std::iter::from_fn(|| pool.take(0, now)).collect();
        let later = now + Duration::from_secs(3);
        pool.release(ports[1], now + QUARANTINE);
        pool.release(ports[0], later + QUARANTINE);
        let early = QUARANTINE - Duration::from_secs(1);
        assert_eq!(pool.take(0, later), None);
        assert_eq!(pool.take_early(0, later, early), Some(ports[1]));
        assert_eq!(pool.take_early(0, later, early), None, "released a moment ago");
        assert_eq!(pool.counts(later).early, 1);
    }

    #[test]
    fn a_double_release_frees_once() {
        let now = Instant::now();
        let pool = PortPool::new(&(10000..=10001), 1, 7);
        let port = pool.take(0, now).unwrap_or(0);
        pool.release(port, now);
        pool.release(port, now);
        assert_eq!(pool.take(0, now), Some(port));
        assert_eq!(pool.take(0, now), None);
    }

    #[test]
    fn an_exhausted_slice_takes_from_the_others() {
        let now = Instant::now();
        let pool = PortPool::new(&(10000..=10015), 4, 3);
        let ports: HashSet<u16> = std::iter::from_fn(|| pool.take(2, now)).collect();
        assert_eq!(ports.len(), 8);
    }

    #[test]
    fn an_occupied_pair_is_counted_and_tried_again_later() {
        let now = Instant::now();
        let pool = PortPool::new(&(10000..=10001), 1, 7);
        let port = pool.take(0, now).unwrap_or(0);
        pool.occupied(port, now);
        assert_eq!(pool.take(0, now + OCCUPIED_FOR - Duration::from_secs(1)), None);
        assert_eq!(pool.take(0, now + OCCUPIED_FOR), Some(port));
        assert_eq!(pool.counts(now).occupied, 1);
    }

    #[test]
    fn a_port_can_be_claimed_by_number_once() {
        let now = Instant::now();
        let pool = PortPool::new(&(10000..=10003), 2, 7);
        assert!(pool.take_port(10002));
        assert!(!pool.take_port(10002));
        assert!(!pool.take_port(10003), "odd");
        assert!(!pool.take_port(10004), "outside");
        assert_eq!(pool.take(1, now), Some(10000));
        assert_eq!(pool.take(1, now), None);
        pool.release(10002, now + QUARANTINE);
        assert_eq!(pool.take(1, now), None, "the stale entry must not shorten the quarantine");
        assert_eq!(pool.take(1, now + QUARANTINE), Some(10002));
    }

    #[test]
    fn claiming_and_releasing_for_ever_stays_bounded() {
        let now = Instant::now();
        let pool = PortPool::new(&(10000..=10003), 1, 7);
        for _ in 0..1000 {
            assert!(pool.take_port(10000));
            pool.release(10000, now);
        }
        let len = pool.lock(0).map_or(0, |slice| slice.free.len());
        assert!(len <= 6, "{len}");
    }

    #[test]
    fn dropping_stale_entries_loses_no_pair_that_was_occupied() {
        let now = Instant::now();
        let pool = PortPool::new(&(10000..=10005), 1, 7);
        let [x, y, z] = [(); 3].map(|()| pool.take(0, now).unwrap_or(0));
        // A stale entry of x waits while its valid one comes back before it.
        pool.release(x, now);
        assert!(pool.take_port(x));
        pool.occupied(x, now);
        pool.occupied(z, now);
        let now = now + OCCUPIED_FOR;
        assert_eq!(pool.take(0, now), Some(z));
        for _ in 0..10 {
            pool.release(y, now + QUARANTINE);
            assert!(pool.take_port(y));
        }
        assert_eq!(pool.take(0, now), Some(x));
    }

    #[test]
    fn ports_of_a_pool_are_known() {
        let pool = PortPool::new(&(10001..=10006), 1, 1);
        assert!(!pool.contains(10001));
        assert!(pool.contains(10002) && pool.contains(10005));
        assert!(!pool.contains(10006));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            failure_persistence: None,
            ..proptest::prelude::ProptestConfig::default()
        })]

        /// Steps: take from a shard, release or occupy the n-th held pair, claim by number, wait.
        #[test]
        fn no_pair_is_given_twice_nor_before_its_quarantine_ends(
            steps in proptest::collection::vec((0..5u8, 0..16u16), 1..200)
        ) {
            let pool = PortPool::new(&(10_000..=10_015), 3, 5);
            let mut now = Instant::now();
            let mut held: Vec<u16> = Vec::new();
            let mut free_at = std::collections::HashMap::new();
            for (step, n) in steps {
                let nth = usize::from(n) % held.len().max(1);
                match step {
                    0 => if let Some(port) = pool.take(usize::from(n % 3), now) {
                        proptest::prop_assert!(!held.contains(&port));
                        proptest::prop_assert!(free_at.get(&port).is_none_or(|at| *at <= now));
                        held.push(port);
                    } else {
                        let waits = |port: &u16| free_at.get(port).is_some_and(|at| *at > now);
                        let all = (10_000..10_016u16).step_by(2);
                        let mut all = all.filter(|port| !held.contains(port));
                        proptest::prop_assert!(all.all(|port| waits(&port)), "one was free");
                    },
                    1 if !held.is_empty() => {
                        let port = held.swap_remove(nth);
                        pool.release(port, now + QUARANTINE);
                        free_at.insert(port, now + QUARANTINE);
                    }
                    2 if !held.is_empty() => {
                        let port = held.swap_remove(nth);
                        pool.occupied(port, now);
                        free_at.insert(port, now + OCCUPIED_FOR);
                    }
                    3 => {
                        let port = 10_000 + n;
                        let free = port % 2 == 0 && !held.contains(&port);
                        proptest::prop_assert_eq!(pool.take_port(port), free);
                        held.extend(free.then_some(port));
                    }
                    _ => now += Duration::from_secs(u64::from(n)),
                }
                proptest::prop_assert_eq!(pool.counts(now).used, held.len());
            }
        }
    }
}
