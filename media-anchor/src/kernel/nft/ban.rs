//! The drop set of the guard: sources whose packets are dropped at ingress for a time.
//!
//! A table of its own, so that the relay's may come and go. Whom to ban, and for how long, is the
//! guard's business; this file knows addresses and prefixes.
//!
//! ```text
//! table netdev <name>
//!   set b4, b6  single sources (hash), each with its timeout
//!   set p4, p6  prefixes (intervals), disjoint
//!   chain in_<device>  hook ingress priority -310: drop what is in a set
//! ```

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};
use nix::errno::Errno;

use super::super::backend::Fault;
use super::super::netlink::{
    Attrs, Bus, MsgBuf, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkSocket,
    RecvError, be64,
};
use super::super::network::{Network, Prefix, Stack};
use super::elements::{Elements, fault};
use super::ruleset::{
    BanMatch, NETDEV, SHOWN_AS_IPV4, SHOWN_AS_IPV6, SetSpec, ban_chain, delete_chain, delete_table,
    msg_type, replace_table,
};

/// What is banned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BanTarget {
    /// The address, or the first of the prefix.
    pub addr: IpAddr,
    /// Prefix length: 32 or 128 for one address.
    pub len: u8,
}

impl BanTarget {
    /// One address; an IPv4-mapped one is IPv4.
    pub fn host(addr: IpAddr) -> Self {
        let addr = addr.to_canonical();
        BanTarget { addr, len: if addr.is_ipv4() { 32 } else { 128 } }
    }

    /// A prefix, its host bits cleared.
    pub fn prefix(addr: IpAddr, len: u8) -> Self {
        match addr {
            IpAddr::V4(ip) => {
                let len = len.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                BanTarget { addr: IpAddr::V4((ip.to_bits() & mask).into()), len }
            }
            IpAddr::V6(ip) => {
                let len = len.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                BanTarget { addr: IpAddr::V6((ip.to_bits() & mask).into()), len }
            }
        }
    }

    pub(crate) fn is_host(&self) -> bool {
        self.len == if self.addr.is_ipv4() { 32 } else { 128 }
    }

    fn covers(&self, other: &BanTarget) -> bool {
        self.len <= other.len && Prefix { addr: self.addr, len: self.len }.contains(other.addr)
    }

    fn set(&self) -> &'static str {
        match (self.addr, self.is_host()) {
            (IpAddr::V4(_), true) => "b4",
            (IpAddr::V6(_), true) => "b6",
            (IpAddr::V4(_), false) => "p4",
            (IpAddr::V6(_), false) => "p6",
        }
    }

    /// The first address behind the prefix; `None` when it is the last of all.
    fn end(&self) -> Option<IpAddr> {
        match self.addr {
            IpAddr::V4(ip) => {
                let step = 1u32.checked_shl(32 - u32::from(self.len))?;
                ip.to_bits().checked_add(step).map(|bits| IpAddr::V4(bits.into()))
            }
            IpAddr::V6(ip) => {
                let step = 1u128.checked_shl(128 - u32::from(self.len))?;
                ip.to_bits().checked_add(step).map(|bits| IpAddr::V6(bits.into()))
            }
        }
    }
}

/// A ban to make or to prolong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    pub target: BanTarget,
    /// From now; at least a millisecond.
    pub lasts: Duration,
}

/// Why bans can't be kept in the kernel, or not this one.
#[derive(Debug, thiserror::Error)]
pub enum BanError {
    #[error("nftables: {0}")]
    Kernel(String),
    #[error("too many bans")]
    Full,
    /// Shorter than /8 (IPv4) or /16 (IPv6).
    #[error("the prefix is too wide to be banned")]
    TooWide,
    #[error("devices can't be read: {0}")]
    Devices(#[from] io::Error),
}

impl From<Fault> for BanError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Full => BanError::Full,
            other => BanError::Kernel(other.to_string()),
        }
    }
}

/// What the drop set is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BanConfig {
    pub table: String,
    /// Devices to drop at; all Ethernet devices when empty.
    pub devices: Vec<String>,
    /// Bans at most, prefixes and addresses together.
    pub bans_max: u32,
}

