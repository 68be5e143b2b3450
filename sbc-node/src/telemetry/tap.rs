//! The tap: messages and ends of sampled calls, from the shards to those who watch from outside (HEP,
//! traces). One bounded queue; what does not fit is counted and lost, a shard never waits. With
//! nothing configured there is no tap, and the core makes nothing for it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use sbc_core::b2bua::{CallId, Cdr};
use sbc_core::core::Trace;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::hep::Hep;
use super::metrics::{Sample, number};
use super::spans::Spans;
use crate::config::{HepConfig, TraceConfig};
use crate::shard::stats::Kind;

/// Messages that may wait: a second of 2,000 calls/s.
const QUEUE: usize = 32_768;
/// Taken at once.
const BATCH: usize = 256;
/// How often what waits is looked through.
const TURN: std::time::Duration = std::time::Duration::from_millis(200);

/// What is tapped, with the moment when the shard told it.
#[derive(Debug)]
pub enum Tapped {
    Message(SystemTime, Arc<Trace>),
    Ended(SystemTime, Box<Cdr>),
}

/// A share of all calls, chosen by their id: every node and both watchers choose the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u64);

impl Share {
    /// `part` from 0 to 1.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share needs no more digits; the ends are exact"
    )]
    pub fn of(part: f64) -> Share {
        if part >= 1.0 { Share(u64::MAX) } else { Share((part.max(0.0) * u64::MAX as f64) as u64) }
    }

    /// Ids below it are in; 0 for none.
    pub fn below(self) -> u64 {
        self.0
    }

    pub fn holds(self, call: CallId) -> bool {
        self.0 == u64::MAX || call.0 < self.0
    }
}

/// What became of the watching.
#[derive(Debug, Default)]
pub struct TapStats {
    pub lost: AtomicU64,
    pub hep_sent: AtomicU64,
    pub hep_errors: AtomicU64,
    pub spans_sent: AtomicU64,
    pub spans_lost: AtomicU64,
}

impl TapStats {
    pub fn samples(&self, out: &mut Vec<Sample>) {
        let mut push = |name, help, value: &AtomicU64| {
            let value = number(value.load(Ordering::Relaxed));
            out.push(Sample { name, help, kind: Kind::Counter, labels: vec![], value });
        };
        push("sbc_tap_lost_messages", "Messages of sampled calls lost: queue full", &self.lost);
        push("sbc_hep_sent_packets", "HEP packets sent", &self.hep_sent);
        push("sbc_hep_errors", "HEP packets that could not be sent", &self.hep_errors);
        push("sbc_spans_sent", "Spans taken by the collector", &self.spans_sent);
        push("sbc_spans_lost", "Spans that no collector took", &self.spans_lost);
    }
}

/// A shard's end.
#[derive(Clone, Debug)]
pub struct Tap {
    sender: mpsc::Sender<Tapped>,
    share: Share,
    pub stats: Arc<TapStats>,
}

impl Tap {
    /// Starts the watchers that the configuration asks for; `None` without any.
    ///
    /// # Errors
    /// When a socket or an exporter cannot be made.
    pub fn start(
        node: &str,
        hep: Option<&HepConfig>,
        trace: Option<&TraceConfig>,
        runtime: &Runtime,
    ) -> anyhow::Result<Option<Tap>> {
        let shares = [hep.map(|h| h.share), trace.map(|t| t.share)];
        let share = shares.into_iter().flatten().max().unwrap_or_default();
        if share == Share::default() {
            return Ok(None);
        }
        let stats = Arc::new(TapStats::default());
        let _inside = runtime.enter();
        let hep = match hep {
            Some(config) => Some(runtime.block_on(Hep::open(node, config, Arc::clone(&stats)))?),
            None => None,
        };
        let spans =
            trace.map(|config| Spans::open(node, config, Arc::clone(&stats))).transpose()?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        runtime.spawn(watch(receiver, hep, spans));
        Ok(Some(Tap { sender, share, stats }))
    }

    /// Which calls the core shall tell of.
    pub fn share(&self) -> Share {
        self.share
    }

    pub fn message(&self, trace: &Arc<Trace>) {
        if self.share.holds(trace.call) {
            self.offer(Tapped::Message(SystemTime::now(), Arc::clone(trace)));
        }
    }

    pub fn ended(&self, cdr: &Cdr) {
        if self.share.holds(cdr.call) {
            self.offer(Tapped::Ended(SystemTime::now(), Box::new(cdr.clone())));
        }
    }

    fn offer(&self, what: Tapped) {
        if self.sender.try_send(what).is_err() {
            self.stats.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn watch(mut receiver: mpsc::Receiver<Tapped>, hep: Option<Hep>, mut spans: Option<Spans>) {
    let mut turn = tokio::time::interval(TURN);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            count = receiver.recv_many(&mut batch, BATCH) => if count == 0 { return },
            _ = turn.tick() => {}
        }
        for tapped in batch.drain(..) {
            if let (Some(hep), Tapped::Message(at, trace)) = (&hep, &tapped) {
                hep.send(*at, trace);
            }
            if let Some(spans) = &mut spans {
                spans.take(tapped);
            }
        }
        if let Some(spans) = &mut spans {
            spans.turn(SystemTime::now()).await;
        }
    }
}

/// The first line of a file: an API key or such.
///
/// # Errors
/// When the file cannot be read.
pub fn secret(path: &Path) -> std::io::Result<String> {
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// An address of the family of `like`, for where the edge chose the socket and nobody knows ours.
pub fn unspecified(like: SocketAddr) -> SocketAddr {
    let any: std::net::IpAddr = match like {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(any, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_ids_and_its_ends_are_exact() {
        for call in [0, 1, u64::MAX / 2, u64::MAX] {
            assert!(Share::of(1.0).holds(CallId(call)));
            assert!(!Share::of(0.0).holds(CallId(call)));
        }
        assert!(Share::of(0.5).holds(CallId(u64::MAX / 4)));
        assert!(!Share::of(0.5).holds(CallId(u64::MAX / 4 * 3)));
        assert!(Share::of(0.1) < Share::of(0.2));
    }
}
