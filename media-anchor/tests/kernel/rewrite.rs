//! What a relayed packet looks like, and which packets are not relayed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use media_anchor::kernel::Way;
use media_anchor::plan_types::{Flow, FlowChange, FlowOutcome, Offload, Stay};
use media_anchor::{Side, StreamKind};
use nix::sys::socket::{setsockopt, sockopt};

use crate::call::{Call, addr, apply, count, flow, flow_id, opened, receive, waits};
use crate::frame::{Frame, MAC_OTHER, Tap};
use crate::netns::{MAC_A, MAC_SA, Net, available};

/// Runs a body in the SBC's namespace with a way open, for each way.
macro_rules! for_each_way {
    ($($name:ident),* $(,)?) => {
        mod nft {
            $(#[test] fn $name() { super::run(super::Way::Nftables, stringify!($name), super::$name); })*
        }
        mod ebpf {
            $(#[test] fn $name() { super::run(super::Way::Ebpf, stringify!($name), super::$name); })*
        }
    };
}

for_each_way!(
    both_directions_are_rewritten,
    ipv6_is_rewritten,
    marks_ttl_and_checksums,
    other_code_points,
    ipv6_marks_hop_limit_and_checksums,
    a_datagram_without_checksum_stays_without,
    fragments_are_left_to_the_stack,
    another_source_falls_to_the_socket,
    a_flooded_frame_is_not_relayed,
    hairpin_on_one_device,
    counters_are_exact_over_the_transition,
);

fn run(way: Way, name: &str, body: fn(&Net, &mut dyn Offload)) {
    if !available(name) {
        return;
    }
    let net = Net::new();
    net.sbc.run(|| {
        if let Some((mut offload, _)) = opened(way, name) {
            body(&net, offload.as_mut());
        }
    });
}

fn both_directions_are_rewritten(net: &Net, offload: &mut dyn Offload) {
    let call = Call::v4(net, 1);
    call.install(offload);
    assert_eq!(call.a_to_b(b"ping"), (b"ping".to_vec(), addr("10.2.0.1:41001")));
    assert_eq!(call.b_to_a(b"pong"), (b"pong".to_vec(), addr("10.1.0.1:40001")));
    assert!(!waits(&call.sa) && !waits(&call.sb), "userspace saw none of it");
    let counters = count(offload, flow_id(1, Side::A));
    assert_eq!((counters.packets, counters.bytes), (1, 4));
    let last = call.remove(offload);
    assert_eq!(last.map(|c| (c.packets, c.bytes)), [(1, 4), (1, 4)]);
    call.a.send_to(b"late", addr("10.1.0.1:40001")).expect("send");
    assert_eq!(receive(&call.sa).0, b"late", "userspace has it again");
}

fn ipv6_is_rewritten(net: &Net, offload: &mut dyn Offload) {
    let call = Call::v6(net, 2);
    call.install(offload);
    assert_eq!(call.a_to_b(b"ping6"), (b"ping6".to_vec(), addr("[fd02::1]:41002")));
    assert_eq!(call.b_to_a(b"pong6"), (b"pong6".to_vec(), addr("[fd01::1]:40002")));
    assert!(!waits(&call.sa) && !waits(&call.sb), "userspace saw none of it");
    assert_eq!(call.remove(offload).map(|c| (c.packets, c.bytes)), [(1, 5), (1, 5)]);
}

/// A datagram from a's socket leaves its checksum to the (absent) hardware.
fn marks_ttl_and_checksums(net: &Net, offload: &mut dyn Offload) {
    let call = Call::v4(net, 3);
    call.install(offload);
    let tap = Tap::open(&net.b, "eth0");
    call.a_to_b(b"odd length");
    let offloaded = tap.next_udp(6003).expect("captured");
    assert_eq!((offloaded.ttl, offloaded.dscp, offloaded.sport), (64, 46, 41_003));
    assert!(offloaded.checksums_hold, "{offloaded:?}");
    // And with checksums made by the sender.
    net.a.cmd("ethtool", &["-K", "eth0", "tx", "off"]);
    call.a_to_b(b"odd lengths");
    let finished = tap.next_udp(6003).expect("captured");
    assert_eq!((finished.ttl, finished.dscp), (64, 46));
    assert!(finished.checksums_hold && finished.udp_checksum != 0, "{finished:?}");
}

/// Every mark to every code point, of short datagrams and of such that nftables does not make the
/// header of anew.
fn each_mark(net: &Net, offload: &mut dyn Offload) {
    let call = Call::v4(net, 12);
    let tap = Tap::open(&net.b, "eth0");
    let [flow, _] = call.flows();
    // However it comes: unmarked, as EF with and without an ECN mark, as AF41.
    for (tos, (dscp, seen)) in [0, 0xb8, 0xba, 0x88]
        .into_iter()
        .flat_map(|tos| [(Some(34), 34), (None, 0), (Some(46), 46)].map(|d| (tos, d)))
    {
        let flow = Flow { dscp, ..flow };
        setsockopt(&call.a, sockopt::Ipv4Tos, &tos).expect("IP_TOS");
        assert_eq!(apply(offload, &[FlowChange::Install(flow)]), [FlowOutcome::Installed(flow.id)]);
        for length in [6, 995, 996, 1400] {
            call.a_to_b(&vec![7; length]);
            let got = tap.next_udp(6012).expect("captured");
            let want = (64, seen, true, length);
            let is = (got.ttl, got.dscp, got.checksums_hold, got.payload.len());
            assert_eq!(is, want, "{tos:#x} {got:?}");
        }
        assert_eq!(count(offload, flow.id).packets, 4, "counted once");
        let gone = apply(offload, &[FlowChange::Remove(flow.id)]);
        assert!(matches!(gone[..], [FlowOutcome::Removed(_, c)] if c.packets == 4), "{gone:?}");
    }
}

/// By nftables a short datagram leaves with a header made anew, as ours would: it may not be
/// fragmented. A long one keeps what a router on its way may need to do so.
#[test]
fn nftables_lets_long_datagrams_be_fragmented_later() {
    let name = "nftables_lets_long_datagrams_be_fragmented_later";
    if !available(name) {
        return;
    }
    let net = Net::new();
    net.sbc.run(|| {
        let Some((mut offload, _)) = opened(Way::Nftables, name) else { return };
        let call = Call::v4(&net, 14);
        call.install(offload.as_mut());
        let (inject, tap) = (Tap::open(&net.a, "eth0"), Tap::open(&net.b, "eth0"));
        for (fragment, length, want) in [
            (0, 100, [!128, 0x4000]),
            (0x4000, 995, [!1023, 0x4000]),
            (0, 996, [0x1234, 0]),
            (0x4000, 1400, [0x1234, 0x4000]),
        ] {
            let frame = Frame { fragment, payload: vec![9; length], ..frame_to(&call) };
            inject.send(&frame.bytes());
            let got = tap.next_udp(6014).expect("captured");
            let is = (got.fragment, got.ttl, got.checksums_hold, got.payload.len());
            assert_eq!(is, (want, 64, true, length), "{fragment:#x}");
        }
    });
}

/// The first of nftables' maps is small; what it does not hold goes to the other, and into the room
/// that is left when elements go.
#[test]
fn nftables_relays_more_than_its_first_map_holds() {
    const MORE: u16 = 9_000;
    let name = "nftables_relays_more_than_its_first_map_holds";
    if !available(name) {
        return;
    }
    let net = Net::new();
    net.sbc.run(|| {
        let Some((mut offload, report)) = opened(Way::Nftables, name) else { return };
        let offload = offload.as_mut();
        let at = |ip: [u8; 4], port: u16| SocketAddr::from((ip, port));
        let filler = |n: u16| {
            let arrives = (at([10, 1, 0, 2], 10_000 + n), at([10, 1, 0, 1], 10_000 + n));
            let leaves = (at([10, 2, 0, 1], 10_000 + n), at([10, 2, 0, 2], 10_000 + n));
            flow(1_000 + u64::from(n), Side::A, arrives, leaves)
        };
        let all: Vec<FlowChange> = (0..MORE).map(|n| FlowChange::Install(filler(n))).collect();
        assert_eq!(apply(offload, &all).len(), usize::from(MORE));
        let call = Call::v4(&net, 13);
        call.install(offload);
        offload.poll(&mut Vec::new());
        assert_eq!(report.status().flows, u64::from(MORE) + 2);
        assert_eq!(call.a_to_b(b"beyond").0, b"beyond");
        assert_eq!(count(offload, flow_id(13, Side::A)).packets, 1);
        let gone: Vec<FlowChange> = (0..MORE).map(|n| FlowChange::Remove(filler(n).id)).collect();
        let outcomes = apply(offload, &gone);
        assert!(outcomes.iter().all(|o| matches!(o, FlowOutcome::Removed(..))), "{outcomes:?}");
        assert_eq!(call.b_to_a(b"still").0, b"still");
        assert_eq!(call.remove(offload).map(|c| c.packets), [1, 1]);
        call.install(offload);
        assert_eq!(call.a_to_b(b"first").0, b"first");
        assert_eq!(call.remove(offload).map(|c| c.packets), [1, 0]);
        offload.poll(&mut Vec::new());
        assert_eq!(report.status().flows, 0);
    });
}

/// Another code point than the common one, and none.
fn other_code_points(net: &Net, offload: &mut dyn Offload) {
    each_mark(net, offload);
    let call = Call::v4(net, 11);
    let tap = Tap::open(&net.b, "eth0");
    let [flow, _] = call.flows();
    // In one transaction from one code point to another.
    let marked = |dscp| FlowChange::Install(Flow { dscp, ..flow });
    apply(offload, &[marked(Some(34))]);
    let moved = apply(offload, &[FlowChange::Remove(flow.id), marked(Some(46))]);
    assert!(
        matches!(moved[..], [FlowOutcome::Removed(..), FlowOutcome::Installed(_)]),
        "{moved:?}"
    );
    call.a_to_b(b"moved");
    assert_eq!(tap.next_udp(6011).expect("captured").dscp, 46);
    apply(offload, &[FlowChange::Remove(flow.id)]);
}

fn ipv6_marks_hop_limit_and_checksums(net: &Net, offload: &mut dyn Offload) {
    let call = Call::v6(net, 4);
    call.install(offload);
    let tap = Tap::open(&net.b, "eth0");
    call.a_to_b(b"odd length");
    let offloaded = tap.next_udp(6004).expect("captured");
    assert_eq!((offloaded.v6, offloaded.ttl, offloaded.dscp), (true, 64, 46));
    assert!(offloaded.checksums_hold, "{offloaded:?}");
    net.a.cmd("ethtool", &["-K", "eth0", "tx", "off"]);
    call.a_to_b(b"odd lengths");
    let finished = tap.next_udp(6004).expect("captured");
    assert!(finished.checksums_hold && finished.udp_checksum != 0, "{finished:?}");
}

fn frame_to(call: &Call) -> Frame {
    let port = |base: u16| base + u16::try_from(call.session).expect("small");
    Frame {
        dst_mac: MAC_SA,
        src_mac: MAC_A,
        src: ([10, 1, 0, 2].into(), port(5000)),
        dst: ([10, 1, 0, 1].into(), port(40_000)),
        fragment: 0x4000,
        ttl: 9,
        with_checksum: true,
        payload: b"by hand".to_vec(),
    }
}

fn a_datagram_without_checksum_stays_without(net: &Net, offload: &mut dyn Offload) {
    let call = Call::v4(net, 5);
    call.install(offload);
    let (inject, tap) = (Tap::open(&net.a, "eth0"), Tap::open(&net.b, "eth0"));
    inject.send(&Frame { with_checksum: false, ..frame_to(&call) }.bytes());
    let got = tap.next_udp(6005).expect("captured");
    assert_eq!((got.udp_checksum, got.checksums_hold, got.ttl), (0, true, 64));
    inject.send(&frame_to(&call).bytes());
    let got = tap.next_udp(6005).expect("captured");
    assert!(got.udp_checksum != 0 && got.checksums_hold, "{got:?}");
    assert_eq!(got.payload, b"by hand");
}

fn fragments_are_left_to_the_stack(net: &Net, offload: &mut dyn Offload) {
    let call = Call::v4(net, 6);
    call.install(offload);
    let payload: Vec<u8> = (0..2000u16).map(|n| n.to_le_bytes()[0]).collect();
    net.a.ip("link set eth0 mtu 1000\n");
    call.a.send_to(&payload, addr("10.1.0.1:40006")).expect("send");
    assert_eq!(receive(&call.sa).0, payload, "put together by the stack");
    assert_eq!(count(offload, flow_id(6, Side::A)).packets, 0);
    assert_eq!(call.a_to_b(b"whole").0, b"whole");
}

fn another_source_falls_to_the_socket(net: &Net, offload: &mut dyn Offload) {
    let call = Call::v4(net, 7);
    call.install(offload);
    let other = net.a.udp("10.1.0.2:5999");
    other.send_to(b"injected", addr("10.1.0.1:40007")).expect("send");
    assert_eq!(receive(&call.sa), (b"injected".to_vec(), addr("10.1.0.2:5999")));
    assert_eq!(call.a_to_b(b"real").0, b"real", "the first that b gets");
    assert_eq!(count(offload, flow_id(7, Side::A)).packets, 1);
}

/// A standby that holds the same elements sees frames that a switch floods: they are not to it.
fn a_flooded_frame_is_not_relayed(net: &Net, offload: &mut dyn Offload) {
    let call = Call::v4(net, 8);
    call.install(offload);
    net.sbc.ip("link set sa promisc on\n");
    let inject = Tap::open(&net.a, "eth0");
    inject.send(&Frame { dst_mac: MAC_OTHER, ..frame_to(&call) }.bytes());
    inject.send(&Frame { payload: b"to us".to_vec(), ..frame_to(&call) }.bytes());
    assert_eq!(receive(&call.b).0, b"to us", "and nothing before it");
    assert_eq!(count(offload, flow_id(8, Side::A)).packets, 1);
}

fn hairpin_on_one_device(net: &Net, offload: &mut dyn Offload) {
    net.a.ip("addr add 10.1.0.3/24 dev eth0\n");
    let x = net.a.udp("10.1.0.2:5009");
    let y = net.a.udp("10.1.0.3:5009");
    let at = |text| addr(text);
    let flows: [Flow; 2] = [
        flow(
            9,
            Side::A,
            (at("10.1.0.2:5009"), at("10.1.0.1:40009")),
            (at("10.1.0.1:41009"), at("10.1.0.3:5009")),
        ),
        flow(
            9,
            Side::B,
            (at("10.1.0.3:5009"), at("10.1.0.1:41009")),
            (at("10.1.0.1:40009"), at("10.1.0.2:5009")),
        ),
    ];
    let outcomes = apply(offload, &flows.map(FlowChange::Install));
    assert_eq!(outcomes, flows.map(|f| FlowOutcome::Installed(f.id)));
    x.send_to(b"there", at("10.1.0.1:40009")).expect("send");
    assert_eq!(receive(&y), (b"there".to_vec(), at("10.1.0.1:41009")));
    y.send_to(b"and back", at("10.1.0.1:41009")).expect("send");
    assert_eq!(receive(&x), (b"and back".to_vec(), at("10.1.0.1:40009")));
}

/// A stream of numbered datagrams over installation and removal: each arrives once, by one way.
fn counters_are_exact_over_the_transition(net: &Net, offload: &mut dyn Offload) {
    const ALL: u32 = 3000;
    let call = Call::v4(net, 10);
    let to = addr("10.1.0.1:40010");
    let mut by_userspace = 0u32;
    let mut kernel_packets = 0;
    let mut seen = vec![0u8; ALL as usize];
    let mut pump = |call: &Call, seen: &mut [u8]| {
        // What the userspace relay does with its queue.
        while waits(&call.sa) {
            let (payload, _) = receive(&call.sa);
            call.sb.send_to(&payload, addr("10.2.0.2:6010")).expect("send");
            by_userspace += 1;
        }
        while waits(&call.b) {
            let (payload, from) = receive(&call.b);
            assert_eq!(from, addr("10.2.0.1:41010"));
            let n = u32::from_be_bytes(payload.try_into().expect("four bytes"));
            seen[n as usize] += 1;
        }
    };
    for n in 0..ALL {
        call.a.send_to(&n.to_be_bytes(), to).expect("send");
        match n % 500 {
            100 => call.install(offload),
            300 => kernel_packets += call.remove(offload)[0].packets,
            _ => {}
        }
        pump(&call, &mut seen);
    }
    let until = Instant::now() + Duration::from_secs(5);
    while seen.contains(&0) && Instant::now() < until {
        pump(&call, &mut seen);
    }
    assert!(!waits(&call.b), "nothing twice");
    assert!(seen.iter().all(|n| *n == 1), "each once");
    assert_eq!(kernel_packets + u64::from(by_userspace), u64::from(ALL), "each counted once");
    assert_eq!(kernel_packets, 6 * 200);
}

#[test]
fn what_the_kernel_cannot_do_is_refused_by_name() {
    if !available("what_the_kernel_cannot_do_is_refused_by_name") {
        return;
    }
    let net = Net::new();
    net.sbc.run(|| {
        let Some((mut offload, report)) = opened(Way::Nftables, "refused_by_name") else { return };
        let case = |session, leaves: (&str, &str), stay| {
            let flow = Flow {
                kind: StreamKind::Video,
                ..flow(
                    session,
                    Side::A,
                    (addr("10.1.0.2:7000"), addr("10.1.0.1:40100")),
                    (addr(leaves.0), addr(leaves.1)),
                )
            };
            (flow, FlowOutcome::Refused(flow.id, stay))
        };
        for (flow, want) in [
            case(1, ("[fd02::1]:1", "[fd02::2]:2"), Stay::Family),
            case(2, ("10.2.0.1:1", "198.51.100.1:2"), Stay::NoRoute),
            case(3, ("10.2.0.1:1", "10.1.0.1:2"), Stay::NoRoute),
            case(4, ("10.2.0.1:1", "224.0.0.1:2"), Stay::Refused),
            case(5, ("10.2.0.1:1", "10.2.0.2:0"), Stay::Refused),
        ] {
            assert_eq!(apply(offload.as_mut(), &[FlowChange::Install(flow)]), [want]);
        }
        let mut none = Vec::new();
        offload.poll(&mut none);
        assert_eq!((none, report.status().flows), (Vec::new(), 0));
    });
}
