//! Users whom another system knows: asked for once, waited for, refused while it is away.

use std::sync::Arc;
use std::time::Duration;

use super::users::{challenged, register, settings};
use super::world::*;
use crate::core::Input;
use crate::digest::Algorithm;
use crate::registrar::{Found, RemotePolicy, User};
use crate::sip::HeaderName;

const CONTACT: &str = "Contact: <sip:zoe@192.0.2.1>\n";

fn with(unavailable: u16) -> World {
    let mut settings = settings(true);
    if let Some(registrar) = &mut settings.registrar {
        let mut policy = (*registrar.policy).clone();
        policy.auth.as_mut().unwrap().remote = Some(RemotePolicy {
            keep: Duration::from_secs(60),
            keep_unknown: Duration::from_secs(10),
            users_max: 100,
            waiting_max: 2,
            unavailable,
        });
        registrar.policy = Arc::new(policy);
        // Bob is not known here any more.
        registrar.users = Arc::default();
    }
    settings.begin()
}

/// A REGISTER of Bob that answers its challenge with this password.
fn answered(w: &mut World, seq: u32, password: &str) {
    register(w, Who::B, seq, CONTACT);
    let challenge = w.expect(Who::B, "401");
    let mut answerer = challenged(&challenge, HeaderName::WwwAuthenticate, password);
    let value = answerer.authorize("REGISTER", "sip:example.com", b"", "cn");
    register(w, Who::B, seq + 1, &format!("Authorization: {value}\n{CONTACT}"));
}

fn bob() -> Arc<User> {
    Arc::new(User {
        md5: Some(Algorithm::Md5.ha1("bob", "example.com", "secret").into()),
        ..User::default()
    })
}

#[test]
fn a_user_is_asked_for_once_and_let_in_by_what_was_told() {
    let mut w = with(503);
    answered(&mut w, 1, "secret");
    w.nothing(Who::B);
    let (id, ask) = w.asked.remove(0);
    assert_eq!((&*ask.name, &*ask.realm, &*ask.method), ("bob", "example.com", "REGISTER"));
    assert!(!format!("{ask:?}").contains(&*ask.response), "not for logs");
    w.input(Input::UserFound { id, found: Found::User(bob()) });
    w.expect(Who::B, "200");
    // Remembered: nobody is asked while it is fresh, whatever the password.
    answered(&mut w, 3, "secret");
    w.expect(Who::B, "200");
    answered(&mut w, 5, "wrong");
    w.expect(Who::B, "401");
    assert!(w.asked.is_empty());
    w.ms(61_000);
    answered(&mut w, 7, "secret");
    assert_eq!(w.asked.len(), 1, "old news");
}

#[test]
fn nobody_and_wrong_credentials_are_challenged_again() {
    for found in [Found::Nobody, Found::Wrong] {
        let mut w = with(503);
        answered(&mut w, 1, "secret");
        let (id, _) = w.asked.remove(0);
        w.input(Input::UserFound { id, found });
        w.expect(Who::B, "401");
        assert!(w.aors.is_empty());
    }
    // Judged elsewhere: good for this one request.
    let mut w = with(503);
    answered(&mut w, 1, "secret");
    let (id, _) = w.asked.remove(0);
    w.input(Input::UserFound { id, found: Found::Right(Arc::default()) });
    w.expect(Who::B, "200");
    answered(&mut w, 3, "secret");
    assert_eq!(w.asked.len(), 1);
}

#[test]
fn without_an_answer_and_past_the_bound_the_policy_says_what_they_get() {
    for (status, retry) in [(503, Some("5")), (480, None)] {
        let mut w = with(status);
        answered(&mut w, 1, "secret");
        let (id, _) = w.asked.remove(0);
        w.input(Input::UserFound { id, found: Found::Unavailable });
        let answer = w.expect(Who::B, &status.to_string());
        assert_eq!(answer.header(HeaderName::RetryAfter), retry);
        for n in 0..3 {
            answered(&mut w, 10 + 2 * n, "secret");
        }
        assert_eq!(w.asked.len(), 2, "two may wait");
        w.expect(Who::B, &status.to_string());
        assert_eq!(w.core.stats().unasked, 2);
        // They are remembered by nobody.
        assert!(w.aors.is_empty());
    }
}

#[test]
fn credentials_that_are_none_of_ours_ask_nobody() {
    let mut w = with(503);
    register(&mut w, Who::B, 1, CONTACT);
    let challenge = w.expect(Who::B, "401");
    let mut answerer = challenged(&challenge, HeaderName::WwwAuthenticate, "secret");
    let value = answerer.authorize("REGISTER", "sip:example.com", b"", "cn");
    let forged = value.replacen("nonce=\"0", "nonce=\"1", 1);
    register(&mut w, Who::B, 2, &format!("Authorization: {forged}\n{CONTACT}"));
    w.expect(Who::B, "401");
    w.ms(301_000);
    register(&mut w, Who::B, 3, &format!("Authorization: {value}\n{CONTACT}"));
    w.expect(Who::B, "401");
    assert!(w.asked.is_empty());
}

#[test]
fn an_invite_that_waits_can_be_cancelled() {
    let mut w = with(503);
    let invite = |branch: &str, seq: u32, rest: &str| {
        format!(
            "INVITE sip:+4989555@example.com SIP/2.0
Via: SIP/2.0/UDP 192.0.2.1:5060;branch={branch};rport
Max-Forwards: 70
From: <sip:bob@example.com>;tag=p
To: <sip:+4989555@example.com>
Call-ID: out
CSeq: {seq} INVITE
{rest}Contact: <sip:bob@192.0.2.1>
"
        )
    };
    let branch = w.branch();
    w.says(Who::B, &invite(&branch, 1, ""));
    let challenge = w.expect(Who::B, "407");
    w.says(Who::B, &invite(&branch, 1, "").replace("INVITE", "ACK"));
    let mut answerer = challenged(&challenge, HeaderName::ProxyAuthenticate, "secret");
    let value = answerer.authorize("INVITE", "sip:+4989555@example.com", b"", "cn");
    let branch = w.branch();
    let again = invite(&branch, 2, &format!("Proxy-Authorization: {value}\n"));
    w.says(Who::B, &again);
    let (id, _) = w.asked.remove(0);
    w.says(Who::B, &invite(&branch, 2, "").replace("INVITE", "CANCEL"));
    let answers: Vec<u16> =
        std::iter::from_fn(|| w.next(Who::B)).filter_map(|m| m.status()).collect();
    assert!(answers.contains(&200) && answers.contains(&487), "{answers:?}");
    w.input(Input::UserFound { id, found: Found::User(bob()) });
    w.nothing(Who::A);
}
