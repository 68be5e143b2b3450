//! Three nodes, one SBC: calls go on when the node that carries them dies.
//!
//! ```text
//! out 10.1.0.10 ─┐                        ┌─ 10.2.0.10 in
//!            switch outside          switch inside
//!   10.1.0.1x ┴── n1, n2, n3 (10.3.0.1x) ──┴ 10.2.0.1x
//!   floating: 10.1.0.100 outside, 10.2.0.100 inside, held by one node at a time
//! ```

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sbc_tests::net::{Net, run};
use sbc_tests::node::Node;
use sbc_tests::sipp::Sipp;
use sbc_tests::{can_make_namespaces, wait_for};
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(60);

struct Three {
    net: Net,
    dir: TempDir,
    nodes: Vec<Option<Node>>,
}

impl Three {
    fn new() -> Three {
        let net = Net::new(&["out", "in", "n1", "n2", "n3", "swo", "swi", "swc"]);
        net.bridge(
            "swo",
            &[
                ("out", "10.1.0.10/24"),
                ("n1", "10.1.0.11/24"),
                ("n2", "10.1.0.12/24"),
                ("n3", "10.1.0.13/24"),
            ],
        );
        net.bridge(
            "swi",
            &[
                ("in", "10.2.0.10/24"),
                ("n1", "10.2.0.11/24"),
                ("n2", "10.2.0.12/24"),
                ("n3", "10.2.0.13/24"),
            ],
        );
        net.bridge(
            "swc",
            &[("n1", "10.3.0.11/24"), ("n2", "10.3.0.12/24"), ("n3", "10.3.0.13/24")],
        );
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut three = Three { net, dir, nodes: Vec::new() };
        for number in 1..=3 {
            let node = three.start(number);
            three.nodes.push(Some(node));
        }
        three.wait_voters(3);
        three
    }

    /// Starts node `number`; one that has no data yet joins by a token of the first.
    fn start(&self, number: usize) -> Node {
        let join = match self.nodes.first() {
            None => String::new(),
            Some(_) => {
                let token = self.any().ctl("cluster token");
                let token = token["token"].as_str().expect("a token").to_owned();
                format!(
                    "join = {{ token = \"{token}\", seeds = [\"10.3.0.11\", \"10.3.0.12\", \"10.3.0.13\"] }}"
                )
            }
        };
        let name = format!("n{number}");
        Node::start(&self.net.ns(&name), self.dir.path(), &name, &config(number, &join))
    }

    fn any(&self) -> &Node {
        self.nodes.iter().flatten().next().expect("a node is left")
    }

    fn node(&self, number: usize) -> &Node {
        self.nodes[number - 1].as_ref().expect("the node runs")
    }

    fn wait_voters(&self, count: usize) {
        wait_for(&format!("{count} voters"), LONG, || {
            let status = self.any().try_ctl("cluster status")?;
            let nodes = status["nodes"].as_array()?;
            let ready =
                nodes.iter().filter(|n| n["state"] == "up" && n["role"] != "learner").count();
            (ready >= count).then_some(())
        });
    }

    /// The number of the node that holds the floating addresses, once all agree on one.
    fn holder(&self) -> usize {
        wait_for("one holder of the floating addresses", LONG, || {
            let status = self.any().try_ctl("cluster status")?;
            let addresses = status["addresses"].as_array()?;
            let holders: Vec<u64> = addresses.iter().filter_map(|a| a["holder"].as_u64()).collect();
            let first = *holders.first()?;
            if holders.len() != 2 || first == 0 || holders.iter().any(|h| *h != first) {
                return None;
            }
            let nodes = status["nodes"].as_array()?;
            let name = nodes.iter().find(|n| n["id"] == first)?["name"].as_str()?;
            let number: usize = name.strip_prefix('n')?.parse().ok()?;
            self.nodes[number - 1].as_ref()?;
            self.has_addresses(number).then_some(number)
        })
    }

    fn has_addresses(&self, number: usize) -> bool {
        let ns = self.net.ns(&format!("n{number}"));
        let out = std::process::Command::new("ip").args(["-n", &ns, "-4", "addr"]).output();
        let text = String::from_utf8_lossy(&out.expect("ip").stdout).into_owned();
        text.contains("10.1.0.100/32") && text.contains("10.2.0.100/32")
    }

    fn kill(&mut self, number: usize) {
        let mut node = self.nodes[number - 1].take().expect("the node runs");
        node.proc.signal(Signal::SIGKILL);
        node.proc.wait(LONG);
    }

    fn calls(&self, number: usize) -> u64 {
        self.node(number).ctl("status")["calls"].as_u64().unwrap_or(0)
    }

    fn callee(&self, args: &str) -> Sipp {
        let args = format!("-i 10.2.0.10 -mi 10.2.0.10 -p 5060 {args}");
        let sipp =
            Sipp::start(&self.net.ns("in"), self.dir.path(), "callee", "uas-load.xml", &args);
        let space = self.net.ns("in");
        wait_for("the callee to listen", LONG, || {
            let out = std::process::Command::new("ip")
                .args(["netns", "exec", &space, "ss", "-Hlnu", "sport", "=", "5060"])
                .output()
                .expect("ss");
            (!out.stdout.is_empty()).then_some(())
        });
        sipp
    }

