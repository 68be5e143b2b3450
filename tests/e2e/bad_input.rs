//! What bad input gets: a named answer each, and the node serves the next call as if nothing was.

use std::time::Duration;

use sbc_tests::can_make_namespaces;
use sbc_tests::net::exchange;

use crate::bed::{Bed, V4};

const LONG: Duration = Duration::from_secs(30);

/// A datagram from the outside host's address, and the status line of what comes back.
fn status_of(bed: &Bed, message: &str) -> String {
    status_from(bed, 5099, message)
}

fn status_from(bed: &Bed, port: u16, message: &str) -> String {
    let to = format!("{}:5060", bed.plan.advertised);
    let from = format!("{}:{port}", bed.plan.out);
    let message = message.replace('\n', "\r\n").replace("@OUT@", bed.plan.out);
    let answer = exchange(&bed.net.ns("out"), &from, &to, message.as_bytes());
    let text = String::from_utf8_lossy(&answer).into_owned();
    text.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn each_malformed_request_gets_its_answer() {
    if !can_make_namespaces("bad input") {
        return;
    }
    let bed = Bed::new(V4, "");
    let head = "Via: SIP/2.0/UDP @OUT@:5099;branch=z9hG4bK";
    let rest = "From: <sip:a@example.net>;tag=1\nTo: <sip:1234@example.net>\nMax-Forwards: 70\n";
    let cases = [
        (
            format!(
                "OPTIONS sip:203.0.113.5 SIP/2.0\n{head}1\n{rest}Call-ID: c1\nCSeq: 1 OPTIONS\n\n"
            ),
            "SIP/2.0 200",
        ),
        (
            format!(
                "INVITE sip:1234@203.0.113.5 SIP/2.0\n{head}2\n{rest}Call-ID: c2\nCSeq: x INVITE\n\n"
            ),
            "SIP/2.0 400",
        ),
        (
            format!(
                "INVITE sip:1234@203.0.113.5 SIP/2.0\n{head}3\n{rest}Call-ID: c3\nCSeq: 1 INVITE\nContact: <sip:a@@OUT@:5099>\nRequire: teleport\n\n"
            ),
            "SIP/2.0 420",
        ),
        (
            format!(
                "DANCE sip:1234@203.0.113.5 SIP/2.0\n{head}4\n{rest}Call-ID: c4\nCSeq: 1 DANCE\n\n"
            ),
            "SIP/2.0 501",
        ),
        (
            format!(
                "BYE sip:1234@203.0.113.5 SIP/2.0\n{head}5\n{}Call-ID: c5\nCSeq: 1 BYE\n\n",
                rest.replace("example.net>\nMax", "example.net>;tag=9\nMax")
            ),
            "SIP/2.0 481",
        ),
        (
            format!(
                "INVITE sip:1234@203.0.113.5 SIP/2.0\n{head}6\n{}Call-ID: c6\nCSeq: 1 INVITE\n\n",
                rest.replace("Max-Forwards: 70", "Max-Forwards: 0")
            ),
            "SIP/2.0 483",
        ),
        (
            format!(
                "INVITE sip:1234@203.0.113.5 SIP/2.0\n{head}7\n{rest}Call-ID: c7\nCSeq: 1 INVITE\nContact: <sip:a@@OUT@:5099>\nContent-Type: application/sdp\nContent-Length: 9\n\nnonsense\n"
            ),
            "SIP/2.0 100",
        ),
        (
            format!(
                "INVITE sip:1234@203.0.113.5 SIP/2.0\n{head}8\nCall-ID: c8\nCSeq: 1 INVITE\n\n"
            ),
            "SIP/2.0 400",
        ),
        (
            format!(
                "SUBSCRIBE sip:1234@203.0.113.5 SIP/3.0\n{head}9\n{rest}Call-ID: c9\nCSeq: 1 SUBSCRIBE\n\n"
            ),
            "SIP/2.0 505",
        ),
    ];
    for (message, expected) in &cases {
        let status = status_of(&bed, message);
        let sdp = message.contains("nonsense");
        assert!(
            status.starts_with(expected) || (sdp && status.starts_with("SIP/2.0 488")),
            "{expected} expected for\n{message}\ngot {status:?}"
        );
    }
    // Junk gets silence, and the node goes on.
    for junk in ["", "\n\n", "\0\0\0\0", "GET / HTTP/1.1\n\n", "SIP/2.0 200 OK\n\n", "INVITE"] {
        // From a port of its own: an INVITE refused above may be answered once more.
        assert_eq!(status_from(&bed, 5098, junk), "", "junk {junk:?} was answered");
    }
    let callee = bed.callee("uas-answer.xml", "-m 1");
    let caller = bed.caller("uac-call.xml", "-m 1 -d 200");
    caller.expect_success(LONG);
    callee.expect_success(LONG);
    bed.finish();
}

#[test]
fn an_unknown_source_gets_403_or_silence() {
    if !can_make_namespaces("unknown source") {
        return;
    }
    let invite = "INVITE sip:1234@203.0.113.5 SIP/2.0\nVia: SIP/2.0/UDP @OUT@:5099;branch=z9hG4bKu\n\
        From: <sip:a@example.net>;tag=1\nTo: <sip:1234@example.net>\nMax-Forwards: 70\nCall-ID: u1\n\
        CSeq: 1 INVITE\nContact: <sip:a@@OUT@:5099>\nContent-Length: 0\n\n";
    for (policy, expected) in [("reject", "SIP/2.0 403"), ("silent", "")] {
        let mut bed = Bed::new(V4, &format!("\n[sip]\nunknown-source = \"{policy}\"\n"));
        sbc_tests::net::ip(&format!("-n {} addr add 10.1.0.66/24 dev to-sbc", bed.net.ns("out")));
        bed.plan.out = "10.1.0.66";
        let status = status_of(&bed, invite);
        assert!(
            if expected.is_empty() { status.is_empty() } else { status.starts_with(expected) },
            "{policy}: {status:?}"
        );
        bed.finish();
    }
}

/// A stranger that floods is banned before its messages are parsed, on every shard and in the
/// kernel, and hears nothing any more; the trunks go on. Without the kernel it is the same.
#[test]
fn a_flooding_stranger_is_banned_and_calls_go_on() {
    if !can_make_namespaces("flood") {
        return;
    }
    for kernel in [true, false] {
        let bed = Bed::new(V4, &format!("\n[guard]\nkernel = {kernel}\n"));
        sbc_tests::net::ip(&format!("-n {} addr add 10.1.0.66/24 dev to-sbc", bed.net.ns("out")));
        let socket = sbc_tests::net::socket_in(&bed.net.ns("out"), "10.1.0.66:5077");
        let to = format!("{}:5060", bed.plan.advertised);
        let options = |n: usize| {
            format!(
                "OPTIONS sip:203.0.113.5 SIP/2.0\nVia: SIP/2.0/UDP 10.1.0.66:5066;branch=z9hG4bKo{n}\n\
                 From: <sip:a@example.net>;tag=1\nTo: <sip:a@example.net>\nMax-Forwards: 70\n\
                 Call-ID: o{n}\nCSeq: 1 OPTIONS\n\n"
            )
        };
        let ask = |n: usize| {
            let message = options(n).replace('\n', "\r\n");
            exchange(&bed.net.ns("out"), "10.1.0.66:5066", &to, message.as_bytes())
        };
        assert!(!ask(0).is_empty(), "a stranger that is not banned is answered");
        let callee = bed.callee("uas-answer.xml", "-m 20");
        let caller = bed.caller("uac-call.xml", "-m 20 -r 10 -d 200");
        for _ in 0..5_000 {
            socket.send_to(b"junk that is no keepalive and no SIP", &to).expect("send");
        }
        sbc_tests::wait_for("the guard to drop", LONG, || {
            let dropped = bed.node().sum("sbc_guard_dropped_messages")
                + bed.node().sum("sbc_guard_kernel_dropped_packets");
            (dropped > 1_000.0).then_some(())
        });
        let bans = bed.node().ctl("bans list");
        assert_eq!(bans["bans"][0]["net"], "10.1.0.66", "{bans}");
        assert_eq!(bans["bans"][0]["reason"], "flood", "{bans}");
        assert_eq!(bans["kernel"], kernel, "{bans}");
        // Call-IDs of all shards, from another port: nobody answers.
        for n in 1..5 {
            let answer = ask(n);
            assert!(answer.is_empty(), "answered: {}", String::from_utf8_lossy(&answer));
        }
        bed.node().ctl("bans remove 10.1.0.66");
        sbc_tests::wait_for("an answer once the ban is lifted", LONG, || {
            (!ask(9).is_empty()).then_some(())
        });
        caller.expect_success(LONG);
        callee.expect_success(LONG);
        bed.finish();
    }
}
