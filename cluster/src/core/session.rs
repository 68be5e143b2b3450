//! Our own proposals: numbered, sent in order, sent again after a change of leader, answered when
//! applied or when their time is up. A proposal whose answer timed out is still brought through
//! while there is hope: the caller goes on unprotected, and is protected a little later.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prost::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};
use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::command::Op;

use super::{Committed, Core, Output, ProposeError, Time};
use crate::state::Origin;
use crate::types::{DialogKey, Outcome, Rejection};

/// Ties a proposal to its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ReplyId(pub(crate) u64);

/// A proposal without a quorum is given up after this long.
const GIVE_UP: Duration = Duration::from_secs(30);
/// Sent proposals without any progress for this long are sent again.
const RESEND: Duration = Duration::from_millis(300);
/// Proposals on their way at a time.
const WINDOW: usize = 4_096;
const BATCH_BYTES_MAX: usize = 256 * 1024;

pub(super) struct Session {
    pending: BTreeMap<u64, Pending>,
    /// When each answer is due, then when each proposal is given up.
    deadlines: BTreeSet<(Time, u64)>,
    next_seq: u64,
    /// The last proposal known to be applied.
    done: u64,
    /// Everything up to here is on its way.
    sent: u64,
    in_flight: usize,
    progress_at: Time,
    backoff: Duration,
}

struct Pending {
    reply: Option<ReplyId>,
    command: pb::Command,
    epoch: u64,
    bytes: usize,
}

