//! A 128-bit fingerprint of records. The sum over a table does not depend on the order of writes,
//! so that it is kept up to date per write and read for nothing. It detects divergence and damage;
//! it is no defence against a forger.

const SECRETS: [u64; 4] =
    [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db, 0x8ebc_6af0_9c88_c6e3, 0x5899_65cc_7537_4cc3];

#[expect(clippy::cast_possible_truncation, reason = "folding the two halves is the point")]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Hashes one record field by field.
#[derive(Clone, Copy)]
pub(crate) struct Hasher {
    a: u64,
    b: u64,
}

impl Hasher {
    pub(crate) fn new(tag: u8) -> Self {
        Hasher { a: SECRETS[0] ^ u64::from(tag), b: SECRETS[1] }
    }

    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.a = fold(self.a ^ SECRETS[2], value ^ SECRETS[1]);
        self.b = fold(self.b ^ value, SECRETS[3]).rotate_left(17) ^ value;
        self
    }

    pub(crate) fn bytes(mut self, data: &[u8]) -> Self {
        self = self.u64(data.len() as u64);
        let (words, rest) = data.as_chunks::<8>();
        for word in words {
            self = self.u64(u64::from_le_bytes(*word));
        }
        let mut last = [0u8; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        self.u64(u64::from_le_bytes(last))
    }

    pub(crate) fn finish(self) -> u128 {
        let high = fold(self.a ^ SECRETS[3], self.b ^ SECRETS[2]);
        (u128::from(high) << 64) | u128::from(fold(self.a ^ SECRETS[1], !self.b))
    }
}

/// Spreads a key over chunks, and ranks nodes for it.
pub(crate) fn spread(a: u64, b: u64) -> u64 {
    fold(a ^ SECRETS[0], fold(b ^ SECRETS[1], SECRETS[2]) ^ SECRETS[3])
}
