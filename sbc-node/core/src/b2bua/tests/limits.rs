//! What a shard makes of limits: toll-fraud profiles, calls per user and prefix, access lists and
//! rates of trunks, overload, and the emergency calls that pass all of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::basic::*;
use super::session::hang_up;
use super::world::*;
use crate::core::Input;
use crate::guard::{
    Access, AccessList, AccessRule, Algorithm, CountryRule, FraudProfile, Guard, GuardConfig,
    OverLimit, Overload, OverloadConfig, PikeConfig, RateKey, RateLimit, Threshold, Zone,
};
use crate::routing::{CallLimits, CallerLimit, CallsBy, OverCalls, Room};
use crate::sip::{HeaderName, Message};

const EMERGENCY: &str = "112";

fn guard(config: GuardConfig) -> Option<Arc<Guard>> {
    Some(Arc::new(Guard::new(config, Instant::now())))
}

fn world(guarded: GuardConfig) -> World {
    let mut settings = Settings::new();
    settings.guard = guard(guarded);
    settings.admission.emergency = vec![EMERGENCY.into()];
    settings.begin()
}

fn critical(value: u32) -> Threshold {
    Threshold { warning: None, critical: Some(value) }
}

fn profile(name: &str) -> FraudProfile {
    FraudProfile { name: name.into(), block: true, ..FraudProfile::default() }
}

/// A's call number `n` to `number`; the answer to a refused one, else the INVITE that left.
fn call(w: &mut World, n: u32, number: &str, more: &str) -> Result<Message, Message> {
    let text = invite_text(w, &format!("{more}{}", sdp(SDP_A)))
        .replace("inside-call-1", &format!("inside-call-{n}"))
        .replace("+4930123", number);
    w.forget(Who::A);
    w.says(Who::A, &text);
    let refused = w.ladder.lines().last().is_some_and(|line| line.contains("A <- "));
    if refused {
        return Err(w.got(Who::A));
    }
    Ok(passing(w, Who::B, "INVITE"))
}

/// Answers a call and ends it after `seconds`.
fn talk(w: &mut World, invite: &Message, seconds: u64) {
    w.answer(Who::B, invite, 200, "bobtag", &sdp(SDP_B));
    let ok = w.expect(Who::A, "200");
    let ack = a_request(w, &ok, "ACK", 101, "");
    w.says(Who::A, &ack);
    w.expect(Who::B, "ACK");
    w.ms(seconds * 1_000);
    let bye = a_request(w, &ok, "BYE", 102, "");
    w.says(Who::A, &bye);
    let bye = passing(w, Who::B, "BYE");
    w.answer(Who::B, &bye, 200, "", "");
}

/// The next message that begins so; what other calls got before it is passed over.
fn passing(w: &mut World, who: Who, start: &str) -> Message {
    loop {
        let message = w.got(who);
        if message.as_bytes().starts_with(start.as_bytes()) {
            return message;
        }
    }
}

fn status(result: Result<Message, Message>) -> u16 {
    result.map_or_else(|m| m.status().unwrap(), |_| 0)
}

#[test]
fn fraud_calls_per_minute_and_emergency_calls_pass() {
    let per_minute = FraudProfile { calls_per_minute: critical(3), ..profile("minute") };
    let mut w = world(GuardConfig { fraud: vec![per_minute], ..GuardConfig::default() });
    assert!(call(&mut w, 1, "+4930123", "").is_ok());
    assert!(call(&mut w, 2, "+4940999", "").is_ok());
    assert_eq!(status(call(&mut w, 3, "+4950777", "")), 403);
    assert!(call(&mut w, 4, EMERGENCY, "").is_ok());
    assert!(call(&mut w, 5, "+4950777", "Resource-Priority: esnet.0\n").is_ok());
    // Two minutes later the count is below again.
    w.ms(180_000);
    assert_eq!(status(call(&mut w, 6, "+4950777", "")), 0);
}

#[test]
fn fraud_calls_at_the_same_time_to_expensive_numbers_only() {
    let dear =
        FraudProfile { prefixes: vec!["+882".into()], concurrent: critical(2), ..profile("dear") };
    let mut w = world(GuardConfig { fraud: vec![dear], ..GuardConfig::default() });
    let first = call(&mut w, 1, "+8821", "").unwrap();
    assert!(call(&mut w, 2, "+4930", "").is_ok() && call(&mut w, 3, "+4931", "").is_ok());
    assert_eq!(status(call(&mut w, 4, "+8829", "")), 403);
    assert_eq!(status(call(&mut w, 5, "+8829", "")), 403, "a refused call is not counted on");
    talk(&mut w, &first, 1);
    assert_eq!(status(call(&mut w, 6, "+8829", "")), 0);
}

