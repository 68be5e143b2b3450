//! What legitimate calls feel of each kind of attack: their answer time beside it, against their quiet
//! one.
//!
//! Method: the system under test runs in a network namespace, pinned to core 0; SIPp's caller and
//! callee reach it over its loopback (`CPS` calls a second, default 50) on core 1, where the attack
//! comes from as well, over a veth pair from a second namespace. The calls run alone for
//! `BENCH_SECONDS`, then for as long beside each attack, each against a node of its own, so that no ban
//! of the one spares the other. Printed per attack: the 99th percentile of INVITE to 200 alone and
//! beside it, their ratio (wanted: not above 2), calls that failed (wanted: none), what the attack sent.
//! `ATTACKS` in the environment chooses.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sbc_tests::load::{delays, end, env, find, number, outcome, pinned};
use sbc_tests::net::{Net, inside, ip};
use sbc_tests::{binary, root, wait_for};

const TO: &str = "10.7.0.1:5080";
const ALL: &str = "invite,junk,spoofed,connections,slow-heads,dictionary,scan";

struct Bench {
    net: Net,
    dir: tempfile::TempDir,
    seconds: u64,
    cps: u64,
}

fn main() {
    let bench = Bench {
        net: Net::new(&["sut", "atk"]),
        dir: tempfile::tempdir().expect("temporary directory"),
        seconds: number("BENCH_SECONDS", "10"),
        cps: number("CPS", "50"),
    };
    bench.net.link("sut", "10.7.0.1/24", "atk", "10.7.0.2/24");
    let (sut, atk) = (bench.net.ns("sut"), bench.net.ns("atk"));
    ip(&format!("-n {atk} route add local 198.18.0.0/15 dev lo"));
    ip(&format!("-n {sut} route add 198.18.0.0/15 via 10.7.0.2"));
    println!(
        "| attack | sent/s | p99 quiet, ms | p99 beside it, ms | ratio | calls | failed |\n\
         |---|---|---|---|---|---|---|"
    );
    for attack in env("ATTACKS", ALL).split(',') {
        bench.run(attack);
    }
}

impl Bench {
    fn run(&self, attack: &str) {
        let mut node = self.start();
        wait_for("the node to listen", Duration::from_secs(30), || {
            assert!(node.try_wait().expect("wait").is_none(), "the node ended at start");
            self.in_sut("cat", &["/proc/net/udp"]).contains(":13D8 ").then_some(())
        });
        let (_, _, quiet) = self.calls();
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let begun = Instant::now();
        let attacker = {
            let (stop, sent, attack) = (Arc::clone(&stop), Arc::clone(&sent), attack.to_owned());
            let ns = self.net.ns("atk");
            std::thread::spawn(move || inside(&ns, move || strike(&attack, &stop, &sent)))
        };
        let (done, failed, beside) = self.calls();
        stop.store(true, Ordering::Relaxed);
        attacker.join().expect("the attacker");
        let rate = sent.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
        end(&mut node);
        println!(
            "| {attack} | {rate:.0} | {quiet:.2} | {beside:.2} | {:.2} | {done} | {failed} |",
            beside / quiet
        );
    }

    fn start(&self) -> Child {
        let (ns, dir) = (self.net.ns("sut"), self.dir.path());
        let config = std::fs::read_to_string(root().join("tests/peers/sbc.toml")).expect("config");
        let config = config.replace("@DIR@", &dir.to_string_lossy())
            + "\n[[interface]]\nname = \"border\"\n\
               listen = [\"udp://10.7.0.1:5080\", \"tcp://10.7.0.1:5080\"]\n\
               media = { ports = \"10000-10099\" }\n\n[[trunk]]\nname = \"phones\"\n\
               interface = \"border\"\n\n[registrar]\ntrunk = \"phones\"\n\
               domains = [\"example.net\"]\n\n[[user]]\nname = \"alice\"\n\
               ha1-md5 = \"0123456789abcdef0123456789abcdef\"\n\n[[route]]\n\
               source = \"phones\"\ntarget = \"callee\"\n";
        let file = dir.join("sbc.toml");
        std::fs::write(&file, config).expect("write");
        let node = binary("sbc-node");
        let (node, file) = (node.to_string_lossy(), file.to_string_lossy());
        pinned(0, "ip", &["netns", "exec", &ns, &node, "run", "--config", &file], dir)
    }

    fn in_sut(&self, program: &str, args: &[&str]) -> String {
        let ns = self.net.ns("sut");
        let out = Command::new("ip").args(["netns", "exec", &ns, program]).args(args).output();
        String::from_utf8_lossy(&out.expect("ip").stdout).into_owned()
    }

