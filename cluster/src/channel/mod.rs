//! The channel between nodes.

use bytes::Bytes;

use crate::state::Tables;
use crate::types::NodeId;

/// What is known of the way to a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerStatus {
    pub node: NodeId,
    pub address: String,
    pub connected: bool,
    /// From a frame's leaving to its acknowledgement, lately.
    pub rtt_us: u64,
    /// Frames and bytes sent and not acknowledged.
    pub lag_frames: u64,
    pub lag_bytes: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Messages dropped because the queue was full.
    pub dropped: u64,
    pub connects: u64,
    /// Streams closed for a frame that did not decode.
    pub malformed: u64,
}

/// Why bytes were not relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    #[error("no such peer")]
    NoPeer,
    #[error("the queue to the peer is full, or it is not connected")]
    Full,
}

/// The channel's handle.
#[derive(Clone)]
pub(crate) struct Channel;

impl Channel {
    pub(crate) fn send(&self, _to: NodeId, _bytes: Bytes) {}
    pub(crate) fn send_snapshot(&self, _to: NodeId, _message: Bytes, _index: u64) {}
    pub(crate) fn set_peers(&self, _tables: &Tables) {}
    pub(crate) fn status(&self) -> Vec<PeerStatus> {
        Vec::new()
    }
    pub(crate) fn new_token(&self) -> (String, [u8; 32]) {
        (String::new(), [0; 32])
    }
    pub(crate) fn relay(&self, _to: NodeId, _data: Bytes) -> Result<(), RelayError> {
        Err(RelayError::NoPeer)
    }
    pub(crate) fn close(&self) {}
}
