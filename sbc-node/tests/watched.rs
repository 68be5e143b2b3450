//! Watching from outside: a collector of OpenTelemetry, one of HEP and a watcher of events are told of
//! a call what happened in it, and agree with its CDR.

mod process;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use process::{Node, Phone, eventually, http_get};
use serde_json::Value;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on a thread of its own until the test ends.
    fn start() -> (Collector, SocketAddr) {
        Collector::behind(tonic::transport::Server::builder())
    }

    fn behind(mut server: tonic::transport::Server) -> (Collector, SocketAddr) {
        let collector = Collector::default();
        let (tell, told) = std::sync::mpsc::channel();
        let service = TraceServiceServer::new(collector.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                let incoming = TcpListenerStream::new(listener);
                let server = server.add_service(service);
                server.serve_with_incoming(incoming).await.unwrap();
            });
        });
        (collector, told.recv().unwrap())
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.0.lock().unwrap();
        let resources = requests.iter().flat_map(|r| &r.resource_spans);
        resources.flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).cloned().collect()
    }
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|a| a.key == key)?.value.clone()?.value?;
    Some(match value {
        Any::StringValue(text) => text,
        Any::IntValue(n) => n.to_string(),
        Any::BoolValue(b) => b.to_string(),
        other => panic!("{key} is {other:?}"),
    })
}

/// The chunks of a HEP packet by type.
fn decode(packet: &[u8]) -> BTreeMap<u16, Vec<u8>> {
    assert_eq!(&packet[..4], b"HEP3");
    let number = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    assert_eq!(usize::from(number(4)), packet.len(), "the length is the packet's");
    let (mut chunks, mut at) = (BTreeMap::new(), 6);
    while at < packet.len() {
        assert_eq!(number(at), 0, "no vendor's own");
        let end = at + usize::from(number(at + 4));
        assert!(chunks.insert(number(at + 2), packet[at + 6..end].to_vec()).is_none());
        at = end;
    }
    chunks
}

fn call(node: &Node, (caller, callee): &(Phone, Phone), number: usize) {
    let invite = caller.invite(node.inside, &number.to_string());
    // A branch is of one transaction, and there is more than one call.
    let own = |request: String| request.replace("z9hG4bK", &format!("z9hG4bKn{number}"));
    caller.send(node.inside, &invite);
    let incoming = callee.receive("INVITE ");
    callee.answer(&incoming, 180, "Ringing", false);
    caller.receive("SIP/2.0 180");
    callee.answer(&incoming, 200, "OK", true);
    let answered = caller.receive("SIP/2.0 200");
    caller.send(node.inside, &own(caller.in_dialog("ACK", &invite, &answered, 1)));
    callee.receive("ACK ");
    caller.send(node.inside, &own(caller.in_dialog("BYE", &invite, &answered, 2)));
    let bye = callee.receive("BYE ");
    callee.answer(&bye, 200, "OK", false);
    caller.receive("SIP/2.0 200");
}

