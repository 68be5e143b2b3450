//! `[registrar]` and `[[user]]`: from the file's words to the core's registrar.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sbc_core::core::RegistrarConfig;
use sbc_core::digest::{Algorithm, NonceKey};
use sbc_core::registrar::{
    AuthPolicy, Flows, Keepalive, KeepaliveKind, Overflow, RegistrarPolicy, Replays, UpstreamMode,
    UpstreamPolicy, User, Users,
};
use sbc_core::sip::Method;
use serde::Deserialize;
use toml::Spanned;

use super::convert::Context;
use super::value::Span;
use super::{lookup, raw};
use crate::users::Source;

/// `[registrar]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Registrar {
    pub(super) trunk: Spanned<String>,
    domains: Vec<Spanned<String>>,
    #[serde(default = "yes")]
    auth: bool,
    realm: Option<Spanned<String>>,
    #[serde(default)]
    algorithms: Vec<Spanned<String>>,
    open_methods: Option<Vec<Spanned<String>>>,
    nonce_lifetime: Option<Spanned<Span>>,
    min_expires: Option<Spanned<Span>>,
    default_expires: Option<Spanned<Span>>,
    max_expires: Option<Spanned<Span>>,
    max_contacts: Option<Spanned<usize>>,
    #[serde(default)]
    when_full: WhenFull,
    max_bindings: Option<Spanned<usize>>,
    #[serde(default)]
    service_route: Vec<Spanned<String>>,
    #[serde(default)]
    keepalive: KeepaliveText,
    keepalive_interval: Option<Spanned<Span>>,
    keepalive_longest: Option<Spanned<Span>>,
    keepalive_misses: Option<u8>,
    store_ahead: Option<Spanned<Span>>,
    users_file: Option<Spanned<PathBuf>>,
    pub(super) sql: Option<Spanned<lookup::SqlText>>,
    pub(super) radius: Option<Spanned<lookup::RadiusText>>,
    #[serde(default)]
    fork: ForkText,
    #[serde(default)]
    upstream: Vec<Spanned<UpstreamText>>,
}

/// `[[registrar.upstream]]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct UpstreamText {
    trunk: String,
    #[serde(default)]
    domains: Vec<String>,
    #[serde(default)]
    mode: ModeText,
    expires: Option<Spanned<Span>>,
}

/// What a core registrar sees of the phones.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ModeText {
    Mirror,
    #[default]
    Contact,
    Aor,
}

/// How contacts of equal q are called.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ForkText {
    #[default]
    Parallel,
    Serial,
}

/// Wrong lines of a file of users that are told one by one.
const FAULTS_SHOWN: usize = 20;

fn yes() -> bool {
    true
}

/// What happens to a contact too many.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WhenFull {
    Reject,
    #[default]
    ReplaceOldest,
}

/// How phones behind NAT are kept reachable.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum KeepaliveText {
    #[default]
    Options,
    Crlf,
    Stun,
    Off,
}

/// `[[user]]` as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct UserText {
    name: Spanned<String>,
    ha1_md5: Option<Spanned<String>>,
    ha1_sha256: Option<Spanned<String>>,
    #[serde(default)]
    addresses: Vec<Spanned<String>>,
    #[serde(default)]
    aliases: Vec<Spanned<String>>,
}

impl std::fmt::Debug for UserText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserText").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The domain that stands for the users' trunk; its phones are found by the registrar.
pub(super) fn domain(file: &raw::File, trunk: &str) -> Option<String> {
    let registrar = file.registrar.as_ref()?.get_ref();
    let first = registrar.domains.first().map_or("users.invalid", |d| d.get_ref());
    (registrar.trunk.get_ref() == trunk).then(|| first.to_ascii_lowercase())
}

/// What our own challenges of phones name; empty where a core challenges the phones of every domain.
pub(super) fn realm(file: &raw::File) -> Option<Arc<str>> {
    let registrar = file.registrar.as_ref()?.get_ref();
    let behind = |domain: &str| {
        let of = |u: &Spanned<UpstreamText>| {
            let domains = &u.get_ref().domains;
            domains.is_empty() || domains.iter().any(|d| d.eq_ignore_ascii_case(domain))
        };
        registrar.upstream.iter().any(of)
    };
    if registrar.domains.iter().all(|d| behind(d.get_ref())) {
        return Some("".into());
    }
    let realm = registrar.realm.as_ref().or(registrar.domains.first())?;
    Some(realm.get_ref().as_str().into())
}

