//! What a call does between its legs where one rule covers many cases: statuses, failover by code,
//! glare of our own requests, subscriptions inside a call, several streams, identities.

use super::basic::*;
use super::session::hang_up;
use super::world::*;
use crate::b2bua::{EndCause, EndedBy};
use crate::media::Side;
use crate::sip::HeaderName;

/// What the caller is told of each final status of the only target left.
#[test]
fn rfc3261_16_7_each_final_status_as_the_caller_hears_it() {
    for (from_target, to_caller) in [
        (300, 480),
        (302, 480),
        (305, 480),
        (380, 480),
        (400, 400),
        (401, 403),
        (402, 402),
        (403, 403),
        (404, 404),
        (407, 403),
        (410, 410),
        (415, 415),
        (420, 500),
        (421, 500),
        (480, 480),
        (482, 482),
        (483, 483),
        (484, 484),
        (486, 486),
        (487, 487),
        (488, 488),
        (493, 493),
        (501, 501),
        (513, 513),
        (600, 600),
        (603, 603),
        (604, 604),
        (606, 606),
    ] {
        let mut w = World::new();
        let text = invite_text(&mut w, &sdp(SDP_A));
        w.says(Who::A, &text);
        let invite = w.expect(Who::B, "INVITE");
        w.answer(Who::B, &invite, from_target, "bobtag", "Server: secret\n");
        w.expect(Who::B, "ACK");
        let told = w.expect(Who::A, &to_caller.to_string());
        assert!(!told.has(HeaderName::Server));
        w.nothing(Who::C);
        w.assert_clean();
    }
}

#[test]
fn failover_goes_by_the_codes_of_the_trunk() {
    for (codes, status, goes_on) in [
        (vec![486, 503], 486, true),
        (vec![486, 503], 503, true),
        (vec![486, 503], 500, false),
        // RFC 3263 §4.3: a 503 always goes on.
        (vec![404], 503, true),
        (vec![404], 500, false),
        (vec![603], 603, true),
    ] {
        let mut settings = Settings::new();
        settings.one.failover.codes = codes;
        let mut w = settings.begin();
        let text = invite_text(&mut w, &sdp(SDP_A));
        w.says(Who::A, &text);
        let invite = w.expect(Who::B, "INVITE");
        w.answer(Who::B, &invite, status, "bobtag", "");
        w.expect(Who::B, "ACK");
        if goes_on {
            let invite = w.expect(Who::C, "INVITE");
            w.nothing(Who::A);
            w.answer(Who::C, &invite, 404, "caroltag", "");
            w.expect(Who::C, "ACK");
        } else {
            w.expect(Who::A, &status.to_string());
        }
        w.nothing(Who::C);
        w.ms(40_000);
        w.assert_clean();
    }
}

/// Our own refresh meets an offer of the peer: it waits (§14.1) and comes again. Towards A, whose
/// Call-ID is A's, up to 2 s; towards B, whose Call-ID is ours, 2.1 to 4 s.
#[test]
fn rfc3261_14_1_our_own_offer_waits_after_a_491() {
    let mut w = World::new();
    let _call = set_up(&mut w, "", "");
    w.ms(900_000);
    for who in [Who::A, Who::B] {
        let re = w.expect(who, "INVITE");
        w.answer(who, &re, 491, if who == Who::A { "alicetag" } else { "bobtag" }, "");
        w.expect(who, "ACK");
    }
    for (who, tag, body, least, most) in
        [(Who::A, "alicetag", SDP_A, 0, 2050), (Who::B, "bobtag", SDP_B, 2100, 4050)]
    {
        w.until(who);
        let again = w.expect(who, "INVITE");
        let waited = (w.now - w.t0).as_millis() - 901_020;
        assert!((least..=most).contains(&waited), "{who:?}: {waited} ms");
        w.answer(who, &again, 200, tag, &sdp(body));
        w.expect(who, "ACK");
    }
}

