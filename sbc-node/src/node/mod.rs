//! One running node: everything put together, signals, drain, reload, the end.
//!
//! `start.rs` builds it, `context.rs` is what management sees of it, `reload.rs` applies a new
//! configuration, `interfaces.rs` what of it concerns sockets. SIP never comes by here.

mod context;
mod interfaces;
mod peers;
mod privilege;
mod reload;
pub mod replication;
mod start;
mod supervisor;
mod users;

pub use context::{Context, NodeState};
pub use reload::{Running, core_config};
pub use users::UsersError;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sbc_core::b2bua::WallClock;
use sbc_core::core::{Command as CoreCommand, Input};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::config;
use crate::shard::command::Command;
use crate::telemetry::log::{self, LogControl};
use crate::telemetry::time::unix_ms;
use start::{Parts, ShardEnd};
use supervisor::Supervisor;

/// Exit code of a node whose configuration is bad.
const EXIT_CONFIG: u8 = 2;
/// Exit code of a node that could not start.
const EXIT_START: u8 = 1;
/// Exit code of a node that lost a shard: the supervisor starts another.
const EXIT_PANIC: u8 = 70;
/// How long BYEs may take to be answered at the end of the drain time.
const HANGUP_TIME: Duration = Duration::from_secs(5);
/// How long trunks may take to confirm that our registration is taken back.
const WITHDRAW_TIME: Duration = Duration::from_secs(2);
/// How long the other nodes of a cluster may take to carry on what this one had, before a stop.
const MOVE_TIME: Duration = Duration::from_secs(10);
/// The shards' clocks are tied to the system's this often.
const CLOCK_EVERY: Duration = Duration::from_secs(60);

/// `sbc-node run`: until it is told to stop.
pub fn run(path: &Path) -> ExitCode {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(problems) => {
            for problem in problems {
                eprintln!("{}", located(path, &problem));
            }
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let format = match config.log.format {
        config::LogFormat::Pretty => log::Format::Pretty,
        config::LogFormat::Json => log::Format::Json,
    };
    let log = match log::init(format, &config.log.level) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    match start_and_supervise(path, config, log) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "cannot start");
            eprintln!("sbc-node: {error:#}");
            ExitCode::from(EXIT_START)
        }
    }
}

/// `file:line: message`, or without a line where none is to blame.
pub fn located(path: &Path, problem: &config::Problem) -> String {
    match problem.line {
        0 => format!("{}: {}", path.display(), problem.message),
        line => format!("{}:{line}: {}", path.display(), problem.message),
    }
}

/// Four sockets a call: all the descriptors that the hard limit allows.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => tracing::debug!(limit, "file descriptors"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of file descriptors"),
    }
}

fn start_and_supervise(
    path: &Path,
    config: config::Config,
    log: LogControl,
) -> anyhow::Result<ExitCode> {
    raise_descriptor_limit();
    if let Err(error) = privilege::raise() {
        tracing::warn!(%error, "cannot put the permitted capabilities into effect");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("slow")
        .enable_all()
        .build()?;
    let signals = {
        let _inside = runtime.enter();
        Signals::new()?
    };
    let (up, is_up) = oneshot::channel();
    let early = runtime.spawn(signals.leave_early(is_up));
    let Parts { context, cdrs, threads, ends } = start::start(path, config, log, &runtime)?;
    drop(up);
    let signals = runtime.block_on(early)?;
    let supervisor = Supervisor::of_environment();
    supervisor.ready();
    runtime.spawn(supervisor.clone().feed(Arc::clone(&context)));
    let code = runtime.block_on(supervise(Arc::clone(&context), ends, &supervisor, signals));
    for handle in &context.shards {
        // A shard that is gone needs no command.
        let _ = handle.command(Command::Stop);
    }
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a shard ended by a panic");
        }
    }
    context.border.stop();
    if let Some(cluster) = &context.cluster {
        cluster.stop(&runtime);
    }
    cdrs.stop();
    runtime.shutdown_timeout(Duration::from_millis(200));
    tracing::info!("stopped");
    Ok(code)
}

