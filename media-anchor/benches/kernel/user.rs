//! What the userspace ways cost in the same topology: our relay, rtpengine, rtpproxy.
//!
//! They are paced, or their sockets would overflow: 30,000 packets a second, for 200 ms at a time; 2,000 where
//! all come to one socket, which holds some 220. rtpengine never comes back from a full one: it reads 50
//! datagrams, breaks off, and waits for an edge that a socket without room does not give. The CPU of the
//! relay's threads and of the sender, on whose clock the softirqs run, and of ksoftirqd, is counted;
//! a run in which the relay's namespace drops at ingress is subtracted, and the ratio is to
//! `ip_forward` at the same pace.

use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use media_anchor::config::{Config, Dscp, MediaAddr, MediaInterface};
use media_anchor::{
    EventSink, Handle, InterfaceId, Latch, MediaAnchor, Remote, SessionId, Side, SideSpec,
    StreamKind,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::clock;
use crate::cpu::with_drop;
use crate::netns::Net;
use crate::rtpengine::Rtpengine;
use crate::traffic::{self, A, Frame, SA, SB, Sender};

const TICKS: usize = 200;
/// Packets of a tick of one millisecond.
const PER_TICK: usize = 30;
/// The same where they all are of one flow.
const OF_ONE: usize = 2;
const ROUNDS: usize = 15;
/// Sockets of a call in rtpengine, and in our relay for a stream without RTCP.
const THEIR_SOCKETS: usize = 4;
const OUR_SOCKETS: usize = 2;

/// A userspace relay and the frames that reach it.
struct Relay {
    name: &'static str,
    frames: Vec<Frame>,
    threads: Threads,
    /// Ends it when it is dropped.
    _alive: Box<dyn Any + Send>,
}

/// The threads of a relay: the process, and how their names begin.
#[derive(Clone, Copy)]
struct Threads {
    pid: u32,
    prefix: &'static str,
}

/// Prints the rows of the userspace ways.
pub(crate) fn ways(flows: usize) {
    row(flows, OUR_SOCKETS, "userspace", ours);
    row(flows, THEIR_SOCKETS, "rtpengine", rtpengine);
    println!("{flows:>6} flows  rtpproxy     SKIPPED: Debian 12 has no package of it");
}

/// Measures one relay at as many flows as descriptors allow.
fn row(wanted: usize, sockets: usize, name: &str, start: fn(&Net, usize) -> Option<Relay>) {
    let flows = wanted.min((descriptors() - 300) / sockets);
    let net = traffic::net(true);
    let Some(relay) = start(&net, flows) else {
        println!("{wanted:>6} flows  {name:<12} SKIPPED: not installed");
        return;
    };
    let forwarded = traffic::to_sink(flows);
    let per_tick = if flows == 1 { OF_ONE } else { PER_TICK };
    let packets = TICKS * per_tick;
    let (threads, frames) = (relay.threads, &relay.frames);
    let (mut drops, mut plains, mut costs) = (Vec::new(), Vec::new(), Vec::new());
    let mut relayed = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            clock::pin(0);
            let sender = Sender::open(&net.a, "eth0");
            // The first packets open what an endpoint has to open.
            for _ in 0..3 {
                paced(&sender, threads, frames, per_tick);
            }
            for _ in 0..ROUNDS {
                drops.push(with_drop(&net, || paced(&sender, threads, frames, per_tick)));
                net.sbc.sysctl("ipv4/ip_forward", "1");
                plains.push(paced(&sender, threads, &forwarded, per_tick));
                net.sbc.sysctl("ipv4/ip_forward", "0");
                let before = traffic::arrived(&net);
                let used = paced(&sender, threads, frames, per_tick);
                // On a busy machine its sockets overflow: what was relayed pays for all.
                let got = traffic::arrived(&net) - before;
                relayed += got;
                costs.push((used, got as f64 / packets as f64));
            }
        });
    });
    let drop = clock::quartile(drops);
    let plain = clock::quartile(plains) - drop;
    let cost = clock::quartile(costs.iter().map(|(used, share)| (used - drop) / share).collect());
    let lost = 100.0 * (1.0 - relayed as f64 / (ROUNDS * packets) as f64);
    if lost > 60.0 {
        println!("{flows:>6} flows  {:<12} not measured: {lost:.1} % lost", relay.name);
        return;
    }
    let ratio = cost / plain;
    println!(
        "{flows:>6} flows  {:<12} {cost:>7.0} ns  {ratio:.2}  at {},000/s, where ip_forward takes \
         {plain:.0} ns; {lost:.1} % lost",
        relay.name, per_tick
    );
}

