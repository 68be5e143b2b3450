//! The 2xx of leg B: one fork wins, the dialog is committed, the caller is answered.

use bytes::Bytes;
use std::time::Duration;

use super::answer::{Passing, Refusal, Role};
use super::call::{Call, CallTimer, Committing, DialogRef, Hop, Leg, OkWait, Phase};
use super::cdr::{CdrAttempt, EndCause, EndedBy, Written};
use super::env::{Cx, Purpose, Sent};
use super::hide::{self, Crossing};
use super::progress::forget_forks;
use super::repeat::answer_record;
use super::{body, wire};
use crate::core::Record;
use crate::dialog::{self, Dialog, SessionTimer, Wish};
use crate::media::Side;
use crate::net::{Flow, Target};
use crate::routing::{SessionTimerMode, SessionTimerPolicy};
use crate::sip::{Builder, HeaderName, Message, Method};
use crate::transaction::OkRetransmit;

impl Call {
    /// A 2xx to the INVITE of attempt n while the caller has no final response.
    pub(crate) fn answered(&mut self, cx: &mut Cx<'_>, number: u16, message: &Message) {
        let Phase::Setup(setup) = &self.phase else { return };
        if setup.committing.is_some() {
            if !self.b.as_ref().is_some_and(|b| is_answer_in(&b.dialog, message)) {
                hang_up_stray(cx, message, None);
            }
            return;
        }
        if let Err(refusal) = self.win(cx, number, message) {
            // The call fails on our account: B is answered, so it gets ACK and BYE.
            hang_up_stray(cx, message, None);
            self.b = None;
            let retry = refusal.retry.then_some(cx.env.config.calls.retry_after_s);
            let by = EndedBy::Sbc(EndCause::Media);
            self.fail(cx, refusal.status, refusal.reason, None, retry, by);
        }
    }

    /// Makes the fork that answered leg B and writes the 2xx for A.
    fn win(&mut self, cx: &mut Cx<'_>, number: u16, message: &Message) -> Result<(), Refusal> {
        let lost = Refusal { status: 500, reason: "", retry: false };
        let fork = self.fork_of(cx, number, message).ok_or(lost)?;
        let mut attempt = self.take_attempt(number).ok_or(lost)?;
        cx.disarm(&mut attempt.timer);
        self.leave_attempts(cx, Some(ELSEWHERE));
        let Phase::Setup(setup) = &mut self.phase else { return Err(lost) };
        let trying = setup.trying.take();
        cx.disarm(&mut setup.reliable_timer);
        setup.reliable.waiting = None;
        let fork = attempt.forks.iter().position(|f| f.number == fork).ok_or(lost)?;
        let winner = attempt.forks.get(fork).ok_or(lost)?;
        forget_forks(cx, &attempt, Some(&winner.a_tag));
        if setup.a_tag != winner.a_tag {
            cx.env.tags.remove(&setup.a_tag);
        }
        let mut fork = attempt.forks.swap_remove(fork);
        fork.leg.dialog.routes = wire::route_set(message, true);
        let to_a = DialogRef { call: self.key, side: Side::A, fork: 0 };
        cx.env.tags.insert(fork.a_tag.clone(), to_a);
        self.a.dialog.local_tag = fork.a_tag.clone();
        self.permits.extend(trying.and_then(|t| t.permit));
        let status = message.status().unwrap_or(200);
        self.facts.attempts.push(CdrAttempt {
            trunk: fork.leg.trunk.config.name.clone(),
            peer: Some(fork.leg.hop.target.addr),
            status,
        });
        let b = self.b.insert(fork.leg);
        let offered = body::sdp(&setup.invite).is_some();
        let role = if offered { Role::Answer } else { Role::Offer };
        let fresh = body::sdp(message);
        // Without a description in the 2xx the one of an earlier reliable response counts; other
        // forks may have turned the media to themselves since.
        let known = b.sdp.remote.clone().filter(|_| offered && fork.answer.is_some());
        let repeat = fresh.is_none() && !self.a.peer.rel100;
        let sdp = match fresh.or(known) {
            None => None,
            Some(sdp) => {
                let passing =
                    Passing { from: Side::B, role, sdp: &sdp, writer: b, reader: &mut self.a };
                Some(self.media.pass(cx, passing)?)
            }
        };
        let sdp = sdp.filter(|_| repeat || body::sdp(message).is_some());
        let client_seq = message.cseq().map_or(1, |c| c.number);
        self.start_session_timers(cx, message);
        let ok = self.ok_text(cx, message, sdp).ok_or(lost)?;
        self.commit(cx, status, ok, client_seq);
        Ok(())
    }

