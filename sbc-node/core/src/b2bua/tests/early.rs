//! Before the answer: forks, early media, reliable provisional responses, failover details.

use super::basic::*;
use super::session::hang_up;
use super::world::*;
use crate::sip::HeaderName;

const RELIABLE: &str = "Require: 100rel\nRSeq: 7\n";

fn begin(w: &mut World, rest: &str) -> crate::sip::Message {
    let text = invite_text(w, &format!("{rest}{}", sdp(SDP_A)));
    w.says(Who::A, &text);
    w.expect(Who::B, "INVITE")
}

#[test]
fn early_media_crosses_and_the_2xx_repeats_it() {
    let mut w = World::new();
    let invite = begin(&mut w, "");
    w.answer(Who::B, &invite, 183, "bobtag", &sdp(SDP_B));
    let early = w.expect(Who::A, "183");
    assert!(String::from_utf8_lossy(early.body()).contains("c=IN IP4 10.0.0.9"));
    w.answer(Who::B, &invite, 200, "bobtag", &sdp(SDP_B));
    let ok = w.expect(Who::A, "200");
    assert_eq!(ok.body(), early.body(), "the same description, the same version");
    let ack = a_request(&mut w, &ok, "ACK", 101, "");
    w.says(Who::A, &ack);
    w.expect(Who::B, "ACK");
    hang_up(&mut w, &UpCall { invite, ok });
}

#[test]
fn rfc3261_13_2_2_4_the_first_fork_to_answer_wins_the_others_are_hung_up() {
    let mut w = World::new();
    let invite = begin(&mut w, "");
    w.answer(Who::B, &invite, 180, "forkone", "");
    let one = w.expect(Who::A, "180");
    w.answer(Who::B, &invite, 183, "forktwo", &sdp(SDP_B));
    let two = w.expect(Who::A, "183");
    assert_ne!(one.to_tag(), two.to_tag(), "each fork has its own dialog with A");
    w.answer(Who::B, &invite, 200, "forktwo", &sdp(SDP_B));
    let ok = w.expect(Who::A, "200");
    assert_eq!(ok.to_tag(), two.to_tag());
    let ack = a_request(&mut w, &ok, "ACK", 101, "");
    w.says(Who::A, &ack);
    assert_eq!(w.expect(Who::B, "ACK").to_tag(), Some("forktwo"));
    // The loser answers too.
    w.answer(Who::B, &invite, 200, "forkone", &sdp(SDP_B));
    let ack = w.expect(Who::B, "ACK");
    assert_eq!(ack.to_tag(), Some("forkone"));
    let bye = w.expect(Who::B, "BYE");
    assert_eq!(bye.to_tag(), Some("forkone"));
    w.answer(Who::B, &bye, 200, "", "");
    w.nothing(Who::A);
    assert_eq!(w.core.stats().stray_answers, 1);
    hang_up(&mut w, &UpCall { invite, ok });
}

#[test]
fn an_answer_that_crosses_the_cancel_is_hung_up() {
    let mut w = World::new();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &invite, 180, "bobtag", "");
    let cancel = text
        .lines()
        .take_while(|l| !l.starts_with("Contact"))
        .map(|l| l.replace("INVITE", "CANCEL"))
        .collect::<Vec<_>>()
        .join("\n");
    w.says(Who::A, &cancel);
    let cancel = w.expect(Who::B, "CANCEL");
    w.answer(Who::B, &invite, 200, "bobtag", &sdp(SDP_B));
    w.expect(Who::B, "ACK");
    let bye = w.expect(Who::B, "BYE");
    w.answer(Who::B, &cancel, 481, "bobtag", "");
    w.answer(Who::B, &bye, 200, "", "");
    w.expect(Who::A, "180");
    w.expect(Who::A, "200");
    w.expect(Who::A, "487");
    w.nothing(Who::A);
    w.assert_clean();
}

