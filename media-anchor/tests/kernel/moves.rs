//! Counts of calls that move between userspace and the kernel: every packet once, by one way.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use media_anchor::config::{Config, Dscp, MediaAddr, MediaInterface, OffloadConfig};
use media_anchor::kernel::Way;
use media_anchor::plan_types::{Path, Stay};
use media_anchor::{
    Event, EventSink, Handle, InterfaceId, Latch, MediaAnchor, Remote, SessionId, Side, SideSpec,
    StreamKind,
};

use crate::call::{addr, opened, receive, waits};
use crate::netns::{Net, available};

const ID: SessionId = SessionId(7);
const LIMIT: Duration = Duration::from_secs(10);

/// An anchored call with its peers.
struct Anchored<'a> {
    net: &'a Net,
    anchor: MediaAnchor,
    handle: Handle,
    events: Receiver<Event>,
    a: UdpSocket,
    b: UdpSocket,
    /// The anchor's addresses towards a and b.
    towards_a: SocketAddr,
    towards_b: SocketAddr,
    sequence: u16,
}

fn each_way(test: &str, body: fn(Anchored<'_>)) {
    if !available(test) {
        return;
    }
    for way in [Way::Nftables, Way::Ebpf] {
        let net = Net::new();
        net.sbc.run(|| {
            if let Some((offload, _)) = opened(way, test) {
                let config = config();
                let anchor = MediaAnchor::start(config, Some(offload)).expect("the anchor starts");
                body(Anchored::new(&net, anchor));
            }
        });
    }
}

fn config() -> Config {
    let interface = |id, v4: &str, v6: &str| {
        let at = |ip: &str| {
            let ip: IpAddr = ip.parse().expect("address");
            Some(MediaAddr { local: ip, advertise: ip })
        };
        MediaInterface {
            id: InterfaceId(id),
            v4: at(v4),
            v6: at(v6),
            ports: 40_000..=40_100,
            dscp: Dscp::default(),
        }
    };
    let interfaces = vec![interface(0, "10.1.0.1", "fd01::1"), interface(1, "10.2.0.1", "fd02::1")];
    Config {
        offload: OffloadConfig {
            settle: Duration::from_millis(20),
            counters_every: Duration::from_millis(100),
            retry_after: Duration::from_millis(200),
            ..OffloadConfig::default()
        },
        ..Config::new(interfaces)
    }
}

fn remote(rtp: &UdpSocket) -> Remote {
    Remote {
        rtp: Some(rtp.local_addr().expect("bound")),
        rtcp: None,
        rtcp_mux: false,
        sends: true,
        receives: true,
        latch: Latch::Auto,
    }
}

impl<'a> Anchored<'a> {
    fn new(net: &'a Net, anchor: MediaAnchor) -> Self {
        let (sink, events) = EventSink::new(64, Arc::new(|| {}));
        let mut handle = anchor.handle(0, &sink);
        let (a, b) = (net.a.udp("10.1.0.2:5000"), net.b.udp("10.2.0.2:6000"));
        handle.open(ID, Some(Duration::from_millis(700))).expect("open");
        let mut bind = |side, interface| {
            let spec = SideSpec { interface: InterfaceId(interface), ipv6: false };
            handle.bind(ID, 0, StreamKind::Audio, side, spec).expect("bind").rtp
        };
        let (towards_a, towards_b) = (bind(Side::A, 0), bind(Side::B, 1));
        handle.remote(ID, 0, Side::A, &remote(&a), false).expect("remote");
        handle.remote(ID, 0, Side::B, &remote(&b), false).expect("remote");
        Anchored { net, anchor, handle, events, a, b, towards_a, towards_b, sequence: 0 }
    }

    fn rtp(&mut self, ssrc: u32) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut packet = vec![0x80, 0];
        packet.extend(self.sequence.to_be_bytes());
        packet.extend((u32::from(self.sequence) * 160).to_be_bytes());
        packet.extend(ssrc.to_be_bytes());
        packet.extend([0x55; 160]);
        packet
    }

    /// One packet each way; both arrive, from the right address.
    fn exchange(&mut self) {
        let there = self.rtp(1);
        self.a.send_to(&there, self.towards_a).expect("send");
        assert_eq!(receive(&self.b), (there, self.towards_b));
        let back = self.rtp(2);
        self.b.send_to(&back, self.towards_b).expect("send");
        assert_eq!(receive(&self.a), (back, self.towards_a));
    }

    /// The way of RTP from a and from b.
    fn rtp_paths(&self) -> Vec<Path> {
        let streams = self.handle.streams(ID);
        streams.iter().flat_map(|s| [s.a, s.b]).flatten().map(|side| side.rtp).collect()
    }

    /// Exchanges packets until both RTP flows are as `wanted` says; how many were exchanged.
    fn until(&mut self, wanted: impl Fn(Path) -> bool) -> u64 {
        let begun = Instant::now();
        let mut packets = 0;
        while !self.rtp_paths().iter().all(|path| wanted(*path)) {
            assert!(begun.elapsed() < LIMIT, "still {:?}", self.rtp_paths());
            self.exchange();
            packets += 1;
        }
        packets
    }

    fn until_kernel(&mut self) -> u64 {
        self.until(|path| path == Path::Kernel)
    }

    /// Waits until the joined count of both sides is `packets`.
    fn count_to(&self, packets: u64) {
        self.count_to_each([packets; 2]);
    }

    fn count_to_each(&self, packets: [u64; 2]) {
        let begun = Instant::now();
        loop {
            let stats = self.handle.stats(ID);
            let counts = [stats[0].a.packets, stats[0].b.packets];
            if counts == packets {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "{counts:?}, not {packets:?}");
            let twice = counts.iter().zip(packets).any(|(n, most)| *n > most);
            assert!(!twice, "{counts:?} of {packets:?}: counted twice");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_call_moves_into_the_kernel_and_counts_once() {
    each_way("a_call_moves_into_the_kernel", |mut call| {
        let mut sent = call.until_kernel();
        // Each packet by one way: all that the kernel did not count, userspace did.
        let begun = Instant::now();
        let by_userspace = loop {
            let stats = call.handle.stats(ID);
            let kernel = stats[0].a.kernel_packets + stats[0].b.kernel_packets;
            let relayed = call.anchor.totals().relayed;
            if relayed + kernel == 2 * sent {
                break relayed;
            }
            assert!(begun.elapsed() < LIMIT, "{relayed} and {kernel} of {sent}");
            std::thread::yield_now();
        };
        assert!(by_userspace > 0, "the first packets are userspace's");
        for _ in 0..200 {
            call.exchange();
            sent += 1;
        }
        assert_eq!(call.anchor.totals().relayed, by_userspace, "userspace stands still");
        call.count_to(sent);
        assert!(call.handle.stats(ID)[0].a.kernel_packets >= 200);
        assert!(call.handle.stats(ID)[0].kernel);
        call.handle.close(ID);
        let streams = loop {
            match call.events.recv_timeout(LIMIT).expect("the last counters") {
                Event::Final { session: ID, streams } => break streams,
                Event::Latched { .. } => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!([streams[0].a.packets, streams[0].b.packets], [sent; 2]);
    });
}

#[test]
fn a_reinvite_moves_an_endpoint() {
    each_way("a_reinvite_moves_an_endpoint", |mut call| {
        let mut sent = call.until_kernel();
        let old = std::mem::replace(&mut call.b, call.net.b.udp("10.2.0.2:6100"));
        let moved = remote(&call.b);
        call.handle.remote(ID, 0, Side::B, &moved, true).expect("remote");
        // Until the element is out of the kernel, what a sends goes to the old endpoint: each
        // packet to one of them.
        let begun = Instant::now();
        let mut one_way = 0;
        while !waits(&call.b) {
            assert!(begun.elapsed() < LIMIT);
            let packet = call.rtp(1);
            call.a.send_to(&packet, call.towards_a).expect("send");
            one_way += 1;
            while !waits(&call.b) && !waits(&old) {
                std::thread::yield_now();
            }
            if waits(&old) {
                receive(&old);
            }
        }
        receive(&call.b);
        sent += call.until_kernel();
        for _ in 0..50 {
            call.exchange();
            sent += 1;
        }
        call.count_to_each([sent + one_way, sent]);
    });
}

#[test]
fn hold_and_resume() {
    each_way("hold_and_resume", |mut call| {
        let sent = call.until_kernel();
        let held = Remote { sends: false, receives: false, ..remote(&call.b) };
        call.handle.remote(ID, 0, Side::B, &held, false).expect("hold");
        let begun = Instant::now();
        while call.rtp_paths().contains(&Path::Kernel) {
            assert!(begun.elapsed() < LIMIT);
            std::thread::yield_now();
        }
        let stays = [Path::Userspace(Stay::Direction); 2];
        assert_eq!(call.rtp_paths(), stays);
        // Until the element is out of the kernel a packet may still go through.
        let begun = Instant::now();
        let mut late = 0;
        let dropped = |call: &Anchored<'_>| call.handle.stats(ID)[0].a.dropped_total() > 0;
        while !dropped(&call) {
            let packet = call.rtp(1);
            call.a.send_to(&packet, call.towards_a).expect("send");
            while !waits(&call.b) && !dropped(&call) {
                assert!(begun.elapsed() < LIMIT, "neither relayed nor dropped");
                std::thread::yield_now();
            }
            if waits(&call.b) {
                receive(&call.b);
                late += 1;
            }
        }
        let resumed = remote(&call.b);
        call.handle.remote(ID, 0, Side::B, &resumed, false).expect("resume");
        // The command is in the relay's mailbox before the packets are in its sockets.
        let more = call.until_kernel();
        call.count_to_each([sent + late + more, sent + more]);
    });
}

#[test]
fn silence_is_noticed_by_the_kernels_counters() {
    each_way("silence_is_noticed", |mut call| {
        call.until_kernel();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(1500) {
            call.exchange();
            assert!(call.events.try_recv().iter().all(|e| !matches!(e, Event::Timeout { .. })));
        }
        let begun = Instant::now();
        loop {
            let event = call.events.recv_timeout(LIMIT).expect("a timeout");
            if matches!(event, Event::Timeout { session: ID, .. }) {
                break;
            }
        }
        assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_lost_route_sends_a_call_back_until_it_returns() {
    each_way("a_lost_route", |mut call| {
        call.net.sbc.ip("route add 10.2.0.2/32 dev sb\n");
        call.until_kernel();
        // Userspace still reaches b by the connected route after this one is gone.
        call.net.sbc.ip("route replace unreachable 10.2.0.2/32\n");
        let begun = Instant::now();
        while call.rtp_paths().iter().all(|path| *path == Path::Kernel) {
            assert!(begun.elapsed() < LIMIT);
            std::thread::yield_now();
        }
        assert!(call.rtp_paths().contains(&Path::Userspace(Stay::NoRoute)));
        call.net.sbc.ip("route del unreachable 10.2.0.2/32\n");
        call.until_kernel();
        let peer = addr("10.2.0.2:6000");
        assert_eq!(call.handle.stats(ID)[0].b.latched, Some(peer));
    });
}
