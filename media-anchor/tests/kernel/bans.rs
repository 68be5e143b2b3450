//! The drop set: who is dropped, for how long, and what it outlives.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use media_anchor::kernel::{Ban, BanConfig, BanError, BanSet, BanTarget, Bans, NotTaken};

use crate::call::{receive, waits};
use crate::netns::{Net, available};

fn with_set(test: &str, body: impl FnOnce(&Net, BanSet) + Send) {
    if !available(test) {
        return;
    }
    let net = Net::new();
    net.sbc.run(|| body(&net, BanSet::open(BanConfig::default()).expect("a drop set")));
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn ban(target: BanTarget, lasts: Duration) -> Ban {
    Ban { target, lasts }
}

const LONG: Duration = Duration::from_secs(600);

/// A datagram from `from` reaches `to` within two seconds.
fn reaches(from: &UdpSocket, to: &UdpSocket) -> bool {
    from.send_to(b"x", to.local_addr().expect("bound")).expect("send");
    receive(to).0 == b"x"
}

/// Whether a datagram from `from` to `to` is there at once: veth delivers within the call to send,
/// unless the machine is busy.
fn arrives(from: &UdpSocket, to: &UdpSocket) -> bool {
    from.send_to(b"x", to.local_addr().expect("bound")).expect("send");
    let got = waits(to);
    if got {
        receive(to);
    }
    got
}

#[test]
fn a_banned_source_is_dropped_and_others_are_not() {
    with_set("a_banned_source_is_dropped", |net, mut set| {
        let (bad, good) = (net.a.udp("10.1.0.2:5060"), net.b.udp("10.2.0.2:5060"));
        let six = net.a.udp("[fd01::2]:5060");
        let (to_bad, to_good) = (net.sbc.udp("10.1.0.1:5060"), net.sbc.udp("10.2.0.1:5060"));
        let to_six = net.sbc.udp("[fd01::1]:5060");
        assert!(reaches(&bad, &to_bad) && reaches(&six, &to_six));
        let targets = [BanTarget::host(ip("::ffff:10.1.0.2")), BanTarget::host(ip("fd01::2"))];
        set.ban(&targets.map(|t| ban(t, LONG))).expect("ban");
        assert!(!arrives(&bad, &to_bad) && !arrives(&six, &to_six));
        assert!(reaches(&good, &to_good));
        assert_eq!((set.dropped().expect("counters"), set.len()), (2, 2));
        set.lift(&targets).expect("lift");
        assert!(reaches(&bad, &to_bad) && reaches(&six, &to_six));
        set.lift(&targets).expect("lifting twice is no error");
    });
}

#[test]
fn a_ban_ends_by_itself_and_can_be_prolonged() {
    with_set("a_ban_ends_by_itself", |net, mut set| {
        let (peer, to) = (net.a.udp("10.1.0.2:5060"), net.sbc.udp("10.1.0.1:5060"));
        let target = BanTarget::host(ip("10.1.0.2"));
        let begun = Instant::now();
        set.ban(&[ban(target, Duration::from_millis(300))]).expect("ban");
        set.ban(&[ban(target, Duration::from_millis(700))]).expect("prolong");
        while !arrives(&peer, &to) {
            assert!(begun.elapsed() < Duration::from_secs(5), "the ban never ends");
            std::thread::yield_now();
        }
        let lasted = begun.elapsed();
        assert!(lasted >= Duration::from_millis(650), "ended after {lasted:?}");
        while !set.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(5), "the set never forgets");
            std::thread::yield_now();
        }
    });
}

#[test]
fn prefixes_nest() {
    with_set("prefixes_nest", |net, mut set| {
        let (peer, to) = (net.a.udp("10.1.0.2:5060"), net.sbc.udp("10.1.0.1:5060"));
        let narrow = BanTarget::prefix(ip("10.1.0.77"), 24);
        let wide = BanTarget::prefix(ip("10.1.0.0"), 16);
        let inner = BanTarget::prefix(ip("10.1.0.2"), 31);
        set.ban(&[ban(narrow, LONG)]).expect("ban");
        assert!(!arrives(&peer, &to));
        set.ban(&[ban(wide, LONG), ban(inner, LONG)]).expect("a wider and a narrower one");
        assert!(!arrives(&peer, &to));
        set.lift(&[wide]).expect("lift");
        assert!(!arrives(&peer, &to), "the narrower ban comes out of its shadow");
        set.lift(&[narrow]).expect("lift");
        assert!(!arrives(&peer, &to), "and the narrowest");
        set.lift(&[inner]).expect("lift");
        assert!(reaches(&peer, &to));
        let all = BanTarget::prefix(ip("0.0.0.0"), 0);
        assert!(matches!(set.ban(&[ban(all, LONG)]), Err(BanError::TooWide)));
        let last = BanTarget::prefix(ip("255.255.255.255"), 24);
        set.ban(&[ban(last, LONG)]).expect("a prefix that ends where addresses end");
        let six = BanTarget::prefix(ip("2001:db8::"), 32);
        set.ban(&[ban(six, LONG)]).expect("an IPv6 prefix");
    });
}

