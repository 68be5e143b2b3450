//! The registration cache (mid-registrar): REGISTERs of phones whose registrar stands behind us.
//!
//! The core registrar sees one long registration per contact (or per user), with a Contact of ours;
//! the phone sees a short one. A refresh that changes nothing is answered here, everything else is
//! asked there, with the phone's own credentials: challenges and refusals pass through.
//!
//! ```text
//! phone ── REGISTER ──▶ same flow, Call-ID and contact, and the core keeps us longer ── 200
//!                  └──▶ core: 200 ──▶ bindings change, 200 with the shorter time
//!                             401 407 ──▶ to the phone        403 404 ──▶ bindings go, to the phone
//!                             silence 503 ──▶ next address, next peer; nobody: what is held stays
//! ```
//!
//! What the core holds lies with the binding (`registrar/upstream.rs`) and is replicated with it.
//! Bindings that end by themselves are taken out of the core.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use slab::Slab;

use super::{Destination, Output, ResolveError, ResolveId};
use crate::b2bua::auth::{CHALLENGES_MAX, answer_for};
use crate::b2bua::{Cx, Incoming};
use crate::digest::Challenge;
use crate::ids::ShardHint;
use crate::net::{Flow, Target};
use crate::registrar::{Answer, Judged, Upstream, UpstreamMode, UpstreamPolicy};
use crate::routing::Trunk;
use crate::sip::{Builder, HeaderName, Message, Method, UriRef, escape_user};
use crate::transaction::{self, ClientRequest, Large, Owner, ServerId};

/// Marks transactions and resolutions as the cache's: everything else has a higher bit set, or none.
const OWNER: u64 = 1 << 58;
const RESOLVE: u64 = 1 << 61;
const SERIAL: u32 = (1 << 26) - 1;
/// REGISTERs of one shard that wait for the core; past it 503.
const PENDING_MAX: usize = 20_000;
/// Seconds after which a phone may come back when no registrar answered.
const RETRY_AFTER_S: u32 = 30;
/// Where the trunk does not say how long silence may last.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// REGISTERs that went to the core, retries not counted.
    pub forwarded: u64,
    /// Refreshes that were answered here.
    pub absorbed: u64,
    /// No registrar of the core answered.
    pub unanswered: u64,
    /// Of these, refreshes that were granted because the core still holds the contact.
    pub bridged: u64,
    /// Bindings that ended here and were taken out of the core; and that the core refused to.
    pub withdrawn: u64,
    pub withdraw_refused: u64,
}

/// Why the core is asked.
enum Why {
    /// A phone waits for the answer.
    Phone { server: ServerId, flow: Flow, message: Message, judged: Judged },
    /// A binding has ended.
    Withdraw { contact: Box<str> },
}

struct Pending {
    why: Why,
    aor: Box<str>,
    policy: Arc<UpstreamPolicy>,
    trunk: Arc<Trunk>,
    peer: usize,
    /// Peers that were asked.
    asked: usize,
    rest: Vec<Target>,
    target: Option<Target>,
    call_id: Box<str>,
    cseq: u32,
    /// What the core is asked for.
    expires_s: u32,
    challenges: u8,
    serial: u32,
}

impl Pending {
    /// A REGISTER that no peer was asked yet.
    fn new(
        why: Why,
        aor: Box<str>,
        policy: Arc<UpstreamPolicy>,
        trunk: Arc<Trunk>,
        call_id: Box<str>,
        cseq: u32,
        expires_s: u32,
    ) -> Pending {
        Pending {
            why,
            aor,
            policy,
            trunk,
            peer: 0,
            asked: 0,
            rest: Vec::new(),
            target: None,
            call_id,
            cseq,
            expires_s,
            challenges: 0,
            serial: 0,
        }
    }
}

/// The REGISTERs of one shard that are under way to the core.
#[derive(Default)]
pub(crate) struct Cache {
    pending: Slab<Pending>,
    serial: u32,
    pub(crate) stats: CacheStats,
}

impl Cache {
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    fn index(&self, name: u64) -> Option<usize> {
        let index = usize::try_from(name & u64::from(u32::MAX)).ok()?;
        let current = |p: &&Pending| u64::from(p.serial) == name >> 32;
        self.pending.get(index).filter(current).map(|_| index)
    }

    fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(1) & SERIAL;
        self.serial
    }
}

/// Takes a REGISTER whose domain has its registrar upstream; `false` for all others.
pub(super) fn register(cx: &mut Cx<'_>, incoming: &Incoming<'_>) -> bool {
    let Some(registrar) = &cx.env.registrar else { return false };
    let host = incoming.message.to().ok().and_then(|to| to.uri().ok()).map(|u| u.host().to_owned());
    let Some(policy) = registrar.policy().upstream_of(host.as_deref().unwrap_or("")) else {
        return false;
    };
    let judged = match registrar.judge(&incoming.flow, incoming.message) {
        Ok(judged) => judged,
        Err(answer) => {
            respond(cx, incoming.server, &incoming.flow, incoming.message, &answer);
            return true;
        }
    };
    if absorb(cx, incoming, &policy, &judged) {
        return true;
    }
    let trunk = cx.env.routing.table().trunk_by_name(&policy.trunk).cloned();
    let room = cx.env.cache.pending.len() < PENDING_MAX;
    let Some(trunk) = trunk.filter(|trunk| room && trunk.is_enabled()) else {
        respond(cx, incoming.server, &incoming.flow, incoming.message, &unavailable());
        return true;
    };
    let before = cx.env.registrar.as_ref().and_then(|r| r.upstream(&judged, policy.mode));
    let (call_id, cseq) = match before {
        Some(before) => (before.call_id, before.cseq),
        None => (new_call_id(cx), 0),
    };
    let why = Why::Phone {
        server: incoming.server,
        flow: incoming.flow,
        message: incoming.message.clone(),
        judged: judged.clone(),
    };
    cx.env.cache.stats.forwarded += 1;
    let expires_s = match policy.mode {
        UpstreamMode::Mirror => judged.longest_s(),
        UpstreamMode::Contact | UpstreamMode::Aor => policy.expires_s.max(judged.longest_s()),
    };
    let aor = judged.aor.as_str().into();
    begin(cx, Pending::new(why, aor, policy, trunk, call_id, cseq, expires_s));
    true
}

/// A binding has ended by itself: the core is to forget it. In the mode of users only their last.
pub(super) fn withdraw(cx: &mut Cx<'_>, aor: &str, upstream: Upstream, left: usize) {
    let Some(registrar) = &cx.env.registrar else { return };
    let (_, host) = aor.rsplit_once('@').unwrap_or(("", aor));
    let Some(policy) = registrar.policy().upstream_of(host) else { return };
    let trunk = cx.env.routing.table().trunk_by_name(&policy.trunk).cloned();
    let needless = policy.mode == UpstreamMode::Aor && left > 0;
    let over = upstream.until_ms <= cx.unix_ms() || cx.env.cache.pending.len() >= PENDING_MAX;
    let Some(trunk) = trunk.filter(|_| !needless && !over) else { return };
    cx.env.cache.stats.withdrawn += 1;
    let why = Why::Withdraw { contact: upstream.contact };
    let (call_id, cseq) = (upstream.call_id, upstream.cseq);
    begin(cx, Pending::new(why, aor.into(), policy, trunk, call_id, cseq, 0));
}

/// Answers a refresh that the core need not hear of: the very phone that the core let in, by the same
/// flow, and the core's registration outlives what is granted here.
fn absorb(
    cx: &mut Cx<'_>,
    incoming: &Incoming<'_>,
    policy: &UpstreamPolicy,
    judged: &Judged,
) -> bool {
    if policy.mode == UpstreamMode::Mirror {
        return false;
    }
    let (now, now_ms, salt) = (cx.now, cx.unix_ms(), cx.ids().rng().next_u64());
    let Some(registrar) = &cx.env.registrar else { return false };
    let Some(upstream) = registrar.refreshed(now, &incoming.flow, incoming.message, judged) else {
        return false;
    };
    if !is_here(cx, policy, &upstream.contact) {
        return false;
    }
    let Some(registrar) = &mut cx.env.registrar else { return false };
    let left_s = upstream.until_ms.saturating_sub(now_ms) / 1_000;
    let wanted = u64::from(judged.longest_s());
    // Half a period more: the next refresh may be late, and goes to the core in time.
    if left_s < wanted + (wanted / 2).min(60) {
        return false;
    }
    let answer = registrar.granted(now, salt, &incoming.flow, incoming.message, None, u32::MAX);
    if answer.status == 200 {
        cx.env.cache.stats.absorbed += 1;
        known(cx, &incoming.flow, &judged.aor, judged.longest_s());
    }
    respond(cx, incoming.server, &incoming.flow, incoming.message, &answer);
    true
}

