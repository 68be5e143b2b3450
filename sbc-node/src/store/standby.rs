//! Calls of other nodes in this node's kernel: follows the dialogs table and tells the media anchor
//! what stands by, so that their media flows on with nothing to be done when they come here.
//!
//! Only where addresses move (`failover = "address"`). Everything is looked up by name here: the
//! record says interface names and what the peers were told, never a device or an index.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use media_anchor::{Behind, InterfaceId, SessionId, SideSpec, Standby, StandbySide, StandbyStream};
use sbc_cluster::{Dialog, DialogKey, DialogPlace, Handle};
use sbc_core::b2bua::{CallRecord, StreamRecord, StreamSideRecord};
use tokio::time::{MissedTickBehavior, interval};

use super::cluster::call_of;
use super::record;
use crate::anchor::{kind_of, remote_of};
use crate::config::{Config, FailoverMode};
use crate::node::Context;

/// How often the table is looked at.
const TICK: Duration = Duration::from_millis(50);
/// Dialogs looked at with the table's lock held once.
const AT_ONCE: usize = 256;
/// Dialogs looked at in one tick: 40,000 a second.
const PER_TICK: usize = 2_048;

/// What the table says of a call.
enum Seen {
    Ended,
    Ours,
    Theirs(Dialog),
}

/// The task's own state.
struct Follower {
    handle: Handle,
    standby: Standby,
    /// Address groups that can come to this node.
    groups: Vec<u32>,
    place: DialogPlace,
    /// Looked at next.
    pending: VecDeque<DialogKey>,
    /// Calls that the anchor was told of as another node's.
    told: HashSet<DialogKey>,
    /// Of the configuration by which the calls were told.
    loaded_ms: u64,
}

/// Follows the table until the node ends. Without a cluster whose addresses move, or without a
/// kernel way, there is nothing to follow.
pub fn spawn(context: &Arc<Context>, standby: Option<Standby>) {
    let running = context.running.load_full();
    let (Some(standby), Some(cluster), Some(settings)) =
        (standby, &context.cluster, &running.config.cluster)
    else {
        return;
    };
    if settings.failover != FailoverMode::Address || settings.addresses.is_empty() {
        return;
    }
    let follower = Follower {
        handle: cluster.handle.clone(),
        standby,
        groups: settings.addresses.iter().map(|a| a.group).collect(),
        place: DialogPlace::default(),
        pending: VecDeque::new(),
        told: HashSet::new(),
        loaded_ms: running.loaded_ms,
    };
    tokio::spawn(follower.run(Arc::downgrade(context)));
}

impl Follower {
    async fn run(mut self, context: Weak<Context>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Some(context) = context.upgrade() else { return };
            let running = context.running.load_full();
            if running.loaded_ms != self.loaded_ms {
                // Interfaces may have other addresses now.
                self.loaded_ms = running.loaded_ms;
                self.place = DialogPlace::default();
            }
            self.gather();
            self.work(&running.config);
        }
    }

    /// What has changed since the last look.
    fn gather(&mut self) {
        if self.pending.len() >= PER_TICK {
            return;
        }
        let (place, told) = (&mut self.place, &self.told);
        let keys = self.handle.read(|tables| {
            tables.dialogs_since(place, PER_TICK).unwrap_or_else(|| {
                let gone = told.iter().filter(|key| tables.dialog(key).is_none());
                tables.dialogs().map(|(key, _)| key).chain(gone).copied().collect()
            })
        });
        self.pending.extend(keys);
    }

    fn work(&mut self, config: &Config) {
        for _ in 0..PER_TICK / AT_ONCE {
            let keys: Vec<DialogKey> =
                self.pending.drain(..self.pending.len().min(AT_ONCE)).collect();
            if keys.is_empty() {
                return;
            }
            let seen: Vec<Seen> = self.look(&keys);
            for (at, (key, seen)) in keys.iter().zip(seen).enumerate() {
                if self.tell(config, *key, seen).is_err() {
                    // The kernel is behind: the same again in the next tick.
                    for key in keys.iter().skip(at).rev() {
                        self.pending.push_front(*key);
                    }
                    return;
                }
            }
        }
    }

    fn look(&self, keys: &[DialogKey]) -> Vec<Seen> {
        let id = self.handle.id();
        self.handle.read(|tables| {
            let seen = |key: &DialogKey| match tables.dialog(key) {
                Some(dialog) if dialog.owner == id => Seen::Ours,
                Some(dialog) if self.groups.contains(&dialog.group) => Seen::Theirs(dialog.clone()),
                Some(_) | None => Seen::Ended,
            };
            keys.iter().map(seen).collect()
        })
    }

    fn tell(&mut self, config: &Config, key: DialogKey, seen: Seen) -> Result<(), Behind> {
        let call = SessionId(call_of(key).0);
        match seen {
            Seen::Theirs(row) => match record::decode(bytes::Bytes::copy_from_slice(row.value())) {
                Ok(record) => {
                    self.standby.put(call, &streams(config, &record))?;
                    self.told.insert(key);
                }
                // Told by the takeover when it matters.
                Err(error) => tracing::debug!(call = %call_of(key), %error, "does not stand by"),
            },
            Seen::Ours if self.told.contains(&key) => {
                self.standby.adopted(call)?;
                self.told.remove(&key);
            }
            Seen::Ended if self.told.contains(&key) => {
                self.standby.remove(call)?;
                self.told.remove(&key);
            }
            Seen::Ours | Seen::Ended => {}
        }
        Ok(())
    }
}

/// The record's streams in the anchor's words; one whose interface is not known here is left out.
fn streams(config: &Config, record: &CallRecord) -> Vec<Option<StandbyStream>> {
    let stream = |stream: &StreamRecord| {
        Some(StandbyStream {
            kind: kind_of(stream.kind),
            a: side(config, &stream.a)?,
            b: side(config, &stream.b)?,
        })
    };
    record.streams.iter().map(stream).collect()
}

fn side(config: &Config, side: &StreamSideRecord) -> Option<StandbySide> {
    let interface = config.interfaces.iter().find(|i| *i.name == *side.interface)?;
    Some(StandbySide {
        spec: SideSpec { interface: InterfaceId(interface.id.0), ipv6: side.ipv6 },
        port: side.local?.rtp.port(),
        remote: side.remote.as_ref().map(remote_of),
        latched: side.latched,
    })
}
