//! What changes under a running relay: routes, devices, the table itself; and standby.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use media_anchor::Side;
use media_anchor::kernel::{KernelConfig, Way};
use media_anchor::plan_types::{FlowChange, FlowOutcome, Offload, Stay};

use crate::call::{Call, addr, apply, count, flow, flow_id, opened, opened_with, receive, waits};
use crate::netns::{Net, Ns, available};

const WAYS: [Way; 2] = [Way::Nftables, Way::Ebpf];

fn each_way(test: &str, body: fn(&Net, &mut dyn Offload)) {
    if !available(test) {
        return;
    }
    for way in WAYS {
        let net = Net::new();
        net.sbc.run(|| {
            if let Some((mut offload, _)) = opened(way, test) {
                body(&net, offload.as_mut());
            }
        });
    }
}

/// Polls until something is reported or `done` holds.
fn poll_until(offload: &mut dyn Offload, done: impl Fn() -> bool) -> Vec<FlowOutcome> {
    let begun = Instant::now();
    let mut outcomes = Vec::new();
    while outcomes.is_empty() && !done() {
        assert!(begun.elapsed() < Duration::from_secs(5), "nothing happened");
        offload.poll(&mut outcomes);
    }
    outcomes
}

fn poll(offload: &mut dyn Offload) -> Vec<FlowOutcome> {
    let mut outcomes = Vec::new();
    offload.poll(&mut outcomes);
    outcomes
}

#[test]
fn a_gateway_is_the_next_hop_and_may_move() {
    each_way("a_gateway_is_the_next_hop", |net, offload| {
        // b also has 10.9.0.2; two addresses of b's device are the gateways to it.
        net.b.ip("addr add 10.9.0.2/32 dev lo\naddr add 10.2.0.3/24 dev eth0\n");
        net.sbc.ip("route add 10.9.0.0/24 via 10.2.0.2\n");
        let call = Call::between(net, 1, "10.1.0.2", "10.1.0.1", "10.2.0.1", "10.9.0.2");
        call.install(offload);
        assert_eq!(call.a_to_b(b"one").0, b"one");
        assert_eq!(call.b_to_a(b"two").0, b"two");
        // The route moves to another device: a third leg to b.
        net.sbc.ip(&format!(
            "link add sc type veth peer name eth1 netns {}\n\
             addr add 10.3.0.1/24 dev sc\nlink set sc up\n",
            net.b.path()
        ));
        net.b.ip("addr add 10.3.0.2/24 dev eth1\nlink set eth1 up\n");
        net.sbc.ip("route replace 10.9.0.0/24 via 10.3.0.2\n");
        let tap = crate::frame::Tap::open(&net.b, "eth1");
        assert_eq!(poll(offload), []);
        assert_eq!(call.a_to_b(b"three").0, b"three");
        assert_eq!(tap.next_udp(6001).expect("by the other device").payload, b"three");
        assert_eq!(count(offload, flow_id(1, Side::A)).packets, 2, "counted over the move");
        // The route goes: back to userspace with what was counted.
        net.sbc.ip("route del 10.9.0.0/24\n");
        let outcomes = poll(offload);
        let [FlowOutcome::Evicted(id, Stay::NoRoute, counters)] = outcomes[..] else {
            panic!("{outcomes:?}");
        };
        assert_eq!((id, counters.packets), (flow_id(1, Side::A), 2));
        call.a.send_to(b"four", addr("10.1.0.1:40001")).expect("send");
        assert_eq!(receive(&call.sa).0, b"four");
    });
}

#[test]
fn a_new_link_address_of_the_neighbour_is_followed() {
    each_way("a_new_link_address", |net, offload| {
        let call = Call::v4(net, 2);
        call.install(offload);
        assert_eq!(call.a_to_b(b"one").0, b"one");
        net.b.ip("link set eth0 address 02:00:00:00:02:99\n");
        net.sbc.ip("neigh replace 10.2.0.2 lladdr 02:00:00:00:02:99 dev sb\n");
        assert_eq!(call.a_to_b(b"two").0, b"two");
        assert!(!waits(&call.sa));
    });
}

