//! Limits of each user (`[[admission.limit]]`, `by = "user"`) over the whole cluster: room for a call is
//! reserved in the log before the call is admitted, and given back when it is over.
//!
//! ```text
//! shard ─ asked ─▶ Rooms ─ Reserve ─▶ log ─▶ Rooms ─ room in the user's gate, RoomAsked ─▶ shard
//! ```
//!
//! What the nodes hold together never exceeds a limit, because the log gives no more than is left. A
//! node holds what its calls use and what is asked for, nothing to spare: limits may be one. What is
//! given back is no longer used when it is said.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use sbc_cluster::{Command, Handle};
use sbc_core::core::{Input, ResolveId};
use sbc_core::routing::{CallLimits, Room, Table, UserGates, UserPlace};
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, interval};

use super::cluster::lookup;
use super::shares::{ShareStats, sharers};
use super::tell::Tell;

/// How often use and room are compared: how soon room of calls that ended is given back.
const TICK: Duration = Duration::from_millis(50);
/// How long a reservation may take; a caller waits no longer.
const WITHIN: Duration = Duration::from_secs(2);
/// Questions that may wait; the next is answered with the room that there is.
pub const ASKED_MAX: usize = 8_192;

/// A shard asks for room for one more call.
#[derive(Debug)]
pub struct Asked {
    pub place: UserPlace,
    pub shard: usize,
    pub id: ResolveId,
}

/// What reserving takes.
pub struct Rooms {
    pub handle: Handle,
    /// The routing in force.
    pub routing: Arc<ArcSwapOption<Table>>,
    pub stats: Arc<ShareStats>,
    pub tell: Arc<Tell>,
    pub asked: mpsc::Receiver<Asked>,
}

/// Reservations of one user that are under way together.
struct Flight {
    left: AtomicU8,
    /// One of them was not committed, as far as is known.
    lost: AtomicBool,
}

/// One user with calls or questions here.
#[derive(Default)]
struct User {
    waiting: Vec<(usize, ResolveId)>,
    flight: Option<Arc<Flight>>,
    /// Whom the flight answers: the first of `waiting`.
    carried: usize,
    /// No more than this is used until a flight was committed: one that was not may come yet.
    cap: Option<Room>,
}

/// Users whose reservations were answered.
#[derive(Default)]
struct Landed {
    places: Mutex<Vec<UserPlace>>,
    notify: Notify,
}

impl Landed {
    fn push(&self, place: UserPlace) {
        self.places.lock().unwrap_or_else(|e| e.into_inner()).push(place);
        self.notify.notify_one();
    }

