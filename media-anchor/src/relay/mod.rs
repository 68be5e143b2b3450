//! The relay thread: its sockets, its clock, its share of the sessions.
//!
//! A thread sleeps in epoll; when it has drained what is ready it rests for `Config::coalesce`
//! before it looks again. Under load one wake thus serves every packet of that time, which is what
//! makes it cheap; an idle relay forwards a lone packet at once. Level-triggered epoll with one
//! `recvfrom` per report was measured to be the cheapest for audio (see `docs/media.md`).

mod mailbox;
pub(crate) mod sys;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use slab::Slab;

use crate::engine::{At, Bound, Command, Engine, Output, TICK, Token, Verdict};
use crate::events::Sinks;
use crate::plan_types::FlowChange;
use crate::types::{Component, DropReason};
pub(crate) use mailbox::{Letter, Mailbox, NewSide};

/// Datagrams longer than this are dropped; no RTP over UDP is longer than an Ethernet frame.
pub(crate) const MAX_DATAGRAM: usize = 2048;

const EVENTS: usize = 512;

/// Datagrams received before they are sent, and the bytes for them.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 32 * 1024;

/// Reports of epoll served before ticks and outputs are looked at again.
const ROUNDS: usize = 16;

const WAKER: u64 = u64::MAX;

/// Counters of one relay thread, over all sessions.
#[derive(Debug, Default)]
pub(crate) struct ThreadTotals {
    pub(crate) relayed: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) dropped: [AtomicU64; 7],
    pub(crate) wakes: AtomicU64,
    pub(crate) sockets: AtomicU64,
    pub(crate) sessions: AtomicU64,
}

/// What the thread itself counts; published once per wake.
#[derive(Default)]
struct Counts {
    relayed: u64,
    bytes: u64,
    dropped: [u64; 7],
    wakes: u64,
}

/// A socket and its place.
struct Port {
    fd: OwnedFd,
    at: At,
}

/// A datagram that was judged and is to be sent.
struct Outgoing {
    at: At,
    by: Token,
    to: SocketAddr,
    component: Component,
    len: usize,
}

/// Datagrams between receiving and sending, one behind the other in one buffer.
struct Batch {
    data: Vec<u8>,
    used: usize,
    packets: Vec<Outgoing>,
}

impl Batch {
    fn new() -> Batch {
        Batch { data: vec![0; BATCH_BYTES], used: 0, packets: Vec::with_capacity(BATCH) }
    }

    fn is_full(&self) -> bool {
        self.packets.len() >= BATCH || self.data.len() - self.used < MAX_DATAGRAM
    }

    /// Where the next datagram is received.
    fn room(&mut self) -> &mut [u8] {
        let end = self.data.len().min(self.used + MAX_DATAGRAM);
        self.data.get_mut(self.used..end).unwrap_or_default()
    }

    /// Keeps the datagram that was received last.
    fn push(&mut self, packet: Outgoing) {
        self.used += packet.len;
        self.packets.push(packet);
    }
}

/// What was found ready.
enum Drained {
    Nothing,
    All,
    MoreWaits,
    Stop,
}

/// One relay thread.
pub(crate) struct Relay {
    engine: Engine,
    ports: Slab<Port>,
    poller: sys::Poller,
    mailbox: Arc<Mailbox>,
    counts: Counts,
    totals: Arc<ThreadTotals>,
    sinks: Sinks,
    /// To the kernel driver, if there is one.
    driver: Option<std::sync::mpsc::Sender<Vec<FlowChange>>>,
    coalesce: Duration,
    flow_changes: Vec<FlowChange>,
}