#[test]
fn rfc3262_prack_end_to_end() {
    let mut w = World::new();
    let invite = begin(&mut w, "Supported: 100rel\n");
    assert!(invite.lists(HeaderName::Supported, "100rel"));
    w.answer(Who::B, &invite, 183, "bobtag", &format!("{RELIABLE}{}", sdp(SDP_B)));
    let early = w.expect(Who::A, "183");
    assert!(early.lists(HeaderName::Require, "100rel"));
    assert_eq!(early.header(HeaderName::RSeq), Some("1"));
    // A is slow: the 183 is repeated. B repeats too, which is absorbed.
    w.ms(600);
    w.expect(Who::A, "183");
    w.answer(Who::B, &invite, 183, "bobtag", &format!("{RELIABLE}{}", sdp(SDP_B)));
    w.nothing(Who::B);
    let prack = a_request(&mut w, &early, "PRACK", 102, "RAck: 1 101 INVITE\n");
    w.says(Who::A, &prack);
    let prack = w.expect(Who::B, "PRACK");
    assert_eq!(prack.header(HeaderName::RAck), Some("7 1 INVITE"));
    w.answer(Who::B, &prack, 200, "", "");
    w.expect(Who::A, "200");
    w.ms(3000);
    w.nothing(Who::A);
    // The answer was given reliably: the 2xx has none.
    w.answer(Who::B, &invite, 200, "bobtag", "");
    let ok = w.expect(Who::A, "200");
    assert!(ok.body().is_empty());
    let ack = a_request(&mut w, &ok, "ACK", 101, "");
    w.says(Who::A, &ack);
    assert_eq!(w.expect(Who::B, "ACK").cseq().unwrap().number, 1);
    hang_up(&mut w, &UpCall { invite, ok });
}

#[test]
fn rfc3262_we_prack_where_a_cannot() {
    let mut w = World::new();
    let invite = begin(&mut w, "");
    w.answer(Who::B, &invite, 183, "bobtag", &format!("{RELIABLE}{}", sdp(SDP_B)));
    let early = w.expect(Who::A, "183");
    assert!(!early.has(HeaderName::RSeq) && !early.has(HeaderName::Require));
    let prack = w.expect(Who::B, "PRACK");
    assert_eq!(prack.header(HeaderName::RAck), Some("7 1 INVITE"));
    w.answer(Who::B, &prack, 200, "", "");
    // B has answered in the 183 and says nothing more; A needs its answer in the 2xx.
    w.answer(Who::B, &invite, 200, "bobtag", "");
    let ok = w.expect(Who::A, "200");
    assert_eq!(ok.body(), early.body());
    let ack = a_request(&mut w, &ok, "ACK", 101, "");
    w.says(Who::A, &ack);
    w.expect(Who::B, "ACK");
    hang_up(&mut w, &UpCall { invite, ok });
}

#[test]
fn rfc3262_we_are_reliable_where_b_is_not_but_a_insists() {
    let mut w = World::new();
    let invite = begin(&mut w, "Require: 100rel\n");
    w.answer(Who::B, &invite, 180, "bobtag", "");
    let ringing = w.expect(Who::A, "180");
    assert_eq!(ringing.header(HeaderName::RSeq), Some("1"));
    let wrong = a_request(&mut w, &ringing, "PRACK", 102, "RAck: 9 101 INVITE\n");
    w.says(Who::A, &wrong);
    w.expect(Who::A, "481");
    let prack = a_request(&mut w, &ringing, "PRACK", 103, "RAck: 1 101 INVITE\n");
    w.says(Who::A, &prack);
    w.expect(Who::A, "200");
    w.nothing(Who::B);
    w.answer(Who::B, &invite, 486, "bobtag", "");
    w.expect(Who::A, "486");
}

#[test]
fn rfc3262_3_no_prack_ends_the_attempt() {
    let mut w = World::new();
    let invite = begin(&mut w, "Supported: 100rel\n");
    w.answer(Who::B, &invite, 183, "bobtag", &format!("{RELIABLE}{}", sdp(SDP_B)));
    w.expect(Who::A, "183");
    w.ms(33_000);
    let cancel = w.expect(Who::B, "CANCEL");
    w.answer(Who::B, &cancel, 200, "bobtag", "");
    w.answer(Who::B, &invite, 487, "bobtag", "");
    for _ in 0..6 {
        w.expect(Who::A, "183");
    }
    w.expect(Who::A, "504");
    w.assert_clean();
}

