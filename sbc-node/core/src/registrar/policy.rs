//! What the registrar is configured with; values only.

use std::sync::Arc;
use std::time::Duration;

use super::gruu::GruuKey;
use super::remote::RemotePolicy;
use super::upstream::UpstreamPolicy;
use crate::digest::{Algorithm, NonceKey};
use crate::sip::Method;

/// What happens when an address of record has all the contacts it may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// 403.
    Reject,
    /// The binding that was refreshed longest ago goes.
    #[default]
    ReplaceOldest,
}

/// How bindings behind NAT are kept reachable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeepaliveKind {
    /// An OPTIONS, whose answer tells that the phone is alive.
    #[default]
    Options,
    /// A double CRLF (RFC 5626 §3.5.1); keeps the way open and learns nothing.
    Crlf,
    /// A STUN binding request (RFC 5626 §3.5.2) from the SIP port; every binding response tells that
    /// the phone is alive.
    Stun,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    pub kind: KeepaliveKind,
    pub interval: Duration,
    /// Gaps up to this are tried where phones answer, per public address; `None`: always `interval`.
    pub longest: Option<Duration>,
    /// Keepalives in a row without an answer after which a binding is dropped; 0 never drops.
    pub misses: u8,
}

impl Default for Keepalive {
    fn default() -> Self {
        Keepalive {
            kind: KeepaliveKind::Options,
            interval: Duration::from_secs(30),
            longest: None,
            misses: 3,
        }
    }
}

/// Digest authentication of users. No `Debug`: it holds the nonces' key.
#[derive(Clone)]
pub struct AuthPolicy {
    pub realm: String,
    /// Offered in this order (RFC 8760 §2.3).
    pub algorithms: Vec<Algorithm>,
    pub nonce_ttl: Duration,
    /// Methods that are let in without; all others are challenged, unknown ones too.
    pub open: Vec<Method>,
    /// Users whom another system knows, beside ours.
    pub remote: Option<RemotePolicy>,
    /// Shared by all nodes that shall accept each other's nonces.
    pub key: NonceKey,
}

/// Everything but the users. No `Debug`: it holds the nonces' key.
#[derive(Clone)]
pub struct RegistrarPolicy {
    /// Domains served, in lower case.
    pub domains: Vec<Box<str>>,
    /// Seconds: shorter ones get 423 (RFC 3261 §10.3 step 7), 0 apart.
    pub expires_min: u32,
    /// Seconds granted to who asks for nothing.
    pub expires_default: u32,
    /// Seconds; longer wishes are cut.
    pub expires_max: u32,
    pub contacts_max: usize,
    pub overflow: Overflow,
    /// Bindings of one shard; past it new ones get 503.
    pub bindings_max: usize,
    /// Values of Service-Route in every 200 (RFC 3608).
    pub service_route: Vec<Box<str>>,
    /// `None` trusts who can reach the interface.
    pub auth: Option<AuthPolicy>,
    /// Domains whose registrar stands behind us; the first that fits counts.
    pub upstream: Vec<Arc<UpstreamPolicy>>,
    pub keepalive: Option<Keepalive>,
    /// Of temporary GRUUs; shared by all nodes, like that of the nonces.
    pub gruu_key: GruuKey,
    /// Contacts of equal q are called at the same time, not one after the other.
    pub parallel: bool,
    /// How far beyond now a replicated binding reaches at least, so that short refreshes are not
    /// each a write.
    pub store_ahead: Duration,
    /// A node by itself has nobody to write its bindings for.
    pub replicated: bool,
}

impl Default for RegistrarPolicy {
    fn default() -> Self {
        RegistrarPolicy {
            domains: Vec::new(),
            expires_min: 60,
            expires_default: 3_600,
            expires_max: 7_200,
            contacts_max: 10,
            overflow: Overflow::default(),
            bindings_max: 1_000_000,
            service_route: Vec::new(),
            auth: None,
            upstream: Vec::new(),
            keepalive: Some(Keepalive::default()),
            gruu_key: GruuKey::default(),
            parallel: true,
            store_ahead: Duration::from_secs(600),
            replicated: true,
        }
    }
}

impl RegistrarPolicy {
    /// The core registrar of a domain; `None` where this one is it.
    pub fn upstream_of(&self, host: &str) -> Option<Arc<UpstreamPolicy>> {
        let of = |u: &&Arc<UpstreamPolicy>| {
            u.domains.is_empty() || u.domains.iter().any(|d| d.eq_ignore_ascii_case(host))
        };
        self.upstream.iter().find(of).filter(|_| self.serves(host)).cloned()
    }

    /// Whether a host is one of the domains served.
    pub fn serves(&self, host: &str) -> bool {
        self.domains.iter().any(|d| d.eq_ignore_ascii_case(host))
    }
}
