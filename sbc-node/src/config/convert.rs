//! From the raw form to [`Config`]: what concerns the node as a whole.
//!
//! Interfaces, trunks and routes have files of their own beside this one. Problems are gathered,
//! never returned early; a name that is missing only because its own entry was wrong is not told
//! again.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sbc_core::b2bua::CallPolicy;
use sbc_core::routing::{AdmissionConfig, CallLimits, Secret, UnknownSource};
use sbc_core::transaction::TimerConfig;
use toml::Spanned;

use super::parse::{Lines, read};
use super::value::Span;
use super::{
    AdminConfig, CdrConfig, ClusterConfig, Config, DnsConfig, FloatingConfig, HepConfig,
    JoinConfig, JoinToken, LogConfig, NodeConfig, Problem, Share, Surroundings, TlsFiles,
    TraceConfig, TransportConfig, diff, guard, interface, lookup, place, raw, registrar, route,
    secure, stun, trunk,
};
use crate::floating::Lifetime;
use crate::transport::tls::SYSTEM_ROOTS;

/// 1,000 calls within 5 s of their node's death, of which the hand-over takes 1.3 s: half as fast would
/// do where nothing else goes on.
const REINVITES_PER_S: u32 = 600;

const MAX_SHARDS: usize = 64;
const DEFAULT_SOCKET: &str = "/run/sbc/admin.sock";
const DEFAULT_CLUSTER_PORT: u16 = 7000;
const DEFAULT_HEP_PORT: u16 = 9060;

/// Gathers problems and knows the surroundings.
pub(super) struct Context<'a> {
    pub(super) surroundings: &'a Surroundings<'a>,
    lines: Lines,
    problems: Vec<Problem>,
    /// The raw form lacks entries that were wrong: what refers to them may not be blamed.
    incomplete: bool,
}

impl Context<'_> {
    pub(super) fn problem(&mut self, span: Range<usize>, message: impl Into<String>) {
        let line = self.lines.line(span.start);
        self.problems.push(Problem { line, message: message.into() });
    }

    /// A problem that may be the consequence of another one.
    pub(super) fn dependent(&mut self, span: Range<usize>, message: impl Into<String>) {
        if !self.incomplete {
            self.problem(span, message);
        }
    }

    pub(super) fn path(&self, path: &Path) -> PathBuf {
        self.surroundings.base.join(path)
    }

    /// The file's text; a problem when it cannot be read.
    pub(super) fn text(&mut self, path: &Spanned<PathBuf>) -> Option<String> {
        let full = self.path(path.get_ref());
        match std::fs::read_to_string(&full) {
            Ok(text) => Some(text),
            Err(e) => {
                self.problem(path.span(), format!("cannot read {}: {e}", full.display()));
                None
            }
        }
    }

    /// The file's bytes, `max` at most; a problem when it cannot be read or is larger.
    pub(super) fn bytes(&mut self, path: &Spanned<PathBuf>, max: u64) -> Option<Vec<u8>> {
        let full = self.path(path.get_ref());
        let read = std::fs::metadata(&full).and_then(|data| {
            if data.len() > max {
                return Err(std::io::Error::other(format!("larger than {max} bytes")));
            }
            std::fs::read(&full)
        });
        read.map_err(|e| self.problem(path.span(), format!("cannot read {}: {e}", full.display())))
            .ok()
    }

    /// A number within bounds, or its default.
    pub(super) fn bounded<T>(
        &mut self,
        value: Option<&Spanned<T>>,
        default: T,
        range: std::ops::RangeInclusive<T>,
    ) -> T
    where
        T: Copy + PartialOrd + std::fmt::Display,
    {
        let Some(value) = value else { return default };
        if !range.contains(value.get_ref()) {
            let (low, high) = (range.start(), range.end());
            self.problem(value.span(), format!("{} is not in {low} to {high}", value.get_ref()));
        }
        *value.get_ref()
    }

    pub(super) fn limits(
        &mut self,
        max_calls: Option<u32>,
        max_cps: Option<&Spanned<f64>>,
    ) -> CallLimits {
        if let Some(cps) = max_cps
            && !(cps.get_ref().is_finite() && *cps.get_ref() >= 0.0)
        {
            self.problem(cps.span(), "max-cps is not a rate of calls per second");
        }
        CallLimits { max_calls, max_cps: max_cps.map(|c| *c.get_ref()) }
    }

    /// Names appear in logs, CDRs, metrics and on command lines.
    pub(super) fn name(&mut self, name: &Spanned<String>) {
        let text = name.get_ref();
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if text.is_empty() || text.len() > 64 || !text.bytes().all(fits) {
            let message = format!(
                "the name \"{text}\" is not 1 to 64 letters, digits, \"-\", \"_\" or \".\""
            );
            self.problem(name.span(), message);
        }
    }

    /// A duration that is not 0, or its default.
    pub(super) fn span(&mut self, value: Option<&Spanned<Span>>, default: Duration) -> Duration {
        let Some(value) = value else { return default };
        if value.get_ref().0.is_zero() {
            self.problem(value.span(), "the duration is 0");
        }
        value.get_ref().0
    }
}

