//! The anchor with real sockets on loopback: what is relayed, byte for byte, and what is not.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use media_anchor::plan_types::{Path, Stay};
use media_anchor::{
    DropReason, Event, InterfaceId, Latch, MediaError, SessionId, Side, SideSpec, StreamKind,
};
use support::{Bench, Endpoint, ID, config, remote, rtcp, rtp, until};

const SPEC: SideSpec = SideSpec { interface: InterfaceId(0), ipv6: false };

#[test]
fn rtp_is_relayed_both_ways_byte_for_byte_from_the_ports_we_told() {
    let mut bench = Bench::new(1, 20_000..=20_099);
    let (alice, bob) = (bench.endpoint(2), bench.endpoint(3));
    let [to_a, to_b] = bench.call(StreamKind::Audio, (&alice, Latch::Auto), (&bob, Latch::Auto));
    for _ in 0..20 {
        let sent = alice.send(to_a.rtp);
        assert_eq!(bob.receive(), (sent, to_b.rtp));
        let sent = bob.send(to_b.rtp);
        assert_eq!(alice.receive(), (sent, to_a.rtp));
    }
    let streams = bench.handle.streams(ID);
    let b = streams[0].b.expect("is bound");
    assert_eq!((b.local, b.signalled, b.stats.packets), (to_b, Some(bob.addr()), 20));
    assert_eq!(b.rtp, Path::Userspace(Stay::Off));
    let stats = bench.handle.close(ID)[0];
    assert_eq!((stats.a.packets, stats.a.bytes), (20, 20 * 172));
    assert_eq!((stats.b.packets, stats.b.bytes), (20, 20 * 172));
    assert_eq!((stats.a.lost, stats.a.dropped_total()), (0, 0));
    assert_eq!(stats.a.latched, Some(alice.addr()));
    assert_eq!(stats.b.ssrc, u32::from(bob.addr().port()));
    let latched: Vec<Event> = bench.events.try_iter().collect();
    let event = |side, addr| Event::Latched { session: ID, stream: 0, side, addr };
    assert_eq!(latched, [event(Side::A, alice.addr()), event(Side::B, bob.addr())]);
}

#[test]
fn ipv4_and_ipv6_sides_are_relayed_to_each_other() {
    let mut bench = Bench::new(2, 20_100..=20_199);
    let alice = bench.endpoint(2);
    let bob = Endpoint::new("[::1]:0".parse().expect("an address"));
    let [to_a, to_b] = bench.call(StreamKind::Audio, (&alice, Latch::Auto), (&bob, Latch::Auto));
    assert!(to_a.rtp.is_ipv4() && to_b.rtp.is_ipv6());
    let sent = alice.send(to_a.rtp);
    assert_eq!(bob.receive(), (sent, to_b.rtp));
    let sent = bob.send(to_b.rtp);
    assert_eq!(alice.receive(), (sent, to_a.rtp));
}

#[test]
fn rtcp_goes_by_the_odd_ports_and_by_mux_where_agreed_rfc5761() {
    let mut bench = Bench::new(3, 20_200..=20_299);
    let (alice, bob) = (bench.endpoint(2), bench.endpoint(3));
    let alice_rtcp = bench.endpoint(2);
    let [to_a, to_b] = bench.call(StreamKind::Audio, (&alice, Latch::Auto), (&bob, Latch::Auto));
    assert_eq!((to_a.rtp.port() % 2, to_a.rtcp.port()), (0, to_a.rtp.port() + 1));
    let mut of_a = remote(alice.addr(), Latch::Auto);
    of_a.rtcp = Some(alice_rtcp.addr());
    bench.handle.remote(ID, 0, Side::A, &of_a, false).expect("takes it");
    let mut of_b = remote(bob.addr(), Latch::Auto);
    of_b.rtcp_mux = true;
    bench.handle.remote(ID, 0, Side::B, &of_b, false).expect("takes it");

    let sent = bob.send(to_b.rtp);
    assert_eq!(alice.receive(), (sent, to_a.rtp));
    bob.send_raw(to_b.rtp, &rtcp(2));
    assert_eq!(alice_rtcp.receive(), (rtcp(2), to_a.rtcp));
    alice_rtcp.send_raw(to_a.rtcp, &rtcp(1));
    assert_eq!(bob.receive(), (rtcp(1), to_b.rtp));
    let stats = bench.handle.stats(ID)[0];
    assert_eq!((stats.a.rtcp_packets, stats.b.rtcp_packets, stats.b.packets), (1, 1, 1));
}

