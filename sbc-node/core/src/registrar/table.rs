//! The table of bindings of one shard: addresses of record by hash, expiry and keepalive by one
//! timer each, what must be replicated and pinged.
//!
//! What a REGISTER asks for is judged in `register.rs`; here a whole new set of bindings replaces
//! the old one at once, so that a REGISTER takes effect wholly or not at all (RFC 3261 §10.3).

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use slab::Slab;
use smallvec::SmallVec;

use super::binding::{AorRecord, AorState, Binding, Gone, Held, Reached, contact_key};
use super::gruu::Device;
use super::learn::Learner;
use super::policy::{Keepalive, KeepaliveKind};
use super::upstream::Upstream;
use crate::net::{ConnId, Flow};
use crate::timer::{TimerKey, TimerWheel};

#[derive(Debug)]
struct Aor {
    name: Box<str>,
    timer: Option<TimerKey>,
    timer_s: u32,
    bindings: Vec<Binding>,
}

/// A keepalive to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ping {
    pub flow: Flow,
    /// Request-URI of the OPTIONS.
    pub uri: Box<str>,
    pub kind: KeepaliveKind,
    /// Names the binding in [`Bindings::ping_answered`] and [`Bindings::ping_failed`]; below 2^60.
    pub id: u64,
}

/// What comes out of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Replicate this.
    Store(AorRecord),
    Ping(Ping),
    /// A binding ended that a core registrar holds; so many of the user are left.
    Withdraw {
        aor: Box<str>,
        upstream: Upstream,
        left: usize,
    },
    /// Tell whoever watches: where a user is has changed.
    Changed(Changed),
}

/// A user came, went or moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    pub aor: Box<str>,
    pub how: Change,
    /// Contacts that are left.
    pub contacts: usize,
}

/// Why a set of contacts changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A contact that was not there before.
    Registered,
    /// Taken out by the device or an operator.
    Removed,
    /// Its time ran out.
    Expired,
    /// Its connection closed or it answers no keepalives.
    Gone,
}

/// Sizes now and counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub aors: usize,
    pub bindings: usize,
    pub expired: u64,
    /// Dropped because keepalives were not answered or the connection closed.
    pub gone: u64,
    pub pings: u64,
    /// Keepalives that were answered, and that were not in time.
    pub ping_answers: u64,
    pub ping_misses: u64,
    /// Longer gaps between keepalives that were tried, and those that were too long.
    pub ping_trials: u64,
    pub ping_trials_missed: u64,
    /// Refreshes that needed no replicated write, and writes.
    pub coalesced: u64,
    pub stores: u64,
}

/// The table has as many bindings as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many bindings")]
pub struct Full;

/// See the module's header.
#[derive(Debug)]
pub struct Bindings {
    epoch: Instant,
    /// Unix milliseconds of the epoch.
    epoch_unix_ms: u64,
    hasher: DefaultHashBuilder,
    index: HashTable<u32>,
    aors: Slab<Aor>,
    wheel: TimerWheel<u32>,
    /// Who is reached by a connection.
    by_conn: HashMap<ConnId, SmallVec<[u32; 2]>>,
    due: VecDeque<Due>,
    stats: Stats,
    pub(super) max: usize,
    pub(super) keepalive: Option<Keepalive>,
    learner: Learner,
    pub(super) store_ahead: Duration,
    /// Somebody takes what is to be replicated.
    pub(super) replicated: bool,
}

/// Times in the table stay this far below its end.
const SECONDS_MAX: u32 = u32::MAX / 2;

impl Bindings {
    /// An empty table. `unix_ms` is the wall clock at `epoch`, for records.
    pub fn new(epoch: Instant, unix_ms: u64) -> Self {
        Bindings {
            epoch,
            epoch_unix_ms: unix_ms,
            hasher: DefaultHashBuilder::default(),
            index: HashTable::new(),
            aors: Slab::new(),
            wheel: TimerWheel::new(epoch),
            by_conn: HashMap::new(),
            due: VecDeque::new(),
            stats: Stats::default(),
            max: usize::MAX,
            keepalive: None,
            learner: Learner::default(),
            store_ahead: Duration::ZERO,
            replicated: true,
        }
    }

