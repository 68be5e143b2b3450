//! Starting and stopping the anchor: its threads, and the totals over all sessions.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::address::{Addresses, TooManyDoors};
use crate::config::Config;
use crate::driver::{Driver, relay_of};
use crate::engine::Engine;
use crate::events::EventSink;
use crate::handle::Handle;
use crate::plan_types::Offload;
use crate::ports::PortCounts;
use crate::relay::{Letter, Mailbox, Relay, ThreadTotals};
use crate::standby::Standby;
use crate::types::{DropReason, InterfaceId, SessionId};

/// Why the anchor did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("media relay: {0}")]
    Io(#[from] std::io::Error),
}

/// Relay threads close released sockets well within this time.
const MIN_QUARANTINE: Duration = Duration::from_millis(100);

/// What handles share.
pub(crate) struct Shared {
    pub(crate) addresses: Arc<Addresses>,
    pub(crate) sessions: AtomicUsize,
    pub(crate) max_sessions: usize,
    pub(crate) quarantine: Duration,
    /// How much of it is given up rather than refusing a call.
    pub(crate) early: Duration,
    relays: Vec<Arc<Mailbox>>,
}

impl Shared {
    /// The mailbox of a session's relay thread.
    pub(crate) fn relay(&self, id: SessionId) -> Option<&Mailbox> {
        self.relays.get(relay_of(id, self.relays.len())).map(Arc::as_ref)
    }
}

/// Totals over all sessions since start, for metrics and status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Datagrams relayed in userspace, RTP and RTCP.
    pub relayed: u64,
    /// Their UDP payload bytes.
    pub bytes: u64,
    /// Datagrams dropped, in the order of [`DropReason::ALL`].
    pub dropped: [u64; 7],
    /// Times that relay threads woke.
    pub wakes: u64,
    /// Media sockets open.
    pub sockets: u64,
    /// Sessions held, with those that wait for their last kernel counters.
    pub sessions: u64,
    /// Port pairs by interface and address.
    pub ports: Vec<(InterfaceId, IpAddr, PortCounts)>,
}

impl Totals {
    /// Datagrams dropped for one reason.
    pub fn dropped_for(&self, reason: DropReason) -> u64 {
        self.dropped.get(reason.index()).copied().unwrap_or(0)
    }
}

/// The running anchor. Dropping it stops its threads and closes every media socket.
pub struct MediaAnchor {
    shared: Arc<Shared>,
    totals: Vec<Arc<ThreadTotals>>,
    threads: Vec<JoinHandle<()>>,
    kernel: Option<&'static str>,
    standby: Option<Standby>,
}

impl MediaAnchor {
    /// Starts `config.relay_threads` threads, and a driver if there is a kernel to offload to.
    pub fn start(
        config: Config,
        offload: Option<Box<dyn Offload>>,
    ) -> Result<MediaAnchor, StartError> {
        let addresses = Arc::new(Addresses::new(&config));
        let kernel = offload.as_ref().map(|offload| offload.name());
        let relays = (0..config.relay_threads.max(1))
            .map(|_| Mailbox::new().map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let quarantine = config.quarantine.max(MIN_QUARANTINE);
        let (changes, from_relays) = mpsc::channel();
        let shared = Arc::new(Shared {
            addresses: addresses.clone(),
            sessions: AtomicUsize::new(0),
            max_sessions: config.max_sessions,
            quarantine,
            early: quarantine.saturating_sub(config.quarantine_min.max(MIN_QUARANTINE)),
            relays: relays.clone(),
        });
        let (standby, book) = Standby::new(addresses.clone(), config.offload);
        let mut anchor = MediaAnchor {
            shared,
            totals: Vec::new(),
            threads: Vec::new(),
            kernel,
            standby: kernel.map(|_| standby),
        };
        for (index, mailbox) in relays.iter().enumerate() {
            let totals = Arc::new(ThreadTotals::default());
            anchor.totals.push(totals.clone());
            let engine =
                Engine::new(addresses.clone(), config.learning, config.offload, kernel.is_some());
            let driver = kernel.map(|_| changes.clone());
            let relay = Relay::new(engine, mailbox.clone(), totals, driver, config.coalesce)?;
            anchor.spawn(format!("media-{index}"), move || relay.run())?;
        }
        drop(changes);
        if let Some(offload) = offload {
            let driver =
                Driver::new(offload, from_relays, relays, config.offload.counters_every, book);
            anchor.spawn("media-kernel".to_owned(), move || driver.run())?;
        }
        Ok(anchor)
    }

    /// The handle of one signalling shard; its events go to `sink`. One per shard: a second handle
    /// of the same shard takes its events over.
    pub fn handle(&self, shard: usize, sink: &EventSink) -> Handle {
        for relay in &self.shared.relays {
            relay.post(Letter::Sink { shard, sink: sink.clone() });
        }
        Handle::new(self.shared.clone(), shard)
    }

    /// Takes other interfaces, ranges and address policy; the rest of `config` is as it was at the
    /// start. Sessions keep the ports that they have.
    ///
    /// # Errors
    /// When too many interfaces of before are still in use; nothing changes then.
    pub fn update(&self, config: &Config) -> Result<(), TooManyDoors> {
        self.shared.addresses.update(config)
    }

    /// The kernel way in use: `nftables`, `ebpf`, or none.
    pub fn kernel(&self) -> Option<&'static str> {
        self.kernel
    }

    /// Where calls of other nodes are told, so that their media is in this node's kernel already
    /// when they come here; to be taken once. `None` without a kernel way.
    pub fn take_standby(&mut self) -> Option<Standby> {
        self.standby.take()
    }

    /// Totals over all sessions.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals { ports: self.shared.addresses.counts(), ..Totals::default() };
        for thread in &self.totals {
            totals.relayed += thread.relayed.load(Ordering::Relaxed);
            totals.bytes += thread.bytes.load(Ordering::Relaxed);
            totals.wakes += thread.wakes.load(Ordering::Relaxed);
            totals.sockets += thread.sockets.load(Ordering::Relaxed);
            totals.sessions += thread.sessions.load(Ordering::Relaxed);
            for (sum, cell) in totals.dropped.iter_mut().zip(&thread.dropped) {
                *sum += cell.load(Ordering::Relaxed);
            }
        }
        totals
    }

    fn spawn(
        &mut self,
        name: String,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), StartError> {
        self.threads.push(std::thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }
}

impl Drop for MediaAnchor {
    fn drop(&mut self) {
        for relay in &self.shared.relays {
            relay.post(Letter::Stop);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a media thread had panicked");
            }
        }
    }
}
