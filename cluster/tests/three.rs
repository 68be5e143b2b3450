//! Three real nodes over loopback TLS: join by token, commit through any, lose the leader, take over
//! its address and dialogs, come back, catch up by snapshot.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sbc_cluster::{
    Cluster, Command, Config, DialogKey, Discovery, Event, Handle, NodeId, NodeState, Origin,
    Outcome, Rejection, StartError,
};

const WAIT: Duration = Duration::from_secs(30);

fn free_port() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").expect("bind");
    socket.local_addr().expect("address")
}

fn config(dir: &Path, name: &str) -> Config {
    let mut config = Config::new(dir.join(name), name);
    config.listen = Some(free_port());
    config.limits.snapshot_log_bytes = 64 * 1024;
    config.limits.keep_log_bytes = 4 * 1024;
    config
}

fn join(config: &mut Config, token: String, via: &Config) {
    let seed = via.listen.expect("listens").to_string();
    let seeds = Discovery::Static(vec![seed]);
    config.origin = Origin::Join { token, seeds };
}

/// Waits for a condition that the cluster brings about by itself.
async fn until(what: &str, mut met: impl FnMut() -> bool) {
    let start = Instant::now();
    while !met() {
        assert!(start.elapsed() < WAIT, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn key(n: u8) -> DialogKey {
    DialogKey([n; 16])
}

async fn put(node: &Handle, n: u8, group: u32) {
    let value = Bytes::from(vec![n; 1_200]);
    let command = Command::put_dialog(key(n), group, &[u64::from(n)], value);
    let committed = node.propose_within(command, WAIT).await.expect("commit");
    assert_eq!(committed.outcome, Outcome::Done { changed: true });
}

fn has(node: &Handle, n: u8) -> bool {
    node.read(|tables| tables.dialog(&key(n)).is_some())
}

fn state_of(node: &Handle, id: NodeId) -> Option<NodeState> {
    node.read(|tables| tables.node(id).map(|row| row.state))
}

#[test]
fn three_nodes_live_through_the_loss_of_their_leader() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(scenario());
}

async fn scenario() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (a_config, mut b_config, mut c_config) =
        (config(dir.path(), "a"), config(dir.path(), "b"), config(dir.path(), "c"));
    let a = Cluster::start(a_config.clone()).expect("a");
    put(&a, 1, 0).await;

    let token = a.create_join_token(Duration::from_secs(60)).await.expect("token");
    join(&mut b_config, token.clone(), &a_config);
    let b = Cluster::start(b_config.clone()).expect("b");
    // A token serves once.
    join(&mut c_config, token, &a_config);
    c_config.join_within = Duration::from_millis(200);
    let refused = Cluster::start(c_config.clone()).err();
    assert!(matches!(refused, Some(StartError::Join(_))), "{refused:?}");
    c_config.join_within = WAIT;
    let token = a.create_join_token(Duration::from_secs(60)).await.expect("token");
    join(&mut c_config, token, &a_config);
    let c = Cluster::start(c_config.clone()).expect("c");
    until("three voters", || a.status().core.voters.len() == 3).await;
    until("all up", || (1..=3).all(|n| state_of(&c, NodeId(n)) == Some(NodeState::Up))).await;
    until("c has what was before it", || has(&c, 1)).await;

    // Any node takes writes.
    put(&b, 2, 0).await;
    put(&c, 3, 0).await;
    until("a has both", || has(&a, 2) && has(&a, 3)).await;

    // The leader holds an address and the calls on it.
    let mut events = c.subscribe();
    let address = Command::put_address("192.0.2.9", 1, Some(a.id()));
    a.propose_within(address, WAIT).await.expect("commit");
    until("a holds the address", || a.owned_addresses() == ["192.0.2.9"]).await;
    put(&a, 4, 1).await;
    until("b and c have the call", || has(&b, 4) && has(&c, 4)).await;
    until("a leads", || a.status().core.is_leader).await;
    let a_id = a.id();
    a.stop();
    let lost_at = Instant::now();
    until("a survivor holds the address", || {
        !b.owned_addresses().is_empty() || !c.owned_addresses().is_empty()
    })
    .await;
    println!("address taken over after {:?}", lost_at.elapsed());
    let heir = if c.owned_addresses().is_empty() { &b } else { &c };
    let owner = heir.read(|tables| tables.dialog(&key(4)).map(|dialog| dialog.owner));
    assert_eq!(owner, Some(heir.id()), "the call goes with its address");
    let spread = heir.read(|tables| tables.dialogs_of(a_id).count());
    assert_eq!(spread, 0, "nothing stays with the dead");
    if heir.id() == c.id() {
        let mut adopted = false;
        while let Some(event) = events.try_next() {
            adopted |=
                matches!(event, Event::AdoptDialogs { dialogs, .. } if dialogs.contains(&key(4)));
        }
        assert!(adopted, "the heir was told");
    }

    // Enough to make snapshots, so that the returning node cannot catch up by the log.
    for n in 10..200 {
        put(heir, n, 0).await;
    }
    until("the log was compacted", || heir.status().core.snapshot > 100).await;
    let a = Cluster::start(a_config).expect("a again");
    until("a is back", || {
        has(&a, 199) && state_of(&a, a_id) == Some(NodeState::Up) && a.lease_valid()
    })
    .await;
    assert!(a.status().core.snapshot > 100, "it came by snapshot");
    let same = || {
        let (x, y, z) = (a.status(), b.status(), c.status());
        x.digest == y.digest && y.digest == z.digest
    };
    until("all tables are equal", same).await;
    // What fell to others while it was away stays there.
    assert_eq!(a.owned_addresses(), Vec::<String>::new());

    // Bytes from node to node.
    let mut relayed = a.relayed();
    until("connected", || heir.relay(a.id(), Bytes::from_static(b"hello")).is_ok()).await;
    let item = tokio::time::timeout(WAIT, relayed.next()).await.expect("in time");
    assert_eq!(item, Some((heir.id(), Bytes::from_static(b"hello"))));
    // What all nodes derive from the cluster's secret is the same, and differs by its purpose.
    let key = a.secret("nonces");
    assert!(key.is_some() && key == b.secret("nonces") && key == c.secret("nonces"));
    assert_ne!(key, a.secret("shard hints"));
}

/// Who asks for its own removal hears that it was done; the last one is refused.
#[test]
fn who_leaves_is_told_so_and_the_last_cannot() {
    let dir = tempfile::tempdir().expect("tempdir");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        let (a_config, mut b_config) = (config(dir.path(), "a"), config(dir.path(), "b"));
        let a = Cluster::start(a_config.clone()).expect("a");
        let token = a.create_join_token(Duration::from_secs(60)).await.expect("token");
        join(&mut b_config, token, &a_config);
        let b = Cluster::start(b_config).expect("b");
        until("two voters", || a.status().core.voters.len() == 2 && b.lease_valid()).await;
        until("b is up", || state_of(&b, b.id()) == Some(NodeState::Up)).await;
        b.propose_within(Command::drain(b.id(), false), WAIT).await.expect("commit");
        b.hand_over(1).await.expect("commit");
        let left = b.propose_within(Command::remove_node(b.id()), Duration::from_secs(10)).await;
        assert_eq!(left.expect("told").outcome, Outcome::Done { changed: true });
        until("one voter", || a.status().core.voters.len() == 1).await;
        until("nobody is sent anything", || a.status().peers.is_empty()).await;
        b.stop();

        a.propose_within(Command::drain(a.id(), false), WAIT).await.expect("commit");
        a.hand_over(1).await.expect("commit");
        let last = a.propose_within(Command::remove_node(a.id()), WAIT).await.expect("commit");
        assert_eq!(last.outcome, Outcome::Rejected(Rejection::Last));
    });
}

