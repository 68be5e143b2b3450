//! What a frame of an established stream may hold. A pure look at it, so that it can be fuzzed.

use bytes::Bytes;
use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::peer_frame::Body;

use super::RELAY_BYTES_MAX;

/// What a peer says after its hello.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Raft messages as bytes.
    Raft(Vec<Bytes>),
    /// A piece for the edge.
    Relay(Bytes),
}

/// The frame is one that may not come here: a second hello, nothing, a piece beyond 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfPlace;

/// Takes a frame apart.
pub(crate) fn of(frame: pb::PeerFrame) -> Result<Content, OutOfPlace> {
    match frame.body {
        Some(Body::Raft(batch)) => Ok(Content::Raft(batch.messages)),
        Some(Body::Relay(data)) if data.len() <= RELAY_BYTES_MAX => Ok(Content::Relay(data)),
        Some(Body::Relay(_) | Body::Hello(_)) | None => Err(OutOfPlace),
    }
}
