//! Which flows belong to phones that a core registrar has let in: their other requests are taken
//! without a digest of ours. One table for all shards of a node, in stripes by the flow.

use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Instant;

use hashbrown::{DefaultHashBuilder, HashMap};

use crate::net::{ConnId, Flow, InterfaceId, Transport};

type Key = (InterfaceId, Transport, SocketAddr, Option<ConnId>);

const STRIPES: usize = 64;

/// See the module's header. A full stripe forgets what is over, and else takes nothing new: such a
/// phone is refused until it registers again.
#[derive(Debug)]
pub struct Flows {
    stripes: Vec<Mutex<HashMap<Key, Instant>>>,
    hasher: DefaultHashBuilder,
    /// Of one stripe.
    max: usize,
}

impl Flows {
    /// Room for about `max` flows.
    pub fn new(max: usize) -> Flows {
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        Flows { stripes, hasher: DefaultHashBuilder::default(), max: max.div_ceil(STRIPES) }
    }

    fn with<R>(&self, flow: &Flow, f: impl FnOnce(&mut HashMap<Key, Instant>, Key) -> R) -> R {
        let key = (flow.interface, flow.transport, flow.remote, flow.conn);
        let at = usize::try_from(self.hasher.hash_one(key) % 64).unwrap_or(0);
        let Some(stripe) = self.stripes.get(at) else { return f(&mut HashMap::new(), key) };
        f(&mut stripe.lock().unwrap_or_else(|e| e.into_inner()), key)
    }

    /// The phone behind a flow is registered until then.
    pub fn insert(&self, flow: &Flow, until: Instant, now: Instant) {
        self.with(flow, |stripe, key| {
            if stripe.len() >= self.max {
                stripe.retain(|_, until| *until > now);
            }
            if stripe.len() < self.max || stripe.contains_key(&key) {
                stripe.insert(key, until);
            }
        });
    }

    pub fn remove(&self, flow: &Flow) {
        self.with(flow, |stripe, key| {
            stripe.remove(&key);
        });
    }

    /// Whether a registered phone is behind it.
    pub fn holds(&self, flow: &Flow, now: Instant) -> bool {
        self.with(flow, |stripe, key| stripe.get(&key).is_some_and(|until| *until > now))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn flow(port: u16) -> Flow {
        Flow {
            interface: InterfaceId(0),
            transport: Transport::Udp,
            local: "192.0.2.1:5060".parse().unwrap(),
            remote: ([192, 0, 2, 2], port).into(),
            conn: None,
        }
    }

    #[test]
    fn flows_are_known_for_their_time_and_no_more_than_there_is_room_for() {
        let flows = Flows::new(640);
        let t0 = Instant::now();
        let minute = Duration::from_secs(60);
        flows.insert(&flow(1), t0 + minute, t0);
        assert!(flows.holds(&flow(1), t0) && !flows.holds(&flow(2), t0));
        assert!(!flows.holds(&flow(1), t0 + minute));
        flows.remove(&flow(1));
        assert!(!flows.holds(&flow(1), t0));
        let held = |at| (0..6_000).filter(|port| flows.holds(&flow(*port), at)).count();
        (0..6_000).for_each(|port| flows.insert(&flow(port), t0 + minute, t0));
        assert!((500..=640).contains(&held(t0)), "{}", held(t0));
        // What is over makes room.
        let later = t0 + minute;
        (5_000..5_100).for_each(|port| flows.insert(&flow(port), later + minute, later));
        assert_eq!((5_000..5_100).filter(|port| flows.holds(&flow(*port), later)).count(), 100);
    }
}