    /// Negotiates the session timer of each leg on its own (RFC 4028).
    fn start_session_timers(&mut self, cx: &mut Cx<'_>, message: &Message) {
        let Phase::Setup(setup) = &self.phase else { return };
        if let Some(b) = &mut self.b {
            let wish = wish(&b.trunk.config.session_timer);
            b.timer = wish.and_then(|wish| {
                SessionTimer::of_uac(wish, wire::session_expires(message), cx.now)
            });
        }
        if let Some(wish) = wish(&self.a.trunk.config.session_timer) {
            let min = setup.invite.number(HeaderName::MinSe).ok().flatten();
            let asked = wire::session_expires(&setup.invite);
            // Too small an interval was refused when the INVITE came.
            let sent = dialog::answer(wish, self.a.peer.timer, asked, min).unwrap_or(None);
            self.a.timer = SessionTimer::of_uas(sent, cx.now);
        }
    }

    /// The 2xx as A sees it.
    fn ok_text(&self, cx: &Cx<'_>, message: &Message, sdp: Option<Bytes>) -> Option<Bytes> {
        let Phase::Setup(setup) = &self.phase else { return None };
        let b = self.b.as_ref()?;
        let status = message.status()?;
        let tag = &self.a.dialog.local_tag;
        let mut out = cx.response(&setup.invite, &setup.flow, status, "", Some(tag));
        out.copy(&setup.invite, HeaderName::RecordRoute);
        let listener = cx.listener(&self.a.hop)?;
        out.header(HeaderName::Contact, wire::Contact(listener, self.a.dialog.secure));
        out.header(HeaderName::Allow, wire::ALLOW);
        self.supported(&mut out, b);
        write_session_expires(&mut out, self.a.timer.as_ref(), self.a.peer.timer);
        let way = Crossing {
            from: &b.trunk.config,
            to: &self.a.trunk.config,
            host: &listener.advertise_host,
            pai_user: None,
        };
        hide::cross(&mut out, message, &way);
        Some(match sdp {
            Some(sdp) => out.finish_with("application/sdp", &sdp),
            None => out.finish(),
        })
    }

    /// Supported: what we do ourselves, and what the other leg does.
    fn supported(&self, out: &mut Builder, other: &Leg) {
        let mut tags: smallvec::SmallVec<[&str; 4]> = smallvec::SmallVec::new();
        tags.push("timer");
        if other.peer.rel100 {
            tags.push("100rel");
        }
        if other.peer.replaces {
            tags.push("replaces");
        }
        out.header(HeaderName::Supported, tags.join(", "));
    }

    /// Holds the 2xx back until the dialog is replicated, where that is wanted.
    fn commit(&mut self, cx: &mut Cx<'_>, status: u16, ok: Bytes, client_seq: u32) {
        let now_ms = cx.unix_ms();
        self.facts.answered_ms = Some(now_ms);
        let Some(wait) = cx.env.config.calls.commit_wait else {
            self.facts.protected = false;
            self.relay_ok(cx, status, ok, client_seq);
            return self.tell_answered(cx);
        };
        let Some(mut record) = self.record(cx) else { return };
        if let Phase::Setup(setup) = &self.phase {
            let offered = body::sdp(&setup.invite).is_some();
            let seq = setup.invite.cseq().map_or(0, |c| c.number);
            record.answer = answer_record(&ok, &setup.flow, offered, seq);
        }
        if self.facts.written == Written::Never {
            self.facts.written = Written::Unsure;
        }
        let store = cx.store(self.key, Record::Call(Box::new(record)), Some(wait));
        if let Phase::Setup(setup) = &mut self.phase {
            setup.committing = Some(Committing { store, status, ok, client_seq });
        }
    }

