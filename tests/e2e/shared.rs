//! Three nodes with addresses of their own: what one of them knows, all use.
//!
//! ```text
//! out 10.1.0.10 ─┐                                   ┌─ 10.2.0.10 in
//!            switch ── n1 .11, n2 .12, n3 .13 ── switch
//! ```

use std::time::Duration;

use nix::sys::signal::Signal;
use rustls::pki_types::CertificateDer;
use sbc_tests::net::{Net, exchange, socket_in};
use sbc_tests::node::Node;
use sbc_tests::sipp::Sipp;
use sbc_tests::{can_make_namespaces, wait_for};
use tempfile::TempDir;

use crate::line::{Phone, certify, header};

pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) struct Shared {
    pub(crate) net: Net,
    dir: TempDir,
    pub(crate) nodes: Vec<Node>,
    /// Whose certificates the nodes show, where they listen by TLS.
    pub(crate) authority: Option<CertificateDer<'static>>,
}

impl Shared {
    pub(crate) fn new(extra: &str) -> Shared {
        Shared::begin(extra, false)
    }

    /// The same where phones may come by TLS and WebSocket too.
    pub(crate) fn secure(extra: &str) -> Shared {
        Shared::begin(extra, true)
    }

    fn begin(extra: &str, secure: bool) -> Shared {
        let net = Net::new(&["out", "in", "n1", "n2", "n3", "swo", "swi", "swc"]);
        let members = |subnet: &str, first: (&str, &str)| -> Vec<(String, String)> {
            let nodes = (1..=3).map(|n| (format!("n{n}"), format!("{subnet}.1{n}/24")));
            let first = (!first.0.is_empty()).then(|| (first.0.to_owned(), first.1.to_owned()));
            first.into_iter().chain(nodes).collect()
        };
        for (switch, subnet, first) in [
            ("swo", "10.1.0", ("out", "10.1.0.10/24")),
            ("swi", "10.2.0", ("in", "10.2.0.10/24")),
            ("swc", "10.3.0", ("", "")),
        ] {
            let members = members(subnet, first);
            let members: Vec<(&str, &str)> =
                members.iter().map(|(name, address)| (&**name, &**address)).collect();
            net.bridge(switch, &members);
        }
        let dir = tempfile::tempdir().expect("temporary directory");
        let authority = secure.then(|| certify(&dir));
        let mut shared = Shared { net, dir, nodes: Vec::new(), authority };
        for number in 1..=3 {
            let join = shared.nodes.first().map_or_else(String::new, |first| {
                let token = first.ctl("cluster token");
                let token = token["token"].as_str().expect("a token");
                format!("join = {{ token = \"{token}\", seeds = [\"10.3.0.11\"] }}")
            });
            let name = format!("n{number}");
            let config = config(number, secure, &join, extra);
            let node = Node::start(&shared.net.ns(&name), shared.dir.path(), &name, &config);
            shared.nodes.push(node);
        }
        wait_for("three voters", LONG, || {
            let status = shared.nodes[0].try_ctl("cluster status")?;
            let nodes = status["nodes"].as_array()?;
            let up = nodes.iter().filter(|n| n["state"] == "up" && n["role"] != "learner");
            (up.count() == 3).then_some(())
        });
        shared
    }

    pub(crate) fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    pub(crate) fn metric(&self, number: usize, name: &str) -> u64 {
        self.node(number).metric(name, "")
    }

    /// SIPp on one of the two sides (`in`, `out`).
    fn sipp(&self, side: &str, name: &str, scenario: &str, args: &str) -> Sipp {
        let own = if side == "in" { "10.2.0.10" } else { "10.1.0.10" };
        let args = format!("-i {own} -mi {own} -p 5060 {args}");
        Sipp::start(&self.net.ns(side), self.dir.path(), name, scenario, &args)
    }

    fn wait_listening(&self, side: &str) {
        sbc_tests::net::wait_listening(&self.net.ns(side), 5060);
    }

    fn cdrs(&self) -> usize {
        self.nodes.iter().map(|node| node.cdrs().len()).sum()
    }
}

