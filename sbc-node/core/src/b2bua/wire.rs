//! How our own messages begin: Via, Max-Forwards, From, To, Call-ID, CSeq, Contact, Route, and
//! what of the peer's messages is remembered. What crosses from the other leg is `hide.rs`.

use std::net::SocketAddr;

use super::call::{Hop, Leg, Peer, method_bit};
use super::env::Cx;
use crate::core::{Destination, ResolveQuery};
use crate::dialog::{Dialog, Refresher, SessionExpires};
use crate::ids::{Branch, ShardHint};
use crate::net::{Flow, Host, InterfaceId, Listener, Target, Transport};
use crate::routing::TrunkConfig;
use crate::sip::value::FromValue;
use crate::sip::{
    Builder, CSeq, HeaderName, Message, Method, NameAddr, Out, Params, UriRef, WriteValue,
};

/// Methods that we take part in, for Allow.
pub(crate) const ALLOW: &str = "INVITE, ACK, CANCEL, BYE, OPTIONS, PRACK, UPDATE, INFO, MESSAGE, \
                                REFER, NOTIFY, SUBSCRIBE, PUBLISH";

/// Hops that a request of ours may take when none was given (RFC 3261 §8.1.1.6).
pub(crate) const MAX_FORWARDS: u8 = 70;

/// `<sip:host:port;transport=…>`: our Contact on a listener; `sips:` where the dialog is secure.
pub(crate) struct Contact<'a>(pub(crate) &'a Listener, pub(crate) bool);

impl WriteValue for Contact<'_> {
    fn write_value(&self, out: &mut Out<'_>) {
        let Contact(listener, secure) = self;
        let scheme = if *secure { "<sips:" } else { "<sip:" };
        (scheme, &listener.advertise_host, ":", listener.advertise_port).write_value(out);
        // RFC 3261 §26.2.2: sips says TLS, transport=tls is deprecated.
        let said = listener.transport.uri_param();
        if let Some(transport) = said.filter(|_| !secure || listener.transport != Transport::Tls) {
            (";transport=", transport).write_value(out);
        }
        ">".write_value(out);
    }
}

struct ViaOf<'a> {
    listener: &'a Listener,
    branch: Branch,
}

impl WriteValue for ViaOf<'_> {
    fn write_value(&self, out: &mut Out<'_>) {
        let l = self.listener;
        ("SIP/2.0/", l.transport.via_token(), " ", &l.advertise_host, ":", l.advertise_port)
            .write_value(out);
        (";branch=", &*self.branch.token(), ";rport").write_value(out);
    }
}

/// What we call ourselves in identity headers towards a trunk.
pub(crate) fn named_host(cx: &Cx<'_>, hop: &Hop, to: &TrunkConfig) -> Option<Host> {
    match &to.from_domain {
        Some(domain) => Some(Host::Name(domain.clone())),
        None => cx.listener(hop).map(|l| l.advertise_host.clone()),
    }
}

/// Where requests by this hop go.
pub(crate) fn destination(hop: &Hop) -> Destination {
    match hop.flow {
        Some(flow) if flow.conn.is_some() => Destination::Flow(flow),
        Some(_) | None => Destination::Target { interface: hop.interface, target: hop.target },
    }
}

