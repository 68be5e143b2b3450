//! Client transactions through the layer: every timer, ACK, CANCEL, matching, transport errors.

use super::harness::{Bench, by_tcp, flow, parse, peer};
use crate::core::{Destination, SendError};
use crate::net::Transport::{Tcp, Udp};
use crate::sip::{HeaderName, Method};
use crate::transaction::{Config, Event, Large, TimerConfig};

#[test]
fn rfc3261_17_1_1_2_invite_unanswered_over_udp() {
    let mut b = Bench::new(Udp);
    b.request(Method::Invite, 0, Large::Udp);
    b.run_dry();
    assert_eq!(
        b.ladder(),
        [
            "0 -> INVITE",
            "500 -> INVITE",
            "1500 -> INVITE",
            "3500 -> INVITE",
            "7500 -> INVITE",
            "15500 -> INVITE",
            "31500 -> INVITE",
            "32000 ! client timeout",
        ]
    );
    assert_eq!(b.layer.stats().sent_retransmissions, 6);
}

#[test]
fn rfc3261_17_1_1_2_invite_unanswered_over_tcp_is_sent_once() {
    let mut b = Bench::new(Tcp);
    b.request(Method::Invite, 0, Large::Udp);
    b.run_dry();
    assert_eq!(b.ladder(), ["0 -> INVITE", "32000 ! client timeout"]);
}

#[test]
fn timers_are_configurable() {
    let ms = std::time::Duration::from_millis;
    let timers = TimerConfig::from_base(ms(100), ms(200), ms(300));
    let mut b = Bench::with(Udp, Config { timers, ..Config::default() });
    b.request(Method::Options, 0, Large::Udp);
    b.run_to(900);
    b.answer(0, 200);
    b.run_dry();
    assert_eq!(
        b.ladder(),
        [
            "0 -> OPTIONS",
            "100 -> OPTIONS",
            "300 -> OPTIONS",
            "500 -> OPTIONS",
            "700 -> OPTIONS",
            "900 -> OPTIONS",
            "900 ! response 200",
        ]
    );
}

#[test]
fn rfc3261_17_1_1_2_provisional_stops_retransmission_and_timer_b() {
    let mut b = Bench::new(Udp);
    b.request(Method::Invite, 0, Large::Udp);
    b.run_to(600);
    b.answer(0, 180);
    b.run_to(180_000);
    b.answer(0, 183);
    b.answer(0, 200);
    b.run_to(190_000);
    b.answer(0, 200);
    b.run_to(211_999);
    assert_eq!(b.layer.stats().clients, 1, "timer M");
    b.run_to(212_000);
    b.run_dry();
    assert_eq!(
        b.ladder(),
        [
            "0 -> INVITE",
            "500 -> INVITE",
            "600 ! response 180",
            "180000 ! response 183",
            "180000 ! response 200",
            "190000 ! response 200",
        ]
    );
}

#[test]
fn rfc6026_8_4_a_second_2xx_and_a_late_one() {
    let mut b = Bench::new(Tcp);
    b.request(Method::Invite, 0, Large::Udp);
    b.answer(0, 200);
    b.answer(0, 200);
    b.answer(0, 486);
    b.run_dry();
    b.answer(0, 200);
    assert_eq!(
        b.ladder(),
        ["0 -> INVITE", "0 ! response 200", "0 ! response 200", "32000 ! stray ok"]
    );
    assert_eq!(b.layer.stats().stray_responses, 1);
}

#[test]
fn rfc3261_17_1_1_3_ack_of_a_failure() {
    let mut b = Bench::new(Udp);
    b.request(Method::Invite, 0, Large::Udp);
    b.answer(0, 486);
    b.run_to(1_000);
    b.answer(0, 486);
    b.run_to(31_999);
    b.answer(0, 486);
    b.run_dry();
    assert_eq!(
        b.ladder(),
        ["0 -> INVITE", "0 -> ACK", "0 ! response 486", "1000 -> ACK", "31999 -> ACK"]
    );
    let (invite, ack) = (parse(&b.sent[0].1), parse(&b.sent[1].1));
    assert_eq!(ack.request_uri_str(), invite.request_uri_str());
    for name in [HeaderName::Via, HeaderName::From, HeaderName::CallId, HeaderName::Route] {
        assert_eq!(ack.header(name), invite.header(name));
    }
    assert_eq!(ack.to_tag(), Some("peer"));
    let cseq = ack.cseq().expect("CSeq");
    assert_eq!((cseq.number, cseq.method), (5, "ACK"));
    assert_eq!(b.sent[1].0, b.sent[0].0, "same address, port and transport");
    assert_eq!(b.sent[2].1, b.sent[1].1, "the same ACK");
}

