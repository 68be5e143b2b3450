//! Calls in the replicated dialogs table: the write before a 2xx, later changes, the end.
//!
//! Called on shards, answered on the cluster's own thread; nothing here waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sbc_cluster::{Command, DialogKey, Handle, Outcome};
use sbc_core::b2bua::{CallId, CallRecord, Cdr};
use sbc_core::core::{Input, Record, StoreId};

use super::record;
use super::tell::Tell;
use crate::shard::commit::Store;
use crate::telemetry::cdr::CdrSink;

/// How long a write that nobody waits for may take before it counts as lost.
const BACKGROUND: Duration = Duration::from_secs(5);

/// What has been written, for metrics.
#[derive(Debug, Default)]
pub struct StoreStats {
    pub committed: AtomicU64,
    /// Writes that were not committed in time, by whatever reason.
    pub failed: AtomicU64,
    /// Writes refused because the call is another node's by now.
    pub fenced: AtomicU64,
    /// CDRs left to the node that ended the call first.
    pub cdrs_elsewhere: AtomicU64,
    /// Bytes of the records written.
    pub bytes: AtomicU64,
}

/// Writes calls to the cluster.
pub struct ClusterStore {
    handle: Handle,
    tell: Arc<Tell>,
    /// The address group that calls are anchored on; 0 where addresses do not move.
    group: u32,
    pub stats: Arc<StoreStats>,
}

impl ClusterStore {
    pub fn new(handle: Handle, tell: Arc<Tell>, group: u32) -> ClusterStore {
        ClusterStore { handle, tell, group, stats: Arc::default() }
    }
}

/// The name of a call in the dialogs table.
pub fn dialog_key(call: CallId) -> DialogKey {
    let mut key = [0; 16];
    key[8..].copy_from_slice(&call.0.to_be_bytes());
    DialogKey(key)
}

/// The call that a key of the dialogs table names.
pub fn call_of(key: DialogKey) -> CallId {
    let mut id = [0; 8];
    id.copy_from_slice(&key.0[8..]);
    CallId(u64::from_be_bytes(id))
}

/// The hash by which a request inside a dialog finds its call on any node: of the Call-ID. Stable
/// over releases (FNV-1a, 64 bits), because it is stored.
pub fn lookup(call_id: &str) -> u64 {
    call_id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn put(call: &CallRecord, group: u32) -> (Command, usize) {
    let value = record::encode(call);
    let bytes = value.len();
    let lookups = [lookup(&call.a.call_id), lookup(&call.b.call_id)];
    (Command::put_dialog(dialog_key(call.id), group, &lookups, value), bytes)
}

impl Store for ClusterStore {
    fn write(&self, shard: usize, id: StoreId, wait: Option<Duration>, record: Record) -> bool {
        let command = match record {
            Record::Call(call) => {
                let (command, bytes) = put(&call, self.group);
                let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
                self.stats.bytes.fetch_add(bytes, Ordering::Relaxed);
                command
            }
            // The end is written together with the CDR: whose delete changed something writes it.
            Record::CallEnded(_) => return true,
            // Registrations stay on their node as yet.
            Record::Aor(_) => return true,
        };
        let (tell, stats) = (Arc::clone(&self.tell), Arc::clone(&self.stats));
        self.handle.submit(command, wait.unwrap_or(BACKGROUND), move |result| {
            let protected = match result.map(|committed| committed.outcome) {
                Ok(Outcome::Done { .. } | Outcome::Node(_)) => {
                    stats.committed.fetch_add(1, Ordering::Relaxed);
                    true
                }
                Ok(Outcome::Rejected(why)) => {
                    stats.fenced.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%why, "a call was not written");
                    false
                }
                Err(error) => {
                    stats.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%error, "a call was not written");
                    false
                }
            };
            if wait.is_some() {
                tell.tell(shard, Input::Stored { id, protected });
            }
        });
        true
    }

    /// One CDR per call in the whole cluster: the node whose delete found the dialog writes it. A
    /// call that was never committed, or an end that cannot be, is this node's own to tell.
    fn ended(&self, cdr: Box<Cdr>, sink: &CdrSink) {
        if !cdr.protected {
            return sink.push(cdr);
        }
        let (sink, stats) = (sink.clone(), Arc::clone(&self.stats));
        let command = Command::delete_dialog(dialog_key(cdr.call));
        self.handle.submit(command, BACKGROUND, move |result| {
            match result.map(|committed| committed.outcome) {
                Ok(Outcome::Done { changed: false }) => {
                    stats.cdrs_elsewhere.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Outcome::Rejected(why)) => {
                    stats.cdrs_elsewhere.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(call = %cdr.call, %why, "the call's end is another node's");
                }
                Ok(Outcome::Done { changed: true } | Outcome::Node(_)) | Err(_) => sink.push(cdr),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_and_its_key_name_each_other() {
        let call = CallId(0x0123_4567_89ab_cdef);
        assert_eq!(call_of(dialog_key(call)), call);
    }

    #[test]
    fn lookups_stay_the_same_over_releases() {
        assert_eq!(lookup(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(lookup("a84b4c76e66710"), lookup("a84b4c76e66710"));
        assert_eq!(lookup("foobar"), 0x8594_4171_f739_67e8);
    }
}