#[test]
fn a_call_is_a_trace_and_a_ladder_of_hep_and_two_events() {
    let (collector, endpoint) = Collector::start();
    let hep = UdpSocket::bind("127.0.0.1:0").unwrap();
    hep.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let node = Node::start_with(&format!(
        "[trace]\nendpoint = \"http://{endpoint}\"\nsample = 1.0\n\
         [hep]\ncollector = \"{}\"\ncapture-id = 42\n",
        hep.local_addr().unwrap()
    ));
    let mut watching = Command::new(env!("CARGO_BIN_EXE_sbcctl"))
        .args(["--socket", node.socket.to_str().unwrap(), "--output", "json"])
        .args(["events", "call", "--count", "2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The watcher is there when events reach it: calls are made until two did.
    let events = BufReader::new(watching.stdout.take().unwrap());
    let told = std::thread::spawn(move || events.lines().take(2).flatten().collect::<Vec<_>>());
    let phones = (Phone::at(node.pbx), Phone::at(node.carrier));
    let mut calls = 0;
    eventually("two events", || {
        calls += 1;
        call(&node, &phones, calls);
        told.is_finished().then_some(())
    });
    for line in told.join().unwrap() {
        let event: Value = serde_json::from_str(&line).unwrap();
        let kind = event["kind"].as_str().unwrap();
        assert!(kind == "call.answered" || kind == "call.ended", "{line}");
        assert_eq!(event["subject"].as_str().unwrap().len(), 16, "the call's id: {line}");
    }
    watching.wait().unwrap();

    let cdr = node.cdrs(calls).remove(0);
    let id = cdr["call"].as_str().or(cdr["id"].as_str()).unwrap().to_owned();
    traced(&collector, &cdr, &id);
    laddered(|| datagram(&hep), &node, &id);
    let metrics = http_get(node.metrics, "/metrics");
    assert!(metrics.contains("sbc_tap_lost_messages_total{} 0.0"), "{metrics}");
    node.stop();
}

/// The spans of the call fit together and say what the CDR says.
fn traced(collector: &Collector, cdr: &Value, id: &str) {
    let root = eventually("the call's span", || {
        let spans = collector.spans();
        spans
            .into_iter()
            .find(|s| s.name == "call" && attribute(s, "sbc.call").as_deref() == Some(id))
    });
    let spans: Vec<Span> =
        collector.spans().into_iter().filter(|s| s.trace_id == root.trace_id).collect();
    let mut names: Vec<&str> = spans.iter().map(|s| s.name.as_str()).collect();
    names.sort_unstable();
    let wanted = ["BYE A", "BYE B", "INVITE A", "INVITE B", "call", "commit", "media", "routing"];
    assert_eq!(names, wanted, "one span for each part of the call");
    assert!(root.parent_span_id.is_empty(), "the call is the root");
    for span in spans.iter().filter(|s| s.name != "call") {
        assert_eq!(span.parent_span_id, root.span_id, "{}", span.name);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{}", span.name);
        let inside = span.start_time_unix_nano >= root.start_time_unix_nano
            && span.end_time_unix_nano <= root.end_time_unix_nano;
        assert!(inside, "{} lies within the call", span.name);
    }
    let named = |name: &str| spans.iter().find(|s| s.name == name).unwrap();
    assert_eq!(attribute(named("INVITE A"), "sip.status_code").as_deref(), Some("200"));
    assert_eq!(attribute(&root, "sip.status_code").as_deref(), Some("200"));
    assert_eq!(attribute(&root, "sbc.trunk.a").as_deref(), Some("pbx"));
    assert_eq!(attribute(&root, "sbc.trunk.b").as_deref(), Some("carrier"));
    assert_eq!(attribute(&root, "sbc.ended_by"), cdr["ended_by"].as_str().map(str::to_owned));
    let (routing, invite_b) = (named("routing"), named("INVITE B"));
    assert_eq!(routing.end_time_unix_nano, invite_b.start_time_unix_nano, "then it is sent");
    assert_eq!(named("commit").start_time_unix_nano, invite_b.end_time_unix_nano);
}

/// Both legs came with one correlation id, with our address and the peer's in the right places.
fn laddered(mut next: impl FnMut() -> Vec<u8>, node: &Node, id: &str) {
    let mut rungs = Vec::new();
    // INVITE, 100?, 180, 200, ACK, BYE, 200 on each leg: until the callee's last answer.
    loop {
        let chunks = decode(&next());
        if chunks[&0x0011] != id.as_bytes() {
            continue;
        }
        assert_eq!((&chunks[&0x0b][..], &chunks[&0x0c][..]), (&[1][..], &[0, 0, 0, 42][..]));
        assert_eq!(chunks[&0x03], [127, 0, 0, 1]);
        let port = |kind: u16| u16::from_be_bytes([chunks[&kind][0], chunks[&kind][1]]);
        let text = String::from_utf8(chunks[&0x0f].clone()).unwrap();
        let line = text.lines().next().unwrap().to_owned();
        let of_bye = text.lines().any(|l| l.starts_with("CSeq: ") && l.ends_with(" BYE"));
        let last = line.contains("200") && of_bye && port(7) == node.carrier.port();
        rungs.push((port(7), port(8), line));
        if last {
            break;
        }
    }
    let has = |from: SocketAddr, to: SocketAddr, begin: &str| {
        let fits = |(source, destination, line): &(u16, u16, String)| {
            *source == from.port() && *destination == to.port() && line.starts_with(begin)
        };
        assert!(rungs.iter().any(fits), "{begin} from {from} to {to}: {rungs:?}");
    };
    for begin in ["INVITE ", "ACK ", "BYE "] {
        has(node.pbx, node.inside, begin);
        has(node.outside, node.carrier, begin);
    }
    for begin in ["SIP/2.0 180", "SIP/2.0 200"] {
        has(node.carrier, node.outside, begin);
        has(node.inside, node.pbx, begin);
    }
}

fn datagram(hep: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 65_536];
    let length = hep.recv(&mut bytes).expect("the whole ladder");
    bytes.truncate(length);
    bytes
}

/// The next packet of a connection: its head says how long it is.
fn from_stream(stream: &mut TcpStream) -> Vec<u8> {
    let mut packet = vec![0; 6];
    stream.read_exact(&mut packet).expect("the whole ladder");
    packet.resize(usize::from(u16::from_be_bytes([packet[4], packet[5]])), 0);
    stream.read_exact(&mut packet[6..]).expect("a whole packet");
    packet
}

/// The node starts while the collector is away, and finds it when it comes, and when it comes again.
#[test]
fn hep_by_tcp_finds_a_collector_that_comes_and_goes() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let node = Node::start_with(&format!(
        "[hep]\ncollector = \"{address}\"\ntransport = \"tcp\"\ncapture-id = 42\n"
    ));
    let phones = (Phone::at(node.pbx), Phone::at(node.carrier));
    let ladder = |stream: &mut TcpStream, number: usize| {
        let cdr = node.cdrs(number).remove(number - 1);
        let id = cdr["call"].as_str().or(cdr["id"].as_str()).unwrap().to_owned();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        laddered(|| from_stream(stream), &node, &id);
    };
    call(&node, &phones, 1);
    let listener = eventually("the address is free", || TcpListener::bind(address).ok());
    let (mut stream, _) = listener.accept().unwrap();
    // What was said while nobody listened waited.
    ladder(&mut stream, 1);
    drop(stream);
    let (mut stream, _) = listener.accept().unwrap();
    call(&node, &phones, 2);
    ladder(&mut stream, 2);
    let metrics = http_get(node.metrics, "/metrics");
    assert!(metrics.contains("sbc_hep_errors_total{} 0.0"), "{metrics}");
    node.stop();
}

