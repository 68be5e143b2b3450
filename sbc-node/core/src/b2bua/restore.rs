//! A call as a record, and back: how a node carries on what another node had up.
//!
//! When a record is adopted is the cluster's decision, told by `Input::Adopt`.

use smallvec::SmallVec;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::answer::{StreamSide, StreamState, family};
use super::call::{Call, CallKey, CallTimer, DialogRef, Facts, Hop, Leg, Peer, Phase, SdpState};
use super::cdr::Written;
use super::env::Cx;
use super::record::{CallRecord, LegRecord, SessionTimerRecord, StreamRecord, StreamSideRecord};
use super::table::Calls;
use super::wire;
use crate::core::{AdoptMode, Record};
use crate::dialog::{Dialog, SessionTimer};
use crate::ids::ShardHint;
use crate::media::{Side, SideSpec, Taken};
use crate::net::{InterfaceId, Target};
use crate::routing::Caller;

impl Call {
    /// Everything another node needs to carry the call on.
    pub(crate) fn record(&mut self, cx: &mut Cx<'_>) -> Option<CallRecord> {
        let b = self.b.as_ref()?;
        let (a, b) = (leg_record(cx, &self.a), leg_record(cx, b));
        let streams = self.stream_records(cx);
        self.revision += 1;
        Some(CallRecord {
            id: self.key.id,
            shard_hash: self.hint.0,
            a,
            b,
            early: None,
            streams,
            started_ms: self.facts.started_ms,
            answered_ms: self.facts.answered_ms.unwrap_or(self.facts.started_ms),
            ends_by_ms: self.facts.ends_by_ms,
            dialled: str::to_owned(&self.facts.dialled),
            answer: None,
            revision: self.revision,
        })
    }

    /// What each stream is anchored on, and where its peers are.
    pub(crate) fn stream_records(&self, cx: &mut Cx<'_>) -> Vec<StreamRecord> {
        // Before the first write nothing can have been latched.
        let known = self.revision > 0 && self.media.open;
        let latched = if known { cx.anchor.stats(self.media.id) } else { Vec::new() };
        let side = |side: &StreamSide, latched: Option<SocketAddr>| StreamSideRecord {
            local: side.local,
            interface: side.spec.map_or_else(String::new, |s| interface_name(cx, s.interface)),
            ipv6: side.spec.is_some_and(|s| s.ipv6),
            remote: side.remote.clone(),
            latched,
        };
        let record = |(index, s): (usize, &StreamState)| {
            let stats = latched.get(index);
            let a = side(&s.a, stats.and_then(|s| s.a.latched));
            let b = side(&s.b, stats.and_then(|s| s.b.latched));
            StreamRecord { kind: s.kind, a, b }
        };
        self.media.streams.iter().enumerate().map(record).collect()
    }

    /// Writes the call again after a change that another node would need.
    pub(crate) fn store_change(&mut self, cx: &mut Cx<'_>) {
        if cx.env.config.calls.commit_wait.is_none() {
            return;
        }
        if matches!(self.phase, Phase::Setup(_)) {
            self.store_early(cx);
        } else if let Some(record) = self.record(cx) {
            cx.store(self.key, Record::Call(Box::new(record)), None);
        }
    }
}

fn interface_name(cx: &Cx<'_>, id: InterfaceId) -> String {
    let found = cx.env.config.interfaces.get(usize::from(id.0));
    found.map_or_else(String::new, |i| str::to_owned(&i.name))
}

pub(crate) fn leg_record(cx: &Cx<'_>, leg: &Leg) -> LegRecord {
    let d = &leg.dialog;
    LegRecord {
        trunk: str::to_owned(&leg.trunk.config.name),
        interface: interface_name(cx, leg.hop.interface),
        call_id: str::to_owned(&d.call_id),
        local_tag: str::to_owned(&d.local_tag),
        remote_tag: str::to_owned(&d.remote_tag),
        local: str::to_owned(&d.local),
        remote: str::to_owned(&d.remote),
        local_seq: d.local_seq,
        remote_seq: d.remote_seq.unwrap_or(0),
        target: str::to_owned(&d.target),
        routes: d.routes.iter().map(|r| str::to_owned(r)).collect(),
        secure: d.secure,
        transport: leg.hop.target.transport,
        next_hop: Some(leg.hop.target.addr),
        connection: leg.by_connection(),
        allow: leg.peer.allow,
        supported: leg.peer.bits(),
        session_timer: leg
            .timer
            .map(|t| SessionTimerRecord { expires_s: t.expires_s, we_refresh: t.we_refresh }),
        sdp_session: leg.sdp.session,
        sdp_version: leg.sdp.version,
        sdp_local: leg.sdp.local.clone(),
        sdp_remote: leg.sdp.remote.clone(),
    }
}

