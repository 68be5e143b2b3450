//! Next hops, devices and local addresses, and what has changed of them.
//!
//! Route look-ups ask the kernel (RTM_GETROUTE), so that policy rules, metrics and multipath are
//! its own. Neighbours are not looked at: both kernel ways resolve them per packet, a changed link
//! address is used at once. What follows from a change is decided by `relay.rs`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hashbrown::HashMap;
use nix::errno::Errno;

use super::backend::Device;
use super::netlink::{
    Attrs, Bus, MsgBuf, NLM_F_DUMP, NLM_F_REQUEST, NetlinkSocket, NlMsgView, RecvError, ne32,
};
use super::plan::{NextHop, Reason};

/// What has changed since the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Devices or addresses in use: everything is to be planned again.
    pub(crate) all: bool,
    /// Devices came, went, or are not what they were.
    pub(crate) devices: bool,
    /// Destinations whose routes may have changed.
    pub(crate) prefixes: Vec<Prefix>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        !self.all && !self.devices && self.prefixes.is_empty()
    }

    /// Whether the way to `dst` may have changed.
    pub(crate) fn touch(&self, dst: IpAddr) -> bool {
        self.all || self.prefixes.iter().any(|p| p.contains(dst))
    }
}

/// A destination prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub(crate) addr: IpAddr,
    pub(crate) len: u8,
}

