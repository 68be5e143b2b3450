//! Names of things: nodes, keys, tables, and what a command led to. Values only, no behaviour.

use std::fmt;

/// A member of the cluster. Given out once by the log and never reused: a node that lost its disk
/// comes back under a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Names a dialog; the caller's 128-bit hash or random number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DialogKey(pub [u8; 16]);

/// Names an address of record; the caller's 128-bit hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AorKey(pub [u8; 16]);

impl fmt::Debug for DialogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for AorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// The replicated tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    Dialogs,
    Bindings,
    Bans,
    Nodes,
    Addresses,
    Settings,
    Counts,
    Tokens,
}

/// What an applied command did. The same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Applied. `changed` is false when there was nothing to change (a delete of what is gone);
    /// whoever's delete changed something owns the call's end, and thus its CDR.
    Done { changed: bool },
    /// The id given to a new node.
    Node(NodeId),
    /// Not applied.
    Rejected(Rejection),
}

impl Outcome {
    pub fn is_applied(self) -> bool {
        match self {
            Outcome::Done { .. } | Outcome::Node(_) => true,
            Outcome::Rejected(_) => false,
        }
    }
}

/// Why a committed command was not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The writer is not, or no longer, the owner: it was declared down or handed the dialog over.
    #[error("the writer does not own the record any more")]
    Fenced,
    /// The table has reached its limit.
    #[error("the table is full")]
    Full,
    /// A key of the wrong size, a value or a list beyond its limit.
    #[error("the command is malformed")]
    Malformed,
    /// An operation that no release up to the version the entry names has: it was written wrongly.
    #[error("the operation is not known to this release")]
    Unknown,
    /// The node reads less than the cluster writes by now.
    #[error("the cluster writes a later format than this release reads")]
    Format,
    /// The last voter cannot leave.
    #[error("it is the last voter: nobody would be left to hold the log")]
    Last,
    /// The node, address or group named is not there.
    #[error("no such record")]
    NotFound,
    /// The join token is unknown, used or expired.
    #[error("the token is not valid")]
    Token,
    /// What is asked contradicts what is there (an address that moves, a node in another state).
    #[error("the command conflicts with the present state")]
    Conflict,
}

/// What happened to a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindingChange {
    /// Written, new or again.
    Put,
    /// Deleted by a command.
    Deleted,
    /// Its time ran out on the cluster's clock.
    Expired,
    /// It was reached by a connection of a process that is gone.
    Void,
}
