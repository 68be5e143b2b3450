//! What bad input gets, and what is refused before a call exists.

use super::basic::*;
use super::session::hang_up;
use super::world::*;
use crate::core::{Command, Input};
use crate::sip::{Defect, HeaderName};

fn invite_with(w: &mut World, from: &str, to: &str) -> String {
    let text = invite_text(w, &sdp(SDP_A));
    assert!(text.contains(from));
    text.replace(from, to)
}

#[test]
fn each_defect_has_its_answer() {
    for (from, to, status) in [
        ("Max-Forwards: 70", "Max-Forwards: 0", "483"),
        ("Subject: hello", "Require: 100rel, nosuch, other", "420"),
        ("Subject: hello", "Content-Encoding: gzip", "415"),
        ("application/sdp", "application/isup", "415"),
        ("m=audio", "m=audio x", "488"),
        ("c=IN IP4 10.0.0.77\n", "", "488"),
        ("Contact: <sip:alice@10.0.0.1:5060>", "X-No: contact", "400"),
        ("CSeq: 101 INVITE", "CSeq: 101 BYE", "400"),
        ("Call-ID:", "X-Call-ID:", "400"),
        ("SIP/2.0\n", "SIP/3.0\n", "505"),
        ("sip:+4930123@10.0.0.9 SIP", "urn:x:y SIP", "416"),
        ("From: ", "From: <<", "400"),
    ] {
        let mut w = World::new();
        let text = invite_with(&mut w, from, to);
        w.says(Who::A, &text);
        w.expect(Who::A, status);
        w.nothing(Who::B);
    }
}

#[test]
fn malformed_messages_are_counted_by_what_is_wrong() {
    let long = format!("Subject: {}", "x".repeat(40_000));
    for (from, to, defect) in [
        ("INVITE sip:", "INVITE  sip:", Defect::StartLine),
        ("SIP/2.0\n", "SIP/3.0\n", Defect::Version),
        ("Subject: hello", "no colon", Defect::Framing),
        ("Subject: hello", &long, Defect::TooLarge),
        ("Call-ID:", "X-Call-ID:", Defect::Missing),
        ("Subject: hello", "Max-Forwards: 69", Defect::Repeated),
        ("CSeq: 101", "CSeq: one", Defect::Value),
        ("CSeq: 101 INVITE", "CSeq: 101 BYE", Defect::Method),
        ("sip:+4930123@10.0.0.9 SIP", "sip:+4930123@ SIP", Defect::RequestUri),
    ] {
        let mut w = World::new();
        let text = invite_with(&mut w, from, to);
        w.says(Who::A, &text);
        let counts = w.core.stats().malformed;
        let found: Vec<_> = Defect::ALL.iter().zip(counts).filter(|(_, n)| *n > 0).collect();
        assert_eq!(found, [(&defect, 1)], "{to}");
    }
    let mut w = World::new();
    let text = wire_form(&invite_text(&mut w, &sdp(SDP_A)));
    let data = bytes::Bytes::from(text.replace("Content-Length: ", "Content-Length: 9"));
    w.input(Input::Message { flow: Who::A.flow(), data });
    w.expect(Who::A, "400");
    assert_eq!(w.core.stats().malformed[Defect::Length as usize], 1);
}

#[test]
fn unsupported_extensions_are_named() {
    let mut w = World::new();
    let text = invite_with(&mut w, "Subject: hello", "Require: 100rel, nosuch, other");
    w.says(Who::A, &text);
    let refused = w.expect(Who::A, "420");
    assert_eq!(refused.header(HeaderName::Unsupported), Some("nosuch, other"));
}

#[test]
fn too_large_is_513() {
    let mut w = World::new();
    let long = format!("Subject: {}", "x".repeat(40_000));
    let text = invite_with(&mut w, "Subject: hello", &long);
    w.says(Who::A, &text);
    w.expect(Who::A, "513");
}

#[test]
fn methods_outside_a_dialog() {
    for (method, status) in [
        ("OPTIONS", "200"),
        ("NEWMETHOD", "501"),
        ("REGISTER", "405"),
        // Without Event and without Refer-To.
        ("SUBSCRIBE", "489"),
        ("REFER", "400"),
        ("NOTIFY", "481"),
        ("BYE", "481"),
        ("INFO", "481"),
        ("UPDATE", "481"),
    ] {
        let mut w = World::new();
        let text = invite_text(&mut w, "").replace("INVITE", method);
        w.says(Who::A, &text);
        let answer = w.expect(Who::A, status);
        if status == "405" || status == "501" {
            assert!(answer.has(HeaderName::Allow));
        }
        w.nothing(Who::B);
        w.assert_clean();
    }
}

