//! STUN on the wire: the server on ports of its own, and phones behind a NAT that are kept reachable by
//! binding requests.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use sbc_core::digest::{Account, Answerer};
use sbc_core::stun;
use sbc_tests::net::{exchange, socket_in};
use sbc_tests::{can_make_namespaces, wait_for};

use crate::edge::Edge;

const SBC: &str = "10.1.0.1:5060";
const LIMIT: Duration = Duration::from_secs(20);

/// The address that an answer names: XOR-MAPPED-ADDRESS comes first, IPv4.
fn mapped(answer: &[u8]) -> SocketAddr {
    assert_eq!(answer[..2], [1, 1], "{answer:?}");
    assert_eq!(answer[20..26], [0, 0x20, 0, 8, 0, 1], "{answer:?}");
    let port = u16::from_be_bytes([answer[26], answer[27]]) ^ 0x2112;
    let cookie = [0x21, 0x12, 0xa4, 0x42];
    let ip = [0, 1, 2, 3].map(|n| answer[28 + n] ^ cookie[n]);
    SocketAddr::from((ip, port))
}

#[test]
fn rfc8489_a_stun_server_tells_who_is_behind_a_nat_its_public_address() {
    if !can_make_namespaces("stun server") {
        return;
    }
    let more = "\n[stun]\nlisten = [\"10.1.0.1:3478\", \"10.1.0.1:3479\"]\nper-source = 5\n";
    let edge = Edge::with("masquerade", more);
    let (home, out) = (edge.net.ns("home"), edge.net.ns("out"));
    let request = stun::request([1; 12]);
    for port in [3478, 3479] {
        let to = format!("10.1.0.1:{port}");
        let answer = exchange(&home, "192.168.7.10:5070", &to, &request);
        assert_eq!(mapped(&answer).ip().to_string(), "10.1.0.2", "the NAT's");
        assert_eq!(stun::response(&answer), Some([1; 12]), "with FINGERPRINT, from {to}");
    }
    // What must be understood and is not: 420 with its name.
    let odd = [&[0, 1, 0, 8][..], &request[4..20], &[0, 0x24, 0, 4, 1, 2, 3, 4]].concat();
    let refused = exchange(&home, "192.168.7.10:5071", "10.1.0.1:3478", &odd);
    assert_eq!(refused[..2], [1, 0x11]);
    assert_eq!(refused[24..28], [0, 0, 4, 20]);
    assert!(refused.ends_with(&[0, 0x0a, 0, 2, 0, 0x24, 0, 0]), "{refused:?}");
    // SIP is for the SIP port.
    let none =
        exchange(&home, "192.168.7.10:5072", "10.1.0.1:3478", b"OPTIONS sip:x SIP/2.0\r\n\r\n");
    assert_eq!(none, b"");
    // One source has its rate; another is served all the same.
    let flood = socket_in(&out, "10.1.0.10:5073");
    flood.set_read_timeout(Some(Duration::from_secs(1))).expect("timeout");
    for _ in 0..200 {
        flood.send_to(&request, "10.1.0.1:3478").expect("send");
    }
    let answered = std::iter::from_fn(|| flood.recv(&mut [0; 64]).ok()).count();
    assert!((10..=20).contains(&answered), "{answered} of 200");
    mapped(&exchange(&home, "192.168.7.10:5074", "10.1.0.1:3478", &request));
    let count = |result: &str| edge.node.metric("sbc_stun_server_datagrams", result);
    assert_eq!((count("unknown-attribute"), count("malformed"), count("unsent")), (1, 1, 0));
    assert_eq!(count("answered"), 3 + answered as u64);
    assert_eq!(count("limited"), 200 - answered as u64);
    edge.node.stop();
}

/// A phone in the clear with one socket, behind the NAT.
struct Phone {
    socket: UdpSocket,
    seq: u32,
}

impl Phone {
    fn new(edge: &Edge, address: &str) -> Phone {
        let socket = socket_in(&edge.net.ns("home"), address);
        socket.set_read_timeout(Some(LIMIT)).expect("timeout");
        Phone { socket, seq: 0 }
    }

