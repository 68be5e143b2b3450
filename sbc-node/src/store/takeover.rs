//! What this node does when the cluster gives it addresses or calls, or takes them away.
//!
//! Whose they are is decided by the log; here the decision is carried out, in its order. One task
//! owns the floating addresses, so that nothing is added and removed at the same time. Before any
//! event is acted upon the lease is asked: a node that slept must let go first.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sbc_cluster::{Command, DialogKey, Event, Events, Handle, NodeId, NodeState, Table};
use sbc_core::core::{AdoptMode, Command as CoreCommand, Input};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::carrier::Carriers;
use super::cluster::call_of;
use super::owed::{Owed, asked_of};
use super::pace::Pace;
use super::record;
use super::tell::Tell;
use crate::config::{ClusterConfig, FailoverMode, JoinToken, OnQuorumLoss};
use crate::floating::{Floating, FloatingError, Lifetime, Placed};

/// How often leases are looked at and addresses refreshed.
const TICK: Duration = Duration::from_millis(50);
/// How often it is looked whether the lease was confirmed anew, to give addresses a further lifetime.
const KEEP: Duration = Duration::from_millis(10);
/// Where no confirmation is fresh enough for so long, one that is not is better than none.
const LATE: Duration = Duration::from_millis(400);
/// Calls adopted between two looks at events and the lease.
const BATCH: usize = 256;
/// Announcements after a takeover: a switch may miss the first.
const ANNOUNCE_AGAIN: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];

/// File in the data directory of a node that was removed from its cluster.
pub const REMOVED: &str = "removed";

/// What happened, for status and metrics.
#[derive(Debug, Default)]
pub struct TakeoverStats {
    pub adopted: AtomicU64,
    pub lost: AtomicU64,
    /// Records that could not be read.
    pub unreadable: AtomicU64,
    pub addresses_taken: AtomicU64,
    pub addresses_released: AtomicU64,
    pub address_errors: AtomicU64,
    /// Addresses kept or taken by a confirmation of the lease that was older than it should be.
    pub address_late: AtomicU64,
    /// 1 while there is no quorum.
    pub no_quorum: AtomicU64,
    /// 1 while a device of a floating address has no carrier.
    pub link_lost: AtomicU64,
}

/// The task's own state.
pub struct Takeover {
    handle: Handle,
    events: Events,
    tell: Arc<Tell>,
    floating: Option<Floating>,
    /// How old a confirmation of the lease may be by which addresses are kept or taken.
    fresh: Duration,
    /// When addresses were last kept, or wanted, and when the confirmation for that was asked for.
    kept: Instant,
    kept_by: Instant,
    /// Addresses that are ours and wait for a fresh confirmation.
    wanted: Vec<String>,
    places: HashMap<String, (Placed, u32)>,
    mode: FailoverMode,
    on_quorum_loss: OnQuorumLoss,
    /// Dialogs that came with addresses and are not told to their shards yet, oldest first.
    adoptions: VecDeque<DialogKey>,
    /// Dialogs to be re-INVITEd, oldest first, and when the next one may go.
    reinvites: VecDeque<DialogKey>,
    pace: Pace,
    announce_at: Vec<Instant>,
    held: bool,
    owed: Owed,
    carriers: Carriers,
    /// Of all nodes, as they were last said.
    states: BTreeMap<NodeId, NodeState>,
    /// Whether this node drains because a link is lost, and not because somebody said so.
    drains_for_link: bool,
    /// Whether the shards were told to take no calls because the node drains.
    draining: bool,
    /// Until the first lease: what the node's state was is of an earlier life.
    reborn: bool,
    /// Where it is noted that the node was removed, if it can join anew by itself.
    removed: Option<std::path::PathBuf>,
    pub stats: Arc<TakeoverStats>,
}

