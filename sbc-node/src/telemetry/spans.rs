//! A call as a trace: spans for the call, its transactions, routing, the wait for the commit and the
//! media, made from the ladder of a sampled call by `tracing-opentelemetry` and exported by OTLP/gRPC.
//! Shards know nothing of it.
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
//! over belongs to the same trace. Users and numbers are not exported. `span_source.rs` holds the
//! subscriber and the queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use hashbrown::HashMap;
use opentelemetry::KeyValue;
use opentelemetry::trace::Status;
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig};
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter as _;
use sbc_core::b2bua::{CallId, Cdr, EndedBy};
use sbc_core::core::{Direction, Trace};
use sbc_core::media::Side;
use sbc_core::sip::{self, Limits, Message, Method};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::span_source::{Kind, Source};
use super::tap::{Share, TapStats, Tapped};
use crate::config::TraceConfig;

/// Calls watched at a time; more are not traced, and counted.
const CALLS_MAX: usize = 65_536;
/// Spans of one call; a call with more is cut there.
const SPANS_MAX: usize = 256;
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

/// What is known of a call so far.
struct Live {
    root: Span,
    first: SystemTime,
    last: SystemTime,
    open: HashMap<Txn, Span>,
    /// Spans made, the call's own aside.
    made: usize,
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
    source: Source,
    stats: Arc<TapStats>,
    failing: bool,
}

impl Spans {
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the endpoint is none, or its CA cannot be read.
    pub fn open(node: &str, config: &TraceConfig, stats: Arc<TapStats>) -> anyhow::Result<Spans> {
        let mut exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(config.endpoint.clone())
            .with_timeout(EXPORT_WITHIN);
        if let Some(ca) = &config.ca {
            let pem = std::fs::read(ca)
                .with_context(|| format!("the CA of trace.endpoint, {}", ca.display()))?;
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            exporter = exporter.with_tls_config(tls);
        }
        let mut exporter =
            exporter.build().with_context(|| format!("trace.endpoint {}", config.endpoint))?;
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
            source: Source::new(Arc::clone(&stats)),
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
        let live = match self.calls.entry(trace.call) {
            hashbrown::hash_map::Entry::Occupied(live) => live.into_mut(),
            hashbrown::hash_map::Entry::Vacant(_) if full => {
                self.stats.spans_lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
            hashbrown::hash_map::Entry::Vacant(place) => {
                place.insert(Live::new(self.source.call(trace.call, at), at))
            }
        };
        live.message(at, trace, &message, &self.source);
    }

    /// Ends what is over and exports what is ready.
    pub(super) async fn turn(&mut self, now: SystemTime) {
        while let Some((at, _)) = self.ending.front()
            && now.duration_since(*at).unwrap_or_default() >= LAST_ANSWERS
        {
            let Some((_, cdr)) = self.ending.pop_front() else { break };
            let Some(live) = self.calls.remove(&cdr.call) else { continue };
            live.finish(&cdr, &self.source);
        }
        if self.calls.len() >= CALLS_MAX {
            let heard = |live: &Live| now.duration_since(live.last).unwrap_or_default();
            let calls = &mut self.calls;
            self.source.inside(|| calls.retain(|_, live| heard(live) < SILENT_MAX));
        }
        loop {
            let batch = self.source.ended(BATCH);
            if batch.is_empty() {
                return;
            }
            let count = u64::try_from(batch.len()).unwrap_or(0);
            match self.exporter.export(batch).await {
                Ok(()) => {
                    self.failing = false;
                    self.stats.spans_sent.fetch_add(count, Ordering::Relaxed);
                }
                Err(error) => {
                    // Once per trouble: a collector that is away is not worth a line a second.
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(%error, "the collector takes no spans");
                    }
                    self.stats.spans_lost.fetch_add(count, Ordering::Relaxed);
                    return;
                }
            }
        }
    }
}

impl Live {
    fn new(root: Span, at: SystemTime) -> Live {
        Live {
            root,
            first: at,
            last: at,
            open: HashMap::new(),
            made: 0,
            routed: false,
            answered_b: None,
            answered_a: None,
        }
    }

