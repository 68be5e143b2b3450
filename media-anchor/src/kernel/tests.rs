//! The relay over a kernel made of a hash map that can be told to fail, and properties of the plan.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::errno::Errno;
use proptest::prelude::*;

use super::backend::{Backend, CommitError, Device, Fault, Op};
use super::element::{Action, Counters, Element, Key};
use super::network::{Changes, Network, Prefix};
use super::plan::{self, NextHop, Reason};
use super::relay::{Relay, Settings};
use super::report::Report;
use crate::plan_types::{
    Flow, FlowChange, FlowCounters, FlowId, FlowOutcome, Offload, Stay, Tuple,
};
use crate::types::{Component, InterfaceId, SessionId, Side, StreamKind};

/// What the fake kernel holds and how it behaves.
#[derive(Default)]
struct World {
    table: BTreeMap<Key, (Action, Counters)>,
    /// The table was deleted by somebody.
    gone: bool,
    permission_lost: bool,
    /// Elements at most.
    size: Option<usize>,
    /// Commits of more operations fail with `NoRoom`.
    room: Option<usize>,
    /// Keys that are refused with this errno.
    refuse: Option<(Key, Errno)>,
    /// Refusals don't say which operation.
    mute: bool,
    commits: Vec<usize>,
    changes: Changes,
    /// Next hop by destination; others are directly reachable by device 7.
    hops: BTreeMap<IpAddr, Result<NextHop, Reason>>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<World>>);

impl Fake {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("one thread")
    }
}

impl Backend for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn checks_length(&self) -> bool {
        true
    }

    fn reset(&mut self) -> Result<(), Fault> {
        let mut world = self.world();
        if world.permission_lost {
            return Err(Fault::Permission);
        }
        world.gone = false;
        world.table.clear();
        Ok(())
    }

    fn attach(&mut self, _device: &Device) -> Result<(), Fault> {
        Ok(())
    }

    fn detach(&mut self, _name: &str) -> Result<(), Fault> {
        Ok(())
    }

    fn commit(&mut self, ops: &[Op], done: &mut Vec<Option<Counters>>) -> Result<(), CommitError> {
        let mut world = self.world();
        world.commits.push(ops.len());
        let mute = world.mute;
        let fail = |at: usize, fault| Err(CommitError { at: (!mute).then_some(at), fault });
        if world.permission_lost {
            return Err(Fault::Permission.into());
        }
        if world.gone {
            return Err(Fault::TableGone.into());
        }
        if world.room.is_some_and(|room| ops.len() > room) {
            return Err(Fault::NoRoom.into());
        }
        let mut table = world.table.clone();
        let mut results = vec![None; ops.len()];
        for (at, op) in ops.iter().enumerate() {
            if let Op::Delete(key) = op {
                match table.remove(key) {
                    Some((_, counters)) => results[at] = Some(counters),
                    None => return fail(at, Fault::Missing),
                }
            }
        }
        for (at, op) in ops.iter().enumerate() {
            if let Op::Add(element) = op {
                if let Some((_, errno)) = world.refuse.filter(|(key, _)| *key == element.key) {
                    return fail(at, Fault::Other(errno));
                }
                if world.size.is_some_and(|size| table.len() >= size) {
                    return fail(at, Fault::Full);
                }
                let fresh = (element.action, Counters::default());
                if table.insert(element.key, fresh).is_some() {
                    return fail(at, Fault::Exists);
                }
            }
        }
        world.table = table;
        done.extend(results);
        Ok(())
    }

    fn read(&mut self, keys: &[Key], out: &mut Vec<Option<Counters>>) -> Result<(), Fault> {
        let world = self.world();
        if world.gone {
            return Err(Fault::TableGone);
        }
        out.extend(keys.iter().map(|key| world.table.get(key).map(|(_, c)| *c)));
        Ok(())
    }

    fn stands(&mut self) -> Result<bool, Fault> {
        Ok(!self.world().gone)
    }

    fn list(&mut self, keys: &mut Vec<Key>) -> Result<bool, Fault> {
        keys.extend(self.world().table.keys());
        Ok(true)
    }

    fn remove(&mut self) {
        self.world().table.clear();
    }
}

