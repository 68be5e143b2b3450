//! Which signalled or learnt addresses media may be sent to.
//!
//! Always refused: unspecified, multicast, broadcast, link-local (with it the cloud metadata
//! service), port 0 and our own media ports (a loop). Refused unless `allow_local`: loopback and
//! our own addresses. Private addresses are allowed: trunks live there.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::config::AddressPolicy;

/// EC2's metadata service over IPv6, the one such service that is not link-local.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// The compiled policy. `own` decides what is ours.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    config: AddressPolicy,
}

/// What an address is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    /// Not our address.
    No,
    /// Our address, a port outside our media ranges.
    Host,
    /// One of our media ports.
    MediaPort,
}

impl Policy {
    pub(crate) fn new(config: AddressPolicy) -> Policy {
        Policy { config }
    }

    /// Whether media may be sent to `addr`.
    pub(crate) fn allows(&self, addr: SocketAddr, own: Own) -> bool {
        let ip = addr.ip().to_canonical();
        let local = self.config.allow_local;
        let own_ok = match own {
            Own::No => true,
            Own::Host => local,
            Own::MediaPort => false,
        };
        own_ok
            && addr.port() != 0
            && !is_never_unicast(ip)
            && (local || !ip.is_loopback())
            && !self.config.deny.iter().any(|(net, len)| in_prefix(ip, *net, *len))
    }
}

fn is_never_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.octets()[0] == 0 || ip.is_multicast() || ip.is_broadcast() || ip.is_link_local()
        }
        IpAddr::V6(ip) => {
            ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unicast_link_local()
                || ip == METADATA_V6
        }
    }
}

/// Whether `ip` lies in `net/len`; never across families.
fn in_prefix(ip: IpAddr, net: IpAddr, len: u8) -> bool {
    match (ip, net) {
        (IpAddr::V4(ip), IpAddr::V4(net)) => {
            let shift = 32 - u32::from(len.min(32));
            (ip.to_bits() ^ net.to_bits()).checked_shr(shift).unwrap_or(0) == 0
        }
        (IpAddr::V6(ip), IpAddr::V6(net)) => {
            let shift = 128 - u32::from(len.min(128));
            (ip.to_bits() ^ net.to_bits()).checked_shr(shift).unwrap_or(0) == 0
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(policy: &Policy, addr: &str, own: Own) -> bool {
        policy.allows(addr.parse().unwrap_or_else(|_| panic!("{addr}")), own)
    }

    #[test]
    fn what_is_always_refused() {
        let policy = Policy::new(AddressPolicy { allow_local: true, deny: Vec::new() });
        for addr in [
            "0.0.0.0:4000",
            "0.1.2.3:4000",
            "[::]:4000",
            "[::ffff:0.0.0.0]:4000",
            "224.0.0.1:4000",
            "[ff02::1]:4000",
            "255.255.255.255:4000",
            "169.254.169.254:80",
            "[::ffff:169.254.169.254]:80",
            "[fe80::1]:4000",
            "[fd00:ec2::254]:80",
            "192.0.2.1:0",
        ] {
            assert!(!allows(&policy, addr, Own::No), "{addr}");
        }
        assert!(!allows(&policy, "192.0.2.1:4000", Own::MediaPort));
    }

    #[test]
    fn local_addresses_need_the_knob() {
        let strict = Policy::new(AddressPolicy::default());
        let local = Policy::new(AddressPolicy { allow_local: true, deny: Vec::new() });
        for addr in ["127.0.0.1:4000", "[::1]:4000", "[::ffff:127.0.0.1]:4000"] {
            assert!(!allows(&strict, addr, Own::No), "{addr}");
            assert!(allows(&local, addr, Own::No), "{addr}");
        }
        assert!(!allows(&strict, "192.0.2.1:4000", Own::Host));
        assert!(allows(&local, "192.0.2.1:4000", Own::Host));
    }

    #[test]
    fn ordinary_and_private_addresses_pass_and_denied_prefixes_do_not() {
        let deny = vec![
            (IpAddr::from([10, 9, 0, 0]), 16),
            ("2001:db8:bad::".parse().unwrap_or(IpAddr::from([0; 16])), 48),
        ];
        let policy = Policy::new(AddressPolicy { allow_local: false, deny });
        for addr in ["192.0.2.1:4000", "10.8.1.1:4000", "[2001:db8::1]:4000", "[fd00::1]:4000"] {
            assert!(allows(&policy, addr, Own::No), "{addr}");
        }
        for addr in ["10.9.1.1:4000", "[::ffff:10.9.1.1]:4000", "[2001:db8:bad::1]:4000"] {
            assert!(!allows(&policy, addr, Own::No), "{addr}");
        }
    }

    #[test]
    fn a_prefix_of_length_zero_holds_everything_of_its_family() {
        assert!(in_prefix(IpAddr::from([1, 2, 3, 4]), IpAddr::from([0; 4]), 0));
        assert!(!in_prefix(IpAddr::from([1; 16]), IpAddr::from([0; 4]), 0));
    }
}
