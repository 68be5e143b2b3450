//! One shard: every input of the edge comes in here and is handed to whom it concerns.
//!
//! Knows which part of the core takes a message (transactions, calls, requests outside dialogs,
//! registrar, probes); what they do with it is theirs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hashbrown::HashMap;
use rand::Rng;

use super::cache::Cache;
use super::guarded;
use super::stun_pings::StunPings;
use super::{
    CacheStats, Command, Config, Event, Input, Output, ProbeCx, Prober, Registrant, RegistrantCx,
    Wanted,
};
use crate::b2bua::{CallId, CallSummary, Calls, Cx, Env, Incoming, Purpose, Stats, WallClock};
use crate::ids::{Branch, Ids, ShardHint};
use crate::media::Anchor;
use crate::net::{Flow, InterfaceId};
use crate::routing::Routing;
use crate::sip::{self, HeaderName, Message, Method};
use crate::stun;
use crate::timer::TimerWheel;
use crate::transaction::{self, ServerId, TransactionLayer};

/// The sans-IO machine of one shard.
pub struct Core {
    env: Env,
    calls: Calls,
    /// Set on the one shard that probes the trunks.
    prober: Option<Prober>,
    /// Set on the same shard: registers with the trunks that want it.
    registrant: Option<Registrant>,
    /// Keepalives of the registrar's phones by STUN.
    stun: StunPings,
    drained: bool,
}

impl Core {
    /// A shard without calls. `seed` feeds every identifier and choice that it makes; give entropy
    /// in production and a constant in tests.
    pub fn new(config: Arc<Config>, seed: [u8; 32], clock: WallClock) -> Self {
        let now = clock.at;
        let mut ids = Ids::new(seed, config.hint_key).of_node(config.node.unwrap_or(0));
        let routes = ids.rng().next_u64();
        let txn = TransactionLayer::new(config.transactions, ids, now);
        let env = Env {
            routing: Routing::new(config.routing.clone(), routes),
            registrar: super::users::build(&config, &clock, now),
            guard: config.guard.clone(),
            overload: config.overload.clone(),
            place: (0, 1),
            config,
            txn,
            timers: TimerWheel::new(now),
            out: VecDeque::new(),
            tags: HashMap::new(),
            conns: HashMap::new(),
            peers: Default::default(),
            resolves: HashMap::new(),
            waiting: Default::default(),
            rooms: Default::default(),
            stores: HashMap::new(),
            clock,
            draining: false,
            here: false,
            taking_over_until: None,
            trace_all: false,
            trace_below: 0,
            stats: Stats::default(),
            cache: Cache::default(),
            next_id: 0,
        };
        Core {
            env,
            calls: Calls::default(),
            prober: None,
            registrant: None,
            stun: StunPings::new(now),
            drained: false,
        }
    }

    /// Makes this the shard that probes the trunks of its node, and registers with them (one per
    /// node, by its index).
    pub fn probe_trunks(&mut self, now: Instant, shard: u32) {
        let mut prober = Prober::new(now, ShardHint(shard));
        prober.configure(&mut probe_cx(&mut self.env, now));
        self.prober = Some(prober);
        let alone = self.env.config.node.is_none();
        let mut registrant = Registrant::new(now, ShardHint(shard), alone);
        registrant.configure(&mut registrant_cx(&mut self.env, now));
        self.registrant = Some(registrant);
    }

    /// Registrations with trunks that are being taken back.
    pub fn registrations_leaving(&self) -> usize {
        self.registrant.as_ref().map_or(0, Registrant::leaving)
    }

    /// Emits [`Event::Trace`] for each message of new calls whose id is below this; 0 for none, the
    /// largest number for all.
    pub fn sample(&mut self, below: u64) {
        self.env.trace_below = below;
    }

    /// Says which of how many shards this is; without it, the only one.
    pub fn set_place(&mut self, shard: u32, shards: u32) {
        self.env.place = (shard, shards.max(1));
    }

    /// The shard that owns the bindings of an address of record (`user@domain`).
    pub fn shard_of_aor(&self, aor: &str) -> u32 {
        let hint = self.env.txn.ids_ref().hints().hash(aor.to_ascii_lowercase().as_bytes());
        hint.shard(self.env.place.1)
    }

    /// Whether this shard is the one.
    pub fn owns_aor(&self, aor: &str) -> bool {
        self.shard_of_aor(aor) == self.env.place.0
    }

    /// Probes the peers of a trunk at once; `false` where nobody probes it from here.
    pub fn probe_now(&mut self, now: Instant, trunk: &str) -> bool {
        let mut cx = probe_cx(&mut self.env, now);
        self.prober.as_mut().is_some_and(|prober| prober.probe_now(&mut cx, trunk))
    }

