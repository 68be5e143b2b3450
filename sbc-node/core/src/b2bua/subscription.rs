//! Subscriptions outside calls (RFC 6665): made by SUBSCRIBE, or by REFER (RFC 3515), and the
//! requests in their dialogs.
//!
//! As a call has two legs, a subscription has two dialogs: A with the subscriber, B with the
//! notifier, each with identifiers of its own. SUBSCRIBE goes from A to B, NOTIFY from B to A; what
//! may cross is `hide.rs`. How the first request finds its target is `outside.rs`.
//!
//! ```text
//! Asked ── 2xx or NOTIFY ──▶ Active ── NOTIFY terminated, 481, time over ──▶ gone
//!   └── failure ──▶ gone
//! ```
//!
//! Several notifiers may answer one SUBSCRIBE (§4.4.1): each NOTIFY with another tag makes one more
//! pair of dialogs.

use std::time::Duration;

use hashbrown::HashMap;
use slab::Slab;
use smallvec::SmallVec;

use super::attempt::told;
use super::call::{Asked, CallKey, CallTimer, Hop, Leg, Peer, SdpState};
use super::env::{Cx, Purpose, ResolveFor, Sent};
use super::exchange::any_body;
use super::hide::{self, Crossing};
use super::invite::{self, Refuse, uas_dialog};
use super::record::CallId;
use super::{secure, wire};
use crate::core::ResolveError;
use crate::dialog::Dialog;
use crate::ids::ShardHint;
use crate::media::Side;
use crate::net::{Flow, InterfaceId, Target};
use crate::routing::Trunk;
use crate::sip::{HeaderName, Message, Method};
use crate::timer::TimerKey;
use crate::transaction::ServerId;
use std::sync::Arc;

/// Beyond its time a subscription is kept for what is still on its way (64·T1, RFC 6665 timer N).
const LINGER: Duration = Duration::from_secs(32);
/// Of a REFER until its first NOTIFY says more, of a SUBSCRIBE whose answer does not say.
const REFER_S: u32 = 180;
const SUBSCRIBE_S: u32 = 3_600;
/// Longer promises are kept only as long as they are renewed.
const LIFETIME_MAX_S: u32 = 7 * 24 * 3_600;
/// Requests under way in one subscription.
const EXCHANGES_MAX: usize = 8;

/// The part of a number that a [`Purpose`] has room for.
const NUMBER: u32 = (1 << 22) - 1;

/// Finds a subscription; dead once it is gone, even if its place is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SubKey {
    pub(crate) index: u32,
    pub(crate) number: u32,
}

/// A request on its way from one dialog to the other.
struct Exchange {
    number: u16,
    to: Side,
    method: Method,
    asked: Asked,
}

/// Two dialogs tied together.
pub(crate) struct Subscription {
    number: u32,
    hint: ShardHint,
    a: Leg,
    /// `None` until the request was sent to a target.
    b: Option<Leg>,
    /// CSeq of the REFER on A and on B; `None` for a SUBSCRIBE.
    refer: Option<(u32, u32)>,
    /// Further dialogs under the same tag of ours on B.
    forks: SmallVec<[u32; 0]>,
    exchanges: SmallVec<[Exchange; 1]>,
    next_exchange: u16,
    timer: Option<TimerKey>,
    /// Goes once nothing is under way.
    over: bool,
    /// When it was made or last renewed, by the listeners of then; Unix time in milliseconds.
    renewed_ms: u64,
}

impl Subscription {
    fn leg(&self, side: Side) -> Option<&Leg> {
        match side {
            Side::A => Some(&self.a),
            Side::B => self.b.as_ref(),
        }
    }

    fn leg_mut(&mut self, side: Side) -> Option<&mut Leg> {
        match side {
            Side::A => Some(&mut self.a),
            Side::B => self.b.as_mut(),
        }
    }
}

/// Subscriptions of one shard.
#[derive(Default)]
pub(crate) struct Subscriptions {
    slots: Slab<Box<Subscription>>,
    /// Our tags: which subscription and side. On B the first of those that share the tag.
    tags: HashMap<Box<str>, (u32, Side)>,
    last: u32,
}

