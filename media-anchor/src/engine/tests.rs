//! The engine in virtual time: verdicts, silence, and the way of flows into the kernel and back.

use std::net::IpAddr;

use super::*;
use crate::config::{AddressPolicy, Config};
use crate::plan_types::{Flow, FlowCounters, FlowId, FlowOutcome, Path, Stay, Tuple};
use crate::types::{DropReason, Latch};

const ID: SessionId = SessionId(1);
const SHARD: usize = 3;
const TIMEOUT: Duration = Duration::from_secs(30);

struct Bench {
    engine: Engine,
    now: Instant,
    cell: Arc<StreamCell>,
    sequence: u16,
    events: Vec<Event>,
    changes: Vec<FlowChange>,
    released: Vec<Token>,
}

fn local(side: Side) -> SocketAddr {
    let host = if side == Side::A { 1 } else { 2 };
    SocketAddr::from(([192, 0, 2, host], 10_000))
}

fn endpoint(side: Side) -> SocketAddr {
    let host = if side == Side::A { 1 } else { 2 };
    SocketAddr::from(([198, 51, 100, host], 4_000))
}

fn remote(rtp: SocketAddr, latch: Latch) -> Remote {
    Remote { rtp: Some(rtp), rtcp: None, rtcp_mux: false, sends: true, receives: true, latch }
}

fn flow_id(from: Side) -> FlowId {
    FlowId { session: ID, stream: 0, from, component: Component::Rtp }
}

impl Bench {
    fn new() -> Bench {
        Bench::with(OffloadConfig::default(), true)
    }

    fn with(offload: OffloadConfig, kernel: bool) -> Bench {
        let mut config = Config::new(Vec::new());
        config.policy = AddressPolicy::default();
        let addresses = Arc::new(Addresses::new(&config));
        let engine = Engine::new(addresses, Learning::default(), offload, kernel);
        Bench {
            engine,
            now: Instant::now(),
            cell: Arc::default(),
            sequence: 0,
            events: Vec::new(),
            changes: Vec::new(),
            released: Vec::new(),
        }
    }

    /// A call whose endpoints have both signalled.
    fn call(latch: Latch) -> Bench {
        let mut bench = Bench::new();
        bench.open();
        bench.signal(Side::A, &remote(endpoint(Side::A), latch));
        bench.signal(Side::B, &remote(endpoint(Side::B), latch));
        bench
    }

    /// A call that is in the kernel both ways.
    fn in_kernel() -> Bench {
        let mut bench = Bench::call(Latch::Auto);
        bench.talk();
        bench.pass(500);
        let changes = std::mem::take(&mut bench.changes);
        assert_eq!(changes.len(), 2);
        bench.outcome(FlowOutcome::Installed(flow_id(Side::A)));
        bench.outcome(FlowOutcome::Installed(flow_id(Side::B)));
        assert_eq!(bench.paths(), [Path::Kernel, Path::Kernel]);
        bench.events.clear();
        bench
    }

    fn open(&mut self) {
        self.command(Command::Open { id: ID, shard: SHARD, timeout: Some(TIMEOUT) });
        for side in [Side::A, Side::B] {
            self.bind(side, local(side));
        }
    }

    fn bind(&mut self, side: Side, rtp: SocketAddr) {
        let token = if side == Side::A { 10 } else { 20 };
        let bound = Bound {
            interface: InterfaceId(if side == Side::A { 0 } else { 1 }),
            rtp,
            dscp: Some(46),
            rtp_token: token,
            rtcp_token: Some(token + 1),
        };
        let (kind, cell) = (StreamKind::Audio, self.cell.clone());
        self.command(Command::Bind { id: ID, stream: 0, kind, side, bound, cell });
    }

    fn signal(&mut self, side: Side, remote: &Remote) {
        let remote = *remote;
        self.command(Command::Remote { id: ID, stream: 0, side, remote, relearn: true });
    }

    fn command(&mut self, command: Command) {
        self.engine.command(self.now, command);
        self.outputs();
    }

