//! The configuration file: one strict TOML form, converted once into component configs.
//!
//! ```text
//! text ─ parse.rs ─▶ raw.rs (as written) ─ convert.rs, interface.rs, trunk.rs, route.rs ─▶ Config
//! ```
//!
//! Every problem of a file is reported together, with its line. A component is given only its own
//! part of [`Config`], in its own types. Applying a configuration never happens here.

mod convert;
mod diff;
mod guard;
mod interface;
mod lookup;
mod parse;
mod place;
mod raw;
mod raw_guard;
mod registrar;
mod route;
mod secure;
mod stun;
mod trunk;
mod value;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sbc_core::digest::NonceKey;
use sbc_core::ids::HintKey;
use sbc_core::registrar::GruuKey;
use sbc_core::routing::{BuildError, Table};

pub use crate::telemetry::tap::Share;
pub use diff::{Change, diff};
pub use parse::Problem;
pub use raw::{FailoverMode, HepTransport, Kernel, LogFormat, OnQuorumLoss};

/// A whole, checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub node: NodeConfig,
    /// Value of our `Server` and `User-Agent` headers.
    pub product: Arc<str>,
    /// Signalling interfaces, by name; ids are those of the running node where it has the name.
    pub interfaces: Vec<sbc_core::net::Interface>,
    /// TLS, load balancers and web origins of the interfaces; built anew by each load, so that
    /// renewed certificates are taken.
    pub doors: hashbrown::HashMap<sbc_core::net::InterfaceId, Arc<crate::transport::door::Door>>,
    pub calls: sbc_core::b2bua::CallPolicy,
    /// Trunks, groups, routes, admission; already known to build.
    pub routing: sbc_core::routing::RoutingConfig,
    pub guard: sbc_core::guard::GuardConfig,
    pub ban_set: BanSetConfig,
    pub overload: sbc_core::guard::OverloadConfig,
    /// Timers and bounds of the transaction layer.
    pub transactions: sbc_core::transaction::Config,
    /// `None`: nobody registers here.
    pub registrar: Option<sbc_core::core::RegistrarConfig>,
    /// Where its users come from.
    pub users: Option<crate::users::Source>,
    /// A database of more users, or servers that judge them.
    pub lookup: Option<crate::users::lookup::LookupConfig>,
    /// Limits of the SIP parser.
    pub sip_limits: sbc_core::sip::Limits,
    pub media: media_anchor::config::Config,
    pub kernel: Kernel,
    /// Devices that the kernel way looks at besides those that the media addresses are on.
    pub kernel_devices: Vec<String>,
    /// Flows in the kernel at most: one direction of one stream component each.
    pub kernel_flows_max: u32,
    pub transport: TransportConfig,
    /// A STUN server on ports of its own; `None` for none.
    pub stun: Option<crate::transport::stun_server::StunConfig>,
    pub dns: DnsConfig,
    pub cdr: Option<CdrConfig>,
    pub log: LogConfig,
    /// Where Prometheus scrapes; `None` for nowhere.
    pub metrics: Option<SocketAddr>,
    /// `None`: no traces.
    pub trace: Option<TraceConfig>,
    /// `None`: no HEP.
    pub hep: Option<HepConfig>,
    pub admin: AdminConfig,
    /// `None` for a node on its own.
    pub cluster: Option<ClusterConfig>,
    /// The file with variables filled in and without secrets, for `config show` and [`diff`].
    pub document: toml::Table,
}

impl Config {
    /// The part of every shard's core, without the guard, which is the node's one, and with a routing table that takes counters, health and ids
    /// over from the running one. The routing was checked; building it again does not fail.
    pub fn core(
        &self,
        running: Option<&Table>,
        keys: &Keys,
        now: Instant,
    ) -> Result<sbc_core::core::Config, Vec<BuildError>> {
        Ok(sbc_core::core::Config {
            product: self.product.clone(),
            interfaces: self.interfaces.clone(),
            calls: self.calls.clone(),
            routing: Arc::new(Table::build(self.routing.clone(), running, now)?),
            transactions: self.transactions,
            limits: self.sip_limits,
            hint_key: keys.hint,
            node: keys.node,
            guard: None,
            overload: None,
            registrar: self.registrar.clone().map(|registrar| keys.given_to(registrar)),
        })
    }
}

