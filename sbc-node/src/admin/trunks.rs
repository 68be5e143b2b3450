//! `Trunks`: list, probe, enable, disable.

use std::sync::Arc;

use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::trunks_server::Trunks;
use tonic::{Request, Response, Status};

use super::convert;
use crate::node::Context;

/// The service.
pub(super) struct TrunksService(pub(super) Arc<Context>);

/// Every trunk as it is now.
pub(super) fn all(context: &Context) -> Vec<pb::TrunkStatus> {
    let running = context.running.load();
    running.core.routing.trunks().map(|trunk| status(context, trunk)).collect()
}

fn status(context: &Context, trunk: &sbc_core::routing::Trunk) -> pb::TrunkStatus {
    let running = context.running.load();
    let id = trunk.config.interface;
    let interface = running.core.interfaces.iter().find(|i| i.id == id);
    let realm = interface.map(|i| i.realm.to_string()).unwrap_or_default();
    let mut status = convert::trunk(trunk, context.interface_name(id.0), realm);
    status.max_calls_per_second = trunk.config.limits.max_cps.unwrap_or(0.0);
    status
}

impl TrunksService {
    fn switch(&self, name: &str, enabled: bool) -> Result<Response<pb::TrunkReply>, Status> {
        let running = self.0.running.load_full();
        let trunk = running.core.routing.trunk_by_name(name);
        let trunk = trunk.ok_or_else(|| Status::not_found(format!("no trunk {name:?}")))?;
        trunk.set_enabled(enabled);
        tracing::info!(trunk = name, enabled, "trunk switched by an operator");
        Ok(Response::new(pb::TrunkReply { trunk: Some(status(&self.0, trunk)) }))
    }
}

#[tonic::async_trait]
impl Trunks for TrunksService {
    async fn list(
        &self,
        _: Request<pb::ListTrunksRequest>,
    ) -> Result<Response<pb::ListTrunksReply>, Status> {
        Ok(Response::new(pb::ListTrunksReply { trunks: all(&self.0) }))
    }

    async fn probe(
        &self,
        request: Request<pb::TrunkRequest>,
    ) -> Result<Response<pb::TrunkReply>, Status> {
        let name = request.into_inner().name;
        let running = self.0.running.load_full();
        let trunk = running.core.routing.trunk_by_name(&name);
        let trunk = trunk.ok_or_else(|| Status::not_found(format!("no trunk {name:?}")))?;
        let answers = self.0.ask(move |core, now, _| core.probe_now(now, &name)).await;
        if !answers.iter().any(|(_, begun)| *begun) {
            return Err(Status::failed_precondition("the trunk has no probing"));
        }
        // The answer comes in its own time: `list` shows it.
        Ok(Response::new(pb::TrunkReply { trunk: Some(status(&self.0, trunk)) }))
    }

    async fn enable(
        &self,
        request: Request<pb::TrunkRequest>,
    ) -> Result<Response<pb::TrunkReply>, Status> {
        self.switch(&request.into_inner().name, true)
    }

    async fn disable(
        &self,
        request: Request<pb::TrunkRequest>,
    ) -> Result<Response<pb::TrunkReply>, Status> {
        self.switch(&request.into_inner().name, false)
    }
}
