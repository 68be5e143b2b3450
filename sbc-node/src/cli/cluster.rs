//! `sbcctl cluster`: what the cluster is told and asked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use sbc_cluster::Origin;
use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::cluster_client::ClusterClient;
use tonic::transport::Channel;

use super::drain::{self, Order};
use super::run::{Done, show};
use super::{Failure, output};

#[derive(Subcommand)]
pub(super) enum Cluster {
    /// Leader, quorum, nodes, floating addresses.
    Status,
    /// The nodes alone.
    Members,
    /// Make the directory of a new cluster's first node, with the cluster's CA. Asks no node.
    Init(Place),
    /// Make the directory of a node that joins: by a token, at any of its members. Asks no node of
    /// this machine; the node that is started on the directory then is a member.
    Join {
        #[command(flatten)]
        place: Place,
        /// The join token that a member gave out.
        #[arg(long)]
        token: String,
        /// Seconds to go on asking.
        #[arg(long, default_value_t = 60)]
        within: u64,
        /// Members, `HOST:PORT`.
        #[arg(required = true)]
        seeds: Vec<String>,
    },
    /// Move this node's calls and addresses to the others and leave the cluster for good.
    Leave {
        /// Seconds to wait at most; past it the exit code is 1.
        #[arg(long, default_value_t = 50)]
        timeout: u64,
    },
    /// Make a single-use token with which one node may join.
    Token {
        /// Seconds until it expires.
        #[arg(long, default_value_t = 3_600)]
        ttl: u64,
    },
    /// Move a node's calls and addresses to the others.
    Drain {
        /// The node's id; this node by default.
        #[arg(default_value_t = 0)]
        node: u64,
        /// Take it back.
        #[arg(long)]
        undo: bool,
    },
    /// Remove a node that is down, drained or never came.
    Remove { node: u64 },
    /// Hand the leadership on (ask the leader).
    TransferLeader { node: u64 },
    /// Write a snapshot now and shorten the log.
    Snapshot,
}

/// Where a node lies that does not run yet.
#[derive(clap::Args)]
pub(super) struct Place {
    /// Its data directory: `[cluster] data`.
    #[arg(long)]
    data: PathBuf,
    /// Its name: `[node] name`.
    #[arg(long)]
    name: String,
    /// Where it will listen for the others: `[cluster] listen`.
    #[arg(long)]
    listen: SocketAddr,
    /// By which the others reach it, where that is another address.
    #[arg(long)]
    advertise: Option<String>,
}

impl Place {
    fn config(&self, origin: Origin, within: u64) -> sbc_cluster::Config {
        sbc_cluster::Config {
            origin,
            listen: Some(self.listen),
            advertise: self.advertise.clone(),
            software: env!("CARGO_PKG_VERSION").to_owned(),
            join_within: Duration::from_secs(within),
            ..sbc_cluster::Config::new(&self.data, &self.name)
        }
    }
}

/// What is done without a node that runs; `None` for the rest.
pub(super) async fn offline(command: &Cluster, json: bool) -> Option<Done> {
    let (place, config) = match command {
        Cluster::Init(place) => (place, place.config(Origin::New, 0)),
        Cluster::Join { place, token, within, seeds } => {
            let seeds = sbc_cluster::Discovery::Static(seeds.clone());
            (place, place.config(Origin::Join { token: token.clone(), seeds }, *within))
        }
        Cluster::Status
        | Cluster::Members
        | Cluster::Leave { .. }
        | Cluster::Token { .. }
        | Cluster::Drain { .. }
        | Cluster::Remove { .. }
        | Cluster::TransferLeader { .. }
        | Cluster::Snapshot => return None,
    };
    let made = tokio::task::spawn_blocking(move || sbc_cluster::Cluster::make(config)).await;
    Some(match made {
        Ok(Ok(node)) => {
            match json {
                true => println!("{}", serde_json::json!({ "node": node.0 })),
                false => println!("node {node} in {}", place.data.display()),
            }
            Ok(())
        }
        Ok(Err(error)) => Err(Failure::Refused(error.to_string())),
        Err(error) => Err(Failure::Refused(error.to_string())),
    })
}

