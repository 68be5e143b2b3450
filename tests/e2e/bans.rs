//! Bans as operators see them: set, imported, listed, lifted and told of, in the kernel for as long as
//! the node lives; and what earns one on a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use sbc_tests::net::{exchange, ip, stream_in};
use sbc_tests::node::Node;
use sbc_tests::{binary, can_make_namespaces, wait_for};

use crate::bed::{Bed, V4};

const LONG: Duration = Duration::from_secs(60);

fn options(via: &str, from: &str, n: usize) -> String {
    format!(
        "OPTIONS sip:203.0.113.5 SIP/2.0\r\nVia: SIP/2.0/{via} {from};branch=z9hG4bKb{n};rport\r\n\
         From: <sip:a@example.net>;tag=1\r\nTo: <sip:a@example.net>\r\nMax-Forwards: 70\r\n\
         Call-ID: b{n}-{from}\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
    )
}

/// Whether an address on the outside is answered.
fn answered(bed: &Bed, address: &str, n: usize) -> bool {
    let from = format!("{address}:5066");
    let message = options("UDP", &from, n);
    !exchange(&bed.net.ns("out"), &from, "203.0.113.5:5060", message.as_bytes()).is_empty()
}

fn bed() -> Bed {
    let bed = Bed::new(V4, "\n[guard]\ntrusted = [\"10.1.0.68\"]\n");
    for host in 61..=68 {
        ip(&format!("-n {} addr add 10.1.0.{host}/24 dev to-sbc", bed.net.ns("out")));
    }
    bed
}

