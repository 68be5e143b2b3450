//! The drop set on a thread of its own: the guard tells it whom to ban and never waits for netlink.
//!
//! Whom to ban, and how bans are shared between nodes, is the guard's business; the set itself is
//! `nft/ban.rs`. Where the kernel can't be used, [`Bans::start`] says so once and the caller drops
//! in userspace as it does anyway.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::nft::{Ban, BanConfig, BanError, BanSet, BanTarget};

/// Orders that may wait for the thread.
const ORDERS_MAX: usize = 4_096;
/// Bans of one round: what has queued up goes into the kernel together.
const ROUND_MAX: usize = 20_000;
const POLL_EVERY: Duration = Duration::from_millis(500);
/// How long a listing may take to be answered.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// What the drop set tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BanStatus {
    /// Bans are kept in the kernel. False: the caller's own check is the only one.
    pub kernel: bool,
    /// Why, in a sentence for people.
    pub reason: String,
    /// Bans in force.
    pub bans: u64,
    /// Packets dropped by the kernel since the start.
    pub dropped: u64,
    /// Bans that did not get into the kernel: set full, prefix too wide, kernel said no.
    pub refused: u64,
    /// Orders that found the queue full.
    pub overflows: u64,
}

/// The order did not reach the thread: it is behind, or there is no kernel to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    #[error("the drop set is behind with its orders")]
    Behind,
    #[error("bans are not kept in the kernel here")]
    NoKernel,
}

enum Order {
    Ban(Vec<Ban>),
    Lift(Vec<BanTarget>),
    Replace(Vec<Ban>),
    List(SyncSender<Vec<Ban>>),
    Stop,
}

/// The running drop set, shared by whoever bans. Dropping it lifts all bans and removes the table.
pub struct Bans {
    orders: Option<SyncSender<Order>>,
    status: Arc<Mutex<BanStatus>>,
    thread: Option<JoinHandle<()>>,
}

impl Bans {
    /// A drop set that keeps nothing: bans are userspace's alone. `reason` is for people.
    pub fn off(reason: &str) -> Bans {
        let status = BanStatus { reason: reason.to_owned(), ..BanStatus::default() };
        Bans { orders: None, status: Arc::new(Mutex::new(status)), thread: None }
    }

    /// Makes the table (replacing what a dead process left under its name) in the calling thread's
    /// network namespace. It never fails: without CAP_NET_ADMIN or nftables the reason is logged
    /// once and is in the status.
    pub fn start(config: BanConfig) -> Bans {
        match BanSet::open(config) {
            Ok(set) => Bans::run(set),
            Err(error) => {
                tracing::info!(%error, "bans are kept in userspace only");
                Bans::off(&error.to_string())
            }
        }
    }

    fn run(set: BanSet) -> Bans {
        let status = Arc::new(Mutex::new(BanStatus {
            kernel: true,
            reason: "nftables drops at ingress".to_owned(),
            ..BanStatus::default()
        }));
        let (orders, inbox) = sync_channel(ORDERS_MAX);
        let keeper = Keeper { set, inbox, status: Arc::clone(&status) };
        let body = move || keeper.run();
        match std::thread::Builder::new().name("bans".to_owned()).spawn(body) {
            Ok(thread) => Bans { orders: Some(orders), status, thread: Some(thread) },
            Err(error) => Bans::off(&format!("no thread: {error}")),
        }
    }

    /// Bans, or moves the end of bans. Returns at once; the kernel has them within moments.
    pub fn ban(&self, bans: Vec<Ban>) -> Result<(), NotTaken> {
        self.order(Order::Ban(bans))
    }

    /// Lifts bans; a target that is not banned is no error.
    pub fn lift(&self, targets: Vec<BanTarget>) -> Result<(), NotTaken> {
        self.order(Order::Lift(targets))
    }

    /// Makes these the only bans; an empty list lifts all.
    pub fn replace(&self, bans: Vec<Ban>) -> Result<(), NotTaken> {
        self.order(Order::Replace(bans))
    }

    /// The bans in force with the time that each has left. Blocks until all orders before it are
    /// carried out, at most five seconds: not for a shard.
    pub fn list(&self) -> Result<Vec<Ban>, NotTaken> {
        let (answer, listed) = sync_channel(1);
        self.order(Order::List(answer))?;
        listed.recv_timeout(ANSWER_TIME).map_err(|_| NotTaken::Behind)
    }

    /// The snapshot; counters are at most a second old.
    pub fn status(&self) -> BanStatus {
        lock(&self.status).clone()
    }

