//! Inside a call that is up: re-INVITE, UPDATE, glare, session timers, requests that cross.

use super::basic::*;
use super::world::*;
use crate::b2bua::{EndCause, EndedBy};
use crate::media::Side;
use crate::sip::HeaderName;

fn hold(sdp: &str) -> String {
    let sdp = sdp.replace("a=sendrecv\n", "").replace("53655765 2353687637", "53655765 2353687638");
    format!("{sdp}a=sendonly\n")
}

#[test]
fn hold_travels_and_tells_the_anchor() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    w.ladder.clear();
    w.ms(1000);
    let re = a_request(&mut w, &call.ok, "INVITE", 102, &sdp(&hold(SDP_A)));
    w.says(Who::A, &re);
    let re = w.expect(Who::B, "INVITE");
    let text = String::from_utf8_lossy(re.body()).into_owned();
    assert!(text.contains("a=sendonly\r\n"), "{text}");
    assert!(text.contains(" 1 IN IP4 203.0.113.9\r\n"), "the version counts up: {text}");
    assert_eq!(re.to_tag(), Some("bobtag"));
    assert_eq!(re.cseq().unwrap().number, 2);
    let answer = format!("{}a=recvonly\n", SDP_B.replace("bob 1 1", "bob 1 2"));
    w.answer(Who::B, &re, 200, "", &sdp(&answer));
    let ok = w.expect(Who::A, "200");
    assert!(String::from_utf8_lossy(ok.body()).contains("a=recvonly"));
    assert!(w.anchor.side(0, Side::A).remote.unwrap().sends);
    assert!(!w.anchor.side(0, Side::A).remote.unwrap().receives);
    assert!(!w.anchor.side(0, Side::B).remote.unwrap().sends);
    let ack = a_request(&mut w, &call.ok, "ACK", 102, "");
    w.says(Who::A, &ack);
    w.expect(Who::B, "ACK");
    assert_eq!(
        w.ladder,
        "  2020 A -> INVITE sdp
  2020                           -> B INVITE sdp
  2020                           <- B 200 (INVITE) sdp
  2020 A <- 200 (INVITE) sdp
  2020 A -> ACK
  2020                           -> B ACK
"
    );
    assert_eq!(w.records.len(), 2, "written again after the change");
    assert_eq!(w.records[1].a.sdp_version, 1);
    hang_up(&mut w, &call);
}

/// A hangs up and everything is gone.
pub(super) fn hang_up(w: &mut World, call: &UpCall) {
    let bye = a_request(w, &call.ok, "BYE", 900, "");
    w.says(Who::A, &bye);
    w.expect(Who::A, "200");
    let bye = w.expect(Who::B, "BYE");
    w.answer(Who::B, &bye, 200, "", "");
    w.assert_clean();
}

#[test]
fn a_refused_offer_leaves_everything_as_it_was() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    let re = a_request(&mut w, &call.ok, "INVITE", 102, &sdp(&hold(SDP_A)));
    w.says(Who::A, &re);
    let re = w.expect(Who::B, "INVITE");
    assert!(!w.anchor.side(0, Side::A).remote.unwrap().receives);
    w.answer(Who::B, &re, 488, "", "");
    w.expect(Who::B, "ACK");
    w.expect(Who::A, "488");
    assert!(w.anchor.side(0, Side::A).remote.unwrap().receives);
    let ack = a_request(&mut w, &call.ok, "ACK", 102, "");
    w.says(Who::A, &ack);
    hang_up(&mut w, &call);
}

