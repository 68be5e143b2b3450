//! What stands by of which records, and what becomes of it.

use std::net::IpAddr;

use super::*;
use crate::config::{Config, Dscp, MediaAddr, MediaInterface};
use crate::plan_types::{FlowCounters, Stay};
use crate::types::{InterfaceId, Latch, Side};

const CALL: SessionId = SessionId(7);

fn standby() -> (Standby, Book) {
    let interface = |id: u16, ip: [u8; 4]| MediaInterface {
        id: InterfaceId(id),
        v4: Some(MediaAddr {
            local: IpAddr::from(ip),
            advertise: IpAddr::from([203, 0, 113, ip[3]]),
        }),
        v6: None,
        ports: 40_000..=49_999,
        dscp: Dscp::default(),
    };
    let config = Config::new(vec![interface(0, [192, 0, 2, 1]), interface(1, [198, 51, 100, 1])]);
    Standby::new(Arc::new(Addresses::new(&config)), config.offload)
}

fn side(interface: u16, port: u16, rtp: &str, latched: Option<&str>) -> StandbySide {
    let at = |text: &str| text.parse().expect("address");
    StandbySide {
        spec: SideSpec { interface: InterfaceId(interface), ipv6: false },
        port,
        remote: Some(Remote {
            rtp: Some(at(rtp)),
            rtcp: None,
            rtcp_mux: false,
            sends: true,
            receives: true,
            latch: Latch::Auto,
        }),
        latched: latched.map(at),
    }
}

/// A behind NAT: signalled 10.0.0.1, heard from 203.0.113.77.
fn audio() -> StandbyStream {
    StandbyStream {
        kind: StreamKind::Audio,
        a: side(0, 40_010, "10.0.0.1:4000", Some("203.0.113.77:1234")),
        b: side(1, 40_020, "198.51.100.9:6000", Some("198.51.100.9:6000")),
    }
}

fn polled(book: &mut Book, now: Instant) -> Vec<FlowChange> {
    let mut changes = Vec::new();
    book.poll(now, 100, &mut changes);
    changes
}

fn installs(changes: &[FlowChange]) -> Vec<String> {
    let text = |change: &FlowChange| match change {
        FlowChange::Install(f) => {
            format!("{} {} {} {}", f.arrives.src, f.arrives.dst, f.leaves.src, f.leaves.dst)
        }
        FlowChange::Remove(id) => format!("remove {:?}", id.from),
    };
    changes.iter().map(text).collect()
}

#[test]
fn a_record_makes_the_flows_that_its_session_would_have() {
    let (standby, mut book) = standby();
    standby.put(CALL, &[None, Some(audio())]).expect("taken");
    let changes = polled(&mut book, Instant::now());
    assert_eq!(
        installs(&changes),
        [
            "203.0.113.77:1234 192.0.2.1:40010 198.51.100.1:40020 198.51.100.9:6000",
            "198.51.100.9:6000 198.51.100.1:40020 192.0.2.1:40010 203.0.113.77:1234",
        ]
    );
    let FlowChange::Install(first) = &changes[0] else { panic!("an installation") };
    assert!(first.id.is_standby() && first.id.session == CALL);
    assert_eq!((first.dscp, first.id.from), (Some(46), Side::A));
}

#[test]
fn what_is_not_latched_or_on_hold_does_not_stand_by() {
    let (standby, mut book) = standby();
    let mut stream = audio();
    stream.a.latched = None;
    standby.put(CALL, &[Some(stream)]).expect("taken");
    assert_eq!(
        installs(&polled(&mut book, Instant::now())),
        ["198.51.100.9:6000 198.51.100.1:40020 192.0.2.1:40010 10.0.0.1:4000"],
        "only the latched direction, to where the other was signalled"
    );
    let mut held = audio();
    held.b.remote.as_mut().expect("known").sends = false;
    standby.put(CALL, &[Some(held)]).expect("taken");
    assert_eq!(
        installs(&polled(&mut book, Instant::now())),
        ["remove B", "203.0.113.77:1234 192.0.2.1:40010 198.51.100.1:40020 198.51.100.9:6000",]
    );
    let mut forbidden = audio();
    forbidden.a.latched = Some("169.254.169.254:80".parse().expect("address"));
    standby.put(SessionId(8), &[Some(forbidden)]).expect("taken");
    assert_eq!(
        installs(&polled(&mut book, Instant::now())),
        ["198.51.100.9:6000 198.51.100.1:40020 192.0.2.1:40010 10.0.0.1:4000"]
    );
}

#[test]
fn refused_flows_are_tried_again_and_the_end_removes_what_is_there() {
    let (standby, mut book) = standby();
    let now = Instant::now();
    standby.put(CALL, &[Some(audio())]).expect("taken");
    let ids: Vec<FlowId> = polled(&mut book, now)
        .iter()
        .filter_map(|c| match c {
            FlowChange::Install(f) => Some(f.id),
            FlowChange::Remove(_) => None,
        })
        .collect();
    book.outcome(now, &FlowOutcome::Installed(ids[0]));
    book.outcome(now, &FlowOutcome::Refused(ids[1], Stay::NoRoute));
    assert_eq!(polled(&mut book, now), []);
    let again = polled(&mut book, now + RETRY_AFTER);
    assert!(matches!(&again[..], [FlowChange::Install(f)] if f.id == ids[1]), "{again:?}");
    book.outcome(now, &FlowOutcome::Refused(ids[1], Stay::NoRoute));
    // The same record again changes nothing.
    standby.put(CALL, &[Some(audio())]).expect("taken");
    assert_eq!(polled(&mut book, now), []);
    standby.remove(CALL).expect("taken");
    assert_eq!(polled(&mut book, now), [FlowChange::Remove(ids[0])]);
    assert_eq!(polled(&mut book, now + 10 * RETRY_AFTER), [], "nothing is tried for a gone call");
}

#[test]
fn an_adopted_call_keeps_its_flows_until_its_session_takes_them() {
    let (standby, mut book) = standby();
    let now = Instant::now();
    standby.put(CALL, &[Some(audio())]).expect("taken");
    let changes = polled(&mut book, now);
    let [FlowChange::Install(a), FlowChange::Install(b)] = &changes[..] else {
        panic!("{changes:?}")
    };
    for flow in [a, b] {
        book.outcome(now, &FlowOutcome::Installed(flow.id));
    }
    standby.adopted(CALL).expect("taken");
    assert_eq!(polled(&mut book, now), []);
    book.outcome(now, &FlowOutcome::Removed(a.id, FlowCounters::default()));
    assert_eq!(polled(&mut book, now + ADOPTION), [FlowChange::Remove(b.id)], "nobody took it");
    // Adopted and handed on: it stands by again.
    standby.put(CALL, &[Some(audio())]).expect("taken");
    assert_eq!(polled(&mut book, now).len(), 2);
    standby.adopted(CALL).expect("taken");
    standby.put(CALL, &[Some(audio())]).expect("taken");
    assert_eq!(polled(&mut book, now + 2 * ADOPTION), []);
}
