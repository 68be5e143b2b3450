//! A call from INVITE to BYE, and the ways it does not come about.

use super::world::*;
use crate::b2bua::EndedBy;
use crate::media::Side;
use crate::sip::{HeaderName, Message};

pub(super) const SDP_A: &str = "v=0
o=alice 53655765 2353687637 IN IP4 10.0.0.77
s=Secret session of A
c=IN IP4 10.0.0.77
t=0 0
m=audio 40000 RTP/AVP 8 0 101
a=rtpmap:8 PCMA/8000
a=rtpmap:101 telephone-event/8000
a=rtcp:40005 IN IP4 10.0.0.78
a=candidate:1 1 UDP 2130706431 10.0.0.79 40000 typ host
a=sendrecv
";

pub(super) const SDP_B: &str = "v=0
o=bob 1 1 IN IP4 192.0.2.55
s=-
c=IN IP4 192.0.2.55
t=0 0
m=audio 50000 RTP/AVP 8 101
a=rtpmap:8 PCMA/8000
a=rtpmap:101 telephone-event/8000
";

pub(super) fn sdp(body: &str) -> String {
    format!("Content-Type: application/sdp\n\n{body}")
}

/// A's INVITE. `rest` is further headers, a blank line, a body.
pub(super) fn invite_text(w: &mut World, rest: &str) -> String {
    let branch = w.branch();
    format!(
        "INVITE sip:+4930123@10.0.0.9 SIP/2.0
Via: SIP/2.0/UDP 10.0.0.1:5060;branch={branch};rport
Max-Forwards: 70
From: \"Alice\" <sip:+4989555@pbx.inside.example>;tag=alicetag
To: <sip:+4930123@10.0.0.9>
Call-ID: inside-call-1@10.0.0.1
CSeq: 101 INVITE
Contact: <sip:alice@10.0.0.1:5060>
User-Agent: SecretPBX/1.0
X-Inside: secret-header
Subject: hello
{rest}"
    )
}

/// A request of A inside the dialog that `ok` confirmed.
pub(super) fn a_request(w: &mut World, ok: &Message, method: &str, seq: u32, rest: &str) -> String {
    let branch = w.branch();
    let target = ok.contact().unwrap().unwrap().uri_str.to_owned();
    format!(
        "{method} {target} SIP/2.0
Via: SIP/2.0/UDP 10.0.0.1:5060;branch={branch};rport
Max-Forwards: 70
From: {}
To: {}
Call-ID: {}
CSeq: {seq} {method}
Contact: <sip:alice@10.0.0.1:5060>
{rest}",
        ok.header(HeaderName::From).unwrap(),
        ok.header(HeaderName::To).unwrap(),
        ok.call_id().unwrap(),
    )
}

/// A request of B inside the dialog of the INVITE that it got; `tag` is B's.
pub(super) fn b_request(
    w: &mut World,
    invite: &Message,
    tag: &str,
    method: &str,
    seq: u32,
    rest: &str,
) -> String {
    let branch = w.branch();
    let target = invite.contact().unwrap().unwrap().uri_str.to_owned();
    format!(
        "{method} {target} SIP/2.0
Via: SIP/2.0/UDP 192.0.2.1:5060;branch={branch};rport
Max-Forwards: 70
From: {};tag={tag}
To: {}
Call-ID: {}
CSeq: {seq} {method}
Contact: <sip:bob@192.0.2.1:5060>
{rest}",
        invite.header(HeaderName::To).unwrap(),
        invite.header(HeaderName::From).unwrap(),
        invite.call_id().unwrap(),
    )
}

/// The two ends of a call that is up.
pub(super) struct UpCall {
    /// The INVITE as B got it, and the 2xx as A got it.
    pub(super) invite: Message,
    pub(super) ok: Message,
}

/// Sets a call up: INVITE, 180, 200, ACK. `a` and `b` are further headers of INVITE and 200.
pub(super) fn set_up(w: &mut World, a: &str, b: &str) -> UpCall {
    let text = invite_text(w, &format!("{a}{}", sdp(SDP_A)));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    w.ms(20);
    w.answer(Who::B, &invite, 180, "bobtag", "");
    w.expect(Who::A, "180");
    w.ms(1000);
    w.answer(Who::B, &invite, 200, "bobtag", &format!("{b}{}", sdp(SDP_B)));
    let ok = w.expect(Who::A, "200");
    let ack = a_request(w, &ok, "ACK", 101, "");
    w.says(Who::A, &ack);
    w.expect(Who::B, "ACK");
    UpCall { invite, ok }
}