#[test]
fn strangers_get_nothing() {
    use std::io::{Read as _, Write as _};
    let dir = tempfile::tempdir().expect("tempdir");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        let (ours, theirs) = (config(dir.path(), "ours"), config(dir.path(), "theirs"));
        let (a, x) = (Cluster::start(ours.clone()).expect("a"), Cluster::start(theirs).expect("x"));
        put(&a, 1, 0).await;
        // Plain text, and bytes that are no handshake.
        for garbage in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0x16, 3, 1, 0xff, 0xff, 1, 2]] {
            let mut tcp = std::net::TcpStream::connect(ours.listen.expect("listens")).expect("tcp");
            tcp.set_read_timeout(Some(WAIT)).expect("timeout");
            tcp.write_all(garbage).expect("write");
            tcp.shutdown(std::net::Shutdown::Write).expect("shutdown");
            let mut answer = Vec::new();
            // A TLS alert at most, or a reset.
            let _ = tcp.read_to_end(&mut answer);
            assert!(answer.first().is_none_or(|kind| *kind == 21), "{answer:?}");
        }
        // Leave to join another cluster is none to join this one.
        let token = x.create_join_token(Duration::from_secs(60)).await.expect("token");
        let mut stranger = config(dir.path(), "stranger");
        stranger.join_within = Duration::from_millis(200);
        join(&mut stranger, token, &ours);
        let refused = Cluster::start(stranger).err();
        assert!(matches!(refused, Some(StartError::Join(_))), "{refused:?}");
        assert_eq!(a.read(|tables| tables.nodes().count()), 1);
        put(&a, 2, 0).await;
    });
}

