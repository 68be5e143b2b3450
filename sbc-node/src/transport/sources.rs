//! Accepted connections per remote address, counted once for all shards of the node.
//!
//! Asked when a connection comes and goes, never per packet: one lock for all is enough.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;

/// Shared by the shards' transports. As large as there are connections.
#[derive(Clone, Debug, Default)]
pub struct Sources(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl PartialEq for Sources {
    /// The same table.
    fn eq(&self, other: &Sources) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Sources {}

impl Sources {
    /// Counts a connection of `source`, unless it has `max`.
    pub fn enter(&self, source: IpAddr, max: usize) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(source.to_canonical()).or_insert(0);
        let fits = *count < max;
        if fits {
            *count += 1;
        } else if *count == 0 {
            counts.remove(&source.to_canonical());
        }
        fits
    }

    /// A connection of `source` is gone.
    pub fn leave(&self, source: IpAddr) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&source.to_canonical()) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&source.to_canonical());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_count_together_and_nothing_stays() {
        let (one, other) = (Sources::default(), Sources::default());
        let shared = one.clone();
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert!(one.enter(ip, 2) && shared.enter(mapped, 2) && !one.enter(ip, 2));
        assert!(other.enter(ip, 1) && !other.enter(ip, 0) && one != other && one == shared);
        one.leave(ip);
        assert!(shared.enter(ip, 2));
        for _ in 0..3 {
            shared.leave(ip);
        }
        assert!(one.0.lock().unwrap().is_empty());
        assert!(!one.enter(ip, 0) && one.0.lock().unwrap().is_empty());
    }
}
