//! CPU per relayed packet of each way: packets that arrive marked as EF and leave so, and for
//! nftables those that are to be marked on their way.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use media_anchor::config::{Config, Dscp, MediaAddr, MediaInterface};
use media_anchor::kernel::{KernelConfig, Way, open};
use media_anchor::plan_types::Offload;
use media_anchor::{
    EventSink, Handle, InterfaceId, Latch, MediaAnchor, Remote, SessionId, Side, SideSpec,
    StreamKind,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::clock;
use crate::netns::{Net, Ns};
use crate::traffic::{self, A, SA, SB, Sender};

const ROUNDS: usize = 7;
const PACKETS: usize = 100_000;
/// Userspace is paced, or its sockets would overflow.
const PACED: usize = 30_000;

/// Nanoseconds of CPU per packet of sending `count` frames.
pub(crate) fn cost(sender: &Sender, frames: &[Vec<u8>], count: usize) -> f64 {
    sender.send(frames, 0, frames.len().min(count));
    let (thread, softirq) = (clock::thread(), clock::softirq());
    sender.send(frames, 0, count);
    let used = (clock::thread() - thread) + (clock::softirq() - softirq);
    used.as_nanos() as f64 / count as f64
}

/// The samples of one way.
struct Samples {
    name: &'static str,
    ratios: Vec<f64>,
    nanos: Vec<f64>,
}

/// Prints the table of ratios.
pub(crate) fn run() {
    println!(
        "CPU per relayed packet, {ROUNDS} rounds of {PACKETS}: median ns, ratio to ip_forward"
    );
    for flows in [1, 1000, 10_000] {
        let net = traffic::net(true);
        let (unmarked, forwarded) = (traffic::to_relay(flows), traffic::to_sink(flows));
        let (relayed, forwarded) = (traffic::marked(&unmarked), traffic::marked(&forwarded));
        let mut ways: Vec<Samples> = ["ip_forward", "ebpf", "nftables", "nft marking"]
            .map(|name| Samples { name, ratios: Vec::new(), nanos: Vec::new() })
            .into();
        net.a.run(|| {
            clock::pin(0);
            let sender = Sender::open(&net.a, "eth0");
            for _ in 0..ROUNDS {
                let dropped = with_drop(&net, || cost(&sender, &relayed, PACKETS));
                net.sbc.sysctl("ipv4/ip_forward", "1");
                let plain = cost(&sender, &forwarded, PACKETS) - dropped;
                net.sbc.sysctl("ipv4/ip_forward", "0");
                let ebpf = kernel(&net.sbc, Way::Ebpf, flows, &sender, &relayed) - dropped;
                let nft = kernel(&net.sbc, Way::Nftables, flows, &sender, &relayed) - dropped;
                let marking = kernel(&net.sbc, Way::Nftables, flows, &sender, &unmarked) - dropped;
                for (way, nanos) in ways.iter_mut().zip([plain, ebpf, nft, marking]) {
                    way.nanos.push(nanos);
                    way.ratios.push(nanos / plain);
                }
            }
        });
        for way in ways {
            let (nanos, ratio) = (clock::median(way.nanos), clock::median(way.ratios));
            println!("{flows:>6} flows  {:<11}  {nanos:>7.0} ns  {ratio:.2}", way.name);
        }
        if !enough_descriptors(flows) {
            println!("{flows:>6} flows  userspace    SKIPPED: too few descriptors (ulimit -n)");
            continue;
        }
        let (plain, user) = userspace(flows);
        if plain < 100.0 {
            println!("{flows:>6} flows  userspace    the machine is too busy to tell");
            continue;
        }
        println!("{flows:>6} flows  {:<11}  {user:>7.0} ns  {:.2}", "userspace", user / plain);
    }
}

/// Runs `body` while the relay's namespace drops at ingress.
fn with_drop(net: &Net, body: impl FnOnce() -> f64) -> f64 {
    traffic::drop_at_ingress(&net.sbc, "sa");
    let result = body();
    net.sbc.cmd("nft", &["delete", "table", "netdev", "sink"]);
    result
}

fn kernel(sbc: &Ns, way: Way, flows: usize, sender: &Sender, frames: &[Vec<u8>]) -> f64 {
    let mut offload = opened(sbc, way);
    sbc.run(|| traffic::install(offload.as_mut(), flows));
    let result = cost(sender, frames, PACKETS);
    let mut counters = Vec::new();
    let ids: Vec<_> = (0..flows).map(|n| traffic::flow(n).id).collect();
    offload.counters(&ids, &mut counters);
    let relayed: u64 = counters.iter().map(|(_, c)| c.packets).sum();
    assert_eq!(relayed, (PACKETS + flows) as u64, "every packet by the kernel");
    sbc.run(|| drop(offload));
    result
}

pub(crate) fn opened(sbc: &Ns, way: Way) -> Box<dyn Offload> {
    sbc.run(|| {
        let opened = open(&KernelConfig { way, ..KernelConfig::default() });
        opened.offload.unwrap_or_else(|| panic!("{}", opened.report.status().reason))
    })
}

fn anchor(sbc: &Ns, calls: usize) -> (MediaAnchor, Handle, Vec<u16>) {
    let interface = |id, ip: IpAddr| MediaInterface {
        id: InterfaceId(id),
        v4: Some(MediaAddr { local: ip, advertise: ip }),
        v6: None,
        ports: 10_000..=60_000,
        dscp: Dscp::default(),
    };
    sbc.run(|| {
        let config = Config::new(vec![interface(0, SA.into()), interface(1, SB.into())]);
        let anchor = MediaAnchor::start(config, None).expect("the anchor starts");
        let (sink, _events) = EventSink::new(1024, Arc::new(|| {}));
        let mut handle = anchor.handle(0, &sink);
        let mut ports = Vec::new();
        for n in 0..calls {
            let id = SessionId(n as u64);
            handle.open(id, None).expect("open");
            for (side, interface) in [(Side::A, 0), (Side::B, 1)] {
                let spec = SideSpec { interface: InterfaceId(interface), ipv6: false };
                let local = handle.bind(id, 0, StreamKind::Image, side, spec).expect("bind");
                if side == Side::A {
                    ports.push(local.rtp.port());
                }
            }
            let call = traffic::flow(n);
            for (side, rtp) in [(Side::A, call.arrives.src), (Side::B, call.leaves.dst)] {
                let remote = Remote {
                    rtp: Some(SocketAddr::new(rtp.ip(), rtp.port())),
                    rtcp: None,
                    rtcp_mux: false,
                    sends: true,
                    receives: true,
                    latch: Latch::Off,
                };
                handle.remote(id, 0, side, &remote, false).expect("remote");
            }
        }
        (anchor, handle, ports)
    })
}

/// Two sockets a call, and some more; raises the limit as far as it may.
fn enough_descriptors(calls: usize) -> bool {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the hard limit may be used");
    hard > (2 * calls + 200) as u64
}

/// Paced: plain forwarding and the userspace relay, in process CPU.
fn userspace(flows: usize) -> (f64, f64) {
    let net = traffic::net(true);
    let forwarded = traffic::to_sink(flows);
    let (anchor, _handle, ports) = anchor(&net.sbc, flows);
    let relayed: Vec<Vec<u8>> = (0..flows)
        .map(|n| {
            let from = traffic::flow(n).arrives.src.port();
            traffic::frame((A, from), (SA, ports[n]))
        })
        .collect();
    let (mut plains, mut users) = (Vec::new(), Vec::new());
    net.a.run(|| {
        clock::pin(0);
        let sender = Sender::open(&net.a, "eth0");
        for _ in 0..3 {
            let dropped = with_drop(&net, || paced(&sender, &relayed));
            net.sbc.sysctl("ipv4/ip_forward", "1");
            plains.push(paced(&sender, &forwarded) - dropped);
            net.sbc.sysctl("ipv4/ip_forward", "0");
            let before = anchor.totals().relayed;
            let used = (paced(&sender, &relayed) - dropped) * PACED as f64;
            // On a busy machine its sockets overflow: what was relayed pays for all.
            users.push(used / (anchor.totals().relayed - before).max(1) as f64);
        }
    });
    (clock::median(plains), clock::median(users))
}

/// 30,000 packets in a second; CPU of all our threads and softirqs per packet.
fn paced(sender: &Sender, frames: &[Vec<u8>]) -> f64 {
    let (process, softirq) = (clock::process(), clock::softirq());
    let begun = std::time::Instant::now();
    for tick in 0..1000 {
        sender.send(frames, tick * 30, PACED / 1000);
        let next = begun + Duration::from_millis(tick as u64 + 1);
        std::thread::sleep(next.saturating_duration_since(std::time::Instant::now()));
    }
    let used = (clock::process() - process) + (clock::softirq() - softirq);
    used.as_nanos() as f64 / PACED as f64
}
