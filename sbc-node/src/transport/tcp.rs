//! Connections of one shard (TCP, TLS, WS, WSS): listeners, accepted and opened ones, reuse, limits,
//! time-outs.
//!
//! A connection belongs to the shard that accepted or opened it; its id says which. What is
//! written gathers and leaves with one `writev` at the end of a wake-up. What lies between a
//! socket and SIP is `conn.rs`.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashbrown::HashMap;
use sbc_core::core::{SendError, SendToken};
use sbc_core::net::{ConnId, DomainId, Flow, InterfaceId, Target, Transport};
use socket2::Socket;

use super::conn::{Beginning, Conn, Fault, Got, PONG, Serves, accepting, alias, used_at_close};
use super::identity::Identities;
use super::poller::{Interest, Poller};
use super::unfinished::Waiting;
use super::{Settings, send_error, sockopt};
use crate::shard::stats::ShardStats;

/// Connections accepted per listener and wake-up.
const ACCEPT_BATCH: usize = 64;
/// Bytes read from one connection per wake-up, so that one peer cannot starve the others.
const READ_BUDGET: usize = 256 * 1024;
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
    transport: Transport,
    local: SocketAddr,
}

/// What a connection is found by: where it leads, as what, and for which domain it was opened.
type Key = (InterfaceId, Transport, SocketAddr, DomainId);

/// Every TCP socket of one shard.
pub struct Tcp {
    shard: u64,
    settings: Settings,
    listeners: Vec<Option<Listener>>,
    conns: HashMap<ConnId, Conn>,
    /// The newest usable connection to a remote address.
    by_remote: HashMap<Key, ConnId>,
    /// Accepted connections that requests may go back on (RFC 5923), by the address that their
    /// peers listen on.
    aliases: HashMap<(InterfaceId, SocketAddr), ConnId>,
    next: u64,
    waiting: Waiting,
    dirty: Vec<ConnId>,
    sweep_at: Option<Instant>,
    buffer: Box<[u8]>,
    events: VecDeque<TcpEvent>,
    got: Vec<Got>,
}

/// Where a connection is to be opened to, and for whom.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    pub interface: InterfaceId,
    pub local: SocketAddr,
    pub target: Target,
    /// The domain behind the target, where it has one.
    pub domain: Option<&'a str>,
}

impl Tcp {
    pub fn new(shard: usize, settings: Settings) -> Tcp {
        Tcp {
            shard: u64::try_from(shard).unwrap_or(0),
            settings,
            listeners: Vec::new(),
            conns: HashMap::new(),
            by_remote: HashMap::new(),
            aliases: HashMap::new(),
            next: 1,
            waiting: Waiting::default(),
            dirty: Vec::new(),
            sweep_at: None,
            buffer: vec![0; 64 * 1024].into_boxed_slice(),
            events: VecDeque::new(),
            got: Vec::new(),
        }
    }

