//! Requests outside any dialog other than INVITE. MESSAGE, PUBLISH, SUBSCRIBE and REFER are routed
//! and passed on hop by hop like a call, each written anew; the last two make a subscription, which
//! is `subscription.rs`. OPTIONS is answered by us, or routed where the trunk says so and somebody is
//! meant. NOTIFY without a subscription is passed on only from trunks that may.

use slab::Slab;
use smallvec::SmallVec;
use std::sync::Arc;

use super::attempt::{mapped, outgoing_dialog, told};
use super::auth;
use super::call::{Asked, Call, Hop};
use super::env::{Cx, Purpose, ResolveFor, Sent};
use super::exchange::any_body;
use super::hide::{self, Crossing};
use super::invite::{self, Incoming, Refuse};
use super::refer::{self, Referral};
use super::secure;
use super::subscription::{SubKey, Subscriptions, crossing_body};
use super::users::Way;
use super::wire;
use crate::core::{Destination, ResolveError, ResolveQuery};
use crate::dialog::Dialog;
use crate::media::Side;
use crate::net::Target;
use crate::registrar::Reached;
use crate::routing::{Plan, Trunk};
use crate::sip::{HeaderName, Message, Method, NameAddr, parse};
use bytes::Bytes;

/// A request on its way across, without a dialog.
struct Relay {
    /// Tells apart what used the same place before.
    number: u32,
    asked: Asked,
    from: Arc<Trunk>,
    plan: Plan,
    next_hop: usize,
    hop: usize,
    addresses: SmallVec<[Target; 2]>,
    /// Contacts of the registered user that are left, the best last, and the one in use.
    contacts: Vec<Reached>,
    contact: Option<Reached>,
    /// The last failure that a target sent.
    failure: Option<u16>,
    /// A target was left out because it is not reached over TLS.
    insecure: bool,
    /// What a SUBSCRIBE or REFER makes, once it is accepted.
    subscription: Option<SubKey>,
    /// Value of Replaces in the Refer-To of a REFER, as the other side knows the dialog.
    replaces: Option<String>,
    /// As last sent, where the trunk may challenge it; and how often that was answered.
    sent: Option<Bytes>,
    dest: Option<Destination>,
    challenges: u8,
}

/// Requests outside dialogs of one shard.
#[derive(Default)]
pub(crate) struct Relays {
    slots: Slab<Box<Relay>>,
    last: u32,
    pub(crate) subscriptions: Subscriptions,
}

/// The part of a relay's number that its [`Purpose`] has room for.
const NUMBER: u32 = (1 << 22) - 1;

impl Call {
    /// OPTIONS inside a dialog asks us (RFC 3261 §11.2).
    pub(crate) fn answer_options(&self, cx: &mut Cx<'_>, side: Side, asked: &Asked) {
        let mut out = cx.response(&asked.request, &asked.flow, 200, "", None);
        out.header(HeaderName::Allow, wire::ALLOW).header(HeaderName::Accept, "application/sdp");
        cx.respond(self.traced(side), &asked.flow, asked.server, 200, out.finish());
    }
}

impl Relay {
    /// The contacts of the user that it goes to, best first.
    fn take_contacts(&mut self, mut found: Vec<Reached>) {
        if secure::wants_tls(&self.asked.request) {
            let all = found.len();
            found.retain(secure::may_be_given);
            if found.len() < all {
                self.insecure();
            }
        }
        self.contacts = found.into_iter().rev().collect();
    }

    /// What is for a `sips:` URI is not given to this target.
    fn insecure(&mut self) {
        self.insecure = true;
        self.failure.get_or_insert(480);
    }
}

