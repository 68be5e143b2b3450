//! Calls that are being set up as records, and back (`early-dialogs`): how the caller of a phone that
//! rings gets its answer although the node that called the phone is gone.
//!
//! Written when our INVITE leaves and whenever a provisional response or a request in an early dialog
//! changes what another node would need; never waited for. The record lies where that of the answered
//! call will lie, and goes when the call ends.

use bytes::Bytes;
use smallvec::SmallVec;
use std::time::Duration;

use super::attempt::forget_attempt;
use super::call::{
    Attempt, Call, CallKey, CallTimer, DialogRef, Facts, Fork, Leg, Phase, ReliableMap, Setup,
    Trying,
};
use super::cdr::{CdrAttempt, Written};
use super::env::{Cx, Purpose};
use super::progress::forget_forks;
use super::record::{AttemptRecord, CallRecord, EarlyRecord, FailedRecord, ForkRecord, LegRecord};
use super::restore::{leg_record, restored_leg};
use super::table::Calls;
use super::{body, hide, invite, wire};
use crate::core::{Destination, Record};
use crate::dialog::Outgoing;
use crate::ids::{Branch, ShardHint};
use crate::media::Side;
use crate::net::{Flow, Target, Transport};
use crate::routing::{Caller, Plan};
use crate::sip::{self, Message, Method};
use crate::transaction::{AdoptedServer, ClientRequest, Large, ServerId};

/// What the messages and descriptions of one record may have together; a call beyond it is not written.
const BYTES_MAX: usize = 24 * 1024;
/// How often one call is written before its answer; what changes after that is not written.
const WRITES_MAX: u8 = 16;
/// How long a write may take until it is taken for not made.
const WAIT: Duration = Duration::from_secs(5);

impl Call {
    /// Writes the call as it is while it has no final response, where that is wanted.
    pub(crate) fn store_early(&mut self, cx: &mut Cx<'_>) {
        let policy = &cx.env.config.calls;
        let wanted = policy.early_records && policy.commit_wait.is_some();
        if !wanted || self.setup_mut().is_none_or(|s| s.early_writes >= WRITES_MAX) {
            return;
        }
        let Some(record) = self.early_record(cx) else { return };
        if record.early.as_ref().is_some_and(|early| bytes_of(&record, early) > BYTES_MAX) {
            cx.env.stats.early_too_large += 1;
            return;
        }
        if let Some(setup) = self.setup_mut() {
            setup.early_writes += 1;
        }
        if self.facts.written == Written::Never {
            self.facts.written = Written::Unsure;
        }
        cx.store(self.key, Record::Call(Box::new(record)), Some(WAIT));
    }

    fn early_record(&mut self, cx: &mut Cx<'_>) -> Option<CallRecord> {
        let Phase::Setup(setup) = &self.phase else { return None };
        let trying = setup.trying.as_ref()?;
        let heard = body::sdp(&setup.invite);
        let provisional = cx.env.txn.last_response(setup.server);
        let waits = setup.reliable.waiting.as_ref();
        let attempts: Vec<_> =
            trying.attempts.iter().filter_map(|attempt| attempt_record(cx, attempt)).collect();
        let b = attempts.first()?.leg.clone();
        let early = EarlyRecord {
            invite: setup.invite.as_bytes().clone(),
            transport: setup.flow.transport,
            local: setup.flow.local,
            remote: setup.flow.remote,
            unacknowledged: waits.is_some(),
            provisional: waits.map_or(provisional, |w| w.response.clone()),
            rseq: setup.reliable.last(),
            ringing_ms: self.facts.ringing_ms,
            failed: self.facts.attempts.iter().map(failed_record).collect(),
            attempts,
        };
        let a = lean(leg_record(cx, &self.a), heard.as_ref(), None);
        let streams = self.stream_records(cx);
        self.revision += 1;
        Some(CallRecord {
            id: self.key.id,
            shard_hash: self.hint.0,
            a,
            b,
            early: Some(Box::new(early)),
            streams,
            started_ms: self.facts.started_ms,
            answered_ms: 0,
            ends_by_ms: None,
            dialled: str::to_owned(&self.facts.dialled),
            answer: None,
            revision: self.revision,
        })
    }