/// How far our `o=` version jumps when a call is taken over: past anything that the other node may
/// have said without writing it.
const VERSION_STEP: u64 = 100;

impl Calls {
    /// Carries on a call of another node.
    pub(crate) fn adopt(&mut self, cx: &mut Cx<'_>, record: &CallRecord, mode: AdoptMode) {
        if self.find(record.id).is_some() || self.has_ended(record.id) {
            return;
        }
        if let Some(early) = &record.early {
            return match mode {
                AdoptMode::Address => self.adopt_early(cx, record, early),
                // Nobody could reach us: the answer goes where the INVITE came from.
                AdoptMode::Reinvite => cx.env.stats.adopt_failed += 1,
            };
        }
        let (a, b) = (restored_leg(cx, &record.a), restored_leg(cx, &record.b));
        let (Some(a), Some(b)) = (a, b) else {
            // The trunk or interface is not configured here: nobody could carry the call on.
            cx.env.stats.adopt_failed += 1;
            return;
        };
        let key = self.insert(cx, record.id, |cx, key| restored_call(cx, key, record, a, b));
        let Some(key) = key else { return };
        cx.env.stats.adopted += 1;
        cx.env.stats.calls_up += 1;
        self.with(cx, key, |call, cx| {
            for (side, leg) in [(Side::A, &record.a), (Side::B, &record.b)] {
                if leg.connection {
                    call.lose_connection(cx, side);
                }
            }
            match mode {
                AdoptMode::Address => {
                    call.take_media(cx, record);
                    call.repeat_answer(cx, record);
                }
                AdoptMode::Reinvite => call.move_media(cx, record),
            }
        });
    }
}

fn restored_call(cx: &mut Cx<'_>, key: CallKey, record: &CallRecord, a: Leg, b: Leg) -> Call {
    for (leg, side) in [(&a, Side::A), (&b, Side::B)] {
        let dialog = DialogRef { call: key, side, fork: 0 };
        cx.env.tags.insert(leg.dialog.local_tag.clone(), dialog);
    }
    // Counted, never refused: the call was admitted where it began.
    let source = cx.env.routing.admit(cx.now, &a.trunk, true).ok();
    let target = cx.env.routing.carry_on(cx.now, &b.trunk);
    let uri = |name: &str| -> Box<str> { wire::uri_of(name).into() };
    let user = a.trunk.config.users.then(|| super::invite::aor_of(wire::uri_of(&a.dialog.remote)));
    let number = wire::uri_of(&b.dialog.remote);
    let number = crate::sip::UriRef::parse(number).ok().and_then(|u| u.user()).unwrap_or("");
    let caller =
        cx.env.routing.admit_caller(cx.now, &Caller::of(user.as_deref()), number, true).ok();
    let facts = Facts {
        started_ms: record.started_ms,
        ringing_ms: None,
        answered_ms: Some(record.answered_ms),
        ends_by_ms: record.ends_by_ms,
        dialled: record.dialled.as_str().into(),
        from: uri(&record.a.remote),
        to: uri(&record.a.local),
        attempts: SmallVec::new(),
        tried: None,
        status: 200,
        reason: "OK".into(),
        ended_by: None,
        end_reason: None,
        protected: true,
        written: Written::Committed,
    };
    let mut call = Call::new(cx, key, ShardHint(record.shard_hash), Phase::Up, a, facts);
    call.b = Some(b);
    call.permits.extend(source.into_iter().chain(target).chain(caller));
    call.revision = record.revision;
    for side in [Side::A, Side::B] {
        call.arm_session(cx, side);
    }
    if let Some(ends_by_ms) = record.ends_by_ms {
        let left = Duration::from_millis(ends_by_ms.saturating_sub(cx.unix_ms()));
        call.timers.duration = Some(cx.arm(cx.now + left, key, CallTimer::Duration));
    }
    call
}

