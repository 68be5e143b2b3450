//! Session timers at work (RFC 4028): refreshes of our own, and sessions that nobody refreshed.

use rand::RngExt;
use std::time::Duration;

use super::call::{Call, CallTimer, Exchange, ExchangeKind, Phase, slot};
use super::cdr::{EndCause, EndedBy};
use super::env::Cx;
use super::exchange::{Body, Request, allows};
use super::{body, wire};
use crate::dialog::SessionTimer;
use crate::media::Side;
use crate::sip::{Builder, HeaderName, Message, Method};

/// After a refresh that failed for a reason that may pass.
const RETRY: Duration = Duration::from_secs(10);

impl Call {
    /// Arms the timer of a leg for its next refresh or its end.
    pub(crate) fn arm_session(&mut self, cx: &mut Cx<'_>, side: Side) {
        let due = self.leg(side).and_then(|l| l.timer.as_ref()).map(SessionTimer::due);
        self.arm_session_at(cx, side, due);
    }

    fn arm_session_at(&mut self, cx: &mut Cx<'_>, side: Side, due: Option<std::time::Instant>) {
        let key = self.key;
        let timer = &mut self.timers.session[slot(side)];
        cx.disarm(timer);
        *timer = due.map(|at| cx.arm(at, key, CallTimer::Session(side)));
    }

    /// A refresh is due, or did not come.
    pub(crate) fn session_timer(&mut self, cx: &mut Cx<'_>, side: Side) {
        self.timers.session[slot(side)] = None;
        let Some(timer) = self.leg(side).and_then(|l| l.timer) else { return };
        if !matches!(self.phase, Phase::Up) {
            return;
        }
        if !timer.we_refresh {
            cx.env.stats.session_timeouts += 1;
            let reason = "SIP;cause=408;text=\"Session timer expired\"";
            return self.end(cx, EndedBy::Sbc(EndCause::SessionExpired), None, Some(reason));
        }
        if self.pending_offer(side, false).is_some() {
            let at = cx.now + RETRY;
            return self.arm_session_at(cx, side, Some(at));
        }
        self.refresh(cx, side);
    }

    /// Sends our own refresh: UPDATE where the peer has it, re-INVITE with what we said last.
    fn refresh(&mut self, cx: &mut Cx<'_>, side: Side) {
        let Some(leg) = self.leg(side) else { return };
        let timer = leg.timer;
        let by_update = allows(leg, &Method::Update) && !leg.moved;
        let method = if by_update { Method::Update } else { Method::Invite };
        let sdp = leg.sdp.local.clone().filter(|_| !by_update);
        let request = Request::own(side, method, ExchangeKind::Refresh);
        let sent = self.start_exchange(cx, request, |out| {
            out.header(HeaderName::Allow, wire::ALLOW).header(HeaderName::Supported, "timer");
            if let Some(timer) = &timer {
                ask(out, timer);
            }
            sdp.map(|sdp| -> (String, bytes::Bytes) { ("application/sdp".to_owned(), sdp) }) as Body
        });
        if !sent {
            self.refresh_later(cx, side);
        }
    }

    /// Tries our own request on a leg again after a while.
    pub(crate) fn retry_later(&mut self, cx: &mut Cx<'_>, side: Side) {
        let (at, key) = (cx.now + RETRY, self.key);
        cx.disarm(&mut self.timers.retry[slot(side)]);
        self.timers.retry[slot(side)] = Some(cx.arm(at, key, CallTimer::Retry(side)));
    }

    /// The final response to a refresh of our own.
    pub(crate) fn refresh_final(
        &mut self,
        cx: &mut Cx<'_>,
        exchange: Box<Exchange>,
        message: &Message,
    ) {
        let (side, status) = (exchange.to, message.status().unwrap_or(500));
        match status {
            200..=299 => {
                self.answered_by_peer(cx, side, 0, message);
                if let Some(leg) = self.leg_mut(side)
                    && std::mem::take(&mut leg.moved)
                {
                    cx.env.stats.legs_moved += 1;
                }
                if exchange.method == Method::Invite {
                    self.take_answer(cx, side, message);
                    self.send_ack(cx, side, exchange.client_seq, None);
                }
                self.store_change(cx);
            }
            422 => self.longer_interval(cx, side, message),
            491 => self.retry_after_glare(cx, side),
            405 | 501 if exchange.method == Method::Update => {
                if let Some(leg) = self.leg_mut(side) {
                    leg.peer.allow &= !super::call::method_bit(&Method::Update);
                }
                self.retry_reinvite(cx, side);
            }
            _ => {
                if self.leg(side).is_some_and(|leg| leg.moved) {
                    cx.env.stats.move_refusals += 1;
                }
                self.check_alive(cx, &exchange, status);
                if matches!(self.phase, Phase::Up) {
                    self.retry_later(cx, side);
                }
            }
        }
    }

    /// The answer to our repeated offer: the peer may have moved its media.
    fn take_answer(&mut self, cx: &mut Cx<'_>, side: Side, message: &Message) {
        let Some(sdp) = body::sdp(message) else { return };
        let Call { a, b, media, .. } = self;
        let leg = match (side, b) {
            (Side::A, _) => a,
            (Side::B, Some(b)) => b,
            (Side::B, None) => return,
        };
        if leg.sdp.remote.as_ref() != Some(&sdp) && media.note(cx, side, leg, &sdp).is_err() {
            cx.env.stats.media_errors += 1;
        }
    }

    /// 422: again with the interval that the peer wants (RFC 4028 §7.4).
    fn longer_interval(&mut self, cx: &mut Cx<'_>, side: Side, message: &Message) {
        let min = message.number(HeaderName::MinSe).ok().flatten();
        let Some(leg) = self.leg_mut(side) else { return };
        match (&mut leg.timer, min) {
            (Some(timer), Some(min)) if min > timer.expires_s => {
                timer.expires_s = min;
                self.refresh(cx, side);
            }
            (_, _) => self.retry_later(cx, side),
        }
    }

    /// 491: again after a while that depends on who made the Call-ID (RFC 3261 §14.1).
    fn retry_after_glare(&mut self, cx: &mut Cx<'_>, side: Side) {
        let rng = cx.ids().rng();
        let ms = match side {
            Side::A => rng.random_range(0..=2000),
            Side::B => rng.random_range(2100..=4000),
        };
        let at = cx.now + Duration::from_millis(ms);
        let key = self.key;
        cx.disarm(&mut self.timers.retry[slot(side)]);
        self.timers.retry[slot(side)] = Some(cx.arm(at, key, CallTimer::Retry(side)));
    }

    /// The wait after 491 is over.
    pub(crate) fn retry_reinvite(&mut self, cx: &mut Cx<'_>, side: Side) {
        self.timers.retry[slot(side)] = None;
        if !matches!(self.phase, Phase::Up) {
            return;
        }
        if self.pending_offer(side, false).is_some() {
            return self.retry_after_glare(cx, side);
        }
        self.refresh(cx, side);
    }
}

/// Session-Expires of a request of ours; who refreshes stays as it is (RFC 4028 §7.4).
pub(crate) fn ask(out: &mut Builder, timer: &SessionTimer) {
    let refresher = if timer.we_refresh { "uac" } else { "uas" };
    out.header(HeaderName::SessionExpires, (timer.expires_s, ";refresher=", refresher));
}
