//! Overload control: what is shed when the node cannot keep up, and how honestly.
//!
//! Load is the worse of queue delay and CPU, each against its own span from "well" to "too much",
//! smoothed. New INVITEs go first, REGISTER by random early drop later, requests inside dialogs and
//! emergency calls never. Retry-After grows with the load, spread so that callers do not come back
//! together (RFC 7339 has the idea; its feedback is not spoken).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::{Rng, RngExt};

/// From where on load is shed, and where nothing of a kind is left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OverloadConfig {
    /// Queue delay at which shedding begins.
    pub delay_low: Duration,
    /// Queue delay at which no new call is taken.
    pub delay_high: Duration,
    /// Share of the cores, 0 to 1.
    pub cpu_low: f64,
    pub cpu_high: f64,
    /// Retry-After at full load; a tenth of it at the beginning.
    pub retry_after_max: Duration,
}

impl Default for OverloadConfig {
    fn default() -> OverloadConfig {
        OverloadConfig {
            delay_low: Duration::from_millis(20),
            delay_high: Duration::from_millis(200),
            cpu_low: 0.85,
            cpu_high: 0.98,
            retry_after_max: Duration::from_secs(30),
        }
    }
}

/// What is to be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// An INVITE outside a dialog.
    NewCall,
    /// The same from a trunk: who we know is shed later.
    TrunkCall,
    /// REGISTER, and other requests outside dialogs.
    Register,
    InDialog,
    Emergency,
}

/// See the module's header.
///
/// One per node, measured by its edge and asked by its shards.
#[derive(Debug)]
pub struct Overload {
    config: OverloadConfig,
    /// 0 is well, 1 is too much; the bits of an `f64`.
    load: AtomicU64,
    /// Refused, by kind of work.
    shed: [AtomicU64; 2],
}

/// Weight of a new measurement.
///
/// Ten a second: a burst that is over within half a second moves the load by a quarter.
const SMOOTHING: f64 = 0.05;
/// REGISTER is dropped only above this load, with growing probability.
const REGISTER_FROM: f64 = 0.5;
/// Calls of trunks are shed above this load.
const TRUNK_FROM: f64 = 0.5;

impl Overload {
    pub fn new(config: OverloadConfig) -> Overload {
        Overload { config, load: AtomicU64::new(0), shed: [const { AtomicU64::new(0) }; 2] }
    }

    /// One measurement: how long the oldest waiting message has waited, and the share of the cores
    /// in use. Called at a steady pace.
    pub fn observe(&self, queue_delay: Duration, cpu: f64) {
        let c = &self.config;
        let delay =
            share(queue_delay.as_secs_f64(), c.delay_low.as_secs_f64(), c.delay_high.as_secs_f64());
        let now = delay.max(share(cpu, c.cpu_low, c.cpu_high));
        let mut load = self.load();
        load += SMOOTHING * (now - load);
        let load = if load < 0.001 { 0.0 } else { load };
        self.load.store(load.to_bits(), Ordering::Relaxed);
    }

    /// The same under another configuration, with the load as it is.
    pub fn reconfigured(&self, config: OverloadConfig) -> Overload {
        let copy = |cell: &AtomicU64| AtomicU64::new(cell.load(Ordering::Relaxed));
        let [calls, others] = &self.shed;
        Overload { config, load: copy(&self.load), shed: [copy(calls), copy(others)] }
    }

    /// New calls and other requests shed since the start.
    pub fn shed(&self) -> [u64; 2] {
        self.shed.each_ref().map(|cell| cell.load(Ordering::Relaxed))
    }

    /// 0 is well, 1 is too much.
    pub fn load(&self) -> f64 {
        f64::from_bits(self.load.load(Ordering::Relaxed))
    }

    /// Whether the work is taken; otherwise the seconds for Retry-After.
    pub fn admit(&self, work: Work, rng: &mut impl Rng) -> Result<(), u32> {
        let [calls, others] = &self.shed;
        let (refuse, shed) = match work {
            Work::InDialog | Work::Emergency => return Ok(()),
            Work::NewCall => (self.load(), calls),
            Work::TrunkCall => (share(self.load(), TRUNK_FROM, 1.0), calls),
            Work::Register => (share(self.load(), REGISTER_FROM, 1.0), others),
        };
        if refuse <= 0.0 || rng.random::<f64>() >= refuse {
            return Ok(());
        }
        shed.fetch_add(1, Ordering::Relaxed);
        Err(self.wait(rng))
    }

    fn wait(&self, rng: &mut impl Rng) -> u32 {
        let max = self.config.retry_after_max.as_secs_f64();
        let base = max * (0.1 + 0.9 * self.load());
        let spread = base * (0.75 + 0.5 * rng.random::<f64>());
        u32::try_from(Duration::from_secs_f64(spread).as_secs()).unwrap_or(u32::MAX).max(1)
    }
}

/// Where `value` lies between `low` (0) and `high` (1).
fn share(value: f64, low: f64, high: f64) -> f64 {
    if high <= low {
        return if value >= high { 1.0 } else { 0.0 };
    }
    ((value - low) / (high - low)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn loaded(delay_ms: u64, cpu: f64) -> Overload {
        let o = Overload::new(OverloadConfig::default());
        for _ in 0..400 {
            o.observe(Duration::from_millis(delay_ms), cpu);
        }
        o
    }

    fn taken(o: &Overload, work: Work) -> usize {
        let mut rng = StdRng::seed_from_u64(1);
        (0..1_000).filter(|_| o.admit(work, &mut rng).is_ok()).count()
    }

    #[test]
    fn calls_are_shed_first_then_registers_and_dialogs_never() {
        let well = loaded(5, 0.5);
        assert_eq!(taken(&well, Work::NewCall), 1_000);
        let half = loaded(110, 0.5);
        assert!((450..550).contains(&taken(&half, Work::NewCall)), "{}", half.load());
        assert!(taken(&half, Work::Register) > 990);
        assert!(taken(&half, Work::TrunkCall) > 990);
        let hot = loaded(5, 0.97);
        assert!(taken(&hot, Work::NewCall) < 120);
        assert!((100..300).contains(&taken(&hot, Work::Register)));
        let full = loaded(500, 1.0);
        assert_eq!(taken(&full, Work::NewCall), 0);
        for work in [Work::InDialog, Work::Emergency] {
            assert_eq!(taken(&full, work), 1_000);
        }
    }

    #[test]
    fn retry_after_grows_with_the_load_and_is_spread() {
        let mut rng = StdRng::seed_from_u64(1);
        let full = loaded(500, 1.0);
        let waits: Vec<u32> =
            (0..100).filter_map(|_| full.admit(Work::NewCall, &mut rng).err()).collect();
        assert_eq!(waits.len(), 100);
        assert!(waits.iter().all(|w| (22..=37).contains(w)));
        assert!(waits.iter().max() > waits.iter().min());
    }

    #[test]
    fn it_recovers() {
        let o = loaded(500, 1.0);
        for _ in 0..400 {
            o.observe(Duration::ZERO, 0.1);
        }
        assert_eq!(o.load(), 0.0);
    }
}
