//! Reliable provisional responses (RFC 3262): PRACK end to end where both sides do 100rel, our own
//! towards the side whose partner does not.

use super::answer::Role;
use super::body;
use super::call::{Asked, Call, CallTimer, DialogRef, Exchange, ExchangeKind, Phase};
use super::cdr::{EndCause, EndedBy};
use super::env::Cx;
use super::exchange::Request;
use super::hide::{self, Crossing};
use crate::dialog::PrackMatch;
use crate::media::Side;
use crate::sip::value::RAck;
use crate::sip::{CSeq, HeaderName, Message, Method};
use bytes::Bytes;

impl Call {
    /// PRACKs a reliable provisional response of B because A does not do 100rel.
    pub(crate) fn own_prack(&mut self, cx: &mut Cx<'_>, fork: u8, rseq: u32, message: &Message) {
        let Ok(cseq) = message.cseq() else { return };
        let rack = RAck { rseq, cseq: CSeq { number: cseq.number, method: "INVITE" } };
        self.send_prack(cx, fork, None, &rack, None);
    }

    /// A PRACK from A for a provisional response of ours.
    pub(crate) fn prack(&mut self, cx: &mut Cx<'_>, dialog: DialogRef, asked: Asked) {
        let Ok(Some(rack)) = asked.request.first::<RAck<'_>>(HeaderName::RAck) else {
            return self.answer(cx, dialog.side, &asked, 400, &[]);
        };
        let Phase::Setup(setup) = &mut self.phase else {
            return self.answer(cx, dialog.side, &asked, 481, &[]);
        };
        let invite_seq = setup.invite.cseq().map_or(0, |c| c.number);
        let ours = dialog.side == Side::A
            && rack.cseq.number == invite_seq
            && rack.cseq.method == "INVITE";
        if !ours || setup.reliable.acknowledge(rack.rseq) == PrackMatch::Unknown {
            return self.answer(cx, dialog.side, &asked, 481, &[]);
        }
        cx.disarm(&mut setup.reliable_timer);
        let mapped =
            self.fork_mut(dialog.fork).and_then(|f| f.reliable).filter(|m| m.a_rseq == rack.rseq);
        let Some(map) = mapped else {
            // B knows nothing of it: A's wish for reliability ends here.
            return self.answer(cx, dialog.side, &asked, 200, &[]);
        };
        let offer = match self.prack_body(cx, dialog.fork, &asked.request) {
            Ok(body) => body,
            Err(status) => return self.answer(cx, dialog.side, &asked, status, &[]),
        };
        let Some(seq) = self.invite_seq(dialog.fork) else { return };
        let rack = RAck { rseq: map.b_rseq, cseq: CSeq { number: seq, method: "INVITE" } };
        self.send_prack(cx, dialog.fork, Some(asked), &rack, offer);
    }

    /// CSeq of the INVITE that a fork belongs to.
    fn invite_seq(&mut self, fork: u8) -> Option<u32> {
        let attempts = &self.setup_mut()?.trying.as_ref()?.attempts;
        let attempt = attempts.iter().find(|a| a.forks.iter().any(|f| f.number == fork))?;
        attempt.leg.as_ref().map(|l| l.dialog.local_seq)
    }

    /// A description in a PRACK: the answer to an offer in the 18x, or a new offer.
    fn prack_body(
        &mut self,
        cx: &mut Cx<'_>,
        fork: u8,
        request: &Message,
    ) -> Result<Option<Bytes>, u16> {
        let Some(sdp) = body::sdp(request) else { return Ok(None) };
        let offered = self.setup_mut().is_some_and(|s| body::sdp(&s.invite).is_some());
        let role = if offered { Role::Offer } else { Role::Answer };
        self.cross_sdp(cx, Side::A, fork, role, &sdp).map(Some).map_err(|r| r.status)
    }

    /// Sends a PRACK in a fork's early dialog.
    fn send_prack(
        &mut self,
        cx: &mut Cx<'_>,
        fork: u8,
        asked: Option<Asked>,
        rack: &RAck<'_>,
        sdp: Option<Bytes>,
    ) {
        let kind = ExchangeKind::Prack { offered: sdp.is_some() };
        let host = cx.listener(&self.hop_of(Side::B, fork)).map(|l| l.advertise_host.clone());
        let from = self.a.trunk.clone();
        let to = self.leg_at(Side::B, fork).map(|l| l.trunk.clone());
        let message = asked.as_ref().map(|a| a.request.clone());
        let request = Request { fork, asked, ..Request::own(Side::B, Method::Prack, kind) };
        self.start_exchange(cx, request, |out| {
            out.header(HeaderName::RAck, rack);
            if let (Some(message), Some(host), Some(to)) = (&message, &host, &to) {
                let (from, to) = (&from.config, &to.config);
                hide::cross(out, message, &Crossing { from, to, host, pai_user: None });
            }
            sdp.map(|sdp| ("application/sdp".to_owned(), sdp))
        });
    }

    /// The final response to a PRACK that was passed on or is ours.
    pub(crate) fn prack_final(&mut self, cx: &mut Cx<'_>, exchange: &Exchange, message: &Message) {
        let ExchangeKind::Prack { offered } = exchange.kind else { return };
        let Some(asked) = &exchange.asked else { return };
        let sdp = body::sdp(message)
            .filter(|_| offered)
            .and_then(|sdp| self.cross_sdp(cx, Side::B, exchange.fork, Role::Answer, &sdp).ok());
        let status = message.status().unwrap_or(500);
        let out = cx.response(&asked.request, &asked.flow, status, "", None);
        let data = match sdp {
            Some(sdp) => out.finish_with("application/sdp", &sdp),
            None => out.finish(),
        };
        cx.respond(self.traced(Side::A), &asked.flow, asked.server, status, data);
        self.store_early(cx);
    }

    /// The reliable provisional response is due again, or its PRACK never came
    /// (RFC 3262 §3: 5xx after 64·T1).
    pub(crate) fn reliable_timer(&mut self, cx: &mut Cx<'_>) {
        let traced = self.traced(Side::A);
        let key = self.key;
        let Phase::Setup(setup) = &mut self.phase else { return };
        setup.reliable_timer = None;
        let Some(waiting) = &mut setup.reliable.waiting else { return };
        if cx.now >= waiting.give_up {
            self.abandon(cx, None);
            return self.fail(cx, 504, "", None, None, EndedBy::Sbc(EndCause::NoAck));
        }
        waiting.interval *= 2;
        let (status, data) = (waiting.status, waiting.response.clone());
        let at = (cx.now + waiting.interval).min(waiting.give_up);
        let (flow, server) = (setup.flow, setup.server);
        setup.reliable_timer = Some(cx.arm(at, key, CallTimer::Reliable));
        cx.respond(traced, &flow, server, status, data);
    }
}