impl Relay {
    pub(crate) fn new(
        engine: Engine,
        mailbox: Arc<Mailbox>,
        totals: Arc<ThreadTotals>,
        driver: Option<std::sync::mpsc::Sender<Vec<FlowChange>>>,
        coalesce: Duration,
    ) -> io::Result<Relay> {
        let poller = sys::Poller::new()?;
        poller.add_waker(mailbox.waker(), WAKER)?;
        Ok(Relay {
            engine,
            ports: Slab::new(),
            poller,
            mailbox,
            counts: Counts::default(),
            totals,
            sinks: Sinks::default(),
            driver,
            coalesce,
            flow_changes: Vec::new(),
        })
    }

    /// Runs until it is told to stop.
    pub(crate) fn run(mut self) {
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        let mut batch = Batch::new();
        let mut next_tick = Instant::now() + TICK;
        loop {
            let now = Instant::now();
            if now >= next_tick {
                self.engine.tick(now);
                next_tick = now + TICK;
            }
            self.outputs();
            self.publish();
            let idle_for = next_tick.saturating_duration_since(now) + Duration::from_millis(1);
            match self.drain(&mut events, &mut batch, idle_for) {
                Drained::Nothing | Drained::MoreWaits => {}
                Drained::Stop => return,
                Drained::All => {
                    self.outputs();
                    std::thread::sleep(self.coalesce);
                }
            }
            self.counts.wakes += 1;
        }
    }

    /// Waits for input and serves it, for a bounded number of rounds: ticks come through under any
    /// flood.
    fn drain(
        &mut self,
        events: &mut [libc::epoll_event],
        batch: &mut Batch,
        idle_for: Duration,
    ) -> Drained {
        let mut timeout = self.mailbox.sleep(idle_for);
        for round in 0..ROUNDS {
            let ready = self.poller.wait(events, timeout).unwrap_or_else(|error| {
                tracing::error!(%error, "media relay cannot poll its sockets");
                &[]
            });
            self.mailbox.awake();
            let now = Instant::now();
            // First what was posted, so that a packet never overtakes the command before it.
            if self.letters(now) {
                return Drained::Stop;
            }
            if ready.is_empty() {
                return if round == 0 { Drained::Nothing } else { Drained::All };
            }
            self.serve(now, ready, batch);
            timeout = Duration::ZERO;
        }
        Drained::MoreWaits
    }

    /// Serves reports of epoll, one datagram each; what is left is reported again. All of a round
    /// are received before any is sent: it keeps the kernel's code for each in the cache.
    fn serve(&mut self, now: Instant, ready: &[libc::epoll_event], batch: &mut Batch) {
        for event in ready {
            if event.u64 == WAKER {
                continue;
            }
            if batch.is_full() {
                self.send(batch);
            }
            self.receive(now, event.u64, batch);
        }
        self.send(batch);
    }

    fn receive(&mut self, now: Instant, key: u64, batch: &mut Batch) {
        let Some(port) = usize::try_from(key).ok().and_then(|key| self.ports.get(key)) else {
            return;
        };
        let at = port.at;
        let buffer = batch.room();
        let Ok(Some(received)) = sys::receive(&port.fd, buffer) else { return };
        let Some(data) = buffer.get(..received.len) else {
            self.engine.oversize(at);
            self.count_drop(DropReason::Oversize);
            return;
        };
        match self.engine.packet(now, at, received.src, data) {
            Verdict::Relay { by, to, component } => {
                batch.push(Outgoing { at, by, to, component, len: received.len });
            }
            Verdict::Drop(reason) => self.count_drop(reason),
        }
    }

    fn send(&mut self, batch: &mut Batch) {
        let mut rest = batch.data.as_slice();
        for packet in batch.packets.drain(..) {
            let Some((data, next)) = rest.split_at_checked(packet.len) else { break };
            rest = next;
            let port = self.ports.get(packet.by as usize);
            if port.is_some_and(|port| sys::send(&port.fd, data, packet.to).is_ok()) {
                self.counts.relayed += 1;
                self.counts.bytes += data.len() as u64;
            } else {
                self.engine.unsent(packet.at, packet.component, packet.len);
                if let Some(count) = self.counts.dropped.get_mut(DropReason::Send.index()) {
                    *count += 1;
                }
            }
        }
        batch.used = 0;
    }

