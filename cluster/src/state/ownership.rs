//! Who holds what: the life of nodes, floating addresses, and the hand-over of dialogs. Decided here
//! and nowhere else, from the tables alone, so that every node comes to the same answer.
//!
//! ```text
//!            NodeUp             Drain            HandOver
//! Joining ───────────▶ Up ──────────────▶ Draining ─────▶ Drained
//!             NodeUp ▲  │ NodeDown           │ NodeDown      │ NodeDown
//!                    └ Down ◀────────────────┴───────────────┘     (Drain undo: back to Up)
//! ```
//!
//! An address passes from a living holder only after the holder said that it has dropped it; from a
//! dead one when the log says it is down, which the leader writes only after its lease ran out.

use std::collections::BTreeMap;
use std::sync::Arc;

use sbc_proto::cluster::v1 as pb;

use super::apply::name;
use super::digest::spread;
use super::record::{Address, Next, Node, NodeState, node_id};
use super::tables::Tables;
use super::{Effect, JOINER_KEPT, Writer};
use crate::types::{DialogKey, NodeId, Outcome, Rejection, Table};

type Result<T = Outcome> = std::result::Result<T, Rejection>;

const CHANGED: Outcome = Outcome::Done { changed: true };
/// How long the share of a node that is gone is kept for those who carry its calls on.
const SHARE_HELD_MS: u64 = 10_000;

const UNCHANGED: Outcome = Outcome::Done { changed: false };

/// By whose key a node asks to be let in. Part of an entry since [`JOINER_KEPT`]: in one that is older
/// it is passed over, as nodes that read no more do.
fn joiner(writer: Writer, op: &pb::AddNode) -> Result<Option<[u8; 32]>> {
    if writer.version < JOINER_KEPT {
        return Ok(None);
    }
    (&*op.joiner).try_into().map(Some).map_err(|_| Rejection::Malformed)
}

impl Tables {
    pub(super) fn exec_add_node(
        &mut self,
        writer: Writer,
        op: pb::AddNode,
        effects: &mut Vec<Effect>,
    ) -> Result {
        name(&op.name)?;
        name(&op.address)?;
        if op.format.max(1) < self.format() {
            return Err(Rejection::Format);
        }
        let token: [u8; 32] = (&*op.token).try_into().map_err(|_| Rejection::Malformed)?;
        let joiner = joiner(writer, &op)?;
        if let Some(id) = self.check_token(&token, &op.name, joiner)? {
            return Ok(Outcome::Node(id));
        }
        if self.len(Table::Nodes) >= Table::Nodes.rows_max() {
            return Err(Rejection::Full);
        }
        // Whoever comes back under the same name has lost its disk: its former self is gone. It is
        // not while it holds its lease: then two nodes claim one name.
        let former: Vec<(NodeId, NodeState)> = self
            .nodes()
            .filter(|(_, node)| node.name == op.name)
            .map(|(id, node)| (id, node.state))
            .collect();
        if former.iter().any(|(_, state)| state.is_live()) {
            return Err(Rejection::Conflict);
        }
        for (id, _) in former {
            self.forget_node(id, effects);
        }
        let id = NodeId(self.rows.next_node);
        self.rows.next_node += 1;
        let node = Node {
            name: op.name,
            address: op.address,
            state: NodeState::Joining,
            epoch: 1,
            voter: op.voter,
            software: String::new(),
            format: op.format.max(1),
            drains: 0,
        };
        self.put_node(id, node);
        if let Some(token) = Arc::make_mut(&mut self.rows.tokens).get_mut(&token) {
            (token.used_by, token.joiner) = (Some(id), joiner);
        }
        effects.push(Effect::Nodes);
        Ok(Outcome::Node(id))
    }

