//! The prober on a virtual clock: schedule, thresholds, addresses in turn, reload.

use std::sync::Arc;

use super::*;
use crate::core::{Core, Input, ResolveQuery};
use crate::ids::Ids;
use crate::media::{
    Anchor, Local, MediaError, MediaId, Remote, Side, SideSpec, StreamKind, StreamStats, Taken,
};
use crate::net::{Flow, Host, InterfaceId, Listener, Transport};
use crate::routing::{Peer, PeerHealth, RoutingConfig, Table, TrunkConfig};
use crate::sip::{self, Limits, Message};
use crate::transaction::{self, Event as TxnEvent};

const POLICY: ProbePolicy = ProbePolicy {
    interval: Duration::from_secs(10),
    timeout: Duration::from_secs(2),
    up_after: 2,
    down_after: 2,
};

fn routing(trunks: &[&str]) -> Arc<Table> {
    let trunks = trunks
        .iter()
        .map(|name| {
            let mut trunk = TrunkConfig::new(name, InterfaceId(0));
            let host = format!("{name}.example").as_str().into();
            trunk.peers.push(Peer { host, port: Some(5070), transport: None });
            trunk.probe = Some(POLICY);
            trunk
        })
        .collect();
    let config = RoutingConfig { trunks, ..RoutingConfig::default() };
    Arc::new(Table::build(config, None, Instant::now()).expect("valid"))
}

fn target(last: u8) -> Target {
    Target::new(Transport::Udp, ([192, 0, 2, last], 5070).into())
}

struct Bench {
    now: Instant,
    t0: Instant,
    txn: TransactionLayer,
    routing: Routing,
    interfaces: Vec<Interface>,
    prober: Prober,
    /// What names resolve to.
    targets: Vec<Target>,
    /// Who answers, with what.
    answers: Vec<(Target, u16)>,
    asked: Vec<(u64, Target, Message)>,
    queries: Vec<ResolveQuery>,
    changes: Vec<(String, bool)>,
}

impl Bench {
    fn new(trunks: &[&str]) -> Self {
        let t0 = Instant::now();
        let listener = Listener {
            transport: Transport::Udp,
            local: "10.0.0.1:5060".parse().expect("address"),
            advertise_host: Host::Name("edge.example".into()),
            advertise_port: 5080,
            retired: false,
        };
        let interface = Interface {
            id: InterfaceId(0),
            name: "out".into(),
            realm: "out".into(),
            listeners: vec![listener],
            media: false,
            large_by_tcp: true,
        };
        let mut bench = Bench {
            now: t0,
            t0,
            txn: TransactionLayer::new(transaction::Config::default(), Ids::from_seed(5), t0),
            routing: Routing::new(routing(trunks), 1),
            interfaces: vec![interface],
            prober: Prober::new(t0, ShardHint(3)),
            targets: vec![target(1)],
            answers: vec![],
            asked: vec![],
            queries: vec![],
            changes: vec![],
        };
        bench.act(|prober, cx| prober.configure(cx));
        bench
    }

    fn act<R>(&mut self, act: impl FnOnce(&mut Prober, &mut ProbeCx<'_>) -> R) -> R {
        let mut cx = ProbeCx {
            now: self.now,
            txn: &mut self.txn,
            routing: &mut self.routing,
            interfaces: &self.interfaces,
            product: "sbc",
        };
        let result = act(&mut self.prober, &mut cx);
        self.settle();
        result
    }

    fn settle(&mut self) {
        loop {
            if let Some(output) = self.prober.poll() {
                self.output(output);
            } else if let Some(Output::Transmit { dest, data, .. }) = self.txn.poll_output() {
                self.transmit(dest, data);
            } else if let Some(event) = self.txn.poll_event() {
                self.act(|prober, cx| match event {
                    TxnEvent::Response { owner, message, .. } => {
                        assert!(prober.response(cx, owner, message.status().expect("response")));
                    }
                    TxnEvent::ClientTimeout { owner, .. } => assert!(prober.failed(cx, owner)),
                    other => panic!("{other:?}"),
                });
            } else {
                return;
            }
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Resolve { id, query } => {
                self.queries.push(query);
                let result = match self.targets.is_empty() {
                    true => Err(ResolveError::NotFound),
                    false => Ok(self.targets.clone()),
                };
                assert!(self.act(|prober, cx| prober.resolved(cx, id, &result)));
            }
            Output::Event(Event::Peer { trunk, up, .. }) => {
                self.changes.push((trunk.to_string(), up))
            }
            other => panic!("{other:?}"),
        }
    }

    fn transmit(&mut self, dest: Destination, data: bytes::Bytes) {
        let Destination::Target { interface, target } = dest else { panic!("a target") };
        let request = sip::parse(data, &Limits::default()).expect("well-formed");
        sip::validate(&request).expect("valid");
        let at = u64::try_from((self.now - self.t0).as_millis()).expect("short");
        self.asked.push((at, target, request.clone()));
        let answer = self.answers.iter().find(|(who, _)| *who == target).map(|(_, status)| *status);
        let Some(status) = answer else { return };
        let data = sip::response(&request, status, "", Some("t"), Some(target.addr)).finish();
        let response = sip::parse(data, &Limits::default()).expect("well-formed");
        let local = "10.0.0.1:5060".parse().expect("address");
        let flow =
            Flow { interface, transport: target.transport, local, remote: target.addr, conn: None };
        self.txn.handle_message(self.now, flow, response);
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let next = [self.prober.deadline(), self.txn.deadline()].into_iter().flatten().min();
            let Some(at) = next.filter(|&at| at <= end) else { break };
            self.now = self.now.max(at);
            self.txn.handle_tick(self.now);
            self.settle();
            self.act(|prober, cx| prober.handle_tick(cx));
        }
        self.now = end;
    }