/// See [`super::check_in`].
pub(super) fn convert(text: &str, surroundings: &Surroundings<'_>) -> Result<Config, Vec<Problem>> {
    let lines = Lines::new(text);
    let fill = |name: &str| place::value(name, surroundings);
    let reading = read::<raw::File>(text, &lines, &raw::LISTS, &fill);
    let incomplete = !reading.problems.is_empty();
    let mut cx = Context { surroundings, lines, problems: reading.problems, incomplete };
    let config =
        reading.raw.map(|file| file_config(&mut cx, &file, diff::document(&reading.document)));
    cx.problems.sort();
    cx.problems.dedup();
    match config {
        Some(config) if cx.problems.is_empty() => Ok(config),
        _ => Err(cx.problems),
    }
}

fn file_config(cx: &mut Context<'_>, file: &raw::File, document: toml::Table) -> Config {
    let node = node(cx, &file.node);
    let doors = interface::convert(cx, file);
    let trunks = trunk::convert(cx, file, &doors);
    let routing = sbc_core::routing::RoutingConfig {
        trunks,
        admission: AdmissionConfig {
            node: cx.limits(file.admission.max_calls, file.admission.max_cps.as_ref()),
            emergency: file.admission.emergency.clone(),
            callers: guard::callers(cx, file),
        },
        unknown_source: match file.sip.unknown_source {
            raw::UnknownSource::Reject => UnknownSource::Reject,
            raw::UnknownSource::Silent => UnknownSource::Silent,
        },
        ..route::convert(cx, file)
    };
    route::check(cx, file, &routing);
    let guard = guard::convert(cx, file, &doors, &routing);
    let cluster = file.cluster.as_ref().map(|c| cluster(cx, c.get_ref()));
    let (registrar, users) = registrar::convert(cx, file, node.shards).unzip();
    let sip_limits = sip_limits(cx, &file.sip);
    let media = interface::media(cx, file, &doors, node.shards);
    let rules = secure::doors(cx, file, &doors);
    let config = Config {
        doors: rules,
        product: product(cx, &file.node),
        interfaces: doors.into_iter().map(|d| d.interface).collect(),
        calls: calls(cx, &file.calls, cluster.as_ref()),
        routing,
        guard,
        ban_set: guard::ban_set(cx, &file.guard),
        overload: guard::overload(cx, &file.overload),
        transactions: transactions(cx, &file.sip),
        registrar,
        users,
        lookup: lookup::lookup(cx, file),
        transport: transport(cx, &file.transport, &sip_limits),
        sip_limits,
        stun: stun::convert(cx, file),
        media,
        kernel: file.media.kernel,
        kernel_devices: kernel_devices(cx, &file.media),
        kernel_flows_max: cx.bounded(
            file.media.kernel_flows_max.as_ref(),
            262_144,
            1_000..=4_000_000,
        ),
        dns: dns(cx, &file.dns),
        cdr: cdr(cx, &file.cdr),
        log: log(cx, &file.log),
        metrics: file.metrics.listen.as_ref().map(|l| *l.get_ref()),
        trace: file.trace.as_ref().map(|t| trace(cx, t.get_ref())),
        hep: file.hep.as_ref().map(|h| hep(cx, h.get_ref())),
        admin: admin(cx, &file.admin),
        cluster,
        node,
        document,
    };
    interface::check_overlaps(cx, file);
    config
}

/// Names as the kernel takes them: 1 to 15 bytes, no slash and no white space.
fn kernel_devices(cx: &mut Context<'_>, media: &raw::Media) -> Vec<String> {
    for device in &media.kernel_devices {
        let name = device.get_ref();
        let good = (1..=15).contains(&name.len())
            && !matches!(name.as_str(), "." | "..")
            && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
        if !good {
            cx.problem(device.span(), format!("{name:?} is no name of a network device"));
        }
    }
    media.kernel_devices.iter().map(|d| d.get_ref().clone()).collect()
}

