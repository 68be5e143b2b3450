//! Attacks on a shard by messages: what one side writes to fool us, the other side or who reads our
//! records. `docs/security.md` lists the classes; floods and media are tested elsewhere.

use super::basic::*;
use super::world::*;
use crate::sip::HeaderName;

/// Everything that a peer was sent.
fn sent_to(w: &World, who: Who) -> String {
    let all = w.seen.get(&who).map_or(&[][..], Vec::as_slice);
    all.iter().map(|data| String::from_utf8_lossy(data).into_owned()).collect()
}

#[test]
fn headers_smuggled_in_any_shape_do_not_cross() {
    for header in [
        "P-Asserted-Identity: <sip:smuggled@evil.example>",
        "p-asserted-identity: <sip:smuggled@evil.example>",
        "P-ASSERTED-IDENTITY : <sip:smuggled@evil.example>",
        "P-Asserted-Identity\t:\t<sip:smuggled@evil.example>",
        "P-Asserted-Identity:\n <sip:smuggled@evil.example>",
        "Subject: x\n P-Asserted-Identity: <sip:smuggled@evil.example>",
        "P-Asserted-Identity: <sip:+49@x>\nP-Asserted-Identity: <sip:smuggled@evil.example>",
        "P-Charging-Vector: icid-value=smuggled",
        "P-Access-Network-Info: smuggled",
        "X-Billing: smuggled",
        "X-Trusted-Source : smuggled",
        "Remote-Party-ID: <sip:smuggled@evil.example>;party=calling",
        "Diversion: <sip:smuggled@evil.example>",
        "History-Info: <sip:smuggled@evil.example>;index=1",
        "Route: <sip:smuggled@evil.example;lr>",
        "Record-Route: <sip:smuggled@evil.example;lr>",
        "Path: <sip:smuggled@evil.example;lr>",
        "Authorization: Digest username=\"smuggled\"",
        "Identity: smuggled",
        "Alert-Info: <http://evil.example/smuggled>",
        "Call-Info: <http://evil.example/smuggled>;purpose=icon",
        "Error-Info: <sip:smuggled@evil.example>",
        "Geolocation: <http://evil.example/smuggled>",
        "Join: smuggled;to-tag=1;from-tag=2",
        "Target-Dialog: smuggled;local-tag=1;remote-tag=2",
    ] {
        let mut w = World::new();
        let text = invite_text(&mut w, &sdp(SDP_A)).replace("Subject: hello", header);
        w.says(Who::A, &text);
        let crossed = sent_to(&w, Who::B);
        // A fold is part of the header it folds; only what would be read as a header counts.
        let as_header = crossed.lines().any(|line| {
            line.contains("smuggled") && !line.to_ascii_lowercase().starts_with("subject:")
        });
        assert!(!as_header, "{header}:\n{crossed}");
    }
}

#[test]
fn what_may_be_there_once_and_is_there_twice_is_400() {
    for (header, second) in [
        ("To: ", "To: <sip:other@10.0.0.9>"),
        ("To: ", "t: <sip:other@10.0.0.9>"),
        ("From: ", "From: <sip:other@10.0.0.9>;tag=x"),
        ("From: ", "f : <sip:other@10.0.0.9>;tag=x"),
        ("Call-ID: ", "i: another"),
        ("CSeq: ", "CSeq: 102 INVITE"),
        ("Max-Forwards: ", "max-forwards: 71"),
        ("CSeq: ", "Content-Length: 5\nl: 7"),
    ] {
        let mut w = World::new();
        let text = invite_text(&mut w, "").replacen(header, &format!("{second}\n{header}"), 1);
        w.says(Who::A, &text);
        w.expect(Who::A, "400");
        w.nothing(Who::B);
    }
}

#[test]
fn control_characters_inject_nothing() {
    for poison in [
        "a\rInjected: yes",
        "a\r\rInjected: yes",
        "a\0Injected: yes",
        "a\u{b}Injected: yes",
        "a\u{85}Injected: yes",
        "a\u{2028}Injected: yes",
        "a\\\rInjected: yes",
        "a%0d%0aInjected: yes",
    ] {
        for place in [
            format!("From: \"{poison}\" <sip:+4989555@x>;tag=alicetag"),
            format!("From: <sip:{poison}@x>;tag=alicetag"),
            format!("Subject: {poison}"),
            format!("Reason: SIP;cause=200;text=\"{poison}\""),
        ] {
            let mut w = World::new();
            let name = place.split(':').next().unwrap();
            let text = invite_text(&mut w, &sdp(SDP_A));
            let text: String = text
                .lines()
                .filter(|line| name == "Reason" || !line.starts_with(&format!("{name}:")))
                .map(|line| format!("{line}\n"))
                .collect();
            let text = text.replacen("CSeq:", &format!("{place}\nCSeq:"), 1);
            w.says(Who::A, &text);
            unharmed(&sent_to(&w, Who::B), &place);
        }
        let mut w = World::new();
        let poisoned = SDP_A
            .replace("s=Secret session of A", &format!("s={poison}"))
            .replace("a=sendrecv", &format!("a=x:{poison}\na=sendrecv"));
        let text = invite_text(&mut w, &sdp(&poisoned));
        w.says(Who::A, &text);
        unharmed(&sent_to(&w, Who::B), poison);
    }
}

