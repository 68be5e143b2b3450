//! Registered users through a whole shard: REGISTER, calls to them, challenges, keepalives,
//! questions between shards.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::basic::{SDP_A, SDP_B, invite_text, sdp};
use super::world::*;
use crate::core::{Input, Locate, RegistrarConfig};
use crate::digest::{Account, Algorithm, Answerer, NonceKey};
use crate::registrar::{
    AuthPolicy, Device, Flows, Keepalive, KeepaliveKind, Reach, Reached, RegistrarPolicy, Replays,
    User, Users,
};
use crate::sip::{HeaderName, Message, Method};
use crate::stun;

/// Trunk `one` are the phones; C is the voicemail that comes after them.
pub(super) fn settings(auth: bool) -> Settings {
    let mut settings = Settings::new();
    settings.one.users = true;
    settings.one.peers =
        vec![crate::routing::Peer { host: "example.com".into(), port: None, transport: None }];
    let bob = User {
        md5: Some(Algorithm::Md5.ha1("bob", "example.com", "secret").into()),
        aors: vec!["bob@example.com".into()],
        ..User::default()
    };
    let mut users = Users::default();
    assert!(users.insert("bob", bob));
    assert!(users.alias("+4930123@example.com", "bob@example.com"));
    let auth = auth.then(|| AuthPolicy {
        open: vec![Method::Options],
        remote: None,
        realm: "example.com".into(),
        algorithms: vec![Algorithm::Md5],
        nonce_ttl: Duration::from_secs(300),
        key: NonceKey([1; 32]),
    });
    settings.registrar = Some(RegistrarConfig {
        policy: Arc::new(RegistrarPolicy {
            domains: vec!["example.com".into()],
            auth,
            ..RegistrarPolicy::default()
        }),
        users: Arc::new(users),
        replays: Arc::new(Replays::new(64)),
        flows: Arc::new(Flows::new(64)),
        trunk: "one".into(),
    });
    settings
}

pub(super) fn register(w: &mut World, who: Who, seq: u32, rest: &str) {
    let branch = w.branch();
    let text = format!(
        "REGISTER sip:example.com SIP/2.0
Via: SIP/2.0/UDP {};branch={branch};rport
Max-Forwards: 70
From: <sip:bob@example.com>;tag=r
To: <sip:bob@example.com>
Call-ID: reg-1
CSeq: {seq} REGISTER
{rest}",
        who.addr()
    );
    w.says(who, &text);
}

const CONTACT: &str = "Contact: <sip:bob@192.0.2.1:5060;line=7>\n";

pub(super) fn call(w: &mut World) {
    let invite = invite_text(w, &sdp(SDP_A));
    w.says(Who::A, &invite);
}

#[test]
fn a_call_reaches_a_registered_phone_at_its_contact() {
    let mut w = settings(false).begin();
    register(&mut w, Who::B, 1, CONTACT);
    let ok = w.expect(Who::B, "200");
    assert_eq!(
        ok.header(HeaderName::Contact),
        Some("<sip:bob@192.0.2.1:5060;line=7>;expires=3600")
    );
    assert_eq!(w.aors.len(), 1);
    call(&mut w);
    let invite = w.expect(Who::B, "INVITE");
    assert_eq!(invite.request_uri_str(), "sip:bob@192.0.2.1:5060;line=7");
    w.answer(
        Who::B,
        &invite,
        200,
        "bobtag",
        &format!("Contact: <sip:bob@192.0.2.1>\n{}", sdp(SDP_B)),
    );
    w.expect(Who::A, "200");
}

#[test]
fn an_offline_user_is_480_or_the_next_target() {
    let mut w = settings(false).begin();
    call(&mut w);
    w.expect(Who::C, "INVITE");
    let mut settings = settings(false);
    settings.two.enabled = false;
    let mut w = settings.begin();
    call(&mut w);
    w.expect(Who::A, "480");
    let ack = w.ladder.clone();
    assert!(!ack.contains("B INVITE"), "{ack}");
}

