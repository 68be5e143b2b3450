//! The guard's part: pike, bans, access lists, rate limits, scanners, fraud, overload.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use sbc_core::cidr::Cidr;
use sbc_core::guard::{
    Access, AccessList, AccessRule, Algorithm, BUILT_IN, Countries, Country, CountryRule,
    DictionaryConfig, FraudProfile, GuardConfig, OverLimit, OverloadConfig, PikeConfig, PikeMode,
    RateKey, RateLimit, Scanners, Threshold, Zone,
};
use sbc_core::routing::{CallerLimit, CallsBy, OverCalls, RoutingConfig, TrunkConfig};
use toml::Spanned;

use super::convert::Context;
use super::interface::Door;
use super::raw;
use super::value::OneOrMany;
use super::{BanList, BanSetConfig};
use crate::guard::list;

/// Sources of trunks shorter than this are too wide to be trusted: half the world would be exempt.
const EXEMPT_V4: u8 = 16;
const EXEMPT_V6: u8 = 32;

pub(super) fn convert(
    cx: &mut Context<'_>,
    file: &raw::File,
    doors: &[Door],
    routing: &RoutingConfig,
) -> GuardConfig {
    let raw = &file.guard;
    let default = GuardConfig::default();
    let mut trusted: Vec<Cidr> = raw.trusted.iter().map(|n| n.0).collect();
    if raw.exempt_trunks.unwrap_or(true) {
        trusted.extend(routing.trunks.iter().flat_map(sources));
    }
    trusted.sort();
    trusted.dedup();
    let mut lists = Lists::default();
    by_country(cx, file, doors, routing, &mut lists);
    access(cx, raw, doors, routing, &mut lists);
    GuardConfig {
        pike_mode: match raw.mode {
            raw::PikeMode::Off => PikeMode::Off,
            raw::PikeMode::Requests => PikeMode::Requests,
            raw::PikeMode::All => PikeMode::All,
        },
        pike: pike(cx, raw),
        trusted,
        access: lists.interfaces,
        trunk_access: lists.trunks,
        countries: countries(cx, raw),
        zone: zone(cx, raw),
        handshakes_per_second: raw.tls_handshakes.as_ref().map_or(2_000, |n| *n.get_ref()),
        handshakes_per_source: raw.tls_handshakes_per_source.as_ref().map_or(20, |n| *n.get_ref()),
        fraud: raw.fraud.iter().map(|p| profile(cx, p.get_ref())).collect(),
        limits: raw.limit.iter().map(|l| limit(cx, l)).collect(),
        max_buckets: cx.bounded(raw.max_buckets.as_ref(), default.max_buckets, 64..=10_000_000),
        max_bans: cx.bounded(raw.max_bans.as_ref(), default.max_bans, 1..=1_000_000),
        ban_for: raw.ban_for.map_or(default.ban_for, |s| s.0),
        scanners: scanners(cx, raw),
        dictionary: dictionary(cx, raw),
        user_allowance: cx.bounded(raw.user_allowance.as_ref(), default.user_allowance, 0..=1_000),
    }
}

/// The sources of a trunk that are narrow enough to be trusted.
fn sources(trunk: &TrunkConfig) -> Vec<Cidr> {
    let nets: Vec<Cidr> = if trunk.sources.is_empty() {
        trunk.peers.iter().filter_map(|p| p.ip()).map(Cidr::host).collect()
    } else {
        trunk.sources.iter().map(|s| s.net).collect()
    };
    let narrow =
        |n: &Cidr| n.prefix_len() >= if n.addr().is_ipv4() { EXEMPT_V4 } else { EXEMPT_V6 };
    nets.into_iter().filter(narrow).collect()
}

fn pike(cx: &mut Context<'_>, raw: &raw::Guard) -> PikeConfig {
    let default = PikeConfig::default();
    let pike = PikeConfig {
        window: cx.span(raw.window.as_ref(), default.window),
        density: cx.bounded(raw.density.as_ref(), default.density, 4..=60_000),
        remove_after: cx.span(raw.remove_after.as_ref(), default.remove_after),
        ipv6_prefix: cx.bounded(raw.ipv6_prefix.as_ref(), default.ipv6_prefix, 8..=128),
        max_nodes: cx.bounded(raw.max_nodes.as_ref(), default.max_nodes, 1_024..=10_000_000),
    };
    if pike.remove_after < pike.window * 2 {
        let span = raw.remove_after.as_ref().or(raw.window.as_ref()).map_or(0..0, Spanned::span);
        cx.problem(span, "remove-after is shorter than two windows");
    }
    pike
}

