//! A map in copy-on-write chunks: cloning costs one reference per chunk, and a write after a clone
//! copies only the chunk that it touches. That is what lets a snapshot be written out while the
//! state machine goes on. Iteration order is the same on every node. Knows nothing of records.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Number of chunks; a hundred entries each at a hundred thousand records.
pub(crate) const CHUNKS: usize = 1024;

/// Chooses a key's chunk; any fixed function that spreads keys.
pub(crate) trait ChunkKey: Ord + Clone {
    fn hash(&self) -> u64;
}

#[derive(Clone)]
pub(crate) struct CowMap<K, V> {
    chunks: Vec<Arc<BTreeMap<K, V>>>,
    len: usize,
}

impl<K: ChunkKey, V: Clone> CowMap<K, V> {
    pub(crate) fn new() -> Self {
        let empty = Arc::new(BTreeMap::new());
        CowMap { chunks: vec![empty; CHUNKS], len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn slot(key: &K) -> usize {
        usize::try_from(key.hash() % CHUNKS as u64).unwrap_or(0)
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.chunks.get(Self::slot(key))?.get(key)
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
        if !chunk.contains_key(key) {
            return None;
        }
        let old = Arc::make_mut(chunk).remove(key);
        if old.is_some() {
            self.len -= 1;
        }
        old
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// Entries of the chunk that `key` falls into, from `key` on.
    pub(crate) fn range_from(&self, key: K) -> impl Iterator<Item = (&K, &V)> {
        self.chunks
            .get(Self::slot(&key))
            .into_iter()
            .flat_map(move |chunk| chunk.range(key.clone()..))
    }

    /// Entries of one chunk, for sweeps.
    pub(crate) fn chunk(&self, n: usize) -> impl Iterator<Item = (&K, &V)> {
        self.chunks.get(n).into_iter().flat_map(|chunk| chunk.iter())
    }
}