/// What is refused repeats its sender's own words to it alone: only what crosses is looked at.
/// No line that a peer would read begins with what was injected, and no control character is left
/// but line ends.
fn unharmed(sent: &str, what: &str) {
    let lines = sent.split(['\n', '\r', '\0', '\u{b}']);
    let injected = lines.into_iter().any(|l| l.trim_start().starts_with("Injected"));
    assert!(!injected, "{what:?}:\n{sent}");
    let plain = sent.replace("\r\n", "\n");
    let control = plain.chars().find(|c| c.is_ascii_control() && !matches!(c, '\n' | '\t'));
    assert_eq!(control, None, "{what:?}:\n{sent:?}");
}

#[test]
fn a_reason_of_the_far_side_injects_nothing_into_its_answer() {
    for poison in ["Busy\rInjected: yes", "Busy\0", "Busy\u{b}Injected: yes"] {
        let mut w = World::new();
        let text = invite_text(&mut w, &sdp(SDP_A));
        w.says(Who::A, &text);
        let invite = w.expect(Who::B, "INVITE");
        let reason = format!("Reason: Q.850;cause=17;text=\"{poison}\"\n");
        let answer = response_text(Who::B, &invite, 486, "bobtag", &reason);
        w.says(Who::B, &answer.replacen("Busy Here", poison, 1));
        unharmed(&sent_to(&w, Who::A), poison);
    }
}

#[test]
fn long_tags_branches_and_numbers_are_carried_or_refused() {
    let long = "x".repeat(4_000);
    for (from, to, status) in [
        ("tag=alicetag", format!("tag={long}"), "100"),
        ("z9hG4bKpeer1", format!("z9hG4bK{long}"), "100"),
        ("inside-call-1@", format!("{long}@"), "100"),
        ("CSeq: 101", "CSeq: 4294967296".to_owned(), "400"),
        ("CSeq: 101", format!("CSeq: {}", "9".repeat(4_000)), "400"),
        ("Max-Forwards: 70", "Max-Forwards: 999999".to_owned(), "400"),
    ] {
        let mut w = World::new();
        let text = invite_text(&mut w, &sdp(SDP_A)).replace(from, &to);
        w.says(Who::A, &text);
        let all = sent_to(&w, Who::A);
        if status == "400" {
            assert!(all.starts_with("SIP/2.0 400"), "{from}: {all}");
            w.nothing(Who::B);
        } else {
            assert!(!sent_to(&w, Who::B).contains("xxxxxxxx"), "nothing of {from} crosses");
        }
    }
}

#[test]
fn a_content_length_that_lies_is_not_believed() {
    for length in ["99999999999999999999", "-1", "4294967296", "1000000", "0x10", "12 34"] {
        let mut w = World::new();
        let text = wire_form(&invite_text(&mut w, &sdp(SDP_A)));
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let right = format!("Content-Length: {}", body.len());
        let data = text.replace(&right, &format!("Content-Length: {length}"));
        assert_ne!(data, text, "{head}");
        w.input(crate::core::Input::Message { flow: Who::A.flow(), data: data.into() });
        w.expect(Who::A, "400");
        w.nothing(Who::B);
    }
}

#[test]
fn answers_that_belong_to_nothing_of_the_sender_change_nothing() {
    let mut w = World::new();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    // C answers in B's place: it can name everything but the branch, which nobody can guess.
    let answer = response_text(Who::C, &invite, 200, "mallory", &sdp(SDP_B));
    let branch = invite.via().unwrap().branch().to_owned();
    let guesses = [
        answer.replace(&branch, "z9hG4bK"),
        answer.replace(&branch, &format!("{}x", &branch[..branch.len() - 1])),
        answer.replace(&format!(";branch={branch}"), ""),
        answer.replace(&branch, "z9hG4bKpeer1"),
    ];
    for guess in guesses {
        assert_ne!(guess, answer);
        w.says(Who::C, &guess);
        w.nothing(Who::A);
        w.nothing(Who::C);
    }
    w.answer(Who::B, &invite, 486, "bobtag", "");
    w.expect(Who::A, "486");
}

