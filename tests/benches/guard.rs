//! What a flood from one source costs, and what it leaves of the legitimate calls.
//!
//! Method: the system under test runs in a network namespace, pinned to core 0; SIPp's caller and
//! callee reach it over its loopback (`CPS` calls a second, default 50), the flood over a veth pair
//! from a second namespace, sent by this program on core 1 as fast as `PPS` says (default 200000)
//! or as it can; what it reached is in the table. First the calls run alone for `BENCH_SECONDS`,
//! then beside the flood for as long. CPU is user + system time of the process tree; the flood's
//! is the difference of the two runs. `reached` is the growth of the namespace's `Udp InDatagrams`
//! less that of the quiet run: what the process took from its sockets. What a full socket or a
//! banned source's rule dropped is not in it, and `kernel` counts the latter. A packet that the
//! kernel drops at ingress costs the *sender's* core here, because veth delivers in the sender's
//! system call: `sender CPU` shows it, and `flood/s per CPU s` of the kernel's row is by that.
//!
//! Rows: a ban in the kernel; the same ban in userspace; pike alone, before parsing; pike alone,
//! after parsing (for the record); Debian's Kamailio with pike and a hash table of bans. All pikes:
//! 500 in 2 s. `ROUNDS`, `SYSTEMS` in the environment change the run.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sbc_tests::load::{cpu, end, env, median, number, outcome, pinned};
use sbc_tests::net::{Net, inside, ip};
use sbc_tests::{binary, root, wait_for};

/// What is measured of one system.
struct Row {
    sent_per_s: f64,
    reached_per_s: f64,
    kernel_per_s: f64,
    /// Share of a core that the flood costs the process.
    share: f64,
    /// Packets handled per second of CPU.
    per_cpu_s: f64,
    sender_share: f64,
    /// Calls that went well and failed, quiet and beside the flood.
    quiet: (u64, u64),
    flooded: (u64, u64),
}

struct Bench {
    net: Net,
    dir: tempfile::TempDir,
    seconds: u64,
    cps: u64,
    pps: u64,
}

fn main() {
    let bench = Bench {
        net: Net::new(&["sut", "atk"]),
        dir: tempfile::tempdir().expect("temporary directory"),
        seconds: number("BENCH_SECONDS", "10"),
        cps: number("CPS", "50"),
        pps: number("PPS", "200000"),
    };
    bench.net.link("sut", "10.7.0.1/24", "atk", "10.7.0.2/24");
    let all = "sbc-kernel,sbc-ban,sbc-pike,sbc-parsed,kamailio";
    let mut table: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for _ in 0..number("ROUNDS", "3") {
        for system in env("SYSTEMS", all).split(',') {
            match bench.run(system) {
                Some(row) => table.entry(system.to_owned()).or_default().push(row),
                None => println!("{system}: not installed, left out"),
            }
        }
    }
    println!(
        "| system | flood/s sent | reached/s | dropped in the kernel/s | CPU of the process, % of a core \
         | flood/s per CPU s | sender CPU % | calls quiet (failed) | calls flooded (failed) |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (system, rows) in &table {
        let middle = |f: fn(&Row) -> f64| median(rows.iter().map(f));
        let calls = |f: fn(&Row) -> (u64, u64)| {
            let sum = rows.iter().map(f).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
            format!("{} ({})", sum.0, sum.1)
        };
        println!(
            "| {system} | {:.0} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} | {} | {} |",
            middle(|r| r.sent_per_s),
            middle(|r| r.reached_per_s),
            middle(|r| r.kernel_per_s),
            middle(|r| r.share * 100.0),
            middle(|r| r.per_cpu_s),
            middle(|r| r.sender_share * 100.0),
            calls(|r| r.quiet),
            calls(|r| r.flooded),
        );
    }
}

