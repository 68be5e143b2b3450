//! Where a call comes from and where it goes: trunks, groups, routes, admission, health.
//!
//! [`Table`] is the compiled configuration: immutable, built once per reload, shared by all
//! shards. What changes at run time (calls, rates, health, enabled) sits in atomics that a new
//! table takes over from the old one by trunk name. [`Routing`] is one shard's view of it, with
//! its own random generator. Files, sockets, probing and SIP messages never live here: the caller
//! passes user parts and hosts and writes what comes back.

mod admission;
mod callers;
mod group;
mod health;
mod number;
mod policy;
mod prefix;
mod registration;
mod route;
mod source;
mod table;
mod trunk;
mod users;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::StdRng;
use smallvec::SmallVec;

use crate::net::{Flow, InterfaceId};

pub use admission::{CallLimits, Permit, Share, Use};
pub use callers::{Caller, CallerLimit, CallerStatus, CallsBy, NamedLimit, OverCalls};
pub use group::{GroupConfig, Member, Strategy};
pub use health::{HealthChange, PeerHealth, ProbePolicy};
pub use number::{Field, Numbers, Translation};
pub use policy::{
    CodecPolicy, Credential, FailoverPolicy, HeaderPolicy, Secret, SessionTimerMode,
    SessionTimerPolicy,
};
pub use prefix::{
    MAX_PREFIX_LEN, PrefixEntry, PrefixError, PrefixErrorReason, PrefixTable, PrefixTarget,
};
pub use registration::{RegisterConfig, Registration, RegistrationState, RegistrationStatus};
pub use route::{RouteConfig, RouteMatch, RouteTarget, UserMatch};
pub use table::{
    AdmissionConfig, BuildError, BuildErrorKind, Item, RoutingConfig, Table, UnknownSource,
};
pub use trunk::{Peer, Source, Trunk, TrunkConfig, TrunkId, TrunkStatus};
pub use users::{Room, Stand, UserGates, UserPlace};

/// What a new request brings to routing. User parts are as they stand in the URI (escapes kept),
/// without password and user parameters; hosts are without port.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteQuery<'a> {
    pub ruri_user: &'a str,
    pub ruri_host: &'a str,
    pub from_user: &'a str,
    pub from_host: &'a str,
    pub to_user: &'a str,
    pub to_host: &'a str,
    /// User part of the first P-Asserted-Identity, if any (RFC 3325).
    pub pai_user: Option<&'a str>,
    /// The message itself says that it is an emergency (Resource-Priority `esnet`, RFC 4412 and
    /// RFC 7135; or `urn:service:sos`); emergency numbers are found without this.
    pub emergency: bool,
}

/// Where a call may go, best first. Never empty.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the route that matched.
    pub route: Arc<str>,
    /// Hops to try in turn; each is one peer of one trunk.
    pub targets: SmallVec<[Hop; 4]>,
    /// Passes every limit (RFC 4412, configured emergency numbers).
    pub emergency: bool,
    /// The group's own count and limits; a group without limits has them too.
    gate: Arc<admission::Gate>,
    group_limits: CallLimits,
}

/// One place to try.
#[derive(Clone, Debug)]
pub struct Hop {
    pub trunk: Arc<Trunk>,
    /// Index into the trunk's peers.
    pub peer: usize,
    /// User parts for the outgoing request, translated for this trunk.
    pub numbers: Numbers,
}

impl Hop {
    pub fn peer(&self) -> &Peer {
        &self.trunk.config.peers[self.peer]
    }
}

/// A call that is refused, and how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status} {reason}")]
pub struct Reject {
    /// SIP status code.
    pub status: u16,
    /// Reason phrase; says what, never names a trunk or address.
    pub reason: &'static str,
    /// Seconds for Retry-After.
    pub retry_after_s: Option<u32>,
    /// Answer nothing at all (policy for unknown sources).
    pub silent: bool,
    pub cause: RejectCause,
}

/// Why routing refused; the label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RejectCause {
    UnknownSource,
    TrunkDisabled,
    NoRoute,
    /// A route blocks on purpose.
    Blocked,
    /// Every trunk of the target is down, disabled or full.
    NoTrunk,
    MaxCalls,
    MaxCps,
}

/// One shard's view of the routing table.
pub struct Routing {
    table: Arc<Table>,
    rng: StdRng,
    /// Addresses that the edge resolved for peers given by name.
    learnt: source::Learnt,
}

