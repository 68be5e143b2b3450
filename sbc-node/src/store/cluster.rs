//! Calls and bindings in the replicated tables: the write before a 2xx, later changes, the end; what
//! changes of a user's contacts.
//!
//! Called on shards, answered on the cluster's own thread; nothing here waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sbc_cluster::{Command, Dialog, DialogKey, Handle, NodeId, Outcome, ProposeError, Tables};
use sbc_core::b2bua::{CallId, CallRecord, Cdr, Written};
use sbc_core::core::{AdoptMode, Input, Record, ResolveId, StoreId, Wanted};
use sbc_core::net::Flow;
use sbc_core::registrar::{AorRecord, contact_key};
use sbc_core::routing::UserPlace;
use tokio::sync::mpsc;

use super::binding::{self, Names, aor_key};
use super::link::{self, LinkStats};
use super::record;
use super::registrants;
use super::rooms::Asked;
use super::tell::Tell;
use crate::config::FailoverMode;
use crate::shard::commit::Store;
use crate::shard::run::Elsewhere;
use crate::telemetry::cdr::CdrSink;
use crate::telemetry::time::unix_ms;

/// How long a write that nobody waits for may take before it counts as lost.
const BACKGROUND: Duration = Duration::from_secs(5);
/// Call-IDs by which a call is found at most.
const LOOKUPS_MAX: usize = 8;
/// How often a contact's deletion is tried, [`BACKGROUND`] each.
const DELETE_TRIES: u32 = 60;

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
    /// Contacts written and deleted.
    pub bindings: AtomicU64,
    /// Contacts that were not written, or not deleted, in time.
    pub bindings_failed: AtomicU64,
}

/// Writes calls to the cluster.
pub struct ClusterStore {
    handle: Handle,
    tell: Arc<Tell>,
    /// The address group that calls are anchored on; 0 where addresses do not move.
    group: u32,
    names: Arc<Names>,
    mode: FailoverMode,
    linked: Arc<LinkStats>,
    rooms: mpsc::Sender<Asked>,
    pub stats: Arc<StoreStats>,
}

/// What a store is made of.
pub struct Parts {
    pub handle: Handle,
    pub tell: Arc<Tell>,
    /// The address group that calls are anchored on; 0 where addresses do not move.
    pub group: u32,
    pub names: Arc<Names>,
    pub mode: FailoverMode,
    pub linked: Arc<LinkStats>,
    /// To whom questions for room in users' limits go.
    pub rooms: mpsc::Sender<Asked>,
}

impl ClusterStore {
    pub fn new(parts: Parts) -> ClusterStore {
        let Parts { handle, tell, group, names, mode, linked, rooms } = parts;
        ClusterStore { handle, tell, group, names, mode, linked, rooms, stats: Arc::default() }
    }

    /// The owner of a dialog: another node that lives, or this one with what is to be carried on.
    fn find(&self, call_id: &str) -> Found {
        let id = self.handle.id();
        self.handle.read(|tables| match tables.find_dialog(lookup(call_id)) {
            Some((_, dialog)) if dialog.owner == id => Found::Ours(dialog.clone()),
            Some((_, dialog)) if is_live(tables, dialog.owner) => Found::There(dialog.owner),
            Some(_) | None => Found::Nowhere,
        })
    }

    fn pass_on(&self, to: NodeId, flow: &Flow, data: &Bytes) -> Elsewhere {
        let message = link::received(flow, data, &self.names);
        self.linked.note(self.handle.relay(to, message));
        Elsewhere::Gone
    }