impl Network for Fake {
    fn next_hop(&mut self, _src: IpAddr, dst: IpAddr) -> Result<NextHop, Reason> {
        let direct = Ok(NextHop { oif: 7, via: dst, mtu: 1500 });
        self.world().hops.get(&dst).copied().unwrap_or(direct)
    }

    fn device_of(&self, _local: IpAddr) -> Option<(Device, u32)> {
        self.device(7)
    }

    fn device(&self, index: u32) -> Option<(Device, u32)> {
        let name = format!("eth{index}");
        Some((Device { name, index, ethernet: true, vlan_parent: false }, 1500))
    }

    fn named(&self, _name: &str) -> Option<(Device, u32)> {
        self.device(7)
    }

    fn poll(&mut self) -> Changes {
        std::mem::take(&mut self.world().changes)
    }
}

fn relay(flows_max: usize) -> (Relay, Fake, Arc<Report>) {
    let fake = Fake::default();
    let report = Arc::new(Report::default());
    let settings = Settings {
        flows_max,
        devices: Vec::new(),
        audit_every: Duration::ZERO,
        check_every: Duration::ZERO,
        retry_after: Duration::ZERO,
    };
    let relay =
        Relay::new(Box::new(fake.clone()), Box::new(fake.clone()), settings, report.clone());
    (relay, fake, report)
}

fn id(session: u64, from: Side) -> FlowId {
    FlowId { session: SessionId(session), stream: 0, from, component: Component::Rtp }
}

/// Flow `n`, one of two of session `n / 2`.
fn flow(n: u16) -> Flow {
    let at = |ip: [u8; 4], port: u16| SocketAddr::from((ip, port));
    Flow {
        id: id(u64::from(n / 2), if n.is_multiple_of(2) { Side::A } else { Side::B }),
        kind: StreamKind::Audio,
        arrives: Tuple { src: at([10, 0, 0, 2], 10_000 + n), dst: at([10, 0, 0, 1], 20_000 + n) },
        leaves: Tuple { src: at([10, 1, 0, 1], 30_000 + n), dst: at([10, 1, 0, 2], 40_000 + n) },
        ingress: InterfaceId(0),
        egress: InterfaceId(1),
        dscp: None,
    }
}

fn key(n: u16) -> Key {
    plan::quads(&flow(n)).expect("a good flow").0
}

fn install(relay: &mut Relay, flows: std::ops::Range<u16>) -> Vec<FlowOutcome> {
    let changes: Vec<FlowChange> = flows.map(|n| FlowChange::Install(flow(n))).collect();
    let mut outcomes = Vec::new();
    relay.apply(&changes, &mut outcomes);
    outcomes
}

fn remove(relay: &mut Relay, flows: std::ops::Range<u16>) -> Vec<FlowOutcome> {
    let changes: Vec<FlowChange> = flows.map(|n| FlowChange::Remove(flow(n).id)).collect();
    let mut outcomes = Vec::new();
    relay.apply(&changes, &mut outcomes);
    outcomes
}

fn poll(relay: &mut Relay) -> Vec<FlowOutcome> {
    let mut outcomes = Vec::new();
    relay.poll(&mut outcomes);
    outcomes
}

fn installed(flows: std::ops::Range<u16>) -> Vec<FlowOutcome> {
    flows.map(|n| FlowOutcome::Installed(flow(n).id)).collect()
}

fn packets(packets: u64) -> Counters {
    Counters { packets, bytes: packets * 200 }
}

fn counted(n: u64) -> FlowCounters {
    FlowCounters { packets: n, bytes: n * 172 }
}

#[test]
fn want_of_room_splits_down_to_one_call() {
    let (mut relay, fake, report) = relay(1000);
    fake.world().room = Some(3);
    assert_eq!(install(&mut relay, 0..40), installed(0..40));
    assert!(fake.world().commits.iter().filter(|n| **n > 3).count() < 12, "halved, not crawled");
    assert_eq!(fake.world().table.len(), 40);
    poll(&mut relay);
    assert!(report.status().totals.split > 0);
}

