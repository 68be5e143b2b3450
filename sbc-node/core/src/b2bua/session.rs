//! Offers inside a dialog: re-INVITE (RFC 3261 §14) and UPDATE (RFC 3311), glare, refusal.
//!
//! Refreshes of our own are in `session_timer.rs`.

use bytes::Bytes;

use super::answer::{Passing, Role};
use super::answered::wish;
use super::call::{
    Asked, Call, CallTimer, DialogRef, Exchange, ExchangeKind, Leg, OkWait, Pending, Phase,
};
use super::cdr::{EndCause, EndedBy};
use super::end::cause;
use super::env::Cx;
use super::exchange::{Request, allows};
use super::hide::{self, Crossing};
use super::{body, invite, wire};
use crate::dialog::{self, SessionTimer};
use crate::media::Side;
use crate::sip::{HeaderName, Message, Method};
use crate::transaction::{OkRetransmit, ServerId};

impl Call {
    /// A re-INVITE from one side.
    pub(crate) fn reinvite(&mut self, cx: &mut Cx<'_>, side: Side, asked: Asked) {
        if let Err(refuse) = invite::body(&asked.request) {
            return self.answer(cx, side, &asked, refuse.status, &refuse.headers);
        }
        if self.in_glare(cx, side, &asked) || self.interval_too_small(cx, side, &asked) {
            return;
        }
        self.heard_from(cx, side, 0, &asked.request);
        let offer = body::sdp(&asked.request);
        if self.is_refresh(side, offer.as_ref()) {
            return self.answer_refresh(cx, side, &asked);
        }
        self.pass_offer(cx, side, 0, Method::Invite, asked, offer);
    }

    /// An UPDATE from one side, in a confirmed or an early dialog.
    pub(crate) fn update(&mut self, cx: &mut Cx<'_>, dialog: DialogRef, asked: Asked) {
        let (side, fork) = (dialog.side, self.fork_number(&dialog, &asked.request));
        if self.interval_too_small(cx, side, &asked) {
            return;
        }
        let Some(offer) = body::sdp(&asked.request) else {
            // A refresh of the session timer concerns its leg alone.
            self.heard_from(cx, side, fork, &asked.request);
            return self.answer_refresh(cx, side, &asked);
        };
        if self.in_glare(cx, side, &asked) {
            return;
        }
        self.heard_from(cx, side, fork, &asked.request);
        let to = side.other();
        let up = matches!(self.phase, Phase::Up);
        let knows = self.leg_at(to, fork).is_some_and(|l| allows(l, &Method::Update));
        match (knows, up) {
            (true, _) => self.pass_offer(cx, side, fork, Method::Update, asked, Some(offer)),
            // The other side has no UPDATE: it gets the offer by re-INVITE.
            (false, true) => self.pass_offer(cx, side, fork, Method::Invite, asked, Some(offer)),
            (false, false) => self.answer(cx, side, &asked, 488, &[]),
        }
    }

    /// Answers 491 or 500 when another offer is open (RFC 3261 §14.2, RFC 3311 §5.2).
    fn in_glare(&mut self, cx: &mut Cx<'_>, side: Side, asked: &Asked) -> bool {
        use rand::RngExt;
        match self.pending_offer(side, true) {
            None => return false,
            Some(Pending::Ours) => self.answer(cx, side, asked, 491, &[]),
            Some(Pending::Theirs) => {
                let wait = cx.ids().rng().random_range(0..=10u32).to_string();
                self.answer(cx, side, asked, 500, &[(HeaderName::RetryAfter, wait)]);
            }
        }
        true
    }

    /// RFC 4028 §9: 422 for an interval below our minimum.
    fn interval_too_small(&mut self, cx: &mut Cx<'_>, side: Side, asked: &Asked) -> bool {
        let Some(leg) = self.leg(side) else { return false };
        let Some(wish) = wish(&leg.trunk.config.session_timer) else { return false };
        let knows = asked.request.lists(HeaderName::Supported, "timer");
        match dialog::answer(wish, knows, wire::session_expires(&asked.request), None) {
            Ok(_) => false,
            Err(small) => {
                self.answer(cx, side, asked, 422, &[(HeaderName::MinSe, small.min_s.to_string())]);
                true
            }
        }
    }

