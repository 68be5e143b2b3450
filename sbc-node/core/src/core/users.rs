//! The registrar within a shard: REGISTER, keepalives, what is replicated, questions of other
//! shards. What a binding is and who may make one lives in `registrar/`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::Rng;

use super::stun_pings::StunPings;
use super::{Config, Destination, Input, Locate, Output, Record, ResolveId, StoreId};
use crate::b2bua::users::{look_up, users_trunk};
use crate::b2bua::{Cx, Incoming, WallClock};
use crate::ids::ShardHint;
use crate::net::{ConnId, Flow, Target};
use crate::registrar::{Answer, AorState, Due, KeepaliveKind, Ping, Registrar};
use crate::sip::{Builder, HeaderName, Method};
use crate::transaction::{self, ClientRequest, Large, Owner};

/// Marks the transactions of keepalives. Calls have one of the two topmost bits set or are zero,
/// probes have the next one.
const OWNER: u64 = 1 << 60;
/// A phone that takes longer to answer a keepalive counts as not there.
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(8);
/// A flow is known as a user's for so long after a REGISTER; phones come back sooner.
const KNOWN_FOR: Duration = Duration::from_secs(3_600);

pub(super) fn build(config: &Config, clock: &WallClock, now: Instant) -> Option<Registrar> {
    let c = config.registrar.as_ref()?;
    let (policy, users, replays) = (c.policy.clone(), c.users.clone(), c.replays.clone());
    Some(Registrar::new(policy, users, replays, now, clock.unix_ms(now)))
}

/// Takes another configuration; bindings stay unless there is no registrar any more.
pub(super) fn configure(cx: &mut Cx<'_>, config: &Arc<Config>) {
    match (&mut cx.env.registrar, &config.registrar) {
        (Some(registrar), Some(c)) => registrar.configure(c.policy.clone(), c.users.clone()),
        (none_yet, _) => *none_yet = build(config, &cx.env.clock, cx.now),
    }
}

/// Whether a REGISTER on a flow is for us.
pub(super) fn registers(cx: &Cx<'_>, flow: &Flow) -> bool {
    cx.env.registrar.is_some()
        && cx.env.routing.identify(flow).is_none()
        && users_trunk(cx, flow).is_some()
}

pub(super) fn register(cx: &mut Cx<'_>, incoming: &Incoming<'_>) {
    if super::cache::register(cx, incoming) {
        return;
    }
    let (now, now_s, salt) = (cx.now, cx.unix_ms() / 1_000, cx.ids().rng().next_u64());
    let Some(registrar) = &mut cx.env.registrar else { return };
    let answer = registrar.register(now, now_s, salt, &incoming.flow, incoming.message);
    tell_guard(cx, incoming, &answer);
    // No dialog: nobody comes back by this tag.
    let hint = ShardHint(cx.env.place.0);
    let tag = cx.ids().tag(hint);
    let mut out =
        cx.response(incoming.message, &incoming.flow, answer.status, answer.reason, Some(&tag));
    for (name, value) in &answer.headers {
        out.header(*name, value.as_str());
    }
    cx.answer(incoming, answer.status, out.finish());
}

/// What a REGISTER says of its source: a guesser, a scanner of users, or one of ours.
fn tell_guard(cx: &mut Cx<'_>, incoming: &Incoming<'_>, answer: &Answer) {
    let (Some(guard), Some(registrar)) = (&cx.env.guard, &cx.env.registrar) else { return };
    let source = incoming.flow.remote.ip();
    match answer.status {
        200 => {
            guard.auth_succeeded(source);
            guard.registered(cx.now, &incoming.flow, cx.now + KNOWN_FOR);
        }
        401 | 403 | 404 => {
            if answer.wrong_password {
                guard.auth_failed(cx.now, source);
            }
            if let Some(user) = registrar.unknown(incoming.message) {
                guard.unknown_user(cx.now, source, user);
            }
        }
        _ => {}
    }
}

pub(super) fn conn_closed(cx: &mut Cx<'_>, conn: ConnId) {
    if let Some(registrar) = &mut cx.env.registrar {
        registrar.conn_closed(cx.now, conn);
    }
}

/// What the replicated state says of a user. A full table drops it: the user registers again.
pub(super) fn adopt(cx: &mut Cx<'_>, state: &AorState) {
    if let Some(registrar) = &mut cx.env.registrar
        && registrar.bindings().adopt(cx.now, state).is_err()
    {
        cx.env.stats.dropped += 1;
    }
    let Some(c) = &cx.env.config.registrar else { return };
    for b in state.bindings.iter().map(|held| &held.record).filter(|b| b.upstream.is_some()) {
        let left_ms = b.good_until_ms.saturating_sub(cx.env.clock.unix_ms(cx.now));
        c.flows.insert(&b.flow(), &state.aor, cx.now + Duration::from_millis(left_ms), cx.now);
    }
}

/// A write of bindings was lost.
pub(super) fn unstored(cx: &mut Cx<'_>, aor: &str) {
    if let Some(registrar) = &mut cx.env.registrar {
        registrar.bindings().unstored(aor);
    }
}

