//! What is ours: media interfaces with their addresses and port pools, and the policy on others.
//!
//! Shared by handles and relay threads, which read it without a lock. [`Addresses::update`] is the
//! only change: doors that are gone give out nothing any more and take back what they gave.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::config::{Config, Dscp, MediaAddr};
use crate::policy::{Own, Policy};
use crate::ports::{PortCounts, PortPool};
use crate::types::{InterfaceId, MediaError, SideSpec};

/// Doors at most, those included that only wait for their last call.
const DOORS_MAX: usize = 1_024;

/// Interfaces have changed too often while calls went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {DOORS_MAX} media addresses with those that calls still use")]
pub struct TooManyDoors;

/// One address that media ports are opened on.
pub(crate) struct Door {
    pub(crate) free_bind: bool,
    pub(crate) interface: InterfaceId,
    pub(crate) addr: MediaAddr,
    pub(crate) dscp: Dscp,
    /// One pool for all doors of one address and range, open or not.
    pub(crate) ports: Arc<PortPool>,
    /// Of an interface that is gone or has changed: calls that began by it go on.
    closed: bool,
}

impl Door {
    /// Whether nothing is left to take back.
    fn is_done(&self) -> bool {
        self.closed && self.ports.is_unused()
    }
}

/// All doors of the node. A door keeps its number as long as a port of it is out.
struct State {
    doors: Vec<Arc<Door>>,
    policy: Policy,
}

/// All doors of the node and whom media may be sent to.
pub(crate) struct Addresses(ArcSwap<State>);

impl Addresses {
    pub(crate) fn new(config: &Config) -> Addresses {
        let empty = State { doors: Vec::new(), policy: Policy::new(config.policy.clone()) };
        Addresses(ArcSwap::from_pointee(empty.with(config)))
    }

    /// Takes another configuration: new doors open, those that are gone or changed close. What was
    /// bound by them stays bound. One caller at a time.
    ///
    /// # Errors
    /// When too many doors of before still have ports out; nothing changes then.
    pub(crate) fn update(&self, config: &Config) -> Result<(), TooManyDoors> {
        let after = self.0.load_full().with(config);
        if after.doors.len() > DOORS_MAX {
            return Err(TooManyDoors);
        }
        self.0.store(Arc::new(after));
        Ok(())
    }
    /// The door of a spec, with its index.
    pub(crate) fn door(&self, spec: SideSpec) -> Result<(usize, Arc<Door>), MediaError> {
        let state = self.0.load();
        let fits = |(_, door): &(usize, &Arc<Door>)| {
            !door.closed
                && door.interface == spec.interface
                && door.addr.local.is_ipv6() == spec.ipv6
        };
        let found = state.doors.iter().enumerate().find(fits);
        found.map(|(index, door)| (index, Arc::clone(door))).ok_or(MediaError::NoAddress)
    }

    /// Gives a pair back to the pool it came from, and to every other of that address: a range
    /// that has changed may hold it too.
    pub(crate) fn release(&self, door: usize, port: u16, free_at: Instant) {
        let state = self.0.load();
        let Some(local) = state.doors.get(door).map(|d| d.addr.local) else { return };
        for door in state.doors.iter().filter(|d| d.addr.local == local) {
            door.ports.release(port, free_at);
        }
    }

    /// Whether media may be sent to `addr`.
    pub(crate) fn usable(&self, addr: SocketAddr) -> bool {
        let state = self.0.load();
        state.policy.allows(addr, state.own(addr))
    }

    /// Port counts of every address in use.
    pub(crate) fn counts(&self) -> Vec<(InterfaceId, IpAddr, PortCounts)> {
        let state = self.0.load();
        let open = |d: &Arc<Door>| {
            let mut doors = state.doors.iter().filter(|o| !o.closed);
            doors.any(|o| Arc::ptr_eq(&o.ports, &d.ports))
        };
        let shown = state.doors.iter().filter(|d| !d.closed || !(d.is_done() || open(d)));
        shown.map(|d| (d.interface, d.addr.local, d.ports.counts(Instant::now()))).collect()
    }
}

impl State {
    fn with(&self, config: &Config) -> State {
        let mut doors: Vec<Arc<Door>> = self.doors.iter().map(|d| closed(d)).collect();
        let seed = config.seed.wrapping_add(self.doors.len() as u64);
        let wanted = config.interfaces.iter().flat_map(|interface| {
            let addrs = [interface.v4, interface.v6].into_iter().flatten();
            addrs.map(move |addr| (interface, addr))
        });
        for (nth, (interface, addr)) in wanted.enumerate() {
            let here = self.doors.iter().filter(|d| d.addr.local == addr.local);
            let kept = here.clone().find(|d| d.ports.range() == interface.ports);
            let ports = kept.map_or_else(
                || {
                    let seed = seed.wrapping_add(nth as u64);
                    let pool = PortPool::new(&interface.ports, config.shards, seed);
                    here.for_each(|d| pool.claim_from(&d.ports));
                    Arc::new(pool)
                },
                |door| Arc::clone(&door.ports),
            );
            let door = Arc::new(Door {
                free_bind: config.free_bind,
                interface: interface.id,
                addr,
                dscp: interface.dscp,
                ports,
                closed: false,
            });
            // The place of the same door before, or of one that is done with, or a new one.
            let same = |d: &Arc<Door>| {
                d.closed
                    && (d.interface, d.addr, d.dscp) == (door.interface, door.addr, door.dscp)
                    && Arc::ptr_eq(&d.ports, &door.ports)
            };
            // Of those that close only now, a shard may just be taking a port.
            let free = || self.doors.iter().zip(&doors).position(|(a, b)| a.is_done() && b.closed);
            let place = doors.iter().position(same).or_else(free);
            match place.and_then(|place| doors.get_mut(place)) {
                Some(place) => *place = door,
                None => doors.push(door),
            }
        }
        State { doors, policy: Policy::new(config.policy.clone()) }
    }

