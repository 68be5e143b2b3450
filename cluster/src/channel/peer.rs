//! The way to one peer: a bounded queue, one task that keeps one stream open, and numbers about it.
//! What does not fit is dropped and counted; Raft sends again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::peer_frame::Body;
use sbc_proto::cluster::v1::replication_client::ReplicationClient;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel as Http2, Endpoint};
use tonic::{Code, Streaming};

use super::tls::Connector;
use super::{FRAME_BYTES_MAX, Local, PeerStatus, pki};
use crate::clock;
use crate::core::Input;
use crate::event::Event;
use crate::state::Tables;
use crate::types::NodeId;

const QUEUE_MAX: usize = 8_192;
const BATCH_BYTES_MAX: usize = 256 * 1024;
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

pub(super) enum Item {
    Raft(Bytes),
    Relay(Bytes),
}

#[derive(Default)]
pub(super) struct Metrics {
    connected: AtomicBool,
    rtt_us: AtomicU64,
    lag_frames: AtomicU64,
    lag_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    dropped: AtomicU64,
    connects: AtomicU64,
    pub(super) malformed: AtomicU64,
}

/// Handle of the task; it ends when this is dropped.
pub(super) struct Peer {
    pub(super) address: watch::Sender<String>,
    queue: Sender<Item>,
    pub(super) metrics: Arc<Metrics>,
}

impl Peer {
    pub(super) fn start(node: NodeId, address: String, local: &Arc<Local>) -> Self {
        let (queue, items) = channel(QUEUE_MAX);
        let (address, addresses) = watch::channel(address);
        let metrics = Arc::new(Metrics::default());
        let task = Task {
            node,
            addresses,
            items,
            metrics: Arc::clone(&metrics),
            local: Arc::clone(local),
        };
        local.runtime.spawn(task.run());
        Peer { address, queue, metrics }
    }

    pub(super) fn send(&self, item: Item) -> bool {
        let taken = self.queue.try_send(item).is_ok();
        if !taken {
            self.metrics.dropped.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    pub(super) fn is_connected(&self) -> bool {
        self.metrics.connected.load(Ordering::Relaxed)
    }

    pub(super) fn status(&self, node: NodeId) -> PeerStatus {
        let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let metrics = &self.metrics;
        PeerStatus {
            node,
            address: self.address.borrow().clone(),
            connected: self.is_connected(),
            rtt_us: get(&metrics.rtt_us),
            lag_frames: get(&metrics.lag_frames),
            lag_bytes: get(&metrics.lag_bytes),
            sent_bytes: get(&metrics.sent_bytes),
            received_bytes: get(&metrics.received_bytes),
            dropped: get(&metrics.dropped),
            connects: get(&metrics.connects),
            malformed: get(&metrics.malformed),
        }
    }
}

/// A connection to a node that proves to be `node`.
pub(super) async fn connect(
    node: NodeId,
    address: String,
    config: Arc<ClientConfig>,
) -> Result<Http2, String> {
    let name = ServerName::try_from(pki::name(node)).map_err(|e| e.to_string())?;
    dial(Connector { address, name, config }).await
}

pub(super) async fn dial(connector: Connector) -> Result<Http2, String> {
    let endpoint = Endpoint::from_static("http://peer.sbc-cluster")
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(8 * 1024 * 1024);
    match timeout(CONNECT_WITHIN, endpoint.connect_with_connector(connector)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(e)) => Err(super::chain(&e)),
        Err(_) => Err("timeout".to_owned()),
    }
}

struct Task {
    node: NodeId,
    addresses: watch::Receiver<String>,
    items: Receiver<Item>,
    metrics: Arc<Metrics>,
    local: Arc<Local>,
}

enum Ended {
    /// The peer was removed from the table.
    Over,
    Lost(String),
}

impl Task {
    async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let before = self.metrics.connects.load(Ordering::Relaxed);
            let ended = self.stream().await;
            self.metrics.connected.store(false, Ordering::Relaxed);
            match ended {
                Ended::Over => return,
                Ended::Lost(reason) => {
                    tracing::debug!(peer = %self.node, %reason, "stream to peer lost");
                }
            }
            if self.metrics.connects.load(Ordering::Relaxed) > before {
                backoff = BACKOFF_MIN;
            }
            self.local.orders.offer(Input::Unreachable(self.node));
            // What waited for this connection is stale when the next one stands.
            loop {
                match self.items.try_recv() {
                    Ok(_) => self.metrics.dropped.fetch_add(1, Ordering::Relaxed),
                    Err(tokio::sync::mpsc::error::TryRecvError::Empty) => break,
                    Err(tokio::sync::mpsc::error::TryRecvError::Disconnected) => return,
                };
            }
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                changed = self.addresses.changed() => if changed.is_err() { return },
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn stream(&mut self) -> Ended {
        let address = self.addresses.borrow_and_update().clone();
        let config = self.local.client_config();
        let channel = match connect(self.node, address, config).await {
            Ok(channel) => channel,
            Err(reason) => return Ended::Lost(reason),
        };
        let mut client = ReplicationClient::new(channel)
            .max_decoding_message_size(FRAME_BYTES_MAX)
            .max_encoding_message_size(FRAME_BYTES_MAX);
        let (frames, stream) = channel_of_frames();
        let hello = pb::PeerFrame { seq: 0, body: Some(Body::Hello(self.local.hello())) };
        if frames.send(hello).await.is_err() {
            return Ended::Lost("closed".to_owned());
        }
        match client.stream(stream).await {
            Ok(answer) => self.pump(frames, answer.into_inner()).await,
            Err(status) => self.refused(&status),
        }
    }