fn node(cx: &mut Context<'_>, node: &raw::Node) -> NodeConfig {
    let cores = cx.surroundings.cores.clamp(1, MAX_SHARDS);
    NodeConfig {
        name: node.name.as_deref().unwrap_or(cx.surroundings.hostname).into(),
        shards: cx.bounded(node.shards.as_ref(), cores, 1..=MAX_SHARDS),
        drain_time: node.drain_time.map_or(Duration::from_secs(30), |s| s.0),
    }
}

fn product(cx: &mut Context<'_>, node: &raw::Node) -> std::sync::Arc<str> {
    let Some(product) = &node.user_agent else { return "sbc".into() };
    if !product.get_ref().bytes().all(|b| (b' '..=b'~').contains(&b)) {
        cx.problem(product.span(), "user-agent is not printable ASCII");
    }
    product.get_ref().as_str().into()
}

fn transactions(cx: &mut Context<'_>, sip: &raw::Sip) -> sbc_core::transaction::Config {
    let default = TimerConfig::default();
    let mut timers = TimerConfig::from_base(
        cx.span(sip.t1.as_ref(), default.t1),
        cx.span(sip.t2.as_ref(), default.t2),
        cx.span(sip.t4.as_ref(), default.t4),
    );
    if let Some(t1) = &sip.t1
        && timers.t2 < timers.t1
    {
        cx.problem(t1.span(), "t1 is longer than t2");
    }
    timers.b = cx.span(sip.timer_b.as_ref(), timers.b);
    timers.f = cx.span(sip.timer_f.as_ref(), timers.f);
    let base = sbc_core::transaction::Config::default();
    let max = cx.bounded(sip.max_transactions.as_ref(), base.max_servers, 100..=10_000_000);
    sbc_core::transaction::Config { timers, max_clients: max, max_servers: max, ..base }
}

fn sip_limits(cx: &mut Context<'_>, sip: &raw::Sip) -> sbc_core::sip::Limits {
    let default = sbc_core::sip::Limits::default();
    sbc_core::sip::Limits {
        head_bytes_max: cx.bounded(
            sip.max_head_bytes.as_ref(),
            default.head_bytes_max,
            1_024..=65_535,
        ),
        headers_max: cx.bounded(sip.max_headers.as_ref(), default.headers_max, 32..=4_096),
        body_bytes_max: cx.bounded(
            sip.max_body_bytes.as_ref(),
            default.body_bytes_max,
            1_024..=1_048_576,
        ),
    }
}

fn calls(cx: &mut Context<'_>, calls: &raw::Calls, cluster: Option<&ClusterConfig>) -> CallPolicy {
    let default = CallPolicy::default();
    CallPolicy {
        max_duration: calls.max_duration.map_or(default.max_duration, |d| d.0),
        media_timeout: calls.media_timeout.map_or(default.media_timeout, |d| d.0),
        anchor_media: calls.anchor_media.unwrap_or(default.anchor_media),
        ring_timeout: calls.ring_timeout.map_or(default.ring_timeout, |s| s.0),
        commit_wait: cluster.map(|c| c.timing.propose),
        early_records: cluster.is_some_and(|c| c.early_dialogs),
        max_attempts: cx.bounded(calls.max_attempts.as_ref(), default.max_attempts, 1..=16),
        retry_after_s: calls
            .retry_after
            .map_or(default.retry_after_s, |s| u32::try_from(s.0.as_secs()).unwrap_or(u32::MAX)),
        ..default
    }
}

