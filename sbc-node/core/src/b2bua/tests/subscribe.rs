//! SUBSCRIBE, REFER, PUBLISH, OPTIONS and NOTIFY outside calls, and the subscriptions they make.

use super::basic::{a_request, b_request, invite_text};
use super::transfer::{CHALLENGE, with_credentials};
use super::world::*;
use crate::sip::{HeaderName, Message};

/// A request of A outside any dialog.
fn outside(w: &mut World, method: &str, rest: &str) -> String {
    invite_text(w, rest).replace("INVITE", method)
}

fn subscribe(w: &mut World) -> Message {
    let text =
        outside(w, "SUBSCRIBE", "Event: presence\nExpires: 600\nAccept: application/pidf+xml\n");
    w.says(Who::A, &text);
    w.expect(Who::B, "SUBSCRIBE")
}

fn notify(w: &mut World, subscribe: &Message, tag: &str, seq: u32, state: &str) {
    let rest = format!("Event: presence\nSubscription-State: {state}\n");
    let text = b_request(w, subscribe, tag, "NOTIFY", seq, &rest);
    w.says(Who::B, &text);
}

/// No message of either side names a host, identifier or agent of the other.
fn assert_hidden(w: &World) {
    let text = |who: Who| -> String {
        let seen = w.seen.get(&who).into_iter().flatten();
        seen.map(|b| String::from_utf8_lossy(b).into_owned()).collect()
    };
    let outward = text(Who::B) + &text(Who::C);
    for secret in ["10.0.0", "inside", "alicetag", "SecretPBX", "alice@"] {
        assert!(!outward.contains(secret), "{secret} in\n{outward}");
    }
    let inward = text(Who::A);
    for secret in ["192.0.2", "198.51.100", "203.0.113", "bobtag", "bob@"] {
        assert!(!inward.contains(secret), "{secret} in\n{inward}");
    }
}

#[test]
fn rfc6665_a_subscription_lives_in_two_hidden_dialogs() {
    let mut w = World::new();
    let sub = subscribe(&mut w);
    assert_eq!(sub.request_uri_str(), "sip:+4930123@192.0.2.1:5060");
    assert_eq!(sub.header(HeaderName::Contact), Some("<sip:203.0.113.9:5060>"));
    assert_eq!(sub.header(HeaderName::Accept), Some("application/pidf+xml"));
    // A NOTIFY may come before the answer (§4.4.1).
    notify(&mut w, &sub, "bobtag", 1, "active;expires=600");
    let first = w.expect(Who::A, "NOTIFY");
    assert_eq!(first.request_uri_str(), "sip:alice@10.0.0.1:5060");
    assert_eq!(first.call_id().unwrap(), "inside-call-1@10.0.0.1");
    assert_eq!(first.to_tag(), Some("alicetag"));
    w.answer(Who::A, &first, 200, "", "");
    w.expect(Who::B, "200");
    w.answer(Who::B, &sub, 200, "bobtag", "Contact: <sip:bob@192.0.2.1:5060>\nExpires: 500\n");
    let ok = w.expect(Who::A, "200");
    assert_eq!(ok.to_tag(), Some(first.from_tag()), "one dialog");
    assert_eq!(ok.header(HeaderName::Expires), Some("500"));
    assert_eq!(ok.header(HeaderName::Contact), Some("<sip:10.0.0.9:5060>"));
    // Renewed in time it lives on.
    for seq in 102..105 {
        w.ms(400_000);
        let again = a_request(&mut w, &ok, "SUBSCRIBE", seq, "Event: presence\nExpires: 500\n");
        w.says(Who::A, &again);
        let again = w.expect(Who::B, "SUBSCRIBE sip:bob@192.0.2.1:5060 SIP/2.0");
        assert_eq!(again.to_tag(), Some("bobtag"));
        w.answer(Who::B, &again, 200, "", "Contact: <sip:bob@192.0.2.1:5060>\nExpires: 500\n");
        w.expect(Who::A, "200");
    }
    assert_eq!(w.core.stats().subscriptions, 1);
    // Ended by the subscriber; the last NOTIFY says so.
    let end = a_request(&mut w, &ok, "SUBSCRIBE", 105, "Event: presence\nExpires: 0\n");
    w.says(Who::A, &end);
    let end = w.expect(Who::B, "SUBSCRIBE");
    w.answer(Who::B, &end, 200, "", "Expires: 0\n");
    w.expect(Who::A, "200");
    notify(&mut w, &sub, "bobtag", 2, "terminated;reason=timeout");
    let last = w.expect(Who::A, "NOTIFY");
    assert_eq!(last.header(HeaderName::SubscriptionState), Some("terminated;reason=timeout"));
    w.answer(Who::A, &last, 200, "", "");
    w.expect(Who::B, "200");
    assert_eq!(w.core.stats().subscriptions, 0);
    // Nothing is known of it any more.
    notify(&mut w, &sub, "bobtag", 3, "active");
    w.expect(Who::B, "481");
    assert_hidden(&w);
    w.assert_clean();
}