    fn outcome(&mut self, outcome: FlowOutcome) {
        self.engine.outcome(self.now, &outcome);
        self.outputs();
    }

    /// One RTP packet of `side` from `src`.
    fn packet_from(&mut self, side: Side, src: SocketAddr) -> Verdict {
        self.sequence += 1;
        let mut data = [0u8; 172];
        data[0] = 0x80;
        data[2..4].copy_from_slice(&self.sequence.to_be_bytes());
        self.raw(side, Component::Rtp, src, &data)
    }

    fn raw(&mut self, side: Side, component: Component, src: SocketAddr, data: &[u8]) -> Verdict {
        let at = At { slot: self.engine.slot(ID).unwrap_or(0), stream: 0, side, component };
        let verdict = self.engine.packet(self.now, at, src, data);
        self.outputs();
        verdict
    }

    /// A packet of each endpoint.
    fn talk(&mut self) {
        for side in [Side::A, Side::B] {
            let verdict = self.packet_from(side, endpoint(side));
            assert!(matches!(verdict, Verdict::Relay { .. }), "{verdict:?}");
        }
    }

    /// Lets time pass in ticks.
    fn pass(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while self.now < end {
            self.now += TICK;
            self.engine.tick(self.now);
            self.outputs();
        }
    }

    fn outputs(&mut self) {
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Event { shard, event } => {
                    assert_eq!(shard, SHARD);
                    self.events.push(event);
                }
                Output::Flow(change) => self.changes.push(change),
                Output::Release(token) => self.released.push(token),
            }
        }
    }

    fn paths(&self) -> [Path; 2] {
        [Side::A, Side::B].map(|side| self.cell.side(side).path(Component::Rtp))
    }

    fn installs(&mut self) -> Vec<FlowId> {
        let installed = |change| match change {
            FlowChange::Install(flow) => Some(flow.id),
            FlowChange::Remove(_) => None,
        };
        self.changes.drain(..).filter_map(installed).collect()
    }
}

#[test]
fn both_directions_go_to_the_kernel_together_once_settled() {
    let mut bench = Bench::call(Latch::Auto);
    bench.talk();
    assert_eq!(bench.paths(), [Path::Userspace(Stay::Pending); 2]);
    bench.pass(200);
    assert_eq!(bench.changes, [], "not before it has settled");
    bench.pass(200);
    let flow = |from: Side, ingress, egress| Flow {
        id: flow_id(from),
        kind: StreamKind::Audio,
        arrives: Tuple { src: endpoint(from), dst: local(from) },
        leaves: Tuple { src: local(from.other()), dst: endpoint(from.other()) },
        ingress: InterfaceId(ingress),
        egress: InterfaceId(egress),
        dscp: Some(46),
    };
    let wanted = [flow(Side::A, 0, 1), flow(Side::B, 1, 0)].map(FlowChange::Install);
    assert_eq!(bench.changes, wanted);
    bench.outcome(FlowOutcome::Installed(flow_id(Side::A)));
    assert_eq!(bench.paths(), [Path::Kernel, Path::Userspace(Stay::Pending)]);
    assert!(bench.cell.stats().kernel);
    bench.pass(5_000);
    assert_eq!(bench.changes.len(), 2, "asked for once");
}

#[test]
fn without_a_kernel_nothing_is_asked_for() {
    let mut bench = Bench::with(OffloadConfig::default(), false);
    bench.open();
    for side in [Side::A, Side::B] {
        bench.signal(side, &remote(endpoint(side), Latch::Auto));
    }
    bench.talk();
    bench.pass(5_000);
    assert_eq!(bench.installs(), []);
    assert_eq!(bench.paths(), [Path::Userspace(Stay::Off); 2]);
}

#[test]
fn a_provisional_latch_stays_until_its_window_closes() {
    let mut bench = Bench::call(Latch::Auto);
    let nat = SocketAddr::from(([203, 0, 113, 9], 9_000));
    bench.packet_from(Side::B, endpoint(Side::B));
    for _ in 0..15 {
        bench.packet_from(Side::A, nat);
        bench.now += Duration::from_millis(20);
    }
    assert_eq!(bench.cell.stats().a.latched, Some(nat));
    bench.pass(1_000);
    assert_eq!(bench.installs(), [flow_id(Side::B)], "towards the learnt address at once");
    assert_eq!(bench.paths()[0], Path::Userspace(Stay::NotLatched));
    bench.pass(2_500);
    assert_eq!(bench.installs(), [flow_id(Side::A)]);
}

