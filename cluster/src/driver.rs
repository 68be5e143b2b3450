//! The thread that owns the core: takes inputs from a bounded queue, gives it the time, and hands
//! its outputs to disk, channel and callers. Contains raft-rs's panics: the node's part in the
//! cluster ends then, the process goes on and holds nothing.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::Duration;

use arc_swap::ArcSwap;
use sbc_proto::cluster::v1 as pb;
use tokio::sync::broadcast;

use crate::channel::Channel;
use crate::clock;
use crate::core::{
    Committed, Core, CoreStatus, Counters, Input, LeaseCell, Output, ProposeError, ReplyId, Time,
};
use crate::event::Event;
use crate::store::{Done, Job, StoreError, Writer};

/// Called once, on the driver's thread: hand over and return.
pub(crate) type Reply = Box<dyn FnOnce(Result<Committed, ProposeError>) + Send>;

/// What other threads send to the driver.
pub(crate) enum Order {
    Input(Input),
    Propose { command: pb::Command, timeout: Duration, reply: Reply },
    StorageFailed(StoreError),
    Stop,
}

/// Inputs taken before outputs are looked after.
const BURST: usize = 512;

/// The driver's end of the shared things.
pub(crate) struct Driver {
    pub(crate) core: Core,
    pub(crate) orders: Receiver<Order>,
    pub(crate) writer: Writer,
    pub(crate) channel: Option<Channel>,
    pub(crate) events: broadcast::Sender<Event>,
    /// Rows that changed: apart, so that a flood of them pushes no change of ownership out.
    pub(crate) changes: broadcast::Sender<Event>,
    pub(crate) published: Arc<Published>,
    pub(crate) lease: LeaseCell,
    pub(crate) replies: HashMap<ReplyId, Reply>,
    pub(crate) next_reply: u64,
}

/// What the driver shows.
#[derive(Default)]
pub(crate) struct Published {
    pub(crate) status: ArcSwap<CoreStatus>,
    pub(crate) counters: ArcSwap<Counters>,
}

enum End {
    Asked,
    Because(String),
}

impl Driver {
    /// Runs until told to stop, or until it cannot go on.
    pub(crate) fn run(mut self) {
        let end = std::panic::catch_unwind(AssertUnwindSafe(|| self.serve()));
        let reason = match end {
            Ok(End::Asked) => "asked to".to_owned(),
            Ok(End::Because(reason)) => reason,
            Err(panic) => panic_text(&*panic),
        };
        tracing::info!(%reason, "cluster node stops");
        self.lease.revoke();
        for (_, reply) in self.replies.drain() {
            reply(Err(ProposeError::Stopped));
        }
        while let Ok(order) = self.orders.try_recv() {
            if let Order::Propose { reply, .. } = order {
                reply(Err(ProposeError::Stopped));
            }
        }
        self.tell(Event::Stopped { reason });
    }

    fn serve(&mut self) -> End {
        let mut published_at = Time::ZERO;
        loop {
            if let Err(e) = self.core.flush() {
                return End::Because(e.to_string());
            }
            self.drain();
            let now = clock::now();
            if now >= published_at {
                published_at = now + Duration::from_millis(20);
                self.publish();
            }
            let wait = self.core.deadline().saturating_sub(now);
            let first = match self.orders.recv_timeout(wait) {
                Ok(order) => order,
                Err(RecvTimeoutError::Timeout) => Order::Input(Input::Tick),
                Err(RecvTimeoutError::Disconnected) => return End::Asked,
            };
            let mut next = Some(first);
            for _ in 0..BURST {
                let Some(order) = next.take() else {
                    break;
                };
                if let Some(end) = self.obey(order) {
                    return end;
                }
                next = self.orders.try_recv().ok();
            }
            if let Some(order) = next
                && let Some(end) = self.obey(order)
            {
                return end;
            }
        }
    }

