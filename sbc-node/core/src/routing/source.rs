//! Which trunk a packet comes from: longest source network per interface.
//!
//! One hash probe per distinct prefix length that is in use, longest first. Names of peers are
//! resolved by the edge and told ([`Learnt`]); nothing resolves here.

use std::net::IpAddr;

use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::cidr::Cidr;
use crate::net::{InterfaceId, Transport};

use super::InterfaceAddr;
use super::trunk::{Source, TrunkId};

/// Addresses learnt per peer name are bounded; a name with more is cut.
const MAX_LEARNT_PER_PEER: usize = 64;

type Candidates = SmallVec<[(Source, TrunkId); 1]>;

/// All configured source networks.
#[derive(Debug, Default)]
pub(super) struct Sources {
    nets: HashMap<(InterfaceId, Cidr), Candidates>,
    /// Prefix lengths in use, longest first.
    lens_v4: Vec<u8>,
    lens_v6: Vec<u8>,
}

impl Sources {
    /// Adds a source; gives back the trunk that has the very same one already.
    pub(super) fn add(
        &mut self,
        interface: InterfaceId,
        source: Source,
        trunk: TrunkId,
    ) -> Result<(), TrunkId> {
        let candidates = self.nets.entry((interface, source.net)).or_default();
        if let Some((_, other)) = candidates.iter().find(|(s, _)| *s == source) {
            return if *other == trunk { Ok(()) } else { Err(*other) };
        }
        candidates.push((source, trunk));
        // The most specific first: port, then transport.
        candidates.sort_by_key(|(s, _)| (s.port.is_none(), s.transport.is_none()));
        let lens = if source.net.addr().is_ipv4() { &mut self.lens_v4 } else { &mut self.lens_v6 };
        if let Err(at) = lens.binary_search_by(|l| source.net.prefix_len().cmp(l)) {
            lens.insert(at, source.net.prefix_len());
        }
        Ok(())
    }

    pub(super) fn find(
        &self,
        interface: InterfaceId,
        transport: Transport,
        addr: IpAddr,
        port: u16,
    ) -> Option<TrunkId> {
        let addr = addr.to_canonical();
        let lens = if addr.is_ipv4() { &self.lens_v4 } else { &self.lens_v6 };
        lens.iter().find_map(|&len| {
            let candidates = self.nets.get(&(interface, Cidr::new(addr, len)))?;
            let fits = |s: &Source| {
                s.transport.is_none_or(|t| t == transport) && s.port.is_none_or(|p| p == port)
            };
            candidates.iter().find(|(s, _)| fits(s)).map(|&(_, trunk)| trunk)
        })
    }
}

/// Addresses that names of peers resolved to.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    by_addr: HashMap<InterfaceAddr, TrunkId>,
    by_peer: HashMap<(TrunkId, usize), SmallVec<[InterfaceAddr; 4]>>,
}

impl Learnt {
    pub(super) fn get(&self, interface: InterfaceId, addr: IpAddr) -> Option<TrunkId> {
        if self.by_addr.is_empty() {
            return None;
        }
        self.by_addr.get(&(interface, addr.to_canonical())).copied()
    }

    /// Replaces what is known of a peer. An address that another peer holds stays with it.
    pub(super) fn set(
        &mut self,
        interface: InterfaceId,
        trunk: TrunkId,
        peer: usize,
        addrs: &[IpAddr],
    ) {
        self.forget(trunk, peer);
        let keys: SmallVec<[InterfaceAddr; 4]> = addrs
            .iter()
            .take(MAX_LEARNT_PER_PEER)
            .map(|a| (interface, a.to_canonical()))
            .filter(|key| !self.by_addr.contains_key(key))
            .collect();
        for key in &keys {
            self.by_addr.insert(*key, trunk);
        }
        self.by_peer.insert((trunk, peer), keys);
    }

    fn forget(&mut self, trunk: TrunkId, peer: usize) {
        for key in self.by_peer.remove(&(trunk, peer)).into_iter().flatten() {
            self.by_addr.remove(&key);
        }
    }

    pub(super) fn retain(&mut self, keep: impl Fn(TrunkId, usize) -> bool) {
        let gone: Vec<_> =
            self.by_peer.keys().filter(|(trunk, peer)| !keep(*trunk, *peer)).copied().collect();
        for (trunk, peer) in gone {
            self.forget(trunk, peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN: InterfaceId = InterfaceId(0);
    const OUT: InterfaceId = InterfaceId(1);

    fn source(net: &str) -> Source {
        Source { net: net.parse().unwrap(), transport: None, port: None }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_network_on_the_interface_wins() {
        let mut s = Sources::default();
        s.add(IN, source("10.0.0.0/8"), TrunkId(1)).unwrap();
        s.add(IN, source("10.1.0.0/16"), TrunkId(2)).unwrap();
        s.add(IN, source("10.1.2.3"), TrunkId(3)).unwrap();
        s.add(IN, source("2001:db8::/32"), TrunkId(4)).unwrap();
        s.add(OUT, source("0.0.0.0/0"), TrunkId(5)).unwrap();
        let find = |i, a| s.find(i, Transport::Udp, ip(a), 5060);
        assert_eq!(find(IN, "10.9.9.9"), Some(TrunkId(1)));
        assert_eq!(find(IN, "10.1.9.9"), Some(TrunkId(2)));
        assert_eq!(find(IN, "::ffff:10.1.2.3"), Some(TrunkId(3)));
        assert_eq!(find(IN, "2001:db8:1::1"), Some(TrunkId(4)));
        assert_eq!(find(IN, "192.0.2.1"), None);
        assert_eq!(find(OUT, "10.1.2.3"), Some(TrunkId(5)));
    }

    #[test]
    fn port_and_transport_tell_trunks_of_one_address_apart() {
        let mut s = Sources::default();
        let base = source("192.0.2.1");
        s.add(IN, base, TrunkId(1)).unwrap();
        s.add(IN, Source { transport: Some(Transport::Tcp), ..base }, TrunkId(2)).unwrap();
        s.add(IN, Source { port: Some(5070), ..base }, TrunkId(3)).unwrap();
        assert_eq!(s.find(IN, Transport::Udp, ip("192.0.2.1"), 5060), Some(TrunkId(1)));
        assert_eq!(s.find(IN, Transport::Tcp, ip("192.0.2.1"), 40000), Some(TrunkId(2)));
        assert_eq!(s.find(IN, Transport::Udp, ip("192.0.2.1"), 5070), Some(TrunkId(3)));
        assert_eq!(s.add(IN, base, TrunkId(9)), Err(TrunkId(1)));
        assert_eq!(s.add(IN, base, TrunkId(1)), Ok(()));
    }

    #[test]
    fn learnt_addresses_are_replaced_as_names_move() {
        let mut l = Learnt::default();
        l.set(IN, TrunkId(1), 0, &[ip("192.0.2.1"), ip("192.0.2.2")]);
        l.set(IN, TrunkId(2), 0, &[ip("192.0.2.2")]);
        assert_eq!(l.get(IN, ip("192.0.2.2")), Some(TrunkId(1)));
        l.set(IN, TrunkId(1), 0, &[ip("192.0.2.3")]);
        assert_eq!(l.get(IN, ip("192.0.2.1")), None);
        assert_eq!(l.get(IN, ip("192.0.2.3")), Some(TrunkId(1)));
        assert_eq!(l.get(OUT, ip("192.0.2.3")), None);
        l.retain(|trunk, _| trunk != TrunkId(1));
        assert_eq!(l.get(IN, ip("192.0.2.3")), None);
    }
}
