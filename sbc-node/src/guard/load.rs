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
    let mut before = Busy::now();
    loop {
        ticks.tick().await;
        let now = Busy::now();
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
    process: f64,
}

impl Busy {
    fn now() -> Busy {
        Busy { at: Instant::now(), process: ProcessUse::cpu_seconds() }
    }

    /// The share of all cores that the process used. One shard that is full among idle ones shows
    /// by the delay of what waits for it.
    fn since(&self, before: &Busy, cores: f64) -> f64 {
        let seconds = (self.at - before.at).as_secs_f64().max(1e-3);
        ((self.process - before.process) / seconds / cores).clamp(0.0, 1.0)
    }
}
