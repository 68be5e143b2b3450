//! Transactions inside a call: requests that cross from one leg to the other and requests of our
//! own. What is special about a method lives in its own file.

use bytes::Bytes;

use super::call::{Asked, Call, Exchange, ExchangeKind, Leg, Pending, Phase};
use super::cdr::{EndCause, EndedBy};
use super::end::cause;
use super::env::{Cx, Purpose, Sent};
use super::hide::{self, Crossing};
use super::wire;
use crate::dialog::Dialog;
use crate::media::Side;
use crate::sip::{Builder, HeaderName, Message, Method};

/// A body and its type.
pub(crate) type Body = Option<(String, Bytes)>;

/// A request to send inside a call.
pub(crate) struct Request {
    pub(crate) to: Side,
    /// Which fork's dialog, while the call is being set up.
    pub(crate) fork: u8,
    pub(crate) method: Method,
    pub(crate) kind: ExchangeKind,
    pub(crate) asked: Option<Asked>,
    pub(crate) max_forwards: u8,
}

impl Request {
    /// A request that nobody asked us for.
    pub(crate) fn own(to: Side, method: Method, kind: ExchangeKind) -> Self {
        Request { to, fork: 0, method, kind, asked: None, max_forwards: wire::MAX_FORWARDS }
    }
}

impl Call {
    /// Starts an exchange. `write` adds headers and yields the body. `false` when it could not be
    /// sent; the caller answers whoever asked.
    pub(crate) fn start_exchange(
        &mut self,
        cx: &mut Cx<'_>,
        request: Request,
        write: impl FnOnce(&mut Builder) -> Body,
    ) -> bool {
        let Request { to, fork, method, kind, asked, max_forwards } = request;
        let (hint, number) = (self.hint, self.next_exchange);
        let early_tag = self.early_a_tag(to, fork);
        let Some(leg) = self.leg_at_mut(to, fork).filter(|l| l.has_way()) else { return false };
        let seq = leg.dialog.next_seq();
        let early = early_tag.map(|tag| Dialog { local_tag: tag, ..leg.dialog.clone() });
        let dialog = early.as_ref().unwrap_or(&leg.dialog);
        let begun = wire::begin_request(cx, hint, dialog, &leg.hop, &method, seq, max_forwards);
        let Some((mut out, branch)) = begun else { return false };
        let dest = wire::destination(&leg.hop);
        let data = match write(&mut out) {
            Some((kind, body)) => out.finish_with(&kind, &body),
            None => out.finish(),
        };
        let purpose = Purpose::Exchange { call: self.key, number };
        let kept = self.may_be_challenged(to, fork).then(|| data.clone());
        let sent = Sent { method: method.clone(), branch, dest, data, purpose, timeout: None };
        let Some(client) = cx.send(self.traced(to), sent) else { return false };
        self.next_exchange = number.wrapping_add(1);
        self.exchanges.push(Box::new(Exchange {
            number,
            method,
            to,
            fork,
            asked,
            client: Some(client),
            client_seq: seq,
            kind,
            challenges: 0,
            sent: kept,
        }));
        true
    }

    /// In an early dialog other than the first, A knows us by the fork's tag.
    fn early_a_tag(&self, to: Side, fork: u8) -> Option<Box<str>> {
        match (&self.phase, to) {
            (Phase::Setup(setup), Side::A) => {
                let mut forks = setup.trying.as_ref()?.forks();
                forks.find(|f| f.number == fork).map(|f| f.a_tag.clone())
            }
            (_, _) => None,
        }
    }

    /// Passes a request of one leg on to the other as it is: INFO, MESSAGE, NOTIFY, ….
    pub(crate) fn pass_on(&mut self, cx: &mut Cx<'_>, from: Side, asked: Asked) {
        self.pass_on_with(cx, from, asked, Vec::new());
    }

