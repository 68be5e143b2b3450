//! TLS, WebSocket and PROXY protocol of a shard on real sockets, with other people's clients.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{Bench, PATIENCE, Running, eventually, options};
use hashbrown::HashMap;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use sbc_core::core::{ResolveId, ResolveQuery};
use sbc_core::net::{InterfaceId, Target, Transport};
use sbc_node::resolve::plan::{Candidate, Plan};
use sbc_node::resolve::{Answer, Request};
use sbc_node::shard::command::Command;
use sbc_node::transport::Settings;
use sbc_node::transport::door::{Door, Doors};
use sbc_node::transport::tls::{ClientAuth, Demand, Profile, Spec};
use sbc_node::transport::ws::Rules;
use tempfile::TempDir;

/// An authority of the test, and a directory with what it signed.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

/// A certificate with its key.
struct Paper {
    chain: PathBuf,
    key: PathBuf,
    der: CertificateDer<'static>,
    secret: Vec<u8>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { issuer, dir }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    fn paper(&self, file: &str, sans: Vec<SanType>) -> Paper {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = sans;
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (chain, secret) = (
            self.dir.path().join(format!("{file}.pem")),
            self.dir.path().join(format!("{file}.key")),
        );
        std::fs::write(&chain, certificate.pem()).unwrap();
        std::fs::write(&secret, key.serialize_pem()).unwrap();
        let der = certificate.der().clone();
        Paper { chain, key: secret, der, secret: key.serialize_der() }
    }

    fn client(
        &self,
        paper: Option<&Paper>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match paper {
            None => builder.with_no_client_auth(),
            Some(p) => builder.with_client_auth_cert(vec![p.der.clone()], secret(p)).unwrap(),
        })
    }

    fn server(&self, paper: &Paper) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth();
        Arc::new(builder.with_single_cert(vec![paper.der.clone()], secret(paper)).unwrap())
    }
}

fn secret(paper: &Paper) -> PrivateKeyDer<'static> {
    PrivateKeyDer::try_from(paper.secret.clone()).unwrap()
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn spec(authority: &Authority, papers: &[&Paper]) -> Spec {
    Spec {
        certificates: papers.iter().map(|p| (p.chain.clone(), p.key.clone())).collect(),
        ca: Some(authority.ca()),
        verify: true,
        ..Spec::default()
    }
}

fn door(spec: &Spec) -> Door {
    Door { tls: Some(Arc::new(Profile::build(spec).unwrap())), ..Door::default() }
}

fn doors(door: Door) -> Arc<Doors> {
    Arc::new(Doors::new(HashMap::from_iter([(InterfaceId(0), Arc::new(door))])))
}

fn bench(listen: &[Transport], doors: Arc<Doors>, settings: Settings) -> Running {
    Bench {
        listen: listen.iter().map(|t| (*t, "127.0.0.1")).collect(),
        share: true,
        transport: Settings { doors, ..settings },
        ..Bench::default()
    }
    .start()
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

type Secured = StreamOwned<ClientConnection, TcpStream>;

fn secured(config: &Arc<ClientConfig>, name: &str, address: SocketAddr) -> Secured {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    StreamOwned::new(ClientConnection::new(config.clone(), name).unwrap(), tcp(address))
}

/// One request and its answer.
fn ask(stream: &mut (impl Read + Write)) -> String {
    stream.write_all(options(0).as_bytes()).unwrap();
    until(stream, "\r\n\r\n")
}

fn until(stream: &mut impl Read, end: &str) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(end.as_bytes()) {
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

/// Whether the other side refuses us: what is written or read fails or ends.
fn refused(stream: &mut (impl Read + Write)) -> bool {
    let wrote = stream.write_all(options(0).as_bytes()).is_ok();
    !wrote || matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_))
}

fn shown(stream: &Secured) -> CertificateDer<'static> {
    stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
}

const BOTH: &[&rustls::SupportedProtocolVersion] = rustls::ALL_VERSIONS;

#[test]
fn tls_12_and_13_carry_sip_and_pings() {
    let authority = Authority::new();
    let paper = authority.paper("sbc", vec![dns("sbc.example")]);
    let bench =
        bench(&[Transport::Tls], doors(door(&spec(&authority, &[&paper]))), Settings::default());
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        let config = authority.client(None, versions);
        let mut stream = secured(&config, "sbc.example", bench.local(Transport::Tls));
        assert!(ask(&mut stream).starts_with("SIP/2.0 200 OK"));
        stream.write_all(b"\r\n\r\n").unwrap();
        assert_eq!(until(&mut stream, "\r\n"), "\r\n");
        assert_eq!(stream.conn.protocol_version(), Some(versions[0].version));
    }
    assert_eq!(bench.total(|s| s.tls_handshakes.get()), 2);
    assert_eq!(bench.total(|s| s.keepalives.get()), 2);
    assert!(bench.ask(0, |m| m.flows.iter().all(|f| f.transport == Transport::Tls)));
}

