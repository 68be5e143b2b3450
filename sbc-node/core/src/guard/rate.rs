//! Rate limits: token buckets by interface, source, trunk, AOR, destination prefix and method, and
//! limits that follow the node's load.
//!
//! A bucket is one number (the time at which it is full again), kept in a bounded table. A bucket
//! that is full again carries no information and gives its place away; when every place is taken
//! by a busy bucket, the request passes and is counted as not limited. Buckets lie in stripes by
//! their key, so that shards seldom meet.
//!
//! The limits that follow the load (`network`, `feedback`) refuse a share of the requests, evenly
//! spread: no dice, every n-th.

use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hashbrown::{DefaultHashBuilder, HashMap};

/// What a limit counts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RateKey {
    /// One bucket for all.
    All,
    /// One bucket per interface.
    Interface,
    Source,
    /// The trunk that the request comes from; strangers are not counted.
    Trunk,
    /// The address of record in From.
    Aor,
    /// The first so many characters of the R-URI user.
    Prefix(u8),
}

/// What a request over the limit gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OverLimit {
    Silence,
    /// 503 with Retry-After.
    Unavailable,
    /// 403.
    Forbidden,
}

/// One limit.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimit {
    pub key: RateKey,
    /// Only these methods; empty for all.
    pub methods: Vec<Box<str>>,
    pub algorithm: Algorithm,
    pub over: OverLimit,
    /// A bucket's rate and burst are those of the whole cluster: each node has an even part.
    pub cluster: bool,
}

/// How a limit decides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Algorithm {
    /// A token bucket.
    Bucket {
        /// Requests per second in the long run.
        per_second: f64,
        /// Requests that may come at once.
        burst: u32,
    },
    /// Refuses in proportion to the delay of what waits in the receive queues; all at `delay`.
    Network { delay: Duration },
    /// Refuses as much as it takes to hold the share of the cores in use at `cpu`: a controller
    /// with a proportional and an integral part.
    Feedback { cpu: f64 },
}

/// What is known of a request for its buckets.
#[derive(Clone, Copy, Debug)]
pub struct RateFacts<'a> {
    pub source: IpAddr,
    pub interface: u16,
    pub trunk: Option<u32>,
    pub aor: &'a str,
    pub ruri_user: &'a str,
    pub method: &'a str,
    /// Of a trusted network: only limits that name its trunk are about it.
    pub trusted: bool,
}

/// The answer of a limit that is exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// Index of the limit.
    pub limit: usize,
    pub over: OverLimit,
    /// Until a token is there again.
    pub wait: Duration,
}

/// See the module's header.
#[derive(Debug)]
pub struct Rates {
    limits: Vec<Limit>,
    stripes: Box<[Mutex<Buckets>]>,
    hasher: DefaultHashBuilder,
    epoch: Instant,
    unlimited: AtomicU64,
    /// Living nodes of the cluster.
    nodes: AtomicU32,
}

/// A limit and what it refuses now, if it follows the load.
#[derive(Debug)]
struct Limit {
    config: RateLimit,
    /// Share refused, in 2^-16.
    share: AtomicU32,
    /// The share summed up: a request is refused whenever it passes a whole.
    sum: AtomicU32,
}

/// One stripe of the table of buckets.
#[derive(Debug, Default)]
struct Buckets {
    index: HashMap<u64, u32>,
    /// Key and the time at which the bucket is full, in nanoseconds.
    slots: Vec<(u64, u64)>,
    max: usize,
    hand: usize,
}

/// Stripes of the table, unless it is small.
const STRIPES: usize = 64;
const BUCKETS_PER_STRIPE: usize = 128;
/// Places looked at for one that gives way.
const SWEEP: usize = 32;
/// One whole of a share.
const WHOLE: f64 = 65_536.0;
/// Parts of the feedback controller, per measurement.
const PROPORTIONAL: f64 = 0.5;
const INTEGRAL: f64 = 0.1;

