//! What a disk may do to us, each with its named answer.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use raft::eraftpb::{Entry, HardState};

use super::*;
use crate::state::Tables;
use crate::types::NodeId;

fn made(dir: &Path) -> Opened {
    let identity = Identity { cluster_id: b"test".to_vec(), node: NodeId(3) };
    let position = Position::genesis(&[NodeId(3)]);
    create(dir, &identity, Some((&Tables::new(b"test"), &position))).unwrap();
    open(dir, FORMAT_VERSION).unwrap().unwrap()
}

fn entries(indexes: std::ops::RangeInclusive<u64>, term: u64) -> Persist {
    let entries: Vec<Entry> = indexes
        .map(|index| Entry { index, term, data: vec![7; 100].into(), ..Entry::default() })
        .collect();
    let hard_state = HardState { term, commit: 1, ..HardState::default() };
    Persist { number: 1, entries, hard_state, snapshot: None }
}

fn terms(opened: &Opened) -> Vec<(u64, u64)> {
    opened.recovered.entries.iter().map(|entry| (entry.index, entry.term)).collect()
}

#[test]
fn an_empty_directory_holds_no_node() {
    let dir = tempfile::tempdir().unwrap();
    assert!(open(dir.path(), FORMAT_VERSION).unwrap().is_none());
}

#[test]
fn what_was_written_is_there_and_a_conflict_replaces_the_tail() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = made(dir.path());
    assert_eq!((opened.identity.node, opened.recovered.snapshot.index), (NodeId(3), 1));
    opened.log.write(&[entries(2..=5, 1), entries(4..=4, 2)]).unwrap();
    let boot = opened.boot;
    drop(opened);
    let mut opened = open(dir.path(), FORMAT_VERSION).unwrap().unwrap();
    assert_eq!(terms(&opened), [(2, 1), (3, 1), (4, 2)]);
    assert_eq!(opened.recovered.hard_state.term, 2);
    assert!(opened.boot > boot);

    let position = Position { index: 3, term: 1, ..Position::genesis(&[NodeId(3)]) };
    opened.snapshots.save(&Tables::new(b"test").freeze(), &position).unwrap();
    opened.log.compact(3, 2).unwrap();
    drop(opened);
    let opened = open(dir.path(), FORMAT_VERSION).unwrap().unwrap();
    assert_eq!(opened.recovered.snapshot, position);
    assert_eq!(terms(&opened), [(3, 1), (4, 2)]);
    assert!(!opened.snapshots.path(1).exists(), "the old snapshot is gone");
}

#[test]
fn a_missing_log_is_not_a_new_node() {
    let dir = tempfile::tempdir().unwrap();
    drop(made(dir.path()));
    std::fs::remove_file(dir.path().join("log.redb")).unwrap();
    assert!(matches!(open(dir.path(), FORMAT_VERSION), Err(StoreError::LogMissing(NodeId(3)))));
}

#[test]
fn a_damaged_log_or_snapshot_is_named() {
    let dir = tempfile::tempdir().unwrap();
    drop(made(dir.path()));
    let snapshot = dir.path().join("snapshots").join(format!("{:020}", 1));
    let bytes = std::fs::read(&snapshot).unwrap();
    std::fs::write(&snapshot, &bytes[..bytes.len() - 3]).unwrap();
    assert!(matches!(open(dir.path(), FORMAT_VERSION), Err(StoreError::Snapshot { index: 1, .. })));
    std::fs::write(&snapshot, &bytes).unwrap();
    std::fs::write(dir.path().join("log.redb"), b"not a database at all").unwrap();
    assert!(matches!(
        open(dir.path(), FORMAT_VERSION),
        Err(StoreError::LogDamaged(_) | StoreError::Io { .. })
    ));
}

#[test]
fn a_half_made_node_is_no_node() {
    let dir = tempfile::tempdir().unwrap();
    drop(made(dir.path()));
    std::fs::remove_file(dir.path().join("identity")).unwrap();
    assert!(open(dir.path(), FORMAT_VERSION).unwrap().is_none());
    std::fs::write(dir.path().join("identity"), "zz 3").unwrap();
    assert!(matches!(open(dir.path(), FORMAT_VERSION), Err(StoreError::Identity)));
}

