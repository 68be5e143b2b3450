//! Debian's rtpengine in userspace mode, driven by its ng protocol (bencode over UDP).

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running rtpengine.
pub(crate) struct Rtpengine {
    child: Child,
    control: UdpSocket,
    ng: SocketAddr,
    /// Its addresses towards side A and side B.
    sides: [IpAddr; 2],
    cookie: u32,
}

impl Rtpengine {
    /// Starts the program with these addresses towards the two sides, in the network namespace of
    /// that path if there is one; `None` where it is not installed.
    pub(crate) fn spawn(sides: [IpAddr; 2], namespace: Option<&str>) -> Option<Child> {
        let ng = SocketAddr::new(sides[0], 22_222);
        Command::new("rtpengine").arg("--version").output().ok()?;
        let mut command = match namespace {
            Some(path) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={path}")).arg("rtpengine");
                command
            }
            None => Command::new("rtpengine"),
        };
        command
            .args(["--config-file=none", "--table=-1", "--foreground", "--log-stderr"])
            .arg(format!("--interface=a/{}", sides[0]))
            .arg(format!("--interface=b/{}", sides[1]))
            .arg(format!("--listen-ng={ng}"))
            .args(["--port-min=20000", "--port-max=59999", "--log-level=1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()
    }

    /// Waits until it answers, from a thread in its network namespace.
    pub(crate) fn new(child: Child, sides: [IpAddr; 2]) -> Rtpengine {
        let ng = SocketAddr::new(sides[0], 22_222);
        let control = UdpSocket::bind((sides[0], 0)).expect("binds");
        control.set_read_timeout(Some(Duration::from_millis(200))).expect("takes it");
        let mut relay = Rtpengine { child, control, ng, sides, cookie: 0 };
        let deadline = Instant::now() + Duration::from_secs(10);
        while relay.ask("7:command4:ping").is_none() {
            assert!(Instant::now() < deadline, "rtpengine does not answer");
        }
        relay
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sets a call up between two endpoints; the addresses that it takes their packets at. `None`
    /// when it has no more ports or descriptors.
    pub(crate) fn call(
        &mut self,
        n: usize,
        a: SocketAddr,
        b: SocketAddr,
    ) -> Option<[SocketAddr; 2]> {
        let to_b = self.exchange("offer", n, a)?;
        let to_a = self.exchange("answer", n, b)?;
        Some([SocketAddr::new(self.sides[0], to_a), SocketAddr::new(self.sides[1], to_b)])
    }

    /// One request, its fields in bencode; the raw answer.
    fn ask(&mut self, fields: &str) -> Option<String> {
        self.cookie += 1;
        let cookie = format!("{} ", self.cookie);
        let request = format!("{cookie}d{fields}e");
        let mut buffer = [0u8; 8192];
        self.control.send_to(request.as_bytes(), self.ng).ok()?;
        let len = self.control.recv(&mut buffer).ok()?;
        let answer = String::from_utf8_lossy(&buffer[..len]).into_owned();
        answer.starts_with(&cookie).then_some(answer)
    }

    /// The port in the answer.
    fn exchange(&mut self, command: &str, call: usize, rtp: SocketAddr) -> Option<u16> {
        let sdp = format!(
            "v=0\r\no=- 1 1 IN IP4 {ip}\r\ns=-\r\nc=IN IP4 {ip}\r\nt=0 0\r\n\
             m=audio {port} RTP/AVP 8\r\na=rtpmap:8 PCMA/8000\r\na=sendrecv\r\n",
            ip = rtp.ip(),
            port = rtp.port()
        );
        let call_id = format!("bench-{call}");
        let mut fields = vec![
            ("command", command),
            ("call-id", &call_id),
            ("from-tag", "a"),
            ("sdp", &sdp),
            ("ICE", "remove"),
        ];
        if command == "answer" {
            fields.push(("to-tag", "b"));
        }
        let bencode = |text: &str| format!("{}:{text}", text.len());
        let mut request: String =
            fields.iter().map(|(key, value)| bencode(key) + &bencode(value)).collect();
        if command == "offer" {
            request += "9:directionl1:a1:be";
        }
        let answer = self.ask(&request)?;
        answer.split("m=audio ").nth(1)?.split(' ').next()?.parse().ok().filter(|port| *port != 0)
    }
}

impl Drop for Rtpengine {
    fn drop(&mut self) {
        // Ours alone: the child that was started above.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