    /// One mutation. Drain [`Core::poll`] afterwards.
    pub fn handle(&mut self, now: Instant, input: Input, anchor: &mut dyn Anchor) {
        let mut cx = Cx { now, env: &mut self.env, anchor };
        match input {
            Input::Tick => {}
            Input::Message { flow, data } if stun::is_stun(&data) => {
                self.stun.heard(&mut cx, &flow, &data);
            }
            Input::Message { flow, data } => Self::message(&mut cx, flow, data),
            Input::Here { flow, data } => {
                cx.env.here = true;
                Self::message(&mut cx, flow, data);
            }
            Input::SendFailed { token, error } => {
                cx.env.txn.handle_send_failed(now, token, error);
            }
            Input::ConnClosed { flow } => {
                // Calls outlive connections.
                if let Some(conn) = flow.conn {
                    cx.env.peers.closed(&flow);
                    super::users::conn_closed(&mut cx, conn);
                    self.calls.conn_closed(&mut cx, conn);
                }
                cx.env.txn.handle_conn_closed(now, &flow);
            }
            Input::Resolved { id, result } => {
                let probe = self
                    .prober
                    .as_mut()
                    .is_some_and(|prober| prober.resolved(&mut probe_cx(cx.env, now), id, &result));
                let known = probe
                    || self.registrant.as_mut().is_some_and(|registrant| {
                        registrant.resolved(&mut registrant_cx(cx.env, now), id, &result)
                    });
                let known = known || super::cache::resolved(&mut cx, id, &result);
                if !known {
                    self.calls.resolved(&mut cx, id, result);
                }
            }
            Input::MediaTimeout { session } => self.calls.media_timeout(&mut cx, session),
            Input::MediaLatched { session } => self.calls.media_latched(&mut cx, session),
            Input::Stored { id, protected } => self.calls.stored(&mut cx, id, protected),
            Input::Adopt { record, mode } => self.calls.adopt(&mut cx, &record, mode),
            Input::Bindings(state) => super::users::adopt(&mut cx, &state),
            Input::BindingsUnstored(aor) => super::users::unstored(&mut cx, &aor),
            Input::Locate { from, id, ask } => super::users::tell(&mut cx, from, id, &ask),
            Input::Located { id, found } => self.calls.located(&mut cx, id, found),
            Input::FindPeer { from, interface, host } => {
                crate::b2bua::tell_peer(&mut cx, from, (interface, host));
            }
            Input::PeerFound { flow } => self.calls.peer_found(&mut cx, &flow),
            Input::Duties(duties) => {
                if let Some(registrant) = &mut self.registrant {
                    registrant.take_duties(&mut registrant_cx(cx.env, now), duties);
                }
            }
            Input::Command(command) => {
                if let (Command::Drain(on), Some(registrant)) = (&command, &mut self.registrant) {
                    registrant.drain(&mut registrant_cx(cx.env, now), *on);
                }
                self.calls.command(&mut cx, &command);
            }
            Input::UserFound { id, found } => {
                if let Some(asked) = super::ask::found(&mut cx, id, &found) {
                    let super::ask::Asked { server, flow, message, merged, .. } = asked;
                    request(&mut cx, &mut self.calls, server, flow, message, merged);
                    if let Some(registrar) = &mut cx.env.registrar {
                        registrar.judged();
                    }
                }
            }
            Input::RoomAsked { id } => {
                super::room::asked(&mut cx, id, |cx, incoming, trunk| {
                    self.calls.invite(cx, incoming, Some(trunk));
                });
            }
            Input::Configure(config) => {
                configure(&mut cx, config);
                if let Some(prober) = &mut self.prober {
                    prober.configure(&mut probe_cx(cx.env, now));
                }
                if let Some(registrant) = &mut self.registrant {
                    registrant.configure(&mut registrant_cx(cx.env, now));
                }
            }
        }
        self.settle(now, anchor);
        self.env.here = false;
    }

    /// The next output, if any.
    pub fn poll(&mut self) -> Option<Output> {
        let probes = || self.prober.as_mut().and_then(Prober::poll);
        let registrations = || self.registrant.as_mut().and_then(Registrant::poll);
        let own = self.env.txn.poll_output().or_else(|| self.env.out.pop_front());
        own.or_else(probes).or_else(registrations)
    }

