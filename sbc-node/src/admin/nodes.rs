//! `Node`: status, counters, live figures, log level, drain.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sbc_core::core::{Command as CoreCommand, Input};
use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::node_server::Node;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::trunks;
use crate::node::{Context, NodeState};
use crate::telemetry::metrics::{ProcessUse, number};
use crate::telemetry::time::unix_ms;

/// The service.
pub(super) struct NodeService(pub(super) Arc<Context>);

#[tonic::async_trait]
impl Node for NodeService {
    async fn status(
        &self,
        _: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusReply>, Status> {
        let context = &self.0;
        let answers = context
            .ask(|core, _, _| {
                let txn = core.transaction_stats();
                (core.stats().calls, txn.clients + txn.servers)
            })
            .await;
        let running = context.running.load_full();
        let listeners = running.core.interfaces.iter().flat_map(|interface| {
            interface.listeners.iter().map(|l| pb::ListenerStatus {
                interface: interface.name.to_string(),
                realm: interface.realm.to_string(),
                transport: l.transport.to_string(),
                local: l.local.to_string(),
                advertise: format!("{}:{}", l.advertise_host, l.advertise_port),
                retired: l.retired,
            })
        });
        let kernel = context.kernel.status();
        let mut alarms = context.alarms();
        if answers.len() < context.shards.len() {
            alarms.push("shard-not-answering".to_owned());
        }
        Ok(Response::new(pb::StatusReply {
            node: context.node().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: unix_ms().saturating_sub(context.started_ms),
            state: context.state().as_str().to_owned(),
            shards: u32::try_from(context.shards.len()).unwrap_or(0),
            calls: answers.iter().map(|(_, (calls, _))| calls).sum(),
            transactions: answers
                .iter()
                .map(|(_, (_, txns))| u64::try_from(*txns).unwrap_or(0))
                .sum(),
            media_sessions: context.anchor.totals().sessions,
            connections: context.stats.iter().map(|s| s.connections.get()).sum(),
            listeners: listeners.collect(),
            config_loaded_ms: running.loaded_ms,
            config_path: running.path.display().to_string(),
            alarms,
            kernel_way: kernel.way.to_owned(),
            kernel_reason: kernel.reason,
            kernel_flows: kernel.flows,
            kernel_standby_flows: kernel.standby,
            kernel_devices: kernel.devices,
        }))
    }

    async fn stats(
        &self,
        request: Request<pb::StatsRequest>,
    ) -> Result<Response<pb::StatsReply>, Status> {
        let filter = request.into_inner().filter;
        let text = self.0.metrics_text().await;
        let stats = text.lines().filter_map(stat).filter(|s| s.name.contains(&filter));
        Ok(Response::new(pb::StatsReply { stats: stats.collect() }))
    }

    type TopStream = Pin<Box<dyn Stream<Item = Result<pb::TopSample, Status>> + Send>>;

    async fn top(
        &self,
        request: Request<pb::TopRequest>,
    ) -> Result<Response<Self::TopStream>, Status> {
        let asked = Duration::from_millis(request.into_inner().interval_ms);
        let interval = asked.clamp(Duration::from_millis(200), Duration::from_secs(60));
        let (sender, receiver) = mpsc::channel(4);
        let context = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut before = Figures::now(&context).await;
            let mut ticks = tokio::time::interval(interval);
            ticks.tick().await;
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = sender.closed() => return,
                }
                let now = Figures::now(&context).await;
                let sample = now.since(&before, &context);
                before = now;
                if sender.send(Ok(sample)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn log_level(
        &self,
        request: Request<pb::LogLevelRequest>,
    ) -> Result<Response<pb::LogLevelReply>, Status> {
        let level = request.into_inner().level;
        if !level.is_empty() {
            self.0.log.set(&level).map_err(|e| Status::invalid_argument(e.to_string()))?;
            tracing::info!(%level, "log level set");
        }
        Ok(Response::new(pb::LogLevelReply { level: self.0.log.level() }))
    }

    async fn drain(
        &self,
        request: Request<pb::DrainRequest>,
    ) -> Result<Response<pb::DrainReply>, Status> {
        let undo = request.into_inner().undo;
        if self.0.state() == NodeState::Stopping {
            return Err(Status::failed_precondition("the node is stopping"));
        }
        if undo && let Some(cluster) = &self.0.cluster {
            let taken_back = cluster.take_back_drain().await;
            taken_back.map_err(|error| Status::unavailable(error.to_string()))?;
        }
        self.0.set_state(if undo { NodeState::Running } else { NodeState::Draining });
        self.0.broadcast(|| Input::Command(CoreCommand::Drain(!undo))).await;
        tracing::info!(undo, "drain by an operator");
        let calls = self.0.call_count().await;
        Ok(Response::new(pb::DrainReply { state: self.0.state().as_str().to_owned(), calls }))
    }
}

/// One line of metrics text: `name{labels} value`.
fn stat(line: &str) -> Option<pb::Stat> {
    if line.starts_with('#') {
        return None;
    }
    let (key, value) = line.rsplit_once(' ')?;
    let (name, labels) = key.split_once('{').unwrap_or((key, ""));
    Some(pb::Stat {
        name: name.to_owned(),
        labels: labels.trim_end_matches('}').to_owned(),
        value: value.parse().ok()?,
    })
}

/// What `top` compares.
struct Figures {
    at: Instant,
    calls: u64,
    attempts: u64,
    messages_in: u64,
    messages_out: u64,
    dropped: u64,
    process: ProcessUse,
}

impl Figures {
    async fn now(context: &Context) -> Figures {
        let answers = context
            .ask(|core, _, _| {
                let stats = core.stats();
                (stats.calls, stats.attempts)
            })
            .await;
        let sum = |f: &dyn Fn(&crate::shard::stats::ShardStats) -> u64| -> u64 {
            context.stats.iter().map(|s| f(s)).sum()
        };
        Figures {
            at: Instant::now(),
            calls: answers.iter().map(|(_, (calls, _))| calls).sum(),
            attempts: answers.iter().map(|(_, (_, attempts))| attempts).sum(),
            messages_in: sum(&|s| s.udp_in.get() + s.stream_in.get()),
            messages_out: sum(&|s| s.udp_out.get() + s.stream_out.get()),
            dropped: sum(&|s| {
                s.udp_kernel_drops.get() + s.handover_full.get() + s.udp_queue_full.get()
            }),
            process: ProcessUse::now(),
        }
    }

    fn since(&self, before: &Figures, context: &Context) -> pb::TopSample {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(0.001);
        let rate = |now: u64, then: u64| number(now.saturating_sub(then)) / seconds;
        pb::TopSample {
            at_ms: unix_ms(),
            calls: self.calls,
            calls_per_second: rate(self.attempts, before.attempts),
            messages_in_per_second: rate(self.messages_in, before.messages_in),
            messages_out_per_second: rate(self.messages_out, before.messages_out),
            dropped_per_second: rate(self.dropped, before.dropped),
            cpu: (self.process.cpu_seconds - before.process.cpu_seconds) / seconds,
            memory_bytes: self.process.resident_bytes,
            media_sessions: context.anchor.totals().sessions,
            trunks: trunks::all(context),
        }
    }
}
