//! The guard: what does not belong is dropped before it costs anything.
//!
//! [`Guard::datagram`] decides before parsing (bans, access lists, pike), [`Guard::request`] after
//! it (access lists by method, scanners, rate limits). What they find out becomes bans, and bans
//! become events for the kernel's set and the cluster. Sans-IO; sockets, kernel and SIP syntax
//! never live here.
//!
//! One guard per node, shared by its shards: what counts, counts node-wide. State per source lies
//! in stripes by a keyed hash of the source, each behind a lock that is held for one look-up; two
//! shards meet there only when they handle the same stripe in the same tenth of a microsecond.

mod access;
mod bans;
mod country;
mod counts;
mod dictionary;
mod fraud;
mod nets;
mod overload;
mod pike;
mod rate;
mod scanner;
mod stripe;
mod zone;

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use hashbrown::{DefaultHashBuilder, HashMap};

use crate::cidr::Cidr;
use crate::net::Flow;

use stripe::Stripe;

pub use access::{Access, AccessList, AccessRule, CountryRule, Origin};
pub use bans::{Ban, BanError, BanEvent, BanReason, Bans};
pub use country::{Countries, Country, CountryFileError, NoCountry};
pub use counts::Counts;
pub use dictionary::{Dictionary, DictionaryConfig};
pub use fraud::{Finding, Fraud, FraudKind, FraudProfile, Severity, Threshold};
pub use overload::{Overload, OverloadConfig, Work};
pub use pike::{Hit, Pike, PikeConfig};
pub use rate::{Algorithm, Exceeded, OverLimit, RateFacts, RateKey, RateLimit, Rates};
pub use scanner::{BUILT_IN, Fingerprint, ScannerError, Scanners};
pub use zone::{NoZone, Zone};

/// When pike counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PikeMode {
    Off,
    /// Only what parses as a request, from [`Guard::request`].
    Requests,
    /// Everything received, junk included, before parsing.
    #[default]
    All,
}

/// Everything that the guard is configured with.
#[derive(Clone, Debug)]
pub struct GuardConfig {
    pub pike_mode: PikeMode,
    pub pike: PikeConfig,
    /// Never counted by pike, never limited, never banned.
    pub trusted: Vec<Cidr>,
    /// By interface id; the default allows all.
    pub access: Vec<AccessList>,
    pub limits: Vec<RateLimit>,
    pub max_buckets: usize,
    pub max_bans: usize,
    /// How long a machine's ban lasts; `None` drops without banning.
    pub ban_for: Option<Duration>,
    /// `None` does not look for scanners.
    pub scanners: Option<Arc<Scanners>>,
    pub dictionary: DictionaryConfig,
    /// Messages per second of one registered user's flow that pike does not count.
    pub user_allowance: u16,
    pub fraud: Vec<FraudProfile>,
    /// Lists of trunks, by name; they are asked after those of the interface.
    pub trunk_access: HashMap<Arc<str>, AccessList>,
    /// What rules by country ask; without it nobody's country is known.
    pub countries: Option<Arc<Countries>>,
    /// Where the hours of the fraud profiles are counted.
    pub zone: Zone,
    /// Handshakes of TLS begun per second, in all and by one source (IPv6: by its prefix); bursts of
    /// five seconds' worth. 0 is no limit.
    pub handshakes_per_second: u32,
    pub handshakes_per_source: u32,
}

impl Default for GuardConfig {
    fn default() -> GuardConfig {
        GuardConfig {
            pike_mode: PikeMode::All,
            pike: PikeConfig::default(),
            trusted: Vec::new(),
            access: Vec::new(),
            limits: Vec::new(),
            max_buckets: 65_536,
            max_bans: 100_000,
            ban_for: Some(Duration::from_secs(300)),
            scanners: None,
            dictionary: DictionaryConfig::default(),
            user_allowance: 20,
            fraud: Vec::new(),
            trunk_access: HashMap::new(),
            countries: None,
            zone: Zone::default(),
            handshakes_per_second: 2_000,
            handshakes_per_source: 20,
        }
    }
}

