//! The topology, the flows and the frames.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use media_anchor::plan_types::{Flow, FlowChange, FlowId, FlowOutcome, Offload, Tuple};
use media_anchor::{Component, InterfaceId, SessionId, Side, StreamKind};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::netns::{MAC_A, MAC_SA, Net, Ns};

const PAYLOAD: usize = 172;
pub(crate) const A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
pub(crate) const SA: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
pub(crate) const SB: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
pub(crate) const B: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);

/// Sender, device under test, sink; the sink drops at its ingress.
pub(crate) fn net(sink_drops: bool) -> Net {
    let net = Net::new();
    net.sbc.ip("neigh replace 10.2.0.2 lladdr 02:00:00:00:02:02 dev sb nud permanent\n");
    net.sbc.ip("neigh replace 10.1.0.2 lladdr 02:00:00:00:01:02 dev sa nud permanent\n");
    if sink_drops {
        drop_at_ingress(&net.b, "eth0");
    }
    net
}

/// A rule that drops everything that arrives by `device`.
pub(crate) fn drop_at_ingress(ns: &Ns, device: &str) {
    ns.cmd("nft", &["add", "table", "netdev", "sink"]);
    let chain = format!(
        "add chain netdev sink in {{ type filter hook ingress device {device} priority -500; \
         policy drop; }}"
    );
    ns.cmd("nft", &[&chain]);
}

/// Packets that have arrived at the sink's device.
pub(crate) fn arrived(net: &Net) -> u64 {
    let stats = net.b.cmd("cat", &["/proc/net/dev"]);
    let line = stats.lines().find_map(|l| l.trim().strip_prefix("eth0:"));
    let packets = line.and_then(|l| l.split_whitespace().nth(1)).and_then(|n| n.parse().ok());
    packets.unwrap_or_else(|| panic!("no eth0 in {stats}"))
}

fn port(base: u16, n: usize) -> u16 {
    base + u16::try_from(n).expect("at most 10,000 flows")
}

/// Flow `n` of the kernel ways, from a to b.
pub(crate) fn flow(n: usize) -> Flow {
    let at = |ip: Ipv4Addr, port| SocketAddr::from((ip, port));
    Flow {
        id: FlowId {
            session: SessionId(n as u64),
            stream: 0,
            from: Side::A,
            component: Component::Rtp,
        },
        kind: StreamKind::Audio,
        arrives: Tuple { src: at(A, port(10_000, n)), dst: at(SA, port(20_000, n)) },
        leaves: Tuple { src: at(SB, port(30_000, n)), dst: at(B, port(40_000, n)) },
        ingress: InterfaceId(0),
        egress: InterfaceId(0),
        dscp: Some(46),
    }
}

/// The other direction.
pub(crate) fn back(n: usize) -> Flow {
    let there = flow(n);
    Flow {
        id: FlowId { from: Side::B, ..there.id },
        arrives: Tuple { src: there.leaves.dst, dst: there.leaves.src },
        leaves: Tuple { src: there.arrives.dst, dst: there.arrives.src },
        ..there
    }
}

/// Installs both directions of `flows` calls.
pub(crate) fn install(offload: &mut dyn Offload, flows: usize) {
    install_marked(offload, 0..flows, Some(46));
}

/// The same of those numbers, with that code point.
pub(crate) fn install_marked(offload: &mut dyn Offload, flows: Range<usize>, dscp: Option<u8>) {
    let mut changes: Vec<FlowChange> = flows
        .flat_map(|n| [flow(n), back(n)])
        .map(|flow| FlowChange::Install(Flow { dscp, ..flow }))
        .collect();
    // On a busy machine the links of the namespaces take a moment to have their routes.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut outcomes = Vec::new();
        offload.apply(&changes, &mut outcomes);
        let refused: Vec<FlowId> = outcomes
            .iter()
            .filter(|o| !matches!(o, FlowOutcome::Installed(_)))
            .map(FlowOutcome::id)
            .collect();
        if refused.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{:?}", outcomes.last());
        changes.retain(|c| matches!(c, FlowChange::Install(flow) if refused.contains(&flow.id)));
        offload.poll(&mut Vec::new());
    }
}

/// A frame with an RTP packet; 12 bytes of it differ between flows.
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    head: [u8; 28],
}

const FRAME: usize = 14 + 20 + 8 + PAYLOAD;
/// Where [`Frame::head`] stands: the IP and UDP headers.
const HEAD: usize = 14;
const RTP: usize = HEAD + 28;

