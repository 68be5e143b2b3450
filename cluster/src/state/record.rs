//! The rows of the replicated tables as they lie in memory, and their forms on the wire.

use std::sync::Arc;

use sbc_proto::cluster::v1 as pb;

use super::OWNER_APART;
use super::cow::ChunkKey;
use super::digest::{Hasher, spread};
use super::packed::Packed;
use crate::types::{AorKey, DialogKey, NodeId};

/// A call that another node could carry on. Copies share what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialog {
    /// Who carries it. Changed only by the log.
    pub owner: NodeId,
    /// The address group it is anchored on; 0 when it goes wherever there is room.
    pub group: u32,
    /// Index, number of lookups; the lookups and the value.
    rest: Packed,
}

/// One contact of an address of record. Copies share what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// On the cluster's clock ([`Tables::clock_ms`](super::Tables::clock_ms)).
    pub expires_ms: u64,
    /// Reached by a connection of the owner alone: goes with the owner's process.
    pub flow: bool,
    /// Index, owner, boot; the value.
    rest: Packed,
}

/// A banned source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    pub expires_ms: u64,
    pub value: Arc<[u8]>,
}

/// What a node has of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) calls: u32,
    /// The node is gone: its calls are being counted by those who carry them on, and until then the
    /// share is nobody's. 0 while it lives.
    pub(crate) until_ms: u64,
}

/// The state of a member, as the log knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeState {
    /// Admitted, has not been heard of yet.
    Joining,
    /// Holds its lease.
    Up,
    /// Lives, takes no new work, is moving its calls away.
    Draining,
    /// Lives and carries nothing: safe to stop.
    Drained,
    /// Lost its lease.
    Down,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The name it was given (host name, StatefulSet ordinal).
    pub name: String,
    /// Where its channel listens, `host:port`.
    pub address: String,
    pub state: NodeState,
    /// Raised each time it loses what it held; writes of an older epoch are refused.
    pub epoch: u64,
    /// Whether it is to vote once it has caught up.
    pub voter: bool,
    pub software: String,
    /// Up to which format version of commands and snapshots it reads.
    pub format: u32,
    /// How often it began to drain: says which drain a hand-over belongs to.
    pub drains: u64,
}

/// A floating address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub group: u32,
    pub holder: Option<NodeId>,
    pub next: Next,
    pub prefer: Option<NodeId>,
    /// The log index at which the holder was last asked to let go: says which asking a release
    /// answers.
    pub asked: u64,
}

/// What is to become of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Stay,
    /// The holder is asked to let go in favour of another.
    Move(NodeId),
    /// The holder is asked to let go; the address is then forgotten.
    Delete,
}

/// Leave to join, for one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) expires_ms: u64,
    pub(crate) used_by: Option<NodeId>,
    /// SHA-256 of the key of whom used it; `None` where the entry was of a version before
    /// [`JOINER_KEPT`](super::JOINER_KEPT).
    pub(crate) joiner: Option<[u8; 32]>,
}

/// Where a binding lies: all contacts of an AOR beside one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BindingKey {
    pub aor: AorKey,
    pub contact: u64,
}

/// A banned source's name, as the caller writes it.
pub type BanKey = Arc<[u8]>;

fn halves(key: &[u8; 16]) -> (u64, u64) {
    let n = u128::from_be_bytes(*key);
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    let low = n as u64;
    (u64::try_from(n >> 64).unwrap_or(0), low)
}

impl ChunkKey for DialogKey {
    fn hash(&self) -> u64 {
        let (a, b) = halves(&self.0);
        spread(a, b)
    }
}

impl ChunkKey for BindingKey {
    fn hash(&self) -> u64 {
        let (a, b) = halves(&self.aor.0);
        spread(a, b)
    }
}

/// A hash by which a dialog is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lookup(pub(super) u64);

impl ChunkKey for Lookup {
    fn hash(&self) -> u64 {
        spread(self.0, 0)
    }
}

impl ChunkKey for BanKey {
    fn hash(&self) -> u64 {
        let digest = Hasher::new(0).bytes(self).finish();
        u64::try_from(digest >> 64).unwrap_or(0)
    }
}