pub(super) async fn run(channel: Channel, command: Cluster, json: bool) -> Done {
    let mut client = ClusterClient::new(channel.clone());
    let done = |what: String| move |_: &pb::ClusterDone| println!("{what}");
    match command {
        Cluster::Status => {
            let reply = client.status(pb::ClusterStatusRequest {}).await?.into_inner();
            show(json, &reply, status)
        }
        Cluster::Members => {
            let reply = client.status(pb::ClusterStatusRequest {}).await?.into_inner();
            show(json, &reply.nodes, |nodes| println!("{}", members(nodes)))
        }
        Cluster::Leave { timeout } => {
            let status = client.status(pb::ClusterStatusRequest {}).await?.into_inner();
            if !status.nodes.iter().any(|node| node.id != status.id && node.state == "up") {
                let why = "no other node is up: nobody would be left to hold the log";
                return Err(Failure::Refused(why.to_owned()));
            }
            let wait = Duration::from_secs(timeout);
            drain::run(channel, Order { wait, leave: true, json }).await
        }
        // Done before a node was asked for.
        Cluster::Init(_) | Cluster::Join { .. } => Ok(()),
        Cluster::Token { ttl } => {
            let request = pb::CreateTokenRequest { ttl_s: ttl };
            let reply = client.create_token(request).await?.into_inner();
            show(json, &reply, |reply| println!("{}", reply.token))
        }
        Cluster::Drain { node, undo } => {
            let request = pb::ClusterDrainRequest { node, undo };
            let reply = client.drain(request).await?.into_inner();
            show(json, &reply, done(if undo { "not draining" } else { "draining" }.to_owned()))
        }
        Cluster::Remove { node } => {
            let reply = client.remove(pb::RemoveNodeRequest { node }).await?.into_inner();
            show(json, &reply, done(format!("node {node} removed")))
        }
        Cluster::TransferLeader { node } => {
            let request = pb::TransferLeaderRequest { node };
            let reply = client.transfer_leader(request).await?.into_inner();
            show(json, &reply, done(format!("node {node} leads")))
        }
        Cluster::Snapshot => {
            let reply = client.snapshot(pb::SnapshotRequest {}).await?.into_inner();
            show(json, &reply, done("snapshot written".to_owned()))
        }
    }
}

fn status(reply: &pb::ClusterStatusReply) {
    let quorum = if reply.quorum { "quorum" } else { "NO QUORUM" };
    println!("node {} of {}, leader {}, {quorum}", reply.id, reply.nodes.len(), reply.leader);
    println!(
        "  term {}, applied {} of {}, digest {}",
        reply.term, reply.applied, reply.last, reply.digest
    );
    println!(
        "  {} dialogs, log {} bytes, snapshot at {}, format {}\n",
        reply.dialogs, reply.log_bytes, reply.snapshot, reply.format
    );
    println!("{}", members(&reply.nodes));
    if !reply.addresses.is_empty() {
        let mut rows = output::table(&["floating address", "group", "holder"]);
        for address in &reply.addresses {
            let holder = if address.holder == 0 { "-".into() } else { address.holder.to_string() };
            rows.add_row([address.address.clone(), address.group.to_string(), holder]);
        }
        println!("\n{rows}");
    }
}

fn members(nodes: &[pb::ClusterNode]) -> impl std::fmt::Display {
    let mut rows =
        output::table(&["id", "name", "address", "state", "role", "dialogs", "rtt", "lag"]);
    for node in nodes {
        let rtt = if node.connected { format!("{} us", node.rtt_us) } else { "-".to_owned() };
        rows.add_row([
            node.id.to_string(),
            node.name.clone(),
            node.address.clone(),
            node.state.clone(),
            node.role.clone(),
            node.dialogs.to_string(),
            rtt,
            format!("{} B", node.lag_bytes),
        ]);
    }
    rows
}
