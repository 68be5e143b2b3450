//! The SBC and a core registrar (Kamailio): it registers itself with a trunk; a phone registers with
//! the core through it.
//!
//! ```text
//! core 10.4.0.10 (kamailio) ── 10.4.0.1 sbc 10.5.0.1 ── 10.5.0.10 in
//! ```

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use sbc_tests::baresip::{Baresip, Phone};
use sbc_tests::net::{Net, exchange, socket_in};
use sbc_tests::node::Node;
use sbc_tests::proc::Proc;
use sbc_tests::sipp::Sipp;
use sbc_tests::{can_make_namespaces, wait_for};
use serde_json::Value;
use tempfile::TempDir;

use crate::three::{LONG, Plan, Three};

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
    let account =
        "<sip:bob@core.example>;auth_pass=secret;regint=10;outbound=\"sip:10.5.0.1:5060\"";
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

    // Its refreshes end here, unless one is so late that its binding has run out.
    wait_for("a refresh", SOON, || {
        (core.node.metric("sbc_upstream_absorbed", "") >= 1).then_some(())
    });
    assert!(core.node.metric("sbc_upstream_registers", "") >= 2);

    // The phone goes, and the core knows.
    bob.proc.signal(Signal::SIGTERM);
    bob.proc.wait(SOON);
    assert!(!core.knows("bob", 2), "{}", core.kamailio.output());
    core.node.stop();
}

/// What a REGISTER said.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Heard {
    contact: String,
    expires: u32,
    call_id: String,
    cseq: u32,
}

/// A registrar that takes everything, until it is dropped.
struct Registrar {
    heard: Arc<Mutex<Vec<Heard>>>,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Registrar {
    fn start(ns: &str, address: &str) -> Registrar {
        let socket = socket_in(ns, address);
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
        let (heard, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (all, end) = (Arc::clone(&heard), Arc::clone(&over));
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !end.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let field = |name: &str| {
                    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
                    line.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
                };
                let contact = field("Contact");
                let (uri, expires) = contact.split_once(";expires=").expect("expires");
                let seq = field("CSeq");
                all.lock().expect("heard").push(Heard {
                    contact: uri.to_owned(),
                    expires: expires.parse().expect("seconds"),
                    call_id: field("Call-ID"),
                    cseq: seq.split(' ').next().and_then(|n| n.parse().ok()).expect("CSeq"),
                });
                let answer = format!(
                    "SIP/2.0 200 OK\r\nVia: {}\r\nFrom: {}\r\nTo: {};tag=r\r\nCall-ID: {}\r\n\
                     CSeq: {seq}\r\nContact: {contact}\r\nContent-Length: 0\r\n\r\n",
                    field("Via"),
                    field("From"),
                    field("To"),
                    field("Call-ID"),
                );
                socket.send_to(answer.as_bytes(), from).expect("answer");
            }
        });
        Registrar { heard, over, thread: Some(thread) }
    }

    fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("heard").clone()
    }
}

impl Drop for Registrar {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        if !std::thread::panicking() {
            ended.expect("a thread").expect("the registrar");
        }
    }
}

const ACCOUNT: &str = r#"
[[trunk]]
name = "account"
interface = "access"
peers = "10.1.0.10:5080"
register = [{ aor = "4930123@carrier.example", expires = "1h", match = "contact" }]
"#;

/// How the registration stands on a node.
fn standing(three: &Three, number: usize) -> String {
    let trunks = three.node(number).ctl("trunks list");
    let all = trunks["trunks"].as_array().expect("trunks").clone();
    let account = all.into_iter().find(|t| t["name"] == "account").expect("the account");
    account["registrations"][0]["state"].as_str().expect("a state").to_owned()
}