#[test]
fn fraud_minutes_of_a_day() {
    let minutes = FraudProfile { total_minutes: critical(10), ..profile("day") };
    let mut w = world(GuardConfig { fraud: vec![minutes], ..GuardConfig::default() });
    let long = call(&mut w, 1, "+4930", "").unwrap();
    talk(&mut w, &long, 11 * 60);
    assert_eq!(status(call(&mut w, 2, "+4931", "")), 403);
    w.ms(86_400_000);
    assert_eq!(status(call(&mut w, 3, "+4931", "")), 0);
}

#[test]
fn fraud_numbers_in_a_row() {
    let row = FraudProfile { sequential: critical(3), ..profile("row") };
    let mut w = world(GuardConfig { fraud: vec![row], ..GuardConfig::default() });
    assert_eq!(status(call(&mut w, 1, "+49301000", "")), 0);
    assert_eq!(status(call(&mut w, 2, "+49301001", "")), 0);
    assert_eq!(status(call(&mut w, 3, "+49301002", "")), 403);
    assert_eq!(status(call(&mut w, 4, "+49409999", "")), 0, "another number breaks the row");
}

#[test]
fn fraud_in_night_hours_of_the_zone_and_an_alarm_alone_refuses_nothing() {
    // The world begins at 00:16 UTC, which is 21:16 in the west.
    let night = |block| FraudProfile {
        hours: Some((22, 6)),
        concurrent: critical(1),
        block,
        ..profile("night")
    };
    let west = || Zone::offset("-03:00").unwrap().unwrap();
    let with = |block, zone| GuardConfig { fraud: vec![night(block)], zone, ..Default::default() };
    assert_eq!(status(call(&mut world(with(true, Zone::default())), 1, "+4930", "")), 403);
    let mut w = world(with(true, west()));
    assert_eq!(status(call(&mut w, 1, "+4930", "")), 0);
    w.ms(3_600_000);
    assert_eq!(status(call(&mut w, 2, "+4931", "")), 403, "22:16");
    assert_eq!(status(call(&mut world(with(false, Zone::default())), 1, "+4930", "")), 0);
}

#[test]
fn a_call_that_names_no_dialog_to_replace_is_not_counted_on() {
    let fraud = vec![FraudProfile { concurrent: critical(2), ..profile("two") }];
    let mut w = world(GuardConfig { fraud, ..GuardConfig::default() });
    for n in 1..5 {
        let none = "Replaces: nowhere;to-tag=1;from-tag=2\n";
        assert_eq!(status(call(&mut w, n, "+4930", none)), 481);
    }
    assert_eq!(status(call(&mut w, 9, "+4930", "")), 0);
}

#[test]
fn access_lists_and_rates_of_a_trunk() {
    let rule = |methods: &[&str], access| AccessRule {
        sources: vec![],
        transports: vec![],
        countries: CountryRule::All,
        methods: methods.iter().map(|m| (*m).into()).collect(),
        access,
    };
    let list = AccessList {
        rules: vec![rule(&["MESSAGE"], Access::Reject), rule(&["PUBLISH"], Access::Drop)],
        otherwise: Access::Allow,
    };
    let rate = RateLimit {
        key: RateKey::Trunk,
        methods: vec!["INVITE".into()],
        algorithm: Algorithm::Bucket { per_second: 0.1, burst: 1 },
        over: OverLimit::Unavailable,
        cluster: false,
    };
    let mut w = world(GuardConfig {
        trunk_access: [("pbx".into(), list)].into_iter().collect(),
        limits: vec![rate],
        ..GuardConfig::default()
    });
    let request = |w: &mut World, method: &str| {
        let text = invite_text(w, "").replace("INVITE", method).replace("call-1", method);
        w.says(Who::A, &text);
    };
    request(&mut w, "MESSAGE");
    w.expect(Who::A, "403");
    request(&mut w, "PUBLISH");
    w.nothing(Who::A);
    // The carrier has no list.
    let message = invite_text(&mut w, "").replace("INVITE", "MESSAGE");
    w.says(Who::B, &message.replace("10.0.0.1", "192.0.2.1").replace("call-1", "call-b"));
    w.expect(Who::A, "MESSAGE");
    assert_eq!(status(call(&mut w, 1, "+4930", "")), 0);
    let over = call(&mut w, 2, "+4930", "").unwrap_err();
    assert_eq!((over.status(), over.header(HeaderName::RetryAfter)), (Some(503), Some("11")));
    assert_eq!(status(call(&mut w, 3, EMERGENCY, "")), 0);
    assert_eq!(status(call(&mut w, 4, "+4930", "Resource-Priority: esnet.1\n")), 0);
}

