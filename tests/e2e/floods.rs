//! Floods and junk cost only themselves: broken TLS and WebSocket connections end alone, and no method
//! makes the node grow.
//!
//! `FLOOD_SECONDS` is how long each method floods: half a second in `make test`, 90 in `make soak`;
//! `FLOOD_METHODS` chooses among them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use sbc_tests::can_make_namespaces;
use sbc_tests::load::resident_kib;
use sbc_tests::net::{exchange, inside, socket_in};
use sbc_tests::root;

use crate::edge::Edge;

const SBC: &str = "10.1.0.1:5060";
const LIMIT: Duration = Duration::from_secs(30);

/// The load comes from one address, which is not to be banned for it.
const TRUSTED: &str = "\n[guard]\ntrusted = [\"10.1.0.10\"]\n[transport]\n\
     max-connections-per-source = 1000\nhandshake-timeout = \"2s\"\n";

fn request(method: &str, from: &str, n: usize) -> Vec<u8> {
    let transport = if from.ends_with(":5071") { "TCP" } else { "UDP" };
    format!(
        "{method} sip:alice@example.com SIP/2.0\r\n\
         Via: SIP/2.0/{transport} {from};branch=z9hG4bK{method}{n};rport\r\n\
         From: <sip:bob@example.com>;tag={n}\r\nTo: <sip:bob@example.com>\r\n\
         Call-ID: {method}-{n}\r\nCSeq: 1 {method}\r\nMax-Forwards: 70\r\nEvent: presence\r\n\
         Contact: <sip:bob@{from}>\r\nContent-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

/// A connection of somebody else, which must outlive all that happens.
struct Bystander {
    stream: TcpStream,
    asked: usize,
}

impl Bystander {
    fn new(edge: &Edge) -> Bystander {
        let stream = inside(&edge.net.ns("out"), || TcpStream::connect(SBC).expect("connect"));
        stream.set_read_timeout(Some(LIMIT)).expect("timeout");
        Bystander { stream, asked: 0 }
    }

    fn is_served(&mut self) {
        self.asked += 1;
        let options = request("OPTIONS", "10.1.0.10:5071", self.asked);
        self.stream.write_all(&options).expect("the connection lives");
        let mut text = String::new();
        while !text.contains("\r\n\r\n") {
            let mut buffer = [0; 4_096];
            let count = self.stream.read(&mut buffer).expect("an answer");
            assert!(count > 0, "the connection was closed");
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        assert!(text.starts_with("SIP/2.0 200"), "{text}");
    }
}

#[test]
fn broken_tls_and_websocket_connections_end_alone() {
    if !can_make_namespaces("junk connections") {
        return;
    }
    let edge = Edge::with("masquerade", TRUSTED);
    let mut bystander = Bystander::new(&edge);
    bystander.is_served();
    for (kind, count) in [("garbage", 120), ("churn", 120), ("frames", 40)] {
        let out = Command::new("ip")
            .args(["netns", "exec", &edge.net.ns("out"), "python3"])
            .arg(root().join("tests/scripts/junk.py"))
            .args(["10.1.0.1", "5061", kind, &count.to_string()])
            .output()
            .expect("python3");
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let errors = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(said.trim(), count.to_string(), "{kind}: {errors}");
        bystander.is_served();
        sbc_tests::wait_for("the connections to be gone", LIMIT, || {
            (edge.node.sum("sbc_stream_connections") <= 1.0).then_some(())
        });
    }
    assert_eq!(edge.node.sum("sbc_guard_bans"), 0.0);
    edge.node.stop();
}

/// Every method that there is, and one that there is not.
const METHODS: [&str; 15] = [
    "INVITE",
    "ACK",
    "BYE",
    "CANCEL",
    "REGISTER",
    "OPTIONS",
    "PRACK",
    "UPDATE",
    "INFO",
    "MESSAGE",
    "SUBSCRIBE",
    "NOTIFY",
    "REFER",
    "PUBLISH",
    "DANCE",
];

#[test]
fn no_method_makes_the_node_grow() {
    if !can_make_namespaces("method floods") {
        return;
    }
    let seconds: f64 =
        std::env::var("FLOOD_SECONDS").map_or(0.5, |s| s.parse().expect("FLOOD_SECONDS"));
    // Small tables and short timers: a flood fills them at once, and they are empty soon after.
    let extra = format!(
        "{TRUSTED}[sip]\nmax-transactions = 2000\nt1 = \"50ms\"\nt2 = \"200ms\"\nt4 = \"250ms\"\n"
    );
    let edge = Edge::with("masquerade", &extra);
    let pid = u32::try_from(edge.node.proc.pid().as_raw()).expect("pid");
    let socket = socket_in(&edge.net.ns("out"), "10.1.0.10:5062");
    let mut sent = 0;
    let mut flood = |method: &str, time: Duration| {
        let end = Instant::now() + time;
        while Instant::now() < end {
            for _ in 0..64 {
                sent += 1;
                // A full queue of the device drops, as on any wire.
                let _ = socket.send_to(&request(method, "10.1.0.10:5062", sent), SBC);
            }
        }
    };
    // The allocator and the sockets' queues reach their size with the first.
    for method in METHODS {
        flood(method, Duration::from_millis(200));
    }
    let before = resident_kib(pid);
    let chosen = std::env::var("FLOOD_METHODS").unwrap_or_else(|_| METHODS.join(","));
    for method in chosen.split(',') {
        assert!(METHODS.contains(&method), "FLOOD_METHODS: {method}");
        flood(method, Duration::from_secs_f64(seconds));
        let after = resident_kib(pid);
        eprintln!("{method}: {seconds} s, {before} KiB became {after} KiB");
        assert!(after <= before + before / 4 + 8_192, "{method}: {before} KiB became {after} KiB");
    }
    let mut asked = 0;
    sbc_tests::wait_for("an answer after the floods", LIMIT, || {
        asked += 1;
        is_answered(&edge, asked).then_some(())
    });
    edge.node.stop();
}

fn is_answered(edge: &Edge, n: usize) -> bool {
    let options = request("OPTIONS", "10.1.0.10:5063", n);
    exchange(&edge.net.ns("out"), "10.1.0.10:5063", SBC, &options).starts_with(b"SIP/2.0 200")
}
