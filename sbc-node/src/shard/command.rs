//! What other threads may ask of a shard.

use std::sync::Arc;
use std::time::Instant;

use sbc_core::core::Input;
use sbc_core::media::Anchor;
use sbc_core::net::Interface;

use super::listen::Opened;
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
    /// Other interfaces, with the sockets that are new: they are sent by, not yet heard.
    Listeners { interfaces: Arc<[Interface]>, opened: Vec<Opened> },
    /// Hears all listeners: the core knows their interfaces by now.
    Watch,
    /// Leaves the run loop once what is queued has been sent.
    Stop,
}

impl<M> std::fmt::Debug for Command<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Command::Input(_) => "Input",
            Command::Resolved(_) => "Resolved",
            Command::Job(_) => "Job",
            Command::Listeners { .. } => "Listeners",
            Command::Watch => "Watch",
            Command::Stop => "Stop",
        })
    }
}