impl Subscriptions {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether one that was made, and not renewed since, by `until_ms` (Unix milliseconds) has a dialog
    /// on an interface.
    pub(crate) fn uses(&self, interface: InterfaceId, until_ms: u64) -> bool {
        let on = |leg: &Leg| leg.hop.interface == interface;
        let used = |s: &Subscription| on(&s.a) || s.b.as_ref().is_some_and(on);
        self.slots.iter().any(|(_, s)| s.renewed_ms <= until_ms && used(s))
    }

    /// A SUBSCRIBE or REFER outside any dialog; its target is not known yet.
    ///
    /// # Errors
    /// The answer to a request that makes no subscription.
    pub(crate) fn begin(
        &mut self,
        cx: &mut Cx<'_>,
        asked: &Asked,
        trunk: &Arc<Trunk>,
    ) -> Result<SubKey, Refuse> {
        let (message, policy) = (&asked.request, &cx.env.config.calls);
        if self.slots.len() >= policy.max_subscriptions {
            let retry = policy.retry_after_s.to_string();
            let reason = "Too Many Subscriptions";
            return Err(Refuse::with(503, reason, HeaderName::RetryAfter, retry));
        }
        if message.contact().ok().flatten().is_none_or(|c| c.uri().is_err()) {
            return Err(Refuse::new(400, "Bad Request: no usable Contact"));
        }
        let refers = message.method() == Some(&Method::Refer);
        if !refers && !message.has(HeaderName::Event) {
            return Err(Refuse::new(489, ""));
        }
        let hint = cx.ids().hints().of_call_id(message.call_id().unwrap_or("").as_bytes());
        let tag: Box<str> = cx.ids().tag(hint).as_str().into();
        let a = leg(
            trunk.clone(),
            uas_dialog(message, &tag, &asked.flow),
            wire::hop_of_flow(&asked.flow),
        );
        let theirs = message.cseq().map_or(0, |c| c.number);
        let key = self.insert(cx, hint, a, refers.then_some((theirs, 0)));
        self.tags.insert(tag, (key.index, Side::A));
        self.follow(cx, key.index, Side::A);
        Ok(key)
    }

    fn insert(
        &mut self,
        cx: &mut Cx<'_>,
        hint: ShardHint,
        a: Leg,
        refer: Option<(u32, u32)>,
    ) -> SubKey {
        self.last = self.last.wrapping_add(1) & NUMBER;
        let subscription = Subscription {
            number: self.last,
            hint,
            a,
            b: None,
            refer,
            forks: SmallVec::new(),
            exchanges: SmallVec::new(),
            next_exchange: 1,
            timer: None,
            over: false,
            renewed_ms: cx.unix_ms(),
        };
        let index = self.slots.insert(Box::new(subscription));
        cx.env.stats.subscriptions = self.slots.len() as u64;
        SubKey { index: u32::try_from(index).unwrap_or(u32::MAX), number: self.last }
    }

    fn get(&mut self, index: u32) -> Option<&mut Subscription> {
        self.slots.get_mut(index as usize).map(|s| &mut **s)
    }

    fn checked(&mut self, key: SubKey) -> Option<&mut Subscription> {
        self.get(key.index).filter(|s| s.number == key.number)
    }

    /// The request was sent to a target (another one after a failover).
    pub(crate) fn sent(&mut self, key: SubKey, trunk: Arc<Trunk>, dialog: Dialog, hop: Hop) {
        let tag = dialog.local_tag.clone();
        let seq = dialog.local_seq;
        let Some(subscription) = self.checked(key) else { return };
        if let Some((_, ours)) = &mut subscription.refer {
            *ours = seq;
        }
        let before = subscription.b.replace(leg(trunk, dialog, hop));
        if let Some(before) = before {
            self.tags.remove(&before.dialog.local_tag);
        }
        self.tags.insert(tag, (key.index, Side::B));
    }

