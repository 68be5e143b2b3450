//! What is told of the way to each of the other nodes: how far behind it is, and how long an answer
//! takes.

use sbc_cluster::{Handle, Status};

use crate::shard::stats::Kind;
use crate::telemetry::metrics::{Sample, number};

type Column = (&'static str, &'static str, Kind);

const COLUMNS: [Column; 9] = [
    ("sbc_cluster_peer_connected", "Whether the stream to the node stands", Kind::Gauge),
    ("sbc_cluster_peer_rtt_seconds", "From a frame's leaving to its receipt", Kind::Gauge),
    ("sbc_cluster_peer_lag_entries", "Log entries the node lacks", Kind::Gauge),
    ("sbc_cluster_peer_lag_bytes", "Bytes sent and not acknowledged", Kind::Gauge),
    ("sbc_cluster_peer_sent_bytes", "Bytes sent to the node", Kind::Counter),
    ("sbc_cluster_peer_received_bytes", "Bytes of the node", Kind::Counter),
    ("sbc_cluster_peer_dropped", "Messages that did not fit the queue", Kind::Counter),
    ("sbc_cluster_peer_malformed", "Streams closed for a frame out of place", Kind::Counter),
    ("sbc_cluster_peer_connects", "Streams opened", Kind::Counter),
];

/// One row for each peer and figure; `node` is the peer's name.
pub(super) fn samples(handle: &Handle, out: &mut Vec<Sample>) {
    let status: Status = handle.status();
    for peer in &status.peers {
        let row = status.nodes.iter().find(|(id, _)| *id == peer.node);
        let name = row.map_or_else(|| peer.node.to_string(), |(_, node)| node.name.clone());
        // Only the leader knows how far each log agrees with its own.
        let matched = status.core.peers.get(&peer.node).map(|(matched, _)| *matched);
        let entries = matched.map_or(0, |matched| status.core.last.saturating_sub(matched));
        let values = [
            f64::from(u8::from(peer.connected)),
            number(peer.rtt_us) / 1e6,
            number(entries),
            number(peer.lag_bytes),
            number(peer.sent_bytes),
            number(peer.received_bytes),
            number(peer.dropped),
            number(peer.malformed),
            number(peer.connects),
        ];
        for ((name_of, help, kind), value) in COLUMNS.into_iter().zip(values) {
            let labels = vec![("peer", name.clone())];
            out.push(Sample { name: name_of, help, kind, labels, value });
        }
    }
}