    /// Takes a listening socket; returns the address bound and the listener's number.
    ///
    /// # Errors
    /// When the socket has no address.
    pub fn add_listener(
        &mut self,
        interface: InterfaceId,
        transport: Transport,
        socket: Socket,
    ) -> io::Result<(SocketAddr, usize)> {
        let local = socket.local_addr()?.as_socket();
        let local = local.ok_or(io::ErrorKind::AddrNotAvailable)?;
        let new = Some(Listener { socket, interface, transport, local });
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

    /// What is spoken on a port: its own transport, and that of a listener on the same address which
    /// is secured or not as it is. Such two share the connections as the kernel deals them out.
    fn serves(&self, of: &Listener) -> Serves {
        let own = Serves::default().with(of.transport);
        let same = |l: &&Listener| {
            l.local == of.local
                && Serves::default().with(l.transport).is_secure() == own.is_secure()
        };
        self.listeners.iter().flatten().filter(same).fold(own, |all, l| all.with(l.transport))
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
        self.conns.values().all(Conn::is_idle)
    }

    /// The connection to send to a target on: one that is there, in either direction. A secured
    /// one carries requests for a domain only if it was opened for that domain, or its peer has
    /// offered it and shown a certificate of that domain (RFC 5923 §5).
    pub fn find(
        &self,
        interface: InterfaceId,
        target: Target,
        domain: Option<&str>,
    ) -> Option<ConnId> {
        let key = (interface, target.transport, target.addr, target.domain);
        if let Some(conn) = self.by_remote.get(&key) {
            return Some(*conn);
        }
        if target.transport != Transport::Tls {
            return None;
        }
        let alias = *self.aliases.get(&(interface, target.addr))?;
        let shown = self.conns.get(&alias)?.shown.as_ref()?;
        let fits = match domain {
            Some(domain) => shown.domain(domain),
            None => shown.address(target.addr.ip()),
        };
        fits.then_some(alias)
    }

    /// Accepts what waits on a listener, unless `lets_in` is against it.
    pub fn accept(
        &mut self,
        listener: usize,
        now: Instant,
        poller: &Poller,
        stats: &ShardStats,
        lets_in: &dyn Fn(&Flow) -> bool,
    ) {
        for _ in 0..ACCEPT_BATCH {
            let Some(l) = self.listeners.get(listener).and_then(Option::as_ref) else { return };
            let (interface, local, serves) = (l.interface, l.local, self.serves(l));
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
            let door = self.settings.doors.of(interface);
            let proxied = door.as_ref().is_some_and(|d| d.is_proxy(remote.ip()));
            let transport = serves.sip.or(serves.web).unwrap_or(Transport::Tcp);
            let flow = self.flow(interface, transport, local, remote);
            // Whom a proxy speaks for is known, and asked for, with the first message.
            if self.conns.len() >= self.settings.connections_max
                || !(proxied || lets_in(&flow))
                || !self.count(remote.ip())
            {
                // Closing with a reset: nothing lingers for a peer that is over its limit.
                let _ = socket.set_linger(Some(Duration::ZERO));
                stats.refused.add(1);
                continue;
            }
            if let Err(error) = sockopt::tcp_accepted(&socket, &self.settings) {
                tracing::warn!(%local, %error, "cannot set up a connection");
                self.uncount(remote.ip());
                continue;
            }
            let Ok(tls) = accepting(serves, door.as_deref(), stats) else {
                self.uncount(remote.ip());
                continue;
            };
            // Of a proxied connection the client counts, once it is known.
            let shaking = tls.is_some() && !proxied;
            if shaking && !self.shake(remote.ip()) {
                let _ = socket.set_linger(Some(Duration::ZERO));
                stats.handshakes_refused.add(1);
                self.uncount(remote.ip());
                continue;
            }
            let beginning = Beginning {
                serves,
                tls,
                proxied,
                rules: door.map_or_else(Arc::default, |d| d.web.clone()),
                limits: self.settings.limits,
            };
            stats.accepted.add(1);
            let mut conn = Conn::new(socket, flow, true, now, beginning);
            conn.shaking = shaking;
            let shared = serves.sip.is_some() && serves.web.is_some();
            let id = self.insert(conn, now, poller, stats);
            if id.is_none() {
                self.uncount(remote.ip());
                if shaking {
                    self.settings.handshakes.leave(remote.ip());
                }
            }
            if let (Some(id), false) = (id, shared) {
                self.by_remote.insert((interface, transport, remote, DomainId::default()), id);
            }
        }
    }

    /// Opens a connection; what is sent on it waits until it stands.
    ///
    /// # Errors
    /// When the table is full, the system refuses at once or the interface has no TLS.
    pub fn open(
        &mut self,
        to: Opening<'_>,
        now: Instant,
        poller: &Poller,
        stats: &ShardStats,
    ) -> Result<ConnId, SendError> {
        if self.conns.len() >= self.settings.connections_max {
            stats.refused.add(1);
            return Err(SendError::Full);
        }
        let remote = to.target.addr;
        let tls = match to.target.transport {
            Transport::Tcp => None,
            Transport::Tls => {
                let door = self.settings.doors.of(to.interface).ok_or(SendError::Unreachable)?;
                let profile = door.tls.as_ref().ok_or(SendError::Unreachable)?;
                let name = profile.server_name(to.domain, remote.ip());
                let client = rustls::ClientConnection::new(profile.client.clone(), name);
                Some(client.map_err(|_| SendError::Unreachable)?.into())
            }
            // Browsers come to us; nobody listens behind theirs (RFC 7118 §5).
            Transport::Udp | Transport::Ws | Transport::Wss => return Err(SendError::Unreachable),
        };
        let socket = sockopt::tcp_connect(to.local, remote, &self.settings).map_err(|e| {
            stats.connect_failures.add(1);
            send_error(e.raw_os_error().unwrap_or(0))
        })?;
        let transport = to.target.transport;
        let flow = self.flow(to.interface, transport, to.local, remote);
        let beginning = Beginning {
            serves: Serves::default().with(transport),
            tls,
            proxied: false,
            rules: Arc::default(),
            limits: self.settings.limits,
        };
        let mut conn = Conn::new(socket, flow, false, now, beginning);
        (conn.connecting, conn.want_write) = (Some(now), true);
        let id = self.insert(conn, now, poller, stats).ok_or(SendError::Full)?;
        for domain in [to.target.domain, DomainId::default()] {
            self.by_remote.insert((to.interface, transport, remote, domain), id);
        }
        Ok(id)
    }

    fn flow(
        &mut self,
        interface: InterfaceId,
        transport: Transport,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Flow {
        let conn = ConnId(self.shard << SEQUENCE_BITS | self.next);
        self.next += 1;
        Flow { interface, transport, local, remote, conn: Some(conn) }
    }

    fn insert(
        &mut self,
        conn: Conn,
        now: Instant,
        poller: &Poller,
        stats: &ShardStats,
    ) -> Option<ConnId> {
        let id = conn.flow.conn?;
        let interest = Interest { read: true, write: conn.want_write };
        if let Err(error) = poller.add(&conn.socket, conn_token(id), interest) {
            tracing::error!(%error, "cannot watch a connection");
            return None;
        }
        if let Some(at) = conn.half_since {
            self.waiting.began(at, id);
        }
        self.conns.insert(id, conn);
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
        conn.push(data, token)?;
        conn.users |= user_bit(user);
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(id);
        }
        Ok(())
    }

    /// Notes that shard `user` has been given a message of the connection, which may be closed by now.
    pub fn used_by(&mut self, id: ConnId, user: usize) {
        match self.conns.get_mut(&id) {
            Some(conn) => conn.users |= user_bit(user),
            None => used_at_close(&mut self.events, id, user_bit(user)),
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
        let mut write = write;
        if conn.connecting.is_some() && (write || error) {
            match conn.socket.take_error() {
                Ok(None) if !error => {
                    conn.connecting = None;
                    // A handshake has its own time from here.
                    conn.half_since = conn.beginning().then_some(now);
                    if conn.half_since.is_some() {
                        self.waiting.began(now, id);
                    }
                }
                failed => {
                    let errno = failed.ok().flatten().and_then(|e| e.raw_os_error());
                    stats.connect_failures.add(1);
                    self.close(id, send_error(errno.unwrap_or(libc::ECONNREFUSED)), stats);
                    return;
                }
            }
            write = true;
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
        if conn.connecting.is_some() {
            return;
        }
        match conn.drain(now, stats) {
            Ok(()) => {
                let want = conn.wants_write();
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
        let mut budget = READ_BUDGET;
        while budget > 0 {
            let Some(conn) = self.conns.get_mut(&id) else { return };
            let count = match conn.socket.read(&mut self.buffer) {
                Ok(0) => return self.end(id, &Fault::Closed, stats),
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.end(id, &Fault::Closed, stats),
            };
            budget = budget.saturating_sub(count);
            (conn.last_used, conn.last_heard, conn.pinged) = (now, now, false);
            let data = self.buffer.get(..count).unwrap_or_default();
            let mut got = std::mem::take(&mut self.got);
            let result = conn.receive(data, &mut |g| got.push(g));
            let mut pings = 0;
            for got in got.drain(..) {
                match got {
                    Got::Ping => pings += 1,
                    other => {
                        if !self.take(id, other, stats) {
                            break;
                        }
                    }
                }
            }
            self.got = got;
            if let Err(fault) = result {
                return self.end(id, &fault, stats);
            }
            let Some(conn) = self.conns.get_mut(&id) else { return };
            let partial = conn.partial();
            let began = partial && conn.half_since.is_none();
            conn.half_since = if partial { conn.half_since.or(Some(now)) } else { None };
            let (before, held) = (conn.held, conn.unfinished());
            conn.held = held;
            self.settings.unfinished.change(before, held);
            // Many pings at once are answered once: nothing that a peer sends is amplified.
            if pings > 0 {
                stats.keepalives.add(pings);
                if conn.queued_bytes < self.settings.write_queue_bytes_max {
                    // A WebSocket that is closing needs no answer.
                    let _ = conn.push(PONG, None);
                }
            }
            if conn.wants_write() && !conn.dirty {
                conn.dirty = true;
                self.dirty.push(id);
            }
            if began {
                self.waiting.began(now, id);
            }
            if self.settings.unfinished.bytes() > self.settings.unfinished_bytes_max {
                self.make_room(id, stats);
            }
        }
    }

    /// Unfinished messages are too many bytes: the connection that has been at one longest goes, and
    /// that which has just brought more where there is no other.
    fn make_room(&mut self, newest: ConnId, stats: &ShardStats) {
        while self.settings.unfinished.bytes() > self.settings.unfinished_bytes_max {
            let conns = &self.conns;
            let slowest = self.waiting.slowest(|id| conns.get(&id)?.half_since);
            let held = conns.get(&newest).map_or(0, |c| c.held);
            let Some(id) = slowest.or((held > 0).then_some(newest)) else { return };
            stats.unfinished_evicted.add(1);
            if let Some(conn) = self.conns.get(&id) {
                tracing::debug!(remote = %conn.flow.remote, "too many unfinished messages");
                // With a reset: nothing lingers for it.
                let _ = conn.socket.set_linger(Some(Duration::ZERO));
            }
            self.close(id, SendError::Closed, stats);
        }
    }

    /// Something that a connection brought; false when it is over with that.
    fn take(&mut self, id: ConnId, got: Got, stats: &ShardStats) -> bool {
        let Some(conn) = self.conns.get_mut(&id) else { return false };
        match got {
            Got::Ping => {}
            Got::Message(data) => {
                stats.stream_in.add(1);
                conn.half_since = None;
                conn.spoke = true;
                if let Some(shown) = conn.shown.as_ref().filter(|_| !conn.alias_seen) {
                    conn.alias_seen = true;
                    let flow = conn.flow;
                    let alias =
                        conn.accepted.then(|| alias(&data, &flow, shown, &self.settings.limits));
                    if let Some(address) = alias.flatten() {
                        self.aliases.insert((flow.interface, address), id);
                    }
                }
                let flow = self.conns.get(&id).map(|c| c.flow);
                self.events.extend(flow.map(|flow| TcpEvent::Message { flow, data }));
            }
            Got::Source(source, balancer) => {
                // The client is counted, no longer the balancer.
                let flow = conn.flow;
                self.forget(id, &Flow { remote: balancer, ..flow });
                self.uncount(balancer.ip());
                if !self.count(source.ip()) {
                    // It was not counted: its end must not be either.
                    if let Some(conn) = self.conns.get_mut(&id) {
                        conn.accepted = false;
                    }
                    stats.refused.add(1);
                    self.close(id, SendError::Closed, stats);
                    return false;
                }
                if self.conns.get(&id).is_some_and(Conn::is_tls) {
                    let fits = self.shake(source.ip());
                    if let Some(conn) = self.conns.get_mut(&id) {
                        conn.shaking = fits;
                    }
                    if !fits {
                        stats.handshakes_refused.add(1);
                        self.close(id, SendError::Closed, stats);
                        return false;
                    }
                }
                self.by_remote
                    .insert((flow.interface, flow.transport, source, DomainId::default()), id);
            }
            Got::Secured => {
                stats.tls_handshakes.add(1);
                if std::mem::take(&mut conn.shaking) {
                    self.settings.handshakes.leave(conn.flow.remote.ip());
                }
                let none = Identities::default();
                let door = self.settings.doors.of(conn.flow.interface);
                let profile = door.as_ref().and_then(|d| d.tls.as_ref());
                let shown = conn.shown.as_deref().unwrap_or(&none);
                let admitted = !conn.accepted
                    || profile.is_some_and(|p| p.admits(conn.flow.remote.ip(), shown));
                if !admitted {
                    tracing::debug!(remote = %conn.flow.remote, "not the certificate of this trunk");
                    stats.tls_identity_refused.add(1);
                    self.close(id, SendError::Closed, stats);
                    return false;
                }
            }
            Got::Speaks(transport) => {
                let flow = conn.flow;
                self.by_remote
                    .insert((flow.interface, transport, flow.remote, DomainId::default()), id);
            }
        }
        true
    }

    /// Ends a connection for a reason, with a last word to the peer.
    fn end(&mut self, id: ConnId, fault: &Fault, stats: &ShardStats) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let remote = conn.flow.remote;
        match fault {
            Fault::Closed => {}
            Fault::Proxy(_) => stats.proxy_errors.add(1),
            Fault::Tls(_) => stats.tls_failures.add(1),
            Fault::Web(super::ws::WsError::Closed) => {}
            Fault::Web(_) => stats.web_errors.add(1),
            Fault::Framing(_) => stats.framing_errors.add(1),
        }
        if !matches!(fault, Fault::Closed) {
            tracing::debug!(%remote, reason = %fault, "connection ended");
        }
        conn.farewell(Some(fault), stats);
        let error = if conn.accepted || !matches!(fault, Fault::Tls(_)) {
            SendError::Closed
        } else {
            SendError::Unreachable
        };
        self.close(id, error, stats);
    }

    /// Closes what has waited too long.
    pub fn sweep(&mut self, now: Instant, stats: &ShardStats) {
        if self.sweep_at.is_none_or(|at| at > now) {
            return;
        }
        let settings = &self.settings;
        let mut overdue = Vec::new();
        let mut ping = Vec::new();
        for (id, conn) in &self.conns {
            let since = |at: Instant| now.saturating_duration_since(at);
            let half = |limit: Duration| conn.half_since.is_some_and(|at| since(at) >= limit);
            let over = |limit: Option<Duration>, at| limit.is_some_and(|l| since(at) >= l);
            if let Some(at) = conn.connecting {
                if since(at) >= settings.connect_timeout {
                    stats.connect_failures.add(1);
                    overdue.push((*id, SendError::Timeout));
                }
            } else if conn.beginning() {
                if half(settings.handshake_timeout) {
                    stats.handshake_timeouts.add(1);
                    overdue.push((*id, SendError::Timeout));
                }
            } else if half(settings.half_message_timeout) {
                stats.half_messages.add(1);
                overdue.push((*id, SendError::Closed));
            } else if !conn.spoke
                && conn.accepted
                && over(settings.first_message_timeout, conn.opened)
            {
                stats.silent_closed.add(1);
                overdue.push((*id, SendError::Closed));
            } else if since(conn.last_used) >= settings.idle_timeout {
                stats.idle_closed.add(1);
                overdue.push((*id, SendError::Closed));
            } else if over(settings.lifetime, conn.opened) && conn.is_idle() {
                stats.lifetime_closed.add(1);
                overdue.push((*id, SendError::Closed));
            } else if conn.is_web() && over(settings.websocket_ping, conn.last_heard) {
                // Half an interval is left for the answer.
                let late = settings.websocket_ping.map(|every| every + every / 2);
                if !conn.pinged {
                    ping.push(*id);
                } else if over(late, conn.last_heard) {
                    stats.web_dead.add(1);
                    overdue.push((*id, SendError::Closed));
                }
            }
        }
        for id in ping {
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.ping();
                conn.dirty = true;
                self.dirty.push(id);
            }
        }
        for (id, error) in overdue {
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.farewell(None, stats);
            }
            self.close(id, error, stats);
        }
        let conns = &self.conns;
        self.waiting.tidy(conns.len(), |id| conns.get(&id)?.half_since);
        self.sweep_at = (!self.conns.is_empty()).then_some(now + SWEEP_EVERY);
    }

    /// Ends a connection whose peer is not to be listened to any more.
    pub fn refuse(&mut self, id: ConnId, stats: &ShardStats) {
        if let Some(conn) = self.conns.get(&id) {
            // With a reset: nothing lingers for it.
            let _ = conn.socket.set_linger(Some(Duration::ZERO));
            stats.refused.add(1);
            self.close(id, SendError::Closed, stats);
        }
    }

    /// Ends every connection: the shard stops.
    pub fn close_all(&mut self, stats: &ShardStats) {
        for id in self.conns.keys().copied().collect::<Vec<_>>() {
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.farewell(None, stats);
            }
            self.close(id, SendError::Closed, stats);
        }
    }

    fn close(&mut self, id: ConnId, error: SendError, stats: &ShardStats) {
        let Some(mut conn) = self.conns.remove(&id) else { return };
        let (flow, users) = (conn.flow, conn.users);
        self.forget(id, &flow);
        self.settings.unfinished.change(conn.held, 0);
        if conn.shaking {
            self.settings.handshakes.leave(flow.remote.ip());
        }
        if conn.accepted {
            self.uncount(flow.remote.ip());
        }
        let lost = conn.unsent().map(|token| TcpEvent::SendFailed { token, error });
        self.events.extend(lost);
        // The socket closes with the descriptor; a peer that is gone already is no news.
        let _ = conn.socket.shutdown(Shutdown::Both);
        self.events.push_back(TcpEvent::Closed { flow, users });
        stats.connections.set(u64::try_from(self.conns.len()).unwrap_or(u64::MAX));
    }

    /// Takes a connection out of what connections are found by.
    fn forget(&mut self, id: ConnId, flow: &Flow) {
        let plain = (flow.interface, flow.transport, flow.remote, DomainId::default());
        if self.by_remote.get(&plain) == Some(&id) {
            self.by_remote.remove(&plain);
        }
        if flow.transport == Transport::Tls {
            // Few lead to named domains and few are aliases: both are looked through.
            self.by_remote.retain(|key, at| *at != id || key.3 == DomainId::default());
            self.aliases.retain(|_, at| *at != id);
        }
    }

    fn count(&self, source: IpAddr) -> bool {
        self.settings.sources.enter(source, self.settings.connections_per_source_max)
    }

    /// Counts a handshake of `source`, unless it has as many as it may.
    fn shake(&self, source: IpAddr) -> bool {
        self.settings.handshakes.enter(source, self.settings.handshakes_per_source_max)
    }

    fn uncount(&self, source: IpAddr) {
        self.settings.sources.leave(source);
    }
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
