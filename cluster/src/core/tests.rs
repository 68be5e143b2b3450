//! What the simulation finds once in thousands of seeds, put together by hand.

use protobuf::Message as _;
use raft::eraftpb::{ConfChangeType, ConfChangeV2, Entry, EntryType, HardState};

use super::*;
use crate::command::Command;
use crate::config::Timing;
use crate::state::{FORMAT_VERSION, Node};
use crate::types::{DialogKey, Rejection};

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
        MessageType::MsgHeartbeat => MessageType::MsgHeartbeatResponse,
        _ => return None,
    };
    let mut answer = Message { from: asked.to, to: asked.from, ..Message::default() };
    answer.set_msg_type(kind);
    answer.term = asked.term;
    answer.context = asked.context.clone();
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

/// A tenth of a second in which peers agree and writes are durable at once. Peers that say nothing by
/// themselves are declared down by a leader after ten or so.
fn settle(core: &mut Core, now: &mut Time) {
    for _ in 0..4 {
        *now += TICK;
        core.handle(*now, Input::Tick).expect("tick");
        for number in talk(core, *now) {
            core.handle(*now, Input::Persisted(number)).expect("persisted");
        }
    }
}

#[test]
fn a_call_that_is_given_away_is_not_written_any_more() {
    let mut now = Time::ZERO;
    let none = Entry { index: 2, term: 1, ..Entry::default() };
    let core = Core::new(config(), recovered(none), LeaseCell::default(), now);
    let mut core = core.expect("a core");
    while !core.progress().is_leader {
        settle(&mut core, &mut now);
    }
    let call = DialogKey([7; 16]);
    let put = || Command::put_dialog(call, 1, &[], Bytes::from_static(b"call"));
    let mut number = 0;
    let mut say = |core: &mut Core, now: Time, command: Command| {
        number += 1;
        let timeout = Duration::from_secs(1);
        let said = Input::Propose { id: ReplyId(number), command: command.0, timeout };
        core.handle(now, said).expect("a proposal");
    };
    for command in [
        Command::put_address("sip", 1, Some(NodeId(1))),
        put(),
        Command::move_addresses(1, NodeId(2)),
    ] {
        say(&mut core, now, command);
        settle(&mut core, &mut now);
    }
    let tables = core.tables();
    let row = || tables.read().expect("not poisoned").dialog(&call).map(|row| row.owner);
    assert_eq!(row(), Some(NodeId(1)), "until the address is released");
    let asked = tables
        .read()
        .expect("not poisoned")
        .address("sip")
        .and_then(|row| row.is_asked_of(NodeId(1)));
    let asked = asked.expect("it is asked of us");
    let release = pb::ReleaseAddresses { group: 1, node: 1, asked };
    say(&mut core, now, Command::new(pb::command::Op::ReleaseAddresses(release)));
    // In the same moment, and once the other node has it.
    say(&mut core, now, put());
    let refused = |core: &mut Core| {
        let fenced = Outcome::Rejected(Rejection::Fenced);
        std::iter::from_fn(|| core.poll()).any(|output| match output {
            Output::Reply { result: Ok(committed), .. } => committed.outcome == fenced,
            _ => false,
        })
    };
    assert!(refused(&mut core), "it would be applied after the release");
    settle(&mut core, &mut now);
    assert_eq!(row(), Some(NodeId(2)));
    say(&mut core, now, put());
    assert!(refused(&mut core), "the other may have ended it by the time that this comes");
}
