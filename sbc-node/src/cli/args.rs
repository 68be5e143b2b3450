//! The grammar of `sbcctl`.

use std::path::PathBuf;

use super::bans::Bans;
use super::call::Call;
use super::cluster::Cluster;
use super::kube::Kube;
use super::registrations::Registrations;
use super::users::Users;
use clap::{Parser, Subcommand, ValueEnum};

/// Look at and steer a running sbc-node.
#[derive(Parser)]
#[command(name = "sbcctl", version)]
pub struct Args {
    /// The node's management socket.
    #[arg(long, global = true, env = "SBC_SOCKET", default_value = "/run/sbc/admin.sock")]
    pub(super) socket: PathBuf,
    /// A remote node instead: https://HOST:PORT.
    #[arg(long, global = true, requires_all = ["ca", "cert", "key"])]
    pub(super) endpoint: Option<String>,
    /// Authority that signed the node's certificate (PEM).
    #[arg(long, global = true)]
    pub(super) ca: Option<PathBuf>,
    /// Our certificate (PEM).
    #[arg(long, global = true)]
    pub(super) cert: Option<PathBuf>,
    /// Our private key (PEM).
    #[arg(long, global = true)]
    pub(super) key: Option<PathBuf>,
    /// Tables for people, JSON for scripts.
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub(super) output: Format,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// The node at a glance.
    Status,
    /// Calls in progress.
    #[command(subcommand)]
    Calls(Calls),
    /// Where calls come from and go to.
    #[command(subcommand)]
    Trunks(Trunks),
    /// Media sessions and ports.
    #[command(subcommand)]
    Media(Media),
    /// Who is kept out.
    #[command(subcommand)]
    Bans(Bans),
    /// Users and where they are.
    #[command(subcommand)]
    Registrations(Registrations),
    /// Who may register.
    #[command(subcommand)]
    Users(Users),
    /// The configuration.
    #[command(subcommand)]
    Config(Config),
    /// Logs.
    #[command(subcommand)]
    Log(Log),
    /// Every counter.
    Stats {
        /// Only names that contain this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Live figures.
    Top {
        /// Seconds between two samples.
        #[arg(long, default_value_t = 1.0)]
        interval: f64,
        /// Stop after so many samples.
        #[arg(long, short = 'n')]
        count: Option<u64>,
    },
    /// The cluster that the node is part of.
    #[command(subcommand)]
    Cluster(Cluster),
    /// The node as a member of the service.
    #[command(subcommand)]
    Node(Node),
    /// What happens on the node, as it happens.
    Events {
        /// Only kinds that begin with one of these: `call`, `cluster.leader`.
        kinds: Vec<String>,
        /// Stop after so many.
        #[arg(long, short = 'n')]
        count: Option<u64>,
    },
    /// Place one call through an SBC, to see that it works.
    Call(Call),
    /// For pods: addresses of the node, the hook before a stop.
    #[command(subcommand)]
    Kube(Kube),
    /// Print a completion script.
    Completions { shell: clap_complete::Shell },
}

#[derive(Subcommand)]
pub(super) enum Calls {
    /// All calls, oldest first.
    List {
        /// Only calls whose id, users or trunks contain this.
        #[arg(default_value = "")]
        filter: String,
        /// At most so many.
        #[arg(long, default_value_t = 1_000)]
        limit: u32,
    },
    /// One call with both legs and its media.
    Show { id: String },
    /// End a call on both sides.
    Hangup { id: String },
    /// The live ladder of a call, or of all that begin from now on.
    Trace {
        id: Option<String>,
        /// Whole messages, not only their first lines.
        #[arg(long, short)]
        full: bool,
    },
}

#[derive(Subcommand)]
pub(super) enum Trunks {
    List,
    /// Send probes now.
    Probe {
        name: String,
    },
    /// Allow new calls.
    Enable {
        name: String,
    },
    /// No new calls; those in progress go on.
    Disable {
        name: String,
    },
}

#[derive(Subcommand)]
pub(super) enum Media {
    List {
        #[arg(long, default_value_t = 1_000)]
        limit: u32,
    },
}

#[derive(Subcommand)]
pub(super) enum Config {
    /// The configuration in force, secrets blanked.
    Show,
    /// Check a file of ours, or the node's own, without applying it.
    Check { file: Option<PathBuf> },
    /// What a reload would change.
    Diff,
    /// Apply the node's file, all of it or nothing.
    Reload,
}

#[derive(Subcommand)]
pub(super) enum Log {
    /// Show or set the level: `debug`, or `info,sbc_core::b2bua=trace`.
    Level { level: Option<String> },
}

#[derive(Subcommand)]
pub(super) enum Node {
    /// No new calls; those in progress go on.
    Drain {
        /// Take calls again.
        #[arg(long, conflicts_with = "wait")]
        undo: bool,
        /// Move calls and addresses to the other nodes and wait until nothing is left here.
        #[arg(long)]
        wait: bool,
        /// Seconds to wait at most; past it the exit code is 1.
        #[arg(long, default_value_t = 50, requires = "wait")]
        timeout: u64,
        /// Leave the cluster then: this node is not meant to come back.
        #[arg(long, requires = "wait")]
        leave: bool,
    },
}