#[test]
fn a_call_is_set_up_carried_and_ended() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    w.ms(5000);
    let bye = a_request(&mut w, &call.ok, "BYE", 102, "");
    w.says(Who::A, &bye);
    w.expect(Who::A, "200");
    let bye = w.expect(Who::B, "BYE");
    w.answer(Who::B, &bye, 200, "", "");
    assert_eq!(
        w.ladder,
        "     0 A -> INVITE sdp
     0                           -> B INVITE sdp
    20                           <- B 180 (INVITE)
    20 A <- 180 (INVITE)
  1020                           <- B 200 (INVITE) sdp
  1020 A <- 200 (INVITE) sdp
  1020 A -> ACK
  1020                           -> B ACK
  6020 A -> BYE
  6020 A <- 200 (BYE)
  6020                           -> B BYE
  6020                           <- B 200 (BYE)
"
    );
    let cdr = &w.cdrs[0];
    assert_eq!(w.cdrs.len(), 1);
    assert_eq!((cdr.status, cdr.ended_by), (200, EndedBy::Caller));
    assert_eq!(
        (cdr.started_ms, cdr.ringing_ms, cdr.answered_ms, cdr.ended_ms),
        (1_000_000, Some(1_000_020), Some(1_001_020), 1_006_020)
    );
    assert_eq!(cdr.codecs, ["PCMA"]);
    assert!(cdr.protected);
    assert_eq!((w.records.len(), w.ended), (1, 1));
    w.assert_clean();
}

#[test]
fn media_is_bound_on_both_sides_and_written_into_both_descriptions() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    let to_b = String::from_utf8_lossy(call.invite.body()).into_owned();
    assert!(to_b.contains("c=IN IP4 203.0.113.9\r\n"), "{to_b}");
    assert!(to_b.contains("m=audio 30000 RTP/AVP 8 0 101\r\n"), "{to_b}");
    let to_a = String::from_utf8_lossy(call.ok.body()).into_owned();
    assert!(to_a.contains("c=IN IP4 10.0.0.9\r\n"), "{to_a}");
    assert!(to_a.contains("m=audio 30002 RTP/AVP 8 101\r\n"), "{to_a}");
    let remote = |side| w.anchor.side(0, side).remote.unwrap().rtp.unwrap().to_string();
    assert_eq!(remote(Side::A), "10.0.0.77:40000");
    assert_eq!(remote(Side::B), "192.0.2.55:50000");
}

#[test]
fn nothing_of_one_side_shows_on_the_other() {
    let mut w = World::new();
    let call = set_up(
        &mut w,
        "Record-Route: <sip:proxy.inside.example;lr>\n",
        "Server: SecretCarrier/2\n",
    );
    let bye = a_request(&mut w, &call.ok, "BYE", 102, "Reason: Q.850;cause=16\n");
    w.says(Who::A, &bye);
    let all = |who| {
        let seen = w.seen[&who].iter().map(|d| String::from_utf8_lossy(d).into_owned());
        seen.collect::<Vec<_>>().join("\n")
    };
    let (to_a, to_b) = (all(Who::A), all(Who::B));
    for token in [
        "10.0.0.",
        "inside",
        "alicetag",
        "SecretPBX",
        "secret",
        "Secret",
        "53655765",
        "alice",
        "candidate",
        "pbx",
        "101 INVITE",
        "Record-Route",
    ] {
        assert!(!to_b.contains(token), "B sees {token}\n{to_b}");
    }
    let b_call_id = call.invite.call_id().unwrap();
    for token in ["192.0.2.", "bobtag", "SecretCarrier", "bob", "203.0.113.9", b_call_id] {
        assert!(!to_a.contains(token), "A sees {token}\n{to_a}");
    }
    assert!(to_b.contains("Subject: hello"));
    assert!(to_b.contains("Reason: Q.850;cause=16"));
    assert!(to_b.contains("From: \"Alice\" <sip:+4989555@203.0.113.9>;tag="));
    assert!(to_b.contains("INVITE sip:+4930123@192.0.2.1:5060 SIP/2.0"), "{to_b}");
    assert!(to_b.contains("Max-Forwards: 69"));
}

#[test]
fn the_2xx_waits_for_its_commit() {
    let mut w = World::new();
    w.hold_stores = true;
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &invite, 200, "bobtag", &sdp(SDP_B));
    w.nothing(Who::A);
    assert_eq!(w.records.len(), 1);
    let record = &w.records[0];
    assert_eq!(record.b.remote_tag, "bobtag");
    assert_eq!(record.streams.len(), 1);
    let id = w.held.pop_front().unwrap();
    w.input(crate::core::Input::Stored { id, protected: false });
    w.expect(Who::A, "200");
    assert_eq!(w.core.stats().unprotected, 1);
}