    /// The request was sent once more in the same dialog, with credentials.
    pub(crate) fn sent_again(&mut self, key: SubKey) {
        let Some(subscription) = self.checked(key) else { return };
        let seq = subscription.b.as_mut().map(|b| b.dialog.next_seq());
        if let (Some((_, ours)), Some(seq)) = (&mut subscription.refer, seq) {
            *ours = seq;
        }
    }

    /// The first request was accepted. Yields our tag of the subscriber's dialog that the answer
    /// belongs to.
    pub(crate) fn accepted(
        &mut self,
        cx: &mut Cx<'_>,
        key: SubKey,
        message: &Message,
    ) -> Option<Box<str>> {
        self.checked(key)?;
        let index = self.dialog_b(cx, key.index, message.to_tag().unwrap_or(""), message)?;
        let subscription = self.get(index)?;
        let tag = subscription.a.dialog.local_tag.clone();
        let silent = |m: &Message| {
            let said = m.header(HeaderName::ReferSub);
            said.is_some_and(|v| v.trim().eq_ignore_ascii_case("false"))
        };
        if subscription.refer.is_some() && silent(message) {
            // RFC 4488: nothing will be told.
            self.remove(cx, index);
            return Some(tag);
        }
        let default = if subscription.refer.is_some() { REFER_S } else { SUBSCRIBE_S };
        let seconds = message.number(HeaderName::Expires).ok().flatten().unwrap_or(default);
        self.lives(cx, index, seconds);
        Some(tag)
    }

    /// The first request failed everywhere.
    pub(crate) fn refused(&mut self, cx: &mut Cx<'_>, key: SubKey) {
        if self.checked(key).is_some_and(|s| s.b.is_none() || s.timer.is_none()) {
            self.remove(cx, key.index);
        }
    }

    /// The subscription whose dialog with a notifier has this tag of theirs: the one there is, the
    /// first to name its tag, or one more.
    fn dialog_b(
        &mut self,
        cx: &mut Cx<'_>,
        base: u32,
        tag: &str,
        message: &Message,
    ) -> Option<u32> {
        let forks = self.get(base)?.forks.clone();
        for index in std::iter::once(base).chain(forks.iter().copied()) {
            let Some(b) = self.get(index).and_then(|s| s.b.as_mut()) else { continue };
            if b.dialog.remote_tag.is_empty() {
                b.dialog.remote_tag = tag.into();
                b.dialog.routes = wire::route_set(message, !message.is_request());
                wire::refresh_target(message, b);
                self.follow(cx, index, Side::B);
                return Some(index);
            }
            if *b.dialog.remote_tag == *tag {
                return Some(index);
            }
        }
        let room = forks.len() < cx.env.config.calls.max_forks
            && self.slots.len() < cx.env.config.calls.max_subscriptions;
        let first = self.get(base).filter(|_| room)?;
        let (hint, refer) = (first.hint, first.refer);
        let (mut a, mut b) = (first.a.clone(), first.b.clone()?);
        let a_tag: Box<str> = cx.ids().tag(hint).as_str().into();
        a.dialog.local_tag = a_tag.clone();
        a.dialog.local_seq = 0;
        b.dialog.remote_tag = tag.into();
        b.dialog.remote_seq = None;
        b.dialog.routes = wire::route_set(message, !message.is_request());
        wire::refresh_target(message, &mut b);
        let key = self.insert(cx, hint, a, refer);
        if let Some(fork) = self.get(key.index) {
            fork.b = Some(b);
        }
        if let Some(first) = self.get(base) {
            first.forks.push(key.index);
        }
        self.tags.insert(a_tag, (key.index, Side::A));
        self.lives(cx, key.index, REFER_S);
        self.follow(cx, key.index, Side::B);
        Some(key.index)
    }

