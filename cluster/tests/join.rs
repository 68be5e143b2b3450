//! Joining where the answer is lost on the way: the joiner asks again and is given the same id, and
//! nobody else is let in by its token. Over real TLS, through a relay that swallows the answer.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sbc_cluster::{Cluster, Config, Discovery, Handle, NodeId, Origin, StartError};

const WAIT: Duration = Duration::from_secs(30);
/// The type of a TLS record that is encrypted.
const APPLICATION_DATA: u8 = 23;

fn config(dir: &Path, place: &str, name: &str) -> Config {
    let mut config = Config::new(dir.join(place), name);
    let socket = TcpListener::bind("127.0.0.1:0").expect("bind");
    config.listen = Some(socket.local_addr().expect("address"));
    config
}

fn until<T>(what: &str, mut met: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = met() {
            return found;
        }
        assert!(start.elapsed() < WAIT, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A way to a member on which answers may be lost.
struct Relay {
    address: SocketAddr,
    deaf: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    fn to(member: SocketAddr) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let deaf = Arc::new(AtomicBool::new(true));
        let open = Arc::new(Mutex::new(Vec::new()));
        let relay = Relay { address, deaf: Arc::clone(&deaf), open: Arc::clone(&open) };
        std::thread::spawn(move || {
            for joiner in listener.incoming() {
                let joiner = joiner.expect("a connection");
                let member = TcpStream::connect(member).expect("the member");
                let copy = |stream: &TcpStream| stream.try_clone().expect("a copy");
                open.lock().expect("lock").extend([copy(&joiner), copy(&member)]);
                // The handshake is over with the joiner's first encrypted record; it has had all of
                // the member's by then.
                let asked = Arc::new(AtomicBool::new(false));
                let (from, to) = (copy(&joiner), copy(&member));
                let (seen, mute) = (Arc::clone(&asked), deaf.load(Ordering::SeqCst));
                std::thread::spawn(move || {
                    let mut records = Records::default();
                    carry(from, to, |bytes| {
                        seen.fetch_or(records.encrypted(bytes), Ordering::SeqCst);
                        true
                    });
                });
                std::thread::spawn(move || {
                    carry(member, joiner, |_| !mute || !asked.load(Ordering::SeqCst));
                });
            }
        });
        relay
    }

    /// Cuts what is open; what is opened from now on is carried both ways.
    fn mend(&self) {
        self.deaf.store(false, Ordering::SeqCst);
        for stream in self.open.lock().expect("lock").drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Copies until one side closes; `passes` says of each part whether it goes on.
fn carry(mut from: TcpStream, mut to: TcpStream, mut passes: impl FnMut(&[u8]) -> bool) {
    let mut part = [0; 16 * 1024];
    while let Ok(got @ 1..) = from.read(&mut part) {
        if passes(&part[..got]) && to.write_all(&part[..got]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// Cuts a stream into TLS records.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    /// Whether an encrypted record begins or goes on in these bytes.
    fn encrypted(&mut self, bytes: &[u8]) -> bool {
        self.0.extend_from_slice(bytes);
        let mut found = false;
        while let Some(&[kind, _, _, high, low]) = self.0.first_chunk() {
            found |= kind == APPLICATION_DATA;
            let whole = 5 + usize::from(u16::from_be_bytes([high, low]));
            if self.0.len() < whole {
                break;
            }
            self.0.drain(..whole);
        }
        found
    }
}

/// A member, a relay before it, and a token.
fn member(dir: &Path) -> (Handle, Relay, String) {
    let config = config(dir, "a", "a");
    let member = Cluster::start(config.clone()).expect("a");
    until("a quorum", || member.lease_valid().then_some(()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let token = runtime.expect("runtime").block_on(member.create_join_token(WAIT)).expect("token");
    (member, Relay::to(config.listen.expect("listens")), token)
}

fn joining(mut config: Config, relay: &Relay, token: &str, within: Duration) -> Config {
    let seeds = Discovery::Static(vec![relay.address.to_string()]);
    config.origin = Origin::Join { token: token.to_owned(), seeds };
    config.join_within = within;
    config
}

/// The id that was given to `b`, once it is applied.
fn given(member: &Handle) -> NodeId {
    let find = || member.read(|t| t.nodes().find(|(_, row)| row.name == "b").map(|(id, _)| id));
    until("b in the table", find)
}

fn refused(config: Config) {
    match Cluster::start(config).err() {
        Some(StartError::Join(reason)) => {
            assert_eq!(reason, "the token is unknown, used or expired");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_joiner_whose_answer_was_lost_asks_again_after_a_restart() {
    let dir = tempfile::tempdir().expect("directory");
    let (a, relay, token) = member(dir.path());
    let b = joining(config(dir.path(), "b", "b"), &relay, &token, Duration::ZERO);
    let first = std::thread::spawn({
        let b = b.clone();
        move || Cluster::start(b).err()
    });
    let id = given(&a);
    relay.mend();
    let lost = first.join().expect("thread");
    assert!(matches!(lost, Some(StartError::Join(_))), "{lost:?}");
    let kept = b.dir.join("pki/joining.pem");
    let key = std::fs::read(&kept).expect("the key is kept");
    assert!(!b.dir.join("identity").exists());

    // Another machine under its name, and one under another.
    for (place, name) in [("c", "b"), ("d", "d")] {
        refused(joining(config(dir.path(), place, name), &relay, &token, Duration::ZERO));
    }
    assert_eq!(a.status().nodes.len(), 2);

    let again = Cluster::start(b.clone()).expect("b asks again");
    assert_eq!(again.id(), id, "the same place");
    until("two voters", || (a.status().core.voters.len() == 2).then_some(()));
    until("b to be one of them", || again.lease_valid().then_some(()));
    assert_eq!(a.status().nodes.len(), 2, "no second row");
    assert!(!kept.exists(), "nobody asks by this key again");

    // As if its disk were lost but for the key: who was up has had its answer.
    let copy = joining(config(dir.path(), "e", "b"), &relay, &token, Duration::ZERO);
    std::fs::create_dir_all(copy.dir.join("pki")).expect("directory");
    std::fs::write(copy.dir.join("pki/joining.pem"), key).expect("key");
    refused(copy);
    again.stop();
    a.stop();
}

#[test]
fn a_joiner_whose_answer_was_lost_asks_again_by_itself() {
    let dir = tempfile::tempdir().expect("directory");
    let (a, relay, token) = member(dir.path());
    let b = joining(config(dir.path(), "b", "b"), &relay, &token, WAIT);
    let joiner = std::thread::spawn(move || Cluster::start(b).expect("b"));
    let id = given(&a);
    relay.mend();
    let b = joiner.join().expect("thread");
    assert_eq!(b.id(), id);
    until("b to be a member", || b.lease_valid().then_some(()));
    assert_eq!(a.status().nodes.len(), 2);
    b.stop();
    a.stop();
}

/// A key that cannot be read is named, not replaced: it may be the one that was let in.
#[test]
fn a_damaged_key_of_a_joiner_is_named() {
    let dir = tempfile::tempdir().expect("directory");
    let (a, relay, token) = member(dir.path());
    relay.mend();
    let b = joining(config(dir.path(), "b", "b"), &relay, &token, Duration::ZERO);
    std::fs::create_dir_all(b.dir.join("pki")).expect("directory");
    std::fs::write(b.dir.join("pki/joining.pem"), "nothing").expect("file");
    let error = Cluster::start(b).err().expect("refused");
    assert!(error.to_string().contains("joining.pem is not readable as PEM"), "{error}");
    a.stop();
}
