//! How replies look: tables for people, JSON for scripts.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use sbc_proto::admin::v1 as pb;
use serde::Serialize;

use super::Failure;
use crate::telemetry::time::Utc;

/// Prints a reply as one JSON document.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::Refused(e.to_string()))?;
    println!("{text}");
    Ok(())
}

/// Prints a reply as one line of JSON: streams.
pub(super) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|e| Failure::Refused(e.to_string()))?;
    println!("{text}");
    Ok(())
}

pub(super) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.iter().map(|h| h.to_uppercase()));
    table
}

/// `1d 02:03:04`.
pub(super) fn duration(ms: u64) -> String {
    let seconds = ms / 1_000;
    let (days, h, m, s) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    if days > 0 { format!("{days}d {h:02}:{m:02}:{s:02}") } else { format!("{h:02}:{m:02}:{s:02}") }
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

pub(super) fn status(status: &pb::StatusReply) {
    println!("{} (sbc-node {}): {}", status.node, status.version, status.state);
    println!("  up            {}", duration(status.uptime_ms));
    println!("  calls         {}", status.calls);
    println!("  transactions  {}", status.transactions);
    println!("  media         {} sessions", status.media_sessions);
    println!(
        "  kernel        {}: {} ({} flows, {} of them standing by)",
        status.kernel_way, status.kernel_reason, status.kernel_flows, status.kernel_standby_flows
    );
    if !status.kernel_devices.is_empty() {
        println!("  devices       {}", status.kernel_devices.join(", "));
    }
    println!("  connections   {}", status.connections);
    println!("  shards        {}", status.shards);
    println!("  configuration {} of {}", status.config_path, Utc(status.config_loaded_ms));
    for alarm in &status.alarms {
        println!("  ALARM         {alarm}");
    }
    println!();
    let mut rows = table(&["interface", "realm", "transport", "listen", "advertise", ""]);
    for l in &status.listeners {
        let retired = if l.retired { "retired" } else { "" };
        rows.add_row([&l.interface, &l.realm, &l.transport, &l.local, &l.advertise, retired]);
    }
    println!("{rows}");
}

pub(super) fn calls(reply: &pb::ListCallsReply) {
    let mut rows = table(&["id", "state", "from", "to", "trunks", "duration"]);
    for call in &reply.calls {
        let trunks = format!("{} > {}", or_dash(&call.trunk_a), or_dash(&call.trunk_b));
        let duration = match call.answered_ms {
            0 => "-".to_owned(),
            _ => duration(call.duration_ms),
        };
        rows.add_row([&call.id, &call.state, &call.from, &call.to, &trunks, &duration]);
    }
    println!("{rows}");
    let shown = u64::try_from(reply.calls.len()).unwrap_or(u64::MAX);
    if shown < reply.total {
        println!("{shown} of {} calls", reply.total);
    }
}

pub(super) fn call(reply: &pb::ShowCallReply) {
    if let Some(call) = &reply.summary {
        println!("call {}  {}", call.id, call.state);
        println!("  from      {}", call.from);
        println!("  to        {}", call.to);
        println!("  dialled   {}", call.dialled);
        println!("  started   {}", Utc(call.started_ms));
        if call.answered_ms > 0 {
            let (at, lasting) = (Utc(call.answered_ms), duration(call.duration_ms));
            println!("  answered  {at}  ({lasting})");
        }
        println!("  protected {}", if reply.protected { "yes" } else { "no" });
        println!("  shard     {}", call.shard);
    }
    println!();
    let mut legs = table(&["leg", "trunk", "peer", "call-id", "local tag", "remote tag", "codecs"]);
    for leg in &reply.legs {
        let codecs = leg.codecs.join(" ");
        legs.add_row([
            &leg.side,
            &leg.trunk,
            &leg.peer,
            &leg.call_id,
            &leg.local_tag,
            &leg.remote_tag,
            &codecs,
        ]);
    }
    println!("{legs}\n");
    let mut media = stream_table();
    for stream in &reply.streams {
        stream_rows(&mut media, "", stream);
    }
    println!("{media}");
}

fn stream_table() -> Table {
    table(&[
        "call",
        "stream",
        "from",
        "way",
        "latched",
        "packets",
        "bytes",
        "lost",
        "dropped",
        "jitter ms",
        "ssrc",
    ])
}

fn stream_rows(rows: &mut Table, call: &str, stream: &pb::StreamInfo) {
    for (name, side) in [("A", &stream.a), ("B", &stream.b)] {
        let Some(side) = side else { continue };
        let jitter = std::time::Duration::from_micros(side.jitter_us.into());
        rows.add_row([
            call.to_owned(),
            stream.index.to_string(),
            name.to_owned(),
            or_dash(&side.way).to_owned(),
            or_dash(&side.latched).to_owned(),
            side.packets.to_string(),
            side.bytes.to_string(),
            side.lost.to_string(),
            side.dropped.to_string(),
            format!("{:.1}", jitter.as_secs_f64() * 1_000.0),
            format!("{:08x}", side.ssrc),
        ]);
    }
}

pub(super) fn trunks(trunks: &[pb::TrunkStatus]) {
    let mut rows = table(&["trunk", "interface", "state", "enabled", "calls", "peers"]);
    for trunk in trunks {
        let calls = match trunk.max_calls {
            0 => trunk.calls.to_string(),
            max => format!("{}/{max}", trunk.calls),
        };
        let peers: Vec<String> =
            trunk.peers.iter().map(|p| format!("{} ({})", p.address, p.state)).collect();
        rows.add_row([
            trunk.name.clone(),
            trunk.interface.clone(),
            trunk.state.clone(),
            if trunk.enabled { "yes" } else { "no" }.to_owned(),
            calls,
            peers.join(" "),
        ]);
    }
    println!("{rows}");
    registrations_with(trunks);
}

/// Our registrations with trunks, where there are any.
fn registrations_with(trunks: &[pb::TrunkStatus]) {
    let mut rows = table(&["trunk", "registers", "state", "registrar", "expires", "failure"]);
    for (trunk, r) in trunks.iter().flat_map(|t| t.registrations.iter().map(move |r| (t, r))) {
        let failure = if r.failure == 0 { String::new() } else { r.failure.to_string() };
        let expires = if r.expires_s == 0 { String::new() } else { format!("{} s", r.expires_s) };
        rows.add_row([
            trunk.name.as_str(),
            &r.aor,
            &r.state,
            or_dash(&r.registrar),
            or_dash(&expires),
            or_dash(&failure),
        ]);
    }
    if !rows.is_empty() {
        println!("{rows}");
    }
}

pub(super) fn media(reply: &pb::ListMediaReply) {
    let mut sessions = stream_table();
    for session in &reply.sessions {
        for stream in &session.streams {
            stream_rows(&mut sessions, &session.call, stream);
        }
    }
    println!("{sessions}\n");
    let mut ports = table(&["interface", "address", "pairs used", "of", "held by others"]);
    for p in &reply.ports {
        let (used, total, occupied) =
            (p.used.to_string(), p.total.to_string(), p.occupied.to_string());
        ports.add_row([&p.interface, &p.address, &used, &total, &occupied]);
    }
    println!("{ports}");
}

pub(super) fn stats(reply: &pb::StatsReply) {
    let mut rows = table(&["name", "labels", "value"]);
    for stat in &reply.stats {
        rows.add_row([stat.name.clone(), stat.labels.clone(), stat.value.to_string()]);
    }
    println!("{rows}");
}

pub(super) fn top(sample: &pb::TopSample, first: bool) {
    if first {
        println!(
            "{:>8} {:>8} {:>9} {:>9} {:>8} {:>6} {:>8} {:>7}",
            "CALLS", "CALLS/S", "IN/S", "OUT/S", "DROP/S", "CPU%", "MEM MiB", "MEDIA"
        );
    }
    println!(
        "{:>8} {:>8.1} {:>9.0} {:>9.0} {:>8.1} {:>6.1} {:>8} {:>7}",
        sample.calls,
        sample.calls_per_second,
        sample.messages_in_per_second,
        sample.messages_out_per_second,
        sample.dropped_per_second,
        sample.cpu * 100.0,
        sample.memory_bytes >> 20,
        sample.media_sessions
    );
}

/// Problems of a configuration; `file` is what they are in.
pub(super) fn problems(file: &str, problems: &[pb::ConfigProblem]) {
    for problem in problems {
        match problem.line {
            0 => eprintln!("{file}: {}", problem.message),
            line => eprintln!("{file}:{line}: {}", problem.message),
        }
    }
}

pub(super) fn changes(changes: &[String]) {
    if changes.is_empty() {
        println!("no changes");
    }
    for change in changes {
        println!("{change}");
    }
}

pub(super) fn event(event: &pb::NodeEvent) {
    let clock = crate::telemetry::time::Utc(event.at_ms);
    if event.missed > 0 {
        println!("{clock}  {} events missed", event.missed);
        return;
    }
    let mut details: Vec<_> = event.details.iter().map(|(k, v)| format!("{k}={v}")).collect();
    details.sort();
    println!("{clock}  {:24} {} {}", event.kind, event.subject, details.join(" "));
}
