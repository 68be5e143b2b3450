//! This node's shares of the limits of trunks, groups and called prefixes, agreed upon in the log: the shares of all nodes together
//! never exceed a limit, so that each node admits by its own count alone.
//!
//! A share follows the use: what is carried, and some room for what comes, less as the limit comes
//! near. What a node gives back it stops using before it says so. Without a quorum shares stay as
//! they are.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use sbc_cluster::{Command, Committed, Handle, ProposeError, Tables};
use sbc_core::guard::Guard;
use sbc_core::routing::{CallLimits, NamedLimit, Share, Table, Use};
use tokio::time::{MissedTickBehavior, interval};

use super::cluster::lookup;

/// How often use and shares are compared.
const TICK: Duration = Duration::from_millis(50);
/// How long a share may take to be committed.
const WITHIN: Duration = Duration::from_secs(2);
/// Ticks over which the rate of new calls is averaged.
const RATE_TICKS: f64 = 20.0;

/// What happened, for metrics.
#[derive(Debug, Default)]
pub struct ShareStats {
    /// Shares that were changed in the log.
    pub written: AtomicU64,
    pub failed: AtomicU64,
}

impl ShareStats {
    /// Counts a reservation that was answered; whether it was committed.
    pub(super) fn count(&self, result: Result<Committed, ProposeError>) -> bool {
        let committed = result.is_ok_and(|committed| committed.outcome.is_applied());
        let counter = if committed { &self.written } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        committed
    }
}

/// The nodes that share a limit: those that live, and this one.
pub(super) fn sharers(tables: &Tables) -> u32 {
    let living = tables.nodes().filter(|(_, node)| node.state.is_live()).count();
    u32::try_from(living).unwrap_or(1).max(1)
}

/// What sharing takes.
pub struct Shares {
    pub handle: Handle,
    /// The routing in force.
    pub routing: Arc<ArcSwapOption<Table>>,
    pub stats: Arc<ShareStats>,
    /// Told how many nodes share the rates of the cluster.
    pub guard: Option<Arc<Guard>>,
}

/// One limit of one trunk, group or set of prefixes.
struct Limit {
    /// See [`lookup`]; names the limit in the log.
    key: u64,
    proposal: Arc<AtomicU8>,
    /// No more than this is used until a proposal was answered: one that was not may come yet.
    cap: Option<u32>,
}

/// A proposal is under way; it was committed; it was not, as far as is known.
const UNDER_WAY: u8 = 1;
const COMMITTED: u8 = 2;
const UNKNOWN: u8 = 3;

/// What the log says of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    own: u32,
    others: u32,
    nodes: u32,
}

/// The share to have: what is used, and a part of what nobody uses.
fn target(max: u32, used: u32, row: Row) -> u32 {
    if row.nodes <= 1 {
        return max.max(used);
    }
    let left = max.saturating_sub(row.others).saturating_sub(used);
    let most = (max / (2 * row.nodes)).max(1);
    let room = (left / row.nodes).max(1).min(most).min(left);
    used.saturating_add(room)
}

/// Whether a share is worth a write: too small always, too large when it is much too large, or when
/// calls of a dead node have carried the shares past the limit.
fn differs(max: u32, target: u32, row: Row) -> bool {
    let past = row.own.saturating_add(row.others) > max;
    if past && target < row.own {
        return true;
    }
    let slack = (max / (8 * row.nodes.max(1))).max(1);
    target > row.own || target.saturating_add(slack) < row.own
}

impl Limit {
    fn new(name: &str, what: &str) -> Limit {
        Limit { key: lookup(&format!("{what} {name}")), proposal: Arc::default(), cap: None }
    }

    /// Looks at the limit once; returns the share to use now.
    fn tick(&mut self, shares: &Shares, max: u32, used: u32) -> u32 {
        let handle = &shares.handle;
        let row = handle.read(|tables| {
            let own = tables.count_of(self.key, handle.id());
            let all = u32::try_from(tables.count(self.key)).unwrap_or(u32::MAX);
            Row { own, others: all.saturating_sub(own), nodes: sharers(tables) }
        });
        if row.own == 0 && self.cap.is_none() && !handle.lease_valid() {
            // Nobody was asked yet, and nobody can be: an even part.
            return max / row.nodes;
        }
        match self.proposal.load(Ordering::Acquire) {
            UNDER_WAY => return row.own.min(self.cap.unwrap_or(u32::MAX)),
            COMMITTED => self.cap = None,
            _ => {}
        }
        let target = target(max, used, row);
        if differs(max, target, row) {
            let cap = self.cap.map_or(target, |cap| cap.min(target));
            self.cap = Some(cap);
            self.propose(shares, max, target, used);
        }
        row.own.min(self.cap.unwrap_or(u32::MAX))
    }

    fn propose(&self, shares: &Shares, max: u32, want: u32, least: u32) {
        let (proposal, stats) = (Arc::clone(&self.proposal), Arc::clone(&shares.stats));
        proposal.store(UNDER_WAY, Ordering::Release);
        let command = Command::reserve(self.key, max, want, least);
        shares.handle.submit(command, WITHIN, move |result| {
            let committed = stats.count(result);
            proposal.store(if committed { COMMITTED } else { UNKNOWN }, Ordering::Release);
        });
    }
}

