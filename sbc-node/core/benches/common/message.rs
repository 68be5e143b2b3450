//! The messages that the benchmarks of one message work on: an INVITE of 988 bytes, and what a B2BUA
//! reads of it and writes for it.

use std::net::SocketAddr;

use bytes::Bytes;
use sbc_core::sdp::{Anchoring, Sdp, StreamAnchor};
use sbc_core::sip::{Builder, HeaderName, Message, Method};

pub(crate) const SDP: &str = "v=0\r\n\
    o=- 3903840 3903840 IN IP4 203.0.113.20\r\n\
    s=call\r\n\
    c=IN IP4 203.0.113.20\r\n\
    t=0 0\r\n\
    m=audio 24680 RTP/AVP 8 0 18 101\r\n\
    a=rtpmap:8 PCMA/8000\r\n\
    a=rtpmap:0 PCMU/8000\r\n\
    a=rtpmap:18 G729/8000\r\n\
    a=fmtp:18 annexb=no\r\n\
    a=rtpmap:101 telephone-event/8000\r\n\
    a=fmtp:101 0-15\r\n\
    a=ptime:20\r\n\
    a=sendrecv\r\n";

pub(crate) fn invite() -> Bytes {
    let head = format!(
        "INVITE sip:+442071838750@sbc.example.net:5060;user=phone SIP/2.0\r\n\
         Via: SIP/2.0/UDP 203.0.113.20:5060;branch=z9hG4bK-524287-1---8f3a91c0a7e2d9b1;rport\r\n\
         Max-Forwards: 69\r\n\
         Contact: <sip:+14155550123@203.0.113.20:5060;transport=udp>\r\n\
         To: <sip:+442071838750@sbc.example.net;user=phone>\r\n\
         From: \"Alice Example\"<sip:+14155550123@carrier.example.com;user=phone>;tag=9a8b7c6d5e4f\r\n\
         Call-ID: 84723NzE5ZmY2YTk4ZTQ0YjQ2@203.0.113.20\r\n\
         CSeq: 1 INVITE\r\n\
         Allow: INVITE, ACK, CANCEL, BYE, OPTIONS, PRACK, UPDATE, INFO\r\n\
         Supported: 100rel, timer, replaces\r\n\
         P-Asserted-Identity: <sip:+14155550123@carrier.example.com>\r\n\
         User-Agent: Example Gateway 7.2\r\n\
         Session-Expires: 1800\r\n\
         Content-Type: application/sdp\r\n\
         Content-Length: {}\r\n\r\n{SDP}",
        SDP.len()
    );
    Bytes::from(head)
}

/// What routing and matching look at.
pub(crate) fn routing_headers(m: &Message) -> usize {
    let via = m.via().expect("via");
    let (from, to, cseq) = (m.from().expect("from"), m.to().expect("to"), m.cseq().expect("cseq"));
    m.branch().len()
        + via.host.len()
        + usize::from(via.port.unwrap_or(0))
        + m.from_tag().len()
        + m.to_tag().map_or(0, str::len)
        + from.uri_str.len()
        + to.uri_str.len()
        + m.call_id().expect("call-id").len()
        + cseq.method.len()
        + usize::from(m.max_forwards().expect("number").unwrap_or(70))
        + m.content_length().map_or(0, |n| usize::from(n.is_some()))
}

/// What a B2BUA writes for the B-leg.
pub(crate) fn b_leg(m: &Message, body: &[u8]) -> Bytes {
    let uri = m.request_uri().expect("uri");
    let from = m.from().expect("from");
    let from_uri = from.uri().expect("uri");
    let user = uri.user().unwrap_or("");
    let from_user = from_uri.user().unwrap_or("");
    let mut out = Builder::request(&Method::Invite, ("sip:", user, "@", "198.51.100.9:5060"));
    out.header(
        HeaderName::Via,
        (
            "SIP/2.0/UDP ",
            "198.51.100.1",
            ":",
            5060u16,
            ";rport;branch=",
            "z9hG4bK0a1b2c3d4e5f60718293a4b5",
        ),
    )
    .header(HeaderName::MaxForwards, m.max_forwards().expect("number").unwrap_or(70) - 1)
    .header(
        HeaderName::From,
        (from.display_raw, " <sip:", from_user, "@198.51.100.1>;tag=", "0f1e2d3c4b5a6978"),
    )
    .header(HeaderName::To, ("<sip:", user, "@198.51.100.9>"))
    .header(HeaderName::CallId, "0a1b2c3d4e5f60718293a4b5c6d7e8f9")
    .header(HeaderName::CSeq, (1u32, " INVITE"))
    .header(HeaderName::Contact, ("<sip:", "198.51.100.1", ":", 5060u16, ">"))
    .header(
        HeaderName::Allow,
        "INVITE, ACK, CANCEL, BYE, OPTIONS, PRACK, UPDATE, INFO, REFER, NOTIFY",
    )
    .header(HeaderName::Supported, "100rel, timer")
    .copy(m, HeaderName::PAssertedIdentity)
    .header(HeaderName::SessionExpires, (1800u32, ";refresher=uac"))
    .header(HeaderName::UserAgent, "sbc");
    out.finish_with("application/sdp", body)
}

pub(crate) fn rewrite_sdp(body: &[u8], rtp: SocketAddr, rtcp: SocketAddr) -> Bytes {
    let mut sdp = Sdp::parse(body).expect("sdp");
    let streams = [StreamAnchor::Relay { rtp, rtcp }];
    sdp.anchor(&Anchoring {
        username: "-",
        session_id: 1_234_567,
        version: 1,
        address: rtp.ip(),
        streams: &streams,
        rtcp_mux: false,
        crypto: false,
        dtls: false,
    });
    sdp.to_bytes()
}
