//! The shards' questions about users that another system knows: one database, or servers of RADIUS.
//!
//! Shards ask by a bounded channel and hear the answer as a command; they never wait. A system that is
//! down or slow costs whoever asks the answer that the policy has for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sbc_core::core::{Core, Input, ResolveId};
use sbc_core::registrar::{AskUser, Found};
use tokio::sync::mpsc;

use super::radius::{Radius, RadiusConfig, RadiusStats};
use super::sql::{Sql, SqlConfig};
use crate::shard::command::Command;
use crate::shard::queue::Handle;

/// A log line about a system that fails, at most so often.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Where users are looked up; values only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupConfig {
    Sql(SqlConfig),
    Radius(RadiusConfig),
}

/// A question of a shard.
#[derive(Debug)]
pub struct Question {
    pub shard: usize,
    pub id: ResolveId,
    pub ask: Box<AskUser>,
}

/// What became of the questions.
#[derive(Debug, Default)]
pub struct LookupStats {
    /// The user is known, or (RADIUS) has the right password.
    pub found: AtomicU64,
    pub nobody: AtomicU64,
    /// RADIUS: a wrong password or no such user.
    pub wrong: AtomicU64,
    pub unavailable: AtomicU64,
    /// Of the packets, where the system is RADIUS.
    pub radius: Option<Arc<RadiusStats>>,
}

enum System {
    Sql(Sql),
    Radius(Radius),
}

/// The other system.
pub struct Lookup {
    system: System,
    pub stats: Arc<LookupStats>,
    told: std::sync::Mutex<Option<Instant>>,
}

impl Lookup {
    /// Nothing is connected to before somebody asks.
    ///
    /// # Errors
    /// Values that make no sense.
    pub fn new(config: &LookupConfig) -> anyhow::Result<Lookup> {
        let system = match config {
            LookupConfig::Sql(config) => System::Sql(Sql::new(config)?),
            LookupConfig::Radius(config) => System::Radius(Radius::new(config)),
        };
        let radius = match &system {
            System::Sql(_) => None,
            System::Radius(radius) => Some(Arc::clone(&radius.stats)),
        };
        let stats = Arc::new(LookupStats { radius, ..LookupStats::default() });
        Ok(Lookup { system, stats, told: std::sync::Mutex::default() })
    }

    /// Who a user is; [`Found::Unavailable`] when nobody tells in time.
    pub async fn find(&self, ask: &AskUser) -> Found {
        let answer = match &self.system {
            System::Sql(sql) => tokio::time::timeout(sql.wait(), sql.find(ask)).await,
            System::Radius(radius) => tokio::time::timeout(radius.wait(), radius.judge(ask)).await,
        };
        let found = match answer {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                self.tell(&format!("{error:#}"));
                Found::Unavailable
            }
            Err(_) => {
                self.tell("no answer in time");
                Found::Unavailable
            }
        };
        let counter = match &found {
            Found::User(_) | Found::Right(_) => &self.stats.found,
            Found::Nobody => &self.stats.nobody,
            Found::Wrong => &self.stats.wrong,
            Found::Unavailable => &self.stats.unavailable,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Whether names and secrets are right shows at the first question; what fails is told now and
    /// then.
    fn tell(&self, error: &str) {
        let Ok(mut told) = self.told.lock() else { return };
        if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            tracing::warn!(error, "users cannot be looked up");
        }
    }
}

/// Answers the shards' questions for as long as there are shards.
pub async fn serve(
    lookup: Arc<Lookup>,
    mut questions: mpsc::Receiver<Question>,
    shards: Arc<[Handle<Core>]>,
) {
    while let Some(Question { shard, id, ask }) = questions.recv().await {
        let (lookup, handle) = (Arc::clone(&lookup), shards.get(shard).cloned());
        tokio::spawn(async move {
            let found = lookup.find(&ask).await;
            if let Some(handle) = handle {
                deliver(&handle, Input::UserFound { id, found }).await;
            }
        });
    }
}

/// An answer must reach its shard: a request waits for it. A full queue empties within moments.
async fn deliver(handle: &Handle<Core>, input: Input) {
    let mut command = Command::Input(input);
    while let Err(back) = handle.command(command) {
        command = back;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
