//! RFC 3263 against a name server on loopback.

mod common;
mod zone;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Bench, eventually};
use rand::SeedableRng;
use rand::rngs::StdRng;
use sbc_core::core::{ResolveError, ResolveQuery};
use sbc_core::net::{InterfaceId, Target, Transport};
use sbc_node::resolve::{Answer, Key, Usable, dns};
use sbc_node::shard::command::Command;
use zone::{A, NAPTR, SRV, Zone, naptr, srv};

/// The type of an IPv6 address record (RFC 3596 §2.1).
const AAAA: u16 = 28;

fn usable() -> Usable {
    let both = Usable::default().with(Transport::Udp, true).with(Transport::Tcp, true);
    both.with(Transport::Udp, false)
}

fn key(host: &str) -> Key {
    Key { host: Arc::from(host), port: None, transport: None, sips: false, usable: usable() }
}

fn settings(server: SocketAddr) -> dns::Settings {
    dns::Settings { servers: vec![server], timeout: Duration::from_millis(200), attempts: 1 }
}

fn ask(zone: &Zone, key: Key) -> Answer {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = zone.serve();
    runtime.block_on(async {
        let client = dns::client(&settings(server)).unwrap();
        dns::lookup(&client, key).await
    })
}

fn targets(answer: &Answer) -> Vec<String> {
    let plan = answer.result.as_ref().unwrap();
    let targets = plan.targets(&mut StdRng::seed_from_u64(1));
    targets.iter().map(|t: &Target| format!("{} {}", t.transport, t.addr)).collect()
}

#[test]
fn rfc3263_4_1_naptr_chooses_the_transport_and_srv_the_servers() {
    let zone = Zone::new(&[
        ("example.com", NAPTR, 60, naptr(20, 0, "SIP+D2U", "_sip._udp.example.com")),
        ("example.com", NAPTR, 60, naptr(10, 0, "SIP+D2T", "_sip._tcp.example.com")),
        ("example.com", NAPTR, 60, naptr(5, 0, "SIPS+D2T", "_sips._tcp.example.com")),
        ("_sip._tcp.example.com", SRV, 30, srv(20, 0, 5062, "b.example.com")),
        ("_sip._tcp.example.com", SRV, 30, srv(10, 0, 5061, "a.example.com")),
        ("_sip._udp.example.com", SRV, 90, srv(0, 0, 5060, "a.example.com")),
        ("a.example.com", A, 300, vec![192, 0, 2, 1]),
        ("b.example.com", A, 300, vec![192, 0, 2, 2]),
    ]);
    let answer = ask(&zone, key("example.com"));
    let expected = ["tcp 192.0.2.1:5061", "tcp 192.0.2.2:5062", "udp 192.0.2.1:5060"];
    assert_eq!(targets(&answer), expected);
    assert!(answer.ttl <= Duration::from_secs(30) && answer.ttl > Duration::from_secs(25));
}

#[test]
fn rfc3263_4_1_without_naptr_the_srv_of_each_transport_is_tried() {
    let zone = Zone::new(&[
        ("_sip._tcp.example.com", SRV, 30, srv(0, 0, 5070, "a.example.com")),
        ("a.example.com", A, 300, vec![192, 0, 2, 1]),
    ]);
    assert_eq!(targets(&ask(&zone, key("example.com"))), ["tcp 192.0.2.1:5070"]);
}

#[test]
fn rfc3263_4_2_without_srv_the_addresses_of_both_families_at_the_default_port() {
    let v6: std::net::Ipv6Addr = "2001:db8::1".parse().unwrap();
    let zone = Zone::new(&[
        ("example.com", A, 300, vec![192, 0, 2, 1]),
        ("example.com", AAAA, 300, v6.octets().to_vec()),
    ]);
    let mut found = targets(&ask(&zone, key("example.com")));
    found.sort();
    assert_eq!(found, ["udp 192.0.2.1:5060", "udp [2001:db8::1]:5060"]);
    let tcp = Key { transport: Some(Transport::Tcp), ..key("example.com") };
    assert_eq!(targets(&ask(&zone, tcp)), ["tcp 192.0.2.1:5060"], "no TCP over IPv6 here");
}

#[test]
fn rfc3263_4_2_an_explicit_port_rules_out_srv() {
    let zone = Zone::new(&[
        ("_sip._udp.example.com", SRV, 30, srv(0, 0, 5070, "a.example.com")),
        ("a.example.com", A, 300, vec![192, 0, 2, 1]),
        ("example.com", A, 300, vec![192, 0, 2, 9]),
    ]);
    let with_port = Key { port: Some(5099), ..key("example.com") };
    assert_eq!(targets(&ask(&zone, with_port)), ["udp 192.0.2.9:5099"]);
}

#[test]
fn a_name_that_does_not_exist_and_a_server_that_does_not_answer_differ() {
    let answer = ask(&Zone::new(&[]), key("nowhere.example"));
    assert_eq!(answer.result, Err(ResolveError::NotFound));
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async {
        let client = dns::client(&settings(silent.local_addr().unwrap())).unwrap();
        let one = Key { port: Some(5060), ..key("example.com") };
        dns::lookup(&client, one).await
    });
    assert_eq!(answer.result, Err(ResolveError::Timeout));
    assert!(answer.ttl <= Duration::from_secs(3));
}

#[test]
fn a_shard_gets_its_answer_without_waiting_and_the_next_from_its_cache() {
    let zone = Zone::new(&[("example.com", A, 300, vec![192, 0, 2, 1])]);
    let server = zone.serve();
    let (lookups, requests) = tokio::sync::mpsc::channel(16);
    let bench = Bench { resolver: Some(lookups), ..Bench::default() }.start();
    let handle = bench.handles[0].clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.spawn(async move {
        let client = Arc::new(dns::client(&settings(server)).unwrap());
        let deliver = move |_, answer| {
            assert!(handle.command(Command::Resolved(answer)).is_ok());
            std::future::ready(())
        };
        dns::serve(client, requests, deliver).await;
    });
    let query = |host: &str| ResolveQuery {
        host: host.to_owned(),
        port: None,
        transport: None,
        sips: false,
        interface: InterfaceId(0),
    };
    bench.resolve(1, query("example.com"));
    eventually("the answer", || bench.ask(0, |m| (m.resolved.len() == 1).then_some(())));
    let asked = zone.asked.load(Ordering::Relaxed);
    bench.resolve(2, query("EXAMPLE.com"));
    bench.resolve(3, query("192.0.2.7"));
    eventually("the answers", || bench.ask(0, |m| (m.resolved.len() == 3).then_some(())));
    assert_eq!(zone.asked.load(Ordering::Relaxed), asked);
    let found = bench.ask(0, |m| std::mem::take(&mut m.resolved));
    let addresses: Vec<String> = found
        .iter()
        .map(|(id, result)| format!("{} {}", id.0, result.as_ref().unwrap()[0].addr))
        .collect();
    assert_eq!(addresses, ["1 192.0.2.1:5060", "2 192.0.2.1:5060", "3 192.0.2.7:5060"]);
    let stats = &bench.stats[0];
    assert_eq!((stats.resolve_misses.get(), stats.resolve_hits.get()), (1, 2));
}
