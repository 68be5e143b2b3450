//! Calls go on when the node that carries them dies, sleeps, loses its power or its network.
//! A few calls each; `faults.rs` has the many.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sbc_tests::{can_make_namespaces, wait_for};

use crate::ringing::Ringing;
use crate::three::{LONG, Load, Plan, Three, until_new_calls};

const CALLS: u64 = 20;
const HOLD: Duration = Duration::from_secs(9);
/// Audio came back long before the calls end, however busy the machine; `make faults` measures.
const GAP_MAX: Duration = Duration::from_secs(5);

/// Prints how a fault went and asserts what must hold on any machine.
fn went(what: &str, load: &Load, new_calls: Duration) {
    let gaps = load.heard_again();
    eprintln!(
        "{what}: {} calls, audio gap {} ms (longest {} ms), new calls after {} ms",
        load.count,
        gaps.median.as_millis(),
        gaps.longest.as_millis(),
        new_calls.as_millis(),
    );
    assert!(gaps.longest < GAP_MAX, "{what}: silent for {:?}", gaps.longest);
}

/// The node that carries the calls leads the cluster too, and is killed: the calls go on on another,
/// with audio, end by BYE, and there is one CDR for each.
#[test]
fn calls_survive_the_death_of_their_node() {
    if !can_make_namespaces("failover by address") {
        return;
    }
    let mut three = Three::with(Plan::default());
    let owner = three.holder();
    three.lead(owner);
    let mut load = Load::start(&three, CALLS, CALLS, HOLD);
    load.add_bare(&three, 5, 20, HOLD);
    load.mark();
    three.kill(owner);
    let new_calls = until_new_calls(&three);
    let survivor = three.survivor(owner);
    three.wait_carried(&[survivor], load.total());
    went("owner and leader killed", &load, new_calls);
    load.end(&three);
}

/// `early-dialogs`: phones ring while their node, which leads too, is killed. What each does then comes
/// to its caller through the survivor: the answer, that it is busy; and the caller's CANCEL to it.
#[test]
fn ringing_calls_survive_the_death_of_their_node() {
    if !can_make_namespaces("ringing calls") {
        return;
    }
    let mut three = Three::with(Plan { early: true, ..Plan::default() });
    let owner = three.holder();
    three.lead(owner);
    let ringing = Ringing::start(&three, 5, Duration::from_secs(6));
    three.kill(owner);
    let survivor = three.survivor(owner);
    three.wait_carried(&[survivor], ringing.total());
    ringing.end(&three);
    assert_eq!(counter(&three, survivor, "sbc_calls_adopt_failed"), 0);
}

/// A node that sleeps through its lease has let go when it wakes, and does not answer for what it
/// no longer owns.
#[test]
fn a_sleeper_does_not_answer_for_what_it_no_longer_owns() {
    if !can_make_namespaces("sleeper") {
        return;
    }
    let mut three = Three::with(Plan::default());
    let owner = three.holder();
    let load = Load::start(&three, CALLS, CALLS, HOLD);
    let sleeper = three.nodes[owner - 1].take().expect("the owner runs");
    load.mark();
    sleeper.proc.signal(Signal::SIGSTOP);
    // The kernel drops what the sleeping process does not refresh, before another node has it.
    wait_for("another node to have the addresses", LONG, || {
        (1..=3).any(|n| n != owner && three.has_addresses(n)).then_some(())
    });
    assert!(!three.has_addresses(owner), "two kernels answer for the addresses");
    let new_calls = until_new_calls(&three);
    let survivor = three.survivor(owner);
    three.wait_carried(&[survivor], CALLS);
    went("owner stopped", &load, new_calls);
    sleeper.proc.signal(Signal::SIGCONT);
    three.nodes[owner - 1] = Some(sleeper);
    three.wait_up(3);
    assert!(!three.has_addresses(owner), "the sleeper took the addresses back");
    wait_for("the sleeper to forget the calls", LONG, || (three.calls(owner) == 0).then_some(()));
    load.end(&three);
}

