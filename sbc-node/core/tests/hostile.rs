//! Hostile messages by attack class: header smuggling, injection, doubles, oversize, bad numbers.

use std::net::SocketAddr;

use bytes::Bytes;
use sbc_core::sip::{self, HeaderName, Limits, ParseErrorKind};

const HEAD: &str = "INVITE sip:bob@example.com SIP/2.0\r\n\
    Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1;rport\r\nMax-Forwards: 70\r\n\
    From: <sip:a@example.com>;tag=1\r\nTo: <sip:bob@example.com>\r\n\
    Call-ID: c1\r\nCSeq: 1 INVITE\r\n";

fn source() -> SocketAddr {
    "198.51.100.7:5070".parse().expect("address")
}

/// The status that a message gets, `None` when it is accepted.
fn status(text: impl Into<Vec<u8>>) -> Option<u16> {
    let data = Bytes::from(text.into());
    let limits = Limits::default();
    match sip::parse(data.clone(), &limits) {
        Err(error) => {
            let answer =
                sip::malformed_response(data, &error, &limits, source()).expect("answerable");
            let answer = sip::parse(answer, &limits).expect("well-formed");
            assert_eq!(answer.status(), Some(error.kind.status()));
            answer.status()
        }
        Ok(message) => sip::validate(&message).err().map(|reject| reject.status),
    }
}

#[test]
fn what_stands_twice_or_is_malformed_gets_400() {
    for extra in [
        "To: <sip:eve@example.com>\r\n",
        "t: <sip:eve@example.com>\r\n",
        "f : <sip:eve@example.com>;tag=2\r\n",
        "CALL-ID: c2\r\n",
        "CSeq: 2 INVITE\r\n",
        "Max-Forwards\t: 3\r\n",
        "Content-Type: a/b\r\nc: application/sdp\r\n",
        "Content-Length: 0\r\nl: 5\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Content-Length: 10\r\n",
        "Contact: <sip:a@h>, \"x\r\n",
        "Contact: <sip:a@h:99999>\r\n",
        "Route: <sip:x\r\n",
        "Record-Route: nonsense\r\n",
        "Via: nonsense\r\n",
        "Via: SIP/2.0/UDP h;received=\"\r\n",
        "Expires: soon\r\n",
        "No colon here\r\n",
        ": no name\r\n",
        "Bad name: x\r\n",
        "X-A: a\rb\r\n",
        "X-A: a\0b\r\n",
        "X-A: a\\\0b\r\n",
    ] {
        assert_eq!(status(format!("{HEAD}{extra}\r\n")), Some(400), "{extra:?}");
    }
    assert_eq!(status(format!("{HEAD}\r\n")), None);
    assert_eq!(status(format!("{HEAD}Content-Length: 0\r\nl: 0000\r\n\r\n")), None);
}

#[test]
fn what_is_missing_or_out_of_range_gets_400() {
    for (from, to) in [
        ("Call-ID: c1\r\n", ""),
        ("CSeq: 1 INVITE\r\n", ""),
        ("From: <sip:a@example.com>;tag=1\r\n", ""),
        ("To: <sip:bob@example.com>\r\n", ""),
        ("CSeq: 1 ", "CSeq: 2147483648 "),
        ("CSeq: 1 ", "CSeq: 1x "),
        ("CSeq: 1 INVITE", "CSeq: 1 BYE"),
        ("Max-Forwards: 70", "Max-Forwards: 256"),
        ("Max-Forwards: 70", "Max-Forwards: -1"),
        ("Call-ID: c1", "Call-ID: c 1"),
        ("Call-ID: c1", "Call-ID:"),
        ("INVITE sip:bob@example.com", "INVITE sip:bob@"),
        ("INVITE sip:bob@example.com", "INVITE  sip:bob@example.com"),
        ("INVITE sip:bob@example.com", "INVITE <sip:bob@example.com>"),
        ("INVITE sip:bob@example.com", "INVITE sip:bob@exam\u{e9}ple.com"),
        ("INVITE sip:bob@example.com", "INVITE sip:b%4@example.com"),
    ] {
        assert_eq!(status(format!("{HEAD}\r\n").replace(from, to)), Some(400), "{from} -> {to}");
    }
    assert_eq!(
        status(format!("{HEAD}\r\n").replace(" SIP/2.0\r\nVia", " SIP/3.0\r\nVia")),
        Some(505)
    );
    assert_eq!(
        status(format!("{HEAD}\r\n").replace("INVITE sip:bob", "INVITE http://bob")),
        Some(416)
    );
    // No Via, nothing to answer by.
    let data = Bytes::from_static(b"INVITE sip:a SIP/2.0\r\nno header\r\n\r\n");
    let error = sip::parse(data.clone(), &Limits::default()).expect_err("bad line");
    assert_eq!(sip::malformed_response(data, &error, &Limits::default(), source()), None);
}

