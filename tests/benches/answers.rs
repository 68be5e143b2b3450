//! What replication adds to the answer of a call: the time from the callee's 200 to its arrival at
//! the caller, through a node by itself, and through a leader and a follower of three, fsync on. One call
//! at a time, by phones under the bench's control. `ANSWERS` sets how many calls each.

#[path = "../e2e/bed.rs"]
#[expect(dead_code, reason = "the end-to-end tests use more of it")]
mod bed;
#[path = "../e2e/three.rs"]
#[expect(dead_code, reason = "the end-to-end tests use more of it")]
mod three;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sbc_tests::agent::{Agent, Direction};
use sbc_tests::can_make_namespaces;
use sbc_tests::load::env;
use sbc_tests::net::Net;

use bed::{Bed, V4};
use three::{Plan, Three};

const GONE_WITHIN: Duration = Duration::from_secs(10);

/// The delays of `count` calls through `sbc`, sorted.
fn delays(net: &Net, sbc: &str, count: usize) -> Vec<Duration> {
    let at = |text: &str| -> SocketAddr { text.parse().expect("an address") };
    let mut callee = Agent::new(&net.ns("in"), "bob", "10.2.0.10:5060", at(sbc));
    let mut delays = Vec::new();
    for number in 0..count {
        // Each call from a port of its own: the Call-ID is made of it.
        let port = 10_000 + number;
        let mut caller = Agent::new(&net.ns("out"), "alice", &format!("10.1.0.10:{port}"), at(sbc));
        caller.invite("1234", at("10.1.0.10:4000"));
        callee.answer(at("10.2.0.10:4000"), Direction::Both);
        let sent = Instant::now();
        caller.answered();
        delays.push(sent.elapsed());
        caller.bye();
        callee.gone(GONE_WITHIN);
    }
    delays.sort();
    delays
}

fn report(name: &str, delays: &[Duration]) -> [Duration; 2] {
    let at = |per_mille: usize| delays[(delays.len() - 1) * per_mille / 1_000];
    let [p50, p99] = [at(500), at(990)];
    println!("answer.{name}.p50 {} us", p50.as_micros());
    println!("answer.{name}.p99 {} us", p99.as_micros());
    [p50, p99]
}

fn main() {
    if !can_make_namespaces("answers") {
        return;
    }
    let count: usize = env("ANSWERS", "500").parse().expect("ANSWERS is a number");
    assert!((1..50_000).contains(&count), "ANSWERS is 1 to 49999");
    let bed = Bed::new(V4, "");
    let alone = report("alone", &delays(&bed.net, "203.0.113.5:5060", count));
    drop(bed);
    let three = Three::with(Plan { failover: "none", ..Plan::default() });
    three.lead(1);
    for (name, sbc) in [("leader", "10.1.0.11:5060"), ("follower", "10.1.0.12:5060")] {
        let with = report(name, &delays(&three.net, sbc, count));
        for (what, with, alone) in [("p50", with[0], alone[0]), ("p99", with[1], alone[1])] {
            let added = with.as_micros().saturating_sub(alone.as_micros());
            println!("answer.{name}.added.{what} {added} us");
        }
    }
    let unprotected: f64 =
        (1..=2).map(|n| three.node(n).stat("sbc_calls_unprotected_total", "")).sum();
    println!("answer.unprotected {unprotected} calls");
}
