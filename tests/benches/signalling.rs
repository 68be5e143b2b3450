//! CPU per completed call of the SBC and of its peers, side by side.
//!
//! Method: the system under test is pinned to core 0, SIPp's caller and callee to core 1. Each
//! rate runs for `BENCH_SECONDS` seconds of offered calls (INVITE with SDP, 180, 200, ACK, hold 1 s,
//! BYE, 200; UDP on loopback). CPU is user + system time of the whole process tree, from
//! /proc/PID/stat before and after; beside it stands how many times the CPU of SIPp's own caller that
//! is, because machines differ. Failed calls and the answer delay come from SIPp. The systems
//! take turns within one run; figures are medians of `ROUNDS` rounds.
//!
//! Prints one table. `ROUNDS`, `BENCH_SECONDS`, `RATES` in the environment change the run.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sbc_tests::load::{cpu, delays, end, env, find, median, outcome, pinned, udp_bound};
use sbc_tests::{binary, root, wait_for};

struct Sut {
    name: &'static str,
    port: u16,
    processes: Vec<Child>,
}

impl Drop for Sut {
    fn drop(&mut self) {
        for child in &mut self.processes {
            end(child);
        }
    }
}

struct Row {
    cpu_us: f64,
    done: u64,
    failed: u64,
    p50_ms: f64,
    p99_ms: f64,
    /// CPU of SIPp's caller per call: what the same machine takes for one side of the job.
    caller_us: f64,
}

fn main() {
    let rounds: usize = env("ROUNDS", "3").parse().expect("ROUNDS");
    let seconds: u64 = env("BENCH_SECONDS", "10").parse().expect("SECONDS");
    let rates: Vec<u64> =
        env("RATES", "200,500,1000,2000").split(',').map(|r| r.parse().expect("RATES")).collect();
    let only = env("SYSTEMS", "sbc,sbc-media,kamailio,kamailio-rtpengine");
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut table: BTreeMap<(String, u64), Vec<Row>> = BTreeMap::new();
    for _ in 0..rounds {
        for system in only.split(',') {
            let Some(sut) = start(system, dir.path()) else {
                println!("{system}: not installed, left out");
                continue;
            };
            for &rate in &rates {
                let row = load(&sut, rate, seconds, dir.path());
                eprintln!(
                    "{system} {rate}/s: {:.0} us/call, {} done, {} failed, p99 {:.1} ms",
                    row.cpu_us, row.done, row.failed, row.p99_ms
                );
                table.entry((system.to_owned(), rate)).or_default().push(row);
            }
        }
    }
    println!(
        "| system | calls/s | CPU us per call | x SIPp's caller | done | failed | answer p50 ms | p99 ms |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for ((system, rate), rows) in &table {
        println!(
            "| {system} | {rate} | {:.0} | {:.2} | {} | {} | {:.1} | {:.1} |",
            median(rows.iter().map(|r| r.cpu_us)),
            median(rows.iter().map(|r| r.cpu_us / r.caller_us)),
            rows.iter().map(|r| r.done).sum::<u64>(),
            rows.iter().map(|r| r.failed).sum::<u64>(),
            median(rows.iter().map(|r| r.p50_ms)),
            median(rows.iter().map(|r| r.p99_ms)),
        );
    }
}

/// CPU seconds of the children that have been waited for.
fn reaped() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("usage");
    let time = usage.user_time() + usage.system_time();
    time.num_microseconds() as f64 / 1e6
}

