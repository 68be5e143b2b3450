//! Whole descriptions in and out: rewriting, policies, refusals, round trips.

use proptest::prelude::*;

use super::*;
use crate::media::StreamKind;

const OFFER: &str = "v=0\r\n\
    o=alice 2890844526 2890844527 IN IP4 10.9.8.7\r\n\
    s=Secret name\r\n\
    i=about\r\n\
    e=alice@inside.example\r\n\
    c=IN IP4 10.9.8.7\r\n\
    b=AS:512\r\n\
    t=0 0\r\n\
    a=tool:phone 1.2\r\n\
    a=ice-lite\r\n\
    a=x-unknown:kept\r\n\
    m=audio 49170/2 RTP/AVP 0 8 96 97 101\r\n\
    b=TIAS:64000\r\n\
    a=rtpmap:96 opus/48000/2\r\n\
    a=fmtp:96 useinbandfec=1\r\n\
    a=rtpmap:97 G729/8000\r\n\
    a=rtpmap:101 telephone-event/8000\r\n\
    a=fmtp:101 0-15\r\n\
    a=rtcp:53020 IN IP4 10.9.8.8\r\n\
    a=candidate:1 1 UDP 2130706431 10.9.8.7 49170 typ host\r\n\
    a=x-leak:10.9.8.7 again\r\n\
    a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:xyz\r\n\
    a=sendonly\r\n\
    m=video 51372 RTP/SAVP 99\r\n\
    c=IN IP4 10.9.8.9\r\n\
    a=rtpmap:99 H264/90000\r\n\
    a=rtcp-mux\r\n\
    m=image 6000 udptl t38\r\n\
    a=T38FaxVersion:0\r\n\
    m=application 0 UDP/BFCP *\r\n";

fn anchoring<'r>(streams: &'r [StreamAnchor]) -> Anchoring<'r> {
    Anchoring {
        username: "-",
        session_id: 7,
        version: 3,
        address: "198.51.100.1".parse().expect("ip"),
        streams,
        rtcp_mux: true,
        crypto: false,
        dtls: false,
    }
}

fn relay(rtp: &str, rtcp: &str) -> StreamAnchor {
    StreamAnchor::Relay { rtp: rtp.parse().expect(rtp), rtcp: rtcp.parse().expect(rtcp) }
}

#[test]
fn unchanged_descriptions_come_out_byte_for_byte() {
    assert_eq!(Sdp::parse(OFFER.as_bytes()).expect("offer").to_bytes(), OFFER.as_bytes());
    let lf = OFFER.replace("\r\n", "\n");
    assert_eq!(Sdp::parse(lf.as_bytes()).expect("offer").to_bytes(), OFFER.as_bytes());
}

#[test]
fn streams_are_seen_with_session_and_media_level_together() {
    let sdp = Sdp::parse(OFFER.as_bytes()).expect("offer");
    let streams: Vec<_> = sdp.streams().collect();
    let [audio, video, image, application] = streams.as_slice() else { panic!("{streams:?}") };
    assert_eq!((audio.kind, audio.protocol), (StreamKind::Audio, Protocol::Rtp));
    assert_eq!(audio.rtp, "10.9.8.7:49170".parse().ok());
    assert_eq!(audio.rtcp, "10.9.8.8:53020".parse().ok());
    assert_eq!(audio.direction, Direction::SendOnly);
    assert_eq!(
        (video.kind, video.protocol, video.rtcp_mux),
        (StreamKind::Video, Protocol::Srtp, true)
    );
    assert_eq!((video.rtp, video.rtcp), ("10.9.8.9:51372".parse().ok(), video.rtp));
    assert_eq!(
        (image.kind, image.protocol, image.rtcp),
        (StreamKind::Image, Protocol::Udptl, None)
    );
    assert_eq!((application.active, application.rtp), (false, None));
    assert_eq!(application.kind, StreamKind::Application);
}

