//! A write that had no majority in time is brought through once there is one: a call that went on
//! unprotected is protected a little later.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sbc_cluster::{
    Cluster, Command, Config, DialogKey, Discovery, Handle, NodeId, Origin, ProposeError,
};

const WAIT: Duration = Duration::from_secs(30);
const CALL: DialogKey = DialogKey([7; 16]);
const NODE_A: NodeId = NodeId(1);

fn config(dir: &Path, name: &str) -> Config {
    let mut config = Config::new(dir.join(name), name);
    let socket = TcpListener::bind("127.0.0.1:0").expect("bind");
    config.listen = Some(socket.local_addr().expect("address"));
    config
}

async fn until(what: &str, mut met: impl FnMut() -> bool) {
    let start = Instant::now();
    while !met() {
        assert!(start.elapsed() < WAIT, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn has(node: &Handle) -> bool {
    node.read(|tables| tables.dialog(&CALL).is_some_and(|row| row.owner == NODE_A))
}

#[test]
fn a_write_without_a_majority_is_brought_through_when_there_is_one() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        let dir = tempfile::tempdir().expect("tempdir");
        let a_config = config(dir.path(), "a");
        let a = Cluster::start(a_config.clone()).expect("a");
        let mut others = Vec::new();
        for name in ["b", "c"] {
            let token = a.create_join_token(WAIT).await.expect("token");
            let seeds = Discovery::Static(vec![a_config.listen.expect("listens").to_string()]);
            let mut config = config(dir.path(), name);
            config.origin = Origin::Join { token, seeds };
            others.push((Cluster::start(config.clone()).expect(name), config));
        }
        until("three voters", || a.status().core.voters.len() == 3).await;
        for (node, _) in &others {
            node.stop();
        }
        until("the majority is gone", || !a.lease_valid()).await;
        let value = Bytes::from_static(b"a call that was answered");
        let late = a.propose(Command::put_dialog(CALL, 0, &[7], value)).await;
        assert!(matches!(late, Err(ProposeError::NoQuorum | ProposeError::Timeout)), "{late:?}");
        assert!(!has(&a), "without a majority nothing is written");
        let (_, config) = others.pop().expect("c");
        let c = Cluster::start(config).expect("c again");
        until("both have the call", || has(&a) && has(&c)).await;
        let (x, y) = (a.status(), c.status());
        assert!(x.core.applied != y.core.applied || x.digest == y.digest);
    });
}
