//! What the SBC mints: Call-IDs, tags and branches, and the shard hint that they carry.
//!
//! A call lives on the shard that its hint names. The hint of a call is [`shard_hint`] of its first
//! request; every Call-ID, tag and branch minted for any leg of the call carries it, so that
//! `shard_hint` of any later message of any leg yields the same number, on every node and for any
//! number of shards. Nothing is looked up: the function reads only the message.
//!
//! Forms, all lower-case hexadecimal: Call-ID `hint(8) random(24)`, tag `hint(8) random(12)`,
//! branch `z9hG4bK hint(8) random(16)`. A foreign value of the same form is read as if it were
//! ours; that is harmless, because it is read the same way every time.

use std::fmt;

use rand::rngs::{StdRng, SysError, SysRng};
use rand::{Rng, SeedableRng};

/// The cookie of RFC 3261 §8.1.1.7.
pub const MAGIC_COOKIE: &str = "z9hG4bK";

/// 32 bits that decide the shard of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardHint(pub u32);

impl ShardHint {
    /// The hint of a Call-ID: carried in it when we minted it, otherwise its hash.
    pub fn of_call_id(call_id: &[u8]) -> Self {
        carried::<CALL_ID_LEN>(call_id).unwrap_or_else(|| ShardHint(hash(call_id)))
    }

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
}

impl Ids {
    /// For tests and replay: the same seed mints the same identifiers.
    pub fn from_seed(seed: u64) -> Self {
        Ids { rng: StdRng::seed_from_u64(seed) }
    }

    /// Seeded by the operating system; the error is that it has no entropy to give.
    pub fn from_os() -> Result<Self, SysError> {
        Ok(Ids { rng: StdRng::try_from_rng(&mut SysRng)? })
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

    pub fn branch(&mut self, hint: ShardHint) -> Branch {
        Branch { hint, unique: self.rng.next_u64() }
    }
}

impl fmt::Debug for Ids {
    /// The generator's state would tell the tags to come.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ids")
    }
}

/// The shard hint of a whole SIP message in the form it was received, without parsing it.
///
/// Responses: the branch of the topmost Via, when ours. Requests: the To tag, when ours (a dialog
/// that was moved to another call by Replaces keeps the shard of that call). Otherwise the Call-ID.
/// A message without any yields the hint of an empty Call-ID, which is as good as another.
pub fn shard_hint(message: &[u8]) -> ShardHint {
    let response = message.starts_with(b"SIP/2.0 ");
    let (mut from_tag_or_branch, mut via_seen) = (None, false);
    let mut call_id: &[u8] = b"";
    let mut rest = skip_line(message);
    while let Some((name, value, next)) = header(rest) {
        rest = next;
        match name {
            n if eq(n, b"via") || eq(n, b"v") => {
                if response && !via_seen {
                    from_tag_or_branch =
                        parameter(value, b"branch").and_then(Branch::parse).map(|b| b.hint);
                }
                via_seen = true;
            }
            n if !response && (eq(n, b"to") || eq(n, b"t")) => {
                let after_uri =
                    value.iter().rposition(|&b| b == b'>').map_or(value, |at| &value[at..]);
                from_tag_or_branch = parameter(after_uri, b"tag").and_then(ShardHint::of_tag);
            }
            n if eq(n, b"call-id") || eq(n, b"i") => call_id = value,
            _ => continue,
        }
        if let Some(hint) = from_tag_or_branch {
            return hint;
        }
    }
    ShardHint::of_call_id(call_id)
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

/// FNV-1a with the finaliser of MurmurHash3: the same on every node and in every version, because
/// calls that are up while nodes are upgraded must keep their shard's number.
fn hash(bytes: &[u8]) -> u32 {
    let mut h =
        bytes.iter().fold(0x811c_9dc5u32, |h, &b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    h = (h ^ h >> 16).wrapping_mul(0x85eb_ca6b);
    h = (h ^ h >> 13).wrapping_mul(0xc2b2_ae35);
    h ^ h >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minted_values_carry_the_hint() {
        let mut ids = Ids::from_seed(1);
        let hint = ShardHint(0x00c0_ffee);
        let (call_id, tag, branch) = (ids.call_id(hint), ids.tag(hint), ids.branch(hint));
        assert_eq!(ShardHint::of_call_id(call_id.as_bytes()), hint);
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
        let hint = shard_hint(a_leg);
        assert_eq!(hint, ShardHint::of_call_id(b"f00@10.0.0.1"));
        let mut ids = Ids::from_seed(2);
        let (call_id, tag, branch) = (ids.call_id(hint), ids.tag(hint), ids.branch(hint));
        let b_response = format!(
            "SIP/2.0 180 Ringing\r\nVia: SIP/2.0/UDP h:5060;rport=1;branch={branch}, SIP/2.0/UDP z\r\n\
             Call-ID: other\r\n\r\n"
        );
        assert_eq!(shard_hint(b_response.as_bytes()), hint);
        let b_request = format!(
            "BYE sip:x SIP/2.0\r\nFrom: <sip:b@h>;tag=1\r\nCALL-ID :\r\n {call_id}\r\n\r\n"
        );
        assert_eq!(shard_hint(b_request.as_bytes()), hint);
        let a_bye = format!(
            "BYE sip:x SIP/2.0\r\nTo: \"a;tag=x\" <sip:b@h;tag=no>;tag={tag}\r\ni:moved\r\n\r\n"
        );
        assert_eq!(shard_hint(a_bye.as_bytes()), hint);
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(hash(b""), 0xab3e7c0b);
        assert_eq!(hash(b"a84b4c76e66710@pc33.atlanta.com"), 0x0a1e551d);
    }

    #[test]
    fn hashes_spread_over_any_number_of_shards() {
        for shards in [2, 3, 4, 7, 16] {
            let mut counts = vec![0u32; shards as usize];
            for n in 0..16_000 {
                let hint = ShardHint::of_call_id(format!("{n}-4711@10.0.0.1").as_bytes());
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
            shard_hint(garbage);
        }
    }
}
