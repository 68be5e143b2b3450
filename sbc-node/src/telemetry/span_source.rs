//! Where spans are made: a `tracing` subscriber of its own with the layer of `tracing-opentelemetry`,
//! seen by nobody but the watcher of sampled calls, and a bounded queue of what ended.
//!
//! The layer takes the clock of the moment when a span is made and dropped. A ladder is told a little
//! later than it happened, so its times travel as two attributes, which the queue takes out again. No
//! event of the node's log and no span of another crate comes here: the filter knows one target.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanId, TraceId, TracerProvider as _};
use opentelemetry::{Context, Value};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{IdGenerator, Sampler, SdkTracerProvider, SpanData, SpanProcessor};
use sbc_core::b2bua::CallId;
use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Span, dispatcher};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;

use super::tap::TapStats;

/// Spans that wait for the collector at most, oldest lost first.
const WAITING_MAX: usize = 16_384;
const TARGET: &str = "sbc::call";
/// Nanoseconds since the epoch, of the ladder.
const START: &str = "sbc.start";
const END: &str = "sbc.end";

/// What a span is to its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Server,
    Client,
    Internal,
}

/// Makes spans and holds those that ended.
pub(super) struct Source {
    dispatch: Dispatch,
    /// The call whose first span is made next.
    call: Arc<AtomicU64>,
    waiting: Arc<Mutex<VecDeque<SpanData>>>,
    /// Ends its processors when it goes.
    _provider: SdkTracerProvider,
}

impl Source {
    pub(super) fn new(stats: Arc<TapStats>) -> Source {
        let (call, waiting) = (Arc::default(), Arc::default());
        let provider = SdkTracerProvider::builder()
            // The share of the calls is chosen before.
            .with_sampler(Sampler::AlwaysOn)
            .with_id_generator(Ids(Arc::clone(&call)))
            .with_span_processor(Queue { waiting: Arc::clone(&waiting), stats })
            .build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("sbc"))
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false);
        let filter = Targets::new().with_target(TARGET, LevelFilter::INFO);
        let subscriber = tracing_subscriber::registry().with(filter).with(layer);
        Source { dispatch: Dispatch::new(subscriber), call, waiting, _provider: provider }
    }

    /// The span of a whole call.
    pub(super) fn call(&self, call: CallId, start: SystemTime) -> Span {
        self.call.store(call.0, Ordering::Relaxed);
        let id = call.to_string();
        let span = self.inside(|| {
            tracing::info_span!(
                target: TARGET, parent: None, "call",
                otel.kind = "server", sbc.start = nanos(start), sbc.call = id.as_str()
            )
        });
        // It gets its ids now.
        drop(span.context());
        span
    }

    /// A span of a part of a call.
    pub(super) fn part(&self, call: &Span, name: &str, kind: Kind, start: SystemTime) -> Span {
        let kind = match kind {
            Kind::Server => "server",
            Kind::Client => "client",
            Kind::Internal => "internal",
        };
        self.inside(|| {
            tracing::info_span!(
                target: TARGET, parent: call, "part",
                otel.name = name, otel.kind = kind, sbc.start = nanos(start)
            )
        })
    }

    /// Ends a span at a time of the ladder.
    pub(super) fn end(&self, span: Span, at: SystemTime) {
        span.set_attribute(END, nanos(at));
        self.inside(|| drop(span));
    }

    /// Spans are dropped in here: the registry looks for the parent of a span that went in the
    /// subscriber of the moment, whichever that is.
    pub(super) fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        dispatcher::with_default(&self.dispatch, work)
    }

    /// Takes up to `max` of the spans that ended, oldest first.
    pub(super) fn ended(&self, max: usize) -> Vec<SpanData> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.len().min(max);
        waiting.drain(..count).collect()
    }
}

fn nanos(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Trace ids are the same on every node for one call, and never zero, which would be no trace.
#[derive(Debug)]
struct Ids(Arc<AtomicU64>);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        TraceId::from((u128::from(self.0.load(Ordering::Relaxed)) << 64) | 1)
    }

    fn new_span_id(&self) -> SpanId {
        SpanId::from(rand::random::<u64>().max(1))
    }
}

/// Keeps what ended until it is taken; never waits.
#[derive(Debug)]
struct Queue {
    waiting: Arc<Mutex<VecDeque<SpanData>>>,
    stats: Arc<TapStats>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

    fn on_end(&self, mut span: SpanData) {
        by_the_ladder(&mut span);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back(span);
        if waiting.len() > WAITING_MAX {
            waiting.pop_front();
            self.stats.spans_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Puts the ladder's times in the place of the clock's.
fn by_the_ladder(span: &mut SpanData) {
    let (mut start, mut end) = (None, None);
    span.attributes.retain(|attribute| {
        let place = match attribute.key.as_str() {
            START => &mut start,
            END => &mut end,
            _ => return true,
        };
        if let Value::I64(nanos) = attribute.value {
            *place = u64::try_from(nanos).ok().map(|n| UNIX_EPOCH + Duration::from_nanos(n));
        }
        false
    });
    span.start_time = start.unwrap_or(span.start_time);
    span.end_time = end.unwrap_or(span.end_time).max(span.start_time);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(ms)
    }

    #[test]
    fn spans_have_the_times_of_the_ladder_and_the_trace_of_their_call() {
        let source = Source::new(Arc::default());
        let root = source.call(CallId(7), at(1_000));
        let part = source.part(&root, "INVITE A", Kind::Server, at(1_001));
        part.set_attribute("sip.status_code", 200);
        source.end(part, at(1_250));
        source.end(root, at(2_000));
        let ended = source.ended(10);
        let [part, root] = &ended[..] else { panic!("{ended:?}") };
        assert_eq!((part.name.as_ref(), root.name.as_ref()), ("INVITE A", "call"));
        assert_eq!((part.start_time, part.end_time), (at(1_001), at(1_250)));
        assert_eq!((root.start_time, root.end_time), (at(1_000), at(2_000)));
        assert_eq!(part.parent_span_id, root.span_context.span_id());
        assert_eq!(root.parent_span_id, SpanId::INVALID);
        let trace = TraceId::from((7_u128 << 64) | 1);
        assert!(ended.iter().all(|s| s.span_context.trace_id() == trace));
        let keys =
            |s: &SpanData| s.attributes.iter().map(|a| a.key.to_string()).collect::<Vec<_>>();
        assert_eq!(keys(part), ["sip.status_code"], "and nothing else");
        assert_eq!(keys(root), ["sbc.call"]);
    }

    #[test]
    fn spans_that_nobody_takes_are_bounded_and_counted() {
        let stats: Arc<TapStats> = Arc::default();
        let source = Source::new(Arc::clone(&stats));
        for n in 0..=u64::try_from(WAITING_MAX).unwrap() {
            source.end(source.call(CallId(n), at(n)), at(n + 1));
        }
        assert_eq!(stats.spans_lost.load(Ordering::Relaxed), 1);
        let first = source.ended(1).remove(0);
        assert_eq!(first.start_time, at(1), "the oldest went");
        assert_eq!(source.ended(usize::MAX).len(), WAITING_MAX - 1);
    }
}
