//! Between nodes: a message whose dialog or transaction is another node's goes there, and what must
//! leave by another node's connection or address goes to that node.
//!
//! ```text
//! peer ─▶ node 1 (holds the connection) ─ received ─▶ node 2 (owns the dialog)
//! peer ◀─ node 1                        ◀─ transmit ─ node 2
//! ```
//!
//! A message is passed on once at most. What the channel loses is lost as a datagram is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use prost::Message as _;
use sbc_cluster::{Handle, NodeId, RelayError, Tables};
use sbc_core::core::Input;
use sbc_core::ids::HintKey;
use sbc_core::net::{ConnId, Flow};
use sbc_proto::record::v1 as wire;
use sbc_proto::record::v1::link::Body;

use super::binding::Names;
use super::record::{RecordError, VERSION, address_in, address_out, transport_in, transport_out};
use super::tell::Tell;

/// Marks a connection id as a flow of another node; this node's own have the bit clear.
const REMOTE: u64 = 1 << 60;
const NODE_BITS: u32 = 12;
const NODE_AT: u32 = 48;
/// Shard and number of a connection of ours, squeezed into 48 bits.
const SHARD_AT: u32 = 42;
const NUMBER: u64 = (1 << SHARD_AT) - 1;
/// Stands for no connection: a datagram from that node's address.
const DATAGRAM: u64 = (1 << NODE_AT) - 1;

/// The lowest bits of a node's id; few enough nodes live at a time for them to be told apart.
pub fn number(node: NodeId) -> u16 {
    u16::try_from(node.0 & ((1 << NODE_BITS) - 1)).unwrap_or(0)
}

/// What this node calls a flow of another.
pub fn remote(node: NodeId, conn: Option<ConnId>) -> ConnId {
    let inner = conn.map_or(DATAGRAM, |conn| (conn.0 >> NODE_AT) << SHARD_AT | conn.0 & NUMBER);
    ConnId(REMOTE | u64::from(number(node)) << NODE_AT | inner & DATAGRAM)
}

/// The node's number and its own name of the connection, if the flow is another node's.
pub fn split(conn: ConnId) -> Option<(u16, Option<ConnId>)> {
    if conn.0 & REMOTE == 0 {
        return None;
    }
    let node = u16::try_from(conn.0 >> NODE_AT & ((1 << NODE_BITS) - 1)).ok()?;
    let inner = conn.0 & DATAGRAM;
    let own = ConnId((inner >> SHARD_AT) << NODE_AT | inner & NUMBER);
    Some((node, (inner != DATAGRAM).then_some(own)))
}

/// The living node with a number.
pub fn node(tables: &Tables, wanted: u16) -> Option<NodeId> {
    let mut live = tables.nodes().filter(|(_, node)| node.state.is_live()).map(|(id, _)| id);
    live.find(|id| number(*id) == wanted)
}

/// What happened, for metrics.
#[derive(Debug, Default)]
pub struct LinkStats {
    pub sent: AtomicU64,
    pub received: AtomicU64,
    pub failed: AtomicU64,
}

impl LinkStats {
    /// Counts an attempt to pass on; whether it went.
    pub fn note(&self, result: Result<(), RelayError>) -> bool {
        let counter = if result.is_ok() { &self.sent } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        result.is_ok()
    }
}

fn flow_out(flow: &Flow, names: &Names) -> Option<wire::LinkFlow> {
    Some(wire::LinkFlow {
        interface: names.name(flow.interface),
        transport: transport_out(flow.transport).into(),
        local: address_out(Some(flow.local)),
        remote: address_out(Some(flow.remote)),
        conn: flow.conn.map(|conn| conn.0),
    })
}

fn flow_in(flow: &wire::LinkFlow, names: &Names) -> Result<Flow, RecordError> {
    let address = |bytes: &[u8], what| address_in(bytes, what)?.ok_or(RecordError::Missing(what));
    Ok(Flow {
        interface: names.id(&flow.interface).ok_or(RecordError::Bad("interface"))?,
        transport: transport_in(flow.transport)?,
        local: address(&flow.local, "local address")?,
        remote: address(&flow.remote, "remote address")?,
        conn: flow.conn.map(ConnId),
    })
}

fn encode(body: Body) -> Bytes {
    wire::Link { version: VERSION, body: Some(body) }.encode_to_vec().into()
}

/// A message that this node received by `flow`, for the node that knows it.
pub fn received(flow: &Flow, data: &Bytes, names: &Names) -> Bytes {
    let (flow, data) = (flow_out(flow, names), data.clone());
    encode(Body::Received(wire::LinkMessage { flow, data }))
}

/// A message to be sent by `flow`, for the node whose flow it is.
pub fn transmit(flow: &Flow, data: &Bytes, names: &Names) -> Bytes {
    let (flow, data) = (flow_out(flow, names), data.clone());
    encode(Body::Transmit(wire::LinkMessage { flow, data }))
}

/// Takes what other nodes send.
pub struct Link {
    pub handle: Handle,
    pub tell: Arc<Tell>,
    pub names: Arc<Names>,
    pub hints: HintKey,
    pub stats: Arc<LinkStats>,
}

impl Link {
    /// Runs until the cluster node stops.
    pub async fn run(self) {
        let mut relayed = self.handle.relayed();
        while let Some((from, data)) = relayed.next().await {
            let counter = match self.take(from, data) {
                Ok(true) => &self.stats.received,
                Ok(false) => &self.stats.failed,
                Err(error) => {
                    tracing::warn!(from = from.0, %error, "a message of another node");
                    &self.stats.failed
                }
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// False when the shard had no room for it.
    fn take(&self, from: NodeId, data: Bytes) -> Result<bool, RecordError> {
        let link = wire::Link::decode(data).map_err(|e| RecordError::Malformed(e.to_string()))?;
        if link.version > VERSION || link.version == 0 {
            return Err(RecordError::Version(link.version));
        }
        match link.body.ok_or(RecordError::Missing("a body"))? {
            Body::Received(message) => {
                let flow = message.flow.ok_or(RecordError::Missing("a flow"))?;
                let mut flow = flow_in(&flow, &self.names)?;
                flow.conn = Some(remote(from, flow.conn));
                let shard = self.tell.shard_of(self.hints.of_message(&message.data).0);
                Ok(self.tell.offer_now(shard, Input::Here { flow, data: message.data }))
            }
            Body::Transmit(message) => {
                let flow = message.flow.ok_or(RecordError::Missing("a flow"))?;
                let flow = flow_in(&flow, &self.names)?;
                // A flow of a third node is not ours to send by.
                if flow.conn.and_then(split).is_some() {
                    return Err(RecordError::Bad("connection"));
                }
                Ok(self.tell.transmit(flow, message.data))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_of_another_node_names_node_and_connection() {
        for own in [Some(ConnId(0)), Some(ConnId(63 << 48 | 77)), Some(ConnId(5 << 48)), None] {
            let there = remote(NodeId(4_096 + 7), own);
            assert_eq!(split(there), Some((7, own)));
        }
        assert_eq!(split(ConnId(63 << 48 | 77)), None, "our own");
    }
}
