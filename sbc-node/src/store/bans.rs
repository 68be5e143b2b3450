//! Bans of the whole cluster: what one node has banned, all keep out, and a node that starts knows
//! them at once.
//!
//! Who is banned, and why, is the guard's; here bans go into the log and come out of it. Networks
//! that this node trusts are never proposed, and never passed on when another node proposed them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use sbc_cluster::{Ban as Row, BanKey, Command, Handle};
use sbc_core::cidr::Cidr;
use sbc_proto::record::v1 as wire;

/// How long a ban may take to be committed; nobody waits for it.
const WITHIN: Duration = Duration::from_secs(5);
/// A ban without an end lasts this long.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A ban as the cluster holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterBan {
    pub net: Cidr,
    /// The guard's word for it (`flood`, `manual`, …).
    pub reason: String,
    /// Who banned: `pike`, `admin`, the name of a list.
    pub by: String,
    /// What is left of it on the cluster's clock; `None` until it is lifted.
    pub left: Option<Duration>,
}

/// What the log has applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BanChange {
    Added(ClusterBan),
    /// Lifted or run out.
    Removed(Cidr),
    /// All bans there are, in place of those known before.
    All(Vec<ClusterBan>),
}

/// Why a ban was not proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BanRefused {
    #[error("the network overlaps the trusted network {0}")]
    Trusted(Cidr),
}

/// What happened, for metrics.
#[derive(Debug, Default)]
pub struct BanStats {
    pub written: AtomicU64,
    /// Not committed in time, or the table is full.
    pub failed: AtomicU64,
    /// Not proposed, or not passed on, because a trusted network would be hit.
    pub trusted: AtomicU64,
}

/// Called on the task that follows the log: it hands over and returns.
type Sink = Arc<dyn Fn(&BanChange) + Send + Sync>;

/// See the module's header. Cheap to clone; nothing here waits.
#[derive(Clone)]
pub struct ClusterBans {
    handle: Handle,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    trusted: RwLock<Vec<Cidr>>,
    sinks: Mutex<Vec<Sink>>,
    stats: BanStats,
}

impl ClusterBans {
    pub fn new(handle: Handle) -> ClusterBans {
        ClusterBans { handle, shared: Arc::default() }
    }

    /// The networks that are never banned: trunks and the allow list. To be given at the start and
    /// with each new configuration.
    pub fn set_trusted(&self, nets: Vec<Cidr>) {
        *self.shared.trusted.write().unwrap_or_else(|e| e.into_inner()) = nets;
        self.reload();
    }

    /// Bans `net` on every node; `None` lasts until it is lifted. A ban of the same network is
    /// replaced. Not heard of again but by [`ClusterBans::on_applied`].
    ///
    /// # Errors
    /// [`BanRefused::Trusted`]: nothing was proposed.
    pub fn propose_ban(
        &self,
        net: Cidr,
        reason: &str,
        by: &str,
        ttl: Option<Duration>,
    ) -> Result<(), BanRefused> {
        if let Some(trusted) = self.trusted(&net) {
            self.shared.stats.trusted.fetch_add(1, Ordering::Relaxed);
            return Err(BanRefused::Trusted(trusted));
        }
        let value = encode(reason, by, ttl.is_none());
        let ttl = ttl.unwrap_or(FOREVER).min(FOREVER);
        self.submit(Command::put_ban(net.to_string().as_bytes(), ttl, value));
        Ok(())
    }

    /// Lifts a ban on every node.
    pub fn propose_unban(&self, net: Cidr) {
        self.submit(Command::delete_ban(net.to_string().as_bytes()));
    }