/// Answers the question of another shard.
pub(super) fn tell(cx: &mut Cx<'_>, from: u32, id: ResolveId, ask: &Locate) {
    let input = Box::new(Input::Located { id, found: look_up(cx, ask) });
    cx.env.out.push_back(Output::Shard { shard: from, input });
}

/// Expires bindings and makes the keepalives that are due.
pub(super) fn tick(cx: &mut Cx<'_>) {
    if let Some(registrar) = &mut cx.env.registrar {
        registrar.bindings().handle_tick(cx.now);
    }
}

/// Sends keepalives, stores what changed.
pub(super) fn flush(cx: &mut Cx<'_>, stun: &mut StunPings) {
    while let Some(due) = cx.env.registrar.as_mut().and_then(|r| r.bindings().poll()) {
        match due {
            Due::Store(record) => {
                let id = StoreId(cx.next_id());
                let record = Record::Aor(Box::new(record));
                cx.env.out.push_back(Output::Store { id, wait: None, record });
            }
            Due::Ping(ping) => send_ping(cx, stun, &ping),
            Due::Withdraw { aor, upstream, left } => {
                super::cache::withdraw(cx, &aor, upstream, left);
            }
            Due::Changed(changed) => {
                cx.env.out.push_back(Output::Event(super::Event::Registration(changed)));
            }
        }
    }
}

fn send_ping(cx: &mut Cx<'_>, stun: &mut StunPings, ping: &Ping) {
    let dest = match ping.flow.conn {
        Some(_) => Destination::Flow(ping.flow),
        None => Destination::Target {
            interface: ping.flow.interface,
            target: Target::new(ping.flow.transport, ping.flow.remote),
        },
    };
    match ping.kind {
        KeepaliveKind::Crlf => cx.env.txn.transmit(dest, Bytes::from_static(b"\r\n\r\n")),
        KeepaliveKind::Stun => stun.send(cx, ping, dest),
        KeepaliveKind::Options => {
            if send_options(cx, ping, dest).is_none() {
                ping_failed(cx, ping.id);
            }
        }
    }
}

fn send_options(cx: &mut Cx<'_>, ping: &Ping, dest: Destination) -> Option<()> {
    let interface = cx.env.config.interfaces.get(usize::from(ping.flow.interface.0))?;
    let target = Target::new(ping.flow.transport, ping.flow.remote);
    let listener = interface.listener_for(&target)?;
    let (host, port) = (listener.advertise_host.clone(), listener.advertise_port);
    let transport = target.transport.via_token();
    // Responses carry the hint in the branch: they come back to this shard.
    let (shard, _) = cx.env.place;
    let hint = ShardHint(shard);
    let (branch, tag) = (cx.ids().branch(hint), cx.ids().tag(hint));
    let call_id = cx.ids().call_id(hint);
    let mut out = Builder::request(&Method::Options, &*ping.uri);
    out.header(
        HeaderName::Via,
        format_args!("SIP/2.0/{transport} {host}:{port};branch={branch};rport"),
    )
    .header(HeaderName::MaxForwards, 70u8)
    .header(HeaderName::From, format_args!("<sip:keepalive@{host}:{port}>;tag={tag}"))
    .header(HeaderName::To, ("<", &*ping.uri, ">"))
    .header(HeaderName::CallId, call_id.as_str())
    .header(HeaderName::CSeq, "1 OPTIONS");
    let request = ClientRequest {
        owner: Owner(OWNER | ping.id),
        branch,
        method: Method::Options,
        dest,
        data: out.finish(),
        timeout: Some(PING_TIMEOUT),
        large: Large::Udp,
    };
    // A full table is counted there. The phone is not to blame: its turn comes again.
    let _full = cx.env.txn.send_request(cx.now, request);
    Some(())
}

pub(super) fn ping_failed(cx: &mut Cx<'_>, id: u64) {
    if let Some(registrar) = &mut cx.env.registrar {
        registrar.bindings().ping_failed(cx.now, id);
    }
}

pub(super) fn ping_answered(cx: &mut Cx<'_>, id: u64) {
    if let Some(registrar) = &mut cx.env.registrar {
        registrar.bindings().ping_answered(cx.now, id);
    }
}

/// The outcome of a keepalive by OPTIONS; every final answer tells that the phone is there.
pub(super) fn ping_event(cx: &mut Cx<'_>, event: &transaction::Event) {
    use transaction::Event as E;
    let id = |owner: &Owner| (owner.0 >> 60 == 1).then_some(owner.0 & !OWNER);
    match event {
        E::Response { owner, message, .. } => {
            if let Some(id) = id(owner)
                && message.status().is_some_and(|s| s >= 200)
            {
                ping_answered(cx, id);
            }
        }
        E::ClientTimeout { owner, .. } | E::ClientTransportError { owner, .. } => {
            if let Some(id) = id(owner) {
                ping_failed(cx, id);
            }
        }
        E::Request { .. }
        | E::Ack { .. }
        | E::Cancelled { .. }
        | E::StrayOk { .. }
        | E::ServerTimeout { .. }
        | E::ServerTransportError { .. } => {}
    }
}
