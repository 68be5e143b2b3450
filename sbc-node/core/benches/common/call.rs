//! A core between two trunks and the calls that the benchmarks send through it: INVITE with SDP, 180,
//! 200, ACK, BYE, 200, media bound on both sides, dialog committed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sbc_core::b2bua::{CallPolicy, WallClock};
use sbc_core::core::{Config, Core, Destination, Input, Output};
use sbc_core::media::{
    Anchor, Local, MediaError, MediaId, Remote, Side, SideSpec, StreamKind, StreamStats, Taken,
};
use sbc_core::net::{Flow, Host, Interface, InterfaceId, Listener, Transport};
use sbc_core::routing::{
    Peer, RouteConfig, RouteMatch, RouteTarget, RoutingConfig, Table, TrunkConfig,
};
use sbc_core::sip::{self, HeaderName, Limits, Message};

/// Measures what is run in it.
pub(crate) trait Meter {
    fn run<T>(&mut self, work: impl FnOnce() -> T) -> T;
}

/// Gives out ports and forgets everything else.
#[derive(Default)]
pub(crate) struct Ports(u16);

impl Anchor for Ports {
    fn open(&mut self, _: MediaId, _: Option<Duration>) -> Result<(), MediaError> {
        Ok(())
    }

    fn bind(
        &mut self,
        _: MediaId,
        _: usize,
        _: StreamKind,
        side: Side,
        _: SideSpec,
    ) -> Result<Local, MediaError> {
        self.0 = self.0.wrapping_add(2);
        let ip = if side == Side::A { [10, 0, 0, 9] } else { [203, 0, 113, 9] };
        let rtp = SocketAddr::from((ip, 10_000 + self.0 % 40_000));
        Ok(Local { rtp, rtcp: SocketAddr::new(rtp.ip(), rtp.port() + 1) })
    }

    fn rebind(
        &mut self,
        _: MediaId,
        _: usize,
        _: StreamKind,
        _: Side,
        _: &Taken,
    ) -> Result<(), MediaError> {
        Ok(())
    }

    fn remote(
        &mut self,
        _: MediaId,
        _: usize,
        _: Side,
        _: &Remote,
        _: bool,
    ) -> Result<(), MediaError> {
        Ok(())
    }

    fn drop_stream(&mut self, _: MediaId, _: usize) {}

    fn stats(&mut self, _: MediaId) -> Vec<StreamStats> {
        Vec::new()
    }

    fn close(&mut self, _: MediaId) -> Vec<StreamStats> {
        Vec::new()
    }
}

fn trunk(name: &str, interface: u16, realm: &str, host: &str) -> TrunkConfig {
    TrunkConfig {
        realm: realm.into(),
        peers: vec![Peer { host: host.into(), port: Some(5060), transport: Some(Transport::Udp) }],
        ..TrunkConfig::new(name, InterfaceId(interface))
    }
}

fn config(now: Instant) -> Config {
    let interface = |id: u16, name: &str, ip: [u8; 4]| Interface {
        id: InterfaceId(id),
        name: name.into(),
        realm: name.into(),
        listeners: vec![Listener {
            transport: Transport::Udp,
            local: SocketAddr::from((ip, 5060)),
            advertise_host: Host::Ip(ip.into()),
            advertise_port: 5060,
            retired: false,
        }],
        media: true,
        large_by_tcp: false,
    };
    let routing = RoutingConfig {
        trunks: vec![
            trunk("pbx", 0, "core", "10.0.0.1"),
            trunk("carrier", 1, "public", "192.0.2.1"),
        ],
        routes: vec![RouteConfig {
            name: "out".into(),
            matches: RouteMatch { realms: vec!["core".into()], ..RouteMatch::default() },
            target: RouteTarget::To("carrier".into()),
            strip: 0,
            prefix: "".into(),
        }],
        ..RoutingConfig::default()
    };
    Config {
        product: "sbc".into(),
        interfaces: vec![
            interface(0, "core", [10, 0, 0, 9]),
            interface(1, "public", [203, 0, 113, 9]),
        ],
        calls: CallPolicy::default(),
        routing: Arc::new(Table::build(routing, None, now).expect("a routing table")),
        transactions: Default::default(),
        limits: Limits::default(),
        guard: None,
        overload: None,
        hint_key: Default::default(),
        node: None,
        registrar: None,
    }
}

fn flow(inside: bool) -> Flow {
    let (local, remote) =
        if inside { ([10, 0, 0, 9], [10, 0, 0, 1]) } else { ([203, 0, 113, 9], [192, 0, 2, 1]) };
    Flow {
        interface: InterfaceId(u16::from(!inside)),
        transport: Transport::Udp,
        local: SocketAddr::from((local, 5060)),
        remote: SocketAddr::from((remote, 5060)),
        conn: None,
    }
}