#[test]
fn the_next_contact_is_tried_where_the_first_fails_and_a_decline_ends_it() {
    for (status, next) in [(486, true), (603, false)] {
        let mut w = settings(false).begin();
        register(
            &mut w,
            Who::B,
            1,
            "Contact: <sip:first@192.0.2.1>;q=1.0, <sip:second@192.0.2.1>;q=0.5\n",
        );
        w.expect(Who::B, "200");
        call(&mut w);
        let first = w.expect(Who::B, "INVITE");
        assert_eq!(first.request_uri_str(), "sip:first@192.0.2.1");
        w.answer(Who::B, &first, status, "t1", "");
        w.expect(Who::B, "ACK");
        if next {
            assert_eq!(w.expect(Who::B, "INVITE").request_uri_str(), "sip:second@192.0.2.1");
        } else {
            w.nothing(Who::B);
            w.expect(Who::A, "603");
        }
    }
}

#[test]
fn a_phone_behind_nat_is_called_by_its_flow_and_kept_alive() {
    let mut w = settings(false).begin();
    register(&mut w, Who::B, 1, "Contact: <sip:bob@10.9.9.9:5062>\n");
    w.expect(Who::B, "200");
    call(&mut w);
    let invite = w.expect(Who::B, "INVITE");
    assert_eq!(invite.request_uri_str(), "sip:bob@10.9.9.9:5062");
    w.answer(Who::B, &invite, 486, "x", "");
    w.expect(Who::B, "ACK");
    w.ms(31_000);
    let ping = w.expect(Who::B, "OPTIONS");
    assert_eq!(ping.request_uri_str(), "sip:bob@10.9.9.9:5062");
    w.answer(Who::B, &ping, 405, "x", "");
    // Nobody answers any more: after three misses the user is gone, on every node.
    w.ms(150_000);
    assert_eq!(w.aors.last().map(|a| a.bindings.len()), Some(0));
}

#[test]
fn a_phone_is_not_to_blame_for_keepalives_that_the_node_had_no_room_for() {
    let mut settings = settings(false);
    settings.transactions.max_clients = 0;
    let mut w = settings.begin();
    register(&mut w, Who::B, 1, "Contact: <sip:bob@10.9.9.9:5062>\n");
    w.expect(Who::B, "200");
    w.ms(150_000);
    w.nothing(Who::B);
    let stats = w.core.registrar().unwrap().bindings().stats();
    assert!(stats.pings > 3, "{}", stats.pings);
    assert_eq!(stats.ping_misses, 0);
    assert_eq!(w.aors.last().map(|a| a.bindings.len()), Some(1));
}

