//! Which flows belong to phones that a core registrar has let in, and in whose name: their other
//! requests are taken without a digest of ours. One table for all shards of a node, in stripes by the
//! flow.

use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Instant;

use hashbrown::{DefaultHashBuilder, HashMap};
use smallvec::SmallVec;

use super::binding::contact_key;
use crate::net::{ConnId, Flow, InterfaceId, Transport};

type Key = (InterfaceId, Transport, SocketAddr, Option<ConnId>);
/// Addresses of record, by their hash, and until when.
type Names = SmallVec<[(u64, Instant); 1]>;

const STRIPES: usize = 64;
/// Users of one flow: a PBX registers all its extensions from one port. Each has a binding, whose
/// number is limited.
const NAMES_MAX: usize = 1_024;

/// See the module's header. A full stripe forgets what is over, and else takes nothing new: such a
/// phone is refused until it registers again.
#[derive(Debug)]
pub struct Flows {
    stripes: Vec<Mutex<HashMap<Key, Names>>>,
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

    fn with<R>(&self, flow: &Flow, f: impl FnOnce(&mut HashMap<Key, Names>, Key) -> R) -> R {
        let key = (flow.interface, flow.transport, flow.remote, flow.conn);
        let at = usize::try_from(self.hasher.hash_one(key) % 64).unwrap_or(0);
        let Some(stripe) = self.stripes.get(at) else { return f(&mut HashMap::new(), key) };
        f(&mut stripe.lock().unwrap_or_else(|e| e.into_inner()), key)
    }

    /// A user behind a flow is registered until then.
    pub fn insert(&self, flow: &Flow, aor: &str, until: Instant, now: Instant) {
        let name = contact_key(aor);
        self.with(flow, |stripe, key| {
            if stripe.len() >= self.max {
                stripe.retain(|_, names| names.iter().any(|(_, until)| *until > now));
            }
            if stripe.len() >= self.max && !stripe.contains_key(&key) {
                return;
            }
            let names = stripe.entry(key).or_default();
            names.retain(|(known, until)| *known != name && *until > now);
            if names.len() < NAMES_MAX {
                names.push((name, until));
            }
        });
    }

    /// The user is not there any more.
    pub fn remove(&self, flow: &Flow, aor: &str) {
        let name = contact_key(aor);
        self.with(flow, |stripe, key| {
            if let Some(names) = stripe.get_mut(&key) {
                names.retain(|(known, _)| *known != name);
                if names.is_empty() {
                    stripe.remove(&key);
                }
            }
        });
    }

    /// Whether a registered phone of this user is behind it; of any user for `None`.
    pub fn holds(&self, flow: &Flow, aor: Option<&str>, now: Instant) -> bool {
        let name = aor.map(contact_key);
        let fits = |(known, until): &(u64, Instant)| {
            *until > now && name.is_none_or(|name| name == *known)
        };
        self.with(flow, |stripe, key| stripe.get(&key).is_some_and(|names| names.iter().any(fits)))
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
    fn a_pbx_registers_its_extensions_over_one_flow() {
        let flows = Flows::new(640);
        let t0 = Instant::now();
        let until = t0 + Duration::from_secs(60);
        let name = |n: usize| format!("{n}@pbx.example");
        (0..=NAMES_MAX).for_each(|n| flows.insert(&flow(1), &name(n), until, t0));
        let held = (0..=NAMES_MAX).filter(|n| flows.holds(&flow(1), Some(&name(*n)), t0));
        assert_eq!(held.collect::<Vec<_>>(), Vec::from_iter(0..NAMES_MAX), "bounded");
        // Who refreshes keeps its place, and who leaves gives it up.
        flows.insert(&flow(1), &name(7), until, t0);
        flows.remove(&flow(1), &name(8));
        flows.insert(&flow(1), &name(NAMES_MAX), until, t0);
        assert!(flows.holds(&flow(1), Some(&name(7)), t0));
        assert!(flows.holds(&flow(1), Some(&name(NAMES_MAX)), t0));
    }

    #[test]
    fn flows_are_known_for_their_time_and_no_more_than_there_is_room_for() {
        let flows = Flows::new(640);
        let t0 = Instant::now();
        let minute = Duration::from_secs(60);
        flows.insert(&flow(1), "a@x", t0 + minute, t0);
        assert!(flows.holds(&flow(1), Some("a@x"), t0) && flows.holds(&flow(1), None, t0));
        assert!(!flows.holds(&flow(1), Some("b@x"), t0) && !flows.holds(&flow(2), None, t0));
        assert!(!flows.holds(&flow(1), Some("a@x"), t0 + minute));
        flows.insert(&flow(1), "b@x", t0 + minute, t0);
        flows.remove(&flow(1), "a@x");
        assert!(!flows.holds(&flow(1), Some("a@x"), t0) && flows.holds(&flow(1), Some("b@x"), t0));
        flows.remove(&flow(1), "b@x");
        assert!(!flows.holds(&flow(1), None, t0));
        let held = |at| (0..6_000).filter(|port| flows.holds(&flow(*port), None, at)).count();
        (0..6_000).for_each(|port| flows.insert(&flow(port), "a@x", t0 + minute, t0));
        assert!((500..=640).contains(&held(t0)), "{}", held(t0));
        // What is over makes room.
        let later = t0 + minute;
        (5_000..5_100).for_each(|port| flows.insert(&flow(port), "a@x", later + minute, later));
        assert_eq!(
            (5_000..5_100).filter(|port| flows.holds(&flow(*port), None, later)).count(),
            100
        );
    }
}
