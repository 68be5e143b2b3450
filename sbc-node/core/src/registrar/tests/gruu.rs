//! GRUUs, public and temporary (RFC 5627).

use super::*;

#[test]
fn rfc5627_public_gruu_names_one_device() {
    let mut b = Bench::new(policy());
    let answer = b.register(&device("h1", 1, "1"));
    let contact = header(&answer, HeaderName::Contact)[0];
    assert!(contact.contains(";pub-gruu=\"sip:alice@example.com;gr=urn:uuid:1\""), "{contact}");
    b.register(&device("h2", 2, "1"));
    let uri = UriRef::parse("sip:alice@example.com;gr=urn:uuid:1").unwrap();
    let found = b.registrar.locate(b.now, &uri, &Method::Invite);
    assert_eq!(found.iter().map(|r| &*r.uri).collect::<Vec<_>>(), ["sip:a@h1"]);
}

#[test]
fn rfc5627_a_temporary_gruu_is_good_while_its_registration_lives() {
    let mut b = Bench::new(policy());
    let temporary = |answer: &Answer| {
        let contact = header(answer, HeaderName::Contact)[0].to_owned();
        let (_, rest) = contact.split_once(";temp-gruu=\"").unwrap();
        rest.split('"').next().unwrap().to_owned()
    };
    let found = |b: &Bench, gruu: &str| {
        let uri = UriRef::parse(gruu).unwrap();
        b.registrar.locate(b.now, &uri, &Method::Invite).len()
    };
    let first = temporary(&b.register(&device("h1", 1, "1")));
    assert!(first.starts_with("sip:tgruu.") && first.ends_with("@example.com;gr"), "{first}");
    assert!(!first.contains("alice"));
    b.register(&device("h2", 2, "1"));
    assert_eq!(found(&b, &first), 1);
    let second = temporary(&b.register(&device("h1", 1, "1")));
    assert_eq!((found(&b, &first), found(&b, &second)), (1, 1), "both are good");
    // Another Call-ID: the device has started anew, and the old names are over.
    let anew = request(&format!("CSeq: 1 REGISTER\r\nCall-ID: c2\r\n{}", device("h1", 1, "1")));
    let third = temporary(&b.send(&anew));
    assert_eq!((found(&b, &second), found(&b, &third)), (0, 1));
    b.run(10_000);
    assert_eq!(found(&b, &third), 0, "its binding is gone");
}
