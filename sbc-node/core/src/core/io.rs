//! The contract between one shard's core and the edge that owns its sockets and clock.
//!
//! ```text
//! core.handle(now, input, &mut anchor);           // one mutation
//! while let Some(output) = core.poll() { … }      // then drain
//! core.deadline()                                 // when to call handle(now, Input::Tick)
//! ```

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Config;
use crate::b2bua::{CallId, CallRecord, Cdr};
use crate::media::{MediaId, Side};
use crate::net::{Flow, InterfaceId, Target, Transport};
use crate::registrar::{AorRecord, AorState, AskUser, Device, Found, Reached};
use crate::routing::UserPlace;
use crate::sip::Method;

/// Ties a transmission to the failure that may come back for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SendToken(pub u64);

/// Ties a resolution to its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResolveId(pub u64);

/// Ties a replicated write to its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreId(pub u64);

/// Why a message could not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// ICMP port/host unreachable, connection refused, no route.
    Unreachable,
    /// Connecting took longer than allowed.
    Timeout,
    /// The connection closed before the message was written.
    Closed,
    /// The send queue is full.
    Full,
    /// Larger than the transport can carry (EMSGSIZE).
    TooLarge,
}

/// What the edge tells the core.
#[derive(Debug)]
pub enum Input {
    /// The clock reached [`deadline`](Output); nothing else happened.
    Tick,
    /// One whole SIP message: a datagram, or a frame cut out of a stream. Or a STUN response, which
    /// answers a keepalive.
    Message { flow: Flow, data: Bytes },
    /// The same, and it is for this node and no other: it came back from [`Output::Elsewhere`], or
    /// from the node that received it.
    Here { flow: Flow, data: Bytes },
    /// A transmission failed.
    SendFailed { token: SendToken, error: SendError },
    /// A connection is gone; transactions on it that wait for it fail over. `flow` as in the
    /// messages that came by it: its `conn` is set, its `remote` the far end.
    ConnClosed { flow: Flow },
    /// The answer to [`Output::Resolve`], best target first.
    Resolved { id: ResolveId, result: Result<Vec<Target>, ResolveError> },
    /// Both directions of a session have been silent for its timeout.
    MediaTimeout { session: MediaId },
    /// A remote endpoint was latched or moved (worth replicating).
    MediaLatched { session: MediaId },
    /// The outcome of [`Output::Store`]. `protected` is false when the bounded wait ran out or
    /// there is no quorum: the call goes on, counted as unprotected.
    Stored { id: StoreId, protected: bool },
    /// Carry on a call of a node that is gone or drains.
    Adopt { record: Box<CallRecord>, mode: AdoptMode },
    /// What the replicated state holds of a user's bindings, at start and whenever another node
    /// writes it; for the shard that owns the address of record ([`Core::shard_of_aor`]).
    ///
    /// [`Core::shard_of_aor`]: super::Core::shard_of_aor
    Bindings(Box<AorState>),
    /// What [`Record::Aor`] said of this address of record was not committed.
    BindingsUnstored(Box<str>),
    /// Another shard of this node asks where a user is.
    Locate { from: u32, id: ResolveId, ask: Box<Locate> },
    /// The answer to [`Output::Shard`] with [`Input::Locate`]; empty when the user is offline or
    /// the question got lost.
    Located { id: ResolveId, found: Vec<Reached> },
    /// Another shard of this node misses the peer of a trunk, whose connection is gone.
    FindPeer { from: u32, interface: InterfaceId, host: IpAddr },
    /// What another shard says to [`Input::FindPeer`], if it has heard the peer: by which connection.
    PeerFound { flow: Flow },
    /// Which registrations with trunks are this node's to do; for the shard that probes
    /// ([`Core::probe_trunks`]). A node by itself does all and is not told.
    ///
    /// [`Core::probe_trunks`]: super::Core::probe_trunks
    Duties(Duties),
    /// The answer to [`Output::FindUser`].
    UserFound { id: ResolveId, found: Found },
    /// The answer to [`Output::AskRoom`]: what was given stands in the user's gate.
    RoomAsked { id: ResolveId },
    /// An operator's wish.
    Command(Command),
    /// A new configuration; calls that are up keep what they were set up with.
    Configure(Arc<Config>),
}

/// The registrations with trunks that a node has to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Duties {
    pub all: Vec<Duty>,
    /// Nobody carries on what is not among them: it is taken back.
    pub withdraw: bool,
}

/// One registration with a trunk that is this node's to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duty {
    pub trunk: Arc<str>,
    pub aor: Arc<str>,
    /// What the node that did it before has written.
    pub before: Option<HeldRegistration>,
}

/// What a registrar holds of us, for the node that carries it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRegistration {
    /// URI of the Contact that is registered.
    pub contact: Box<str>,
    pub call_id: Box<str>,
    /// Of the last request.
    pub cseq: u32,
    /// Unix milliseconds; past it the registrar has forgotten.
    pub until_ms: u64,
}

/// Who is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locate {
    /// The address of record.
    pub aor: String,
    /// A method that the contact must take.
    pub method: Method,
    pub device: Device,
}

