//! The registrar by section of its RFCs, in virtual time.
#![expect(clippy::unwrap_used, reason = "a test that panics fails")]

mod gruu;
mod learn;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::digest::{Account, Algorithm, Answerer, NonceKey};
use crate::net::{InterfaceId, Transport};
use crate::sip::{self, HeaderName, Limits, Message};

struct Bench {
    registrar: Registrar,
    t0: Instant,
    now: Instant,
    flow: Flow,
    cseq: u32,
    seen: Vec<(Change, usize)>,
}

fn flow(transport: Transport, remote: &str) -> Flow {
    Flow {
        interface: InterfaceId(1),
        transport,
        local: "192.0.2.1:5060".parse().unwrap(),
        remote: remote.parse().unwrap(),
        conn: transport.is_reliable().then_some(ConnId(7)),
    }
}

fn policy() -> RegistrarPolicy {
    RegistrarPolicy { domains: vec!["example.com".into()], ..RegistrarPolicy::default() }
}

fn users() -> Users {
    let mut users = Users::default();
    for name in ["alice", "bob"] {
        let user = User {
            md5: Some(Algorithm::Md5.ha1(name, "example.com", "secret").into()),
            sha256: Some(Algorithm::Sha256.ha1(name, "example.com", "secret").into()),
            aors: vec![format!("{name}@example.com").into()],
            ..User::default()
        };
        assert!(users.insert(name, user));
    }
    assert!(users.alias("+4930@example.com", "alice@example.com"));
    users
}

const UNIX_S: u64 = 1_800_000_000;

impl Bench {
    fn new(policy: RegistrarPolicy) -> Self {
        let t0 = Instant::now();
        let replays = Arc::new(Replays::new(1024));
        let registrar =
            Registrar::new(Arc::new(policy), Arc::new(users()), replays, t0, UNIX_S * 1_000);
        let flow = flow(Transport::Udp, "198.51.100.7:5060");
        Bench { registrar, t0, now: t0, flow, cseq: 0, seen: Vec::new() }
    }

    fn message(&mut self, extra: &str) -> Message {
        self.cseq += 1;
        request(&format!("CSeq: {} REGISTER\r\nCall-ID: c1\r\n{extra}", self.cseq))
    }

    /// A REGISTER of alice with these header lines; status and answer.
    fn register(&mut self, extra: &str) -> Answer {
        let message = self.message(extra);
        self.send(&message)
    }

    fn send(&mut self, message: &Message) -> Answer {
        let at = (self.now - self.t0).as_secs() + UNIX_S;
        self.registrar.register(self.now, at, 5, &self.flow, message)
    }

    fn contacts(&self, user: &str) -> Vec<String> {
        let found = self.registrar.locate_user(self.now, user, "example.com", &Method::Invite);
        found.iter().map(|r| r.uri.to_string()).collect()
    }

    /// Moves the clock, stopping at every deadline.
    fn run(&mut self, seconds: u64) -> Vec<Due> {
        let end = self.now + Duration::from_secs(seconds);
        let mut due = Vec::new();
        while let Some(at) = self.registrar.bindings().deadline().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.registrar.bindings().handle_tick(self.now);
            due.extend(std::iter::from_fn(|| self.registrar.bindings().poll()));
        }
        self.now = end;
        self.sort_out(due)
    }

    fn due(&mut self) -> Vec<Due> {
        let due = std::iter::from_fn(|| self.registrar.bindings().poll()).collect();
        self.sort_out(due)
    }

    /// Keeps what watchers would see apart.
    fn sort_out(&mut self, due: Vec<Due>) -> Vec<Due> {
        let (seen, due): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|d| matches!(d, Due::Changed(_)));
        self.seen.extend(seen.into_iter().filter_map(|d| match d {
            Due::Changed(c) => Some((c.how, c.contacts)),
            Due::Store(_) | Due::Ping(_) | Due::Withdraw { .. } => None,
        }));
        due
    }
}

fn request(rest: &str) -> Message {
    with_uri("sip:example.com", "<sip:alice@example.com>", rest)
}

fn with_uri(uri: &str, to: &str, rest: &str) -> Message {
    let via = if rest.contains("Via:") {
        String::new()
    } else {
        "Via: SIP/2.0/UDP 198.51.100.7:5060;branch=z9hG4bK1;rport\r\n".into()
    };
    let text = format!(
        "REGISTER {uri} SIP/2.0\r\n{via}Max-Forwards: 70\r\n\
         From: <sip:alice@example.com>;tag=1\r\nTo: {to}\r\n{rest}Content-Length: 0\r\n\r\n"
    );
    sip::parse(Bytes::from(text), &Limits::default()).unwrap()
}

fn header(answer: &Answer, name: HeaderName) -> Vec<&str> {
    answer.headers.iter().filter(|h| h.0 == name).map(|h| h.1.as_str()).collect()
}