    /// The dialog is committed, or the wait for it ran out.
    pub(crate) fn stored(&mut self, cx: &mut Cx<'_>, store: crate::core::StoreId, protected: bool) {
        if protected {
            self.facts.written = Written::Committed;
        }
        let Phase::Setup(setup) = &mut self.phase else { return };
        let Some(held) = setup.committing.take_if(|c| c.store == store) else { return };
        self.facts.protected = protected;
        if !protected {
            cx.env.stats.unprotected += 1;
        }
        self.relay_ok(cx, held.status, held.ok, held.client_seq);
    }

    /// Answers the caller; what only the set-up needed is dropped.
    fn relay_ok(&mut self, cx: &mut Cx<'_>, status: u16, ok: Bytes, client_seq: u32) {
        let Phase::Setup(setup) = std::mem::replace(&mut self.phase, Phase::Up) else { return };
        let offered = body::sdp(&setup.invite).is_some();
        self.facts.status = status;
        self.facts.reason = crate::sip::reason_phrase(status).into();
        cx.env.stats.answered += 1;
        cx.env.stats.calls_up += 1;
        cx.respond(self.traced(Side::A), &setup.flow, setup.server, status, ok.clone());
        let server_seq = setup.invite.cseq().map_or(0, |c| c.number);
        let schedule = OkRetransmit::new(cx.now, &cx.env.txn.config().timers);
        let timer = cx.arm(schedule.deadline(), self.key, CallTimer::Ok);
        self.ok_wait = Some(Box::new(OkWait {
            side: Side::A,
            server: setup.server,
            flow: setup.flow,
            status,
            server_seq,
            client_seq: Some(client_seq),
            ok,
            schedule,
            timer,
            offer_in_ok: !offered,
            in_dialog: false,
        }));
        for side in [Side::A, Side::B] {
            self.follow(cx, side, 0);
            self.arm_session(cx, side);
        }
        self.arm_duration(cx);
    }

    /// The call duration limit: the least of the node's and both trunks'.
    fn arm_duration(&mut self, cx: &mut Cx<'_>) {
        let trunk = |leg: Option<&Leg>| leg.and_then(|l| l.trunk.config.max_duration);
        let limits =
            [cx.env.config.calls.max_duration, trunk(Some(&self.a)), trunk(self.b.as_ref())];
        let Some(limit) = limits.into_iter().flatten().min() else { return };
        let ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.facts.ends_by_ms = Some(cx.unix_ms().saturating_add(ms));
        self.timers.duration = Some(cx.arm(cx.now + limit, self.key, CallTimer::Duration));
    }

    /// A repeated 2xx of leg B: its ACK was lost, or is not due yet.
    pub(crate) fn ok_again(&mut self, cx: &mut Cx<'_>, side: Side, message: &Message) {
        let Some(leg) = self.leg(side) else { return hang_up_stray(cx, message, None) };
        if !is_answer_in(&leg.dialog, message) {
            return hang_up_stray(cx, message, None);
        }
        let seq = message.cseq().map_or(0, |c| c.number);
        if let Some((acked, with_body)) = leg.acked
            && acked == seq
        {
            let sdp = leg.sdp.local.clone().filter(|_| with_body);
            self.send_ack(cx, side, seq, sdp);
        }
    }
}

/// Why the other phones of a user stop ringing (RFC 3326).
const ELSEWHERE: &str = "SIP;cause=200;text=\"Call completed elsewhere\"";

/// Whether a response is of this dialog: two phones may choose the same tag.
fn is_answer_in(dialog: &Dialog, message: &Message) -> bool {
    dialog.is(message.call_id().unwrap_or(""), message.to_tag().unwrap_or(""))
}

/// Session timer wishes of a trunk; `None` where it does not use them.
pub(crate) fn wish(policy: &SessionTimerPolicy) -> Option<Wish> {
    let seconds = |d: Duration| u32::try_from(d.as_secs()).unwrap_or(u32::MAX);
    let always = match policy.mode {
        SessionTimerMode::Off => return None,
        SessionTimerMode::Accept => false,
        SessionTimerMode::Require => true,
    };
    Some(Wish { always, expires_s: seconds(policy.expires), min_s: seconds(policy.min_se) })
}

