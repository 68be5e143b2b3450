//! Who is let in at all: countries, lists of bans, addresses that a description may not name; and what
//! a reload changes of it.

use std::path::Path;

use sbc_tests::can_make_namespaces;
use sbc_tests::mmdb::mmdb;
use sbc_tests::net::{exchange, ip};

use crate::bed::{Bed, V4};

/// Whether an OPTIONS from an address on the outside is answered.
fn answered(bed: &Bed, address: &str, n: u32) -> bool {
    let options = format!(
        "OPTIONS sip:203.0.113.5 SIP/2.0\r\nVia: SIP/2.0/UDP {address}:5066;branch=z9hG4bKo{n}\r\n\
         From: <sip:a@example.net>;tag=1\r\nTo: <sip:a@example.net>\r\nMax-Forwards: 70\r\n\
         Call-ID: o{n}-{address}\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
    );
    let to = format!("{}:5060", bed.plan.advertised);
    let from = format!("{address}:5066");
    !exchange(&bed.net.ns("out"), &from, &to, options.as_bytes()).is_empty()
}

fn country_file(dir: &Path, of_61: &str) {
    let nets = [("10.1.0.61/32", of_61), ("10.1.0.62/32", "DE")];
    std::fs::write(dir.join("countries.mmdb"), mmdb("GeoLite2-Country", &nets)).expect("write");
}

#[test]
fn countries_and_lists_of_bans_decide_before_parsing_and_follow_a_reload() {
    if !can_make_namespaces("countries") {
        return;
    }
    let bed = Bed::prepared(V4, "udp", |dir, config| {
        country_file(dir, "FR");
        std::fs::write(dir.join("bans.txt"), "10.1.0.64 ; feed\n10.1.0.68\n").expect("write");
        let guard = "\n[guard]\ncountry-file = \"@DIR@/countries.mmdb\"\n\
             ban-lists = \"@DIR@/bans.txt\"\ntrusted = [\"10.1.0.68\"]\n";
        config.replacen("name = \"access\"", "name = \"access\"\nallow-countries = [\"DE\"]", 1)
            + guard
    });
    for host in 61..=68 {
        ip(&format!("-n {} addr add 10.1.0.{host}/24 dev to-sbc", bed.net.ns("out")));
    }
    assert!(!answered(&bed, "10.1.0.61", 1), "a country that is not on the list");
    assert!(answered(&bed, "10.1.0.62", 1));
    assert!(answered(&bed, "10.1.0.63", 1), "not known, and that is allowed");
    assert!(!answered(&bed, "10.1.0.64", 1), "banned by the list");
    assert!(answered(&bed, "10.1.0.68", 1), "banned by the list, but trusted");
    let dropped = |reason: &str| bed.node().metric("sbc_guard_dropped_messages", reason);
    assert_eq!(dropped("\"access\"").max(dropped("access")), 1);
    let bans = bed.node().ctl("bans list 10.1.0.64");
    assert_eq!(bans["bans"][0]["by"], "bans.txt", "{bans}");

    // The file is read again by a reload; a bad one changes nothing.
    let folder = bed.dir.path().join("sbc");
    country_file(&folder, "DE");
    bed.node().order("config reload");
    assert!(answered(&bed, "10.1.0.61", 2));
    std::fs::write(folder.join("countries.mmdb"), "not a database").expect("write");
    assert!(bed.node().try_ctl("config reload").is_none(), "a bad file is refused");
    assert!(answered(&bed, "10.1.0.61", 3) && answered(&bed, "10.1.0.62", 3));
    bed.finish();
}

/// The list of a trunk is about its own sources, which are trusted otherwise; it is asked after parsing
/// and before anything is answered.
#[test]
fn the_countries_of_a_trunk_are_asked_of_its_own_sources() {
    if !can_make_namespaces("countries of a trunk") {
        return;
    }
    let bed = Bed::prepared(V4, "udp", |dir, config| {
        country_file(dir, "FR");
        let trunk = "name = \"outside\"";
        let listed = format!(
            "{trunk}\nsources = [\"10.1.0.10\", \"10.1.0.61\", \"10.1.0.62\"]\n\
             deny-countries = [\"FR\"]"
        );
        config.replacen(trunk, &listed, 1)
            + "\n[guard]\ncountry-file = \"@DIR@/countries.mmdb\"\n\
               \n[[guard.limit]]\nby = \"trunk\"\nmethods = \"OPTIONS\"\nper-second = 0.01\n\
               burst = 5\nover = \"silence\"\n"
    });
    for host in 61..=63 {
        ip(&format!("-n {} addr add 10.1.0.{host}/24 dev to-sbc", bed.net.ns("out")));
    }
    let dropped = |reason: &str| bed.node().metric("sbc_guard_dropped_messages", reason);
    assert!(!answered(&bed, "10.1.0.61", 1), "a source of the trunk in a country it denies");
    assert_eq!(dropped("access"), 1);
    assert!(answered(&bed, "10.1.0.62", 1), "another country");
    assert!(answered(&bed, "10.1.0.10", 1), "no country is known");
    assert!(answered(&bed, "10.1.0.63", 1), "no source of the trunk: its list is not about it");
    // The trunk's rate: its sources are trusted and share it.
    let more = (2..=8).filter(|n| answered(&bed, "10.1.0.62", *n)).count();
    assert_eq!(more, 3, "five in all");
    assert!(answered(&bed, "10.1.0.63", 2), "a stranger is not of the trunk");
    bed.finish();
}

#[test]
fn descriptions_that_name_forbidden_addresses_are_488() {
    if !can_make_namespaces("forbidden addresses") {
        return;
    }
    let bed = Bed::new(V4, "");
    let to = format!("{}:5060", bed.plan.advertised);
    let status = |n: usize, address: &str| {
        let family = if address.contains(':') { 6 } else { 4 };
        let port = 5100 + n;
        let sdp = format!(
            "v=0\r\no=- 1 1 IN IP4 10.1.0.10\r\ns=-\r\nc=IN IP{family} {address}\r\nt=0 0\r\n\
             m=audio 4000 RTP/AVP 8\r\n"
        );
        let invite = format!(
            "INVITE sip:1234@203.0.113.5 SIP/2.0\r\n\
             Via: SIP/2.0/UDP 10.1.0.10:{port};branch=z9hG4bKsdp{n}\r\n\
             From: <sip:a@example.net>;tag={n}\r\nTo: <sip:1234@example.net>\r\n\
             Max-Forwards: 70\r\nCall-ID: sdp{n}\r\nCSeq: 1 INVITE\r\n\
             Contact: <sip:a@10.1.0.10:{port}>\r\nContent-Type: application/sdp\r\n\
             Content-Length: {}\r\n\r\n{sdp}",
            sdp.len()
        );
        let from = format!("10.1.0.10:{port}");
        let answer = exchange(&bed.net.ns("out"), &from, &to, invite.as_bytes());
        String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
    };
    for (n, address) in [
        "127.0.0.1",
        "::1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        // Our own: the outside's, the inside's.
        "10.1.0.1",
        "10.2.0.1",
    ]
    .into_iter()
    .enumerate()
    {
        let status = status(n, address);
        assert!(status.starts_with("SIP/2.0 488"), "{address}: {status:?}");
    }
    bed.finish();
}
