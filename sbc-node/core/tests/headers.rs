//! Every header that a B2BUA touches, through a whole message: long and compact names, any case,
//! folded, repeated, with escaped quotes, in any order.

use bytes::Bytes;
use sbc_core::digest::{Challenge, Credentials};
use sbc_core::sip::value::{
    ContentType, Date, DialogRef, Disposition, Event, MinSe, Privacy, RAck, Reason, Refresher,
    RetryAfter, SessionExpires, SubscriptionState, Timestamp, Warning,
};
use sbc_core::sip::{self, HeaderName as H, Limits, Message, NameAddr, Via};

/// A message with what every request has, and `lines` between.
fn message(lines: &str) -> Message {
    let text = format!(
        "INVITE sip:bob@example.com SIP/2.0\n{lines}\nCall-ID: c1@h\nCSeq: 7 INVITE\n\
         To: <sip:bob@example.com>\nFrom: <sip:a@example.com>;tag=f\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1\n\n"
    );
    let data = Bytes::from(text.replace('\n', "\r\n"));
    sip::parse(data, &Limits::default()).unwrap_or_else(|e| panic!("{lines}: {e}"))
}

/// The one value of a header, however its line is written.
fn one<T>(names: &[&str], id: H, value: &str, read: impl Fn(&Message) -> T) -> T
where
    T: PartialEq + std::fmt::Debug,
{
    let mut all = Vec::new();
    for name in names {
        for form in [
            format!("{name}: {value}"),
            format!("{}:{value}", name.to_ascii_uppercase()),
            format!("{} \t:\n \t {value}  ", name.to_ascii_lowercase()),
        ] {
            let m = message(&form);
            assert!(m.has(id), "{form}");
            assert_eq!(m.header(id).map(str::trim), Some(value), "{form}");
            all.push(read(&m));
        }
    }
    let first = all.remove(0);
    assert!(all.iter().all(|v| *v == first), "{all:?}");
    first
}

/// URIs of a list of addresses that stand in one line and in several.
fn addresses(names: &[&str], id: H) {
    let (a, b) = ("\"A, \\\"B\" <sip:a@h;lr>;x=\"1,2\"", "<sips:b@[2001:db8::1]:5061>");
    for name in names {
        for lines in [format!("{name}: {a} ,{b}"), format!("{name}: {a}\nX: y\n{name}: {b}")] {
            let m = message(&lines);
            let all: Vec<NameAddr<'_>> = m.all(id).collect::<Result<_, _>>().expect(&lines);
            let uris: Vec<&str> = all.iter().map(|a| a.uri_str).collect();
            assert_eq!(uris, ["sip:a@h;lr", "sips:b@[2001:db8::1]:5061"], "{lines}");
            assert_eq!(&*all[0].display_name(), "A, \"B");
            assert_eq!(all[0].params.get("x"), Some("\"1,2\""));
        }
    }
}

fn tokens(names: &[&str], id: H) {
    for name in names {
        for lines in
            [format!("{name}: one , two,,three"), format!("{name}: one\n{name}: two, three")]
        {
            let m = message(&lines);
            assert_eq!(m.values(id).collect::<Vec<_>>(), ["one", "two", "three"], "{lines}");
            assert!(m.lists(id, "TWO") && !m.lists(id, "four"), "{lines}");
        }
    }
}

#[test]
fn via() {
    let lines = "v: SIP/2.0/TCP [2001:db8::9]:5070;branch=z9hG4bK9;rport , SIP / 2.0 / UDP h;\n received=192.0.2.9";
    let m = message(lines);
    let vias: Vec<Via<'_>> = m.all(H::Via).collect::<Result<_, _>>().expect("vias");
    let seen: Vec<_> = vias.iter().map(|v| (v.transport, v.host, v.port)).collect();
    let last = ("UDP", "192.0.2.1", None);
    assert_eq!(seen, [("TCP", "[2001:db8::9]", Some(5070)), ("UDP", "h", None), last]);
    assert!(vias[0].wants_rport() && vias[0].branch() == "z9hG4bK9");
    assert_eq!(vias[1].received(), "192.0.2.9".parse().ok());
}

