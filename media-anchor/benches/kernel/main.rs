//! What the kernel ways cost: CPU per relayed packet beside plain forwarding, calls set up and torn
//! down per second, added latency, the price of bans.
//!
//! `cargo bench -p media-anchor --bench kernel [-- cpu|rate|memory|latency|bans]`, as root.
//!
//! Wall-clock packets per second on a shared machine mean nothing, so CPU is counted: a pinned
//! AF_PACKET sender runs all softirq work of the veth chain on its own thread's clock; what
//! ksoftirqd used is added, a run in which the relay's namespace drops at ingress is subtracted,
//! the ways alternate within one run, and the result is the ratio to `ip_forward`.

mod clock;
mod cpu;
#[path = "../support/footprint.rs"]
mod footprint;
mod memory;
#[path = "../../tests/kernel/netns.rs"]
mod netns;
mod other;
#[path = "../support/rtpengine.rs"]
mod rtpengine;
mod traffic;
mod user;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if !args.iter().any(|a| a == "--bench") {
        // `cargo test --benches` only wants to know that it builds.
        return;
    }
    if !netns::available("bench") {
        return;
    }
    let chosen = |name: &str| {
        let named: Vec<&String> =
            args.iter().filter(|a| !a.starts_with("--") && !a.contains('=')).collect();
        named.is_empty() || named.iter().any(|a| *a == name)
    };
    let flows = args.iter().find_map(|a| a.strip_prefix("flows="));
    let flows: Vec<usize> = flows.map_or(vec![1, 1000, 10_000], |list| {
        list.split(',').map(|n| n.parse().expect("a number of flows")).collect()
    });
    if chosen("cpu") {
        cpu::run(&flows);
    }
    if chosen("rate") {
        other::rate();
    }
    if chosen("memory") {
        memory::run();
    }
    if chosen("latency") {
        other::latency();
    }
    if chosen("bans") {
        other::bans();
    }
}
