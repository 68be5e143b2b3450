//! REFER, Replaces, NOTIFY, challenges, identity, requests outside dialogs.

use super::basic::*;
use super::session::hang_up;
use super::world::*;
use crate::core::{Input, ResolveError};
use crate::net::{Target, Transport};
use crate::routing::{Credential, Peer, Secret};
use crate::sip::{HeaderName, percent_decode};

#[test]
fn refer_crosses_with_our_host_and_notify_comes_back() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    let refer = a_request(
        &mut w,
        &call.ok,
        "REFER",
        102,
        "Refer-To: <sip:+4940777@pbx.inside.example;transport=tcp>\nReferred-By: <sip:alice@inside.example>\n",
    );
    w.says(Who::A, &refer);
    let refer = w.expect(Who::B, "REFER");
    assert_eq!(refer.header(HeaderName::ReferTo), Some("<sip:+4940777@203.0.113.9>"));
    assert_eq!(refer.header(HeaderName::ReferredBy), Some("<sip:alice@203.0.113.9>"));
    w.answer(Who::B, &refer, 202, "", "");
    w.expect(Who::A, "202");
    let seq = refer.cseq().unwrap().number;
    let notify = b_request(
        &mut w,
        &call.invite,
        "bobtag",
        "NOTIFY",
        1,
        &format!(
            "Event: refer;id={seq}\nSubscription-State: active;expires=60\nContent-Type: message/sipfrag\n\nSIP/2.0 180 Ringing\nServer: secret\n"
        ),
    );
    w.says(Who::B, &notify);
    let notify = w.expect(Who::A, "NOTIFY");
    assert_eq!(notify.header(HeaderName::Event), Some("refer;id=102"));
    assert_eq!(notify.header(HeaderName::SubscriptionState), Some("active;expires=60"));
    assert_eq!(notify.body(), b"SIP/2.0 180 Ringing\r\n");
    w.answer(Who::A, &notify, 200, "", "");
    w.expect(Who::B, "200");
    hang_up(&mut w, &call);
}

/// A's second call, to C by way of B's failure.
fn second_call(w: &mut World) -> UpCall {
    let text = invite_text(w, &sdp(SDP_A)).replace("inside-call-1", "inside-call-2");
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &invite, 503, "x", "");
    w.expect(Who::B, "ACK");
    let invite = w.expect(Who::C, "INVITE");
    w.answer(Who::C, &invite, 200, "caroltag", &sdp(SDP_B));
    let ok = w.expect(Who::A, "200");
    let ack = a_request(w, &ok, "ACK", 101, "");
    w.says(Who::A, &ack);
    w.expect(Who::C, "ACK");
    UpCall { invite, ok }
}

#[test]
fn rfc3891_an_attended_transfer_names_dialogs_that_the_other_side_knows() {
    let mut w = World::new();
    let first = set_up(&mut w, "", "");
    let second = second_call(&mut w);
    // A tells B to call C in place of A's second call.
    let replaces = format!(
        "inside-call-2%4010.0.0.1%3Bto-tag%3D{}%3Bfrom-tag%3Dalicetag",
        second.ok.to_tag().unwrap()
    );
    let refer_to = format!("Refer-To: <sip:+4930999@10.0.0.9?Replaces={replaces}>\n");
    let refer = a_request(&mut w, &first.ok, "REFER", 102, &refer_to);
    w.says(Who::A, &refer);
    let refer = w.expect(Who::B, "REFER");
    let refer_to = refer.header(HeaderName::ReferTo).unwrap().to_owned();
    let value = percent_decode(refer_to.split("Replaces=").nth(1).unwrap().trim_end_matches('>'))
        .into_owned();
    let known = format!(
        "{};to-tag=caroltag;from-tag={}",
        second.invite.call_id().unwrap(),
        second.invite.from_tag()
    );
    assert_eq!(value, known, "C knows this dialog");
    assert!(!refer_to.contains("10.0.0"));

    // An unknown dialog is refused.
    let bad = "Refer-To: <sip:x@10.0.0.9?Replaces=nowhere%3Bto-tag%3D1%3Bfrom-tag%3D2>\n";
    let refer = a_request(&mut w, &first.ok, "REFER", 103, bad);
    w.says(Who::A, &refer);
    w.expect(Who::A, "481");
}

