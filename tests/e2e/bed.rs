//! The bed that most tests lie in: the SBC between an outside and an inside network.
//!
//! The outside reaches the SBC only by its advertised address, which no device has: the outside
//! host translates it, as a NAT in front of the SBC would.
//!
//! ```text
//! out 10.1.0.10 ── 10.1.0.1 sbc 10.2.0.1 ── 10.2.0.10 in
//!  sees 203.0.113.5 ┘                └ seen as 10.2.0.1
//! ```

use sbc_tests::net::{Net, ip, nft, wait_listening};
use sbc_tests::node::Node;
use sbc_tests::sipp::Sipp;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// Addresses of one family.
pub(crate) struct Plan {
    pub(crate) sbc_out: &'static str,
    pub(crate) advertised: &'static str,
    pub(crate) sbc_in: &'static str,
    pub(crate) out: &'static str,
    pub(crate) inside: &'static str,
    /// A second callee on the inside.
    pub(crate) inside2: &'static str,
    v6: bool,
}

pub(crate) const V4: Plan = Plan {
    sbc_out: "10.1.0.1",
    advertised: "203.0.113.5",
    sbc_in: "10.2.0.1",
    out: "10.1.0.10",
    inside: "10.2.0.10",
    inside2: "10.2.0.11",
    v6: false,
};

pub(crate) const V6: Plan = Plan {
    sbc_out: "fd01::1",
    advertised: "2001:db8::5",
    sbc_in: "fd02::1",
    out: "fd01::10",
    inside: "fd02::10",
    inside2: "fd02::11",
    v6: true,
};

impl Plan {
    /// As it stands in a URI.
    pub(crate) fn host(&self, address: &str) -> String {
        if self.v6 { format!("[{address}]") } else { address.to_owned() }
    }
}

pub(crate) struct Bed {
    pub(crate) net: Net,
    pub(crate) dir: TempDir,
    pub(crate) plan: Plan,
    pub(crate) node: Option<Node>,
}

impl Bed {
    /// Lays the networks and starts the SBC. `extra` is added to its configuration; the callee's
    /// trunk is `inside`, the second one's `inside2`, the caller's `outside`.
    pub(crate) fn new(plan: Plan, extra: &str) -> Bed {
        Bed::over(plan, "udp", extra)
    }

    /// As [`Bed::new`], with `transport` towards the trunks.
    pub(crate) fn over(plan: Plan, transport: &str, extra: &str) -> Bed {
        Bed::prepared(plan, transport, |_, config| config + extra)
    }

    /// As [`Bed::over`]; `prepare` may lay files into the node's folder (`@DIR@`) and change its
    /// configuration.
    pub(crate) fn prepared(
        plan: Plan,
        transport: &str,
        prepare: impl FnOnce(&Path, String) -> String,
    ) -> Bed {
        let net = Net::new(&["out", "sbc", "in"]);
        let bits = if plan.v6 { 64 } else { 24 };
        net.link(
            "out",
            &format!("{}/{bits}", plan.out),
            "sbc",
            &format!("{}/{bits}", plan.sbc_out),
        );
        net.link(
            "in",
            &format!("{0}/{bits} {1}/{bits}", plan.inside, plan.inside2),
            "sbc",
            &format!("{}/{bits}", plan.sbc_in),
        );
        let out = net.ns("out");
        if plan.v6 {
            ip(&format!(
                "-n {out} -6 route add {}/128 via {} dev to-sbc",
                plan.advertised, plan.sbc_out
            ));
        } else {
            ip(&format!(
                "-n {out} route add {}/32 via {} dev to-sbc",
                plan.advertised, plan.sbc_out
            ));
        }
        // Sums are written before a capture sees the packet.
        for device in ["to-out", "to-in"] {
            let words = format!("netns exec {} ethtool -K {device} tx off", net.ns("sbc"));
            ip(&words);
        }
        let family = if plan.v6 { "ip6" } else { "ip" };
        nft(
            &out,
            &format!(
                "table {family} advertised {{\n chain out {{\n type nat hook output priority -100;\n \
                 {family} daddr {} dnat to {}\n }}\n }}",
                plan.advertised, plan.sbc_out
            ),
        );
        let dir = tempfile::tempdir().expect("temporary directory");
        let folder = dir.path().join("sbc");
        std::fs::create_dir_all(&folder).expect("node directory");
        let config = prepare(&folder, config(&plan, transport));
        let node = Node::start(&net.ns("sbc"), dir.path(), "sbc", &config);
        Bed { net, dir, plan, node: Some(node) }
    }

