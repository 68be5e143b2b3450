//! The guard: what does not belong is dropped before it costs anything.
//!
//! [`Guard::datagram`] decides before parsing (bans, access lists, pike), [`Guard::request`] after
//! it (access lists by method, scanners, rate limits). What they find out becomes bans, and bans
//! become events for the kernel's set and the cluster. One guard per shard, sans-IO; sockets,
//! kernel and SIP syntax never live here.

mod access;
mod bans;
mod dictionary;
mod fraud;
mod nets;
mod overload;
mod pike;
mod rate;
mod scanner;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cidr::Cidr;
use crate::net::Flow;

pub use access::{Access, AccessList, AccessRule};
pub use bans::{Ban, BanError, BanEvent, BanReason, Bans};
pub use dictionary::{Dictionary, DictionaryConfig};
pub use fraud::{Finding, Fraud, FraudKind, FraudProfile, Severity, Threshold};
pub use overload::{Overload, OverloadConfig, Work};
pub use pike::{Hit, Pike, PikeConfig};
pub use rate::{Exceeded, OverLimit, RateFacts, RateKey, RateLimit, Rates};
pub use scanner::{BUILT_IN, Fingerprint, ScannerError, Scanners};

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
}

/// What the guard needs to know of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    pub flow: &'a Flow,
    pub method: &'a str,
    /// The trunk that the source was identified as.
    pub trunk: Option<u32>,
    /// Address of record in From, `user@host`.
    pub aor: &'a str,
    pub ruri_user: &'a str,
    pub fingerprint: Fingerprint<'a>,
    /// Inside a dialog, ACK and CANCEL: past scanners and rate limits.
    pub in_dialog: bool,
}

/// See the module's header.
#[derive(Debug)]
pub struct Guard {
    config: GuardConfig,
    pike: Pike,
    bans: Bans,
    rates: Rates,
    dictionary: Dictionary,
    trusted: nets::Nets<()>,
}

impl Guard {
    pub fn new(config: GuardConfig, now: Instant) -> Guard {
        let mut guard = Guard {
            pike: Pike::new(config.pike, now),
            bans: Bans::new(config.max_bans),
            rates: Rates::new(config.limits.clone(), config.max_buckets, now),
            dictionary: Dictionary::new(config.dictionary),
            trusted: nets::Nets::default(),
            config: GuardConfig::default(),
        };
        guard.trust(config.trusted.clone());
        guard.config = config;
        guard
    }

    /// Takes a new configuration; bans stay, except those that the new trusted networks lift.
    pub fn configure(&mut self, config: GuardConfig, now: Instant) {
        if config.pike != self.config.pike {
            self.pike = Pike::new(config.pike, now);
        }
        if config.limits != self.config.limits || config.max_buckets != self.config.max_buckets {
            self.rates = Rates::new(config.limits.clone(), config.max_buckets, now);
        }
        if config.dictionary != self.config.dictionary {
            self.dictionary = Dictionary::new(config.dictionary);
        }
        self.trust(config.trusted.clone());
        self.config = config;
    }

    /// Before parsing, for every datagram and for every connection and chunk of a stream.
    pub fn datagram(&mut self, now: Instant, flow: &Flow) -> Verdict {
        let source = flow.remote.ip();
        if let Some(ban) = self.bans.find(now, source) {
            return Verdict::Drop(Reason::Banned(ban.reason));
        }
        let list = self.config.access.get(usize::from(flow.interface.0));
        match list.and_then(|l| l.before_parsing(source, flow.transport)) {
            Some(Access::Drop) => return Verdict::Drop(Reason::Access),
            // What is to be answered has to be parsed first.
            Some(Access::Allow | Access::Reject) | None => {}
        }
        match self.config.pike_mode {
            PikeMode::All => self.flood(now, source),
            PikeMode::Requests | PikeMode::Off => Verdict::Pass,
        }
    }

