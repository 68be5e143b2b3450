//! How a shard sends: by which socket or connection, and what becomes of what cannot be sent.
//! Sends are queued here and leave in batches at the end of a wake-up.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use sbc_core::core::{Destination, Input, SendError, SendToken};
use sbc_core::net::{ConnId, Flow, InterfaceId, Target, Transport};

use super::Machine;
use super::command::Command;
use super::listen::{StreamDoor, same, watch_udp};
use super::queue::Parcel;
use super::run::Shard;
use crate::store::link;
use crate::transport::tcp::{self, Opening};
use crate::transport::udp::{UdpListener, Unreached};

impl<M: Machine> Shard<M> {
    pub(super) fn transmit(
        &mut self,
        dest: Destination,
        data: Bytes,
        token: Option<SendToken>,
        now: Instant,
    ) {
        let result = match dest {
            Destination::Flow(flow) => match flow.conn {
                None => self.send_udp(flow.local, flow.remote, data, token),
                Some(conn) if link::split(conn).is_some() => {
                    match self.outside.send_elsewhere(&flow, &data) {
                        true => Ok(()),
                        false => Err(SendError::Closed),
                    }
                }
                Some(conn) => self.send_conn(conn, flow, data, token),
            },
            Destination::Target { interface, target } => {
                self.send_target(interface, target, data, token, now)
            }
        };
        if let Err(error) = result {
            self.stats.unroutable.add(1);
            if let Some(token) = token {
                // Heard after what is being handled now, as if the network had said it.
                self.failures.push((token, error));
            }
        }
    }

    pub(super) fn send_udp(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        data: Bytes,
        token: Option<SendToken>,
    ) -> Result<(), SendError> {
        // By the address alone: an interface that retires sends by the socket that its successor has.
        let listeners = self.udp.iter_mut().flatten();
        let mut ours = listeners.filter(|u| u.local() == local);
        let socket = ours.next().ok_or(SendError::Unreachable)?;
        if socket.send(remote, data, token) {
            Ok(())
        } else {
            self.stats.udp_queue_full.add(1);
            Err(SendError::Full)
        }
    }

    pub(super) fn send_conn(
        &mut self,
        conn: ConnId,
        flow: Flow,
        data: Bytes,
        token: Option<SendToken>,
    ) -> Result<(), SendError> {
        let owner = tcp::owner(conn);
        if owner == self.index {
            return self.tcp.send(conn, data, token, owner);
        }
        let handle = self.shards.get(owner).ok_or(SendError::Closed)?;
        let from = u8::try_from(self.index).unwrap_or(u8::MAX);
        match handle.parcel(Parcel::Transmit { flow, data, token, from }) {
            Ok(()) => {
                self.to_wake |= 1 << owner;
                Ok(())
            }
            Err(_) => {
                self.stats.handover_full.add(1);
                Err(SendError::Full)
            }
        }
    }

    pub(super) fn send_target(
        &mut self,
        interface: InterfaceId,
        target: Target,
        data: Bytes,
        token: Option<SendToken>,
        now: Instant,
    ) -> Result<(), SendError> {
        let remote = target.addr;
        match target.transport {
            Transport::Udp => {
                let bound = || self.udp.iter().flatten().map(UdpListener::local);
                let local = self.local_for(interface, &target, bound);
                let local = local.ok_or(SendError::Unreachable)?;
                self.send_udp(local, remote, data, token)
            }
            Transport::Tcp | Transport::Tls => {
                let domain = self.front.domain(target.domain);
                let conn = match self.tcp.find(interface, target, domain.as_deref()) {
                    Some(conn) => conn,
                    None => self.open_conn(interface, target, domain.as_deref(), now)?,
                };
                self.tcp.send(conn, data, token, self.index)
            }
            Transport::Ws | Transport::Wss => Err(SendError::Unreachable),
        }
    }

