//! Provisional responses of leg B, and the forks that they open (RFC 3261 §13.2.2.1).

use super::answer::{Passing, Role};
use super::call::{Attempt, Call, CallTimer, DialogRef, Fork, Phase, ReliableMap};
use super::env::Cx;
use super::hide::{self, Crossing};
use super::{body, wire};
use crate::dialog::{Incoming, take_rseq};
use crate::media::Side;
use crate::sip::{HeaderName, Message};
use bytes::Bytes;

impl Call {
    /// A provisional response to the INVITE of attempt n.
    pub(crate) fn progress(&mut self, cx: &mut Cx<'_>, number: u16, message: &Message) {
        self.attempt_proceeds(cx, number);
        let status = message.status().unwrap_or(100);
        let held = self.setup_mut().is_none_or(|s| s.committing.is_some());
        if status == 100 || held {
            return;
        }
        let known = self.fork_count();
        let Some(fork) = self.fork_of(cx, number, message) else { return };
        let rseq = message.number(HeaderName::RSeq).ok().flatten();
        let rseq = rseq.filter(|_| hide::has_option(message, HeaderName::Require, "100rel"));
        if let Some(got) = rseq {
            let Some(f) = self.fork_mut(fork) else { return };
            if take_rseq(&mut f.rseq, got) == Incoming::Drop {
                return;
            }
        }
        let answer = self.early_answer(cx, fork, message, rseq.is_some());
        let news = self.fork_count() > known || answer.is_some() || rseq.is_some();
        self.relay_progress(cx, fork, message, answer, rseq);
        if news {
            self.store_early(cx);
        }
    }

    /// The fork that a response belongs to, made when its To tag is new. `None` when the call has
    /// as many as it may hold.
    pub(crate) fn fork_of(
        &mut self,
        cx: &mut Cx<'_>,
        attempt: u16,
        message: &Message,
    ) -> Option<u8> {
        let forks_max = u8::try_from(cx.env.config.calls.max_forks).unwrap_or(u8::MAX);
        let tag = message.to_tag().unwrap_or("");
        let Phase::Setup(setup) = &mut self.phase else { return None };
        let trying = setup.trying.as_mut()?;
        let number = (0..forks_max).find(|n| trying.forks().all(|f| f.number != *n));
        let apart = trying.forks().all(|f| f.a_tag != setup.a_tag);
        let attempt = trying.attempts.iter_mut().find(|a| a.number == attempt)?;
        if let Some(fork) = attempt.forks.iter_mut().find(|f| *f.leg.dialog.remote_tag == *tag) {
            let leg = &mut fork.leg;
            wire::read_peer(message, &mut leg.peer);
            if wire::refresh_target(message, leg) {
                wire::follow_target(cx, leg);
            }
            return Some(fork.number);
        }
        let number = number?;
        let mut leg = attempt.leg.clone()?;
        leg.dialog.remote_tag = tag.into();
        leg.dialog.routes = wire::route_set(message, true);
        wire::read_peer(message, &mut leg.peer);
        wire::refresh_target(message, &mut leg);
        wire::follow_target(cx, &mut leg);
        // A tag that has carried a description is not used again for another dialog.
        let a_tag = match apart && !setup.a_tag_described {
            true => setup.a_tag.clone(),
            false => cx.ids().tag(self.hint).as_str().into(),
        };
        let by_tag = DialogRef { call: self.key, side: Side::A, fork: number };
        cx.env.tags.insert(a_tag.clone(), by_tag);
        attempt.forks.push(Fork { number, a_tag, leg, rseq: None, reliable: None, answer: None });
        Some(number)
    }

    fn fork_count(&mut self) -> usize {
        self.setup_mut().and_then(|s| s.trying.as_ref()).map_or(0, |t| t.forks().count())
    }

    pub(crate) fn fork_mut(&mut self, fork: u8) -> Option<&mut Fork> {
        self.setup_mut()?.trying.as_mut()?.fork_mut(fork)
    }

