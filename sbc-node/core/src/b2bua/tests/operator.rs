//! What the node does to calls by itself: commands, limits, media silence, traces, reload.

use std::sync::Arc;
use std::time::Duration;

use super::basic::*;
use super::session::hang_up;
use super::world::*;
use crate::b2bua::{CallState, EndCause, EndedBy};
use crate::core::{Command, Input};
use crate::media::MediaId;
use crate::sip::HeaderName;

fn both_hung_up(w: &mut World, cause: EndCause) {
    for who in [Who::A, Who::B] {
        let bye = w.expect(who, "BYE");
        assert!(bye.has(HeaderName::Reason));
        w.answer(who, &bye, 200, "", "");
    }
    assert_eq!(w.cdrs[0].ended_by, EndedBy::Sbc(cause));
    assert_eq!(w.ended, 1);
    w.assert_clean();
}

#[test]
fn hangup_of_one_call() {
    let mut w = World::new();
    set_up(&mut w, "", "");
    let id = w.core.calls().next().unwrap().id;
    assert_eq!(w.core.call(id).unwrap().state, CallState::Up);
    w.input(Input::Command(Command::Hangup(id)));
    both_hung_up(&mut w, EndCause::Operator);
}

#[test]
fn hangup_of_a_call_that_rings() {
    let mut w = World::new();
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &invite, 180, "bobtag", "");
    w.expect(Who::A, "180");
    w.input(Input::Command(Command::HangupAll));
    w.expect(Who::A, "503");
    let cancel = w.expect(Who::B, "CANCEL");
    w.answer(Who::B, &cancel, 200, "bobtag", "");
    w.answer(Who::B, &invite, 487, "bobtag", "");
    w.assert_clean();
}

#[test]
fn the_end_of_a_drain() {
    let mut w = World::new();
    set_up(&mut w, "", "");
    w.input(Input::Command(Command::Drain(true)));
    w.input(Input::Command(Command::HangupAll));
    both_hung_up(&mut w, EndCause::Shutdown);
    assert!(w.drained);
}

#[test]
fn the_duration_limit() {
    let mut settings = Settings::new();
    settings.calls.max_duration = Some(Duration::from_secs(3600));
    settings.one.max_duration = Some(Duration::from_secs(60));
    let mut w = settings.begin();
    set_up(&mut w, "", "");
    w.ms(59_900);
    w.nothing(Who::A);
    w.ms(200);
    both_hung_up(&mut w, EndCause::DurationLimit);
}

#[test]
fn silent_media_ends_the_call() {
    let mut w = World::new();
    set_up(&mut w, "", "");
    let id = w.core.calls().next().unwrap().id;
    w.input(Input::MediaTimeout { session: MediaId(id.0) });
    assert_eq!(w.core.stats().media_timeouts, 1);
    both_hung_up(&mut w, EndCause::MediaTimeout);
}

#[test]
fn silence_on_hold_is_no_sign_of_death() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    let id = w.core.calls().next().unwrap().id;
    let held = SDP_A.replace("a=sendrecv", "a=inactive");
    let re = a_request(&mut w, &call.ok, "INVITE", 102, &sdp(&held));
    w.says(Who::A, &re);
    let re = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &re, 200, "", &sdp(&format!("{SDP_B}a=inactive\n")));
    w.expect(Who::A, "200");
    let ack = a_request(&mut w, &call.ok, "ACK", 102, "");
    w.says(Who::A, &ack);
    w.expect(Who::B, "ACK");
    w.input(Input::MediaTimeout { session: MediaId(id.0) });
    assert_eq!(w.core.stats().media_timeouts, 0);
    hang_up(&mut w, &call);
}

#[test]
fn a_latched_source_is_written_down() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    let id = w.core.calls().next().unwrap().id;
    w.input(Input::MediaLatched { session: MediaId(id.0) });
    assert_eq!(w.records.len(), 2);
    assert_eq!(w.records[1].revision, 2);
    hang_up(&mut w, &call);
}

#[test]
fn a_trace_is_the_ladder_of_both_legs() {
    let mut w = World::new();
    w.input(Input::Command(Command::Trace { call: None, on: true }));
    let call = set_up(&mut w, "", "");
    let bye = a_request(&mut w, &call.ok, "BYE", 102, "");
    w.says(Who::A, &bye);
    let heads: Vec<&str> =
        w.traces.iter().map(|t| t.split(" sip:").next().unwrap().trim()).collect();
    assert_eq!(
        heads,
        [
            "A Received INVITE",
            "B Sent INVITE",
            "B Received SIP/2.0 180 Ringing",
            "A Sent SIP/2.0 180 Ringing",
            "B Received SIP/2.0 200 OK",
            "A Sent SIP/2.0 200 OK",
            "A Received ACK",
            "B Sent ACK",
            "A Received BYE",
            "A Sent SIP/2.0 200 OK",
            "B Sent BYE",
        ]
    );
}

#[test]
fn a_reload_keeps_calls_and_changes_new_ones() {
    let mut w = World::new();
    let call = set_up(&mut w, "", "");
    let mut settings = Settings::new();
    settings.calls.max_calls = 0;
    let config = settings.config(w.now);
    w.input(Input::Configure(Arc::new(config)));
    let second = invite_text(&mut w, &sdp(SDP_A)).replace("inside-call-1", "inside-call-2");
    w.says(Who::A, &second);
    w.expect(Who::A, "503");
    hang_up(&mut w, &call);
}

#[test]
fn summaries_of_a_call_in_each_state() {
    let mut w = World::new();
    let state = |w: &World| w.core.calls().next().map(|c| c.state);
    w.hold_stores = true;
    let text = invite_text(&mut w, &sdp(SDP_A));
    w.says(Who::A, &text);
    let invite = w.expect(Who::B, "INVITE");
    assert_eq!(state(&w), Some(CallState::Calling));
    w.answer(Who::B, &invite, 180, "bobtag", "");
    assert_eq!(state(&w), Some(CallState::Ringing));
    w.answer(Who::B, &invite, 200, "bobtag", &sdp(SDP_B));
    assert_eq!(state(&w), Some(CallState::Committing));
    let id = w.held.pop_front().unwrap();
    w.input(Input::Stored { id, protected: true });
    assert_eq!(state(&w), Some(CallState::Up));
    let call = w.core.calls().next().unwrap();
    assert_eq!((&*call.a.trunk, &*call.b.as_ref().unwrap().trunk), ("pbx", "one"));
    assert_eq!(call.a.codecs, ["PCMA"]);
}
