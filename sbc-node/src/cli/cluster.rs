//! `sbcctl cluster`: what the cluster is told and asked.

use clap::Subcommand;
use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::cluster_client::ClusterClient;
use tonic::transport::Channel;

use super::output;
use super::run::{Done, show};

#[derive(Subcommand)]
pub(super) enum Cluster {
    /// Leader, quorum, nodes, floating addresses.
    Status,
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

pub(super) async fn run(channel: Channel, command: Cluster, json: bool) -> Done {
    let mut client = ClusterClient::new(channel);
    let done = |what: String| move |_: &pb::ClusterDone| println!("{what}");
    match command {
        Cluster::Status => {
            let reply = client.status(pb::ClusterStatusRequest {}).await?.into_inner();
            show(json, &reply, status)
        }
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
            show(json, &reply, done(format!("asked to hand on to node {node}")))
        }
        Cluster::Snapshot => {
            let reply = client.snapshot(pb::SnapshotRequest {}).await?.into_inner();
            show(json, &reply, done("snapshot asked for".to_owned()))
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
    println!("  {} dialogs, log {} bytes\n", reply.dialogs, reply.log_bytes);
    let mut rows =
        output::table(&["id", "name", "address", "state", "role", "dialogs", "rtt", "lag"]);
    for node in &reply.nodes {
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
    println!("{rows}");
    if !reply.addresses.is_empty() {
        let mut rows = output::table(&["floating address", "group", "holder"]);
        for address in &reply.addresses {
            let holder = if address.holder == 0 { "-".into() } else { address.holder.to_string() };
            rows.add_row([address.address.clone(), address.group.to_string(), holder]);
        }
        println!("\n{rows}");
    }
}
