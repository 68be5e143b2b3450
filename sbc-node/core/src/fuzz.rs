//! Entry points for fuzzing the parsers: feed bytes, panic where a property does not hold.
//!
//! Called by `tests/fuzz.rs` (a corpus and seeded mutations, on stable) and by the libFuzzer
//! targets in `sbc-node/fuzz`. Not for use by the product.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::digest::{Challenge, Credentials};
use crate::sdp::{Anchoring, CodecPolicy, Sdp, StreamAnchor};
use crate::sip::value::{
    Contact, ContentType, Date, DialogRef, Disposition, Event, FromValue, MinSe, Privacy, RAck,
    Reason, RetryAfter, SessionExpires, SubscriptionState, Timestamp, Warning,
};
use crate::sip::{
    self, Builder, Frame, Framer, HeaderName, Limits, Message, StartLine, Uri, UriRef, Via,
};
use crate::stun;

fn source() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 5060))
}

/// A datagram: whatever parses is written back to the same meaning; whatever is answered gets a
/// well-formed response.
pub fn fuzz_datagram(data: &[u8]) {
    let limits = Limits::default();
    let data = Bytes::copy_from_slice(data);
    match sip::parse(data.clone(), &limits) {
        Err(error) => {
            assert!(error.offset <= data.len());
            if let Some(answer) = sip::malformed_response(data, &error, &limits, source()) {
                let answer = sip::parse(answer, &limits).expect("an answer of ours parses");
                assert_eq!(answer.status(), Some(error.kind.status()));
            }
        }
        Ok(message) => {
            look_at_everything(&message);
            written_back(&message);
            if sip::validate(&message).is_ok() && message.is_request() {
                let out = sip::response(&message, 200, "", Some("tag"), Some(source())).finish();
                let answer = sip::parse(out, &limits).expect("an answer of ours parses");
                assert_eq!(sip::validate(&answer), Ok(()));
                let call_id = |m: &Message| m.call_id().ok().map(blanked);
                assert_eq!(call_id(&answer), call_id(&message));
                let branch = |m: &Message| m.via().ok().map(|v| blanked(v.branch()));
                assert_eq!(branch(&answer), branch(&message));
                assert_eq!(answer.cseq(), message.cseq());
                for derived in
                    [sip::ack_for_failure(&message, &answer), sip::cancel_for(&message, None)]
                {
                    let derived = sip::parse(derived, &limits).expect("a request of ours parses");
                    assert_eq!(call_id(&derived), call_id(&message));
                }
            }
        }
    }
}

/// STUN: what is answered gets a response to this very request, at most three times as long; what
/// counts as a response is whole.
pub fn fuzz_stun(data: &[u8]) {
    if let Some(reply) = stun::answer(data, source()) {
        let answer = reply.into_bytes();
        assert!(stun::is_stun(data) && !stun::is_response(data));
        assert!(answer.len() <= 3 * data.len(), "{} for {}", answer.len(), data.len());
        let id = stun::response(&answer).expect("an answer of ours is a response");
        assert_eq!(data.get(8..20), Some(&id[..]));
        assert_eq!(stun::answer(&answer, source()), None, "responses are not answered");
        assert_eq!(stun::response(data), None);
    }
    if let Some(id) = stun::response(data) {
        assert!(stun::is_stun(data) && stun::is_response(data));
        assert_eq!(data.get(8..20), Some(&id[..]));
    }
    let _ = stun::hint(data);
}

/// What of a text goes on: control characters do not.
fn blanked(text: &str) -> String {
    text.replace(|c: char| c.is_ascii_control() && c != '\t', " ")
}

fn look_at_everything(m: &Message) {
    for header in m.headers() {
        assert!(!header.value.contains(['\r', '\n']), "no value breaks a line");
        assert!(sip::is_token(header.name));
        assert!(header.id == HeaderName::Other || m.has(header.id));
        let value = header.value;
        let _ =
            (Via::from_value(value), Contact::from_value(value), ContentType::from_value(value));
        let _ = (Date::from_value(value), DialogRef::from_value(value), Event::from_value(value));
        let _ = (MinSe::from_value(value), Privacy::from_value(value), RAck::from_value(value));
        let _ = (Reason::from_value(value).map(|r| r.text().len()), RetryAfter::from_value(value));
        let _ = (SessionExpires::from_value(value), SubscriptionState::from_value(value));
        let _ = (Timestamp::from_value(value), Warning::from_value(value).map(|w| w.text().len()));
        let _ =
            (Disposition::from_value(value), Challenge::parse(value), Credentials::parse(value));
        for element in m.values(header.id) {
            if let Ok(Contact::Addr(address)) = Contact::from_value(element) {
                let _ = (address.display_name(), address.tag(), address.uri());
            }
        }
    }
    if let Some(Ok(kind)) = m.header(HeaderName::ContentType).map(ContentType::from_value)
        && let Ok(parts) = sip::parse_multipart(&kind, m.body())
    {
        for part in parts {
            let _ = (part.content_type(), part.disposition());
        }
    }
}