#[test]
fn late_offer_crosses_in_the_2xx_and_the_ack() {
    let mut w = World::new();
    let text = invite_text(&mut w, "");
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    assert!(invite.body().is_empty());
    w.answer(Who::B, &invite, 200, "bobtag", &sdp(SDP_B));
    let ok = w.expect(Who::A, "200");
    assert!(String::from_utf8_lossy(ok.body()).contains("c=IN IP4 10.0.0.9"));
    w.ms(700);
    w.expect(Who::A, "200");
    // B repeats before its ACK: nothing to send yet.
    w.answer(Who::B, &invite, 200, "bobtag", &sdp(SDP_B));
    w.nothing(Who::B);
    let ack = a_request(&mut w, &ok, "ACK", 101, &sdp(SDP_A));
    w.says(Who::A, &ack);
    let ack = w.expect(Who::B, "ACK");
    let text = String::from_utf8_lossy(ack.body()).into_owned();
    assert!(text.contains("c=IN IP4 203.0.113.9"), "{text}");
    let remote = |side| w.anchor.side(0, side).remote.unwrap().rtp.unwrap().to_string();
    assert_eq!(
        (remote(Side::A).as_str(), remote(Side::B).as_str()),
        ("10.0.0.77:40000", "192.0.2.55:50000")
    );
    // The ACK was lost: B repeats its 2xx and gets the same ACK again.
    w.answer(Who::B, &invite, 200, "bobtag", &sdp(SDP_B));
    let again = w.expect(Who::B, "ACK");
    assert_eq!(again.body(), ack.body());
    hang_up(&mut w, &UpCall { invite, ok });
}

#[test]
fn rfc3261_14_2_glare() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    let re = a_request(&mut w, &call.ok, "INVITE", 102, &sdp(&hold(SDP_A)));
    w.says(Who::A, &re);
    let to_b = w.expect(Who::B, "INVITE");
    // B's own re-INVITE crosses ours.
    let crossing = b_request(&mut w, &call.invite, "bobtag", "INVITE", 1, &sdp(SDP_B));
    w.says(Who::B, &crossing);
    w.expect(Who::B, "491");
    let ack = b_request(&mut w, &call.invite, "bobtag", "ACK", 1, "");
    w.says(Who::B, &ack.replace(&ack_branch(&ack), &ack_branch(&crossing)));
    // A second one of A while the first is open.
    let second = a_request(&mut w, &call.ok, "INVITE", 103, &sdp(SDP_A));
    w.says(Who::A, &second);
    let refused = w.expect(Who::A, "500");
    assert!(refused.has(HeaderName::RetryAfter));
    let ack = a_request(&mut w, &call.ok, "ACK", 103, "");
    w.says(Who::A, &ack.replace(&ack_branch(&ack), &ack_branch(&second)));
    // 491 of B reaches A, whose timer decides.
    w.answer(Who::B, &to_b, 491, "", "");
    w.expect(Who::B, "ACK");
    w.expect(Who::A, "491");
    let ack = a_request(&mut w, &call.ok, "ACK", 102, "");
    w.says(Who::A, &ack.replace(&ack_branch(&ack), &ack_branch(&re)));
    hang_up(&mut w, &call);
}

/// The branch in a peer's message.
fn ack_branch(text: &str) -> String {
    let from = text.find("branch=").unwrap() + 7;
    text[from..].split(';').next().unwrap().to_owned()
}

#[test]
fn update_crosses_or_becomes_a_reinvite() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "Allow: INVITE, ACK, BYE, UPDATE\n");
    let update = a_request(&mut w, &call.ok, "UPDATE", 102, &sdp(&hold(SDP_A)));
    w.says(Who::A, &update);
    let update = w.expect(Who::B, "UPDATE");
    w.answer(Who::B, &update, 200, "", &sdp(SDP_B));
    let ok = w.expect(Who::A, "200");
    assert!(ok.body().starts_with(b"v=0"));
    hang_up(&mut w, &call);

    let mut w = World::new();
    let call = set_up(&mut w, "", "Allow: INVITE, ACK, BYE\n");
    let update = a_request(&mut w, &call.ok, "UPDATE", 102, &sdp(&hold(SDP_A)));
    w.says(Who::A, &update);
    let re = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &re, 200, "", &sdp(SDP_B));
    w.expect(Who::B, "ACK");
    let ok = w.expect(Who::A, "200");
    assert_eq!(ok.cseq().unwrap().method, "UPDATE");
    hang_up(&mut w, &call);
}