fn config(number: usize, secure: bool, join: &str, extra: &str) -> String {
    let more =
        if secure { MORE.replace("NODE", &format!("10.1.0.1{number}")) } else { String::new() };
    let tls = if secure { CERTIFICATES } else { "" };
    format!(
        r#"
[node]
name = "n{number}"
drain-time = "1s"
shards = 2

[admin]
socket = "@DIR@/sbc.sock"

[cdr]
file = "@DIR@/cdr.jsonl"

[[interface]]
name = "access"
listen = ["udp://10.1.0.1{number}:5060", "tcp://10.1.0.1{number}:5060"{more}]
{tls}
media = {{ ports = "20000-29999" }}

[[interface]]
name = "core"
listen = "udp://10.2.0.1{number}:5060"
media = {{ ports = "30000-39999" }}

[cluster]
data = "@DIR@/raft"
listen = "10.3.0.1{number}:7000"
failover = "reinvite"
{join}
{extra}
"#
    )
}

const MORE: &str = r#", "ws://NODE:5060", "tls://NODE:5061", "wss://NODE:5061""#;
const CERTIFICATES: &str =
    r#"tls = { certificates = [{ chain = "../sbc.pem", key = "../sbc.key" }] }"#;

pub(crate) const TRUNKS: &str = r#"
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
"#;

pub(crate) const PHONES: &str = r#"
[[trunk]]
name = "phones"
interface = "access"

[[trunk]]
name = "inside"
interface = "core"
peers = "10.2.0.10"

[[route]]
source = "inside"
target = "phones"

[registrar]
trunk = "phones"
domains = ["example.com"]
auth = false

[[user]]
name = "alice"
"#;

/// Requests inside a dialog go to whichever node a load balancer likes: the one that has the call
/// answers them all.
#[test]
fn requests_of_a_dialog_may_come_by_any_node() {
    if !can_make_namespaces("dialogs by other nodes") {
        return;
    }
    let shared = Shared::new(TRUNKS);
    let callee = shared.sipp("in", "callee", "uas-hold.xml", "-m 1");
    shared.wait_listening("in");
    let caller = shared.sipp("out", "caller", "uac-other-node.xml", "-m 1 -s 1234 10.1.0.11:5060");
    caller.expect_success(LONG);
    callee.expect_success(LONG);
    wait_for("the call's record", LONG, || (shared.cdrs() == 1).then_some(()));
    assert_eq!(shared.node(1).cdrs().len(), 1, "the node that has the call writes it");
    for by in [2, 3] {
        // re-INVITE and ACK; re-INVITE, ACK and BYE.
        assert!(shared.metric(by, "sbc_cluster_relayed_out_total") >= 2, "by n{by}");
    }
    assert_eq!(shared.metric(1, "sbc_cluster_relay_failures_total"), 0);
}

pub(crate) const SDP: &str = "v=0\r\no=alice 1 1 IN IP4 192.168.1.5\r\ns=-\r\nc=IN IP4 192.168.1.5\r\n\
    t=0 0\r\nm=audio 4000 RTP/AVP 8\r\na=rtpmap:8 PCMA/8000\r\n";

/// The final answer to an INVITE for alice by `node`.
fn call(shared: &Shared, node: &str, number: u32) -> u16 {
    let socket = socket_in(&shared.net.ns("in"), "10.2.0.10:5060");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
    let invite = format!(
        "INVITE sip:alice@{node} SIP/2.0\r\n\
         Via: SIP/2.0/UDP 10.2.0.10:5060;branch=z9hG4bKcall{number}\r\n\
         From: <sip:bob@inside>;tag=b{number}\r\nTo: <sip:alice@{node}>\r\n\
         Call-ID: call-{number}\r\nCSeq: 1 INVITE\r\nMax-Forwards: 70\r\n\
         Contact: <sip:bob@10.2.0.10:5060>\r\nContent-Type: application/sdp\r\n\
         Content-Length: {}\r\n\r\n{SDP}",
        SDP.len()
    );
    socket.send_to(invite.as_bytes(), format!("{node}:5060")).expect("send");
    let mut answer = [0; 65536];
    while let Ok((length, _)) = socket.recv_from(&mut answer) {
        let text = String::from_utf8_lossy(&answer[..length]).into_owned();
        let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        if status >= 200 {
            return status;
        }
    }
    0
}

