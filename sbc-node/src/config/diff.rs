//! What differs between two configurations, in words, and what of it needs a restart.
//!
//! Works on the documents as written, so that nothing can be forgotten; secrets are blanked before
//! they get here.

use std::collections::BTreeSet;
use std::fmt;

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::Config;
use crate::users::lookup::LookupConfig;

/// Keys whose values are never shown.
const SECRET_KEYS: [&str; 6] = ["password", "database", "token", "ha1-md5", "ha1-sha256", "secret"];

/// Places that only a restart changes; everything below them counts.
const NEEDS_RESTART: [&str; 27] = [
    "node.name",
    "node.shards",
    "media.relay-threads",
    "media.max-sessions",
    "media.kernel",
    "media.kernel-devices",
    "media.kernel-flows-max",
    "media.coalesce",
    "media.quarantine",
    "media.learning-packets",
    "media.learning-grace",
    "media.learning-window",
    "dns",
    "cdr",
    "log.format",
    "transport",
    "stun",
    "sip.t1",
    "sip.t2",
    "sip.t4",
    "guard.kernel",
    "guard.devices",
    "metrics.listen",
    "admin",
    "trace",
    "hep",
    "cluster",
];

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where: `trunk "carrier" max-calls`.
    pub place: String,
    /// What: `30 → 50`, `added`, `removed`, `changed`.
    pub what: String,
    /// A running node cannot take it over.
    pub restart: bool,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let restart = if self.restart { " (needs a restart)" } else { "" };
        write!(f, "{}: {}{restart}", self.place, self.what)
    }
}

/// Every difference from `old` to `new`, in the order of the keys.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    tables(&old.document, &new.document, "", "", &mut changes);
    changes.extend(files(old, new));
    changes
}

/// Differences that the documents do not show: the content of prefix files and secrets.
fn files(old: &Config, new: &Config) -> Vec<Change> {
    use sbc_core::routing::RouteTarget;
    let mut changes = Vec::new();
    let change =
        |place: String| Change { place, what: "content changed".to_owned(), restart: false };
    for route in &new.routing.routes {
        let before = old.routing.routes.iter().find(|r| r.name == route.name);
        if let (Some(RouteTarget::Table(a)), RouteTarget::Table(b)) =
            (before.map(|r| &r.target), &route.target)
            && a != b
        {
            changes.push(change(format!("prefixes of route \"{}\"", route.name)));
        }
    }
    let of = |c: &Config| c.registrar.as_ref().map(|r| r.users.clone());
    if let (Some(before), Some(after)) = (of(old), of(new))
        && old.users.as_ref().map(|u| &u.file) == new.users.as_ref().map(|u| &u.file)
        && before != after
        && new.users.as_ref().is_some_and(|u| u.file.is_some())
    {
        changes.push(change("users".to_owned()));
    }
    if old.lookup != new.lookup {
        let radius = matches!(&new.lookup, Some(LookupConfig::Radius(_)));
        let (place, what) = match radius {
            true => ("registrar radius".to_owned(), "other servers or secrets".to_owned()),
            false => ("registrar sql".to_owned(), "another database or query".to_owned()),
        };
        changes.push(Change { place, what, restart: true });
    }
    for trunk in &new.routing.trunks {
        let before = old.routing.trunks.iter().find(|t| t.name == trunk.name);
        if before.is_some_and(|t| t.credentials != trunk.credentials) {
            changes.push(change(format!("credentials of trunk \"{}\"", trunk.name)));
        }
    }
    changes
}

/// The document as plain values, secrets blanked.
pub(super) fn document(table: &DeTable<'_>) -> Table {
    let entry = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        let key: &std::borrow::Cow<'_, str> = key.get_ref();
        let value = if SECRET_KEYS.contains(&&**key) {
            Value::String("<secret>".to_owned())
        } else {
            plain(value.get_ref())
        };
        (key.to_string(), value)
    };
    table.iter().map(entry).collect()
}

fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(s) => Value::String(s.to_string()),
        DeValue::Integer(i) => i64::from_str_radix(i.as_str(), i.radix())
            .map_or_else(|_| Value::String(i.to_string()), Value::Integer),
        DeValue::Float(x) => {
            x.as_str().parse().map_or_else(|_| Value::String(x.to_string()), Value::Float)
        }
        DeValue::Boolean(b) => Value::Boolean(*b),
        DeValue::Datetime(d) => Value::Datetime(*d),
        DeValue::Array(items) => Value::Array(items.iter().map(|i| plain(i.get_ref())).collect()),
        DeValue::Table(table) => Value::Table(document(table)),
    }
}

/// `path` is the dotted key path for `NEEDS_RESTART`, `place` the same in words.
fn tables(old: &Table, new: &Table, path: &str, place: &str, changes: &mut Vec<Change>) {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let place = if place.is_empty() { key.clone() } else { format!("{place} {key}") };
        values(old.get(key), new.get(key), &path, &place, changes);
    }
}

fn values(
    old: Option<&Value>,
    new: Option<&Value>,
    path: &str,
    place: &str,
    changes: &mut Vec<Change>,
) {
    let what = match (old, new) {
        (a, b) if a == b => return,
        (Some(Value::Table(a)), Some(Value::Table(b))) => {
            return tables(a, b, path, place, changes);
        }
        (a, b) if is_items(a) && is_items(b) => return items(a, b, path, place, changes),
        (None, Some(Value::Table(_))) => "added".to_owned(),
        (Some(Value::Table(_)), None) => "removed".to_owned(),
        (None, Some(b)) => format!("set to {b}"),
        (Some(a), None) => format!("no longer set (was {a})"),
        (Some(a), Some(b)) => format!("{a} → {b}"),
        (None, None) => return,
    };
    let restart = NEEDS_RESTART
        .iter()
        .any(|p| path == *p || path.strip_prefix(p).is_some_and(|rest| rest.starts_with('.')));
    changes.push(Change { place: place.to_owned(), what, restart });
}

/// An array of tables, or nothing at all.
fn is_items(value: Option<&Value>) -> bool {
    match value {
        None => true,
        Some(Value::Array(items)) => items.iter().all(Value::is_table),
        Some(_) => false,
    }
}

/// Named items are compared by name, others by place in the list.
fn items(
    old: Option<&Value>,
    new: Option<&Value>,
    path: &str,
    place: &str,
    changes: &mut Vec<Change>,
) {
    let named = |value: Option<&Value>| -> Vec<(String, Table)> {
        let tables = value.and_then(Value::as_array).into_iter().flatten();
        tables
            .filter_map(Value::as_table)
            .enumerate()
            .map(|(index, table)| {
                let name = table.get("name").and_then(Value::as_str);
                let name = name.map_or_else(|| format!("#{}", index + 1), |n| format!("\"{n}\""));
                (name, table.clone())
            })
            .collect()
    };
    let (old, new) = (named(old), named(new));
    let find = |list: &[(String, Table)], name: &str| {
        list.iter().find(|(n, _)| n == name).map(|(_, t)| Value::Table(t.clone()))
    };
    for (name, _) in &old {
        if find(&new, name).is_none() {
            values(find(&old, name).as_ref(), None, path, &format!("{place} {name}"), changes);
        }
    }
    for (name, table) in &new {
        let table = Value::Table(table.clone());
        let before = find(&old, name);
        values(before.as_ref(), Some(&table), path, &format!("{place} {name}"), changes);
    }
    let order = |list: &[(String, Table)], other: &[(String, Table)]| -> Vec<String> {
        let both = list.iter().filter(|(n, _)| find(other, n).is_some());
        both.map(|(n, _)| n.clone()).collect()
    };
    if path == "route" && order(&old, &new) != order(&new, &old) {
        let what = "order changed".to_owned();
        changes.push(Change { place: place.to_owned(), what, restart: false });
    }
}
