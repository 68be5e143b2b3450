//! A cluster of one: no option, no network; what was committed is there after a restart.

use std::time::Duration;

use bytes::Bytes;
use sbc_cluster::{Cluster, Command, Config, DialogKey, Event, Outcome};

const WAIT: Duration = Duration::from_secs(10);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

#[test]
fn commits_and_keeps_over_a_restart() {
    let dir = tempfile::tempdir().expect("tempdir");
    let config = Config::new(dir.path(), "a");
    let key = DialogKey([7; 16]);
    runtime().block_on(async {
        let node = Cluster::start(config.clone()).expect("start");
        let mut events = node.subscribe();
        let put = Command::put_dialog(key, 0, &[11, 12], Bytes::from_static(b"call"));
        let committed = node.propose_within(put, WAIT).await.expect("commit");
        assert_eq!(committed.outcome, Outcome::Done { changed: true });
        let found = node.read(|tables| tables.find_dialog(12).map(|(key, _)| key));
        assert_eq!(found, Some(key));

        let address = Command::put_address("192.0.2.1", 1, None);
        node.propose_within(address, WAIT).await.expect("commit");
        loop {
            if let Some(Event::OwnedAddresses { add, remove }) = events.next().await {
                assert_eq!((add, remove), (vec!["192.0.2.1".to_owned()], vec![]));
                break;
            }
        }
        assert!(node.lease_valid());
        assert_eq!(node.owned_addresses(), ["192.0.2.1"]);
        node.stop();
        assert!(!node.lease_valid());
    });
    runtime().block_on(async {
        let node = Cluster::start(config).expect("restart");
        let mut events = node.subscribe();
        loop {
            if let Some(Event::AdoptDialogs { from, dialogs }) = events.next().await {
                assert_eq!((from, dialogs), (node.id(), vec![key]));
                break;
            }
        }
        let value = node.read(|tables| tables.dialog(&key).map(|dialog| dialog.value().to_vec()));
        assert_eq!(value.as_deref(), Some(b"call".as_slice()));
        let gone = node.propose_within(Command::delete_dialog(key), WAIT).await.expect("commit");
        assert_eq!(gone.outcome, Outcome::Done { changed: true });
        let gone = node.propose_within(Command::delete_dialog(key), WAIT).await.expect("commit");
        assert_eq!(gone.outcome, Outcome::Done { changed: false });
    });
}