#[test]
fn a_large_message_crosses_many_records_and_tls_12_can_be_ruled_out() {
    let authority = Authority::new();
    let paper = authority.paper("sbc", vec![dns("sbc.example")]);
    let spec = Spec { tls13_only: true, ..spec(&authority, &[&paper]) };
    let bench = bench(&[Transport::Tls], doors(door(&spec)), Settings::default());
    let local = bench.local(Transport::Tls);
    let mut stream = secured(&authority.client(None, BOTH), "sbc.example", local);
    let body = "x".repeat(40_000);
    let head = format!("OPTIONS sip:x SIP/2.0\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    until(&mut stream, "\r\n\r\n");
    assert_eq!(bench.ask(0, |m| m.messages[0].len()), head.len() + body.len());
    let old = authority.client(None, &[&rustls::version::TLS12]);
    assert!(refused(&mut secured(&old, "sbc.example", local)));
    eventually("the failure", || (bench.total(|s| s.tls_failures.get()) == 1).then_some(()));
}

#[test]
fn the_certificate_follows_the_name_asked_for_and_a_reload() {
    let authority = Authority::new();
    let one = authority.paper("one", vec![dns("one.example")]);
    let two = authority.paper("two", vec![dns("*.two.example")]);
    let doors = doors(door(&spec(&authority, &[&one, &two])));
    let bench = bench(&[Transport::Tls], doors.clone(), Settings::default());
    let local = bench.local(Transport::Tls);
    let config = authority.client(None, BOTH);
    for (name, paper) in [("one.example", &one), ("a.two.example", &two)] {
        let mut stream = secured(&config, name, local);
        ask(&mut stream);
        assert_eq!(shown(&stream), paper.der);
    }
    let mut old = secured(&config, "one.example", local);
    ask(&mut old);
    let renewed = authority.paper("one", vec![dns("one.example")]);
    doors.replace(HashMap::from_iter([(
        InterfaceId(0),
        Arc::new(door(&spec(&authority, &[&renewed]))),
    )]));
    let mut fresh = secured(&authority.client(None, BOTH), "one.example", local);
    ask(&mut fresh);
    assert_eq!(shown(&fresh), renewed.der);
    // Who was connected stays connected.
    assert!(ask(&mut old).starts_with("SIP/2.0 200 OK"));
}

#[test]
fn mutual_tls_lets_in_who_has_a_certificate_and_a_trunk_by_its_names_alone() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let paper = authority.paper("sbc", vec![dns("sbc.example")]);
    let sources = vec!["127.0.0.0/8".parse().unwrap()];
    let demand = Demand { sources, domains: vec!["carrier.example".into()] };
    let spec =
        Spec { clients: ClientAuth::Require, demands: vec![demand], ..spec(&authority, &[&paper]) };
    let bench = bench(&[Transport::Tls], doors(door(&spec)), Settings::default());
    let local = bench.local(Transport::Tls);
    let carrier = authority.paper("carrier", vec![dns("carrier.example")]);
    let other = authority.paper("other", vec![dns("other.example")]);
    let forged = stranger.paper("forged", vec![dns("carrier.example")]);
    let with = |paper| secured(&authority.client(paper, BOTH), "sbc.example", local);
    assert!(ask(&mut with(Some(&carrier))).starts_with("SIP/2.0 200 OK"));
    assert!(refused(&mut with(Some(&other))));
    assert!(refused(&mut with(Some(&forged))));
    assert!(refused(&mut with(None)));
    eventually("the refusals", || {
        let of =
            (bench.total(|s| s.tls_identity_refused.get()), bench.total(|s| s.tls_failures.get()));
        (of == (1, 2)).then_some(())
    });
    assert_eq!(bench.ask(0, |m| m.messages.len()), 1);
}

/// Accepts one connection and yields what it says first; `None` when the handshake fails.
fn upstream(config: Arc<ServerConfig>, listener: &TcpListener) -> (Option<String>, TcpStream) {
    let (mut socket, _) = listener.accept().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut tls = ServerConnection::new(config).unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let done = tls.complete_io(&mut socket);
        let mut buffer = [0; 4_096];
        if let Ok(count) = tls.reader().read(&mut buffer) {
            text.extend_from_slice(&buffer[..count]);
        }
        if done.is_err() {
            return (None, socket);
        }
    }
    (Some(String::from_utf8(text).unwrap()), socket)
}

