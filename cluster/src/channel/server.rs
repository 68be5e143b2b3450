//! The receiving side: accepts connections, finds out who calls, and serves streams, snapshots,
//! joiners and renewals. Who is not a member is refused before anything it sent is looked at.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::command::Op;
use sbc_proto::cluster::v1::membership_server::{Membership, MembershipServer};
use sbc_proto::cluster::v1::peer_frame::Body;
use sbc_proto::cluster::v1::replication_server::{Replication, ReplicationServer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{Sender, channel};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::content::{self, Content, OutOfPlace};
use super::key::Proof;
use super::pki::{self, Ca};
use super::tls::{Accepted, Caller};
use super::{FRAME_BYTES_MAX, Local, snapshot};
use crate::clock;
use crate::config::FAREWELL_HEAR;
use crate::core::Input;
use crate::types::{NodeId, Outcome, Rejection};

const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// How long one who holds the join key may take to come up.
const KEY_TOKEN_MS: u64 = 60_000;
/// Handshakes going on at a time; more wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 64;

/// Serves until told to close.
pub(super) async fn serve(
    local: Arc<Local>,
    listener: TcpListener,
    config: ServerConfig,
    closed: Arc<Notify>,
) {
    let (accepted, incoming) = channel::<std::io::Result<Accepted>>(16);
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let accept = tokio::spawn(accept(listener, acceptor, local.key.clone(), accepted));
    let service = Service { local };
    let replication = ReplicationServer::new(service.clone())
        .max_decoding_message_size(FRAME_BYTES_MAX)
        .max_encoding_message_size(FRAME_BYTES_MAX);
    let membership = MembershipServer::new(service).max_decoding_message_size(64 * 1024);
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(1)))
        .http2_keepalive_timeout(Some(Duration::from_secs(2)))
        .max_concurrent_streams(64)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(8 * 1024 * 1024)
        .add_service(replication)
        .add_service(membership)
        .serve_with_incoming(ReceiverStream::new(incoming));
    tokio::select! {
        result = server => if let Err(e) = result {
            tracing::error!(error = %super::chain(&e), "peer channel");
        },
        () = closed.notified() => {}
    }
    accept.abort();
}

pub(super) async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    key: Option<Arc<Proof>>,
    accepted: Sender<std::io::Result<Accepted>>,
) {
    let slots = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(e) => {
                // Out of file descriptors, most likely: let others finish.
                tracing::warn!(error = %e, "accepting a peer");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, key, accepted) = (acceptor.clone(), key.clone(), accepted.clone());
        tokio::spawn(async move {
            let _slot = slot;
            match timeout(HANDSHAKE_WITHIN, handshake(acceptor, key, tcp)).await {
                // The server may have ended meanwhile.
                Ok(Ok(connection)) => drop(accepted.send(Ok(connection)).await),
                Ok(Err(e)) => tracing::debug!(error = %e, "peer refused in handshake"),
                Err(_) => tracing::debug!("peer too slow in handshake"),
            }
        });
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    key: Option<Arc<Proof>>,
    tcp: TcpStream,
) -> std::io::Result<Accepted> {
    tcp.set_nodelay(true)?;
    Ok(Accepted::new(acceptor.accept(tcp).await?, key.as_deref()))
}

#[derive(Clone)]
struct Service {
    local: Arc<Local>,
}

fn caller<T>(request: &Request<T>) -> Option<NodeId> {
    request.extensions().get::<Caller>().and_then(|caller| caller.node)
}

fn holds_key<T>(request: &Request<T>) -> bool {
    request.extensions().get::<Caller>().is_some_and(|caller| caller.by_key)
}

impl Service {
    /// The caller, if the nodes table knows it. A node that has just joined and has no table yet
    /// takes whoever the CA certified.
    fn member<T>(&self, request: &Request<T>) -> Result<NodeId, Status> {
        let node = caller(request).ok_or_else(|| Status::unauthenticated("no certificate"))?;
        self.known(node)?;
        Ok(node)
    }

