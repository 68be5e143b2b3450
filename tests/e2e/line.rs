//! A phone at the end of a connection that it opened itself, over TCP, TLS, WebSocket or both: one
//! message after the other, under the test's control.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use sbc_tests::net::stream_in;
use tempfile::TempDir;
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use crate::shared::{LONG, Shared};

/// By what a phone is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Tcp,
    Tls,
    Ws,
    Wss,
}

impl Over {
    fn port(self) -> u16 {
        match self {
            Over::Tcp | Over::Ws => 5060,
            Over::Tls | Over::Wss => 5061,
        }
    }

    fn via(self) -> &'static str {
        match self {
            Over::Tcp => "TCP 192.168.1.5:5060",
            Over::Tls => "TLS 192.168.1.5:5061",
            // RFC 7118 §5: a browser knows no address of its own.
            Over::Ws => "WS df7jal23ls0d.invalid",
            Over::Wss => "WSS df7jal23ls0d.invalid",
        }
    }

    /// What the phone's Contact says, and what requests to it are to name.
    pub(crate) fn contact(self) -> &'static str {
        match self {
            Over::Tcp => "sip:alice@192.168.1.5:5060;transport=tcp",
            Over::Tls => "sip:alice@192.168.1.5:5061;transport=tls",
            Over::Ws | Over::Wss => "sip:alice@df7jal23ls0d.invalid;transport=ws",
        }
    }
}

/// Writes a certificate for all three nodes and its key; whom to believe.
pub(crate) fn certify(dir: &TempDir) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = KeyPair::generate().expect("a key");
    let issuer = CertifiedIssuer::self_signed(params, own).expect("an authority");
    let mut params = CertificateParams::default();
    let hosts = (11..=13).map(|host| IpAddr::from([10, 1, 0, host]));
    params.subject_alt_names = hosts.map(SanType::IpAddress).collect();
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    std::fs::write(dir.path().join("sbc.pem"), certificate.pem()).expect("certificate");
    std::fs::write(dir.path().join("sbc.key"), key.serialize_pem()).expect("key");
    issuer.der().clone()
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

enum Line {
    Stream { stream: Box<dyn Stream>, read: Vec<u8> },
    Web(Box<WebSocket<Box<dyn Stream>>>),
}

/// Who is at the other end.
pub(crate) struct Phone {
    line: Line,
    over: Over,
}

impl Phone {
    /// Over TCP, by the node at this address.
    pub(crate) fn register(shared: &Shared, node: &str) -> Phone {
        Phone::register_over(shared, node, Over::Tcp, 1)
    }

    /// The same over another transport, with the CSeq of its REGISTER.
    pub(crate) fn register_over(shared: &Shared, node: &str, over: Over, cseq: u32) -> Phone {
        let mut phone = Phone::open(shared, node, over);
        let (via, contact) = (over.via(), over.contact());
        phone.send(&format!(
            "REGISTER sip:example.com SIP/2.0\r\n\
             Via: SIP/2.0/{via};branch=z9hG4bKreg{cseq};rport\r\n\
             From: <sip:alice@example.com>;tag=r1\r\nTo: <sip:alice@example.com>\r\n\
             Call-ID: reg-1\r\nCSeq: {cseq} REGISTER\r\nMax-Forwards: 70\r\n\
             Contact: <{contact}>;expires=600\r\n\
             Content-Length: 0\r\n\r\n"
        ));
        let answer = phone.next();
        assert!(answer.starts_with("SIP/2.0 200 "), "{answer}");
        phone
    }

    /// One that has said nothing yet.
    pub(crate) fn open(shared: &Shared, node: &str, over: Over) -> Phone {
        Phone { line: connect(shared, node, over), over }
    }

    pub(crate) fn send(&mut self, text: &str) {
        match &mut self.line {
            Line::Stream { stream, .. } => stream.write_all(text.as_bytes()).expect("send"),
            Line::Web(socket) => socket.send(Message::text(text)).expect("send"),
        }
    }

    /// The next whole message.
    pub(crate) fn next(&mut self) -> String {
        let (stream, read) = match &mut self.line {
            Line::Stream { stream, read } => (stream, read),
            Line::Web(socket) => loop {
                match socket.read().expect("a message in time") {
                    Message::Text(text) => return text.as_str().to_owned(),
                    Message::Binary(bytes) => return String::from_utf8_lossy(&bytes).into_owned(),
                    Message::Ping(_) | Message::Pong(_) => {}
                    other => panic!("{other:?}"),
                }
            },
        };
        loop {
            let text = String::from_utf8_lossy(read).into_owned();
            if let Some(head) = text.find("\r\n\r\n") {
                let length = header(&text, "Content-Length").parse::<usize>().unwrap_or(0);
                if text.len() >= head + 4 + length {
                    read.drain(..head + 4 + length);
                    return text[..head + 4 + length].to_owned();
                }
            }
            let mut part = [0; 4096];
            let got = stream.read(&mut part).expect("a message in time");
            assert!(got > 0, "the connection was closed after: {text}");
            read.extend_from_slice(&part[..got]);
        }
    }

    pub(crate) fn answer(&mut self, request: &str, body: &str) {
        let same: String = request
            .lines()
            .filter(|line| {
                ["Via:", "From:", "Call-ID:", "CSeq:"].iter().any(|name| line.starts_with(name))
            })
            .map(|line| format!("{line}\r\n"))
            .collect();
        let to = header(request, "To");
        let to = if to.contains("tag=") { to } else { format!("{to};tag=phone") };
        let kind = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
        let contact = self.over.contact();
        self.send(&format!(
            "SIP/2.0 200 OK\r\n{same}To: {to}\r\nContact: <{contact}>\r\n{kind}\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        ));
    }
}

fn connect(shared: &Shared, node: &str, over: Over) -> Line {
    let tcp = stream_in(&shared.net.ns("out"), &format!("{node}:{}", over.port()));
    tcp.set_read_timeout(Some(LONG)).expect("timeout");
    let stream: Box<dyn Stream> = match over {
        Over::Tcp | Over::Ws => Box::new(tcp),
        Over::Tls | Over::Wss => {
            let mut roots = rustls::RootCertStore::empty();
            let authority = shared.authority.clone().expect("a bed with certificates");
            roots.add(authority).expect("an authority");
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("TLS")
                .with_root_certificates(roots)
                .with_no_client_auth();
            let name = ServerName::try_from(node.to_owned()).expect("a name");
            let tls = ClientConnection::new(Arc::new(config), name).expect("TLS");
            Box::new(StreamOwned::new(tls, tcp))
        }
    };
    match over {
        Over::Tcp | Over::Tls => Line::Stream { stream, read: Vec::new() },
        Over::Ws | Over::Wss => {
            let url = format!("ws://{node}:{}/", over.port());
            let mut request = url.into_client_request().expect("a request");
            let sip = "sip".parse().expect("a value");
            request.headers_mut().insert("Sec-WebSocket-Protocol", sip);
            let socket = tungstenite::client(request, stream);
            let (socket, _) = socket.unwrap_or_else(|e| panic!("WebSocket with {node}: {e}"));
            Line::Web(Box::new(socket))
        }
    }
}

/// The value of a header as the SBC writes it; empty without.
pub(crate) fn header(message: &str, name: &str) -> String {
    let of = |line: &str| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned);
    message.lines().find_map(of).unwrap_or_default()
}
