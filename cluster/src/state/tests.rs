//! Golden cases of the state machine, and the property that a snapshot in the middle changes
//! nothing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod join;

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::command::Op;

use super::*;
use crate::command::Command;
use crate::types::{AorKey, DialogKey, NodeId, Outcome, Rejection};

const DONE: Outcome = Outcome::Done { changed: true };
const NOTHING: Outcome = Outcome::Done { changed: false };

fn node(n: u64) -> Node {
    Node::founder(format!("n{n}"), format!("192.0.2.{n}:7000"), 1)
}

/// Tables of three nodes, and the log that made them.
struct Machine {
    tables: Tables,
    index: u64,
    seq: [u64; 4],
}

impl Machine {
    fn new() -> Self {
        let members: Vec<_> = (1..=3).map(|n| (NodeId(n), node(n))).collect();
        Machine { tables: Tables::genesis(b"test", &members), index: 1, seq: [0; 4] }
    }

    /// Of three nodes that read up to `format`.
    fn of(format: u32) -> Self {
        let mut machine = Machine::new();
        for id in 1..=3 {
            machine.system(Op::SetFormat(pb::SetFormat { id, format }));
        }
        machine
    }

    fn entry(&mut self, writer: u64, epoch: u64, command: Command) -> Bytes {
        let seq = &mut self.seq[usize::try_from(writer).unwrap()];
        *seq += 1;
        let proposal = pb::Proposal {
            version: 1,
            node: writer,
            boot: 1,
            seq: *seq,
            prev: *seq - 1,
            epoch,
            command: Some(command.0),
        };
        proposal.encode_to_vec().into()
    }

    fn apply(&mut self, data: Bytes) -> Applied {
        self.index += 1;
        self.tables.apply(self.index, data).unwrap()
    }

    fn write(&mut self, writer: u64, command: Command) -> Outcome {
        let data = self.entry(writer, 1, command);
        self.apply(data).outcome.unwrap()
    }

    fn system(&mut self, op: Op) -> Applied {
        let proposal = pb::Proposal {
            version: 1,
            command: Some(pb::Command { op: Some(op) }),
            ..pb::Proposal::default()
        };
        self.apply(proposal.encode_to_vec().into())
    }

    fn down(&mut self, id: u64) -> Applied {
        self.system(Op::NodeDown(pb::NodeDown { id, epoch: 1 }))
    }

    fn clock(&mut self, now_ms: u64) {
        self.system(Op::Clock(pb::Clock { now_ms }));
    }

    fn asked(&self, address: &str) -> u64 {
        self.tables.address(address).expect("a row").asked
    }

    fn holder(&self, address: &str) -> Option<u64> {
        self.tables.address(address).and_then(|row| row.holder).map(|node| node.0)
    }
}

fn key(n: u8) -> DialogKey {
    DialogKey([n; 16])
}

fn put(n: u8, group: u32) -> Command {
    Command::put_dialog(key(n), group, &[u64::from(n), 1_000 + u64::from(n)], vec![n; 40].into())
}

#[test]
fn dialogs_are_found_by_their_lookups_and_end_once() {
    let mut m = Machine::new();
    assert_eq!(m.write(1, put(7, 0)), DONE);
    assert_eq!(m.tables.find_dialog(1_007).unwrap().0, key(7));
    assert_eq!(m.write(1, Command::delete_dialog(key(7))), DONE);
    assert_eq!(m.write(1, Command::delete_dialog(key(7))), NOTHING);
    assert!(m.tables.find_dialog(7).is_none());
}

#[test]
fn only_the_owner_writes_and_only_in_its_epoch() {
    let mut m = Machine::new();
    let fenced = Outcome::Rejected(Rejection::Fenced);
    m.write(1, put(7, 0));
    assert_eq!(m.write(2, put(7, 0)), fenced);
    assert_eq!(m.write(2, Command::delete_dialog(key(7))), fenced);
    let applied = m.down(1);
    let moved = applied.effects.iter().any(|effect| {
        matches!(effect, Effect::Moved { from: NodeId(1), dialogs, .. } if *dialogs == [key(7)])
    });
    assert!(moved, "{:?}", applied.effects);
    m.system(Op::NodeUp(pb::NodeUp { id: 1, epoch: 2 }));
    // What it wrote before it was declared down comes too late.
    assert_eq!(m.write(1, put(8, 0)), fenced);
    let data = m.entry(1, 2, put(9, 0));
    assert_eq!(m.apply(data).outcome, Some(DONE));
}

