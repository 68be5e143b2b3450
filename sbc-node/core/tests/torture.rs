//! Every message of RFC 4475 and RFC 5118, each with the outcome that the RFC describes.
//!
//! A message that is accepted is written back through the writer and must mean the same.

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use sbc_core::sip::value::FromValue;
use sbc_core::sip::{self, Builder, HeaderName, Limits, Message, Method, StartLine, Uri};

/// What happens to a message before any policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Goes on, and survives being written back.
    Accepted,
    /// Answered with this status.
    Answered(u16),
    /// A response that must not be acted upon.
    Dropped,
}
use Outcome::{Accepted, Answered, Dropped};

/// One test for each message, named by its section, and the names of all files.
macro_rules! messages {
    ($all:ident, $rfc:literal: $($(#[$note:meta])* $test:ident: $name:literal, $outcome:expr;)*) => {
        const $all: &[&str] = &[$($name),*];
        $($(#[$note])* #[test] fn $test() { check($rfc, $name, $outcome); })*
    };
}

messages! { RFC4475, "rfc4475":
    // §3.1.1 valid messages
    rfc4475_3_1_1_1_wsinv: "wsinv", Accepted;
    rfc4475_3_1_1_2_intmeth: "intmeth", Accepted;
    rfc4475_3_1_1_3_esc01: "esc01", Accepted;
    rfc4475_3_1_1_4_escnull: "escnull", Accepted;
    rfc4475_3_1_1_5_esc02: "esc02", Accepted;
    rfc4475_3_1_1_6_lwsdisp: "lwsdisp", Accepted;
    rfc4475_3_1_1_7_longreq: "longreq", Accepted;
    rfc4475_3_1_1_8_dblreq: "dblreq", Accepted;
    rfc4475_3_1_1_9_semiuri: "semiuri", Accepted;
    rfc4475_3_1_1_10_transports: "transports", Accepted;
    rfc4475_3_1_1_11_mpart01: "mpart01", Accepted;
    rfc4475_3_1_1_12_unreason: "unreason", Accepted;
    rfc4475_3_1_1_13_noreason: "noreason", Accepted;
    // §3.1.2 invalid messages
    rfc4475_3_1_2_1_badinv01: "badinv01", Answered(400);
    rfc4475_3_1_2_2_clerr: "clerr", Answered(400);
    rfc4475_3_1_2_3_ncl: "ncl", Answered(400);
    rfc4475_3_1_2_4_scalar02: "scalar02", Answered(400);
    rfc4475_3_1_2_5_scalarlg: "scalarlg", Dropped;
    rfc4475_3_1_2_6_quotbal: "quotbal", Answered(400);
    rfc4475_3_1_2_7_ltgtruri: "ltgtruri", Answered(400);
    rfc4475_3_1_2_8_lwsruri: "lwsruri", Answered(400);
    rfc4475_3_1_2_9_lwsstart: "lwsstart", Answered(400);
    rfc4475_3_1_2_10_trws: "trws", Answered(400);
    rfc4475_3_1_2_11_escruri: "escruri", Answered(400);
    // A Date that nobody looks at may be wrong (§3.1.2.12).
    rfc4475_3_1_2_12_baddate: "baddate", Accepted;
    rfc4475_3_1_2_13_regbadct: "regbadct", Answered(400);
    // Blanks inside <> may be ignored (§3.1.2.14).
    rfc4475_3_1_2_14_badaspec: "badaspec", Accepted;
    rfc4475_3_1_2_15_baddn: "baddn", Answered(400);
    rfc4475_3_1_2_16_badvers: "badvers", Answered(505);
    rfc4475_3_1_2_17_mismatch01: "mismatch01", Answered(400);
    rfc4475_3_1_2_18_mismatch02: "mismatch02", Answered(400);
    rfc4475_3_1_2_19_bigcode: "bigcode", Dropped;
    // §3.2 transaction layer: the branch is no RFC 3261 one
    rfc4475_3_2_1_badbranch: "badbranch", Accepted;
    // §3.3 application layer
    rfc4475_3_3_1_insuf: "insuf", Answered(400);
    rfc4475_3_3_2_unkscm: "unkscm", Answered(416);
    rfc4475_3_3_3_novelsc: "novelsc", Answered(416);
    rfc4475_3_3_4_unksm2: "unksm2", Accepted;
    rfc4475_3_3_5_bext01: "bext01", Accepted;
    rfc4475_3_3_6_invut: "invut", Accepted;
    rfc4475_3_3_7_regaut01: "regaut01", Accepted;
    rfc4475_3_3_8_multi01: "multi01", Answered(400);
    rfc4475_3_3_9_mcl01: "mcl01", Answered(400);
    rfc4475_3_3_10_bcast: "bcast", Accepted;
    rfc4475_3_3_11_zeromf: "zeromf", Accepted;
    rfc4475_3_3_12_cparam01: "cparam01", Accepted;
    rfc4475_3_3_13_cparam02: "cparam02", Accepted;
    rfc4475_3_3_14_regescrt: "regescrt", Accepted;
    rfc4475_3_3_15_sdp01: "sdp01", Accepted;
    rfc4475_3_4_1_inv2543: "inv2543", Accepted;
}

messages! { RFC5118, "rfc5118":
    rfc5118_4_1_ipv6_good: "ipv6-good", Accepted;
    rfc5118_4_2_ipv6_bad: "ipv6-bad", Answered(400);
    rfc5118_4_3_port_ambiguous: "port-ambiguous", Accepted;
    rfc5118_4_4_port_unambiguous: "port-unambiguous", Accepted;
    rfc5118_4_5_via_received_param_with_delim: "via-received-param-with-delim", Accepted;
    rfc5118_4_5_via_received_param_no_delim: "via-received-param-no-delim", Accepted;
    rfc5118_4_6_ipv6_in_sdp: "ipv6-in-sdp", Accepted;
    rfc5118_4_7_mult_ip_in_header: "mult-ip-in-header", Accepted;
    rfc5118_4_8_mult_ip_in_sdp: "mult-ip-in-sdp", Accepted;
    rfc5118_4_9_ipv4_mapped_ipv6: "ipv4-mapped-ipv6", Accepted;
    rfc5118_4_10_ipv6_bug_abnf_3_colons: "ipv6-bug-abnf-3-colons", Accepted;
    rfc5118_4_10_ipv6_correct_abnf_2_colons: "ipv6-correct-abnf-2-colons", Accepted;
}

fn load(rfc: &str, name: &str) -> Bytes {
    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "tests", "data", rfc, &format!("{name}.dat")].iter().collect();
    Bytes::from(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

fn message(rfc: &str, name: &str) -> Message {
    sip::parse(load(rfc, name), &Limits::default()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn source() -> SocketAddr {
    "198.51.100.7:5070".parse().expect("address")
}

/// What the edge does with a datagram: the outcome, and the answer that it gets.
fn receive(data: Bytes) -> (Outcome, Option<Bytes>) {
    let limits = Limits::default();
    match sip::parse(data.clone(), &limits) {
        Err(error) => match sip::malformed_response(data, &error, &limits, source()) {
            Some(answer) => (Answered(error.kind.status()), Some(answer)),
            None => (Dropped, None),
        },
        Ok(message) => match sip::validate(&message) {
            Ok(()) => (Accepted, None),
            Err(_) if !message.is_request() => (Dropped, None),
            Err(reject) => {
                let answer = sip::response(
                    &message,
                    reject.status,
                    &reject.reason,
                    Some("t"),
                    Some(source()),
                );
                (Answered(reject.status), Some(answer.finish()))
            }
        },
    }
}

/// Writes a message anew from its parts.
fn rewrite(message: &Message) -> Bytes {
    let mut out = match message.start_line() {
        StartLine::Request { method, uri } => Builder::request(method, uri),
        StartLine::Response { status, reason } => Builder::response(status, reason),
    };
    let written = [HeaderName::ContentLength, HeaderName::ContentType];
    for header in message.headers().filter(|h| !written.contains(&h.id)) {
        out.line(header);
    }
    match message.header(HeaderName::ContentType) {
        Some(kind) => out.finish_with(kind, message.body()),
        None => out.finish(),
    }
}

fn same_meaning(name: &str, a: &Message, b: &Message) {
    match (a.start_line(), b.start_line()) {
        // Only an empty phrase is filled in.
        (StartLine::Response { status: x, reason: "" }, StartLine::Response { status: y, .. }) => {
            assert_eq!(x, y, "{name}");
        }
        (x, y) => assert_eq!(x, y, "{name}"),
    }
    let headers = |m: &Message| {
        let mut all: Vec<_> = m
            .headers()
            .filter(|h| h.id != HeaderName::ContentLength)
            .map(|h| (h.id, h.name.to_ascii_lowercase(), h.value.to_owned()))
            .map(|(id, name, value)| {
                (id, if id == HeaderName::Other { name } else { String::new() }, value)
            })
            .collect();
        // Content-Type moves to the end.
        all.sort_by_key(|(id, _, _)| *id == HeaderName::ContentType);
        all
    };
    assert_eq!(headers(a), headers(b), "{name}");
    if a.has(HeaderName::ContentType) {
        assert_eq!(a.body(), b.body(), "{name}");
    }
    assert_eq!(a.via().ok(), b.via().ok(), "{name}");
    assert_eq!(a.from().ok(), b.from().ok(), "{name}");
    assert_eq!(a.to().ok(), b.to().ok(), "{name}");
    assert_eq!(a.cseq().ok(), b.cseq().ok(), "{name}");
}

fn check(rfc: &str, name: &str, expected: Outcome) {
    let (outcome, answer) = receive(load(rfc, name));
    assert_eq!(outcome, expected, "{name}");
    match outcome {
        Accepted => {
            let original = message(rfc, name);
            let again = sip::parse(rewrite(&original), &Limits::default()).expect(name);
            assert_eq!(sip::validate(&again), Ok(()), "{name}");
            same_meaning(name, &original, &again);
        }
        Answered(status) => {
            let answer = sip::parse(answer.expect(name), &Limits::default()).expect(name);
            assert_eq!(answer.status(), Some(status), "{name}");
            assert!(
                matches!(answer.start_line(), StartLine::Response { reason, .. } if !reason.is_empty())
            );
            assert!(answer.via().is_ok(), "{name}: the answer can be sent back");
        }
        Dropped => {}
    }
}

#[test]
fn each_message_of_both_rfcs_has_its_outcome() {
    for (rfc, names) in [("rfc4475", RFC4475), ("rfc5118", RFC5118)] {
        let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "data", rfc].iter().collect();
        let files = std::fs::read_dir(path).expect("data");
        let mut files: Vec<String> = files
            .filter_map(|f| Some(f.ok()?.path().file_stem()?.to_string_lossy().into_owned()))
            .collect();
        let mut names = names.to_vec();
        files.sort_unstable();
        names.sort_unstable();
        assert_eq!(files, names);
    }
}

#[test]
fn rfc4475_3_1_1_1_what_a_short_tortuous_invite_says() {
    let m = message("rfc4475", "wsinv");
    assert_eq!(m.request_uri_str(), "sip:vivekg@chair-dnrc.example.com;unknownparam");
    assert_eq!(m.to_tag(), Some("1918181833n"));
    let from = m.from().expect("from");
    assert_eq!((&*from.display_name(), from.tag()), ("J Rosenberg \\\"", Some("98asjd8")));
    assert_eq!(m.max_forwards(), Ok(Some(68)));
    assert_eq!(m.cseq().map(|c| (c.number, c.method)), Ok((9, "INVITE")));
    let vias: Vec<_> =
        m.all::<sip::Via<'_>>(HeaderName::Via).collect::<Result<_, _>>().expect("vias");
    let seen: Vec<_> = vias.iter().map(|v| (v.transport, v.host, v.branch())).collect();
    assert_eq!(
        seen,
        [
            ("UDP", "192.0.2.2", "390skdjuw"),
            ("TCP", "spindle.example.com", "z9hG4bK9ikj8"),
            ("UDP", "192.168.255.111", "z9hG4bK30239"),
        ]
    );
    assert_eq!(m.header(HeaderName::Subject), Some(""));
    assert_eq!(m.other("newfangledheader"), Some("newfangled value   continued newfangled value"));
    assert_eq!(m.other("UnknownHeaderWithUnusualValue"), Some(";;,,;;,;"));
    let contact = m.contact().expect("contact").expect("one");
    assert_eq!(&*contact.display_name(), "Quoted string \"\"");
    assert_eq!(contact.params.get("newparam"), Some("newvalue"));
    assert_eq!(contact.params.get("q"), Some("0.33"));
    assert_eq!(m.body().len(), 150);
}

#[test]
fn rfc4475_3_1_1_2_what_a_wide_range_of_characters_says() {
    let m = message("rfc4475", "intmeth");
    assert_eq!(
        m.method(),
        Some(&Method::Other("!interesting-Method0123456789_*+`.%indeed'~".into()))
    );
    let uri = m.request_uri().expect("uri");
    assert_eq!(uri.user(), Some("1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*"));
    assert_eq!(uri.password(), Some("&it+has=1,weird!*pas$wo~d_too.(doesn't-it)"));
    assert_eq!(&*m.to().expect("to").display_name(), "BEL:\u{7} NUL:\0 DEL:\u{7f}");
    assert_eq!(m.from_tag(), "_token~1'+`*%!-.");
}

#[test]
fn rfc4475_3_1_1_3_to_5_escapes() {
    let m = message("rfc4475", "esc01");
    let uri = m.request_uri().expect("uri");
    assert_eq!((&*uri.user_decoded(), uri.host()), ("sips:user@example.com", "example.net"));
    assert_eq!(&*m.to().map(|t| t.uri().expect("uri")).expect("to").user_decoded(), "user");
    let m = message("rfc4475", "escnull");
    assert_eq!(&*m.to().expect("to").uri().expect("uri").user_decoded(), "null-\0-null");
    assert_eq!(m.values(HeaderName::Contact).count(), 2);
    let m = message("rfc4475", "esc02");
    assert_eq!(m.method().map(Method::as_str), Some("RE%47IST%45R"));
    assert_eq!(m.values(HeaderName::Contact).count(), 2, "C%6Fntact is no Contact");
    assert_eq!(m.other("C%6Fntact"), Some("<sip:alias2@host2.example.com>"));
}

#[test]
fn rfc4475_3_1_1_7_to_13_layout() {
    let m = message("rfc4475", "dblreq");
    assert_eq!(m.method(), Some(&Method::Register));
    assert_eq!(m.body(), b"");
    let m = message("rfc4475", "semiuri");
    assert_eq!(
        m.request_uri().map(|u| u.user_decoded().into_owned()),
        Ok("user;par=u@example.net".into())
    );
    let m = message("rfc4475", "lwsdisp");
    assert_eq!(&*m.from().expect("from").display_name(), "caller");
    let m = message("rfc4475", "mpart01");
    let kind =
        sip::value::ContentType::from_value(m.header(HeaderName::ContentType).expect("type"))
            .expect("type");
    let parts = sip::parse_multipart(&kind, m.body()).expect("parts");
    assert_eq!(parts.len(), 2);
    let m = message("rfc4475", "unreason");
    assert!(
        matches!(m.start_line(), StartLine::Response { status: 200, reason } if reason.starts_with("= 2**3 * 5**2 "))
    );
    let m = message("rfc4475", "transports");
    let transports: Vec<_> =
        m.all::<sip::Via<'_>>(HeaderName::Via).map(|v| v.expect("via").transport).collect();
    assert_eq!(transports, ["UDP", "SCTP", "TLS", "UNKNOWN", "TCP"]);
}

#[test]
fn rfc4475_3_2_and_3_3_facts_that_decide_further_on() {
    assert!(!message("rfc4475", "badbranch").via().expect("via").has_cookie());
    assert_eq!(message("rfc4475", "zeromf").max_forwards(), Ok(Some(0)));
    let m = message("rfc4475", "bext01");
    assert!(m.lists(HeaderName::Require, "nothingSupportsThis"));
    assert!(m.lists(HeaderName::ProxyRequire, "NORdoANYproxiesSUPPORTthis"));
    assert_eq!(
        message("rfc4475", "sdp01").header(HeaderName::Accept),
        Some("text/nobodyKnowsThis")
    );
    let m = message("rfc4475", "regaut01");
    let value = m.header(HeaderName::Authorization).expect("authorization");
    assert_eq!(
        sbc_core::digest::Credentials::parse(value).err(),
        Some(sbc_core::digest::HeaderFault::NotDigest)
    );
    let contact = |name| {
        Uri::parse(message("rfc4475", name).contact().expect("contact").expect("one").uri_str)
    };
    assert!(contact("cparam01").is_ok_and(|u| !u.view().params().has("unknownparam")));
    assert!(contact("cparam02").is_ok_and(|u| u.view().params().has("unknownparam")));
    assert!(contact("regescrt").is_ok_and(|u| u.view().headers().any(|(n, _)| n == "Route")));
    let bcast = message("rfc4475", "bcast");
    assert_eq!(bcast.via().expect("via").ip(), "192.0.2.198".parse().ok());
    let m = message("rfc4475", "inv2543");
    assert_eq!(
        (m.from_tag(), m.via().expect("via").branch(), m.max_forwards()),
        ("", "", Ok(None))
    );
}

#[test]
fn rfc5118_addresses() {
    let m = message("rfc5118", "port-ambiguous");
    let uri = m.request_uri().expect("uri");
    assert_eq!((uri.ip(), uri.port()), ("2001:db8::10:5070".parse().ok(), None));
    let m = message("rfc5118", "port-unambiguous");
    let uri = m.request_uri().expect("uri");
    assert_eq!((uri.ip(), uri.port()), ("2001:db8::10".parse().ok(), Some(5070)));
    for name in ["via-received-param-with-delim", "via-received-param-no-delim"] {
        let m = message("rfc5118", name);
        assert_eq!(m.via().expect("via").received(), "2001:db8::9:255".parse().ok(), "{name}");
    }
    for name in ["ipv6-bug-abnf-3-colons", "ipv6-correct-abnf-2-colons"] {
        let m = message("rfc5118", name);
        assert_eq!(
            m.request_uri().expect("uri").ip(),
            "2001:db8::192.0.2.1".parse().ok(),
            "{name}"
        );
    }
    let m = message("rfc5118", "ipv6-in-sdp");
    let sdp = sbc_core::sdp::Sdp::parse(m.body()).expect("sdp");
    let rtp: Vec<_> = sdp.streams().map(|s| s.rtp.map(|a| a.ip())).collect();
    assert_eq!(rtp, ["2001:db8::20".parse().ok(), "2001:db8::20".parse().ok()]);
    let m = message("rfc5118", "mult-ip-in-sdp");
    let sdp = sbc_core::sdp::Sdp::parse(m.body()).expect("sdp");
    let rtp: Vec<_> = sdp.streams().map(|s| s.rtp.map(|a| a.is_ipv6())).collect();
    assert_eq!(rtp, [Some(false), Some(true)]);
}