    /// A token lets one node in. The same node, by its key, may ask again until it has come up: the
    /// answer may have been lost. Returns the id it was given then. Who has come up has had its answer:
    /// if it asks again its log is lost, and under the same id it could vote twice.
    ///
    /// A token that was used in a version before [`JOINER_KEPT`] knows its user by the name alone.
    fn check_token(
        &self,
        hash: &[u8; 32],
        name: &str,
        joiner: Option<[u8; 32]>,
    ) -> Result<Option<NodeId>> {
        let token = self.rows.tokens.get(hash).ok_or(Rejection::Token)?;
        if token.expires_ms <= self.rows.clock_ms {
            return Err(Rejection::Token);
        }
        let Some(id) = token.used_by else {
            return Ok(None);
        };
        if token.joiner.is_some() && token.joiner != joiner {
            return Err(Rejection::Token);
        }
        match self.node(id) {
            Some(node) if node.state == NodeState::Joining && node.name == name => Ok(Some(id)),
            Some(_) | None => Err(Rejection::Token),
        }
    }

    pub(super) fn exec_remove_node(
        &mut self,
        op: &pb::RemoveNode,
        effects: &mut Vec<Effect>,
    ) -> Result {
        let id = NodeId(op.id);
        let Some(node) = self.node(id) else {
            return Ok(UNCHANGED);
        };
        match node.state {
            NodeState::Up | NodeState::Draining => return Err(Rejection::Conflict),
            NodeState::Joining | NodeState::Drained | NodeState::Down => {}
        }
        // Somebody must be left who keeps the log and can let others in.
        if !self.nodes().any(|(other, node)| other != id && node.voter && node.state.is_live()) {
            return Err(Rejection::Last);
        }
        self.forget_node(id, effects);
        Ok(CHANGED)
    }

    /// The row goes first, so that nothing is given back to it. It holds no address any more: only
    /// a node that is down, drained or was never up is forgotten.
    fn forget_node(&mut self, id: NodeId, effects: &mut Vec<Effect>) {
        self.remove_node(id);
        self.drop_session(id);
        self.void_flows(id, u64::MAX, effects);
        self.reassign(id, effects);
        effects.push(Effect::Nodes);
    }

    pub(super) fn exec_update_node(
        &mut self,
        op: pb::UpdateNode,
        effects: &mut Vec<Effect>,
    ) -> Result {
        name(&op.address)?;
        let id = NodeId(op.id);
        let mut node = self.node(id).ok_or(Rejection::NotFound)?.clone();
        if node.address == op.address && node.software == op.software {
            return Ok(UNCHANGED);
        }
        node.address = op.address;
        node.software = op.software;
        self.put_node(id, node);
        effects.push(Effect::Nodes);
        Ok(CHANGED)
    }

    /// A build announces what it reads when it starts; writers follow the lowest of all.
    pub(super) fn exec_set_format(
        &mut self,
        op: &pb::SetFormat,
        effects: &mut Vec<Effect>,
    ) -> Result {
        let id = NodeId(op.id);
        let mut node = self.node(id).ok_or(Rejection::NotFound)?.clone();
        if op.format == 0 {
            return Err(Rejection::Malformed);
        }
        if node.format == op.format {
            return Ok(UNCHANGED);
        }
        node.format = op.format;
        self.put_node(id, node);
        if self.format() < JOINER_KEPT {
            self.forget_joiners();
        }
        effects.push(Effect::Nodes);
        Ok(CHANGED)
    }

    /// What is written in a former version again holds nothing that it does not know.
    fn forget_joiners(&mut self) {
        if self.rows.tokens.values().any(|token| token.joiner.is_some()) {
            let tokens = Arc::make_mut(&mut self.rows.tokens).values_mut();
            tokens.for_each(|token| token.joiner = None);
        }
    }

    fn set_state(
        &mut self,
        id: NodeId,
        state: NodeState,
        epoch_step: u64,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(node) = Arc::make_mut(&mut self.rows.nodes).get_mut(&id) {
            node.state = state;
            node.epoch += epoch_step;
            effects.push(Effect::Nodes);
        }
    }

