//! Reliable provisional responses (RFC 3262): PRACK end to end where both sides do 100rel, our own
//! towards the side whose partner does not.

use super::answer::{Passing, Role};
use super::call::{Asked, Call, CallTimer, DialogRef, Exchange, ExchangeKind, Phase};
use super::cdr::{EndCause, EndedBy};
use super::env::{Cx, Purpose, Sent};
use super::hide::{self, Crossing};
use super::{body, wire};
use crate::dialog::PrackMatch;
use crate::media::Side;
use crate::sip::value::RAck;
use crate::sip::{CSeq, HeaderName, Message, Method};
use bytes::Bytes;

impl Call {
    /// PRACKs a reliable provisional response of B because A does not do 100rel.
    pub(crate) fn own_prack(&mut self, cx: &mut Cx<'_>, fork: usize, rseq: u32, message: &Message) {
        let Ok(cseq) = message.cseq() else { return };
        let rack = RAck { rseq, cseq: CSeq { number: cseq.number, method: "INVITE" } };
        let kind = ExchangeKind::Prack { fork: u8::try_from(fork).unwrap_or(0), offered: false };
        self.send_prack(cx, fork, kind, None, &rack, None);
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
        let fork = usize::from(dialog.fork);
        let mapped = self.fork_mut(fork).and_then(|f| f.reliable).filter(|m| m.a_rseq == rack.rseq);
        let Some(map) = mapped else {
            // B knows nothing of it: A's wish for reliability ends here.
            return self.answer(cx, dialog.side, &asked, 200, &[]);
        };
        let offer = match self.prack_body(cx, fork, &asked.request) {
            Ok(body) => body,
            Err(status) => return self.answer(cx, dialog.side, &asked, status, &[]),
        };
        let Some(seq) = self.fork_mut(fork).map(|f| f.leg.dialog.local_seq) else { return };
        let seq = self.fork_invite_seq(fork).unwrap_or(seq);
        let rack = RAck { rseq: map.b_rseq, cseq: CSeq { number: seq, method: "INVITE" } };
        let kind = ExchangeKind::Prack { fork: dialog.fork, offered: offer.is_some() };
        self.send_prack(cx, fork, kind, Some(asked), &rack, offer);
    }

    /// CSeq of the INVITE that a fork belongs to.
    fn fork_invite_seq(&mut self, _fork: usize) -> Option<u32> {
        self.current_attempt()?.leg.as_ref().map(|l| l.dialog.local_seq)
    }

    /// A description in a PRACK: the answer to an offer in the 18x, or a new offer.
    fn prack_body(
        &mut self,
        cx: &mut Cx<'_>,
        fork: usize,
        request: &Message,
    ) -> Result<Option<Bytes>, u16> {
        let Some(sdp) = body::sdp(request) else { return Ok(None) };
        let Call { phase: Phase::Setup(setup), media, a, .. } = self else { return Err(481) };
        let offered = body::sdp(&setup.invite).is_some();
        let role = if offered { Role::Offer } else { Role::Answer };
        let fork = setup.attempt.as_mut().and_then(|t| t.forks.get_mut(fork)).ok_or(481u16)?;
        let passing = Passing { from: Side::A, role, sdp: &sdp, writer: a, reader: &mut fork.leg };
        media.pass(cx, passing).map(Some).map_err(|r| r.status)
    }

    /// Sends a PRACK in a fork's early dialog.
    fn send_prack(
        &mut self,
        cx: &mut Cx<'_>,
        fork: usize,
        kind: ExchangeKind,
        asked: Option<Asked>,
        rack: &RAck<'_>,
        sdp: Option<Bytes>,
    ) {
        let (hint, number, key) = (self.hint, self.next_exchange, self.key);
        let host = self.fork_mut(fork).map(|f| f.leg.hop);
        let host = host.and_then(|hop| cx.listener(&hop).map(|l| l.advertise_host.clone()));
        let from = self.a.trunk.clone();
        let traced = self.traced(Side::B);
        let Some(f) = self.fork_mut(fork) else { return };
        let seq = f.leg.dialog.next_seq();
        let (dialog, hop) = (&f.leg.dialog, &f.leg.hop);
        let begun =
            wire::begin_request(cx, hint, dialog, hop, &Method::Prack, seq, wire::MAX_FORWARDS);
        let Some((mut out, branch)) = begun else { return };
        out.header(HeaderName::RAck, rack);
        if let (Some(asked), Some(host)) = (&asked, host) {
            let to = &f.leg.trunk.config;
            let way = Crossing { from: &from.config, to, host: &host, pai_user: None };
            hide::cross(&mut out, &asked.request, &way);
        }
        let dest = wire::destination(&f.leg.hop);
        let data = match sdp {
            Some(sdp) => out.finish_with("application/sdp", &sdp),
            None => out.finish(),
        };
        let purpose = Purpose::Exchange { call: key, number };
        let sent = Sent { method: Method::Prack, branch, dest, data, purpose, timeout: None };
        let Some(client) = cx.send(traced, sent) else { return };
        self.next_exchange = number.wrapping_add(1);
        let method = Method::Prack;
        self.exchanges.push(Box::new(Exchange {
            number,
            method,
            to: Side::B,
            asked,
            client: Some(client),
            client_seq: seq,
            kind,
            authorized: false,
        }));
    }

    /// The final response to a PRACK that was passed on or is ours.
    pub(crate) fn prack_final(
        &mut self,
        cx: &mut Cx<'_>,
        exchange: Box<Exchange>,
        message: &Message,
    ) {
        let ExchangeKind::Prack { fork, offered } = exchange.kind else { return };
        let Some(asked) = &exchange.asked else { return };
        let mut sdp = None;
        if let (true, Some(text)) = (offered, body::sdp(message)) {
            let Call { phase, media, a, b, .. } = self;
            let leg = match phase {
                Phase::Setup(s) => s
                    .attempt
                    .as_mut()
                    .and_then(|t| t.forks.get_mut(usize::from(fork)))
                    .map(|f| &mut f.leg)
                    .or(b.as_mut()),
                Phase::Up | Phase::Ending => b.as_mut(),
            };
            if let Some(leg) = leg {
                let passing = Passing {
                    from: Side::B,
                    role: Role::Answer,
                    sdp: &text,
                    writer: leg,
                    reader: a,
                };
                sdp = media.pass(cx, passing).ok();
            }
        }
        let status = message.status().unwrap_or(500);
        let out = cx.response(&asked.request, &asked.flow, status, "", None);
        let data = match sdp {
            Some(sdp) => out.finish_with("application/sdp", &sdp),
            None => out.finish(),
        };
        cx.respond(self.traced(Side::A), &asked.flow, asked.server, status, data);
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
