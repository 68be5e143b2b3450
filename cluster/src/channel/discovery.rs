//! Finding members to ask: a static list, a name whose addresses they are, or etcd, where members
//! register under a lease and follow how the addresses of others change.

use std::time::Duration;

use etcd_client::{
    Client, ConnectOptions, EventType, GetOptions, KeyValue, PutOptions, WatchOptions,
};
use tokio::time::timeout;

use crate::config::Discovery;

/// A registration is gone this long after its node.
const LEASE_SECONDS: i64 = 10;
const KEEP_EVERY: Duration = Duration::from_secs(3);
/// An etcd that does not answer for this long is as good as none.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The addresses found, `host:port` each.
pub(crate) async fn find(discovery: &Discovery) -> Result<Vec<String>, String> {
    match discovery {
        Discovery::Static(list) => Ok(list.clone()),
        Discovery::Dns { name, port } => {
            let found = tokio::net::lookup_host((name.as_str(), *port)).await;
            let found = found.map_err(|e| format!("{name}: {e}"))?;
            Ok(found.map(|address| address.to_string()).collect())
        }
        Discovery::Etcd { endpoints, prefix } => {
            let text = |e: etcd_client::Error| format!("etcd: {e}");
            let mut client = connect(endpoints).await.map_err(text)?;
            let options = GetOptions::new().with_prefix();
            let answer = client.get(prefix.as_str(), Some(options)).await.map_err(text)?;
            Ok(answer.kvs().iter().filter_map(|kv| Some(entry(prefix, kv)?.1)).collect())
        }
    }
}

async fn connect(endpoints: &[String]) -> Result<Client, etcd_client::Error> {
    let options = ConnectOptions::new()
        .with_connect_timeout(ANSWER_WITHIN)
        .with_keep_alive(Duration::from_secs(1), ANSWER_WITHIN)
        .with_keep_alive_while_idle(true);
    Client::connect(endpoints, Some(options)).await
}

/// Name and address of a registered node.
fn entry(prefix: &str, kv: &KeyValue) -> Option<(String, String)> {
    let name = kv.key_str().ok()?.strip_prefix(prefix)?;
    Some((name.to_owned(), kv.value_str().ok()?.to_owned()))
}

/// Keeps `<prefix><name>` = `address` in etcd for as long as the future is polled. Members of the
/// cluster do not depend on it: it is for those who want to join, and for those whose peers have all
/// moved while they were down.
pub(crate) async fn register(
    endpoints: Vec<String>,
    prefix: String,
    name: String,
    address: String,
) {
    loop {
        let error = match hold(&endpoints, &format!("{prefix}{name}"), &address).await {
            Ok(()) => "the lease ended".to_owned(),
            Err(e) => e.to_string(),
        };
        tracing::warn!(%error, "registration in etcd lost");
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

async fn hold(endpoints: &[String], key: &str, address: &str) -> Result<(), etcd_client::Error> {
    let mut client = connect(endpoints).await?;
    let lease = client.lease_grant(LEASE_SECONDS, None).await?.id();
    client.put(key, address, Some(PutOptions::new().with_lease(lease))).await?;
    tracing::info!(key, address, "registered in etcd");
    let (mut keeper, mut answers) = client.lease_keep_alive(lease).await?;
    loop {
        keeper.keep_alive().await?;
        let Ok(answer) = timeout(ANSWER_WITHIN, answers.message()).await else {
            return Ok(());
        };
        if answer?.is_none_or(|answer| answer.ttl() == 0) {
            return Ok(());
        }
        tokio::time::sleep(KEEP_EVERY).await;
    }
}

/// Calls `tell` with name and address of every registered node, and again whenever one registers
/// anew or elsewhere. Goes on for as long as the future is polled.
pub(crate) async fn follow(
    endpoints: Vec<String>,
    prefix: String,
    tell: impl Fn(String, String) + Send,
) {
    loop {
        if let Err(error) = watch(&endpoints, &prefix, &tell).await {
            tracing::debug!(%error, "etcd is not watched");
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

async fn watch(
    endpoints: &[String],
    prefix: &str,
    tell: &(impl Fn(String, String) + Send),
) -> Result<(), etcd_client::Error> {
    let mut client = connect(endpoints).await?;
    let answer = client.get(prefix, Some(GetOptions::new().with_prefix())).await?;
    let revision = answer.header().map_or(0, |header| header.revision());
    for kv in answer.kvs() {
        if let Some((name, address)) = entry(prefix, kv) {
            tell(name, address);
        }
    }
    let options = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
    let mut changes = client.watch(prefix, Some(options)).await?;
    while let Some(change) = changes.message().await? {
        if change.canceled() {
            break;
        }
        for event in change.events() {
            // Who is gone may come back where it was: what is known of it stays.
            if event.event_type() == EventType::Put
                && let Some((name, address)) = event.kv().and_then(|kv| entry(prefix, kv))
            {
                tell(name, address);
            }
        }
    }
    Ok(())
}
