//! What only a leader does: judging who lives, bringing the Raft membership in line with the nodes
//! table, and moving the cluster's clock on. It judges; the log decides.

use std::collections::BTreeMap;
use std::time::Duration;

use raft::ProgressState;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};
use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::command::Op;

use super::{Core, Time};
use crate::config::FAREWELL;
use crate::event::Event;
use crate::state::NodeState;
use crate::types::NodeId;

const CLOCK_EVERY: Duration = Duration::from_secs(1);
/// A verdict that was not applied by then is proposed again.
const VERDICT_AGAIN: Duration = Duration::from_secs(1);
/// How long those who live have to be heard by a new leader before any is declared down.
const GREETING: Duration = Duration::from_millis(500);
/// A learner this few entries behind may vote.
const CAUGHT_UP: u64 = 256;

#[derive(Default)]
pub(super) struct Govern {
    /// No lease was confirmed to anyone after this moment, by a leader before us.
    since: Time,
    elected: Time,
    heard: BTreeMap<NodeId, Time>,
    /// Proposed as down, with the epoch, and not applied yet.
    condemned: BTreeMap<NodeId, u64>,
    welcomed: BTreeMap<NodeId, Time>,
    /// Removed from the table, members still: up to where they are to know the log, and since when.
    leaving: BTreeMap<NodeId, (u64, Time)>,
    /// When the next of those who are silent may be declared down.
    verdict_at: Option<Time>,
    change_at: Time,
    drain_told: Option<u64>,
}

/// The cluster's clock as this leader moves it on.
#[derive(Default)]
pub(super) struct Clock {
    term: u64,
    since: Time,
    base_ms: u64,
    next_at: Time,
}

impl Govern {
    pub(super) fn is_condemned(&self, node: NodeId) -> bool {
        self.condemned.contains_key(&node)
    }

    pub(super) fn verdict_at(&self) -> Option<Time> {
        self.verdict_at
    }
}

impl Core {
    pub(super) fn begin_reign(&mut self) {
        let (since, heard) = self.end_of_reigns();
        self.govern = Govern {
            since,
            elected: self.now,
            heard,
            drain_told: self.govern.drain_told,
            ..Govern::default()
        };
    }

    /// The first thing a leader writes is the time: what others write expires relative to it, and
    /// it may have stood still for long.
    pub(super) fn begin_clock(&mut self) {
        let term = self.raft.raft.term;
        if !self.is_leader() || self.clock.term == term {
            return;
        }
        let clock_ms = self.tables.read().unwrap_or_else(|e| e.into_inner()).clock_ms();
        self.clock = Clock {
            term,
            since: self.now,
            // The wall clock is looked at once per reign and only ever moves the cluster's forward.
            base_ms: clock_ms.max(self.wall_ms()),
            next_at: self.now,
        };
        self.move_clock();
    }

    fn wall_ms(&self) -> u64 {
        let elapsed = u64::try_from(self.now.as_millis()).unwrap_or(u64::MAX);
        self.config.wall_ms_at_zero.saturating_add(elapsed)
    }

    /// In which version this node writes: what every member reads.
    pub(super) fn format(&self) -> u32 {
        let tables = self.tables.read().unwrap_or_else(|e| e.into_inner());
        tables.format().min(self.config.format)
    }

    /// Tells the cluster what this build reads, after an update or the way back from one.
    pub(super) fn announce_format(&mut self) {
        let told = {
            let tables = self.tables.read().unwrap_or_else(|e| e.into_inner());
            tables.node(self.config.id).is_none_or(|row| row.format == self.config.format)
        };
        if told || self.leader.is_none() || self.now < self.announce_at {
            return;
        }
        self.announce_at = self.now + VERDICT_AGAIN;
        let (id, format) = (self.config.id.0, self.config.format);
        self.propose_system(Op::SetFormat(pb::SetFormat { id, format }));
    }

    pub(super) fn heard(&mut self, node: NodeId) {
        self.govern.heard.insert(node, self.now);
    }

    pub(super) fn govern(&mut self) {
        self.govern.verdict_at = None;
        if !self.is_leader() || !self.raft.raft.commit_to_current_term() {
            return;
        }
        self.judge();
        self.move_clock();
        self.align_members();
    }

    /// Declares down who was not heard of for the hand-over delay, and up who was.
    fn judge(&mut self) {
        let nodes: Vec<(NodeId, NodeState, u64)> = {
            let tables = self.tables.read().unwrap_or_else(|e| e.into_inner());
            tables.nodes().map(|(id, node)| (id, node.state, node.epoch)).collect()
        };
        for (id, state, epoch) in nodes {
            let heard = self.govern.heard.get(&id).copied();
            if state.is_live() {
                if id == self.config.id || self.govern.condemned.get(&id) == Some(&epoch) {
                    continue;
                }
                let last = heard.unwrap_or(self.govern.since).max(self.govern.since);
                let at = (last + self.config.handover).max(self.govern.elected + GREETING);
                if self.now < at {
                    let soonest = self.govern.verdict_at.map_or(at, |soonest| soonest.min(at));
                    self.govern.verdict_at = Some(soonest);
                } else {
                    let down = pb::NodeDown { id: id.0, epoch };
                    if self.propose_system(Op::NodeDown(down)) {
                        self.govern.condemned.insert(id, epoch);
                    }
                }
            } else {
                let fresh = heard.is_some_and(|at| self.now.saturating_sub(at) < self.config.lease);
                let again = self.govern.welcomed.get(&id).copied();
                let due = again.is_none_or(|at| self.now.saturating_sub(at) > VERDICT_AGAIN);
                if fresh && due {
                    self.govern.welcomed.insert(id, self.now);
                    let up = pb::NodeUp { id: id.0, epoch };
                    self.propose_system(Op::NodeUp(up));
                }
            }
        }
    }