/// Registered at one node, called by another: the INVITE leaves by the connection that the first
/// node holds. When that node is gone, nobody is called into the void.
#[test]
fn a_phone_on_one_nodes_connection_is_called_by_another() {
    if !can_make_namespaces("bindings of other nodes") {
        return;
    }
    let mut shared = Shared::new(PHONES);
    let mut phone = Phone::register(&shared, "10.1.0.11");
    for number in [2, 3] {
        wait_for("the others to know the phone", LONG, || {
            (shared.metric(number, "sbc_cluster_bindings_followed_total") >= 1).then_some(())
        });
    }
    let caller = shared.sipp("in", "caller", "uac-call.xml", "-m 1 -d 200 -s alice 10.2.0.12:5060");
    let invite = phone.next();
    assert!(invite.starts_with("INVITE sip:alice@192.168.1.5:5060;transport=tcp SIP/2.0"));
    assert!(header(&invite, "Via").contains("10.1.0.12"), "n2 has the call: {invite}");
    phone.answer(&invite, SDP);
    let ack = phone.next();
    assert!(ack.starts_with("ACK "), "{ack}");
    // A slow caller sees its 200 twice and sends its ACK again.
    let bye = std::iter::repeat_with(|| phone.next()).find(|m| !m.starts_with("ACK "));
    let bye = bye.expect("a request");
    assert!(bye.starts_with("BYE "), "{bye}");
    phone.answer(&bye, "");
    caller.expect_success(LONG);
    wait_for("the call's record", LONG, || (shared.node(2).cdrs().len() == 1).then_some(()));

    let mut first = shared.nodes.remove(0);
    first.proc.signal(Signal::SIGKILL);
    first.proc.wait(LONG);
    let mut number = 0;
    // Each node follows the log at its own pace.
    for node in ["10.2.0.12", "10.2.0.13"] {
        wait_for("the phone to be known as gone", LONG, || {
            number += 1;
            (call(&shared, node, number) == 480).then_some(())
        });
    }
}

/// A phone that registers again by another node, over UDP, is one phone; one that takes itself out
/// there is gone everywhere.
#[test]
fn a_phone_may_register_again_by_another_node() {
    if !can_make_namespaces("registering elsewhere") {
        return;
    }
    let shared = Shared::new(PHONES);
    let register = |node: &str, cseq: u32, expires: u32| {
        let text = format!(
            "REGISTER sip:example.com SIP/2.0\r\n\
             Via: SIP/2.0/UDP 10.1.0.10:5070;branch=z9hG4bKr{cseq}\r\n\
             From: <sip:alice@example.com>;tag=r{cseq}\r\nTo: <sip:alice@example.com>\r\n\
             Call-ID: reg-1\r\nCSeq: {cseq} REGISTER\r\nMax-Forwards: 70\r\n\
             Contact: <sip:alice@10.1.0.10:5070>;expires={expires}\r\n\
             Content-Length: 0\r\n\r\n"
        );
        let from = shared.net.ns("out");
        let answer = exchange(&from, "10.1.0.10:5070", &format!("{node}:5060"), text.as_bytes());
        String::from_utf8_lossy(&answer).into_owned()
    };
    let first = register("10.1.0.11", 1, 600);
    assert!(first.starts_with("SIP/2.0 200 "), "{first}");
    wait_for("n2 to know the phone", LONG, || {
        (shared.metric(2, "sbc_cluster_bindings_followed_total") >= 1).then_some(())
    });
    // An older request does not undo what another node heard.
    let old = register("10.1.0.12", 1, 0);
    assert!(old.starts_with("SIP/2.0 500 "), "{old}");
    let again = register("10.1.0.12", 2, 600);
    assert_eq!(again.matches("\r\nContact: ").count(), 1, "{again}");
    wait_for("n1 to know that it moved", LONG, || {
        (shared.metric(1, "sbc_cluster_bindings_followed_total") >= 1).then_some(())
    });
    let gone = register("10.1.0.13", 3, 0);
    assert!(gone.starts_with("SIP/2.0 200 ") && !gone.contains("\r\nContact: "), "{gone}");
    let mut number = 0;
    for node in ["10.2.0.11", "10.2.0.12", "10.2.0.13"] {
        wait_for("the phone to be gone", LONG, || {
            number += 1;
            (call(&shared, node, number) == 480).then_some(())
        });
    }
}

