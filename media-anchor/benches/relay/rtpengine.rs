//! Debian's rtpengine in userspace mode, driven by its ng protocol (bencode over UDP).

use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Relay;
use crate::load::{Call, thread_time};

const NG: ([u8; 4], u16) = ([127, 0, 0, 32], 22_222);

pub(crate) struct Rtpengine {
    child: Child,
    control: UdpSocket,
    cookie: u32,
}

impl Rtpengine {
    /// Starts it; `None` where it is not installed.
    pub(crate) fn start() -> Option<Rtpengine> {
        let child = Command::new("rtpengine")
            .args(["--config-file=none", "--table=-1", "--foreground", "--log-stderr"])
            .args(["--interface=127.0.0.32", "--listen-ng=127.0.0.32:22222"])
            .args(["--port-min=20000", "--port-max=39999", "--log-level=1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let control = UdpSocket::bind("127.0.0.1:0").expect("binds");
        control.set_read_timeout(Some(Duration::from_millis(200))).expect("takes it");
        let mut relay = Rtpengine { child, control, cookie: 0 };
        let deadline = Instant::now() + Duration::from_secs(10);
        while relay.ask(&[("command", "ping")]).is_none() {
            assert!(Instant::now() < deadline, "rtpengine does not answer");
        }
        Some(relay)
    }

    /// One request; the raw answer.
    fn ask(&mut self, fields: &[(&str, &str)]) -> Option<String> {
        self.cookie += 1;
        let cookie = format!("{} ", self.cookie);
        let mut request = cookie.clone() + "d";
        for (key, value) in fields {
            request += &format!("{}:{key}{}:{value}", key.len(), value.len());
        }
        request.push('e');
        let mut buffer = [0u8; 8192];
        self.control.send_to(request.as_bytes(), SocketAddr::from(NG)).ok()?;
        let len = self.control.recv(&mut buffer).ok()?;
        let answer = String::from_utf8_lossy(&buffer[..len]).into_owned();
        answer.starts_with(&cookie).then_some(answer)
    }

    fn exchange(&mut self, command: &str, call: usize, rtp: SocketAddr) -> SocketAddr {
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
        let answer = self.ask(&fields).expect("rtpengine answers");
        let port = answer.split("m=audio ").nth(1).and_then(|rest| rest.split(' ').next());
        let port = port.and_then(|port| port.parse().ok());
        SocketAddr::from((NG.0, port.unwrap_or_else(|| panic!("no port in {answer}"))))
    }
}

impl Relay for Rtpengine {
    fn call(&mut self, index: usize, a: SocketAddr, b: SocketAddr) -> Call {
        let to_b = self.exchange("offer", index, a);
        let to_a = self.exchange("answer", index, b);
        Call { to_a, to_b }
    }

    fn cpu(&self) -> Duration {
        thread_time(self.child.id(), |_| true)
    }
}

impl Drop for Rtpengine {
    fn drop(&mut self) {
        // Ours alone: the child that was started above.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
