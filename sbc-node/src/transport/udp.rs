//! One UDP listener of one shard: sends leave in batches at the end of a wake-up, what a full
//! socket refuses waits in a bounded queue, ICMP errors find the message that they are about.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use bytes::Bytes;
use sbc_core::core::{SendError, SendToken};
use sbc_core::net::{Flow, InterfaceId, Transport};
use socket2::Socket;

use super::mmsg::{Datagram, RecvBatch, SendBatch};
use super::{Settings, send_error, sockopt};

/// Sent messages with a token that an ICMP error can still be matched to.
const RECENT_MAX: usize = 512;
/// An ICMP error that quotes less of our datagram than this is matched by destination alone.
const QUOTE_MIN: usize = 128;

struct Outgoing {
    to: SocketAddr,
    data: Bytes,
    token: Option<SendToken>,
}

/// Errors of one wake-up that are offered to the other shards.
const STRANGE_MAX: usize = 64;

/// An ICMP error: what was sent, from where to where, did not arrive.
#[derive(Clone, Debug)]
pub struct Unreached {
    pub local: SocketAddr,
    pub to: SocketAddr,
    pub errno: i32,
    /// The beginning of what was sent.
    pub quote: Bytes,
}

/// A failed transmission, by its token.
pub type Failure = (SendToken, SendError);

/// A UDP socket and what waits to leave by it.
pub struct UdpListener {
    socket: Socket,
    interface: InterfaceId,
    local: SocketAddr,
    queue: VecDeque<Outgoing>,
    queue_max: usize,
    recent: VecDeque<Outgoing>,
    /// The kernel's own count of drops; wraps.
    dropped: u32,
    /// True while the socket is full and we wait for it to become writable.
    pub blocked: bool,
    /// Whether its shard listens to it yet.
    pub watched: bool,
}

/// What a flush did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    pub datagrams: u64,
    pub bytes: u64,
    pub errors: u64,
}

impl UdpListener {
    /// Binds `local`.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(
        interface: InterfaceId,
        local: SocketAddr,
        settings: &Settings,
    ) -> io::Result<UdpListener> {
        let socket = sockopt::udp_listener(local, settings)?;
        // Port 0 (tests) becomes the port that the system chose.
        let local = socket.local_addr()?.as_socket().unwrap_or(local);
        Ok(UdpListener {
            socket,
            interface,
            local,
            queue: VecDeque::new(),
            queue_max: settings.udp_queue_max,
            recent: VecDeque::new(),
            dropped: 0,
            blocked: false,
            watched: false,
        })
    }

    pub fn local(&self) -> SocketAddr {
        self.local
    }

    pub fn interface(&self) -> InterfaceId {
        self.interface
    }

    /// Makes it another interface's.
    pub fn set_interface(&mut self, interface: InterfaceId) {
        self.interface = interface;
    }

    /// Datagrams that wait for the socket.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The flow of a datagram from `remote`.
    pub fn flow(&self, remote: SocketAddr) -> Flow {
        Flow {
            interface: self.interface,
            transport: Transport::Udp,
            local: self.local,
            remote,
            conn: None,
        }
    }

    /// Takes one batch; each datagram goes to `each`. Returns the number of datagrams and how
    /// many more the kernel has dropped since the last batch.
    pub fn receive(
        &mut self,
        batch: &mut RecvBatch,
        mut each: impl FnMut(Flow, &[u8]),
    ) -> io::Result<(usize, u32)> {
        let (fd, mut dropped) = (self.socket.as_raw_fd(), self.dropped);
        let count = batch.receive(fd, |Datagram { from, data, dropped: so_far }| {
            dropped = so_far.unwrap_or(dropped);
            each(self.flow(from), data);
        })?;
        let more = dropped.wrapping_sub(self.dropped);
        self.dropped = dropped;
        Ok((count, more))
    }

    /// Queues one datagram for the next flush; false when the queue is full.
    pub fn send(&mut self, to: SocketAddr, data: Bytes, token: Option<SendToken>) -> bool {
        if self.queue.len() >= self.queue_max {
            return false;
        }
        self.queue.push_back(Outgoing { to, data, token });
        true
    }

    /// Gives the system what is queued, until it is full. Failures land in `failed`.
    pub fn flush(&mut self, batch: &mut SendBatch, failed: &mut Vec<Failure>) -> Flushed {
        let mut done = Flushed::default();
        // A pending ICMP error of another destination makes a send fail, each of them once: this
        // datagram has not been tried then. While they pour in it may meet several.
        let mut refusals = 0;
        self.blocked = false;
        while !self.queue.is_empty() {
            let items = self.queue.iter().map(|o| (o.to, &o.data));
            match batch.send(self.socket.as_raw_fd(), items) {
                Ok(count) => {
                    refusals = 0;
                    for out in self.queue.drain(..count.min(self.queue.len())) {
                        done.datagrams += 1;
                        done.bytes += u64::try_from(out.data.len()).unwrap_or(0);
                        remember(&mut self.recent, out);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    break;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if refusals < refusals_max(&e) => refusals += 1,
                Err(e) => {
                    refusals = 0;
                    done.errors += 1;
                    if let Some(Outgoing { token: Some(token), .. }) = self.queue.pop_front() {
                        failed.push((token, send_error(e.raw_os_error().unwrap_or(0))));
                    }
                }
            }
        }
        done
    }

    /// Empties the error queue; failures that match a message we sent land in `failed`, the others in
    /// `strange`: of sockets that share an address the kernel tells any, not the one that sent.
    /// Returns how many errors there were.
    pub fn drain_errors(
        &mut self,
        batch: &mut RecvBatch,
        failed: &mut Vec<Failure>,
        strange: &mut Vec<Unreached>,
    ) -> u64 {
        let mut count = 0;
        while let Some((to, errno, quote)) = batch.receive_error(self.socket.as_raw_fd()) {
            count += 1;
            let error =
                Unreached { local: self.local, to, errno, quote: Bytes::copy_from_slice(quote) };
            match self.sent(&error) {
                Some(failure) => failed.push(failure),
                None if strange.len() < STRANGE_MAX => strange.push(error),
                None => {}
            }
        }
        // The socket's own pending error would fail the next call: take it off.
        let _ = self.socket.take_error();
        count
    }
}

impl UdpListener {
    /// The message of ours that an error is about.
    pub fn sent(&mut self, error: &Unreached) -> Option<Failure> {
        let Unreached { to, errno, quote, .. } = error;
        let hit = self.recent.iter().rposition(|sent| {
            sent.to == *to && (quote.len() < QUOTE_MIN || sent.data.starts_with(quote))
        });
        let token = hit.and_then(|i| self.recent.remove(i))?.token?;
        Some((token, send_error(*errno)))
    }
}

/// How often a datagram is tried again. That nobody listens is never said of the datagram at hand, but
/// of an earlier one; other errors may be its own.
fn refusals_max(error: &io::Error) -> u32 {
    if error.kind() == io::ErrorKind::ConnectionRefused { 64 } else { 1 }
}

fn remember(recent: &mut VecDeque<Outgoing>, out: Outgoing) {
    if out.token.is_none() {
        return;
    }
    if recent.len() >= RECENT_MAX {
        recent.pop_front();
    }
    recent.push_back(out);
}

impl AsFd for UdpListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
