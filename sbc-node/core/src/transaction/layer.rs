//! The transaction layer of one shard: tables, timers, and where messages and failures go.
//!
//! What a client transaction does is in `client.rs`, a server transaction in `server.rs`.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use rand::Rng;

use super::client::{Client, ClientTimer};
use super::matching::{Fingerprint, Matcher};
use super::server::{RequestKey, Server, ServerTimer};
use super::table::{self, Table};
use super::{Config, Event, Stats};
use crate::core::{Destination, Output, SendError, SendToken};
use crate::ids::{Branch, Ids};
use crate::net::Flow;
use crate::sip::{Message, Method};
use crate::timer::TimerWheel;

/// What a timer of the wheel is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Due {
    Client(u32, ClientTimer),
    Server(u32, ServerTimer),
}

/// Where a request of ours is found by its response: its branch, and whether it is a CANCEL, which
/// shares the branch of its INVITE (RFC 3261 §9.1).
pub(super) type BranchKey = (Branch, bool);

/// All transactions of one shard.
#[derive(Debug)]
pub struct TransactionLayer {
    pub(super) config: Config,
    pub(super) ids: Ids,
    pub(super) matcher: Matcher,
    pub(super) wheel: TimerWheel<Due>,
    pub(super) clients: Table<Client>,
    pub(super) by_branch: HashMap<BranchKey, u32>,
    /// Client transactions whose request went by a stream, by its far end.
    pub(super) by_stream: BTreeSet<(SocketAddr, u32)>,
    /// Addresses that took no connection, until when they are not asked again.
    pub(super) no_streams: HashMap<SocketAddr, Instant>,
    pub(super) servers: Table<Server>,
    pub(super) by_fingerprint: HashMap<Fingerprint, u32>,
    /// Requests outside dialogs that a merged one would equal.
    pub(super) originals: HashSet<Fingerprint>,
    pub(super) stats: Stats,
    /// Since when, and how many, late 2xx were told to the TU.
    stray_ok: (Instant, u32),
    events: VecDeque<Event>,
    outputs: VecDeque<Output>,
}

