//! A call of one node carried on by another.

use super::basic::*;
use super::world::*;
use crate::b2bua::CallRecord;
use crate::core::{AdoptMode, Input, Wanted};
use crate::media::Side;
use crate::net::{ConnId, Flow};
use crate::sip::HeaderName;

/// A call that is up on a node that dies: its record, and what its peers hold.
pub(super) fn lost_call() -> (CallRecord, UpCall) {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    // Long ago.
    let record = CallRecord { answered_ms: 0, ..w.records[0].clone() };
    (record, call)
}

fn survivor() -> World {
    let mut settings = Settings::new();
    settings.seed = 2;
    settings.begin()
}

#[test]
fn with_its_addresses_nothing_is_sent_and_everything_goes_on() {
    let (record, call) = lost_call();
    let mut w = survivor();
    let id = record.id;
    w.input(Input::Adopt { record: Box::new(record.clone()), mode: AdoptMode::Address });
    w.nothing(Who::A);
    w.nothing(Who::B);
    assert_eq!(w.core.stats().adopted, 1);
    let local = |side| w.anchor.side(0, side).local;
    assert_eq!(
        (local(Side::A), local(Side::B)),
        (record.streams[0].a.local, record.streams[0].b.local)
    );
    let remote = w.anchor.side(0, Side::B).remote.unwrap().rtp.unwrap();
    assert_eq!(remote.to_string(), "192.0.2.55:50000");
    let counted = |w: &mut World| {
        let mut count = |name| w.core.routing().table().trunk_by_name(name).unwrap().calls();
        (count("pbx"), count("one"))
    };
    assert_eq!(counted(&mut w), (1, 1), "on the trunks of both legs");
    // A second telling changes nothing.
    w.input(Input::Adopt { record: Box::new(record), mode: AdoptMode::Address });
    assert_eq!(w.core.calls().count(), 1);

    // B's 2xx comes again: its ACK was lost with the node.
    w.answer(Who::B, &call.invite, 200, "bobtag", &sdp(SDP_B));
    w.expect(Who::B, "ACK");
    w.nothing(Who::B);

    let bye = b_request(&mut w, &call.invite, "bobtag", "BYE", 1, "");
    w.says(Who::B, &bye);
    w.expect(Who::B, "200");
    let bye = w.expect(Who::A, "BYE sip:alice@10.0.0.1:5060");
    assert_eq!(bye.call_id().unwrap(), "inside-call-1@10.0.0.1");
    assert!(bye.cseq().unwrap().number > 1000, "beyond what the other node may have used");
    w.answer(Who::A, &bye, 200, "", "");
    assert_eq!((w.cdrs[0].call, w.cdrs[0].started_ms), (id, 1_000_000));
    assert_eq!(counted(&mut w), (0, 0));
    w.assert_clean();
}

#[test]
fn without_its_addresses_both_sides_are_reinvited() {
    let (record, call) = lost_call();
    let mut w = survivor();
    w.anchor.next_port = 500;
    w.input(Input::Adopt { record: Box::new(record), mode: AdoptMode::Reinvite });
    let to_a = w.expect(Who::A, "INVITE sip:alice@10.0.0.1:5060");
    let to_b = w.expect(Who::B, "INVITE");
    assert_eq!(to_a.to_tag(), Some("alicetag"));
    assert_eq!(to_b.to_tag(), Some("bobtag"));
    assert_eq!(to_b.call_id().unwrap(), call.invite.call_id().unwrap());
    let text = |m: &crate::sip::Message| String::from_utf8_lossy(m.body()).into_owned();
    assert!(text(&to_a).contains("m=audio 305"), "new ports: {}", text(&to_a));
    assert!(!text(&to_a).contains("192.0.2"));
    assert!(text(&to_b).contains("m=audio 305"), "{}", text(&to_b));
    let old = crate::sdp::Sdp::parse(call.invite.body()).unwrap();
    let new = crate::sdp::Sdp::parse(to_b.body()).unwrap();
    let version = |s: &crate::sdp::Sdp<'_>| s.origin().unwrap().version.parse::<u64>().unwrap();
    assert_eq!(old.origin().unwrap().session_id, new.origin().unwrap().session_id);
    assert!(version(&new) > version(&old));
    // A answers; B is in glare and asked again later.
    w.answer(Who::A, &to_a, 200, "", &sdp(SDP_A));
    w.expect(Who::A, "ACK");
    w.answer(Who::B, &to_b, 491, "", "");
    w.expect(Who::B, "ACK");
    w.ms(2_000);
    w.nothing(Who::B);
    w.until(Who::B);
    assert!(w.now - w.t0 <= std::time::Duration::from_millis(4_050));
    let to_b = w.expect(Who::B, "INVITE");
    assert!(text(&to_b).contains("m=audio 305"));
    w.answer(Who::B, &to_b, 200, "", &sdp(SDP_B));
    w.expect(Who::B, "ACK");
    w.nothing(Who::A);
    assert_eq!((w.core.stats().legs_moved, w.core.stats().move_refusals), (2, 0));
    let bye = a_request(&mut w, &call.ok, "BYE", 102, "");
    w.says(Who::A, &bye);
    w.expect(Who::A, "200");
    let bye = w.expect(Who::B, "BYE");
    w.answer(Who::B, &bye, 200, "", "");
    w.assert_clean();
}

