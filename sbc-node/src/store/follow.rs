//! Follows the rows that change in the replicated tables and gives them to whom they concern. After
//! a gap (a snapshot, a slow moment) everything is read again.

use sbc_cluster::{Event, Handle};

use super::bans::ClusterBans;

/// Runs until the cluster node stops.
pub async fn run(handle: Handle, bans: ClusterBans) {
    let mut changes = handle.changes();
    bans.reload();
    while let Some(change) = changes.next().await {
        match change {
            Event::BanChanged { key, added } => bans.applied(&key, added),
            Event::Reloaded => bans.reload(),
            Event::Stopped { .. } => return,
            _ => {}
        }
    }
}
