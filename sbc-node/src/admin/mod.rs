//! The management API: gRPC on a private unix socket, and on TCP with mutual TLS.
//!
//! One file per service; `server.rs` listens, `convert.rs` is where prost types stop. Services for
//! bans, registrations and the cluster will stand beside these.

mod bans;
mod calls;
mod cluster;
mod configuration;
pub mod convert;
mod events;
mod media;
mod nodes;
mod registrations;
pub mod server;
pub mod tls;
mod trunks;
mod users;