#[test]
fn a_call_that_never_fits_fails_alone() {
    let (mut relay, fake, _) = relay(1000);
    fake.world().room = Some(1);
    let refused: Vec<FlowOutcome> =
        (0..2).map(|n| FlowOutcome::Refused(flow(n).id, Stay::Refused)).collect();
    assert_eq!(install(&mut relay, 0..2), refused);
    assert_eq!(install(&mut relay, 2..3), installed(2..3));
}

#[test]
fn one_refused_flow_takes_its_call_and_no_other() {
    for mute in [false, true] {
        let (mut relay, fake, report) = relay(1000);
        fake.world().refuse = Some((key(5), Errno::EINVAL));
        fake.world().mute = mute;
        let outcomes = install(&mut relay, 0..10);
        for (n, outcome) in (0..10).zip(&outcomes) {
            let id = flow(n).id;
            let want = if n == 4 || n == 5 {
                FlowOutcome::Refused(id, Stay::Refused)
            } else {
                FlowOutcome::Installed(id)
            };
            assert_eq!(*outcome, want, "mute {mute}");
        }
        assert_eq!(fake.world().table.len(), 8);
        poll(&mut relay);
        assert_eq!(report.status().refused[Reason::Refused.index()], 2);
    }
}

#[test]
fn a_stale_element_is_replaced_and_a_missing_one_not_missed() {
    let (mut relay, fake, report) = relay(1000);
    let old = Action { leaves: key(9), oif: 3, via: [10, 9, 9, 9].into(), dscp: 0, mtu: 1500 };
    fake.world().table.insert(key(1), (old, packets(77)));
    assert_eq!(install(&mut relay, 0..2), installed(0..2));
    assert_eq!(fake.world().table[&key(1)].0.oif, 7, "the stale one was replaced");
    fake.world().table.remove(&key(0));
    assert_eq!(
        remove(&mut relay, 0..2),
        [0, 1].map(|n| FlowOutcome::Removed(flow(n).id, FlowCounters::default()))
    );
    assert!(fake.world().table.is_empty());
    poll(&mut relay);
    let totals = report.status().totals;
    assert_eq!((totals.leaked, totals.missing), (1, 1));
}

#[test]
fn a_full_table_refuses_by_name() {
    let (mut relay, fake, _) = relay(1000);
    fake.world().size = Some(4);
    let outcomes = install(&mut relay, 0..6);
    assert_eq!(outcomes[..4], installed(0..4));
    assert!(outcomes[4..].iter().all(|o| matches!(o, FlowOutcome::Refused(_, Stay::Full))));
    let (mut small, _, _) = self::relay(2);
    let outcomes = install(&mut small, 0..3);
    assert_eq!(outcomes[..2], installed(0..2));
    assert_eq!(outcomes[2], FlowOutcome::Refused(flow(2).id, Stay::Full));
}

#[test]
fn a_deleted_table_is_made_again_with_all_that_was_in_it() {
    let (mut relay, fake, report) = relay(1000);
    install(&mut relay, 0..6);
    fake.world().table.get_mut(&key(0)).expect("there").1 = packets(5);
    let mut read = Vec::new();
    relay.counters(&[flow(0).id], &mut read);
    fake.world().gone = true;
    assert_eq!(install(&mut relay, 6..8), installed(6..8));
    assert_eq!(fake.world().table.len(), 8);
    fake.world().gone = true;
    assert_eq!(poll(&mut relay), []);
    assert_eq!(fake.world().table.len(), 8);
    fake.world().table.get_mut(&key(0)).expect("there").1 = packets(2);
    fake.world().gone = true;
    assert_eq!(
        remove(&mut relay, 0..1),
        [FlowOutcome::Removed(flow(0).id, counted(5))],
        "what was read is kept; two packets went with the table"
    );
    poll(&mut relay);
    assert_eq!(report.status().totals.rebuilt, 3);
}

