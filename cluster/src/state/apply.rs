//! What each command does to dialogs, bindings, bans, counts, settings and tokens. Every command
//! may come twice and still means the same. Who holds what is `ownership.rs`.

use std::sync::Arc;

use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::command::Op;

use super::cow::CHUNKS;
use super::record::{Ban, BanKey, Binding, BindingKey, Count, Dialog, Token};
use super::tables::Tables;
use super::{Effect, Writer};
use crate::types::{AorKey, BindingChange, DialogKey, NodeId, Outcome, Rejection, Table};

/// Settings of the cluster itself; not shown to readers.
pub(super) const RESERVED: &str = "cluster/";

const VALUE_BYTES_MAX: usize = 256 * 1024;
const BAN_KEY_BYTES_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 256;
const LOOKUPS_MAX: usize = 8;
const COUNTS_MAX: usize = 1_024;

/// Chunks looked at per clock command: the whole table in sixteen.
const SWEEP_CHUNKS: usize = CHUNKS / 16;

type Result<T = Outcome> = std::result::Result<T, Rejection>;

const CHANGED: Outcome = Outcome::Done { changed: true };

fn done(changed: bool) -> Outcome {
    Outcome::Done { changed }
}

fn key16(bytes: &[u8]) -> Result<[u8; 16]> {
    bytes.try_into().map_err(|_| Rejection::Malformed)
}

fn value(bytes: &[u8]) -> Result<&[u8]> {
    if bytes.len() > VALUE_BYTES_MAX {
        return Err(Rejection::Malformed);
    }
    Ok(bytes)
}

pub(super) fn name(text: &str) -> Result<&str> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX {
        return Err(Rejection::Malformed);
    }
    Ok(text)
}

fn setting_key(key: &str) -> Result<&str> {
    if key.starts_with(RESERVED) {
        return Err(Rejection::Malformed);
    }
    name(key)
}

impl Tables {
    pub(super) fn execute(&mut self, writer: Writer, op: Op, effects: &mut Vec<Effect>) -> Result {
        match op {
            Op::PutDialog(op) => self.exec_put_dialog(writer, &op),
            Op::DeleteDialog(op) => self.exec_delete_dialog(writer, &op),
            Op::PutBinding(op) => self.exec_put_binding(writer, &op, effects),
            Op::DeleteBinding(op) => self.exec_delete_binding(writer, &op, effects),
            Op::PutBan(op) => self.exec_put_ban(&op, effects),
            Op::DeleteBan(op) => Ok(done(self.exec_delete_ban(&op, effects))),
            Op::SetCounts(op) => self.exec_set_counts(writer, &op),
            Op::Reserve(op) => self.exec_reserve(writer, &op),
            Op::PutSetting(op) => self.exec_put_setting(op, effects),
            Op::DeleteSetting(op) => self.exec_delete_setting(op, effects),
            Op::PutToken(op) => self.exec_put_token(&op),
            Op::Clock(op) => Ok(self.exec_clock(&op, effects)),
            Op::PutAddress(op) => self.exec_put_address(op, effects),
            Op::DeleteAddress(op) => self.exec_delete_address(writer, &op, effects),
            Op::MoveAddresses(op) => self.exec_move_addresses(writer, &op, effects),
            Op::ReleaseAddresses(op) => self.exec_release_addresses(&op, effects),
            Op::AddNode(op) => self.exec_add_node(writer, op, effects),
            Op::RemoveNode(op) => self.exec_remove_node(&op, effects),
            Op::NodeUp(op) => self.exec_node_up(&op, effects),
            Op::NodeDown(op) => self.exec_node_down(&op, effects),
            Op::UpdateNode(op) => self.exec_update_node(op, effects),
            Op::Drain(op) => self.exec_drain(&op, effects),
            Op::HandOver(op) => self.exec_hand_over(&op, effects),
            Op::SetFormat(op) => self.exec_set_format(&op, effects),
        }
    }

    /// A writer that was declared down since it wrote is refused: its calls are another's.
    fn fence(&self, writer: Writer) -> Result<()> {
        match self.node(writer.node) {
            Some(node) if node.state.is_live() && node.epoch == writer.epoch => Ok(()),
            Some(_) | None => Err(Rejection::Fenced),
        }
    }

    fn exec_put_dialog(&mut self, writer: Writer, op: &pb::PutDialog) -> Result {
        let key = DialogKey(key16(&op.id)?);
        let value = value(&op.value)?;
        if op.lookups.len() > LOOKUPS_MAX {
            return Err(Rejection::Malformed);
        }
        self.fence(writer)?;
        match self.dialog(&key) {
            Some(old) if old.owner != writer.node => return Err(Rejection::Fenced),
            Some(_) => {}
            None if self.len(Table::Dialogs) >= Table::Dialogs.rows_max() => {
                return Err(Rejection::Full);
            }
            None => {}
        }
        let dialog = Dialog::new(writer.node, writer.index, op.group, &op.lookups, value);
        self.put_dialog(key, dialog);
        Ok(CHANGED)
    }

