//! What each command does.

use std::path::PathBuf;
use std::time::Duration;

use clap::CommandFactory;
use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::calls_client::CallsClient;
use sbc_proto::admin::v1::config_client::ConfigClient;
use sbc_proto::admin::v1::events_client::EventsClient;
use sbc_proto::admin::v1::media_client::MediaClient;
use sbc_proto::admin::v1::node_client::NodeClient;
use sbc_proto::admin::v1::trunks_client::TrunksClient;
use serde_json::json;
use tonic::transport::Channel;

use super::args::{Args, Calls, Command, Config, Format, Log, Media, Node, Trunks};
use super::drain::{self, Order};
use super::{Failure, bans, call, client, cluster, kube, ladder, output, registrations, users};

pub(super) type Done = Result<(), Failure>;

pub(super) async fn run(args: Args) -> Done {
    if let Command::Completions { shell } = &args.command {
        let name = "sbcctl";
        clap_complete::generate(*shell, &mut Args::command(), name, &mut std::io::stdout());
        return Ok(());
    }
    if let Command::Kube(command) = &args.command
        && let Some(done) = kube::address(command).await
    {
        return done;
    }
    let args = match args {
        Args { command: Command::Call(call), .. } => return call::run(call).await,
        args => args,
    };
    let json = args.output == Format::Json;
    if let Command::Users(command) = &args.command
        && let Some(done) = users::local(command, json)
    {
        return done;
    }
    if let Command::Cluster(command) = &args.command
        && let Some(done) = cluster::offline(command, json).await
    {
        return done;
    }
    let channel = client::connect(&args).await?;
    match args.command {
        Command::Status => {
            let reply = NodeClient::new(channel).status(pb::StatusRequest {}).await?.into_inner();
            show(json, &reply, output::status)
        }
        Command::Calls(command) => calls(channel, command, json).await,
        Command::Trunks(command) => trunks(channel, command, json).await,
        Command::Media(Media::List { limit }) => {
            let request = pb::ListMediaRequest { limit };
            let reply = MediaClient::new(channel).list(request).await?.into_inner();
            show(json, &reply, output::media)
        }
        Command::Bans(command) => bans::run(channel, command, json).await,
        Command::Registrations(command) => registrations::run(channel, command, json).await,
        Command::Users(command) => users::run(channel, command, json).await,
        Command::Config(command) => config(channel, command, json).await,
        Command::Log(Log::Level { level }) => {
            let request = pb::LogLevelRequest { level: level.unwrap_or_default() };
            let reply = NodeClient::new(channel).log_level(request).await?.into_inner();
            show(json, &reply, |reply| println!("{}", reply.level))
        }
        Command::Stats { filter } => {
            let request = pb::StatsRequest { filter };
            let reply = NodeClient::new(channel).stats(request).await?.into_inner();
            show(json, &reply, output::stats)
        }
        Command::Events { kinds, count } => {
            events(channel, Wanted { kinds, subject: String::new(), count }, json).await
        }
        Command::Top { interval, count } => top(channel, interval, count, json).await,
        Command::Cluster(command) => cluster::run(channel, command, json).await,
        Command::Kube(command) => kube::pre_stop(channel, command).await,
        Command::Node(Node::Drain { wait: true, timeout, leave, .. }) => {
            let order = Order { wait: Duration::from_secs(timeout), leave, json };
            drain::run(channel, order).await
        }
        Command::Node(Node::Drain { undo, .. }) => {
            let request = pb::DrainRequest { undo };
            let reply = NodeClient::new(channel).drain(request).await?.into_inner();
            show(json, &reply, |r| println!("{}, {} calls in progress", r.state, r.calls))
        }
        Command::Completions { .. } | Command::Call(_) => Ok(()),
    }
}

pub(super) fn show<T: serde::Serialize>(json: bool, reply: &T, table: impl Fn(&T)) -> Done {
    if json {
        return output::json(reply);
    }
    table(reply);
    Ok(())
}

async fn calls(channel: Channel, command: Calls, json: bool) -> Done {
    let mut client = CallsClient::new(channel);
    match command {
        Calls::List { filter, limit } => {
            let request = pb::ListCallsRequest { limit, filter };
            let reply = client.list(request).await?.into_inner();
            show(json, &reply, output::calls)
        }
        Calls::Show { id } => {
            let reply = client.show(pb::ShowCallRequest { id }).await?.into_inner();
            show(json, &reply, output::call)
        }
        Calls::Hangup { id } => {
            let reply = client.hangup(pb::HangupRequest { id: id.clone() }).await?.into_inner();
            if json {
                output::json(&reply)?;
            }
            if !reply.found {
                return Err(Failure::Refused(format!("no call {id}")));
            }
            Ok(())
        }
        Calls::Trace { id, full } => {
            let request = pb::TraceRequest { id: id.unwrap_or_default() };
            let mut events = client.trace(request).await?.into_inner();
            while let Some(event) = events.message().await? {
                if json {
                    let mut value = serde_json::to_value(&event)
                        .map_err(|e| Failure::Refused(e.to_string()))?;
                    if let Some(map) = value.as_object_mut() {
                        let text = String::from_utf8_lossy(&event.message);
                        map.insert("message".to_owned(), json!(text));
                    }
                    output::json_line(&value)?;
                } else {
                    println!("{}", ladder::line(&event, full));
                }
            }
            Ok(())
        }
    }
}

