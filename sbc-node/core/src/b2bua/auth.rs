//! Challenges of a trunk, answered with its credentials (RFC 3261 §22): only for the realm that
//! the credentials are for, only towards the trunk's own addresses, and once per request (again
//! when only the nonce was stale, a bounded number of times).
//!
//! A peer chooses by its Contact and Record-Route where requests inside a dialog go. Whoever is
//! there could challenge with the trunk's realm and a nonce of its own choice: it gets no answer.

use rand::Rng;

use super::call::{Call, Exchange, Leg, Phase};
use super::env::{Cx, Purpose, Sent};
use super::wire;
use crate::core::Destination;
use crate::digest::{Account, Answerer};
use crate::ids::{Branch, ShardHint};
use crate::media::Side;
use crate::routing::Trunk;
use crate::sip::{Builder, CSeq, HeaderName, List, Message, Method};
use bytes::Bytes;

/// A challenge that we can answer: the header to answer in and who makes its value.
pub(crate) struct Answer {
    pub(crate) header: HeaderName,
    pub(crate) answerer: Answerer,
}

/// Challenges that one request is sent again for; a peer that calls every nonce stale would go on
/// for ever.
pub(crate) const CHALLENGES_MAX: u8 = 3;

/// Finds the credentials for a challenge. `None` without any, or when they were refused before;
/// `tried` counts the challenges of this request that were answered.
pub(crate) fn answer_for(trunk: &Trunk, challenge: &Message, tried: u8) -> Option<Answer> {
    if trunk.config.users {
        // Its hops are phones, which have no business to ask.
        return None;
    }
    let proxy = challenge.status() == Some(407);
    let (name, header) = if proxy {
        (HeaderName::ProxyAuthenticate, HeaderName::ProxyAuthorization)
    } else {
        (HeaderName::WwwAuthenticate, HeaderName::Authorization)
    };
    let answerer = trunk.config.credentials.iter().find_map(|credential| {
        let account = Account {
            username: credential.username.to_string(),
            realm: Some(credential.realm.to_string()),
            password: credential.password.expose().to_owned(),
        };
        Answerer::choose(challenge.lines(name), &account).ok()
    })?;
    let again = tried == 0 || (tried < CHALLENGES_MAX && answerer.is_stale());
    again.then_some(Answer { header, answerer })
}

/// Whether a request on this leg reaches the trunk itself: an address that it is configured with,
/// that its name resolved to, or that the leg's first request went to or came from.
fn reaches_trunk(cx: &Cx<'_>, leg: &Leg) -> bool {
    let ip = match wire::destination(&leg.hop) {
        Destination::Flow(flow) => flow.remote.ip(),
        Destination::Target { target, .. } => target.addr.ip(),
    };
    leg.origin == Some(ip) || cx.env.routing.is_address_of(&leg.trunk, ip)
}

fn cnonce(cx: &mut Cx<'_>) -> String {
    format!("{:016x}", cx.ids().rng().next_u64())
}

/// A request outside dialogs once more, with the answer to its challenge. `None` without credentials
/// for it, or when they were refused before.
pub(crate) fn answered(
    cx: &mut Cx<'_>,
    hint: ShardHint,
    trunk: &Trunk,
    challenge: &Message,
    request: &Message,
    tried: u8,
) -> Option<(Bytes, Branch)> {
    let cnonce = cnonce(cx);
    let mut answer = answer_for(trunk, challenge, tried)?;
    let method = request.method()?.as_str();
    let uri = request.request_uri_str();
    let value = answer.answerer.authorize(method, uri, request.body(), &cnonce);
    let seq = request.cseq().ok()?.number + 1;
    let branch = cx.ids().branch(hint);
    Some((again(request, &branch, seq, answer.header, &value), branch))
}

