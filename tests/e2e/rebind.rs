//! Calls to phones behind connections, when the connection dies with its node.

use std::collections::BTreeSet;
use std::net::UdpSocket;

use nix::sys::signal::Signal;
use sbc_tests::agent::{Agent, Direction};
use sbc_tests::net::socket_in;
use sbc_tests::{can_make_namespaces, wait_for};
use serde_json::Value;

use crate::line::{Over, Phone, header};
use crate::shared::{LONG, PHONES, SDP, Shared, TRUNKS};

/// A call between a phone behind a connection and one on UDP, by the first node.
fn call(shared: &Shared, over: Over) -> (Phone, Agent) {
    let mut phone = Phone::register_over(shared, "10.1.0.11", over, 1);
    let sbc = "10.2.0.11:5060".parse().expect("an address");
    let mut caller = Agent::new(&shared.net.ns("in"), "bob", "10.2.0.10:5060", sbc);
    caller.invite("alice", "10.2.0.10:4000".parse().expect("an address"));
    let invite = phone.next();
    phone.answer(&invite, SDP);
    caller.answered();
    let ack = phone.next();
    assert!(ack.starts_with("ACK "), "{ack}");
    (phone, caller)
}

/// Such a call whose node was killed, with the phone's connection. The caller answers audio both ways.
fn orphaned(over: Over) -> (Shared, Agent) {
    let mut shared = if over == Over::Tcp { Shared::new(PHONES) } else { Shared::secure(PHONES) };
    let (gone, mut caller) = call(&shared, over);
    let mut first = shared.nodes.remove(0);
    first.proc.signal(Signal::SIGKILL);
    first.proc.wait(LONG);
    drop(gone);
    // Nobody has to wait for the phone.
    caller.answer("10.2.0.10:4000".parse().expect("an address"), Direction::Both);
    (shared, caller)
}

fn sum(shared: &Shared, name: &str) -> f64 {
    shared.nodes.iter().map(|node| node.stat(name, "")).sum()
}

fn cdrs(shared: &Shared) -> Vec<Value> {
    shared.nodes.iter().flat_map(|node| node.cdrs()).collect()
}

/// The node of both the connection and the call is killed. The phone registers again by another: it
/// is re-INVITEd by its new connection, whichever node carries the call, and by it the other side
/// offers anew and hangs up.
fn goes_on_when_its_phone_registers_again(over: Over) {
    let (shared, mut caller) = orphaned(over);
    let mut phone = Phone::register_over(&shared, "10.1.0.12", over, 2);
    let to_it = |method: &str| format!("{method} {} SIP/2.0", over.contact());
    let invite = phone.next();
    assert!(invite.starts_with(&to_it("INVITE")), "{invite}");
    assert!(header(&invite, "To").contains("tag=phone"), "in the dialog: {invite}");
    assert!(!header(&invite, "Contact").contains("10.1.0.11"), "{invite}");
    phone.answer(&invite, SDP);
    let ack = phone.next();
    assert!(ack.starts_with(&to_it("ACK")), "{ack}");
    wait_for("both legs to be moved", LONG, || {
        (sum(&shared, "sbc_legs_moved_total") == 2.0).then_some(())
    });

    caller.reinvite("10.2.0.10:4002".parse().expect("an address"), Direction::Both);
    let again = phone.next();
    assert!(again.starts_with(&to_it("INVITE")), "{again}");
    phone.answer(&again, SDP);
    caller.answered();
    let ack = phone.next();
    assert!(ack.starts_with(&to_it("ACK")), "{ack}");

    caller.bye();
    let bye = phone.next();
    assert!(bye.starts_with(&to_it("BYE")), "{bye}");
    let seq = |m: &str| header(m, "CSeq").split(' ').next().and_then(|n| n.parse::<u32>().ok());
    assert!(seq(&again) > seq(&invite) && seq(&bye) > seq(&again), "{bye}");
    phone.answer(&bye, "");
    assert_eq!(sum(&shared, "sbc_legs_rebound_total"), 1.0);
    let cdrs =
        wait_for("the call's record", LONG, || Some(cdrs(&shared)).filter(|c| !c.is_empty()));
    assert_eq!(cdrs.len(), 1, "{cdrs:?}");
    let cdr = &cdrs[0];
    assert_eq!((&cdr["status"], &cdr["ended_by"]), (&200.into(), &"caller".into()), "{cdr}");
    assert!(cdr["answered"].is_string() && cdr["b"].is_object(), "{cdr}");
}

