//! SIP transactions: RFC 3261 §17 with RFC 6026 and RFC 4320, without sockets and clocks.
pub mod invite_client;
pub mod invite_server;
pub mod non_invite_client;
pub mod non_invite_server;

mod config;

pub use config::{Config, TimerConfig};
