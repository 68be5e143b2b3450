//! Legs over connections: what becomes of them when the connection is gone, and how they go on.

use super::adopt::lost_call;
use super::basic::*;
use super::users;
use super::world::*;
use crate::b2bua::CallRecord;
use crate::core::{AdoptMode, Input};
use crate::net::{ConnId, Flow, Transport};

/// A connection of B's host.
fn by(conn: u64) -> Flow {
    let port = 40_000 + u16::try_from(conn).unwrap();
    let remote = std::net::SocketAddr::new(Who::B.addr().ip(), port);
    Flow { transport: Transport::Tcp, remote, conn: Some(ConnId(conn)), ..Who::B.flow() }
}

const PHONE: &str = "sip:bob@192.168.1.5:5060;transport=tcp";

/// A call to a phone behind a connection to a node that dies.
fn lost_phone() -> (CallRecord, UpCall) {
    let (mut record, call) = lost_call();
    record.b.remote = "<sip:bob@example.com>".into();
    record.b.target = PHONE.into();
    behind_connection(&mut record);
    (record, call)
}

fn behind_connection(record: &mut CallRecord) {
    record.b.transport = Transport::Tcp;
    record.b.next_hop = Some(by(1).remote);
    record.b.connection = true;
}

fn survivor(phones: bool) -> World {
    let mut settings = if phones { users::settings(false) } else { Settings::new() };
    (settings.seed, settings.tcp) = (2, true);
    settings.one.symmetric = phones;
    settings.begin()
}

fn adopt(w: &mut World, record: &CallRecord, mode: AdoptMode) {
    w.input(Input::Adopt { record: Box::new(record.clone()), mode });
}

fn says_by(w: &mut World, conn: u64, text: &str) {
    w.input(Input::Message { flow: by(conn), data: wire_form(text).into() });
}

fn register(w: &mut World, conn: u64, contact: &str) {
    let branch = w.branch();
    let text = format!(
        "REGISTER sip:example.com SIP/2.0
Via: SIP/2.0/TCP 192.168.1.5:5060;branch={branch};rport
Max-Forwards: 70
From: <sip:bob@example.com>;tag=r
To: <sip:bob@example.com>
Call-ID: reg-{conn}
CSeq: 1 REGISTER
Contact: <{contact}>
"
    );
    says_by(w, conn, &text);
    w.expect(Who::B, "200");
}

fn a_hangs_up(w: &mut World, call: &UpCall) {
    let bye = a_request(w, &call.ok, "BYE", 102, "");
    w.says(Who::A, &bye);
    w.expect(Who::A, "200");
}

/// The BYE of a lost leg has gone by that connection, and the call is over.
fn bye_by(w: &mut World, conn: u64) {
    let bye = w.expect(Who::B, "BYE");
    assert_eq!(w.last_conn, Some(ConnId(conn)));
    assert_eq!(bye.to_tag(), Some("bobtag"));
    assert!(bye.cseq().unwrap().number > 1_000, "beyond what the other node may have used");
    w.answer(Who::B, &bye, 200, "", "");
    assert_eq!((w.cdrs.len(), w.core.calls().count()), (1, 0));
}

#[test]
fn a_bye_waits_for_the_phone_to_register_again() {
    let (record, call) = lost_phone();
    let mut w = survivor(true);
    adopt(&mut w, &record, AdoptMode::Address);
    w.ms(3_000);
    a_hangs_up(&mut w, &call);
    assert_eq!(w.cdrs.len(), 1, "for the caller the call is over");
    w.ms(5_000);
    w.nothing(Who::B);
    register(&mut w, 7, PHONE);
    w.ms(1_100);
    bye_by(&mut w, 7);
    assert_eq!(w.core.stats().legs_rebound, 1);
}

/// Timer F: nobody waits longer for an answer to a BYE.
#[test]
fn a_bye_that_nobody_can_get_is_given_up_after_32_s() {
    let (record, call) = lost_phone();
    let mut w = survivor(true);
    adopt(&mut w, &record, AdoptMode::Address);
    a_hangs_up(&mut w, &call);
    w.ms(20_000);
    assert_eq!(w.core.calls().count(), 1);
    w.ms(15_000);
    w.nothing(Who::B);
    assert_eq!((w.core.calls().count(), w.core.stats().legs_rebound), (0, 0));
    w.assert_clean();
}

