//! Calls of the whole anchor: userspace first, then the kernel, and back when signalling says so.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use media_anchor::config::{Config, Dscp, MediaAddr, MediaInterface};
use media_anchor::kernel::Way;
use media_anchor::plan_types::Path;
use media_anchor::{
    DropReason, Event, EventSink, Handle, InterfaceId, Latch, MediaAnchor, Remote, SessionId, Side,
    SideSpec, StreamKind,
};

use crate::call::{opened, waits};
use crate::netns::{Net, available};

const ID: SessionId = SessionId(1);
const PATIENCE: Duration = Duration::from_secs(10);

struct Bench {
    net: Net,
    anchor: MediaAnchor,
    handle: Handle,
    events: Receiver<Event>,
    /// Where a and b send to.
    to: [SocketAddr; 2],
    a: UdpSocket,
    b: UdpSocket,
    sequence: u16,
}

fn interface(id: u16, ip: &str) -> MediaInterface {
    let ip: IpAddr = ip.parse().expect("an address");
    let addr = Some(MediaAddr { local: ip, advertise: ip });
    let (v4, v6) = if ip.is_ipv4() { (addr, None) } else { (None, addr) };
    MediaInterface { id: InterfaceId(id), v4, v6, ports: 30_000..=30_099, dscp: Dscp::default() }
}

fn remote(rtp: SocketAddr) -> Remote {
    Remote {
        rtp: Some(rtp),
        rtcp: None,
        rtcp_mux: false,
        sends: true,
        receives: true,
        latch: Latch::Auto,
    }
}

impl Bench {
    /// A call between a and b whose endpoints have signalled.
    fn new(way: Way, test: &str, ips: [&str; 2], peers: [&str; 2]) -> Option<Bench> {
        Bench::of(StreamKind::Audio, way, test, ips, peers)
    }

    fn of(
        kind: StreamKind,
        way: Way,
        test: &str,
        ips: [&str; 2],
        peers: [&str; 2],
    ) -> Option<Bench> {
        if !available(test) {
            return None;
        }
        let net = Net::new();
        let (a, b) = (net.a.udp(peers[0]), net.b.udp(peers[1]));
        let started = net.sbc.run(|| {
            let (offload, _) = opened(way, test)?;
            let mut config = Config::new(vec![interface(0, ips[0]), interface(1, ips[1])]);
            config.offload.settle = Duration::from_millis(50);
            config.offload.counters_every = Duration::from_millis(200);
            Some(MediaAnchor::start(config, Some(offload)).expect("starts"))
        });
        let anchor = started?;
        let (sink, events) = EventSink::new(64, Arc::new(|| {}));
        let mut handle = anchor.handle(0, &sink);
        let to = net.sbc.run(|| {
            handle.open(ID, Some(Duration::from_secs(60))).expect("opens");
            [(Side::A, 0, &a), (Side::B, 1, &b)].map(|(side, interface, socket)| {
                let ipv6 = socket.local_addr().expect("bound").is_ipv6();
                let spec = SideSpec { interface: InterfaceId(interface), ipv6 };
                let local = handle.bind(ID, 0, kind, side, spec).expect("binds");
                let remote = remote(socket.local_addr().expect("bound"));
                handle.remote(ID, 0, side, &remote, true).expect("takes it");
                local.rtp
            })
        });
        Some(Bench { net, anchor, handle, events, to, a, b, sequence: 0 })
    }

    fn v4(way: Way, test: &str) -> Option<Bench> {
        Bench::v4_of(StreamKind::Audio, way, test)
    }

    fn v4_of(kind: StreamKind, way: Way, test: &str) -> Option<Bench> {
        let (ips, peers) = (["10.1.0.1", "10.2.0.1"], ["10.1.0.2:5000", "10.2.0.2:6000"]);
        Bench::of(kind, way, test, ips, peers)
    }

    fn packet(&mut self) -> (u16, Vec<u8>) {
        self.sequence += 1;
        let mut data = vec![0x80, 8];
        data.extend(self.sequence.to_be_bytes());
        data.extend((u32::from(self.sequence) * 160).to_be_bytes());
        data.extend([0, 0, 0, 7]);
        data.resize(172, 0x55);
        (self.sequence, data)
    }

    /// One packet each way, received before the next.
    fn exchange(&mut self) {
        let data = [self.packet().1, self.packet().1];
        self.exchange_of(&data);
    }

    fn exchange_of(&mut self, data: &[Vec<u8>; 2]) {
        for (from, to, into) in [(0, self.to[0], 1), (1, self.to[1], 0)] {
            let data = &data[from];
            let sockets = [&self.a, &self.b];
            sockets[from].send_to(data, to).expect("sends");
            let mut got = [0; 2048];
            let (len, src) = sockets[into].recv_from(&mut got).expect("relayed");
            assert_eq!((&got[..len], src), (&data[..], self.to[into]));
        }
    }

