//! Published vectors, both sides against each other, and what must be refused.

use super::*;

fn response(
    algorithm: Algorithm,
    user: &str,
    realm: &str,
    password: &str,
    nonce: &str,
    cnonce: &str,
    uri: &str,
) -> String {
    let ha1 = algorithm.ha1(user, realm, password);
    Request {
        algorithm,
        ha1: &ha1,
        nonce,
        quality: Some((Qop::Auth, "00000001", cnonce)),
        cnonce,
        method: "GET",
        uri,
        body: b"",
    }
    .response()
    .as_str()
    .to_owned()
}

#[test]
fn rfc2617_3_5_and_rfc7616_3_9_vectors() {
    let nonce = "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v";
    let cnonce = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ";
    let (user, realm, password) = ("Mufasa", "http-auth@example.org", "Circle of Life");
    assert_eq!(
        response(
            Algorithm::Md5,
            user,
            "testrealm@host.com",
            "Circle Of Life",
            "dcd98b7102dd2f0e8b11d0f600bfb0c093",
            "0a4f113b",
            "/dir/index.html"
        ),
        "6629fae49393a05397450978507c4ef1"
    );
    assert_eq!(
        response(Algorithm::Md5, user, realm, password, nonce, cnonce, "/dir/index.html"),
        "8ca523f5e9506fed4657c9700eebdbec"
    );
    assert_eq!(
        response(Algorithm::Sha256, user, realm, password, nonce, cnonce, "/dir/index.html"),
        "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"
    );
}

#[test]
fn session_and_truncated_variants() {
    // Computed with an independent implementation (Python's hashlib).
    for (algorithm, expected) in [
        (Algorithm::Md5Sess, "d822ae524e9a412bad3dcbd6ad8ad739"),
        (Algorithm::Sha256Sess, "b0b13f13c93c08b314acbaae8e0da4c40ff48f82b15e94b968f3b6f629777396"),
        (
            Algorithm::Sha512Trunc256,
            "47ab53477651510eb99d0e83a1ae5280b5e68ce4d631d338d093146477f73d8a",
        ),
        (
            Algorithm::Sha512Trunc256Sess,
            "17bf7d8204099d9cfe87c96ad64817c199f9c37fa3862bae6ec07cb904fbc36e",
        ),
    ] {
        assert_eq!(
            response(algorithm, "u", "r", "p", "n", "c", "sip:x"),
            expected,
            "{algorithm:?}"
        );
    }
}

fn account(realm: Option<&str>) -> Account {
    Account { username: "bob".into(), realm: realm.map(str::to_owned), password: "zanzibar".into() }
}

fn server_of(key: u8, algorithms: &[Algorithm]) -> Server {
    Server::new("biloxi.com".into(), &NonceKey([key; 32]), 60, algorithms.to_vec())
}

fn server() -> Server {
    server_of(7, &[Algorithm::Sha256, Algorithm::Md5])
}

fn verify<'a>(
    server: &Server,
    authorization: &'a str,
    method: &'a str,
    uri: &'a str,
    now_s: u64,
) -> Result<Verified<'a>, Denied> {
    let request = Presented { authorization, method, request_uri: uri, body: b"", source: None };
    server.verify(&request, now_s, |user, algorithm| {
        (user == "bob").then(|| algorithm.ha1(user, "biloxi.com", "zanzibar").into())
    })
}

#[test]
fn both_sides_agree_and_count() {
    let server = server();
    let challenges = server.challenge(1000, 1, None, false);
    assert!(
        challenges.iter().all(|c| c.contains("realm=\"biloxi.com\"") && c.contains("qop=\"auth\""))
    );
    let mut answerer =
        Answerer::choose(challenges.iter().map(String::as_str), &account(None)).expect("answer");
    for count in 1..3 {
        let value = answerer.authorize("REGISTER", "sip:biloxi.com", b"", "abc");
        assert!(
            value.contains("algorithm=SHA-256") && value.contains(&format!("nc=0000000{count}")),
            "{value}"
        );
        let verified =
            verify(&server, &value, "REGISTER", "sip:biloxi.com:5060", 1030).expect("verified");
        assert_eq!((verified.username, verified.count), ("bob", count));
    }
}

