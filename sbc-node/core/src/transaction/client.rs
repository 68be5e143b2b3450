//! Client transactions of the layer: sending requests, matching responses (RFC 3261 §17.1.3),
//! ACK for failures, CANCEL (§9.1), the way back from TCP to UDP (§18.1.1).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::invite_client::{self as ict, InviteClient};
use super::large::{UDP_LIMIT, switch};
use super::layer::{Due, Side, is_reliable, same_generation, seal_token};
use super::non_invite_client::{self as nict, NonInviteClient};
use super::{ClientId, ClientRequest, Event, Large, Owner, TableFull, TransactionLayer};
use crate::core::{Destination, SendError};
use crate::ids::Branch;
use crate::net::{Flow, Transport};
use crate::sip::{self, HeaderName, Message, Method};
use crate::timer::TimerKey;

/// Addresses that take no connections, remembered at a time and for how long.
const NO_STREAMS_MAX: usize = 4_096;
const NO_STREAM_FOR: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug)]
enum Machine {
    Invite(InviteClient),
    NonInvite(NonInviteClient),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientTimer {
    Invite(ict::Timer),
    NonInvite(nict::Timer),
}

impl ClientTimer {
    /// Timers that never run together share a place: 0 repeats, 1 ends a state.
    fn place(self) -> usize {
        match self {
            ClientTimer::Invite(ict::Timer::A) | ClientTimer::NonInvite(nict::Timer::E) => 0,
            ClientTimer::Invite(
                ict::Timer::B | ict::Timer::D | ict::Timer::M | ict::Timer::Cancelled,
            )
            | ClientTimer::NonInvite(nict::Timer::F | nict::Timer::K) => 1,
        }
    }
}

/// What the TU wants of a CANCEL.
#[derive(Debug)]
enum Cancel {
    No,
    /// As soon as a provisional came; with the value of the Reason header.
    Wanted(Option<Box<str>>),
    Sent,
}

#[derive(Debug)]
pub(super) struct Client {
    owner: Owner,
    branch: Branch,
    method: Method,
    machine: Machine,
    dest: Destination,
    /// The request; in Completed the ACK.
    bytes: Bytes,
    timers: [Option<TimerKey>; 2],
    cancel: Cancel,
    /// The request went by TCP for its size alone; this is how it goes by UDP.
    udp: Option<Box<ByUdp>>,
}

/// A request as the TU gave it, before it went by TCP for its size.
#[derive(Debug)]
pub(super) struct ByUdp {
    dest: Destination,
    bytes: Bytes,
    timeout: Option<Duration>,
}

impl Client {
    /// A CANCEL is the layer's own: the TU hears nothing of it.
    fn is_silent(&self) -> bool {
        self.method == Method::Cancel
    }

    /// The request, until its final response.
    pub(super) fn request(&self) -> Option<Bytes> {
        use {InviteClient as I, NonInviteClient as N};
        let waits = matches!(
            self.machine,
            Machine::Invite(I::Calling { .. } | I::Proceeding)
                | Machine::NonInvite(N::Trying { .. } | N::Proceeding)
        );
        waits.then(|| self.bytes.clone())
    }

    fn ended(&self) -> bool {
        match self.machine {
            Machine::Invite(state) => state == InviteClient::Terminated,
            Machine::NonInvite(state) => state == NonInviteClient::Terminated,
        }
    }

