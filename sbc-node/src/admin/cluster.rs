//! `Cluster`: status, tokens, drain, removal, leadership, snapshots.

use std::sync::Arc;
use std::time::Duration;

use sbc_cluster::{Command, Handle, NodeId, Outcome, ProposeError, Rejection, Table};
use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::cluster_server::Cluster;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::node::Context;

/// How long an operator's command may take to be committed.
const WAIT: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const TOKEN_TTL_MAX: Duration = Duration::from_secs(7 * 86_400);

/// The service.
pub(super) struct ClusterService(pub(super) Arc<Context>);

impl ClusterService {
    fn handle(&self) -> Result<&Handle, Status> {
        match &self.0.cluster {
            Some(cluster) => Ok(&cluster.handle),
            None => Err(Status::failed_precondition("this node has no [cluster] section")),
        }
    }

    async fn propose(&self, command: Command) -> Result<Response<pb::ClusterDone>, Status> {
        match self.handle()?.propose_within(command, WAIT).await {
            Ok(committed) => match committed.outcome {
                Outcome::Done { .. } | Outcome::Node(_) => Ok(Response::new(pb::ClusterDone {})),
                Outcome::Rejected(Rejection::NotFound) => Err(Status::not_found("no such node")),
                Outcome::Rejected(why) => Err(Status::failed_precondition(why.to_string())),
            },
            Err(error) => Err(unavailable(&error)),
        }
    }
}

/// Looks until what was asked for has come about; false when it has not within [`WAIT`].
async fn within_wait(mut met: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + WAIT;
    while !met() {
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    true
}

fn unavailable(error: &ProposeError) -> Status {
    Status::unavailable(error.to_string())
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn status(
        &self,
        _: Request<pb::ClusterStatusRequest>,
    ) -> Result<Response<pb::ClusterStatusReply>, Status> {
        let handle = self.handle()?;
        let status = handle.status();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let role = |id: NodeId| match () {
            () if status.core.leader == Some(id) => "leader",
            () if status.core.voters.contains(&id) => "voter",
            () => "learner",
        };
        let nodes = status.nodes.iter().map(|(id, node)| {
            let peer = status.peers.iter().find(|p| p.node == *id);
            pb::ClusterNode {
                id: id.0,
                name: node.name.clone(),
                address: node.address.clone(),
                state: node.state.as_str().to_owned(),
                role: role(*id).to_owned(),
                epoch: node.epoch,
                software: node.software.clone(),
                dialogs: handle.read(|tables| count(tables.dialogs_of(*id).count())),
                connected: peer.map_or(*id == handle.id(), |p| p.connected),
                rtt_us: peer.map_or(0, |p| p.rtt_us),
                lag_bytes: peer.map_or(0, |p| p.lag_bytes),
            }
        });
        let addresses = handle.read(|tables| {
            let rows = tables.addresses().map(|(address, row)| pb::FloatingAddress {
                address: address.to_owned(),
                group: row.group,
                holder: row.holder.map_or(0, |id| id.0),
            });
            rows.collect()
        });
        Ok(Response::new(pb::ClusterStatusReply {
            id: handle.id().0,
            leader: status.core.leader.map_or(0, |id| id.0),
            term: status.core.term,
            quorum: status.lease_valid,
            applied: status.core.applied,
            last: status.core.last,
            log_bytes: status.core.log_bytes,
            digest: format!("{:032x}", status.digest),
            dialogs: handle.read(|tables| count(tables.len(Table::Dialogs))),
            nodes: nodes.collect(),
            addresses,
            snapshot: status.core.snapshot,
            format: handle.read(sbc_cluster::Tables::format),
        }))
    }

    async fn create_token(
        &self,
        request: Request<pb::CreateTokenRequest>,
    ) -> Result<Response<pb::CreateTokenReply>, Status> {
        let ttl = Duration::from_secs(request.into_inner().ttl_s).min(TOKEN_TTL_MAX);
        if ttl.is_zero() {
            return Err(Status::invalid_argument("a token that lives 0 s is of no use"));
        }
        match self.handle()?.create_join_token(ttl).await {
            Ok(token) => Ok(Response::new(pb::CreateTokenReply { token })),
            Err(error) => Err(Status::failed_precondition(error.to_string())),
        }
    }

    async fn drain(
        &self,
        request: Request<pb::ClusterDrainRequest>,
    ) -> Result<Response<pb::ClusterDone>, Status> {
        let pb::ClusterDrainRequest { node, undo } = request.into_inner();
        let node = if node == 0 { self.handle()?.id() } else { NodeId(node) };
        self.propose(Command::drain(node, undo)).await
    }

    async fn remove(
        &self,
        request: Request<pb::RemoveNodeRequest>,
    ) -> Result<Response<pb::ClusterDone>, Status> {
        let node = NodeId(request.into_inner().node);
        if self.handle()?.read(|tables| tables.node(node).is_none()) {
            return Err(Status::not_found(format!("node {node} is no member")));
        }
        self.propose(Command::remove_node(node)).await
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::ClusterDone>, Status> {
        let handle = self.handle()?;
        if !handle.status().core.is_leader {
            return Err(Status::failed_precondition("this node is not the leader: ask the leader"));
        }
        let heir = NodeId(request.into_inner().node);
        if !handle.status().core.voters.contains(&heir) {
            return Err(Status::not_found(format!("node {heir} does not vote")));
        }
        handle.transfer_leader(heir);
        match within_wait(|| handle.status().core.leader == Some(heir)).await {
            true => Ok(Response::new(pb::ClusterDone {})),
            false => Err(Status::unavailable(format!("node {heir} did not take over"))),
        }
    }

    async fn snapshot(
        &self,
        _: Request<pb::SnapshotRequest>,
    ) -> Result<Response<pb::ClusterDone>, Status> {
        let handle = self.handle()?;
        let wanted = handle.status().core.applied;
        handle.take_snapshot();
        match within_wait(|| handle.status().core.snapshot >= wanted).await {
            true => Ok(Response::new(pb::ClusterDone {})),
            false => Err(Status::unavailable("the snapshot was not written: see the log")),
        }
    }
}
