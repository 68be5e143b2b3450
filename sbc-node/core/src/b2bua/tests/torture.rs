//! What a whole shard does with the messages of RFC 4475 and RFC 5118 when a trunk sends them: what
//! the sender is answered, and what goes on to the other side. How they parse is
//! `tests/torture.rs` of the crate.

use super::users;
use super::world::*;
use crate::core::Input;
use crate::sip::{HeaderName, StartLine};

fn load(rfc: &str, name: &str) -> bytes::Bytes {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    std::fs::read(format!("{dir}/{rfc}/{name}.dat")).unwrap().into()
}

/// What comes of a message of `who`: the last status that it hears, and the method that another side
/// does; nothing is `-`.
fn outcome(settings: Settings, who: Who, rfc: &str, name: &str) -> String {
    let mut w = settings.begin();
    w.input(Input::Message { flow: who.flow(), data: load(rfc, name) });
    let answered = w.all(who).last().and_then(|m| m.status()).map(|s| s.to_string());
    let others = [Who::A, Who::B, Who::C].map(|who| w.all(who)).concat();
    let sent = others.iter().find_map(|m| match m.start_line() {
        StartLine::Request { method, .. } => Some(method.to_string()),
        StartLine::Response { .. } => None,
    });
    format!("{} {}", answered.as_deref().unwrap_or("-"), sent.as_deref().unwrap_or("-"))
}

