//! What a whole call costs in the core: INVITE with SDP, 180, 200, ACK, BYE, 200, media bound on
//! both sides, dialog committed. Prints CPU microseconds per call spent inside `Core`, and heap
//! bytes per established call, and per call that has ended but whose transactions linger.
//!
//! `cargo bench -p sbc-core --bench calls`

#[path = "common/call.rs"]
mod call;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use call::{Bench, Meter, hang_up, set_up};
use sbc_core::core::Input;

/// Counts what is allocated.
struct Counting;

static HEAP: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed to the system allocator as it came; only a counter is kept beside.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HEAP.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        HEAP.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `ptr` came from `alloc` above with this `layout`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// CPU time of this thread: other work on the machine does not count.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result, which is all the call wants.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    let nanos = |n: i64| u64::try_from(n).unwrap_or(0);
    Duration::from_secs(nanos(time.tv_sec)) + Duration::from_nanos(nanos(time.tv_nsec))
}

/// Sums up the CPU time.
#[derive(Default)]
struct Spent(Duration);

impl Meter for Spent {
    fn run<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = cpu_time();
        let done = work();
        self.0 += cpu_time() - start;
        done
    }
}

/// Lets everything that lingers run out.
fn settle(bench: &mut Bench<Spent>) {
    bench.now += Duration::from_secs(120);
    bench.core.handle(bench.now, Input::Tick, &mut bench.anchor);
    while bench.core.poll().is_some() {}
}

/// A number from the environment: fewer calls where every instruction is simulated.
fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn main() {
    let mut bench = Bench::new(Spent::default(), true);

    // 1,000 calls per second for 20 s: the transaction tables are as full as they get.
    let per_round = number("CALLS_PER_ROUND", 1_000);
    let rounds = 20;
    let mut costs = Vec::new();
    for round in 0..rounds {
        bench.meter = Spent::default();
        for n in 0..per_round {
            bench.now += Duration::from_millis(1);
            let id = round * per_round + n;
            let (contact, to) = set_up(&mut bench, id);
            hang_up(&mut bench, id, &contact, &to);
        }
        costs.push(bench.meter.0 / per_round);
    }
    costs.sort();
    println!("one call, INVITE to BYE: {:?} median, {:?} least", costs[costs.len() / 2], costs[0]);

    let ended = (rounds * per_round) as usize;
    println!(
        "ended call: {} bytes of heap until its timers run out",
        HEAP.load(Ordering::Relaxed) / ended
    );
    // Everything that lingers runs out.
    settle(&mut bench);
    let before = HEAP.load(Ordering::Relaxed);
    let calls = number("CALLS_UP", 20_000);
    let up: Vec<_> = (0..calls).map(|n| set_up(&mut bench, 1_000_000 + n)).collect();
    let names: usize = up.iter().map(|(a, b)| a.capacity() + b.capacity() + 48).sum();
    settle(&mut bench);
    let held = HEAP.load(Ordering::Relaxed) - before - names;
    println!("established call: {} bytes of heap (tables grown included)", held / calls as usize);
    println!("{:?}", bench.core.stats());
}
