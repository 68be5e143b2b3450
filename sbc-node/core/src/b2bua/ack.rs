//! The ACK of a 2xx, end to end: the 2xx is repeated until it comes, then the other leg is ACKed
//! (RFC 3261 §13.3.1.4, §13.2.2.4).

use bytes::Bytes;

use super::answer::{Passing, Role};
use super::call::{Call, CallTimer};
use super::cdr::{EndCause, EndedBy};
use super::env::Cx;
use super::{body, wire};
use crate::media::Side;
use crate::sip::{Message, Method};
use crate::transaction::OkDue;

impl Call {
    /// An ACK from `side`, in its dialog.
    pub(crate) fn ack(&mut self, cx: &mut Cx<'_>, side: Side, message: &Message) {
        let seq = message.cseq().map_or(0, |c| c.number);
        if side == Side::A {
            self.end_repeat(cx, Some(seq));
        }
        let waiting = self.ok_wait.as_ref();
        if waiting.is_none_or(|w| w.side != side || w.server_seq != seq) {
            // Repeated, or of a 2xx that we gave up on.
            return;
        }
        let Some(wait) = self.ok_wait.take() else { return };
        cx.env.timers.cancel(wait.timer);
        let Some(client_seq) = wait.client_seq else { return };
        let answer = match (wait.offer_in_ok, body::sdp(message)) {
            (true, Some(sdp)) => self.late_answer(cx, side, &sdp),
            (true, None) => Err(()),
            (false, _) => Ok(None),
        };
        self.media.settle();
        let other = side.other();
        match answer {
            Ok(sdp) => {
                let late = sdp.is_some();
                self.send_ack(cx, other, client_seq, sdp);
                if late || wait.in_dialog {
                    self.store_change(cx);
                }
            }
            Err(()) => {
                // RFC 3261 §13.2.1: no answer where one is due ends the session.
                self.send_ack(cx, other, client_seq, None);
                self.end(cx, EndedBy::Sbc(EndCause::Media), None, Some("SIP;cause=488"));
            }
        }
    }

    /// The answer to an offer in our 2xx, rewritten for the other leg.
    fn late_answer(
        &mut self,
        cx: &mut Cx<'_>,
        from: Side,
        sdp: &[u8],
    ) -> Result<Option<Bytes>, ()> {
        let Call { a, b: Some(b), media, .. } = self else { return Err(()) };
        let (writer, reader) = match from {
            Side::A => (a, b),
            Side::B => (b, a),
        };
        media
            .pass(cx, Passing { from, role: Role::Answer, sdp, writer, reader })
            .map(Some)
            .map_err(|_| ())
    }

    /// ACKs the 2xx to our INVITE `seq` on a leg.
    pub(crate) fn send_ack(&mut self, cx: &mut Cx<'_>, side: Side, seq: u32, sdp: Option<Bytes>) {
        let hint = self.hint;
        let Some(leg) = self.leg_mut(side) else { return };
        leg.acked = Some((seq, sdp.is_some()));
        let dest = wire::destination(&leg.hop);
        let begun = wire::begin_request(
            cx,
            hint,
            &leg.dialog,
            &leg.hop,
            &Method::Ack,
            seq,
            wire::MAX_FORWARDS,
        );
        let Some((out, _)) = begun else { return };
        let data = match sdp {
            Some(sdp) => out.finish_with("application/sdp", &sdp),
            None => out.finish(),
        };
        cx.transmit(self.traced(side), dest, data);
    }

    /// The 2xx is due again, or its ACK never came.
    pub(crate) fn ok_timer(&mut self, cx: &mut Cx<'_>) {
        let timers = cx.env.txn.config().timers;
        let traced = self.ok_wait.as_ref().and_then(|w| self.traced(w.side));
        let Some(wait) = &mut self.ok_wait else { return };
        match wait.schedule.due(cx.now, &timers) {
            OkDue::Wait => {}
            OkDue::Send => {
                let (flow, server, status) = (wait.flow, wait.server, wait.status);
                cx.respond(traced, &flow, server, status, wait.ok.clone());
            }
            OkDue::GiveUp => {
                cx.env.stats.no_ack += 1;
                let reason = "SIP;cause=408;text=\"ACK not received\"";
                self.end(cx, EndedBy::Sbc(EndCause::NoAck), None, Some(reason));
                return;
            }
        }
        let at = wait.schedule.deadline();
        wait.timer = cx.arm(at, self.key, CallTimer::Ok);
    }
}
