//! Cost of one message: parse of a 1,000-byte INVITE with what routing needs, write of the B-leg
//! INVITE, and the SDP between them. Prints the median nanoseconds of many rounds.
//!
//! `cargo bench -p sbc-core --bench message`

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use sbc_core::sdp::{Anchoring, Sdp, StreamAnchor};
use sbc_core::sip::{self, Builder, HeaderName, Limits, Message, Method};

const SDP: &str = "v=0\r\n\
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

fn invite() -> Bytes {
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
fn routing_headers(m: &Message) -> usize {
    let via = m.via().expect("via");
    let (from, to, cseq) = (m.from().expect("from"), m.to().expect("to"), m.cseq().expect("cseq"));
    via.branch().len()
        + via.host.len()
        + usize::from(via.port.unwrap_or(0))
        + from.tag().map_or(0, str::len)
        + to.tag().map_or(0, str::len)
        + m.call_id().expect("call-id").len()
        + cseq.method.len()
        + usize::from(m.max_forwards().expect("number").unwrap_or(70))
        + m.content_length().map_or(0, |n| usize::from(n.is_some()))
}

/// What a B2BUA writes for the B-leg.
fn b_leg(m: &Message, body: &[u8]) -> Bytes {
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

fn rewrite_sdp(body: &[u8], rtp: SocketAddr, rtcp: SocketAddr) -> Bytes {
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

/// Median, over rounds, of the nanoseconds of one call.
fn measure<T>(name: &str, mut work: impl FnMut() -> T) {
    const ROUNDS: usize = 401;
    const CALLS: u32 = 500;
    // `cargo bench … -- text` runs only what has the text in its name.
    if std::env::args().skip(1).any(|a| !a.starts_with('-') && !name.contains(&a)) {
        return;
    }
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            for _ in 0..CALLS {
                black_box(work());
            }
            begin.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    let at = |percent: usize| rounds.get(ROUNDS * percent / 100).copied().unwrap_or(0.0);
    println!(
        "{name:<44} median {:>7.0} ns   p10 {:>7.0} ns   p90 {:>7.0} ns",
        at(50),
        at(10),
        at(90)
    );
}

fn main() {
    let limits = Limits::default();
    let data = invite();
    let message = sip::parse(data.clone(), &limits).expect("invite");
    sip::validate(&message).expect("valid");
    let rtp: SocketAddr = "198.51.100.1:40000".parse().expect("address");
    let rtcp: SocketAddr = "198.51.100.1:40001".parse().expect("address");
    let body = rewrite_sdp(message.body(), rtp, rtcp);
    println!("INVITE of {} bytes, SDP of {} bytes", data.len(), SDP.len());
    measure("index only", || sip::parse(data.clone(), &limits));
    measure("parse with the headers that routing needs", || {
        routing_headers(&sip::parse(data.clone(), &limits).expect("invite"))
    });
    measure("parse and validate", || {
        let m = sip::parse(data.clone(), &limits).expect("invite");
        sip::validate(&m).is_ok()
    });
    measure("write the B-leg INVITE", || b_leg(&message, &body));
    measure("write a 180 response", || {
        sip::response(&message, 180, "", Some("0f1e2d3c"), Some(rtp)).finish()
    });
    measure("SDP parse", || Sdp::parse(message.body()).map(|s| s.media().len()));
    measure("SDP parse, rewrite, write", || rewrite_sdp(message.body(), rtp, rtcp));
}