impl Takeover {
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When netlink cannot be opened although addresses are to float.
    pub fn new(
        handle: Handle,
        tell: Arc<Tell>,
        config: &ClusterConfig,
    ) -> Result<Takeover, FloatingError> {
        let lifetime = Lifetime::within(config.timing.handover);
        let lifetime = lifetime.unwrap_or(Lifetime { seconds: 1, fresh: Duration::ZERO });
        let floating = match config.failover {
            FailoverMode::Address => Some(Floating::new(lifetime.seconds)?),
            FailoverMode::None | FailoverMode::Reinvite => None,
        };
        let places = config.addresses.iter().map(|a| {
            let placed = Placed { address: a.address, device: a.device.clone() };
            (a.address.to_string(), (placed, a.group))
        });
        Ok(Takeover {
            events: handle.subscribe(),
            handle,
            tell,
            floating,
            fresh: lifetime.fresh,
            kept: Instant::now(),
            kept_by: Instant::now(),
            wanted: Vec::new(),
            places: places.collect(),
            mode: config.failover,
            on_quorum_loss: config.on_quorum_loss,
            adoptions: VecDeque::new(),
            reinvites: VecDeque::new(),
            pace: Pace::new(config.reinvite_rate),
            announce_at: Vec::new(),
            held: false,
            owed: Owed::default(),
            carriers: Carriers::new(config.addresses.iter().map(|a| a.device.clone())),
            states: BTreeMap::new(),
            drains_for_link: false,
            draining: false,
            reborn: true,
            removed: config.join.as_ref().and_then(|join| match join.token {
                JoinToken::Key(_) => Some(config.data.join(REMOVED)),
                JoinToken::Text(_) | JoinToken::File(_) => None,
            }),
            stats: Arc::default(),
        })
    }

    /// Runs until the cluster node stops. Addresses that are held then are taken off.
    pub async fn run(mut self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut keep = interval(KEEP);
        keep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut declared = self.places.is_empty();
        loop {
            tokio::select! {
                biased;
                event = self.events.next() => {
                    let Some(event) = event else { break };
                    self.fence().await;
                    if let Event::Stopped { reason } = &event {
                        tracing::error!(%reason, "the cluster node has stopped");
                        break;
                    }
                    self.event(event).await;
                }
                _ = keep.tick(), if self.holds_or_wants() => self.keep().await,
                _ = tick.tick() => {
                    self.fence().await;
                    self.tell.flush();
                    self.reinvite_some();
                    if self.handle.lease_valid() {
                        if self.reborn {
                            self.reborn = !self.end_old_drain().await;
                        }
                        if !declared {
                            declared = self.declare().await;
                        }
                        self.watch_links().await;
                        self.answer().await;
                    }
                }
                () = tokio::task::yield_now(), if self.may_adopt() => {
                    for _ in 0..BATCH {
                        let Some(key) = self.adoptions.pop_front() else { break };
                        self.adopt_one(&key, AdoptMode::Address);
                    }
                    self.fence().await;
                }
            }
        }
        self.let_go("the cluster node has stopped").await;
    }

    /// Without a lease nothing is held; with one, what is held lives on.
    async fn fence(&mut self) {
        if !self.handle.lease_valid() {
            if self.held {
                self.let_go("the lease ran out").await;
            }
            return;
        }
        self.keep().await;
        let Some(floating) = &mut self.floating else { return };
        if self.held {
            let now = Instant::now();
            let due = self.announce_at.iter().filter(|at| **at <= now).count();
            if due > 0 {
                self.announce_at.retain(|at| *at > now);
                if let Err(error) = floating.announce_held() {
                    tracing::warn!(%error, "a floating address could not be announced");
                }
            }
        }
    }

    fn holds_or_wants(&self) -> bool {
        self.held || !self.wanted.is_empty()
    }

    /// The calls wait for the addresses: thousands of them keep every processor busy, and nobody can
    /// reach them before.
    fn may_adopt(&self) -> bool {
        self.wanted.is_empty() && !self.adoptions.is_empty()
    }

