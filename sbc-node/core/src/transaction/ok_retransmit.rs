//! When a UAS repeats its 2xx to an INVITE: RFC 3261 §13.3.1.4.
//!
//! The server transaction is in Accepted meanwhile and repeats nothing (RFC 6026 §7.1); the bytes,
//! the ACK and the BYE after giving up belong to the call.

use std::time::{Duration, Instant};

use super::TimerConfig;

/// The schedule of one 2xx: T1, doubling up to T2, for 64*T1; over any transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OkRetransmit {
    next: Instant,
    interval: Duration,
    give_up: Instant,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OkDue {
    /// Nothing before [`OkRetransmit::deadline`].
    Wait,
    /// Send the 2xx again.
    Send,
    /// No ACK came: BYE.
    GiveUp,
}

impl OkRetransmit {
    /// The 2xx was sent for the first time at `now`.
    pub fn new(now: Instant, timers: &TimerConfig) -> Self {
        OkRetransmit { next: now + timers.t1, interval: timers.t1, give_up: now + timers.t1 * 64 }
    }

    /// When to call [`due`](Self::due).
    pub fn deadline(&self) -> Instant {
        self.next.min(self.give_up)
    }

    /// Moves on; a late caller sends once, not once per interval missed.
    pub fn due(&mut self, now: Instant, timers: &TimerConfig) -> OkDue {
        if now >= self.give_up {
            return OkDue::GiveUp;
        }
        if now < self.next {
            return OkDue::Wait;
        }
        self.interval = (self.interval * 2).min(timers.t2);
        self.next = now + self.interval;
        OkDue::Send
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3261_13_3_1_4_schedule() {
        let t0 = Instant::now();
        let timers = TimerConfig::default();
        let mut ok = OkRetransmit::new(t0, &timers);
        let mut sent = Vec::new();
        let gave_up = loop {
            let now = ok.deadline();
            match ok.due(now, &timers) {
                OkDue::Send => sent.push((now - t0).as_millis()),
                OkDue::GiveUp => break now - t0,
                OkDue::Wait => unreachable!("called at its deadline"),
            }
        };
        assert_eq!(
            sent,
            [500, 1_500, 3_500, 7_500, 11_500, 15_500, 19_500, 23_500, 27_500, 31_500]
        );
        assert_eq!(gave_up, Duration::from_secs(32));
    }

    #[test]
    fn waits_when_called_early() {
        let t0 = Instant::now();
        let timers = TimerConfig::default();
        let mut ok = OkRetransmit::new(t0, &timers);
        assert_eq!(ok.due(t0, &timers), OkDue::Wait);
        assert_eq!(ok.due(t0 + Duration::from_secs(10), &timers), OkDue::Send);
        assert_eq!(ok.due(t0 + Duration::from_secs(10), &timers), OkDue::Wait);
    }
}
