//! Instructions that one operation takes: parse, write, SDP, a whole call (INVITE to BYE) and a
//! registration with digest inside the core. Unlike times they are the same on a busy machine, so they tell a change of one
//! percent.
//!
//! Method: each operation is warmed up and then run in `counted`, often enough that what happens
//! now and then (tables that grow) is spread. Where the system has a hardware counter for user-mode
//! instructions (`perf_event_open`), it is read around `counted`. Where it has none, as in most
//! virtual machines, this program runs itself once per operation under `valgrind --tool=callgrind`,
//! which collects inside `counted` only. Without both, one sentence says so. The allocator is that of
//! the node. A call is 1 ms after the one before, so that timers and tables are as full as at 1,000
//! calls per second.
//!
//! `cargo bench -p sbc-core --bench instructions` (a text behind `--` picks operations by name).

#[path = "common/call.rs"]
mod call;
#[path = "common/message.rs"]
mod message;
#[path = "common/register.rs"]
mod register;

use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::net::SocketAddr;
use std::os::fd::FromRawFd;
use std::process::Command;
use std::time::Duration;

use call::{Bench, Meter, hang_up, set_up};
use message::{b_leg, invite, rewrite_sdp, routing_headers};
use sbc_core::ids::HintKey;
use sbc_core::sip::{self, Limits};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Tells the child which operation it is to run.
const CHILD: &str = "COUNTED_OPERATION";

/// The operations by name.
const OPERATIONS: [&str; 10] = [
    "parse: index of a 988-byte INVITE",
    "parse with the headers that routing needs",
    "parse and validate",
    "owning shard of a message",
    "write the B-leg INVITE",
    "write a 180 response",
    "SDP parse, rewrite, write",
    "whole call, signalling only",
    "whole call, media session set up",
    "registration with digest: 401 and 200",
];

/// The hardware counter of user-mode instructions of this thread.
struct Counter(File);

impl Counter {
    /// `None` where the machine or the system's policy has none for us.
    fn open() -> Option<Counter> {
        /// The first version of `struct perf_event_attr`, 64 bytes.
        #[repr(C)]
        struct Attr {
            kind: u32,
            size: u32,
            config: u64,
            sampling: [u64; 3],
            flags: u64,
            rest: [u64; 2],
        }
        const HARDWARE: u32 = 0;
        const INSTRUCTIONS: u64 = 1;
        const EXCLUDE_KERNEL_AND_HYPERVISOR: u64 = 0b110_0000;
        let attr = Attr {
            kind: HARDWARE,
            size: 64,
            config: INSTRUCTIONS,
            sampling: [0; 3],
            flags: EXCLUDE_KERNEL_AND_HYPERVISOR,
            rest: [0; 2],
        };
        // SAFETY: `attr` is a whole attribute structure of the size it says; the rest are numbers:
        // this thread, any CPU, no group, no flags.
        let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, 0, -1, -1, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the descriptor is new and nobody else's.
        Some(Counter(unsafe { File::from_raw_fd(fd) }))
    }

    fn read(&mut self) -> u64 {
        let mut count = [0; 8];
        self.0.read_exact(&mut count).expect("the counter");
        u64::from_ne_bytes(count)
    }
}

/// Counts what runs in it: by the counter, or by callgrind around us.
struct Instructions {
    /// False while warming up.
    on: bool,
    counter: Option<Counter>,
    spent: u64,
}

impl Meter for Instructions {
    fn run<T>(&mut self, work: impl FnOnce() -> T) -> T {
        if !self.on {
            return work();
        }
        let before = self.counter.as_mut().map_or(0, Counter::read);
        let done = counted(work);
        self.spent += self.counter.as_mut().map_or(0, Counter::read) - before;
        done
    }
}

/// Callgrind collects while this function runs, whatever its type parameters.
#[inline(never)]
fn counted<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}

fn repeat<T>(meter: &mut Instructions, mut work: impl FnMut() -> T) -> u32 {
    const TIMES: u32 = 1_000;
    for _ in 0..100 {
        black_box(work());
    }
    for _ in 0..TIMES {
        meter.run(&mut work);
    }
    TIMES
}

