//! Every verb of `sbcctl` in both forms, the standard services beside ours, and a reload by signal.

mod process;

use hyper_util::rt::TokioIo;
use nix::sys::signal::Signal;
use process::{Node, Phone, eventually, sbcctl};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

#[test]
fn every_verb_answers_as_a_table_and_as_json() {
    let node = Node::start();
    let (caller, callee) = (Phone::at(node.pbx), Phone::at(node.carrier));
    caller.call(&callee, node.inside);
    let id = node.json("calls list")["calls"][0]["id"].as_str().unwrap().to_owned();
    let show = format!("calls show {id}");
    // What a table must show, and the member of the JSON that holds the same.
    for (verb, column, member) in [
        ("status", "running", "state"),
        ("calls list", "STATE", "calls"),
        (show.as_str(), "carrier", "legs"),
        ("trunks list", "TRUNK", "trunks"),
        ("trunks disable carrier", "carrier", "trunk"),
        ("trunks enable carrier", "carrier", "trunk"),
        ("media list", "CALL", "sessions"),
        ("config show", "[[trunk]]", "toml"),
        ("config check", "ok", "ok"),
        ("config diff", "", "changes"),
        ("config reload", "", "applied"),
        ("log level", "warn", "level"),
        ("stats sbc_calls", "sbc_calls", "stats"),
        ("bans list", "", "bans"),
        ("cluster status", "", ""),
    ] {
        let (code, table) = node.ctl(verb);
        let alone = verb.starts_with("cluster");
        assert_eq!(code, i32::from(alone), "{verb}: {table}");
        assert!(table.contains(column), "{verb}: {table}");
        if !alone {
            let reply = node.json(verb);
            assert!(reply.get(member).is_some(), "{verb}: {reply}");
        }
    }
    // Samples come one by one, a line each.
    let (code, lines) = node.ctl("--output json top -n 2 --interval 0.05");
    assert_eq!((code, lines.lines().count()), (0, 2), "{lines}");
    assert!(lines.lines().all(|l| l.contains("\"calls\":1")), "{lines}");
    let (code, table) = node.ctl("top -n 1 --interval 0.05");
    assert_eq!((code, table.lines().count()), (0, 2), "a head and a sample: {table}");
    assert_eq!(node.ctl(&format!("calls hangup {id}")).0, 0);
    for shell in ["bash", "zsh", "fish"] {
        let (code, script) = sbcctl(&["completions", shell]);
        assert!(code == 0 && script.contains("trunks"), "{shell}");
    }
}

#[test]
fn a_file_is_checked_by_a_running_node_and_secrets_are_blanked() {
    let node = Node::start();
    let credentials =
        "credentials = [{ realm = \"r\", username = \"u\", password = \"hunter2\" }]\n";
    node.edit(|text| {
        text.replacen("max-calls = 100\n", &format!("max-calls = 100\n{credentials}"), 1)
    });
    assert_eq!(node.json("config reload")["applied"], true);
    let shown = node.json("config show")["toml"].as_str().unwrap().to_owned();
    assert!(shown.contains("username") && !shown.contains("hunter2"), "{shown}");
    let file = node.path("other.toml");
    std::fs::write(&file, "[node]\nnoise = 1\n[[trunk]]\nname = 3\n").unwrap();
    let (code, reply) = node.ctl(&format!("--output json config check {}", file.display()));
    assert_eq!(code, 1, "{reply}");
    let reply: serde_json::Value = serde_json::from_str(&reply).unwrap();
    let lines: Vec<_> = reply["problems"].as_array().unwrap().iter().map(|p| &p["line"]).collect();
    assert!(lines.contains(&&2.into()) && lines.contains(&&4.into()), "{reply}");
}

#[test]
fn sighup_applies_the_file_or_changes_nothing() {
    let node = Node::start();
    let limit = || node.json("trunks list")["trunks"][0]["max_calls"].as_u64();
    node.edit(|text| text.replace("max-calls = 100", "max-calls = 7"));
    node.signal(Signal::SIGHUP);
    eventually("the reload", || (limit() == Some(7)).then_some(()));
    let counts = || {
        let stats = node.json("stats sbc_config_reloads");
        let value = |outcome: &str| {
            let all = stats["stats"].as_array().unwrap().iter();
            let mut ours = all.filter(|s| s["labels"].as_str().unwrap().contains(outcome));
            ours.next().and_then(|s| s["value"].as_f64())
        };
        (value("applied"), value("refused"))
    };
    assert_eq!(counts(), (Some(1.0), Some(0.0)));
    node.edit(|text| text.replace("max-calls = 7", "max-calls = 8\nnonsense = 1"));
    node.signal(Signal::SIGHUP);
    eventually("the refusal", || (counts() == (Some(1.0), Some(1.0))).then_some(()));
    assert_eq!(limit(), Some(7));
}

async fn channel(node: &Node) -> Channel {
    let path = node.socket.clone();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://node").connect_with_connector(connector).await.unwrap()
}

#[test]
fn health_and_reflection_are_served_on_the_private_socket() {
    let node = Node::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = channel(&node).await;
        let request = HealthCheckRequest::default();
        let health = HealthClient::new(channel.clone()).check(request).await.unwrap();
        assert_eq!(health.into_inner().status, 1, "SERVING");
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let replies = ServerReflectionClient::new(channel)
            .server_reflection_info(tokio_stream::iter([request]))
            .await
            .unwrap();
        let reply = replies.into_inner().message().await.unwrap().unwrap().message_response;
        let Some(MessageResponse::ListServicesResponse(list)) = reply else { panic!("{reply:?}") };
        let names: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
        for service in ["Node", "Calls", "Trunks", "Media", "Config"] {
            assert!(names.iter().any(|n| n.ends_with(&format!(".{service}"))), "{names:?}");
        }
    });
}
