//! What the tests of the edge share: an echo machine on shards of its own, sockets that speak SIP.

#![allow(dead_code, reason = "each test binary uses a part of this, one of them all")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sbc_core::core::{
    Destination, Event, Input, Output, Record, ResolveId, ResolveQuery, SendError, SendToken,
    StoreId,
};
use sbc_core::media::{
    Anchor, Local, MediaError, MediaId, Remote, Side, SideSpec, StreamKind, StreamStats, Taken,
};
use sbc_core::net::{Flow, Host, Interface, InterfaceId, Listener, Target, Transport};
use sbc_node::resolve::Request;
use sbc_node::shard::command::Command;
use sbc_node::shard::queue::{Handle, mailbox_with};
use sbc_node::shard::run::{Outside, Parts, Shard};
use sbc_node::shard::stats::ShardStats;
use sbc_node::shard::{Machine, Settings};
use sbc_node::transport;
use tokio::sync::mpsc;

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Answers each message with `SIP/2.0 200 OK` and its own number of the shard; remembers inputs.
#[derive(Default)]
pub(crate) struct Echo {
    pub shard: usize,
    pub outputs: VecDeque<Output>,
    pub failed: Vec<(SendToken, SendError)>,
    pub closed: usize,
    /// Messages heard when the last connection closed.
    pub heard: usize,
    pub resolved: Vec<(ResolveId, Result<Vec<Target>, sbc_core::core::ResolveError>)>,
    pub messages: Vec<Bytes>,
    pub flows: Vec<Flow>,
}

impl Machine for Echo {
    fn handle(&mut self, _: Instant, input: Input, _: &mut dyn Anchor) {
        match input {
            Input::Message { flow, data } => {
                if !data.starts_with(b"SIP/2.0") {
                    let head = format!("SIP/2.0 200 OK\r\nX-Shard: {}\r\n", self.shard);
                    let answer = format!("{head}Content-Length: 0\r\n\r\n");
                    let dest = Destination::Flow(flow);
                    self.outputs.push_back(Output::Transmit {
                        dest,
                        data: Bytes::from(answer),
                        token: None,
                    });
                }
                self.messages.push(data);
                self.flows.push(flow);
            }
            Input::SendFailed { token, error } => self.failed.push((token, error)),
            Input::ConnClosed { .. } => {
                (self.closed, self.heard) = (self.closed + 1, self.messages.len())
            }
            Input::Resolved { id, result } => self.resolved.push((id, result)),
            _ => {}
        }
    }

    fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// `X-To: n` names the shard.
    fn owner(&self, data: &[u8], shards: usize) -> Option<usize> {
        let text = std::str::from_utf8(data).ok()?;
        let value = text.lines().find_map(|l| l.strip_prefix("X-To: "))?;
        value.parse::<usize>().ok().map(|n| n % shards)
    }

    fn overloaded(data: &[u8]) -> Option<Bytes> {
        let request = !data.starts_with(b"SIP/2.0");
        request.then(|| Bytes::from_static(b"SIP/2.0 503 Service Unavailable\r\n\r\n"))
    }
}

/// No media.
pub(crate) struct NoMedia;

impl Anchor for NoMedia {
    fn open(&mut self, _: MediaId, _: Option<Duration>) -> Result<(), MediaError> {
        Ok(())
    }

    fn bind(
        &mut self,
        _: MediaId,
        _: usize,
        _: StreamKind,
        _: Side,
        _: SideSpec,
    ) -> Result<Local, MediaError> {
        Err(MediaError::NoAddress)
    }

    fn remote(
        &mut self,
        _: MediaId,
        _: usize,
        _: Side,
        _: &Remote,
        _: bool,
    ) -> Result<(), MediaError> {
        Err(MediaError::Unknown)
    }

    fn rebind(
        &mut self,
        _: MediaId,
        _: usize,
        _: StreamKind,
        _: Side,
        _: &Taken,
    ) -> Result<(), MediaError> {
        Err(MediaError::Unknown)
    }

    fn drop_stream(&mut self, _: MediaId, _: usize) {}

    fn stats(&mut self, _: MediaId) -> Vec<StreamStats> {
        Vec::new()
    }

    fn close(&mut self, _: MediaId) -> Vec<StreamStats> {
        Vec::new()
    }
}

struct TestOutside(Option<mpsc::Sender<Request>>);

impl Outside for TestOutside {
    fn event(&mut self, _: Event) {}

    fn store(&mut self, _: StoreId, _: Option<Duration>, _: Record) -> bool {
        false
    }

    fn resolve(&mut self, request: Request) -> bool {
        self.0.as_ref().is_some_and(|s| s.try_send(request).is_ok())
    }

    fn next_input(&mut self) -> Option<Input> {
        None
    }
}

