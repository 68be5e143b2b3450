//! SipHash of 128 bits over words, in one pass: the hash of [`super::matching`]. Hash tables have the
//! standard library's; what is compared instead of the text itself needs twice its bits.

/// SipHash-C-D-128 (Aumasson and Bernstein, 2012, and their reference code) fed by whole words.
pub(super) struct SipHash<const C: usize, const D: usize> {
    v: [u64; 4],
}

impl<const C: usize, const D: usize> SipHash<C, D> {
    pub(super) fn new((k0, k1): (u64, u64)) -> Self {
        let v = [
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ];
        SipHash { v }
    }

    #[inline]
    fn rounds<const N: usize>(&mut self) {
        let [v0, v1, v2, v3] = &mut self.v;
        for _ in 0..N {
            *v0 = v0.wrapping_add(*v1);
            *v2 = v2.wrapping_add(*v3);
            *v1 = v1.rotate_left(13) ^ *v0;
            *v3 = v3.rotate_left(16) ^ *v2;
            *v0 = v0.rotate_left(32);
            *v2 = v2.wrapping_add(*v1);
            *v0 = v0.wrapping_add(*v3);
            *v1 = v1.rotate_left(17) ^ *v2;
            *v3 = v3.rotate_left(21) ^ *v0;
            *v2 = v2.rotate_left(32);
        }
    }

    /// The next eight bytes, the first of them lowest.
    #[inline]
    pub(super) fn word(&mut self, word: u64) {
        self.v[3] ^= word;
        self.rounds::<C>();
        self.v[0] ^= word;
    }

    /// Ends with a word whose highest byte is the number of bytes modulo 256.
    pub(super) fn finish(mut self, last: u64) -> (u64, u64) {
        self.word(last);
        self.v[2] ^= 0xee;
        self.rounds::<D>();
        let first = self.v.iter().fold(0, |all, v| all ^ v);
        self.v[1] ^= 0xdd;
        self.rounds::<D>();
        (first, self.v.iter().fold(0, |all, v| all ^ v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `vectors_sip128` of the reference code: the key is 00 to 0f, the text 00, 01, and so on.
    #[test]
    fn reference_vectors() {
        let of = |last| {
            let key = (0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);
            let (first, second) = SipHash::<2, 4>::new(key).finish(last);
            (first.swap_bytes(), second.swap_bytes())
        };
        assert_eq!(of(0), (0xa381_7f04_ba25_a8e6, 0x6df6_7214_c755_0293));
        assert_eq!(of(1 << 56), (0xda87_c1d8_6b99_af44, 0x3476_5911_9b22_fc45));
    }
}
