//! SIPS end to end (RFC 5630): what is for a `sips:` URI comes and goes over TLS or not at all.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::basic::{SDP_A, SDP_B, sdp};
use super::users;
use super::world::*;
use crate::core::Input;
use crate::net::{ConnId, Flow, Transport};
use crate::registrar::RegistrarPolicy;
use crate::routing::Peer;
use crate::sip::{HeaderName, Message};

fn peer(who: Who, transport: Option<Transport>, port: Option<u16>) -> Peer {
    Peer { host: who.addr().ip().to_string().into(), port, transport }
}

/// A carrier in the clear, then one over TLS.
fn settings() -> Settings {
    let mut settings = Settings::new();
    settings.tls = true;
    settings.one.peers = vec![peer(Who::B, Some(Transport::Udp), Some(5060))];
    settings.two.peers = vec![peer(Who::C, Some(Transport::Tls), None)];
    settings
}

/// A connection of a peer.
fn by_tls(who: Who) -> Flow {
    let flow = who.flow();
    Flow {
        transport: Transport::Tls,
        local: SocketAddr::new(flow.local.ip(), 5061),
        remote: SocketAddr::new(flow.remote.ip(), 40_000),
        conn: Some(ConnId(7)),
        ..flow
    }
}

fn says(w: &mut World, flow: Flow, text: &str) {
    let text = match flow.transport {
        Transport::Tls => text.replace("SIP/2.0/UDP", "SIP/2.0/TLS"),
        _ => text.to_owned(),
    };
    w.input(Input::Message { flow, data: Bytes::from(wire_form(&text)) });
}

fn request(w: &mut World, method: &str, uri: &str, seq: u32, to: &str, rest: &str) -> String {
    let branch = w.branch();
    format!(
        "{method} {uri} SIP/2.0
Via: SIP/2.0/UDP 10.0.0.1:5060;branch={branch};rport
Max-Forwards: 70
From: <sip:+4989555@example.com>;tag=alicetag
To: {to}
Call-ID: sips-call@10.0.0.1
CSeq: {seq} {method}
Contact: <sips:alice@10.0.0.1:5061>
{rest}"
    )
}

fn invite(w: &mut World, uri: &str) -> String {
    request(w, "INVITE", uri, 1, &format!("<{uri}>"), &sdp(SDP_A))
}

fn contact(message: &Message) -> &str {
    message.contact().unwrap().unwrap().uri_str
}

const NOT_ALLOWED: &str = "380 10.0.0.9 \"SIPS Not Allowed\"";

#[test]
fn rfc5630_a_sips_call_goes_on_over_tls_or_not_at_all() {
    let mut w = settings().begin();
    let text = invite(&mut w, "sips:+4930123@10.0.0.9");
    says(&mut w, by_tls(Who::A), &text);
    w.nothing(Who::B);
    let invite = w.expect(Who::C, "INVITE");
    assert_eq!(invite.request_uri_str(), "sips:+4930123@192.0.2.2");
    assert_eq!(invite.to().unwrap().uri_str, "sips:+4930123@192.0.2.2");
    assert_eq!(contact(&invite), "sips:203.0.113.9:5061");
    // RFC 3261 §12.2.1.1: what is said in the clear inside the dialog is no way out of TLS.
    let clear = format!("Contact: <sip:c@192.0.2.2:5060;transport=udp>\n{}", sdp(SDP_B));
    let ok = response_text(Who::C, &invite, 200, "ctag", &clear);
    says(&mut w, by_tls(Who::C), &ok);
    let ok = w.expect(Who::A, "200");
    assert_eq!(contact(&ok), "sips:10.0.0.9:5061");
    let to = ok.header(HeaderName::To).unwrap().to_owned();
    let ack = request(&mut w, "ACK", "sips:10.0.0.9:5061", 1, &to, "");
    says(&mut w, by_tls(Who::A), &ack);
    w.expect(Who::C, "ACK");
    assert!(w.records.last().is_some_and(|r| r.a.secure && r.b.secure), "for the next node");
    // Inside the dialog neither.
    let bye = request(&mut w, "BYE", "sips:10.0.0.9:5061", 2, &to, "");
    says(&mut w, Who::A.flow(), &bye);
    let refused = w.expect(Who::A, "480");
    assert_eq!(refused.header(HeaderName::Warning), Some(NOT_ALLOWED));
    w.nothing(Who::C);
    w.sent_by.retain(|(who, _)| *who != Who::A);
    let bye = request(&mut w, "BYE", "sips:10.0.0.9:5061", 3, &to, "");
    says(&mut w, by_tls(Who::A), &bye);
    w.expect(Who::C, "BYE");
    assert!(w.sent_by.iter().all(|(_, t)| *t == Transport::Tls), "{:?}", w.sent_by);
}

#[test]
fn rfc5630_without_tls_a_sips_call_is_480_with_a_warning() {
    // A trunk in the clear alone; and a request that itself came in the clear.
    for (flow, two) in [(by_tls(Who::A), false), (Who::A.flow(), true)] {
        let mut settings = settings();
        settings.two.enabled = two;
        let mut w = settings.begin();
        for method in ["INVITE", "MESSAGE"] {
            let uri = "sips:+4930123@10.0.0.9";
            let body = if method == "INVITE" { sdp(SDP_A) } else { String::new() };
            let text = request(&mut w, method, uri, 1, &format!("<{uri}>"), &body);
            says(&mut w, flow, &text.replace("sips-call", method));
            let answers = w.all(Who::A);
            let last = answers.last().unwrap();
            assert_eq!(last.status(), Some(480), "{method}");
            assert_eq!(last.header(HeaderName::Warning), Some(NOT_ALLOWED), "{method}");
            w.nothing(Who::B);
            w.nothing(Who::C);
        }
    }
}