#[test]
fn an_invite_that_replaces_nothing_of_ours_is_481() {
    let mut w = World::new();
    let rest = format!("Replaces: nowhere;to-tag=1;from-tag=2\n{}", sdp(SDP_A));
    let text = invite_text(&mut w, &rest);
    w.says(Who::A, &text);
    w.expect(Who::A, "481");
    w.nothing(Who::B);
    w.assert_clean();
}

#[test]
fn rfc3891_an_invite_names_the_dialog_as_its_receiver_knows_it() {
    let mut w = World::new();
    let first = set_up(&mut w, "", "");
    // C calls A in place of B's call; it knows the dialog as B does.
    let replaces = format!(
        "Replaces: {};to-tag={};from-tag=bobtag\n",
        first.invite.call_id().unwrap(),
        first.invite.from_tag()
    );
    let text = invite_text(&mut w, &format!("{replaces}{}", sdp(SDP_B)))
        .replace("inside-call-1@10.0.0.1", "outside-call-1")
        .replace("10.0.0.1:5060", "192.0.2.2:5060");
    w.says(Who::C, &text);
    let invite = w.expect(Who::A, "INVITE");
    let known =
        format!("inside-call-1@10.0.0.1;to-tag=alicetag;from-tag={}", first.ok.to_tag().unwrap());
    assert_eq!(invite.header(HeaderName::Replaces), Some(known.as_str()));
    assert!(invite.lists(HeaderName::Require, "replaces"));
}

#[test]
fn refer_may_be_forbidden() {
    let mut settings = Settings::new();
    settings.pbx.refer = false;
    let mut w = settings.begin();
    let call = set_up(&mut w, "", "");
    let refer = a_request(&mut w, &call.ok, "REFER", 102, "Refer-To: <sip:x@10.0.0.1>\n");
    w.says(Who::A, &refer);
    w.expect(Who::A, "403");
    w.nothing(Who::B);
}

#[test]
fn a_peer_behind_nat_is_where_it_last_sent_from() {
    let mut settings = Settings::new();
    settings.one.symmetric = true;
    let mut w = settings.begin();
    let call = set_up(&mut w, "", "Contact: <sip:bob@172.16.0.5:5066>\n");
    let bye = a_request(&mut w, &call.ok, "BYE", 102, "");
    w.says(Who::A, &bye);
    let bye = w.expect(Who::B, "BYE sip:bob@172.16.0.5:5066");
    w.answer(Who::B, &bye, 200, "", "");
    w.assert_clean();
}

pub(super) fn with_credentials() -> World {
    let mut settings = Settings::new();
    settings.one.credentials = vec![Credential {
        realm: "carrier".into(),
        username: "sbc".into(),
        password: Secret::new("hunter2"),
    }];
    settings.begin()
}

pub(super) const CHALLENGE: &str =
    "Proxy-Authenticate: Digest realm=\"carrier\", nonce=\"abc\", qop=\"auth\", algorithm=MD5\n";

#[test]
fn a_challenge_is_answered_for_our_realm_only_and_once() {
    let mut w = with_credentials();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let first = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &first, 407, "bobtag", CHALLENGE);
    w.expect(Who::B, "ACK");
    let second = w.expect(Who::B, "INVITE");
    assert_eq!(first.call_id().unwrap(), second.call_id().unwrap());
    assert_eq!(second.cseq().unwrap().number, first.cseq().unwrap().number + 1);
    assert_eq!(first.body(), second.body());
    let credentials = second.header(HeaderName::ProxyAuthorization).unwrap();
    assert!(credentials.contains("username=\"sbc\"") && credentials.contains("realm=\"carrier\""));
    // Refused again: the password is wrong.
    w.answer(Who::B, &second, 407, "bobtag", CHALLENGE);
    w.expect(Who::B, "ACK");
    w.expect(Who::A, "403");
    w.nothing(Who::B);

    let mut w = with_credentials();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let first = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &first, 407, "bobtag", &CHALLENGE.replace("carrier", "another"));
    w.expect(Who::B, "ACK");
    w.expect(Who::A, "403");
    w.nothing(Who::B);
}

#[test]
fn a_challenged_bye_is_sent_again_with_credentials() {
    let mut w = with_credentials();
    let call = set_up(&mut w, "", "");
    let bye = a_request(&mut w, &call.ok, "BYE", 102, "");
    w.says(Who::A, &bye);
    w.expect(Who::A, "200");
    let bye = w.expect(Who::B, "BYE");
    w.answer(Who::B, &bye, 407, "", CHALLENGE);
    let again = w.expect(Who::B, "BYE");
    assert!(again.has(HeaderName::ProxyAuthorization));
    assert_eq!(again.cseq().unwrap().number, bye.cseq().unwrap().number + 1);
    assert_ne!(again.via().unwrap().branch(), bye.via().unwrap().branch());
    w.answer(Who::B, &again, 200, "", "");
    w.assert_clean();
}

