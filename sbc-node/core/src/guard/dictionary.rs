//! Dictionary attacks: failed authentications and different unknown users per source.
//!
//! Counts live in a bounded table for one period; the source that was quiet longest gives way.
//! A source that fails again and again with the same user is a phone with an old password and
//! counts by failures only.

use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hashbrown::{DefaultHashBuilder, HashMap};
use smallvec::SmallVec;

/// When a source is one that guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DictionaryConfig {
    /// Failed authentications in a period.
    pub failures: u16,
    /// Different users that do not exist in a period; at most 64.
    pub users: u8,
    pub period: Duration,
    /// Sources held at most.
    pub max_sources: usize,
}

impl Default for DictionaryConfig {
    fn default() -> DictionaryConfig {
        DictionaryConfig {
            failures: 20,
            users: 8,
            period: Duration::from_secs(300),
            max_sources: 16_384,
        }
    }
}

#[derive(Debug)]
struct Record {
    since: Instant,
    failures: u16,
    /// Hashes of the users asked for.
    users: SmallVec<[u64; 8]>,
}

/// See the module's header.
#[derive(Debug)]
pub struct Dictionary {
    config: DictionaryConfig,
    sources: HashMap<IpAddr, Record>,
    hasher: DefaultHashBuilder,
}

impl Dictionary {
    pub fn new(config: DictionaryConfig) -> Dictionary {
        Dictionary { config, sources: HashMap::new(), hasher: DefaultHashBuilder::default() }
    }

    /// An authentication with wrong credentials; true when the source reached its limit.
    pub fn auth_failed(&mut self, now: Instant, source: IpAddr) -> bool {
        let limit = self.config.failures;
        let record = self.record(now, source);
        record.failures = record.failures.saturating_add(1);
        let reached = record.failures >= limit;
        self.forget_if(reached, source)
    }

    /// A request for a user that does not exist; true when the source reached its limit.
    pub fn unknown_user(&mut self, now: Instant, source: IpAddr, user: impl Hash) -> bool {
        let user = self.hasher.hash_one(user);
        let limit = usize::from(self.config.users.clamp(1, 64));
        let record = self.record(now, source);
        if record.users.len() < limit && !record.users.contains(&user) {
            record.users.push(user);
        }
        let reached = record.users.len() >= limit;
        self.forget_if(reached, source)
    }

    /// A good authentication clears the source's failures: somebody mistyped.
    pub fn auth_succeeded(&mut self, source: IpAddr) {
        if let Some(record) = self.sources.get_mut(&source.to_canonical()) {
            record.failures = 0;
        }
    }

    pub fn len(&self) -> usize {
        self.sources.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// A banned source starts afresh when its ban ends.
    fn forget_if(&mut self, reached: bool, source: IpAddr) -> bool {
        if reached {
            self.sources.remove(&source.to_canonical());
        }
        reached
    }

    fn record(&mut self, now: Instant, source: IpAddr) -> &mut Record {
        let source = source.to_canonical();
        let period = self.config.period;
        let over = |r: &Record| now.saturating_duration_since(r.since) >= period;
        if self.sources.len() >= self.config.max_sources.max(1)
            && !self.sources.contains_key(&source)
        {
            self.sources.retain(|_, r| !over(r));
            if self.sources.len() >= self.config.max_sources.max(1) {
                let oldest = self.sources.iter().min_by_key(|(ip, r)| (r.since, **ip));
                if let Some(oldest) = oldest.map(|(ip, _)| *ip) {
                    self.sources.remove(&oldest);
                }
            }
        }
        let fresh = || Record { since: now, failures: 0, users: SmallVec::new() };
        let record = self.sources.entry(source).or_insert_with(fresh);
        if over(record) {
            *record = fresh();
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    #[test]
    fn failures_in_a_period_reach_the_limit_and_a_success_clears_them() {
        let t0 = Instant::now();
        let config = DictionaryConfig { failures: 3, ..DictionaryConfig::default() };
        let mut d = Dictionary::new(config);
        assert!(!d.auth_failed(t0, ip(1)) && !d.auth_failed(t0, ip(1)));
        d.auth_succeeded(ip(1));
        assert!(!d.auth_failed(t0, ip(1)) && !d.auth_failed(t0, ip(1)));
        let later = t0 + config.period;
        assert!(!d.auth_failed(later, ip(1)) && !d.auth_failed(later, ip(1)));
        assert!(d.auth_failed(later, ip(1)));
        assert!(d.is_empty());
    }

    #[test]
    fn only_different_unknown_users_count() {
        let t0 = Instant::now();
        let mut d = Dictionary::new(DictionaryConfig { users: 3, ..DictionaryConfig::default() });
        assert!((0..50).all(|_| !d.unknown_user(t0, ip(1), "100")));
        assert!(!d.unknown_user(t0, ip(1), "101"));
        assert!(!d.unknown_user(t0, ip(2), "102"));
        assert!(d.unknown_user(t0, ip(1), "102"));
    }

    #[test]
    fn sources_are_bounded() {
        let t0 = Instant::now();
        let mut d = Dictionary::new(DictionaryConfig {
            max_sources: 4,
            failures: 2,
            ..DictionaryConfig::default()
        });
        for n in 0..100 {
            assert!(!d.auth_failed(t0 + Duration::from_millis(u64::from(n)), ip(n)));
            assert!(d.len() <= 4);
        }
        assert!(d.auth_failed(t0 + Duration::from_secs(1), ip(99)));
    }
}
