//! Entry point for fuzzing the reader of RADIUS answers: feed bytes, panic where a property does not
//! hold.
//!
//! Called by `tests/fuzz.rs` (seeds with damage, on stable) and by the libFuzzer target in
//! `sbc-node/fuzz`. Not for use by the product.

use md5::{Digest as _, Md5};
use sbc_core::digest::Algorithm;
use sbc_core::registrar::AskUser;

use super::{Answer, Dialect, Fault, Form, HEADER, PACKET_MAX, Request, hmac, read};

const SECRET: &[u8] = b"s3cret";

/// The question that requests are made of.
pub(super) fn ask() -> AskUser {
    AskUser {
        name: "alice".into(),
        realm: "example.com".into(),
        method: "REGISTER".into(),
        algorithm: Algorithm::Md5,
        nonce: "0123".into(),
        uri: "sip:example.com".into(),
        qop: "auth",
        nc: "00000001".into(),
        cnonce: "c".into(),
        response: "0".repeat(32).into(),
    }
}

/// The request that answers are for: identifier 7.
pub(super) fn request(dialect: Dialect) -> Option<Request> {
    let nas_identifier = "sbc".to_owned();
    let form = Form { dialect, nas_identifier, service_type: 15, proved_answers: true };
    Request::new(&ask(), &form, SECRET, 7, [9; 16])
}

/// An answer as a server makes it; with a Message-Authenticator behind the attributes unless `bare`.
pub(super) fn answer(
    code: u8,
    request: &Request,
    secret: &[u8],
    attributes: &[u8],
    bare: bool,
) -> Vec<u8> {
    let mut all = attributes.to_vec();
    if !bare {
        all.extend([80, 18]);
        all.extend([0; 16]);
    }
    let [high, low] = u16::try_from(HEADER + all.len()).unwrap_or(0).to_be_bytes();
    let head = [code, 7, high, low];
    if !bare {
        let proof = hmac(secret, &[&head, &request.authenticator, &all]);
        let at = all.len() - 16;
        all.truncate(at);
        all.extend(proof);
    }
    let made = Md5::new()
        .chain_update(head)
        .chain_update(request.authenticator)
        .chain_update(&all)
        .chain_update(secret)
        .finalize();
    [&head[..], &made, &all].concat()
}

/// A datagram as it comes: nobody without the secret is heard. The same bytes as code and attributes of
/// an answer whose authenticator is right: read as they are written, or refused for what is wrong.
pub fn fuzz_radius(data: &[u8]) {
    let request = request(Dialect::Rfc5090).expect("a request");
    assert!(request.answer(data, SECRET, false).is_err(), "an authenticator by chance");
    let Some((code, attributes)) = data.split_first() else { return };
    let attributes = attributes.get(..PACKET_MAX - HEADER - 18).unwrap_or(attributes);
    for (bare, proved) in [(true, true), (true, false), (false, true)] {
        let datagram = answer(*code, &request, SECRET, attributes, bare);
        let padded = [&datagram[..], b"padding"].concat();
        let told = request.answer(&datagram, SECRET, proved);
        assert_eq!(request.answer(&padded, SECRET, proved), told, "what is behind the length");
        let own = read(attributes);
        let proof = own.as_ref().map(|all| all.iter().any(|a| a.kind == 80 && a.value.len() == 16));
        match told {
            Ok(Answer::Accept(names)) => {
                assert_eq!(*code, 2);
                let own = own.expect("attributes");
                let all = own.iter().filter(|a| a.kind == 122);
                let texts = all.filter_map(|a| std::str::from_utf8(a.value).ok());
                assert!(texts.eq(names.iter().map(String::as_str)), "{names:?}");
            }
            Ok(Answer::Reject) => assert!(matches!(code, 3 | 11)),
            Err(Fault::Code) => assert!(!matches!(code, 2 | 3 | 11)),
            // Ours stands behind theirs where there are two: the first counts.
            Err(Fault::Authenticator) => assert_ne!(proof, Some(false)),
            // A last attribute that is too long may take ours in.
            Err(Fault::Length) => assert!(own.is_none(), "well-formed"),
            Err(Fault::Unproved) => {
                assert!(proved && proof != Some(true) && (bare || own.is_none()))
            }
            Err(Fault::Identifier) => panic!("it was ours"),
        }
        // Whoever sees it and has not the secret can change nothing.
        let mut changed = datagram.clone();
        if let Some(byte) = changed.last_mut() {
            *byte ^= 1;
        }
        assert!(request.answer(&changed, SECRET, proved).is_err());
        assert_eq!(request.answer(&datagram, b"another", proved), Err(Fault::Authenticator));
    }
}
