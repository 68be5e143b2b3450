//! The node's load: how long messages wait in the sockets, and how busy the cores are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Border;
use crate::shard::stats::ShardStats;
use crate::telemetry::metrics::{ProcessUse, number};

/// Time between two measurements.
pub const EVERY: Duration = Duration::from_millis(100);

/// Measures until the task is dropped, and tells the guard and overload control.
pub async fn measure(border: Arc<Border>, stats: Vec<Arc<ShardStats>>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = number(u64::try_from(cores).unwrap_or(1));
    let mut before = Busy::now(&stats);
    loop {
        ticks.tick().await;
        let now = Busy::now(&stats);
        let cpu = now.since(&before, cores);
        let delay = stats.iter().map(|s| s.queue_delay_us.get()).max().unwrap_or(0);
        let delay = Duration::from_micros(delay);
        border.overload().observe(delay, cpu);
        border.guard.observe(delay, cpu);
        before = now;
    }
}

struct Busy {
    at: Instant,
    /// Microseconds of work of each shard.
    shards: Vec<u64>,
    process: f64,
}

impl Busy {
    fn now(stats: &[Arc<ShardStats>]) -> Busy {
        Busy {
            at: Instant::now(),
            shards: stats.iter().map(|s| s.busy_us.get()).collect(),
            process: ProcessUse::cpu_seconds(),
        }
    }

    /// The share in use: of the busiest shard, which is one core, or of the process over all.
    fn since(&self, before: &Busy, cores: f64) -> f64 {
        let seconds = (self.at - before.at).as_secs_f64().max(1e-3);
        let pairs = self.shards.iter().zip(&before.shards);
        let busiest = pairs.map(|(now, then)| now.saturating_sub(*then)).max().unwrap_or(0);
        let process = (self.process - before.process) / seconds / cores;
        (number(busiest) / 1e6 / seconds).max(process).clamp(0.0, 1.0)
    }
}
