//! Entry points for fuzzing what comes from peers and from the disk: feed bytes, panic where a
//! property does not hold.
//!
//! Called by `tests/fuzz.rs` (seeded mutations, on stable) and by the libFuzzer targets in
//! `sbc-node/fuzz`. Not for use by the product.

use bytes::Bytes;
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::Message;
use sbc_proto::cluster::v1 as pb;

use crate::channel::content;
use crate::state::{FORMAT_VERSION, Node, Position, Tables};
use crate::types::NodeId;

fn tables() -> Tables {
    let member = |n: u64| {
        let node = Node::founder(format!("n{n}"), format!("192.0.2.{n}:7000"), FORMAT_VERSION);
        (NodeId(n), node)
    };
    Tables::genesis(b"fuzz", &[member(1), member(2), member(3)])
}

/// A frame of a peer: it is taken apart or refused; the Raft messages in it decode or do not.
pub fn fuzz_frame(data: &[u8]) {
    let Ok(frame) = pb::PeerFrame::decode(data) else { return };
    let again = pb::PeerFrame::decode(frame.encode_to_vec().as_slice());
    assert_eq!(again.as_ref(), Ok(&frame), "what was decoded is written back");
    if let Ok(content::Content::Raft(messages)) = content::of(frame) {
        for bytes in messages {
            let mut message = Message::default();
            if message.merge_from_bytes(&bytes).is_ok() {
                assert!(message.write_to_bytes().is_ok());
            }
        }
    }
}

/// Entries of the log, each after a byte with its length: whatever they hold, two nodes come to the
/// same, and to the same through a snapshot.
pub fn fuzz_entries(data: &[u8]) {
    let (mut one, mut other) = (tables(), tables());
    let mut rest = data;
    let mut index = 1;
    while let Some((&length, tail)) = rest.split_first() {
        let (entry, tail) = tail.split_at(usize::from(length).min(tail.len()));
        rest = tail;
        index += 1;
        let entry = Bytes::copy_from_slice(entry);
        assert_eq!(one.apply(index, entry.clone()), other.apply(index, entry));
    }
    assert_eq!(one.digest(), other.digest());
    let (again, _) =
        Tables::restore(&mut written(&one).as_slice(), FORMAT_VERSION.max(one.format()))
            .expect("a snapshot of ours is read");
    assert_eq!(again.digest(), one.digest());
}

/// A snapshot: refused, or the same when it is written again.
pub fn fuzz_snapshot(data: &[u8]) {
    if let Ok((tables, _)) = Tables::restore(&mut &*data, FORMAT_VERSION) {
        let reads = FORMAT_VERSION.max(tables.format());
        let (again, _) = Tables::restore(&mut written(&tables).as_slice(), reads)
            .expect("a snapshot of ours is read");
        assert_eq!(again.digest(), tables.digest());
    }
}

fn written(tables: &Tables) -> Vec<u8> {
    let mut bytes = Vec::new();
    let position = Position::genesis(&[NodeId(1)]);
    tables.freeze().write(&position, &mut bytes).expect("memory takes it");
    bytes
}

/// A snapshot to begin with.
pub fn seed_snapshot() -> Vec<u8> {
    written(&tables())
}
