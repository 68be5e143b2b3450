//! Several phones of one user: rung at the same time or by q, one answer wins (RFC 3261 §16.7).

use std::sync::Arc;

use super::basic::{SDP_A, SDP_B, invite_text, sdp};
use super::users::{call, register, settings};
use super::world::*;
use crate::sip::Message;

/// Registers these contacts of Bob and calls him.
fn ringing(w: &mut World, contacts: &str) {
    register(w, Who::B, 1, &format!("Contact: {contacts}\n"));
    w.expect(Who::B, "200");
    call(w);
}

/// The next INVITEs, by the user part of their contacts.
fn invites(w: &mut World, users: [&str; 2]) -> [Message; 2] {
    let both = [w.expect(Who::B, "INVITE"), w.expect(Who::B, "INVITE")];
    let of = |user: &str| {
        let wanted = format!("sip:{user}@192.0.2.1");
        both.iter().find(|m| m.request_uri_str() == wanted).cloned()
    };
    users.map(|user| of(user).unwrap_or_else(|| panic!("no INVITE for {user}\n{}", w.ladder)))
}

const TWO: &str = "<sip:desk@192.0.2.1>, <sip:cell@192.0.2.1>";

fn ok() -> String {
    format!("Contact: <sip:x@192.0.2.1>\n{}", sdp(SDP_B))
}

#[test]
fn the_first_2xx_wins_and_the_other_phone_stops_ringing() {
    let mut w = settings(false).begin();
    ringing(&mut w, TWO);
    let [desk, cell] = invites(&mut w, ["desk", "cell"]);
    assert_ne!(desk.call_id(), cell.call_id());
    w.answer(Who::B, &desk, 180, "same", "Contact: <sip:d@192.0.2.1>\n");
    w.answer(Who::B, &cell, 180, "same", "Contact: <sip:c@192.0.2.1>\n");
    let (first, second) = (w.expect(Who::A, "180"), w.expect(Who::A, "180"));
    assert_ne!(first.to_tag(), second.to_tag(), "two early dialogs");
    // Both phones chose the same tag: what tells them apart is the Call-ID.
    w.answer(Who::B, &cell, 200, "same", &ok());
    let cancel = w.expect(Who::B, "CANCEL");
    assert_eq!(cancel.call_id(), desk.call_id());
    assert!(String::from_utf8_lossy(cancel.as_bytes()).contains("cause=200"));
    let answered = w.expect(Who::A, "200");
    assert_eq!(answered.to_tag(), second.to_tag());
    // The desk phone was answered too, just then: it is told that it lost.
    w.answer(Who::B, &cancel, 200, "same", "");
    w.answer(Who::B, &desk, 200, "same", &ok());
    let ack = w.expect(Who::B, "ACK");
    let bye = w.expect(Who::B, "BYE");
    assert_eq!((ack.call_id(), bye.call_id()), (desk.call_id(), desk.call_id()));
    w.answer(Who::B, &bye, 200, "same", "");
    w.nothing(Who::A);
}

#[test]
fn failures_wait_for_the_last_and_the_best_is_told() {
    let mut settings_ = settings(false);
    settings_.two.enabled = false;
    let mut w = settings_.begin();
    ringing(&mut w, TWO);
    let [desk, cell] = invites(&mut w, ["desk", "cell"]);
    w.answer(Who::B, &desk, 503, "a", "");
    w.expect(Who::B, "ACK");
    w.nothing(Who::A);
    w.answer(Who::B, &cell, 486, "b", "");
    w.expect(Who::B, "ACK");
    w.expect(Who::A, "486");
    w.assert_clean();
}

#[test]
fn a_decline_ends_it_everywhere() {
    let mut w = settings(false).begin();
    ringing(&mut w, &format!("{TWO}, <sip:spare@192.0.2.1>;q=0.5"));
    let [desk, cell] = invites(&mut w, ["desk", "cell"]);
    w.answer(Who::B, &desk, 180, "a", "");
    w.expect(Who::A, "180");
    w.answer(Who::B, &cell, 603, "b", "");
    w.expect(Who::B, "ACK");
    let cancel = w.expect(Who::B, "CANCEL");
    assert_eq!(cancel.call_id(), desk.call_id());
    w.expect(Who::A, "603");
    w.answer(Who::B, &cancel, 200, "a", "");
    w.answer(Who::B, &desk, 487, "a", "");
    w.expect(Who::B, "ACK");
    w.nothing(Who::B);
    w.assert_clean();
}

