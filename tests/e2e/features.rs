//! What a call can do besides being set up and ended: hold, late offer, 100rel, cancel, failover,
//! hang-up from the far side, drain.

use std::time::Duration;

use nix::sys::signal::Signal;
use sbc_tests::can_make_namespaces;

use crate::bed::{Bed, V4};

const LONG: Duration = Duration::from_secs(30);

/// One call of a pair of scenarios, and its CDR.
fn pair(test: &str, caller: &str, callee: &str, args: &str) -> Option<serde_json::Value> {
    if !can_make_namespaces(test) {
        return None;
    }
    let bed = Bed::new(V4, "");
    let callee = bed.callee(callee, "-m 1 -d 300");
    let caller = bed.caller(caller, &format!("-m 1 -d 300 {args}"));
    caller.expect_success(LONG);
    callee.expect_success(LONG);
    let cdr = bed.node().wait_cdrs(1).remove(0);
    bed.finish();
    Some(cdr)
}

#[test]
fn hold_and_resume_by_reinvite() {
    if let Some(cdr) = pair("hold", "uac-hold.xml", "uas-hold.xml", "") {
        assert_eq!(cdr["status"], 200);
    }
}

#[test]
fn late_offer() {
    if let Some(cdr) = pair("late_offer", "uac-late-offer.xml", "uas-late-offer.xml", "") {
        assert_eq!(cdr["status"], 200);
    }
}

#[test]
fn reliable_provisional_responses_end_to_end() {
    if let Some(cdr) = pair("100rel", "uac-100rel.xml", "uas-100rel.xml", "") {
        assert_eq!(cdr["status"], 200);
    }
}

#[test]
fn reliable_provisional_terminated_towards_a_caller_that_lacks_it() {
    if let Some(cdr) = pair("100rel terminated", "uac-call.xml", "uas-100rel.xml", "") {
        assert_eq!(cdr["status"], 200);
    }
}

#[test]
fn the_caller_gives_up() {
    if let Some(cdr) = pair("cancel", "uac-cancel.xml", "uas-ring.xml", "") {
        assert_eq!(cdr["status"], 487);
        assert_eq!(cdr["ended_by"], "caller");
    }
}

#[test]
fn the_callee_hangs_up_and_its_reason_passes() {
    if let Some(cdr) = pair("hangup", "uac-wait-bye.xml", "uas-hangup.xml", "") {
        assert_eq!(cdr["ended_by"], "callee");
        assert_eq!(cdr["end_reason"], "Q.850;cause=16;text=\"normal\"");
    }
}

#[test]
fn a_refusal_reaches_the_caller() {
    if !can_make_namespaces("refusal") {
        return;
    }
    let bed = Bed::new(V4, "");
    let callee = bed.callee_with("uas-reject.xml", "486", "-m 1");
    let caller = bed.caller_with("uac-expect-failure.xml", "486", "-m 1");
    caller.expect_success(LONG);
    callee.expect_success(LONG);
    let cdr = bed.node().wait_cdrs(1).remove(0);
    assert_eq!(cdr["status"], 486);
    bed.finish();
}

#[test]
fn a_503_moves_the_call_to_the_next_trunk_unseen() {
    if !can_make_namespaces("failover") {
        return;
    }
    let bed = Bed::new(V4, "");
    let first = bed.callee_with("uas-reject.xml", "503", "-m 1");
    let second = bed.callee_at(bed.plan.inside2, "callee2", "uas-answer.xml", "-m 1");
    let caller = bed.caller("uac-call.xml", "-m 1 -d 300");
    caller.expect_success(LONG);
    first.expect_success(LONG);
    second.expect_success(LONG);
    let cdr = bed.node().wait_cdrs(1).remove(0);
    assert_eq!(cdr["status"], 200);
    let attempts = cdr["attempts"].as_array().expect("attempts");
    assert_eq!(attempts.len(), 2, "{cdr}");
    assert_eq!(attempts[0]["status"], 503);
    bed.finish();
}

#[test]
fn nobody_listening_moves_the_call_to_the_next_trunk() {
    if !can_make_namespaces("failover icmp") {
        return;
    }
    let bed = Bed::new(V4, "");
    let second = bed.callee_at(bed.plan.inside2, "callee2", "uas-answer.xml", "-m 1");
    let caller = bed.caller("uac-call.xml", "-m 1 -d 300");
    caller.expect_success(LONG);
    second.expect_success(LONG);
    assert_eq!(bed.node().wait_cdrs(1)[0]["status"], 200);
    bed.finish();
}

#[test]
fn an_unknown_number_gets_404_and_its_cdr() {
    if !can_make_namespaces("404") {
        return;
    }
    let bed = Bed::new(V4, "");
    let caller = bed.caller_with("uac-expect-failure.xml", "404", "-m 1 -s 9999");
    caller.expect_success(LONG);
    assert_eq!(bed.node().wait_cdrs(1)[0]["status"], 404);
    bed.finish();
}

/// SIGTERM: what is up goes on until the drain time is over, then both sides get a BYE.
#[test]
fn sigterm_drains_and_then_hangs_up_both_sides() {
    if !can_make_namespaces("drain") {
        return;
    }
    let mut bed = Bed::new(V4, "");
    let callee = bed.callee("uas-answer.xml", "-m 1");
    let caller = bed.caller("uac-wait-bye.xml", "-m 1");
    sbc_tests::wait_for("the call to be up", LONG, || {
        bed.node().ctl("calls list").to_string().contains("1234").then_some(())
    });
    let mut node = bed.node.take().expect("node");
    node.proc.signal(Signal::SIGTERM);
    caller.expect_success(LONG);
    callee.expect_success(LONG);
    let status = node.proc.wait(LONG);
    assert!(status.success(), "{status}");
    assert_eq!(node.cdrs().len(), 1);
    assert_eq!(node.cdrs()[0]["cause"], "shutdown");
}

/// A call whose media stops in both directions is ended.
#[test]
fn media_timeout_ends_the_call() {
    if !can_make_namespaces("media timeout") {
        return;
    }
    let bed = Bed::new(V4, "\n[calls]\nmedia-timeout = \"2s\"\n");
    let callee = bed.callee("uas-answer.xml", "-m 1");
    let caller = bed.caller("uac-wait-bye.xml", "-m 1");
    caller.expect_success(LONG);
    callee.expect_success(LONG);
    assert_eq!(bed.node().wait_cdrs(1)[0]["cause"], "media-timeout");
    bed.finish();
}