/// Bob is a user, Alice calls from the PBX.
fn with_users() -> Settings {
    let mut settings = users::settings(false);
    settings.tls = true;
    settings.two.enabled = false;
    settings
}

fn register(w: &mut World, flow: Flow, seq: u32, contact: &str) {
    let branch = w.branch();
    let scheme = contact.split(':').next().unwrap();
    let text = format!(
        "REGISTER {scheme}:example.com SIP/2.0
Via: SIP/2.0/UDP 192.0.2.1:5060;branch={branch};rport
Max-Forwards: 70
From: <{scheme}:bob@example.com>;tag=r
To: <{scheme}:bob@example.com>
Call-ID: reg-sips
CSeq: {seq} REGISTER
Contact: <{contact}>
"
    );
    says(w, flow, &text);
}

#[test]
fn rfc5630_a_sips_contact_registers_over_tls_and_is_called_there() {
    let mut w = with_users().begin();
    register(&mut w, Who::B.flow(), 1, "sips:bob@192.0.2.1:5061");
    let refused = w.expect(Who::B, "480");
    assert_eq!(refused.header(HeaderName::Warning), Some("380 203.0.113.9 \"SIPS Not Allowed\""));
    register(&mut w, by_tls(Who::B), 2, "sips:bob@192.0.2.1:5061");
    let ok = w.expect(Who::B, "200");
    assert_eq!(ok.header(HeaderName::Contact), Some("<sips:bob@192.0.2.1:5061>;expires=3600"));
    w.sent_by.clear();
    // For a sips URI, and for a sip URI as well: the phone's side is TLS in either case.
    for (n, scheme) in ["sips", "sip"].into_iter().enumerate() {
        let text = invite(&mut w, &format!("{scheme}:+4930123@10.0.0.9"));
        let text = text.replace("sips-call", &format!("call-{n}"));
        let flow = if scheme == "sips" { by_tls(Who::A) } else { Who::A.flow() };
        says(&mut w, flow, &text);
        let invite = w.expect(Who::B, "INVITE");
        // A scheme is not changed on the way (RFC 5630 §5.3).
        assert_eq!(invite.request_uri_str(), format!("{scheme}:bob@192.0.2.1:5061"));
        let ours = match scheme {
            "sips" => "sips:203.0.113.9:5061",
            _ => "sip:203.0.113.9:5061;transport=tls",
        };
        assert_eq!(contact(&invite), ours);
        let to_bob: Vec<Transport> =
            w.sent_by.iter().filter(|(who, _)| *who == Who::B).map(|(_, t)| *t).collect();
        assert!(!to_bob.is_empty() && to_bob.iter().all(|t| *t == Transport::Tls), "{to_bob:?}");
        let busy = response_text(Who::B, &invite, 486, "b", "");
        says(&mut w, by_tls(Who::B), &busy);
        w.expect(Who::B, "ACK");
        w.expect(Who::A, "486");
    }
}

#[test]
fn rfc5630_a_contact_in_the_clear_is_not_given_a_sips_call() {
    for flow in [Who::B.flow(), by_tls(Who::B)] {
        let mut w = with_users().begin();
        // Over TLS too: what registers as sip may hand on in the clear.
        register(&mut w, flow, 1, "sip:bob@192.0.2.1:5060");
        w.expect(Who::B, "200");
        let text = invite(&mut w, "sips:+4930123@10.0.0.9");
        says(&mut w, by_tls(Who::A), &text);
        let refused = w.expect(Who::A, "480");
        assert_eq!(refused.header(HeaderName::Warning), Some(NOT_ALLOWED));
        w.nothing(Who::B);
    }
    // Nobody there at all is a plain 480.
    let mut w = with_users().begin();
    let text = invite(&mut w, "sips:+4930123@10.0.0.9");
    says(&mut w, by_tls(Who::A), &text);
    assert_eq!(w.expect(Who::A, "480").header(HeaderName::Warning), None);
}

#[test]
fn rfc3261_26_2_2_a_sips_uri_with_an_address_is_tls_as_well() {
    let mut settings = with_users();
    let registrar = settings.registrar.as_mut().unwrap();
    let policy = RegistrarPolicy { keepalive: None, ..(*registrar.policy).clone() };
    registrar.policy = Arc::new(policy);
    let mut w = settings.begin();
    // By way of a proxy that says sips.
    let branch = w.branch();
    let text = format!(
        "REGISTER sips:example.com SIP/2.0
Via: SIP/2.0/UDP 192.0.2.1:5060;branch={branch};rport
Max-Forwards: 70
From: <sips:bob@example.com>;tag=r
To: <sips:bob@example.com>
Call-ID: reg-path
CSeq: 1 REGISTER
Supported: path
Path: <sips:192.0.2.1;lr>
Contact: <sips:bob@192.0.2.77>
"
    );
    // All of it must be sips (RFC 5630 §5.2).
    for (what, with) in [("Path: <sips:", "Path: <sip:"), ("REGISTER sips:", "REGISTER sip:")] {
        says(&mut w, by_tls(Who::B), &text.replace(what, with).replace("reg-path", what));
        w.expect(Who::B, "400");
    }
    says(&mut w, by_tls(Who::B), &text);
    w.expect(Who::B, "200");
    w.sent_by.clear();
    let text = invite(&mut w, "sips:+4930123@10.0.0.9");
    says(&mut w, by_tls(Who::A), &text);
    let invite = w.expect(Who::B, "INVITE");
    assert_eq!(invite.request_uri_str(), "sips:bob@192.0.2.77");
    assert!(w.sent_by.iter().all(|(_, t)| *t == Transport::Tls), "{:?}", w.sent_by);
}
