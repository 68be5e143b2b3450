//! A subscription outside calls, from the outside to a voice mail on the inside.

use std::time::Duration;

use sbc_tests::can_make_namespaces;
use sbc_tests::capture::Capture;

use crate::basic::hidden;
use crate::bed::{Bed, Plan, V4, V6};

const LONG: Duration = Duration::from_secs(30);

fn subscription(plan: Plan, transport: &str, trunks: &str) {
    let bed = Bed::over(plan, trunks, "");
    let outside = Capture::start(&bed.net.ns("out"), bed.dir.path(), "to-sbc");
    let inside = Capture::start(&bed.net.ns("in"), bed.dir.path(), "to-sbc");
    let callee = bed.callee("uas-notify.xml", &format!("-m 20 -t {transport}"));
    let caller = bed.caller("uac-subscribe.xml", &format!("-m 20 -r 20 -t {transport}"));
    caller.expect_success(LONG);
    callee.expect_success(LONG);
    hidden(&bed, &outside.stop(), &inside.stop());
    let stat = |name: &str| bed.node().stat(name, "");
    sbc_tests::wait_for("no subscription to be left", LONG, || {
        (stat("sbc_subscriptions") == 0.0).then_some(())
    });
    assert_eq!(stat("sbc_relayed_requests_total"), 20.0);
    assert!(bed.node().cdrs().is_empty(), "a subscription is no call");
    bed.finish();
}

#[test]
fn subscriptions_over_udp_ipv4_are_carried_and_hidden() {
    if can_make_namespaces("subscription_udp") {
        subscription(V4, "u1", "udp");
    }
}

#[test]
fn subscriptions_over_tcp_ipv6_are_carried_and_hidden() {
    if can_make_namespaces("subscription_tcp") {
        subscription(V6, "t1", "tcp");
    }
}
