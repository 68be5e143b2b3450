//! Media of one call on each way that it can go (userspace, nftables, eBPF), with both ends under the
//! test's control: what arrives is asserted packet by packet.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sbc_tests::agent::{Agent, Audio, Direction};
use sbc_tests::capture::Capture;
use sbc_tests::net::{Net, ip, socket_in};
use sbc_tests::node::Node;
use sbc_tests::{can_make_namespaces, wait_for};
use serde_json::Value;

use crate::bed::{Bed, Plan, V4, V6};

const LONG: Duration = Duration::from_secs(20);
const WAYS: [&str; 3] = ["off", "nftables", "ebpf"];

/// A call that is up, with its media at both ends.
struct Talk {
    bed: Bed,
    way: &'static str,
    caller: Agent,
    callee: Agent,
    a: Audio,
    b: Audio,
}

/// What a test changes before the call.
struct Setup {
    plan: Plan,
    extra: &'static str,
    /// What the caller's SDP says instead of where it really is.
    says: Option<&'static str>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { plan: V4, extra: "", says: None }
    }
}

impl Talk {
    /// The call with its first packets in both directions.
    fn new(way: &'static str, setup: Setup) -> Talk {
        let Setup { plan, extra, says } = setup;
        let bed = Bed::new(plan, &format!("\n[media]\nkernel = \"{way}\"\n{extra}"));
        // What a sender leaves to its device would look wrong where it is relayed in software.
        for space in ["out", "in"] {
            ip(&format!("netns exec {} ethtool -K to-sbc tx off", bed.net.ns(space)));
        }
        assert_eq!(bed.node().ctl("status")["kernel_way"], way);
        let plan = &bed.plan;
        let (out, inside) = (plan.host(plan.out), plan.host(plan.inside));
        let peer = |host: String| format!("{host}:5060").parse().expect("address");
        let (outside, core) = (bed.net.ns("out"), bed.net.ns("in"));
        let advertised = peer(plan.host(plan.advertised));
        let mut caller = Agent::new(&outside, "alice", &format!("{out}:5060"), advertised);
        let sbc_in = peer(plan.host(plan.sbc_in));
        let mut callee = Agent::new(&core, "bob", &format!("{inside}:5060"), sbc_in);
        let mut a = caller.audio(&format!("{out}:40000"));
        let mut b = callee.audio(&format!("{inside}:40000"));
        caller.invite("1234", says.map_or(a.address(), |s| s.parse().expect("address")));
        b.to = callee.answer(b.address(), Direction::Both);
        a.to = caller.answered();
        let mut talk = Talk { bed, way, caller, callee, a, b };
        if says.is_none() {
            talk.exchange();
        }
        talk
    }

    fn kernel(&self) -> bool {
        self.way != "off"
    }

    /// One packet each way, received before anything else.
    fn exchange(&mut self) {
        let sent = self.a.send();
        assert_eq!(self.b.receive(), Some(sent), "{}: from the caller", self.way);
        let sent = self.b.send();
        assert_eq!(self.a.receive(), Some(sent), "{}: from the callee", self.way);
    }

    fn flows(&self) -> u64 {
        self.bed.node().ctl("status")["kernel_flows"].as_u64().unwrap_or(0)
    }

    fn metric(&self, name: &str, label: &str) -> u64 {
        self.bed.node().metric(name, label)
    }

    fn relayed(&self) -> u64 {
        self.metric("sbc_media_relayed_datagrams_total", "")
    }

    /// Talks until both directions go the way that they are to go.
    fn settle(&mut self) {
        let wanted = if self.kernel() { 2 } else { 0 };
        self.until_flows(wanted);
    }

    fn until_flows(&mut self, wanted: u64) {
        let end = Instant::now() + LONG;
        while self.flows() != wanted {
            assert!(Instant::now() < end, "{}: {} flows in the kernel", self.way, self.flows());
            self.exchange();
        }
    }

    /// Hangs up; the CDR has every packet that was sent, by whichever way it went.
    fn end(mut self) -> Value {
        self.caller.bye();
        self.callee.gone(LONG);
        let cdr = self.bed.node().wait_cdrs(1).remove(0);
        assert_eq!(cdr["status"], 200, "{cdr}");
        if self.kernel() {
            wait_for("the kernel to be empty", LONG, || (self.flows() == 0).then_some(()));
        }
        self.bed.finish();
        cdr
    }
}