    fn order(&self, order: Order) -> Result<(), NotTaken> {
        let Some(orders) = &self.orders else { return Err(NotTaken::NoKernel) };
        orders.try_send(order).map_err(|_| {
            lock(&self.status).overflows += 1;
            NotTaken::Behind
        })
    }
}

impl Drop for Bans {
    fn drop(&mut self) {
        if let Some(orders) = self.orders.take() {
            // The thread also ends when the last sender is gone.
            let _ = orders.try_send(Order::Stop);
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the drop set had panicked");
        }
    }
}

fn lock(status: &Mutex<BanStatus>) -> MutexGuard<'_, BanStatus> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread's own.
struct Keeper {
    set: BanSet,
    inbox: Receiver<Order>,
    status: Arc<Mutex<BanStatus>>,
}

impl Keeper {
    fn run(mut self) {
        let mut next_poll = Instant::now() + POLL_EVERY;
        loop {
            let wait = next_poll.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(wait) {
                Ok(order) => {
                    if !self.round(order) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= next_poll {
                next_poll = Instant::now() + POLL_EVERY;
                self.poll();
            }
            let bans = u64::try_from(self.set.len()).unwrap_or(u64::MAX);
            lock(&self.status).bans = bans;
        }
    }

    /// Carries out an order and what has queued up behind it: consecutive bans go into the kernel
    /// together. False at the end.
    fn round(&mut self, first: Order) -> bool {
        let mut gathered = Vec::new();
        let mut order = Some(first);
        while let Some(now) = order.take() {
            match now {
                Order::Ban(bans) => {
                    gathered.extend(bans);
                    if gathered.len() < ROUND_MAX {
                        match self.inbox.try_recv() {
                            Ok(next) => order = Some(next),
                            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
                        }
                    }
                    continue;
                }
                Order::Lift(targets) => {
                    self.ban(std::mem::take(&mut gathered));
                    if let Err(error) = self.set.lift(&targets) {
                        tracing::warn!(%error, "bans not lifted in the kernel");
                    }
                }
                Order::Replace(bans) => {
                    // What was gathered is replaced with the rest.
                    gathered.clear();
                    if let Err(error) = self.set.flush() {
                        tracing::warn!(%error, "bans not lifted in the kernel");
                    }
                    self.ban(bans);
                }
                Order::List(answer) => {
                    self.ban(std::mem::take(&mut gathered));
                    // Who asked may have given up.
                    let _ = answer.try_send(self.set.list());
                }
                Order::Stop => return false,
            }
        }
        self.ban(gathered);
        true
    }

    /// Bans together; when that is refused, one by one, so that a bad one spoils no other.
    fn ban(&mut self, bans: Vec<Ban>) {
        if bans.is_empty() || self.set.ban(&bans).is_ok() {
            return;
        }
        let mut refused = 0;
        let mut why = None;
        for ban in &bans {
            if let Err(error) = self.set.ban(std::slice::from_ref(ban)) {
                refused += 1;
                let full = matches!(error, BanError::Full) && ban.target.is_host();
                why = Some(error);
                if full {
                    // No room for this address: none for the next either.
                    refused = u64::try_from(bans.len()).unwrap_or(u64::MAX);
                    break;
                }
            }
        }
        if let Some(error) = why {
            tracing::warn!(%error, refused, "bans not kept in the kernel");
            lock(&self.status).refused += refused;
        }
    }

    fn poll(&mut self) {
        let polled = self.set.poll();
        let dropped = self.set.dropped();
        let mut status = lock(&self.status);
        match polled {
            Ok(()) if !status.kernel => {
                status.kernel = true;
                status.reason = "nftables came back".to_owned();
                tracing::info!("bans are kept in the kernel again");
            }
            Ok(()) => {}
            Err(error) => {
                if std::mem::replace(&mut status.kernel, false) {
                    tracing::warn!(%error, "bans are kept in userspace only");
                }
                status.reason = format!("nftables was lost: {error}");
            }
        }
        if let Ok(dropped) = dropped {
            status.dropped = dropped;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_kernel_it_says_so_and_takes_nothing() {
        let bans = Bans::off("switched off");
        let one = BanTarget::host("192.0.2.1".parse().expect("address"));
        assert_eq!(bans.lift(vec![one]), Err(NotTaken::NoKernel));
        assert_eq!(bans.list(), Err(NotTaken::NoKernel));
        let status = bans.status();
        assert!(!status.kernel);
        assert_eq!((status.reason.as_str(), status.overflows), ("switched off", 0));
    }
}
