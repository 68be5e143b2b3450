//! TCP of one shard: listeners, connections accepted and opened, reuse, limits, time-outs.
//!
//! A connection belongs to the shard that accepted or opened it; its id says which. What is
//! written gathers and leaves with one `writev` at the end of a wake-up. A TLS or WebSocket
//! connection will be one more kind of stream below [`Conn`]; the table stays as it is.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashbrown::HashMap;
use sbc_core::core::{SendError, SendToken};
use sbc_core::net::{ConnId, Flow, InterfaceId, Transport};

use sbc_core::sip::{self, Frame, Framer, Limits, Message};
use socket2::Socket;

use super::poller::{Interest, Poller};
use super::{Settings, send_error, sockopt};
use crate::shard::stats::ShardStats;

/// The answer to a double CRLF (RFC 5626 §3.5.1).
const PONG: Bytes = Bytes::from_static(b"\r\n");
/// Connections accepted per listener and wake-up.
const ACCEPT_BATCH: usize = 64;
/// Bytes read from one connection per wake-up, so that one peer cannot starve the others.
const READ_BUDGET: usize = 256 * 1024;
/// Buffers per `writev`.
const WRITE_SLICES: usize = 64;
/// Time-outs are looked for this often.
const SWEEP_EVERY: Duration = Duration::from_millis(250);
/// The bits of a connection id below the shard's index.
const SEQUENCE_BITS: u32 = 48;

/// The shard that owns a connection.
pub fn owner(conn: ConnId) -> usize {
    usize::try_from(conn.0 >> SEQUENCE_BITS).unwrap_or(usize::MAX)
}

/// What the shard must hear of.
#[derive(Debug)]
pub enum TcpEvent {
    Message {
        flow: Flow,
        data: Bytes,
    },
    SendFailed {
        token: SendToken,
        error: SendError,
    },
    /// Also says which shards have used the connection (a bit each).
    Closed {
        flow: Flow,
        users: u64,
    },
}

struct Listener {
    socket: Socket,
    interface: InterfaceId,
    local: SocketAddr,
}

enum State {
    Connecting { since: Instant },
    Open,
}

struct Conn {
    socket: Socket,
    flow: Flow,
    state: State,
    framer: Framer,
    queue: VecDeque<(Bytes, Option<SendToken>)>,
    /// Bytes of the first queued buffer that have left.
    written: usize,
    queued_bytes: usize,
    accepted: bool,
    last_used: Instant,
    /// Since when a message has been incomplete.
    half_since: Option<Instant>,
    want_write: bool,
    dirty: bool,
    users: u64,
}

/// Every TCP socket of one shard.
pub struct Tcp {
    shard: u64,
    settings: Settings,
    listeners: Vec<Option<Listener>>,
    conns: HashMap<ConnId, Conn>,
    /// The newest usable connection to a remote address by an interface.
    by_remote: HashMap<(InterfaceId, SocketAddr), ConnId>,
    per_source: HashMap<IpAddr, usize>,
    next: u64,
    dirty: Vec<ConnId>,
    sweep_at: Option<Instant>,
    buffer: Box<[u8]>,
    events: VecDeque<TcpEvent>,
}

impl Tcp {
    pub fn new(shard: usize, settings: Settings) -> Tcp {
        Tcp {
            shard: u64::try_from(shard).unwrap_or(0),
            settings,
            listeners: Vec::new(),
            conns: HashMap::new(),
            by_remote: HashMap::new(),
            per_source: HashMap::new(),
            next: 1,
            dirty: Vec::new(),
            sweep_at: None,
            buffer: vec![0; 64 * 1024].into_boxed_slice(),
            events: VecDeque::new(),
        }
    }

    /// Takes a listening socket; returns the address bound and the listener's number.
    ///
    /// # Errors
    /// When the socket has no address.
    pub fn add_listener(
        &mut self,
        interface: InterfaceId,
        socket: Socket,
    ) -> io::Result<(SocketAddr, usize)> {
        let local = socket.local_addr()?.as_socket();
        let local = local.ok_or(io::ErrorKind::AddrNotAvailable)?;
        let new = Some(Listener { socket, interface, local });
        match self.listeners.iter().position(Option::is_none) {
            Some(free) => {
                self.listeners[free] = new;
                Ok((local, free))
            }
            None => {
                self.listeners.push(new);
                Ok((local, self.listeners.len() - 1))
            }
        }
    }

    /// Makes a listener another interface's; its connections stay with theirs.
    pub fn set_listener_interface(&mut self, listener: usize, interface: InterfaceId) {
        if let Some(listener) = self.listeners.get_mut(listener).and_then(Option::as_mut) {
            listener.interface = interface;
        }
    }