/// RFC 3261 §12.2.1.1, RFC 4028 §7.4, RFC 4566 §5.2, RFC 3264 §8.4: the bytes of what another node
/// sends in a call that was on hold.
#[test]
fn what_is_sent_after_a_takeover_goes_on_where_the_other_node_stopped() {
    let (mut record, call) = lost_call();
    let routes = ["<sip:192.0.2.1:5060;lr>", "<sip:core.example;lr>"];
    record.b.routes = routes.iter().map(|&r| r.to_owned()).collect();
    record.b.target = "sip:desk@192.0.2.1:5099;x=1".to_owned();
    record.b.allow = 0;
    record.b.session_timer =
        Some(crate::b2bua::SessionTimerRecord { expires_s: 600, we_refresh: true });
    let said = String::from_utf8(record.b.sdp_local.clone().unwrap().to_vec()).unwrap();
    let held = said.replace("sendrecv", "sendonly");
    assert_ne!(held, said);
    record.b.sdp_local = Some(held.clone().into());
    record.a.session_timer = None;
    let mut w = survivor();
    w.input(Input::Adopt { record: Box::new(record.clone()), mode: AdoptMode::Address });
    let counted = |w: &mut World| {
        let mut count = |name| w.core.routing().table().trunk_by_name(name).unwrap().calls();
        (count("pbx"), count("one"))
    };
    assert_eq!(counted(&mut w), (1, 1));
    w.ms(299_000);
    w.nothing(Who::B);
    w.until(Who::B);
    let refresh = w.expect(Who::B, "INVITE sip:desk@192.0.2.1:5099;x=1 SIP/2.0");
    assert_eq!(refresh.values(HeaderName::Route).collect::<Vec<_>>(), routes);
    let step = crate::b2bua::CallPolicy::default().adopt_cseq_step;
    assert_eq!(refresh.cseq().unwrap().number, record.b.local_seq + step + 1);
    assert_eq!(refresh.header(HeaderName::SessionExpires), Some("600;refresher=uac"));
    assert_eq!(refresh.call_id().unwrap(), record.b.call_id);
    assert_eq!((refresh.from_tag(), refresh.to_tag()), (&*record.b.local_tag, Some("bobtag")));
    let body = |m: &crate::sip::Message| String::from_utf8(m.body().to_vec()).unwrap();
    assert_eq!(body(&refresh), held, "on hold, in the words of the node that died");
    w.answer(
        Who::B,
        &refresh,
        200,
        "",
        &format!("Session-Expires: 600;refresher=uac\n{}", sdp(SDP_B)),
    );
    // The answer names another target.
    w.expect(Who::B, "ACK sip:peer@192.0.2.1:5060 SIP/2.0");

    // The caller ends the hold: a new description, of a later version of the same session.
    let resume = a_request(
        &mut w,
        &call.ok,
        "INVITE",
        102,
        &sdp(&SDP_A.replace("2353687637", "2353687638")),
    );
    w.says(Who::A, &resume);
    let offer = w.expect(Who::B, "INVITE sip:peer@192.0.2.1:5060 SIP/2.0");
    assert_eq!(offer.cseq().unwrap().number, record.b.local_seq + step + 2);
    assert_eq!(offer.values(HeaderName::Route).collect::<Vec<_>>(), routes);
    let origin = |text: &str| {
        let words: Vec<u64> = text
            .lines()
            .find_map(|l| l.strip_prefix("o="))
            .unwrap()
            .split(' ')
            .filter_map(|word| word.parse().ok())
            .collect();
        (words[0], words[1])
    };
    let (before, after) = (origin(&held), origin(&body(&offer)));
    assert_eq!(after.0, before.0);
    assert!(after.1 > before.1 + 99, "past what the dead node may have said: {before:?} {after:?}");
    assert!(!body(&offer).contains("sendonly"), "{}", body(&offer));
    w.answer(Who::B, &offer, 200, "", &sdp(SDP_B));
    w.expect(Who::A, "200");
    let ack = a_request(&mut w, &call.ok, "ACK", 102, "");
    w.says(Who::A, &ack);
    w.expect(Who::B, "ACK");
    let bye = a_request(&mut w, &call.ok, "BYE", 103, "");
    w.says(Who::A, &bye);
    w.expect(Who::A, "200");
    let bye = w.expect(Who::B, "BYE");
    assert_eq!(bye.cseq().unwrap().number, record.b.local_seq + step + 3);
    w.answer(Who::B, &bye, 200, "", "");
    assert_eq!(counted(&mut w), (0, 0));
    w.assert_clean();
}

