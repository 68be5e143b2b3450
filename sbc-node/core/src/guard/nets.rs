//! A set of networks with a value each: is an address in it, and by which network.
//!
//! One hash probe per prefix length in use, longest first.

use std::net::IpAddr;

use hashbrown::HashMap;

use crate::cidr::Cidr;

#[derive(Clone, Debug)]
pub(super) struct Nets<T> {
    map: HashMap<Cidr, T>,
    /// How many networks of each length, so that unused lengths cost nothing.
    v4: [u32; 33],
    v6: Box<[u32; 129]>,
    lens_v4: Vec<u8>,
    lens_v6: Vec<u8>,
}

impl<T> Default for Nets<T> {
    fn default() -> Self {
        Nets {
            map: HashMap::new(),
            v4: [0; 33],
            v6: Box::new([0; 129]),
            lens_v4: Vec::new(),
            lens_v6: Vec::new(),
        }
    }
}

impl<T> Nets<T> {
    pub(super) fn insert(&mut self, net: Cidr, value: T) -> Option<T> {
        let old = self.map.insert(net, value);
        if old.is_none() {
            self.count(net, true);
        }
        old
    }

    pub(super) fn remove(&mut self, net: &Cidr) -> Option<T> {
        let old = self.map.remove(net)?;
        self.count(*net, false);
        Some(old)
    }

    pub(super) fn get(&self, net: &Cidr) -> Option<&T> {
        self.map.get(net)
    }

    /// The longest network that holds `addr`.
    pub(super) fn find(&self, addr: IpAddr) -> Option<(Cidr, &T)> {
        if self.map.is_empty() {
            return None;
        }
        let addr = addr.to_canonical();
        let lens = if addr.is_ipv4() { &self.lens_v4 } else { &self.lens_v6 };
        lens.iter().find_map(|&len| {
            let net = Cidr::new(addr, len);
            self.map.get(&net).map(|value| (net, value))
        })
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Cidr, &T)> {
        self.map.iter()
    }

    fn count(&mut self, net: Cidr, add: bool) {
        let v4 = net.addr().is_ipv4();
        let (counts, lens) = if v4 {
            (&mut self.v4[..], &mut self.lens_v4)
        } else {
            (&mut self.v6[..], &mut self.lens_v6)
        };
        let Some(count) = counts.get_mut(usize::from(net.prefix_len())) else { return };
        *count = if add { *count + 1 } else { count.saturating_sub(1) };
        let at = lens.binary_search_by(|l| net.prefix_len().cmp(l));
        match (at, *count) {
            (Err(at), n) if n > 0 => lens.insert(at, net.prefix_len()),
            (Ok(at), 0) => {
                lens.remove(at);
            }
            (Ok(_) | Err(_), _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_network_is_found_as_they_come_and_go() {
        let net = |t: &str| t.parse::<Cidr>().unwrap();
        let ip = |t: &str| t.parse::<IpAddr>().unwrap();
        let mut nets = Nets::default();
        nets.insert(net("10.0.0.0/8"), 1);
        nets.insert(net("10.1.0.0/16"), 2);
        nets.insert(net("10.2.0.0/16"), 3);
        nets.insert(net("2001:db8::/32"), 4);
        let find = |n: &Nets<i32>, t| n.find(ip(t)).map(|(_, v)| *v);
        assert_eq!(find(&nets, "10.1.9.9"), Some(2));
        assert_eq!(nets.remove(&net("10.1.0.0/16")), Some(2));
        assert_eq!(find(&nets, "10.1.9.9"), Some(1));
        assert_eq!(find(&nets, "10.2.9.9"), Some(3));
        assert_eq!(find(&nets, "2001:db8::9"), Some(4));
        nets.remove(&net("10.2.0.0/16"));
        assert_eq!(nets.lens_v4, [8]);
        assert_eq!(nets.remove(&net("10.2.0.0/16")), None);
        assert_eq!(nets.len(), 2);
    }
}
