//! Media of calls whose node dies: in the kernels of the others before, relayed there right after.

use std::time::Duration;

use sbc_tests::{can_make_namespaces, wait_for};

use crate::three::{LONG, Load, Three, until_new_calls};

const CALLS: u64 = 20;
/// RTP in both directions of every call.
const FLOWS: u64 = 2 * CALLS;

/// `None` when a busy node did not answer.
fn of_status(three: &Three, node: usize, field: &str) -> Option<u64> {
    three.node(node).try_ctl("status").and_then(|s| s[field].as_u64())
}

fn until(three: &Three, node: usize, field: &str, wanted: u64) {
    wait_for(&format!("{field} of node {node} to be {wanted}"), LONG, || {
        (of_status(three, node, field) == Some(wanted)).then_some(())
    });
}

#[test]
fn media_is_in_the_kernel_of_the_survivor_before_the_node_dies() {
    if !can_make_namespaces("standby in the kernel") {
        return;
    }
    let mut three = Three::with(crate::three::Plan::default());
    let owner = three.holder();
    if three.node(owner).ctl("status")["kernel_way"] == "off" {
        sbc_tests::skip("standby in the kernel", "no kernel way here");
        return;
    }
    // Long enough for a busy machine to come to the takeover while all of them are up.
    let load = Load::start(&three, CALLS, CALLS, Duration::from_secs(20));
    until(&three, owner, "kernel_flows", FLOWS);
    let others: Vec<usize> = (1..=3).filter(|n| *n != owner).collect();
    for other in &others {
        until(&three, *other, "kernel_standby_flows", FLOWS);
        until(&three, *other, "kernel_flows", FLOWS);
    }
    let relayed =
        |three: &Three, node| three.node(node).metric("sbc_media_relayed_datagrams_total", "");
    assert!(others.iter().all(|n| relayed(&three, *n) == 0), "a standby relays nothing");

    load.mark();
    three.kill(owner);
    let new_calls = until_new_calls(&three);
    let survivor = three.survivor(owner);
    three.wait_carried(&[survivor], CALLS);
    let gaps = load.heard_again();
    eprintln!(
        "audio gap {:?} (longest {:?}), new calls after {new_calls:?}",
        gaps.median, gaps.longest
    );
    wait_for("the sessions to have their flows", LONG, || {
        let promoted = three.node(survivor).metric("sbc_kernel_flow_changes_total", "promoted");
        (promoted == FLOWS).then_some(())
    });
    until(&three, survivor, "kernel_standby_flows", 0);
    // What a session does not find in the kernel goes through userspace: nothing did.
    assert_eq!(relayed(&three, survivor), 0, "no packet of these calls was relayed in userspace");
    let third = others.into_iter().find(|n| *n != survivor).expect("three nodes");
    let third_holds =
        wait_for("the third to answer", LONG, || of_status(&three, third, "kernel_standby_flows"));
    assert_eq!(third_holds, FLOWS, "the third still stands by");

    load.end(&three);
    for node in [survivor, third] {
        until(&three, node, "kernel_flows", 0);
    }
}