fn dictionary(cx: &mut Context<'_>, raw: &raw::Guard) -> DictionaryConfig {
    let default = DictionaryConfig::default();
    DictionaryConfig {
        failures: cx.bounded(raw.failed_auth.as_ref(), default.failures, 1..=10_000),
        users: cx.bounded(raw.unknown_users.as_ref(), default.users, 1..=64),
        period: cx.span(raw.dictionary_period.as_ref(), default.period),
        max_sources: cx.bounded(raw.max_sources.as_ref(), default.max_sources, 64..=1_000_000),
    }
}

fn scanners(cx: &mut Context<'_>, raw: &raw::Guard) -> Option<Arc<Scanners>> {
    let mut text = String::new();
    if raw.scanners.unwrap_or(true) {
        text.push_str(BUILT_IN);
    }
    if let Some(path) = &raw.scanner_file {
        let own = cx.text(path)?;
        if let Err(errors) = Scanners::parse(&own) {
            for error in errors {
                cx.problem(path.span(), format!("{}: {error}", path.get_ref().display()));
            }
            return None;
        }
        text.push_str(&own);
    }
    // The built-in patterns parse, and so does the file; only their sum may be too large.
    match (text.is_empty(), Scanners::parse(&text)) {
        (true, _) => None,
        (false, Ok(scanners)) => Some(Arc::new(scanners)),
        (false, Err(errors)) => {
            let span = raw.scanner_file.as_ref().map_or(0..0, Spanned::span);
            cx.problem(span, errors.first().map_or(String::new(), ToString::to_string));
            None
        }
    }
}

/// Lists of interfaces at the places of their ids, and of trunks by name.
#[derive(Default)]
struct Lists {
    interfaces: Vec<AccessList>,
    trunks: HashMap<Arc<str>, AccessList>,
}

impl Lists {
    fn of_interface(&mut self, door: &Door) -> &mut AccessList {
        let at = usize::from(door.interface.id.0);
        if self.interfaces.len() <= at {
            self.interfaces.resize(at + 1, AccessList::default());
        }
        &mut self.interfaces[at]
    }
}

/// Rules of the configuration. A realm stands for all of its interfaces.
fn access(
    cx: &mut Context<'_>,
    raw: &raw::Guard,
    doors: &[Door],
    routing: &RoutingConfig,
    lists: &mut Lists,
) {
    for spanned in &raw.access {
        let rule = spanned.get_ref();
        let made = AccessRule {
            sources: rule.sources.0.iter().map(|n| n.0).collect(),
            transports: rule.transports.0.iter().map(|t| t.0).collect(),
            countries: CountryRule::All,
            methods: methods(cx, &rule.methods),
            access: match rule.access {
                raw::Access::Allow => Access::Allow,
                raw::Access::Drop => Access::Drop,
                raw::Access::Reject => Access::Reject,
            },
        };
        match (&rule.interface, &rule.realm, &rule.trunk) {
            (None, None, Some(name)) => {
                let known = routing.trunks.iter().find(|t| *t.name == **name.get_ref());
                let Some(trunk) = known else {
                    cx.dependent(name.span(), format!("there is no trunk \"{}\"", name.get_ref()));
                    continue;
                };
                lists.trunks.entry(trunk.name.clone()).or_default().rules.push(made);
            }
            (Some(name), None, None) | (None, Some(name), None) => {
                let text = name.get_ref().as_str();
                let by_realm = rule.realm.is_some();
                let of = |d: &&Door| {
                    let own = if by_realm { &d.interface.realm } else { &d.interface.name };
                    **own == *text
                };
                let mut any = false;
                for door in doors.iter().filter(of) {
                    lists.of_interface(door).rules.push(made.clone());
                    any = true;
                }
                if !any {
                    let what = if by_realm { "interface of realm" } else { "interface" };
                    cx.dependent(name.span(), format!("there is no {what} \"{text}\""));
                }
            }
            _ => cx.problem(spanned.span(), "an access rule is for one of interface, realm, trunk"),
        }
    }
}

