//! The shard's table of calls: finds the call that an event belongs to and lets it act.
//!
//! No decision about a call is made here beyond "which one" and "none".

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;

use super::answered::hang_up_stray;
use super::call::{Asked, Call, CallKey, CallTimer, DialogRef, Phase, Trying};
use super::cdr::{EndCause, EndedBy, Written};
use super::env::{CHECK, Cx, Purpose, ResolveFor, Timer};
use super::invite::{self, Incoming, NotYet, Refuse};
use super::outside::Relays;
use super::record::CallId;
use super::refer::Referral;
use super::subscription::SubKey;
use crate::core::{Command, ResolveError, ResolveId, StoreId};
use crate::media::{MediaId, Side};
use crate::net::{ConnId, Flow, Target};
use crate::registrar::Reached;
use crate::routing::Trunk;
use crate::sip::{HeaderName, Message, Method};
use crate::transaction::ServerId;
use hashbrown::HashMap;

/// Calls of one shard.
#[derive(Default)]
pub(crate) struct Calls {
    slots: Slab<Box<Call>>,
    by_id: HashMap<CallId, u32>,
    /// Calls that ended last, oldest first: a record that is still in the replicated state, because
    /// its end is not written yet, must not bring them back.
    ended: VecDeque<CallId>,
    /// Requests outside dialogs on their way.
    pub(crate) relays: Relays,
}

impl Calls {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Call> {
        self.slots.iter().map(|(_, call)| &**call)
    }

    pub(crate) fn find(&self, id: CallId) -> Option<&Call> {
        self.slots.get(*self.by_id.get(&id)? as usize).map(|c| &**c)
    }

