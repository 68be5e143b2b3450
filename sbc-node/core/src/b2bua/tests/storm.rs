//! Whole calls over a network that loses, doubles and reorders: whatever happens, every INVITE has
//! one outcome, every 2xx its ACK, and nothing is left behind. A seed replays a run.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::basic::{SDP_A, SDP_B};
use super::world::{FakeAnchor, INSIDE, OUTSIDE, Settings, Who, response_text, wire_form};
use crate::b2bua::{Cdr, WallClock};
use crate::core::{Core, Destination, Event, Input, Output};
use crate::ids::{Ids, ShardHint};
use crate::net::{Flow, Target, Transport};
use crate::sim::{Faults, Host, Transmit, World};
use crate::sip::{HeaderName, Limits, Message, Method, parse, validate};
use crate::transaction::{
    self, ClientRequest, Large, OkDue, OkRetransmit, Owner, ServerId, TransactionLayer,
};

/// The SBC as a host of the simulated network.
struct Sbc {
    core: Core,
    anchor: FakeAnchor,
    cdrs: Vec<Cdr>,
    /// Commits that are under way: due, id.
    commits: Vec<(Instant, crate::core::StoreId)>,
    last: Option<Instant>,
}

impl Host for Sbc {
    fn handle(&mut self, now: Instant, input: Input) {
        let due: Vec<_> = self.commits.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, id) in due {
            self.core.handle(now, Input::Stored { id, protected: true }, &mut self.anchor);
        }
        self.core.handle(now, input, &mut self.anchor);
        // What was put out before a commit is known is sent by `poll`.
        self.core.handle(now, Input::Tick, &mut self.anchor);
        self.last = Some(now);
    }

    fn poll(&mut self) -> Option<Transmit> {
        loop {
            match self.core.poll()? {
                Output::Transmit { dest, data, token } => {
                    return Some(Transmit { dest, data, token });
                }
                Output::Store { id, wait: Some(_), .. } => {
                    let at = self.last.unwrap() + Duration::from_millis(3);
                    self.commits.push((at, id));
                }
                Output::Event(Event::Cdr(cdr)) => self.cdrs.push(*cdr),
                _ => {}
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let commits = self.commits.iter().map(|(at, _)| *at).min();
        [self.core.deadline(), commits].into_iter().flatten().min()
    }
}

/// What a user agent does of itself at some time.
#[derive(Clone, Debug)]
enum Act {
    Call(u32),
    Cancel(u32),
    Bye(u32),
    Reinvite(u32),
    Ring(ServerId),
    Answer(ServerId, u16),
    RepeatOk(String),
}

/// A dialog as its end sees it.
struct Dialog {
    call_id: String,
    /// From and To of our requests.
    from: String,
    to: String,
    target: String,
    seq: u32,
    acked_seq: u32,
    over: bool,
}

/// A caller or callee with a mind of its own.
struct Ua {
    who: Who,
    txn: TransactionLayer,
    rng: StdRng,
    acts: BTreeMap<(Instant, u64), Act>,
    order: u64,
    /// By the number of the call (caller) or by Call-ID (callee).
    dialogs: HashMap<String, Dialog>,
    /// INVITEs that wait for our answer.
    ringing: HashMap<ServerId, (Flow, Message, String)>,
    /// 2xx of ours that wait for their ACK, by Call-ID.
    oks: HashMap<String, (OkRetransmit, ServerId, u16, Bytes)>,
    clients: HashMap<u32, transaction::ClientId>,
    /// Final responses per call of ours.
    finals: HashMap<u32, Vec<u16>>,
    unacked: usize,
    tags: u32,
}

impl Ua {
    fn new(who: Who, seed: u64, now: Instant) -> Self {
        Ua {
            who,
            txn: TransactionLayer::new(Default::default(), Ids::from_seed(seed), now),
            rng: StdRng::seed_from_u64(seed),
            acts: BTreeMap::new(),
            order: 0,
            dialogs: HashMap::new(),
            ringing: HashMap::new(),
            oks: HashMap::new(),
            clients: HashMap::new(),
            finals: HashMap::new(),
            unacked: 0,
            tags: 0,
        }
    }

    fn at(&mut self, at: Instant, act: Act) {
        self.order += 1;
        self.acts.insert((at, self.order), act);
    }

    fn later(&mut self, now: Instant, ms: std::ops::Range<u64>, act: Act) {
        let after = Duration::from_millis(self.rng.random_range(ms));
        self.at(now + after, act);
    }

    fn dest(&self) -> Destination {
        let flow = self.who.flow();
        Destination::Target {
            interface: flow.interface,
            target: Target::new(Transport::Udp, flow.local),
        }
    }

    fn send(
        &mut self,
        now: Instant,
        method: Method,
        owner: u64,
        text: &str,
    ) -> transaction::ClientId {
        let branch = self.txn.ids().branch(ShardHint(0));
        let via = format!("Via: SIP/2.0/UDP {};branch={branch};rport\n", self.who.addr());
        let at = text.find('\n').unwrap() + 1;
        let text = format!("{}{via}Max-Forwards: 70\n{}", &text[..at], &text[at..]);
        let data = Bytes::from(wire_form(&text));
        let dest = self.dest();
        let owner = Owner(owner);
        let request =
            ClientRequest { owner, branch, method, dest, data, timeout: None, large: Large::Udp };
        self.txn.send_request(now, request).unwrap()
    }

    fn act(&mut self, now: Instant, act: Act) {
        match act {
            Act::Call(n) => {
                let text = format!(
                    "INVITE sip:+49{n}@10.0.0.9 SIP/2.0\nFrom: <sip:a@10.0.0.1>;tag=a{n}\nTo: <sip:+49{n}@10.0.0.9>\nCall-ID: storm-{n}\nCSeq: 1 INVITE\nContact: <sip:a@{}>\nContent-Type: application/sdp\n\n{SDP_A}",
                    self.who.addr()
                );
                let client = self.send(now, Method::Invite, u64::from(n), &text);
                self.clients.insert(n, client);
                if self.rng.random_range(0..5) == 0 {
                    self.later(now, 10..4000, Act::Cancel(n));
                }
            }
            Act::Cancel(n) => {
                if let Some(client) = self.clients.get(&n) {
                    self.txn.cancel(now, *client, None);
                }
            }
            Act::Bye(n) => self.in_dialog(now, &n.to_string(), Method::Bye, ""),
            Act::Reinvite(n) => {
                let body = format!("Content-Type: application/sdp\n\n{SDP_A}a=sendonly\n");
                self.in_dialog(now, &n.to_string(), Method::Invite, &body);
            }
            Act::Ring(server) => {
                if let Some((_, invite, tag)) = self.ringing.get(&server) {
                    let text = response_text(self.who, invite, 180, tag, "");
                    let data = Bytes::from(wire_form(&text));
                    let _ = self.txn.respond(now, server, 180, data);
                }
            }
            Act::Answer(server, status) => self.answer(now, server, status),
            Act::RepeatOk(call_id) => self.repeat_ok(now, &call_id),
        }
    }

    fn in_dialog(&mut self, now: Instant, key: &str, method: Method, rest: &str) {
        let Some(d) = self.dialogs.get_mut(key).filter(|d| !d.over) else { return };
        d.seq += 1;
        d.over = method == Method::Bye;
        let text = format!(
            "{method} {} SIP/2.0\nFrom: {}\nTo: {}\nCall-ID: {}\nCSeq: {} {method}\nContact: <sip:x@{}>\n{rest}",
            d.target,
            d.from,
            d.to,
            d.call_id,
            d.seq,
            self.who.addr()
        );
        self.send(now, method, u64::MAX, &text);
    }

    fn answer(&mut self, now: Instant, server: ServerId, status: u16) {
        let Some((_, invite, tag)) = self.ringing.remove(&server) else { return };
        let body = format!("Content-Type: application/sdp\n\n{SDP_B}");
        let rest = if status == 200 { body.as_str() } else { "" };
        let data = Bytes::from(wire_form(&response_text(self.who, &invite, status, &tag, rest)));
        if self.txn.respond(now, server, status, data.clone()).is_err() || status != 200 {
            return;
        }
        let call_id = invite.call_id().unwrap().to_owned();
        let to = invite.header(HeaderName::To).unwrap();
        let to = if invite.to_tag().is_some() { to.to_owned() } else { format!("{to};tag={tag}") };
        let seq = self.dialogs.get(&call_id).map_or(0, |d| d.seq);
        let dialog = Dialog {
            call_id: call_id.clone(),
            from: to,
            to: invite.header(HeaderName::From).unwrap().to_owned(),
            target: invite.contact().unwrap().unwrap().uri_str.to_owned(),
            seq,
            acked_seq: 0,
            over: false,
        };
        self.dialogs.insert(call_id.clone(), dialog);
        let schedule = OkRetransmit::new(now, &self.txn.config().timers);
        self.at(schedule.deadline(), Act::RepeatOk(call_id.clone()));
        self.oks.insert(call_id, (schedule, server, status, data));
    }

    fn repeat_ok(&mut self, now: Instant, call_id: &str) {
        let timers = self.txn.config().timers;
        let Some((schedule, server, status, data)) = self.oks.get_mut(call_id) else { return };
        match schedule.due(now, &timers) {
            OkDue::Wait => {}
            OkDue::Send => {
                let (server, status, data) = (*server, *status, data.clone());
                let _ = self.txn.respond(now, server, status, data);
            }
            OkDue::GiveUp => {
                self.unacked += 1;
                self.oks.remove(call_id);
                return self.in_dialog(now, call_id, Method::Bye, "");
            }
        }
        let at = self.oks[call_id].0.deadline();
        self.at(at, Act::RepeatOk(call_id.to_owned()));
    }

    fn event(&mut self, now: Instant, event: transaction::Event) {
        use transaction::Event as E;
        match event {
            E::Request { id, flow, message, .. } => self.request(now, id, flow, message),
            E::Ack { message, .. } => {
                self.oks.remove(message.call_id().unwrap());
            }
            E::Cancelled { id, .. } => self.answer(now, id, 487),
            E::Response { owner, message, .. } => self.response(now, owner, &message),
            E::StrayOk { message, .. } => self.ack(&message),
            E::ClientTimeout { owner, .. } | E::ClientTransportError { owner, .. } => {
                if let Ok(n) = u32::try_from(owner.0) {
                    self.finals.entry(n).or_default().push(408);
                }
            }
            E::ServerTimeout { .. } | E::ServerTransportError { .. } => {}
        }
    }

    fn request(&mut self, now: Instant, id: ServerId, flow: Flow, message: Message) {
        if message.method() == Some(&Method::Invite) {
            self.tags += 1;
            let tag = format!("{:?}{}", self.who, self.tags);
            let again = message.to_tag().is_some();
            self.ringing.insert(id, (flow, message, tag));
            if again {
                return self.answer(now, id, 200);
            }
            if self.rng.random_range(0..3) > 0 {
                self.later(now, 0..500, Act::Ring(id));
            }
            match self.rng.random_range(0..10) {
                0 => self.later(now, 0..2000, Act::Answer(id, 486)),
                1 => self.later(now, 0..2000, Act::Answer(id, 503)),
                2 => {}
                _ => self.later(now, 0..3000, Act::Answer(id, 200)),
            }
            return;
        }
        let call_id = message.call_id().unwrap().to_owned();
        let known = |k: &String, d: &Dialog| *k == call_id || d.call_id == call_id;
        let found = self.dialogs.iter_mut().find(|(k, d)| known(k, d));
        let status = if found.is_some() { 200 } else { 481 };
        if let Some((_, dialog)) = found
            && message.method() == Some(&Method::Bye)
        {
            dialog.over = true;
            self.oks.remove(&call_id);
        }
        let text = response_text(self.who, &message, status, "x", "");
        let _ = self.txn.respond(now, id, status, Bytes::from(wire_form(&text)));
    }

    fn response(&mut self, now: Instant, owner: Owner, message: &Message) {
        let status = message.status().unwrap();
        let is_invite = message.cseq().unwrap().method == "INVITE";
        if status < 200 || !is_invite {
            return;
        }
        let ours = u32::try_from(owner.0).ok();
        if (200..300).contains(&status) {
            self.answered(now, ours, message);
            self.ack(message);
        } else if let Some(n) = ours {
            self.finals.entry(n).or_default().push(status);
        }
    }

    /// A 2xx: the first makes the dialog, and the plans for it.
    fn answered(&mut self, now: Instant, ours: Option<u32>, message: &Message) {
        let Some(n) = ours.filter(|n| !self.dialogs.contains_key(&n.to_string())) else { return };
        self.finals.entry(n).or_default().push(200);
        let dialog = Dialog {
            call_id: message.call_id().unwrap().to_owned(),
            from: message.header(HeaderName::From).unwrap().to_owned(),
            to: message.header(HeaderName::To).unwrap().to_owned(),
            target: message.contact().unwrap().unwrap().uri_str.to_owned(),
            seq: 1,
            acked_seq: 0,
            over: false,
        };
        self.dialogs.insert(n.to_string(), dialog);
        if self.rng.random_range(0..3) == 0 {
            self.later(now, 500..3000, Act::Reinvite(n));
        }
        self.later(now, 100..20_000, Act::Bye(n));
    }

    fn ack(&mut self, message: &Message) {
        let seq = message.cseq().unwrap().number;
        let call_id = message.call_id().unwrap();
        let Some(d) = self.dialogs.values_mut().find(|d| d.call_id == call_id) else { return };
        d.acked_seq = seq;
        let branch = self.txn.ids().branch(ShardHint(0));
        let text = format!(
            "ACK {} SIP/2.0\nVia: SIP/2.0/UDP {};branch={branch}\nMax-Forwards: 70\nFrom: {}\nTo: {}\nCall-ID: {}\nCSeq: {seq} ACK\n",
            d.target,
            self.who.addr(),
            d.from,
            d.to,
            d.call_id
        );
        let dest = self.dest();
        self.txn.transmit(dest, Bytes::from(wire_form(&text)));
    }
}

impl Host for Ua {
    fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Message { flow, data } => {
                let message = parse(data, &Limits::default()).unwrap();
                validate(&message).unwrap();
                self.txn.handle_message(now, flow, message);
            }
            Input::SendFailed { token, error } => {
                self.txn.handle_send_failed(now, token, error);
            }
            _ => {}
        }
        self.txn.handle_tick(now);
        while let Some(first) = self.acts.first_entry().filter(|e| e.key().0 <= now) {
            let act = first.remove();
            self.act(now, act);
        }
        while let Some(event) = self.txn.poll_event() {
            self.event(now, event);
        }
    }

    fn poll(&mut self) -> Option<Transmit> {
        match self.txn.poll_output()? {
            Output::Transmit { dest, data, token } => Some(Transmit { dest, data, token }),
            _ => None,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let act = self.acts.keys().next().map(|(at, _)| *at);
        [self.txn.deadline(), act].into_iter().flatten().min()
    }
}