/// Where bans go, and lists of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BanSetConfig {
    /// Use the kernel's drop set where it can be had.
    pub kernel: bool,
    /// Devices to drop at; all when empty.
    pub devices: Vec<String>,
    pub lists: Vec<BanList>,
}

/// A file of bans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BanList {
    /// The file's name without its folder: who banned.
    pub name: String,
    pub bans: Vec<sbc_core::cidr::Cidr>,
}

/// What nodes of a cluster must have in common to read each other's identifiers. No `Debug`.
#[derive(Clone)]
pub struct Keys {
    /// Of shard hints: the owner of a call or user is found by the message alone, on any node.
    pub hint: HintKey,
    /// This node's number; `None` on a node by itself.
    pub node: Option<u16>,
    /// Of digest nonces: what one node challenged, another verifies.
    pub nonce: NonceKey,
}

impl Keys {
    /// Of a node by itself: drawn once per process.
    pub fn drawn() -> Keys {
        Keys { hint: HintKey::new(rand::random()), nonce: NonceKey(rand::random()), node: None }
    }

    /// A registrar as the shards have it.
    pub fn given_to(
        &self,
        mut registrar: sbc_core::core::RegistrarConfig,
    ) -> sbc_core::core::RegistrarConfig {
        let mut policy = (*registrar.policy).clone();
        if let Some(auth) = &mut policy.auth {
            auth.key = self.nonce.clone();
        }
        policy.replicated = self.node.is_some();
        policy.gruu_key = GruuKey(NonceKey::derive(&[&self.nonce.0[..], b"gruu"].concat()).0);
        registrar.policy = Arc::new(policy);
        registrar
    }
}

/// `[node]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    pub name: Arc<str>,
    /// Signalling shards; never 0.
    pub shards: usize,
    /// How long calls may go on after SIGTERM.
    pub drain_time: Duration,
}

/// `[transport]`: sockets of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportConfig {
    pub udp_buffer_bytes: usize,
    /// Datagrams that may wait for a full socket.
    pub udp_queue: usize,
    /// Code point of signalling.
    pub dscp: u8,
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
    /// A message that began must be whole within this time.
    pub half_message_timeout: Duration,
    /// For a TLS or WebSocket handshake to be done.
    pub handshake_timeout: Duration,
    /// Greatest age of a connection; `None` for any.
    pub lifetime: Option<Duration>,
    /// Silence after which a WebSocket is asked whether it is there.
    pub websocket_ping: Option<Duration>,
    /// The same for the kernel and TCP.
    pub tcp_keepalive: Option<Duration>,
    /// STUN answers of one shard.
    pub stun_per_second: u32,
    pub max_connections: usize,
    pub max_connections_per_source: usize,
    /// Handshakes of TLS under way for one remote address.
    pub max_handshakes_per_source: usize,
    /// A connection that was accepted must bring a whole message within this time.
    pub first_message_timeout: Option<Duration>,
    /// Bytes of unfinished messages on all connections of the node.
    pub unfinished_bytes: usize,
    pub write_queue_bytes: usize,
    /// Largest message on a stream: head and body limits of `[sip]` together.
    pub message_bytes_max: usize,
}

/// `[dns]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// Empty for those of `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
    pub timeout: Duration,
    pub attempts: usize,
}

/// `[cdr]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CdrConfig {
    pub file: PathBuf,
    pub rotate_bytes: u64,
    pub rotate_every: Option<Duration>,
    /// Rotated files that are kept.
    pub keep: usize,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A `tracing` filter: `info`, or `info,sbc_core::b2bua=debug`.
    pub level: String,
    pub format: LogFormat,
}

/// `[trace]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceConfig {
    /// `http://HOST:PORT` or `https://HOST:PORT` of a collector that takes OTLP/gRPC.
    pub endpoint: String,
    /// Who signs the collector's certificate, PEM; `None` without TLS.
    pub ca: Option<PathBuf>,
    pub share: Share,
}

