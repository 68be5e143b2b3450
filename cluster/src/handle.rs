//! What the node's other parts hold of the cluster: writes, reads, events, and the orders that an
//! operator gives. Cheap to clone, usable from any thread; only what is `async` needs a runtime.

use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::command::Op;
use tokio::sync::{broadcast, oneshot};

use crate::channel::{Channel, PeerStatus, RelayError};
use crate::clock;
use crate::command::Command;
use crate::config::Timing;
use crate::core::{Committed, CoreStatus, Counters, Input, LeaseCell, ProposeError};
use crate::driver::{Order, Orders, Published};
use crate::event::Event;
use crate::state::{Node, Tables};
use crate::types::{NodeId, Outcome, Rejection};

/// The running cluster node. It stops when the last clone is dropped, or by [`Handle::stop`].
#[derive(Clone)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) id: NodeId,
    pub(crate) timing: Timing,
    pub(crate) orders: Orders,
    pub(crate) tables: Arc<RwLock<Tables>>,
    pub(crate) lease: LeaseCell,
    pub(crate) boot: u64,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) changes: broadcast::Sender<Event>,
    pub(crate) relayed: broadcast::Sender<(NodeId, Bytes)>,
    pub(crate) published: Arc<Published>,
    pub(crate) channel: Option<Channel>,
    pub(crate) thread: Mutex<Option<JoinHandle<()>>>,
    pub(crate) runtime: Mutex<Option<tokio::runtime::Runtime>>,
}

impl Handle {
    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.shared.id
    }

    /// Writes `command`, waiting at most [`Timing::propose`].
    pub async fn propose(&self, command: Command) -> Result<Committed, ProposeError> {
        self.propose_within(command, self.shared.timing.propose).await
    }

    /// Writes `command`, waiting at most `timeout`. After a timeout it may still be committed.
    pub async fn propose_within(
        &self,
        command: Command,
        timeout: Duration,
    ) -> Result<Committed, ProposeError> {
        let (tell, told) = oneshot::channel();
        self.submit(command, timeout, move |result| {
            // The receiver may have been dropped with its future.
            let _ = tell.send(result);
        });
        told.await.unwrap_or(Err(ProposeError::Stopped))
    }

    /// Writes `command` from a thread without a runtime. `done` is called exactly once, on the
    /// driver's thread (on this one when refused at once), and must only hand the result over.
    pub fn submit(
        &self,
        command: Command,
        timeout: Duration,
        done: impl FnOnce(Result<Committed, ProposeError>) + Send + 'static,
    ) {
        self.shared.orders.propose(command.0, timeout, Box::new(done));
    }

    /// Looks at the tables as they are on this node. The lock is held meanwhile and keeps the log
    /// from being applied: take what is needed and return.
    pub fn read<R>(&self, look: impl FnOnce(&Tables) -> R) -> R {
        look(&self.shared.tables.read().unwrap_or_else(|e| e.into_inner()))
    }

    /// Counts the runs of this node; rows that this run wrote carry it.
    pub fn boot(&self) -> u64 {
        self.shared.boot
    }

    /// A key that all nodes of the cluster share, one per `label`: derived (HMAC-SHA256) from a
    /// secret that was drawn when the cluster was made and travels in the log alone. `None` until
    /// this node has the tables.
    pub fn secret(&self, label: &str) -> Option<[u8; 32]> {
        self.read(|tables| {
            let secret = tables.reserved_setting(crate::channel::pki::SECRET)?;
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
            ring::hmac::sign(&key, label.as_bytes()).as_ref().try_into().ok()
        })
    }

    /// Bindings and bans that change from now on, in the order of the log. Apart from
    /// [`Handle::subscribe`]: they may be many.
    pub fn changes(&self) -> Events {
        Events(self.shared.changes.subscribe())
    }

    /// Events from now on.
    pub fn subscribe(&self) -> Events {
        Events(self.shared.events.subscribe())
    }

    /// Whether a majority has confirmed this node within the lease. One atomic load and a clock
    /// read: fit for a packet's way. To be asked before acting for a floating address.
    pub fn lease_valid(&self) -> bool {
        self.shared.lease.is_valid(clock::now())
    }

    /// How long ago the confirmation was asked for that the lease runs from; `None` without a lease.
    /// Nobody is given what is ours before the hand-over delay has passed since then.
    pub fn lease_age(&self) -> Option<Duration> {
        self.shared.lease.age(clock::now(), self.shared.timing.lease)
    }

    /// Whether this floating address is ours at this moment.
    pub fn owns_address(&self, address: &str) -> bool {
        let ours = |tables: &Tables| {
            tables.address(address).is_some_and(|row| row.is_held_by(self.shared.id))
        };
        self.lease_valid() && self.read(ours)
    }

    /// The floating addresses that are ours at this moment.
    pub fn owned_addresses(&self) -> Vec<String> {
        if !self.lease_valid() {
            return Vec::new();
        }
        self.read(|tables| {
            tables
                .addresses()
                .filter(|(_, row)| row.is_held_by(self.shared.id))
                .map(|(address, _)| address.to_owned())
                .collect()
        })
    }

    pub fn status(&self) -> Status {
        let core = CoreStatus::clone(&self.shared.published.status.load());
        let peers = self.shared.channel.as_ref().map(Channel::status).unwrap_or_default();
        let (nodes, digest) = self.read(|tables| {
            let nodes = tables.nodes().map(|(id, node)| (id, node.clone())).collect();
            (nodes, tables.digest())
        });
        Status {
            lease_valid: self.lease_valid(),
            core,
            counters: **self.shared.published.counters.load(),
            peers,
            nodes,
            digest,
        }
    }

    /// Asks the leader, if it is this node, to hand on to `to`.
    pub fn transfer_leader(&self, to: NodeId) {
        self.shared.orders.put(Order::Input(Input::TransferLeader(to)));
    }

    /// Writes a snapshot now and shortens the log.
    pub fn take_snapshot(&self) {
        self.shared.orders.put(Order::Input(Input::TakeSnapshot));
    }

    /// Said by the edge once it has dropped the addresses of a group that it was asked to let go.
    /// `asked` is the latest [`Address::asked`](crate::Address::asked) of theirs at a time when none of those
    /// asked for was on a device any more.
    pub async fn addresses_dropped(
        &self,
        group: u32,
        asked: u64,
    ) -> Result<Committed, ProposeError> {
        let node = self.shared.id.0;
        let op = Op::ReleaseAddresses(pb::ReleaseAddresses { group, node, asked });
        self.propose(Command::new(op)).await
    }

    /// Said by the edge after [`Event::DrainRequested`], when everything is written and the
    /// floating addresses are dropped: the others take over now.
    /// `drain` is the event's.
    pub async fn hand_over(&self, drain: u64) -> Result<Committed, ProposeError> {
        let id = self.shared.id.0;
        self.propose(Command::new(Op::HandOver(pb::HandOver { id, drain }))).await
    }

    /// Makes a token with which one node may join until `ttl` has passed. It names the cluster's
    /// CA, so that the joiner knows whom it talks to.
    pub async fn create_join_token(&self, ttl: Duration) -> Result<String, JoinTokenError> {
        let channel = self.shared.channel.as_ref().ok_or(JoinTokenError::NoChannel)?;
        let (token, hash) = channel.new_token();
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let hash = Bytes::copy_from_slice(&hash);
        let command = Command::new(Op::PutToken(pb::PutToken { hash, ttl_ms }));
        match self.propose(command).await?.outcome {
            Outcome::Done { .. } => Ok(token),
            Outcome::Node(_) => Err(Rejection::Malformed.into()),
            Outcome::Rejected(why) => Err(why.into()),
        }
    }

    /// What other nodes send with [`Handle::relay`] from now on. Who falls behind by thousands loses
    /// the oldest.
    pub fn relayed(&self) -> Relayed {
        Relayed(self.shared.relayed.subscribe())
    }

    /// Sends bytes to another node, at most once, in order; the other has them from
    /// [`Handle::relayed`].
    pub fn relay(&self, to: NodeId, data: Bytes) -> Result<(), RelayError> {
        match &self.shared.channel {
            Some(channel) => channel.relay(to, data),
            None => Err(RelayError::NoPeer),
        }
    }

    /// Stops and waits until what was accepted is on disk. Blocks for a few milliseconds.
    pub fn stop(&self) {
        self.shared.stop();
    }
}

