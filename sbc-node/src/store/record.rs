//! The call record between the core's plain data and the bytes of the replicated dialogs table.
//!
//! Prost types stop here. A record of a newer version, or a damaged one, is an error with its
//! place; it never becomes half a call.

mod early;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use prost::Message as _;
use sbc_core::b2bua::{
    AnswerRecord, CallId, CallRecord, LegRecord, SessionTimerRecord, StreamRecord, StreamSideRecord,
};
use sbc_core::media::{Latch, Local, Remote, StreamKind};
use sbc_core::net::Transport;
use sbc_proto::record::v1 as wire;

/// Version of an answered call, and of what else is encoded here.
pub const VERSION: u32 = 1;
/// Version of a call without a final response, which earlier releases must not take for an answered one.
const VERSION_EARLY: u32 = 2;

/// Why the bytes are not a call record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("not a call record: {0}")]
    Malformed(String),
    #[error("record of version {0}; this release reads up to {VERSION_EARLY}")]
    Version(u32),
    #[error("call record without {0}")]
    Missing(&'static str),
    #[error("call record with a bad {0}")]
    Bad(&'static str),
}

/// Encodes a call for the dialogs table.
pub fn encode(call: &CallRecord) -> Bytes {
    let call = wire::Call {
        version: if call.early.is_some() { VERSION_EARLY } else { VERSION },
        id: call.id.0,
        shard_hash: call.shard_hash,
        a: Some(leg_out(&call.a)),
        b: Some(leg_out(&call.b)),
        streams: call
            .streams
            .iter()
            .map(|s| wire::Stream {
                kind: kind_out(s.kind).into(),
                a: Some(side_out(&s.a)),
                b: Some(side_out(&s.b)),
            })
            .collect(),
        started_ms: call.started_ms,
        answered_ms: call.answered_ms,
        ends_by_ms: call.ends_by_ms,
        dialled: call.dialled.clone(),
        revision: call.revision,
        answer: call.answer.as_ref().map(|answer| wire::Answer {
            head: answer.head.clone(),
            source: address_out(Some(answer.source)),
            seq: answer.seq,
        }),
        early: call.early.as_deref().map(early::early_out),
    };
    call.encode_to_vec().into()
}

/// Decodes what [`encode`] wrote.
pub fn decode(bytes: Bytes) -> Result<CallRecord, RecordError> {
    let call =
        wire::Call::decode(bytes).map_err(|error| RecordError::Malformed(error.to_string()))?;
    if call.version > VERSION_EARLY || call.version == 0 {
        return Err(RecordError::Version(call.version));
    }
    Ok(CallRecord {
        id: CallId(call.id),
        shard_hash: call.shard_hash,
        a: leg_in(call.a.ok_or(RecordError::Missing("leg A"))?)?,
        b: leg_in(call.b.ok_or(RecordError::Missing("leg B"))?)?,
        streams: call.streams.into_iter().map(stream_in).collect::<Result<_, _>>()?,
        started_ms: call.started_ms,
        answered_ms: call.answered_ms,
        ends_by_ms: call.ends_by_ms,
        dialled: call.dialled,
        revision: call.revision,
        answer: call.answer.map(answer_in).transpose()?,
        early: call.early.map(early::early_in).transpose()?.map(Box::new),
    })
}

fn answer_in(answer: wire::Answer) -> Result<AnswerRecord, RecordError> {
    let source = address_in(&answer.source, "source of the INVITE")?;
    let source = source.ok_or(RecordError::Missing("source of the INVITE"))?;
    Ok(AnswerRecord { head: answer.head, source, seq: answer.seq })
}

fn leg_out(leg: &LegRecord) -> wire::Leg {
    wire::Leg {
        trunk: leg.trunk.clone(),
        interface: leg.interface.clone(),
        call_id: leg.call_id.clone(),
        local_tag: leg.local_tag.clone(),
        remote_tag: leg.remote_tag.clone(),
        local: leg.local.clone(),
        remote: leg.remote.clone(),
        local_seq: leg.local_seq,
        remote_seq: leg.remote_seq,
        target: leg.target.clone(),
        routes: leg.routes.clone(),
        secure: leg.secure,
        transport: transport_out(leg.transport).into(),
        next_hop: address_out(leg.next_hop),
        connection: leg.connection,
        allow: leg.allow,
        supported: leg.supported,
        session_timer: leg
            .session_timer
            .map(|t| wire::SessionTimer { expires_s: t.expires_s, we_refresh: t.we_refresh }),
        sdp_session: leg.sdp_session,
        sdp_version: leg.sdp_version,
        sdp_local: leg.sdp_local.clone(),
        sdp_remote: leg.sdp_remote.clone(),
    }
}

fn leg_in(leg: wire::Leg) -> Result<LegRecord, RecordError> {
    Ok(LegRecord {
        transport: transport_in(leg.transport)?,
        next_hop: address_in(&leg.next_hop, "next hop")?,
        connection: leg.connection,
        trunk: leg.trunk,
        interface: leg.interface,
        call_id: leg.call_id,
        local_tag: leg.local_tag,
        remote_tag: leg.remote_tag,
        local: leg.local,
        remote: leg.remote,
        local_seq: leg.local_seq,
        remote_seq: leg.remote_seq,
        target: leg.target,
        routes: leg.routes,
        secure: leg.secure,
        allow: leg.allow,
        supported: leg.supported,
        session_timer: leg
            .session_timer
            .map(|t| SessionTimerRecord { expires_s: t.expires_s, we_refresh: t.we_refresh }),
        sdp_session: leg.sdp_session,
        sdp_version: leg.sdp_version,
        sdp_local: leg.sdp_local,
        sdp_remote: leg.sdp_remote,
    })
}

pub(super) fn transport_out(transport: Transport) -> wire::Transport {
    match transport {
        Transport::Udp => wire::Transport::Udp,
        Transport::Tcp => wire::Transport::Tcp,
        Transport::Tls => wire::Transport::Tls,
        Transport::Ws => wire::Transport::Ws,
        Transport::Wss => wire::Transport::Wss,
    }
}

pub(super) fn transport_in(transport: i32) -> Result<Transport, RecordError> {
    match wire::Transport::try_from(transport) {
        Ok(wire::Transport::Udp) => Ok(Transport::Udp),
        Ok(wire::Transport::Tcp) => Ok(Transport::Tcp),
        Ok(wire::Transport::Tls) => Ok(Transport::Tls),
        Ok(wire::Transport::Ws) => Ok(Transport::Ws),
        Ok(wire::Transport::Wss) => Ok(Transport::Wss),
        Err(_) => Err(RecordError::Bad("transport")),
    }
}

fn kind_out(kind: StreamKind) -> wire::StreamKind {
    match kind {
        StreamKind::Audio => wire::StreamKind::Audio,
        StreamKind::Video => wire::StreamKind::Video,
        StreamKind::Image => wire::StreamKind::Image,
        StreamKind::Application => wire::StreamKind::Application,
    }
}

fn stream_in(stream: wire::Stream) -> Result<StreamRecord, RecordError> {
    Ok(StreamRecord {
        kind: match stream.kind() {
            wire::StreamKind::Audio if stream.kind != 0 => {
                return Err(RecordError::Bad("stream kind"));
            }
            wire::StreamKind::Audio => StreamKind::Audio,
            wire::StreamKind::Video => StreamKind::Video,
            wire::StreamKind::Image => StreamKind::Image,
            wire::StreamKind::Application => StreamKind::Application,
        },
        a: side_in(stream.a.ok_or(RecordError::Missing("stream side A"))?)?,
        b: side_in(stream.b.ok_or(RecordError::Missing("stream side B"))?)?,
    })
}

fn side_out(side: &StreamSideRecord) -> wire::StreamSide {
    wire::StreamSide {
        local: side.local.map(|l| wire::Local {
            rtp: address_out(Some(l.rtp)),
            rtcp: address_out(Some(l.rtcp)),
        }),
        interface: side.interface.clone(),
        ipv6: side.ipv6,
        remote: side.remote.as_ref().map(|r| wire::Remote {
            rtp: address_out(r.rtp),
            rtcp: address_out(r.rtcp),
            rtcp_mux: r.rtcp_mux,
            sends: r.sends,
            receives: r.receives,
            latch: match r.latch {
                Latch::Off => wire::Latch::Off,
                Latch::Auto => wire::Latch::Auto,
                Latch::Force => wire::Latch::Force,
            }
            .into(),
        }),
        latched: address_out(side.latched),
    }
}

fn side_in(side: wire::StreamSide) -> Result<StreamSideRecord, RecordError> {
    Ok(StreamSideRecord {
        local: side.local.map(local_in).transpose()?,
        interface: side.interface,
        ipv6: side.ipv6,
        remote: side.remote.map(remote_in).transpose()?,
        latched: address_in(&side.latched, "latched address")?,
    })
}

fn local_in(local: wire::Local) -> Result<Local, RecordError> {
    let rtp = address_in(&local.rtp, "media port")?.ok_or(RecordError::Missing("media port"))?;
    let rtcp = address_in(&local.rtcp, "RTCP port")?.ok_or(RecordError::Missing("RTCP port"))?;
    Ok(Local { rtp, rtcp })
}

fn remote_in(remote: wire::Remote) -> Result<Remote, RecordError> {
    Ok(Remote {
        latch: match remote.latch() {
            wire::Latch::Off if remote.latch != 0 => return Err(RecordError::Bad("latch mode")),
            wire::Latch::Off => Latch::Off,
            wire::Latch::Auto => Latch::Auto,
            wire::Latch::Force => Latch::Force,
        },
        rtp: address_in(&remote.rtp, "media endpoint")?,
        rtcp: address_in(&remote.rtcp, "RTCP endpoint")?,
        rtcp_mux: remote.rtcp_mux,
        sends: remote.sends,
        receives: remote.receives,
    })
}

/// Address (4 or 16 bytes) then port (2 bytes), network order; empty for none.
pub(super) fn address_out(address: Option<SocketAddr>) -> Bytes {
    let Some(address) = address else { return Bytes::new() };
    let mut out = Vec::with_capacity(18);
    match address.ip() {
        IpAddr::V4(ip) => out.extend(ip.octets()),
        IpAddr::V6(ip) => out.extend(ip.octets()),
    }
    out.extend(address.port().to_be_bytes());
    out.into()
}

pub(super) fn address_in(
    bytes: &[u8],
    what: &'static str,
) -> Result<Option<SocketAddr>, RecordError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let Some((ip, port)) = bytes.split_last_chunk::<2>() else {
        return Err(RecordError::Bad(what));
    };
    let ip = if let Ok(v4) = <[u8; 4]>::try_from(ip) {
        IpAddr::V4(Ipv4Addr::from(v4))
    } else if let Ok(v6) = <[u8; 16]>::try_from(ip) {
        IpAddr::V6(Ipv6Addr::from(v6))
    } else {
        return Err(RecordError::Bad(what));
    };
    Ok(Some(SocketAddr::new(ip, u16::from_be_bytes(*port))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sbc_core::b2bua::{AttemptRecord, EarlyRecord, FailedRecord, ForkRecord};

    fn address() -> impl Strategy<Value = SocketAddr> {
        prop_oneof![
            (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| (IpAddr::from(ip), port).into()),
            (any::<[u8; 16]>(), any::<u16>())
                .prop_map(|(ip, port)| (IpAddr::from(ip), port).into()),
        ]
    }

    fn transport() -> impl Strategy<Value = Transport> {
        prop_oneof![
            Just(Transport::Udp),
            Just(Transport::Tcp),
            Just(Transport::Tls),
            Just(Transport::Ws),
            Just(Transport::Wss)
        ]
    }

    fn sdp() -> impl Strategy<Value = Option<Bytes>> {
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from))
    }

    prop_compose! {
        fn leg()(
            words in proptest::collection::vec("[ -~é]{0,40}", 8),
            routes in proptest::collection::vec("<sip:[a-z.]{1,20};lr>", 0..3),
            transport in transport(),
            next_hop in proptest::option::of(address()),
            numbers in any::<[u32; 4]>(),
            (connection, secure) in any::<(bool, bool)>(),
            timer in proptest::option::of((any::<u32>(), any::<bool>())),
            sdp_numbers in any::<[u64; 2]>(),
            sdp_local in sdp(),
            sdp_remote in sdp(),
        ) -> LegRecord {
            LegRecord {
                trunk: words[0].clone(),
                interface: words[1].clone(),
                call_id: words[2].clone(),
                local_tag: words[3].clone(),
                remote_tag: words[4].clone(),
                local: words[5].clone(),
                remote: words[6].clone(),
                target: words[7].clone(),
                routes,
                secure,
                transport,
                next_hop,
                connection,
                local_seq: numbers[0],
                remote_seq: numbers[1],
                allow: numbers[2],
                supported: numbers[3],
                session_timer: timer
                    .map(|(expires_s, we_refresh)| SessionTimerRecord { expires_s, we_refresh }),
                sdp_session: sdp_numbers[0],
                sdp_version: sdp_numbers[1],
                sdp_local,
                sdp_remote,
            }
        }
    }

    fn bytes() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from)
    }

    prop_compose! {
        fn fork()(
            number in any::<u8>(),
            a_tag in "[a-z0-9]{0,20}",
            leg in leg(),
            rseq in proptest::option::of(any::<u32>()),
            reliable in proptest::option::of(any::<(u32, u32)>()),
            described in any::<bool>(),
        ) -> ForkRecord {
            ForkRecord { number, a_tag, leg, rseq, reliable, described }
        }
    }

    prop_compose! {
        fn attempt()(
            leg in leg(),
            request in bytes(),
            proceeding in any::<bool>(),
            challenges in any::<u8>(),
            min_se in proptest::option::of(any::<u32>()),
            forks in proptest::collection::vec(fork(), 0..3),
        ) -> AttemptRecord {
            AttemptRecord { leg, request, proceeding, challenges, min_se, forks }
        }
    }

    prop_compose! {
        fn failed()(
            trunk in "[a-z]{0,8}", peer in proptest::option::of(address()), status in any::<u16>(),
        ) -> FailedRecord {
            FailedRecord { trunk, peer, status }
        }
    }

    prop_compose! {
        fn early()(
            messages in [bytes(), bytes()],
            transport in transport(),
            addresses in [address(), address()],
            rseq in any::<u32>(),
            unacknowledged in any::<bool>(),
            ringing_ms in proptest::option::of(any::<u64>()),
            failed in proptest::collection::vec(failed(), 0..3),
            attempts in proptest::collection::vec(attempt(), 0..3),
        ) -> EarlyRecord {
            let [invite, provisional] = messages;
            let [local, remote] = addresses;
            EarlyRecord {
                invite, transport, local, remote, provisional, rseq, unacknowledged, ringing_ms,
                failed, attempts,
            }
        }
    }

    prop_compose! {
        fn side()(
            local in proptest::option::of((address(), address())),
            interface in "[a-z]{0,8}",
            ipv6 in any::<bool>(),
            remote in proptest::option::of((
                proptest::option::of(address()), proptest::option::of(address()),
                any::<[bool; 3]>(), prop_oneof![Just(Latch::Off), Just(Latch::Auto), Just(Latch::Force)],
            )),
            latched in proptest::option::of(address()),
        ) -> StreamSideRecord {
            StreamSideRecord {
                local: local.map(|(rtp, rtcp)| Local { rtp, rtcp }),
                interface,
                ipv6,
                remote: remote.map(|(rtp, rtcp, [rtcp_mux, sends, receives], latch)| Remote {
                    rtp, rtcp, rtcp_mux, sends, receives, latch,
                }),
                latched,
            }
        }
    }

    prop_compose! {
        fn call()(
            numbers in any::<[u64; 3]>(),
            shard_hash in any::<u32>(),
            ends_by_ms in proptest::option::of(any::<u64>()),
            a in leg(),
            b in leg(),
            streams in proptest::collection::vec(
                (0..4_u8, side(), side()).prop_map(|(kind, a, b)| StreamRecord {
                    kind: [StreamKind::Audio, StreamKind::Video, StreamKind::Image, StreamKind::Application]
                        [usize::from(kind)],
                    a,
                    b,
                }), 0..3),
            dialled in "[ -~]{0,60}",
            answer in proptest::option::of(
                ("[ -~]{0,60}", address(), any::<u32>())
                    .prop_map(|(head, source, seq)| AnswerRecord { head: head.into(), source, seq })),
            revision in any::<u32>(),
            early in proptest::option::of(early()),
        ) -> CallRecord {
            CallRecord {
                id: CallId(numbers[0]),
                shard_hash, a, b, streams,
                started_ms: numbers[1],
                answered_ms: numbers[2],
                ends_by_ms, dialled, answer, revision,
                early: early.map(Box::new),
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(call in call()) {
            prop_assert_eq!(decode(encode(&call)), Ok(call));
        }

        #[test]
        fn garbage_is_an_error_or_a_record(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(call) = decode(Bytes::from(bytes)) {
                prop_assert_eq!(decode(encode(&call)), Ok(call));
            }
        }
    }

    #[test]
    fn a_newer_record_is_refused_by_name() {
        let bytes = wire::Call { version: 3, ..Default::default() }.encode_to_vec();
        assert_eq!(decode(bytes.into()), Err(RecordError::Version(3)));
    }

    #[test]
    fn a_record_with_half_an_address_is_refused() {
        assert_eq!(address_in(&[1, 2, 3], "x"), Err(RecordError::Bad("x")));
        assert_eq!(address_in(&[1], "x"), Err(RecordError::Bad("x")));
    }
}