    fn obey(&mut self, order: Order) -> Option<End> {
        let input = match order {
            Order::Input(input) => input,
            Order::Propose { command, timeout, reply } => {
                let id = ReplyId(self.next_reply);
                self.next_reply += 1;
                self.replies.insert(id, reply);
                Input::Propose { id, command, timeout }
            }
            Order::StorageFailed(e) => return Some(End::Because(e.to_string())),
            Order::Stop => return Some(End::Asked),
        };
        let result = self.core.handle(clock::now(), input);
        result.err().map(|e| End::Because(e.to_string()))
    }

    fn drain(&mut self) {
        while let Some(output) = self.core.poll() {
            match output {
                Output::Send { to, bytes } => {
                    if let Some(channel) = &self.channel {
                        channel.send(to, bytes);
                    }
                }
                Output::SendSnapshot { to, message, index } => {
                    if let Some(channel) = &self.channel {
                        channel.send_snapshot(to, message, index);
                    }
                }
                Output::Persist(persist) => self.writer.submit(Job::Persist(persist)),
                Output::TakeSnapshot { rows, position } => {
                    self.writer.submit(Job::Snapshot { rows, position });
                }
                Output::Compact { snapshot, entries } => {
                    self.writer.submit(Job::Compact { snapshot, entries });
                }
                Output::Reply { id, result } => {
                    if let Some(reply) = self.replies.remove(&id) {
                        reply(result);
                    }
                }
                Output::Event(event) => self.tell(event),
            }
        }
    }

    fn tell(&mut self, event: Event) {
        if let (Event::TableChanged(crate::Table::Nodes) | Event::Reloaded, Some(channel)) =
            (&event, &self.channel)
        {
            let tables = self.core.tables();
            let tables = tables.read().unwrap_or_else(|e| e.into_inner());
            channel.set_peers(&tables);
        }
        // Nobody may be listening to either.
        match event {
            Event::BanChanged { .. } | Event::BindingChanged { .. } => {
                let _ = self.changes.send(event);
            }
            Event::Reloaded | Event::Stopped { .. } => {
                let _ = self.changes.send(event.clone());
                let _ = self.events.send(event);
            }
            event => {
                let _ = self.events.send(event);
            }
        }
    }

    fn publish(&mut self) {
        self.published.status.store(Arc::new(self.core.progress()));
        self.published.counters.store(Arc::new(self.core.counters()));
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    format!("consensus panicked: {}", text.unwrap_or("no message"))
}

/// Where inputs go in. Full means that the node is overloaded: network input is dropped, which Raft
/// makes good; proposals are refused.
#[derive(Clone)]
pub(crate) struct Orders(pub(crate) SyncSender<Order>);

pub(crate) const ORDERS_MAX: usize = 65_536;

impl Orders {
    /// For what may be lost. False when it was.
    pub(crate) fn offer(&self, input: Input) -> bool {
        self.0.try_send(Order::Input(input)).is_ok()
    }

    /// For what must not be lost; waits for room.
    pub(crate) fn put(&self, order: Order) {
        // A driver that has ended needs nothing more.
        let _ = self.0.send(order);
    }

    pub(crate) fn propose(&self, command: pb::Command, timeout: Duration, reply: Reply) {
        let order = Order::Propose { command, timeout, reply };
        match self.0.try_send(order) {
            Ok(()) => {}
            Err(TrySendError::Full(Order::Propose { reply, .. })) => {
                reply(Err(ProposeError::Overloaded));
            }
            Err(TrySendError::Disconnected(Order::Propose { reply, .. })) => {
                reply(Err(ProposeError::Stopped));
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }

    /// What the disk says.
    pub(crate) fn report(&self, done: Done) {
        let order = match done {
            Done::Persisted(number) => Order::Input(Input::Persisted(number)),
            Done::SnapshotTaken(position) => Order::Input(Input::SnapshotTaken(position)),
            Done::SnapshotFailed(e) => {
                tracing::error!(error = %e, "snapshot not written");
                Order::Input(Input::SnapshotFailed)
            }
            Done::Failed(e) => Order::StorageFailed(e),
        };
        self.put(order);
    }
}
