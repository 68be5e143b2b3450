//! What the SBC mints: Call-IDs, tags and branches, and the shard hint that they carry.
//!
//! A call lives on the shard that its hint names. The hint of a call is that of its first request; every Call-ID, tag and branch minted for any leg of the call carries it, so that
//! [`HintKey::of_message`] of any later message of any leg yields the same number, on every node
//! and for any number of shards. Nothing is looked up: the function reads only the message. The
//! hint of a foreign Call-ID is a keyed hash of it, so that nobody who sees only the other leg can
//! tell which Call-ID it belongs to, or aim a flood at one shard.
//!
//! Forms, all lower-case hexadecimal: Call-ID `hint(8) random(24)`, tag `hint(8) random(12)`,
//! branch
//! `z9hG4bK hint(8) node(4) random(12)`. A foreign value of the same form is read as if it were
//! ours; that is harmless, because it is read the same way every time.

use std::fmt;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::sip::NameAddr;
use crate::sip::value::FromValue;

/// The cookie of RFC 3261 §8.1.1.7.
pub const MAGIC_COOKIE: &str = "z9hG4bK";

/// 32 bits that decide the shard of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardHint(pub u32);

/// What the hints of foreign Call-IDs depend on: a secret that all nodes of a cluster share, because
/// calls of a node that is gone are carried on by another.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct HintKey([u64; 2]);

impl fmt::Debug for HintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HintKey")
    }
}

impl HintKey {
    pub fn new(secret: u128) -> Self {
        let half = |n: u128| u64::try_from(n & u128::from(u64::MAX)).unwrap_or(0);
        HintKey([half(secret), half(secret >> 64)])
    }

    /// A key that follows from a secret text.
    pub fn derive(secret: &[u8]) -> Self {
        use sha2::{Digest, Sha256};
        let digest =
            Sha256::new().chain_update(b"sbc shard hint\0").chain_update(secret).finalize();
        let secret = digest.iter().take(16).fold(0, |n: u128, &b| n << 8 | u128::from(b));
        HintKey::new(secret)
    }

    /// A number for a text that nobody without the key can know: unlike hints, which show in what we
    /// mint for texts of a stranger's choice.
    pub fn token(&self, text: &str) -> u64 {
        use sha2::{Digest, Sha256};
        let key = || self.0.iter().flat_map(|half| half.to_be_bytes()).collect::<Vec<u8>>();
        let digest = Sha256::new().chain_update(key()).chain_update(text).chain_update(key());
        digest.finalize().iter().take(8).fold(0, |n, &byte| n << 8 | u64::from(byte))
    }

    /// The hint of a Call-ID: carried in it when we minted it, otherwise its keyed hash.
    pub fn of_call_id(&self, call_id: &[u8]) -> ShardHint {
        carried::<CALL_ID_LEN>(call_id).unwrap_or_else(|| self.hash(call_id))
    }

    /// The hint of any other text that names an owner: an address of record.
    pub fn hash(&self, text: &[u8]) -> ShardHint {
        let hash = siphash(self.0, text);
        ShardHint(u32::try_from((hash ^ hash >> 32) & u64::from(u32::MAX)).unwrap_or(0))
    }
}

impl ShardHint {
    /// The hint in one of our tags.
    pub fn of_tag(tag: &[u8]) -> Option<Self> {
        carried::<TAG_LEN>(tag)
    }

    /// Index of the shard, below `shards`. Zero shards count as one.
    pub fn shard(self, shards: u32) -> u32 {
        self.0 % shards.max(1)
    }
}

const CALL_ID_LEN: usize = 32;
const TAG_LEN: usize = 20;
const BRANCH_LEN: usize = 31;
/// Where the node's number begins in what makes a branch unique; 48 random bits are below.
const NODE_AT: u32 = 48;

/// A short ASCII string of fixed length, kept in place.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token<const N: usize>([u8; N]);

pub type CallId = Token<CALL_ID_LEN>;
pub type Tag = Token<TAG_LEN>;

impl<const N: usize> Token<N> {
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("minted from ASCII only")
    }

    /// Fills from `at` on with the lowest hexadecimal digits of `value`, to the end of `len` digits.
    fn put_hex(&mut self, at: usize, len: usize, value: u64) {
        for (n, byte) in self.0[at..at + len].iter_mut().rev().enumerate() {
            *byte = b"0123456789abcdef"[(value >> (4 * n) & 0xf) as usize];
        }
    }
}

impl<const N: usize> std::ops::Deref for Token<N> {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl<const N: usize> fmt::Display for Token<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<const N: usize> fmt::Debug for Token<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// A branch that we minted (RFC 3261 §8.1.1.7); 12 bytes instead of its 31 characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Branch {
    pub hint: ShardHint,
    unique: u64,
}