impl Rates {
    /// Holds at most `max` buckets of about 50 bytes.
    pub fn new(limits: Vec<RateLimit>, max: usize, now: Instant) -> Rates {
        let max = max.clamp(1, 1 << 24);
        let count = (max / BUCKETS_PER_STRIPE).clamp(1, STRIPES);
        let stripe = |_| Mutex::new(Buckets { max: max.div_ceil(count), ..Buckets::default() });
        let limit = |config| Limit { config, share: AtomicU32::new(0), sum: AtomicU32::new(0) };
        Rates {
            limits: limits.into_iter().map(limit).collect(),
            stripes: (0..count).map(stripe).collect(),
            hasher: DefaultHashBuilder::default(),
            epoch: now,
            unlimited: AtomicU64::new(0),
            nodes: AtomicU32::new(1),
        }
    }

    /// Whether there is any limit.
    pub(super) fn any(&self) -> bool {
        !self.limits.is_empty()
    }

    /// Takes a token from every bucket that the request counts in; stops at the first that has
    /// none.
    pub fn check(&self, now: Instant, facts: &RateFacts<'_>) -> Result<(), Exceeded> {
        let now = nanos(now.saturating_duration_since(self.epoch));
        for (index, limit) in self.limits.iter().enumerate() {
            let c = &limit.config;
            if facts.trusted && c.key != RateKey::Trunk {
                continue;
            }
            let counts = c.methods.is_empty() || c.methods.iter().any(|m| **m == *facts.method);
            let Some(key) = counts.then(|| self.key(index, c.key, facts)).flatten() else {
                continue;
            };
            let taken = match c.algorithm {
                Algorithm::Bucket { per_second, burst } if c.cluster => {
                    let nodes = self.nodes();
                    self.take(key, now, per_second / f64::from(nodes), burst / nodes)
                }
                Algorithm::Bucket { per_second, burst } => self.take(key, now, per_second, burst),
                Algorithm::Network { .. } | Algorithm::Feedback { .. } => limit.pass_share(),
            };
            if let Err(wait) = taken {
                return Err(Exceeded { limit: index, over: c.over, wait });
            }
        }
        Ok(())
    }

