//! Values that pass between the transaction layer and the transaction user (TU).
//!
//! No behaviour lives here.

use std::time::Duration;

use bytes::Bytes;

use crate::core::{Destination, SendError};
use crate::ids::Branch;
use crate::net::Flow;
use crate::sip::{Message, Method};

/// What the TU wants to be told with every event of a transaction (which call, which probe).
/// Opaque to the layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(pub u64);

/// Names a client transaction. Dead once the transaction has ended, and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// Names a server transaction. Dead once the transaction has ended, and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServerId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// A request to send by a client transaction. Not for ACK and CANCEL: see
/// [`transmit`](super::TransactionLayer::transmit) and [`cancel`](super::TransactionLayer::cancel).
#[derive(Clone, Debug)]
pub struct ClientRequest {
    pub owner: Owner,
    /// The branch written into the topmost Via of `data`.
    pub branch: Branch,
    /// As in the request line of `data`.
    pub method: Method,
    pub dest: Destination,
    /// The whole message.
    pub data: Bytes,
    /// Overrides timer B or F, to fail over sooner.
    pub timeout: Option<Duration>,
    /// What to do when `data` is too large for UDP.
    pub large: Large,
}

/// RFC 3261 §18.1.1 for a request above [`UDP_LIMIT`](super::UDP_LIMIT) whose target says UDP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Large {
    /// Send by UDP all the same, in IP fragments.
    #[default]
    Udp,
    /// Send by TCP to the same address, and again by UDP if the connection fails. Its Via names
    /// our TCP listener, `host:port`.
    Tcp { sent_by: Box<str> },
}

/// The table of client transactions is full: fail the request with 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many client transactions")]
pub struct TableFull;

/// Why a response was not taken. The transaction is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RespondError {
    #[error("the transaction has ended")]
    Gone,
    #[error("a final response was sent before")]
    Late,
    /// RFC 4320 §4: a provisional other than 100, or 408, to a non-INVITE request.
    #[error("RFC 4320 forbids this response to a non-INVITE request")]
    Forbidden,
}

/// What the layer tells the TU.
#[derive(Clone, Debug)]
pub enum Event {
    /// A new request. The TU answers by [`respond`](super::TransactionLayer::respond); a non-INVITE
    /// within 64*T1, an INVITE whenever it likes (100 is sent by itself).
    ///
    /// `merged`: the same request came by another way before (RFC 3261 §8.2.2.2): answer 482.
    Request { id: ServerId, flow: Flow, message: Message, merged: bool },
    /// The ACK of a 2xx, or one that belongs to nothing. Never answered.
    Ack { flow: Flow, message: Message },
    /// A CANCEL for an INVITE without a final response. The 200 for the CANCEL has been sent; the
    /// TU answers the INVITE, with 487 unless it has something better. Told once.
    Cancelled { id: ServerId, owner: Option<Owner>, message: Message },
    /// A response of a client transaction: every provisional, the final one once, of an INVITE
    /// every 2xx (RFC 6026 §8.4). For non-2xx the ACK has been sent.
    Response { id: ClientId, owner: Owner, message: Message },
    /// A 2xx to an INVITE of ours whose transaction has ended: ACK and BYE it. A few per second
    /// ([`Config::stray_ok_per_sec`](super::Config)), the rest is only counted.
    StrayOk { flow: Flow, message: Message },
    /// No final response came in time (timers B, F, or §9.1 after CANCEL). No other event follows.
    ClientTimeout { id: ClientId, owner: Owner },
    /// The request or its ACK could not be sent. No other event follows.
    ClientTransportError { id: ClientId, owner: Owner, error: SendError },
    /// An INVITE's final response got no ACK (timer H), or a non-INVITE got no response in time.
    /// The transaction has ended.
    ServerTimeout { id: ServerId, owner: Option<Owner> },
    /// A response could not be sent. The transaction goes on (RFC 6026 §8.8).
    ServerTransportError { id: ServerId, owner: Option<Owner>, error: SendError },
}

/// Counters since the start, and sizes now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub clients: usize,
    pub servers: usize,
    /// Requests refused with 503 because the server table is full.
    pub refused_full: u64,
    /// Requests of the TU refused because the client table is full.
    pub refused_clients: u64,
    /// Requests that came again and were absorbed or answered from memory.
    pub request_retransmissions: u64,
    /// Requests and ACKs that we sent again.
    pub sent_retransmissions: u64,
    /// Responses that belong to no transaction.
    pub stray_responses: u64,
    /// Messages without a usable Via or CSeq.
    pub unusable: u64,
}
