//! The node's part in a cluster: started with the node, stopped after its shards.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use arc_swap::{ArcSwap, ArcSwapOption};
use sbc_cluster::{
    Cluster, Command, Config, Handle as ClusterHandle, JoinKey, NodeId, NodeState, Origin,
    ProposeError,
};
use sbc_core::core::{Core, Duties, Input};
use sbc_core::digest::NonceKey;
use sbc_core::ids::HintKey;
use sbc_core::net::Interface;
use sbc_core::routing::Table;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::peers;
use crate::config::{ClusterConfig, FailoverMode, JoinToken, Keys};
use crate::shard::queue::Handle;
use crate::shard::stats::Kind;
use crate::store::bans::ClusterBans;
use crate::store::binding::Names;
use crate::store::cluster::{ClusterStore, Parts, StoreStats};
use crate::store::follow::{Follow, FollowStats};
use crate::store::link::{self, Link, LinkStats};
use crate::store::registrants::{PROBING_SHARD, Registrants};
use crate::store::rooms::{ASKED_MAX, Asked, Rooms};
use crate::store::shares::{ShareStats, Shares};
use crate::store::takeover::{REMOVED, Takeover, TakeoverStats, drained};
use crate::store::tell::Tell;
use crate::telemetry::metrics::{Sample, number};

/// How long a node asks to be let in; of no matter to one that does not join.
const JOIN_WITHIN: Duration = Duration::from_secs(60);
/// How long the leadership may take to be handed on before a stop.
const HAND_ON: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long floating addresses may take to be given up at the end.
const LET_GO: Duration = Duration::from_secs(1);
/// How long a node that has just joined waits for the tables before it takes calls.
const TABLES_WITHIN: Duration = Duration::from_secs(60);

/// A running cluster node and what serves it.
pub struct Replication {
    pub handle: ClusterHandle,
    pub store: Arc<ClusterStore>,
    tell: Arc<Tell>,
    names: Arc<Names>,
    mode: FailoverMode,
    followed: Arc<FollowStats>,
    linked: Arc<LinkStats>,
    routing: Arc<ArcSwapOption<Table>>,
    shared: Arc<ShareStats>,
    /// Questions for room in users' limits, until somebody answers them.
    asked: Mutex<Option<mpsc::Receiver<Asked>>>,
    interfaces: Arc<ArcSwap<Vec<Interface>>>,
    /// Set once this node registers with no trunk any more.
    leaving: Arc<AtomicBool>,
    /// Bans of the whole cluster.
    pub bans: ClusterBans,
    written: Arc<StoreStats>,
    taken: Arc<TakeoverStats>,
    takeover: Mutex<Option<JoinHandle<()>>>,
}