/// The owner, which leads, is cut off from the others but not from the clients: it gives its
/// addresses up before another takes them, says that it has no quorum, and comes back as a follower.
#[test]
fn a_minority_lets_go_of_its_addresses() {
    if !can_make_namespaces("partition") {
        return;
    }
    let three = Three::with(Plan::default());
    let owner = three.holder();
    three.lead(owner);
    let load = Load::start(&three, CALLS, CALLS, HOLD);
    load.mark();
    let begin = Instant::now();
    three.cut(owner, "to-swc");
    let let_go = wait_for("the minority to let go", LONG, || {
        (!three.has_addresses(owner)).then_some(begin.elapsed())
    });
    let new_calls = until_new_calls(&three);
    let survivor = three.survivor(owner);
    three.wait_carried(&[survivor], CALLS);
    eprintln!("the minority let go after {let_go:?}");
    went("owner and leader cut off", &load, new_calls);
    let status = three.node(owner).ctl("status");
    let alarms = status["alarms"].to_string();
    assert!(alarms.contains("no quorum"), "{alarms}");
    // Nobody sends it new calls; nobody restarts it either.
    for (number, ready) in [(owner, "503"), (survivor, "200")] {
        let heard = three.probe(number, "/readyz");
        assert!(heard.starts_with(ready), "node {number}: {heard}");
        assert!(three.probe(number, "/healthz").starts_with("200"), "node {number} lives");
    }
    let metrics = three.node(owner).ctl("stats quorum").to_string();
    assert!(metrics.contains("\"value\":0"), "{metrics}");
    three.mend(owner);
    three.wait_up(3);
    wait_for("the minority to be ready again", LONG, || {
        three.probe(owner, "/readyz").starts_with("200").then_some(())
    });
    wait_for("the minority to forget the calls", LONG, || (three.calls(owner) == 0).then_some(()));
    assert!(!three.has_addresses(owner), "it took the addresses back");
    load.end(&three);
}

/// The owner loses its power: what its page cache held is gone. The calls go on, and the node comes
/// back from what was on its disk.
#[test]
fn a_power_cut_loses_no_answered_call() {
    if !can_make_namespaces("power cut") {
        return;
    }
    let mut three = Three::with(Plan { own_disks: true, ..Plan::default() });
    let owner = three.holder();
    let load = Load::start(&three, CALLS, CALLS, HOLD);
    load.mark();
    three.power_cut(owner);
    let survivor = three.survivor(owner);
    three.wait_carried(&[survivor], CALLS);
    went("power of the owner cut", &load, Duration::ZERO);
    three.restart(owner);
    wait_for("the tables to be the same again", LONG, || {
        let digest = |n: usize| {
            let status = three.node(n).try_ctl("cluster status")?;
            Some((status["applied"].as_u64()?, status["digest"].as_str()?.to_owned()))
        };
        (digest(owner)? == digest(survivor)?).then_some(())
    });
    load.end(&three);
}

/// Without floating addresses: the survivors re-INVITE both legs of every call to their own
/// addresses, once each; audio goes on there and the BYE goes there.
#[test]
fn calls_are_reinvited_where_addresses_die_with_their_node() {
    if !can_make_namespaces("failover by re-INVITE") {
        return;
    }
    let mut three = Three::with(Plan { failover: "reinvite", ..Plan::default() });
    let load = Load::start_own(&three, 1, CALLS, CALLS, Duration::from_secs(4));
    load.mark();
    three.kill(1);
    three.wait_carried(&[2, 3], CALLS);
    let gaps = load.heard_again();
    eprintln!("re-INVITEd: {CALLS} calls, audio gap {:?}, longest {:?}", gaps.median, gaps.longest);
    let moved: u64 = [2, 3].iter().map(|n| counter(&three, *n, "sbc_cluster_calls_adopted")).sum();
    assert_eq!(moved, CALLS, "each by one survivor");
    let legs: u64 = [2, 3].iter().map(|n| counter(&three, *n, "sbc_legs_moved")).sum();
    assert_eq!(legs, 2 * CALLS, "every leg accepted, once");
    load.end(&three);
}