/// Why a name did not resolve (RFC 3263).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveError {
    /// The name does not exist or has no address.
    NotFound,
    /// The servers did not answer in time.
    Timeout,
}

/// What RFC 3263 needs to find the next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolveQuery {
    pub host: String,
    /// An explicit port rules out SRV (RFC 3263 §4.2).
    pub port: Option<u16>,
    /// An explicit transport rules out NAPTR (RFC 3263 §4.1).
    pub transport: Option<Transport>,
    pub sips: bool,
    /// The interface to leave by: decides which transports and address families are usable.
    pub interface: InterfaceId,
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Back on a known flow (responses, in-dialog requests over a connection).
    Flow(Flow),
    /// To a target by an interface; the edge opens or reuses a connection for stream transports.
    Target { interface: InterfaceId, target: Target },
}

/// What the core asks of the edge.
#[derive(Debug)]
pub enum Output {
    Transmit {
        dest: Destination,
        data: Bytes,
        token: Option<SendToken>,
    },
    /// Start a resolution; the answer comes as [`Input::Resolved`]. Never blocks the shard.
    Resolve {
        id: ResolveId,
        query: ResolveQuery,
    },
    /// Write a record to the replicated state; answered by [`Input::Stored`] when `wait` is set.
    Store {
        id: StoreId,
        wait: Option<Duration>,
        record: Record,
    },
    /// A message of no dialog or transaction here, though it may be another node's. Who is asked
    /// passes it on, or gives it back as [`Input::Here`].
    Elsewhere {
        wanted: Wanted,
        flow: Flow,
        data: Bytes,
    },
    /// Hand this to another shard of this node. An [`Input::Locate`] that cannot be handed over is
    /// answered by an empty [`Input::Located`].
    Shard {
        shard: u32,
        input: Box<Input>,
    },
    /// Ask who a user is; answered by [`Input::UserFound`] within a bounded time, whatever happens.
    FindUser {
        id: ResolveId,
        ask: Box<AskUser>,
    },
    /// Ask the cluster for room for one more call of a user, in
    /// [`UserGates`](crate::routing::UserGates); answered by [`Input::RoomAsked`] within a bounded
    /// time, whatever happens.
    AskRoom {
        id: ResolveId,
        place: UserPlace,
    },
    /// Facts for the outside: CDRs, ladders, counters, alarms.
    Event(Event),
}

/// What a message belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The dialog with this Call-ID.
    Dialog(Box<str>),
    /// A transaction of the node with this number.
    Node(u16),
}

/// A write to the replicated state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An answered call, new or changed.
    Call(Box<CallRecord>),
    /// The call is over: forget it.
    CallEnded(CallId),
    /// Bindings of one address of record that are new, changed or gone.
    Aor(Box<AorRecord>),
    /// A registration with a trunk; `None`: it is no more.
    Registration { trunk: Arc<str>, aor: Arc<str>, held: Option<Box<HeldRegistration>> },
}

/// How a call of another node is carried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdoptMode {
    /// Its addresses came along: same ports, nothing is sent to the peers.
    Address,
    /// Its addresses are gone: both legs are re-INVITEd with our Contact and SDP.
    Reinvite,
}

/// What an operator asks of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// BYE (or CANCEL and 503) on both legs of one call.
    Hangup(CallId),
    /// The same for every call: the end of a drain.
    HangupAll,
    /// Another node carries this call on: drop it without a BYE and without a CDR.
    Forget(CallId),
    /// Addresses and calls of another node come to this one: for a while an INVITE may belong to a
    /// call that is in the replicated state and not carried on yet.
    TakeOver,
    /// New calls and probes are answered 503 while set; what is up goes on.
    Drain(bool),
    /// Emit [`Event::Trace`] for each message of this call, or of every new call if `None`.
    Trace { call: Option<CallId>, on: bool },
}

/// Which way a traced message went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Received,
    Sent,
}

/// One rung of a call's ladder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    pub call: CallId,
    pub side: Side,
    pub direction: Direction,
    /// Our address and the peer's; `None` where the edge picks the socket.
    pub local: Option<SocketAddr>,
    pub remote: SocketAddr,
    pub transport: Transport,
    /// Unix milliseconds.
    pub at_ms: u64,
    pub data: Bytes,
}

/// Something that happened, told outward; never needed for the core's own work.
#[derive(Clone, Debug)]
pub enum Event {
    /// A call was answered, on a node whose calls nobody else knows: its record, should the process
    /// end before the call does.
    Answered(Box<Cdr>),
    /// A call attempt is over.
    Cdr(Box<Cdr>),
    /// A message of a traced call was sent or received.
    Trace(Box<Trace>),
    /// Draining and no call is left.
    Drained,
    /// A user came, went or moved.
    Registration(crate::registrar::Changed),
    /// A peer of a trunk went up or down, by its probes.
    Peer { trunk: Arc<str>, host: Arc<str>, up: bool },
    /// A registration with a trunk changed its state; `failure` is the last one's status.
    TrunkRegistration {
        trunk: Arc<str>,
        aor: Arc<str>,
        state: crate::routing::RegistrationState,
        failure: Option<u16>,
    },
}