#[test]
fn rfc6665_4_4_1_two_notifiers_make_two_pairs_of_dialogs() {
    let mut w = World::new();
    let sub = subscribe(&mut w);
    w.answer(Who::B, &sub, 200, "bobtag", "Expires: 100\n");
    let ok = w.expect(Who::A, "200");
    notify(&mut w, &sub, "bobtag", 1, "active;expires=100");
    let one = w.expect(Who::A, "NOTIFY");
    w.answer(Who::A, &one, 200, "", "");
    w.expect(Who::B, "200");
    notify(&mut w, &sub, "bobtag2", 1, "active;expires=100");
    let two = w.expect(Who::A, "NOTIFY");
    w.answer(Who::A, &two, 200, "", "");
    w.expect(Who::B, "200");
    assert_eq!(one.from_tag(), ok.to_tag().unwrap());
    assert_ne!(one.from_tag(), two.from_tag());
    assert_eq!(w.core.stats().subscriptions, 2);
    // The first ends; the second goes on under the tag of ours that they share.
    notify(&mut w, &sub, "bobtag", 2, "terminated");
    let end = w.expect(Who::A, "NOTIFY");
    w.answer(Who::A, &end, 200, "", "");
    w.expect(Who::B, "200");
    notify(&mut w, &sub, "bobtag2", 2, "active;expires=50");
    let more = w.expect(Who::A, "NOTIFY");
    assert_eq!(more.from_tag(), two.from_tag());
    w.answer(Who::A, &more, 200, "", "");
    w.expect(Who::B, "200");
    // A third knocks while the shard has no room for it.
    w.ms(90_000);
    assert_eq!(w.core.stats().subscriptions, 0, "nobody renewed it");
    assert_hidden(&w);
    w.assert_clean();
}

#[test]
fn a_subscription_that_nobody_renews_is_forgotten() {
    let mut w = World::new();
    let sub = subscribe(&mut w);
    w.answer(Who::B, &sub, 200, "bobtag", "Expires: 60\n");
    let ok = w.expect(Who::A, "200");
    w.ms(80_000);
    assert_eq!(w.core.stats().subscriptions, 1, "what is on its way still arrives");
    w.ms(15_000);
    assert_eq!(w.core.stats().subscriptions, 0);
    let late = a_request(&mut w, &ok, "SUBSCRIBE", 102, "Event: presence\nExpires: 60\n");
    w.says(Who::A, &late);
    w.expect(Who::A, "481");
    w.nothing(Who::B);
    w.assert_clean();
}

#[test]
fn a_notify_that_nobody_takes_ends_the_subscription() {
    for answer in [Some(481), None] {
        let mut w = World::new();
        let sub = subscribe(&mut w);
        w.answer(Who::B, &sub, 200, "bobtag", "Expires: 600\n");
        w.expect(Who::A, "200");
        notify(&mut w, &sub, "bobtag", 1, "active");
        let sent = w.expect(Who::A, "NOTIFY");
        match answer {
            Some(status) => {
                w.answer(Who::A, &sent, status, "", "");
                w.expect(Who::B, "481");
            }
            None => {
                // B has given up waiting by then, too.
                w.ms(33_000);
            }
        }
        assert_eq!(w.core.stats().subscriptions, 0);
    }
}

