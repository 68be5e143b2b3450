//! How calls end: final failures to the caller, BYE on both legs, what is left behind.

use super::attempt::forget_attempt;
use super::call::{Call, CallTimers, ExchangeKind, Phase};
use super::cdr::{Cdr, CdrAttempt, CdrLeg, EndCause, EndedBy};
use super::env::Cx;
use super::exchange::Request;
use super::hide::{self, Crossing};
use super::progress::forget_forks;
use crate::core::{Event, Record};
use crate::media::Side;
use crate::sip::{HeaderName, Message, Method};

impl Call {
    /// Gives the caller a final failure. `message` is the target's response, if it is one of its.
    pub(crate) fn fail(
        &mut self,
        cx: &mut Cx<'_>,
        status: u16,
        reason: &str,
        message: Option<&Message>,
        retry_after_s: Option<u32>,
        by: EndedBy,
    ) {
        let Phase::Setup(setup) = std::mem::replace(&mut self.phase, Phase::Ending) else { return };
        let mut timer = setup.reliable_timer;
        cx.disarm(&mut timer);
        let tag = &self.a.dialog.local_tag;
        let mut out = cx.response(&setup.invite, &setup.flow, status, reason, Some(tag));
        if let Some(seconds) = retry_after_s {
            out.header(HeaderName::RetryAfter, seconds);
        }
        if setup.insecure && status == 480 && message.is_none() {
            super::secure::warn(cx, &setup.flow, &mut out);
        }
        let host = cx.listener(&self.a.hop).map(|l| l.advertise_host.clone());
        if let (Some(message), Some(host)) = (message, host) {
            // The failure is the target's: its trunk says what may cross.
            let from = setup.plan.targets.get(setup.next_hop.saturating_sub(1));
            let from = from.map_or(&self.a.trunk.config, |hop| &hop.trunk.config);
            let way = Crossing { from, to: &self.a.trunk.config, host: &host, pai_user: None };
            hide::cross(&mut out, message, &way);
        }
        let data = out.finish();
        cx.respond(self.traced(Side::A), &setup.flow, setup.server, status, data);
        self.facts.status = status;
        let phrase = if reason.is_empty() { crate::sip::reason_phrase(status) } else { reason };
        self.facts.reason = phrase.into();
        cx.env.tags.remove(&setup.a_tag);
        self.close(cx, by);
    }

    /// Ends a call by our own decision or because a leg did. `gone` needs no BYE.
    pub(crate) fn end(
        &mut self,
        cx: &mut Cx<'_>,
        by: EndedBy,
        gone: Option<Side>,
        reason: Option<&str>,
    ) {
        match &self.phase {
            Phase::Ending => {}
            Phase::Setup(_) => {
                let status = match by {
                    EndedBy::Sbc(EndCause::Operator | EndCause::Shutdown) => 503,
                    EndedBy::Caller => 487,
                    EndedBy::Sbc(_) | EndedBy::Callee => 480,
                };
                self.facts.end_reason = reason.map(Into::into);
                self.abandon(cx, reason);
                self.fail(cx, status, "", None, None, by);
            }
            Phase::Up => {
                self.facts.end_reason = reason.map(Into::into);
                self.refuse_pending(cx);
                self.ack_before_bye(cx);
                for side in [Side::A, Side::B] {
                    if gone != Some(side) {
                        self.send_bye(cx, side, reason);
                    }
                }
                cx.env.stats.calls_up = cx.env.stats.calls_up.saturating_sub(1);
                self.phase = Phase::Ending;
                self.close(cx, by);
                if cx.env.config.calls.commit_wait.is_some() {
                    cx.store(self.key, Record::CallEnded(self.key.id), None);
                }
            }
        }
    }

    /// Leaves what is being tried: CANCEL, or ACK and BYE where it was answered already.
    pub(crate) fn abandon(&mut self, cx: &mut Cx<'_>, reason: Option<&str>) {
        let Phase::Setup(setup) = &mut self.phase else { return };
        let held = setup.committing.take();
        self.leave_attempts(cx, reason);
        if let Phase::Setup(setup) = &mut self.phase {
            setup.trying = None;
        }
        if let Some(held) = held {
            cx.env.stores.remove(&held.store);
            self.send_ack(cx, Side::B, held.client_seq, None);
            self.send_bye(cx, Side::B, reason);
            cx.store(self.key, Record::CallEnded(self.key.id), None);
        }
    }

