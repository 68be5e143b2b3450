//! Registering with the trunks that demand it (RFC 3261 §10.2): when, with whom, what an answer
//! means. One shard of a node does it for all; in a cluster one node does each, as the edge says by
//! [`Duties`], and carries on what another has written.
//!
//! ```text
//! Standby ── duty ──▶ Waiting ── due ──▶ Resolving ── targets ──▶ Sent ─┬─ 200 ──▶ Waiting (refresh)
//!    ▲                   ▲                                        ▲     ├─ 401 407 423 ── again ──┐
//!    │                   └────────── next peer, or back-off ──────│─────┴─ failure                 │
//!    └─────────── withdrawn, or the duty is another node's ───────└───────────────────────────────┘
//! ```
//!
//! Requests go to the peers of the trunk and nowhere else; a redirection is a failure. Silence and
//! 503 go on to the next address and the next peer at once, three other failures in a row to the
//! next peer. Between rounds the waiting time doubles (RFC 5626 §4.5).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use std::collections::VecDeque;

use hashbrown::HashMap;
use rand::Rng;
use slab::Slab;

use super::{Duties, Event, HeldRegistration, Output, Record, ResolveError, ResolveId, StoreId};
use crate::b2bua::WallClock;
use crate::b2bua::auth::{Answer, CHALLENGES_MAX, answer_for};
use crate::ids::ShardHint;
use crate::net::{Interface, Target};
use crate::routing::{RegisterConfig, Registration, RegistrationState, Routing, Trunk};
use crate::sip::{HeaderName, Message};
use crate::timer::{TimerKey, TimerWheel};
use crate::transaction::{Owner, TransactionLayer};

#[path = "registrant_wire.rs"]
mod wire;

pub(super) use wire::granted;
pub(crate) use wire::line;

/// What a registration may touch outside itself.
pub struct RegistrantCx<'a> {
    pub now: Instant,
    pub clock: WallClock,
    pub txn: &'a mut TransactionLayer,
    pub routing: &'a mut Routing,
    /// By `InterfaceId`.
    pub interfaces: &'a [Interface],
    /// Value of our User-Agent; none is written when empty.
    pub product: &'a str,
}

/// Marks owners and resolutions as the registrant's: calls, probes and keepalives have a higher bit
/// set, or none.
const OWNER: u64 = 1 << 59;
const RESOLVE: u64 = 1 << 62;
const SERIAL: u32 = (1 << 27) - 1;

/// Without a final answer for this long an address counts as silent.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Failures in a row after which the next peer is asked.
const ERRORS_MAX: u32 = 3;
/// Far enough above the last request that another node can have sent without writing it.
const CSEQ_STEP: u32 = 1_000;
/// First requests are spread by this much for each registration of the node.
const SPREAD: Duration = Duration::from_millis(5);
/// Longer wishes of a registrar (Retry-After) and grants count as this.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// What a request is to achieve.
#[derive(Clone, Debug)]
enum Goal {
    Register,
    /// Takes a contact out: our own at the end, or that of the node that did it before.
    Remove(Box<str>),
}

enum Phase {
    Standby,
    Waiting {
        at: Instant,
    },
    Resolving,
    /// Asked one target; these are left. `challenges` of this round were answered.
    Sent {
        goal: Goal,
        target: Target,
        rest: Vec<Target>,
        challenges: u8,
    },
}

/// What becomes of an entry whose contact is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// It stays, for when the duty comes back.
    Pause,
    /// It is no longer configured.
    Gone,
}

/// What the registrar holds of us.
struct Held {
    contact: Box<str>,
    target: Target,
    until: Instant,
}