impl Bench {
    fn run(&self, system: &str) -> Option<Row> {
        let mut sut = vec![self.start(system)?];
        wait_for("the system to listen", Duration::from_secs(30), || {
            assert!(sut[0].try_wait().expect("wait").is_none(), "{system} ended at start");
            self.bound(5080).then_some(())
        });
        let (cpu0, in0) = (cpu(&sut), self.datagrams());
        let quiet = self.calls();
        let (cpu1, in1) = (cpu(&sut), self.datagrams());
        let kernel = || if system.starts_with("sbc") { self.kernel_dropped() } else { 0.0 };
        let dropped = kernel();
        let flood = Flood::start(&self.net.ns("atk"), self.pps);
        let begun = Instant::now();
        let flooded = self.calls();
        let (sent, sender) = flood.stop();
        let seconds = begun.elapsed().as_secs_f64();
        let (cpu2, in2) = (cpu(&sut), self.datagrams());
        // Counters of the kernel are read twice a second.
        std::thread::sleep(Duration::from_millis(1_100));
        let kernel_per_s = (kernel() - dropped) / seconds;
        end(&mut sut[0]);
        let spent = ((cpu2 - cpu1) - (cpu1 - cpu0)).max(0.0);
        let reached_per_s = ((in2 - in1) - (in1 - in0)).max(0.0) / seconds;
        let share = spent / seconds;
        let sender_share = sender / seconds;
        let row = Row {
            sent_per_s: sent as f64 / seconds,
            reached_per_s,
            kernel_per_s,
            share,
            per_cpu_s: if kernel_per_s > reached_per_s {
                kernel_per_s / sender_share
            } else {
                reached_per_s / share.max(0.01)
            },
            sender_share,
            quiet,
            flooded,
        };
        eprintln!(
            "{system}: {:.0}/s sent, {reached_per_s:.0}/s reached, {:.2} % CPU, calls {:?}",
            row.sent_per_s,
            share * 100.0,
            flooded
        );
        Some(row)
    }

    fn start(&self, system: &str) -> Option<Child> {
        let (ns, dir) = (self.net.ns("sut"), self.dir.path());
        if system == "kamailio" {
            Command::new("kamailio").arg("-v").output().ok()?;
            let config = root().join("tests/peers/kamailio.cfg");
            let config = config.to_string_lossy();
            let words = ["netns", "exec", &ns, "kamailio", "-f", &config, "-DD", "-m", "512", "-M"];
            let more = ["16", "-x", "fm", "-X", "fm", "-A", "WITH_PIKE"];
            return Some(pinned(0, "ip", &[&words[..], &more[..]].concat(), dir));
        }
        let guard = match system {
            "sbc-kernel" => "",
            "sbc-ban" => "kernel = false",
            "sbc-pike" => "kernel = false\nban-for = \"off\"",
            "sbc-parsed" => "kernel = false\nban-for = \"off\"\nmode = \"requests\"",
            other => panic!("unknown system {other}"),
        };
        let config = std::fs::read_to_string(root().join("tests/peers/sbc.toml")).expect("config");
        let config = config.replace("@DIR@", &dir.to_string_lossy())
            + "\n[[interface]]\nname = \"border\"\nlisten = \"udp://10.7.0.1:5080\"\n\
               media = { ports = \"10000-10099\" }\n\n[guard]\n"
            + guard
            + "\n";
        let file = dir.join("sbc.toml");
        std::fs::write(&file, config).expect("write");
        let node = binary("sbc-node");
        let (node, file) = (node.to_string_lossy(), file.to_string_lossy());
        let words = ["netns", "exec", &ns, &node, "run", "--config", &file];
        Some(pinned(0, "ip", &words, dir))
    }

    fn in_sut(&self, program: &str, args: &[&str]) -> String {
        let ns = self.net.ns("sut");
        let out = Command::new("ip").args(["netns", "exec", &ns, program]).args(args).output();
        String::from_utf8_lossy(&out.expect("ip").stdout).into_owned()
    }

