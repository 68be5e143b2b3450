//! A call detail record as one JSON object, written straight into the buffer of the file.
//!
//! Keys are stable; new ones may come. When and where records are written is `cdr.rs`.

use std::net::SocketAddr;

use sbc_core::b2bua::{Cdr, CdrAttempt, CdrLeg, EndedBy};
use sbc_core::media::{SideStats, StreamStats};
use sbc_core::text::{Decimal, Dotted};

use super::time::Utc;

/// Appends a record, without a line end.
pub fn write(out: &mut Vec<u8>, cdr: &Cdr, node: &str) {
    let (ended_by, cause) = match cdr.ended_by {
        EndedBy::Caller => ("caller", None),
        EndedBy::Callee => ("callee", None),
        EndedBy::Sbc(cause) => ("sbc", Some(cause.as_str())),
    };
    let since = |at: u64| cdr.ended_ms.saturating_sub(at);
    let setup = cdr.answered_ms.map(|at| at.saturating_sub(cdr.started_ms));
    out.extend_from_slice(b"{\"call\":\"");
    hex(out, cdr.call.0);
    out.extend_from_slice(b"\",\"node\":");
    text(out, node);
    out.extend_from_slice(b",\"started\":");
    time(out, cdr.started_ms);
    out.extend_from_slice(b",\"ringing\":");
    option(out, cdr.ringing_ms, time);
    out.extend_from_slice(b",\"answered\":");
    option(out, cdr.answered_ms, time);
    out.extend_from_slice(b",\"ended\":");
    time(out, cdr.ended_ms);
    out.extend_from_slice(b",\"setup_ms\":");
    option(out, setup, number);
    out.extend_from_slice(b",\"duration_ms\":");
    number(out, cdr.answered_ms.map_or(0, since));
    out.extend_from_slice(b",\"dialled\":");
    text(out, &cdr.dialled);
    out.extend_from_slice(b",\"from\":");
    text(out, &cdr.from);
    out.extend_from_slice(b",\"to\":");
    text(out, &cdr.to);
    out.extend_from_slice(b",\"a\":");
    leg(out, &cdr.a);
    out.extend_from_slice(b",\"b\":");
    option(out, cdr.b.as_ref(), leg);
    out.extend_from_slice(b",\"attempts\":");
    list(out, &cdr.attempts, attempt);
    out.extend_from_slice(b",\"status\":");
    number(out, cdr.status.into());
    out.extend_from_slice(b",\"reason\":");
    text(out, &cdr.reason);
    out.extend_from_slice(b",\"ended_by\":");
    text(out, ended_by);
    out.extend_from_slice(b",\"cause\":");
    option(out, cause, text);
    out.extend_from_slice(b",\"end_reason\":");
    option(out, cdr.end_reason.as_deref(), text);
    out.extend_from_slice(b",\"codecs\":");
    list(out, &cdr.codecs, |out, codec| text(out, codec));
    out.extend_from_slice(b",\"media\":");
    list(out, &cdr.media, stream);
    out.extend_from_slice(b",\"protected\":");
    flag(out, cdr.protected);
    out.push(b'}');
}

fn leg(out: &mut Vec<u8>, leg: &CdrLeg) {
    out.extend_from_slice(b"{\"trunk\":");
    text(out, &leg.trunk);
    out.extend_from_slice(b",\"call_id\":");
    text(out, &leg.call_id);
    out.extend_from_slice(b",\"local_tag\":");
    text(out, &leg.local_tag);
    out.extend_from_slice(b",\"remote_tag\":");
    text(out, &leg.remote_tag);
    out.extend_from_slice(b",\"peer\":");
    option(out, leg.peer, address);
    out.push(b'}');
}

fn attempt(out: &mut Vec<u8>, attempt: &CdrAttempt) {
    out.extend_from_slice(b"{\"trunk\":");
    text(out, &attempt.trunk);
    out.extend_from_slice(b",\"peer\":");
    option(out, attempt.peer, address);
    out.extend_from_slice(b",\"status\":");
    number(out, attempt.status.into());
    out.push(b'}');
}

fn stream(out: &mut Vec<u8>, stats: &StreamStats) {
    out.extend_from_slice(b"{\"a\":");
    side(out, &stats.a);
    out.extend_from_slice(b",\"b\":");
    side(out, &stats.b);
    out.extend_from_slice(b",\"kernel\":");
    flag(out, stats.kernel);
    out.push(b'}');
}

fn side(out: &mut Vec<u8>, stats: &SideStats) {
    let counts: [(&[u8], u64); 6] = [
        (b"{\"packets\":", stats.packets),
        (b",\"bytes\":", stats.bytes),
        (b",\"dropped\":", stats.dropped),
        (b",\"lost\":", stats.lost),
        (b",\"jitter_us\":", stats.jitter_us.into()),
        (b",\"ssrc\":", stats.ssrc.into()),
    ];
    for (key, count) in counts {
        out.extend_from_slice(key);
        number(out, count);
    }
    out.extend_from_slice(b",\"latched\":");
    option(out, stats.latched, address);
    out.push(b'}');
}

fn option<T>(out: &mut Vec<u8>, value: Option<T>, write: impl FnOnce(&mut Vec<u8>, T)) {
    match value {
        Some(value) => write(out, value),
        None => out.extend_from_slice(b"null"),
    }
}

fn list<T>(out: &mut Vec<u8>, values: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
    out.push(b'[');
    for (n, value) in values.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        write(out, value);
    }
    out.push(b']');
}

/// What needs no escape is copied; the rest, which only a peer of ill will sends, is serde's.
fn text(out: &mut Vec<u8>, value: &str) {
    let plain =
        value.bytes().fold(true, |plain, b| plain & (b >= b' ') & (b != b'"') & (b != b'\\'));
    if plain {
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    } else if let Err(error) = serde_json::to_writer(&mut *out, value) {
        // A vector takes everything, and text is text.
        tracing::error!(%error, "cannot write a CDR as JSON");
    }
}

pub(super) fn number(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(Decimal::new(n).as_bytes());
}

fn flag(out: &mut Vec<u8>, set: bool) {
    out.extend_from_slice(if set { b"true" } else { b"false" });
}

fn time(out: &mut Vec<u8>, unix_ms: u64) {
    out.push(b'"');
    Utc(unix_ms).append(out);
    out.push(b'"');
}

fn address(out: &mut Vec<u8>, address: SocketAddr) {
    out.push(b'"');
    match address {
        SocketAddr::V4(v4) => {
            out.extend_from_slice(Dotted::new(*v4.ip()).as_bytes());
            out.push(b':');
            number(out, v4.port().into());
        }
        SocketAddr::V6(_) => out.extend_from_slice(address.to_string().as_bytes()),
    }
    out.push(b'"');
}

/// Sixteen digits, as a call's id is shown.
pub(super) fn hex(out: &mut Vec<u8>, n: u64) {
    out.extend(n.to_be_bytes().into_iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|nibble| {
        match nibble {
            0..=9 => b'0' + nibble,
            _ => b'a' + nibble - 10,
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sbc_core::b2bua::CallId;
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
        let shown = CallId(0xfedc_ba98_7654_3210);
        let mut text = Vec::new();
        hex(&mut text, shown.0);
        assert_eq!(text, shown.to_string().into_bytes());
    }
}
