//! The fuzz targets on stable: any bytes, and valid ones with damage. `sbc-node/fuzz` runs the same
//! targets under libFuzzer.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use sbc_cluster::fuzz::{fuzz_entries, fuzz_frame, fuzz_snapshot, seed_snapshot};
use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::command::Op;
use sbc_proto::cluster::v1::peer_frame::Body;

fn entry(seq: u64, op: Op) -> Vec<u8> {
    let command = Some(pb::Command { op: Some(op) });
    let proposal =
        pb::Proposal { version: 1, node: 1, boot: 1, seq, prev: seq - 1, epoch: 1, command };
    let bytes = proposal.encode_to_vec();
    [vec![u8::try_from(bytes.len()).expect("short")], bytes].concat()
}

/// A log of valid entries.
fn log() -> Vec<u8> {
    let id = Bytes::from_static(&[7; 16]);
    let put = pb::PutDialog { id: id.clone(), group: 1, lookups: vec![9], value: id.clone() };
    let bind = pb::PutBinding { aor: id.clone(), contact: 3, ttl_ms: 9, value: id, flow: true };
    let add = pb::PutAddress { address: "a".to_owned(), group: 1, prefer: 2 };
    [
        entry(1, Op::PutAddress(add)),
        entry(2, Op::PutDialog(put)),
        entry(3, Op::PutBinding(bind)),
        entry(4, Op::MoveAddresses(pb::MoveAddresses { group: 1, to: 3 })),
        entry(5, Op::Clock(pb::Clock { now_ms: 70 })),
        entry(6, Op::NodeDown(pb::NodeDown { id: 2, epoch: 1 })),
        entry(7, Op::SetFormat(pb::SetFormat { id: 1, format: 2 })),
    ]
    .concat()
}

fn frame() -> Vec<u8> {
    let message = Bytes::from_static(&[0x08, 3, 0x10, 1, 0x18, 2, 0x20, 5]);
    let batch = pb::RaftBatch { messages: vec![message.clone(), message] };
    pb::PeerFrame { seq: 7, body: Some(Body::Raft(batch)) }.encode_to_vec()
}

fn damaged(mut bytes: Vec<u8>, damage: &[(u16, u8)]) -> Vec<u8> {
    for (at, with) in damage {
        let at = usize::from(*at) % bytes.len();
        bytes[at] ^= with;
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_comes_is_taken_or_refused(
        any in prop::collection::vec(any::<u8>(), 0..200),
        damage in prop::collection::vec((any::<u16>(), any::<u8>()), 0..4),
    ) {
        fuzz_frame(&any);
        fuzz_entries(&any);
        fuzz_snapshot(&any);
        fuzz_frame(&damaged(frame(), &damage));
        fuzz_entries(&damaged(log(), &damage));
        fuzz_snapshot(&damaged(seed_snapshot(), &damage));
    }
}
