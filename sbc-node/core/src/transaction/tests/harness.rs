//! One layer on a virtual clock; everything it does becomes a line of a ladder.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::core::{Destination, Output, SendError, SendToken};
use crate::ids::{Ids, ShardHint};
use crate::net::{ConnId, Flow, InterfaceId, Target, Transport};
use crate::sip::{self, Limits, Message, Method};
use crate::transaction::*;

/// `INVITE sip:…`, `SIP/2.0 200 …` in one or two words.
pub(super) fn label(data: &[u8]) -> String {
    let text = String::from_utf8_lossy(data);
    let mut words = text.split_whitespace();
    match words.next() {
        Some("SIP/2.0") => words.next().unwrap_or("?").to_owned(),
        Some(method) => method.to_owned(),
        None => "?".to_owned(),
    }
}

pub(super) fn parse(data: &[u8]) -> Message {
    sip::parse(Bytes::copy_from_slice(data), &Limits::default()).expect("well-formed test message")
}

pub(super) fn peer() -> SocketAddr {
    "192.0.2.20:5060".parse().expect("address")
}

pub(super) fn flow(transport: Transport) -> Flow {
    Flow {
        interface: InterfaceId(1),
        transport,
        local: "192.0.2.1:5060".parse().expect("address"),
        remote: peer(),
        conn: transport.is_reliable().then_some(ConnId(1)),
    }
}

/// The policy that large requests leave by TCP.
pub(super) fn by_tcp() -> Large {
    Large::Tcp { sent_by: "192.0.2.1:5070".into() }
}

pub(super) struct Bench {
    pub(super) layer: TransactionLayer,
    t0: Instant,
    now: Instant,
    transport: Transport,
    /// `milliseconds what`, `->` for sent messages, `!` for events.
    ladder: Vec<String>,
    /// Everything sent, in order.
    pub(super) sent: Vec<(Destination, Bytes)>,
    pub(super) tokens: Vec<Option<SendToken>>,
    pub(super) events: Vec<Event>,
}

impl Bench {
    pub(super) fn new(transport: Transport) -> Self {
        Self::with(transport, Config::default())
    }

    pub(super) fn with(transport: Transport, config: Config) -> Self {
        let t0 = Instant::now();
        let layer = TransactionLayer::new(config, Ids::from_seed(1), t0);
        Bench {
            layer,
            t0,
            now: t0,
            transport,
            ladder: vec![],
            sent: vec![],
            tokens: vec![],
            events: vec![],
        }
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// Sends a request with a body of `body` bytes; yields the transaction.
    pub(super) fn request(&mut self, method: Method, body: usize, large: Large) -> ClientId {
        self.request_within(method, body, large, None)
    }

    pub(super) fn request_within(
        &mut self,
        method: Method,
        body: usize,
        large: Large,
        timeout: Option<Duration>,
    ) -> ClientId {
        let branch = self.layer.ids().branch(ShardHint(7));
        let transport = self.transport.via_token();
        let data = format!(
            "{method} sip:bob@192.0.2.20 SIP/2.0\r\nVia: SIP/2.0/{transport} 192.0.2.1;branch={branch}\r\n\
             Max-Forwards: 70\r\nRoute: <sip:192.0.2.20;lr>\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:bob@c>\r\n\
             Call-ID: c1\r\nCSeq: 5 {method}\r\nContent-Length: {body}\r\n\r\n{:body$}",
            ""
        );
        let target = Target::new(self.transport, peer());
        let request = ClientRequest {
            owner: Owner(42),
            branch,
            method,
            dest: Destination::Target { interface: InterfaceId(1), target },
            data: Bytes::from(data),
            timeout,
            large,
        };
        let id = self.layer.send_request(self.now, request).expect("room");
        self.drain();
        id
    }

    /// A response to the `nth` message sent comes in.
    pub(super) fn answer(&mut self, nth: usize, status: u16) {
        let request = parse(&self.sent[nth].1);
        let data = sip::response(&request, status, "", Some("peer"), Some(peer())).finish();
        self.receive(&data);
    }

    pub(super) fn receive(&mut self, data: &[u8]) {
        let flow = flow(self.transport);
        self.layer.handle_message(self.now, flow, parse(data));
        self.drain();
    }

    /// The TU answers a server transaction.
    pub(super) fn respond(
        &mut self,
        request: &Message,
        id: ServerId,
        status: u16,
    ) -> Result<(), RespondError> {
        let data = sip::response(request, status, "", Some("ours"), Some(peer())).finish();
        let result = self.layer.respond(self.now, id, status, data);
        self.drain();
        result
    }

    pub(super) fn fail_send(&mut self, nth: usize, error: SendError) {
        let token = self.tokens[nth].expect("transaction's message");
        assert!(self.layer.handle_send_failed(self.now, token, error));
        self.drain();
    }

    pub(super) fn close(&mut self, flow: &Flow) {
        self.layer.handle_conn_closed(self.now, flow);
        self.drain();
    }

    pub(super) fn cancel(&mut self, id: ClientId, reason: Option<&str>) {
        self.layer.cancel(self.now, id, reason);
        self.drain();
    }

    /// Moves the clock to `ms` after the start, stopping at every deadline on the way.
    pub(super) fn run_to(&mut self, ms: u64) {
        let end = self.t0 + Duration::from_millis(ms);
        while let Some(at) = self.layer.deadline().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.layer.handle_tick(self.now);
            self.drain();
        }
        self.now = end;
    }

    /// Runs until no timer is left, and asserts that nothing else is.
    pub(super) fn run_dry(&mut self) {
        while let Some(at) = self.layer.deadline() {
            self.now = self.now.max(at);
            self.layer.handle_tick(self.now);
            self.drain();
        }
        assert!(self.layer.is_idle(), "{:?}", self.layer.stats());
    }

    /// The ladder since the last call.
    pub(super) fn ladder(&mut self) -> Vec<String> {
        std::mem::take(&mut self.ladder)
    }

    /// The last [`Event::Request`].
    pub(super) fn incoming(&self) -> (ServerId, Message) {
        let found = self.events.iter().rev().find_map(|event| match event {
            Event::Request { id, message, .. } => Some((*id, message.clone())),
            _ => None,
        });
        found.expect("a request came")
    }

    fn drain(&mut self) {
        let at = (self.now - self.t0).as_millis();
        while let Some(output) = self.layer.poll_output() {
            let Output::Transmit { dest, data, token } = output else {
                panic!("only transmissions")
            };
            self.ladder.push(format!("{at} -> {}", label(&data)));
            self.sent.push((dest, data));
            self.tokens.push(token);
        }
        while let Some(event) = self.layer.poll_event() {
            self.ladder.push(format!("{at} ! {}", event_label(&event)));
            self.events.push(event);
        }
    }
}

fn event_label(event: &Event) -> String {
    match event {
        Event::Request { message, merged, .. } => {
            format!("request {}{}", label(message.as_bytes()), if *merged { " merged" } else { "" })
        }
        Event::Ack { .. } => "ack".into(),
        Event::Cancelled { .. } => "cancelled".into(),
        Event::Response { message, owner, .. } => {
            assert_eq!(*owner, Owner(42));
            format!("response {}", label(message.as_bytes()))
        }
        Event::StrayOk { .. } => "stray ok".into(),
        Event::ClientTimeout { .. } => "client timeout".into(),
        Event::ClientTransportError { error, .. } => format!("client error {error:?}"),
        Event::ServerTimeout { .. } => "server timeout".into(),
        Event::ServerTransportError { error, .. } => format!("server error {error:?}"),
    }
}