    /// Writes what changed of a user's contacts. What is lost is written again by the next refresh.
    fn write_aor(&self, shard: usize, aor: &AorRecord) {
        let (key, now_ms) = (aor_key(&aor.aor), unix_ms());
        for record in &aor.bindings {
            let value = binding::encode(&aor.aor, record, &self.names);
            let ttl = Duration::from_millis(record.good_until_ms.saturating_sub(now_ms));
            let contact = contact_key(&record.contact);
            let command = Command::put_binding(key, contact, ttl, record.flow_only, value);
            let (tell, stats) = (Arc::clone(&self.tell), Arc::clone(&self.stats));
            let aor = aor.aor.clone();
            self.handle.submit(command, BACKGROUND, move |result| {
                match result.map(|committed| committed.outcome) {
                    Ok(Outcome::Done { .. } | Outcome::Node(_)) => {
                        stats.bindings.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(Outcome::Rejected(_)) | Err(_) => {
                        stats.bindings_failed.fetch_add(1, Ordering::Relaxed);
                        tell.tell(shard, Input::BindingsUnstored(aor));
                    }
                }
            });
        }
        for gone in &aor.gone {
            let command = match gone.own_only {
                true => Command::delete_own_binding(key, gone.contact),
                false => Command::delete_binding(key, gone.contact),
            };
            delete(self.handle.clone(), Arc::clone(&self.stats), command, DELETE_TRIES);
        }
    }
}

enum Found {
    There(NodeId),
    Ours(Dialog),
    Nowhere,
}

fn is_live(tables: &Tables, node: NodeId) -> bool {
    tables.node(node).is_some_and(|node| node.state.is_live())
}

/// Deletes a contact, again and again for a while: a user who is gone must not be called.
fn delete(handle: Handle, stats: Arc<StoreStats>, command: Command, tries: u32) {
    let (again, counters) = (handle.clone(), Arc::clone(&stats));
    handle.submit(command.clone(), BACKGROUND, move |result| match result {
        Ok(_) => {
            stats.bindings.fetch_add(1, Ordering::Relaxed);
        }
        Err(ProposeError::Timeout | ProposeError::NoQuorum) if tries > 1 => {
            delete(again, counters, command, tries - 1);
        }
        Err(_) => {
            stats.bindings_failed.fetch_add(1, Ordering::Relaxed);
        }
    });
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
    let tried = call.early.iter().flat_map(|early| &early.attempts).skip(1).map(|a| &a.leg);
    let legs = [&call.a, &call.b].into_iter().chain(tried);
    let lookups: Vec<u64> = legs.take(LOOKUPS_MAX).map(|leg| lookup(&leg.call_id)).collect();
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
            Record::Aor(aor) => {
                self.write_aor(shard, &aor);
                return true;
            }
            Record::Registration { trunk, aor, held } => {
                registrants::write(&self.handle, &trunk, &aor, held.as_deref());
                return true;
            }
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

    fn ask_room(&self, shard: usize, id: ResolveId, place: UserPlace) -> bool {
        self.rooms.try_send(Asked { place, shard, id }).is_ok()
    }

    fn elsewhere(&self, wanted: &Wanted, flow: &Flow, data: &Bytes) -> Elsewhere {
        match wanted {
            Wanted::Dialog(call_id) => match self.find(call_id) {
                Found::There(owner) => self.pass_on(owner, flow, data),
                // Given to us, and its turn to be carried on has not come: now it has.
                Found::Ours(row) => {
                    let mode = match self.mode {
                        FailoverMode::Address => AdoptMode::Address,
                        FailoverMode::None | FailoverMode::Reinvite => AdoptMode::Reinvite,
                    };
                    let record = record::decode(Bytes::copy_from_slice(row.value())).ok();
                    Elsewhere::Here(record.map(|record| (Box::new(record), mode)))
                }
                Found::Nowhere => Elsewhere::Here(None),
            },
            Wanted::Node(number) => {
                let own = self.handle.id();
                let there = self.handle.read(|tables| link::node(tables, *number));
                match there.filter(|node| *node != own) {
                    Some(node) => self.pass_on(node, flow, data),
                    None => Elsewhere::Here(None),
                }
            }
        }
    }

    fn send_elsewhere(&self, flow: &Flow, data: &Bytes) -> bool {
        let Some((number, conn)) = flow.conn.and_then(link::split) else { return false };
        let Some(node) = self.handle.read(|tables| link::node(tables, number)) else {
            return false;
        };
        let message = link::transmit(&Flow { conn, ..*flow }, data, &self.names);
        self.linked.note(self.handle.relay(node, message))
    }

    /// One CDR per call in the whole cluster: the node whose delete found the dialog writes it. A
    /// call that was never committed, or an end that cannot be, is this node's own to tell.
    fn ended(&self, cdr: Box<Cdr>, sink: &CdrSink) {
        // A write that was not confirmed may be there all the same, or come yet: the row must go.
        let ours = match cdr.written {
            Written::Never => return sink.push(cdr),
            Written::Unsure => true,
            Written::Committed => false,
        };
        let (sink, stats) = (sink.clone(), Arc::clone(&self.stats));
        let command = Command::delete_dialog(dialog_key(cdr.call));
        self.handle.submit(command, BACKGROUND, move |result| {
            match result.map(|committed| committed.outcome) {
                Ok(Outcome::Done { changed: false }) if !ours => {
                    stats.cdrs_elsewhere.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Outcome::Rejected(why)) if !ours => {
                    stats.cdrs_elsewhere.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(call = %cdr.call, %why, "the call's end is another node's");
                }
                Ok(Outcome::Done { .. } | Outcome::Node(_) | Outcome::Rejected(_)) | Err(_) => {
                    sink.push(cdr);
                }
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