/// What the process is told from outside, from its first moment to its last: a signal that comes when
/// nobody waits for it is kept.
struct Signals {
    stop: StopSignals,
    hup: Signal,
}

/// SIGTERM and SIGINT: to end.
struct StopSignals {
    term: Signal,
    int: Signal,
}

impl StopSignals {
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

impl Signals {
    /// Within a runtime.
    fn new() -> std::io::Result<Self> {
        let term = signal(SignalKind::terminate())?;
        let int = signal(SignalKind::interrupt())?;
        Ok(Signals { stop: StopSignals { term, int }, hup: signal(SignalKind::hangup())? })
    }

    /// A node that waits to be let into its cluster carries nothing yet: it ends at once. As the first
    /// process of a container it would otherwise not hear the signal at all.
    async fn leave_early(mut self, is_up: oneshot::Receiver<()>) -> Self {
        tokio::select! {
            () = self.stop.recv() => {
                tracing::info!("stopped while starting");
                std::process::exit(0);
            }
            _ = is_up => self,
        }
    }
}

/// Waits for signals and for the end of a shard.
async fn supervise(
    context: Arc<Context>,
    mut ends: tokio::sync::mpsc::Receiver<ShardEnd>,
    supervisor: &Supervisor,
    mut signals: Signals,
) -> ExitCode {
    let mut clock = tokio::time::interval(CLOCK_EVERY);
    loop {
        tokio::select! {
            () = signals.stop.recv() => break,
            _ = signals.hup.recv() => {
                supervisor.reloading();
                context.cdrs.reopen();
                let outcome = context.reload().await;
                outcome.log();
                supervisor.ready();
            }
            _ = clock.tick() => set_clocks(&context),
            Some(end) = ends.recv() => return lost_shard(&end),
        }
    }
    supervisor.stopping(context.running.load().config.node.drain_time + HANGUP_TIME * 2);
    tokio::select! {
        () = stop(&context) => ExitCode::SUCCESS,
        Some(end) = ends.recv() => lost_shard(&end),
        () = signals.stop.recv() => {
            tracing::warn!("second signal: not waiting any longer");
            ExitCode::SUCCESS
        }
    }
}

fn lost_shard(end: &ShardEnd) -> ExitCode {
    tracing::error!(shard = end.shard, reason = %end.reason, "a shard died: the process ends");
    eprintln!("sbc-node: shard {} died: {}", end.shard, end.reason);
    ExitCode::from(EXIT_PANIC)
}

/// No new calls; what others can carry goes to them; wait for the rest that is up, and hang up on what
/// is left then.
async fn stop(context: &Context) {
    let drain = context.running.load().config.node.drain_time;
    tracing::info!(drain_s = drain.as_secs(), "stopping: new calls get 503");
    context.set_state(NodeState::Stopping);
    context.broadcast(|| Input::Command(CoreCommand::Drain(true))).await;
    if let Some(cluster) = &context.cluster {
        let moved = cluster.move_away(drain.min(MOVE_TIME)).await;
        tracing::info!(moved, "calls and addresses to the other nodes");
        if !moved {
            cluster.withdraw_registrations();
        }
    }
    if !context.calls_gone(Instant::now() + drain).await {
        let left = context.call_count().await;
        tracing::warn!(calls = left, "drain time over: hanging up");
        context.broadcast(|| Input::Command(CoreCommand::HangupAll)).await;
        if !context.calls_gone(Instant::now() + HANGUP_TIME).await {
            tracing::error!(calls = context.call_count().await, "calls left behind");
        }
    }
    if !context.registrations_gone(Instant::now() + WITHDRAW_TIME).await {
        tracing::warn!("registrations with trunks were not taken back in time: they run out");
    }
}

fn set_clocks(context: &Context) {
    let clock = WallClock { at: Instant::now(), unix_ms: unix_ms() };
    for handle in &context.shards {
        let job = Box::new(
            move |core: &mut sbc_core::core::Core,
                  _: Instant,
                  _: &mut dyn sbc_core::media::Anchor| core.set_clock(clock),
        );
        // Full: the next minute does as well.
        let _ = handle.command(Command::Job(job));
    }
}
