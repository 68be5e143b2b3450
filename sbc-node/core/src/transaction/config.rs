//! The timer values of RFC 3261 §17 (table 4) and the bounds of the transaction tables.
//!
//! Values only; which state arms which timer is in the four machines.

use std::time::Duration;

/// Timer values of every transaction of a shard (RFC 3261 table 4, RFC 6026 §7 and §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerConfig {
    /// Round-trip estimate: first interval of timers A, E, G.
    pub t1: Duration,
    /// Largest interval of timers E and G.
    pub t2: Duration,
    /// Longest time a message stays in the network: timers I and K.
    pub t4: Duration,
    /// Timer B: INVITE without any response. Lower it to fail over sooner.
    pub b: Duration,
    /// Timer D: absorbs repeated final responses of an INVITE over UDP.
    pub d: Duration,
    /// Timer F: non-INVITE without a final response. A server gives up as late (RFC 4320 §4.2).
    pub f: Duration,
    /// Timer H: final response of an INVITE without ACK.
    pub h: Duration,
    /// Timer J: absorbs repeated non-INVITE requests over UDP.
    pub j: Duration,
    /// Timer L: server INVITE after its first 2xx (RFC 6026 §7.1).
    pub l: Duration,
    /// Timer M: client INVITE after its first 2xx (RFC 6026 §7.2).
    pub m: Duration,
    /// A server INVITE without a response gets 100 after this (RFC 3261 §17.2.1: 200 ms).
    pub trying: Duration,
    /// A cancelled INVITE without a final response is given up after this (RFC 3261 §9.1).
    pub cancelled: Duration,
}

impl TimerConfig {
    /// All values derived from T1, T2 and T4 as table 4 has them.
    pub fn from_base(t1: Duration, t2: Duration, t4: Duration) -> Self {
        let long = t1 * 64;
        TimerConfig {
            t1,
            t2,
            t4,
            b: long,
            d: long.max(Duration::from_secs(32)),
            f: long,
            h: long,
            j: long,
            l: long,
            m: long,
            trying: Duration::from_millis(200),
            cancelled: long,
        }
    }

    /// How long a client's timer E takes to be reset to T2: before it no 100 may answer a
    /// non-INVITE over UDP, after it one must (RFC 4320 §4.1). 3.5 s with default values.
    pub fn non_invite_trying(&self) -> Duration {
        let mut interval = self.t1.max(Duration::from_millis(1));
        let mut elapsed = interval;
        while interval * 2 < self.t2 {
            interval *= 2;
            elapsed += interval;
        }
        elapsed
    }
}

impl TimerConfig {
    /// The same values, but none that repeats at once: T1 of at least 1 ms, T2 of at least T1.
    pub(super) fn sane(self) -> Self {
        let t1 = self.t1.max(Duration::from_millis(1));
        TimerConfig { t1, t2: self.t2.max(t1), ..self }
    }
}

impl Default for TimerConfig {
    /// T1 500 ms, T2 4 s, T4 5 s.
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self::from_base(ms(500), ms(4_000), ms(5_000))
    }
}

/// Bounds of one shard's transaction layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    pub timers: TimerConfig,
    /// Past it [`send_request`](super::TransactionLayer::send_request) refuses.
    pub max_clients: usize,
    /// Past it a new request is answered 503 without a transaction. The last tenth is kept for
    /// requests within dialogs.
    pub max_servers: usize,
    /// Value of `Retry-After` in that 503, in seconds.
    pub retry_after_secs: u32,
    /// Late 2xx told to the TU per second. Each costs an ACK and a BYE to wherever it says, so a
    /// forger must not get many out of us.
    pub stray_ok_per_sec: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            timers: TimerConfig::default(),
            max_clients: 200_000,
            max_servers: 200_000,
            retry_after_secs: 5,
            stray_ok_per_sec: 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3261_table4_defaults() {
        let t = TimerConfig::default();
        assert_eq!((t.b, t.f, t.h, t.l, t.m), {
            let long = Duration::from_secs(32);
            (long, long, long, long, long)
        });
        assert_eq!(t.d, Duration::from_secs(32));
    }

    #[test]
    fn rfc4320_4_1_trying_when_timer_e_reaches_t2() {
        // E fires at 0.5, 1.5, 3.5 s; at 3.5 s it is reset to 4 s.
        assert_eq!(TimerConfig::default().non_invite_trying(), Duration::from_millis(3_500));
    }
}
