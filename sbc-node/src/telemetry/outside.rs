//! The edge's side of what a shard tells: CDRs to the writer, ladders to the watchers, lookups to
//! the resolver, records to the store.
//!
//! The kernel's last counters come a moment after a call has ended: its CDR waits for them, a
//! bounded time (`Held`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashbrown::HashMap;
use sbc_core::b2bua::{CallId, Cdr};
use sbc_core::core::{Event, Input, Record, ResolveId, StoreId, Wanted};
use sbc_core::media::StreamStats;
use sbc_core::net::Flow;
use sbc_core::registrar::AskUser;
use sbc_core::routing::{RegistrationState, UserPlace};
use tokio::sync::mpsc;

use super::cdr::CdrSink;
use super::events::EventHub;
use super::metrics::CallMetrics;
use super::tap::Tap;
use super::trace::{TraceHub, Watched};
use crate::anchor::{MediaEvent, MediaEvents};
use crate::resolve::Request;
use crate::shard::commit::Store;
use crate::shard::run::{Elsewhere, Outside};
use crate::users::lookup::Question;

/// How long a CDR waits for the kernel's last counters.
const FINAL_WAIT: Duration = Duration::from_secs(1);
/// CDRs of one shard that may wait for them; the next is written with what is known.
const HELD_MAX: usize = 8_192;

/// What one shard holds of the outside.
pub struct ShardOutside {
    pub shard: usize,
    pub cdrs: CdrSink,
    pub traces: TraceHub,
    pub calls: Arc<CallMetrics>,
    pub resolver: mpsc::Sender<Request>,
    /// `None` where all users are known.
    pub users: Option<mpsc::Sender<Question>>,
    pub store: Arc<dyn Store>,
    pub media: MediaEvents,
    pub held: Held,
    pub events: EventHub,
    /// `None` while nobody watches from outside.
    pub tap: Option<Tap>,
}

impl Outside for ShardOutside {
    fn event(&mut self, event: Event) {
        match event {
            Event::Answered(cdr) => {
                self.events.answered(cdr.call);
                self.cdrs.answered(cdr);
            }
            Event::Cdr(cdr) => {
                self.calls.ended(&cdr);
                if self.traces.watched() {
                    self.traces.publish(Watched::Ended(cdr.call));
                }
                self.events.ended(&cdr);
                if let Some(tap) = &self.tap {
                    tap.ended(&cdr);
                }
                if let Some(cdr) = self.held.take(cdr, Instant::now()) {
                    self.store.ended(cdr, &self.cdrs);
                }
            }
            Event::Trace(trace) => {
                let trace = Arc::from(trace);
                if let Some(tap) = &self.tap {
                    tap.message(&trace);
                }
                if self.traces.watched() {
                    self.traces.publish(Watched::Message(trace));
                }
            }
            Event::Registration(changed) => self.events.registration(&changed),
            Event::Drained => tracing::info!(shard = self.shard, "drained"),
            Event::TrunkRegistration { trunk, aor, state, failure } => {
                match state {
                    RegistrationState::Failed => {
                        tracing::warn!(%trunk, %aor, ?failure, "not registered with the trunk");
                    }
                    _ => tracing::info!(%trunk, %aor, state = state.as_str(), "registration"),
                }
                self.events.tell("trunk.registration", || {
                    let mut details =
                        vec![("aor", aor.to_string()), ("state", state.as_str().to_owned())];
                    details.extend(failure.map(|status| ("failure", status.to_string())));
                    (trunk.to_string(), details)
                });
            }
            Event::Peer { trunk, host, up: true } => {
                tracing::info!(%trunk, %host, "peer is up");
                let peer = || (trunk.to_string(), vec![("host", host.to_string())]);
                self.events.tell("peer.up", peer);
            }
            Event::Peer { trunk, host, up: false } => {
                tracing::warn!(%trunk, %host, "peer is down");
                let peer = || (trunk.to_string(), vec![("host", host.to_string())]);
                self.events.tell("peer.down", peer);
            }
        }
    }

    fn store(&mut self, id: StoreId, wait: Option<Duration>, record: Record) -> bool {
        self.events.stored(&record);
        self.store.write(self.shard, id, wait, record)
    }

    fn resolve(&mut self, request: Request) -> bool {
        self.resolver.try_send(request).is_ok()
    }

    fn find_user(&mut self, id: ResolveId, ask: Box<AskUser>) -> bool {
        let question = Question { shard: self.shard, id, ask };
        self.users.as_ref().is_some_and(|users| users.try_send(question).is_ok())
    }

    fn ask_room(&mut self, id: ResolveId, place: UserPlace) -> bool {
        self.store.ask_room(self.shard, id, place)
    }

    fn elsewhere(&mut self, wanted: &Wanted, flow: &Flow, data: &Bytes) -> Elsewhere {
        self.store.elsewhere(wanted, flow, data)
    }

    fn send_elsewhere(&mut self, flow: &Flow, data: &Bytes) -> bool {
        self.store.send_elsewhere(flow, data)
    }

