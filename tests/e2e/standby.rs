//! Media of calls whose node dies: in the kernels of the others before, relayed there right after.

use std::time::Duration;

use sbc_tests::{can_make_namespaces, wait_for};

use crate::three::{LONG, Load, Three, until_new_calls};

const CALLS: u64 = 20;
/// RTP in both directions of every call.
const FLOWS: u64 = 2 * CALLS;

fn of_status(three: &Three, node: usize, field: &str) -> u64 {
    three.node(node).try_ctl("status").and_then(|s| s[field].as_u64()).unwrap_or(0)
}

#[test]
fn media_is_in_the_kernel_of_the_survivor_before_the_node_dies() {
    if !can_make_namespaces("standby in the kernel") {
        return;
    }
    let mut three = Three::with(crate::three::Plan::default());
    let owner = three.holder();
    if of_status(&three, owner, "kernel_flows") == 0
        && three.node(owner).ctl("status")["kernel_way"] == "off"
    {
        sbc_tests::skip("standby in the kernel", "no kernel way here");
        return;
    }
    let load = Load::start(&three, CALLS, CALLS, Duration::from_secs(12));
    wait_for("the owner's kernel to relay", LONG, || {
        (of_status(&three, owner, "kernel_flows") == FLOWS).then_some(())
    });
    let others: Vec<usize> = (1..=3).filter(|n| *n != owner).collect();
    for other in &others {
        wait_for("the flows to stand by", LONG, || {
            (of_status(&three, *other, "kernel_standby_flows") == FLOWS).then_some(())
        });
        assert_eq!(of_status(&three, *other, "kernel_flows"), FLOWS);
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
    assert_eq!(of_status(&three, survivor, "kernel_standby_flows"), 0);
    // What a session does not find in the kernel goes through userspace: nothing did.
    assert_eq!(relayed(&three, survivor), 0, "no packet of these calls was relayed in userspace");
    let third = others.into_iter().find(|n| *n != survivor).expect("three nodes");
    assert_eq!(
        of_status(&three, third, "kernel_standby_flows"),
        FLOWS,
        "the third still stands by"
    );

    load.end(&three);
    for node in [survivor, third] {
        wait_for("the kernel to be empty", LONG, || {
            (of_status(&three, node, "kernel_flows") == 0).then_some(())
        });
    }
}
