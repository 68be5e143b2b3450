//! From the values of cores and the edge to the messages of the API. Prost types stop here.

use std::time::Instant;

use sbc_core::b2bua::{CallState, CallSummary, LegSummary};
use sbc_core::core::{Direction, Trace};
use sbc_core::media::{Side, SideStats, StreamStats};
use sbc_core::routing::{PeerHealth, Registration, Trunk};
use sbc_core::sip::{self, Limits, StartLine};
use sbc_proto::admin::v1 as pb;

use crate::config::Problem;

/// One call as a row.
pub fn call(shard: usize, call: &CallSummary, now_ms: u64) -> pb::CallSummary {
    let duration = call.answered_ms.map_or(0, |at| now_ms.saturating_sub(at));
    pb::CallSummary {
        id: call.id.to_string(),
        state: state(call.state).to_owned(),
        from: call.from.clone(),
        to: call.to.clone(),
        dialled: call.dialled.clone(),
        trunk_a: call.a.trunk.to_string(),
        trunk_b: call.b.as_ref().map(|b| b.trunk.to_string()).unwrap_or_default(),
        started_ms: call.started_ms,
        answered_ms: call.answered_ms.unwrap_or(0),
        duration_ms: duration,
        shard: u32::try_from(shard).unwrap_or(u32::MAX),
    }
}

fn state(state: CallState) -> &'static str {
    match state {
        CallState::Calling => "calling",
        CallState::Ringing => "ringing",
        CallState::Committing => "committing",
        CallState::Up => "up",
        CallState::Ending => "ending",
    }
}

/// One leg; `side` is `A` or `B`.
pub fn leg(side: &str, leg: &LegSummary) -> pb::LegInfo {
    pb::LegInfo {
        side: side.to_owned(),
        trunk: leg.trunk.to_string(),
        call_id: leg.call_id.clone(),
        local_tag: leg.local_tag.clone(),
        remote_tag: leg.remote_tag.clone(),
        peer: leg.peer.to_string(),
        codecs: leg.codecs.clone(),
    }
}

/// The streams of a session, numbered by their `m=` line.
pub fn streams(stats: &[StreamStats]) -> Vec<pb::StreamInfo> {
    let one = |(index, stats): (u32, &StreamStats)| pb::StreamInfo {
        index,
        a: Some(side(&stats.a)),
        b: Some(side(&stats.b)),
        path: if stats.kernel { "kernel" } else { "userspace" }.to_owned(),
    };
    (0..).zip(stats).map(one).collect()
}

fn side(stats: &SideStats) -> pb::StreamSide {
    pb::StreamSide {
        latched: stats.latched.map(|a| a.to_string()).unwrap_or_default(),
        packets: stats.packets,
        bytes: stats.bytes,
        dropped: stats.dropped,
        lost: stats.lost,
        jitter_us: stats.jitter_us,
        ssrc: stats.ssrc,
        way: stats.way.to_owned(),
    }
}

/// One trunk; `interface` and `realm` are names.
pub fn trunk(trunk: &Trunk, interface: String, realm: String) -> pb::TrunkStatus {
    let status = trunk.status();
    let up = status.peers.iter().any(|(_, health)| *health == PeerHealth::Up);
    let state = match (trunk.is_up(), up) {
        (true, true) => "up",
        (true, false) => "unknown",
        (false, _) => "down",
    };
    let peers = status.peers.iter().map(|(peer, health)| pb::TrunkPeer {
        address: match peer.port {
            Some(port) => format!("{}:{port}", peer.host),
            None => peer.host.to_string(),
        },
        state: health_word(*health).to_owned(),
    });
    pb::TrunkStatus {
        name: status.name.to_string(),
        realm,
        interface,
        state: state.to_owned(),
        enabled: status.enabled,
        calls: status.calls.into(),
        max_calls: status.max_calls.unwrap_or(0).into(),
        max_calls_per_second: 0.0,
        peers: peers.collect(),
        registrations: trunk.registrations().map(|(c, r)| registration(&c.aor, r)).collect(),
    }
}

fn registration(aor: &str, registration: &Registration) -> pb::TrunkRegistration {
    let status = registration.status();
    let left = |at: Instant| at.saturating_duration_since(Instant::now()).as_secs();
    pb::TrunkRegistration {
        aor: aor.to_owned(),
        state: status.state.as_str().to_owned(),
        registrar: status.registrar.map_or_else(String::new, |addr| addr.to_string()),
        expires_s: status.expires.map_or(0, |at| u32::try_from(left(at)).unwrap_or(u32::MAX)),
        failure: status.failure.unwrap_or(0).into(),
        accepted: status.accepted,
        failed: status.failed,
    }
}

fn health_word(health: PeerHealth) -> &'static str {
    match health {
        PeerHealth::Unknown => "unknown",
        PeerHealth::Up => "up",
        PeerHealth::Down => "down",
    }
}

/// One rung of a ladder.
pub fn trace(trace: &Trace) -> pb::TraceEvent {
    pb::TraceEvent {
        at_ms: trace.at_ms,
        call: trace.call.to_string(),
        side: match trace.side {
            Side::A => "A",
            Side::B => "B",
        }
        .to_owned(),
        inbound: trace.direction == Direction::Received,
        local: trace.local.map(|a| a.to_string()).unwrap_or_default(),
        remote: trace.remote.to_string(),
        transport: trace.transport.to_string(),
        summary: summary(trace),
        message: trace.data.clone(),
        note: String::new(),
    }
}

/// `INVITE (SDP)`, `200 OK (INVITE, SDP)`.
fn summary(trace: &Trace) -> String {
    let Ok(message) = sip::parse(trace.data.clone(), &Limits::default()) else {
        return "unreadable".to_owned();
    };
    let sdp = if message.body().starts_with(b"v=0") { "SDP" } else { "" };
    match message.start_line() {
        StartLine::Request { method, .. } => {
            let method = method.as_str();
            if sdp.is_empty() { method.to_owned() } else { format!("{method} ({sdp})") }
        }
        StartLine::Response { status, reason } => {
            let method = message.cseq().map(|c| c.method.to_string()).unwrap_or_default();
            let comma = if sdp.is_empty() { "" } else { ", " };
            format!("{status} {reason} ({method}{comma}{sdp})")
        }
    }
}

/// Problems of a configuration.
pub fn problems(problems: &[Problem]) -> Vec<pb::ConfigProblem> {
    let one = |p: &Problem| pb::ConfigProblem {
        line: u32::try_from(p.line).unwrap_or(0),
        message: p.message.clone(),
    };
    problems.iter().map(one).collect()
}
