//! Ringing calls of one node carried on by another (`early-dialogs`).

use super::basic::*;
use super::session::hang_up;
use super::world::*;
use crate::b2bua::{CallRecord, EndedBy, Written};
use crate::core::{AdoptMode, Command, Input, Wanted};
use crate::media::Side;
use crate::sip::{HeaderName, Message};

const RELIABLE: &str = "Require: 100rel\nRSeq: 7\n";

fn node(number: u16) -> World {
    let mut settings = Settings::new();
    (settings.seed, settings.node) = (u8::try_from(number).unwrap(), Some(number));
    settings.calls.early_records = true;
    settings.begin()
}

/// The caller's INVITE as it wrote it, and as B got it from the first node.
struct Ringing {
    text: String,
    invite: Message,
    record: CallRecord,
}

/// A call that B lets ring with `ringing`, a status and what follows it, on a node that dies then.
fn ring(rest: &str, ringing: Option<(u16, &str)>) -> (World, Ringing) {
    let mut w = node(1);
    let text = invite_text(&mut w, &format!("{rest}{}", sdp(SDP_A)));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    w.ms(250);
    w.expect(Who::A, "100");
    if let Some((status, rest)) = ringing {
        w.answer(Who::B, &invite, status, "bobtag", rest);
        w.expect(Who::A, &status.to_string());
    }
    let record = w.records.last().unwrap().clone();
    (w, Ringing { text, invite, record })
}

/// The survivor, just after it was given the call.
fn survivor(call: &Ringing) -> World {
    let mut w = node(2);
    w.input(Input::Adopt { record: Box::new(call.record.clone()), mode: AdoptMode::Address });
    assert_eq!((w.core.stats().adopted, w.core.stats().adopt_failed), (1, 0));
    w
}

fn cancel_of(invite: &str) -> String {
    let lines = invite.lines().take_while(|l| !l.starts_with("Contact"));
    lines.map(|l| l.replace("INVITE", "CANCEL")).collect::<Vec<_>>().join("\n")
}

/// A text that both worlds write alike but for the tag that the first node gave leg A.
fn tag_of(call: &Ringing) -> &str {
    &call.record.a.local_tag
}

#[test]
fn the_answer_comes_through_the_survivor() {
    let (_, call) = ring("", Some((180, "")));
    let mut w = survivor(&call);
    w.nothing(Who::A);
    w.nothing(Who::B);
    let counted = |w: &mut World| {
        let mut count = |name| w.core.routing().table().trunk_by_name(name).unwrap().calls();
        (count("pbx"), count("one"))
    };
    assert_eq!(counted(&mut w), (1, 1), "on the trunks of both legs");
    w.ms(3_000);
    w.answer(Who::B, &call.invite, 200, "bobtag", &sdp(SDP_B));
    let ok = w.expect(Who::A, "200");
    assert_eq!(ok.to_tag(), Some(tag_of(&call)), "the dialog that rang");
    assert!(String::from_utf8_lossy(ok.body()).contains("c=IN IP4 10.0.0.9"));
    // Both peers' endpoints are known to the media, B's port is the one that B was told.
    let remote = |w: &World, side| w.anchor.side(0, side).remote.unwrap().rtp.unwrap().to_string();
    assert_eq!(remote(&w, Side::A), "10.0.0.77:40000");
    assert_eq!(remote(&w, Side::B), "192.0.2.55:50000");
    assert_eq!(w.anchor.side(0, Side::B).local, call.record.streams[0].b.local);
    let ack = a_request(&mut w, &ok, "ACK", 101, "");
    w.says(Who::A, &ack);
    let ack = w.expect(Who::B, "ACK");
    assert_eq!((ack.cseq().unwrap().number, ack.to_tag()), (1, Some("bobtag")));
    let last = w.records.last().unwrap();
    assert!(last.early.is_none() && last.revision > call.record.revision, "now an answered call");
    hang_up(&mut w, &UpCall { invite: call.invite, ok });
    let cdr = &w.cdrs[0];
    assert_eq!((cdr.call, cdr.started_ms, cdr.status), (call.record.id, 1_000_000, 200));
    assert_eq!(cdr.written, Written::Committed);
    assert_eq!(cdr.ringing_ms, Some(1_000_250));
    assert_eq!(counted(&mut w), (0, 0));
}