#[test]
fn sessions_apply_once_and_in_order() {
    let mut m = Machine::new();
    let first = m.entry(1, 1, put(1, 0));
    let second = m.entry(1, 1, put(2, 0));
    assert_eq!(m.apply(second.clone()).outcome, None, "before its turn");
    assert_eq!(m.apply(first.clone()).outcome, Some(DONE));
    assert_eq!(m.apply(second).outcome, Some(DONE));
    m.write(1, Command::delete_dialog(key(1)));
    assert_eq!(m.apply(first).outcome, None, "a repetition");
    assert!(m.tables.dialog(&key(1)).is_none());
}

#[test]
fn addresses_and_their_dialogs_go_together() {
    let mut m = Machine::new();
    m.write(1, Command::put_address("sip", 1, Some(NodeId(1))));
    m.write(1, Command::put_address("media", 1, None));
    m.write(1, Command::put_address("other", 2, Some(NodeId(2))));
    assert_eq!(
        (m.holder("sip"), m.holder("media"), m.holder("other")),
        (Some(1), Some(1), Some(2))
    );
    for n in 1..=20 {
        m.write(1, put(n, 1));
    }
    m.down(1);
    // The third holds nothing yet and gets it.
    assert_eq!((m.holder("sip"), m.holder("media")), (Some(3), Some(3)));
    assert_eq!(m.tables.dialogs_of(NodeId(3)).count(), 20);
    m.system(Op::NodeUp(pb::NodeUp { id: 1, epoch: 2 }));
    assert_eq!(m.holder("sip"), Some(3), "no fall-back");
}

#[test]
fn a_living_holder_lets_go_first() {
    let mut m = Machine::new();
    m.write(1, Command::put_address("sip", 1, Some(NodeId(1))));
    m.write(1, put(1, 1));
    m.write(2, Command::move_addresses(1, NodeId(2)));
    assert_eq!(m.holder("sip"), Some(1));
    assert!(!m.tables.address("sip").unwrap().is_held_by(NodeId(1)));
    let asked = m.asked("sip");
    m.system(Op::ReleaseAddresses(pb::ReleaseAddresses { group: 1, node: 1, asked }));
    assert!(m.tables.address("sip").unwrap().is_held_by(NodeId(2)));
    assert_eq!(m.tables.dialog(&key(1)).unwrap().owner, NodeId(2));
    m.write(1, Command::delete_address("sip"));
    let again = m.write(1, Command::put_address("sip", 1, None));
    assert_eq!(again, Outcome::Rejected(Rejection::Conflict), "it is still held");
}

/// What is said late of a move that was overtaken releases nothing: the address may be held again.
#[test]
fn a_release_belongs_to_its_move() {
    let mut m = Machine::new();
    m.write(1, Command::put_address("sip", 1, Some(NodeId(1))));
    m.write(2, Command::move_addresses(1, NodeId(2)));
    let first = m.asked("sip");
    m.down(2);
    assert!(m.tables.address("sip").unwrap().is_held_by(NodeId(1)), "nobody to move to");
    m.write(1, Command::move_addresses(1, NodeId(3)));
    let late = pb::ReleaseAddresses { group: 1, node: 1, asked: first };
    let late = m.system(Op::ReleaseAddresses(late));
    assert_eq!(late.outcome, Some(Outcome::Done { changed: false }));
    assert_eq!(m.holder("sip"), Some(1));
    let now = pb::ReleaseAddresses { group: 1, node: 1, asked: m.asked("sip") };
    assert_eq!(m.system(Op::ReleaseAddresses(now)).outcome, Some(DONE));
    assert_eq!(m.holder("sip"), Some(3));
}

/// What is said late of a drain that was taken back ends no later one: the address is held again.
#[test]
fn a_hand_over_belongs_to_its_drain() {
    let mut m = Machine::new();
    m.write(1, Command::put_address("sip", 1, Some(NodeId(1))));
    for undo in [false, true, false] {
        assert_eq!(m.write(2, Command::drain(NodeId(1), undo)), DONE);
    }
    let late = m.system(Op::HandOver(pb::HandOver { id: 1, drain: 1 }));
    assert_eq!(late.outcome, Some(Outcome::Rejected(Rejection::Conflict)));
    assert_eq!(m.holder("sip"), Some(1));
    let now = m.system(Op::HandOver(pb::HandOver { id: 1, drain: 2 }));
    assert_eq!(now.outcome, Some(DONE));
    assert_ne!(m.holder("sip"), Some(1));
}