    fn caller(&self, scenario: &str, args: &str) -> Sipp {
        let args = format!("-i 10.1.0.10 -mi 10.1.0.10 -p 5060 -s 1234 {args} 10.1.0.100:5060");
        Sipp::start(&self.net.ns("out"), self.dir.path(), "caller", scenario, &args)
    }

    /// CDRs of all nodes, those that died included.
    fn cdrs(&self) -> usize {
        let lines = |number: usize| {
            let file = self.dir.path().join(format!("n{number}/cdr.jsonl"));
            std::fs::read_to_string(file).map_or(0, |text| text.lines().count())
        };
        (1..=3).map(lines).sum()
    }
}

fn config(number: usize, join: &str) -> String {
    format!(
        r#"
[node]
name = "n{number}"
drain-time = "2s"

[admin]
socket = "@DIR@/sbc.sock"

[cdr]
file = "@DIR@/cdr.jsonl"

[calls]
media-timeout = "30s"

[[interface]]
name = "access"
listen = "udp://10.1.0.100:5060"
media = {{ ports = "20000-29999" }}

[[interface]]
name = "core"
listen = "udp://10.2.0.100:5060"
media = {{ ports = "30000-39999" }}

[[trunk]]
name = "outside"
interface = "access"
peers = "10.1.0.10"

[[trunk]]
name = "inside"
interface = "core"
peers = "10.2.0.10"

[[route]]
source = "outside"
target = "inside"

[[route]]
source = "inside"
target = "outside"

[cluster]
data = "@DIR@/raft"
listen = "10.3.0.1{number}:7000"
failover = "address"
{join}

[[cluster.address]]
address = "10.1.0.100"
device = "to-swo"

[[cluster.address]]
address = "10.2.0.100"
device = "to-swi"
"#
    )
}

/// The node that carries the calls is killed: they go on on another, with audio, end by BYE, and
/// there is one CDR for each.
#[test]
fn calls_survive_the_death_of_their_node() {
    if !can_make_namespaces("failover by address") {
        return;
    }
    const CALLS: u64 = 20;
    let mut three = Three::new();
    let owner = three.holder();
    let tone = three.dir.path().join("tone.al");
    run("sox", &format!("-n -r 8000 -c 1 -t al {} synth 4 sine 440", tone.display()));
    let callee = three.callee(&format!("-rtp_echo -m {CALLS}"));
    let caller = three.caller("uac-call-rtp.xml", &format!("-m {CALLS} -r {CALLS} -d 12000"));
    wait_for("the calls to be up", LONG, || (three.calls(owner) == CALLS).then_some(()));
    wait_for("every node to know the calls", LONG, || {
        let known = three
            .nodes
            .iter()
            .flatten()
            .all(|node| node.try_ctl("cluster status").is_some_and(|s| s["dialogs"] == CALLS));
        known.then_some(())
    });

    let died = Instant::now();
    three.kill(owner);
    let survivor = three.holder();
    assert_ne!(survivor, owner);
    eprintln!("addresses moved from n{owner} to n{survivor} in {:?}", died.elapsed());
    wait_for("the calls to be carried on", LONG, || (three.calls(survivor) == CALLS).then_some(()));
    eprintln!("calls carried on after {:?}", died.elapsed());

    caller.expect_success(LONG);
    callee.expect_success(LONG);
    wait_for("one CDR per call", LONG, || (three.cdrs() >= 20).then_some(()));
    wait_for("nothing to be left", LONG, || (three.calls(survivor) == 0).then_some(()));
    assert_eq!(three.cdrs(), 20, "one CDR per call in the whole cluster");
}

/// A node that sleeps through its lease has let go when it wakes.
#[test]
fn a_sleeper_does_not_answer_for_what_it_no_longer_owns() {
    if !can_make_namespaces("sleeper") {
        return;
    }
    let mut three = Three::new();
    let owner = three.holder();
    let sleeper = three.nodes[owner - 1].take().expect("the owner runs");
    sleeper.proc.signal(Signal::SIGSTOP);
    let survivor = three.holder();
    assert_ne!(survivor, owner);
    // The kernel drops what the sleeping process does not refresh.
    wait_for("the sleeper's kernel to drop the addresses", LONG, || {
        (!three.has_addresses(owner)).then_some(())
    });
    sleeper.proc.signal(Signal::SIGCONT);
    three.nodes[owner - 1] = Some(sleeper);
    three.wait_voters(3);
    assert!(!three.has_addresses(owner), "the sleeper took the addresses back");
    let callee = three.callee("-m 1");
    let caller = three.caller("uac-call.xml", "-m 1 -d 200");
    caller.expect_success(LONG);
    callee.expect_success(LONG);
}
