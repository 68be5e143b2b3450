//! The channel between nodes: per peer one long-lived stream that we open and send on, with mutual
//! TLS; snapshots on streams of their own. Only what an authenticated member says reaches the core.
//!
//! `peer.rs` the sending side, `server.rs` the receiving side and joining, `snapshot.rs` the
//! transfer of snapshots, `join.rs` how a node asks to be let in, `discovery.rs` how it finds whom
//! to ask, `meet.rs` how nodes without data agree on who begins, `tls.rs`, `pki.rs` and `key.rs` who
//! is who.

pub(crate) mod content;
pub(crate) mod discovery;
pub(crate) mod join;
pub(crate) mod key;
pub(crate) mod meet;
mod peer;
pub(crate) mod pki;
mod server;
mod snapshot;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::command::Op;
use sbc_proto::cluster::v1::membership_client::MembershipClient;
use tokio::net::TcpListener;
use tokio::sync::broadcast;

use crate::config::FAREWELL_SEND;
use crate::core::Input;
use crate::driver::Orders;
use crate::event::Event;
use crate::state::Tables;
use crate::store::Snapshots;
use crate::types::NodeId;

use peer::{Item, Peer};
use pki::{Files, PkiError, Request, Token};
use tls::Current;

/// Largest frame taken in.
const FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Largest piece relayed for the edge.
const RELAY_BYTES_MAX: usize = 1024 * 1024;
/// How often addresses and certificates are looked at.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

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
    /// Messages dropped because the queue was full or the stream broke.
    pub dropped: u64,
    pub connects: u64,
    /// Streams of the peer closed for a frame that did not decode.
    pub malformed: u64,
}

/// Why bytes were not relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    #[error("no such peer")]
    NoPeer,
    #[error("the peer is not connected")]
    NotConnected,
    #[error("the queue to the peer is full")]
    Full,
    #[error("more than 1 MiB")]
    TooLarge,
}

/// What the channel is given.
pub(crate) struct Setup {
    pub(crate) id: NodeId,
    pub(crate) dir: PathBuf,
    pub(crate) address: String,
    pub(crate) software: String,
    pub(crate) format: u32,
    pub(crate) listen: std::net::SocketAddr,
    pub(crate) key: Option<key::JoinKey>,
    pub(crate) tables: Arc<RwLock<Tables>>,
    pub(crate) orders: Orders,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) relayed: broadcast::Sender<(NodeId, Bytes)>,
    pub(crate) snapshots: Snapshots,
    pub(crate) runtime: tokio::runtime::Handle,
}

/// What all tasks of the channel share.
struct Local {
    id: NodeId,
    address: String,
    software: String,
    format: u32,
    files: Files,
    current: Arc<Current>,
    key: Option<Arc<key::Proof>>,
    tables: Arc<RwLock<Tables>>,
    orders: Orders,
    events: broadcast::Sender<Event>,
    relayed: broadcast::Sender<(NodeId, Bytes)>,
    snapshots: Snapshots,
    runtime: tokio::runtime::Handle,
    peers: Mutex<HashMap<NodeId, Peer>>,
    /// Whether the table of members once had a row of this node.
    was_member: AtomicBool,
    /// Whether it came from its disk with a table of members: one without its row is of a cluster that
    /// it has left, if its peers say so too.
    had_members: bool,
    told_removed: AtomicBool,
}

