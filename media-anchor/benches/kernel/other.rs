//! Calls per second, added latency, and what bans cost. Memory is in `memory.rs`.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use media_anchor::kernel::{Ban, BanConfig, BanSet, BanTarget, Way};
use media_anchor::plan_types::{Flow, FlowChange, Offload};
use nix::sys::resource::{UsageWho, getrusage};

use crate::clock;
use crate::cpu::{cost, opened};
use crate::netns::Net;
use crate::traffic::{self, Frame, Sender};

const WAYS: [Way; 2] = [Way::Ebpf, Way::Nftables];
const CALLS: usize = 10_000;
const AT_ONCE: usize = 64;
const ROUNDS: usize = 5;

/// Calls (two flows) installed and removed, as many at once as the driver would gather.
pub(crate) fn rate() {
    println!(
        "calls installed and removed, {AT_ONCE} at once; CPU of the driver thread, median of {ROUNDS}"
    );
    for way in WAYS {
        let net = traffic::net(true);
        let mut offload = opened(&net.sbc, way);
        net.sbc.run(|| {
            traffic::install(offload.as_mut(), 1);
            offload.apply(
                &[FlowChange::Remove(traffic::flow(0).id), FlowChange::Remove(traffic::back(0).id)],
                &mut Vec::new(),
            );
            let (mut install, mut remove) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                install.push(changed(offload.as_mut(), FlowChange::Install));
                remove.push(changed(offload.as_mut(), |flow| FlowChange::Remove(flow.id)));
            }
            let (install, remove) = (clock::median(install), clock::median(remove));
            println!(
                "{:<10}  install {:>7.0}/s  remove {:>7.0}/s  both {:>7.0} calls/s",
                offload.name(),
                CALLS as f64 / install,
                CALLS as f64 / remove,
                CALLS as f64 / (install + remove)
            );
        });
        net.sbc.run(|| drop(offload));
    }
}

/// Seconds of CPU for one change of both flows of every call.
fn changed(offload: &mut dyn Offload, change: impl Fn(Flow) -> FlowChange) -> f64 {
    let begun = clock::thread();
    for first in (0..CALLS).step_by(AT_ONCE) {
        let calls = first..(first + AT_ONCE).min(CALLS);
        let changes: Vec<FlowChange> =
            calls.flat_map(|n| [traffic::flow(n), traffic::back(n)]).map(&change).collect();
        offload.apply(&changes, &mut Vec::new());
    }
    (clock::thread() - begun).as_secs_f64()
}

/// From before the send to after the receive on one thread, where all of a veth chain happens. A
/// sample in which the scheduler took the processor away says nothing about the relay: it is thrown
/// away and counted.
pub(crate) fn latency() {
    const SAMPLES: usize = 20_000;
    println!("send to receive on one thread, undisturbed, µs: p50 p99 p99.9 (samples kept)");
    let net = traffic::net(false);
    let mut ways: Vec<(&str, Vec<u64>)> =
        ["ip_forward", "ebpf", "nftables"].map(|name| (name, Vec::new())).into();
    for _ in 0..3 {
        for (name, samples) in &mut ways {
            let way = match *name {
                "ebpf" => Way::Ebpf,
                "nftables" => Way::Nftables,
                _ => {
                    net.sbc.sysctl("ipv4/ip_forward", "1");
                    measure(&net, "10.2.0.2:40000", SAMPLES, samples);
                    net.sbc.sysctl("ipv4/ip_forward", "0");
                    continue;
                }
            };
            let mut offload = opened(&net.sbc, way);
            net.sbc.run(|| traffic::install(offload.as_mut(), 1));
            measure(&net, "10.1.0.1:20000", SAMPLES, samples);
            net.sbc.run(|| drop(offload));
        }
    }
    for (name, mut samples) in ways {
        samples.sort_unstable();
        let at = |per_mille: usize| samples[samples.len() * per_mille / 1000] as f64 / 1000.0;
        let kept = samples.len();
        println!("{name:<10}  {:>6.1} {:>6.1} {:>6.1}  ({kept})", at(500), at(990), at(999));
    }
}

/// How often this thread has lost the processor, of its own will or not.
fn switches() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("usage");
    usage.voluntary_context_switches() + usage.involuntary_context_switches()
}

fn measure(net: &Net, to: &str, count: usize, samples: &mut Vec<u64>) {
    let from = net.a.udp("10.1.0.2:10000");
    let sink = net.b.udp("10.2.0.2:40000");
    let payload = [0x80; 172];
    let mut buf = [0; 256];
    net.a.run(|| {
        clock::pin(0);
        for _ in 0..count {
            let before = switches();
            let begun = Instant::now();
            from.send_to(&payload, to).expect("send");
            sink.recv_from(&mut buf).expect("received");
            let took = begun.elapsed();
            if switches() == before {
                samples.push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
            }
        }
    });
}

/// What a dropped packet costs beside a plain drop, and what the rule costs relayed media.
pub(crate) fn bans() {
    const PACKETS: usize = 200_000;
    const ROUNDS: usize = 5;
    println!("bans: ns of CPU per packet, the sender's own work included");
    for sources in [1, 10_000, 100_000] {
        let net = traffic::net(true);
        let frames: Vec<Frame> =
            (0..sources).map(|n| Frame::new((source(n), 5060), (traffic::SA, 5060))).collect();
        let media = traffic::to_relay(1000);
        let bans: Vec<Ban> = (0..sources)
            .map(|n| Ban {
                target: BanTarget::host(IpAddr::V4(source(n))),
                lasts: Duration::from_secs(600),
            })
            .collect();
        let (mut plain, mut banned, mut with, mut without) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        net.a.run(|| {
            clock::pin(0);
            let sender = Sender::open(&net.a, "eth0");
            let mut offload = opened(&net.sbc, Way::Nftables);
            net.sbc.run(|| traffic::install(offload.as_mut(), 1000));
            for _ in 0..ROUNDS {
                let set = net.sbc.run(|| {
                    let mut set = BanSet::open(BanConfig::default()).expect("a drop set");
                    set.ban(&bans).expect("ban");
                    set
                });
                banned.push(cost(&sender, &frames, PACKETS));
                with.push(cost(&sender, &media, PACKETS));
                net.sbc.run(|| drop(set));
                without.push(cost(&sender, &media, PACKETS));
                traffic::drop_at_ingress(&net.sbc, "sa");
                plain.push(cost(&sender, &frames, PACKETS));
                net.sbc.cmd("nft", &["delete", "table", "netdev", "sink"]);
            }
            net.sbc.run(|| drop(offload));
        });
        println!(
            "{sources:>7} sources  dropped by ban {:>5.0}  by a plain rule {:>5.0}  \
             relayed media beside bans {:>5.0}  without {:>5.0}",
            clock::median(banned),
            clock::median(plain),
            clock::median(with),
            clock::median(without)
        );
    }
}

fn source(n: usize) -> std::net::Ipv4Addr {
    (0x0b00_0000 + u32::try_from(n).expect("small")).into()
}
