//! What goes wrong around a node, and what an operator does about it: a shard dies, the disk is full,
//! names change, trunks are probed, the log is turned up.

mod process;
mod zone;

use std::collections::BTreeMap;
use std::path::Path;

use process::{Node, Phone, eventually, free_udp};
use serde_json::Value;
use zone::{A, NAPTR, SRV, Zone, naptr, srv};

fn stat(node: &Node, name: &str) -> f64 {
    let reply = node.json(&format!("stats {name}"));
    reply["stats"].as_array().unwrap().iter().filter_map(|s| s["value"].as_f64()).sum()
}

/// Makes the next wait for sockets of a thread fail, as if the kernel had lost its epoll.
#[cfg(target_arch = "x86_64")]
fn break_poller(pid: u32, thread: &str) {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let named = |path: &Path| {
        std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == thread)
    };
    let task = tasks.map(|t| t.path()).find(|path| named(path)).expect("the thread");
    let tid: i32 = task.file_name().unwrap().to_str().unwrap().parse().unwrap();
    // SAFETY: plain ptrace and wait calls on a thread of our own child; `regs` outlives them.
    unsafe {
        let none = std::ptr::null_mut::<libc::c_void>();
        assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, tid, none, none), 0, "ptrace");
        assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, tid, none, none), 0);
        assert_eq!(libc::waitpid(tid, std::ptr::null_mut(), libc::__WALL), tid);
        let mut regs: libc::user_regs_struct = std::mem::zeroed();
        let at = (&raw mut regs).cast::<libc::c_void>();
        assert_eq!(libc::ptrace(libc::PTRACE_GETREGS, tid, none, at), 0);
        // EBADF, and no restart of the call that was interrupted.
        regs.rax = u64::from_ne_bytes((-i64::from(libc::EBADF)).to_ne_bytes());
        regs.orig_rax = u64::MAX;
        let at = (&raw mut regs).cast::<libc::c_void>();
        assert_eq!(libc::ptrace(libc::PTRACE_SETREGS, tid, none, at), 0);
        assert_eq!(libc::ptrace(libc::PTRACE_DETACH, tid, none, none), 0);
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_node_that_loses_a_shard_ends_with_70_and_says_which() {
    let mut node = Node::start();
    break_poller(node.pid(), "shard-1");
    assert_eq!(node.wait(), Some(70));
    let errors = node.errors();
    assert!(errors.contains("sbc-node: shard 1 died: "), "{errors}");
}

/// It ended by itself, not by the signal's default, and it did not miss the signal.
#[test]
fn sigterm_is_heard_from_the_first_moment() {
    for _ in 0..10 {
        Node::begin().stop();
    }
}

#[test]
fn probes_at_once_on_request() {
    let node = Node::start();
    let carrier = Phone::at(node.carrier);
    // Without probing there is nothing to ask for.
    assert_eq!(node.ctl("trunks probe carrier").0, 1);
    assert_eq!(node.ctl("trunks probe nobody").0, 1);
    node.edit(|text| {
        let carrier = "name = \"carrier\"\n";
        text.replace(
            carrier,
            &format!("{carrier}probe = {{ interval = \"1h\", down-after = 1 }}\n"),
        )
    });
    assert_eq!(node.json("config reload")["applied"], true);
    // The first of its own accord may come within the hour; ours comes now.
    for _ in 0..2 {
        assert_eq!(node.json("trunks probe carrier")["trunk"]["name"], "carrier");
        let options = carrier.receive("OPTIONS ");
        carrier.answer(&options, 200, "OK", false);
    }
    let state = || node.json("trunks list")["trunks"][1]["state"].as_str().unwrap().to_owned();
    let up = state();
    node.json("trunks probe carrier");
    let options = carrier.receive("OPTIONS ");
    carrier.answer(&options, 503, "Service Unavailable", false);
    eventually("the trunk to be down", || (state() != up).then_some(()));
}

#[test]
fn the_log_level_changes_at_run_time_and_bad_ones_change_nothing() {
    let node = Node::start();
    let level = || node.json("log level")["level"].as_str().unwrap().to_owned();
    assert_eq!(level(), "warn");
    node.json("log level info,sbc_core=debug");
    assert_eq!(level(), "info,sbc_core=debug");
    assert_eq!(node.ctl("log level sbc_core=loudly").0, 1);
    assert_eq!(level(), "info,sbc_core=debug");
}

