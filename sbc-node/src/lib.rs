//! The edge of the SBC: sockets, shards, DNS, configuration file, management, telemetry.
//!
//! Protocol logic never lives here; it is `sbc-core`, driven by `shard`.

pub mod admin;
pub mod anchor;
pub mod cli;
pub mod config;
pub mod floating;
pub mod fuzz;
pub mod guard;
pub mod node;
pub mod resolve;
pub mod shard;
pub mod store;
pub mod telemetry;
pub mod transport;
pub mod users;