/// The node's table of bans as the kernel has it; `None` without one.
fn kernel_table(bed: &Bed) -> Option<String> {
    let words = ["netns", "exec", &bed.net.ns("sbc"), "nft", "list", "table", "netdev"];
    let out = Command::new("ip").args(words).arg("sbc_ban_test").output().expect("ip");
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

fn wait_in_kernel(bed: &Bed, what: &str, there: bool) {
    wait_for(&format!("{what} in the kernel: {there}"), LONG, || {
        (kernel_table(bed)?.contains(what) == there).then_some(())
    });
}

#[test]
fn operators_ban_import_lift_and_flush_and_the_kernel_forgets_with_the_node() {
    if !can_make_namespaces("bans by hand") {
        return;
    }
    let mut bed = bed();
    let node = bed.node();
    node.order("bans add 10.1.0.61 10.1.0.64/31 --for 1h");
    wait_in_kernel(&bed, "10.1.0.61", true);
    for (address, heard) in [("10.1.0.61", false), ("10.1.0.65", false), ("10.1.0.66", true)] {
        assert_eq!(answered(&bed, address, 1), heard, "{address}");
    }
    let listed = node.ctl("bans list 10.1.0.65");
    assert_eq!(listed["bans"][0]["reason"], "manual");
    assert_eq!(listed["bans"][0]["by"], "admin");
    // What is trusted is never banned, neither alone nor within a network.
    for net in ["10.1.0.68", "10.1.0.0/24"] {
        assert!(node.try_ctl(&format!("bans add {net}")).is_none(), "{net}");
    }
    node.order("bans remove 10.1.0.61");
    assert!(node.try_ctl("bans remove 10.1.0.61").is_none(), "not banned any more");
    wait_in_kernel(&bed, "10.1.0.61", false);
    assert!(answered(&bed, "10.1.0.61", 2));
    // From a file, whole or not at all.
    let file = bed.dir.path().join("list.txt");
    std::fs::write(&file, "10.1.0.62\n10.1.0.63/32 ; seen twice\nnobody\n").expect("write");
    let import = format!("bans import {} --for 1d", file.display());
    assert!(node.try_ctl(&import).is_none() && answered(&bed, "10.1.0.62", 3));
    std::fs::write(&file, "10.1.0.62\n10.1.0.63/32 ; seen twice\n").expect("write");
    node.order(&import);
    wait_in_kernel(&bed, "10.1.0.63", true);
    assert!(!answered(&bed, "10.1.0.62", 4) && !answered(&bed, "10.1.0.63", 4));
    assert_eq!(node.ctl("bans list 10.1.0.63")["bans"][0]["by"], "list.txt");
    node.order("bans flush");
    wait_in_kernel(&bed, "10.1.0.63", false);
    assert!(answered(&bed, "10.1.0.62", 5) && answered(&bed, "10.1.0.65", 5));

    // Who dies leaves its table; the next one under that name begins with its own.
    node.order("bans add 10.1.0.61 --for 1h");
    wait_in_kernel(&bed, "10.1.0.61", true);
    let mut dead = bed.node.take().expect("the node");
    dead.proc.signal(Signal::SIGKILL);
    dead.proc.wait(LONG);
    assert!(kernel_table(&bed).is_some_and(|table| table.contains("10.1.0.61")));
    let config = std::fs::read_to_string(dead.dir.join("sbc.toml")).expect("its configuration");
    bed.node = Some(Node::start(&bed.net.ns("sbc"), bed.dir.path(), "sbc", &config));
    wait_in_kernel(&bed, "10.1.0.61", false);
    assert!(answered(&bed, "10.1.0.61", 6));
    bed.node().order("bans add 10.1.0.61 --for 1h");
    wait_in_kernel(&bed, "10.1.0.61", true);
    bed.node.take().expect("the node").stop();
    assert_eq!(kernel_table(&bed), None, "removed with the node");
}

/// One connection, many requests: each message counts, so that its source is banned, and the watcher
/// of events is told, of the lifting too.
#[test]
fn messages_of_one_connection_are_counted_and_events_tell_of_the_ban() {
    if !can_make_namespaces("a flood on one connection") {
        return;
    }
    let bed = bed();
    let socket = bed.node().dir.join("sbc.sock");
    let mut watching = Command::new(binary("sbcctl"))
        .args(["--socket", &socket.to_string_lossy(), "--output", "json"])
        .args(["events", "ban", "--count", "2"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("sbcctl");
    let events = BufReader::new(watching.stdout.take().expect("its output"));
    let told = std::thread::spawn(move || {
        events.lines().take(2).map_while(Result::ok).collect::<Vec<_>>()
    });
    // Of the trunk's address: nobody else's connection is slower for it.
    ip(&format!("-n {} route replace 10.1.0.1/32 dev to-sbc src 10.1.0.67", bed.net.ns("out")));
    let mut n = 0;
    wait_for("two events", LONG, || {
        let mut stream = stream_in(&bed.net.ns("out"), "10.1.0.1:5060");
        stream.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
        for _ in 0..2_000 {
            n += 1;
            if stream.write_all(options("TCP", "10.1.0.67:5066", n).as_bytes()).is_err() {
                break;
            }
        }
        let mut answers = Vec::new();
        // Answers until there are no more, a reset, or silence.
        let _ = stream.read_to_end(&mut answers);
        let _ = stream.shutdown(Shutdown::Both);
        // What a busy machine took in two windows was too little in each: once more, then.
        let banned = (0..50).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            let bans = bed.node().ctl("bans list 10.1.0.67");
            bans["bans"][0]["reason"] == "flood"
        });
        if !banned {
            return None;
        }
        let count = String::from_utf8_lossy(&answers).matches("SIP/2.0 ").count();
        assert!(count < 2_000, "{count} answers to a flooder");
        bed.node().order("bans remove 10.1.0.67");
        told.is_finished().then_some(())
    });
    for line in told.join().expect("events") {
        let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let kind = event["kind"].as_str().expect("a kind");
        assert!(kind == "ban.added" || kind == "ban.over", "{line}");
        assert!(event["subject"].as_str().is_some_and(|s| s.contains("10.1.0.67")), "{line}");
    }
    watching.wait().expect("it ends");
    assert!(bed.node().metric("sbc_guard_pike_blocks", "") >= 1);
    bed.finish();
}
