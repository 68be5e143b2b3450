//! What a kernel way must be able to do, and how it fails.
//!
//! Two ways implement [`Backend`]: nftables (`nft/`) and TC eBPF (`ebpf/`); the tests have a third
//! that fails on command. Retrying, splitting and mending is the applier's (`apply.rs`).

use nix::errno::Errno;

use super::element::{Counters, Element, Key};

/// One change of the kernel's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Add(Element),
    Delete(Key),
}

/// A device whose arriving packets are to be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) index: u32,
    /// Frames have an Ethernet header.
    pub(crate) ethernet: bool,
    /// Carries VLAN devices: tagged frames are theirs and must not be touched here.
    pub(crate) vlan_parent: bool,
}

/// Why the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("not permitted (CAP_NET_ADMIN is missing or was taken away)")]
    Permission,
    #[error("the request or its answer did not fit the socket buffer or memory")]
    NoRoom,
    #[error("the kernel table is full")]
    Full,
    #[error("an element with that key exists")]
    Exists,
    #[error("no element with that key")]
    Missing,
    #[error("the table is gone")]
    TableGone,
    #[error("no such device")]
    NoDevice,
    #[error("not supported by this kernel ({0})")]
    Unsupported(Errno),
    #[error("refused by the kernel: {0}")]
    Other(Errno),
}

/// A refused commit: nothing of it was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommitError {
    /// The operation that was refused, where the kernel says which.
    pub(crate) at: Option<usize>,
    pub(crate) fault: Fault,
}

impl From<Fault> for CommitError {
    fn from(fault: Fault) -> Self {
        CommitError { at: None, fault }
    }
}

/// One way to relay in the kernel.
pub(crate) trait Backend: Send {
    /// As shown in status.
    fn name(&self) -> &'static str;

    /// Whether packets longer than [`super::element::Action::mtu`] are left to userspace.
    fn checks_length(&self) -> bool;

    /// Starts over with an empty table and no devices; replaces what a dead process left.
    fn reset(&mut self) -> Result<(), Fault>;

    /// Begins to look at packets that arrive by `device`; doing it twice replaces.
    fn attach(&mut self, device: &Device) -> Result<(), Fault>;

    /// Stops looking at a device; a device that is gone already is no error.
    fn detach(&mut self, name: &str) -> Result<(), Fault>;

    /// Applies `ops` wholly or not at all: deletions first, then additions. Appends one entry per
    /// operation: the final counters of what was deleted, `None` for additions.
    fn commit(&mut self, ops: &[Op], done: &mut Vec<Option<Counters>>) -> Result<(), CommitError>;

    /// Appends one entry per key; `None` where the kernel has no such element.
    fn read(&mut self, keys: &[Key], out: &mut Vec<Option<Counters>>) -> Result<(), Fault>;

    /// Whether the table still stands as it was made.
    fn stands(&mut self) -> Result<bool, Fault>;

    /// Appends the next piece of a listing of all keys; true at its end, where the next call
    /// starts over. A listing during changes may miss or double elements.
    fn list(&mut self, keys: &mut Vec<Key>) -> Result<bool, Fault>;

    /// Removes everything from the kernel.
    fn remove(&mut self);
}
