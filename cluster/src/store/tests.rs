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
    assert!(matches!(open(dir.path(), FORMAT_VERSION), Err(StoreError::LogDamaged(_) | StoreError::Io { .. })));
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
