//! What this node owes the cluster a word about: that it has dropped what it was asked to drop.
//!
//! The others wait for it, and a proposal may be lost, or arrive when it is not true any more. So it names
//! what it answers, and is said until nobody asks any more. No address is touched here.

use std::collections::BTreeMap;

use sbc_cluster::{Address, Handle, NodeId, NodeState};

/// A group of which the cluster asks for addresses back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) group: u32,
    /// The log index of the latest asking: what is said answers this one and those before.
    pub(super) at: u64,
    /// Every address that is to be off its device before it is said.
    pub(super) addresses: Vec<String>,
}

/// What the rows ask of a node.
pub(super) fn asked_of<'a>(
    rows: impl Iterator<Item = (&'a str, &'a Address)>,
    id: NodeId,
) -> Vec<Asked> {
    let mut groups: BTreeMap<u32, Asked> = BTreeMap::new();
    for (address, row) in rows {
        if let Some(at) = row.is_asked_of(id) {
            let none = Asked { group: row.group, at, addresses: Vec::new() };
            let asked = groups.entry(row.group).or_insert(none);
            asked.at = asked.at.max(at);
            asked.addresses.push(address.to_owned());
        }
    }
    groups.into_values().collect()
}

/// A drain for which everything is written and dropped, and which the log does not know to be done.
#[derive(Debug, Default)]
pub(super) struct Owed {
    drain: Option<u64>,
}

impl Owed {
    pub(super) fn hand_over(&mut self, drain: u64) {
        self.drain = Some(drain);
    }

    /// What is still to be said. Forgets a drain that nobody waits for.
    fn due(&mut self, waits: impl Fn(u64) -> bool) -> Option<u64> {
        self.drain = self.drain.filter(|drain| waits(*drain));
        self.drain
    }

    /// Says what is due; what is not taken stays.
    pub(super) async fn say(&mut self, handle: &Handle) {
        let node = || handle.read(|tables| tables.node(handle.id()).map(|n| (n.state, n.drains)));
        let Some(drain) = self.due(|drain| node() == Some((NodeState::Draining, drain))) else {
            return;
        };
        match handle.hand_over(drain).await {
            Ok(_) => self.drain = None,
            Err(error) => tracing::warn!(drain, %error, "hand-over not said yet; trying again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use sbc_cluster::Next;

    use super::*;

    #[test]
    fn a_drain_is_said_as_long_as_it_is_waited_for() {
        let mut owed = Owed::default();
        assert_eq!(owed.due(|_| true), None);
        owed.hand_over(3);
        assert_eq!((owed.due(|_| true), owed.due(|_| true)), (Some(3), Some(3)));
        // The drain was taken back.
        assert_eq!(owed.due(|drain| drain != 3), None);
        assert_eq!(owed.due(|_| true), None);
    }

    #[test]
    fn all_that_is_asked_of_a_group_goes_before_it_is_said() {
        let us = NodeId(1);
        let row = |group, holder, next, asked| Address {
            group,
            holder: Some(NodeId(holder)),
            next,
            prefer: None,
            asked,
        };
        let to = Next::Move(NodeId(2));
        let rows = [
            ("a", row(1, 1, to, 7)),
            ("b", row(1, 1, Next::Delete, 9)),
            ("stays", row(1, 1, Next::Stay, 11)),
            ("other", row(2, 3, to, 12)),
            ("c", row(3, 1, to, 5)),
        ];
        let asked = asked_of(rows.iter().map(|(address, row)| (*address, row)), us);
        let expected = [(1, 9, vec!["a", "b"]), (3, 5, vec!["c"])].map(|(group, at, addresses)| {
            Asked { group, at, addresses: addresses.into_iter().map(str::to_owned).collect() }
        });
        assert_eq!(asked, expected);
    }
}