    /// After parsing, for every request.
    pub fn request(&mut self, now: Instant, facts: &RequestFacts<'_>) -> Verdict {
        let source = facts.flow.remote.ip();
        let list = self.config.access.get(usize::from(facts.flow.interface.0));
        match list.map(|l| l.decide(source, facts.flow.transport, facts.method)) {
            Some(Access::Drop) => return Verdict::Drop(Reason::Access),
            Some(Access::Reject) => return reject(403, None, Reason::Access),
            Some(Access::Allow) | None => {}
        }
        if self.config.pike_mode == PikeMode::Requests
            && let blocked @ Verdict::Drop(_) = self.flood(now, source)
        {
            return blocked;
        }
        if facts.in_dialog || self.is_trusted(source) {
            return Verdict::Pass;
        }
        if self.config.scanners.as_ref().is_some_and(|s| s.matches(&facts.fingerprint)) {
            self.ban_source(now, source, BanReason::Scanner, "scanner");
            return Verdict::Drop(Reason::Scanner);
        }
        let rate = RateFacts {
            source,
            trunk: facts.trunk,
            aor: facts.aor,
            ruri_user: facts.ruri_user,
            method: facts.method,
        };
        match self.rates.check(now, &rate) {
            Ok(()) => Verdict::Pass,
            Err(over) => limited(&over),
        }
    }

    /// Wrong credentials came from `source`.
    pub fn auth_failed(&mut self, now: Instant, source: IpAddr) {
        if !self.is_trusted(source) && self.dictionary.auth_failed(now, source) {
            self.ban_source(now, source, BanReason::Dictionary, "dictionary");
        }
    }

    /// Good credentials came from `source`.
    pub fn auth_succeeded(&mut self, source: IpAddr) {
        self.dictionary.auth_succeeded(source);
    }

    /// A request for a user that does not exist came from `source`.
    pub fn unknown_user(&mut self, now: Instant, source: IpAddr, user: &str) {
        if !self.is_trusted(source) && self.dictionary.unknown_user(now, source, user) {
            self.ban_source(now, source, BanReason::Dictionary, "dictionary");
        }
    }

    /// Bans of operators, lists and other nodes come in here; the list goes out from here.
    pub fn bans(&mut self) -> &mut Bans {
        &mut self.bans
    }

    /// Ends what has run out.
    pub fn tick(&mut self, now: Instant) {
        self.bans.expire(now);
    }

    /// When [`Guard::tick`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.bans.deadline()
    }

    /// The next change of the bans for the kernel, the cluster and the log.
    pub fn poll(&mut self) -> Option<BanEvent> {
        self.bans.poll()
    }

    /// Nodes of pike and buckets of the rate limits in use.
    pub fn sizes(&self) -> (usize, usize) {
        (self.pike.nodes(), self.rates.len())
    }

    fn trust(&mut self, nets: Vec<Cidr>) {
        self.bans.set_allowed(&nets);
        self.trusted = nets::Nets::default();
        for net in nets {
            self.trusted.insert(net, ());
        }
    }

    /// Whether there are rules that hold for trunks as well: access lists, rate limits.
    pub fn has_rules(&self) -> bool {
        !self.config.access.is_empty() || !self.config.limits.is_empty()
    }

    fn is_trusted(&self, source: IpAddr) -> bool {
        self.trusted.find(source).is_some()
    }

    fn flood(&mut self, now: Instant, source: IpAddr) -> Verdict {
        if self.is_trusted(source) {
            return Verdict::Pass;
        }
        match self.pike.hit(now, source) {
            Hit::Pass => Verdict::Pass,
            Hit::Blocked => {
                self.ban_source(now, source, BanReason::Flood, "pike");
                Verdict::Drop(Reason::Flood)
            }
            Hit::StillBlocked => Verdict::Drop(Reason::Flood),
        }
    }

    /// A machine's ban: what pike counts together is banned together.
    fn ban_source(&mut self, now: Instant, source: IpAddr, reason: BanReason, by: &str) {
        let Some(ban_for) = self.config.ban_for else { return };
        let net = match source.to_canonical() {
            v4 @ IpAddr::V4(_) => Cidr::host(v4),
            v6 @ IpAddr::V6(_) => Cidr::new(v6, self.config.pike.ipv6_prefix),
        };
        let ban = Ban { net, reason, by: by.into(), until: now.checked_add(ban_for) };
        if let Err(error) = self.bans.add(ban) {
            // The source is dropped by its own rule all the same.
            tracing::debug!(%net, %error, "no ban");
        }
    }
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
