//! The life of pods: three nodes that share a join key and know each other by name alone. They are
//! deleted one by one and come back with other addresses, with their disk and without, and the calls
//! go on.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use sbc_tests::net::wait_listening;
use sbc_tests::proc::Proc;
use sbc_tests::{binary, can_make_namespaces, wait_for};

use crate::three::{LONG, Load, Plan, Three};

const CALLS: u64 = 10;
/// How long calls go on after they were moved.
const HOLD: Duration = Duration::from_secs(3);

fn pods() -> Three {
    Three::with(Plan { failover: "reinvite", pods: true, ..Plan::default() })
}

fn names(three: &Three, number: usize) -> Vec<String> {
    let status = three.node(number).ctl("cluster status");
    let nodes = status["nodes"].as_array().expect("nodes");
    let mut names: Vec<String> =
        nodes.iter().filter_map(|n| n["name"].as_str().map(str::to_owned)).collect();
    names.sort();
    names
}

fn everyone(three: &Three) {
    for number in 1..=3 {
        wait_for(&format!("three names, as node {number} sees it"), LONG, || {
            (names(three, number) == ["n1", "n2", "n3"]).then_some(())
        });
    }
}

/// What `helm test` runs: one call through the SBC, by its own caller.
fn place_call(three: &Three) {
    let callee = three.callee("uas-answer.xml", "-m 1");
    let out = Command::new("ip")
        .args(["netns", "exec", &three.net.ns("out")])
        .arg(binary("sbcctl"))
        .args(["call", "--via", "10.1.0.11:5060", "--from", "sip:test@10.1.0.10"])
        .args(["--talk", "1", "sip:1234@10.1.0.11"])
        .output()
        .expect("sbcctl");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{text}{errors}");
    assert!(text.starts_with("INVITE sip:1234@10.1.0.11: 200\n"), "{text}");
    assert!(text.ends_with("BYE: 200\n"), "{text}");
    callee.expect_success(LONG);
}

/// What the chart's `preStop` runs, as pod `n-ORDINAL` of a StatefulSet that wants so many; what it said.
/// The API that it asks is a server in the pod's namespace that has this one answer.
fn pre_stop(three: &Three, number: usize, replicas: usize) -> String {
    let dir = three.dir.path().join(format!("api{number}-{replicas}"));
    let sets = dir.join("apis/apps/v1/namespaces/voice/statefulsets");
    std::fs::create_dir_all(&sets).expect("folders");
    let answer = format!("{{\"metadata\":{{}},\"spec\":{{\"replicas\":{replicas}}}}}");
    std::fs::write(sets.join("n"), answer).expect("answer");
    std::fs::write(dir.join("token"), "token").expect("token");
    let at = dir.to_string_lossy().into_owned();
    sbc_tests::net::run(
        "openssl",
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=api \
             -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE \
             -keyout {at}/key.pem -out {at}/ca.crt"
        ),
    );
    let words = "s_server -accept 127.0.0.1:6443 -cert ca.crt -key key.pem -WWW";
    let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    let ns = three.ns(number);
    let _api = Proc::start(&ns, &dir, "api", std::path::Path::new("openssl"), &words);
    wait_listening(&ns, 6443);
    let out = Command::new("ip")
        .args(["netns", "exec", &ns])
        .arg(binary("sbcctl"))
        .arg("--socket")
        .arg(three.node(number).dir.join("sbc.sock"))
        .args(["kube", "pre-stop", "--timeout=50", "--statefulset=n", "--namespace=voice"])
        .arg(format!("--pod=n-{}", number - 1))
        .args(["--api-host=127.0.0.1", "--api-port=6443", &format!("--account={at}")])
        .output()
        .expect("sbcctl");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && errors.is_empty(), "{said}{errors}");
    said
}