/// Some packets each millisecond; nanoseconds of CPU per packet.
fn paced(sender: &Sender, relay: Threads, frames: &[Frame], per_tick: usize) -> f64 {
    let of_relay = || clock::threads(relay.pid, |name| name.starts_with(relay.prefix));
    let used = || clock::thread() + clock::softirq() + of_relay();
    let (before, begun) = (used(), Instant::now());
    for tick in 0..TICKS {
        sender.send(frames, tick * per_tick, per_tick);
        let next = begun + Duration::from_millis(tick as u64 + 1);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    (used() - before).as_nanos() as f64 / (TICKS * per_tick) as f64
}

/// Our relay, in this process; its threads are told apart by name.
fn ours(net: &Net, calls: usize) -> Option<Relay> {
    let interface = |id, ip: IpAddr| MediaInterface {
        id: InterfaceId(id),
        v4: Some(MediaAddr { local: ip, advertise: ip }),
        v6: None,
        ports: 10_000..=60_000,
        dscp: Dscp::default(),
    };
    let (anchor, handle, frames) = net.sbc.run(|| {
        let config = Config::new(vec![interface(0, SA.into()), interface(1, SB.into())]);
        let anchor = MediaAnchor::start(config, None).expect("the anchor starts");
        let (sink, events) = EventSink::new(1024, Arc::new(|| {}));
        let mut handle = anchor.handle(0, &sink);
        let frames = (0..calls).map(|n| our_call(&mut handle, n)).collect();
        drop(events);
        (anchor, handle, frames)
    });
    let threads = Threads { pid: std::process::id(), prefix: "media-" };
    Some(Relay { name: "userspace", frames, threads, _alive: Box::new((handle, anchor)) })
}

fn our_call(handle: &mut Handle, n: usize) -> Frame {
    let id = SessionId(n as u64);
    handle.open(id, None).expect("open");
    let call = traffic::flow(n);
    let mut port = 0;
    for (side, interface, rtp) in [(Side::A, 0, call.arrives.src), (Side::B, 1, call.leaves.dst)] {
        let spec = SideSpec { interface: InterfaceId(interface), ipv6: false };
        let local = handle.bind(id, 0, StreamKind::Image, side, spec).expect("bind");
        if side == Side::A {
            port = local.rtp.port();
        }
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
    Frame::new((A, call.arrives.src.port()), (SA, port))
}

fn rtpengine(net: &Net, calls: usize) -> Option<Relay> {
    let sides = [SA.into(), SB.into()];
    let child = Rtpengine::spawn(sides, Some(&net.sbc.path()))?;
    net.sbc.run(|| {
        let mut engine = Rtpengine::new(child, sides);
        let frames: Vec<Frame> = (0..calls)
            .map_while(|n| {
                let call = traffic::flow(n);
                let [to_a, _] = engine.call(n, call.arrives.src, call.leaves.dst)?;
                Some(Frame::new((A, call.arrives.src.port()), (SA, to_a.port())))
            })
            .collect();
        let threads = Threads { pid: engine.pid(), prefix: "" };
        Some(Relay { name: "rtpengine", frames, threads, _alive: Box::new(engine) })
    })
}

/// How many descriptors a process may have; raises the limit as far as it may.
fn descriptors() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the hard limit may be used");
    usize::try_from(hard).unwrap_or(usize::MAX)
}
