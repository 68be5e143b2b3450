//! What a new leader knows of the leases that others gave before it.
//!
//! ```text
//! voter      h  the last moment it took a message of a leader, led itself, or started
//!            v  its vote, with the age v - h
//! candidate  elected; since = the latest h of its voters, its own among them
//! ```
//!
//! A lease that an earlier leader gave was confirmed by a majority after the asking (`lease.rs`).
//! One of that majority voted for the new leader, and has confirmed nothing after its h. So no
//! lease given by anyone before reaches beyond `since + lease`, and what a dead node held may be
//! handed on at `since + handover`: an election in between costs nothing. A node that has just
//! started does not know what it confirmed before, and says that it did so a moment ago.

use std::collections::BTreeMap;
use std::time::Duration;

use raft::StateRole;
use raft::eraftpb::{Message, MessageType};

use super::{Core, Time};
use crate::types::NodeId;

pub(super) struct Vouched {
    /// h of this node.
    last: Time,
    /// The term in which we stand, what its voters said, and when we heard them.
    term: u64,
    since: Time,
    voters: BTreeMap<NodeId, Time>,
}

impl Vouched {
    pub(super) fn new(now: Time) -> Self {
        Vouched { last: now, term: 0, since: now, voters: BTreeMap::new() }
    }
}

impl Core {
    /// A leader vouches for others as long as it leads.
    pub(super) fn vouch_as_leader(&mut self) {
        if self.is_leader() {
            self.vouched.last = self.now;
        }
    }

    /// A message of the leader was taken: it may count our answer as a yes.
    pub(super) fn vouch_as_follower(&mut self, from: NodeId, kind: MessageType) {
        let leads = matches!(
            kind,
            MessageType::MsgHeartbeat | MessageType::MsgAppend | MessageType::MsgSnapshot
        );
        if leads && self.raft.raft.leader_id == from.0 {
            self.vouched.last = self.now;
        }
    }

    /// Puts into a vote how long ago we last vouched, at the moment it leaves.
    pub(super) fn date_vote(&self, message: &mut Message) {
        if message.get_msg_type() == MessageType::MsgRequestVoteResponse && !message.reject {
            let age = self.now.saturating_sub(self.vouched.last).as_micros();
            let age = u64::try_from(age).unwrap_or(u64::MAX);
            message.context = age.to_be_bytes().to_vec().into();
        }
    }

    /// As a candidate: what a vote says. One without an age is of a node that cannot tell.
    pub(super) fn note_vote(&mut self, message: &Message) {
        let ours = message.get_msg_type() == MessageType::MsgRequestVoteResponse
            && !message.reject
            && message.term == self.raft.raft.term
            && self.raft.raft.state == StateRole::Candidate;
        if !ours {
            return;
        }
        let age = <[u8; 8]>::try_from(&*message.context).map_or(0, u64::from_be_bytes);
        let last = self.now.saturating_sub(Duration::from_micros(age));
        if self.vouched.term != message.term {
            self.vouched.term = message.term;
            self.vouched.since = self.vouched.last;
            self.vouched.voters.clear();
        }
        self.vouched.since = self.vouched.since.max(last);
        self.vouched.voters.insert(NodeId(message.from), self.now);
    }

    /// At the beginning of a reign: after which moment no one before us gave a lease, and who was
    /// heard. Without votes (the only voter) that is now.
    pub(super) fn end_of_reigns(&mut self) -> (Time, BTreeMap<NodeId, Time>) {
        let voters = std::mem::take(&mut self.vouched.voters);
        if self.vouched.term == self.raft.raft.term && !voters.is_empty() {
            (self.vouched.since, voters)
        } else {
            (self.now, voters)
        }
    }
}
