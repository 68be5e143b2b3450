//! A call as a trace: spans for the call, its transactions, routing, the wait for the commit and the
//! media, made from the ladder of a sampled call and exported by OTLP/gRPC. Shards know nothing of it.
//!
//! ```text
//! call ├─ INVITE A (server)      received ─▶ final response sent
//!      ├─ routing                INVITE received on A ─▶ first INVITE sent on B
//!      ├─ INVITE B (client)      sent ─▶ final response received; one for each target
//!      ├─ commit                 2xx received on B ─▶ 2xx sent on A: the dialog goes into the log
//!      ├─ media                  answered ─▶ ended
//!      └─ BYE, UPDATE, PRACK …   both legs
//! ```
//!
//! The trace's id follows from the call's, so that what another node tells of a call that it took
//! over belongs to the same trace. Users and numbers are not exported.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use hashbrown::HashMap;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use sbc_core::b2bua::{CallId, Cdr, EndedBy};
use sbc_core::core::{Direction, Trace};
use sbc_core::media::Side;
use sbc_core::sip::{self, Limits, Message, Method};

use super::tap::{Share, TapStats, Tapped};
use crate::config::TraceConfig;

/// Calls watched at a time; more are not traced, and counted.
const CALLS_MAX: usize = 65_536;
/// Transactions of one call; a call with more is cut there.
const SPANS_MAX: usize = 256;
/// Spans that wait for the collector at most, oldest lost first.
const WAITING_MAX: usize = 16_384;
const BATCH: usize = 512;
/// The answers to a BYE come after the call's end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// A call of which nothing was heard for so long is let go: its end was lost or is another node's.
const SILENT_MAX: Duration = Duration::from_secs(6 * 3_600);
const EXPORT_WITHIN: Duration = Duration::from_secs(5);

/// One transaction as a ladder tells it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Txn {
    side: Side,
    /// Which way the request went.
    direction: Direction,
    number: u32,
    method: String,
    /// Tells the targets of a fork apart.
    branch: String,
}

struct Open {
    start: SystemTime,
    peer: String,
}

/// What is known of a call so far.
struct Live {
    root: SpanId,
    first: SystemTime,
    last: SystemTime,
    open: HashMap<Txn, Open>,
    done: Vec<SpanData>,
    routed: bool,
    answered_b: Option<SystemTime>,
    answered_a: Option<SystemTime>,
}

/// The calls that are traced, and the way to the collector.
pub struct Spans {
    exporter: opentelemetry_otlp::SpanExporter,
    share: Share,
    calls: HashMap<CallId, Live>,
    ending: VecDeque<(SystemTime, Box<Cdr>)>,
    waiting: VecDeque<SpanData>,
    scope: InstrumentationScope,
    stats: Arc<TapStats>,
    failing: bool,
}