    fn paths(&self) -> [Path; 2] {
        let stream = self.handle.streams(ID).remove(0);
        [stream.a, stream.b].map(|side| side.expect("is bound").rtp)
    }

    /// Talks until both directions are in the kernel.
    fn until_in_kernel(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.paths() != [Path::Kernel; 2] {
            assert!(Instant::now() < deadline, "stays: {:?}", self.paths());
            self.exchange();
        }
    }

    /// Packets that userspace relayed, from a and from b.
    fn in_userspace(&self) -> [u64; 2] {
        let stats = self.handle.stats(ID)[0];
        [stats.a, stats.b].map(|side| side.packets - side.kernel_packets)
    }

    fn packets(&self) -> [u64; 2] {
        let stats = self.handle.stats(ID)[0];
        [stats.a.packets, stats.b.packets]
    }
}

fn both(test: impl Fn(Way)) {
    test(Way::Nftables);
    test(Way::Ebpf);
}

#[test]
fn a_call_moves_into_the_kernel_and_its_counters_come_along() {
    both(|way| {
        let Some(mut bench) = Bench::v4(way, "a call moves into the kernel") else { return };
        bench.exchange();
        assert_eq!(bench.in_userspace(), [1, 1], "the first packets");
        bench.until_in_kernel();
        let before = bench.in_userspace();
        for _ in 0..100 {
            bench.exchange();
        }
        assert_eq!(bench.in_userspace(), before, "userspace stands still");
        let sent = u64::from(bench.sequence / 2);
        let deadline = Instant::now() + PATIENCE;
        while bench.packets() != [sent, sent] {
            assert!(Instant::now() < deadline, "{:?} of {sent}", bench.packets());
            std::thread::yield_now();
        }
        let stats = bench.handle.stats(ID)[0];
        assert!(stats.kernel && stats.a.kernel_packets >= 100, "{stats:?}");
        assert_eq!(stats.a.bytes, sent * 172);
    });
}

#[test]
fn the_last_word_of_a_closed_call_is_exact() {
    both(|way| {
        let Some(mut bench) = Bench::v4(way, "the last word of a closed call") else { return };
        bench.until_in_kernel();
        for _ in 0..30 {
            bench.exchange();
        }
        bench.handle.close(ID);
        let last = loop {
            match bench.events.recv_timeout(PATIENCE).expect("the last word") {
                Event::Final { streams, .. } => break streams[0],
                Event::Latched { .. } => {}
                Event::Timeout { .. } => panic!("no silence"),
            }
        };
        let sent = u64::from(bench.sequence / 2);
        assert_eq!((last.a.packets, last.b.packets), (sent, sent));
        // The flow is gone with the call: packets reach nobody.
        let (_, data) = bench.packet();
        bench.a.send_to(&data, bench.to[0]).expect("sends");
        bench.b.set_read_timeout(Some(Duration::from_millis(60))).expect("takes it");
        assert!(bench.b.recv(&mut [0; 2048]).is_err());
    });
}

#[test]
fn no_packet_is_lost_or_doubled_on_the_way_into_the_kernel_and_back() {
    both(|way| {
        let Some(mut bench) = Bench::v4(way, "no packet lost or doubled") else { return };
        bench.exchange();
        bench.b.set_nonblocking(true).expect("takes it");
        let mut seen: BTreeMap<u16, u32> = BTreeMap::new();
        let first = bench.sequence + 1;
        let mut was_in_kernel = 0;
        for n in 0..600 {
            let (_, data) = bench.packet();
            bench.a.send_to(&data, bench.to[0]).expect("sends");
            was_in_kernel += u32::from(bench.paths()[0] == Path::Kernel);
            if n % 200 == 150 {
                // A re-INVITE that changes nothing but the port of b's RTCP, then one that
                // takes the direction out of the kernel: b moves to where it is.
                let mut moved = remote(bench.b.local_addr().expect("bound"));
                moved.latch = Latch::Off;
                bench.handle.remote(ID, 0, Side::B, &moved, false).expect("takes it");
                let a = remote(bench.a.local_addr().expect("bound"));
                bench.handle.remote(ID, 0, Side::A, &a, true).expect("takes it");
            }
            collect(&bench.b, &mut seen, Instant::now() + Duration::from_millis(2));
        }
        collect(&bench.b, &mut seen, Instant::now() + Duration::from_millis(100));
        let all: BTreeMap<u16, u32> = (first..=bench.sequence).map(|n| (n, 1)).collect();
        assert_eq!(seen, all);
        assert!(was_in_kernel > 20, "in the kernel for {was_in_kernel} of 600 packets");
    });
}

/// Counts what comes until `end`.
fn collect(socket: &UdpSocket, seen: &mut BTreeMap<u16, u32>, end: Instant) {
    let mut data = [0; 2048];
    while Instant::now() < end {
        while let Ok(len) = socket.recv(&mut data) {
            assert_eq!(len, 172);
            *seen.entry(u16::from_be_bytes([data[2], data[3]])).or_default() += 1;
        }
    }
}

