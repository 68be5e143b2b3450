//! Time, network and nodes of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::checks::Checks;
use super::disk::{CLUSTER, Disk};
use super::edge::Edge;
use super::faults::Faults;
use super::operator::Operator;
use super::{Chance, Plant};
use crate::config::Timing;
use crate::core::{Core, CoreConfig, CoreError, Input, LeaseCell, Output};
use crate::state::{FORMAT_VERSION, Node, Position, Tables};
use crate::types::{DialogKey, NodeId};

pub(super) const ADDRESSES: [(&str, u32); 2] = [("192.0.2.1", 1), ("192.0.2.2", 2)];

/// What this release reads and writes, and what the one before did.
pub(super) const LATER: u32 = FORMAT_VERSION;
const FORMER: u32 = FORMAT_VERSION - 1;
const WALL_MS: u64 = 1_700_000_000_000;
const DAY_MS: u64 = 86_400_000;

pub(super) const FAULTS_UNTIL: Duration = Duration::from_secs(20);
pub(super) const ENDS: Duration = Duration::from_secs(45);

pub(super) struct Host {
    pub(super) core: Option<Core>,
    pub(super) disk: Disk,
    /// Its own clock: offset, and parts per thousand that it runs fast or slow.
    offset: Duration,
    drift: i64,
    wall_ms: u64,
    pub(super) paused_until: Duration,
    /// The longest that a sync takes.
    pub(super) sync_ms_max: u64,
    syncing: bool,
    waiting: Vec<Input>,
    wake_at: Duration,
    /// Up to which format its build reads.
    pub(super) format: u32,
    pub(super) name: String,
    pub(super) edge: Edge,
    /// Calls that its process believes to be its own.
    pub(super) wrote: BTreeSet<DialogKey>,
    /// Counts lives, so that what belongs to an earlier one is dropped.
    pub(super) life: u64,
}

pub(super) enum Happening {
    Deliver(NodeId, Input),
    Wake(NodeId),
    /// The end of a pause.
    Resume(NodeId),
    Synced(NodeId, u64),
    SnapshotWritten(NodeId, u64, Box<(crate::state::Frozen, Position)>),
    Start(NodeId),
    /// The edge has dropped these addresses from its devices.
    Dropped(NodeId, u64, Vec<String>),
    /// The edge looks at what it has to say to the cluster.
    Edge(NodeId, u64),
    Client,
    Operator,
    Fault,
}

/// A sync of a disk in order, and of one that is slow.
pub(super) const SYNC_MS: u64 = 8;
pub(super) const SLOW_MS: u64 = 400;

pub(super) struct World {
    pub(super) now: Duration,
    pub(super) chance: Chance,
    pub(super) hosts: BTreeMap<NodeId, Host>,
    queue: BTreeMap<(Duration, u64), Happening>,
    next: u64,
    pub(super) plant: Plant,
    /// Nothing goes wrong by itself.
    pub(super) calm: bool,
    pub(super) side: BTreeSet<NodeId>,
    pub(super) loss_percent: u64,
    pub(super) checks: Checks,
    faults: Faults,
    pub(super) operator: Operator,
    pub(super) next_reply: u64,
    fingerprint: u64,
}

impl World {
    pub(super) fn new(seed: u64, nodes: u64, plant: Plant) -> Self {
        let mut chance = Chance(seed ^ 0x5bc5_bc5b);
        let ids: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
        // In every fourth run the cluster is of a former release and updated meanwhile.
        let old = seed % 4 == 1 || plant == Plant::AssumesUpdated;
        let format = if old { FORMER } else { LATER };
        let written = if plant == Plant::AssumesUpdated { LATER } else { format };
        let members: Vec<(NodeId, Node)> =
            ids.iter().map(|id| (*id, member(*id, written))).collect();
        let tables = Tables::genesis(CLUSTER, &members);
        let position = Position::genesis(&ids);
        let mut world = World {
            now: Duration::ZERO,
            hosts: BTreeMap::new(),
            queue: BTreeMap::new(),
            next: 0,
            plant,
            calm: false,
            side: BTreeSet::new(),
            loss_percent: chance.below(6),
            checks: Checks::default(),
            faults: Faults::default(),
            operator: Operator::new(old),
            next_reply: 1,
            fingerprint: 0,
            chance,
        };
        for id in ids {
            world.add_host(id, format!("n{id}"), format, Disk::first(&tables, &position));
        }
        world.after_ms(500, Happening::Client);
        world.after_ms(2_000, Happening::Fault);
        world.after_ms(3_000, Happening::Operator);
        world
    }

