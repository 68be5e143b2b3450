//! A call detail record as one JSON object, written straight into the buffer of the file.
//!
//! Keys are stable; new ones may come. When and where records are written is `cdr.rs`.

use std::fmt;
use std::net::SocketAddr;

use sbc_core::b2bua::{CallId, Cdr, CdrAttempt, CdrLeg, EndedBy};
use sbc_core::media::{SideStats, StreamStats};
use serde::{Serialize, Serializer};

use super::time::Utc;

/// Appends a record, without a line end.
pub fn write(out: &mut Vec<u8>, cdr: &Cdr, node: &str) {
    let (ended_by, cause) = match cdr.ended_by {
        EndedBy::Caller => ("caller", None),
        EndedBy::Callee => ("callee", None),
        EndedBy::Sbc(cause) => ("sbc", Some(cause.as_str())),
    };
    let since = |at: u64| cdr.ended_ms.saturating_sub(at);
    let record = Record {
        call: Shown(cdr.call),
        node,
        started: Shown(Utc(cdr.started_ms)),
        ringing: cdr.ringing_ms.map(|ms| Shown(Utc(ms))),
        answered: cdr.answered_ms.map(|ms| Shown(Utc(ms))),
        ended: Shown(Utc(cdr.ended_ms)),
        setup_ms: cdr.answered_ms.map(|at| at.saturating_sub(cdr.started_ms)),
        duration_ms: cdr.answered_ms.map_or(0, since),
        dialled: &cdr.dialled,
        from: &cdr.from,
        to: &cdr.to,
        a: Leg::of(&cdr.a),
        b: cdr.b.as_ref().map(Leg::of),
        attempts: cdr.attempts.iter().map(Attempt::of).collect(),
        status: cdr.status,
        reason: &cdr.reason,
        ended_by,
        cause,
        end_reason: cdr.end_reason.as_deref(),
        codecs: &cdr.codecs,
        media: cdr.media.iter().map(Stream::of).collect(),
        protected: cdr.protected,
    };
    // A vector takes everything, and no key is anything but text.
    if let Err(error) = serde_json::to_writer(&mut *out, &record) {
        tracing::error!(%error, "cannot write a CDR as JSON");
    }
}

#[derive(Serialize)]
struct Record<'a> {
    call: Shown<CallId>,
    node: &'a str,
    started: Shown<Utc>,
    ringing: Option<Shown<Utc>>,
    answered: Option<Shown<Utc>>,
    ended: Shown<Utc>,
    setup_ms: Option<u64>,
    duration_ms: u64,
    dialled: &'a str,
    from: &'a str,
    to: &'a str,
    a: Leg<'a>,
    b: Option<Leg<'a>>,
    attempts: Vec<Attempt<'a>>,
    status: u16,
    reason: &'a str,
    ended_by: &'a str,
    cause: Option<&'a str>,
    end_reason: Option<&'a str>,
    codecs: &'a [String],
    media: Vec<Stream>,
    protected: bool,
}

#[derive(Serialize)]
struct Leg<'a> {
    trunk: &'a str,
    call_id: &'a str,
    local_tag: &'a str,
    remote_tag: &'a str,
    peer: Option<SocketAddr>,
}

impl<'a> Leg<'a> {
    fn of(leg: &'a CdrLeg) -> Self {
        Leg {
            trunk: &leg.trunk,
            call_id: &leg.call_id,
            local_tag: &leg.local_tag,
            remote_tag: &leg.remote_tag,
            peer: leg.peer,
        }
    }
}

#[derive(Serialize)]
struct Attempt<'a> {
    trunk: &'a str,
    peer: Option<SocketAddr>,
    status: u16,
}

impl<'a> Attempt<'a> {
    fn of(attempt: &'a CdrAttempt) -> Self {
        Attempt { trunk: &attempt.trunk, peer: attempt.peer, status: attempt.status }
    }
}

#[derive(Serialize)]
struct Stream {
    a: Side,
    b: Side,
    kernel: bool,
}

impl Stream {
    fn of(stats: &StreamStats) -> Self {
        Stream { a: Side::of(&stats.a), b: Side::of(&stats.b), kernel: stats.kernel }
    }
}

#[derive(Serialize)]
struct Side {
    packets: u64,
    bytes: u64,
    dropped: u64,
    lost: u64,
    jitter_us: u32,
    ssrc: u32,
    latched: Option<SocketAddr>,
}

impl Side {
    fn of(stats: &SideStats) -> Self {
        Side {
            packets: stats.packets,
            bytes: stats.bytes,
            dropped: stats.dropped,
            lost: stats.lost,
            jitter_us: stats.jitter_us,
            ssrc: stats.ssrc,
            latched: stats.latched,
        }
    }
}

/// Written as it is shown.
struct Shown<T>(T);

impl<T: fmt::Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}