/// A leg from its record; `None` when its trunk or interface does not exist here.
pub(crate) fn restored_leg(cx: &Cx<'_>, record: &LegRecord) -> Option<Leg> {
    let trunk = cx.env.routing.table().trunk_by_name(&record.trunk)?.clone();
    let interface = interface_by_name(cx, &record.interface)?;
    let transport = record.transport;
    let unknown = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), transport.default_port());
    let target = Target::new(transport, record.next_hop.unwrap_or(unknown));
    let lost = record.connection.then(|| target.addr.ip());
    let timer = record.session_timer.map(|t| SessionTimer {
        expires_s: t.expires_s,
        we_refresh: t.we_refresh,
        since: cx.now,
    });
    Some(Leg {
        trunk,
        dialog: Dialog {
            call_id: record.call_id.as_str().into(),
            local_tag: record.local_tag.as_str().into(),
            remote_tag: record.remote_tag.as_str().into(),
            local: record.local.as_str().into(),
            remote: record.remote.as_str().into(),
            local_seq: record.local_seq.saturating_add(cx.env.config.calls.adopt_cseq_step),
            remote_seq: Some(record.remote_seq),
            target: record.target.as_str().into(),
            routes: record.routes.iter().map(|r| r.as_str().into()).collect(),
            secure: record.secure,
        },
        hop: Hop { interface, target, flow: None, lost },
        peer: Peer::from_bits(record.allow, record.supported),
        timer,
        sdp: SdpState {
            session: record.sdp_session,
            version: record.sdp_version.saturating_add(VERSION_STEP),
            local: record.sdp_local.clone(),
            remote: record.sdp_remote.clone(),
            ipv6: family(record.sdp_remote.as_ref()),
        },
        // A 2xx that still comes for the INVITE of the record wants an ACK, not a BYE.
        acked: Some((record.local_seq, false)),
        moved: false,
        origin: None,
    })
}

fn interface_by_name(cx: &Cx<'_>, name: &str) -> Option<InterfaceId> {
    cx.env.config.interfaces.iter().find(|i| *i.name == *name).map(|i| i.id)
}

impl Call {
    /// The addresses came along: the same ports, the same latched sources, no word to the peers.
    pub(crate) fn take_media(&mut self, cx: &mut Cx<'_>, record: &CallRecord) {
        if record.streams.is_empty() || !cx.env.config.calls.anchor_media {
            return;
        }
        let id = self.media.id;
        if cx.anchor.open(id, cx.env.config.calls.media_timeout).is_err() {
            cx.env.stats.media_errors += 1;
            return;
        }
        self.media.open = true;
        for (index, stream) in record.streams.iter().enumerate() {
            let mut state = StreamState {
                kind: stream.kind,
                a: StreamSide::default(),
                b: StreamSide::default(),
            };
            for (side, old) in [(Side::A, &stream.a), (Side::B, &stream.b)] {
                let (Some(local), Some(interface)) =
                    (old.local, interface_by_name(cx, &old.interface))
                else {
                    // Not bound yet, but its peer has said where it receives.
                    if let Some(remote) = &old.remote
                        && cx.anchor.remote(id, index, side, remote, true).is_err()
                    {
                        cx.env.stats.media_errors += 1;
                    }
                    let unbound =
                        StreamSide { remote: old.remote.clone(), ..StreamSide::default() };
                    match side {
                        Side::A => state.a = unbound,
                        Side::B => state.b = unbound,
                    }
                    continue;
                };
                let spec = SideSpec { interface, ipv6: old.ipv6 };
                let taken = Taken { spec, local, latched: old.latched };
                let mut bound = cx.anchor.rebind(id, index, stream.kind, side, &taken);
                if let (Ok(()), Some(remote)) = (bound, &old.remote) {
                    let relearn = old.latched.is_none();
                    bound = cx.anchor.remote(id, index, side, remote, relearn);
                }
                if bound.is_err() {
                    cx.env.stats.media_errors += 1;
                }
                let side_state =
                    StreamSide { spec: Some(spec), local: Some(local), remote: old.remote.clone() };
                match side {
                    Side::A => state.a = side_state,
                    Side::B => state.b = side_state,
                }
            }
            self.media.streams.push(state);
        }
    }

    /// The addresses are gone: both peers get our Contact and new ports by re-INVITE. Each is
    /// offered what the other said last.
    fn move_media(&mut self, cx: &mut Cx<'_>, record: &CallRecord) {
        for side in [Side::A, Side::B] {
            let from = side.other();
            let said = self.leg(from).and_then(|l| l.sdp.remote.clone());
            if let Some(sdp) = said.filter(|_| !record.streams.is_empty())
                && self.cross_sdp(cx, from, 0, super::answer::Role::Offer, &sdp).is_err()
            {
                cx.env.stats.media_errors += 1;
            }
            if let Some(leg) = self.leg_mut(side) {
                leg.moved = true;
            }
        }
        for side in [Side::A, Side::B] {
            self.retry_reinvite(cx, side);
        }
    }
}
