//! Finding members against a real etcd and a real name server.

mod own;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcd_client::Client;
use sbc_cluster::{
    Cluster, Command, Config, DialogKey, Discovery, Handle, JoinKey, Origin, StartError,
};

const WAIT: Duration = Duration::from_secs(40);
const PREFIX: &str = "/sbc/test/";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

fn free_port() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").expect("bind");
    socket.local_addr().expect("address")
}

fn until(what: &str, mut met: impl FnMut() -> bool) {
    let start = Instant::now();
    while !met() {
        assert!(start.elapsed() < WAIT, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A program that dies with the test.
struct Server(Child);

impl Server {
    fn start(program: &str, args: &[&str]) -> Server {
        let path = std::env::var("PATH").unwrap_or_default();
        let child = Process::new(program)
            .args(args)
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Server(child.unwrap_or_else(|e| panic!("{program}: {e} (tests/scripts/deps.sh)")))
    }

    fn signal(&self, name: &str) {
        let done = Process::new("kill").args([name, &self.0.id().to_string()]).status();
        assert!(done.expect("kill").success());
    }

    /// As a crash would.
    fn kill(mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be dead by now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Etcd {
    client: String,
    peer: String,
    dir: PathBuf,
}

impl Etcd {
    fn new(dir: &Path) -> Etcd {
        let [client, peer] = [free_port(), free_port()].map(|at| format!("http://{at}"));
        Etcd { client, peer, dir: dir.join("etcd") }
    }

    fn start(&self) -> Server {
        let server = Server::start(
            "etcd",
            &[
                "--data-dir",
                self.dir.to_str().expect("a plain path"),
                "--listen-client-urls",
                &self.client,
                "--advertise-client-urls",
                &self.client,
                "--listen-peer-urls",
                &self.peer,
                "--initial-advertise-peer-urls",
                &self.peer,
                "--initial-cluster",
                &format!("default={}", self.peer),
            ],
        );
        until("etcd to answer", || self.get("health").is_ok());
        server
    }

    fn get(&self, key: &str) -> Result<Option<String>, etcd_client::Error> {
        runtime().block_on(async {
            let mut client = Client::connect([&self.client], None).await?;
            let answer = client.get(format!("{PREFIX}{key}"), None).await?;
            Ok(answer.kvs().first().map(|kv| kv.value_str().expect("text").to_owned()))
        })
    }

    fn discovery(&self) -> Discovery {
        Discovery::Etcd { endpoints: vec![self.client.clone()], prefix: PREFIX.to_owned() }
    }

    fn is_registered(&self, config: &Config) -> bool {
        let address = config.listen.expect("listens").to_string();
        self.get(&config.name).is_ok_and(|found| found == Some(address))
    }
}

fn config(dir: &Path, name: &str, etcd: &Etcd) -> Config {
    let mut config = Config::new(dir.join(name), name);
    config.listen = Some(free_port());
    config.register = Some(etcd.discovery());
    config
}

fn voters(node: &Handle) -> usize {
    node.status().core.voters.len()
}

fn put(node: &Handle, n: u8) {
    let command = Command::put_dialog(DialogKey([n; 16]), 0, &[], Bytes::from_static(b"call"));
    runtime().block_on(node.propose_within(command, WAIT)).expect("commit");
}

fn has(node: &Handle, n: u8) -> bool {
    node.read(|tables| tables.dialog(&DialogKey([n; 16])).is_some())
}

/// A registration stands while its node runs and no longer; it outlives the death of etcd, and of
/// everything that etcd knew.
#[test]
fn a_registration_in_etcd_lives_as_long_as_its_node() {
    let dir = tempfile::tempdir().expect("directory");
    let etcd = Etcd::new(dir.path());
    let server = etcd.start();
    let a_config = config(dir.path(), "a", &etcd);
    let a = Cluster::start(a_config.clone()).expect("a");
    until("a to register", || etcd.is_registered(&a_config));

    // Whom a joiner finds by it lets it in; a token that is none, nobody.
    let mut b_config = config(dir.path(), "b", &etcd);
    let token = runtime().block_on(a.create_join_token(WAIT)).expect("token");
    b_config.origin = Origin::Join { token, seeds: etcd.discovery() };
    let b = Cluster::start(b_config.clone()).expect("b");
    until("two voters", || voters(&a) == 2 && voters(&b) == 2);
    until("b to register", || etcd.is_registered(&b_config));

    server.kill();
    put(&a, 1);
    until("b without etcd", || has(&b, 1));
    let server = etcd.start();
    until("both again", || etcd.is_registered(&a_config) && etcd.is_registered(&b_config));
    server.kill();
    std::fs::remove_dir_all(&etcd.dir).expect("all that etcd knew");
    let _server = etcd.start();
    until("both anew", || etcd.is_registered(&a_config) && etcd.is_registered(&b_config));

    b.stop();
    drop(b);
    until("the lease of b to expire", || etcd.get("b").is_ok_and(|found| found.is_none()));
    assert!(etcd.is_registered(&a_config), "a is kept alive");
}

/// Every member comes back at another address while none runs: the table is of no use, they find each
/// other by what they registered.
#[test]
fn members_that_all_moved_find_each_other_by_etcd() {
    let dir = tempfile::tempdir().expect("directory");
    let etcd = Etcd::new(dir.path());
    let _server = etcd.start();
    let key = JoinKey::derive(b"a secret of a test, long enough to be believed");
    let mut configs: Vec<Config> =
        ["sbc-0", "sbc-1", "sbc-2"].map(|name| config(dir.path(), name, &etcd)).into();
    for config in &mut configs {
        config.key = key.clone();
        config.join_within = WAIT;
        config.origin = Origin::Meet { begin: Some(3), seeds: etcd.discovery() };
    }
    // Nodes without data find each other by etcd, too.
    let start = |configs: &[Config]| -> Vec<Handle> {
        let begin = |config: Config| std::thread::spawn(|| Cluster::start(config).expect("starts"));
        let threads: Vec<_> = configs.iter().cloned().map(begin).collect();
        threads.into_iter().map(|thread| thread.join().expect("thread")).collect()
    };
    let nodes = start(&configs);
    until("three voters", || nodes.iter().all(|node| voters(node) == 3));
    put(&nodes[0], 1);
    for node in nodes {
        node.stop();
    }
    for config in &mut configs {
        config.listen = Some(free_port());
    }
    // One is there first, alone, and has to be told of the others as they come.
    let first = Cluster::start(configs[0].clone()).expect("starts");
    until("the first to register", || etcd.is_registered(&configs[0]));
    assert!(!first.lease_valid());
    let others = start(&configs[1..]);
    until("a majority", || first.lease_valid() && others.iter().all(Handle::lease_valid));
    put(&first, 2);
    until("the same tables", || others.iter().all(|node| has(node, 1) && has(node, 2)));
    let moved = |node: &Handle| {
        let rows = node.status().nodes;
        rows.iter().all(|(_, row)| {
            configs.iter().any(|c| row.address == c.listen.expect("it").to_string())
        })
    };
    until("the table to know the new addresses", || moved(&first));
}

/// One name, several addresses, as a headless service has: nodes meet by it, and one that comes back
/// with another address and without its disk is found under the changed name.
#[test]
fn nodes_meet_by_a_name_whose_addresses_change() {
    if !own::inside("nodes_meet_by_a_name_whose_addresses_change") {
        return;
    }
    let dir = tempfile::tempdir().expect("directory");
    let hosts = dir.path().join("hosts");
    let publish = |addresses: &[&str]| {
        let lines: String = addresses.iter().map(|a| format!("{a} sbc.test\n")).collect();
        std::fs::write(&hosts, lines).expect("hosts");
    };
    publish(&["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    let resolv = dir.path().join("resolv.conf");
    std::fs::write(&resolv, "nameserver 127.0.0.53\noptions timeout:1\n").expect("resolv.conf");
    let bound = Process::new("mount").arg("--bind").arg(&resolv).arg("/etc/resolv.conf").status();
    assert!(bound.expect("mount").success());
    let file = format!("--addn-hosts={}", hosts.display());
    let names = Server::start(
        "dnsmasq",
        &[
            "--keep-in-foreground",
            "--no-resolv",
            "--no-hosts",
            "--conf-file=/dev/null",
            "--pid-file=",
            "--user=root",
            "--group=root",
            "--listen-address=127.0.0.53",
            "--bind-interfaces",
            "--local=/test/",
            &file,
        ],
    );
    let key = JoinKey::derive(b"a secret of a test, long enough to be believed");
    let config = |ordinal: usize, address: &str| {
        let name = format!("sbc-{ordinal}");
        let mut config = Config::new(dir.path().join(&name), name);
        config.listen = Some(format!("{address}:7000").parse().expect("an address"));
        config.key = key.clone();
        config.join_within = WAIT;
        let seeds = Discovery::Dns { name: "sbc.test".to_owned(), port: 7_000 };
        config.origin = Origin::Meet { begin: Some(3), seeds };
        config
    };
    let begin = |config: Config| std::thread::spawn(|| Cluster::start(config).expect("starts"));
    let threads: Vec<_> = (0..3).map(|n| begin(config(n, &format!("127.0.0.{}", n + 1)))).collect();
    let mut nodes: Vec<Handle> =
        threads.into_iter().map(|thread| thread.join().expect("thread")).collect();
    until("three voters", || nodes.iter().all(|node| voters(node) == 3));
    put(&nodes[0], 1);

    let gone = nodes.pop().expect("three");
    gone.stop();
    drop(gone);
    std::fs::remove_dir_all(dir.path().join("sbc-2")).expect("its disk");
    publish(&["127.0.0.1", "127.0.0.2", "127.0.0.4"]);
    names.signal("-HUP");
    let back = Cluster::start(config(2, "127.0.0.4")).expect("back");
    until("it has the tables", || has(&back, 1) && voters(&back) == 3);
    assert_eq!(back.id().0, 4, "a new node of the same cluster");

    // A name that nobody answers for is said so.
    let mut lost = config(3, "127.0.0.5");
    let seeds = Discovery::Dns { name: "nobody.test".to_owned(), port: 7_000 };
    lost.origin = Origin::Meet { begin: None, seeds };
    lost.join_within = Duration::from_millis(100);
    let refused = Cluster::start(lost).err();
    let Some(StartError::Join(reason)) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("nobody.test: "), "{reason}");
}