    /// The same, with headers that were written for the other side.
    pub(crate) fn pass_on_with(
        &mut self,
        cx: &mut Cx<'_>,
        from: Side,
        asked: Asked,
        headers: Vec<(HeaderName, String)>,
    ) {
        if self.exchanges.len() >= cx.env.config.calls.max_exchanges {
            let retry = (HeaderName::RetryAfter, cx.env.config.calls.retry_after_s.to_string());
            return self.answer(cx, from, &asked, 503, &[retry]);
        }
        let to = from.other();
        let Some(host) = self.contact_host(cx, to) else {
            return self.answer(cx, from, &asked, 481, &[]);
        };
        let forwards = asked.request.max_forwards().ok().flatten();
        let Some(forwards) = forwards.unwrap_or(wire::MAX_FORWARDS).checked_sub(1) else {
            return self.answer(cx, from, &asked, 483, &[]);
        };
        let message = asked.request.clone();
        let method = message.method().cloned().unwrap_or(Method::Info);
        let (Some(reader), Some(writer)) = (self.leg(to), self.leg(from)) else { return };
        let (from_trunk, to_trunk) = (writer.trunk.clone(), reader.trunk.clone());
        let event = self.mapped_event(from, &message);
        let body = match super::refer::mapped_body(&message) {
            Some(body) => Some(body),
            None => any_body(&message),
        };
        let again = asked.again();
        let kind = ExchangeKind::Plain;
        let request =
            Request { to, fork: 0, method, kind, asked: Some(asked), max_forwards: forwards };
        let sent = self.start_exchange(cx, request, |out| {
            let way = Crossing {
                from: &from_trunk.config,
                to: &to_trunk.config,
                host: &host,
                pai_user: None,
            };
            match &event {
                Some(event) => {
                    hide::cross_but(out, &message, &way, HeaderName::Event);
                    out.header(HeaderName::Event, event);
                }
                None => hide::cross(out, &message, &way),
            }
            for (name, value) in &headers {
                out.header(*name, value);
            }
            body
        });
        if !sent {
            self.answer(cx, from, &again, 503, &[]);
        }
    }

    /// A response to the request of exchange n.
    pub(crate) fn exchange_response(&mut self, cx: &mut Cx<'_>, number: u16, message: &Message) {
        let Some(at) = self.exchanges.iter().position(|e| e.number == number) else { return };
        let status = message.status().unwrap_or(500);
        let provisional = status < 200;
        let Some(exchange) = self.exchanges.get(at) else { return };
        let to = exchange.to;
        self.reached(cx, to);
        let Some(exchange) = self.exchanges.get(at) else { return };
        if provisional {
            if exchange.method == Method::Invite {
                self.reinvite_progress(cx, at, message);
            }
            return;
        }
        let mut exchange = self.exchanges.swap_remove(at);
        if matches!(status, 401 | 407) {
            exchange = match self.authorize_exchange(cx, exchange, message) {
                None => return,
                Some(back) => back,
            };
        }
        match exchange.kind.clone() {
            ExchangeKind::Bye => {}
            ExchangeKind::Plain => {
                self.relay_final(cx, &exchange, message, None);
                self.check_alive(cx, &exchange, status);
            }
            ExchangeKind::Session { .. } => self.session_final(cx, exchange, message),
            ExchangeKind::Refresh => {
                self.refresh_final(cx, exchange, message);
            }
            ExchangeKind::Prack { .. } => self.prack_final(cx, &exchange, message),
        }
    }

    /// The request of exchange n got no answer or could not be sent.
    pub(crate) fn exchange_failed(&mut self, cx: &mut Cx<'_>, number: u16, status: u16) {
        let Some(at) = self.exchanges.iter().position(|e| e.number == number) else { return };
        let exchange = self.exchanges.swap_remove(at);
        if let Some(asked) = &exchange.asked {
            let from = exchange.to.other();
            // RFC 4320 §4.2: no 408 for anything but INVITE; the asker's own timer tells it.
            let silent = status == 408 && exchange.method != Method::Invite;
            let answer = if silent { 504 } else { status };
            self.answer(cx, from, asked, answer, &[]);
        }
        if matches!(exchange.kind, ExchangeKind::Session { .. }) {
            self.roll_back(cx);
        }
        let up = matches!(self.phase, Phase::Up | Phase::Ending);
        let lost = |leg: &Leg| leg.by_connection() && (status == 503 || leg.hop.lost.is_some());
        if up && self.leg(exchange.to).is_some_and(lost) {
            self.lost_failed(cx, &exchange, status);
        } else if exchange.kind != ExchangeKind::Bye {
            self.check_alive(cx, &exchange, status);
        }
    }

    /// RFC 3261 §12.2.1.2 and RFC 5057: what tells that a side is dead ends the call.
    pub(crate) fn check_alive(&mut self, cx: &mut Cx<'_>, exchange: &Exchange, status: u16) {
        let ends = match (&exchange.method, status) {
            (Method::Invite | Method::Update, 408 | 481 | 503) => true,
            (Method::Info, 481) => true,
            (_, _) => false,
        };
        if ends && matches!(self.phase, Phase::Up) {
            let gone = (status == 481).then_some(exchange.to);
            self.end(cx, EndedBy::Sbc(EndCause::PeerGone), gone, Some(&cause(status)));
        }
    }