impl Relays {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// A request outside any dialog that is not INVITE.
    pub(crate) fn request(
        &mut self,
        cx: &mut Cx<'_>,
        incoming: &Incoming<'_>,
        referral: Option<Referral>,
    ) {
        let trunk = match super::users::source(cx, incoming) {
            Ok(trunk) => trunk,
            Err(refuse) => return invite::refuse(cx, incoming, &refuse),
        };
        let refusal = match incoming.message.method() {
            Some(Method::Options) if !routes_options(incoming.message, &trunk) => {
                match invite::require(incoming.message) {
                    Ok(()) => return options(cx, incoming),
                    Err(refuse) => refuse,
                }
            }
            Some(Method::Notify) if !trunk.config.unsolicited_notify => Refuse::new(481, ""),
            Some(
                Method::Options
                | Method::Message
                | Method::Publish
                | Method::Subscribe
                | Method::Refer
                | Method::Notify,
            ) => match self.relay(cx, incoming, trunk, referral) {
                Ok(()) => return,
                Err(refuse) => refuse,
            },
            Some(Method::Other(_)) => Refuse::new(501, ""),
            Some(
                Method::Bye
                | Method::Prack
                | Method::Update
                | Method::Info
                | Method::Cancel
                | Method::Ack,
            ) => Refuse::new(481, ""),
            Some(Method::Invite | Method::Register) | None => Refuse::new(405, ""),
        };
        invite::refuse(cx, incoming, &refusal);
    }

    fn relay(
        &mut self,
        cx: &mut Cx<'_>,
        incoming: &Incoming<'_>,
        from: Arc<Trunk>,
        referral: Option<Referral>,
    ) -> Result<(), Refuse> {
        let message = incoming.message;
        let retry = || cx.env.config.calls.retry_after_s.to_string();
        if cx.env.draining || self.slots.len() >= cx.env.config.calls.max_relays {
            return Err(Refuse::with(503, "", HeaderName::RetryAfter, retry()));
        }
        if incoming.merged {
            return Err(Refuse::new(482, ""));
        }
        if message.max_forwards().ok().flatten() == Some(0) {
            return Err(Refuse::new(483, ""));
        }
        invite::require(message)?;
        if referral.is_some() {
            may_refer(message, &from)?;
        }
        // A transfer to a dialog that we do not know would make the other side call into nowhere.
        if referral.as_ref().is_some_and(|r| r.unknown) {
            return Err(Refuse::new(481, ""));
        }
        let plan = invite::route(cx, message, &from)?;
        self.last = self.last.wrapping_add(1) & NUMBER;
        let asked =
            Asked { server: incoming.server, request: message.clone(), flow: incoming.flow };
        let subscribes = matches!(message.method(), Some(Method::Subscribe | Method::Refer));
        let subscription =
            subscribes.then(|| self.subscriptions.begin(cx, &asked, &from)).transpose()?;
        cx.env.stats.relayed += 1;
        let relay = Relay {
            number: self.last,
            asked,
            from,
            plan,
            next_hop: 0,
            hop: 0,
            addresses: SmallVec::new(),
            contacts: Vec::new(),
            contact: None,
            failure: None,
            insecure: false,
            subscription,
            replaces: referral.and_then(|r| r.replaces),
            sent: None,
            dest: None,
            challenges: 0,
        };
        let index = self.slots.insert(Box::new(relay));
        self.next(cx, index);
        Ok(())
    }

    fn get(&mut self, index: u32, number: u32) -> Option<&mut Relay> {
        self.slots.get_mut(index as usize).map(|r| &mut **r).filter(|r| r.number == number)
    }

