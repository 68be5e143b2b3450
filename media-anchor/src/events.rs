//! The way of events from relay threads to signalling shards: bounded, with a wake-up call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::types::Event;

/// Where the events of one shard's sessions go. Cloned into every relay thread.
#[derive(Clone)]
pub struct EventSink {
    sender: SyncSender<Event>,
    waker: Arc<dyn Fn() + Send + Sync>,
    lost: Arc<AtomicU64>,
}

impl EventSink {
    /// A sink for `capacity` events and the end to read them from. `waker` is called from a relay
    /// thread after events were queued; it must not block. Events beyond the capacity are counted
    /// as lost (a timeout is reported again as long as it lasts).
    pub fn new(
        capacity: usize,
        waker: Arc<dyn Fn() + Send + Sync>,
    ) -> (EventSink, Receiver<Event>) {
        let (sender, receiver) = sync_channel(capacity);
        (EventSink { sender, waker, lost: Arc::default() }, receiver)
    }

    /// Events that found the queue full or its reader gone.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for EventSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventSink").field("lost", &self.lost()).finish_non_exhaustive()
    }
}

/// The sinks of all shards, as a relay thread holds them.
#[derive(Default)]
pub(crate) struct Sinks {
    by_shard: Vec<Option<(EventSink, bool)>>,
}

impl Sinks {
    pub(crate) fn set(&mut self, shard: usize, sink: EventSink) {
        if self.by_shard.len() <= shard {
            self.by_shard.resize_with(shard + 1, || None);
        }
        if let Some(place) = self.by_shard.get_mut(shard) {
            *place = Some((sink, false));
        }
    }

    /// Queues an event; the shard is woken by the next flush.
    pub(crate) fn push(&mut self, shard: usize, event: Event) {
        let Some(Some((sink, dirty))) = self.by_shard.get_mut(shard) else { return };
        if sink.sender.try_send(event).is_err() {
            sink.lost.fetch_add(1, Ordering::Relaxed);
        }
        *dirty = true;
    }

    pub(crate) fn flush(&mut self) {
        for (sink, dirty) in self.by_shard.iter_mut().flatten() {
            if std::mem::take(dirty) {
                (sink.waker)();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SessionId;

    #[test]
    fn a_full_queue_counts_what_it_loses_and_still_wakes() {
        let wakes = Arc::new(AtomicU64::new(0));
        let counted = wakes.clone();
        let waker = Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let (sink, receiver) = EventSink::new(1, waker);
        let mut sinks = Sinks::default();
        sinks.set(2, sink.clone());
        let event = |n| Event::Final { session: SessionId(n), streams: Vec::new() };
        sinks.push(2, event(1));
        sinks.push(2, event(2));
        sinks.push(7, event(3));
        sinks.flush();
        sinks.flush();
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [event(1)]);
        assert_eq!((sink.lost(), wakes.load(Ordering::Relaxed)), (1, 1));
    }
}