    /// A description in a provisional response, rewritten for A. `reliable` ones may be an offer
    /// when the INVITE had none (RFC 3262 §5); unreliable ones never are.
    fn early_answer(
        &mut self,
        cx: &mut Cx<'_>,
        fork: u8,
        message: &Message,
        reliable: bool,
    ) -> Option<Bytes> {
        let sdp = body::sdp(message)?;
        let Call { phase: Phase::Setup(setup), media, a, .. } = self else { return None };
        let offered = body::sdp(&setup.invite).is_some();
        if !offered && !reliable {
            return None;
        }
        let fork = setup.trying.as_mut()?.fork_mut(fork)?;
        let role = if offered { Role::Answer } else { Role::Offer };
        let passing = Passing { from: Side::B, role, sdp: &sdp, writer: &mut fork.leg, reader: a };
        match media.pass(cx, passing) {
            Ok(text) => {
                setup.a_tag_described |= fork.a_tag == setup.a_tag;
                fork.answer = Some(text.clone());
                Some(text)
            }
            // The caller hears ringing instead of early media; the 2xx decides.
            Err(_) => {
                cx.env.stats.media_errors += 1;
                None
            }
        }
    }

    fn relay_progress(
        &mut self,
        cx: &mut Cx<'_>,
        fork: u8,
        message: &Message,
        answer: Option<Bytes>,
        rseq: Option<u32>,
    ) {
        let a_reliable = self.a.peer.rel100;
        let Phase::Setup(setup) = &mut self.phase else { return };
        let must = setup.requires_100rel;
        if let Some(rseq) = rseq.filter(|_| !a_reliable) {
            self.own_prack(cx, fork, rseq, message);
        }
        let Phase::Setup(setup) = &mut self.phase else { return };
        let reliably = a_reliable && (rseq.is_some() || must);
        if reliably && setup.reliable.waiting.is_some() {
            // One at a time (RFC 3262 §3). B repeats what we did not PRACK; what is not reliable
            // there is told with the next one.
            if let Some(f) = self.fork_mut(fork) {
                f.rseq = f.rseq.filter(|_| rseq.is_none()).or(rseq.and_then(|r| r.checked_sub(1)));
            }
            return;
        }
        let a_rseq = reliably.then(|| setup.reliable.next_rseq());
        let (server, flow) = (setup.server, setup.flow);
        let status = message.status().unwrap_or(180);
        let Some(data) = self.progress_text(cx, fork, message, answer, a_rseq) else { return };
        let now_ms = cx.unix_ms();
        self.facts.ringing_ms.get_or_insert(now_ms);
        if let Some(a_rseq) = a_rseq {
            let t1 = cx.env.txn.config().timers.t1;
            let timer = cx.arm(cx.now + t1, self.key, CallTimer::Reliable);
            let Phase::Setup(setup) = &mut self.phase else { return };
            setup.reliable.wait_for(a_rseq, status, data.clone(), cx.now, t1);
            setup.reliable_timer = Some(timer);
            if let (Some(b_rseq), Some(f)) = (rseq, self.fork_mut(fork)) {
                f.reliable = Some(ReliableMap { a_rseq, b_rseq });
            }
        }
        cx.respond(self.traced(Side::A), &flow, server, status, data);
    }

    /// The provisional response as A sees it.
    fn progress_text(
        &mut self,
        cx: &mut Cx<'_>,
        fork: u8,
        message: &Message,
        answer: Option<Bytes>,
        rseq: Option<u32>,
    ) -> Option<Bytes> {
        let Phase::Setup(setup) = &self.phase else { return None };
        let fork = setup.trying.as_ref()?.forks().find(|f| f.number == fork)?;
        let status = message.status()?;
        let mut out = cx.response(&setup.invite, &setup.flow, status, "", Some(&fork.a_tag));
        out.copy(&setup.invite, HeaderName::RecordRoute);
        let listener = cx.listener(&self.a.hop)?;
        out.header(HeaderName::Contact, wire::Contact(listener, self.a.dialog.secure));
        out.header(HeaderName::Allow, wire::ALLOW);
        if let Some(rseq) = rseq {
            out.header(HeaderName::Require, "100rel").header(HeaderName::RSeq, rseq);
        }
        let host = listener.advertise_host.clone();
        let way = Crossing {
            from: &fork.leg.trunk.config,
            to: &self.a.trunk.config,
            host: &host,
            pai_user: None,
        };
        hide::cross(&mut out, message, &way);
        Some(match answer {
            Some(sdp) => out.finish_with("application/sdp", &sdp),
            None => out.finish(),
        })
    }
}

/// Takes the tags of an attempt's forks out of the table, but one.
pub(crate) fn forget_forks(cx: &mut Cx<'_>, attempt: &Attempt, keep: Option<&str>) {
    for fork in attempt.forks.iter().filter(|f| Some(&*f.a_tag) != keep) {
        cx.env.tags.remove(&fork.a_tag);
    }
}
