//! CPU seconds per million relayed packets in userspace, beside rtpengine in the same run.
//!
//! `cargo bench -p media-anchor --bench relay [-- seconds=6 rounds=3 calls=250,500,1000 only=ours
//! coalesce_us=2000 threads=2]`. Every call is two streams of 50 packets/s of 172 bytes on loopback. CPU is
//! the run time of the relay's threads (`/proc/…/schedstat`), the load generator's is not in it.
//! `memory=5000` prints the memory per established call instead. Rounds alternate between the relays; medians are printed.

#[path = "../support/footprint.rs"]
mod footprint;
mod load;
mod memory;
mod ours;
#[path = "../support/rtpengine.rs"]
mod rtpengine;
mod theirs;

use std::time::Duration;

use load::{Call, Load, Outcome};

/// A relay under test.
pub(crate) trait Relay {
    /// Sets a call up between two endpoints; where each of them sends to.
    fn call(&mut self, index: usize, a: std::net::SocketAddr, b: std::net::SocketAddr) -> Call;
    /// Run time of its threads so far.
    fn cpu(&self) -> Duration;
}

struct Options {
    time: Duration,
    rounds: usize,
    calls: Vec<usize>,
    only: Option<String>,
    coalesce: Duration,
    threads: usize,
    memory: Option<usize>,
}

fn options() -> Options {
    let mut options = Options {
        time: Duration::from_secs(6),
        rounds: 3,
        calls: vec![250, 500, 1000],
        only: None,
        coalesce: Duration::from_millis(2),
        memory: None,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    };
    for arg in std::env::args().skip(1) {
        let Some((key, value)) = arg.split_once('=') else { continue };
        let number = || value.parse::<u64>().expect("a number");
        match key {
            "seconds" => options.time = Duration::from_secs(number()),
            "rounds" => options.rounds = usize::try_from(number()).expect("fits"),
            "coalesce_us" => options.coalesce = Duration::from_micros(number()),
            "threads" => options.threads = usize::try_from(number()).expect("fits"),
            "memory" => options.memory = usize::try_from(number()).ok(),
            "only" => options.only = Some(value.to_owned()),
            "calls" => {
                let parse = |n: &str| n.parse().expect("a number");
                options.calls = value.split(',').map(parse).collect();
            }
            _ => panic!("unknown option {key}"),
        }
    }
    options
}

fn start(name: &str, options: &Options) -> Option<Box<dyn Relay>> {
    match name {
        "ours" => Some(Box::new(ours::Ours::start(options.coalesce, options.threads))),
        _ => theirs::start().map(|relay| Box::new(relay) as Box<dyn Relay>),
    }
}

fn main() {
    let options = options();
    if let Some(calls) = options.memory {
        memory::run(calls);
        return;
    }
    println!(
        "userspace relay, {} s, {} rounds, coalesce {:?}; CPU-s per million packets relayed",
        options.time.as_secs(),
        options.rounds,
        options.coalesce
    );
    println!(
        "{:>6} {:10} {:>9} {:>8} {:>9} {:>9} {:>9}",
        "calls", "relay", "CPU-s/M", "lost %", "p50 us", "p99 us", "packets"
    );
    for &calls in &options.calls {
        let mut medians = Vec::new();
        for name in ["ours", "rtpengine"] {
            if options.only.as_ref().is_some_and(|only| only != name) {
                continue;
            }
            medians.push((name, Vec::new()));
        }
        for _ in 0..options.rounds {
            for (name, outcomes) in &mut medians {
                match start(name, &options) {
                    Some(mut relay) => {
                        outcomes.push(Load::run(relay.as_mut(), calls, options.time))
                    }
                    None => println!("{calls:>6} {name:10} not installed"),
                }
            }
        }
        let costs: Vec<f64> = medians
            .iter_mut()
            .filter_map(|(name, outcomes)| report(calls, name, outcomes))
            .collect();
        if let [ours, theirs] = costs[..] {
            println!("{calls:>6} ours / rtpengine = {:.2}", ours / theirs);
        }
    }
}

/// Prints the round with the median cost.
fn report(calls: usize, name: &str, outcomes: &mut [Outcome]) -> Option<f64> {
    outcomes.sort_by(|a, b| a.cpu_per_million().total_cmp(&b.cpu_per_million()));
    let median = outcomes.get(outcomes.len() / 2)?;
    println!(
        "{calls:>6} {name:10} {:>9.2} {:>8.3} {:>9} {:>9} {:>9}",
        median.cpu_per_million(),
        median.lost_percent(),
        median.latency_us(50),
        median.latency_us(99),
        median.received,
    );
    Some(median.cpu_per_million())
}
