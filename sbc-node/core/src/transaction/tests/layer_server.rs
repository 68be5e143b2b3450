//! Server transactions through the layer: every timer, repeats, ACK, CANCEL, ways back.

use super::harness::{Bench, flow, parse};
use crate::core::{Destination, SendError};
use crate::net::Transport::{self, Tcp, Udp};
use crate::sip::HeaderName;
use crate::transaction::{Config, Event, Owner, RespondError};

fn request(method: &str, transport: Transport, extra: &str) -> String {
    let transport = transport.via_token();
    format!(
        "{method} sip:b@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/{transport} 192.0.2.20;branch=z9hG4bKpeer\r\n\
         Max-Forwards: 70\r\nFrom: <sip:a@b>;tag=f\r\nTo: <sip:b@c>{extra}\r\nCall-ID: x\r\n\
         CSeq: 3 {method}\r\nContent-Length: 0\r\n\r\n"
    )
}

fn ack() -> String {
    request("ACK", Udp, ";tag=ours")
}

#[test]
fn rfc3261_17_2_1_trying_after_200_ms_and_for_repeats() {
    let mut b = Bench::new(Udp);
    let invite = request("INVITE", Udp, "");
    b.receive(invite.as_bytes());
    b.run_to(100);
    b.receive(invite.as_bytes());
    b.run_to(300);
    b.receive(invite.as_bytes());
    assert_eq!(b.ladder(), ["0 ! request INVITE", "200 -> 100", "300 -> 100"]);
    let trying = parse(&b.sent[0].1);
    assert_eq!(trying.to_tag(), None);
    assert_eq!(b.layer.stats().request_retransmissions, 2);
}

#[test]
fn rfc3261_17_2_1_no_trying_when_the_tu_is_faster() {
    let mut b = Bench::new(Udp);
    b.receive(request("INVITE", Udp, "").as_bytes());
    let (id, invite) = b.incoming();
    b.run_to(150);
    b.respond(&invite, id, 180).expect("alive");
    b.run_to(5_000);
    b.receive(request("INVITE", Udp, "").as_bytes());
    assert_eq!(b.ladder(), ["0 ! request INVITE", "150 -> 180", "5000 -> 180"]);
}

#[test]
fn rfc3261_17_2_1_failure_is_repeated_until_ack() {
    let mut b = Bench::new(Udp);
    b.receive(request("INVITE", Udp, "").as_bytes());
    let (id, invite) = b.incoming();
    b.respond(&invite, id, 486).expect("alive");
    assert_eq!(b.respond(&invite, id, 486), Err(RespondError::Late));
    b.run_to(1_000);
    b.receive(request("INVITE", Udp, "").as_bytes());
    b.run_to(4_000);
    b.receive(ack().as_bytes());
    b.run_to(5_000);
    b.receive(ack().as_bytes());
    b.receive(request("INVITE", Udp, "").as_bytes());
    b.run_to(8_999);
    assert_eq!(b.layer.stats().servers, 1, "timer I");
    b.run_to(9_000);
    b.run_dry();
    assert_eq!(
        b.ladder(),
        [
            "0 ! request INVITE",
            "0 -> 486",
            "500 -> 486",
            "1000 -> 486",
            "1500 -> 486",
            "3500 -> 486"
        ]
    );
    assert_eq!(b.respond(&invite, id, 486), Err(RespondError::Gone));
}

#[test]
fn rfc3261_17_2_1_timer_h_without_ack() {
    let mut b = Bench::new(Udp);
    b.receive(request("INVITE", Udp, "").as_bytes());
    let (id, invite) = b.incoming();
    b.layer.set_owner(id, Owner(9));
    b.respond(&invite, id, 500).expect("alive");
    b.run_dry();
    assert_eq!(
        b.ladder(),
        [
            "0 ! request INVITE",
            "0 -> 500",
            "500 -> 500",
            "1500 -> 500",
            "3500 -> 500",
            "7500 -> 500",
            "11500 -> 500",
            "15500 -> 500",
            "19500 -> 500",
            "23500 -> 500",
            "27500 -> 500",
            "31500 -> 500",
            "32000 ! server timeout",
        ]
    );
    let last = b.events.last().expect("event");
    assert!(matches!(last, Event::ServerTimeout { owner: Some(Owner(9)), .. }));
}

#[test]
fn rfc3261_17_2_1_failure_over_tcp() {
    let mut b = Bench::new(Tcp);
    b.receive(request("INVITE", Tcp, "").as_bytes());
    let (id, invite) = b.incoming();
    b.respond(&invite, id, 404).expect("alive");
    b.run_to(10_000);
    b.receive(request("ACK", Tcp, ";tag=ours").as_bytes());
    assert!(b.layer.is_idle());
    assert_eq!(b.ladder(), ["0 ! request INVITE", "0 -> 404"]);
}