/// Writes what every request of ours on a leg begins with, up to and including Contact where the
/// method wants one. `None` when the leg's interface cannot reach its target.
pub(crate) fn begin_request(
    cx: &mut Cx<'_>,
    hint: ShardHint,
    dialog: &Dialog,
    hop: &Hop,
    method: &Method,
    seq: u32,
    max_forwards: u8,
) -> Option<(Builder, Branch)> {
    let branch = cx.ids().branch(hint);
    let listener = cx.listener(hop)?;
    let path = dialog.path();
    let mut out = Builder::request(method, path.request_uri);
    out.header(HeaderName::Via, ViaOf { listener, branch });
    for route in path.routes {
        out.header(HeaderName::Route, &**route);
    }
    if let Some(last) = path.last_route {
        out.header(HeaderName::Route, ("<", last, ">"));
    }
    out.header(HeaderName::MaxForwards, max_forwards)
        .header(HeaderName::From, (&*dialog.local, ";tag=", &*dialog.local_tag));
    if dialog.remote_tag.is_empty() {
        out.header(HeaderName::To, &*dialog.remote);
    } else {
        out.header(HeaderName::To, (&*dialog.remote, ";tag=", &*dialog.remote_tag));
    }
    out.header(HeaderName::CallId, &*dialog.call_id)
        .header(HeaderName::CSeq, CSeq { number: seq, method: method.as_str() });
    if has_contact(method) {
        out.header(HeaderName::Contact, Contact(listener, dialog.secure));
    }
    let product = &cx.env.config.product;
    if !product.is_empty() {
        out.header(HeaderName::UserAgent, &**product);
    }
    Some((out, branch))
}

/// Whether requests of this method refresh or make a remote target (RFC 3261 table 2 and the RFCs
/// of the extensions).
pub(crate) fn has_contact(method: &Method) -> bool {
    matches!(
        method,
        Method::Invite | Method::Update | Method::Subscribe | Method::Notify | Method::Refer
    )
}

/// Reads what a peer says it can do; keeps what is known where the message does not say.
pub(crate) fn read_peer(message: &Message, peer: &mut Peer) {
    if message.has(HeaderName::Allow) {
        peer.allow = message
            .values(HeaderName::Allow)
            .map(|m| method_bit(&Method::new(m)))
            .fold(0, |all, bit| all | bit);
    }
    let says = |tag: &str| {
        message.lists(HeaderName::Supported, tag) || message.lists(HeaderName::Require, tag)
    };
    let (rel100, timer, replaces) = (says("100rel"), says("timer"), says("replaces"));
    if message.is_request() || message.has(HeaderName::Supported) {
        *peer = Peer { allow: peer.allow, rel100, timer, replaces };
    }
}

/// Takes the peer's Contact as remote target (RFC 3261 §12.2.1.2). Says whether it changed.
pub(crate) fn refresh_target(message: &Message, leg: &mut Leg) -> bool {
    let Ok(Some(contact)) = message.contact() else { return false };
    if contact.uri().is_err() || *contact.uri_str == *leg.dialog.target {
        return false;
    }
    leg.dialog.target = contact.uri_str.into();
    true
}

/// Route set of a message: Record-Route in order for a UAS, reversed for a UAC (§12.1).
pub(crate) fn route_set(message: &Message, reversed: bool) -> Vec<Box<str>> {
    let mut routes: Vec<Box<str>> = message
        .values(HeaderName::RecordRoute)
        .take(MAX_ROUTES)
        .filter(|v| NameAddr::from_value(v).is_ok_and(|r| r.uri().is_ok()))
        .map(Into::into)
        .collect();
    if reversed {
        routes.reverse();
    }
    routes
}

/// Longer route sets are cut: no sane path has more hops.
const MAX_ROUTES: usize = 24;

/// What the next hop's URI says about where to send.
pub(crate) enum NextHop {
    Address(Target),
    Name(ResolveQuery),
    /// No SIP URI, or a transport that we do not speak: stay with what worked.
    Unusable,
}

/// Reads the next hop of a dialog (RFC 3263 for literals: no lookup).
pub(crate) fn next_hop(dialog: &Dialog, hop: &Hop) -> NextHop {
    next_hop_of(dialog.next_hop(), hop.interface, hop.target.transport, dialog.secure)
}