const CONTACT: &str = "Contact: <sip:alice@198.51.100.7:5060>\r\n";

#[test]
fn rfc3261_10_3_bad_requests_each_with_its_status() {
    let many: String = (0..40).map(|n| format!("Contact: <sip:a{n}@h>\r\n")).collect();
    let seq = "CSeq: 1 REGISTER\r\nCall-ID: c\r\n";
    for (uri, to, rest, status) in [
        ("sip:example.com", "<sip:alice@example.com>", CONTACT, 200),
        ("sip:elsewhere.org", "<sip:alice@example.com>", CONTACT, 404),
        ("sip:example.com", "<sip:alice@elsewhere.org>", CONTACT, 404),
        ("sip:example.com", "<sip:example.com>", CONTACT, 404),
        ("sip:example.com", "<sip:+4930@example.com>", CONTACT, 404),
        ("tel:+4930", "<sip:alice@example.com>", CONTACT, 416),
        ("sip:example.com", "<tel:+4930>", CONTACT, 416),
        ("sip:example.com", "<sip:alice@example.com>", "Require: foo\r\n", 420),
        ("sip:example.com", "<sip:alice@example.com>", "Contact: <sip:a@h\r\n", 400),
        ("sip:example.com", "<sip:alice@example.com>", "Contact: <mailto:a@h>\r\n", 400),
        ("sip:example.com", "<sip:alice@example.com>", "Contact: <sip:a@h>;q=2\r\n", 400),
        ("sip:example.com", "<sip:alice@example.com>", "Contact: *\r\n", 400),
        ("sip:example.com", "<sip:alice@example.com>", "Contact: *\r\nExpires: 5\r\n", 400),
        (
            "sip:example.com",
            "<sip:alice@example.com>",
            "Contact: *, <sip:a@h>\r\nExpires: 0\r\n",
            400,
        ),
        ("sip:example.com", "<sip:alice@example.com>", "Contact: <sip:a@h>;expires=59\r\n", 423),
        ("sip:example.com", "<sip:alice@example.com>", "Contact: <sip:a@h>\r\nExpires: 1\r\n", 423),
        ("sip:example.com", "<sip:alice@example.com>", &many, 400),
    ] {
        let mut b = Bench::new(policy());
        let answer = b.send(&with_uri(uri, to, &format!("{seq}{rest}")));
        assert_eq!(answer.status, status, "{uri} {to} {rest}");
        assert_eq!(b.registrar.bindings().is_empty(), status != 200, "{rest}");
    }
    let mut b = Bench::new(policy());
    assert_eq!(
        header(&b.register("Require: foo, path, bar\r\n"), HeaderName::Unsupported),
        ["foo, bar"]
    );
    let short = b.register("Contact: <sip:a@h>;expires=5\r\n");
    assert_eq!(header(&short, HeaderName::MinExpires), ["60"]);
}

#[test]
fn rfc3261_10_3_expires_of_contact_then_header_then_default_cut_to_the_maximum() {
    for (extra, granted) in [
        ("Contact: <sip:a@h>;expires=90\r\nExpires: 300\r\n", "90"),
        ("Contact: <sip:a@h>\r\nExpires: 300\r\n", "300"),
        ("Contact: <sip:a@h>\r\n", "3600"),
        ("Contact: <sip:a@h>;expires=soon\r\n", "3600"),
        ("Contact: <sip:a@h>;expires=99999999999\r\n", "7200"),
    ] {
        let mut b = Bench::new(policy());
        let answer = b.register(extra);
        assert_eq!(header(&answer, HeaderName::Contact), [format!("<sip:a@h>;expires={granted}")]);
    }
}

#[test]
fn rfc3261_10_2_a_life_of_bindings() {
    let mut b = Bench::new(policy());
    assert_eq!(b.contacts("alice"), [""; 0]);
    b.register("Contact: <sip:a@h1>;q=0.5\r\nContact: <sip:a@h2>;q=1.0\r\n");
    assert_eq!(b.contacts("alice"), ["sip:a@h2", "sip:a@h1"]);
    assert_eq!(b.contacts("+4930"), ["sip:a@h2", "sip:a@h1"], "an alias");
    // A query lists and changes nothing.
    b.run(100);
    let list = b.register("");
    let mut contacts = header(&list, HeaderName::Contact);
    contacts.sort();
    assert_eq!(contacts, ["<sip:a@h1>;expires=3500;q=0.500", "<sip:a@h2>;expires=3500"]);
    // An equivalent URI refreshes (§19.1.4), expires=0 removes one.
    b.register("Contact: <sip:a@H2>\r\nContact: <sip:a@h1>;expires=0\r\n");
    assert_eq!(b.contacts("alice"), ["sip:a@H2"]);
    b.register("Contact: *\r\nExpires: 0\r\n");
    assert_eq!(b.contacts("alice"), [""; 0]);
    assert!(b.registrar.bindings().is_empty());
}