/// Session-Expires of a 2xx of ours, and Require where the peer has to refresh (RFC 4028 §9).
pub(crate) fn write_session_expires(
    out: &mut Builder,
    timer: Option<&SessionTimer>,
    peer_knows: bool,
) {
    let Some(timer) = timer else { return };
    let refresher = if timer.we_refresh { "uas" } else { "uac" };
    // A peer without support would not understand the header.
    if peer_knows {
        if !timer.we_refresh {
            out.header(HeaderName::Require, "timer");
        }
        out.header(HeaderName::SessionExpires, (timer.expires_s, ";refresher=", refresher));
    }
}

/// ACK and BYE for a 2xx that no call wants, from what the response itself says
/// (RFC 3261 §13.2.2.4). `flow` is where it came from, when known.
pub(crate) fn hang_up_stray(cx: &mut Cx<'_>, message: &Message, flow: Option<&Flow>) {
    cx.env.stats.stray_answers += 1;
    let Some((dialog, hop)) = stray_dialog(cx, message, flow) else { return };
    let hint = cx.ids().hints().of_call_id(dialog.call_id.as_bytes());
    let dest = wire::destination(&hop);
    let (forwards, ack) = (wire::MAX_FORWARDS, Method::Ack);
    let seq = dialog.local_seq;
    if let Some((out, _)) = wire::begin_request(cx, hint, &dialog, &hop, &ack, seq, forwards) {
        cx.transmit(None, dest, out.finish());
    }
    let (seq, bye) = (seq.saturating_add(STRAY_STEP), Method::Bye);
    if let Some((out, branch)) = wire::begin_request(cx, hint, &dialog, &hop, &bye, seq, forwards) {
        let (data, purpose) = (out.finish(), Purpose::Stray);
        cx.send(None, Sent { method: bye, branch, dest, data, purpose, timeout: None });
    }
}

/// CSeq of a stray BYE: beyond what the early dialog can have used.
const STRAY_STEP: u32 = 100;

/// The dialog that a 2xx makes, from the response alone.
fn stray_dialog(cx: &Cx<'_>, message: &Message, flow: Option<&Flow>) -> Option<(Dialog, Hop)> {
    let no_tag = |v: crate::sip::NameAddr<'_>| -> Box<str> {
        crate::sip::NameAddr::new(v.display_raw, v.uri_str, "").to_string().into()
    };
    let (from, to) = (message.from().ok()?, message.to().ok()?);
    let dialog = Dialog {
        call_id: message.call_id().ok()?.into(),
        local_tag: from.tag().unwrap_or("").into(),
        remote_tag: to.tag().unwrap_or("").into(),
        local: no_tag(from),
        remote: no_tag(to),
        local_seq: message.cseq().ok()?.number,
        remote_seq: None,
        target: message.contact().ok()??.uri_str.into(),
        routes: wire::route_set(message, true),
        secure: super::secure::is_sips(to.uri_str),
    };
    let hop = match flow {
        Some(flow) => wire::hop_of_flow(flow),
        None => {
            // Our own Via says which interface the INVITE left by.
            let via = message.via().ok()?;
            let listeners = cx
                .env
                .config
                .interfaces
                .iter()
                .flat_map(|i| i.listeners.iter().map(move |l| (i.id, l)));
            let (interface, listener) = listeners.into_iter().find(|(_, l)| {
                l.transport.via_token().eq_ignore_ascii_case(via.transport)
                    && Some(l.advertise_port) == via.port
                    && l.advertise_host.to_string() == via.host
            })?;
            let transport = listener.transport;
            let unknown = Target::new(transport, listener.local);
            let hop = Hop { interface, target: unknown, flow: None, lost: None };
            match wire::next_hop(&dialog, &hop) {
                wire::NextHop::Address(target) => Hop { target, ..hop },
                wire::NextHop::Name(_) | wire::NextHop::Unusable => return None,
            }
        }
    };
    Some((dialog, hop))
}