    /// Gives what is held another lifetime, and takes what is wanted, by each confirmation of the
    /// lease once and while it is fresh: see [`Lifetime`].
    async fn keep(&mut self) {
        if self.floating.is_none() || !self.holds_or_wants() {
            return;
        }
        let Some(age) = self.handle.lease_age() else { return };
        let now = Instant::now();
        let asked = now.checked_sub(age).unwrap_or(now);
        let late = age > self.fresh;
        let again = asked.saturating_duration_since(self.kept_by) < Duration::from_millis(1);
        if (again && self.wanted.is_empty()) || (late && now - self.kept < LATE) {
            return;
        }
        (self.kept, self.kept_by) = (now, asked);
        if late {
            self.stats.address_late.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(?age, "floating addresses by a confirmation that is not fresh");
        }
        if !self.wanted.is_empty() {
            let wanted = std::mem::take(&mut self.wanted);
            self.take(wanted).await;
        }
        let Some(floating) = &mut self.floating else { return };
        if self.held
            && let Err(error) = floating.refresh().await
        {
            self.stats.address_errors.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%error, "a floating address could not be refreshed");
        }
    }

    /// Tells the cluster which addresses float. Repeating it changes nothing.
    async fn declare(&self) -> bool {
        for (address, (_, group)) in &self.places {
            let known = self.handle.read(|tables| tables.address(address).is_some());
            if !known
                && let Err(error) =
                    self.handle.propose(Command::put_address(address, *group, None)).await
            {
                tracing::debug!(%address, %error, "not declared yet");
                return false;
            }
        }
        true
    }

    async fn event(&mut self, event: Event) {
        match event {
            Event::OwnedAddresses { add, remove } => {
                self.remove(remove).await;
                if !add.is_empty() {
                    self.tell.broadcast(|| Input::Command(CoreCommand::TakeOver));
                }
                self.add(add).await;
            }
            Event::AdoptDialogs { from, dialogs } => {
                tracing::warn!(from = from.0, calls = dialogs.len(), "carrying on calls");
                self.adopt(dialogs);
            }
            Event::DialogsLost { to, dialogs } => {
                tracing::warn!(to = to.0, calls = dialogs.len(), "calls are carried on elsewhere");
                self.stats
                    .lost
                    .fetch_add(u64::try_from(dialogs.len()).unwrap_or(0), Ordering::Relaxed);
                self.forget(&dialogs);
            }
            Event::QuorumLost => {
                self.stats.no_quorum.store(1, Ordering::Relaxed);
                tracing::error!("no quorum: calls are unprotected from here on");
                self.let_go("there is no quorum").await;
                if self.on_quorum_loss == OnQuorumLoss::Reject {
                    self.tell.broadcast(|| Input::Command(CoreCommand::Drain(true)));
                }
            }
            Event::QuorumRegained => {
                self.stats.no_quorum.store(0, Ordering::Relaxed);
                tracing::warn!("quorum regained");
                if self.on_quorum_loss == OnQuorumLoss::Reject {
                    self.tell.broadcast(|| Input::Command(CoreCommand::Drain(false)));
                }
                self.reconcile().await;
            }
            Event::Reloaded => {
                self.reconcile().await;
                self.note_state();
            }
            Event::TableChanged(Table::Nodes) => self.note_state(),
            Event::DrainRequested { drain } => self.drain(drain).await,
            Event::LeaderChanged { leader, term } => {
                tracing::info!(leader = leader.map(|l| l.0), term, "cluster leader");
            }
            Event::Removed => self.removed(),
            Event::TableChanged(_)
            | Event::SettingChanged(_)
            | Event::BanChanged { .. }
            | Event::BindingChanged { .. }
            | Event::MembersChanged
            | Event::Stopped { .. } => {}
        }
    }

    async fn add(&mut self, addresses: Vec<String>) {
        if self.floating.is_none() || addresses.is_empty() {
            return;
        }
        if !self.holds_or_wants() {
            self.kept = Instant::now();
        }
        self.wanted.extend(addresses);
        self.keep().await;
    }

    async fn take(&mut self, addresses: Vec<String>) {
        let Some(floating) = &mut self.floating else { return };
        for address in addresses {
            // Another node's configuration may know addresses that ours does not.
            let Some((placed, _)) = self.places.get(&address) else { continue };
            // Asked again for each: a sleeper must not take what a late event promised, nor anybody
            // what it was asked to let go of meanwhile.
            if !self.handle.owns_address(&address) {
                continue;
            }
            match floating.take(placed).await {
                Ok(()) => {
                    self.held = true;
                    self.stats.addresses_taken.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%address, device = %placed.device, "took a floating address");
                }
                Err(error) => {
                    self.stats.address_errors.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%address, %error, "could not take a floating address");
                }
            }
        }
        let now = Instant::now();
        self.announce_at = ANNOUNCE_AGAIN.iter().map(|after| now + *after).collect();
    }

    async fn remove(&mut self, addresses: Vec<String>) {
        self.off(&addresses).await;
        self.answer().await;
    }

    /// Takes addresses off their devices; whether none of them is there any more.
    async fn off(&mut self, addresses: &[String]) -> bool {
        self.wanted.retain(|address| !addresses.contains(address));
        let Some(floating) = &mut self.floating else { return true };
        let mut all = true;
        for address in addresses {
            let Some((placed, _)) = self.places.get(address) else { continue };
            match floating.release(placed).await {
                Ok(true) => {
                    self.stats.addresses_released.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%address, "released a floating address");
                }
                Ok(false) => {}
                Err(error) => {
                    all = false;
                    self.stats.address_errors.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%address, %error, "could not release a floating address");
                }
            }
        }
        all
    }

    /// Lets go of what the cluster asks for, and says so. The tables are looked at, not the events:
    /// those may be behind, and what is said must be true of the asking that it names.
    async fn answer(&mut self) {
        let id = self.handle.id();
        for asked in self.handle.read(|tables| asked_of(tables.addresses(), id)) {
            if self.off(&asked.addresses).await
                && let Err(error) = self.handle.addresses_dropped(asked.group, asked.at).await
            {
                tracing::warn!(group = asked.group, %error, "dropped and not said yet; trying again");
            }
        }
        self.owed.say(&self.handle).await;
    }

    /// Takes every floating address off at once.
    async fn let_go(&mut self, why: &str) {
        self.held = false;
        self.wanted.clear();
        self.announce_at.clear();
        let Some(floating) = &mut self.floating else { return };
        tracing::warn!(why, "letting go of the floating addresses");
        for error in floating.release_all().await {
            self.stats.address_errors.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%error, "could not release a floating address");
        }
    }

    /// After events were missed: the tables say what is ours.
    async fn reconcile(&mut self) {
        let owned = self.handle.owned_addresses();
        let others: Vec<String> =
            self.places.keys().filter(|a| !owned.contains(a)).cloned().collect();
        self.remove(others).await;
        self.add(owned).await;
    }

    fn adopt(&mut self, dialogs: Vec<DialogKey>) {
        match self.mode {
            FailoverMode::Address => self.adoptions.extend(dialogs),
            FailoverMode::None | FailoverMode::Reinvite => self.reinvites.extend(dialogs),
        }
    }

    /// Some of the calls that wait for their re-INVITE, as many as the pace allows in one tick.
    fn reinvite_some(&mut self) {
        for _ in 0..self.pace.due(Instant::now(), self.reinvites.len()) {
            let Some(key) = self.reinvites.pop_front() else { return };
            self.adopt_one(&key, AdoptMode::Reinvite);
        }
    }

    fn adopt_one(&self, key: &DialogKey, mode: AdoptMode) {
        let id = self.handle.id();
        // The call may have ended, or gone on to another node, since the event was written.
        let row = self.handle.read(|tables| tables.dialog(key).filter(|d| d.owner == id).cloned());
        let Some(row) = row else { return };
        match record::decode(bytes::Bytes::copy_from_slice(row.value())) {
            Ok(record) => {
                self.stats.adopted.fetch_add(1, Ordering::Relaxed);
                let shard = self.tell.shard_of(record.shard_hash);
                self.tell.tell(shard, Input::Adopt { record: Box::new(record), mode });
            }
            Err(error) => {
                self.stats.unreadable.fetch_add(1, Ordering::Relaxed);
                tracing::error!(call = %call_of(*key), %error, "a call cannot be carried on");
            }
        }
    }

    /// Drops calls that another node carries on, without a word to the endpoints. Which shard has
    /// one is not known here; the others do not know it and do nothing.
    fn forget(&self, dialogs: &[DialogKey]) {
        for key in dialogs {
            let call = call_of(*key);
            self.tell.broadcast(|| Input::Command(CoreCommand::Forget(call)));
        }
    }

    /// This node is no member any more. One that can come in again by itself does so with its next
    /// start, as a new node: `node/replication.rs` looks for the mark.
    fn removed(&self) {
        tracing::error!("this node was removed from the cluster");
        let Some(mark) = &self.removed else { return };
        if let Err(error) = std::fs::write(mark, "removed from the cluster\n") {
            tracing::error!(%error, "cannot mark the data as of no use any more");
            return;
        }
        tracing::warn!("stopping, to join anew with the next start");
        if let Err(error) = nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM) {
            tracing::error!(%error, "cannot stop");
        }
    }

    fn state(&self) -> Option<NodeState> {
        let id = self.handle.id();
        self.handle.read(|tables| tables.node(id).map(|node| node.state))
    }

    /// A drain ends with the process that was drained: one that starts again is there to serve.
    /// False to be tried again.
    async fn end_old_drain(&self) -> bool {
        if !matches!(self.state(), Some(NodeState::Draining | NodeState::Drained)) {
            return true;
        }
        let undone = self.handle.propose(Command::drain(self.handle.id(), true)).await;
        if undone.is_ok() {
            tracing::info!("the drain before the restart is over");
        }
        undone.is_ok()
    }

    /// Says what became of the nodes. A drain that was taken back: calls are taken again.
    fn note_state(&mut self) {
        let now: BTreeMap<NodeId, NodeState> =
            self.handle.read(|tables| tables.nodes().map(|(id, row)| (id, row.state)).collect());
        for (id, state) in now.iter().filter(|(id, state)| self.states.get(id) != Some(*state)) {
            let before = self.states.get(id).map(|state| state.as_str());
            tracing::warn!(node = id.0, before, "a node is {}", state.as_str());
        }
        for id in self.states.keys().filter(|id| !now.contains_key(id)) {
            tracing::warn!(node = id.0, "a node was removed");
        }
        let serves = now.get(&self.handle.id()) == Some(&NodeState::Up);
        self.states = now;
        if self.draining && serves {
            self.draining = false;
            tracing::warn!("no longer draining");
            self.tell.broadcast(|| Input::Command(CoreCommand::Drain(false)));
        }
    }

    /// Gives everything away while a link of the floating addresses is lost, if anyone can take it.
    async fn watch_links(&mut self) {
        let Some(lost) = self.carriers.look(Instant::now()) else { return };
        let known = self.stats.link_lost.swap(lost.into(), Ordering::Relaxed) == u64::from(lost);
        let id = self.handle.id();
        let command = if lost {
            let other = self.handle.read(|tables| {
                tables.nodes().any(|(other, node)| other != id && node.state.is_eligible())
            });
            if !other || self.state() != Some(NodeState::Up) {
                if !known {
                    tracing::error!(
                        "a link of the floating addresses is lost; nobody to take them"
                    );
                }
                // Somebody may come.
                self.carriers.forget();
                return;
            }
            tracing::error!("a link of the floating addresses is lost: others take over");
            Command::drain(id, false)
        } else if self.drains_for_link {
            tracing::warn!("the links of the floating addresses are back");
            Command::drain(id, true)
        } else {
            return;
        };
        match self.handle.propose(command).await {
            Ok(_) => self.drains_for_link = lost,
            Err(error) => {
                tracing::warn!(%error, "could not tell the cluster of a link");
                self.carriers.forget();
            }
        }
    }

    /// Moves every call of this living node to the others.
    async fn drain(&mut self, drain: u64) {
        tracing::warn!("draining: calls and addresses go to the other nodes");
        self.draining = true;
        self.tell.broadcast(|| Input::Command(CoreCommand::Drain(true)));
        self.let_go("this node drains").await;
        self.owed.hand_over(drain);
        self.owed.say(&self.handle).await;
    }
}

/// Whether a node that is asked to drain has nothing left to carry.
pub fn drained(handle: &Handle) -> bool {
    let id = handle.id();
    handle.read(|tables| {
        let done = tables.node(id).is_some_and(|node| node.state == NodeState::Drained);
        done && tables.dialogs_of(id).next().is_none()
    })
}
