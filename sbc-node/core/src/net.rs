//! Names of places on the network as the core sees them: interfaces, transports, flows, targets.
//!
//! Sockets never live here; a [`Flow`] is only a value that the edge knows how to send on.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::text;

/// Index of an interface in the running configuration. Stable across reloads for the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceId(pub u16);

/// SIP transports (RFC 3261 §18, RFC 7118). TLS and WebSocket have their place from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    Udp,
    Tcp,
    Tls,
    Ws,
    Wss,
}

impl Transport {
    /// Whether the transport carries a byte stream and delivers reliably (timers E, G, A are off).
    pub fn is_reliable(self) -> bool {
        !matches!(self, Transport::Udp)
    }

    /// Whether it is TLS, or WebSocket in TLS.
    pub fn is_secure(self) -> bool {
        matches!(self, Transport::Tls | Transport::Wss)
    }

    /// The token of a Via `sent-protocol` (RFC 3261 §20.42, RFC 7118 §5).
    pub fn via_token(self) -> &'static str {
        match self {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
            Transport::Ws => "WS",
            Transport::Wss => "WSS",
        }
    }

    /// Value of the `transport` URI parameter (RFC 3261 §19.1.1); `None` where it is the default.
    pub fn uri_param(self) -> Option<&'static str> {
        match self {
            Transport::Udp => None,
            Transport::Tcp => Some("tcp"),
            Transport::Tls => Some("tls"),
            Transport::Ws | Transport::Wss => Some("ws"),
        }
    }

    /// 5060 or, for TLS, 5061 (RFC 3261 §19.1.2); 80 and 443 for WebSocket (RFC 7118).
    pub fn default_port(self) -> u16 {
        match self {
            Transport::Udp | Transport::Tcp => 5060,
            Transport::Tls => 5061,
            Transport::Ws => 80,
            Transport::Wss => 443,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
            Transport::Ws => "ws",
            Transport::Wss => "wss",
        })
    }
}

/// One connection of a stream transport; never reused during the life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// The way a message came, and the way its response goes back (RFC 3581, RFC 5626).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    pub interface: InterfaceId,
    pub transport: Transport,
    /// The address that we listen on (never the advertised one).
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// The connection for stream transports; `None` for UDP.
    pub conn: Option<ConnId>,
}

/// The domain that a target was resolved from, as the edge numbers them; what the certificate of a
/// secured connection must show (RFC 5922 §7). 0 is none: the address itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DomainId(pub u32);

/// Where a new request shall go: one element of what RFC 3263 resolution yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub transport: Transport,
    pub addr: SocketAddr,
    /// Set by the edge for secured transports alone; carried along unread.
    pub domain: DomainId,
}

impl Target {
    /// A target that no name stands behind.
    pub fn new(transport: Transport, addr: SocketAddr) -> Target {
        Target { transport, addr, domain: DomainId::default() }
    }
}

/// Host of an advertised address: what Via, Contact and SDP say about us.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    Ip(IpAddr),
    Name(Arc<str>),
}

impl fmt::Display for Host {
    /// As in a URI: IPv6 in brackets (RFC 3261 §25.1 `IPv6reference`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}"),
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Host::Name(name) => f.write_str(name),
        }
    }
}

impl Host {
    /// Appends what `Display` shows.
    pub(crate) fn push_to(&self, out: &mut String) {
        match self {
            Host::Ip(ip @ IpAddr::V4(_)) => text::push_ip(out, *ip),
            Host::Ip(ip @ IpAddr::V6(_)) => {
                out.push('[');
                text::push_ip(out, *ip);
                out.push(']');
            }
            Host::Name(name) => out.push_str(name),
        }
    }
}

/// A socket that the edge listens on, and what we say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub transport: Transport,
    pub local: SocketAddr,
    pub advertise_host: Host,
    pub advertise_port: u16,
    /// No longer configured: it is open for the calls that began by it.
    pub retired: bool,
}

/// One signalling interface: a realm's door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub id: InterfaceId,
    pub name: Arc<str>,
    pub realm: Arc<str>,
    pub listeners: Vec<Listener>,
    /// Whether the interface carries media (has a `media` section).
    pub media: bool,
    /// Requests too large for UDP leave by TCP where the interface listens there (RFC 3261 §18.1.1);
    /// otherwise they go in IP fragments.
    pub large_by_tcp: bool,
}

impl Interface {
    /// The listener to send by: same transport and address family as `target`. Those that are
    /// retired come last.
    pub fn listener_for(&self, target: &Target) -> Option<&Listener> {
        self.listeners
            .iter()
            .find(|l| l.transport == target.transport && l.local.is_ipv4() == target.addr.is_ipv4())
    }
}