    /// Whether no response came yet.
    fn is_unanswered(&self) -> bool {
        matches!(
            self.machine,
            Machine::Invite(InviteClient::Calling { .. })
                | Machine::NonInvite(NonInviteClient::Trying { .. })
        )
    }
}

/// The far end of a stream that a request goes by.
fn stream_end(dest: &Destination) -> Option<SocketAddr> {
    match *dest {
        Destination::Flow(flow) => flow.transport.is_reliable().then_some(flow.remote),
        Destination::Target { target, .. } => target.transport.is_reliable().then_some(target.addr),
    }
}

/// Whether a request for `dest` went by the connection `flow`.
fn went_by(dest: &Destination, flow: &Flow) -> bool {
    match dest {
        Destination::Flow(own) => own.conn == flow.conn,
        Destination::Target { interface, target } => {
            *interface == flow.interface
                && target.transport == flow.transport
                && target.addr == flow.remote
        }
    }
}

/// Why a machine moves.
enum Cause {
    Response(Message),
    Timer(ClientTimer),
    SendFailed(SendError),
    /// The only connection that a response can come by is gone.
    Disconnected,
    CancelSent,
}

/// The actions of both machines.
enum Do {
    SendRequest,
    SendAck,
    ResendAck,
    Deliver,
    InformTimeout,
    InformTransportError,
    Start(ClientTimer, Duration),
    Stop(ClientTimer),
    ReleaseRequest,
}

impl From<ict::Action> for Do {
    fn from(action: ict::Action) -> Self {
        match action {
            ict::Action::SendRequest => Do::SendRequest,
            ict::Action::SendAck => Do::SendAck,
            ict::Action::ResendAck => Do::ResendAck,
            ict::Action::Deliver => Do::Deliver,
            ict::Action::InformTimeout => Do::InformTimeout,
            ict::Action::InformTransportError => Do::InformTransportError,
            ict::Action::Start(timer, after) => Do::Start(ClientTimer::Invite(timer), after),
            ict::Action::Stop(timer) => Do::Stop(ClientTimer::Invite(timer)),
            ict::Action::ReleaseRequest => Do::ReleaseRequest,
        }
    }
}

impl From<nict::Action> for Do {
    fn from(action: nict::Action) -> Self {
        match action {
            nict::Action::SendRequest => Do::SendRequest,
            nict::Action::Deliver => Do::Deliver,
            nict::Action::InformTimeout => Do::InformTimeout,
            nict::Action::InformTransportError => Do::InformTransportError,
            nict::Action::Start(timer, after) => Do::Start(ClientTimer::NonInvite(timer), after),
            nict::Action::Stop(timer) => Do::Stop(ClientTimer::NonInvite(timer)),
            nict::Action::ReleaseRequest => Do::ReleaseRequest,
        }
    }
}

type Steps = smallvec::SmallVec<[Do; 6]>;

impl TransactionLayer {
    /// Sends a request by a new client transaction; its outcome comes as events with the id.
    ///
    /// # Errors
    ///
    /// [`TableFull`]: nothing was sent.
    pub fn send_request(
        &mut self,
        now: Instant,
        request: ClientRequest,
    ) -> Result<ClientId, TableFull> {
        if self.clients.is_full() {
            self.stats.refused_clients += 1;
            return Err(TableFull);
        }
        let ClientRequest { owner, branch, method, mut dest, mut data, timeout, large } = request;
        debug_assert!(!matches!(method, Method::Ack | Method::Cancel));
        let mut udp = None;
        if let Large::Tcp { sent_by } = &large
            && data.len() > UDP_LIMIT
            && let Some((to, switched)) = switch(&dest, &data, sent_by)
            && stream_end(&to).is_some_and(|addr| self.may_connect(now, addr))
        {
            udp = Some(Box::new(ByUdp { dest, bytes: data, timeout }));
            (dest, data) = (to, switched);
        }
        let (index, generation) = self.insert_client(owner, branch, method, dest, data, udp);
        self.start_client(now, index, timeout);
        Ok(ClientId { index, generation })
    }

    /// Ends an INVITE that has no final response: CANCEL goes out once a provisional came
    /// (RFC 3261 §9.1), with `reason` as its Reason header (RFC 3326). The INVITE's final response
    /// or [`Event::ClientTimeout`] still comes. Without effect on everything else.
    pub fn cancel(&mut self, now: Instant, id: ClientId, reason: Option<&str>) {
        let Some(index) = self.clients.check(id.index, id.generation) else { return };
        let Some((_, client)) = self.clients.get(index) else { return };
        let (Machine::Invite(state), Cancel::No) = (client.machine, &client.cancel) else { return };
        client.cancel = Cancel::Wanted(reason.map(Box::from));
        if state == InviteClient::Proceeding {
            self.send_cancel(now, index);
        }
    }

    /// Whether a client transaction still runs.
    pub fn is_client_alive(&self, id: ClientId) -> bool {
        self.clients.check(id.index, id.generation).is_some()
    }

