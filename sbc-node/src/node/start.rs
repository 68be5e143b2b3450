//! Builds a node from its configuration: sockets first, so that what cannot be is known at once.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Context as _;
use media_anchor::{MediaAnchor, kernel};
use rand::Rng;
use sbc_core::b2bua::WallClock;
use sbc_core::core::Core;
use sbc_core::net::Transport;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::context::{Context, Made};
use super::reload::{Running, core_config};
use super::replication;
use crate::admin;
use crate::anchor::ShardAnchor;
use crate::config::{Config, Kernel, Keys};
use crate::guard::{Border, load};
use crate::resolve::{Answer, Request, dns};
use crate::shard::command::Command;
use crate::shard::commit::{Alone, Store};
use crate::shard::queue::{Handle, Mailbox, mailbox};
use crate::shard::run::{self, Shard};
use crate::shard::stats::ShardStats;
use crate::store::registrants::PROBING_SHARD;
use crate::telemetry::cdr::{self, CdrWriter};
use crate::telemetry::events::EventHub;
use crate::telemetry::http;
use crate::telemetry::log::LogControl;
use crate::telemetry::metrics::CallMetrics;
use crate::telemetry::outside::{Held, ShardOutside};
use crate::telemetry::tap::Tap;
use crate::telemetry::time::unix_ms;
use crate::telemetry::trace::TraceHub;
use crate::transport;
use crate::transport::stun_server::{self, StunServer, StunStats};
use crate::users::lookup::Lookup;

/// Lookups that may wait for the resolver.
const LOOKUPS_MAX: usize = 8_192;

/// A shard's thread is over although nobody asked.
pub(super) struct ShardEnd {
    pub(super) shard: usize,
    pub(super) reason: String,
}

/// A node that runs.
pub(super) struct Parts {
    pub(super) context: Arc<Context>,
    pub(super) cdrs: CdrWriter,
    pub(super) threads: Vec<JoinHandle<()>>,
    pub(super) ends: mpsc::Receiver<ShardEnd>,
}