    /// When to call `handle(now, Input::Tick)`; may come a little early.
    pub fn deadline(&self) -> Option<Instant> {
        let probes = self.prober.as_ref().and_then(Prober::deadline);
        let users = self.env.registrar.as_ref().and_then(|r| r.deadline());
        let trunks = self.registrant.as_ref().and_then(Registrant::deadline);
        let (calls, txn) = (self.env.timers.deadline(), self.env.txn.deadline());
        let all = [calls, txn, probes, trunks, users, self.stun.deadline()];
        all.into_iter().flatten().min()
    }

    /// Ties the clock to wall time anew (after the system clock was stepped).
    pub fn set_clock(&mut self, clock: WallClock) {
        self.env.clock = clock;
    }

    /// The hint of a raw message, or of an answer to a keepalive by STUN: which shard it belongs to.
    pub fn hint(&self, message: &[u8]) -> ShardHint {
        if stun::is_stun(message) {
            return stun::hint(message);
        }
        self.env.txn.ids_ref().hints().of_message(message)
    }

    pub fn stats(&self) -> Stats {
        Stats { calls: self.calls.len() as u64, ..self.env.stats }
    }

    pub fn cache_stats(&self) -> CacheStats {
        self.env.cache.stats
    }

    pub fn transaction_stats(&self) -> transaction::Stats {
        self.env.txn.stats()
    }

    /// Whether nothing is left: no call, no transaction, no timer, no output.
    pub fn is_idle(&self) -> bool {
        self.calls.len() == 0
            && self.calls.relays.len() == 0
            && self.calls.relays.subscriptions.len() == 0
            && self.env.txn.is_idle()
            && self.env.timers.is_empty()
            && self.env.tags.is_empty()
            && self.env.conns.is_empty()
            && self.env.stores.is_empty()
            && self.env.waiting.len() == 0
            && self.env.rooms.len() == 0
            && self.env.out.is_empty()
            && self.env.cache.is_idle()
            && self.stun.is_empty()
    }

    /// Snapshots of all calls, in no particular order.
    pub fn calls(&self) -> impl Iterator<Item = CallSummary> + '_ {
        self.calls.iter().map(|call| CallSummary::of(call, &self.env.clock))
    }

    /// One call with everything that is worth showing.
    pub fn call(&self, id: CallId) -> Option<CallSummary> {
        self.calls.find(id).map(|call| CallSummary::of(call, &self.env.clock))
    }

    /// Whether a call or subscription that began before `until_ms` (Unix milliseconds) has a leg on an
    /// interface.
    pub fn interface_used(&self, interface: InterfaceId, until_ms: u64) -> bool {
        self.calls.relays.subscriptions.uses(interface, until_ms)
            || self.calls.iter().any(|call| call.uses(interface, until_ms))
    }

    /// The shard's users and where they are; `None` where nobody registers. What is changed by it is
    /// replicated with the next tick at the latest.
    pub fn registrar(&mut self) -> Option<&mut crate::registrar::Registrar> {
        self.env.registrar.as_mut()
    }

    /// The shard's routing: trunk states and counters.
    pub fn routing(&mut self) -> &mut Routing {
        &mut self.env.routing
    }

    /// Whether what came by a flow may be looked at: to be asked for every datagram, connection and
    /// message of a stream where it is received, before it is parsed or given to its shard.
    pub fn lets_in(&self, now: Instant, flow: &Flow) -> bool {
        guarded::lets_in(&self.env, now, flow)
    }

    /// Whether a connection that was accepted may stay; asked once for each.
    pub fn welcomes(&self, now: Instant, flow: &Flow) -> bool {
        guarded::welcomes(&self.env, now, flow)
    }

    /// A whole message from the wire.
    fn message(cx: &mut Cx<'_>, flow: Flow, mut data: Bytes) {
        let limits = cx.env.config.limits;
        match sip::parse_from(&mut data, &limits) {
            Ok(message) => match sip::validate(&message) {
                Ok(()) if let Some(node) = other_node(cx, &message) => {
                    cx.elsewhere(Wanted::Node(node), flow, &message);
                }
                Ok(()) if asks_for_its_invite(cx, &message) => cx.dialog_elsewhere(flow, &message),
                Ok(()) => {
                    let key = cx.env.txn.key(&message);
                    if guarded::lets_through(cx, &flow, &message, key) {
                        cx.env.txn.handle_keyed(cx.now, flow, message, key);
                    }
                }
                Err(reject) => {
                    cx.env.stats.malformed(reject.defect);
                    refuse_malformed(cx, &flow, &message, reject.status, &reject.reason);
                }
            },
            Err(error) => {
                cx.env.stats.malformed(error.kind.into());
                let status = error.kind.status();
                match sip::salvage(data, &limits) {
                    Some(message) => {
                        let reason = format!("Bad Request: {}", error.kind);
                        refuse_malformed(cx, &flow, &message, status, &reason);
                    }
                    None => cx.env.stats.dropped += 1,
                }
            }
        }
    }

    /// Runs timers and events until nothing is due.
    fn settle(&mut self, now: Instant, anchor: &mut dyn Anchor) {
        let mut cx = Cx { now, env: &mut self.env, anchor };
        cx.env.txn.handle_tick(now);
        while let Some((_, timer)) = cx.env.timers.pop(now) {
            self.calls.timer(&mut cx, timer);
        }
        if let Some(prober) = &mut self.prober {
            prober.handle_tick(&mut probe_cx(cx.env, now));
        }
        if let Some(registrant) = &mut self.registrant {
            registrant.handle_tick(&mut registrant_cx(cx.env, now));
        }
        super::users::tick(&mut cx);
        self.stun.handle_tick(&mut cx);
        while let Some(event) = cx.env.txn.poll_event() {
            super::users::ping_event(&mut cx, &event);
            let probe = self
                .prober
                .as_mut()
                .is_some_and(|prober| probe_event(prober, &mut probe_cx(cx.env, now), &event));
            let known = probe
                || self.registrant.as_mut().is_some_and(|registrant| {
                    registrant_event(registrant, &mut registrant_cx(cx.env, now), &event)
                });
            if !known && !super::cache::event(&mut cx, &event) {
                dispatch(&mut cx, &mut self.calls, event);
            }
        }
        super::users::flush(&mut cx, &mut self.stun);
        let empty = self.calls.len() == 0;
        if cx.env.draining && empty && !self.drained {
            cx.event(Event::Drained);
        }
        self.drained = cx.env.draining && empty;
    }
}

