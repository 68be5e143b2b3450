//! The run loop of one shard: wait, take batches, feed the machine, send batches.
//!
//! ```text
//! wait ─► sockets, queues ─► machine.handle ─► outputs ─► machine's timers ─► flush ─► wait
//! ```
//!
//! Everything that arrives in one wake-up is handled before anything is sent, so that sends leave
//! in batches too. Under load messages are left to gather for a moment: waking up per packet costs
//! more than handling it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sbc_core::b2bua::CallRecord;
use sbc_core::core::{
    AdoptMode, Destination, Event, Input, Output, Record, ResolveId, StoreId, Wanted,
};
use sbc_core::media::Anchor;
use sbc_core::net::{Flow, Interface};
use sbc_core::registrar::{AskUser, Found};
use sbc_core::routing::UserPlace;

use super::command::Command;
use super::listen::{StreamDoor, watch_udp};
use super::pace::Pace;
use super::queue::{Handle, Mailbox, Parcel};
use super::stats::ShardStats;
use super::{Machine, Settings};
use crate::resolve::Request;
use crate::resolve::front::Front;
use crate::transport;
use crate::transport::mmsg::{RecvBatch, SendBatch};
use crate::transport::poller::{Poller, Ready};
use crate::transport::stun;
use crate::transport::tcp::{self, Tcp, TcpEvent};
use crate::transport::udp::{Failure, UdpListener, Unreached};

/// Marks a poller token as a connection; the rest is its id.
pub const CONN_TOKEN: u64 = 1 << 63;
pub(super) const UDP_TOKEN: u64 = 1 << 62;
pub(super) const TCP_TOKEN: u64 = 1 << 61;
const WAKE_TOKEN: u64 = 0;
/// Batches taken from one socket per wake-up.
const BATCHES_MAX: usize = 8;
/// Items taken from each queue per wake-up: one that never gets empty keeps no other waiting.
const QUEUE_BUDGET: usize = 512;
/// How long a stopping shard may take to send what is queued.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// Takes what a shard tells the outside. Runs on the shard: it must not wait.
pub trait Outside: Send {
    fn event(&mut self, event: Event);
    /// Starts a replicated write; false when it could not be queued.
    fn store(&mut self, id: StoreId, wait: Option<Duration>, record: Record) -> bool;
    /// Starts a lookup; false when it could not be queued.
    fn resolve(&mut self, request: Request) -> bool;
    /// Asks who a user is; false when it could not be queued, or nobody knows.
    fn find_user(&mut self, id: ResolveId, ask: Box<AskUser>) -> bool {
        let _ = (id, ask);
        false
    }
    /// Asks for room in a user's limit; false when it could not be queued.
    fn ask_room(&mut self, id: ResolveId, place: UserPlace) -> bool {
        let _ = (id, place);
        false
    }
    /// Finds the node that a message belongs to and passes it on, or says what to do with it here.
    fn elsewhere(&mut self, wanted: &Wanted, flow: &Flow, data: &Bytes) -> Elsewhere {
        let _ = (wanted, flow, data);
        Elsewhere::Here(None)
    }
    /// Sends by another node's flow; false when that cannot be.
    fn send_elsewhere(&mut self, flow: &Flow, data: &Bytes) -> bool {
        let _ = (flow, data);
        false
    }
    /// What other threads have for the machine (media events), after they woke the shard.
    fn next_input(&mut self) -> Option<Input>;
    /// When [`Outside::tick`] wants to be called.
    fn deadline(&self) -> Option<Instant> {
        None
    }
    /// Something here was to wait no longer than until `now`.
    fn tick(&mut self, now: Instant) {
        let _ = now;
    }
}

/// Where a message that is unknown here goes.
#[derive(Debug)]
pub enum Elsewhere {
    /// It was passed on, or is lost as a datagram may be.
    Gone,
    /// Nobody else knows it; there may be a call to carry on first.
    Here(Option<(Box<CallRecord>, AdoptMode)>),
}