/// Starts everything; when this returns, calls are taken.
pub(super) fn start(
    path: &Path,
    config: Config,
    log: LogControl,
    runtime: &Runtime,
) -> anyhow::Result<Parts> {
    // What cannot be is known before anything is started.
    built(&config, &Keys::drawn())?;
    let cdrs = CdrWriter::start(cdr_settings(&config), &config.node.name).context("CDR file")?;
    let shards = shards(&config);
    let media = anchor_config(&config);
    let kernel = kernel_relay(&config)?;
    let mut anchor = MediaAnchor::start(media, kernel.offload).context("media relay")?;
    let standby = anchor.take_standby();
    let anchor = Arc::new(anchor);
    let calls = Arc::new(CallMetrics::default());
    let traces = TraceHub::default();
    let events = EventHub::default();
    let (hep, trace) = (config.hep.as_ref(), config.trace.as_ref());
    let tap =
        Tap::start(&config.node.name, hep, trace, runtime).context("watching from outside")?;
    let stats: Vec<_> = (0..shards).map(|_| Arc::new(ShardStats::default())).collect();
    let pairs: Vec<(Handle<Core>, Mailbox<Core>)> =
        (0..shards).map(|_| mailbox()).collect::<Result<_, _>>()?;
    let (handles, mailboxes): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let (lookups, requests) = mpsc::channel(LOOKUPS_MAX);
    let lookup = config.lookup.as_ref().map(Lookup::new).transpose()?.map(Arc::new);
    let (questions, asked) = mpsc::channel(LOOKUPS_MAX);
    let cluster = match &config.cluster {
        Some(cluster) => Some(replication::start(&config.node.name, cluster, &handles, runtime)?),
        None => None,
    };
    let keys = match &cluster {
        Some(cluster) => replication::keys(&cluster.handle)?,
        None => Keys::drawn(),
    };
    let bans = cluster.as_ref().map(|c| c.bans.clone());
    let border = Arc::new(Border::start(&config, bans, events.clone()).context("guard")?);
    let mut core = built(&config, &keys)?;
    border.given_to(&mut core);
    let core = Arc::new(core);
    if let Some(cluster) = &cluster {
        cluster.follow(&core, runtime);
    }
    let store: Arc<dyn Store> = match &cluster {
        Some(cluster) => Arc::clone(&cluster.store) as Arc<dyn Store>,
        None => Arc::new(Alone),
    };
    let interfaces: Arc<[sbc_core::net::Interface]> = Arc::from(core.interfaces.clone());
    let transport = transport_settings(&config);
    let clock = WallClock { at: Instant::now(), unix_ms: unix_ms() };
    for listener in interfaces.iter().flat_map(|i| &i.listeners) {
        transport::sockopt::probe(listener.local, listener.transport == Transport::Udp, &transport)
            .with_context(|| format!("cannot open the listeners: {}", listener.local))?;
    }
    let stun = start_stun(&config, &transport, runtime)?;
    let mut built = Vec::new();
    for (index, mailbox) in mailboxes.into_iter().enumerate() {
        let waker = handles.get(index).cloned().context("a shard without queues")?;
        let (shard_anchor, media) = ShardAnchor::new(&anchor, index, move || waker.wake());
        let outside = ShardOutside {
            shard: index,
            cdrs: cdrs.sink(),
            traces: traces.clone(),
            calls: Arc::clone(&calls),
            resolver: lookups.clone(),
            users: lookup.as_ref().map(|_| questions.clone()),
            store: Arc::clone(&store),
            media,
            held: Held::default(),
            events: events.clone(),
            tap: tap.clone(),
        };
        let seed = rand::rng().next_u64();
        let mut machine = Core::new(Arc::clone(&core), rand::random(), clock);
        let (place, all) = (u32::try_from(index)?, u32::try_from(shards)?);
        machine.set_place(place, all);
        if index == PROBING_SHARD {
            machine.probe_trunks(clock.at, 0);
        }
        if let Some(tap) = &tap {
            machine.sample(tap.share().below());
        }
        let shard = Shard::new(run::Parts {
            index,
            machine,
            anchor: Box::new(shard_anchor),
            outside: Box::new(outside),
            mailbox,
            shards: handles.clone(),
            interfaces: Arc::clone(&interfaces),
            settings: crate::shard::Settings::default(),
            transport: transport.clone(),
            stats: stats.get(index).cloned().unwrap_or_default(),
            seed,
        });
        built.push(shard.context("cannot open the listeners")?);
    }
    if let Some(cluster) = &cluster {
        runtime.spawn(tell_of_cluster(cluster.handle.subscribe(), events.clone()));
    }
    start_resolver(&config, runtime, requests, handles.clone())?;
    let looked_up = lookup.as_ref().map(|lookup| Arc::clone(&lookup.stats));
    if let Some(lookup) = lookup {
        runtime.spawn(crate::users::lookup::serve(lookup, asked, Arc::from(handles.clone())));
    }
    let context = Context::new(Made {
        shards: handles,
        stats,
        anchor,
        kernel: kernel.report,
        calls,
        traces,
        events,
        tap: tap.map(|tap| tap.stats),
        stun,
        looked_up,
        cdrs: cdrs.sink(),
        log,
        doors: Arc::clone(&transport.doors),
        running: Running {
            path: path.to_owned(),
            loaded_ms: unix_ms(),
            config,
            core,
            keys,
            retiring: Vec::new(),
        },
        cluster,
        border: Arc::clone(&border),
    });
    runtime.spawn(load::measure(border, context.stats.clone()));
    serve(&context, runtime)?;
    {
        let _inside = runtime.enter();
        crate::store::standby::spawn(&context, standby);
    }
    runtime.spawn(Arc::clone(&context).close_retired());
    let (threads, ends) = spawn(built)?;
    tracing::info!(
        node = %context.node(),
        shards = threads.len(),
        interfaces = context.running.load().core.interfaces.len(),
        "running"
    );
    Ok(Parts { context, cdrs, threads, ends })
}