#[test]
fn a_full_disk_is_named() {
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    assert!(matches!(StoreError::io(Path::new("x"), full), StoreError::DiskFull));
}

#[test]
fn one_process_per_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _first = made(dir.path());
    assert!(matches!(open(dir.path(), FORMAT_VERSION), Err(StoreError::InUse)));
}

#[test]
fn a_missing_snapshot_is_named() {
    let dir = tempfile::tempdir().unwrap();
    drop(made(dir.path()));
    std::fs::remove_file(dir.path().join("snapshots").join(format!("{:020}", 1))).unwrap();
    let Err(error) = open(dir.path(), FORMAT_VERSION) else { panic!("it opened") };
    assert!(matches!(error, StoreError::Snapshot { index: 1, .. }), "{error}");
    assert!(error.to_string().starts_with("snapshot 1 cannot be used: "), "{error}");
}

#[test]
fn files_of_two_clusters_are_named() {
    let dir = tempfile::tempdir().unwrap();
    drop(made(dir.path()));
    let other = Identity { cluster_id: b"other".to_vec(), node: NodeId(3) };
    other.write(dir.path()).unwrap();
    assert!(matches!(open(dir.path(), FORMAT_VERSION), Err(StoreError::OtherCluster)));
}

#[test]
fn a_snapshot_of_a_later_release_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity { cluster_id: b"test".to_vec(), node: NodeId(3) };
    let position = Position::genesis(&[NodeId(3)]);
    let row = crate::state::Node::founder("n3".to_owned(), "n3:1".to_owned(), FORMAT_VERSION + 1);
    let tables = Tables::genesis(b"test", &[(NodeId(3), row)]);
    create(dir.path(), &identity, Some((&tables, &position))).unwrap();
    let Err(error) = open(dir.path(), FORMAT_VERSION) else { panic!("it opened") };
    let text = "snapshot 1 cannot be used: snapshot of format version 4, this build reads up to 3";
    assert_eq!(error.to_string(), text);
    assert!(open(dir.path(), FORMAT_VERSION + 1).unwrap().is_some(), "the later release reads it");
}

/// A byte of the log that changes under us, or a file that lost its end: what is read is what was
/// written, or the log is damaged. Never a panic, never something else.
#[test]
fn rot_and_a_torn_tail_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = made(dir.path());
    opened.log.write(&[entries(2..=40, 1)]).unwrap();
    drop(opened);
    let path = dir.path().join("log.redb");
    let whole = std::fs::read(&path).unwrap();
    let before = terms(&open(dir.path(), FORMAT_VERSION).unwrap().unwrap());
    assert_eq!(before.len(), 39);
    let (mut found, mut harmless) = (0, 0);
    let mut look = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        match open(dir.path(), FORMAT_VERSION) {
            Ok(Some(opened)) => {
                assert_eq!(terms(&opened), before, "{what}");
                assert!(opened.recovered.entries.iter().all(|e| *e.data == [7; 100]), "{what}");
                harmless += 1;
            }
            Ok(None) => panic!("{what}: no node"),
            Err(StoreError::LogDamaged(_) | StoreError::Io { .. }) => found += 1,
            Err(other) => panic!("{what}: {other}"),
        }
    };
    // Where the entries lie, closely; elsewhere, here and there.
    let in_use: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == 7).step_by(97).collect();
    assert!(in_use.len() > 20, "{}", in_use.len());
    for at in in_use.into_iter().chain((0..whole.len()).step_by(whole.len() / 150)) {
        let mut rotten = whole.clone();
        rotten[at] ^= 0x20;
        look(&rotten, &format!("byte {at}"));
    }
    for part in 1..20 {
        look(&whole[..whole.len() * part / 20], &format!("{part} twentieths"));
    }
    look(&[], "an empty file");
    println!("{found} found, {harmless} harmless");
    assert!(found > 30, "{found} found, {harmless} harmless");
}
