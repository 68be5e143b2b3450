//! The resolver as a shard sees it: literal addresses and cached names at once, the rest later.
//!
//! Sans-IO: a lookup that must be made is returned to the caller, its answer is given to
//! [`Front::answered`]. The cache is bounded and honours the TTL of good and bad news alike.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use rand::SeedableRng;
use rand::rngs::StdRng;
use sbc_core::core::{ResolveError, ResolveId, ResolveQuery};
use sbc_core::net::{DomainId, Target, Transport};

use super::plan::Plan;
use super::{Answer, Key, Usable};

/// Names kept per shard.
const ENTRIES_MAX: usize = 10_000;
/// Names being asked for per shard.
const PENDING_MAX: usize = 2_000;
/// Queries that wait for the same name.
const WAITERS_MAX: usize = 10_000;
/// A TTL is honoured within these bounds: 0 would ask for every call.
const TTL_MIN: Duration = Duration::from_secs(1);
const TTL_MAX: Duration = Duration::from_secs(86_400);

/// What becomes of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The answer is known.
    Ready(Result<Vec<Target>, ResolveError>),
    /// Somebody asks for it already.
    Wait,
    /// The servers must be asked.
    Ask(Key),
    /// Too many lookups are under way: answer as a timeout, and count it.
    Full,
}

struct Entry {
    result: Result<Plan, ResolveError>,
    until: Instant,
}

/// Cache and waiting list of one shard.
pub struct Front {
    entries: HashMap<Key, Entry>,
    pending: HashMap<Key, Vec<ResolveId>>,
    waiters: usize,
    rng: StdRng,
    domains: Domains,
}

/// Domains that secured targets were resolved from, by number (RFC 5922 §7).
#[derive(Default)]
struct Domains {
    by_name: HashMap<Arc<str>, DomainId>,
    names: Vec<Arc<str>>,
}

impl Domains {
    /// Marks the secured targets of a name. A full table marks none: such connections must then be
    /// vouched for by the address itself.
    fn mark(&mut self, host: &Arc<str>, targets: &mut [Target]) {
        for target in targets {
            if target.transport == Transport::Tls {
                target.domain = self.number(host);
            }
        }
    }

    fn number(&mut self, host: &Arc<str>) -> DomainId {
        if let Some(id) = self.by_name.get(host) {
            return *id;
        }
        if self.names.len() >= ENTRIES_MAX {
            return DomainId::default();
        }
        self.names.push(host.clone());
        let id = DomainId(u32::try_from(self.names.len()).unwrap_or(0));
        self.by_name.insert(host.clone(), id);
        id
    }
}

impl Front {
    pub fn new(seed: u64) -> Front {
        Front {
            entries: HashMap::new(),
            pending: HashMap::new(),
            waiters: 0,
            rng: StdRng::seed_from_u64(seed),
            domains: Domains::default(),
        }
    }

    /// Answers `query` from what is known, or says what to do.
    pub fn query(
        &mut self,
        now: Instant,
        id: ResolveId,
        query: &ResolveQuery,
        usable: Usable,
    ) -> Step {
        if let Some(ip) = literal(&query.host) {
            return Step::Ready(literal_target(ip, query, usable));
        }
        let key = Key {
            host: Arc::from(query.host.trim_end_matches('.').to_ascii_lowercase()),
            port: query.port,
            transport: query.transport,
            sips: query.sips,
            usable,
        };
        if let Some(entry) = self.entries.get(&key)
            && entry.until > now
        {
            let targets = entry.result.as_ref().map(|plan| {
                let mut targets = plan.targets(&mut self.rng);
                self.domains.mark(&key.host, &mut targets);
                targets
            });
            return Step::Ready(targets.map_err(|e| *e));
        }
        if self.waiters >= WAITERS_MAX {
            return Step::Full;
        }
        if let Some(waiting) = self.pending.get_mut(&key) {
            waiting.push(id);
            self.waiters += 1;
            return Step::Wait;
        }
        if self.pending.len() >= PENDING_MAX {
            return Step::Full;
        }
        self.waiters += 1;
        self.pending.insert(key.clone(), vec![id]);
        Step::Ask(key)
    }

    /// Takes an answer in; returns who waited for it, each with targets drawn for itself.
    pub fn answered(
        &mut self,
        now: Instant,
        answer: Answer,
    ) -> Vec<(ResolveId, Result<Vec<Target>, ResolveError>)> {
        let waiting = self.pending.remove(&answer.key).unwrap_or_default();
        self.waiters = self.waiters.saturating_sub(waiting.len());
        let results = waiting
            .into_iter()
            .map(|id| {
                let targets = answer.result.as_ref().map(|plan| {
                    let mut targets = plan.targets(&mut self.rng);
                    self.domains.mark(&answer.key.host, &mut targets);
                    targets
                });
                (id, targets.map_err(|e| *e))
            })
            .collect();
        let until = now + answer.ttl.clamp(TTL_MIN, TTL_MAX);
        if self.entries.len() >= ENTRIES_MAX && !self.entries.contains_key(&answer.key) {
            self.make_room(now);
        }
        self.entries.insert(answer.key, Entry { result: answer.result, until });
        results
    }

    /// The lookup could not be started: whoever waits for it hears a timeout, nothing is cached.
    pub fn refused(&mut self, key: &Key) -> Vec<ResolveId> {
        let waiting = self.pending.remove(key).unwrap_or_default();
        self.waiters = self.waiters.saturating_sub(waiting.len());
        waiting
    }

    /// The domain of a target.
    pub fn domain(&self, id: DomainId) -> Option<Arc<str>> {
        let index = usize::try_from(id.0).ok()?.checked_sub(1)?;
        self.domains.names.get(index).cloned()
    }

