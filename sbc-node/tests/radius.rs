//! Users of RADIUS: judged by a real FreeRADIUS, by the second server when the first is silent, refused
//! for a bounded time while none answers; forged answers count for nothing.

mod process;

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use process::register::{add_registrar, registering, tell};
use process::{Node, eventually};
use tempfile::TempDir;

const SECRET: &str = "between us";

/// Debian's FreeRADIUS with the digest module alone and a configuration of its own.
struct Radius {
    dir: TempDir,
    address: SocketAddr,
    child: Option<Child>,
}

impl Radius {
    fn start() -> Radius {
        let dir = tempfile::tempdir().unwrap();
        // Bound for a moment to find a port that is free.
        let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let at = dir.path().display();
        let config = format!(
            "prefix = /usr\nlibdir = /usr/lib/freeradius\nraddbdir = {at}\nlogdir = {at}\n\
             run_dir = {at}\npidfile = {at}/pid\nsecurity {{ allow_core_dumps = no }}\n\
             client here {{\n ipaddr = 127.0.0.1\n secret = \"{SECRET}\"\n \
             require_message_authenticator = yes\n}}\n\
             modules {{\n digest {{ }}\n files {{\n filename = {at}/users\n }}\n}}\n\
             server default {{\n listen {{\n type = auth\n ipaddr = 127.0.0.1\n port = {}\n }}\n\
             authorize {{\n digest\n files\n }}\n authenticate {{\n digest\n }}\n\
             post-auth {{\n update reply {{\n Message-Authenticator := 0x00\n }}\n \
             Post-Auth-Type REJECT {{\n update reply {{\n Message-Authenticator := 0x00\n }}\n }}\n }}\n}}\n",
            address.port()
        );
        std::fs::write(dir.path().join("radiusd.conf"), config).unwrap();
        let dictionary = "$INCLUDE /usr/share/freeradius/dictionary\n";
        std::fs::write(dir.path().join("dictionary"), dictionary).unwrap();
        let users: String = (0..8)
            .map(|n| format!("radius{n} Cleartext-Password := \"secret\"\n\n"))
            .chain(["stored Digest-HA1 := \"@HA1@\"\n\n".replace("@HA1@", &stored())])
            .collect();
        std::fs::write(dir.path().join("users"), users).unwrap();
        let mut new = Radius { dir, address, child: None };
        new.run();
        new
    }

    fn run(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let err = log.try_clone().unwrap();
        let at = self.dir.path().to_str().unwrap();
        let child = Command::new("/usr/sbin/freeradius")
            .args(["-fxl", "stdout", "-d", at, "-D", at])
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(err)
            .spawn()
            .expect("package freeradius");
        self.child = Some(child);
        eventually(&format!("FreeRADIUS: {}", self.log()), || {
            self.log().contains("Ready to process requests").then_some(())
        });
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().map(Child::id).unwrap();
        kill(Pid::from_raw(i32::try_from(id).unwrap()), signal).unwrap();
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Radius {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- FreeRADIUS:\n{}", self.log());
        }
    }
}

fn stored() -> String {
    sbc_core::digest::Algorithm::Md5.ha1("stored", "example.com", "secret")
}

fn lines(servers: &[SocketAddr], secret: &str) -> String {
    let server = |s: &SocketAddr| format!("{{ address = \"{s}\", secret = \"{secret}\" }}");
    let all: Vec<String> = servers.iter().map(server).collect();
    format!(
        "[registrar.radius]\nservers = [{}]\ndialect = \"sterman\"\ntimeout = \"300ms\"\n\
         attempts = 2\nwait = \"2s\"\n",
        all.join(", ")
    )
}

/// A node whose users are those of these servers.
fn node(servers: &[SocketAddr], secret: &str) -> Node {
    let node = Node::start();
    add_registrar(&node, &lines(servers, secret));
    let (code, out) = tell(&node, "config reload", "");
    assert!(code == 1 && out.contains("registrar radius") && out.contains("restart"), "{out}");
    node.restarted()
}

fn count(node: &Node, metric: &str, label: &str) -> f64 {
    let stats = node.json(&format!("stats {metric}"));
    let all = stats["stats"].as_array().unwrap();
    let found = all.iter().find(|s| label.is_empty() || s.to_string().contains(label));
    found.unwrap_or_else(|| panic!("{stats}"))["value"].as_f64().unwrap()
}