    /// One measurement of the node: how long what waits has waited, the share of the cores in use.
    /// Called at a steady pace.
    pub fn observe(&self, queue_delay: Duration, cpu: f64) {
        for limit in &self.limits {
            let old = f64::from(limit.share.load(Ordering::Relaxed)) / WHOLE;
            let share = match limit.config.algorithm {
                Algorithm::Bucket { .. } => continue,
                Algorithm::Network { delay } => {
                    queue_delay.as_secs_f64() / delay.as_secs_f64().max(1e-6)
                }
                Algorithm::Feedback { cpu: wanted } => {
                    let error = cpu - wanted;
                    // Coming down is slower than going up: what was shed comes back at once.
                    let step = if error > 0.0 { PROPORTIONAL * error } else { INTEGRAL * error };
                    old + step
                }
            };
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "0 to 2^16"
            )]
            let share = (share.clamp(0.0, 1.0) * WHOLE) as u32;
            limit.share.store(share, Ordering::Relaxed);
        }
    }

    /// The nodes that share the limits of the cluster.
    pub fn set_nodes(&self, nodes: u32) {
        self.nodes.store(nodes.max(1), Ordering::Relaxed);
    }

    pub(super) fn nodes(&self) -> u32 {
        self.nodes.load(Ordering::Relaxed)
    }

    /// Buckets in use.
    pub fn len(&self) -> usize {
        self.stripes.iter().map(|s| super::lock(s).index.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Requests that no bucket could be made for.
    pub fn unlimited(&self) -> u64 {
        self.unlimited.load(Ordering::Relaxed)
    }

    fn key(&self, index: usize, key: RateKey, facts: &RateFacts<'_>) -> Option<u64> {
        let hash = |value: &dyn Fn() -> u64| self.hasher.hash_one((index, value()));
        let of = |value: &str| self.hasher.hash_one(value);
        Some(match key {
            RateKey::All => hash(&|| 0),
            RateKey::Interface => hash(&|| u64::from(facts.interface)),
            RateKey::Source => hash(&|| self.hash(facts.source.to_canonical())),
            RateKey::Trunk => {
                let trunk = facts.trunk?;
                hash(&|| u64::from(trunk))
            }
            RateKey::Aor => hash(&|| of(facts.aor)),
            RateKey::Prefix(len) => {
                let end = facts.ruri_user.char_indices().nth(usize::from(len));
                let prefix = end.map_or(facts.ruri_user, |(at, _)| &facts.ruri_user[..at]);
                hash(&|| of(prefix))
            }
        })
    }

    fn hash(&self, value: impl Hash) -> u64 {
        self.hasher.hash_one(value)
    }

    fn take(&self, key: u64, now: u64, rate: f64, burst: u32) -> Result<(), Duration> {
        if rate <= 0.0 {
            return Err(Duration::from_secs(60));
        }
        let per_token = nanos(Duration::from_secs_f64((1.0 / rate).min(1e6)));
        let depth = per_token.saturating_mul(u64::from(burst.max(1)));
        let stripe = usize::try_from(key >> 32).unwrap_or(0) % self.stripes.len().max(1);
        let Some(stripe) = self.stripes.get(stripe) else { return Ok(()) };
        let mut buckets = super::lock(stripe);
        let Some(slot) = buckets.slot(key, now) else {
            self.unlimited.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        // Shards read the clock each for themselves: a bucket may lie a moment ahead.
        let full_at = slot.1.max(now).saturating_add(per_token);
        let ahead = full_at - now;
        if ahead > depth {
            return Err(Duration::from_nanos(ahead - depth));
        }
        slot.1 = full_at;
        Ok(())
    }
}

impl Limit {
    /// Refuses the share, evenly; with one it is some second until things may look better.
    fn pass_share(&self) -> Result<(), Duration> {
        let share = self.share.load(Ordering::Relaxed);
        if share == 0 {
            return Ok(());
        }
        let before = self.sum.fetch_add(share, Ordering::Relaxed);
        let refused = before >> 16 != before.wrapping_add(share) >> 16;
        if refused { Err(Duration::from_secs(1)) } else { Ok(()) }
    }
}

impl Buckets {
    /// The bucket of `key`, an old one or a new one; `None` when no place gives way.
    fn slot(&mut self, key: u64, now: u64) -> Option<&mut (u64, u64)> {
        if let Some(at) = self.index.get(&key) {
            return self.slots.get_mut(*at as usize);
        }
        let at = if self.slots.len() < self.max {
            self.slots.push((key, 0));
            self.slots.len() - 1
        } else {
            let idle = |at: &usize| self.slots.get(*at).is_some_and(|s| s.1 <= now);
            let found = (0..SWEEP).map(|i| (self.hand + i) % self.slots.len()).find(idle);
            self.hand = (self.hand + SWEEP) % self.slots.len();
            let at = found?;
            let slot = self.slots.get_mut(at)?;
            self.index.remove(&slot.0);
            *slot = (key, 0);
            at
        };
        self.index.insert(key, u32::try_from(at).ok()?);
        self.slots.get_mut(at)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(key: RateKey, per_second: f64, burst: u32) -> RateLimit {
        RateLimit {
            key,
            methods: vec![],
            algorithm: Algorithm::Bucket { per_second, burst },
            over: OverLimit::Unavailable,
            cluster: false,
        }
    }

    fn facts(source: u8) -> RateFacts<'static> {
        RateFacts {
            source: IpAddr::from([192, 0, 2, source]),
            interface: 0,
            trunk: None,
            aor: "alice@example.com",
            ruri_user: "+4930123",
            method: "INVITE",
            trusted: false,
        }
    }

    #[test]
    fn burst_then_rate_per_key() {
        let t0 = Instant::now();
        let r = Rates::new(vec![limit(RateKey::Source, 2.0, 3)], 100, t0);
        let passed = |r: &Rates, at: Instant, source| {
            (0..10).filter(|_| r.check(at, &facts(source)).is_ok()).count()
        };
        assert_eq!(passed(&r, t0, 1), 3);
        assert_eq!(passed(&r, t0, 2), 3);
        let over = r.check(t0, &facts(1)).unwrap_err();
        assert_eq!((over.limit, over.wait), (0, Duration::from_millis(500)));
        assert_eq!(passed(&r, t0 + Duration::from_secs(1), 1), 2);
    }

    #[test]
    fn a_limit_of_the_cluster_is_divided_among_its_nodes() {
        let t0 = Instant::now();
        let of = |cluster| {
            Rates::new(vec![RateLimit { cluster, ..limit(RateKey::Aor, 4.0, 12) }], 100, t0)
        };
        let passed =
            |r: &Rates, at: Instant| (0..50).filter(|_| r.check(at, &facts(1)).is_ok()).count();
        let (own, shared) = (of(false), of(true));
        own.set_nodes(4);
        shared.set_nodes(4);
        assert_eq!((passed(&own, t0), passed(&shared, t0)), (12, 3));
        let later = t0 + Duration::from_secs(1);
        assert_eq!((passed(&own, later), passed(&shared, later)), (4, 1));
        // A node died: the rest have its part.
        shared.set_nodes(2);
        assert_eq!(passed(&shared, t0 + Duration::from_secs(2)), 2);
        // Many nodes: never less than one at once.
        shared.set_nodes(100);
        assert_eq!(passed(&shared, t0 + Duration::from_secs(60)), 1);
    }

    #[test]
    fn methods_trunks_and_prefixes() {
        let t0 = Instant::now();
        let limits = vec![
            RateLimit { methods: vec!["REGISTER".into()], ..limit(RateKey::All, 1.0, 1) },
            limit(RateKey::Trunk, 1.0, 1),
            limit(RateKey::Prefix(3), 1.0, 2),
        ];
        let r = Rates::new(limits, 100, t0);
        let register = RateFacts { method: "REGISTER", ruri_user: "", ..facts(1) };
        assert!(r.check(t0, &register).is_ok());
        assert_eq!(r.check(t0, &register).unwrap_err().limit, 0);
        let trunk = RateFacts { trunk: Some(7), ..facts(1) };
        assert!(r.check(t0, &trunk).is_ok());
        assert_eq!(r.check(t0, &trunk).unwrap_err().limit, 1);
        let trusted = RateFacts { trunk: Some(8), trusted: true, ..facts(1) };
        assert!(r.check(t0, &trusted).is_ok());
        assert_eq!(r.check(t0, &trusted).unwrap_err().limit, 1, "trunks have their limits");
        let nobodys = RateFacts { trusted: true, ..facts(1) };
        assert!((0..9).all(|_| r.check(t0, &nobodys).is_ok()), "no other limit is about it");
        let other = RateFacts { ruri_user: "+4", ..facts(1) };
        assert!(r.check(t0, &facts(1)).is_ok());
        assert_eq!(
            r.check(t0, &RateFacts { ruri_user: "+4989", ..facts(2) }).unwrap_err().limit,
            2
        );
        assert!(r.check(t0, &other).is_ok());
    }

    #[test]
    fn the_table_is_bounded_and_idle_buckets_give_way() {
        let t0 = Instant::now();
        let r = Rates::new(vec![limit(RateKey::Source, 1.0, 1)], 8, t0);
        for n in 0..=255 {
            assert!(r.check(t0, &facts(n)).is_ok());
            assert!(r.len() <= 8);
        }
        assert_eq!(r.unlimited(), 248);
        let later = t0 + Duration::from_secs(2);
        assert!(r.check(later, &facts(200)).is_ok());
        assert!(r.check(later, &facts(200)).is_err());
        assert_eq!((r.unlimited(), r.len()), (248, 8));
    }

    #[test]
    fn network_refuses_in_proportion_and_feedback_holds_the_load() {
        let t0 = Instant::now();
        let with = |algorithm| {
            Rates::new(vec![RateLimit { algorithm, ..limit(RateKey::All, 1.0, 1) }], 8, t0)
        };
        let passed = |r: &Rates| (0..1_000).filter(|_| r.check(t0, &facts(1)).is_ok()).count();
        let network = with(Algorithm::Network { delay: Duration::from_millis(100) });
        assert_eq!(passed(&network), 1_000);
        network.observe(Duration::from_millis(25), 0.1);
        assert_eq!(passed(&network), 750);
        network.observe(Duration::from_millis(400), 0.1);
        assert_eq!(passed(&network), 0);
        network.observe(Duration::ZERO, 0.1);
        assert_eq!(passed(&network), 1_000);
        // The plant: what passes costs in proportion, all of it twice the machine.
        let feedback = with(Algorithm::Feedback { cpu: 0.8 });
        let mut share = 1.0;
        for _ in 0..200 {
            feedback.observe(Duration::ZERO, f64::min(1.0, 2.0 * share));
            share = f64::from(u32::try_from(passed(&feedback)).unwrap()) / 1_000.0;
        }
        assert!((0.37..0.43).contains(&share), "{share}");
        for _ in 0..200 {
            feedback.observe(Duration::ZERO, 0.1);
        }
        assert_eq!(passed(&feedback), 1_000, "idle: all comes back");
    }
}