    /// Watches a listener under `token`.
    pub fn watch(&self, listener: usize, poller: &Poller, token: u64) -> io::Result<()> {
        match self.listeners.get(listener).and_then(Option::as_ref) {
            Some(l) => poller.add(&l.socket, token, Interest::READ),
            None => Ok(()),
        }
    }

    /// Closes a listener; its connections live on.
    pub fn unlisten(&mut self, listener: usize) {
        if let Some(slot) = self.listeners.get_mut(listener) {
            *slot = None;
        }
    }

    pub fn next_event(&mut self) -> Option<TcpEvent> {
        self.events.pop_front()
    }

    /// When [`sweep`](Self::sweep) is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.sweep_at
    }

    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// Whether anything still waits to be written.
    pub fn idle(&self) -> bool {
        self.conns.values().all(|c| c.queue.is_empty())
    }

    /// The connection to send to `remote` on: one that is there, in either direction.
    pub fn find(&self, interface: InterfaceId, remote: SocketAddr) -> Option<ConnId> {
        self.by_remote.get(&(interface, remote)).copied()
    }

    /// Accepts what waits on a listener.
    pub fn accept(&mut self, listener: usize, now: Instant, poller: &Poller, stats: &ShardStats) {
        for _ in 0..ACCEPT_BATCH {
            let Some(l) = self.listeners.get(listener).and_then(Option::as_ref) else { return };
            let (interface, local) = (l.interface, l.local);
            let (socket, remote) = match l.socket.accept() {
                Ok((socket, remote)) => (socket, remote.as_socket()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    tracing::warn!(%local, %error, "cannot accept a connection");
                    return;
                }
            };
            let Some(remote) = remote else { continue };
            let source = self.per_source.get(&remote.ip()).copied().unwrap_or(0);
            if self.conns.len() >= self.settings.connections_max
                || source >= self.settings.connections_per_source_max
            {
                // Closing with a reset: nothing lingers for a peer that is over its limit.
                let _ = socket.set_linger(Some(Duration::ZERO));
                stats.refused.add(1);
                continue;
            }
            if let Err(error) = sockopt::tcp_accepted(&socket) {
                tracing::warn!(%local, %error, "cannot set up a connection");
                continue;
            }
            let flow = self.flow(interface, local, remote);
            *self.per_source.entry(remote.ip()).or_insert(0) += 1;
            stats.accepted.add(1);
            self.insert(socket, flow, State::Open, true, now, poller, stats);
        }
    }

    /// Opens a connection; what is sent on it waits until it stands.
    ///
    /// # Errors
    /// When the table is full or the system refuses at once.
    pub fn open(
        &mut self,
        interface: InterfaceId,
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
        poller: &Poller,
        stats: &ShardStats,
    ) -> Result<ConnId, SendError> {
        if self.conns.len() >= self.settings.connections_max {
            stats.refused.add(1);
            return Err(SendError::Full);
        }
        let socket = sockopt::tcp_connect(local, remote, &self.settings).map_err(|e| {
            stats.connect_failures.add(1);
            send_error(e.raw_os_error().unwrap_or(0))
        })?;
        let flow = self.flow(interface, local, remote);
        let state = State::Connecting { since: now };
        self.insert(socket, flow, state, false, now, poller, stats).ok_or(SendError::Full)
    }

    fn flow(&mut self, interface: InterfaceId, local: SocketAddr, remote: SocketAddr) -> Flow {
        let conn = ConnId(self.shard << SEQUENCE_BITS | self.next);
        self.next += 1;
        Flow { interface, transport: Transport::Tcp, local, remote, conn: Some(conn) }
    }

    #[expect(clippy::too_many_arguments, reason = "one call site per way a connection begins")]
    fn insert(
        &mut self,
        socket: Socket,
        flow: Flow,
        state: State,
        accepted: bool,
        now: Instant,
        poller: &Poller,
        stats: &ShardStats,
    ) -> Option<ConnId> {
        let id = flow.conn?;
        let connecting = matches!(state, State::Connecting { .. });
        let interest = Interest { read: true, write: connecting };
        if let Err(error) = poller.add(&socket, conn_token(id), interest) {
            tracing::error!(%error, "cannot watch a connection");
            return None;
        }
        let conn = Conn {
            socket,
            flow,
            state,
            framer: Framer::new(self.settings.limits),
            queue: VecDeque::new(),
            written: 0,
            queued_bytes: 0,
            accepted,
            last_used: now,
            half_since: None,
            want_write: connecting,
            dirty: false,
            users: 0,
        };
        self.conns.insert(id, conn);
        self.by_remote.insert((flow.interface, flow.remote), id);
        stats.connections.set(u64::try_from(self.conns.len()).unwrap_or(u64::MAX));
        self.sweep_at.get_or_insert(now + SWEEP_EVERY);
        Some(id)
    }

    /// Queues one message; it leaves with the next [`flush`](Self::flush). `user` is the shard it
    /// comes from.
    ///
    /// # Errors
    /// When the connection is gone or its queue is full.
    pub fn send(
        &mut self,
        id: ConnId,
        data: Bytes,
        token: Option<SendToken>,
        user: usize,
    ) -> Result<(), SendError> {
        let conn = self.conns.get_mut(&id).ok_or(SendError::Closed)?;
        if conn.queued_bytes + data.len() > self.settings.write_queue_bytes_max {
            return Err(SendError::Full);
        }
        conn.queued_bytes += data.len();
        conn.queue.push_back((data, token));
        conn.users |= user_bit(user);
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(id);
        }
        Ok(())
    }

    /// Notes that shard `user` has been given a message of the connection.
    pub fn used_by(&mut self, id: ConnId, user: usize) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.users |= user_bit(user);
        }
    }

    /// Writes what was queued since the last flush.
    pub fn flush(&mut self, now: Instant, poller: &Poller, stats: &ShardStats) {
        for id in std::mem::take(&mut self.dirty) {
            self.write(id, now, poller, stats);
        }
    }

    /// A connection became ready.
    pub fn ready(
        &mut self,
        id: ConnId,
        (read, write, error): (bool, bool, bool),
        now: Instant,
        poller: &Poller,
        stats: &ShardStats,
    ) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if matches!(conn.state, State::Connecting { .. }) && (write || error) {
            match conn.socket.take_error() {
                Ok(None) if !error => conn.state = State::Open,
                failed => {
                    let errno = failed.ok().flatten().and_then(|e| e.raw_os_error());
                    stats.connect_failures.add(1);
                    self.close(id, send_error(errno.unwrap_or(libc::ECONNREFUSED)), stats);
                    return;
                }
            }
        }
        if write {
            self.write(id, now, poller, stats);
        }
        if read || error {
            self.read(id, now, stats);
        }
    }

    fn write(&mut self, id: ConnId, now: Instant, poller: &Poller, stats: &ShardStats) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.dirty = false;
        if matches!(conn.state, State::Connecting { .. }) {
            return;
        }
        match conn.drain(now, stats) {
            Ok(()) => {
                let want = !conn.queue.is_empty();
                if want != conn.want_write {
                    let interest = Interest { read: true, write: want };
                    conn.want_write = want;
                    if let Err(error) = poller.modify(&conn.socket, conn_token(id), interest) {
                        tracing::error!(%error, "cannot watch a connection");
                    }
                }
            }
            Err(_) => self.close(id, SendError::Closed, stats),
        }
    }

    fn read(&mut self, id: ConnId, now: Instant, stats: &ShardStats) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let mut budget = READ_BUDGET;
        while budget > 0 {
            let count = match conn.socket.read(&mut self.buffer) {
                Ok(0) => return self.close(id, SendError::Closed, stats),
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.close(id, SendError::Closed, stats),
            };
            budget = budget.saturating_sub(count);
            conn.last_used = now;
            conn.framer.push(self.buffer.get(..count).unwrap_or_default());
            let mut pongs = 0;
            loop {
                match conn.framer.poll() {
                    Ok(Some(Frame::Message(data))) => {
                        stats.stream_in.add(1);
                        conn.half_since = None;
                        self.events.push_back(TcpEvent::Message { flow: conn.flow, data });
                    }
                    Ok(Some(Frame::Ping)) => pongs += 1,
                    Ok(Some(Frame::Pong)) => {}
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(remote = %conn.flow.remote, %error, "bad framing");
                        stats.framing_errors.add(1);
                        if let Some(answer) = refusal(conn, &self.settings.limits) {
                            // The last word on this connection, if the peer still listens.
                            let _ = conn.socket.write(&answer);
                        }
                        return self.close(id, SendError::Closed, stats);
                    }
                }
            }
            let partial = conn.framer.pending() > 0;
            conn.half_since = if partial { conn.half_since.or(Some(now)) } else { None };
            // Many pings at once are answered once: nothing that a peer sends is amplified.
            if pongs > 0 {
                stats.keepalives.add(pongs);
                if conn.queued_bytes < self.settings.write_queue_bytes_max {
                    conn.queued_bytes += PONG.len();
                    conn.queue.push_back((PONG, None));
                    if !conn.dirty {
                        conn.dirty = true;
                        self.dirty.push(id);
                    }
                }
            }
        }
    }

    /// Closes what has waited too long.
    pub fn sweep(&mut self, now: Instant, stats: &ShardStats) {
        if self.sweep_at.is_none_or(|at| at > now) {
            return;
        }
        let settings = &self.settings;
        let mut overdue = Vec::new();
        for (id, conn) in &self.conns {
            let since = |at: Instant| now.saturating_duration_since(at);
            if let State::Connecting { since: at } = conn.state {
                if since(at) >= settings.connect_timeout {
                    stats.connect_failures.add(1);
                    overdue.push((*id, SendError::Timeout));
                }
            } else if conn.half_since.is_some_and(|at| since(at) >= settings.half_message_timeout) {
                stats.half_messages.add(1);
                overdue.push((*id, SendError::Closed));
            } else if since(conn.last_used) >= settings.idle_timeout {
                stats.idle_closed.add(1);
                overdue.push((*id, SendError::Closed));
            }
        }
        for (id, error) in overdue {
            self.close(id, error, stats);
        }
        self.sweep_at = (!self.conns.is_empty()).then_some(now + SWEEP_EVERY);
    }

    /// Ends every connection: the shard stops.
    pub fn close_all(&mut self, stats: &ShardStats) {
        for id in self.conns.keys().copied().collect::<Vec<_>>() {
            self.close(id, SendError::Closed, stats);
        }
    }

    fn close(&mut self, id: ConnId, error: SendError, stats: &ShardStats) {
        let Some(conn) = self.conns.remove(&id) else { return };
        let (flow, users) = (conn.flow, conn.users);
        if self.by_remote.get(&(flow.interface, flow.remote)) == Some(&id) {
            self.by_remote.remove(&(flow.interface, flow.remote));
        }
        if conn.accepted
            && let Some(count) = self.per_source.get_mut(&flow.remote.ip())
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.per_source.remove(&flow.remote.ip());
            }
        }
        for (_, token) in conn.queue {
            if let Some(token) = token {
                self.events.push_back(TcpEvent::SendFailed { token, error });
            }
        }
        // The socket closes with the descriptor; a peer that is gone already is no news.
        let _ = conn.socket.shutdown(Shutdown::Both);
        self.events.push_back(TcpEvent::Closed { flow, users });
        stats.connections.set(u64::try_from(self.conns.len()).unwrap_or(u64::MAX));
    }
}