    /// A request in a dialog of ours. `Err` gives it back: it is in none.
    pub(crate) fn request(&mut self, cx: &mut Cx<'_>, asked: Asked) -> Result<(), Asked> {
        let message = asked.request.clone();
        let Some((base, side)) = message.to_tag().and_then(|t| self.tags.get(t)).copied() else {
            return Err(asked);
        };
        let ours = self.get(base).and_then(|s| s.leg(side));
        if ours.is_none_or(|l| message.call_id().is_ok_and(|id| *id != *l.dialog.call_id)) {
            return Err(asked);
        }
        let index = match side {
            Side::A => base,
            Side::B => match self.dialog_b(cx, base, message.from_tag(), &message) {
                Some(index) => index,
                None => return Err(asked),
            },
        };
        let Some(leg) = self.get(index).and_then(|s| s.leg_mut(side)) else { return Err(asked) };
        if *leg.dialog.remote_tag != *message.from_tag() {
            return Err(asked);
        }
        let wanted = match side {
            Side::A => Method::Subscribe,
            Side::B => Method::Notify,
        };
        if message.method() != Some(&wanted) {
            let allow = [(HeaderName::Allow, wanted.as_str().to_owned())];
            answer(cx, &asked, 405, &allow);
            return Ok(());
        }
        let seq = message.cseq().map_or(0, |c| c.number);
        if leg.dialog.take_remote_seq(seq).is_err() {
            answer(cx, &asked, 500, &[]);
            return Ok(());
        }
        if let Err(refuse) = invite::require(&message) {
            answer(cx, &asked, refuse.status, &refuse.headers);
            return Ok(());
        }
        if leg.trunk.config.symmetric && secure::may_go_by(&leg.dialog, &asked.flow) {
            leg.hop = wire::hop_of_flow(&asked.flow);
        }
        if side == Side::A && self.retired(cx, index) && renews(&message) {
            // The subscriber begins anew (RFC 6665 §4.1.2.2) by a listener that stays.
            answer(cx, &asked, 481, &[]);
            self.ends(index);
            self.sweep(cx, index);
            return Ok(());
        }
        let Some(leg) = self.get(index).and_then(|s| s.leg_mut(side)) else { return Err(asked) };
        if wire::refresh_target(&message, leg) {
            self.follow(cx, index, side);
        }
        self.pass_on(cx, index, side, asked);
        Ok(())
    }

    /// Whether one of its dialogs is at an interface that is no longer configured: such a
    /// subscription ends with its running time, so that the interface can close.
    fn retired(&self, cx: &Cx<'_>, index: u32) -> bool {
        let Some(subscription) = self.slots.get(index as usize) else { return false };
        let legs = std::iter::once(&subscription.a).chain(&subscription.b);
        legs.filter_map(|leg| cx.listener(&leg.hop)).any(|listener| listener.retired)
    }

