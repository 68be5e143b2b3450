//! What this node owes the cluster a word about: that it has dropped what it was asked to drop.
//!
//! The others wait for it, and a proposal may be lost. So it is said until it was taken, or nobody
//! asks any more. No address is touched here.

use std::collections::BTreeSet;

use sbc_cluster::{Handle, NodeId, NodeState, Tables};

/// One thing to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Everything is written and dropped: the others take over. The number is the drain's.
    HandOver(u64),
    /// The addresses of this group are off the devices.
    Dropped(u32),
}

/// What was done and not confirmed by the log yet.
#[derive(Debug, Default)]
pub(super) struct Owed {
    drain: Option<u64>,
    groups: BTreeSet<u32>,
}

impl Owed {
    pub(super) fn note(&mut self, word: Word) {
        match word {
            Word::HandOver(drain) => self.drain = Some(drain),
            Word::Dropped(group) => drop(self.groups.insert(group)),
        }
    }

    /// The log has it.
    fn taken(&mut self, word: Word) {
        match word {
            Word::HandOver(drain) => self.drain = self.drain.filter(|d| *d != drain),
            Word::Dropped(group) => drop(self.groups.remove(&group)),
        }
    }

    /// The addresses of this group are here again: what was said of them is not true any more.
    pub(super) fn took(&mut self, group: u32) {
        self.groups.remove(&group);
    }

    /// What is still to be said. Forgets what nobody waits for.
    fn due(&mut self, asks: impl Fn(Word) -> bool) -> Vec<Word> {
        self.drain = self.drain.filter(|drain| asks(Word::HandOver(*drain)));
        self.groups.retain(|group| asks(Word::Dropped(*group)));
        let groups = self.groups.iter().map(|group| Word::Dropped(*group));
        groups.chain(self.drain.map(Word::HandOver)).collect()
    }

    /// Says what is due; what is not taken stays.
    pub(super) async fn say(&mut self, handle: &Handle) {
        let id = handle.id();
        for word in self.due(|word| handle.read(|tables| is_asked(tables, id, word))) {
            let said = match word {
                Word::HandOver(drain) => handle.hand_over(drain).await,
                Word::Dropped(group) => handle.addresses_dropped(group).await,
            };
            match said {
                Ok(_) => self.taken(word),
                Err(error) => tracing::warn!(?word, %error, "not said yet; trying again"),
            }
        }
    }
}

/// Whether the cluster still waits for this word of a node.
fn is_asked(tables: &Tables, id: NodeId, word: Word) -> bool {
    match word {
        Word::HandOver(drain) => tables
            .node(id)
            .is_some_and(|node| node.state == NodeState::Draining && node.drains == drain),
        Word::Dropped(group) => {
            tables.addresses().any(|(_, row)| row.group == group && row.holder == Some(id))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_said_until_it_is_taken_or_nobody_waits() {
        let mut owed = Owed::default();
        let (drain, group) = (Word::HandOver(3), Word::Dropped(7));
        owed.note(drain);
        owed.note(group);
        // Lost twice.
        assert_eq!(owed.due(|_| true), [group, drain]);
        assert_eq!(owed.due(|_| true), [group, drain]);
        owed.taken(group);
        assert_eq!(owed.due(|_| true), [drain]);
        // An answer to the word of an earlier drain is none to this.
        owed.note(Word::HandOver(4));
        owed.taken(drain);
        assert_eq!(owed.due(|_| true), [Word::HandOver(4)]);
        // The drain was taken back.
        assert_eq!(owed.due(|word| word != Word::HandOver(4)), []);
        assert_eq!(owed.due(|_| true), []);
    }

    #[test]
    fn what_is_held_again_is_not_said_to_be_dropped() {
        let mut owed = Owed::default();
        owed.note(Word::Dropped(1));
        owed.note(Word::Dropped(2));
        owed.took(1);
        assert_eq!(owed.due(|_| true), [Word::Dropped(2)]);
    }
}
