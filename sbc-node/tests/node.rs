//! The binaries as an operator uses them: start, look, call, trace, reload, drain, stop.

mod process;

use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;
use process::{Node, Phone, http_get};
use serde_json::Value;

#[test]
fn status_and_lists_are_json_for_scripts_and_tables_for_people() {
    let node = Node::start();
    let status = node.json("status");
    assert_eq!((&status["node"], &status["state"]), (&"t".into(), &"running".into()));
    assert_eq!(status["shards"], 2);
    assert_eq!(status["listeners"].as_array().unwrap().len(), 4);
    assert_eq!(node.json("calls list")["calls"], Value::Array(Vec::new()));
    let trunks = node.json("trunks list");
    assert_eq!(trunks["trunks"][0]["name"], "pbx");
    let (code, table) = node.ctl("trunks list");
    assert_eq!(code, 0);
    assert!(table.contains("TRUNK") && table.contains("carrier"), "{table}");
    let mode = std::fs::metadata(&node.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(node.ctl("calls hangup 00000000000000ff").0, 1);
    assert_eq!(node.ctl("calls show nonsense").0, 1);
    assert_eq!(node.ctl("no-such-command").0, 2);
    assert_eq!(node.ctl("--output json completions bash").0, 0);
}

#[test]
fn an_unreachable_node_has_an_exit_code_of_its_own() {
    let (code, _) = process::sbcctl(&["--socket", "/nonexistent/admin.sock", "status"]);
    assert_eq!(code, 3);
}

#[test]
fn check_prints_each_problem_with_its_line_and_exits_2() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.toml");
    std::fs::write(&file, "[node]\nname = \"x\"\nnonsense = 1\n").unwrap();
    let (code, _, errors) = process::sbc_node(&["check", file.to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(errors.contains(":3: "), "{errors}");
}

#[test]
fn a_call_is_carried_listed_traced_and_told_in_metrics_and_cdr() {
    let node = Node::start();
    let (caller, callee) = (Phone::at(node.pbx), Phone::at(node.carrier));
    let invite = caller.invite(node.inside, "1");
    caller.send(node.inside, &invite);
    let incoming = callee.receive("INVITE ");
    callee.answer(&incoming, 180, "Ringing", false);
    caller.receive("SIP/2.0 180");
    let calls = node.json("calls list");
    assert_eq!(calls["total"], 1);
    assert_eq!(calls["calls"][0]["state"], "ringing");
    let id = calls["calls"][0]["id"].as_str().unwrap().to_owned();
    let trace = node.trace(&id);
    callee.answer(&incoming, 200, "OK", true);
    let answered = caller.receive("SIP/2.0 200");
    caller.send(node.inside, &caller.in_dialog("ACK", &invite, &answered, 1));
    callee.receive("ACK ");
    let shown = node.json(&format!("calls show {id}"));
    assert_eq!(shown["summary"]["state"], "up");
    assert_eq!(shown["legs"][1]["trunk"], "carrier");
    assert_eq!(node.json("media list")["sessions"][0]["call"], id.as_str());
    caller.send(node.inside, &caller.in_dialog("BYE", &invite, &answered, 2));
    let bye = callee.receive("BYE ");
    callee.answer(&bye, 200, "OK", false);
    caller.receive("SIP/2.0 200");
    let ladder = trace.finish();
    let rungs: Vec<&str> = ladder.iter().filter_map(|e| e["summary"].as_str()).collect();
    for rung in ["200 OK (INVITE, SDP)", "ACK", "BYE", "200 OK (BYE)"] {
        let count = rungs.iter().filter(|r| **r == rung).count();
        assert_eq!(count, 2, "{rung} on both legs: {rungs:?}");
    }
    let cdr = node.cdrs(1).remove(0);
    assert_eq!((&cdr["status"], &cdr["ended_by"]), (&200.into(), &"caller".into()));
    let metrics = http_get(node.metrics, "/metrics");
    let outcome = "sbc_call_outcomes_total{trunk_a=\"pbx\",trunk_b=\"carrier\",class=\"2xx\"";
    assert!(metrics.contains(outcome), "{metrics}");
    assert!(metrics.contains("sbc_calls_answered_total"), "{metrics}");
    node.stop();
}

#[test]
fn an_operator_hangs_up_on_both_sides() {
    let node = Node::start();
    let (caller, callee) = (Phone::at(node.pbx), Phone::at(node.carrier));
    caller.call(&callee, node.inside);
    let calls = node.json("calls list");
    let id = calls["calls"][0]["id"].as_str().unwrap();
    assert_eq!(node.ctl(&format!("calls hangup {id}")).0, 0);
    for phone in [&caller, &callee] {
        let bye = phone.receive("BYE ");
        phone.answer(&bye, 200, "OK", false);
    }
    assert_eq!(node.cdrs(1)[0]["cause"], "operator");
}

#[test]
fn a_drain_refuses_new_calls_and_can_be_undone() {
    let node = Node::start();
    let (caller, callee) = (Phone::at(node.pbx), Phone::at(node.carrier));
    assert_eq!(node.json("node drain")["state"], "draining");
    assert!(http_get(node.metrics, "/readyz").starts_with("HTTP/1.1 503"));
    caller.send(node.inside, &caller.invite(node.inside, "1"));
    caller.receive("SIP/2.0 503");
    assert_eq!(node.json("node drain --undo")["state"], "running");
    assert!(http_get(node.metrics, "/readyz").starts_with("HTTP/1.1 200"));
    caller.call(&callee, node.inside);
}

#[test]
fn sigterm_waits_for_calls_then_hangs_up_writes_cdrs_and_exits_0() {
    let mut node = Node::start_with("drain-time = \"300ms\"");
    let (caller, callee) = (Phone::at(node.pbx), Phone::at(node.carrier));
    caller.call(&callee, node.inside);
    node.signal(Signal::SIGTERM);
    for phone in [&caller, &callee] {
        let bye = phone.receive("BYE ");
        phone.answer(&bye, 200, "OK", false);
    }
    assert_eq!(node.wait(), Some(0));
    assert_eq!(node.cdrs(1)[0]["cause"], "shutdown");
}

#[test]
fn a_reload_moves_an_interface_and_drops_no_call() {
    let node = Node::start_with("[sip]\nt1 = \"20ms\"\nt2 = \"200ms\"");
    let (caller, callee) = (Phone::at(node.pbx), Phone::at(node.carrier));
    let listeners = || -> Vec<String> {
        let status = node.json("status");
        let all = status["listeners"].as_array().unwrap().iter();
        let shown = |l: &Value| {
            format!("{} {}://{}", l["interface"], l["transport"], l["local"]).replace('"', "")
        };
        all.map(shown).collect()
    };
    // A call by the interface that goes.
    let invite = caller.invite(node.inside, "1");
    caller.send(node.inside, &invite);
    let incoming = callee.receive("INVITE ");
    callee.answer(&incoming, 200, "OK", true);
    let answered = caller.receive("SIP/2.0 200");
    caller.send(node.inside, &caller.in_dialog("ACK", &invite, &answered, 1));
    callee.receive("ACK ");
    let (old, new) = (node.outside, process::free_udp());
    node.edit(|text| {
        text.replace("\"outside\"", "\"outer\"")
            .replace(&old.to_string(), &new.to_string())
            .replace("25000-29999", "30000-31999")
    });
    let reply = node.json("config reload");
    assert_eq!(reply["applied"], true, "{reply}");
    for listener in [format!("outer udp://{new}"), format!("outside udp://{old}")] {
        assert!(listeners().contains(&listener), "{listener}: {:?}", listeners());
    }
    // A new call takes the new way, media included.
    let second = caller.invite(node.inside, "2");
    caller.send(node.inside, &second);
    let incoming2 = callee.receive("INVITE ");
    assert!(incoming2.contains(&format!("Via: SIP/2.0/UDP {new};")), "{incoming2}");
    let port = incoming2.lines().find_map(|l| l.strip_prefix("m=audio ")).unwrap();
    let port: u16 = port.split(' ').next().unwrap().parse().unwrap();
    assert!((30_000..32_000).contains(&port), "{port}");
    callee.answer(&incoming2, 486, "Busy Here", false);
    caller.receive("SIP/2.0 486");
    caller.send(node.inside, &caller.ack(&second));
    // The old one goes on by the old way, in both directions.
    caller.send(node.inside, &caller.in_dialog("INFO", &invite, &answered, 2));
    let info = callee.receive("INFO ");
    assert!(info.contains(&format!("Via: SIP/2.0/UDP {old};")), "{info}");
    callee.answer(&info, 200, "OK", false);
    caller.receive("SIP/2.0 200");
    callee.send(old, &callee.callee_request("BYE", &incoming, 1));
    let bye = caller.receive("BYE ");
    caller.answer(&bye, 200, "OK", false);
    callee.receive("SIP/2.0 200");
    // With the last call the old sockets close.
    process::eventually("the old interface to close", || {
        (!listeners().iter().any(|l| l.starts_with("outside "))).then_some(())
    });
    process::eventually("the old address to be free", || UdpSocket::bind(old).ok());
    assert_eq!(node.json("calls list")["total"], 0);
    node.stop();
}

#[test]
fn a_reload_that_cannot_listen_changes_nothing() {
    let node = Node::start();
    let (caller, callee) = (Phone::at(node.pbx), Phone::at(node.carrier));
    let free = process::free_udp();
    let before = node.json("status")["listeners"].clone();
    let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
    let held = holder.local_addr().unwrap();
    node.edit(|text| {
        let more = format!(
            "[[interface]]\nname = \"good\"\nlisten = \"udp://{free}\"\n\
             [[interface]]\nname = \"bad\"\nlisten = \"udp://{held}\"\n"
        );
        text.replace("max-calls = 100", "max-calls = 7") + &more
    });
    let (code, reply) = node.ctl("--output json config reload");
    let reply: Value = serde_json::from_str(&reply).unwrap();
    assert_eq!((code, &reply["applied"]), (1, &false.into()));
    assert!(reply.to_string().contains(&format!("cannot listen on udp://{held}")), "{reply}");
    assert_eq!(node.json("status")["listeners"], before);
    assert_eq!(node.json("trunks list")["trunks"][0]["max_calls"], 100);
    // Once the address is free, the same file applies, and takes calls of before.
    drop(holder);
    assert_eq!(node.json("config reload")["applied"], true);
    assert_eq!(node.json("status")["listeners"].as_array().unwrap().len(), 6);
    caller.call(&callee, node.inside);
}

#[test]
fn a_reload_applies_all_or_nothing_and_drops_no_call() {
    let node = Node::start();
    let (caller, callee) = (Phone::at(node.pbx), Phone::at(node.carrier));
    caller.call(&callee, node.inside);
    node.edit(|text| text.replace("max-calls = 100", "max-calls = 7"));
    let diff = node.json("config diff");
    assert_eq!(diff["changes"].as_array().unwrap().len(), 1, "{diff}");
    assert_eq!(node.json("config reload")["applied"], true);
    assert_eq!(node.json("trunks list")["trunks"][0]["max_calls"], 7);
    node.edit(|text| text.replace("max-calls = 7", "max-calls = \"many\""));
    let (code, reply) = node.ctl("--output json config reload");
    let reply: Value = serde_json::from_str(&reply).unwrap();
    assert_eq!((code, &reply["applied"]), (1, &false.into()));
    assert_eq!(node.json("trunks list")["trunks"][0]["max_calls"], 7);
    assert_eq!(node.json("calls list")["total"], 1);
}

#[test]
fn a_switched_off_trunk_takes_no_calls() {
    let node = Node::start();
    let (caller, callee) = (Phone::at(node.pbx), Phone::at(node.carrier));
    assert_eq!(node.json("trunks disable carrier")["trunk"]["enabled"], false);
    caller.send(node.inside, &caller.invite(node.inside, "1"));
    let refusal = caller.receive("SIP/2.0 5");
    assert!(!refusal.starts_with("SIP/2.0 200"), "{refusal}");
    assert_eq!(node.json("trunks enable carrier")["trunk"]["enabled"], true);
    caller.call(&callee, node.inside);
}

#[test]
fn the_log_level_changes_while_running_and_a_bad_one_is_refused() {
    let node = Node::start();
    assert_eq!(node.json("log level debug")["level"], "debug");
    assert_eq!(node.ctl("log level a=b=c").0, 1);
    assert_eq!(node.json("log level")["level"], "debug");
}

#[test]
fn a_port_that_is_taken_ends_the_start_with_a_reason() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (code, errors) = Node::fail_to_start(taken.local_addr().unwrap());
    assert_eq!(code, Some(1));
    assert!(errors.contains("cannot open the listeners"), "{errors}");
}