    fn known(&self, node: NodeId) -> Result<(), Status> {
        let tables = self.local.tables.read().unwrap_or_else(PoisonError::into_inner);
        if tables.node(node).is_none() && tables.node(self.local.id).is_some() {
            return Err(Status::permission_denied("not a member"));
        }
        Ok(())
    }

    fn greet(&self, from: NodeId, frame: Option<pb::PeerFrame>) -> Result<(), Status> {
        let Some(Body::Hello(hello)) = frame.and_then(|frame| frame.body) else {
            return Err(Status::invalid_argument("hello expected"));
        };
        let ours = self.local.hello();
        if hello.node != from.0 || hello.cluster_id != ours.cluster_id {
            return Err(Status::permission_denied("another cluster or another node"));
        }
        if hello.version > self.local.format {
            tracing::info!(peer = %from, version = hello.version, "peer of a later release");
        }
        self.local.learn(from, hello.address);
        Ok(())
    }

    fn take(&self, from: NodeId, frame: pb::PeerFrame) -> Result<(), Status> {
        match content::of(frame) {
            Ok(Content::Raft(messages)) => {
                for bytes in messages {
                    // A full queue loses messages, as a network would.
                    self.local.orders.offer(Input::Message { from, bytes });
                }
                Ok(())
            }
            Ok(Content::Relay(data)) => {
                // Nobody may be listening.
                let _ = self.local.relayed.send((from, data));
                Ok(())
            }
            Err(OutOfPlace) => Err(Status::invalid_argument("frame out of place")),
        }
    }

    fn count(&self, from: NodeId, bytes: u64, malformed: bool) {
        let peers = self.local.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(&from) {
            peer.metrics.received_bytes.fetch_add(bytes, Ordering::Relaxed);
            peer.metrics.malformed.fetch_add(u64::from(malformed), Ordering::Relaxed);
        }
    }

    async fn receive(
        self,
        from: NodeId,
        mut frames: Streaming<pb::PeerFrame>,
        acks: Sender<Result<pb::PeerAck, Status>>,
    ) {
        let mut removed_since = None;
        loop {
            let frame = match frames.message().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(status) => {
                    let malformed = matches!(status.code(), Code::Internal | Code::OutOfRange);
                    self.count(from, 0, malformed);
                    return;
                }
            };
            // A stream outlives the membership: who was removed and did not hear of it learns it by
            // this. Until then its word may be needed for the change of membership itself.
            if let Err(status) = self.known(from) {
                let now = clock::now();
                if now.saturating_sub(*removed_since.get_or_insert(now)) >= FAREWELL_HEAR {
                    let _ = acks.send(Err(status)).await;
                    return;
                }
            }
            let seq = frame.seq;
            self.count(from, prost::Message::encoded_len(&frame) as u64, false);
            if let Err(status) = self.take(from, frame) {
                self.count(from, 0, true);
                // The caller may be gone already.
                let _ = acks.send(Err(status)).await;
                return;
            }
            if acks.send(Ok(pb::PeerAck { seq })).await.is_err() {
                return;
            }
        }
    }

    fn sign(&self, csr: &[u8], node: NodeId) -> Result<(String, String), Status> {
        let ca = {
            let tables = self.local.tables.read().unwrap_or_else(PoisonError::into_inner);
            Ca::from_tables(&tables).map_err(|e| Status::unavailable(e.to_string()))?
        };
        let certificate = ca.sign(csr, node);
        let certificate = certificate.map_err(|e| Status::invalid_argument(e.to_string()))?;
        Ok((certificate, ca.certificate))
    }

    /// A token for one who holds the join key. It is made of the request, so that asking again does
    /// not let the same node in twice.
    async fn put_token(&self, hash: [u8; 32]) -> Result<(), Status> {
        let known = {
            let tables = self.local.tables.read().unwrap_or_else(PoisonError::into_inner);
            tables.has_token(&hash)
        };
        if known {
            return Ok(());
        }
        let hash = bytes::Bytes::copy_from_slice(&hash);
        match self.commit(Op::PutToken(pb::PutToken { hash, ttl_ms: KEY_TOKEN_MS })).await? {
            Outcome::Done { .. } => Ok(()),
            Outcome::Rejected(why) => Err(Status::failed_precondition(why.to_string())),
            Outcome::Node(_) => Err(Status::internal("no token was made")),
        }
    }

    async fn commit(&self, op: Op) -> Result<Outcome, Status> {
        self.local.propose(op).await.map_err(|e| Status::unavailable(e.to_string()))
    }
}