/// Reads a next hop's URI for a peer that is reached by `now` so far. What is `secure`, or a `sips:` URI,
/// is reached over TLS alone (RFC 3261 §26.2.2).
pub(crate) fn next_hop_of(
    uri: &str,
    interface: InterfaceId,
    now: Transport,
    secure: bool,
) -> NextHop {
    let Ok(uri) = UriRef::parse(uri) else { return NextHop::Unusable };
    if !uri.is_sip() {
        return NextHop::Unusable;
    }
    let transport = match uri.params().get("transport") {
        None => None,
        Some(t) => match transport_of(t) {
            Some(t) => Some(t),
            None => return NextHop::Unusable,
        },
    };
    let secure = secure || uri.scheme() == crate::sip::Scheme::Sips;
    let transport = match (secure, transport) {
        (true, Some(Transport::Udp)) => return NextHop::Unusable,
        (true, Some(Transport::Tcp | Transport::Tls)) => Some(Transport::Tls),
        (true, Some(Transport::Ws | Transport::Wss)) => Some(Transport::Wss),
        (true, None) | (false, _) => transport,
    };
    // maddr says where to send, whoever is named (RFC 3263 §4).
    let host = uri.params().get("maddr").unwrap_or(uri.host());
    match crate::sip::value::parse_ip(host) {
        Some(ip) => {
            let transport = transport.unwrap_or(match now {
                // RFC 3263 §4.1: a literal without transport means UDP, but a peer that is known to
                // be on a secured or WebSocket connection is never downgraded.
                Transport::Wss => Transport::Wss,
                _ if secure => Transport::Tls,
                Transport::Tcp | Transport::Udp => Transport::Udp,
                other => other,
            });
            let port = uri.port().unwrap_or(transport.default_port());
            NextHop::Address(Target::new(transport, SocketAddr::new(ip, port)))
        }
        None => NextHop::Name(ResolveQuery {
            host: host.to_owned(),
            port: uri.port(),
            transport,
            sips: secure,
            interface,
        }),
    }
}

/// Points a leg's requests at its next hop where that is an address; yields what to resolve where
/// it is a name. Peers behind NAT are reached where they sent from, whatever they say, and a next
/// hop that the interface cannot reach is not believed.
pub(crate) fn follow_target(cx: &Cx<'_>, leg: &mut Leg) -> Option<ResolveQuery> {
    if leg.trunk.config.symmetric {
        return None;
    }
    match next_hop(&leg.dialog, &leg.hop) {
        NextHop::Address(target) => {
            let hop = Hop { target, flow: None, ..leg.hop };
            let same = leg
                .hop
                .flow
                .is_some_and(|f| f.remote == target.addr && f.transport == target.transport);
            if !same && cx.listener(&hop).is_some() {
                leg.hop = hop;
            }
            None
        }
        NextHop::Name(query) => Some(query),
        NextHop::Unusable => None,
    }
}

fn transport_of(token: &str) -> Option<Transport> {
    let is = |t: &str| token.eq_ignore_ascii_case(t);
    match () {
        () if is("udp") => Some(Transport::Udp),
        () if is("tcp") => Some(Transport::Tcp),
        () if is("tls") => Some(Transport::Tls),
        () if is("ws") => Some(Transport::Ws),
        () if is("wss") => Some(Transport::Wss),
        () => None,
    }
}

/// The hop by which a peer is reached that just sent us something on `flow`.
pub(crate) fn hop_of_flow(flow: &Flow) -> Hop {
    Hop {
        interface: flow.interface,
        target: Target::new(flow.transport, flow.remote),
        flow: Some(*flow),
        lost: None,
    }
}

/// `Session-Expires` of a message (RFC 4028 §4).
pub(crate) fn session_expires(message: &Message) -> Option<SessionExpires> {
    let value = message.header(HeaderName::SessionExpires)?;
    let (seconds, params) = match value.find(';') {
        Some(at) => value.split_at(at),
        None => (value, ""),
    };
    Some(SessionExpires {
        seconds: seconds.trim().parse().ok()?,
        refresher: Params(params).get("refresher").and_then(Refresher::from_token),
    })
}

/// The URI of a name as a dialog keeps it: a From or To, maybe with a display name.
pub(crate) fn uri_of(name: &str) -> &str {
    NameAddr::from_value(name).map_or(name, |name| name.uri_str)
}