    pub fn stats(&self) -> Stats {
        let Learner { trials, trials_missed, .. } = self.learner;
        Stats {
            aors: self.aors.len(),
            ping_trials: trials,
            ping_trials_missed: trials_missed,
            ..self.stats
        }
    }

    pub fn is_empty(&self) -> bool {
        self.aors.is_empty() && self.wheel.is_empty() && self.by_conn.is_empty()
    }

    /// Whole seconds since the epoch.
    pub(super) fn seconds(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.epoch).as_secs();
        u32::try_from(seconds).unwrap_or(SECONDS_MAX).min(SECONDS_MAX)
    }

    fn find(&self, aor: &str) -> Option<u32> {
        let same = |&index: &u32| self.aors.get(index as usize).is_some_and(|a| *a.name == *aor);
        self.index.find(self.hasher.hash_one(aor), same).copied()
    }

    /// Every address of record with its bindings, in no order.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &[Binding])> {
        self.aors.iter().map(|(_, a)| (&*a.name, &*a.bindings))
    }

    /// The addresses of record in `places` places of the table, and where to go on.
    pub(super) fn page(
        &self,
        from: usize,
        places: usize,
    ) -> (Option<usize>, impl Iterator<Item = (&str, &[Binding])>) {
        let to = from.saturating_add(places);
        let next = (to < self.aors.capacity()).then_some(to);
        let page = (from..to.min(self.aors.capacity())).filter_map(|at| self.aors.get(at));
        (next, page.map(|a| (&*a.name, &*a.bindings)))
    }

    /// The bindings of an address of record, in no order, expired ones among them.
    pub(super) fn of(&self, aor: &str) -> &[Binding] {
        let found = self.find(aor).and_then(|index| self.aors.get(index as usize));
        found.map_or(&[], |a| &a.bindings)
    }

    /// Where a user is reached: by falling q, among equals the freshest first. `method` is the bit
    /// of a method that the contact must take, 0 for any; `device` may choose one (GRUU, RFC 5627
    /// §5.1). Of one device's flows only the freshest is given: the
    /// others are its spares (RFC 5626 §7).
    pub fn lookup(
        &self,
        now: Instant,
        aor: &str,
        method: u32,
        device: &Device,
    ) -> SmallVec<[Reached; 2]> {
        let now_s = self.seconds(now);
        let mut live: SmallVec<[&Binding; 4]> = self
            .of(aor)
            .iter()
            .filter(|b| b.expires_s > now_s)
            .filter(|b| b.methods == 0 || method == 0 || b.methods & method != 0)
            .filter(|b| b.is_device(device))
            .collect();
        if live.len() > 1 {
            live.sort_by_key(|b| (u16::MAX - b.q, u32::MAX - b.refreshed_s));
        }
        let mut devices: SmallVec<[&str; 4]> = SmallVec::new();
        live.retain(|b| {
            let spare = b.reg_id != 0 && devices.contains(&b.instance());
            devices.push(b.instance());
            !spare
        });
        live.into_iter().map(Binding::reached).collect()
    }

    /// Replaces the bindings of an address of record. What changed for other nodes is stored.
    ///
    /// # Errors
    /// [`Full`]: nothing changed.
    pub(super) fn replace(
        &mut self,
        now: Instant,
        aor: &str,
        mut new: Vec<Binding>,
    ) -> Result<(), Full> {
        let now_s = self.seconds(now);
        let old = self.of(aor);
        for b in new.iter_mut().filter(|b| b.own) {
            if !old.iter().any(|o| o.same_way(b)) {
                // Another node would not reach the user in the same way.
                b.stored_s = 0;
            }
        }
        let news = |b: &Binding| old.iter().all(|o| o.contact() != b.contact());
        let how = match new.iter().any(news) {
            true => Some(Change::Registered),
            false => (new.len() < old.len()).then_some(Change::Removed),
        };
        let stays = |o: &Binding| new.iter().any(|b| b.contact() == o.contact());
        let gone: Vec<Gone> = old
            .iter()
            .filter(|o| o.stored_s > now_s && !stays(o))
            .map(|o| Gone { contact: o.key(), own_only: false })
            .collect();
        let ended: Vec<Upstream> = old
            .iter()
            .filter(|o| o.own && o.upstream.is_some())
            .filter(|o| !new.iter().any(|b| b.device_key() == o.device_key()))
            .filter_map(|o| o.upstream.as_deref().cloned())
            .collect();
        let Some(index) = self.swap(now_s, aor, new)? else { return Ok(()) };
        self.withdraw(index, ended);
        self.tell(index, how);
        if !self.store(index, now_s, gone) {
            self.stats.coalesced += 1;
        }
        self.settle(index, now_s);
        Ok(())
    }

    /// Puts another set of bindings in the place of that of an address of record; `None` where
    /// neither has any.
    fn swap(&mut self, now_s: u32, aor: &str, mut new: Vec<Binding>) -> Result<Option<u32>, Full> {
        let found = self.find(aor);
        let before = found.and_then(|i| self.aors.get(i as usize)).map_or(0, |a| a.bindings.len());
        if new.len() > before && self.stats.bindings - before + new.len() > self.max {
            return Err(Full);
        }
        let index = match found {
            Some(index) => index,
            None if new.is_empty() => return Ok(None),
            None => self.insert(aor),
        };
        self.schedule_pings(index, &mut new, now_s);
        let Some(entry) = self.aors.get_mut(index as usize) else { return Ok(None) };
        new.shrink_to_fit();
        let old = std::mem::replace(&mut entry.bindings, new);
        self.stats.bindings = self.stats.bindings - before + entry.bindings.len();
        for conn in old.iter().filter_map(|b| b.conn) {
            self.unlink_conn(conn, index);
        }
        self.link_conns(index);
        Ok(Some(index))
    }

    /// Takes what the replicated state holds of an address of record. What this node heard itself
    /// stays, unless the device has registered elsewhere since or was taken out on purpose; where
    /// the replicated state has lost it, it is written again.
    ///
    /// # Errors
    /// [`Full`]: nothing changed.
    pub fn adopt(&mut self, now: Instant, state: &AorState) -> Result<(), Full> {
        let now_s = self.seconds(now);
        let mut new = Vec::with_capacity(state.bindings.len());
        for own in self.of(&state.aor).iter().filter(|b| b.own && b.expires_s > now_s) {
            let key = own.key();
            let newer = |held: &Held| {
                !held.ours && own.is_device_of(&held.record) && !own.is_after(&held.record)
            };
            if state.deleted.contains(&key) || state.bindings.iter().any(newer) {
                continue;
            }
            let mut kept = own.copy();
            let there = |held: &Held| held.ours && contact_key(&held.record.contact) == key;
            if !state.bindings.iter().any(there) {
                kept.stored_s = 0;
            }
            new.push(kept);
        }
        for held in state.bindings.iter().filter(|held| !held.ours) {
            let until_s = self.seconds_of_unix(held.record.good_until_ms);
            let known = new.iter().any(|b| b.is_device_of(&held.record));
            if until_s > now_s && !known {
                new.extend(Binding::adopted(held, now_s, until_s));
            }
        }
        let Some(index) = self.swap(now_s, &state.aor, new)? else { return Ok(()) };
        self.store(index, now_s, Vec::new());
        self.settle(index, now_s);
        Ok(())
    }

    /// What was to be written was not: the next refresh writes it.
    pub fn unstored(&mut self, aor: &str) {
        let entry = self.find(aor).and_then(|index| self.aors.get_mut(index as usize));
        for b in entry.into_iter().flat_map(|entry| &mut entry.bindings).filter(|b| b.own) {
            b.stored_s = 0;
        }
    }

    /// A connection closed: who was reached by it alone is gone.
    pub fn conn_closed(&mut self, now: Instant, conn: ConnId) {
        let now_s = self.seconds(now);
        for index in self.by_conn.remove(&conn).unwrap_or_default() {
            let Some(entry) = self.aors.get_mut(index as usize) else { continue };
            let (mut lost, mut ended) = (Vec::new(), Vec::new());
            entry.bindings.retain_mut(|b| {
                if b.conn != Some(conn) {
                    return true;
                }
                b.conn = None;
                // Its record names a connection that is no more.
                b.stored_s = b.stored_s.min(b.expires_s.saturating_sub(1));
                if b.by_conn_alone() {
                    lost.push(b.gone());
                    ended.extend(b.upstream.take().filter(|_| b.own).map(|u| *u));
                }
                !b.by_conn_alone()
            });
            self.withdraw(index, ended);
            self.dropped(index, lost, now_s);
        }
    }

    /// Takes what keepalives are configured with.
    pub(super) fn set_keepalive(&mut self, keepalive: Option<Keepalive>) {
        self.keepalive = keepalive;
        let seconds = |d: Duration| u32::try_from(d.as_secs()).unwrap_or(SECONDS_MAX);
        let longest = keepalive.and_then(|k| k.longest).map_or(0, seconds);
        self.learner.configure(self.ping_interval().unwrap_or(0), longest);
    }

    /// A keepalive was answered.
    pub fn ping_answered(&mut self, now: Instant, id: u64) {
        let (index, check) = open_ping(id);
        let now_s = self.seconds(now);
        self.stats.ping_answers += 1;
        let Some(entry) = self.aors.get_mut(index as usize) else { return };
        let named = |b: &&mut Binding| check_of(&self.hasher, b.contact()) == check;
        for b in entry.bindings.iter_mut().filter(named) {
            b.missed = 0;
            if b.ping_s != u32::MAX
                && let Some(gap_s) = self.learner.answered(b.remote.ip(), id, now_s)
            {
                b.ping_s = now_s + gap_s;
            }
        }
        self.settle(index, now_s);
    }

    /// A keepalive was not answered; after as many as the policy says the binding is gone.
    pub fn ping_failed(&mut self, now: Instant, id: u64) {
        let (index, check) = open_ping(id);
        let misses = self.keepalive.map_or(0, |k| k.misses);
        self.stats.ping_misses += 1;
        let now_s = self.seconds(now);
        let Some(entry) = self.aors.get_mut(index as usize) else { return };
        let (hasher, learner) = (&self.hasher, &mut self.learner);
        let (mut lost, mut ended) = (Vec::new(), Vec::new());
        entry.bindings.retain_mut(|b| {
            if check_of(hasher, b.contact()) != check {
                return true;
            }
            if b.missed == 0 && learner.missed(b.remote.ip(), id, now_s) {
                return true;
            }
            b.missed = b.missed.saturating_add(1);
            let stays = misses == 0 || b.missed < misses;
            if !stays {
                lost.push(b.gone());
                ended.extend(b.upstream.take().filter(|_| b.own).map(|u| *u));
            }
            stays
        });
        self.withdraw(index, ended);
        self.dropped(index, lost, now_s);
    }

    /// Expires bindings and makes the keepalives that are due.
    pub fn handle_tick(&mut self, now: Instant) {
        let now_s = self.seconds(now);
        while let Some((_, index)) = self.wheel.pop(now) {
            let Some(entry) = self.aors.get_mut(index as usize) else { continue };
            entry.timer = None;
            let before = entry.bindings.len();
            let over = |b: &&Binding| b.expires_s <= now_s && b.stored_s > now_s && b.own;
            let gone: Vec<Gone> = entry.bindings.iter().filter(over).map(Binding::gone).collect();
            let conns: SmallVec<[ConnId; 2]> = entry
                .bindings
                .iter()
                .filter(|b| b.expires_s <= now_s)
                .filter_map(|b| b.conn)
                .collect();
            let over = entry.bindings.iter_mut().filter(|b| b.expires_s <= now_s && b.own);
            let ended: Vec<Upstream> = over.filter_map(|b| b.upstream.take()).map(|u| *u).collect();
            entry.bindings.retain(|b| b.expires_s > now_s);
            let lost = before - entry.bindings.len();
            self.stats.bindings -= lost;
            self.stats.expired += u64::try_from(lost).unwrap_or(0);
            if !conns.is_empty() {
                conns.into_iter().for_each(|conn| self.unlink_conn(conn, index));
                self.link_conns(index);
            }
            self.withdraw(index, ended);
            self.tell(index, (lost > 0).then_some(Change::Expired));
            self.store(index, now_s, gone);
            self.ping(index, now_s);
            self.settle(index, now_s);
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.wheel.deadline()
    }

    pub fn poll(&mut self) -> Option<Due> {
        self.due.pop_front()
    }

    /// Heap bytes held, as far as the table knows.
    pub fn heap_bytes(&self) -> usize {
        let entry = |a: &Aor| {
            let bindings = a.bindings.iter().map(Binding::heap_bytes).sum::<usize>();
            a.name.len() + a.bindings.capacity() * size_of::<Binding>() + bindings
        };
        self.aors.iter().map(|(_, a)| entry(a)).sum::<usize>()
            + self.aors.capacity() * size_of::<Aor>()
            + self.index.capacity() * 5
            + self.wheel.heap_bytes()
    }

    /// The core registrar has heard of these, or does not know them.
    pub(super) fn forget_upstream(&mut self, aor: &str, which: impl Fn(&Binding) -> bool) {
        let entry = self.find(aor).and_then(|index| self.aors.get_mut(index as usize));
        let all = entry.into_iter().flat_map(|entry| &mut entry.bindings);
        all.filter(|b| which(b)).for_each(|b| b.upstream = None);
    }

    /// The same is held of all of a user's bindings. Their records follow with their next write.
    pub(super) fn set_upstream(&mut self, aor: &str, upstream: &Upstream) {
        let entry = self.find(aor).and_then(|index| self.aors.get_mut(index as usize));
        let all = entry.into_iter().flat_map(|entry| &mut entry.bindings);
        all.for_each(|b| b.upstream = Some(Box::new(upstream.clone())));
    }

    fn withdraw(&mut self, index: u32, ended: Vec<Upstream>) {
        let Some(entry) = self.aors.get(index as usize).filter(|_| !ended.is_empty()) else {
            return;
        };
        let left = entry.bindings.len();
        for upstream in ended {
            self.due.push_back(Due::Withdraw { aor: entry.name.clone(), upstream, left });
        }
    }

    /// Bindings were taken out of an entry.
    fn dropped(&mut self, index: u32, lost: Vec<Gone>, now_s: u32) {
        self.stats.bindings -= lost.len();
        self.stats.gone += u64::try_from(lost.len()).unwrap_or(0);
        self.tell(index, (!lost.is_empty()).then_some(Change::Gone));
        self.store(index, now_s, lost);
        self.settle(index, now_s);
    }

    fn tell(&mut self, index: u32, how: Option<Change>) {
        let (Some(how), Some(entry)) = (how, self.aors.get(index as usize)) else { return };
        let changed = Changed { aor: entry.name.clone(), how, contacts: entry.bindings.len() };
        self.due.push_back(Due::Changed(changed));
    }

    fn insert(&mut self, aor: &str) -> u32 {
        let entry = Aor { name: aor.into(), timer: None, timer_s: u32::MAX, bindings: Vec::new() };
        let index = u32::try_from(self.aors.insert(entry)).unwrap_or(u32::MAX);
        let (aors, hasher) = (&self.aors, &self.hasher);
        let rehash = |&i: &u32| aors.get(i as usize).map_or(0, |a| hasher.hash_one(&*a.name));
        self.index.insert_unique(hasher.hash_one(aor), index, rehash);
        index
    }

    fn link_conns(&mut self, index: u32) {
        let Some(entry) = self.aors.get(index as usize) else { return };
        for conn in entry.bindings.iter().filter_map(|b| b.conn) {
            let users = self.by_conn.entry(conn).or_default();
            if !users.contains(&index) {
                users.push(index);
            }
        }
    }

    fn unlink_conn(&mut self, conn: ConnId, index: u32) {
        if let Some(users) = self.by_conn.get_mut(&conn) {
            users.retain(|&mut i| i != index);
            if users.is_empty() {
                self.by_conn.remove(&conn);
            }
        }
    }

    /// Writes what the replicated state lacks of an entry, good for a while, and what is gone.
    /// False when there is nothing to write.
    fn store(&mut self, index: u32, now_s: u32, gone: Vec<Gone>) -> bool {
        if !self.replicated {
            return false;
        }
        let ahead = u32::try_from(self.store_ahead.as_secs()).unwrap_or(SECONDS_MAX);
        let Some(entry) = self.aors.get_mut(index as usize) else { return false };
        let epoch = self.epoch_unix_ms;
        let unix_ms = |s: u32| epoch.saturating_add(u64::from(s) * 1_000);
        let mut bindings = Vec::new();
        for b in entry.bindings.iter_mut().filter(|b| b.own && b.stored_s < b.expires_s) {
            b.stored_s = b.expires_s.max(now_s.saturating_add(ahead));
            bindings.push(b.record(unix_ms));
        }
        if bindings.is_empty() && gone.is_empty() {
            return false;
        }
        self.due.push_back(Due::Store(AorRecord { aor: entry.name.clone(), bindings, gone }));
        self.stats.stores += 1;
        true
    }

    pub(super) fn seconds_of_unix(&self, unix_ms: u64) -> u32 {
        let seconds = unix_ms.saturating_sub(self.epoch_unix_ms) / 1_000;
        u32::try_from(seconds).unwrap_or(SECONDS_MAX).min(SECONDS_MAX)
    }

    /// First keepalives: spread evenly over the interval by the contact's hash.
    fn schedule_pings(&mut self, index: u32, new: &mut [Binding], now_s: u32) {
        let interval = self.ping_interval();
        let old = self.aors.get(index as usize).map_or(&[][..], |a| &a.bindings);
        for b in new {
            // Connections are kept open by their transport and tell when they close.
            let wanted = interval
                .filter(|_| b.keeper && b.natted && b.conn.is_none() && b.path().is_empty());
            b.ping_s = match (wanted, old.iter().find(|o| o.contact() == b.contact())) {
                (None, _) => u32::MAX,
                (Some(_), Some(before)) if before.ping_s != u32::MAX => {
                    let (ip, id) = (before.remote.ip(), ping_id(&self.hasher, index, b.contact()));
                    let again = b.refreshed_s > before.refreshed_s;
                    let moved = b.remote != before.remote;
                    let gap_s =
                        again.then(|| self.learner.refreshed(ip, id, moved, now_s)).flatten();
                    gap_s.map_or(before.ping_s, |gap_s| now_s + gap_s)
                }
                (Some(interval), _) => {
                    let phase = check_of(&self.hasher, b.contact()) % interval;
                    now_s + 1 + phase
                }
            };
        }
    }

    fn ping_interval(&self) -> Option<u32> {
        let interval = self.keepalive?.interval.as_secs();
        Some(u32::try_from(interval).unwrap_or(SECONDS_MAX).max(1))
    }

    fn ping(&mut self, index: u32, now_s: u32) {
        let (Some(interval), Some(policy)) = (self.ping_interval(), self.keepalive) else { return };
        let Some(entry) = self.aors.get_mut(index as usize) else { return };
        for b in entry.bindings.iter_mut().filter(|b| b.ping_s <= now_s) {
            b.ping_s = now_s + self.learner.gap(b.remote.ip()).unwrap_or(interval);
            self.stats.pings += 1;
            self.due.push_back(Due::Ping(Ping {
                flow: b.flow(),
                uri: b.contact().into(),
                kind: policy.kind,
                id: ping_id(&self.hasher, index, b.contact()),
            }));
        }
    }

    /// Arms the entry's timer for what comes next, or removes an entry without bindings.
    fn settle(&mut self, index: u32, now_s: u32) {
        let Some(entry) = self.aors.get_mut(index as usize) else { return };
        let next = entry.bindings.iter().map(|b| b.expires_s.min(b.ping_s)).min();
        let armed = entry.timer.is_some();
        match next {
            Some(at) if armed && entry.timer_s == at => return,
            Some(_) | None => {}
        }
        if let Some(key) = entry.timer.take() {
            self.wheel.cancel(key);
        }
        let Some(at_s) = next else {
            let hash = self.hasher.hash_one(&*entry.name);
            if let Ok(found) = self.index.find_entry(hash, |&i| i == index) {
                found.remove();
            }
            self.aors.remove(index as usize);
            return;
        };
        // Within its second an entry has a place of its own, so that seconds are no bursts.
        let spread = Duration::from_millis(u64::from(index.wrapping_mul(2_654_435_761) % 1_000));
        let at = self.epoch + Duration::from_secs(u64::from(at_s.max(now_s))) + spread;
        entry.timer = Some(self.wheel.insert(at, index));
        entry.timer_s = at_s;
    }
}

fn ping_id(hasher: &DefaultHashBuilder, index: u32, contact: &str) -> u64 {
    u64::from(index) << 31 | u64::from(check_of(hasher, contact))
}

fn open_ping(id: u64) -> (u32, u32) {
    let index = u32::try_from(id >> 31 & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    (index, u32::try_from(id & CHECK).unwrap_or(0))
}

const CHECK: u64 = (1 << 31) - 1;

/// 31 bits that tell contacts of one user apart.
fn check_of(hasher: &DefaultHashBuilder, contact: &str) -> u32 {
    u32::try_from(hasher.hash_one(contact) & CHECK).unwrap_or(0)
}
