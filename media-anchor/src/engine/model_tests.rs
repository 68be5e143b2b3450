//! Any order of signalling, packets, time and kernel answers against a model kernel.
//!
//! What must hold: the engine never installs over a living flow nor removes twice, no flow in the
//! kernel contradicts what is signalled, no packet is counted twice or lost, and everything is
//! gone after close.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::config::Config;
use crate::plan_types::{Flow, FlowCounters, FlowId, FlowOutcome, Stay};
use crate::types::Latch;

const ID: SessionId = SessionId(1);

#[derive(Clone, Debug)]
enum Step {
    /// An endpoint sends from one of three addresses; the kernel takes it if it has the flow.
    Packet {
        side: Side,
        host: u8,
    },
    Remote {
        side: Side,
        host: Option<u8>,
        latch: Latch,
        sends: bool,
        relearn: bool,
    },
    Pass(u16),
    /// The kernel answers the oldest change, with yes or no.
    Answer(bool),
    Evict(Side),
    Read,
    Drop,
    Bind(Side, u16),
}

fn step() -> impl Strategy<Value = Step> {
    let side = prop_oneof![Just(Side::A), Just(Side::B)];
    let latch = prop_oneof![Just(Latch::Off), Just(Latch::Auto), Just(Latch::Force)];
    prop_oneof![
        8 => (side.clone(), 0..3u8).prop_map(|(side, host)| Step::Packet { side, host }),
        2 => (side.clone(), proptest::option::weighted(0.8, 0..3u8), latch, any::<bool>(), any::<bool>())
            .prop_map(|(side, host, latch, sends, relearn)| Step::Remote { side, host, latch, sends, relearn }),
        4 => (1..4000u16).prop_map(Step::Pass),
        6 => any::<bool>().prop_map(Step::Answer),
        1 => side.clone().prop_map(Step::Evict),
        1 => Just(Step::Read),
        1 => Just(Step::Drop),
        2 => (side, 0..2u16).prop_map(|(side, n)| Step::Bind(side, n)),
    ]
}

/// A kernel that answers late.
#[derive(Default)]
struct Kernel {
    queue: VecDeque<FlowChange>,
    flows: BTreeMap<FlowId, (Flow, FlowCounters)>,
    /// What the engine believes in, by the changes it asked for.
    asked: BTreeMap<FlowId, bool>,
}

struct World {
    engine: Engine,
    kernel: Kernel,
    now: Instant,
    cells: Vec<Arc<StreamCell>>,
    sequence: u16,
    bound: [Option<SocketAddr>; 2],
    relayed: u64,
    finals: usize,
}

fn addr(side: Side, host: u8) -> SocketAddr {
    let net = if side == Side::A { 10 } else { 20 };
    SocketAddr::from(([198, 51, 100, net + host], 4000))
}

fn slot(side: Side) -> usize {
    side.index()
}

