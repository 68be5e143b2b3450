//! The registration cache through a whole shard: B is the phone, A the core registrar.

use std::sync::Arc;

use super::basic::{SDP_A, SDP_B, invite_text, sdp};
use super::users::{register, settings};
use super::world::*;
use crate::core::{Input, ResolveError};
use crate::net::{Target, Transport};
use crate::registrar::{UpstreamMode, UpstreamPolicy};
use crate::sip::{HeaderName, Message};

const CONTACT: &str = "Contact: <sip:bob@192.0.2.1:5060;line=7>\nExpires: 60\n";
const CHALLENGE: &str = "WWW-Authenticate: Digest realm=\"core\", nonce=\"n1\", qop=\"auth\"\n";
const CREDENTIALS: &str = "Authorization: Digest username=\"bob\", realm=\"core\", nonce=\"n1\", uri=\"sip:example.com\", response=\"0\"\n";

fn cached(mode: UpstreamMode) -> World {
    cached_with(mode, None)
}

/// With the realm of ours whose credentials stay here while all others pass to the core.
fn cached_with(mode: UpstreamMode, pass: Option<&str>) -> World {
    let mut settings = settings(false);
    let registrar = settings.registrar.as_mut().unwrap();
    let mut policy = (*registrar.policy).clone();
    policy.upstream = vec![Arc::new(UpstreamPolicy {
        domains: vec!["example.com".into()],
        trunk: "pbx".into(),
        mode,
        expires_s: 3600,
    })];
    registrar.policy = Arc::new(policy);
    settings.pbx.peers = vec![peer("core-1"), peer("core-2")];
    settings.pbx.pass_challenges = pass.map(Into::into);
    settings.pbx.sources = vec![crate::routing::Source {
        net: "10.0.0.1".parse().unwrap(),
        transport: None,
        port: None,
    }];
    // C is a phone, too.
    settings.two.sources = vec![crate::routing::Source {
        net: "192.0.2.77".parse().unwrap(),
        transport: None,
        port: None,
    }];
    settings.begin()
}

/// Both names of the core lead to A.
fn resolve(w: &mut World) -> Vec<String> {
    let mut names = Vec::new();
    while let Some((id, name)) = w.resolves.pop_front() {
        names.push(name);
        let result = Ok(vec![Target::new(Transport::Udp, Who::A.addr())]);
        w.input(Input::Resolved { id, result });
    }
    names
}

/// The core grants what it was asked for, or `seconds`.
fn grant(w: &mut World, request: &Message, seconds: u32) {
    let contact = request.header(HeaderName::Contact).unwrap();
    let (uri, _) = contact.split_once(";expires").unwrap();
    w.answer(Who::A, request, 200, "core", &format!("Contact: {uri};expires={seconds}\n"));
}

fn contact_of(message: &Message) -> String {
    message.header(HeaderName::Contact).unwrap_or("").to_owned()
}

/// B is registered, here for a minute and with the core for an hour.
fn registered(w: &mut World) -> Message {
    register(w, Who::B, 1, CONTACT);
    resolve(w);
    let upstream = w.expect(Who::A, "REGISTER");
    grant(w, &upstream, 3600);
    w.expect(Who::B, "200");
    upstream
}

#[test]
fn the_core_sees_only_us_and_challenges_pass_through() {
    let mut w = cached(UpstreamMode::Contact);
    register(&mut w, Who::B, 1, CONTACT);
    resolve(&mut w);
    let first = w.expect(Who::A, "REGISTER sip:example.com");
    let contact = contact_of(&first);
    assert!(contact.starts_with("<sip:bob@10.0.0.9:5060;rd=example.com;rc="), "{contact}");
    assert!(contact.ends_with(";expires=3600"), "{contact}");
    assert_eq!(first.header(HeaderName::To), Some("<sip:bob@example.com>"));
    let text = String::from_utf8_lossy(first.as_bytes()).into_owned();
    assert!(!text.contains("192.0.2.1") && !text.contains("reg-1"), "{text}");
    w.answer(Who::A, &first, 401, "core", CHALLENGE);
    let challenge = w.expect(Who::B, "401");
    let line = CHALLENGE.trim_end().strip_prefix("WWW-Authenticate: ");
    assert_eq!(challenge.header(HeaderName::WwwAuthenticate), line);

    register(&mut w, Who::B, 2, &format!("{CONTACT}{CREDENTIALS}"));
    resolve(&mut w);
    let second = w.expect(Who::A, "REGISTER");
    let line = CREDENTIALS.trim_end().strip_prefix("Authorization: ");
    assert_eq!(second.header(HeaderName::Authorization), line);
    assert_eq!(contact_of(&second), contact);
    grant(&mut w, &second, 3600);
    let ok = w.expect(Who::B, "200");
    assert_eq!(contact_of(&ok), "<sip:bob@192.0.2.1:5060;line=7>;expires=60");
    let held = w.aors.last().unwrap().bindings[0].upstream.clone().expect("replicated");
    assert_eq!(format!("<{}>;expires=3600", held.contact), contact);
    assert_eq!(held.call_id.as_ref(), second.call_id().unwrap());
}