    pub(super) fn exec_node_up(&mut self, op: &pb::NodeUp, effects: &mut Vec<Effect>) -> Result {
        let id = NodeId(op.id);
        let node = self.node(id).ok_or(Rejection::NotFound)?;
        match node.state {
            NodeState::Joining | NodeState::Down if node.epoch == op.epoch => {}
            NodeState::Joining
            | NodeState::Down
            | NodeState::Up
            | NodeState::Draining
            | NodeState::Drained => return Ok(UNCHANGED),
        }
        self.set_state(id, NodeState::Up, 0, effects);
        self.assign_free_groups(effects);
        self.adopt_orphans(effects);
        Ok(CHANGED)
    }

    pub(super) fn exec_node_down(
        &mut self,
        op: &pb::NodeDown,
        effects: &mut Vec<Effect>,
    ) -> Result {
        let id = NodeId(op.id);
        let node = self.node(id).ok_or(Rejection::NotFound)?;
        if !node.state.is_live() || node.epoch != op.epoch {
            return Ok(UNCHANGED);
        }
        self.set_state(id, NodeState::Down, 1, effects);
        self.void_flows(id, u64::MAX, effects);
        self.reassign(id, effects);
        Ok(CHANGED)
    }

    pub(super) fn exec_drain(&mut self, op: &pb::Drain, effects: &mut Vec<Effect>) -> Result {
        let id = NodeId(op.id);
        let state = self.node(id).ok_or(Rejection::NotFound)?.state;
        match (state, op.undo) {
            (NodeState::Up, false) => {
                self.set_state(id, NodeState::Draining, 0, effects);
                if let Some(node) = Arc::make_mut(&mut self.rows.nodes).get_mut(&id) {
                    node.drains += 1;
                }
                Ok(CHANGED)
            }
            (NodeState::Draining | NodeState::Drained, true) => {
                self.set_state(id, NodeState::Up, 0, effects);
                self.assign_free_groups(effects);
                self.adopt_orphans(effects);
                Ok(CHANGED)
            }
            (NodeState::Draining | NodeState::Drained, false) | (NodeState::Up, true) => {
                Ok(UNCHANGED)
            }
            (NodeState::Joining | NodeState::Down, _) => Err(Rejection::Conflict),
        }
    }

    pub(super) fn exec_hand_over(
        &mut self,
        op: &pb::HandOver,
        effects: &mut Vec<Effect>,
    ) -> Result {
        let id = NodeId(op.id);
        let node = self.node(id).ok_or(Rejection::NotFound)?;
        match node.state {
            // What was let go for a drain that was taken back is held again.
            NodeState::Draining if op.drain != node.drains => return Err(Rejection::Conflict),
            NodeState::Draining => {}
            NodeState::Drained => return Ok(UNCHANGED),
            NodeState::Joining | NodeState::Up | NodeState::Down => {
                return Err(Rejection::Conflict);
            }
        }
        self.set_state(id, NodeState::Drained, 1, effects);
        self.reassign(id, effects);
        Ok(CHANGED)
    }

    pub(super) fn exec_put_address(
        &mut self,
        op: pb::PutAddress,
        effects: &mut Vec<Effect>,
    ) -> Result {
        name(&op.address)?;
        if op.group == 0 {
            return Err(Rejection::Malformed);
        }
        let prefer = node_id(op.prefer);
        if let Some(row) = self.address(&op.address) {
            if row.group != op.group || row.next == Next::Delete {
                return Err(Rejection::Conflict);
            }
            let mut row = *row;
            row.prefer = prefer;
            self.put_address_row(&op.address, row);
            return Ok(CHANGED);
        }
        if self.len(Table::Addresses) >= Table::Addresses.rows_max() {
            return Err(Rejection::Full);
        }
        let holder = self.holder_of(op.group);
        let row = Address { group: op.group, holder, next: Next::Stay, prefer, asked: 0 };
        self.put_address_row(&op.address, row);
        self.assign_free_groups(effects);
        effects.push(Effect::Addresses);
        Ok(CHANGED)
    }