    fn submit(&self, command: Command) {
        let shared = Arc::clone(&self.shared);
        self.handle.submit(command, WITHIN, move |result| {
            let applied = result.is_ok_and(|committed| committed.outcome.is_applied());
            let counter = if applied { &shared.stats.written } else { &shared.stats.failed };
            counter.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// Every ban in force that hits no trusted network.
    pub fn current(&self) -> Vec<ClusterBan> {
        self.handle.read(|tables| {
            let now_ms = tables.clock_ms();
            tables.bans().filter_map(|(key, row)| self.ban(key, row, now_ms)).collect()
        })
    }

    /// `sink` is told of every change from now on, first of all bans there are. It is called on the
    /// task that follows the log: it must hand over and return.
    pub fn on_applied(&self, sink: impl Fn(&BanChange) + Send + Sync + 'static) {
        sink(&BanChange::All(self.current()));
        self.shared.sinks.lock().unwrap_or_else(|e| e.into_inner()).push(Arc::new(sink));
    }

    pub fn stats(&self) -> &BanStats {
        &self.shared.stats
    }

    pub(super) fn applied(&self, key: &BanKey, added: bool) {
        if !added {
            if let Some(net) = net_of(key) {
                self.tell(&BanChange::Removed(net));
            }
            return;
        }
        let ban = self
            .handle
            .read(|tables| tables.ban(key).and_then(|row| self.ban(key, row, tables.clock_ms())));
        if let Some(ban) = ban {
            self.tell(&BanChange::Added(ban));
        }
    }

    pub(super) fn reload(&self) {
        self.tell(&BanChange::All(self.current()));
    }

    fn tell(&self, change: &BanChange) {
        let sinks = self.shared.sinks.lock().unwrap_or_else(|e| e.into_inner()).clone();
        for sink in sinks {
            sink(change);
        }
    }

    fn trusted(&self, net: &Cidr) -> Option<Cidr> {
        let trusted = self.shared.trusted.read().unwrap_or_else(|e| e.into_inner());
        trusted.iter().find(|t| t.covers(net) || net.covers(t)).copied()
    }

    /// A row that another release wrote, or that hits what we trust, is none.
    fn ban(&self, key: &BanKey, row: &Row, now_ms: u64) -> Option<ClusterBan> {
        let net = net_of(key)?;
        if self.trusted(&net).is_some() {
            self.shared.stats.trusted.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let said = wire::Ban::decode(&*row.value).ok()?;
        let left = Duration::from_millis(row.expires_ms.saturating_sub(now_ms));
        let left = (!said.endless).then_some(left);
        Some(ClusterBan { net, reason: said.reason, by: said.by, left })
    }
}

fn encode(reason: &str, by: &str, endless: bool) -> Bytes {
    let (reason, by) = (reason.to_owned(), by.to_owned());
    wire::Ban { version: 1, reason, by, endless }.encode_to_vec().into()
}

fn net_of(key: &BanKey) -> Option<Cidr> {
    std::str::from_utf8(key).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FailoverMode;
    use crate::store::follow::Follow;
    use crate::store::tell::Tell;
    use sbc_cluster::{Cluster, Config};
    use sbc_core::ids::HintKey;
    use std::sync::mpsc::channel;

    fn net(text: &str) -> Cidr {
        text.parse().expect("a network")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_proposed_comes_back_applied_and_never_for_who_is_trusted() {
        let dir = tempfile::tempdir().expect("directory");
        let handle = Cluster::start(Config::new(dir.path(), "n1")).expect("starts");
        let bans = ClusterBans::new(handle.clone());
        bans.set_trusted(vec![net("192.0.2.0/28")]);
        let (tell, told) = channel();
        bans.on_applied(move |change| drop(tell.send(change.clone())));
        let follow = Follow {
            handle: handle.clone(),
            bans: bans.clone(),
            tell: Arc::new(Tell::new(vec![])),
            names: Arc::default(),
            hints: HintKey::default(),
            mode: FailoverMode::None,
            stats: Arc::default(),
        };
        let task = tokio::spawn(follow.run());
        let next = || told.recv_timeout(Duration::from_secs(60)).expect("a change");
        // Of whoever asks to be told, and of following once it has begun: no change escapes it then.
        assert_eq!([next(), next()], [BanChange::All(vec![]), BanChange::All(vec![])]);
        let trusted = Err(BanRefused::Trusted(net("192.0.2.0/28")));
        assert_eq!(bans.propose_ban(net("192.0.2.7"), "flood", "pike", None), trusted);
        assert_eq!(bans.propose_ban(net("192.0.0.0/16"), "flood", "pike", None), trusted);
        bans.propose_ban(net("198.51.100.7"), "flood", "pike", Some(Duration::from_secs(60)))
            .expect("nobody trusts it");
        let added = std::iter::repeat_with(next)
            .find_map(|change| match change {
                BanChange::Added(ban) => Some(ban),
                BanChange::Removed(_) | BanChange::All(_) => None,
            })
            .expect("it is applied");
        assert_eq!((added.net, &*added.reason, &*added.by), (net("198.51.100.7"), "flood", "pike"));
        assert!(added.left.is_some_and(|left| left <= Duration::from_secs(60)));
        // Trusted from now on: the ban that is there is not told any more.
        bans.set_trusted(vec![net("198.51.100.0/24")]);
        assert_eq!(next(), BanChange::All(vec![]));
        bans.set_trusted(vec![]);
        let BanChange::All(all) = next() else { panic!("all bans") };
        assert_eq!(all.iter().map(|ban| ban.net).collect::<Vec<_>>(), [added.net]);
        bans.propose_unban(added.net);
        assert_eq!(next(), BanChange::Removed(added.net));
        task.abort();
        handle.stop();
    }
}