#[test]
fn the_2xx_is_repeated_until_its_ack_and_then_both_are_hung_up() {
    let mut w = World::new();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &invite, 200, "bobtag", &sdp(SDP_B));
    w.ms(31_900);
    for _ in 0..11 {
        w.expect(Who::A, "200");
    }
    w.nothing(Who::A);
    w.nothing(Who::B);
    w.ms(200);
    let bye = w.expect(Who::A, "BYE");
    w.answer(Who::A, &bye, 200, "", "");
    w.expect(Who::B, "ACK");
    let bye = w.expect(Who::B, "BYE");
    w.answer(Who::B, &bye, 200, "", "");
    assert_eq!(w.core.stats().no_ack, 1);
    w.assert_clean();
}

#[test]
fn cancel_reaches_the_phone_that_rings() {
    let mut w = World::new();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &invite, 180, "bobtag", "");
    w.expect(Who::A, "180");
    let cancel = text
        .lines()
        .take_while(|l| !l.starts_with("Contact"))
        .map(|l| l.replace("INVITE", "CANCEL"))
        .collect::<Vec<_>>()
        .join("\n");
    w.says(Who::A, &format!("{cancel}\nReason: SIP;cause=200;text=\"Call completed elsewhere\"\n"));
    w.expect(Who::A, "200");
    w.expect(Who::A, "487");
    let cancel = w.expect(Who::B, "CANCEL");
    assert_eq!(
        cancel.header(HeaderName::Reason),
        Some("SIP;cause=200;text=\"Call completed elsewhere\"")
    );
    w.answer(Who::B, &cancel, 200, "bobtag", "");
    w.answer(Who::B, &invite, 487, "bobtag", "");
    w.expect(Who::B, "ACK");
    assert_eq!((w.cdrs[0].status, w.cdrs[0].ended_by), (487, EndedBy::Caller));
    w.assert_clean();
}

#[test]
fn a_refusal_of_the_callee_reaches_the_caller() {
    let mut w = World::new();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &invite, 486, "bobtag", "Reason: Q.850;cause=17\n");
    w.expect(Who::B, "ACK");
    let busy = w.expect(Who::A, "486 Busy Here");
    assert_eq!(busy.header(HeaderName::Reason), Some("Q.850;cause=17"));
    assert_eq!((w.cdrs[0].status, w.cdrs[0].ended_by), (486, EndedBy::Callee));
    w.nothing(Who::C);
    w.assert_clean();
}

#[test]
fn a_target_that_is_down_is_passed_over_without_the_caller_noticing() {
    let mut w = World::new();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let first = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &first, 503, "bobtag", "");
    w.expect(Who::B, "ACK");
    let second = w.expect(Who::C, "INVITE");
    assert_ne!(first.call_id().unwrap(), second.call_id().unwrap());
    assert_ne!(first.from_tag(), second.from_tag());
    w.nothing(Who::A);
    w.answer(Who::C, &second, 200, "caroltag", &sdp(SDP_B));
    let ok = w.expect(Who::A, "200");
    let ack = a_request(&mut w, &ok, "ACK", 101, "");
    w.says(Who::A, &ack);
    w.expect(Who::C, "ACK");
    let bye = a_request(&mut w, &ok, "BYE", 102, "");
    w.says(Who::A, &bye);
    let bye = w.expect(Who::C, "BYE");
    w.answer(Who::C, &bye, 200, "", "");
    let statuses: Vec<u16> = w.cdrs[0].attempts.iter().map(|a| a.status).collect();
    assert_eq!(statuses, [503, 200]);
    w.assert_clean();
}

#[test]
fn a_silent_target_is_passed_over_after_its_time() {
    let mut w = World::new();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    w.expect(Who::B, "INVITE");
    w.ms(6000);
    let second = w.expect(Who::C, "INVITE");
    w.answer(Who::C, &second, 486, "caroltag", "");
    w.expect(Who::A, "100");
    w.expect(Who::A, "486");
    w.assert_clean();
}

#[test]
fn the_callee_hangs_up() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    let bye = b_request(&mut w, &call.invite, "bobtag", "BYE", 1, "");
    w.says(Who::B, &bye);
    w.expect(Who::B, "200");
    let bye = w.expect(Who::A, "BYE sip:alice@10.0.0.1:5060");
    w.answer(Who::A, &bye, 200, "", "");
    assert_eq!(w.cdrs[0].ended_by, EndedBy::Callee);
    w.assert_clean();
}

#[test]
fn no_media_port_is_503_with_retry_after() {
    let mut w = World::new();
    w.anchor.no_ports = true;
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let refused = w.expect(Who::A, "503");
    assert!(refused.has(HeaderName::RetryAfter));
    w.nothing(Who::B);
    w.assert_clean();
}
