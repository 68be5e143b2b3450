//! Follows the rows that change in the replicated tables and gives them to whom they concern: a
//! user's contacts to the shard that owns the user, bans to the guard. After a gap (a snapshot, a
//! slow moment) everything is read again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sbc_cluster::{
    AorKey, Binding, BindingChange, BindingKey, Event, Handle, NodeId, Table, Tables,
};
use sbc_core::core::Input;
use sbc_core::ids::HintKey;
use sbc_core::registrar::{AorState, Held};

use super::bans::ClusterBans;
use super::binding::{self, Names};
use super::link;
use super::tell::Tell;
use crate::config::FailoverMode;
use crate::telemetry::time::unix_ms;

/// Inputs that may wait for full shard queues while everything is read again.
const BACKLOG_MAX: usize = 4_096;

/// What happened, for metrics.
#[derive(Debug, Default)]
pub struct FollowStats {
    /// Addresses of record given to shards.
    pub users: AtomicU64,
    /// Rows that could not be read.
    pub unreadable: AtomicU64,
}

/// What following takes.
pub struct Follow {
    pub handle: Handle,
    pub bans: ClusterBans,
    pub tell: Arc<Tell>,
    pub names: Arc<Names>,
    pub hints: HintKey,
    pub mode: FailoverMode,
    pub stats: Arc<FollowStats>,
}

/// Who can be reached through whom: decides by which way other nodes' contacts are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Living {
    nodes: BTreeSet<NodeId>,
    /// Who holds the floating addresses.
    holders: BTreeSet<NodeId>,
}

impl Living {
    fn of(tables: &Tables) -> Living {
        let nodes = tables.nodes().filter(|(_, n)| n.state.is_live()).map(|(id, _)| id).collect();
        let holders = tables.addresses().filter_map(|(_, address)| address.holder).collect();
        Living { nodes, holders }
    }
}

impl Follow {
    /// Runs until the cluster node stops.
    pub async fn run(self) {
        let mut changes = self.handle.changes();
        let mut events = self.handle.subscribe();
        let mut living = self.handle.read(Living::of);
        self.bans.reload();
        self.everything(&living).await;
        loop {
            tokio::select! {
                change = changes.next() => match change {
                    Some(Event::BanChanged { key, added }) => self.bans.applied(&key, added),
                    Some(Event::BindingChanged { key, change, last }) => {
                        self.binding(key, change, last.as_ref(), &living);
                    }
                    Some(Event::Reloaded) => {
                        self.bans.reload();
                        self.everything(&living).await;
                    }
                    Some(Event::Stopped { .. }) | None => return,
                    Some(_) => {}
                },
                event = events.next() => match event {
                    Some(
                        Event::TableChanged(Table::Nodes | Table::Addresses) | Event::Reloaded,
                    ) => {
                        let now = self.handle.read(Living::of);
                        if now != living {
                            living = now;
                            self.everything(&living).await;
                        }
                    }
                    Some(_) => {}
                    None => return,
                },
            }
        }
    }

    /// One contact changed: its user's shard gets all of them.
    fn binding(
        &self,
        key: BindingKey,
        change: BindingChange,
        last: Option<&Binding>,
        living: &Living,
    ) {
        let rows: Vec<(BindingKey, Binding)> = self.handle.read(|tables| {
            let row = |(contact, row): (u64, &Binding)| {
                (BindingKey { aor: key.aor, contact }, row.clone())
            };
            tables.bindings(key.aor).map(row).collect()
        });
        if change == BindingChange::Put && rows.iter().all(|(_, row)| self.is_ours(row)) {
            // The echo of what the shard wrote itself.
            return;
        }
        let aor =
            rows.first().map(|(_, row)| row).or(last).and_then(|row| binding::aor_of(row.value()));
        let deleted = match change {
            BindingChange::Deleted => vec![key.contact],
            BindingChange::Put | BindingChange::Expired | BindingChange::Void => Vec::new(),
        };
        if let Some(aor) = aor {
            self.give(key.aor, aor, rows.iter().map(|(_, row)| row), deleted, living);
        }
    }

