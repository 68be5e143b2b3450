//! Structured logs: for people or as JSON lines, with a level that can change while running.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For a terminal.
    #[default]
    Pretty,
    /// One JSON object per line.
    Json,
}

/// Changes the level of a running node.
#[derive(Clone)]
pub struct LogControl {
    reload: reload::Handle<EnvFilter, Registry>,
    current: Arc<Mutex<String>>,
}

/// The text is no level and no filter directive.
#[derive(Debug, thiserror::Error)]
#[error("bad log level {level:?}: {reason}")]
pub struct BadLevel {
    level: String,
    reason: String,
}

impl LogControl {
    /// The filter in force.
    pub fn level(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another filter in force: `debug`, or `info,sbc_core::b2bua=trace`.
    ///
    /// # Errors
    /// When the text is no filter; the old one stays.
    pub fn set(&self, level: &str) -> Result<(), BadLevel> {
        let filter = parse(level)?;
        let failed = |e: reload::Error| BadLevel { level: level.to_owned(), reason: e.to_string() };
        self.reload.reload(filter).map_err(failed)?;
        level.clone_into(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

fn parse(level: &str) -> Result<EnvFilter, BadLevel> {
    EnvFilter::builder()
        .parse(level)
        .map_err(|e| BadLevel { level: level.to_owned(), reason: e.to_string() })
}

/// Installs the subscriber of the process, which writes to standard error.
///
/// # Errors
/// When `level` is no filter. A subscriber that is installed already (tests) is left alone.
pub fn init(format: Format, level: &str) -> Result<LogControl, BadLevel> {
    let (filter, reload) = reload::Layer::new(parse(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    let installed = match format {
        Format::Pretty => {
            let ansi = std::io::stderr().is_terminal();
            let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
            registry.with(layer.with_ansi(ansi).with_target(true)).try_init()
        }
        Format::Json => {
            let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
            registry.with(layer.json().flatten_event(true)).try_init()
        }
    };
    if let Err(error) = installed {
        tracing::debug!(%error, "a log subscriber is installed already");
    }
    Ok(LogControl { reload, current: Arc::new(Mutex::new(level.to_owned())) })
}