/// One of three nodes registers; it is killed, and another carries on. Yields what was heard until
/// then, and after.
fn taken_over(test: &str, failover: &'static str) -> Option<(Vec<Heard>, Vec<Heard>)> {
    if !can_make_namespaces(test) {
        return None;
    }
    let mut three = Three::with(Plan { failover, ..Plan::default() });
    let registrar = Registrar::start(&three.net.ns("out"), "10.1.0.10:5080");
    for node in three.nodes.iter().flatten() {
        let file = node.dir.join("sbc.toml");
        let text = std::fs::read_to_string(&file).expect("configuration");
        std::fs::write(&file, format!("{text}{ACCOUNT}")).expect("configuration");
        node.order("config reload");
    }
    let first = wait_for("one node to be registered", LONG, || {
        let all: Vec<String> = (1..=3).map(|n| standing(&three, n)).collect();
        let registered = all.iter().position(|s| s == "registered")?;
        (all.iter().filter(|s| *s == "standby").count() == 2).then_some(registered + 1)
    });
    let before = registrar.heard();
    three.kill(first);
    let rest: Vec<usize> = (1..=3).filter(|n| *n != first).collect();
    wait_for("another to be registered", LONG, || {
        rest.iter().any(|n| standing(&three, *n) == "registered").then_some(())
    });
    let taken = before.len();
    if failover != "address" {
        wait_for("the dead node's contact to be taken out", LONG, || {
            registrar.heard()[taken..].iter().any(|h| h.expires == 0).then_some(())
        });
    }
    let after = registrar.heard()[taken..].to_vec();
    Some((before, after))
}

#[test]
fn the_heir_of_a_floating_address_carries_a_registration_on() {
    let Some((before, after)) = taken_over("registration, address", "address") else { return };
    let (last, next) = (before.last().expect("before"), after.first().expect("after"));
    assert!(last.contact.contains("10.1.0.100:5060"), "{last:?}");
    assert_eq!((&next.contact, &next.call_id), (&last.contact, &last.call_id));
    assert!(next.cseq > last.cseq, "{last:?} {next:?}");
    assert!(after.iter().all(|h| h.expires > 0), "{after:?}");
}

#[test]
fn another_node_registers_its_own_contact_and_takes_the_dead_ones_out() {
    let Some((before, after)) = taken_over("registration, re-INVITE", "reinvite") else { return };
    let (last, next) = (before.last().expect("before"), after.first().expect("after"));
    assert_ne!(next.contact, last.contact);
    assert_eq!(next.call_id, last.call_id);
    assert!(next.cseq > last.cseq, "{last:?} {next:?}");
    let removed = after.iter().find(|h| h.expires == 0).expect("taken out");
    assert_eq!(removed.contact, last.contact);
}

/// A REGISTER of bob's, sent until it is answered finally.
fn registers(ns: &str, from: &str, to: &str, cseq: u32, contact: &str) -> String {
    let message = format!(
        "REGISTER sip:core.example SIP/2.0\r\nVia: SIP/2.0/UDP {from};branch=z9hG4bKb{cseq};rport\r\n\
         From: <sip:bob@core.example>;tag=b\r\nTo: <sip:bob@core.example>\r\nCall-ID: bob-1\r\n\
         CSeq: {cseq} REGISTER\r\nMax-Forwards: 70\r\nContact: {contact}\r\nContent-Length: 0\r\n\r\n"
    );
    wait_for("an answer to REGISTER", LONG, || {
        let answer = exchange(ns, from, to, message.as_bytes());
        let answer = String::from_utf8_lossy(&answer).into_owned();
        (answer.starts_with("SIP/2.0 ") && !answer.starts_with("SIP/2.0 100")).then_some(answer)
    })
}