/// Any host of the network.
enum Node {
    Sbc(Box<Sbc>),
    Ua(Box<Ua>),
}

impl Host for Node {
    fn handle(&mut self, now: Instant, input: Input) {
        match self {
            Node::Sbc(h) => h.handle(now, input),
            Node::Ua(h) => h.handle(now, input),
        }
    }

    fn poll(&mut self) -> Option<Transmit> {
        match self {
            Node::Sbc(h) => h.poll(),
            Node::Ua(h) => h.poll(),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self {
            Node::Sbc(h) => h.deadline(),
            Node::Ua(h) => h.deadline(),
        }
    }
}

/// Runs `calls` calls and checks what must hold whatever the network did.
fn run(seed: u64, calls: u32, faults: Faults) -> (Vec<Cdr>, String) {
    let mut world = World::new(seed, faults);
    let now = world.now();
    let mut settings = Settings::new();
    settings.seed = seed.to_le_bytes()[0];
    settings.calls.ring_timeout = Duration::from_secs(20);
    let config = std::sync::Arc::new(settings.config(now));
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let core = Core::new(config, key, WallClock { at: now, unix_ms: 0 });
    let anchor = FakeAnchor::default();
    let sbc = Sbc { core, anchor, cdrs: Vec::new(), commits: Vec::new(), last: None };
    let local = |who: Who| who.flow().local;
    let sbc_id = world.add(
        Node::Sbc(Box::new(sbc)),
        &[
            (INSIDE, local(Who::A)),
            (OUTSIDE, local(Who::B)),
            (OUTSIDE, "203.0.113.9:5060".parse().unwrap()),
        ],
    );
    let mut caller = Ua::new(Who::A, seed ^ 1, now);
    for n in 0..calls {
        caller.later(now, 0..30_000, Act::Call(n));
    }
    let a = world.add(Node::Ua(Box::new(caller)), &[(INSIDE, Who::A.addr())]);
    let mut ids = vec![a];
    for (who, n) in [(Who::B, 2), (Who::C, 3)] {
        let ua = Ua::new(who, seed ^ n, now);
        ids.push(world.add(Node::Ua(Box::new(ua)), &[(OUTSIDE, who.addr())]));
    }
    world.run_for(Duration::from_secs(600));
    let ladder = world.ladder();
    let mut unacked = 0;
    for id in ids {
        let Node::Ua(ua) = world.host(id) else { continue };
        assert!(ua.txn.is_idle(), "seed {seed}: a peer waits for something\n{ladder}");
        unacked += ua.unacked;
        for (n, finals) in &ua.finals {
            assert_eq!(finals.len(), 1, "seed {seed}: call {n} ended with {finals:?}\n{ladder}");
        }
        if ua.who == Who::A {
            assert_eq!(ua.finals.len(), calls as usize, "seed {seed}: every call has an outcome");
        }
    }
    assert_eq!(unacked, 0, "seed {seed}: a 2xx was never ACKed\n{ladder}");
    let Node::Sbc(sbc) = world.host(sbc_id) else { panic!("the SBC") };
    assert!(sbc.anchor.sessions.is_empty(), "seed {seed}: media sessions left");
    assert!(
        sbc.core.is_idle(),
        "seed {seed}: {:?} {:?}\n{ladder}",
        sbc.core.stats(),
        sbc.core.transaction_stats()
    );
    // A lost final response makes a caller try its INVITE again, which may be a second call here.
    assert!(sbc.cdrs.len() >= calls as usize, "seed {seed}: every attempt has its CDR");
    (sbc.cdrs.clone(), ladder)
}

#[test]
fn a_clean_network_carries_every_call() {
    let (cdrs, _) = run(7, 60, Faults::NONE);
    assert_eq!(cdrs.len(), 60);
    assert!(cdrs.iter().filter(|c| c.answered_ms.is_some()).count() > 25);
}

#[test]
fn loss_duplication_and_reordering_leave_nothing_behind() {
    let faults = Faults { loss: 50, duplicate: 30, reorder: 50, ..Faults::NONE };
    for seed in 0..12 {
        run(seed, 40, faults);
    }
}

#[test]
fn a_very_bad_network_leaves_nothing_behind() {
    let faults = Faults { loss: 250, duplicate: 100, reorder: 150, ..Faults::NONE };
    for seed in 100..106 {
        run(seed, 25, faults);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let faults = Faults { loss: 50, duplicate: 30, reorder: 50, ..Faults::NONE };
    assert_eq!(run(3, 20, faults).1, run(3, 20, faults).1);
}