/// The keys that all nodes of the cluster share. A node that has just joined waits for its tables.
///
/// # Errors
/// When no member has given it the tables in time.
pub(super) fn keys(handle: &ClusterHandle) -> anyhow::Result<Keys> {
    let until = Instant::now() + TABLES_WITHIN;
    loop {
        if let (Some(hint), Some(nonce)) = (handle.secret("shard hints"), handle.secret("nonces")) {
            let node = Some(link::number(handle.id()));
            return Ok(Keys { hint: HintKey::derive(&hint), nonce: NonceKey(nonce), node });
        }
        if Instant::now() >= until {
            anyhow::bail!("cluster: no member has given us its tables yet");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Tests of updates let a node stand for a later release: `SBC_TEST_FORMAT` is the format of the
/// cluster's log that it reads. Debug builds only.
#[cfg(debug_assertions)]
fn emulated(mut config: Config) -> Config {
    if let Some(format) = std::env::var("SBC_TEST_FORMAT").ok().and_then(|n| n.parse().ok()) {
        config.format = format;
        config.software = format!("{}-format-{format}", config.software);
    }
    config
}

#[cfg(not(debug_assertions))]
fn emulated(config: Config) -> Config {
    config
}

/// Starts the cluster node and the task that carries its decisions out.
///
/// # Errors
/// A data directory that cannot be used, a cluster that cannot be joined, netlink refused.
pub(super) fn start(
    name: &str,
    config: &ClusterConfig,
    shards: &[Handle<Core>],
    runtime: &Runtime,
) -> anyhow::Result<Replication> {
    let made = Config {
        origin: origin(config),
        key: config.join.as_ref().and_then(|join| match &join.token {
            JoinToken::Key(secret) => JoinKey::derive(secret.expose().as_bytes()),
            JoinToken::Text(_) | JoinToken::File(_) => None,
        }),
        join_within: config.join.as_ref().map_or(JOIN_WITHIN, |join| join.within),
        register: config.register.clone(),
        listen: config.listen,
        advertise: config.advertise.clone(),
        software: env!("CARGO_PKG_VERSION").to_owned(),
        timing: config.timing,
        ..Config::new(&config.data, name)
    };
    let made = emulated(made);
    forget_removed(config)?;
    let _inside = runtime.enter();
    let handle = Cluster::start(made).context("cluster")?;
    let tell = Arc::new(Tell::new(shards.to_vec()));
    let group = match config.failover {
        FailoverMode::Address => config.addresses.first().map_or(0, |a| a.group),
        FailoverMode::None | FailoverMode::Reinvite => 0,
    };
    let names = Arc::new(Names::default());
    let linked = Arc::new(LinkStats::default());
    let (ask, asked) = mpsc::channel(ASKED_MAX);
    let store = ClusterStore::new(Parts {
        rooms: ask,
        handle: handle.clone(),
        tell: Arc::clone(&tell),
        group,
        names: Arc::clone(&names),
        mode: config.failover,
        linked: Arc::clone(&linked),
    });
    let store = Arc::new(store);
    let takeover =
        Takeover::new(handle.clone(), Arc::clone(&tell), config).context("floating addresses")?;
    let (written, taken) = (Arc::clone(&store.stats), Arc::clone(&takeover.stats));
    let bans = ClusterBans::new(handle.clone());
    let takeover = Mutex::new(Some(runtime.spawn(takeover.run())));
    tracing::info!(node = handle.id().0, data = %config.data.display(), "cluster node started");
    let mode = config.failover;
    let followed = Arc::default();
    Ok(Replication {
        tell,
        names,
        mode,
        followed,
        linked,
        routing: Arc::default(),
        shared: Arc::default(),
        asked: Mutex::new(Some(asked)),
        interfaces: Arc::default(),
        leaving: Arc::default(),
        handle,
        store,
        bans,
        written,
        taken,
        takeover,
    })
}

/// What a node knew that was removed from its cluster meanwhile is of no use to the new one it becomes.
fn forget_removed(config: &ClusterConfig) -> anyhow::Result<()> {
    let keyed = config.join.as_ref().is_some_and(|join| matches!(join.token, JoinToken::Key(_)));
    if !keyed || !config.data.join(REMOVED).exists() {
        return Ok(());
    }
    tracing::warn!(data = %config.data.display(), "removed from the cluster: joining anew");
    // What lies in the directory, not the directory: it may be where a volume is mounted. The mark
    // goes last, so that an interruption changes nothing.
    let inside = || format!("cannot empty {}", config.data.display());
    for entry in std::fs::read_dir(&config.data).with_context(inside)? {
        let entry = entry.with_context(inside)?;
        if entry.file_name() == REMOVED {
            continue;
        }
        let path = entry.path();
        let gone = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        gone.with_context(inside)?;
    }
    std::fs::remove_file(config.data.join(REMOVED)).with_context(inside)
}

fn origin(config: &ClusterConfig) -> Origin {
    let Some(join) = &config.join else { return Origin::New };
    let seeds = join.seeds.clone();
    let token = match &join.token {
        JoinToken::Key(_) => return Origin::Meet { begin: join.begin, seeds },
        JoinToken::Text(secret) => secret.expose().to_owned(),
        // Absent is no trouble for a node that has joined before.
        JoinToken::File(path) => std::fs::read_to_string(path).unwrap_or_default(),
    };
    Origin::Join { token: token.trim().to_owned(), seeds }
}

impl Replication {
    /// Begins to give shards what other nodes write: once they have the keys.
    pub(super) fn follow(&self, core: &sbc_core::core::Config, runtime: &Runtime) {
        self.configured(core);
        let follow = Follow {
            handle: self.handle.clone(),
            bans: self.bans.clone(),
            tell: Arc::clone(&self.tell),
            names: Arc::clone(&self.names),
            hints: core.hint_key,
            mode: self.mode,
            stats: Arc::clone(&self.followed),
        };
        runtime.spawn(follow.run());
        let link = Link {
            handle: self.handle.clone(),
            tell: Arc::clone(&self.tell),
            names: Arc::clone(&self.names),
            hints: core.hint_key,
            stats: Arc::clone(&self.linked),
        };
        runtime.spawn(link.run());
        let shares = Shares {
            handle: self.handle.clone(),
            routing: Arc::clone(&self.routing),
            stats: Arc::clone(&self.shared),
            guard: core.guard.clone(),
        };
        runtime.spawn(shares.run());
        if let Some(asked) = self.asked.lock().unwrap_or_else(|e| e.into_inner()).take() {
            let rooms = Rooms {
                handle: self.handle.clone(),
                routing: Arc::clone(&self.routing),
                stats: Arc::clone(&self.shared),
                tell: Arc::clone(&self.tell),
                asked,
            };
            runtime.spawn(rooms.run());
        }
        let registrants = Registrants {
            handle: self.handle.clone(),
            routing: Arc::clone(&self.routing),
            interfaces: Arc::clone(&self.interfaces),
            tell: Arc::clone(&self.tell),
            leaving: Arc::clone(&self.leaving),
        };
        runtime.spawn(registrants.run());
        // The first write of this run tells the others that the former one is over.
        self.handle.submit(sbc_cluster::Command::set_counts(&[]), Duration::from_secs(5), |_| {});
    }

    /// A new configuration is in force.
    pub(super) fn configured(&self, core: &sbc_core::core::Config) {
        self.names.set(&core.interfaces);
        self.interfaces.store(Arc::new(core.interfaces.clone()));
        core.routing.user_gates().share();
        self.routing.store(Some(Arc::clone(&core.routing)));
    }

    /// Stops the cluster node and lets go of the floating addresses; what was accepted is on disk
    /// afterwards. Blocks for a few milliseconds.
    pub(super) fn stop(&self, runtime: &Runtime) {
        self.handle.stop();
        let task = self.takeover.lock().unwrap_or_else(|e| e.into_inner()).take();
        let Some(task) = task else { return };
        // The time limit is made inside: it needs the runtime's clock.
        let ended = runtime.block_on(async { tokio::time::timeout(LET_GO, task).await });
        if ended.is_err() {
            tracing::error!("floating addresses were not given up in time: the kernel will");
        }
    }

    /// Moves calls and addresses to the other nodes; true when nothing is left here, false when
    /// nobody can take them or it takes longer than `within`.
    pub(super) async fn move_away(&self, within: Duration) -> bool {
        let id = self.handle.id();
        let heir = self.handle.read(|tables| {
            let other = |(other, node): &(NodeId, &sbc_cluster::Node)| {
                *other != id && node.voter && node.state.is_eligible()
            };
            tables.nodes().find(other).map(|(other, _)| other)
        });
        let Some(heir) = heir.filter(|_| self.handle.lease_valid()) else { return false };
        let moved = tokio::time::timeout(within, async {
            self.hand_leadership_on(heir).await;
            if let Err(error) = self.handle.propose_within(Command::drain(id, false), within).await
            {
                tracing::warn!(%error, "cannot drain");
                return false;
            }
            let mut look = tokio::time::interval(LOOK_EVERY);
            while !drained(&self.handle) {
                look.tick().await;
            }
            true
        });
        moved.await.unwrap_or(false)
    }

    /// A leader that goes costs the others an election.
    async fn hand_leadership_on(&self, heir: NodeId) {
        let until = Instant::now() + HAND_ON;
        let mut look = tokio::time::interval(LOOK_EVERY);
        if self.handle.status().core.is_leader {
            self.handle.transfer_leader(heir);
        }
        while self.handle.status().core.leader.is_none_or(|leader| leader == self.handle.id())
            && Instant::now() < until
        {
            look.tick().await;
        }
    }

    /// Nobody is left to carry on what this node has registered with trunks: takes it back.
    pub(super) fn withdraw_registrations(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        let duties = Duties { all: Vec::new(), withdraw: true };
        self.tell.tell(PROBING_SHARD, Input::Duties(duties));
    }

    /// Why this node should be given no new calls, if there is a reason.
    pub fn unready(&self) -> Option<&'static str> {
        if !self.handle.lease_valid() {
            return Some("no lease: no majority confirms this node");
        }
        let state = self.handle.read(|tables| tables.node(self.handle.id()).map(|row| row.state));
        match state {
            Some(NodeState::Up) => None,
            Some(NodeState::Joining) | None => Some("joining the cluster"),
            Some(NodeState::Draining | NodeState::Drained) => Some("draining"),
            Some(NodeState::Down) => Some("declared down"),
        }
    }

    /// Named trouble.
    pub fn alarms(&self) -> impl Iterator<Item = String> {
        let no_quorum = (!self.handle.lease_valid())
            .then_some("no quorum: calls are unprotected, floating addresses are given up");
        let no_link = (self.taken.link_lost.load(Ordering::Relaxed) != 0)
            .then_some("a device of floating addresses has no carrier");
        no_quorum.into_iter().chain(no_link).map(str::to_owned)
    }

    /// Takes a drain back, if there was one.
    ///
    /// # Errors
    /// When the cluster cannot be told.
    pub async fn take_back_drain(&self) -> Result<(), ProposeError> {
        let id = self.handle.id();
        let state = self.handle.read(|tables| tables.node(id).map(|row| row.state));
        if matches!(state, Some(NodeState::Draining | NodeState::Drained)) {
            self.handle.propose(Command::drain(id, true)).await?;
        }
        Ok(())
    }

    pub(super) fn samples(&self, out: &mut Vec<Sample>) {
        peers::samples(&self.handle, out);
        let mut push = |name, help, kind, value: u64| {
            out.push(Sample { name, help, kind, labels: vec![], value: number(value) });
        };
        let (c, g) = (Kind::Counter, Kind::Gauge);
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        push("sbc_cluster_quorum", "Whether a majority confirms this node", g, {
            u64::from(self.handle.lease_valid())
        });
        let (w, t) = (&self.written, &self.taken);
        push("sbc_cluster_writes_committed", "Calls written", c, read(&w.committed));
        push("sbc_cluster_writes_failed", "Calls not committed in time", c, read(&w.failed));
        push("sbc_cluster_writes_fenced", "Writes to calls of others", c, read(&w.fenced));
        push("sbc_cluster_record_bytes", "Bytes of records written", c, read(&w.bytes));
        push("sbc_cluster_cdrs_elsewhere", "CDRs left to others", c, read(&w.cdrs_elsewhere));
        push("sbc_cluster_calls_adopted", "Calls taken over", c, read(&t.adopted));
        push("sbc_cluster_calls_lost", "Calls given to others", c, read(&t.lost));
        push("sbc_cluster_records_unreadable", "Records not read", c, read(&t.unreadable));
        push("sbc_cluster_bindings_written", "Contacts written", c, read(&w.bindings));
        push("sbc_cluster_bindings_failed", "Contacts not written", c, read(&w.bindings_failed));
        let f = &self.followed;
        push("sbc_cluster_bindings_followed", "Users' contacts taken", c, read(&f.users));
        push("sbc_cluster_bindings_unreadable", "Contacts not read", c, read(&f.unreadable));
        let s = &self.shared;
        push("sbc_cluster_shares_written", "Shares of limits changed", c, read(&s.written));
        push("sbc_cluster_shares_failed", "Shares not committed in time", c, read(&s.failed));
        let l = &self.linked;
        push("sbc_cluster_relayed_out", "Messages passed on to other nodes", c, read(&l.sent));
        push("sbc_cluster_relayed_in", "Messages of other nodes", c, read(&l.received));
        push("sbc_cluster_relay_failures", "Messages not passed on", c, read(&l.failed));
        let b = self.bans.stats();
        push("sbc_cluster_bans", "Bans in force in the cluster", g, {
            self.handle.read(|tables| u64::try_from(tables.bans().count()).unwrap_or(0))
        });
        push("sbc_cluster_bans_proposed", "Bans written by this node", c, read(&b.written));
        push("sbc_cluster_bans_failed", "Bans not written", c, read(&b.failed));
        push("sbc_cluster_bans_trusted", "Bans refused: the source is trusted", c, {
            read(&b.trusted)
        });
        push("sbc_cluster_addresses_taken", "Addresses taken", c, read(&t.addresses_taken));
        push("sbc_cluster_addresses_released", "Addresses given up", c, {
            read(&t.addresses_released)
        });
        push("sbc_cluster_link_lost", "A device of floating addresses has no carrier", g, {
            read(&t.link_lost)
        });
        push("sbc_cluster_address_errors", "Addresses that failed", c, read(&t.address_errors));
        push("sbc_cluster_address_late", "Kept by an old confirmation", c, read(&t.address_late));
    }
}