#[test]
fn a_moved_endpoint_leaves_the_kernel_at_once_and_returns_when_latched() {
    let mut bench = Bench::in_kernel();
    let moved = SocketAddr::from(([198, 51, 100, 77], 5_000));
    bench.signal(Side::A, &remote(moved, Latch::Auto));
    let removes = [Side::A, Side::B].map(|side| FlowChange::Remove(flow_id(side)));
    assert_eq!(bench.changes, removes);
    bench.changes.clear();
    let last = FlowCounters { packets: 100, bytes: 17_200 };
    for side in [Side::A, Side::B] {
        bench.outcome(FlowOutcome::Removed(flow_id(side), last));
    }
    assert_eq!(bench.paths()[0], Path::Userspace(Stay::NotLatched));
    assert_eq!(bench.packet_from(Side::A, endpoint(Side::A)), Verdict::Drop(DropReason::Learning));
    assert!(matches!(bench.packet_from(Side::A, moved), Verdict::Relay { .. }));
    bench.pass(500);
    let arrives = bench.changes.iter().filter_map(|change| match change {
        FlowChange::Install(flow) => Some((flow.arrives.src, flow.leaves.dst)),
        FlowChange::Remove(_) => None,
    });
    let arrives: Vec<_> = arrives.collect();
    assert_eq!(arrives, [(moved, endpoint(Side::B)), (endpoint(Side::B), moved)]);
    assert_eq!(bench.cell.stats().a.packets, 102, "one before, 100 by the kernel, one after");
}

#[test]
fn hold_takes_only_its_direction_out_of_the_kernel() {
    let mut bench = Bench::in_kernel();
    let mut held = remote(endpoint(Side::B), Latch::Auto);
    held.receives = false;
    bench.command(Command::Remote {
        id: ID,
        stream: 0,
        side: Side::B,
        remote: held,
        relearn: false,
    });
    assert_eq!(bench.changes, [FlowChange::Remove(flow_id(Side::A))]);
    bench.outcome(FlowOutcome::Removed(flow_id(Side::A), FlowCounters::default()));
    assert_eq!(bench.paths(), [Path::Userspace(Stay::Direction), Path::Kernel]);
    assert_eq!(bench.packet_from(Side::A, endpoint(Side::A)), Verdict::Drop(DropReason::Direction));
}

#[test]
fn what_cannot_leave_userspace_says_why() {
    let mut bench = Bench::new();
    bench.open();
    let v6: SocketAddr = SocketAddr::new(IpAddr::from([0x20; 16]), 4_000);
    bench.signal(Side::A, &remote(endpoint(Side::A), Latch::Off));
    bench.signal(Side::B, &remote(v6, Latch::Off));
    bench.pass(500);
    assert_eq!(bench.paths(), [Path::Userspace(Stay::Family); 2]);
    let mut mux = remote(endpoint(Side::A), Latch::Off);
    mux.rtcp_mux = true;
    bench.signal(Side::A, &mux);
    bench.signal(Side::B, &remote(endpoint(Side::B), Latch::Off));
    assert_eq!(bench.paths()[0], Path::Userspace(Stay::Rtcp), "RTCP must leave by another port");
    let rtcp = bench.cell.side(Side::B).path(Component::Rtcp);
    assert_eq!(rtcp, Path::Userspace(Stay::Rtcp), "kept by policy");
    assert!(bench.engine.sessions.iter().all(|(_, session)| !session.has_kernel_flows()));
}

