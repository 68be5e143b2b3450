//! Many calls under bad conditions: 5 % of the datagrams lost, 5 % of the calls abandoned by their
//! caller, 5 % malformed requests among them. At the end the tables are empty, every port is free
//! and the memory is what it was after the first 10,000 calls.
//!
//! At a rate r an interface lends r · (1 s for a call with its repeats + 10 s of quarantine) port pairs,
//! and r/20 · 6 s to abandoned calls: the 5,000 of the bed bear 440 calls a second. A rate that needs
//! more is refused; calls that were not answered are told with what the node counted.
//!
//! `SOAK_CALLS` sets the number of calls (3,000 in `make test`, 100,000 in `make soak`).

use std::collections::BTreeMap;
use std::time::Duration;

use sbc_tests::can_make_namespaces;
use sbc_tests::load::resident_kib;
use sbc_tests::net::socket_in;
use sbc_tests::wait_for;

use crate::bed::{Bed, V4};
use sbc_tests::net::nft;

/// Port pairs of each interface of the bed.
const PAIRS: u64 = 5_000;

#[test]
fn soak_with_loss_abandoned_calls_and_malformed_requests() {
    if !can_make_namespaces("soak") {
        return;
    }
    let calls: u64 = std::env::var("SOAK_CALLS").map_or(3_000, |n| n.parse().expect("SOAK_CALLS"));
    let rate: u64 = std::env::var("SOAK_RATE").map_or(150, |n| n.parse().expect("SOAK_RATE"));
    let pairs = rate * 11 + rate.div_ceil(20) * 6;
    assert!(pairs <= PAIRS, "SOAK_RATE={rate} needs {pairs} port pairs, the bed has {PAIRS}");
    // Abandoned calls have no media and nobody to answer: the media timeout ends them.
    let bed = Bed::new(V4, "\n[calls]\nmedia-timeout = \"4s\"\n");
    let pid = u32::try_from(bed.node().proc.pid().as_raw()).expect("pid");
    nft(
        &bed.net.ns("sbc"),
        "table inet loss {\n chain in {\n type filter hook input priority 0;\n \
         iif != lo meta l4proto udp numgen random mod 100 < 5 drop\n }\n }",
    );
    // Tables and the allocator reach their size with the first peaks of load: 10,000 calls, or half of
    // a short run.
    let warm_up = (calls / 2).min(10_000);
    let mut before = 0;
    for (round, share) in [(0, warm_up), (1, calls - warm_up)] {
        let abandoned = share / 20;
        let limit = Duration::from_secs(share / rate + 300);
        let callee = bed.callee("uas-answer.xml", "");
        let whole = bed.caller(
            "uac-call.xml",
            &format!("-m {} -r {rate} -d 500 -l 20000 -aa -max_retrans 20", share - abandoned),
        );
        let gone = bed.caller_at(
            5061,
            "abandon",
            "uac-abandon.xml",
            &format!("-m {abandoned} -r {} -l 20000", (rate / 20).max(1)),
        );
        let junk = std::thread::spawn({
            let (ns, to) = (bed.net.ns("out"), format!("{}:5060", bed.plan.advertised));
            let from = format!("{}:5098", bed.plan.out);
            move || malformed(&ns, &from, &to, share / 20)
        });
        // Under 5 % loss SIPp gives up on a few calls by itself; what matters is what stays behind.
        whole.end(limit);
        gone.end(limit);
        junk.join().expect("malformed requests");
        bed.wait_idle(Duration::from_secs(90));
        drop(callee);
        // Every table is empty and every port free, not only the calls gone.
        let node = bed.node();
        wait_for("the tables to be empty and the ports free", Duration::from_secs(90), || {
            let left = node.stat("sbc_transactions_client", "")
                + node.stat("sbc_transactions_server", "")
                + node.stat("sbc_subscriptions", "")
                + node.stat("sbc_media_sockets", "")
                + node.stat("sbc_kernel_flows", "");
            (left == 0.0).then_some(())
        });
        eprintln!("soak: round {round} of {share} calls over, resident {} KiB", resident_kib(pid));
        if round == 0 {
            before = resident_kib(pid);
        }
    }
    let after = resident_kib(pid);
    eprintln!("soak: {calls} calls, resident {before} KiB after {warm_up}, {after} KiB at the end");
    assert!(after <= before + before / 4 + 8_192, "{before} KiB became {after} KiB");
    let mut ends: BTreeMap<String, u64> = BTreeMap::new();
    for cdr in bed.node().cdrs() {
        let end = format!("{} {} by {}", cdr["status"], cdr["reason"], cdr["ended_by"]);
        *ends.entry(end).or_default() += 1;
    }
    eprintln!("soak: {ends:#?}");
    let answered = bed.node().cdrs().iter().filter(|c| c["status"] == 200).count();
    let wanted = usize::try_from(calls).expect("calls");
    assert!(
        answered * 100 >= wanted * 90,
        "only {answered} of {wanted} calls were answered: {ends:#?}\ncounted: {:#?}",
        refusals(&bed)
    );
    bed.finish();
}

/// What keeps a call from its answer, as the node counted it: too little CPU, full queues, full
/// tables, no ports.
fn refusals(bed: &Bed) -> BTreeMap<&'static str, f64> {
    let counted = |name| (name, bed.node().stat(name, ""));
    [
        "sbc_overload_shed_requests_total",
        "sbc_guard_refused_requests_total",
        "sbc_calls_refused_total",
        "sbc_calls_failed_total",
        "sbc_udp_kernel_dropped_datagrams_total",
        "sbc_udp_queue_full_datagrams_total",
        "sbc_shard_handover_full_messages_total",
        "sbc_call_missing_acks_total",
        "sbc_call_media_timeouts_total",
    ]
    .map(counted)
    .into_iter()
    .filter(|(_, value)| *value > 0.0)
    .collect()
}

/// Requests with something wrong in each, paced so that no buffer overflows.
fn malformed(ns: &str, from: &str, to: &str, count: u64) {
    let socket = socket_in(ns, from);
    socket.set_read_timeout(Some(Duration::from_millis(5))).expect("timeout");
    let mut answer = [0; 2048];
    for n in 0..count {
        let good = format!(
            "INVITE sip:1234@203.0.113.5 SIP/2.0\r\nVia: SIP/2.0/UDP {from};branch=z9hG4bKm{n}\r\n\
             From: <sip:m@example.net>;tag={n}\r\nTo: <sip:1234@example.net>\r\nCall-ID: m{n}\r\n\
             CSeq: 1 INVITE\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
        );
        let bad = match n % 5 {
            0 => good.replace("CSeq: 1", "CSeq: one"),
            1 => good.replace("Call-ID", "X-ID"),
            2 => good[..good.len() / 2].to_owned(),
            3 => good.replace("SIP/2.0\r\nVia", "SIP/9.9\r\nVia"),
            _ => good.replace("Content-Length: 0", "Content-Length: 99999"),
        };
        socket.send_to(bad.as_bytes(), to).expect("send");
        // The answer, or its absence, paces the next one.
        drop(socket.recv(&mut answer));
    }
}
