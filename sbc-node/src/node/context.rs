//! What management sees of a running node: its shards by their queues, its counters, its state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use media_anchor::MediaAnchor;
use media_anchor::kernel::{Reason, Report};
use sbc_core::core::{Core, Input};
use sbc_core::media::Anchor;
use sbc_core::routing::{RegistrationState, Trunk};
use tokio::sync::{Mutex, oneshot};

use super::reload::{Reloads, Running};
use super::replication::Replication;
use crate::guard::Border;
use crate::shard::command::Command;
use crate::shard::queue::Handle;
use crate::shard::stats::{Kind, ShardStats};
use crate::telemetry::cdr::CdrSink;
use crate::telemetry::events::EventHub;
use crate::telemetry::http::Pages;
use crate::telemetry::log::LogControl;
use crate::telemetry::metrics::{
    CallMetrics, CdrSource, Fetched, Metrics, ProcessSource, Sample, ShardSource, number,
};
use crate::telemetry::tap::TapStats;
use crate::telemetry::time::unix_ms;
use crate::telemetry::trace::TraceHub;
use crate::transport::door::Doors;
use crate::transport::stun_server::StunStats;
use crate::users::lookup::LookupStats;

/// How long a shard may take to answer a query.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// How long a command is offered to a shard whose queue is full.
const OFFER_TIME: Duration = Duration::from_secs(5);

/// Whether the node takes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    Running,
    /// No new calls; an operator may undo it.
    Draining,
    /// On its way out.
    Stopping,
}

impl NodeState {
    pub fn as_str(self) -> &'static str {
        match self {
            NodeState::Running => "running",
            NodeState::Draining => "draining",
            NodeState::Stopping => "stopping",
        }
    }
}

/// What a context is made of.
pub(super) struct Made {
    pub(super) shards: Vec<Handle<Core>>,
    pub(super) stats: Vec<Arc<ShardStats>>,
    pub(super) anchor: Arc<MediaAnchor>,
    pub(super) kernel: Arc<Report>,
    pub(super) calls: Arc<CallMetrics>,
    pub(super) traces: TraceHub,
    pub(super) events: EventHub,
    pub(super) tap: Option<Arc<TapStats>>,
    pub(super) stun: Option<Arc<StunStats>>,
    pub(super) looked_up: Option<Arc<LookupStats>>,
    pub(super) cdrs: CdrSink,
    pub(super) log: LogControl,
    pub(super) doors: Arc<Doors>,
    pub(super) running: Running,
    pub(super) cluster: Option<Replication>,
    pub(super) border: Arc<Border>,
}

/// A running node.
pub struct Context {
    pub shards: Vec<Handle<Core>>,
    pub stats: Vec<Arc<ShardStats>>,
    pub anchor: Arc<MediaAnchor>,
    /// Which kernel way is in use, and why.
    pub kernel: Arc<Report>,
    pub traces: TraceHub,
    pub events: EventHub,
    tap: Option<Arc<TapStats>>,
    stun: Option<Arc<StunStats>>,
    looked_up: Option<Arc<LookupStats>>,
    pub cdrs: CdrSink,
    pub log: LogControl,
    pub running: ArcSwap<Running>,
    /// `None` on a node by itself.
    pub cluster: Option<Replication>,
    /// The guard and what follows it.
    pub border: Arc<Border>,
    pub started_ms: u64,
    pub(super) reloading: Mutex<()>,
    pub(super) reloads: Arc<Reloads>,
    /// What connections to come are judged by.
    pub(super) doors: Arc<Doors>,
    state: AtomicU8,
    metrics: Metrics,
    fetched: Fetched,
}

