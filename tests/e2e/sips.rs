//! SIPS end to end (RFC 5630): phones over TLS that register and call by `sips:` URIs; every packet of it
//! is captured, and none of them is SIP in the clear.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use sbc_core::digest::{Account, Answerer};
use sbc_tests::can_make_namespaces;
use sbc_tests::capture::Capture;
use sbc_tests::net::exchange;

use crate::edge::Edge;

const LIMIT: Duration = Duration::from_secs(15);
const SDP: &str = "v=0\r\no=x 1 1 IN IP4 10.1.0.10\r\ns=-\r\nc=IN IP4 10.1.0.10\r\nt=0 0\r\n\
                   m=audio 40000 RTP/AVP 8\r\na=rtpmap:8 PCMA/8000\r\n";

/// The first value of a header; empty without one.
fn header<'a>(message: &'a str, name: &str) -> &'a str {
    let of_name = |line: &&str| line.split_once(':').is_some_and(|(n, _)| n == name);
    message.lines().find(of_name).and_then(|l| l.split_once(": ")).map_or("", |(_, v)| v)
}

/// A phone at the end of a TLS connection that it made.
struct Phone {
    child: Child,
    input: ChildStdin,
    heard: Receiver<String>,
    user: &'static str,
    seq: u32,
}

impl Drop for Phone {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Phone {
    fn new(edge: &Edge, user: &'static str) -> Phone {
        let ca = edge.dir.path().join("sbc.pem");
        let mut child = Command::new("ip")
            .args(["netns", "exec", &edge.net.ns("out"), "openssl", "s_client", "-quiet"])
            .args(["-connect", "10.1.0.1:5061", "-verify_return_error", "-CAfile"])
            .arg(ca)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl");
        let input = child.stdin.take().expect("stdin");
        let mut output = child.stdout.take().expect("stdout");
        let (told, heard) = channel();
        std::thread::spawn(move || {
            let mut data = String::new();
            let mut chunk = [0; 4_096];
            while let Ok(count @ 1..) = output.read(&mut chunk) {
                data.push_str(&String::from_utf8_lossy(&chunk[..count]));
                while let Some((head, rest)) = data.split_once("\r\n\r\n") {
                    let length: usize = header(head, "Content-Length").trim().parse().unwrap_or(0);
                    if rest.len() < length {
                        break;
                    }
                    let whole = head.len() + 4 + length;
                    if told.send(data[..whole].to_owned()).is_err() {
                        return;
                    }
                    data.drain(..whole);
                }
            }
        });
        Phone { child, input, heard, user, seq: 0 }
    }

    fn send(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).expect("the connection lives");
        self.input.flush().expect("the connection lives");
    }

