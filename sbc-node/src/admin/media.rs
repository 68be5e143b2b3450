//! `Media`: sessions with their counters, and the ports that are left.

use std::sync::Arc;

use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::media_server::Media;
use tonic::{Request, Response, Status};

use super::convert;
use crate::node::Context;

/// Sessions of a list unless asked for fewer.
const ROWS_MAX: usize = 10_000;

/// The service.
pub(super) struct MediaService(pub(super) Arc<Context>);

#[tonic::async_trait]
impl Media for MediaService {
    async fn list(
        &self,
        request: Request<pb::ListMediaRequest>,
    ) -> Result<Response<pb::ListMediaReply>, Status> {
        let limit = match usize::try_from(request.into_inner().limit) {
            Ok(0) | Err(_) => ROWS_MAX,
            Ok(limit) => limit.min(ROWS_MAX),
        };
        let answers = self
            .0
            .ask(move |core, _, anchor| {
                let with_media = core.calls().filter_map(|call| Some((call.id, call.media?)));
                with_media
                    .take(limit)
                    .map(|(id, media)| (id, anchor.stats(media)))
                    .collect::<Vec<_>>()
            })
            .await;
        let sessions = answers.into_iter().flat_map(|(_, rows)| rows).take(limit);
        let totals = self.0.anchor.totals();
        let ports = totals.ports.iter().map(|(interface, address, counts)| pb::MediaPorts {
            interface: self.0.interface_name(interface.0),
            address: address.to_string(),
            used: counts.used.try_into().unwrap_or(0),
            total: counts.total.try_into().unwrap_or(0),
            occupied: counts.occupied,
        });
        Ok(Response::new(pb::ListMediaReply {
            sessions: sessions
                .map(|(call, stats)| pb::MediaSession {
                    call: call.to_string(),
                    streams: convert::streams(&stats),
                })
                .collect(),
            total: totals.sessions,
            ports: ports.collect(),
        }))
    }
}
