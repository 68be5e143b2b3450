//! The replicated state machine: tables, and what a log entry does to them. A pure function of the
//! log, so that every node has the same tables at the same index ([`Tables::digest`] compares
//! them). Knows no clock, no network and nothing of SIP.
//!
//! `tables.rs` holds the rows and keeps the digest, `apply.rs` the commands of dialogs, bindings
//! and settings, `ownership.rs` who holds what (nodes, addresses, hand-over), `snapshot.rs` the
//! file form, `changes.rs` what changed lately, `cow.rs` the map under it all, `packed.rs` what lies
//! behind a row.

mod apply;
mod changes;
mod cow;
mod digest;
mod ownership;
mod packed;
mod record;
mod snapshot;
mod tables;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use prost::Message as _;
use sbc_proto::cluster::v1 as pb;

pub use changes::DialogPlace;
pub(crate) use digest::Hasher;
#[cfg(test)]
pub(crate) use digest::spread;
pub(crate) use record::node_id;
pub use record::{Address, Ban, BanKey, Binding, BindingKey, Dialog, Next, Node, NodeState};
pub use snapshot::SnapshotError;
pub(crate) use snapshot::{Frozen, Position};
pub use tables::{BindingRows, Tables};

use crate::types::{BindingChange, DialogKey, NodeId, Outcome, Rejection, Table};

/// The highest version of commands and snapshots that this build reads. It writes what every member
/// reads ([`Tables::format`]).
///
/// - 1: the first.
/// - 2: a token that was used knows by whose key ([`JOINER_KEPT`]).
/// - 3: the owner of a dialog is apart in its fingerprint ([`OWNER_APART`]).
pub const FORMAT_VERSION: u32 = 3;

/// The version since which a used token remembers its joiner.
pub(crate) const JOINER_KEPT: u32 = 2;

/// The version since which a dialog that changes hands is not hashed anew.
pub(crate) const OWNER_APART: u32 = 3;

/// What a command changed that somebody outside may have to act upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// These dialogs went from one node to another.
    Moved {
        from: NodeId,
        to: NodeId,
        dialogs: Vec<DialogKey>,
    },
    /// Holders of addresses changed.
    Addresses,
    /// A node was added, removed, or changed its state.
    Nodes,
    Setting(String),
    Ban {
        key: BanKey,
        added: bool,
    },
    Binding {
        key: BindingKey,
        change: BindingChange,
        /// The row that is gone.
        last: Option<Binding>,
    },
}

/// The result of one entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    /// The proposal it came from; `None` for entries without a session.
    pub(crate) origin: Option<Origin>,
    /// `None` when the entry was a repetition, or came before its turn: nothing was done, and the
    /// proposer is to look at its session.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) effects: Vec<Effect>,
}

/// Identifies a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) node: NodeId,
    pub(crate) boot: u64,
    pub(crate) seq: u64,
}

/// The log holds what this build cannot read: going on would diverge from the others.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("log entry {index} has format version {version}, this build reads up to {reads}")]
pub(crate) struct UnsupportedVersion {
    pub(crate) index: u64,
    pub(crate) version: u32,
    pub(crate) reads: u32,
}

impl Tables {
    /// Applies the entry at `index`. An entry that does not decode is counted as rejected: the same
    /// bytes fail on every node.
    pub(crate) fn apply(&mut self, index: u64, data: Bytes) -> Result<Applied, UnsupportedVersion> {
        let mut applied = Applied {
            origin: None,
            outcome: Some(Outcome::Rejected(Rejection::Malformed)),
            effects: Vec::new(),
        };
        let Ok(proposal) = pb::Proposal::decode(data) else {
            return Ok(applied);
        };
        let reads = self.reads;
        if proposal.version > reads {
            return Err(UnsupportedVersion { index, version: proposal.version, reads });
        }
        if proposal.node != 0 {
            applied.origin = Some(Origin {
                node: NodeId(proposal.node),
                boot: proposal.boot,
                seq: proposal.seq,
            });
            if !self.admit(&proposal, &mut applied.effects) {
                applied.outcome = None;
                return Ok(applied);
            }
        }
        let writer = Writer {
            version: proposal.version,
            node: NodeId(proposal.node),
            boot: proposal.boot,
            epoch: proposal.epoch,
            index,
        };
        let op = proposal.command.and_then(|command| command.op);
        let result = match op {
            Some(op) => self.execute(writer, op, &mut applied.effects),
            None => Err(Rejection::Unknown),
        };
        applied.outcome = Some(result.unwrap_or_else(Outcome::Rejected));
        Ok(applied)
    }

    /// Takes a session one proposal on. False for a repetition, and for a proposal whose
    /// predecessor has not been applied: it was lost on the way and will come again.
    fn admit(&mut self, proposal: &pb::Proposal, effects: &mut Vec<Effect>) -> bool {
        let node = NodeId(proposal.node);
        let (boot, seq) = self.session(node).unwrap_or((0, 0));
        let last = match proposal.boot.cmp(&boot) {
            std::cmp::Ordering::Less => return false,
            std::cmp::Ordering::Equal => seq,
            std::cmp::Ordering::Greater => 0,
        };
        if proposal.seq <= last || proposal.prev > last {
            return false;
        }
        self.set_session(node, proposal.boot, proposal.seq);
        if proposal.boot > boot && boot != 0 {
            // Its process was started anew: the connections of the former one are gone.
            self.void_flows(node, proposal.boot, effects);
        }
        true
    }
}

/// Who writes, in which version, and where in the log.
#[derive(Clone, Copy)]
struct Writer {
    version: u32,
    node: NodeId,
    boot: u64,
    epoch: u64,
    index: u64,
}

impl Table {
    /// The most rows a table may have; what comes beyond is rejected as
    /// [`Full`](Rejection::Full). Part of the format: all nodes must agree.
    pub(crate) fn rows_max(self) -> usize {
        match self {
            Table::Dialogs => 1_000_000,
            Table::Bindings => 4_000_000,
            Table::Bans => 500_000,
            Table::Nodes => 64,
            Table::Addresses => 1_024,
            Table::Settings => 65_536,
            Table::Counts => 262_144,
            Table::Tokens => 1_024,
        }
    }
}