/// The sockets are not connected and ask for no errors: what ICMP says of one packet fails no other.
#[test]
fn an_endpoint_whose_port_is_closed_costs_no_packet_once_it_is_open() {
    let mut bench = Bench::new(19, 21_800..=21_899);
    let (alice, bob) = (bench.endpoint(2), bench.endpoint(3));
    let [to_a, to_b] = bench.call(StreamKind::Audio, (&alice, Latch::Auto), (&bob, Latch::Auto));
    let sent = alice.send(to_a.rtp);
    assert_eq!(bob.receive(), (sent, to_b.rtp));
    let at = bob.addr();
    drop(bob);
    for n in 0..10 {
        alice.send(to_a.rtp);
        // One at a time, so that each finds the error of the one before.
        bench.judged(2 + n);
    }
    let bob = Endpoint::new(at);
    for _ in 0..10 {
        let sent = alice.send(to_a.rtp);
        assert_eq!(bob.receive(), (sent, to_b.rtp));
        let sent = bob.send(to_b.rtp);
        assert_eq!(alice.receive(), (sent, to_a.rtp));
    }
    let stats = bench.handle.stats(ID)[0];
    assert_eq!((stats.a.packets, stats.b.packets), (21, 10));
    assert_eq!(bench.anchor.totals().dropped_for(DropReason::Send), 0);
}

