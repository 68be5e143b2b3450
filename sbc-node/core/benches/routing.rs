//! Routing costs: a million prefixes to load and to look up, a whole route with two hops, source
//! identification. Prints medians of CPU time; `cargo bench -p sbc-core --bench routing`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sbc_core::net::{Flow, InterfaceId, Transport};
use sbc_core::routing::{
    Peer, PrefixTable, RouteConfig, RouteMatch, RouteQuery, RouteTarget, Routing, RoutingConfig,
    Source, Table, TrunkConfig,
};

const PREFIXES: u32 = 1_000_000;
const LOOKUPS: u32 = 200_000;
const ROUNDS: usize = 9;

/// CPU time of this thread: other work on the machine does not count.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat");
    let ns = stat.split_whitespace().next().and_then(|ns| ns.parse().ok());
    Duration::from_nanos(ns.expect("nanoseconds"))
}

/// Median nanoseconds of one of `n` runs of `f`, over several rounds.
fn median_ns(n: u32, mut f: impl FnMut(usize)) -> f64 {
    let mut rounds: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = cpu_time();
            (0..n as usize).for_each(&mut f);
            cpu_time() - start
        })
        .collect();
    rounds.sort();
    rounds[ROUNDS / 2].as_nanos() as f64 / f64::from(n)
}

/// A spread of numbers without a generator: multiplication by an odd constant.
fn number(n: u32) -> u64 {
    1_000_000_000 + u64::from(n.wrapping_mul(2_654_435_761)) * 2
}

fn csv() -> String {
    let mut lines: Vec<String> = (0..PREFIXES)
        .map(|n| {
            let digits = number(n).to_string();
            let len = 5 + (n as usize % 6);
            digits[..len.min(digits.len())].to_owned()
        })
        .collect();
    lines.sort();
    lines.dedup();
    // Prefixes of one length fall together: fill up with longer ones.
    let mut extra = 0;
    while lines.len() < PREFIXES as usize {
        for n in 0..PREFIXES {
            lines.push(number(n.wrapping_add(extra).wrapping_mul(7)).to_string());
        }
        lines.sort();
        lines.dedup();
        extra += PREFIXES;
    }
    lines.truncate(PREFIXES as usize);
    lines.iter().enumerate().map(|(n, p)| format!("{p},carrier-{}\n", n % 3)).collect()
}

fn trunk(name: &str, interface: u16, peer: String) -> TrunkConfig {
    TrunkConfig {
        peers: vec![Peer { host: peer.into(), port: None, transport: None }],
        ..TrunkConfig::new(name, InterfaceId(interface))
    }
}

fn main() {
    let text = csv();
    let start = cpu_time();
    let table = PrefixTable::parse(&text, 10).expect("prefixes");
    let load = cpu_time() - start;
    println!(
        "prefix table: {} prefixes loaded in {:.2} s, {:.1} MB",
        table.len(),
        load.as_secs_f64(),
        table.memory_bytes() as f64 / 1e6
    );
    let numbers: Vec<String> = (0..LOOKUPS).map(|n| number(n * 5).to_string()).collect();
    let hits = numbers.iter().filter(|n| table.lookup(n).is_some()).count();
    let lookup = median_ns(LOOKUPS, |i| {
        black_box(table.lookup(black_box(&numbers[i])));
    });
    println!("prefix lookup: {lookup:.0} ns ({} % found)", hits * 100 / LOOKUPS as usize);

    let mut trunks: Vec<TrunkConfig> =
        (0..3).map(|n| trunk(&format!("carrier-{n}"), 1, format!("198.51.100.{n}"))).collect();
    let mut pbx = trunk("pbx", 0, "10.0.0.1".to_owned());
    pbx.sources = (0..200u8)
        .map(|n| Source {
            net: format!("10.{n}.0.0/16").parse().expect("net"),
            transport: None,
            port: None,
        })
        .collect();
    trunks.push(pbx);
    let config = RoutingConfig {
        trunks,
        routes: vec![RouteConfig {
            name: "lcr".into(),
            matches: RouteMatch::default(),
            target: RouteTarget::Table(Arc::new(table)),
            strip: 0,
            prefix: "".into(),
        }],
        ..RoutingConfig::default()
    };
    let now = Instant::now();
    let mut routing = Routing::new(Arc::new(Table::build(config, None, now).expect("table")), 1);
    let flow = Flow {
        interface: InterfaceId(0),
        transport: Transport::Udp,
        local: "10.0.0.254:5060".parse().expect("address"),
        remote: "10.77.1.2:5060".parse().expect("address"),
        conn: None,
    };
    let identify = median_ns(LOOKUPS, |_| {
        black_box(routing.identify(black_box(&flow)));
    });
    println!("identify a source among 203 networks: {identify:.0} ns");
    let source = routing.identify(&flow).expect("trunk").clone();
    let route = median_ns(LOOKUPS, |i| {
        let query = RouteQuery {
            ruri_user: &numbers[i],
            ruri_host: "sbc.example",
            from_user: "100",
            to_user: &numbers[i],
            ..RouteQuery::default()
        };
        let _plan = black_box(routing.route(now, &source, &query));
    });
    println!("route by prefix to a hop: {route:.0} ns");
}
