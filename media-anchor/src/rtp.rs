//! What the relay reads of RTP and RTCP headers (RFC 3550 §5.1, §6.4, RFC 5761 §4, RFC 7983).
//!
//! Payloads are never looked at and nothing is ever changed.

/// The fields of an RTP fixed header that statistics and latching need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RtpHeader {
    pub(crate) payload_type: u8,
    pub(crate) sequence: u16,
    pub(crate) timestamp: u32,
    pub(crate) ssrc: u32,
}

/// What a datagram on a media port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    Rtp(RtpHeader),
    Rtcp,
    /// STUN, DTLS, truncated, wrong lengths: nothing that is relayed for RTP media.
    Other,
}

/// What a receiver says of one source (RFC 3550 §6.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) ssrc: u32,
    /// Packets lost since it began to receive; 0 where duplicates made it negative.
    pub(crate) lost: u32,
    /// In timestamp units.
    pub(crate) jitter: u32,
}

/// The report blocks of the sender and receiver reports of a compound RTCP packet. What encryption
/// (RFC 3711) has made of them is for the caller to tell, by the source.
pub(crate) fn reports(data: &[u8]) -> impl Iterator<Item = Report> {
    const SENDER: u8 = 200;
    const RECEIVER: u8 = 201;
    let mut rest = data;
    let parts = std::iter::from_fn(move || {
        let fixed = rest.first_chunk::<4>()?;
        let len = (usize::from(u16::from_be_bytes([fixed[2], fixed[3]])) + 1) * 4;
        let (part, next) = rest.split_at_checked(len)?;
        rest = next;
        Some((fixed[0] & 0x1f, fixed[1], part))
    });
    parts.flat_map(|(count, kind, part)| {
        let blocks = match kind {
            SENDER => part.get(28..),
            RECEIVER => part.get(8..),
            _ => None,
        };
        let (blocks, _) = blocks.unwrap_or_default().as_chunks::<24>();
        blocks.iter().take(usize::from(count)).map(|b| Report {
            ssrc: u32::from_be_bytes([b[0], b[1], b[2], b[3]]),
            // 24 bits with a sign.
            lost: match b[5] {
                0x80.. => 0,
                high => u32::from_be_bytes([0, high, b[6], b[7]]),
            },
            jitter: u32::from_be_bytes([b[12], b[13], b[14], b[15]]),
        })
    })
}

/// Tells RTP, RTCP and the rest apart.
pub(crate) fn classify(data: &[u8]) -> Packet {
    let Some(fixed) = data.first_chunk::<4>() else { return Packet::Other };
    if fixed[0] >> 6 != 2 {
        return Packet::Other;
    }
    // RFC 5761 §4: RTCP packet types are 192..=223, RTP may not use 64..=95 with the marker.
    if (192..=223).contains(&fixed[1]) { classify_rtcp(data, fixed) } else { classify_rtp(data) }
}

/// An RTCP packet has at least its header and SSRC, and its first part ends within the datagram.
fn classify_rtcp(data: &[u8], fixed: &[u8; 4]) -> Packet {
    let first_len = (usize::from(u16::from_be_bytes([fixed[2], fixed[3]])) + 1) * 4;
    if data.len() >= 8 && first_len >= 8 && first_len <= data.len() {
        Packet::Rtcp
    } else {
        Packet::Other
    }
}

