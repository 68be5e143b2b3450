//! Users from PostgreSQL: one query for one user, over a small pool, within a bounded time.
//!
//! Shards ask by a bounded channel and hear the answer as a command; they never wait. A database
//! that is down or slow costs whoever asks the answer that the policy has for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod};
use sbc_core::core::{Core, Input, ResolveId};
use sbc_core::registrar::{AskUser, Found, User};
use sbc_core::routing::Secret;
use tokio::sync::mpsc;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::shard::command::Command;
use crate::shard::queue::Handle;

/// A log line about a database that fails, at most so often.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// `[registrar.sql]`; values only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlConfig {
    /// A connection string or `postgresql://` URL.
    pub database: Secret,
    /// `$1` is the name, `$2` the realm.
    pub query: String,
    pub connections: usize,
    /// For a connection and the answer together.
    pub wait: Duration,
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
    pub found: AtomicU64,
    pub nobody: AtomicU64,
    pub unavailable: AtomicU64,
}

/// The database.
pub struct Sql {
    pool: Pool,
    query: String,
    wait: Duration,
    pub stats: Arc<LookupStats>,
    told: std::sync::Mutex<Option<Instant>>,
}

/// Whether a connection string makes sense.
///
/// # Errors
/// Why it does not, without what it holds.
pub fn check(database: &str) -> Result<(), String> {
    let config: tokio_postgres::Config = database.parse().map_err(|e| cause(&e))?;
    match config.get_ssl_mode() {
        tokio_postgres::config::SslMode::Require => Err("sslmode=require needs TLS, which is not \
             there: use a unix socket or a network of its own"
            .to_owned()),
        _ => Ok(()),
    }
}

fn cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

impl Sql {
    /// Connects when somebody asks.
    ///
    /// # Errors
    /// A connection string that makes no sense.
    pub fn new(config: &SqlConfig) -> anyhow::Result<Sql> {
        let mut database: tokio_postgres::Config =
            config.database.expose().parse().context("registrar.sql")?;
        database.connect_timeout(config.wait).application_name("sbc");
        // The server too gives up what nobody waits for any more.
        let limit = format!("-c statement_timeout={}", config.wait.as_millis().max(1));
        database.options(&match database.get_options() {
            Some(given) => format!("{given} {limit}"),
            None => limit,
        });
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(database, tokio_postgres::NoTls, recycling);
        let pool = Pool::builder(manager).max_size(config.connections).build()?;
        let (query, wait) = (config.query.clone(), config.wait);
        Ok(Sql { pool, query, wait, stats: Arc::default(), told: std::sync::Mutex::default() })
    }

    /// Who a user is; [`Found::Unavailable`] when the database does not tell in time.
    pub async fn find(&self, ask: &AskUser) -> Found {
        let answer = tokio::time::timeout(self.wait, self.ask(ask)).await;
        let (found, counter) = match answer {
            Ok(Ok(Some(user))) => (Found::User(Arc::new(user)), &self.stats.found),
            Ok(Ok(None)) => (Found::Nobody, &self.stats.nobody),
            Ok(Err(error)) => {
                self.tell(&format!("{error:#}"));
                (Found::Unavailable, &self.stats.unavailable)
            }
            Err(_) => {
                self.tell("no answer in time");
                (Found::Unavailable, &self.stats.unavailable)
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    async fn ask(&self, ask: &AskUser) -> anyhow::Result<Option<User>> {
        let client = Busy(Some(self.pool.get().await?));
        let Some(connection) = &client.0 else { return Ok(None) };
        let statement = connection.prepare_cached(&self.query).await?;
        let (name, realm): (&str, &str) = (&ask.name, &ask.realm);
        let values: [&(dyn ToSql + Sync); 2] = [&name, &realm];
        let given = values.get(..statement.params().len()).unwrap_or(&values);
        let row = connection.query_opt(&statement, given).await?;
        client.done();
        row.map(|row| user(&row)).transpose()
    }

    /// Whether names and passwords are right shows at the first question; what fails is told now and
    /// then.
    fn tell(&self, error: &str) {
        let Ok(mut told) = self.told.lock() else { return };
        if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            tracing::warn!(error, "users cannot be looked up in the database");
        }
    }
}

/// A connection in use. One that is left before its answer came is closed: the next to use it would
/// wait for that answer.
struct Busy(Option<Object>);

impl Busy {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Object::take(client));
        }
    }
}

/// Columns by name: `ha1_md5`, `ha1_sha256`, `addresses` (text with commas); each may be missing or
/// null.
fn user(row: &Row) -> anyhow::Result<User> {
    let text = |name: &str| -> anyhow::Result<Option<String>> {
        match row.columns().iter().position(|c| c.name() == name) {
            None => Ok(None),
            Some(at) => Ok(row.try_get::<_, Option<String>>(at)?),
        }
    };
    let ha1 = |name: &str| -> anyhow::Result<Option<Box<str>>> {
        Ok(text(name)?.map(|t| t.trim().to_ascii_lowercase().into()))
    };
    let addresses = text("addresses")?.unwrap_or_default();
    let aors = addresses.split(',').map(str::trim).filter(|a| a.contains('@'));
    Ok(User {
        md5: ha1("ha1_md5")?,
        sha256: ha1("ha1_sha256")?,
        sha512_256: None,
        aors: aors.map(Into::into).collect(),
    })
}

/// Answers the shards' questions for as long as there are shards.
pub async fn serve(
    sql: Arc<Sql>,
    mut questions: mpsc::Receiver<Question>,
    shards: Arc<[Handle<Core>]>,
) {
    while let Some(Question { shard, id, ask }) = questions.recv().await {
        let (sql, handle) = (Arc::clone(&sql), shards.get(shard).cloned());
        tokio::spawn(async move {
            let found = sql.find(&ask).await;
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