    fn bound(&self, port: u16) -> bool {
        let needle = format!(":{port:04X} ");
        self.in_sut("cat", &["/proc/net/udp"]).matches(&needle).count() > 1
    }

    /// `Udp InDatagrams` of the namespace.
    fn datagrams(&self) -> f64 {
        let text = self.in_sut("cat", &["/proc/net/snmp"]);
        let line = text.lines().filter(|l| l.starts_with("Udp:")).nth(1).unwrap_or("");
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0.0)
    }

    fn kernel_dropped(&self) -> f64 {
        let socket = self.dir.path().join("sbc.sock");
        let sbcctl = binary("sbcctl");
        let args = ["--socket", &socket.to_string_lossy(), "-o", "json", "bans", "list"];
        let text = self.in_sut(&sbcctl.to_string_lossy(), &args);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        value["kernel_dropped"].as_f64().unwrap_or(0.0)
    }

    /// Calls for the time of a run; how many went well and how many failed.
    fn calls(&self) -> (u64, u64) {
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
        let stat = dir.join("stat.csv");
        drop(std::fs::remove_file(&stat));
        let (rate, calls) = (self.cps.to_string(), (self.cps * self.seconds).to_string());
        let limit = format!("{}s", self.seconds + 40);
        let mut uac = sipp(
            "uac-load.xml",
            "6060",
            &[
                "-s",
                "1000",
                "-r",
                &rate,
                "-m",
                &calls,
                "-d",
                "1000",
                "-default_behaviors",
                "all,-abortunexp",
                "-trace_stat",
                "-stf",
                "stat.csv",
                "-fd",
                "1",
                "-timeout_error",
                "-timeout",
                &limit,
                "127.0.0.1:5080",
            ],
        );
        uac.wait().expect("sipp");
        end(&mut uas);
        outcome(Path::new(&stat))
    }
}

/// A flood that runs until it is stopped.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<f64>,
}

impl Flood {
    fn start(ns: &str, pps: u64) -> Flood {
        let socket = inside(ns, || {
            let socket = UdpSocket::bind("10.7.0.2:5060").expect("bind");
            socket.connect("10.7.0.1:5080").expect("connect");
            socket
        });
        ip(&format!("-n {ns} link show"));
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (halt, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let body = move || {
            let mut core = nix::sched::CpuSet::new();
            core.set(1).expect("core 1");
            // On one core there is nothing to pin to.
            let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &core);
            let message = b"OPTIONS sip:x@10.7.0.1 SIP/2.0\r\n\
                Via: SIP/2.0/UDP 10.7.0.2:5060;branch=z9hG4bKflood\r\nFrom: <sip:a@b>;tag=1\r\n\
                To: <sip:x@10.7.0.1>\r\nCall-ID: flood\r\nCSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\n\
                Content-Length: 0\r\n\r\n";
            let begun = Instant::now();
            let before = thread_cpu();
            let mut n = 0_u64;
            while !halt.load(Ordering::Relaxed) {
                let due = begun.elapsed().as_micros() * u128::from(pps) / 1_000_000;
                while u128::from(n) < due {
                    // A refused or full socket counts as sent: the wire is not what is measured.
                    let _ = socket.send(message);
                    n += 1;
                    if n.is_multiple_of(1_024) && halt.load(Ordering::Relaxed) {
                        break;
                    }
                }
                count.store(n, Ordering::Relaxed);
                std::hint::spin_loop();
            }
            thread_cpu() - before
        };
        Flood { stop, sent, thread: std::thread::spawn(body) }
    }

    /// Packets sent, and the sender's seconds of CPU.
    fn stop(self) -> (u64, f64) {
        self.stop.store(true, Ordering::Relaxed);
        let cpu = self.thread.join().expect("the sender");
        (self.sent.load(Ordering::Relaxed), cpu)
    }
}

/// Seconds of CPU of this thread.
fn thread_cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns: f64 = stat.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
    ns / 1e9
}