/// The node whose transaction a response answers, if that is another.
fn other_node(cx: &Cx<'_>, message: &Message) -> Option<u16> {
    let own = cx.env.config.node.filter(|_| !cx.env.here && !message.is_request())?;
    let branch = Branch::parse(message.via().ok()?.branch().as_bytes())?;
    // A transaction of another node may have come here with its call.
    (branch.node() != own && !cx.env.txn.knows_branch(branch)).then(|| branch.node())
}

/// Whether a request must be asked for elsewhere because of an INVITE that another node took: a CANCEL
/// of one unknown here, and, while calls of another node come to this one, an INVITE that may be a
/// repeat of one of theirs.
fn asks_for_its_invite(cx: &Cx<'_>, message: &Message) -> bool {
    let may = match message.method() {
        Some(Method::Cancel) => true,
        Some(Method::Invite) => {
            message.to_tag().is_none() && cx.env.taking_over_until.is_some_and(|at| cx.now < at)
        }
        _ => false,
    };
    may && cx.may_be_elsewhere() && !cx.env.txn.is_retransmission(message)
}

/// What the prober may touch of the shard.
fn probe_cx(env: &mut Env, now: Instant) -> ProbeCx<'_> {
    ProbeCx {
        now,
        txn: &mut env.txn,
        routing: &mut env.routing,
        interfaces: &env.config.interfaces,
        product: &env.config.product,
    }
}

/// Whether the event was the outcome of a probe.
fn probe_event(prober: &mut Prober, cx: &mut ProbeCx<'_>, event: &transaction::Event) -> bool {
    use transaction::Event as E;
    match event {
        E::Response { owner, message, .. } => {
            message.status().is_some_and(|status| prober.response(cx, *owner, status))
        }
        E::ClientTimeout { owner, .. } | E::ClientTransportError { owner, .. } => {
            prober.failed(cx, *owner)
        }
        E::Request { .. }
        | E::Ack { .. }
        | E::Cancelled { .. }
        | E::StrayOk { .. }
        | E::ServerTimeout { .. }
        | E::ServerTransportError { .. } => false,
    }
}

/// What registrations with trunks may touch of the shard.
fn registrant_cx(env: &mut Env, now: Instant) -> RegistrantCx<'_> {
    RegistrantCx {
        now,
        clock: env.clock,
        txn: &mut env.txn,
        routing: &mut env.routing,
        interfaces: &env.config.interfaces,
        product: &env.config.product,
    }
}

/// Whether the event was the outcome of a registration.
fn registrant_event(
    registrant: &mut Registrant,
    cx: &mut RegistrantCx<'_>,
    event: &transaction::Event,
) -> bool {
    use transaction::Event as E;
    match event {
        E::Response { owner, message, .. } => registrant.response(cx, *owner, message),
        E::ClientTimeout { owner, .. } => registrant.failed(cx, *owner, 408),
        E::ClientTransportError { owner, .. } => registrant.failed(cx, *owner, 503),
        E::Request { .. }
        | E::Ack { .. }
        | E::Cancelled { .. }
        | E::StrayOk { .. }
        | E::ServerTimeout { .. }
        | E::ServerTransportError { .. } => false,
    }
}