    /// Sends a request of one side on to the other.
    fn pass_on(&mut self, cx: &mut Cx<'_>, index: u32, from: Side, asked: Asked) {
        let message = asked.request.clone();
        let forwards = message.max_forwards().ok().flatten().unwrap_or(wire::MAX_FORWARDS);
        let Some(forwards) = forwards.checked_sub(1) else {
            return answer(cx, &asked, 483, &[]);
        };
        let retry = cx.env.config.calls.retry_after_s.to_string();
        let Some(subscription) = self.get(index) else { return };
        if subscription.exchanges.len() >= EXCHANGES_MAX {
            return answer(cx, &asked, 503, &[(HeaderName::RetryAfter, retry)]);
        }
        let to = from.other();
        let event = refer_event(subscription.refer, from, &message);
        let (number, sub_number, hint) =
            (subscription.next_exchange, subscription.number, subscription.hint);
        let writer = subscription.leg(from).map(|l| l.trunk.clone());
        let (Some(writer), Some(leg)) = (writer, subscription.leg_mut(to)) else {
            return answer(cx, &asked, 481, &[]);
        };
        let Some(method) = message.method().cloned() else { return };
        let seq = leg.dialog.next_seq();
        let begun = wire::begin_request(cx, hint, &leg.dialog, &leg.hop, &method, seq, forwards);
        let host = cx.listener(&leg.hop).map(|l| l.advertise_host.clone());
        let (Some((mut out, branch)), Some(host)) = (begun, host) else {
            return answer(cx, &asked, 503, &[]);
        };
        let reader = leg.trunk.clone();
        let (from_trunk, to_trunk) = (&writer.config, &reader.config);
        let way = Crossing { from: from_trunk, to: to_trunk, host: &host, pai_user: None };
        match &event {
            Some(event) => {
                hide::cross_but(&mut out, &message, &way, HeaderName::Event);
                out.header(HeaderName::Event, event);
            }
            None => hide::cross(&mut out, &message, &way),
        }
        let data = match crossing_body(&message, &host) {
            Some((kind, body)) => out.finish_with(&kind, &body),
            None => out.finish(),
        };
        let dest = wire::destination(&leg.hop);
        let purpose = Purpose::Subscription { index, number: sub_number, exchange: number };
        let sent = Sent { method: method.clone(), branch, dest, data, purpose, timeout: None };
        if cx.send(None, sent).is_none() {
            return answer(cx, &asked, 503, &[]);
        }
        let Some(subscription) = self.get(index) else { return };
        subscription.next_exchange = number.checked_add(1).unwrap_or(1);
        subscription.exchanges.push(Exchange { number, to, method, asked });
        if let Some(state) = message.header(HeaderName::SubscriptionState).filter(|_| to == Side::A)
        {
            let (state, params) = state.split_once(';').unwrap_or((state, ""));
            let left = crate::sip::Params(params).get("expires").and_then(|s| s.parse().ok());
            if state.trim().eq_ignore_ascii_case("terminated") {
                subscription.over = true;
            } else if let Some(left) = left {
                self.lives(cx, index, left);
            }
        }
    }

    /// A response to a request that was passed on.
    pub(crate) fn response(
        &mut self,
        cx: &mut Cx<'_>,
        key: SubKey,
        exchange: u16,
        message: &Message,
    ) {
        let status = message.status().unwrap_or(500);
        let Some(subscription) = self.checked(key).filter(|_| status >= 200) else { return };
        let Some(at) = subscription.exchanges.iter().position(|e| e.number == exchange) else {
            return;
        };
        let done = subscription.exchanges.swap_remove(at);
        if status < 300
            && let Some(leg) = subscription.leg_mut(done.to)
            && wire::refresh_target(message, leg)
        {
            self.follow(cx, key.index, done.to);
        }
        self.relay_answer(cx, key.index, &done, status, message);
        match (&done.method, status) {
            (Method::Subscribe, 200..=299) => {
                let asked = done.asked.request.number(HeaderName::Expires).ok().flatten();
                let said = message.number(HeaderName::Expires).ok().flatten();
                let seconds = said.or(asked).unwrap_or(SUBSCRIBE_S);
                if let Some(subscription) = self.checked(key) {
                    subscription.renewed_ms = cx.unix_ms();
                }
                self.lives(cx, key.index, seconds);
            }
            // What tells that the other side knows no such subscription (RFC 6665 §4.1.2.2, §4.2.2).
            (_, 481) | (Method::Notify, 404 | 405 | 410 | 489 | 501 | 604) => {
                self.ends(key.index);
            }
            (_, _) => {}
        }
        self.sweep(cx, key.index);
    }

    /// A request that was passed on got no answer.
    pub(crate) fn failed(&mut self, cx: &mut Cx<'_>, key: SubKey, exchange: u16, status: u16) {
        let Some(subscription) = self.checked(key) else { return };
        let Some(at) = subscription.exchanges.iter().position(|e| e.number == exchange) else {
            return;
        };
        let done = subscription.exchanges.swap_remove(at);
        if status == 503
            && let Some(leg) = subscription.leg_mut(done.to)
        {
            // The connection is gone: by the Contact from now on.
            leg.hop.flow = None;
            self.follow(cx, key.index, done.to);
        } else if done.method == Method::Notify {
            self.ends(key.index);
        }
        // RFC 4320 §4.2: no 408 for anything but INVITE.
        answer(cx, &done.asked, if status == 408 { 504 } else { status }, &[]);
        self.sweep(cx, key.index);
    }