    /// Takes what a target refresh request says of its sender (RFC 3261 §12.2.2).
    fn heard_from(&mut self, cx: &mut Cx<'_>, side: Side, fork: u8, request: &Message) {
        if let Some(leg) = self.leg_at_mut(side, fork) {
            wire::read_peer(request, &mut leg.peer);
            if wire::refresh_target(request, leg) {
                self.follow(cx, side, fork);
            }
        }
    }

    /// A re-INVITE that says again what is in force.
    fn is_refresh(&self, side: Side, offer: Option<&Bytes>) -> bool {
        let known = self.leg(side).and_then(|l| l.sdp.remote.as_ref());
        offer.is_some() && offer == known
    }

    /// Answers a refresh without asking the other side: the legs' timers are apart.
    fn answer_refresh(&mut self, cx: &mut Cx<'_>, side: Side, asked: &Asked) {
        self.refreshed_by_peer(cx, side, &asked.request);
        let is_invite = asked.request.method() == Some(&Method::Invite);
        let Some(leg) = self.leg(side) else { return };
        let mut out = cx.response(&asked.request, &asked.flow, 200, "", None);
        out.copy(&asked.request, HeaderName::RecordRoute);
        if let Some(listener) = cx.listener(&leg.hop) {
            out.header(HeaderName::Contact, wire::Contact(listener, leg.dialog.secure));
        }
        out.header(HeaderName::Allow, wire::ALLOW).header(HeaderName::Supported, "timer");
        super::answered::write_session_expires(&mut out, leg.timer.as_ref(), leg.peer.timer);
        let data = match leg.sdp.local.as_ref().filter(|_| is_invite) {
            Some(sdp) => out.finish_with("application/sdp", sdp),
            None => out.finish(),
        };
        if is_invite {
            self.await_ack(cx, side, asked, 200, data.clone(), None, false);
        }
        cx.respond(self.traced(side), &asked.flow, asked.server, 200, data);
    }

    /// The session timer of a leg after its peer's INVITE or UPDATE.
    fn refreshed_by_peer(&mut self, cx: &mut Cx<'_>, side: Side, request: &Message) {
        let now = cx.now;
        let Some(leg) = self.leg_mut(side) else { return };
        let Some(wish) = wish(&leg.trunk.config.session_timer) else { return };
        let min = request.number(HeaderName::MinSe).ok().flatten();
        let asked = wire::session_expires(request);
        let sent = dialog::answer(wish, leg.peer.timer, asked, min).unwrap_or(None);
        leg.timer = SessionTimer::of_uas(sent, now);
        if matches!(self.phase, Phase::Up) {
            self.arm_session(cx, side);
        }
    }

    /// Passes an offer (or a request for one) to the other side.
    fn pass_offer(
        &mut self,
        cx: &mut Cx<'_>,
        from: Side,
        fork: u8,
        method: Method,
        asked: Asked,
        offer: Option<Bytes>,
    ) {
        let to = from.other();
        let forwards = asked.request.max_forwards().ok().flatten();
        let Some(forwards) = forwards.unwrap_or(wire::MAX_FORWARDS).checked_sub(1) else {
            return self.answer(cx, from, &asked, 483, &[]);
        };
        self.media.begin_offer(&self.a, self.b.as_ref());
        let offered = offer.is_some();
        let sdp = match offer.map(|sdp| self.cross_sdp(cx, from, fork, Role::Offer, &sdp)) {
            None => None,
            Some(Ok(sdp)) => Some(sdp),
            Some(Err(refusal)) => {
                self.roll_back(cx);
                let seconds = cx.env.config.calls.retry_after_s.to_string();
                let retry: &[_] = &[(HeaderName::RetryAfter, seconds)];
                let headers = if refusal.retry { retry } else { &[] };
                return self.answer(cx, from, &asked, refusal.status, headers);
            }
        };
        let message = asked.request.clone();
        let again = asked.again();
        let (Some(writer), Some(reader)) = (self.leg(from), self.leg_at(to, fork)) else { return };
        let (writer, reader, timer) = (writer.trunk.clone(), reader.trunk.clone(), reader.timer);
        let host = cx.listener(&self.hop_of(to, fork)).map(|l| l.advertise_host.clone());
        let request = Request {
            to,
            fork,
            method,
            kind: ExchangeKind::Session { offered },
            asked: Some(asked),
            max_forwards: forwards,
        };
        let sent = self.start_exchange(cx, request, |out| {
            out.header(HeaderName::Allow, wire::ALLOW).header(HeaderName::Supported, "timer");
            if let Some(timer) = timer {
                super::session_timer::ask(out, &timer);
            }
            if let Some(host) = &host {
                let (from, to) = (&writer.config, &reader.config);
                hide::cross(out, &message, &Crossing { from, to, host, pai_user: None });
            }
            sdp.map(|sdp| ("application/sdp".to_owned(), sdp))
        });
        if !sent {
            self.roll_back(cx);
            self.answer(cx, from, &again, 503, &[]);
        }
    }