#[test]
fn rtcp_follows_into_the_kernel_where_policy_lets_it() {
    let offload = OffloadConfig { rtcp_in_userspace: false, ..OffloadConfig::default() };
    let mut bench = Bench::with(offload, true);
    bench.open();
    for side in [Side::A, Side::B] {
        bench.signal(side, &remote(endpoint(side), Latch::Auto));
    }
    bench.talk();
    let rtcp_src = SocketAddr::from(([198, 51, 100, 1], 4_001));
    let report = [0x80, 201, 0, 1, 0, 0, 0, 1];
    let verdict = bench.raw(Side::A, Component::Rtcp, rtcp_src, &report);
    let to = SocketAddr::from(([198, 51, 100, 2], 4_001));
    assert_eq!(verdict, Verdict::Relay { by: 21, to, component: Component::Rtcp });
    bench.pass(500);
    let rtcp = FlowId { component: Component::Rtcp, ..flow_id(Side::A) };
    assert_eq!(bench.installs(), [flow_id(Side::A), flow_id(Side::B), rtcp]);
}

/// RTP of a in the kernel; b's receiver report comes by userspace.
#[test]
fn loss_and_jitter_are_those_of_the_far_end_while_the_kernel_relays() {
    let mut bench = Bench::in_kernel();
    let report = |ssrc: u32, lost: u8, jitter: u32| {
        let mut data = vec![0x81, 201, 0, 7, 0, 0, 0, 9];
        data.extend(ssrc.to_be_bytes());
        data.extend([0, 0, 0, lost, 0, 0, 0, 0]);
        data.extend(jitter.to_be_bytes());
        data.extend([0; 8]);
        data
    };
    let rtcp = SocketAddr::new(endpoint(Side::B).ip(), endpoint(Side::B).port() + 1);
    // The source of these tests has SSRC 0 and payload type 0, of 8,000 Hz.
    for (data, lost, jitter_us) in [
        (report(0, 12, 80), 12, 10_000),
        (report(1, 99, 1), 12, 10_000),
        (report(0, 13, 8), 13, 1_000),
    ] {
        let verdict = bench.raw(Side::B, Component::Rtcp, rtcp, &data);
        assert!(matches!(verdict, Verdict::Relay { .. }), "{verdict:?}");
        let a = bench.cell.stats().a;
        assert_eq!((a.lost, a.jitter_us), (lost, jitter_us));
    }
    assert_eq!(bench.paths()[0], Path::Kernel, "its RTP is where it was");
    // A stranger's report is not believed.
    let stranger = SocketAddr::from(([203, 0, 113, 77], 4_000));
    bench.raw(Side::B, Component::Rtcp, stranger, &report(0, 200, 800));
    assert_eq!(bench.cell.stats().a.lost, 13);
}

#[test]
fn a_refused_flow_is_asked_for_again_after_a_while() {
    let mut bench = Bench::call(Latch::Auto);
    bench.talk();
    bench.pass(500);
    bench.changes.clear();
    bench.outcome(FlowOutcome::Refused(flow_id(Side::A), Stay::NoRoute));
    assert_eq!(bench.paths()[0], Path::Userspace(Stay::NoRoute));
    bench.pass(9_000);
    assert_eq!(bench.installs(), []);
    bench.pass(2_000);
    assert_eq!(bench.installs(), [flow_id(Side::A)]);
}

#[test]
fn an_evicted_flow_keeps_its_counters_and_is_asked_for_again() {
    let mut bench = Bench::in_kernel();
    let last = FlowCounters { packets: 50, bytes: 8_600 };
    bench.engine.counters(bench.now, flow_id(Side::A), FlowCounters { packets: 40, bytes: 6_880 });
    assert_eq!(bench.cell.stats().a.packets, 41);
    bench.outcome(FlowOutcome::Evicted(flow_id(Side::A), Stay::NoRoute, last));
    assert_eq!(bench.paths(), [Path::Userspace(Stay::NoRoute), Path::Kernel]);
    assert!(matches!(bench.packet_from(Side::A, endpoint(Side::A)), Verdict::Relay { .. }));
    let stats = bench.cell.stats().a;
    assert_eq!((stats.packets, stats.kernel_packets, stats.lost), (52, 50, 0));
    bench.pass(11_000);
    assert_eq!(bench.installs(), [flow_id(Side::A)]);
}

