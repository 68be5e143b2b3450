//! SIP transactions: RFC 3261 §17 with RFC 6026 and RFC 4320, without sockets and clocks.
//!
//! One file per figure of the RFC (`invite_client.rs`, …), each a pure function of state and
//! input. [`TransactionLayer`] owns the tables, the timers and the bytes. What a response means to
//! a call, and where to send the next attempt, belongs to the transaction user (TU).
//!
//! ```text
//! layer.handle_message(now, flow, message)          // a parsed, validated message
//! layer.handle_send_failed(now, token, error)
//! layer.handle_tick(now)
//! layer.send_request(now, ClientRequest {..})  -> Result<ClientId, TableFull>
//! layer.cancel(now, client_id, reason)              // CANCEL waits for a provisional by itself
//! layer.respond(now, server_id, status, bytes) -> Result<(), RespondError>
//! layer.transmit(dest, bytes)                       // the ACK of a 2xx: no transaction
//! while let Some(event) = layer.poll_event() {..}   // Request, Ack, Cancelled, Response, Timeout..
//! while let Some(output) = layer.poll_output() {..} // Output::Transmit only
//! layer.deadline()
//! ```

pub mod invite_client;
pub mod invite_server;
pub mod non_invite_client;
pub mod non_invite_server;

mod adopt;
mod client;
mod config;
mod large;
mod layer;
mod matching;
mod ok_retransmit;
mod reply_route;
mod server;
mod table;
mod types;

pub use adopt::AdoptedServer;
pub use config::{Config, TimerConfig};
pub use large::UDP_LIMIT;
pub use layer::TransactionLayer;
pub use ok_retransmit::{OkDue, OkRetransmit};
pub use reply_route::{ReplyRoute, reply_route};
pub use server::RequestKey;
pub use types::{
    ClientId, ClientRequest, Event, Large, Owner, RespondError, ServerId, Stats, TableFull,
};

#[cfg(test)]
mod tests;