/// What a shard is made of.
pub struct Parts<M> {
    pub index: usize,
    pub machine: M,
    pub anchor: Box<dyn Anchor + Send>,
    pub outside: Box<dyn Outside>,
    pub mailbox: Mailbox<M>,
    /// The queues of every shard, this one included.
    pub shards: Vec<Handle<M>>,
    pub interfaces: Arc<[Interface]>,
    pub settings: Settings,
    pub transport: transport::Settings,
    pub stats: Arc<ShardStats>,
    /// Seeds the choice among DNS records.
    pub seed: u64,
}

/// A shard and its sockets.
pub struct Shard<M: Machine> {
    pub(super) index: usize,
    pub(super) machine: M,
    pub(super) anchor: Box<dyn Anchor + Send>,
    pub(super) outside: Box<dyn Outside>,
    pub(super) mailbox: Mailbox<M>,
    pub(super) shards: Vec<Handle<M>>,
    pub(super) interfaces: Arc<[Interface]>,
    pub(super) settings: Settings,
    pub(super) transport: transport::Settings,
    pub(super) stats: Arc<ShardStats>,
    pub(super) poller: Poller,
    pub(super) udp: Vec<Option<UdpListener>>,
    pub(super) tcp: Tcp,
    /// The listeners of connections that are open.
    pub(super) tcp_listeners: Vec<StreamDoor>,
    pub(super) front: Front,
    pub(super) recv: RecvBatch,
    pub(super) send: SendBatch,
    stun_rate: stun::Rate,
    /// STUN answers of one batch.
    stun_asked: Vec<(std::net::SocketAddr, Bytes)>,
    pub(super) failures: Vec<Failure>,
    /// ICMP errors about what another shard sent.
    pub(super) strange: Vec<Unreached>,
    /// Received in this wake-up and not yet handled.
    pub(super) inbox: Vec<(Flow, Bytes)>,
    /// Shards that were given something in this wake-up.
    pub(super) to_wake: u64,
    pub(super) pace: Pace,
    /// This turn took less than there was.
    left_over: bool,
    /// Since when there has always been something left over.
    waiting_since: Option<Instant>,
    pub(super) stopping: Option<Instant>,
}

