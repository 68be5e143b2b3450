//! The fixed order of a Ready: send, install snapshot, apply committed, append and hard state (the
//! write goes to the disk in its own time), and once that is durable the messages that depend on
//! it. One place, so that it is right once.

use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeV2, Entry, EntryType, Message, MessageType};
use raft::{Ready, StateRole};

use super::{Core, CoreError, Output, Persist, Unpersisted};
use crate::event::Event;
use crate::state::{Applied, Effect, Position};
use crate::types::{DialogKey, NodeId, Table};

impl Core {
    pub(super) fn work_ready(&mut self) -> Result<(), CoreError> {
        while self.raft.has_ready() {
            let mut ready = self.raft.ready();
            self.note_role();
            let messages = ready.take_messages();
            self.send(messages);
            self.install_snapshot(&ready);
            self.apply(ready.take_committed_entries())?;
            self.append(&mut ready);
            for read in ready.take_read_states() {
                self.note_read(read.index, &read.request_ctx);
            }
            self.raft.advance_append_async(ready);
            self.advance_apply();
            self.fix_election_timeout();
            self.settle();
        }
        Ok(())
    }

    fn send(&mut self, messages: Vec<Message>) {
        for mut message in messages {
            self.date_vote(&mut message);
            let to = NodeId(message.to);
            let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            let index = message.get_snapshot().get_metadata().index;
            let Ok(bytes) = message.write_to_bytes() else {
                continue;
            };
            let bytes = bytes.into();
            self.outputs.push_back(if snapshot {
                let message = bytes;
                Output::SendSnapshot { to, message, index }
            } else {
                Output::Send { to, bytes }
            });
        }
    }

    fn install_snapshot(&mut self, ready: &Ready) {
        let metadata = ready.snapshot().get_metadata();
        if metadata.index == 0 {
            return;
        }
        let Some((position, mut tables)) = self.incoming.take() else {
            return;
        };
        self.raft.mut_store().install(position.clone());
        self.installing = Some(ready.number());
        self.conf = position.conf;
        self.applied = position.index;
        tables.read_up_to(self.config.format);
        let id = self.config.id;
        let mut ours: Vec<DialogKey> = {
            let mut shared = self.tables.write().unwrap_or_else(|e| e.into_inner());
            let ours = shared.dialogs_of(id).map(|(key, _)| *key).collect();
            *shared = *tables;
            ours
        };
        ours.extend(self.settle_session());
        {
            let tables = self.tables.read().unwrap_or_else(|e| e.into_inner());
            let still = |key: &DialogKey| tables.dialog(key).is_some_and(|row| row.owner == id);
            self.let_go.reload(self.now, ours, still);
        }
        self.note_applied();
        self.note_installed();
    }

    fn append(&mut self, ready: &mut Ready) {
        if let Some(hard_state) = ready.hs() {
            self.raft.mut_store().hard_state = hard_state.clone();
        }
        let entries = ready.take_entries();
        self.raft.mut_store().append(&entries);
        let messages = ready.take_persisted_messages();
        let index = ready.snapshot().get_metadata().index;
        // The members of now are those that the commit index says: without it a node that starts again
        // may count on one that is gone.
        let written = ready.must_sync() || std::mem::take(&mut self.conf_changed);
        if written {
            let snapshot = (index != 0).then(|| Position {
                index,
                term: ready.snapshot().get_metadata().term,
                conf: ready.snapshot().get_metadata().get_conf_state().clone(),
            });
            self.outputs.push_back(Output::Persist(Persist {
                number: ready.number(),
                entries,
                hard_state: self.raft.store().hard_state.clone(),
                snapshot,
            }));
        }
        self.unpersisted.push_back(Unpersisted { number: ready.number(), messages, written });
    }

    /// Raft takes an installed snapshot for applied only when it is durable.
    fn advance_apply(&mut self) {
        if self.installing.is_none() {
            self.raft.advance_apply_to(self.applied);
        }
    }

    /// Lets go what waits for no write any more.
    fn settle(&mut self) {
        let mut last = None;
        while self.unpersisted.front().is_some_and(|item| !item.written) {
            if let Some(item) = self.unpersisted.pop_front() {
                last = Some(item.number);
                self.send(item.messages);
            }
        }
        if let Some(number) = last {
            self.raft.on_persist_ready(number);
            if self.installing.is_some_and(|installing| installing <= number) {
                self.installing = None;
                self.advance_apply();
            }
        }
    }

