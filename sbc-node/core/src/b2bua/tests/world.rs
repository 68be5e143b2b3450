//! A shard between two networks on a virtual clock: what the tests of calls run in.
//!
//! Nothing of a call's behaviour is decided here: peers say what a test tells them to say, and
//! everything that crosses is written into a ladder.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::b2bua::{CallPolicy, CallRecord, Cdr, WallClock};
use crate::core::{
    Config, Core, Destination, Event, Input, Output, Record, ResolveId, SendError, StoreId,
};
use crate::media::{
    Anchor, Local, MediaError, MediaId, Remote, Side, SideSpec, StreamKind, StreamStats, Taken,
};
use crate::net::{ConnId, Flow, Host, Interface, InterfaceId, Listener, Transport};
use crate::routing::{
    CallLimits, GroupConfig, Member, Peer, RouteConfig, RouteMatch, RouteTarget, RoutingConfig,
    Strategy, Table, TrunkConfig,
};
use crate::sip::{HeaderName, Message, parse};

pub(super) const INSIDE: InterfaceId = InterfaceId(0);
pub(super) const OUTSIDE: InterfaceId = InterfaceId(1);

/// The peers: a PBX inside, two carriers outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    A,
    B,
    C,
}

impl Who {
    pub(super) fn addr(self) -> SocketAddr {
        match self {
            Who::A => "10.0.0.1:5060",
            Who::B => "192.0.2.1:5060",
            Who::C => "192.0.2.2:5060",
        }
        .parse()
        .unwrap()
    }

    fn interface(self) -> InterfaceId {
        match self {
            Who::A => INSIDE,
            Who::B | Who::C => OUTSIDE,
        }
    }

    /// Whose host it is, whatever the port: a peer's Via may name any.
    fn of(addr: SocketAddr) -> Option<Who> {
        [Who::A, Who::B, Who::C].into_iter().find(|w| w.addr().ip() == addr.ip())
    }

    pub(super) fn flow(self) -> Flow {
        let local = match self.interface() {
            INSIDE => "10.0.0.9:5060",
            _ => "198.51.100.9:5060",
        };
        Flow {
            interface: self.interface(),
            transport: Transport::Udp,
            local: local.parse().unwrap(),
            remote: self.addr(),
            conn: None,
        }
    }
}

/// An anchor that counts ports and remembers what it was told.
#[derive(Debug, Default)]
pub(super) struct FakeAnchor {
    pub(super) sessions: BTreeMap<MediaId, BTreeMap<(usize, bool), SideState>>,
    pub(super) next_port: u16,
    pub(super) no_ports: bool,
    pub(super) log: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct SideState {
    pub(super) spec: Option<SideSpec>,
    pub(super) local: Option<Local>,
    pub(super) remote: Option<Remote>,
}

fn is_b(side: Side) -> bool {
    side == Side::B
}

impl FakeAnchor {
    pub(super) fn side(&self, index: usize, side: Side) -> SideState {
        let session = self.sessions.values().next().expect("one session");
        session.get(&(index, is_b(side))).cloned().unwrap_or_default()
    }
}

impl Anchor for FakeAnchor {
    fn open(&mut self, id: MediaId, _timeout: Option<Duration>) -> Result<(), MediaError> {
        assert!(self.sessions.insert(id, BTreeMap::new()).is_none(), "opened twice");
        Ok(())
    }

    fn bind(
        &mut self,
        id: MediaId,
        index: usize,
        _kind: StreamKind,
        side: Side,
        spec: SideSpec,
    ) -> Result<Local, MediaError> {
        if self.no_ports {
            return Err(MediaError::NoPorts);
        }
        let port = 30_000 + self.next_port;
        let session = self.sessions.get_mut(&id).ok_or(MediaError::Unknown)?;
        let state = session.entry((index, is_b(side))).or_default();
        if let (Some(local), true) = (state.local, state.spec == Some(spec)) {
            return Ok(local);
        }
        self.next_port += 2;
        let ip = if spec.interface == INSIDE { "10.0.0.9" } else { "203.0.113.9" };
        let rtp = SocketAddr::new(ip.parse().unwrap(), port);
        let rtcp = SocketAddr::new(rtp.ip(), port + 1);
        state.spec = Some(spec);
        state.local = Some(Local { rtp, rtcp });
        Ok(Local { rtp, rtcp })
    }

    fn rebind(
        &mut self,
        id: MediaId,
        index: usize,
        _kind: StreamKind,
        side: Side,
        taken: &Taken,
    ) -> Result<(), MediaError> {
        let session = self.sessions.get_mut(&id).ok_or(MediaError::Unknown)?;
        let state = session.entry((index, is_b(side))).or_default();
        (state.spec, state.local) = (Some(taken.spec), Some(taken.local));
        Ok(())
    }