fn check(rfc: &str, table: &[(&str, &str, &str)]) {
    let mut wrong = Vec::new();
    for (section, name, expected) in table {
        let found = outcome(Settings::new(), Who::A, rfc, name);
        if found != *expected {
            wrong.push(format!("{section} {name}: {found}, expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let dir = format!("{}/tests/data/{rfc}", env!("CARGO_MANIFEST_DIR"));
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), table.len(), "each message is here");
}

#[test]
fn rfc4475_what_a_trunk_hears_and_what_goes_on() {
    check(
        "rfc4475",
        &[
            // It has a To tag, and no dialog of ours.
            ("3.1.1.1", "wsinv", "481 -"),
            ("3.1.1.2", "intmeth", "501 -"),
            ("3.1.1.3", "esc01", "- INVITE"),
            // Nobody registers at a trunk.
            ("3.1.1.4", "escnull", "405 -"),
            ("3.1.1.5", "esc02", "501 -"),
            ("3.1.1.6", "lwsdisp", "200 -"),
            ("3.1.1.7", "longreq", "- INVITE"),
            ("3.1.1.8", "dblreq", "405 -"),
            ("3.1.1.9", "semiuri", "200 -"),
            ("3.1.1.10", "transports", "200 -"),
            ("3.1.1.11", "mpart01", "- MESSAGE"),
            ("3.1.1.12", "unreason", "- -"),
            ("3.1.1.13", "noreason", "- -"),
            ("3.1.2.1", "badinv01", "400 -"),
            ("3.1.2.2", "clerr", "400 -"),
            ("3.1.2.3", "ncl", "400 -"),
            ("3.1.2.4", "scalar02", "400 -"),
            ("3.1.2.5", "scalarlg", "- -"),
            ("3.1.2.6", "quotbal", "400 -"),
            ("3.1.2.7", "ltgtruri", "400 -"),
            ("3.1.2.8", "lwsruri", "400 -"),
            ("3.1.2.9", "lwsstart", "400 -"),
            ("3.1.2.10", "trws", "400 -"),
            ("3.1.2.11", "escruri", "400 -"),
            ("3.1.2.12", "baddate", "- INVITE"),
            ("3.1.2.13", "regbadct", "400 -"),
            ("3.1.2.14", "badaspec", "200 -"),
            ("3.1.2.15", "baddn", "400 -"),
            ("3.1.2.16", "badvers", "505 -"),
            ("3.1.2.17", "mismatch01", "400 -"),
            ("3.1.2.18", "mismatch02", "400 -"),
            ("3.1.2.19", "bigcode", "- -"),
            ("3.2.1", "badbranch", "200 -"),
            ("3.3.1", "insuf", "400 -"),
            ("3.3.2", "unkscm", "416 -"),
            ("3.3.3", "novelsc", "416 -"),
            ("3.3.4", "unksm2", "405 -"),
            ("3.3.5", "bext01", "420 -"),
            ("3.3.6", "invut", "415 -"),
            ("3.3.7", "regaut01", "405 -"),
            ("3.3.8", "multi01", "400 -"),
            ("3.3.9", "mcl01", "400 -"),
            ("3.3.10", "bcast", "- -"),
            // OPTIONS asks us: it has arrived.
            ("3.3.11", "zeromf", "200 -"),
            ("3.3.12", "cparam01", "405 -"),
            ("3.3.13", "cparam02", "405 -"),
            ("3.3.14", "regescrt", "405 -"),
            // What is acceptable is the other side's to say.
            ("3.3.15", "sdp01", "- INVITE"),
            ("3.4.1", "inv2543", "- INVITE"),
        ],
    );
}

#[test]
fn rfc5118_what_a_trunk_hears_and_what_goes_on() {
    check(
        "rfc5118",
        &[
            ("4.1", "ipv6-good", "405 -"),
            ("4.2", "ipv6-bad", "400 -"),
            ("4.3", "port-ambiguous", "405 -"),
            ("4.4", "port-unambiguous", "405 -"),
            ("4.5", "via-received-param-with-delim", "481 -"),
            ("4.5", "via-received-param-no-delim", "200 -"),
            ("4.6", "ipv6-in-sdp", "- INVITE"),
            ("4.7", "mult-ip-in-header", "481 -"),
            ("4.8", "mult-ip-in-sdp", "- INVITE"),
            ("4.9", "ipv4-mapped-ipv6", "- INVITE"),
            ("4.10", "ipv6-bug-abnf-3-colons", "200 -"),
            ("4.10", "ipv6-correct-abnf-2-colons", "200 -"),
        ],
    );
}

#[test]
fn rfc4475_what_a_phone_that_registers_hears() {
    for (section, name, auth, expected) in [
        ("3.1.1.4", "escnull", false, "200 -"),
        ("3.1.1.8", "dblreq", false, "200 -"),
        ("3.1.2.13", "regbadct", false, "400 -"),
        ("3.3.4", "unksm2", false, "416 -"),
        // A scheme that we do not know is no credential: we say which we know.
        ("3.3.7", "regaut01", true, "401 -"),
        ("3.3.12", "cparam01", false, "200 -"),
        ("3.3.13", "cparam02", false, "200 -"),
        ("3.3.14", "regescrt", false, "200 -"),
    ] {
        let found = outcome(users::settings(auth), Who::B, "rfc4475", name);
        assert_eq!(found, expected, "{section} {name}");
    }
}

#[test]
fn rfc4475_3_3_5_every_unknown_option_is_named() {
    let mut w = World::new();
    w.input(Input::Message { flow: Who::A.flow(), data: load("rfc4475", "bext01") });
    let refused = w.expect(Who::A, "420");
    let named = Some("nothingSupportsThis, nothingSupportsThisEither");
    assert_eq!(refused.header(HeaderName::Unsupported), named);
}

#[test]
fn rfc4475_3_4_1_a_caller_of_rfc2543_is_reached_by_its_from() {
    let mut w = World::new();
    w.input(Input::Message { flow: Who::A.flow(), data: load("rfc4475", "inv2543") });
    let invite = w.expect(Who::B, "INVITE");
    w.answer(Who::B, &invite, 200, "bobtag", &super::basic::sdp(super::basic::SDP_B));
    let ok = w.expect(Who::A, "200");
    assert_eq!(ok.header(HeaderName::CallId), Some("inv2543.1717@ift.client.example.com"));
    let (_, host) = w.resolves.pop_front().unwrap();
    assert_eq!(host, "ss1.example.com", "a strict route goes before the From");
}