/// What happens to a datagram or request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// Nothing is answered.
    Drop(Reason),
    /// Answered with this status.
    Reject {
        status: u16,
        retry_after_s: Option<u32>,
        reason: Reason,
    },
}

/// Why; the label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    Banned(BanReason),
    Access,
    Flood,
    Scanner,
    RateLimit,
    Overload,
    /// Too many handshakes of TLS.
    Handshake,
}

/// What the guard needs to know of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    pub flow: &'a Flow,
    pub method: &'a str,
    /// The trunk that the source was identified as, and its name.
    pub trunk: Option<(u32, &'a str)>,
    /// Address of record in From, `user@host`.
    pub aor: &'a str,
    pub ruri_user: &'a str,
    pub fingerprint: Fingerprint<'a>,
    /// Inside a dialog, ACK and CANCEL: past scanners and rate limits.
    pub in_dialog: bool,
    /// An emergency call: past scanners and rate limits too.
    pub emergency: bool,
}

/// What every packet looks into and few things change.
#[derive(Debug)]
struct Front {
    config: GuardConfig,
    trusted: nets::Nets<()>,
    bans: Bans,
}

/// Called after something was put where [`Guard::poll`] finds it.
type Notify = Box<dyn Fn() + Send + Sync>;

/// See the module's header.
pub struct Guard {
    front: RwLock<Front>,
    /// Bans in force; spares the look-up when there is none.
    banned: AtomicUsize,
    stripes: Box<[Mutex<Stripe>]>,
    /// IPv6 sources are counted by this prefix: they lie together.
    ipv6_prefix: AtomicU8,
    hasher: DefaultHashBuilder,
    rates: RwLock<Rates>,
    handshakes: RwLock<Rates>,
    fraud: Mutex<Fraud>,
    counts: Counts,
    notify: OnceLock<Notify>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("banned", &self.banned).finish_non_exhaustive()
    }
}

/// Stripes of a node; fewer when the table of pike is so small that it would fall to crumbs.
const STRIPES: usize = 64;
const NODES_PER_STRIPE: usize = 256;
/// Bans changed under one hold of the lock.
const CHUNK: usize = 256;
/// Pairs of fraud profile and user watched.
const FRAUD_USERS: usize = 100_000;

impl Guard {
    pub fn new(config: GuardConfig, now: Instant) -> Guard {
        let count = (config.pike.max_nodes / NODES_PER_STRIPE).clamp(1, STRIPES);
        let stripe = |_| Mutex::new(Stripe::new(&config, count, now));
        let mut front = Front {
            config: GuardConfig::default(),
            trusted: nets::Nets::default(),
            bans: Bans::new(config.max_bans),
        };
        let stripes = (0..count).map(stripe).collect();
        let rates = Rates::new(config.limits.clone(), config.max_buckets, now);
        let handshakes = RwLock::new(handshakes(&config, now));
        let ipv6_prefix = AtomicU8::new(config.pike.ipv6_prefix);
        let fraud = Mutex::new(Fraud::new(config.fraud.clone(), FRAUD_USERS));
        front.configure(config);
        Guard {
            front: RwLock::new(front),
            banned: AtomicUsize::new(0),
            stripes,
            ipv6_prefix,
            hasher: DefaultHashBuilder::default(),
            rates: RwLock::new(rates),
            handshakes,
            fraud,
            counts: Counts::default(),
            notify: OnceLock::new(),
        }
    }

    /// Takes a new configuration; bans stay, except those that the new trusted networks lift.
    /// The number of stripes stays, so that their bounds may be a little off a new `max-nodes`.
    pub fn configure(&self, config: GuardConfig, now: Instant) {
        for stripe in &self.stripes {
            lock(stripe).configure(&config, self.stripes.len(), now);
        }
        {
            let old = self.front();
            if config.fraud != old.config.fraud {
                *lock(&self.fraud) = Fraud::new(config.fraud.clone(), FRAUD_USERS);
            }
            if config.limits != old.config.limits || config.max_buckets != old.config.max_buckets {
                let rates = Rates::new(config.limits.clone(), config.max_buckets, now);
                rates.set_nodes(self.rates().nodes());
                *self.rates.write().unwrap_or_else(PoisonError::into_inner) = rates;
            }
            let of = |c: &GuardConfig| (c.handshakes_per_second, c.handshakes_per_source);
            if of(&config) != of(&old.config) {
                let rates = handshakes(&config, now);
                *self.handshakes.write().unwrap_or_else(PoisonError::into_inner) = rates;
            }
        }
        self.ipv6_prefix.store(config.pike.ipv6_prefix, Ordering::Relaxed);
        self.change(|front| front.configure(config));
    }

