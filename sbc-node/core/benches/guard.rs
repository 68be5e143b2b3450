//! What a flood costs before parsing: datagrams per second and core through pike and the bans.
//! Prints medians of CPU time; `cargo bench -p sbc-core --bench guard`.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use sbc_core::guard::{Guard, GuardConfig, PikeConfig};
use sbc_core::net::{Flow, InterfaceId, Transport};

const PACKETS: u32 = 500_000;
const ROUNDS: usize = 7;

fn flow(source: u32) -> Flow {
    Flow {
        interface: InterfaceId(0),
        transport: Transport::Udp,
        local: SocketAddr::from(([203, 0, 113, 1], 5060)),
        remote: SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(source)), 5060),
        conn: None,
    }
}

/// CPU time of this thread: other work on the machine does not count.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat");
    let ns = stat.split_whitespace().next().and_then(|ns| ns.parse().ok());
    Duration::from_nanos(ns.expect("nanoseconds"))
}

/// Median nanoseconds per datagram; `source` names the sender of the n-th. Datagrams come at
/// 200,000 a second.
fn run(what: &str, config: &GuardConfig, source: impl Fn(u32) -> u32) {
    let mut rounds: Vec<(Duration, (usize, usize))> = (0..ROUNDS)
        .map(|_| {
            let t0 = Instant::now();
            let guard = Guard::new(config.clone(), t0);
            let start = cpu_time();
            for n in 0..PACKETS {
                let now = t0 + Duration::from_micros(u64::from(n) * 5);
                black_box(guard.datagram(now, black_box(&flow(source(n)))));
            }
            (cpu_time() - start, guard.sizes())
        })
        .collect();
    rounds.sort();
    let (elapsed, (nodes, _)) = rounds[ROUNDS / 2];
    let ns = elapsed.as_nanos() as f64 / f64::from(PACKETS);
    println!("{what}: {ns:.0} ns, {:.1} M packets/s per core, {nodes} nodes", 1e3 / ns);
}

fn main() {
    let no_ban = GuardConfig { ban_for: None, ..GuardConfig::default() };
    let spread = |n: u32| n.wrapping_mul(2_654_435_761);
    run("one flooding source, held by pike", &no_ban, |_| 0xc000_0201);
    run("one flooding source, held by its ban", &GuardConfig::default(), |_| 0xc000_0201);
    run("a thousand sources below the limit", &no_ban, |n| 0x0a00_0000 + n % 1_000);
    run("spoofed sources, all different", &no_ban, spread);
    let small = PikeConfig { max_nodes: 1_024, density: 30, ..PikeConfig::default() };
    let full = GuardConfig { pike: small, ban_for: None, ..GuardConfig::default() };
    run("spoofed sources, table full", &full, spread);
}