#[test]
fn the_digest_counts_drains_that_were_undone() {
    let [drained, never] = [false, true].map(|first| {
        let mut m = Machine::new();
        for undo in [first, true] {
            m.write(2, Command::drain(NodeId(1), undo));
        }
        assert_eq!(m.tables.node(NodeId(1)).unwrap().state, NodeState::Up);
        m.tables.digest()
    });
    assert_ne!(drained, never, "a late hand-over would end them differently");
}

#[test]
fn a_drained_node_carries_nothing() {
    let mut m = Machine::new();
    m.write(1, Command::put_address("sip", 1, Some(NodeId(1))));
    for n in 1..=40 {
        m.write(1, put(n, 0));
    }
    assert_eq!(m.write(2, Command::drain(NodeId(1), false)), DONE);
    assert_eq!(m.holder("sip"), Some(1), "it keeps what it has until it says so");
    m.system(Op::HandOver(pb::HandOver { id: 1, drain: 1 }));
    assert_eq!(m.tables.node(NodeId(1)).unwrap().state, NodeState::Drained);
    assert_ne!(m.holder("sip"), Some(1));
    assert_eq!(m.tables.dialogs_of(NodeId(1)).count(), 0);
    let shares = [2, 3].map(|n| m.tables.dialogs_of(NodeId(n)).count());
    assert!(shares.iter().all(|share| *share >= 10), "{shares:?}");
}

#[test]
fn bindings_lie_together_and_run_out() {
    let mut m = Machine::new();
    m.clock(1_000);
    let aor = AorKey([5; 16]);
    let ttl = Duration::from_secs(60);
    for contact in [3, 1, u64::MAX] {
        m.write(1, Command::put_binding(aor, contact, ttl, false, Bytes::from_static(b"c")));
    }
    m.write(1, Command::put_binding(AorKey([6; 16]), 9, ttl, false, Bytes::new()));
    let contacts: Vec<u64> = m.tables.bindings(aor).map(|(contact, _)| contact).collect();
    assert_eq!(contacts, [1, 3, u64::MAX]);
    m.clock(61_000);
    assert_eq!(m.tables.bindings(aor).count(), 0, "not shown any more");
    for now_ms in 61_001..61_020 {
        m.clock(now_ms);
    }
    assert_eq!(m.tables.len(Table::Bindings), 0, "and swept");
}

#[test]
fn bindings_of_connections_go_with_the_process_that_holds_them() {
    let mut m = Machine::new();
    m.clock(1_000);
    let (aor, ttl) = (AorKey([5; 16]), Duration::from_secs(600));
    let write = |flow| move |c| Command::put_binding(aor, c, ttl, flow, Bytes::from_static(b"c"));
    m.write(1, write(false)(1));
    m.write(1, write(true)(2));
    m.write(2, write(true)(3));
    // What another wrote since is not deleted by who has lost the connection.
    assert_eq!(m.write(1, Command::delete_own_binding(aor, 3)), NOTHING);
    let applied = m.down(1);
    let void = applied.effects.iter().any(|effect| {
        matches!(effect, Effect::Binding { key, change: BindingChange::Void, .. } if key.contact == 2)
    });
    assert!(void, "{:?}", applied.effects);
    let contacts: Vec<u64> = m.tables.bindings(aor).map(|(contact, _)| contact).collect();
    assert_eq!(contacts, [1, 3], "those that a datagram reaches stay");
    // The second node comes back as a new process before anybody missed it.
    let proposal = pb::Proposal {
        version: 1,
        node: 2,
        boot: 2,
        seq: 1,
        epoch: 1,
        command: Some(Command::set_counts(&[]).0),
        ..pb::Proposal::default()
    };
    m.apply(proposal.encode_to_vec().into());
    let contacts: Vec<u64> = m.tables.bindings(aor).map(|(contact, _)| contact).collect();
    assert_eq!(contacts, [1]);
    assert_eq!(m.write(3, Command::delete_binding(aor, 1)), DONE);
}