    fn refused(&self, status: &tonic::Status) -> Ended {
        if status.code() == Code::PermissionDenied {
            self.local.refused();
        }
        Ended::Lost(status.to_string())
    }

    async fn pump(
        &mut self,
        frames: Sender<pb::PeerFrame>,
        mut acks: Streaming<pb::PeerAck>,
    ) -> Ended {
        self.metrics.connected.store(true, Ordering::Relaxed);
        self.metrics.connects.fetch_add(1, Ordering::Relaxed);
        self.metrics.lag_bytes.store(0, Ordering::Relaxed);
        let mut unacked: VecDeque<(u64, u64, Duration)> = VecDeque::new();
        let mut seq = 0;
        loop {
            let first = tokio::select! {
                item = self.items.recv() => match item {
                    Some(item) => item,
                    None => return Ended::Over,
                },
                ack = acks.message() => match ack {
                    Ok(Some(ack)) => {
                        self.note_ack(&mut unacked, ack.seq);
                        continue;
                    }
                    Ok(None) => return Ended::Lost("closed".to_owned()),
                    Err(status) => return self.refused(&status),
                },
                changed = self.addresses.changed() => match changed {
                    Ok(()) => return Ended::Lost("address changed".to_owned()),
                    Err(_) => return Ended::Over,
                },
            };
            for (body, bytes) in self.gather(first) {
                seq += 1;
                unacked.push_back((seq, bytes, clock::now()));
                self.metrics.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
                self.metrics.lag_bytes.fetch_add(bytes, Ordering::Relaxed);
                let body = Some(body);
                if frames.send(pb::PeerFrame { seq, body }).await.is_err() {
                    return Ended::Lost("closed".to_owned());
                }
            }
            self.metrics.lag_frames.store(unacked.len() as u64, Ordering::Relaxed);
        }
    }

    /// One batch of what has gathered; a relayed piece ends it, to keep the order.
    fn gather(&mut self, first: Item) -> Vec<(Body, u64)> {
        let mut messages = Vec::new();
        let mut bytes = 0;
        let mut relay = None;
        let mut next = Some(first);
        while let Some(item) = next.take() {
            match item {
                Item::Raft(message) => {
                    bytes += message.len();
                    messages.push(message);
                    if bytes < BATCH_BYTES_MAX {
                        next = self.items.try_recv().ok();
                    }
                }
                Item::Relay(data) => relay = Some(data),
            }
        }
        let mut bodies = Vec::new();
        if !messages.is_empty() {
            bodies.push((Body::Raft(pb::RaftBatch { messages }), bytes as u64));
        }
        if let Some(data) = relay {
            let bytes = data.len() as u64;
            bodies.push((Body::Relay(data), bytes));
        }
        bodies
    }

    fn note_ack(&self, unacked: &mut VecDeque<(u64, u64, Duration)>, seq: u64) {
        while let Some(&(oldest, bytes, sent)) = unacked.front() {
            if oldest > seq {
                break;
            }
            unacked.pop_front();
            let rtt = clock::now().saturating_sub(sent).as_micros();
            let rtt = u64::try_from(rtt).unwrap_or(u64::MAX);
            self.metrics.rtt_us.store(rtt, Ordering::Relaxed);
            self.metrics.lag_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.metrics.lag_frames.store(unacked.len() as u64, Ordering::Relaxed);
    }
}

fn channel_of_frames() -> (Sender<pb::PeerFrame>, ReceiverStream<pb::PeerFrame>) {
    let (frames, stream) = channel(16);
    (frames, ReceiverStream::new(stream))
}

impl Local {
    /// Notes that this node is a member, or tells that it is one no more.
    pub(super) fn follow_own_row(&self, tables: &Tables) {
        if tables.node(self.id).is_some() {
            self.was_member.store(true, Ordering::Relaxed);
        } else if self.was_member.load(Ordering::Relaxed) {
            self.tell_removed();
        }
    }

    /// A peer does not know us. Only who was a member before can have been removed.
    fn refused(&self) {
        let known = {
            let tables = self.tables.read().unwrap_or_else(|e| e.into_inner());
            tables.node(self.id).is_some()
        };
        if known || self.had_members || self.was_member.load(Ordering::Relaxed) {
            self.tell_removed();
        }
    }

    fn tell_removed(&self) {
        if !self.told_removed.swap(true, Ordering::Relaxed) {
            let _ = self.events.send(Event::Removed);
        }
    }
}