#[test]
fn a_cancel_reaches_the_phone_by_the_branch_of_the_dead_node() {
    let (_, call) = ring("", Some((180, "")));
    let mut w = survivor(&call);
    w.says(Who::A, &cancel_of(&call.text));
    let ok = w.expect(Who::A, "200");
    assert_eq!(ok.to_tag(), Some(tag_of(&call)));
    let refused = w.expect(Who::A, "487");
    assert_eq!(refused.cseq().unwrap().method, "INVITE");
    assert_eq!(refused.to_tag(), Some(tag_of(&call)));
    let cancel = w.expect(Who::B, "CANCEL");
    assert_eq!(cancel.branch(), call.invite.branch());
    assert_eq!(cancel.request_uri_str(), call.invite.request_uri_str());
    assert_eq!(cancel.cseq().unwrap().number, call.invite.cseq().unwrap().number);
    w.answer(Who::B, &cancel, 200, "bobtag", "");
    w.answer(Who::B, &call.invite, 487, "bobtag", "");
    let ack = w.expect(Who::B, "ACK");
    assert_eq!(ack.branch(), call.invite.branch());
    assert_eq!((w.cdrs.len(), w.cdrs[0].status, w.cdrs[0].ended_by), (1, 487, EndedBy::Caller));
    assert_eq!(w.cdrs[0].written, Written::Committed, "whose delete finds it tells it");
    w.assert_clean();
}

#[test]
fn a_failure_is_acked_and_comes_to_the_caller() {
    let (_, call) = ring("", Some((180, "")));
    let mut w = survivor(&call);
    w.answer(Who::B, &call.invite, 486, "bobtag", "");
    assert_eq!(w.expect(Who::B, "ACK").branch(), call.invite.branch());
    let busy = w.expect(Who::A, "486");
    assert_eq!(busy.cseq().unwrap().number, 101);
    w.nothing(Who::C);
    assert_eq!((w.cdrs.len(), w.cdrs[0].status), (1, 486));
    w.assert_clean();
}

#[test]
fn a_failure_that_calls_for_it_goes_on_to_the_next_target() {
    let (_, call) = ring("", Some((180, "")));
    let mut w = survivor(&call);
    w.answer(Who::B, &call.invite, 503, "bobtag", "");
    w.expect(Who::B, "ACK");
    let next = w.expect(Who::C, "INVITE");
    assert_ne!(next.call_id().unwrap(), call.invite.call_id().unwrap());
    w.answer(Who::C, &next, 200, "caroltag", &sdp(SDP_B));
    let ok = w.expect(Who::A, "200");
    let ack = a_request(&mut w, &ok, "ACK", 101, "");
    w.says(Who::A, &ack);
    w.expect(Who::C, "ACK");
    assert_eq!(w.records.last().unwrap().b.trunk, "two");
}

/// RFC 3261 §17.2.1: a repeat gets the last provisional response, also where that was the dead node's.
#[test]
fn a_repeated_invite_is_absorbed() {
    let (first, call) = ring("", Some((180, "")));
    let sent = first.seen[&Who::A].last().unwrap().clone();
    let mut w = survivor(&call);
    w.says(Who::A, &call.text);
    assert_eq!(w.expect(Who::A, "180").as_bytes(), &sent);
    w.nothing(Who::B);
    assert_eq!(w.core.calls().count(), 1);
}

/// Before its turn to be carried on has come.
#[test]
fn a_repeat_that_comes_before_the_call_is_looked_for() {
    let (_, call) = ring("", Some((180, "")));
    let mut w = node(2);
    w.input(Input::Command(Command::TakeOver));
    w.says(Who::A, &call.text);
    w.nothing(Who::B);
    let (wanted, flow, data) = w.elsewhere.remove(0);
    assert_eq!(wanted, Wanted::Dialog(call.record.a.call_id.as_str().into()));
    w.input(Input::Adopt { record: Box::new(call.record.clone()), mode: AdoptMode::Address });
    w.input(Input::Here { flow, data });
    w.expect(Who::A, "180");
    w.nothing(Who::B);
    // A while later nobody is asked any more.
    w.ms(6_000);
    let other = call.text.replace("inside-call-1", "inside-call-2").replace("peer1", "peer9");
    w.says(Who::A, &other);
    w.expect(Who::B, "INVITE");
    assert!(w.elsewhere.is_empty());
}

#[test]
fn a_cancel_that_comes_before_the_call_is_looked_for() {
    let (_, call) = ring("", Some((180, "")));
    let mut w = node(2);
    w.says(Who::A, &cancel_of(&call.text));
    w.nothing(Who::A);
    let (_, flow, data) = w.elsewhere.remove(0);
    w.input(Input::Adopt { record: Box::new(call.record.clone()), mode: AdoptMode::Address });
    w.input(Input::Here { flow, data });
    w.expect(Who::A, "200");
    w.expect(Who::A, "487");
    w.expect(Who::B, "CANCEL");
    // Of an INVITE that nobody has.
    let mut w = node(3);
    w.says(Who::A, &cancel_of(&call.text));
    let (_, flow, data) = w.elsewhere.remove(0);
    w.input(Input::Here { flow, data });
    w.expect(Who::A, "481");
}

