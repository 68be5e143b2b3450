//! Two layers over a network that loses, repeats and reorders; the TUs are as small as they can be.
//!
//! Invariants: every request has exactly one outcome at its client; no request reaches the server's
//! TU twice; every 2xx is ACKed or given up; all tables drain.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use rand::Rng;

use crate::core::{Destination, Input, Output};
use crate::ids::{Ids, ShardHint, Tag};
use crate::net::{InterfaceId, Target, Transport};
use crate::sim::{Faults, Host, Transmit, World};
use crate::sip::{self, Builder, HeaderName, Limits, Message, Method};
use crate::transaction::*;

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 5060))
}

/// What became of one request of the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcome {
    ok: u32,
    failure: u32,
    none: u32,
}

struct Answer {
    at: Instant,
    id: ServerId,
    request: Message,
    tag: Tag,
}

struct Repeating {
    id: ServerId,
    data: Bytes,
    schedule: OkRetransmit,
}

/// Client and server in one.
struct Ua {
    layer: TransactionLayer,
    outcomes: HashMap<Owner, Outcome>,
    /// Call-ID and CSeq of what the TU was given.
    seen: HashMap<String, u32>,
    answers: Vec<Answer>,
    repeating: HashMap<String, Repeating>,
    given_up: u32,
    acked: u32,
}

impl Ua {
    fn new(seed: u64, now: Instant) -> Self {
        Ua {
            layer: TransactionLayer::new(Config::default(), Ids::from_seed(seed), now),
            outcomes: HashMap::new(),
            seen: HashMap::new(),
            answers: Vec::new(),
            repeating: HashMap::new(),
            given_up: 0,
            acked: 0,
        }
    }

    fn start(
        &mut self,
        now: Instant,
        owner: Owner,
        method: Method,
        transport: Transport,
    ) -> ClientId {
        let hint = ShardHint(1);
        let (branch, call_id) = (self.layer.ids().branch(hint), self.layer.ids().call_id(hint));
        let mut out = Builder::request(&method, "sip:b@10.0.0.2");
        out.header(
            HeaderName::Via,
            format!("SIP/2.0/{} 10.0.0.1;branch={branch}", transport.via_token()),
        )
        .header(HeaderName::MaxForwards, 70u8)
        .header(HeaderName::From, "<sip:a@10.0.0.1>;tag=a")
        .header(HeaderName::To, "<sip:b@10.0.0.2>")
        .header(HeaderName::CallId, call_id.as_str())
        .header(HeaderName::CSeq, format!("1 {method}"));
        self.outcomes.insert(owner, Outcome::default());
        let target = Target::new(transport, address(2));
        let request = ClientRequest {
            owner,
            branch,
            method,
            dest: Destination::Target { interface: InterfaceId(0), target },
            data: out.finish(),
            timeout: None,
            large: Large::Udp,
        };
        self.layer.send_request(now, request).expect("room")
    }

    /// A TU that answers after a random time with a random status.
    fn incoming(&mut self, now: Instant, id: ServerId, request: Message) {
        let key = format!(
            "{} {}",
            request.call_id().expect("Call-ID"),
            request.method().expect("request")
        );
        *self.seen.entry(key).or_default() += 1;
        let wait = u64::from(self.layer.ids().rng().next_u32() % 6_000);
        let tag = self.layer.ids().tag(ShardHint(2));
        self.answers.push(Answer { at: now + Duration::from_millis(wait), id, request, tag });
    }

    fn answer(&mut self, now: Instant, answer: &Answer, status: u16) {
        let source = Some(address(1));
        let data = sip::response(&answer.request, status, "", Some(&answer.tag), source).finish();
        // Refused when a CANCEL was quicker.
        let sent = self.layer.respond(now, answer.id, status, data.clone());
        if sent.is_ok() && status == 200 && answer.request.method() == Some(&Method::Invite) {
            let key = answer.request.call_id().expect("Call-ID").to_owned();
            let schedule = OkRetransmit::new(now, &self.layer.config().timers);
            self.repeating.insert(key, Repeating { id: answer.id, data, schedule });
        }
    }