    /// Verdicts that were applied, or overtaken, are forgotten. Tells the edge of its own drain.
    pub(super) fn note_nodes(&mut self) {
        let tables = std::sync::Arc::clone(&self.tables);
        let tables = tables.read().unwrap_or_else(|e| e.into_inner());
        self.govern.condemned.retain(|id, epoch| {
            tables.node(*id).is_some_and(|node| node.state.is_live() && node.epoch == *epoch)
        });
        self.govern
            .welcomed
            .retain(|id, _| tables.node(*id).is_some_and(|node| !node.state.is_live()));
        let own = tables.node(self.config.id);
        let drain = own.filter(|node| node.state == NodeState::Draining).map(|node| node.drains);
        drop(tables);
        if let Some(drain) = drain.filter(|_| drain != self.govern.drain_told) {
            self.event(Event::DrainRequested { drain });
        }
        self.govern.drain_told = drain;
    }

    fn move_clock(&mut self) {
        if self.now < self.clock.next_at {
            return;
        }
        self.clock.next_at = self.now + CLOCK_EVERY;
        let elapsed = self.now.saturating_sub(self.clock.since).as_millis();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        let now_ms = self.clock.base_ms.saturating_add(elapsed);
        self.propose_system(Op::Clock(pb::Clock { now_ms }));
    }

    /// The nodes table says who should be a member; Raft follows, one change at a time.
    fn align_members(&mut self) {
        let joint = !self.conf.voters_outgoing.is_empty();
        if joint || self.raft.raft.has_pending_conf() || self.now < self.govern.change_at {
            return;
        }
        let changes = self.member_changes();
        if changes.is_empty() {
            return;
        }
        self.govern.change_at = self.now + VERDICT_AGAIN;
        let mut change = ConfChangeV2::default();
        change.set_transition(ConfChangeTransition::Auto);
        change.set_changes(changes.into());
        // Refused when another change is under way: looked at again at the next tick.
        if self.raft.propose_conf_change(Vec::new(), change).is_err() {
            self.counters.refused += 1;
        }
    }

    fn member_changes(&mut self) -> Vec<ConfChangeSingle> {
        let tables = std::sync::Arc::clone(&self.tables);
        let tables = tables.read().unwrap_or_else(|e| e.into_inner());
        let mut changes = Vec::new();
        for (id, node) in tables.nodes() {
            let is_voter = self.conf.voters.contains(&id.0);
            let is_learner = self.conf.learners.contains(&id.0);
            if !is_voter && !is_learner {
                changes.push(single(ConfChangeType::AddLearnerNode, id));
            } else if is_learner && node.voter && !node.is_expected() && self.caught_up(id) {
                changes.push(single(ConfChangeType::AddNode, id));
            }
        }
        let members = self.conf.voters.iter().chain(&self.conf.learners);
        let gone: Vec<NodeId> =
            members.map(|id| NodeId(*id)).filter(|id| tables.node(*id).is_none()).collect();
        drop(tables);
        self.govern.leaving.retain(|id, _| gone.contains(id));
        for id in gone {
            if id == self.config.id {
                self.abdicate();
            } else if self.knows_that_it_leaves(id) {
                changes.push(single(ConfChangeType::RemoveNode, id));
            }
        }
        changes
    }

    /// Whether a node that was removed has heard of it, so that whoever asked for it there gets an
    /// answer. It need not have: it may be dead.
    fn knows_that_it_leaves(&mut self, id: NodeId) -> bool {
        let (index, since) = *self.govern.leaving.entry(id).or_insert((self.applied, self.now));
        let late = self.now.saturating_sub(since) >= FAREWELL;
        late || self
            .raft
            .raft
            .prs()
            .get(id.0)
            .is_none_or(|progress| !progress.recent_active || progress.committed_index >= index)
    }

    fn caught_up(&self, id: NodeId) -> bool {
        let last = self.raft.raft.raft_log.last_index();
        self.raft.raft.prs().get(id.0).is_some_and(|progress| {
            progress.recent_active
                && progress.state == ProgressState::Replicate
                && progress.matched > 0
                && progress.matched + CAUGHT_UP >= last
        })
    }

    /// A leader that was removed hands on to whoever is furthest.
    fn abdicate(&mut self) {
        let raft = &self.raft.raft;
        let best = self
            .conf
            .voters
            .iter()
            .filter(|id| **id != self.config.id.0)
            .filter_map(|id| raft.prs().get(*id).map(|progress| (progress.matched, *id)))
            .max();
        if let Some((_, id)) = best {
            self.raft.transfer_leader(id);
        }
    }
}

pub(super) fn single(kind: ConfChangeType, id: NodeId) -> ConfChangeSingle {
    ConfChangeSingle { change_type: kind, node_id: id.0, ..ConfChangeSingle::default() }
}