    /// Takes the letters of handles and driver in; true when told to stop.
    fn letters(&mut self, now: Instant) -> bool {
        for letter in self.mailbox.take() {
            match letter {
                Letter::Command(command) => self.engine.command(now, command),
                Letter::Bind(side) => self.bind(now, *side),
                Letter::Sink { shard, sink } => self.sinks.set(shard, sink),
                Letter::Outcomes(outcomes) => {
                    for outcome in &outcomes {
                        self.engine.outcome(now, outcome);
                    }
                }
                Letter::Counters(counters) => {
                    for (id, counters) in counters {
                        self.engine.counters(now, id, counters);
                    }
                }
                Letter::KernelGone => self.kernel_gone(now),
                Letter::Stop => return true,
            }
        }
        false
    }

    /// Takes over the sockets of one side.
    fn bind(&mut self, now: Instant, new: NewSide) {
        let Some(slot) = self.engine.slot(new.id) else { return };
        let at = |component| At { slot, stream: new.stream, side: new.side, component };
        let Some(rtp_token) = self.watch(new.rtp_socket, at(Component::Rtp)) else { return };
        let rtcp_token = new.rtcp_socket.and_then(|socket| self.watch(socket, at(Component::Rtcp)));
        let bound =
            Bound { interface: new.interface, rtp: new.rtp, dscp: new.dscp, rtp_token, rtcp_token };
        self.engine.command(
            now,
            Command::Bind {
                id: new.id,
                stream: new.stream,
                kind: new.kind,
                side: new.side,
                bound,
                cell: new.cell,
            },
        );
    }

    fn watch(&mut self, fd: OwnedFd, at: At) -> Option<Token> {
        let entry = self.ports.vacant_entry();
        let token = Token::try_from(entry.key()).ok()?;
        if let Err(error) = self.poller.add(&fd, u64::from(token)) {
            tracing::error!(%error, "media relay cannot watch a socket");
            return None;
        }
        entry.insert(Port { fd, at });
        Some(token)
    }

    /// Does what the engine asks for.
    fn outputs(&mut self) {
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Event { shard, event } => self.sinks.push(shard, event),
                Output::Flow(change) => self.flow_changes.push(change),
                Output::Release(token) => {
                    // Closing the socket ends the watch.
                    self.ports.try_remove(token as usize);
                }
            }
        }
        self.sinks.flush();
        if !self.flow_changes.is_empty() {
            self.ask_kernel();
        }
    }

    /// Hands flow changes to the driver.
    fn ask_kernel(&mut self) {
        let changes = std::mem::take(&mut self.flow_changes);
        let sent = self.driver.as_ref().is_some_and(|driver| driver.send(changes).is_ok());
        if !sent {
            self.kernel_gone(Instant::now());
        }
    }

    /// The driver has ended and taken its kernel state with it: no session may wait for it.
    fn kernel_gone(&mut self, now: Instant) {
        if self.driver.take().is_some() {
            tracing::error!("the kernel driver is gone: media stays in userspace");
        }
        self.engine.kernel_gone(now);
    }

    fn publish(&self) {
        let (counts, totals) = (&self.counts, &self.totals);
        totals.relayed.store(counts.relayed, Ordering::Relaxed);
        totals.bytes.store(counts.bytes, Ordering::Relaxed);
        totals.wakes.store(counts.wakes, Ordering::Relaxed);
        totals.sockets.store(self.ports.len() as u64, Ordering::Relaxed);
        totals.sessions.store(self.engine.len() as u64, Ordering::Relaxed);
        for (cell, count) in totals.dropped.iter().zip(counts.dropped) {
            cell.store(count, Ordering::Relaxed);
        }
    }

    fn count_drop(&mut self, reason: DropReason) {
        if let Some(count) = self.counts.dropped.get_mut(reason.index()) {
            *count += 1;
        }
    }
}