impl Prefix {
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        match (self.addr, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let differ = a.to_bits() ^ b.to_bits();
                differ.leading_zeros() >= u32::from(self.len)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let differ = a.to_bits() ^ b.to_bits();
                differ.leading_zeros() >= u32::from(self.len)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// What the relay asks of the network stack; the tests have one without a kernel.
pub(crate) trait Network: Send {
    /// Where a datagram from `src` (an address of ours, or one that may become ours) to `dst`
    /// leaves.
    fn next_hop(&mut self, src: IpAddr, dst: IpAddr) -> Result<NextHop, Reason>;

    /// The device that has the local address.
    fn device_of(&self, local: IpAddr) -> Option<(Device, u32)>;

    /// A device with its MTU.
    fn device(&self, index: u32) -> Option<(Device, u32)>;

    /// A device by its name.
    fn named(&self, name: &str) -> Option<(Device, u32)>;

    /// Reads notices.
    fn poll(&mut self) -> Changes;
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    device: Device,
    up: bool,
    loopback: bool,
    mtu: u32,
    /// The device below, of a VLAN.
    vlan_of: Option<u32>,
}

/// The network stack of the thread's network namespace.
pub(crate) struct Stack {
    requests: NetlinkSocket,
    notices: NetlinkSocket,
    buf: MsgBuf,
    links: HashMap<u32, Link>,
    addrs: HashMap<IpAddr, u32>,
    hops: HashMap<(IpAddr, IpAddr), Result<NextHop, Reason>>,
    /// The cache was full once: it no longer knows all devices in use.
    hops_partial: bool,
}

const GROUPS: u32 = group(1) // links
    | group(5) | group(7) | group(8) // IPv4 addresses, routes, rules
    | group(9) | group(11) | group(19) // IPv6 addresses, routes, rules
    | group(32); // next hop objects

const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

/// Cached look-ups; at the limit they start over.
const HOPS_MAX: usize = 65_536;
/// Changed prefixes told apart; above, everything is planned again.
const PREFIXES_MAX: usize = 64;
/// Notices read in one poll; the rest waits for the next.
const NOTICES_MAX: usize = 1_000;

const RTM_F_CLONED: u32 = 0x200;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_METRICS: u16 = 8;
const RTA_VIA: u16 = 18;
const RTAX_MTU: u16 = 2;
const RTMSG_LEN: usize = 12;
const IFINFO_LEN: usize = 16;
const IFADDR_LEN: usize = 8;

impl Stack {
    /// Opens the sockets and reads devices and addresses.
    pub(crate) fn open() -> io::Result<Self> {
        let mut stack = Stack {
            requests: NetlinkSocket::open(Bus::Route, 0)?,
            notices: NetlinkSocket::open(Bus::Route, GROUPS)?,
            buf: MsgBuf::new(),
            links: HashMap::new(),
            addrs: HashMap::new(),
            hops: HashMap::new(),
            hops_partial: false,
        };
        stack.refresh()?;
        Ok(stack)
    }

    /// Reads devices and addresses again; says what of them has changed. Hosts of containers make
    /// and remove devices all the time that no flow knows.
    fn refresh(&mut self) -> io::Result<Changes> {
        let mut links = HashMap::new();
        self.dump(libc::RTM_GETLINK, IFINFO_LEN, |message| {
            if let Some(link) = parse_link(message) {
                links.insert(link.device.index, link);
            }
        })?;
        let parents: Vec<u32> = links.values().filter_map(|l: &Link| l.vlan_of).collect();
        for parent in parents {
            if let Some(link) = links.get_mut(&parent) {
                link.device.vlan_parent = true;
            }
        }
        let mut addrs = HashMap::new();
        self.dump(libc::RTM_GETADDR, IFADDR_LEN, |message| {
            if let Some((ip, index)) = parse_addr(message) {
                // Every device has a link-local address; media does not use them.
                if !is_link_local(ip) {
                    addrs.entry(ip).or_insert(index);
                }
            }
        })?;
        let differs = |index: &u32| self.links.get(index) != links.get(index);
        let in_use = |index: &u32| {
            self.hops_partial || self.hops.values().flatten().any(|hop| hop.oif == *index)
        };
        let changed: Vec<u32> = self.links.keys().copied().filter(|i| differs(i)).collect();
        let came = links.keys().any(|index| !self.links.contains_key(index));
        let changes = Changes {
            all: addrs != self.addrs || changed.iter().any(in_use),
            devices: came || !changed.is_empty(),
            prefixes: Vec::new(),
        };
        self.links = links;
        self.addrs = addrs;
        Ok(changes)
    }

    fn dump(
        &mut self,
        kind: u16,
        fixed: usize,
        mut each: impl FnMut(&NlMsgView<'_>),
    ) -> io::Result<()> {
        self.buf.clear();
        let seq = self.requests.next_seq();
        let header = [0u8; IFINFO_LEN];
        self.buf.message(kind, NLM_F_REQUEST | NLM_F_DUMP, seq, &header[..fixed]);
        self.buf.finish();
        self.requests.send(&self.buf)?;
        loop {
            match self.requests.recv() {
                Ok(messages) => {
                    for message in messages.filter(|m| m.seq == seq) {
                        match message.errno() {
                            Some(errno) if errno != 0 => {
                                return Err(io::Error::from_raw_os_error(errno));
                            }
                            Some(_) => {}
                            None if message.is_done() => return Ok(()),
                            None => each(&message),
                        }
                    }
                }
                Err(RecvError::Empty) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(RecvError::Overrun) => return Err(Errno::ENOBUFS.into()),
                Err(RecvError::Errno(errno)) => return Err(errno.into()),
            }
        }
    }

    fn look_up(&mut self, src: IpAddr, dst: IpAddr) -> Result<NextHop, Reason> {
        // The source counts (policy rules) when it is ours. On a standby it is not yet: the kernel
        // refuses such a look-up.
        let src = self.addrs.contains_key(&src).then_some(src);
        self.buf.clear();
        let seq = self.requests.next_seq();
        let family = if dst.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let bits: u8 = if dst.is_ipv4() { 32 } else { 128 };
        let mut header = [0u8; RTMSG_LEN];
        header[0] = u8::try_from(family).unwrap_or(0);
        header[1] = bits;
        header[2] = if src.is_some() { bits } else { 0 };
        self.buf.message(libc::RTM_GETROUTE, NLM_F_REQUEST, seq, &header);
        attr_ip(&mut self.buf, RTA_DST, dst);
        if let Some(src) = src {
            attr_ip(&mut self.buf, RTA_SRC, src);
        }
        self.buf.finish();
        self.requests.send(&self.buf).map_err(|_| Reason::NoRoute)?;
        let mut answer = Err(Reason::NoRoute);
        while let Ok(messages) = self.requests.recv() {
            for message in messages.filter(|m| m.seq == seq) {
                answer = match message.errno() {
                    Some(libc::EACCES | libc::EINVAL) => Err(Reason::Blocked),
                    Some(_) => Err(Reason::NoRoute),
                    None => parse_hop(&message, dst),
                };
            }
        }
        let hop = answer?;
        let link = self.links.get(&hop.oif).filter(|l| l.up).ok_or(Reason::DeviceDown)?;
        if link.loopback {
            return Err(Reason::LocalDestination);
        }
        Ok(NextHop { mtu: hop.mtu.min(link.mtu), ..hop })
    }

    /// The Ethernet devices that are up.
    pub(crate) fn ethernet(&self) -> impl Iterator<Item = &Device> {
        let links = self.links.values().filter(|l| l.up && !l.loopback);
        links.map(|l| &l.device).filter(|d| d.ethernet)
    }

    fn shown(&self, index: u32) -> Option<(Device, u32)> {
        let link = self.links.get(&index).filter(|l| l.up)?;
        Some((link.device.clone(), link.mtu))
    }
}

impl Network for Stack {
    fn next_hop(&mut self, src: IpAddr, dst: IpAddr) -> Result<NextHop, Reason> {
        if let Some(known) = self.hops.get(&(src, dst)) {
            return *known;
        }
        let found = self.look_up(src, dst);
        if self.hops.len() >= HOPS_MAX {
            self.hops.clear();
            self.hops_partial = true;
        }
        self.hops.insert((src, dst), found);
        found
    }

    fn device_of(&self, local: IpAddr) -> Option<(Device, u32)> {
        self.shown(*self.addrs.get(&local)?)
    }

    fn device(&self, index: u32) -> Option<(Device, u32)> {
        self.shown(index)
    }

    fn named(&self, name: &str) -> Option<(Device, u32)> {
        let link = self.links.values().find(|l| l.device.name == name)?;
        self.shown(link.device.index)
    }

    fn poll(&mut self) -> Changes {
        let mut changes = Changes::default();
        let mut look_again = false;
        for _ in 0..NOTICES_MAX {
            match self.notices.recv() {
                Ok(messages) => {
                    for message in messages {
                        match notice(&message) {
                            Notice::Nothing => {}
                            Notice::Links => look_again = true,
                            Notice::Everything => changes.all = true,
                            Notice::Route(prefix) => changes.prefixes.push(prefix),
                        }
                    }
                }
                Err(RecvError::Empty) => break,
                Err(RecvError::Overrun) => {
                    look_again = true;
                    changes.all = true;
                }
                Err(RecvError::Errno(errno)) => {
                    tracing::warn!(%errno, "route notices can't be read");
                    break;
                }
            }
        }
        if look_again {
            match self.refresh() {
                Ok(seen) => {
                    changes.all |= seen.all;
                    changes.devices = seen.devices;
                }
                Err(error) => tracing::warn!(%error, "devices and addresses can't be read"),
            }
        }
        changes.all |= changes.prefixes.len() > PREFIXES_MAX;
        if !changes.is_empty() {
            self.hops.retain(|(_, dst), hop| hop.is_ok() && !changes.touch(*dst));
        }
        changes
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

enum Notice {
    Nothing,
    Links,
    Everything,
    Route(Prefix),
}

fn notice(message: &NlMsgView<'_>) -> Notice {
    match message.kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK | libc::RTM_NEWADDR | libc::RTM_DELADDR => {
            Notice::Links
        }
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => parse_prefix(message),
        // Rules and next hop objects.
        _ => Notice::Everything,
    }
}

fn parse_prefix(message: &NlMsgView<'_>) -> Notice {
    let Some(header) = message.payload.get(..RTMSG_LEN) else { return Notice::Everything };
    if header.get(8..12).and_then(ne32).is_some_and(|flags| flags & RTM_F_CLONED != 0) {
        return Notice::Nothing;
    }
    let len = header[1];
    let dst = Attrs::new(message.after(RTMSG_LEN)).find(RTA_DST).and_then(parse_ip);
    let any = match i32::from(header[0]) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return Notice::Nothing,
    };
    Notice::Route(Prefix { addr: dst.unwrap_or(any), len })
}

fn parse_hop(message: &NlMsgView<'_>, dst: IpAddr) -> Result<NextHop, Reason> {
    let kind = *message.payload.get(7).ok_or(Reason::NoRoute)?;
    match kind {
        libc::RTN_UNICAST => {}
        libc::RTN_LOCAL | libc::RTN_ANYCAST => return Err(Reason::LocalDestination),
        libc::RTN_BLACKHOLE | libc::RTN_UNREACHABLE | libc::RTN_PROHIBIT => {
            return Err(Reason::Blocked);
        }
        libc::RTN_BROADCAST | libc::RTN_MULTICAST => return Err(Reason::Address),
        _ => return Err(Reason::NoRoute),
    }
    let attrs = Attrs::new(message.after(RTMSG_LEN));
    if attrs.find(RTA_VIA).is_some() {
        return Err(Reason::GatewayFamily);
    }
    let oif = attrs.find(RTA_OIF).and_then(ne32).ok_or(Reason::NoRoute)?;
    let via = attrs.find(RTA_GATEWAY).and_then(parse_ip).unwrap_or(dst);
    let mtu = attrs.nested(RTA_METRICS).and_then(|m| m.find(RTAX_MTU)).and_then(ne32);
    Ok(NextHop { oif, via, mtu: mtu.filter(|m| *m > 0).unwrap_or(u32::MAX) })
}

fn parse_link(message: &NlMsgView<'_>) -> Option<Link> {
    const IFLA_IFNAME: u16 = 3;
    const IFLA_MTU: u16 = 4;
    const IFLA_LINK: u16 = 5;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    if message.kind != libc::RTM_NEWLINK {
        return None;
    }
    let header = message.payload.get(..IFINFO_LEN)?;
    let hardware = u16::from_ne_bytes(header.get(2..4)?.try_into().ok()?);
    let index = header.get(4..8).and_then(ne32)?;
    let flags = header.get(8..12).and_then(ne32)?;
    let attrs = Attrs::new(message.after(IFINFO_LEN));
    let name = attrs.find(IFLA_IFNAME)?;
    let name = std::str::from_utf8(name.split(|b| *b == 0).next()?).ok()?.to_owned();
    let kind = attrs.nested(IFLA_LINKINFO).and_then(|i| i.find(IFLA_INFO_KIND));
    let is_vlan = kind.is_some_and(|k| k.starts_with(b"vlan"));
    let below = attrs.find(IFLA_LINK).and_then(ne32).filter(|_| is_vlan);
    let has = |flag: libc::c_int| flags & flag.unsigned_abs() != 0;
    Some(Link {
        device: Device {
            name,
            index,
            ethernet: hardware == libc::ARPHRD_ETHER,
            vlan_parent: false,
        },
        up: has(libc::IFF_UP),
        loopback: has(libc::IFF_LOOPBACK),
        mtu: attrs.find(IFLA_MTU).and_then(ne32)?,
        vlan_of: below,
    })
}

fn parse_addr(message: &NlMsgView<'_>) -> Option<(IpAddr, u32)> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    if message.kind != libc::RTM_NEWADDR {
        return None;
    }
    let index = message.payload.get(4..8).and_then(ne32)?;
    let attrs = Attrs::new(message.after(IFADDR_LEN));
    let ip = attrs.find(IFA_LOCAL).or_else(|| attrs.find(IFA_ADDRESS)).and_then(parse_ip)?;
    Some((ip, index))
}

fn parse_ip(raw: &[u8]) -> Option<IpAddr> {
    match raw.len() {
        4 => <[u8; 4]>::try_from(raw).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(raw).ok().map(IpAddr::from),
        _ => None,
    }
}

fn attr_ip(buf: &mut MsgBuf, kind: u16, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => buf.attr(kind, &ip.octets()),
        IpAddr::V6(ip) => buf.attr(kind, &ip.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_contain_by_their_length() {
        let prefix = |s: &str, len| Prefix { addr: s.parse().expect("address"), len };
        let ip = |s: &str| s.parse::<IpAddr>().expect("address");
        for (p, addr, inside) in [
            (prefix("0.0.0.0", 0), "203.0.113.9", true),
            (prefix("192.0.2.0", 24), "192.0.2.255", true),
            (prefix("192.0.2.0", 24), "192.0.3.0", false),
            (prefix("192.0.2.1", 32), "192.0.2.1", true),
            (prefix("192.0.2.1", 32), "192.0.2.0", false),
            (prefix("0.0.0.0", 0), "2001:db8::1", false),
            (prefix("2001:db8::", 32), "2001:db8:ffff::1", true),
            (prefix("2001:db8::", 32), "2001:db9::1", false),
            (prefix("::", 0), "2001:db9::1", true),
        ] {
            assert_eq!(p.contains(ip(addr)), inside, "{p:?} {addr}");
        }
    }
}