    fn remote(
        &mut self,
        id: MediaId,
        index: usize,
        side: Side,
        remote: &Remote,
        relearn: bool,
    ) -> Result<(), MediaError> {
        let session = self.sessions.get_mut(&id).ok_or(MediaError::Unknown)?;
        let state = session.entry((index, is_b(side))).or_default();
        state.remote = Some(remote.clone());
        let rtp = remote.rtp.map_or("-".to_owned(), |a| a.to_string());
        let learn = if relearn { " learn" } else { "" };
        self.log.push(format!(
            "{side:?}{index} {rtp} sends={} receives={}{learn}",
            remote.sends, remote.receives
        ));
        Ok(())
    }

    fn drop_stream(&mut self, id: MediaId, index: usize) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.retain(|(i, _), _| *i != index);
        }
    }

    fn stats(&mut self, id: MediaId) -> Vec<StreamStats> {
        self.sessions.get(&id).map_or_else(Vec::new, |_| vec![StreamStats::default()])
    }

    fn close(&mut self, id: MediaId) -> Vec<StreamStats> {
        assert!(self.sessions.remove(&id).is_some(), "closed twice");
        vec![StreamStats::default()]
    }
}

/// The shard, its networks and its clock.
pub(super) struct World {
    pub(super) core: Core,
    pub(super) anchor: FakeAnchor,
    pub(super) t0: Instant,
    pub(super) now: Instant,
    inbox: BTreeMap<Who, VecDeque<Message>>,
    /// Every byte that went to each peer.
    pub(super) seen: BTreeMap<Who, Vec<Bytes>>,
    pub(super) ladder: String,
    /// Records of answered calls, should nothing more be heard.
    pub(super) answered: Vec<Cdr>,
    pub(super) cdrs: Vec<Cdr>,
    pub(super) records: Vec<CallRecord>,
    pub(super) ended: usize,
    pub(super) aors: Vec<crate::registrar::AorRecord>,
    /// Handed to other shards.
    /// Users that another system is asked for.
    /// Who got something, and by which transport.
    pub(super) sent_by: Vec<(Who, Transport)>,
    /// STUN that peers got.
    pub(super) stun: VecDeque<(Who, Bytes)>,
    pub(super) asked: Vec<(crate::core::ResolveId, crate::registrar::AskUser)>,
    /// Users that the cluster is asked to have room for.
    pub(super) rooms: Vec<(crate::core::ResolveId, crate::routing::UserPlace)>,
    pub(super) shards: Vec<(u32, Input)>,
    /// Messages that may be another node's.
    pub(super) elsewhere: Vec<(crate::core::Wanted, crate::net::Flow, Bytes)>,
    pub(super) traces: Vec<String>,
    pub(super) drained: bool,
    pub(super) resolves: VecDeque<(ResolveId, String)>,
    /// Commits are answered at once unless held.
    pub(super) hold_stores: bool,
    pub(super) held: VecDeque<StoreId>,
    /// The only connection that takes what is sent; without one all streams do.
    pub(super) only_conn: Option<ConnId>,
    /// The connection that something was last sent by.
    pub(super) last_conn: Option<ConnId>,
    branch: u32,
}

pub(super) fn peer(host: &str) -> Peer {
    Peer { host: host.into(), port: Some(5060), transport: Some(Transport::Udp) }
}

fn trunk(name: &str, interface: InterfaceId, host: &str) -> TrunkConfig {
    TrunkConfig {
        realm: if interface == INSIDE { "core" } else { "public" }.into(),
        peers: vec![peer(host)],
        ..TrunkConfig::new(name, interface)
    }
}

/// Settings that a test may change before the world begins.
pub(super) struct Settings {
    pub(super) pbx: TrunkConfig,
    pub(super) one: TrunkConfig,
    pub(super) two: TrunkConfig,
    pub(super) calls: CallPolicy,
    pub(super) seed: u8,
    pub(super) node: Option<u16>,
    pub(super) registrar: Option<crate::core::RegistrarConfig>,
    pub(super) guard: Option<Arc<crate::guard::Guard>>,
    pub(super) overload: Option<Arc<crate::guard::Overload>>,
    pub(super) admission: crate::routing::AdmissionConfig,
    pub(super) transactions: crate::transaction::Config,
    /// The public side is reached by TCP as well.
    pub(super) tcp: bool,
    /// Both sides are reached by TLS as well.
    pub(super) tls: bool,
}