/// One address of record at one trunk.
struct Entry {
    trunk: Arc<Trunk>,
    config: RegisterConfig,
    shared: Arc<Registration>,
    phase: Phase,
    leaving: Leaving,
    /// Counts what was asked: answers to anything older are not listened to.
    serial: u32,
    timer: Option<TimerKey>,
    call_id: Box<str>,
    cseq: u32,
    /// The peer that is asked, the peers that were silent in this round, and the failures in a row
    /// at one peer and at all.
    peer: usize,
    silent: usize,
    errors: u32,
    failures: u32,
    /// Asked for; a registrar may insist on more (423).
    expires_s: u32,
    /// Answers to the challenges met last, used again with the next nonce count.
    answers: Vec<Answer>,
    held: Option<Held>,
    /// A contact of another node, or of another configuration, to be taken out.
    inherited: Option<Box<str>>,
}

impl Entry {
    fn is_held(&self, now: Instant) -> bool {
        self.held.as_ref().is_some_and(|held| held.until > now)
    }
}

type Key = (Arc<str>, Arc<str>);

/// The registrations of a node. Its outputs are [`Output::Resolve`], [`Output::Store`] and
/// [`Event::TrunkRegistration`].
pub struct Registrant {
    hint: ShardHint,
    entries: Slab<Entry>,
    wheel: TimerWheel<u32>,
    /// `None`: a node by itself, which has all duties.
    duties: Option<HashMap<Key, Option<HeldRegistration>>>,
    draining: bool,
    outputs: VecDeque<Output>,
}

impl Registrant {
    /// A registrant of the shard that `hint` names. `alone`: no other node does anything for it.
    pub fn new(now: Instant, hint: ShardHint, alone: bool) -> Self {
        Registrant {
            hint,
            entries: Slab::new(),
            wheel: TimerWheel::new(now),
            duties: (!alone).then(HashMap::new),
            draining: false,
            outputs: VecDeque::new(),
        }
    }

    /// Takes the trunks of the routing table. What is no longer there is taken back, what has
    /// changed is registered anew.
    pub fn configure(&mut self, cx: &mut RegistrantCx<'_>) {
        let table = cx.routing.table().clone();
        let mut gone = self.configured();
        for trunk in table.trunks() {
            for (config, shared) in trunk.registrations() {
                match self.find(trunk.name(), &config.aor) {
                    Some(index) => {
                        gone.retain(|known| *known != index);
                        self.update(cx, index, trunk, config, shared);
                    }
                    None => self.add(cx, trunk, config, shared),
                }
            }
        }
        for index in gone {
            self.leave(cx, index, Leaving::Gone);
        }
    }

    /// Takes what is this node's to do from now on.
    pub fn take_duties(&mut self, cx: &mut RegistrantCx<'_>, duties: Duties) {
        let all = duties.all.into_iter().map(|d| ((d.trunk, d.aor), d.before));
        self.duties = Some(all.collect());
        for index in self.configured() {
            let Some(entry) = self.entries.get(index) else { continue };
            let active = !matches!(entry.phase, Phase::Standby);
            match (active, self.has_duty(index)) {
                (false, true) => self.take_up(cx, index),
                (true, false) if duties.withdraw => self.leave(cx, index, Leaving::Pause),
                (true, false) => self.stand_by(index, RegistrationState::Standby),
                (true, true) | (false, false) => {}
            }
        }
    }

    /// A node by itself that drains takes everything back, and registers again when that is undone.
    /// In a cluster the duties say what is to be done.
    pub fn drain(&mut self, cx: &mut RegistrantCx<'_>, on: bool) {
        if self.duties.is_some() || self.draining == on {
            return;
        }
        self.draining = on;
        for index in self.configured() {
            match on {
                true => self.leave(cx, index, Leaving::Pause),
                false if self.entries.get(index).is_some_and(|e| e.leaving == Leaving::No) => {
                    self.take_up(cx, index);
                }
                // Once it is taken back.
                false => {}
            }
        }
    }

    /// Contacts that are being taken back.
    pub fn leaving(&self) -> usize {
        self.entries.iter().filter(|(_, entry)| entry.leaving != Leaving::No).count()
    }