    fn work(&mut self, now: Instant) {
        while let Some(event) = self.layer.poll_event() {
            match event {
                Event::Request { id, message, merged, .. } => {
                    assert!(!merged);
                    self.incoming(now, id, message);
                }
                Event::Cancelled { id, .. } => {
                    if let Some(n) = self.answers.iter().position(|a| a.id == id) {
                        let answer = self.answers.swap_remove(n);
                        self.answer(now, &answer, 487);
                    }
                }
                Event::Ack { message, .. } => {
                    let ours = self.repeating.remove(message.call_id().expect("Call-ID"));
                    self.acked += u32::from(ours.is_some());
                }
                Event::Response { owner, message, .. } => self.response(owner, &message),
                Event::StrayOk { .. } => {}
                Event::ClientTimeout { owner, .. } | Event::ClientTransportError { owner, .. } => {
                    self.outcomes.get_mut(&owner).expect("known").none += 1;
                }
                Event::ServerTimeout { .. } | Event::ServerTransportError { .. } => {}
            }
        }
        let due: Vec<usize> =
            (0..self.answers.len()).rev().filter(|&n| self.answers[n].at <= now).collect();
        for n in due {
            let answer = self.answers.swap_remove(n);
            let status = [200, 200, 486, 503][(self.layer.ids().rng().next_u32() % 4) as usize];
            self.answer(now, &answer, status);
        }
        let timers = self.layer.config().timers;
        let mut keys: Vec<String> = self.repeating.keys().cloned().collect();
        keys.sort();
        for key in keys {
            let repeating = self.repeating.get_mut(&key).expect("listed");
            match repeating.schedule.due(now, &timers) {
                OkDue::Wait => {}
                OkDue::Send => {
                    let (id, data) = (repeating.id, repeating.data.clone());
                    self.layer.respond(now, id, 200, data).expect("in Accepted");
                }
                OkDue::GiveUp => {
                    self.given_up += 1;
                    self.repeating.remove(&key);
                }
            }
        }
    }

    fn response(&mut self, owner: Owner, message: &Message) {
        let outcome = self.outcomes.get_mut(&owner).expect("known");
        let status = message.status().expect("response");
        let invite = message.cseq().expect("CSeq").method == "INVITE";
        match status {
            ..200 => {}
            200..300 => {
                // An INVITE's 2xx comes once per 2xx of the peer.
                outcome.ok = if invite { 1 } else { outcome.ok + 1 };
            }
            300.. => outcome.failure += 1,
        }
        if invite && status / 100 == 2 {
            let mut ack = Builder::request(&Method::Ack, "sip:b@10.0.0.2");
            let branch = self.layer.ids().branch(ShardHint(1));
            let via = message.via().expect("Via");
            let transport = if via.transport == "TCP" { Transport::Tcp } else { Transport::Udp };
            ack.header(
                HeaderName::Via,
                format!("SIP/2.0/{} 10.0.0.1;branch={branch}", via.transport),
            )
            .copy(message, HeaderName::From)
            .copy(message, HeaderName::To)
            .copy(message, HeaderName::CallId)
            .header(HeaderName::CSeq, "1 ACK");
            let target = Target::new(transport, address(2));
            self.layer
                .transmit(Destination::Target { interface: InterfaceId(0), target }, ack.finish());
        }
    }
}

impl Host for Ua {
    fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Message { flow, data } => {
                let message = sip::parse(data, &Limits::default()).expect("ours");
                self.layer.handle_message(now, flow, message);
            }
            Input::SendFailed { token, error } => {
                self.layer.handle_send_failed(now, token, error);
            }
            _ => self.layer.handle_tick(now),
        }
        self.work(now);
    }

    fn poll(&mut self) -> Option<Transmit> {
        match self.layer.poll_output()? {
            Output::Transmit { dest, data, token } => Some(Transmit { dest, data, token }),
            other => panic!("{other:?}"),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let answers = self.answers.iter().map(|a| a.at);
        let repeats = self.repeating.values().map(|r| r.schedule.deadline());
        answers.chain(repeats).chain(self.layer.deadline()).min()
    }
}