/// The same with not one IPv4 address: SIP, audio, the channel between the nodes, what floats. First the
/// addresses move to a survivor; then, in a cluster without, the calls do.
#[test]
fn calls_survive_the_death_of_their_node_in_ipv6() {
    if !can_make_namespaces("failover in IPv6") {
        return;
    }
    let mut three = Three::with(Plan { ipv6: true, ..Plan::default() });
    let owner = three.holder();
    three.lead(owner);
    let load = Load::start(&three, CALLS, CALLS, HOLD);
    load.mark();
    three.kill(owner);
    let new_calls = until_new_calls(&three);
    let survivor = three.survivor(owner);
    three.wait_carried(&[survivor], CALLS);
    went("IPv6, owner and leader killed", &load, new_calls);
    load.end(&three);
    drop(three);

    let mut three = Three::with(Plan { ipv6: true, failover: "reinvite", ..Plan::default() });
    let load = Load::start_own(&three, 1, CALLS, CALLS, Duration::from_secs(4));
    load.mark();
    three.kill(1);
    three.wait_carried(&[2, 3], CALLS);
    let gaps = load.heard_again();
    eprintln!("IPv6, re-INVITEd: audio gap {:?}, longest {:?}", gaps.median, gaps.longest);
    load.end(&three);
}

/// `sbcctl node drain` moves every call of a living node and says when nothing is left; all three nodes
/// are stopped and started again one after the other, and no call is lost.
#[test]
fn a_rolling_restart_loses_no_call() {
    if !can_make_namespaces("rolling restart") {
        return;
    }
    let mut three = Three::with(Plan::default());
    let load = Load::start(&three, CALLS, CALLS, Duration::from_secs(25));
    let first = three.holder();
    load.mark();
    three.node(first).order("node drain --wait --timeout 10");
    assert_eq!(three.calls(first), 0);
    let survivor = three.survivor(first);
    three.wait_carried(&[survivor], CALLS);
    went("drained", &load, until_new_calls(&three));
    three.node(first).ctl("node drain --undo");
    three.wait_up(3);

    // The one that carries the calls each time, which is what they are hurt by most.
    for _ in 0..3 {
        let owner = three.holder();
        load.mark();
        three.nodes[owner - 1].take().expect("the owner runs").stop();
        let survivor = three.survivor(owner);
        three.wait_carried(&[survivor], CALLS);
        went("stopped", &load, until_new_calls(&three));
        three.restart(owner);
    }
    load.end(&three);
}

/// A node whose clients' network is gone, but which the cluster hears well, gives its calls away, and
/// serves again when the link is back.
#[test]
fn a_node_without_a_link_gives_its_calls_away() {
    if !can_make_namespaces("lost link") {
        return;
    }
    let three = Three::with(Plan::default());
    let owner = three.holder();
    let load = Load::start(&three, CALLS, CALLS, HOLD);
    load.mark();
    three.carrier(owner, "swo", false);
    let new_calls = until_new_calls(&three);
    let survivor = three.survivor(owner);
    three.wait_carried(&[survivor], CALLS);
    went("link of the owner lost", &load, new_calls);
    let alarms = three.node(owner).ctl("status")["alarms"].to_string();
    assert!(alarms.contains("no carrier"), "{alarms}");
    three.carrier(owner, "swo", true);
    three.wait_up(3);
    load.end(&three);
}

fn counter(three: &Three, number: usize, name: &str) -> u64 {
    let stats = three.node(number).ctl(&format!("stats {name}"));
    // One per shard.
    let rows = stats["stats"].as_array().expect("a list");
    let sum = rows.iter().filter_map(|row| row["value"].as_f64()).fold(0.0, |a, b| a + b);
    format!("{sum:.0}").parse().expect("a count")
}

/// The whole cluster dies and starts again from its disks while the calls are up: they are carried
/// on, once each.
#[test]
fn calls_survive_a_restart_of_the_whole_cluster() {
    if !can_make_namespaces("restart of the whole cluster") {
        return;
    }
    for failover in ["address", "reinvite"] {
        let mut three = Three::with(Plan { failover, ..Plan::default() });
        let load = match failover {
            "address" => Load::start(&three, CALLS, CALLS, HOLD),
            _ => Load::start_own(&three, 1, CALLS, CALLS, Duration::from_secs(4)),
        };
        load.mark();
        for number in 1..=3 {
            three.kill(number);
        }
        for number in 1..=3 {
            let node = three.start_with(number, "");
            three.nodes[number - 1] = Some(node);
        }
        three.wait_up(3);
        three.wait_carried(&[1, 2, 3], CALLS);
        let gaps = load.heard_again();
        eprintln!("whole cluster restarted, {failover}: audio gap {:?}", gaps.median);
        load.end(&three);
    }
}
