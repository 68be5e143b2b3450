//! A trunk: one neighbour on one interface, with everything a call needs to know of it.
//!
//! Selection among trunks lives in `group.rs`; the state of the peers in `health.rs`.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cidr::Cidr;
use crate::core::ResolveQuery;
use crate::media::Latch;
use crate::net::{InterfaceId, Transport};

use super::admission::{CallLimits, Gate, Share, Use};
use super::health::{Health, PeerHealth, ProbePolicy};
use super::number::Translation;
use super::policy::{CodecPolicy, Credential, FailoverPolicy, HeaderPolicy, SessionTimerPolicy};
use super::registration::{RegisterConfig, Registration};

/// Names a trunk for the life of the process: the same name keeps its id across reloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrunkId(pub u32);

/// One address that requests to the trunk go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Address literal without brackets, or a domain name for RFC 3263.
    pub host: Arc<str>,
    /// `None` lets RFC 3263 find SRV records (for names) or the default port (for literals).
    pub port: Option<u16>,
    /// `None` lets RFC 3263 choose.
    pub transport: Option<Transport>,
}

impl Peer {
    /// The address when the host is a literal.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// What to ask the resolver; literals resolve at once there.
    pub fn resolve_query(&self, interface: InterfaceId) -> ResolveQuery {
        ResolveQuery {
            host: self.host.to_string(),
            port: self.port,
            transport: self.transport,
            sips: false,
            interface,
        }
    }
}

/// Where requests of the trunk come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    pub net: Cidr,
    /// Only requests by this transport; `None` for all.
    pub transport: Option<Transport>,
    /// Only requests from this source port; `None` for all. Tells trunks at one address apart.
    pub port: Option<u16>,
}

/// Everything configured of a trunk.
#[derive(Clone, Debug)]
pub struct TrunkConfig {
    pub name: Arc<str>,
    pub interface: InterfaceId,
    /// OPTIONS for a user is routed like a call instead of answered by us.
    pub route_options: bool,
    /// NOTIFY without a subscription is routed like a MESSAGE (MWI of old PBXs).
    pub unsolicited_notify: bool,
    /// Realm of the interface, for route matches.
    pub realm: Arc<str>,
    /// May be empty: a trunk that only sends to us.
    pub peers: Vec<Peer>,
    /// The phones of the registrar: calls go to where a user is registered. Its one peer is the
    /// domain served, and is never resolved.
    pub users: bool,
    /// Empty: the addresses of the peers, of names those that [`super::Routing::learn`] tells.
    pub sources: Vec<Source>,
    /// Configured state; `sbcctl trunks disable` changes the running one.
    pub enabled: bool,
    pub probe: Option<ProbePolicy>,
    pub limits: CallLimits,
    /// Host of R-URI and To in requests to the trunk; `None` for the peer's host.
    pub domain: Option<Arc<str>>,
    /// Host of From and identity headers in requests to the trunk; `None` for our advertised one.
    pub from_domain: Option<Arc<str>>,
    /// Inside the trust domain (RFC 3325): identity, Diversion and History-Info headers are
    /// believed when they come from it and sent to it; otherwise they are neither.
    pub trusted: bool,
    pub codecs: CodecPolicy,
    pub translate_in: Vec<Translation>,
    pub translate_out: Vec<Translation>,
    pub latch: Latch,
    /// Requests inside a dialog go to where its last request came from, not to its Contact: the
    /// peer is behind NAT.
    pub symmetric: bool,
    /// Whether the trunk's media uses IPv6; `None` follows its SDP or its signalling address.
    pub media_ipv6: Option<bool>,
    /// REFER from the trunk is passed on; 403 otherwise.
    pub refer: bool,
    /// Reliable provisional responses (RFC 3262) are offered to the trunk.
    pub rel100: bool,
    pub headers: HeaderPolicy,
    /// Answers to 401/407 challenges, each for its realm only.
    pub credentials: Vec<Credential>,
    /// Challenges of the trunk that we cannot answer go on to our phones, and their credentials to it,
    /// but for those of this realm, which is our own. `None`: challenges become 403.
    pub pass_challenges: Option<Arc<str>>,
    /// Where the trunk wants us to register.
    pub register: Vec<RegisterConfig>,
    pub failover: FailoverPolicy,
    pub session_timer: SessionTimerPolicy,
    /// A call longer than this gets a BYE on both sides.
    pub max_duration: Option<Duration>,
    /// An INVITE to the trunk that rings longer than this gets CANCEL and fails over or ends.
    pub ring_timeout: Option<Duration>,
}