#[test]
fn subscribe_and_notify_cross_inside_a_call() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    let text = a_request(&mut w, &call.ok, "SUBSCRIBE", 102, "Event: kpml\nExpires: 60\n");
    w.says(Who::A, &text);
    let subscribe = w.expect(Who::B, "SUBSCRIBE");
    assert_eq!(subscribe.to_tag(), Some("bobtag"));
    assert_eq!(subscribe.header(HeaderName::Event), Some("kpml"));
    assert_eq!(subscribe.header(HeaderName::Contact), Some("<sip:203.0.113.9:5060>"));
    w.answer(Who::B, &subscribe, 202, "", "Expires: 30\n");
    assert_eq!(w.expect(Who::A, "202").header(HeaderName::Expires), Some("30"));
    let rest = "Event: kpml\nSubscription-State: terminated;reason=noresource\n";
    let text = b_request(&mut w, &call.invite, "bobtag", "NOTIFY", 1, rest);
    w.says(Who::B, &text);
    let notify = w.expect(Who::A, "NOTIFY");
    let state = notify.header(HeaderName::SubscriptionState);
    assert_eq!(state, Some("terminated;reason=noresource"));
    w.answer(Who::A, &notify, 200, "", "");
    w.expect(Who::B, "200");
    hang_up(&mut w, &call);
}

#[test]
fn rfc3264_5_each_stream_of_a_description_is_anchored_or_left_off() {
    let mut w = World::new();
    let offer = "v=0
o=alice 1 1 IN IP4 10.0.0.77
s=Secret
c=IN IP4 10.0.0.77
b=AS:512
t=0 0
m=audio 40000 RTP/AVP 8
b=AS:64
a=rtcp-mux
m=video 40002 RTP/AVP 96
c=IN IP4 10.0.0.78
b=TIAS:256000
a=rtpmap:96 H264/90000
a=inactive
m=application 0 TCP/BFCP *
m=application 40006 udp wb
a=orient:portrait
";
    let text = invite_text(&mut w, &sdp(offer));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    let body = String::from_utf8_lossy(invite.body()).into_owned();
    for line in [
        "b=AS:512",
        "m=audio 30000 RTP/AVP 8",
        "b=AS:64",
        "a=rtcp-mux",
        "m=video 30002 RTP/AVP 96",
        "b=TIAS:256000",
        "a=inactive",
        "m=application 0 TCP/BFCP *",
        "m=application 30004 udp wb",
        "a=orient:portrait",
    ] {
        assert!(body.lines().any(|l| l == line), "{line} in\n{body}");
    }
    assert!(!body.contains("10.0.0.") && !body.contains("Secret"), "{body}");
    let answer = "v=0
o=bob 1 1 IN IP4 192.0.2.55
s=-
c=IN IP4 192.0.2.55
t=0 0
m=audio 50000 RTP/AVP 8
a=rtcp-mux
m=video 0 RTP/AVP 96
m=application 0 TCP/BFCP *
m=application 50006 udp wb
";
    w.answer(Who::B, &invite, 200, "bobtag", &sdp(answer));
    let ok = w.expect(Who::A, "200");
    let body = String::from_utf8_lossy(ok.body()).into_owned();
    assert_eq!(body.matches("\r\nm=").count(), 4, "{body}");
    assert!(body.contains("m=video 0 ") && body.contains("m=application 0 TCP/BFCP"), "{body}");
    let remote = |stream, side| w.anchor.side(stream, side).remote;
    assert_eq!(remote(3, Side::B).unwrap().rtp.unwrap().to_string(), "192.0.2.55:50006");
    assert!(remote(0, Side::A).unwrap().rtcp_mux);
    assert!(remote(1, Side::A).is_none() && remote(2, Side::A).is_none(), "they are gone");
    let ack = a_request(&mut w, &ok, "ACK", 101, "");
    w.says(Who::A, &ack);
    w.expect(Who::B, "ACK");
    hang_up(&mut w, &UpCall { invite, ok });
}

