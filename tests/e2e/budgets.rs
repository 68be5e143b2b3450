//! Three nodes: limits of calls, rates and bans are the cluster's, whichever node a request comes by.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sbc_tests::net::{exchange, socket_in};
use sbc_tests::{can_make_namespaces, wait_for};

use super::line::header;
use super::shared::{LONG, SDP, Shared};

const NODES: [usize; 3] = [1, 2, 3];

const PHONES: &str = r#"
[[trunk]]
name = "phones"
interface = "access"

[[trunk]]
name = "inside"
interface = "core"
peers = "10.2.0.10"

[[group]]
name = "core"
trunks = ["inside"]
max-calls = 30

[[route]]
source = "phones"
target = "core"

[registrar]
trunk = "phones"
domains = ["example.com"]
auth = false

[[user]]
name = "alice"

[[user]]
name = "carol"

[[user]]
name = "dave"
"#;

const LIMITS: &str = r#"
[[admission.limit]]
name = "alice"
by = "user"
users = "alice@example.com"
max-calls = 5

[[admission.limit]]
name = "carol"
by = "user"
users = "carol@example.com"
max-cps = 0.05
over = "forbidden"

[[admission.limit]]
name = "dear"
by = "prefix"
prefixes = "+882"
max-calls = 12

[[admission.limit]]
name = "everything"
by = "all"
max-calls = 100
"#;

/// Lets every call ring until it is cancelled.
struct Ringing {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ringing {
    fn start(shared: &Shared) -> Ringing {
        let socket = socket_in(&shared.net.ns("in"), "10.2.0.10:5060");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut data = [0; 65536];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut data) else { continue };
                let request = String::from_utf8_lossy(&data[..length]).into_owned();
                let say = |status: &str, method: &str| {
                    let answer = response(&request, status, method);
                    socket.send_to(answer.as_bytes(), from).expect("answer");
                };
                match request.split(' ').next() {
                    Some("INVITE") => say("180 Ringing", "INVITE"),
                    Some("CANCEL") => {
                        say("200 OK", "CANCEL");
                        say("487 Request Terminated", "INVITE");
                    }
                    _ => {}
                }
            }
        });
        Ringing { stop, thread: Some(thread) }
    }
}

impl Drop for Ringing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_some_and(|ended| ended.is_ok()) || std::thread::panicking());
    }
}

fn response(request: &str, status: &str, method: &str) -> String {
    let same = |name: &str| format!("{name}: {}\r\n", header(request, name));
    let seq = header(request, "CSeq");
    let seq = seq.split(' ').next().unwrap_or("1");
    format!(
        "SIP/2.0 {status}\r\n{}{}{}To: {};tag=uas\r\nCSeq: {seq} {method}\r\n\
         Contact: <sip:10.2.0.10:5060>\r\nContent-Length: 0\r\n\r\n",
        same("Via"),
        same("From"),
        same("Call-ID"),
        header(request, "To"),
    )
}

/// One place from which users call by any node; what became of each call.
struct Callers {
    socket: UdpSocket,
    calls: Vec<(usize, &'static str)>,
    /// The last status of a call by its number: 180 while it rings.
    last: BTreeMap<usize, u16>,
}

impl Callers {
    fn new(shared: &Shared) -> Callers {
        let socket = socket_in(&shared.net.ns("out"), "10.1.0.10:6000");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
        Callers { socket, calls: Vec::new(), last: BTreeMap::new() }
    }

