//! What this node gives away: calls that go to another node, or are about to.
//!
//! The tables refuse a write to a call that another node owns, but they cannot tell a call that its
//! new owner has ended already from one that begins: a late write of the former owner would bring it
//! back, and it would end twice. So a node writes no call of a group whose release it has proposed
//! (what it proposed before is applied before), and none that has left it while it was running.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use super::Time;
use crate::types::{DialogKey, NodeId};

/// For so long a part of this node may not have heard yet that a call is another's.
const REMEMBERED: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct LetGo {
    /// Groups whose release is on its way, by the number of the proposal.
    releasing: BTreeMap<u64, u32>,
    /// Calls that left, with when.
    left: HashMap<DialogKey, Time>,
    /// The same in the order of time.
    lots: VecDeque<(Time, Vec<DialogKey>)>,
}

impl LetGo {
    pub(super) fn releases(&mut self, seq: u64, group: u32) {
        self.releasing.insert(seq, group);
    }

    /// Calls went from one node to another; `id` is this one.
    pub(super) fn moved(
        &mut self,
        now: Time,
        id: NodeId,
        (from, to): (NodeId, NodeId),
        dialogs: &[DialogKey],
    ) {
        if from == id {
            self.leave(now, dialogs.to_vec());
        } else if to == id {
            for key in dialogs {
                self.left.remove(key);
            }
        }
    }

    /// The tables are a snapshot's now, which does not tell what moved: `before` were ours.
    pub(super) fn reload(
        &mut self,
        now: Time,
        mut before: Vec<DialogKey>,
        ours: impl Fn(&DialogKey) -> bool,
    ) {
        self.left.retain(|key, _| !ours(key));
        before.retain(|key| !ours(key));
        self.leave(now, before);
    }

    fn leave(&mut self, now: Time, dialogs: Vec<DialogKey>) {
        self.forget(now);
        self.left.extend(dialogs.iter().map(|key| (*key, now)));
        self.lots.push_back((now, dialogs));
    }

    /// Whether a call is not ours to write any more; `pending` says whether a proposal is on its way.
    pub(super) fn has(
        &mut self,
        now: Time,
        key: &DialogKey,
        group: u32,
        pending: impl Fn(u64) -> bool,
    ) -> bool {
        self.forget(now);
        self.releasing.retain(|seq, _| pending(*seq));
        self.left.contains_key(key) || self.releasing.values().any(|g| *g == group)
    }

    fn forget(&mut self, now: Time) {
        while let Some((at, _)) = self.lots.front()
            && now.saturating_sub(*at) > REMEMBERED
            && let Some((at, keys)) = self.lots.pop_front()
        {
            for key in keys {
                if self.left.get(&key) == Some(&at) {
                    self.left.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLS: [DialogKey; 3] = [DialogKey([1; 16]), DialogKey([2; 16]), DialogKey([3; 16])];

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_group_is_let_go_for_as_long_as_its_release_is_on_its_way() {
        let mut let_go = LetGo::default();
        let_go.releases(7, 2);
        assert!(let_go.has(at(0), &CALLS[0], 2, |seq| seq == 7));
        assert!(!let_go.has(at(0), &CALLS[0], 1, |seq| seq == 7));
        assert!(!let_go.has(at(0), &CALLS[0], 2, |_| false));
        assert!(let_go.releasing.is_empty());
    }

    #[test]
    fn calls_that_left_are_remembered_until_they_come_back_or_a_minute_is_over() {
        let mut let_go = LetGo::default();
        let has = |let_go: &mut LetGo, now| CALLS.map(|key| let_go.has(at(now), &key, 0, |_| true));
        let (we, they) = (NodeId(1), NodeId(2));
        let_go.moved(at(0), we, (we, they), &CALLS);
        let_go.moved(at(0), we, (they, NodeId(3)), &[DialogKey([4; 16])]);
        assert_eq!(has(&mut let_go, 0), [true; 3]);
        let_go.moved(at(9), we, (they, we), &CALLS[..2]);
        let_go.moved(at(30), we, (we, they), &CALLS[1..2]);
        assert_eq!(has(&mut let_go, 60), [false, true, true]);
        assert_eq!(has(&mut let_go, 61), [false, true, false], "it left once more since");
        assert_eq!(has(&mut let_go, 91), [false; 3]);
        assert!(let_go.left.is_empty() && let_go.lots.is_empty());
    }

    #[test]
    fn after_a_snapshot_what_is_not_ours_any_more_has_left() {
        let mut let_go = LetGo::default();
        let (we, they) = (NodeId(1), NodeId(2));
        let_go.moved(at(0), we, (we, they), &CALLS[..1]);
        let_go.reload(at(1), CALLS[1..].to_vec(), |key| *key != CALLS[2]);
        let has = CALLS.map(|key| let_go.has(at(1), &key, 0, |_| true));
        assert_eq!(has, [false, false, true]);
    }
}