    pub(super) fn receive_response(&mut self, now: Instant, flow: Flow, message: Message) {
        let (Ok(_), Ok(cseq)) = (message.via(), message.cseq()) else {
            self.stats.unusable += 1;
            return;
        };
        let branch = Branch::parse(message.branch().as_bytes());
        let method = cseq.method;
        let found = branch.and_then(|b| self.by_branch.get(&(b, method == "CANCEL")).copied());
        let matched = found.filter(|&index| {
            self.clients.get(index).is_some_and(|(_, client)| client.method.as_str() == method)
        });
        // RFC 3261 §8.1.3.3: more than one Via is not for us.
        let misrouted = message.values(HeaderName::Via).nth(1).is_some();
        match matched {
            Some(index) if !misrouted => self.step_client(now, index, Cause::Response(message)),
            _ => {
                self.stats.stray_responses += 1;
                let ok = message.status().is_some_and(|s| s / 100 == 2);
                let ours = method == "INVITE" && branch.is_some() && !misrouted;
                if ok && ours && self.admit_stray_ok(now) {
                    self.tell(Event::StrayOk { flow, message });
                }
            }
        }
    }

    pub(super) fn client_timer(&mut self, now: Instant, index: u32, timer: ClientTimer) {
        let Some((_, client)) = self.clients.get(index) else { return };
        client.timers[timer.place()] = None;
        self.step_client(now, index, Cause::Timer(timer));
    }

    pub(super) fn client_send_failed(
        &mut self,
        now: Instant,
        index: u32,
        generation: u32,
        error: SendError,
    ) {
        let Some((own, client)) = self.clients.get(index) else { return };
        if !same_generation(generation, own) {
            return;
        }
        if client.is_unanswered()
            && let Some(udp) = client.udp.take()
        {
            let before = std::mem::replace(&mut client.dest, udp.dest);
            client.bytes = udp.bytes;
            if let Some(addr) = stream_end(&before) {
                self.by_stream.remove(&(addr, index));
                self.no_stream(now, addr);
            }
            return self.start_client(now, index, udp.timeout);
        }
        self.step_client(now, index, Cause::SendFailed(error));
    }

    /// A connection is gone: what was asked by it and has no response yet fails at once. What has
    /// one goes on, because the peer answers by a new connection (RFC 3261 §18.2.2); only behind a
    /// WebSocket there is nobody who could (RFC 7118 §5).
    pub fn handle_conn_closed(&mut self, now: Instant, flow: &Flow) {
        let range = (flow.remote, 0)..=(flow.remote, u32::MAX);
        let on_it: Vec<u32> = self.by_stream.range(range).map(|&(_, index)| index).collect();
        let final_way = matches!(flow.transport, Transport::Ws | Transport::Wss);
        for index in on_it {
            let Some((generation, client)) = self.clients.get(index) else { continue };
            if !went_by(&client.dest, flow) {
                continue;
            }
            if client.is_unanswered() {
                self.client_send_failed(now, index, generation, SendError::Closed);
            } else if final_way {
                self.step_client(now, index, Cause::Disconnected);
            }
        }
    }

    /// Whether a stream to an address is worth a try for a request that would fit UDP as well.
    fn may_connect(&mut self, now: Instant, addr: SocketAddr) -> bool {
        match self.no_streams.get(&addr) {
            Some(&until) if until > now => false,
            Some(_) => {
                self.no_streams.remove(&addr);
                true
            }
            None => true,
        }
    }

    /// Remembers that an address takes no connections, so that not every large request waits for
    /// one in vain.
    fn no_stream(&mut self, now: Instant, addr: SocketAddr) {
        if self.no_streams.len() >= NO_STREAMS_MAX {
            self.no_streams.retain(|_, until| *until > now);
        }
        if self.no_streams.len() < NO_STREAMS_MAX {
            self.no_streams.insert(addr, now + NO_STREAM_FOR);
        }
    }