#[test]
fn from_and_to() {
    let text = "SIP/2.0 200 OK\r\nf: A. B. <sip:a@h>;tag=1\r\nt\r\n :\"T \\\\\" <tel:+1-2>;tag=2\r\n\
                i: c\r\nCSeq: 1 BYE\r\nv: SIP/2.0/UDP h;branch=z9hG4bK1\r\n\r\n";
    // A name may not be cut off from its colon by a fold.
    assert!(sip::parse(Bytes::from_static(text.as_bytes()), &Limits::default()).is_err());
    let text = text.replace("t\r\n :", "t\t:");
    let m = sip::parse(Bytes::from(text), &Limits::default()).expect("message");
    assert_eq!((m.from_tag(), m.to_tag(), m.call_id()), ("1", Some("2"), Ok("c")));
    assert_eq!(&*m.to().expect("to").display_name(), "T \\");
    assert_eq!(m.to().expect("to").uri_str, "tel:+1-2");
}

#[test]
fn contact_route_record_route_path_service_route() {
    addresses(&["Contact", "m"], H::Contact);
    addresses(&["Route"], H::Route);
    addresses(&["Record-Route"], H::RecordRoute);
    addresses(&["Path"], H::Path);
    addresses(&["Service-Route"], H::ServiceRoute);
}

#[test]
fn cseq_and_call_id() {
    let m = message("X: y");
    let cseq = m.cseq().expect("cseq");
    assert_eq!((cseq.number, cseq.method, m.call_id()), (7, "INVITE", Ok("c1@h")));
}

#[test]
fn max_forwards_and_expires() {
    assert_eq!(one(&["Max-Forwards"], H::MaxForwards, "0069", |m| m.max_forwards()), Ok(Some(69)));
    assert_eq!(one(&["Expires"], H::Expires, "3600", |m| m.number(H::Expires)), Ok(Some(3600)));
    assert_eq!(message("X: y").max_forwards(), Ok(None));
    assert!(message("Expires: 4294967296").number(H::Expires).is_err());
}

#[test]
fn allow_supported_require_proxy_require_unsupported() {
    tokens(&["Allow"], H::Allow);
    tokens(&["Supported", "k"], H::Supported);
    tokens(&["Require"], H::Require);
    tokens(&["Proxy-Require"], H::ProxyRequire);
    tokens(&["Unsupported"], H::Unsupported);
}

#[test]
fn rack_and_rseq() {
    let read = |m: &Message| {
        let rack = m.first::<RAck<'_>>(H::RAck).expect("rack").expect("one");
        (rack.rseq, rack.cseq.number, rack.cseq.method.to_owned())
    };
    assert_eq!(one(&["RAck"], H::RAck, "776656 1 INVITE", read), (776_656, 1, "INVITE".into()));
    assert_eq!(one(&["RSeq"], H::RSeq, "988789", |m| m.number(H::RSeq)), Ok(Some(988_789)));
}

#[test]
fn session_expires_and_min_se() {
    let read = |m: &Message| m.first::<SessionExpires>(H::SessionExpires).expect("x").expect("one");
    let found = one(&["Session-Expires", "x"], H::SessionExpires, "1800 ;refresher=UAS", read);
    assert_eq!((found.interval_s, found.refresher), (1800, Some(Refresher::Uas)));
    let read = |m: &Message| m.first::<MinSe>(H::MinSe).expect("min").expect("one");
    assert_eq!(one(&["Min-SE"], H::MinSe, "90;x=y", read), MinSe(90));
}

#[test]
fn refer_to_referred_by_replaces() {
    let uri = |id| {
        move |m: &Message| m.first::<NameAddr<'_>>(id).expect("x").expect("one").uri_str.to_owned()
    };
    let value = "<sip:c@h?Replaces=1%3Bto-tag%3D2%3Bfrom-tag%3D3>";
    let inner = &value[1..value.len() - 1];
    assert_eq!(one(&["Refer-To", "r"], H::ReferTo, value, uri(H::ReferTo)), inner);
    let value = "\"A\" <sip:a@h>;cid=\"1@h\"";
    assert_eq!(one(&["Referred-By", "b"], H::ReferredBy, value, uri(H::ReferredBy)), "sip:a@h");
    let read = |m: &Message| {
        let r = m.first::<DialogRef<'_>>(H::Replaces).expect("x").expect("one");
        (r.call_id.to_owned(), r.to_tag.to_owned(), r.from_tag.to_owned(), r.early_only)
    };
    let found = one(&["Replaces"], H::Replaces, "a@h ;from-tag=f;to-tag=t;early-only", read);
    assert_eq!(found, ("a@h".into(), "t".into(), "f".into(), true));
}

