//! Calls that other nodes carry: their flows are in this node's kernel before it needs them.
//!
//! ```text
//!            put                    adopted                 flow installed by its session
//!   (none) ──────▶ stands by ──────────────────▶ adopted ───────────────────────────────▶ (none)
//!                    │ ▲ retry                     │ not taken over within ADOPTION
//!                    ▼ │ refused, evicted          ▼
//!                   waits                        removed
//! ```
//!
//! What is told here comes from the replicated record of a call; which flows it makes is decided by
//! the rules of our own (`engine/standby.rs`). The kernel's elements match only frames that are
//! addressed to this machine, so that nothing is relayed twice.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::address::Addresses;
use crate::config::OffloadConfig;
use crate::engine::standby_flows;
use crate::plan_types::{Flow, FlowChange, FlowId, FlowOutcome};
use crate::types::{Remote, SessionId, SideSpec, StreamKind};

/// Orders that may wait for the driver.
const ORDERS_MAX: usize = 8_192;
/// A flow that the kernel refused is asked for again after this time.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Within this time after an adoption the call's session must have taken its flows over.
const ADOPTION: Duration = Duration::from_secs(10);

/// One side of a stream as the call's node has recorded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbySide {
    /// The interface and family here: interfaces have the same names on every node.
    pub spec: SideSpec,
    /// The RTP port that the peer was told.
    pub port: u16,
    pub remote: Option<Remote>,
    /// The latched RTP source, if any.
    pub latched: Option<SocketAddr>,
}

/// One stream as the call's node has recorded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyStream {
    pub kind: StreamKind,
    pub a: StandbySide,
    pub b: StandbySide,
}

/// The driver does not keep up: say it again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel driver is behind with standby calls")]
pub struct Behind;

pub(crate) enum Order {
    Put { call: SessionId, flows: Vec<Flow> },
    Adopted(SessionId),
    Remove(SessionId),
}

/// The hand of the cluster on the kernel: calls of other nodes. Calls have the session id that they
/// will have here when they are taken over.
pub struct Standby {
    orders: SyncSender<Order>,
    addresses: Arc<Addresses>,
    config: OffloadConfig,
}

impl Standby {
    pub(crate) fn new(addresses: Arc<Addresses>, config: OffloadConfig) -> (Standby, Book) {
        let (orders, inbox) = sync_channel(ORDERS_MAX);
        (Standby { orders, addresses, config }, Book::new(inbox))
    }

    /// The call is another node's and stands so: what of it can be relayed by the kernel is
    /// installed, what was installed of it before and is not so any more is removed. Streams are
    /// by `m=` line.
    pub fn put(&self, call: SessionId, streams: &[Option<StandbyStream>]) -> Result<(), Behind> {
        let flows = standby_flows(call, streams, &self.addresses, &self.config);
        self.order(Order::Put { call, flows })
    }

    /// The call is ours now: its flows stay as they are until its session takes them over, at most
    /// ten seconds.
    pub fn adopted(&self, call: SessionId) -> Result<(), Behind> {
        self.order(Order::Adopted(call))
    }

    /// The call has ended.
    pub fn remove(&self, call: SessionId) -> Result<(), Behind> {
        self.order(Order::Remove(call))
    }

    fn order(&self, order: Order) -> Result<(), Behind> {
        self.orders.try_send(order).map_err(|_| Behind)
    }
}

/// The driver's list of what stands by.
pub(crate) struct Book {
    inbox: Receiver<Order>,
    calls: HashMap<SessionId, SmallVec<[Entry; 2]>>,
    retries: VecDeque<(Instant, FlowId)>,
    adopted: VecDeque<(Instant, SessionId)>,
}

#[derive(Clone, Copy)]
struct Entry {
    flow: Flow,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Asked for, or there.
    In,
    /// Refused or evicted; it is tried again.
    Waits,
    /// Its session has it.
    Taken,
}

impl Book {
    fn new(inbox: Receiver<Order>) -> Book {
        let (retries, adopted) = (VecDeque::new(), VecDeque::new());
        Book { inbox, calls: HashMap::new(), retries, adopted }
    }

    /// Appends what is to be changed in the kernel, about `max` changes at most.
    pub(crate) fn poll(&mut self, now: Instant, max: usize, changes: &mut Vec<FlowChange>) {
        while let Some((_, id)) = self.retries.pop_front_if(|(at, _)| *at <= now) {
            if let Some(entry) = self.entry_mut(id).filter(|e| e.place == Place::Waits) {
                entry.place = Place::In;
                changes.push(FlowChange::Install(entry.flow));
            }
        }
        while let Some((_, call)) = self.adopted.pop_front_if(|(at, _)| *at <= now) {
            self.remove(call, changes);
        }
        while changes.len() < max {
            let Ok(order) = self.inbox.try_recv() else { return };
            match order {
                Order::Put { call, flows } => self.put(call, &flows, changes),
                Order::Remove(call) => self.remove(call, changes),
                Order::Adopted(call) => {
                    if self.calls.contains_key(&call) {
                        self.adopted.push_back((now + ADOPTION, call));
                    }
                }
            }
        }
    }

    fn put(&mut self, call: SessionId, flows: &[Flow], changes: &mut Vec<FlowChange>) {
        // It is another node's (again): an adoption that was noted is void.
        self.adopted.retain(|(_, adopted)| *adopted != call);
        let old = self.calls.remove(&call).unwrap_or_default();
        let kept = |flow: &Flow| {
            old.iter().find(|e| e.flow == *flow && e.place != Place::Taken).map(|e| e.place)
        };
        let gone = old.iter().filter(|e| e.place == Place::In && !flows.contains(&e.flow));
        changes.extend(gone.map(|e| FlowChange::Remove(e.flow.id)));
        let mut entries = SmallVec::new();
        for flow in flows {
            let place = kept(flow).unwrap_or_else(|| {
                changes.push(FlowChange::Install(*flow));
                Place::In
            });
            entries.push(Entry { flow: *flow, place });
        }
        if !entries.is_empty() {
            self.calls.insert(call, entries);
        }
    }

    fn remove(&mut self, call: SessionId, changes: &mut Vec<FlowChange>) {
        let entries = self.calls.remove(&call).unwrap_or_default();
        let there = entries.iter().filter(|e| e.place == Place::In);
        changes.extend(there.map(|e| FlowChange::Remove(e.flow.id)));
    }

    /// Takes the kernel's answer for a flow that stands by.
    pub(crate) fn outcome(&mut self, now: Instant, outcome: &FlowOutcome) {
        let id = outcome.id();
        let Some(entry) = self.entry_mut(id) else { return };
        entry.place = match outcome {
            FlowOutcome::Installed(_) => Place::In,
            FlowOutcome::Removed(..) => Place::Taken,
            FlowOutcome::Refused(..) | FlowOutcome::Evicted(..) => Place::Waits,
        };
        if entry.place == Place::Waits {
            self.retries.push_back((now + RETRY_AFTER, id));
        }
    }

    fn entry_mut(&mut self, id: FlowId) -> Option<&mut Entry> {
        self.calls.get_mut(&id.session)?.iter_mut().find(|e| e.flow.id == id)
    }
}

#[cfg(test)]
#[path = "standby_tests.rs"]
mod tests;
