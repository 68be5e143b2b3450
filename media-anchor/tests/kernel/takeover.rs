//! A call of another node: in this kernel beforehand, relayed from the moment the addresses come,
//! and taken over by a session without a packet through userspace.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use media_anchor::config::{Config, Dscp, MediaAddr, MediaInterface};
use media_anchor::kernel::{KernelConfig, Report, Way};
use media_anchor::plan_types::Path;
use media_anchor::{
    EventSink, InterfaceId, Latch, MediaAnchor, Remote, SessionId, Side, SideSpec, StandbySide,
    StandbyStream, StreamKind,
};

use crate::call::{opened_with, receive};
use crate::netns::{Net, available};

const CALL: SessionId = SessionId(77);

fn soon(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::yield_now();
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

fn remote(rtp: &str) -> Remote {
    Remote {
        rtp: Some(at(rtp)),
        rtcp: None,
        rtcp_mux: false,
        sends: true,
        receives: true,
        latch: Latch::Auto,
    }
}

fn spec(interface: u16) -> SideSpec {
    SideSpec { interface: InterfaceId(interface), ipv6: false }
}

/// A is behind NAT: its SDP says 192.168.7.7.
const SIGNALLED: [&str; 2] = ["192.168.7.7:4000", "10.2.0.2:6000"];
const HEARD: [&str; 2] = ["10.1.0.2:5000", "10.2.0.2:6000"];
const PORTS: [u16; 2] = [30_010, 30_020];

fn recorded() -> StandbyStream {
    let side = |n: usize| StandbySide {
        spec: spec(u16::try_from(n).expect("small")),
        port: PORTS[n],
        remote: Some(remote(SIGNALLED[n])),
        latched: Some(at(HEARD[n])),
    };
    StandbyStream { kind: StreamKind::Audio, a: side(0), b: side(1) }
}

fn start(way: Way, test: &str) -> Option<(MediaAnchor, Arc<Report>)> {
    let devices = vec!["sa".to_owned(), "sb".to_owned()];
    let (offload, report) =
        opened_with(KernelConfig { way, devices, ..KernelConfig::default() }, test)?;
    let interface = |id: u16, ip: [u8; 4]| {
        let addr = MediaAddr { local: IpAddr::from(ip), advertise: IpAddr::from(ip) };
        MediaInterface {
            id: InterfaceId(id),
            v4: Some(addr),
            v6: None,
            ports: 30_000..=30_099,
            dscp: Dscp::default(),
        }
    };
    let mut config =
        Config::new(vec![interface(0, [10, 1, 0, 100]), interface(1, [10, 2, 0, 100])]);
    config.offload.settle = Duration::from_millis(50);
    config.offload.counters_every = Duration::from_millis(200);
    config.free_bind = true;
    Some((MediaAnchor::start(config, Some(offload)).expect("starts"), report))
}

#[test]
fn media_of_a_call_taken_over_never_leaves_the_kernel() {
    for way in [Way::Nftables, Way::Ebpf] {
        if !available("media_of_a_call_taken_over") {
            return;
        }
        let net = Net::new();
        net.sbc.run(|| taken_over(&net, way));
    }
}

fn taken_over(net: &Net, way: Way) {
    let Some((mut anchor, report)) = start(way, "a call taken over") else { return };
    let standby = anchor.take_standby().expect("there is a kernel way");
    let (a, b) = (net.a.udp(HEARD[0]), net.b.udp(HEARD[1]));
    let (to_a, to_b) = (at("10.1.0.100:30010"), at("10.2.0.100:30020"));
    standby.put(CALL, &[Some(recorded())]).expect("taken");
    soon("the flows stand by", || report.status().standby == 2);

    net.sbc.ip("addr add 10.1.0.100/32 dev sa\naddr add 10.2.0.100/32 dev sb\n");
    let mut sent = 0u64;
    let mut exchange = || {
        sent += 1;
        let rtp = |seq: u64| {
            let seq = u16::try_from(seq).expect("few").to_be_bytes();
            [&[0x80, 8], &seq[..], &[0; 4], &[0, 0, 0, 7], &[0x55; 160]].concat()
        };
        a.send_to(&rtp(sent), to_a).expect("send");
        assert_eq!(receive(&b), (rtp(sent), to_b));
        b.send_to(&rtp(sent), to_b).expect("send");
        assert_eq!(receive(&a), (rtp(sent), to_a));
    };
    exchange();

    // The session of the call comes, with what the record says.
    standby.adopted(CALL).expect("taken");
    let (sink, _events) = EventSink::new(64, Arc::new(|| {}));
    let mut handle = anchor.handle(0, &sink);
    handle.open(CALL, Some(Duration::from_secs(1))).expect("opens");
    for (n, side) in [Side::A, Side::B].into_iter().enumerate() {
        let spec = spec(u16::try_from(n).expect("small"));
        handle.bind_at(CALL, 0, StreamKind::Audio, side, spec, PORTS[n]).expect("binds");
        handle.restore(CALL, 0, side, at(HEARD[n])).expect("takes it");
        // Whatever is written of the call from now on names its source.
        let stats = handle.stats(CALL)[0];
        let said = [stats.a, stats.b][n].latched;
        assert_eq!(said, Some(at(HEARD[n])), "at once");
        handle.remote(CALL, 0, side, &remote(SIGNALLED[n]), false).expect("takes it");
    }
    let kernel = || {
        let stream = handle.streams(CALL).remove(0);
        [stream.a, stream.b].iter().all(|s| s.expect("bound").rtp == Path::Kernel)
    };
    soon("the session has its flows", || {
        exchange();
        kernel()
    });
    for _ in 0..50 {
        exchange();
    }
    soon("the counters come", || {
        let stats = handle.stats(CALL)[0];
        [stats.a, stats.b].iter().all(|s| s.kernel_packets == sent)
    });
    let stats = handle.stats(CALL)[0];
    assert_eq!((stats.a.packets, stats.b.packets), (sent, sent), "none went through userspace");
    assert_eq!(stats.a.latched, Some(at(HEARD[0])), "what was latched stays latched");
    let status = report.status();
    assert_eq!((status.standby, status.flows), (0, 2));
    assert_eq!((status.totals.promoted, status.totals.installed), (2, 2));

    handle.close(CALL);
    standby.remove(CALL).expect("taken");
    soon("the end removes all", || report.status().flows == 0);
}

#[test]
fn the_end_of_another_nodes_call_removes_what_stood_by() {
    for way in [Way::Nftables, Way::Ebpf] {
        if !available("the_end_of_another_nodes_call") {
            return;
        }
        let net = Net::new();
        net.sbc.run(|| {
            let Some((mut anchor, report)) = start(way, "the end of a call") else { return };
            let standby = anchor.take_standby().expect("there is a kernel way");
            standby.put(CALL, &[Some(recorded())]).expect("taken");
            soon("the flows stand by", || report.status().standby == 2);
            let mut held = recorded();
            held.a.remote.as_mut().expect("known").sends = false;
            standby.put(CALL, &[Some(held)]).expect("taken");
            soon("a direction on hold is taken out", || report.status().standby == 1);
            standby.remove(CALL).expect("taken");
            soon("nothing stands by", || report.status().flows == 0);
        });
    }
}