    fn exec_delete_dialog(&mut self, writer: Writer, op: &pb::DeleteDialog) -> Result {
        let key = DialogKey(key16(&op.id)?);
        self.fence(writer)?;
        match self.dialog(&key) {
            Some(old) if old.owner != writer.node => Err(Rejection::Fenced),
            Some(_) => Ok(done(self.remove_dialog(&key))),
            None => Ok(done(false)),
        }
    }

    fn exec_put_binding(
        &mut self,
        writer: Writer,
        op: &pb::PutBinding,
        effects: &mut Vec<Effect>,
    ) -> Result {
        let key = BindingKey { aor: AorKey(key16(&op.aor)?), contact: op.contact };
        let value = value(&op.value)?;
        if op.flow {
            // A connection of a process that was declared down counts for nothing until it is back.
            self.fence(writer)?;
        }
        let new = self.rows.bindings.get(&key).is_none();
        if new && self.len(Table::Bindings) >= Table::Bindings.rows_max() {
            return Err(Rejection::Full);
        }
        let expires_ms = self.rows.clock_ms.saturating_add(op.ttl_ms);
        let by = (writer.node, writer.boot);
        let binding = Binding::new(by, writer.index, expires_ms, op.flow, value);
        self.put_binding(key, binding);
        effects.push(Effect::Binding { key, change: BindingChange::Put, last: None });
        Ok(CHANGED)
    }

    fn exec_delete_binding(
        &mut self,
        writer: Writer,
        op: &pb::DeleteBinding,
        effects: &mut Vec<Effect>,
    ) -> Result {
        let aor = AorKey(key16(&op.aor)?);
        let first = BindingKey { aor, contact: if op.all { 0 } else { op.contact } };
        let keys: Vec<BindingKey> = self
            .rows
            .bindings
            .range_from(first)
            .take_while(|(key, _)| key.aor == aor && (op.all || key.contact == op.contact))
            .filter(|(_, row)| !op.own || row.writer() == (writer.node, writer.boot))
            .map(|(key, _)| *key)
            .collect();
        for key in &keys {
            self.drop_binding(*key, BindingChange::Deleted, effects);
        }
        Ok(done(!keys.is_empty()))
    }

    fn drop_binding(&mut self, key: BindingKey, change: BindingChange, effects: &mut Vec<Effect>) {
        let last = self.rows.bindings.get(&key).cloned();
        if self.remove_binding(&key) {
            effects.push(Effect::Binding { key, change, last });
        }
    }