#[test]
fn garbage_short_rtcp_and_oversize_reach_nobody_and_are_counted() {
    let mut bench = Bench::new(4, 20_300..=20_399);
    let (alice, bob) = (bench.endpoint(2), bench.endpoint(3));
    let [to_a, _] = bench.call(StreamKind::Audio, (&alice, Latch::Auto), (&bob, Latch::Auto));
    alice.send(to_a.rtp);
    bob.receive();
    alice.send_raw(to_a.rtp, &[]);
    alice.send_raw(to_a.rtp, &[0x80, 200, 0, 0]);
    alice.send_raw(to_a.rtcp, &[0x80, 200, 0, 0]);
    alice.send_raw(to_a.rtp, &[22, 254, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    alice.send_raw(to_a.rtp, &rtcp(1));
    let mut long = rtp(500, 1);
    long.resize(3000, 0);
    alice.send_raw(to_a.rtp, &long);
    bench.judged(7);
    bob.hears_nothing();
    let stats = bench.handle.stats(ID)[0];
    let totals = bench.anchor.totals();
    assert_eq!(totals.dropped_for(DropReason::Garbage), 5);
    assert_eq!(totals.dropped_for(DropReason::Oversize), 1);
    assert_eq!((stats.a.dropped_total(), stats.a.packets), (6, 1));
}

#[test]
fn a_spray_over_the_whole_range_while_learning_gets_nothing_and_reaches_nobody() {
    let mut bench = Bench::new(5, 20_400..=20_419);
    let (alice, bob) = (bench.endpoint(2), bench.endpoint(3));
    let stranger = bench.endpoint(66);
    let [to_a, to_b] = bench.call(StreamKind::Audio, (&alice, Latch::Force), (&bob, Latch::Auto));
    // Other SSRC or sequence each time: what probes do that do not know the stream.
    for round in 0..5u16 {
        for port in [to_a.rtp, to_a.rtcp, to_b.rtp, to_b.rtcp] {
            stranger.send_raw(port, &rtp(round * 1000, u32::from(round)));
            stranger.send_raw(port, &rtcp(u32::from(round)));
        }
    }
    bench.judged(40);
    for endpoint in [&stranger, &alice, &bob] {
        endpoint.hears_nothing();
    }
    // The endpoints are found all the same.
    let judged = (0..3).map(|_| alice.send(to_a.rtp)).last().expect("three");
    assert_eq!(bob.receive(), (judged, to_b.rtp), "the third packet of a forced latch");
    let sent = bob.send(to_b.rtp);
    assert_eq!(alice.receive(), (sent, to_a.rtp));
    stranger.hears_nothing();
    assert_eq!(bench.anchor.totals().relayed, 2);
}

#[test]
fn injection_mid_call_reaches_nobody_and_gets_nothing() {
    let mut bench = Bench::new(6, 20_500..=20_519);
    let (alice, bob) = (bench.endpoint(2), bench.endpoint(3));
    // The same host as alice but another port: worse than any stranger.
    let stranger = bench.endpoint(2);
    let [to_a, to_b] = bench.call(StreamKind::Audio, (&alice, Latch::Auto), (&bob, Latch::Auto));
    alice.send(to_a.rtp);
    bob.receive();
    bob.send(to_b.rtp);
    alice.receive();
    for sequence in 0..50 {
        stranger.send_raw(to_a.rtp, &rtp(101 + sequence, u32::from(alice.addr().port())));
        stranger.send_raw(to_b.rtp, &rtp(101 + sequence, u32::from(bob.addr().port())));
    }
    bench.judged(102);
    for endpoint in [&stranger, &alice, &bob] {
        endpoint.hears_nothing();
    }
    let stats = bench.handle.stats(ID)[0];
    assert_eq!(stats.a.dropped[0] + stats.b.dropped[0], 100);
    let sent = alice.send(to_a.rtp);
    assert_eq!(bob.receive().0, sent);
    assert_eq!(bench.handle.stats(ID)[0].a.lost, 0, "injected packets are not in the statistics");
}

#[test]
fn nothing_is_sent_to_a_forced_side_before_it_spoke() {
    let mut bench = Bench::new(7, 20_600..=20_619);
    let (alice, bob) = (bench.endpoint(2), bench.endpoint(3));
    let [_, to_b] = bench.call(StreamKind::Audio, (&alice, Latch::Force), (&bob, Latch::Auto));
    bob.send(to_b.rtp);
    bench.judged(1);
    alice.hears_nothing();
    assert_eq!(bench.anchor.totals().dropped_for(DropReason::NoPeer), 1);
}

#[test]
fn t38_is_relayed_without_rtp_checks() {
    let mut bench = Bench::new(8, 20_700..=20_719);
    let (alice, bob) = (bench.endpoint(2), bench.endpoint(3));
    let [to_a, to_b] = bench.call(StreamKind::Image, (&alice, Latch::Auto), (&bob, Latch::Auto));
    alice.send_raw(to_a.rtp, &[0, 1, 2]);
    assert_eq!(bob.receive(), (vec![0, 1, 2], to_b.rtp));
    until("one socket per side", || bench.anchor.totals().sockets == 2);
}

#[test]
fn hold_stops_media_in_its_direction_and_resume_starts_it() {
    let mut bench = Bench::new(9, 20_800..=20_819);
    let (alice, bob) = (bench.endpoint(2), bench.endpoint(3));
    let [to_a, to_b] = bench.call(StreamKind::Audio, (&alice, Latch::Auto), (&bob, Latch::Auto));
    alice.send(to_a.rtp);
    bob.receive();
    let mut held = remote(bob.addr(), Latch::Auto);
    held.receives = false;
    bench.handle.remote(ID, 0, Side::B, &held, false).expect("takes it");
    until("the direction is off", || {
        alice.send(to_a.rtp);
        bench.handle.stats(ID)[0].a.dropped
            [DropReason::ALL.iter().position(|r| *r == DropReason::Direction).expect("a reason")]
            > 0
    });
    let sent = bob.send(to_b.rtp);
    assert_eq!(alice.receive(), (sent, to_a.rtp), "music on hold");
    bench.handle.remote(ID, 0, Side::B, &remote(bob.addr(), Latch::Auto), false).expect("takes it");
    while bob.receive_for(support::SILENCE).is_some() {}
    let sent = alice.send(to_a.rtp);
    assert_eq!(bob.receive(), (sent, to_b.rtp));
}

#[test]
fn addresses_that_media_may_not_go_to_are_refused_by_name() {
    let mut bench = Bench::new(10, 20_900..=20_919);
    let (alice, bob) = (bench.endpoint(2), bench.endpoint(3));
    let [to_a, _] = bench.call(StreamKind::Audio, (&alice, Latch::Auto), (&bob, Latch::Auto));
    for addr in ["0.0.0.0:4000", "169.254.169.254:80", "224.0.0.1:4000", "255.255.255.255:4000"] {
        let addr: SocketAddr = addr.parse().expect("an address");
        let refused = bench.handle.remote(ID, 0, Side::A, &remote(addr, Latch::Auto), true);
        assert_eq!(refused, Err(MediaError::Forbidden(addr)));
    }
    let refused = bench.handle.remote(ID, 0, Side::B, &remote(to_a.rtp, Latch::Auto), true);
    assert_eq!(refused, Err(MediaError::Forbidden(to_a.rtp)), "a loop");
    alice.send(to_a.rtp);
    bob.receive();
}

#[test]
fn a_port_rests_in_quarantine_and_a_full_range_says_so() {
    let mut config = config(11, 21_000..=21_003);
    config.quarantine = Duration::from_secs(600);
    config.quarantine_min = config.quarantine;
    let mut bench = Bench::with(11, config);
    bench.handle.open(ID, None).expect("opens");
    let first = bench.handle.bind(ID, 0, StreamKind::Audio, Side::A, SPEC).expect("binds");
    let again = bench.handle.bind(ID, 0, StreamKind::Audio, Side::A, SPEC).expect("binds");
    assert_eq!(first, again, "the same spec is the same port");
    bench.handle.close(ID);
    let next = SessionId(8);
    bench.handle.open(next, None).expect("opens");
    let second = bench.handle.bind(next, 0, StreamKind::Audio, Side::A, SPEC).expect("binds");
    assert_ne!(first.rtp, second.rtp);
    let none = bench.handle.bind(next, 0, StreamKind::Audio, Side::B, SPEC);
    assert_eq!(none, Err(MediaError::NoPorts));
    until("the first session's sockets are closed", || bench.anchor.totals().sockets == 2);
    let taken_over =
        bench.handle.bind_at(next, 0, StreamKind::Audio, Side::B, SPEC, first.rtp.port());
    assert_eq!(taken_over, Ok(first), "a call taken over has its old port");
}

#[test]
fn a_port_held_by_another_process_is_skipped_and_counted() {
    let mut bench = Bench::new(12, 21_100..=21_103);
    let holder = Endpoint::new(SocketAddr::from(([127, 77, 12, 1], 21_101)));
    bench.handle.open(ID, None).expect("opens");
    let local = bench.handle.bind(ID, 0, StreamKind::Audio, Side::A, SPEC).expect("binds");
    assert_eq!(local.rtp.port(), 21_102);
    let none = bench.handle.bind(ID, 0, StreamKind::Audio, Side::B, SPEC);
    assert_eq!(none, Err(MediaError::NoPorts));
    let counts = bench.anchor.totals().ports[0].2;
    assert_eq!((counts.total, counts.used, counts.occupied), (2, 1, 1));
    drop(holder);
}

#[test]
fn unknown_twice_and_too_many_are_named() {
    let mut config = config(13, 21_200..=21_299);
    config.max_sessions = 1;
    let mut bench = Bench::with(13, config);
    let unknown = bench.handle.bind(ID, 0, StreamKind::Audio, Side::A, SPEC);
    assert_eq!(unknown, Err(MediaError::Unknown));
    bench.handle.open(ID, None).expect("opens");
    assert_eq!(bench.handle.open(ID, None), Err(MediaError::Exists));
    assert_eq!(bench.handle.open(SessionId(8), None), Err(MediaError::TooManySessions));
    let far = bench.handle.bind(ID, 8, StreamKind::Audio, Side::A, SPEC);
    assert_eq!(far, Err(MediaError::TooManyStreams));
    let nowhere = SideSpec { interface: InterfaceId(9), ipv6: false };
    let refused = bench.handle.bind(ID, 0, StreamKind::Audio, Side::A, nowhere);
    assert_eq!(refused, Err(MediaError::NoAddress));
    bench.handle.close(ID);
    bench.handle.open(SessionId(8), None).expect("there is room again");
}

#[test]
fn a_thousand_sessions_leave_no_socket_and_no_port_behind() {
    let mut config = config(14, 22_000..=27_999);
    config.quarantine = Duration::ZERO;
    config.relay_threads = 2;
    let mut bench = Bench::with(14, config);
    for n in 0..1000 {
        let id = SessionId(n);
        bench.handle.open(id, Some(Duration::from_secs(60))).expect("opens");
        for side in [Side::A, Side::B] {
            bench.handle.bind(id, 0, StreamKind::Audio, side, SPEC).expect("binds");
        }
        if n % 3 == 0 {
            bench.handle.drop_stream(id, 0);
        }
        if n >= 100 {
            bench.handle.close(SessionId(n - 100));
        }
    }
    assert_eq!(bench.handle.len(), 100);
    for n in 900..1000 {
        bench.handle.close(SessionId(n));
    }
    until("everything is closed", || {
        let totals = bench.anchor.totals();
        totals.sockets == 0 && totals.sessions == 0
    });
    assert!(bench.anchor.totals().ports.iter().all(|(_, _, counts)| counts.used == 0));
    let open = std::fs::read_dir("/proc/self/fd")
        .expect("proc")
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .filter(|link| link.to_string_lossy().starts_with("socket:"))
        .count();
    assert!(open < 200, "{open} sockets; other tests hold a few");
}

#[test]
fn silence_of_both_endpoints_is_reported_and_again_while_it_lasts() {
    let mut bench = Bench::new(15, 21_400..=21_419);
    let (alice, bob) = (bench.endpoint(2), bench.endpoint(3));
    let timeout = Duration::from_millis(300);
    bench.handle.open(ID, Some(timeout)).expect("opens");
    for (side, endpoint) in [(Side::A, &alice), (Side::B, &bob)] {
        bench.handle.bind(ID, 0, StreamKind::Audio, side, SPEC).expect("binds");
        let remote = remote(endpoint.addr(), Latch::Auto);
        bench.handle.remote(ID, 0, side, &remote, true).expect("takes it");
    }
    for _ in 0..2 {
        let event = bench.events.recv_timeout(support::PATIENCE).expect("an event");
        let Event::Timeout { session, silent } = event else { panic!("{event:?}") };
        assert_eq!(session, ID);
        assert!(silent >= timeout, "{silent:?}");
    }
}

#[test]
fn packets_leave_with_the_interface_dscp() {
    use std::os::fd::AsRawFd;

    let mut bench = Bench::new(16, 21_500..=21_519);
    let (alice, bob) = (bench.endpoint(2), bench.endpoint(3));
    let [to_a, _] = bench.call(StreamKind::Audio, (&alice, Latch::Auto), (&bob, Latch::Auto));
    let socket = socket2::SockRef::from(&bob.rtp);
    socket.set_recv_tos_v4(true).expect("takes it");
    alice.send(to_a.rtp);
    until("the packet is there", || bob.rtp.peek(&mut [0; 4]).is_ok());
    let mut data = [0u8; 256];
    let mut iov = [std::io::IoSliceMut::new(&mut data)];
    let mut control = nix::cmsg_space!(u8);
    let message = nix::sys::socket::recvmsg::<()>(
        bob.rtp.as_raw_fd(),
        &mut iov,
        Some(&mut control),
        nix::sys::socket::MsgFlags::empty(),
    )
    .expect("receives");
    let tos = message.cmsgs().expect("control data").find_map(|c| match c {
        nix::sys::socket::ControlMessageOwned::Ipv4Tos(tos) => Some(tos),
        _ => None,
    });
    assert_eq!(tos, Some(46 << 2));
}

#[test]
fn commands_come_through_under_a_flood() {
    let mut bench = Bench::new(17, 21_600..=21_699);
    let (alice, bob) = (bench.endpoint(2), bench.endpoint(3));
    let stranger = bench.endpoint(66);
    let [to_a, to_b] = bench.call(StreamKind::Audio, (&alice, Latch::Auto), (&bob, Latch::Auto));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let socket = &stranger.rtp;
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                socket.send_to(&[0x55; 1200], to_a.rtp).expect("sends");
            }
        });
        until("the flood is there", || {
            bench.anchor.totals().dropped_for(DropReason::Garbage) > 100
        });
        for n in 0..20 {
            let id = SessionId(100 + n);
            bench.handle.open(id, None).expect("opens");
            bench.handle.bind(id, 0, StreamKind::Audio, Side::A, SPEC).expect("binds");
            until("its sockets are watched", || bench.anchor.totals().sockets == 6);
            bench.handle.close(id);
            until("its sockets are closed", || bench.anchor.totals().sockets == 4);
            let sent = bob.send(to_b.rtp);
            assert_eq!(alice.receive(), (sent, to_a.rtp), "other ports are served");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// A kernel whose driver dies at its first change.
struct Dying(std::sync::Arc<std::sync::atomic::AtomicBool>);

impl media_anchor::plan_types::Offload for Dying {
    fn name(&self) -> &'static str {
        "dying"
    }

    fn apply(
        &mut self,
        _: &[media_anchor::plan_types::FlowChange],
        _: &mut Vec<media_anchor::plan_types::FlowOutcome>,
    ) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        panic!("on purpose");
    }

    fn counters(
        &mut self,
        _: &[media_anchor::plan_types::FlowId],
        _: &mut Vec<(media_anchor::plan_types::FlowId, media_anchor::plan_types::FlowCounters)>,
    ) {
    }

    fn poll(&mut self, _: &mut Vec<media_anchor::plan_types::FlowOutcome>) {}
}

#[test]
fn calls_outlive_a_kernel_driver_that_died() {
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let kernel = Box::new(Dying(asked.clone()));
    let mut bench = Bench::over(18, config(18, 21_700..=21_719), Some(kernel));
    let (alice, bob) = (bench.endpoint(2), bench.endpoint(3));
    let [to_a, to_b] = bench.call(StreamKind::Audio, (&alice, Latch::Off), (&bob, Latch::Off));
    until("the kernel was asked", || asked.load(std::sync::atomic::Ordering::SeqCst));
    until("userspace has it again", || {
        let sent = alice.send(to_a.rtp);
        assert_eq!(bob.receive(), (sent, to_b.rtp));
        bench.handle.streams(ID)[0].a.expect("bound").rtp == Path::Userspace(Stay::Off)
    });
    bench.handle.close(ID);
    until("nothing waits for the dead", || bench.anchor.totals().sessions == 0);
}
