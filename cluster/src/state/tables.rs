//! The rows themselves: reads for everybody, and the writes through which alone rows change, so
//! that digest and indexes always agree with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::OWNER_APART;
use super::changes::{Changes, DialogPlace};
use super::cow::CowMap;
use super::digest::Hasher;
use super::record::{
    Address, Ban, BanKey, Binding, BindingKey, Count, Dialog, Lookup, Node, Token,
};
use crate::types::{AorKey, DialogKey, NodeId, Table};

/// The replicated tables at one log index.
#[derive(Clone)]
pub struct Tables {
    /// What a snapshot holds. Cloning it costs a few thousand references.
    pub(super) rows: Rows,
    by_lookup: CowMap<Lookup, DialogKey>,
    changes: Changes,
    /// The highest format version that this node reads. Not replicated.
    pub(super) reads: u32,
}

/// The bindings of one moment.
pub struct BindingRows(CowMap<BindingKey, Binding>);

impl BindingRows {
    /// Contacts of one AOR follow one another.
    pub fn iter(&self) -> impl Iterator<Item = (&BindingKey, &Binding)> {
        self.0.iter()
    }
}

#[derive(Clone)]
pub(super) struct Rows {
    pub(super) dialogs: CowMap<DialogKey, Dialog>,
    pub(super) bindings: CowMap<BindingKey, Binding>,
    pub(super) bans: CowMap<BanKey, Ban>,
    pub(super) nodes: Arc<BTreeMap<NodeId, Node>>,
    pub(super) addresses: Arc<BTreeMap<String, Address>>,
    pub(super) settings: Arc<BTreeMap<String, Arc<[u8]>>>,
    pub(super) counts: Arc<BTreeMap<(u64, NodeId), Count>>,
    pub(super) sessions: Arc<BTreeMap<NodeId, (u64, u64)>>,
    pub(super) tokens: Arc<BTreeMap<[u8; 32], Token>>,
    pub(super) clock_ms: u64,
    pub(super) next_node: u64,
    /// The next chunk whose bindings and bans are looked at for expiry.
    pub(super) sweep: u32,
    pub(super) cluster_id: Arc<[u8]>,
    /// Sum of the fingerprints of dialogs, bindings and bans; the small tables are hashed on demand.
    pub(super) digest: u128,
    /// The format in which dialogs stand in `digest`: [`Rows::format`].
    prints: u32,
}

impl Tables {
    pub(crate) fn new(cluster_id: &[u8]) -> Self {
        Tables {
            rows: Rows {
                dialogs: CowMap::new(),
                bindings: CowMap::new(),
                bans: CowMap::new(),
                nodes: Arc::default(),
                addresses: Arc::default(),
                settings: Arc::default(),
                counts: Arc::default(),
                sessions: Arc::default(),
                tokens: Arc::default(),
                clock_ms: 0,
                next_node: 1,
                sweep: 0,
                cluster_id: cluster_id.into(),
                digest: 0,
                prints: 1,
            },
            by_lookup: CowMap::new(),
            changes: Changes::new(),
            reads: super::FORMAT_VERSION,
        }
    }

    /// The tables a new cluster begins with: its first members, already up.
    pub(crate) fn genesis(cluster_id: &[u8], members: &[(NodeId, Node)]) -> Self {
        let mut tables = Tables::new(cluster_id);
        for (id, node) in members {
            tables.rows.next_node = tables.rows.next_node.max(id.0 + 1);
            tables.put_node(*id, node.clone());
        }
        tables
    }

    pub fn dialog(&self, key: &DialogKey) -> Option<&Dialog> {
        self.rows.dialogs.get(key)
    }

    /// The dialog that was written last with this lookup hash.
    pub fn find_dialog(&self, lookup: u64) -> Option<(DialogKey, &Dialog)> {
        let key = *self.by_lookup.get(&Lookup(lookup))?;
        Some((key, self.rows.dialogs.get(&key)?))
    }

    pub fn dialogs(&self) -> impl Iterator<Item = (&DialogKey, &Dialog)> {
        self.rows.dialogs.iter()
    }

