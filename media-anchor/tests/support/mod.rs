//! A running anchor on loopback and endpoints with real sockets.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use media_anchor::config::{Config, Dscp, MediaAddr, MediaInterface};
use media_anchor::plan_types::Offload;
use media_anchor::{
    Event, EventSink, Handle, InterfaceId, Latch, Local, MediaAnchor, Remote, SessionId, Side,
    SideSpec, StreamKind,
};

/// How long a condition may take on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How long something that must not come is waited for.
pub(crate) const SILENCE: Duration = Duration::from_millis(60);

pub(crate) const ID: SessionId = SessionId(7);

/// Interface 0 is IPv4 on 127.77.`net`.1 and IPv6 on ::1.
pub(crate) struct Bench {
    pub(crate) handle: Handle,
    pub(crate) events: Receiver<Event>,
    pub(crate) anchor: MediaAnchor,
    pub(crate) net: u8,
}

pub(crate) fn config(net: u8, ports: RangeInclusive<u16>) -> Config {
    let same = |ip: IpAddr| Some(MediaAddr { local: ip, advertise: ip });
    let mut config = Config::new(vec![MediaInterface {
        id: InterfaceId(0),
        v4: same(IpAddr::from([127, 77, net, 1])),
        v6: same("::1".parse().expect("an address")),
        ports,
        dscp: Dscp::default(),
    }]);
    config.policy.allow_local = true;
    config
}

impl Bench {
    pub(crate) fn new(net: u8, ports: RangeInclusive<u16>) -> Bench {
        Bench::with(net, config(net, ports))
    }

    pub(crate) fn with(net: u8, config: Config) -> Bench {
        Bench::over(net, config, None)
    }

    pub(crate) fn over(net: u8, config: Config, offload: Option<Box<dyn Offload>>) -> Bench {
        let anchor = MediaAnchor::start(config, offload).expect("the anchor starts");
        let (sink, events) = EventSink::new(64, Arc::new(|| {}));
        Bench { handle: anchor.handle(0, &sink), events, anchor, net }
    }

    /// An endpoint on an IPv4 address of its own.
    pub(crate) fn endpoint(&self, host: u8) -> Endpoint {
        Endpoint::new(SocketAddr::from(([127, 77, self.net, host], 0)))
    }

    /// One stream between two endpoints that both have signalled; their local addresses.
    pub(crate) fn call(
        &mut self,
        kind: StreamKind,
        a: (&Endpoint, Latch),
        b: (&Endpoint, Latch),
    ) -> [Local; 2] {
        self.handle.open(ID, Some(Duration::from_secs(60))).expect("opens");
        [(Side::A, a), (Side::B, b)].map(|(side, (endpoint, latch))| {
            let spec = SideSpec { interface: InterfaceId(0), ipv6: endpoint.addr().is_ipv6() };
            let local = self.handle.bind(ID, 0, kind, side, spec).expect("binds");
            let remote = remote(endpoint.addr(), latch);
            self.handle.remote(ID, 0, side, &remote, true).expect("takes the remote");
            local
        })
    }

    /// Waits until the relay has judged `count` datagrams since the anchor started.
    pub(crate) fn judged(&self, count: u64) {
        until("datagrams are judged", || {
            let totals = self.anchor.totals();
            totals.relayed + totals.dropped.iter().sum::<u64>() >= count
        });
    }
}

/// A remote that sends and receives, RTCP at the next port.
pub(crate) fn remote(rtp: SocketAddr, latch: Latch) -> Remote {
    Remote { rtp: Some(rtp), rtcp: None, rtcp_mux: false, sends: true, receives: true, latch }
}

pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

/// Sockets of one RTP endpoint.
pub(crate) struct Endpoint {
    pub(crate) rtp: UdpSocket,
    sequence: std::cell::Cell<u16>,
}

impl Endpoint {
    pub(crate) fn new(addr: SocketAddr) -> Endpoint {
        let rtp = UdpSocket::bind(addr).expect("binds");
        Endpoint { rtp, sequence: std::cell::Cell::new(100) }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.rtp.local_addr().expect("is bound")
    }

    /// Sends one RTP packet; its bytes.
    pub(crate) fn send(&self, to: SocketAddr) -> Vec<u8> {
        let sequence = self.sequence.get();
        self.sequence.set(sequence.wrapping_add(1));
        let data = rtp(sequence, u32::from(self.addr().port()));
        self.send_raw(to, &data);
        data
    }

    pub(crate) fn send_raw(&self, to: SocketAddr, data: &[u8]) {
        self.rtp.send_to(data, to).expect("sends");
    }

    /// The next datagram and its source.
    pub(crate) fn receive(&self) -> (Vec<u8>, SocketAddr) {
        self.receive_for(PATIENCE).expect("a datagram comes")
    }

    pub(crate) fn receive_for(&self, time: Duration) -> Option<(Vec<u8>, SocketAddr)> {
        self.rtp.set_read_timeout(Some(time)).expect("takes a timeout");
        let mut buffer = [0; 4096];
        let (len, src) = self.rtp.recv_from(&mut buffer).ok()?;
        Some((buffer[..len].to_vec(), src))
    }

    /// Nothing has come and nothing comes.
    pub(crate) fn hears_nothing(&self) {
        assert_eq!(self.receive_for(SILENCE), None);
    }
}

/// 160 bytes of PCMU behind a fixed header.
pub(crate) fn rtp(sequence: u16, ssrc: u32) -> Vec<u8> {
    let mut data = vec![0x80, 0];
    data.extend(sequence.to_be_bytes());
    data.extend((u32::from(sequence) * 160).to_be_bytes());
    data.extend(ssrc.to_be_bytes());
    data.extend((0..160u8).map(|n| n.wrapping_mul(31) ^ sequence.to_be_bytes()[1]));
    data
}

/// An empty receiver report.
pub(crate) fn rtcp(ssrc: u32) -> Vec<u8> {
    let mut data = vec![0x80, 201, 0, 1];
    data.extend(ssrc.to_be_bytes());
    data
}