    /// The connections of a node's process are gone: what was reached by them alone goes too. Only
    /// runs before `boot` are meant.
    pub(super) fn void_flows(&mut self, node: NodeId, boot: u64, effects: &mut Vec<Effect>) {
        let voids = |(owner, run): (NodeId, u64)| owner == node && run < boot;
        let keys: Vec<BindingKey> = self
            .all_bindings()
            .filter(|(_, row)| row.flow && voids(row.writer()))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.drop_binding(key, BindingChange::Void, effects);
        }
    }

    fn exec_put_ban(&mut self, op: &pb::PutBan, effects: &mut Vec<Effect>) -> Result {
        if op.key.is_empty() || op.key.len() > BAN_KEY_BYTES_MAX {
            return Err(Rejection::Malformed);
        }
        let key: BanKey = (&*op.key).into();
        let value = value(&op.value)?;
        let new = self.rows.bans.get(&key).is_none();
        if new && self.len(Table::Bans) >= Table::Bans.rows_max() {
            return Err(Rejection::Full);
        }
        let expires_ms = self.rows.clock_ms.saturating_add(op.ttl_ms);
        self.put_ban(Arc::clone(&key), Ban { expires_ms, value: value.into() });
        effects.push(Effect::Ban { key, added: true });
        Ok(CHANGED)
    }

    fn exec_delete_ban(&mut self, op: &pb::DeleteBan, effects: &mut Vec<Effect>) -> bool {
        let key: BanKey = (&*op.key).into();
        let changed = self.remove_ban(&key);
        if changed {
            effects.push(Effect::Ban { key, added: false });
        }
        changed
    }

    fn exec_set_counts(&mut self, writer: Writer, op: &pb::SetCounts) -> Result {
        if op.counts.len() > COUNTS_MAX {
            return Err(Rejection::Malformed);
        }
        self.fence(writer)?;
        let counts = Arc::make_mut(&mut self.rows.counts);
        for count in &op.counts {
            let key = (count.trunk, writer.node);
            if count.calls == 0 {
                counts.remove(&key);
            } else if counts.len() < Table::Counts.rows_max() || counts.contains_key(&key) {
                counts.insert(key, Count { calls: count.calls, until_ms: 0 });
            } else {
                return Err(Rejection::Full);
            }
        }
        Ok(CHANGED)
    }

    /// The sum of all shares stays within the limit, but for what is carried already.
    fn exec_reserve(&mut self, writer: Writer, op: &pb::Reserve) -> Result {
        self.fence(writer)?;
        let key = (op.trunk, writer.node);
        let own = self.rows.counts.get(&key).copied();
        let held = own.map_or(0, |count| u64::from(count.calls));
        let others = self.count(op.trunk).saturating_sub(held);
        let left = u64::from(op.max).saturating_sub(others);
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        let calls = op.want.min(left).max(op.least);
        let new = Count { calls, until_ms: 0 };
        if own == Some(new) || (own.is_none() && calls == 0) {
            return Ok(done(false));
        }
        let full = self.len(Table::Counts) >= Table::Counts.rows_max();
        let counts = Arc::make_mut(&mut self.rows.counts);
        match (calls, own) {
            (0, _) => drop(counts.remove(&key)),
            (_, None) if full => return Err(Rejection::Full),
            (_, _) => drop(counts.insert(key, new)),
        }
        Ok(CHANGED)
    }

    fn exec_put_setting(&mut self, op: pb::PutSetting, effects: &mut Vec<Effect>) -> Result {
        setting_key(&op.key)?;
        let value = value(&op.value)?;
        let full = self.len(Table::Settings) >= Table::Settings.rows_max();
        let settings = Arc::make_mut(&mut self.rows.settings);
        match settings.get(&op.key) {
            Some(old) if **old == *value => return Ok(done(false)),
            Some(_) => {}
            None if full => return Err(Rejection::Full),
            None => {}
        }
        settings.insert(op.key.clone(), value.into());
        effects.push(Effect::Setting(op.key));
        Ok(CHANGED)
    }

    fn exec_delete_setting(&mut self, op: pb::DeleteSetting, effects: &mut Vec<Effect>) -> Result {
        setting_key(&op.key)?;
        let changed = Arc::make_mut(&mut self.rows.settings).remove(&op.key).is_some();
        if changed {
            effects.push(Effect::Setting(op.key));
        }
        Ok(done(changed))
    }

    fn exec_put_token(&mut self, op: &pb::PutToken) -> Result {
        let hash: [u8; 32] = (&*op.hash).try_into().map_err(|_| Rejection::Malformed)?;
        if self.has_token(&hash) {
            // Said again: who has used it meanwhile stays known, so that it lets nobody else in.
            return Ok(done(false));
        }
        if self.len(Table::Tokens) >= Table::Tokens.rows_max() {
            return Err(Rejection::Full);
        }
        let expires_ms = self.rows.clock_ms.saturating_add(op.ttl_ms);
        let token = Token { expires_ms, used_by: None, joiner: None };
        Arc::make_mut(&mut self.rows.tokens).insert(hash, token);
        Ok(CHANGED)
    }

    fn exec_clock(&mut self, op: &pb::Clock, effects: &mut Vec<Effect>) -> Outcome {
        if op.now_ms <= self.rows.clock_ms {
            return done(false);
        }
        let now_ms = op.now_ms;
        self.rows.clock_ms = now_ms;
        let first = usize::try_from(self.rows.sweep).unwrap_or(0) % CHUNKS;
        for n in (first..first + SWEEP_CHUNKS).map(|n| n % CHUNKS) {
            self.expire_chunk(n, now_ms, effects);
        }
        self.rows.sweep = u32::try_from((first + SWEEP_CHUNKS) % CHUNKS).unwrap_or(0);
        let over = |count: &Count| count.until_ms != 0 && count.until_ms <= now_ms;
        if self.rows.counts.values().any(over) {
            Arc::make_mut(&mut self.rows.counts).retain(|_, count| !over(count));
        }
        if self.rows.tokens.values().any(|token| token.expires_ms <= now_ms) {
            Arc::make_mut(&mut self.rows.tokens).retain(|_, token| token.expires_ms > now_ms);
        }
        CHANGED
    }

    fn expire_chunk(&mut self, n: usize, now_ms: u64, effects: &mut Vec<Effect>) {
        let bindings: Vec<BindingKey> = self
            .rows
            .bindings
            .chunk(n)
            .filter(|(_, binding)| binding.expires_ms <= now_ms)
            .map(|(key, _)| *key)
            .collect();
        for key in bindings {
            self.drop_binding(key, BindingChange::Expired, effects);
        }
        let bans: Vec<BanKey> = self
            .rows
            .bans
            .chunk(n)
            .filter(|(_, ban)| ban.expires_ms <= now_ms)
            .map(|(key, _)| Arc::clone(key))
            .collect();
        for key in bans {
            self.remove_ban(&key);
            effects.push(Effect::Ban { key, added: false });
        }
    }
}
