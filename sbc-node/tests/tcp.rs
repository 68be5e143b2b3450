//! TCP of a shard on real sockets: framing, keepalive, reuse, limits, time-outs, hand-over.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use common::{Bench, PATIENCE, eventually, free_port, options};
use sbc_core::core::{SendError, SendToken};
use sbc_core::net::Transport;
use sbc_core::sip::Limits;
use sbc_node::transport::Settings;

fn tcp(settings: Settings) -> Bench {
    let listen = vec![(Transport::Tcp, "127.0.0.1")];
    Bench { listen, transport: settings, ..Bench::default() }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Reads until the text ends with `end`.
fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(end.as_bytes()) {
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

/// True once the peer has closed or reset.
fn closed(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 1_024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) => return e.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn ipv6_and_ipv4_answer_on_the_same_connection() {
    let listen = vec![(Transport::Tcp, "127.0.0.1"), (Transport::Tcp, "::1")];
    let bench = Bench { listen, ..Bench::default() }.start();
    for (_, _, local) in &bench.locals {
        let mut stream = connect(*local);
        stream.write_all(options(0).as_bytes()).unwrap();
        assert!(read_until(&mut stream, "\r\n\r\n").starts_with("SIP/2.0 200 OK"));
    }
    assert_eq!(bench.total(|s| s.accepted.get()), 2);
}

#[test]
fn a_message_cut_into_segments_and_two_in_one_segment_are_the_same() {
    let bench = tcp(Settings::default()).start();
    let mut stream = connect(bench.local(Transport::Tcp));
    let two = [options(0), options(0)].concat();
    let (first, second) = two.as_bytes().split_at(options(0).len() / 2);
    stream.write_all(first).unwrap();
    // The shard has the connection before the second half leaves.
    eventually("the connection", || (bench.total(|s| s.connections.get()) == 1).then_some(()));
    stream.write_all(second).unwrap();
    read_until(&mut stream, "\r\n\r\n");
    read_until(&mut stream, "\r\n\r\n");
    assert_eq!(bench.ask(0, |m| m.messages.len()), 2);
}

#[test]
fn rfc5626_a_ping_gets_a_pong() {
    let bench = tcp(Settings::default()).start();
    let mut stream = connect(bench.local(Transport::Tcp));
    stream.write_all(b"\r\n\r\n").unwrap();
    let mut pong = [0; 2];
    stream.read_exact(&mut pong).unwrap();
    assert_eq!(&pong, b"\r\n");
    assert_eq!(bench.total(|s| s.keepalives.get()), 1);
}

#[test]
fn a_source_over_its_limit_is_turned_away_and_counted() {
    let settings = Settings { connections_per_source_max: 2, ..Settings::default() };
    let bench = tcp(settings).start();
    let address = bench.local(Transport::Tcp);
    let mut kept: Vec<TcpStream> = (0..2).map(|_| connect(address)).collect();
    for stream in &mut kept {
        stream.write_all(options(0).as_bytes()).unwrap();
        read_until(stream, "\r\n\r\n");
    }
    assert!(closed(&mut connect(address)));
    assert_eq!(bench.total(|s| s.refused.get()), 1);
    // Room again once one of them leaves.
    drop(kept.pop());
    eventually("a free place", || (bench.total(|s| s.connections.get()) == 1).then_some(()));
    let mut again = connect(address);
    again.write_all(options(0).as_bytes()).unwrap();
    read_until(&mut again, "\r\n\r\n");
}

#[test]
fn half_a_message_and_silence_are_timed_out() {
    let settings = Settings {
        half_message_timeout: Duration::from_millis(100),
        idle_timeout: Duration::from_millis(600),
        ..Settings::default()
    };
    let bench = tcp(settings).start();
    let mut half = connect(bench.local(Transport::Tcp));
    half.write_all(b"OPTIONS sip:x SIP/2.0\r\n").unwrap();
    let mut idle = connect(bench.local(Transport::Tcp));
    assert!(closed(&mut half));
    assert_eq!(bench.total(|s| s.half_messages.get()), 1);
    assert!(closed(&mut idle));
    assert_eq!(bench.total(|s| s.idle_closed.get()), 1);
    assert_eq!(bench.ask(0, |m| m.closed), 2);
}

#[test]
fn a_connection_that_brings_no_message_is_closed_whatever_else_it_sends() {
    let settings =
        Settings { first_message_timeout: Some(Duration::from_millis(300)), ..Settings::default() };
    let bench = tcp(settings).start();
    let mut good = connect(bench.local(Transport::Tcp));
    good.write_all(options(0).as_bytes()).unwrap();
    read_until(&mut good, "\r\n\r\n");
    let mut silent = connect(bench.local(Transport::Tcp));
    let mut pings = connect(bench.local(Transport::Tcp));
    pings.write_all(b"\r\n\r\n").unwrap();
    read_until(&mut pings, "\r\n");
    assert!(closed(&mut silent) && closed(&mut pings));
    assert_eq!(bench.total(|s| s.silent_closed.get()), 2);
    good.write_all(options(0).as_bytes()).unwrap();
    read_until(&mut good, "\r\n\r\n");
}

#[test]
fn too_many_bytes_of_unfinished_messages_cost_the_slowest_its_connection() {
    let settings = Settings { unfinished_bytes_max: 10_000, ..Settings::default() };
    let unfinished = settings.unfinished.clone();
    let bench = tcp(settings).start();
    let half = format!("OPTIONS sip:x SIP/2.0\r\nX-Long: {}", "x".repeat(3_000));
    let mut streams = Vec::new();
    for n in 1..=3 {
        let mut stream = connect(bench.local(Transport::Tcp));
        stream.write_all(half.as_bytes()).unwrap();
        streams.push(stream);
        eventually("the bytes", || (unfinished.bytes() == n * half.len()).then_some(()));
    }
    assert_eq!(bench.total(|s| s.unfinished_evicted.get()), 0);
    let mut last = connect(bench.local(Transport::Tcp));
    last.write_all(half.as_bytes()).unwrap();
    assert!(closed(&mut streams[0]), "the first has been at it longest");
    assert_eq!(bench.total(|s| s.unfinished_evicted.get()), 1);
    assert_eq!(unfinished.bytes(), 3 * half.len());
    // Whole messages pass meanwhile, and what is ended is given back.
    let mut good = connect(bench.local(Transport::Tcp));
    good.write_all(options(0).as_bytes()).unwrap();
    read_until(&mut good, "\r\n\r\n");
    drop((streams, last));
    eventually("nothing to be held", || (unfinished.bytes() == 0).then_some(()));
}

#[test]
fn bad_framing_is_answered_and_ends_the_connection() {
    let limits = Limits { body_bytes_max: 1_000, ..Limits::default() };
    let bench = tcp(Settings { limits, ..Settings::default() }).start();
    let mut stream = connect(bench.local(Transport::Tcp));
    let request = "OPTIONS sip:x SIP/2.0\r\nVia: SIP/2.0/TCP 127.0.0.1;branch=z9hG4bK1\r\n\
         From: <sip:a@x>;tag=1\r\nTo: <sip:b@x>\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\n\
         Content-Length: nonsense\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let answer = read_until(&mut stream, "\r\n\r\n");
    assert!(answer.starts_with("SIP/2.0 400 "), "{answer}");
    assert!(closed(&mut stream));
    let mut garbage = connect(bench.local(Transport::Tcp));
    garbage.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc").unwrap();
    assert!(closed(&mut garbage));
    assert_eq!(bench.total(|s| s.framing_errors.get()), 2);
}

#[test]
fn requests_to_one_target_share_a_connection_and_its_end_is_heard() {
    let bench = tcp(Settings::default()).start();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    bench.send(0, Transport::Tcp, address, &options(0), 1);
    bench.send(0, Transport::Tcp, address, &options(0), 2);
    let (mut stream, from) = server.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(from.ip(), bench.local(Transport::Tcp).ip());
    read_until(&mut stream, "\r\n\r\n");
    read_until(&mut stream, "\r\n\r\n");
    eventually("one connection", || (bench.total(|s| s.opened.get()) == 1).then_some(()));
    // The peer's own requests come back on it.
    stream.write_all(options(0).as_bytes()).unwrap();
    read_until(&mut stream, "\r\n\r\n");
    drop(stream);
    eventually("the close", || bench.ask(0, |m| (m.closed == 1).then_some(())));
    bench.send(0, Transport::Tcp, address, &options(0), 3);
    server.accept().unwrap();
    eventually("a second one", || (bench.total(|s| s.opened.get()) == 2).then_some(()));
}

#[test]
fn a_refused_connection_fails_every_message_that_waited_for_it() {
    let bench = tcp(Settings::default()).start();
    let port = free_port(Transport::Tcp, "127.0.0.1");
    let nobody = SocketAddr::from(([127, 0, 0, 1], port));
    bench.send(0, Transport::Tcp, nobody, &options(0), 1);
    let failed = eventually("the failure", || {
        let failed = bench.ask(0, |m| m.failed.clone());
        (!failed.is_empty()).then_some(failed)
    });
    assert_eq!(failed, [(SendToken(1), SendError::Unreachable)]);
    assert_eq!(bench.total(|s| s.connect_failures.get()), 1);
}

#[test]
fn a_peer_that_does_not_read_fills_its_own_queue_only() {
    let settings = Settings { write_queue_bytes_max: 4_096, ..Settings::default() };
    let bench = tcp(settings).start();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let large = "x".repeat(4_000);
    let full = eventually("a full queue", || {
        bench.send(0, Transport::Tcp, address, &large, 1);
        bench.ask(0, |m| m.failed.first().copied())
    });
    assert_eq!(full, (SendToken(1), SendError::Full));
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    bench.send(0, Transport::Tcp, other.local_addr().unwrap(), &options(0), 2);
    let (mut stream, _) = other.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    read_until(&mut stream, "\r\n\r\n");
}

#[test]
fn a_call_of_another_shard_is_answered_over_the_connection_it_came_by() {
    let listen = vec![(Transport::Tcp, "127.0.0.1")];
    let bench = Bench { shards: 3, listen, ..Bench::default() }.start();
    let mut stream = connect(bench.local(Transport::Tcp));
    for n in 0..9 {
        stream.write_all(options(n % 3).as_bytes()).unwrap();
        let answer = read_until(&mut stream, "\r\n\r\n");
        assert!(answer.contains(&format!("X-Shard: {}\r\n", n % 3)), "{answer}");
    }
    assert_eq!(bench.total(|s| s.handed_over.get()), 6);
    drop(stream);
    // All three had used it.
    for shard in 0..3 {
        eventually("the close", || bench.ask(shard, |m| (m.closed == 1).then_some(())));
    }
}

/// A peer that answers and goes has answered.
#[test]
fn what_a_peer_said_last_is_heard_before_that_it_is_gone() {
    let listen = vec![(Transport::Tcp, "127.0.0.1")];
    let bench = Bench { shards: 2, listen, ..Bench::default() }.start();
    let mut stream = connect(bench.local(Transport::Tcp));
    stream.write_all(options(0).as_bytes()).unwrap();
    read_until(&mut stream, "\r\n\r\n");
    let owner = usize::from(bench.stats[1].connections.get() == 1);
    let other = 1 - owner;
    let held = bench.hold(other);
    stream.write_all(options(other).repeat(5).as_bytes()).unwrap();
    drop(stream);
    eventually("the close", || bench.ask(owner, |m| (m.closed == 1).then_some(())));
    drop(held);
    eventually("the news of it", || bench.ask(other, |m| (m.closed == 1).then_some(())));
    let (heard, all) = bench.ask(other, |m| (m.heard, m.messages.len()));
    assert_eq!((heard, heard >= 5), (all, true));
}