    /// The answer of one side as the other sees it.
    fn relay_answer(
        &mut self,
        cx: &mut Cx<'_>,
        index: u32,
        done: &Exchange,
        status: u16,
        message: &Message,
    ) {
        let Some(subscription) = self.get(index) else { return };
        let (Some(reader), Some(writer)) =
            (subscription.leg(done.to.other()), subscription.leg(done.to))
        else {
            return;
        };
        let asked = &done.asked;
        let status = told(status, &writer.trunk.config, &reader.trunk.config);
        let mut out = cx.response(&asked.request, &asked.flow, status, "", None);
        if let Some(listener) = cx.listener(&reader.hop) {
            if status < 300 {
                out.copy(&asked.request, HeaderName::RecordRoute);
                out.header(HeaderName::Contact, wire::Contact(listener, reader.dialog.secure));
            }
            let (from, to) = (&writer.trunk.config, &reader.trunk.config);
            let host = &listener.advertise_host;
            hide::cross(&mut out, message, &Crossing { from, to, host, pai_user: None });
        }
        let data = match any_body(message) {
            Some((kind, body)) => out.finish_with(&kind, &body),
            None => out.finish(),
        };
        cx.respond(None, &asked.flow, asked.server, status, data);
    }

    /// Keeps a subscription for so long, and what is on its way after that.
    fn lives(&mut self, cx: &mut Cx<'_>, index: u32, seconds: u32) {
        let Some(subscription) = self.slots.get_mut(index as usize) else { return };
        let life = Duration::from_secs(seconds.min(LIFETIME_MAX_S).into()) + LINGER;
        cx.disarm(&mut subscription.timer);
        let key = CallKey { index, id: CallId(u64::from(subscription.number)) };
        subscription.timer = Some(cx.arm(cx.now + life, key, CallTimer::Subscription));
    }

    fn ends(&mut self, index: u32) {
        if let Some(subscription) = self.get(index) {
            subscription.over = true;
        }
    }

    /// Its time is over, and nobody renewed it.
    pub(crate) fn timer(&mut self, cx: &mut Cx<'_>, key: CallKey) {
        let Some(subscription) = self.get(key.index) else { return };
        if u64::from(subscription.number) != key.id.0 {
            return;
        }
        subscription.timer = None;
        subscription.over = true;
        self.sweep(cx, key.index);
        if let Some(subscription) = self.get(key.index).filter(|s| s.number as u64 == key.id.0) {
            // Transactions end by themselves within this time.
            subscription.timer = Some(cx.arm(cx.now + LINGER, key, CallTimer::Subscription));
        }
    }

    /// Forgets a subscription that is over and has nothing under way.
    fn sweep(&mut self, cx: &mut Cx<'_>, index: u32) {
        if self.get(index).is_some_and(|s| s.over && s.exchanges.is_empty()) {
            self.remove(cx, index);
        }
    }

    fn remove(&mut self, cx: &mut Cx<'_>, index: u32) {
        let Some(mut gone) = self.slots.try_remove(index as usize) else { return };
        cx.disarm(&mut gone.timer);
        self.tags.remove(&gone.a.dialog.local_tag);
        if let Some(tag) = gone.b.as_ref().map(|b| &b.dialog.local_tag) {
            match self.tags.get(tag).copied() {
                // The tag stays with the forks that are left.
                Some((base, side)) if base == index => match gone.forks.split_first() {
                    Some((&heir, rest)) => {
                        let rest: SmallVec<[u32; 0]> = rest.iter().copied().collect();
                        if let Some(heir) = self.get(heir) {
                            heir.forks = rest;
                        }
                        self.tags.insert(tag.clone(), (heir, side));
                    }
                    None => drop(self.tags.remove(tag)),
                },
                Some((base, _)) => {
                    if let Some(base) = self.get(base) {
                        base.forks.retain(|f| *f != index);
                    }
                }
                None => {}
            }
        }
        cx.env.stats.subscriptions = self.slots.len() as u64;
    }