impl Branch {
    /// Reads the value of a `branch` parameter; `None` unless it has our form.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let hex = value.strip_prefix(MAGIC_COOKIE.as_bytes())?;
        if value.len() != BRANCH_LEN {
            return None;
        }
        let (hint, unique) = hex.split_at_checked(8)?;
        Some(Branch {
            hint: ShardHint(u32::try_from(hex_value(hint)?).ok()?),
            unique: hex_value(unique)?,
        })
    }

    /// The number of the node that minted it.
    pub fn node(&self) -> u16 {
        u16::try_from(self.unique >> NODE_AT).unwrap_or(0)
    }

    pub fn token(&self) -> Token<BRANCH_LEN> {
        let mut token = Token([0; BRANCH_LEN]);
        token.0[..MAGIC_COOKIE.len()].copy_from_slice(MAGIC_COOKIE.as_bytes());
        token.put_hex(7, 8, u64::from(self.hint.0));
        token.put_hex(15, 16, self.unique);
        token
    }
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.token().as_str())
    }
}

/// Mints identifiers from a seedable, cryptographically strong generator (RFC 3261 §19.3 wants
/// tags that nobody can guess).
pub struct Ids {
    rng: StdRng,
    hints: HintKey,
    node: u16,
}

impl Ids {
    /// For tests and replay: the same seed mints the same identifiers.
    pub fn from_seed(seed: u64) -> Self {
        Ids { rng: StdRng::seed_from_u64(seed), hints: HintKey::default(), node: 0 }
    }

    /// Seeded with 256 bits, which in production are entropy of the operating system.
    pub fn new(seed: [u8; 32], hints: HintKey) -> Self {
        Ids { rng: StdRng::from_seed(seed), hints, node: 0 }
    }

    /// The same on a node of a cluster, by its number there.
    pub fn of_node(mut self, node: u16) -> Self {
        self.node = node;
        self
    }

    /// What the hints of foreign Call-IDs depend on.
    pub fn hints(&self) -> &HintKey {
        &self.hints
    }

    /// The generator itself, for nonces and jitter.
    pub fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }

    pub fn call_id(&mut self, hint: ShardHint) -> CallId {
        let mut token = Token([0; CALL_ID_LEN]);
        token.put_hex(0, 8, u64::from(hint.0));
        token.put_hex(8, 16, self.rng.next_u64());
        token.put_hex(24, 8, u64::from(self.rng.next_u32()));
        token
    }

    pub fn tag(&mut self, hint: ShardHint) -> Tag {
        let mut token = Token([0; TAG_LEN]);
        token.put_hex(0, 8, u64::from(hint.0));
        token.put_hex(8, 12, self.rng.next_u64());
        token
    }

    /// Carries the number of this node in its topmost bits: a response that comes by another node
    /// finds its way back.
    pub fn branch(&mut self, hint: ShardHint) -> Branch {
        let random = self.rng.next_u64() & ((1 << NODE_AT) - 1);
        Branch { hint, unique: u64::from(self.node) << NODE_AT | random }
    }
}

impl fmt::Debug for Ids {
    /// The generator's state would tell the tags to come.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ids")
    }
}

impl HintKey {
    /// The shard hint of a whole SIP message in the form it was received, without parsing it.
    ///
    /// Responses: the branch of the topmost Via, when ours. Requests: the To tag, when ours (a dialog
    /// that was moved to another call by Replaces keeps the shard of that call). A REGISTER: the
    /// address of record. Otherwise the Call-ID. A message without any yields the hint of an empty Call-ID, which is as good as
    /// another.
    pub fn of_message(&self, message: &[u8]) -> ShardHint {
        let (hint, call_id, to) = scan(message);
        let user = to.filter(|_| message.starts_with(b"REGISTER "));
        let of_user = || user.and_then(aor_in).map(|aor| self.hash(aor.as_bytes()));
        hint.or_else(of_user).unwrap_or_else(|| self.of_call_id(call_id))
    }
}

/// The address of record in a To value, in lower case.
fn aor_in(to: &[u8]) -> Option<String> {
    let to = <NameAddr<'_> as FromValue<'_>>::from_value(std::str::from_utf8(to).ok()?).ok()?;
    let mut aor = crate::registrar::aor_of(&to.uri().ok()?)?;
    aor.make_ascii_lowercase();
    Some(aor)
}

