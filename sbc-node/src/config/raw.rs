//! The file as it is written: one strict serde form, nothing converted.
//!
//! Every key is documented in `docs/configuration.md`; a test holds the two together. Defaults that
//! depend on nothing else live here, the others where they are converted.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use toml::Spanned;

pub(super) use super::raw_guard::{
    Access, Admission, Algorithm, CallsBy, FraudAction, FraudProfile, Guard, OverLimit, Overload,
    PikeMode, RateKey, RateLimit, UnknownCountry,
};
use super::value::{
    Advertise, Listen, Net, OneOrMany, Pattern, PeerText, Ports, SourceText, Span, SpanOrOff,
    Transport_,
};

/// Where one value stands for a list of one.
pub(super) const LISTS: [&str; 28] = [
    "interface.listen",
    "stun.listen",
    "interface.advertise",
    "interface.media.address",
    "interface.proxy-protocol",
    "trunk.tls-names",
    "interface.media.advertise",
    "trunk.peers",
    "trunk.sources",
    "route.source",
    "route.realm",
    "route.ruri",
    "route.from",
    "route.to",
    "route.domain",
    "route.from-domain",
    "guard.ban-lists",
    "guard.access.sources",
    "guard.access.transports",
    "guard.access.methods",
    "guard.limit.methods",
    "guard.fraud.prefixes",
    "interface.allow-countries",
    "interface.deny-countries",
    "trunk.allow-countries",
    "trunk.deny-countries",
    "admission.limit.users",
    "admission.limit.prefixes",
];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) node: Node,
    pub(super) interface: Vec<Spanned<Interface>>,
    pub(super) media: Media,
    pub(super) sip: Sip,
    pub(super) calls: Calls,
    pub(super) transport: Transport,
    pub(super) stun: Option<Spanned<super::stun::Stun>>,
    pub(super) dns: Dns,
    pub(super) trunk: Vec<Spanned<Trunk>>,
    pub(super) registrar: Option<Spanned<super::registrar::Registrar>>,
    pub(super) user: Vec<Spanned<super::registrar::UserText>>,
    pub(super) group: Vec<Spanned<Group>>,
    pub(super) route: Vec<Spanned<Route>>,
    pub(super) admission: Admission,
    pub(super) guard: Guard,
    pub(super) overload: Overload,
    pub(super) cdr: Cdr,
    pub(super) log: Log,
    pub(super) metrics: Metrics,
    pub(super) trace: Option<Spanned<Trace>>,
    pub(super) hep: Option<Spanned<Hep>>,
    pub(super) admin: Admin,
    pub(super) cluster: Option<Spanned<Cluster>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Node {
    pub(super) name: Option<String>,
    pub(super) shards: Option<Spanned<usize>>,
    pub(super) drain_time: Option<Span>,
    pub(super) user_agent: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Interface {
    pub(super) name: Spanned<String>,
    pub(super) realm: Option<String>,
    pub(super) listen: OneOrMany<Spanned<Listen>>,
    #[serde(default)]
    pub(super) advertise: OneOrMany<Spanned<Advertise>>,
    pub(super) media: Option<Spanned<InterfaceMedia>>,
    #[serde(default)]
    pub(super) large_requests: LargeRequests,
    pub(super) tls: Option<Spanned<super::secure::Tls>>,
    pub(super) websocket: Option<Spanned<super::secure::WebSocket>>,
    #[serde(default)]
    pub(super) proxy_protocol: OneOrMany<Net>,
    #[serde(default)]
    pub(super) allow_countries: OneOrMany<Spanned<String>>,
    #[serde(default)]
    pub(super) deny_countries: OneOrMany<Spanned<String>>,
}

/// How requests above the UDP limit leave (RFC 3261 §18.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum LargeRequests {
    /// By TCP where the interface listens there, and by UDP where the peer does not take it.
    #[default]
    Tcp,
    /// In IP fragments.
    Udp,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct InterfaceMedia {
    pub(super) ports: Spanned<Ports>,
    #[serde(default)]
    pub(super) address: OneOrMany<Spanned<std::net::IpAddr>>,
    #[serde(default)]
    pub(super) advertise: OneOrMany<Spanned<std::net::IpAddr>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Media {
    pub(super) relay_threads: Option<Spanned<usize>>,
    pub(super) max_sessions: Option<Spanned<usize>>,
    pub(super) quarantine: Option<Span>,
    pub(super) coalesce: Option<Spanned<Span>>,
    pub(super) kernel: Kernel,
    pub(super) kernel_devices: Vec<Spanned<String>>,
    pub(super) kernel_flows_max: Option<Spanned<u32>>,
    pub(super) allow_local: bool,
    pub(super) deny: Vec<Net>,
    pub(super) dscp_audio: Option<Spanned<u8>>,
    pub(super) dscp_video: Option<Spanned<u8>>,
    pub(super) dscp_other: Option<Spanned<u8>>,
    pub(super) learning_packets: Option<Spanned<u8>>,
    pub(super) learning_grace: Option<Span>,
    pub(super) learning_window: Option<Span>,
}

/// Whether streams move into the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kernel {
    /// The fastest way that the kernel lets us use; userspace otherwise.
    #[default]
    Auto,
    /// By a TC program or in userspace.
    Ebpf,
    /// By nftables or in userspace.
    Nftables,
    /// Never.
    Off,
    /// The node does not start without.
    Required,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Sip {
    pub(super) unknown_source: UnknownSource,
    pub(super) t1: Option<Spanned<Span>>,
    pub(super) t2: Option<Spanned<Span>>,
    pub(super) t4: Option<Spanned<Span>>,
    pub(super) timer_b: Option<Spanned<Span>>,
    pub(super) timer_f: Option<Spanned<Span>>,
    pub(super) max_transactions: Option<Spanned<usize>>,
    pub(super) max_head_bytes: Option<Spanned<usize>>,
    pub(super) max_headers: Option<Spanned<usize>>,
    pub(super) max_body_bytes: Option<Spanned<usize>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum UnknownSource {
    #[default]
    Reject,
    Silent,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Calls {
    pub(super) max_duration: Option<SpanOrOff>,
    pub(super) ring_timeout: Option<Span>,
    pub(super) media_timeout: Option<SpanOrOff>,
    pub(super) anchor_media: Option<bool>,
    pub(super) max_attempts: Option<Spanned<usize>>,
    pub(super) retry_after: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Transport {
    pub(super) udp_buffer_bytes: Option<Spanned<usize>>,
    pub(super) udp_queue: Option<Spanned<usize>>,
    pub(super) dscp: Option<Spanned<u8>>,
    pub(super) connect_timeout: Option<Span>,
    pub(super) idle_timeout: Option<Span>,
    pub(super) half_message_timeout: Option<Span>,
    pub(super) handshake_timeout: Option<Spanned<Span>>,
    pub(super) lifetime: Option<SpanOrOff>,
    pub(super) websocket_ping: Option<SpanOrOff>,
    pub(super) tcp_keepalive: Option<SpanOrOff>,
    pub(super) stun_per_second: Option<u32>,
    pub(super) max_connections: Option<Spanned<usize>>,
    pub(super) max_connections_per_source: Option<Spanned<usize>>,
    pub(super) first_message_timeout: Option<SpanOrOff>,
    pub(super) max_handshakes_per_source: Option<Spanned<usize>>,
    pub(super) unfinished_bytes: Option<Spanned<usize>>,
    pub(super) write_queue_bytes: Option<Spanned<usize>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Dns {
    pub(super) servers: Vec<std::net::SocketAddr>,
    pub(super) timeout: Option<Span>,
    pub(super) attempts: Option<Spanned<usize>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Trunk {
    pub(super) name: Spanned<String>,
    pub(super) interface: Spanned<String>,
    #[serde(default)]
    pub(super) peers: OneOrMany<Spanned<PeerText>>,
    #[serde(default)]
    pub(super) sources: OneOrMany<Spanned<SourceText>>,
    pub(super) transport: Option<Transport_>,
    #[serde(default)]
    pub(super) tls_names: OneOrMany<Spanned<String>>,
    #[serde(default = "yes")]
    pub(super) enabled: bool,
    #[serde(default)]
    pub(super) probe: ProbeSwitch,
    #[serde(default)]
    pub(super) allow_countries: OneOrMany<Spanned<String>>,
    #[serde(default)]
    pub(super) deny_countries: OneOrMany<Spanned<String>>,
    pub(super) max_calls: Option<u32>,
    pub(super) max_cps: Option<Spanned<f64>>,
    pub(super) domain: Option<String>,
    pub(super) from_domain: Option<String>,
    #[serde(default)]
    pub(super) trusted: bool,
    #[serde(default)]
    pub(super) codecs: Codecs,
    #[serde(default)]
    pub(super) translate_in: Vec<Translate>,
    #[serde(default)]
    pub(super) translate_out: Vec<Translate>,
    #[serde(default)]
    pub(super) latch: Latch,
    #[serde(default)]
    pub(super) symmetric: bool,
    #[serde(default)]
    pub(super) pass_challenges: Option<Spanned<bool>>,
    #[serde(default)]
    pub(super) media_family: MediaFamily,
    #[serde(default = "yes")]
    pub(super) refer: bool,
    #[serde(default)]
    pub(super) route_options: bool,
    #[serde(default)]
    pub(super) unsolicited_notify: bool,
    #[serde(default = "yes")]
    pub(super) rel100: bool,
    #[serde(default)]
    pub(super) headers: Headers,
    #[serde(default)]
    pub(super) credentials: Vec<Credential>,
    #[serde(default)]
    pub(super) register: Vec<Spanned<Register>>,
    #[serde(default)]
    pub(super) failover: Failover,
    #[serde(default)]
    pub(super) session_timer: SessionTimer,
    pub(super) max_duration: Option<Span>,
    pub(super) ring_timeout: Option<Span>,
}

fn yes() -> bool {
    true
}

/// `true` for the defaults, a table, or `false`.
#[derive(Debug, Default)]
pub(super) struct ProbeSwitch(pub(super) Option<Probe>);

impl<'de> Deserialize<'de> for ProbeSwitch {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Switch;
        impl<'de> Visitor<'de> for Switch {
            type Value = ProbeSwitch;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("true, false or a table")
            }

            fn visit_bool<E>(self, on: bool) -> Result<ProbeSwitch, E> {
                Ok(ProbeSwitch(on.then(Probe::default)))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ProbeSwitch, A::Error> {
                Probe::deserialize(MapAccessDeserializer::new(map)).map(|p| ProbeSwitch(Some(p)))
            }
        }
        d.deserialize_any(Switch)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Probe {
    pub(super) interval: Span,
    pub(super) timeout: Span,
    pub(super) up_after: u32,
    pub(super) down_after: u32,
}

impl Default for Probe {
    fn default() -> Probe {
        let p = sbc_core::routing::ProbePolicy::default();
        Probe {
            interval: Span(p.interval),
            timeout: Span(p.timeout),
            up_after: p.up_after,
            down_after: p.down_after,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Codecs {
    pub(super) allow: Vec<Box<str>>,
    pub(super) deny: Vec<Box<str>>,
    pub(super) prefer: Vec<Box<str>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Translate {
    #[serde(default)]
    pub(super) fields: Vec<Field>,
    #[serde(rename = "match")]
    pub(super) pattern: Pattern,
    pub(super) replace: Spanned<Box<str>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Field {
    Ruri,
    From,
    To,
    Pai,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Latch {
    Off,
    #[default]
    Auto,
    Force,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum MediaFamily {
    #[default]
    Auto,
    Ipv4,
    Ipv6,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Headers {
    pub(super) accept: Vec<Spanned<Box<str>>>,
    pub(super) pass: Vec<Spanned<Box<str>>>,
    pub(super) set: BTreeMap<Box<str>, Spanned<Box<str>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Register {
    pub(super) aor: String,
    pub(super) registrar: Option<String>,
    pub(super) expires: Option<Spanned<Span>>,
    pub(super) contact_user: Option<String>,
    #[serde(default, rename = "match")]
    pub(super) matching: RegisterMatch,
    pub(super) retry: Option<Spanned<Span>>,
    pub(super) retry_max: Option<Spanned<Span>>,
}

/// By what requests of a trunk that we have registered with are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RegisterMatch {
    #[default]
    Source,
    Contact,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Credential {
    pub(super) realm: Spanned<String>,
    pub(super) username: String,
    pub(super) password: Option<String>,
    pub(super) password_file: Option<Spanned<PathBuf>>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("realm", &self.realm).finish_non_exhaustive()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Failover {
    pub(super) codes: Option<Vec<Spanned<u16>>>,
    pub(super) no_answer: Option<SpanOrOff>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct SessionTimer {
    pub(super) mode: Option<SessionTimerMode>,
    pub(super) expires: Option<Spanned<Span>>,
    pub(super) min_se: Option<Spanned<Span>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum SessionTimerMode {
    Off,
    Accept,
    Require,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Group {
    pub(super) name: Spanned<String>,
    pub(super) trunks: Vec<Spanned<String>>,
    /// One per trunk: makes the group weighted.
    pub(super) weights: Option<Spanned<Vec<u32>>>,
    pub(super) max_calls: Option<u32>,
    pub(super) max_cps: Option<Spanned<f64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Route {
    pub(super) name: Option<Spanned<String>>,
    pub(super) source: OneOrMany<Spanned<String>>,
    pub(super) realm: OneOrMany<Spanned<String>>,
    pub(super) ruri: OneOrMany<Box<str>>,
    pub(super) ruri_regex: Option<Spanned<Pattern>>,
    pub(super) from: OneOrMany<Box<str>>,
    pub(super) from_regex: Option<Spanned<Pattern>>,
    pub(super) to: OneOrMany<Box<str>>,
    pub(super) to_regex: Option<Spanned<Pattern>>,
    pub(super) domain: OneOrMany<Box<str>>,
    pub(super) from_domain: OneOrMany<Box<str>>,
    pub(super) target: Option<Spanned<String>>,
    pub(super) prefixes: Option<Spanned<PathBuf>>,
    pub(super) reject: Option<Spanned<u16>>,
    pub(super) strip: usize,
    pub(super) prepend: Box<str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Cdr {
    pub(super) file: Option<PathBuf>,
    pub(super) rotate_bytes: Option<Spanned<u64>>,
    pub(super) rotate_every: Option<Span>,
    pub(super) keep: Option<Spanned<usize>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Log {
    pub(super) level: Option<Spanned<String>>,
    pub(super) format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    #[default]
    Pretty,
    Json,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Metrics {
    pub(super) listen: Option<Spanned<std::net::SocketAddr>>,
}

/// Spans by OTLP/gRPC.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Trace {
    pub(super) endpoint: Spanned<String>,
    pub(super) ca: Option<Spanned<PathBuf>>,
    pub(super) sample: Option<Spanned<f64>>,
}

/// How HEP packets travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HepTransport {
    #[default]
    Udp,
    Tcp,
}

/// SIP messages by HEP version 3.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Hep {
    pub(super) collector: Spanned<PeerText>,
    #[serde(default)]
    pub(super) transport: HepTransport,
    pub(super) sample: Option<Spanned<f64>>,
    #[serde(default = "one")]
    pub(super) capture_id: u32,
    pub(super) key_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Admin {
    pub(super) socket: Option<PathBuf>,
    pub(super) listen: Option<Spanned<std::net::SocketAddr>>,
    pub(super) tls: Option<Tls>,
}

/// Files of a mutual TLS endpoint, PEM.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Tls {
    pub(super) ca: Spanned<PathBuf>,
    pub(super) certificate: Spanned<PathBuf>,
    pub(super) key: Spanned<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Cluster {
    pub(super) data: PathBuf,
    pub(super) listen: Option<Spanned<std::net::SocketAddr>>,
    pub(super) advertise: Option<Spanned<PeerText>>,
    pub(super) join: Option<Spanned<Join>>,
    pub(super) register: Option<Etcd>,
    pub(super) heartbeat: Option<Spanned<Span>>,
    pub(super) election: Option<Spanned<Span>>,
    pub(super) lease: Option<Spanned<Span>>,
    pub(super) handover: Option<Spanned<Span>>,
    pub(super) commit_wait: Option<Span>,
    #[serde(default)]
    pub(super) on_quorum_loss: OnQuorumLoss,
    pub(super) failover: Option<Spanned<FailoverMode>>,
    pub(super) early_dialogs: Option<Spanned<bool>>,
    pub(super) reinvite_rate: Option<Spanned<u32>>,
    #[serde(default)]
    pub(super) address: Vec<Spanned<FloatingAddress>>,
}

/// How a node without data finds the cluster that it shall join.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Join {
    pub(super) token: Option<String>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) key_file: Option<Spanned<PathBuf>>,
    pub(super) begin: Option<Spanned<usize>>,
    pub(super) within: Option<Spanned<Span>>,
    #[serde(default)]
    pub(super) seeds: OneOrMany<Spanned<PeerText>>,
    pub(super) dns: Option<Spanned<PeerText>>,
    pub(super) etcd: Option<Etcd>,
}

impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join").field("seeds", &self.seeds).finish_non_exhaustive()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Etcd {
    pub(super) endpoints: Vec<String>,
    pub(super) prefix: String,
}

/// An address that goes to a survivor when its holder dies.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct FloatingAddress {
    pub(super) address: std::net::IpAddr,
    pub(super) device: String,
    #[serde(default = "one")]
    pub(super) group: u32,
}

fn one() -> u32 {
    1
}

/// What new calls get while there is no majority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnQuorumLoss {
    /// They are served, counted as unprotected.
    #[default]
    Serve,
    /// 503.
    Reject,
}

/// How traffic follows calls to another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailoverMode {
    #[default]
    None,
    /// The survivor takes the addresses over.
    Address,
    /// The survivor re-INVITEs both legs from its own addresses.
    Reinvite,
}