type Acks = Pin<Box<dyn Stream<Item = Result<pb::PeerAck, Status>> + Send>>;

#[tonic::async_trait]
impl Replication for Service {
    type StreamStream = Acks;

    async fn stream(
        &self,
        request: Request<Streaming<pb::PeerFrame>>,
    ) -> Result<Response<Acks>, Status> {
        let from = self.member(&request)?;
        let mut frames = request.into_inner();
        let first = timeout(HANDSHAKE_WITHIN, frames.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello"))??;
        self.greet(from, first)?;
        let (acks, stream) = channel(64);
        tokio::spawn(self.clone().receive(from, frames, acks));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotChunk>>,
    ) -> Result<Response<pb::SnapshotDone>, Status> {
        let from = self.member(&request)?;
        snapshot::receive(&self.local, from, request.into_inner()).await?;
        Ok(Response::new(pb::SnapshotDone {}))
    }
}

#[tonic::async_trait]
impl Membership for Service {
    async fn join(
        &self,
        request: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinResponse>, Status> {
        let by_key = holds_key(&request);
        let join = request.into_inner();
        // Before its token is used up.
        let joiner = pki::joiner(&join.csr);
        let joiner = joiner.map_err(|e| Status::invalid_argument(e.to_string()))?;
        let token = if by_key { pki::sha256(&join.csr) } else { pki::sha256(&join.token) };
        if by_key {
            self.put_token(token).await?;
        }
        let add = pb::AddNode {
            name: join.name,
            address: join.address,
            voter: !join.learner,
            token: bytes::Bytes::copy_from_slice(&token),
            format: join.format,
            joiner: bytes::Bytes::copy_from_slice(&joiner),
        };
        let id = match self.commit(Op::AddNode(add)).await? {
            Outcome::Node(id) => id,
            Outcome::Rejected(Rejection::Token) => {
                return Err(Status::permission_denied("token"));
            }
            Outcome::Rejected(why @ Rejection::Format) => {
                return Err(Status::unimplemented(why.to_string()));
            }
            Outcome::Rejected(why) => return Err(Status::failed_precondition(why.to_string())),
            Outcome::Done { .. } => return Err(Status::internal("no id was given")),
        };
        let (certificate, ca) = self.sign(&join.csr, id)?;
        let tables = self.local.tables.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Response::new(pb::JoinResponse {
            id: id.0,
            cluster_id: bytes::Bytes::copy_from_slice(tables.cluster_id()),
            certificate,
            ca,
            nodes: tables.nodes().map(|(id, node)| node.to_pb(id)).collect(),
        }))
    }

    async fn ask(
        &self,
        request: Request<pb::AskRequest>,
    ) -> Result<Response<pb::AskReply>, Status> {
        if !holds_key(&request) && caller(&request).is_none() {
            return Err(Status::permission_denied("who asks"));
        }
        Ok(Response::new(pb::AskReply { name: String::new(), empty: false }))
    }

    async fn renew(
        &self,
        request: Request<pb::RenewRequest>,
    ) -> Result<Response<pb::RenewResponse>, Status> {
        let node = self.member(&request)?;
        let (certificate, ca) = self.sign(&request.get_ref().csr, node)?;
        Ok(Response::new(pb::RenewResponse { certificate, ca }))
    }
}