#[test]
fn rfc3261_17_1_1_2_failure_over_tcp_ends_at_once() {
    let mut b = Bench::new(Tcp);
    b.request(Method::Invite, 0, Large::Udp);
    b.answer(0, 100);
    b.answer(0, 603);
    assert!(b.layer.is_idle());
    assert_eq!(b.ladder(), ["0 -> INVITE", "0 ! response 100", "0 -> ACK", "0 ! response 603"]);
}

#[test]
fn rfc3261_17_1_2_2_non_invite_unanswered_over_udp() {
    let mut b = Bench::new(Udp);
    b.request(Method::Bye, 0, Large::Udp);
    b.run_dry();
    assert_eq!(
        b.ladder(),
        [
            "0 -> BYE",
            "500 -> BYE",
            "1500 -> BYE",
            "3500 -> BYE",
            "7500 -> BYE",
            "11500 -> BYE",
            "15500 -> BYE",
            "19500 -> BYE",
            "23500 -> BYE",
            "27500 -> BYE",
            "31500 -> BYE",
            "32000 ! client timeout",
        ]
    );
}

#[test]
fn rfc3261_17_1_2_2_proceeding_retransmits_every_t2() {
    let mut b = Bench::new(Udp);
    b.request(Method::Info, 0, Large::Udp);
    b.run_to(600);
    b.answer(0, 100);
    b.run_to(10_000);
    b.answer(0, 200);
    b.answer(0, 200);
    b.run_to(14_999);
    assert_eq!(b.layer.stats().clients, 1, "timer K");
    b.run_to(15_000);
    b.run_dry();
    assert_eq!(
        b.ladder(),
        [
            "0 -> INFO",
            "500 -> INFO",
            "600 ! response 100",
            "1500 -> INFO",
            "5500 -> INFO",
            "9500 -> INFO",
            "10000 ! response 200",
        ]
    );
}

#[test]
fn rfc3261_17_1_4_transport_error_ends_the_attempt() {
    for (method, transport) in [(Method::Invite, Udp), (Method::Options, Tcp)] {
        let mut b = Bench::new(transport);
        b.request(method.clone(), 0, Large::Udp);
        b.fail_send(0, SendError::Unreachable);
        assert!(b.layer.is_idle());
        assert_eq!(
            b.ladder(),
            [format!("0 -> {method}"), "0 ! client error Unreachable".to_owned()]
        );
        // The token is dead: a second failure says nothing.
        b.fail_send(0, SendError::Unreachable);
        assert_eq!(b.ladder(), [""; 0]);
    }
}

#[test]
fn rfc3261_18_1_1_large_request_by_tcp_and_back_to_udp() {
    let mut b = Bench::new(Udp);
    b.request(Method::Invite, 1_300, by_tcp());
    let transport = |dest: &Destination| match dest {
        Destination::Target { target, .. } => target.transport,
        Destination::Flow(flow) => flow.transport,
    };
    assert_eq!(transport(&b.sent[0].0), Tcp);
    let message = parse(&b.sent[0].1);
    let via = message.via().expect("Via");
    assert_eq!((via.transport, via.host, via.port), ("TCP", "192.0.2.1", Some(5070)));
    b.run_to(100);
    b.fail_send(0, SendError::Unreachable);
    assert_eq!(transport(&b.sent[1].0), Udp);
    let message = parse(&b.sent[1].1);
    let via = message.via().expect("Via");
    assert_eq!((via.transport, via.host, via.port), ("UDP", "192.0.2.1", None));
    b.run_to(600);
    b.answer(1, 404);
    b.run_dry();
    assert_eq!(
        b.ladder(),
        ["0 -> INVITE", "100 -> INVITE", "600 -> INVITE", "600 -> ACK", "600 ! response 404"]
    );
    // The address took no connection: the next one does not wait for it, a later one tries again.
    b.request(Method::Message, 1_300, by_tcp());
    assert_eq!(transport(&b.sent.last().expect("sent").0), Udp);
    b.answer(b.sent.len() - 1, 200);
    b.run_to(700_000);
    b.request(Method::Message, 1_300, by_tcp());
    assert_eq!(transport(&b.sent.last().expect("sent").0), Tcp);
    // A small one stays where it is, and so does a large one whose policy says so.
    for (body, large) in [(10, by_tcp()), (1_300, Large::Udp)] {
        let mut b = Bench::new(Udp);
        b.request(Method::Invite, body, large);
        assert_eq!(transport(&b.sent[0].0), Udp);
    }
}