/// A rolling update: each pod in turn is told to stop while it carries calls (the hook drains it,
/// SIGTERM ends it within its grace) and comes back elsewhere under its name, with its disk.
#[test]
fn a_rolling_update_loses_no_call() {
    if !can_make_namespaces("rolling update") {
        return;
    }
    let mut three = pods();
    everyone(&three);
    place_call(&three);
    for number in [3, 2, 1] {
        let load = Load::start_own(&three, number, CALLS, CALLS, HOLD);
        let id = three.id(number);
        load.mark();
        let said = pre_stop(&three, number, 3);
        assert!(said.contains("drained") && !said.contains("left"), "node {number}: {said}");
        let others: Vec<usize> = (1..=3).filter(|n| *n != number).collect();
        let node = three.nodes[number - 1].take().expect("it runs");
        // There is nothing left to wait for: it ends at once, and with 0.
        node.stop();
        three.wait_carried(&others, CALLS);
        let gaps = load.heard_again();
        eprintln!("node {number} moved its {CALLS} calls: audio gap {:?}", gaps.median);
        load.end(&three);
        three.readdress(number, 20 + u32::try_from(number).expect("small"));
        three.name_pods(&[1, 2, 3]);
        three.restart(number);
        everyone(&three);
        assert_eq!(three.id(number), id, "its disk says who it is");
        wait_for("the node to take calls again", LONG, || {
            (three.node(number).ctl("status")["state"] == "running").then_some(())
        });
    }
}

/// A pod is killed and its disk is lost: it comes back as a new node of the same cluster, whichever
/// it is. The first by name began the cluster, and must not begin another.
#[test]
fn a_pod_without_its_disk_comes_back_into_the_cluster() {
    if !can_make_namespaces("lost disk") {
        return;
    }
    let mut three = pods();
    for (turn, number) in [1, 2].into_iter().enumerate() {
        let load = Load::start_own(&three, number, CALLS, CALLS, HOLD);
        let id = three.id(number);
        load.mark();
        let mut node = three.nodes[number - 1].take().expect("it runs");
        node.proc.signal(Signal::SIGKILL);
        node.proc.wait(LONG);
        std::fs::remove_dir_all(node.dir.join("raft")).expect("lose the disk");
        drop(node);
        let others: Vec<usize> = (1..=3).filter(|n| *n != number).collect();
        three.wait_carried(&others, CALLS);
        let gaps = load.heard_again();
        eprintln!("node {number} killed: audio gap {:?}, longest {:?}", gaps.median, gaps.longest);
        three.readdress(number, 31 + u32::try_from(turn).expect("small"));
        three.name_pods(&[1, 2, 3]);
        three.restart(number);
        assert_ne!(three.id(number), id, "a lost disk is a new node");
        everyone(&three);
        load.end(&three);
    }
}

/// The set is scaled down and up again: the last ordinal leaves the cluster before it stops, so that the
/// two that stay are all there is and lose nothing, and what is born under its name later is a member
/// again, whether its volume was kept or not.
#[test]
fn a_removed_ordinal_leaves_and_a_reborn_one_is_a_member_again() {
    if !can_make_namespaces("scale down") {
        return;
    }
    let mut three = pods();
    everyone(&three);
    for kept in [true, false] {
        let load = Load::start_own(&three, 3, CALLS, CALLS, HOLD);
        let id = three.id(3);
        load.mark();
        let said = pre_stop(&three, 3, 2);
        assert!(said.contains("drained, left the cluster"), "{said}");
        let mut node = three.nodes[2].take().expect("it runs");
        let data = node.dir.join("raft");
        // Without a place in the cluster it stops by itself.
        assert!(node.proc.wait(LONG).success(), "it left in order");
        three.wait_carried(&[1, 2], CALLS);
        for number in [1, 2] {
            wait_for(&format!("two members, as node {number} sees it"), LONG, || {
                (names(&three, number) == ["n1", "n2"]).then_some(())
            });
            let status = three.node(number).ctl("cluster status");
            assert_eq!(status["quorum"], true, "two of two are a majority");
        }
        load.heard_again();
        load.end(&three);
        if !kept {
            std::fs::remove_dir_all(&data).expect("its volume is deleted");
        }
        three.readdress(3, if kept { 41 } else { 42 });
        three.name_pods(&[1, 2, 3]);
        three.restart(3);
        everyone(&three);
        assert_ne!(three.id(3), id, "its former self has left for good");
        wait_for("the node to take calls again", LONG, || {
            (three.node(3).ctl("status")["state"] == "running").then_some(())
        });
    }
    place_call(&three);
}
