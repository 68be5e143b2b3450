//! `sbcctl bans`: who is kept out.

use std::path::PathBuf;

use clap::Subcommand;
use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::bans_client::BansClient;
use tonic::transport::Channel;

use super::run::{Done, show};
use super::{Failure, output};
use crate::guard::list;

/// Networks of one request.
const CHUNK: usize = 10_000;

#[derive(Subcommand)]
pub(super) enum Bans {
    /// Bans in force, or the one that an address is under.
    List {
        address: Option<String>,
        #[arg(long, default_value_t = 1_000)]
        limit: u32,
    },
    /// Ban an address or network, in the whole cluster.
    Add {
        #[arg(required = true)]
        nets: Vec<String>,
        /// How long: `90s`, `10m`, `2h`, `1d`; until it is lifted when absent.
        #[arg(long = "for", value_parser = span)]
        lasts: Option<std::time::Duration>,
    },
    /// Lift the ban of an address or network.
    Remove {
        #[arg(required = true)]
        nets: Vec<String>,
    },
    /// Lift every ban.
    Flush,
    /// Ban all networks of a file, one a line.
    Import {
        file: PathBuf,
        #[arg(long = "for", value_parser = span)]
        lasts: Option<std::time::Duration>,
    },
}

/// A duration as people write it.
fn span(text: &str) -> Result<std::time::Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| "want a number and s, m, h or d".to_owned())?;
    let seconds = match unit {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        other => return Err(format!("\"{other}\" is none of s, m, h, d")),
    };
    match number.checked_mul(seconds) {
        Some(seconds) if seconds > 0 => Ok(std::time::Duration::from_secs(seconds)),
        Some(_) | None => Err("too short or too long".to_owned()),
    }
}

pub(super) async fn run(channel: Channel, command: Bans, json: bool) -> Done {
    let mut client = BansClient::new(channel);
    match command {
        Bans::List { address, limit } => {
            let request = pb::ListBansRequest { address: address.unwrap_or_default(), limit };
            let reply = client.list(request).await?.into_inner();
            show(json, &reply, table)
        }
        Bans::Add { nets, lasts } => {
            let request = add(nets, lasts, "admin");
            let reply = client.add(request).await?.into_inner();
            show(json, &reply, |_| {})?;
            refused(&reply.refused)
        }
        Bans::Remove { nets } => {
            let reply = client.remove(pb::RemoveBansRequest { nets }).await?.into_inner();
            show(json, &reply, |_| {})?;
            if reply.unknown.is_empty() {
                return Ok(());
            }
            Err(Failure::Refused(format!("not banned: {}", reply.unknown.join(" "))))
        }
        Bans::Flush => {
            let reply = client.flush(pb::FlushBansRequest {}).await?.into_inner();
            show(json, &reply, |reply| println!("{} bans lifted", reply.removed))
        }
        Bans::Import { file, lasts } => {
            let shown = file.display();
            let text = std::fs::read_to_string(&file)
                .map_err(|e| Failure::Refused(format!("{shown}: {e}")))?;
            let nets = list::parse(&text).map_err(|errors| {
                let lines: Vec<String> = errors.iter().map(|e| format!("{shown}: {e}")).collect();
                Failure::Refused(lines.join("\n"))
            })?;
            let by = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let mut sum = pb::AddBansReply::default();
            for chunk in nets.chunks(CHUNK) {
                let nets = chunk.iter().map(ToString::to_string).collect();
                let reply = client.add(add(nets, lasts, &by)).await?.into_inner();
                sum.added += reply.added;
                sum.refused.extend(reply.refused);
            }
            show(json, &sum, |sum| println!("{} bans", sum.added))?;
            refused(&sum.refused)
        }
    }
}

fn add(nets: Vec<String>, lasts: Option<std::time::Duration>, by: &str) -> pb::AddBansRequest {
    let for_ms = lasts.map_or(0, |l| u64::try_from(l.as_millis()).unwrap_or(u64::MAX));
    pb::AddBansRequest { nets, for_ms, by: by.to_owned() }
}

fn refused(refused: &[pb::RefusedBan]) -> Done {
    if refused.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> =
        refused.iter().map(|r| format!("{} not banned: {}", r.net, r.reason)).collect();
    Err(Failure::Refused(lines.join("\n")))
}

fn table(reply: &pb::ListBansReply) {
    let mut rows = output::table(&["network", "reason", "by", "left", "from"]);
    for ban in &reply.bans {
        let left = match ban.left_ms {
            0 => "until lifted".to_owned(),
            ms => output::duration(ms),
        };
        let from = if ban.shared { "cluster or list" } else { "this node" };
        rows.add_row([&ban.net, &ban.reason, &ban.by, &left, from]);
    }
    println!("{rows}");
    println!();
    println!(
        "{} of {} bans; kernel: {} ({} bans, {} packets dropped)",
        reply.bans.len(),
        reply.total,
        reply.kernel_reason,
        reply.kernel_bans,
        reply.kernel_dropped
    );
}

#[cfg(test)]
mod tests {
    use super::span;
    use std::time::Duration;

    #[test]
    fn spans_as_people_write_them() {
        assert_eq!(span("90"), Ok(Duration::from_secs(90)));
        assert_eq!(span("2h"), Ok(Duration::from_secs(7_200)));
        assert_eq!(span("1w"), Err("\"w\" is none of s, m, h, d".to_owned()));
        assert!(span("h").is_err() && span("0s").is_err());
        assert!(span("99999999999999999999d").is_err());
    }
}