/// `[hep]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HepConfig {
    /// `HOST:PORT`.
    pub collector: String,
    pub transport: HepTransport,
    pub share: Share,
    pub capture_id: u32,
    pub key_file: Option<PathBuf>,
}

/// `[admin]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    pub socket: PathBuf,
    /// A TCP endpoint with mutual TLS beside the socket.
    pub remote: Option<(SocketAddr, TlsFiles)>,
}

/// Files of a mutual TLS endpoint, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// `[cluster]`.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Directory of the log, the snapshots and the certificates.
    pub data: PathBuf,
    /// `None` for a cluster of one, which opens no socket.
    pub listen: Option<SocketAddr>,
    /// `host:port` that the others reach us by, where it is not the listening address.
    pub advertise: Option<String>,
    /// Where a node without data comes from; a new cluster begins when absent.
    pub join: Option<JoinConfig>,
    /// Where to register, for those who join and for members that come back elsewhere; etcd only.
    pub register: Option<sbc_cluster::Discovery>,
    /// `propose` is how long a 2xx may wait for its dialog to be committed.
    pub timing: sbc_cluster::Timing,
    pub on_quorum_loss: OnQuorumLoss,
    pub failover: FailoverMode,
    pub early_dialogs: bool,
    /// Calls re-INVITEd per second after a takeover without addresses.
    pub reinvite_rate: u32,
    pub addresses: Vec<FloatingConfig>,
}

/// `[cluster.join]`.
#[derive(Clone, Debug)]
pub struct JoinConfig {
    pub token: JoinToken,
    pub seeds: sbc_cluster::Discovery,
    /// How many nodes without data must be there for a new cluster to begin; goes with a key.
    pub begin: Option<usize>,
    /// How long to go on asking.
    pub within: Duration,
}

/// Where the join token is; a file is read when it is needed.
#[derive(Clone, Debug)]
pub enum JoinToken {
    Text(sbc_core::routing::Secret),
    File(PathBuf),
    /// No token but the join key that all nodes share.
    Key(sbc_core::routing::Secret),
}

/// `[[cluster.address]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FloatingConfig {
    pub address: std::net::IpAddr,
    pub device: String,
    /// Addresses of one group move together.
    pub group: u32,
}

/// What a conversion may know of its surroundings.
pub struct Surroundings<'a> {
    /// Relative paths start here: the directory of the file.
    pub base: &'a Path,
    /// Environment variables.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    pub hostname: &'a str,
    /// Cores of the machine.
    pub cores: usize,
    /// Names of the interfaces of the running node by their ids, also of those that it had.
    pub interfaces: &'a [Arc<str>],
}

/// Reads and checks a file: what `sbc-node check` and a reload do. All problems or a [`Config`].
pub fn load(path: &Path) -> Result<Config, Vec<Problem>> {
    load_known(path, &[])
}

/// As [`load`], for a node that runs with interfaces of these names.
pub fn load_known(path: &Path, interfaces: &[Arc<str>]) -> Result<Config, Vec<Problem>> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        vec![Problem { line: 0, message: format!("cannot read {}: {e}", path.display()) }]
    })?;
    check_known(&text, path.parent().unwrap_or(Path::new(".")), interfaces)
}

/// Checks a text as if it were a file in `base`.
pub fn check(text: &str, base: &Path) -> Result<Config, Vec<Problem>> {
    check_known(text, base, &[])
}

fn check_known(text: &str, base: &Path, interfaces: &[Arc<str>]) -> Result<Config, Vec<Problem>> {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname");
    check_in(
        text,
        &Surroundings {
            base,
            env: &|name| std::env::var(name).ok(),
            hostname: hostname.as_deref().map_or("sbc", str::trim),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            interfaces,
        },
    )
}

/// Checks a text; nothing but files below it is read from outside `surroundings`.
pub fn check_in(text: &str, surroundings: &Surroundings<'_>) -> Result<Config, Vec<Problem>> {
    convert::convert(text, surroundings)
}

#[cfg(test)]
mod tests;
