//! Packets of RADIUS against themselves and against what others write.

use proptest::prelude::*;
use sbc_core::registrar::AskUser;

use super::fuzz::{answer, ask};
use super::*;

fn form(dialect: Dialect) -> Form {
    Form { dialect, nas_identifier: "sbc".to_owned(), service_type: 15, proved_answers: true }
}

fn request(dialect: Dialect) -> Request {
    super::fuzz::request(dialect).unwrap()
}

#[test]
fn rfc2104_hmac_md5() {
    let hex = |bytes: [u8; 16]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hex(hmac(&[0x0b; 16], &[b"Hi ", b"There"])), "9294727a3638bb1c13f48ef8158bfc9d");
    // A key longer than a block (RFC 2202, case 6).
    let text = b"Test Using Larger Than Block-Size Key - Hash Key First";
    assert_eq!(hex(hmac(&[0xaa; 80], &[text])), "6b1ab7fe4bd7bf8f0b62e6ce61b9d0cd");
}

#[test]
fn an_access_request_holds_the_digest_in_either_dialect() {
    let plain = request(Dialect::Rfc5090);
    assert_eq!(plain.bytes[..2], [1, 7]);
    assert_eq!(
        usize::from(u16::from_be_bytes([plain.bytes[2], plain.bytes[3]])),
        plain.bytes.len()
    );
    let all = read(&plain.bytes[HEADER..]).unwrap();
    assert_eq!(all[0].kind, 80, "the first of all");
    let text = |kind: u8| {
        let found = all.iter().find(|a| a.kind == kind).unwrap();
        std::str::from_utf8(found.value).unwrap()
    };
    let told: Vec<&str> =
        [1, 32, 103, 104, 105, 108, 109, 110, 111, 113, 114, 115].map(text).into();
    let response = "0".repeat(32);
    assert_eq!(
        told,
        [
            "alice",
            "sbc",
            &response,
            "example.com",
            "0123",
            "REGISTER",
            "sip:example.com",
            "auth",
            "MD5",
            "c",
            "00000001",
            "alice"
        ]
    );
    let sterman = request(Dialect::Sterman);
    let all = read(&sterman.bytes[HEADER..]).unwrap();
    let parts: Vec<&[u8]> = all.iter().filter(|a| a.kind == 207).map(|a| a.value).collect();
    assert_eq!(parts.len(), 9);
    assert_eq!(parts[0], b"\x01\x0dexample.com");
    assert_eq!(all.iter().find(|a| a.kind == 206).unwrap().value, response.as_bytes());
}

#[test]
fn what_no_packet_can_carry_is_not_asked() {
    let long = AskUser { uri: "x".repeat(254).into(), ..ask() };
    for dialect in [Dialect::Rfc5090, Dialect::Sterman] {
        assert!(Request::new(&long, &form(dialect), b"s", 0, [0; 16]).is_none());
    }
    let body = AskUser { qop: "auth-int", ..ask() };
    assert!(Request::new(&body, &form(Dialect::Rfc5090), b"s", 0, [0; 16]).is_none());
}

#[test]
fn only_a_proved_answer_to_this_request_counts() {
    let request = request(Dialect::Rfc5090);
    let read = |datagram: &[u8]| request.answer(datagram, b"s3cret", true);
    let mut aors = vec![122, 19];
    aors.extend(b"alice@example.com");
    let accept = answer(2, &request, b"s3cret", &aors, false);
    assert_eq!(read(&accept), Ok(Answer::Accept(vec!["alice@example.com".to_owned()])));
    let padded = [&accept[..], b"padding"].concat();
    assert!(matches!(read(&padded), Ok(Answer::Accept(_))));
    for code in [3, 11] {
        assert_eq!(read(&answer(code, &request, b"s3cret", b"", false)), Ok(Answer::Reject));
    }
    assert_eq!(read(&answer(5, &request, b"s3cret", b"", false)), Err(Fault::Code));
    let other = answer(2, &request, b"another", b"", false);
    assert_eq!(read(&other), Err(Fault::Authenticator));
    let bare = answer(2, &request, b"s3cret", b"", true);
    assert_eq!(read(&bare), Err(Fault::Unproved));
    assert_eq!(request.answer(&bare, b"s3cret", false), Ok(Answer::Accept(Vec::new())));
    let mut another = accept.clone();
    another[1] = 8;
    assert_eq!(read(&another), Err(Fault::Identifier));
    // A Message-Authenticator that is wrong though the rest is right.
    let mut forged = vec![80, 18];
    forged.extend([1; 16]);
    let forged = answer(2, &request, b"s3cret", &forged, true);
    assert_eq!(request.answer(&forged, b"s3cret", false), Err(Fault::Authenticator));
    for cut in 0..accept.len() {
        assert!(read(&accept[..cut]).is_err(), "{cut}");
    }
    for attributes in [&[1u8, 0][..], &[1, 1], &[1], &[1, 3]] {
        let wrong = answer(2, &request, b"s3cret", attributes, true);
        assert_eq!(request.answer(&wrong, b"s3cret", false), Err(Fault::Length));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(request(Dialect::Rfc5090).answer(&bytes, b"s3cret", false).is_err());
    }

    /// Well-formed by its authenticator, with any attributes: read or refused, never worse.
    #[test]
    fn any_attributes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let request = request(Dialect::Rfc5090);
        let datagram = answer(2, &request, b"s3cret", &bytes, true);
        match request.answer(&datagram, b"s3cret", false) {
            Ok(Answer::Accept(_)) => prop_assert!(read(&bytes).is_some()),
            Ok(Answer::Reject) => prop_assert!(false, "a code that was not sent"),
            Err(fault) => prop_assert!(
                matches!(fault, Fault::Length | Fault::Authenticator),
                "{fault}"
            ),
        }
    }

    #[test]
    fn one_bit_more_and_it_is_no_answer(bit in 0usize..8 * 38) {
        let request = request(Dialect::Rfc5090);
        let mut datagram = answer(2, &request, b"s3cret", b"", false);
        datagram[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(request.answer(&datagram, b"s3cret", true).is_err());
    }
}