#[test]
fn identities_and_privacy() {
    addresses(&["P-Asserted-Identity"], H::PAssertedIdentity);
    addresses(&["P-Preferred-Identity"], H::PPreferredIdentity);
    addresses(&["Remote-Party-ID"], H::RemotePartyId);
    let read = |m: &Message| {
        let p = m.first::<Privacy<'_>>(H::Privacy).expect("x").expect("one");
        (p.has("id"), p.has("user"), p.values().count())
    };
    assert_eq!(one(&["Privacy"], H::Privacy, "id ;critical", read), (true, false, 2));
}

#[test]
fn diversion_and_history_info() {
    addresses(&["Diversion"], H::Diversion);
    addresses(&["History-Info"], H::HistoryInfo);
    let m =
        message("History-Info: <sip:a@h?Reason=SIP%3Bcause%3D302>;index=1, <sip:b@h>;index=1.1");
    let index: Vec<_> = m
        .all::<NameAddr<'_>>(H::HistoryInfo)
        .map(|a| a.expect("address").params.get("index").expect("index").to_owned())
        .collect();
    assert_eq!(index, ["1", "1.1"]);
}

#[test]
fn reason_warning_retry_after() {
    let m = message("Reason: SIP;cause=200;text=\"a, \\\"b\\\"\", Q.850;cause=16\nReason: x");
    let all: Vec<Reason<'_>> = m.all(H::Reason).collect::<Result<_, _>>().expect("reasons");
    let seen: Vec<_> = all.iter().map(|r| (r.protocol, r.cause)).collect();
    assert_eq!(seen, [("SIP", Some(200)), ("Q.850", Some(16)), ("x", None)]);
    assert_eq!(all[0].text(), "a, \"b\"");
    let m = message("Warning: 307 isi.edu \"no, not\", 301 [2001:db8::1]:5060 \"x\"");
    let all: Vec<Warning<'_>> = m.all(H::Warning).collect::<Result<_, _>>().expect("warnings");
    let seen: Vec<_> = all.iter().map(|w| (w.code, w.agent, w.text().into_owned())).collect();
    let second = (301, "[2001:db8::1]:5060", "x".to_owned());
    assert_eq!(seen, [(307, "isi.edu", "no, not".to_owned()), second]);
    let read = |m: &Message| m.first::<RetryAfter>(H::RetryAfter).expect("x").expect("one");
    let found = one(&["Retry-After"], H::RetryAfter, "120 (a (nested) comment) ;duration=60", read);
    assert_eq!((found.delay_s, found.duration_s), (120, Some(60)));
}

#[test]
fn the_authorization_family() {
    let value = "Digest username=\"a\\\"b\", realm=\"r, s\", nonce=\"n\", uri=\"sip:h\", \
                 response=\"00000000000000000000000000000000\", algorithm=MD5";
    for (name, id) in
        [("Authorization", H::Authorization), ("Proxy-Authorization", H::ProxyAuthorization)]
    {
        let m = message(&format!("{name}: {value}\n{name}: Other x=\"y\", z=1"));
        let all: Vec<&str> = m.values(id).collect();
        assert_eq!(all, [value, "Other x=\"y\", z=1"], "its commas cut nothing");
        let credentials = Credentials::parse(all[0]).expect("credentials");
        assert_eq!((credentials.realm, credentials.nonce), ("r, s", "n"));
    }
    let value = "Digest realm=\"r, s\", nonce=\"n\", qop=\"auth,auth-int\", stale=TRUE";
    for (name, id) in
        [("WWW-Authenticate", H::WwwAuthenticate), ("Proxy-Authenticate", H::ProxyAuthenticate)]
    {
        let m = message(&format!("{name}: {value}"));
        let challenge = Challenge::parse(m.values(id).next().expect("one")).expect("challenge");
        assert!(challenge.auth && challenge.auth_int && challenge.stale);
        assert_eq!(challenge.realm, "r, s");
    }
    let value = "nextnonce=\"n\", qop=auth";
    let read = |m: &Message| m.header(H::AuthenticationInfo).map(|v| v.trim().to_owned());
    let found = one(&["Authentication-Info"], H::AuthenticationInfo, value, read);
    assert_eq!(found.as_deref(), Some(value));
}