/// The phone had not answered anything yet: it gets the same INVITE once more.
#[test]
fn an_invite_without_any_answer_is_sent_again() {
    let (_, call) = ring("", None);
    let mut w = survivor(&call);
    let again = w.expect(Who::B, "INVITE");
    assert_eq!(again.as_bytes(), call.invite.as_bytes(), "to B it is a retransmission");
    w.ms(500);
    assert_eq!(w.expect(Who::B, "INVITE").branch(), call.invite.branch());
    // The caller had no 100 that the record knows of: it gets one.
    w.expect(Who::A, "100");
    w.answer(Who::B, &call.invite, 180, "bobtag", "");
    w.expect(Who::A, "180");
    w.answer(Who::B, &call.invite, 200, "bobtag", &sdp(SDP_B));
    w.expect(Who::A, "200");
}

#[test]
fn early_media_goes_on_and_the_2xx_repeats_its_description() {
    let (mut first, call) = ring("", Some((183, &sdp(SDP_B))));
    let early =
        crate::sip::parse(first.seen.get_mut(&Who::A).unwrap().pop().unwrap(), &Default::default())
            .unwrap();
    let mut w = survivor(&call);
    for side in [Side::A, Side::B] {
        let stream = &call.record.streams[0];
        let told = if side == Side::A { &stream.a } else { &stream.b };
        assert_eq!(w.anchor.side(0, side).local, told.local);
        assert!(told.local.is_some());
    }
    w.answer(Who::B, &call.invite, 200, "bobtag", &sdp(SDP_B));
    let ok = w.expect(Who::A, "200");
    let sdp_of = |m: &Message| {
        crate::sdp::Sdp::parse(m.body())
            .map(|s| {
                let origin = s.origin().unwrap();
                (origin.session_id.to_owned(), origin.version.parse::<u64>().unwrap())
            })
            .unwrap()
    };
    assert_eq!(sdp_of(&ok).0, sdp_of(&early).0, "the same session");
    assert!(sdp_of(&ok).1 >= sdp_of(&early).1, "never an older version");
}

#[test]
fn rfc3262_a_prack_that_was_owed_to_the_dead_node_goes_to_the_phone() {
    let rest = format!("{RELIABLE}{}", sdp(SDP_B));
    let (first, call) = ring("Supported: 100rel\n", Some((183, &rest)));
    let sent = first.seen[&Who::A].last().unwrap().clone();
    let mut w = survivor(&call);
    // It is repeated until the PRACK, as the dead node did.
    w.ms(600);
    let early = w.expect(Who::A, "183");
    assert_eq!(early.as_bytes(), &sent);
    let prack = a_request(&mut w, &early, "PRACK", 102, "RAck: 1 101 INVITE\n");
    w.says(Who::A, &prack);
    let prack = w.expect(Who::B, "PRACK");
    assert_eq!(prack.header(HeaderName::RAck), Some("7 1 INVITE"));
    assert!(prack.cseq().unwrap().number > 1000, "beyond what the dead node may have used");
    w.answer(Who::B, &prack, 200, "", "");
    w.expect(Who::A, "200");
    // B's next reliable response is the next by number on both sides.
    w.answer(Who::B, &call.invite, 180, "bobtag", "Require: 100rel\nRSeq: 8\n");
    let ringing = w.expect(Who::A, "180");
    assert_eq!(ringing.header(HeaderName::RSeq), Some("2"));
    w.answer(Who::B, &call.invite, 200, "bobtag", "");
    let ok = w.expect(Who::A, "200");
    assert!(ok.body().is_empty(), "the answer was given reliably");
}

#[test]
fn rfc3262_what_was_pracked_is_not_repeated_by_the_survivor() {
    let mut w = node(1);
    let text = invite_text(&mut w, &format!("Supported: 100rel\n{}", sdp(SDP_A)));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &invite, 183, "bobtag", &format!("{RELIABLE}{}", sdp(SDP_B)));
    let early = w.expect(Who::A, "183");
    let prack = a_request(&mut w, &early, "PRACK", 102, "RAck: 1 101 INVITE\n");
    w.says(Who::A, &prack);
    let prack = w.expect(Who::B, "PRACK");
    w.answer(Who::B, &prack, 200, "", "");
    w.expect(Who::A, "200");
    let record = w.records.last().unwrap().clone();
    let call = Ringing { text, invite, record };
    let mut w = survivor(&call);
    w.ms(40_000);
    w.nothing(Who::A);
    // A repeat of the 183 by B is old news.
    w.answer(Who::B, &call.invite, 183, "bobtag", &format!("{RELIABLE}{}", sdp(SDP_B)));
    w.nothing(Who::A);
    w.answer(Who::B, &call.invite, 200, "bobtag", "");
    w.expect(Who::A, "200");
}