#[test]
fn rfc5626_a_phone_behind_nat_is_kept_alive_by_stun_and_dropped_when_it_is_silent() {
    let mut settings = settings(false);
    let registrar = settings.registrar.as_mut().unwrap();
    let mut policy = (*registrar.policy).clone();
    policy.keepalive = Some(Keepalive { kind: KeepaliveKind::Stun, ..Keepalive::default() });
    registrar.policy = Arc::new(policy);
    let mut w = settings.begin();
    let counts = |w: &mut World| {
        let stats = w.core.registrar().unwrap().bindings().stats();
        (stats.pings, stats.ping_answers, stats.ping_misses, w.core.stats().stray_stun)
    };
    register(&mut w, Who::B, 1, "Contact: <sip:bob@10.9.9.9:5062>\n");
    w.expect(Who::B, "200");
    let next = |w: &mut World| {
        while w.stun.is_empty() {
            w.ms(10);
        }
        w.stun.pop_front().expect("a binding request")
    };
    let (who, ping) = next(&mut w);
    assert_eq!((who, &ping[..4], ping.len()), (Who::B, &[0, 1, 0, 8][..], 28));
    // RFC 8489 §6.2.1: the same again after 0.5 s and 1 s more.
    w.ms(1_600);
    let again: Vec<Bytes> = w.stun.drain(..).map(|(_, data)| data).collect();
    assert_eq!(again, [ping.clone(), ping.clone()]);
    let answer =
        |ping: &[u8], who: Who| Bytes::from(stun::answer(ping, who.addr()).unwrap().into_bytes());
    let heard = |w: &mut World, who: Who, data: Bytes| {
        w.input(Input::Message { flow: who.flow(), data });
    };
    // What comes from elsewhere, or answers something else, is not heard.
    heard(&mut w, Who::C, answer(&ping, Who::C));
    heard(&mut w, Who::B, answer(&stun::request([9; 12]), Who::B));
    assert_eq!(counts(&mut w), (1, 0, 0, 2));
    heard(&mut w, Who::B, answer(&ping, Who::B));
    heard(&mut w, Who::B, answer(&ping, Who::B));
    assert_eq!(counts(&mut w), (1, 1, 0, 3), "once");
    w.ms(9_000);
    assert!(w.stun.is_empty(), "an answer ends it");
    // Nobody answers any more: after three misses the user is gone, on every node.
    let (_, ping) = next(&mut w);
    w.ms(9_000);
    let again: Vec<Bytes> = w.stun.drain(..).map(|(_, data)| data).collect();
    assert_eq!(again, [(); 4].map(|()| ping.clone()), "five times in all within eight seconds");
    assert_eq!(counts(&mut w), (2, 1, 1, 3));
    w.ms(100_000);
    assert_eq!(w.aors.last().map(|a| a.bindings.len()), Some(0));
    assert_eq!(counts(&mut w).2, 3);
    w.stun.clear();
    w.ms(100_000);
    assert!(w.stun.is_empty(), "the dead are not asked");
    w.assert_clean();
}