#[test]
fn rfc3261_10_3_an_old_request_of_the_same_call_id_changes_nothing() {
    let mut b = Bench::new(policy());
    let old = b.message("Contact: <sip:a@h>;expires=0\r\n");
    let star = b.message("Contact: *\r\nExpires: 0\r\n");
    b.register("Contact: <sip:a@h>\r\n");
    assert_eq!(b.send(&old).status, 500);
    assert_eq!(b.send(&star).status, 500);
    assert_eq!(b.contacts("alice"), ["sip:a@h"]);
    // Another Call-ID is a device that restarted: its number starts anew.
    let fresh = request("CSeq: 1 REGISTER\r\nCall-ID: c2\r\nContact: <sip:a@h>;expires=0\r\n");
    assert_eq!(b.send(&fresh).status, 200);
    assert_eq!(b.contacts("alice"), [""; 0]);
}

#[test]
fn rfc3261_10_3_all_or_nothing() {
    let mut b = Bench::new(policy());
    b.register("Contact: <sip:a@h1>\r\n");
    assert_eq!(b.register("Contact: <sip:a@h2>, <sip:a@h1>;expires=3\r\n").status, 423);
    assert_eq!(b.contacts("alice"), ["sip:a@h1"]);
}

#[test]
fn limits_per_user_by_policy_and_in_all() {
    let limited = |overflow| RegistrarPolicy { contacts_max: 2, overflow, ..policy() };
    let mut b = Bench::new(limited(Overflow::Reject));
    b.register("Contact: <sip:a@h1>, <sip:a@h2>\r\n");
    assert_eq!(b.register("Contact: <sip:a@h3>\r\n").status, 403);
    assert_eq!(b.register("Contact: <sip:a@h2>\r\n").status, 200, "a refresh has its place");
    let mut b = Bench::new(limited(Overflow::ReplaceOldest));
    for n in 1..=3 {
        b.register(&format!("Contact: <sip:a@h{n}>\r\n"));
        b.run(10);
    }
    assert_eq!(b.contacts("alice"), ["sip:a@h3", "sip:a@h2"]);
    assert_eq!(b.register("Contact: <sip:a@1>, <sip:a@2>, <sip:a@3>\r\n").status, 403);
    let mut b = Bench::new(RegistrarPolicy { bindings_max: 1, ..policy() });
    b.register("Contact: <sip:a@h1>\r\n");
    let full = b.register("Contact: <sip:a@h2>\r\n");
    assert_eq!((full.status, header(&full, HeaderName::RetryAfter)), (503, vec!["60"]));
    assert_eq!(b.register("Contact: <sip:a@h1>\r\n").status, 200);
}

#[test]
fn rfc3261_10_3_bindings_expire() {
    let mut b = Bench::new(RegistrarPolicy { store_ahead: Duration::ZERO, ..policy() });
    b.register("Contact: <sip:a@h1>;expires=60, <sip:a@h2>;expires=120\r\n");
    b.run(59);
    assert_eq!(b.contacts("alice").len(), 2);
    b.run(2);
    assert_eq!(b.contacts("alice"), ["sip:a@h2"]);
    b.run(60);
    assert!(b.registrar.bindings().is_empty());
    assert_eq!(b.registrar.bindings().stats().expired, 2);
}

#[test]
fn rfc3327_path_is_kept_and_given_as_route() {
    let mut b = Bench::new(policy());
    let answer = b.register(
        "Supported: path\r\nPath: <sip:p2.example.com;lr>\r\nPath: <sip:p1.example.com;lr>\r\n\
         Contact: <sip:a@10.0.0.5>\r\n",
    );
    assert_eq!(
        header(&answer, HeaderName::Path),
        ["<sip:p2.example.com;lr>", "<sip:p1.example.com;lr>"]
    );
    let found = b.registrar.locate_user(b.now, "alice", "example.com", &Method::Invite);
    assert_eq!(
        found[0].path,
        [Box::from("<sip:p2.example.com;lr>"), "<sip:p1.example.com;lr>".into()]
    );
    assert_eq!(found[0].reach, Reach::Uri(InterfaceId(1)), "the first hop keeps the way open");
}

#[test]
fn rfc3608_service_route_in_every_200() {
    let route = "<sip:edge.example.com;lr>";
    let mut b = Bench::new(RegistrarPolicy { service_route: vec![route.into()], ..policy() });
    assert_eq!(header(&b.register(CONTACT), HeaderName::ServiceRoute), [route]);
}

const OUTBOUND: &str = "Supported: outbound, gruu\r\n";