#[test]
fn requests_that_do_not_belong_into_a_subscription() {
    let mut w = World::new();
    let sub = subscribe(&mut w);
    w.answer(Who::B, &sub, 200, "bobtag", "Expires: 600\n");
    let ok = w.expect(Who::A, "200");
    // Wrong direction, wrong method.
    let text =
        a_request(&mut w, &ok, "NOTIFY", 102, "Event: presence\nSubscription-State: active\n");
    w.says(Who::A, &text);
    assert_eq!(w.expect(Who::A, "405").header(HeaderName::Allow), Some("SUBSCRIBE"));
    let text = b_request(&mut w, &sub, "bobtag", "INFO", 1, "");
    w.says(Who::B, &text);
    assert_eq!(w.expect(Who::B, "405").header(HeaderName::Allow), Some("NOTIFY"));
    // Out of order.
    notify(&mut w, &sub, "bobtag", 9, "active");
    let sent = w.expect(Who::A, "NOTIFY");
    w.answer(Who::A, &sent, 200, "", "");
    w.expect(Who::B, "200");
    notify(&mut w, &sub, "bobtag", 8, "active");
    w.expect(Who::B, "500");
    // A stranger that knows our tag and nothing else.
    let text =
        a_request(&mut w, &ok, "SUBSCRIBE", 110, "Event: presence\n").replace("alicetag", "malice");
    w.says(Who::A, &text);
    w.expect(Who::A, "481");
    w.nothing(Who::B);
}

#[test]
fn a_subscribe_fails_over_and_the_first_target_is_forgotten() {
    let mut w = World::new();
    let first = subscribe(&mut w);
    w.answer(Who::B, &first, 503, "bobtag", "");
    let second = w.expect(Who::C, "SUBSCRIBE");
    assert_ne!(first.call_id().unwrap(), second.call_id().unwrap());
    w.answer(Who::C, &second, 200, "caroltag", "Expires: 60\n");
    w.expect(Who::A, "200");
    notify(&mut w, &first, "bobtag", 1, "active");
    w.expect(Who::B, "481");
    w.nothing(Who::A);
    w.ms(100_000);
    w.assert_clean();
}

#[test]
fn a_subscribe_that_is_refused_leaves_nothing() {
    let mut w = World::new();
    let sub = subscribe(&mut w);
    w.answer(Who::B, &sub, 489, "bobtag", "");
    w.expect(Who::A, "489");
    assert_eq!(w.core.stats().subscriptions, 0);
    let text = outside(&mut w, "SUBSCRIBE", "").replace("inside-call-1", "inside-call-2");
    w.says(Who::A, &text);
    w.expect(Who::A, "489");
    let text = outside(&mut w, "SUBSCRIBE", "Event: presence\n")
        .replace("Contact: <sip:alice@10.0.0.1:5060>\n", "")
        .replace("inside-call-1", "inside-call-3");
    w.says(Who::A, &text);
    w.expect(Who::A, "400");
    w.assert_clean();
}

#[test]
fn subscriptions_are_bounded() {
    let mut settings = Settings::new();
    settings.calls.max_subscriptions = 1;
    let mut w = settings.begin();
    let sub = subscribe(&mut w);
    w.answer(Who::B, &sub, 200, "bobtag", "Expires: 60\n");
    w.expect(Who::A, "200");
    let text =
        outside(&mut w, "SUBSCRIBE", "Event: presence\n").replace("inside-call-1", "another");
    w.says(Who::A, &text);
    let full = w.expect(Who::A, "503");
    assert!(full.has(HeaderName::RetryAfter));
    // No room for a second notifier either.
    notify(&mut w, &sub, "bobtag2", 1, "active");
    w.expect(Who::B, "481");
    w.nothing(Who::A);
}

const REFER: &str = "Refer-To: <sip:+4940777@pbx.inside.example;transport=tcp>\n\
                     Referred-By: <sip:alice@inside.example>\n";

#[test]
fn rfc3515_a_refer_outside_a_call_and_its_notifies() {
    let mut w = World::new();
    let text = outside(&mut w, "REFER", REFER);
    w.says(Who::A, &text);
    let refer = w.expect(Who::B, "REFER");
    assert_eq!(refer.header(HeaderName::ReferTo), Some("<sip:+4940777@203.0.113.9>"));
    let by = refer.header(HeaderName::ReferredBy).unwrap();
    assert!(by.ends_with("@203.0.113.9>"), "{by}");
    w.answer(Who::B, &refer, 202, "bobtag", "");
    w.expect(Who::A, "202");
    let seq = refer.cseq().unwrap().number;
    for (n, state) in [(1, "active;expires=60"), (2, "terminated;reason=noresource")] {
        let rest = format!(
            "Event: refer;id={seq}\nSubscription-State: {state}\n\
             Content-Type: message/sipfrag\n\nSIP/2.0 200 OK\nServer: secret\n"
        );
        let text = b_request(&mut w, &refer, "bobtag", "NOTIFY", n, &rest);
        w.says(Who::B, &text);
        let notify = w.expect(Who::A, "NOTIFY");
        assert_eq!(notify.header(HeaderName::Event), Some("refer;id=101"));
        assert_eq!(notify.body(), b"SIP/2.0 200 OK\r\n");
        w.answer(Who::A, &notify, 200, "", "");
        w.expect(Who::B, "200");
    }
    assert_eq!(w.core.stats().subscriptions, 0);
    let shown: String = w.seen[&Who::B].iter().map(|b| String::from_utf8_lossy(b)).collect();
    assert!(!shown.contains("inside") && !shown.contains("10.0.0"), "{shown}");
    w.assert_clean();
}

