//! What the cluster tells the node it runs in. Facts, in the order of the log; what to do about them
//! is the edge's.

use crate::state::{BanKey, Binding, BindingKey};
use crate::types::{BindingChange, DialogKey, NodeId, Table};

/// Something changed that the edge may have to act upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Floating addresses to add (and announce) and to remove, now. After a removal that was asked
    /// for by a move, call [`Handle::addresses_dropped`](crate::Handle::addresses_dropped), with the
    /// number of the asking.
    OwnedAddresses {
        add: Vec<String>,
        remove: Vec<String>,
    },
    /// These dialogs are ours to carry on. `from` is our own id after a restart.
    AdoptDialogs {
        from: NodeId,
        dialogs: Vec<DialogKey>,
    },
    /// These dialogs were ours: drop them without a word to the endpoints.
    DialogsLost {
        to: NodeId,
        dialogs: Vec<DialogKey>,
    },
    /// `None` while there is no leader.
    LeaderChanged {
        leader: Option<NodeId>,
        term: u64,
    },
    /// The lease ran out: no majority confirms us. Floating addresses are to go; see
    /// `on-quorum-loss` for calls.
    QuorumLost,
    QuorumRegained,
    /// Nodes or addresses changed.
    TableChanged(Table),
    SettingChanged(String),
    /// Told by [`Handle::changes`](crate::Handle::changes) alone.
    BanChanged {
        key: BanKey,
        added: bool,
    },
    /// Told by [`Handle::changes`](crate::Handle::changes) alone.
    BindingChanged {
        key: BindingKey,
        change: BindingChange,
        /// The row that is gone.
        last: Option<Binding>,
    },
    /// Raft voters or learners changed.
    MembersChanged,
    /// The tables were replaced by a snapshot, or events were missed: read again what matters.
    Reloaded,
    /// This node is to move its calls away: write what is not written yet, drop the floating
    /// addresses, then call [`Handle::hand_over`](crate::Handle::hand_over).
    /// `drain` says which it is, to be named when everything is handed over.
    DrainRequested {
        drain: u64,
    },
    /// The peers say that this node is no member any more.
    Removed,
    /// The node's part in the cluster has ended; it holds nothing. The reason is for the log.
    Stopped {
        reason: String,
    },
}
