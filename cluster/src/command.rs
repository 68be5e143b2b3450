//! The writes that the SBC makes to the replicated tables. Built here, applied by `state/`.

use std::time::Duration;

use bytes::Bytes;
use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::command::Op;

use crate::types::{AorKey, DialogKey, NodeId};

/// One write. A command may be applied twice and still means the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Command(pub(crate) pb::Command);

fn ms(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)
}

fn key(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

impl Command {
    pub(crate) fn new(op: Op) -> Self {
        Command(pb::Command { op: Some(op) })
    }

    /// Writes a dialog as ours. `group` is the address group that the call is anchored on: the
    /// dialog follows its addresses; 0 when it is bound to none. `lookups` (at most 8) are the
    /// hashes by which [`Tables::find_dialog`](crate::Tables::find_dialog) finds it. Rejected as
    /// `Fenced` when the dialog is another node's.
    pub fn put_dialog(id: DialogKey, group: u32, lookups: &[u64], value: Bytes) -> Self {
        Command::new(Op::PutDialog(pb::PutDialog {
            id: key(&id.0),
            group,
            lookups: lookups.to_vec(),
            value,
        }))
    }

    /// Ends a dialog. `Done { changed: true }` comes once per dialog in the whole cluster.
    pub fn delete_dialog(id: DialogKey) -> Self {
        Command::new(Op::DeleteDialog(pb::DeleteDialog { id: key(&id.0) }))
    }

    /// Writes one contact of an AOR; it goes by itself `ttl` later. `flow`: it is reached by a
    /// connection of this process alone, and goes when this node is declared down or starts anew.
    pub fn put_binding(aor: AorKey, contact: u64, ttl: Duration, flow: bool, value: Bytes) -> Self {
        let aor = key(&aor.0);
        Command::new(Op::PutBinding(pb::PutBinding { aor, contact, ttl_ms: ms(ttl), value, flow }))
    }

    fn delete(aor: AorKey, contact: u64, all: bool, own: bool) -> Self {
        let aor = key(&aor.0);
        Command::new(Op::DeleteBinding(pb::DeleteBinding { aor, contact, all, own }))
    }

    pub fn delete_binding(aor: AorKey, contact: u64) -> Self {
        Command::delete(aor, contact, false, false)
    }

    /// Deletes a contact if this run of this node wrote it last: what another node has heard since
    /// stands.
    pub fn delete_own_binding(aor: AorKey, contact: u64) -> Self {
        Command::delete(aor, contact, false, true)
    }

    /// Deletes every contact of an AOR.
    pub fn delete_bindings(aor: AorKey) -> Self {
        Command::delete(aor, 0, true, false)
    }

    /// Bans a source, named as the caller likes (at most 256 bytes).
    pub fn put_ban(source: &[u8], ttl: Duration, value: Bytes) -> Self {
        Command::new(Op::PutBan(pb::PutBan { key: key(source), ttl_ms: ms(ttl), value }))
    }

    pub fn delete_ban(source: &[u8]) -> Self {
        Command::new(Op::DeleteBan(pb::DeleteBan { key: key(source) }))
    }

    /// Sets this node's own call counts by trunk (at most 1,024 at once; absolute, 0 removes).
    /// They are dropped when the node goes down: who adopts its calls counts them anew.
    pub fn set_counts(counts: &[(u64, u32)]) -> Self {
        let counts = counts.iter().map(|&(trunk, calls)| pb::Count { trunk, calls }).collect();
        Command::new(Op::SetCounts(pb::SetCounts { counts }))
    }

    /// Sets this node's share of the limit `max` on `trunk`: `want`, but no more than the others
    /// leave, and `least` (what it carries already) in any case. What it got stands in
    /// [`Tables::count_of`](crate::Tables::count_of). When the node goes down its share is kept for
    /// ten seconds, in which those who carry its calls on count them.
    pub fn reserve(trunk: u64, max: u32, want: u32, least: u32) -> Self {
        Command::new(Op::Reserve(pb::Reserve { trunk, max, want, least }))
    }

    /// Writes a setting. Keys below `cluster/` are the crate's own.
    pub fn put_setting(key: &str, value: Bytes) -> Self {
        let key = key.to_owned();
        Command::new(Op::PutSetting(pb::PutSetting { key, value }))
    }

    pub fn delete_setting(key: &str) -> Self {
        let key = key.to_owned();
        Command::new(Op::DeleteSetting(pb::DeleteSetting { key }))
    }

    /// Declares a floating address, opaque here. Addresses of one `group` (not 0) move together.
    pub fn put_address(address: &str, group: u32, prefer: Option<NodeId>) -> Self {
        Command::new(Op::PutAddress(pb::PutAddress {
            address: address.to_owned(),
            group,
            prefer: prefer.map_or(0, |node| node.0),
        }))
    }

    pub fn delete_address(address: &str) -> Self {
        let address = address.to_owned();
        Command::new(Op::DeleteAddress(pb::DeleteAddress { address }))
    }

    /// Asks the holder of a group to let go of it in favour of `to`.
    pub fn move_addresses(group: u32, to: NodeId) -> Self {
        Command::new(Op::MoveAddresses(pb::MoveAddresses { group, to: to.0 }))
    }

    /// Asks a node to move its calls away; `undo` takes it back.
    pub fn drain(node: NodeId, undo: bool) -> Self {
        Command::new(Op::Drain(pb::Drain { id: node.0, undo }))
    }

    /// Removes a node that is down, drained or never came. A living one is drained first.
    pub fn remove_node(node: NodeId) -> Self {
        Command::new(Op::RemoveNode(pb::RemoveNode { id: node.0 }))
    }
}