    /// A machine with a node on it, which starts at once.
    pub(super) fn add_host(&mut self, id: NodeId, name: String, format: u32, disk: Disk) {
        let host = Host {
            core: None,
            disk,
            offset: Duration::from_millis(self.chance.below(1_000_000)),
            drift: i64::try_from(self.chance.below(11)).expect("small") - 5,
            wall_ms: WALL_MS,
            paused_until: Duration::ZERO,
            sync_ms_max: SYNC_MS,
            syncing: false,
            waiting: Vec::new(),
            wake_at: Duration::MAX,
            format,
            name,
            edge: Edge::default(),
            wrote: BTreeSet::new(),
            life: 0,
        };
        self.hosts.insert(id, host);
        self.at(self.now, Happening::Start(id));
    }

    /// The machine is gone with its disk.
    pub(super) fn remove_host(&mut self, id: NodeId) {
        self.hosts.remove(&id);
    }

    /// A run in which nothing goes wrong but what the test does.
    pub(super) fn calm(seed: u64, nodes: u64) -> Self {
        World { calm: true, loss_percent: 0, ..World::new(seed, nodes, Plant::None) }
    }

    /// Once all is settled, kills the node that holds the first address, which leads or does not as
    /// asked, and returns the time until another holds it.
    pub(super) fn kill_holder(&mut self, leads: bool) -> Result<Duration, String> {
        let (address, _) = ADDRESSES[0];
        let holds = |world: &World, id: &NodeId| {
            let host = &world.hosts[id];
            host.core.as_ref().is_some_and(|core| core.holds(host.local(world.now), address))
        };
        let find = |world: &World| world.ids().into_iter().find(|id| holds(world, id));
        self.run_until(Duration::from_secs(4), |_| false)?;
        let holder = find(self).ok_or("nobody holds the address")?;
        let leader = Faults::leader(self).ok_or("there is no leader")?;
        let other = self.ids().into_iter().find(|id| *id != holder).ok_or("one node")?;
        let wanted = if leads { holder } else { other };
        if (leader == holder) != leads {
            self.give(leader, Input::TransferLeader(wanted))?;
        }
        // Long enough for the hand-over to be forgotten, at another phase of the renewals each time.
        let settled = self.now + Duration::from_millis(2_000 + self.chance.below(100));
        self.run_until(settled, |_| false)?;
        if (Faults::leader(self) == Some(holder)) != leads || find(self) != Some(holder) {
            return Err("the leadership did not settle as asked".to_owned());
        }
        let died = self.now;
        self.crash(holder);
        self.run_until(died + Duration::from_secs(10), |world| find(world).is_some())?;
        match find(self) {
            Some(_) => Ok(self.now - died),
            None => Err("nobody took the address".to_owned()),
        }
    }

    fn run_until(&mut self, end: Duration, done: impl Fn(&World) -> bool) -> Result<(), String> {
        while let Some((&(at, n), _)) = self.queue.first_key_value() {
            if at > end || done(self) {
                break;
            }
            self.now = at;
            if let Some(happening) = self.queue.remove(&(at, n)) {
                self.happen(happening)?;
            }
            Checks::one_holder(self)?;
        }
        Ok(())
    }