/// Every way to say hold: the anchor stops the right direction, and the other side hears it in the
/// words of RFC 3264.
#[test]
fn rfc3264_8_4_every_hold_stops_its_direction() {
    for (said, shown, sends, receives) in [
        ("a=sendonly", "a=sendonly", true, false),
        ("a=recvonly", "a=recvonly", false, true),
        ("a=inactive", "a=inactive", false, false),
        ("c=IN IP4 0.0.0.0", "a=sendonly", true, false),
    ] {
        let mut w = World::new();
        let call = set_up(&mut w, "", "");
        let held = match said {
            said if said.starts_with("c=") => SDP_A.replace("c=IN IP4 10.0.0.77", said),
            said => SDP_A.replace("a=sendrecv", said),
        };
        let held = held.replace("2353687637", "2353687638");
        let re = a_request(&mut w, &call.ok, "INVITE", 102, &sdp(&held));
        w.says(Who::A, &re);
        let re = w.expect(Who::B, "INVITE");
        let body = String::from_utf8_lossy(re.body()).into_owned();
        assert!(body.contains(shown), "{said}: {body}");
        w.answer(Who::B, &re, 200, "", &sdp(SDP_B));
        w.expect(Who::A, "200");
        let side = w.anchor.side(0, Side::A).remote.unwrap();
        assert_eq!((side.sends, side.receives), (sends, receives), "{said}");
        let ack = a_request(&mut w, &call.ok, "ACK", 102, "");
        w.says(Who::A, &ack);
        w.expect(Who::B, "ACK");
        hang_up(&mut w, &call);
    }
}

#[test]
fn rfc3325_every_identity_header_crosses_by_trust_with_our_host() {
    let identities = [
        (HeaderName::PAssertedIdentity, "\"A\" <sip:+491@pbx.inside.example>"),
        (HeaderName::PPreferredIdentity, "<sip:+492@pbx.inside.example>"),
        (HeaderName::RemotePartyId, "<sip:+493@pbx.inside.example>;party=calling"),
        (HeaderName::Diversion, "<sip:+494@pbx.inside.example>;reason=no-answer"),
        (HeaderName::HistoryInfo, "<sip:+495@pbx.inside.example>;index=1"),
    ];
    for trusted in [true, false] {
        let mut settings = Settings::new();
        settings.pbx.trusted = trusted;
        settings.one.trusted = true;
        let mut w = settings.begin();
        let lines = identities.map(|(name, value)| format!("{name}: {value}\n")).concat();
        let text = invite_text(&mut w, &format!("{lines}{}", sdp(SDP_A)));
        w.says(Who::A, &text);
        let invite = w.expect(Who::B, "INVITE");
        for (name, value) in identities {
            let shown = value.replace("pbx.inside.example", "203.0.113.9");
            let expected = trusted.then_some(shown.as_str());
            assert_eq!(invite.header(name), expected, "{name}, trusted: {trusted}");
        }
    }
}

/// Nobody else knows the calls of a node by itself: what would be told after a crash is said with the
/// answer.
#[test]
fn a_node_by_itself_says_what_to_tell_should_it_crash() {
    let mut settings = Settings::new();
    settings.calls.commit_wait = None;
    let mut w = settings.begin();
    let call = set_up(&mut w, "", "");
    let told = w.answered.pop().unwrap();
    assert!(w.answered.is_empty() && w.cdrs.is_empty());
    assert_eq!(told.ended_by, EndedBy::Sbc(EndCause::Crash));
    hang_up(&mut w, &call);
    let cdr = w.cdrs.pop().unwrap();
    assert_eq!((told.call, told.status, told.answered_ms), (cdr.call, 200, cdr.answered_ms));
    assert_eq!((&told.a, &told.b, &told.attempts), (&cdr.a, &cdr.b, &cdr.attempts));
    assert_eq!((told.from, told.to, told.codecs), (cdr.from, cdr.to, cdr.codecs));
    // In a cluster the record of the call does that.
    let mut w = World::new();
    set_up(&mut w, "", "");
    assert!(w.answered.is_empty());
}
