//! Address prefixes in CIDR notation (RFC 4632, RFC 4291 §2.3), shared by routing and guard.
//!
//! Tables keyed by prefix live with their users; name resolution never lives here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network: an address whose host bits are zero, and a prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    addr: IpAddr,
    len: u8,
}

/// Why a text is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    #[error("not an IP address")]
    Address,
    #[error("not a prefix length (0 to 32 for IPv4, 0 to 128 for IPv6)")]
    Length,
    #[error("host bits are set: write {0}")]
    HostBits(Cidr),
}

impl Cidr {
    /// A network of `len` leading bits of `addr`; host bits are cleared, `len` is capped at the
    /// family's width. IPv4-mapped IPv6 addresses become IPv4.
    pub fn new(addr: IpAddr, len: u8) -> Cidr {
        match addr {
            IpAddr::V4(v4) => {
                let len = len.min(32);
                Cidr { addr: Ipv4Addr::from_bits(v4.to_bits() & mask32(len)).into(), len }
            }
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) if len >= 96 => Cidr::new(v4.into(), len.min(128) - 96),
                _ => {
                    let len = len.min(128);
                    Cidr { addr: Ipv6Addr::from_bits(v6.to_bits() & mask128(len)).into(), len }
                }
            },
        }
    }

    /// The network of one address.
    pub fn host(addr: IpAddr) -> Cidr {
        match addr.to_canonical() {
            v4 @ IpAddr::V4(_) => Cidr { addr: v4, len: 32 },
            v6 @ IpAddr::V6(_) => Cidr { addr: v6, len: 128 },
        }
    }

    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Prefix length in bits.
    pub fn prefix_len(&self) -> u8 {
        self.len
    }

    /// Whether `addr` lies in the network; an IPv4-mapped address counts as IPv4.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => ip.to_bits() & mask32(self.len) == net.to_bits(),
            (IpAddr::V6(net), IpAddr::V6(ip)) => ip.to_bits() & mask128(self.len) == net.to_bits(),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// Whether every address of `other` lies in this network.
    pub fn covers(&self, other: &Cidr) -> bool {
        self.len <= other.len && self.contains(other.addr)
    }
}

/// The first `len` bits set; `len` ≤ 32.
fn mask32(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0)
}

/// The first `len` bits set; `len` ≤ 128.
fn mask128(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = CidrError;

    /// `192.0.2.0/24`, `2001:db8::/32`, or a plain address for a single host.
    fn from_str(text: &str) -> Result<Cidr, CidrError> {
        let Some((addr, len)) = text.split_once('/') else {
            return text.parse().map(Cidr::host).map_err(|_| CidrError::Address);
        };
        let addr: IpAddr = addr.parse().map_err(|_| CidrError::Address)?;
        let width = if addr.is_ipv4() { 32 } else { 128 };
        let len: u8 = len.parse().map_err(|_| CidrError::Length)?;
        if len > width {
            return Err(CidrError::Length);
        }
        let net = Cidr::new(addr, len);
        if !addr.to_canonical().eq(&net.addr) { Err(CidrError::HostBits(net)) } else { Ok(net) }
    }
}

impl fmt::Display for Cidr {
    /// A single host is written without its length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = if self.addr.is_ipv4() { 32 } else { 128 };
        if self.len == width {
            write!(f, "{}", self.addr)
        } else {
            write!(f, "{}/{}", self.addr, self.len)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn parses_and_prints() {
        for text in ["192.0.2.0/24", "0.0.0.0/0", "192.0.2.1", "2001:db8::/32", "::/0", "::1"] {
            assert_eq!(cidr(text).to_string(), text);
        }
        assert_eq!(cidr("192.0.2.1/32").to_string(), "192.0.2.1");
        assert_eq!(cidr("::ffff:192.0.2.0/120").to_string(), "192.0.2.0/24");
    }

    #[test]
    fn refuses_with_the_reason() {
        let refused = |t: &str| t.parse::<Cidr>().unwrap_err();
        assert_eq!(refused("192.0.2"), CidrError::Address);
        assert_eq!(refused("192.0.2.0/33"), CidrError::Length);
        assert_eq!(refused("192.0.2.0/"), CidrError::Length);
        assert_eq!(refused("192.0.2.9/24").to_string(), "host bits are set: write 192.0.2.0/24");
    }

    #[test]
    fn contains_by_family() {
        assert!(cidr("192.0.2.0/24").contains("192.0.2.255".parse().unwrap()));
        assert!(cidr("192.0.2.0/24").contains("::ffff:192.0.2.1".parse().unwrap()));
        assert!(!cidr("192.0.2.0/24").contains("192.0.3.0".parse().unwrap()));
        assert!(!cidr("0.0.0.0/0").contains("::1".parse().unwrap()));
        assert!(cidr("::/0").contains("2001:db8::1".parse().unwrap()));
        assert!(cidr("10.0.0.0/8").covers(&cidr("10.1.0.0/16")));
        assert!(!cidr("10.1.0.0/16").covers(&cidr("10.0.0.0/8")));
    }
}
