//! STUN on the SIP ports: how many binding requests a shard answers. What an answer is, is the core's
//! (`sbc_core::stun`); the server on ports of its own is `stun_server.rs`.

use std::time::Instant;

pub use sbc_core::stun::{answer, is_response, is_stun};

/// Answers per second of one shard, with as many at once.
#[derive(Debug)]
pub struct Rate {
    per_second: u32,
    left: u32,
    since: Option<Instant>,
}

impl Rate {
    /// 0 answers nothing.
    pub fn new(per_second: u32) -> Rate {
        Rate { per_second, left: per_second, since: None }
    }

    /// Whether one more may be answered.
    pub fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since).as_secs() >= 1 {
            (self.left, self.since) = (self.per_second, Some(now));
        }
        let room = self.left > 0;
        self.left = self.left.saturating_sub(1);
        room
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_rate_is_bounded() {
        let start = Instant::now();
        let mut rate = Rate::new(2);
        assert_eq!([rate.take(start), rate.take(start), rate.take(start)], [true, true, false]);
        assert!(rate.take(start + Duration::from_secs(1)));
        assert!(!Rate::new(0).take(start));
    }
}