#[test]
fn refreshes_cost_the_core_nothing_until_its_hour_is_nearly_over() {
    let mut w = cached(UpstreamMode::Contact);
    let first = registered(&mut w);
    let mut seq = 2;
    loop {
        w.ms(50_000);
        register(&mut w, Who::B, seq, CONTACT);
        if !resolve(&mut w).is_empty() {
            break;
        }
        w.expect(Who::B, "200");
        w.nothing(Who::A);
        seq += 1;
    }
    // 70 refreshes in 3,500 s; the next would leave too little for one that is late.
    let again = w.expect(Who::A, "REGISTER");
    assert_eq!(again.call_id().unwrap(), first.call_id().unwrap());
    assert!(again.cseq().unwrap().number > first.cseq().unwrap().number);
    grant(&mut w, &again, 3600);
    w.expect(Who::B, "200");
    let stats = w.core.cache_stats();
    assert_eq!((stats.forwarded, stats.absorbed), (2, 70));
}

#[test]
fn only_the_phone_that_the_core_let_in_is_answered_without_it() {
    let mut w = cached(UpstreamMode::Contact);
    registered(&mut w);
    // The same text from another address.
    register(&mut w, Who::C, 2, CONTACT);
    resolve(&mut w);
    let asked = w.expect(Who::A, "REGISTER");
    w.answer(Who::A, &asked, 401, "core", CHALLENGE);
    w.expect(Who::C, "401");
    // A new contact, and a removal: the core decides.
    for rest in ["Contact: <sip:bob@192.0.2.1:5070>\nExpires: 60\n", "Contact: *\nExpires: 0\n"] {
        register(&mut w, Who::B, 3, rest);
        resolve(&mut w);
        let asked = w.expect(Who::A, "REGISTER");
        w.answer(Who::A, &asked, 401, "core", CHALLENGE);
        w.expect(Who::B, "401");
    }
    assert_eq!(w.core.registrar().unwrap().bindings().stats().bindings, 1);
}

#[test]
fn the_core_calls_the_phone_by_our_contact() {
    let mut w = cached(UpstreamMode::Contact);
    let upstream = registered(&mut w);
    let contact = contact_of(&upstream);
    let uri = contact.trim_start_matches('<').split('>').next().unwrap();
    let invite = invite_text(&mut w, &sdp(SDP_A));
    let (_, rest) = invite.split_once('\n').unwrap();
    w.says(Who::A, &format!("INVITE {uri} SIP/2.0\n{rest}"));
    let invite = w.expect(Who::B, "INVITE");
    assert_eq!(invite.request_uri_str(), "sip:bob@192.0.2.1:5060;line=7");
    w.answer(
        Who::B,
        &invite,
        200,
        "bobtag",
        &format!("Contact: <sip:b@192.0.2.1>\n{}", sdp(SDP_B)),
    );
    w.expect(Who::A, "200");
}

