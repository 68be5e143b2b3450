//! Applying a configuration: everything is built first, then given to every shard, or nothing is.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::context::Context;
use super::interfaces::{self, Retiring, merge, retiring};
use super::start::{anchor_config, transport_settings};
use crate::config::{self, Config, Keys, Problem};
use crate::shard::listen::Opened;
use crate::shard::stats::Kind;
use crate::telemetry::metrics::{Sample, Source};
use crate::telemetry::time::unix_ms;

/// The configuration in force.
#[derive(Clone)]
pub struct Running {
    pub path: PathBuf,
    pub loaded_ms: u64,
    pub config: Config,
    /// As the shards have it.
    pub core: Arc<sbc_core::core::Config>,
    /// The same from start to end.
    pub keys: Keys,
    /// Interfaces with listeners that are open only for the calls of before.
    pub retiring: Vec<Retiring>,
}

/// What became of a reload.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub applied: bool,
    pub problems: Vec<Problem>,
    pub changes: Vec<String>,
}

impl Outcome {
    /// Tells the log.
    pub fn log(&self) {
        for problem in &self.problems {
            tracing::error!(line = problem.line, "configuration: {}", problem.message);
        }
        for change in &self.changes {
            tracing::info!("configuration: {change}");
        }
        if self.applied {
            tracing::info!(changes = self.changes.len(), "configuration reloaded");
        } else {
            tracing::error!("configuration not reloaded: the old one stays in force");
        }
    }
}

/// How often the configuration was reloaded, by SIGHUP or by an operator.
#[derive(Debug, Default)]
pub struct Reloads {
    applied: AtomicU64,
    refused: AtomicU64,
}

impl Reloads {
    fn count(&self, outcome: &Outcome) {
        let counter = if outcome.applied { &self.applied } else { &self.refused };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Source for Arc<Reloads> {
    fn samples(&self, out: &mut Vec<Sample>) {
        for (outcome, counter) in [("applied", &self.applied), ("refused", &self.refused)] {
            out.push(Sample {
                name: "sbc_config_reloads",
                help: "Reloads of the configuration",
                kind: Kind::Counter,
                labels: vec![("outcome", outcome.to_owned())],
                value: counter.load(Ordering::Relaxed) as f64,
            });
        }
    }
}

/// What the shards' cores are given. Counters and health of trunks, and interfaces that calls may
/// still use, are taken over from `previous`.
///
/// # Errors
/// Every reason why the routing does not build.
pub fn core_config(
    config: &Config,
    previous: Option<&sbc_core::core::Config>,
    keys: &Keys,
) -> Result<sbc_core::core::Config, Vec<String>> {
    let core = config.core(previous.map(|p| &*p.routing), keys, Instant::now());
    let mut core =
        core.map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<String>>())?;
    core.interfaces = merge(previous.map_or(&[], |p| &p.interfaces), &core.interfaces);
    Ok(core)
}

impl Context {
    /// Reads the file and applies it, atomically or not at all. No call is dropped: those that
    /// are up keep what they were set up with.
    pub async fn reload(&self) -> Outcome {
        let outcome = self.read_and_apply().await;
        self.reloads.count(&outcome);
        outcome
    }

    async fn read_and_apply(&self) -> Outcome {
        let _one_at_a_time = self.reloading.lock().await;
        let running = self.running.load_full();
        let path = running.path.clone();
        let names: Vec<Arc<str>> =
            running.core.interfaces.iter().map(|i| Arc::clone(&i.name)).collect();
        let loaded = tokio::task::spawn_blocking(move || config::load_known(&path, &names)).await;
        let new = match loaded {
            Ok(Ok(new)) => new,
            Ok(Err(problems)) => return Outcome { problems, ..Outcome::default() },
            Err(error) => return Outcome::refused(error.to_string()),
        };
        let changes = config::diff(&running.config, &new);
        let restart: Vec<Problem> = changes
            .iter()
            .filter(|change| change.restart)
            .map(|change| Problem { line: 0, message: change.to_string() })
            .collect();
        if !restart.is_empty() {
            return Outcome { problems: restart, ..Outcome::default() };
        }
        let changes = changes.iter().map(ToString::to_string).collect();
        let core = match core_config(&new, Some(&running.core), &running.keys) {
            Ok(core) => core,
            Err(errors) => return Outcome::refused(errors.join("; ")),
        };
        let opened = match self.prepare(&running, &new, &core) {
            Ok(opened) => opened,
            Err(error) => return Outcome::refused(format!("{error:#}")),
        };
        if new.log.level != running.config.log.level
            && let Err(error) = self.log.set(&new.log.level)
        {
            return Outcome::refused(error.to_string());
        }
        if let Err(error) = self.anchor.update(&anchor_config(&new)) {
            return Outcome::refused(error.to_string());
        }
        // Renewed certificates too: their files were read again whether or not the text changed.
        self.doors.replace(new.doors.clone());
        self.border.configure(&new);
        let mut core = core;
        self.border.given_to(&mut core);
        let core = Arc::new(core);
        if let Some(cluster) = &self.cluster {
            cluster.configured(&core);
        }
        self.give(&core, opened).await;
        let retiring = retiring(&core.interfaces, &running);
        self.running.store(Arc::new(Running {
            path: running.path.clone(),
            loaded_ms: unix_ms(),
            config: new,
            core,
            keys: running.keys.clone(),
            retiring,
        }));
        Outcome { applied: true, problems: Vec::new(), changes }
    }
}

impl Context {
    /// Opens what a new configuration needs. Nothing that calls use is touched.
    fn prepare(
        &self,
        running: &Running,
        new: &Config,
        core: &sbc_core::core::Config,
    ) -> anyhow::Result<Vec<Vec<Opened>>> {
        let settings = transport_settings(new);
        interfaces::probe_media(&running.config.media, &new.media, &settings)?;
        let before = &running.core.interfaces;
        interfaces::open_new(before, &core.interfaces, self.shards.len(), &settings)
    }
}

impl Outcome {
    fn refused(message: String) -> Outcome {
        Outcome { problems: vec![Problem { line: 0, message }], ..Outcome::default() }
    }
}