impl Context {
    pub(super) fn new(made: Made) -> Arc<Context> {
        let started_ms = unix_ms();
        let (fetched, reloads) = (Fetched::default(), Arc::<Reloads>::default());
        let metrics = Metrics::new(
            &made.calls,
            vec![
                Box::new(ShardSource(made.stats.clone())),
                Box::new(CdrSource(Arc::clone(&made.cdrs.stats))),
                Box::new(ProcessSource { started_ms }),
                Box::new(fetched.clone()),
                Box::new(Arc::clone(&reloads)),
            ],
        );
        Arc::new(Context {
            shards: made.shards,
            stats: made.stats,
            anchor: made.anchor,
            kernel: made.kernel,
            traces: made.traces,
            events: made.events,
            tap: made.tap,
            stun: made.stun,
            looked_up: made.looked_up,
            cdrs: made.cdrs,
            log: made.log,
            doors: made.doors,
            running: ArcSwap::from_pointee(made.running),
            cluster: made.cluster,
            border: made.border,
            started_ms,
            reloading: Mutex::new(()),
            reloads,
            state: AtomicU8::new(0),
            metrics,
            fetched,
        })
    }

    pub fn node(&self) -> Arc<str> {
        Arc::clone(&self.running.load().config.node.name)
    }

    pub fn state(&self) -> NodeState {
        match self.state.load(Ordering::Relaxed) {
            0 => NodeState::Running,
            1 => NodeState::Draining,
            _ => NodeState::Stopping,
        }
    }