fn transport(
    cx: &mut Context<'_>,
    t: &raw::Transport,
    limits: &sbc_core::sip::Limits,
) -> TransportConfig {
    let seconds = |span: Option<Span>, default| span.map_or(Duration::from_secs(default), |s| s.0);
    TransportConfig {
        udp_buffer_bytes: cx.bounded(t.udp_buffer_bytes.as_ref(), 8 << 20, 65_536..=1_073_741_824),
        udp_queue: cx.bounded(t.udp_queue.as_ref(), 8_192, 64..=1_000_000),
        dscp: cx.bounded(t.dscp.as_ref(), 24, 0..=63),
        connect_timeout: seconds(t.connect_timeout, 4),
        idle_timeout: seconds(t.idle_timeout, 600),
        half_message_timeout: seconds(t.half_message_timeout, 5),
        handshake_timeout: cx.span(t.handshake_timeout.as_ref(), Duration::from_secs(5)),
        lifetime: t.lifetime.and_then(|s| s.0),
        websocket_ping: t.websocket_ping.map_or(Some(Duration::from_secs(30)), |s| s.0),
        tcp_keepalive: t.tcp_keepalive.map_or(Some(Duration::from_secs(60)), |s| s.0),
        stun_per_second: t.stun_per_second.unwrap_or(1_000),
        max_connections: cx.bounded(t.max_connections.as_ref(), 20_000, 1..=1_000_000),
        max_connections_per_source: cx.bounded(
            t.max_connections_per_source.as_ref(),
            100,
            1..=1_000_000,
        ),
        max_handshakes_per_source: cx.bounded(
            t.max_handshakes_per_source.as_ref(),
            32,
            1..=1_000_000,
        ),
        first_message_timeout: t
            .first_message_timeout
            .map_or(Some(Duration::from_secs(30)), |s| s.0),
        unfinished_bytes: cx.bounded(t.unfinished_bytes.as_ref(), 64 << 20, 65_536..=1 << 40),
        write_queue_bytes: cx.bounded(t.write_queue_bytes.as_ref(), 1 << 20, 65_536..=1 << 30),
        message_bytes_max: limits.head_bytes_max + limits.body_bytes_max,
    }
}

fn dns(cx: &mut Context<'_>, dns: &raw::Dns) -> DnsConfig {
    DnsConfig {
        servers: dns.servers.clone(),
        timeout: dns.timeout.map_or(Duration::from_secs(2), |s| s.0),
        attempts: cx.bounded(dns.attempts.as_ref(), 2, 1..=10),
    }
}

fn cdr(cx: &mut Context<'_>, cdr: &raw::Cdr) -> Option<CdrConfig> {
    let rotate_bytes = cx.bounded(cdr.rotate_bytes.as_ref(), 100 << 20, 4_096..=1 << 40);
    let keep = cx.bounded(cdr.keep.as_ref(), 30, 1..=100_000);
    let file = cx.path(cdr.file.as_ref()?);
    Some(CdrConfig { file, rotate_bytes, rotate_every: cdr.rotate_every.map(|s| s.0), keep })
}

/// A part of all calls.
fn share(cx: &mut Context<'_>, value: Option<&Spanned<f64>>, default: f64) -> Share {
    let Some(value) = value else { return Share::of(default) };
    if !(0.0..=1.0).contains(value.get_ref()) {
        cx.problem(value.span(), "a share of the calls is from 0 to 1");
    }
    Share::of(*value.get_ref())
}

fn trace(cx: &mut Context<'_>, raw: &raw::Trace) -> TraceConfig {
    let endpoint = raw.endpoint.get_ref();
    let (secure, rest) = match endpoint.strip_prefix("https://") {
        Some(rest) => (true, Some(rest)),
        None => (false, endpoint.strip_prefix("http://")),
    };
    if !rest.is_some_and(|rest| rest.contains(':')) {
        cx.problem(raw.endpoint.span(), "the endpoint is http://HOST:PORT or https://HOST:PORT");
    }
    let ca = match &raw.ca {
        Some(ca) if secure => cx.text(ca).map(|_| cx.path(ca.get_ref())),
        Some(ca) => {
            cx.problem(ca.span(), "trace.ca is of no use without https:// in the endpoint");
            None
        }
        None => secure.then(|| PathBuf::from(SYSTEM_ROOTS)),
    };
    TraceConfig { endpoint: endpoint.clone(), ca, share: share(cx, raw.sample.as_ref(), 0.01) }
}

fn hep(cx: &mut Context<'_>, raw: &raw::Hep) -> HepConfig {
    HepConfig {
        collector: host_port(cx, &raw.collector, DEFAULT_HEP_PORT),
        transport: raw.transport,
        share: share(cx, raw.sample.as_ref(), 1.0),
        capture_id: raw.capture_id,
        key_file: raw.key_file.as_ref().map(|file| cx.path(file)),
    }
}

fn log(cx: &mut Context<'_>, log: &raw::Log) -> LogConfig {
    if let Some(level) = &log.level
        && let Err(e) = level.get_ref().parse::<tracing_subscriber::filter::Targets>()
    {
        cx.problem(level.span(), format!("bad log filter \"{}\": {e}", level.get_ref()));
    }
    let level = log.level.as_ref().map_or("info", |l| l.get_ref().as_str());
    LogConfig { level: level.to_owned(), format: log.format }
}

