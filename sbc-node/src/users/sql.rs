//! Users from PostgreSQL: one query for one user, over a small pool.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod};
use sbc_core::registrar::{AskUser, Found, User};
use sbc_core::routing::Secret;
use tokio_postgres::Row;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::types::ToSql;

use super::sql_tls::Tls;

/// `[registrar.sql]`; values only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlConfig {
    /// A connection string or `postgresql://` URL.
    pub database: Secret,
    /// Authorities of the server's certificate; the system's otherwise. Used with `sslmode=require`.
    pub ca: Option<PathBuf>,
    /// `$1` is the name, `$2` the realm.
    pub query: String,
    pub connections: usize,
    /// For a connection and the answer together.
    pub wait: Duration,
}

/// The database.
pub struct Sql {
    pool: Pool,
    query: String,
    wait: Duration,
}

/// Whether a connection string makes sense; yields whether it wants TLS (`sslmode=require`).
///
/// # Errors
/// Why it does not, without what it holds.
pub fn check(database: &str) -> Result<bool, String> {
    let config: tokio_postgres::Config = database.parse().map_err(|e| cause(&e))?;
    let secure = config.get_ssl_mode() == SslMode::Require;
    let unix = config.get_hosts().iter().any(|host| matches!(host, Host::Unix(_)));
    match secure && unix {
        true => Err("sslmode=require needs a host, not a unix socket".to_owned()),
        false => Ok(secure),
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
        let manager = match database.get_ssl_mode() {
            SslMode::Require => {
                let roots = crate::transport::tls::roots(config.ca.as_deref())?;
                Manager::from_config(database, Tls::new(roots)?, recycling)
            }
            _ => Manager::from_config(database, tokio_postgres::NoTls, recycling),
        };
        let pool = Pool::builder(manager).max_size(config.connections).build()?;
        let (query, wait) = (config.query.clone(), config.wait);
        Ok(Sql { pool, query, wait })
    }

    /// How long an answer may take.
    pub fn wait(&self) -> Duration {
        self.wait
    }

    /// Who a user is.
    ///
    /// # Errors
    /// The database has not told; to be bounded by [`Sql::wait`].
    pub async fn find(&self, ask: &AskUser) -> anyhow::Result<Found> {
        let user = self.ask(ask).await?;
        Ok(user.map_or(Found::Nobody, |user| Found::User(Arc::new(user))))
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