    /// Lets go of a call in the making that another node carries on: nobody hears of it.
    pub(crate) fn leave_early(&mut self, cx: &mut Cx<'_>) {
        let Phase::Setup(mut setup) = std::mem::replace(&mut self.phase, Phase::Ending) else {
            return;
        };
        cx.disarm(&mut setup.reliable_timer);
        for mut attempt in setup.trying.take().map(|t| t.attempts).into_iter().flatten() {
            cx.disarm(&mut attempt.timer);
            forget_forks(cx, &attempt, None);
            forget_attempt(cx, &attempt);
            if let Some(client) = attempt.client {
                cx.env.txn.leave(client);
            }
        }
        if let Some(held) = setup.committing.take() {
            cx.env.stores.remove(&held.store);
        }
        for exchange in std::mem::take(&mut self.exchanges) {
            if let Some(client) = exchange.client {
                cx.env.txn.leave(client);
            }
            if let Some(asked) = &exchange.asked {
                cx.env.txn.forget(asked.server);
            }
        }
        cx.env.txn.forget(setup.server);
        cx.env.tags.remove(&setup.a_tag);
        self.release(cx);
    }
}

/// A leg without what stands in the messages of the record: nothing is written twice.
fn lean(mut leg: LegRecord, heard: Option<&Bytes>, said: Option<&Bytes>) -> LegRecord {
    leg.sdp_remote = leg.sdp_remote.filter(|sdp| Some(sdp) != heard);
    leg.sdp_local = leg.sdp_local.filter(|sdp| Some(sdp) != said);
    leg
}

/// `None` for a place to which nothing was sent yet, or whose final response has come.
fn attempt_record(cx: &mut Cx<'_>, attempt: &Attempt) -> Option<AttemptRecord> {
    let leg = attempt.leg.as_ref()?;
    let request = cx.env.txn.request_of(attempt.client?)?;
    let said = sip::parse(request.clone(), &cx.env.config.limits).ok()?;
    let said = body::sdp(&said);
    let fork = |fork: &Fork| ForkRecord {
        number: fork.number,
        a_tag: str::to_owned(&fork.a_tag),
        leg: lean(leg_record(cx, &fork.leg), None, said.as_ref()),
        rseq: fork.rseq,
        reliable: fork.reliable.map(|r| (r.a_rseq, r.b_rseq)),
        described: fork.answer.is_some(),
    };
    Some(AttemptRecord {
        leg: lean(leg_record(cx, leg), None, said.as_ref()),
        request,
        proceeding: attempt.proceeding,
        challenges: attempt.challenges,
        min_se: attempt.min_se,
        forks: attempt.forks.iter().map(fork).collect(),
    })
}

fn failed_record(failed: &CdrAttempt) -> FailedRecord {
    let CdrAttempt { trunk, peer, status } = failed;
    FailedRecord { trunk: str::to_owned(trunk), peer: *peer, status: *status }
}

/// What can be large in a record.
fn bytes_of(record: &CallRecord, early: &EarlyRecord) -> usize {
    let leg = |leg: &LegRecord| {
        [&leg.sdp_local, &leg.sdp_remote].into_iter().flatten().map(Bytes::len).sum::<usize>()
            + leg.routes.iter().map(String::len).sum::<usize>()
    };
    let attempt = |a: &AttemptRecord| {
        a.request.len() + leg(&a.leg) + a.forks.iter().map(|f| leg(&f.leg)).sum::<usize>()
    };
    early.invite.len()
        + early.provisional.len()
        + leg(&record.a)
        + early.attempts.iter().map(attempt).sum::<usize>()
}

/// A record read and found usable here.
struct Found {
    invite: Message,
    flow: Flow,
    a: Leg,
    places: Vec<Place>,
}

/// One place being tried.
struct Place {
    branch: Branch,
    /// The INVITE went by TCP for its size alone.
    by_tcp: bool,
    /// The dialog to be, whose CSeq is that of our INVITE.
    leg: Leg,
    forks: Vec<Leg>,
}

impl Found {
    fn read(cx: &Cx<'_>, record: &CallRecord, early: &EarlyRecord) -> Option<Found> {
        let invite = sip::parse(early.invite.clone(), &cx.env.config.limits).ok()?;
        let a = early_leg(cx, &record.a, body::sdp(&invite).as_ref(), None)?;
        let flow = Flow {
            interface: a.hop.interface,
            transport: early.transport,
            local: early.local,
            remote: early.remote,
            conn: None,
        };
        let places = early.attempts.iter().map(|attempt| Place::read(cx, attempt));
        let places: Vec<Place> = places.collect::<Option<_>>()?;
        (!places.is_empty()).then_some(Found { places, invite, flow, a })
    }
}

