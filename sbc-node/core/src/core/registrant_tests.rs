//! The registrant on a virtual clock, against a registrar that answers as a test says.

use std::sync::Arc;

use super::*;
use crate::core::{Destination, Duty};
use crate::digest::{Algorithm, NonceKey, Presented, Server};
use crate::ids::{HintKey, Ids};
use crate::net::{Flow, Host, InterfaceId, Listener, Transport};
use crate::routing::{Credential, Peer, RoutingConfig, Secret, Table, TrunkConfig};
use crate::sip::{self, Limits};
use crate::transaction::{self, Event as TxnEvent};

const MINUTE: Duration = Duration::from_secs(60);

fn config() -> TrunkConfig {
    let mut trunk = TrunkConfig::new("carrier", InterfaceId(0));
    for host in ["a.example", "b.example"] {
        trunk.peers.push(Peer { host: host.into(), port: Some(5060), transport: None });
    }
    trunk.credentials.push(Credential {
        realm: "carrier".into(),
        username: "sbc".into(),
        password: Secret::new("hunter2"),
    });
    trunk.register.push(RegisterConfig::new("4930123@carrier.example"));
    trunk
}

fn table(trunks: Vec<TrunkConfig>, previous: Option<&Table>) -> Arc<Table> {
    let config = RoutingConfig { trunks, ..RoutingConfig::default() };
    Arc::new(Table::build(config, previous, Instant::now()).expect("valid"))
}

/// What the registrar says to one request; `None` for silence.
type Answers = Box<dyn FnMut(Target, &Message) -> Option<(u16, String)>>;

struct Bench {
    now: Instant,
    t0: Instant,
    txn: TransactionLayer,
    routing: Routing,
    interfaces: Vec<Interface>,
    registrant: Registrant,
    answers: Answers,
    /// Seconds, where to, what.
    asked: Vec<(u64, Target, Message)>,
    states: Vec<RegistrationState>,
    written: Vec<Option<HeldRegistration>>,
}

/// The address of a peer of [`config`].
fn target(last: u8) -> Target {
    Target::new(Transport::Udp, ([192, 0, 2, last], 5060).into())
}

fn ok(expires: u32) -> Answers {
    Box::new(move |_, request| Some(accept(request, expires)))
}

fn accept(request: &Message, expires: u32) -> (u16, String) {
    let contact = request.header(HeaderName::Contact).expect("a contact");
    let (uri, _) = contact.split_once(";expires").expect("expires");
    (200, format!("Contact: {uri};expires={expires}\r\n"))
}

impl Bench {
    fn new(trunk: TrunkConfig, alone: bool, answers: Answers) -> Self {
        let t0 = Instant::now();
        let listener = Listener {
            transport: Transport::Udp,
            local: "10.0.0.1:5060".parse().expect("address"),
            advertise_host: Host::Ip("198.51.100.9".parse().expect("address")),
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
            routing: Routing::new(table(vec![trunk], None), 1),
            interfaces: vec![interface],
            registrant: Registrant::new(t0, ShardHint(3), alone),
            answers,
            asked: vec![],
            states: vec![],
            written: vec![],
        };
        bench.act(|registrant, cx| registrant.configure(cx));
        bench
    }