    pub(super) fn exec_delete_address(
        &mut self,
        writer: Writer,
        op: &pb::DeleteAddress,
        effects: &mut Vec<Effect>,
    ) -> Result {
        let Some(row) = self.address(&op.address) else {
            return Ok(UNCHANGED);
        };
        let mut row = *row;
        if row.holder.is_none() {
            Arc::make_mut(&mut self.rows.addresses).remove(&op.address);
        } else {
            if row.next != Next::Delete {
                (row.next, row.asked) = (Next::Delete, writer.index);
            }
            self.put_address_row(&op.address, row);
        }
        effects.push(Effect::Addresses);
        Ok(CHANGED)
    }

    pub(super) fn exec_move_addresses(
        &mut self,
        writer: Writer,
        op: &pb::MoveAddresses,
        effects: &mut Vec<Effect>,
    ) -> Result {
        let to = NodeId(op.to);
        let target = self.node(to).ok_or(Rejection::NotFound)?;
        if !target.state.is_eligible() {
            return Err(Rejection::Conflict);
        }
        let holder = self.holder_of(op.group);
        let mut found = false;
        for row in Arc::make_mut(&mut self.rows.addresses).values_mut() {
            if row.group == op.group && row.next != Next::Delete {
                found = true;
                row.next = if holder == Some(to) { Next::Stay } else { Next::Move(to) };
                row.asked = writer.index;
            }
        }
        if !found {
            return Err(Rejection::NotFound);
        }
        effects.push(Effect::Addresses);
        Ok(CHANGED)
    }

    pub(super) fn exec_release_addresses(
        &mut self,
        op: &pb::ReleaseAddresses,
        effects: &mut Vec<Effect>,
    ) -> Result {
        let from = NodeId(op.node);
        let eligible = self.eligible();
        let mut to = None;
        let mut changed = false;
        Arc::make_mut(&mut self.rows.addresses).retain(|_, row| {
            if row.group != op.group || row.is_asked_of(from).is_none_or(|at| at > op.asked) {
                return true;
            }
            match row.next {
                Next::Stay => true,
                Next::Delete => {
                    changed = true;
                    false
                }
                Next::Move(node) => {
                    changed = true;
                    row.next = Next::Stay;
                    if eligible.contains(&node) {
                        row.holder = Some(node);
                        to = Some(node);
                    }
                    true
                }
            }
        });
        if !changed {
            return Ok(UNCHANGED);
        }
        effects.push(Effect::Addresses);
        if let Some(to) = to {
            let group = op.group;
            self.move_dialogs(|_, owner, of| (owner == from && of == group).then_some(to), effects);
        }
        Ok(CHANGED)
    }

    fn put_address_row(&mut self, address: &str, row: Address) {
        Arc::make_mut(&mut self.rows.addresses).insert(address.to_owned(), row);
    }

    fn eligible(&self) -> Vec<NodeId> {
        self.nodes().filter(|(_, node)| node.state.is_eligible()).map(|(id, _)| id).collect()
    }

    fn holder_of(&self, group: u32) -> Option<NodeId> {
        self.addresses().find_map(|(_, row)| (row.group == group).then_some(row.holder).flatten())
    }

    /// Takes everything from a node that is down, drained or gone, and gives it to the others.
    fn reassign(&mut self, from: NodeId, effects: &mut Vec<Effect>) {
        let mut touched = false;
        Arc::make_mut(&mut self.rows.addresses).retain(|_, row| {
            if row.next == Next::Move(from) {
                row.next = Next::Stay;
                touched = true;
            }
            if row.holder != Some(from) {
                return true;
            }
            touched = true;
            row.holder = None;
            let keep = row.next != Next::Delete;
            row.next = Next::Stay;
            keep
        });
        if touched {
            effects.push(Effect::Addresses);
        }
        self.assign_free_groups(effects);
        let until_ms = self.rows.clock_ms.saturating_add(SHARE_HELD_MS);
        for ((_, node), count) in Arc::make_mut(&mut self.rows.counts) {
            if *node == from && count.until_ms == 0 {
                count.until_ms = until_ms;
            }
        }

        let places = self.places();
        self.move_dialogs(
            |key, owner, group| (owner == from).then(|| places.choose(key, group)).flatten(),
            effects,
        );
    }