#[test]
fn users_of_freeradius_and_of_a_second_server_when_the_first_is_silent() {
    let mut radius = Radius::start();
    // Bound and never read: silent as a server that hangs.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let node = node(&[silent.local_addr().unwrap(), radius.address], SECRET);
    assert!(!node.ctl("config show").1.contains(SECRET), "a secret is not shown");
    assert_eq!(tell(&node, "users add fixed --algorithms md5", "secret\n").0, 0);
    let mut phone = registering(&node);
    assert_eq!(phone.register("radius0", "secret", 600), "200");
    // Asked twice, the same packet each time, before the next one was asked; not asked first any more.
    let (mut first, mut second) = ([0; 4096], [0; 4096]);
    let lengths = (silent.recv(&mut first).unwrap(), silent.recv(&mut second).unwrap());
    assert_eq!(first[..lengths.0], second[..lengths.1]);
    silent.set_nonblocking(true).unwrap();
    assert_eq!(phone.register("radius1", "secret", 600), "200");
    assert_eq!(phone.register("stored", "secret", 600), "200", "by its HA1");
    assert_eq!(phone.register("radius1", "wrong", 600), "401");
    assert_eq!(phone.register("nobody", "secret", 600), "401");
    assert_eq!(phone.register("fixed", "secret", 600), "200");
    assert!(silent.recv(&mut first).is_err(), "a silent server comes last for a while");
    assert_eq!(count(&node, "sbc_registrar_radius_silent", ""), 1.0);

    // A user for whom FreeRADIUS was right is asked for again: nothing is remembered.
    radius.stop();
    let asked = Instant::now();
    assert_eq!(phone.register("radius0", "secret", 600), "503");
    assert!(asked.elapsed().as_secs() < 4, "{:?}", asked.elapsed());
    assert_eq!(phone.register("fixed", "secret", 600), "200");
    radius.run();
    eventually("FreeRADIUS again", || {
        (phone.register("radius2", "secret", 600) == "200").then_some(())
    });
    // One that hangs instead of being gone.
    radius.signal(Signal::SIGSTOP);
    assert_eq!(phone.register("radius3", "secret", 600), "503");
    assert_eq!(phone.register("fixed", "secret", 600), "200");
    radius.signal(Signal::SIGCONT);
    eventually("FreeRADIUS goes on", || {
        (phone.register("radius4", "secret", 600) == "200").then_some(())
    });
    assert!(count(&node, "sbc_registrar_lookups", "wrong") >= 2.0);
    assert!(count(&node, "sbc_registrar_lookups", "unavailable") >= 2.0);
    node.stop();
}

/// Whoever lacks the secret may send what he likes.
#[test]
fn a_forged_accept_lets_nobody_in() {
    let forger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = forger.local_addr().unwrap();
    let node = node(&[address], SECRET);
    let answering = std::thread::spawn(move || {
        let mut packet = [0; 4096];
        for _ in 0..2 {
            let (length, from) = forger.recv_from(&mut packet).unwrap();
            assert_eq!((packet[0], packet[20], packet[21]), (1, 80, 18), "its proof comes first");
            let accept = [&[2, packet[1], 0, 20][..], &[0; 16]].concat();
            let reflected = &packet[..length];
            for datagram in [&accept[..], reflected, b"", b"junk", &[2; 4096]] {
                forger.send_to(datagram, from).unwrap();
            }
        }
    });
    let mut phone = registering(&node);
    assert_eq!(phone.register("anybody", "secret", 600), "503");
    answering.join().unwrap();
    assert!(count(&node, "sbc_registrar_radius_dropped", "") >= 4.0);
    node.stop();
}

#[test]
fn what_makes_no_sense_is_told_with_its_line() {
    let node = Node::start();
    add_registrar(&node, &lines(&["127.0.0.1:1812".parse().unwrap()], ""));
    let (code, out) = tell(&node, "config reload", "");
    assert!(code != 0 && out.contains("the secret is empty: anybody could answer"), "{out}");
    assert!(Path::new("/usr/sbin/freeradius").exists(), "package freeradius");
    node.stop();
}
