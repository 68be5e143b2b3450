//! One Raft node without clock, disk or network: inputs and the time go in by
//! [`Core::handle`], what is to be done comes out by [`Core::poll`], and [`Core::deadline`] says
//! when to call again. The same inputs at the same times give the same outputs.
//!
//! `ready.rs` holds the one order in which a Ready of raft-rs is worked through, `session.rs` our
//! proposals and their answers, `let_go.rs` the calls that are not ours to write any more,
//! `lease.rs` the lease and the addresses that hang on it, `vouch.rs` what a new leader learns of
//! leases from its votes, `govern.rs` what only a leader does, `log.rs` Raft's view of the log.
//!
//! raft-rs panics on what it takes for impossible; whoever drives the core catches that.

mod govern;
mod lease;
mod let_go;
mod log;
mod ready;
mod session;
#[cfg(test)]
mod tests;
mod vouch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType};
use raft::{RawNode, SnapshotStatus, StateRole};
use sbc_proto::cluster::v1 as pb;

use crate::event::Event;
use crate::state::{Frozen, Position, Tables, UnsupportedVersion};
use crate::types::{NodeId, Outcome};

pub(crate) use lease::LeaseCell;
pub(crate) use session::ReplyId;

use govern::{Clock, Govern};
use lease::Lease;
use let_go::LetGo;
use log::MirrorLog;
use session::Session;
use vouch::Vouched;

/// Time since some fixed moment, on a clock that never goes back and counts suspension.
pub(crate) type Time = Duration;

/// What the core must be told once.
#[derive(Clone, Debug)]
pub(crate) struct CoreConfig {
    pub(crate) id: NodeId,
    /// Raised at every start; sessions of earlier starts end.
    pub(crate) boot: u64,
    /// The highest format version that this build reads.
    pub(crate) format: u32,
    pub(crate) tick: Duration,
    pub(crate) heartbeat_ticks: usize,
    pub(crate) election_ticks: usize,
    pub(crate) lease: Duration,
    pub(crate) handover: Duration,
    /// Unix time in milliseconds at [`Time`] zero, read once at start.
    pub(crate) wall_ms_at_zero: u64,
    /// A snapshot is taken when the log has grown by this much.
    pub(crate) snapshot_log_bytes: u64,
    /// Log kept behind a snapshot for followers that are a little behind.
    pub(crate) keep_log_bytes: u64,
    /// Proposals waiting at most.
    pub(crate) pending_max: usize,
}

/// What was found on disk.
pub(crate) struct Recovered {
    pub(crate) tables: Tables,
    /// Of the snapshot that `tables` was read from; index 0 on a node that joins.
    pub(crate) snapshot: Position,
    pub(crate) hard_state: HardState,
    pub(crate) entries: Vec<Entry>,
}

/// What the core is told.
pub(crate) enum Input {
    /// The deadline has come.
    Tick,
    /// A Raft message of an authenticated peer.
    Message {
        from: NodeId,
        bytes: Bytes,
    },
    /// A snapshot that arrived whole, was checked and is on disk; the message that offered it.
    Snapshot {
        from: NodeId,
        message: Bytes,
        tables: Box<Tables>,
        position: Position,
    },
    /// Writes up to this number are durable.
    Persisted(u64),
    /// The snapshot asked for by [`Output::TakeSnapshot`] is on disk.
    SnapshotTaken(Position),
    /// It could not be written.
    SnapshotFailed,
    /// How sending a snapshot to a peer ended.
    SnapshotSent {
        to: NodeId,
        ok: bool,
    },
    /// A message to this peer could not be delivered.
    Unreachable(NodeId),
    Propose {
        id: ReplyId,
        command: pb::Command,
        timeout: Duration,
    },
    TransferLeader(NodeId),
    TakeSnapshot,
}