#[test]
fn a_phone_that_falls_silent_is_taken_out_of_the_core_too() {
    let mut w = cached(UpstreamMode::Contact);
    let first = registered(&mut w);
    w.ms(62_000);
    resolve(&mut w);
    let gone = w.expect(Who::A, "REGISTER sip:example.com");
    let kept = contact_of(&first).replace(";expires=3600", ";expires=0");
    assert_eq!(contact_of(&gone), kept);
    assert_eq!(gone.call_id().unwrap(), first.call_id().unwrap());
    w.answer(Who::A, &gone, 200, "core", "");
    assert_eq!(w.core.cache_stats().withdrawn, 1);
    assert!(w.core.registrar().unwrap().bindings().is_empty());
}

#[test]
fn the_phone_leaves_and_the_core_hears_it_once() {
    let mut w = cached(UpstreamMode::Contact);
    registered(&mut w);
    register(&mut w, Who::B, 2, "Contact: <sip:bob@192.0.2.1:5060;line=7>;expires=0\n");
    resolve(&mut w);
    let gone = w.expect(Who::A, "REGISTER");
    assert!(contact_of(&gone).ends_with(";expires=0"));
    w.answer(Who::A, &gone, 200, "core", "");
    let ok = w.expect(Who::B, "200");
    assert_eq!(contact_of(&ok), "");
    assert!(resolve(&mut w).is_empty());
    w.nothing(Who::A);
}

#[test]
fn what_the_core_changes_its_mind_about_changes_here() {
    // Less time than the phone asked for.
    let mut w = cached(UpstreamMode::Mirror);
    register(&mut w, Who::B, 1, "Contact: <sip:bob@192.0.2.1:5060>\nExpires: 600\n");
    resolve(&mut w);
    let asked = w.expect(Who::A, "REGISTER");
    assert!(contact_of(&asked).ends_with(";expires=600"));
    grant(&mut w, &asked, 120);
    let ok = w.expect(Who::B, "200");
    assert!(contact_of(&ok).ends_with(";expires=120"), "{}", contact_of(&ok));
    // The user is gone there: here too, and nobody is called.
    register(&mut w, Who::B, 2, "Contact: <sip:bob@192.0.2.1:5060>\nExpires: 600\n");
    resolve(&mut w);
    let asked = w.expect(Who::A, "REGISTER");
    w.answer(Who::A, &asked, 404, "core", "");
    w.expect(Who::B, "404");
    assert!(w.core.registrar().unwrap().bindings().is_empty());
    assert!(resolve(&mut w).is_empty(), "the core is not told what it said itself");
}

#[test]
fn rfc3261_10_2_8_a_longer_time_is_asked_for_where_the_core_demands_it() {
    let mut w = cached(UpstreamMode::Contact);
    register(&mut w, Who::B, 1, CONTACT);
    resolve(&mut w);
    let asked = w.expect(Who::A, "REGISTER");
    w.answer(Who::A, &asked, 423, "core", "Min-Expires: 7200\n");
    let again = w.expect(Who::A, "REGISTER");
    assert!(contact_of(&again).ends_with(";expires=7200"));
    grant(&mut w, &again, 7200);
    w.expect(Who::B, "200");
}

#[test]
fn another_registrar_is_asked_and_without_any_the_core_that_holds_us_is_enough() {
    let mut w = cached(UpstreamMode::Mirror);
    register(&mut w, Who::B, 1, CONTACT);
    let (id, name) = w.resolves.pop_front().unwrap();
    assert_eq!(name, "core-1");
    w.input(Input::Resolved { id, result: Err(ResolveError::NotFound) });
    assert_eq!(resolve(&mut w), ["core-2"]);
    let asked = w.expect(Who::A, "REGISTER");
    grant(&mut w, &asked, 100);
    w.expect(Who::B, "200");
    w.ms(50_000);
    // Both are down, and the core's time is not over.
    let ask_in_vain = |w: &mut World, seq| {
        register(w, Who::B, seq, CONTACT);
        for _ in 0..2 {
            resolve(w);
            let asked = w.expect(Who::A, "REGISTER");
            w.answer(Who::A, &asked, 503, "core", "");
        }
    };
    ask_in_vain(&mut w, 2);
    let ok = w.expect(Who::B, "200");
    assert!(contact_of(&ok).ends_with(";expires=50"), "{}", contact_of(&ok));
    assert_eq!(w.core.cache_stats().bridged, 1);
    w.ms(51_000);
    while w.core.cache_stats().withdrawn > 0 && !resolve(&mut w).is_empty() {}
    ask_in_vain(&mut w, 3);
    let no = w.expect(Who::B, "503");
    assert_eq!(no.header(HeaderName::RetryAfter), Some("30"));
}