#[test]
fn rfc4028_we_refresh_where_neither_side_will() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    // Neither A nor B said `timer`: at half of 1800 s both get a re-INVITE of ours with what we
    // said last.
    w.ms(900_000);
    for who in [Who::A, Who::B] {
        let re = w.expect(who, "INVITE");
        assert!(re.header(HeaderName::SessionExpires).unwrap().starts_with("1800;refresher=uac"));
        let own = if who == Who::A { call.ok.body() } else { call.invite.body() };
        assert_eq!(re.body(), own, "{}", w.ladder);
        let (body, tag) = if who == Who::A { (SDP_A, "alicetag") } else { (SDP_B, "bobtag") };
        w.answer(who, &re, 200, tag, &sdp(body));
        w.expect(who, "ACK");
    }
    w.ms(899_000);
    w.nothing(Who::A);
    w.ms(2000);
    w.expect(Who::A, "INVITE");
    w.expect(Who::B, "INVITE");
}

#[test]
fn rfc4028_a_peer_that_does_not_refresh_loses_its_call() {
    let mut w = World::new();
    let timer = "Supported: timer\nSession-Expires: 600;refresher=uac\n";
    let call = set_up(&mut w, timer, "");
    assert_eq!(call.ok.header(HeaderName::SessionExpires), Some("600;refresher=uac"));
    assert!(call.ok.lists(HeaderName::Require, "timer"));
    // A refreshes once: answered by us, B does not hear of it.
    w.ms(300_000);
    let update = a_request(&mut w, &call.ok, "UPDATE", 102, timer);
    w.says(Who::A, &update);
    w.expect(Who::A, "200");
    w.nothing(Who::B);
    w.ms(567_000);
    w.nothing(Who::A);
    w.ms(2_000);
    let bye = w.expect(Who::A, "BYE");
    assert!(bye.header(HeaderName::Reason).unwrap().contains("cause=408"));
    let other = w.expect(Who::B, "BYE");
    w.answer(Who::A, &bye, 200, "", "");
    w.answer(Who::B, &other, 200, "", "");
    assert_eq!(w.cdrs[0].ended_by, EndedBy::Sbc(EndCause::SessionExpired));
    w.assert_clean();
}

#[test]
fn rfc4028_9_an_interval_too_small_gets_422() {
    let mut w = World::new();
    let text =
        invite_text(&mut w, &format!("Supported: timer\nSession-Expires: 60\n{}", sdp(SDP_A)));
    w.says(Who::A, &text);
    let refused = w.expect(Who::A, "422");
    assert_eq!(refused.header(HeaderName::MinSe), Some("90"));
}

#[test]
fn info_and_message_cross_both_ways() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    let dtmf = "Content-Type: application/dtmf-relay\n\nSignal=5\nDuration=160\n";
    let info = a_request(&mut w, &call.ok, "INFO", 102, dtmf);
    w.says(Who::A, &info);
    let info = w.expect(Who::B, "INFO");
    assert_eq!(info.body(), b"Signal=5\r\nDuration=160\r\n");
    assert_eq!(info.header(HeaderName::ContentType), Some("application/dtmf-relay"));
    w.answer(Who::B, &info, 200, "", "");
    w.expect(Who::A, "200");
    let text =
        b_request(&mut w, &call.invite, "bobtag", "MESSAGE", 1, "Content-Type: text/plain\n\nhi");
    w.says(Who::B, &text);
    let text = w.expect(Who::A, "MESSAGE");
    assert_eq!(text.body(), b"hi");
    w.answer(Who::A, &text, 415, "", "Accept: text/html\n");
    let refused = w.expect(Who::B, "415");
    assert_eq!(refused.header(HeaderName::Accept), Some("text/html"));
    hang_up(&mut w, &call);
}

#[test]
fn rfc3261_12_2_2_an_old_cseq_gets_500() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    let info = a_request(&mut w, &call.ok, "INFO", 50, "");
    w.says(Who::A, &info);
    w.expect(Who::A, "500");
    w.nothing(Who::B);
    hang_up(&mut w, &call);
}

