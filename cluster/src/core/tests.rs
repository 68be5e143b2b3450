//! What the simulation finds once in thousands of seeds, put together by hand.

use protobuf::Message as _;
use raft::eraftpb::{ConfChangeType, ConfChangeV2, Entry, EntryType, HardState};

use super::*;
use crate::config::Timing;
use crate::state::{FORMAT_VERSION, Node};

const TICK: Duration = Duration::from_millis(25);

fn config() -> CoreConfig {
    CoreConfig {
        id: NodeId(1),
        boot: 1,
        format: FORMAT_VERSION,
        tick: TICK,
        heartbeat_ticks: 4,
        election_ticks: 16,
        lease: Timing::DEFAULT.lease,
        handover: Timing::DEFAULT.handover,
        wall_ms_at_zero: 0,
        snapshot_log_bytes: 1 << 20,
        keep_log_bytes: 1 << 20,
        pending_max: 16,
    }
}

/// A log of three founders that ends with an entry of which nobody knows whether it is committed.
fn recovered(last: Entry) -> Recovered {
    let ids: Vec<NodeId> = (1..=3).map(NodeId).collect();
    let row = |id: &NodeId| Node::founder(format!("n{id}"), format!("n{id}:1"), FORMAT_VERSION);
    let members: Vec<(NodeId, Node)> = ids.iter().map(|id| (*id, row(id))).collect();
    Recovered {
        tables: Tables::genesis(b"0123456789abcdef", &members),
        snapshot: Position::genesis(&ids),
        hard_state: HardState { term: 1, commit: 1, ..HardState::default() },
        entries: vec![last],
    }
}

/// What a peer says that has the same log and agrees to everything.
fn agreed(asked: &Message) -> Option<Message> {
    let kind = match asked.get_msg_type() {
        MessageType::MsgRequestPreVote => MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgRequestVote => MessageType::MsgRequestVoteResponse,
        MessageType::MsgAppend => MessageType::MsgAppendResponse,
        _ => return None,
    };
    let mut answer = Message { from: asked.to, to: asked.from, ..Message::default() };
    answer.set_msg_type(kind);
    answer.term = asked.term;
    answer.index = asked.index + asked.entries.len() as u64;
    Some(answer)
}

/// Lets the core and its peers talk until they have nothing to say. The numbers of the writes that it
/// asked for meanwhile: none of them is durable yet.
fn talk(core: &mut Core, now: Time) -> Vec<u64> {
    let mut writes = Vec::new();
    core.flush().expect("flush");
    while let Some(output) = core.poll() {
        match output {
            Output::Persist(persist) => writes.push(persist.number),
            Output::Send { to, bytes } => {
                let asked = Message::parse_from_bytes(&bytes).expect("a message");
                if let Some(answer) = agreed(&asked) {
                    let bytes = answer.write_to_bytes().expect("bytes").into();
                    core.handle(now, Input::Message { from: to, bytes }).expect("handle");
                    core.flush().expect("flush");
                }
            }
            _ => {}
        }
    }
    writes
}

#[test]
fn who_applies_its_own_removal_as_leader_steps_down() {
    let mut change = ConfChangeV2::default();
    change.set_changes(vec![govern::single(ConfChangeType::RemoveNode, NodeId(1))].into());
    let mut entry = Entry { index: 2, term: 1, ..Entry::default() };
    entry.set_entry_type(EntryType::EntryConfChangeV2);
    entry.data = change.write_to_bytes().expect("bytes").into();
    let mut now = Time::ZERO;
    let core = Core::new(config(), recovered(entry), LeaseCell::default(), now);
    let mut core = core.expect("a core");
    let mut writes = Vec::new();
    for _ in 0..40 {
        now += TICK;
        core.handle(now, Input::Tick).expect("tick");
        // A vote for itself must be durable before it counts; its first entry as leader is not yet.
        for number in writes.drain(..) {
            core.handle(now, Input::Persisted(number)).expect("persisted");
        }
        writes = talk(&mut core, now);
        if core.applied() >= 2 {
            break;
        }
    }
    assert!(core.applied() >= 2, "it was elected, and the others hold its first entry");
    assert!(!core.progress().voters.contains(&NodeId(1)));
    assert!(!core.progress().is_leader);
    assert!(!writes.is_empty(), "the entry is not durable here yet");
    for number in writes {
        core.handle(now, Input::Persisted(number)).expect("persisted");
    }
    for _ in 0..80 {
        now += TICK;
        core.handle(now, Input::Tick).expect("tick");
        talk(&mut core, now);
    }
    assert!(!core.progress().is_leader, "it does not stand again");
}