#[test]
fn rfc3261_18_1_1_large_non_invite_falls_back_too() {
    let mut b = Bench::new(Udp);
    b.request(Method::Message, 1_300, by_tcp());
    b.fail_send(0, SendError::Timeout);
    b.answer(1, 200);
    b.run_dry();
    assert_eq!(b.ladder(), ["0 -> MESSAGE", "0 -> MESSAGE", "0 ! response 200"]);
}

#[test]
fn rfc3261_9_1_cancel_waits_for_a_provisional() {
    let mut b = Bench::new(Udp);
    let id = b.request(Method::Invite, 0, Large::Udp);
    b.cancel(id, Some("SIP;cause=200;text=\"Call completed elsewhere\""));
    b.cancel(id, None);
    b.run_to(700);
    b.answer(0, 180);
    b.answer(2, 200);
    b.answer(0, 487);
    b.run_dry();
    assert_eq!(
        b.ladder(),
        [
            "0 -> INVITE",
            "500 -> INVITE",
            "700 -> CANCEL",
            "700 ! response 180",
            "700 -> ACK",
            "700 ! response 487",
        ]
    );
    let (invite, cancel) = (parse(&b.sent[0].1), parse(&b.sent[2].1));
    assert_eq!(cancel.header(HeaderName::Via), invite.header(HeaderName::Via));
    assert_eq!(cancel.header(HeaderName::To), invite.header(HeaderName::To));
    assert_eq!(cancel.request_uri_str(), invite.request_uri_str());
    let reason = Some("SIP;cause=200;text=\"Call completed elsewhere\"");
    assert_eq!(cancel.header(HeaderName::Reason), reason);
    assert_eq!(cancel.cseq().expect("CSeq").number, 5);
}

#[test]
fn rfc3261_9_1_no_cancel_after_a_final_response() {
    let mut b = Bench::new(Udp);
    let id = b.request(Method::Invite, 0, Large::Udp);
    b.cancel(id, None);
    b.answer(0, 200);
    b.cancel(id, None);
    b.run_dry();
    assert_eq!(b.ladder(), ["0 -> INVITE", "0 ! response 200"]);
}

#[test]
fn rfc3261_9_1_a_cancelled_invite_is_given_up_after_64_t1() {
    let mut b = Bench::new(Tcp);
    let id = b.request(Method::Invite, 0, Large::Udp);
    b.answer(0, 180);
    b.run_to(1_000);
    b.cancel(id, None);
    b.run_dry();
    assert_eq!(
        b.ladder(),
        ["0 -> INVITE", "0 ! response 180", "1000 -> CANCEL", "33000 ! client timeout"]
    );
}

#[test]
fn rfc3261_17_1_3_what_does_not_match_is_stray() {
    let mut b = Bench::new(Udp);
    b.request(Method::Options, 0, Large::Udp);
    let request = String::from_utf8_lossy(&b.sent[0].1).into_owned();
    let lines = request.split_once("\r\n").expect("request line").1;
    let ok = format!("SIP/2.0 200 OK\r\n{lines}");
    let via = "Via: SIP/2.0/UDP 192.0.2.1;branch=";
    for stray in [
        ok.replace("CSeq: 5 OPTIONS", "CSeq: 5 INFO"),
        ok.replace("branch=z9hG4bK", "branch=z9hG4bK0"),
        ok.replace("CSeq: 5 OPTIONS", "CSeq: 5 CANCEL"),
        ok.replace(via, &format!("{via}z9hG4bK1\r\n{via}")),
        ok.replace("Max-Forwards", &format!("{via}z9hG4bK1\r\nMax-Forwards")),
    ] {
        b.receive(stray.as_bytes());
    }
    assert_eq!(b.layer.stats().stray_responses, 5);
    b.receive(ok.as_bytes());
    assert_eq!(b.ladder(), ["0 -> OPTIONS", "0 ! response 200"]);
}

#[test]
fn a_full_table_refuses() {
    let config = Config { max_clients: 1, ..Config::default() };
    let mut b = Bench::with(Udp, config);
    let id = b.request(Method::Invite, 0, Large::Udp);
    let branch = b.layer.ids().branch(crate::ids::ShardHint(1));
    let (dest, data) = b.sent[0].clone();
    let request = crate::transaction::ClientRequest {
        owner: crate::transaction::Owner(1),
        branch,
        method: Method::Options,
        dest,
        data,
        timeout: None,
        large: Large::Udp,
    };
    let now = b.now();
    assert!(b.layer.send_request(now, request).is_err());
    assert_eq!(b.layer.stats().refused_clients, 1);
    // CANCEL has to go all the same.
    b.answer(0, 180);
    b.cancel(id, None);
    assert_eq!(b.ladder(), ["0 -> INVITE", "0 ! response 180", "0 -> CANCEL"]);
    b.answer(0, 487);
    b.run_dry();
}