    /// Tries the next address, the next hop, or answers with the last failure.
    fn next(&mut self, cx: &mut Cx<'_>, index: usize) {
        loop {
            let Some(relay) = self.slots.get_mut(index) else { return };
            if let Some(target) = relay.addresses.pop() {
                let Some((dialog, hop)) = send(cx, relay, index, target) else { continue };
                if let (Some(key), Some(to)) =
                    (relay.subscription, relay.plan.targets.get(relay.hop))
                {
                    self.subscriptions.sent(key, to.trunk.clone(), dialog, hop);
                }
                return;
            }
            if let Some(contact) = relay.contacts.pop() {
                let way = super::users::way(&contact);
                relay.contact = Some(contact);
                match way {
                    Way::Address(target) => relay.addresses.push(target),
                    Way::Name(query) => {
                        let index = u32::try_from(index).unwrap_or(u32::MAX);
                        let whom = ResolveFor::Relay { index, number: relay.number };
                        cx.resolve(*query, whom);
                        return;
                    }
                    Way::None => {}
                }
                continue;
            }
            relay.contact = None;
            let Some(hop) = relay.plan.targets.get(relay.next_hop) else {
                // RFC 4320 §4.2: a non-INVITE never gets a 408.
                let status = relay.failure.map_or(504, mapped);
                return self.finish(cx, index, status, None);
            };
            relay.hop = relay.next_hop;
            relay.next_hop += 1;
            let (peer, interface) = (hop.peer(), hop.trunk.config.interface);
            if hop.trunk.config.users {
                relay.failure.get_or_insert(480);
                let place = u32::try_from(index).unwrap_or(u32::MAX);
                let whom = ResolveFor::Relay { index: place, number: relay.number };
                let ask = super::users::ask(cx, &relay.asked.request, &hop.numbers.ruri);
                match ask.map(|ask| super::users::locate(cx, ask, whom)) {
                    Ok(Some(found)) => relay.take_contacts(found),
                    Ok(None) => return,
                    Err(status) => relay.failure = Some(status),
                }
                continue;
            }
            match secure::way(peer, secure::wants_tls(&relay.asked.request)) {
                secure::Way::Address(target) => relay.addresses.push(target),
                secure::Way::Name { sips } => {
                    let index = u32::try_from(index).unwrap_or(u32::MAX);
                    let whom = ResolveFor::Relay { index, number: relay.number };
                    let query = ResolveQuery { sips, ..peer.resolve_query(interface) };
                    cx.resolve(query, whom);
                    return;
                }
                secure::Way::Insecure => relay.insecure(),
            }
        }
    }

    pub(crate) fn resolved(
        &mut self,
        cx: &mut Cx<'_>,
        index: u32,
        number: u32,
        result: Result<Vec<Target>, ResolveError>,
    ) {
        let Some(relay) = self.get(index, number) else { return };
        relay.addresses = result.unwrap_or_default().into_iter().take(4).rev().collect();
        self.next(cx, index as usize);
    }

    /// Where the user is registered that a request goes to.
    pub(crate) fn located(
        &mut self,
        cx: &mut Cx<'_>,
        index: u32,
        number: u32,
        found: Vec<Reached>,
    ) {
        let Some(relay) = self.get(index, number) else { return };
        relay.take_contacts(found);
        self.next(cx, index as usize);
    }

    /// A response to a request that we passed on.
    pub(crate) fn response(&mut self, cx: &mut Cx<'_>, index: u32, number: u32, message: &Message) {
        let status = message.status().unwrap_or(500);
        let Some(relay) = self.get(index, number).filter(|_| status >= 200) else { return };
        let key = relay.subscription;
        if matches!(status, 401 | 407) && authorize(cx, relay, index, message) {
            if let Some(key) = key {
                self.subscriptions.sent_again(key);
            }
            return;
        }
        let Some(relay) = self.get(index, number) else { return };
        let fails_over = relay
            .plan
            .targets
            .get(relay.hop)
            .is_some_and(|hop| hop.trunk.config.failover.applies(status));
        if fails_over {
            relay.failure = Some(status);
            return self.next(cx, index as usize);
        }
        let status = match relay.plan.targets.get(relay.hop) {
            Some(hop) => told(status, &hop.trunk.config, &relay.from.config),
            None => mapped(status),
        };
        self.finish(cx, index as usize, status, Some(message));
    }