/// Which events, and how many.
pub(super) struct Wanted {
    pub(super) kinds: Vec<String>,
    /// Only of subjects that contain this.
    pub(super) subject: String,
    pub(super) count: Option<u64>,
}

pub(super) async fn events(channel: Channel, wanted: Wanted, json: bool) -> Done {
    let request = pb::WatchEventsRequest { kinds: wanted.kinds, subject: wanted.subject };
    let mut events = EventsClient::new(channel).watch(request).await?.into_inner();
    let mut shown = 0;
    while wanted.count.is_none_or(|count| shown < count)
        && let Some(event) = events.message().await?
    {
        if json {
            output::json_line(&event)?;
        } else {
            output::event(&event);
        }
        shown += 1;
    }
    Ok(())
}

async fn trunks(channel: Channel, command: Trunks, json: bool) -> Done {
    let mut client = TrunksClient::new(channel);
    let reply = match command {
        Trunks::List => {
            let reply = client.list(pb::ListTrunksRequest {}).await?.into_inner();
            return show(json, &reply, |reply| output::trunks(&reply.trunks));
        }
        Trunks::Probe { name } => client.probe(pb::TrunkRequest { name }).await?,
        Trunks::Enable { name } => client.enable(pb::TrunkRequest { name }).await?,
        Trunks::Disable { name } => client.disable(pb::TrunkRequest { name }).await?,
    };
    show(json, &reply.into_inner(), |reply| {
        output::trunks(reply.trunk.as_slice());
    })
}

async fn config(channel: Channel, command: Config, json: bool) -> Done {
    let mut client = ConfigClient::new(channel);
    match command {
        Config::Show => {
            let reply = client.show(pb::ShowConfigRequest {}).await?.into_inner();
            show(json, &reply, |reply| print!("{}", reply.toml))
        }
        Config::Check { file } => {
            let request = check_request(file)?;
            let name = request.path.clone();
            let reply = client.check(request).await?.into_inner();
            verdict(json, &reply, reply.ok, &reply.problems, &name)?;
            if !json {
                println!("ok");
            }
            Ok(())
        }
        Config::Diff => {
            let reply = client.diff(pb::DiffConfigRequest {}).await?.into_inner();
            verdict(json, &reply, reply.ok, &reply.problems, "")?;
            if !json {
                output::changes(&reply.changes);
            }
            Ok(())
        }
        Config::Reload => {
            let reply = client.reload(pb::ReloadConfigRequest {}).await?.into_inner();
            verdict(json, &reply, reply.applied, &reply.problems, "")?;
            if !json {
                output::changes(&reply.changes);
            }
            Ok(())
        }
    }
}

/// A file of ours is sent along: the node may not be able to read it. Relative paths inside of it
/// start where it is.
fn check_request(file: Option<PathBuf>) -> Result<pb::CheckConfigRequest, Failure> {
    let Some(file) = file else { return Ok(pb::CheckConfigRequest::default()) };
    let refused = |e: std::io::Error| Failure::Refused(format!("{}: {e}", file.display()));
    let toml = std::fs::read_to_string(&file).map_err(refused)?;
    let path = std::path::absolute(&file).map_err(refused)?.display().to_string();
    Ok(pb::CheckConfigRequest { path, toml })
}

fn verdict<T: serde::Serialize>(
    json: bool,
    reply: &T,
    good: bool,
    problems: &[pb::ConfigProblem],
    file: &str,
) -> Done {
    if json {
        output::json(reply)?;
    }
    if good {
        return Ok(());
    }
    if !json {
        output::problems(if file.is_empty() { "configuration" } else { file }, problems);
    }
    let count = problems.len();
    Err(Failure::Refused(format!("{count} problem{}", if count == 1 { "" } else { "s" })))
}

async fn top(channel: Channel, interval: f64, count: Option<u64>, json: bool) -> Done {
    let interval = Duration::try_from_secs_f64(interval)
        .map_err(|_| Failure::Refused("bad interval".to_owned()))?;
    let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    let request = pb::TopRequest { interval_ms };
    let mut samples = NodeClient::new(channel).top(request).await?.into_inner();
    let mut shown = 0;
    while count.is_none_or(|count| shown < count)
        && let Some(sample) = samples.message().await?
    {
        if json {
            output::json_line(&sample)?;
        } else {
            output::top(&sample, shown % 20 == 0);
        }
        shown += 1;
    }
    Ok(())
}