    /// The next message that begins so; provisional responses are passed over.
    fn expect(&self, start: &str) -> String {
        let end = Instant::now() + LIMIT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let message = self.heard.recv_timeout(left);
            let message =
                message.unwrap_or_else(|e| panic!("{} waits for {start}: {e}", self.user));
            if message.starts_with(start) {
                return message;
            }
            assert!(
                message.starts_with("SIP/2.0 1"),
                "{} wants {start}, got\n{message}",
                self.user
            );
        }
    }

    /// A request of its own; `to` may have a tag.
    fn request(&mut self, method: &str, uri: &str, to: &str, more: &str, body: &str) {
        if method != "ACK" {
            self.seq += 1;
        }
        let (user, seq) = (self.user, self.seq);
        let kind = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
        let call = if method == "REGISTER" { "register" } else { "call" };
        // The ACK of a refusal has the branch of its INVITE (RFC 3261 §17.1.1.3).
        let branch = format!("z9hG4bK{user}{seq}");
        let text = format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/TLS 10.1.0.10:5061;branch={branch};rport\r\n\
             Max-Forwards: 70\r\nFrom: <sips:{user}@example.com>;tag={user}\r\nTo: {to}\r\n\
             Call-ID: {call}-{user}\r\nCSeq: {seq} {method}\r\n\
             Contact: <sips:{user}@10.1.0.10:5061>\r\n{more}{kind}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.send(&text);
    }

    /// The same with credentials for a challenge.
    fn answered(&mut self, challenge: &str, method: &str, uri: &str, to: &str, body: &str) {
        let (asks, gives) = match method {
            "REGISTER" => ("WWW-Authenticate", "Authorization"),
            _ => ("Proxy-Authenticate", "Proxy-Authorization"),
        };
        let value = credentials(challenge, asks, self.user, method, uri);
        self.request(method, uri, to, &format!("{gives}: {value}\r\n"), body);
    }

    fn register(&mut self) -> String {
        let (uri, to) = ("sips:example.com", format!("<sips:{}@example.com>", self.user));
        self.request("REGISTER", uri, &to, "", "");
        let challenge = self.expect("SIP/2.0 401");
        self.answered(&challenge, "REGISTER", uri, &to, "");
        self.expect("SIP/2.0 200")
    }

    /// Calls a URI, with credentials when it is asked for them.
    fn call(&mut self, uri: &str) {
        let to = format!("<{uri}>");
        self.request("INVITE", uri, &to, "", SDP);
        let challenge = self.expect("SIP/2.0 407");
        self.request("ACK", uri, header(&challenge, "To"), "", "");
        self.answered(&challenge, "INVITE", uri, &to, SDP);
    }

    /// Answers a request that came.
    fn answer(&mut self, request: &str, body: &str) {
        let kind = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
        let via: String = request
            .lines()
            .filter(|l| l.starts_with("Via: ") || l.starts_with("Record-Route: "))
            .map(|l| format!("{l}\r\n"))
            .collect();
        let to = header(request, "To");
        let tag = if to.contains(";tag=") { "" } else { ";tag=callee" };
        let text = format!(
            "SIP/2.0 200 OK\r\n{via}From: {}\r\nTo: {to}{tag}\r\nCall-ID: {}\r\nCSeq: {}\r\n\
             Contact: <sips:{}@10.1.0.10:5061>\r\n{kind}Content-Length: {}\r\n\r\n{body}",
            header(request, "From"),
            header(request, "Call-ID"),
            header(request, "CSeq"),
            self.user,
            body.len()
        );
        self.send(&text);
    }
}

fn credentials(challenge: &str, asks: &str, user: &str, method: &str, uri: &str) -> String {
    let account = Account { username: user.to_owned(), realm: None, password: "secret".to_owned() };
    let offers = challenge.lines().filter_map(|l| l.strip_prefix(asks)?.strip_prefix(": "));
    let mut answerer = Answerer::choose(offers, &account).expect("a challenge");
    answerer.authorize(method, uri, b"", "c0ffee")
}

const OURS: &str = "<sips:10.1.0.1:5061>";

#[test]
fn rfc5630_a_sips_call_between_phones_is_never_seen_in_the_clear() {
    if !can_make_namespaces("sips") {
        return;
    }
    let edge = Edge::with("masquerade", "");
    let capture = Capture::start(&edge.net.ns("sbc"), edge.dir.path(), "br0");
    let (mut alice, mut bob) = (Phone::new(&edge, "alice"), Phone::new(&edge, "bob"));
    let ok = alice.register();
    assert!(header(&ok, "Contact").starts_with("<sips:alice@10.1.0.10:5061>"), "{ok}");
    bob.call("sips:alice@example.com");
    let invite = alice.expect("INVITE sips:alice@10.1.0.10:5061 ");
    assert_eq!(header(&invite, "Contact"), OURS);
    assert!(header(&invite, "Via").starts_with("SIP/2.0/TLS 10.1.0.1:5061;"), "{invite}");
    assert!(header(&invite, "To").starts_with("<sips:alice@"), "{invite}");
    alice.answer(&invite, SDP);
    let ok = bob.expect("SIP/2.0 200");
    assert_eq!(header(&ok, "Contact"), OURS);
    let to = header(&ok, "To").to_owned();
    bob.request("ACK", "sips:10.1.0.1:5061", &to, "", "");
    alice.expect("ACK sips:alice@10.1.0.10:5061 ");
    bob.request("BYE", "sips:10.1.0.1:5061", &to, "", "");
    let bye = alice.expect("BYE sips:alice@10.1.0.10:5061 ");
    alice.answer(&bye, "");
    bob.expect("SIP/2.0 200");
    let pcap = capture.stop();
    assert!(pcap.count("tls && tcp.port == 5061") > 10);
    assert_eq!(pcap.count("udp.port == 5060 || tcp.port == 5060"), 0);
    assert!(!pcap.contains("alice@example.com"), "SIP in the clear");
    let cdrs = edge.node.wait_cdrs(1);
    assert_eq!(cdrs[0]["status"], 200, "{}", cdrs[0]);
    edge.node.stop();
}