#[test]
fn registrars_of_a_core_are_asked_one_after_the_other() {
    if !can_make_namespaces("registrars that fail") {
        return;
    }
    let peers = "peers = [\"10.4.0.10:5081\", \"10.4.0.10:5082\"]";
    let core = Core::new(&CACHE.replace("peers = \"10.4.0.10\"", peers));
    let (phone, ns) = (core.net.ns("in"), core.net.ns("core"));
    let register = |cseq: u32, contact: &str| {
        registers(&phone, "10.5.0.10:5070", "10.5.0.1:5060", cseq, contact)
    };
    // Nobody is there, then the second alone, then the first alone.
    let none = register(1, "<sip:bob@10.5.0.10:5070>;expires=60");
    assert!(none.starts_with("SIP/2.0 503 ") && none.contains("\r\nRetry-After: "), "{none}");
    let second = Registrar::start(&ns, "10.4.0.10:5082");
    let answer = register(2, "<sip:bob@10.5.0.10:5070>;expires=60");
    assert!(answer.starts_with("SIP/2.0 200 "), "{answer}");
    let heard = second.heard();
    assert_eq!((heard.len(), heard[0].expires), (1, 3_600), "{heard:?}");
    drop(second);
    let first = Registrar::start(&ns, "10.4.0.10:5081");
    let answer = register(3, "<sip:bob@10.5.0.10:5070>;expires=0");
    assert!(answer.starts_with("SIP/2.0 200 "), "{answer}");
    let taken = first.heard();
    assert_eq!((taken.len(), taken[0].expires), (1, 0), "{taken:?}");
    assert_eq!((&taken[0].contact, &taken[0].call_id), (&heard[0].contact, &heard[0].call_id));
    assert!(taken[0].cseq > heard[0].cseq, "{taken:?}");
    core.node.stop();
}

const CACHED: &str = r#"
[[trunk]]
name = "registrars"
interface = "access"
peers = "10.1.0.21:5080"

[[trunk]]
name = "phones"
interface = "access"

[registrar]
trunk = "phones"
domains = ["core.example"]
min-expires = "5s"

[[registrar.upstream]]
trunk = "registrars"

[[route]]
source = "phones"
target = "registrars"
"#;

/// What the core holds of a phone is known to the heir of the address: it goes on answering refreshes by
/// itself, and takes out what its predecessor registered.
#[test]
fn the_registration_cache_goes_on_at_another_node() {
    if !can_make_namespaces("registration cache of a cluster") {
        return;
    }
    let mut three = Three::with(Plan { failover: "address", ..Plan::default() });
    let out = three.net.ns("out");
    three.net.address("out", "to-swo", "10.1.0.20/24 10.1.0.21/24");
    let registrar = Registrar::start(&out, "10.1.0.21:5080");
    for node in three.nodes.iter().flatten() {
        let file = node.dir.join("sbc.toml");
        let text = std::fs::read_to_string(&file).expect("configuration");
        std::fs::write(&file, format!("{text}{CACHED}")).expect("configuration");
        node.order("config reload");
    }
    let contact = |expires: u32| format!("<sip:bob@10.1.0.20:5070>;expires={expires}");
    let register = |cseq: u32, expires: u32| {
        registers(&out, "10.1.0.20:5070", "10.1.0.100:5060", cseq, &contact(expires))
    };
    let answer = register(1, 60);
    assert!(answer.starts_with("SIP/2.0 200 "), "{answer}");
    let before = registrar.heard();
    assert_eq!(before.len(), 1, "{before:?}");
    let holder = three.holder();
    for number in (1..=3).filter(|n| *n != holder) {
        wait_for("the others to know the phone", LONG, || {
            (three.node(number).metric("sbc_cluster_bindings_followed_total", "") >= 1)
                .then_some(())
        });
    }
    three.kill(holder);
    let heir = three.survivor(holder);
    wait_for("the heir to have the addresses", LONG, || three.has_addresses(heir).then_some(()));
    let answer = register(2, 60);
    assert!(answer.starts_with("SIP/2.0 200 ") && answer.contains(";expires=60"), "{answer}");
    assert_eq!(registrar.heard(), before, "the core hears nothing of a refresh");
    assert_eq!(three.node(heir).metric("sbc_upstream_absorbed", ""), 1);
    let answer = register(3, 0);
    assert!(answer.starts_with("SIP/2.0 200 "), "{answer}");
    let after = registrar.heard();
    let gone = after.last().expect("a removal");
    assert_eq!((after.len(), gone.expires), (2, 0), "{after:?}");
    assert_eq!((&gone.contact, &gone.call_id), (&before[0].contact, &before[0].call_id));
    assert!(gone.cseq > before[0].cseq, "{after:?}");
}