impl Default for BanConfig {
    fn default() -> Self {
        BanConfig { table: "sbc_ban".to_owned(), devices: Vec::new(), bans_max: 100_000 }
    }
}

/// The drop set. Lives on one thread, blocks for a netlink round trip; dropping it lifts all bans.
pub struct BanSet {
    config: BanConfig,
    rules: Elements,
    socket: NetlinkSocket,
    network: Stack,
    attached: HashMap<String, u32>,
    /// Every ban with its end; those not in the kernel wait in the shadow of a wider prefix.
    bans: HashMap<BanTarget, Instant>,
    /// Prefixes in the kernel: disjoint.
    prefixes: HashSet<BanTarget>,
    swept_at: Instant,
    /// Dropped by chains that are gone, and the last sum over those that are there.
    dropped_before: u64,
    dropped_last: u64,
}

const PER_MESSAGE: usize = 200;
/// Prefixes are compared with each other; the guard bans few, if any.
const PREFIXES_MAX: usize = 1_024;
const SWEEP_EVERY: Duration = Duration::from_secs(1);

impl BanSet {
    /// Makes the table in the calling thread's network namespace; needs CAP_NET_ADMIN.
    pub fn open(config: BanConfig) -> Result<BanSet, BanError> {
        let socket = NetlinkSocket::open(Bus::Netfilter, 0)?;
        let mut set = BanSet {
            rules: Elements::open(&config.table, 0)?,
            socket,
            network: Stack::open()?,
            attached: HashMap::new(),
            bans: HashMap::new(),
            prefixes: HashSet::new(),
            swept_at: Instant::now(),
            dropped_before: 0,
            dropped_last: 0,
            config,
        };
        set.make_table()?;
        Ok(set)
    }

    fn make_table(&mut self) -> Result<(), BanError> {
        let spec = |name, id, key_len, interval| SetSpec {
            name,
            id,
            key_len,
            key_type: if key_len == 4 { SHOWN_AS_IPV4 } else { SHOWN_AS_IPV6 },
            data_len: None,
            size: self.config.bans_max,
            timeout: true,
            interval,
            counter: false,
        };
        let sets = [
            spec("b4", 1, 4, false),
            spec("b6", 2, 16, false),
            spec("p4", 3, 4, true),
            spec("p6", 4, 16, true),
        ];
        self.attached.clear();
        self.rules.run(&replace_table(&self.config.table, &sets).finalize())?;
        self.sync_devices();
        Ok(())
    }

    /// Chains on the devices while anybody is banned: packets pay nothing for an empty set.
    fn sync_devices(&mut self) {
        let devices: HashMap<String, u32> = if self.bans.is_empty() {
            HashMap::new()
        } else if self.config.devices.is_empty() {
            self.network.ethernet().map(|d| (d.name.clone(), d.index)).collect()
        } else {
            let named = self.config.devices.iter().filter_map(|n| self.network.named(n));
            named.map(|(d, _)| (d.name, d.index)).collect()
        };
        for name in self.attached.keys().filter(|n| !devices.contains_key(*n)) {
            match self.rules.run(&delete_chain(&self.config.table, name).finalize()) {
                Ok(()) | Err(Fault::Missing | Fault::NoDevice) => {}
                Err(fault) => tracing::warn!(device = name, %fault, "ban chain not removed"),
            }
        }
        self.attached.retain(|name, index| devices.get(name) == Some(index));
        for (name, index) in devices {
            if self.attached.contains_key(&name) {
                continue;
            }
            match self.attach(&name) {
                Ok(()) => drop(self.attached.insert(name, index)),
                Err(fault) => tracing::warn!(device = name, %fault, "bans can't be kept there"),
            }
        }
    }

    fn attach(&mut self, device: &str) -> Result<(), Fault> {
        match self.rules.run(&delete_chain(&self.config.table, device).finalize()) {
            Ok(()) | Err(Fault::Missing | Fault::NoDevice) => {}
            Err(fault) => return Err(fault),
        }
        let matches = [
            BanMatch { set: "b4", id: 1, v6: false },
            BanMatch { set: "p4", id: 3, v6: false },
            BanMatch { set: "b6", id: 2, v6: true },
            BanMatch { set: "p6", id: 4, v6: true },
        ];
        self.rules.run(&ban_chain(&self.config.table, device, &matches).finalize())
    }

