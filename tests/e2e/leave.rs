//! A node leaves its cluster for good while it carries calls, and comes back only when it is let in.

use std::time::Duration;

use sbc_tests::{can_make_namespaces, wait_for};

use crate::three::{LONG, Load, Plan, Three};

const CALLS: u64 = 10;
const HOLD: Duration = Duration::from_secs(20);

/// Names and ids of the members, as a node sees them.
fn members(three: &Three, asked: usize) -> Vec<(String, u64)> {
    let reply = three.node(asked).ctl("cluster members");
    let row = |m: &serde_json::Value| Some((m["name"].as_str()?.to_owned(), m["id"].as_u64()?));
    let rows = reply.as_array().expect("members").iter();
    rows.map(|m| row(m).expect("a name and an id")).collect()
}

#[test]
fn a_node_leaves_with_calls_up_and_stays_away_until_it_joins_anew() {
    if !can_make_namespaces("leaving") {
        return;
    }
    let mut three = Three::with(Plan::default());
    let leaver = three.holder();
    let (first, second) = (leaver % 3 + 1, (leaver + 1) % 3 + 1);
    let old = three.id(leaver);
    let load = Load::start(&three, CALLS, CALLS, HOLD);
    load.mark();
    let said = three.node(leaver).ctl("cluster leave");
    assert_eq!(said["state"], "drained, left the cluster");
    let survivor = three.survivor(leaver);
    three.wait_carried(&[survivor], CALLS);
    let gaps = load.heard_again();
    eprintln!("left: {CALLS} calls, audio gap {:?}, longest {:?}", gaps.median, gaps.longest);
    let two = |asked| {
        let names: Vec<_> = members(&three, asked).into_iter().map(|(name, _)| name).collect();
        let expected: Vec<_> = (1..=3).filter(|n| *n != leaver).map(|n| format!("n{n}")).collect();
        (names == expected).then_some(())
    };
    for asked in [first, second] {
        wait_for("a membership of two", LONG, || two(asked));
    }
    assert!(!three.has_addresses(leaver) && three.calls(leaver) == 0);
    let gone = three.nodes[leaver - 1].take().expect("the node that left still runs");
    gone.proc.wait_output("this node was removed from the cluster", LONG);
    gone.stop();

    // Its disk remembers what it was; nobody lets it in by that.
    let again = three.start_with(leaver, "");
    again.proc.wait_output("this node was removed from the cluster", LONG);
    assert!(!three.has_addresses(leaver));
    for asked in [first, second] {
        let names = members(&three, asked);
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names.iter().all(|(_, id)| *id != old), "{names:?}");
    }
    again.stop();
    load.end(&three);

    // With a token and without its former data it is a node again, under another id.
    let data = three.dir.path().join(format!("n{leaver}/raft"));
    std::fs::remove_dir_all(&data).expect("its former data");
    three.restart(leaver);
    let names = members(&three, first);
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names.iter().all(|(_, id)| *id != old), "{names:?}");
}
