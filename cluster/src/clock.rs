//! The one place that asks the operating system for the time, and for chance.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::core::Time;

/// Time since boot, suspension included: a machine that was suspended past its lease wakes up
/// knowing so.
pub(crate) fn now() -> Time {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
    // The call fails only for a clock that the kernel does not have; every Linux has this one.
    time.unwrap_or(Duration::ZERO)
}

/// Unix time in milliseconds; only for what people read and for certificates.
pub(crate) fn wall_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// Bytes that nobody can guess.
pub(crate) fn entropy<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // getrandom(2) fails only where the kernel lacks it, and then nothing here is safe.
    SystemRandom::new().fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}