impl Spans {
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the endpoint is none.
    pub fn open(node: &str, config: &TraceConfig, stats: Arc<TapStats>) -> anyhow::Result<Spans> {
        let mut exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(config.endpoint.clone())
            .with_timeout(EXPORT_WITHIN)
            .build()
            .with_context(|| format!("trace.endpoint {}", config.endpoint))?;
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", "sbc"),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", node.to_owned()),
            ])
            .build();
        exporter.set_resource(&resource);
        Ok(Spans {
            exporter,
            share: config.share,
            calls: HashMap::new(),
            ending: VecDeque::new(),
            waiting: VecDeque::new(),
            scope: InstrumentationScope::builder("sbc").build(),
            stats,
            failing: false,
        })
    }

    pub(super) fn take(&mut self, tapped: Tapped) {
        match tapped {
            Tapped::Message(at, trace) if self.share.holds(trace.call) => self.message(at, &trace),
            Tapped::Ended(at, cdr) if self.share.holds(cdr.call) => {
                self.ending.push_back((at, cdr));
            }
            Tapped::Message(..) | Tapped::Ended(..) => {}
        }
    }

    fn message(&mut self, at: SystemTime, trace: &Trace) {
        let Ok(message) = sip::parse(trace.data.clone(), &Limits::default()) else { return };
        let full = self.calls.len() >= CALLS_MAX;
        let scope = self.scope.clone();
        let live = match self.calls.entry(trace.call) {
            hashbrown::hash_map::Entry::Occupied(live) => live.into_mut(),
            hashbrown::hash_map::Entry::Vacant(_) if full => {
                self.stats.spans_lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
            hashbrown::hash_map::Entry::Vacant(place) => place.insert(Live::new(at)),
        };
        live.message(at, trace, &message, &scope);
    }

    /// Ends what is over and exports what is ready.
    pub(super) async fn turn(&mut self, now: SystemTime) {
        while let Some((at, _)) = self.ending.front()
            && now.duration_since(*at).unwrap_or_default() >= LAST_ANSWERS
        {
            let Some((_, cdr)) = self.ending.pop_front() else { break };
            let Some(live) = self.calls.remove(&cdr.call) else { continue };
            self.waiting.extend(live.finish(&cdr, &self.scope));
        }
        if self.calls.len() >= CALLS_MAX {
            self.calls
                .retain(|_, live| now.duration_since(live.last).unwrap_or_default() < SILENT_MAX);
        }
        let excess = self.waiting.len().saturating_sub(WAITING_MAX);
        if excess > 0 {
            self.waiting.drain(..excess);
            self.lost(excess);
        }
        while !self.waiting.is_empty() {
            let batch: Vec<_> = self.waiting.drain(..self.waiting.len().min(BATCH)).collect();
            let count = batch.len();
            match self.exporter.export(batch).await {
                Ok(()) => {
                    self.failing = false;
                    let count = u64::try_from(count).unwrap_or(0);
                    self.stats.spans_sent.fetch_add(count, Ordering::Relaxed);
                }
                Err(error) => {
                    // Once per trouble: a collector that is away is not worth a line a second.
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(%error, "the collector takes no spans");
                    }
                    self.lost(count);
                    return;
                }
            }
        }
    }

    fn lost(&self, count: usize) {
        self.stats.spans_lost.fetch_add(u64::try_from(count).unwrap_or(0), Ordering::Relaxed);
    }
}

impl Live {
    fn new(at: SystemTime) -> Live {
        Live {
            root: span_id(),
            first: at,
            last: at,
            open: HashMap::new(),
            done: Vec::new(),
            routed: false,
            answered_b: None,
            answered_a: None,
        }
    }

    fn message(
        &mut self,
        at: SystemTime,
        trace: &Trace,
        message: &Message,
        scope: &InstrumentationScope,
    ) {
        self.last = at;
        let Ok(cseq) = message.cseq() else { return };
        let branch = message.via().map(|via| via.branch().to_owned()).unwrap_or_default();
        let mut key = Txn {
            side: trace.side,
            direction: trace.direction,
            number: cseq.number,
            method: cseq.method.to_owned(),
            branch,
        };
        let invite = key.method == Method::Invite.as_str();
        match message.status() {
            None if message.method() == Some(&Method::Ack) => {}
            None => {
                let out_b = trace.side == Side::B && trace.direction == Direction::Sent;
                if invite && out_b && !self.routed {
                    self.routed = true;
                    let span = (self.first, at);
                    self.add(
                        trace.call,
                        "routing".to_owned(),
                        SpanKind::Internal,
                        span,
                        vec![],
                        scope,
                    );
                }
                if self.open.len() < SPANS_MAX {
                    let peer = trace.remote.to_string();
                    // A retransmission does not begin it again.
                    self.open.entry(key).or_insert(Open { start: at, peer });
                }
            }
            Some(status) => {
                let good = (200..300).contains(&status);
                if invite && good && trace.side == Side::B && trace.direction == Direction::Received
                {
                    self.answered_b.get_or_insert(at);
                }
                if invite
                    && good
                    && trace.side == Side::A
                    && trace.direction == Direction::Sent
                    && self.answered_a.is_none()
                {
                    self.answered_a = Some(at);
                    if let Some(from) = self.answered_b {
                        let span = (from, at);
                        self.add(
                            trace.call,
                            "commit".to_owned(),
                            SpanKind::Internal,
                            span,
                            vec![],
                            scope,
                        );
                    }
                }
                if status < 200 {
                    return;
                }
                key.direction = match trace.direction {
                    Direction::Received => Direction::Sent,
                    Direction::Sent => Direction::Received,
                };
                let Some(open) = self.open.remove(&key) else { return };
                self.transaction(trace.call, &key, &open, at, Some(status), scope);
            }
        }
    }