#[test]
fn rfc6026_7_1_accepted_absorbs_invites_and_passes_acks() {
    let mut b = Bench::new(Udp);
    b.receive(request("INVITE", Udp, "").as_bytes());
    let (id, invite) = b.incoming();
    b.respond(&invite, id, 200).expect("alive");
    b.receive(request("INVITE", Udp, "").as_bytes());
    b.run_to(500);
    b.respond(&invite, id, 200).expect("the TU repeats its 2xx");
    assert_eq!(b.respond(&invite, id, 486), Err(RespondError::Late));
    b.receive(ack().as_bytes());
    b.receive(ack().replace("z9hG4bKpeer", "z9hG4bKnew").as_bytes());
    b.run_to(31_999);
    assert_eq!(b.layer.stats().servers, 1, "timer L");
    b.run_dry();
    assert_eq!(
        b.ladder(),
        ["0 ! request INVITE", "0 -> 200", "500 -> 200", "500 ! ack", "500 ! ack"]
    );
}

#[test]
fn rfc3261_17_2_2_repeats_get_the_same_response() {
    let mut b = Bench::new(Udp);
    let bye = request("BYE", Udp, ";tag=ours");
    b.receive(bye.as_bytes());
    b.receive(bye.as_bytes());
    let (id, message) = b.incoming();
    b.respond(&message, id, 200).expect("alive");
    b.run_to(10_000);
    b.receive(bye.as_bytes());
    b.run_to(31_999);
    assert_eq!(b.layer.stats().servers, 1, "timer J");
    b.run_dry();
    assert_eq!(b.ladder(), ["0 ! request BYE", "0 -> 200", "10000 -> 200"]);
    assert_eq!(b.sent[0].1, b.sent[1].1);
}

#[test]
fn rfc4320_4_1_late_100_and_no_other_provisional() {
    let mut b = Bench::new(Udp);
    let info = request("INFO", Udp, ";tag=ours");
    b.receive(info.as_bytes());
    let (id, message) = b.incoming();
    assert_eq!(b.respond(&message, id, 183), Err(RespondError::Forbidden));
    b.respond(&message, id, 100).expect("taken, not sent yet");
    b.run_to(1_500);
    b.receive(info.as_bytes());
    b.run_to(5_000);
    b.receive(info.as_bytes());
    b.respond(&message, id, 200).expect("alive");
    b.run_dry();
    assert_eq!(b.ladder(), ["0 ! request INFO", "3500 -> 100", "5000 -> 100", "5000 -> 200"]);
}

#[test]
fn rfc4320_4_2_no_408_and_nothing_after_the_client_gave_up() {
    let mut b = Bench::new(Tcp);
    b.receive(request("INFO", Tcp, ";tag=ours").as_bytes());
    let (id, message) = b.incoming();
    assert_eq!(b.respond(&message, id, 408), Err(RespondError::Forbidden));
    b.run_dry();
    assert_eq!(b.ladder(), ["0 ! request INFO", "3500 -> 100", "32000 ! server timeout"]);
    assert_eq!(b.respond(&message, id, 200), Err(RespondError::Gone));
}

#[test]
fn rfc3261_9_2_cancel_is_answered_and_told_once() {
    let mut b = Bench::new(Udp);
    b.receive(request("INVITE", Udp, "").as_bytes());
    let (id, invite) = b.incoming();
    b.layer.set_owner(id, Owner(4));
    b.respond(&invite, id, 180).expect("alive");
    let cancel = request("CANCEL", Udp, "");
    b.receive(cancel.as_bytes());
    b.receive(cancel.as_bytes());
    b.respond(&invite, id, 487).expect("alive");
    b.receive(cancel.as_bytes());
    b.receive(ack().as_bytes());
    b.run_dry();
    b.receive(cancel.as_bytes());
    assert_eq!(
        b.ladder(),
        [
            "0 ! request INVITE",
            "0 -> 180",
            "0 -> 200",
            "0 ! cancelled",
            "0 -> 200",
            "0 -> 487",
            "0 -> 200",
            "5000 -> 481",
        ]
    );
    let ok = parse(&b.sent[1].1);
    assert_eq!(ok.to_tag(), Some("ours"), "the tag of the 180");
    assert_eq!(ok.cseq().expect("CSeq").method, "CANCEL");
    let told = b.events.iter().any(|e| matches!(e, Event::Cancelled { owner: Some(Owner(4)), .. }));
    assert!(told);
}