#[test]
fn a_stranger_reaches_nobody_while_the_kernel_relays() {
    both(|way| {
        let Some(mut bench) = Bench::v4(way, "a stranger reaches nobody") else { return };
        bench.until_in_kernel();
        let stranger = bench.net.a.udp("10.1.0.2:5555");
        stranger.set_read_timeout(Some(Duration::from_millis(60))).expect("takes it");
        for _ in 0..20 {
            let (_, data) = bench.packet();
            stranger.send_to(&data, bench.to[0]).expect("sends");
        }
        let deadline = Instant::now() + PATIENCE;
        while bench.anchor.totals().dropped_for(DropReason::Source) < 20 {
            assert!(Instant::now() < deadline, "judged in userspace");
        }
        assert!(stranger.recv(&mut [0; 2048]).is_err());
        bench.exchange();
    });
}

#[test]
fn a_moved_endpoint_is_found_and_goes_back_into_the_kernel() {
    both(|way| {
        let Some(mut bench) = Bench::v4(way, "a moved endpoint") else { return };
        bench.until_in_kernel();
        let moved = bench.net.a.udp("10.1.0.2:5002");
        let old = std::mem::replace(&mut bench.a, moved);
        let said = remote(bench.a.local_addr().expect("bound"));
        bench.handle.remote(ID, 0, Side::A, &said, true).expect("takes it");
        // What b sends goes to the new place as soon as the kernel has let go of the old flow.
        bench.a.set_read_timeout(Some(Duration::from_millis(20))).expect("takes it");
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "the new place hears nothing");
            let (_, data) = bench.packet();
            bench.b.send_to(&data, bench.to[1]).expect("sends");
            if bench.a.recv(&mut [0; 2048]).is_ok() {
                break;
            }
        }
        bench.a.set_read_timeout(Some(Duration::from_secs(2))).expect("takes it");
        while waits(&old) {
            old.recv(&mut [0; 2048]).expect("it waits");
        }
        bench.until_in_kernel();
        old.set_read_timeout(Some(Duration::from_millis(60))).expect("takes it");
        assert!(old.recv(&mut [0; 2048]).is_err());
    });
}

#[test]
fn ipv6_calls_move_into_the_kernel_too() {
    both(|way| {
        let ips = ["fd01::1", "fd02::1"];
        let peers = ["[fd01::2]:5000", "[fd02::2]:6000"];
        let Some(mut bench) = Bench::new(way, "ipv6 calls", ips, peers) else { return };
        bench.until_in_kernel();
        for _ in 0..10 {
            bench.exchange();
        }
    });
}

#[test]
fn t38_and_video_go_into_the_kernel_too() {
    both(|way| {
        let Some(mut fax) = Bench::v4_of(StreamKind::Image, way, "T.38") else { return };
        // UDPTL has no RTP header: a number of 16 bits, and what is fax.
        let packets = |n: u8| [vec![0, n, 1, 0, 0, 0], vec![0, n, 3, 0xe0, 1, 2, 3]];
        let deadline = Instant::now() + PATIENCE;
        for n in (0..=255).cycle() {
            fax.exchange_of(&packets(n));
            if fax.paths() == [Path::Kernel; 2] {
                break;
            }
            assert!(Instant::now() < deadline, "stays: {:?}", fax.paths());
        }
        let before = fax.in_userspace();
        for n in 0..20 {
            fax.exchange_of(&packets(n));
        }
        assert_eq!(fax.in_userspace(), before);
        drop(fax);
        let Some(mut video) = Bench::v4_of(StreamKind::Video, way, "video") else { return };
        video.until_in_kernel();
        let before = video.in_userspace();
        for _ in 0..20 {
            video.exchange();
        }
        assert_eq!(video.in_userspace(), before);
    });
}

#[test]
fn hold_takes_its_direction_out_and_resume_puts_it_back() {
    both(|way| {
        let Some(mut bench) = Bench::v4(way, "hold and resume") else { return };
        bench.until_in_kernel();
        let b = remote(bench.b.local_addr().expect("bound"));
        let held = Remote { receives: false, ..b };
        bench.handle.remote(ID, 0, Side::B, &held, false).expect("takes it");
        let deadline = Instant::now() + PATIENCE;
        while bench.anchor.totals().dropped_for(DropReason::Direction) == 0 {
            assert!(Instant::now() < deadline, "the kernel let go of it");
            let (_, data) = bench.packet();
            bench.a.send_to(&data, bench.to[0]).expect("sends");
        }
        assert_eq!(bench.paths()[1], Path::Kernel, "music on hold stays");
        bench.handle.remote(ID, 0, Side::B, &b, false).expect("takes it");
        bench.b.set_read_timeout(Some(Duration::from_millis(60))).expect("takes it");
        while bench.b.recv(&mut [0; 2048]).is_ok() {}
        bench.b.set_read_timeout(Some(Duration::from_secs(2))).expect("takes it");
        bench.until_in_kernel();
    });
}