    /// Bans, or moves the end of bans; all of them in one transaction per 200.
    pub fn ban(&mut self, bans: &[Ban]) -> Result<(), BanError> {
        let now = Instant::now();
        let too_wide = |t: &BanTarget| t.len < if t.addr.is_ipv4() { 8 } else { 16 };
        if bans.iter().any(|b| too_wide(&b.target)) {
            return Err(BanError::TooWide);
        }
        let max = usize::try_from(self.config.bans_max).unwrap_or(usize::MAX);
        if self.bans.len() + bans.len() > max {
            self.bans.retain(|_, end| *end > now);
            if self.bans.len() + bans.len() > max {
                return Err(BanError::Full);
            }
        }
        let prefixes = self.bans.keys().chain(bans.iter().map(|b| &b.target));
        if prefixes.filter(|t| !t.is_host()).count() > PREFIXES_MAX {
            return Err(BanError::Full);
        }
        let mut adds = Vec::new();
        for ban in bans {
            self.bans.insert(ban.target, now + ban.lasts);
            if ban.target.is_host() {
                adds.push(*ban);
            }
        }
        for chunk in adds.chunks(PER_MESSAGE) {
            self.put_hosts(chunk)?;
        }
        if bans.iter().any(|b| !b.target.is_host()) {
            let prolonged = bans.iter().map(|b| b.target).filter(|t| !t.is_host()).collect();
            self.sync_prefixes(now, &prolonged)?;
        }
        if self.attached.is_empty() {
            self.sync_devices();
        }
        Ok(())
    }

    /// Lifts bans; a target that is not banned is no error.
    pub fn lift(&mut self, targets: &[BanTarget]) -> Result<(), BanError> {
        for target in targets {
            self.bans.remove(target);
        }
        let hosts: Vec<BanTarget> = targets.iter().copied().filter(BanTarget::is_host).collect();
        for chunk in hosts.chunks(PER_MESSAGE) {
            self.take_out(chunk)?;
        }
        if hosts.len() < targets.len() {
            self.sync_prefixes(Instant::now(), &HashSet::new())?;
        }
        Ok(())
    }

    /// Lifts all bans.
    pub fn flush(&mut self) -> Result<(), BanError> {
        self.keep_count()?;
        self.bans.clear();
        self.prefixes.clear();
        // A new table in the place of the old one, in one transaction.
        self.make_table()
    }

    /// Bans that have not ended, with the time that each has left.
    pub fn list(&self) -> Vec<Ban> {
        let now = Instant::now();
        let living = self.bans.iter().filter(|(_, end)| **end > now);
        living.map(|(target, end)| Ban { target: *target, lasts: *end - now }).collect()
    }

    /// Puts the widest living prefixes into the kernel; `prolonged` are written again.
    ///
    /// A wider prefix shadows a narrower one that lasts longer until it ends itself.
    fn sync_prefixes(
        &mut self,
        now: Instant,
        prolonged: &HashSet<BanTarget>,
    ) -> Result<(), BanError> {
        let living: Vec<(BanTarget, Instant)> = self
            .bans
            .iter()
            .filter(|(t, end)| !t.is_host() && **end > now)
            .map(|(t, end)| (*t, *end))
            .collect();
        let widest = |t: &BanTarget| !living.iter().any(|(w, _)| w != t && w.covers(t));
        let wanted: HashMap<BanTarget, Instant> =
            living.iter().copied().filter(|(t, _)| widest(t)).collect();
        let stays = |p: &BanTarget| wanted.contains_key(p) && !prolonged.contains(p);
        let gone: Vec<BanTarget> = self.prefixes.iter().copied().filter(|p| !stays(p)).collect();
        let new: Vec<Ban> = wanted
            .iter()
            .filter(|(t, _)| prolonged.contains(*t) || !self.prefixes.contains(*t))
            .map(|(t, end)| Ban { target: *t, lasts: *end - now })
            .collect();
        // In two transactions: an interval set does not find an element again whose place was
        // taken within one.
        self.take_out(&gone)?;
        self.prefixes.retain(stays);
        self.transact(&[(libc::NFT_MSG_NEWSETELEM, &new)])?;
        self.prefixes = wanted.into_keys().collect();
        Ok(())
    }

