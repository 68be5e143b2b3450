//! Who writes: dialogs that come, change and end, on whatever node; addresses at first.

use std::time::Duration;

use bytes::Bytes;

use super::world::{ENDS, Happening, World};
use crate::command::Command;
use crate::core::{Core, Input, ReplyId};
use crate::types::{DialogKey, NodeId};

impl World {
    /// A client writes to some node: a new dialog, a change of one that the node owns, its end.
    pub(super) fn client(&mut self) -> Result<(), String> {
        let pause = self.chance.range(5, 40);
        if self.now < ENDS - Duration::from_secs(8) {
            self.after_ms(pause, Happening::Client);
        }
        let ids = self.ids();
        let id = self.chance.pick(&ids);
        let now = self.now;
        let host = self.host(id);
        let Some(tables) = host.core.as_ref().map(Core::tables) else {
            return Ok(());
        };
        if host.paused_until > now {
            return Ok(());
        }
        if let Some((address, group)) = self.checks.undeclared_address() {
            return self.propose(id, Command::put_address(address, group, None), None).map(drop);
        }
        let (owned, ending): (Vec<DialogKey>, Vec<DialogKey>) = {
            let tables = tables.read().expect("not poisoned");
            let keys = tables.dialogs_of(id).map(|(key, _)| *key);
            keys.partition(|key| self.checks.lives(key))
        };
        let version = self.checks.next_version();
        // A part of the node that has not heard yet that the call is another's.
        let wrote: Vec<DialogKey> = self.host(id).wrote.iter().copied().collect();
        if !wrote.is_empty() && self.chance.percent(3) {
            let key = self.chance.pick(&wrote);
            return self.write(id, key, version);
        }
        // The end of a call was not confirmed: whoever carries it on ends it again.
        if !ending.is_empty() && self.chance.percent(10) {
            let key = self.chance.pick(&ending);
            let write = Some((key, version, true));
            return self.propose(id, Command::delete_dialog(key), write).map(drop);
        }
        let fresh = owned.is_empty() || (owned.len() < 60 && self.chance.percent(40));
        let key = if fresh {
            DialogKey((u128::from(version) << 64 | u128::from(id.0)).to_be_bytes())
        } else {
            self.chance.pick(&owned)
        };
        if !fresh && (owned.len() > 100 || self.chance.percent(10)) {
            let write = Some((key, version, true));
            return self.propose(id, Command::delete_dialog(key), write).map(drop);
        }
        self.write(id, key, version)
    }

    fn write(&mut self, id: NodeId, key: DialogKey, version: u64) -> Result<(), String> {
        self.host(id).wrote.insert(key);
        // A call keeps its group.
        let group = u32::from(key.0[7]) % 3;
        let value = Bytes::copy_from_slice(&version.to_be_bytes());
        let command = Command::put_dialog(key, group, &[version], value);
        self.propose(id, command, Some((key, version, false))).map(drop)
    }

    /// Proposes on a node; `write` is what it means for a dialog: key, version, whether it ends.
    pub(super) fn propose(
        &mut self,
        id: NodeId,
        command: Command,
        write: Option<(DialogKey, u64, bool)>,
    ) -> Result<ReplyId, String> {
        let reply = ReplyId(self.next_reply);
        self.next_reply += 1;
        if let Some((key, version, delete)) = write {
            if delete {
                self.host(id).wrote.remove(&key);
            }
            self.checks.asked(reply, key, version, delete);
        }
        let timeout = Duration::from_millis(500);
        self.give(id, Input::Propose { id: reply, command: command.0, timeout })?;
        Ok(reply)
    }
}