#[test]
fn answers_that_a_removal_has_overtaken_change_nothing() {
    let mut bench = Bench::call(Latch::Auto);
    bench.talk();
    bench.pass(500);
    bench.changes.clear();
    bench.signal(Side::A, &remote(SocketAddr::from(([198, 51, 100, 9], 1_000)), Latch::Auto));
    assert_eq!(bench.changes.len(), 2, "taken back before the kernel has answered");
    bench.outcome(FlowOutcome::Installed(flow_id(Side::A)));
    assert_eq!(bench.paths()[0], Path::Userspace(Stay::NotLatched));
    bench.outcome(FlowOutcome::Removed(flow_id(Side::A), FlowCounters::default()));
    bench.outcome(FlowOutcome::Refused(flow_id(Side::B), Stay::Full));
    bench.outcome(FlowOutcome::Removed(flow_id(Side::B), FlowCounters::default()));
    bench.pass(500);
    assert_eq!(bench.installs()[0], flow_id(Side::B), "towards the signalled address");
}

#[test]
fn a_closed_session_ends_with_the_last_kernel_counters() {
    let mut bench = Bench::in_kernel();
    bench.command(Command::Close { id: ID });
    assert_eq!(bench.released, [10, 11, 20, 21]);
    assert_eq!(bench.changes.len(), 2);
    assert_eq!(bench.events, []);
    let last = |packets| FlowCounters { packets, bytes: packets * 172 };
    bench.outcome(FlowOutcome::Removed(flow_id(Side::A), last(7)));
    bench.outcome(FlowOutcome::Removed(flow_id(Side::B), last(9)));
    let [Event::Final { session, streams }] = &bench.events[..] else {
        panic!("{:?}", bench.events)
    };
    assert_eq!((*session, streams[0].a.packets, streams[0].b.packets), (ID, 8, 10));
    assert_eq!(bench.engine.len(), 0);
}

#[test]
fn a_session_that_never_was_in_the_kernel_ends_at_once() {
    let mut bench = Bench::call(Latch::Auto);
    bench.command(Command::Close { id: ID });
    assert_eq!((bench.engine.len(), bench.events.len()), (0, 0));
    bench.command(Command::Close { id: ID });
    bench.command(Command::DropStream { id: ID, stream: 0 });
}

#[test]
fn a_dropped_stream_can_be_bound_again_while_its_flows_leave() {
    let mut bench = Bench::in_kernel();
    bench.command(Command::DropStream { id: ID, stream: 0 });
    assert_eq!((bench.changes.len(), bench.released.len()), (2, 4));
    bench.changes.clear();
    for side in [Side::A, Side::B] {
        bench.bind(side, local(side));
        bench.signal(side, &remote(endpoint(side), Latch::Auto));
    }
    bench.talk();
    bench.pass(1_000);
    assert_eq!(bench.installs(), [], "the old flows are still there");
    for side in [Side::A, Side::B] {
        bench.outcome(FlowOutcome::Removed(flow_id(side), FlowCounters::default()));
    }
    bench.pass(500);
    assert_eq!(bench.installs(), [flow_id(Side::A), flow_id(Side::B)]);
}

#[test]
fn moving_a_side_to_another_interface_closes_its_old_sockets() {
    let mut bench = Bench::in_kernel();
    bench.bind(Side::A, SocketAddr::from(([192, 0, 2, 99], 12_000)));
    assert_eq!(bench.released, [10, 11]);
    assert_eq!(bench.changes.len(), 2, "both directions name the old address");
}

#[test]
fn silence_is_measured_from_the_last_packet_of_either_way() {
    let mut bench = Bench::call(Latch::Auto);
    bench.pass(29_000);
    bench.talk();
    bench.events.clear();
    bench.pass(29_000);
    assert_eq!(bench.events, []);
    bench.pass(2_200);
    let [Event::Timeout { session, silent }] = bench.events[..] else {
        panic!("{:?}", bench.events)
    };
    assert_eq!(session, ID);
    assert!((TIMEOUT..TIMEOUT + Duration::from_secs(2)).contains(&silent), "{silent:?}");
    bench.pass(25_000);
    assert_eq!(bench.events.len(), 1);
    bench.pass(7_000);
    assert_eq!(bench.events.len(), 2, "once per timeout");
}

