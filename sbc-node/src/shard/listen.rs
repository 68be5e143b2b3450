//! The listeners of a shard: opened at the start, opened and closed when interfaces change.
//!
//! Opening is apart from the shard ([`open`]): a reload opens what is new for every shard before
//! any of them is told, so that what cannot be opened changes nothing.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use sbc_core::net::{Interface, InterfaceId, Listener, Transport};
use socket2::Socket;

use super::Machine;
use super::run::{Shard, TCP_TOKEN, UDP_TOKEN};
use crate::transport::poller::{Interest, Poller};
use crate::transport::udp::UdpListener;
use crate::transport::{self, sockopt};

/// A socket that is bound and on its way to its shard.
pub struct Opened {
    interface: InterfaceId,
    socket: OpenedSocket,
}

enum OpenedSocket {
    Udp(Box<UdpListener>),
    Stream(Transport, Socket),
}

/// Opens one listener.
///
/// # Errors
/// When the address cannot be bound.
pub fn open(
    interface: InterfaceId,
    listener: &Listener,
    settings: &transport::Settings,
) -> io::Result<Opened> {
    let local = listener.local;
    let socket = match listener.transport {
        Transport::Udp => {
            OpenedSocket::Udp(Box::new(UdpListener::bind(interface, local, settings)?))
        }
        transport @ (Transport::Tcp | Transport::Tls | Transport::Ws | Transport::Wss) => {
            OpenedSocket::Stream(transport, sockopt::tcp_listener(local, settings)?)
        }
    };
    Ok(Opened { interface, socket })
}

/// A listener of connections of a shard; its socket is with them.
pub(super) struct StreamDoor {
    pub(super) interface: InterfaceId,
    pub(super) transport: Transport,
    pub(super) local: SocketAddr,
    number: usize,
    watched: bool,
}

impl<M: Machine> Shard<M> {
    /// Where each listener is bound; ports that were 0 are the system's choice.
    pub fn locals(&self) -> Vec<(InterfaceId, Transport, SocketAddr)> {
        let udp = self.udp.iter().flatten();
        let udp = udp.map(|u| (u.interface(), Transport::Udp, u.local()));
        let tcp = self.tcp_listeners.iter().map(|t| (t.interface, t.transport, t.local));
        udp.chain(tcp).collect()
    }

    /// Opens what the shard starts with.
    pub(super) fn listen(&mut self, interfaces: Arc<[Interface]>) -> io::Result<()> {
        let mut opened = Vec::new();
        for interface in interfaces.iter() {
            for listener in &interface.listeners {
                opened.push(open(interface.id, listener, &self.transport)?);
            }
        }
        self.take_listeners(interfaces, opened);
        self.watch_listeners()
    }

    /// Takes other interfaces: what is `opened` can be sent by at once and is heard from
    /// [`Shard::watch_listeners`] on; listeners of no interface close, those that are another's
    /// now change hands. Connections live on.
    pub(super) fn take_listeners(&mut self, interfaces: Arc<[Interface]>, opened: Vec<Opened>) {
        for Opened { interface, socket } in opened {
            match socket {
                OpenedSocket::Udp(socket) => match self.udp.iter().position(Option::is_none) {
                    Some(free) => self.udp[free] = Some(*socket),
                    None => self.udp.push(Some(*socket)),
                },
                OpenedSocket::Stream(transport, socket) => {
                    match self.tcp.add_listener(interface, transport, socket) {
                        Ok((local, number)) => {
                            let watched = false;
                            let door = StreamDoor { interface, transport, local, number, watched };
                            self.tcp_listeners.push(door);
                        }
                        Err(error) => tracing::error!(%error, "a listener has no address"),
                    }
                }
            }
        }
        for slot in &mut self.udp {
            let Some(socket) = slot else { continue };
            match owner(&interfaces, Transport::Udp, socket.local(), socket.interface()) {
                Some(id) => socket.set_interface(id),
                None => *slot = None,
            }
        }
        let tcp = &mut self.tcp;
        self.tcp_listeners.retain_mut(|door| {
            match owner(&interfaces, door.transport, door.local, door.interface) {
                Some(id) => {
                    door.interface = id;
                    tcp.set_listener_interface(door.number, id);
                    true
                }
                None => {
                    tcp.unlisten(door.number);
                    false
                }
            }
        });
        self.interfaces = interfaces;
    }

    /// Listens to all that came by [`Shard::take_listeners`].
    pub(super) fn watch_listeners(&mut self) -> io::Result<()> {
        for (index, slot) in self.udp.iter_mut().enumerate() {
            if let Some(socket) = slot.as_mut().filter(|s| !s.watched) {
                self.poller.add(&*socket, udp_token(index), Interest::READ)?;
                socket.watched = true;
            }
        }
        for door in self.tcp_listeners.iter_mut().filter(|d| !d.watched) {
            let token = TCP_TOKEN | u64::try_from(door.number).unwrap_or(0);
            self.tcp.watch(door.number, &self.poller, token)?;
            door.watched = true;
        }
        Ok(())
    }
}

/// Whose a bound socket is: the interface's that has it now if it still lists the address, or else
/// the last one's that does (one that was renamed comes after what it was).
fn owner(
    interfaces: &[Interface],
    transport: Transport,
    local: SocketAddr,
    now: InterfaceId,
) -> Option<InterfaceId> {
    let lists = |i: &&Interface| {
        i.listeners.iter().any(|l| l.transport == transport && same(l.local, local) && !l.retired)
    };
    let retires = |i: &&Interface| {
        i.listeners.iter().any(|l| l.transport == transport && same(l.local, local))
    };
    let all = || interfaces.iter();
    let kept = all().find(|i| i.id == now && lists(i));
    kept.or_else(|| all().find(lists))
        .or_else(|| all().find(|i| i.id == now && retires(i)))
        .or_else(|| all().find(retires))
        .map(|i| i.id)
}

/// Whether `bound` is what `configured` became; port 0 matches any.
pub(super) fn same(configured: SocketAddr, bound: SocketAddr) -> bool {
    configured == bound || (configured.port() == 0 && configured.ip() == bound.ip())
}

fn udp_token(index: usize) -> u64 {
    UDP_TOKEN | u64::try_from(index).unwrap_or(0)
}

pub(super) fn watch_udp(poller: &Poller, socket: &UdpListener, index: usize) {
    let interest = Interest { read: true, write: socket.blocked };
    if let Err(error) = poller.modify(socket, udp_token(index), interest) {
        tracing::error!(%error, "cannot watch a socket");
    }
}
