//! Whether the devices that floating addresses live on have a carrier.
//!
//! A node that the cluster hears but its clients do not is of no use to its calls: what it holds
//! goes to the others until the link is back. What the device does not see (a switch further on
//! that fails) is not noticed here.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

/// A link that flaps for less than this is none of our business.
const LOST_FOR: Duration = Duration::from_millis(200);
/// How long all links must be there before calls come back to this node.
const BACK_FOR: Duration = Duration::from_secs(2);

/// What the devices say, over time.
#[derive(Debug)]
pub struct Carriers {
    devices: BTreeSet<String>,
    lost: bool,
    /// Since when the devices say otherwise than `lost`.
    differs_since: Option<Instant>,
}

impl Carriers {
    pub fn new(devices: impl Iterator<Item = String>) -> Carriers {
        Carriers { devices: devices.collect(), lost: false, differs_since: None }
    }

    /// Looks at the devices; `Some` when the verdict has changed: true when a link is lost, false
    /// when all are there again.
    pub fn look(&mut self, now: Instant) -> Option<bool> {
        let lost = self.devices.iter().any(|device| !has_carrier(device));
        self.judge(now, lost)
    }

    fn judge(&mut self, now: Instant, lost: bool) -> Option<bool> {
        if lost == self.lost {
            self.differs_since = None;
            return None;
        }
        let since = *self.differs_since.get_or_insert(now);
        let enough = if lost { LOST_FOR } else { BACK_FOR };
        if now.duration_since(since) < enough {
            return None;
        }
        self.differs_since = None;
        self.lost = lost;
        Some(lost)
    }

    /// The verdict could not be acted upon: it comes again.
    pub fn forget(&mut self) {
        self.lost = !self.lost;
    }
}

/// A device that is down or gone reads as an error, and has none.
fn has_carrier(device: &str) -> bool {
    std::fs::read(format!("/sys/class/net/{device}/carrier"))
        .is_ok_and(|text| text.starts_with(b"1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flap_is_nothing_and_a_loss_is_told_once() {
        let mut carriers = Carriers::new(std::iter::empty());
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        assert_eq!(carriers.judge(at(0), true), None);
        assert_eq!(carriers.judge(at(100), false), None, "it was a flap");
        assert_eq!(carriers.judge(at(150), true), None);
        assert_eq!(carriers.judge(at(349), true), None);
        assert_eq!(carriers.judge(at(350), true), Some(true));
        assert_eq!(carriers.judge(at(400), true), None, "told once");
        assert_eq!(carriers.judge(at(500), false), None);
        assert_eq!(carriers.judge(at(2_499), false), None);
        assert_eq!(carriers.judge(at(2_500), false), Some(false));
    }

    #[test]
    fn what_could_not_be_done_is_told_again() {
        let mut carriers = Carriers::new(std::iter::empty());
        let begin = Instant::now();
        assert_eq!(carriers.judge(begin, true), None);
        assert_eq!(carriers.judge(begin + LOST_FOR, true), Some(true));
        carriers.forget();
        assert_eq!(carriers.judge(begin + LOST_FOR, true), None);
        assert_eq!(carriers.judge(begin + LOST_FOR * 2, true), Some(true));
    }

    #[test]
    fn loopback_is_up_and_a_device_that_is_not_there_is_lost() {
        assert!(has_carrier("lo"));
        assert!(!has_carrier("no-such-device"));
    }
}
