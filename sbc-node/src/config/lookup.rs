//! `[registrar.sql]` and `[registrar.radius]`: where users are looked up that nobody here knows.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use sbc_core::registrar::RemotePolicy;
use sbc_core::routing::Secret;
use serde::Deserialize;
use toml::Spanned;

use super::convert::Context;
use super::raw;
use super::registrar::Registrar;
use super::value::Span;
use crate::users::lookup::LookupConfig;
use crate::users::radius::RadiusConfig;
use crate::users::radius::packet::{Dialect, Form};
use crate::users::sql::SqlConfig;

/// `[registrar.sql]` as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct SqlText {
    database: Spanned<String>,
    ca: Option<Spanned<PathBuf>>,
    query: String,
    connections: Option<Spanned<usize>>,
    wait: Option<Spanned<Span>>,
    keep: Option<Spanned<Span>>,
    keep_unknown: Option<Spanned<Span>>,
    max_users: Option<Spanned<usize>>,
    max_waiting: Option<Spanned<usize>>,
    unavailable: Option<Spanned<u16>>,
}

impl std::fmt::Debug for SqlText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqlText").field("query", &self.query).finish_non_exhaustive()
    }
}

/// `[registrar.radius]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RadiusText {
    servers: Vec<Spanned<ServerText>>,
    #[serde(default)]
    dialect: DialectText,
    nas_identifier: Option<Spanned<String>>,
    service_type: Option<u32>,
    #[serde(default = "yes")]
    require_message_authenticator: bool,
    timeout: Option<Spanned<Span>>,
    attempts: Option<Spanned<u32>>,
    wait: Option<Spanned<Span>>,
    dead_time: Option<Spanned<Span>>,
    requests: Option<Spanned<usize>>,
    max_waiting: Option<Spanned<usize>>,
    unavailable: Option<Spanned<u16>>,
}

fn yes() -> bool {
    true
}

/// One server as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ServerText {
    address: SocketAddr,
    secret: Spanned<String>,
}

impl std::fmt::Debug for ServerText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerText").field("address", &self.address).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum DialectText {
    #[default]
    Rfc5090,
    Sterman,
}

/// The system that is asked for users.
pub(super) fn lookup(cx: &mut Context<'_>, file: &raw::File) -> Option<LookupConfig> {
    let registrar = file.registrar.as_ref()?.get_ref();
    if let (Some(_), Some(radius)) = (&registrar.sql, &registrar.radius) {
        cx.problem(radius.span(), "users are looked up by sql or by radius, not by both");
    }
    match (&registrar.sql, &registrar.radius) {
        (Some(text), _) => Some(LookupConfig::Sql(sql(cx, text.get_ref()))),
        (None, Some(text)) => {
            let name = file.node.name.as_deref().unwrap_or(cx.surroundings.hostname).to_owned();
            Some(LookupConfig::Radius(radius(cx, text, &name)))
        }
        (None, None) => None,
    }
}

fn sql(cx: &mut Context<'_>, raw: &SqlText) -> SqlConfig {
    let secure = crate::users::sql::check(raw.database.get_ref());
    if let Err(why) = &secure {
        cx.problem(raw.database.span(), format!("database: {why}"));
    }
    let ca = raw.ca.as_ref().map(|path| (path.span(), cx.path(path.get_ref())));
    if let Some((span, path)) = &ca {
        if secure == Ok(false) {
            cx.problem(span.clone(), "ca is for a database with sslmode=require");
        }
        if let Err(problem) = crate::transport::tls::roots(Some(path)) {
            cx.problem(span.clone(), problem.to_string());
        }
    }
    SqlConfig {
        database: Secret::new(raw.database.get_ref()),
        ca: ca.map(|(_, path)| path),
        query: raw.query.clone(),
        connections: cx.bounded(raw.connections.as_ref(), 4, 1..=64),
        wait: cx.span(raw.wait.as_ref(), Duration::from_secs(1)),
    }
}

fn radius(cx: &mut Context<'_>, text: &Spanned<RadiusText>, node: &str) -> RadiusConfig {
    let raw = text.get_ref();
    if raw.servers.is_empty() || raw.servers.len() > 8 {
        cx.problem(text.span(), "radius has 1 to 8 servers");
    }
    for server in raw.servers.iter().map(Spanned::get_ref) {
        if server.secret.get_ref().is_empty() {
            cx.problem(server.secret.span(), "the secret is empty: anybody could answer");
        }
    }
    let server = |s: &Spanned<ServerText>| {
        let server = s.get_ref();
        (server.address, Secret::new(server.secret.get_ref()))
    };
    let name = raw.nas_identifier.as_ref();
    if let Some(name) = name.filter(|n| !(1..=253).contains(&n.get_ref().len())) {
        cx.problem(name.span(), "nas-identifier has 1 to 253 bytes");
    }
    RadiusConfig {
        servers: raw.servers.iter().map(server).collect(),
        form: Form {
            dialect: match raw.dialect {
                DialectText::Rfc5090 => Dialect::Rfc5090,
                DialectText::Sterman => Dialect::Sterman,
            },
            nas_identifier: name.map_or_else(|| node.to_owned(), |n| n.get_ref().clone()),
            service_type: raw.service_type.unwrap_or(15),
            proved_answers: raw.require_message_authenticator,
        },
        attempts: cx.bounded(raw.attempts.as_ref(), 2, 1..=10),
        timeout: cx.span(raw.timeout.as_ref(), Duration::from_millis(500)),
        wait: cx.span(raw.wait.as_ref(), Duration::from_secs(3)),
        dead_time: cx.span(raw.dead_time.as_ref(), Duration::from_secs(30)),
        requests_max: cx.bounded(raw.requests.as_ref(), 256, 1..=4_096),
    }
}

/// What each shard remembers of the users of another system, and what it answers without it.
pub(super) fn remote(cx: &mut Context<'_>, raw: &Registrar, shards: usize) -> Option<RemotePolicy> {
    let each = |all: usize| all.div_ceil(shards.max(1));
    let sql = raw.sql.as_ref().map(Spanned::get_ref);
    let radius = raw.radius.as_ref().map(Spanned::get_ref);
    let (unavailable, waiting) = match (sql, radius) {
        (Some(sql), _) => (sql.unavailable.as_ref(), sql.max_waiting.as_ref()),
        (None, Some(radius)) => (radius.unavailable.as_ref(), radius.max_waiting.as_ref()),
        (None, None) => return None,
    };
    if let Some(text) = unavailable.filter(|u| ![480, 503].contains(u.get_ref())) {
        cx.problem(text.span(), "unavailable is 503 or 480");
    }
    let keep = sql.and_then(|s| s.keep.as_ref());
    let keep_unknown = sql.and_then(|s| s.keep_unknown.as_ref());
    let users = sql.and_then(|s| s.max_users.as_ref());
    Some(RemotePolicy {
        keep: cx.span(keep, Duration::from_secs(60)),
        keep_unknown: cx.span(keep_unknown, Duration::from_secs(10)),
        users_max: each(cx.bounded(users, 100_000, 1..=10_000_000)),
        waiting_max: each(cx.bounded(waiting, 1_000, 1..=100_000)),
        unavailable: unavailable.map_or(503, |u| *u.get_ref()),
    })
}
