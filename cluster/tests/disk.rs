//! What a disk may do to a running node: a real file system that fills up.

mod own;

use std::path::Path;
use std::process::Command as Process;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sbc_cluster::{Cluster, Command, Config, DialogKey, Event, Outcome, ProposeError};

const WAIT: Duration = Duration::from_secs(30);
fn mount(dir: &Path, size: &str) {
    let options = format!("size={size}");
    let dir = dir.to_str().expect("a plain path");
    let done = Process::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs", dir]).status();
    assert!(done.expect("mount").success());
}

fn key(n: u64) -> DialogKey {
    DialogKey((u128::from(n) << 64).to_be_bytes())
}

#[test]
fn a_full_disk_ends_the_nodes_part_and_loses_nothing() {
    if !own::inside("a_full_disk_ends_the_nodes_part_and_loses_nothing") {
        return;
    }
    let dir = tempfile::tempdir().expect("directory");
    mount(dir.path(), "24m");
    let config = Config::new(dir.path().join("node"), "a");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("runtime");
    let acknowledged = runtime.block_on(async {
        let node = Cluster::start(config.clone()).expect("starts");
        let mut events = node.subscribe();
        let address = Command::put_address("192.0.2.1", 1, None);
        node.propose_within(address, WAIT).await.expect("commit");
        // What others wrote has left little room.
        std::fs::write(dir.path().join("filler"), vec![1; 16 * 1024 * 1024]).expect("room");
        let mut acknowledged = 0;
        let refused = loop {
            let value = Bytes::from(vec![7; 60_000]);
            let put = Command::put_dialog(key(acknowledged), 0, &[], value);
            match node.propose_within(put, WAIT).await {
                Ok(committed) => {
                    assert_eq!(committed.outcome, Outcome::Done { changed: true });
                    acknowledged += 1;
                }
                Err(error) => break error,
            }
        };
        assert_eq!(refused, ProposeError::Stopped);
        assert!(acknowledged > 10, "{acknowledged}");
        assert!(!node.lease_valid(), "it holds nothing any more");
        assert_eq!(node.owned_addresses(), Vec::<String>::new());
        let end = Instant::now() + WAIT;
        let reason = loop {
            assert!(Instant::now() < end);
            if let Some(Event::Stopped { reason }) = events.next().await {
                break reason;
            }
        };
        assert_eq!(reason, "the disk is full");
        node.stop();
        acknowledged
    });

    // Still full: it says so instead of starting.
    std::fs::write(dir.path().join("more"), vec![1; 8 * 1024 * 1024]).ok();
    if let Err(error) = Cluster::start(config.clone()) {
        assert_eq!(error.to_string(), "the disk is full");
    }

    // Room again: everything that was acknowledged is there.
    std::fs::remove_file(dir.path().join("filler")).expect("removed");
    std::fs::remove_file(dir.path().join("more")).expect("removed");
    let node = Cluster::start(config).expect("starts again");
    let put = Command::put_dialog(key(u64::MAX), 0, &[], Bytes::from_static(b"x"));
    let again = runtime.block_on(node.propose_within(put, WAIT)).expect("commit");
    assert_eq!(again.outcome, Outcome::Done { changed: true });
    // What comes later in the log than all of them is there.
    let found =
        (0..acknowledged).filter(|n| node.read(|tables| tables.dialog(&key(*n)).is_some())).count();
    assert_eq!(found as u64, acknowledged);
}