/// Whether a Contact that the core holds leads to this node: another may have registered it.
fn is_here(cx: &Cx<'_>, policy: &UpstreamPolicy, contact: &str) -> bool {
    let Some(trunk) = cx.env.routing.table().trunk_by_name(&policy.trunk) else { return false };
    let interface = cx.env.config.interfaces.get(usize::from(trunk.config.interface.0));
    let Ok(uri) = UriRef::parse(contact) else { return false };
    interface.is_some_and(|i| {
        i.listeners.iter().filter(|l| !l.retired).any(|l| {
            let host = l.advertise_host.to_string();
            host == uri.host() && Some(l.advertise_port) == uri.port()
        })
    })
}

fn new_call_id(cx: &mut Cx<'_>) -> Box<str> {
    let hint = own_hint(cx);
    cx.ids().call_id(hint).as_str().into()
}

/// Responses carry it in their branch: they come back to this shard.
fn own_hint(cx: &Cx<'_>) -> ShardHint {
    ShardHint(cx.env.place.0)
}

fn begin(cx: &mut Cx<'_>, mut pending: Pending) {
    pending.serial = cx.env.cache.next_serial();
    let index = cx.env.cache.pending.insert(pending);
    next_peer(cx, index, false);
}

/// Asks the next peer that is not known to be down; with `after` the one that was asked is over.
fn next_peer(cx: &mut Cx<'_>, index: usize, after: bool) {
    let now = cx.now;
    let serial = cx.env.cache.next_serial();
    let Some(pending) = cx.env.cache.pending.get_mut(index) else { return };
    let peers = pending.trunk.config.peers.len();
    if after {
        pending.peer += 1;
    }
    let usable = |n: usize| pending.trunk.peer_health(n).is_none_or(|h| h.is_usable(now));
    // All down: the first is asked all the same, for nobody else will tell.
    let next = (pending.peer..peers).find(|n| usable(*n));
    let Some(peer) = next.or((pending.asked == 0 && peers > 0).then_some(0)) else {
        return unanswered(cx, index);
    };
    (pending.peer, pending.serial) = (peer, serial);
    pending.asked += 1;
    let config = &pending.trunk.config;
    let Some(query) = config.peers.get(peer).map(|p| p.resolve_query(config.interface)) else {
        return unanswered(cx, index);
    };
    let id = ResolveId(RESOLVE | name(index, serial));
    cx.env.out.push_back(Output::Resolve { id, query });
}

/// The answer to a resolution; `false` when it is none of the cache's.
pub(super) fn resolved(
    cx: &mut Cx<'_>,
    id: ResolveId,
    result: &Result<Vec<Target>, ResolveError>,
) -> bool {
    if id.0 & RESOLVE == 0 || id.0 >> 62 != 0 {
        return false;
    }
    let Some(index) = cx.env.cache.index(id.0 & !RESOLVE) else { return true };
    if let Some(pending) = cx.env.cache.pending.get_mut(index) {
        pending.rest = result.as_deref().unwrap_or_default().to_vec();
    }
    next_target(cx, index);
    true
}

fn next_target(cx: &mut Cx<'_>, index: usize) {
    loop {
        let Some(pending) = cx.env.cache.pending.get_mut(index) else { return };
        if pending.rest.is_empty() {
            return next_peer(cx, index, true);
        }
        let target = pending.rest.remove(0);
        if ask(cx, index, target, None).is_some() {
            return;
        }
    }
}