#[test]
fn shares_never_exceed_their_limit_and_outlive_their_node_for_a_while() {
    let mut m = Machine::new();
    m.clock(1_000);
    let share = |m: &Machine, node| m.tables.count_of(7, NodeId(node));
    m.write(1, Command::reserve(7, 10, 6, 0));
    m.write(2, Command::reserve(7, 10, 6, 0));
    assert_eq!((share(&m, 1), share(&m, 2)), (6, 4));
    assert_eq!(m.write(3, Command::reserve(7, 10, 1, 0)), NOTHING);
    m.write(1, Command::reserve(7, 10, 3, 0));
    m.write(3, Command::reserve(7, 10, 9, 0));
    assert_eq!((share(&m, 1), share(&m, 3)), (3, 3));
    // A lower limit takes nothing away from who carries calls, and gives nothing.
    m.write(2, Command::reserve(7, 5, 4, 4));
    assert_eq!(share(&m, 2), 4);
    // The first dies with three calls; the second carries them on and counts them in any case.
    m.down(1);
    assert_eq!(m.write(3, Command::reserve(7, 10, 9, 3)), NOTHING, "the dead one's is kept");
    m.write(2, Command::reserve(7, 10, 7, 7));
    assert_eq!(share(&m, 2), 7);
    m.clock(10_999);
    assert_eq!(m.write(3, Command::reserve(7, 10, 9, 3)), NOTHING);
    m.clock(11_000);
    assert_eq!(m.tables.count(7), 10);
    m.write(2, Command::reserve(7, 10, 0, 0));
    assert_eq!(m.write(3, Command::reserve(7, 10, 9, 3)), DONE);
    assert_eq!(m.tables.count(7), 9);
}

#[test]
fn tokens_let_one_node_in() {
    let mut m = Machine::new();
    let token = Bytes::copy_from_slice(&[9; 32]);
    let hash = token.clone();
    m.system(Op::PutToken(pb::PutToken { hash, ttl_ms: 1_000 }));
    let add = |name: &str, token: &Bytes| {
        Op::AddNode(pb::AddNode {
            name: name.to_owned(),
            address: "192.0.2.4:7000".to_owned(),
            voter: true,
            token: token.clone(),
            format: 1,
            ..pb::AddNode::default()
        })
    };
    let in_use = m.system(add("n1", &token)).outcome;
    assert_eq!(in_use, Some(Outcome::Rejected(Rejection::Conflict)), "a living node's name");
    assert_eq!(m.system(add("n4", &token)).outcome, Some(Outcome::Node(NodeId(4))));
    assert_eq!(m.system(add("n4", &token)).outcome, Some(Outcome::Node(NodeId(4))), "asked again");
    let refused = Some(Outcome::Rejected(Rejection::Token));
    assert_eq!(m.system(add("n5", &token)).outcome, refused);
    // A node that lost its disk comes back as another.
    m.down(1);
    let second = Bytes::copy_from_slice(&[8; 32]);
    let hash = second.clone();
    m.system(Op::PutToken(pb::PutToken { hash, ttl_ms: 1_000 }));
    assert_eq!(m.system(add("n1", &second)).outcome, Some(Outcome::Node(NodeId(5))));
    assert!(m.tables.node(NodeId(1)).is_none());
}

#[test]
fn secrets_of_the_cluster_are_not_settings() {
    let mut m = Machine::new();
    m.tables.preset("cluster/ca-key", b"secret");
    assert_eq!(m.tables.setting("cluster/ca-key"), None);
    assert_eq!(m.tables.settings("").count(), 0);
    let stolen = m.write(1, Command::put_setting("cluster/ca-key", Bytes::new()));
    assert_eq!(stolen, Outcome::Rejected(Rejection::Malformed));
}

#[test]
fn a_later_version_stops_and_rubbish_does_not() {
    let mut m = Machine::new();
    let rubbish = m.apply(Bytes::from_static(b"\xff\xff\xff"));
    assert_eq!(rubbish.outcome, Some(Outcome::Rejected(Rejection::Malformed)));
    let proposal = pb::Proposal { version: FORMAT_VERSION + 1, ..pb::Proposal::default() };
    assert!(m.tables.apply(9, proposal.encode_to_vec().into()).is_err());
}

