//! Metrics: counters of the shards, of the calls, of the process; encoded on demand.
//!
//! Shards count in atomics of their own (`shard/stats.rs`); this file reads and names them. The
//! text is made once per scrape; `sbcctl stats` reads the very same text.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use sbc_core::b2bua::{Cdr, EndedBy};

use super::cdr::CdrStats;
use crate::shard::stats::{Kind, ShardStats};

/// One number with its name, as any source gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Without `_total`.
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub labels: Vec<(&'static str, String)>,
    pub value: f64,
}

/// Something that has samples to give at a scrape.
pub trait Source: fmt::Debug + Send + Sync + 'static {
    fn samples(&self, out: &mut Vec<Sample>);
}

/// Labels of a finished call: all of them bounded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    trunk_a: String,
    trunk_b: String,
    /// `2xx`, `4xx`, ….
    class: &'static str,
    ended_by: &'static str,
    cause: &'static str,
}

/// Counters of finished calls.
#[derive(Debug)]
pub struct CallMetrics {
    outcomes: Family<Outcome, Counter>,
    setup_seconds: Histogram,
    duration_seconds: Histogram,
}

impl Default for CallMetrics {
    fn default() -> Self {
        let setup = [0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        let duration = [1.0, 5.0, 15.0, 60.0, 180.0, 600.0, 1_800.0, 3_600.0, 14_400.0];
        CallMetrics {
            outcomes: Family::default(),
            setup_seconds: Histogram::new(setup),
            duration_seconds: Histogram::new(duration),
        }
    }
}

impl CallMetrics {
    /// A call attempt is over.
    pub fn ended(&self, cdr: &Cdr) {
        let (ended_by, cause) = match cdr.ended_by {
            EndedBy::Caller => ("caller", ""),
            EndedBy::Callee => ("callee", ""),
            EndedBy::Sbc(cause) => ("sbc", cause.as_str()),
        };
        let outcome = Outcome {
            trunk_a: cdr.a.trunk.to_string(),
            trunk_b: cdr.b.as_ref().map(|b| b.trunk.to_string()).unwrap_or_default(),
            class: class(cdr.status),
            ended_by,
            cause,
        };
        self.outcomes.get_or_create(&outcome).inc();
        if let Some(answered) = cdr.answered_ms {
            self.setup_seconds.observe(seconds(answered.saturating_sub(cdr.started_ms)));
            self.duration_seconds.observe(seconds(cdr.ended_ms.saturating_sub(answered)));
        }
    }
}

fn class(status: u16) -> &'static str {
    match status / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        5 => "5xx",
        _ => "6xx",
    }
}

fn seconds(ms: u64) -> f64 {
    std::time::Duration::from_millis(ms).as_secs_f64()
}

/// Everything that is measured.
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// Registers the counters of calls and every source.
    pub fn new(calls: &CallMetrics, sources: Vec<Box<dyn Source>>) -> Metrics {
        let mut registry = Registry::default();
        registry.register("sbc_call_outcomes", "Finished call attempts", calls.outcomes.clone());
        registry.register(
            "sbc_call_setup_seconds",
            "From INVITE to answer",
            calls.setup_seconds.clone(),
        );
        registry.register(
            "sbc_call_duration_seconds",
            "From answer to end",
            calls.duration_seconds.clone(),
        );
        registry.register_collector(Box::new(Sources(sources)));
        Metrics { registry }
    }

    /// The OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(%error, "cannot encode metrics");
        }
        text
    }
}

#[derive(Debug)]
struct Sources(Vec<Box<dyn Source>>);

impl Collector for Sources {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut samples = Vec::new();
        for source in &self.0 {
            source.samples(&mut samples);
        }
        // One descriptor per name, however many sources and labels it has.
        samples.sort_by_key(|s| s.name);
        for group in samples.chunk_by(|a, b| a.name == b.name) {
            let Some(first) = group.first() else { continue };
            let kind = match first.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(first.name, first.help, None, kind)?;
            for sample in group {
                let labels: Vec<(&str, &str)> =
                    sample.labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
                let mut metric = metric.encode_family(&labels)?;
                match first.kind {
                    Kind::Counter => {
                        metric.encode_counter::<NoLabelSet, f64, u64>(&sample.value, None)?
                    }
                    Kind::Gauge => metric.encode_gauge(&sample.value)?,
                }
            }
        }
        Ok(())
    }
}

/// The counters of every shard.
#[derive(Debug)]
pub struct ShardSource(pub Vec<Arc<ShardStats>>);

impl Source for ShardSource {
    fn samples(&self, out: &mut Vec<Sample>) {
        for (index, stats) in self.0.iter().enumerate() {
            stats.each(|name, help, kind, value| {
                let labels = vec![("shard", index.to_string())];
                out.push(Sample { name, help, kind, labels, value: number(value) });
            });
        }
    }
}