#[test]
fn lower_q_comes_after_all_of_the_higher_and_voicemail_after_all() {
    let mut w = settings(false).begin();
    ringing(&mut w, &format!("{TWO}, <sip:spare@192.0.2.1>;q=0.5"));
    let [desk, cell] = invites(&mut w, ["desk", "cell"]);
    w.nothing(Who::B);
    w.answer(Who::B, &desk, 480, "a", "");
    w.expect(Who::B, "ACK");
    w.nothing(Who::B);
    w.answer(Who::B, &cell, 503, "b", "");
    w.expect(Who::B, "ACK");
    let spare = w.expect(Who::B, "INVITE");
    assert_eq!(spare.request_uri_str(), "sip:spare@192.0.2.1");
    w.answer(Who::B, &spare, 480, "c", "");
    w.expect(Who::B, "ACK");
    w.expect(Who::C, "INVITE");
}

#[test]
fn the_caller_gives_up_and_every_phone_stops() {
    let mut w = settings(false).begin();
    let invite = invite_text(&mut w, &sdp(SDP_A));
    register(&mut w, Who::B, 1, &format!("Contact: {TWO}\n"));
    w.expect(Who::B, "200");
    w.says(Who::A, &invite);
    let both = invites(&mut w, ["desk", "cell"]);
    for (n, ring) in both.iter().enumerate() {
        w.answer(Who::B, ring, 180, &format!("t{n}"), "");
        w.expect(Who::A, "180");
    }
    let cancel = invite.replace("INVITE", "CANCEL");
    let (head, _) = cancel.split_once("\n\n").unwrap_or((&cancel, ""));
    let head: Vec<&str> = head.lines().filter(|l| !l.starts_with("Content")).collect();
    w.says(Who::A, &head.join("\n"));
    w.expect(Who::A, "200");
    w.expect(Who::A, "487");
    for cancel in [w.expect(Who::B, "CANCEL"), w.expect(Who::B, "CANCEL")] {
        w.answer(Who::B, &cancel, 200, "t", "");
        let ring = both.iter().find(|m| m.call_id() == cancel.call_id());
        w.answer(Who::B, ring.unwrap_or_else(|| panic!("{}", w.ladder)), 487, "t", "");
        w.expect(Who::B, "ACK");
    }
    w.assert_clean();
}

#[test]
fn one_after_the_other_where_that_is_wanted() {
    let mut settings = settings(false);
    if let Some(registrar) = &mut settings.registrar {
        let mut policy = (*registrar.policy).clone();
        policy.parallel = false;
        registrar.policy = Arc::new(policy);
    }
    let mut w = settings.begin();
    ringing(&mut w, TWO);
    let first = w.expect(Who::B, "INVITE");
    w.nothing(Who::B);
    w.answer(Who::B, &first, 486, "a", "");
    w.expect(Who::B, "ACK");
    assert_ne!(w.expect(Who::B, "INVITE").request_uri_str(), first.request_uri_str());
}

/// `early-dialogs`: both phones ring while the node dies; the survivor has both attempts.
#[test]
fn two_phones_that_ring_at_once_are_carried_on() {
    let on_node = |number: u16| {
        let mut settings_ = settings(false);
        (settings_.seed, settings_.node) = (u8::try_from(number).unwrap(), Some(number));
        settings_.calls.early_records = true;
        settings_.begin()
    };
    let mut w = on_node(1);
    ringing(&mut w, TWO);
    let [desk, cell] = invites(&mut w, ["desk", "cell"]);
    w.answer(Who::B, &desk, 180, "same", "Contact: <sip:d@192.0.2.1>\n");
    w.answer(Who::B, &cell, 180, "same", "Contact: <sip:c@192.0.2.1>\n");
    w.expect(Who::A, "180");
    let second = w.expect(Who::A, "180");
    let record = Box::new(w.records.last().unwrap().clone());
    let mut w = on_node(2);
    w.input(crate::core::Input::Adopt { record, mode: crate::core::AdoptMode::Address });
    assert_eq!(w.core.stats().adopted, 1);
    w.answer(Who::B, &cell, 200, "same", &ok());
    let cancel = w.expect(Who::B, "CANCEL");
    assert_eq!((cancel.call_id(), cancel.branch()), (desk.call_id(), desk.branch()));
    assert_eq!(w.expect(Who::A, "200").to_tag(), second.to_tag());
    w.answer(Who::B, &cancel, 200, "same", "");
    w.answer(Who::B, &desk, 487, "same", "");
    w.expect(Who::B, "ACK");
}
