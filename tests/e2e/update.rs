//! A rolling update to a release that reads a later format of the cluster's log, under calls with audio.
//! The later release is this one, told that it reads one format more (`SBC_TEST_FORMAT`, debug builds).

use std::time::Duration;

use sbc_tests::{can_make_namespaces, wait_for};

use crate::three::{LONG, Load, Plan, Three, until_new_calls};

const CALLS: u64 = 10;
/// The calls outlast the whole update, on a busy machine as well.
const HOLD: Duration = Duration::from_secs(90);

/// What the cluster writes, as a node sees it.
fn format(three: &Three, number: usize) -> Option<u64> {
    three.node(number).try_ctl("cluster status")?["format"].as_u64()
}

fn wait_format(three: &Three, wanted: u64) {
    for number in 1..=3 {
        wait_for(&format!("node {number} to write format {wanted}"), LONG, || {
            (format(three, number)? == wanted).then_some(())
        });
    }
}

/// As an operator does: drain, stop, start as the later release, and the next; first who carries calls.
fn update(three: &mut Three, load: &Load, number: usize, later: u64) {
    let carries = three.calls(number) > 0;
    let hook = three.node(number).ctl("node drain --wait --timeout 50");
    assert_eq!(hook["state"], "drained", "node {number}");
    let node = three.nodes[number - 1].take().expect("it runs");
    node.stop();
    let others: Vec<usize> = (1..=3).filter(|n| *n != number).collect();
    three.wait_carried(&others, CALLS);
    let gaps = load.heard_again();
    eprintln!(
        "node {number} updated{}: audio gap {:?}, longest {:?}",
        if carries { ", it had the calls" } else { "" },
        gaps.median,
        gaps.longest
    );
    three.formats[number - 1] = Some(later);
    three.restart(number);
    load.heard_again();
    // Both releases take new calls and write them for each other meanwhile.
    until_new_calls(three);
    wait_for("the probes to be over", LONG, || {
        let sum: u64 = (1..=3).map(|n| three.calls(n)).sum();
        (sum == CALLS).then_some(())
    });
}

#[test]
fn an_update_over_a_change_of_format_loses_no_call() {
    if !can_make_namespaces("update over a change of format") {
        return;
    }
    if std::env::var_os("SBC_BIN").is_some() {
        return sbc_tests::skip("update over a change of format", "SBC_BIN: needs debug builds");
    }
    let mut three = Three::with(Plan::default());
    let present = format(&three, 1).expect("status");
    let later = present + 1;
    wait_format(&three, present);
    let load = Load::start(&three, CALLS, CALLS, HOLD);
    load.mark();
    let mut former = vec![1, 2, 3];
    while !former.is_empty() {
        for number in 1..=3 {
            let seen = format(&three, number).expect("status");
            assert_eq!(seen, present, "while one reads no more");
        }
        let holder = three.holder();
        let number = if former.contains(&holder) { holder } else { former[0] };
        former.retain(|n| *n != number);
        update(&mut three, &load, number, later);
    }
    wait_format(&three, later);
    // What was written before the change carries the calls on after it: the holder dies.
    let owner = three.holder();
    load.mark();
    three.kill(owner);
    let survivor = three.survivor(owner);
    three.wait_carried(&[survivor], CALLS);
    let gaps = load.heard_again();
    eprintln!(
        "owner killed after the update: audio gap {:?}, longest {:?}",
        gaps.median, gaps.longest
    );
    load.end(&three);
}
