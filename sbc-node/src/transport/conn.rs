//! One connection: its socket, what lies between the socket and SIP (PROXY header, TLS, WebSocket or
//! plain framing), and what waits to be written.
//!
//! ```text
//! socket ─ PROXY header ─ TLS records ─ SIP framing | WebSocket frames ─ messages
//! ```
//!
//! Limits of many connections, listeners and time-outs live in `tcp.rs`.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rustls::Connection as Tls;
use sbc_core::core::{SendError, SendToken};
use sbc_core::net::{ConnId, Flow, Transport};
use sbc_core::sip::{self, Frame, Framer, Limits, Message};
use socket2::Socket;

use super::door::Door;
use super::identity::Identities;
use super::proxy;
use super::tcp::TcpEvent;
use super::ws::{Rules, Ws, WsFrame};
use crate::shard::stats::ShardStats;

/// The answer to a double CRLF (RFC 5626 §3.5.1).
pub(super) const PONG: Bytes = Bytes::from_static(b"\r\n");
/// Buffers per `writev`.
const WRITE_SLICES: usize = 64;

/// What is spoken on a port, by the transport that it then is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Serves {
    pub(super) sip: Option<Transport>,
    pub(super) web: Option<Transport>,
}

impl Serves {
    pub(super) fn with(self, transport: Transport) -> Serves {
        match transport {
            Transport::Ws | Transport::Wss => Serves { web: Some(transport), ..self },
            Transport::Udp | Transport::Tcp | Transport::Tls => {
                Serves { sip: Some(transport), ..self }
            }
        }
    }

    pub(super) fn is_secure(self) -> bool {
        self.sip == Some(Transport::Tls) || self.web == Some(Transport::Wss)
    }
}