#[test]
fn credentials_never_follow_a_dialog_away_from_their_trunk() {
    // The trunk's Contact leads to a stranger, who asks with the trunk's own realm.
    let mut w = with_credentials();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    let elsewhere = format!("Contact: <sip:bob@192.0.2.2:5060>\n{}", sdp(SDP_B));
    w.answer(Who::B, &invite, 200, "bobtag", &elsewhere);
    let ok = w.expect(Who::A, "200");
    let ack = a_request(&mut w, &ok, "ACK", 101, "");
    w.says(Who::A, &ack);
    w.expect(Who::C, "ACK");
    let bye = a_request(&mut w, &ok, "BYE", 102, "");
    w.says(Who::A, &bye);
    w.expect(Who::A, "200");
    let bye = w.expect(Who::C, "BYE sip:bob@192.0.2.2:5060");
    w.answer(Who::C, &bye, 407, "", CHALLENGE);
    w.nothing(Who::C);
    w.nothing(Who::B);
    assert_eq!(w.core.stats().credentials_withheld, 1);
    w.assert_clean();
}

#[test]
fn a_redirection_draws_no_credentials_to_where_it_points() {
    let mut w = with_credentials();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let first = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &first, 302, "bobtag", "Contact: <sip:evil@192.0.2.2>\n");
    w.expect(Who::B, "ACK");
    w.expect(Who::A, "480");
    w.nothing(Who::B);
    w.nothing(Who::C);
}

#[test]
fn a_challenge_from_another_source_is_answered_to_the_trunk_alone() {
    let mut w = with_credentials();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let first = w.expect(Who::B, "INVITE");
    w.answer(Who::C, &first, 407, "bobtag", CHALLENGE);
    w.expect(Who::B, "ACK");
    w.nothing(Who::C);
    let second = w.expect(Who::B, "INVITE");
    assert!(second.has(HeaderName::ProxyAuthorization));
}

#[test]
fn a_peer_that_calls_every_nonce_stale_is_given_up() {
    let mut w = with_credentials();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let stale = CHALLENGE.replace("nonce=", "stale=true, nonce=");
    let mut sent = 0;
    loop {
        let invite = w.expect(Who::B, "INVITE");
        sent += 1;
        w.answer(Who::B, &invite, 407, "bobtag", &stale);
        w.expect(Who::B, "ACK");
        if sent == 4 {
            break;
        }
    }
    w.expect(Who::A, "403");
    w.nothing(Who::B);
}

const IDENTITY: &str =
    "P-Asserted-Identity: \"Alice\" <sip:+4989555@pbx.inside.example>, <tel:+4989555>
Privacy: id
Diversion: <sip:+4989111@pbx.inside.example>;reason=unconditional
";

#[test]
fn rfc3325_identity_crosses_between_trusted_trunks_only() {
    let mut w = World::new();
    let text = invite_text(&mut w, &format!("{IDENTITY}{}", sdp(SDP_A)));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    for name in [HeaderName::PAssertedIdentity, HeaderName::Privacy, HeaderName::Diversion] {
        assert!(!invite.has(name), "{name}");
    }

    let mut settings = Settings::new();
    settings.pbx.trusted = true;
    settings.one.trusted = true;
    let mut w = settings.begin();
    let text = invite_text(&mut w, &format!("{IDENTITY}{}", sdp(SDP_A)));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    let identities: Vec<&str> = invite.values(HeaderName::PAssertedIdentity).collect();
    assert_eq!(identities, ["\"Alice\" <sip:+4989555@203.0.113.9>", "<tel:+4989555>"]);
    assert_eq!(invite.header(HeaderName::Privacy), Some("id"));
    let diverted = "<sip:+4989111@203.0.113.9>;reason=unconditional";
    assert_eq!(invite.header(HeaderName::Diversion), Some(diverted));
}

