//! One stripe of the sources: their part of pike's tree, of the dictionary counts, and the flows
//! of registered users. Which source lies in which stripe is decided in `mod.rs`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::{Dictionary, DictionaryConfig, GuardConfig, Pike, PikeConfig};
use crate::net::{Flow, Transport};

#[derive(Debug)]
pub(super) struct Stripe {
    pub(super) pike: Pike,
    pub(super) dictionary: Dictionary,
    pub(super) users: UserFlows,
    /// As configured, before it was divided.
    configured: (PikeConfig, DictionaryConfig),
}

impl Stripe {
    /// One of `count` stripes: the bounds are divided among them.
    pub(super) fn new(config: &GuardConfig, count: usize, now: Instant) -> Stripe {
        Stripe {
            pike: Pike::new(pike(config, count), now),
            dictionary: Dictionary::new(dictionary(config, count)),
            users: UserFlows::new(config.user_allowance, MAX_FLOWS.div_ceil(count)),
            configured: (config.pike, config.dictionary),
        }
    }

    pub(super) fn configure(&mut self, config: &GuardConfig, count: usize, now: Instant) {
        if config.pike != self.configured.0 {
            self.pike = Pike::new(pike(config, count), now);
        }
        if config.dictionary != self.configured.1 {
            self.dictionary = Dictionary::new(dictionary(config, count));
        }
        self.users.per_second = config.user_allowance;
        self.configured = (config.pike, config.dictionary);
    }
}

fn pike(config: &GuardConfig, count: usize) -> PikeConfig {
    PikeConfig { max_nodes: config.pike.max_nodes.div_ceil(count), ..config.pike }
}

fn dictionary(config: &GuardConfig, count: usize) -> DictionaryConfig {
    let max_sources = config.dictionary.max_sources.div_ceil(count);
    DictionaryConfig { max_sources, ..config.dictionary }
}

/// Flows of registered users in all stripes, about 80 bytes each.
const MAX_FLOWS: usize = 262_144;
/// Seconds of its rate that a flow may use at once.
const BURST: u32 = 5;

/// A registered user's way to us.
type Key = (SocketAddr, Transport);

/// Flows over which a user registered, each with a token bucket: within it pike does not count,
/// past it the flow counts as any stranger. A full table has no room for new ones: those count.
#[derive(Debug)]
pub(super) struct UserFlows {
    per_second: u16,
    max: usize,
    /// Until when, and when the bucket is full again.
    flows: HashMap<Key, (Instant, Instant)>,
}

impl UserFlows {
    fn new(per_second: u16, max: usize) -> UserFlows {
        UserFlows { per_second, max, flows: HashMap::new() }
    }

    pub(super) fn add(&mut self, now: Instant, flow: &Flow, until: Instant) {
        let key = (flow.remote, flow.transport);
        if let Some((end, _)) = self.flows.get_mut(&key) {
            *end = until;
            return;
        }
        if self.flows.len() >= self.max {
            self.flows.retain(|_, (end, _)| *end > now);
        }
        if self.flows.len() < self.max {
            self.flows.insert(key, (until, now));
        }
    }

    pub(super) fn passes(&mut self, now: Instant, flow: &Flow) -> bool {
        if self.flows.is_empty() || self.per_second == 0 {
            return false;
        }
        let key = (flow.remote, flow.transport);
        let Some((until, full_at)) = self.flows.get_mut(&key) else { return false };
        if *until <= now {
            self.flows.remove(&key);
            return false;
        }
        let token = Duration::from_secs(1) / u32::from(self.per_second);
        let next = (*full_at).max(now) + token;
        let fits = next - now <= Duration::from_secs(1) * BURST;
        if fits {
            *full_at = next;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::InterfaceId;

    #[test]
    fn a_users_flow_has_its_allowance_until_it_ends_and_no_more() {
        let t0 = Instant::now();
        let flow = |port: u16| Flow {
            interface: InterfaceId(0),
            transport: Transport::Udp,
            local: "203.0.113.1:5060".parse().unwrap(),
            remote: SocketAddr::from(([192, 0, 2, 1], port)),
            conn: None,
        };
        let mut users = UserFlows::new(10, 2);
        let end = t0 + Duration::from_secs(60);
        users.add(t0, &flow(1), end);
        assert_eq!((0..1_000).filter(|_| users.passes(t0, &flow(1))).count(), 50);
        assert!(!users.passes(t0, &flow(2)), "a neighbour behind the same NAT has none");
        assert!(users.passes(t0 + Duration::from_millis(100), &flow(1)));
        assert!(!users.passes(end, &flow(1)));
        for port in 3..10 {
            users.add(t0, &flow(port), end);
        }
        assert_eq!(users.flows.len(), 2, "bounded");
        users.add(end, &flow(11), end + Duration::from_secs(1));
        assert_eq!(users.flows.len(), 1, "what has ended gives way");
    }
}
