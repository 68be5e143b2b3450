//! A small SIP phone under the test's own control: both ends of a call and their media in one
//! thread, so that a test knows what has happened before what.
//!
//! It speaks UDP, one call at a time, and repeats nothing: the namespaces lose no packet.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::net::socket_in;

const PATIENCE: Duration = Duration::from_secs(10);

/// One phone: its signalling socket and, during a call, its dialog.
pub struct Agent {
    ns: String,
    sip: UdpSocket,
    name: &'static str,
    /// Where requests are sent to.
    peer: SocketAddr,
    call_id: String,
    /// From and To of our own requests.
    local: String,
    remote: String,
    target: String,
    seq: u32,
    version: u32,
}

/// A media socket that numbers what it sends and sees to what it gets.
pub struct Audio {
    pub socket: UdpSocket,
    /// Where the SBC expects us to send to.
    pub to: SocketAddr,
    ssrc: u32,
    seq: u16,
}

/// Directions of an SDP.
#[derive(Clone, Copy, Debug)]
pub enum Direction {
    Both,
    SendOnly,
    RecvOnly,
}

impl Direction {
    fn attribute(self) -> &'static str {
        match self {
            Direction::Both => "sendrecv",
            Direction::SendOnly => "sendonly",
            Direction::RecvOnly => "recvonly",
        }
    }
}

/// The first value of a header.
fn header<'a>(message: &'a str, name: &str) -> &'a str {
    let of_name = |line: &&str| {
        line.split_once(':').is_some_and(|(n, _)| n.trim().eq_ignore_ascii_case(name))
    };
    let line = message.lines().find(of_name);
    let line = line.unwrap_or_else(|| panic!("no {name} in:\n{message}"));
    line.split_once(':').expect("a header").1.trim()
}

/// The address that an SDP names for its first stream.
fn media_of(message: &str) -> SocketAddr {
    let after = |prefix: &str| {
        let line = message.lines().find_map(|line| line.strip_prefix(prefix));
        line.unwrap_or_else(|| panic!("no {prefix} in:\n{message}"))
    };
    let ip: IpAddr =
        after("c=IN IP").split_once(' ').expect("a family").1.trim().parse().expect("ip");
    let port = after("m=audio ").split(' ').next().expect("a port").parse().expect("a port");
    SocketAddr::new(ip, port)
}

impl Agent {
    /// A phone at `address` of a namespace that talks to the SBC at `peer`.
    pub fn new(ns: &str, name: &'static str, address: &str, peer: SocketAddr) -> Agent {
        let sip = socket_in(ns, address);
        sip.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
        Agent {
            ns: ns.to_owned(),
            sip,
            name,
            peer,
            call_id: String::new(),
            local: String::new(),
            remote: String::new(),
            target: String::new(),
            seq: 0,
            version: 0,
        }
    }

    fn at(&self) -> SocketAddr {
        self.sip.local_addr().expect("bound")
    }

    fn send(&self, text: &str, to: SocketAddr) {
        self.sip.send_to(text.as_bytes(), to).expect("send");
    }

    /// The next message that begins so; others (100, 180, repetitions) are passed over.
    fn wait(&self, what: &str, fits: impl Fn(&str) -> bool) -> (String, SocketAddr) {
        let end = Instant::now() + PATIENCE;
        let mut last = String::new();
        while Instant::now() < end {
            let mut data = [0; 8192];
            let Ok((length, from)) = self.sip.recv_from(&mut data) else { continue };
            let text = String::from_utf8_lossy(&data[..length]).into_owned();
            if fits(&text) {
                return (text, from);
            }
            last = text;
        }
        panic!("{} waited in vain for {what}; the last other message:\n{last}", self.name)
    }

    fn sdp(&mut self, media: SocketAddr, direction: Direction) -> String {
        self.version += 1;
        let family = if media.is_ipv4() { 4 } else { 6 };
        let (ip, port, version) = (media.ip(), media.port(), self.version);
        format!(
            "v=0\r\no=agent 77 {version} IN IP{family} {ip}\r\ns=-\r\nc=IN IP{family} {ip}\r\n\
             t=0 0\r\nm=audio {port} RTP/AVP 8\r\na=rtpmap:8 PCMA/8000\r\na=ptime:20\r\na={}\r\n",
            direction.attribute()
        )
    }

    fn request(&mut self, method: &str, body: &str) {
        if method != "ACK" {
            self.seq += 1;
        }
        let (at, seq) = (self.at(), self.seq);
        let kind = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
        let text = format!(
            "{method} {} SIP/2.0\r\nVia: SIP/2.0/UDP {at};branch=z9hG4bK{}{method}{seq}\r\n\
             From: {}\r\nTo: {}\r\nCall-ID: {}\r\nCSeq: {seq} {method}\r\n\
             Contact: <sip:{}@{at}>\r\nMax-Forwards: 70\r\n{kind}Content-Length: {}\r\n\r\n{body}",
            self.target,
            self.name,
            self.local,
            self.remote,
            self.call_id,
            self.name,
            body.len()
        );
        self.send(&text, self.peer);
    }