    pub(super) fn acked(&self) -> u64 {
        self.checks.acked()
    }

    pub(super) fn faults(&self) -> u64 {
        self.faults.count
    }

    /// Depends on everything that happened.
    pub(super) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(super) fn run(&mut self) -> Result<(), String> {
        while let Some((&(at, n), _)) = self.queue.first_key_value() {
            if at > ENDS {
                break;
            }
            self.now = at;
            self.fingerprint = crate::state::spread(
                self.fingerprint,
                u64::try_from(at.as_nanos()).expect("short runs") ^ n,
            );
            if let Some(happening) = self.queue.remove(&(at, n)) {
                self.happen(happening)?;
            }
            Checks::one_holder(self)?;
        }
        Checks::converged(self)
    }

    pub(super) fn at(&mut self, at: Duration, happening: Happening) {
        self.next += 1;
        self.queue.insert((at, self.next), happening);
    }

    pub(super) fn after_ms(&mut self, ms: u64, happening: Happening) {
        self.at(self.now + Duration::from_millis(ms), happening);
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        if happening.of().is_some_and(|id| !self.hosts.contains_key(&id)) {
            return Ok(());
        }
        match happening {
            Happening::Deliver(to, input) => self.give(to, input),
            Happening::Wake(id) => {
                // An earlier one was asked for meanwhile, and has come.
                let now = self.now;
                if self.host(id).wake_at != now {
                    return Ok(());
                }
                self.host(id).wake_at = Duration::MAX;
                self.give(id, Input::Tick)
            }
            Happening::Resume(id) => self.give(id, Input::Tick),
            Happening::Synced(id, life) => self.synced(id, life),
            Happening::SnapshotWritten(id, life, snapshot) => {
                if self.host(id).life != life {
                    return Ok(());
                }
                if !self.calm && self.chance.percent(5) {
                    return self.give(id, Input::SnapshotFailed);
                }
                let (rows, position) = *snapshot;
                self.host(id).disk.save(&rows, &position);
                self.give(id, Input::SnapshotTaken(position))
            }
            Happening::Start(id) => self.start(id),
            Happening::Dropped(id, life, addresses) => self.dropped(id, life, &addresses),
            Happening::Edge(id, life) => self.edge_looks(id, life),
            Happening::Client => self.client(),
            Happening::Operator => Operator::work(self),
            Happening::Fault => {
                if self.calm {
                } else if self.now < FAULTS_UNTIL {
                    Faults::strike(self)?;
                    let pause = self.chance.range(200, 1_500);
                    self.after_ms(pause, Happening::Fault);
                } else {
                    Faults::heal(self);
                }
                Ok(())
            }
        }
    }

    pub(super) fn host(&mut self, id: NodeId) -> &mut Host {
        self.hosts.get_mut(&id).expect("a host")
    }