fn classify_rtp(data: &[u8]) -> Packet {
    let Some(h) = data.first_chunk::<12>() else { return Packet::Other };
    let mut header_len = 12 + usize::from(h[0] & 0x0f) * 4;
    if h[0] & 0x10 != 0 {
        let Some([_, _, hi, lo]) = data.get(header_len..).and_then(|rest| rest.first_chunk::<4>())
        else {
            return Packet::Other;
        };
        header_len += 4 + usize::from(u16::from_be_bytes([*hi, *lo])) * 4;
    }
    if header_len > data.len() {
        return Packet::Other;
    }
    Packet::Rtp(RtpHeader {
        payload_type: h[1] & 0x7f,
        sequence: u16::from_be_bytes([h[2], h[3]]),
        timestamp: u32::from_be_bytes([h[4], h[5], h[6], h[7]]),
        ssrc: u32::from_be_bytes([h[8], h[9], h[10], h[11]]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_rtp_header_is_read() {
        let data = [0x80, 0x88, 0x12, 0x34, 0, 0, 1, 0xa0, 0xde, 0xad, 0xbe, 0xef, 1, 2, 3];
        let header =
            RtpHeader { payload_type: 8, sequence: 0x1234, timestamp: 416, ssrc: 0xdead_beef };
        assert_eq!(classify(&data), Packet::Rtp(header));
    }

    #[test]
    fn rtcp_is_told_from_rtp_by_its_type_rfc5761() {
        let sr = [0x80, 200, 0, 1, 1, 2, 3, 4];
        assert_eq!(classify(&sr), Packet::Rtcp);
        // Payload type 72 with the marker set looks like 200 and must not be used for RTP.
        let mut rtp = [0u8; 12];
        rtp[0] = 0x80;
        rtp[1] = 96 | 0x80;
        assert!(matches!(classify(&rtp), Packet::Rtp(_)));
    }

    /// Block of `ssrc` with a cumulative loss and a jitter.
    fn block(ssrc: u32, lost: [u8; 3], jitter: u32) -> Vec<u8> {
        let mut block = [&ssrc.to_be_bytes()[..], &[9], &lost, &[0; 4]].concat();
        block.extend(jitter.to_be_bytes());
        block.extend([0; 8]);
        block
    }

    #[test]
    fn report_blocks_of_a_compound_packet_are_read_rfc3550() {
        let report = |ssrc, lost, jitter| Report { ssrc, lost, jitter };
        let sender = [&[0x81, 200, 0, 12][..], &[0; 24], &block(5, [0, 1, 2], 40)].concat();
        let description = [0x81, 202, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0];
        let receiver =
            [&[0x82, 201, 0, 13][..], &[0; 4], &block(6, [0xff; 3], 0), &block(7, [0, 0, 3], 1)];
        let compound = [&sender[..], &description, &receiver.concat()].concat();
        let found: Vec<Report> = reports(&compound).collect();
        assert_eq!(found, [report(5, 258, 40), report(6, 0, 0), report(7, 3, 1)]);
        // Fewer blocks than the count says, a part longer than the datagram, nothing.
        assert_eq!(reports(&[0x9f, 201, 0, 1, 0, 0, 0, 1]).count(), 0);
        assert_eq!(reports(&compound[..40]).count(), 0);
        assert_eq!(reports(&[]).count(), 0);
    }

    #[test]
    fn garbage_is_neither() {
        let cases: [&[u8]; 9] = [
            &[],
            &[0x80],
            &[0x80, 200, 0, 0],                          // 4-byte RTCP
            &[0x80, 200, 0, 0, 1, 2, 3, 4],              // says 4 bytes
            &[0x80, 200, 0, 9, 1, 2, 3, 4],              // longer than the datagram
            &[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],       // 11-byte RTP
            &[0x8f, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],    // 15 CSRCs that are not there
            &[0x90, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], // extension that is not there
            &[22, 254, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0],  // DTLS handshake
        ];
        for case in cases {
            assert_eq!(classify(case), Packet::Other, "{case:?}");
        }
        let stun = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(classify(&stun), Packet::Other);
        let long_extension = [0x90, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0xbe, 0xde, 0xff, 0xff];
        assert_eq!(classify(&long_extension), Packet::Other);
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_is_judged_by_version_length_and_type(
            data in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)
        ) {
            proptest::prop_assert!(reports(&data).count() <= data.len() / 24);
            match classify(&data) {
                Packet::Rtp(header) => {
                    proptest::prop_assert!(data.len() >= 12 && data[0] >> 6 == 2);
                    proptest::prop_assert!(!(192..=223).contains(&data[1]));
                    proptest::prop_assert_eq!(header.payload_type, data[1] & 0x7f);
                }
                Packet::Rtcp => {
                    proptest::prop_assert!(data.len() >= 8 && data[0] >> 6 == 2);
                    proptest::prop_assert!((192..=223).contains(&data[1]));
                }
                Packet::Other => {}
            }
        }
    }
}