#[test]
fn kernel_counters_that_run_are_not_silence_and_those_that_stand_are() {
    let mut bench = Bench::in_kernel();
    let mut packets = 0;
    for _ in 0..10 {
        bench.pass(5_000);
        packets += 250;
        let counters = FlowCounters { packets, bytes: packets * 172 };
        bench.engine.counters(bench.now, flow_id(Side::A), counters);
    }
    assert_eq!(bench.events, []);
    bench.pass(31_500);
    assert!(matches!(bench.events[..], [Event::Timeout { .. }]), "{:?}", bench.events);
}

#[test]
fn ringing_and_hold_on_both_sides_are_not_silence() {
    let mut ringing = Bench::new();
    ringing.open();
    ringing.signal(Side::A, &remote(endpoint(Side::A), Latch::Auto));
    ringing.pass(120_000);
    assert_eq!(ringing.events, []);
    let mut held = Bench::call(Latch::Auto);
    for side in [Side::A, Side::B] {
        let inactive =
            Remote { sends: false, receives: false, ..remote(endpoint(side), Latch::Auto) };
        held.signal(side, &inactive);
    }
    held.pass(120_000);
    assert_eq!(held.events, []);
}

#[test]
fn strangers_do_not_break_the_silence() {
    let mut bench = Bench::call(Latch::Auto);
    bench.talk();
    bench.events.clear();
    for _ in 0..40 {
        bench.pass(1_000);
        let stranger = SocketAddr::from(([203, 0, 113, 66], 6_666));
        assert_eq!(bench.packet_from(Side::A, stranger), Verdict::Drop(DropReason::Source));
    }
    assert!(matches!(bench.events[..], [Event::Timeout { .. }]));
}

#[test]
fn rtcp_comes_from_the_endpoints_host_or_the_signalled_address_only() {
    let mut bench = Bench::call(Latch::Auto);
    let report = [0x80, 201, 0, 1, 0, 0, 0, 1];
    let stranger = SocketAddr::from(([203, 0, 113, 66], 4_001));
    let verdict = bench.raw(Side::A, Component::Rtcp, stranger, &report);
    assert_eq!(verdict, Verdict::Drop(DropReason::Source));
    bench.talk();
    let elsewhere = SocketAddr::from(([198, 51, 100, 1], 4_999));
    let verdict = bench.raw(Side::A, Component::Rtcp, elsewhere, &report);
    assert!(matches!(verdict, Verdict::Relay { .. }), "the host of the endpoint");
    let signalled = SocketAddr::from(([198, 51, 100, 1], 4_001));
    let verdict = bench.raw(Side::A, Component::Rtcp, signalled, &report);
    assert_eq!(verdict, Verdict::Drop(DropReason::Source), "it was learnt once");
    let verdict =
        bench.raw(Side::B, Component::Rtcp, SocketAddr::from(([198, 51, 100, 2], 4_001)), &report);
    assert_eq!(verdict, Verdict::Relay { by: 11, to: elsewhere, component: Component::Rtcp });
}

#[test]
fn when_the_kernel_is_gone_everything_is_in_userspace_and_nothing_waits() {
    let mut bench = Bench::in_kernel();
    bench.engine.counters(bench.now, flow_id(Side::A), FlowCounters { packets: 5, bytes: 860 });
    let mut held = remote(endpoint(Side::A), Latch::Auto);
    held.receives = false;
    bench.signal(Side::A, &held);
    bench.engine.kernel_gone(bench.now);
    bench.outputs();
    assert_eq!(bench.paths()[0], Path::Userspace(Stay::Off));
    assert_eq!(bench.cell.stats().a.packets, 6);
    bench.changes.clear();
    bench.pass(30_000);
    assert_eq!(bench.changes, []);
    bench.command(Command::Close { id: ID });
    assert_eq!(bench.engine.len(), 0);
}