fn calls(meter: Instructions, media: bool) -> (Instructions, u32) {
    const WARM: u32 = 200;
    const CALLS: u32 = 800;
    let mut bench = Bench::new(Instructions { on: false, ..meter }, media);
    let call = |bench: &mut Bench<Instructions>, n| {
        bench.now += Duration::from_millis(1);
        let (contact, to) = set_up(bench, n);
        hang_up(bench, n, &contact, &to);
    };
    for n in 0..WARM {
        call(&mut bench, n);
    }
    bench.meter.on = true;
    for n in WARM..WARM + CALLS {
        call(&mut bench, n);
    }
    (bench.meter, CALLS)
}

fn registrations(meter: Instructions) -> (Instructions, u32) {
    /// Every user once, so that what is counted are refreshes.
    const WARM: u32 = 5_000;
    const TIMES: u32 = 5_000;
    let mut bench = register::Bench::new(Instructions { on: false, ..meter });
    (0..WARM).for_each(|n| bench.register(n));
    bench.meter.on = true;
    (WARM..WARM + TIMES).for_each(|n| bench.register(n));
    (bench.meter, TIMES)
}

/// Runs an operation; yields instructions in all (0 under callgrind) and how often it ran.
fn operate(name: &str, counter: Option<Counter>) -> (u64, u32) {
    let mut meter = Instructions { on: true, counter, spent: 0 };
    let limits = Limits::default();
    let data = invite();
    let message = sip::parse(data.clone(), &limits).expect("invite");
    let rtp: SocketAddr = "198.51.100.1:40000".parse().expect("address");
    let rtcp: SocketAddr = "198.51.100.1:40001".parse().expect("address");
    let body = rewrite_sdp(message.body(), rtp, rtcp);
    let hints = HintKey::new(7);
    let parse = || sip::parse(data.clone(), &limits).expect("invite");
    let at = OPERATIONS.iter().position(|o| *o == name);
    let times = match at.unwrap_or(OPERATIONS.len()) {
        0 => repeat(&mut meter, parse),
        1 => repeat(&mut meter, || routing_headers(&parse())),
        2 => repeat(&mut meter, || sip::validate(&parse()).is_ok()),
        3 => repeat(&mut meter, || hints.of_message(&data)),
        4 => repeat(&mut meter, || b_leg(&message, &body)),
        5 => repeat(&mut meter, || {
            sip::response(&message, 180, "", Some("0f1e2d3c"), Some(rtp)).finish()
        }),
        6 => repeat(&mut meter, || rewrite_sdp(message.body(), rtp, rtcp)),
        9 => {
            let (counted, times) = registrations(meter);
            meter = counted;
            times
        }
        n => {
            let (counted, calls) = calls(meter, n == 8);
            meter = counted;
            calls
        }
    };
    (meter.spent, times)
}

/// Runs an operation in a child under callgrind; `None` where there is no valgrind.
fn simulate(name: &str) -> Option<u64> {
    let program = std::env::current_exe().expect("our own path");
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .args(["--toggle-collect=*instructions*counted*"])
        .arg(program)
        .env(CHILD, name)
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&run.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected :"));
    let count = collected.and_then(|(_, n)| n.trim().parse().ok());
    assert!(run.status.success() && count.is_some(), "callgrind: {said}");
    count
}

fn main() {
    if let Ok(name) = std::env::var(CHILD) {
        operate(&name, None);
        return;
    }
    let hardware = Counter::open().is_some();
    let wanted =
        |name: &&str| std::env::args().skip(1).all(|a| a.starts_with('-') || name.contains(&a));
    for name in OPERATIONS.into_iter().filter(wanted) {
        let (spent, times) = operate(name, Counter::open());
        let Some(spent) = (if hardware { Some(spent) } else { simulate(name) }) else {
            println!(
                "instructions: not counted, because this machine gives no hardware counter and valgrind is not installed"
            );
            return;
        };
        println!("{name:<44} {:>9} instructions", spent / u64::from(times));
    }
    println!("counted by {}", if hardware { "the processor" } else { "callgrind" });
}
