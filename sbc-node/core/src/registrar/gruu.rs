//! Temporary GRUUs (RFC 5627 §3.1.2): names for one device that tell nothing of its user, without a
//! table.
//!
//! The user part is a sealed text: address of record and a print of device and Call-ID. Whoever has
//! the key opens it, on any node and after any restart; it is good for as long as a binding of that
//! device with that Call-ID lives (§3.1.2.2: a new Call-ID ends the old ones).

use data_encoding::BASE64URL_NOPAD;
use ring::{aead, hmac};
use sha2::{Digest, Sha256};

/// What the user part begins with.
const PREFIX: &str = "tgruu.";
/// A longer user part is none of ours: addresses of record are short.
const TEXT_MAX: usize = 700;
const PRINT: usize = 8;

/// Seals and opens; nodes with the same key open each other's. No `Debug`.
#[derive(Clone, Default)]
pub struct GruuKey(pub [u8; 32]);

/// Which of a user's devices is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Device {
    #[default]
    Any,
    /// The one with this `+sip.instance`.
    Instance(String),
    /// The one that has registered as a temporary GRUU says; see [`print`].
    Temporary(u64),
    /// The one that a Contact of ours at a core registrar names.
    Contact(u64),
}

/// A request names a temporary GRUU that is none of ours, or was tampered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

/// Tells a device's run of registrations from all others.
pub(super) fn print(instance: &str, call_id: &str) -> u64 {
    let length = u64::try_from(instance.len()).unwrap_or(u64::MAX);
    let digest = Sha256::new()
        .chain_update(length.to_be_bytes())
        .chain_update(instance.as_bytes())
        .chain_update(call_id.as_bytes())
        .finalize();
    digest.iter().take(PRINT).fold(0, |print, &byte| print << 8 | u64::from(byte))
}

impl GruuKey {
    /// A new user part; `salt` makes every one different. `None` where the library fails us.
    pub(super) fn mint(&self, aor: &str, print: u64, salt: u64) -> Option<String> {
        let mut text = print.to_be_bytes().to_vec();
        text.extend_from_slice(aor.as_bytes());
        // A nonce that follows from text and salt never comes twice with different texts.
        let mut sign = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.0));
        sign.update(&salt.to_be_bytes());
        sign.update(&text);
        let mut nonce = [0; aead::NONCE_LEN];
        nonce.iter_mut().zip(sign.sign().as_ref()).for_each(|(to, from)| *to = *from);
        let unique = aead::Nonce::assume_unique_for_key(nonce);
        self.cipher()?.seal_in_place_append_tag(unique, aead::Aad::empty(), &mut text).ok()?;
        let mut sealed = nonce.to_vec();
        sealed.append(&mut text);
        Some(format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&sealed)))
    }

    /// The address of record and the print; `None` where a user part is no temporary GRUU.
    pub(super) fn open(&self, user: &str) -> Option<Result<(String, u64), Invalid>> {
        let text = user.strip_prefix(PREFIX)?;
        Some(self.unseal(text).ok_or(Invalid))
    }

    fn unseal(&self, text: &str) -> Option<(String, u64)> {
        if text.len() > TEXT_MAX {
            return None;
        }
        let mut sealed = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        let (nonce, sealed) = sealed.split_at_mut_checked(aead::NONCE_LEN)?;
        let nonce = aead::Nonce::try_assume_unique_for_key(nonce).ok()?;
        let text = self.cipher()?.open_in_place(nonce, aead::Aad::empty(), sealed).ok()?;
        let (print, aor) = text.split_at_checked(PRINT)?;
        let print = u64::from_be_bytes(print.try_into().ok()?);
        Some((std::str::from_utf8(aor).ok()?.to_owned(), print))
    }

    /// Another key than the one that makes the nonces.
    fn cipher(&self) -> Option<aead::LessSafeKey> {
        let own = Sha256::new().chain_update(b"seal").chain_update(self.0).finalize();
        let key = aead::UnboundKey::new(&aead::CHACHA20_POLY1305, &own).ok()?;
        Some(aead::LessSafeKey::new(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_again_with_the_same_key_only() {
        let key = GruuKey([7; 32]);
        let print = print("urn:uuid:1", "call");
        let one = key.mint("alice@example.com", print, 1).unwrap_or_default();
        let two = key.mint("alice@example.com", print, 2).unwrap_or_default();
        assert_ne!(one, two, "two of one device cannot be linked");
        for text in [&one, &two] {
            assert_eq!(key.open(text), Some(Ok(("alice@example.com".to_owned(), print))));
            assert_eq!(GruuKey([8; 32]).open(text), Some(Err(Invalid)));
        }
        assert_eq!(key.open("alice"), None);
        let at = one.len() - 3;
        let other = if one.as_bytes().get(at) == Some(&b'A') { "B" } else { "A" };
        let mut forged = one.clone();
        forged.replace_range(at..=at, other);
        for bad in
            [&forged, "tgruu.", "tgruu.AAAA", "tgruu.=", &format!("tgruu.{}", "A".repeat(9_000))]
        {
            assert_eq!(key.open(bad), Some(Err(Invalid)), "{bad:.40}");
        }
    }
}