#[test]
fn one_registration_stands_for_all_contacts_of_a_user() {
    let mut w = cached(UpstreamMode::Aor);
    registered(&mut w);
    register(&mut w, Who::C, 2, "Contact: <sip:bob@192.0.2.2:5060>\nExpires: 60\n");
    resolve(&mut w);
    let asked = w.expect(Who::A, "REGISTER");
    assert_eq!(contact_of(&asked), "<sip:bob@10.0.0.9:5060;rd=example.com>;expires=3600");
    grant(&mut w, &asked, 3600);
    w.expect(Who::C, "200");
    // One leaves, the user stays; the last one leaves, the user is gone.
    for (who, contact, seconds) in [
        (Who::C, "Contact: <sip:bob@192.0.2.2:5060>;expires=0\n", 3600),
        (Who::B, "Contact: <sip:bob@192.0.2.1:5060;line=7>;expires=0\n", 0),
    ] {
        register(&mut w, who, 3, contact);
        resolve(&mut w);
        let asked = w.expect(Who::A, "REGISTER");
        assert!(contact_of(&asked).ends_with(&format!(";expires={seconds}")));
        grant(&mut w, &asked, seconds);
        w.expect(who, "200");
    }
    assert!(w.core.registrar().unwrap().bindings().is_empty());
}

#[test]
fn a_user_of_whom_nothing_is_left_is_taken_out_of_the_core_once() {
    let mut w = cached(UpstreamMode::Aor);
    registered(&mut w);
    w.ms(5_000);
    register(&mut w, Who::C, 2, "Contact: <sip:bob@192.0.2.2:5060>\nExpires: 60\n");
    resolve(&mut w);
    let asked = w.expect(Who::A, "REGISTER");
    grant(&mut w, &asked, 3600);
    w.expect(Who::C, "200");
    w.ms(57_000);
    assert!(resolve(&mut w).is_empty(), "one contact is left");
    w.ms(5_000);
    resolve(&mut w);
    let gone = w.expect(Who::A, "REGISTER");
    assert_eq!(contact_of(&gone), "<sip:bob@10.0.0.9:5060;rd=example.com>;expires=0");
    assert_eq!(gone.call_id().unwrap(), asked.call_id().unwrap());
    assert!(gone.cseq().unwrap().number > asked.cseq().unwrap().number);
    w.answer(Who::A, &gone, 401, "core", CHALLENGE);
    w.nothing(Who::A);
    let stats = w.core.cache_stats();
    assert_eq!((stats.withdrawn, stats.withdraw_refused), (1, 1));
}

#[test]
fn a_stranger_in_the_name_of_a_user_is_refused_and_the_phone_is_not() {
    let mut w = cached(UpstreamMode::Contact);
    let text = invite_text(&mut w, &sdp(SDP_A)).replace("pbx.inside.example", "example.com");
    w.says(Who::B, &text);
    w.expect(Who::B, "403");
    registered(&mut w);
    for (from, call) in [("+4989555@example.com", "call-2"), ("bob@example.com", "call-3")] {
        let text = invite_text(&mut w, &sdp(SDP_A))
            .replace("+4989555@pbx.inside.example", from)
            .replace("inside-call-1", call);
        w.says(Who::B, &text);
        if call == "call-2" {
            // Registered, under another name.
            w.expect(Who::B, "403");
        }
    }
    assert_eq!(resolve(&mut w).first().map(String::as_str), Some("core-1"));
    w.expect(Who::A, "INVITE");
}

const PROXY: &str = "Proxy-Authenticate: Digest realm=\"core\", nonce=\"n2\", qop=\"auth\"\n";
const OURS: &str = "Proxy-Authorization: Digest username=\"bob\", realm=\"sbc\", nonce=\"n\", uri=\"sip:x\", response=\"1\"\n";
const THEIRS: &str = "Proxy-Authorization: Digest username=\"bob\", realm=\"core\", nonce=\"n2\", uri=\"sip:x\", response=\"2\"\n";

