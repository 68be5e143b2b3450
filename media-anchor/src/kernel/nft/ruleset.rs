//! Tables, sets, chains and rules as one nftnl batch each.
//!
//! What matches is left to `elements.rs`; what is sent, and what the kernel says to it, likewise.
//!
//! ```text
//! table netdev <name>
//!   map m4  saddr daddr sport dport → ttl.. saddr daddr sport dport oif nexthop tos   (counter)
//!           of streams that leave with the common code point, the first of them
//!   map o4  the same of all others
//!   map m6
//!   chain in_<device>  type filter hook ingress device <device> priority -300
//! ```

use std::ffi::{CStr, CString, c_void};
use std::net::Ipv4Addr;

use nftnl::{Batch, Chain, ChainType, Hook, MsgType, NlMsg, Policy, ProtoFamily, Rule, Table};

use super::super::backend::Device;
use super::super::element::{QUAD4, QUAD6, TTL};
use super::super::netlink::MsgBuf;
use super::expr::{Base, Csum, Expr, JOIN_FIRST, JOIN_THEN, reg};

/// nfnetlink header of a netdev message: family (NFPROTO_NETDEV), version, resource id.
pub(super) const NETDEV: [u8; 4] = [5, 0, 0, 0];
/// Names of the maps of the relay.
pub(super) const MAP4: &str = "m4";
pub(super) const MAP4_OTHER: &str = "o4";
pub(super) const MAP6: &str = "m6";
/// Elements of the first map, which is small: its buckets stay in the caches, which is worth some 50 ns
/// a packet. What finds no room there lies in the other, and pays for both.
pub(super) const FIRST_MAX: u32 = 8_192;
/// Bytes of map data: see [`data4`]; of IPv6 quadruple, device, next hop, first four bytes of the header.
pub(super) const DATA4: usize = 4 + QUAD4 + 4 + 4 + 4;
pub(super) const DATA6: usize = QUAD6 + 4 + 16 + 4;

const RELAY_PRIORITY: i32 = -300;
const BAN_PRIORITY: i32 = -310;
const IPPROTO_UDP: u8 = 17;
/// Of the IPv4 header.
const IP_CSUM: Csum = Csum::Inet { offset: 10 };
const PACKET_HOST: u8 = 0;

/// nf_tables message type.
pub(super) fn msg_type(msg: i32) -> u16 {
    const SUBSYSTEM: u16 = 10;
    SUBSYSTEM << 8 | u16::try_from(msg).expect("message numbers are small")
}

/// A message written by hand, for what nftnl has no type for.
struct Raw {
    buf: MsgBuf,
}

// SAFETY: the messages below are a few hundred bytes, far below nft_nlmsg_maxsize().
unsafe impl NlMsg for Raw {
    unsafe fn write(&self, buf: *mut c_void, seq: u32, _msg_type: MsgType) {
        let bytes = self.buf.bytes();
        debug_assert!(bytes.len() < 4096);
        // SAFETY: the caller gives room for the longest message; a netlink header of 16 bytes
        // stands at the start of ours, with the sequence number at 8.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), buf.cast::<u8>(), bytes.len());
            std::ptr::copy_nonoverlapping(seq.to_ne_bytes().as_ptr(), buf.cast::<u8>().add(8), 4);
        }
    }
}

/// Types of keys by nft's numbers.
pub(super) const SHOWN_AS_NUMBER: u32 = 0;
pub(super) const SHOWN_AS_IPV4: u32 = 7;
pub(super) const SHOWN_AS_IPV6: u32 = 8;

/// What a set is.
pub(super) struct SetSpec<'a> {
    pub(super) name: &'a str,
    pub(super) id: u32,
    pub(super) key_len: u32,
    /// How `nft` shows a key: see [`SHOWN_AS_NUMBER`] and its like. The kernel does not look at it.
    pub(super) key_type: u32,
    /// Bytes of data: makes it a map.
    pub(super) data_len: Option<u32>,
    /// Most elements; without a timeout it also makes the set a hash of fixed size.
    pub(super) size: u32,
    pub(super) timeout: bool,
    pub(super) interval: bool,
    /// A counter in each element.
    pub(super) counter: bool,
}