    /// Says what to call when [`Guard::poll`] has something; the first word counts.
    pub fn on_change(&self, notify: Notify) {
        // A second notifier would never be called: there is one keeper of the bans.
        let _ = self.notify.set(notify);
    }

    /// Before parsing, for every datagram and for every connection and message of a stream.
    pub fn datagram(&self, now: Instant, flow: &Flow) -> Verdict {
        self.datagram_unless(now, flow, || false)
    }

    /// The same where `known` says whether the flow belongs to a trunk: pike and the bans of
    /// machines are not for it. It is asked late, because it costs more than a ban.
    pub fn datagram_unless(&self, now: Instant, flow: &Flow, known: impl Fn() -> bool) -> Verdict {
        let source = flow.remote.ip();
        let verdict = {
            let front = self.front();
            if self.banned.load(Ordering::Relaxed) > 0
                && let Some(ban) = front.bans.find(now, source)
                && (ban.reason == BanReason::Manual || !known())
            {
                Verdict::Drop(Reason::Banned(ban.reason))
            } else {
                let list = front.config.access.get(usize::from(flow.interface.0));
                let trusted = front.is_trusted(source);
                let country = || front.country(source);
                let origin =
                    Origin { source, transport: flow.transport, trusted, country: &country };
                match list.and_then(|l| l.before_parsing(&origin)) {
                    Some(Access::Drop) => Verdict::Drop(Reason::Access),
                    // What is to be answered has to be parsed first.
                    Some(Access::Allow | Access::Reject) | None => {
                        if front.config.pike_mode != PikeMode::All || trusted || known() {
                            return Verdict::Pass;
                        }
                        drop(front);
                        self.flood(now, flow)
                    }
                }
            }
        };
        self.counts.count(&verdict);
        verdict
    }

    /// A connection that begins with a handshake of TLS: asked once for each, after
    /// [`Guard::datagram`]. `known` as there.
    pub fn handshake(&self, now: Instant, flow: &Flow, known: impl Fn() -> bool) -> Verdict {
        let source = flow.remote.ip();
        if self.is_trusted(source) || known() {
            return Verdict::Pass;
        }
        let facts = RateFacts {
            source: self.counted(source).addr(),
            interface: flow.interface.0,
            trunk: None,
            aor: "",
            ruri_user: "",
            method: "",
            trusted: false,
        };
        let rates = self.handshakes.read().unwrap_or_else(PoisonError::into_inner);
        if rates.check(now, &facts).is_ok() {
            return Verdict::Pass;
        }
        let verdict = Verdict::Drop(Reason::Handshake);
        self.counts.count(&verdict);
        verdict
    }

    /// The nodes that share the limits of the cluster: each admits an even part.
    pub fn set_nodes(&self, nodes: u32) {
        self.rates().set_nodes(nodes);
    }

    /// The nodes that share the limits of the cluster.
    pub fn nodes(&self) -> u32 {
        self.rates().nodes()
    }

    /// Whether [`Guard::request`] will look at names, user agent and the like: they are made from the
    /// message only then.
    pub fn reads(&self, facts: &RequestFacts<'_>) -> bool {
        if facts.in_dialog || facts.emergency {
            return false;
        }
        let front = self.front();
        let stranger = facts.trunk.is_none() && !front.is_trusted(facts.flow.remote.ip());
        let scans = stranger && front.config.scanners.is_some();
        drop(front);
        scans || self.rates().any()
    }

    /// After parsing, for every request that is not a retransmission.
    pub fn request(&self, now: Instant, facts: &RequestFacts<'_>) -> Verdict {
        let verdict = self.judge(now, facts);
        self.counts.count(&verdict);
        verdict
    }