/// Resolves `host` to the address by an answer of ours and yields the target.
fn target(
    bench: &Running,
    requests: &mut tokio::sync::mpsc::Receiver<Request>,
    host: &str,
    addr: SocketAddr,
) -> Target {
    let before = bench.ask(0, |m| m.resolved.len());
    let query = ResolveQuery {
        host: host.to_owned(),
        port: Some(addr.port()),
        transport: Some(Transport::Tls),
        sips: false,
        interface: InterfaceId(0),
    };
    bench.resolve(7, query);
    let request = eventually("the question", || requests.try_recv().ok());
    let candidate = Candidate {
        rank: 0,
        priority: 0,
        weight: 0,
        transport: Transport::Tls,
        port: addr.port(),
        addresses: vec![addr.ip()],
    };
    let result = Ok(Plan { candidates: vec![candidate] });
    let answer = Answer { key: request.key, result, ttl: Duration::from_secs(60) };
    bench.handles[0].command(Command::Resolved(answer)).unwrap();
    eventually("the targets", || {
        bench.ask(0, move |m| {
            let (id, result) = m.resolved.get(before)?;
            assert_eq!(*id, ResolveId(7));
            Some(result.clone().unwrap()[0])
        })
    })
}

#[test]
fn rfc5922_a_server_must_show_the_domain_that_was_called_and_is_reused_for_no_other() {
    let authority = Authority::new();
    let paper = authority.paper("sbc", vec![dns("sbc.example")]);
    let (sender, mut requests) = tokio::sync::mpsc::channel(8);
    let bench = Bench {
        listen: vec![(Transport::Tls, "127.0.0.1")],
        transport: Settings {
            doors: doors(door(&spec(&authority, &[&paper]))),
            ..Settings::default()
        },
        resolver: Some(sender),
        ..Bench::default()
    }
    .start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let carrier = authority.server(&authority.paper("carrier", vec![dns("carrier.example")]));
    let right = target(&bench, &mut requests, "Carrier.example", address);
    bench.send_to(0, right, &options(0), 1);
    let (heard, _open) = upstream(carrier.clone(), &listener);
    assert_eq!(heard, Some(options(0)));
    // The same address under another name: another connection, which that certificate cannot have.
    let wrong = target(&bench, &mut requests, "other.example", address);
    assert_ne!(right.domain, wrong.domain);
    bench.send_to(0, wrong, &options(0), 2);
    assert_eq!(upstream(carrier, &listener).0, None);
    eventually("the failure", || bench.ask(0, |m| (m.failed.len() == 1).then_some(())));
    assert_eq!(bench.ask(0, |m| m.failed[0].0.0), 2);
    assert_eq!(bench.total(|s| s.opened.get()), 2);
    // The first name again goes by the connection that stands.
    bench.send_to(0, right, &options(0), 3);
    eventually("the message", || (bench.total(|s| s.stream_out.get()) == 2).then_some(()));
    assert_eq!(bench.total(|s| s.opened.get()), 2);
}

#[test]
fn rfc5923_a_connection_is_reused_backwards_only_for_whom_its_certificate_speaks() {
    let authority = Authority::new();
    let paper = authority.paper("sbc", vec![dns("sbc.example")]);
    let spec = Spec { clients: ClientAuth::Request, ..spec(&authority, &[&paper]) };
    let bench = bench(&[Transport::Tls], doors(door(&spec)), Settings::default());
    let local = bench.local(Transport::Tls);
    let shown = SanType::IpAddress([127, 0, 0, 1].into());
    let carrier = authority.paper("carrier", vec![shown]);
    let request = |port: u16| {
        format!(
            "OPTIONS sip:x SIP/2.0\r\nVia: SIP/2.0/TLS 127.0.0.1:{port};branch=z9hG4bK1;alias\r\n\
             From: <sip:a@x>;tag=1\r\nTo: <sip:b@x>\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\n\
             Content-Length: 0\r\n\r\n"
        )
    };
    let mut named = secured(&authority.client(Some(&carrier), BOTH), "sbc.example", local);
    named.write_all(request(5061).as_bytes()).unwrap();
    until(&mut named, "\r\n\r\n");
    bench.send(0, Transport::Tls, "127.0.0.1:5061".parse().unwrap(), &options(0), 1);
    assert_eq!(until(&mut named, "\r\n\r\n"), options(0));
    // Who has shown nothing may claim what it likes.
    let mut nobody = secured(&authority.client(None, BOTH), "sbc.example", local);
    nobody.write_all(request(5063).as_bytes()).unwrap();
    until(&mut nobody, "\r\n\r\n");
    bench.send(0, Transport::Tls, "127.0.0.1:5063".parse().unwrap(), &options(0), 2);
    eventually("the failure", || bench.ask(0, |m| (m.failed.len() == 1).then_some(())));
    // Nobody listens there, and there it went.
    assert_eq!(bench.total(|s| s.connect_failures.get()), 1);
}