impl TransactionLayer {
    /// An empty layer whose time starts at `now`.
    pub fn new(config: Config, mut ids: Ids, now: Instant) -> Self {
        let config = Config { timers: config.timers.sane(), ..config };
        let key = (ids.rng().next_u64(), ids.rng().next_u64());
        TransactionLayer {
            config,
            ids,
            matcher: Matcher::new(key),
            wheel: TimerWheel::with_room(now, table::room(config.max_servers)),
            clients: Table::new(config.max_clients),
            by_branch: HashMap::new(),
            by_stream: BTreeSet::new(),
            no_streams: HashMap::new(),
            servers: Table::new(config.max_servers),
            by_fingerprint: HashMap::new(),
            originals: HashSet::new(),
            stats: Stats::default(),
            stray_ok: (now, 0),
            events: VecDeque::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes new timer values and bounds; running timers keep what they were started with.
    pub fn set_config(&mut self, config: Config) {
        self.config = Config { timers: config.timers.sane(), ..config };
        self.clients.set_max(config.max_clients);
        self.servers.set_max(config.max_servers);
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The shard's source of Call-IDs, tags and branches.
    pub fn ids(&mut self) -> &mut Ids {
        &mut self.ids
    }

    pub fn ids_ref(&self) -> &Ids {
        &self.ids
    }

    /// A message came. It has been parsed and validated; what is no use here is counted.
    pub fn handle_message(&mut self, now: Instant, flow: Flow, message: Message) {
        let key = self.key(&message);
        self.handle_keyed(now, flow, message, key);
    }

    /// The same where the request's key is known already.
    pub fn handle_keyed(&mut self, now: Instant, flow: Flow, message: Message, key: RequestKey) {
        match (message.method(), key.0) {
            (None, _) => self.receive_response(now, flow, message),
            (Some(_), None) => self.stats.unusable += 1,
            (Some(Method::Ack), Some(key)) => self.receive_ack(now, flow, message, key),
            (Some(Method::Cancel), Some(key)) => self.receive_cancel(flow, message, key),
            (Some(_), Some(key)) => self.receive_request(now, flow, message, key),
        }
    }

    /// A transmission failed. `false` when its token is none of the layer's.
    pub fn handle_send_failed(&mut self, now: Instant, token: SendToken, error: SendError) -> bool {
        let Some((side, index, generation)) = open_token(token) else { return false };
        match side {
            Side::Client => self.client_send_failed(now, index, generation, error),
            Side::Server => self.server_send_failed(now, index, generation, error),
        }
        true
    }

    /// Fires every timer that is due.
    pub fn handle_tick(&mut self, now: Instant) {
        while let Some((_, due)) = self.wheel.pop(now) {
            match due {
                Due::Client(index, timer) => self.client_timer(now, index, timer),
                Due::Server(index, timer) => self.server_timer(now, index, timer),
            }
        }
    }

    /// When to call [`handle_tick`](Self::handle_tick) next; may come a little early.
    pub fn deadline(&self) -> Option<Instant> {
        self.wheel.deadline()
    }

    /// Sends a message that belongs to no transaction: the ACK of a 2xx, a stateless answer.
    pub fn transmit(&mut self, dest: Destination, data: Bytes) {
        self.outputs.push_back(Output::Transmit { dest, data, token: None });
    }

    /// What the TU has to know, in the order of its happening.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What has to be sent: only [`Output::Transmit`].
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn stats(&self) -> Stats {
        Stats { clients: self.clients.len(), servers: self.servers.len(), ..self.stats }
    }

    /// Whether no transaction, timer, event or output is left.
    pub fn is_idle(&self) -> bool {
        self.clients.len() == 0
            && self.servers.len() == 0
            && self.by_branch.is_empty()
            && self.by_stream.is_empty()
            && self.by_fingerprint.is_empty()
            && self.originals.is_empty()
            && self.wheel.is_empty()
            && self.events.is_empty()
            && self.outputs.is_empty()
    }

    /// Whether one more late 2xx may be told within this second.
    pub(super) fn admit_stray_ok(&mut self, now: Instant) -> bool {
        let (since, told) = &mut self.stray_ok;
        if now.saturating_duration_since(*since) >= Duration::from_secs(1) {
            (*since, *told) = (now, 0);
        }
        *told += 1;
        *told <= self.config.stray_ok_per_sec
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(super) fn send(&mut self, dest: Destination, data: Bytes, token: SendToken) {
        self.outputs.push_back(Output::Transmit { dest, data, token: Some(token) });
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

const OURS: u64 = 1 << 63;
const SERVER: u64 = 1 << 62;
/// The bits of a generation that a token has room for.
const GENERATION: u32 = 0x3fff_ffff;

/// Names a transaction in [`SendToken`]s: bit 63 is set in all of the layer's tokens, and in none
/// that another part of the core may make.
pub(super) fn seal_token(side: Side, index: u32, generation: u32) -> SendToken {
    let side = match side {
        Side::Client => 0,
        Side::Server => SERVER,
    };
    SendToken(OURS | side | u64::from(generation & GENERATION) << 32 | u64::from(index))
}

fn open_token(SendToken(token): SendToken) -> Option<(Side, u32, u32)> {
    if token & OURS == 0 {
        return None;
    }
    let side = if token & SERVER == 0 { Side::Client } else { Side::Server };
    let index = u32::try_from(token & u64::from(u32::MAX)).ok()?;
    let generation = u32::try_from(token >> 32 & u64::from(GENERATION)).ok()?;
    Some((side, index, generation))
}

/// Whether a token's generation names the transaction with this one.
pub(super) fn same_generation(token: u32, transaction: u32) -> bool {
    token == transaction & GENERATION
}

/// Whether the transport of a destination is reliable.
pub(super) fn is_reliable(dest: &Destination) -> bool {
    match dest {
        Destination::Flow(flow) => flow.transport.is_reliable(),
        Destination::Target { target, .. } => target.transport.is_reliable(),
    }
}