#[test]
fn a_phone_is_reinvited_once_it_registers_again() {
    let (record, call) = lost_phone();
    let mut w = survivor(true);
    adopt(&mut w, &record, AdoptMode::Reinvite);
    let to_a = w.expect(Who::A, "INVITE");
    w.answer(Who::A, &to_a, 200, "", &sdp(SDP_A));
    w.expect(Who::A, "ACK");
    w.ms(20_000);
    w.nothing(Who::B);
    // Another device of the user is not the one that talks.
    let elsewhere = Flow { remote: "192.0.2.77:40000".parse().unwrap(), ..by(6) };
    let text = "REGISTER sip:example.com SIP/2.0
Via: SIP/2.0/TCP 10.9.9.9:5060;branch=z9hG4bKother;rport
Max-Forwards: 70
From: <sip:bob@example.com>;tag=r
To: <sip:bob@example.com>
Call-ID: other
CSeq: 1 REGISTER
Contact: <sip:bob@192.0.2.77:5060;transport=tcp>
";
    w.only_conn = Some(ConnId(7));
    w.input(Input::Message { flow: elsewhere, data: wire_form(text).into() });
    w.ms(9_000);
    w.nothing(Who::B);
    // The same device says another contact now, as behind a NAT that gave it another port.
    register(&mut w, 7, "sip:bob@192.168.1.5:49200;transport=tcp");
    w.until(Who::B);
    let to_b = w.expect(Who::B, &format!("INVITE {PHONE}"));
    assert_eq!(w.last_conn, Some(ConnId(7)));
    assert!(to_b.via().unwrap().transport.eq_ignore_ascii_case("TCP"));
    w.answer(Who::B, &to_b, 200, "", &sdp(SDP_B));
    w.expect(Who::B, "ACK");
    assert_eq!((w.core.stats().legs_moved, w.core.stats().legs_rebound), (2, 1));
    assert!(w.records.last().unwrap().b.connection);
    a_hangs_up(&mut w, &call);
    bye_by(&mut w, 7);
}

/// RFC 3261 §12.2: the peer's own request in the dialog shows the way, also where its Contact would
/// be followed otherwise.
#[test]
fn a_request_in_the_dialog_by_a_new_connection_shows_the_way() {
    for phones in [false, true] {
        let (mut record, call) = lost_phone();
        if !phones {
            record.b.target = "sip:peer@192.0.2.1:5060;transport=tcp".into();
        }
        let mut w = survivor(phones);
        adopt(&mut w, &record, AdoptMode::Address);
        let info = b_request(&mut w, &call.invite, "bobtag", "INFO", 1, "");
        says_by(&mut w, 9, &info);
        let passed = w.expect(Who::A, "INFO");
        w.answer(Who::A, &passed, 200, "", "");
        w.expect(Who::B, "200");
        assert_eq!(w.core.stats().legs_rebound, 1, "phones: {phones}");
        w.only_conn = Some(ConnId(9));
        a_hangs_up(&mut w, &call);
        bye_by(&mut w, 9);
        w.assert_clean();
    }
}

/// A trunk's peer that only ever connects: any request of it by a new connection is enough.
#[test]
fn a_trunk_that_connects_again_gets_what_waited() {
    let (record, call) = lost_phone();
    let mut w = survivor(false);
    w.only_conn = Some(ConnId(9));
    adopt(&mut w, &record, AdoptMode::Address);
    a_hangs_up(&mut w, &call);
    w.ms(2_000);
    w.nothing(Who::B);
    options(&mut w, 9);
    w.until(Who::B);
    w.all(Who::B);
    w.ms(1_100);
    let bye = w.seen[&Who::B].iter().filter(|m| m.starts_with(b"BYE ")).count();
    assert_eq!((bye, w.core.stats().legs_rebound), (1, 1));
}

/// A connection that breaks while its node lives: what the other side asks fails, the call stays.
#[test]
fn a_broken_connection_ends_no_call() {
    let (record, call) = lost_phone();
    let mut w = survivor(true);
    adopt(&mut w, &record, AdoptMode::Address);
    register(&mut w, 7, PHONE);
    w.ms(8_100);
    assert_eq!(w.core.stats().legs_rebound, 1);
    // The connection dies without a word.
    w.only_conn = Some(ConnId(8));
    let held = sdp(SDP_A).replace("sendrecv", "sendonly");
    let held = if held == sdp(SDP_A) { format!("{held}a=sendonly\n") } else { held };
    let hold = a_request(&mut w, &call.ok, "INVITE", 102, &held);
    w.says(Who::A, &hold);
    w.expect(Who::A, "503");
    assert_eq!((w.core.calls().count(), w.cdrs.len()), (1, 0));
    register(&mut w, 8, PHONE);
    w.ms(8_100);
    let hold = a_request(&mut w, &call.ok, "INVITE", 103, &held);
    w.says(Who::A, &hold);
    let passed = w.expect(Who::B, "INVITE");
    assert_eq!(w.last_conn, Some(ConnId(8)));
    w.answer(Who::B, &passed, 488, "", "");
    assert_eq!(w.core.stats().legs_rebound, 2);
}

