//! Attacks beside a steady load of calls: not one call fails, and who attacks is kept out.
//!
//! Each attacker has an address of its own on the outside network, so that their bans do not mix.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use sbc_tests::agent::{Agent, Direction};
use sbc_tests::can_make_namespaces;
use sbc_tests::net::{inside, ip};
use sbc_tests::sipp::Sipp;

use crate::bed::{Bed, V4};

const LONG: Duration = Duration::from_secs(60);
const SBC: &str = "10.1.0.1:5060";

/// A bed with attackers at 10.1.0.61 to .69, and a load of `calls` calls at 10 a second.
fn besieged(calls: u32, extra: &str) -> (Bed, Sipp, Sipp) {
    let bed = Bed::new(V4, extra);
    for host in 61..=69 {
        ip(&format!("-n {} addr add 10.1.0.{host}/24 dev to-sbc", bed.net.ns("out")));
    }
    let callee = bed.callee("uas-answer.xml", &format!("-m {calls}"));
    let caller = bed.caller("uac-call.xml", &format!("-m {calls} -r 10 -d 300"));
    (bed, caller, callee)
}

/// The reason of the ban that an address is under, if any.
fn banned(bed: &Bed, address: &str) -> Option<String> {
    let bans = bed.node().ctl(&format!("bans list {address}"));
    bans["bans"][0]["reason"].as_str().map(str::to_owned)
}

fn wait_banned(bed: &Bed, address: &str, reason: &str) {
    sbc_tests::wait_for(&format!("the ban of {address}"), LONG, || banned(bed, address));
    assert_eq!(banned(bed, address).as_deref(), Some(reason), "{address}");
}

fn request(method: &str, from: SocketAddr, n: usize, user: &str, more: &str) -> Vec<u8> {
    format!(
        "{method} sip:{user}@203.0.113.5 SIP/2.0\r\n\
         Via: SIP/2.0/UDP {from};branch=z9hG4bK{method}{n};rport\r\n\
         From: <sip:{user}@example.net>;tag={n}\r\nTo: <sip:{user}@example.net>\r\n\
         Call-ID: {method}-{n}-{from}\r\nCSeq: 1 {method}\r\nMax-Forwards: 70\r\n\
         Contact: <sip:{user}@{from}>\r\n{more}Content-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

/// Sends `count` datagrams to the SBC from one source.
fn flood(bed: &Bed, source: &str, count: usize, datagram: fn(SocketAddr, usize) -> Vec<u8>) {
    let from: SocketAddr = format!("{source}:5060").parse().expect("address");
    inside(&bed.net.ns("out"), move || {
        let socket = UdpSocket::bind(from).expect("bind");
        for n in 0..count {
            // A full queue of the device drops, as on any wire.
            let _ = socket.send_to(&datagram(from, n), SBC);
        }
    });
}

#[test]
fn floods_and_slow_connections_cost_no_call() {
    if !can_make_namespaces("attacks") {
        return;
    }
    let extra = "\n[transport]\nhalf-message-timeout = \"1s\"\nmax-connections-per-source = 30\n";
    let (bed, caller, callee) = besieged(120, extra);
    let node = bed.node();
    flood(&bed, "10.1.0.61", 10_000, |from, n| request("INVITE", from, n, "1234", ""));
    wait_banned(&bed, "10.1.0.61", "flood");
    flood(&bed, "10.1.0.62", 10_000, |_, n| vec![u8::try_from(n % 251).unwrap_or(0); 64]);
    wait_banned(&bed, "10.1.0.62", "flood");

    // Spoofed: each datagram from another address. Nobody is banned for it, no table grows.
    let (out, sbc) = (bed.net.ns("out"), bed.net.ns("sbc"));
    ip(&format!("-n {out} route add local 198.18.0.0/15 dev lo"));
    ip(&format!("-n {sbc} route add 198.18.0.0/15 via 10.1.0.10"));
    let bans = node.sum("sbc_guard_bans");
    let before = node.sum("sbc_udp_received_datagrams");
    inside(&out, || {
        for n in 0..10_000_u32 {
            let address = IpAddr::V4((0xc612_0000 + n * 13).into());
            let socket = UdpSocket::bind((address, 0)).expect("bind");
            let _ = socket.send_to(b"spoofed junk that is no SIP", SBC);
        }
    });
    assert!(node.sum("sbc_udp_received_datagrams") >= before + 9_000.0);
    assert!(node.sum("sbc_guard_pike_nodes") <= 65_536.0);
    assert!(node.sum("sbc_guard_bans") <= bans, "{}", node.ctl("bans list"));

    // Slow heads: more connections than one source may have, each of which never ends its request.
    let held = inside(&out, || {
        let connect = |n: u16| {
            let socket = socket_from("10.1.0.64", 20_000 + n)?;
            let mut stream = connect(socket)?;
            stream.write_all(b"INVITE sip:1234@203.0.113.5 SIP/2.0\r\nVia: ").ok()?;
            Some(stream)
        };
        (0..60).filter_map(connect).collect::<Vec<_>>()
    });
    sbc_tests::wait_for("slow connections to be closed", LONG, || {
        (node.sum("sbc_stream_half_message_timeouts") >= 20.0).then_some(())
    });
    assert!(node.sum("sbc_stream_refused_connections") >= 10.0);
    for mut stream in held {
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        let mut byte = [0];
        // Closed or reset, but not left waiting.
        assert!(!matches!(stream.read(&mut byte), Ok(n) if n > 0));
    }

    // Connections as fast as they can be made: pike counts them too.
    let begun = Instant::now();
    inside(&out, move || {
        for n in 0..6_000_u16 {
            if begun.elapsed() > Duration::from_secs(5) {
                break;
            }
            drop(socket_from("10.1.0.63", 20_000 + n).and_then(connect));
        }
    });
    wait_banned(&bed, "10.1.0.63", "flood");
    assert!(banned(&bed, "10.1.0.10").is_none(), "the trunk is not banned");
    caller.expect_success(LONG);
    callee.expect_success(LONG);
    bed.finish();
}

/// A TCP socket bound to a source.
fn socket_from(source: &str, port: u16) -> Option<std::os::fd::OwnedFd> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd as _;
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).ok()?;
    setsockopt(&fd, sockopt::ReuseAddr, &true).ok()?;
    let address: std::net::SocketAddrV4 = format!("{source}:{port}").parse().ok()?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(address)).ok()?;
    Some(fd)
}

