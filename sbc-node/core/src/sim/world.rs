//! Hosts, their addresses and connections, and the order in which things happen.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::wire::{Fate, Faults, LogEntry, Parcel, Wire};
use crate::core::{Destination, Input, SendError, SendToken};
use crate::net::{ConnId, Flow, InterfaceId, Transport};

/// What a host wants sent.
#[derive(Clone, Debug)]
pub struct Transmit {
    pub dest: Destination,
    pub data: Bytes,
    pub token: Option<SendToken>,
}

/// A sans-IO participant: a shard's core with what the edge would do for it, or a test's UA.
pub trait Host {
    /// [`Input::Message`], [`Input::Tick`], [`Input::SendFailed`] or [`Input::ConnClosed`].
    fn handle(&mut self, now: Instant, input: Input);
    /// Drained after every `handle`. Outputs that are no transmissions are the host's own affair.
    fn poll(&mut self) -> Option<Transmit>;
    fn deadline(&self) -> Option<Instant>;
}

/// Names a host of a [`World`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostId(usize);

/// One connection: who opened it, from which ephemeral port, and who took it.
#[derive(Clone, Copy, Debug)]
struct Conn {
    opener: (HostId, InterfaceId, SocketAddr),
    opener_seen: SocketAddr,
    taker: (HostId, InterfaceId, SocketAddr),
}

/// The whole simulation.
pub struct World<H> {
    start: Instant,
    now: Instant,
    wire: Wire,
    hosts: Vec<H>,
    addresses: HashMap<SocketAddr, (HostId, InterfaceId)>,
    conns: HashMap<ConnId, Conn>,
    /// By opener's address, taker's address.
    open: HashMap<(SocketAddr, SocketAddr, Transport), ConnId>,
    next_conn: u64,
    unplugged: HashSet<SocketAddr>,
    inputs: VecDeque<(HostId, Input)>,
    log: Vec<LogEntry>,
}

