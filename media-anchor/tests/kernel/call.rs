//! One call through the SBC: the peers' sockets, the SBC's own, and the two flows.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use media_anchor::kernel::{KernelConfig, Report, Way, open};
use media_anchor::plan_types::{
    Flow, FlowChange, FlowCounters, FlowId, FlowOutcome, Offload, Tuple,
};
use media_anchor::{Component, InterfaceId, SessionId, Side, StreamKind};

use crate::netns::Net;

/// The ways that are tested; a way that does not work on this machine says so and fails in CI.
pub(crate) fn opened(way: Way, test: &str) -> Option<(Box<dyn Offload>, Arc<Report>)> {
    opened_with(KernelConfig { way, ..KernelConfig::default() }, test)
}

pub(crate) fn opened_with(
    config: KernelConfig,
    test: &str,
) -> Option<(Box<dyn Offload>, Arc<Report>)> {
    let opened = open(&config);
    if opened.offload.is_none() {
        let reason = opened.report.status().reason;
        assert!(std::env::var_os("CI").is_none(), "{test}: {reason}");
        println!("SKIPPED {test}: {reason}");
    }
    opened.offload.map(|offload| (offload, opened.report))
}

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

pub(crate) fn flow_id(session: u64, from: Side) -> FlowId {
    FlowId { session: SessionId(session), stream: 0, from, component: Component::Rtp }
}

/// A flow from `arrives.0` at `arrives.1` that leaves from `leaves.0` to `leaves.1`.
pub(crate) fn flow(
    session: u64,
    from: Side,
    arrives: (SocketAddr, SocketAddr),
    leaves: (SocketAddr, SocketAddr),
) -> Flow {
    Flow {
        id: flow_id(session, from),
        kind: StreamKind::Audio,
        arrives: Tuple { src: arrives.0, dst: arrives.1 },
        leaves: Tuple { src: leaves.0, dst: leaves.1 },
        ingress: InterfaceId(0),
        egress: InterfaceId(0),
        dscp: Some(46),
    }
}

/// A call between a peer in `a` and one in `b`.
pub(crate) struct Call {
    pub(crate) session: u64,
    pub(crate) a: UdpSocket,
    pub(crate) b: UdpSocket,
    /// The SBC's sockets towards a and b.
    pub(crate) sa: UdpSocket,
    pub(crate) sb: UdpSocket,
}

impl Call {
    /// Over IPv4, with ports made of `session`.
    pub(crate) fn v4(net: &Net, session: u64) -> Call {
        Call::between(net, session, "10.1.0.2", "10.1.0.1", "10.2.0.1", "10.2.0.2")
    }

    pub(crate) fn v6(net: &Net, session: u64) -> Call {
        Call::between(net, session, "[fd01::2]", "[fd01::1]", "[fd02::1]", "[fd02::2]")
    }

    pub(crate) fn between(net: &Net, session: u64, a: &str, sa: &str, sb: &str, b: &str) -> Call {
        let at = |ip: &str, base: u64| format!("{ip}:{}", base + session);
        Call {
            session,
            a: net.a.udp(&at(a, 5000)),
            b: net.b.udp(&at(b, 6000)),
            sa: net.sbc.udp(&at(sa, 40_000)),
            sb: net.sbc.udp(&at(sb, 41_000)),
        }
    }

    fn ends(&self) -> [SocketAddr; 4] {
        [&self.a, &self.sa, &self.sb, &self.b].map(|s| s.local_addr().expect("bound"))
    }

    /// Both directions.
    pub(crate) fn flows(&self) -> [Flow; 2] {
        let [a, sa, sb, b] = self.ends();
        [
            flow(self.session, Side::A, (a, sa), (sb, b)),
            flow(self.session, Side::B, (b, sb), (sa, a)),
        ]
    }

    pub(crate) fn install(&self, offload: &mut dyn Offload) {
        let changes = self.flows().map(FlowChange::Install);
        let want = self.flows().map(|f| FlowOutcome::Installed(f.id));
        assert_eq!(apply(offload, &changes), want);
    }

    /// Removes both directions; what the kernel relayed from a and from b.
    pub(crate) fn remove(&self, offload: &mut dyn Offload) -> [FlowCounters; 2] {
        let changes = self.flows().map(|f| FlowChange::Remove(f.id));
        let outcomes = apply(offload, &changes);
        let counters = outcomes.iter().map(|o| match o {
            FlowOutcome::Removed(_, counters) => *counters,
            other => panic!("{other:?}"),
        });
        counters.collect::<Vec<_>>().try_into().expect("two")
    }

    /// Sends from a to the SBC; gives what b then receives and from whom.
    pub(crate) fn a_to_b(&self, payload: &[u8]) -> (Vec<u8>, SocketAddr) {
        self.a.send_to(payload, self.sa.local_addr().expect("bound")).expect("send");
        receive(&self.b)
    }

    pub(crate) fn b_to_a(&self, payload: &[u8]) -> (Vec<u8>, SocketAddr) {
        self.b.send_to(payload, self.sb.local_addr().expect("bound")).expect("send");
        receive(&self.a)
    }
}

pub(crate) fn apply(offload: &mut dyn Offload, changes: &[FlowChange]) -> Vec<FlowOutcome> {
    let mut outcomes = Vec::new();
    offload.apply(changes, &mut outcomes);
    outcomes
}

/// Receives one datagram; panics after two seconds.
pub(crate) fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buf = [0; 2048];
    let (len, from) = socket.recv_from(&mut buf).expect("a datagram within two seconds");
    (buf[..len].to_vec(), from)
}

/// Whether a datagram waits; leaves it there.
pub(crate) fn waits(socket: &UdpSocket) -> bool {
    socket.set_nonblocking(true).expect("nonblocking");
    let got = socket.peek_from(&mut [0; 2048]).is_ok();
    socket.set_nonblocking(false).expect("blocking");
    got
}

/// The present counters of a flow.
pub(crate) fn count(offload: &mut dyn Offload, id: FlowId) -> FlowCounters {
    let mut out = Vec::new();
    offload.counters(&[id], &mut out);
    out.first().map(|(_, c)| *c).expect("the flow is installed")
}