    /// The address that an interface sends to `target` by: that of the listener which the core names
    /// in what is sent.
    fn local_for<I: Iterator<Item = SocketAddr>>(
        &self,
        interface: InterfaceId,
        target: &Target,
        bound: impl Fn() -> I,
    ) -> Option<SocketAddr> {
        let interface = self.interfaces.iter().find(|i| i.id == interface)?;
        let listener = interface.listener_for(target)?;
        bound().find(|local| same(listener.local, *local))
    }

    fn open_conn(
        &mut self,
        interface: InterfaceId,
        target: Target,
        domain: Option<&str>,
        now: Instant,
    ) -> Result<ConnId, SendError> {
        let of = |door: &&StreamDoor| door.transport == target.transport;
        let bound = || self.tcp_listeners.iter().filter(of).map(|t| t.local);
        let local = self.local_for(interface, &target, bound).ok_or(SendError::Unreachable)?;
        let to = Opening { interface, local, target, domain };
        let conn = self.tcp.open(to, now, &self.poller, &self.stats)?;
        self.stats.opened.add(1);
        Ok(conn)
    }

    /// ICMP errors that no message of ours fits go to the other shards: one of them sent it.
    pub(super) fn hand_over_errors(&mut self) {
        for error in self.strange.drain(..) {
            for (index, handle) in self.shards.iter().enumerate() {
                // A full queue loses news that its transaction's timer brings as well.
                if index != self.index && handle.parcel(Parcel::Unreached(error.clone())).is_ok() {
                    self.to_wake |= 1 << index;
                }
            }
        }
    }

    /// An ICMP error that another shard was told of.
    pub(super) fn unreached(&mut self, error: &Unreached) {
        let ours = self.udp.iter_mut().flatten().filter(|u| u.local() == error.local);
        self.failures.extend(ours.filter_map(|u| u.sent(error)));
    }

    /// Another shard, or another node, sends on a connection of ours.
    pub(super) fn transmit_for(
        &mut self,
        flow: Flow,
        data: Bytes,
        token: Option<SendToken>,
        from: usize,
    ) {
        let sent = match flow.conn {
            Some(conn) => self.tcp.send(conn, data, token, from),
            // For another node, from an address of ours.
            None => self.send_udp(flow.local, flow.remote, data, token),
        };
        if let Err(error) = sent {
            self.stats.unroutable.add(1);
            if let (Some(token), Some(handle)) = (token, self.shards.get(from)) {
                // A shard whose control queue is full lets its transaction time out instead.
                let _ = handle.command(Command::Input(Input::SendFailed { token, error }));
            }
        }
    }

    pub(super) fn send_failed(&mut self, token: SendToken, error: SendError, now: Instant) {
        self.feed(Input::SendFailed { token, error }, now);
    }

    pub(super) fn conn_closed(&mut self, flow: Flow, users: u64, now: Instant) {
        for (index, handle) in self.shards.iter().enumerate() {
            if index != self.index && users & (1 << (index & 63)) != 0 {
                match handle.parcel(Parcel::Closed(flow)) {
                    Ok(()) => handle.wake(),
                    // As above: without the news its transactions time out.
                    Err(_) => drop(handle.command(Command::Input(Input::ConnClosed { flow }))),
                }
            }
        }
        self.feed(Input::ConnClosed { flow }, now);
    }

    pub(super) fn flush(&mut self, now: Instant) {
        for (index, slot) in self.udp.iter_mut().enumerate() {
            let Some(socket) = slot else { continue };
            if socket.queued() == 0 {
                continue;
            }
            let was_blocked = socket.blocked;
            let done = socket.flush(&mut self.send, &mut self.failures);
            self.stats.udp_out.add(done.datagrams);
            self.stats.udp_out_bytes.add(done.bytes);
            self.stats.udp_errors.add(done.errors);
            if was_blocked != socket.blocked {
                watch_udp(&self.poller, socket, index);
            }
        }
        self.tcp.flush(now, &self.poller, &self.stats);
    }
}
