//! Replicated state of an SBC cluster: what one node has answered, all hold; what one carried when
//! it died, another carries on.
//!
//! [`Cluster::start`] gives a [`Handle`]: commands go in and come back committed, tables are read,
//! events say what to act upon. A cluster of one needs no network and no option. The crate knows
//! nothing of SIP: it replicates records.
//!
//! ```text
//! types, command, event, config   the words
//! state/     tables and what a log entry does to them: a pure function of the log
//! core/      one Raft node, sans-IO: sessions, lease, leader's duties
//! store/     log, snapshots, identity on disk
//! channel/   gRPC streams between nodes with mutual TLS, joining, certificates
//! driver     the thread that owns the core;  handle  what others hold of it
//! ```

mod channel;
mod clock;
mod cluster;
mod command;
mod config;
mod core;
mod driver;
mod event;
#[doc(hidden)]
pub mod fuzz;
mod handle;
mod hex;
#[cfg(test)]
mod sim;
mod state;
mod store;
mod types;

pub use channel::{PeerStatus, RelayError};
pub use cluster::Cluster;
pub use command::Command;
pub use config::{Config, Discovery, JoinKey, Limits, Origin, StartError, Timing};
pub use core::{Committed, CoreStatus, Counters, ProposeError};
pub use event::Event;
pub use handle::{Events, Handle, JoinTokenError, Relayed, Status};
pub use state::{
    Address, Ban, BanKey, Binding, BindingKey, BindingRows, Dialog, DialogPlace, FORMAT_VERSION,
    Next, Node, NodeState, SnapshotError, Tables,
};
pub use store::StoreError;
pub use types::{AorKey, BindingChange, DialogKey, NodeId, Outcome, Rejection, Table};
