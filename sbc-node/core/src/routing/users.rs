//! Calls of each registered user: a gate per user in a bounded table, and in a cluster how many calls
//! this node was given of the user's limit.
//!
//! In a cluster a call is admitted when the node was given room for it, which is asked for call by call
//! ([`UserGates::lacks`]): a user's limit may be one, so that nobody can keep a spare place. Who gives,
//! and gives back, never lives here. Calls per second are counted as calls that began within a window,
//! so that all nodes' sum is bound as well.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;

use super::RejectCause;
use super::admission::{CallLimits, Counted, Gate, Permit};

/// Users with a gate of their own, about 200 bytes each.
pub(super) const USERS_MAX: usize = 100_000;
const SECOND_NS: f64 = 1e9;

/// One user in one limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UserPlace {
    /// The name of the limit.
    pub limit: Arc<str>,
    /// Address of record, in lower case.
    pub user: Box<str>,
}

impl UserPlace {
    pub(super) fn new(limit: &Arc<str>, user: &str) -> UserPlace {
        UserPlace { limit: limit.clone(), user: user.to_ascii_lowercase().into_boxed_str() }
    }
}

/// Calls at the same time, and calls that began within the window of the limit's rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    pub calls: u32,
    pub starts: u32,
}

impl Room {
    /// The smaller one of each.
    pub fn min(self, other: Room) -> Room {
        Room { calls: self.calls.min(other.calls), starts: self.starts.min(other.starts) }
    }

    /// So many calls more.
    pub fn plus(self, calls: u32) -> Room {
        Room { calls: self.calls.saturating_add(calls), starts: self.starts.saturating_add(calls) }
    }

    /// What limits allow in all; a rate allows one second's worth, and at least one call.
    pub fn of(limits: &CallLimits) -> Room {
        Room {
            calls: limits.max_calls.unwrap_or(u32::MAX),
            starts: limits.max_cps.map_or(u32::MAX, most_starts),
        }
    }

    fn holds(self, other: Room) -> bool {
        other.calls <= self.calls && other.starts <= self.starts
    }
}

/// A call of a user that is to be counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct UserCall {
    pub(super) now_ns: u64,
    /// Nothing refuses it.
    pub(super) force: bool,
    /// It has waited until room was asked for.
    pub(super) waited: bool,
}

#[derive(Debug, Default)]
struct User {
    gate: Arc<Gate>,
    /// What this node may use of the limit; only in a cluster.
    given: Room,
    /// Calls that wait until room for them was asked for.
    pending: u32,
    /// When calls began that the window still holds, oldest first; only in a cluster.
    starts: VecDeque<u64>,
}

/// How a user stands on this node, in what its limits count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stand {
    pub used: Room,
    /// What is used and what is waited for.
    pub wanted: Room,
}

impl User {
    fn used(&mut self, limits: &CallLimits, now_ns: u64) -> Room {
        let calls = if limits.max_calls.is_some() { self.gate.calls() } else { 0 };
        let Some(cps) = limits.max_cps else { return Room { calls, starts: 0 } };
        let window = window_ns(cps);
        while self.starts.front().is_some_and(|at| at.saturating_add(window) <= now_ns) {
            self.starts.pop_front();
        }
        let starts = u32::try_from(self.starts.len()).unwrap_or(u32::MAX);
        Room { calls, starts }
    }

    fn stand(&mut self, limits: &CallLimits, now_ns: u64) -> Stand {
        let used = self.used(limits, now_ns);
        Stand { used, wanted: counted(limits, used.plus(self.pending)) }
    }

    fn is_idle(&self) -> bool {
        self.gate.calls() == 0
            && self.given == Room::default()
            && self.pending == 0
            && self.starts.is_empty()
    }
}

#[derive(Debug, Default)]
struct Inner {
    users: HashMap<UserPlace, User>,
    /// Whether other nodes share the limits.
    shared: bool,
}

/// See the module's header. Handed on from table to table.
#[derive(Debug, Default)]
pub struct UserGates(Mutex<Inner>);

impl UserGates {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other nodes share the limits: a call needs room that was given.
    pub fn share(&self) {
        self.inner().shared = true;
    }

    /// Whether a call of the user must wait until room for it was asked for. One that the limit is
    /// against here need not.
    pub(super) fn lacks(&self, place: &UserPlace, limits: &CallLimits, now_ns: u64) -> bool {
        let mut inner = self.inner();
        if !inner.shared {
            return false;
        }
        let Some(user) = inner.users.get_mut(place) else { return true };
        let wanted = user.used(limits, now_ns).plus(1);
        Room::of(limits).holds(wanted) && !within(limits, user.given).holds(wanted)
    }