/// Lists of countries come before all rules: who is of a country that is not let in is dropped.
fn by_country(
    cx: &mut Context<'_>,
    file: &raw::File,
    doors: &[Door],
    routing: &RoutingConfig,
    lists: &mut Lists,
) {
    let refused = file.guard.unknown_country == raw::UnknownCountry::Deny;
    let drop = |countries| AccessRule {
        sources: Vec::new(),
        transports: Vec::new(),
        countries,
        methods: Vec::new(),
        access: Access::Drop,
    };
    let rules = |cx: &mut Context<'_>, allow: &OneOrMany<_>, deny: &OneOrMany<_>| {
        let (allow, deny) = (country_list(cx, file, allow), country_list(cx, file, deny));
        let mut rules = Vec::new();
        if !deny.is_empty() {
            rules.push(drop(CountryRule::In(deny, refused)));
        }
        if !allow.is_empty() {
            rules.push(drop(CountryRule::NotIn(allow, refused)));
        }
        rules
    };
    for interface in file.interface.iter().map(Spanned::get_ref) {
        let made = rules(cx, &interface.allow_countries, &interface.deny_countries);
        let door = doors.iter().find(|d| *d.interface.name == **interface.name.get_ref());
        if let (Some(door), false) = (door, made.is_empty()) {
            lists.of_interface(door).rules.extend(made);
        }
    }
    for trunk in file.trunk.iter().map(Spanned::get_ref) {
        let made = rules(cx, &trunk.allow_countries, &trunk.deny_countries);
        let known = routing.trunks.iter().find(|t| *t.name == **trunk.name.get_ref());
        if let (Some(known), false) = (known, made.is_empty()) {
            lists.trunks.entry(known.name.clone()).or_default().rules.extend(made);
        }
    }
}

fn country_list(
    cx: &mut Context<'_>,
    file: &raw::File,
    raw: &OneOrMany<Spanned<String>>,
) -> Vec<Country> {
    let mut list = Vec::new();
    for text in &raw.0 {
        if file.guard.country_file.is_none() {
            cx.problem(text.span(), "lists of countries need guard.country-file");
        }
        match text.get_ref().parse() {
            Ok(country) => list.push(country),
            Err(error) => cx.problem(text.span(), format!("{error}")),
        }
    }
    list
}

/// No published file is near this size.
const COUNTRY_BYTES_MAX: u64 = 512 << 20;

fn countries(cx: &mut Context<'_>, raw: &raw::Guard) -> Option<Arc<Countries>> {
    let path = raw.country_file.as_ref()?;
    let bytes = cx.bytes(path, COUNTRY_BYTES_MAX)?;
    match Countries::new(bytes) {
        Ok(countries) => Some(Arc::new(countries)),
        Err(error) => {
            cx.problem(path.span(), format!("{}: {error}", cx.path(path.get_ref()).display()));
            None
        }
    }
}

/// Where Linux keeps its time zones.
const ZONES: &str = "/usr/share/zoneinfo";

fn zone(cx: &mut Context<'_>, raw: &raw::Guard) -> Zone {
    let Some(name) = &raw.time_zone else { return Zone::default() };
    let text = name.get_ref().as_str();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-' | '+');
    let made = match Zone::offset(text) {
        Some(zone) => zone.map_err(|e| e.to_string()),
        None if text == "UTC" => Ok(Zone::default()),
        None if text.is_empty() || text.starts_with('/') || !text.chars().all(plain) => {
            Err("want a name as Europe/Berlin, or +HH:MM".to_owned())
        }
        None => std::fs::read(std::path::Path::new(ZONES).join(text))
            .map_err(|e| format!("{ZONES}/{text}: {e}"))
            .and_then(|bytes| Zone::file(&bytes).map_err(|e| e.to_string())),
    };
    made.unwrap_or_else(|reason| {
        cx.problem(name.span(), format!("time-zone \"{text}\": {reason}"));
        Zone::default()
    })
}