/// Writes and sends the REGISTER to one target.
fn ask(
    cx: &mut Cx<'_>,
    index: usize,
    target: Target,
    authorization: Option<(HeaderName, String)>,
) -> Option<()> {
    let hint = own_hint(cx);
    let serial = cx.env.cache.next_serial();
    let (branch, tag) = (cx.ids().branch(hint), cx.ids().tag(hint));
    let pending = cx.env.cache.pending.get_mut(index)?;
    let interface = pending.trunk.config.interface;
    let listener = cx.env.config.interfaces.get(usize::from(interface.0))?.listener_for(&target)?;
    let (host, port) = (&listener.advertise_host, listener.advertise_port);
    let at = at(listener, &target);
    pending.cseq = pending.cseq.saturating_add(1);
    (pending.serial, pending.target) = (serial, Some(target));
    let (user, domain) = pending.aor.rsplit_once('@')?;
    let own_uri;
    let uri = match &pending.why {
        // The phone's credentials are made for this one.
        Why::Phone { message, .. } => message.request_uri_str(),
        Why::Withdraw { .. } => {
            own_uri = format!("sip:{domain}");
            &own_uri
        }
    };
    let transport = target.transport.via_token();
    let user = escape_user(user);
    let mut out = Builder::request(&Method::Register, uri);
    out.header(
        HeaderName::Via,
        format_args!("SIP/2.0/{transport} {host}:{port};branch={branch};rport"),
    )
    .header(HeaderName::MaxForwards, 70u8)
    .header(HeaderName::From, format_args!("<sip:{user}@{domain}>;tag={tag}"))
    .header(HeaderName::To, format_args!("<sip:{user}@{domain}>"))
    .header(HeaderName::CallId, &*pending.call_id)
    .header(HeaderName::CSeq, format_args!("{} REGISTER", pending.cseq));
    match &pending.why {
        Why::Withdraw { contact } => {
            out.header(HeaderName::Contact, format_args!("<{contact}>;expires=0"));
        }
        Why::Phone { message, judged, .. } => {
            let registrar = cx.env.registrar.as_ref()?;
            let mode = pending.policy.mode;
            for (contact, seconds) in registrar.mapped(judged, mode, &at, pending.expires_s) {
                out.header(HeaderName::Contact, format_args!("<{contact}>;expires={seconds}"));
            }
            for name in [HeaderName::Authorization, HeaderName::ProxyAuthorization] {
                for line in message.lines(name) {
                    out.header(name, line);
                }
            }
        }
    }
    if let Some((name, value)) = &authorization {
        out.header(*name, value.as_str());
    }
    if !cx.env.config.product.is_empty() {
        out.header(HeaderName::UserAgent, &*cx.env.config.product);
    }
    let timeout = pending.trunk.config.failover.no_answer.unwrap_or(ANSWER_TIME);
    let request = ClientRequest {
        owner: Owner(OWNER | name(index, serial)),
        branch,
        method: Method::Register,
        dest: Destination::Target { interface, target },
        data: out.finish(),
        timeout: Some(timeout),
        large: Large::Udp,
    };
    cx.env.txn.send_request(cx.now, request).ok().map(|_| ())
}

/// What the URI of a Contact of ours says after the user.
fn at(listener: &crate::net::Listener, target: &Target) -> String {
    let mut at = format!("{}:{}", listener.advertise_host, listener.advertise_port);
    if let Some(transport) = target.transport.uri_param() {
        at.push_str(";transport=");
        at.push_str(transport);
    }
    at
}

/// The outcome of a transaction; `false` when it is none of the cache's.
pub(super) fn event(cx: &mut Cx<'_>, event: &transaction::Event) -> bool {
    use transaction::Event as E;
    match event {
        E::Response { owner, message, .. } if is_ours(*owner) => {
            if let Some(index) = cx.env.cache.index(owner.0 & !OWNER) {
                response(cx, index, message);
            }
            true
        }
        E::ClientTimeout { owner, .. } | E::ClientTransportError { owner, .. }
            if is_ours(*owner) =>
        {
            if let Some(index) = cx.env.cache.index(owner.0 & !OWNER) {
                next_target(cx, index);
            }
            true
        }
        E::Response { .. }
        | E::ClientTimeout { .. }
        | E::ClientTransportError { .. }
        | E::Request { .. }
        | E::Ack { .. }
        | E::Cancelled { .. }
        | E::StrayOk { .. }
        | E::ServerTimeout { .. }
        | E::ServerTransportError { .. } => false,
    }
}