impl Place {
    fn read(cx: &Cx<'_>, record: &AttemptRecord) -> Option<Place> {
        let request = sip::parse(record.request.clone(), &cx.env.config.limits).ok()?;
        let via = request.via().ok()?;
        let said = body::sdp(&request);
        let mut leg = early_leg(cx, &record.leg, None, said.as_ref())?;
        leg.dialog.local_seq = record.leg.local_seq;
        leg.dialog.remote_seq = None;
        let forks = record.forks.iter().map(|f| early_leg(cx, &f.leg, None, said.as_ref()));
        Some(Place {
            branch: Branch::parse(via.branch().as_bytes())?,
            by_tcp: leg.hop.target.transport == Transport::Udp
                && via.transport.eq_ignore_ascii_case("TCP"),
            forks: forks.collect::<Option<_>>()?,
            leg,
        })
    }
}

/// A leg whose record left out what stands in a message.
fn early_leg(
    cx: &Cx<'_>,
    record: &LegRecord,
    heard: Option<&Bytes>,
    said: Option<&Bytes>,
) -> Option<Leg> {
    let mut leg = restored_leg(cx, record)?;
    leg.sdp.remote = leg.sdp.remote.or(heard.cloned());
    leg.sdp.local = leg.sdp.local.or(said.cloned());
    leg.acked = None;
    leg.origin = record.next_hop.map(|addr| addr.ip());
    Some(leg)
}

impl Calls {
    /// Carries on a call of another node that has no final response yet. Its addresses came along.
    pub(crate) fn adopt_early(
        &mut self,
        cx: &mut Cx<'_>,
        record: &CallRecord,
        early: &EarlyRecord,
    ) {
        let adopted = Found::read(cx, record, early).and_then(|found| {
            let server = AdoptedServer {
                flow: found.flow,
                invite: found.invite.clone(),
                provisional: early.provisional.clone(),
            };
            let query = invite::query(&found.invite, &found.a.trunk).ok()?;
            let tried: SmallVec<[&str; 4]> = early.failed.iter().map(|f| &*f.trunk).collect();
            let (source, target) = (&found.a.trunk, &found.places.first()?.leg.trunk);
            let plan = cx.env.routing.route_on(cx.now, source, &query, target, &tried);
            // None when the INVITE came again before this and is a call of its own by now.
            let server = cx.env.txn.adopt_server(cx.now, server)?;
            let ways: Vec<_> = found.places.iter().map(|p| (p.branch, p.by_tcp)).collect();
            let key = self.insert(cx, record.id, |cx, key| {
                let setup = restored_setup(cx, key, record, early, (server, plan), &found);
                restored_call(cx, key, record, early, setup, found)
            })?;
            cx.own_server(server, Purpose::Invite { call: key, attempt: 0 });
            Some((key, ways))
        });
        let Some((key, ways)) = adopted else {
            cx.env.stats.adopt_failed += 1;
            return;
        };
        cx.env.stats.adopted += 1;
        self.with(cx, key, |call, cx| {
            call.take_media(cx, record);
            for ((number, attempt), (branch, by_tcp)) in (1..).zip(&early.attempts).zip(ways) {
                call.resume_attempt(cx, number, attempt, branch, by_tcp);
            }
        });
    }
}

fn restored_setup(
    cx: &mut Cx<'_>,
    key: CallKey,
    record: &CallRecord,
    early: &EarlyRecord,
    (server, plan): (ServerId, Plan),
    found: &Found,
) -> Setup {
    let a_tag: Box<str> = record.a.local_tag.as_str().into();
    cx.env.tags.insert(a_tag.clone(), DialogRef { call: key, side: Side::A, fork: 0 });
    let mut attempts = SmallVec::new();
    for ((number, record), place) in (1..).zip(&early.attempts).zip(&found.places) {
        let by_tag = DialogRef { call: key, side: Side::B, fork: 0 };
        cx.env.tags.insert(place.leg.dialog.local_tag.clone(), by_tag);
        let mut forks = SmallVec::new();
        for (fork, leg) in record.forks.iter().zip(&place.forks) {
            let tag: Box<str> = fork.a_tag.as_str().into();
            let dialog = DialogRef { call: key, side: Side::A, fork: fork.number };
            cx.env.tags.insert(tag.clone(), dialog);
            forks.push(Fork {
                number: fork.number,
                a_tag: tag,
                leg: leg.clone(),
                rseq: fork.rseq,
                reliable: fork.reliable.map(|(a_rseq, b_rseq)| ReliableMap { a_rseq, b_rseq }),
                answer: fork.described.then(|| found.a.sdp.local.clone().unwrap_or_default()),
            });
        }
        attempts.push(Attempt {
            number,
            leg: Some(place.leg.clone()),
            forks,
            proceeding: record.proceeding,
            challenges: record.challenges,
            min_se: record.min_se,
            ..Attempt::default()
        });
    }
    let permit = found.places.first().and_then(|p| cx.env.routing.carry_on(cx.now, &p.leg.trunk));
    let forks = || early.attempts.iter().flat_map(|a| &a.forks);
    let a_tag_described = forks().any(|f| f.described && *f.a_tag == *a_tag);
    let mut setup = Setup {
        server,
        invite: found.invite.clone(),
        flow: found.flow,
        a_tag,
        plan,
        next_hop: 1,
        attempts: u16::try_from(attempts.len()).unwrap_or(u16::MAX),
        trying: Some(Trying { hop: 0, contacts: Vec::new(), permit, attempts, over: false }),
        failure: None,
        insecure: false,
        reliable: Outgoing::after(early.rseq),
        reliable_timer: None,
        replaced: None,
        committing: None,
        early_writes: 0,
        a_tag_described,
        requires_100rel: hide::has_option(&found.invite, sip::HeaderName::Require, "100rel"),
    };
    if early.unacknowledged {
        let t1 = cx.env.txn.config().timers.t1;
        let response = early.provisional.clone();
        let status = sip::parse(response.clone(), &cx.env.config.limits).ok();
        let status = status.and_then(|m| m.status()).unwrap_or(183);
        setup.reliable.wait_for(early.rseq, status, response, cx.now, t1);
        setup.reliable_timer = Some(cx.arm(cx.now + t1, key, CallTimer::Reliable));
    }
    setup
}