/// How the shards of a test are made.
pub(crate) struct Bench {
    pub shards: usize,
    pub listen: Vec<(Transport, &'static str)>,
    pub transport: transport::Settings,
    pub messages_max: usize,
    /// All listeners on one port.
    pub share: bool,
    pub resolver: Option<mpsc::Sender<Request>>,
}

impl Default for Bench {
    fn default() -> Self {
        Bench {
            shards: 1,
            listen: vec![(Transport::Udp, "127.0.0.1")],
            transport: transport::Settings::default(),
            messages_max: 1_024,
            share: false,
            resolver: None,
        }
    }
}

/// Running shards; stopped when dropped.
pub(crate) struct Running {
    pub handles: Vec<Handle<Echo>>,
    pub stats: Vec<Arc<ShardStats>>,
    pub locals: Vec<(InterfaceId, Transport, SocketAddr)>,
    threads: Vec<JoinHandle<()>>,
}

impl Bench {
    /// Binds free ports (the same for every shard) and starts the threads.
    pub(crate) fn start(self) -> Running {
        let mut shared_port = None;
        let listeners: Vec<Listener> = self
            .listen
            .iter()
            .map(|(transport, ip)| {
                let shared = shared_port.get_or_insert_with(|| free_port(*transport, ip));
                let port = if self.share { *shared } else { free_port(*transport, ip) };
                let local = SocketAddr::new(ip.parse().unwrap(), port);
                let advertise_host = Host::Ip(local.ip());
                let advertise_port = local.port();
                Listener {
                    transport: *transport,
                    local,
                    advertise_host,
                    advertise_port,
                    retired: false,
                }
            })
            .collect();
        let interface = Interface {
            id: InterfaceId(0),
            name: Arc::from("test"),
            realm: Arc::from("test"),
            listeners,
            media: false,
            large_by_tcp: true,
        };
        let interfaces: Arc<[Interface]> = Arc::from([interface]);
        let pairs: Vec<_> =
            (0..self.shards).map(|_| mailbox_with(1_024, self.messages_max).unwrap()).collect();
        let (handles, mailboxes): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let mut running =
            Running { handles, stats: Vec::new(), locals: Vec::new(), threads: Vec::new() };
        for (index, mailbox) in mailboxes.into_iter().enumerate() {
            let stats = Arc::new(ShardStats::default());
            running.stats.push(Arc::clone(&stats));
            let shard = Shard::new(Parts {
                index,
                machine: Echo { shard: index, ..Echo::default() },
                anchor: Box::new(NoMedia),
                outside: Box::new(TestOutside(self.resolver.clone())),
                mailbox,
                shards: running.handles.clone(),
                interfaces: Arc::clone(&interfaces),
                settings: Settings::default(),
                transport: self.transport.clone(),
                stats,
                seed: 1,
            });
            let shard = shard.unwrap();
            running.locals = shard.locals();
            let run = move || shard.run().unwrap();
            running.threads.push(std::thread::spawn(run));
        }
        running
    }
}

impl Running {
    pub(crate) fn local(&self, transport: Transport) -> SocketAddr {
        self.locals.iter().find(|(_, t, _)| *t == transport).unwrap().2
    }

    /// Runs `f` on the machine of one shard.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        shard: usize,
        f: impl FnOnce(&mut Echo) -> T + Send + 'static,
    ) -> T {
        let (sender, receiver) = std::sync::mpsc::channel();
        let job = Box::new(move |m: &mut Echo, _: Instant, _: &mut dyn Anchor| {
            sender.send(f(m)).unwrap();
        });
        self.handles[shard].command(Command::Job(job)).unwrap();
        receiver.recv_timeout(PATIENCE).unwrap()
    }

    /// Keeps a shard from all else until the sender is dropped.
    pub(crate) fn hold(&self, shard: usize) -> std::sync::mpsc::Sender<()> {
        let (sender, gate) = std::sync::mpsc::channel();
        let job = Box::new(move |_: &mut Echo, _: Instant, _: &mut dyn Anchor| {
            let _ = gate.recv_timeout(PATIENCE);
        });
        self.handles[shard].command(Command::Job(job)).unwrap();
        sender
    }

    /// Lets a shard send to a target.
    pub(crate) fn send(
        &self,
        shard: usize,
        transport: Transport,
        addr: SocketAddr,
        data: &str,
        token: u64,
    ) {
        self.send_to(shard, Target::new(transport, addr), data, token);
    }

    pub(crate) fn send_to(&self, shard: usize, target: Target, data: &str, token: u64) {
        let dest = Destination::Target { interface: InterfaceId(0), target };
        let data = Bytes::from(data.to_owned());
        let token = Some(SendToken(token));
        self.ask(shard, move |m| {
            m.outputs.push_back(Output::Transmit { dest, data, token });
        });
    }

    /// Lets a shard resolve a name.
    pub(crate) fn resolve(&self, id: u64, query: ResolveQuery) {
        self.ask(0, move |m| {
            m.outputs.push_back(Output::Resolve { id: ResolveId(id), query });
        });
    }

    /// Sums one counter over the shards.
    pub(crate) fn total(&self, f: impl Fn(&ShardStats) -> u64) -> u64 {
        self.stats.iter().map(|s| f(s)).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for handle in &self.handles {
            handle.command(Command::Stop).unwrap();
        }
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

/// A port that nobody listens on right now.
pub(crate) fn free_port(transport: Transport, ip: &str) -> u16 {
    let any = format!("{}:0", if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() });
    match transport {
        Transport::Udp => std::net::UdpSocket::bind(any).unwrap().local_addr().unwrap().port(),
        _ => std::net::TcpListener::bind(any).unwrap().local_addr().unwrap().port(),
    }
}

/// Looks again and again until `f` has something.
pub(crate) fn eventually<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = f() {
            return found;
        }
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// A request for the shard `to`.
pub(crate) fn options(to: usize) -> String {
    format!("OPTIONS sip:x SIP/2.0\r\nX-To: {to}\r\nContent-Length: 0\r\n\r\n")
}