/// Sixty requests, a third of them cancelled at some time; yields the ladder.
fn run(seed: u64, faults: Faults, transport: Transport) -> String {
    let mut world = World::new(seed, faults);
    let now = world.now();
    let uac = world.add(Ua::new(seed, now), &[(InterfaceId(0), address(1))]);
    let uas = world.add(Ua::new(seed ^ 0xff, now), &[(InterfaceId(0), address(2))]);
    for n in 0..60u64 {
        let method = [Method::Invite, Method::Invite, Method::Options][(n % 3) as usize].clone();
        let id = world.with(uac, |ua, now| ua.start(now, Owner(n), method, transport));
        world.run_for(Duration::from_millis(150));
        if n % 3 == 1 {
            world.with(uac, |ua, now| ua.layer.cancel(now, id, None));
        }
    }
    world.run_until(Duration::from_secs(600), |_| false);
    let (uac, uas) = (world.host(uac), world.host(uas));
    for (owner, outcome) in &uac.outcomes {
        let sum = outcome.ok + outcome.failure + outcome.none;
        assert_eq!(sum, 1, "seed {seed} {owner:?} {outcome:?}\n{}", world.ladder());
    }
    assert!(uas.seen.values().all(|&times| times == 1), "seed {seed}: {:?}", uas.seen);
    assert!(uas.repeating.is_empty());
    assert!(uac.layer.is_idle() && uas.layer.is_idle(), "seed {seed}: tables drain");
    if faults == Faults::NONE {
        assert_eq!(uas.given_up, 0);
        assert!(uac.outcomes.values().all(|o| o.none == 0));
        assert!(uas.acked > 0);
    }
    world.ladder()
}

const BAD: Faults = Faults {
    loss: 200,
    duplicate: 100,
    reorder: 200,
    delay: (Duration::from_millis(1), Duration::from_millis(80)),
    late: Duration::from_millis(700),
};

#[test]
fn a_clean_network_answers_everything() {
    run(1, Faults::NONE, Transport::Udp);
    run(1, Faults::NONE, Transport::Tcp);
}

#[test]
fn a_seed_replays() {
    assert_eq!(run(77, BAD, Transport::Udp), run(77, BAD, Transport::Udp));
    assert_ne!(run(77, BAD, Transport::Udp), run(78, BAD, Transport::Udp));
}

#[test]
fn connections_that_break_leave_nothing_behind() {
    let mut world = World::new(3, Faults::NONE);
    let now = world.now();
    let uac = world.add(Ua::new(1, now), &[(InterfaceId(0), address(1))]);
    let uas = world.add(Ua::new(2, now), &[(InterfaceId(0), address(2))]);
    for n in 0..30 {
        world.with(uac, |ua, now| ua.start(now, Owner(n), Method::Invite, Transport::Tcp));
        world.run_for(Duration::from_millis(300));
        if n % 4 == 0 {
            world.close_all();
        }
    }
    world.run_until(Duration::from_secs(600), |_| false);
    assert!(world.host(uac).outcomes.values().all(|o| o.ok + o.failure + o.none == 1));
    assert!(world.host(uac).layer.is_idle() && world.host(uas).layer.is_idle());
}

#[test]
fn a_dead_peer_times_out_and_a_refused_one_fails_at_once() {
    let mut world = World::new(3, Faults::NONE);
    let now = world.now();
    let uac = world.add(Ua::new(1, now), &[(InterfaceId(0), address(1))]);
    world.with(uac, |ua, now| ua.start(now, Owner(1), Method::Invite, Transport::Udp));
    world.with(uac, |ua, now| ua.start(now, Owner(2), Method::Invite, Transport::Tcp));
    let none = Outcome { none: 1, ..Outcome::default() };
    assert_eq!(world.host(uac).outcomes[&Owner(2)], none);
    world.run_until(Duration::from_secs(60), |w| w.host(uac).outcomes[&Owner(1)] == none);
    assert_eq!(world.elapsed(), Duration::from_secs(32));
    assert!(world.host(uac).layer.is_idle());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn one_outcome_per_request_and_tables_drain(
        seed: u64,
        loss in 0..350u32,
        duplicate in 0..200u32,
        reorder in 0..300u32,
    ) {
        run(seed, Faults { loss, duplicate, reorder, ..BAD }, Transport::Udp);
    }
}