impl Settings {
    pub(super) fn new() -> Self {
        Settings {
            pbx: trunk("pbx", INSIDE, "10.0.0.1"),
            one: trunk("one", OUTSIDE, "192.0.2.1"),
            two: trunk("two", OUTSIDE, "192.0.2.2"),
            calls: CallPolicy::default(),
            seed: 1,
            node: None,
            registrar: None,
            guard: None,
            overload: None,
            transactions: crate::transaction::Config::default(),
            admission: crate::routing::AdmissionConfig::default(),
            tcp: false,
            tls: false,
        }
    }

    fn routing(&self, now: Instant) -> Table {
        let member = |t: &str| Member { trunk: t.into(), weight: 1 };
        let route = |name: &str, realm: &str, target: &str| RouteConfig {
            name: name.into(),
            matches: RouteMatch { realms: vec![realm.into()], ..RouteMatch::default() },
            target: RouteTarget::To(target.into()),
            strip: 0,
            prefix: "".into(),
        };
        let config = RoutingConfig {
            trunks: vec![self.pbx.clone(), self.one.clone(), self.two.clone()],
            groups: vec![GroupConfig {
                name: "carriers".into(),
                strategy: Strategy::Ordered,
                members: vec![member("one"), member("two")],
                limits: CallLimits::default(),
            }],
            routes: vec![route("out", "core", "carriers"), route("in", "public", "pbx")],
            admission: self.admission.clone(),
            ..RoutingConfig::default()
        };
        Table::build(config, None, now).unwrap()
    }

    pub(super) fn config(&self, now: Instant) -> Config {
        let interface = |id: InterfaceId, name: &str, local: &str, advertise: &str| Interface {
            id,
            name: name.into(),
            realm: name.into(),
            listeners: vec![Listener {
                transport: Transport::Udp,
                local: local.parse().unwrap(),
                advertise_host: Host::Ip(advertise.parse().unwrap()),
                advertise_port: 5060,
                retired: false,
            }],
            media: true,
            large_by_tcp: true,
        };
        let mut inside = interface(INSIDE, "core", "10.0.0.9:5060", "10.0.0.9");
        let mut outside = interface(OUTSIDE, "public", "198.51.100.9:5060", "203.0.113.9");
        if self.tcp {
            let udp = outside.listeners[0].clone();
            outside.listeners.push(Listener { transport: Transport::Tcp, ..udp });
        }
        for side in [&mut inside, &mut outside].into_iter().filter(|_| self.tls) {
            let mut secure = side.listeners[0].clone();
            secure.transport = Transport::Tls;
            secure.local.set_port(5061);
            secure.advertise_port = 5061;
            side.listeners.push(secure);
        }
        Config {
            product: "".into(),
            interfaces: vec![inside, outside],
            calls: self.calls.clone(),
            routing: Arc::new(self.routing(now)),
            transactions: self.transactions,
            limits: crate::sip::Limits::default(),
            guard: self.guard.clone(),
            overload: self.overload.clone(),
            hint_key: crate::ids::HintKey::default(),
            node: self.node,
            registrar: self.registrar.clone(),
        }
    }

    pub(super) fn begin(self) -> World {
        let t0 = Instant::now();
        let clock = WallClock { at: t0, unix_ms: 1_000_000 };
        World {
            core: Core::new(Arc::new(self.config(t0)), [self.seed; 32], clock),
            anchor: FakeAnchor::default(),
            t0,
            now: t0,
            inbox: BTreeMap::new(),
            seen: BTreeMap::new(),
            ladder: String::new(),
            answered: Vec::new(),
            cdrs: Vec::new(),
            records: Vec::new(),
            ended: 0,
            aors: Vec::new(),
            shards: Vec::new(),
            stun: VecDeque::new(),
            sent_by: Vec::new(),
            asked: Vec::new(),
            rooms: Vec::new(),
            elsewhere: Vec::new(),
            traces: Vec::new(),
            drained: false,
            resolves: VecDeque::new(),
            hold_stores: false,
            held: VecDeque::new(),
            only_conn: None,
            last_conn: None,
            branch: 0,
        }
    }
}

impl World {
    pub(super) fn new() -> Self {
        Settings::new().begin()
    }