#[test]
fn rfc5630_a_phone_in_the_clear_is_no_way_for_a_sips_call() {
    if !can_make_namespaces("sips refused") {
        return;
    }
    let edge = Edge::with("masquerade", "");
    let out = edge.net.ns("out");
    // Alice registers over UDP: by a sips Contact she may not.
    let register = |contact: &str, seq: u32, more: &str| {
        let text = format!(
            "REGISTER sip:example.com SIP/2.0\r\n\
             Via: SIP/2.0/UDP 10.1.0.10:5066;branch=z9hG4bKclear{seq};rport\r\nMax-Forwards: 70\r\n\
             From: <sip:alice@example.com>;tag=a\r\nTo: <sip:alice@example.com>\r\n\
             Call-ID: clear\r\nCSeq: {seq} REGISTER\r\nContact: <{contact}>\r\n{more}\
             Content-Length: 0\r\n\r\n"
        );
        let answer = exchange(&out, "10.1.0.10:5066", "10.1.0.1:5060", text.as_bytes());
        String::from_utf8(answer).expect("text")
    };
    let authorized = |contact: &str, seq: u32| {
        let challenge = register(contact, seq, "");
        let value =
            credentials(&challenge, "WWW-Authenticate", "alice", "REGISTER", "sip:example.com");
        register(contact, seq + 1, &format!("Authorization: {value}\r\n"))
    };
    let refused = authorized("sips:alice@10.1.0.10:5066", 1);
    assert!(refused.starts_with("SIP/2.0 400"), "{refused}");
    let ok = authorized("sip:alice@10.1.0.10:5066", 3);
    assert!(ok.starts_with("SIP/2.0 200"), "{ok}");
    let mut bob = Phone::new(&edge, "bob");
    bob.call("sips:alice@example.com");
    let refused = bob.expect("SIP/2.0 480");
    assert_eq!(header(&refused, "Warning"), "380 10.1.0.1 \"SIPS Not Allowed\"");
    bob.request("ACK", "sips:alice@example.com", header(&refused, "To"), "", "");
    // And what is for a sips URI is not taken in the clear.
    let message = "MESSAGE sips:alice@example.com SIP/2.0\r\n\
                   Via: SIP/2.0/UDP 10.1.0.10:5067;branch=z9hG4bKm;rport\r\nMax-Forwards: 70\r\n\
                   From: <sip:bob@example.com>;tag=b\r\nTo: <sips:alice@example.com>\r\n\
                   Call-ID: m\r\nCSeq: 1 MESSAGE\r\nContent-Length: 0\r\n\r\n";
    let answer = exchange(&out, "10.1.0.10:5067", "10.1.0.1:5060", message.as_bytes());
    let refused = String::from_utf8(answer).expect("text");
    assert!(refused.starts_with("SIP/2.0 480"), "{refused}");
    assert_eq!(header(&refused, "Warning"), "380 10.1.0.1 \"SIPS Not Allowed\"");
    edge.node.stop();
}