    /// Calls for the time of a run: how many went well, how many failed, the 99th percentile of
    /// their answer time in milliseconds.
    fn calls(&self) -> (u64, u64, f64) {
        let (ns, dir) = (self.net.ns("sut"), self.dir.path());
        let scenarios = root().join("tests/scenarios");
        let sipp = |name: &str, port: &str, more: &[&str]| {
            let file = scenarios.join(name);
            let file = file.to_string_lossy();
            let words = ["netns", "exec", &ns, "sipp", "-sf", &file, "-i", "127.0.0.1", "-p", port];
            let fixed = ["-nostdin", "-skip_rlimit", "-buff_size", "4194304"];
            pinned(1, "ip", &[&words[..], &fixed[..], more].concat(), dir)
        };
        let mut uas = sipp("uas-answer.xml", "7070", &[]);
        wait_for("the callee to listen", Duration::from_secs(10), || {
            self.in_sut("cat", &["/proc/net/udp"]).contains(":1B9E ").then_some(())
        });
        let (rate, calls) = (self.cps.to_string(), (self.cps * self.seconds).to_string());
        let limit = format!("{}s", self.seconds + 40);
        let stat = ["-trace_stat", "-stf", "stat.csv", "-fd", "1", "-trace_rtt", "-rtt_freq", "1"];
        let much = ["-s", "1000", "-r", &rate, "-m", &calls, "-d", "1000"];
        let rest = ["-default_behaviors", "all,-abortunexp", "-timeout_error", "-timeout", &limit];
        let words = [&much[..], &stat, &rest, &["127.0.0.1:5080"]].concat();
        let mut uac = sipp("uac-load.xml", "6060", &words);
        let rtt = format!("uac-load_{}_rtt.csv", uac.id());
        uac.wait().expect("sipp");
        end(&mut uas);
        let (done, failed) = outcome(Path::new(&dir.join("stat.csv")));
        let (_, p99) = delays(&find(dir, &rtt).unwrap_or_else(|| dir.join(rtt)));
        drop(std::fs::remove_file(dir.join("stat.csv")));
        (done, failed, p99)
    }
}

fn request(method: &str, from: SocketAddr, n: u64, user: &str, agent: &str) -> Vec<u8> {
    format!(
        "{method} sip:{user}@example.net SIP/2.0\r\n\
         Via: SIP/2.0/UDP {from};branch=z9hG4bK{method}{n};rport\r\n\
         From: <sip:{user}@example.net>;tag={n}\r\nTo: <sip:{user}@example.net>\r\n\
         Call-ID: {method}-{n}-{from}\r\nCSeq: 1 {method}\r\nMax-Forwards: 70\r\n\
         Contact: <sip:{user}@{from}>\r\nUser-Agent: {agent}\r\nContent-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

/// Attacks until it is told to stop. What is refused or lost on the way counts as sent.
fn strike(attack: &str, stop: &AtomicBool, sent: &AtomicU64) {
    let mut core = nix::sched::CpuSet::new();
    core.set(1).expect("core 1");
    // On one core there is nothing to pin to.
    let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &core);
    let from: SocketAddr = "10.7.0.2:5060".parse().expect("address");
    let socket = UdpSocket::bind(from).expect("bind");
    let (mut held, begun) = (Vec::new(), Instant::now());
    for n in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // Ten thousand a second leave the callers on this core their share of it; what opens
        // connections is slower by itself.
        let due = Duration::from_micros(n * 100);
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
        sent.store(n, Ordering::Relaxed);
        let sent = match attack {
            "invite" => socket.send_to(&request("INVITE", from, n, "1000", "x"), TO),
            "junk" => socket.send_to(&[0xfe; 200], TO),
            "dictionary" => {
                socket.send_to(&request("REGISTER", from, n, &format!("u{n}"), "x"), TO)
            }
            "scan" => socket.send_to(&request("OPTIONS", from, n, "100", "friendly-scanner"), TO),
            "spoofed" => {
                let host = u32::try_from(n * 13 % 131_072).expect("small");
                let from = Ipv4Addr::from_bits(0xc612_0000 + host);
                let other = UdpSocket::bind((from, 5060)).expect("bind");
                other.send_to(&request("INVITE", (from, 5060).into(), n, "1000", "x"), TO)
            }
            "connections" | "slow-heads" => {
                let to = TO.parse().expect("address");
                let stream = TcpStream::connect_timeout(&to, Duration::from_millis(100));
                if let (Ok(mut stream), "slow-heads") = (stream, attack) {
                    // One that is reset meanwhile is done with.
                    let _ = stream.write_all(b"INVITE sip:1000@example.net SIP/2.0\r\nVia: ");
                    held.push(stream);
                    // As many as a source may have, and then some, again and again.
                    if held.len() > 200 {
                        held.clear();
                    }
                }
                Ok(0)
            }
            other => panic!("unknown attack {other}"),
        };
        // The wire is not what is measured.
        drop(sent);
    }
}