/// A call that is refused: one CDR.
fn attempt(node: &Node, caller: &Phone, callee: &Phone, call: &str) {
    let invite = caller.invite(node.inside, call);
    caller.send(node.inside, &invite);
    let incoming = callee.receive("INVITE ");
    callee.answer(&incoming, 486, "Busy Here", false);
    caller.receive("SIP/2.0 486");
    caller.send(node.inside, &caller.ack(&invite));
}

#[test]
fn a_full_disk_is_told_and_loses_no_record() {
    let node = Node::start();
    let (caller, callee) = (Phone::at(node.pbx), Phone::at(node.carrier));
    let file = node.path("cdr.jsonl");
    attempt(&node, &caller, &callee, "1");
    node.cdrs(1);
    // The file becomes one that takes nothing.
    std::fs::rename(&file, node.path("before")).unwrap();
    std::os::unix::fs::symlink("/dev/full", &file).unwrap();
    for call in 2..5 {
        attempt(&node, &caller, &callee, &call.to_string());
    }
    eventually("the alarm", || {
        node.json("status")["alarms"].to_string().contains("cdr-write-failing").then_some(())
    });
    eventually("the errors to count", || (stat(&node, "sbc_cdr_errors") >= 1.0).then_some(()));
    assert_eq!(stat(&node, "sbc_cdr_queued"), 3.0);
    // Calls go on meanwhile; with room again all of it is written.
    std::fs::remove_file(&file).unwrap();
    let written: Vec<Value> = node.cdrs(3);
    assert_eq!(written.len(), 3);
    eventually("the alarm to end", || {
        node.json("status")["alarms"].as_array().is_none_or(Vec::is_empty).then_some(())
    });
    assert_eq!(stat(&node, "sbc_cdr_lost"), 0.0);
    assert_eq!(stat(&node, "sbc_cdr_written"), 4.0);
    node.stop();
}

#[test]
fn a_file_that_somebody_removed_is_begun_anew() {
    let node = Node::start_with_cdr("cdr/records.jsonl");
    let (caller, callee) = (Phone::at(node.pbx), Phone::at(node.carrier));
    attempt(&node, &caller, &callee, "1");
    let file = node.path("cdr/records.jsonl");
    let lines = || std::fs::read_to_string(&file).unwrap_or_default().lines().count();
    eventually("the first record", || (lines() == 1).then_some(()));
    std::fs::remove_dir_all(node.path("cdr")).unwrap();
    attempt(&node, &caller, &callee, "2");
    eventually("the second record", || (lines() == 1).then_some(()));
    assert_eq!(stat(&node, "sbc_cdr_errors"), 1.0, "that it was gone is counted");
    assert_eq!(stat(&node, "sbc_cdr_written"), 2.0);
    node.stop();
}

/// One call to the carrier by name; who of the phones got it.
fn call_by_name(node: &Node, caller: &Phone, phones: &[Phone], call: &str) -> usize {
    let invite = caller.invite(node.inside, call);
    caller.send(node.inside, &invite);
    let (at, incoming) = eventually("the call at a phone", || {
        if let Some(refused) = caller.poll("SIP/2.0 4").or_else(|| caller.poll("SIP/2.0 5")) {
            panic!("the call was refused: {refused}");
        }
        phones.iter().enumerate().find_map(|(at, p)| Some((at, p.poll("INVITE ")?)))
    });
    phones[at].answer(&incoming, 486, "Busy Here", false);
    caller.receive("SIP/2.0 486");
    caller.send(node.inside, &caller.ack(&invite));
    at
}