impl Frame {
    /// With right checksums.
    pub(crate) fn new(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16)) -> Frame {
        let udp_len = u16::try_from(8 + PAYLOAD).expect("short");
        let mut ip = vec![0x45, 0];
        ip.extend((20 + udp_len).to_be_bytes());
        ip.extend([0x12, 0x34, 0x40, 0, 64, 17, 0, 0]);
        ip.extend(src.0.octets());
        ip.extend(dst.0.octets());
        let sum = !fold(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut udp = Vec::new();
        udp.extend(src.1.to_be_bytes());
        udp.extend(dst.1.to_be_bytes());
        udp.extend(udp_len.to_be_bytes());
        udp.extend([0, 0]);
        let pseudo = [&ip[12..20], &[0, 17], &udp_len.to_be_bytes(), &udp, &payload()].concat();
        let sum = !fold(&pseudo);
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        Frame { head: [ip, udp].concat().try_into().expect("28 bytes") }
    }

    /// The same marked as EF, as audio is.
    fn marked(mut self) -> Frame {
        let ip = &mut self.head[..20];
        ip[1] = 0xb8;
        ip[10..12].fill(0);
        let sum = !fold(ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        self
    }

    /// The sequence number and its complement, in the payload, leave the checksum as it is.
    fn write(&self, room: &mut [u8; FRAME], sequence: u16) {
        room[HEAD..RTP].copy_from_slice(&self.head);
        room[RTP + 2..RTP + 4].copy_from_slice(&sequence.to_be_bytes());
        room[RTP + 12..RTP + 14].copy_from_slice(&(!sequence).to_be_bytes());
    }
}

fn payload() -> [u8; PAYLOAD] {
    let mut payload = [0x55; PAYLOAD];
    payload[..4].copy_from_slice(&[0x80, 8, 0, 0]);
    payload[12..14].copy_from_slice(&[0xff, 0xff]);
    payload
}

/// What the frames of all flows have in common.
fn template() -> [u8; FRAME] {
    let head = [0; 28];
    [&MAC_SA[..], &MAC_A, &[8, 0], &head, &payload()].concat().try_into().expect("a frame")
}

/// Frames of the flows as they arrive at the relay, unmarked.
pub(crate) fn to_relay(flows: usize) -> Vec<Frame> {
    (0..flows).map(|n| Frame::new((A, port(10_000, n)), (SA, port(20_000, n)))).collect()
}

/// The same marked as EF.
pub(crate) fn marked(frames: &[Frame]) -> Vec<Frame> {
    frames.iter().map(|frame| frame.marked()).collect()
}

/// Frames that are forwarded to the sink as they are.
pub(crate) fn to_sink(flows: usize) -> Vec<Frame> {
    (0..flows).map(|n| Frame::new((A, port(10_000, n)), (B, port(40_000, n)))).collect()
}

fn fold(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

/// A packet socket that sends past the qdisc.
pub(crate) struct Sender {
    fd: OwnedFd,
    sent: Cell<usize>,
}

impl Sender {
    pub(crate) fn open(ns: &Ns, device: &str) -> Sender {
        const PACKET_QDISC_BYPASS: libc::c_int = 20;
        let fd = ns.run(|| {
            let flags = SockFlag::SOCK_CLOEXEC;
            // Protocol 0: it receives nothing.
            let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None::<SockProtocol>)
                .expect("packet socket");
            let index = nix::net::if_::if_nametoindex(device).expect("device");
            // SAFETY: an all-zero sockaddr_ll is valid, and both calls are told the sizes of what
            // they read.
            unsafe {
                let mut addr: libc::sockaddr_ll = std::mem::zeroed();
                addr.sll_family = u16::try_from(libc::AF_PACKET).expect("17");
                addr.sll_ifindex = i32::try_from(index).expect("small");
                let len = libc::socklen_t::try_from(size_of_val(&addr)).expect("20");
                assert_eq!(libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), len), 0);
                let on: libc::c_int = 1;
                let value = (&raw const on).cast();
                let raw = fd.as_raw_fd();
                libc::setsockopt(raw, libc::SOL_PACKET, PACKET_QDISC_BYPASS, value, 4);
            }
            fd
        });
        Sender { fd, sent: Cell::new(0) }
    }

    /// Sends `count` of the frames, round and round from `at`, in batches of 32. They are copied to
    /// one place first, as a device would reuse its buffers: what the packets of many flows occupy
    /// in the caches is then the relay's, not the sender's.
    pub(crate) fn send(&self, frames: &[Frame], at: usize, count: usize) {
        const BATCH: usize = 32;
        let mut room = [template(); BATCH];
        let mut sent = 0;
        while sent < count {
            let batch = BATCH.min(count - sent);
            let mut vectors: Vec<libc::iovec> = Vec::with_capacity(batch);
            for (n, room) in room.iter_mut().take(batch).enumerate() {
                let sequence = (self.sent.get() + n) / frames.len();
                let sequence = u16::try_from(sequence % 0x1_0000).expect("16 bits");
                frames[(at + sent + n) % frames.len()].write(room, sequence);
                vectors.push(libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: FRAME });
            }
            // SAFETY: each header points at one vector, each vector at one living frame, which
            // sendmmsg only reads.
            let done = unsafe {
                let mut headers: Vec<libc::mmsghdr> = vec![std::mem::zeroed(); batch];
                for (header, vector) in headers.iter_mut().zip(&mut vectors) {
                    header.msg_hdr.msg_iov = vector;
                    header.msg_hdr.msg_iovlen = 1;
                }
                let len = u32::try_from(batch).expect("32");
                libc::sendmmsg(self.fd.as_raw_fd(), headers.as_mut_ptr(), len, 0)
            };
            let done = usize::try_from(done).expect("the device takes frames");
            self.sent.set(self.sent.get() + done);
            sent += done;
        }
    }
}