    fn health(&self, trunk: &str) -> PeerHealth {
        let trunk = self.routing.table().trunk_by_name(trunk).expect("known");
        trunk.peer_health(0).expect("one peer").state()
    }
}

#[test]
fn options_says_only_what_the_interface_advertises() {
    let mut b = Bench::new(&["one"]);
    b.answers = vec![(target(1), 200)];
    b.run_for(Duration::from_secs(10));
    let (_, asked, options) = &b.asked[0];
    assert_eq!(*asked, target(1));
    assert_eq!(options.request_uri_str(), "sip:one.example:5070");
    assert_eq!(options.via().expect("Via").host, "edge.example");
    let text = String::from_utf8_lossy(options.as_bytes()).into_owned();
    assert!(!text.contains("10.0.0.1"), "{text}");
    assert_eq!(crate::ids::HintKey::default().of_message(options.as_bytes()), ShardHint(3));
    assert_eq!(b.queries[0].host, "one.example");
    assert_eq!((b.changes, b.routing.table().trunks().count()), (vec![("one".into(), true)], 1));
}

#[test]
fn probes_are_spread_and_keep_their_interval() {
    let names: Vec<String> = (0..50).map(|n| format!("t{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut b = Bench::new(&names);
    b.answers = vec![(target(1), 404)];
    b.run_for(Duration::from_secs(10));
    let asked: std::collections::HashSet<_> =
        b.asked.iter().map(|(_, _, options)| options.request_uri_str().to_owned()).collect();
    assert_eq!(asked.len(), 50, "each in the first interval");
    let early = b.asked.iter().filter(|(at, ..)| *at < 5_000).count();
    assert!((10..40).contains(&early), "{early}");
    b.run_for(Duration::from_secs(90));
    let rounds = b.asked.len() / 50;
    assert!((9..=11).contains(&rounds), "{rounds}");
    assert!(names.iter().all(|name| b.health(name) == PeerHealth::Up), "404 is an answer");
}

#[test]
fn thresholds_take_a_peer_down_and_up_again() {
    let mut b = Bench::new(&["one"]);
    b.answers = vec![(target(1), 200)];
    b.run_for(Duration::from_secs(20));
    assert_eq!(b.health("one"), PeerHealth::Up);
    b.answers.clear();
    b.run_for(Duration::from_secs(40));
    assert_eq!(b.health("one"), PeerHealth::Down);
    b.answers = vec![(target(1), 503)];
    b.run_for(Duration::from_secs(40));
    assert_eq!(b.health("one"), PeerHealth::Down, "503 is no sign of life");
    b.answers = vec![(target(1), 200)];
    b.run_for(Duration::from_secs(40));
    assert_eq!(b.health("one"), PeerHealth::Up);
    let changes: Vec<bool> = b.changes.iter().map(|(_, up)| *up).collect();
    assert_eq!(changes, [true, false, true]);
}

#[test]
fn the_next_address_is_asked_before_the_peer_counts_as_dead() {
    let mut b = Bench::new(&["one"]);
    b.targets = vec![target(1), target(2)];
    b.answers = vec![(target(2), 200)];
    b.run_for(Duration::from_secs(60));
    assert_eq!(b.health("one"), PeerHealth::Up);
    let first: Vec<Target> = b.asked.iter().map(|(_, target, _)| *target).collect();
    assert!(first.contains(&target(1)) && first.contains(&target(2)));
}

#[test]
fn a_name_that_does_not_resolve_is_down() {
    let mut b = Bench::new(&["one"]);
    b.targets.clear();
    b.run_for(Duration::from_secs(30));
    assert_eq!(b.health("one"), PeerHealth::Down);
    assert!(b.asked.is_empty());
}

#[test]
fn probe_now_does_not_wait_and_does_not_double_the_schedule() {
    let mut b = Bench::new(&["one"]);
    b.answers = vec![(target(1), 200)];
    b.run_for(Duration::from_secs(10));
    let before = b.asked.len();
    assert!(b.act(|prober, cx| prober.probe_now(cx, "one")));
    assert_eq!(b.asked.len(), before + 1);
    assert!(!b.act(|prober, cx| prober.probe_now(cx, "none")));
    b.run_for(Duration::from_secs(100));
    assert!(b.asked.len() <= before + 13, "{}", b.asked.len());
}

#[test]
fn a_reload_forgets_what_was_asked_before() {
    let mut b = Bench::new(&["one", "two"]);
    b.run_for(Duration::from_secs(10));
    assert!(!b.asked.is_empty());
    b.routing.reload(routing(&["three"]));
    b.act(|prober, cx| prober.configure(cx));
    b.answers = vec![(target(1), 200)];
    b.run_for(Duration::from_secs(20));
    assert_eq!(b.health("three"), PeerHealth::Up);
    assert_eq!(b.changes, [("three".to_owned(), true)]);
}

/// A probe carries no media.
struct NoAnchor;

impl Anchor for NoAnchor {
    fn open(&mut self, _: MediaId, _: Option<Duration>) -> Result<(), MediaError> {
        Err(MediaError::NoPorts)
    }

    fn bind(
        &mut self,
        _: MediaId,
        _: usize,
        _: StreamKind,
        _: Side,
        _: SideSpec,
    ) -> Result<Local, MediaError> {
        Err(MediaError::Unknown)
    }

    fn remote(
        &mut self,
        _: MediaId,
        _: usize,
        _: Side,
        _: &Remote,
        _: bool,
    ) -> Result<(), MediaError> {
        Err(MediaError::Unknown)
    }

    fn rebind(
        &mut self,
        _: MediaId,
        _: usize,
        _: StreamKind,
        _: Side,
        _: &Taken,
    ) -> Result<(), MediaError> {
        Err(MediaError::Unknown)
    }

    fn drop_stream(&mut self, _: MediaId, _: usize) {}

    fn stats(&mut self, _: MediaId) -> Vec<StreamStats> {
        Vec::new()
    }

    fn close(&mut self, _: MediaId) -> Vec<StreamStats> {
        Vec::new()
    }
}

#[test]
fn a_shard_probes_by_itself_once_told_to() {
    let Bench { t0, interfaces, .. } = Bench::new(&[]);
    let config = super::super::Config {
        product: "sbc".into(),
        interfaces,
        calls: crate::b2bua::CallPolicy::default(),
        routing: routing(&["one"]),
        transactions: transaction::Config::default(),
        limits: Limits::default(),
        guard: None,
        overload: None,
        hint_key: crate::ids::HintKey::default(),
        node: None,
        registrar: None,
    };
    let clock = crate::b2bua::WallClock { at: t0, unix_ms: 0 };
    let mut core = Core::new(Arc::new(config), [7; 32], clock);
    assert_eq!(core.deadline(), None);
    core.probe_trunks(t0, 0);
    let mut now = t0;
    let mut up = None;
    while up.is_none() {
        now = now.max(core.deadline().expect("a probe is due"));
        core.handle(now, Input::Tick, &mut NoAnchor);
        while let Some(output) = core.poll() {
            let input = match output {
                Output::Resolve { id, .. } => Input::Resolved { id, result: Ok(vec![target(1)]) },
                Output::Transmit { dest, data, .. } => {
                    let Destination::Target { interface, target } = dest else {
                        panic!("a target")
                    };
                    let request = sip::parse(data, &Limits::default()).expect("well-formed");
                    let data = sip::response(&request, 200, "", Some("t"), None).finish();
                    let local = "10.0.0.1:5060".parse().expect("address");
                    let (transport, remote) = (target.transport, target.addr);
                    let flow = Flow { interface, transport, local, remote, conn: None };
                    Input::Message { flow, data }
                }
                Output::Event(Event::Peer { up: change, .. }) => {
                    up = Some(change);
                    continue;
                }
                other => panic!("{other:?}"),
            };
            core.handle(now, input, &mut NoAnchor);
        }
    }
    assert_eq!(up, Some(true));
    assert!(core.probe_now(now, "one") && !core.probe_now(now, "two"));
}