    /// Visits every dialog: for take-over and display, not for a packet's way.
    pub fn dialogs_of(&self, owner: NodeId) -> impl Iterator<Item = (&DialogKey, &Dialog)> {
        self.rows.dialogs.iter().filter(move |(_, dialog)| dialog.owner == owner)
    }

    /// Keys of dialogs that were written, moved or removed since `place`, oldest first and at most
    /// `max`; `None` when a reader must look at all of them. Moves `place` on.
    pub fn dialogs_since(&self, place: &mut DialogPlace, max: usize) -> Option<Vec<DialogKey>> {
        self.changes.since(place, max)
    }

    /// The contacts of an AOR that have not expired.
    pub fn bindings(&self, aor: AorKey) -> impl Iterator<Item = (u64, &Binding)> {
        let first = BindingKey { aor, contact: 0 };
        self.rows
            .bindings
            .range_from(first)
            .take_while(move |(key, _)| key.aor == aor)
            .filter(|(_, binding)| binding.expires_ms > self.rows.clock_ms)
            .map(|(key, binding)| (key.contact, binding))
    }

    /// All bindings as they are now, to be looked at without the lock. Costs a few thousand
    /// references.
    pub fn freeze_bindings(&self) -> BindingRows {
        BindingRows(self.rows.bindings.clone())
    }

    pub fn all_bindings(&self) -> impl Iterator<Item = (&BindingKey, &Binding)> {
        self.rows.bindings.iter()
    }

    pub fn ban(&self, key: &[u8]) -> Option<&Ban> {
        let ban = self.rows.bans.get(&BanKey::from(key))?;
        (ban.expires_ms > self.rows.clock_ms).then_some(ban)
    }

    pub fn bans(&self) -> impl Iterator<Item = (&BanKey, &Ban)> {
        self.rows.bans.iter().filter(|(_, ban)| ban.expires_ms > self.rows.clock_ms)
    }

    /// The version in which entries and snapshots are to be written: what every member reads, be it
    /// up or down.
    pub fn format(&self) -> u32 {
        self.rows.format()
    }

    /// Whether these tables are of a time after the node was given its id.
    #[cfg(test)]
    pub(crate) fn gave_out(&self, id: NodeId) -> bool {
        id.0 < self.rows.next_node
    }