    fn send(&self, call: usize, method: &str, number: &str) {
        let (node, user) = self.calls[call];
        let body = if method == "INVITE" { SDP } else { "" };
        let text = format!(
            "{method} sip:{number}@example.com SIP/2.0\r\n\
             Via: SIP/2.0/UDP 10.1.0.10:6000;branch=z9hG4bKb{call};rport\r\n\
             From: <sip:{user}@example.com>;tag=f{call}\r\nTo: <sip:{number}@example.com>\r\n\
             Call-ID: budget-{call}\r\nCSeq: 1 {method}\r\nMax-Forwards: 70\r\n\
             Contact: <sip:{user}@10.1.0.10:6000>\r\nContent-Type: application/sdp\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let to = format!("10.1.0.1{node}:5060");
        self.socket.send_to(text.as_bytes(), to).expect("send");
    }

    /// Begins a call; its number.
    fn begin(&mut self, node: usize, user: &'static str, number: &str) -> usize {
        self.calls.push((node, user));
        let call = self.calls.len() - 1;
        self.send(call, "INVITE", number);
        call
    }

    /// The last statuses of calls, once each has one that is not 100.
    fn settle(&mut self, calls: &[usize]) -> Vec<u16> {
        let end = Instant::now() + LONG;
        let mut data = [0; 65536];
        while !calls.iter().all(|call| self.last.contains_key(call)) {
            assert!(Instant::now() < end, "answered: {:?}", self.last);
            let Ok((length, _)) = self.socket.recv_from(&mut data) else { continue };
            let text = String::from_utf8_lossy(&data[..length]).into_owned();
            let call = header(&text, "Call-ID");
            let call = call.strip_prefix("budget-").and_then(|call| call.parse().ok());
            let status = text.split(' ').nth(1).and_then(|s| s.parse().ok());
            if let (Some(call), Some(status)) = (call, status)
                && status > 100
                && header(&text, "CSeq").ends_with("INVITE")
            {
                self.last.insert(call, status);
            }
        }
        calls.iter().map(|call| self.last[call]).collect()
    }

    /// One call; whether it rings.
    fn rings(&mut self, node: usize, user: &'static str, number: &str) -> bool {
        let call = self.begin(node, user, number);
        self.settle(&[call]) == [180]
    }

    /// So many calls by each node at the same time; their statuses.
    fn burst(&mut self, each: usize, user: &'static str, number: &str) -> (Vec<usize>, Vec<u16>) {
        let all: Vec<usize> = NODES.repeat(each);
        let calls: Vec<usize> =
            all.into_iter().map(|node| self.begin(node, user, number)).collect();
        let statuses = self.settle(&calls);
        (calls, statuses)
    }
}

fn count(statuses: &[u16], wanted: u16) -> usize {
    statuses.iter().filter(|status| **status == wanted).count()
}

/// Calls that a limit counts, on all nodes.
fn counted(shared: &Shared, limit: &str) -> u64 {
    let label = format!("limit=\"{limit}\"");
    NODES.iter().map(|n| shared.node(*n).metric("sbc_admission_calls", &label)).sum()
}

/// Calls by all nodes at once: each user, the prefix and the group get what they are allowed and no
/// call more; what one node gives back another one has.
#[test]
fn calls_of_users_prefixes_and_groups_are_counted_for_the_whole_cluster() {
    if !can_make_namespaces("limits of calls of the whole cluster") {
        return;
    }
    let shared = Shared::new(&format!("{PHONES}{LIMITS}"));
    let _ringing = Ringing::start(&shared);
    let mut callers = Callers::new(&shared);

    let (calls, statuses) = callers.burst(4, "alice", "+4930");
    assert_eq!((count(&statuses, 180), count(&statuses, 503)), (5, 7), "{statuses:?}");
    assert_eq!(counted(&shared, "alice"), 5);
    // One of them ends: whoever asks first has its place, and it is one place.
    let ended = calls[statuses.iter().position(|s| *s == 180).expect("one that rings")];
    let other = NODES.into_iter().find(|node| *node != callers.calls[ended].0).expect("a node");
    callers.send(ended, "CANCEL", "+4930");
    wait_for("its place to be another's", LONG, || {
        callers.rings(other, "alice", "+4930").then_some(())
    });
    assert!(!NODES.iter().any(|node| callers.rings(*node, "alice", "+4930")));
    assert_eq!(counted(&shared, "alice"), 5);

    // One new call in twenty seconds.
    let begun = Instant::now();
    let (_, statuses) = callers.burst(4, "carol", "+4930");
    let allowed = 1 + usize::try_from(begun.elapsed().as_secs() / 20).expect("small");
    let rang = count(&statuses, 180);
    assert!((1..=allowed).contains(&rang), "{statuses:?}");
    assert_eq!(count(&statuses, 403), 12 - rang, "{statuses:?}");

    // Shares that follow the use: all but one place for each idle node, at once; never one more.
    let mut rang = 0;
    wait_for("the shares to follow", LONG, || {
        rang += NODES.iter().filter(|node| callers.rings(**node, "dave", "+88216")).count();
        (rang >= 10).then_some(())
    });
    let (_, statuses) = callers.burst(8, "dave", "+88216");
    rang += count(&statuses, 180);
    assert!((10..=12).contains(&rang), "{rang}");
    assert_eq!(counted(&shared, "dear"), u64::try_from(rang).expect("small"));

    let up = |shared: &Shared| counted(shared, "everything");
    wait_for("the group to be full", LONG, || {
        let _: Vec<bool> = NODES.map(|node| callers.rings(node, "dave", "+4930")).to_vec();
        (up(&shared) >= 28).then_some(())
    });
    callers.burst(8, "dave", "+4930");
    assert!((28..=30).contains(&up(&shared)), "{}", up(&shared));
}

/// Nobody can be asked: a node admits an even part of a user's limit, here one call of three.
#[test]
fn without_a_quorum_a_user_has_an_even_part() {
    if !can_make_namespaces("limits of users without a quorum") {
        return;
    }
    let limit = "\n[[admission.limit]]\nname = \"users\"\nby = \"user\"\nmax-calls = 3\n";
    let mut shared = Shared::new(&format!("{PHONES}{limit}"));
    let _ringing = Ringing::start(&shared);
    let mut callers = Callers::new(&shared);
    assert!(callers.rings(1, "alice", "+4930"));
    for mut node in shared.nodes.drain(1..) {
        node.proc.signal(Signal::SIGKILL);
        node.proc.wait(LONG);
    }
    wait_for("the quorum to be gone", LONG, || {
        (shared.metric(1, "sbc_cluster_quorum") == 0).then_some(())
    });
    let rang = (0..3).filter(|_| callers.rings(1, "carol", "+4930")).count();
    assert_eq!(rang, 1);
    // Who had a call then has it still, and that was the part.
    assert!(!callers.rings(1, "alice", "+4930"));
}

const RATE: &str = r#"
[[guard.limit]]
by = "all"
methods = "OPTIONS"
per-second = 0.01
burst = 30
cluster = true
over = "forbidden"
"#;

/// An OPTIONS from a host of the outer side to one node; the status of its answer, 0 without one.
fn options(shared: &Shared, host: u32, node: usize, n: usize) -> u16 {
    let from = format!("10.1.0.{host}:7000");
    let text = format!(
        "OPTIONS sip:example.com SIP/2.0\r\n\
         Via: SIP/2.0/UDP {from};branch=z9hG4bKo{n};rport\r\n\
         From: <sip:dave@example.com>;tag=o{n}\r\nTo: <sip:example.com>\r\n\
         Call-ID: options-{n}\r\nCSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\n\
         Contact: <sip:dave@{from}>\r\nContent-Length: 0\r\n\r\n"
    );
    let to = format!("10.1.0.1{node}:5060");
    let answer = exchange(&shared.net.ns("out"), &from, &to, text.as_bytes());
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
}

/// A budget of thirty requests, asked for by ninety over three nodes.
#[test]
fn a_rate_of_the_cluster_is_held_over_all_nodes() {
    if !can_make_namespaces("rates of the whole cluster") {
        return;
    }
    let shared = Shared::new(&format!("{PHONES}{RATE}"));
    for node in NODES {
        wait_for("the nodes to be known to each", LONG, || {
            (shared.metric(node, "sbc_guard_rate_nodes") == 3).then_some(())
        });
    }
    let begun = Instant::now();
    let statuses: Vec<u16> = (0..90).map(|n| options(&shared, 10, NODES[n % 3], n)).collect();
    let refilled = usize::try_from(begun.elapsed().as_secs() / 100).expect("small") + 3;
    let passed = count(&statuses, 200);
    let most = if begun.elapsed() < Duration::from_secs(100) { 30 } else { 30 + refilled };
    assert!((30..=most).contains(&passed), "{statuses:?}");
    assert_eq!(passed + count(&statuses, 403), 90, "{statuses:?}");
}

/// Who floods one node is banned by all of them, and let in again by all of them.
#[test]
fn a_ban_by_one_node_drops_on_the_others() {
    if !can_make_namespaces("bans of the whole cluster") {
        return;
    }
    let shared = Shared::new(&format!("{PHONES}\n[guard]\nfailed-auth = 5\n"));
    let net = &shared.net;
    sbc_tests::net::ip(&format!("-n {} addr add 10.1.0.66/24 dev to-swo", net.ns("out")));
    for node in NODES {
        assert_eq!(options(&shared, 66, node, node), 200, "by n{node}");
    }
    let flood = socket_in(&net.ns("out"), "10.1.0.66:7001");
    let reason = |node: usize| {
        let bans = shared.node(node).ctl("bans list 10.1.0.66");
        bans["bans"][0]["reason"].as_str().map(str::to_owned)
    };
    let reasons: Vec<String> = wait_for("the ban everywhere", LONG, || {
        for _ in 0..200 {
            // A full queue of the device drops, as on any wire.
            let _ = flood.send_to(b"no SIP at all", "10.1.0.11:5060");
        }
        NODES.into_iter().map(reason).collect()
    });
    assert_eq!(reasons, ["flood"; 3]);
    for node in NODES {
        assert_eq!(options(&shared, 66, node, 10 + node), 0, "by n{node}");
        assert_eq!(options(&shared, 10, node, 20 + node), 200, "by n{node}: others are served");
    }
    assert_eq!(shared.metric(1, "sbc_guard_pike_blocks_total"), 1);
    for node in [2, 3] {
        assert_eq!(shared.metric(node, "sbc_guard_pike_blocks_total"), 0, "n{node} saw no flood");
    }
    shared.node(3).order("bans remove 10.1.0.66");
    let mut n = 30;
    for node in NODES {
        wait_for("the ban to be lifted", LONG, || {
            n += 1;
            (options(&shared, 66, node, n) == 200).then_some(())
        });
    }
}