impl Call {
    /// The INVITE of attempt n was challenged. `false` when we cannot answer.
    pub(crate) fn authorize_attempt(
        &mut self,
        cx: &mut Cx<'_>,
        number: u16,
        message: &Message,
    ) -> bool {
        let cnonce = cnonce(cx);
        let Some(attempt) = self.attempt_mut(number) else { return false };
        let Some(leg) = attempt.leg.clone() else { return false };
        let Some(mut answer) = answer_for(&leg.trunk, message, attempt.challenges) else {
            return false;
        };
        attempt.challenges += 1;
        let mut timer = attempt.timer.take();
        let offer = leg.sdp.local.clone();
        let body: &[u8] = offer.as_deref().unwrap_or_default();
        let uri = leg.dialog.path().request_uri;
        let value = answer.answerer.authorize("INVITE", uri, body, &cnonce);
        cx.disarm(&mut timer);
        self.launch_invite(cx, number, leg, offer, Some((answer.header, value)));
        true
    }

    /// A request inside the call was challenged. Yields the exchange back when we cannot answer.
    pub(crate) fn authorize_exchange(
        &mut self,
        cx: &mut Cx<'_>,
        mut exchange: Box<Exchange>,
        message: &Message,
    ) -> Option<Box<Exchange>> {
        let cnonce = cnonce(cx);
        let branch = cx.ids().branch(self.hint);
        let (to, fork) = (exchange.to, exchange.fork);
        let Some(sent) = exchange.sent.take() else { return Some(exchange) };
        let Ok(request) = crate::sip::parse(sent, &cx.env.config.limits) else {
            return Some(exchange);
        };
        let key = self.key;
        if !self.leg_at(to, fork).is_some_and(|leg| reaches_trunk(cx, leg)) {
            cx.env.stats.credentials_withheld += 1;
            return Some(exchange);
        }
        let Some(leg) = self.leg_at_mut(to, fork) else { return Some(exchange) };
        let tried = exchange.challenges;
        let Some(mut answer) = answer_for(&leg.trunk, message, tried) else {
            return Some(exchange);
        };
        let seq = leg.dialog.next_seq();
        let dest = wire::destination(&leg.hop);
        let (method, uri) = (exchange.method.clone(), request.request_uri_str());
        let value = answer.answerer.authorize(method.as_str(), uri, request.body(), &cnonce);
        let data = again(&request, &branch, seq, answer.header, &value);
        exchange.sent = Some(data.clone());
        let purpose = Purpose::Exchange { call: key, number: exchange.number };
        let sent = Sent { method, branch, dest, data, purpose, timeout: None };
        let Some(client) = cx.send(self.traced(to), sent) else { return Some(exchange) };
        exchange.client = Some(client);
        exchange.client_seq = seq;
        exchange.challenges += 1;
        self.exchanges.push(exchange);
        None
    }

    /// Whether requests on a leg may be challenged and answered: then they are kept.
    pub(crate) fn may_be_challenged(&self, side: Side, fork: u8) -> bool {
        self.leg_at(side, fork).is_some_and(|l| !l.trunk.config.credentials.is_empty())
            && !matches!(self.phase, Phase::Setup(_) if side == Side::A)
    }
}

/// A request of ours once more: new branch, next CSeq, credentials.
fn again(request: &Message, branch: &Branch, seq: u32, name: HeaderName, value: &str) -> Bytes {
    let method = request.method().cloned().unwrap_or(Method::Bye);
    let mut out = Builder::request(&method, request.request_uri_str());
    let token = branch.token();
    for header in request.headers() {
        match header.id {
            HeaderName::Via => {
                let first = List::new(header.value).next().unwrap_or("");
                let (sent_by, _) = first.split_once(';').unwrap_or((first, ""));
                out.header(HeaderName::Via, (sent_by, ";branch=", &*token, ";rport"));
            }
            HeaderName::CSeq => {
                out.header(HeaderName::CSeq, CSeq { number: seq, method: method.as_str() });
            }
            HeaderName::ContentLength | HeaderName::ContentType => {}
            HeaderName::Authorization | HeaderName::ProxyAuthorization => {}
            _ => {
                out.line(header);
            }
        }
    }
    out.header(name, value);
    match request.header(HeaderName::ContentType) {
        Some(kind) if !request.body().is_empty() => out.finish_with(kind, request.body()),
        Some(_) | None => out.finish(),
    }
}