impl<H: Host> World<H> {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let start = Instant::now();
        World {
            start,
            now: start,
            wire: Wire::new(seed, faults),
            hosts: Vec::new(),
            addresses: HashMap::new(),
            conns: HashMap::new(),
            open: HashMap::new(),
            next_conn: 1,
            unplugged: HashSet::new(),
            inputs: VecDeque::new(),
            log: Vec::new(),
        }
    }

    /// Adds a host with the address of each of its interfaces (the same for UDP and streams).
    pub fn add(&mut self, host: H, addresses: &[(InterfaceId, SocketAddr)]) -> HostId {
        let id = HostId(self.hosts.len());
        self.hosts.push(host);
        for &(interface, address) in addresses {
            self.addresses.insert(address, (id, interface));
        }
        id
    }

    pub fn now(&self) -> Instant {
        self.now
    }

    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    pub fn host(&self, id: HostId) -> &H {
        &self.hosts[id.0]
    }

    /// Lets a test act on a host (place a call); what it then wants sent is sent.
    pub fn with<R>(&mut self, id: HostId, act: impl FnOnce(&mut H, Instant) -> R) -> R {
        let result = act(&mut self.hosts[id.0], self.now);
        self.flush(id);
        self.settle();
        result
    }

    pub fn set_faults(&mut self, faults: Faults) {
        self.wire.faults = faults;
    }

    /// Cuts an address off or puts it back: datagrams are lost, connections break.
    pub fn unplug(&mut self, address: SocketAddr, off: bool) {
        if !off {
            self.unplugged.remove(&address);
            return;
        }
        self.unplugged.insert(address);
        let dead: Vec<ConnId> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.opener.2 == address || conn.taker.2 == address)
            .map(|(&id, _)| id)
            .collect();
        dead.into_iter().for_each(|id| self.close(id));
        self.settle();
    }

    /// Closes every connection.
    pub fn close_all(&mut self) {
        let mut all: Vec<ConnId> = self.conns.keys().copied().collect();
        all.sort();
        all.into_iter().for_each(|id| self.close(id));
        self.settle();
    }

    /// Runs until `done`, or until `limit` has passed since now, or until nothing can happen any
    /// more. Yields whether `done` came true.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + limit;
        self.settle();
        while !done(self) {
            match self.next_at().filter(|&at| at <= end) {
                Some(at) => self.step(at),
                None => {
                    let idle = self.next_at().is_none();
                    self.now = if idle { self.now } else { end };
                    return false;
                }
            }
        }
        true
    }

    /// Runs for exactly this long.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        self.run_until(time, |_| false);
        self.now = end;
    }

    /// Everything that was sent.
    pub fn log(&self) -> &[LogEntry] {
        &self.log
    }

    /// The log as text, one message a line: milliseconds, who to whom, first two words, fate.
    pub fn ladder(&self) -> String {
        let mut text = String::new();
        for entry in &self.log {
            let line = String::from_utf8_lossy(&entry.data);
            let mut words = line.split_whitespace();
            let what = match words.next() {
                Some("SIP/2.0") => words.next().unwrap_or("?"),
                Some(method) => method,
                None => "-",
            };
            let fate = match entry.fate {
                Fate::Delivered => "",
                Fate::Duplicated => " (twice)",
                Fate::Lost => " (lost)",
                Fate::Unreachable => " (unreachable)",
            };
            let at = entry.at.as_millis();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{at:>7} {} -> {} {what}{fate}", entry.from, entry.to);
        }
        text
    }

    fn next_at(&self) -> Option<Instant> {
        let deadlines = self.hosts.iter().filter_map(Host::deadline);
        deadlines.chain(self.wire.next_arrival()).min()
    }

    /// One moment: what arrives, then what is due.
    fn step(&mut self, at: Instant) {
        self.now = self.now.max(at);
        while let Some(parcel) = self.wire.take(self.now) {
            self.arrive(parcel);
            self.settle();
        }
        for index in 0..self.hosts.len() {
            if self.hosts[index].deadline().is_some_and(|at| at <= self.now) {
                self.inputs.push_back((HostId(index), Input::Tick));
                self.settle();
            }
        }
    }

    fn settle(&mut self) {
        while let Some((id, input)) = self.inputs.pop_front() {
            self.hosts[id.0].handle(self.now, input);
            self.flush(id);
        }
    }

    fn flush(&mut self, id: HostId) {
        while let Some(transmit) = self.hosts[id.0].poll() {
            if let Err(error) = self.transmit(id, &transmit)
                && let Some(token) = transmit.token
            {
                self.inputs.push_back((id, Input::SendFailed { token, error }));
            }
        }
    }

    fn transmit(&mut self, id: HostId, transmit: &Transmit) -> Result<(), SendError> {
        let (interface, transport, to, conn) = match transmit.dest {
            Destination::Flow(flow) => (flow.interface, flow.transport, flow.remote, flow.conn),
            Destination::Target { interface, target } => {
                (interface, target.transport, target.addr, None)
            }
        };
        let local = self.local(id, interface).ok_or(SendError::Unreachable)?;
        let data = transmit.data.clone();
        if !transport.is_reliable() {
            let parcel = Parcel { transport, from: local, to, conn: None, data };
            let cut = self.unplugged.contains(&local) || self.unplugged.contains(&to);
            let fate = if cut { Fate::Lost } else { self.wire.send(self.now, parcel.clone()) };
            self.note(&parcel, fate);
            return Ok(());
        }
        let conn_id = match conn {
            Some(conn) => conn,
            None => self.connect(id, interface, local, to, transport, &data)?,
        };
        let conn = self.conns.get(&conn_id).copied().ok_or(SendError::Closed)?;
        let (from, to) = if conn.opener.0 == id && conn.opener.2 == local {
            (conn.opener_seen, conn.taker.2)
        } else {
            (conn.taker.2, conn.opener_seen)
        };
        let parcel = Parcel { transport, from, to, conn: Some(conn_id), data };
        let fate = self.wire.send(self.now, parcel.clone());
        self.note(&parcel, fate);
        Ok(())
    }

    /// Opens a connection or finds the one that is open.
    fn connect(
        &mut self,
        id: HostId,
        interface: InterfaceId,
        local: SocketAddr,
        to: SocketAddr,
        transport: Transport,
        data: &Bytes,
    ) -> Result<ConnId, SendError> {
        if let Some(&conn) = self.open.get(&(local, to, transport)) {
            return Ok(conn);
        }
        let cut = self.unplugged.contains(&local) || self.unplugged.contains(&to);
        let Some(&(taker, taker_interface)) = self.addresses.get(&to).filter(|_| !cut) else {
            let parcel = Parcel { transport, from: local, to, conn: None, data: data.clone() };
            self.note(&parcel, Fate::Unreachable);
            return Err(SendError::Unreachable);
        };
        let conn = ConnId(self.next_conn);
        let port = u16::try_from(40_000 + self.next_conn % 20_000).unwrap_or(40_000);
        self.next_conn += 1;
        self.open.insert((local, to, transport), conn);
        self.conns.insert(
            conn,
            Conn {
                opener: (id, interface, local),
                opener_seen: SocketAddr::new(local.ip(), port),
                taker: (taker, taker_interface, to),
            },
        );
        Ok(conn)
    }

    fn arrive(&mut self, parcel: Parcel) {
        let Parcel { transport, from, to, conn, data } = parcel;
        let end = match conn {
            None => self.addresses.get(&to).map(|&(host, interface)| (host, interface, to)),
            Some(id) => {
                self.conns.get(&id).map(|c| if c.taker.2 == to { c.taker } else { c.opener })
            }
        };
        let Some((host, interface, local)) = end else { return };
        if self.unplugged.contains(&local) {
            return;
        }
        let flow = Flow { interface, transport, local, remote: from, conn };
        self.inputs.push_back((host, Input::Message { flow, data }));
    }

    fn close(&mut self, id: ConnId) {
        let Some(conn) = self.conns.remove(&id) else { return };
        let opened = self.open.iter().find(|(_, open)| **open == id);
        let transport = opened.map_or(Transport::Tcp, |(&(_, _, transport), _)| transport);
        self.open.retain(|_, open| *open != id);
        for (end, remote) in [(conn.opener, conn.taker.2), (conn.taker, conn.opener_seen)] {
            let (host, interface, local) = end;
            let flow = Flow { interface, transport, local, remote, conn: Some(id) };
            self.inputs.push_back((host, Input::ConnClosed { flow }));
        }
    }

    fn local(&self, id: HostId, interface: InterfaceId) -> Option<SocketAddr> {
        let mut own: Vec<SocketAddr> = self
            .addresses
            .iter()
            .filter(|(_, end)| **end == (id, interface))
            .map(|(&address, _)| address)
            .collect();
        own.sort();
        own.first().copied()
    }

    fn note(&mut self, parcel: &Parcel, fate: Fate) {
        self.log.push(LogEntry {
            at: self.now - self.start,
            from: parcel.from,
            to: parcel.to,
            transport: parcel.transport,
            fate,
            data: parcel.data.clone(),
        });
    }
}