#[test]
fn a_lost_permission_sends_everything_back_and_comes_up_again() {
    let (mut relay, fake, report) = relay(1000);
    install(&mut relay, 0..4);
    fake.world().table.get_mut(&key(3)).expect("there").1 = packets(9);
    fake.world().permission_lost = true;
    assert_eq!(install(&mut relay, 4..5), [FlowOutcome::Refused(flow(4).id, Stay::Off)]);
    let mut outcomes = poll(&mut relay);
    outcomes.sort_by_key(FlowOutcome::id);
    assert_eq!(outcomes[3], FlowOutcome::Evicted(flow(3).id, Stay::Off, counted(9)));
    assert_eq!(outcomes.len(), 4);
    assert_eq!(report.status().way, "off");
    fake.world().permission_lost = false;
    assert_eq!(poll(&mut relay), []);
    assert_eq!(report.status().way, "fake");
    assert_eq!(install(&mut relay, 0..4), installed(0..4));
}

#[test]
fn elements_of_no_flow_are_deleted_by_the_audit() {
    let (mut relay, fake, report) = relay(1000);
    install(&mut relay, 0..2);
    let stray = fake.world().table[&key(0)];
    fake.world().table.insert(key(50), stray);
    assert_eq!(poll(&mut relay), []);
    assert_eq!(fake.world().table.len(), 2);
    assert_eq!(report.status().totals.leaked, 1);
    // And a missing one is put back when it is read.
    fake.world().table.remove(&key(1));
    relay.counters(&[flow(1).id], &mut Vec::new());
    assert_eq!(fake.world().table.len(), 2);
}

#[test]
fn a_route_change_moves_what_it_touches_and_keeps_the_count() {
    let (mut relay, fake, report) = relay(1000);
    install(&mut relay, 0..2);
    fake.world().table.get_mut(&key(0)).expect("there").1 = packets(4);
    let dst: IpAddr = [10, 1, 0, 2].into();
    let gateway = NextHop { oif: 8, via: [10, 2, 0, 9].into(), mtu: 1400 };
    fake.world().hops.insert(dst, Ok(gateway));
    let elsewhere = Prefix { addr: [10, 3, 0, 0].into(), len: 16 };
    fake.world().changes.prefixes = vec![elsewhere];
    assert_eq!(poll(&mut relay), []);
    assert_eq!(fake.world().table[&key(0)].0.oif, 7, "not touched");
    fake.world().changes.prefixes = vec![Prefix { addr: [10, 1, 0, 0].into(), len: 16 }];
    assert_eq!(poll(&mut relay), []);
    assert_eq!(fake.world().table[&key(0)].0.oif, 8);
    fake.world().table.get_mut(&key(0)).expect("there").1 = packets(3);
    let mut read = Vec::new();
    relay.counters(&[flow(0).id], &mut read);
    assert_eq!(read, [(flow(0).id, counted(7))]);
    fake.world().hops.insert(dst, Err(Reason::NoRoute));
    fake.world().changes.all = true;
    let outcomes = poll(&mut relay);
    assert!(outcomes.contains(&FlowOutcome::Evicted(flow(0).id, Stay::NoRoute, counted(7))));
    assert_eq!((fake.world().table.len(), report.status().totals.replanned), (0, 2));
}

#[test]
fn two_flows_never_share_a_key() {
    let (mut relay, fake, _) = relay(1000);
    let other = Flow { id: id(77, Side::A), ..flow(0) };
    let mut outcomes = Vec::new();
    let changes = [FlowChange::Install(flow(0)), FlowChange::Install(other)];
    relay.apply(&changes, &mut outcomes);
    assert_eq!(
        outcomes,
        [FlowOutcome::Installed(flow(0).id), FlowOutcome::Refused(other.id, Stay::Refused)]
    );
    // But one may take over the other's key in one batch.
    outcomes.clear();
    relay.apply(&[FlowChange::Remove(flow(0).id), FlowChange::Install(other)], &mut outcomes);
    assert_eq!(
        outcomes,
        [
            FlowOutcome::Removed(flow(0).id, FlowCounters::default()),
            FlowOutcome::Installed(other.id)
        ]
    );
    assert_eq!(fake.world().table.len(), 1);
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Change(Vec<(u16, bool)>),
    Traffic(u16),
    Route(u32),
    Poll,
    TableGone,
    Room(Option<usize>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec((0u16..12, any::<bool>()), 1..8).prop_map(Step::Change),
        3 => (0u16..12).prop_map(Step::Traffic),
        1 => (5u32..9).prop_map(Step::Route),
        2 => Just(Step::Poll),
        1 => Just(Step::TableGone),
        1 => prop::option::of(1usize..6).prop_map(Step::Room),
    ]
}

