//! Bans: who is kept out, why, by whom and until when. The allow list wins.
//!
//! The table is the truth; the kernel's set follows it by the events that come out. A ban that the
//! kernel holds costs nothing here, and where there is no kernel set the same look-up drops.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::cidr::Cidr;

use super::nets::Nets;

/// Why a source is banned; bounded, the label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BanReason {
    Flood,
    Scanner,
    /// Failed authentications or unknown users, one after the other.
    Dictionary,
    Fraud,
    /// An operator or an imported list.
    Manual,
}

impl BanReason {
    /// A stable word for logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            BanReason::Flood => "flood",
            BanReason::Scanner => "scanner",
            BanReason::Dictionary => "dictionary",
            BanReason::Fraud => "fraud",
            BanReason::Manual => "manual",
        }
    }
}

/// One ban.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    pub net: Cidr,
    pub reason: BanReason,
    /// Who: `pike`, `admin`, the name of a node, of a list.
    pub by: Arc<str>,
    /// `None` lasts until it is lifted.
    pub until: Option<Instant>,
    /// It came from the cluster, or is not for it: nobody proposes it again.
    pub shared: bool,
}

/// What the outside has to follow: the kernel's set, the cluster, the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BanEvent {
    Added(Ban),
    /// `shared`: the cluster lifted it.
    Removed {
        net: Cidr,
        expired: bool,
        shared: bool,
    },
    /// More changed than waits to be told: what follows starts from the whole list.
    Lost,
}

/// Why a ban was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BanError {
    #[error("the network overlaps the allowed network {0}")]
    Allowed(Cidr),
    #[error("the table of bans is full")]
    Full,
}

/// See the module's header.
#[derive(Debug, Default)]
pub struct Bans {
    bans: Nets<Ban>,
    /// Bans with an end, soonest first.
    ends: BTreeSet<(Instant, Cidr)>,
    allow: Nets<()>,
    max: usize,
    events: VecDeque<BanEvent>,
}

impl Bans {
    /// Holds at most `max` bans.
    pub fn new(max: usize) -> Bans {
        Bans { max, ..Bans::default() }
    }

    /// Replaces the allow list and lifts what is against it.
    pub fn set_allowed(&mut self, nets: &[Cidr]) {
        self.allow = Nets::default();
        for net in nets {
            self.allow.insert(*net, ());
        }
        let against: Vec<Cidr> =
            self.bans.iter().map(|(net, _)| *net).filter(|n| self.allowed(n).is_some()).collect();
        for net in against {
            self.remove(&net);
        }
    }

    /// Whether the source is on the allow list.
    pub fn is_allowed(&self, addr: IpAddr) -> bool {
        self.allow.find(addr).is_some()
    }