    fn own(&self, addr: SocketAddr) -> Own {
        let ip = addr.ip().to_canonical();
        self.doors
            .iter()
            .filter(|door| !door.is_done())
            .filter(|door| door.addr.local == ip || door.addr.advertise == ip)
            .map(|door| if door.ports.contains(addr.port()) { Own::MediaPort } else { Own::Host })
            .fold(Own::No, |found, own| match (found, own) {
                (Own::MediaPort, _) | (_, Own::MediaPort) => Own::MediaPort,
                (Own::Host, _) | (_, Own::Host) => Own::Host,
                (Own::No, Own::No) => Own::No,
            })
    }
}

fn closed(door: &Door) -> Arc<Door> {
    Arc::new(Door {
        free_bind: door.free_bind,
        interface: door.interface,
        addr: door.addr,
        dscp: door.dscp,
        ports: Arc::clone(&door.ports),
        closed: true,
    })
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

    fn config(interfaces: &[(u16, u8, std::ops::RangeInclusive<u16>)]) -> Config {
        let interface = |(id, host, ports): &(u16, u8, std::ops::RangeInclusive<u16>)| {
            let local = IpAddr::from([192, 0, 2, *host]);
            MediaInterface {
                id: InterfaceId(*id),
                v4: Some(MediaAddr { local, advertise: local }),
                v6: None,
                ports: ports.clone(),
                dscp: Dscp::default(),
            }
        };
        Config::new(interfaces.iter().map(interface).collect())
    }

    fn spec(id: u16) -> SideSpec {
        SideSpec { interface: InterfaceId(id), ipv6: false }
    }

    #[test]
    fn an_interface_that_goes_takes_back_what_it_gave() {
        let now = Instant::now();
        let addresses =
            Addresses::new(&config(&[(0, 1, 10_000..=10_003), (1, 2, 20_000..=20_003)]));
        let (index, door) = addresses.door(spec(1)).unwrap();
        let port = door.ports.take(0, now).unwrap();
        addresses.update(&config(&[(0, 1, 10_000..=10_003), (2, 3, 30_000..=30_003)])).unwrap();
        assert_eq!(addresses.door(spec(1)).err(), Some(MediaError::NoAddress));
        assert!(addresses.door(spec(2)).is_ok());
        let counts = addresses.counts();
        let used: Vec<(u16, usize)> = counts.iter().map(|(i, _, c)| (i.0, c.used)).collect();
        assert_eq!(used, [(0, 0), (1, 1), (2, 0)], "the one that goes still has a port out");
        addresses.release(index, port, now);
        let left: Vec<u16> = addresses.counts().iter().map(|(i, _, _)| i.0).collect();
        assert_eq!(left, [0, 2]);
        // Its place is free for another.
        addresses.update(&config(&[(0, 1, 10_000..=10_003), (3, 4, 30_000..=30_003)])).unwrap();
        assert_eq!(addresses.door(spec(3)).unwrap().0, index);
    }

    #[test]
    fn a_range_that_grows_does_not_give_out_what_is_in_use() {
        let now = Instant::now();
        let addresses = Addresses::new(&config(&[(0, 1, 10_000..=10_003)]));
        let (old, door) = addresses.door(spec(0)).unwrap();
        let (a, b) = (door.ports.take(0, now).unwrap(), door.ports.take(0, now).unwrap());
        addresses.update(&config(&[(0, 1, 10_000..=10_007)])).unwrap();
        let (_, door) = addresses.door(spec(0)).unwrap();
        let mut fresh = vec![door.ports.take(0, now).unwrap(), door.ports.take(0, now).unwrap()];
        fresh.sort_unstable();
        assert_eq!(fresh, [10_004, 10_006]);
        assert_eq!(door.ports.take(0, now), None);
        // A call of before ends: its port is one of the new range's from then on.
        addresses.release(old, a, now);
        assert_eq!(door.ports.take(0, now), Some(a));
        addresses.release(old, b, now);
        assert_eq!(door.ports.take(0, now), Some(b));
    }

    #[test]
    fn another_advertised_address_shares_the_ports() {
        let now = Instant::now();
        let before = config(&[(0, 1, 10_000..=10_003)]);
        let addresses = Addresses::new(&before);
        let (_, door) = addresses.door(spec(0)).unwrap();
        let taken = door.ports.take(0, now).unwrap();
        let mut after = before.clone();
        let nat = IpAddr::from([198, 51, 100, 7]);
        if let Some(addr) = &mut after.interfaces[0].v4 {
            addr.advertise = nat;
        }
        addresses.update(&after).unwrap();
        let (_, door) = addresses.door(spec(0)).unwrap();
        assert_eq!(door.addr.advertise, nat);
        assert_ne!(door.ports.take(0, now), Some(taken));
        assert_eq!(door.ports.take(0, now), None);
        assert_eq!(addresses.counts().len(), 1, "counted once");
        // To and fro makes no more doors.
        for _ in 0..10 {
            addresses.update(&before).unwrap();
            addresses.update(&after).unwrap();
        }
        assert!(addresses.door(spec(0)).unwrap().0 < 2);
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
