//! Signalling shards: one thread each, which owns its sockets, its clock and one machine.
//!
//! `run.rs` is the loop, `listen.rs`, `send.rs` and `names.rs` are its sockets, its way out and its
//! lookups, `pace.rs` when messages gather, `queue.rs` the only way in from other threads, `command.rs` what may be
//! asked, `stats.rs` what is counted.

pub mod command;
pub mod commit;
pub mod core;
pub mod listen;
mod names;
mod pace;
pub mod queue;
pub mod run;
mod send;
pub mod stats;

use std::time::{Duration, Instant};

use sbc_core::core::{Input, Output};
use sbc_core::media::Anchor;
use sbc_core::net::Flow;

/// What a shard runs: the SIP core, or a small stand-in in tests of the transports.
pub trait Machine: 'static {
    /// One mutation; its outputs are polled right after.
    fn handle(&mut self, now: Instant, input: Input, anchor: &mut dyn Anchor);
    /// The next output, until there is none.
    fn poll(&mut self) -> Option<Output>;
    /// When [`Input::Tick`] is due.
    fn deadline(&self) -> Option<Instant>;
    /// The shard that a raw message belongs to among `shards`; `None` where it does not matter.
    fn owner(&self, data: &[u8], shards: usize) -> Option<usize>;
    /// Whether what comes by a flow is looked at at all: asked for each datagram and message of a
    /// stream before anything else.
    fn lets_in(&self, _now: Instant, _flow: &Flow) -> bool {
        true
    }
    /// Whether a connection that was accepted may stay.
    fn welcomes(&self, _now: Instant, _flow: &Flow) -> bool {
        true
    }
    /// An answer to a request that its shard had no room for (503); `None` says drop it.
    fn overloaded(data: &[u8]) -> Option<bytes::Bytes>;
}

/// How a shard runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Under load, how long arriving messages may gather before a batch is taken: fewer wake-ups
    /// for a delay that nobody hears. Zero takes each at once.
    pub gather: Duration,
    /// Wake-ups per second past which messages are gathered.
    pub gather_above: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { gather: Duration::from_micros(500), gather_above: 1_000 }
    }
}