impl DialogKey {
    /// The owner's part of the fingerprint.
    pub(super) fn owned_by(&self, owner: NodeId) -> u128 {
        Hasher::new(4).bytes(&self.0).u64(owner.0).finish()
    }

    /// The node's rank for this dialog: the highest takes it when its owner is gone.
    pub(crate) fn rank(&self, node: NodeId) -> u64 {
        spread(self.hash(), node.0)
    }
}

impl Dialog {
    pub(super) fn new(
        owner: NodeId,
        index: u64,
        group: u32,
        lookups: &[u64],
        value: &[u8],
    ) -> Dialog {
        let rest = Packed::new(&[index, lookups.len() as u64], lookups, value);
        Dialog { owner, group, rest }
    }

    fn parts(&self) -> (u64, &[[u8; 8]], &[u8]) {
        let ([index, lookups], rest) = self.rest.numbers();
        let bytes = usize::try_from(lookups).unwrap_or(0) * size_of::<u64>();
        let (lookups, value) = rest.split_at_checked(bytes).unwrap_or((&[], rest));
        (index, lookups.as_chunks().0, value)
    }

    /// The log index of the last write.
    pub fn index(&self) -> u64 {
        self.parts().0
    }

    /// Hashes by which an in-dialog request finds it.
    pub fn lookups(&self) -> impl Iterator<Item = u64> {
        self.parts().1.iter().map(|lookup| u64::from_le_bytes(*lookup))
    }

    /// The caller's record, opaque here.
    pub fn value(&self) -> &[u8] {
        self.parts().2
    }

    /// In format `version`. From [`OWNER_APART`] on the sum of what the row says and
    /// of whose it is, so that thousands of calls change hands without being hashed.
    pub(crate) fn fingerprint(&self, key: &DialogKey, version: u32) -> u128 {
        let apart = version >= OWNER_APART;
        let mut hasher = Hasher::new(1).bytes(&key.0);
        if !apart {
            hasher = hasher.u64(self.owner.0);
        }
        hasher = hasher.u64(self.index()).u64(u64::from(self.group));
        for lookup in self.lookups() {
            hasher = hasher.u64(lookup);
        }
        let row = hasher.bytes(self.value()).finish();
        if apart { row.wrapping_add(key.owned_by(self.owner)) } else { row }
    }
}

impl Binding {
    pub(super) fn new(
        (owner, boot): (NodeId, u64),
        index: u64,
        expires_ms: u64,
        flow: bool,
        value: &[u8],
    ) -> Binding {
        Binding { expires_ms, flow, rest: Packed::new(&[index, owner.0, boot], &[], value) }
    }

    /// The log index of the last write.
    pub fn index(&self) -> u64 {
        self.rest.numbers::<1>().0[0]
    }

    /// Who wrote it last, and in which run of its process.
    pub fn writer(&self) -> (NodeId, u64) {
        let ([_, owner, boot], _) = self.rest.numbers();
        (NodeId(owner), boot)
    }

    /// The caller's record, opaque here.
    pub fn value(&self) -> &[u8] {
        self.rest.numbers::<3>().1
    }

    pub(crate) fn fingerprint(&self, key: &BindingKey) -> u128 {
        let ([index, owner, boot], value) = self.rest.numbers();
        Hasher::new(2)
            .bytes(&key.aor.0)
            .u64(key.contact)
            .u64(self.expires_ms)
            .u64(index)
            .u64(owner)
            .u64(boot)
            .u64(u64::from(self.flow))
            .bytes(value)
            .finish()
    }
}

impl Ban {
    pub(crate) fn fingerprint(&self, key: &[u8]) -> u128 {
        Hasher::new(3).bytes(key).u64(self.expires_ms).bytes(&self.value).finish()
    }
}