    /// Cancels what is being tried; the target stays, without an attempt.
    pub(crate) fn leave_attempts(&mut self, cx: &mut Cx<'_>, reason: Option<&str>) {
        let Phase::Setup(setup) = &mut self.phase else { return };
        let Some(trying) = &mut setup.trying else { return };
        trying.contacts.clear();
        for mut attempt in std::mem::take(&mut trying.attempts) {
            cx.disarm(&mut attempt.timer);
            if let Some(leg) = &attempt.leg {
                let trunk = leg.trunk.config.name.clone();
                let peer = Some(leg.hop.target.addr);
                self.facts.attempts.push(CdrAttempt { trunk, peer, status: 487 });
                self.facts.tried = Some(CdrLeg::of(leg));
            }
            forget_forks(cx, &attempt, None);
            forget_attempt(cx, &attempt);
            if let Some(client) = attempt.client {
                cx.cancel(client, reason);
            }
        }
    }

    /// B is answered but A's ACK never came: B must have its ACK before the BYE.
    fn ack_before_bye(&mut self, cx: &mut Cx<'_>) {
        let Some(wait) = self.ok_wait.take() else { return };
        cx.env.timers.cancel(wait.timer);
        if let Some(seq) = wait.client_seq {
            self.send_ack(cx, wait.side.other(), seq, None);
        }
    }

    /// Requests that still wait for the other side when the call ends get 487
    /// (RFC 3261 §15.1.2).
    fn refuse_pending(&mut self, cx: &mut Cx<'_>) {
        let exchanges = std::mem::take(&mut self.exchanges);
        for exchange in exchanges {
            if let Some(asked) = &exchange.asked {
                let out = cx.response(&asked.request, &asked.flow, 487, "", None);
                let data = out.finish();
                let side = exchange.to.other();
                cx.respond(self.traced(side), &asked.flow, asked.server, 487, data);
            }
            if exchange.method == Method::Invite {
                self.cancel_client(cx, exchange.client, None);
            }
        }
    }

    pub(crate) fn send_bye(&mut self, cx: &mut Cx<'_>, side: Side, reason: Option<&str>) {
        if self.leg(side).is_some_and(|leg| !leg.has_way()) {
            return self.hold_bye(cx, side);
        }
        self.start_exchange(cx, Request::own(side, Method::Bye, ExchangeKind::Bye), |out| {
            if let Some(reason) = reason {
                out.header(HeaderName::Reason, reason);
            }
            None
        });
    }

    /// What every end has in common: media, timers, tags, CDR.
    fn close(&mut self, cx: &mut Cx<'_>, by: EndedBy) {
        let media = self.release(cx);
        self.facts.ended_by = Some(by);
        match self.facts.answered_ms.filter(|_| self.facts.status < 300) {
            Some(_) => cx.env.stats.completed += 1,
            None => cx.env.stats.failed += 1,
        }
        let cdr = self.cdr(cx, by, media);
        cx.event(Event::Cdr(Box::new(cdr)));
        self.a.sdp.local = None;
    }

    /// Lets go of a call that another node carries on: no BYE, no CDR. Only what a peer waits for
    /// at this moment is refused, so that no transaction stays behind.
    pub(crate) fn leave(&mut self, cx: &mut Cx<'_>) {
        match &self.phase {
            Phase::Setup(_) => return self.leave_early(cx),
            Phase::Ending => return,
            Phase::Up => {}
        }
        if let Some(wait) = self.ok_wait.take() {
            cx.env.timers.cancel(wait.timer);
        }
        self.refuse_pending(cx);
        self.release(cx);
        cx.env.stats.calls_up = cx.env.stats.calls_up.saturating_sub(1);
        self.phase = Phase::Ending;
    }