/// The hint that a message carries, its Call-ID and its To. Looks no further than it has to.
fn scan(message: &[u8]) -> (Option<ShardHint>, &[u8], Option<&[u8]>) {
    let response = message.starts_with(b"SIP/2.0 ");
    let mut via_seen = false;
    let (mut call_id, mut to) = (None, None);
    let mut rest = skip_line(message);
    loop {
        match rest {
            [b'v' | b'V', ..] if response && !via_seen => {}
            [b't' | b'T', ..] if !response && to.is_none() => {}
            [b'c' | b'C' | b'i' | b'I', ..] if call_id.is_none() => {}
            [] | [b'\n', ..] | [b'\r', b'\n', ..] => break,
            // Another header, or the rest of a folded one.
            _ => {
                rest = skip_line(rest);
                continue;
            }
        }
        let Some((name, value, next)) = header(rest) else { break };
        rest = next;
        if eq(name, b"via") || eq(name, b"v") {
            via_seen = true;
            let branch = parameter(value, b"branch").and_then(Branch::parse);
            if let Some(branch) = branch {
                return (Some(branch.hint), b"", None);
            }
        } else if eq(name, b"to") || eq(name, b"t") {
            let after_uri = memchr::memrchr(b'>', value).map_or(value, |at| &value[at..]);
            let tag = parameter(after_uri, b"tag").and_then(ShardHint::of_tag);
            if tag.is_some() {
                return (tag, b"", Some(value));
            }
            to = Some(value);
        } else if eq(name, b"call-id") || eq(name, b"i") {
            call_id = Some(value);
        }
        if call_id.is_some() && (to.is_some() || via_seen) {
            break;
        }
    }
    (None, call_id.unwrap_or_default(), to)
}

fn skip_line(message: &[u8]) -> &[u8] {
    memchr::memchr(b'\n', message).and_then(|at| message.get(at + 1..)).unwrap_or(b"")
}

/// The next header: name, unfolded-in-place value without surrounding blanks, and what follows.
/// `None` at the empty line or at the end.
fn header(rest: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    if rest.is_empty() || rest.starts_with(b"\r\n") || rest.starts_with(b"\n") {
        return None;
    }
    let mut end = 0;
    let next = loop {
        let Some(at) = memchr::memchr(b'\n', rest.get(end..)?) else {
            end = rest.len();
            break end;
        };
        end += at;
        match rest.get(end + 1) {
            Some(b' ' | b'\t') => end += 1,
            _ => break end + 1,
        }
    };
    let line = rest.get(..end)?;
    let (name, value) = match memchr::memchr(b':', line) {
        Some(colon) => (line.get(..colon)?, line.get(colon + 1..)?),
        None => (line, &b""[..]),
    };
    Some((name.trim_ascii(), value.trim_ascii(), rest.get(next..)?))
}

/// The value of a `;name=value` parameter; ends at the next separator, quote or blank.
fn parameter<'a>(value: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    for part in value.split(|&b| b == b';').skip(1) {
        let Some(equals) = memchr::memchr(b'=', part) else { continue };
        let (key, value) = part.split_at(equals);
        if eq(key.trim_ascii(), name) {
            let value = value.get(1..)?.trim_ascii();
            let end = value.iter().position(|b| b" \t\r\n,\"".contains(b)).unwrap_or(value.len());
            return value.get(..end);
        }
    }
    None
}

fn eq(a: &[u8], b: &[u8]) -> bool {
    a.eq_ignore_ascii_case(b)
}

fn carried<const N: usize>(value: &[u8]) -> Option<ShardHint> {
    let (hint, random) = value.split_at_checked(8)?;
    let ours = value.len() == N && random.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let hint = hex_value(hint).filter(|_| ours)?;
    u32::try_from(hint).ok().map(ShardHint)
}

