//! `sbcctl cluster`: what each of its commands brings about, and what it says when it cannot.

use std::process::Command;

use nix::sys::signal::Signal;
use sbc_tests::node::Node;
use sbc_tests::{binary, can_make_namespaces, wait_for};
use serde_json::Value;

use crate::three::{LONG, Plan, Three};

/// Runs `sbcctl` beside a node: whether it succeeded, and what it said.
fn ctl(node: &Node, words: &str) -> (bool, String) {
    let out = Command::new("ip")
        .args(["netns", "exec", &node.ns])
        .arg(binary("sbcctl"))
        .args(["--socket", &node.dir.join("sbc.sock").to_string_lossy()])
        .args(words.split_whitespace())
        .output()
        .expect("sbcctl");
    let said = if out.status.success() { out.stdout } else { out.stderr };
    (out.status.success(), String::from_utf8_lossy(&said).trim().to_owned())
}

fn refused(node: &Node, words: &str) -> String {
    let (done, said) = ctl(node, words);
    assert!(!done, "{words}: {said}");
    said
}

fn done(node: &Node, words: &str) -> String {
    let (done, said) = ctl(node, words);
    assert!(done, "{words}: {said}");
    said
}

fn token(node: &Node, ttl: u64) -> String {
    let token = node.ctl(&format!("cluster token --ttl {ttl}"));
    token["token"].as_str().expect("a token").to_owned()
}

fn names(node: &Node) -> Vec<String> {
    let reply = node.ctl("cluster members");
    let name = |row: &Value| row["name"].as_str().expect("a name").to_owned();
    reply.as_array().expect("members").iter().map(name).collect()
}

fn leader(three: &Three) -> usize {
    wait_for("a leader that all know", LONG, || {
        let known: Vec<_> =
            (1..=3).map(|n| three.node(n).ctl("cluster status")["leader"].as_u64()).collect();
        let id = known[0]?;
        (known.iter().all(|other| *other == Some(id)) && id != 0).then_some(())?;
        (1..=3).find(|n| three.id(*n) == id)
    })
}

#[test]
fn what_the_cluster_is_told_it_does_or_refuses_by_name() {
    if !can_make_namespaces("cluster commands") {
        return;
    }
    let three = Three::with(Plan { failover: "none", ..Plan::default() });
    let n1 = three.node(1);
    assert_eq!(names(n1), ["n1", "n2", "n3"]);
    assert!(done(n1, "cluster status").contains("quorum"));

    // The leadership goes to whom it is given, and to nobody else.
    let first = leader(&three);
    let (next, third) = (first % 3 + 1, (first + 1) % 3 + 1);
    let (leading, following) = (three.node(first), three.node(third));
    let said = refused(leading, "cluster transfer-leader 99");
    assert!(said.contains("node 99 does not vote"), "{said}");
    let said = refused(following, &format!("cluster transfer-leader {}", three.id(next)));
    assert!(said.contains("not the leader"), "{said}");
    done(leading, &format!("cluster transfer-leader {}", three.id(next)));
    assert_eq!(leader(&three), next);

    // A snapshot is on disk when the command is back.
    let before = n1.ctl("cluster status")["applied"].as_u64();
    assert_eq!(done(n1, "cluster snapshot"), "snapshot written");
    assert!(n1.ctl("cluster status")["snapshot"].as_u64() >= before);

    // Whom nobody knows is neither removed nor drained; who lives is drained first.
    let said = refused(n1, "cluster remove 99");
    assert!(said.contains("node 99 is no member"), "{said}");
    let said = refused(n1, "cluster drain 99");
    assert!(said.contains("no such node"), "{said}");
    let said = refused(n1, &format!("cluster remove {}", three.id(2)));
    assert!(said.contains("conflicts with the present state"), "{said}");
    assert_eq!(names(n1).len(), 3);

    peers(&three);
    tokens(&three);
}

/// What is told of the way to another node: it falls behind while it sleeps, and catches up.
fn peers(three: &Three) {
    let leads = leader(three);
    let (node, other) = (three.node(leads), leads % 3 + 1);
    let label = format!("n{other}");
    let figure = |name: &str| node.stat(&format!("sbc_cluster_peer_{name}"), &label);
    let round_trip = || (figure("connected") > 0.0 && figure("rtt_seconds") > 0.0).then_some(());
    wait_for("a round trip", LONG, round_trip);
    assert!(figure("sent_bytes_total") > 0.0 && figure("received_bytes_total") > 0.0);
    assert_eq!(figure("malformed_total"), 0.0);
    three.node(other).proc.signal(Signal::SIGSTOP);
    wait_for("the sleeper to lag", LONG, || {
        (figure("lag_entries") > 0.0 && figure("dropped_total") + figure("lag_bytes") > 0.0)
            .then_some(())
    });
    three.node(other).proc.signal(Signal::SIGCONT);
    wait_for("the sleeper to catch up", LONG, || {
        let near = figure("lag_entries") <= 2.0 && figure("lag_bytes") < 4_096.0;
        (near && figure("connected") > 0.0).then_some(())
    });
    three.wait_up(3);
    leader(three);
}

/// A place in the cluster is made by `cluster join`, with a token that holds and only once.
fn tokens(three: &Three) {
    let node = three.node(1);
    let dir = three.dir.path();
    let join = |place: &str, name: &str, token: &str| {
        let data = dir.join(place);
        format!(
            "cluster join --data {} --name {name} --listen 10.3.0.11:7009 --within 1 --token {token} \
             10.3.0.12:7000 10.3.0.13:7000",
            data.display()
        )
    };
    let said = refused(node, &join("d4", "n4", "nonsense"));
    assert!(said.contains("the join token is malformed"), "{said}");
    let good = token(node, 600);
    // Of the right form, and of this cluster, but never given out.
    let (head, ca) = good.rsplit_once('.').expect("its parts");
    let (mark, secret) = head.split_once('.').expect("its parts");
    let forged = format!("{mark}.{}.{ca}", "0".repeat(secret.len()));
    let unknown = "the token is unknown, used or expired";
    let said = refused(node, &join("d4", "n4", &forged));
    assert!(said.contains(unknown), "{said}");
    let said = refused(node, &join("d4", "n2", &good));
    assert!(said.contains("conflicts with the present state"), "the name of a living node: {said}");
    let said = done(node, &join("d4", "n4", &good));
    assert!(said.starts_with("node 4 in "), "{said}");
    assert_eq!(names(node), ["n1", "n2", "n3", "n4"]);
    let said = refused(node, &join("d5", "n5", &good));
    assert!(said.contains(unknown), "used: {said}");
    let said = refused(node, &join("d4", "n4", &good));
    assert!(said.contains("the directory holds node 4 already"), "{said}");
    // One that never came is removed.
    done(node, "cluster remove 4");
    wait_for("three members", LONG, || (names(node).len() == 3).then_some(()));

    let short = token(node, 1);
    let said = wait_for("a token to expire", LONG, || {
        // Asked for under a name that lives, so that it is not used up before it expires.
        let (_, said) = ctl(node, &join("d6", "n2", &short));
        said.contains(unknown).then_some(said)
    });
    assert!(said.contains(unknown), "{said}");

    // Another cluster, made by hand: its tokens and this one's are not mixed up.
    let other = format!(
        "cluster init --data {} --name x --listen 10.3.0.11:7010",
        dir.join("other").display()
    );
    assert!(done(node, &other).starts_with("node 1 in "));
    let said = refused(node, &other);
    assert!(said.contains("the directory holds node 1 already"), "{said}");
}