    /// Lets a call act, and forgets it when that was its end.
    pub(crate) fn with(
        &mut self,
        cx: &mut Cx<'_>,
        key: CallKey,
        act: impl FnOnce(&mut Call, &mut Cx<'_>),
    ) -> bool {
        let Some(call) = self.slots.get_mut(key.index as usize).filter(|c| same(c.key, key)) else {
            return false;
        };
        let key = call.key;
        act(call, cx);
        if call.is_over() {
            call.forget(cx);
            if call.facts.written != Written::Never && call.facts.ended_by.is_some() {
                if self.ended.len() >= ENDED_MAX {
                    self.ended.pop_front();
                }
                self.ended.push_back(key.id);
            }
            self.slots.remove(key.index as usize);
            self.by_id.remove(&key.id);
            cx.env.stats.calls = self.slots.len() as u64;
        }
        true
    }

    pub(crate) fn get(&self, key: CallKey) -> Option<&Call> {
        self.slots.get(key.index as usize).map(|c| &**c).filter(|c| same(c.key, key))
    }

    /// Whether a call ended here a short while ago.
    pub(crate) fn has_ended(&self, id: CallId) -> bool {
        self.ended.contains(&id)
    }

    fn key_of(&self, id: CallId) -> Option<CallKey> {
        self.by_id.get(&id).map(|&index| CallKey { index, id })
    }

    /// Puts a new call into the table.
    pub(crate) fn insert(
        &mut self,
        cx: &mut Cx<'_>,
        id: CallId,
        make: impl FnOnce(&mut Cx<'_>, CallKey) -> Call,
    ) -> Option<CallKey> {
        let entry = self.slots.vacant_entry();
        let key = CallKey { index: u32::try_from(entry.key()).ok()?, id };
        entry.insert(Box::new(make(cx, key)));
        self.by_id.insert(id, key.index);
        cx.env.stats.calls = self.slots.len() as u64;
        Some(key)
    }

    /// An INVITE outside any dialog; with the trunk that it comes from when it has waited for room.
    pub(crate) fn invite(
        &mut self,
        cx: &mut Cx<'_>,
        incoming: &Incoming<'_>,
        from: Option<Arc<Trunk>>,
    ) {
        let accepted = if self.is_loop(cx, incoming.message) {
            Err(Refuse::new(482, ""))
        } else {
            match invite::accept(cx, incoming, from, self.len()) {
                Ok(accepted) => Ok(accepted),
                Err(NotYet::Refused(refuse)) => Err(refuse),
                Err(NotYet::Waits) => return,
            }
        };
        let replaced = self.check_replaces(cx, incoming.message);
        let accepted = match (accepted, replaced) {
            (Ok(mut accepted), Ok(replaced)) => {
                accepted.replaced = replaced;
                accepted
            }
            (Ok(accepted), Err(())) => {
                accepted.drop_it(cx);
                return invite::refuse_call(cx, incoming, &Refuse::new(481, ""));
            }
            (Err(refuse), _) => return invite::refuse_call(cx, incoming, &refuse),
        };
        let id = invite::new_call_id(cx);
        let made = self.insert(cx, id, |cx, key| invite::make(cx, incoming, accepted, key));
        if let Some(key) = made {
            cx.own_server(incoming.server, Purpose::Invite { call: key, attempt: 0 });
            self.with(cx, key, |call, cx| {
                call.trace_received(cx, Side::A, &incoming.flow, incoming.message);
                call.try_next(cx);
            });
        }
    }

    /// A request that we sent and that came back unchanged: our own From tag and Call-ID, for the
    /// same user (RFC 3261 §16.3, item 4). With another Request-URI it is a spiral and goes on.
    fn is_loop(&self, cx: &Cx<'_>, message: &Message) -> bool {
        let Some(dialog) = cx.env.tags.get(message.from_tag()) else { return false };
        let Some(call) = self.slots.get(dialog.call.index as usize) else { return false };
        let Phase::Setup(setup) = &call.phase else { return false };
        let Some(trying) = &setup.trying else { return false };
        let user = |uri: &str| {
            crate::sip::UriRef::parse(uri).ok().and_then(|u| u.user().map(str::to_owned))
        };
        let call_id = message.call_id().unwrap_or("");
        let mut legs = trying.attempts.iter().filter_map(|a| a.leg.as_ref());
        legs.any(|leg| {
            *call_id == *leg.dialog.call_id
                && user(message.request_uri_str()) == user(&leg.dialog.target)
        })
    }

    /// The dialog that a request belongs to by its To tag, Call-ID and From tag.
    fn dialog_of(&self, cx: &Cx<'_>, message: &Message) -> Option<DialogRef> {
        let dialog = *cx.env.tags.get(message.to_tag()?)?;
        let call = self.slots.get(dialog.call.index as usize)?;
        let (call_id, from_tag) = (message.call_id().ok()?, message.from_tag());
        let known = call.key == dialog.call && call.has_dialog(&dialog, call_id, from_tag);
        known.then_some(dialog)
    }

    /// A request inside a dialog.
    pub(crate) fn request(
        &mut self,
        cx: &mut Cx<'_>,
        server: ServerId,
        flow: Flow,
        message: Message,
    ) {
        let dialog = self.dialog_of(cx, &message);
        let asked = Asked { server, request: message, flow };
        let Some(dialog) = dialog else {
            let Err(asked) = self.relays.subscriptions.request(cx, asked) else { return };
            if cx.may_be_elsewhere() {
                // Without our transaction: the node that has the dialog makes its own.
                cx.env.txn.forget(server);
                return cx.dialog_elsewhere(flow, &asked.request);
            }
            cx.env.stats.unknown_dialogs += 1;
            let out = cx.response(&asked.request, &flow, 481, "", None);
            return cx.respond(None, &flow, server, 481, out.finish());
        };
        cx.own_server(server, Purpose::Invite { call: dialog.call, attempt: 0 });
        let refers = asked.request.method() == Some(&Method::Refer);
        let referral = refers.then(|| self.referral(cx, &asked.request));
        self.with(cx, dialog.call, |call, cx| {
            call.trace_received(cx, dialog.side, &flow, &asked.request);
            call.dialog_request(cx, dialog, asked, referral);
        });
    }

    /// An ACK: of a 2xx of ours, or of nothing.
    pub(crate) fn ack(&mut self, cx: &mut Cx<'_>, flow: &Flow, message: &Message) {
        let Some(dialog) = self.dialog_of(cx, message) else {
            if cx.may_be_elsewhere() && message.to_tag().is_some() {
                return cx.dialog_elsewhere(*flow, message);
            }
            cx.env.stats.dropped += 1;
            return;
        };
        self.with(cx, dialog.call, |call, cx| {
            call.trace_received(cx, dialog.side, flow, message);
            call.ack(cx, dialog.side, message);
        });
    }

    /// A CANCEL; the INVITE may be the one that made the call or a re-INVITE.
    pub(crate) fn cancelled(
        &mut self,
        cx: &mut Cx<'_>,
        call: CallKey,
        server: ServerId,
        message: &Message,
    ) {
        self.with(cx, call, |call, cx| match &call.phase {
            Phase::Setup(setup) if setup.server == server => call.cancelled(cx, message),
            Phase::Setup(_) | Phase::Up | Phase::Ending => {
                call.reinvite_cancelled(cx, server, message);
            }
        });
    }

    /// A response to the INVITE of attempt n of a call.
    pub(crate) fn invite_response(
        &mut self,
        cx: &mut Cx<'_>,
        key: CallKey,
        attempt: u16,
        message: &Message,
    ) {
        let found = self.with(cx, key, |call, cx| {
            call.trace_response(cx, Side::B, message);
            call.invite_response(cx, attempt, message);
        });
        if !found && message.status().is_some_and(|s| (200..300).contains(&s)) {
            hang_up_stray(cx, message, None);
        }
    }

    /// A response to a request inside a call.
    pub(crate) fn exchange_response(
        &mut self,
        cx: &mut Cx<'_>,
        key: CallKey,
        number: u16,
        message: &Message,
    ) {
        let ok = message.status().is_some_and(|s| (200..300).contains(&s));
        let invite = message.cseq().is_ok_and(|c| c.method == "INVITE");
        let found = self.with(cx, key, |call, cx| {
            if call.trace {
                let side = call.exchanges.iter().find(|e| e.number == number).map(|e| e.to);
                call.trace_response(cx, side.unwrap_or(Side::B), message);
            }
            if call.exchanges.iter().any(|e| e.number == number) {
                call.exchange_response(cx, number, message);
            } else if ok && invite {
                call.reinvite_ok_again(cx, message);
            }
        });
        if !found && ok && invite {
            hang_up_stray(cx, message, None);
        }
    }

    /// A 2xx to an INVITE whose transaction is over: of a call that is up, its ACK was lost; of none,
    /// nobody wants it.
    pub(crate) fn stray_ok(&mut self, cx: &mut Cx<'_>, flow: &Flow, message: &Message) {
        let dialog = cx.env.tags.get(message.from_tag()).copied();
        let known = dialog.filter(|d| {
            let leg = self.get(d.call).and_then(|c| c.leg(d.side));
            let to_tag = message.to_tag().unwrap_or("");
            leg.is_some_and(|l| message.call_id().is_ok_and(|id| l.dialog.is(id, to_tag)))
        });
        match known {
            Some(dialog) => {
                self.with(cx, dialog.call, |call, cx| call.ok_again(cx, dialog.side, message));
            }
            None => hang_up_stray(cx, message, Some(flow)),
        }
    }

    /// A client transaction of a call ended without a final response.
    pub(crate) fn client_failed(&mut self, cx: &mut Cx<'_>, purpose: Purpose, status: u16) {
        match purpose {
            Purpose::Invite { call, attempt } => {
                self.with(cx, call, |call, cx| {
                    call.attempt_failed(cx, attempt, status, None);
                });
            }
            Purpose::Exchange { call, number } => {
                self.with(cx, call, |call, cx| call.exchange_failed(cx, number, status));
            }
            Purpose::Relay { index, number } => self.relays.failed(cx, index, number),
            Purpose::Subscription { index, number, exchange } => {
                let key = SubKey { index, number };
                self.relays.subscriptions.failed(cx, key, exchange, status);
            }
            Purpose::Stray => {}
        }
    }

    pub(crate) fn timer(&mut self, cx: &mut Cx<'_>, timer: Timer) {
        if timer.what == CallTimer::Subscription {
            return self.relays.subscriptions.timer(cx, timer.call);
        }
        self.with(cx, timer.call, |call, cx| match timer.what {
            CallTimer::Attempt(number) => call.attempt_timer(cx, number),
            CallTimer::Ok => call.ok_timer(cx),
            CallTimer::Repeat => call.repeat_timer(cx),
            CallTimer::Reliable => call.reliable_timer(cx),
            CallTimer::Session(side) => call.session_timer(cx, side),
            CallTimer::Duration => {
                let reason = "SIP;cause=200;text=\"Call duration limit\"";
                call.end(cx, EndedBy::Sbc(EndCause::DurationLimit), None, Some(reason));
            }
            CallTimer::Retry(side) => call.retry_reinvite(cx, side),
            CallTimer::Seek(side) => call.seek(cx, side),
            CallTimer::Subscription => {}
        });
    }

    pub(crate) fn resolved(
        &mut self,
        cx: &mut Cx<'_>,
        id: ResolveId,
        result: Result<Vec<Target>, ResolveError>,
    ) {
        let Some(whom) = cx.env.resolves.remove(&id) else { return };
        match whom {
            ResolveFor::Attempt { call, attempt } => {
                self.with(cx, call, |call, cx| call.resolved(cx, attempt, result));
            }
            ResolveFor::Leg { call, side } => {
                self.with(cx, call, |call, _| call.hop_resolved(side, result));
            }
            ResolveFor::Relay { index, number } => {
                self.relays.resolved(cx, index, number, result);
            }
            ResolveFor::Lost { .. } => {}
            ResolveFor::Subscription { key, side } => {
                self.relays.subscriptions.resolved(key, side, result);
            }
        }
    }

    /// Where a user is that a call or request waits for.
    pub(crate) fn located(&mut self, cx: &mut Cx<'_>, id: ResolveId, found: Vec<Reached>) {
        match cx.env.resolves.remove(&id) {
            Some(ResolveFor::Attempt { call, attempt }) => {
                self.with(cx, call, |call, cx| call.located(cx, attempt, found));
            }
            Some(ResolveFor::Relay { index, number }) => {
                self.relays.located(cx, index, number, found);
            }
            Some(ResolveFor::Lost { call, side }) => {
                self.with(cx, call, |call, cx| call.sought(cx, side, &found));
            }
            Some(ResolveFor::Leg { .. } | ResolveFor::Subscription { .. }) | None => {}
        }
    }

    /// Another shard has heard the peer of a trunk by a connection: lost legs go by it.
    pub(crate) fn peer_found(&mut self, cx: &mut Cx<'_>, flow: &Flow) {
        for (call, side) in cx.env.peers.answered(flow) {
            self.with(cx, call, |call, cx| call.heard_elsewhere(cx, side, *flow));
        }
    }

    pub(crate) fn stored(&mut self, cx: &mut Cx<'_>, id: StoreId, protected: bool) {
        if let Some(key) = cx.env.stores.remove(&id) {
            self.with(cx, key, |call, cx| call.stored(cx, id, protected));
        }
    }

    pub(crate) fn media_timeout(&mut self, cx: &mut Cx<'_>, session: MediaId) {
        let Some(key) = self.key_of(CallId(session.0)) else { return };
        self.with(cx, key, |call, cx| {
            // Session timers find out whether a held call is still wanted.
            if call.media.is_held() {
                return;
            }
            cx.env.stats.media_timeouts += 1;
            let reason = "SIP;cause=408;text=\"Media timeout\"";
            call.end(cx, EndedBy::Sbc(EndCause::MediaTimeout), None, Some(reason));
        });
    }

    pub(crate) fn media_latched(&mut self, cx: &mut Cx<'_>, session: MediaId) {
        let Some(key) = self.key_of(CallId(session.0)) else { return };
        self.with(cx, key, |call, cx| call.store_change(cx));
    }

    pub(crate) fn conn_closed(&mut self, cx: &mut Cx<'_>, conn: ConnId) {
        let keys = cx.env.conns.get(&conn).cloned().unwrap_or_default();
        for key in keys {
            self.with(cx, key, |call, cx| call.conn_closed(cx, conn));
        }
    }

    pub(crate) fn command(&mut self, cx: &mut Cx<'_>, command: &Command) {
        let hang_up = |call: &mut Call, cx: &mut Cx<'_>, cause| {
            call.end(cx, EndedBy::Sbc(cause), None, Some("SIP;cause=503;text=\"Hung up\""));
        };
        match command {
            Command::Hangup(id) => {
                if let Some(key) = self.key_of(*id) {
                    self.with(cx, key, |call, cx| hang_up(call, cx, EndCause::Operator));
                }
            }
            Command::HangupAll => {
                let keys: Vec<CallKey> = self.iter().map(|c| c.key).collect();
                for key in keys {
                    self.with(cx, key, |call, cx| hang_up(call, cx, EndCause::Shutdown));
                }
            }
            Command::Forget(id) => {
                if let Some(key) = self.key_of(*id) {
                    self.with(cx, key, |call, cx| call.leave(cx));
                }
            }
            Command::TakeOver => {
                let early = cx.env.config.calls.early_records;
                cx.env.taking_over_until = early.then(|| cx.now + TAKE_OVER);
            }
            Command::Drain(on) => cx.env.draining = *on,
            Command::Trace { call: None, on } => cx.env.trace_all = *on,
            Command::Trace { call: Some(id), on } => {
                if let Some(call) =
                    self.key_of(*id).and_then(|k| self.slots.get_mut(k.index as usize))
                {
                    call.trace = *on;
                }
            }
        }
    }
}

/// More calls than end on a shard while the write of an end is on its way.
const ENDED_MAX: usize = 4_096;
/// How long after addresses came here an INVITE is looked for among the calls that come with them:
/// more than it takes to carry all of them on.
const TAKE_OVER: Duration = Duration::from_secs(5);

impl Call {
    /// Whether a dialog of this call has those identifiers.
    fn has_dialog(&self, dialog: &DialogRef, call_id: &str, remote_tag: &str) -> bool {
        match (dialog.side, &self.phase) {
            (Side::A, _) => self.a.dialog.is(call_id, remote_tag),
            (Side::B, Phase::Setup(setup)) => {
                let forks = setup.trying.iter().flat_map(Trying::forks);
                forks.map(|f| &f.leg).chain(&self.b).any(|l| l.dialog.is(call_id, remote_tag))
            }
            (Side::B, Phase::Up | Phase::Ending) => {
                self.b.as_ref().is_some_and(|b| b.dialog.is(call_id, remote_tag))
            }
        }
    }