fn device(contact: &str, instance: u32, reg_id: &str) -> String {
    format!(
        "{OUTBOUND}Contact: <sip:a@{contact}>;reg-id={reg_id};+sip.instance=\"<urn:uuid:{instance}>\"\r\n"
    )
}

#[test]
fn rfc5626_6_a_flow_replaces_itself_and_a_second_one_is_a_spare() {
    let mut b = Bench::new(policy());
    b.register(&device("h1", 1, "1"));
    b.run(1);
    let answer = b.register(&device("h1-new", 1, "1"));
    assert_eq!(header(&answer, HeaderName::Require), ["outbound"]);
    assert_eq!(b.contacts("alice"), ["sip:a@h1-new"]);
    b.run(1);
    b.register(&device("h2", 1, "2"));
    assert_eq!(b.registrar.bindings().stats().bindings, 2);
    assert_eq!(b.contacts("alice"), ["sip:a@h2"], "one branch per device");
    b.register(&device("h3", 2, "1"));
    assert_eq!(b.contacts("alice").len(), 2);
}

#[test]
fn rfc5626_6_bad_flows() {
    let two = format!("{}{}", device("h1", 1, "1"), device("h2", 1, "2").replace(OUTBOUND, ""));
    let behind = "Via: SIP/2.0/UDP p;branch=z9hG4bK2\r\nVia: SIP/2.0/UDP u;branch=z9hG4bK1\r\n";
    for (extra, status) in [
        (device("h", 1, "0"), 400),
        (device("h", 1, "x"), 400),
        (device("h", 1, "2147483648"), 400),
        (two, 400),
        (format!("{behind}{}", device("h", 1, "1")), 439),
        (format!("{behind}Path: <sip:p;lr>\r\n{}", device("h", 1, "1")), 439),
        (format!("{behind}Path: <sip:p;lr;ob>\r\n{}", device("h", 1, "1")), 200),
        // Without the option tag the parameter means nothing.
        (device("h", 1, "x").replace(OUTBOUND, ""), 200),
    ] {
        let mut b = Bench::new(policy());
        assert_eq!(b.register(&extra).status, status, "{extra}");
    }
}

#[test]
fn rfc3840_methods_choose_contacts() {
    let mut b = Bench::new(policy());
    b.register("Contact: <sip:a@h1>;methods=\"MESSAGE\", <sip:a@h2>;q=0.1\r\n");
    assert_eq!(b.contacts("alice"), ["sip:a@h2"]);
    let all = b.registrar.locate_user(b.now, "alice", "example.com", &Method::Message);
    assert_eq!(all.len(), 2);
}

#[test]
fn nat_is_seen_and_answered_by_the_flow() {
    let via = |sent_by: &str, rport: &str| format!("SIP/2.0/UDP {sent_by};branch=z9hG4bK1{rport}");
    for (sent_by, rport, contact, natted) in [
        ("198.51.100.7:5060", ";rport", "sip:a@198.51.100.7:5060", false),
        ("10.0.0.5:5060", ";rport", "sip:a@10.0.0.5:5060", true),
        ("10.0.0.5", "", "sip:a@phone.example.com", true),
        ("198.51.100.7", ";rport", "sip:a@10.0.0.5", true),
        ("198.51.100.7:5062", ";rport", "sip:a@198.51.100.7:5062", true),
        ("198.51.100.7:5062", "", "sip:a@198.51.100.7:5062", false),
        ("phone.example.com", ";rport", "sip:a@phone.example.com", false),
        ("x.invalid", "", "sip:a@x.invalid;transport=ws", true),
    ] {
        let (via, flow) = (via(sent_by, rport), flow(Transport::Udp, "198.51.100.7:5060"));
        let via = <sip::Via<'_> as sip::value::FromValue<'_>>::from_value(&via).unwrap();
        let uri = UriRef::parse(contact).unwrap();
        assert_eq!(is_natted(&flow, &via, &uri), natted, "{sent_by}{rport} {contact}");
    }
    let mut b = Bench::new(policy());
    b.register("Contact: <sip:a@10.0.0.5>\r\n");
    let found = b.registrar.locate_user(b.now, "alice", "example.com", &Method::Invite);
    assert_eq!(found[0].reach, Reach::Flow(b.flow));
}