#[test]
fn a_record_of_an_unknown_trunk_is_counted_and_dropped() {
    let (mut record, _) = lost_call();
    record.b.trunk = "nobody".to_owned();
    let mut w = survivor();
    w.input(Input::Adopt { record: Box::new(record), mode: AdoptMode::Address });
    assert_eq!((w.core.stats().adopted, w.core.stats().adopt_failed), (0, 1));
    w.assert_clean();
}

#[test]
fn a_record_holds_both_legs() {
    let (record, call) = lost_call();
    assert_eq!(record.a.call_id, "inside-call-1@10.0.0.1");
    assert_eq!(record.a.remote_tag, "alicetag");
    assert_eq!(Some(record.a.local_tag.as_str()), call.ok.to_tag());
    assert_eq!(record.b.call_id, call.invite.call_id().unwrap());
    assert_eq!(record.b.local_tag, call.invite.from_tag());
    assert_eq!((record.a.trunk.as_str(), record.b.trunk.as_str()), ("pbx", "one"));
    assert_eq!((record.a.interface.as_str(), record.b.interface.as_str()), ("core", "public"));
    assert_eq!(record.b.target, "sip:peer@192.0.2.1:5060");
    assert_eq!(
        record.a.sdp_remote.as_deref().map(|s| s.len()),
        Some(SDP_A.replace('\n', "\r\n").len())
    );
    assert!(!call.ok.has(HeaderName::SessionExpires));
    assert_eq!(record.a.session_timer.unwrap().expires_s, 1800);
}

/// A node of a cluster that has no call.
fn other_node() -> World {
    let mut settings = Settings::new();
    (settings.seed, settings.node) = (2, Some(2));
    settings.begin()
}

#[test]
fn a_request_of_an_unknown_dialog_may_be_another_nodes() {
    let (record, call) = lost_call();
    let mut w = other_node();
    let bye = b_request(&mut w, &call.invite, "bobtag", "BYE", 1, "");
    w.says(Who::B, &bye);
    w.nothing(Who::B);
    let (wanted, flow, data) = w.elsewhere.remove(0);
    assert_eq!(wanted, Wanted::Dialog(record.b.call_id.as_str().into()));
    assert!(data.starts_with(b"BYE "));
    // It comes back: nobody else has it either.
    w.input(Input::Here { flow, data: data.clone() });
    w.expect(Who::B, "481");
    assert!(w.elsewhere.is_empty());
    // Or this node is to carry the call on.
    let mut w = other_node();
    w.input(Input::Adopt { record: Box::new(record), mode: AdoptMode::Address });
    w.input(Input::Here { flow, data });
    w.expect(Who::B, "200");
    w.expect(Who::A, "BYE");
}

