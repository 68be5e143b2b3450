//! What a node is told to be. The defaults make a cluster of one that opens no socket.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use crate::channel::key::JoinKey;

/// A node of the cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where log, snapshots and certificates are kept; made when absent.
    pub dir: PathBuf,
    /// The node's name: unique in the cluster and kept over a lost disk (host name, ordinal).
    pub name: String,
    /// How to come into being when `dir` holds no node yet.
    pub origin: Origin,
    /// Where the peer channel listens; `None` for a cluster of one.
    pub listen: Option<SocketAddr>,
    /// `host:port` by which peers reach it; the listening address when absent.
    pub advertise: Option<String>,
    /// The secret by which nodes let each other in, where there is one; see `channel/key.rs`.
    pub key: Option<JoinKey>,
    /// Where to register for those who want to join; only [`Discovery::Etcd`] has such a place.
    pub register: Option<Discovery>,
    /// The version that others see.
    pub software: String,
    pub timing: Timing,
    /// How long a joiner keeps asking: its former self must first be declared down.
    pub join_within: Duration,
    pub limits: Limits,
    /// The highest format version of commands and snapshots that the node reads. Only tests of
    /// updates set another one than the build's.
    #[doc(hidden)]
    pub format: u32,
}

/// Where a node's first state comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Begin a new cluster of one.
    New,
    /// Join the cluster that made `token`, reached by any of the addresses found.
    Join { token: String, seeds: Discovery },
    /// Join any member found, by the join key. Where `begin` nodes, this one among them, are there
    /// and none has data, the first of them by name begins a new cluster; `None`: only join.
    Meet { begin: Option<usize>, seeds: Discovery },
}

/// How the addresses of members are found.
#[derive(Clone, Debug)]
pub enum Discovery {
    /// `host:port` each.
    Static(Vec<String>),
    /// Every address of a name (a headless service).
    Dns { name: String, port: u16 },
    /// What the members registered below a prefix.
    Etcd { endpoints: Vec<String>, prefix: String },
}

/// Clocks of the cluster. All nodes should be given the same.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a node may act for its floating addresses after a majority confirmed it.
    pub lease: Duration,
    /// How long a node is silent before it is declared down; longer than `lease` by what it takes to
    /// remove an address.
    pub handover: Duration,
    pub heartbeat: Duration,
    /// A follower that hears nothing for this long, and up to half as much again, calls an election.
    pub election: Duration,
    /// How long [`Handle::propose`](crate::Handle::propose) waits.
    pub propose: Duration,
}

impl Timing {
    /// A hand-over after what the kernel needs to have dropped an address of a node that was stopped
    /// (the node's `floating` asserts it), and a lease that is up well before.
    pub const DEFAULT: Timing = Timing {
        lease: Duration::from_millis(1_050),
        handover: Duration::from_millis(1_280),
        heartbeat: Duration::from_millis(100),
        election: Duration::from_millis(400),
        propose: Duration::from_millis(500),
    };
}

/// The parting of a node that was removed, each stage outliving the one before it: so long the leader
/// waits for it to hear of its removal before it changes the membership without that,
pub(crate) const FAREWELL: Duration = Duration::from_secs(1);
/// so long the others still send to it,
pub(crate) const FAREWELL_SEND: Duration = Duration::from_secs(2 * FAREWELL.as_secs());
/// and so long its word is still heard, for the change of membership may need its vote.
pub(crate) const FAREWELL_HEAR: Duration = Duration::from_secs(2 * FAREWELL_SEND.as_secs());

impl Default for Timing {
    fn default() -> Self {
        Timing::DEFAULT
    }
}

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Proposals waiting at most; more are refused as overloaded.
    pub pending: usize,
    /// A snapshot is taken when the log grew by this much.
    pub snapshot_log_bytes: u64,
    /// Log kept behind a snapshot for followers that are a little behind.
    pub keep_log_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            pending: 65_536,
            snapshot_log_bytes: 64 * 1024 * 1024,
            keep_log_bytes: 16 * 1024 * 1024,
        }
    }
}

impl Config {
    /// A cluster of one in `dir`.
    pub fn new(dir: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Config {
            dir: dir.into(),
            name: name.into(),
            origin: Origin::New,
            listen: None,
            advertise: None,
            key: None,
            register: None,
            software: String::new(),
            timing: Timing::default(),
            join_within: Duration::from_secs(60),
            limits: Limits::default(),
            format: crate::state::FORMAT_VERSION,
        }
    }

    /// The address that peers are told.
    pub(crate) fn address(&self) -> String {
        match (&self.advertise, self.listen) {
            (Some(address), _) => address.clone(),
            (None, Some(listen)) => listen.to_string(),
            (None, None) => "none".to_owned(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), StartError> {
        let timing = &self.timing;
        let wrong = |what: &str| Err(StartError::Config(what.to_owned()));
        if matches!(self.origin, Origin::Meet { .. }) && self.key.is_none() {
            return wrong("nodes that meet need a join key");
        }
        if self.name.is_empty() || self.name.len() > 128 {
            return wrong("the node's name must have 1 to 128 bytes");
        }
        if timing.lease >= timing.handover {
            return wrong("lease must be shorter than handover");
        }
        if timing.heartbeat < Duration::from_millis(10) {
            return wrong("heartbeat must be 10 ms or more");
        }
        if timing.election < timing.heartbeat * 2 || timing.lease < timing.heartbeat * 3 {
            return wrong("election needs two heartbeats, lease three");
        }
        Ok(())
    }
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cluster configuration: {0}")]
    Config(String),
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error("cluster: {0}")]
    Core(String),
    #[error("cluster: {0}")]
    Io(#[from] std::io::Error),
    #[error("certificates: {0}")]
    Pki(String),
    #[error("joining the cluster: {0}")]
    Join(String),
}
