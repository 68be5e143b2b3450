//! What the kernel holds of a flow: the key that a packet must match, and what is done to it.
//!
//! Both kernel ways use these shapes and these encodings of addresses; nothing here talks to a
//! kernel.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::plan_types::Tuple;

/// Bytes of an IPv4 / IPv6 address-and-port quadruple.
pub(crate) const QUAD4: usize = 12;
pub(crate) const QUAD6: usize = 36;

/// Source and destination as they stand in the packet: saddr, daddr, sport, dport, network order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Quad {
    V4([u8; QUAD4]),
    V6([u8; QUAD6]),
}

/// The key of an element: the quadruple of an arriving packet.
pub(crate) type Key = Quad;

impl Quad {
    /// `None` for mixed families, port 0, and addresses that no unicast datagram has. An
    /// IPv4-mapped IPv6 address counts as IPv4: that is how it stands on the wire.
    pub(crate) fn from_tuple(tuple: &Tuple) -> Option<Quad> {
        let usable = |ip: IpAddr| !ip.is_unspecified() && !ip.is_multicast();
        let (src, dst) = (tuple.src.ip().to_canonical(), tuple.dst.ip().to_canonical());
        let (sport, dport) = (tuple.src.port(), tuple.dst.port());
        if !usable(src) || !usable(dst) || sport == 0 || dport == 0 {
            return None;
        }
        match (src, dst) {
            (IpAddr::V4(s), IpAddr::V4(d)) => Some(Quad::v4(s, d, sport, dport)),
            (IpAddr::V6(s), IpAddr::V6(d)) => Some(Quad::v6(s, d, sport, dport)),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
        }
    }

    fn v4(src: Ipv4Addr, dst: Ipv4Addr, sport: u16, dport: u16) -> Quad {
        let mut raw = [0; QUAD4];
        raw[..4].copy_from_slice(&src.octets());
        raw[4..8].copy_from_slice(&dst.octets());
        raw[8..10].copy_from_slice(&sport.to_be_bytes());
        raw[10..].copy_from_slice(&dport.to_be_bytes());
        Quad::V4(raw)
    }

    fn v6(src: Ipv6Addr, dst: Ipv6Addr, sport: u16, dport: u16) -> Quad {
        let mut raw = [0; QUAD6];
        raw[..16].copy_from_slice(&src.octets());
        raw[16..32].copy_from_slice(&dst.octets());
        raw[32..34].copy_from_slice(&sport.to_be_bytes());
        raw[34..].copy_from_slice(&dport.to_be_bytes());
        Quad::V6(raw)
    }

    /// Reads what [`Quad::bytes`] wrote; the length tells the family.
    pub(crate) fn from_bytes(raw: &[u8]) -> Option<Quad> {
        match raw.len() {
            QUAD4 => raw.try_into().ok().map(Quad::V4),
            QUAD6 => raw.try_into().ok().map(Quad::V6),
            _ => None,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Quad::V4(raw) => raw,
            Quad::V6(raw) => raw,
        }
    }

    pub(crate) fn is_v6(&self) -> bool {
        matches!(self, Quad::V6(_))
    }

    fn ends(&self) -> (SocketAddr, SocketAddr) {
        let port = |hi: u8, lo: u8| u16::from_be_bytes([hi, lo]);
        match self {
            Quad::V4(r) => {
                let src = Ipv4Addr::new(r[0], r[1], r[2], r[3]);
                let dst = Ipv4Addr::new(r[4], r[5], r[6], r[7]);
                ((src, port(r[8], r[9])).into(), (dst, port(r[10], r[11])).into())
            }
            Quad::V6(r) => {
                let ip = |at: usize| {
                    let mut octets = [0; 16];
                    octets.copy_from_slice(&r[at..at + 16]);
                    Ipv6Addr::from(octets)
                };
                ((ip(0), port(r[32], r[33])).into(), (ip(16), port(r[34], r[35])).into())
            }
        }
    }
}

impl fmt::Debug for Quad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (src, dst) = self.ends();
        write!(f, "{src} → {dst}")
    }
}

/// What happens to a packet that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Action {
    /// The quadruple that it leaves with; of the key's family.
    pub(crate) leaves: Quad,
    /// Egress device; never 0.
    pub(crate) oif: u32,
    /// The neighbour that it is handed to: the gateway, or the destination itself.
    pub(crate) via: IpAddr,
    /// DSCP (0..=63), ECN cleared: what a datagram of our own socket would have.
    pub(crate) dscp: u8,
    /// Longest IP packet that leaves; longer ones are left to userspace, which may fragment.
    pub(crate) mtu: u32,
}

/// One direction in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) key: Key,
    pub(crate) action: Action,
}

/// The TTL or hop limit that a relayed packet leaves with: that of a fresh datagram.
pub(crate) const TTL: u8 = 64;

/// Kernel counters of one element; `bytes` counts IP packets with their headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Counters {
    pub(crate) fn plus(self, other: Counters) -> Counters {
        Counters {
            packets: self.packets.saturating_add(other.packets),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    /// UDP payload bytes, for elements of that family.
    pub(crate) fn payload_bytes(self, v6: bool) -> u64 {
        let headers: u64 = if v6 { 48 } else { 28 };
        self.bytes.saturating_sub(self.packets.saturating_mul(headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(src: &str, dst: &str) -> Tuple {
        Tuple { src: src.parse().expect("address"), dst: dst.parse().expect("address") }
    }

    #[test]
    fn quads_stand_as_on_the_wire() {
        let quad = Quad::from_tuple(&tuple("10.1.2.3:5004", "192.0.2.9:40000")).expect("quad");
        assert_eq!(quad.bytes(), &[10, 1, 2, 3, 192, 0, 2, 9, 0x13, 0x8c, 0x9c, 0x40]);
        assert_eq!(format!("{quad:?}"), "10.1.2.3:5004 → 192.0.2.9:40000");
        assert_eq!(Quad::from_bytes(quad.bytes()), Some(quad));
        let six = Quad::from_tuple(&tuple("[2001:db8::1]:1", "[2001:db8::2]:2")).expect("quad");
        assert_eq!(six.bytes().len(), 36);
        assert_eq!(six.bytes()[32..], [0, 1, 0, 2]);
        assert_eq!(Quad::from_bytes(six.bytes()), Some(six));
    }

    #[test]
    fn unusable_addresses_make_no_quad() {
        for (src, dst) in [
            ("0.0.0.0:1", "192.0.2.1:2"),
            ("192.0.2.1:1", "224.0.0.1:2"),
            ("192.0.2.1:0", "192.0.2.2:2"),
            ("192.0.2.1:1", "[2001:db8::1]:2"),
        ] {
            assert_eq!(Quad::from_tuple(&tuple(src, dst)), None, "{src} {dst}");
        }
        let mapped = Quad::from_tuple(&tuple("[::ffff:192.0.2.1]:1", "192.0.2.2:2"));
        assert!(mapped.is_some_and(|q| !q.is_v6()));
    }

    #[test]
    fn payload_bytes_take_the_headers_off() {
        let counters = Counters { packets: 3, bytes: 3 * 200 };
        assert_eq!(counters.payload_bytes(false), 3 * 172);
        assert_eq!(counters.payload_bytes(true), 3 * 152);
    }
}
