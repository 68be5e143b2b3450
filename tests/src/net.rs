//! Network namespaces and the links between them.
//!
//! The usual picture: the SBC in the middle, an outside network on one leg, an inside network on
//! the other, no route between the two.
//!
//! ```text
//! out ──(net 0)── sbc ──(net 1)── in
//! ```

use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::wait_for;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs `ip` with the words of `args`; panics with its message when it fails.
pub fn ip(args: &str) {
    run("ip", args);
}

/// Runs a program with the words of `args`; panics with its message when it fails.
pub fn run(program: &str, args: &str) {
    let out = Command::new(program)
        .args(args.split_whitespace())
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        out.status.success(),
        "{program} {args}: {}",
        String::from_utf8_lossy(&out.stderr).trim()
    );
}

/// Waits until something listens on `port` in a namespace, on UDP or TCP, IPv4 or IPv6.
pub fn wait_listening(ns: &str, port: u16) {
    let port = port.to_string();
    wait_for(&format!("port {port} in {ns}"), Duration::from_secs(20), || {
        let out = Command::new("ip")
            .args(["netns", "exec", ns, "ss", "-Hlntu", "sport", "=", &port])
            .output()
            .expect("ss");
        (!out.stdout.is_empty()).then_some(())
    });
}

/// Loads a ruleset in a namespace.
pub fn nft(ns: &str, rules: &str) {
    use std::io::Write as _;
    let mut child = Command::new("ip")
        .args(["netns", "exec", ns, "nft", "-f", "-"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("nft");
    child.stdin.take().expect("stdin").write_all(rules.as_bytes()).expect("write rules");
    assert!(child.wait().expect("nft").success(), "nft refused: {rules}");
}

/// Sends one datagram from `from` inside a namespace and returns the first answer, or nothing after
/// half a second without one.
pub fn exchange(ns: &str, from: &str, to: &str, message: &[u8]) -> Vec<u8> {
    let socket = socket_in(ns, from);
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("timeout");
    socket.send_to(message, to).expect("send");
    let mut answer = vec![0; 65536];
    match socket.recv_from(&mut answer) {
        Ok((length, _)) => {
            answer.truncate(length);
            answer
        }
        Err(_) => Vec::new(),
    }
}

/// The same text in IPv6: `10.M.0.H` becomes `fd00:M::H`, in brackets where a port or a URI needs them,
/// prefix lengths 24 and 32 become 64 and 128.
pub fn in_ipv6(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("10.") {
        let length = rest[at..].find(|c: char| c != '.' && !c.is_ascii_digit());
        let (address, after) = rest[at..].split_at(length.unwrap_or(rest.len() - at));
        let parts: Vec<&str> = address.split('.').collect();
        out.push_str(&rest[..at]);
        rest = after;
        let ["10", middle, "0", last] = parts[..] else {
            out.push_str(address);
            continue;
        };
        let has_port = after.strip_prefix(':').is_some_and(|p| p.starts_with(char::is_numeric));
        let bare = format!("fd00:{middle}::{last}");
        out.push_str(&match has_port || out.ends_with('@') {
            true => format!("[{bare}]"),
            false => bare,
        });
        for (four, six) in [("/24", "/64"), ("/32", "/128")] {
            if let Some(after) = rest.strip_prefix(four) {
                out.push_str(six);
                rest = after;
            }
        }
    }
    out + rest
}

/// A UDP socket bound inside a namespace; it stays there whoever uses it.
pub fn socket_in(ns: &str, address: &str) -> UdpSocket {
    let path = format!("/run/netns/{ns}");
    let address = address.to_owned();
    let thread = std::thread::spawn(move || {
        let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter namespace");
        // A port that was closed was once seen taken for a moment longer; probably a program that
        // another thread started held our descriptors until its exec.
        crate::wait_for(&format!("{address} to be free"), Duration::from_secs(5), || {
            match UdpSocket::bind(&address) {
                Ok(socket) => Some(socket),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => None,
                Err(error) => panic!("bind {address}: {error}"),
            }
        })
    });
    thread.join().expect("socket in namespace")
}

/// A TCP connection made inside a namespace; it stays there whoever uses it.
pub fn stream_in(ns: &str, to: &str) -> TcpStream {
    let path = format!("/run/netns/{ns}");
    let to = to.to_owned();
    let thread = std::thread::spawn(move || {
        let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter namespace");
        TcpStream::connect(&to).unwrap_or_else(|e| panic!("connect {to}: {e}"))
    });
    thread.join().expect("connection in namespace")
}

/// Runs something on a thread of its own inside a namespace; sockets that it opens stay there.
pub fn inside<T: Send + 'static>(ns: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let path = format!("/run/netns/{ns}");
    let thread = std::thread::spawn(move || {
        let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter namespace");
        f()
    });
    thread.join().expect("work in namespace")
}

/// A set of namespaces of one test; removed when dropped.
pub struct Net {
    prefix: String,
    spaces: Vec<String>,
}

impl Net {
    /// Makes one namespace per name, loopback up.
    pub fn new(names: &[&str]) -> Net {
        let prefix = format!("sbct{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut net = Net { prefix, spaces: Vec::new() };
        for name in names {
            let space = net.ns(name);
            ip(&format!("netns add {space}"));
            net.spaces.push(space.clone());
            ip(&format!("-n {space} link set lo up"));
        }
        net
    }

    /// The real name of namespace `name`.
    pub fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// A veth pair between two namespaces; each end is named after the other side. Addresses are
    /// given with prefix length, separated by spaces; IPv6 without duplicate address detection.
    pub fn link(&self, a: &str, a_addrs: &str, b: &str, b_addrs: &str) {
        let (na, nb) = (self.ns(a), self.ns(b));
        ip(&format!("link add to-{b} netns {na} type veth peer name to-{a} netns {nb}"));
        self.address(a, &format!("to-{b}"), a_addrs);
        self.address(b, &format!("to-{a}"), b_addrs);
    }

    /// A bridge in namespace `hub`, with one port for each of `(name, addresses)`; each end is
    /// called `to-<hub>`.
    pub fn bridge(&self, hub: &str, members: &[(&str, &str)]) {
        let space = self.ns(hub);
        ip(&format!("-n {space} link add br0 type bridge"));
        ip(&format!("-n {space} link set br0 up"));
        for (name, addrs) in members {
            let member = self.ns(name);
            ip(&format!(
                "link add to-{hub} netns {member} type veth peer name to-{name} netns {space}"
            ));
            ip(&format!("-n {space} link set to-{name} master br0 up"));
            self.address(name, &format!("to-{hub}"), addrs);
        }
    }

    /// Adds addresses to a device and brings it up.
    pub fn address(&self, name: &str, device: &str, addrs: &str) {
        let space = self.ns(name);
        for addr in addrs.split_whitespace() {
            let nodad = if addr.contains(':') { "nodad" } else { "" };
            ip(&format!("-n {space} addr add {addr} dev {device} {nodad}"));
        }
        ip(&format!("-n {space} link set {device} up"));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for space in &self.spaces {
            // Best effort: the namespace may be gone with its mount already.
            drop(Command::new("ip").args(["netns", "del", space]).output());
        }
    }
}