fn tls(cx: &mut Context<'_>, tls: &raw::Tls) -> TlsFiles {
    for file in [&tls.ca, &tls.certificate, &tls.key] {
        // Only that they are there: the component that uses them says what is in them.
        let _text = cx.text(file);
    }
    TlsFiles {
        ca: cx.path(tls.ca.get_ref()),
        certificate: cx.path(tls.certificate.get_ref()),
        key: cx.path(tls.key.get_ref()),
    }
}

fn admin(cx: &mut Context<'_>, admin: &raw::Admin) -> AdminConfig {
    let remote = match (&admin.listen, &admin.tls) {
        (Some(listen), Some(files)) => Some((*listen.get_ref(), tls(cx, files))),
        (Some(listen), None) => {
            cx.dependent(
                listen.span(),
                "admin over TCP needs [admin.tls]: it is never served bare",
            );
            None
        }
        (None, Some(files)) => {
            cx.dependent(files.ca.span(), "[admin.tls] without listen is never used");
            None
        }
        (None, None) => None,
    };
    let socket = admin.socket.as_deref().unwrap_or(Path::new(DEFAULT_SOCKET));
    AdminConfig { socket: cx.path(socket), remote }
}

fn cluster(cx: &mut Context<'_>, raw: &raw::Cluster) -> ClusterConfig {
    let port = raw.listen.as_ref().map_or(DEFAULT_CLUSTER_PORT, |l| l.get_ref().port());
    let advertise = raw.advertise.as_ref().map(|peer| host_port(cx, peer, port));
    if let Some(listen) = &raw.listen
        && listen.get_ref().ip().is_unspecified()
        && advertise.is_none()
    {
        cx.problem(
            listen.span(),
            "the node listens on all addresses: say in advertise where the others reach it",
        );
    }
    let join = raw.join.as_ref().and_then(|join| {
        if raw.listen.is_none() {
            cx.problem(join.span(), "a node that joins needs listen, so that the others reach it");
        }
        cluster_join(cx, join, port)
    });
    // Who looks for the others in etcd is to be found there itself.
    let looks = raw.join.as_ref().and_then(|join| join.get_ref().etcd.as_ref());
    let register = raw.register.as_ref().or(looks).map(discovery);
    let mut addresses = Vec::new();
    for row in &raw.address {
        let address = row.get_ref();
        if addresses.iter().any(|a: &FloatingConfig| a.address == address.address) {
            cx.problem(row.span(), format!("{} is there twice", address.address));
        }
        if address.group == 0 {
            cx.problem(row.span(), "an address group is 1 or more");
        }
        addresses.push(FloatingConfig {
            address: address.address,
            device: address.device.clone(),
            group: address.group,
        });
    }
    let failover = raw.failover.as_ref().map(|f| *f.get_ref()).unwrap_or_default();
    if (failover == raw::FailoverMode::Address) == addresses.is_empty() {
        let span = raw.failover.as_ref().map(Spanned::span);
        let span = span.or(raw.address.first().map(Spanned::span)).unwrap_or(0..0);
        cx.problem(span, "failover = \"address\" and [[cluster.address]] go together");
    }
    let timing = cluster_timing(cx, raw);
    if failover == raw::FailoverMode::Address && Lifetime::within(timing.handover).is_none() {
        let span = raw.handover.as_ref().or(raw.lease.as_ref()).map_or(0..0, Spanned::span);
        // The kernel of a node that hangs could still have the address.
        cx.problem(span, "failover = \"address\" needs a handover delay of 1.28 s or more");
    }
    let early_dialogs = raw.early_dialogs.as_ref().is_some_and(|early| *early.get_ref());
    if early_dialogs && failover != raw::FailoverMode::Address {
        let span = raw.early_dialogs.as_ref().map_or(0..0, Spanned::span);
        // The answer of a phone that rings goes where its INVITE came from, and nowhere else.
        cx.problem(span, "early-dialogs needs failover = \"address\"");
    }
    let reinvite_rate = raw.reinvite_rate.as_ref().map_or(REINVITES_PER_S, |rate| *rate.get_ref());
    if !(1..=100_000).contains(&reinvite_rate) {
        let span = raw.reinvite_rate.as_ref().map_or(0..0, Spanned::span);
        cx.problem(span, "reinvite-rate is 1 to 100000 calls per second");
    }
    ClusterConfig {
        data: cx.path(&raw.data),
        listen: raw.listen.as_ref().map(|l| *l.get_ref()),
        advertise,
        join,
        register,
        timing,
        on_quorum_loss: raw.on_quorum_loss,
        failover,
        early_dialogs,
        reinvite_rate,
        addresses,
    }
}