    pub(super) fn input(&mut self, input: Input) {
        self.core.handle(self.now, input, &mut self.anchor);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.core.poll() {
            match output {
                Output::Transmit { dest, data, token } => {
                    if self.reaches(&dest) {
                        self.sent(&dest, data);
                    } else if let Some(token) = token {
                        let failed = Input::SendFailed { token, error: SendError::Closed };
                        self.core.handle(self.now, failed, &mut self.anchor);
                    }
                }
                Output::Resolve { id, query } => self.resolves.push_back((id, query.host)),
                Output::Store { id, wait, record } => {
                    match record {
                        Record::Call(call) => self.records.push(*call),
                        Record::CallEnded(_) => self.ended += 1,
                        Record::Aor(aor) => self.aors.push(*aor),
                        Record::Registration { .. } => {}
                    }
                    match (wait, self.hold_stores) {
                        (Some(_), true) => self.held.push_back(id),
                        (Some(_), false) => {
                            self.core.handle(
                                self.now,
                                Input::Stored { id, protected: true },
                                &mut self.anchor,
                            );
                        }
                        (None, _) => {}
                    }
                }
                Output::Event(Event::Answered(cdr)) => self.answered.push(*cdr),
                Output::Event(Event::Cdr(cdr)) => self.cdrs.push(*cdr),
                Output::Event(Event::Trace(t)) => {
                    let line = String::from_utf8_lossy(&t.data);
                    let first = line.lines().next().unwrap_or("").to_owned();
                    self.traces.push(format!("{:?} {:?} {first}", t.side, t.direction));
                }
                Output::Event(Event::Drained) => self.drained = true,
                Output::Event(
                    Event::Registration(_) | Event::Peer { .. } | Event::TrunkRegistration { .. },
                ) => {}
                Output::Shard { shard, input } => self.shards.push((shard, *input)),
                Output::FindUser { id, ask } => self.asked.push((id, *ask)),
                Output::AskRoom { id, place } => self.rooms.push((id, place)),
                Output::Elsewhere { wanted, flow, data } => {
                    self.elsewhere.push((wanted, flow, data));
                }
            }
        }
    }

    /// Whether a way that is no datagram still leads to its peer.
    fn reaches(&mut self, dest: &Destination) -> bool {
        let (transport, conn) = match dest {
            Destination::Flow(flow) => (flow.transport, flow.conn),
            Destination::Target { target, .. } => (target.transport, None),
        };
        self.last_conn = conn.filter(|_| transport.is_reliable());
        let open = self.only_conn.is_none_or(|only| conn == Some(only));
        open || !transport.is_reliable()
    }

    fn sent(&mut self, dest: &Destination, data: Bytes) {
        let (addr, transport) = match dest {
            Destination::Flow(flow) => (flow.remote, flow.transport),
            Destination::Target { target, .. } => (target.addr, target.transport),
        };
        let who = Who::of(addr).unwrap_or_else(|| panic!("sent to {addr}"));
        self.sent_by.push((who, transport));
        if crate::stun::is_stun(&data) {
            return self.stun.push_back((who, data));
        }
        let message = parse(data.clone(), &Default::default()).expect("we send what parses");
        // What answers a malformed request can only repeat what was there.
        if message.status() != Some(400) {
            crate::sip::validate(&message).unwrap_or_else(|e| {
                panic!("we send what is valid: {e}\n{}", String::from_utf8_lossy(&data))
            });
        }
        self.rung(who, "<-", &message);
        self.seen.entry(who).or_default().push(data);
        self.inbox.entry(who).or_default().push_back(message);
    }

    /// One line of the ladder: side A on the left, the others on the right.
    fn rung(&mut self, who: Who, arrow: &str, message: &Message) {
        let ms = (self.now - self.t0).as_millis();
        let what = match message.start_line() {
            crate::sip::StartLine::Request { method, .. } => method.to_string(),
            crate::sip::StartLine::Response { status, .. } => {
                // What answers a malformed request repeats a CSeq that may be no good.
                format!("{status} ({})", message.cseq().map_or("?", |c| c.method))
            }
        };
        let sdp = if message.body().starts_with(b"v=0") { " sdp" } else { "" };
        // Towards the SBC is "->" on side A and "<-" on the other.
        let arrow = match (who, arrow) {
            (Who::A, a) => a,
            (_, "->") => "<-",
            (_, _) => "->",
        };
        let line = match who {
            Who::A => format!("{ms:>6} A {arrow} {what}{sdp}"),
            Who::B | Who::C => format!("{ms:>6} {:26}{arrow} {who:?} {what}{sdp}", ""),
        };
        self.ladder.push_str(line.trim_end());
        self.ladder.push('\n');
    }

    /// A peer sends a message. LF line ends become CRLF, Content-Length is set.
    pub(super) fn says(&mut self, who: Who, text: &str) {
        let text = wire_form(text);
        let data = Bytes::from(text);
        if let Ok(message) = parse(data.clone(), &Default::default()) {
            self.rung(who, "->", &message);
        }
        self.input(Input::Message { flow: who.flow(), data });
    }

