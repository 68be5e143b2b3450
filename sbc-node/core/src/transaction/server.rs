//! Server transactions of the layer: matching requests, absorbing repeats, responses, ACK and
//! CANCEL (RFC 3261 §17.2, §9.2), the other way back when a connection is gone (§18.2.2).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::adopt::AdoptedServer;
use super::invite_server::{self as ist, InviteServer};
use super::layer::{Due, Side, is_reliable, same_generation, seal_token};
use super::matching::Fingerprint;
use super::non_invite_server::{self as nist, NonInviteServer};
use super::reply_route::reply_route;
use super::{Event, Owner, RespondError, ServerId, TransactionLayer};
use crate::core::{Destination, SendError};
use crate::net::Flow;
use crate::sip::{self, HeaderName, Message, Method};
use crate::timer::TimerKey;

/// Finds the server transaction of a request; nothing for a request that names none, and for a response.
#[derive(Clone, Copy, Debug)]
pub struct RequestKey(pub(super) Option<Fingerprint>);

#[derive(Clone, Copy, Debug)]
enum Machine {
    Invite(InviteServer),
    NonInvite(NonInviteServer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerTimer {
    Invite(ist::Timer),
    NonInvite(nist::Timer),
}

impl ServerTimer {
    /// Timers that never run together share a place: 0 sends something, 1 ends a state.
    fn place(self) -> usize {
        match self {
            ServerTimer::Invite(ist::Timer::Trying | ist::Timer::G)
            | ServerTimer::NonInvite(nist::Timer::Trying100) => 0,
            ServerTimer::Invite(ist::Timer::H | ist::Timer::I | ist::Timer::L)
            | ServerTimer::NonInvite(nist::Timer::Expire | nist::Timer::J) => 1,
        }
    }
}

#[derive(Debug)]
pub(super) struct Server {
    owner: Option<Owner>,
    key: Fingerprint,
    /// Set on the first of what may be merged requests.
    original: Option<Fingerprint>,
    machine: Machine,
    dest: Destination,
    /// Where to send once `dest` failed.
    fallback: Option<Box<Destination>>,
    source: SocketAddr,
    /// Until something was answered: for the 100.
    request: Option<Message>,
    /// The last response, where it may have to be sent again.
    response: Bytes,
    timers: [Option<TimerKey>; 2],
    cancelled: bool,
}

impl Server {
    fn awaits_final(&self) -> bool {
        match self.machine {
            Machine::Invite(state) => state.awaits_final(),
            Machine::NonInvite(state) => state.awaits_final(),
        }
    }

    pub(super) fn last_response(&self) -> Bytes {
        self.response.clone()
    }

    fn ended(&self) -> bool {
        match self.machine {
            Machine::Invite(state) => state == InviteServer::Terminated,
            Machine::NonInvite(state) => state == NonInviteServer::Terminated,
        }
    }
}

/// Why a machine moves.
#[derive(Clone, Copy)]
enum Cause {
    Repeat,
    Ack,
    Respond(u16),
    Timer(ServerTimer),
    SendFailed,
}

/// What the actions of a step may need.
#[derive(Default)]
struct Context {
    response: Bytes,
    ack: Option<(Flow, Message)>,
    error: Option<SendError>,
}

/// The actions of both machines.
enum Do {
    SendTrying,
    SendResponse,
    SendAndForget,
    ResendResponse,
    DeliverAck,
    InformTimeout,
    InformTransportError,
    Start(ServerTimer, Duration),
    Stop(ServerTimer),
    ReleaseResponse,
}

impl From<ist::Action> for Do {
    fn from(action: ist::Action) -> Self {
        match action {
            ist::Action::SendTrying => Do::SendTrying,
            ist::Action::SendResponse => Do::SendResponse,
            ist::Action::SendAndForget => Do::SendAndForget,
            ist::Action::ResendResponse => Do::ResendResponse,
            ist::Action::DeliverAck => Do::DeliverAck,
            ist::Action::InformTimeout => Do::InformTimeout,
            ist::Action::InformTransportError => Do::InformTransportError,
            ist::Action::Start(timer, after) => Do::Start(ServerTimer::Invite(timer), after),
            ist::Action::Stop(timer) => Do::Stop(ServerTimer::Invite(timer)),
            ist::Action::ReleaseResponse => Do::ReleaseResponse,
        }
    }
}

impl From<nist::Action> for Do {
    fn from(action: nist::Action) -> Self {
        match action {
            nist::Action::SendTrying => Do::SendTrying,
            nist::Action::SendResponse => Do::SendResponse,
            nist::Action::ResendResponse => Do::ResendResponse,
            nist::Action::InformTimeout => Do::InformTimeout,
            nist::Action::InformTransportError => Do::InformTransportError,
            nist::Action::Start(timer, after) => Do::Start(ServerTimer::NonInvite(timer), after),
            nist::Action::Stop(timer) => Do::Stop(ServerTimer::NonInvite(timer)),
        }
    }
}

type Steps = smallvec::SmallVec<[Do; 6]>;

impl TransactionLayer {
    /// Sends a response. `data` is the whole message with this `status`, its Via written by
    /// [`sip::response`] with the flow's remote address as source.
    ///
    /// A 2xx to an INVITE may be sent again (the TU repeats it until its ACK: `OkRetransmit`).
    ///
    /// # Errors
    ///
    /// Nothing was sent: see [`RespondError`].
    pub fn respond(
        &mut self,
        now: Instant,
        id: ServerId,
        status: u16,
        data: Bytes,
    ) -> Result<(), RespondError> {
        let index = self.servers.check(id.index, id.generation).ok_or(RespondError::Gone)?;
        let (_, server) = self.servers.get(index).ok_or(RespondError::Gone)?;
        match server.machine {
            Machine::Invite(state) => {
                let again = state == InviteServer::Accepted && status / 100 == 2;
                if !state.awaits_final() && !again {
                    return Err(RespondError::Late);
                }
            }
            Machine::NonInvite(state) if !state.awaits_final() => return Err(RespondError::Late),
            Machine::NonInvite(_) if matches!(status, 101..200 | 408) => {
                return Err(RespondError::Forbidden);
            }
            Machine::NonInvite(_) => {}
        }
        let context = Context { response: data, ..Context::default() };
        self.step_server(now, index, Cause::Respond(status), context);
        Ok(())
    }

    /// Ends a transaction without any answer, for those who shall not learn that we are here. A
    /// request that comes again is a new one.
    pub fn forget(&mut self, id: ServerId) {
        if let Some(index) = self.servers.check(id.index, id.generation) {
            self.remove_server(index);
        }
    }

    /// Answers once and keeps nothing: a repeat of the request is a new one, its ACK is nobody's
    /// (RFC 3261 §8.2.7).
    pub fn answer_once(&mut self, id: ServerId, data: Bytes) {
        if let Some(index) = self.servers.check(id.index, id.generation)
            && let Some((_, server)) = self.servers.get(index)
        {
            let dest = server.dest;
            self.transmit(dest, data);
            self.remove_server(index);
        }
    }

    /// Says whose the transaction is; told with its later events.
    pub fn set_owner(&mut self, id: ServerId, owner: Owner) {
        if let Some(index) = self.servers.check(id.index, id.generation)
            && let Some((_, server)) = self.servers.get(index)
        {
            server.owner = Some(owner);
        }
    }

    /// Whether a final response may still be sent.
    pub fn awaits_final(&mut self, id: ServerId) -> bool {
        self.servers
            .check(id.index, id.generation)
            .and_then(|index| self.servers.get(index))
            .is_some_and(|(_, server)| server.awaits_final())
    }

    /// Whether a request belongs to a transaction that is there: what is asked of new requests is
    /// not asked of it again.
    pub fn is_retransmission(&self, request: &Message) -> bool {
        self.knows(self.key(request))
    }

    /// What finds a request's transaction, for who asks more than once.
    pub fn key(&self, message: &Message) -> RequestKey {
        RequestKey(message.method().and_then(|_| self.matcher.server(message).ok()))
    }

    /// [`TransactionLayer::is_retransmission`] by key.
    pub fn knows(&self, key: RequestKey) -> bool {
        key.0.is_some_and(|key| self.by_fingerprint.contains_key(&key))
    }

    pub(super) fn receive_request(
        &mut self,
        now: Instant,
        flow: Flow,
        message: Message,
        key: Fingerprint,
    ) {
        if let Some(&index) = self.by_fingerprint.get(&key) {
            self.stats.request_retransmissions += 1;
            return self.step_server(now, index, Cause::Repeat, Context::default());
        }
        // A flood of new calls must not keep the calls that are up from ending.
        let in_dialog = message.to_tag().is_some();
        if self.servers.is_full() || (!in_dialog && self.servers.is_nearly_full()) {
            self.stats.refused_full += 1;
            return self.refuse_full(&flow, &message);
        }
        let Ok(via) = message.via() else { return };
        let route = reply_route(&flow, &via);
        let original = self.matcher.merged(&message);
        let merged = original.is_some_and(|print| self.originals.contains(&print));
        let original = original.filter(|_| !merged);
        let timers = &self.config.timers;
        let (machine, steps): (Machine, Steps) = if message.method() == Some(&Method::Invite) {
            let (state, actions) = InviteServer::start(timers);
            (Machine::Invite(state), actions.into_iter().map(Do::from).collect())
        } else {
            let (state, actions) = NonInviteServer::start(timers, flow.transport.is_reliable());
            (Machine::NonInvite(state), actions.into_iter().map(Do::from).collect())
        };
        let server = Server {
            owner: None,
            key,
            original,
            machine,
            dest: route.dest,
            fallback: route.fallback.map(Box::new),
            source: flow.remote,
            request: Some(message.clone()),
            response: Bytes::new(),
            timers: [None; 2],
            cancelled: false,
        };
        let id = self.enter_server(now, server, steps);
        self.tell(Event::Request { id, flow, message, merged });
    }

    /// The transaction of an INVITE that another node took. Without a provisional response the caller
    /// gets a 100 soon.
    pub(super) fn insert_adopted_server(
        &mut self,
        now: Instant,
        AdoptedServer { flow, invite, provisional }: AdoptedServer,
    ) -> Option<ServerId> {
        let key = self.matcher.server(&invite).ok()?;
        let route = reply_route(&flow, &invite.via().ok()?);
        let lost = flow.transport.is_reliable() && flow.conn.is_none();
        let dest = route.fallback.filter(|_| lost).unwrap_or(route.dest);
        let original = self.matcher.merged(&invite);
        let original = original.filter(|print| !self.originals.contains(print));
        let (fresh, actions) = InviteServer::start(&self.config.timers);
        let answered = !provisional.is_empty();
        let (state, steps): (InviteServer, Steps) = match answered {
            true => (InviteServer::Proceeding { answered }, Steps::new()),
            false => (fresh, actions.into_iter().map(Do::from).collect()),
        };
        let server = Server {
            owner: None,
            key,
            original,
            machine: Machine::Invite(state),
            dest,
            fallback: route.fallback.filter(|_| !lost).map(Box::new),
            source: flow.remote,
            request: (!answered).then_some(invite),
            response: provisional,
            timers: [None; 2],
            cancelled: false,
        };
        Some(self.enter_server(now, server, steps))
    }

    /// Takes a server transaction into the tables, and its first steps.
    fn enter_server(&mut self, now: Instant, server: Server, steps: Steps) -> ServerId {
        let (key, original) = (server.key, server.original);
        let (index, generation) = self.servers.insert(server);
        self.by_fingerprint.insert(key, index);
        if let Some(print) = original {
            self.originals.insert(print);
        }
        self.perform_server(now, index, steps, Context::default());
        ServerId { index, generation }
    }

    pub(super) fn receive_ack(
        &mut self,
        now: Instant,
        flow: Flow,
        message: Message,
        key: Fingerprint,
    ) {
        match self.by_fingerprint.get(&key).copied() {
            Some(index) => {
                let context = Context { ack: Some((flow, message)), ..Context::default() };
                self.step_server(now, index, Cause::Ack, context);
            }
            None => self.tell(Event::Ack { flow, message }),
        }
    }

    /// RFC 3261 §9.2. Answered without a transaction: the answer to a repeated CANCEL follows from
    /// the INVITE's transaction as the first one did.
    pub(super) fn receive_cancel(&mut self, flow: Flow, message: Message, key: Fingerprint) {
        let Some(&index) = self.by_fingerprint.get(&key) else {
            return self.answer(&flow, &message, 481, None);
        };
        let Some((generation, server)) = self.servers.get(index) else { return };
        let tell = server.awaits_final() && !server.cancelled;
        server.cancelled = true;
        let owner = server.owner;
        // §9.2: the To tag should be that of the INVITE's response.
        let last = sip::parse(server.response.clone(), &sip::Limits::default()).ok();
        let tag = last.as_ref().and_then(Message::to_tag);
        self.answer(&flow, &message, 200, tag);
        if tell {
            self.tell(Event::Cancelled { id: ServerId { index, generation }, owner, message });
        }
    }

    pub(super) fn server_timer(&mut self, now: Instant, index: u32, timer: ServerTimer) {
        let Some((_, server)) = self.servers.get(index) else { return };
        server.timers[timer.place()] = None;
        if timer == ServerTimer::Invite(ist::Timer::G) {
            self.stats.sent_retransmissions += 1;
        }
        self.step_server(now, index, Cause::Timer(timer), Context::default());
    }

    pub(super) fn server_send_failed(
        &mut self,
        now: Instant,
        index: u32,
        generation: u32,
        error: SendError,
    ) {
        let Some((own, server)) = self.servers.get(index) else { return };
        if !same_generation(generation, own) {
            return;
        }
        if let Some(dest) = server.fallback.take() {
            server.dest = *dest;
            let (dest, response) = (server.dest, server.response.clone());
            if !response.is_empty() {
                return self.send(dest, response, seal_token(Side::Server, index, own));
            }
        }
        let context = Context { error: Some(error), ..Context::default() };
        self.step_server(now, index, Cause::SendFailed, context);
    }

    fn step_server(&mut self, now: Instant, index: u32, cause: Cause, context: Context) {
        let timers = &self.config.timers;
        let Some((_, server)) = self.servers.get(index) else { return };
        let reliable = is_reliable(&server.dest);
        let steps: Steps = match server.machine {
            Machine::Invite(state) => {
                let Some(input) = invite_input(cause) else { return };
                let (state, actions) = state.step(input, timers, reliable);
                server.machine = Machine::Invite(state);
                actions.into_iter().map(Do::from).collect()
            }
            Machine::NonInvite(state) => {
                let Some(input) = non_invite_input(cause) else { return };
                let (state, actions) = state.step(input, timers, reliable);
                server.machine = Machine::NonInvite(state);
                actions.into_iter().map(Do::from).collect()
            }
        };
        self.perform_server(now, index, steps, context);
    }

    fn perform_server(&mut self, now: Instant, index: u32, steps: Steps, mut context: Context) {
        for step in steps {
            self.perform_server_step(now, index, step, &mut context);
        }
        if self.servers.get(index).is_some_and(|(_, server)| server.ended()) {
            self.remove_server(index);
        }
    }

    fn perform_server_step(&mut self, now: Instant, index: u32, step: Do, context: &mut Context) {
        let Some((generation, server)) = self.servers.get(index) else { return };
        let (id, owner, dest) = (ServerId { index, generation }, server.owner, server.dest);
        let token = seal_token(Side::Server, index, generation);
        match step {
            Do::SendTrying => {
                let Some(request) = server.request.take() else { return };
                let source = Some(server.source);
                server.response = sip::response(&request, 100, "", None, source).finish();
                let response = server.response.clone();
                self.send(dest, response, token);
            }
            Do::SendResponse => {
                server.request = None;
                server.response = std::mem::take(&mut context.response);
                let response = server.response.clone();
                self.send(dest, response, token);
            }
            Do::SendAndForget => {
                server.request = None;
                let response = std::mem::take(&mut context.response);
                self.send(dest, response, token);
            }
            Do::ResendResponse => {
                let response = server.response.clone();
                self.send(dest, response, token);
            }
            Do::DeliverAck => {
                if let Some((flow, message)) = context.ack.take() {
                    self.tell(Event::Ack { flow, message });
                }
            }
            Do::InformTimeout => self.tell(Event::ServerTimeout { id, owner }),
            Do::InformTransportError => {
                if let Some(error) = context.error {
                    self.tell(Event::ServerTransportError { id, owner, error });
                }
            }
            Do::Start(timer, after) => {
                let key = self.wheel.insert(now + after, Due::Server(index, timer));
                if let Some(before) = server.timers[timer.place()].replace(key) {
                    self.wheel.cancel(before);
                }
            }
            Do::Stop(timer) => {
                if let Some(key) = server.timers[timer.place()].take() {
                    self.wheel.cancel(key);
                }
            }
            Do::ReleaseResponse => server.response = Bytes::new(),
        }
    }

    fn remove_server(&mut self, index: u32) {
        let Some(server) = self.servers.remove(index) else { return };
        self.by_fingerprint.remove(&server.key);
        if let Some(print) = server.original {
            self.originals.remove(&print);
        }
        for key in server.timers.into_iter().flatten() {
            self.wheel.cancel(key);
        }
    }

    /// The server table is full: 503 without a transaction.
    fn refuse_full(&mut self, flow: &Flow, request: &Message) {
        let Ok(via) = request.via() else { return };
        let dest = reply_route(flow, &via).dest;
        let hint = self.ids.hints().of_message(request.as_bytes());
        let tag = self.ids.tag(hint);
        let mut out = sip::response(request, 503, "", Some(&tag), Some(flow.remote));
        out.header(HeaderName::RetryAfter, self.config.retry_after_secs);
        self.transmit(dest, out.finish());
    }

    /// Answers a request without a transaction; a tag is minted where none is given.
    fn answer(&mut self, flow: &Flow, request: &Message, status: u16, tag: Option<&str>) {
        let Ok(via) = request.via() else { return };
        let dest = reply_route(flow, &via).dest;
        let hint = self.ids.hints().of_message(request.as_bytes());
        let minted = self.ids.tag(hint);
        let tag = tag.unwrap_or(&minted);
        let data = sip::response(request, status, "", Some(tag), Some(flow.remote)).finish();
        self.transmit(dest, data);
    }
}

fn invite_input(cause: Cause) -> Option<ist::Input> {
    Some(match cause {
        Cause::Repeat => ist::Input::Invite,
        Cause::Ack => ist::Input::Ack,
        Cause::Respond(..200) => ist::Input::Provisional,
        Cause::Respond(200..300) => ist::Input::Success,
        Cause::Respond(300..) => ist::Input::Failure,
        Cause::Timer(ServerTimer::Invite(timer)) => ist::Input::Timer(timer),
        Cause::Timer(ServerTimer::NonInvite(_)) => return None,
        Cause::SendFailed => ist::Input::TransportError,
    })
}

fn non_invite_input(cause: Cause) -> Option<nist::Input> {
    Some(match cause {
        Cause::Repeat => nist::Input::Request,
        Cause::Ack => return None,
        Cause::Respond(..200) => nist::Input::Trying,
        Cause::Respond(200..) => nist::Input::Final,
        Cause::Timer(ServerTimer::NonInvite(timer)) => nist::Input::Timer(timer),
        Cause::Timer(ServerTimer::Invite(_)) => return None,
        Cause::SendFailed => nist::Input::TransportError,
    })
}