#[test]
fn keepalives_go_to_natted_bindings_and_drop_the_dead() {
    let mut b = Bench::new(policy());
    b.register("Contact: <sip:a@10.0.0.5>\r\n");
    b.due();
    let mut pings = Vec::new();
    for due in b.run(90) {
        let Due::Ping(ping) = due else { panic!("{due:?}") };
        b.registrar.bindings().ping_answered(b.now, ping.id);
        pings.push(ping);
    }
    assert_eq!(pings.len(), 3);
    assert_eq!((pings[0].flow, &*pings[0].uri), (b.flow, "sip:a@10.0.0.5"));
    // Two misses and an answer, then three misses.
    let id = pings[0].id;
    for answered in [false, false, true, false, false] {
        match answered {
            true => b.registrar.bindings().ping_answered(b.now, id),
            false => b.registrar.bindings().ping_failed(b.now, id),
        }
        assert_eq!(b.contacts("alice"), ["sip:a@10.0.0.5"]);
    }
    b.registrar.bindings().ping_failed(b.now, id);
    assert_eq!(b.contacts("alice"), [""; 0]);
    assert_eq!(b.due(), [Due::Store(gone("sip:a@10.0.0.5", true))]);
    assert!(b.registrar.bindings().is_empty());
}

#[test]
fn keepalives_are_spread_over_their_interval() {
    let mut b = Bench::new(policy());
    for n in 0..3_000 {
        let to = format!("<sip:u{n}@example.com>");
        let rest = format!("CSeq: 1 REGISTER\r\nCall-ID: c{n}\r\nContact: <sip:u{n}@10.0.0.5>\r\n");
        assert_eq!(b.send(&with_uri("sip:example.com", &to, &rest)).status, 200);
    }
    b.due();
    let per_second: Vec<usize> = (0..60).map(|_| b.run(1).len()).collect();
    assert_eq!(per_second.iter().sum::<usize>(), 6_000 - per_second_tail(&per_second));
    assert!(per_second[2..58].iter().all(|n| (50..160).contains(n)), "{per_second:?}");
}

/// What of two rounds falls just behind the last second looked at.
fn per_second_tail(per_second: &[usize]) -> usize {
    6_000 - per_second.iter().sum::<usize>()
}

#[test]
fn replication_is_written_at_first_at_changes_and_before_it_runs_out() {
    let mut b = Bench::new(policy());
    let refresh = "Contact: <sip:a@198.51.100.7:5060>;expires=60\r\n";
    b.register(refresh);
    assert_eq!(b.due().len(), 1, "the first");
    let mut writes = 0;
    for _ in 0..40 {
        b.run(45);
        b.register(refresh);
        writes += b.due().len();
    }
    assert_eq!(writes, 3, "1,800 s of refreshes at 600 s ahead");
    b.register("Contact: <sip:a@198.51.100.7:5060>;expires=60;q=0.3\r\n");
    assert_eq!(b.due().len(), 1, "a change");
    b.register("Contact: <sip:a@198.51.100.7:5060>;expires=0\r\n");
    assert_eq!(b.due(), [Due::Store(gone("sip:a@198.51.100.7:5060", false))]);
    b.register("Contact: <sip:a@198.51.100.7:5060>;expires=60\r\n");
    assert_eq!(b.due().len(), 1, "back again");
    let AorRecord { bindings, gone, .. } = record(&b.run(70));
    assert_eq!((bindings.len(), gone.len()), (0, 1), "it ran out before its copy did");
}

/// The record of one lost contact.
fn gone(contact: &str, own_only: bool) -> AorRecord {
    let gone = vec![Gone { contact: contact_key(contact), own_only }];
    AorRecord { aor: "alice@example.com".into(), bindings: vec![], gone }
}

fn record(due: &[Due]) -> AorRecord {
    let records: Vec<&AorRecord> = due
        .iter()
        .filter_map(|due| match due {
            Due::Store(record) => Some(record),
            Due::Ping(_) | Due::Changed(_) | Due::Withdraw { .. } => None,
        })
        .collect();
    let [record] = &records[..] else { panic!("{due:?}") };
    AorRecord::clone(record)
}

/// What another node sees when the writes of `records` are applied.
fn seen(records: &[AorRecord]) -> AorState {
    let held = |record: &BindingRecord| Held { record: record.clone(), ours: false, keeper: false };
    AorState {
        aor: "alice@example.com".into(),
        bindings: records.iter().flat_map(|r| &r.bindings).map(held).collect(),
        deleted: vec![],
    }
}

/// What the writer itself sees then.
fn own(records: &[AorRecord]) -> AorState {
    let mut state = seen(records);
    state.bindings.iter_mut().for_each(|held| held.ours = true);
    state
}