/// Limits of calls by caller and by called number (`[[admission.limit]]`).
pub(super) fn callers(cx: &mut Context<'_>, file: &raw::File) -> Vec<CallerLimit> {
    let mut limits: Vec<CallerLimit> = Vec::new();
    let retry_after = file.calls.retry_after.map_or(Duration::from_secs(10), |s| s.0);
    for spanned in &file.admission.limit {
        let raw = spanned.get_ref();
        cx.name(&raw.name);
        if limits.iter().any(|l| *l.name == **raw.name.get_ref()) {
            cx.problem(raw.name.span(), format!("\"{}\" is there twice", raw.name.get_ref()));
        }
        if raw.max_calls.is_none() && raw.max_cps.is_none() {
            cx.dependent(spanned.span(), "a limit needs max-calls or max-cps");
        }
        let texts = |list: &OneOrMany<Spanned<Box<str>>>| {
            list.0.iter().map(|t| t.get_ref().clone()).collect::<Vec<_>>()
        };
        let by = match raw.by {
            raw::CallsBy::All => {
                for text in raw.users.0.iter().chain(&raw.prefixes.0) {
                    cx.problem(text.span(), "a limit of all calls has neither users nor prefixes");
                }
                // Every number begins with nothing.
                CallsBy::Prefix(vec!["".into()])
            }
            raw::CallsBy::User => {
                for prefix in &raw.prefixes.0 {
                    cx.problem(prefix.span(), "prefixes are only for limits by prefix");
                }
                for user in raw.users.0.iter().filter(|u| !u.get_ref().contains('@')) {
                    cx.problem(user.span(), "a user is USER@DOMAIN");
                }
                CallsBy::User(texts(&raw.users))
            }
            raw::CallsBy::Prefix => {
                for user in &raw.users.0 {
                    cx.problem(user.span(), "users are only for limits by user");
                }
                if raw.prefixes.0.iter().all(|p| p.get_ref().is_empty()) {
                    cx.dependent(spanned.span(), "a limit by prefix needs prefixes");
                }
                CallsBy::Prefix(texts(&raw.prefixes))
            }
        };
        limits.push(CallerLimit {
            name: raw.name.get_ref().as_str().into(),
            by,
            limits: cx.limits(raw.max_calls, raw.max_cps.as_ref()),
            over: match raw.over {
                raw::OverLimit::Silence => OverCalls::Silence,
                raw::OverLimit::Forbidden => OverCalls::Forbidden,
                raw::OverLimit::Unavailable => {
                    OverCalls::Unavailable(u32::try_from(retry_after.as_secs()).unwrap_or(u32::MAX))
                }
            },
        });
    }
    limits
}

fn methods(cx: &mut Context<'_>, raw: &OneOrMany<Spanned<Box<str>>>) -> Vec<Box<str>> {
    for method in &raw.0 {
        let text = method.get_ref();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_uppercase()) {
            let message = format!("\"{text}\" is no method: they are upper case, as INVITE");
            cx.problem(method.span(), message);
        }
    }
    raw.0.iter().map(|m| m.get_ref().clone()).collect()
}

fn limit(cx: &mut Context<'_>, raw: &Spanned<raw::RateLimit>) -> RateLimit {
    let span = raw.span();
    let raw = raw.get_ref();
    let algorithm = algorithm(cx, raw, span.clone());
    match (raw.by, &raw.prefix_length) {
        (raw::RateKey::Prefix, None) => {
            cx.dependent(span.clone(), "a limit by prefix needs prefix-length");
        }
        (raw::RateKey::Prefix, Some(_)) | (_, None) => {}
        (_, Some(length)) => {
            cx.problem(length.span(), "prefix-length is only for limits by prefix");
        }
    }
    let length = cx.bounded(raw.prefix_length.as_ref(), 1, 1..=24);
    if raw.cluster && raw.algorithm != raw::Algorithm::Bucket {
        cx.problem(span.clone(), "cluster is only for limits by token bucket");
    }
    RateLimit {
        key: match raw.by {
            raw::RateKey::All => RateKey::All,
            raw::RateKey::Interface => RateKey::Interface,
            raw::RateKey::Source => RateKey::Source,
            raw::RateKey::Trunk => RateKey::Trunk,
            raw::RateKey::Aor => RateKey::Aor,
            raw::RateKey::Prefix => RateKey::Prefix(length),
        },
        methods: methods(cx, &raw.methods),
        algorithm,
        cluster: raw.cluster,
        over: match raw.over {
            raw::OverLimit::Silence => OverLimit::Silence,
            raw::OverLimit::Unavailable => OverLimit::Unavailable,
            raw::OverLimit::Forbidden => OverLimit::Forbidden,
        },
    }
}