impl Shared {
    fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(thread) = thread {
            self.orders.put(Order::Stop);
            // A panic of the driver was reported as an event.
            let _ = thread.join();
        }
        if let Some(channel) = &self.channel {
            channel.close();
        }
        if let Some(runtime) = self.runtime.lock().unwrap_or_else(|e| e.into_inner()).take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum JoinTokenError {
    #[error("this node has no peer channel: set `listen`")]
    NoChannel,
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error(transparent)]
    Rejected(#[from] Rejection),
}

/// What `sbcctl cluster status` shows.
#[derive(Clone, Debug)]
pub struct Status {
    pub lease_valid: bool,
    pub core: CoreStatus,
    pub counters: Counters,
    pub peers: Vec<PeerStatus>,
    pub nodes: Vec<(NodeId, Node)>,
    /// Equal on nodes whose `core.applied` is equal.
    pub digest: u128,
}

/// Bytes of other nodes as they come.
pub struct Relayed(broadcast::Receiver<(NodeId, Bytes)>);

impl Relayed {
    /// The next; `None` when the node is gone.
    pub async fn next(&mut self) -> Option<(NodeId, Bytes)> {
        loop {
            match self.0.recv().await {
                Ok(item) => return Some(item),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// Events as they come. A subscriber that falls behind by thousands gets [`Event::Reloaded`] in
/// place of what it missed, and reads the tables again.
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// The next event; `None` when the node is gone. Needs no runtime of its own kind.
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Event::Reloaded),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// The next event, waiting on a thread without a runtime.
    pub fn next_blocking(&mut self) -> Option<Event> {
        match self.0.blocking_recv() {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Event::Reloaded),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// The next event if there is one.
    pub fn try_next(&mut self) -> Option<Event> {
        match self.0.try_recv() {
            Ok(event) => Some(event),
            Err(broadcast::error::TryRecvError::Lagged(_)) => Some(Event::Reloaded),
            Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => {
                None
            }
        }
    }
}