#[test]
fn anchoring_leaves_nothing_of_the_other_side() {
    let mut sdp = Sdp::parse(OFFER.as_bytes()).expect("offer");
    let streams = [
        relay("198.51.100.1:40000", "198.51.100.1:40001"),
        relay("198.51.100.2:40010", "198.51.100.2:40099"),
        StreamAnchor::Off,
    ];
    sdp.anchor(&anchoring(&streams));
    let expected = "v=0\r\n\
        o=- 7 3 IN IP4 198.51.100.1\r\n\
        s=-\r\n\
        c=IN IP4 198.51.100.1\r\n\
        b=AS:512\r\n\
        t=0 0\r\n\
        a=x-unknown:kept\r\n\
        m=audio 40000 RTP/AVP 0 8 96 97 101\r\n\
        b=TIAS:64000\r\n\
        a=rtpmap:96 opus/48000/2\r\n\
        a=fmtp:96 useinbandfec=1\r\n\
        a=rtpmap:97 G729/8000\r\n\
        a=rtpmap:101 telephone-event/8000\r\n\
        a=fmtp:101 0-15\r\n\
        a=sendonly\r\n\
        m=video 40010 RTP/SAVP 99\r\n\
        c=IN IP4 198.51.100.2\r\n\
        a=rtpmap:99 H264/90000\r\n\
        a=rtcp-mux\r\n\
        m=image 0 udptl t38\r\n\
        m=application 0 UDP/BFCP *\r\n";
    assert_eq!(sdp.to_string(), expected);
}

#[test]
fn unusual_rtcp_ports_are_told_and_mux_can_be_taken_out() {
    let body = b"v=0\r\no=- 1 1 IN IP6 2001:db8::1\r\ns=-\r\nt=0 0\r\nm=audio 5000 RTP/AVP 0\r\nc=IN IP6 2001:db8::1\r\na=rtcp-mux\r\n";
    let mut sdp = Sdp::parse(body).expect("sdp");
    let streams = [relay("198.51.100.1:40000", "198.51.100.9:40007")];
    sdp.anchor(&Anchoring { rtcp_mux: false, ..anchoring(&streams) });
    assert_eq!(
        sdp.to_string(),
        "v=0\r\no=- 7 3 IN IP4 198.51.100.1\r\ns=-\r\nc=IN IP4 198.51.100.1\r\nt=0 0\r\n\
         m=audio 40000 RTP/AVP 0\r\na=rtcp:40007 IN IP4 198.51.100.9\r\n"
    );
}

#[test]
fn rfc3264_8_4_hold_by_unspecified_address_becomes_a_direction() {
    for (attribute, expected) in [("", "sendonly"), ("a=recvonly\r\n", "inactive")] {
        let body = format!(
            "v=0\r\no=- 1 1 IN IP4 10.0.0.1\r\ns=-\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=audio 5000 RTP/AVP 0\r\n{attribute}"
        );
        let mut sdp = Sdp::parse(body.as_bytes()).expect("sdp");
        assert_eq!(sdp.stream(0).map(|s| s.direction.as_str()), Some(expected));
        let streams = [relay("198.51.100.1:40000", "198.51.100.1:40001")];
        sdp.anchor(&anchoring(&streams));
        assert_eq!(sdp.media().first().and_then(|m| m.attribute(expected)), Some(""));
        assert!(!sdp.to_string().contains("0.0.0.0"));
    }
}

