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
