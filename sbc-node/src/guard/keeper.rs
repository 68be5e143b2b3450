//! The thread that follows the guard: what it bans goes to the kernel, to the cluster and to the
//! log; what the cluster bans goes to the guard; what runs out ends.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use media_anchor::kernel::{self, BanTarget, Bans};
use sbc_core::cidr::Cidr;
use sbc_core::guard::{Ban, BanEvent, BanReason, Guard};

use crate::store::bans::{BanChange, ClusterBan, ClusterBans};
use crate::telemetry::events::EventHub;

/// The kernel's word for "until it is lifted".
const ENDLESS: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long the thread sleeps when nothing is due.
const IDLE: Duration = Duration::from_secs(1);
/// Lines of log per second about single bans; more are summed up.
const LINES_PER_SECOND: u32 = 20;
/// Changes handed to the kernel at once.
const BATCH: usize = 4_096;

/// The running thread.
pub struct Keeper {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    added: [AtomicU64; REASONS.len()],
    ended: AtomicU64,
}

const REASONS: [BanReason; 5] = [
    BanReason::Flood,
    BanReason::Scanner,
    BanReason::Dictionary,
    BanReason::Fraud,
    BanReason::Manual,
];

impl Keeper {
    /// Follows `guard` from now on.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(
        guard: Arc<Guard>,
        kernel: Arc<Bans>,
        cluster: Option<ClusterBans>,
        events: EventHub,
    ) -> io::Result<Keeper> {
        let shared = Arc::new(Shared::default());
        if let Some(cluster) = &cluster {
            let guard = Arc::clone(&guard);
            cluster.on_applied(move |change| applied(&guard, change));
        }
        let follower = Follower {
            guard: Arc::clone(&guard),
            kernel,
            cluster,
            events,
            shared: Arc::clone(&shared),
            lines: (Instant::now(), 0),
        };
        let body = move || follower.run();
        let thread = std::thread::Builder::new().name("guard".to_owned()).spawn(body)?;
        let sleeper: OnceLock<Thread> = OnceLock::from(thread.thread().clone());
        guard.on_change(Box::new(move || {
            if let Some(sleeper) = sleeper.get() {
                sleeper.unpark();
            }
        }));
        // What was banned before anybody could be woken.
        thread.thread().unpark();
        Ok(Keeper { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Bans taken, by reason.
    pub fn added(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let value = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        REASONS.iter().zip(&self.shared.added).map(move |(r, cell)| (r.as_str(), value(cell)))
    }

    /// Bans that ran out or were lifted.
    pub fn ended(&self) -> u64 {
        self.shared.ended.load(Ordering::Relaxed)
    }

    /// Ends the thread and lifts the kernel's bans.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the thread of the guard had panicked");
            }
        }
    }
}

/// What the cluster has applied, into the guard. Such bans are not proposed again.
fn applied(guard: &Guard, change: &BanChange) {
    let now = Instant::now();
    match change {
        BanChange::Added(ban) => take(guard, now, ban),
        BanChange::Removed(net) => {
            guard.lift_shared(net);
        }
        BanChange::All(bans) => {
            let wanted: std::collections::HashSet<Cidr> = bans.iter().map(|b| b.net).collect();
            for ban in guard.bans(now) {
                if ban.shared && !wanted.contains(&ban.net) {
                    guard.lift_shared(&ban.net);
                }
            }
            for ban in bans {
                take(guard, now, ban);
            }
        }
    }
}

fn take(guard: &Guard, now: Instant, ban: &ClusterBan) {
    let reason = REASONS.into_iter().find(|r| r.as_str() == ban.reason);
    let taken = guard.ban(Ban {
        net: ban.net,
        // A word of another release.
        reason: reason.unwrap_or(BanReason::Flood),
        by: ban.by.as_str().into(),
        until: ban.left.and_then(|left| now.checked_add(left)),
        shared: true,
    });
    if let Err(error) = taken {
        tracing::debug!(net = %ban.net, %error, "a ban of the cluster was not taken");
    }
}

/// The thread's own.
struct Follower {
    guard: Arc<Guard>,
    kernel: Arc<Bans>,
    cluster: Option<ClusterBans>,
    events: EventHub,
    shared: Arc<Shared>,
    /// Second and lines logged in it.
    lines: (Instant, u32),
}

