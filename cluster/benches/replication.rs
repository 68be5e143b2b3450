//! What replication costs on this machine, fsync on: committed dialog writes per second and their
//! latency with three nodes over loopback TLS, memory per row, and how long a joiner takes to catch
//! up, CPU and bytes on the wire. Prints one `name value unit` line each. `CALLS`, `DIALOGS` and `BINDINGS` set the sizes,
//! `PARTS` (`memory,writes,catchup`) chooses.
//!
//! Memory is that of a node alone, with its log: what is resident beside what is asked of the
//! allocator, which is the node's own, while no snapshot is being written. What a log has in any case
//! is there before.

use std::alloc::{GlobalAlloc, Layout};
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sbc_cluster::{AorKey, Cluster, Command, Config, DialogKey, Discovery, Handle, Origin, Table};

/// Counts what is allocated.
struct Counting;

static HEAP: AtomicUsize = AtomicUsize::new(0);
static INNER: mimalloc::MiMalloc = mimalloc::MiMalloc;

// SAFETY: everything is handed to the node's allocator as it came; only a counter is kept beside.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HEAP.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { INNER.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        HEAP.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `ptr` came from `alloc` above with this `layout`.
        unsafe { INNER.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WAIT: Duration = Duration::from_secs(120);
const RECORD_BYTES: usize = 1_200;
const BINDING_BYTES: usize = 250;

fn size(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn config(dir: &Path, name: &str) -> Config {
    let mut config = Config::new(dir.join(name), name);
    let socket = TcpListener::bind("127.0.0.1:0").expect("bind");
    config.listen = Some(socket.local_addr().expect("address"));
    config
}

fn join(first: &Handle, via: &Config, dir: &Path, name: &str) -> Handle {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let token = runtime
        .expect("runtime")
        .block_on(first.create_join_token(Duration::from_secs(60)))
        .expect("token");
    let seeds = Discovery::Static(vec![via.listen.expect("listens").to_string()]);
    let mut config = config(dir, name);
    config.origin = Origin::Join { token, seeds };
    Cluster::start(config).expect("joins")
}

fn until(mut met: impl FnMut() -> bool) {
    let start = Instant::now();
    while !met() {
        assert!(start.elapsed() < WAIT, "took too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn key(n: u64) -> DialogKey {
    DialogKey((u128::from(n) << 64 | 0x5bc).to_be_bytes())
}

fn dialog(n: u64) -> Command {
    let value = Bytes::from(vec![u8::try_from(n % 251).unwrap_or(0); RECORD_BYTES]);
    Command::put_dialog(key(n), 0, &[n, n ^ u64::MAX, n.rotate_left(32)], value)
}

fn binding(n: u64) -> Command {
    let aor = AorKey((u128::from(n) << 64 | 0xa0).to_be_bytes());
    let value = Bytes::from(vec![b'b'; BINDING_BYTES]);
    Command::put_binding(aor, 1, Duration::from_secs(3_600), false, value)
}

/// Writes `count` commands with at most `window` unanswered; returns the sorted latencies.
fn write(
    node: &Handle,
    count: u64,
    window: usize,
    command: impl Fn(u64) -> Command,
) -> Vec<Duration> {
    let (done, answers) = sync_channel(window * 2);
    let mut latencies = Vec::new();
    let mut take = |failed: bool, latency: Duration| {
        assert!(!failed, "a write failed");
        latencies.push(latency);
    };
    for n in 0..count {
        if n >= window as u64 {
            let (failed, latency) = answers.recv().expect("an answer");
            take(failed, latency);
        }
        let (begun, done) = (Instant::now(), done.clone());
        node.submit(command(n), WAIT, move |result| {
            // The queue has room for all that is under way.
            let _ = done.try_send((result.is_err(), begun.elapsed()));
        });
    }
    for _ in 0..count.min(window as u64) {
        let (failed, latency) = answers.recv().expect("an answer");
        take(failed, latency);
    }
    latencies.sort();
    latencies
}

fn report(name: &str, latencies: &[Duration], elapsed: Duration) {
    let at = |per_mille: usize| latencies[(latencies.len() - 1) * per_mille / 1_000].as_micros();
    let rate = latencies.len() as f64 / elapsed.as_secs_f64();
    println!("{name}.rate {rate:.0} writes/s");
    println!("{name}.p50 {} us", at(500));
    println!("{name}.p99 {} us", at(990));
}

/// CPU time of this process: all three nodes together.
fn cpu() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike as _;
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("usage");
    let used = usage.user_time() + usage.system_time();
    Duration::from_micros(u64::try_from(used.num_microseconds()).unwrap_or(0))
}

/// Bytes that these nodes have sent to their peers.
fn sent(nodes: &[&Handle]) -> u64 {
    nodes.iter().flat_map(|node| node.status().peers).map(|peer| peer.sent_bytes).sum()
}

/// What a process has and what it asked for, in bytes.
#[derive(Clone, Copy)]
struct Memory {
    resident: u64,
    heap: u64,
}

fn memory() -> Memory {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
    Memory { resident: pages.unwrap_or(0) * 4_096, heap: HEAP.load(Ordering::Relaxed) as u64 }
}

fn report_memory(name: &str, before: Memory, after: Memory, rows: u64) {
    let each = |before: u64, after: u64| after.saturating_sub(before) / rows.max(1);
    println!("memory.{name} {} bytes", each(before.resident, after.resident));
    println!("memory.{name}.heap {} bytes", each(before.heap, after.heap));
}

const LOG_BYTES: u64 = 8 * 1024 * 1024;
const KEPT_BYTES: u64 = 1024 * 1024;

/// Waits until no snapshot is being written and none is due: the log is short, and stays so.
fn rest(node: &Handle) {
    let (mut last, mut since) = (0, Instant::now());
    until(|| {
        let status = node.status().core;
        if status.snapshot != last || status.log_bytes > LOG_BYTES + KEPT_BYTES {
            (last, since) = (status.snapshot, Instant::now());
        }
        since.elapsed() > Duration::from_secs(2)
    });
}

/// Memory, on a node alone.
fn rows(dir: &Path, dialogs: u64, bindings: u64) {
    let mut config = Config::new(dir.join("alone"), "alone");
    config.limits.snapshot_log_bytes = LOG_BYTES;
    config.limits.keep_log_bytes = KEPT_BYTES;
    let alone = Cluster::start(config).expect("starts");
    // Fills what has a fixed size: the log's cache, the log itself.
    write(&alone, 40_000, 1_000, |n| dialog(n % 2_000));
    rest(&alone);
    let before = memory();
    write(&alone, dialogs, 2_000, dialog);
    rest(&alone);
    let between = memory();
    write(&alone, bindings, 2_000, binding);
    rest(&alone);
    let after = memory();
    report_memory("dialog", before, between, dialogs);
    report_memory("binding", between, after, bindings);
    alone.stop();
}

fn main() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (calls, dialogs, bindings) =
        (size("CALLS", 5_000), size("DIALOGS", 100_000), size("BINDINGS", 300_000));
    let parts = std::env::var("PARTS").unwrap_or_else(|_| "memory,writes,catchup".to_owned());
    let wanted = |part: &str| parts.split(',').any(|p| p == part);
    if wanted("memory") {
        rows(dir.path(), dialogs, bindings);
    }
    if wanted("writes") || wanted("catchup") {
        let first = config(dir.path(), "a");
        let a = Cluster::start(first.clone()).expect("starts");
        let b = join(&a, &first, dir.path(), "b");
        let c = join(&a, &first, dir.path(), "c");
        until(|| a.status().core.voters.len() == 3 && c.lease_valid() && b.lease_valid());
        if wanted("writes") {
            writes([&a, &b, &c], calls);
        }
        if wanted("catchup") {
            catch_up(&a, || join(&a, &first, dir.path(), "d"), dialogs, bindings);
        }
    }
}

/// Throughput and latency of three, the first being the leader.
fn writes(nodes: [&Handle; 3], calls: u64) {
    for (name, node) in [("leader", nodes[0]), ("follower", nodes[1])] {
        for (load, window) in [("one", 1), ("hundred", 100)] {
            let begun = Instant::now();
            let count = if window == 1 { calls / 10 } else { calls };
            let offset = if name == "leader" { 0 } else { 10_000_000 };
            let (cpu_before, sent_before) = (cpu(), sent(&nodes));
            let latencies = write(node, count, window, |n| dialog(n + offset));
            report(&format!("{name}.{load}"), &latencies, begun.elapsed());
            let (cpu_used, bytes) = (cpu() - cpu_before, sent(&nodes) - sent_before);
            println!(
                "{name}.{load}.cpu {} us/write, three nodes",
                cpu_used.as_micros() / u128::from(count)
            );
            println!("{name}.{load}.wire {} bytes/write, all channels", bytes / count);
        }
    }
}

/// How long one that joins takes to have all rows.
fn catch_up(leader: &Handle, join: impl FnOnce() -> Handle, dialogs: u64, bindings: u64) {
    write(leader, dialogs, 2_000, dialog);
    write(leader, bindings, 2_000, binding);
    let begun = Instant::now();
    let joined = join();
    until(|| {
        let full = |node: &Handle| {
            node.read(|tables| (tables.len(Table::Dialogs), tables.len(Table::Bindings)))
        };
        full(&joined) == full(leader)
    });
    println!("catchup.time {} ms", begun.elapsed().as_millis());
}
