//! Addresses of record in the one form under which they are kept (RFC 3261 §10.3 step 5).

use crate::sip::UriRef;

/// `user@host` of a SIP URI: user without escapes and password, host in lower case, no port, no
/// parameters. `None` without a user or for other schemes.
pub fn aor_of(uri: &UriRef<'_>) -> Option<String> {
    if !uri.is_sip() {
        return None;
    }
    let user = uri.user_decoded();
    // What a user part holds after `;` are parameters of a number, not of the name.
    let user = user.split(';').next().filter(|user| !user.is_empty())?;
    Some(join(user, uri.host()))
}

/// The key of a user at a domain.
pub(super) fn join(user: &str, host: &str) -> String {
    let mut key = String::with_capacity(user.len() + host.len() + 1);
    key.push_str(user);
    key.push('@');
    let at = key.len();
    key.push_str(host);
    if let Some(host) = key.get_mut(at..) {
        host.make_ascii_lowercase();
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3261_10_3_canonical_form() {
        for (uri, aor) in [
            ("sip:alice@Example.COM", Some("alice@example.com")),
            ("sips:alice:secret@example.com:5061;transport=tcp", Some("alice@example.com")),
            ("sip:%61lice@example.com", Some("alice@example.com")),
            ("sip:Alice@example.com", Some("Alice@example.com")),
            ("sip:+4930;phone-context=x@[2001:DB8::1]", Some("+4930@[2001:db8::1]")),
            ("sip:example.com", None),
            ("tel:+4930", None),
        ] {
            let parsed = UriRef::parse(uri).expect(uri);
            assert_eq!(aor_of(&parsed).as_deref(), aor, "{uri}");
        }
    }
}
