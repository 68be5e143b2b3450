//! `Calls`: list, show, hang up, live ladder.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sbc_core::b2bua::CallId;
use sbc_core::core::{Command as CoreCommand, Input};
use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::calls_server::Calls;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::convert;
use crate::node::Context;
use crate::telemetry::time::unix_ms;
use crate::telemetry::trace::Watched;

/// Rows of a list unless asked for fewer.
const ROWS_MAX: usize = 10_000;
/// Rungs that may wait for one watcher's connection.
const RUNGS_MAX: usize = 1_024;

/// How long a ladder goes on after the call's end, for the last answers.
const LAST_RUNGS: Duration = Duration::from_secs(1);

/// The service.
pub(super) struct CallsService(pub(super) Arc<Context>);

fn call_id(id: &str) -> Result<CallId, Status> {
    id.parse().map_err(|_| Status::invalid_argument(format!("{id:?} is no call id")))
}

#[tonic::async_trait]
impl Calls for CallsService {
    async fn list(
        &self,
        request: Request<pb::ListCallsRequest>,
    ) -> Result<Response<pb::ListCallsReply>, Status> {
        let pb::ListCallsRequest { limit, filter } = request.into_inner();
        let limit = match usize::try_from(limit) {
            Ok(0) | Err(_) => ROWS_MAX,
            Ok(limit) => limit.min(ROWS_MAX),
        };
        let filter: Arc<str> = Arc::from(filter.as_str());
        let now_ms = unix_ms();
        let answers = self
            .0
            .ask(move |core, _, _| {
                let mut total = 0_u64;
                let mut rows = Vec::new();
                for call in core.calls() {
                    total += 1;
                    if rows.len() < limit {
                        let row = convert::call(0, &call, now_ms);
                        if matches(&row, &filter) {
                            rows.push(row);
                        }
                    }
                }
                (total, rows)
            })
            .await;
        let mut reply = pb::ListCallsReply::default();
        for (shard, (total, rows)) in answers {
            let shard = u32::try_from(shard).unwrap_or(u32::MAX);
            reply.total += total;
            reply.calls.extend(rows.into_iter().map(|row| pb::CallSummary { shard, ..row }));
        }
        reply.calls.sort_by_key(|call| call.started_ms);
        reply.calls.truncate(limit);
        Ok(Response::new(reply))
    }

    async fn show(
        &self,
        request: Request<pb::ShowCallRequest>,
    ) -> Result<Response<pb::ShowCallReply>, Status> {
        let id = call_id(&request.into_inner().id)?;
        let now_ms = unix_ms();
        let answers = self
            .0
            .ask(move |core, _, anchor| {
                let call = core.call(id)?;
                let streams = call.media.map(|media| anchor.stats(media)).unwrap_or_default();
                Some((call, streams))
            })
            .await;
        let found = answers.into_iter().find_map(|(shard, answer)| Some((shard, answer?)));
        let (shard, (call, streams)) = found.ok_or_else(|| Status::not_found("no such call"))?;
        let legs = [("A", Some(&call.a)), ("B", call.b.as_ref())];
        let legs = legs.into_iter().filter_map(|(side, l)| Some(convert::leg(side, l?)));
        Ok(Response::new(pb::ShowCallReply {
            summary: Some(convert::call(shard, &call, now_ms)),
            legs: legs.collect(),
            streams: convert::streams(&streams),
            protected: call.protected,
        }))
    }

    async fn hangup(
        &self,
        request: Request<pb::HangupRequest>,
    ) -> Result<Response<pb::HangupReply>, Status> {
        let id = call_id(&request.into_inner().id)?;
        let answers = self.0.ask(move |core, _, _| core.call(id).is_some()).await;
        let found = answers.iter().any(|(_, found)| *found);
        if found {
            self.0.broadcast(|| Input::Command(CoreCommand::Hangup(id))).await;
            tracing::info!(call = %id, "hung up by an operator");
        }
        Ok(Response::new(pb::HangupReply { found }))
    }

    type TraceStream = Pin<Box<dyn Stream<Item = Result<pb::TraceEvent, Status>> + Send>>;

    async fn trace(
        &self,
        request: Request<pb::TraceRequest>,
    ) -> Result<Response<Self::TraceStream>, Status> {
        let id = request.into_inner().id;
        let call = if id.is_empty() { None } else { Some(call_id(&id)?) };
        if let Some(id) = call {
            let answers = self.0.ask(move |core, _, _| core.call(id).is_some()).await;
            if !answers.iter().any(|(_, found)| *found) {
                return Err(Status::not_found("no such call"));
            }
        }
        let (events, first) = self
            .0
            .traces
            .watch(call)
            .ok_or_else(|| Status::resource_exhausted("too many watchers"))?;
        if first {
            self.0.broadcast(|| Input::Command(CoreCommand::Trace { call, on: true })).await;
        }
        let (sender, receiver) = mpsc::channel(RUNGS_MAX);
        tokio::spawn(watch(Arc::clone(&self.0), call, events, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn matches(row: &pb::CallSummary, filter: &str) -> bool {
    filter.is_empty()
        || [&row.id, &row.from, &row.to, &row.dialled, &row.trunk_a, &row.trunk_b]
            .iter()
            .any(|text| text.contains(filter))
}

/// Copies events to one watcher until it or its call is gone.
async fn watch(
    context: Arc<Context>,
    call: Option<CallId>,
    mut events: broadcast::Receiver<Watched>,
    sender: mpsc::Sender<Result<pb::TraceEvent, Status>>,
) {
    let wanted = |id: CallId| call.is_none_or(|c| c == id);
    let note = |id: Option<CallId>, note: String| pb::TraceEvent {
        at_ms: unix_ms(),
        call: id.map(|id| id.to_string()).unwrap_or_default(),
        note,
        ..pb::TraceEvent::default()
    };
    // A call's CDR is written with its BYE: the answers are still to come.
    let mut until = None;
    loop {
        let over = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            event = events.recv() => event,
            () = sender.closed() => break,
            () = over => {
                // Nobody listens any more: as good as told.
                let _ = sender.send(Ok(note(call, "ended".to_owned()))).await;
                break;
            }
        };
        let message = match event {
            Ok(Watched::Message(trace)) if wanted(trace.call) => convert::trace(&trace),
            Ok(Watched::Ended(id)) if call == Some(id) => {
                until = Some(tokio::time::Instant::now() + LAST_RUNGS);
                continue;
            }
            Ok(Watched::Ended(id)) if wanted(id) => note(Some(id), "ended".to_owned()),
            Ok(Watched::Message(_) | Watched::Ended(_)) => continue,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                note(call, format!("{missed} messages missed"))
            }
            Err(broadcast::error::RecvError::Closed) => break,
        };
        if sender.send(Ok(message)).await.is_err() {
            break;
        }
    }
    if context.traces.unwatch(call) {
        context.broadcast(|| Input::Command(CoreCommand::Trace { call, on: false })).await;
    }
}
