//! Network namespaces without names: made by a thread, kept by a descriptor, gone with the test.
//!
//! Needs root, or `unshare -Urn`; without it the tests say that they were skipped.

use std::fs::File;
use std::io::{self, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

/// One network namespace.
pub(crate) struct Ns {
    fd: File,
}

impl Ns {
    /// A new, empty namespace with its loopback up.
    pub(crate) fn new() -> io::Result<Ns> {
        let made = std::thread::spawn(|| -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let ns = Ns { fd: made.join().expect("thread")? };
        ns.ip("link set lo up");
        Ok(ns)
    }

    /// Runs `body` on a thread inside the namespace.
    pub(crate) fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = || {
                setns(&self.fd, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                body()
            };
            match scope.spawn(inside).join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Path of the namespace, as iproute2 takes it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// Runs lines of `ip` commands in the namespace.
    pub(crate) fn ip(&self, script: &str) {
        self.run(|| {
            let mut child = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .spawn()
                .expect("iproute2 is installed");
            child
                .stdin
                .take()
                .expect("piped")
                .write_all(script.as_bytes())
                .expect("ip reads its commands");
            assert!(child.wait().expect("ip ends").success(), "ip failed at:\n{script}");
        });
    }

    /// Runs a command in the namespace and gives its output.
    pub(crate) fn cmd(&self, program: &str, args: &[&str]) -> String {
        self.run(|| {
            let out = Command::new(program).args(args).output().expect("the command starts");
            assert!(
                out.status.success(),
                "{program} {args:?}: {}",
                String::from_utf8_lossy(&out.stderr)
            );
            String::from_utf8_lossy(&out.stdout).into_owned()
        })
    }

    /// Writes a sysctl below `net/`.
    pub(crate) fn sysctl(&self, path: &str, value: &str) {
        self.run(|| std::fs::write(format!("/proc/sys/net/{path}"), value).expect("sysctl"));
    }

    /// A bound socket that waits at most two seconds.
    pub(crate) fn udp(&self, addr: &str) -> UdpSocket {
        let addr: SocketAddr = addr.parse().expect("address");
        let socket = self.run(|| UdpSocket::bind(addr)).expect("bind");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
        socket
    }
}

/// Whether namespaces can be made; says so once per test when not.
pub(crate) fn available(test: &str) -> bool {
    let can = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join().expect("thread");
    if let Err(errno) = can {
        assert!(std::env::var_os("CI").is_none(), "network namespaces are needed in CI: {errno}");
        println!("SKIPPED {test}: no network namespaces here ({errno}); try `unshare -Urn`");
    }
    can.is_ok()
}

/// Two peers with the SBC between them:
/// `a 10.1.0.2 — 10.1.0.1 sbc 10.2.0.1 — 10.2.0.2 b`, and fd01::/64, fd02::/64 likewise.
pub(crate) struct Net {
    pub(crate) a: Ns,
    pub(crate) sbc: Ns,
    pub(crate) b: Ns,
}

/// Link addresses of the SBC's two devices.
pub(crate) const MAC_SA: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub(crate) const MAC_A: [u8; 6] = [2, 0, 0, 0, 1, 2];

impl Net {
    pub(crate) fn new() -> Net {
        let (a, sbc, b) = (Ns::new(), Ns::new(), Ns::new());
        let net = Net { a: a.expect("ns"), sbc: sbc.expect("ns"), b: b.expect("ns") };
        net.link("sa", 1, &net.a);
        net.link("sb", 2, &net.b);
        for sysctl in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            net.sbc.sysctl(sysctl, "0");
        }
        // Checksums are finished in software at the SBC, so that what arrives can be checked.
        for device in ["sa", "sb"] {
            net.sbc.cmd("ethtool", &["-K", device, "tx", "off"]);
        }
        net
    }

    /// A veth pair: `device` of the SBC with 10.n.0.1, eth0 of the peer with 10.n.0.2.
    pub(crate) fn link(&self, device: &str, n: u8, peer: &Ns) {
        self.sbc.ip(&format!(
            "link add {device} address 02:00:00:00:0{n}:01 type veth \
             peer name eth0 address 02:00:00:00:0{n}:02 netns {}\n\
             addr add 10.{n}.0.1/24 dev {device}\n\
             addr add fd0{n}::1/64 dev {device} nodad\n\
             link set {device} up\n",
            peer.path()
        ));
        peer.ip(&format!(
            "addr add 10.{n}.0.2/24 dev eth0\n\
             addr add fd0{n}::2/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via 10.{n}.0.1\n\
             route add default via fd0{n}::1\n"
        ));
    }
}