    /// Does what is due.
    pub fn handle_tick(&mut self, cx: &mut RegistrantCx<'_>) {
        while let Some((_, index)) = self.wheel.pop(cx.now) {
            let index = index as usize;
            let Some(entry) = self.entries.get_mut(index) else { continue };
            entry.timer = None;
            let Phase::Waiting { at } = entry.phase else { continue };
            self.lapse(cx, index);
            match at <= cx.now {
                true => self.begin(cx, index),
                false => self.arm(index, at),
            }
        }
    }

    /// The answer to a resolution; `false` when it is none of the registrant's.
    pub fn resolved(
        &mut self,
        cx: &mut RegistrantCx<'_>,
        id: ResolveId,
        result: &Result<Vec<Target>, ResolveError>,
    ) -> bool {
        if id.0 & RESOLVE == 0 || id.0 >> 63 != 0 {
            return false;
        }
        let Some(index) = self.index(id.0 & !RESOLVE) else { return true };
        let Some(entry) = self.entries.get(index) else { return true };
        if !matches!(entry.phase, Phase::Resolving) {
            return true;
        }
        let targets = result.as_deref().unwrap_or_default().to_vec();
        let (trunk, peer) = (entry.trunk.clone(), entry.peer);
        if !targets.is_empty() {
            let addresses: Vec<IpAddr> = targets.iter().map(|t| t.addr.ip()).collect();
            cx.routing.learn(&trunk, peer, &addresses);
        }
        self.send(cx, index, Goal::Register, targets, 503);
        true
    }

    /// A response; `false` when the transaction is none of the registrant's.
    pub fn response(&mut self, cx: &mut RegistrantCx<'_>, owner: Owner, message: &Message) -> bool {
        if !is_ours(owner) {
            return false;
        }
        let status = message.status().unwrap_or(0);
        let Some(index) = self.index(owner.0 & !OWNER) else { return true };
        let Some(Entry { phase: Phase::Sent { goal, target, .. }, .. }) = self.entries.get(index)
        else {
            return true;
        };
        let (goal, target) = (goal.clone(), *target);
        match (status, goal) {
            (..200, _) => {}
            (401 | 407, goal) => {
                if !self.answer(cx, index, goal.clone(), target, message) {
                    self.refused(cx, index, goal, status, None);
                }
            }
            (200..=299, Goal::Register) => self.accepted(cx, index, target, message),
            (_, Goal::Remove(_)) => self.removed(cx, index),
            (423, goal) => {
                if !self.lengthen(cx, index, target, message) {
                    self.refused(cx, index, goal, status, None);
                }
            }
            (408 | 503, goal) => self.next_target(cx, index, goal, status),
            (_, goal) => {
                let wait = message.number(HeaderName::RetryAfter).ok().flatten();
                self.refused(cx, index, goal, status, wait);
            }
        }
        true
    }

