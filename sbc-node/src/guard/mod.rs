//! The edge of the guard: bans go to the kernel's drop set and to the cluster, the node's load is
//! measured, lists of bans are read.
//!
//! What is banned, and why, is decided in `sbc_core::guard`; what a shard does with it, in the
//! shard. `keeper.rs` is the thread that follows the guard, `load.rs` the measurement, `list.rs`
//! files of bans.

pub mod keeper;
pub mod list;
pub mod load;

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use media_anchor::kernel::{BanConfig, BanStatus, Bans};
use sbc_core::guard::{Guard, Overload};

use crate::config::Config;
use crate::shard::stats::Kind;
use crate::store::bans::ClusterBans;
use crate::telemetry::events::EventHub;
use crate::telemetry::metrics::{Sample, number};
use keeper::Keeper;

/// The guard of a running node and what follows it.
pub struct Border {
    pub guard: Arc<Guard>,
    overload: ArcSwap<Overload>,
    kernel: Arc<Bans>,
    keeper: Keeper,
    cluster: Option<ClusterBans>,
}

impl Border {
    /// Opens the kernel's drop set, unless the configuration is against it, and follows the guard
    /// from now on. It never fails: without the kernel bans are userspace's alone.
    pub fn start(
        config: &Config,
        cluster: Option<ClusterBans>,
        events: EventHub,
    ) -> std::io::Result<Border> {
        let guard = Arc::new(Guard::new(config.guard.clone(), Instant::now()));
        let kernel = Arc::new(if config.ban_set.kernel {
            Bans::start(BanConfig {
                table: table_name(&config.node.name),
                devices: config.ban_set.devices.clone(),
                bans_max: u32::try_from(config.guard.max_bans).unwrap_or(u32::MAX),
            })
        } else {
            Bans::off("switched off in the configuration")
        });
        if let Some(cluster) = &cluster {
            cluster.set_trusted(config.guard.trusted.clone());
        }
        let keeper =
            Keeper::start(Arc::clone(&guard), Arc::clone(&kernel), cluster.clone(), events)?;
        let overload = ArcSwap::from_pointee(Overload::new(config.overload));
        let border = Border { guard, overload, kernel, keeper, cluster };
        border.import(config);
        Ok(border)
    }

    /// Takes a new configuration; bans and the measured load stay.
    pub fn configure(&self, config: &Config) {
        self.guard.configure(config.guard.clone(), Instant::now());
        self.overload.store(Arc::new(self.overload.load().reconfigured(config.overload)));
        if let Some(cluster) = &self.cluster {
            cluster.set_trusted(config.guard.trusted.clone());
        }
        self.import(config);
    }

    /// Gives the shards what they ask.
    pub fn given_to(&self, core: &mut sbc_core::core::Config) {
        core.guard = Some(Arc::clone(&self.guard));
        core.overload = Some(self.overload.load_full());
    }

    pub fn overload(&self) -> Arc<Overload> {
        self.overload.load_full()
    }

    /// Where bans are dropped, and how many packets were.
    pub fn kernel(&self) -> BanStatus {
        self.kernel.status()
    }

    /// Bans of the files that the configuration names. They hold until they are lifted, and are
    /// this node's own: the other nodes have the file as well.
    fn import(&self, config: &Config) {
        for list in &config.ban_set.lists {
            let outcome = list::apply(&self.guard, &list.bans, &list.name, None, true);
            tracing::info!(list = %list.name, bans = outcome.added, refused = outcome.refused.len(),
                "bans imported");
        }
    }

    /// Lifts the kernel's bans and removes its table.
    pub fn stop(&self) {
        self.keeper.stop();
    }

    pub fn samples(&self, out: &mut Vec<Sample>) {
        let mut push = |name, help, kind, labels, value: u64| {
            out.push(Sample { name, help, kind, labels, value: number(value) });
        };
        let (c, g) = (Kind::Counter, Kind::Gauge);
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        for (reason, value) in self.guard.counts().dropped() {
            let labels = vec![("reason", reason.as_str().to_owned())];
            push("sbc_guard_dropped_messages", "Dropped by the guard", c, labels, value);
        }
        for (reason, value) in self.guard.counts().refused() {
            let labels = vec![("reason", reason.as_str().to_owned())];
            push("sbc_guard_refused_requests", "Answered by the guard", c, labels, value);
        }
        let (nodes, buckets) = self.guard.sizes();
        let blocks = self.guard.counts().blocks();
        push("sbc_guard_pike_blocks", "Sources blocked by pike", c, vec![], blocks);
        push("sbc_guard_pike_nodes", "Nodes of pike's tree", g, vec![], count(nodes));
        push("sbc_guard_buckets", "Buckets of rate limits", g, vec![], count(buckets));
        let nodes = self.guard.nodes().into();
        push("sbc_guard_rate_nodes", "Nodes that share the cluster's rates", g, vec![], nodes);
        let unlimited = self.guard.unlimited();
        push("sbc_guard_unlimited_requests", "Passed: no bucket free", c, vec![], unlimited);
        push("sbc_guard_bans", "Bans in force", g, vec![], count(self.guard.banned()));
        for (reason, value) in self.keeper.added() {
            let labels = vec![("reason", reason.to_owned())];
            push("sbc_guard_bans_added", "Bans taken", c, labels, value);
        }
        push("sbc_guard_bans_ended", "Bans run out or lifted", c, vec![], self.keeper.ended());
        for (what, value) in
            ["warning", "critical", "refused"].into_iter().zip(self.guard.counts().fraud())
        {
            let labels = vec![("finding", what.to_owned())];
            push("sbc_guard_fraud_findings", "Calls over a fraud threshold", c, labels, value);
        }
        let kernel = self.kernel();
        let dropped = kernel.dropped;
        push("sbc_guard_kernel", "Whether the kernel drops", g, vec![], u64::from(kernel.kernel));
        push("sbc_guard_kernel_bans", "Bans in the kernel", g, vec![], kernel.bans);
        push("sbc_guard_kernel_dropped_packets", "Dropped by the kernel", c, vec![], dropped);
        push("sbc_guard_kernel_refused_bans", "Bans not in the kernel", c, vec![], kernel.refused);
        let overload = self.overload.load();
        out.push(Sample {
            name: "sbc_overload_load",
            help: "Load as overload control sees it: 0 is well, 1 is too much",
            kind: g,
            labels: vec![],
            value: overload.load(),
        });
        for (work, value) in ["call", "other"].into_iter().zip(overload.shed()) {
            out.push(Sample {
                name: "sbc_overload_shed_requests",
                help: "Refused by overload control",
                kind: c,
                labels: vec![("work", work.to_owned())],
                value: number(value),
            });
        }
    }
}

/// Nodes that share a network namespace must not share a table.
fn table_name(node: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let node: String = node.chars().take(64).map(plain).collect();
    format!("sbc_ban_{node}")
}