#[test]
fn codec_policies_filter_and_reorder() {
    let policy = |allow: &[&str], deny: &[&str], prefer: &[&str], telephone_event| CodecPolicy {
        allow: allow.iter().map(ToString::to_string).collect(),
        deny: deny.iter().map(ToString::to_string).collect(),
        prefer: prefer.iter().map(ToString::to_string).collect(),
        telephone_event,
    };
    for (policy, formats) in [
        (policy(&[], &[], &[], true), "0 8 96 97 101"),
        (policy(&["pcma", "g729/8000"], &[], &["G729"], true), "97 8 101"),
        (policy(&[], &["opus", "PCMU"], &["PCMA"], false), "8 97"),
        (policy(&[], &[], &["telephone-event", "opus"], true), "101 96 0 8 97"),
        // Nothing that carries media left: unchanged, and said so.
        (policy(&["EVS"], &[], &[], true), ""),
    ] {
        let mut sdp = Sdp::parse(OFFER.as_bytes()).expect("offer");
        let media = sdp.media_mut().first_mut().expect("audio");
        let left = media.filter_codecs(&policy);
        assert_eq!(left, !formats.is_empty(), "{policy:?}");
        if left {
            assert_eq!(media.formats().collect::<Vec<_>>().join(" "), formats, "{policy:?}");
            let kept = |pt: &str| formats.split(' ').any(|f| f == pt);
            assert_eq!(
                media.to_owned().lines().iter().any(|l| l.value().contains("opus")),
                kept("96")
            );
            assert_eq!(
                media.lines().iter().any(|l| l.value().starts_with("fmtp:101")),
                kept("101")
            );
        }
    }
}

#[test]
fn retransmission_goes_with_its_codec() {
    let body = b"v=0\r\no=- 1 1 IN IP4 10.0.0.1\r\ns=-\r\nc=IN IP4 10.0.0.1\r\nt=0 0\r\n\
        m=video 5000 RTP/AVPF 96 97 98\r\na=rtpmap:96 VP8/90000\r\na=rtpmap:97 rtx/90000\r\n\
        a=fmtp:97 apt=96\r\na=rtpmap:98 H264/90000\r\na=rtcp-fb:* nack\r\na=rtcp-fb:96 nack pli\r\n";
    let mut sdp = Sdp::parse(body).expect("sdp");
    assert!(sdp.filter_codecs(&CodecPolicy { deny: vec!["vp8".into()], ..CodecPolicy::default() }));
    let media = sdp.media().first().expect("video");
    let values: Vec<_> = media.lines().iter().map(Line::value).collect();
    assert_eq!(media.formats().collect::<Vec<_>>(), ["98"]);
    assert_eq!(values, ["rtpmap:98 H264/90000", "rtcp-fb:* nack"]);
}

#[test]
fn what_is_no_description_is_refused() {
    let head = "v=0\r\no=- 1 1 IN IP4 10.0.0.1\r\ns=-\r\n";
    for (body, kind) in [
        (String::new(), SdpErrorKind::NoVersion),
        ("o=- 1 1 IN IP4 10.0.0.1\r\nv=0\r\n".into(), SdpErrorKind::NoVersion),
        ("v=1\r\n".into(), SdpErrorKind::NoVersion),
        ("v=0\r\ns=-\r\nt=0 0\r\n".into(), SdpErrorKind::BadOrigin),
        ("v=0\r\no=x\r\n".into(), SdpErrorKind::BadOrigin),
        (format!("{head}m=audio 5000 RTP/AVP 0\r\n"), SdpErrorKind::NoConnection),
        (format!("{head}c=IN IP4 1.2.3\r\n"), SdpErrorKind::BadConnection),
        (format!("{head}c=IN IP4 ::1\r\n"), SdpErrorKind::BadConnection),
        (format!("{head}m=audio\r\n"), SdpErrorKind::BadMedia),
        (format!("{head}m=audio 70000 RTP/AVP 0\r\n"), SdpErrorKind::BadMedia),
        (format!("{head}m=audio -1 RTP/AVP 0\r\n"), SdpErrorKind::BadMedia),
        (format!("{head}m=audio 1 RTP/AVP\r\n"), SdpErrorKind::BadMedia),
        (format!("{head}a=x\0y\r\n"), SdpErrorKind::BadLine),
        (format!("{head}a=x\ry\r\n"), SdpErrorKind::BadLine),
        (format!("{head}nonsense\r\n"), SdpErrorKind::BadLine),
        (format!("{head}{}", "m=audio 0 RTP/AVP 0\r\n".repeat(33)), SdpErrorKind::TooMany),
        (format!("{head}{}", "a=x\r\n".repeat(1000)), SdpErrorKind::TooMany),
    ] {
        let error = Sdp::parse(body.as_bytes()).expect_err(&body);
        assert_eq!((error.kind, error.status()), (kind, 488), "{body}");
    }
}