#[test]
fn a_call_over_a_dead_connection_goes_on_when_its_phone_registers_again() {
    if can_make_namespaces("calls over connections") {
        goes_on_when_its_phone_registers_again(Over::Tcp);
    }
}

#[test]
fn a_call_over_a_dead_tls_connection_goes_on_when_its_phone_registers_again() {
    if can_make_namespaces("calls over TLS") {
        goes_on_when_its_phone_registers_again(Over::Tls);
    }
}

#[test]
fn a_call_over_a_dead_websocket_goes_on_when_its_phone_registers_again() {
    if can_make_namespaces("calls over WebSocket") {
        goes_on_when_its_phone_registers_again(Over::Ws);
    }
}

#[test]
fn a_call_over_a_dead_secure_websocket_goes_on_when_its_phone_registers_again() {
    if can_make_namespaces("calls over secure WebSocket") {
        goes_on_when_its_phone_registers_again(Over::Wss);
    }
}

/// The caller hangs up while the phone has no connection: it gets its BYE when it registers again.
fn gets_its_bye_when_it_comes_back(over: Over) {
    let (shared, mut caller) = orphaned(over);
    caller.bye();
    wait_for("the call's record", LONG, || (cdrs(&shared).len() == 1).then_some(()));
    let mut phone = Phone::register_over(&shared, "10.1.0.13", over, 2);
    let bye = phone.next();
    assert!(bye.starts_with(&format!("BYE {} SIP/2.0", over.contact())), "{bye}");
    phone.answer(&bye, "");
    wait_for("the call to be forgotten", LONG, || (sum(&shared, "sbc_calls") == 0.0).then_some(()));
}

#[test]
fn a_bye_waits_for_the_phone_to_come_back() {
    if can_make_namespaces("a BYE that waits") {
        gets_its_bye_when_it_comes_back(Over::Tcp);
    }
}

#[test]
fn a_bye_waits_for_a_secure_websocket_to_come_back() {
    if can_make_namespaces("a BYE that waits for a browser") {
        gets_its_bye_when_it_comes_back(Over::Wss);
    }
}

/// Calls of one trunk at most until each shard has one.
const CALLS_MAX: usize = 32;