impl Routing {
    pub fn new(table: Arc<Table>, seed: u64) -> Routing {
        Routing { table, rng: StdRng::seed_from_u64(seed), learnt: source::Learnt::default() }
    }

    /// Takes a new table. Calls in progress keep their permits and trunk policies; counters and
    /// health went over by trunk name when the table was built from the old one.
    pub fn reload(&mut self, table: Arc<Table>) {
        self.learnt.retain(|id, peer| table.trunk(id).is_some_and(|t| t.learns(peer)));
        self.table = table;
    }

    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The trunk that a message on `flow` comes from: longest matching source network on that
    /// interface, then addresses learnt from names. `None` for strangers.
    pub fn identify(&self, flow: &Flow) -> Option<&Arc<Trunk>> {
        let id = self
            .table
            .identify(flow)
            .or_else(|| self.learnt.get(flow.interface, flow.remote.ip()))?;
        self.table.trunk(id)
    }

    /// Whether an address is the trunk's own: one of its sources, literal peers, or what the name of
    /// a peer resolved to.
    pub fn is_address_of(&self, trunk: &Trunk, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        let peer = trunk.config.peers.iter().any(|p| p.ip() == Some(addr));
        let source = trunk.config.sources.iter().any(|s| s.net.contains(addr));
        peer || source || self.learnt.get(trunk.config.interface, addr) == Some(trunk.id)
    }

    /// The answer for a stranger, by policy: 403 or silence.
    pub fn unknown_source(&self) -> Reject {
        self.table.unknown_source()
    }

    /// Tells which addresses a peer given by name resolved to; replaces what was known of it.
    /// Ignored where the trunk has sources of its own or the peer is an address.
    pub fn learn(&mut self, trunk: &Trunk, peer: usize, addrs: &[IpAddr]) {
        if trunk.learns(peer) {
            self.learnt.set(trunk.config.interface, trunk.id, peer, addrs);
        }
    }

    /// Finds the hops for a request from `source`.
    ///
    /// Inbound translation, then the routes in order, then per hop strip, prefix and outbound
    /// translation. Trunks that are down, disabled or full are skipped.
    pub fn route(
        &mut self,
        now: Instant,
        source: &Trunk,
        query: &RouteQuery<'_>,
    ) -> Result<Plan, Reject> {
        self.table.route(now, source, query, &mut self.rng)
    }

    /// A plan for a call that another node routed and whose target it is trying now: that target
    /// alone, and after it what `route` yields here but for the trunks that `tried` names.
    pub fn route_on(
        &mut self,
        now: Instant,
        source: &Trunk,
        query: &RouteQuery<'_>,
        current: &Arc<Trunk>,
        tried: &[&str],
    ) -> Plan {
        self.table.route_on(now, source, query, current, tried, &mut self.rng)
    }

    /// Counts a call of a trunk that was admitted on another node; never refuses.
    pub fn carry_on(&self, now: Instant, trunk: &Trunk) -> Option<Permit> {
        self.table.carry_on(now, trunk)
    }

    /// Admits a call on its incoming side: the trunk's limits and the node's. The permit counts
    /// the call until it is dropped.
    pub fn admit(&self, now: Instant, source: &Trunk, emergency: bool) -> Result<Permit, Reject> {
        self.table.admit(now, source, emergency)
    }

    /// Admits a call by who calls and by the number that is called. The permit counts the call until it is dropped; `force` refuses nothing.
    pub fn admit_caller(
        &self,
        now: Instant,
        by: &Caller<'_>,
        number: &str,
        force: bool,
    ) -> Result<Permit, Reject> {
        self.table.admit_caller(now, by, number, force)
    }

    /// What must be asked for ([`Output::AskRoom`](crate::core::Output::AskRoom)) before a call of that user is
    /// admitted; `None` where nothing is.
    pub fn lacks(&self, now: Instant, user: &str) -> Option<UserPlace> {
        self.table.lacks(now, user)
    }

    /// Admits an attempt towards a hop: the trunk's and the group's limits. Hold the permit as long
    /// as the leg lives. An error means: try the next hop.
    pub fn admit_hop(&self, now: Instant, plan: &Plan, hop: &Hop) -> Result<Permit, Reject> {
        self.table.admit_hop(now, plan, hop)
    }
}

/// Names an interface together with the addresses learnt on it.
type InterfaceAddr = (InterfaceId, IpAddr);

#[cfg(test)]
mod tests;
