//! Phones that register, and a node with a registrar for them.

use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};

use sbc_core::digest::{Account, Answerer};

use super::{Node, Phone};

/// A node with a registrar on its outside interface and an empty file of users.
pub(crate) fn node() -> Node {
    let node = Node::start();
    add_registrar(&node, "");
    let (code, out) = node.ctl("config reload");
    assert_eq!(code, 0, "{out}");
    node
}

/// Writes a registrar into a node's configuration, with more lines in and after `[registrar]`.
pub(crate) fn add_registrar(node: &Node, more: &str) {
    std::fs::write(node.path("users"), "# ours\n").unwrap();
    node.edit(|text| {
        format!(
            "{text}[[trunk]]\nname = \"phones\"\ninterface = \"outside\"\n\
             [registrar]\ntrunk = \"phones\"\ndomains = [\"example.com\"]\nusers-file = \"users\"\n{more}"
        )
    });
}

/// Runs sbcctl with this on standard input; exit code and what it said.
pub(crate) fn tell(node: &Node, words: &str, input: &str) -> (i32, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sbcctl"))
        .args(["--socket", node.socket.to_str().unwrap()])
        .args(words.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have refused without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let out = child.wait_with_output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.code().unwrap(), String::from_utf8(text).unwrap())
}

pub(crate) struct Registering {
    phone: Phone,
    sbc: SocketAddr,
    cseq: u32,
}

impl Registering {
    pub(crate) fn send(&mut self, user: &str, expires: u32, more: &str) -> String {
        self.cseq += 1;
        let (own, n) = (self.phone.address, self.cseq);
        let message = format!(
            "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP {own};branch=z9hG4bKr{n}\r\n\
             Max-Forwards: 70\r\nFrom: <sip:{user}@example.com>;tag=r\r\n\
             To: <sip:{user}@example.com>\r\nCall-ID: r{user}@{own}\r\nCSeq: {n} REGISTER\r\n\
             Contact: <sip:{user}@{own}>\r\nExpires: {expires}\r\n{more}Content-Length: 0\r\n\r\n"
        );
        self.phone.send(self.sbc, &message);
        self.phone.receive("SIP/2.0 ")
    }

    /// The status of a REGISTER that answers its challenge.
    pub(crate) fn register(&mut self, user: &str, password: &str, expires: u32) -> String {
        let challenge = self.send(user, expires, "");
        let offers = challenge.lines().filter_map(|l| l.strip_prefix("WWW-Authenticate: "));
        let account = Account { username: user.into(), realm: None, password: password.into() };
        let mut answerer = Answerer::choose(offers, &account).expect(&challenge);
        let value = answerer.authorize("REGISTER", "sip:example.com", b"", "cn");
        let answer = self.send(user, expires, &format!("Authorization: {value}\r\n"));
        answer.split(' ').nth(1).unwrap().to_owned()
    }
}

/// A phone at an address that is no trunk's.
pub(crate) fn registering(node: &Node) -> Registering {
    let free = UdpSocket::bind("127.0.0.2:0").unwrap().local_addr().unwrap();
    Registering { phone: Phone::at(free), sbc: node.outside, cseq: 0 }
}