#[test]
fn an_unknown_dialog_is_481() {
    let mut w = World::new();
    let text = invite_text(&mut w, "")
        .replace("INVITE", "BYE")
        .replace("To: <sip:+4930123@10.0.0.9>", "To: <sip:+4930123@10.0.0.9>;tag=gone");
    w.says(Who::A, &text);
    w.expect(Who::A, "481");
    assert_eq!(w.core.stats().unknown_dialogs, 1);
}

#[test]
fn rfc3261_8_2_2_2_a_merged_request_is_482() {
    let mut w = World::new();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    w.expect(Who::B, "INVITE");
    let again = text.replace("branch=z9hG4bKpeer1", "branch=z9hG4bKother");
    w.says(Who::A, &again);
    w.expect(Who::A, "482");
    w.nothing(Who::B);
}

#[test]
fn our_own_invite_coming_back_is_482() {
    let mut w = World::new();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let ours = w.expect(Who::B, "INVITE");
    // B is a proxy that sends it back to us as it is.
    let text = String::from_utf8_lossy(ours.as_bytes()).replace("\r\n", "\n");
    let via = "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKback\nVia:";
    let text = text.replacen("Via:", via, 1);
    let text: String = text
        .lines()
        .filter(|l| !l.starts_with("Content-Length"))
        .map(|l| format!("{l}\n"))
        .collect();
    w.says(Who::B, &text);
    let refused = w.expect(Who::B, "482");
    assert_eq!(refused.lines(HeaderName::Via).count(), 2);
}

#[test]
fn strangers_get_403() {
    let mut w = World::new();
    let text = invite_text(&mut w, &sdp(SDP_A));
    let mut flow = Who::B.flow();
    flow.remote = Who::A.addr();
    let data = bytes::Bytes::from(wire_form(&text));
    w.input(Input::Message { flow, data });
    w.expect(Who::A, "403");
}

#[test]
fn a_full_table_is_503_with_retry_after() {
    let mut settings = Settings::new();
    settings.calls.max_calls = 1;
    let mut w = settings.begin();
    let call = set_up(&mut w, "", "");
    let second = invite_text(&mut w, &sdp(SDP_A)).replace("inside-call-1", "inside-call-2");
    w.says(Who::A, &second);
    let refused = w.expect(Who::A, "503");
    assert!(refused.has(HeaderName::RetryAfter));
    hang_up(&mut w, &call);
}

#[test]
fn a_drain_refuses_the_new_and_keeps_the_old() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    w.input(Input::Command(Command::Drain(true)));
    let second = invite_text(&mut w, &sdp(SDP_A)).replace("inside-call-1", "inside-call-2");
    w.says(Who::A, &second);
    assert!(w.expect(Who::A, "503").has(HeaderName::RetryAfter));
    let options = invite_text(&mut w, "").replace("INVITE", "OPTIONS");
    w.says(Who::A, &options);
    w.expect(Who::A, "503");
    let info = a_request(&mut w, &call.ok, "INFO", 102, "");
    w.says(Who::A, &info);
    let info = w.expect(Who::B, "INFO");
    w.answer(Who::B, &info, 200, "", "");
    w.expect(Who::A, "200");
    assert!(!w.drained);
    hang_up(&mut w, &call);
    assert!(w.drained);
}

#[test]
fn codec_policy_decides_what_is_offered() {
    let mut settings = Settings::new();
    settings.one.codecs.allow = vec!["PCMU".into()];
    let mut w = settings.begin();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    let body = String::from_utf8_lossy(invite.body()).into_owned();
    assert!(body.contains("RTP/AVP 0 101\r\n"), "{body}");

    let mut settings = Settings::new();
    settings.pbx.codecs.allow = vec!["opus".into()];
    let mut w = settings.begin();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    w.expect(Who::A, "488");
    w.nothing(Who::B);
    w.assert_clean();
}

#[test]
fn a_multipart_body_yields_its_description() {
    let mut w = World::new();
    let body = format!(
        "Content-Type: multipart/mixed;boundary=b1\n\n--b1\nContent-Type: application/sdp\n\n{SDP_A}\n--b1\nContent-Type: application/isup\n\nsecret\n--b1--\n"
    );
    let text = invite_text(&mut w, &body);
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    assert_eq!(invite.header(HeaderName::ContentType), Some("application/sdp"));
    assert!(!String::from_utf8_lossy(invite.body()).contains("secret"));
}