    fn take(&self) -> Vec<UserPlace> {
        std::mem::take(&mut *self.places.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

/// The names of a user's rows in the log.
fn keys(place: &UserPlace) -> (u64, u64) {
    let of = |what| lookup(&format!("user {what} {} {}", place.limit, place.user));
    (of("calls"), of("starts"))
}

/// What the limits allow; nothing where there is none, for nothing is reserved there.
fn most(limits: &CallLimits) -> Room {
    let all = Room::of(limits);
    Room {
        calls: limits.max_calls.map_or(0, |_| all.calls),
        starts: limits.max_cps.map_or(0, |_| all.starts),
    }
}

/// A node alone with what it knows admits an even part, and one call at least.
fn even_part(limits: &CallLimits, nodes: u32) -> Room {
    let all = Room::of(limits);
    let part = |max: u32| if max == 0 { 0 } else { (max / nodes.max(1)).max(1) };
    Room { calls: part(all.calls), starts: part(all.starts) }
}

impl Rooms {
    /// Runs until it is aborted with the runtime.
    pub async fn run(mut self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut users: HashMap<UserPlace, User> = HashMap::new();
        let landed = Arc::new(Landed::default());
        loop {
            let look_at: Vec<UserPlace> = tokio::select! {
                _ = tick.tick() => self.all(&users),
                () = landed.notify.notified() => landed.take(),
                asked = self.asked.recv() => {
                    let Some(Asked { place, shard, id }) = asked else { return };
                    let user = users.entry(place.clone()).or_default();
                    user.waiting.push((shard, id));
                    vec![place]
                }
            };
            let Some(table) = self.routing.load_full() else { continue };
            for place in look_at {
                let user = users.entry(place.clone()).or_default();
                if !self.look(&table, &place, user, &landed) {
                    users.remove(&place);
                }
            }
        }
    }

    /// Whom a tick looks at.
    fn all(&self, users: &HashMap<UserPlace, User>) -> Vec<UserPlace> {
        let Some(table) = self.routing.load_full() else { return Vec::new() };
        let now_ns = table.ns(Instant::now());
        let unsettled = table.user_gates().unsettled(|name| table.user_limits(name), now_ns);
        let others = users.keys().filter(|place| !unsettled.contains(place)).cloned();
        let others: Vec<UserPlace> = others.collect();
        unsettled.into_iter().chain(others).collect()
    }

    /// Looks at a user once; false when there is no need to look again before it is unsettled.
    fn look(
        &self,
        table: &Table,
        place: &UserPlace,
        user: &mut User,
        landed: &Arc<Landed>,
    ) -> bool {
        let (gates, now_ns) = (table.user_gates(), table.ns(Instant::now()));
        // A limit that is gone from the configuration has no room to hold.
        let limits = table.user_limits(&place.limit).unwrap_or_default();
        if let Some(flight) = &user.flight {
            if flight.left.load(Ordering::Acquire) > 0 {
                return true;
            }
            let lost = flight.lost.load(Ordering::Acquire);
            self.land(gates, place, user, lost);
            if user.waiting.is_empty() {
                // Who was answered takes its room first; the next tick looks at what is left.
                return true;
            }
        }
        if !self.handle.lease_valid() {
            return self.alone(gates, place, user, &limits, now_ns);
        }
        let stand = gates.cap(place, &limits, now_ns);
        let (held, (calls, starts), most) = (self.held(place), keys(place), most(&limits));
        let (used, wanted) = (stand.used, stand.wanted);
        let rows = [
            (calls, held.calls, most.calls, wanted.calls, used.calls),
            (starts, held.starts, most.starts, wanted.starts, used.starts),
        ];
        // What was lost is over once something after it was committed.
        let lost = user.cap.is_some();
        let reserve = rows
            .into_iter()
            .filter(|(_, held, most, wanted, _)| held != wanted || (lost && *most > 0));
        let reserve: Vec<Command> = reserve
            .map(|(key, _, most, wanted, used)| Command::reserve(key, most, wanted, used))
            .collect();
        if reserve.is_empty() {
            // What is held is what is wanted, though it may not be given yet.
            self.land(gates, place, user, false);
            return false;
        }
        user.cap = Some(user.cap.map_or(wanted, |cap| cap.min(wanted)));
        user.carried = user.waiting.len();
        user.flight = Some(self.fly(place, reserve, landed));
        true
    }

    /// What the log says that this node holds.
    fn held(&self, place: &UserPlace) -> Room {
        let ((calls, starts), id) = (keys(place), self.handle.id());
        self.handle.read(|tables| Room {
            calls: tables.count_of(calls, id),
            starts: tables.count_of(starts, id),
        })
    }

    /// The reservations of a user were answered: gives what is held, and answers who waited for it.
    fn land(&self, gates: &UserGates, place: &UserPlace, user: &mut User, lost: bool) {
        if !lost {
            user.cap = None;
        }
        let held = self.held(place);
        gates.give(place, user.cap.map_or(held, |cap| held.min(cap)));
        let carried = match user.flight.take() {
            Some(_) => user.carried.min(user.waiting.len()),
            None => user.waiting.len(),
        };
        self.answer(user.waiting.drain(..carried));
    }

    fn answer(&self, waited: impl Iterator<Item = (usize, ResolveId)>) {
        for (shard, id) in waited {
            self.tell.tell(shard, Input::RoomAsked { id });
        }
    }

    /// Nobody can be asked: an even part.
    fn alone(
        &self,
        gates: &UserGates,
        place: &UserPlace,
        user: &mut User,
        limits: &CallLimits,
        now_ns: u64,
    ) -> bool {
        let wanted = gates.stand(place, limits, now_ns).wanted;
        if wanted == Room::default() {
            gates.give(place, wanted);
            // What the log holds is given back as soon as it can be told.
            return self.held(place) != wanted;
        }
        gates.give(place, even_part(limits, self.handle.read(sharers)));
        self.answer(user.waiting.drain(..));
        true
    }

    fn fly(&self, place: &UserPlace, reserve: Vec<Command>, landed: &Arc<Landed>) -> Arc<Flight> {
        let left = AtomicU8::new(u8::try_from(reserve.len()).unwrap_or(u8::MAX));
        let flight = Arc::new(Flight { left, lost: AtomicBool::new(false) });
        for command in reserve {
            let (flight, stats) = (Arc::clone(&flight), Arc::clone(&self.stats));
            let (place, landed) = (place.clone(), Arc::clone(landed));
            self.handle.submit(command, WITHIN, move |result| {
                if !stats.count(result) {
                    flight.lost.store(true, Ordering::Release);
                }
                if flight.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                    landed.push(place);
                }
            });
        }
        flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_what_there_is_and_one_call_at_least() {
        let limits = |max_calls, max_cps| CallLimits { max_calls, max_cps };
        let part = |limits| even_part(&limits, 3);
        assert_eq!(part(limits(Some(7), Some(9.5))), Room { calls: 2, starts: 3 });
        assert_eq!(part(limits(Some(1), Some(0.1))), Room { calls: 1, starts: 1 });
        assert_eq!(part(limits(Some(0), Some(0.0))), Room { calls: 0, starts: 0 });
    }

    #[test]
    fn rows_of_calls_and_starts_of_limits_and_users_are_apart() {
        let place = |limit: &str, user: &str| UserPlace { limit: limit.into(), user: user.into() };
        let all = [place("a", "x@y"), place("b", "x@y"), place("a", "z@y")].map(|p| keys(&p));
        let mut rows: Vec<u64> = all.into_iter().flat_map(|(a, b)| [a, b]).collect();
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows.len(), 6);
    }
}