    /// Forgets every name.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Drops what has run out; a cache that is still full starts over.
    fn make_room(&mut self, now: Instant) {
        self.entries.retain(|_, entry| entry.until > now);
        if self.entries.len() >= ENTRIES_MAX {
            self.entries.clear();
        }
    }
}

/// A host that is an address, with or without the brackets of an `IPv6reference`.
fn literal(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

/// RFC 3263 §4.1, §4.2: the transport asked for, otherwise UDP (TLS for sips).
fn literal_target(
    ip: IpAddr,
    query: &ResolveQuery,
    usable: Usable,
) -> Result<Vec<Target>, ResolveError> {
    let transport = query.transport.unwrap_or(default_transport(query.sips, usable));
    if !usable.has(transport, ip.is_ipv4()) {
        return Err(ResolveError::NotFound);
    }
    let port = query.port.unwrap_or(transport.default_port());
    Ok(vec![Target::new(transport, SocketAddr::new(ip, port))])
}

/// UDP, or TLS for sips; an interface without UDP uses what it has.
pub(super) fn default_transport(sips: bool, usable: Usable) -> Transport {
    if sips {
        return Transport::Tls;
    }
    [Transport::Udp, Transport::Tcp, Transport::Tls]
        .into_iter()
        .find(|t| usable.has_transport(*t))
        .unwrap_or(Transport::Udp)
}

#[cfg(test)]
mod tests {
    use sbc_core::net::InterfaceId;

    use super::super::plan::Candidate;
    use super::*;

    const UDP4: Usable = Usable(0b10);

    fn query(host: &str) -> ResolveQuery {
        ResolveQuery {
            host: host.to_owned(),
            port: None,
            transport: None,
            sips: false,
            interface: InterfaceId(0),
        }
    }

    fn plan(last: u8) -> Plan {
        let addresses = vec![IpAddr::from([192, 0, 2, last])];
        let candidate = Candidate {
            rank: 0,
            priority: 0,
            weight: 0,
            transport: Transport::Udp,
            port: 5060,
            addresses,
        };
        Plan { candidates: vec![candidate] }
    }

    fn asked(step: Step) -> Key {
        match step {
            Step::Ask(key) => key,
            other => panic!("expected a lookup, got {other:?}"),
        }
    }

    #[test]
    fn rfc3263_4_1_a_literal_address_needs_no_lookup() {
        let mut front = Front::new(1);
        let usable = UDP4.with(Transport::Udp, false);
        let now = Instant::now();
        for (host, addr) in
            [("192.0.2.1", "192.0.2.1:5060"), ("[2001:db8::1]", "[2001:db8::1]:5060")]
        {
            let target = Target::new(Transport::Udp, addr.parse().unwrap());
            let step = front.query(now, ResolveId(1), &query(host), usable);
            assert_eq!(step, Step::Ready(Ok(vec![target])));
        }
        let step = front.query(now, ResolveId(1), &query("[2001:db8::1]"), UDP4);
        assert_eq!(step, Step::Ready(Err(ResolveError::NotFound)), "no IPv6 listener");
    }

    #[test]
    fn one_lookup_serves_all_who_wait_and_then_the_cache_until_its_ttl() {
        let (mut front, now) = (Front::new(1), Instant::now());
        let key = asked(front.query(now, ResolveId(1), &query("Example.COM."), UDP4));
        assert_eq!(&*key.host, "example.com");
        assert_eq!(front.query(now, ResolveId(2), &query("example.com"), UDP4), Step::Wait);
        let ttl = Duration::from_secs(30);
        let answer = Answer { key, result: Ok(plan(1)), ttl };
        let ids: Vec<u64> = front.answered(now, answer).iter().map(|(id, _)| id.0).collect();
        assert_eq!(ids, [1, 2]);
        let later = now + ttl - Duration::from_millis(1);
        let hit = front.query(later, ResolveId(3), &query("example.com"), UDP4);
        assert!(matches!(hit, Step::Ready(Ok(targets)) if targets.len() == 1));
        asked(front.query(now + ttl, ResolveId(4), &query("example.com"), UDP4));
    }

    #[test]
    fn bad_news_is_cached_too() {
        let (mut front, now) = (Front::new(1), Instant::now());
        let key = asked(front.query(now, ResolveId(1), &query("nowhere.invalid"), UDP4));
        let bad = Answer { key, result: Err(ResolveError::NotFound), ttl: Duration::from_secs(5) };
        front.answered(now, bad);
        let step = front.query(now, ResolveId(2), &query("nowhere.invalid"), UDP4);
        assert_eq!(step, Step::Ready(Err(ResolveError::NotFound)));
    }

    #[test]
    fn lookups_under_way_and_names_kept_are_bounded() {
        let (mut front, now) = (Front::new(1), Instant::now());
        let mut keys = Vec::new();
        for n in 0..PENDING_MAX {
            let id = ResolveId(u64::try_from(n).unwrap());
            keys.push(asked(front.query(now, id, &query(&format!("h{n}.test")), UDP4)));
        }
        assert_eq!(front.query(now, ResolveId(9), &query("one-more.test"), UDP4), Step::Full);
        for key in keys {
            let result = Ok(plan(1));
            front.answered(now, Answer { key, result, ttl: Duration::from_secs(60) });
        }
        assert_eq!((front.pending.len(), front.waiters), (0, 0));
        for n in 0..ENTRIES_MAX * 2 {
            let key = asked(front.query(now, ResolveId(1), &query(&format!("x{n}.test")), UDP4));
            let result = Ok(plan(1));
            front.answered(now, Answer { key, result, ttl: Duration::from_secs(60) });
            assert!(front.entries.len() <= ENTRIES_MAX);
        }
    }
}