/// The registrar of a file, and where its users come from. The key of its nonces is put in by
/// [`super::Keys`].
pub(super) fn convert(
    cx: &mut Context<'_>,
    file: &raw::File,
    shards: usize,
) -> Option<(RegistrarConfig, Source)> {
    let Some(raw) = &file.registrar else {
        if let Some(user) = file.user.first() {
            cx.dependent(user.span(), "there are users and no [registrar]");
        }
        return None;
    };
    let raw = raw.get_ref();
    let name = raw.trunk.get_ref();
    match file.trunk.iter().find(|t| t.get_ref().name.get_ref() == name) {
        None => cx.dependent(raw.trunk.span(), format!("there is no trunk \"{name}\"")),
        Some(t) if !t.get_ref().peers.0.is_empty() || !t.get_ref().sources.0.is_empty() => {
            let message =
                "the trunk of the registrar has no peers and sources: its phones register";
            cx.problem(raw.trunk.span(), message);
        }
        Some(_) => {}
    }
    let mut policy = policy(cx, raw, shards);
    let source = Source {
        fixed: users(cx, file, &policy),
        file: raw.users_file.as_ref().map(|path| cx.path(path.get_ref())),
        domains: policy.domains.clone(),
        realm: policy.auth.as_ref().map(|auth| auth.realm.clone()),
        algorithms: policy.auth.iter().flat_map(|auth| auth.algorithms.clone()).collect(),
    };
    let mut users = Users::default();
    match source.load() {
        Ok(loaded) => {
            if let Some(auth) = &mut policy.auth {
                auth.algorithms = loaded.algorithms;
            }
            users = loaded.users;
        }
        Err(faults) => {
            let span = raw.users_file.as_ref().map_or(0..0, Spanned::span);
            for fault in faults.iter().take(FAULTS_SHOWN) {
                cx.problem(span.clone(), format!("users-file: {fault}"));
            }
            if faults.len() > FAULTS_SHOWN {
                let more = faults.len() - FAULTS_SHOWN;
                cx.problem(span, format!("users-file: {more} more lines are wrong"));
            }
        }
    }
    policy.upstream = upstream(cx, file, raw, &policy);
    static REPLAYS: OnceLock<Arc<Replays>> = OnceLock::new();
    static FLOWS: OnceLock<Arc<Flows>> = OnceLock::new();
    let registrar = RegistrarConfig {
        policy: Arc::new(policy),
        users: Arc::new(users),
        replays: REPLAYS.get_or_init(|| Arc::new(Replays::new(1 << 20))).clone(),
        flows: FLOWS.get_or_init(|| Arc::new(Flows::new(1 << 20))).clone(),
        trunk: name.as_str().into(),
    };
    Some((registrar, source))
}

/// Domains whose registrar stands behind a trunk.
fn upstream(
    cx: &mut Context<'_>,
    file: &raw::File,
    raw: &Registrar,
    policy: &RegistrarPolicy,
) -> Vec<Arc<UpstreamPolicy>> {
    let mut all: Vec<Arc<UpstreamPolicy>> = Vec::new();
    for spanned in &raw.upstream {
        let (text, span) = (spanned.get_ref(), spanned.span());
        let trunk = file.trunk.iter().find(|t| *t.get_ref().name.get_ref() == text.trunk);
        match trunk.map(|t| t.get_ref()) {
            None => cx.dependent(span.clone(), format!("there is no trunk \"{}\"", text.trunk)),
            Some(t) if t.peers.0.is_empty() => {
                let message = format!("trunk \"{}\" has no peers to register with", text.trunk);
                cx.dependent(span.clone(), message);
            }
            Some(_) => {}
        }
        for domain in text.domains.iter().filter(|d| !policy.serves(d)) {
            cx.problem(span.clone(), format!("the domain \"{domain}\" is not served"));
        }
        let domains: Vec<Box<str>> =
            text.domains.iter().map(|d| d.to_ascii_lowercase().into()).collect();
        let taken = |u: &Arc<UpstreamPolicy>| {
            u.domains.is_empty()
                || domains.is_empty()
                || u.domains.iter().any(|d| domains.contains(d))
        };
        if all.iter().any(taken) {
            cx.problem(span, "a domain has one upstream");
        }
        let expires = cx.span(text.expires.as_ref(), Duration::from_secs(3_600));
        all.push(Arc::new(UpstreamPolicy {
            domains,
            trunk: text.trunk.as_str().into(),
            mode: match text.mode {
                ModeText::Mirror => UpstreamMode::Mirror,
                ModeText::Contact => UpstreamMode::Contact,
                ModeText::Aor => UpstreamMode::Aor,
            },
            expires_s: u32::try_from(expires.as_secs()).unwrap_or(u32::MAX).clamp(1, 604_800),
        }));
    }
    all
}

