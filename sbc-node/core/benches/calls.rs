//! What a whole call costs in the core: INVITE with SDP, 180, 200, ACK, BYE, 200, media bound on
//! both sides, dialog committed. Prints CPU microseconds per call spent inside `Core`, and heap
//! bytes per established call.
//!
//! `cargo bench -p sbc-core --bench calls`

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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

/// Counts what is allocated.
struct Counting;

static HEAP: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed to the system allocator as it came; only a counter is kept beside.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HEAP.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        HEAP.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `ptr` came from `alloc` above with this `layout`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Gives out ports and forgets everything else.
struct Ports(u16);

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
        hint_key: Default::default(),
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

/// CPU time of this thread: other work on the machine does not count.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result, which is all the call wants.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    let nanos = |n: i64| u64::try_from(n).unwrap_or(0);
    Duration::from_secs(nanos(time.tv_sec)) + Duration::from_nanos(nanos(time.tv_nsec))
}

/// The core, its clock, and the time spent in it.
struct Bench {
    core: Core,
    anchor: Ports,
    now: Instant,
    spent: Duration,
}

impl Bench {
    /// Feeds one message; yields what goes inside and outside.
    fn feed(&mut self, inside: bool, data: Bytes) -> (Vec<Bytes>, Vec<Bytes>) {
        let (mut ins, mut outs) = (Vec::with_capacity(4), Vec::with_capacity(4));
        let mut next = Some(Input::Message { flow: flow(inside), data });
        while let Some(input) = next.take() {
            let start = cpu_time();
            self.core.handle(self.now, input, &mut self.anchor);
            while let Some(output) = self.core.poll() {
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
            self.spent += cpu_time() - start;
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
fn set_up(bench: &mut Bench, n: u32) -> (String, String) {
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

fn hang_up(bench: &mut Bench, n: u32, contact: &str, to: &str) {
    let (_, out) = bench.feed(true, request("BYE", n, contact, to, 2, ""));
    let bye = parsed(&out, 0);
    bench.feed(false, reply(&bye, "200 OK", ""));
}

/// A number from the environment: fewer calls where every instruction is simulated.
fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn main() {
    let now = Instant::now();
    let clock = WallClock { at: now, unix_ms: 0 };
    let core = Core::new(Arc::new(config(now)), [1; 32], clock);
    let mut bench = Bench { core, anchor: Ports(0), now, spent: Duration::ZERO };

    // 1,000 calls per second for 20 s: the transaction tables are as full as they get.
    let per_round = number("CALLS_PER_ROUND", 1_000);
    let rounds = 20;
    let mut costs = Vec::new();
    for round in 0..rounds {
        bench.spent = Duration::ZERO;
        for n in 0..per_round {
            bench.now += Duration::from_millis(1);
            let id = round * per_round + n;
            let (contact, to) = set_up(&mut bench, id);
            hang_up(&mut bench, id, &contact, &to);
        }
        costs.push(bench.spent / per_round);
    }
    costs.sort();
    println!("one call, INVITE to BYE: {:?} median, {:?} least", costs[costs.len() / 2], costs[0]);

    // Everything that lingers runs out.
    bench.now += Duration::from_secs(120);
    bench.core.handle(bench.now, Input::Tick, &mut bench.anchor);
    while bench.core.poll().is_some() {}
    let before = HEAP.load(Ordering::Relaxed);
    let calls = number("CALLS_UP", 20_000);
    let up: Vec<_> = (0..calls).map(|n| set_up(&mut bench, 1_000_000 + n)).collect();
    let names: usize = up.iter().map(|(a, b)| a.capacity() + b.capacity() + 48).sum();
    bench.now += Duration::from_secs(120);
    bench.core.handle(bench.now, Input::Tick, &mut bench.anchor);
    while bench.core.poll().is_some() {}
    let held = HEAP.load(Ordering::Relaxed) - before - names;
    println!("established call: {} bytes of heap (tables grown included)", held / calls as usize);
    println!("{:?}", bench.core.stats());
}