#[test]
fn what_must_be_denied_is() {
    let server = server();
    let challenges = server.challenge(1000, 1, None, false);
    let mut answerer =
        Answerer::choose(challenges.iter().map(String::as_str), &account(None)).expect("answer");
    let good = answerer.authorize("REGISTER", "sip:biloxi.com", b"", "abc");
    let foreign = server_of(8, &[Algorithm::Sha256, Algorithm::Md5]);
    let md5_only = server_of(7, &[Algorithm::Md5]);
    let nonce = Credentials::parse(&good).expect("credentials").nonce.to_owned();
    assert!(nonce.contains(|c: char| c.is_ascii_lowercase()), "{nonce}");
    for (server, value, method, uri, now_s, expected) in [
        (&server, good.clone(), "REGISTER", "sip:biloxi.com", 1061, Denied::Stale),
        (&server, good.clone(), "INVITE", "sip:biloxi.com", 1000, Denied::WrongPassword),
        (&server, good.clone(), "REGISTER", "sip:other.com", 1000, Denied::WrongUri),
        (
            &server,
            good.replace("\"bob\"", "\"eve\""),
            "REGISTER",
            "sip:biloxi.com",
            1000,
            Denied::WrongPassword,
        ),
        (
            &server,
            good.replace("realm=\"biloxi", "realm=\"x"),
            "REGISTER",
            "sip:biloxi.com",
            1000,
            Denied::WrongRealm,
        ),
        (
            &server,
            good.replace("nc=00000001", "nc=00000002"),
            "REGISTER",
            "sip:biloxi.com",
            1000,
            Denied::WrongPassword,
        ),
        (
            &server,
            good.replace("nonce=\"0000", "nonce=\"0001"),
            "REGISTER",
            "sip:biloxi.com",
            1000,
            Denied::ForeignNonce,
        ),
        // Written otherwise it would count as one that was never used.
        (
            &server,
            good.replace(&nonce, &nonce.to_ascii_uppercase()),
            "REGISTER",
            "sip:biloxi.com",
            1000,
            Denied::ForeignNonce,
        ),
        (&foreign, good.clone(), "REGISTER", "sip:biloxi.com", 1000, Denied::ForeignNonce),
        (&md5_only, good.clone(), "REGISTER", "sip:biloxi.com", 1000, Denied::WrongAlgorithm),
        (
            &server,
            good.replace("nc=00000001", "nc=1"),
            "REGISTER",
            "sip:biloxi.com",
            1000,
            Denied::Malformed(HeaderFault::Malformed),
        ),
        (
            &server,
            format!("{good}, uri=\"sip:x\""),
            "REGISTER",
            "sip:biloxi.com",
            1000,
            Denied::Malformed(HeaderFault::Repeated),
        ),
        (
            &server,
            "Basic Ym9iOng=".into(),
            "REGISTER",
            "sip:biloxi.com",
            1000,
            Denied::Malformed(HeaderFault::NotDigest),
        ),
        (
            &server,
            "Digest".into(),
            "REGISTER",
            "sip:biloxi.com",
            1000,
            Denied::Malformed(HeaderFault::NotDigest),
        ),
        (
            &server,
            "Digest username=\"bob".into(),
            "REGISTER",
            "sip:biloxi.com",
            1000,
            Denied::Malformed(HeaderFault::Malformed),
        ),
    ] {
        assert_eq!(verify(server, &value, method, uri, now_s), Err(expected), "{value}");
    }
}

