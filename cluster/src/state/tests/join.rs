//! Who is let in by a token, and who may say it again: the answer to the first may have been lost.

use super::*;

const TOKEN: [u8; 32] = [9; 32];
const KEY: [u8; 32] = [1; 32];
const OTHER: [u8; 32] = [2; 32];
const REFUSED: Option<Outcome> = Some(Outcome::Rejected(Rejection::Token));

fn four() -> Option<Outcome> {
    Some(Outcome::Node(NodeId(4)))
}

/// An entry in a version.
fn say(m: &mut Machine, version: u32, op: Op) -> Option<Outcome> {
    let command = Some(pb::Command { op: Some(op) });
    let proposal = pb::Proposal { version, command, ..pb::Proposal::default() };
    m.apply(proposal.encode_to_vec().into()).outcome
}

fn put_token(m: &mut Machine) {
    let hash = Bytes::copy_from_slice(&TOKEN);
    m.system(Op::PutToken(pb::PutToken { hash, ttl_ms: 1_000 }));
}

fn add(name: &str, joiner: &[u8]) -> Op {
    Op::AddNode(pb::AddNode {
        name: name.to_owned(),
        address: "192.0.2.4:7000".to_owned(),
        voter: true,
        token: Bytes::copy_from_slice(&TOKEN),
        format: FORMAT_VERSION,
        joiner: Bytes::copy_from_slice(joiner),
    })
}

/// Three nodes that read the present version, and a token.
fn present() -> Machine {
    let mut m = Machine::of(FORMAT_VERSION);
    put_token(&mut m);
    m
}

fn up(m: &mut Machine, id: u64) {
    m.system(Op::NodeUp(pb::NodeUp { id, epoch: 1 }));
}

#[test]
fn the_same_joiner_is_given_the_same_id_and_nobody_else_is() {
    let mut m = present();
    assert_eq!(say(&mut m, 2, add("n4", &KEY)), four());
    let (rows, digest) = (m.tables.nodes().count(), m.tables.digest());
    assert_eq!(say(&mut m, 2, add("n4", &KEY)), four(), "the answer was lost");
    assert_eq!(say(&mut m, 2, add("n4", &OTHER)), REFUSED, "another with its name");
    assert_eq!(say(&mut m, 2, add("n5", &OTHER)), REFUSED);
    assert_eq!(say(&mut m, 2, add("n5", &KEY)), REFUSED, "under another name it is another node");
    assert_eq!((m.tables.nodes().count(), m.tables.digest()), (rows, digest), "nothing changed");
    // Who was up has had its answer: asking again it has lost its log, and votes under this id.
    up(&mut m, 4);
    assert_eq!(say(&mut m, 2, add("n4", &KEY)), REFUSED);
    m.down(4);
    assert_eq!(say(&mut m, 2, add("n4", &KEY)), REFUSED);
}

#[test]
fn what_is_known_of_a_joiner_goes_with_its_token() {
    let mut m = present();
    assert_eq!(say(&mut m, 2, add("n4", &KEY)), four());
    m.clock(999);
    assert_eq!(say(&mut m, 2, add("n4", &KEY)), four());
    m.clock(1_000);
    assert_eq!(m.tables.len(Table::Tokens), 0);
    assert_eq!(say(&mut m, 2, add("n4", &KEY)), REFUSED);
    // A token that was put again is another one: who comes under the name replaces who never came.
    put_token(&mut m);
    assert_eq!(say(&mut m, 2, add("n4", &OTHER)), Some(Outcome::Node(NodeId(5))));
    assert!(m.tables.node(NodeId(4)).is_none());
}

#[test]
fn a_joiner_without_a_key_is_malformed_and_uses_nothing_up() {
    let mut m = present();
    for key in [&[][..], &[1; 31], &[1; 33]] {
        let outcome = say(&mut m, 2, add("n4", key));
        assert_eq!(outcome, Some(Outcome::Rejected(Rejection::Malformed)));
    }
    assert_eq!(say(&mut m, 2, add("n4", &KEY)), four());
}

#[test]
fn a_snapshot_keeps_who_used_a_token() {
    let mut m = present();
    say(&mut m, 2, add("n4", &KEY));
    let bytes = snapshot(&m.tables);
    let (tables, _) = Tables::restore(&mut bytes.as_slice(), FORMAT_VERSION).unwrap();
    assert_eq!(tables.digest(), m.tables.digest());
    let former = Tables::restore(&mut bytes.as_slice(), 1).err().unwrap().to_string();
    assert_eq!(former, "snapshot of format version 3, this build reads up to 1");
    m.tables = tables;
    assert_eq!(say(&mut m, 2, add("n4", &OTHER)), REFUSED);
    assert_eq!(say(&mut m, 2, add("n4", &KEY)), four());
}

/// While a node of the former release is a member, entries are of its version: it passes the key over,
/// and so must everybody.
#[test]
fn the_key_counts_once_all_read_it() {
    let mut m = Machine::new();
    let mut former = Machine::new();
    put_token(&mut m);
    put_token(&mut former);
    assert_eq!(say(&mut m, 1, add("n4", &KEY)), four());
    assert_eq!(say(&mut former, 1, add("n4", &[])), four(), "as a node reads it that knows no key");
    assert_eq!(m.tables.digest(), former.tables.digest());
    assert_eq!(snapshot(&m.tables), snapshot(&former.tables), "byte for byte");
    assert!(Tables::restore(&mut snapshot(&m.tables).as_slice(), 1).is_ok());
    assert_eq!(say(&mut m, 1, add("n4", &OTHER)), four(), "known by its name alone");
    assert_eq!(say(&mut m, 1, add("n5", &KEY)), REFUSED);
}

/// An entry of the former version that comes late does not open what one of the present has closed.
#[test]
fn a_late_entry_of_the_former_version_lets_nobody_in() {
    let mut m = present();
    assert_eq!(say(&mut m, 2, add("n4", &KEY)), four());
    assert_eq!(say(&mut m, 1, add("n4", &KEY)), REFUSED);
    assert_eq!(say(&mut m, 2, add("n4", &KEY)), four());
}

/// A node of the former release that was started by mistake has the others write its version again.
#[test]
fn what_the_former_version_does_not_know_is_forgotten_with_the_present() {
    let mut m = present();
    say(&mut m, 2, add("n4", &KEY));
    let mut never = Machine::new();
    put_token(&mut never);
    say(&mut never, 1, add("n4", &KEY));
    for (id, format) in [(2, 2), (3, 2), (4, 2), (1, 1)] {
        m.system(Op::SetFormat(pb::SetFormat { id, format }));
        never.system(Op::SetFormat(pb::SetFormat { id, format }));
    }
    assert_eq!(m.tables.format(), 1);
    assert_eq!(m.tables.digest(), never.tables.digest());
    assert!(Tables::restore(&mut snapshot(&m.tables).as_slice(), 1).is_ok());
}
