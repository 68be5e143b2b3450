//! Who watches registrations, and what they see: users that come, go and move.

use sbc_core::registrar::{Change, Changed};
use sbc_proto::admin::v1 as pb;
use tokio::sync::broadcast;

use super::time::unix_ms;

/// Events that may wait for the slowest watcher.
const BACKLOG: usize = 4_096;

/// The meeting point of shards and watchers. Without a watcher nothing is made.
#[derive(Clone, Debug)]
pub struct RegistrationHub(broadcast::Sender<pb::RegistrationEvent>);

impl Default for RegistrationHub {
    fn default() -> Self {
        RegistrationHub(broadcast::channel(BACKLOG).0)
    }
}

impl RegistrationHub {
    pub fn publish(&self, changed: &Changed) {
        if self.0.receiver_count() == 0 {
            return;
        }
        let change = match changed.how {
            Change::Registered => "registered",
            Change::Removed => "removed",
            Change::Expired => "expired",
            Change::Gone => "gone",
        };
        // The last watcher may have left in between.
        let _ = self.0.send(pb::RegistrationEvent {
            aor: changed.aor.to_string(),
            change: change.to_owned(),
            contacts: u32::try_from(changed.contacts).unwrap_or(u32::MAX),
            at_ms: unix_ms(),
        });
    }

    pub fn subscribe(&self) -> broadcast::Receiver<pb::RegistrationEvent> {
        self.0.subscribe()
    }
}