    fn judge(&self, now: Instant, facts: &RequestFacts<'_>) -> Verdict {
        let source = facts.flow.remote.ip();
        let front = self.front();
        let trusted = front.is_trusted(source);
        let country = || front.country(source);
        let origin = Origin { source, transport: facts.flow.transport, trusted, country: &country };
        let interface = front.config.access.get(usize::from(facts.flow.interface.0));
        // A trunk's own list is about nobody but its sources, trusted or not.
        let of_trunk = Origin { trusted: false, ..origin };
        let trunk = facts.trunk.and_then(|(_, name)| front.config.trunk_access.get(name));
        for (list, origin) in [(interface, &origin), (trunk, &of_trunk)] {
            match list.map(|l| l.decide(origin, facts.method)) {
                Some(Access::Drop) => return Verdict::Drop(Reason::Access),
                Some(Access::Reject) => return reject(403, None, Reason::Access),
                Some(Access::Allow) | None => {}
            }
        }
        let pike = front.config.pike_mode == PikeMode::Requests && facts.trunk.is_none();
        let scanners = front.config.scanners.clone();
        drop(front);
        if pike
            && !trusted
            && let blocked @ Verdict::Drop(_) = self.flood(now, facts.flow)
        {
            return blocked;
        }
        if facts.in_dialog || facts.emergency {
            return Verdict::Pass;
        }
        if !trusted
            && facts.trunk.is_none()
            && scanners.is_some_and(|s| s.matches(&facts.fingerprint))
        {
            self.ban_source(now, source, BanReason::Scanner, "scanner");
            return Verdict::Drop(Reason::Scanner);
        }
        let rate = RateFacts {
            source,
            interface: facts.flow.interface.0,
            trunk: facts.trunk.map(|(id, _)| id),
            aor: facts.aor,
            ruri_user: facts.ruri_user,
            method: facts.method,
            trusted,
        };
        match self.rates().check(now, &rate) {
            Ok(()) => Verdict::Pass,
            Err(over) => limited(&over),
        }
    }

    /// Wrong credentials came from `source`.
    pub fn auth_failed(&self, now: Instant, source: IpAddr) {
        if !self.is_trusted(source) && self.stripe(source).dictionary.auth_failed(now, source) {
            self.ban_source(now, source, BanReason::Dictionary, "dictionary");
        }
    }

    /// Good credentials came from `source`.
    pub fn auth_succeeded(&self, source: IpAddr) {
        self.stripe(source).dictionary.auth_succeeded(source);
    }

    /// A request for a user that does not exist came from `source`.
    pub fn unknown_user(&self, now: Instant, source: IpAddr, user: &str) {
        if !self.is_trusted(source)
            && self.stripe(source).dictionary.unknown_user(now, source, user)
        {
            self.ban_source(now, source, BanReason::Dictionary, "dictionary");
        }
    }

    /// A user registered over this flow until then: it has an allowance of its own.
    pub fn registered(&self, now: Instant, flow: &Flow, until: Instant) {
        self.stripe(flow.remote.ip()).users.add(now, flow, until);
    }

    /// A new call of `user` (a trunk's name, an address of record) to `number`; what the fraud
    /// profiles find. Counted whatever is found, until [`Guard::call_ended`].
    pub fn call_started(
        &self,
        now: Instant,
        unix_ms: u64,
        user: &str,
        number: &str,
    ) -> Option<Finding> {
        let hour = self.front().config.zone.hour(unix_ms);
        let found = lock(&self.fraud).started(now, hour, self.hasher.hash_one(user), number)?;
        self.counts.found(&found);
        if found.news {
            let (profile, kind, value) = (&found.profile, found.kind.as_str(), found.value);
            let critical = found.severity == Severity::Critical;
            tracing::warn!(%profile, kind, value, critical, block = found.block, "toll fraud?");
        }
        Some(found)
    }

    /// A call that was counted is over.
    pub fn call_ended(&self, now: Instant, user: &str, number: &str, duration: Duration) {
        lock(&self.fraud).ended(now, self.hasher.hash_one(user), number, duration);
    }