    /// Puts single sources in, or prolongs them, in one transaction.
    fn put_hosts(&mut self, bans: &[Ban]) -> Result<(), BanError> {
        let (add, delete) = (libc::NFT_MSG_NEWSETELEM, libc::NFT_MSG_DELSETELEM);
        self.transact(&[(add, bans), (delete, bans), (add, bans)])
    }

    fn take_out(&mut self, targets: &[BanTarget]) -> Result<(), BanError> {
        let any = Duration::from_secs(1);
        let bans: Vec<Ban> = targets.iter().map(|t| Ban { target: *t, lasts: any }).collect();
        self.transact(&[(libc::NFT_MSG_NEWSETELEM, &bans), (libc::NFT_MSG_DELSETELEM, &bans)])
    }

    /// One transaction. Whether the kernel still has an element that is to be deleted is unknown
    /// (it may just have run out): those are added first, which does nothing when it is there.
    fn transact(&mut self, steps: &[(i32, &[Ban])]) -> Result<(), BanError> {
        if steps.iter().all(|(_, bans)| bans.is_empty()) {
            return Ok(());
        }
        let mut buf = MsgBuf::new();
        self.batch_end(&mut buf, 16);
        for (message, bans) in steps {
            self.write(&mut buf, *message, bans);
        }
        self.batch_end(&mut buf, 17);
        self.socket.send(&buf).map_err(fault)?;
        let mut first = None;
        while let Ok(messages) = self.socket.recv() {
            for errno in messages.filter_map(|m| m.errno()).filter(|e| *e != 0) {
                first.get_or_insert(fault(Errno::from_raw(errno)));
            }
        }
        first.map_or(Ok(()), |fault| Err(fault.into()))
    }

    fn batch_end(&mut self, buf: &mut MsgBuf, kind: u16) {
        let seq = self.socket.next_seq();
        buf.message(kind, NLM_F_REQUEST, seq, &[0, 0, 0, 10]);
        buf.finish();
    }

    fn write(&mut self, buf: &mut MsgBuf, msg: i32, bans: &[Ban]) {
        let delete = msg == libc::NFT_MSG_DELSETELEM;
        for set in ["b4", "b6", "p4", "p6"] {
            let of_set: Vec<&Ban> = bans.iter().filter(|b| b.target.set() == set).collect();
            for chunk in of_set.chunks(PER_MESSAGE) {
                let seq = self.socket.next_seq();
                let flags = NLM_F_REQUEST | NLM_F_ACK | if delete { 0 } else { NLM_F_CREATE };
                buf.message(msg_type(msg), flags, seq, &NETDEV);
                buf.attr_str(1, &self.config.table);
                buf.attr_str(2, set);
                let list = buf.nest(3);
                for ban in chunk {
                    write_ban(buf, ban, delete);
                }
                buf.end(list);
                buf.finish();
            }
        }
    }

    /// To be called about once a second: devices that came or went, a table that is gone, prefixes
    /// that come out of another's shadow.
    pub fn poll(&mut self) -> Result<(), BanError> {
        if !self.network.poll().is_empty() {
            self.sync_devices();
        }
        let now = Instant::now();
        if now.duration_since(self.swept_at) < SWEEP_EVERY {
            return Ok(());
        }
        self.swept_at = now;
        self.bans.retain(|_, end| *end > now);
        if self.bans.is_empty() && !self.attached.is_empty() {
            self.keep_count()?;
            self.sync_devices();
        }
        if !self.rules.table_stands()? {
            tracing::warn!(bans = self.bans.len(), "ban table is gone, made again");
            return self.remake(now);
        }
        if self.prefixes.iter().any(|p| !self.bans.contains_key(p)) {
            self.sync_prefixes(now, &HashSet::new())?;
        }
        Ok(())
    }