#[test]
fn a_device_that_vanishes_and_comes_back() {
    each_way("a_device_that_vanishes", |net, offload| {
        let call = Call::v4(net, 3);
        call.install(offload);
        assert_eq!(call.a_to_b(b"one").0, b"one");
        let flows = call.flows();
        drop(call);
        net.sbc.ip("link del sb\n");
        let gone = poll_until(offload, || false);
        let ids: Vec<_> = gone.iter().map(FlowOutcome::id).collect();
        assert_eq!(ids, [flow_id(3, Side::A)], "only what leaves by it: {gone:?}");
        net.link("sb", 2, &net.b);
        assert_eq!(poll(offload), []);
        assert_eq!(
            apply(offload, &[FlowChange::Install(flows[0])]),
            [FlowOutcome::Installed(flows[0].id)]
        );
        let call = Call::v4(net, 3);
        assert_eq!(call.a_to_b(b"two").0, b"two");
        assert_eq!(call.b_to_a(b"three").0, b"three", "attached again");
        assert!(!waits(&call.sa) && !waits(&call.sb));
    });
}

#[test]
fn a_device_that_goes_down_is_not_used() {
    each_way("a_device_that_goes_down", |net, offload| {
        let call = Call::v4(net, 4);
        call.install(offload);
        net.sbc.ip("link set sb down\n");
        let outcomes = poll_until(offload, || false);
        assert!(
            outcomes.iter().any(|o| matches!(o, FlowOutcome::Evicted(id, Stay::NoRoute, _)
                if *id == flow_id(4, Side::A))),
            "{outcomes:?}"
        );
    });
}

#[test]
fn a_table_deleted_by_somebody_is_made_again() {
    if !available("a_table_deleted_by_somebody") {
        return;
    }
    let net = Net::new();
    net.sbc.run(|| {
        let Some((mut offload, report)) = opened(Way::Nftables, "table deleted") else { return };
        let offload = offload.as_mut();
        let call = Call::v4(&net, 5);
        call.install(offload);
        assert_eq!(call.a_to_b(b"one").0, b"one");
        assert_eq!(count(offload, flow_id(5, Side::A)).packets, 1);
        // Found by the check between changes.
        net.sbc.cmd("nft", &["flush", "ruleset"]);
        let begun = Instant::now();
        while report.status().totals.rebuilt == 0 {
            assert!(begun.elapsed() < Duration::from_secs(5), "never found");
            assert_eq!(poll(offload), []);
        }
        assert_eq!(call.a_to_b(b"two").0, b"two");
        assert_eq!(count(offload, flow_id(5, Side::A)).packets, 2, "readings are kept");
        // Found by a change.
        net.sbc.cmd("nft", &["delete", "table", "netdev", "sbc_media"]);
        let second = Call::v4(&net, 6);
        second.install(offload);
        assert_eq!(call.a_to_b(b"three").0, b"three");
        assert_eq!(second.a_to_b(b"four").0, b"four");
        assert_eq!(count(offload, flow_id(5, Side::A)).packets, 3);
        // Found by a removal.
        net.sbc.cmd("nft", &["delete", "table", "netdev", "sbc_media"]);
        assert_eq!(second.remove(offload)[0].packets, 0, "not read since: lost with the table");
        assert_eq!(poll(offload), []);
        assert_eq!(report.status().totals.rebuilt, 3);
    });
}

#[test]
fn elements_that_are_missing_are_put_back() {
    if !available("elements_that_are_missing") {
        return;
    }
    let net = Net::new();
    net.sbc.run(|| {
        let config = KernelConfig {
            way: Way::Nftables,
            audit_every: Duration::ZERO,
            ..KernelConfig::default()
        };
        let Some((mut offload, report)) = opened_with(config, "mended") else { return };
        let offload = offload.as_mut();
        let call = Call::v4(&net, 7);
        call.install(offload);
        // Another process empties the map.
        net.sbc.cmd("nft", &["flush", "map", "netdev", "sbc_media", "m4"]);
        assert_eq!(count(offload, flow_id(7, Side::A)).packets, 0);
        assert_eq!(call.a_to_b(b"one").0, b"one", "put back by the reading that missed it");
        assert!(!waits(&call.sa));
        assert_eq!(poll(offload), []);
        assert_eq!(report.status().totals.missing, 1);
    });
}