    /// An offer came to nothing: what was said before it holds (RFC 3261 §14.1).
    pub(crate) fn roll_back(&mut self, cx: &mut Cx<'_>) {
        let Call { media, a, b, .. } = self;
        media.roll_back(cx, a, b.as_mut());
    }

    /// Writes a description of one side anew for the other.
    pub(crate) fn cross_sdp(
        &mut self,
        cx: &mut Cx<'_>,
        from: Side,
        fork: u8,
        role: Role,
        sdp: &[u8],
    ) -> Result<Bytes, super::answer::Refusal> {
        let lost = super::answer::Refusal { status: 481, reason: "", retry: false };
        let Call { phase, a, b, media, .. } = self;
        let b = match (phase, b) {
            (_, Some(b)) => b,
            (Phase::Setup(setup), None) => {
                let trying = setup.trying.as_mut();
                &mut trying.and_then(|t| t.fork_mut(fork)).ok_or(lost)?.leg
            }
            (Phase::Up | Phase::Ending, None) => return Err(lost),
        };
        let (writer, reader) = match from {
            Side::A => (a, b),
            Side::B => (b, a),
        };
        media.pass(cx, Passing { from, role, sdp, writer, reader })
    }

    /// The final response to an offer that we passed on.
    pub(crate) fn session_final(
        &mut self,
        cx: &mut Cx<'_>,
        exchange: Box<Exchange>,
        message: &Message,
    ) {
        let status = message.status().unwrap_or(500);
        if status >= 300 {
            self.roll_back(cx);
            self.relay_final(cx, &exchange, message, None);
            return self.check_alive(cx, &exchange, status);
        }
        let ExchangeKind::Session { offered } = exchange.kind else { return };
        let (to, from) = (exchange.to, exchange.to.other());
        self.answered_by_peer(cx, to, exchange.fork, message);
        let role = if offered { Role::Answer } else { Role::Offer };
        let sdp = body::sdp(message).map(|sdp| self.cross_sdp(cx, to, exchange.fork, role, &sdp));
        let by_invite = exchange.method == Method::Invite;
        match (sdp.transpose(), by_invite) {
            (Ok(sdp), true) => {
                self.relay_reinvite_ok(cx, &exchange, status, message, sdp, !offered)
            }
            (Ok(sdp), false) => {
                self.media.settle();
                self.refresh_asker(cx, &exchange);
                self.relay_final(cx, &exchange, message, sdp);
                self.store_change(cx);
            }
            // The answer cannot be carried on, and the side that gave it believes in it.
            (Err(refusal), _) => {
                if by_invite {
                    self.send_ack(cx, to, exchange.client_seq, None);
                }
                if let Some(asked) = &exchange.asked {
                    self.answer(cx, from, asked, refusal.status, &[]);
                }
                self.end(cx, EndedBy::Sbc(EndCause::Media), None, Some(&cause(488)));
            }
        }
    }

    /// Relays the 2xx of a re-INVITE and waits for its ACK; an UPDATE that became a re-INVITE is
    /// over at once.
    fn relay_reinvite_ok(
        &mut self,
        cx: &mut Cx<'_>,
        exchange: &Exchange,
        status: u16,
        message: &Message,
        sdp: Option<Bytes>,
        offer_in_ok: bool,
    ) {
        let Some(asked) = &exchange.asked else { return };
        let from = exchange.to.other();
        self.refresh_asker(cx, exchange);
        let Some(data) = self.final_text(cx, exchange, asked, status, message, sdp) else { return };
        if asked.request.method() == Some(&Method::Invite) {
            let seq = Some(exchange.client_seq);
            self.await_ack(cx, from, asked, status, data.clone(), seq, offer_in_ok);
        } else {
            self.media.settle();
            self.send_ack(cx, exchange.to, exchange.client_seq, None);
            self.store_change(cx);
        }
        cx.respond(self.traced(from), &asked.flow, asked.server, status, data);
    }