fn new_set(table: &str, spec: &SetSpec<'_>) -> Raw {
    const NFT_SET_INTERVAL: u32 = 0x4;
    const NFT_SET_MAP: u32 = 0x8;
    const NFT_SET_TIMEOUT: u32 = 0x10;
    let mut buf = MsgBuf::new();
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let flags = u16::try_from(flags).expect("16 bits of flags");
    buf.message(msg_type(libc::NFT_MSG_NEWSET), flags, 0, &NETDEV);
    buf.attr_str(1, table);
    buf.attr_str(2, spec.name);
    let mut set_flags = 0;
    for (on, flag) in [
        (spec.data_len.is_some(), NFT_SET_MAP),
        (spec.timeout, NFT_SET_TIMEOUT),
        (spec.interval, NFT_SET_INTERVAL),
    ] {
        set_flags |= if on { flag } else { 0 };
    }
    buf.attr_be32(3, set_flags);
    buf.attr_be32(4, spec.key_type);
    buf.attr_be32(5, spec.key_len);
    if let Some(len) = spec.data_len {
        buf.attr_be32(6, 0); // data type: a value, not a verdict
        buf.attr_be32(7, len);
    }
    let desc = buf.nest(9);
    buf.attr_be32(1, spec.size);
    buf.end(desc);
    buf.attr_be32(10, spec.id);
    if spec.counter {
        let expr = buf.nest(17);
        buf.attr_str(1, "counter");
        buf.end(expr);
    }
    buf.finish();
    Raw { buf }
}

fn cstring(name: &str) -> CString {
    CString::new(name).expect("names were checked for NUL when they came in")
}

/// Replaces the table of that name, whatever is in it, by an empty one with these sets.
pub(super) fn replace_table(table: &str, sets: &[SetSpec<'_>]) -> Batch {
    let mut batch = Batch::new();
    let nft = Table::new(cstring(table), ProtoFamily::NetDev);
    batch.add(&nft, MsgType::Add);
    batch.add(&nft, MsgType::Del);
    batch.add(&nft, MsgType::Add);
    for spec in sets {
        batch.add(&new_set(table, spec), MsgType::Add);
    }
    batch
}

/// Removes the table and all in it.
pub(super) fn delete_table(table: &str) -> Batch {
    let mut batch = Batch::new();
    batch.add(&Table::new(cstring(table), ProtoFamily::NetDev), MsgType::Del);
    batch
}

/// The maps of the relay.
pub(super) fn relay_sets(size: u32) -> [SetSpec<'static>; 3] {
    let map = |name, id, key: usize, data: usize, size| SetSpec {
        name,
        id,
        key_len: u32::try_from(key).expect("small"),
        key_type: SHOWN_AS_NUMBER,
        data_len: Some(u32::try_from(data).expect("small")),
        size,
        timeout: false,
        interval: false,
        counter: true,
    };
    [
        map(MAP4, 1, QUAD4, DATA4, size.min(FIRST_MAX)),
        map(MAP6, 2, QUAD6, DATA6, size),
        map(MAP4_OTHER, 3, QUAD4, DATA4, size),
    ]
}

/// Name of a device's chain.
fn chain_name(device: &str) -> CString {
    cstring(&format!("in_{device}"))
}

fn ingress_chain<'a>(table: &'a Table, device: &CStr, name: CString, priority: i32) -> Chain<'a> {
    let mut chain = Chain::new(name, table);
    chain.set_type(ChainType::Filter);
    // The netdev family numbers its hooks by itself: its ingress is 0.
    chain.set_hook(Hook::PreRouting, priority);
    chain.set_policy(Policy::Accept);
    chain.set_device(device);
    chain
}

fn add_rule(batch: &mut Batch, chain: &Chain<'_>, exprs: &[Expr]) {
    let mut rule = Rule::new(chain);
    for expr in exprs {
        rule.add_expr(expr);
    }
    batch.add(&rule, MsgType::Add);
}

/// The chain of a device with its rules.
pub(super) fn relay_chain(table: &str, device: &Device) -> Batch {
    let mut batch = Batch::new();
    let nft = Table::new(cstring(table), ProtoFamily::NetDev);
    let name = cstring(&device.name);
    let chain = ingress_chain(&nft, &name, chain_name(&device.name), RELAY_PRIORITY);
    batch.add(&chain, MsgType::Add);
    for length in [Length::Short, Length::Any] {
        add_rule(&mut batch, &chain, &rule4(device, length, (MAP4, 1), mark_common()));
        add_rule(&mut batch, &chain, &rule4(device, length, (MAP4_OTHER, 3), mark_own()));
    }
    add_rule(&mut batch, &chain, &rule6(device));
    batch
}

/// Deletes a device's chain with its rules.
pub(super) fn delete_chain(table: &str, device: &str) -> Batch {
    let mut batch = Batch::new();
    let nft = Table::new(cstring(table), ProtoFamily::NetDev);
    batch.add(&Chain::new(chain_name(device), &nft), MsgType::Del);
    batch
}