/// A registered phone's INVITE.
fn phone_invite(w: &mut World, n: u32, number: &str, more: &str) -> String {
    invite_text(w, &format!("{more}{}", sdp(SDP_A)))
        .replace("inside-call-1", &format!("phone-call-{n}"))
        .replace("sip:+4989555@pbx.inside.example", "sip:bob@example.com")
        .replace("+4930123", number)
        .replace("10.0.0.1:5060", "192.0.2.1:5060")
}

/// A registered phone's call to the PBX; the status of its refusal.
fn phone_calls(w: &mut World, n: u32, number: &str, more: &str) -> Option<Message> {
    let text = phone_invite(w, n, number, more);
    w.forget(Who::B);
    w.says(Who::B, &text);
    let refused = w.ladder.lines().last().is_some_and(|line| line.contains("-> B "));
    refused.then(|| w.got(Who::B))
}

#[test]
fn calls_of_a_user_and_to_a_prefix_are_limited_and_emergencies_pass() {
    let mut settings = super::users::settings(false);
    let limit = |name: &str, by, max_calls| CallerLimit {
        name: name.into(),
        by,
        limits: CallLimits { max_calls: Some(max_calls), max_cps: None },
        over: OverCalls::Unavailable(7),
    };
    settings.admission.callers = vec![
        limit("users", CallsBy::User(vec![]), 2),
        CallerLimit {
            over: OverCalls::Forbidden,
            ..limit("dear", CallsBy::Prefix(vec!["+882".into()]), 1)
        },
    ];
    settings.admission.emergency = vec![EMERGENCY.into()];
    let mut w = settings.begin();
    assert!(phone_calls(&mut w, 1, "+8821", "").is_none());
    let invite = w.expect(Who::A, "INVITE");
    let dear = phone_calls(&mut w, 2, "+8822", "").unwrap_or_else(|| panic!("{}", w.ladder));
    assert_eq!(dear.status(), Some(403));
    assert!(phone_calls(&mut w, 3, "+4930", "").is_none());
    let over = phone_calls(&mut w, 4, "+4931", "").unwrap();
    assert_eq!((over.status(), over.header(HeaderName::RetryAfter)), (Some(503), Some("7")));
    assert!(phone_calls(&mut w, 5, EMERGENCY, "").is_none());
    // The trunk's calls are nobody's but count for the prefix.
    assert_eq!(status(call(&mut w, 6, "+8829", "")), 403);
    w.answer(Who::A, &invite, 486, "busy", "");
    // The place is free again.
    let text = invite_text(&mut w, &sdp(SDP_A)).replace("call-1", "call-7");
    w.says(Who::A, &text.replace("+4930123", "+8829"));
    w.expect(Who::C, "INVITE");
}

#[test]
fn calls_of_a_user_wait_for_room_where_other_nodes_share_its_limit() {
    let mut settings = super::users::settings(false);
    settings.admission.callers = vec![CallerLimit {
        name: "users".into(),
        by: CallsBy::User(vec![]),
        limits: CallLimits { max_calls: Some(2), max_cps: None },
        over: OverCalls::Unavailable(7),
    }];
    settings.admission.emergency = vec![EMERGENCY.into()];
    let mut w = settings.begin();
    let gates = w.core.routing().table().user_gates().clone();
    gates.share();
    let room = |calls| Room { calls, starts: 0 };
    assert!(phone_calls(&mut w, 1, "+4930", "").is_none());
    w.nothing(Who::A);
    let (id, place) = w.rooms.remove(0);
    assert_eq!((&*place.limit, &*place.user), ("users", "bob@example.com"));
    gates.give(&place, room(1));
    w.input(Input::RoomAsked { id });
    w.expect(Who::A, "INVITE");
    // Nobody had room for a second one.
    assert!(phone_calls(&mut w, 2, "+4931", "").is_none());
    let (id, _) = w.rooms.remove(0);
    w.input(Input::RoomAsked { id });
    let over = passing(&mut w, Who::B, "SIP/2.0 503");
    assert_eq!(over.header(HeaderName::RetryAfter), Some("7"));
    // One that is cancelled while it waits is over, and wants nothing any more.
    let invite = phone_invite(&mut w, 5, "+4933", "");
    w.says(Who::B, &invite);
    let (id, _) = w.rooms.remove(0);
    w.says(Who::B, &invite.replace("INVITE", "CANCEL"));
    passing(&mut w, Who::B, "SIP/2.0 487");
    let limits = w.core.routing().table().user_limits("users").unwrap();
    assert_eq!(gates.stand(&place, &limits, 0).wanted, room(1));
    w.input(Input::RoomAsked { id });
    w.nothing(Who::A);
    // An emergency call asks nobody; then the limit itself is reached.
    assert!(phone_calls(&mut w, 3, EMERGENCY, "").is_none() && w.rooms.is_empty());
    w.expect(Who::A, "INVITE");
    let over = phone_calls(&mut w, 4, "+4932", "").unwrap_or_else(|| panic!("{}", w.ladder));
    assert_eq!((over.status(), w.rooms.len()), (Some(503), 0));
}