    fn insert_client(
        &mut self,
        owner: Owner,
        branch: Branch,
        method: Method,
        dest: Destination,
        bytes: Bytes,
        udp: Option<Box<ByUdp>>,
    ) -> (u32, u32) {
        let key = (branch, method == Method::Cancel);
        let machine = if method == Method::Invite {
            Machine::Invite(InviteClient::Terminated)
        } else {
            Machine::NonInvite(NonInviteClient::Terminated)
        };
        let client = Client {
            owner,
            branch,
            method,
            machine,
            dest,
            bytes,
            timers: [None; 2],
            cancel: Cancel::No,
            udp,
        };
        let (index, generation) = self.clients.insert(client);
        self.by_branch.insert(key, index);
        if let Some(addr) = stream_end(&dest) {
            self.by_stream.insert((addr, index));
        }
        (index, generation)
    }

    /// An INVITE that had its first provisional response elsewhere.
    pub(super) fn insert_proceeding(
        &mut self,
        owner: Owner,
        branch: Branch,
        method: Method,
        dest: Destination,
        bytes: Bytes,
    ) -> (u32, u32) {
        let (index, generation) = self.insert_client(owner, branch, method, dest, bytes, None);
        if let Some((_, client)) = self.clients.get(index)
            && matches!(client.machine, Machine::Invite(_))
        {
            client.machine = Machine::Invite(InviteClient::Proceeding);
        }
        (index, generation)
    }

    /// Enters the first state of the figure, for the first time or again over UDP.
    fn start_client(&mut self, now: Instant, index: u32, timeout: Option<Duration>) {
        let mut timers = self.config.timers;
        if let Some(timeout) = timeout {
            timers.b = timeout;
            timers.f = timeout;
        }
        let Some((_, client)) = self.clients.get(index) else { return };
        let reliable = is_reliable(&client.dest);
        let steps: Steps = match client.machine {
            Machine::Invite(_) => {
                let (state, actions) = InviteClient::start(&timers, reliable);
                client.machine = Machine::Invite(state);
                actions.into_iter().map(Do::from).collect()
            }
            Machine::NonInvite(_) => {
                let (state, actions) = NonInviteClient::start(&timers, reliable);
                client.machine = Machine::NonInvite(state);
                actions.into_iter().map(Do::from).collect()
            }
        };
        self.perform_client(now, index, steps, None, None);
    }

    fn step_client(&mut self, now: Instant, index: u32, cause: Cause) {
        let timers = self.config.timers;
        let Some((_, client)) = self.clients.get(index) else { return };
        let reliable = is_reliable(&client.dest);
        let steps: Steps = match client.machine {
            Machine::Invite(state) => {
                let Some(input) = invite_input(&cause) else { return };
                let (state, actions) = state.step(input, &timers, reliable);
                client.machine = Machine::Invite(state);
                actions.into_iter().map(Do::from).collect()
            }
            Machine::NonInvite(state) => {
                let Some(input) = non_invite_input(&cause) else { return };
                let (state, actions) = state.step(input, &timers, reliable);
                client.machine = Machine::NonInvite(state);
                actions.into_iter().map(Do::from).collect()
            }
        };
        let (message, error) = match cause {
            Cause::Response(message) => (Some(message), None),
            Cause::SendFailed(error) => (None, Some(error)),
            Cause::Disconnected => (None, Some(SendError::Closed)),
            Cause::Timer(timer) => {
                let resent = timer.place() == 0 && !steps.is_empty();
                self.stats.sent_retransmissions += u64::from(resent);
                (None, None)
            }
            Cause::CancelSent => (None, None),
        };
        self.perform_client(now, index, steps, message, error);
    }

    fn perform_client(
        &mut self,
        now: Instant,
        index: u32,
        steps: Steps,
        message: Option<Message>,
        error: Option<SendError>,
    ) {
        for step in steps {
            self.perform_client_step(now, index, step, message.as_ref(), error);
        }
        let Some((_, client)) = self.clients.get(index) else { return };
        if client.ended() {
            self.remove_client(index);
        } else if matches!(client.cancel, Cancel::Wanted(_))
            && matches!(client.machine, Machine::Invite(InviteClient::Proceeding))
        {
            self.send_cancel(now, index);
        }
    }

