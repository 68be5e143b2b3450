//! CPU per relayed packet of each way beside plain forwarding.
//!
//! Every way has a chain of namespaces of its own, all of them up at once, so that short slices of
//! each can take turns: what disturbs the machine disturbs all of them. Of the slices of a way the
//! first decile counts: nothing that disturbs a slice makes it cheaper. Packets arrive marked as EF
//! and leave so; for nftables also those that are to be marked, or unmarked, on their way. Userspace ways are in `user.rs`.

use media_anchor::kernel::{KernelConfig, Way, open};
use media_anchor::plan_types::Offload;

use crate::clock;
use crate::netns::{Net, Ns};
use crate::traffic::{self, Frame, Sender};
use crate::user;

/// Slices of each way.
const SLICES: usize = 300;
/// Packets of a slice; one of each flow where there are more flows.
const PACKETS: usize = 1_000;

/// Nanoseconds of CPU per packet of sending `count` frames, the caches warm.
pub(crate) fn cost(sender: &Sender, frames: &[Frame], count: usize) -> f64 {
    sender.send(frames, 0, frames.len().min(count));
    let (thread, softirq) = (clock::thread(), clock::softirq());
    sender.send(frames, 0, count);
    let used = (clock::thread() - thread) + (clock::softirq() - softirq);
    used.as_nanos() as f64 / count as f64
}

/// A way with its chain of namespaces.
struct Bed {
    name: &'static str,
    net: Net,
    sender: Sender,
    frames: Vec<Frame>,
    offload: Option<Box<dyn Offload>>,
    nanos: Vec<f64>,
}

impl Bed {
    /// The frames as they arrive, and how the kernel is made to relay them.
    fn new(name: &'static str, frames: Vec<Frame>, way: Option<Way>, mark: Option<u8>) -> Bed {
        let net = traffic::net(true);
        let sender = Sender::open(&net.a, "eth0");
        let offload = way.map(|way| {
            let mut offload = opened(&net.sbc, way);
            net.sbc.run(|| traffic::install_marked(offload.as_mut(), 0..frames.len(), mark));
            offload
        });
        Bed { name, net, sender, frames, offload, nanos: Vec::new() }
    }

    /// Sends the packets twice, and keeps what the second time cost unless ksoftirqd had a share.
    fn slice(&mut self, packets: usize, softirq: &clock::Ksoftirqd) {
        let elsewhere = softirq.nanos();
        self.sender.send(&self.frames, 0, packets);
        let begun = clock::thread();
        self.sender.send(&self.frames, 0, packets);
        let used = clock::thread() - begun;
        if softirq.nanos() == elsewhere {
            self.nanos.push(used.as_nanos() as f64 / packets as f64);
        }
    }

    /// That every packet of every slice went through the kernel.
    fn check(&mut self, sent: usize) {
        let Some(offload) = &mut self.offload else { return };
        let ids: Vec<_> = (0..self.frames.len()).map(|n| traffic::flow(n).id).collect();
        let mut counters = Vec::new();
        offload.counters(&ids, &mut counters);
        let relayed: u64 = counters.iter().map(|(_, c)| c.packets).sum();
        assert_eq!(relayed, sent as u64, "every packet by {}", self.name);
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // Its sockets and links are those of the namespace.
        let offload = self.offload.take();
        self.net.sbc.run(|| drop(offload));
    }
}

/// Prints the table of ratios.
pub(crate) fn run(flows: &[usize]) {
    println!("CPU per relayed packet, first decile of {SLICES} slices: ns, ratio to ip_forward");
    for &flows in flows {
        kernel_ways(flows);
        user::ways(flows);
    }
}

fn kernel_ways(flows: usize) {
    let (unmarked, forwarded) = (traffic::to_relay(flows), traffic::to_sink(flows));
    let (relayed, forwarded) = (traffic::marked(&unmarked), traffic::marked(&forwarded));
    let nft = Some(Way::Nftables);
    let mut beds = [
        Bed::new("drop", relayed.clone(), None, None),
        Bed::new("ip_forward", forwarded, None, None),
        Bed::new("eBPF", relayed.clone(), Some(Way::Ebpf), Some(46)),
        Bed::new("nftables", relayed.clone(), nft, Some(46)),
        Bed::new("nft marking", unmarked.clone(), nft, Some(46)),
        Bed::new("nft unmarked", unmarked, nft, None),
    ];
    traffic::drop_at_ingress(&beds[0].net.sbc, "sa");
    beds[1].net.sbc.sysctl("ipv4/ip_forward", "1");
    let packets = PACKETS.max(flows);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            clock::pin(0);
            let softirq = clock::Ksoftirqd::of(0);
            for _ in 0..SLICES {
                for bed in &mut beds {
                    bed.slice(packets, &softirq);
                }
            }
        });
    });
    for bed in &mut beds {
        bed.check(SLICES * 2 * packets);
    }
    let [drop, ways @ ..] = beds.each_ref().map(|bed| clock::decile(bed.nanos.clone()));
    let names = beds.each_ref().map(|bed| bed.name);
    for (nanos, name) in ways.iter().zip(&names[1..]) {
        let (way, plain) = (nanos - drop, ways[0] - drop);
        println!("{flows:>6} flows  {name:<12} {way:>7.0} ns  {:.2}", way / plain);
    }
}

/// Runs `body` while the relay's namespace drops at ingress.
pub(crate) fn with_drop(net: &Net, body: impl FnOnce() -> f64) -> f64 {
    traffic::drop_at_ingress(&net.sbc, "sa");
    let result = body();
    net.sbc.cmd("nft", &["delete", "table", "netdev", "sink"]);
    result
}

pub(crate) fn opened(sbc: &Ns, way: Way) -> Box<dyn Offload> {
    sbc.run(|| {
        let opened = open(&KernelConfig { way, ..KernelConfig::default() });
        opened.offload.unwrap_or_else(|| panic!("{}", opened.report.status().reason))
    })
}