fn response(cx: &mut Cx<'_>, index: usize, message: &Message) {
    let status = message.status().unwrap_or(0);
    let phone = match cx.env.cache.pending.get(index).map(|p| &p.why) {
        Some(Why::Phone { .. }) => true,
        Some(Why::Withdraw { .. }) => false,
        None => return,
    };
    match (status, phone) {
        (..200, _) => {}
        (408 | 503, _) => next_target(cx, index),
        (401 | 407, false) => {
            if !answer(cx, index, message) {
                cx.env.cache.stats.withdraw_refused += 1;
                cx.env.cache.pending.remove(index);
            }
        }
        (_, false) => {
            if status >= 300 {
                cx.env.cache.stats.withdraw_refused += 1;
            }
            cx.env.cache.pending.remove(index);
        }
        (200..=299, true) => accepted(cx, index, message),
        (423, true) if lengthen(cx, index, message) => {}
        (_, true) => refused(cx, index, message, status),
    }
}

/// A challenge to what we do by ourselves: the trunk's credentials, if it has some for this realm.
fn answer(cx: &mut Cx<'_>, index: usize, message: &Message) -> bool {
    let cnonce = format!("{:016x}", cx.ids().rng().next_u64());
    let Some(pending) = cx.env.cache.pending.get_mut(index) else { return false };
    let Some(target) = pending.target.filter(|_| pending.challenges < CHALLENGES_MAX) else {
        return false;
    };
    let Some(mut found) = answer_for(&pending.trunk, message, pending.challenges) else {
        return false;
    };
    pending.challenges += 1;
    let (_, domain) = pending.aor.rsplit_once('@').unwrap_or(("", &pending.aor));
    let value = found.answerer.authorize("REGISTER", &format!("sip:{domain}"), b"", &cnonce);
    ask(cx, index, target, Some((found.header, value))).is_some()
}

/// 423: the same once more with the time that the core insists on.
fn lengthen(cx: &mut Cx<'_>, index: usize, message: &Message) -> bool {
    let min = message.number(HeaderName::MinExpires).ok().flatten();
    let Some(pending) = cx.env.cache.pending.get_mut(index) else { return false };
    let (Some(min), Some(target)) = (min, pending.target) else { return false };
    if pending.policy.mode == UpstreamMode::Mirror || min <= pending.expires_s || min > 604_800 {
        return false;
    }
    pending.expires_s = min;
    ask(cx, index, target, None).is_some()
}

/// The core keeps the contact: so do we, no longer than it.
fn accepted(cx: &mut Cx<'_>, index: usize, message: &Message) {
    let pending = cx.env.cache.pending.remove(index);
    let Why::Phone { server, flow, message: request, judged } = pending.why else { return };
    let Some(target) = pending.target else { return };
    let interface = usize::from(pending.trunk.config.interface.0);
    let listener = cx.env.config.interfaces.get(interface).and_then(|i| i.listener_for(&target));
    let Some(at) = listener.map(|listener| at(listener, &target)) else { return };
    let (now, now_ms, salt) = (cx.now, cx.unix_ms(), cx.ids().rng().next_u64());
    let Some(registrar) = &mut cx.env.registrar else { return };
    let kept = registrar.mapped(&judged, pending.policy.mode, &at, pending.expires_s);
    // Several contacts in one request share what the core grants least.
    let granted_s = kept
        .iter()
        .filter(|(_, seconds)| *seconds > 0)
        .map(|(contact, seconds)| super::registrant::granted(message, contact, *seconds))
        .min();
    let upstream = granted_s.filter(|s| *s > 0).map(|granted_s| Upstream {
        contact: "".into(),
        call_id: pending.call_id,
        cseq: pending.cseq,
        until_ms: now_ms.saturating_add(u64::from(granted_s) * 1_000),
    });
    registrar.settle_upstream(&judged);
    let given = upstream.as_ref().map(|upstream| (upstream, pending.policy.mode, at.as_str()));
    let answer =
        registrar.granted(now, salt, &flow, &request, given, granted_s.unwrap_or(u32::MAX));
    if pending.policy.mode == UpstreamMode::Aor {
        registrar.share_upstream(&judged.aor);
    }
    let asks = judged.all || !judged.contacts.is_empty();
    let seconds = judged.longest_s().min(granted_s.unwrap_or(0));
    if answer.status == 200 && asks {
        known(cx, &flow, &judged.aor, seconds);
    }
    respond(cx, server, &flow, &request, &answer);
}