impl World {
    fn new() -> World {
        let addresses = Arc::new(Addresses::new(&Config::new(Vec::new())));
        let mut engine =
            Engine::new(addresses, Learning::default(), OffloadConfig::default(), true);
        let now = Instant::now();
        engine.command(now, Command::Open { id: ID, shard: 0, timeout: None });
        let mut world = World {
            engine,
            kernel: Kernel::default(),
            now,
            cells: vec![Arc::default()],
            sequence: 0,
            bound: [None, None],
            relayed: 0,
            finals: 0,
        };
        world.step(&Step::Bind(Side::A, 0));
        world.step(&Step::Bind(Side::B, 0));
        // Into the kernel: what follows happens to a call that is there.
        for side in [Side::A, Side::B] {
            let (host, latch) = (Some(0), Latch::Auto);
            world.step(&Step::Remote { side, host, latch, sends: true, relearn: true });
            world.step(&Step::Packet { side, host: 0 });
        }
        world.step(&Step::Pass(500));
        world.step(&Step::Answer(true));
        world.step(&Step::Answer(true));
        assert_eq!(world.kernel.flows.len(), 2);
        world
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Packet { side, host } => self.packet(side, addr(side, host)),
            Step::Remote { side, host, latch, sends, relearn } => {
                let rtp = host.map(|host| addr(side, host));
                let remote =
                    Remote { rtp, rtcp: None, rtcp_mux: false, sends, receives: true, latch };
                let command = Command::Remote { id: ID, stream: 0, side, remote, relearn };
                self.engine.command(self.now, command);
            }
            Step::Pass(ms) => {
                self.now += Duration::from_millis(u64::from(ms));
                self.engine.tick(self.now);
            }
            Step::Answer(yes) => self.answer(yes),
            Step::Evict(from) => {
                let id = FlowId { session: ID, stream: 0, from, component: Component::Rtp };
                if let Some((_, last)) = self.kernel.flows.remove(&id) {
                    let outcome = FlowOutcome::Evicted(id, Stay::NoRoute, last);
                    self.engine.outcome(self.now, &outcome);
                    self.kernel.asked.entry(id).and_modify(|asked| {
                        // A removal that is on its way still gets its answer.
                        *asked = *asked && self.kernel.queue.iter().any(|c| removes(c, id));
                    });
                }
            }
            Step::Read => {
                for (id, (_, counters)) in &self.kernel.flows {
                    self.engine.counters(self.now, *id, *counters);
                }
            }
            Step::Drop => {
                self.engine.command(self.now, Command::DropStream { id: ID, stream: 0 });
                self.bound = [None, None];
                self.cells.push(Arc::default());
            }
            Step::Bind(side, n) => self.bind(side, n),
        }
        self.outputs();
    }

    fn bind(&mut self, side: Side, n: u16) {
        let host = if side == Side::A { 1 } else { 2 };
        let rtp = SocketAddr::from(([192, 0, 2, host], 10_000 + n * 2));
        let token = if side == Side::A { 10 } else { 20 };
        let bound = Bound {
            interface: InterfaceId(0),
            rtp,
            dscp: None,
            rtp_token: token,
            rtcp_token: Some(token + 1),
        };
        let Some(cell) = self.cells.last().cloned() else { return };
        let kind = StreamKind::Audio;
        let command = Command::Bind { id: ID, stream: 0, kind, side, bound, cell };
        self.engine.command(self.now, command);
        self.bound[slot(side)] = Some(rtp);
    }

    /// A packet arrives at our address: the kernel's if it matches a flow, else the engine's.
    fn packet(&mut self, side: Side, src: SocketAddr) {
        let Some(dst) = self.bound[slot(side)] else { return };
        let matching = self
            .kernel
            .flows
            .values_mut()
            .find(|(flow, _)| flow.arrives.src == src && flow.arrives.dst == dst);
        if let Some((_, counters)) = matching {
            counters.packets += 1;
            counters.bytes += 172;
            self.relayed += 1;
            return;
        }
        self.sequence = self.sequence.wrapping_add(1);
        let mut data = [0u8; 172];
        data[0] = 0x80;
        data[2..4].copy_from_slice(&self.sequence.to_be_bytes());
        let at = At {
            slot: self.engine.slot(ID).unwrap_or(0),
            stream: 0,
            side,
            component: Component::Rtp,
        };
        if let Verdict::Relay { .. } = self.engine.packet(self.now, at, src, &data) {
            self.relayed += 1;
        }
    }

    fn answer(&mut self, yes: bool) {
        let Some(change) = self.kernel.queue.pop_front() else { return };
        let outcome = match change {
            FlowChange::Install(flow) if yes => {
                let old = self.kernel.flows.insert(flow.id, (flow, FlowCounters::default()));
                assert!(old.is_none(), "installed over a living flow");
                FlowOutcome::Installed(flow.id)
            }
            FlowChange::Install(flow) => {
                let still = self.kernel.queue.iter().any(|c| removes(c, flow.id));
                self.kernel.asked.insert(flow.id, still);
                FlowOutcome::Refused(flow.id, Stay::Full)
            }
            FlowChange::Remove(id) => {
                self.kernel.asked.insert(id, false);
                let last = self.kernel.flows.remove(&id).map(|(_, last)| last);
                FlowOutcome::Removed(id, last.unwrap_or_default())
            }
        };
        self.engine.outcome(self.now, &outcome);
    }

    fn outputs(&mut self) {
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Flow(change) => {
                    match change {
                        FlowChange::Install(flow) => {
                            let living = self.kernel.asked.insert(flow.id, true);
                            assert_ne!(living, Some(true), "asked for twice");
                            assert_ne!(flow.arrives.src, flow.leaves.dst);
                        }
                        FlowChange::Remove(id) => {
                            assert_eq!(self.kernel.asked.get(&id), Some(&true), "removed unasked");
                            let twice = self.kernel.queue.iter().any(|c| removes(c, id));
                            assert!(!twice, "removed twice");
                        }
                    }
                    self.kernel.queue.push_back(change);
                }
                Output::Event { event: Event::Final { .. }, .. } => self.finals += 1,
                Output::Event { .. } | Output::Release(_) => {}
            }
        }
    }

    /// Every answer given, everything read.
    fn settle(&mut self) {
        while !self.kernel.queue.is_empty() {
            self.answer(true);
            self.outputs();
        }
        self.step(&Step::Read);
    }

    fn counted(&self) -> u64 {
        self.cells.iter().map(|cell| cell.stats()).map(|s| s.a.packets + s.b.packets).sum()
    }
}

fn removes(change: &FlowChange, id: FlowId) -> bool {
    matches!(change, FlowChange::Remove(removed) if *removed == id)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_kernel_follows_any_story_and_counters_add_up(steps in proptest::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.settle();
        prop_assert_eq!(world.counted(), world.relayed);
        // What is in the kernel is what signalling and latching say now.
        for (flow, _) in world.kernel.flows.values() {
            let from = flow.id.from;
            prop_assert_eq!(Some(flow.arrives.dst), world.bound[slot(from)]);
            prop_assert_eq!(Some(flow.leaves.src), world.bound[slot(from.other())]);
            let session = world.engine.session_mut(ID).and_then(|s| s.stream_mut(0));
            let Some(stream) = session else { panic!("a flow without a stream") };
            prop_assert!(stream.side(from).sends_to(stream.side(from.other())));
            prop_assert_eq!(stream.side(from).latch.settled(world.now), Some(flow.arrives.src));
            let to = stream.side(from.other()).latch.destination();
            prop_assert_eq!(to, Some(flow.leaves.dst));
        }
        world.engine.command(world.now, Command::Close { id: ID });
        world.outputs();
        world.settle();
        prop_assert!(world.kernel.flows.is_empty());
        prop_assert_eq!(world.engine.len(), 0);
        prop_assert!(world.finals <= 1);
        prop_assert_eq!(world.counted(), world.relayed);
    }
}