    fn message(&mut self, at: SystemTime, trace: &Trace, message: &Message, source: &Source) {
        self.last = at;
        let Ok(cseq) = message.cseq() else { return };
        let branch = message.via().map(|via| via.branch().to_owned()).unwrap_or_default();
        let key = Txn {
            side: trace.side,
            direction: trace.direction,
            number: cseq.number,
            method: cseq.method.to_owned(),
            branch,
        };
        match message.status() {
            None if message.method() == Some(&Method::Ack) => {}
            None => self.request(at, key, trace.remote.to_string(), source),
            Some(status) => self.response(at, key, status, source),
        }
    }

    fn request(&mut self, at: SystemTime, txn: Txn, peer: String, source: &Source) {
        let out_b = txn.side == Side::B && txn.direction == Direction::Sent;
        if out_b && txn.method == Method::Invite.as_str() && !self.routed {
            self.routed = true;
            if let Some(span) = self.child("routing", Kind::Internal, self.first, source) {
                source.end(span, at);
            }
        }
        // A retransmission does not begin it again.
        if self.open.contains_key(&txn) {
            return;
        }
        let kind = match txn.direction {
            Direction::Received => Kind::Server,
            Direction::Sent => Kind::Client,
        };
        let name = format!("{} {}", txn.method, leg(txn.side));
        let Some(span) = self.child(&name, kind, at, source) else { return };
        span.set_attribute("sip.method", txn.method.clone());
        span.set_attribute("sip.leg", leg(txn.side));
        span.set_attribute("network.peer.address", peer);
        self.open.insert(txn, span);
    }

    fn response(&mut self, at: SystemTime, mut txn: Txn, status: u16, source: &Source) {
        let answer = txn.method == Method::Invite.as_str() && (200..300).contains(&status);
        match (txn.side, txn.direction) {
            (Side::B, Direction::Received) if answer => {
                self.answered_b.get_or_insert(at);
            }
            (Side::A, Direction::Sent) if answer && self.answered_a.is_none() => {
                self.answered_a = Some(at);
                if let Some(from) = self.answered_b
                    && let Some(span) = self.child("commit", Kind::Internal, from, source)
                {
                    source.end(span, at);
                }
            }
            (Side::A | Side::B, Direction::Received | Direction::Sent) => {}
        }
        if status < 200 {
            return;
        }
        txn.direction = match txn.direction {
            Direction::Received => Direction::Sent,
            Direction::Sent => Direction::Received,
        };
        let Some(span) = self.open.remove(&txn) else { return };
        span.set_attribute("sip.status_code", i64::from(status));
        if status >= 300 {
            span.set_status(Status::error(status.to_string()));
        }
        source.end(span, at);
    }

    /// A span below the call's; `None` for a call that has too many.
    fn child(
        &mut self,
        name: &str,
        kind: Kind,
        start: SystemTime,
        source: &Source,
    ) -> Option<Span> {
        let room = self.made < SPANS_MAX;
        self.made += usize::from(room);
        room.then(|| source.part(&self.root, name, kind, start))
    }

    /// Ends every span of the call, its own last.
    fn finish(mut self, cdr: &Cdr, source: &Source) {
        let ended = at_ms(cdr.ended_ms).max(self.last);
        for (_, span) in self.open.drain() {
            source.end(span, ended);
        }
        if let Some(answered) = self.answered_a
            && let Some(span) = self.child("media", Kind::Internal, answered, source)
        {
            for (n, codec) in cdr.codecs.iter().enumerate() {
                span.set_attribute(format!("media.{n}.codec"), codec.clone());
            }
            source.end(span, at_ms(cdr.ended_ms).max(answered));
        }
        let root = self.root;
        root.set_attribute("sip.call_id.a", cdr.a.call_id.clone());
        root.set_attribute("sbc.trunk.a", cdr.a.trunk.to_string());
        root.set_attribute("sip.status_code", i64::from(cdr.status));
        root.set_attribute("sbc.protected", cdr.protected);
        root.set_attribute("sbc.ended_by", ended_by(cdr.ended_by));
        if let Some(b) = &cdr.b {
            root.set_attribute("sip.call_id.b", b.call_id.clone());
            root.set_attribute("sbc.trunk.b", b.trunk.to_string());
        }
        if cdr.status >= 400 {
            root.set_status(Status::error(cdr.status.to_string()));
        }
        source.end(root, ended);
    }
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