/// The channel's handle.
#[derive(Clone)]
pub(crate) struct Channel {
    local: Arc<Local>,
    closed: Arc<tokio::sync::Notify>,
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl Channel {
    /// Opens the listening socket and begins to serve. Peers come by [`Channel::set_peers`].
    pub(crate) fn start(setup: Setup) -> Result<Self, PkiError> {
        let files = Files::new(&setup.dir);
        let loaded = files.load(&tls::provider())?;
        let current = Arc::new(Current(ArcSwap::from_pointee(loaded)));
        let key = setup.key.as_ref().map(key::JoinKey::proof).transpose()?.map(Arc::new);
        let server = tls::server_config(&current, Arc::clone(&setup.tables), key.clone())?;
        let listener = setup
            .runtime
            .block_on(TcpListener::bind(setup.listen))
            .map_err(|e| PkiError::Io(Path::new(&setup.listen.to_string()).to_owned(), e))?;
        let had_members = {
            let tables = setup.tables.read().unwrap_or_else(PoisonError::into_inner);
            tables.nodes().next().is_some()
        };
        let local = Arc::new(Local {
            id: setup.id,
            address: setup.address,
            software: setup.software,
            format: setup.format,
            files,
            current,
            key,
            tables: setup.tables,
            orders: setup.orders,
            events: setup.events,
            relayed: setup.relayed,
            snapshots: setup.snapshots,
            runtime: setup.runtime.clone(),
            peers: Mutex::default(),
            was_member: AtomicBool::new(false),
            had_members,
            told_removed: AtomicBool::new(false),
        });
        let closed = Arc::new(tokio::sync::Notify::new());
        let serve = server::serve(Arc::clone(&local), listener, server, Arc::clone(&closed));
        setup.runtime.spawn(serve);
        setup.runtime.spawn(upkeep(Arc::clone(&local)));
        Ok(Channel { local, closed })
    }

    fn with_peer<R>(&self, node: NodeId, act: impl FnOnce(&Peer) -> R) -> Option<R> {
        let peers = self.local.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.get(&node).map(act)
    }

    /// Queues a Raft message; what does not fit is lost, and Raft is told.
    pub(crate) fn send(&self, to: NodeId, bytes: Bytes) {
        let taken = self.with_peer(to, |peer| peer.send(Item::Raft(bytes)));
        if taken != Some(true) {
            self.local.orders.offer(Input::Unreachable(to));
        }
    }

    pub(crate) fn relay(&self, to: NodeId, data: Bytes) -> Result<(), RelayError> {
        if data.len() > RELAY_BYTES_MAX {
            return Err(RelayError::TooLarge);
        }
        self.with_peer(to, |peer| {
            if !peer.is_connected() {
                Err(RelayError::NotConnected)
            } else if peer.send(Item::Relay(data)) {
                Ok(())
            } else {
                Err(RelayError::Full)
            }
        })
        .unwrap_or(Err(RelayError::NoPeer))
    }

    pub(crate) fn send_snapshot(&self, to: NodeId, message: Bytes, index: u64) {
        let local = Arc::clone(&self.local);
        let address = self.with_peer(to, |peer| peer.address.borrow().clone());
        self.local.runtime.spawn(async move {
            let ok = match address {
                Some(address) => snapshot::send(&local, to, address, message, index).await,
                None => Err("no such peer".to_owned()),
            };
            if let Err(reason) = &ok {
                tracing::warn!(peer = %to, %reason, "snapshot not sent");
            }
            local.report_snapshot(to, ok.is_ok());
        });
    }

    /// Follows the nodes table.
    pub(crate) fn set_peers(&self, tables: &Tables) {
        if tables.nodes().next().is_none() {
            return;
        }
        self.local.follow_own_row(tables);
        let wanted: BTreeMap<NodeId, String> = tables
            .nodes()
            .filter(|(id, _)| *id != self.local.id)
            .map(|(id, node)| (id, node.address.clone()))
            .collect();
        let gone = {
            let peers = self.local.peers.lock().unwrap_or_else(PoisonError::into_inner);
            peers.keys().any(|id| !wanted.contains_key(id))
        };
        if gone {
            self.local.runtime.spawn(forget_gone(Arc::clone(&self.local)));
        }
        for (id, address) in wanted {
            self.local.learn(id, address);
        }
    }

    /// Whom a joiner was told of; the table replaces them once it is there.
    pub(crate) fn add_peers(&self, seeds: &join::Seeds) {
        for (id, address) in seeds {
            self.local.learn(*id, address.clone());
        }
    }

    /// A member is said to be at this address: tried until it says another one itself.
    pub(crate) fn heard_of(&self, name: &str, address: String) {
        let node = {
            let tables = self.local.tables.read().unwrap_or_else(PoisonError::into_inner);
            tables.nodes().find(|(_, row)| row.name == name).map(|(id, _)| id)
        };
        if let Some(node) = node {
            self.local.learn(node, address);
        }
    }

    pub(crate) fn status(&self) -> Vec<PeerStatus> {
        let peers = self.local.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> = peers.iter().map(|(id, peer)| peer.status(*id)).collect();
        list.sort_by_key(|status| status.node);
        list
    }

    /// A new token, as text for people and as the hash that is replicated.
    pub(crate) fn new_token(&self) -> (String, [u8; 32]) {
        let token = Token::new(&self.local.current.0.load().ca);
        (token.print(), pki::sha256(&token.secret))
    }

    pub(crate) fn close(&self) {
        self.closed.notify_waiters();
        self.local.peers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Local {
    fn client_config(&self) -> Arc<rustls::ClientConfig> {
        match tls::client_config(&self.current) {
            Ok(config) => Arc::new(config),
            Err(e) => {
                // The same certificate was good when it was loaded.
                tracing::error!(error = %e, "TLS configuration");
                Arc::new(
                    tls::joiner_config([0; 32])
                        .expect("a configuration without certificates always builds"),
                )
            }
        }
    }

    fn hello(&self) -> pb::Hello {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        pb::Hello {
            version: self.format,
            cluster_id: Bytes::copy_from_slice(tables.cluster_id()),
            node: self.id.0,
            address: self.address.clone(),
        }
    }

    /// A peer is at this address: known from the table, or said by itself.
    fn learn(self: &Arc<Self>, node: NodeId, address: String) {
        if node == self.id || address.is_empty() {
            return;
        }
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        match peers.get(&node) {
            Some(peer) => {
                peer.address.send_if_modified(|known| {
                    let changed = *known != address;
                    *known = address;
                    changed
                });
            }
            None => {
                peers.insert(node, Peer::start(node, address, self));
            }
        }
    }

    fn report_snapshot(&self, to: NodeId, ok: bool) {
        self.orders.offer(Input::SnapshotSent { to, ok });
    }

    /// Writes a command of the channel's own.
    async fn propose(&self, op: Op) -> Result<crate::Outcome, crate::ProposeError> {
        let (tell, told) = tokio::sync::oneshot::channel();
        let command = pb::Command { op: Some(op) };
        let reply = Box::new(move |result| {
            // The asker may have gone.
            let _ = tell.send(result);
        });
        self.orders.propose(command, Duration::from_secs(5), reply);
        let committed = told.await.unwrap_or(Err(crate::ProposeError::Stopped))?;
        Ok(committed.outcome)
    }

    /// Makes the table say what is true of us.
    async fn update_own_row(&self) {
        let wrong = {
            let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
            tables
                .node(self.id)
                .is_some_and(|row| row.address != self.address || row.software != self.software)
        };
        if wrong {
            let op = Op::UpdateNode(pb::UpdateNode {
                id: self.id.0,
                address: self.address.clone(),
                software: self.software.clone(),
            });
            if let Err(e) = self.propose(op).await {
                tracing::debug!(error = %e, "own address not written yet");
            }
        }
    }

    /// Asks for a new certificate while the old one still holds: of ourselves when we hold the CA.
    async fn renew_certificate(&self) -> Result<(), PkiError> {
        let request = Request::new()?;
        let signed = {
            let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
            pki::Ca::from_tables(&tables)
                .and_then(|ca| Ok((ca.sign(&request.csr, self.id)?, ca.certificate)))
        };
        let (certificate, ca) = match signed {
            Ok(pair) => pair,
            Err(_) => self.ask_renewal(&request).await.ok_or(PkiError::NoCa)?,
        };
        self.files.save(&request, &certificate, &ca)?;
        let loaded = self.files.load(&tls::provider())?;
        self.current.0.store(Arc::new(loaded));
        Ok(())
    }

    async fn ask_renewal(&self, request: &Request) -> Option<(String, String)> {
        let known: Vec<(NodeId, String)> = {
            let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
            peers.iter().map(|(id, peer)| (*id, peer.address.borrow().clone())).collect()
        };
        for (node, address) in known {
            let Ok(channel) = peer::connect(node, address, self.client_config()).await else {
                continue;
            };
            let csr = Bytes::copy_from_slice(&request.csr);
            let answer = MembershipClient::new(channel).renew(pb::RenewRequest { csr }).await;
            if let Ok(answer) = answer {
                let answer = answer.into_inner();
                return Some((answer.certificate, answer.ca));
            }
        }
        None
    }
}

/// Drops the streams to nodes that are no members any more, once they have heard of it.
async fn forget_gone(local: Arc<Local>) {
    tokio::time::sleep(FAREWELL_SEND).await;
    let tables = local.tables.read().unwrap_or_else(PoisonError::into_inner);
    let mut peers = local.peers.lock().unwrap_or_else(PoisonError::into_inner);
    // Before there are tables the peers are those that a joiner was told of.
    if tables.nodes().next().is_some() {
        peers.retain(|id, _| tables.node(*id).is_some());
    }
}

async fn upkeep(local: Arc<Local>) {
    let weak = Arc::downgrade(&local);
    drop(local);
    let mut pause = Duration::from_millis(500);
    loop {
        tokio::time::sleep(pause).await;
        pause = UPKEEP_EVERY;
        let Some(local) = weak.upgrade() else {
            return;
        };
        local.update_own_row().await;
        if local.current.0.load().is_due()
            && let Err(e) = local.renew_certificate().await
        {
            tracing::warn!(error = %e, "certificate not renewed yet");
        }
        local.told_removed.store(false, Ordering::Relaxed);
    }
}
