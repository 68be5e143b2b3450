//! The guard as a whole: from the first datagram to the ban and its end.

use super::*;
use crate::net::{InterfaceId, Transport};

fn flow(remote: &str) -> Flow {
    Flow {
        interface: InterfaceId(0),
        transport: Transport::Udp,
        local: "203.0.113.1:5060".parse().unwrap(),
        remote: remote.parse().unwrap(),
        conn: None,
    }
}

fn facts<'a>(flow: &'a Flow, method: &'a str, agent: &'a str) -> RequestFacts<'a> {
    RequestFacts {
        flow,
        method,
        trunk: None,
        aor: "a@b",
        ruri_user: "100",
        fingerprint: Fingerprint { user_agent: agent.as_bytes(), ..Fingerprint::default() },
        in_dialog: false,
        emergency: false,
    }
}

fn config() -> GuardConfig {
    GuardConfig {
        pike: PikeConfig { density: 30, ..PikeConfig::default() },
        trusted: vec!["10.0.0.0/8".parse().unwrap()],
        scanners: Some(Arc::new(Scanners::parse(BUILT_IN).unwrap())),
        ..GuardConfig::default()
    }
}

#[test]
fn a_flood_becomes_a_ban_and_the_ban_ends() {
    let t0 = Instant::now();
    let guard = Guard::new(config(), t0);
    let bad = flow("192.0.2.66:5060");
    let passed = (0..1_000).filter(|_| guard.datagram(t0, &bad) == Verdict::Pass).count();
    assert!((30..90).contains(&passed), "{passed}");
    let banned = Verdict::Drop(Reason::Banned(BanReason::Flood));
    assert_eq!(guard.datagram(t0, &bad), banned);
    let Some(BanEvent::Added(ban)) = guard.poll() else { panic!("no event") };
    assert_eq!((ban.net.to_string().as_str(), &*ban.by), ("192.0.2.66", "pike"));
    let end = t0 + Duration::from_secs(300);
    assert_eq!(guard.deadline(), Some(end));
    guard.tick(end);
    assert!(matches!(guard.poll(), Some(BanEvent::Removed { expired: true, .. })));
    assert_eq!(guard.datagram(end, &bad), Verdict::Pass);
}

#[test]
fn trusted_sources_are_neither_counted_nor_banned() {
    let t0 = Instant::now();
    let guard = Guard::new(config(), t0);
    let trusted = flow("10.1.2.3:5060");
    assert!((0..10_000).all(|_| guard.datagram(t0, &trusted) == Verdict::Pass));
    assert_eq!(guard.request(t0, &facts(&trusted, "OPTIONS", "friendly-scanner")), Verdict::Pass);
    for n in 0..100 {
        guard.auth_failed(t0, trusted.remote.ip());
        guard.unknown_user(t0, trusted.remote.ip(), &n.to_string());
    }
    assert_eq!((guard.poll(), guard.sizes()), (None, (0, 0)));
}

#[test]
fn the_two_modes_of_pike() {
    let t0 = Instant::now();
    let bad = flow("192.0.2.66:5060");
    let mode = |pike_mode| Guard::new(GuardConfig { pike_mode, ban_for: None, ..config() }, t0);
    let requests = mode(PikeMode::Requests);
    assert!((0..1_000).all(|_| requests.datagram(t0, &bad) == Verdict::Pass));
    let invite = facts(&bad, "INVITE", "phone");
    assert!((0..1_000).any(|_| requests.request(t0, &invite) == Verdict::Drop(Reason::Flood)));
    assert!(requests.bans(t0).is_empty());
    let off = mode(PikeMode::Off);
    assert!((0..1_000).all(|_| off.datagram(t0, &bad) == Verdict::Pass));
    assert!((0..1_000).all(|_| off.request(t0, &invite) == Verdict::Pass));
}

#[test]
fn ipv6_floods_are_banned_by_prefix() {
    let t0 = Instant::now();
    let guard = Guard::new(config(), t0);
    for n in 0..1_000 {
        guard.datagram(t0, &flow(&format!("[2001:db8::{n:x}]:5060")));
    }
    let Some(BanEvent::Added(ban)) = guard.poll() else { panic!("no event") };
    assert_eq!(ban.net.to_string(), "2001:db8::/64");
}

#[test]
fn scanners_and_guessers_are_banned() {
    let t0 = Instant::now();
    let guard = Guard::new(config(), t0);
    let scanner = flow("192.0.2.1:5060");
    let verdict = guard.request(t0, &facts(&scanner, "OPTIONS", "friendly-scanner"));
    assert_eq!(verdict, Verdict::Drop(Reason::Scanner));
    assert_eq!(guard.datagram(t0, &scanner), Verdict::Drop(Reason::Banned(BanReason::Scanner)));
    let guesser = flow("192.0.2.2:5060");
    for user in 100..108 {
        assert_eq!(guard.datagram(t0, &guesser), Verdict::Pass);
        guard.unknown_user(t0, guesser.remote.ip(), &user.to_string());
    }
    assert_eq!(guard.datagram(t0, &guesser), Verdict::Drop(Reason::Banned(BanReason::Dictionary)));
    assert!(guard.lift(&"192.0.2.2".parse().unwrap()));
    assert_eq!(guard.datagram(t0, &guesser), Verdict::Pass);
}