    /// Lets this node read up to another version than its build's; for tests of later releases.
    pub(crate) fn read_up_to(&mut self, format: u32) {
        self.reads = format;
    }

    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.rows.nodes.get(&id)
    }

    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.rows.nodes.iter().map(|(id, node)| (*id, node))
    }

    pub fn address(&self, address: &str) -> Option<&Address> {
        self.rows.addresses.get(address)
    }

    pub fn addresses(&self) -> impl Iterator<Item = (&str, &Address)> {
        self.rows.addresses.iter().map(|(name, row)| (name.as_str(), row))
    }

    /// A setting; those of the cluster itself (`cluster/`) are not shown.
    pub fn setting(&self, key: &str) -> Option<&[u8]> {
        if key.starts_with(super::apply::RESERVED) {
            return None;
        }
        self.reserved_setting(key)
    }

    /// A setting of a cluster that is being made.
    pub(crate) fn preset(&mut self, key: &str, value: &[u8]) {
        Arc::make_mut(&mut self.rows.settings).insert(key.to_owned(), value.into());
    }

    pub(crate) fn reserved_setting(&self, key: &str) -> Option<&[u8]> {
        self.rows.settings.get(key).map(|value| &**value)
    }

    /// Settings by prefix, in order. Keys below `cluster/` are the crate's own and are left out.
    pub fn settings(&self, prefix: &str) -> impl Iterator<Item = (&str, &[u8])> {
        self.rows
            .settings
            .range(prefix.to_owned()..)
            .take_while(move |(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| !key.starts_with(super::apply::RESERVED))
            .map(|(key, value)| (key.as_str(), &**value))
    }

    /// Calls of a trunk over all nodes; where shares are taken, all shares.
    pub fn count(&self, trunk: u64) -> u64 {
        self.rows
            .counts
            .range((trunk, NodeId(0))..=(trunk, NodeId(u64::MAX)))
            .map(|(_, count)| u64::from(count.calls))
            .sum()
    }

    /// Calls of a trunk on one node.
    pub fn count_of(&self, trunk: u64, node: NodeId) -> u32 {
        self.rows.counts.get(&(trunk, node)).map_or(0, |count| count.calls)
    }

    /// The cluster's own clock in milliseconds; goes on by the log alone.
    pub fn clock_ms(&self) -> u64 {
        self.rows.clock_ms
    }

    pub fn cluster_id(&self) -> &[u8] {
        &self.rows.cluster_id
    }

    pub fn len(&self, table: Table) -> usize {
        match table {
            Table::Dialogs => self.rows.dialogs.len(),
            Table::Bindings => self.rows.bindings.len(),
            Table::Bans => self.rows.bans.len(),
            Table::Nodes => self.rows.nodes.len(),
            Table::Addresses => self.rows.addresses.len(),
            Table::Settings => self.rows.settings.len(),
            Table::Counts => self.rows.counts.len(),
            Table::Tokens => self.rows.tokens.len(),
        }
    }

    /// Whether a token with this hash is outstanding or was used lately.
    pub(crate) fn has_token(&self, hash: &[u8; 32]) -> bool {
        self.rows.tokens.contains_key(hash)
    }

    /// Equal on two nodes exactly when their tables are equal (but for a 2⁻¹²⁸ chance).
    pub fn digest(&self) -> u128 {
        self.rows.digest()
    }

    pub(super) fn session(&self, node: NodeId) -> Option<(u64, u64)> {
        self.rows.sessions.get(&node).copied()
    }

    /// The last proposal of a node that was applied: its boot and sequence numbers.
    pub(crate) fn session_of(&self, node: NodeId) -> (u64, u64) {
        self.session(node).unwrap_or((0, 0))
    }

    pub(super) fn set_session(&mut self, node: NodeId, boot: u64, seq: u64) {
        // A node that is not a member leaves no session behind.
        if self.rows.nodes.contains_key(&node) {
            Arc::make_mut(&mut self.rows.sessions).insert(node, (boot, seq));
        }
    }

    pub(super) fn drop_session(&mut self, node: NodeId) {
        Arc::make_mut(&mut self.rows.sessions).remove(&node);
    }

    pub(super) fn put_dialog(&mut self, key: DialogKey, dialog: Dialog) {
        self.take_dialog(&key);
        for lookup in dialog.lookups() {
            self.by_lookup.insert(Lookup(lookup), key);
        }
        let print = dialog.fingerprint(&key, self.rows.prints);
        self.rows.digest = self.rows.digest.wrapping_add(print);
        self.rows.dialogs.insert(key, dialog);
        self.changes.note(key);
    }

    /// Gives a dialog another owner. Nobody hears the calls of a dead node before this was done for
    /// all of them.
    pub(super) fn give_dialog(&mut self, key: &DialogKey, to: NodeId) {
        let Some(dialog) = self.rows.dialogs.get_mut(key) else { return };
        let print = |dialog: &Dialog| match self.rows.prints {
            OWNER_APART.. => key.owned_by(dialog.owner),
            version => dialog.fingerprint(key, version),
        };
        let before = print(dialog);
        dialog.owner = to;
        self.rows.digest = self.rows.digest.wrapping_sub(before).wrapping_add(print(dialog));
        self.changes.note(*key);
    }

    pub(super) fn remove_dialog(&mut self, key: &DialogKey) -> bool {
        let removed = self.take_dialog(key);
        if removed {
            self.changes.note(*key);
        }
        removed
    }

    fn take_dialog(&mut self, key: &DialogKey) -> bool {
        let Some(old) = self.rows.dialogs.remove(key) else {
            return false;
        };
        for lookup in old.lookups().map(Lookup) {
            if self.by_lookup.get(&lookup) == Some(key) {
                self.by_lookup.remove(&lookup);
            }
        }
        let print = old.fingerprint(key, self.rows.prints);
        self.rows.digest = self.rows.digest.wrapping_sub(print);
        true
    }

    pub(super) fn put_binding(&mut self, key: BindingKey, binding: Binding) {
        self.remove_binding(&key);
        self.rows.digest = self.rows.digest.wrapping_add(binding.fingerprint(&key));
        self.rows.bindings.insert(key, binding);
    }

    pub(super) fn remove_binding(&mut self, key: &BindingKey) -> bool {
        let Some(old) = self.rows.bindings.remove(key) else {
            return false;
        };
        self.rows.digest = self.rows.digest.wrapping_sub(old.fingerprint(key));
        true
    }

    pub(super) fn put_ban(&mut self, key: BanKey, ban: Ban) {
        self.remove_ban(&key);
        self.rows.digest = self.rows.digest.wrapping_add(ban.fingerprint(&key));
        self.rows.bans.insert(key, ban);
    }

    pub(super) fn remove_ban(&mut self, key: &BanKey) -> bool {
        let Some(old) = self.rows.bans.remove(key) else {
            return false;
        };
        self.rows.digest = self.rows.digest.wrapping_sub(old.fingerprint(key));
        true
    }

    pub(super) fn put_node(&mut self, id: NodeId, node: Node) {
        Arc::make_mut(&mut self.rows.nodes).insert(id, node);
        self.rows.follow_format();
    }

    pub(super) fn remove_node(&mut self, id: NodeId) {
        Arc::make_mut(&mut self.rows.nodes).remove(&id);
        self.rows.follow_format();
    }
}