fn written_back(m: &Message) {
    let mut out = match m.start_line() {
        // A request line that `validate` refuses may hold blanks, which the writer escapes.
        StartLine::Request { method, .. } => Builder::request(method, "sip:x"),
        StartLine::Response { status, reason } => Builder::response(status, reason),
    };
    for header in m.headers() {
        out.line(header);
    }
    let again =
        sip::parse(out.finish(), &unlimited()).expect("what was parsed writes to what parses");
    let values = |m: &Message| -> Vec<(HeaderName, String, String)> {
        m.headers().map(|h| (h.id, h.name.to_owned(), h.value.to_owned())).collect()
    };
    let (before, mut after) = (values(m), values(&again));
    // The Content-Length of `finish`.
    after.pop();
    assert_eq!(before, after);
}

fn unlimited() -> Limits {
    Limits { head_bytes_max: usize::MAX, headers_max: usize::MAX, body_bytes_max: usize::MAX }
}

/// A stream: cut anywhere, the frames are the same, and what is held is bounded.
pub fn fuzz_stream(data: &[u8]) {
    let limits = Limits { head_bytes_max: 2048, headers_max: 64, body_bytes_max: 2048 };
    let Some((&step, data)) = data.split_first() else { return };
    let drain = |framer: &mut Framer, frames: &mut Vec<Bytes>| loop {
        match framer.poll() {
            Ok(Some(Frame::Message(message))) => {
                assert!(message.len() <= limits.head_bytes_max + limits.body_bytes_max);
                frames.push(message);
            }
            Ok(Some(Frame::Ping | Frame::Pong)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    };
    let (mut whole, mut pieces) = (Vec::new(), Vec::new());
    let mut framer = Framer::new(limits);
    framer.push(data);
    let whole_ok = drain(&mut framer, &mut whole);
    let mut framer = Framer::new(limits);
    let mut pieces_ok = true;
    for piece in data.chunks(usize::from(step).max(1)) {
        framer.push(piece);
        pieces_ok = drain(&mut framer, &mut pieces);
        assert!(framer.pending() <= limits.head_bytes_max + limits.body_bytes_max + 256);
        if !pieces_ok {
            break;
        }
    }
    assert_eq!(whole, pieces);
    assert_eq!(whole_ok, pieces_ok);
}

/// A session description: writes back to the same, and survives a rewrite without the addresses
/// of its writer.
pub fn fuzz_sdp(data: &[u8]) {
    let Ok(sdp) = Sdp::parse(data) else { return };
    let written = sdp.to_bytes();
    let again = Sdp::parse(&written).expect("own output parses");
    assert_eq!(again, sdp);
    for (stream, media) in sdp.streams().zip(sdp.media()) {
        assert_eq!(stream.active, media.port() != 0);
        let _ = media.codecs();
    }
    let mut filtered = sdp.clone();
    let policy = CodecPolicy {
        allow: vec!["PCMA".into(), "opus/48000".into()],
        deny: vec!["G729".into()],
        prefer: vec!["opus".into()],
        telephone_event: false,
    };
    let left = filtered.filter_codecs(&policy);
    assert_eq!(left, filtered.has_active_stream());
    let rtp = SocketAddr::from(([203, 0, 113, 1], 40000));
    let rtcp = SocketAddr::from(([203, 0, 113, 1], 40001));
    let streams = vec![StreamAnchor::Relay { rtp, rtcp }; sdp.media().len()];
    let mut anchored = sdp.clone();
    anchored.anchor(&Anchoring {
        username: "-",
        session_id: 1,
        version: 1,
        address: rtp.ip(),
        streams: &streams,
        rtcp_mux: false,
        crypto: false,
        dtls: false,
    });
    let written = anchored.to_bytes();
    let again = Sdp::parse(&written).expect("a rewritten description parses");
    assert_eq!(again.media().len(), sdp.media().len());
    assert!(again.streams().all(|s| s.rtp.is_none_or(|a| a == rtp)));
    assert!(again.check_answer(&sdp).is_ok());
}

/// A URI: equal to itself, and changes keep it a URI.
pub fn fuzz_uri(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(uri) = UriRef::parse(text) else { return };
    assert!(uri.is_equivalent(&uri), "{text:?}");
    let _ = (uri.telephone_number(), uri.ip(), uri.is_loose(), uri.user_decoded());
    let owned = uri.to_uri();
    assert_eq!(owned.view(), uri);
    if uri.is_sip() {
        let changed = owned.with_user(Some("a b@c")).expect("any user can be set");
        assert_eq!(changed.view().user_decoded(), "a b@c");
        assert_eq!((changed.view().host(), changed.view().port()), (uri.host(), uri.port()));
        let changed = owned.with_host("2001:db8::1", Some(5070)).expect("any address can be set");
        assert_eq!(changed.view().user(), uri.user());
        let plain = owned.without_param("lr").expect("parameters can be taken out");
        assert!(!plain.view().is_loose());
        assert!(Uri::parse(plain.as_str()).is_ok());
    }
}