    fn transaction(
        &mut self,
        call: CallId,
        txn: &Txn,
        open: &Open,
        end: SystemTime,
        status: Option<u16>,
        scope: &InstrumentationScope,
    ) {
        let kind = match txn.direction {
            Direction::Received => SpanKind::Server,
            Direction::Sent => SpanKind::Client,
        };
        let mut attributes = vec![
            KeyValue::new("sip.method", txn.method.clone()),
            KeyValue::new("sip.leg", leg(txn.side)),
            KeyValue::new("network.peer.address", open.peer.clone()),
        ];
        attributes.extend(status.map(|s| KeyValue::new("sip.status_code", i64::from(s))));
        let name = format!("{} {}", txn.method, leg(txn.side));
        self.add(call, name, kind, (open.start, end), attributes, scope);
        if let (Some(span), Some(300..)) = (self.done.last_mut(), status) {
            span.status = Status::error(status.map(|s| s.to_string()).unwrap_or_default());
        }
    }

    fn add(
        &mut self,
        call: CallId,
        name: String,
        kind: SpanKind,
        (start, end): (SystemTime, SystemTime),
        attributes: Vec<KeyValue>,
        scope: &InstrumentationScope,
    ) {
        if self.done.len() < SPANS_MAX {
            let ids = (span_id(), self.root);
            self.done.push(span(call, ids, name, kind, (start, end), attributes, scope));
        }
    }

    /// Every span of the call, its own last.
    fn finish(mut self, cdr: &Cdr, scope: &InstrumentationScope) -> Vec<SpanData> {
        let ended = at_ms(cdr.ended_ms).max(self.last);
        for (txn, open) in std::mem::take(&mut self.open) {
            self.transaction(cdr.call, &txn, &open, ended, None, scope);
        }
        if let Some(answered) = self.answered_a {
            let mut attributes = Vec::new();
            for (n, codec) in cdr.codecs.iter().enumerate() {
                attributes.push(KeyValue::new(format!("media.{n}.codec"), codec.clone()));
            }
            let over = at_ms(cdr.ended_ms).max(answered);
            let name = "media".to_owned();
            self.add(cdr.call, name, SpanKind::Internal, (answered, over), attributes, scope);
        }
        let mut attributes = vec![
            KeyValue::new("sbc.call", cdr.call.to_string()),
            KeyValue::new("sip.call_id.a", cdr.a.call_id.clone()),
            KeyValue::new("sbc.trunk.a", cdr.a.trunk.to_string()),
            KeyValue::new("sip.status_code", i64::from(cdr.status)),
            KeyValue::new("sbc.protected", cdr.protected),
            KeyValue::new("sbc.ended_by", ended_by(cdr.ended_by)),
        ];
        if let Some(b) = &cdr.b {
            attributes.push(KeyValue::new("sip.call_id.b", b.call_id.clone()));
            attributes.push(KeyValue::new("sbc.trunk.b", b.trunk.to_string()));
        }
        let ids = (self.root, SpanId::INVALID);
        let whole = (self.first, ended);
        let mut root =
            span(cdr.call, ids, "call".to_owned(), SpanKind::Server, whole, attributes, scope);
        if cdr.status >= 400 {
            root.status = Status::error(cdr.status.to_string());
        }
        self.done.push(root);
        self.done
    }
}

fn span(
    call: CallId,
    (own, parent): (SpanId, SpanId),
    name: String,
    span_kind: SpanKind,
    (start_time, end_time): (SystemTime, SystemTime),
    attributes: Vec<KeyValue>,
    scope: &InstrumentationScope,
) -> SpanData {
    let sampled = TraceFlags::SAMPLED;
    SpanData {
        span_context: SpanContext::new(trace_id(call), own, sampled, false, TraceState::default()),
        parent_span_id: parent,
        parent_span_is_remote: false,
        span_kind,
        name: name.into(),
        start_time,
        end_time,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: scope.clone(),
    }
}

/// The same on every node; never zero, which would be no trace.
fn trace_id(call: CallId) -> TraceId {
    TraceId::from((u128::from(call.0) << 64) | 1)
}

fn span_id() -> SpanId {
    SpanId::from(rand::random::<u64>().max(1))
}

fn leg(side: Side) -> &'static str {
    match side {
        Side::A => "A",
        Side::B => "B",
    }
}

fn ended_by(by: EndedBy) -> &'static str {
    match by {
        EndedBy::Caller => "caller",
        EndedBy::Callee => "callee",
        EndedBy::Sbc(cause) => cause.as_str(),
    }
}

fn at_ms(ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms)
}