    /// Counts a call of the user; `Ok(false)` when every place is taken by a user with calls. `force`
    /// counts it in any case.
    ///
    /// # Errors
    /// Which of the limits, or of what this node was given of them, is against it.
    pub(super) fn enter(
        &self,
        place: &UserPlace,
        limits: CallLimits,
        call: UserCall,
        permit: &mut Permit,
    ) -> Result<bool, RejectCause> {
        let UserCall { now_ns, force, waited } = call;
        let mut inner = self.inner();
        let Some(shared) = inner.make_room(place) else { return Ok(false) };
        let user = inner.users.entry(place.clone()).or_default();
        // Under the same lock: what was given is not given back before its use, nor wanted twice.
        user.pending = user.pending.saturating_sub(u32::from(waited));
        if !shared {
            return permit
                .enter((Counted::Caller(user.gate.clone()), limits), now_ns, force)
                .map(|()| true);
        }
        let (wanted, given) = (user.used(&limits, now_ns).plus(1), within(&limits, user.given));
        if !force && wanted.calls > given.calls {
            return Err(RejectCause::MaxCalls);
        }
        if !force && wanted.starts > given.starts {
            return Err(RejectCause::MaxCps);
        }
        // The window stands for the rate.
        let counted = CallLimits { max_cps: None, ..limits };
        permit.enter((Counted::Caller(user.gate.clone()), counted), now_ns, force)?;
        if let Some(cps) = limits.max_cps {
            // Past the most there are only calls that nothing refuses.
            if user.starts.len() > usize::try_from(most_starts(cps)).unwrap_or(usize::MAX) {
                user.starts.pop_front();
            }
            user.starts.push_back(now_ns);
        }
        Ok(true)
    }

    /// A call of the user begins to wait; false where there is no place for the user.
    pub(crate) fn begin_wait(&self, place: &UserPlace) -> bool {
        let mut inner = self.inner();
        if inner.make_room(place).is_none() {
            return false;
        }
        let user = inner.users.entry(place.clone()).or_default();
        user.pending = user.pending.saturating_add(1);
        true
    }

    /// A call that waited was judged, or was cancelled.
    pub(crate) fn end_wait(&self, place: &UserPlace) {
        if let Some(user) = self.inner().users.get_mut(place) {
            user.pending = user.pending.saturating_sub(1);
        }
    }

    /// Users that were given another room than they want: what waits, ended, was carried on from
    /// another node, or passed the limit. `now_ns` is of [`Table::ns`](super::Table::ns).
    pub fn unsettled(
        &self,
        limits: impl Fn(&str) -> Option<CallLimits>,
        now_ns: u64,
    ) -> Vec<UserPlace> {
        let mut inner = self.inner();
        let mut found = Vec::new();
        inner.users.retain(|place, user| {
            let limits = limits(&place.limit).unwrap_or_default();
            if user.stand(&limits, now_ns).wanted != user.given {
                found.push(place.clone());
            }
            !user.is_idle()
        });
        found
    }

    /// How a user stands.
    pub fn stand(&self, place: &UserPlace, limits: &CallLimits, now_ns: u64) -> Stand {
        self.inner().users.get_mut(place).map_or_else(Stand::default, |u| u.stand(limits, now_ns))
    }

    /// Lets the user have no more of what was given than it wants; how it stands.
    pub fn cap(&self, place: &UserPlace, limits: &CallLimits, now_ns: u64) -> Stand {
        let mut inner = self.inner();
        let Some(user) = inner.users.get_mut(place) else { return Stand::default() };
        let stand = user.stand(limits, now_ns);
        user.given = user.given.min(stand.wanted);
        stand
    }

    /// Sets what this node may use of the user's limit. Where there is no place for the user left,
    /// nothing is.
    pub fn give(&self, place: &UserPlace, given: Room) {
        let mut inner = self.inner();
        if given == Room::default() && !inner.users.contains_key(place) {
            return;
        }
        if inner.make_room(place).is_some() {
            inner.users.entry(place.clone()).or_default().given = given;
        }
    }

    /// Calls that a limit counts now, of all its users.
    pub(super) fn calls(&self, limit: &Arc<str>) -> u64 {
        let inner = self.inner();
        let own = inner.users.iter().filter(|(place, _)| place.limit == *limit);
        own.map(|(_, user)| u64::from(user.gate.calls())).sum()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.inner().users.len()
    }
}

impl Inner {
    /// Whether limits are shared; `None` when the user has no place and cannot have one.
    fn make_room(&mut self, place: &UserPlace) -> Option<bool> {
        if self.users.len() >= USERS_MAX && !self.users.contains_key(place) {
            self.users.retain(|_, user| !user.is_idle());
            if self.users.len() >= USERS_MAX {
                return None;
            }
        }
        Some(self.shared)
    }
}

/// What was given, where there is a limit.
fn within(limits: &CallLimits, given: Room) -> Room {
    Room {
        calls: limits.max_calls.map_or(u32::MAX, |_| given.calls),
        starts: limits.max_cps.map_or(u32::MAX, |_| given.starts),
    }
}

