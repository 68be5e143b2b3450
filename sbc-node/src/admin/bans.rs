//! `Bans`: list, add, remove, flush.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sbc_core::cidr::Cidr;
use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::bans_server::Bans;
use tonic::{Request, Response, Status};

use crate::guard::list;
use crate::node::Context;

/// The service.
pub(super) struct BansService(pub(super) Arc<Context>);

fn nets(texts: &[String]) -> Result<Vec<Cidr>, Status> {
    let net = |text: &String| {
        text.parse::<Cidr>().map_err(|e| Status::invalid_argument(format!("{text}: {e}")))
    };
    texts.iter().map(net).collect()
}

#[tonic::async_trait]
impl Bans for BansService {
    async fn list(
        &self,
        request: Request<pb::ListBansRequest>,
    ) -> Result<Response<pb::ListBansReply>, Status> {
        let request = request.into_inner();
        let (guard, now) = (&self.0.border.guard, Instant::now());
        let mut bans = if request.address.is_empty() {
            guard.bans(now)
        } else {
            let address = request.address.parse().map_err(|_| {
                Status::invalid_argument(format!("{}: not an IP address", request.address))
            })?;
            guard.find(now, address).into_iter().collect()
        };
        bans.sort_by_key(|ban| ban.net);
        let total = u64::try_from(bans.len()).unwrap_or(u64::MAX);
        if request.limit > 0 {
            bans.truncate(usize::try_from(request.limit).unwrap_or(usize::MAX));
        }
        let left = |until: Instant| {
            let left = until.saturating_duration_since(now).as_millis();
            u64::try_from(left).unwrap_or(u64::MAX).max(1)
        };
        let bans = bans.iter().map(|ban| pb::BanInfo {
            net: ban.net.to_string(),
            reason: ban.reason.as_str().to_owned(),
            by: ban.by.to_string(),
            left_ms: ban.until.map_or(0, left),
            shared: ban.shared,
        });
        let kernel = self.0.border.kernel();
        Ok(Response::new(pb::ListBansReply {
            bans: bans.collect(),
            total,
            kernel: kernel.kernel,
            kernel_reason: kernel.reason,
            kernel_bans: kernel.bans,
            kernel_dropped: kernel.dropped,
        }))
    }

    async fn add(
        &self,
        request: Request<pb::AddBansRequest>,
    ) -> Result<Response<pb::AddBansReply>, Status> {
        let request = request.into_inner();
        let nets = nets(&request.nets)?;
        let by = if request.by.is_empty() { "admin" } else { &request.by };
        let until = match request.for_ms {
            0 => None,
            ms => Instant::now().checked_add(Duration::from_millis(ms)),
        };
        let outcome = list::apply(&self.0.border.guard, &nets, by, until, false);
        let (bans, refused) = (outcome.added, outcome.refused.len());
        tracing::info!(%by, bans, refused, "bans by an operator");
        let refused = outcome.refused.into_iter();
        Ok(Response::new(pb::AddBansReply {
            added: outcome.added,
            refused: refused
                .map(|(net, reason)| pb::RefusedBan { net: net.to_string(), reason })
                .collect(),
        }))
    }

    async fn remove(
        &self,
        request: Request<pb::RemoveBansRequest>,
    ) -> Result<Response<pb::RemoveBansReply>, Status> {
        let guard = &self.0.border.guard;
        let (gone, unknown): (Vec<Cidr>, Vec<Cidr>) =
            nets(&request.into_inner().nets)?.into_iter().partition(|net| guard.lift(net));
        tracing::info!(bans = gone.len(), "bans lifted by an operator");
        Ok(Response::new(pb::RemoveBansReply {
            removed: u64::try_from(gone.len()).unwrap_or(u64::MAX),
            unknown: unknown.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn flush(
        &self,
        _: Request<pb::FlushBansRequest>,
    ) -> Result<Response<pb::FlushBansReply>, Status> {
        let removed = self.0.border.guard.flush();
        tracing::info!(bans = removed, "all bans lifted by an operator");
        Ok(Response::new(pb::FlushBansReply {
            removed: u64::try_from(removed).unwrap_or(u64::MAX),
        }))
    }
}