fn policy(cx: &mut Context<'_>, raw: &Registrar, shards: usize) -> RegistrarPolicy {
    let default = RegistrarPolicy::default();
    if raw.domains.is_empty() {
        cx.dependent(raw.trunk.span(), "the registrar serves no domain");
    }
    for domain in &raw.domains {
        if domain.get_ref().is_empty() || domain.get_ref().contains(['@', ':', ' ', '/']) {
            cx.problem(domain.span(), format!("\"{}\" is no domain", domain.get_ref()));
        }
    }
    let domains: Vec<Box<str>> =
        raw.domains.iter().map(|d| d.get_ref().to_ascii_lowercase().into()).collect();
    let mut seconds = |span: &Option<Spanned<Span>>, default: u32| {
        let span = cx.span(span.as_ref(), Duration::from_secs(u64::from(default)));
        u32::try_from(span.as_secs()).unwrap_or(u32::MAX).max(1)
    };
    let expires_min = seconds(&raw.min_expires, default.expires_min);
    let expires_max = seconds(&raw.max_expires, default.expires_max);
    let expires_default = seconds(
        &raw.default_expires,
        default.expires_default.clamp(expires_min, expires_max.max(expires_min)),
    );
    if expires_min > expires_default || expires_default > expires_max {
        cx.problem(raw.trunk.span(), "min-expires, default-expires and max-expires must not fall");
    }
    let kind = match raw.keepalive {
        KeepaliveText::Options => Some(KeepaliveKind::Options),
        KeepaliveText::Crlf => Some(KeepaliveKind::Crlf),
        KeepaliveText::Stun => Some(KeepaliveKind::Stun),
        KeepaliveText::Off => None,
    };
    let standard = Keepalive::default();
    let interval = cx.span(raw.keepalive_interval.as_ref(), standard.interval);
    let longest = raw.keepalive_longest.as_ref().map(|l| cx.span(Some(l), standard.interval));
    if let Some(text) = &raw.keepalive_longest {
        if !matches!(kind, Some(KeepaliveKind::Options | KeepaliveKind::Stun)) {
            cx.problem(
                text.span(),
                "keepalive-longest needs keepalive = \"options\" or \"stun\": CRLF is not answered",
            );
        }
        if longest.is_some_and(|l| l < interval || l > Duration::from_secs(3_600)) {
            cx.problem(text.span(), "keepalive-longest is from keepalive-interval to 1h");
        }
    }
    let misses = raw.keepalive_misses.unwrap_or(standard.misses);
    let all = cx.bounded(raw.max_bindings.as_ref(), default.bindings_max, 1..=10_000_000);
    RegistrarPolicy {
        expires_min,
        expires_default,
        expires_max,
        contacts_max: cx.bounded(raw.max_contacts.as_ref(), default.contacts_max, 1..=100),
        overflow: match raw.when_full {
            WhenFull::Reject => Overflow::Reject,
            WhenFull::ReplaceOldest => Overflow::ReplaceOldest,
        },
        bindings_max: all.div_ceil(shards.max(1)),
        service_route: routes(cx, raw),
        auth: raw.auth.then(|| auth(cx, raw, shards)),
        keepalive: kind.map(|kind| Keepalive { kind, interval, longest, misses }),
        store_ahead: cx.span(raw.store_ahead.as_ref(), default.store_ahead),
        parallel: matches!(raw.fork, ForkText::Parallel),
        gruu_key: default.gruu_key,
        replicated: default.replicated,
        upstream: Vec::new(),
        domains,
    }
}

fn routes(cx: &mut Context<'_>, raw: &Registrar) -> Vec<Box<str>> {
    for route in &raw.service_route {
        let uri = route.get_ref().strip_prefix('<').and_then(|r| r.strip_suffix('>'));
        let loose = |uri| sbc_core::sip::UriRef::parse(uri).is_ok_and(|u| u.is_loose());
        if !uri.is_some_and(loose) {
            cx.problem(route.span(), "a route looks like \"<sip:host;lr>\"");
        }
    }
    raw.service_route.iter().map(|r| r.get_ref().as_str().into()).collect()
}

