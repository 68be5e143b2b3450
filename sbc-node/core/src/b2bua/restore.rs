//! A call as a record, and back.

use super::answer::StreamSide;
use super::call::{Call, Leg};
use super::env::Cx;
use super::record::{CallRecord, LegRecord, SessionTimerRecord, StreamRecord, StreamSideRecord};
use super::table::Calls;
use crate::core::{AdoptMode, Record};

impl Call {
    /// Everything another node needs to carry the call on.
    pub(crate) fn record(&mut self, cx: &Cx<'_>) -> Option<CallRecord> {
        let b = self.b.as_ref()?;
        self.revision += 1;
        let interface = |id: crate::net::InterfaceId| {
            let found = cx.env.config.interfaces.get(usize::from(id.0));
            found.map_or_else(String::new, |i| i.name.to_string())
        };
        let side = |side: &StreamSide| StreamSideRecord {
            local: side.local,
            interface: side.spec.map_or_else(String::new, |s| interface(s.interface)),
            ipv6: side.spec.is_some_and(|s| s.ipv6),
            remote: side.remote.clone(),
            latched: None,
        };
        Some(CallRecord {
            id: self.key.id,
            shard_hash: self.hint.0,
            a: leg_record(&self.a, &interface),
            b: leg_record(b, &interface),
            streams: self
                .media
                .streams
                .iter()
                .map(|s| StreamRecord { kind: s.kind, a: side(&s.a), b: side(&s.b) })
                .collect(),
            started_ms: self.facts.started_ms,
            answered_ms: self.facts.answered_ms.unwrap_or(self.facts.started_ms),
            ends_by_ms: self.facts.ends_by_ms,
            dialled: self.facts.dialled.to_string(),
            revision: self.revision,
        })
    }

    /// Writes the call again after a change that another node would need.
    pub(crate) fn store_change(&mut self, cx: &mut Cx<'_>) {
        if cx.env.config.calls.commit_wait.is_none() {
            return;
        }
        if let Some(record) = self.record(cx) {
            cx.store(self.key, Record::Call(Box::new(record)), None);
        }
    }
}

fn leg_record(leg: &Leg, interface: &dyn Fn(crate::net::InterfaceId) -> String) -> LegRecord {
    let d = &leg.dialog;
    LegRecord {
        trunk: leg.trunk.config.name.to_string(),
        interface: interface(leg.hop.interface),
        call_id: d.call_id.to_string(),
        local_tag: d.local_tag.to_string(),
        remote_tag: d.remote_tag.to_string(),
        local: d.local.to_string(),
        remote: d.remote.to_string(),
        local_seq: d.local_seq,
        remote_seq: d.remote_seq.unwrap_or(0),
        target: d.target.to_string(),
        routes: d.routes.iter().map(|r| r.to_string()).collect(),
        transport: leg.hop.target.transport,
        next_hop: Some(leg.hop.target.addr),
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

impl Calls {
    /// Carries on a call of another node.
    pub(crate) fn adopt(&mut self, _cx: &mut Cx<'_>, _record: &CallRecord, _mode: AdoptMode) {}
}
