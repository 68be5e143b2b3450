//! What happens on this node, for whoever watches: calls, registrations, bans, peers, the cluster.
//!
//! One bounded broadcast. Without a watcher nothing is made; a watcher that is too slow learns how
//! many it missed, and that is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use sbc_cluster::Event as ClusterEvent;
use sbc_core::b2bua::{CallId, CallRecord, Cdr, EndedBy};
use sbc_core::core::Record;
use sbc_core::registrar::{Change, Changed};
use tokio::sync::broadcast;

use super::time::unix_ms;

/// Events that may wait for the slowest watcher.
const BACKLOG: usize = 4_096;
const WATCHERS_MAX: usize = 64;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    pub at_ms: u64,
    /// A stable word: `call.ended`.
    pub kind: &'static str,
    pub subject: String,
    pub details: Vec<(&'static str, String)>,
}

/// The meeting point of those who tell and those who watch.
#[derive(Clone, Debug)]
pub struct EventHub {
    sender: broadcast::Sender<Arc<Happening>>,
    watchers: Arc<AtomicUsize>,
    missed: Arc<AtomicU64>,
}

impl Default for EventHub {
    fn default() -> Self {
        let sender = broadcast::channel(BACKLOG).0;
        EventHub { sender, watchers: Arc::default(), missed: Arc::default() }
    }
}

/// One who watches; ends when dropped.
pub struct Watcher {
    pub events: broadcast::Receiver<Arc<Happening>>,
    hub: EventHub,
}

impl Watcher {
    pub fn missed(&self, count: u64) {
        self.hub.missed.fetch_add(count, Ordering::Relaxed);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.hub.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl EventHub {
    /// `None` when there are too many watchers.
    pub fn watch(&self) -> Option<Watcher> {
        let count = self.watchers.fetch_add(1, Ordering::Relaxed);
        let watcher = Watcher { events: self.sender.subscribe(), hub: self.clone() };
        // Dropping it gives the place back.
        (count < WATCHERS_MAX).then_some(watcher)
    }

    /// Events that watchers were too slow for.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Tells what `make` makes, where somebody watches.
    pub fn tell(
        &self,
        kind: &'static str,
        make: impl FnOnce() -> (String, Vec<(&'static str, String)>),
    ) {
        if self.watchers.load(Ordering::Relaxed) == 0 {
            return;
        }
        let (subject, details) = make();
        // The last watcher may have gone in between.
        let _ = self.sender.send(Arc::new(Happening { at_ms: unix_ms(), kind, subject, details }));
    }

    pub fn ended(&self, cdr: &Cdr) {
        self.tell("call.ended", || {
            let by = match cdr.ended_by {
                EndedBy::Caller => "caller",
                EndedBy::Callee => "callee",
                EndedBy::Sbc(cause) => cause.as_str(),
            };
            let answered = cdr.answered_ms.map_or(0, |at| cdr.ended_ms.saturating_sub(at));
            let mut details = vec![
                ("status", cdr.status.to_string()),
                ("ended-by", by.to_owned()),
                ("talked-ms", answered.to_string()),
                ("trunk-a", cdr.a.trunk.to_string()),
            ];
            details.extend(cdr.b.as_ref().map(|b| ("trunk-b", b.trunk.to_string())));
            (cdr.call.to_string(), details)
        });
    }

    /// A call was answered.
    pub fn answered(&self, call: CallId) {
        self.tell("call.answered", || (call.to_string(), vec![]));
    }

    /// A call's first record is written with its answer.
    pub fn stored(&self, record: &Record) {
        match record {
            Record::Call(call) if is_first(call) => self.answered(call.id),
            Record::Aor(_)
            | Record::Call(_)
            | Record::CallEnded(_)
            | Record::Registration { .. } => {}
        }
    }

    /// A user came, went or moved; refreshes are not told.
    pub fn registration(&self, changed: &Changed) {
        let kind = match changed.how {
            Change::Registered => "registration.registered",
            Change::Removed => "registration.removed",
            Change::Expired => "registration.expired",
            Change::Gone => "registration.gone",
        };
        let contacts = || vec![("contacts", changed.contacts.to_string())];
        self.tell(kind, || (changed.aor.to_string(), contacts()));
    }

    pub fn cluster(&self, event: &ClusterEvent) {
        let nothing = || (String::new(), vec![]);
        let calls = |n: usize| vec![("calls", n.to_string())];
        match event {
            ClusterEvent::LeaderChanged { leader, term } => self.tell("cluster.leader", || {
                let leader = leader.map_or("none".to_owned(), |id| id.0.to_string());
                (leader, vec![("term", term.to_string())])
            }),
            ClusterEvent::QuorumLost => self.tell("cluster.quorum-lost", nothing),
            ClusterEvent::QuorumRegained => self.tell("cluster.quorum-regained", nothing),
            ClusterEvent::MembersChanged => self.tell("cluster.members", nothing),
            ClusterEvent::DrainRequested { .. } => self.tell("cluster.drain", nothing),
            ClusterEvent::Removed => self.tell("cluster.removed", nothing),
            ClusterEvent::AdoptDialogs { from, dialogs } => {
                self.tell("cluster.calls-taken", || (from.0.to_string(), calls(dialogs.len())));
            }
            ClusterEvent::DialogsLost { to, dialogs } => {
                self.tell("cluster.calls-given", || (to.0.to_string(), calls(dialogs.len())));
            }
            ClusterEvent::OwnedAddresses { add, remove } => {
                for (kind, list) in
                    [("cluster.address-taken", add), ("cluster.address-released", remove)]
                {
                    for address in list {
                        self.tell(kind, || (address.clone(), vec![]));
                    }
                }
            }
            _ => {}
        }
    }
}

fn is_first(call: &CallRecord) -> bool {
    call.revision <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_watches_nothing_is_made() {
        let hub = EventHub::default();
        hub.tell("x", || panic!("made for nobody"));
        let mut watcher = hub.watch().expect("room");
        hub.cluster(&ClusterEvent::QuorumLost);
        let seen = watcher.events.try_recv().expect("told");
        assert_eq!((seen.kind, seen.subject.as_str()), ("cluster.quorum-lost", ""));
        let many: Vec<_> = (1..WATCHERS_MAX).filter_map(|_| hub.watch()).collect();
        assert_eq!(many.len(), WATCHERS_MAX - 1);
        assert!(hub.watch().is_none(), "bounded");
        drop(many);
        assert!(hub.watch().is_some(), "places are given back");
    }

    #[test]
    fn a_slow_watcher_learns_what_it_missed() {
        let hub = EventHub::default();
        let mut watcher = hub.watch().expect("room");
        for n in 0..BACKLOG + 7 {
            hub.tell("x", || (n.to_string(), vec![]));
        }
        let lagged = watcher.events.try_recv().expect_err("lagged");
        assert_eq!(lagged, broadcast::error::TryRecvError::Lagged(7));
        watcher.missed(7);
        assert_eq!(hub.missed(), 7);
    }
}