fn snapshot(tables: &Tables) -> Vec<u8> {
    let mut bytes = Vec::new();
    tables.freeze().write(&Position::genesis(&[NodeId(1)]), &mut bytes).unwrap();
    bytes
}

#[test]
fn damage_to_a_snapshot_is_found() {
    let mut m = Machine::new();
    m.write(1, put(7, 0));
    let whole = snapshot(&m.tables);
    let (tables, position) = Tables::restore(&mut whole.as_slice(), FORMAT_VERSION).unwrap();
    assert_eq!((tables.digest(), position.index), (m.tables.digest(), 1));
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        let restored = Tables::restore(&mut damaged.as_slice(), FORMAT_VERSION);
        assert!(restored.is_err(), "byte {at}");
        assert!(Tables::restore(&mut &whole[..at], FORMAT_VERSION).is_err(), "cut at {at}");
    }
}

fn any_command() -> impl Strategy<Value = (u64, Command)> {
    let command = prop_oneof![
        4 => (0u8..12, 0u32..3).prop_map(|(n, group)| put(n, group)),
        2 => (0u8..12).prop_map(|n| Command::delete_dialog(key(n))),
        3 => (0u8..4, 0u64..4, 1u64..90).prop_map(|(aor, contact, seconds)| {
            let ttl = Duration::from_secs(seconds);
            Command::put_binding(AorKey([aor; 16]), contact, ttl, contact == 1, vec![aor; 9].into())
        }),
        1 => (0u8..4).prop_map(|aor| Command::delete_bindings(AorKey([aor; 16]))),
        1 => (0u8..4).prop_map(|n| {
            Command::put_ban(&[n], Duration::from_secs(30), Bytes::new())
        }),
        1 => (0u64..3, 0u32..3).prop_map(|(trunk, calls)| Command::set_counts(&[(trunk, calls)])),
        1 => (0u64..3, 0u32..9, 0u32..2).prop_map(|(trunk, want, least)| {
            Command::reserve(trunk, 6, want, least)
        }),
        1 => (0u32..4, 1u64..4).prop_map(|(group, to)| Command::move_addresses(group, NodeId(to))),
        1 => (0u8..3, 1u32..3).prop_map(|(n, group)| {
            Command::put_address(&format!("a{n}"), group, None)
        }),
        1 => (0u8..3).prop_map(|n| Command::delete_address(&format!("a{n}"))),
        1 => (1u64..4, any::<bool>()).prop_map(|(n, undo)| Command::drain(NodeId(n), undo)),
        1 => (1u64..4).prop_map(|n| Command::remove_node(NodeId(n))),
        1 => (1u64..4, 1u64..3).prop_map(|(id, epoch)| {
            Command::new(Op::NodeDown(pb::NodeDown { id, epoch }))
        }),
        1 => (1u64..4, 1u64..3).prop_map(|(id, epoch)| {
            Command::new(Op::NodeUp(pb::NodeUp { id, epoch }))
        }),
        1 => (1u64..4, 0u64..4).prop_map(|(id, drain)| {
            Command::new(Op::HandOver(pb::HandOver { id, drain }))
        }),
        1 => (0u64..200_000).prop_map(|now_ms| Command::new(Op::Clock(pb::Clock { now_ms }))),
    ];
    (1u64..4, command)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The same log gives the same tables, whether or not a snapshot lay in between, and a table
    /// written twice gives the same bytes.
    #[test]
    fn snapshot_and_replay_equal_direct(
        commands in prop::collection::vec(any_command(), 1..80),
        cut in 0usize..80,
        format in 1..=FORMAT_VERSION,
    ) {
        let mut direct = Machine::of(format);
        let mut log = Vec::new();
        for (writer, command) in commands {
            let data = direct.entry(writer, 1, command);
            log.push(data.clone());
            direct.apply(data);
        }
        let mut other = Machine::of(format);
        for (n, data) in log.into_iter().enumerate() {
            if n == cut {
                let bytes = snapshot(&other.tables);
                other.tables = Tables::restore(&mut bytes.as_slice(), FORMAT_VERSION).unwrap().0;
                prop_assert_eq!(snapshot(&other.tables), bytes);
            }
            other.apply(data);
        }
        prop_assert_eq!(other.tables.digest(), direct.tables.digest());
        prop_assert_eq!(snapshot(&other.tables), snapshot(&direct.tables));
        for n in 0..12u8 {
            let find = |m: &Machine| m.tables.find_dialog(u64::from(n)).map(|(key, _)| key);
            prop_assert_eq!(find(&other), find(&direct));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever bytes are in the log or in a snapshot: nothing panics, and two nodes agree.
    #[test]
    fn any_bytes_mean_the_same_everywhere(
        entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..8),
        damage in prop::collection::vec((any::<u16>(), any::<u8>()), 1..4),
    ) {
        let (mut one, mut other) = (Machine::new(), Machine::new());
        one.write(1, put(7, 0));
        other.write(1, put(7, 0));
        for entry in entries {
            let data = Bytes::from(entry);
            one.index += 1;
            other.index += 1;
            let applied = one.tables.apply(one.index, data.clone());
            prop_assert_eq!(&applied, &other.tables.apply(other.index, data));
        }
        prop_assert_eq!(one.tables.digest(), other.tables.digest());
        let mut bytes = snapshot(&one.tables);
        for (at, with) in damage {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= with;
        }
        if let Ok((tables, _)) = Tables::restore(&mut bytes.as_slice(), FORMAT_VERSION) {
            prop_assert_eq!(tables.digest(), one.tables.digest(), "what is read is whole");
        }
    }
}

/// A field that this release does not know: number 1,000, a varint.
const UNKNOWN_FIELD: [u8; 3] = [0xc0, 0x3e, 7];

/// What a later release adds to messages that this one knows is passed over: the rest counts.
#[test]
fn unknown_fields_of_a_later_release_are_passed_over() {
    let (mut plain, mut later) = (Machine::new(), Machine::new());
    let entry = plain.entry(1, 1, put(7, 0));
    assert_eq!(plain.apply(entry).outcome, Some(DONE));
    let inner = pb::PutDialog {
        id: Bytes::copy_from_slice(&key(7).0),
        lookups: vec![7, 1_007],
        value: vec![7; 40].into(),
        ..pb::PutDialog::default()
    };
    let inner = [inner.encode_to_vec(), UNKNOWN_FIELD.to_vec()].concat();
    // Command.put_dialog is field 1; Proposal.command is field 7.
    let command = [vec![0x0a, u8::try_from(inner.len()).unwrap()], inner].concat();
    let command = [command, UNKNOWN_FIELD.to_vec()].concat();
    let head =
        pb::Proposal { version: 1, node: 1, boot: 1, seq: 1, epoch: 1, ..Default::default() };
    let proposal =
        [head.encode_to_vec(), vec![0x3a, u8::try_from(command.len()).unwrap()]].concat();
    let proposal = [proposal, command, UNKNOWN_FIELD.to_vec()].concat();
    assert_eq!(later.apply(proposal.into()).outcome, Some(DONE));
    assert_eq!(later.tables.digest(), plain.tables.digest());

    // The same in a snapshot: every frame has a field more.
    let bytes = snapshot(&plain.tables);
    let (magic, mut rest) = bytes.split_at(8);
    let (mut longer, mut print) = (magic.to_vec(), Hasher::new(10));
    loop {
        let (len, tail) = rest.split_at(4);
        let len = u32::from_be_bytes(len.try_into().unwrap());
        let (frame, tail) = tail.split_at(usize::try_from(len).unwrap());
        if frame.is_empty() {
            longer.extend_from_slice(&[0; 4]);
            longer.extend_from_slice(&tail[..16]);
            longer.extend_from_slice(&print.finish().to_be_bytes());
            break;
        }
        let frame = [frame, &UNKNOWN_FIELD].concat();
        print = print.bytes(&frame);
        longer.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_be_bytes());
        longer.extend_from_slice(&frame);
        rest = tail;
    }
    let (tables, _) = Tables::restore(&mut longer.as_slice(), FORMAT_VERSION).unwrap();
    assert_eq!(tables.digest(), plain.tables.digest());
}