    fn act<R>(&mut self, act: impl FnOnce(&mut Registrant, &mut RegistrantCx<'_>) -> R) -> R {
        let mut cx = RegistrantCx {
            now: self.now,
            clock: WallClock { at: self.t0, unix_ms: 1_000_000 },
            txn: &mut self.txn,
            routing: &mut self.routing,
            interfaces: &self.interfaces,
            product: "sbc",
        };
        let result = act(&mut self.registrant, &mut cx);
        self.settle();
        result
    }

    fn settle(&mut self) {
        loop {
            if let Some(output) = self.registrant.poll() {
                self.output(output);
            } else if let Some(Output::Transmit { dest, data, .. }) = self.txn.poll_output() {
                self.transmit(dest, data);
            } else if let Some(event) = self.txn.poll_event() {
                self.act(|registrant, cx| match event {
                    TxnEvent::Response { owner, message, .. } => {
                        assert!(registrant.response(cx, owner, &message));
                    }
                    TxnEvent::ClientTimeout { owner, .. } => {
                        assert!(registrant.failed(cx, owner, 408));
                    }
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
                let targets = match &*query.host {
                    "a.example" => vec![target(1)],
                    "b.example" => vec![target(2)],
                    _ => vec![],
                };
                assert!(self.act(|registrant, cx| registrant.resolved(cx, id, &Ok(targets))));
            }
            Output::Event(Event::TrunkRegistration { state, .. }) => self.states.push(state),
            Output::Store { record: Record::Registration { held, .. }, wait: None, .. } => {
                self.written.push(held.map(|held| *held));
            }
            other => panic!("{other:?}"),
        }
    }

    fn transmit(&mut self, dest: Destination, data: bytes::Bytes) {
        let Destination::Target { interface, target } = dest else { panic!("a target") };
        let request = sip::parse(data, &Limits::default()).expect("well-formed");
        sip::validate(&request).expect("valid");
        let known = self.asked.iter().any(|(_, _, m)| m.branch() == request.branch());
        if known {
            // A retransmission.
            return;
        }
        self.asked.push(((self.now - self.t0).as_secs(), target, request.clone()));
        let Some((status, rest)) = (self.answers)(target, &request) else { return };
        let text = sip::response(&request, status, "", Some("t"), Some(target.addr)).finish();
        let text = String::from_utf8(text.to_vec()).expect("text");
        let text = text.replacen("\r\nContent-Length", &format!("\r\n{rest}Content-Length"), 1);
        let response = sip::parse(text.into_bytes().into(), &Limits::default()).expect("answer");
        let local = "10.0.0.1:5060".parse().expect("address");
        let flow =
            Flow { interface, transport: target.transport, local, remote: target.addr, conn: None };
        self.txn.handle_message(self.now, flow, response);
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let next = [self.registrant.deadline(), self.txn.deadline()];
            let Some(at) = next.into_iter().flatten().min().filter(|&at| at <= end) else { break };
            self.now = self.now.max(at);
            self.txn.handle_tick(self.now);
            self.settle();
            self.act(|registrant, cx| registrant.handle_tick(cx));
        }
        self.now = end;
    }

    fn state(&self) -> RegistrationState {
        let trunk = self.routing.table().trunk_by_name("carrier").expect("known");
        trunk.registrations().next().expect("one").1.status().state
    }

    fn reload(&mut self, trunks: Vec<TrunkConfig>) {
        let table = table(trunks, Some(self.routing.table()));
        self.routing.reload(table);
        self.act(|registrant, cx| registrant.configure(cx));
    }

    fn contact(&self, n: usize) -> &str {
        self.asked[n].2.header(HeaderName::Contact).expect("a contact")
    }
}

#[test]
fn rfc3261_10_2_a_register_says_who_where_and_for_how_long() {
    let mut b = Bench::new(config(), true, ok(3600));
    b.run_for(MINUTE);
    let (_, to, register) = &b.asked[0];
    assert_eq!(*to, target(1));
    assert_eq!(register.request_uri_str(), "sip:carrier.example");
    assert_eq!(register.header(HeaderName::To), Some("<sip:4930123@carrier.example>"));
    assert!(
        register.header(HeaderName::From).unwrap().starts_with("<sip:4930123@carrier.example>;tag")
    );
    assert_eq!(b.contact(0), "<sip:4930123@198.51.100.9:5080>;expires=3600");
    let text = String::from_utf8_lossy(register.as_bytes()).into_owned();
    assert!(!text.contains("10.0.0.1") && !text.contains("Authorization"), "{text}");
    let answer = sip::response(register, 200, "", Some("t"), None).finish();
    assert_eq!(HintKey::default().of_message(&answer), ShardHint(3), "it comes back here");
    assert_eq!((b.state(), b.asked.len()), (RegistrationState::Registered, 1));
    assert_eq!(b.states, [RegistrationState::Trying, RegistrationState::Registered]);
    assert!(b.written.is_empty(), "a node by itself writes nothing");
}

#[test]
fn it_is_refreshed_before_the_end_that_the_registrar_chose() {
    for (granted, rounds) in [(3600, 1..=1), (600, 10..=14), (60, 100..=140)] {
        let mut b = Bench::new(config(), true, ok(granted));
        b.run_for(Duration::from_secs(3_300));
        let refreshed = b.asked.len() - 1;
        assert!(rounds.contains(&refreshed), "{granted}: {refreshed}");
        for pair in b.asked.windows(2) {
            assert!(pair[1].0 - pair[0].0 < granted.into(), "{granted}");
            let (one, two) = (&pair[0].2, &pair[1].2);
            assert_eq!(one.call_id().unwrap(), two.call_id().unwrap());
            assert_eq!(one.cseq().unwrap().number + 1, two.cseq().unwrap().number);
        }
        assert_eq!(b.states.len(), 2, "no interruption");
    }
}

fn server() -> Server {
    let algorithms = vec![Algorithm::Md5, Algorithm::Sha256];
    Server::new("carrier".into(), &NonceKey([7; 32]), 100, algorithms)
}

#[test]
fn rfc8760_a_challenge_is_answered_and_its_nonce_used_again_until_stale() {
    let mut now_s = 0;
    let answers = Box::new(move |_, request: &Message| {
        now_s += 40;
        let value = request.header(HeaderName::Authorization);
        let result = value.map(|authorization| {
            let presented = Presented {
                authorization,
                method: "REGISTER",
                request_uri: request.request_uri_str(),
                body: b"",
                source: None,
            };
            server().verify(&presented, now_s, |u, a| Some(a.ha1(u, "carrier", "hunter2").into()))
        });
        match result {
            Some(Ok(_)) => Some(accept(request, 60)),
            other => {
                let stale = other.is_some();
                let values = server().challenge(now_s, 1, None, stale);
                let line = |v: String| format!("WWW-Authenticate: {v}\r\n");
                Some((401, values.into_iter().map(line).collect()))
            }
        }
    });
    let mut b = Bench::new(config(), true, answers);
    b.run_for(Duration::from_secs(100));
    assert_eq!(b.state(), RegistrationState::Registered);
    let values: Vec<String> = b
        .asked
        .iter()
        .filter_map(|(_, _, m)| m.header(HeaderName::Authorization))
        .map(|v| v.split(", ").filter(|p| p.starts_with("nc=") || p.starts_with("alg")).collect())
        .collect();
    // The stronger algorithm; counted up as long as the nonce lives; at once anew when it is stale.
    let expected = ["1", "2", "3", "1"].map(|n| format!("algorithm=SHA-256nc=0000000{n}"));
    assert_eq!(values[..4], expected, "{values:?}");
    assert_eq!(b.states.len(), 2, "no interruption");
}

#[test]
fn a_challenge_for_another_realm_draws_no_credentials() {
    let challenge = "WWW-Authenticate: Digest realm=\"bank\", nonce=\"n\", qop=\"auth\"\r\n";
    let mut b = Bench::new(config(), true, Box::new(|_, _| Some((401, challenge.to_owned()))));
    b.run_for(MINUTE * 30);
    assert!(b.asked.iter().all(|(_, _, m)| !m.has(HeaderName::Authorization)));
    assert_eq!(b.state(), RegistrationState::Failed);
}

#[test]
fn a_redirection_is_not_followed() {
    let answers: Answers =
        Box::new(|_, _| Some((302, "Contact: <sip:evil@192.0.2.66>\r\n".to_owned())));
    let mut b = Bench::new(config(), true, answers);
    b.run_for(MINUTE * 30);
    assert!(b.asked.iter().all(|(_, to, _)| [target(1), target(2)].contains(to)));
    assert_eq!(b.state(), RegistrationState::Failed);
}

#[test]
fn a_wrong_password_is_tried_ever_more_seldom_and_a_liar_about_nonces_as_well() {
    for stale in ["false", "true"] {
        let challenge = format!(
            "WWW-Authenticate: Digest realm=\"carrier\", nonce=\"n\", qop=\"auth\", stale={stale}\r\n"
        );
        let mut b =
            Bench::new(config(), true, Box::new(move |_, _| Some((401, challenge.clone()))));
        b.run_for(MINUTE * 60);
        // 10 s, 20 s, … up to ten minutes: a dozen rounds in an hour.
        let per_round = if stale == "true" { 4 } else { 2 };
        let rounds = b.asked.len() / per_round;
        assert!((8..=20).contains(&rounds), "{stale}: {}", b.asked.len());
        let gaps: Vec<u64> = b.asked.windows(2).map(|p| p[1].0 - p[0].0).collect();
        assert!(gaps.iter().all(|gap| *gap <= 600) && gaps.iter().any(|gap| *gap >= 300));
    }
}

#[test]
fn silence_goes_on_to_the_next_peer_at_once_and_refusals_after_three() {
    let mut b = Bench::new(
        config(),
        true,
        Box::new(|to, request| (to == target(2)).then(|| accept(request, 3600))),
    );
    b.run_for(MINUTE);
    let asked: Vec<(u64, Target)> = b.asked.iter().map(|(at, to, _)| (*at, *to)).collect();
    assert_eq!(asked, [(0, target(1)), (10, target(2))]);
    assert_eq!(b.state(), RegistrationState::Registered);

    let mut b = Bench::new(
        config(),
        true,
        Box::new(|to, request| match to == target(2) {
            true => Some(accept(request, 3600)),
            false => Some((500, String::new())),
        }),
    );
    b.run_for(MINUTE * 3);
    let asked: Vec<Target> = b.asked.iter().map(|(_, to, _)| *to).collect();
    assert_eq!(asked, [target(1), target(1), target(1), target(2)]);
    use RegistrationState::{Failed, Registered, Trying};
    assert_eq!(b.states, [Trying, Failed, Registered]);
}

#[test]
fn rfc3261_10_2_8_a_longer_time_is_asked_for_where_it_is_demanded() {
    let mut trunk = config();
    trunk.register[0].expires = MINUTE;
    let mut b = Bench::new(
        trunk,
        true,
        Box::new(|_, request| match request.number(HeaderName::Expires).unwrap() {
            Some(900) => Some(accept(request, 900)),
            _ => Some((423, "Min-Expires: 900\r\n".to_owned())),
        }),
    );
    b.run_for(MINUTE * 30);
    assert_eq!(b.state(), RegistrationState::Registered);
    let asked: Vec<Option<u32>> =
        b.asked.iter().map(|(_, _, m)| m.number(HeaderName::Expires).unwrap()).collect();
    assert_eq!(asked[..2], [Some(60), Some(900)]);
    assert!(asked[2..].iter().all(|s| *s == Some(900)), "{asked:?}");
}

#[test]
fn it_counts_as_lost_when_its_time_is_over_and_not_before() {
    let mut b = Bench::new(config(), true, ok(600));
    b.run_for(Duration::from_secs(1));
    b.answers = Box::new(|_, _| Some((503, String::new())));
    b.run_for(Duration::from_secs(590));
    assert!(b.asked.len() > 2, "it tries");
    assert_eq!(b.state(), RegistrationState::Registered);
    b.run_for(Duration::from_secs(20));
    assert_eq!(b.state(), RegistrationState::Failed);
    b.answers = ok(600);
    b.run_for(MINUTE * 10);
    assert_eq!(b.state(), RegistrationState::Registered);
}

#[test]
fn a_contact_is_taken_back_by_a_drain_and_by_a_reload_that_drops_it() {
    let mut b = Bench::new(config(), true, ok(3600));
    b.run_for(MINUTE);
    b.act(|registrant, cx| registrant.drain(cx, true));
    assert_eq!(b.contact(1), "<sip:4930123@198.51.100.9:5080>;expires=0");
    assert_eq!((b.registrant.leaving(), b.state()), (0, RegistrationState::Withdrawn));
    b.run_for(MINUTE * 120);
    assert_eq!(b.asked.len(), 2);
    b.act(|registrant, cx| registrant.drain(cx, false));
    b.run_for(MINUTE);
    assert_eq!((b.asked.len(), b.state()), (3, RegistrationState::Registered));
    let mut without = config();
    without.register.clear();
    b.reload(vec![without]);
    assert_eq!(b.contact(3), "<sip:4930123@198.51.100.9:5080>;expires=0");
    b.run_for(MINUTE * 120);
    assert_eq!((b.asked.len(), b.registrant.entries.len()), (4, 0));
}

#[test]
fn a_changed_contact_replaces_the_old_one_and_what_is_the_same_stays() {
    let mut b = Bench::new(config(), true, ok(3600));
    b.run_for(MINUTE);
    b.reload(vec![config()]);
    assert_eq!(b.asked.len(), 1);
    let mut other = config();
    other.register[0].contact_user = "main".into();
    b.reload(vec![other]);
    b.run_for(MINUTE);
    assert_eq!(b.contact(1), "<sip:main@198.51.100.9:5080>;expires=3600");
    assert_eq!(b.contact(2), "<sip:4930123@198.51.100.9:5080>;expires=0");
    assert_eq!(b.asked.len(), 3);
}

#[test]
fn a_reload_adds_accounts_beside_those_that_are_there() {
    let mut b = Bench::new(config(), true, ok(3600));
    b.run_for(MINUTE);
    let mut more = config();
    for user in ["4930124", "4930125"] {
        more.register.push(RegisterConfig::new(&format!("{user}@carrier.example")));
    }
    b.reload(vec![more]);
    b.run_for(MINUTE);
    let asked: Vec<&str> = b.asked.iter().map(|(_, _, m)| m.to().unwrap().uri_str).collect();
    let wanted = ["4930123", "4930124", "4930125"].map(|u| format!("sip:{u}@carrier.example"));
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(wanted.iter().all(|w| asked.contains(&w.as_str())), "{asked:?}");
    let trunk = b.routing.table().trunk_by_name("carrier").expect("known");
    let registered = |r: &Arc<Registration>| r.status().state == RegistrationState::Registered;
    assert_eq!(trunk.registrations().filter(|(_, r)| registered(r)).count(), 3);
}

fn duty(before: Option<HeldRegistration>) -> Duties {
    let (trunk, aor) = ("carrier".into(), "4930123@carrier.example".into());
    Duties { all: vec![Duty { trunk, aor, before }], withdraw: false }
}

#[test]
fn one_node_registers_and_another_carries_on_where_it_stopped() {
    let mut b = Bench::new(config(), false, ok(3600));
    b.run_for(MINUTE);
    assert!(b.asked.is_empty(), "nobody has said whose it is");
    assert_eq!(b.state(), RegistrationState::Standby);
    b.act(|registrant, cx| registrant.take_duties(cx, duty(None)));
    b.run_for(MINUTE);
    let held = b.written.pop().flatten().expect("written for the others");
    assert_eq!(&*held.contact, "sip:4930123@198.51.100.9:5080");
    assert!((3_600_000..3_730_000).contains(&(held.until_ms - 1_000_000)), "{held:?}");
    b.act(|registrant, cx| registrant.take_duties(cx, Duties::default()));
    assert_eq!((b.asked.len(), b.state()), (1, RegistrationState::Standby));

    // Another node, with another address.
    let mut other = Bench::new(config(), false, ok(3600));
    if let Some(listener) = other.interfaces[0].listeners.first_mut() {
        listener.advertise_host = Host::Ip("198.51.100.10".parse().unwrap());
    }
    other.act(|registrant, cx| registrant.take_duties(cx, duty(Some(held.clone()))));
    other.run_for(MINUTE);
    assert_eq!(other.contact(0), "<sip:4930123@198.51.100.10:5080>;expires=3600");
    assert_eq!(other.contact(1), "<sip:4930123@198.51.100.9:5080>;expires=0");
    let first = &other.asked[0].2;
    assert_eq!(first.call_id().unwrap(), &*held.call_id);
    assert!(first.cseq().unwrap().number > held.cseq);

    // With the same address there is nothing to take out.
    let mut heir = Bench::new(config(), false, ok(3600));
    heir.act(|registrant, cx| registrant.take_duties(cx, duty(Some(held))));
    heir.run_for(MINUTE);
    assert_eq!(heir.asked.len(), 1);
    // Nobody is left to carry on.
    let nobody = Duties { all: Vec::new(), withdraw: true };
    heir.act(|registrant, cx| registrant.take_duties(cx, nobody));
    assert_eq!(heir.contact(1), "<sip:4930123@198.51.100.9:5080>;expires=0");
    assert_eq!(heir.written.last(), Some(&None));
}

#[test]
fn what_a_registrar_grants_is_read_from_any_sane_answer() {
    let cases = [
        ("Contact: <sip:u@h:5060>;expires=50\r\n", 50),
        ("Contact: <sip:other@x>;expires=9, <sip:u@H:5060>;expires=51\r\n", 51),
        ("Contact: <sip:u@h:5060>\r\nExpires: 52\r\n", 52),
        ("Contact: <sip:u@nat.example>;expires=53\r\n", 53),
        ("Expires: 54\r\n", 54),
        ("", 3600),
        ("Contact: <sip:u@h:5060>;expires=0\r\n", 0),
    ];
    for (headers, expected) in cases {
        let text = format!(
            "SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:u@d>;tag=1\r\n\
             To: <sip:u@d>;tag=2\r\nCall-ID: 1\r\nCSeq: 1 REGISTER\r\n{headers}Content-Length: 0\r\n\r\n"
        );
        let message = sip::parse(text.into_bytes().into(), &Limits::default()).expect("answer");
        assert_eq!(granted(&message, "sip:u@h:5060", 3600), expected, "{headers}");
    }
}

#[test]
fn the_line_of_a_contact_is_the_same_for_all_nodes_and_for_nobody_else() {
    let key = HintKey::derive(b"secret");
    let own = line(&key, "carrier", "a@b");
    assert_eq!((own.len(), &own), (16, &line(&HintKey::derive(b"secret"), "carrier", "a@b")));
    assert_ne!(own, line(&HintKey::derive(b"another"), "carrier", "a@b"));
    assert_ne!(own, line(&key, "carrier", "c@b"));
    let mut trunk = config();
    trunk.register[0].match_contact = true;
    let mut b = Bench::new(trunk, true, ok(3600));
    b.run_for(MINUTE);
    assert!(b.contact(0).contains(";line="), "{}", b.contact(0));
}
