//! Pike: which source addresses send more than their share, in bounded memory.
//!
//! Addresses are a tree of bytes. A datagram counts at the deepest known node of its source; a
//! node that is warm (a quarter of the density) grows the next byte of the source, so that a
//! million spoofed addresses cost a handful of nodes, while a real flooder grows down to its leaf
//! within a few dozen datagrams. Hits are kept for two sampling windows. A leaf is hot when its
//! hits in the last window, in this one, or the mean of both reach the density: its source is
//! blocked until a window passes in which it is not.
//!
//! The tree is held as a map from prefix to node, so that a known source costs one look-up and
//! nodes come and go freely; the least recently hit node gives way when the table is full. Who is
//! exempt and what a block means is decided in `mod.rs`.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

/// The parameters of the module of that name in OpenSIPS and Kamailio, and the bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PikeConfig {
    /// Length of a sampling window (`sampling_time_unit`).
    pub window: Duration,
    /// Hits per window that a source may not reach (`reqs_density_per_unit`). The block comes
    /// between 1 and 3 times as many, for IPv6 later, because the tree has to grow first.
    pub density: u16,
    /// A node without hits for this long is forgotten (`remove_latency`).
    pub remove_after: Duration,
    /// IPv6 sources are counted by this prefix, 8 to 128 bits.
    pub ipv6_prefix: u8,
    /// Nodes held at most, about 100 bytes each.
    pub max_nodes: usize,
}

impl Default for PikeConfig {
    fn default() -> PikeConfig {
        PikeConfig {
            window: Duration::from_secs(2),
            density: 500,
            remove_after: Duration::from_secs(120),
            ipv6_prefix: 64,
            max_nodes: 65_536,
        }
    }
}

/// What pike makes of one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hit {
    Pass,
    /// The source became hot with this one.
    Blocked,
    /// It was hot before.
    StillBlocked,
}

/// A node's place in the tree: the first bytes of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Prefix {
    /// Left-aligned, zero behind the prefix.
    bits: u128,
    /// Bytes; with `v6` it also tells the families apart.
    len: u8,
    v6: bool,
}

const NIL: u32 = u32::MAX;

#[derive(Clone, Debug)]
struct Node {
    prefix: Prefix,
    /// Hits in the window before `window`, and in `window`.
    before: u16,
    hits: u16,
    window: u32,
    red: bool,
    /// Neighbours in the order of last hits.
    newer: u32,
    older: u32,
}

/// See the module's header.
#[derive(Debug)]
pub struct Pike {
    config: PikeConfig,
    epoch: Instant,
    index: HashMap<Prefix, u32>,
    nodes: Vec<Node>,
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
    /// Windows without a hit after which a node is forgotten.
    remove_windows: u32,
}

impl Pike {
    pub fn new(config: PikeConfig, now: Instant) -> Pike {
        let window_ns = config.window.as_nanos().max(1);
        let windows = config.remove_after.as_nanos() / window_ns;
        Pike {
            config: PikeConfig { max_nodes: config.max_nodes.clamp(64, 1 << 24), ..config },
            epoch: now,
            index: HashMap::new(),
            nodes: Vec::new(),
            free: Vec::new(),
            newest: NIL,
            oldest: NIL,
            remove_windows: u32::try_from(windows).unwrap_or(u32::MAX).max(2),
        }
    }

    /// Counts one datagram of `source`.
    pub fn hit(&mut self, now: Instant, source: IpAddr) -> Hit {
        let window = self.window(now);
        self.forget_old(window);
        let (bits, v6, leaf_len) = self.key(source);
        let deepest = (1..=leaf_len).rev().find_map(|len| {
            self.index.get(&Prefix { bits: cut(bits, len), len, v6 }).map(|&at| (len, at))
        });
        let Some((len, at)) = deepest else {
            self.insert(Prefix { bits: cut(bits, 1), len: 1, v6 }, window);
            return Hit::Pass;
        };
        self.touch(at);
        let density = self.config.density;
        let Some(node) = self.nodes.get_mut(at as usize) else { return Hit::Pass };
        node.count(window);
        if len < leaf_len {
            if node.is_hot(density / 4) {
                let len = len + 1;
                self.insert(Prefix { bits: cut(bits, len), len, v6 }, window);
            }
            return Hit::Pass;
        }
        match (node.is_hot(density), node.red) {
            (false, _) => {
                node.red = false;
                Hit::Pass
            }
            (true, false) => {
                node.red = true;
                Hit::Blocked
            }
            (true, true) => Hit::StillBlocked,
        }
    }

    /// Nodes in use.
    pub fn nodes(&self) -> usize {
        self.index.len()
    }

    fn window(&self, now: Instant) -> u32 {
        let since = now.saturating_duration_since(self.epoch).as_nanos();
        u32::try_from(since / self.config.window.as_nanos().max(1)).unwrap_or(u32::MAX)
    }