impl NodeState {
    /// As operators read it.
    pub fn as_str(self) -> &'static str {
        match self {
            NodeState::Joining => "joining",
            NodeState::Up => "up",
            NodeState::Draining => "draining",
            NodeState::Drained => "drained",
            NodeState::Down => "down",
        }
    }

    /// Takes new work and what others leave behind.
    pub fn is_eligible(self) -> bool {
        self == NodeState::Up
    }

    /// Is believed to live.
    pub fn is_live(self) -> bool {
        match self {
            NodeState::Up | NodeState::Draining | NodeState::Drained => true,
            NodeState::Joining | NodeState::Down => false,
        }
    }

    pub(crate) fn to_pb(self) -> pb::NodeState {
        match self {
            NodeState::Joining => pb::NodeState::Joining,
            NodeState::Up => pb::NodeState::Up,
            NodeState::Draining => pb::NodeState::Draining,
            NodeState::Drained => pb::NodeState::Drained,
            NodeState::Down => pb::NodeState::Down,
        }
    }

    pub(crate) fn from_pb(state: pb::NodeState) -> Option<Self> {
        match state {
            pb::NodeState::Unspecified => None,
            pb::NodeState::Joining => Some(NodeState::Joining),
            pb::NodeState::Up => Some(NodeState::Up),
            pb::NodeState::Draining => Some(NodeState::Draining),
            pb::NodeState::Drained => Some(NodeState::Drained),
            pb::NodeState::Down => Some(NodeState::Down),
        }
    }
}

impl Node {
    /// Whether it was given an id and has not come up yet. It may be asking for its id again, with an
    /// empty log: it has no vote before it was up.
    pub(crate) fn is_expected(&self) -> bool {
        self.state == NodeState::Joining
    }

    /// A member from the beginning on: up, and a voter.
    pub(crate) fn founder(name: String, address: String, format: u32) -> Node {
        Node {
            name,
            address,
            state: NodeState::Up,
            epoch: 1,
            voter: true,
            software: String::new(),
            format,
            drains: 0,
        }
    }

    pub(crate) fn to_pb(&self, id: NodeId) -> pb::NodeRecord {
        pb::NodeRecord {
            id: id.0,
            name: self.name.clone(),
            address: self.address.clone(),
            state: self.state.to_pb().into(),
            epoch: self.epoch,
            voter: self.voter,
            software: self.software.clone(),
            format: self.format,
            drains: self.drains,
        }
    }

    pub(crate) fn from_pb(record: pb::NodeRecord) -> Option<(NodeId, Self)> {
        let state = NodeState::from_pb(record.state())?;
        let node = Node {
            state,
            name: record.name,
            address: record.address,
            epoch: record.epoch,
            voter: record.voter,
            software: record.software,
            format: record.format.max(1),
            drains: record.drains,
        };
        (record.id != 0).then_some((NodeId(record.id), node))
    }
}

/// On the wire "delete" is a node id nobody can have.
const NEXT_DELETE: u64 = u64::MAX;

impl Address {
    /// Held, and not about to go.
    pub fn is_held_by(&self, node: NodeId) -> bool {
        self.holder == Some(node) && self.next == Next::Stay
    }

    /// Held, and asked for: at which log index.
    pub fn is_asked_of(&self, node: NodeId) -> Option<u64> {
        (self.holder == Some(node) && self.next != Next::Stay).then_some(self.asked)
    }

    pub(crate) fn to_pb(self, address: &str) -> pb::AddressRecord {
        pb::AddressRecord {
            address: address.to_owned(),
            group: self.group,
            holder: self.holder.map_or(0, |node| node.0),
            next: match self.next {
                Next::Stay => 0,
                Next::Move(node) => node.0,
                Next::Delete => NEXT_DELETE,
            },
            prefer: self.prefer.map_or(0, |node| node.0),
            asked: self.asked,
        }
    }

    pub(crate) fn from_pb(record: pb::AddressRecord) -> (String, Self) {
        let address = Address {
            group: record.group,
            holder: node_id(record.holder),
            next: match record.next {
                0 => Next::Stay,
                NEXT_DELETE => Next::Delete,
                id => Next::Move(NodeId(id)),
            },
            prefer: node_id(record.prefer),
            asked: record.asked,
        };
        (record.address, address)
    }
}

/// 0 means nobody on the wire.
pub(crate) fn node_id(id: u64) -> Option<NodeId> {
    (id != 0).then_some(NodeId(id))
}
