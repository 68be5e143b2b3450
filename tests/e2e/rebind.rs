//! Calls to phones behind connections, when the connection dies with its node.

use nix::sys::signal::Signal;
use sbc_tests::agent::{Agent, Direction};
use sbc_tests::{can_make_namespaces, wait_for};

use crate::shared::{LONG, PHONES, Phone, SDP, Shared, header};

/// A call between a phone on a TCP connection and one on UDP, by the first node.
fn call(shared: &Shared) -> (Phone, Agent) {
    let mut phone = Phone::register(shared, "10.1.0.11:5060");
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
fn orphaned() -> (Shared, Agent) {
    let mut shared = Shared::new(PHONES);
    let (gone, mut caller) = call(&shared);
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

fn cdrs(shared: &Shared) -> usize {
    shared.nodes.iter().map(|node| node.cdrs().len()).sum()
}

/// The node of both the connection and the call is killed. The phone registers again by another: it
/// is re-INVITEd by its new connection, whichever node carries the call, and hung up on by it.
#[test]
fn a_call_over_a_dead_connection_goes_on_when_its_phone_registers_again() {
    if !can_make_namespaces("calls over connections") {
        return;
    }
    let (shared, mut caller) = orphaned();
    let mut phone = Phone::register_as(&shared, "10.1.0.12:5060", 2);
    let invite = phone.next();
    assert!(invite.starts_with("INVITE sip:alice@192.168.1.5:5060;transport=tcp "), "{invite}");
    assert!(header(&invite, "To").contains("tag=phone"), "in the dialog: {invite}");
    assert!(!header(&invite, "Contact").contains("10.1.0.11"), "{invite}");
    phone.answer(&invite, SDP);
    let ack = phone.next();
    assert!(ack.starts_with("ACK "), "{ack}");
    wait_for("both legs to be moved", LONG, || {
        (sum(&shared, "sbc_legs_moved_total") == 2.0).then_some(())
    });
    caller.bye();
    let bye = phone.next();
    assert!(bye.starts_with("BYE sip:alice@192.168.1.5:5060;transport=tcp "), "{bye}");
    let seq = |m: &str| header(m, "CSeq").split(' ').next().and_then(|n| n.parse::<u32>().ok());
    assert!(seq(&bye) > seq(&invite), "{bye}");
    phone.answer(&bye, "");
    assert_eq!(sum(&shared, "sbc_legs_rebound_total"), 1.0);
    wait_for("the call's record", LONG, || (cdrs(&shared) == 1).then_some(()));
}

/// The caller hangs up while the phone has no connection: it gets its BYE when it registers again.
#[test]
fn a_bye_waits_for_the_phone_to_come_back() {
    if !can_make_namespaces("a BYE that waits") {
        return;
    }
    let (shared, mut caller) = orphaned();
    caller.bye();
    wait_for("the call's record", LONG, || (cdrs(&shared) == 1).then_some(()));
    let mut phone = Phone::register_as(&shared, "10.1.0.13:5060", 2);
    let bye = phone.next();
    assert!(bye.starts_with("BYE sip:alice@192.168.1.5:5060;transport=tcp "), "{bye}");
    phone.answer(&bye, "");
    wait_for("the call to be forgotten", LONG, || (sum(&shared, "sbc_calls") == 0.0).then_some(()));
}