/// A phone that answers challenges, over one socket.
struct Caller {
    socket: std::net::UdpSocket,
    cseq: u32,
}

impl Caller {
    /// Sends a request and yields its final answer.
    fn ask(&mut self, method: &str, uri: &str, more: &str, body: &str) -> String {
        self.cseq += 1;
        let (n, to) = (self.cseq, if method == "REGISTER" { "bob" } else { "9000" });
        let message = format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP 10.5.0.10:5070;branch=z9hG4bKc{n};rport\r\n\
             From: <sip:bob@core.example>;tag=c\r\nTo: <sip:{to}@core.example>\r\n\
             Call-ID: bob-{method}\r\nCSeq: {n} {method}\r\nMax-Forwards: 70\r\n\
             Contact: <sip:bob@10.5.0.10:5070>\r\n{more}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.socket.send_to(message.as_bytes(), "10.5.0.1:5060").expect("send");
        let mut buffer = [0; 65_536];
        let wanted = format!("\r\nCSeq: {n} {method}\r\n");
        loop {
            let length = self.socket.recv(&mut buffer).expect("an answer");
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.contains(&wanted) && !text.starts_with("SIP/2.0 1") {
                return text;
            }
        }
    }

    /// The same, challenged and answered.
    fn answered(&mut self, method: &str, uri: &str, body: &str) -> String {
        use sbc_core::digest::{Account, Answerer};
        let (asked, given) = match method {
            "REGISTER" => ("WWW-Authenticate: ", "Authorization"),
            _ => ("Proxy-Authenticate: ", "Proxy-Authorization"),
        };
        let kind = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
        let challenge = self.ask(method, uri, kind, body);
        let account = Account { username: "bob".into(), realm: None, password: "secret".into() };
        let offers = challenge.lines().filter_map(|l| l.strip_prefix(asked));
        let mut answerer = Answerer::choose(offers, &account).expect(&challenge);
        let value = answerer.authorize(method, uri, body.as_bytes(), "cn");
        self.ask(method, uri, &format!("{kind}{given}: {value}\r\n"), body)
    }
}

#[test]
fn a_core_that_challenges_calls_is_answered_by_the_phone_itself() {
    if !can_make_namespaces("challenges of a core") {
        return;
    }
    let pass = "peers = \"10.4.0.10\"\npass-challenges = true";
    let core = Core::new(&CACHE.replace("peers = \"10.4.0.10\"", pass));
    wait_for("the core", SOON, || core.kamailio.output().contains("Aliases").then_some(()));
    let callee = Sipp::start(
        &core.net.ns("core"),
        core.dir.path(),
        "callee",
        "uas-answer.xml",
        "-i 10.4.0.10 -p 5090 -m 1",
    );
    let socket = socket_in(&core.net.ns("in"), "10.5.0.10:5070");
    socket.set_read_timeout(Some(SOON)).expect("timeout");
    let mut bob = Caller { socket, cseq: 0 };
    let answer = bob.answered("REGISTER", "sip:core.example", "");
    assert!(answer.starts_with("SIP/2.0 200 "), "{answer}");
    let body = "v=0\r\no=- 1 1 IN IP4 10.5.0.10\r\ns=-\r\nc=IN IP4 10.5.0.10\r\nt=0 0\r\n\
                m=audio 4000 RTP/AVP 8\r\n";
    let answer = bob.answered("INVITE", "sip:9000@core.example", body);
    assert!(answer.starts_with("SIP/2.0 200 "), "{answer}\n{}", core.kamailio.output());
    drop(callee);
    core.node.stop();
}
