//! The edge's side of what a shard tells: CDRs to the writer, ladders to the watchers, lookups to
//! the resolver, records to the store.

use std::sync::Arc;
use std::time::Duration;

use sbc_core::core::{Event, Input, Record, StoreId};
use tokio::sync::mpsc;

use super::cdr::CdrSink;
use super::metrics::CallMetrics;
use super::trace::{TraceHub, Watched};
use crate::anchor::MediaEvents;
use crate::resolve::Request;
use crate::shard::commit::Store;
use crate::shard::run::Outside;

/// What one shard holds of the outside.
pub struct ShardOutside {
    pub shard: usize,
    pub cdrs: CdrSink,
    pub traces: TraceHub,
    pub calls: Arc<CallMetrics>,
    pub resolver: mpsc::Sender<Request>,
    pub store: Arc<dyn Store>,
    pub media: MediaEvents,
}

impl Outside for ShardOutside {
    fn event(&mut self, event: Event) {
        match event {
            Event::Cdr(cdr) => {
                self.calls.ended(&cdr);
                if self.traces.watched() {
                    self.traces.publish(Watched::Ended(cdr.call));
                }
                self.store.ended(cdr, &self.cdrs);
            }
            Event::Trace(trace) => self.traces.publish(Watched::Message(Arc::from(trace))),
            Event::Banned { net, reason, by } => {
                tracing::warn!(shard = self.shard, %net, reason, %by, "banned");
            }
            Event::Unbanned { net } => tracing::info!(shard = self.shard, %net, "ban over"),
            Event::Drained => tracing::info!(shard = self.shard, "drained"),
            Event::Peer { trunk, host, up: true } => tracing::info!(%trunk, %host, "peer is up"),
            Event::Peer { trunk, host, up: false } => {
                tracing::warn!(%trunk, %host, "peer is down");
            }
        }
    }

    fn store(&mut self, id: StoreId, wait: Option<Duration>, record: Record) -> bool {
        self.store.write(self.shard, id, wait, record)
    }

    fn resolve(&mut self, request: Request) -> bool {
        self.resolver.try_send(request).is_ok()
    }

    fn next_input(&mut self) -> Option<Input> {
        self.media.next_input()
    }
}