#[test]
fn a_side_that_forgot_the_dialog_ends_the_call() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    let info = a_request(&mut w, &call.ok, "INFO", 102, "");
    w.says(Who::A, &info);
    let info = w.expect(Who::B, "INFO");
    w.answer(Who::B, &info, 481, "", "");
    w.expect(Who::A, "481");
    let bye = w.expect(Who::A, "BYE");
    w.answer(Who::A, &bye, 200, "", "");
    w.nothing(Who::B);
    assert_eq!(w.cdrs[0].ended_by, EndedBy::Sbc(EndCause::PeerGone));
    w.assert_clean();
}

#[test]
fn options_inside_a_call_is_answered_by_us() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    let options = a_request(&mut w, &call.ok, "OPTIONS", 102, "");
    w.says(Who::A, &options);
    w.expect(Who::A, "200");
    w.nothing(Who::B);
    hang_up(&mut w, &call);
}

#[test]
fn a_stream_added_and_removed() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    let two = format!("{SDP_A}m=video 40010 RTP/AVP 96\na=rtpmap:96 H264/90000\n");
    let re = a_request(&mut w, &call.ok, "INVITE", 102, &sdp(&two));
    w.says(Who::A, &re);
    let re = w.expect(Who::B, "INVITE");
    let text = String::from_utf8_lossy(re.body()).into_owned();
    assert!(text.contains("m=video 30004 RTP/AVP 96"), "{text}");
    let refused = format!("{SDP_B}m=video 0 RTP/AVP 96\n");
    w.answer(Who::B, &re, 200, "", &sdp(&refused));
    let ok = w.expect(Who::A, "200");
    assert!(String::from_utf8_lossy(ok.body()).contains("m=video 0 RTP/AVP 96"));
    assert!(w.anchor.side(1, Side::B).local.is_none(), "the refused stream gave its ports back");
    let ack = a_request(&mut w, &call.ok, "ACK", 102, "");
    w.says(Who::A, &ack);
    w.expect(Who::B, "ACK");
    hang_up(&mut w, &call);
}

#[test]
fn rfc4028_7_3_a_target_that_wants_longer_intervals_gets_them() {
    let mut w = World::new();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let first = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &first, 422, "bobtag", "Min-SE: 3600\n");
    w.expect(Who::B, "ACK");
    let second = w.expect(Who::B, "INVITE");
    assert_eq!(second.header(HeaderName::SessionExpires), Some("3600"));
    assert_eq!(second.header(HeaderName::MinSe), Some("3600"));
    assert_eq!(second.cseq().unwrap().number, 2);
    w.answer(Who::B, &second, 422, "bobtag", "Min-SE: 7200\n");
    w.expect(Who::B, "ACK");
    w.expect(Who::A, "500");
    let tried = w.cdrs[0].b.as_ref().unwrap();
    assert_eq!(tried.call_id, first.call_id().unwrap());
    w.assert_clean();
}

#[test]
fn t38_takes_the_place_of_audio() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    let fax = "v=0
o=bob 1 2 IN IP4 192.0.2.55
s=-
c=IN IP4 192.0.2.55
t=0 0
m=image 50010 udptl t38
a=T38FaxVersion:0
";
    let re = b_request(&mut w, &call.invite, "bobtag", "INVITE", 1, &sdp(fax));
    w.says(Who::B, &re);
    let re = w.expect(Who::A, "INVITE");
    let text = String::from_utf8_lossy(re.body()).into_owned();
    assert!(text.contains("udptl t38\r\na=T38FaxVersion:0"), "{text}");
    assert!(text.contains("c=IN IP4 10.0.0.9"), "{text}");
    let answer = fax.replace("bob 1 2", "alice 53655765 2").replace("192.0.2.55", "10.0.0.77");
    w.answer(Who::A, &re, 200, "alicetag", &sdp(&answer));
    let ok = w.expect(Who::B, "200");
    assert!(String::from_utf8_lossy(ok.body()).contains("m=image"));
    let remote = w.anchor.side(0, Side::B).remote.unwrap();
    assert_eq!(remote.rtp.unwrap().to_string(), "192.0.2.55:50010");
    assert_eq!(remote.rtcp, None);
    let ack = b_request(&mut w, &call.invite, "bobtag", "ACK", 1, "");
    w.says(Who::B, &ack);
    w.expect(Who::A, "ACK");
    hang_up(&mut w, &call);
}