/// The core and its clock.
pub(crate) struct Bench<M> {
    pub(crate) core: Core,
    pub(crate) anchor: Ports,
    pub(crate) now: Instant,
    pub(crate) meter: M,
}

impl<M: Meter> Bench<M> {
    /// A core without calls; `media` says whether calls get a media session.
    pub(crate) fn new(meter: M, media: bool) -> Self {
        let now = Instant::now();
        let clock = WallClock { at: now, unix_ms: 0 };
        let mut config = config(now);
        config.calls.anchor_media = media;
        let core = Core::new(Arc::new(config), [1; 32], clock);
        Bench { core, anchor: Ports(0), now, meter }
    }

    /// Feeds one message; yields what goes inside and outside.
    fn feed(&mut self, inside: bool, data: Bytes) -> (Vec<Bytes>, Vec<Bytes>) {
        let (mut ins, mut outs) = (Vec::with_capacity(4), Vec::with_capacity(4));
        let mut next = Some(Input::Message { flow: flow(inside), data });
        while let Some(input) = next.take() {
            let (core, anchor, now) = (&mut self.core, &mut self.anchor, self.now);
            let outputs = self.meter.run(|| {
                core.handle(now, input, anchor);
                std::iter::from_fn(|| core.poll()).collect::<Vec<_>>()
            });
            for output in outputs {
                match output {
                    Output::Transmit { dest, data, .. } => {
                        let to = match dest {
                            Destination::Flow(flow) => flow.remote,
                            Destination::Target { target, .. } => target.addr,
                        };
                        let inside = to == SocketAddr::from(([10, 0, 0, 1], 5060));
                        if inside { ins.push(data) } else { outs.push(data) }
                    }
                    Output::Store { id, wait: Some(_), .. } => {
                        next = Some(Input::Stored { id, protected: true });
                    }
                    _ => {}
                }
            }
        }
        (ins, outs)
    }
}

const SDP: &str = "v=0\r\no=user1 53655765 2353687637 IN IP4 10.0.0.1\r\ns=-\r\nc=IN IP4 10.0.0.1\r\nt=0 0\r\nm=audio 6000 RTP/AVP 8 0 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-11,16\r\na=ptime:20\r\n";

fn request(method: &str, n: u32, uri: &str, to: &str, seq: u32, body: &str) -> Bytes {
    let kind = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
    Bytes::from(format!(
        "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bK-{n}-{method}-0;rport\r\n\
         From: sipp <sip:sipp@10.0.0.1:5060>;tag={n}SIPpTag001\r\nTo: {to}\r\nCall-ID: {n}-2345@10.0.0.1\r\n\
         CSeq: {seq} {method}\r\nContact: <sip:sipp@10.0.0.1:5060>\r\nMax-Forwards: 70\r\n\
         Subject: Performance Test\r\n{kind}Content-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

fn reply(request: &Message, status: &str, body: &str) -> Bytes {
    let header = |name| request.header(name).unwrap_or("");
    let tag = if request.to_tag().is_some() { "" } else { ";tag=callee1" };
    let kind = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
    Bytes::from(format!(
        "SIP/2.0 {status}\r\nVia: {}\r\nFrom: {}\r\nTo: {}{tag}\r\nCall-ID: {}\r\nCSeq: {}\r\n\
         Contact: <sip:192.0.2.1:5060;transport=UDP>\r\n{kind}Content-Length: {}\r\n\r\n{body}",
        header(HeaderName::Via),
        header(HeaderName::From),
        header(HeaderName::To),
        header(HeaderName::CallId),
        header(HeaderName::CSeq),
        body.len()
    ))
}

fn parsed(data: &[Bytes], at: usize) -> Message {
    sip::parse(data[at].clone(), &Limits::default()).expect("a message of ours")
}

/// Sets call `n` up; yields what A needs to hang up: our Contact and the To of the 2xx.
pub(crate) fn set_up<M: Meter>(bench: &mut Bench<M>, n: u32) -> (String, String) {
    let uri = "sip:+4930123456@10.0.0.9:5060";
    let (_, out) = bench.feed(true, request("INVITE", n, uri, &format!("<{uri}>"), 1, SDP));
    let invite = parsed(&out, 0);
    bench.feed(false, reply(&invite, "180 Ringing", ""));
    let (ins, _) = bench.feed(false, reply(&invite, "200 OK", SDP));
    let ok = parsed(&ins, 0);
    let to = ok.header(HeaderName::To).expect("To").to_owned();
    let contact = ok.contact().expect("Contact").expect("one").uri_str.to_owned();
    bench.feed(true, request("ACK", n, &contact, &to, 1, ""));
    (contact, to)
}

pub(crate) fn hang_up<M: Meter>(bench: &mut Bench<M>, n: u32, contact: &str, to: &str) {
    let (_, out) = bench.feed(true, request("BYE", n, contact, to, 2, ""));
    let bye = parsed(&out, 0);
    bench.feed(false, reply(&bye, "200 OK", ""));
}