async fn wait_for(events: &mut sbc_cluster::Events, wanted: impl Fn(&Event) -> bool) {
    loop {
        let event = tokio::time::timeout(WAIT, events.next()).await.expect("in time");
        if wanted(&event.expect("the node runs")) {
            return;
        }
    }
}

#[test]
fn addresses_and_calls_are_handed_over_while_all_live() {
    let dir = tempfile::tempdir().expect("tempdir");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        let (a_config, mut b_config) = (config(dir.path(), "a"), config(dir.path(), "b"));
        let a = Cluster::start(a_config.clone()).expect("a");
        let token = a.create_join_token(Duration::from_secs(60)).await.expect("token");
        join(&mut b_config, token, &a_config);
        let b = Cluster::start(b_config).expect("b");
        until("b is up", || state_of(&b, b.id()) == Some(NodeState::Up)).await;
        let address = Command::put_address("192.0.2.9", 1, Some(a.id()));
        a.propose_within(address, WAIT).await.expect("commit");
        until("a holds it", || a.owned_addresses() == ["192.0.2.9"]).await;
        put(&a, 1, 1).await;

        // A move: the holder lets go first.
        let mut events = a.subscribe();
        let moving = Command::move_addresses(1, b.id());
        b.propose_within(moving, WAIT).await.expect("commit");
        let removed = |event: &Event| match event {
            Event::OwnedAddresses { remove, .. } => remove == &["192.0.2.9"],
            _ => false,
        };
        wait_for(&mut events, removed).await;
        assert!(b.owned_addresses().is_empty(), "not before a said so");
        let asked = a.read(|t| t.address("192.0.2.9").and_then(|row| row.is_asked_of(a.id())));
        a.addresses_dropped(1, asked.expect("asked for")).await.expect("commit");
        until("b holds it", || b.owned_addresses() == ["192.0.2.9"]).await;
        let owner = b.read(|tables| tables.dialog(&key(1)).map(|dialog| dialog.owner));
        assert_eq!(owner, Some(b.id()));

        // A drain: everything goes at once, when the node says that it is ready.
        let mut events = b.subscribe();
        a.propose_within(Command::drain(b.id(), false), WAIT).await.expect("commit");
        wait_for(&mut events, |event| *event == Event::DrainRequested { drain: 1 }).await;
        b.hand_over(1).await.expect("commit");
        until("a has it all", || a.owned_addresses() == ["192.0.2.9"]).await;
        let owner = a.read(|tables| tables.dialog(&key(1)).map(|dialog| dialog.owner));
        assert_eq!(owner, Some(a.id()));
        assert_eq!(state_of(&a, b.id()), Some(NodeState::Drained));

        // Out of the cluster; one is left and goes on alone.
        let remove = Command::remove_node(b.id());
        a.propose_within(remove, WAIT).await.expect("commit");
        until("one voter", || a.status().core.voters.len() == 1).await;
        b.stop();
        put(&a, 2, 0).await;
    });
}