#[test]
fn the_content_family() {
    let read = |m: &Message| {
        let kind = m.first::<ContentType<'_>>(H::ContentType).expect("x").expect("one");
        (kind.is_multipart(), kind.params.get("boundary").map(str::to_owned))
    };
    let value = "Multipart/Mixed ;boundary=\"a b\"";
    let found = one(&["Content-Type", "c"], H::ContentType, value, read);
    assert_eq!(found, (true, Some("\"a b\"".into())));
    let read = |m: &Message| m.content_length();
    assert_eq!(one(&["Content-Length", "l"], H::ContentLength, "0000", read), Ok(Some(0)));
    let read = |m: &Message| {
        let value = m.first::<Disposition<'_>>(H::ContentDisposition).expect("x").expect("one");
        (value.kind.to_owned(), value.optional)
    };
    let names = ["Content-Disposition"];
    let found = one(&names, H::ContentDisposition, "session;handling=optional", read);
    assert_eq!(found, ("session".into(), true));
    tokens(&["Content-Encoding", "e"], H::ContentEncoding);
    tokens(&["Content-Language"], H::ContentLanguage);
}

#[test]
fn event_and_subscription_state() {
    let read = |m: &Message| {
        let event = m.first::<Event<'_>>(H::Event).expect("x").expect("one");
        (event.package.to_owned(), event.id().map(str::to_owned))
    };
    let found = one(&["Event", "o"], H::Event, "refer ;id=93809824", read);
    assert_eq!(found, ("refer".into(), Some("93809824".into())));
    let read = |m: &Message| {
        let state =
            m.first::<SubscriptionState<'_>>(H::SubscriptionState).expect("x").expect("one");
        (state.is_terminated(), state.reason.map(str::to_owned), state.retry_after_s)
    };
    let value = "Terminated;reason=probation;retry-after=30";
    let found = one(&["Subscription-State"], H::SubscriptionState, value, read);
    assert_eq!(found, (true, Some("probation".into()), Some(30)));
}

#[test]
fn user_agent_server_date_timestamp() {
    for (name, id) in [("User-Agent", H::UserAgent), ("Server", H::Server)] {
        let value = "Phone/1.0 (beta, \"x\")";
        let read = |m: &Message| m.header(id).map(|v| v.trim().to_owned());
        assert_eq!(one(&[name], id, value, read).as_deref(), Some(value));
    }
    let read = |m: &Message| m.first::<Date>(H::Date).expect("x").expect("one");
    let found = one(&["Date"], H::Date, "Sat, 13 Nov 2010 23:29:00 GMT", read);
    assert_eq!(found, Date(1_289_690_940));
    let read = |m: &Message| {
        let t = m.first::<Timestamp<'_>>(H::Timestamp).expect("x").expect("one");
        (t.value.to_owned(), t.delay.map(str::to_owned))
    };
    let found = one(&["Timestamp"], H::Timestamp, "54.5 0.2", read);
    assert_eq!(found, ("54.5".into(), Some("0.2".into())));
}

#[test]
fn order_and_repetition_change_nothing() {
    let lines = ["k: a", "Contact: <sip:1@h>", "X-Own: 1", "K: b", "m: <sip:2@h>", "x-own: 2"];
    let orders: [[usize; 6]; 3] = [[0, 1, 2, 3, 4, 5], [2, 0, 1, 5, 3, 4], [1, 4, 0, 2, 3, 5]];
    for order in orders {
        let m = message(&order.map(|i| lines[i]).join("\n"));
        assert_eq!(m.values(H::Supported).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(m.values(H::Contact).collect::<Vec<_>>(), ["<sip:1@h>", "<sip:2@h>"]);
        assert_eq!(m.other("X-OWN"), Some("1"));
    }
}