    fn refresh_asker(&mut self, cx: &mut Cx<'_>, exchange: &Exchange) {
        if let Some(asked) = &exchange.asked {
            let request = asked.request.clone();
            self.refreshed_by_peer(cx, exchange.to.other(), &request);
        }
    }

    /// What the 2xx to our INVITE or UPDATE says of its sender.
    pub(crate) fn answered_by_peer(
        &mut self,
        cx: &mut Cx<'_>,
        side: Side,
        fork: u8,
        message: &Message,
    ) {
        let now = cx.now;
        if let Some(leg) = self.leg_at_mut(side, fork) {
            wire::read_peer(message, &mut leg.peer);
            let moved = wire::refresh_target(message, leg);
            if let Some(wish) = wish(&leg.trunk.config.session_timer) {
                leg.timer = SessionTimer::of_uac(wish, wire::session_expires(message), now);
            }
            if moved {
                self.follow(cx, side, fork);
            }
        }
        if matches!(self.phase, Phase::Up) {
            self.arm_session(cx, side);
        }
    }

    /// Keeps a 2xx of ours to an INVITE until its ACK comes.
    #[expect(clippy::too_many_arguments, reason = "the fields of an OkWait")]
    fn await_ack(
        &mut self,
        cx: &mut Cx<'_>,
        side: Side,
        asked: &Asked,
        status: u16,
        ok: Bytes,
        client_seq: Option<u32>,
        offer_in_ok: bool,
    ) {
        let schedule = OkRetransmit::new(cx.now, &cx.env.txn.config().timers);
        let timer = cx.arm(schedule.deadline(), self.key, CallTimer::Ok);
        self.ok_wait = Some(Box::new(OkWait {
            side,
            server: asked.server,
            flow: asked.flow,
            status,
            server_seq: asked.request.cseq().map_or(0, |c| c.number),
            client_seq,
            ok,
            schedule,
            timer,
            offer_in_ok,
            in_dialog: true,
        }));
    }

    /// A provisional response to a re-INVITE that we passed on.
    pub(crate) fn reinvite_progress(&mut self, cx: &mut Cx<'_>, at: usize, message: &Message) {
        let Some(exchange) = self.exchanges.get(at) else { return };
        let status = message.status().unwrap_or(100);
        let Some(asked) = exchange.asked.as_ref().filter(|_| status > 100) else { return };
        if asked.request.method() != Some(&Method::Invite) {
            return;
        }
        let (asked, from) = (asked.again(), exchange.to.other());
        self.answer(cx, from, &asked, status, &[]);
    }

    /// A re-INVITE was cancelled: the other side's final response will say what came of it.
    pub(crate) fn reinvite_cancelled(
        &mut self,
        cx: &mut Cx<'_>,
        server: ServerId,
        message: &Message,
    ) {
        let asked_by = |e: &Exchange| e.asked.as_ref().is_some_and(|a| a.server == server);
        let client = self.exchanges.iter().find(|e| asked_by(e)).and_then(|e| e.client);
        let reason = message.header(HeaderName::Reason).map(str::to_owned);
        self.cancel_client(cx, client, reason.as_deref());
    }

    /// A 2xx to a re-INVITE of ours came again: its ACK was lost, or is not due yet.
    pub(crate) fn reinvite_ok_again(&mut self, cx: &mut Cx<'_>, message: &Message) {
        let call_id = message.call_id().unwrap_or("");
        let is = |leg: Option<&Leg>| leg.is_some_and(|l| *l.dialog.call_id == *call_id);
        if is(self.b.as_ref()) {
            self.ok_again(cx, Side::B, message);
        } else if is(Some(&self.a)) {
            self.ok_again(cx, Side::A, message);
        }
    }
}