fn restored_call(
    cx: &mut Cx<'_>,
    key: CallKey,
    record: &CallRecord,
    early: &EarlyRecord,
    setup: Setup,
    found: Found,
) -> Call {
    let text = |v: Option<&str>| v.unwrap_or("").into();
    let facts = Facts {
        started_ms: record.started_ms,
        ringing_ms: early.ringing_ms,
        answered_ms: None,
        ends_by_ms: None,
        dialled: record.dialled.as_str().into(),
        from: text(found.invite.from().ok().map(|f| f.uri_str)),
        to: text(found.invite.to().ok().map(|t| t.uri_str)),
        attempts: early
            .failed
            .iter()
            .map(|f| CdrAttempt { trunk: f.trunk.as_str().into(), peer: f.peer, status: f.status })
            .collect(),
        tried: None,
        status: 0,
        reason: "".into(),
        ended_by: None,
        end_reason: None,
        protected: false,
        written: Written::Committed,
    };
    // Counted, never refused: the call was admitted where it began.
    let source = cx.env.routing.admit(cx.now, &found.a.trunk, true).ok();
    let user = found.a.trunk.config.users.then(|| invite::aor_of(&facts.from));
    let number = match setup.plan.targets.first() {
        Some(hop) => hop.numbers.ruri.clone(),
        None => String::new(),
    };
    let caller =
        cx.env.routing.admit_caller(cx.now, &Caller::of(user.as_deref()), &number, true).ok();
    let phase = Phase::Setup(Box::new(setup));
    let mut call = Call::new(cx, key, ShardHint(record.shard_hash), phase, found.a, facts);
    call.permits.extend(source.into_iter().chain(caller));
    call.revision = record.revision;
    call
}

impl Call {
    /// Goes on with our INVITE where the other node left it, with what is left of the time to ring.
    fn resume_attempt(
        &mut self,
        cx: &mut Cx<'_>,
        number: u16,
        record: &AttemptRecord,
        branch: Branch,
        by_tcp: bool,
    ) {
        let key = self.key;
        let ring_default = cx.env.config.calls.ring_timeout;
        let started_ms = self.facts.ringing_ms.unwrap_or(self.facts.started_ms);
        let Some(attempt) = self.attempt_mut(number) else { return };
        let Some(leg) = &attempt.leg else { return };
        let dest = match wire::destination(&leg.hop) {
            Destination::Target { interface, target } if by_tcp => Destination::Target {
                interface,
                target: Target { transport: Transport::Tcp, ..target },
            },
            dest => dest,
        };
        let left = if record.proceeding {
            let all = leg.trunk.config.ring_timeout.unwrap_or(ring_default);
            let rung = Duration::from_millis(cx.unix_ms().saturating_sub(started_ms));
            Some(all.saturating_sub(rung))
        } else {
            leg.trunk.config.failover.no_answer
        };
        attempt.timer = left.map(|left| cx.arm(cx.now + left, key, CallTimer::Attempt(number)));
        let request = ClientRequest {
            owner: Purpose::Invite { call: key, attempt: number }.seal(),
            branch,
            method: Method::Invite,
            dest,
            data: record.request.clone(),
            timeout: None,
            large: Large::Udp,
        };
        match cx.env.txn.adopt_client(cx.now, request, record.proceeding) {
            Ok(client) => attempt.client = Some(client),
            Err(_) => self.attempt_failed(cx, number, 503, None),
        }
    }
}
