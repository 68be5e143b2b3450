//! `sbcctl registrations`: who is reached where.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::registrations_client::RegistrationsClient;
use serde_json::Value;
use tonic::transport::Channel;

use super::run::{Done, Wanted, events, show};
use super::{Failure, output};

/// Users sent to the node in one request.
const BATCH: usize = 1_000;

#[derive(Subcommand)]
pub(super) enum Registrations {
    /// Users that are online.
    List {
        /// Only users and contacts that contain this.
        #[arg(default_value = "")]
        filter: String,
        /// At most so many.
        #[arg(long, default_value_t = 1_000)]
        limit: u32,
    },
    /// One user with all that is known of its contacts.
    Show { user: String },
    /// Take a user's contacts out; the devices may register again.
    Remove {
        user: String,
        /// This contact only.
        #[arg(long, default_value = "")]
        contact: String,
    },
    /// Add what `export` wrote, here or elsewhere ("-": standard input).
    Import { file: PathBuf },
    /// Write every user's registrations, one JSON document a line.
    Export,
    /// Users as they come and go.
    Watch {
        /// Only users that contain this.
        #[arg(default_value = "")]
        filter: String,
        /// Stop after so many.
        #[arg(long, short = 'n')]
        count: Option<u64>,
    },
}

pub(super) async fn run(channel: Channel, command: Registrations, json: bool) -> Done {
    let mut client = RegistrationsClient::new(channel.clone());
    match command {
        Registrations::List { filter, limit } => {
            let request = pb::ListRegistrationsRequest { limit, filter };
            let reply = client.list(request).await?.into_inner();
            show(json, &reply, list)
        }
        Registrations::Show { user } => {
            let request = pb::ShowRegistrationRequest { aor: user };
            show(json, &client.show(request).await?.into_inner(), one)
        }
        Registrations::Remove { user, contact } => {
            let request = pb::RemoveRegistrationRequest { aor: user, contact };
            let reply = client.remove(request).await?.into_inner();
            show(json, &reply, |r| println!("{} removed", r.removed))
        }
        Registrations::Export => {
            let request = pb::ExportRegistrationsRequest {};
            let mut all = client.export(request).await?.into_inner();
            while let Some(registration) = all.message().await? {
                output::json_line(&registration)?;
            }
            Ok(())
        }
        Registrations::Import { file } => {
            let mut total = pb::ImportRegistrationsReply::default();
            for registrations in read(&file)?.chunks(BATCH) {
                let registrations = registrations.to_vec();
                let request = pb::ImportRegistrationsRequest { registrations };
                let reply = client.import(request).await?.into_inner();
                total.added += reply.added;
                total.refused += reply.refused;
            }
            show(json, &total, |t| println!("{} added, {} refused", t.added, t.refused))
        }
        Registrations::Watch { filter, count } => {
            let kinds = vec!["registration.".to_owned()];
            events(channel, Wanted { kinds, subject: filter, count }, json).await
        }
    }
}

fn list(reply: &pb::ListRegistrationsReply) {
    let mut rows = output::table(&["user", "contact", "by", "from", "nat", "expires"]);
    for user in &reply.registrations {
        for c in &user.contacts {
            let by = format!("{} {}", c.interface, c.transport);
            let nat = if c.natted { "yes" } else { "no" };
            let expires = format!("{}s", c.expires_s);
            rows.add_row([&user.aor, &c.uri, &by, &c.remote, nat, &expires]);
        }
    }
    println!("{rows}");
    println!("{} users online", reply.total);
}

fn one(user: &pb::Registration) {
    println!("{} (shard {})", user.aor, user.shard);
    for c in &user.contacts {
        println!("  {}", c.uri);
        println!("    from      {} by {} {}", c.remote, c.interface, c.transport);
        println!("    expires   {} s, refreshed {} s ago", c.expires_s, c.age_s);
        println!("    nat       {}, connected {}, missed {}", c.natted, c.connected, c.missed);
        println!("    q         {}.{:03}", c.q / 1_000, c.q % 1_000);
        if !c.instance.is_empty() {
            println!("    instance  {} flow {}", c.instance, c.reg_id);
        }
        if !c.path.is_empty() {
            println!("    path      {}", c.path);
        }
    }
}

/// What an export holds.
fn read(file: &Path) -> Result<Vec<pb::Registration>, Failure> {
    let refused = |e: &dyn std::fmt::Display| Failure::Refused(format!("{}: {e}", file.display()));
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map_err(|e| refused(&e))?;
    } else {
        text = std::fs::read_to_string(file).map_err(|e| refused(&e))?;
    }
    let mut users = Vec::new();
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let user: Value = serde_json::from_str(line)
            .map_err(|e| Failure::Refused(format!("{} line {}: {e}", file.display(), n + 1)))?;
        users.push(registration(&user));
    }
    Ok(users)
}

fn registration(user: &Value) -> pb::Registration {
    let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let number = |v: &Value, key: &str| {
        v.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
    };
    let contacts = user.get("contacts").and_then(Value::as_array).into_iter().flatten();
    let contacts = contacts.map(|c| pb::RegisteredContact {
        uri: text(c, "uri"),
        path: text(c, "path"),
        instance: text(c, "instance"),
        reg_id: number(c, "reg_id"),
        q: number(c, "q"),
        natted: c.get("natted").and_then(Value::as_bool).unwrap_or(false),
        interface: text(c, "interface"),
        transport: text(c, "transport"),
        remote: text(c, "remote"),
        expires_s: number(c, "expires_s"),
        ..pb::RegisteredContact::default()
    });
    pb::Registration { aor: text(user, "aor"), shard: 0, contacts: contacts.collect() }
}