#[test]
fn a_record_carries_a_binding_to_another_node() {
    let mut b = Bench::new(policy());
    b.register("Contact: <sip:a@10.0.0.5>;q=0.7\r\n");
    let written = record(&b.due());
    assert_eq!(written.bindings[0].good_until_ms, (UNIX_S + 3_600) * 1_000);
    let mut other = Bench::new(policy());
    other.registrar.bindings().adopt(other.now, &seen(std::slice::from_ref(&written))).unwrap();
    assert_eq!(other.due(), []);
    assert_eq!(other.contacts("alice"), ["sip:a@10.0.0.5"]);
    let found = other.registrar.locate_user(other.now, "alice", "example.com", &Method::Invite);
    assert_eq!(found[0].reach, Reach::Flow(b.flow));
    assert_eq!(other.run(120), [], "who heard the REGISTER sends the keepalives");
    // The device refreshes there: from now on that node answers for it.
    other.cseq = 50;
    other.register("Contact: <sip:a@10.0.0.5>;q=0.7\r\n");
    let moved = record(&other.due());
    assert_eq!(moved.bindings.len(), 1);
    b.registrar.bindings().adopt(b.now, &seen(&[moved])).unwrap();
    assert_eq!(b.contacts("alice"), ["sip:a@10.0.0.5"]);
    b.due();
    let late = b.run(7_300);
    assert!(late.is_empty(), "it does not delete what is the other's by now: {late:?}");
}

#[test]
fn a_connection_is_reached_by_the_node_that_holds_it_and_no_other() {
    let mut b = Bench::new(policy());
    b.flow = flow(Transport::Tcp, "198.51.100.7:40000");
    b.register("Contact: <sip:a@10.0.0.5;transport=tcp>\r\n");
    let written = record(&b.due());
    assert!(written.bindings[0].flow_only);
    let mut other = Bench::new(policy());
    // The edge gives the connection a name of its own.
    let mut state = seen(std::slice::from_ref(&written));
    state.bindings[0].record.conn = Some(ConnId(1 << 60));
    other.registrar.bindings().adopt(other.now, &state).unwrap();
    let found = other.registrar.locate_user(other.now, "alice", "example.com", &Method::Invite);
    assert_eq!(found[0].reach, Reach::Flow(Flow { conn: Some(ConnId(1 << 60)), ..b.flow }));
    // The node that held it is gone.
    state.bindings[0].record.conn = None;
    other.registrar.bindings().adopt(other.now, &state).unwrap();
    assert_eq!(other.contacts("alice"), [""; 0], "nobody can be called into the void");
    // The one that holds it was only thought dead: it says so again.
    let voided = AorState { bindings: vec![], ..seen(&[]) };
    b.registrar.bindings().adopt(b.now, &voided).unwrap();
    assert_eq!(b.contacts("alice").len(), 1);
    assert_eq!(record(&b.due()).bindings, written.bindings);
    // Taken out on purpose by another node, it is gone here too.
    let key = contact_key("sip:a@10.0.0.5;transport=tcp");
    let deleted = AorState { deleted: vec![key], ..voided };
    b.registrar.bindings().adopt(b.now, &deleted).unwrap();
    assert_eq!(b.contacts("alice"), [""; 0]);
    assert_eq!(b.due(), []);
}

#[test]
fn what_two_nodes_heard_of_one_user_stands_side_by_side() {
    let (mut b, mut other) = (Bench::new(policy()), Bench::new(policy()));
    b.register("Contact: <sip:a@10.0.0.5>\r\n");
    other.register("Contact: <sip:a@10.0.0.6>\r\n");
    let (one, two) = (record(&b.due()), record(&other.due()));
    let mut state = own(&[one]);
    state.bindings.extend(seen(&[two]).bindings);
    b.registrar.bindings().adopt(b.now, &state).unwrap();
    let mut contacts = b.contacts("alice");
    contacts.sort();
    assert_eq!(contacts, ["sip:a@10.0.0.5", "sip:a@10.0.0.6"]);
    assert_eq!(b.due(), [], "nothing to write");
    // A write that was lost is made up for by the next refresh.
    b.registrar.bindings().unstored("alice@example.com");
    b.register("Contact: <sip:a@10.0.0.5>\r\n");
    let again = record(&b.due());
    assert_eq!((again.bindings.len(), again.gone.len()), (1, 0));
}

#[test]
fn rfc5626_a_closed_connection_takes_its_bindings_along() {
    let mut b = Bench::new(policy());
    b.flow = flow(Transport::Tcp, "198.51.100.7:40000");
    b.register("Contact: <sip:a@10.0.0.5;transport=tcp>\r\n");
    b.due();
    b.registrar.conn_closed(b.now, ConnId(8));
    assert_eq!(b.contacts("alice").len(), 1);
    b.registrar.conn_closed(b.now, ConnId(7));
    assert_eq!(b.contacts("alice"), [""; 0]);
    assert_eq!(b.due().len(), 1);
    assert!(b.registrar.bindings().is_empty());
    // Who can be called by a new connection stays.
    b.register("Contact: <sip:a@198.51.100.7:5060;transport=tcp>\r\n");
    b.registrar.conn_closed(b.now, ConnId(7));
    let found = b.registrar.locate_user(b.now, "alice", "example.com", &Method::Invite);
    assert_eq!(found[0].reach, Reach::Uri(InterfaceId(1)));
}