    /// The address left-aligned, its family, and the length of its leaf in bytes.
    fn key(&self, source: IpAddr) -> (u128, bool, u8) {
        match source.to_canonical() {
            IpAddr::V4(ip) => (u128::from(ip.to_bits()) << 96, false, 4),
            IpAddr::V6(ip) => {
                let prefix = self.config.ipv6_prefix.clamp(8, 128);
                let bits = ip.to_bits() & (u128::MAX << (128 - u32::from(prefix)));
                (bits, true, prefix.div_ceil(8))
            }
        }
    }

    fn insert(&mut self, prefix: Prefix, window: u32) {
        if self.index.len() >= self.config.max_nodes {
            self.forget(self.oldest);
        }
        let node = Node { prefix, before: 0, hits: 1, window, red: false, newer: NIL, older: NIL };
        let at = match self.free.pop() {
            Some(at) => {
                if let Some(slot) = self.nodes.get_mut(at as usize) {
                    *slot = node;
                }
                at
            }
            None => {
                self.nodes.push(node);
                // max_nodes is below 2^24.
                u32::try_from(self.nodes.len() - 1).unwrap_or(NIL)
            }
        };
        self.index.insert(prefix, at);
        self.link_newest(at);
    }

    /// Takes nodes out that had no hit for long; two per datagram outrun one insertion each.
    fn forget_old(&mut self, window: u32) {
        for _ in 0..2 {
            match self.nodes.get(self.oldest as usize) {
                Some(n) if window.saturating_sub(n.window) > self.remove_windows => {
                    self.forget(self.oldest);
                }
                Some(_) | None => return,
            }
        }
    }

    fn forget(&mut self, at: u32) {
        let Some(prefix) = self.nodes.get(at as usize).map(|n| n.prefix) else { return };
        self.unlink(at);
        self.index.remove(&prefix);
        self.free.push(at);
    }

    fn touch(&mut self, at: u32) {
        if self.newest != at {
            self.unlink(at);
            self.link_newest(at);
        }
    }

    fn link_newest(&mut self, at: u32) {
        let second = self.newest;
        if let Some(node) = self.nodes.get_mut(at as usize) {
            node.newer = NIL;
            node.older = second;
        }
        match self.nodes.get_mut(second as usize) {
            Some(node) => node.newer = at,
            None => self.oldest = at,
        }
        self.newest = at;
    }

    fn unlink(&mut self, at: u32) {
        let Some((newer, older)) = self.nodes.get(at as usize).map(|n| (n.newer, n.older)) else {
            return;
        };
        match self.nodes.get_mut(newer as usize) {
            Some(node) => node.older = older,
            None => self.newest = older,
        }
        match self.nodes.get_mut(older as usize) {
            Some(node) => node.newer = newer,
            None => self.oldest = newer,
        }
    }
}

impl Node {
    fn count(&mut self, window: u32) {
        match window.saturating_sub(self.window) {
            0 => {}
            1 => self.before = std::mem::take(&mut self.hits),
            _ => (self.before, self.hits) = (0, 0),
        }
        self.window = window;
        self.hits = self.hits.saturating_add(1);
    }

    fn is_hot(&self, limit: u16) -> bool {
        let limit = limit.max(1);
        let mean = u16::midpoint(self.before, self.hits);
        self.before >= limit || self.hits >= limit || mean >= limit
    }
}