/// What the core wants done, in order.
pub(crate) enum Output {
    Send {
        to: NodeId,
        bytes: Bytes,
    },
    /// Offer the latest snapshot on disk by this message, on a stream of its own.
    SendSnapshot {
        to: NodeId,
        message: Bytes,
        index: u64,
    },
    Persist(Persist),
    TakeSnapshot {
        rows: Frozen,
        position: Position,
    },
    /// The log continues from this snapshot; entries up to `entries` are no longer needed.
    Compact {
        snapshot: u64,
        entries: u64,
    },
    Reply {
        id: ReplyId,
        result: Result<Committed, ProposeError>,
    },
    Event(Event),
}

/// One atomic, durable write, answered by [`Input::Persisted`].
pub(crate) struct Persist {
    pub(crate) number: u64,
    /// Replace whatever is at their index and after.
    pub(crate) entries: Vec<Entry>,
    pub(crate) hard_state: HardState,
    /// A leader's snapshot that was installed: the log before it is void.
    pub(crate) snapshot: Option<Position>,
}

/// A command that a majority holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its log index.
    pub index: u64,
    pub outcome: Outcome,
}

/// Why a command is not known to be committed. It may still be, later, except for `Overloaded`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("the command was not committed in time")]
    Timeout,
    #[error("no leader is known: there is no quorum")]
    NoQuorum,
    #[error("too many commands are waiting")]
    Overloaded,
    #[error("the cluster node has stopped")]
    Stopped,
}

/// The core cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CoreError {
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
    #[error(transparent)]
    Unsupported(#[from] UnsupportedVersion),
}

pub(crate) struct Core {
    config: CoreConfig,
    raft: RawNode<MirrorLog>,
    tables: Arc<RwLock<Tables>>,
    conf: ConfState,
    /// The commit index is to be written, because members changed.
    conf_changed: bool,
    applied: u64,
    now: Time,
    next_tick: Time,
    outputs: VecDeque<Output>,
    /// Messages that may leave only when what they speak of is on disk.
    unpersisted: VecDeque<Unpersisted>,
    /// A snapshot whose message is being stepped.
    incoming: Option<(Position, Box<Tables>)>,
    /// The Ready of an installed snapshot that is not durable yet.
    installing: Option<u64>,
    /// A snapshot is being written; no second one meanwhile.
    taking_snapshot: bool,
    /// Size of the log when the last snapshot was begun.
    snapshot_base_bytes: u64,
    leader: Option<NodeId>,
    term: u64,
    role: StateRole,
    session: Session,
    let_go: LetGo,
    lease: Lease,
    vouched: Vouched,
    govern: Govern,
    clock: Clock,
    /// When the nodes table is next told which formats this build reads.
    announce_at: Time,
    counters: Counters,
}

struct Unpersisted {
    number: u64,
    messages: Vec<Message>,
    /// Whether a write was asked for; without one it is done when those before it are.
    written: bool,
}

/// Counted since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages that did not decode or claimed another sender.
    pub malformed: u64,
    /// Messages that raft-rs refused (unknown peer, wrong kind).
    pub refused: u64,
    pub committed: u64,
    pub timeouts: u64,
    pub resent: u64,
}

impl Core {
    pub(crate) fn new(
        config: CoreConfig,
        recovered: Recovered,
        lease: LeaseCell,
        now: Time,
    ) -> Result<Self, CoreError> {
        let raft_config = raft::Config {
            id: config.id.0,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            min_election_tick: config.election_ticks,
            max_election_tick: config.election_ticks + config.election_ticks / 2,
            applied: recovered.snapshot.index,
            max_size_per_msg: 256 * 1024,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: 64 * 1024 * 1024,
            max_committed_size_per_ready: 4 * 1024 * 1024,
            ..raft::Config::default()
        };
        let applied = recovered.snapshot.index;
        let conf = recovered.snapshot.conf.clone();
        let mut hard_state = recovered.hard_state;
        // A commit index alone is not worth a write; what a snapshot holds was committed.
        hard_state.commit = hard_state.commit.max(applied);
        hard_state.term = hard_state.term.max(recovered.snapshot.term);
        let log = MirrorLog::new(recovered.snapshot, hard_state, recovered.entries);
        let snapshot_base_bytes = 0;
        let mut tables = recovered.tables;
        tables.read_up_to(config.format);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raft = RawNode::new(&raft_config, log, &logger)?;
        let mut core = Core {
            session: Session::new(),
            let_go: LetGo::default(),
            lease: Lease::new(lease),
            vouched: Vouched::new(now),
            govern: Govern::default(),
            clock: Clock::default(),
            announce_at: Time::ZERO,
            next_tick: now + config.tick,
            term: raft.raft.term,
            raft,
            tables: Arc::new(RwLock::new(tables)),
            conf,
            conf_changed: false,
            applied,
            now,
            outputs: VecDeque::new(),
            unpersisted: VecDeque::new(),
            incoming: None,
            installing: None,
            taking_snapshot: false,
            snapshot_base_bytes,
            leader: None,
            role: StateRole::Follower,
            counters: Counters::default(),
            config,
        };
        core.fix_election_timeout();
        if core.raft.raft.prs().is_singleton() && core.raft.raft.promotable() {
            core.raft.campaign()?;
        }
        core.work_ready()?;
        core.note_nodes();
        Ok(core)
    }