#[test]
fn rfc4488_a_refer_without_subscription_leaves_none() {
    let mut w = World::new();
    let text = outside(&mut w, "REFER", &format!("{REFER}Refer-Sub: false\n"));
    w.says(Who::A, &text);
    let refer = w.expect(Who::B, "REFER");
    assert_eq!(refer.header(HeaderName::ReferSub), Some("false"));
    w.answer(Who::B, &refer, 200, "bobtag", "Refer-Sub: false\n");
    w.expect(Who::A, "200");
    assert_eq!(w.core.stats().subscriptions, 0);
    w.assert_clean();
}

#[test]
fn a_refer_that_nobody_may_or_can_follow_is_refused() {
    let mut settings = Settings::new();
    settings.pbx.refer = false;
    let mut w = settings.begin();
    let text = outside(&mut w, "REFER", REFER);
    w.says(Who::A, &text);
    w.expect(Who::A, "403");
    let mut w = World::new();
    let text = outside(&mut w, "REFER", "");
    w.says(Who::A, &text);
    w.expect(Who::A, "400");
    let bad = "Refer-To: <sip:x@10.0.0.9?Replaces=nowhere%3Bto-tag%3D1%3Bfrom-tag%3D2>\n";
    let text = outside(&mut w, "REFER", bad).replace("inside-call-1", "inside-call-2");
    w.says(Who::A, &text);
    w.expect(Who::A, "481");
    w.nothing(Who::B);
    w.assert_clean();
}

#[test]
fn rfc3903_publish_crosses_with_its_entity_tag() {
    let mut w = World::new();
    let rest = "Event: presence\nExpires: 300\nSIP-If-Match: dx200xyz\n\
                Content-Type: application/pidf+xml\n\n<presence/>";
    let text = outside(&mut w, "PUBLISH", rest);
    w.says(Who::A, &text);
    let publish = w.expect(Who::B, "PUBLISH");
    assert_eq!(publish.header(HeaderName::SipIfMatch), Some("dx200xyz"));
    assert_eq!(publish.body(), b"<presence/>");
    w.answer(Who::B, &publish, 200, "bobtag", "SIP-ETag: kwj449x\nExpires: 300\n");
    let ok = w.expect(Who::A, "200");
    assert_eq!(ok.header(HeaderName::SipEtag), Some("kwj449x"));
    assert_hidden(&w);
    w.assert_clean();
}

#[test]
fn options_for_somebody_is_routed_where_the_trunk_wants_it() {
    let mut w = World::new();
    let text = outside(&mut w, "OPTIONS", "");
    w.says(Who::A, &text);
    w.expect(Who::A, "200");
    w.nothing(Who::B);

    let mut settings = Settings::new();
    settings.pbx.route_options = true;
    let mut w = settings.begin();
    let text = outside(&mut w, "OPTIONS", "");
    w.says(Who::A, &text);
    let options = w.expect(Who::B, "OPTIONS sip:+4930123@192.0.2.1:5060");
    w.answer(Who::B, &options, 200, "bobtag", "Accept: application/sdp\n");
    w.expect(Who::A, "200");
    // Without a user it is for us; without hops left as well (RFC 3261 §11.2).
    for (n, (from, to)) in
        [("+4930123@10.0.0.9 SIP", "10.0.0.9 SIP"), ("Forwards: 70", "Forwards: 0")]
            .iter()
            .enumerate()
    {
        let text = outside(&mut w, "OPTIONS", "").replace(from, to);
        w.says(Who::A, &text.replace("inside-call-1", &format!("inside-{n}")));
        w.expect(Who::A, "200");
        w.nothing(Who::B);
    }
    assert_hidden(&w);
    w.assert_clean();
}