/// The first `len` bytes.
fn cut(bits: u128, len: u8) -> u128 {
    bits & u128::MAX.checked_shl(128 - 8 * u32::from(len)).unwrap_or(u128::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn config(density: u16) -> PikeConfig {
        PikeConfig { density, max_nodes: 4096, ..PikeConfig::default() }
    }

    fn v4(bits: u32) -> IpAddr {
        Ipv4Addr::from_bits(bits).into()
    }

    /// Datagrams until the block, all at once.
    fn until_blocked(config: PikeConfig, source: IpAddr) -> usize {
        let now = Instant::now();
        let mut pike = Pike::new(config, now);
        (1..100_000).find(|_| pike.hit(now, source) == Hit::Blocked).unwrap()
    }

    #[test]
    fn ipv4_is_blocked_between_one_and_three_densities() {
        for density in [8, 30, 500] {
            let n = until_blocked(config(density), v4(0xc000_0201));
            let density = usize::from(density);
            assert!((density..=3 * density).contains(&n), "{n} of {density}");
        }
    }

    #[test]
    fn ipv6_is_blocked_between_one_and_eight_densities_by_prefix() {
        let source = IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96));
        for prefix in [48, 64, 128] {
            let c = PikeConfig { ipv6_prefix: prefix, ..config(30) };
            let n = until_blocked(c, source);
            assert!((30..=240).contains(&n), "{n} by /{prefix}");
        }
        let now = Instant::now();
        let mut pike = Pike::new(config(30), now);
        let host = |n: u128| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) + n));
        assert!((0..240).any(|n| pike.hit(now, host(n)) == Hit::Blocked));
        assert_eq!(pike.hit(now, host(999)), Hit::StillBlocked);
        let other_64 = host(1 << 64);
        assert_eq!(pike.hit(now, other_64), Hit::Pass);
    }

    #[test]
    fn a_block_ends_after_a_quiet_window_and_only_then() {
        let t0 = Instant::now();
        let mut pike = Pike::new(config(30), t0);
        let flooder = v4(0x0a00_0001);
        while pike.hit(t0, flooder) != Hit::Blocked {}
        let at = |seconds| t0 + Duration::from_secs(seconds);
        assert_eq!(pike.hit(at(1), flooder), Hit::StillBlocked);
        // The window before this one was hot.
        assert_eq!(pike.hit(at(3), flooder), Hit::StillBlocked);
        // This one is the first whose two windows are both calm.
        assert_eq!(pike.hit(at(5), flooder), Hit::Pass);
        // A source that goes on at its rate stays blocked.
        for n in 0..200 {
            pike.hit(at(10) + Duration::from_millis(20 * n), flooder);
        }
        assert_eq!(pike.hit(at(14), flooder), Hit::StillBlocked);
    }

    #[test]
    fn neighbours_of_a_flooder_pass() {
        let now = Instant::now();
        let mut pike = Pike::new(config(30), now);
        for _ in 0..1_000 {
            pike.hit(now, v4(0x0a00_0001));
        }
        for n in 2..250 {
            assert_eq!(pike.hit(now, v4(0x0a00_0000 + n)), Hit::Pass);
        }
    }

    #[test]
    fn a_spoofed_flood_is_bounded_and_a_real_flooder_in_it_is_found() {
        let t0 = Instant::now();
        let mut pike = Pike::new(PikeConfig { max_nodes: 5_000, ..config(30) }, t0);
        let mut x = 0x1234_5678u32;
        let mut blocked = false;
        for n in 0..400_000u64 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let now = t0 + Duration::from_micros(n * 20);
            pike.hit(now, v4(x));
            assert!(pike.nodes() <= 5_000);
            if n % 500 == 0 {
                blocked |= pike.hit(now, v4(0xc633_6401)) == Hit::Blocked;
            }
        }
        assert!(blocked);
        assert!(pike.nodes.len() <= 5_000);
    }

    #[test]
    fn idle_nodes_are_forgotten() {
        let t0 = Instant::now();
        let mut pike = Pike::new(config(8), t0);
        for n in 0..200 {
            pike.hit(t0, v4(n << 24));
        }
        assert_eq!(pike.nodes(), 200);
        for n in 0..150 {
            pike.hit(t0 + Duration::from_secs(300) + Duration::from_secs(10 * n), v4(1));
        }
        assert!(pike.nodes() <= 4, "{}", pike.nodes());
    }

    proptest! {
        /// No window holds as many as the density, whatever the others do: never blocked.
        #[test]
        fn a_source_under_the_limit_is_never_blocked(
            ops in prop::collection::vec((0u64..400, 0u32..6, any::<bool>()), 1..600),
        ) {
            let t0 = Instant::now();
            let density = 10;
            let mut pike = Pike::new(PikeConfig { max_nodes: 64, ..config(density) }, t0);
            let mut now = t0;
            let (mut window, mut sent) = (0, 0);
            for (ms, other, ours) in ops {
                now += Duration::from_millis(ms);
                if !ours {
                    pike.hit(now, v4(0x0a00_0000 + other));
                    continue;
                }
                let this = pike.window(now);
                if this != window {
                    (window, sent) = (this, 0);
                }
                if sent + 1 < density {
                    sent += 1;
                    prop_assert_eq!(pike.hit(now, v4(0x0a00_00ff)), Hit::Pass);
                }
            }
        }

        /// The table never grows past its bound, for any sequence of both families.
        #[test]
        fn memory_is_bounded(
            ops in prop::collection::vec((0u64..3_000, any::<u128>(), any::<bool>()), 1..2_000),
        ) {
            let t0 = Instant::now();
            let mut pike = Pike::new(PikeConfig { max_nodes: 64, density: 4, ..config(4) }, t0);
            let mut now = t0;
            for (ms, bits, v6) in ops {
                now += Duration::from_millis(ms);
                let low = v4((bits & 0x0301_0301) as u32);
                pike.hit(now, if v6 { Ipv6Addr::from_bits(bits).into() } else { low });
                prop_assert!(pike.nodes() <= 64 && pike.nodes.len() <= 64);
                prop_assert_eq!(pike.nodes() + pike.free.len(), pike.nodes.len());
            }
        }
    }
}
