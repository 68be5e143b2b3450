//! How many re-INVITEs may go at a moment, after many calls came here at once.

use tokio::time::Instant;

/// So much of a second's number may go at once after a pause.
const BURST_DIVISOR: u32 = 10;

/// A rate, without a burst that the peers would feel.
#[derive(Debug)]
pub(super) struct Pace {
    per_s: u32,
    /// Millionths of a call.
    credit: u64,
    at: Option<Instant>,
}

impl Pace {
    pub(super) fn new(per_s: u32) -> Pace {
        Pace { per_s: per_s.max(1), credit: 0, at: None }
    }

    /// How many of those that wait may go now. Where nobody waits time counts for nothing.
    pub(super) fn due(&mut self, now: Instant, waiting: usize) -> usize {
        if waiting == 0 {
            self.at = None;
            return 0;
        }
        let burst = u64::from((self.per_s / BURST_DIVISOR).max(1)) * 1_000_000;
        let earned = match self.at.replace(now) {
            // The first goes at once.
            None => 1_000_000,
            Some(before) => {
                let us = (now - before).as_micros().min(1_000_000);
                u64::from(self.per_s) * u64::try_from(us).unwrap_or(1_000_000)
            }
        };
        self.credit = (self.credit + earned).min(burst);
        let whole = usize::try_from(self.credit / 1_000_000).unwrap_or(usize::MAX).min(waiting);
        self.credit -= u64::try_from(whole).unwrap_or(0) * 1_000_000;
        whole
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// 600 a second, looked at every 50 ms: 1,000 calls within 1.7 s. Slower than a look, too.
    #[test]
    fn so_many_go_in_a_second() {
        for (per_s, waiting, ticks) in [(600, 1_000, 34), (20, 40, 40), (3, 6, 40)] {
            let mut pace = Pace::new(per_s);
            let (t0, mut left, mut tick) = (Instant::now(), waiting, 0);
            while left > 0 {
                let now = t0 + Duration::from_millis(50) * tick;
                let go = pace.due(now, left);
                assert!(go <= (per_s as usize / 10).max(1), "{go} at once");
                left -= go;
                tick += 1;
            }
            assert!(tick.abs_diff(ticks) <= 8, "{per_s}: {tick} ticks");
        }
    }

    #[test]
    fn a_pause_saves_nothing_up() {
        let mut pace = Pace::new(100);
        let t0 = Instant::now();
        assert_eq!(pace.due(t0, 5), 1);
        assert_eq!(pace.due(t0 + Duration::from_secs(1), 0), 0);
        assert_eq!(pace.due(t0 + Duration::from_secs(60), 500), 1);
    }
}