#[test]
fn a_response_goes_back_to_the_node_whose_branch_it_carries() {
    let mut settings = Settings::new();
    settings.node = Some(1);
    let mut one = settings.begin();
    let invite = a_invite(&mut one);
    let mut w = other_node();
    w.answer(Who::B, &invite, 180, "bobtag", "");
    assert_eq!(w.elsewhere.len(), 1);
    assert_eq!(w.elsewhere[0].0, Wanted::Node(1));
    assert_eq!(w.core.transaction_stats().stray_responses, 0);
    one.answer(Who::B, &invite, 180, "bobtag", "");
    assert!(one.elsewhere.is_empty(), "its own stays");
    one.expect(Who::A, "180");
}

/// A's INVITE as B gets it.
fn a_invite(w: &mut World) -> crate::sip::Message {
    let text = invite_text(w, &sdp(SDP_A));
    w.says(Who::A, &text);
    w.expect(Who::B, "INVITE")
}

/// RFC 3261 §13.3.1.4, where the node died before the caller's ACK, or before the 2xx left it.
#[test]
fn the_2xx_of_a_young_call_is_said_again_until_its_ack() {
    let (mut record, call) = lost_call();
    let mut w = survivor();
    record.answered_ms = 1_000_000;
    w.input(Input::Adopt { record: Box::new(record.clone()), mode: AdoptMode::Address });
    let ok = w.expect(Who::A, "200");
    assert_eq!(ok.as_bytes(), call.ok.as_bytes(), "a retransmission");
    w.ms(500);
    assert_eq!(w.expect(Who::A, "200").as_bytes(), call.ok.as_bytes());
    let ack = a_request(&mut w, &call.ok, "ACK", 101, "");
    w.says(Who::A, &ack);
    w.ms(40_000);
    w.nothing(Who::A);
    assert_eq!(w.core.calls().count(), 1);
}

/// A caller that ACKed the dead node and is deaf to the repeated 2xx keeps its call.
#[test]
fn a_2xx_that_is_never_acked_again_ends_nothing() {
    let (mut record, _) = lost_call();
    let mut w = survivor();
    record.answered_ms = 1_000_000;
    w.input(Input::Adopt { record: Box::new(record), mode: AdoptMode::Address });
    w.expect(Who::A, "200");
    for wait_ms in [500, 1_000, 2_000, 4_000, 4_000, 4_000, 4_000, 4_000, 4_000, 4_000] {
        w.nothing(Who::A);
        w.ms(wait_ms);
        w.expect(Who::A, "200");
    }
    w.ms(40_000);
    w.nothing(Who::A);
    assert_eq!(w.core.calls().count(), 1);
}

/// A re-INVITE and its CANCEL that came by another node: the owner handles both.
#[test]
fn a_cancel_of_a_reinvite_may_come_by_another_node() {
    let mut settings = Settings::new();
    settings.node = Some(1);
    let mut w = settings.begin();
    let call = set_up(&mut w, "", "");
    let other = Flow { conn: Some(ConnId(1 << 60 | 7)), ..Who::A.flow() };
    let held = sdp(SDP_A).replace("sendrecv", "sendonly");
    let text = a_request(&mut w, &call.ok, "INVITE", 102, &held);
    w.input(Input::Here { flow: other, data: wire_form(&text).into() });
    let invite = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &invite, 180, "", "");
    w.expect(Who::A, "180");
    let lines = text.lines().take_while(|l| !l.starts_with("Contact"));
    let cancel = lines.map(|l| l.replace("INVITE", "CANCEL")).collect::<Vec<_>>().join("\n");
    // Where it is not known it is asked for by its Call-ID.
    let mut stranger = other_node();
    stranger.says(Who::A, &cancel);
    stranger.nothing(Who::A);
    let (wanted, ..) = stranger.elsewhere.remove(0);
    assert_eq!(wanted, Wanted::Dialog("inside-call-1@10.0.0.1".into()));
    w.input(Input::Here { flow: other, data: wire_form(&cancel).into() });
    assert_eq!(w.expect(Who::A, "200").cseq().unwrap().method, "CANCEL");
    let passed = w.expect(Who::B, "CANCEL");
    assert_eq!(passed.branch(), invite.branch());
    w.answer(Who::B, &passed, 200, "", "");
    w.answer(Who::B, &invite, 487, "", "");
    w.expect(Who::B, "ACK");
    assert_eq!(w.expect(Who::A, "487").cseq().unwrap().number, 102);
    assert_eq!(w.core.calls().count(), 1, "the call goes on");
}