/// Connects within a moment or not at all.
fn connect(fd: std::os::fd::OwnedFd) -> Option<TcpStream> {
    use nix::sys::socket::{SockaddrIn, setsockopt, sockopt};
    use nix::sys::time::{TimeVal, TimeValLike as _};
    use std::os::fd::AsRawFd as _;
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::milliseconds(200)).ok()?;
    let address: std::net::SocketAddrV4 = SBC.parse().ok()?;
    nix::sys::socket::connect(fd.as_raw_fd(), &SockaddrIn::from(address)).ok()?;
    Some(TcpStream::from(fd))
}

const USERS: &str = r#"
[[trunk]]
name = "phones"
interface = "access"

[registrar]
trunk = "phones"
domains = ["example.net"]

[[user]]
name = "alice"
ha1-md5 = "0123456789abcdef0123456789abcdef"

[[route]]
source = "phones"
target = "inside"
"#;

#[test]
fn guessers_of_passwords_and_users_are_banned() {
    if !can_make_namespaces("dictionary") {
        return;
    }
    let (bed, caller, callee) = besieged(30, USERS);
    let out = bed.net.ns("out");
    // Wrong passwords of a user that there is.
    let tries = inside(&out, || {
        let from: SocketAddr = "10.1.0.65:5060".parse().expect("address");
        let socket = UdpSocket::bind(from).expect("bind");
        socket.set_read_timeout(Some(Duration::from_millis(700))).expect("timeout");
        let mut nonce = String::new();
        for n in 0..60 {
            let login = format!(
                "Authorization: Digest username=\"alice\", realm=\"example.net\", \
                 nonce=\"{nonce}\", uri=\"sip:alice@203.0.113.5\", algorithm=MD5, qop=auth, \
                 nc=00000001, cnonce=\"x\", response=\"{n:032x}\"\r\n"
            );
            let more = if nonce.is_empty() { "" } else { &login };
            let message = request("REGISTER", from, n, "alice", more);
            let message = String::from_utf8_lossy(&message).into_owned();
            let message =
                message.replace("REGISTER sip:alice@203.0.113.5", "REGISTER sip:example.net");
            let message =
                message.replace("uri=\"sip:alice@203.0.113.5\"", "uri=\"sip:example.net\"");
            socket.send_to(message.as_bytes(), SBC).expect("send");
            let mut answer = [0; 4096];
            let Ok(length) = socket.recv(&mut answer) else { return n };
            let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
            assert!(answer.starts_with("SIP/2.0 401"), "{answer}");
            let found = answer.split("nonce=\"").nth(1).and_then(|rest| rest.split('"').next());
            nonce = found.expect("a nonce").to_owned();
        }
        60
    });
    assert!((20..=22).contains(&tries), "silence came after {tries}");
    wait_banned(&bed, "10.1.0.65", "dictionary");
    // Users that there are not, without any password.
    flood(&bed, "10.1.0.66", 8, |from, n| {
        let message = request("REGISTER", from, n, &format!("10{n}"), "");
        String::from_utf8_lossy(&message).replace("@203.0.113.5", "@example.net").into_bytes()
    });
    wait_banned(&bed, "10.1.0.66", "dictionary");
    caller.expect_success(LONG);
    callee.expect_success(LONG);
    bed.finish();
}

