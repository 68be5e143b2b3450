//! Live ladders: who watches which calls, and the messages on their way to the watchers.
//!
//! Shards publish into one bounded broadcast; a watcher that is too slow learns how many it
//! missed. With no watcher the core emits nothing at all.

use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;
use sbc_core::b2bua::CallId;
use sbc_core::core::Trace;
use tokio::sync::broadcast;

/// Messages that may wait for the slowest watcher.
const BACKLOG: usize = 4_096;
/// Watchers at once.
const WATCHERS_MAX: usize = 64;

/// What a watcher sees of a call.
#[derive(Clone, Debug)]
pub enum Watched {
    Message(Arc<Trace>),
    Ended(CallId),
}

/// The meeting point of shards and watchers.
#[derive(Clone, Debug)]
pub struct TraceHub {
    sender: broadcast::Sender<Watched>,
    watchers: Arc<Mutex<HashMap<Option<CallId>, usize>>>,
}

impl Default for TraceHub {
    fn default() -> Self {
        TraceHub { sender: broadcast::channel(BACKLOG).0, watchers: Arc::default() }
    }
}

impl TraceHub {
    pub fn publish(&self, what: Watched) {
        // No watcher is no error.
        let _ = self.sender.send(what);
    }

    /// Whether anybody watches anything.
    pub fn watched(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// How many watch.
    pub fn watchers(&self) -> usize {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// Begins to watch; `None` when there are too many watchers. The flag says that this is the
    /// first watcher of `call` and that the shards must be told.
    pub fn watch(&self, call: Option<CallId>) -> Option<(broadcast::Receiver<Watched>, bool)> {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        if watchers.values().sum::<usize>() >= WATCHERS_MAX {
            return None;
        }
        let count = watchers.entry(call).or_insert(0);
        *count += 1;
        Some((self.sender.subscribe(), *count == 1))
    }

    /// Ends one watch; true when it was the last of `call`.
    pub fn unwatch(&self, call: Option<CallId>) -> bool {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = watchers.get_mut(&call) else { return false };
        *count -= 1;
        let last = *count == 0;
        if last {
            watchers.remove(&call);
        }
        last
    }
}