    /// A response in the dialogs of a subscription.
    pub(crate) fn subscription_response(
        &mut self,
        cx: &mut Cx<'_>,
        index: u32,
        number: u32,
        exchange: u16,
        message: &Message,
    ) {
        self.subscriptions.response(cx, SubKey { index, number }, exchange, message);
    }

    /// A request that we passed on got no answer, or could not be sent.
    pub(crate) fn failed(&mut self, cx: &mut Cx<'_>, index: u32, number: u32) {
        if self.get(index, number).is_some() {
            self.next(cx, index as usize);
        }
    }

    /// Answers whoever asked, and forgets the request.
    fn finish(&mut self, cx: &mut Cx<'_>, index: usize, status: u16, message: Option<&Message>) {
        let Some(relay) = self.slots.try_remove(index) else { return };
        let asked = &relay.asked;
        let hint = cx.ids().hints().of_call_id(asked.request.call_id().unwrap_or("").as_bytes());
        let accepted = match (relay.subscription, message) {
            (Some(key), Some(message)) if status < 300 => {
                self.subscriptions.accepted(cx, key, message)
            }
            (Some(key), _) => {
                self.subscriptions.refused(cx, key);
                None
            }
            (None, _) => None,
        };
        let tag = cx.ids().tag(hint);
        let tag = accepted.as_deref().unwrap_or(&tag);
        let mut out = cx.response(&asked.request, &asked.flow, status, "", Some(tag));
        if let (Some(_), Some(listener)) = (&accepted, cx.listener(&wire::hop_of_flow(&asked.flow)))
        {
            out.copy(&asked.request, HeaderName::RecordRoute);
            out.header(
                HeaderName::Contact,
                wire::Contact(listener, secure::makes_secure(&asked.request, &asked.flow)),
            );
        }
        if relay.insecure && status == 480 && message.is_none() {
            secure::warn(cx, &asked.flow, &mut out);
        }
        let hop = relay.plan.targets.get(relay.hop);
        let host = cx.listener(&wire::hop_of_flow(&asked.flow)).map(|l| l.advertise_host.clone());
        let mut body = None;
        if let (Some(message), Some(hop), Some(host)) = (message, hop, &host) {
            let (from, to) = (&hop.trunk.config, &relay.from.config);
            hide::cross(&mut out, message, &Crossing { from, to, host, pai_user: None });
            body = any_body(message);
        }
        let data = match body {
            Some((kind, body)) => out.finish_with(&kind, &body),
            None => out.finish(),
        };
        cx.respond(None, &asked.flow, asked.server, status, data);
    }
}

/// Writes a request for its current hop and sends it; yields the dialog that it may make. `None` when
/// the hop cannot be reached.
fn send(cx: &mut Cx<'_>, relay: &mut Relay, index: usize, target: Target) -> Option<(Dialog, Hop)> {
    let hop = relay.plan.targets.get(relay.hop)?;
    let request = &relay.asked.request;
    let hint = cx.ids().hints().of_call_id(request.call_id().unwrap_or("").as_bytes());
    let (mut dialog, mut route) = outgoing_dialog(cx, hint, request, hop, target)?;
    if let Some(contact) = &relay.contact {
        super::users::point(contact, &mut dialog, &mut route);
    }
    let method = request.method()?;
    let forwards = request.max_forwards().ok().flatten().unwrap_or(wire::MAX_FORWARDS);
    let forwards = forwards.saturating_sub(1);
    let seq = dialog.next_seq();
    let (mut out, branch) = wire::begin_request(cx, hint, &dialog, &route, method, seq, forwards)?;
    let host = wire::named_host(cx, &route, &hop.trunk.config);
    if let Some(host) = &host {
        let (from, to) = (&relay.from.config, &hop.trunk.config);
        let pai_user = hop.numbers.pai.as_deref();
        hide::cross(&mut out, request, &Crossing { from, to, host, pai_user });
    }
    if *method == Method::Refer {
        let listener = cx.listener(&route)?;
        let value = request.first::<NameAddr<'_>>(HeaderName::ReferTo).ok().flatten()?;
        let refer_to = refer::refer_to(value.uri().ok()?, listener, relay.replaces.as_deref());
        out.header(HeaderName::ReferTo, refer_to);
        if let Some((name, value)) = refer::referred_by(request, &listener.advertise_host) {
            out.header(name, value);
        }
    }
    let own = cx.listener(&route)?.advertise_host.clone();
    let data = match crossing_body(request, &own) {
        Some((kind, body)) => out.finish_with(&kind, &body),
        None => out.finish(),
    };
    relay.challenges = 0;
    relay.sent = (!hop.trunk.config.credentials.is_empty()).then(|| data.clone());
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    let purpose = Purpose::Relay { index, number: relay.number };
    let dest = wire::destination(&route);
    relay.dest = Some(dest);
    let timeout = hop.trunk.config.failover.no_answer;
    let sent = Sent { method: method.clone(), branch, dest, data, purpose, timeout };
    cx.send(None, sent)?;
    Some((dialog, route))
}

