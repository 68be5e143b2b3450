//! What is ours: media interfaces with their addresses and port pools, and the policy on others.
//!
//! Shared by handles and relay threads; never changed after start.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::config::{Config, Dscp, MediaAddr};
use crate::policy::{Own, Policy};
use crate::ports::{PortCounts, PortPool};
use crate::types::{InterfaceId, MediaError, SideSpec};

/// One address that media ports are opened on.
pub(crate) struct Door {
    pub(crate) free_bind: bool,
    pub(crate) interface: InterfaceId,
    pub(crate) addr: MediaAddr,
    pub(crate) dscp: Dscp,
    pub(crate) ports: PortPool,
}

/// All doors of the node.
pub(crate) struct Addresses {
    doors: Vec<Door>,
    policy: Policy,
}

impl Addresses {
    pub(crate) fn new(config: &Config) -> Addresses {
        let mut doors = Vec::new();
        for interface in &config.interfaces {
            for addr in [interface.v4, interface.v6].into_iter().flatten() {
                let seed = config.seed.wrapping_add(doors.len() as u64);
                doors.push(Door {
                    free_bind: config.free_bind,
                    interface: interface.id,
                    addr,
                    dscp: interface.dscp,
                    ports: PortPool::new(&interface.ports, config.shards, seed),
                });
            }
        }
        Addresses { doors, policy: Policy::new(config.policy.clone()) }
    }

    /// The door of a spec, with its index.
    pub(crate) fn door(&self, spec: SideSpec) -> Result<(usize, &Door), MediaError> {
        self.doors
            .iter()
            .enumerate()
            .find(|(_, door)| {
                door.interface == spec.interface && door.addr.local.is_ipv6() == spec.ipv6
            })
            .ok_or(MediaError::NoAddress)
    }

    /// Gives a pair back to the pool it came from.
    pub(crate) fn release(&self, door: usize, port: u16, free_at: Instant) {
        if let Some(door) = self.doors.get(door) {
            door.ports.release(port, free_at);
        }
    }

    /// Whether media may be sent to `addr`.
    pub(crate) fn usable(&self, addr: SocketAddr) -> bool {
        self.policy.allows(addr, self.own(addr))
    }

    /// Port counts of every address.
    pub(crate) fn counts(&self) -> Vec<(InterfaceId, IpAddr, PortCounts)> {
        self.doors
            .iter()
            .map(|d| (d.interface, d.addr.local, d.ports.counts(Instant::now())))
            .collect()
    }

    fn own(&self, addr: SocketAddr) -> Own {
        let ip = addr.ip().to_canonical();
        self.doors
            .iter()
            .filter(|door| door.addr.local == ip || door.addr.advertise == ip)
            .map(|door| if door.ports.contains(addr.port()) { Own::MediaPort } else { Own::Host })
            .fold(Own::No, |found, own| match (found, own) {
                (Own::MediaPort, _) | (_, Own::MediaPort) => Own::MediaPort,
                (Own::Host, _) | (_, Own::Host) => Own::Host,
                (Own::No, Own::No) => Own::No,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AddressPolicy, MediaInterface};

    fn addresses(allow_local: bool) -> Addresses {
        let addr = MediaAddr {
            local: IpAddr::from([192, 0, 2, 1]),
            advertise: IpAddr::from([198, 51, 100, 1]),
        };
        let interface = MediaInterface {
            id: InterfaceId(3),
            v4: Some(addr),
            v6: None,
            ports: 10_000..=10_099,
            dscp: Dscp::default(),
        };
        let mut config = Config::new(vec![interface]);
        config.policy = AddressPolicy { allow_local, deny: Vec::new() };
        Addresses::new(&config)
    }

    #[test]
    fn our_media_ports_are_never_usable_by_either_name() {
        for allow_local in [false, true] {
            let addresses = addresses(allow_local);
            for ip in [[192, 0, 2, 1], [198, 51, 100, 1]] {
                assert!(!addresses.usable(SocketAddr::from((ip, 10_001))));
                assert_eq!(addresses.usable(SocketAddr::from((ip, 5_000))), allow_local);
            }
            assert!(addresses.usable(SocketAddr::from(([192, 0, 2, 2], 10_001))));
        }
    }

    #[test]
    fn a_door_is_found_by_interface_and_family() {
        let addresses = addresses(false);
        let spec = |id, ipv6| SideSpec { interface: InterfaceId(id), ipv6 };
        assert!(addresses.door(spec(3, false)).is_ok());
        assert_eq!(addresses.door(spec(3, true)).err(), Some(MediaError::NoAddress));
        assert_eq!(addresses.door(spec(4, false)).err(), Some(MediaError::NoAddress));
    }
}
