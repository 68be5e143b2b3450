//! A call with audio in both directions: over UDP and TCP, IPv4 and IPv6, with nothing of one side
//! visible on the other.

use std::time::Duration;

use sbc_tests::capture::Capture;
use sbc_tests::net::run;
use sbc_tests::{can_make_namespaces, wait_for};

use crate::bed::{Bed, Plan, V4, V6};

/// A PCMA tone for SIPp to send, where its scenario looks for it.
fn tone(bed: &Bed) {
    let file = bed.dir.path().join("tone.al");
    run("sox", &format!("-n -r 8000 -c 1 -t al {} synth 4 sine 440", file.display()));
}

fn call_with_audio(plan: Plan, transport: &str) {
    let trunks = if transport.starts_with('t') { "tcp" } else { "udp" };
    let bed = Bed::over(plan, trunks, "");
    tone(&bed);
    let outside = Capture::start(&bed.net.ns("out"), bed.dir.path(), "to-sbc");
    let inside = Capture::start(&bed.net.ns("in"), bed.dir.path(), "to-sbc");
    let callee = bed.callee("uas-answer.xml", &format!("-rtp_echo -m 1 -t {transport}"));
    let caller = bed.caller("uac-call-rtp.xml", &format!("-m 1 -d 2000 -t {transport}"));

    // While it is up it can be seen.
    let calls = wait_for("the call in sbcctl", Duration::from_secs(5), || {
        let calls = bed.node().ctl("calls list");
        calls.to_string().contains("1234").then_some(calls)
    });
    assert!(calls.to_string().contains("outside"), "{calls}");
    // First packets by userspace, the rest by the kernel where it has a way.
    let status = bed.node().ctl("status");
    if status["kernel_way"] != "off" {
        wait_for("the stream to be in the kernel", Duration::from_secs(5), || {
            let streams = bed.node().ctl("media list").to_string();
            streams.contains("\"path\":\"kernel\"").then_some(())
        });
    }
    caller.expect_success(Duration::from_secs(20));
    callee.expect_success(Duration::from_secs(10));

    let cdrs = bed.node().wait_cdrs(1);
    assert_eq!(cdrs.len(), 1);
    assert_eq!(cdrs[0]["status"], 200, "{}", cdrs[0]);

    let (outside, inside) = (outside.stop(), inside.stop());
    // 20 ms packets, sent by the caller and echoed by the callee: what one sends the other gets, but
    // for what is on its way when the call ends.
    let v6 = if bed.plan.out.contains(':') { "ipv6" } else { "ip" };
    let audio = |side: &sbc_tests::capture::Pcap, field: &str, address: &str| {
        side.count(&format!("udp && {v6}.{field} == {address} && !sip && udp.length == 180"))
    };
    let sent_outside = audio(&outside, "src", bed.plan.out);
    let heard_inside = audio(&inside, "dst", bed.plan.inside);
    let sent_inside = audio(&inside, "src", bed.plan.inside);
    let heard_outside = audio(&outside, "dst", bed.plan.out);
    assert!(sent_outside >= 50, "the caller sent only {sent_outside} packets");
    assert!(sent_outside.abs_diff(heard_inside) <= 2, "{sent_outside} became {heard_inside}");
    assert!(sent_inside.abs_diff(heard_outside) <= 2, "{sent_inside} became {heard_outside}");
    // The CDR has them all, those that the kernel relayed until the end included.
    let told = |side: &str| {
        let packets = cdrs[0]["media"][0][side]["packets"].as_u64().expect("packets");
        usize::try_from(packets).expect("a count")
    };
    assert!(told("a").abs_diff(heard_inside) <= 2, "{} of {heard_inside} in the CDR", told("a"));
    assert!(told("b").abs_diff(heard_outside) <= 2, "{} of {heard_outside} in the CDR", told("b"));
    assert_eq!(inside.count("udp.checksum.status == \"Bad\" && udp.srcport >= 30000"), 0);

    hidden(&bed, &outside, &inside);
    bed.finish();
}

/// Nothing of one side shows on the other.
pub(crate) fn hidden(
    bed: &Bed,
    outside: &sbc_tests::capture::Pcap,
    inside: &sbc_tests::capture::Pcap,
) {
    let of_outside = [
        bed.plan.out,
        bed.plan.sbc_out,
        bed.plan.advertised,
        "outsider",
        "outside-session",
        "outside-phone",
        "outside.example",
    ];
    for word in of_outside {
        assert!(!inside.contains(word), "{word} of the outside shows inside");
    }
    let of_inside =
        [bed.plan.inside, bed.plan.sbc_in, "insider", "inside-session", "inside-gateway"];
    for word in of_inside {
        assert!(!outside.contains(word), "{word} of the inside shows outside");
    }
    let ids = |p: &sbc_tests::capture::Pcap| -> std::collections::BTreeSet<String> {
        p.fields("sip", &["sip.Call-ID", "sip.from.tag", "sip.to.tag"])
            .into_iter()
            .flatten()
            .filter(|f| !f.is_empty())
            .collect()
    };
    let (out_ids, in_ids) = (ids(outside), ids(inside));
    assert!(!out_ids.is_empty() && !in_ids.is_empty());
    assert!(out_ids.is_disjoint(&in_ids), "shared: {:?}", out_ids.intersection(&in_ids));
}

#[test]
fn call_over_udp_ipv4() {
    if can_make_namespaces("call_over_udp_ipv4") {
        call_with_audio(V4, "u1");
    }
}

#[test]
fn call_over_tcp_ipv4() {
    if can_make_namespaces("call_over_tcp_ipv4") {
        call_with_audio(V4, "t1");
    }
}

#[test]
fn call_over_udp_ipv6() {
    if can_make_namespaces("call_over_udp_ipv6") {
        call_with_audio(V6, "u1");
    }
}

#[test]
fn call_over_tcp_ipv6() {
    if can_make_namespaces("call_over_tcp_ipv6") {
        call_with_audio(V6, "t1");
    }
}

/// Many calls at once, all of them through, nothing left behind.
#[test]
fn five_hundred_calls_leave_nothing_behind() {
    if !can_make_namespaces("five_hundred_calls_leave_nothing_behind") {
        return;
    }
    let bed = Bed::new(V4, "");
    let callee = bed.callee("uas-answer.xml", "-m 500");
    let caller = bed.caller("uac-call.xml", "-m 500 -r 100 -d 500");
    caller.expect_success(Duration::from_secs(60));
    callee.expect_success(Duration::from_secs(20));
    assert_eq!(bed.node().wait_cdrs(500).len(), 500);
    bed.finish();
}