/// A final refusal passes through. 403 and 404 mean that the core does not know the phone any more.
fn refused(cx: &mut Cx<'_>, index: usize, message: &Message, status: u16) {
    let pending = cx.env.cache.pending.remove(index);
    let Why::Phone { server, flow, message: request, judged } = pending.why else { return };
    if let Some(guard) = &cx.env.guard
        && is_wrong_password(&request, message, status)
    {
        guard.auth_failed(cx.now, flow.remote.ip());
    }
    if matches!(status, 403 | 404)
        && let Some(registrar) = &mut cx.env.registrar
    {
        registrar.drop_refused(cx.now, &judged, status == 404);
        if let Some(c) = &cx.env.config.registrar {
            c.flows.remove(&flow, &judged.aor);
        }
    }
    let mut answer = Answer::new(if status < 400 { 480 } else { status }, "");
    let names = [
        HeaderName::WwwAuthenticate,
        HeaderName::ProxyAuthenticate,
        HeaderName::MinExpires,
        HeaderName::RetryAfter,
    ];
    for name in names {
        let lines = message.lines(name).map(|line| (name, line.to_owned()));
        answer.headers.extend(lines);
    }
    respond(cx, server, &flow, &request, &answer);
}

/// No registrar answered. A phone that the core still holds stays reachable.
fn unanswered(cx: &mut Cx<'_>, index: usize) {
    let pending = cx.env.cache.pending.remove(index);
    cx.env.cache.stats.unanswered += 1;
    let Why::Phone { server, flow, message, judged } = pending.why else { return };
    let (now, now_ms, salt) = (cx.now, cx.unix_ms(), cx.ids().rng().next_u64());
    let bridged = cx.env.registrar.as_mut().and_then(|registrar| {
        let upstream = registrar.refreshed(now, &flow, &message, &judged)?;
        let left_s = upstream.until_ms.saturating_sub(now_ms) / 1_000;
        let left_s = u32::try_from(left_s).unwrap_or(u32::MAX);
        (left_s > 0).then(|| registrar.granted(now, salt, &flow, &message, None, left_s))
    });
    if bridged.is_some() {
        cx.env.cache.stats.bridged += 1;
    }
    respond(cx, server, &flow, &message, &bridged.unwrap_or_else(unavailable));
}

fn unavailable() -> Answer {
    let mut answer = Answer::new(503, "Registrar Unavailable");
    answer.headers.push((HeaderName::RetryAfter, RETRY_AFTER_S.to_string()));
    answer
}

/// The phone behind a flow has been let in by the core for a while: its other requests are taken too.
/// With 0 it has left.
fn known(cx: &mut Cx<'_>, flow: &Flow, aor: &str, seconds: u32) {
    let until: Instant = cx.now + Duration::from_secs(seconds.into());
    if let Some(c) = &cx.env.config.registrar {
        match seconds {
            0 => c.flows.remove(flow, aor),
            _ => c.flows.insert(flow, aor, until, cx.now),
        }
    }
    if let Some(guard) = cx.env.guard.as_ref().filter(|_| seconds > 0) {
        guard.auth_succeeded(flow.remote.ip());
        guard.registered(cx.now, flow, until);
    }
}

/// Whether the core says no to credentials, and not only to their age.
fn is_wrong_password(request: &Message, answer: &Message, status: u16) -> bool {
    let (said, challenges) = match status {
        407 => (HeaderName::ProxyAuthorization, HeaderName::ProxyAuthenticate),
        401 | 403 => (HeaderName::Authorization, HeaderName::WwwAuthenticate),
        _ => return false,
    };
    let stale = |line: &str| Challenge::parse(line).is_ok_and(|c| c.stale);
    request.has(said) && !answer.lines(challenges).any(stale)
}

fn respond(cx: &mut Cx<'_>, server: ServerId, flow: &Flow, request: &Message, answer: &Answer) {
    let hint = cx.ids().hints().of_message(request.as_bytes());
    let tag = cx.ids().tag(hint);
    let mut out = cx.response(request, flow, answer.status, answer.reason, Some(&tag));
    for (name, value) in &answer.headers {
        out.header(*name, value.as_str());
    }
    cx.respond(None, flow, server, answer.status, out.finish());
}

fn is_ours(owner: Owner) -> bool {
    owner.0 >> 58 == 1
}

fn name(index: usize, serial: u32) -> u64 {
    u64::from(serial) << 32 | (index as u64 & u64::from(u32::MAX))
}
