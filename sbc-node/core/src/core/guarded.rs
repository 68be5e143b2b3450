//! The guard on the shard's way in: what it lets through, what it drops or answers, and what it
//! tells the outside.
//!
//! Sources of trunks are known by routing (those that a name resolved to as well) and pass pike and
//! the rest; access lists hold for them. Phones are strangers here until they have registered.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use super::shard::answer_alone;
use crate::b2bua::{Cx, Env, is_emergency};
use crate::guard::{Fingerprint, Guard, RequestFacts, Verdict, Work};
use crate::net::Flow;
use crate::sip::{HeaderName, Message, Method, NameAddr};
use crate::transaction::RequestKey;

/// Before parsing; false drops.
pub(super) fn lets_in(env: &Env, now: Instant, flow: &Flow) -> bool {
    let Some(guard) = &env.guard else { return true };
    let trunk = || env.routing.identify(flow).is_some_and(|trunk| !trunk.config.users);
    match guard.datagram_unless(now, flow, trunk) {
        Verdict::Pass | Verdict::Reject { .. } => true,
        Verdict::Drop(_) => false,
    }
}

/// A connection that was accepted; false closes it.
pub(super) fn welcomes(env: &Env, now: Instant, flow: &Flow) -> bool {
    let Some(guard) = &env.guard else { return true };
    let secure = flow.transport.is_secure();
    let trunk = || env.routing.identify(flow).is_some_and(|trunk| !trunk.config.users);
    lets_in(env, now, flow) && (!secure || guard.handshake(now, flow, trunk) == Verdict::Pass)
}

/// After parsing; false when the message was dropped or answered. Responses pass: they find their
/// transaction or nothing. So do retransmissions: their transaction answers them.
pub(super) fn lets_through(
    cx: &mut Cx<'_>,
    flow: &Flow,
    message: &Message,
    key: RequestKey,
) -> bool {
    let env = &mut *cx.env;
    let Some(method) = message.method() else { return true };
    let in_dialog = message.to_tag().is_some() || matches!(method, Method::Ack | Method::Cancel);
    let loaded = env.overload.as_ref().filter(|o| !in_dialog && o.load() > 0.0).cloned();
    let trunk = env.routing.identify(flow).filter(|t| !t.config.users).cloned();
    let named = trunk.as_ref().map(|t| (t.id.0, &**t.name()));
    let guard = env.guard.clone().filter(|g| trunk.is_none() || g.has_rules());
    if (loaded.is_none() && guard.is_none()) || env.txn.knows(key) {
        return true;
    }
    if let Some(overload) = loaded
        && let Err(seconds) = overload.admit(work(cx, named.is_some(), message), cx.ids().rng())
    {
        // RFC 3261 §21.5.4: the caller may come back after that time.
        answer_alone(cx, flow, message, 503, "", Some(seconds));
        return false;
    }
    let emergency = guard.is_some() && work(cx, named.is_some(), message) == Work::Emergency;
    let judged =
        |g: Arc<Guard>| judge(cx.now, &g, flow, named, Passes { in_dialog, emergency }, message);
    match guard.map_or(Verdict::Pass, judged) {
        Verdict::Pass => true,
        Verdict::Drop(_) => false,
        Verdict::Reject { status, retry_after_s, .. } => {
            answer_alone(cx, flow, message, status, "", retry_after_s);
            false
        }
    }
}

/// What kind of work a request outside dialogs is.
fn work(cx: &Cx<'_>, trunk: bool, message: &Message) -> Work {
    if message.method() != Some(&Method::Invite) {
        return Work::Register;
    }
    let user = message.request_uri().ok().and_then(|uri| uri.user()).unwrap_or("");
    // A stranger may claim anything in a header.
    let emergency = (trunk && is_emergency(message)) || cx.env.routing.table().is_emergency(user);
    match (emergency, trunk) {
        (true, _) => Work::Emergency,
        (false, true) => Work::TrunkCall,
        (false, false) => Work::NewCall,
    }
}

/// What lets a request past scanners and rate limits.
#[derive(Clone, Copy)]
struct Passes {
    in_dialog: bool,
    emergency: bool,
}

/// The user part of a name's URI; empty without one.
fn user(name: Option<NameAddr<'_>>) -> &str {
    let uri = name.and_then(|n| crate::sip::UriRef::parse(n.uri_str).ok());
    uri.and_then(|uri| uri.user()).unwrap_or("")
}

fn judge(
    now: Instant,
    guard: &Guard,
    flow: &Flow,
    trunk: Option<(u32, &str)>,
    passes: Passes,
    message: &Message,
) -> Verdict {
    let mut facts = RequestFacts {
        flow,
        method: message.method().map_or("", Method::as_str),
        trunk,
        aor: "",
        ruri_user: "",
        fingerprint: Fingerprint::default(),
        in_dialog: passes.in_dialog,
        emergency: passes.emergency,
    };
    if !guard.reads(&facts) {
        return guard.request(now, &facts);
    }
    let from = message.from().ok();
    let aor = from.as_ref().and_then(|f| f.uri_str.split_once(':')).map_or("", |(_, rest)| rest);
    let aor = aor.split([';', '?']).next().unwrap_or("");
    let aor = match aor.bytes().any(|b| b.is_ascii_uppercase()) {
        true => Cow::Owned(aor.to_ascii_lowercase()),
        false => Cow::Borrowed(aor),
    };
    let (to_user, from_user) = (user(message.to().ok()), user(from));
    let ruri = message.request_uri().ok();
    facts.aor = &aor;
    facts.ruri_user = ruri.and_then(|u| u.user()).unwrap_or("");
    facts.fingerprint = Fingerprint {
        user_agent: message.header(HeaderName::UserAgent).unwrap_or("").as_bytes(),
        from_user: from_user.as_bytes(),
        to_user: to_user.as_bytes(),
        call_id: message.call_id().unwrap_or("").as_bytes(),
    };
    guard.request(now, &facts)
}
