//! Putting a node together: directory, core, writer, channel, driver.

use std::collections::HashMap;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::broadcast;

use crate::channel::join::{self, Seeds};
use crate::channel::meet::{self, Met};
use crate::channel::pki::{Ca, Files, PkiError, Request, SECRET};
use crate::channel::{Channel, Setup, discovery};
use crate::clock;
use crate::config::{Config, Discovery, Origin, StartError};
use crate::core::{Core, CoreConfig, LeaseCell};
use crate::driver::{Driver, ORDERS_MAX, Orders, Published};
use crate::handle::{Handle, Shared};
use crate::state::{Node, Position, Tables};
use crate::store::{self, Identity, Opened, Writer};
use crate::types::NodeId;

/// Events kept for a slow subscriber.
const EVENTS_MAX: usize = 8_192;
/// Changed rows kept for a slow subscriber.
const CHANGES_MAX: usize = 32_768;

/// Entry point of the crate.
pub struct Cluster;

impl Cluster {
    /// Starts a node: opens its directory, or makes it as [`Config::origin`] says, and runs it on
    /// threads of its own. Blocks while it joins, a minute at most.
    pub fn start(config: Config) -> Result<Handle, StartError> {
        config.check()?;
        // On a thread of its own: the caller may be inside a runtime, where ours cannot be waited for.
        let starter = std::thread::Builder::new()
            .name("sbc-start".to_owned())
            .spawn(move || start(&config))?;
        match starter.join() {
            Ok(result) => result,
            Err(_) => Err(StartError::Core("starting panicked".to_owned())),
        }
    }

    /// Makes the node's directory as [`Config::origin`] says, without running the node: a new cluster
    /// with its CA, or a place in one that is joined. Blocks as [`Cluster::start`] does.
    ///
    /// # Errors
    /// A directory that holds a node already; what [`Cluster::start`] refuses.
    pub fn make(config: Config) -> Result<NodeId, StartError> {
        config.check()?;
        if let Some(opened) = store::open(&config.dir, config.format)? {
            let node = opened.identity.node;
            return Err(StartError::Config(format!("the directory holds node {node} already")));
        }
        let maker = std::thread::Builder::new().name("sbc-make".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            settle(&config, &runtime)?;
            forget_joining(&config)?;
            let made = Identity::read(&config.dir)?;
            made.map(|made| made.node).ok_or_else(vanished)
        })?;
        match maker.join() {
            Ok(result) => result,
            Err(_) => Err(StartError::Core("making the node panicked".to_owned())),
        }
    }
}

fn vanished() -> StartError {
    StartError::Core("the directory vanished".to_owned())
}

/// The identity is written: nobody asks to be let in by the same key again.
fn forget_joining(config: &Config) -> Result<(), StartError> {
    Files::new(&config.dir).joined().map_err(|e| StartError::Pki(e.to_string()))
}

/// Makes the directory of a node that has none. Returns whom to expect.
fn settle(config: &Config, runtime: &Runtime) -> Result<Seeds, StartError> {
    match &config.origin {
        Origin::New => begin(config).map(|()| Seeds::new()),
        Origin::Join { token, seeds } => {
            if config.listen.is_none() {
                return Err(StartError::Config("a joining node must listen".to_owned()));
            }
            runtime.block_on(join::join(config, token, seeds))
        }
        Origin::Meet { begin: count, seeds } => {
            let missing = || StartError::Config("no join key".to_owned());
            let key = config.key.as_ref().ok_or_else(missing)?;
            match runtime.block_on(meet::meet(config, key, *count, seeds))? {
                Met::Begin => begin(config).map(|()| Seeds::new()),
                Met::Joined(found) => Ok(found),
            }
        }
    }
}

fn start(config: &Config) -> Result<Handle, StartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("sbc-channel")
        .enable_all()
        .build()?;
    if let Some(Discovery::Etcd { endpoints, prefix }) = &config.register {
        // Before it is a member: nodes without data find each other by it.
        let (endpoints, prefix) = (endpoints.clone(), prefix.clone());
        let (name, address) = (config.name.clone(), config.address());
        runtime.spawn(discovery::register(endpoints, prefix, name, address));
    }
    let mut seeds = Seeds::new();
    let opened = match store::open(&config.dir, config.format)? {
        Some(opened) => opened,
        None => {
            seeds = settle(config, &runtime)?;
            store::open(&config.dir, config.format)?.ok_or_else(vanished)?
        }
    };
    // Also where a process before ended just after it was let in.
    forget_joining(config)?;
    run(config, opened, runtime, &seeds)
}

