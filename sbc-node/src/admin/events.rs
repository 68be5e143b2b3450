//! `Events`: what happens, as it happens.

use std::pin::Pin;
use std::sync::Arc;

use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::events_server::Events;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::node::Context;
use crate::telemetry::events::{Happening, Watcher};
use crate::telemetry::time::unix_ms;

/// Events on their way to one watcher; what is beyond waits in the hub, and is bounded there.
const ON_THE_WAY: usize = 256;

/// The service.
pub(super) struct EventsService(pub(super) Arc<Context>);

#[tonic::async_trait]
impl Events for EventsService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::NodeEvent, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<pb::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let wanted = request.into_inner();
        let watcher = self.0.events.watch();
        let watcher = watcher.ok_or_else(|| Status::resource_exhausted("too many watchers"))?;
        let (sender, receiver) = mpsc::channel(ON_THE_WAY);
        tokio::spawn(copy(watcher, wanted, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn copy(
    mut watcher: Watcher,
    wanted: pb::WatchEventsRequest,
    sender: mpsc::Sender<Result<pb::NodeEvent, Status>>,
) {
    loop {
        let event = tokio::select! {
            event = watcher.events.recv() => event,
            () = sender.closed() => return,
        };
        let event = match event {
            Ok(event) if fits(&wanted, &event) => convert(&event),
            Ok(_) => continue,
            Err(RecvError::Lagged(missed)) => {
                watcher.missed(missed);
                let kind = "missed".to_owned();
                pb::NodeEvent { at_ms: unix_ms(), kind, missed, ..pb::NodeEvent::default() }
            }
            Err(RecvError::Closed) => return,
        };
        if sender.send(Ok(event)).await.is_err() {
            return;
        }
    }
}

fn fits(wanted: &pb::WatchEventsRequest, event: &Happening) -> bool {
    let kinds = &wanted.kinds;
    (kinds.is_empty() || kinds.iter().any(|k| event.kind.starts_with(k.as_str())))
        && event.subject.contains(wanted.subject.as_str())
}

fn convert(event: &Happening) -> pb::NodeEvent {
    pb::NodeEvent {
        at_ms: event.at_ms,
        kind: event.kind.to_owned(),
        subject: event.subject.clone(),
        details: event.details.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
        missed: 0,
    }
}