#[test]
fn access_lists_and_rate_limits_answer_by_policy() {
    let t0 = Instant::now();
    let rule = |methods: &[&str], access| AccessRule {
        sources: vec!["198.51.100.0/24".parse().unwrap()],
        transports: vec![],
        countries: CountryRule::All,
        methods: methods.iter().map(|m| (*m).into()).collect(),
        access,
    };
    let limit = |over, method: &str| RateLimit {
        key: RateKey::Source,
        methods: vec![method.into()],
        algorithm: Algorithm::Bucket { per_second: 0.1, burst: 1 },
        over,
        cluster: false,
    };
    let guard = Guard::new(
        GuardConfig {
            access: vec![AccessList {
                rules: vec![rule(&["MESSAGE"], Access::Reject), rule(&[], Access::Allow)],
                otherwise: Access::Drop,
            }],
            limits: vec![
                limit(OverLimit::Unavailable, "INVITE"),
                limit(OverLimit::Silence, "OPTIONS"),
                limit(OverLimit::Forbidden, "REGISTER"),
            ],
            ..config()
        },
        t0,
    );
    assert_eq!(guard.datagram(t0, &flow("192.0.2.1:5060")), Verdict::Drop(Reason::Access));
    let good = flow("198.51.100.7:5060");
    assert_eq!(guard.datagram(t0, &good), Verdict::Pass);
    let ask = |method: &str| guard.request(t0, &facts(&good, method, ""));
    let reject = |status, retry_after_s, reason| Verdict::Reject { status, retry_after_s, reason };
    assert_eq!(ask("MESSAGE"), reject(403, None, Reason::Access));
    for method in ["INVITE", "OPTIONS", "REGISTER"] {
        assert_eq!(ask(method), Verdict::Pass);
    }
    assert_eq!(ask("INVITE"), reject(503, Some(11), Reason::RateLimit));
    assert_eq!(ask("OPTIONS"), Verdict::Drop(Reason::RateLimit));
    assert_eq!(ask("REGISTER"), reject(403, None, Reason::RateLimit));
    let in_dialog = RequestFacts { in_dialog: true, ..facts(&good, "INVITE", "") };
    assert_eq!(guard.request(t0, &in_dialog), Verdict::Pass);
}

#[test]
fn a_trunk_has_its_rate_though_its_sources_are_trusted() {
    let t0 = Instant::now();
    let limit = |key| RateLimit {
        key,
        methods: vec![],
        algorithm: Algorithm::Bucket { per_second: 0.1, burst: 1 },
        over: OverLimit::Forbidden,
        cluster: false,
    };
    let trusted = vec!["198.51.100.0/24".parse().unwrap()];
    let limits = vec![limit(RateKey::Source), limit(RateKey::Trunk)];
    let guard = Guard::new(GuardConfig { trusted, limits, ..config() }, t0);
    let flow = flow("198.51.100.7:5060");
    let of = |trunk| RequestFacts { trunk, ..facts(&flow, "INVITE", "") };
    assert_eq!(guard.request(t0, &of(Some((1, "carrier")))), Verdict::Pass);
    let over = Verdict::Reject { status: 403, retry_after_s: None, reason: Reason::RateLimit };
    assert_eq!(guard.request(t0, &of(Some((1, "carrier")))), over);
    assert!((0..9).all(|_| guard.request(t0, &of(None)) == Verdict::Pass));
}

#[test]
fn handshakes_are_limited_by_source_and_in_all() {
    let t0 = Instant::now();
    let limits = |handshakes_per_second, handshakes_per_source| GuardConfig {
        handshakes_per_second,
        handshakes_per_source,
        ..config()
    };
    let guard = Guard::new(limits(10, 4), t0);
    let passed = |from: &str| {
        let flow = flow(from);
        (0..100).filter(|_| guard.handshake(t0, &flow, || false) == Verdict::Pass).count()
    };
    assert_eq!(passed("192.0.2.1:1"), 20);
    assert_eq!(passed("192.0.2.1:2"), 0);
    assert_eq!(passed("[2001:db8::1]:1"), 20);
    assert_eq!(passed("[2001:db8::2]:1"), 0, "of the same prefix");
    assert_eq!(passed("192.0.2.2:1"), 10, "what is left of all");
    assert_eq!(passed("10.0.0.1:1"), 100, "trusted");
    assert_eq!(guard.handshake(t0, &flow("192.0.2.9:1"), || true), Verdict::Pass, "a trunk");
    let dropped = guard.counts().dropped().find(|(r, _)| *r == Reason::Handshake);
    assert_eq!(dropped.unwrap().1, 450);
    guard.configure(limits(0, 0), t0);
    assert_eq!(passed("192.0.2.2:1"), 100);
}

#[test]
fn emergency_calls_pass_scanners_and_limits_but_not_access_lists() {
    let t0 = Instant::now();
    let limit = RateLimit {
        key: RateKey::All,
        methods: vec![],
        algorithm: Algorithm::Bucket { per_second: 0.1, burst: 1 },
        over: OverLimit::Silence,
        cluster: false,
    };
    let guard = Guard::new(GuardConfig { limits: vec![limit], ..config() }, t0);
    let from = flow("192.0.2.1:5060");
    let call = |emergency| {
        guard.request(t0, &RequestFacts { emergency, ..facts(&from, "INVITE", "phone") })
    };
    assert_eq!(call(false), Verdict::Pass);
    assert_eq!(call(false), Verdict::Drop(Reason::RateLimit));
    assert_eq!(call(true), Verdict::Pass);
}