    /// A node that stops never takes calls again.
    pub fn set_state(&self, state: NodeState) {
        let value = match state {
            NodeState::Running => 0,
            NodeState::Draining => 1,
            NodeState::Stopping => 2,
        };
        self.state.fetch_max(value, Ordering::Relaxed);
        if state == NodeState::Running {
            // Only a drain can be undone.
            let _ = self.state.compare_exchange(1, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Asks every shard; one that does not answer in time is left out, and logged.
    pub async fn ask<T: Send + 'static>(
        &self,
        f: impl Fn(&mut Core, Instant, &mut dyn Anchor) -> T + Clone + Send + 'static,
    ) -> Vec<(usize, T)> {
        let mut pending = Vec::new();
        for (index, handle) in self.shards.iter().enumerate() {
            let (sender, receiver) = oneshot::channel();
            let f = f.clone();
            let job = Box::new(move |core: &mut Core, now: Instant, anchor: &mut dyn Anchor| {
                // Whoever asked may have gone away.
                let _ = sender.send(f(core, now, anchor));
            });
            self.offer(handle, Command::Job(job)).await;
            pending.push((index, receiver));
        }
        let mut answers = Vec::new();
        for (index, receiver) in pending {
            match tokio::time::timeout(ANSWER_TIME, receiver).await {
                Ok(Ok(answer)) => answers.push((index, answer)),
                Ok(Err(_)) | Err(_) => tracing::warn!(shard = index, "no answer from a shard"),
            }
        }
        answers
    }

    /// The first shard whose loop does not turn. One that is too busy to answer in time but turns is
    /// not stuck: to end it would end its calls.
    pub async fn stuck_shard(&self) -> Option<usize> {
        let before: Vec<u64> = self.stats.iter().map(|stats| stats.turns.get()).collect();
        let answered = self.ask(|_, _, _| ()).await;
        let answers = |shard: usize| answered.iter().any(|(index, ())| *index == shard);
        let turned = |shard: usize, then: &u64| {
            self.stats.get(shard).is_some_and(|stats| stats.turns.get() != *then)
        };
        let mut all = before.iter().enumerate();
        all.find(|(shard, then)| !answers(*shard) && !turned(*shard, then)).map(|(shard, _)| shard)
    }

    /// Gives every shard an input.
    pub async fn broadcast(&self, input: impl Fn() -> Input) {
        for handle in &self.shards {
            self.offer(handle, Command::Input(input())).await;
        }
    }

    pub(super) async fn offer(&self, handle: &Handle<Core>, mut command: Command<Core>) {
        let until = Instant::now() + OFFER_TIME;
        while let Err(back) = handle.command(command) {
            if Instant::now() > until {
                tracing::error!(command = ?back, "a shard takes no commands");
                return;
            }
            command = back;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Calls of all shards.
    pub async fn call_count(&self) -> u64 {
        let answers = self.ask(|core, _, _| core.stats().calls).await;
        answers.iter().map(|(_, calls)| calls).sum()
    }

    /// Waits until no call is left; false when `until` comes first.
    pub(super) async fn calls_gone(&self, until: Instant) -> bool {
        loop {
            if self.call_count().await == 0 {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until no registration with a trunk is being taken back; false when `until` comes first.
    pub(super) async fn registrations_gone(&self, until: Instant) -> bool {
        loop {
            let answers = self.ask(|core, _, _| core.registrations_leaving()).await;
            if answers.iter().all(|(_, leaving)| *leaving == 0) {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Named trouble.
    pub fn alarms(&self) -> Vec<String> {
        let cdrs = self.cdrs.alarm().map(str::to_owned);
        let cluster = self.cluster.iter().flat_map(Replication::alarms);
        let running = self.running.load();
        let failed = running.core.routing.trunks().flat_map(|trunk| {
            let failed = trunk
                .registrations()
                .filter(|(_, r)| r.status().state == RegistrationState::Failed)
                .map(|(config, _)| {
                    format!("trunk {}: {} not registered", trunk.name(), config.aor)
                });
            failed.collect::<Vec<_>>()
        });
        cdrs.into_iter().chain(cluster).chain(failed).collect()
    }

    /// The metrics, with what must be asked for freshly asked.
    pub async fn metrics_text(&self) -> String {
        let mut samples = Vec::new();
        let all = self.ask(|core, _, _| {
            let users = core.registrar().map(|r| r.bindings().stats());
            (core.stats(), core.transaction_stats(), users, core.cache_stats())
        });
        for (shard, (calls, txn, users, cache)) in all.await {
            core_samples(shard, &calls, &txn, &mut samples);
            cache_samples(shard, &cache, &mut samples);
            user_samples(shard, &users.unwrap_or_default(), &mut samples);
        }
        if let Some(lookups) = &self.looked_up {
            lookup_samples(lookups, &mut samples);
        }
        samples.push(Sample {
            name: "sbc_trace_watchers",
            help: "Operators that watch ladders",
            kind: Kind::Gauge,
            labels: Vec::new(),
            value: number(u64::try_from(self.traces.watchers()).unwrap_or(0)),
        });
        samples.push(Sample {
            name: "sbc_events_missed",
            help: "Events that watchers were too slow for",
            kind: Kind::Counter,
            labels: Vec::new(),
            value: number(self.events.missed()),
        });
        if let Some(tap) = &self.tap {
            tap.samples(&mut samples);
        }
        if let Some(stun) = &self.stun {
            stun.samples(&mut samples);
        }
        self.media_samples(&mut samples);
        self.kernel_samples(&mut samples);
        self.admission_samples(&mut samples);
        self.trunk_samples(&mut samples);
        self.border.samples(&mut samples);
        if let Some(cluster) = &self.cluster {
            cluster.samples(&mut samples);
        }
        self.fetched.set(samples);
        self.metrics.text()
    }

    fn media_samples(&self, out: &mut Vec<Sample>) {
        let totals = self.anchor.totals();
        let mut push = |name, help, kind, labels, value: u64| {
            out.push(Sample { name, help, kind, labels, value: number(value) });
        };
        let (c, g) = (Kind::Counter, Kind::Gauge);
        push("sbc_media_relayed_datagrams", "Relayed in userspace", c, vec![], totals.relayed);
        push("sbc_media_relayed_bytes", "Payload relayed in userspace", c, vec![], totals.bytes);
        push("sbc_media_sessions", "Media sessions", g, vec![], totals.sessions);
        push("sbc_media_sockets", "Media sockets", g, vec![], totals.sockets);
        for reason in media_anchor::DropReason::ALL {
            let labels = vec![("reason", reason.label().to_owned())];
            let value = totals.dropped_for(reason);
            push("sbc_media_dropped_datagrams", "Media dropped", c, labels, value);
        }
        for (interface, address, counts) in &totals.ports {
            let state = |state: &str| {
                vec![
                    ("interface", self.interface_name(interface.0)),
                    ("address", address.to_string()),
                    ("state", state.to_owned()),
                ]
            };
            let (name, help) = ("sbc_media_port_pairs", "Media port pairs");
            push(name, help, g, state("used"), counts.used.try_into().unwrap_or(0));
            let rest = counts.total.saturating_sub(counts.used);
            push(name, help, g, state("free"), rest.try_into().unwrap_or(0));
        }
    }

    fn kernel_samples(&self, out: &mut Vec<Sample>) {
        let status = self.kernel.status();
        let mut push = |name, help, kind, labels, value: u64| {
            out.push(Sample { name, help, kind, labels, value: number(value) });
        };
        let (c, g) = (Kind::Counter, Kind::Gauge);
        let way = vec![("way", status.way.to_owned())];
        push("sbc_kernel_flows", "Flows in the kernel, by the way in use", g, way, status.flows);
        let (name, help) = ("sbc_kernel_standby_flows", "Flows of other nodes' calls");
        push(name, help, g, vec![], status.standby);
        let totals = status.totals;
        for (what, value) in [
            ("installed", totals.installed),
            ("removed", totals.removed),
            ("replanned", totals.replanned),
            ("evicted", totals.evicted),
            ("promoted", totals.promoted),
        ] {
            let labels = vec![("change", what.to_owned())];
            push("sbc_kernel_flow_changes", "Changes of flows in the kernel", c, labels, value);
        }
        for (what, value) in [
            ("missing", totals.missing),
            ("leaked", totals.leaked),
            ("table", totals.rebuilt),
            ("split", totals.split),
        ] {
            let labels = vec![("what", what.to_owned())];
            push("sbc_kernel_repairs", "Repairs of the kernel's table", c, labels, value);
        }
        for (reason, value) in Reason::ALL.into_iter().zip(status.refused) {
            let labels = vec![("reason", reason.label().to_owned())];
            push("sbc_kernel_refused_flows", "Flows left to userspace", c, labels, value);
        }
    }

    fn trunk_samples(&self, out: &mut Vec<Sample>) {
        for trunk in self.running.load().core.routing.trunks() {
            let labels = vec![("trunk", trunk.name().to_string())];
            let mut push = |name, help, value: u64| {
                let (kind, labels) = (Kind::Gauge, labels.clone());
                out.push(Sample { name, help, kind, labels, value: number(value) });
            };
            push("sbc_trunk_calls", "Calls of a trunk, both directions", trunk.calls().into());
            push("sbc_trunk_up", "Whether a trunk takes calls", trunk.is_up().into());
            registration_samples(trunk, out);
        }
    }

    fn admission_samples(&self, out: &mut Vec<Sample>) {
        let (limits, uncounted) = self.running.load().core.routing.caller_status();
        let mut push = |name, help, kind, labels, value: u64| {
            out.push(Sample { name, help, kind, labels, value: number(value) });
        };
        let (c, g) = (Kind::Counter, Kind::Gauge);
        for limit in limits {
            let labels = vec![("limit", limit.name.to_string())];
            let (calls, refused) = (limit.calls, limit.refused);
            push("sbc_admission_calls", "Calls that a limit counts", g, labels.clone(), calls);
            push("sbc_admission_refused_calls", "Calls refused by a limit", c, labels, refused);
        }
        let help = "Calls of users that no place was left to count";
        push("sbc_admission_uncounted_calls", help, c, vec![], uncounted);
    }

    /// The name of an interface by its number.
    pub fn interface_name(&self, id: u16) -> String {
        let running = self.running.load();
        let found = running.core.interfaces.iter().find(|i| i.id.0 == id);
        found.map_or_else(|| id.to_string(), |i| i.name.to_string())
    }
}

/// Our registrations with a trunk, where it wants any.
fn registration_samples(trunk: &Trunk, out: &mut Vec<Sample>) {
    let all: Vec<_> = trunk.registrations().map(|(_, r)| r.status()).collect();
    if all.is_empty() {
        return;
    }
    let registered = all.iter().filter(|s| s.state == RegistrationState::Registered).count();
    let (c, g) = (Kind::Counter, Kind::Gauge);
    let mut push = |name, help, kind, value: u64| {
        let labels = vec![("trunk", trunk.name().to_string())];
        out.push(Sample { name, help, kind, labels, value: number(value) });
    };
    push("sbc_trunk_registered", "Addresses this node holds registered with a trunk", g, {
        u64::try_from(registered).unwrap_or(0)
    });
    push("sbc_trunk_registrations_accepted", "REGISTERs that a trunk accepted", c, {
        all.iter().map(|s| s.accepted).sum()
    });
    push("sbc_trunk_registrations_failed", "Rounds in which no registrar accepted", c, {
        all.iter().map(|s| s.failed).sum()
    });
}

fn core_samples(
    shard: usize,
    calls: &sbc_core::b2bua::Stats,
    txn: &sbc_core::transaction::Stats,
    out: &mut Vec<Sample>,
) {
    for (defect, count) in sbc_core::sip::Defect::ALL.iter().zip(calls.malformed) {
        out.push(Sample {
            name: "sbc_malformed_messages",
            help: "Messages that could not be read",
            kind: Kind::Counter,
            labels: vec![("shard", shard.to_string()), ("kind", defect.as_str().to_owned())],
            value: number(count),
        });
    }
    let mut push = |name, help, kind, value: u64| {
        let labels = vec![("shard", shard.to_string())];
        out.push(Sample { name, help, kind, labels, value: number(value) });
    };
    let (c, g) = (Kind::Counter, Kind::Gauge);
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    push("sbc_calls", "Calls in any phase", g, calls.calls);
    push("sbc_calls_up", "Calls answered and not ended", g, calls.calls_up);
    push("sbc_call_attempts", "INVITEs that became a call", c, calls.attempts);
    push("sbc_calls_answered", "Calls answered", c, calls.answered);
    push("sbc_calls_refused", "INVITEs refused before a call existed", c, calls.refused);
    push("sbc_calls_completed", "Calls that ended after an answer", c, calls.completed);
    push("sbc_calls_failed", "Calls never answered", c, calls.failed);
    push("sbc_call_failovers", "Targets given up for the next", c, calls.failovers);
    push("sbc_calls_unprotected", "Answers relayed uncommitted", c, calls.unprotected);
    push("sbc_calls_early_too_large", "Ringing calls too large to be replicated", c, {
        calls.early_too_large
    });
    push("sbc_call_media_timeouts", "Calls ended by silence", c, calls.media_timeouts);
    push("sbc_call_session_timeouts", "Calls ended by session timer", c, calls.session_timeouts);
    push("sbc_call_missing_acks", "Calls whose 2xx was never ACKed", c, calls.no_ack);
    push(
        "sbc_registrar_unasked",
        "Requests of phones whose users nobody told of",
        c,
        calls.unasked,
    );
    push("sbc_call_stray_answers", "2xx of calls that were gone", c, calls.stray_answers);
    push("sbc_subscriptions", "Subscriptions outside calls", g, calls.subscriptions);
    push("sbc_relayed_requests", "Requests outside dialogs routed on", c, calls.relayed);
    push("sbc_unknown_dialogs", "Requests answered 481", c, calls.unknown_dialogs);
    let withheld = calls.credentials_withheld;
    push("sbc_credentials_withheld", "Challenges from elsewhere than the trunk", c, withheld);
    push("sbc_stun_stray_responses", "STUN responses to no keepalive", c, calls.stray_stun);
    push("sbc_dropped_messages", "Messages dropped unanswered", c, calls.dropped);
    push("sbc_calls_adopted", "Calls taken over", c, calls.adopted);
    push("sbc_calls_adopt_failed", "Calls whose trunk or interface is not here", c, {
        calls.adopt_failed
    });
    push("sbc_legs_moved", "Legs moved here by re-INVITE", c, calls.legs_moved);
    push("sbc_legs_rebound", "Lost legs that go by another connection", c, calls.legs_rebound);
    push("sbc_leg_move_refusals", "Re-INVITEs to here that were refused", c, calls.move_refusals);
    push("sbc_transactions_client", "Client transactions", g, count(txn.clients));
    push("sbc_transactions_server", "Server transactions", g, count(txn.servers));
    push("sbc_transactions_refused", "Requests refused: table full", c, txn.refused_full);
    push("sbc_retransmissions_in", "Requests received again", c, txn.request_retransmissions);
    push("sbc_retransmissions_out", "Requests sent again", c, txn.sent_retransmissions);
    push("sbc_stray_responses", "Responses of no transaction", c, txn.stray_responses);
    push("sbc_unusable_messages", "Messages without usable Via", c, txn.unusable);
}

impl Pages for Context {
    async fn metrics(&self) -> String {
        self.metrics_text().await
    }

    fn unready(&self) -> Option<&'static str> {
        match self.state() {
            NodeState::Running => self.cluster.as_ref().and_then(Replication::unready),
            NodeState::Draining => Some("draining"),
            NodeState::Stopping => Some("stopping"),
        }
    }

    async fn stuck(&self) -> Option<String> {
        self.stuck_shard().await.map(|shard| format!("shard {shard} does not turn"))
    }
}

/// REGISTERs of phones whose registrar stands behind us.
fn cache_samples(shard: usize, cache: &sbc_core::core::CacheStats, out: &mut Vec<Sample>) {
    let mut push = |name, help, value: u64| {
        let labels = vec![("shard", shard.to_string())];
        out.push(Sample { name, help, kind: Kind::Counter, labels, value: number(value) });
    };
    push("sbc_upstream_registers", "REGISTERs passed on to a core registrar", cache.forwarded);
    push("sbc_upstream_absorbed", "Refreshes answered without the core", cache.absorbed);
    push("sbc_upstream_unanswered", "REGISTERs that no registrar answered", cache.unanswered);
    push("sbc_upstream_bridged", "Refreshes granted while the core was away", cache.bridged);
    push("sbc_upstream_withdrawn", "Ended contacts taken out of the core", cache.withdrawn);
    push("sbc_upstream_withdraw_refused", "Of these, refused by the core", cache.withdraw_refused);
}

fn lookup_samples(lookups: &LookupStats, out: &mut Vec<Sample>) {
    for (result, value) in [
        ("found", &lookups.found),
        ("nobody", &lookups.nobody),
        ("wrong", &lookups.wrong),
        ("unavailable", &lookups.unavailable),
    ] {
        out.push(Sample {
            name: "sbc_registrar_lookups",
            help: "Users looked up in the database or by RADIUS",
            kind: Kind::Counter,
            labels: vec![("result", result.to_owned())],
            value: number(value.load(Ordering::Relaxed)),
        });
    }
    let Some(radius) = &lookups.radius else { return };
    let mut push = |name, help, value: &AtomicU64| {
        let value = number(value.load(Ordering::Relaxed));
        out.push(Sample { name, help, kind: Kind::Counter, labels: Vec::new(), value });
    };
    push("sbc_registrar_radius_sent", "Access-Requests sent, repeated ones too", &radius.sent);
    push("sbc_registrar_radius_dropped", "Datagrams that were no answer", &radius.dropped);
    push("sbc_registrar_radius_silent", "Times a RADIUS server was given up", &radius.silent);
}

fn user_samples(shard: usize, users: &sbc_core::registrar::Stats, out: &mut Vec<Sample>) {
    let mut push = |name, help, kind, value: u64| {
        let labels = vec![("shard", shard.to_string())];
        out.push(Sample { name, help, kind, labels, value: number(value) });
    };
    let (c, g) = (Kind::Counter, Kind::Gauge);
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    push("sbc_registered_users", "Users with a contact", g, count(users.aors));
    push("sbc_registered_contacts", "Contacts of all users", g, count(users.bindings));
    push("sbc_registrations_expired", "Contacts that ran out", c, users.expired);
    push("sbc_registrations_gone", "Contacts without connection or answer", c, users.gone);
    push("sbc_registrations_coalesced", "Refreshes that wrote nothing", c, users.coalesced);
    push("sbc_registrations_stored", "Replicated writes of users", c, users.stores);
    push("sbc_registrar_pings", "Keepalives sent to phones", c, users.pings);
    push("sbc_registrar_ping_answers", "Keepalives that were answered", c, users.ping_answers);
    push("sbc_registrar_ping_misses", "Keepalives without an answer", c, users.ping_misses);
    push("sbc_registrar_ping_trials", "Longer gaps tried", c, users.ping_trials);
    push(
        "sbc_registrar_ping_trials_missed",
        "Gaps that were too long",
        c,
        users.ping_trials_missed,
    );
}
