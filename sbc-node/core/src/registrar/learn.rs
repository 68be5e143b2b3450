//! How long the way to phones behind a NAT stays open without traffic: learnt by waiting longer, per
//! public address, so that what one phone found out serves all behind it.
//!
//! ```text
//! answered ─▶ nobody tries? ─▶ this phone waits half as long again ─▶ answered: that is good
//!                                         └─▶ silence: that is bad; next time half way between the two
//! ```
//!
//! One phone of an address tries at a time; the others are pinged after what is known to be good. A REGISTER
//! within the gap opens the way anew and spoils the trial: what cannot be tried within four attempts is not
//! tried again. What was bad is forgotten after a day, what was good when two phones in a row miss it.

use std::collections::VecDeque;
use std::net::IpAddr;

use hashbrown::HashMap;

/// Addresses of one shard that something is known of; the oldest goes first.
const ADDRESSES_MAX: usize = 16_384;
/// Seconds that good and bad are brought together to.
const CLOSE_S: u32 = 5;
/// Trials spoilt by a REGISTER after which a gap counts as bad.
const SPOILT_MAX: u8 = 4;
/// First misses of phones in a row after which what was good is so no more.
const MISSES_MAX: u8 = 2;
/// Seconds that a bad gap is believed.
const BAD_FOR_S: u32 = 86_400;
/// Seconds beyond its gap after which a trial whose phone is gone is over.
const LATE_S: u32 = 60;

/// A phone that waits longer than the others of its address.
#[derive(Debug)]
struct Trial {
    /// Name of its keepalives.
    id: u64,
    gap_s: u32,
    over_s: u32,
}

/// What is known of one address.
#[derive(Debug)]
struct Learnt {
    good_s: u32,
    /// `u32::MAX` while nothing was too long.
    bad_s: u32,
    bad_until_s: u32,
    trial: Option<Trial>,
    spoilt: u8,
    misses: u8,
}

impl Learnt {
    /// The next gap to try; `None` when what is good is good enough.
    fn candidate(&mut self, max_s: u32, now_s: u32) -> Option<u32> {
        if self.bad_until_s <= now_s {
            self.bad_s = u32::MAX;
        }
        let next = match self.bad_s {
            u32::MAX => (self.good_s + (self.good_s / 2).max(CLOSE_S)).min(max_s),
            bad if bad.saturating_sub(self.good_s) <= CLOSE_S => return None,
            bad => self.good_s.midpoint(bad).min(max_s),
        };
        (next > self.good_s).then_some(next)
    }

    fn too_long(&mut self, gap_s: u32, now_s: u32) {
        self.bad_s = gap_s;
        self.bad_until_s = now_s.saturating_add(BAD_FOR_S);
        self.spoilt = 0;
    }
}

/// What one shard has learnt.
#[derive(Debug, Default)]
pub(super) struct Learner {
    base_s: u32,
    max_s: u32,
    known: HashMap<IpAddr, Learnt>,
    order: VecDeque<IpAddr>,
    pub(super) trials: u64,
    pub(super) trials_missed: u64,
}

impl Learner {
    /// Seconds: the gap that all begin with, and the longest to try. What was learnt stays while the first
    /// is the same.
    pub(super) fn configure(&mut self, base_s: u32, max_s: u32) {
        if self.base_s != base_s || max_s < self.max_s {
            self.known.clear();
            self.order.clear();
        }
        (self.base_s, self.max_s) = (base_s, max_s);
    }

    fn learns(&self) -> bool {
        self.max_s > self.base_s
    }

    /// Seconds until the next keepalive to a phone of an address; `None` where nothing is known.
    pub(super) fn gap(&self, ip: IpAddr) -> Option<u32> {
        self.known.get(&ip).map(|learnt| learnt.good_s)
    }

    /// A keepalive was answered. Yields how long the phone is to be left alone now; `None` where nothing is
    /// learnt.
    pub(super) fn answered(&mut self, ip: IpAddr, id: u64, now_s: u32) -> Option<u32> {
        if !self.learns() {
            return None;
        }
        let (base_s, max_s) = (self.base_s, self.max_s);
        if !self.known.contains_key(&ip) {
            if self.order.len() >= ADDRESSES_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
            self.order.push_back(ip);
        }
        let learnt = self.known.entry(ip).or_insert(Learnt {
            good_s: base_s,
            bad_s: u32::MAX,
            bad_until_s: 0,
            trial: None,
            spoilt: 0,
            misses: 0,
        });
        learnt.misses = 0;
        match learnt.trial.take() {
            Some(trial) if trial.id == id => {
                learnt.good_s = learnt.good_s.max(trial.gap_s);
                learnt.spoilt = 0;
            }
            Some(trial) if trial.over_s > now_s => {
                learnt.trial = Some(trial);
                return Some(learnt.good_s);
            }
            Some(_) | None => {}
        }
        let Some(gap_s) = learnt.candidate(max_s, now_s) else { return Some(learnt.good_s) };
        learnt.trial = Some(Trial { id, gap_s, over_s: now_s.saturating_add(gap_s + LATE_S) });
        self.trials += 1;
        Some(gap_s)
    }

    /// A keepalive was not answered, the first in a row of its phone. True when that was a trial, which says
    /// nothing of the phone.
    pub(super) fn missed(&mut self, ip: IpAddr, id: u64, now_s: u32) -> bool {
        let base_s = self.base_s;
        let Some(learnt) = self.known.get_mut(&ip) else { return false };
        if let Some(trial) = learnt.trial.take_if(|t| t.id == id) {
            learnt.too_long(trial.gap_s, now_s);
            self.trials_missed += 1;
            return true;
        }
        learnt.misses = learnt.misses.saturating_add(1);
        if learnt.misses >= MISSES_MAX && learnt.good_s > base_s {
            let was = learnt.good_s;
            learnt.good_s = base_s;
            learnt.misses = 0;
            learnt.too_long(was, now_s);
        }
        false
    }

    /// A phone registered again, from another port of its NAT when `moved`. Yields how long it is to be left
    /// alone now, when it was trying.
    pub(super) fn refreshed(
        &mut self,
        ip: IpAddr,
        id: u64,
        moved: bool,
        now_s: u32,
    ) -> Option<u32> {
        let learnt = self.known.get_mut(&ip)?;
        let trial = learnt.trial.take_if(|t| t.id == id)?;
        learnt.spoilt = learnt.spoilt.saturating_add(1);
        if moved || learnt.spoilt >= SPOILT_MAX {
            learnt.too_long(trial.gap_s, now_s);
        }
        Some(learnt.good_s)
    }
}