/// OPTIONS of B's host by a connection: whatever it says, it is there.
fn options(w: &mut World, conn: u64) {
    let branch = w.branch();
    let options = format!(
        "OPTIONS sip:sbc SIP/2.0
Via: SIP/2.0/TCP 192.0.2.1:5060;branch={branch};rport
Max-Forwards: 70
From: <sip:peer@192.0.2.1>;tag=o
To: <sip:sbc>
Call-ID: options-{conn}
CSeq: 1 OPTIONS
"
    );
    says_by(w, conn, &options);
}

/// Two shards of a node: the first carries the call of a trunk whose peer only ever connects.
fn two_shards(record: &CallRecord) -> [World; 2] {
    let mut shards = [survivor(false), survivor(false)];
    for (place, w) in (0..).zip(&mut shards) {
        w.core.set_place(place, 2);
        w.only_conn = Some(ConnId(9));
    }
    adopt(&mut shards[0], record, AdoptMode::Address);
    shards
}

/// Hands over what one shard has for the other.
fn hand_over(shards: &mut [World; 2], from: usize) -> Vec<Input> {
    let to = 1 - from;
    let mut all = Vec::new();
    for (shard, input) in std::mem::take(&mut shards[from].shards) {
        assert_eq!(usize::try_from(shard), Ok(to));
        all.push(input);
    }
    all
}

#[test]
fn a_trunk_that_connects_again_is_heard_by_all_shards() {
    let (record, call) = lost_phone();
    let mut shards = two_shards(&record);
    a_hangs_up(&mut shards[0], &call);
    // The peer is not there yet: the other shard is asked once a second and has nothing to say.
    for second in 0..3 {
        shards[0].ms(if second == 0 { 0 } else { 1_000 });
        let asked = hand_over(&mut shards, 0);
        assert_eq!(asked.len(), 1, "{asked:?}");
        for input in asked {
            let Input::FindPeer { from: 0, interface: OUTSIDE, host } = input else { panic!() };
            assert_eq!(host, Who::B.addr().ip());
            shards[1].input(input);
        }
        assert!(hand_over(&mut shards, 1).is_empty());
    }
    // It is heard by the other shard alone.
    options(&mut shards[1], 9);
    shards[1].expect(Who::B, "200");
    assert!(hand_over(&mut shards, 1).is_empty(), "nobody has asked");
    shards[0].ms(1_000);
    for input in hand_over(&mut shards, 0) {
        shards[1].input(input);
    }
    let told = hand_over(&mut shards, 1);
    assert!(matches!(*told, [Input::PeerFound { flow }] if flow == by(9)), "{told:?}");
    for input in told {
        shards[0].input(input);
    }
    bye_by(&mut shards[0], 9);
    assert_eq!(shards[0].core.stats().legs_rebound, 1);
    shards[0].assert_clean();
}

/// A connection that was heard and closed is told to nobody.
#[test]
fn a_connection_of_a_trunk_that_closed_is_not_told() {
    let (record, call) = lost_phone();
    let mut shards = two_shards(&record);
    options(&mut shards[1], 9);
    shards[1].expect(Who::B, "200");
    shards[1].input(Input::ConnClosed { flow: by(9) });
    a_hangs_up(&mut shards[0], &call);
    let asked = hand_over(&mut shards, 0);
    assert_eq!(asked.len(), 1, "{asked:?}");
    for input in asked {
        shards[1].input(input);
    }
    assert!(hand_over(&mut shards, 1).is_empty());
    // A shard that has not heard of the close tells it all the same.
    shards[0].input(Input::ConnClosed { flow: by(9) });
    shards[0].input(Input::PeerFound { flow: by(9) });
    assert_eq!(shards[0].core.stats().legs_rebound, 0);
    shards[0].input(Input::PeerFound { flow: by(8) });
    assert_eq!(shards[0].core.stats().legs_rebound, 1);
}