fn auth(cx: &mut Context<'_>, raw: &Registrar, shards: usize) -> AuthPolicy {
    let mut algorithms = Vec::new();
    for text in &raw.algorithms {
        match Algorithm::from_token(text.get_ref()) {
            Some(algorithm @ (Algorithm::Md5 | Algorithm::Sha256)) => algorithms.push(algorithm),
            Some(_) | None => cx.problem(text.span(), "algorithms are \"SHA-256\" and \"MD5\""),
        }
    }
    if let Some(realm) = &raw.realm
        && realm.get_ref().contains(['"', '\\'])
    {
        cx.problem(realm.span(), "a realm has no quotes and backslashes");
    }
    let first = || raw.domains.first().map_or(String::new(), |d| d.get_ref().clone());
    AuthPolicy {
        realm: raw.realm.as_ref().map_or_else(first, |r| r.get_ref().clone()),
        algorithms,
        open: open(cx, raw),
        remote: lookup::remote(cx, raw, shards),
        nonce_ttl: cx.span(raw.nonce_lifetime.as_ref(), Duration::from_secs(300)),
        key: NonceKey(rand::random()),
    }
}

/// Methods that need no digest. Neither ACK nor CANCEL ever does (RFC 3261 §22.1).
fn open(cx: &mut Context<'_>, raw: &Registrar) -> Vec<Method> {
    let Some(texts) = &raw.open_methods else { return vec![Method::Options] };
    let mut open = Vec::new();
    for text in texts {
        match Method::new(text.get_ref()) {
            Method::Other(_) | Method::Ack | Method::Cancel => {
                let message = format!("\"{}\" is no method that is challenged", text.get_ref());
                cx.problem(text.span(), message);
            }
            method => open.push(method),
        }
    }
    open
}

fn users(cx: &mut Context<'_>, file: &raw::File, policy: &RegistrarPolicy) -> Users {
    let mut users = Users::default();
    for text in &file.user {
        let text = text.get_ref();
        let name = text.name.get_ref().as_str();
        if name.is_empty() || name.contains(['@', '"', '\\', ':']) {
            cx.problem(text.name.span(), format!("\"{name}\" is no user name"));
        }
        if policy.auth.is_some() && text.ha1_md5.is_none() && text.ha1_sha256.is_none() {
            cx.problem(
                text.name.span(),
                format!("user \"{name}\" has neither ha1-md5 nor ha1-sha256"),
            );
        }
        let aors: Vec<Box<str>> = if text.addresses.is_empty() {
            policy.domains.iter().map(|d| format!("{name}@{d}").into()).collect()
        } else {
            addresses(cx, &text.addresses, policy)
        };
        for alias in addresses(cx, &text.aliases, policy) {
            let Some(first) = aors.first() else { continue };
            if !users.alias(&alias, first) {
                cx.problem(text.name.span(), format!("the alias \"{alias}\" is taken"));
            }
        }
        let user = User {
            md5: ha1(cx, text.ha1_md5.as_ref(), 32),
            sha256: ha1(cx, text.ha1_sha256.as_ref(), 64),
            sha512_256: None,
            aors,
        };
        if !users.insert(name, user) {
            cx.problem(text.name.span(), format!("the user \"{name}\" is there twice"));
        }
    }
    users
}

/// Addresses, given as `user@domain` or as a user at the first domain.
fn addresses(
    cx: &mut Context<'_>,
    texts: &[Spanned<String>],
    policy: &RegistrarPolicy,
) -> Vec<Box<str>> {
    let first = policy.domains.first().map_or("", |d| d);
    let mut all = Vec::new();
    for text in texts {
        let (user, host) = text.get_ref().split_once('@').unwrap_or((text.get_ref(), first));
        if user.is_empty() || !policy.serves(host) {
            cx.problem(text.span(), format!("\"{}\" is not of a domain served", text.get_ref()));
        }
        all.push(format!("{user}@{}", host.to_ascii_lowercase()).into());
    }
    all
}

fn ha1(cx: &mut Context<'_>, text: Option<&Spanned<String>>, digits: usize) -> Option<Box<str>> {
    let text = text?;
    let hex = text.get_ref().bytes().all(|b| b.is_ascii_hexdigit());
    if !hex || text.get_ref().len() != digits {
        cx.problem(text.span(), format!("an HA1 of this kind has {digits} hexadecimal digits"));
    }
    Some(text.get_ref().to_ascii_lowercase().into())
}