/// Up to 16 lower-case hexadecimal digits.
fn hex_value(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |value, &digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

/// SipHash-2-4: the same on every node and in every version, because calls that are up while nodes
/// are upgraded must keep their shard's number.
fn siphash(key: [u64; 2], text: &[u8]) -> u64 {
    let [k0, k1] = key;
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut absorb = |word: u64| {
        v[3] ^= word;
        sip_round(&mut v);
        sip_round(&mut v);
        v[0] ^= word;
    };
    let (words, rest) = text.as_chunks::<8>();
    words.iter().for_each(|word| absorb(u64::from_le_bytes(*word)));
    let last = rest.iter().rev().fold(0, |word, &b| word << 8 | u64::from(b));
    absorb((text.len() as u64) << 56 | last);
    v[2] ^= 0xff;
    (0..4).for_each(|_| sip_round(&mut v));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn sip_round([a, b, c, d]: &mut [u64; 4]) {
    *a = a.wrapping_add(*b);
    *c = c.wrapping_add(*d);
    *b = b.rotate_left(13) ^ *a;
    *d = d.rotate_left(16) ^ *c;
    *a = a.rotate_left(32).wrapping_add(*d);
    *c = c.wrapping_add(*b);
    *d = d.rotate_left(21) ^ *a;
    *b = b.rotate_left(17) ^ *c;
    *c = c.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: HintKey = HintKey([0x0706050403020100, 0x0f0e0d0c0b0a0908]);

    #[test]
    fn minted_values_carry_the_hint() {
        let mut ids = Ids::from_seed(1);
        let hint = ShardHint(0x00c0_ffee);
        let (call_id, tag, branch) = (ids.call_id(hint), ids.tag(hint), ids.branch(hint));
        assert_eq!(KEY.of_call_id(call_id.as_bytes()), hint);
        assert_eq!(ShardHint::of_tag(tag.as_bytes()), Some(hint));
        assert_eq!(Branch::parse(branch.token().as_bytes()), Some(branch));
        assert!(branch.to_string().starts_with("z9hG4bK00c0ffee"));
        assert_eq!((call_id.len(), tag.len(), branch.to_string().len()), (32, 20, 31));
        assert_ne!(ids.tag(hint), tag);
    }

    #[test]
    fn a_seed_replays() {
        let mint = |seed| Ids::from_seed(seed).call_id(ShardHint(7)).to_string();
        assert_eq!(mint(3), mint(3));
        assert_ne!(mint(3), mint(4));
    }

    #[test]
    fn both_legs_land_together_whatever_the_form() {
        let a_leg = b"INVITE sip:b@x SIP/2.0\r\nv: SIP/2.0/UDP h;branch=z9hG4bK1\r\ni: f00@10.0.0.1\r\n\r\n";
        let hint = KEY.of_message(a_leg);
        assert_eq!(hint, KEY.of_call_id(b"f00@10.0.0.1"));
        let mut ids = Ids::from_seed(2);
        let (call_id, tag, branch) = (ids.call_id(hint), ids.tag(hint), ids.branch(hint));
        let b_response = format!(
            "SIP/2.0 180 Ringing\r\nVia: SIP/2.0/UDP h:5060;rport=1;branch={branch}, SIP/2.0/UDP z\r\n\
             Call-ID: other\r\n\r\n"
        );
        assert_eq!(KEY.of_message(b_response.as_bytes()), hint);
        let b_request = format!(
            "BYE sip:x SIP/2.0\r\nFrom: <sip:b@h>;tag=1\r\nCALL-ID :\r\n {call_id}\r\n\r\n"
        );
        assert_eq!(KEY.of_message(b_request.as_bytes()), hint);
        let a_bye = format!(
            "BYE sip:x SIP/2.0\r\nTo: \"a;tag=x\" <sip:b@h;tag=no>;tag={tag}\r\ni:moved\r\n\r\n"
        );
        assert_eq!(KEY.of_message(a_bye.as_bytes()), hint);
    }

    #[test]
    fn the_hash_is_siphash_2_4_and_never_changes() {
        // Vectors of the authors' reference: key 00..0f, input 00..n.
        let input: Vec<u8> = (0..15).collect();
        assert_eq!(siphash(KEY.0, b""), 0x726f_db47_dd0e_0e31);
        assert_eq!(siphash(KEY.0, &input), 0xa129_ca61_49be_45e5);
        assert_eq!(siphash(KEY.0, &input[..8]), 0x93f5_f579_9a93_2462);
    }

    #[test]
    fn without_the_key_a_call_id_does_not_tell_its_hint() {
        let call_id = b"a84b4c76e66710@pc33.atlanta.com";
        let other = HintKey::new(7);
        assert_ne!(KEY.of_call_id(call_id), other.of_call_id(call_id));
        // What we minted is read the same way by every key.
        let ours = Ids::from_seed(1).call_id(ShardHint(0xbeef));
        assert_eq!(KEY.of_call_id(ours.as_bytes()), ShardHint(0xbeef));
        assert_eq!(other.of_call_id(ours.as_bytes()), ShardHint(0xbeef));
    }

    #[test]
    fn hashes_spread_over_any_number_of_shards() {
        for shards in [2, 3, 4, 7, 16] {
            let mut counts = vec![0u32; shards as usize];
            for n in 0..16_000 {
                let hint = KEY.of_call_id(format!("{n}-4711@10.0.0.1").as_bytes());
                counts[hint.shard(shards) as usize] += 1;
            }
            let mean = 16_000 / shards;
            assert!(counts.iter().all(|&c| c.abs_diff(mean) < mean / 5), "{counts:?}");
        }
    }

    #[test]
    fn garbage_has_a_hint() {
        for garbage in
            [&b""[..], b"\r\n", b"\n:\n", b"SIP/2.0 \r\nv:;branch\r\nv", b"x\r\nto:>;tag=\r\n "]
        {
            KEY.of_message(garbage);
        }
    }
}