    pub(crate) fn node(&self) -> &Node {
        self.node.as_ref().expect("the node was stopped")
    }

    /// A SIPp callee on the inside.
    pub(crate) fn callee(&self, scenario: &str, args: &str) -> Sipp {
        self.callee_at(self.plan.inside, "callee", scenario, args)
    }

    pub(crate) fn callee_at(&self, address: &str, name: &str, scenario: &str, args: &str) -> Sipp {
        let host = self.plan.host(address);
        let args = format!("-i {host} -mi {host} -p 5060 {args}");
        let sipp = Sipp::start(&self.net.ns("in"), self.dir.path(), name, scenario, &args);
        self.wait_listening("in", 5060);
        sipp
    }

    /// A SIPp caller on the outside, calling 1234 at the advertised address.
    pub(crate) fn caller(&self, scenario: &str, args: &str) -> Sipp {
        self.caller_at(5060, "caller", scenario, args)
    }

    pub(crate) fn caller_at(&self, port: u16, name: &str, scenario: &str, args: &str) -> Sipp {
        let host = self.plan.host(self.plan.out);
        let to = self.plan.host(self.plan.advertised);
        let args = format!("-i {host} -mi {host} -p {port} -s 1234 {args} {to}:5060");
        Sipp::start(&self.net.ns("out"), self.dir.path(), name, scenario, &args)
    }

    /// Waits until no call and no media session is left.
    pub(crate) fn wait_idle(&self, limit: Duration) {
        sbc_tests::wait_for("the tables to be empty", limit, || {
            let status = self.node().ctl("status");
            (status["calls"] == 0 && status["media_sessions"] == 0).then_some(())
        });
    }

    /// As [`Bed::callee`], with `@STATUS@` in the scenario replaced.
    pub(crate) fn callee_with(&self, scenario: &str, status: &str, args: &str) -> Sipp {
        let file = self.filled(scenario, status);
        self.callee(&file, args)
    }

    /// As [`Bed::caller`], with `@STATUS@` in the scenario replaced.
    pub(crate) fn caller_with(&self, scenario: &str, status: &str, args: &str) -> Sipp {
        let file = self.filled(scenario, status);
        self.caller(&file, args)
    }

    fn filled(&self, scenario: &str, status: &str) -> String {
        let source = sbc_tests::root().join("tests/scenarios").join(scenario);
        let text = std::fs::read_to_string(source).expect("scenario").replace("@STATUS@", status);
        let file = self.dir.path().join(scenario);
        std::fs::write(&file, text).expect("scenario");
        file.to_string_lossy().into_owned()
    }

    /// Waits until something listens on `port` in a namespace, on UDP or TCP.
    pub(crate) fn wait_listening(&self, ns: &str, port: u16) {
        wait_listening(&self.net.ns(ns), port);
    }

    /// After all calls: no call, no media session is left. Then the node ends by itself.
    pub(crate) fn finish(mut self) {
        self.wait_idle(Duration::from_secs(10));
        let node = self.node.take().expect("the node was stopped");
        node.stop();
    }
}

fn config(plan: &Plan, transport: &str) -> String {
    let (sbc_out, sbc_in) = (plan.host(plan.sbc_out), plan.host(plan.sbc_in));
    let (out, inside, inside2) =
        (plan.host(plan.out), plan.host(plan.inside), plan.host(plan.inside2));
    format!(
        r#"
[node]
name = "test"
drain-time = "2s"

[admin]
socket = "@DIR@/sbc.sock"

[cdr]
file = "@DIR@/cdr.jsonl"

[[interface]]
name = "access"
listen = ["udp://{sbc_out}:5060", "tcp://{sbc_out}:5060"]
advertise = "{advertised}"
media = {{ ports = "20000-29999", advertise = "{advertised_ip}" }}

[[interface]]
name = "core"
listen = ["udp://{sbc_in}:5060", "tcp://{sbc_in}:5060"]
media = {{ ports = "30000-39999" }}

[[trunk]]
name = "outside"
interface = "access"
peers = "{out}"
transport = "{transport}"

[[trunk]]
name = "inside"
interface = "core"
peers = "{inside}"
transport = "{transport}"

[[trunk]]
name = "inside2"
interface = "core"
peers = "{inside2}"
transport = "{transport}"

[[group]]
name = "both"
trunks = ["inside", "inside2"]

[[route]]
source = "outside"
ruri = "1"
target = "both"

[[route]]
source = ["inside", "inside2"]
target = "outside"

"#,
        advertised = plan.host(plan.advertised),
        advertised_ip = plan.advertised,
    )
}
