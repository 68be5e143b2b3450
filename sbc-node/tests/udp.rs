//! UDP of a shard on real sockets: both families, hand-over between shards, ICMP, bad input.

mod common;

use std::net::UdpSocket;
use std::sync::mpsc;
use std::time::Instant;

use bytes::Bytes;
use common::{Bench, Echo, PATIENCE, eventually, free_port, options};
use sbc_core::core::{SendError, SendToken};
use sbc_core::media::Anchor;
use sbc_core::net::{InterfaceId, Transport};
use sbc_node::shard::command::Command;
use sbc_node::transport::Settings;
use sbc_node::transport::mmsg::{RecvBatch, SendBatch};
use sbc_node::transport::udp::UdpListener;

fn client(ip: &str) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn answer(socket: &UdpSocket) -> String {
    let mut buffer = [0; 2_048];
    let (count, _) = socket.recv_from(&mut buffer).unwrap();
    String::from_utf8(buffer[..count].to_vec()).unwrap()
}

#[test]
fn answers_come_from_the_address_listened_on_ipv4_and_ipv6() {
    let listen = vec![(Transport::Udp, "127.0.0.1"), (Transport::Udp, "::1")];
    let bench = Bench { listen, ..Bench::default() }.start();
    for (_, _, local) in &bench.locals {
        let socket = client(&local.ip().to_string());
        socket.connect(local).unwrap();
        socket.send(options(0).as_bytes()).unwrap();
        assert!(answer(&socket).starts_with("SIP/2.0 200 OK\r\n"));
    }
    assert_eq!(bench.total(|s| s.udp_in.get()), 2);
}

#[test]
fn each_message_is_handled_by_its_own_shard_whichever_socket_it_came_by() {
    let bench = Bench { shards: 3, ..Bench::default() }.start();
    let socket = client("127.0.0.1");
    for n in 0..30 {
        socket.send_to(options(n % 3).as_bytes(), bench.local(Transport::Udp)).unwrap();
        let expected = format!("X-Shard: {}\r\n", n % 3);
        assert!(answer(&socket).contains(&expected));
    }
    // One client address lands on one socket: two thirds were somebody else's.
    assert_eq!(bench.total(|s| s.handed_over.get()), 20);
}

#[test]
fn a_full_shard_gets_its_callers_a_503() {
    let bench = Bench { shards: 2, messages_max: 1, ..Bench::default() }.start();
    let socket = client("127.0.0.1");
    socket.connect(bench.local(Transport::Udp)).unwrap();
    // Without a shard in the message, whoever received it answers.
    socket.send(b"OPTIONS sip:x SIP/2.0\r\n\r\n").unwrap();
    let receiver = usize::from(answer(&socket).contains("X-Shard: 1"));
    let other = 1 - receiver;
    let (open, gate) = mpsc::channel::<()>();
    let (there, here) = mpsc::channel();
    let job = Box::new(move |_: &mut Echo, _: Instant, _: &mut dyn Anchor| {
        there.send(()).unwrap();
        gate.recv_timeout(PATIENCE).unwrap();
    });
    bench.handles[other].command(Command::Job(job)).unwrap();
    here.recv_timeout(PATIENCE).unwrap();
    for _ in 0..20 {
        socket.send(options(other).as_bytes()).unwrap();
    }
    for _ in 0..19 {
        assert!(answer(&socket).starts_with("SIP/2.0 503"));
    }
    open.send(()).unwrap();
    assert!(answer(&socket).contains(&format!("X-Shard: {other}")));
    assert_eq!(bench.stats[receiver].handover_full.get(), 19);
}

#[test]
fn an_icmp_error_names_the_message_that_could_not_be_delivered() {
    let bench = Bench::default().start();
    let nobody = format!("127.0.0.1:{}", free_port(Transport::Udp, "127.0.0.1")).parse().unwrap();
    let listening = client("127.0.0.1");
    bench.send(0, Transport::Udp, listening.local_addr().unwrap(), &options(0), 1);
    bench.send(0, Transport::Udp, nobody, &options(0), 2);
    let failed = eventually("the failure", || {
        let failed = bench.ask(0, |m| m.failed.clone());
        (!failed.is_empty()).then_some(failed)
    });
    assert_eq!(failed, [(SendToken(2), SendError::Unreachable)]);
    assert!(answer(&listening).starts_with("OPTIONS "));
}

/// The kernel tells of each refusal once, at whatever is sent next: that datagram goes all the same.
#[test]
fn errors_of_a_closed_port_cost_no_datagram_to_an_open_one() {
    let local = "127.0.0.1:0".parse().expect("address");
    let mut listener =
        UdpListener::bind(InterfaceId(0), local, &Settings::default()).expect("bind");
    let open = client("127.0.0.1");
    let closed = client("127.0.0.1").local_addr().expect("was bound");
    let to = open.local_addr().expect("bound");
    let (mut batch, mut failed) = (SendBatch::default(), Vec::new());
    let (mut refused, mut sent) = (0, 0_u64);
    for n in 0..100 {
        // One, and many before it: each raises an error of its own.
        for _ in 0..=n % 5 {
            refused += 1;
            let text = Bytes::from(format!("to nobody {refused}"));
            assert!(listener.send(closed, text, Some(SendToken(refused))));
        }
        sent += 1;
        assert!(listener.send(to, Bytes::from(sent.to_string()), None));
        let flushed = listener.flush(&mut batch, &mut failed);
        assert_eq!((flushed.errors, listener.queued()), (0, 0));
        assert_eq!(answer(&open), sent.to_string());
    }
    assert_eq!(failed, [], "nothing is said to have failed that left");
    listener.drain_errors(&mut RecvBatch::default(), &mut failed, &mut Vec::new());
    let mut told: Vec<u64> = failed.iter().map(|(token, _)| token.0).collect();
    told.sort_unstable();
    assert_eq!(told, (1..=refused).collect::<Vec<u64>>(), "each by its own error");
}

#[test]
fn what_is_too_large_for_udp_fails_at_once() {
    let bench = Bench::default().start();
    let listening = client("127.0.0.1");
    let large = "x".repeat(70_000);
    bench.send(0, Transport::Udp, listening.local_addr().unwrap(), &large, 3);
    let failed = eventually("the failure", || {
        let failed = bench.ask(0, |m| m.failed.clone());
        (!failed.is_empty()).then_some(failed)
    });
    assert_eq!(failed, [(SendToken(3), SendError::TooLarge)]);
}

#[test]
fn keepalives_are_counted_and_never_reach_the_core() {
    let bench = Bench::default().start();
    let socket = client("127.0.0.1");
    for keepalive in ["\r\n\r\n", "\0", ""] {
        socket.send_to(keepalive.as_bytes(), bench.local(Transport::Udp)).unwrap();
    }
    socket.send_to(options(0).as_bytes(), bench.local(Transport::Udp)).unwrap();
    answer(&socket);
    assert_eq!(bench.total(|s| s.keepalives.get()), 3);
    assert_eq!(bench.ask(0, |m| m.messages.len()), 1);
}

#[test]
fn a_burst_is_answered_whole() {
    let bench = Bench { shards: 2, ..Bench::default() }.start();
    let socket = client("127.0.0.1");
    for n in 0..150 {
        socket.send_to(options(n).as_bytes(), bench.local(Transport::Udp)).unwrap();
    }
    for _ in 0..150 {
        assert!(answer(&socket).starts_with("SIP/2.0 200"));
    }
    assert_eq!(bench.total(|s| s.udp_kernel_drops.get()), 0);
}