#[test]
fn what_a_dead_process_left_is_replaced_and_nothing_stays() {
    if !available("what_a_dead_process_left") {
        return;
    }
    let net = Net::new();
    net.sbc.run(|| {
        let Some((mut first, _)) = opened(Way::Nftables, "left over") else { return };
        let call = Call::v4(&net, 8);
        call.install(first.as_mut());
        // A crash: nothing is removed.
        std::mem::forget(first);
        assert_eq!(call.a_to_b(b"one").0, b"one", "media goes on without the daemon");
        let Some((mut second, _)) = opened(Way::Nftables, "left over") else { return };
        call.a.send_to(b"two", addr("10.1.0.1:40008")).expect("send");
        assert_eq!(receive(&call.sa).0, b"two", "the new daemon knows nothing of it");
        call.install(second.as_mut());
        assert_eq!(call.a_to_b(b"three").0, b"three");
        drop(second);
        assert_eq!(net.sbc.cmd("nft", &["list", "tables"]), "", "removed at exit");
    });
}

#[test]
fn macvlan_devices_relay() {
    each_way("macvlan_devices_relay", |net, offload| {
        net.sbc.ip("link add link sa name mv type macvlan mode bridge\n\
             addr add 10.1.0.50/24 dev mv\nlink set mv up\n");
        // Without this both devices answer for both addresses.
        for device in ["sa", "mv", "all"] {
            net.sbc.sysctl(&format!("ipv4/conf/{device}/arp_ignore"), "1");
        }
        assert_eq!(poll(offload), []);
        let call = Call::between(net, 9, "10.1.0.2", "10.1.0.50", "10.2.0.1", "10.2.0.2");
        call.install(offload);
        assert_eq!(call.a_to_b(b"one").0, b"one");
        assert_eq!(call.b_to_a(b"two").0, b"two");
        assert!(!waits(&call.sa) && !waits(&call.sb));
    });
}

#[test]
fn an_egress_with_a_smaller_mtu_gets_no_overlong_packet() {
    each_way("an_egress_with_a_smaller_mtu", |net, offload| {
        net.sbc.ip("link set sb mtu 1000\n");
        net.b.ip("link set eth0 mtu 1000\n");
        poll(offload);
        let call = Call::v4(net, 10);
        let [towards_b, _] = call.flows();
        let outcome = apply(offload, &[FlowChange::Install(towards_b)]);
        if offload.name() == "nftables" {
            assert_eq!(outcome, [FlowOutcome::Refused(towards_b.id, Stay::NoRoute)]);
            return;
        }
        assert_eq!(outcome, [FlowOutcome::Installed(towards_b.id)]);
        assert_eq!(call.a_to_b(&[1; 900]).0.len(), 900);
        call.a.send_to(&[2; 1200], addr("10.1.0.1:40010")).expect("send");
        assert_eq!(receive(&call.sa).0.len(), 1200, "left to userspace");
    });
}

/// Entries of another node's calls: their address is not here yet, and comes with the takeover.
#[test]
fn a_standby_relays_from_the_moment_the_address_comes() {
    if !available("a_standby_relays") {
        return;
    }
    for way in WAYS {
        let net = Net::new();
        let floating = "10.1.0.100";
        net.sbc.run(|| {
            let config =
                KernelConfig { way, devices: vec!["sa".to_owned()], ..KernelConfig::default() };
            let Some((mut offload, _)) = opened_with(config, "standby") else { return };
            let offload = offload.as_mut();
            let (a, b) = (net.a.udp("10.1.0.2:5011"), net.b.udp("10.2.0.2:6011"));
            let at = |text: &str| addr(text);
            let floating_in: SocketAddr = at(&format!("{floating}:40011"));
            let floating_out: SocketAddr = at("10.2.0.100:41011");
            let flows = [
                flow(
                    11,
                    Side::A,
                    (at("10.1.0.2:5011"), floating_in),
                    (floating_out, at("10.2.0.2:6011")),
                ),
                flow(
                    11,
                    Side::B,
                    (at("10.2.0.2:6011"), floating_out),
                    (floating_in, at("10.1.0.2:5011")),
                ),
            ];
            let outcomes = apply(offload, &flows.map(FlowChange::Install));
            assert_eq!(outcomes, flows.map(|f| FlowOutcome::Installed(f.id)));
            net.sbc.ip("addr add 10.1.0.100/32 dev sa\naddr add 10.2.0.100/32 dev sb\n");
            a.send_to(b"there", floating_in).expect("send");
            assert_eq!(receive(&b), (b"there".to_vec(), floating_out));
            b.send_to(b"and back", floating_out).expect("send");
            assert_eq!(receive(&a), (b"and back".to_vec(), floating_in));
            assert_eq!(poll(offload), []);
            assert_eq!(count(offload, flow_id(11, Side::A)).packets, 1);
        });
    }
}