    fn next_input(&mut self) -> Option<Input> {
        loop {
            match self.media.next_event()? {
                MediaEvent::Input(input) => return Some(input),
                MediaEvent::Final(session, streams) => {
                    if let Some(cdr) = self.held.complete(CallId(session.0), &streams) {
                        self.store.ended(cdr, &self.cdrs);
                    }
                }
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.held.deadline()
    }

    fn tick(&mut self, now: Instant) {
        for cdr in self.held.due(Some(now)) {
            self.cdrs.stats.incomplete.fetch_add(1, Ordering::Relaxed);
            self.store.ended(cdr, &self.cdrs);
        }
    }
}

impl Drop for ShardOutside {
    /// However the shard ends, no record stays behind.
    fn drop(&mut self) {
        for cdr in self.held.due(None) {
            self.cdrs.stats.incomplete.fetch_add(1, Ordering::Relaxed);
            self.store.ended(cdr, &self.cdrs);
        }
    }
}

/// CDRs that wait for the kernel's last counters.
#[derive(Debug, Default)]
pub struct Held {
    cdrs: HashMap<CallId, Box<Cdr>>,
    /// In the order of their time; those of records that are gone are skipped.
    times: VecDeque<(Instant, CallId)>,
}

impl Held {
    /// Keeps a record that is incomplete, and gives back one that is not (or that finds no room).
    fn take(&mut self, cdr: Box<Cdr>, now: Instant) -> Option<Box<Cdr>> {
        if !cdr.media.iter().any(|stream| stream.kernel) || self.times.len() >= HELD_MAX {
            return Some(cdr);
        }
        self.times.push_back((now + FINAL_WAIT, cdr.call));
        self.cdrs.insert(cdr.call, cdr);
        None
    }

    /// The last counters of a call: its record is complete.
    fn complete(&mut self, call: CallId, streams: &[StreamStats]) -> Option<Box<Cdr>> {
        let mut cdr = self.cdrs.remove(&call)?;
        while self.times.front().is_some_and(|(_, call)| !self.cdrs.contains_key(call)) {
            self.times.pop_front();
        }
        for (shown, last) in cdr.media.iter_mut().zip(streams) {
            for (shown, last) in [(&mut shown.a, &last.a), (&mut shown.b, &last.b)] {
                shown.packets = shown.packets.max(last.packets);
                shown.bytes = shown.bytes.max(last.bytes);
                shown.dropped = shown.dropped.max(last.dropped);
            }
        }
        Some(cdr)
    }

    fn deadline(&self) -> Option<Instant> {
        self.times.front().map(|(at, _)| *at)
    }

    /// The records that have waited long enough; all of them without a time.
    #[expect(clippy::vec_box, reason = "each is given on as the box it is")]
    fn due(&mut self, now: Option<Instant>) -> Vec<Box<Cdr>> {
        let mut due = Vec::new();
        while let Some((_, call)) =
            self.times.pop_front_if(|(at, _)| now.is_none_or(|now| *at <= now))
        {
            due.extend(self.cdrs.remove(&call));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cdr(call: u64, kernel: bool) -> Box<Cdr> {
        let mut cdr = crate::telemetry::cdr::tests::cdr(call);
        cdr.media = vec![StreamStats { kernel, ..StreamStats::default() }];
        cdr.media[0].a.packets = 10;
        cdr
    }

    #[test]
    fn a_record_waits_for_the_kernel_and_for_nothing_else() {
        let now = Instant::now();
        let mut held = Held::default();
        assert!(held.take(cdr(1, false), now).is_some(), "nothing was in the kernel");
        assert!(held.take(cdr(2, true), now).is_none());
        assert!(held.take(cdr(3, true), now + FINAL_WAIT / 2).is_none());
        let mut last = StreamStats::default();
        (last.a.packets, last.a.bytes) = (250, 43_000);
        let told = held.complete(CallId(2), &[last]).unwrap();
        assert_eq!((told.media[0].a.packets, told.media[0].a.bytes), (250, 43_000));
        assert!(told.media[0].kernel, "it still says which way they went");
        assert_eq!(held.complete(CallId(2), &[last]), None);
        // Nobody tells of the other one.
        assert_eq!(held.deadline(), Some(now + FINAL_WAIT / 2 + FINAL_WAIT));
        assert!(held.due(Some(now + FINAL_WAIT)).is_empty());
        let late = held.due(Some(now + FINAL_WAIT * 2));
        assert_eq!(late.iter().map(|c| c.media[0].a.packets).collect::<Vec<_>>(), [10]);
        assert_eq!(held.deadline(), None);
    }

    #[test]
    fn records_held_are_bounded_and_none_is_lost_at_the_end() {
        let now = Instant::now();
        let mut held = Held::default();
        let taken = |n: usize| u64::try_from(n).unwrap();
        for n in 0..HELD_MAX {
            assert!(held.take(cdr(taken(n), true), now).is_none());
        }
        assert!(held.take(cdr(taken(HELD_MAX), true), now).is_some());
        assert_eq!(held.due(None).len(), HELD_MAX);
    }
}