/// Hands an event of the transaction layer to whom it concerns.
fn dispatch(cx: &mut Cx<'_>, calls: &mut Calls, event: transaction::Event) {
    use transaction::Event as E;
    match event {
        E::Request { id, flow, message, merged } => request(cx, calls, id, flow, message, merged),
        E::Ack { flow, message } => calls.ack(cx, &flow, &message),
        E::Cancelled { id, owner, message } => {
            if let Some(Purpose::Invite { call, .. }) = owner.map(Purpose::open) {
                calls.cancelled(cx, call, id, &message);
            } else if owner.is_none() {
                super::ask::cancelled(cx, id);
                super::room::cancelled(cx, id);
            }
        }
        E::Response { owner, message, .. } => match Purpose::open(owner) {
            Purpose::Invite { call, attempt } => {
                calls.invite_response(cx, call, attempt, &message);
            }
            Purpose::Exchange { call, number } => {
                calls.exchange_response(cx, call, number, &message);
            }
            Purpose::Relay { index, number } => {
                calls.relays.response(cx, index, number, &message);
            }
            Purpose::Subscription { index, number, exchange } => {
                calls.relays.subscription_response(cx, index, number, exchange, &message);
            }
            Purpose::Stray => {}
        },
        E::StrayOk { flow, message } => calls.stray_ok(cx, &flow, &message),
        E::ClientTimeout { owner, .. } => calls.client_failed(cx, Purpose::open(owner), 408),
        E::ClientTransportError { owner, .. } => {
            calls.client_failed(cx, Purpose::open(owner), 503);
        }
        // A final response without ACK, and responses that could not be sent, change nothing: the
        // call has gone on, or its peer will notice.
        E::ServerTimeout { .. } | E::ServerTransportError { .. } => {}
    }
}

fn request(
    cx: &mut Cx<'_>,
    calls: &mut Calls,
    server: ServerId,
    flow: Flow,
    message: Message,
    merged: bool,
) {
    crate::b2bua::heard_peer(cx, &flow);
    let incoming = Incoming { server, flow, message: &message, merged };
    if crate::b2bua::secure::refused(cx, &incoming) {
        return;
    }
    if message.to_tag().is_some() {
        return calls.request(cx, server, flow, message);
    }
    let Some(message) = super::ask::wait(cx, server, flow, message, merged) else { return };
    match message.method() {
        Some(Method::Register) if super::users::registers(cx, &flow) => {
            super::users::register(cx, &Incoming { server, flow, message: &message, merged });
        }
        Some(Method::Invite) => {
            calls.invite(cx, &Incoming { server, flow, message: &message, merged }, None);
        }
        _ => {
            let refers = message.method() == Some(&Method::Refer);
            let referral = refers.then(|| calls.referral(cx, &message));
            let incoming = Incoming { server, flow, message: &message, merged };
            calls.relays.request(cx, &incoming, referral);
        }
    }
}

/// Answers what cannot be worked with; responses and ACKs are dropped.
fn refuse_malformed(cx: &mut Cx<'_>, flow: &Flow, message: &Message, status: u16, reason: &str) {
    if !message.is_request() || message.method() == Some(&Method::Ack) {
        return;
    }
    answer_alone(cx, flow, message, status, reason, None);
}

/// Answers a request without a transaction.
pub(super) fn answer_alone(
    cx: &mut Cx<'_>,
    flow: &Flow,
    message: &Message,
    status: u16,
    reason: &str,
    retry_after_s: Option<u32>,
) {
    if message.method() == Some(&Method::Ack) {
        return;
    }
    let mut out = sip::response(message, status, reason, Some("refused"), Some(flow.remote));
    if let Some(seconds) = retry_after_s {
        out.header(HeaderName::RetryAfter, seconds);
    }
    if !cx.env.config.product.is_empty() {
        out.header(HeaderName::Server, &*cx.env.config.product);
    }
    cx.env.txn.transmit(super::Destination::Flow(*flow), out.finish());
}

fn configure(cx: &mut Cx<'_>, config: Arc<Config>) {
    cx.env.routing.reload(config.routing.clone());
    cx.env.txn.set_config(config.transactions);
    super::users::configure(cx, &config);
    cx.env.guard = config.guard.clone();
    cx.env.overload = config.overload.clone();
    cx.env.config = config;
}