    /// Gives media, timers, permits and descriptions back; the last counters of the media.
    pub(crate) fn release(&mut self, cx: &mut Cx<'_>) -> Vec<crate::media::StreamStats> {
        self.end_repeat(cx, None);
        let CallTimers { session, retry, duration, seek: _ } = &mut self.timers;
        for timer in session.iter_mut().chain(retry).chain([duration]) {
            cx.disarm(timer);
        }
        let media = if self.media.open { cx.anchor.close(self.media.id) } else { Vec::new() };
        self.media.open = false;
        self.media.streams.clear();
        self.permits.clear();
        if let (Some(watched), Some(guard)) = (self.watched.take(), &cx.env.guard) {
            let talked = self.facts.answered_ms.map_or(0, |at| cx.unix_ms().saturating_sub(at));
            let talked = std::time::Duration::from_millis(talked);
            guard.call_ended(cx.now, &watched.user, &watched.number, talked);
        }
        for leg in [Some(&mut self.a), self.b.as_mut()].into_iter().flatten() {
            leg.sdp.remote = None;
        }
        if let Some(b) = &mut self.b {
            b.sdp.local = None;
        }
        media
    }

    /// Takes what is left of the call out of the shard's tables; the call is gone after this.
    pub(crate) fn forget(&mut self, cx: &mut Cx<'_>) {
        self.timers.seek.iter_mut().for_each(|timer| cx.disarm(timer));
        if let Some(conn) = self.conn
            && let Some(calls) = cx.env.conns.get_mut(&conn)
        {
            calls.retain(|key| *key != self.key);
            if calls.is_empty() {
                cx.env.conns.remove(&conn);
            }
        }
        cx.env.tags.remove(&self.a.dialog.local_tag);
        if let Some(b) = &self.b {
            cx.env.tags.remove(&b.dialog.local_tag);
        }
    }

    /// Tells the record of a call that was just answered as it would be without another word.
    pub(super) fn tell_answered(&mut self, cx: &mut Cx<'_>) {
        let attempts = self.facts.attempts.to_vec();
        let b = self.b.as_ref().map(CdrLeg::of);
        let crash = EndedBy::Sbc(EndCause::Crash);
        let cdr = self.told(cx, crash, Vec::new(), attempts, b);
        cx.event(Event::Answered(Box::new(cdr)));
    }

    fn cdr(&mut self, cx: &Cx<'_>, by: EndedBy, media: Vec<crate::media::StreamStats>) -> Cdr {
        let attempts = std::mem::take(&mut self.facts.attempts).into_vec();
        let b = self.b.as_ref().map(CdrLeg::of).or(self.facts.tried.take());
        self.told(cx, by, media, attempts, b)
    }

    fn told(
        &self,
        cx: &Cx<'_>,
        by: EndedBy,
        media: Vec<crate::media::StreamStats>,
        attempts: Vec<CdrAttempt>,
        b: Option<CdrLeg>,
    ) -> Cdr {
        let facts = &*self.facts;
        let answered_ms = facts.answered_ms.filter(|_| facts.status < 300);
        Cdr {
            call: self.key.id,
            started_ms: facts.started_ms,
            ringing_ms: facts.ringing_ms,
            answered_ms,
            ended_ms: cx.unix_ms(),
            dialled: str::to_owned(&facts.dialled),
            from: str::to_owned(&facts.from),
            to: str::to_owned(&facts.to),
            a: CdrLeg::of(&self.a),
            b,
            attempts,
            status: facts.status,
            reason: str::to_owned(&facts.reason),
            ended_by: by,
            end_reason: facts.end_reason.as_deref().map(str::to_owned),
            codecs: super::answer::Media::codecs(self.a.sdp.local.as_ref()),
            media,
            protected: facts.protected,
            written: facts.written,
        }
    }

    /// Whether this side's last messages came from where requests to it go.
    pub(crate) fn listener_of<'c>(
        &self,
        cx: &'c Cx<'_>,
        side: Side,
    ) -> Option<&'c crate::net::Listener> {
        cx.listener(&self.leg(side)?.hop)
    }

    pub(crate) fn contact_host(&self, cx: &Cx<'_>, side: Side) -> Option<crate::net::Host> {
        self.listener_of(cx, side).map(|l| l.advertise_host.clone())
    }
}

/// `Reason` for a BYE after the peer of the other leg failed a request (RFC 3326).
pub(crate) fn cause(status: u16) -> String {
    format!("SIP;cause={status};text=\"{}\"", crate::sip::reason_phrase(status))
}