impl TrunkConfig {
    /// A trunk with the defaults of `docs/configuration.md`.
    pub fn new(name: &str, interface: InterfaceId) -> TrunkConfig {
        TrunkConfig {
            name: name.into(),
            interface,
            realm: "".into(),
            peers: Vec::new(),
            users: false,
            sources: Vec::new(),
            enabled: true,
            probe: None,
            limits: CallLimits::default(),
            domain: None,
            from_domain: None,
            trusted: false,
            codecs: CodecPolicy::default(),
            translate_in: Vec::new(),
            translate_out: Vec::new(),
            latch: Latch::Auto,
            symmetric: false,
            media_ipv6: None,
            refer: true,
            route_options: false,
            unsolicited_notify: false,
            rel100: true,
            headers: HeaderPolicy::default(),
            credentials: Vec::new(),
            pass_challenges: None,
            register: Vec::new(),
            failover: FailoverPolicy::default(),
            session_timer: SessionTimerPolicy::default(),
            max_duration: None,
            ring_timeout: None,
        }
    }
}

/// A trunk of the running table. A call holds its `Arc` for life, so that a reload never changes
/// the rules of a call in progress.
#[derive(Debug)]
pub struct Trunk {
    pub id: TrunkId,
    pub config: TrunkConfig,
    pub(super) state: Arc<TrunkState>,
    /// Health per peer, in the order of `config.peers`; kept across reloads by peer address.
    pub(super) health: Vec<Arc<Health>>,
    /// In the order of `config.register`; kept across reloads by address of record.
    pub(super) registrations: Vec<Arc<Registration>>,
}

/// What survives a reload of the trunk of that name.
#[derive(Debug)]
pub(super) struct TrunkState {
    pub(super) enabled: AtomicBool,
    pub(super) gate: Gate,
}

/// A trunk as `sbcctl trunks list` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrunkStatus {
    pub name: Arc<str>,
    pub enabled: bool,
    pub calls: u32,
    pub max_calls: Option<u32>,
    /// Peers with their state, in the configured order.
    pub peers: Vec<(Peer, PeerHealth)>,
}

impl Trunk {
    /// Whether the addresses behind the name of that peer are sources of the trunk.
    pub(super) fn learns(&self, peer: usize) -> bool {
        self.config.sources.is_empty()
            && self.config.peers.get(peer).is_some_and(|p| p.ip().is_none())
    }

    pub(super) fn health_of(&self, peer: &Peer) -> Option<Arc<Health>> {
        let at = self.config.peers.iter().position(|p| p == peer)?;
        self.health.get(at).cloned()
    }

    /// The registrations with their state, in the configured order.
    pub fn registrations(&self) -> impl Iterator<Item = (&RegisterConfig, &Arc<Registration>)> {
        self.config.register.iter().zip(&self.registrations)
    }

    /// What is known of the registration of an address of record.
    pub fn registration(&self, aor: &str) -> Option<&Arc<Registration>> {
        self.registrations().find(|(config, _)| *config.aor == *aor).map(|(_, state)| state)
    }

    pub fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    pub fn is_enabled(&self) -> bool {
        self.state.enabled.load(Ordering::Relaxed)
    }

    /// Enables or disables new calls in both directions; calls in progress go on.
    pub fn set_enabled(&self, enabled: bool) {
        self.state.enabled.store(enabled, Ordering::Relaxed);
    }

    /// Calls up or in set-up, both directions.
    pub fn calls(&self) -> u32 {
        self.state.gate.calls()
    }

    /// How much of the trunk's limits is used on this node.
    pub fn used(&self) -> Use {
        self.state.gate.used()
    }

    /// What this node may use of the trunk's limits; `None` where no other node shares them.
    pub fn share(&self) -> Option<Share> {
        self.state.gate.share()
    }

    /// Sets what this node may use of the trunk's limits.
    pub fn set_share(&self, share: Share) {
        self.state.gate.set_share(share);
    }

    /// The health of a peer; `None` past the end.
    pub fn peer_health(&self, peer: usize) -> Option<&Health> {
        self.health.get(peer).map(Arc::as_ref)
    }

    /// Whether a new call may be sent to some peer now.
    pub fn is_up(&self) -> bool {
        self.is_enabled() && self.health.iter().any(|h| h.state() != PeerHealth::Down)
    }

    pub fn status(&self) -> TrunkStatus {
        TrunkStatus {
            name: self.config.name.clone(),
            enabled: self.is_enabled(),
            calls: self.calls(),
            max_calls: self.config.limits.max_calls,
            peers: self
                .config
                .peers
                .iter()
                .cloned()
                .zip(self.health.iter().map(|h| h.state()))
                .collect(),
        }
    }
}