/// An operation that the version named by the entry does not have was written wrongly; one of a later
/// version stops the node. Both are said by name.
#[test]
fn what_a_later_release_writes_is_refused_by_name() {
    let mut m = Machine::new();
    // Command with the unknown operation 99: an empty message.
    let command = [0x9a, 0x06, 0];
    let entry = |version: u8| Bytes::from([&[0x08, version, 0x3a, 3][..], &command].concat());
    let unknown = m.apply(entry(1)).outcome;
    assert_eq!(unknown, Some(Outcome::Rejected(Rejection::Unknown)));
    let error = m.tables.apply(9, entry(4)).unwrap_err();
    let text = "log entry 9 has format version 4, this build reads up to 3";
    assert_eq!(error.to_string(), text);
    // The next release reads it.
    m.tables.read_up_to(4);
    assert!(m.tables.apply(9, entry(4)).is_ok());
}

/// Whatever the format was when a call was written, changed hands or was looked at: a reader of the
/// snapshot, who hashes every row, comes to the same digest.
#[test]
fn the_digest_follows_the_format_and_the_owners() {
    let whole = |m: &Machine| {
        let read = Tables::restore(&mut snapshot(&m.tables).as_slice(), FORMAT_VERSION);
        assert_eq!(read.unwrap().0.digest(), m.tables.digest());
    };
    let mut seen = Vec::new();
    for (format, later) in [(2, 3), (3, 3), (3, 2), (2, 2)] {
        let mut m = Machine::of(format);
        for n in 0..20 {
            m.write(1, put(n, 0));
        }
        whole(&m);
        m.down(1);
        whole(&m);
        for id in 1..=3 {
            m.system(Op::SetFormat(pb::SetFormat { id, format: later }));
            whole(&m);
        }
        for writer in [2, 3] {
            m.write(writer, Command::delete_dialog(key(3)));
        }
        m.down(3);
        whole(&m);
        assert_eq!(m.tables.dialogs_of(NodeId(2)).count(), 19);
        seen.push((later, m.index, m.tables.digest()));
    }
    // By which way a format was come to leaves no trace.
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[2], seen[3]);
}