#[test]
fn rfc3311_update_in_an_early_dialog() {
    let mut w = World::new();
    let invite = begin(&mut w, "Supported: 100rel\n");
    let allow = "Allow: INVITE, ACK, BYE, UPDATE, PRACK\n";
    w.answer(Who::B, &invite, 183, "bobtag", &format!("{allow}{RELIABLE}{}", sdp(SDP_B)));
    let early = w.expect(Who::A, "183");
    let prack = a_request(&mut w, &early, "PRACK", 102, "RAck: 1 101 INVITE\n");
    w.says(Who::A, &prack);
    let prack = w.expect(Who::B, "PRACK");
    w.answer(Who::B, &prack, 200, "", "");
    w.expect(Who::A, "200");
    let update = a_request(&mut w, &early, "UPDATE", 103, &sdp(SDP_A));
    w.says(Who::A, &update);
    let update = w.expect(Who::B, "UPDATE");
    assert_eq!(update.to_tag(), Some("bobtag"));
    w.answer(Who::B, &update, 200, "", &sdp(SDP_B));
    assert!(w.expect(Who::A, "200").body().starts_with(b"v=0"));
    // And one of B, which A knows by the fork's tag.
    let theirs = b_request(&mut w, &invite, "bobtag", "UPDATE", 1, &sdp(SDP_B));
    w.says(Who::B, &theirs);
    w.nothing(Who::A);
    w.expect(Who::B, "488");
}

#[test]
fn a_fork_reuses_no_tag_that_had_media_under_another_target() {
    let mut w = World::new();
    let first = begin(&mut w, "");
    w.answer(Who::B, &first, 183, "bobtag", &sdp(SDP_B));
    let early = w.expect(Who::A, "183");
    w.answer(Who::B, &first, 503, "bobtag", "");
    w.expect(Who::B, "ACK");
    let second = w.expect(Who::C, "INVITE");
    w.answer(Who::C, &second, 180, "caroltag", "");
    let ringing = w.expect(Who::A, "180");
    assert_ne!(early.to_tag(), ringing.to_tag());
    w.answer(Who::C, &second, 486, "caroltag", "");
    w.expect(Who::A, "486");
    w.assert_clean();
}

#[test]
fn rfc3261_16_6_ringing_for_too_long_is_cancelled() {
    let mut w = World::new();
    let invite = begin(&mut w, "");
    w.answer(Who::B, &invite, 180, "bobtag", "");
    w.expect(Who::A, "180");
    w.ms(181_000);
    let cancel = w.expect(Who::B, "CANCEL");
    w.answer(Who::B, &cancel, 200, "bobtag", "");
    w.answer(Who::B, &invite, 487, "bobtag", "");
    let second = w.expect(Who::C, "INVITE");
    w.answer(Who::C, &second, 404, "caroltag", "");
    w.expect(Who::A, "404");
    w.assert_clean();
}

#[test]
fn a_redirection_is_not_followed() {
    let mut w = World::new();
    let invite = begin(&mut w, "");
    w.answer(Who::B, &invite, 302, "bobtag", "Contact: <sip:+1900premium@evil.example>\n");
    let refused = w.expect(Who::A, "480");
    assert!(!String::from_utf8_lossy(refused.as_bytes()).contains("premium"));
    w.nothing(Who::C);
    w.assert_clean();
}

#[test]
fn unanswerable_challenges_become_403() {
    let mut w = World::new();
    let invite = begin(&mut w, "");
    let challenge = "Proxy-Authenticate: Digest realm=\"x\", nonce=\"1\"\n";
    w.answer(Who::B, &invite, 407, "bobtag", challenge);
    let refused = w.expect(Who::A, "403");
    assert!(!refused.has(HeaderName::ProxyAuthenticate));
    w.assert_clean();
}
