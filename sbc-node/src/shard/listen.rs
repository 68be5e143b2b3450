//! The listeners of a shard: opened at the start, opened and closed when interfaces change.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use sbc_core::net::{Interface, InterfaceId, Transport};

use super::Machine;
use super::run::{Shard, TCP_TOKEN, UDP_TOKEN};
use crate::transport::poller::{Interest, Poller};
use crate::transport::udp::UdpListener;

impl<M: Machine> Shard<M> {
    /// Where each listener is bound; ports that were 0 are the system's choice.
    pub fn locals(&self) -> Vec<(InterfaceId, Transport, SocketAddr)> {
        let udp = self.udp.iter().flatten();
        let udp = udp.map(|u| (u.interface(), Transport::Udp, u.local()));
        let tcp = self.tcp_listeners.iter().map(|(id, local, _)| (*id, Transport::Tcp, *local));
        udp.chain(tcp).collect()
    }

    /// Opens listeners that are new in `interfaces`, closes those that are gone.
    pub(super) fn listen(&mut self, interfaces: Arc<[Interface]>) -> io::Result<()> {
        let wanted = |id: InterfaceId, transport: Transport, local: SocketAddr| {
            let interface = interfaces.iter().find(|i| i.id == id);
            interface.is_some_and(|i| {
                i.listeners.iter().any(|l| l.transport == transport && same(l.local, local))
            })
        };
        for slot in &mut self.udp {
            if slot.as_ref().is_some_and(|u| !wanted(u.interface(), Transport::Udp, u.local())) {
                *slot = None;
            }
        }
        let (keep, close): (Vec<_>, Vec<_>) = std::mem::take(&mut self.tcp_listeners)
            .into_iter()
            .partition(|(id, local, _)| wanted(*id, Transport::Tcp, *local));
        self.tcp_listeners = keep;
        for (_, _, index) in close {
            self.tcp.unlisten(index);
        }
        for interface in interfaces.iter() {
            for listener in &interface.listeners {
                self.open(interface.id, listener.transport, listener.local)?;
            }
        }
        self.interfaces = interfaces;
        Ok(())
    }

    pub(super) fn open(
        &mut self,
        id: InterfaceId,
        transport: Transport,
        local: SocketAddr,
    ) -> io::Result<()> {
        match transport {
            Transport::Udp => {
                let mut open = self.udp.iter().flatten();
                if open.any(|u| u.interface() == id && same(local, u.local())) {
                    return Ok(());
                }
                let socket = UdpListener::bind(id, local, &self.transport)?;
                let index = self.udp.len();
                self.poller.add(&socket, udp_token(index), Interest::READ)?;
                self.udp.push(Some(socket));
            }
            Transport::Tcp => {
                let mut open = self.tcp_listeners.iter();
                if open.any(|(i, bound, _)| *i == id && same(local, *bound)) {
                    return Ok(());
                }
                let (bound, index) = self.tcp.listen(id, local)?;
                let token = TCP_TOKEN | u64::try_from(index).unwrap_or(0);
                self.tcp.watch(index, &self.poller, token)?;
                self.tcp_listeners.push((id, bound, index));
            }
            Transport::Tls | Transport::Ws | Transport::Wss => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("no listener for {transport} yet"),
                ));
            }
        }
        Ok(())
    }
}

/// Whether `bound` is what `configured` became; port 0 matches any.
fn same(configured: SocketAddr, bound: SocketAddr) -> bool {
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