impl Follower {
    fn run(mut self) {
        loop {
            let now = Instant::now();
            self.guard.tick(now);
            while self.changes() == BATCH {}
            if self.shared.stop.load(Ordering::Relaxed) {
                // No ban outlives us; the table goes with the last holder of the set.
                let _ = self.kernel.replace(Vec::new());
                return;
            }
            let due = self.guard.deadline().map(|at| at.saturating_duration_since(now));
            std::thread::park_timeout(due.unwrap_or(IDLE).clamp(Duration::from_millis(10), IDLE));
        }
    }

    /// Carries out what has changed, a batch at most; how many.
    fn changes(&mut self) -> usize {
        let (mut bans, mut lifted) = (Vec::new(), Vec::new());
        let mut count = 0;
        while count < BATCH
            && let Some(event) = self.guard.poll()
        {
            count += 1;
            match event {
                BanEvent::Added(ban) => {
                    // Order matters for one network only, and it came last.
                    lifted.retain(|t| *t != target(&ban.net));
                    bans.extend(entry(&ban));
                    self.added(&ban);
                }
                BanEvent::Removed { net, expired, shared } => {
                    let gone = target(&net);
                    bans.retain(|b: &kernel::Ban| b.target != gone);
                    lifted.push(gone);
                    self.removed(&net, expired, shared);
                }
                BanEvent::Lost => {
                    tracing::warn!("more bans changed than could be followed: all are told anew");
                    bans.clear();
                    lifted.clear();
                    let all = self.guard.bans(Instant::now()).iter().filter_map(entry).collect();
                    self.tell(self.kernel.replace(all));
                }
            }
        }
        if !lifted.is_empty() {
            self.tell(self.kernel.lift(lifted));
        }
        if !bans.is_empty() {
            self.tell(self.kernel.ban(bans));
        }
        count
    }

    /// A kernel that does not follow costs time, not safety: the guard drops all the same.
    fn tell(&self, taken: Result<(), kernel::NotTaken>) {
        match taken {
            Ok(()) | Err(kernel::NotTaken::NoKernel) => {}
            Err(error) => tracing::warn!(%error, "bans stay in userspace"),
        }
    }

    fn added(&mut self, ban: &Ban) {
        if let Some(at) = REASONS.iter().position(|r| *r == ban.reason)
            && let Some(cell) = self.shared.added.get(at)
        {
            cell.fetch_add(1, Ordering::Relaxed);
        }
        if self.may_log() {
            let (reason, by) = (ban.reason.as_str(), &ban.by);
            tracing::warn!(net = %ban.net, reason, %by, cluster = ban.shared, "banned");
        }
        self.events.tell("ban.added", || {
            let details =
                vec![("reason", ban.reason.as_str().to_owned()), ("by", ban.by.to_string())];
            (ban.net.to_string(), details)
        });
        if let (Some(cluster), false) = (&self.cluster, ban.shared) {
            let left = ban.until.map(|until| until.saturating_duration_since(Instant::now()));
            let proposed = cluster.propose_ban(ban.net, ban.reason.as_str(), &ban.by, left);
            if let Err(error) = proposed {
                tracing::debug!(net = %ban.net, %error, "not shared");
            }
        }
    }

    fn removed(&mut self, net: &Cidr, expired: bool, shared: bool) {
        self.shared.ended.fetch_add(1, Ordering::Relaxed);
        if self.may_log() {
            tracing::info!(%net, expired, "ban over");
        }
        self.events.tell("ban.over", || (net.to_string(), vec![("expired", expired.to_string())]));
        if let (Some(cluster), false, false) = (&self.cluster, expired, shared) {
            cluster.propose_unban(*net);
        }
    }

    /// Peers cause these lines: they are counted in any case, and written while they are few.
    fn may_log(&mut self) -> bool {
        let now = Instant::now();
        let (since, lines) = &mut self.lines;
        if now.saturating_duration_since(*since) >= Duration::from_secs(1) {
            if *lines > LINES_PER_SECOND {
                let more = *lines - LINES_PER_SECOND;
                tracing::warn!(more, "further bans came and went within a second");
            }
            (*since, *lines) = (now, 0);
        }
        *lines = lines.saturating_add(1);
        *lines <= LINES_PER_SECOND
    }
}

fn target(net: &Cidr) -> BanTarget {
    BanTarget::prefix(net.addr(), net.prefix_len())
}

/// The kernel's form of a ban; `None` when it is over.
fn entry(ban: &Ban) -> Option<kernel::Ban> {
    let lasts = match ban.until {
        None => ENDLESS,
        Some(until) => until.checked_duration_since(Instant::now())?,
    };
    (!lasts.is_zero()).then(|| kernel::Ban { target: target(&ban.net), lasts })
}
