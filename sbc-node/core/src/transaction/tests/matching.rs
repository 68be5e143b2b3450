//! RFC 3261 §17.2.3 and §8.2.2.2: what is one transaction, and what is not.

use super::harness::Bench;
use crate::net::Transport::Udp;

const INVITE: &str = "INVITE sip:b@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP host.example:5070;branch=z9hG4bKabc\r\n\
    Max-Forwards: 70\r\nFrom: <sip:a@b>;tag=f\r\nTo: <sip:b@c>\r\nCall-ID: x\r\nCSeq: 3 INVITE\r\n\
    Content-Length: 0\r\n\r\n";

/// What the second of two requests is to the first.
fn second(first: &str, second: &str) -> String {
    let mut b = Bench::new(Udp);
    b.receive(first.as_bytes());
    b.ladder();
    b.receive(second.as_bytes());
    b.ladder().join(", ")
}

#[test]
fn rfc3261_17_2_3_branch_sent_by_and_method() {
    for (from, to, expected) in [
        ("", "", ""),
        // sent-by is compared as a host name is.
        ("host.example", "HOST.example", ""),
        ("<sip:a@b>;tag=f", "\"A\" <sip:a@b>;tag=f", ""),
        ("Kabc", "KabC", "0 ! request INVITE merged"),
        ("host.example", "other.example", "0 ! request INVITE merged"),
        (":5070", ":5071", "0 ! request INVITE merged"),
        (":5070", "", "0 ! request INVITE merged"),
        ("INVITE", "OPTIONS", "0 ! request OPTIONS"),
    ] {
        assert_eq!(second(INVITE, &INVITE.replace(from, to)), expected, "{from} {to}");
    }
}

#[test]
fn rfc3261_8_2_2_2_merged_only_outside_a_dialog() {
    let other = INVITE.replace("Kabc", "Kdef");
    assert_eq!(second(INVITE, &other), "0 ! request INVITE merged");
    for (from, to) in [
        ("Call-ID: x", "Call-ID: y"),
        ("CSeq: 3", "CSeq: 4"),
        ("tag=f", "tag=g"),
        ("<sip:b@c>", "<sip:b@c>;tag=t"),
    ] {
        assert_eq!(second(INVITE, &other.replace(from, to)), "0 ! request INVITE", "{to}");
    }
}

#[test]
fn rfc3261_8_2_2_2_the_original_is_forgotten_with_its_transaction() {
    let mut b = Bench::new(Udp);
    b.receive(INVITE.as_bytes());
    let (id, message) = b.incoming();
    b.respond(&message, id, 200).expect("alive");
    b.run_dry();
    b.ladder();
    b.receive(INVITE.replace("Kabc", "Kdef").as_bytes());
    assert_eq!(b.ladder(), ["32000 ! request INVITE"]);
}

#[test]
fn rfc3261_17_2_3_rfc2543_peers_without_the_cookie() {
    let old = INVITE.replace(";branch=z9hG4bKabc", "");
    assert_eq!(second(&old, &old), "");
    for (from, to) in [
        ("sip:b@192.0.2.1", "sip:x@192.0.2.1"),
        ("tag=f", "tag=g"),
        ("Call-ID: x", "Call-ID: y"),
        ("CSeq: 3", "CSeq: 4"),
        (":5070", ":5072"),
    ] {
        let expected = match to {
            "sip:x@192.0.2.1" | ":5072" => "0 ! request INVITE merged",
            _ => "0 ! request INVITE",
        };
        assert_eq!(second(&old, &old.replace(from, to)), expected, "{to}");
    }
    let mut b = Bench::new(Udp);
    b.receive(old.as_bytes());
    let (id, message) = b.incoming();
    b.respond(&message, id, 486).expect("alive");
    b.receive(old.replace("INVITE", "ACK").replace("<sip:b@c>", "<sip:b@c>;tag=ours").as_bytes());
    b.run_to(4_000);
    assert_eq!(b.ladder(), ["0 ! request INVITE", "0 -> 486"], "the ACK ended timer G");
    b.receive(old.replace("INVITE", "CANCEL").as_bytes());
    assert_eq!(b.ladder(), ["4000 -> 200"]);
}

#[test]
fn a_message_that_cannot_be_matched_is_counted() {
    let mut b = Bench::new(Udp);
    b.receive(INVITE.replace("Via: SIP/2.0/UDP", "X-Via:").as_bytes());
    b.receive(b"SIP/2.0 200 OK\r\nCall-ID: 1\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(b.ladder(), [""; 0]);
    assert_eq!(b.layer.stats().unusable, 2);
}