/// Frames of VLAN devices above this one are theirs: with the tag in place the EtherType of the
/// frame is that of the tag.
fn untagged(device: &Device, ether_type: [u8; 2]) -> Vec<Expr> {
    if !device.vlan_parent {
        return Vec::new();
    }
    vec![Expr::load(Base::Link, 12, 2, reg(0)), Expr::equals(reg(0), &ether_type)]
}

/// Only frames to us: a flooded frame is seen by the standby too, which holds the same elements.
fn to_us() -> [Expr; 2] {
    [Expr::meta(libc::NFT_META_PKTTYPE, reg(0)), Expr::equals(reg(0), &[PACKET_HOST])]
}

/// The code point of the first map: EF, what telephony is marked with (RFC 4594).
pub(super) const COMMON_DSCP: u8 = 46;
const COMMON_TOS: u8 = COMMON_DSCP << 2;

/// Registers of the IPv4 rules: the first eight bytes of the header, then the element's data as
/// [`data4`] makes it. The key lies where the leaving quadruple comes to lie.
const HEADER: u32 = 1;
const DATA: u32 = 3;
const QUAD: u32 = 4;
const PORTS: u32 = 6;
const OIF: u32 = 7;
const VIA: u32 = 8;
const MARK: u32 = 9;
const JOINED: u32 = 10;

/// Data of an IPv4 element: TTL, protocol and checksum of the header as they leave, the quadruple,
/// the device in host order, the next hop, the header's first two bytes twice.
///
/// A leaving datagram may not be fragmented, and its identification, which then means nothing (RFC
/// 6864 §4.1), is the complement of its length: both together add nothing to the header's checksum,
/// which thus is the same for each packet of a flow.
pub(super) fn data4(leaves: &[u8], oif: u32, via: Ipv4Addr, dscp: u8) -> [u8; DATA4] {
    let (mark, fixed) = ([0x45, dscp << 2], [TTL + 1, IPPROTO_UDP]);
    let (addresses, _) = leaves.split_at(8);
    let header = [&mark[..], &DONT_FRAGMENT, &fixed, addresses].concat();
    let words = header.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let [_, _, checksum @ ..] = (!((sum & 0xffff) + (sum >> 16))).to_be_bytes();
    let parts = [&fixed, &checksum, leaves, &oif.to_ne_bytes(), &via.octets(), &mark, &mark];
    let mut data = [0; DATA4];
    for (to, from) in data.iter_mut().zip(parts.concat()) {
        *to = from;
    }
    data
}

/// Flags and offset of a datagram that may not be fragmented.
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];

/// Which packets an IPv4 rule is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Length {
    /// Shorter than 1,024 bytes: no path fragments them, so that their header can be made anew.
    Short,
    Any,
}

/// What the IPv4 rules match; the header's first eight bytes and the element's data are in their
/// registers afterwards. Loads of 2 or 4 bytes at a multiple of that are evaluated inline by the
/// kernel, others cost a call each. An element is in one map only, and a packet that is found leaves:
/// it is counted once.
fn match4(device: &Device, length: Length, map: (&str, u32)) -> Vec<Expr> {
    let mut rule = untagged(device, [0x08, 0x00]);
    // Version 4 without options. Whatever is not IPv4 has no transport header below.
    rule.push(Expr::load(Base::Network, 0, 4, reg(HEADER)));
    match length {
        Length::Short => rule.extend([
            Expr::bits(reg(HEADER), reg(0), [0xff, 0, 0xfc, 0], [0; 4]),
            Expr::equals(reg(0), &[0x45, 0, 0, 0]),
        ]),
        Length::Any => rule.push(Expr::equals(reg(HEADER), &[0x45])),
    }
    rule.extend(to_us());
    rule.extend([
        Expr::load(Base::Network, 9, 1, reg(0)),
        Expr::equals(reg(0), &[IPPROTO_UDP]),
        // Identification, flags, offset: fragments are the stack's.
        Expr::load(Base::Network, 4, 4, reg(HEADER + 1)),
        Expr::bits(reg(HEADER + 1), reg(0), [0, 0, 0x3f, 0xff], [0; 4]),
        Expr::equals(reg(0), &[0; 4]),
        Expr::load(Base::Network, 12, 4, reg(QUAD)),
        Expr::load(Base::Network, 16, 4, reg(QUAD + 1)),
        Expr::load(Base::Transport, 0, 4, reg(PORTS)),
        Expr::lookup(map.0, map.1, reg(QUAD), Some(reg(DATA))),
    ]);
    rule
}