impl Conn {
    /// Writes until the queue is empty or the socket full.
    fn drain(&mut self, now: Instant, stats: &ShardStats) -> io::Result<()> {
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
            let mut filled = 0;
            let mut skip = self.written;
            for (slot, (data, _)) in slices.iter_mut().zip(&self.queue) {
                *slot = IoSlice::new(data.get(skip..).unwrap_or_default());
                skip = 0;
                filled += 1;
            }
            match self.socket.write_vectored(slices.get(..filled).unwrap_or_default()) {
                Ok(count) => self.advance(count, stats),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            self.last_used = now;
        }
        Ok(())
    }

    fn advance(&mut self, mut count: usize, stats: &ShardStats) {
        self.queued_bytes = self.queued_bytes.saturating_sub(count);
        while let Some((data, _)) = self.queue.front() {
            let left = data.len().saturating_sub(self.written);
            if count < left {
                self.written += count;
                return;
            }
            count -= left;
            self.written = 0;
            self.queue.pop_front();
            stats.stream_out.add(1);
        }
    }
}

/// What a peer hears before its connection is closed for bad framing: 400 or 513, when what came
/// has enough of a Via to answer.
fn refusal(conn: &mut Conn, limits: &Limits) -> Option<Bytes> {
    let rest = conn.framer.rest();
    let large = rest.len() > limits.head_bytes_max;
    let request = sip::salvage(rest, limits).filter(Message::is_request)?;
    let (status, reason) = if large { (513, "") } else { (400, "Bad Content-Length or framing") };
    Some(sip::response(&request, status, reason, Some("framing"), Some(conn.flow.remote)).finish())
}

fn user_bit(shard: usize) -> u64 {
    1_u64 << (shard & 63)
}

/// The poller's token of a connection.
pub fn conn_token(id: ConnId) -> u64 {
    crate::shard::run::CONN_TOKEN | id.0
}

/// The connection of a poller's token.
pub fn token_conn(token: u64) -> ConnId {
    ConnId(token & !crate::shard::run::CONN_TOKEN)
}