fn guarded() -> RegistrarPolicy {
    let auth = AuthPolicy {
        open: Vec::new(),
        remote: None,
        realm: "example.com".into(),
        algorithms: vec![Algorithm::Sha256, Algorithm::Md5],
        nonce_ttl: Duration::from_secs(300),
        key: NonceKey([7; 32]),
    };
    RegistrarPolicy { auth: Some(auth), ..policy() }
}

fn answerer(answer: &Answer, user: &str, password: &str) -> Answerer {
    let account = Account { username: user.into(), realm: None, password: password.into() };
    Answerer::choose(header(answer, HeaderName::WwwAuthenticate).into_iter(), &account)
        .unwrap_or_else(|e| panic!("{e}"))
}

fn authorized(answerer: &mut Answerer, extra: &str) -> String {
    let value = answerer.authorize("REGISTER", "sip:example.com", b"", "cn1");
    format!("Authorization: {value}\r\n{extra}")
}

#[test]
fn rfc8760_register_is_challenged_and_let_in_once_per_count() {
    let mut b = Bench::new(guarded());
    let challenge = b.register(CONTACT);
    assert_eq!(challenge.status, 401);
    let offers = header(&challenge, HeaderName::WwwAuthenticate);
    assert!(offers[0].contains("SHA-256") && offers[1].contains("MD5"), "{offers:?}");
    let mut good = answerer(&challenge, "alice", "secret");
    let first = authorized(&mut good, CONTACT);
    assert_eq!(b.register(&first).status, 200);
    let replay = b.register(&first);
    assert_eq!(replay.status, 401);
    assert!(header(&replay, HeaderName::WwwAuthenticate)[0].contains("stale=true"));
    let second = authorized(&mut good, CONTACT);
    assert_eq!(b.register(&second).status, 200);
    // Another source address cannot use what was overheard.
    let third = authorized(&mut good, CONTACT);
    b.flow.remote = "203.0.113.66:5060".parse().unwrap();
    assert_eq!(b.register(&third).status, 401);
    b.flow.remote = "198.51.100.7:5060".parse().unwrap();
    b.run(301);
    let old = b.register(&third);
    assert!(header(&old, HeaderName::WwwAuthenticate)[0].contains("stale=true"));
}

#[test]
fn rfc3261_10_3_wrong_passwords_and_other_peoples_addresses() {
    let mut b = Bench::new(guarded());
    let challenge = b.register(CONTACT);
    for (user, password, status) in
        [("alice", "wrong", 401), ("mallory", "secret", 401), ("bob", "secret", 403)]
    {
        let extra = authorized(&mut answerer(&challenge, user, password), CONTACT);
        let answer = b.register(&extra);
        assert_eq!(answer.status, status, "{user}");
        assert!(!answer.headers.iter().any(|h| h.1.contains("stale=true")));
    }
    let extra = authorized(&mut answerer(&challenge, "bob", "secret"), CONTACT);
    let nobody = with_uri(
        "sip:example.com",
        "<sip:nobody@example.com>",
        &format!("CSeq: 1 REGISTER\r\nCall-ID: x\r\n{extra}"),
    );
    b.register(CONTACT);
    assert_eq!(b.send(&nobody).status, 401, "its count was used");
    let mut fresh = answerer(&b.register(CONTACT), "bob", "secret");
    fresh.authorize("REGISTER", "sip:example.com", b"", "cn");
    let extra = authorized(&mut fresh, CONTACT);
    let nobody = with_uri(
        "sip:example.com",
        "<sip:nobody@example.com>",
        &format!("CSeq: 1 REGISTER\r\nCall-ID: x\r\n{extra}"),
    );
    assert_eq!(b.send(&nobody).status, 404);
    let garbage = b.register("Authorization: Digest username=\"alice\r\n");
    assert_eq!(garbage.status, 400);
    assert!(b.registrar.bindings().is_empty());
}

#[test]
fn rfc3261_22_3_every_other_method_is_challenged_as_by_a_proxy() {
    let b = Bench::new(guarded());
    let methods = ["INVITE", "MESSAGE", "SUBSCRIBE", "PUBLISH", "REFER", "OPTIONS"];
    for (salt, method) in (0..).zip(methods) {
        let make = |from: &str, extra: &str| {
            let text = format!(
                "{method} sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\n\
                 From: <{from}>;tag=1\r\nTo: <sip:bob@example.com>\r\nCall-ID: 1\r\n\
                 CSeq: 1 {method}\r\n{extra}Content-Length: 0\r\n\r\n"
            );
            sip::parse(Bytes::from(text), &Limits::default()).unwrap()
        };
        let plain = make("sip:alice@example.com", "");
        let challenge = b.registrar.admit(&b.flow, &plain, b.now, UNIX_S, salt).unwrap_err();
        assert_eq!(challenge.status, 407, "{method}");
        let values = header(&challenge, HeaderName::ProxyAuthenticate);
        let account = Account {
            username: "alice".into(),
            realm: Some("example.com".into()),
            password: "secret".into(),
        };
        let mut answerer =
            Answerer::choose(values.into_iter(), &account).unwrap_or_else(|e| panic!("{e}"));
        for (from, expected) in [
            ("sip:alice@example.com", None),
            ("sip:+4930@example.com", None),
            ("sip:anonymous@anonymous.invalid", None),
            ("sip:bob@example.com", Some(403)),
        ] {
            let value = answerer.authorize(method, "sip:bob@example.com", b"", "cn");
            let message = make(from, &format!("Proxy-Authorization: {value}\r\n"));
            let result = b.registrar.admit(&b.flow, &message, b.now, UNIX_S, salt);
            assert_eq!(result.err().map(|a| a.status), expected, "{method} {from}");
        }
    }
}