#[test]
fn rfc3261_9_2_cancel_after_a_final_response_changes_nothing() {
    let mut b = Bench::new(Udp);
    b.receive(request("INVITE", Udp, "").as_bytes());
    let (id, invite) = b.incoming();
    b.respond(&invite, id, 200).expect("alive");
    b.receive(request("CANCEL", Udp, "").as_bytes());
    assert_eq!(b.ladder(), ["0 ! request INVITE", "0 -> 200", "0 -> 200"]);
}

#[test]
fn rfc6026_8_8_transport_error_leaves_the_state() {
    let mut b = Bench::new(Udp);
    b.receive(request("INVITE", Udp, "").as_bytes());
    let (id, invite) = b.incoming();
    b.respond(&invite, id, 486).expect("alive");
    b.fail_send(0, SendError::Unreachable);
    b.run_to(500);
    b.receive(ack().as_bytes());
    b.run_dry();
    assert_eq!(
        b.ladder(),
        ["0 ! request INVITE", "0 -> 486", "0 ! server error Unreachable", "500 -> 486"]
    );
}

#[test]
fn rfc3261_18_2_2_response_by_a_new_connection() {
    let mut b = Bench::new(Tcp);
    b.receive(request("INVITE", Tcp, "").as_bytes());
    let (id, invite) = b.incoming();
    b.respond(&invite, id, 183).expect("alive");
    assert_eq!(b.sent[0].0, Destination::Flow(flow(Tcp)));
    b.fail_send(0, SendError::Closed);
    assert_eq!(b.sent[1].1, b.sent[0].1);
    assert!(matches!(b.sent[1].0, Destination::Target { target, .. }
        if target.transport == Tcp && target.addr == flow(Tcp).remote));
    b.respond(&invite, id, 200).expect("alive");
    assert_eq!(b.sent[2].0, b.sent[1].0);
    b.fail_send(2, SendError::Closed);
    assert_eq!(
        b.ladder(),
        ["0 ! request INVITE", "0 -> 183", "0 -> 183", "0 -> 200", "0 ! server error Closed",]
    );
}

#[test]
fn a_full_table_answers_503_and_keeps_nothing() {
    let mut b = Bench::with(Udp, Config { max_servers: 1, ..Config::default() });
    b.receive(request("INVITE", Udp, "").as_bytes());
    b.receive(request("OPTIONS", Udp, "").replace("Kpeer", "Kother").as_bytes());
    // What is there goes on: its CANCEL, its repeats.
    b.receive(request("CANCEL", Udp, "").as_bytes());
    assert_eq!(b.ladder(), ["0 ! request INVITE", "0 -> 503", "0 -> 200", "0 ! cancelled"]);
    let refused = parse(&b.sent[0].1);
    assert_eq!(refused.header(HeaderName::RetryAfter), Some("5"));
    assert!(refused.to_tag().is_some());
    assert_eq!((b.layer.stats().refused_full, b.layer.stats().servers), (1, 1));
}

#[test]
fn the_last_tenth_is_for_requests_within_dialogs() {
    let mut b = Bench::with(Udp, Config { max_servers: 10, ..Config::default() });
    let options = |n: u32, tag: &str| {
        request("OPTIONS", Udp, tag)
            .replace("Kpeer", &format!("K{n}"))
            .replace("Call-ID: x", &format!("Call-ID: {n}"))
    };
    for n in 0..10 {
        b.receive(options(n, "").as_bytes());
    }
    assert_eq!((b.layer.stats().servers, b.layer.stats().refused_full), (9, 1));
    b.receive(options(10, ";tag=ours").as_bytes());
    b.receive(options(11, ";tag=ours").as_bytes());
    assert_eq!((b.layer.stats().servers, b.layer.stats().refused_full), (10, 2));
}

#[test]
fn rfc3261_18_2_2_a_final_response_that_was_not_written_goes_by_a_new_connection() {
    let mut b = Bench::new(Tcp);
    b.receive(request("BYE", Tcp, ";tag=ours").as_bytes());
    let (id, bye) = b.incoming();
    b.respond(&bye, id, 200).expect("alive");
    b.run_to(900);
    b.fail_send(0, SendError::Closed);
    assert_eq!(b.sent[1].1, b.sent[0].1);
    assert!(matches!(b.sent[1].0, Destination::Target { target, .. } if target.transport == Tcp));
    b.run_dry();
    assert_eq!(b.ladder(), ["0 ! request BYE", "0 -> 200", "900 -> 200"]);
}