fn built(config: &Config, keys: &Keys) -> anyhow::Result<sbc_core::core::Config> {
    core_config(config, None, keys).map_err(|e| anyhow::anyhow!(e.join("; ")))
}

/// Opens the kernel relay that the configuration asks for; why it is or is not used is logged by
/// itself.
fn kernel_relay(config: &Config) -> anyhow::Result<kernel::Opened> {
    let way = match config.kernel {
        Kernel::Auto | Kernel::Required => kernel::Way::Auto,
        Kernel::Ebpf => kernel::Way::Ebpf,
        Kernel::Nftables => kernel::Way::Nftables,
        Kernel::Off => kernel::Way::Off,
    };
    // Nodes that share a network namespace must not share a table.
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let node: String = config.node.name.chars().take(64).map(plain).collect();
    let opened = kernel::open(&kernel::KernelConfig {
        way,
        table: format!("sbc_media_{node}"),
        flows_max: config.kernel_flows_max,
        devices: kernel_devices(config),
        ..kernel::KernelConfig::default()
    });
    if config.kernel == Kernel::Required && opened.offload.is_none() {
        anyhow::bail!("media.kernel is required: {}", opened.report.status().reason);
    }
    Ok(opened)
}

/// Devices to look at from the start: those named, and those where floating addresses will be.
fn kernel_devices(config: &Config) -> Vec<String> {
    let floating = config.cluster.iter().flat_map(|c| &c.addresses).map(|a| a.device.clone());
    let mut devices: Vec<String> =
        config.kernel_devices.iter().cloned().chain(floating.filter(|_| floats(config))).collect();
    devices.sort();
    devices.dedup();
    devices
}

/// Tells those who watch of what happens in the cluster.
async fn tell_of_cluster(mut from: sbc_cluster::Events, events: EventHub) {
    while let Some(event) = from.next().await {
        events.cluster(&event);
    }
}

/// A thread per shard, which tells when it ends by itself.
fn spawn(
    shards: Vec<Shard<Core>>,
) -> anyhow::Result<(Vec<JoinHandle<()>>, mpsc::Receiver<ShardEnd>)> {
    let (sender, ends) = mpsc::channel(shards.len().max(1));
    let mut threads = Vec::new();
    for (index, shard) in shards.into_iter().enumerate() {
        let sender = sender.clone();
        let body = move || {
            let ended = std::panic::catch_unwind(AssertUnwindSafe(|| shard.run()));
            let reason = match ended {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(panic) => panic_text(&*panic),
            };
            // There is room for every shard; without a receiver the process ends anyway.
            let _ = sender.try_send(ShardEnd { shard: index, reason });
        };
        threads.push(std::thread::Builder::new().name(format!("shard-{index}")).spawn(body)?);
    }
    Ok((threads, ends))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or("panic".to_owned())
}

fn start_resolver(
    config: &Config,
    runtime: &Runtime,
    requests: mpsc::Receiver<Request>,
    shards: Vec<Handle<Core>>,
) -> anyhow::Result<()> {
    let settings = dns::Settings {
        servers: config.dns.servers.clone(),
        timeout: config.dns.timeout,
        attempts: config.dns.attempts,
    };
    let _inside = runtime.enter();
    let client = Arc::new(dns::client(&settings).context("name servers")?);
    let shards: Arc<[Handle<Core>]> = Arc::from(shards);
    runtime.spawn(dns::serve(client, requests, move |shard, answer| {
        let handle = shards.get(shard).cloned();
        async move {
            if let Some(handle) = handle {
                deliver(&handle, answer).await;
            }
        }
    }));
    Ok(())
}