#[test]
fn what_is_too_large_gets_513() {
    let many = "X: y\r\n".repeat(300);
    assert_eq!(status(format!("{HEAD}{many}\r\n")), Some(513));
    let long = format!("X: {}\r\n", "y".repeat(40_000));
    assert_eq!(status(format!("{HEAD}{long}\r\n")), Some(513));
    let body = "z".repeat(70_000);
    assert_eq!(status(format!("{HEAD}Content-Length: 70000\r\n\r\n{body}")), Some(513));
}

#[test]
fn an_ack_is_never_answered_and_a_response_neither() {
    for start in ["ACK sip:bob@example.com SIP/2.0", "SIP/2.0 200 OK"] {
        let text =
            format!("{HEAD}broken\r\n\r\n").replace("INVITE sip:bob@example.com SIP/2.0", start);
        let data = Bytes::from(text);
        let error = sip::parse(data.clone(), &Limits::default()).expect_err("bad line");
        assert_eq!(error.kind, ParseErrorKind::BadHeaderLine);
        assert_eq!(sip::malformed_response(data, &error, &Limits::default(), source()), None);
    }
}

#[test]
fn folded_headers_hide_nothing() {
    let m = sip::parse(
        Bytes::from(format!(
            "{HEAD}Subject: a\r\n\tP-Asserted-Identity: <sip:eve@x>\r\nX-B: c\n d\r\n\r\n"
        )),
        &Limits::default(),
    )
    .expect("message");
    assert!(!m.has(HeaderName::PAssertedIdentity));
    assert_eq!(
        m.header(HeaderName::Subject),
        Some("a   P-Asserted-Identity: <sip:eve@x>".replace("   ", "  \t").as_str())
    );
    assert_eq!(m.other("x-b"), Some("c  d"));
}

#[test]
fn latin1_heads_are_read_and_answered() {
    let mut data = format!("{HEAD}Subject: caf").into_bytes();
    data.extend_from_slice(b"\xe9\r\nl: 1\r\n\r\n\xe9");
    let m = sip::parse(Bytes::from(data), &Limits::default()).expect("message");
    assert_eq!(m.header(HeaderName::Subject), Some("caf\u{e9}"));
    assert_eq!(m.body(), b"\xe9");
    assert_eq!(sip::validate(&m), Ok(()));
}

#[test]
fn rfc3581_responses_go_where_the_request_came_from() {
    let m = sip::parse(Bytes::from(format!("{HEAD}\r\n")), &Limits::default()).expect("message");
    let out = sip::response(&m, 486, "", Some("tt"), Some(source())).finish();
    assert_eq!(
        std::str::from_utf8(&out),
        Ok("SIP/2.0 486 Busy Here\r\n\
            Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1;received=198.51.100.7;rport=5070\r\n\
            From: <sip:a@example.com>;tag=1\r\nTo: <sip:bob@example.com>;tag=tt\r\n\
            Call-ID: c1\r\nCSeq: 1 INVITE\r\nContent-Length: 0\r\n\r\n")
    );
}