    /// Everything that a peer got and nobody has looked at.
    pub(super) fn all(&mut self, who: Who) -> Vec<Message> {
        self.inbox.remove(&who).unwrap_or_default().into()
    }

    /// The next message that a peer got.
    pub(super) fn got(&mut self, who: Who) -> Message {
        let ladder = &self.ladder;
        let next = self.inbox.entry(who).or_default().pop_front();
        next.unwrap_or_else(|| panic!("{who:?} got nothing\n{ladder}"))
    }

    /// The next message that a peer got, which must begin with `start`.
    pub(super) fn expect(&mut self, who: Who, start: &str) -> Message {
        let message = self.got(who);
        let text = String::from_utf8_lossy(message.as_bytes()).into_owned();
        let head = text.strip_prefix("SIP/2.0 ").unwrap_or(&text);
        assert!(head.starts_with(start), "{who:?} wanted {start}, got\n{text}\n{}", self.ladder);
        message
    }

    /// The next message, if there is one.
    pub(super) fn next(&mut self, who: Who) -> Option<Message> {
        self.inbox.entry(who).or_default().pop_front()
    }

    /// Throws away what a peer has got so far.
    pub(super) fn forget(&mut self, who: Who) {
        self.inbox.remove(&who);
    }

    pub(super) fn nothing(&mut self, who: Who) {
        let next = self.inbox.entry(who).or_default().pop_front();
        assert!(next.is_none(), "{who:?} got {next:?}\n{}", self.ladder);
    }

    /// Moves the clock in steps of what the core wants.
    pub(super) fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(at) = self.core.deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.input(Input::Tick);
        }
        self.now = end;
    }

    /// Moves the clock until a peer gets something.
    pub(super) fn until(&mut self, who: Who) {
        let end = self.now + Duration::from_secs(3600);
        while self.inbox.get(&who).is_none_or(VecDeque::is_empty) && self.now < end {
            self.ms(50);
        }
    }

    pub(super) fn ms(&mut self, ms: u64) {
        self.advance(Duration::from_millis(ms));
    }

    /// A fresh branch for a peer's request.
    pub(super) fn branch(&mut self) -> String {
        self.branch += 1;
        format!("z9hG4bKpeer{}", self.branch)
    }

    /// A peer answers a request.
    pub(super) fn answer(
        &mut self,
        who: Who,
        request: &Message,
        status: u16,
        tag: &str,
        rest: &str,
    ) {
        let text = response_text(who, request, status, tag, rest);
        self.says(who, &text);
    }

    /// Every table is empty, every port free, once what lingers has timed out.
    pub(super) fn assert_clean(&mut self) {
        self.ms(70_000);
        assert!(self.anchor.sessions.is_empty(), "media left: {:?}", self.anchor.sessions);
        assert_eq!(self.core.calls().count(), 0, "calls left\n{}", self.ladder);
        assert!(
            self.core.is_idle(),
            "not idle: {:?}\n{}",
            self.core.transaction_stats(),
            self.ladder
        );
    }
}

/// CRLF line ends, and a Content-Length that is right.
pub(super) fn wire_form(text: &str) -> String {
    let text = text.replace('\n', "\r\n");
    let (head, body) = match text.split_once("\r\n\r\n") {
        Some((head, body)) => (head.trim_end().to_owned(), body.to_owned()),
        None => (text.trim_end().to_owned(), String::new()),
    };
    format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A response as a peer writes it; `rest` is further headers, a blank line, a body.
pub(super) fn response_text(
    who: Who,
    request: &Message,
    status: u16,
    tag: &str,
    rest: &str,
) -> String {
    let mut text = format!("SIP/2.0 {status} {}\n", crate::sip::reason_phrase(status));
    for name in [HeaderName::Via, HeaderName::RecordRoute, HeaderName::From] {
        for value in request.lines(name) {
            text.push_str(&format!("{name}: {value}\n"));
        }
    }
    let to = request.header(HeaderName::To).unwrap();
    let tagged = request.to_tag().is_some() || tag.is_empty();
    let to = if tagged { to.to_owned() } else { format!("{to};tag={tag}") };
    text.push_str(&format!("To: {to}\n"));
    text.push_str(&format!("Call-ID: {}\n", request.call_id().unwrap()));
    text.push_str(&format!("CSeq: {}\n", request.header(HeaderName::CSeq).unwrap()));
    if !rest.contains("Contact:") && status > 100 && status < 300 {
        text.push_str(&format!("Contact: <sip:peer@{}>\n", who.addr()));
    }
    text.push_str(rest);
    text
}
