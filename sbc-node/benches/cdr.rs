//! Cost of the call detail records of a node by itself: an answer noted and a record told per call.
//!
//! Method: one thread hands both over at a rate, in batches of half a millisecond as a shard does
//! under load, each call up for a second. What the writer's thread takes is read from its
//! `schedstat`, the writes and context switches from `/proc`; what handing over takes is the CPU time
//! of the calls to the sink alone. The last line is the text of one record by itself.
//!
//! `cargo bench -p sbc-node --bench cdr`; `RATES` and `BENCH_SECONDS` in the environment change the
//! run, `DIR` the directory of the files.

use std::fs;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use sbc_core::b2bua::{CallId, Cdr, CdrAttempt, CdrLeg, EndCause, EndedBy, Written};
use sbc_node::telemetry::cdr::{CdrWriter, Settings};
use sbc_node::telemetry::cdr_json;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long messages gather at a shard under load.
const BATCH: Duration = Duration::from_micros(500);

fn env(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn leg(trunk: &str, n: u64, host: &str) -> CdrLeg {
    CdrLeg {
        trunk: Arc::from(trunk),
        call_id: format!("{n}-2345@{host}"),
        local_tag: "0f1e2d3c4b5a69788796a5b4".to_owned(),
        remote_tag: format!("{n}SIPpTag001"),
        peer: format!("{host}:5060").parse().ok(),
    }
}

/// A call as SIPp makes it.
fn cdr(n: u64, ended_by: EndedBy) -> Box<Cdr> {
    let a = leg("pbx", n, "10.0.0.1");
    let b = leg("carrier", n, "192.0.2.1");
    Box::new(Cdr {
        call: CallId(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(n + 1)),
        started_ms: 1_767_225_600_000 + n,
        ringing_ms: Some(1_767_225_600_010 + n),
        answered_ms: Some(1_767_225_600_020 + n),
        ended_ms: 1_767_225_601_020 + n,
        dialled: "sip:+4930123456@10.0.0.9:5060".to_owned(),
        from: "sip:sipp@10.0.0.1:5060".to_owned(),
        to: "sip:+4930123456@10.0.0.9:5060".to_owned(),
        attempts: vec![CdrAttempt { trunk: b.trunk.clone(), peer: b.peer, status: 200 }],
        a,
        b: Some(b),
        status: 200,
        reason: "OK".to_owned(),
        ended_by,
        end_reason: None,
        codecs: vec!["PCMA".to_owned()],
        media: Vec::new(),
        protected: false,
        written: Written::Never,
    })
}

fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("clock").into()
}

/// CPU of the writer's thread in nanoseconds, how often it gave the CPU up.
fn writer() -> (u64, u64) {
    let task = fs::read_dir("/proc/self/task").expect("tasks").find_map(|entry| {
        let path = entry.ok()?.path();
        (fs::read_to_string(path.join("comm")).ok()?.trim() == "cdr").then_some(path)
    });
    let task = task.expect("the writer's thread");
    let read = |name: &str| fs::read_to_string(task.join(name)).expect("statistics");
    let stat = read("schedstat");
    let ran = stat.split_whitespace().next().and_then(|n| n.parse().ok()).expect("schedstat");
    let status = read("status");
    let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
    (ran, line.and_then(|n| n.trim().parse().ok()).expect("status"))
}

/// Writes of the whole process.
fn writes() -> u64 {
    let io = fs::read_to_string("/proc/self/io").expect("io");
    let line = io.lines().find_map(|l| l.strip_prefix("syscw:"));
    line.and_then(|n| n.trim().parse().ok()).expect("io")
}

fn run(rate: u64, seconds: u64) {
    let dir = tempfile::tempdir_in(env("DIR", env!("CARGO_TARGET_TMPDIR"))).expect("directory");
    let settings = Settings { path: Some(dir.path().join("cdr.jsonl")), ..Settings::default() };
    let cdrs = CdrWriter::start(settings, "bench").expect("writer");
    let sink = cdrs.sink();
    // What is read before the thread runs would name another.
    std::thread::sleep(Duration::from_millis(100));
    let ((ran, switched), wrote, begin) = (writer(), writes(), Instant::now());
    let (mut handed, mut given) = (Duration::ZERO, 0);
    let calls = rate * seconds;
    while given < calls + rate {
        let due = u64::try_from(begin.elapsed().as_micros()).unwrap_or(0) * rate / 1_000_000;
        let answers = (given..due).filter(|n| *n < calls);
        let answers: Vec<_> = answers.map(|n| cdr(n, EndedBy::Sbc(EndCause::Crash))).collect();
        let ends = (given..due).filter_map(|n| n.checked_sub(rate)).filter(|n| *n < calls);
        let ends: Vec<_> = ends.map(|n| cdr(n, EndedBy::Caller)).collect();
        given = given.max(due);
        let before = thread_cpu();
        answers.into_iter().for_each(|cdr| sink.answered(cdr));
        ends.into_iter().for_each(|cdr| sink.push(cdr));
        handed += thread_cpu() - before;
        std::thread::sleep(BATCH);
    }
    std::thread::sleep(Duration::from_millis(50));
    let per_call = |n: u64| n as f64 / calls as f64;
    let (now_ran, now_switched) = writer();
    println!(
        "{rate:>5} calls/s: writer {:>6.2} us per call, handing over {:>5.2} us, {:.3} writes, {:.3} sleeps",
        per_call(now_ran - ran) / 1e3,
        handed.as_secs_f64() * 1e6 / calls as f64,
        per_call(writes() - wrote),
        per_call(now_switched - switched),
    );
    cdrs.stop();
    let told = fs::read_to_string(dir.path().join("cdr.jsonl")).expect("records");
    assert_eq!(told.lines().count() as u64, calls, "one record per call");
}

fn main() {
    let seconds = env("BENCH_SECONDS", "5").parse().expect("BENCH_SECONDS");
    for rate in env("RATES", "200,2000").split(',') {
        run(rate.parse().expect("RATES"), seconds);
    }
    const TIMES: u32 = 100_000;
    let (record, mut line) = (cdr(1, EndedBy::Caller), Vec::new());
    let before = thread_cpu();
    for _ in 0..TIMES {
        line.clear();
        cdr_json::write(&mut line, black_box(&record), "bench");
        black_box(&line);
    }
    let each = (thread_cpu() - before) / TIMES;
    println!("the text of a record: {} ns for {} bytes", each.as_nanos(), line.len());
}