    pub(super) fn count_fault(&mut self) {
        self.faults.count += 1;
    }

    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.hosts.keys().copied().collect()
    }

    pub(super) fn start_after(&mut self, id: NodeId, ms: u64) {
        self.after_ms(ms, Happening::Start(id));
    }

    fn start(&mut self, id: NodeId) -> Result<(), String> {
        let now = self.now;
        let early = self.plant == Plant::EarlyHandover;
        let Some(host) = self.hosts.get_mut(&id) else {
            return Ok(());
        };
        if host.core.is_some() {
            return Ok(());
        }
        let recovered = host.disk.recover(host.format);
        host.edge = Edge::default();
        let local = host.local(now);
        let config = CoreConfig {
            id,
            boot: host.disk.boot,
            format: host.format,
            tick: Duration::from_millis(25),
            heartbeat_ticks: 4,
            election_ticks: 16,
            lease: Timing::DEFAULT.lease,
            handover: match early {
                true => Duration::from_millis(500),
                false => Timing::DEFAULT.handover,
            },
            wall_ms_at_zero: host.wall_ms,
            snapshot_log_bytes: 16 * 1024,
            keep_log_bytes: 4 * 1024,
            pending_max: 4_096,
        };
        let core = Core::new(config, recovered, LeaseCell::default(), local);
        host.core = Some(core.map_err(|e| e.to_string())?);
        host.wake_at = Duration::MAX;
        let life = host.life;
        self.after_ms(200, Happening::Edge(id, life));
        self.give(id, Input::Tick)
    }

    pub(super) fn crash(&mut self, id: NodeId) {
        let mut chance = self.chance.clone();
        let host = self.host(id);
        host.core = None;
        host.life += 1;
        host.wrote.clear();
        host.syncing = false;
        host.waiting.clear();
        host.paused_until = Duration::ZERO;
        host.disk.crash(&mut chance);
        // A clock that was set while the node was down.
        host.wall_ms = WALL_MS - DAY_MS + chance.below(DAY_MS * 3);
        self.chance = chance;
    }

    /// Gives a node an input, unless it is down, or asleep: then later.
    pub(super) fn give(&mut self, id: NodeId, input: Input) -> Result<(), String> {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&id) else {
            return Ok(());
        };
        let Some(core) = &mut host.core else {
            return Ok(());
        };
        if host.paused_until > now {
            if host.waiting.is_empty() {
                let until = host.paused_until;
                self.at(until, Happening::Resume(id));
            }
            self.host(id).waiting.push(input);
            return Ok(());
        }
        let local = local(host.offset, host.drift, now);
        for input in std::mem::take(&mut host.waiting).into_iter().chain([input]) {
            core.handle(local, input).map_err(|e| e.to_string())?;
        }
        if let Err(e) = core.flush() {
            let tables = core.tables();
            let member = tables.read().expect("not poisoned").node(id).is_some();
            if member || !matches!(e, CoreError::Unsupported(_)) {
                return Err(e.to_string());
            }
            // One of an old release that was removed: what the others write since is not for it.
            host.core = None;
            return Ok(());
        }
        self.drain(id)?;
        Checks::digests(self, id)?;
        Checks::bounded(self, id)?;
        Checks::one_leader(self, id)?;
        self.schedule_wake(id);
        Ok(())
    }

    fn schedule_wake(&mut self, id: NodeId) {
        let now = self.now;
        let host = self.host(id);
        let Some(core) = &host.core else {
            return;
        };
        let wait = core.deadline().saturating_sub(host.local(now));
        let wake_at = now + wait + Duration::from_micros(200);
        if wake_at < host.wake_at {
            host.wake_at = wake_at;
            self.at(wake_at, Happening::Wake(id));
        }
    }

    fn drain(&mut self, id: NodeId) -> Result<(), String> {
        loop {
            let host = self.host(id);
            let Some(output) = host.core.as_mut().and_then(Core::poll) else {
                return Ok(());
            };
            match output {
                Output::Send { to, bytes } => self.transmit(id, to, bytes),
                Output::SendSnapshot { to, message, index } => {
                    self.transmit_snapshot(id, to, message, index)?;
                }
                Output::Persist(persist) => {
                    let number = persist.number;
                    host.disk.cache(persist);
                    self.begin_sync(id);
                    if self.plant == Plant::AckBeforePersist {
                        self.at(self.now, Happening::Deliver(id, Input::Persisted(number)));
                    }
                }
                Output::TakeSnapshot { rows, position } => {
                    let life = host.life;
                    let ms = self.chance.range(5, 300);
                    let snapshot = Box::new((rows, position));
                    self.after_ms(ms, Happening::SnapshotWritten(id, life, snapshot));
                }
                Output::Compact { snapshot, entries } => {
                    if let Some(number) = host.disk.compact(snapshot, entries) {
                        let input = Input::Persisted(number);
                        self.at(self.now, Happening::Deliver(id, input));
                    }
                }
                Output::Reply { id: reply, result } => {
                    self.operator.answered(reply, &result);
                    self.checks.answered(reply, result)?;
                }
                Output::Event(event) => self.edge_told(id, event),
            }
        }
    }

    fn begin_sync(&mut self, id: NodeId) {
        let ms_max = self.host(id).sync_ms_max;
        let us = self.chance.range(200, ms_max * 1_000);
        let host = self.host(id);
        if !host.syncing {
            host.syncing = true;
            let life = host.life;
            let at = self.now + Duration::from_micros(us);
            self.at(at, Happening::Synced(id, life));
        }
    }

    fn synced(&mut self, id: NodeId, life: u64) -> Result<(), String> {
        let host = self.host(id);
        if host.life != life {
            return Ok(());
        }
        host.syncing = false;
        match host.disk.sync() {
            Some(number) => self.give(id, Input::Persisted(number)),
            None => Ok(()),
        }
    }

    fn cut(&self, a: NodeId, b: NodeId) -> bool {
        self.side.contains(&a) != self.side.contains(&b)
    }

    fn transmit(&mut self, from: NodeId, to: NodeId, bytes: Bytes) {
        let copies = if self.chance.percent(2) { 2 } else { 1 };
        for _ in 0..copies {
            if self.cut(from, to) || self.chance.percent(self.loss_percent) {
                continue;
            }
            let us = if !self.calm && self.chance.percent(3) {
                self.chance.range(10_000, 800_000)
            } else {
                self.chance.range(300, 8_000)
            };
            let input = Input::Message { from, bytes: bytes.clone() };
            let at = self.now + Duration::from_micros(us);
            self.at(at, Happening::Deliver(to, input));
        }
    }

    fn transmit_snapshot(
        &mut self,
        from: NodeId,
        to: NodeId,
        message: Bytes,
        index: u64,
    ) -> Result<(), String> {
        let ms = self.chance.range(20, 400);
        let file = self.host(from).disk.snapshots.get(&index).cloned();
        let lost = self.cut(from, to) || self.chance.percent(20);
        let ok = match file {
            Some(file) if !lost && self.hosts.get(&to).is_some_and(|h| h.core.is_some()) => {
                let reads = self.host(to).format;
                let restored = Tables::restore(&mut file.as_slice(), reads);
                let (tables, position) = restored.map_err(|e| e.to_string())?;
                self.host(to).disk.snapshots.insert(position.index, file);
                let input = Input::Snapshot { from, message, tables: Box::new(tables), position };
                self.after_ms(ms, Happening::Deliver(to, input));
                true
            }
            Some(_) | None => false,
        };
        self.after_ms(ms, Happening::Deliver(from, Input::SnapshotSent { to, ok }));
        Ok(())
    }
}

impl Host {
    pub(super) fn local(&self, now: Duration) -> Duration {
        local(self.offset, self.drift, now)
    }
}

/// A clock that is off, and runs up to half a percent fast or slow.
fn local(offset: Duration, drift: i64, now: Duration) -> Duration {
    let skew = i64::try_from(now.as_nanos()).expect("short runs") / 1_000 * drift;
    let nanos = i64::try_from(now.as_nanos()).expect("short runs") + skew;
    offset + Duration::from_nanos(u64::try_from(nanos).expect("drift is small"))
}

fn member(id: NodeId, format: u32) -> Node {
    Node::founder(format!("n{id}"), format!("n{id}:1"), format)
}

impl Happening {
    /// Whose it is.
    fn of(&self) -> Option<NodeId> {
        match self {
            Happening::Deliver(id, _)
            | Happening::Wake(id)
            | Happening::Resume(id)
            | Happening::Synced(id, _)
            | Happening::SnapshotWritten(id, _, _)
            | Happening::Start(id)
            | Happening::Dropped(id, _, _)
            | Happening::Edge(id, _) => Some(*id),
            Happening::Client | Happening::Operator | Happening::Fault => None,
        }
    }
}