    /// The next datagram for which `wanted` holds.
    fn receive(&self, wanted: impl Fn(&[u8]) -> bool) -> (Vec<u8>, SocketAddr) {
        loop {
            let mut data = [0; 4_096];
            let (length, from) = self.socket.recv_from(&mut data).expect("a datagram");
            if wanted(&data[..length]) {
                return (data[..length].to_vec(), from);
            }
        }
    }

    fn register(&mut self, authorization: &str) -> String {
        self.seq += 1;
        let (at, seq) = (self.socket.local_addr().expect("bound"), self.seq);
        let text = format!(
            "REGISTER sip:example.com SIP/2.0\r\n\
             Via: SIP/2.0/UDP {at};branch=z9hG4bKstun{seq};rport\r\nMax-Forwards: 70\r\n\
             From: <sip:alice@example.com>;tag=a\r\nTo: <sip:alice@example.com>\r\n\
             Call-ID: stun-phone\r\nCSeq: {seq} REGISTER\r\nContact: <sip:alice@{at}>\r\n\
             {authorization}Content-Length: 0\r\n\r\n"
        );
        self.socket.send_to(text.as_bytes(), SBC).expect("send");
        let (answer, _) = self.receive(|data| data.starts_with(b"SIP/2.0 "));
        String::from_utf8(answer).expect("text")
    }
}

#[test]
fn rfc5626_a_phone_behind_nat_is_kept_alive_by_stun_until_it_is_silent() {
    if !can_make_namespaces("stun keepalive") {
        return;
    }
    let edge = Edge::with_registrar(
        "masquerade",
        "keepalive = \"stun\"\nkeepalive-interval = \"2s\"\nkeepalive-misses = 2\n",
    );
    let mut phone = Phone::new(&edge, "192.168.7.10:5062");
    let challenge = phone.register("");
    let account =
        Account { username: "alice".to_owned(), realm: None, password: "secret".to_owned() };
    let offers = challenge.lines().filter_map(|l| l.strip_prefix("WWW-Authenticate: "));
    let mut answerer = Answerer::choose(offers, &account).expect("a challenge");
    let value = answerer.authorize("REGISTER", "sip:example.com", b"", "c0ffee");
    let ok = phone.register(&format!("Authorization: {value}\r\n"));
    assert!(ok.starts_with("SIP/2.0 200"), "{ok}");
    let total = || edge.node.ctl("registrations list")["total"].clone();
    assert_eq!(total(), 1);
    // It answers by what it would say to anybody; from the SBC's SIP port, through the NAT.
    let mut last = Vec::new();
    for _ in 0..3 {
        let (request, from) = phone.receive(stun::is_stun);
        assert_eq!(from.to_string(), SBC);
        assert_eq!(
            (&request[..2], request[20..24].to_vec()),
            (&[0, 1][..], vec![0x80, 0x28, 0, 4])
        );
        assert_ne!(request, last, "each is a transaction of its own");
        let answer = stun::answer(&request, from).expect("an answer").into_bytes();
        phone.socket.send_to(&answer, from).expect("send");
        last = request;
    }
    wait_for("the answers to be counted", LIMIT, || {
        (edge.node.sum("sbc_registrar_ping_answers") >= 3.0).then_some(())
    });
    assert_eq!(edge.node.sum("sbc_registrar_ping_misses"), 0.0);
    // An answer from another port than the one that was asked is nobody's.
    let (request, from) = phone.receive(stun::is_stun);
    let answer = stun::answer(&request, from).expect("an answer").into_bytes();
    let other = socket_in(&edge.net.ns("out"), "10.1.0.10:5062");
    other.send_to(&answer, SBC).expect("send");
    wait_for("the stray answer to be counted", LIMIT, || {
        (edge.node.sum("sbc_stun_stray_responses") >= 1.0).then_some(())
    });
    // From here on it is silent: asked again, given up, and gone after two of these.
    wait_for("the silent phone to be dropped", Duration::from_secs(40), || {
        (total() == 0).then_some(())
    });
    assert_eq!(edge.node.sum("sbc_registrations_gone"), 1.0);
    edge.node.stop();
}