proptest! {
    /// Whatever comes, the table agrees with a plain map, and drains.
    #[test]
    fn agrees_with_a_map(steps in proptest::collection::vec((0u8..4, 0u8..6, 0u8..4, 0u64..80), 1..60)) {
        let mut b = Bench::new(RegistrarPolicy { contacts_max: 100, ..policy() });
        let mut model: std::collections::BTreeMap<(u8, u8), Instant> = Default::default();
        for (user, contact, what, wait) in steps {
            b.run(wait);
            let expires = [0, 60, 90, 120][usize::from(what)];
            b.cseq += 1;
            let rest = format!(
                "CSeq: {} REGISTER\r\nCall-ID: c\r\nContact: <sip:x@h{contact}>;expires={expires}\r\n",
                b.cseq
            );
            let to = format!("<sip:u{user}@example.com>");
            prop_assert_eq!(b.send(&with_uri("sip:example.com", &to, &rest)).status, 200);
            model.insert((user, contact), b.t0 + Duration::from_secs((b.now - b.t0).as_secs() + expires));
            for user in 0..4 {
                let mut expected: Vec<String> = model
                    .iter()
                    .filter(|(k, until)| k.0 == user && **until > b.now)
                    .map(|(k, _)| format!("sip:x@h{}", k.1))
                    .collect();
                let mut found = b.contacts(&format!("u{user}"));
                expected.sort();
                found.sort();
                prop_assert_eq!(found, expected);
            }
        }
        b.run(200);
        prop_assert!(b.registrar.bindings().is_empty());
        prop_assert_eq!(b.registrar.bindings().stats().bindings, 0);
    }
}

#[test]
fn operators_see_who_is_there_and_watchers_who_comes_and_goes() {
    let mut b = Bench::new(policy());
    assert_eq!(b.register(CONTACT).status, 200);
    assert_eq!(
        b.register("Contact: <sip:alice@198.51.100.7:5070>;q=0.5\r\nExpires: 60\r\n").status,
        200
    );
    assert_eq!(b.register(CONTACT).status, 200);
    b.due();
    assert_eq!(b.seen, [(Change::Registered, 1), (Change::Registered, 2)]);
    let (total, found) = b.registrar.registrations(b.now, "5070", 10);
    assert_eq!((total, found.len(), found[0].contacts.len()), (1, 1, 2));
    assert_eq!(b.registrar.registrations(b.now, "bob", 10), (1, Vec::new()));
    assert_eq!(b.registrar.registrations(b.now, "", 0).1, []);
    b.run(61);
    let alice = b.registrar.registration(b.now, "alice@example.com").unwrap();
    assert_eq!((alice.contacts.len(), alice.contacts[0].age_s), (1, 61));
    assert_eq!(b.registrar.remove(b.now, "alice@example.com", "sip:nobody"), 0);
    assert_eq!(b.registrar.remove(b.now, "alice@example.com", "sip:alice@198.51.100.7:5060"), 1);
    b.due();
    assert_eq!(b.seen[2..], [(Change::Expired, 1), (Change::Removed, 0)]);
    assert!(b.registrar.bindings().is_empty());
}

#[test]
fn an_export_is_taken_in_beside_what_is_there() {
    let (mut here, mut there) = (Bench::new(policy()), Bench::new(policy()));
    here.register(CONTACT);
    there.register("Contact: <sip:alice@198.51.100.7:5060>, <sip:alice@203.0.113.9>\r\n");
    let stored = there.due().into_iter().find_map(|d| match d {
        Due::Store(record) => Some(record),
        Due::Ping(_) | Due::Changed(_) | Due::Withdraw { .. } => None,
    });
    let record = stored.unwrap();
    assert_eq!(here.registrar.import(here.now, &record), Ok(1));
    assert_eq!(here.registrar.import(here.now, &record), Ok(0));
    assert_eq!(here.contacts("alice").len(), 2);
}