    /// Calls `number` with media at `media`; the answer is waited for by [`Agent::answered`].
    pub fn invite(&mut self, number: &str, media: SocketAddr) {
        let (at, peer) = (self.at(), self.peer);
        self.call_id = format!("{}-{}", self.name, at.port());
        self.local = format!("<sip:{}@{at}>;tag=t{}", self.name, self.name);
        self.remote = format!("<sip:{number}@{peer}>");
        self.target = format!("sip:{number}@{peer}");
        self.reinvite(media, Direction::Both);
    }

    /// Offers anew inside the call.
    pub fn reinvite(&mut self, media: SocketAddr, direction: Direction) {
        let body = self.sdp(media, direction);
        self.request("INVITE", &body);
    }

    /// Takes the 200 to our INVITE and acknowledges it; where the SBC wants our media.
    pub fn answered(&mut self) -> SocketAddr {
        let seq = format!("{} INVITE", self.seq);
        let (answer, _) = self.wait("the answer", |m| {
            m.starts_with("SIP/2.0 ") && !m.starts_with("SIP/2.0 1") && header(m, "CSeq") == seq
        });
        assert!(answer.starts_with("SIP/2.0 200"), "{answer}");
        self.remote = header(&answer, "To").to_owned();
        self.target = header(&answer, "Contact").trim_matches(['<', '>']).to_owned();
        self.request("ACK", "");
        media_of(&answer)
    }

    /// Answers the next INVITE, of a new call or inside one; where the SBC wants our media. The ACK
    /// comes once the other side has sent its own.
    pub fn answer(&mut self, media: SocketAddr, direction: Direction) -> SocketAddr {
        let (request, from) = self.wait("an INVITE", |m| m.starts_with("INVITE "));
        self.call_id = header(&request, "Call-ID").to_owned();
        let mut to = header(&request, "To").to_owned();
        if !to.contains(";tag=") {
            to = format!("{to};tag=t{}", self.name);
        }
        self.local = to;
        self.remote = header(&request, "From").to_owned();
        self.target = header(&request, "Contact").trim_matches(['<', '>']).to_owned();
        // Another node may carry the call on.
        self.peer = from;
        let body = self.sdp(media, direction);
        self.reply(&request, from, &body);
        media_of(&request)
    }

    fn reply(&self, request: &str, to: SocketAddr, body: &str) {
        let via: String = request
            .lines()
            .filter(|l| l.starts_with("Via:") || l.starts_with("Record-Route:"))
            .map(|l| format!("{l}\r\n"))
            .collect();
        let kind = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
        let text = format!(
            "SIP/2.0 200 OK\r\n{via}From: {}\r\nTo: {}\r\nCall-ID: {}\r\nCSeq: {}\r\n\
             Contact: <sip:{}@{}>\r\n{kind}Content-Length: {}\r\n\r\n{body}",
            header(request, "From"),
            self.local,
            header(request, "Call-ID"),
            header(request, "CSeq"),
            self.name,
            self.at(),
            body.len()
        );
        self.send(&text, to);
    }

    /// Hangs up and waits for the answer.
    pub fn bye(&mut self) {
        self.request("BYE", "");
        let seq = format!("{} BYE", self.seq);
        self.wait("the answer to BYE", |m| {
            m.starts_with("SIP/2.0 200") && header(m, "CSeq") == seq
        });
    }

    /// Answers the BYE of the other side.
    pub fn gone(&mut self, within: Duration) {
        let end = Instant::now() + within;
        loop {
            assert!(Instant::now() < end, "{} was never hung up on", self.name);
            let mut data = [0; 8192];
            let Ok((length, from)) = self.sip.recv_from(&mut data) else { continue };
            let text = String::from_utf8_lossy(&data[..length]).into_owned();
            if text.starts_with("BYE ") {
                return self.reply(&text, from, "");
            }
        }
    }

    /// A media socket in the phone's namespace. `to` is set once the SBC has said it.
    pub fn audio(&self, address: &str) -> Audio {
        let socket = socket_in(&self.ns, address);
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
        let to = SocketAddr::from(([0, 0, 0, 0], 0));
        Audio { socket, to, ssrc: u32::from_be_bytes([7, 7, 0, 1]), seq: 0 }
    }
}

impl Audio {
    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("bound")
    }

    /// The source that its packets name.
    pub fn ssrc(&self) -> u32 {
        self.ssrc
    }

    /// Sends the next packet; its sequence number.
    pub fn send(&mut self) -> u16 {
        self.seq = self.seq.wrapping_add(1);
        let mut packet = vec![0x80, 8];
        packet.extend(self.seq.to_be_bytes());
        packet.extend((u32::from(self.seq) * 160).to_be_bytes());
        packet.extend(self.ssrc.to_be_bytes());
        packet.resize(172, 0xd5);
        self.socket.send_to(&packet, self.to).expect("send");
        self.seq
    }

    /// The sequence number of the next packet that comes; `None` after the socket's timeout.
    pub fn receive(&self) -> Option<u16> {
        let mut data = [0; 2048];
        let (length, _) = self.socket.recv_from(&mut data).ok()?;
        assert_eq!(length, 172, "a packet of other length");
        Some(u16::from_be_bytes([data[2], data[3]]))
    }

    /// Everything that has come and is not read yet.
    pub fn drain(&self) -> Vec<u16> {
        self.socket.set_nonblocking(true).expect("non-blocking");
        let got = std::iter::from_fn(|| self.receive()).collect();
        self.socket.set_nonblocking(false).expect("blocking");
        got
    }
}