impl Rows {
    pub(super) fn format(&self) -> u32 {
        self.nodes.values().map(|node| node.format).min().unwrap_or(1)
    }

    /// All nodes come to the same digest at the same entry, whatever they were built for.
    fn follow_format(&mut self) {
        let (before, now) = (self.prints, self.format());
        self.prints = now;
        if (before < OWNER_APART) == (now < OWNER_APART) {
            return;
        }
        for (key, dialog) in self.dialogs.iter() {
            let (before, now) = (dialog.fingerprint(key, before), dialog.fingerprint(key, now));
            self.digest = self.digest.wrapping_sub(before).wrapping_add(now);
        }
    }

    pub(super) fn digest(&self) -> u128 {
        let mut hasher = Hasher::new(9)
            .u64(self.clock_ms)
            .u64(self.next_node)
            .u64(u64::from(self.sweep))
            .bytes(&self.cluster_id);
        for (id, node) in &*self.nodes {
            hasher = hasher
                .u64(id.0)
                .bytes(node.name.as_bytes())
                .bytes(node.address.as_bytes())
                .bytes(node.state.to_pb().as_str_name().as_bytes())
                .u64(node.epoch)
                .u64(u64::from(node.voter))
                .bytes(node.software.as_bytes())
                .u64(u64::from(node.format));
            if node.drains != 0 {
                hasher = hasher.u64(node.drains);
            }
        }
        for (name, row) in &*self.addresses {
            let record = row.to_pb(name);
            hasher = hasher
                .bytes(name.as_bytes())
                .u64(u64::from(record.group))
                .u64(record.holder)
                .u64(record.next)
                .u64(record.prefer);
            if record.asked != 0 {
                hasher = hasher.u64(record.asked);
            }
        }
        for (key, value) in &*self.settings {
            hasher = hasher.bytes(key.as_bytes()).bytes(value);
        }
        for ((trunk, node), count) in &*self.counts {
            let calls = u64::from(count.calls);
            hasher = hasher.u64(*trunk).u64(node.0).u64(calls).u64(count.until_ms);
        }
        for (node, (boot, seq)) in &*self.sessions {
            hasher = hasher.u64(node.0).u64(*boot).u64(*seq);
        }
        for (hash, token) in &*self.tokens {
            let used_by = token.used_by.map_or(0, |node| node.0);
            hasher = hasher.bytes(hash).u64(token.expires_ms).u64(used_by);
            if let Some(joiner) = &token.joiner {
                hasher = hasher.bytes(joiner);
            }
        }
        self.digest.wrapping_add(hasher.finish())
    }
}
