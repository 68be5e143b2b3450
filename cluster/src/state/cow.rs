//! A map in copy-on-write chunks: cloning costs one reference per chunk, and a write after a clone
//! copies only the chunk that it touches. That is what lets a snapshot be written out while the
//! state machine goes on. Iteration order is the same on every node. Knows nothing of records.
//!
//! A chunk is a sorted vector with little to spare: with rows of some fifty bytes a tree's nodes,
//! two thirds full, would take half as much again.

use std::sync::Arc;

/// Number of chunks; a hundred entries each at a hundred thousand records. Part of the format: the
/// sweep for what has expired goes by chunks.
pub(crate) const CHUNKS: usize = 1024;

/// Chooses a key's chunk; any fixed function that spreads keys.
pub(crate) trait ChunkKey: Ord + Clone {
    fn hash(&self) -> u64;
}

#[derive(Clone)]
pub(crate) struct CowMap<K, V> {
    chunks: Vec<Arc<Chunk<K, V>>>,
    len: usize,
}

/// Entries by rising key.
struct Chunk<K, V>(Vec<(K, V)>);

/// A chunk grows by this part of itself, and shrinks when less than half of it is used.
const GROWTH: usize = 8;

impl<K: Clone, V: Clone> Clone for Chunk<K, V> {
    /// A chunk is copied to be written to: room for a few more entries comes with it.
    fn clone(&self) -> Self {
        let mut entries = Vec::with_capacity(roomy(self.0.len()));
        entries.extend_from_slice(&self.0);
        Chunk(entries)
    }
}

fn roomy(len: usize) -> usize {
    len + len / GROWTH + 1
}

impl<K: ChunkKey, V> Chunk<K, V> {
    fn find(&self, key: &K) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(key))
    }

    fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok(at) => self.0.get_mut(at).map(|(_, old)| std::mem::replace(old, value)),
            Err(at) => {
                if self.0.len() == self.0.capacity() {
                    self.0.reserve_exact(roomy(self.0.len()) - self.0.len());
                }
                self.0.insert(at, (key, value));
                None
            }
        }
    }

    fn remove(&mut self, at: usize) -> V {
        let (_, value) = self.0.remove(at);
        if self.0.len() < self.0.capacity() / 2 {
            self.0.shrink_to(roomy(self.0.len()));
        }
        value
    }

    fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }
}

impl<K: ChunkKey, V: Clone> CowMap<K, V> {
    pub(crate) fn new() -> Self {
        let empty = Arc::new(Chunk(Vec::new()));
        CowMap { chunks: vec![empty; CHUNKS], len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn slot(key: &K) -> usize {
        usize::try_from(key.hash() % CHUNKS as u64).unwrap_or(0)
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let chunk = self.chunks.get(Self::slot(key))?;
        let at = chunk.find(key).ok()?;
        chunk.0.get(at).map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let chunk = self.chunks.get_mut(Self::slot(key))?;
        let at = chunk.find(key).ok()?;
        Arc::make_mut(chunk).0.get_mut(at).map(|(_, value)| value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let chunk = self.chunks.get_mut(Self::slot(&key))?;
        let old = Arc::make_mut(chunk).insert(key, value);
        if old.is_none() {
            self.len += 1;
        }
        old
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let chunk = self.chunks.get_mut(Self::slot(key))?;
        let at = chunk.find(key).ok()?;
        self.len -= 1;
        Some(Arc::make_mut(chunk).remove(at))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// Entries of the chunk that `key` falls into, from `key` on.
    pub(crate) fn range_from(&self, key: K) -> impl Iterator<Item = (&K, &V)> {
        let chunk = self.chunks.get(Self::slot(&key));
        let from = chunk.map_or(0, |chunk| chunk.find(&key).unwrap_or_else(|at| at));
        chunk.into_iter().flat_map(move |chunk| chunk.iter().skip(from))
    }

    /// Entries of one chunk, for sweeps.
    pub(crate) fn chunk(&self, n: usize) -> impl Iterator<Item = (&K, &V)> {
        self.chunks.get(n).into_iter().flat_map(|chunk| chunk.iter())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl ChunkKey for u16 {
        fn hash(&self) -> u64 {
            u64::from(*self / 40)
        }
    }

    fn entries(map: &CowMap<u16, u32>) -> Vec<(u16, u32)> {
        let mut all: Vec<_> = map.iter().map(|(k, v)| (*k, *v)).collect();
        assert_eq!(all.len(), map.len());
        all.sort_unstable();
        all
    }

    proptest! {
        #[test]
        fn it_is_an_ordered_map_and_a_copy_stays_as_it_was(
            writes in prop::collection::vec((0u16..200, prop::option::of(any::<u32>())), 0..400),
            copied_at in 0usize..400,
        ) {
            let (mut map, mut model) = (CowMap::new(), BTreeMap::new());
            let mut copy = None;
            for (n, (key, value)) in writes.into_iter().enumerate() {
                if n == copied_at {
                    copy = Some((map.clone(), model.clone()));
                }
                match value {
                    Some(value) if value % 3 == 0 => {
                        let known = map.get_mut(&key).map(|known| std::mem::replace(known, value));
                        let expected = model.get_mut(&key).map(|known| std::mem::replace(known, value));
                        prop_assert_eq!(known, expected);
                    }
                    Some(value) => {
                        prop_assert_eq!(map.insert(key, value), model.insert(key, value));
                    }
                    None => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                }
                prop_assert_eq!(map.get(&key), model.get(&key));
                let same_chunk = |k: &u16| *k / 40 == key / 40;
                let from: Vec<u16> = map.range_from(key).map(|(k, _)| *k).collect();
                let expected: Vec<u16> =
                    model.range(key..).map(|(k, _)| *k).take_while(same_chunk).collect();
                prop_assert_eq!(from, expected);
            }
            prop_assert_eq!(entries(&map), Vec::from_iter(model));
            if let Some((copy, model)) = copy {
                prop_assert_eq!(entries(&copy), Vec::from_iter(model));
            }
        }
    }

    #[test]
    fn a_chunk_has_little_to_spare_and_gives_back_what_it_does_not_use() {
        let mut chunk = Chunk(Vec::new());
        for n in 0..40_000u16 {
            chunk.insert(n, u64::from(n));
            let (len, capacity) = (chunk.0.len(), chunk.0.capacity());
            assert!(capacity <= len + len / GROWTH + 1, "{capacity} for {len}");
        }
        for _ in 0..39_000 {
            chunk.remove(0);
        }
        assert!(chunk.0.capacity() <= 2_000, "{}", chunk.0.capacity());
    }
}