    fn perform_client_step(
        &mut self,
        now: Instant,
        index: u32,
        step: Do,
        message: Option<&Message>,
        error: Option<SendError>,
    ) {
        let Some((generation, client)) = self.clients.get(index) else { return };
        let (id, owner) = (ClientId { index, generation }, client.owner);
        let silent = client.is_silent();
        match step {
            Do::SendRequest => {
                let (dest, bytes) = (client.dest, client.bytes.clone());
                self.send(dest, bytes, seal_token(Side::Client, index, generation));
            }
            Do::SendAck => {
                let Some(response) = message else { return };
                let Ok(invite) = sip::parse(client.bytes.clone(), &sip::Limits::default()) else {
                    return;
                };
                client.bytes = sip::ack_for_failure(&invite, response);
                let (dest, bytes) = (client.dest, client.bytes.clone());
                self.send(dest, bytes, seal_token(Side::Client, index, generation));
            }
            Do::ResendAck => {
                let (dest, bytes) = (client.dest, client.bytes.clone());
                self.stats.sent_retransmissions += 1;
                self.send(dest, bytes, seal_token(Side::Client, index, generation));
            }
            Do::Deliver => {
                if let Some(message) = message.filter(|_| !silent) {
                    self.tell(Event::Response { id, owner, message: message.clone() });
                }
            }
            Do::InformTimeout => {
                if !silent {
                    self.tell(Event::ClientTimeout { id, owner });
                }
            }
            Do::InformTransportError => {
                if let Some(error) = error.filter(|_| !silent) {
                    self.tell(Event::ClientTransportError { id, owner, error });
                }
            }
            Do::Start(timer, after) => {
                let key = self.wheel.insert(now + after, Due::Client(index, timer));
                if let Some(before) = client.timers[timer.place()].replace(key) {
                    self.wheel.cancel(before);
                }
            }
            Do::Stop(timer) => {
                if let Some(key) = client.timers[timer.place()].take() {
                    self.wheel.cancel(key);
                }
            }
            Do::ReleaseRequest => {
                client.bytes = Bytes::new();
            }
        }
    }

    /// Sends the CANCEL of an INVITE in Proceeding, by a transaction of its own.
    fn send_cancel(&mut self, now: Instant, index: u32) {
        let Some((_, client)) = self.clients.get(index) else { return };
        let Cancel::Wanted(reason) = std::mem::replace(&mut client.cancel, Cancel::Sent) else {
            return;
        };
        let (owner, branch, dest) = (client.owner, client.branch, client.dest);
        let Ok(invite) = sip::parse(client.bytes.clone(), &sip::Limits::default()) else { return };
        let data = sip::cancel_for(&invite, reason.as_deref());
        if self.clients.is_full() {
            self.transmit(dest, data);
        } else {
            let (cancel, _) = self.insert_client(owner, branch, Method::Cancel, dest, data, None);
            self.start_client(now, cancel, None);
        }
        self.step_client(now, index, Cause::CancelSent);
    }

    pub(super) fn remove_client(&mut self, index: u32) {
        let Some(client) = self.clients.remove(index) else { return };
        self.by_branch.remove(&(client.branch, client.method == Method::Cancel));
        if let Some(addr) = stream_end(&client.dest) {
            self.by_stream.remove(&(addr, index));
        }
        for key in client.timers.into_iter().flatten() {
            self.wheel.cancel(key);
        }
    }
}

fn invite_input(cause: &Cause) -> Option<ict::Input> {
    Some(match cause {
        Cause::Response(message) => match message.status()? {
            ..200 => ict::Input::Provisional,
            200..300 => ict::Input::Success,
            300.. => ict::Input::Failure,
        },
        Cause::Timer(ClientTimer::Invite(timer)) => ict::Input::Timer(*timer),
        Cause::Timer(ClientTimer::NonInvite(_)) => return None,
        Cause::SendFailed(_) => ict::Input::TransportError,
        Cause::Disconnected => ict::Input::Disconnected,
        Cause::CancelSent => ict::Input::CancelSent,
    })
}

fn non_invite_input(cause: &Cause) -> Option<nict::Input> {
    Some(match cause {
        Cause::Response(message) => match message.status()? {
            ..200 => nict::Input::Provisional,
            200.. => nict::Input::Final,
        },
        Cause::Timer(ClientTimer::NonInvite(timer)) => nict::Input::Timer(*timer),
        Cause::Timer(ClientTimer::Invite(_)) | Cause::CancelSent => return None,
        Cause::SendFailed(_) | Cause::Disconnected => nict::Input::TransportError,
    })
}