/// Opens the STUN server's ports; what they count.
fn start_stun(
    config: &Config,
    settings: &transport::Settings,
    runtime: &Runtime,
) -> anyhow::Result<Option<Arc<StunStats>>> {
    let Some(config) = &config.stun else { return Ok(None) };
    let server = Arc::new(StunServer::new(config, Instant::now()));
    let _inside = runtime.enter();
    for address in &config.listen {
        let socket = stun_server::open(*address, settings)
            .and_then(tokio::net::UdpSocket::from_std)
            .with_context(|| format!("STUN on {address}"))?;
        runtime.spawn(Arc::clone(&server).serve(socket));
    }
    Ok(Some(Arc::clone(&server.stats)))
}

/// An answer must reach its shard: calls wait for it. A full queue empties within moments.
async fn deliver(handle: &Handle<Core>, answer: Answer) {
    let mut command = Command::Resolved(answer);
    for _ in 0..1_000 {
        match handle.command(command) {
            Ok(()) => return,
            Err(back) => command = back,
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    tracing::error!("a shard takes no answers of the resolver");
}

/// Management and metrics.
fn serve(context: &Arc<Context>, runtime: &Runtime) -> anyhow::Result<()> {
    let running = context.running.load_full();
    let _inside = runtime.enter();
    if let Some(address) = running.config.metrics {
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind(address))
            .with_context(|| format!("metrics on {address}"))?;
        runtime.spawn(http::serve(listener, Arc::clone(context)));
    }
    admin::server::start(context, &running.config.admin, runtime)
}

fn cdr_settings(config: &Config) -> cdr::Settings {
    match &config.cdr {
        None => cdr::Settings { path: None, ..cdr::Settings::default() },
        Some(cdr) => cdr::Settings {
            path: Some(cdr.file.clone()),
            rotate_bytes: Some(cdr.rotate_bytes),
            rotate_every: cdr.rotate_every,
            keep: Some(cdr.keep),
            ..cdr::Settings::default()
        },
    }
}

/// Whether addresses come and go while the node runs.
fn floats(config: &Config) -> bool {
    config.cluster.as_ref().is_some_and(|c| c.failover == crate::config::FailoverMode::Address)
}

fn shards(config: &Config) -> usize {
    config.node.shards.clamp(1, 64)
}

/// What the media relay is told, at the start and when interfaces change.
pub(super) fn anchor_config(config: &Config) -> media_anchor::config::Config {
    media_anchor::config::Config {
        shards: shards(config),
        seed: rand::rng().next_u64(),
        free_bind: floats(config),
        ..config.media.clone()
    }
}

pub(super) fn transport_settings(config: &Config) -> transport::Settings {
    let from = &config.transport;
    transport::Settings {
        udp_buffer_bytes: from.udp_buffer_bytes,
        udp_queue_max: from.udp_queue,
        dscp: from.dscp,
        connect_timeout: from.connect_timeout,
        idle_timeout: from.idle_timeout,
        half_message_timeout: from.half_message_timeout,
        handshake_timeout: from.handshake_timeout,
        lifetime: from.lifetime,
        websocket_ping: from.websocket_ping,
        tcp_keepalive: from.tcp_keepalive,
        stun_per_second: from.stun_per_second,
        doors: Arc::new(transport::door::Doors::new(config.doors.clone())),
        connections_max: from.max_connections,
        connections_per_source_max: from.max_connections_per_source,
        sources: transport::sources::Sources::default(),
        handshakes_per_source_max: from.max_handshakes_per_source,
        handshakes: transport::sources::Sources::default(),
        first_message_timeout: from.first_message_timeout,
        unfinished_bytes_max: from.unfinished_bytes,
        unfinished: transport::unfinished::Total::default(),
        write_queue_bytes_max: from.write_queue_bytes,
        free_bind: floats(config),
        limits: config.sip_limits,
    }
}