proptest! {
    /// Whatever happens: every change has one outcome, the kernel holds exactly the flows that
    /// were told to be in it, each with the present next hop.
    #[test]
    fn the_kernel_holds_what_was_answered(steps in prop::collection::vec(step(), 1..40)) {
        let (mut relay, fake, _) = relay(8);
        let mut inside: BTreeMap<FlowId, u16> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Change(list) => {
                    let changes: Vec<FlowChange> = list
                        .iter()
                        .map(|(n, add)| match add {
                            true => FlowChange::Install(flow(*n)),
                            false => FlowChange::Remove(flow(*n).id),
                        })
                        .collect();
                    let mut outcomes = Vec::new();
                    relay.apply(&changes, &mut outcomes);
                    prop_assert_eq!(outcomes.len(), list.len());
                    for ((n, _), outcome) in list.iter().zip(&outcomes) {
                        prop_assert_eq!(outcome.id(), flow(*n).id);
                        match outcome {
                            FlowOutcome::Installed(id) => {
                                prop_assert!(inside.insert(*id, *n).is_none());
                            }
                            FlowOutcome::Removed(id, _) => drop(inside.remove(id)),
                            FlowOutcome::Refused(..) => {}
                            FlowOutcome::Evicted(..) => prop_assert!(false, "unasked in apply"),
                        }
                    }
                }
                Step::Traffic(n) => {
                    if let Some((_, counters)) = fake.world().table.get_mut(&key(n)) {
                        *counters = counters.plus(packets(1));
                    }
                }
                Step::Route(oif) => {
                    let dst: IpAddr = [10, 1, 0, 2].into();
                    let hop = NextHop { oif, via: dst, mtu: 1500 };
                    // 8: no route at all.
                    let hop = if oif == 8 { Err(Reason::NoRoute) } else { Ok(hop) };
                    let mut world = fake.world();
                    world.hops.insert(dst, hop);
                    world.changes.all = true;
                }
                Step::TableGone => fake.world().gone = true,
                Step::Room(room) => fake.world().room = room,
                Step::Poll => {}
            }
            let mut outcomes = Vec::new();
            relay.poll(&mut outcomes);
            for outcome in outcomes {
                prop_assert!(matches!(outcome, FlowOutcome::Evicted(..)));
                inside.remove(&outcome.id());
            }
            let world = fake.world();
            let held: Vec<Key> = world.table.keys().copied().collect();
            let mut told: Vec<Key> = inside.values().map(|n| key(*n)).collect();
            told.sort();
            prop_assert_eq!(held, told);
            let dst: IpAddr = [10, 1, 0, 2].into();
            if let Some(Ok(hop)) = world.hops.get(&dst) {
                prop_assert!(world.table.values().all(|(a, _)| a.oif == hop.oif));
            }
        }
    }

    /// `diff` turns one state into the other, and says nothing when they are the same.
    #[test]
    fn a_difference_applied_gives_what_was_desired(a in option_element(), b in option_element()) {
        let mut table: BTreeMap<Key, Element> = a.iter().map(|e| (e.key, *e)).collect();
        let ops = plan::diff(a.as_ref(), b.as_ref());
        prop_assert_eq!(ops.is_empty(), a == b);
        for op in ops {
            match op {
                Op::Delete(key) => prop_assert!(table.remove(&key).is_some()),
                Op::Add(e) => prop_assert!(table.insert(e.key, e).is_none()),
            }
        }
        let want: BTreeMap<Key, Element> = b.iter().map(|e| (e.key, *e)).collect();
        prop_assert_eq!(table, want);
    }
}

fn option_element() -> impl Strategy<Value = Option<Element>> {
    let element = (0u16..3, 1u32..3).prop_map(|(n, oif)| {
        let hop = NextHop { oif, via: [10, 1, 0, 2].into(), mtu: 1500 };
        plan::element(&flow(n), hop, None).expect("a good flow")
    });
    prop::option::of(element)
}