#[test]
fn with_a_share_of_none_nothing_is_told() {
    let hep = UdpSocket::bind("127.0.0.1:0").unwrap();
    hep.set_nonblocking(true).unwrap();
    let node = Node::start_with(&format!(
        "[hep]\ncollector = \"{}\"\nsample = 0.0\n",
        hep.local_addr().unwrap()
    ));
    call(&node, &(Phone::at(node.pbx), Phone::at(node.carrier)), 1);
    node.cdrs(1);
    let nothing = hep.recv(&mut [0; 16]).expect_err("nothing");
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    assert!(!http_get(node.metrics, "/metrics").contains("sbc_hep_sent"), "no watcher at all");
}

/// A collector further away: its certificate is signed by the authority that the configuration names,
/// and a node that trusts another one sends it nothing.
#[test]
fn a_collector_behind_tls_is_believed_by_its_authority_alone() {
    let dir = tempfile::tempdir().unwrap();
    let authority = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let file = dir.path().join(name);
        std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        (rcgen::Issuer::new(params, key), file)
    };
    let ((issuer, right), (_, wrong)) = (authority("right.pem"), authority("wrong.pem"));
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    let identity = tonic::transport::Identity::from_pem(certificate, key.serialize_pem());
    let tls = tonic::transport::ServerTlsConfig::new().identity(identity);
    let server = tonic::transport::Server::builder().tls_config(tls).unwrap();
    let (collector, endpoint) = Collector::behind(server);
    let node = |ca: &std::path::Path| {
        Node::start_with(&format!(
            "[trace]\nendpoint = \"https://{endpoint}\"\nca = \"{}\"\nsample = 1.0\n",
            ca.display()
        ))
    };
    let refused = node(&wrong);
    call(&refused, &(Phone::at(refused.pbx), Phone::at(refused.carrier)), 1);
    eventually("spans that are lost", || {
        let metrics = http_get(refused.metrics, "/metrics");
        let lost = metrics.lines().find_map(|l| l.strip_prefix("sbc_spans_lost_total{} "))?;
        (lost.parse::<f64>().unwrap() > 0.0).then_some(())
    });
    assert!(collector.spans().is_empty());
    refused.stop();
    let trusted = node(&right);
    call(&trusted, &(Phone::at(trusted.pbx), Phone::at(trusted.carrier)), 1);
    eventually("the call's span", || collector.spans().into_iter().find(|s| s.name == "call"));
    trusted.stop();
}
