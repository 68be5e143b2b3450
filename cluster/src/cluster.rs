//! Putting a node together: directory, core, writer, channel, driver.

use std::collections::HashMap;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::broadcast;

use crate::clock;
use crate::config::{Config, Origin, StartError};
use crate::core::{Core, CoreConfig, LeaseCell};
use crate::driver::{Driver, ORDERS_MAX, Orders, Published};
use crate::handle::{Handle, Shared};
use crate::state::{Node, NodeState, Position, Tables};
use crate::store::{self, Identity, Opened, Writer};
use crate::types::NodeId;

/// Events kept for a slow subscriber.
const EVENTS_MAX: usize = 8_192;

/// Entry point of the crate.
pub struct Cluster;

impl Cluster {
    /// Starts a node: opens its directory, or makes it as [`Config::origin`] says, and runs it on
    /// threads of its own.
    pub fn start(config: Config) -> Result<Handle, StartError> {
        config.check()?;
        let opened = match store::open(&config.dir)? {
            Some(opened) => opened,
            None => {
                match &config.origin {
                    Origin::New => begin(&config)?,
                    Origin::Join { .. } => {
                        return Err(StartError::Join("not built yet".to_owned()));
                    }
                }
                store::open(&config.dir)?
                    .ok_or_else(|| StartError::Core("the directory vanished".to_owned()))?
            }
        };
        run(&config, opened)
    }
}

/// Makes the first node of a new cluster.
fn begin(config: &Config) -> Result<(), StartError> {
    let cluster_id: [u8; 16] = clock::entropy();
    let identity = Identity { cluster_id: cluster_id.to_vec(), node: NodeId(1) };
    let node = Node {
        name: config.name.clone(),
        address: config.address(),
        state: NodeState::Up,
        epoch: 1,
        voter: true,
        software: config.software.clone(),
    };
    let tables = Tables::genesis(&cluster_id, &[(identity.node, node)]);
    let position = Position::genesis(&[identity.node]);
    store::create(&config.dir, &identity, Some((&tables, &position)))?;
    Ok(())
}

fn run(config: &Config, opened: Opened) -> Result<Handle, StartError> {
    let id = opened.identity.node;
    let tick = config.timing.heartbeat / 4;
    let ticks = |duration: Duration| {
        let ticks = duration.as_nanos() / tick.as_nanos().max(1);
        usize::try_from(ticks).unwrap_or(usize::MAX).max(1)
    };
    let now = clock::now();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let core_config = CoreConfig {
        id,
        boot: opened.boot,
        tick,
        heartbeat_ticks: ticks(config.timing.heartbeat),
        election_ticks: ticks(config.timing.election),
        lease: config.timing.lease,
        handover: config.timing.handover,
        wall_ms_at_zero: clock::wall_ms().saturating_sub(now_ms),
        snapshot_log_bytes: config.limits.snapshot_log_bytes,
        keep_log_bytes: config.limits.keep_log_bytes,
        pending_max: config.limits.pending,
    };
    let lease = LeaseCell::default();
    let core =
        std::panic::catch_unwind(|| Core::new(core_config, opened.recovered, lease.clone(), now));
    let core = match core {
        Ok(core) => core.map_err(|e| StartError::Core(e.to_string()))?,
        Err(_) => return Err(StartError::Core("the log contradicts itself".to_owned())),
    };
    let (sender, receiver) = sync_channel(ORDERS_MAX);
    let orders = Orders(sender);
    let (events, _) = broadcast::channel(EVENTS_MAX);
    let published = Arc::new(Published::default());
    let tables = core.tables();
    let report = orders.clone();
    let writer = Writer::start(opened.log, opened.snapshots, move |done| report.report(done))?;
    let driver = Driver {
        core,
        orders: receiver,
        writer,
        channel: None,
        events: events.clone(),
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
            events,
            published,
            channel: None,
            thread: Mutex::new(Some(thread)),
        }),
    })
}