#[test]
fn a_dialog_is_not_hijacked_by_who_knows_a_part_of_it() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    let right = b_request(&mut w, &call.invite, "bobtag", "BYE", 1, "");
    let ours = call.invite.from_tag().to_owned();
    for (from, to) in [
        (format!("tag={ours}"), "tag=guess".to_owned()),
        ("tag=bobtag".to_owned(), "tag=guess".to_owned()),
        (call.invite.call_id().unwrap().to_owned(), "another-call".to_owned()),
    ] {
        for method in ["BYE", "INVITE", "UPDATE", "REFER", "INFO"] {
            let branch = w.branch();
            let guess = right
                .replace(&from, &to)
                .replace("BYE", method)
                .replace("branch=z9hG4bKpeer", &format!("branch={branch}"))
                .replace("192.0.2.1:5060", "192.0.2.2:5060");
            let more = if method == "REFER" { "Refer-To: <sip:+1900@evil.example>\n" } else { "" };
            w.says(Who::C, &format!("{guess}{more}"));
            let answer = w.got(Who::C);
            assert_eq!(answer.status(), Some(481), "{method} with {to}\n{}", w.ladder);
            w.nothing(Who::A);
        }
    }
    // Replaces with any of the three wrong takes nobody's place.
    let known = [call.invite.call_id().unwrap(), "bobtag", &ours].map(str::to_owned);
    for wrong in 0..3 {
        let mut named = known.clone();
        named[wrong] = "guess".to_owned();
        let [id, theirs, ours] = named;
        let replaces = format!("Replaces: {id};to-tag={ours};from-tag={theirs}\n");
        let text = invite_text(&mut w, &format!("{replaces}{}", sdp(SDP_B)))
            .replace("inside-call-1@10.0.0.1", &format!("outside-call-{wrong}"))
            .replace("10.0.0.1:5060", "192.0.2.2:5060");
        w.says(Who::C, &text);
        w.expect(Who::C, "481");
        w.nothing(Who::A);
    }
    let bye = right.clone();
    w.says(Who::B, &bye);
    w.expect(Who::B, "200");
    w.expect(Who::A, "BYE");
}

#[test]
fn refer_from_who_may_not_is_403_and_never_followed_by_us() {
    let mut settings = Settings::new();
    settings.one.refer = false;
    let mut w = settings.begin();
    let call = set_up(&mut w, "", "");
    let refer = "Refer-To: <sip:+1900premium@evil.example>\n";
    let text = b_request(&mut w, &call.invite, "bobtag", "REFER", 1, refer);
    w.says(Who::B, &text);
    w.expect(Who::B, "403");
    w.nothing(Who::A);
    w.nothing(Who::C);
}

#[test]
fn loops_end_by_max_forwards() {
    let mut w = World::new();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    assert_eq!(invite.header(HeaderName::MaxForwards), Some("69"));
    // Whoever sends it round and round to us sees the number fall, and 483 at the end.
    let mut left = 3;
    for n in 0.. {
        let mut w = World::new();
        let text = invite_text(&mut w, &sdp(SDP_A))
            .replace("Max-Forwards: 70", &format!("Max-Forwards: {left}"))
            .replace("inside-call-1", &format!("round-{n}"));
        w.says(Who::A, &text);
        if left == 0 {
            w.expect(Who::A, "483");
            w.nothing(Who::B);
            assert_eq!(n, 3);
            return;
        }
        let onward = w.expect(Who::B, "INVITE");
        let number: u32 = onward.header(HeaderName::MaxForwards).unwrap().parse().unwrap();
        assert_eq!(number, left - 1);
        left = number;
    }
}

#[test]
fn a_redirection_to_premium_numbers_is_followed_for_no_status_and_no_method() {
    for status in [300, 301, 302, 305, 380] {
        let mut w = World::new();
        let text = invite_text(&mut w, &sdp(SDP_A));
        w.says(Who::A, &text);
        let invite = w.expect(Who::B, "INVITE");
        let contact = "Contact: <sip:+1900premium@192.0.2.2:5060>\n";
        w.answer(Who::B, &invite, status, "bobtag", contact);
        w.nothing(Who::C);
        let refused = w.expect(Who::A, "480");
        assert!(refused.contact().unwrap().is_none(), "{status}");
        assert!(!sent_to(&w, Who::A).contains("premium"), "{status}");
    }
}