#[test]
fn each_fork_keeps_the_tag_by_which_the_caller_knows_it() {
    let mut w = node(1);
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &invite, 180, "forkone", "");
    let one = w.expect(Who::A, "180");
    w.answer(Who::B, &invite, 183, "forktwo", &sdp(SDP_B));
    let two = w.expect(Who::A, "183");
    let record = w.records.last().unwrap().clone();
    assert_eq!(record.early.as_ref().unwrap().attempts[0].forks.len(), 2);
    let call = Ringing { text, invite, record };
    let mut w = survivor(&call);
    w.answer(Who::B, &call.invite, 180, "forkone", "");
    assert_eq!(w.expect(Who::A, "180").to_tag(), one.to_tag());
    w.answer(Who::B, &call.invite, 200, "forktwo", &sdp(SDP_B));
    let ok = w.expect(Who::A, "200");
    assert_eq!(ok.to_tag(), two.to_tag());
    let ack = a_request(&mut w, &ok, "ACK", 101, "");
    w.says(Who::A, &ack);
    assert_eq!(w.expect(Who::B, "ACK").to_tag(), Some("forktwo"));
    hang_up(&mut w, &UpCall { invite: call.invite, ok });
}

#[test]
fn the_time_to_ring_goes_on() {
    let (_, call) = ring("", Some((180, "")));
    let mut record = call.record.clone();
    // It rang for 170 of 180 seconds.
    record.early.as_mut().unwrap().ringing_ms = Some(1_000_000 - 170_000);
    let mut w = node(2);
    w.input(Input::Adopt { record: Box::new(record), mode: AdoptMode::Address });
    w.ms(9_000);
    w.nothing(Who::B);
    w.ms(2_000);
    w.expect(Who::B, "CANCEL");
}

/// A drain: the node that lives forgets the call without a word, and what comes for its transactions
/// is the other node's.
#[test]
fn a_ringing_call_of_a_living_node_moves() {
    let (mut first, call) = ring("", Some((180, "")));
    first.input(Input::Command(Command::Forget(call.record.id)));
    first.nothing(Who::A);
    first.nothing(Who::B);
    assert!(first.cdrs.is_empty(), "the other node tells it");
    let mut w = survivor(&call);
    w.answer(Who::B, &call.invite, 486, "bobtag", "");
    assert!(w.elsewhere.is_empty(), "although the branch is the first node's");
    w.expect(Who::A, "486");
    first.assert_clean();
    w.assert_clean();
}

#[test]
fn nothing_waits_for_the_write_and_its_loss_is_no_harm() {
    let mut w = node(1);
    w.hold_stores = true;
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &invite, 180, "bobtag", "");
    w.expect(Who::A, "180");
    w.answer(Who::B, &invite, 180, "bobtag", "");
    w.expect(Who::A, "180");
    assert_eq!(w.records.len(), 2, "the INVITE left, it rings; a repeat is no news");
    for id in std::mem::take(&mut w.held) {
        w.input(Input::Stored { id, protected: false });
    }
    w.answer(Who::B, &invite, 486, "bobtag", "");
    w.expect(Who::A, "486");
    assert_eq!(w.cdrs[0].written, Written::Unsure);
    w.assert_clean();
}

#[test]
fn what_is_too_large_is_counted_and_not_written() {
    let mut w = node(1);
    let long = format!("X-Long: {}\n", "x".repeat(25_000));
    let text = invite_text(&mut w, &format!("{long}{}", sdp(SDP_A)));
    w.says(Who::A, &text);
    w.expect(Who::B, "INVITE");
    assert!(w.records.is_empty());
    assert_eq!(w.core.stats().early_too_large, 1);
}

#[test]
fn without_its_addresses_a_ringing_call_cannot_be_carried_on() {
    let (_, call) = ring("", Some((180, "")));
    let mut w = node(2);
    w.input(Input::Adopt { record: Box::new(call.record), mode: AdoptMode::Reinvite });
    assert_eq!((w.core.stats().adopted, w.core.stats().adopt_failed), (0, 1));
    w.assert_clean();
}

/// The end is on its way to the log, and a late request made the edge look the call up once more.
#[test]
fn a_call_that_ended_is_not_brought_back_by_its_record() {
    let (_, call) = ring("", Some((180, "")));
    let mut w = survivor(&call);
    w.answer(Who::B, &call.invite, 486, "bobtag", "");
    w.expect(Who::B, "ACK");
    w.expect(Who::A, "486");
    w.input(Input::Adopt { record: Box::new(call.record.clone()), mode: AdoptMode::Address });
    assert_eq!((w.core.stats().adopted, w.core.calls().count()), (1, 0));
    assert_eq!(w.core.stats().adopt_failed, 0);
}
