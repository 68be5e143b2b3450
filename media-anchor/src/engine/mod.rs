//! One relay thread's sessions, sans-IO: commands and packets in, verdicts, events and flow changes
//! out. Time is an argument; sockets are tokens that the thread knows.
//!
//! ```text
//! engine.command(now, command)            from signalling
//! engine.packet(now, at, src, data)       → Verdict
//! engine.outcome / counters               from the kernel driver
//! engine.tick(now)                        every TICK
//! while let Some(output) = engine.poll()  events, flow changes, sockets to close
//! ```

mod flows;
#[cfg(test)]
mod model_tests;
mod packet;
mod session;
mod standby;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use slab::Slab;

use crate::address::Addresses;
use crate::cells::StreamCell;
use crate::config::{Learning, OffloadConfig};
use crate::plan_types::FlowChange;
use crate::types::{Component, Event, InterfaceId, Remote, SessionId, Side, StreamKind};

pub(crate) use packet::Verdict;
use session::{Session, Stream};
pub(crate) use standby::standby_flows;

/// How often `tick` wants to be called.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// A scan for silent sessions covers all of them in this many ticks.
const SCAN_TICKS: usize = 10;

/// A socket of the relay thread.
pub(crate) type Token = u32;

/// The place of a socket in the sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) slot: u32,
    pub(crate) stream: u8,
    pub(crate) side: Side,
    pub(crate) component: Component,
}

/// One side's sockets and addresses as bound by the handle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) interface: InterfaceId,
    /// Local address of RTP; RTCP is at the next port.
    pub(crate) rtp: SocketAddr,
    pub(crate) dscp: Option<u8>,
    pub(crate) rtp_token: Token,
    pub(crate) rtcp_token: Option<Token>,
}

/// What signalling asks for; the handle has checked it.
#[derive(Debug)]
pub(crate) enum Command {
    Open {
        id: SessionId,
        shard: usize,
        timeout: Option<Duration>,
    },
    Bind {
        id: SessionId,
        stream: u8,
        kind: StreamKind,
        side: Side,
        bound: Bound,
        cell: Arc<StreamCell>,
    },
    Remote {
        id: SessionId,
        stream: u8,
        side: Side,
        remote: Remote,
        relearn: bool,
    },
    /// Another node had latched this source; `Remote` follows.
    Restore {
        id: SessionId,
        stream: u8,
        side: Side,
        latched: SocketAddr,
    },
    DropStream {
        id: SessionId,
        stream: u8,
    },
    Close {
        id: SessionId,
    },
}

/// What the thread must do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Event {
        shard: usize,
        event: Event,
    },
    Flow(FlowChange),
    /// Close a socket.
    Release(Token),
}

/// The sessions of one relay thread.
pub(crate) struct Engine {
    sessions: Slab<Session>,
    by_id: HashMap<SessionId, u32>,
    outputs: VecDeque<Output>,
    /// Sessions whose flows are to be planned, by time; constant delay keeps it ordered.
    settling: VecDeque<(Instant, SessionId)>,
    /// The same for flows that the kernel refused.
    retrying: VecDeque<(Instant, SessionId)>,
    scan_at: usize,
    /// Whether there is a kernel to offload to.
    kernel: bool,
    learning: Learning,
    offload: OffloadConfig,
    addresses: Arc<Addresses>,
}

impl Engine {
    pub(crate) fn new(
        addresses: Arc<Addresses>,
        learning: Learning,
        offload: OffloadConfig,
        kernel: bool,
    ) -> Engine {
        Engine {
            sessions: Slab::new(),
            by_id: HashMap::new(),
            outputs: VecDeque::new(),
            settling: VecDeque::new(),
            retrying: VecDeque::new(),
            scan_at: 0,
            kernel,
            learning,
            offload,
            addresses,
        }
    }

    /// One thing to do, oldest first.
    pub(crate) fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Sessions held, those waiting for last kernel counters included.
    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Takes a command in. Those for unknown sessions do nothing but free what they carry.
    pub(crate) fn command(&mut self, now: Instant, command: Command) {
        match command {
            Command::Open { id, shard, timeout } => self.open(now, id, shard, timeout),
            Command::Bind { id, stream, kind, side, bound, cell } => {
                self.bind(now, id, stream, kind, side, bound, cell);
            }
            Command::Remote { id, stream, side, remote, relearn } => {
                self.remote(now, id, stream, side, &remote, relearn);
            }
            Command::Restore { id, stream, side, latched } => {
                if let Some(stream) = self.session_mut(id).and_then(|s| s.stream_mut(stream)) {
                    stream.side_mut(side).restore(latched);
                }
            }
            Command::DropStream { id, stream } => self.drop_stream(id, stream),
            Command::Close { id } => self.close(id),
        }
    }

