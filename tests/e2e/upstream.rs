//! The SBC and a core registrar (Kamailio): it registers itself with a trunk; a phone registers with
//! the core through it.
//!
//! ```text
//! core 10.4.0.10 (kamailio) ── 10.4.0.1 sbc 10.5.0.1 ── 10.5.0.10 in
//! ```

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use sbc_tests::baresip::{Baresip, Phone};
use sbc_tests::net::{Net, exchange};
use sbc_tests::node::Node;
use sbc_tests::proc::Proc;
use sbc_tests::sipp::Sipp;
use sbc_tests::{can_make_namespaces, wait_for};
use serde_json::Value;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(20);

const CONFIG: &str = r#"
[node]
name = "test"
drain-time = "2s"

[admin]
socket = "@DIR@/sbc.sock"

[cdr]
file = "@DIR@/cdr.jsonl"

[[interface]]
name = "core"
listen = "udp://10.4.0.1:5060"
media = { ports = "20000-29999" }

[[interface]]
name = "inside"
listen = "udp://10.5.0.1:5060"
media = { ports = "20000-29999" }
"#;

const TRUNK: &str = r#"
[[trunk]]
name = "carrier"
interface = "core"
peers = "10.4.0.10"
domain = "core.example"
from-domain = "core.example"
credentials = [{ realm = "core.example", username = "4930123", password = "secret" }]
register = [{ aor = "4930123@core.example", expires = "60s", retry = "1s" }]

[[trunk]]
name = "pbx"
interface = "inside"
peers = "10.5.0.10"

[[route]]
source = "carrier"
target = "pbx"

[[route]]
source = "pbx"
target = "carrier"
"#;

struct Core {
    node: Node,
    kamailio: Proc,
    net: Net,
    dir: TempDir,
}

impl Core {
    fn new(extra: &str) -> Core {
        let net = Net::new(&["core", "sbc", "in"]);
        net.link("core", "10.4.0.10/24", "sbc", "10.4.0.1/24");
        net.link("in", "10.5.0.10/24", "sbc", "10.5.0.1/24");
        let dir = tempfile::tempdir().expect("temporary directory");
        let node = Node::start(&net.ns("sbc"), dir.path(), "sbc", &format!("{CONFIG}{extra}"));
        let kamailio = kamailio(&net.ns("core"), dir.path());
        Core { node, kamailio, net, dir }
    }

    /// One call that is answered and ended.
    fn call(&self, (to, callee): (&str, &str), (from, caller): (&str, &str)) {
        let start = |ns: &str, name: &str, scenario: &str, args: &str| {
            Sipp::start(&self.net.ns(ns), self.dir.path(), name, scenario, args)
        };
        let callee = start(to, "callee", "uas-answer.xml", &format!("{callee} -m 1"));
        // Its INVITE is repeated until the callee has its socket.
        let caller = start(from, "caller", "uac-call.xml", &format!("-m 1 -d 200 {caller}"));
        caller.expect_success(SOON);
        callee.expect_success(SOON);
    }

    /// Whether the core knows a contact of a user. `n` tells one question from the next.
    fn knows(&self, user: &str, n: u32) -> bool {
        let message = format!(
            "OPTIONS sip:{user}@core.example SIP/2.0\r\n\
             Via: SIP/2.0/UDP 10.4.0.10:5090;branch=z9hG4bK{n}\r\n\
             From: <sip:t@core.example>;tag=1\r\nTo: <sip:{user}@core.example>\r\n\
             Call-ID: {n}\r\nCSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n",
        );
        let ns = self.net.ns("core");
        let answer = exchange(&ns, "10.4.0.10:5090", "10.4.0.10:5060", message.as_bytes());
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("SIP/2.0"), "{answer}\n{}", self.kamailio.output());
        !answer.starts_with("SIP/2.0 404")
    }

    fn registration(&self) -> Value {
        let trunks = self.node.ctl("trunks list");
        let all = trunks["trunks"].as_array().expect("trunks");
        let carrier = all.iter().find(|t| t["name"] == "carrier").expect("carrier");
        carrier["registrations"][0].clone()
    }
}