#[test]
fn what_is_written_follows_the_lowest_member() {
    let mut m = Machine::new();
    let set = |id, format| Op::SetFormat(pb::SetFormat { id, format });
    assert_eq!(m.tables.format(), 1);
    m.system(set(1, 2));
    m.system(set(2, 2));
    assert_eq!(m.tables.format(), 1, "the third is of the former release");
    m.system(set(3, 2));
    assert_eq!(m.tables.format(), 2);
    // One that reads less is not let in any more; one of the next release is.
    let token = Bytes::copy_from_slice(&[9; 32]);
    m.system(Op::PutToken(pb::PutToken { hash: token.clone(), ttl_ms: 1_000 }));
    let add = |format| {
        Op::AddNode(pb::AddNode {
            name: "n4".to_owned(),
            address: "192.0.2.4:7000".to_owned(),
            voter: true,
            token: token.clone(),
            format,
            ..pb::AddNode::default()
        })
    };
    assert_eq!(m.system(add(0)).outcome, Some(Outcome::Rejected(Rejection::Format)));
    assert_eq!(m.system(add(3)).outcome, Some(Outcome::Node(NodeId(4))));
    assert_eq!(m.tables.format(), 2);
    assert_eq!(m.system(set(9, 2)).outcome, Some(Outcome::Rejected(Rejection::NotFound)));
}

#[test]
fn the_last_voter_stays_and_a_token_said_twice_lets_one_in() {
    let mut m = Machine::new();
    for id in [2, 3] {
        m.down(id);
        assert_eq!(m.write(1, Command::remove_node(NodeId(id))), DONE);
    }
    m.write(1, Command::drain(NodeId(1), false));
    m.system(Op::HandOver(pb::HandOver { id: 1, drain: 1 }));
    let last = m.system(Op::RemoveNode(pb::RemoveNode { id: 1 })).outcome;
    assert_eq!(last, Some(Outcome::Rejected(Rejection::Last)));

    let hash = Bytes::copy_from_slice(&[9; 32]);
    let add = |name: &str| {
        Op::AddNode(pb::AddNode {
            name: name.to_owned(),
            address: "192.0.2.4:7000".to_owned(),
            voter: true,
            token: hash.clone(),
            format: 1,
            ..pb::AddNode::default()
        })
    };
    let put = Op::PutToken(pb::PutToken { hash: hash.clone(), ttl_ms: 1_000 });
    m.system(put.clone());
    assert_eq!(m.system(add("n4")).outcome, Some(Outcome::Node(NodeId(4))));
    assert_eq!(m.system(put).outcome, Some(NOTHING));
    assert_eq!(m.system(add("n5")).outcome, Some(Outcome::Rejected(Rejection::Token)));
}