#[test]
fn nonces_bound_to_a_source_serve_no_other() {
    let server = server();
    let here = "192.0.2.1".parse().ok();
    let challenges = server.challenge(1000, 1, here, false);
    let mut answerer =
        Answerer::choose(challenges.iter().map(String::as_str), &account(None)).expect("answer");
    let value = answerer.authorize("REGISTER", "sip:biloxi.com", b"", "abc");
    for (source, ok) in [(here, true), ("192.0.2.2".parse().ok(), false), (None, false)] {
        let request = Presented {
            authorization: &value,
            method: "REGISTER",
            request_uri: "sip:biloxi.com",
            body: b"",
            source,
        };
        let result =
            server.verify(&request, 1000, |u, a| Some(a.ha1(u, "biloxi.com", "zanzibar").into()));
        assert_eq!(result.is_ok(), ok, "{source:?}");
    }
}

#[test]
fn a_challenge_for_another_realm_gets_nothing() {
    let challenge = "Digest realm=\"other\", nonce=\"x\", qop=\"auth\"";
    let error = Answerer::choose([challenge].into_iter(), &account(Some("biloxi.com"))).err();
    assert_eq!(error, Some(AnswerError::ForeignRealm));
    let error = Answerer::choose(
        ["Digest realm=\"r\", nonce=\"x\", algorithm=AKAv1-MD5", "NTLM x"].into_iter(),
        &account(None),
    )
    .err();
    assert_eq!(error, Some(AnswerError::NoUsableChallenge));
}

#[test]
fn rfc8760_the_strongest_challenge_of_ours_is_answered() {
    let challenge = |realm: &str, algorithm: &str| {
        format!("Digest realm=\"{realm}\", nonce=\"n\", qop=\"auth\", algorithm={algorithm}")
    };
    let cases: [(&[(&str, &str)], &str); 4] = [
        (&[("r", "MD5"), ("r", "SHA-256"), ("r", "SHA-512-256")], "SHA-512-256"),
        (&[("r", "SHA-256"), ("r", "MD5")], "SHA-256"),
        (&[("r", "AKAv1-MD5"), ("r", "MD5")], "MD5"),
        // Another realm's strength is no reason.
        (&[("x", "SHA-512-256"), ("r", "MD5")], "MD5"),
    ];
    for (offered, taken) in cases {
        let values: Vec<String> = offered.iter().map(|(r, a)| challenge(r, a)).collect();
        let account = account(Some("r"));
        let mut answerer = Answerer::choose(values.iter().map(String::as_str), &account).unwrap();
        let value = answerer.authorize("REGISTER", "sip:r", b"", "c");
        assert!(value.contains(&format!("algorithm={taken},")), "{value}");
        assert!(value.contains("realm=\"r\""), "{value}");
    }
}

#[test]
fn challenges_of_all_shapes() {
    let c = Challenge::parse("digest REALM=\"a, b\" ,nonce=\"q\\\"\" , stale=TRUE,opaque=\"\",qop=\"auth-int,auth\",algorithm=sha-256,domain=\"sip:x\"").expect("challenge");
    assert_eq!((c.realm, c.nonce, c.stale, c.opaque), ("a, b", "q\\\"", true, Some("")));
    assert_eq!((c.algorithm, c.auth, c.auth_int), (Algorithm::Sha256, true, true));
    // RFC 2069: no qop, no algorithm.
    let mut old = Answerer::choose(["Digest realm=\"r\", nonce=\"n\""].into_iter(), &account(None))
        .expect("old");
    let value = old.authorize("INVITE", "sip:x", b"", "c");
    assert!(!value.contains("qop") && !value.contains("cnonce"), "{value}");
    assert_eq!(
        Challenge::parse("Digest realm=\"r\", nonce=\"n\", qop=\"x\""),
        Err(HeaderFault::Unsupported)
    );
    assert_eq!(Challenge::parse("Digest realm=\"r\""), Err(HeaderFault::Missing));
}

#[test]
fn credentials_do_not_show_the_response() {
    let c = Credentials::parse(
        "Digest username=\"u\", realm=\"r\", nonce=\"n\", uri=\"sip:x\", response=\"cafe\"",
    )
    .expect("credentials");
    assert!(!format!("{c:?}").contains("cafe"));
}