#[test]
fn bans_outlive_a_flushed_ruleset_and_a_device() {
    with_set("bans_outlive_a_flushed_ruleset", |net, mut set| {
        let target = BanTarget::host(ip("10.1.0.2"));
        set.ban(&[ban(target, LONG)]).expect("ban");
        net.sbc.cmd("nft", &["flush", "ruleset"]);
        let (peer, to) = (net.a.udp("10.1.0.2:5060"), net.sbc.udp("10.1.0.1:5060"));
        assert!(reaches(&peer, &to));
        let begun = Instant::now();
        while arrives(&peer, &to) {
            assert!(begun.elapsed() < Duration::from_secs(5), "the table never came back");
            set.poll().expect("poll");
        }
        drop((peer, to));
        net.sbc.ip("link del sa\n");
        set.poll().expect("poll");
        net.link("sa", 1, &net.a);
        set.poll().expect("poll");
        let (peer, to) = (net.a.udp("10.1.0.2:5060"), net.sbc.udp("10.1.0.1:5060"));
        assert!(!arrives(&peer, &to), "the device is attached again");
        drop(set);
        assert!(reaches(&peer, &to), "nothing stays behind");
    });
}

#[test]
fn a_hundred_thousand_bans_and_no_more() {
    with_set("a_hundred_thousand_bans", |net, mut set| {
        let target = |n: u32| BanTarget::host(IpAddr::V4((0x0b00_0000 + n).into()));
        let bans: Vec<Ban> = (0..100_000).map(|n| ban(target(n), LONG)).collect();
        set.ban(&bans).expect("a hundred thousand");
        assert_eq!(set.len(), 100_000);
        assert!(matches!(set.ban(&[ban(target(100_000), LONG)]), Err(BanError::Full)));
        let (peer, to) = (net.a.udp("10.1.0.2:5060"), net.sbc.udp("10.1.0.1:5060"));
        assert!(reaches(&peer, &to));
    });
}

/// Polls `done` until it holds.
fn soon(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(5), "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn the_thread_bans_lists_replaces_and_cleans_up() {
    if !available("the_thread_bans_lists_replaces_and_cleans_up") {
        return;
    }
    let net = Net::new();
    let bans = net.sbc.run(|| Bans::start(BanConfig::default()));
    assert!(bans.status().kernel, "{}", bans.status().reason);
    let (peer, to) = (net.a.udp("10.1.0.2:5060"), net.sbc.udp("10.1.0.1:5060"));
    assert!(reaches(&peer, &to));
    let chains = || net.sbc.cmd("nft", &["list", "chains", "netdev"]);
    assert!(!chains().contains("in_"), "nobody is banned: no packet is looked at");
    let (one, wide) = (BanTarget::host(ip("10.1.0.2")), BanTarget::prefix(ip("10.9.0.0"), 16));
    let all = BanTarget::prefix(ip("0.0.0.0"), 0);
    bans.ban(vec![ban(one, LONG), ban(all, LONG), ban(wide, LONG)]).expect("taken");
    let listed = |bans: &Bans| {
        let mut targets: Vec<_> = bans.list().expect("listed").iter().map(|b| b.target).collect();
        targets.sort();
        targets
    };
    assert_eq!(listed(&bans), [one, wide], "a bad ban spoils no other");
    assert!(bans.list().expect("listed").iter().all(|b| b.lasts <= LONG && !b.lasts.is_zero()));
    assert!(!arrives(&peer, &to));
    soon("the drop is counted", || bans.status().dropped >= 1);
    assert_eq!((bans.status().bans, bans.status().refused), (2, 1));
    bans.replace(vec![ban(wide, LONG)]).expect("taken");
    assert_eq!(listed(&bans), [wide]);
    assert!(reaches(&peer, &to));
    let dropped = bans.status().dropped;
    bans.replace(Vec::new()).expect("taken");
    assert_eq!(listed(&bans), []);
    assert!(!chains().contains("in_"), "the chains go with the last ban");
    bans.ban(vec![ban(one, Duration::from_millis(200))]).expect("taken");
    assert_eq!(listed(&bans), [one]);
    soon("the ban ends", || arrives(&peer, &to));
    soon("the chains go with the last ban", || !chains().contains("in_"));
    assert!(bans.status().dropped >= dropped, "the count never runs back");
    bans.lift(vec![one]).expect("lifting what is not banned is no error");
    drop(bans);
    assert!(!net.sbc.cmd("nft", &["list", "tables"]).contains("sbc_ban"));
}

#[test]
fn without_the_capability_bans_stay_in_userspace() {
    let refused = std::thread::spawn(|| {
        crate::changes::drop_capabilities();
        let bans = Bans::start(BanConfig::default());
        (bans.status(), bans.ban(vec![ban(BanTarget::host(ip("10.1.0.2")), LONG)]))
    });
    let (status, taken) = refused.join().expect("thread");
    assert!(!status.kernel && status.reason.contains("not permitted"), "{status:?}");
    assert_eq!(taken, Err(NotTaken::NoKernel));
}