impl Session {
    pub(super) fn new() -> Self {
        Session {
            pending: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            next_seq: 1,
            done: 0,
            sent: 0,
            in_flight: 0,
            progress_at: Time::ZERO,
            backoff: RESEND,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn resend_all(&mut self) {
        self.sent = 0;
        self.in_flight = 0;
    }
}

impl Core {
    pub(super) fn propose(&mut self, id: ReplyId, command: pb::Command, timeout: Duration) {
        if self.session.pending.len() >= self.config.pending_max {
            self.reply(Some(id), Err(ProposeError::Overloaded));
            return;
        }
        let bytes = command.encoded_len();
        let refused = match bytes > BATCH_BYTES_MAX {
            true => Some(Rejection::Malformed),
            false => self.is_let_go(&command).then_some(Rejection::Fenced),
        };
        if let Some(why) = refused {
            let outcome = Outcome::Rejected(why);
            self.reply(Some(id), Ok(Committed { index: 0, outcome }));
            return;
        }
        let epoch = {
            let tables = self.tables.read().unwrap_or_else(|e| e.into_inner());
            tables.node(self.config.id).map_or(0, |node| node.epoch)
        };
        let seq = self.session.next_seq;
        self.session.next_seq += 1;
        self.session.deadlines.insert((self.now + timeout, seq));
        if let Some(Op::ReleaseAddresses(op)) = &command.op
            && op.node == self.config.id.0
        {
            self.let_go.releases(seq, op.group);
        }
        let reply = Some(id);
        let pending = Pending { reply, command, epoch, bytes };
        self.session.pending.insert(seq, pending);
    }

    /// Whether it writes a call that is another node's, or is about to be.
    fn is_let_go(&mut self, command: &pb::Command) -> bool {
        let Some((key, group)) = dialog_of(command) else { return false };
        let pending = &self.session.pending;
        self.let_go.has(self.now, &key, group, |seq| pending.contains_key(&seq))
    }

    /// Sends what has gathered, as one Raft message for as long as it fits.
    pub(super) fn send_proposals(&mut self) {
        if self.leader.is_none() || self.session.in_flight >= WINDOW {
            return;
        }
        let mut prev = self
            .session
            .pending
            .range(..=self.session.sent)
            .next_back()
            .map_or(self.session.done, |(seq, _)| *seq);
        let version = self.format();
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        let mut last = self.session.sent;
        for (&seq, pending) in self.session.pending.range(self.session.sent + 1..) {
            if self.session.in_flight + entries.len() >= WINDOW || bytes > 16 * BATCH_BYTES_MAX {
                break;
            }
            bytes += pending.bytes;
            let proposal = pb::Proposal {
                version,
                node: self.config.id.0,
                boot: self.config.boot,
                seq,
                prev,
                epoch: pending.epoch,
                command: Some(pending.command.clone()),
            };
            prev = seq;
            last = seq;
            entries.push(Entry { data: proposal.encode_to_vec().into(), ..Entry::default() });
        }
        if entries.is_empty() {
            return;
        }
        let count = entries.len();
        if self.step_proposals(entries) {
            if self.session.in_flight == 0 {
                self.session.progress_at = self.now;
            }
            self.session.sent = last;
            self.session.in_flight += count;
        }
    }

    /// Hands entries to Raft, which appends them or passes them to the leader. False when it did
    /// not take them all; what it took comes twice then, which sessions absorb.
    fn step_proposals(&mut self, entries: Vec<Entry>) -> bool {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut taken = true;
        for entry in entries {
            bytes += entry.data.len();
            batch.push(entry);
            if bytes >= BATCH_BYTES_MAX {
                taken &= self.step_batch(std::mem::take(&mut batch));
                bytes = 0;
            }
        }
        if !batch.is_empty() {
            taken &= self.step_batch(batch);
        }
        taken
    }

    fn step_batch(&mut self, entries: Vec<Entry>) -> bool {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.config.id.0;
        message.set_entries(entries.into());
        self.raft.step(message).is_ok()
    }

    /// Writes of the cluster itself: no session, idempotent by what they say.
    pub(super) fn propose_system(&mut self, op: pb::command::Op) -> bool {
        let proposal = pb::Proposal {
            version: self.format(),
            command: Some(pb::Command { op: Some(op) }),
            ..pb::Proposal::default()
        };
        let entry = Entry { data: proposal.encode_to_vec().into(), ..Entry::default() };
        self.step_batch(vec![entry])
    }

    pub(super) fn answer(&mut self, index: u64, origin: Origin, outcome: Option<Outcome>) {
        if origin.node != self.config.id || origin.boot != self.config.boot {
            return;
        }
        // A repetition was answered before; what came before its turn will come again.
        let Some(outcome) = outcome else {
            return;
        };
        let session = &mut self.session;
        session.done = session.done.max(origin.seq);
        session.progress_at = self.now;
        session.backoff = RESEND;
        if let Some(pending) = session.pending.remove(&origin.seq) {
            session.in_flight = session.in_flight.saturating_sub(1);
            self.reply(pending.reply, Ok(Committed { index, outcome }));
        }
    }

    /// After a snapshot: what our session says was applied, was applied; whether it was rejected is
    /// not known, so that nobody may count on it. Gives the calls that were written.
    pub(super) fn settle_session(&mut self) -> Vec<DialogKey> {
        let (boot, seq) = {
            let tables = self.tables.read().unwrap_or_else(|e| e.into_inner());
            tables.session_of(self.config.id)
        };
        if boot != self.config.boot {
            return Vec::new();
        }
        self.session.done = self.session.done.max(seq);
        let rest = self.session.pending.split_off(&(seq + 1));
        let applied = std::mem::replace(&mut self.session.pending, rest);
        let mut written = Vec::new();
        for pending in applied.into_values() {
            written.extend(dialog_of(&pending.command).map(|(key, _)| key));
            self.reply(pending.reply, Err(ProposeError::Timeout));
        }
        self.session.resend_all();
        written
    }

    pub(super) fn expire_proposals(&mut self) {
        while let Some(&(due, seq)) = self.session.deadlines.first() {
            if due > self.now {
                break;
            }
            self.session.deadlines.pop_first();
            let Some(pending) = self.session.pending.get_mut(&seq) else {
                continue;
            };
            match pending.reply.take() {
                Some(id) => {
                    self.session.deadlines.insert((due + GIVE_UP, seq));
                    self.counters.timeouts += 1;
                    let error = match self.leader {
                        Some(_) => ProposeError::Timeout,
                        None => ProposeError::NoQuorum,
                    };
                    self.reply(Some(id), Err(error));
                }
                None => {
                    self.session.pending.remove(&seq);
                    self.session.in_flight = self.session.in_flight.saturating_sub(1);
                }
            }
        }
        let stalled = self.session.in_flight > 0
            && self.now.saturating_sub(self.session.progress_at) > self.session.backoff;
        if stalled {
            self.counters.resent += 1;
            self.session.progress_at = self.now;
            self.session.backoff = (self.session.backoff * 2).min(RESEND * 8);
            self.session.resend_all();
        }
    }

    fn reply(&mut self, id: Option<ReplyId>, result: Result<Committed, ProposeError>) {
        if let Some(id) = id {
            self.outputs.push_back(Output::Reply { id, result });
        }
    }
}

/// The call that a command writes, and its address group.
fn dialog_of(command: &pb::Command) -> Option<(DialogKey, u32)> {
    let Some(Op::PutDialog(op)) = &command.op else { return None };
    op.id[..].try_into().ok().map(|key| (DialogKey(key), op.group))
}
