//! A core with a registrar and phones that register with digest: REGISTER, 401, REGISTER with
//! credentials, 200, as `cargo bench -p sbc-tests --bench registrar` sends them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sbc_core::b2bua::{CallPolicy, WallClock};
use sbc_core::core::{Config, Core, Input, Output, RegistrarConfig};
use sbc_core::digest::{Account, Algorithm, Answerer, NonceKey};
use sbc_core::guard::{Guard, GuardConfig};
use sbc_core::net::{Flow, Host, Interface, InterfaceId, Listener, Transport};
use sbc_core::registrar::{AuthPolicy, Flows, RegistrarPolicy, Replays, User, Users};
use sbc_core::routing::{RoutingConfig, Table, TrunkConfig};
use sbc_core::sip::Limits;

use crate::call::{Meter, Ports};

/// Users that there are.
const USERS: u32 = 5_000;
const SBC: ([u8; 4], u16) = ([127, 0, 0, 1], 5080);

fn config(now: Instant) -> Config {
    let interface = Interface {
        id: InterfaceId(0),
        name: "load".into(),
        realm: "load".into(),
        listeners: vec![Listener {
            transport: Transport::Udp,
            local: SocketAddr::from(SBC),
            advertise_host: Host::Ip(SBC.0.into()),
            advertise_port: SBC.1,
            retired: false,
        }],
        media: true,
        large_by_tcp: false,
    };
    let phones = TrunkConfig {
        realm: "load".into(),
        users: true,
        ..TrunkConfig::new("phones", InterfaceId(0))
    };
    let routing = RoutingConfig { trunks: vec![phones], ..RoutingConfig::default() };
    let mut users = Users::default();
    for n in 0..USERS {
        let name = user(n);
        let ha1 = Algorithm::Md5.ha1(&name, "example.com", "secret");
        let aors = vec![format!("{name}@example.com").into()];
        users.insert(&name, User { md5: Some(ha1.into()), aors, ..User::default() });
    }
    let auth = AuthPolicy {
        realm: "example.com".into(),
        algorithms: vec![Algorithm::Md5],
        nonce_ttl: Duration::from_secs(300),
        open: Vec::new(),
        remote: None,
        key: NonceKey([7; 32]),
    };
    let policy = RegistrarPolicy {
        domains: vec!["example.com".into()],
        auth: Some(auth),
        keepalive: None,
        ..RegistrarPolicy::default()
    };
    let trusted = vec!["127.0.0.0/8".parse().expect("a network")];
    let guard = Guard::new(GuardConfig { trusted, ..GuardConfig::default() }, now);
    Config {
        product: "sbc".into(),
        interfaces: vec![interface],
        calls: CallPolicy::default(),
        routing: Arc::new(Table::build(routing, None, now).expect("a routing table")),
        transactions: Default::default(),
        limits: Limits::default(),
        guard: Some(Arc::new(guard)),
        overload: None,
        hint_key: Default::default(),
        node: None,
        registrar: Some(RegistrarConfig {
            policy: Arc::new(policy),
            users: Arc::new(users),
            replays: Arc::new(Replays::new(1 << 16)),
            flows: Arc::new(Flows::new(1_000)),
            trunk: "phones".into(),
        }),
    }
}

fn user(n: u32) -> String {
    format!("user{n:07}")
}

fn register(n: u32, cseq: u32, authorization: &str) -> Bytes {
    let name = user(n);
    Bytes::from(format!(
        "REGISTER sip:example.com SIP/2.0\r\n\
         Via: SIP/2.0/UDP 127.0.0.1:40000;branch=z9hG4bK{n:x}-{cseq:x};rport\r\nMax-Forwards: 70\r\n\
         From: <sip:{name}@example.com>;tag=a{n:x}\r\nTo: <sip:{name}@example.com>\r\n\
         Call-ID: {n:08x}-3c26700c-1a2b3c4d@127.0.0.1\r\nCSeq: {cseq} REGISTER\r\n\
         Contact: <sip:{name}@127.0.0.1:40000;ob>\r\nExpires: 3600\r\n\
         User-Agent: bench\r\n{authorization}Content-Length: 0\r\n\r\n"
    ))
}

/// The core and its clock.
pub(crate) struct Bench<M> {
    core: Core,
    anchor: Ports,
    now: Instant,
    pub(crate) meter: M,
}

impl<M: Meter> Bench<M> {
    pub(crate) fn new(meter: M) -> Self {
        let now = Instant::now();
        let clock = WallClock { at: now, unix_ms: 1_700_000_000_000 };
        let core = Core::new(Arc::new(config(now)), [1; 32], clock);
        Bench { core, anchor: Ports::default(), now, meter }
    }

    /// One message as the shard handles it: whether its source is let in, whose it is, what it does.
    fn ask(&mut self, data: Bytes) -> String {
        let flow = Flow {
            interface: InterfaceId(0),
            transport: Transport::Udp,
            local: SocketAddr::from(SBC),
            remote: SocketAddr::from(([127, 0, 0, 1], 40_000)),
            conn: None,
        };
        let (core, anchor, now) = (&mut self.core, &mut self.anchor, self.now);
        let mut answer = None;
        self.meter.run(|| {
            assert!(core.lets_in(now, &flow));
            core.handle(now, Input::Message { flow, data }, anchor);
            while let Some(output) = core.poll() {
                if let Output::Transmit { data, .. } = output {
                    answer = Some(data);
                }
            }
            core.deadline()
        });
        String::from_utf8(answer.expect("an answer").to_vec()).expect("text")
    }

    /// Registration `n`: both requests.
    pub(crate) fn register(&mut self, n: u32) {
        self.now += Duration::from_micros(500);
        let (user_number, round) = (n % USERS, n / USERS);
        let challenge = self.ask(register(user_number, round * 2 + 1, ""));
        assert!(challenge.starts_with("SIP/2.0 401 "), "{challenge}");
        let username = user(user_number);
        let account =
            Account { username, realm: Some("example.com".into()), password: "secret".into() };
        let offers = challenge.lines().filter_map(|l| l.strip_prefix("WWW-Authenticate: "));
        let mut answerer = Answerer::choose(offers, &account).expect("a challenge");
        let value = answerer.authorize("REGISTER", "sip:example.com", b"", "c0ffee");
        let header = format!("Authorization: {value}\r\n");
        let ok = self.ask(register(user_number, round * 2 + 2, &header));
        assert!(ok.starts_with("SIP/2.0 200 "), "{ok}");
    }
}