    /// Takes a ban; one of the same network is replaced unless it lasts longer. A full table gives
    /// the place of the ban that ends soonest, but never that of one without an end.
    pub fn add(&mut self, ban: Ban) -> Result<(), BanError> {
        if let Some(net) = self.allowed(&ban.net) {
            return Err(BanError::Allowed(net));
        }
        if let Some(old) = self.bans.get(&ban.net) {
            let outlives = match (old.until, ban.until) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(old), Some(new)) => old >= new,
            };
            if outlives && ban.reason != BanReason::Manual {
                return Ok(());
            }
            self.ends.retain_one(old.until, ban.net);
        } else if self.bans.len() >= self.max {
            let soonest = self.ends.first().copied();
            let gives_way = soonest.filter(|(end, _)| ban.until.is_none_or(|u| u >= *end));
            let (_, net) = gives_way.ok_or(BanError::Full)?;
            self.remove(&net);
        }
        if let Some(until) = ban.until {
            self.ends.insert((until, ban.net));
        }
        self.bans.insert(ban.net, ban.clone());
        self.event(BanEvent::Added(ban));
        Ok(())
    }

    /// Lifts a ban; false when there was none of that network.
    pub fn remove(&mut self, net: &Cidr) -> bool {
        self.take(net, false, false)
    }

    /// The same because the cluster says so.
    pub fn remove_shared(&mut self, net: &Cidr) -> bool {
        self.take(net, false, true)
    }

    /// Lifts all bans; how many.
    pub fn flush(&mut self) -> usize {
        let nets: Vec<Cidr> = self.bans.iter().map(|(net, _)| *net).collect();
        nets.iter().filter(|net| self.take(net, false, false)).count()
    }

    /// The ban that `addr` is under, if any. The allow list wins.
    pub fn find(&self, now: Instant, addr: IpAddr) -> Option<&Ban> {
        let (_, ban) = self.bans.find(addr)?;
        let over = ban.until.is_some_and(|until| until <= now);
        if over || self.is_allowed(addr) { None } else { Some(ban) }
    }

    /// Takes out what has ended.
    pub fn expire(&mut self, now: Instant) {
        while let Some(&(until, net)) = self.ends.first()
            && until <= now
        {
            self.take(&net, true, false);
            self.ends.remove(&(until, net));
        }
    }

    /// When [`Bans::expire`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.ends.first().map(|(until, _)| *until)
    }

    /// Whether [`Bans::poll`] has something.
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// The next change for the outside.
    pub fn poll(&mut self) -> Option<BanEvent> {
        self.events.pop_front()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Ban> {
        self.bans.iter().map(|(_, ban)| ban)
    }

    pub fn len(&self) -> usize {
        self.bans.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn take(&mut self, net: &Cidr, expired: bool, shared: bool) -> bool {
        let Some(ban) = self.bans.remove(net) else { return false };
        self.ends.retain_one(ban.until, *net);
        self.event(BanEvent::Removed { net: *net, expired, shared });
        true
    }

    /// The allowed network that overlaps `net`, if any.
    fn allowed(&self, net: &Cidr) -> Option<Cidr> {
        self.allow.iter().map(|(a, ())| *a).find(|a| a.covers(net) || net.covers(a))
    }

    /// Nobody may take the events: past twice the table they are worth less than the list.
    fn event(&mut self, event: BanEvent) {
        if self.events.len() >= self.max.saturating_mul(2).max(16) {
            self.events.clear();
            self.events.push_back(BanEvent::Lost);
            return;
        }
        self.events.push_back(event);
    }
}

/// Taking one end out, where there is one.
trait RetainOne {
    fn retain_one(&mut self, until: Option<Instant>, net: Cidr);
}

impl RetainOne for BTreeSet<(Instant, Cidr)> {
    fn retain_one(&mut self, until: Option<Instant>, net: Cidr) {
        if let Some(until) = until {
            self.remove(&(until, net));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ban(net: &str, until: Option<Instant>) -> Ban {
        Ban {
            net: net.parse().unwrap(),
            reason: BanReason::Flood,
            by: "pike".into(),
            until,
            shared: false,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_ban_holds_until_its_end_and_tells_the_outside() {
        let t0 = Instant::now();
        let end = t0 + Duration::from_secs(60);
        let mut bans = Bans::new(10);
        bans.add(ban("192.0.2.0/24", Some(end))).unwrap();
        assert!(bans.find(t0, ip("192.0.2.77")).is_some());
        assert!(bans.find(end, ip("192.0.2.77")).is_none());
        assert_eq!(bans.deadline(), Some(end));
        bans.expire(end);
        let net = "192.0.2.0/24".parse().unwrap();
        assert!(matches!(bans.poll(), Some(BanEvent::Added(_))));
        assert_eq!(bans.poll(), Some(BanEvent::Removed { net, expired: true, shared: false }));
        assert_eq!((bans.poll(), bans.len(), bans.deadline()), (None, 0, None));
    }

    #[test]
    fn the_allow_list_wins_in_every_direction() {
        let t0 = Instant::now();
        let mut bans = Bans::new(10);
        bans.add(ban("198.51.100.0/24", None)).unwrap();
        bans.set_allowed(&["198.51.100.7".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
        assert!(bans.is_empty(), "a ban over an allowed address is lifted");
        let refused = |b: &mut Bans, net| b.add(ban(net, None)).is_err();
        assert!(refused(&mut bans, "10.1.2.3"));
        assert!(refused(&mut bans, "0.0.0.0/0"));
        assert!(!refused(&mut bans, "198.51.100.8"));
        assert!(bans.find(t0, ip("198.51.100.8")).is_some());
    }

    #[test]
    fn a_longer_ban_is_not_shortened_by_a_machine() {
        let t0 = Instant::now();
        let (soon, late) = (t0 + Duration::from_secs(1), t0 + Duration::from_secs(100));
        let mut bans = Bans::new(10);
        bans.add(ban("192.0.2.1", Some(late))).unwrap();
        bans.add(ban("192.0.2.1", Some(soon))).unwrap();
        assert_eq!(bans.deadline(), Some(late));
        let manual = Ban { reason: BanReason::Manual, ..ban("192.0.2.1", Some(soon)) };
        bans.add(manual).unwrap();
        assert_eq!((bans.deadline(), bans.len()), (Some(soon), 1));
        bans.add(ban("192.0.2.1", None)).unwrap();
        assert_eq!(bans.deadline(), None);
        assert_eq!(bans.flush(), 1);
    }

    #[test]
    fn a_full_table_gives_up_the_ban_that_ends_soonest() {
        let t0 = Instant::now();
        let at = |s| Some(t0 + Duration::from_secs(s));
        let mut bans = Bans::new(2);
        bans.add(ban("192.0.2.1", at(10))).unwrap();
        bans.add(ban("192.0.2.2", None)).unwrap();
        assert_eq!(bans.add(ban("192.0.2.3", at(5))), Err(BanError::Full));
        bans.add(ban("192.0.2.3", at(20))).unwrap();
        assert!(bans.find(t0, ip("192.0.2.1")).is_none());
        bans.add(ban("192.0.2.4", None)).unwrap();
        assert_eq!(bans.add(ban("192.0.2.5", None)), Err(BanError::Full));
        assert_eq!(bans.len(), 2);
    }
}
