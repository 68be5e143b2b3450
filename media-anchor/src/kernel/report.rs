//! What the kernel relay tells of itself: which way is in use and why, and its tallies.
//!
//! Written by the driver thread, read by status and metrics; never on a packet's way.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::plan::Reason;

/// Snapshot of the kernel relay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelStatus {
    /// `ebpf`, `nftables`, or `off`.
    pub way: &'static str,
    /// Why that way, in a sentence for people.
    pub reason: String,
    /// Devices whose arriving packets are looked up.
    pub devices: Vec<String>,
    /// Flows in the kernel now (a direction of one component each).
    pub flows: u64,
    /// Part of `flows` that stands by for calls of other nodes.
    pub standby: u64,
    pub totals: Totals,
    /// Flows refused or evicted since the start, in the order of [`Reason::ALL`].
    pub refused: [u64; Reason::ALL.len()],
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub installed: u64,
    pub removed: u64,
    /// Flows whose next hop changed and that were moved in place.
    pub replanned: u64,
    /// Flows that stood by and became ours, without a change in the kernel.
    pub promoted: u64,
    pub evicted: u64,
    /// Elements that should have been in the kernel and were not; put back.
    pub missing: u64,
    /// Elements in the kernel that belong to no flow; deleted.
    pub leaked: u64,
    /// Times that the whole table had to be made again.
    pub rebuilt: u64,
    /// Commits that had to be made smaller for want of room.
    pub split: u64,
}

/// The shared place of the snapshot.
#[derive(Debug, Default)]
pub struct Report {
    status: Mutex<KernelStatus>,
}

impl Report {
    /// The snapshot; tallies are at most one poll (100 ms) old.
    pub fn status(&self) -> KernelStatus {
        self.lock().clone()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut KernelStatus)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, KernelStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