    pub(super) fn persisted(&mut self, number: u64) {
        for item in &mut self.unpersisted {
            if item.number <= number {
                item.written = false;
            }
        }
        self.settle();
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), CoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut results = Vec::new();
        {
            let tables = std::sync::Arc::clone(&self.tables);
            let mut tables = tables.write().unwrap_or_else(|e| e.into_inner());
            for entry in entries {
                self.applied = entry.index;
                match entry.get_entry_type() {
                    EntryType::EntryNormal if entry.data.is_empty() => {}
                    EntryType::EntryNormal => {
                        results.push((entry.index, tables.apply(entry.index, entry.data)?));
                    }
                    EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                        self.apply_conf_change(&entry);
                    }
                }
            }
        }
        self.note_applied();
        for (index, applied) in results {
            self.note_result(index, applied);
        }
        Ok(())
    }

    fn apply_conf_change(&mut self, entry: &Entry) {
        let change = if entry.get_entry_type() == EntryType::EntryConfChange {
            let mut change = ConfChange::default();
            change.merge_from_bytes(&entry.data).map(|()| self.raft.apply_conf_change(&change))
        } else {
            let mut change = ConfChangeV2::default();
            change.merge_from_bytes(&entry.data).map(|()| self.raft.apply_conf_change(&change))
        };
        // A change that does not fit the present members is void, on every node alike.
        if let Ok(Ok(conf)) = change {
            self.conf = conf;
            self.conf_changed = true;
            self.event(Event::MembersChanged);
            self.step_down_if_removed();
        }
    }

    /// Who was elected between the writing of its own removal and the applying leads no more: raft-rs
    /// leaves it in its role, without a place for what it has written itself.
    fn step_down_if_removed(&mut self) {
        let raft = &mut self.raft.raft;
        if raft.state == StateRole::Leader && raft.prs().get(raft.id).is_none() {
            raft.become_follower(raft.term, raft::INVALID_ID);
            self.fix_election_timeout();
        }
    }

    fn note_result(&mut self, index: u64, applied: Applied) {
        self.counters.committed += 1;
        if let Some(origin) = applied.origin {
            self.answer(index, origin, applied.outcome);
        }
        for effect in applied.effects {
            match effect {
                Effect::Moved { from, to, dialogs } => self.note_moved(from, to, dialogs),
                Effect::Addresses => {
                    self.check_lease();
                    self.event(Event::TableChanged(Table::Addresses));
                }
                Effect::Nodes => {
                    self.note_nodes();
                    self.event(Event::TableChanged(Table::Nodes));
                }
                Effect::Setting(key) => self.event(Event::SettingChanged(key)),
                Effect::Ban { key, added } => self.event(Event::BanChanged { key, added }),
                Effect::Binding { key, change, last } => {
                    self.event(Event::BindingChanged { key, change, last });
                }
            }
        }
    }

    fn note_moved(&mut self, from: NodeId, to: NodeId, dialogs: Vec<DialogKey>) {
        let id = self.config.id;
        self.let_go.moved(self.now, id, (from, to), &dialogs);
        // Before the first lease these are history; what is ours then is told as a whole.
        if !self.lease.is_resumed() {
            return;
        }
        if to == id {
            self.event(Event::AdoptDialogs { from, dialogs });
        } else if from == id {
            self.event(Event::DialogsLost { to, dialogs });
        }
    }

    /// After a snapshot nothing is known of single changes: readers look at the tables again.
    fn note_installed(&mut self) {
        self.check_lease();
        self.note_nodes();
        self.event(Event::Reloaded);
    }

    fn note_role(&mut self) {
        let soft = self.raft.raft.soft_state();
        let leader = crate::state::node_id(soft.leader_id);
        let term = self.raft.raft.term;
        if soft.raft_state != self.role {
            self.role = soft.raft_state;
            if self.role == StateRole::Leader {
                self.begin_reign();
            }
        }
        if leader != self.leader || term != self.term {
            let changed = leader != self.leader;
            self.leader = leader;
            self.term = term;
            self.session.resend_all();
            if changed {
                self.event(Event::LeaderChanged { leader, term });
            }
        }
    }

    pub(super) fn consider_snapshot(&mut self) {
        let grown = self.raft.store().bytes().saturating_sub(self.snapshot_base_bytes);
        if self.raft.store().take_wanted() || grown >= self.config.snapshot_log_bytes {
            self.take_snapshot();
        }
    }

    pub(super) fn take_snapshot(&mut self) {
        if self.taking_snapshot || self.applied <= self.raft.store().snapshot_index() {
            return;
        }
        let Some(term) = self.raft.store().term_of(self.applied) else {
            return;
        };
        let position = Position { index: self.applied, term, conf: self.conf.clone() };
        let rows = self.tables.read().unwrap_or_else(|e| e.into_inner()).freeze();
        self.taking_snapshot = true;
        self.outputs.push_back(Output::TakeSnapshot { rows, position });
    }

    pub(super) fn snapshot_taken(&mut self, position: Position) {
        self.taking_snapshot = false;
        let keep = self.config.keep_log_bytes;
        let entries = self.raft.mut_store().compact(position, keep);
        let snapshot = self.raft.store().snapshot_index();
        // What was written while the snapshot was counts towards the next one.
        self.snapshot_base_bytes = self.raft.store().bytes().min(keep);
        self.outputs.push_back(Output::Compact { snapshot, entries });
    }
}