    /// The slot of a session, for the places of its sockets.
    pub(crate) fn slot(&self, id: SessionId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// Plans flows that are due and looks for silence in a part of the sessions.
    pub(crate) fn tick(&mut self, now: Instant) {
        while let Some((_, id)) = self.settling.pop_front_if(|(at, _)| *at <= now) {
            self.plan(now, id, true);
        }
        while let Some((_, id)) = self.retrying.pop_front_if(|(at, _)| *at <= now) {
            self.plan(now, id, true);
        }
        self.scan(now);
    }

    fn open(&mut self, now: Instant, id: SessionId, shard: usize, timeout: Option<Duration>) {
        let entry = self.sessions.vacant_entry();
        let Ok(slot) = u32::try_from(entry.key()) else { return };
        entry.insert(Session::new(id, shard, timeout, now));
        self.by_id.insert(id, slot);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one command")]
    fn bind(
        &mut self,
        now: Instant,
        id: SessionId,
        stream: u8,
        kind: StreamKind,
        side: Side,
        bound: Bound,
        cell: Arc<StreamCell>,
    ) {
        let Some(session) = self.session_mut(id) else {
            self.release(&bound);
            return;
        };
        let stream = session.stream_or_insert(stream, || Stream::new(kind, cell.clone()));
        stream.bind(kind, cell);
        let old = stream.side_mut(side).bound.replace(bound);
        if let Some(old) = old {
            self.release(&old);
        }
        self.changed(now, id);
    }

    fn remote(
        &mut self,
        now: Instant,
        id: SessionId,
        stream: u8,
        side: Side,
        remote: &Remote,
        relearn: bool,
    ) {
        let Some(session) = self.session_mut(id) else { return };
        session.signalled_at(now);
        let Some(stream) = session.stream_mut(stream) else { return };
        stream.side_mut(side).signal(remote, relearn);
        let cell = stream.cell.clone();
        cell.side(side).latched(stream.side(side).latch.learnt());
        self.changed(now, id);
    }

    fn drop_stream(&mut self, id: SessionId, index: u8) {
        self.withdraw(id, Some(index));
        let Some(stream) = self.session_mut(id).and_then(|s| s.stream_mut(index)) else { return };
        stream.dropped = true;
        let bounds = stream.take_bounds();
        self.finish_streams(id);
        for bound in bounds.iter().flatten() {
            self.release(bound);
        }
    }

    fn close(&mut self, id: SessionId) {
        self.withdraw(id, None);
        let Some(session) = self.session_mut(id) else { return };
        session.closing = true;
        let bounds: Vec<Bound> =
            session.streams_mut().flat_map(Stream::take_bounds).flatten().collect();
        for bound in &bounds {
            self.release(bound);
        }
        self.finish(id);
    }

    /// Removes a closing session once no flow of it is in the kernel.
    fn finish(&mut self, id: SessionId) {
        let Some(slot) = self.slot(id) else { return };
        let Some(session) = self.sessions.get(slot as usize) else { return };
        if !session.closing || session.has_kernel_flows() {
            return;
        }
        if session.had_kernel_flows {
            let streams = session.stats();
            let event = Event::Final { session: id, streams };
            self.outputs.push_back(Output::Event { shard: session.shard, event });
        }
        self.sessions.remove(slot as usize);
        self.by_id.remove(&id);
    }

    /// Forgets dropped streams once no flow of them is in the kernel.
    fn finish_streams(&mut self, id: SessionId) {
        if let Some(session) = self.session_mut(id) {
            session.forget_dropped();
        }
    }

    fn release(&mut self, bound: &Bound) {
        self.outputs.push_back(Output::Release(bound.rtp_token));
        self.outputs.extend(bound.rtcp_token.map(Output::Release));
    }

    /// Something that flows depend on has changed: what no longer holds leaves the kernel now, and
    /// what may enter it is planned when things have settled.
    fn changed(&mut self, now: Instant, id: SessionId) {
        if self.kernel {
            self.plan(now, id, false);
            self.settling.push_back((now + self.offload.settle, id));
        }
    }

    fn session_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        let slot = *self.by_id.get(&id)?;
        self.sessions.get_mut(slot as usize)
    }

    /// Reports silence; covers one part of the slots.
    fn scan(&mut self, now: Instant) {
        let capacity = self.sessions.capacity();
        let part = capacity.div_ceil(SCAN_TICKS).max(64);
        let from = if self.scan_at >= capacity { 0 } else { self.scan_at };
        self.scan_at = from + part;
        for slot in from..(from + part).min(capacity) {
            let Some(session) = self.sessions.get_mut(slot) else { continue };
            if let Some(silent) = session.silent(now) {
                let event = Event::Timeout { session: session.id, silent };
                self.outputs.push_back(Output::Event { shard: session.shard, event });
            }
        }
    }
}