/// The scanner that everybody has: <https://pypi.org/project/sipvicious/>.
#[test]
fn sipvicious_finds_nothing() {
    if !can_make_namespaces("sipvicious") {
        return;
    }
    let python = |script: &str, words: &str, ns: Option<&str>| {
        let path = sbc_tests::root().join("target/pypi");
        let mut command = match ns {
            Some(ns) => {
                let mut command = Command::new("ip");
                // svwar waits for ever for a server that does not answer.
                command.args(["netns", "exec", ns, "timeout", "15", "python3"]);
                command
            }
            None => Command::new("python3"),
        };
        let code = format!("import sys; from sipvicious.{script} import main; sys.exit(main())");
        command.env("PYTHONPATH", path).args(["-c", &code]).args(words.split_whitespace());
        command.output().expect("python3")
    };
    if !python("svmap", "--help", None).status.success() {
        return sbc_tests::skip_tool("sipvicious", "not installed: tests/scripts/deps.sh does it");
    }
    let (bed, caller, callee) = besieged(30, USERS);
    let out = bed.net.ns("out");
    let map = python("svmap", "-b 10.1.0.67 -t 1 10.1.0.1", Some(&out));
    let told =
        String::from_utf8_lossy(&map.stdout).into_owned() + &String::from_utf8_lossy(&map.stderr);
    assert!(!told.contains("10.1.0.1:5060 |"), "{told}");
    wait_banned(&bed, "10.1.0.67", "scanner");
    // The scanner for users: not one is found, and it is silent from its first request on.
    // It binds to no address, whatever it is told: the way there says which is its own.
    ip(&format!("-n {out} route add 10.1.0.1/32 dev to-sbc src 10.1.0.68"));
    let war = python("svwar", "-m REGISTER -e 100-120 10.1.0.1", Some(&out));
    let told =
        String::from_utf8_lossy(&war.stdout).into_owned() + &String::from_utf8_lossy(&war.stderr);
    assert!(!told.contains("| reqauth") && !told.contains("| noauth"), "{told}");
    wait_banned(&bed, "10.1.0.68", "scanner");
    caller.expect_success(LONG);
    callee.expect_success(LONG);
    bed.finish();
}

/// What a sprayer sends to every media port, `rounds` times; how much came back to it. What is sprayed
/// is of no length that a phone expects, so that a phone that gets it says so.
fn spray(socket: &UdpSocket, rounds: usize) -> u32 {
    socket.set_nonblocking(true).expect("nonblocking");
    let mut rtp = vec![0x80, 8, 0, 1, 0, 0, 0, 160, 0xde, 0xad, 0xbe, 0xef];
    rtp.resize(100, 0xd5);
    let rtcp = [0x80, 200, 0, 0];
    let garbage = [0xff; 40];
    let mut oversize = vec![0x81, 200, 0xff, 0xff];
    oversize.resize(9_000, 7);
    let (mut received, mut answer) = (0, [0; 2048]);
    for _ in 0..rounds {
        for port in 20_000..30_000_u16 {
            let to = ("10.1.0.1", port);
            // What a full queue drops is no loss: both sides of a pair get something else.
            let _ = socket.send_to(&rtp, to);
            let _ = socket.send_to(&rtcp, to);
            if port % 2 == 1 {
                let _ = socket.send_to(&garbage, to);
            }
            if port % 64 < 2 {
                let _ = socket.send_to(&oversize, to);
            }
            while socket.recv(&mut answer).is_ok() {
                received += 1;
            }
        }
    }
    received
}

/// RTP and RTCP sprayed over every media port while a call learns its peers and in its middle: nothing
/// comes back, nothing of it reaches a phone, and not a packet of the call is lost.
#[test]
fn media_sprayed_over_every_port_gets_nothing_back() {
    if !can_make_namespaces("media spray") {
        return;
    }
    let bed = Bed::new(V4, "");
    let (out, core) = (bed.net.ns("out"), bed.net.ns("in"));
    ip(&format!("-n {out} addr add 10.1.0.69/24 dev to-sbc"));
    let sprayer = sbc_tests::net::socket_in(&out, "10.1.0.69:4000");
    let address = |text: &str| text.parse::<SocketAddr>().expect("address");
    let mut alice = Agent::new(&out, "alice", "10.1.0.10:5060", address("203.0.113.5:5060"));
    let mut bob = Agent::new(&core, "bob", "10.2.0.10:5060", address("10.2.0.1:5060"));
    let (mut hers, mut his) = (alice.audio("10.1.0.10:4000"), bob.audio("10.2.0.10:4000"));
    alice.invite("1234", hers.address());
    his.to = bob.answer(his.address(), Direction::Both);
    hers.to = alice.answered();
    // Nobody has spoken yet: the SBC learns.
    let mut received = spray(&sprayer, 1);
    let mut talk = || {
        let sent = hers.send();
        assert_eq!(his.receive(), Some(sent), "from outside to inside");
        let sent = his.send();
        assert_eq!(hers.receive(), Some(sent), "from inside to outside");
    };
    (0..20).for_each(|_| talk());
    let spraying = std::thread::spawn(move || {
        let received = spray(&sprayer, 3);
        (sprayer, received)
    });
    while !spraying.is_finished() {
        talk();
    }
    let (sprayer, more) = spraying.join().expect("the sprayer");
    received += more;
    (0..20).for_each(|_| talk());
    let mut byte = [0; 64];
    while sprayer.recv(&mut byte).is_ok() {
        received += 1;
    }
    assert_eq!(received, 0, "media came back to a stranger");
    alice.bye();
    bob.gone(LONG);
    bed.finish();
}
