//! The binaries as processes, and phones that speak just enough SIP to make calls through them.

#![expect(dead_code, reason = "each test binary uses a part of this")]

pub(crate) mod register;

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

fn run(program: &str, args: &[&str]) -> (i32, String, String) {
    let out = Command::new(program).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

pub(crate) fn sbc_node(args: &[&str]) -> (i32, String, String) {
    run(env!("CARGO_BIN_EXE_sbc-node"), args)
}

pub(crate) fn sbcctl(args: &[&str]) -> (i32, String) {
    let (code, out, _) = run(env!("CARGO_BIN_EXE_sbcctl"), args);
    (code, out)
}

/// Looks again and again until `f` has something.
pub(crate) fn eventually<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = f() {
            return found;
        }
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

pub(crate) fn free_udp() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn run_node(file: &std::path::Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_sbc-node"))
        .args(["run", "--config", file.to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A running sbc-node with a directory of its own.
pub(crate) struct Node {
    child: Child,
    dir: TempDir,
    pub socket: PathBuf,
    pub inside: SocketAddr,
    pub pbx: SocketAddr,
    pub carrier: SocketAddr,
    pub outside: SocketAddr,
    pub metrics: SocketAddr,
}

impl Node {
    pub(crate) fn start() -> Node {
        Node::start_with("")
    }

    /// Waited for no longer than until its admin socket is there.
    pub(crate) fn begin() -> Node {
        Node::spawned(|| Node::spawn("", "", free_udp()), |node| node.socket.exists())
    }

    /// With more lines in `[node]`.
    pub(crate) fn start_with(node: &str) -> Node {
        Node::started(|| Node::spawn(node, "", free_udp()))
    }

    /// With another file for CDRs in its directory.
    pub(crate) fn start_with_cdr(file: &str) -> Node {
        let node = Node::start();
        node.edit(|text| text.replace("cdr.jsonl", file));
        node.restarted()
    }

    /// The same once more, with its configuration as it is now.
    pub(crate) fn restarted(mut self) -> Node {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.wait(), Some(0));
        let file = self.path("sbc.toml");
        self.child = run_node(&file);
        eventually("the node", || (self.ctl("status").0 == 0).then_some(()));
        self
    }

    /// The same once more after a crash.
    pub(crate) fn crashed_and_restarted(mut self) -> Node {
        self.signal(Signal::SIGKILL);
        let child = &mut self.child;
        eventually("the end", || child.try_wait().unwrap());
        let file = self.path("sbc.toml");
        self.child = run_node(&file);
        eventually("the node", || (self.ctl("status").0 == 0).then_some(()));
        self
    }

    /// With more lines in `[admin]`.
    pub(crate) fn start_managed(admin: &str) -> Node {
        Node::started(|| Node::spawn("", admin, free_udp()))
    }

    fn started(spawn: impl Fn() -> Node) -> Node {
        Node::spawned(spawn, |node| node.ctl("status").0 == 0)
    }

    /// A free port may be taken by somebody else before the node binds it: then with other ports.
    fn spawned(spawn: impl Fn() -> Node, is_up: impl Fn(&Node) -> bool) -> Node {
        for _ in 0..5 {
            let mut node = spawn();
            let up = eventually("the node", || {
                if node.child.try_wait().unwrap().is_some() {
                    return Some(false);
                }
                is_up(&node).then_some(true)
            });
            if up {
                return node;
            }
        }
        panic!("the node ended at its start, five times");
    }

    /// Starts a node whose inside address is taken; its exit code and what it said.
    pub(crate) fn fail_to_start(taken: SocketAddr) -> (Option<i32>, String) {
        let mut node = Node::spawn("", "", taken);
        let code = node.wait();
        let mut errors = String::new();
        node.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (code, errors)
    }

    fn spawn(node: &str, admin: &str, inside: SocketAddr) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let (outside, pbx, carrier) = (free_udp(), free_udp(), free_udp());
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let at = dir.path().display();
        let text = format!(
            r#"
[node]
name = "t"
shards = 2
{node}
[admin]
socket = "{at}/admin.sock"
{admin}
[metrics]
listen = "{metrics}"
[cdr]
file = "{at}/cdr.jsonl"
[log]
level = "warn"
[media]
allow-local = true
[[interface]]
name = "inside"
listen = ["udp://{inside}", "tcp://{inside}"]
media = {{ ports = "20000-24999" }}
[[interface]]
name = "outside"
listen = ["udp://{outside}", "tcp://{outside}"]
media = {{ ports = "25000-29999" }}
[[trunk]]
name = "pbx"
interface = "inside"
peers = "{pbx}"
max-calls = 100
[[trunk]]
name = "carrier"
interface = "outside"
peers = "{carrier}"
[[route]]
source = "pbx"
target = "carrier"
[[route]]
source = "carrier"
target = "pbx"
"#
        );
        let file = dir.path().join("sbc.toml");
        std::fs::write(&file, text).unwrap();
        let child = run_node(&file);
        let socket = dir.path().join("admin.sock");
        Node { child, dir, socket, inside, pbx, carrier, outside, metrics }
    }

    /// Runs sbcctl; exit code and output.
    pub(crate) fn ctl(&self, words: &str) -> (i32, String) {
        let mut args = vec!["--socket", self.socket.to_str().unwrap()];
        args.extend(words.split_whitespace());
        sbcctl(&args)
    }

    /// Runs sbcctl for JSON; must succeed.
    pub(crate) fn json(&self, words: &str) -> Value {
        let (code, out) = self.ctl(&format!("--output json {words}"));
        assert_eq!(code, 0, "sbcctl {words}: {out}");
        serde_json::from_str(&out).unwrap()
    }

    /// Begins to watch a call; returns once the node copies its messages.
    pub(crate) fn trace(&self, id: &str) -> Trace {
        let socket = self.socket.to_str().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_sbcctl"))
            .args(["--socket", socket, "--output", "json", "calls", "trace", id])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The watcher counts once its stream stands.
        eventually("the watcher", || {
            let reply = self.json("stats sbc_trace_watchers");
            (reply["stats"][0]["value"] == 1.0).then_some(())
        });
        Trace(child)
    }

    /// Waits until there are `n` CDRs.
    pub(crate) fn cdrs(&self, n: usize) -> Vec<Value> {
        let file = self.dir.path().join("cdr.jsonl");
        eventually("CDRs", || {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let cdrs: Vec<Value> =
                text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            (cdrs.len() >= n).then_some(cdrs)
        })
    }

    /// Changes the configuration file.
    pub(crate) fn edit(&self, f: impl Fn(String) -> String) {
        let file = self.dir.path().join("sbc.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, f(text)).unwrap();
    }

    /// The path of something in its directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said on standard error until its end.
    pub(crate) fn errors(&mut self) -> String {
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        errors
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits for the end; the exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let child = &mut self.child;
        eventually("the end", || child.try_wait().unwrap()).code()
    }

    /// SIGTERM, and a clean end.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.wait(), Some(0));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running `sbcctl calls trace`.
pub(crate) struct Trace(Child);

impl Trace {
    /// Every event until the call ended.
    pub(crate) fn finish(mut self) -> Vec<Value> {
        let out = BufReader::new(self.0.stdout.take().unwrap());
        let events =
            out.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        assert!(self.0.wait().unwrap().success());
        events
    }
}

/// One endpoint.
pub(crate) struct Phone {
    socket: UdpSocket,
    /// What came already: on a slow machine the SBC says some things twice.
    seen: RefCell<HashSet<String>>,
    pub address: SocketAddr,
}

/// The value of the first header of that name.
fn header<'a>(message: &'a str, name: &str) -> &'a str {
    let prefix = format!("{name}: ");
    message.lines().find_map(|l| l.strip_prefix(prefix.as_str())).unwrap_or_default()
}

impl Phone {
    pub(crate) fn at(address: SocketAddr) -> Phone {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Phone { socket, seen: RefCell::default(), address }
    }

    pub(crate) fn send(&self, to: SocketAddr, message: &str) {
        self.socket.send_to(message.as_bytes(), to).unwrap();
    }

    /// The next message that begins so and that is new; others (100, retransmissions) are skipped.
    pub(crate) fn receive(&self, start: &str) -> String {
        let mut buffer = [0; 65_536];
        let until = Instant::now() + PATIENCE;
        let mut others = Vec::new();
        while Instant::now() < until {
            let (count, _) = self.socket.recv_from(&mut buffer).unwrap();
            let message = String::from_utf8(buffer[..count].to_vec()).unwrap();
            let new = self.seen.borrow_mut().insert(message.clone());
            if new && message.starts_with(start) {
                return message;
            }
            others.push(message);
        }
        panic!("no {start}, only {others:#?}");
    }

    /// A new message that begins so, if one is there; others are skipped.
    pub(crate) fn poll(&self, start: &str) -> Option<String> {
        let mut buffer = [0; 65_536];
        self.socket.set_nonblocking(true).unwrap();
        let mut found = None;
        while let (None, Ok((count, _))) = (&found, self.socket.recv_from(&mut buffer)) {
            let message = String::from_utf8(buffer[..count].to_vec()).unwrap();
            let new = self.seen.borrow_mut().insert(message.clone());
            found = (new && message.starts_with(start)).then_some(message);
        }
        self.socket.set_nonblocking(false).unwrap();
        found
    }

    fn sdp(&self) -> String {
        format!(
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n\
             m=audio {} RTP/AVP 8\r\n",
            self.address.port() & !1
        )
    }

    pub(crate) fn invite(&self, to: SocketAddr, call: &str) -> String {
        let (own, sdp) = (self.address, self.sdp());
        format!(
            "INVITE sip:4912345@{to} SIP/2.0\r\nVia: SIP/2.0/UDP {own};branch=z9hG4bKi{call}\r\n\
             Max-Forwards: 70\r\nFrom: <sip:alice@{own}>;tag=a{call}\r\nTo: <sip:4912345@{to}>\r\n\
             Call-ID: {call}@{own}\r\nCSeq: 1 INVITE\r\nContact: <sip:alice@{own}>\r\n\
             Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{sdp}",
            sdp.len()
        )
    }

    /// A request of the caller within the dialog.
    pub(crate) fn in_dialog(&self, method: &str, invite: &str, answer: &str, cseq: u32) -> String {
        let own = self.address;
        let contact = header(answer, "Contact");
        let uri = contact.trim_start_matches('<').split('>').next().unwrap();
        format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {own};branch=z9hG4bK{method}{cseq}\r\n\
             Max-Forwards: 70\r\nFrom: {}\r\nTo: {}\r\nCall-ID: {}\r\nCSeq: {cseq} {method}\r\n\
             Content-Length: 0\r\n\r\n",
            header(invite, "From"),
            header(answer, "To"),
            header(invite, "Call-ID")
        )
    }

    /// The ACK of a failure, hop by hop.
    pub(crate) fn ack(&self, invite: &str) -> String {
        let own = self.address;
        let uri = invite.split(' ').nth(1).unwrap();
        format!(
            "ACK {uri} SIP/2.0\r\nVia: {}\r\nMax-Forwards: 70\r\nFrom: {}\r\nTo: {};tag=x\r\n\
             Call-ID: {}\r\nCSeq: 1 ACK\r\nContact: <sip:alice@{own}>\r\nContent-Length: 0\r\n\r\n",
            header(invite, "Via"),
            header(invite, "From"),
            header(invite, "To"),
            header(invite, "Call-ID")
        )
    }

    /// A request of the callee within the dialog that `invite` made.
    pub(crate) fn callee_request(&self, method: &str, invite: &str, cseq: u32) -> String {
        let own = self.address;
        let contact = header(invite, "Contact");
        let uri = contact.trim_start_matches('<').split('>').next().unwrap();
        format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {own};branch=z9hG4bKc{method}{cseq}\r\n\
             Max-Forwards: 70\r\nFrom: {};tag=b\r\nTo: {}\r\nCall-ID: {}\r\nCSeq: {cseq} {method}\r\n\
             Content-Length: 0\r\n\r\n",
            header(invite, "To"),
            header(invite, "From"),
            header(invite, "Call-ID")
        )
    }

    /// Answers a request of the SBC; with SDP for the answer to an INVITE.
    pub(crate) fn answer(&self, request: &str, status: u16, reason: &str, sdp: bool) {
        let via = header(request, "Via");
        let to = header(request, "To");
        let to = if to.contains("tag=") { to.to_owned() } else { format!("{to};tag=b") };
        let body = if sdp { self.sdp() } else { String::new() };
        let kind = if sdp { "Content-Type: application/sdp\r\n" } else { "" };
        let message = format!(
            "SIP/2.0 {status} {reason}\r\nVia: {via}\r\nFrom: {}\r\nTo: {to}\r\nCall-ID: {}\r\n\
             CSeq: {}\r\nContact: <sip:bob@{}>\r\n{kind}Content-Length: {}\r\n\r\n{body}",
            header(request, "From"),
            header(request, "Call-ID"),
            header(request, "CSeq"),
            self.address,
            body.len()
        );
        let sent_by = via.split([' ', ';']).nth(1).unwrap();
        self.send(sent_by.parse().unwrap(), &message);
    }

    /// A whole call set-up to `callee`.
    pub(crate) fn call(&self, callee: &Phone, sbc: SocketAddr) {
        let invite = self.invite(sbc, "9");
        self.send(sbc, &invite);
        let incoming = callee.receive("INVITE ");
        callee.answer(&incoming, 200, "OK", true);
        let answered = self.receive("SIP/2.0 200");
        self.send(sbc, &self.in_dialog("ACK", &invite, &answered, 1));
        callee.receive("ACK ");
    }
}

/// The whole answer to a GET.
pub(crate) fn http_get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
