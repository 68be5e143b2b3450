//! A rolling update over real nodes: the next release reads one format more. Nobody writes it before
//! all read it, and whoever reads less is kept out then, by name.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sbc_cluster::{
    Cluster, Command, Config, DialogKey, Discovery, FORMAT_VERSION, Handle, Origin, StartError,
    Tables,
};

const WAIT: Duration = Duration::from_secs(30);
const FORMER: u32 = FORMAT_VERSION - 1;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

fn config(dir: &Path, name: &str, format: u32) -> Config {
    let mut config = Config::new(dir.join(name), name);
    let socket = TcpListener::bind("127.0.0.1:0").expect("bind");
    config.listen = Some(socket.local_addr().expect("address"));
    config.format = format;
    config
}

fn until(what: &str, mut met: impl FnMut() -> bool) {
    let start = Instant::now();
    while !met() {
        assert!(start.elapsed() < WAIT, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn joins(mut config: Config, first: &Handle, via: &Config) -> Config {
    let token = runtime().block_on(first.create_join_token(WAIT)).expect("token");
    let seeds = Discovery::Static(vec![via.listen.expect("listens").to_string()]);
    config.origin = Origin::Join { token, seeds };
    config
}

fn put(node: &Handle, n: u8) {
    let command = Command::put_dialog(DialogKey([n; 16]), 0, &[], Bytes::from_static(b"call"));
    runtime().block_on(node.propose_within(command, WAIT)).expect("commit");
}

fn has(node: &Handle, n: u8) -> bool {
    node.read(|tables| tables.dialog(&DialogKey([n; 16])).is_some())
}

fn format(node: &Handle) -> u32 {
    node.read(Tables::format)
}

#[test]
fn a_rolling_update_changes_the_format_once_all_read_it() {
    let dir = tempfile::tempdir().expect("directory");
    let mut configs = vec![config(dir.path(), "a", FORMER)];
    let mut nodes = vec![Cluster::start(configs[0].clone()).expect("a")];
    until("a quorum", || nodes[0].lease_valid());
    // The third is of the next release from the beginning: it joins the former one's cluster.
    for (name, reads) in [("b", FORMER), ("c", FORMAT_VERSION)] {
        let config = joins(config(dir.path(), name, reads), &nodes[0], &configs[0]);
        nodes.push(Cluster::start(config.clone()).expect("joins"));
        configs.push(config);
    }
    until("three voters", || nodes.iter().all(|node| node.status().core.voters.len() == 3));
    put(&nodes[2], 1);
    until("all have it", || nodes.iter().all(|node| has(node, 1)));

    for (turn, config) in configs.iter_mut().enumerate().take(2) {
        assert_eq!(nodes.iter().map(format).max(), Some(FORMER));
        nodes[turn].stop();
        config.format = FORMAT_VERSION;
        config.origin = Origin::New;
        nodes[turn] = Cluster::start(config.clone()).expect("starts as the next release");
        until("it is back", || nodes[turn].lease_valid());
        let n = u8::try_from(turn).expect("small") + 2;
        put(&nodes[turn], n);
        until("all have it", || nodes.iter().all(|node| has(node, n)));
    }
    until("all write the later format", || nodes.iter().all(|node| format(node) == FORMAT_VERSION));
    put(&nodes[0], 9);
    until("all have it", || nodes.iter().all(|node| has(node, 9)));

    // The former release cannot join any more, and cannot go on with a log of the later format.
    let late = joins(config(dir.path(), "d", FORMER), &nodes[0], &configs[0]);
    let refused = Cluster::start(late).err();
    let Some(StartError::Join(reason)) = refused else { panic!("{refused:?}") };
    assert_eq!(reason, "the cluster writes a later format than this release reads");
    nodes[1].stop();
    let mut old = configs[1].clone();
    old.format = FORMER;
    match Cluster::start(old) {
        // The entry was committed when it was stopped, or comes a moment later.
        Err(StartError::Core(reason)) => {
            let named = format!("has format version {FORMAT_VERSION}");
            assert!(reason.contains(&named), "{reason}")
        }
        Err(other) => panic!("{other}"),
        Ok(node) => until("it ends its part", || {
            let command = Command::delete_dialog(DialogKey([77; 16]));
            runtime().block_on(node.propose(command)) == Err(sbc_cluster::ProposeError::Stopped)
        }),
    }
    assert!(nodes[0].lease_valid() && nodes[2].lease_valid(), "the others go on");
}