    /// Points a leg's requests at its next hop.
    fn follow(&mut self, cx: &mut Cx<'_>, index: u32, side: Side) {
        let Some(subscription) = self.slots.get_mut(index as usize) else { return };
        let number = subscription.number;
        let Some(leg) = subscription.leg_mut(side) else { return };
        if let Some(query) = wire::follow_target(cx, leg) {
            let key = SubKey { index, number };
            cx.resolve(query, ResolveFor::Subscription { key, side });
        }
    }

    /// The next hop of a leg was a name.
    pub(crate) fn resolved(
        &mut self,
        key: SubKey,
        side: Side,
        result: Result<Vec<Target>, ResolveError>,
    ) {
        let first = result.ok().and_then(|targets| targets.first().copied());
        let leg = self.checked(key).and_then(|s| s.leg_mut(side));
        if let (Some(target), Some(leg)) = (first, leg) {
            leg.hop.target = target;
            leg.hop.flow = None;
        }
    }
}

fn leg(trunk: Arc<Trunk>, dialog: Dialog, hop: Hop) -> Leg {
    Leg {
        trunk,
        dialog,
        origin: Some(hop.target.addr.ip()),
        hop,
        peer: Peer::default(),
        timer: None,
        sdp: SdpState::default(),
        acked: None,
        moved: false,
    }
}

/// Whether a SUBSCRIBE asks for more time; with `Expires: 0` it gives up what is left.
fn renews(message: &Message) -> bool {
    message.number(HeaderName::Expires).ok().flatten() != Some(0)
}

/// Answers a request by ourselves.
fn answer(cx: &mut Cx<'_>, asked: &Asked, status: u16, headers: &[(HeaderName, String)]) {
    let mut out = cx.response(&asked.request, &asked.flow, status, "", None);
    for (name, value) in headers {
        out.header(*name, value);
    }
    let (server, flow): (ServerId, &Flow) = (asked.server, &asked.flow);
    cx.respond(None, flow, server, status, out.finish());
}

/// `Event: refer;id=N` names the REFER by its CSeq, which is another one on the other side.
fn refer_event(refer: Option<(u32, u32)>, from: Side, message: &Message) -> Option<String> {
    let (a, b) = refer?;
    let (package, params) = message.header(HeaderName::Event)?.split_once(';')?;
    let id: u32 = crate::sip::Params(params).get("id")?.parse().ok()?;
    let (theirs, ours) = if from == Side::A { (a, b) } else { (b, a) };
    (package.trim().eq_ignore_ascii_case("refer") && id == theirs)
        .then(|| format!("refer;id={ours}"))
}

/// The body of a request as the other side may see it; `host` is what we call ourselves there.
pub(crate) fn crossing_body(message: &Message, host: &crate::net::Host) -> super::exchange::Body {
    super::refer::mapped_body(message)
        .or_else(|| summary(message, host))
        .or_else(|| any_body(message))
}

/// A `simple-message-summary` body (RFC 3842): the account is named with our host.
fn summary(message: &Message, host: &crate::net::Host) -> super::exchange::Body {
    let kind = message.header(HeaderName::ContentType)?;
    let main = kind.split(';').next().unwrap_or("").trim();
    if !main.eq_ignore_ascii_case("application/simple-message-summary") {
        return None;
    }
    let text = std::str::from_utf8(message.body()).ok()?;
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let account = line
            .split_once(':')
            .filter(|(name, _)| name.trim().eq_ignore_ascii_case("Message-Account"));
        match account {
            None => out.push_str(line),
            // What is no URI says something that we cannot judge: it stays behind.
            Some((name, value)) => {
                if let Ok(uri) = crate::sip::UriRef::parse(value.trim()) {
                    let shown = hide::Hosted { uri, user: uri.user(), host };
                    out.push_str(&format!("{name}: {shown}\r\n"));
                }
            }
        }
    }
    Some((kind.to_owned(), out.into()))
}
