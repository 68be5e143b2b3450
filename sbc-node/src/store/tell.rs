//! The way back into the shards: inputs that must arrive, over queues that may be full for a moment.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;
use sbc_core::core::{Core, Input};
use sbc_core::ids::ShardHint;
use sbc_core::net::Flow;

use crate::shard::command::Command;
use crate::shard::queue::{Handle, Parcel};

/// Gives inputs to shards. What finds a queue full waits here, in order, and is offered again
/// before anything newer: a commit that is never told would hold a 2xx back for good. The backlog
/// is bounded by the proposals that the cluster lets wait.
pub struct Tell {
    shards: Vec<Handle<Core>>,
    backlog: Mutex<VecDeque<(usize, Input)>>,
}

impl Tell {
    pub fn new(shards: Vec<Handle<Core>>) -> Tell {
        Tell { shards, backlog: Mutex::new(VecDeque::new()) }
    }

    /// The shard that carries a call with this hint.
    pub fn shard_of(&self, hint: u32) -> usize {
        let shards = u32::try_from(self.shards.len()).unwrap_or(u32::MAX);
        usize::try_from(ShardHint(hint).shard(shards)).unwrap_or(0)
    }

    /// Gives `input` to a shard, now or at the next [`Tell::flush`].
    pub fn tell(&self, shard: usize, input: Input) {
        let mut backlog = self.backlog.lock().unwrap_or_else(|e| e.into_inner());
        backlog.push_back((shard, input));
        self.offer(&mut backlog);
    }

    /// Gives every shard an input.
    pub fn broadcast(&self, input: impl Fn() -> Input) {
        for shard in 0..self.shards.len() {
            self.tell(shard, input());
        }
    }

    /// Gives `input` to a shard that has room for it; otherwise it is lost, as a datagram may be.
    pub fn offer_now(&self, shard: usize, input: Input) -> bool {
        let handle = self.shards.get(shard);
        handle.is_some_and(|handle| handle.command(Command::Input(input)).is_ok())
    }

    /// Has a message sent by a flow of this node; false when the shard has no room for it.
    pub fn transmit(&self, flow: Flow, data: Bytes) -> bool {
        let shard = flow.conn.map_or(0, crate::transport::tcp::owner);
        let Some(handle) = self.shards.get(shard) else { return false };
        let from = u8::try_from(shard).unwrap_or(0);
        let queued = handle.parcel(Parcel::Transmit { flow, data, token: None, from }).is_ok();
        handle.wake();
        queued
    }

    /// How many inputs wait for room.
    pub fn waiting(&self) -> usize {
        self.backlog.lock().unwrap_or_else(|e| e.into_inner()).len()
    }

    /// Offers what waits once more; to be called regularly.
    pub fn flush(&self) {
        self.offer(&mut self.backlog.lock().unwrap_or_else(|e| e.into_inner()));
    }

    fn offer(&self, backlog: &mut VecDeque<(usize, Input)>) {
        while let Some((shard, input)) = backlog.pop_front() {
            // A shard that does not exist any more needs nothing.
            let Some(handle) = self.shards.get(shard) else { continue };
            if let Err(Command::Input(input)) = handle.command(Command::Input(input)) {
                backlog.push_front((shard, input));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::queue::mailbox_with;

    #[test]
    fn what_finds_a_full_queue_arrives_later_and_in_order() {
        let (handle, mailbox) = mailbox_with::<Core>(2, 2).expect("mailbox");
        let tell = Tell::new(vec![handle]);
        for id in 0..5 {
            let id = sbc_core::core::StoreId(id);
            tell.tell(0, Input::Stored { id, protected: true });
        }
        let mut seen = Vec::new();
        while seen.len() < 5 {
            while let Some(Command::Input(Input::Stored { id, .. })) = mailbox.next_command() {
                seen.push(id.0);
            }
            tell.flush();
        }
        assert_eq!(seen, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_shard_that_is_not_there_holds_nothing_up() {
        let (handle, mailbox) = mailbox_with::<Core>(2, 2).expect("mailbox");
        let tell = Tell::new(vec![handle]);
        tell.tell(7, Input::Tick);
        tell.tell(0, Input::Tick);
        assert!(mailbox.next_command().is_some());
    }
}