/// Runs a test on each way.
fn each_way(test: &str, body: impl Fn(&'static str)) {
    if can_make_namespaces(test) {
        for way in WAYS {
            eprintln!("{test}: {way}");
            body(way);
        }
    }
}

/// The first packets by userspace, later ones by the kernel, where userspace's counter stands still;
/// none lost, none doubled, all sums right.
#[test]
fn no_packet_is_lost_or_doubled_on_the_way_into_the_kernel() {
    each_way("into the kernel", |way| numbered(way, V4));
}

#[test]
fn ipv6_goes_into_the_kernel_likewise() {
    each_way("into the kernel, IPv6", |way| numbered(way, V6));
}

fn numbered(way: &'static str, plan: Plan) {
    let mut talk = Talk::new(way, Setup { plan, ..Setup::default() });
    let captures = ["out", "in"]
        .map(|space| Capture::start(&talk.bed.net.ns(space), talk.bed.dir.path(), "to-sbc"));
    // Sent without waiting for each, across the moment of the move.
    let mut sent = [Vec::new(), Vec::new()];
    let mut got = [Vec::new(), Vec::new()];
    let end = Instant::now() + Duration::from_millis(1_500);
    while Instant::now() < end {
        sent[0].push(talk.a.send());
        sent[1].push(talk.b.send());
        std::thread::sleep(Duration::from_millis(2));
        got[0].extend(talk.b.drain());
        got[1].extend(talk.a.drain());
    }
    wait_for("the last packets", LONG, || {
        got[0].extend(talk.b.drain());
        got[1].extend(talk.a.drain());
        (got[0].len() >= sent[0].len() && got[1].len() >= sent[1].len()).then_some(())
    });
    // At the moment of the move packets may overtake those that still wait for userspace; all that
    // came before it are in order, all that came after it too.
    for heard in &mut got {
        let once = heard.iter().any(|last| {
            let (before, after): (Vec<u16>, Vec<u16>) =
                heard.iter().copied().partition(|n| n <= last);
            before.is_sorted() && after.is_sorted()
        });
        assert!(once, "{way}: out of order more than once: {heard:?}");
        heard.sort_unstable();
    }
    assert_eq!(got, sent, "{way}: each packet once");
    talk.settle();
    let before = talk.relayed();
    for _ in 0..100 {
        talk.exchange();
    }
    let in_userspace = talk.relayed() - before;
    assert_eq!(in_userspace, if talk.kernel() { 0 } else { 200 }, "{way}");
    let shown = talk.bed.node().ctl("media list").to_string();
    let why = if talk.kernel() { "kernel" } else { "kernel relay off" };
    assert_eq!(shown.matches(&format!("\"way\":\"{why}\"")).count(), 2, "{way}: {shown}");
    for capture in captures {
        let pcap = capture.stop();
        let audio = pcap.count("udp.length == 180");
        assert!(audio > 200, "{way}: {audio} packets captured");
        assert_eq!(pcap.count("udp.length == 180 && udp.checksum.status != \"Good\""), 0, "{way}");
        assert_eq!(pcap.count("ip && ip.checksum.status != \"Good\""), 0, "{way}");
    }
    talk.end();
}

/// What the callee reports of the caller's audio (RFC 3550 §6.4.2) passes through, and is what is shown of
/// it and written down while the kernel relays it; in userspace the relay's own reckoning stands.
#[test]
fn loss_and_jitter_are_as_the_far_end_reports_while_the_kernel_relays() {
    each_way("receiver report", |way| {
        let mut talk = Talk::new(way, Setup::default());
        talk.settle();
        let rtcp = |of: SocketAddr| SocketAddr::new(of.ip(), of.port() + 1);
        let (out, inside) = (talk.bed.net.ns("out"), talk.bed.net.ns("in"));
        let at_caller = socket_in(&out, &rtcp(talk.a.address()).to_string());
        let at_callee = socket_in(&inside, &rtcp(talk.b.address()).to_string());
        // 7 packets lost in all, a jitter of 40 units of 8,000 Hz.
        let mut report = vec![0x81, 201, 0, 7, 0, 0, 0, 9];
        report.extend(talk.a.ssrc().to_be_bytes());
        report.extend([12, 0, 0, 7, 0, 0, 0, 99, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0, 0]);
        at_callee.send_to(&report, rtcp(talk.b.to)).expect("send");
        let mut heard = [0; 64];
        at_caller.set_read_timeout(Some(LONG)).expect("timeout");
        let (len, from) = at_caller.recv_from(&mut heard).expect("the report");
        let port = rtcp(talk.a.to).port();
        assert_eq!((&heard[..len], from.port()), (&report[..], port), "{way}");
        let caller = |of: &Value| (of["lost"].as_u64(), of["jitter_us"].as_u64());
        let list = || talk.bed.node().ctl("media list")["sessions"][0]["streams"][0]["a"].clone();
        if talk.kernel() {
            wait_for("the report to be shown", LONG, || {
                (caller(&list()) == (Some(7), Some(5_000))).then_some(())
            });
        }
        let before = caller(&list());
        assert_eq!(before.0, Some(if talk.kernel() { 7 } else { 0 }), "{way}: {}", list());
        talk.exchange();
        assert_eq!(talk.flows(), if talk.kernel() { 2 } else { 0 }, "{way}: its audio stays there");
        let cdr = talk.end();
        let written = caller(&cdr["media"][0]["a"]);
        assert_eq!(written.0, before.0, "{way}: {cdr}");
        if way != "off" {
            assert_eq!(written, before, "{way}: {cdr}");
        }
    });
}

/// Somebody who knows the SBC's ports but is not the endpoint: nothing of it arrives, and it is
/// counted.
#[test]
fn an_injected_packet_reaches_nobody() {
    each_way("injection", |way| {
        let mut talk = Talk::new(way, Setup::default());
        talk.settle();
        let before = talk.metric("sbc_media_dropped_datagrams_total", "source");
        // The endpoint's own host by another port, and another host.
        ip(&format!("-n {} addr add 10.1.0.66/24 dev to-sbc", talk.bed.net.ns("out")));
        let out = talk.bed.net.ns("out");
        for from in ["10.1.0.10:40002", "10.1.0.66:40000"] {
            let mut stranger = talk.caller.audio(from);
            stranger.to = talk.a.to;
            for _ in 0..20 {
                stranger.send();
            }
            assert_eq!(stranger.socket.local_addr().expect("bound").to_string(), from, "{out}");
        }
        wait_for("the strangers to be counted", LONG, || {
            let now = talk.metric("sbc_media_dropped_datagrams_total", "source");
            (now - before == 40).then_some(())
        });
        assert_eq!(talk.b.drain(), [0; 0], "{way}: injected media came through");
        talk.exchange();
        talk.end();
    });
}

/// A re-INVITE moves the caller's media: the new port hears and is heard, the old one neither.
#[test]
fn a_reinvite_moves_an_endpoint_in_the_middle_of_a_call() {
    each_way("re-INVITE", |way| {
        let mut talk = Talk::new(way, Setup::default());
        talk.settle();
        let mut moved = talk.caller.audio("10.1.0.10:41000");
        talk.caller.reinvite(moved.address(), Direction::Both);
        talk.b.to = talk.callee.answer(talk.b.address(), Direction::Both);
        moved.to = talk.caller.answered();
        let mut old = std::mem::replace(&mut talk.a, moved);
        // The answer is here. From now on nothing goes to the old port.
        old.drain();
        for _ in 0..50 {
            talk.exchange();
        }
        assert_eq!(old.drain(), [0; 0], "{way}: the old port still hears");
        old.send();
        talk.exchange();
        assert_eq!(talk.b.drain(), [0; 0], "{way}: the old port is still heard");
        talk.settle();
        old.send();
        talk.exchange();
        assert_eq!(old.drain(), [0; 0], "{way}");
        talk.end();
    });
}

/// On hold nothing passes in the direction that is off; afterwards everything does, by the kernel
/// again.
#[test]
fn hold_stops_a_direction_and_resume_brings_it_back() {
    each_way("hold", |way| {
        let mut talk = Talk::new(way, Setup::default());
        talk.settle();
        talk.caller.reinvite(talk.a.address(), Direction::SendOnly);
        talk.b.to = talk.callee.answer(talk.b.address(), Direction::RecvOnly);
        talk.a.to = talk.caller.answered();
        if talk.kernel() {
            wait_for("the held direction to leave the kernel", LONG, || {
                (talk.flows() <= 1).then_some(())
            });
        }
        let dropped = talk.metric("sbc_media_dropped_datagrams_total", "direction");
        talk.a.drain();
        for _ in 0..10 {
            talk.b.send();
        }
        wait_for("held media to be counted", LONG, || {
            let now = talk.metric("sbc_media_dropped_datagrams_total", "direction");
            (now - dropped == 10).then_some(())
        });
        assert_eq!(talk.a.drain(), [0; 0], "{way}: media of a call on hold");
        let sent = talk.a.send();
        assert_eq!(talk.b.receive(), Some(sent), "{way}: the other direction stays");
        talk.caller.reinvite(talk.a.address(), Direction::Both);
        talk.b.to = talk.callee.answer(talk.b.address(), Direction::Both);
        talk.a.to = talk.caller.answered();
        talk.settle();
        talk.exchange();
        talk.end();
    });
}

/// A call whose media only the kernel sees lives for longer than the timeout, and ends by a BYE of
/// the SBC to both sides when it falls silent.
#[test]
fn silence_is_noticed_by_the_counters_of_the_way() {
    each_way("media timeout", |way| {
        let extra = "\n[calls]\nmedia-timeout = \"7s\"\n";
        let mut talk = Talk::new(way, Setup { extra, ..Setup::default() });
        talk.settle();
        let end = Instant::now() + Duration::from_secs(9);
        while Instant::now() < end {
            talk.exchange();
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(talk.bed.node().ctl("status")["calls"], 1, "{way}: ended while it talked");
        talk.caller.gone(LONG);
        talk.callee.gone(LONG);
        let cdr = talk.bed.node().wait_cdrs(1).remove(0);
        assert!(cdr.to_string().contains("media"), "{way}: {cdr}");
        talk.bed.finish();
    });
}

/// A caller whose SDP names an address that is not its own: what it really sends from is latched.
#[test]
fn a_caller_behind_nat_is_latched() {
    each_way("NAT", |way| {
        let says = Some("192.168.77.7:4000");
        let mut talk = Talk::new(way, Setup { says, ..Setup::default() });
        // On probation first, then heard; meanwhile nothing was sent to where nobody is.
        wait_for("the caller to be latched", LONG, || {
            talk.a.send();
            std::thread::sleep(Duration::from_millis(20));
            (!talk.b.drain().is_empty()).then_some(())
        });
        talk.b.send();
        assert!(talk.a.receive().is_some(), "{way}");
        talk.b.drain();
        talk.settle();
        let stranger = socket_in(&talk.bed.net.ns("out"), "10.1.0.10:4000");
        let packet = [&[0x80, 8, 0, 1][..], &[0; 168]].concat();
        stranger.send_to(&packet, talk.a.to).expect("send");
        talk.exchange();
        assert_eq!(talk.b.drain(), [0; 0], "{way}: somebody else came through");
        talk.end();
    });
}

/// The callee's media lies behind a gateway. The route changes, goes and comes back: no packet is
/// lost by the change, and the kernel has the flow again when there is a route.
#[test]
fn a_route_changes_in_the_middle_of_a_call() {
    each_way("route change", |way| {
        let mut talk = Talk::new(way, Setup::default());
        let (sbc, inside) = (talk.bed.net.ns("sbc"), talk.bed.net.ns("in"));
        ip(&format!("-n {inside} addr add 10.9.0.9/32 dev lo"));
        ip(&format!("-n {sbc} route add 10.9.0.0/24 via 10.2.0.10"));
        let mut far = talk.callee.audio("10.9.0.9:42000");
        talk.callee.reinvite(far.address(), Direction::Both);
        talk.a.to = talk.caller.answer(talk.a.address(), Direction::Both);
        far.to = talk.callee.answered();
        talk.b = far;
        talk.settle();
        ip(&format!("-n {sbc} route replace 10.9.0.0/24 via 10.2.0.11"));
        for _ in 0..100 {
            talk.exchange();
        }
        if talk.kernel() {
            wait_for("the flow to be planned again", LONG, || {
                (talk.metric("sbc_kernel_flow_changes_total", "replanned") >= 1).then_some(())
            });
            assert_eq!(talk.flows(), 2);
        }
        talk.exchange();
        // Through another device there is nobody; what is sent is lost, and nothing else is.
        ip(&format!("-n {sbc} route replace blackhole 10.9.0.0/24"));
        if talk.kernel() {
            wait_for("the flow to leave the kernel", LONG, || (talk.flows() == 1).then_some(()));
        }
        let sent = talk.b.send();
        assert_eq!(talk.a.receive(), Some(sent), "{way}: the other direction stays");
        ip(&format!("-n {sbc} route replace 10.9.0.0/24 via 10.2.0.10"));
        wait_for("packets to arrive again", LONG, || {
            talk.a.send();
            std::thread::sleep(Duration::from_millis(5));
            (!talk.b.drain().is_empty()).then_some(())
        });
        talk.settle();
        talk.end();
    });
}

/// Both interfaces on one device: what comes in goes out again where it came from.
#[test]
fn a_call_on_one_interface_makes_a_hairpin() {
    each_way("hairpin", |way| {
        let net = Net::new(&["out", "in", "sbc", "sw"]);
        net.bridge(
            "sw",
            &[("out", "10.5.0.10/24"), ("in", "10.5.0.20/24"), ("sbc", "10.5.0.1/24")],
        );
        for space in ["out", "in", "sbc"] {
            ip(&format!("netns exec {} ethtool -K to-sw tx off", net.ns(space)));
        }
        let dir = tempfile::tempdir().expect("temporary directory");
        let config = HAIRPIN.replace("@WAY@", way);
        let node = Node::start(&net.ns("sbc"), dir.path(), "sbc", &config);
        let peer = |port: u16| SocketAddr::from(([10, 5, 0, 1], port));
        let mut caller = Agent::new(&net.ns("out"), "alice", "10.5.0.10:5060", peer(5060));
        let mut callee = Agent::new(&net.ns("in"), "bob", "10.5.0.20:5060", peer(5070));
        let (mut a, mut b) = (caller.audio("10.5.0.10:40000"), callee.audio("10.5.0.20:40000"));
        caller.invite("1234", a.address());
        b.to = callee.answer(b.address(), Direction::Both);
        a.to = caller.answered();
        let exchange = |a: &mut Audio, b: &mut Audio| {
            let sent = a.send();
            assert_eq!(b.receive(), Some(sent), "{way}: from the caller");
            let sent = b.send();
            assert_eq!(a.receive(), Some(sent), "{way}: from the callee");
        };
        let flows = || node.ctl("status")["kernel_flows"].as_u64();
        let (wanted, end) = (Some(if way == "off" { 0 } else { 2 }), Instant::now() + LONG);
        exchange(&mut a, &mut b);
        while flows() != wanted {
            assert!(Instant::now() < end, "{way}: {:?} flows in the kernel", flows());
            exchange(&mut a, &mut b);
        }
        let before = node.metric("sbc_media_relayed_datagrams_total", "");
        for _ in 0..50 {
            exchange(&mut a, &mut b);
        }
        let relayed = node.metric("sbc_media_relayed_datagrams_total", "") - before;
        assert_eq!(relayed, if way == "off" { 100 } else { 0 }, "{way}");
        caller.bye();
        callee.gone(LONG);
        assert_eq!(node.wait_cdrs(1)[0]["status"], 200);
        node.stop();
    });
}

const HAIRPIN: &str = r#"
[node]
name = "test"
drain-time = "2s"

[admin]
socket = "@DIR@/sbc.sock"

[cdr]
file = "@DIR@/cdr.jsonl"

[media]
kernel = "@WAY@"

[[interface]]
name = "access"
listen = "udp://10.5.0.1:5060"
media = { ports = "20000-29999" }

[[interface]]
name = "core"
listen = "udp://10.5.0.1:5070"
media = { ports = "30000-39999" }

[[trunk]]
name = "outside"
interface = "access"
peers = "10.5.0.10"

[[trunk]]
name = "inside"
interface = "core"
peers = "10.5.0.20"

[[route]]
source = "outside"
target = "inside"
"#;