    /// A request inside one of the call's dialogs, CSeq checked, handed to its operation.
    fn dialog_request(
        &mut self,
        cx: &mut Cx<'_>,
        dialog: DialogRef,
        asked: Asked,
        referral: Option<Referral>,
    ) {
        let side = dialog.side;
        let seq = asked.request.cseq().map_or(0, |c| c.number);
        let method = asked.request.method().cloned().unwrap_or(Method::Options);
        let fork = self.fork_number(&dialog, &asked.request);
        if let Some(leg) = self.leg_at_mut(side, fork)
            && leg.dialog.take_remote_seq(seq).is_err()
        {
            return self.answer(cx, side, &asked, 500, &[]);
        }
        if let Err(refuse) = invite::require(&asked.request) {
            return self.answer(cx, side, &asked, refuse.status, &refuse.headers);
        }
        self.came_by(cx, side, fork, &asked.flow);
        let ending = matches!(self.phase, Phase::Ending);
        let up = matches!(self.phase, Phase::Up);
        if method == Method::Bye {
            self.drop_waiting_bye(side);
        } else {
            self.bye_again(cx, side);
        }
        match method {
            Method::Bye => self.bye(cx, side, &asked),
            Method::Options if !ending => self.answer_options(cx, side, &asked),
            _ if ending => self.answer(cx, side, &asked, 481, &[]),
            Method::Prack => self.prack(cx, dialog, asked),
            Method::Update => self.update(cx, dialog, asked),
            Method::Invite if up => self.reinvite(cx, side, asked),
            Method::Info | Method::Message | Method::Notify | Method::Subscribe if up => {
                self.pass_on(cx, side, asked);
            }
            Method::Refer if up && let Some(referral) = &referral => {
                self.refer(cx, side, asked, referral);
            }
            // Known methods that come too early wait for their dialog to be confirmed.
            Method::Invite
            | Method::Info
            | Method::Message
            | Method::Notify
            | Method::Subscribe
            | Method::Refer => {
                self.answer(cx, side, &asked, 491, &[]);
            }
            Method::Ack | Method::Cancel => {}
            Method::Register | Method::Publish | Method::Options => {
                self.answer(cx, side, &asked, 405, &[allow()]);
            }
            Method::Other(_) => self.answer(cx, side, &asked, 501, &[allow()]),
        }
    }

    /// A response to the INVITE of attempt n.
    fn invite_response(&mut self, cx: &mut Cx<'_>, attempt: u16, message: &Message) {
        let status = message.status().unwrap_or(500);
        let current = self.attempt_mut(attempt).is_some();
        let committing = self.setup_mut().is_some_and(|s| s.committing.is_some());
        match status {
            100..=199 if current => self.progress(cx, attempt, message),
            100..=199 => {}
            200..=299 if current || committing => self.answered(cx, attempt, message),
            200..=299 => self.ok_again(cx, Side::B, message),
            401 | 407 if current && self.authorize_attempt(cx, attempt, message) => {}
            422 if current && self.lengthen_interval(cx, attempt, message) => {}
            _ if current => self.attempt_failed(cx, attempt, status, Some(message)),
            _ => {}
        }
    }
}

/// Whether a key that came back from the transaction layer, which has room for a part of the name
/// only, or a whole one, names that call.
fn same(call: CallKey, key: CallKey) -> bool {
    call.id == key.id || call.id.0 & CHECK == key.id.0
}

fn allow() -> (HeaderName, String) {
    (HeaderName::Allow, super::wire::ALLOW.to_owned())
}