/// The limits of one trunk, group or set of prefixes.
struct Limits {
    calls: Limit,
    rate: Limit,
    asked: u64,
    /// Thousandths of calls per second, averaged.
    mcps: f64,
}

impl Limits {
    /// `of` goes before the words that name the limits in the log.
    fn new(of: &str, name: &str, used: Use) -> Limits {
        Limits {
            calls: Limit::new(name, &format!("{of}calls")),
            rate: Limit::new(name, &format!("{of}rate")),
            asked: used.asked,
            mcps: 0.0,
        }
    }

    /// Looks at the limits once; the shares to use now.
    fn tick(&mut self, shares: &Shares, limits: CallLimits, used: Use) -> Share {
        let asked = used.asked.saturating_sub(self.asked);
        self.asked = used.asked;
        self.mcps += (mcps(asked) - self.mcps) / RATE_TICKS;
        let calls = limits.max_calls.map(|max| self.calls.tick(shares, max, used.calls));
        let rate = limits.max_cps.map(|max| {
            let max = whole(max * 1_000.0);
            self.rate.tick(shares, max, whole(self.mcps).min(max))
        });
        Share { calls: calls.unwrap_or(u32::MAX), mcps: rate.unwrap_or(u32::MAX) }
    }
}

impl Shares {
    /// Runs until it is aborted with the runtime.
    pub async fn run(self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut trunks: HashMap<Arc<str>, Limits> = HashMap::new();
        let mut groups: HashMap<Arc<str>, Limits> = HashMap::new();
        let mut prefixes: HashMap<Arc<str>, Limits> = HashMap::new();
        loop {
            tick.tick().await;
            self.divide_rates();
            let Some(table) = self.routing.load_full() else { continue };
            trunks.retain(|name, _| table.trunks().any(|trunk| trunk.name() == name));
            for trunk in table.trunks() {
                let limits = trunk.config.limits;
                if limits.max_calls.is_none() && limits.max_cps.is_none() {
                    continue;
                }
                let (name, used) = (trunk.name(), trunk.used());
                let held = trunks.entry(Arc::clone(name));
                let held = held.or_insert_with(|| Limits::new("", name, used));
                trunk.set_share(held.tick(&self, limits, used));
            }
            let of_groups: Vec<NamedLimit> = table.group_limits().collect();
            self.look(&mut groups, "group ", of_groups.iter());
            self.look(&mut prefixes, "prefix ", table.prefix_limits().map(AsRef::as_ref));
        }
    }

    /// Looks at limits of one kind once, and forgets those that are gone.
    fn look<'a>(
        &self,
        held: &mut HashMap<Arc<str>, Limits>,
        of: &str,
        limits: impl Iterator<Item = &'a NamedLimit> + Clone,
    ) {
        held.retain(|name, _| limits.clone().any(|limit| limit.name == *name));
        for limit in limits {
            let (name, used) = (&limit.name, limit.used());
            let held = held.entry(Arc::clone(name));
            let held = held.or_insert_with(|| Limits::new(of, name, used));
            limit.set_share(held.tick(self, limit.limits, used));
        }
    }

    /// Without a quorum the nodes are those that were known last: the rates stay divided.
    fn divide_rates(&self) {
        if let Some(guard) = &self.guard {
            guard.set_nodes(self.handle.read(sharers));
        }
    }
}

/// Calls of one tick as thousandths of calls per second.
fn mcps(asked: u64) -> f64 {
    let asked = f64::from(u32::try_from(asked).unwrap_or(u32::MAX));
    asked * 1_000.0 / TICK.as_secs_f64()
}

#[expect(clippy::cast_possible_truncation, reason = "saturates; thousandths of calls per second")]
#[expect(clippy::cast_sign_loss, reason = "saturates at zero")]
fn whole(value: f64) -> u32 {
    value.min(f64::from(u32::MAX - 1)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three nodes settle their shares one after the other, as the log would.
    fn settle(max: u32, used: [u32; 3]) -> [u32; 3] {
        let mut own = [0u32; 3];
        for _ in 0..20 {
            for n in 0..3 {
                let others = own.iter().sum::<u32>() - own[n];
                let row = Row { own: own[n], others, nodes: 3 };
                let target = target(max, used[n], row);
                if differs(max, target, row) {
                    own[n] = target.min(max.saturating_sub(others)).max(used[n]);
                }
            }
        }
        assert!(own.iter().sum::<u32>() <= max.max(used.iter().sum()), "{own:?}");
        own
    }

    #[test]
    fn shares_settle_where_the_calls_are() {
        assert_eq!(settle(100, [0, 0, 0]), [16, 16, 16]);
        let busy = settle(100, [90, 0, 0]);
        assert!(busy[0] >= 92 && busy[1] >= 1 && busy[2] >= 1, "{busy:?}");
        // All but one place for each idle node.
        let full = settle(100, [98, 0, 0]);
        assert!(full[0] >= 98, "{full:?}");
        assert_eq!(settle(100, [40, 40, 20]), [40, 40, 20]);
        // More than allowed, after a takeover: counted, and no room.
        assert_eq!(settle(10, [9, 4, 0]), [9, 4, 0]);
        assert_eq!(settle(0, [0, 0, 0]), [0, 0, 0]);
    }

    #[test]
    fn a_node_alone_has_the_whole_limit() {
        assert_eq!(target(7, 0, Row { own: 0, others: 0, nodes: 1 }), 7);
    }
}