    /// Relays a final response to whoever asked.
    pub(crate) fn relay_final(
        &mut self,
        cx: &mut Cx<'_>,
        exchange: &Exchange,
        message: &Message,
        sdp: Option<Bytes>,
    ) {
        let Some(asked) = &exchange.asked else { return };
        let from = exchange.to.other();
        let status = message.status().unwrap_or(500);
        let pass = match (self.leg_at(exchange.to, exchange.fork), self.leg_at(from, exchange.fork))
        {
            (Some(far), Some(near)) => {
                super::hide::challenges_pass(&far.trunk.config, &near.trunk.config)
            }
            (None, _) | (_, None) => false,
        };
        let status = if matches!(status, 401 | 407) && !pass { 403 } else { status };
        let Some(data) = self.final_text(cx, exchange, asked, status, message, sdp) else { return };
        cx.respond(self.traced(from), &asked.flow, asked.server, status, data);
    }

    /// The final response to an exchange as its asker sees it.
    pub(crate) fn final_text(
        &self,
        cx: &Cx<'_>,
        exchange: &Exchange,
        asked: &Asked,
        status: u16,
        message: &Message,
        sdp: Option<Bytes>,
    ) -> Option<Bytes> {
        let from = exchange.to.other();
        let (leg, other) =
            (self.leg_at(from, exchange.fork)?, self.leg_at(exchange.to, exchange.fork)?);
        let mut out = cx.response(&asked.request, &asked.flow, status, "", None);
        let listener = cx.listener(&leg.hop)?;
        if wire::has_contact(&exchange.method) && status < 300 {
            out.copy(&asked.request, HeaderName::RecordRoute);
            out.header(HeaderName::Contact, wire::Contact(listener, leg.dialog.secure));
            out.header(HeaderName::Allow, wire::ALLOW);
        }
        if matches!(exchange.method, Method::Invite | Method::Update) && status < 300 {
            out.header(HeaderName::Supported, "timer");
            let timer = leg.timer.as_ref().filter(|_| leg.peer.timer);
            super::answered::write_session_expires(&mut out, timer, leg.peer.timer);
        }
        let way = Crossing {
            from: &other.trunk.config,
            to: &leg.trunk.config,
            host: &listener.advertise_host,
            pai_user: None,
        };
        hide::cross(&mut out, message, &way);
        Some(match (sdp, &exchange.kind) {
            (Some(sdp), _) => out.finish_with("application/sdp", &sdp),
            (None, ExchangeKind::Plain) => match any_body(message) {
                Some((kind, body)) => out.finish_with(&kind, &body),
                None => out.finish(),
            },
            (None, _) => out.finish(),
        })
    }

    /// Answers a request in the call by ourselves.
    pub(crate) fn answer(
        &self,
        cx: &mut Cx<'_>,
        side: Side,
        asked: &Asked,
        status: u16,
        headers: &[(HeaderName, String)],
    ) {
        let mut out = cx.response(&asked.request, &asked.flow, status, "", None);
        for (name, value) in headers {
            out.header(*name, value);
        }
        cx.respond(self.traced(side), &asked.flow, asked.server, status, out.finish());
    }

    /// An offer under way that keeps `side` from making one, and who made it. What we asked the
    /// other leg alone is no hindrance unless `crosses`.
    pub(crate) fn pending_offer(&self, side: Side, crosses: bool) -> Option<Pending> {
        let open = |e: &Exchange| match e.kind {
            ExchangeKind::Session { .. } | ExchangeKind::Refresh => {
                e.asked.is_some() || e.to == side || crosses
            }
            ExchangeKind::Prack { offered } => offered,
            ExchangeKind::Plain | ExchangeKind::Bye => false,
        };
        if let Some(exchange) = self.exchanges.iter().find(|e| open(e)) {
            let theirs = exchange.asked.is_some() && exchange.to != side;
            return Some(if theirs { Pending::Theirs } else { Pending::Ours });
        }
        // Until the ACK the INVITE transaction is not over for the side that sent it.
        let wait = self.ok_wait.as_ref()?;
        match (wait.side == side, wait.client_seq.is_some() || crosses) {
            (true, _) => Some(Pending::Theirs),
            (false, true) => Some(Pending::Ours),
            (false, false) => None,
        }
    }
}

/// A body of any kind with its type.
pub(crate) fn any_body(message: &Message) -> Body {
    if message.body().is_empty() {
        return None;
    }
    let kind = message.header(HeaderName::ContentType).unwrap_or("application/octet-stream");
    Some((kind.to_owned(), message.body_bytes()))
}

/// Whether a leg's peer listed a method in Allow.
pub(crate) fn allows(leg: &Leg, method: &Method) -> bool {
    leg.peer.allow & super::call::method_bit(method) != 0
}