#[test]
fn rfc3323_a_caller_that_wants_no_name_has_none_outside() {
    let mut w = World::new();
    let text = invite_text(&mut w, &format!("Privacy: user;id\n{}", sdp(SDP_A)));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    let from = invite.header(HeaderName::From).unwrap();
    assert!(from.starts_with("\"Anonymous\" <sip:anonymous@anonymous.invalid>;tag="), "{from}");
    let text = String::from_utf8_lossy(invite.as_bytes());
    assert!(!text.contains("4989555") && !text.contains("Alice"));
}

#[test]
fn headers_cross_by_policy_of_both_trunks() {
    let mut settings = Settings::new();
    settings.pbx.headers.accept = vec!["X-*".into(), "Alert-Info".into()];
    settings.one.headers.pass = vec!["X-Inside".into()];
    settings.one.headers.set = vec![("X-From-SBC".into(), "yes".into())];
    let mut w = settings.begin();
    let text = invite_text(&mut w, &format!("Alert-Info: <http://pbx/ring>\n{}", sdp(SDP_A)));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    assert_eq!(invite.other("X-Inside"), Some("secret-header"));
    assert_eq!(invite.other("X-From-SBC"), Some("yes"));
    assert!(!invite.has(HeaderName::AlertInfo));
}

#[test]
fn message_is_routed_with_failover() {
    let mut w = World::new();
    let text =
        invite_text(&mut w, "Content-Type: text/plain\n\nhello").replace("INVITE", "MESSAGE");
    w.says(Who::A, &text);
    let first = w.expect(Who::B, "MESSAGE");
    assert_eq!(first.body(), b"hello");
    assert!(!String::from_utf8_lossy(first.as_bytes()).contains("10.0.0"));
    w.answer(Who::B, &first, 503, "bobtag", "");
    let second = w.expect(Who::C, "MESSAGE");
    w.answer(Who::C, &second, 202, "caroltag", "");
    w.expect(Who::A, "202");
    w.assert_clean();
}

#[test]
fn rfc4320_a_message_that_nobody_answers_gets_no_408() {
    let mut w = World::new();
    let text =
        invite_text(&mut w, "Content-Type: text/plain\n\nhello").replace("INVITE", "MESSAGE");
    w.says(Who::A, &text);
    w.ms(12_000);
    w.expect(Who::B, "MESSAGE");
    w.expect(Who::A, "100");
    w.expect(Who::A, "504");
    w.assert_clean();
}

#[test]
fn a_trunk_given_by_name_is_resolved_and_its_addresses_tried() {
    let mut settings = Settings::new();
    settings.one.peers =
        vec![Peer { host: "sip.carrier.example".into(), port: None, transport: None }];
    let mut w = settings.begin();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    w.nothing(Who::B);
    let (id, host) = w.resolves.pop_front().unwrap();
    assert_eq!(host, "sip.carrier.example");
    let target = |who: Who| Target::new(Transport::Udp, who.addr());
    w.input(Input::Resolved { id, result: Ok(vec![target(Who::B), target(Who::C)]) });
    let invite = w.expect(Who::B, "INVITE sip:+4930123@sip.carrier.example SIP/2.0");
    w.ms(6000);
    // No answer: a timeout goes to the next hop of the plan, which is C by its own trunk.
    let second = w.expect(Who::C, "INVITE");
    assert_ne!(invite.call_id().unwrap(), second.call_id().unwrap());
}

#[test]
fn a_name_that_does_not_resolve_fails_over() {
    let mut settings = Settings::new();
    settings.one.peers =
        vec![Peer { host: "sip.carrier.example".into(), port: None, transport: None }];
    let mut w = settings.begin();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let (id, _) = w.resolves.pop_front().unwrap();
    w.input(Input::Resolved { id, result: Err(ResolveError::NotFound) });
    w.expect(Who::C, "INVITE");
}

#[test]
fn a_contact_that_is_a_name_is_resolved_for_later_requests() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "Contact: <sip:bob@host.carrier.example>\n");
    let (id, host) = w.resolves.pop_front().unwrap();
    assert_eq!(host, "host.carrier.example");
    let target = Target::new(Transport::Udp, Who::C.addr());
    w.input(Input::Resolved { id, result: Ok(vec![target]) });
    let bye = a_request(&mut w, &call.ok, "BYE", 102, "");
    w.says(Who::A, &bye);
    let bye = w.expect(Who::C, "BYE sip:bob@host.carrier.example SIP/2.0");
    w.answer(Who::C, &bye, 200, "", "");
    w.expect(Who::A, "200");
    w.assert_clean();
}