/// A challenge of the trunk is answered with its credentials, once. `false` when it cannot be.
fn authorize(cx: &mut Cx<'_>, relay: &mut Relay, index: u32, challenge: &Message) -> bool {
    let Some(hop) = relay.plan.targets.get(relay.hop) else { return false };
    let Some(request) = relay.sent.take().and_then(|r| parse(r, &cx.env.config.limits).ok()) else {
        return false;
    };
    let hint = cx.ids().hints().of_call_id(relay.asked.request.call_id().unwrap_or("").as_bytes());
    let Some((data, branch)) =
        auth::answered(cx, hint, &hop.trunk, challenge, &request, relay.challenges)
    else {
        return false;
    };
    let Some(method) = request.method().cloned() else { return false };
    let Some(dest) = relay.dest else { return false };
    relay.challenges += 1;
    relay.sent = Some(data.clone());
    let purpose = Purpose::Relay { index, number: relay.number };
    let timeout = hop.trunk.config.failover.no_answer;
    cx.send(None, Sent { method, branch, dest, data, purpose, timeout }).is_some()
}

/// REFER only where the trunk may, and only with somebody to refer to.
fn may_refer(message: &Message, from: &Trunk) -> Result<(), Refuse> {
    if !from.config.refer {
        return Err(Refuse::new(403, ""));
    }
    let value = message.first::<NameAddr<'_>>(HeaderName::ReferTo).ok().flatten();
    if value.is_none_or(|v| v.uri().is_err()) {
        return Err(Refuse::new(400, "Bad Request: no usable Refer-To"));
    }
    Ok(())
}

/// Whether OPTIONS is for somebody behind us: it names a user, and its trunk is to be told of them.
fn routes_options(message: &Message, from: &Trunk) -> bool {
    let user = message.request_uri().is_ok_and(|u| u.user().is_some_and(|u| !u.is_empty()));
    from.config.route_options && user && message.max_forwards().ok().flatten() != Some(0)
}

/// OPTIONS asks whether we are there and what we can do; in a drain we are not.
fn options(cx: &mut Cx<'_>, incoming: &Incoming<'_>) {
    let status = if cx.env.draining { 503 } else { 200 };
    let hint = cx.ids().hints().of_call_id(incoming.message.call_id().unwrap_or("").as_bytes());
    let tag = cx.ids().tag(hint);
    let mut out = cx.response(incoming.message, &incoming.flow, status, "", Some(&tag));
    if status == 503 {
        out.header(HeaderName::RetryAfter, cx.env.config.calls.retry_after_s);
    }
    out.header(HeaderName::Allow, wire::ALLOW)
        .header(HeaderName::Accept, "application/sdp")
        .header(HeaderName::Supported, "100rel, timer, replaces, norefersub");
    cx.respond(None, &incoming.flow, incoming.server, status, out.finish());
}