impl<M: Machine> Shard<M> {
    /// Opens the sockets.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub fn new(parts: Parts<M>) -> io::Result<Shard<M>> {
        let poller = Poller::new()?;
        poller.add_waker(&parts.mailbox, WAKE_TOKEN)?;
        let stun_per_second = parts.transport.stun_per_second;
        let mut shard = Shard {
            index: parts.index,
            machine: parts.machine,
            anchor: parts.anchor,
            outside: parts.outside,
            mailbox: parts.mailbox,
            shards: parts.shards,
            interfaces: Arc::from([]),
            pace: Pace::new(&parts.settings),
            settings: parts.settings,
            tcp: Tcp::new(parts.index, parts.transport.clone()),
            transport: parts.transport,
            stats: parts.stats,
            poller,
            udp: Vec::new(),
            tcp_listeners: Vec::new(),
            front: Front::new(parts.seed),
            recv: RecvBatch::default(),
            send: SendBatch::default(),
            stun_rate: stun::Rate::new(stun_per_second),
            stun_asked: Vec::new(),
            failures: Vec::new(),
            strange: Vec::new(),
            inbox: Vec::new(),
            to_wake: 0,
            left_over: false,
            waiting_since: None,
            stopping: None,
        };
        shard.listen(parts.interfaces)?;
        Ok(shard)
    }

    /// Runs until [`Command::Stop`].
    ///
    /// # Errors
    /// When the poller itself fails.
    pub fn run(mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        loop {
            let timeout = self.timeout(Instant::now());
            self.poller.wait(timeout, &mut ready)?;
            self.stats.turns.add(1);
            if let Some(pause) = self.pace.pause(Instant::now(), !ready.is_empty()) {
                std::thread::sleep(pause);
            }
            let now = Instant::now();
            self.take(&ready, now);
            self.settle(now);
            let busy = now.elapsed().as_micros();
            self.stats.busy_us.add(u64::try_from(busy).unwrap_or(0));
            self.measure_delay(now);
            if let Some(since) = self.stopping
                && (self.sent() || now.saturating_duration_since(since) > STOP_GRACE)
            {
                self.tcp.close_all(&self.stats);
                return Ok(());
            }
        }
    }

    /// What waits has come since the sockets were last found empty: no longer ago than that.
    fn measure_delay(&mut self, now: Instant) {
        let since = if std::mem::take(&mut self.left_over) {
            *self.waiting_since.get_or_insert(now)
        } else {
            self.waiting_since = None;
            now
        };
        let delay = since.elapsed().as_micros();
        self.stats.queue_delay_us.set(u64::try_from(delay).unwrap_or(u64::MAX));
    }

    fn timeout(&self, now: Instant) -> Option<Duration> {
        let stop = self.stopping.map(|_| now + Duration::from_millis(10));
        let next = [self.machine.deadline(), self.tcp.deadline(), self.outside.deadline(), stop]
            .into_iter()
            .flatten()
            .min();
        next.map(|at| at.saturating_duration_since(now))
    }

    fn sent(&self) -> bool {
        self.tcp.idle() && self.udp.iter().flatten().all(|u| u.queued() == 0)
    }

    /// Everything that is ready, once.
    fn take(&mut self, ready: &[Ready], now: Instant) {
        for event in ready {
            let flags = (event.read, event.write, event.error);
            if event.token & CONN_TOKEN != 0 {
                let conn = tcp::token_conn(event.token);
                self.tcp.ready(conn, flags, now, &self.poller, &self.stats);
                self.take_tcp(now);
            } else if event.token & UDP_TOKEN != 0 {
                let index = usize::try_from(event.token & !UDP_TOKEN).unwrap_or(usize::MAX);
                self.take_udp(index, *event, now);
            } else if event.token & TCP_TOKEN != 0 {
                let index = usize::try_from(event.token & !TCP_TOKEN).unwrap_or(usize::MAX);
                let machine = &self.machine;
                let welcomes = |flow: &Flow| machine.welcomes(now, flow);
                self.tcp.accept(index, now, &self.poller, &self.stats, &welcomes);
            } else {
                self.take_queues(now);
            }
        }
    }

    fn take_udp(&mut self, index: usize, event: Ready, now: Instant) {
        let Some(socket) = self.udp.get_mut(index).and_then(Option::as_mut) else { return };
        if event.error {
            let count = socket.drain_errors(&mut self.recv, &mut self.failures, &mut self.strange);
            self.stats.icmp_errors.add(count);
        }
        if event.write && socket.blocked {
            socket.blocked = false;
            watch_udp(&self.poller, socket, index);
        }
        let (stats, inbox, machine) = (&self.stats, &mut self.inbox, &self.machine);
        let asked = &mut self.stun_asked;
        let rate = &mut self.stun_rate;
        let mut more = true;
        for _ in 0..BATCHES_MAX {
            let taken = socket.receive(&mut self.recv, |flow, data| {
                stats.udp_in_bytes.add(u64::try_from(data.len()).unwrap_or(0));
                if !machine.lets_in(now, &flow) {
                    // Not worth a copy.
                } else if is_keepalive(data) {
                    stats.keepalives.add(1);
                } else if stun::is_stun(data) && !stun::is_response(data) {
                    match stun::answer(data, flow.remote).filter(|_| rate.take(now)) {
                        Some(reply) => asked.push((flow.remote, Bytes::from(reply.into_bytes()))),
                        None => stats.stun_dropped.add(1),
                    }
                } else {
                    inbox.push((flow, Bytes::copy_from_slice(data)));
                }
            });
            for (to, answer) in asked.drain(..) {
                match socket.send(to, answer, None) {
                    true => stats.stun_answered.add(1),
                    false => stats.udp_queue_full.add(1),
                }
            }
            match taken {
                Ok((count, dropped)) => {
                    stats.udp_in.add(u64::try_from(count).unwrap_or(0));
                    stats.udp_kernel_drops.add(u64::from(dropped));
                    more = count == crate::transport::mmsg::BATCH;
                    if !more {
                        break;
                    }
                }
                // An ICMP error that is pending on the socket; its details are on the queue.
                Err(_) => {
                    let count =
                        socket.drain_errors(&mut self.recv, &mut self.failures, &mut self.strange);
                    stats.icmp_errors.add(count);
                }
            }
        }
        self.left_over |= more;
        self.hand_over_errors();
        let mut inbox = std::mem::take(&mut self.inbox);
        for (flow, data) in inbox.drain(..) {
            self.received(flow, data, now);
        }
        self.inbox = inbox;
    }

    fn take_tcp(&mut self, now: Instant) {
        while let Some(event) = self.tcp.next_event() {
            match event {
                TcpEvent::Message { flow, data } => {
                    if self.machine.lets_in(now, &flow) {
                        self.received(flow, data, now);
                    } else if let Some(conn) = flow.conn {
                        self.tcp.refuse(conn, &self.stats);
                    }
                }
                TcpEvent::SendFailed { token, error } => self.send_failed(token, error, now),
                TcpEvent::Closed { flow, users } => self.conn_closed(flow, users, now),
            }
        }
    }

    fn take_queues(&mut self, now: Instant) {
        self.mailbox.open();
        let (mut commands, mut inputs, mut parcels) = (0, 0, 0);
        while commands < QUEUE_BUDGET
            && let Some(command) = self.mailbox.next_command()
        {
            commands += 1;
            self.command(command, now);
        }
        while inputs < QUEUE_BUDGET
            && let Some(input) = self.outside.next_input()
        {
            inputs += 1;
            self.feed(input, now);
        }
        while parcels < QUEUE_BUDGET
            && let Some(parcel) = self.mailbox.next_parcel()
        {
            parcels += 1;
            match parcel {
                Parcel::Received { flow, data } => {
                    self.feed(Input::Message { flow, data }, now);
                }
                Parcel::Transmit { flow, data, token, from } => {
                    self.transmit_for(flow, data, token, usize::from(from));
                }
                Parcel::Closed(flow) => self.feed(Input::ConnClosed { flow }, now),
                Parcel::Unreached(error) => self.unreached(&error),
            }
        }
        if commands.max(inputs).max(parcels) == QUEUE_BUDGET {
            self.left_over = true;
            self.mailbox.again();
        }
    }

    fn command(&mut self, command: Command<M>, now: Instant) {
        match command {
            Command::Input(input) => self.feed(input, now),
            Command::Resolved(answer) => self.resolved(answer, now),
            Command::Job(job) => {
                job(&mut self.machine, now, &mut *self.anchor);
                self.drain(now);
            }
            Command::Listeners { interfaces, opened } => self.take_listeners(interfaces, opened),
            Command::Watch => {
                if let Err(error) = self.watch_listeners() {
                    tracing::error!(shard = self.index, %error, "cannot watch a listener");
                }
            }
            Command::Stop => self.stopping = Some(now),
        }
    }

    /// A message off the wire: to its own shard.
    fn received(&mut self, flow: Flow, data: Bytes, now: Instant) {
        let owner = match self.shards.len() {
            0 | 1 => self.index,
            count => self.machine.owner(&data, count).unwrap_or(self.index),
        };
        if owner == self.index {
            return self.feed(Input::Message { flow, data }, now);
        }
        if let Some(conn) = flow.conn {
            self.tcp.used_by(conn, owner);
        }
        let Some(handle) = self.shards.get(owner) else { return };
        match handle.parcel(Parcel::Received { flow, data }) {
            Ok(()) => {
                self.stats.handed_over.add(1);
                self.to_wake |= 1 << owner;
            }
            Err(Parcel::Received { flow, data }) => {
                self.stats.handover_full.add(1);
                if let Some(answer) = M::overloaded(&data) {
                    self.transmit(Destination::Flow(flow), answer, None, now);
                }
            }
            Err(Parcel::Transmit { .. } | Parcel::Closed(_) | Parcel::Unreached(_)) => {}
        }
    }

    pub(super) fn feed(&mut self, input: Input, now: Instant) {
        self.machine.handle(now, input, &mut *self.anchor);
        self.drain(now);
    }

    fn drain(&mut self, now: Instant) {
        while let Some(output) = self.machine.poll() {
            match output {
                Output::Transmit { dest, data, token } => self.transmit(dest, data, token, now),
                Output::Resolve { id, query } => self.resolve(id, &query, now),
                Output::Store { id, wait, record } => {
                    if !self.outside.store(id, wait, record) {
                        self.stats.unstored.add(1);
                        if wait.is_some() {
                            let input = Input::Stored { id, protected: false };
                            self.machine.handle(now, input, &mut *self.anchor);
                        }
                    }
                }
                Output::Elsewhere { wanted, flow, data } => {
                    if let Elsewhere::Here(call) = self.outside.elsewhere(&wanted, &flow, &data) {
                        if let Some((record, mode)) = call {
                            let input = Input::Adopt { record, mode };
                            self.machine.handle(now, input, &mut *self.anchor);
                        }
                        self.machine.handle(now, Input::Here { flow, data }, &mut *self.anchor);
                    }
                }
                Output::FindUser { id, ask } => {
                    if !self.outside.find_user(id, ask) {
                        let input = Input::UserFound { id, found: Found::Unavailable };
                        self.machine.handle(now, input, &mut *self.anchor);
                    }
                }
                Output::AskRoom { id, place } => {
                    if !self.outside.ask_room(id, place) {
                        self.machine.handle(now, Input::RoomAsked { id }, &mut *self.anchor);
                    }
                }
                Output::Shard { shard, input } => self.hand_over(shard, *input, now),
                Output::Event(event) => self.outside.event(event),
            }
        }
    }

    /// To another shard's machine. A question that does not get there is answered here.
    fn hand_over(&mut self, shard: u32, input: Input, now: Instant) {
        let question = match &input {
            Input::Locate { id, .. } => Some(*id),
            _ => None,
        };
        let handle = usize::try_from(shard).ok().and_then(|index| self.shards.get(index));
        let taken = handle.is_some_and(|h| h.command(Command::Input(input)).is_ok());
        if let (false, Some(id)) = (taken, question) {
            self.stats.handover_full.add(1);
            let input = Input::Located { id, found: Vec::new() };
            self.machine.handle(now, input, &mut *self.anchor);
        }
    }

    /// Timers, time-outs and everything queued: the end of a wake-up.
    fn settle(&mut self, now: Instant) {
        self.tcp.sweep(now, &self.stats);
        if self.outside.deadline().is_some_and(|at| at <= now) {
            self.outside.tick(now);
        }
        if self.machine.deadline().is_some_and(|at| at <= now) {
            self.feed(Input::Tick, now);
        }
        // What a failed send makes the machine send is flushed as well, a bounded number of times.
        for _ in 0..4 {
            self.flush(now);
            self.take_tcp(now);
            if self.failures.is_empty() {
                break;
            }
            for (token, error) in std::mem::take(&mut self.failures) {
                self.send_failed(token, error, now);
            }
        }
        while self.to_wake != 0 {
            let index = self.to_wake.trailing_zeros();
            self.to_wake &= self.to_wake - 1;
            if let Some(handle) = self.shards.get(usize::try_from(index).unwrap_or(usize::MAX)) {
                handle.wake();
            }
        }
    }

    /// How the loop runs, for tests and status.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}

/// A datagram of nothing but CR, LF, NUL or blanks: how clients keep a NAT binding open.
fn is_keepalive(data: &[u8]) -> bool {
    data.len() <= 16 && data.iter().all(|b| matches!(b, b'\r' | b'\n' | 0 | b' '))
}
