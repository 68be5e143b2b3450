//! The guard on the shard's way in: what it lets through, what it drops or answers, and what it
//! tells the outside.
//!
//! Sources of trunks are known by routing (those that a name resolved to as well) and pass pike and
//! the rest; access lists hold for them. Phones are strangers here until they have registered.

use std::time::Instant;

use super::Event;
use super::shard::answer_alone;
use crate::b2bua::Cx;
use crate::guard::{BanEvent, Fingerprint, RequestFacts, Verdict};
use crate::net::Flow;
use crate::sip::{HeaderName, Message, Method, NameAddr};

/// Before parsing; false drops.
pub(super) fn lets_in(cx: &mut Cx<'_>, flow: &Flow) -> bool {
    let env = &mut *cx.env;
    let Some(guard) = &mut env.guard else { return true };
    if env.routing.identify(flow).is_some_and(|trunk| !trunk.config.users) {
        return true;
    }
    match guard.datagram(cx.now, flow) {
        Verdict::Pass | Verdict::Reject { .. } => true,
        Verdict::Drop(_) => {
            env.stats.guard_dropped += 1;
            false
        }
    }
}

/// After parsing; false when the message was dropped or answered. Responses pass: they find their
/// transaction or nothing.
pub(super) fn lets_through(cx: &mut Cx<'_>, flow: &Flow, message: &Message) -> bool {
    let env = &mut *cx.env;
    let (Some(guard), Some(method)) = (&mut env.guard, message.method()) else { return true };
    let known = env.routing.identify(flow).filter(|trunk| !trunk.config.users);
    if known.is_some() && !guard.has_rules() {
        return true;
    }
    let user = |name: Option<NameAddr<'_>>| {
        let uri = name.map(|n| n.uri_str).unwrap_or_default();
        crate::sip::UriRef::parse(uri).ok().and_then(|u| u.user().map(str::to_owned))
    };
    let from = message.from().ok();
    let (from_user, to_user) = (user(from).unwrap_or_default(), user(message.to().ok()));
    let to_user = to_user.unwrap_or_default();
    let ruri = crate::sip::UriRef::parse(message.request_uri_str()).ok();
    let ruri_user = ruri.and_then(|u| u.user().map(str::to_owned)).unwrap_or_default();
    let aor = message.from().ok().map_or("", |f| f.uri_str);
    let aor = aor.split_once(':').map_or("", |(_, rest)| rest);
    let facts = RequestFacts {
        flow,
        method: method.as_str(),
        trunk: known.map(|trunk| trunk.id.0),
        aor: aor.split(';').next().unwrap_or(""),
        ruri_user: &ruri_user,
        fingerprint: Fingerprint {
            user_agent: message.header(HeaderName::UserAgent).unwrap_or("").as_bytes(),
            from_user: from_user.as_bytes(),
            to_user: to_user.as_bytes(),
            call_id: message.call_id().unwrap_or("").as_bytes(),
        },
        in_dialog: message.to_tag().is_some() || matches!(method, Method::Ack | Method::Cancel),
    };
    match guard.request(cx.now, &facts) {
        Verdict::Pass => true,
        Verdict::Drop(_) => {
            env.stats.guard_dropped += 1;
            false
        }
        Verdict::Reject { status, retry_after_s, .. } => {
            env.stats.guard_refused += 1;
            answer_alone(cx, flow, message, status, "", retry_after_s);
            false
        }
    }
}

/// Bans run out, and what changed is told.
pub(super) fn tick(cx: &mut Cx<'_>, now: Instant) {
    let Some(guard) = &mut cx.env.guard else { return };
    guard.tick(now);
    let mut told = Vec::new();
    while let Some(event) = guard.poll() {
        told.push(event);
    }
    for event in told {
        cx.event(match event {
            BanEvent::Added(ban) => {
                Event::Banned { net: ban.net.to_string(), reason: ban.reason.as_str(), by: ban.by }
            }
            BanEvent::Removed { net, .. } => Event::Unbanned { net: net.to_string() },
        });
    }
}