/// The common code point into the header's first word.
fn mark_common() -> Vec<Expr> {
    let first = reg(HEADER);
    vec![Expr::bits(first, first, [0xff, 0, 0xff, 0xff], [0, COMMON_TOS, 0, 0])]
}

/// The element's own code point, then the packet's length, into the header's first word.
fn mark_own() -> Vec<Expr> {
    let (mark, length) = (reg(JOINED + JOIN_FIRST), reg(JOINED + JOIN_THEN));
    vec![
        Expr::bits(reg(MARK), mark, [0xff; 4], [0; 4]),
        Expr::load(Base::Network, 2, 2, length),
        Expr::shift16(reg(JOINED), reg(HEADER - 1)),
    ]
}

/// The rule for the packets of a map. Each write that moves a checksum along costs more than a tenth
/// of a packet: a short one has its header up to the addresses written as it is to be.
fn rule4(device: &Device, length: Length, map: (&str, u32), mark: Vec<Expr>) -> Vec<Expr> {
    let mut rule = match4(device, length, map);
    rule.extend(mark);
    let addresses = match length {
        Length::Short => {
            let second = reg(HEADER + 1);
            rule.extend([
                Expr::load(Base::Network, 2, 2, second),
                Expr::bits(second, second, [0xff, 0xff, 0, 0], [0xff, 0xff, 0x40, 0]),
                Expr::store(Base::Network, 0, 12, reg(HEADER), Csum::None, false),
            ]);
            Csum::None
        }
        Length::Any => {
            // Identification and flags stay; TTL and protocol are the first of the element's data.
            rule.push(Expr::store(Base::Network, 0, 10, reg(HEADER), IP_CSUM, false));
            IP_CSUM
        }
    };
    // `fwd` takes one off the TTL, as a router does.
    rule.extend([
        Expr::store(Base::Network, 12, 8, reg(QUAD), addresses, true),
        Expr::store(Base::Transport, 0, 4, reg(PORTS), Csum::None, true),
        Expr::forward(reg(OIF), reg(VIA), libc::NFPROTO_IPV4),
    ]);
    rule
}

fn rule6(device: &Device) -> Vec<Expr> {
    let mut rule = untagged(device, [0x86, 0xdd]);
    rule.extend([Expr::meta(libc::NFT_META_PROTOCOL, reg(0)), Expr::equals(reg(0), &[0x86, 0xdd])]);
    rule.extend(to_us());
    // UDP right behind the fixed header: extension headers, fragments among them, are the stack's.
    rule.extend([
        Expr::load(Base::Network, 6, 1, reg(0)),
        Expr::equals(reg(0), &[IPPROTO_UDP]),
        Expr::load(Base::Network, 8, 32, reg(0)),
        Expr::load(Base::Transport, 0, 4, reg(8)),
        Expr::lookup(MAP6, 2, reg(0), Some(reg(0))),
        Expr::immediate(reg(15), &[TTL + 1]),
        Expr::store(Base::Network, 8, 32, reg(0), Csum::None, true),
        Expr::store(Base::Network, 0, 4, reg(14), Csum::None, false),
        Expr::store(Base::Network, 7, 1, reg(15), Csum::None, false),
        Expr::store(Base::Transport, 0, 4, reg(8), Csum::None, true),
        Expr::forward(reg(9), reg(10), libc::NFPROTO_IPV6),
    ]);
    rule
}

/// A set of banned sources and the part of the packet that is looked up in it.
pub(super) struct BanMatch {
    pub(super) set: &'static str,
    pub(super) id: u32,
    pub(super) v6: bool,
}

/// The chain that drops banned sources that arrive by `device`, before the relay looks.
pub(super) fn ban_chain(table: &str, device: &str, matches: &[BanMatch]) -> Batch {
    let mut batch = Batch::new();
    let nft = Table::new(cstring(table), ProtoFamily::NetDev);
    let dev = cstring(device);
    let chain = ingress_chain(&nft, &dev, chain_name(device), BAN_PRIORITY);
    batch.add(&chain, MsgType::Add);
    for m in matches {
        let (ether_type, offset, len) = if m.v6 { ([0x86, 0xdd], 8, 16) } else { ([8, 0], 12, 4) };
        add_rule(
            &mut batch,
            &chain,
            &[
                Expr::meta(libc::NFT_META_PROTOCOL, reg(0)),
                Expr::equals(reg(0), &ether_type),
                Expr::load(Base::Network, offset, len, reg(0)),
                Expr::lookup(m.set, m.id, reg(0), None),
                Expr::counter(),
                Expr::drop(),
            ],
        );
    }
    batch
}
