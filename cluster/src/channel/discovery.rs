//! Finding members to ask: a static list, a name whose addresses they are, or etcd, where members
//! register under a lease.

use std::time::Duration;

use etcd_client::{Client, GetOptions, PutOptions};

use crate::config::Discovery;

const LEASE_SECONDS: i64 = 15;

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
            let mut client = Client::connect(endpoints, None).await.map_err(text)?;
            let options = GetOptions::new().with_prefix();
            let answer = client.get(prefix.as_str(), Some(options)).await.map_err(text)?;
            let values = answer.kvs().iter();
            Ok(values.filter_map(|kv| Some(kv.value_str().ok()?.to_owned())).collect())
        }
    }
}

/// Keeps `<prefix><name>` = `address` in etcd for as long as the future is polled. Members of the
/// cluster do not depend on it: it is for those who want to join.
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
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn hold(endpoints: &[String], key: &str, address: &str) -> Result<(), etcd_client::Error> {
    let mut client = Client::connect(endpoints, None).await?;
    let lease = client.lease_grant(LEASE_SECONDS, None).await?.id();
    client.put(key, address, Some(PutOptions::new().with_lease(lease))).await?;
    let (mut keeper, mut answers) = client.lease_keep_alive(lease).await?;
    loop {
        keeper.keep_alive().await?;
        match answers.message().await? {
            Some(answer) if answer.ttl() > 0 => {}
            Some(_) | None => return Ok(()),
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}