    fn remake(&mut self, now: Instant) -> Result<(), BanError> {
        self.make_table()?;
        self.prefixes.clear();
        let hosts: Vec<Ban> = self
            .bans
            .iter()
            .filter(|(t, _)| t.is_host())
            .map(|(t, end)| Ban { target: *t, lasts: *end - now })
            .collect();
        for chunk in hosts.chunks(PER_MESSAGE) {
            self.put_hosts(chunk)?;
        }
        self.sync_prefixes(now, &HashSet::new())
    }

    /// Bans that have not ended.
    pub fn len(&self) -> usize {
        let now = Instant::now();
        self.bans.values().filter(|end| **end > now).count()
    }

    /// Whether nobody is banned.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Packets dropped since the set was opened; those of a chain that somebody else took away
    /// count up to the last reading.
    pub fn dropped(&mut self) -> Result<u64, BanError> {
        let now = self.dropped_now()?;
        self.dropped_before += self.dropped_last.saturating_sub(now);
        self.dropped_last = now;
        Ok(self.dropped_before.saturating_add(now))
    }

    /// Before chains are taken away: their counters go with them.
    fn keep_count(&mut self) -> Result<(), BanError> {
        self.dropped().map(drop)
    }

    fn dropped_now(&mut self) -> Result<u64, BanError> {
        let mut buf = MsgBuf::new();
        let seq = self.socket.next_seq();
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        buf.message(msg_type(libc::NFT_MSG_GETRULE), flags, seq, &NETDEV);
        buf.attr_str(1, &self.config.table);
        buf.finish();
        self.socket.send(&buf).map_err(fault)?;
        let mut total = 0u64;
        loop {
            let messages = match self.socket.recv() {
                Ok(messages) => messages,
                Err(RecvError::Empty) => return Ok(total),
                Err(RecvError::Overrun) => return Err(Fault::NoRoom.into()),
                Err(RecvError::Errno(errno)) => return Err(fault(errno).into()),
            };
            for message in messages {
                let attrs = Attrs::new(message.after(NETDEV.len()));
                // Other tables may come in the same dump on old kernels.
                let ours = attrs.find(1).and_then(|t| t.strip_suffix(&[0]))
                    == Some(self.config.table.as_bytes());
                if let Some(exprs) = attrs.nested(4).filter(|_| ours) {
                    total = total.saturating_add(exprs.filter_map(|(_, e)| packets(e)).sum());
                }
            }
        }
    }
}

/// Packets of a counter expression.
fn packets(expr: &[u8]) -> Option<u64> {
    let expr = Attrs::new(expr);
    (expr.find(1)? == b"counter\0").then_some(())?;
    expr.nested(2)?.find(2).and_then(be64)
}

/// An element of a set, or the two ends of an interval.
fn write_ban(buf: &mut MsgBuf, ban: &Ban, delete: bool) {
    let key = |buf: &mut MsgBuf, ip: IpAddr| {
        let nest = buf.nest(1);
        match ip {
            IpAddr::V4(ip) => buf.attr(1, &ip.octets()),
            IpAddr::V6(ip) => buf.attr(1, &ip.octets()),
        }
        buf.end(nest);
    };
    let elem = buf.nest(1);
    key(buf, ban.target.addr);
    if !delete {
        let ms = u64::try_from(ban.lasts.as_millis()).unwrap_or(u64::MAX).max(1);
        buf.attr(4, &ms.to_be_bytes());
    }
    buf.end(elem);
    if let Some(end) = ban.target.end().filter(|_| !ban.target.is_host()) {
        const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
        let elem = buf.nest(1);
        buf.attr_be32(3, NFT_SET_ELEM_INTERVAL_END);
        key(buf, end);
        buf.end(elem);
    }
}

impl Drop for BanSet {
    fn drop(&mut self) {
        match self.rules.run(&delete_table(&self.config.table).finalize()) {
            Ok(()) | Err(Fault::Missing) => {}
            Err(fault) => tracing::warn!(%fault, "ban table not removed"),
        }
    }
}