/// A request of Bob's with more headers.
fn of_bob(w: &mut World, method: &str, call: &str, seq: u32, more: &str) {
    let branch = w.branch();
    let body = if method == "INVITE" { sdp(SDP_A) } else { "\n".to_owned() };
    w.says(
        Who::B,
        &format!(
            "{method} sip:+4930@example.com SIP/2.0\nVia: SIP/2.0/UDP 192.0.2.1;branch={branch}\n\
             Max-Forwards: 70\nFrom: <sip:bob@example.com>;tag=b\nTo: <sip:+4930@example.com>\n\
             Call-ID: {call}\nCSeq: {seq} {method}\nContact: <sip:bob@192.0.2.1>\n{more}{body}"
        ),
    );
    resolve(w);
}

fn values(message: &Message, name: HeaderName) -> Vec<&str> {
    message.lines(name).collect()
}

#[test]
fn a_core_that_challenges_calls_and_messages_hears_the_phone_itself() {
    let theirs = THEIRS.trim_end().strip_prefix("Proxy-Authorization: ").unwrap();
    let challenge = PROXY.trim_end().strip_prefix("Proxy-Authenticate: ").unwrap();
    for method in ["INVITE", "MESSAGE"] {
        let mut w = cached_with(UpstreamMode::Contact, Some("sbc"));
        registered(&mut w);
        of_bob(&mut w, method, "c1", 1, "");
        let asked = w.expect(Who::A, method);
        assert!(values(&asked, HeaderName::ProxyAuthorization).is_empty());
        w.answer(Who::A, &asked, 407, "core", PROXY);
        let told = w.expect(Who::B, "407");
        assert_eq!(values(&told, HeaderName::ProxyAuthenticate), [challenge]);
        assert!(!String::from_utf8_lossy(told.as_bytes()).contains("core-1"), "hosts stay hidden");
        w.forget(Who::A);
        // What was meant for us stays here, what is for the core goes there; a malformed one nowhere.
        let bad = "Proxy-Authorization: Digest realm=\"core\", nonce\n";
        of_bob(&mut w, method, "c1", 2, &format!("{OURS}{THEIRS}{bad}"));
        let again = w.expect(Who::A, method);
        assert_eq!(values(&again, HeaderName::ProxyAuthorization), [theirs]);
        let rest = if method == "INVITE" { sdp(SDP_B) } else { "\n".to_owned() };
        w.answer(Who::A, &again, 200, "core", &format!("Contact: <sip:core@10.0.0.1>\n{rest}"));
        w.expect(Who::B, "200");
    }
}

#[test]
fn without_the_option_a_challenge_is_403_and_credentials_stay_here() {
    let mut w = cached(UpstreamMode::Contact);
    registered(&mut w);
    for (seq, method) in [(1, "INVITE"), (2, "MESSAGE")] {
        of_bob(&mut w, method, method, seq, THEIRS);
        let asked = w.expect(Who::A, method);
        assert!(values(&asked, HeaderName::ProxyAuthorization).is_empty());
        w.answer(Who::A, &asked, 407, "core", PROXY);
        let told = w.expect(Who::B, "403");
        assert!(values(&told, HeaderName::ProxyAuthenticate).is_empty());
        w.forget(Who::A);
    }
}

/// The other way round nothing passes: who calls a phone is not asked by it.
#[test]
fn a_phone_challenges_nobody() {
    let mut w = cached_with(UpstreamMode::Contact, Some("sbc"));
    let upstream = registered(&mut w);
    let contact = contact_of(&upstream);
    let uri = contact.trim_start_matches('<').split('>').next().unwrap();
    let invite = invite_text(&mut w, &sdp(SDP_A));
    let (_, rest) = invite.split_once('\n').unwrap();
    w.says(Who::A, &format!("INVITE {uri} SIP/2.0\n{THEIRS}{rest}"));
    let invite = w.expect(Who::B, "INVITE");
    assert!(values(&invite, HeaderName::ProxyAuthorization).is_empty());
    w.answer(Who::B, &invite, 407, "b", PROXY);
    let told = w.expect(Who::A, "403");
    assert!(values(&told, HeaderName::ProxyAuthenticate).is_empty());
}
