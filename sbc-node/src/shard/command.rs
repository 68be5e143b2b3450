//! What other threads may ask of a shard.

use std::sync::Arc;
use std::time::Instant;

use sbc_core::core::Input;
use sbc_core::media::Anchor;
use sbc_core::net::Interface;

use crate::resolve::Answer;

/// Work done inside the shard on its machine: queries, hang-ups, new configuration.
pub type Job<M> = Box<dyn FnOnce(&mut M, Instant, &mut dyn Anchor) + Send>;

/// A command of a shard's control queue.
pub enum Command<M> {
    /// Something the core waits for: a commit, a media event, a closed connection.
    Input(Input),
    /// A name was resolved, or not.
    Resolved(Answer),
    /// Runs on the machine; its outputs are drained afterwards.
    Job(Job<M>),
    /// Opens the listeners that are new and closes those that are gone.
    Listeners(Arc<[Interface]>),
    /// Leaves the run loop once what is queued has been sent.
    Stop,
}

impl<M> std::fmt::Debug for Command<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Command::Input(_) => "Input",
            Command::Resolved(_) => "Resolved",
            Command::Job(_) => "Job",
            Command::Listeners(_) => "Listeners",
            Command::Stop => "Stop",
        })
    }
}
