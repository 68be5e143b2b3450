//! `sbcctl node drain --wait`: no new calls, calls and addresses to the other nodes, and back when
//! nothing is left to carry. What a preStop hook and an operator before maintenance run.

use std::time::Duration;

use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::cluster_client::ClusterClient;
use sbc_proto::admin::v1::node_client::NodeClient;
use tokio::time::Instant;
use tonic::transport::Channel;

use super::Failure;
use super::run::Done;

const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long the leadership may take to be handed on.
const HAND_ON: Duration = Duration::from_secs(3);

/// What is wanted.
pub(super) struct Order {
    /// How long to wait for calls to be elsewhere.
    pub(super) wait: Duration,
    /// Leave the cluster when drained: the node is not meant to come back.
    pub(super) leave: bool,
    /// What is printed is for scripts.
    pub(super) json: bool,
}

impl Order {
    fn say(&self, state: &str) {
        match self.json {
            true => println!("{}", serde_json::json!({ "state": state })),
            false => println!("{state}"),
        }
    }
}

/// Drains, waits, and tells what is left.
pub(super) async fn run(channel: Channel, order: Order) -> Done {
    let until = Instant::now() + order.wait;
    let mut node = NodeClient::new(channel.clone());
    let mut cluster = ClusterClient::new(channel);
    hand_leadership_on(&mut cluster, until).await;
    node.drain(pb::DrainRequest { undo: false }).await?;
    let clustered = can_move(&mut cluster).await;
    if clustered {
        // Where the majority is lost meanwhile, the calls end here by themselves.
        if let Err(status) = cluster.drain(pb::ClusterDrainRequest { node: 0, undo: false }).await {
            eprintln!("sbcctl: calls cannot be moved: {}", status.message());
        }
    }
    loop {
        let calls = node.status(pb::StatusRequest {}).await?.into_inner().calls;
        let drained = !clustered || own_state(&mut cluster).await.as_deref() == Some("drained");
        if calls == 0 && drained {
            if !order.leave || !clustered {
                order.say("drained");
            }
            break;
        }
        if Instant::now() >= until {
            let moved = if drained { "" } else { ", not handed over" };
            return Err(Failure::Refused(format!("{calls} calls left{moved}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    if order.leave && clustered {
        leave(&mut cluster, until).await?;
        order.say("drained, left the cluster");
    }
    Ok(())
}

/// Takes this node out of its cluster. Nobody sends it the entry that removed it: it learns of that by
/// being refused, and stops then. An answer that did not come is therefore waited for in its end.
async fn leave(cluster: &mut ClusterClient<Channel>, until: Instant) -> Done {
    let id = cluster.status(pb::ClusterStatusRequest {}).await?.into_inner().id;
    let Err(error) = cluster.remove(pb::RemoveNodeRequest { node: id }).await else {
        return Ok(());
    };
    if error.code() != tonic::Code::Unavailable {
        return Err(error.into());
    }
    while Instant::now() < until {
        let Ok(status) = cluster.status(pb::ClusterStatusRequest {}).await else { return Ok(()) };
        if status.into_inner().nodes.iter().all(|node| node.id != id) {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let text = "drained, but whether it left is not known: look at the cluster from another node";
    Err(Failure::Refused(format!("{text} ({})", error.message())))
}

/// A leader that goes would cost an election: another one takes over first. Of no matter when it
/// does not come about.
async fn hand_leadership_on(cluster: &mut ClusterClient<Channel>, until: Instant) {
    let until = until.min(Instant::now() + HAND_ON);
    let mut asked = false;
    while Instant::now() < until {
        let Ok(status) = cluster.status(pb::ClusterStatusRequest {}).await else { return };
        let status = status.into_inner();
        if status.leader != status.id {
            return;
        }
        let heir = status
            .nodes
            .iter()
            .find(|n| n.id != status.id && n.state == "up" && n.role == "voter" && n.connected);
        let Some(heir) = heir else { return };
        if !asked {
            let request = pb::TransferLeaderRequest { node: heir.id };
            if cluster.transfer_leader(request).await.is_err() {
                return;
            }
            asked = true;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether there is a majority and another node that is up.
async fn can_move(cluster: &mut ClusterClient<Channel>) -> bool {
    let Ok(status) = cluster.status(pb::ClusterStatusRequest {}).await else { return false };
    let status = status.into_inner();
    status.quorum && status.nodes.iter().any(|n| n.id != status.id && n.state == "up")
}

async fn own_state(cluster: &mut ClusterClient<Channel>) -> Option<String> {
    let status = cluster.status(pb::ClusterStatusRequest {}).await.ok()?.into_inner();
    let own = status.nodes.iter().find(|n| n.id == status.id);
    own.map(|n| n.state.clone())
}