    /// Gives every shard all users that it owns.
    async fn everything(&self, living: &Living) {
        let rows = self.handle.read(Tables::freeze_bindings);
        let mut group: Vec<&Binding> = Vec::new();
        let mut of: Option<AorKey> = None;
        let mut given = 0u32;
        for (key, row) in rows.iter() {
            if let Some(aor) = of.filter(|aor| *aor != key.aor) {
                self.give_group(aor, &group, living);
                group.clear();
                given += 1;
                if given.is_multiple_of(256) {
                    tokio::task::yield_now().await;
                    while self.tell.waiting() > BACKLOG_MAX {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        self.tell.flush();
                    }
                }
            }
            of = Some(key.aor);
            group.push(row);
        }
        if let Some(aor) = of {
            self.give_group(aor, &group, living);
        }
    }

    fn give_group(&self, key: AorKey, rows: &[&Binding], living: &Living) {
        if rows.iter().all(|row| self.is_ours(row)) {
            return;
        }
        if let Some(aor) = rows.first().and_then(|row| binding::aor_of(row.value())) {
            self.give(key, aor, rows.iter().copied(), Vec::new(), living);
        }
    }

    fn give<'a>(
        &self,
        key: AorKey,
        aor: String,
        rows: impl Iterator<Item = &'a Binding>,
        deleted: Vec<u64>,
        living: &Living,
    ) {
        let clock_ms = self.handle.read(Tables::clock_ms);
        let heir = self.is_heir(key, living);
        let mut bindings = Vec::new();
        for row in rows {
            let left_ms = row.expires_ms.saturating_sub(clock_ms);
            let good_until_ms = unix_ms().saturating_add(left_ms);
            match binding::decode(row.value(), row.flow, good_until_ms, &self.names) {
                Ok((_, mut record)) => {
                    let ours = self.is_ours(row);
                    if !ours {
                        let bound = record.conn.is_some() || record.natted;
                        record.conn = self.way(row, bound, record.conn, living);
                    }
                    let (owner, _) = row.writer();
                    let orphan = owner == self.handle.id() || !living.nodes.contains(&owner);
                    bindings.push(Held { record, ours, keeper: orphan && heir });
                }
                Err(error) => {
                    self.stats.unreadable.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(?key, %error, "a binding cannot be used here");
                }
            }
        }
        self.stats.users.fetch_add(1, Ordering::Relaxed);
        let shard = self.tell.shard_of(self.hints.hash(aor.to_ascii_lowercase().as_bytes()).0);
        let state = AorState { aor: aor.into(), bindings, deleted };
        self.tell.tell(shard, Input::Bindings(Box::new(state)));
    }

    /// By which flow of another node a contact is reached; `None` where this node reaches it by
    /// itself, or nobody does. Where addresses move, a datagram leaves from whoever holds them.
    fn way(
        &self,
        row: &Binding,
        bound: bool,
        conn: Option<sbc_core::net::ConnId>,
        living: &Living,
    ) -> Option<sbc_core::net::ConnId> {
        let (owner, _) = row.writer();
        let there = owner != self.handle.id() && living.nodes.contains(&owner);
        let datagram = conn.is_none() && self.mode == FailoverMode::Address;
        (there && bound && !datagram).then(|| link::remote(owner, conn))
    }

    /// This run of this node wrote it.
    fn is_ours(&self, row: &Binding) -> bool {
        row.writer() == (self.handle.id(), self.handle.boot())
    }

    /// Whether this node looks after the users of nodes that are gone: the one with the floating
    /// addresses, or one of the living by the user's name.
    fn is_heir(&self, key: AorKey, living: &Living) -> bool {
        if !living.holders.is_empty() {
            return living.holders.contains(&self.handle.id());
        }
        let at =
            u128::from_be_bytes(key.0) % u128::try_from(living.nodes.len().max(1)).unwrap_or(1);
        let heir = living.nodes.iter().nth(usize::try_from(at).unwrap_or(0));
        heir == Some(&self.handle.id())
    }
}
