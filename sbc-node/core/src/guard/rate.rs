//! Rate limits: token buckets by source, trunk, AOR, destination prefix and method.
//!
//! A bucket is one number (the time at which it is full again), kept in a bounded table. A bucket
//! that is full again carries no information and gives its place away; when every place is taken
//! by a busy bucket, the request passes and is counted as not limited.

use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hashbrown::{DefaultHashBuilder, HashMap};

/// What a limit counts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RateKey {
    /// One bucket for all.
    All,
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
    /// Requests per second in the long run.
    pub per_second: f64,
    /// Requests that may come at once.
    pub burst: u32,
    pub over: OverLimit,
}

/// What is known of a request for its buckets.
#[derive(Clone, Copy, Debug)]
pub struct RateFacts<'a> {
    pub source: IpAddr,
    pub trunk: Option<u32>,
    pub aor: &'a str,
    pub ruri_user: &'a str,
    pub method: &'a str,
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
    limits: Vec<RateLimit>,
    buckets: HashMap<u64, u32>,
    /// Key and the time at which the bucket is full, in nanoseconds.
    slots: Vec<(u64, u64)>,
    max: usize,
    hand: usize,
    hasher: DefaultHashBuilder,
    epoch: Instant,
    /// Requests that no bucket could be made for.
    pub unlimited: u64,
}

/// Places looked at for one that gives way.
const SWEEP: usize = 32;

impl Rates {
    /// Holds at most `max` buckets of about 50 bytes.
    pub fn new(limits: Vec<RateLimit>, max: usize, now: Instant) -> Rates {
        Rates {
            limits,
            buckets: HashMap::new(),
            slots: Vec::new(),
            max: max.clamp(1, 1 << 24),
            hand: 0,
            hasher: DefaultHashBuilder::default(),
            epoch: now,
            unlimited: 0,
        }
    }

    /// Takes a token from every bucket that the request counts in; stops at the first that has
    /// none.
    pub fn check(&mut self, now: Instant, facts: &RateFacts<'_>) -> Result<(), Exceeded> {
        let now = nanos(now.saturating_duration_since(self.epoch));
        for index in 0..self.limits.len() {
            let Some(limit) = self.limits.get(index) else { break };
            let counts =
                limit.methods.is_empty() || limit.methods.iter().any(|m| **m == *facts.method);
            let Some(key) = counts.then(|| self.key(index, limit.key, facts)).flatten() else {
                continue;
            };
            let (rate, burst, over) = (limit.per_second, limit.burst, limit.over);
            if let Err(wait) = self.take(key, now, rate, burst) {
                return Err(Exceeded { limit: index, over, wait });
            }
        }
        Ok(())
    }

    /// Buckets in use.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    fn key(&self, index: usize, key: RateKey, facts: &RateFacts<'_>) -> Option<u64> {
        let hash = |value: &dyn Fn() -> u64| self.hasher.hash_one((index, value()));
        let of = |value: &str| self.hasher.hash_one(value);
        Some(match key {
            RateKey::All => hash(&|| 0),
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

    fn take(&mut self, key: u64, now: u64, rate: f64, burst: u32) -> Result<(), Duration> {
        if rate <= 0.0 {
            return Err(Duration::from_secs(60));
        }
        let per_token = nanos(Duration::from_secs_f64((1.0 / rate).min(1e6)));
        let depth = per_token.saturating_mul(u64::from(burst.max(1)));
        let Some(at) = self.slot(key, now) else {
            self.unlimited += 1;
            return Ok(());
        };
        let Some(slot) = self.slots.get_mut(at) else { return Ok(()) };
        let full_at = slot.1.max(now).saturating_add(per_token);
        let ahead = full_at - now;
        if ahead > depth {
            return Err(Duration::from_nanos(ahead - depth));
        }
        slot.1 = full_at;
        Ok(())
    }

    /// The bucket of `key`, an old one or a new one; `None` when no place gives way.
    fn slot(&mut self, key: u64, now: u64) -> Option<usize> {
        if let Some(at) = self.buckets.get(&key) {
            return Some(*at as usize);
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
            self.buckets.remove(&slot.0);
            *slot = (key, 0);
            at
        };
        self.buckets.insert(key, u32::try_from(at).ok()?);
        Some(at)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(key: RateKey, per_second: f64, burst: u32) -> RateLimit {
        RateLimit { key, methods: vec![], per_second, burst, over: OverLimit::Unavailable }
    }

    fn facts(source: u8) -> RateFacts<'static> {
        RateFacts {
            source: IpAddr::from([192, 0, 2, source]),
            trunk: None,
            aor: "alice@example.com",
            ruri_user: "+4930123",
            method: "INVITE",
        }
    }

    #[test]
    fn burst_then_rate_per_key() {
        let t0 = Instant::now();
        let mut r = Rates::new(vec![limit(RateKey::Source, 2.0, 3)], 100, t0);
        let passed = |r: &mut Rates, at: Instant, source| {
            (0..10).filter(|_| r.check(at, &facts(source)).is_ok()).count()
        };
        assert_eq!(passed(&mut r, t0, 1), 3);
        assert_eq!(passed(&mut r, t0, 2), 3);
        let over = r.check(t0, &facts(1)).unwrap_err();
        assert_eq!((over.limit, over.wait), (0, Duration::from_millis(500)));
        assert_eq!(passed(&mut r, t0 + Duration::from_secs(1), 1), 2);
    }

    #[test]
    fn methods_trunks_and_prefixes() {
        let t0 = Instant::now();
        let limits = vec![
            RateLimit { methods: vec!["REGISTER".into()], ..limit(RateKey::All, 1.0, 1) },
            limit(RateKey::Trunk, 1.0, 1),
            limit(RateKey::Prefix(3), 1.0, 2),
        ];
        let mut r = Rates::new(limits, 100, t0);
        let register = RateFacts { method: "REGISTER", ruri_user: "", ..facts(1) };
        assert!(r.check(t0, &register).is_ok());
        assert_eq!(r.check(t0, &register).unwrap_err().limit, 0);
        let trunk = RateFacts { trunk: Some(7), ..facts(1) };
        assert!(r.check(t0, &trunk).is_ok());
        assert_eq!(r.check(t0, &trunk).unwrap_err().limit, 1);
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
        let mut r = Rates::new(vec![limit(RateKey::Source, 1.0, 1)], 8, t0);
        for n in 0..=255 {
            assert!(r.check(t0, &facts(n)).is_ok());
            assert!(r.len() <= 8);
        }
        assert_eq!(r.unlimited, 248);
        let later = t0 + Duration::from_secs(2);
        assert!(r.check(later, &facts(200)).is_ok());
        assert!(r.check(later, &facts(200)).is_err());
        assert_eq!((r.unlimited, r.len()), (248, 8));
    }
}