/// Whether nothing but an alert comes, and then the end.
fn ended(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    !matches!(stream.read_to_end(&mut rest), Ok(count) if count > 64)
}

#[test]
fn garbage_and_silence_cost_the_connection_only() {
    let authority = Authority::new();
    let paper = authority.paper("sbc", vec![dns("sbc.example")]);
    let settings =
        Settings { handshake_timeout: Duration::from_millis(200), ..Settings::default() };
    let doors = doors(door(&spec(&authority, &[&paper])));
    let bench = bench(&[Transport::Tls, Transport::Wss], doors, settings);
    let local = bench.local(Transport::Tls);
    let config = authority.client(None, BOTH);
    let mut good = secured(&config, "sbc.example", local);
    assert!(ask(&mut good).starts_with("SIP/2.0 200 OK"));
    for garbage in
        [&b"OPTIONS sip:x SIP/2.0\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 1, 2], &[0; 3_000]]
    {
        let mut stream = tcp(local);
        let _ = stream.write_all(garbage);
        assert!(ended(&mut stream), "{garbage:?}");
    }
    assert!(ended(&mut tcp(local)));
    // TLS that stands, and then something that is neither SIP nor HTTP.
    let mut strange = secured(&config, "sbc.example", local);
    strange.write_all(&[0xff; 200]).unwrap();
    assert!(matches!(strange.read(&mut [0; 8]), Ok(0) | Err(_)));
    assert!(ask(&mut good).starts_with("SIP/2.0 200 OK"));
    eventually("one connection", || (bench.total(|s| s.connections.get()) == 1).then_some(()));
    assert!(bench.total(|s| s.tls_failures.get()) >= 2);
    assert!(bench.total(|s| s.handshake_timeouts.get()) >= 1);
    assert_eq!(bench.total(|s| s.framing_errors.get()), 1);
}

#[test]
fn a_source_has_few_handshakes_under_way_at_once() {
    let authority = Authority::new();
    let paper = authority.paper("sbc", vec![dns("sbc.example")]);
    let settings = Settings { handshakes_per_source_max: 3, ..Settings::default() };
    let bench = bench(&[Transport::Tls], doors(door(&spec(&authority, &[&paper]))), settings);
    let local = bench.local(Transport::Tls);
    let config = authority.client(None, BOTH);
    // Those that are done do not count.
    let mut done = Vec::new();
    for _ in 0..5 {
        let mut stream = secured(&config, "sbc.example", local);
        assert!(ask(&mut stream).starts_with("SIP/2.0 200 OK"));
        done.push(stream);
    }
    let silent: Vec<TcpStream> = (0..3).map(|_| tcp(local)).collect();
    eventually("all", || (bench.total(|s| s.connections.get()) == 8).then_some(()));
    assert!(refused(&mut secured(&config, "sbc.example", local)));
    assert_eq!(bench.total(|s| s.handshakes_refused.get()), 1);
    drop(silent);
    eventually("room", || (bench.total(|s| s.connections.get()) == 5).then_some(()));
    assert!(ask(&mut secured(&config, "sbc.example", local)).starts_with("SIP/2.0 200 OK"));
}

fn web_request(uri: &str, origin: &str) -> tungstenite::handshake::client::Request {
    use tungstenite::client::IntoClientRequest;
    let mut request = uri.into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("Sec-WebSocket-Protocol", "sip".parse().unwrap());
    headers.insert("Origin", origin.parse().unwrap());
    request
}

#[test]
fn rfc7118_websockets_and_sip_share_a_port_in_the_clear_and_secured() {
    let authority = Authority::new();
    let paper = authority.paper("sbc", vec![dns("sbc.example")]);
    let rules = Rules { origins: vec!["https://phone.example".into()] };
    let door = Door { web: Arc::new(rules), ..door(&spec(&authority, &[&paper])) };
    let doors = doors(door);
    for (sip, web) in [(Transport::Tcp, Transport::Ws), (Transport::Tls, Transport::Wss)] {
        let bench = bench(&[sip, web], doors.clone(), Settings::default());
        let local = bench.local(web);
        assert_eq!(local, bench.local(sip));
        let config = authority.client(None, BOTH);
        let stream = || -> Box<dyn ReadWrite> {
            match web {
                Transport::Wss => Box::new(secured(&config, "sbc.example", local)),
                _ => Box::new(tcp(local)),
            }
        };
        let request = web_request("ws://sbc.example/sip", "https://phone.example");
        let (mut ws, answer) = tungstenite::client(request, stream()).unwrap();
        assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], "sip");
        ws.send(tungstenite::Message::text(options(0))).unwrap();
        let heard = ws.read().unwrap();
        assert!(heard.to_text().unwrap().starts_with("SIP/2.0 200 OK"), "{heard:?}");
        ws.send(tungstenite::Message::text("\r\n\r\n")).unwrap();
        assert_eq!(ws.read().unwrap().to_text().unwrap(), "\r\n");
        assert!(ask(&mut stream()).starts_with("SIP/2.0 200 OK"));
        let evil = web_request("ws://sbc.example/", "https://evil.example");
        assert!(tungstenite::client(evil, stream()).is_err());
        let flows = bench.ask(0, |m| m.flows.clone());
        assert_eq!(flows.iter().map(|f| f.transport).collect::<Vec<_>>(), [web, sip]);
        assert_eq!(bench.total(|s| s.web_errors.get()), 1);
        drop(ws);
        eventually("no connection", || (bench.total(|s| s.connections.get()) == 0).then_some(()));
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

#[test]
fn a_websocket_that_is_gone_without_a_word_is_found() {
    let settings =
        Settings { websocket_ping: Some(Duration::from_millis(300)), ..Settings::default() };
    let bench = bench(&[Transport::Ws], Arc::default(), settings);
    let request = web_request("ws://sbc.example/", "https://any.example");
    let (mut ws, _) = tungstenite::client(request, tcp(bench.local(Transport::Ws))).unwrap();
    // Who answers stays: the client does so while it reads.
    let ping = ws.read().unwrap();
    assert!(ping.is_ping(), "{ping:?}");
    assert!(ws.read().unwrap().is_ping());
    assert_eq!(bench.total(|s| s.web_dead.get()), 0);
    eventually("the end", || (bench.total(|s| s.web_dead.get()) == 1).then_some(()));
}

#[test]
fn a_listed_balancer_says_who_the_client_is_and_nobody_else() {
    let authority = Authority::new();
    let paper = authority.paper("sbc", vec![dns("sbc.example")]);
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    header.extend([198, 51, 100, 7, 127, 0, 0, 1, 0x9c, 0x40, 0x13, 0xc5]);
    let config = authority.client(None, BOTH);
    for (proxies, listed) in [("127.0.0.0/8", true), ("10.0.0.0/8", false)] {
        let proxies = vec![proxies.parse().unwrap()];
        let door = Door { proxies, ..door(&spec(&authority, &[&paper])) };
        let bench = bench(&[Transport::Tls], doors(door), Settings::default());
        let mut stream = secured(&config, "sbc.example", bench.local(Transport::Tls));
        stream.sock.write_all(&header).unwrap();
        if listed {
            assert!(ask(&mut stream).starts_with("SIP/2.0 200 OK"));
            let flow = bench.ask(0, |m| m.flows[0]);
            assert_eq!(flow.remote, "198.51.100.7:40000".parse().unwrap());
            // Without the header it is no balancer of ours.
            let mut bare = secured(&config, "sbc.example", bench.local(Transport::Tls));
            assert!(refused(&mut bare));
            assert_eq!(bench.total(|s| s.proxy_errors.get()), 1);
        } else {
            assert!(refused(&mut stream));
        }
    }
}

#[test]
fn rfc5626_stun_on_the_sip_port_is_answered_within_its_rate() {
    let settings = Settings { stun_per_second: 2, ..Settings::default() };
    let bench = Bench { transport: settings, ..Bench::default() }.start();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    request.extend([7; 12]);
    let port = socket.local_addr().unwrap().port() ^ 0x2112;
    for _ in 0..2 {
        socket.send_to(&request, bench.local(Transport::Udp)).unwrap();
        let mut answer = [0; 64];
        let count = socket.recv(&mut answer).unwrap();
        assert_eq!((count, &answer[..2], &answer[4..20]), (32, &[1, 1][..], &request[4..]));
        assert_eq!(answer[26..28], port.to_be_bytes());
    }
    for _ in 0..3 {
        socket.send_to(&request, bench.local(Transport::Udp)).unwrap();
    }
    eventually("the drops", || (bench.total(|s| s.stun_dropped.get()) >= 1).then_some(()));
}