/// Makes the first node of a new cluster, with its CA.
fn begin(config: &Config) -> Result<(), StartError> {
    let cluster_id: [u8; 16] = clock::entropy();
    let identity = Identity { cluster_id: cluster_id.to_vec(), node: NodeId(1) };
    let mut node = Node::founder(config.name.clone(), config.address(), config.format);
    node.software.clone_from(&config.software);
    let mut tables = Tables::genesis(&cluster_id, &[(identity.node, node)]);
    let certify = || -> Result<Ca, PkiError> {
        let ca = Ca::create(&cluster_id)?;
        let request = Request::new()?;
        let certificate = ca.sign(&request.csr, identity.node)?;
        Files::new(&config.dir).save(&request, &certificate, &ca.certificate)?;
        Ok(ca)
    };
    std::fs::create_dir_all(&config.dir)?;
    let ca = certify().map_err(|e| StartError::Pki(e.to_string()))?;
    for (key, value) in ca.settings() {
        tables.preset(key, value);
    }
    let secret: [u8; 32] = clock::entropy();
    tables.preset(SECRET, &secret);
    let position = Position::genesis(&[identity.node]);
    store::create(&config.dir, &identity, Some((&tables, &position)))?;
    Ok(())
}

fn core_config(config: &Config, id: NodeId, boot: u64) -> CoreConfig {
    let tick = config.timing.heartbeat / 4;
    let ticks = |duration: Duration| {
        let ticks = duration.as_nanos() / tick.as_nanos().max(1);
        usize::try_from(ticks).unwrap_or(usize::MAX).max(1)
    };
    let now_ms = u64::try_from(clock::now().as_millis()).unwrap_or(u64::MAX);
    CoreConfig {
        id,
        boot,
        format: config.format,
        tick,
        heartbeat_ticks: ticks(config.timing.heartbeat),
        election_ticks: ticks(config.timing.election),
        lease: config.timing.lease,
        handover: config.timing.handover,
        wall_ms_at_zero: clock::wall_ms().saturating_sub(now_ms),
        snapshot_log_bytes: config.limits.snapshot_log_bytes,
        keep_log_bytes: config.limits.keep_log_bytes,
        pending_max: config.limits.pending,
    }
}

fn run(
    config: &Config,
    opened: Opened,
    runtime: Runtime,
    seeds: &Seeds,
) -> Result<Handle, StartError> {
    let (id, boot) = (opened.identity.node, opened.boot);
    let core_config = core_config(config, id, opened.boot);
    let lease = LeaseCell::default();
    let core = std::panic::catch_unwind(|| {
        Core::new(core_config, opened.recovered, lease.clone(), clock::now())
    });
    let core = match core {
        Ok(core) => core.map_err(|e| StartError::Core(e.to_string()))?,
        Err(_) => return Err(StartError::Core("the log contradicts itself".to_owned())),
    };
    let (sender, receiver) = sync_channel(ORDERS_MAX);
    let orders = Orders(sender);
    let (events, _) = broadcast::channel(EVENTS_MAX);
    let (changes, _) = broadcast::channel(CHANGES_MAX);
    let (relayed, _) = broadcast::channel(EVENTS_MAX);
    let published = Arc::new(Published::default());
    let tables = core.tables();
    let channel = match config.listen {
        None => None,
        Some(listen) => {
            let channel = Channel::start(Setup {
                id,
                dir: config.dir.clone(),
                address: config.address(),
                software: config.software.clone(),
                format: config.format,
                listen,
                key: config.key.clone(),
                tables: Arc::clone(&tables),
                orders: orders.clone(),
                events: events.clone(),
                relayed: relayed.clone(),
                snapshots: opened.snapshots.clone(),
                runtime: runtime.handle().clone(),
            });
            let channel = channel.map_err(|e| StartError::Pki(e.to_string()))?;
            channel.set_peers(&tables.read().unwrap_or_else(|e| e.into_inner()));
            channel.add_peers(seeds);
            Some(channel)
        }
    };
    if let (Some(Discovery::Etcd { endpoints, prefix }), Some(channel)) =
        (&config.register, &channel)
    {
        let (endpoints, prefix) = (endpoints.clone(), prefix.clone());
        let channel = channel.clone();
        let tell = move |name: String, address: String| channel.heard_of(&name, address);
        runtime.spawn(discovery::follow(endpoints, prefix, tell));
    }
    let report = orders.clone();
    let writer = Writer::start(opened.log, opened.snapshots, move |done| report.report(done))?;
    let driver = Driver {
        core,
        orders: receiver,
        writer,
        channel: channel.clone(),
        events: events.clone(),
        changes: changes.clone(),
        published: Arc::clone(&published),
        lease: lease.clone(),
        replies: HashMap::new(),
        next_reply: 1,
    };
    let thread =
        std::thread::Builder::new().name("sbc-raft".to_owned()).spawn(move || driver.run())?;
    Ok(Handle {
        shared: Arc::new(Shared {
            id,
            timing: config.timing,
            orders,
            tables,
            lease,
            boot,
            events,
            changes,
            relayed,
            published,
            channel,
            thread: Mutex::new(Some(thread)),
            runtime: Mutex::new(Some(runtime)),
        }),
    })
}