/// What the limits count of it.
fn counted(limits: &CallLimits, room: Room) -> Room {
    Room {
        calls: limits.max_calls.map_or(0, |_| room.calls),
        starts: limits.max_cps.map_or(0, |_| room.starts),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "saturates; calls of one second")]
#[expect(clippy::cast_sign_loss, reason = "saturates at zero")]
fn most_starts(cps: f64) -> u32 {
    if cps <= 0.0 { 0 } else { cps.max(1.0) as u32 }
}

/// How long a call counts for the rate.
#[expect(clippy::cast_possible_truncation, reason = "saturates; a positive number of nanoseconds")]
#[expect(clippy::cast_sign_loss, reason = "saturates at zero")]
fn window_ns(cps: f64) -> u64 {
    if cps <= 0.0 { 0 } else { (SECOND_NS * f64::from(most_starts(cps)) / cps) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> UserPlace {
        UserPlace::new(&"users".into(), "Alice@X")
    }

    fn enter(
        gates: &UserGates,
        limits: CallLimits,
        now_ns: u64,
        force: bool,
    ) -> Result<Permit, RejectCause> {
        let mut permit = Permit::none();
        let call = UserCall { now_ns, force, waited: false };
        gates.enter(&place(), limits, call, &mut permit).map(|counted| {
            assert!(counted);
            permit
        })
    }

    #[test]
    fn in_a_cluster_a_call_needs_room_that_was_given() {
        let gates = UserGates::default();
        let limits = CallLimits { max_calls: Some(2), max_cps: None };
        assert!(!gates.lacks(&place(), &limits, 0), "a node alone asks nobody");
        gates.share();
        assert!(gates.lacks(&place(), &limits, 0));
        assert_eq!(enter(&gates, limits, 0, false).unwrap_err(), RejectCause::MaxCalls);
        gates.give(&place(), Room { calls: 1, starts: 0 });
        assert!(!gates.lacks(&place(), &limits, 0));
        let first = enter(&gates, limits, 0, false).unwrap();
        assert!(gates.lacks(&place(), &limits, 0) && enter(&gates, limits, 0, false).is_err());
        let unsettled = || gates.unsettled(|_| Some(limits), 0);
        assert!(unsettled().is_empty());
        // Calls that nothing refuses are asked for afterwards.
        let second = enter(&gates, limits, 0, true).unwrap();
        assert_eq!(unsettled(), [place()]);
        assert!(!gates.lacks(&place(), &limits, 0), "the limit itself is against it");
        gates.give(&place(), Room { calls: 2, starts: 0 });
        assert!(unsettled().is_empty());
        drop((first, second));
        assert_eq!(unsettled(), [place()]);
        assert_eq!(gates.cap(&place(), &limits, 0), Stand::default());
        assert!(enter(&gates, limits, 0, false).is_err(), "what is given back is not used");
        assert!(unsettled().is_empty());
        assert_eq!(gates.len(), 0, "nobody is kept without a reason");
    }

    #[test]
    fn what_waits_is_wanted_until_it_was_judged() {
        let gates = UserGates::default();
        gates.share();
        let limits = CallLimits { max_calls: Some(2), max_cps: None };
        assert!(gates.begin_wait(&place()));
        let one = Room { calls: 1, starts: 0 };
        assert_eq!(gates.stand(&place(), &limits, 0), Stand { used: Room::default(), wanted: one });
        gates.give(&place(), one);
        assert_eq!(gates.cap(&place(), &limits, 0).wanted, one, "not given back before its use");
        let mut held = Permit::none();
        let call = UserCall { now_ns: 0, force: false, waited: true };
        assert_eq!(gates.enter(&place(), limits, call, &mut held), Ok(true));
        assert_eq!(gates.stand(&place(), &limits, 0), Stand { used: one, wanted: one });
        drop(held);
        assert_eq!(gates.unsettled(|_| None, 0), [place()], "a limit that is gone holds nothing");
    }

    #[test]
    fn a_rate_holds_over_a_window() {
        let gates = UserGates::default();
        gates.share();
        let limits = CallLimits { max_calls: None, max_cps: Some(2.5) };
        assert_eq!(Room::of(&limits), Room { calls: u32::MAX, starts: 2 });
        gates.give(&place(), Room { calls: 0, starts: 2 });
        assert!(enter(&gates, limits, 0, false).is_ok() && enter(&gates, limits, 9, false).is_ok());
        assert_eq!(enter(&gates, limits, 799_999_999, false).unwrap_err(), RejectCause::MaxCps);
        assert_eq!(gates.stand(&place(), &limits, 799_999_999).used.starts, 2);
        assert_eq!(gates.stand(&place(), &limits, 800_000_000).used.starts, 1);
        assert!(enter(&gates, limits, 800_000_000, false).is_ok());
        let none = CallLimits { max_calls: None, max_cps: Some(0.0) };
        assert!(!gates.lacks(&place(), &none, 0) && enter(&gates, none, 0, false).is_err());
    }
}