/// A request of the trunk's peer, which listens nowhere. Its dialog is told by `to`'s tag.
fn of_trunk(method: &str, uri: &str, number: usize, to: &str, body: &str) -> String {
    let kind = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
    format!(
        "{method} {uri} SIP/2.0\r\n\
         Via: SIP/2.0/TCP 10.1.0.10:5060;branch=z9hG4bK{method}{number};rport\r\n\
         From: <sip:peer@10.1.0.10>;tag=p{number}\r\nTo: {to}\r\n\
         Call-ID: trunk-{number}\r\nCSeq: 1 {method}\r\nMax-Forwards: 70\r\n\
         Contact: <sip:peer@10.1.0.10:5060;transport=tcp>\r\n{kind}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn uri(contact: &str) -> &str {
    contact.trim_matches(['<', '>'])
}

/// Takes a call on the inside; its INVITE.
fn taken(inside: &UdpSocket) -> String {
    let mut data = [0; 8192];
    loop {
        let (length, from) = inside.recv_from(&mut data).expect("an INVITE in time");
        let invite = String::from_utf8_lossy(&data[..length]).into_owned();
        if !invite.starts_with("INVITE ") {
            continue;
        }
        let line = |name: &str| format!("{name}: {}\r\n", header(&invite, name));
        let same: String = ["Via", "From", "Call-ID", "CSeq"].map(line).concat();
        let answer = format!(
            "SIP/2.0 200 OK\r\n{same}To: {};tag=in\r\nContact: <sip:in@10.2.0.10:5060>\r\n\
             Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{SDP}",
            header(&invite, "To"),
            SDP.len()
        );
        inside.send_to(answer.as_bytes(), from).expect("answer");
        return invite;
    }
}

/// The inside hangs up on a call that it took.
fn hang_up(inside: &UdpSocket, invite: &str, number: usize) {
    let bye = format!(
        "BYE {} SIP/2.0\r\nVia: SIP/2.0/UDP 10.2.0.10:5060;branch=z9hG4bKbye{number}\r\n\
         From: {};tag=in\r\nTo: {}\r\nCall-ID: {}\r\nCSeq: 1 BYE\r\nMax-Forwards: 70\r\n\
         Content-Length: 0\r\n\r\n",
        uri(&header(invite, "Contact")),
        header(invite, "To"),
        header(invite, "From"),
        header(invite, "Call-ID"),
    );
    inside.send_to(bye.as_bytes(), "10.2.0.11:5060").expect("BYE");
}

/// The peer of a trunk loses its connection and opens another one. One OPTIONS by it is heard by one
/// shard of the node; the calls of all shards go by it.
#[test]
fn a_trunks_new_connection_is_heard_by_the_calls_of_every_shard() {
    if !can_make_namespaces("a trunk that connects again") {
        return;
    }
    // Nobody listens where its Contact says.
    let trunks = TRUNKS.replacen("peers = ", "symmetric = true\npeers = ", 1);
    let shared = Shared::new(&trunks);
    let node = shared.node(1);
    let inside = socket_in(&shared.net.ns("in"), "10.2.0.10:5060");
    inside.set_read_timeout(Some(LONG)).expect("timeout");
    let mut peer = Phone::open(&shared, "10.1.0.11", Over::Tcp);
    let sbc = "sip:1234@10.1.0.11";
    let mut calls = Vec::new();
    let spread = || (0..2).all(|n| node.stat("sbc_calls", &format!("shard=\"{n}\"")) > 0.0);
    while !spread() {
        let number = calls.len();
        assert!(number < CALLS_MAX, "all of one shard");
        peer.send(&of_trunk("INVITE", sbc, number, &format!("<{sbc}>"), SDP));
        calls.push(taken(&inside));
        let answer = std::iter::repeat_with(|| peer.next()).find(|m| !m.starts_with("SIP/2.0 1"));
        let answer = answer.expect("an answer");
        assert!(answer.starts_with("SIP/2.0 200 "), "{answer}");
        let (contact, to) = (header(&answer, "Contact"), header(&answer, "To"));
        peer.send(&of_trunk("ACK", uri(&contact), number, &to, ""));
    }
    drop(peer);
    let mut peer = Phone::open(&shared, "10.1.0.11", Over::Tcp);
    peer.send(&of_trunk("OPTIONS", sbc, CALLS_MAX, &format!("<{sbc}>"), ""));
    let answer = peer.next();
    assert!(answer.starts_with("SIP/2.0 200 "), "{answer}");

    for (number, invite) in calls.iter().enumerate() {
        hang_up(&inside, invite, number);
    }
    let mut ended = BTreeSet::new();
    for _ in &calls {
        let bye = peer.next();
        assert!(bye.starts_with("BYE sip:peer@10.1.0.10:5060;transport=tcp "), "{bye}");
        peer.answer(&bye, "");
        assert!(ended.insert(header(&bye, "Call-ID")), "{bye}");
    }
    assert_eq!(ended, (0..calls.len()).map(|n| format!("trunk-{n}")).collect());
    wait_for("all calls to be forgotten", LONG, || {
        (node.stat("sbc_calls", "") == 0.0).then_some(())
    });
    let rebound = node.metric("sbc_legs_rebound_total", "");
    assert_eq!(usize::try_from(rebound).expect("a count"), calls.len());
    assert_eq!(node.cdrs().len(), calls.len());
}
