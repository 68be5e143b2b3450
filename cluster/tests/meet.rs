//! Nodes that were given the join key alone: they make one cluster among themselves, take one back
//! that lost its disk, and never begin a second one.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sbc_cluster::{
    Cluster, Command, Config, DialogKey, Discovery, Handle, JoinKey, Origin, StartError,
};

const WAIT: Duration = Duration::from_secs(30);
const SECRET: &[u8] = b"a secret of a test, long enough to be believed";

fn free_ports(count: usize) -> Vec<SocketAddr> {
    let sockets: Vec<_> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("bind")).collect();
    sockets.iter().map(|s| s.local_addr().expect("address")).collect()
}

fn config(dir: &Path, ordinal: usize, ports: &[SocketAddr], secret: &[u8]) -> Config {
    let name = format!("sbc-{ordinal}");
    let mut config = Config::new(dir.join(&name), name);
    config.listen = ports.get(ordinal).copied();
    config.key = JoinKey::derive(secret);
    let seeds = Discovery::Static(ports.iter().map(ToString::to_string).collect());
    config.origin = Origin::Meet { begin: Some(ports.len()), seeds };
    config.join_within = WAIT;
    config
}

fn start_all(configs: &[Config]) -> Vec<Handle> {
    let threads: Vec<_> = configs
        .iter()
        .cloned()
        .map(|config| std::thread::spawn(move || Cluster::start(config).expect("start")))
        .collect();
    threads.into_iter().map(|t| t.join().expect("thread")).collect()
}

fn until(what: &str, mut met: impl FnMut() -> bool) {
    let start = Instant::now();
    while !met() {
        assert!(start.elapsed() < WAIT, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn voters(node: &Handle) -> usize {
    node.status().core.voters.len()
}

fn cluster_id(node: &Handle) -> Vec<u8> {
    node.read(|tables| tables.cluster_id().to_vec())
}

#[test]
fn three_make_one_cluster_and_the_first_comes_back_without_its_disk() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("runtime");
    let dir = tempfile::tempdir().expect("tempdir");
    let ports = free_ports(3);
    let configs: Vec<_> = (0..3).map(|n| config(dir.path(), n, &ports, SECRET)).collect();
    let mut nodes = start_all(&configs);
    for node in &nodes {
        until("three voters", || voters(node) == 3);
    }
    let id = cluster_id(&nodes[0]);
    assert!(nodes.iter().all(|n| cluster_id(n) == id), "one cluster");
    assert_eq!(nodes[0].id().0, 1, "the first by name began it");

    let put = Command::put_dialog(DialogKey([7; 16]), 0, &[7], Bytes::from_static(b"a call"));
    runtime.block_on(nodes[1].propose_within(put, WAIT)).expect("commit");

    // The node that began the cluster loses its disk. It must come back into it.
    let first = nodes.remove(0);
    first.stop();
    drop(first);
    std::fs::remove_dir_all(&configs[0].dir).expect("lose the disk");
    let reborn = Cluster::start(configs[0].clone()).expect("reborn");
    assert_ne!(reborn.id().0, 1, "its votes are forgotten: it has a new id");
    until("three voters again", || voters(&reborn) == 3 && voters(&nodes[0]) == 3);
    assert_eq!(cluster_id(&reborn), id, "the same cluster");
    until("it has what was written", || {
        reborn.read(|tables| tables.dialog(&DialogKey([7; 16])).is_some())
    });
    let names: Vec<String> = reborn.status().nodes.iter().map(|(_, n)| n.name.clone()).collect();
    assert_eq!(names.len(), 3, "its former self is gone: {names:?}");
}

#[test]
fn one_without_its_disk_and_without_the_others_begins_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let ports = free_ports(3);
    let mut alone = config(dir.path(), 0, &ports, SECRET);
    alone.join_within = Duration::from_secs(2);
    let refused = Cluster::start(alone).err();
    let Some(StartError::Join(reason)) = refused else { panic!("{refused:?}") };
    assert!(reason.starts_with("1 of 3 without data (sbc-0)"), "{reason}");
}

#[test]
fn another_key_is_no_key() {
    let dir = tempfile::tempdir().expect("tempdir");
    let ports = free_ports(2);
    let mut one = config(dir.path(), 0, &ports, SECRET);
    one.origin = Origin::New;
    let member = Cluster::start(one).expect("begin");
    let mut two = config(dir.path(), 1, &ports, b"another secret that is long enough, too");
    two.join_within = Duration::from_secs(2);
    let refused = Cluster::start(two).err();
    assert!(matches!(refused, Some(StartError::Join(_))), "{refused:?}");
    assert_eq!(member.status().nodes.len(), 1);
    assert!(JoinKey::derive(b"too short").is_none());
    assert_eq!(format!("{:?}", JoinKey::derive(SECRET)), "Some(JoinKey)", "it is not shown");
}