    /// No answer came (408), or the request could not be sent (503); `false` when it was none of the
    /// registrant's.
    pub fn failed(&mut self, cx: &mut RegistrantCx<'_>, owner: Owner, status: u16) -> bool {
        if !is_ours(owner) {
            return false;
        }
        let Some(index) = self.index(owner.0 & !OWNER) else { return true };
        if let Some(Entry { phase: Phase::Sent { goal, .. }, .. }) = self.entries.get(index) {
            let goal = goal.clone();
            self.next_target(cx, index, goal, status);
        }
        true
    }

    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.wheel.deadline()
    }

    /// All entries that are configured.
    fn configured(&self) -> Vec<usize> {
        let stays = |(_, entry): &(usize, &Entry)| entry.leaving != Leaving::Gone;
        self.entries.iter().filter(stays).map(|(index, _)| index).collect()
    }

    fn find(&self, trunk: &str, aor: &str) -> Option<usize> {
        let is = |(_, entry): &(usize, &Entry)| {
            **entry.trunk.name() == *trunk
                && *entry.config.aor == *aor
                && entry.leaving != Leaving::Gone
        };
        self.entries.iter().find(is).map(|(index, _)| index)
    }

    fn add(
        &mut self,
        cx: &mut RegistrantCx<'_>,
        trunk: &Arc<Trunk>,
        config: &RegisterConfig,
        shared: &Arc<Registration>,
    ) {
        let index = self.entries.insert(Entry {
            trunk: trunk.clone(),
            config: config.clone(),
            shared: shared.clone(),
            phase: Phase::Standby,
            leaving: Leaving::No,
            // A place is used again: what was asked from it before is not.
            serial: cx.txn.ids().rng().next_u32() & SERIAL,
            timer: None,
            call_id: cx.txn.ids().call_id(self.hint).as_str().into(),
            cseq: 0,
            peer: 0,
            silent: 0,
            errors: 0,
            failures: 0,
            expires_s: seconds(config.expires),
            answers: Vec::new(),
            held: None,
            inherited: None,
        });
        if self.has_duty(index) {
            self.take_up(cx, index);
        }
    }

    fn update(
        &mut self,
        cx: &mut RegistrantCx<'_>,
        index: usize,
        trunk: &Arc<Trunk>,
        config: &RegisterConfig,
        shared: &Arc<Registration>,
    ) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        let (old, new) = (&entry.trunk.config, &trunk.config);
        let same = entry.config == *config
            && old.credentials == new.credentials
            && (old.interface, &old.peers) == (new.interface, &new.peers);
        entry.trunk = trunk.clone();
        entry.shared = shared.clone();
        if same {
            return;
        }
        entry.config = config.clone();
        entry.expires_s = seconds(config.expires);
        (entry.peer, entry.silent, entry.errors, entry.failures) = (0, 0, 0, 0);
        entry.answers.clear();
        if !matches!(entry.phase, Phase::Standby) && entry.leaving == Leaving::No {
            self.begin(cx, index);
        }
    }

    fn has_duty(&self, index: usize) -> bool {
        let Some(entry) = self.entries.get(index) else { return false };
        match &self.duties {
            None => !self.draining,
            Some(duties) => {
                duties.contains_key(&(entry.trunk.name().clone(), entry.config.aor.clone()))
            }
        }
    }

    /// Begins, where another node stopped if one did.
    fn take_up(&mut self, cx: &mut RegistrantCx<'_>, index: usize) {
        let spread = SPREAD * u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        let Some(entry) = self.entries.get_mut(index) else { return };
        let key = (entry.trunk.name().clone(), entry.config.aor.clone());
        let before = self.duties.as_mut().and_then(|d| d.get_mut(&key)).and_then(Option::take);
        if let Some(before) = before {
            entry.call_id = before.call_id;
            entry.cseq = before.cseq.saturating_add(CSEQ_STEP);
            let live = before.until_ms > cx.clock.unix_ms(cx.now);
            entry.inherited = live.then_some(before.contact);
        }
        self.tell(index, RegistrationState::Trying, None);
        let wait = random_below(cx, spread);
        self.wait(cx, index, wait);
    }

    /// Stops without a word to the registrar.
    fn stand_by(&mut self, index: usize, state: RegistrationState) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        entry.serial = entry.serial.wrapping_add(1) & SERIAL;
        (entry.phase, entry.leaving) = (Phase::Standby, Leaving::No);
        (entry.held, entry.inherited) = (None, None);
        (entry.silent, entry.errors, entry.failures) = (0, 0, 0);
        entry.answers.clear();
        if let Some(timer) = entry.timer.take() {
            self.wheel.cancel(timer);
        }
        self.tell(index, state, None);
    }

    /// Takes our contact back, if there is one.
    fn leave(&mut self, cx: &mut RegistrantCx<'_>, index: usize, how: Leaving) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        let idle = matches!(entry.phase, Phase::Standby) && how == Leaving::Pause;
        if idle || entry.leaving == Leaving::Gone {
            return;
        }
        let under_way = entry.leaving == Leaving::Pause;
        entry.leaving = how;
        if under_way || matches!(entry.phase, Phase::Sent { goal: Goal::Register, .. }) {
            // What it comes to decides whether there is something to take back.
            return;
        }
        match entry.is_held(cx.now) {
            true => self.begin(cx, index),
            false => self.removed(cx, index),
        }
    }

    fn begin(&mut self, cx: &mut RegistrantCx<'_>, index: usize) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        if let Some(timer) = entry.timer.take() {
            self.wheel.cancel(timer);
        }
        if entry.leaving != Leaving::No {
            let own = entry.held.as_ref().map(|held| (held.contact.clone(), held.target));
            let Some((contact, target)) = own else { return self.removed(cx, index) };
            return self.send(cx, index, Goal::Remove(contact), vec![target], 503);
        }
        let interface = entry.trunk.config.interface;
        let peers = &entry.trunk.config.peers;
        let Some(query) = peers.get(entry.peer).map(|p| p.resolve_query(interface)) else {
            return self.refused(cx, index, Goal::Register, 503, None);
        };
        entry.phase = Phase::Resolving;
        entry.serial = entry.serial.wrapping_add(1) & SERIAL;
        let id = ResolveId(RESOLVE | name(index, entry.serial));
        self.outputs.push_back(Output::Resolve { id, query });
    }

    /// Asks the first target that can be asked; `status` is the failure if there is none.
    fn send(
        &mut self,
        cx: &mut RegistrantCx<'_>,
        index: usize,
        goal: Goal,
        targets: Vec<Target>,
        status: u16,
    ) {
        let mut rest = targets.into_iter();
        while let Some(target) = rest.next() {
            if self.ask(cx, index, &goal, target).is_some()
                && let Some(entry) = self.entries.get_mut(index)
            {
                let rest = rest.collect();
                entry.phase = Phase::Sent { goal, target, rest, challenges: 0 };
                return;
            }
        }
        self.unreachable(cx, index, goal, status);
    }

    fn next_target(&mut self, cx: &mut RegistrantCx<'_>, index: usize, goal: Goal, status: u16) {
        let Some(Entry { phase: Phase::Sent { rest, .. }, .. }) = self.entries.get_mut(index)
        else {
            return;
        };
        let rest = std::mem::take(rest);
        self.send(cx, index, goal, rest, status);
    }

    /// No address of the peer answers: the next peer, and after all of them a while of waiting.
    fn unreachable(&mut self, cx: &mut RegistrantCx<'_>, index: usize, goal: Goal, status: u16) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        if matches!(goal, Goal::Remove(_)) {
            return self.removed(cx, index);
        }
        let peers = entry.trunk.config.peers.len();
        entry.next_peer();
        entry.silent += 1;
        if entry.silent < peers && entry.leaving == Leaving::No {
            return self.begin(cx, index);
        }
        entry.silent = 0;
        self.refused(cx, index, goal, status, None);
    }

    /// A final failure of this round.
    fn refused(
        &mut self,
        cx: &mut RegistrantCx<'_>,
        index: usize,
        goal: Goal,
        status: u16,
        retry_after_s: Option<u32>,
    ) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        if matches!(goal, Goal::Remove(_)) || entry.leaving != Leaving::No {
            return self.removed(cx, index);
        }
        entry.errors += 1;
        entry.failures = entry.failures.saturating_add(1);
        if entry.errors >= ERRORS_MAX {
            entry.next_peer();
        }
        let (base, most) = (entry.config.retry, entry.config.retry_max);
        let doubled = base.saturating_mul(1u32 << (entry.failures - 1).min(20)).min(most);
        entry.shared.change(|s| s.failed += 1);
        let held = entry.is_held(cx.now);
        let state = if held { RegistrationState::Registered } else { RegistrationState::Failed };
        self.lapse(cx, index);
        self.tell(index, state, Some(status));
        // Between half of it and all: those who lost the same registrar do not come back together.
        let wait = doubled / 2 + random_below(cx, doubled / 2);
        let asked = Duration::from_secs(retry_after_s.unwrap_or(0).into()).min(RETRY_AFTER_MAX);
        self.wait(cx, index, wait.max(asked));
    }

    /// A registration that ran out is no more.
    fn lapse(&mut self, cx: &mut RegistrantCx<'_>, index: usize) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        if entry.held.is_some() && !entry.is_held(cx.now) {
            entry.held = None;
            self.tell(index, RegistrationState::Failed, None);
        }
    }

    fn accepted(
        &mut self,
        cx: &mut RegistrantCx<'_>,
        index: usize,
        target: Target,
        message: &Message,
    ) {
        let Some(contact) = self.contact(cx, index, &target) else { return };
        let Some(entry) = self.entries.get_mut(index) else { return };
        let granted = granted(message, &contact, entry.expires_s);
        if granted == 0 {
            // It answers, and does not keep our contact.
            return self.refused(cx, index, Goal::Register, 200, None);
        }
        (entry.silent, entry.errors, entry.failures) = (0, 0, 0);
        let until = cx.now + Duration::from_secs(granted.into()).min(LONGEST);
        let old = entry.held.replace(Held { contact: contact.clone(), target, until });
        let old = old.map(|held| held.contact).or_else(|| entry.inherited.take());
        entry.shared.change(|s| {
            s.accepted += 1;
            s.registrar = Some(target.addr);
            s.expires = Some(until);
        });
        self.tell(index, RegistrationState::Registered, None);
        self.write(cx, index);
        let Some(entry) = self.entries.get_mut(index) else { return };
        if entry.leaving != Leaving::No {
            return self.begin(cx, index);
        }
        entry.inherited = None;
        match old.filter(|old| *old != contact) {
            Some(old) => self.send(cx, index, Goal::Remove(old), vec![target], 503),
            None => self.wait_for_refresh(cx, index),
        }
    }

    /// A contact was taken out, or could not be: it runs out by itself.
    fn removed(&mut self, cx: &mut RegistrantCx<'_>, index: usize) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        match entry.leaving {
            Leaving::No => self.wait_for_refresh(cx, index),
            Leaving::Pause => {
                self.stand_by(index, RegistrationState::Withdrawn);
                self.write(cx, index);
                if self.has_duty(index) {
                    self.take_up(cx, index);
                }
            }
            Leaving::Gone => {
                self.stand_by(index, RegistrationState::Withdrawn);
                self.write(cx, index);
                self.entries.remove(index);
            }
        }
    }

    /// Answers a challenge for a realm that the trunk's credentials are for. `false` when that
    /// cannot be, or was refused already.
    fn answer(
        &mut self,
        cx: &mut RegistrantCx<'_>,
        index: usize,
        goal: Goal,
        target: Target,
        message: &Message,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(index) else { return false };
        let Phase::Sent { challenges, .. } = &mut entry.phase else { return false };
        let round = *challenges;
        let Some(answer) = answer_for(&entry.trunk, message, 0) else { return false };
        let same =
            |a: &Answer| a.header == answer.header && a.answerer.realm() == answer.answerer.realm();
        // Before the first challenge of a round only nonces of former ones were used.
        let refused = round > 0 && entry.answers.iter().any(same) && !answer.answerer.is_stale();
        if refused || round >= CHALLENGES_MAX {
            entry.answers.clear();
            return false;
        }
        entry.answers.retain(|a| !same(a));
        entry.answers.push(answer);
        if self.ask(cx, index, &goal, target).is_none() {
            return false;
        }
        if let Some(Entry { phase: Phase::Sent { challenges, .. }, .. }) =
            self.entries.get_mut(index)
        {
            *challenges = round + 1;
        }
        true
    }

    /// 423: the same once more with the time that the registrar insists on.
    fn lengthen(
        &mut self,
        cx: &mut RegistrantCx<'_>,
        index: usize,
        target: Target,
        message: &Message,
    ) -> bool {
        let min = message.number(HeaderName::MinExpires).ok().flatten();
        let Some(entry) = self.entries.get_mut(index) else { return false };
        let longest = seconds(LONGEST);
        let Some(min) = min.filter(|min| *min > entry.expires_s && *min <= longest) else {
            return false;
        };
        entry.expires_s = min;
        self.ask(cx, index, &Goal::Register, target).is_some()
    }

    /// Before two thirds of a short grant, ten minutes before the end of a long one (3GPP TS 24.229
    /// §5.1.1.4.1), a little earlier by chance.
    fn wait_for_refresh(&mut self, cx: &mut RegistrantCx<'_>, index: usize) {
        let Some(entry) = self.entries.get(index) else { return };
        let Some(held) = &entry.held else { return };
        let left = held.until.saturating_duration_since(cx.now);
        let long = Duration::from_secs(1_200);
        let most = if left > long { left - long / 2 } else { left / 2 };
        let wait = most - random_below(cx, most / 10);
        self.wait(cx, index, wait.max(Duration::from_millis(500)));
    }

    fn wait(&mut self, cx: &mut RegistrantCx<'_>, index: usize, time: Duration) {
        let at = cx.now + time;
        if let Some(entry) = self.entries.get_mut(index) {
            entry.phase = Phase::Waiting { at };
        }
        self.arm(index, at);
    }

    /// Wakes the entry then, or when its registration runs out if that comes first.
    fn arm(&mut self, index: usize, at: Instant) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        let at = entry.held.as_ref().map_or(at, |held| held.until.min(at));
        let Ok(number) = u32::try_from(index) else { return };
        let key = self.wheel.insert(at, number);
        if let Some(old) = entry.timer.replace(key) {
            self.wheel.cancel(old);
        }
    }

    /// Says how it stands; an event where that is news.
    fn tell(&mut self, index: usize, state: RegistrationState, failure: Option<u16>) {
        let Some(entry) = self.entries.get(index) else { return };
        let before = entry.shared.change(|s| {
            s.state = state;
            s.failure = match state {
                RegistrationState::Registered => failure,
                _ => failure.or(s.failure),
            };
            if state != RegistrationState::Registered {
                s.expires = None;
            }
        });
        if before != state {
            let (trunk, aor) = (entry.trunk.name().clone(), entry.config.aor.clone());
            let event = Event::TrunkRegistration { trunk, aor, state, failure };
            self.outputs.push_back(Output::Event(event));
        }
    }

    /// Writes what the next node has to know.
    fn write(&mut self, cx: &RegistrantCx<'_>, index: usize) {
        let Some(entry) = self.entries.get(index).filter(|_| self.duties.is_some()) else { return };
        let held = entry.held.as_ref().map(|held| {
            Box::new(HeldRegistration {
                contact: held.contact.clone(),
                call_id: entry.call_id.clone(),
                cseq: entry.cseq,
                until_ms: cx.clock.unix_ms(held.until),
            })
        });
        let (trunk, aor) = (entry.trunk.name().clone(), entry.config.aor.clone());
        let record = Record::Registration { trunk, aor, held };
        // Nobody waits for it, so that its id names nothing.
        self.outputs.push_back(Output::Store { id: StoreId(0), wait: None, record });
    }

    /// The entry that a name names, unless it has asked something else since.
    fn index(&self, name: u64) -> Option<usize> {
        let index = usize::try_from(name & u64::from(u32::MAX)).ok()?;
        let current = |entry: &&Entry| u64::from(entry.serial) == name >> 32;
        self.entries.get(index).filter(current).map(|_| index)
    }
}

impl Entry {
    fn next_peer(&mut self) {
        let peers = self.trunk.config.peers.len().max(1);
        self.peer = (self.peer + 1) % peers;
        self.errors = 0;
        // Nonces of one registrar are nothing to the next.
        self.answers.clear();
    }
}

fn is_ours(owner: Owner) -> bool {
    owner.0 >> 59 == 1
}

fn name(index: usize, serial: u32) -> u64 {
    u64::from(serial) << 32 | (index as u64 & u64::from(u32::MAX))
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1)
}

fn random_below(cx: &mut RegistrantCx<'_>, most: Duration) -> Duration {
    let millis = u64::try_from(most.as_millis()).unwrap_or(u64::MAX).max(1);
    Duration::from_millis(cx.txn.ids().rng().next_u64() % millis)
}

#[cfg(test)]
#[path = "registrant_tests.rs"]
mod tests;
