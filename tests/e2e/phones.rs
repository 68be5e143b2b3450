//! Real phones with real audio: what one plays is what the other hears.

use std::time::Duration;

use sbc_tests::baresip::{Baresip, Phone};
use sbc_tests::{can_make_namespaces, wait_for};

use crate::bed::{Bed, Plan, V4, V6};

fn talk(plan: Plan, transport: &'static str) {
    let bed = Bed::over(plan, transport, "");
    let plan = &bed.plan;
    let inside = format!("{}:5060", plan.host(plan.inside));
    let outside = format!("{}:5060", plan.host(plan.out));
    let dial = format!("sip:1234@{};transport={transport}", plan.host(plan.advertised));
    let phone = |user, listen, tone_hz, dial, quit_after_s| Phone {
        user,
        listen,
        transport,
        tone_hz,
        params: "",
        dial,
        quit_after_s,
    };
    let mut bob =
        Baresip::start(&bed.net.ns("in"), bed.dir.path(), &phone("1234", &inside, 1000, None, 12));
    bed.wait_listening("in", 5060);
    let mut alice = Baresip::start(
        &bed.net.ns("out"),
        bed.dir.path(),
        &phone("alice", &outside, 440, Some(&dial), 6),
    );
    if bed.node().ctl("status")["kernel_way"] != "off" {
        wait_for("the audio to be in the kernel", Duration::from_secs(10), || {
            let streams = bed.node().ctl("media list").to_string();
            (streams.matches("\"way\":\"kernel\"").count() == 2).then_some(())
        });
    }
    alice.proc.wait(Duration::from_secs(30));
    let cdrs = bed.node().wait_cdrs(1);
    assert_eq!(cdrs[0]["status"], 200, "{}", cdrs[0]);
    bob.proc.wait(Duration::from_secs(30));
    alice.assert_heard(1000.0, 3.0);
    bob.assert_heard(440.0, 3.0);
    bed.finish();
}

#[test]
fn two_phones_hear_each_other_over_udp_ipv4() {
    if can_make_namespaces("phones udp4") {
        talk(V4, "udp");
    }
}

#[test]
fn two_phones_hear_each_other_over_tcp_ipv4() {
    if can_make_namespaces("phones tcp4") {
        talk(V4, "tcp");
    }
}

#[test]
fn two_phones_hear_each_other_over_tcp_ipv6() {
    if can_make_namespaces("phones tcp6") {
        talk(V6, "tcp");
    }
}

#[test]
fn two_phones_hear_each_other_over_udp_ipv6() {
    if can_make_namespaces("phones udp6") {
        talk(V6, "udp");
    }
}