#[test]
fn rfc3263_a_trunk_by_name_follows_naptr_srv_weights_failover_and_ttl() {
    let zone = Zone::new(&[]);
    let server = zone.serve();
    let node = Node::start_with(&format!(
        "[sip]\nt1 = \"50ms\"\nt2 = \"100ms\"\n[dns]\nservers = [\"{server}\"]\ntimeout = \"500ms\""
    ));
    let caller = Phone::at(node.pbx);
    let phones: Vec<Phone> = (0..3).map(|_| Phone::at(free_udp())).collect();
    let port = |n: usize| phones[n].address.port();
    let dead = free_udp().port();
    let local = vec![127, 0, 0, 1];
    let base = |srv_records: Vec<Vec<u8>>, ttl: u32| {
        let mut all = vec![
            ("carrier.test", NAPTR, ttl, naptr(10, 0, "SIP+D2U", "_sip._udp.carrier.test")),
            ("a.carrier.test", A, ttl, local.clone()),
        ];
        all.extend(srv_records.into_iter().map(|r| ("_sip._udp.carrier.test", SRV, ttl, r)));
        zone.set(&all);
    };
    // A dead server first, then one that lives.
    base(vec![srv(10, 0, dead, "a.carrier.test"), srv(20, 0, port(0), "a.carrier.test")], 1);
    let carrier = node.carrier.to_string();
    node.edit(|text| {
        text.replace(
            &format!("peers = \"{carrier}\""),
            "peers = \"carrier.test\"\nsources = \"127.0.0.1\"",
        )
    });
    let reply = node.json("config reload");
    assert_eq!(reply["applied"], true, "{reply}");
    assert_eq!(call_by_name(&node, &caller, &phones, "1"), 0);
    let cdr = node.cdrs(1).remove(0);
    let tried: Vec<u64> =
        cdr["attempts"].as_array().unwrap().iter().filter_map(|a| a["status"].as_u64()).collect();
    assert_eq!(tried, [503, 486], "{cdr}");
    // The TTL is a second: another server is asked for soon.
    base(vec![srv(10, 0, port(1), "a.carrier.test")], 1);
    let mut n = 1;
    eventually("the new server", || {
        n += 1;
        (call_by_name(&node, &caller, &phones, &n.to_string()) == 1).then_some(())
    });
    // Nine to one, and a TTL that outlives the test: asked once, then shared out.
    base(vec![srv(10, 90, port(0), "a.carrier.test"), srv(10, 10, port(2), "a.carrier.test")], 600);
    // Each shard has a cache of its own: the old server is gone when a row of calls misses it.
    eventually("the weights", || {
        let row = (0..20).all(|_| {
            n += 1;
            call_by_name(&node, &caller, &phones, &n.to_string()) != 1
        });
        row.then_some(())
    });
    let asked = || zone.asked.load(std::sync::atomic::Ordering::Relaxed);
    let mut took = BTreeMap::from([(0, 0), (1, 0), (2, 0)]);
    // Each shard may have to ask once.
    let before = asked();
    // So many that the smaller share is none once in seven million times.
    for _ in 0..150 {
        n += 1;
        *took.entry(call_by_name(&node, &caller, &phones, &n.to_string())).or_default() += 1;
    }
    assert!(took[&0] > took[&2] * 2 && took[&2] > 0, "{took:?}");
    assert!(asked() - before <= 12, "a cached name was asked {} times", asked() - before);
}

#[test]
fn a_crash_loses_no_record_of_an_answered_call() {
    let node = Node::start();
    let (caller, callee) = (Phone::at(node.pbx), Phone::at(node.carrier));
    // One that ended, one that is up.
    let invite = caller.invite(node.inside, "1");
    caller.send(node.inside, &invite);
    let incoming = callee.receive("INVITE ");
    callee.answer(&incoming, 200, "OK", true);
    let answered = caller.receive("SIP/2.0 200");
    caller.send(node.inside, &caller.in_dialog("ACK", &invite, &answered, 1));
    callee.receive("ACK ");
    caller.send(node.inside, &caller.in_dialog("BYE", &invite, &answered, 2));
    let bye = callee.receive("BYE ");
    callee.answer(&bye, 200, "OK", false);
    caller.receive("SIP/2.0 200");
    node.cdrs(1);
    caller.call(&callee, node.inside);
    let notes = node.path("cdr.jsonl.answered");
    let noted = || std::fs::read_to_string(&notes).unwrap_or_default().matches('+').count();
    eventually("the note of the answer", || (noted() >= 2).then_some(()));
    let node = node.crashed_and_restarted();
    let cdrs = node.cdrs(2);
    assert_eq!((&cdrs[0]["cause"], &cdrs[1]["cause"]), (&Value::Null, &"crash".into()));
    assert_eq!((&cdrs[1]["status"], &cdrs[1]["b"]["trunk"]), (&200.into(), &"carrier".into()));
    // Nothing is told again.
    let node = node.crashed_and_restarted();
    assert_eq!(node.cdrs(2).len(), 2);
}