    /// Whether there are fraud profiles.
    pub fn watches_calls(&self) -> bool {
        !self.front().config.fraud.is_empty()
    }

    /// Takes a ban of an operator, a list or another node.
    ///
    /// # Errors
    /// When it is against a trusted network, or the table is full.
    pub fn ban(&self, ban: Ban) -> Result<(), BanError> {
        self.change(|front| front.bans.add(ban))
    }

    /// Lifts the ban of exactly this network; false when there is none.
    pub fn lift(&self, net: &Cidr) -> bool {
        self.change(|front| front.bans.remove(net))
    }

    /// The same because the cluster lifted it.
    pub fn lift_shared(&self, net: &Cidr) -> bool {
        self.change(|front| front.bans.remove_shared(net))
    }

    /// Lifts every ban; how many. Done in pieces, so that packets go on in between.
    pub fn flush(&self) -> usize {
        let mut lifted = 0;
        loop {
            let count = self.change(|front| {
                let nets: Vec<Cidr> = front.bans.iter().take(CHUNK).map(|b| b.net).collect();
                nets.iter().filter(|net| front.bans.remove(net)).count()
            });
            lifted += count;
            if count == 0 {
                return lifted;
            }
        }
    }

    /// The bans in force, in no order.
    pub fn bans(&self, now: Instant) -> Vec<Ban> {
        let front = self.front();
        front.bans.iter().filter(|b| b.until.is_none_or(|u| u > now)).cloned().collect()
    }

    /// Whether an address is under a ban, and which.
    pub fn find(&self, now: Instant, addr: IpAddr) -> Option<Ban> {
        self.front().bans.find(now, addr).cloned()
    }

    /// Bans in force.
    pub fn banned(&self) -> usize {
        self.banned.load(Ordering::Relaxed)
    }

    /// Ends what has run out.
    pub fn tick(&self, now: Instant) {
        if self.deadline().is_some_and(|at| at <= now) {
            self.change(|front| front.bans.expire(now));
        }
    }

