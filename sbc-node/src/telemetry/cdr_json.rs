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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn written(cdr: &Cdr) -> String {
        let mut out = Vec::new();
        write(&mut out, cdr, "n\"1");
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_record_is_read_back_as_it_was() {
        let mut cdr = *crate::telemetry::cdr::tests::cdr(0x0123_4567_89ab_cdef);
        // Whatever text a peer finds, and whatever is known or not.
        for from in ["", "a\u{0}b\u{1f}\u{7f}\t\r\n", "\"\\\"", "<sip:grün@☎.example>", "\u{2028}"]
        {
            cdr.from = from.to_owned();
            cdr.to = format!("{from}{from}");
            cdr.end_reason = Some(from.to_owned());
            cdr.a.remote_tag = from.to_owned();
            cdr.codecs = vec![from.to_owned(), "PCMU".to_owned()];
            cdr.media[0].a.packets = u64::MAX;
            cdr.media[0].a.jitter_us = 7;
            cdr.media[0].b.ssrc = u32::MAX;
            cdr.media[0].b.latched = "[2001:db8::1]:40000".parse().ok();
            let side = |packets: u64, jitter: u32, ssrc: u32, latched: Value| {
                json!({"packets": packets, "bytes": 0, "dropped": 0, "lost": 0,
                    "jitter_us": jitter, "ssrc": ssrc, "latched": latched})
            };
            let expected = json!({
                "call": "0123456789abcdef", "node": "n\"1",
                "started": "1970-01-01T00:00:01.000Z", "ringing": "1970-01-01T00:00:01.500Z",
                "answered": "1970-01-01T00:00:02.000Z", "ended": "1970-01-01T00:00:05.000Z",
                "setup_ms": 1_000, "duration_ms": 3_000,
                "dialled": "sip:1\"2\n@example.com", "from": from, "to": format!("{from}{from}"),
                "a": {"trunk": "carrier", "call_id": "", "local_tag": "", "remote_tag": from,
                    "peer": null},
                "b": null, "attempts": [{"trunk": "pbx", "peer": null, "status": 200}],
                "status": 200, "reason": "OK", "ended_by": "sbc", "cause": "operator",
                "end_reason": from, "codecs": [from, "PCMU"],
                "media": [{"a": side(u64::MAX, 7, 0, Value::Null),
                    "b": side(0, 0, u32::MAX, "[2001:db8::1]:40000".into()), "kernel": false}],
                "protected": false,
            });
            let text = written(&cdr);
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
            assert!(!text.contains('\n'), "one line: {text}");
        }
    }

    #[test]
    fn keys_and_their_order_are_stable() {
        let mut cdr = *crate::telemetry::cdr::tests::cdr(1);
        cdr.dialled = "sip:12@example.com".to_owned();
        cdr.ended_by = EndedBy::Callee;
        (cdr.ringing_ms, cdr.answered_ms, cdr.status) = (None, None, 486);
        cdr.reason = "Busy Here".to_owned();
        (cdr.codecs, cdr.media, cdr.protected) = (Vec::new(), Vec::new(), true);
        let peer = "192.0.2.1:5060".parse().ok();
        let trunk: Arc<str> = Arc::from("pbx");
        cdr.attempts = [(peer, 503), (None, 486)]
            .map(|(peer, status)| CdrAttempt { trunk: trunk.clone(), peer, status })
            .to_vec();
        cdr.b = Some(CdrLeg { trunk, call_id: "c1".to_owned(), peer, ..CdrLeg::default() });
        assert_eq!(
            written(&cdr),
            "{\"call\":\"0000000000000001\",\"node\":\"n\\\"1\",\"started\":\"1970-01-01T00:00:01.000Z\",\
             \"ringing\":null,\"answered\":null,\"ended\":\"1970-01-01T00:00:05.000Z\",\"setup_ms\":null,\
             \"duration_ms\":0,\"dialled\":\"sip:12@example.com\",\"from\":\"sip:a@example.com\",\
             \"to\":\"sip:b@example.com\",\"a\":{\"trunk\":\"carrier\",\"call_id\":\"\",\"local_tag\":\"\",\
             \"remote_tag\":\"\",\"peer\":null},\"b\":{\"trunk\":\"pbx\",\"call_id\":\"c1\",\"local_tag\":\"\",\
             \"remote_tag\":\"\",\"peer\":\"192.0.2.1:5060\"},\"attempts\":[{\"trunk\":\"pbx\",\
             \"peer\":\"192.0.2.1:5060\",\"status\":503},{\"trunk\":\"pbx\",\"peer\":null,\"status\":486}],\
             \"status\":486,\"reason\":\"Busy Here\",\"ended_by\":\"callee\",\"cause\":null,\"end_reason\":null,\
             \"codecs\":[],\"media\":[],\"protected\":true}"
        );
    }
}