#[test]
fn a_notify_that_nobody_asked_for_crosses_only_where_it_may() {
    let rest = "Event: message-summary\nSubscription-State: active\n\
                Content-Type: application/simple-message-summary\n\n\
                Messages-Waiting: yes\nMessage-Account: sip:alice@vmail.inside.example\n";
    let mut w = World::new();
    let text = outside(&mut w, "NOTIFY", rest);
    w.says(Who::A, &text);
    w.expect(Who::A, "481");

    let mut settings = Settings::new();
    settings.pbx.unsolicited_notify = true;
    let mut w = settings.begin();
    let text = outside(&mut w, "NOTIFY", rest);
    w.says(Who::A, &text);
    let notify = w.expect(Who::B, "NOTIFY");
    let body = String::from_utf8_lossy(notify.body()).into_owned();
    assert!(body.contains("Messages-Waiting: yes\r\n"), "{body}");
    assert!(body.contains("Message-Account: sip:alice@203.0.113.9\r\n"), "{body}");
    w.answer(Who::B, &notify, 200, "bobtag", "");
    w.expect(Who::A, "200");
    w.assert_clean();
}

#[test]
fn a_challenged_subscribe_is_answered_and_counts_on() {
    let mut w = with_credentials();
    let first = subscribe(&mut w);
    w.answer(Who::B, &first, 407, "bobtag", CHALLENGE);
    let second = w.expect(Who::B, "SUBSCRIBE");
    assert!(second.has(HeaderName::ProxyAuthorization));
    let seq = second.cseq().unwrap().number;
    assert_eq!(seq, first.cseq().unwrap().number + 1);
    w.answer(Who::B, &second, 200, "bobtag", "Expires: 60\n");
    let ok = w.expect(Who::A, "200");
    let again = a_request(&mut w, &ok, "SUBSCRIBE", 102, "Event: presence\nExpires: 60\n");
    w.says(Who::A, &again);
    let third = w.expect(Who::B, "SUBSCRIBE");
    assert_eq!(third.cseq().unwrap().number, seq + 1);
    // Refused twice: the password is wrong.
    let mut w = with_credentials();
    let first = subscribe(&mut w);
    w.answer(Who::B, &first, 407, "bobtag", CHALLENGE);
    let second = w.expect(Who::B, "SUBSCRIBE");
    w.answer(Who::B, &second, 407, "bobtag", CHALLENGE);
    w.expect(Who::A, "403");
    w.assert_clean();
}

#[test]
fn a_subscription_at_a_retired_interface_ends_with_its_running_time() {
    let mut w = World::new();
    let sub = subscribe(&mut w);
    w.answer(Who::B, &sub, 200, "bobtag", "Expires: 600\n");
    let ok = w.expect(Who::A, "200");
    let before = 1_000_000;
    assert!(w.core.interface_used(OUTSIDE, before));
    assert!(!w.core.interface_used(OUTSIDE, before - 1), "it began after the interface retired");
    // Renewed, it goes by the listeners of that time.
    w.ms(400_000);
    let again = a_request(&mut w, &ok, "SUBSCRIBE", 102, "Event: presence\nExpires: 600\n");
    w.says(Who::A, &again);
    let again = w.expect(Who::B, "SUBSCRIBE");
    w.answer(Who::B, &again, 200, "", "Expires: 600\n");
    w.expect(Who::A, "200");
    assert!(!w.core.interface_used(OUTSIDE, before));
    let before = before + 400_000;
    assert!(w.core.interface_used(OUTSIDE, before));
    let mut config = Settings::new().config(w.now);
    for listener in &mut config.interfaces[usize::from(OUTSIDE.0)].listeners {
        listener.retired = true;
    }
    w.input(crate::core::Input::Configure(std::sync::Arc::new(config)));
    // What is there goes on.
    notify(&mut w, &sub, "bobtag", 1, "active;expires=500");
    let told = w.expect(Who::A, "NOTIFY");
    w.answer(Who::A, &told, 200, "", "");
    w.expect(Who::B, "200");
    // It is not renewed: the subscriber makes a new one, by the interface that is configured.
    let again = a_request(&mut w, &ok, "SUBSCRIBE", 103, "Event: presence\nExpires: 600\n");
    w.says(Who::A, &again);
    w.expect(Who::A, "481");
    w.nothing(Who::B);
    assert!(!w.core.interface_used(OUTSIDE, before));
    notify(&mut w, &sub, "bobtag", 2, "active;expires=400");
    w.expect(Who::B, "481");
    w.assert_clean();
}