/// What became of call detail records.
#[derive(Debug)]
pub struct CdrSource(pub Arc<CdrStats>);

impl Source for CdrSource {
    fn samples(&self, out: &mut Vec<Sample>) {
        use std::sync::atomic::Ordering::Relaxed;
        let mut push = |name, help, kind, value: u64| {
            out.push(Sample { name, help, kind, labels: Vec::new(), value: number(value) });
        };
        let stats = &self.0;
        push("sbc_cdr_written", "CDRs written", Kind::Counter, stats.written.load(Relaxed));
        push("sbc_cdr_lost", "CDRs lost: queue full", Kind::Counter, stats.lost.load(Relaxed));
        push("sbc_cdr_errors", "Failed CDR writes", Kind::Counter, stats.errors.load(Relaxed));
        let incomplete = stats.incomplete.load(Relaxed);
        let help = "CDRs written without the kernel's last counters";
        push("sbc_cdr_incomplete", help, Kind::Counter, incomplete);
        push("sbc_cdr_queued", "CDRs waiting", Kind::Gauge, stats.queued.load(Relaxed));
    }
}

/// Numbers that somebody fetched just before the scrape (from shards, media, trunks).
#[derive(Clone, Debug, Default)]
pub struct Fetched(Arc<Mutex<Vec<Sample>>>);

impl Fetched {
    pub fn set(&self, samples: Vec<Sample>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = samples;
    }
}

impl Source for Fetched {
    fn samples(&self, out: &mut Vec<Sample>) {
        out.extend(self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
    }
}

/// CPU time, memory and descriptors of the process.
#[derive(Debug)]
pub struct ProcessSource {
    pub started_ms: u64,
}

/// Use of resources by this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessUse {
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub open_fds: u64,
}

impl ProcessUse {
    /// CPU time of all threads so far.
    pub fn cpu_seconds() -> f64 {
        use nix::sys::resource::{UsageWho, getrusage};
        getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
            let part = |t: nix::sys::time::TimeVal| {
                let micros = u64::try_from(t.tv_usec()).unwrap_or(0);
                let whole = u64::try_from(t.tv_sec()).unwrap_or(0);
                (std::time::Duration::from_secs(whole) + std::time::Duration::from_micros(micros))
                    .as_secs_f64()
            };
            part(usage.user_time()) + part(usage.system_time())
        })
    }

    /// Asks the system.
    pub fn now() -> ProcessUse {
        let cpu_seconds = ProcessUse::cpu_seconds();
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: u64 =
            statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or_default();
        let open_fds = std::fs::read_dir("/proc/self/fd").map_or(0, |dir| dir.count());
        ProcessUse {
            cpu_seconds,
            resident_bytes: pages * 4_096,
            open_fds: u64::try_from(open_fds).unwrap_or(0),
        }
    }
}

impl Source for ProcessSource {
    fn samples(&self, out: &mut Vec<Sample>) {
        let used = ProcessUse::now();
        let mut push = |name, help, kind, value| {
            out.push(Sample { name, help, kind, labels: Vec::new(), value });
        };
        push("process_cpu_seconds", "User and system CPU time", Kind::Counter, used.cpu_seconds);
        push(
            "process_resident_memory_bytes",
            "Resident memory",
            Kind::Gauge,
            number(used.resident_bytes),
        );
        push("process_open_fds", "Open file descriptors", Kind::Gauge, number(used.open_fds));
        let fds = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
        let fds = fds.map_or(0, |(soft, _)| soft);
        push("process_max_fds", "Limit of open file descriptors", Kind::Gauge, number(fds));
        push(
            "process_start_time_seconds",
            "Start of the process, Unix time",
            Kind::Gauge,
            seconds(self.started_ms),
        );
    }
}

/// Counters far beyond 2^53 lose their last digits, and nobody minds.
#[expect(clippy::cast_precision_loss, reason = "a metric is a floating point number")]
pub fn number(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_shows_in_the_text_once_described() {
        let stats = vec![Arc::new(ShardStats::default()), Arc::new(ShardStats::default())];
        stats[1].udp_in.add(7);
        let calls = CallMetrics::default();
        let fetched = Fetched::default();
        let metrics =
            Metrics::new(&calls, vec![Box::new(ShardSource(stats)), Box::new(fetched.clone())]);
        let labels = vec![("trunk", "pbx".to_owned())];
        let name = "sbc_trunk_calls";
        fetched.set(vec![Sample { name, help: "Calls", kind: Kind::Gauge, labels, value: 2.0 }]);
        let text = metrics.text();
        assert!(text.contains("sbc_udp_received_datagrams_total{shard=\"1\"} 7.0\n"), "{text}");
        assert!(text.contains("sbc_trunk_calls{trunk=\"pbx\"} 2.0\n"), "{text}");
        assert_eq!(text.matches("# TYPE sbc_udp_received_datagrams counter").count(), 1);
        assert!(text.ends_with("# EOF\n"));
    }
}