#[test]
fn a_hundred_thousand_calls_stand_by() {
    const CALLS: u32 = 100_000;
    if !available("a_hundred_thousand_calls") {
        return;
    }
    for way in WAYS {
        let net = Net::new();
        net.sbc.run(|| {
            let Some((mut offload, report)) = opened(way, "100,000 calls") else { return };
            let offload = offload.as_mut();
            let ours_a: IpAddr = [10, 1, 0, 100].into();
            let ours_b: IpAddr = [10, 2, 0, 100].into();
            let mut installed = 0;
            let begun = Instant::now();
            for batch in 0..CALLS / 1000 {
                let changes: Vec<FlowChange> = (batch * 1000..(batch + 1) * 1000)
                    .flat_map(|n| {
                        let low = u16::try_from(n % 20_000).expect("small");
                        let high = u8::try_from(n / 20_000).expect("small");
                        let a = SocketAddr::new([10, 1, 0, 10 + high].into(), 10_000 + low);
                        let b = SocketAddr::new([10, 2, 0, 10 + high].into(), 10_000 + low);
                        let sa = SocketAddr::new(ours_a, 20_000 + low);
                        let sb = SocketAddr::new(ours_b, 20_000 + low);
                        let session = u64::from(n) + 1_000_000;
                        [
                            FlowChange::Install(flow(session, Side::A, (a, sa), (sb, b))),
                            FlowChange::Install(flow(session, Side::B, (b, sb), (sa, a))),
                        ]
                    })
                    .collect();
                let outcomes = apply(offload, &changes);
                installed +=
                    outcomes.iter().filter(|o| matches!(o, FlowOutcome::Installed(_))).count();
            }
            println!("{}: {CALLS} calls installed in {:?}", offload.name(), begun.elapsed());
            assert_eq!(installed, 2 * CALLS as usize);
            poll(offload);
            assert_eq!(report.status().flows, u64::from(2 * CALLS));
            let call = Call::v4(&net, 20);
            call.install(offload);
            assert_eq!(call.a_to_b(b"one").0, b"one");
        });
    }
}

/// The namespace of a pod: CAP_NET_ADMIN in it and nothing else.
#[test]
fn without_any_capability_the_reason_is_told() {
    if !available("without_any_capability") {
        return;
    }
    let ns = Ns::new().expect("ns");
    ns.run(|| {
        drop_capabilities();
        let opened = media_anchor::kernel::open(&KernelConfig::default());
        assert!(opened.offload.is_none());
        let status = opened.report.status();
        assert_eq!(status.way, "off");
        assert_eq!(
            status.reason,
            "ebpf: not permitted (CAP_BPF and CAP_NET_ADMIN); nftables: not permitted \
             (CAP_NET_ADMIN is missing or was taken away)"
        );
        let off =
            media_anchor::kernel::open(&KernelConfig { way: Way::Off, ..KernelConfig::default() });
        assert_eq!(off.report.status().reason, "switched off in the configuration");
    });
}

/// Takes every capability from the calling thread.
pub(crate) fn drop_capabilities() {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let none = [0u32; 6];
    // SAFETY: capset reads a header of two words and, for version 3, two sets of three words; it
    // changes the calling thread alone.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    assert_eq!(result, 0);
}