/// How a limit decides; each way has keys of its own.
fn algorithm(
    cx: &mut Context<'_>,
    raw: &raw::RateLimit,
    span: std::ops::Range<usize>,
) -> Algorithm {
    let mut foreign = |key: &str, span: Option<std::ops::Range<usize>>, of: &str| {
        if let Some(span) = span {
            cx.problem(span, format!("{key} is only for limits by {of}"));
        }
    };
    if raw.algorithm != raw::Algorithm::Bucket {
        foreign("per-second", raw.per_second.as_ref().map(Spanned::span), "token bucket");
        foreign("burst", raw.burst.as_ref().map(Spanned::span), "token bucket");
    }
    if raw.algorithm != raw::Algorithm::Network {
        foreign("delay", raw.delay.as_ref().map(Spanned::span), "network");
    }
    if raw.algorithm != raw::Algorithm::Feedback {
        foreign("cpu", raw.cpu.as_ref().map(Spanned::span), "feedback");
    }
    match raw.algorithm {
        raw::Algorithm::Bucket => {
            let Some(rate) = &raw.per_second else {
                cx.dependent(span, "a limit by token bucket needs per-second");
                return Algorithm::Bucket { per_second: 1.0, burst: 1 };
            };
            let per_second = *rate.get_ref();
            if !(per_second.is_finite() && per_second > 0.0) {
                cx.problem(rate.span(), "per-second is not a rate above 0");
            }
            // A burst of one second's worth unless told.
            let second = if per_second.is_finite() { per_second.clamp(1.0, 1e6) } else { 1.0 };
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 1e6")]
            let second = second.ceil() as u32;
            let burst = cx.bounded(raw.burst.as_ref(), second, 1..=1_000_000);
            Algorithm::Bucket { per_second, burst }
        }
        raw::Algorithm::Network => {
            Algorithm::Network { delay: cx.span(raw.delay.as_ref(), Duration::from_millis(100)) }
        }
        raw::Algorithm::Feedback => {
            let cpu = raw.cpu.as_ref().map_or(0.8, |c| *c.get_ref());
            if !(cpu > 0.0 && cpu < 1.0) {
                let span = raw.cpu.as_ref().map_or(0..0, Spanned::span);
                cx.problem(span, "cpu is not a share above 0 and below 1");
            }
            Algorithm::Feedback { cpu }
        }
    }
}

/// Where bans go, and the lists of them.
pub(super) fn ban_set(cx: &mut Context<'_>, raw: &raw::Guard) -> BanSetConfig {
    let mut lists = Vec::new();
    for path in &raw.ban_lists.0 {
        let Some(text) = cx.text(path) else { continue };
        let name = path.get_ref().file_name().unwrap_or_default().to_string_lossy().into_owned();
        match list::parse(&text) {
            Ok(bans) => lists.push(BanList { name, bans }),
            Err(errors) => {
                for error in errors {
                    cx.problem(path.span(), format!("{}: {error}", path.get_ref().display()));
                }
            }
        }
    }
    BanSetConfig { kernel: raw.kernel.unwrap_or(true), devices: raw.devices.clone(), lists }
}

fn profile(cx: &mut Context<'_>, raw: &raw::FraudProfile) -> FraudProfile {
    cx.name(&raw.name);
    if let Some(hours) = &raw.hours
        && hours.get_ref().iter().any(|h| *h > 24)
    {
        cx.problem(hours.span(), "hours are [from, to], 0 to 24");
    }
    let mut threshold = |pair: &Option<Spanned<[u32; 2]>>| {
        let Some(pair) = pair else { return Threshold::default() };
        let [warning, critical] = *pair.get_ref();
        if warning > critical {
            cx.problem(pair.span(), "the warning comes after the critical threshold");
        }
        Threshold { warning: Some(warning), critical: Some(critical) }
    };
    FraudProfile {
        name: raw.name.get_ref().as_str().into(),
        prefixes: raw.prefixes.0.clone(),
        calls_per_minute: threshold(&raw.calls_per_minute),
        concurrent: threshold(&raw.concurrent),
        total_minutes: threshold(&raw.total_minutes),
        sequential: threshold(&raw.sequential),
        block: raw.critical == raw::FraudAction::Block,
        hours: raw.hours.as_ref().map(|h| (h.get_ref()[0], h.get_ref()[1])),
    }
}

pub(super) fn overload(cx: &mut Context<'_>, raw: &raw::Overload) -> OverloadConfig {
    let default = OverloadConfig::default();
    let config = OverloadConfig {
        delay_low: raw.delay_low.map_or(default.delay_low, |s| s.0),
        delay_high: raw.delay_high.as_ref().map_or(default.delay_high, |s| s.get_ref().0),
        cpu_low: raw.cpu_low.unwrap_or(default.cpu_low),
        cpu_high: raw.cpu_high.as_ref().map_or(default.cpu_high, |s| *s.get_ref()),
        retry_after_max: raw.retry_after_max.map_or(default.retry_after_max, |s| s.0),
    };
    if config.delay_high <= config.delay_low {
        let span = raw.delay_high.as_ref().map_or(0..0, Spanned::span);
        cx.problem(span, "overload.delay-high is not above delay-low");
    }
    let share = |v: f64| (0.0..=1.0).contains(&v);
    if !share(config.cpu_low) || !share(config.cpu_high) || config.cpu_high <= config.cpu_low {
        let span = raw.cpu_high.as_ref().map_or(0..0, Spanned::span);
        cx.problem(span, "overload.cpu-low and cpu-high are shares from 0 to 1, low first");
    }
    config
}