#[test]
fn rfc3261_26_3_2_4_a_challenge_of_a_stranger_keeps_nothing_and_is_not_repeated() {
    let mut w = super::users::settings(true).begin();
    for n in 0..20 {
        let invite = phone_invite(&mut w, n, "+4930", "");
        for _ in 0..2 {
            w.says(Who::B, &invite);
            let challenge = w.expect(Who::B, "407");
            assert!(challenge.header(HeaderName::ProxyAuthenticate).is_some());
        }
        w.says(Who::B, &invite.replace("INVITE", "ACK"));
    }
    assert_eq!(w.core.transaction_stats().servers, 0);
    w.ms(40_000);
    w.nothing(Who::B);
    // A trunk's request has its transaction, whatever becomes of it.
    let invite = invite_text(&mut w, "Require: wings\n");
    w.says(Who::A, &invite);
    w.expect(Who::A, "420");
    assert_eq!(w.core.transaction_stats().servers, 1);
}

#[test]
fn overload_sheds_new_calls_says_when_to_come_back_and_keeps_dialogs() {
    let config = OverloadConfig::default();
    let overload = Arc::new(Overload::new(config));
    let mut settings = Settings::new();
    settings.overload = Some(overload.clone());
    settings.admission.emergency = vec![EMERGENCY.into()];
    let mut w = settings.begin();
    let up = set_up(&mut w, "", "");
    for _ in 0..100 {
        overload.observe(Duration::from_secs(1), 1.0);
    }
    assert!(overload.load() > 0.99);
    let shed = call(&mut w, 2, "+4930", "").unwrap_err();
    let wait: u64 = shed.header(HeaderName::RetryAfter).unwrap().parse().unwrap();
    let most = config.retry_after_max.as_secs();
    assert_eq!(shed.status(), Some(503));
    assert!((most * 3 / 4..=most * 5 / 4 + 1).contains(&wait), "{wait}");
    assert_eq!(status(call(&mut w, 3, EMERGENCY, "")), 0);
    assert_eq!(status(call(&mut w, 4, "+4930", "Resource-Priority: esnet.0\n")), 0);
    hang_up(&mut w, &up);
    for _ in 0..200 {
        overload.observe(Duration::ZERO, 0.0);
    }
    assert_eq!(status(call(&mut w, 5, "+4930", "")), 0, "who comes back is served");
}

#[test]
fn a_registered_phone_has_an_allowance_and_a_stranger_at_its_address_has_none() {
    let mut settings = super::users::settings(false);
    let pike = PikeConfig { density: 20, ..PikeConfig::default() };
    let watched = GuardConfig { pike, user_allowance: 40, ban_for: None, ..GuardConfig::default() };
    settings.guard = guard(watched);
    let mut w = settings.begin();
    let passed = |w: &World, flow| (0..1_000).filter(|_| w.core.lets_in(w.now, &flow)).count();
    super::users::register(&mut w, Who::B, 1, "Contact: <sip:bob@192.0.2.1:5060>\n");
    w.expect(Who::B, "200");
    let mut stranger = Who::B.flow();
    stranger.remote.set_port(7777);
    let known = passed(&w, Who::B.flow());
    // Five seconds of its allowance, and then what pike lets anybody have.
    assert!((200 + 20..=200 + 60).contains(&known), "{known}");
    assert_eq!(passed(&w, stranger), 0, "the address is blocked by now");
    w.ms(10_000);
    assert!((19..=60).contains(&passed(&w, stranger)));
    assert_eq!(passed(&w, Who::B.flow()), 200, "what is its own it has still");
}