fn cluster_timing(cx: &mut Context<'_>, raw: &raw::Cluster) -> sbc_cluster::Timing {
    let default = sbc_cluster::Timing::default();
    let heartbeat = cx.span(raw.heartbeat.as_ref(), default.heartbeat);
    let lease = cx.span(raw.lease.as_ref(), default.lease);
    let timing = sbc_cluster::Timing {
        heartbeat,
        lease,
        handover: cx.span(raw.handover.as_ref(), lease + default.handover - default.lease),
        election: cx.span(raw.election.as_ref(), default.election.max(heartbeat * 4)),
        propose: raw.commit_wait.map_or(default.propose, |s| s.0),
    };
    let place = |value: &Option<Spanned<Span>>| value.as_ref().map_or(0..0, Spanned::span);
    if lease < heartbeat * 3 {
        let span = if raw.lease.is_some() { place(&raw.lease) } else { place(&raw.heartbeat) };
        cx.problem(span, "the lease is shorter than three heartbeats");
    }
    if timing.handover <= lease {
        cx.problem(place(&raw.handover), "the handover delay is not longer than the lease");
    }
    if timing.election < heartbeat * 2 {
        cx.problem(place(&raw.election), "the election timeout is shorter than two heartbeats");
    }
    timing
}

fn cluster_join(cx: &mut Context<'_>, join: &Spanned<raw::Join>, port: u16) -> Option<JoinConfig> {
    let raw = join.get_ref();
    let token = match (&raw.token, &raw.token_file, &raw.key_file) {
        (Some(token), None, None) => JoinToken::Text(Secret::new(token)),
        (None, Some(file), None) => JoinToken::File(cx.path(file)),
        (None, None, Some(file)) => join_key(cx, file)?,
        (_, _, _) => {
            let message = "joining needs exactly one of token, token-file and key-file";
            cx.problem(join.span(), message);
            return None;
        }
    };
    let begin = raw.begin.as_ref().map(|begin| cx.bounded(Some(begin), 1, 1..=63));
    if let (Some(begin), JoinToken::Text(_) | JoinToken::File(_)) = (&raw.begin, &token) {
        cx.problem(begin.span(), "begin goes with key-file: whoever has a token joins");
    }
    let default = match &token {
        JoinToken::Key(_) => Duration::from_secs(600),
        JoinToken::Text(_) | JoinToken::File(_) => Duration::from_secs(60),
    };
    let within = cx.span(raw.within.as_ref(), default);
    let seeds: Vec<String> = raw.seeds.0.iter().map(|s| host_port(cx, s, port)).collect();
    let seeds = match (seeds.is_empty(), &raw.dns, &raw.etcd) {
        (false, None, None) => sbc_cluster::Discovery::Static(seeds),
        (true, Some(name), None) => sbc_cluster::Discovery::Dns {
            name: name.get_ref().host.to_string(),
            port: name.get_ref().port.unwrap_or(port),
        },
        (true, None, Some(etcd)) => discovery(etcd),
        (_, _, _) => {
            cx.problem(join.span(), "joining needs exactly one of seeds, dns and etcd");
            return None;
        }
    };
    Some(JoinConfig { token, seeds, begin, within })
}

fn discovery(etcd: &raw::Etcd) -> sbc_cluster::Discovery {
    sbc_cluster::Discovery::Etcd { endpoints: etcd.endpoints.clone(), prefix: etcd.prefix.clone() }
}

/// The secret that all nodes share: without line ends and such around it.
fn join_key(cx: &mut Context<'_>, file: &Spanned<PathBuf>) -> Option<JoinToken> {
    let text = cx.text(file)?;
    let secret = text.trim();
    if sbc_cluster::JoinKey::derive(secret.as_bytes()).is_none() {
        cx.problem(file.span(), "the join key is shorter than 32 bytes: it could be guessed");
        return None;
    }
    Some(JoinToken::Key(Secret::new(secret)))
}

fn host_port(cx: &mut Context<'_>, peer: &Spanned<super::value::PeerText>, port: u16) -> String {
    let text = peer.get_ref();
    if text.transport.is_some() {
        cx.problem(peer.span(), "the channel between nodes has no transport to choose");
    }
    let port = text.port.unwrap_or(port);
    match text.host.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_) => format!("{}:{port}", text.host),
    }
}