pub(super) fn challenged(answer: &Message, name: HeaderName, password: &str) -> Answerer {
    let account = Account {
        username: "bob".into(),
        realm: Some("example.com".into()),
        password: password.into(),
    };
    Answerer::choose(answer.values(name), &account).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn registrations_and_requests_of_phones_are_challenged() {
    let mut w = settings(true).begin();
    register(&mut w, Who::B, 1, CONTACT);
    let answer = w.expect(Who::B, "401");
    let mut answerer = challenged(&answer, HeaderName::WwwAuthenticate, "secret");
    let value = answerer.authorize("REGISTER", "sip:example.com", b"", "cn");
    register(&mut w, Who::B, 2, &format!("Authorization: {value}\n{CONTACT}"));
    w.expect(Who::B, "200");
    for method in ["INVITE", "MESSAGE", "SUBSCRIBE", "PUBLISH", "REFER"] {
        let request = |branch: &str, seq: u32, rest: &str| {
            format!(
                "{method} sip:+4989555@example.com SIP/2.0
Via: SIP/2.0/UDP 192.0.2.1:5060;branch={branch};rport
Max-Forwards: 70
From: <sip:bob@example.com>;tag=p
To: <sip:+4989555@example.com>
Call-ID: out-{method}
CSeq: {seq} {method}
Contact: <sip:bob@192.0.2.1>
{rest}"
            )
        };
        let branch = w.branch();
        w.says(Who::B, &request(&branch, 1, ""));
        let answer = w.expect(Who::B, "407");
        if method == "INVITE" {
            let ack = request(&branch, 1, "").replace("INVITE", "ACK");
            w.says(Who::B, &ack);
        }
        let mut answerer = challenged(&answer, HeaderName::ProxyAuthenticate, "secret");
        let value = answerer.authorize(method, "sip:+4989555@example.com", b"", "cn");
        let branch = w.branch();
        w.says(Who::B, &request(&branch, 2, &format!("Proxy-Authorization: {value}\n")));
        match method {
            "INVITE" | "MESSAGE" => {
                let sent = w.expect(Who::A, method);
                assert!(!sent.has(HeaderName::ProxyAuthorization));
            }
            "PUBLISH" => drop(w.expect(Who::A, method)),
            // Neither says what it is about.
            "SUBSCRIBE" => drop(w.expect(Who::B, "489")),
            _ => drop(w.expect(Who::B, "400")),
        }
    }
}

/// A request of Bob's phone outside dialogs, without credentials.
fn outside(w: &mut World, method: &Method) -> Option<u16> {
    let branch = w.branch();
    let text = format!(
        "{method} sip:+4989555@example.com SIP/2.0
Via: SIP/2.0/UDP 192.0.2.1:5060;branch={branch};rport
Max-Forwards: 70
From: <sip:bob@example.com>;tag=p
To: <sip:bob@example.com>
Call-ID: out-{method}
CSeq: 1 {method}
Event: presence
Contact: <sip:bob@192.0.2.1>
",
        method = method.as_str()
    );
    w.says(Who::B, &text);
    std::iter::from_fn(|| w.next(Who::B)).filter_map(|m| m.status()).find(|s| *s > 100)
}

/// Not one method is forgotten: whatever the core knows, and what it does not, is challenged.
#[test]
fn rfc3261_22_every_method_of_a_phone_is_challenged_unless_it_is_open() {
    let other = Method::new("FOO");
    for method in Method::KNOWN.iter().chain([&other]) {
        let expected = match method {
            Method::Register => Some(401),
            // RFC 3261 §22.1: neither can be challenged; one is nothing alone, the other cancels nothing.
            Method::Ack => None,
            Method::Cancel => Some(481),
            Method::Options => Some(200),
            _ => Some(407),
        };
        let mut w = settings(true).begin();
        assert_eq!(outside(&mut w, method), expected, "{method:?}");
        w.nothing(Who::A);
        w.nothing(Who::C);
    }
    // Each by itself, and with it no other.
    for open in [Method::Invite, Method::Message, Method::Refer, Method::Subscribe, Method::Publish]
    {
        for method in [&open, &Method::Register, &Method::Options, &Method::Notify] {
            let mut settings = settings(true);
            if let Some(registrar) = &mut settings.registrar {
                let mut policy = (*registrar.policy).clone();
                policy.auth.as_mut().unwrap().open = vec![open.clone()];
                registrar.policy = Arc::new(policy);
            }
            let mut w = settings.begin();
            let challenged = matches!(outside(&mut w, method), Some(401 | 407));
            assert_eq!(challenged, *method != open, "{open:?} open, {method:?} sent");
        }
    }
}

#[test]
fn who_is_no_phone_cannot_register() {
    let mut w = settings(false).begin();
    register(&mut w, Who::A, 1, CONTACT);
    w.expect(Who::A, "405");
    let mut w = Settings::new().begin();
    register(&mut w, Who::B, 1, CONTACT);
    w.expect(Who::B, "405");
}

#[test]
fn another_shard_is_asked_for_a_user_of_its_own() {
    let mut w = settings(false).begin();
    let shards = (2..9).find(|n| {
        w.core.set_place(0, *n);
        w.core.shard_of_aor("bob@example.com") != 0
    });
    assert!(shards.is_some());
    call(&mut w);
    let (shard, input) = w.shards.remove(0);
    assert_eq!(shard, w.core.shard_of_aor("bob@example.com"));
    let Input::Locate { from: 0, id, ask } = input else { panic!("{input:?}") };
    let expected =
        Locate { aor: "bob@example.com".into(), method: Method::Invite, device: Device::Any };
    assert_eq!(*ask, expected);
    let found = Reached {
        uri: "sip:bob@192.0.2.1".into(),
        path: vec![],
        q: 1_000,
        reach: Reach::Uri(Who::B.flow().interface),
    };
    w.input(Input::Located { id, found: vec![found] });
    assert_eq!(w.expect(Who::B, "INVITE").request_uri_str(), "sip:bob@192.0.2.1");
    // And it answers such questions itself.
    w.core.set_place(0, 1);
    register(&mut w, Who::B, 1, CONTACT);
    w.expect(Who::B, "200");
    w.input(Input::Locate { from: 3, id, ask: Box::new(expected) });
    let (3, Input::Located { found, .. }) = w.shards.remove(0) else { panic!() };
    assert_eq!(&*found[0].uri, "sip:bob@192.0.2.1:5060;line=7");
}