    /// The tables, for readers elsewhere. Only the core writes them.
    pub(crate) fn tables(&self) -> Arc<RwLock<Tables>> {
        Arc::clone(&self.tables)
    }

    pub(crate) fn handle(&mut self, now: Time, input: Input) -> Result<(), CoreError> {
        self.now = self.now.max(now);
        // Before anything else: who has slept past its lease holds nothing any more.
        self.check_lease();
        self.vouch_as_leader();
        self.begin_clock();
        match input {
            Input::Tick => {}
            Input::Message { from, bytes } => self.take_message(from, &bytes),
            Input::Snapshot { from, message, tables, position } => {
                self.incoming = Some((position, tables));
                self.take_message(from, &message);
                self.work_ready()?;
                self.incoming = None;
            }
            Input::Persisted(number) => self.persisted(number),
            Input::SnapshotTaken(position) => self.snapshot_taken(position),
            Input::SnapshotFailed => self.taking_snapshot = false,
            Input::SnapshotSent { to, ok } => {
                let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
                self.raft.report_snapshot(to.0, status);
            }
            Input::Unreachable(peer) => self.raft.report_unreachable(peer.0),
            Input::Propose { id, command, timeout } => self.propose(id, command, timeout),
            Input::TransferLeader(to) => self.raft.transfer_leader(to.0),
            Input::TakeSnapshot => self.take_snapshot(),
        }
        self.run_ticks();
        Ok(())
    }

    /// What gathered by several [`Core::handle`] calls is worked through at once: one write, one
    /// message per peer. Call it before draining [`Core::poll`].
    pub(crate) fn flush(&mut self) -> Result<(), CoreError> {
        self.send_proposals();
        self.fix_election_timeout();
        self.work_ready()
    }

    pub(crate) fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn deadline(&self) -> Time {
        let soon = [self.lease.expires(), self.lease.hurries(self.now), self.govern.verdict_at()];
        soon.into_iter().flatten().fold(self.next_tick, Time::min)
    }

    fn run_ticks(&mut self) {
        let mut ticks = 0;
        while self.next_tick <= self.now {
            self.next_tick += self.config.tick;
            ticks += 1;
            // Whoever slept long has missed elections; catching up on them one by one helps nobody.
            if ticks > 2 * self.config.election_ticks {
                self.next_tick = self.now + self.config.tick;
            }
            // Raft looks through what it has not applied before it stands for election, and that is
            // gone until the installed snapshot counts as applied.
            if self.installing.is_none() {
                self.raft.tick();
            }
            self.fix_election_timeout();
        }
        if ticks > 0 {
            self.renew_lease();
            self.announce_format();
            self.expire_proposals();
            self.govern();
            self.consider_snapshot();
            return;
        }
        // A tick is too long for those who wait to be heard again.
        if self.lease.hurries(self.now).is_some() {
            self.renew_lease();
        }
        if self.govern.verdict_at().is_some_and(|at| at <= self.now) {
            self.govern();
        }
    }