fn installed(program: &str) -> bool {
    Command::new(program).arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn start(system: &str, dir: &Path) -> Option<Sut> {
    let mut processes = Vec::new();
    let (name, port) = match system {
        "sbc" | "sbc-media" => {
            let source = root().join("tests/peers").join(format!("{system}.toml"));
            let config = std::fs::read_to_string(source).expect("bench configuration");
            let file = dir.join("sbc.toml");
            std::fs::write(&file, config.replace("@DIR@", &dir.to_string_lossy())).expect("write");
            let node = binary("sbc-node");
            let args = ["run", "--config", &file.to_string_lossy()];
            processes.push(pinned(0, &node.to_string_lossy(), &args, dir));
            (if system == "sbc" { "sbc" } else { "sbc-media" }, 5080)
        }
        "kamailio" | "kamailio-rtpengine" => {
            if !installed("kamailio") {
                return None;
            }
            let config = root().join("tests/peers/kamailio.cfg");
            let config = config.to_string_lossy();
            // Its fast allocator: the default one of Debian's build is the debugging one (`qm`), which
            // takes 70 % of the CPU of this load.
            let memory = ["-m", "512", "-M", "16", "-x", "fm", "-X", "fm"];
            let mut args = [&["-f", &config, "-DD"], &memory[..]].concat();
            if system == "kamailio-rtpengine" {
                if !installed("rtpengine") {
                    return None;
                }
                args.extend(["-A", "WITH_RTPENGINE"]);
                processes.push(pinned(0, "rtpengine", RTPENGINE, dir));
            }
            processes.push(pinned(0, "kamailio", &args, dir));
            (if system == "kamailio" { "kamailio" } else { "kamailio-rtpengine" }, 5080)
        }
        other => panic!("unknown system {other}"),
    };
    let mut sut = Sut { name, port, processes };
    // Ready when a call passes.
    wait_for(&format!("{} to carry a call", sut.name), Duration::from_secs(30), || {
        for child in &mut sut.processes {
            let ended = child.try_wait().expect("wait");
            assert!(ended.is_none(), "{} ended at start: {ended:?}", sut.name);
        }
        let row = load(&sut, 1, 1, dir);
        (row.done == 1 && row.failed == 0).then_some(())
    });
    Some(sut)
}

const RTPENGINE: &[&str] = &[
    "--foreground",
    "--table=-1",
    "--interface=127.0.0.1",
    "--listen-ng=127.0.0.1:2223",
    "--port-min=20000",
    "--port-max=60000",
    "--log-stderr",
    "--log-level=2",
    "--no-fallback",
];

/// Offers `rate` calls per second for `seconds`, and measures.
fn load(sut: &Sut, rate: u64, seconds: u64, dir: &Path) -> Row {
    let scenarios = root().join("tests/scenarios");
    let uas_file = scenarios.join("uas-answer.xml");
    let uas_file = uas_file.to_string_lossy();
    let mut uas = pinned(
        1,
        "sipp",
        &[
            "-sf",
            &uas_file,
            "-i",
            "127.0.0.1",
            "-p",
            "7070",
            "-nostdin",
            "-skip_rlimit",
            "-buff_size",
            "4194304",
        ],
        dir,
    );
    wait_for("the callee to listen", Duration::from_secs(5), || udp_bound(7070).then_some(()));
    let calls = rate * seconds;
    let uac_file = scenarios.join("uac-load.xml");
    let remote = format!("127.0.0.1:{}", sut.port);
    let (before, caller_before) = (cpu(&sut.processes), reaped());
    let begin = Instant::now();
    let mut uac = pinned(
        1,
        "sipp",
        &[
            "-sf",
            &uac_file.to_string_lossy(),
            "-i",
            "127.0.0.1",
            "-p",
            "6060",
            "-s",
            "1000",
            "-r",
            &rate.to_string(),
            "-m",
            &calls.to_string(),
            "-l",
            "20000",
            "-d",
            "1000",
            "-nostdin",
            // A 180 that comes after the 200 (Kamailio's processes do that) does not end a call.
            "-default_behaviors",
            "all,-abortunexp",
            "-skip_rlimit",
            "-buff_size",
            "4194304",
            "-trace_stat",
            "-stf",
            "stat.csv",
            "-fd",
            "1",
            "-trace_rtt",
            "-rtt_freq",
            "1",
            "-timeout_error",
            "-timeout",
            &format!("{}s", seconds + 40),
            &remote,
        ],
        dir,
    );
    let pid = uac.id();
    uac.wait().expect("sipp");
    let (spent, caller) = (cpu(&sut.processes) - before, reaped() - caller_before);
    eprintln!("  ({} calls in {:.1} s)", calls, begin.elapsed().as_secs_f64());
    end(&mut uas);
    let (done, failed) = outcome(&dir.join("stat.csv"));
    let rtt = format!("uac-load_{pid}_rtt.csv");
    let (p50_ms, p99_ms) = delays(&find(dir, &rtt).unwrap_or_else(|| dir.join(rtt)));
    drop(std::fs::remove_file(dir.join("stat.csv")));
    let per_call = |seconds: f64| seconds * 1e6 / done.max(1) as f64;
    let (cpu_us, caller_us) = (per_call(spent), per_call(caller));
    Row { cpu_us, done, failed, p50_ms, p99_ms, caller_us }
}