/// Busy to every INVITE, for good; says from where each came.
fn busy(phone: &std::net::UdpSocket, heard: &std::sync::mpsc::Sender<std::net::SocketAddr>) {
    let mut message = [0; 65_536];
    while let Ok((length, from)) = phone.recv_from(&mut message) {
        let text = String::from_utf8_lossy(&message[..length]).into_owned();
        if !text.starts_with("INVITE ") {
            continue;
        }
        let copied = |name: &str| {
            let lines = text.lines().filter(|l| l.starts_with(name));
            lines.map(|l| format!("{l}\r\n")).collect::<String>()
        };
        let to = copied("To: ").replace("\r\n", ";tag=busy\r\n");
        let answer = [
            "SIP/2.0 486 Busy Here\r\n".to_owned(),
            copied("Via: "),
            copied("From: "),
            to,
            copied("Call-ID: "),
            copied("CSeq: "),
            "Content-Length: 0\r\n\r\n".to_owned(),
        ];
        phone.send_to(answer.concat().as_bytes(), from).expect("answer");
        if heard.send(from).is_err() {
            return;
        }
    }
}

/// Registered over UDP by one node, called through the others, before and after that node died.
#[test]
fn a_phone_over_udp_is_called_through_others_after_its_node_died() {
    if !can_make_namespaces("phones of a dead node") {
        return;
    }
    let mut shared = Shared::new(PHONES);
    let phone = socket_in(&shared.net.ns("out"), "10.1.0.10:5070");
    phone.set_read_timeout(Some(LONG)).expect("timeout");
    let text = "REGISTER sip:example.com SIP/2.0\r\n\
                Via: SIP/2.0/UDP 10.1.0.10:5070;branch=z9hG4bKr1\r\n\
                From: <sip:alice@example.com>;tag=r1\r\nTo: <sip:alice@example.com>\r\n\
                Call-ID: reg-1\r\nCSeq: 1 REGISTER\r\nMax-Forwards: 70\r\n\
                Contact: <sip:alice@10.1.0.10:5070>;expires=600\r\nContent-Length: 0\r\n\r\n";
    phone.send_to(text.as_bytes(), "10.1.0.11:5060").expect("send");
    let mut answer = [0; 65_536];
    let length = phone.recv(&mut answer).expect("an answer");
    assert!(answer[..length].starts_with(b"SIP/2.0 200 "));
    for number in [2, 3] {
        wait_for("the others to know the phone", LONG, || {
            (shared.metric(number, "sbc_cluster_bindings_followed_total") >= 1).then_some(())
        });
    }
    let (heard, calls) = std::sync::mpsc::channel();
    let answering = std::thread::spawn(move || busy(&phone, &heard));
    assert_eq!(call(&shared, "10.2.0.12", 1), 486);
    assert_eq!(calls.recv_timeout(LONG).expect("a call").ip().to_string(), "10.1.0.12");

    let mut first = shared.nodes.remove(0);
    first.proc.signal(Signal::SIGKILL);
    first.proc.wait(LONG);
    for (number, node) in [(2, "12"), (3, "13")] {
        assert_eq!(call(&shared, &format!("10.2.0.{node}"), number), 486, "through {node}");
        let from = calls.recv_timeout(LONG).expect("a call");
        assert_eq!(from.ip().to_string(), format!("10.1.0.{node}"));
    }
    // Ends at its next call.
    drop(calls);
    drop(shared);
    drop(answering);
}