fn kamailio(ns: &str, dir: &Path) -> Proc {
    let config = dir.join("kamailio.cfg");
    std::fs::write(&config, include_str!("../peers/kamailio-registrar.cfg")).expect("config");
    let run = dir.join("kamailio.pid");
    let args = [
        "-f",
        &config.to_string_lossy(),
        "-DD",
        "-E",
        "-m",
        "64",
        "-M",
        "8",
        "-P",
        &run.to_string_lossy(),
        "-Y",
        &dir.to_string_lossy(),
    ]
    .map(str::to_owned);
    Proc::start(ns, dir, "kamailio", Path::new("kamailio"), &args)
}

#[test]
fn a_trunk_that_wants_it_is_registered_with_called_and_left() {
    if !can_make_namespaces("registration with a trunk") {
        return;
    }
    let mut core = Core::new(TRUNK);
    wait_for("the registration", SOON, || {
        (core.registration()["state"] == "registered").then_some(())
    });
    let registration = core.registration();
    assert_eq!(registration["aor"], "4930123@core.example");
    assert_eq!(registration["registrar"], "10.4.0.10:5060");
    assert!(core.knows("4930123", 1));
    assert!(core.node.metric("sbc_trunk_registered", "carrier") == 1);

    // The core calls the contact, and the call goes on to the PBX.
    core.call(
        ("in", "-i 10.5.0.10 -p 5060"),
        ("core", "-i 10.4.0.10 -p 5080 -s 4930123 10.4.0.10:5060"),
    );
    // A call of the PBX is challenged by the core.
    core.call(
        ("core", "-i 10.4.0.10 -p 5090"),
        ("in", "-i 10.5.0.10 -p 5070 -s 9000 10.5.0.1:5060"),
    );
    let cdrs = core.node.wait_cdrs(2);
    assert!(cdrs.iter().all(|cdr| cdr["status"] == 200), "{cdrs:?}");

    // The end of the node takes the contact back.
    core.node.proc.signal(Signal::SIGTERM);
    assert!(core.node.proc.wait(SOON).success());
    assert!(!core.knows("4930123", 2), "{}", core.kamailio.output());
    core.kamailio.signal(Signal::SIGTERM);
    core.kamailio.wait(SOON);
}

const CACHE: &str = r#"
[[trunk]]
name = "core"
interface = "core"
peers = "10.4.0.10"

[[trunk]]
name = "phones"
interface = "inside"

[registrar]
trunk = "phones"
domains = ["core.example"]
min-expires = "5s"
default-expires = "60s"

[[registrar.upstream]]
trunk = "core"

[[route]]
source = "core"
target = "phones"

[[route]]
source = "phones"
target = "core"
"#;

#[test]
fn a_phone_registers_with_the_core_through_us_and_is_called_from_there() {
    if !can_make_namespaces("registration cache") {
        return;
    }
    let core = Core::new(CACHE);
    wait_for("the core", SOON, || core.kamailio.output().contains("Aliases").then_some(()));
    let phone = Phone {
        user: "bob",
        listen: "10.5.0.10:5062",
        transport: "udp",
        tone_hz: 440,
        params: "",
        dial: None,
        quit_after_s: 60,
    };
    let account = "<sip:bob@core.example>;auth_pass=secret;regint=6;outbound=\"sip:10.5.0.1:5060\"";
    let mut bob = Baresip::start_as(&core.net.ns("in"), core.dir.path(), &phone, account, "");
    bob.proc.wait_output("200 OK", SOON);
    assert!(core.knows("bob", 1), "{}", core.kamailio.output());
    let contacts = core.node.ctl("registrations show bob@core.example");
    assert_eq!(contacts["contacts"].as_array().map(Vec::len), Some(1), "{contacts}");

    // A SIPp at the core calls the user; the phone answers by itself.
    let caller = Sipp::start(
        &core.net.ns("core"),
        core.dir.path(),
        "caller",
        "uac-call.xml",
        "-m 1 -d 300 -i 10.4.0.10 -p 5080 -s bob 10.4.0.10:5060",
    );
    caller.expect_success(SOON);
    assert_eq!(core.node.wait_cdrs(1)[0]["status"], 200);

    // Its refreshes end here: the core has heard one REGISTER with and one without credentials.
    wait_for("a refresh", SOON, || {
        (core.node.metric("sbc_upstream_absorbed", "") >= 1).then_some(())
    });
    assert_eq!(core.node.metric("sbc_upstream_registers", ""), 2);

    // The phone goes, and the core knows.
    bob.proc.signal(Signal::SIGTERM);
    bob.proc.wait(SOON);
    assert!(!core.knows("bob", 2), "{}", core.kamailio.output());
    core.node.stop();
}