#[test]
fn the_plan_names_what_it_cannot_do() {
    let hop = |via: &str, mtu| NextHop { oif: 7, via: via.parse().expect("address"), mtu };
    let good = hop("10.1.0.2", 1500);
    let at = |text: &str| text.parse::<SocketAddr>().expect("address");
    let to =
        |dst: &str| Flow { leaves: Tuple { src: flow(0).leaves.src, dst: at(dst) }, ..flow(0) };
    for (flow, hop, ingress_mtu, want) in [
        (to("[2001:db8::1]:5"), good, None, Reason::Family),
        (to("10.1.0.2:0"), good, None, Reason::Address),
        (to("239.0.0.1:5"), good, None, Reason::Address),
        (flow(0), hop("fe80::1", 1500), None, Reason::GatewayFamily),
        (flow(0), NextHop { oif: 0, ..good }, None, Reason::DeviceDown),
        (flow(0), hop("10.1.0.2", 1400), Some(1500), Reason::Mtu),
    ] {
        assert_eq!(plan::element(&flow, hop, ingress_mtu), Err(want));
    }
    let element = plan::element(&flow(0), hop("10.9.9.9", 1400), None).expect("fits");
    assert_eq!((element.action.oif, element.action.mtu, element.action.dscp), (7, 1400, 0));
    assert_eq!(element.action.via, IpAddr::from([10, 9, 9, 9]));
}

#[test]
fn a_flow_that_stood_by_becomes_ours_without_a_commit() {
    let (mut relay, fake, report) = relay(1000);
    let standby = |n: u16| Flow { id: flow(n).id.standby(), ..flow(n) };
    let changes = [0, 1].map(|n| FlowChange::Install(standby(n)));
    let mut outcomes = Vec::new();
    relay.apply(&changes, &mut outcomes);
    assert_eq!(outcomes, [0, 1].map(|n| FlowOutcome::Installed(standby(n).id)));
    poll(&mut relay);
    assert_eq!(report.status().standby, 2);
    fake.world().table.get_mut(&key(0)).expect("there").1 = packets(4);
    let commits = fake.world().commits.len();
    assert_eq!(install(&mut relay, 0..2), installed(0..2));
    assert_eq!(fake.world().commits.len(), commits, "nothing is changed in the kernel");
    let told = poll(&mut relay);
    let gone = [0, 1].map(|n| FlowOutcome::Removed(standby(n).id, counted(0)));
    assert_eq!(told, gone, "nothing stands by any more");
    let status = report.status();
    assert_eq!((status.standby, status.flows, status.totals.promoted), (0, 2, 2));
    let mut read = Vec::new();
    relay.counters(&[flow(0).id], &mut read);
    assert_eq!(read, [(flow(0).id, counted(4))], "what it has relayed here counts");
    let mut outcomes = Vec::new();
    relay.apply(&[FlowChange::Remove(standby(0).id)], &mut outcomes);
    assert_eq!(fake.world().table.len(), 2, "a late removal of what stood by removes nothing");
    assert_eq!(remove(&mut relay, 0..2).len(), 2);
    assert_eq!(fake.world().table.len(), 0);
}

#[test]
fn what_stood_by_otherwise_gives_way_to_the_session() {
    let (mut relay, fake, _) = relay(1000);
    let old = Flow {
        id: flow(0).id.standby(),
        arrives: Tuple { src: ([10, 0, 0, 9], 9).into(), ..flow(0).arrives },
        ..flow(0)
    };
    let elsewhere = Flow { id: flow(8).id.standby(), arrives: flow(1).arrives, ..flow(8) };
    let changes = [old, elsewhere].map(FlowChange::Install);
    relay.apply(&changes, &mut Vec::new());
    assert_eq!(fake.world().table.len(), 2);
    assert_eq!(install(&mut relay, 0..2), installed(0..2));
    let keys: Vec<Key> = fake.world().table.keys().copied().collect();
    assert!(keys.len() == 2 && keys.contains(&key(0)) && keys.contains(&key(1)), "{keys:?}");
    // A flow of another node's call never takes the place of one of ours.
    let mut outcomes = Vec::new();
    relay
        .apply(&[FlowChange::Install(Flow { id: flow(0).id.standby(), ..flow(0) })], &mut outcomes);
    assert_eq!(outcomes, [FlowOutcome::Refused(flow(0).id.standby(), Stay::Refused)]);
}