/// What a connection brought.
pub(super) enum Got {
    Message(Bytes),
    Ping,
    /// The balancer in front (the second address) says who the client is.
    Source(SocketAddr, SocketAddr),
    /// The TLS handshake is done.
    Secured,
    /// What is spoken is known.
    Speaks(Transport),
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("closed")]
    Closed,
    #[error(transparent)]
    Proxy(#[from] proxy::NoHeader),
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    #[error(transparent)]
    Web(#[from] super::ws::WsError),
    #[error(transparent)]
    Framing(#[from] sip::StreamError),
}

/// What carries the messages.
enum Content {
    /// SIP or HTTP: the first bytes tell. Few of them are kept until then.
    Sniff(Vec<u8>),
    Sip(Box<Framer>),
    Web(Box<Ws>),
}

/// How a connection begins.
pub(super) struct Beginning {
    pub(super) serves: Serves,
    pub(super) tls: Option<Tls>,
    /// A PROXY header comes first.
    pub(super) proxied: bool,
    pub(super) rules: Arc<Rules>,
    pub(super) limits: Limits,
}

pub(super) struct Conn {
    pub(super) socket: Socket,
    pub(super) flow: Flow,
    /// Set until the connection stands.
    pub(super) connecting: Option<Instant>,
    pub(super) opened: Instant,
    pub(super) accepted: bool,
    pub(super) last_used: Instant,
    /// When the peer last sent anything.
    pub(super) last_heard: Instant,
    /// Since when a message or a handshake has been incomplete.
    pub(super) half_since: Option<Instant>,
    /// Bytes of it, as the node counts them.
    pub(super) held: usize,
    /// The peer has sent a whole message.
    pub(super) spoke: bool,
    /// The source counts a handshake of TLS for it.
    pub(super) shaking: bool,
    /// A WebSocket ping is out.
    pub(super) pinged: bool,
    pub(super) want_write: bool,
    pub(super) dirty: bool,
    pub(super) users: u64,
    /// What the peer's certificate says, once it has shown a valid one.
    pub(super) shown: Option<Box<Identities>>,
    /// Requests have been looked at for `alias` (RFC 5923).
    pub(super) alias_seen: bool,
    proxy: Option<Vec<u8>>,
    tls: Option<Box<Tls>>,
    /// Bytes of the handshake of TLS that is under way.
    shaken: usize,
    content: Content,
    serves: Serves,
    rules: Arc<Rules>,
    limits: Limits,
    queue: VecDeque<(Bytes, Option<SendToken>)>,
    /// Bytes of the first queued buffer that have left.
    written: usize,
    pub(super) queued_bytes: usize,
}

impl Conn {
    pub(super) fn new(
        socket: Socket,
        flow: Flow,
        accepted: bool,
        now: Instant,
        b: Beginning,
    ) -> Conn {
        let content = match (b.serves.sip, b.serves.web) {
            (Some(_), None) | (None, None) => Content::Sip(Box::new(Framer::new(b.limits))),
            (None, Some(_)) => Content::Web(Box::new(Ws::new(b.rules.clone(), &b.limits))),
            (Some(_), Some(_)) => Content::Sniff(Vec::new()),
        };
        let mut conn = Conn {
            socket,
            flow,
            connecting: None,
            opened: now,
            accepted,
            last_used: now,
            last_heard: now,
            half_since: None,
            held: 0,
            spoke: false,
            shaking: false,
            pinged: false,
            want_write: false,
            dirty: false,
            users: 0,
            shown: None,
            alias_seen: false,
            proxy: b.proxied.then(Vec::new),
            tls: b.tls.map(Box::new),
            shaken: 0,
            content,
            serves: b.serves,
            rules: b.rules,
            limits: b.limits,
            queue: VecDeque::new(),
            written: 0,
            queued_bytes: 0,
        };
        conn.half_since = conn.beginning().then_some(now);
        conn
    }

    /// Whether what comes before the first message is not over yet.
    pub(super) fn beginning(&self) -> bool {
        let web = match &self.content {
            Content::Sniff(seen) => !seen.is_empty() || self.tls.is_some() || self.proxy.is_some(),
            Content::Sip(_) => false,
            Content::Web(ws) => !ws.is_open(),
        };
        web || self.proxy.is_some() || self.tls.as_ref().is_some_and(|t| t.is_handshaking())
    }

    /// Whether a message or a handshake is under way.
    pub(super) fn partial(&self) -> bool {
        self.beginning()
            || match &self.content {
                Content::Sniff(_) => false,
                Content::Sip(framer) => framer.pending() > 0,
                Content::Web(ws) => ws.partial(),
            }
    }

    /// Bytes kept of what is not whole yet.
    pub(super) fn unfinished(&self) -> usize {
        let head = self.proxy.as_ref().map_or(0, Vec::len) + self.shaken;
        head + match &self.content {
            Content::Sniff(seen) => seen.len(),
            Content::Sip(framer) => framer.pending(),
            Content::Web(ws) => ws.unfinished(),
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    pub(super) fn is_web(&self) -> bool {
        matches!(self.content, Content::Web(_))
    }

    /// Takes bytes off the wire.
    pub(super) fn receive(&mut self, data: &[u8], each: &mut dyn FnMut(Got)) -> Result<(), Fault> {
        let Some(head) = &mut self.proxy else { return self.behind_proxy(data, each) };
        head.extend_from_slice(data);
        let Some(proxied) = proxy::read(head)? else { return Ok(()) };
        let rest = head.split_off(proxied.length);
        self.proxy = None;
        if let Some(source) = proxied.source {
            let balancer = std::mem::replace(&mut self.flow.remote, source);
            each(Got::Source(source, balancer));
        }
        self.behind_proxy(&rest, each)
    }

    fn behind_proxy(&mut self, mut data: &[u8], each: &mut dyn FnMut(Got)) -> Result<(), Fault> {
        let Some(tls) = &mut self.tls else {
            return self.plain(data, each);
        };
        let mut plain = Vec::new();
        let mut closed = false;
        while !data.is_empty() && !closed {
            let shaking = tls.is_handshaking();
            let before = data.len();
            if tls.read_tls(&mut data).is_err() {
                return Err(Fault::Closed);
            }
            self.shaken += if shaking { before - data.len() } else { 0 };
            let state = tls.process_new_packets().map_err(Fault::Tls)?;
            if shaking && !tls.is_handshaking() {
                let certificate = tls.peer_certificates().and_then(|all| all.first());
                self.shown = certificate.map(|c| Box::new(Identities::of(c)));
                self.shaken = 0;
                each(Got::Secured);
            }
            if state.plaintext_bytes_to_read() > 0 {
                let from = plain.len();
                plain.resize(from + state.plaintext_bytes_to_read(), 0);
                let room = plain.get_mut(from..).unwrap_or_default();
                tls.reader().read_exact(room).map_err(|_| Fault::Closed)?;
            }
            closed = state.peer_has_closed();
        }
        if !plain.is_empty() {
            self.plain(&plain, each)?;
        }
        if closed { Err(Fault::Closed) } else { Ok(()) }
    }

    fn plain(&mut self, data: &[u8], each: &mut dyn FnMut(Got)) -> Result<(), Fault> {
        if let Content::Sniff(seen) = &mut self.content {
            seen.extend_from_slice(data);
            const GET: &[u8] = b"GET ";
            if seen.len() < GET.len() && GET.starts_with(seen) {
                return Ok(());
            }
            let (web, seen) = (seen.starts_with(GET), std::mem::take(seen));
            let speaks = if web { self.serves.web } else { self.serves.sip };
            self.content = match web {
                true => Content::Web(Box::new(Ws::new(self.rules.clone(), &self.limits))),
                false => Content::Sip(Box::new(Framer::new(self.limits))),
            };
            if let Some(transport) = speaks {
                self.flow.transport = transport;
                each(Got::Speaks(transport));
            }
            return self.messages(&seen, each);
        }
        self.messages(data, each)
    }

    fn messages(&mut self, data: &[u8], each: &mut dyn FnMut(Got)) -> Result<(), Fault> {
        match &mut self.content {
            Content::Sniff(_) => Ok(()),
            Content::Sip(framer) => {
                framer.push(data);
                loop {
                    match framer.poll()? {
                        Some(Frame::Message(message)) => each(Got::Message(message)),
                        Some(Frame::Ping) => each(Got::Ping),
                        Some(Frame::Pong) => {}
                        None => return Ok(()),
                    }
                }
            }
            Content::Web(ws) => {
                let result = ws.receive(data, &mut |frame| match frame {
                    WsFrame::Message(message) => each(Got::Message(message)),
                    WsFrame::Ping => each(Got::Ping),
                    WsFrame::Alive => {}
                });
                let output = ws.take_output();
                self.enqueue(output, None);
                Ok(result?)
            }
        }
    }

    /// Queues one message.
    pub(super) fn push(&mut self, data: Bytes, token: Option<SendToken>) -> Result<(), SendError> {
        let data = match &mut self.content {
            Content::Web(ws) => {
                ws.send(&data).map_err(|_| SendError::Closed)?;
                ws.take_output()
            }
            Content::Sniff(_) | Content::Sip(_) => data,
        };
        self.enqueue(data, token);
        Ok(())
    }

    /// Asks a WebSocket whether it is there.
    pub(super) fn ping(&mut self) {
        if let Content::Web(ws) = &mut self.content {
            ws.ping();
            self.pinged = true;
            let output = ws.take_output();
            self.enqueue(output, None);
        }
    }

    fn enqueue(&mut self, data: Bytes, token: Option<SendToken>) {
        if !data.is_empty() {
            self.queued_bytes += data.len();
            self.queue.push_back((data, token));
        }
    }

    /// Whether nothing waits to be written.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.tls.as_ref().is_some_and(|t| t.wants_write())
    }

    /// Whether anything could be written now if the socket took it.
    pub(super) fn wants_write(&self) -> bool {
        match &self.tls {
            None => !self.queue.is_empty(),
            Some(tls) => tls.wants_write() || (!self.queue.is_empty() && !tls.is_handshaking()),
        }
    }

    /// The tokens of what was not written.
    pub(super) fn unsent(&mut self) -> impl Iterator<Item = SendToken> + '_ {
        self.queue.drain(..).filter_map(|(_, token)| token)
    }

    /// Writes until nothing is left or the socket is full.
    pub(super) fn drain(&mut self, now: Instant, stats: &ShardStats) -> io::Result<()> {
        if self.tls.is_some() {
            return self.drain_tls(now, stats);
        }
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

    fn drain_tls(&mut self, now: Instant, stats: &ShardStats) -> io::Result<()> {
        loop {
            let Some(tls) = &mut self.tls else { return Ok(()) };
            while tls.wants_write() {
                match tls.write_tls(&mut self.socket) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            let (false, Some((data, _))) = (tls.is_handshaking(), self.queue.front()) else {
                return Ok(());
            };
            let count = tls.writer().write(data.get(self.written..).unwrap_or_default())?;
            self.advance(count, stats);
            self.last_used = now;
        }
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

    /// The last words on this connection, if the peer still listens: an alert, a refusal, a close
    /// frame, the end of TLS. Nothing waits for them.
    pub(super) fn farewell(&mut self, fault: Option<&Fault>, stats: &ShardStats) {
        if self.connecting.is_some() {
            return;
        }
        if let Some(Fault::Framing(_)) = fault
            && let Some(answer) = self.refusal()
        {
            self.enqueue(answer, None);
        }
        let now = self.last_used;
        // The connection is gone whether or not this arrives.
        if !matches!(fault, Some(Fault::Closed)) && self.drain(now, stats).is_err() {
            return;
        }
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = tls.write_tls(&mut self.socket);
        }
    }

    /// What a peer hears before its connection is closed for bad framing: 400 or 513, when what
    /// came has enough of a Via to answer.
    fn refusal(&mut self) -> Option<Bytes> {
        let Content::Sip(framer) = &mut self.content else { return None };
        let rest = framer.rest();
        let large = rest.len() > self.limits.head_bytes_max;
        let request = sip::salvage(rest, &self.limits).filter(Message::is_request)?;
        let (status, reason) =
            if large { (513, "") } else { (400, "Bad Content-Length or framing") };
        let answer =
            sip::response(&request, status, reason, Some("framing"), Some(self.flow.remote));
        Some(answer.finish())
    }
}

/// The server's side of TLS for a new connection, where the port has any.
pub(super) fn accepting(
    serves: Serves,
    door: Option<&Door>,
    stats: &ShardStats,
) -> Result<Option<Tls>, ()> {
    if !serves.is_secure() {
        return Ok(None);
    }
    let profile = door.and_then(|d| d.tls.as_ref());
    let server = profile.and_then(|p| rustls::ServerConnection::new(p.server.clone()).ok());
    match server {
        Some(server) => Ok(Some(server.into())),
        None => {
            stats.tls_failures.add(1);
            Err(())
        }
    }
}

/// The address that a peer asks to be reached at on this connection (RFC 5923 §5): the sent-by of
/// its Via, where the certificate that it has shown speaks for the host there.
pub(super) fn alias(
    data: &Bytes,
    flow: &Flow,
    shown: &Identities,
    limits: &Limits,
) -> Option<SocketAddr> {
    let request = sip::salvage(data.clone(), limits).filter(Message::is_request)?;
    let via = request.via().ok()?;
    let port = via.port.unwrap_or(flow.transport.default_port());
    (via.params.has("alias") && shown.host(via.host))
        .then_some(SocketAddr::new(flow.remote.ip(), port))
}

/// Adds to the users of a connection whose end is among the events.
pub(super) fn used_at_close(events: &mut VecDeque<TcpEvent>, id: ConnId, bit: u64) {
    let closed = events.iter_mut().find_map(|event| match event {
        TcpEvent::Closed { flow, users } if flow.conn == Some(id) => Some(users),
        _ => None,
    });
    if let Some(users) = closed {
        *users |= bit;
    }
}