#[test]
fn rfc3264_6_answers_must_match() {
    let offer = Sdp::parse(OFFER.as_bytes()).expect("offer");
    assert_eq!(offer.check_answer(&offer), Ok(()));
    let cut = OFFER.split("m=image").next().expect("head");
    let short = Sdp::parse(cut.as_bytes()).expect("answer");
    assert_eq!(short.check_answer(&offer).map_err(|e| e.kind), Err(SdpErrorKind::AnswerMismatch));
    let on = OFFER.replace("m=application 0", "m=application 9");
    let on = Sdp::parse(on.as_bytes()).expect("answer");
    assert_eq!(on.check_answer(&offer).map_err(|e| e.kind), Err(SdpErrorKind::AnswerMismatch));
}

#[test]
fn text_that_we_set_cannot_break_a_line() {
    let mut sdp = Sdp::parse(OFFER.as_bytes()).expect("offer");
    sdp.set_session_name("x\r\na=evil");
    let media = sdp.media_mut().first_mut().expect("audio");
    media.push_attribute("label", "1\r\nm=audio 1 RTP/AVP 0");
    let text = sdp.to_string();
    assert!(text.contains("s=x  a=evil\r\n"));
    assert_eq!(text.matches("\r\nm=").count(), 4);
}

#[test]
fn directions_are_replaced_in_place() {
    let mut sdp = Sdp::parse(OFFER.as_bytes()).expect("offer");
    let media = sdp.media_mut().first_mut().expect("audio");
    media.set_direction(Direction::Inactive);
    assert_eq!(media.lines().last().map(Line::value), Some("inactive"));
    assert_eq!(media.attribute("sendonly"), None);
    assert_eq!(Direction::SendOnly.reversed(), Direction::RecvOnly);
}

proptest! {
    #[test]
    fn what_parses_writes_back_and_parses_to_the_same(text in "v=0\r\no=- 1 1 IN IP4 1\\.2\\.3\\.4\r\n(([a-z]=[ -~]{0,30}|m=[a-z]{1,5} [0-9]{1,5} (RTP/AVP|udptl) [0-9 ]{1,9})\r?\n){0,12}") {
        if let Ok(sdp) = Sdp::parse(text.as_bytes()) {
            let written = sdp.to_bytes();
            let again = Sdp::parse(&written).expect("own output");
            prop_assert_eq!(&again, &sdp);
            prop_assert_eq!(again.to_bytes(), written);
        }
    }
}

#[test]
fn formats_name_the_codecs_that_the_whole_description_names() {
    let head = "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\n";
    for media in [
        "m=audio 6000 RTP/AVP 8 0 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:0 PCMU/8000\r\n",
        "m=audio 6000/2 RTP/SAVPF 96 0\r\na=ptime:20\r\na=RTPMAP:96 opus/48000/2\r\na=sendrecv\r\n",
        "m=audio 6000 RTP/AVP 97 3\r\nm=video 0 RTP/AVP 31\r\nm=image 7000 udptl t38\r\n",
        "m=audio 6000 RTP/AVP 120\r\ni=a=rtpmap:120 x/1\r\nm=video 9 RTP/AVP 99\r\na=rtpmap:99 H264/90000",
        "",
    ] {
        for text in [format!("{head}{media}"), format!("{head}{media}").replace('\r', "")] {
            let whole = Sdp::parse(text.as_bytes()).unwrap();
            let formats = formats(text.as_bytes());
            assert_eq!(formats.len(), whole.media().len());
            for (short, long) in formats.iter().zip(whole.media()) {
                assert_eq!(short.codecs(), long.codecs());
                assert_eq!(short.first_codec(), long.first_codec());
                assert!(short.formats().eq(long.formats()) && short.port() == long.port());
            }
        }
    }
}
