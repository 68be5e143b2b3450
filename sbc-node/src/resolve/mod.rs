//! RFC 3263: from the host of a URI to an ordered list of targets.
//!
//! `plan.rs` orders what the DNS said (pure), `front.rs` is the cache inside each shard (sans-IO),
//! `dns.rs` asks the servers on the runtime of the slow side. A shard never waits: a literal
//! address or a cached name is answered on the spot, anything else comes back as a command.

pub mod dns;
pub mod front;
pub mod plan;

use std::sync::Arc;
use std::time::Duration;

use sbc_core::core::ResolveError;
use sbc_core::net::{Interface, Transport};

use plan::Plan;

/// Transports and address families that an interface can leave by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Usable(u16);

impl Usable {
    /// What the listeners of `interface` allow.
    pub fn of(interface: &Interface) -> Usable {
        interface.listeners.iter().fold(Usable(0), |usable, listener| {
            usable.with(listener.transport, listener.local.is_ipv4())
        })
    }

    #[must_use]
    pub fn with(self, transport: Transport, ipv4: bool) -> Usable {
        Usable(self.0 | Self::bit(transport, ipv4))
    }

    pub fn has(self, transport: Transport, ipv4: bool) -> bool {
        self.0 & Self::bit(transport, ipv4) != 0
    }

    pub fn has_transport(self, transport: Transport) -> bool {
        self.has(transport, true) || self.has(transport, false)
    }

    fn bit(transport: Transport, ipv4: bool) -> u16 {
        let transport = match transport {
            Transport::Udp => 0,
            Transport::Tcp => 1,
            Transport::Tls => 2,
            Transport::Ws => 3,
            Transport::Wss => 4,
        };
        1 << (transport * 2 + u16::from(ipv4))
    }
}

/// What is asked of the DNS; queries that are equal share one answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Lower case.
    pub host: Arc<str>,
    pub port: Option<u16>,
    pub transport: Option<Transport>,
    pub sips: bool,
    pub usable: Usable,
}

/// What the DNS said, and for how long that holds.
#[derive(Clone, Debug)]
pub struct Answer {
    pub key: Key,
    pub result: Result<Plan, ResolveError>,
    pub ttl: Duration,
}

/// A lookup that a shard started.
#[derive(Clone, Debug)]
pub struct Request {
    pub shard: usize,
    pub key: Key,
}
