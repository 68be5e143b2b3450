//! When arriving messages may gather before a shard takes them.

use std::time::{Duration, Instant};

use super::Settings;

/// Decides when arriving messages may gather.
pub(super) struct Pace {
    gather: Duration,
    /// Wake-ups closer together than this are load.
    close: Duration,
    last: Option<Instant>,
    /// Moving average of the time between wake-ups, in nanoseconds.
    between_ns: u64,
}

impl Pace {
    pub(super) fn new(settings: &Settings) -> Pace {
        let per_second = settings.gather_above.max(1);
        Pace {
            gather: settings.gather,
            close: Duration::from_secs(1) / per_second,
            last: None,
            between_ns: 1_000_000_000,
        }
    }

    /// How long to wait before taking what woke us up.
    pub(super) fn pause(&mut self, now: Instant, woken: bool) -> Option<Duration> {
        if self.gather.is_zero() || !woken {
            return None;
        }
        let since = self.last.map_or(Duration::from_secs(1), |at| now.duration_since(at));
        let since_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).min(1_000_000_000);
        self.between_ns = self.between_ns - self.between_ns / 16 + since_ns / 16;
        self.last = Some(now);
        let busy = u128::from(self.between_ns) < self.close.as_nanos();
        busy.then_some(self.gather)
    }
}