    /// Dialogs whose owner went down when nobody could take them.
    fn adopt_orphans(&mut self, effects: &mut Vec<Effect>) {
        let carried: Vec<NodeId> =
            self.nodes().filter(|(_, node)| node.state.is_live()).map(|(id, _)| id).collect();
        let places = self.places();
        self.move_dialogs(
            |key, owner, group| {
                (!carried.contains(&owner)).then(|| places.choose(key, group)).flatten()
            },
            effects,
        );
    }

    /// Gives each group that nobody holds to the node it prefers, else to the one that holds least.
    fn assign_free_groups(&mut self, effects: &mut Vec<Effect>) {
        let eligible = self.eligible();
        let mut held: BTreeMap<NodeId, Vec<u32>> =
            eligible.iter().map(|id| (*id, Vec::new())).collect();
        let mut free: BTreeMap<u32, Option<NodeId>> = BTreeMap::new();
        for (_, row) in self.addresses() {
            match row.holder {
                Some(holder) => {
                    if let Some(groups) = held.get_mut(&holder)
                        && !groups.contains(&row.group)
                    {
                        groups.push(row.group);
                    }
                }
                None => {
                    let prefer = free.entry(row.group).or_default();
                    *prefer = prefer.or(row.prefer);
                }
            }
        }
        for (group, prefer) in free {
            let wanted = prefer.filter(|id| eligible.contains(id));
            let least = held
                .iter()
                .min_by_key(|(id, groups)| (groups.len(), spread(id.0, u64::from(group))))
                .map(|(id, _)| *id);
            let Some(to) = wanted.or(least) else {
                continue;
            };
            if let Some(groups) = held.get_mut(&to) {
                groups.push(group);
            }
            for row in Arc::make_mut(&mut self.rows.addresses).values_mut() {
                if row.group == group && row.holder.is_none() {
                    row.holder = Some(to);
                }
            }
            effects.push(Effect::Addresses);
        }
    }

    fn places(&self) -> Places {
        let mut groups = BTreeMap::new();
        for (_, row) in self.addresses() {
            if let Some(holder) = row.holder {
                groups.insert(row.group, holder);
            }
        }
        Places { eligible: self.eligible(), groups }
    }

    /// Gives each dialog the owner that `choose` names.
    fn move_dialogs(
        &mut self,
        choose: impl Fn(&DialogKey, NodeId, u32) -> Option<NodeId>,
        effects: &mut Vec<Effect>,
    ) {
        let moves: Vec<(DialogKey, NodeId, NodeId)> = self
            .dialogs()
            .filter_map(|(key, dialog)| {
                let to = choose(key, dialog.owner, dialog.group)?;
                (to != dialog.owner).then_some((*key, dialog.owner, to))
            })
            .collect();
        let mut lots: BTreeMap<(NodeId, NodeId), Vec<DialogKey>> = BTreeMap::new();
        for (key, from, to) in moves {
            self.give_dialog(&key, to);
            lots.entry((from, to)).or_default().push(key);
        }
        for ((from, to), dialogs) in lots {
            effects.push(Effect::Moved { from, to, dialogs });
        }
    }
}

/// Where a dialog may go.
struct Places {
    eligible: Vec<NodeId>,
    groups: BTreeMap<u32, NodeId>,
}

impl Places {
    /// With its addresses when it has some, else to whoever ranks highest for it.
    fn choose(&self, key: &DialogKey, group: u32) -> Option<NodeId> {
        match self.groups.get(&group) {
            Some(holder) => Some(*holder),
            None => self.eligible.iter().copied().max_by_key(|node| key.rank(*node)),
        }
    }
}