    /// When [`Guard::tick`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.front().bans.deadline()
    }

    /// The next change of the bans for the kernel, the cluster and the log.
    pub fn poll(&self) -> Option<BanEvent> {
        self.front.write().unwrap_or_else(PoisonError::into_inner).bans.poll()
    }

    /// One measurement of the node for the limits that follow its load.
    pub fn observe(&self, queue_delay: Duration, cpu: f64) {
        self.rates().observe(queue_delay, cpu);
    }

    /// What was dropped and refused, and why.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Nodes of pike and buckets of the rate limits in use.
    pub fn sizes(&self) -> (usize, usize) {
        let nodes = self.stripes.iter().map(|s| lock(s).pike.nodes()).sum();
        (nodes, self.rates().len())
    }

    /// Requests that no bucket could be made for: the table of buckets was full of busy ones.
    pub fn unlimited(&self) -> u64 {
        self.rates().unlimited()
    }

    /// Whether there are rules that hold for trunks as well: access lists, rate limits.
    pub fn has_rules(&self) -> bool {
        let front = self.front();
        !front.config.access.is_empty()
            || !front.config.trunk_access.is_empty()
            || !front.config.limits.is_empty()
    }

    fn front(&self) -> RwLockReadGuard<'_, Front> {
        self.front.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn rates(&self) -> RwLockReadGuard<'_, Rates> {
        self.rates.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_trusted(&self, source: IpAddr) -> bool {
        self.front().is_trusted(source)
    }

    /// Changes what is in front, keeps the count of bans true, and tells the keeper.
    fn change<T>(&self, f: impl FnOnce(&mut Front) -> T) -> T {
        let (result, told) = {
            let mut front = self.front.write().unwrap_or_else(PoisonError::into_inner);
            let result = f(&mut front);
            self.banned.store(front.bans.len(), Ordering::Relaxed);
            (result, front.bans.has_event())
        };
        if let (true, Some(notify)) = (told, self.notify.get()) {
            notify();
        }
        result
    }

    /// Where a source's state lies; what pike counts together lies together.
    fn stripe(&self, source: IpAddr) -> MutexGuard<'_, Stripe> {
        let bits = match source.to_canonical() {
            IpAddr::V4(ip) => u128::from(ip.to_bits()),
            IpAddr::V6(ip) => {
                let prefix = u32::from(self.ipv6_prefix.load(Ordering::Relaxed).clamp(8, 128));
                ip.to_bits() & (u128::MAX << (128 - prefix))
            }
        };
        let hash = usize::try_from(self.hasher.hash_one(bits) >> 32).unwrap_or(0);
        // The remainder is below the length, which is at least one.
        lock(&self.stripes[hash % self.stripes.len()])
    }

    /// What a source is counted and banned as: itself, or its prefix.
    fn counted(&self, source: IpAddr) -> Cidr {
        match source.to_canonical() {
            v4 @ IpAddr::V4(_) => Cidr::host(v4),
            v6 @ IpAddr::V6(_) => Cidr::new(v6, self.ipv6_prefix.load(Ordering::Relaxed)),
        }
    }

    fn flood(&self, now: Instant, flow: &Flow) -> Verdict {
        let source = flow.remote.ip();
        let hit = {
            let mut stripe = self.stripe(source);
            if stripe.users.passes(now, flow) {
                return Verdict::Pass;
            }
            stripe.pike.hit(now, source)
        };
        match hit {
            Hit::Pass => Verdict::Pass,
            Hit::Blocked => {
                self.counts.blocked();
                self.ban_source(now, source, BanReason::Flood, "pike");
                Verdict::Drop(Reason::Flood)
            }
            Hit::StillBlocked => Verdict::Drop(Reason::Flood),
        }
    }

    /// A machine's ban: what pike counts together is banned together.
    fn ban_source(&self, now: Instant, source: IpAddr, reason: BanReason, by: &str) {
        let Some(ban_for) = self.front().config.ban_for else { return };
        let net = self.counted(source);
        let ban =
            Ban { net, reason, by: by.into(), until: now.checked_add(ban_for), shared: false };
        if let Err(error) = self.ban(ban) {
            // The source is dropped by its own rule all the same.
            tracing::debug!(%net, %error, "no ban");
        }
    }
}

impl Front {
    fn configure(&mut self, config: GuardConfig) {
        self.bans.set_allowed(&config.trusted);
        self.trusted = nets::Nets::default();
        for net in &config.trusted {
            self.trusted.insert(*net, ());
        }
        self.config = config;
    }

    fn is_trusted(&self, source: IpAddr) -> bool {
        self.trusted.find(source).is_some()
    }

    fn country(&self, source: IpAddr) -> Option<Country> {
        self.config.countries.as_ref()?.of(source)
    }
}

/// A panic while a lock was held leaves counts a little off, nothing worse.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The limits of TLS handshakes. A source is looked at first, so that it does not spend what is
/// everybody's.
fn handshakes(config: &GuardConfig, now: Instant) -> Rates {
    let limit = |key, per_second: u32| {
        (per_second > 0).then(|| RateLimit {
            key,
            methods: Vec::new(),
            algorithm: Algorithm::Bucket {
                per_second: f64::from(per_second),
                burst: per_second.saturating_mul(5),
            },
            over: OverLimit::Silence,
            cluster: false,
        })
    };
    let limits = [
        limit(RateKey::Source, config.handshakes_per_source),
        limit(RateKey::All, config.handshakes_per_second),
    ];
    Rates::new(limits.into_iter().flatten().collect(), config.max_buckets, now)
}

fn reject(status: u16, retry_after_s: Option<u32>, reason: Reason) -> Verdict {
    Verdict::Reject { status, retry_after_s, reason }
}

fn limited(over: &Exceeded) -> Verdict {
    let seconds = u32::try_from(over.wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
    match over.over {
        OverLimit::Silence => Verdict::Drop(Reason::RateLimit),
        OverLimit::Unavailable => reject(503, Some(seconds), Reason::RateLimit),
        OverLimit::Forbidden => reject(403, None, Reason::RateLimit),
    }
}

#[cfg(test)]
mod tests;