#[test]
fn a_shorter_timeout_fails_over_sooner() {
    let mut b = Bench::new(Udp);
    b.request(Method::Options, 0, Large::Udp);
    let (dest, data) = b.sent[0].clone();
    let branch = b.layer.ids().branch(crate::ids::ShardHint(1));
    let request = crate::transaction::ClientRequest {
        owner: crate::transaction::Owner(42),
        branch,
        method: Method::Invite,
        dest,
        data,
        timeout: Some(std::time::Duration::from_secs(2)),
        large: Large::Udp,
    };
    b.answer(0, 200);
    let now = b.now();
    let id = b.layer.send_request(now, request).expect("room");
    b.run_to(2_000);
    let last = b.events.last().expect("event");
    assert!(matches!(last, Event::ClientTimeout { id: dead, .. } if *dead == id));
    assert!(!b.layer.is_client_alive(id));
}

#[test]
fn a_flood_of_late_2xx_is_told_a_few_times_per_second() {
    let mut b = Bench::with(Udp, Config { stray_ok_per_sec: 3, ..Config::default() });
    b.request(Method::Invite, 0, Large::Udp);
    b.run_dry();
    b.ladder();
    for _ in 0..10 {
        b.answer(0, 200);
    }
    b.run_to(33_000);
    b.answer(0, 200);
    let told = ["32000 ! stray ok", "32000 ! stray ok", "32000 ! stray ok", "33000 ! stray ok"];
    assert_eq!(b.ladder(), told);
    assert_eq!(b.layer.stats().stray_responses, 11);
}

#[test]
fn zero_timers_do_not_spin() {
    let zero = std::time::Duration::ZERO;
    let mut timers = TimerConfig::from_base(zero, zero, zero);
    timers.f = std::time::Duration::from_millis(5);
    let mut b = Bench::with(Udp, Config { timers, ..Config::default() });
    b.request(Method::Options, 0, Large::Udp);
    b.run_dry();
    assert_eq!(b.ladder().last().map(String::as_str), Some("5 ! client timeout"));
    assert!(b.sent.len() <= 6);
}

#[test]
fn a_custom_timeout_survives_the_way_back_to_udp() {
    let mut b = Bench::new(Udp);
    b.request_within(Method::Message, 1_300, by_tcp(), Some(std::time::Duration::from_secs(2)));
    b.run_to(300);
    b.fail_send(0, SendError::Unreachable);
    b.run_dry();
    assert_eq!(b.ladder().last().map(String::as_str), Some("2300 ! client timeout"));
}

#[test]
fn rfc3261_18_4_a_closed_connection_fails_what_waits_on_it_at_once() {
    let mut b = Bench::new(Tcp);
    b.request(Method::Invite, 0, Large::Udp);
    b.request(Method::Options, 0, Large::Udp);
    b.request(Method::Invite, 0, Large::Udp);
    b.answer(2, 180);
    b.ladder();
    let other = crate::net::Flow { remote: "192.0.2.99:5060".parse().expect("addr"), ..flow(Tcp) };
    b.close(&other);
    let other = crate::net::Flow { interface: crate::net::InterfaceId(9), ..flow(Tcp) };
    b.close(&other);
    assert_eq!(b.ladder(), [""; 0]);
    b.close(&flow(Tcp));
    assert_eq!(b.ladder(), ["0 ! client error Closed", "0 ! client error Closed"]);
    // A ringing call goes on: the response comes by a new connection.
    b.answer(2, 200);
    assert_eq!(b.ladder(), ["0 ! response 200"]);
    b.run_dry();
}

#[test]
fn rfc7118_5_behind_a_closed_websocket_nobody_answers_any_more() {
    use crate::net::Transport::Wss;
    let mut b = Bench::new(Wss);
    assert_eq!(peer(), flow(Wss).remote);
    b.request(Method::Invite, 0, Large::Udp);
    b.answer(0, 180);
    b.close(&flow(Wss));
    assert_eq!(b.ladder(), ["0 -> INVITE", "0 ! response 180", "0 ! client error Closed"]);
    b.run_dry();
}

#[test]
fn rfc3261_18_1_1_a_connection_that_closes_unanswered_leads_back_to_udp() {
    let mut b = Bench::new(Udp);
    b.request(Method::Invite, 1_300, by_tcp());
    b.close(&flow(Tcp));
    b.answer(1, 200);
    b.run_dry();
    assert_eq!(b.ladder(), ["0 -> INVITE", "0 -> INVITE", "0 ! response 200"]);
}