    fn take_message(&mut self, from: NodeId, bytes: &[u8]) {
        let mut message = Message::default();
        if message.merge_from_bytes(bytes).is_err() {
            self.counters.malformed += 1;
            return;
        }
        let kind = message.get_msg_type();
        // Followers pass on proposals and reads of others; nothing else may speak for another.
        let forwarded = matches!(kind, MessageType::MsgPropose | MessageType::MsgReadIndex);
        if message.to != self.config.id.0 || (message.from != from.0 && !forwarded) {
            self.counters.malformed += 1;
            return;
        }
        if kind == MessageType::MsgReadIndex && !self.admit_read(&message) {
            return;
        }
        if kind == MessageType::MsgSnapshot && self.incoming.is_none() {
            self.counters.malformed += 1;
            return;
        }
        if kind == MessageType::MsgTimeoutNow && self.installing.is_some() {
            // Not able to stand for election yet: whoever leads goes on leading.
            self.counters.refused += 1;
            return;
        }
        self.note_vote(&message);
        if self.raft.step(message).is_err() {
            self.counters.refused += 1;
        }
        self.vouch_as_follower(from, kind);
        self.fix_election_timeout();
    }

    /// raft-rs draws its election timeout from the thread's generator. Ours follows from our place
    /// among the voters, so that a run can be repeated and no two of them call an election at once:
    /// with one of three dead a split vote would cost another timeout. The place moves on with the
    /// term, so that one who cannot win does not always come first.
    fn fix_election_timeout(&mut self) {
        let voters = self.conf.voters.len().max(1);
        let before = self.conf.voters.iter().filter(|id| **id < self.config.id.0).count();
        let term = usize::try_from(self.raft.raft.term % voters as u64).unwrap_or(0);
        let place = (before + term) % voters;
        let span = (self.config.election_ticks / 2).max(1);
        // Whoever asks must find the others' time to keep to the old leader over: two ticks more.
        let extra = (2 + place * span.saturating_sub(2) / voters).min(span - 1);
        self.raft.raft.set_randomized_election_timeout(self.config.election_ticks + extra);
    }

    fn is_leader(&self) -> bool {
        self.raft.raft.state == StateRole::Leader
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    /// The term that this node leads in.
    #[cfg(test)]
    pub(crate) fn reigns_in(&self) -> Option<u64> {
        self.is_leader().then_some(self.raft.raft.term)
    }

    #[cfg(test)]
    pub(crate) fn applied(&self) -> u64 {
        self.applied
    }

    /// Bytes of log, proposals pending, outputs and messages waiting.
    #[cfg(test)]
    pub(crate) fn sizes(&self) -> (u64, usize, usize) {
        let waiting = self.unpersisted.len() + self.outputs.len();
        (self.raft.store().bytes(), self.session.len(), waiting)
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    pub(crate) fn progress(&self) -> CoreStatus {
        let raft = &self.raft.raft;
        let mut peers = BTreeMap::new();
        if self.is_leader() {
            for (id, progress) in raft.prs().iter() {
                peers.insert(NodeId(*id), (progress.matched, progress.recent_active));
            }
        }
        CoreStatus {
            id: self.config.id,
            term: raft.term,
            leader: self.leader,
            is_leader: self.is_leader(),
            committed: raft.raft_log.committed,
            applied: self.applied,
            last: raft.raft_log.last_index(),
            snapshot: self.raft.store().snapshot_index(),
            log_bytes: self.raft.store().bytes(),
            voters: self.conf.voters.iter().map(|id| NodeId(*id)).collect(),
            learners: self.conf.learners.iter().map(|id| NodeId(*id)).collect(),
            peers,
            pending: self.session.len(),
        }
    }
}

/// Where the node stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreStatus {
    pub id: NodeId,
    pub term: u64,
    pub leader: Option<NodeId>,
    pub is_leader: bool,
    pub committed: u64,
    pub applied: u64,
    pub last: u64,
    pub snapshot: u64,
    pub log_bytes: u64,
    pub voters: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
    /// As a leader: up to where each peer's log agrees with ours, and whether it was heard lately.
    pub peers: BTreeMap<NodeId, (u64, bool)>,
    /// Own proposals not applied yet.
    pub pending: usize,
}
