//! Line ends and first colons of a text, 64 bytes at a time: the one pass that parsing a head or a
//! session description makes over every byte.
//!
//! What a line means is for who parses to know.

const BLOCK: usize = 64;

/// Walks a message line by line.
pub(crate) struct Lines<'a> {
    data: &'a [u8],
    /// Where the block begins that the masks below are of.
    base: usize,
    /// Where the next block begins.
    next: usize,
    /// Line feeds of the block that were not yet reached.
    feeds: u64,
    /// Colons of the block behind the last line feed that was reached.
    colons: u64,
    /// Something was seen that has to be looked at more closely: a CR without LF, a NUL, a byte that
    /// is not ASCII. May be set by what lies up to one block behind the last line.
    pub(crate) odd: bool,
    /// The last byte of the block before was a CR.
    returned: bool,
}

/// One line, without its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where CRLF or LF begins.
    pub(crate) end: usize,
    /// Where the next line begins.
    pub(crate) next: usize,
    /// The first colon.
    pub(crate) colon: Option<usize>,
}

impl<'a> Lines<'a> {
    /// From the byte at `begin` on.
    pub(crate) fn new(data: &'a [u8], begin: usize) -> Self {
        Lines { data, base: begin, next: begin, feeds: 0, colons: 0, odd: false, returned: false }
    }

    /// The next line; `None` when no LF is left.
    #[inline]
    pub(crate) fn next_line(&mut self) -> Option<Found> {
        let mut colon = None;
        while self.feeds == 0 {
            if colon.is_none() && self.colons != 0 {
                colon = Some(self.base + self.colons.trailing_zeros() as usize);
            }
            self.load()?;
        }
        let feed = self.feeds.trailing_zeros();
        let before = (1u64 << feed) - 1;
        let own = self.colons & before;
        if colon.is_none() && own != 0 {
            colon = Some(self.base + own.trailing_zeros() as usize);
        }
        self.colons &= !before;
        self.feeds &= self.feeds - 1;
        let at = self.base + feed as usize;
        let crlf = at > 0 && self.data.get(at - 1) == Some(&b'\r');
        Some(Found { end: if crlf { at - 1 } else { at }, next: at + 1, colon })
    }

    /// Reads the next block into the masks.
    #[inline]
    fn load(&mut self) -> Option<()> {
        let rest = self.data.get(self.next..).filter(|rest| !rest.is_empty())?;
        let masks = match rest.first_chunk::<BLOCK>() {
            Some(block) => Masks::of(block),
            None => {
                let mut block = [b' '; BLOCK];
                block.get_mut(..rest.len())?.copy_from_slice(rest);
                Masks::of(&block)
            }
        };
        // A CR that ends a block must be followed by the LF that begins the next.
        let stray = masks.returns & !(masks.feeds >> 1) & !(1 << (BLOCK - 1));
        let cut = self.returned && masks.feeds & 1 == 0;
        self.odd |= stray != 0 || cut || masks.odd;
        self.returned = masks.returns >> (BLOCK - 1) != 0;
        (self.base, self.next) = (self.next, self.next + BLOCK);
        (self.feeds, self.colons) = (masks.feeds, masks.colons);
        Some(())
    }
}

/// Where what stands in a block, lowest bit first.
#[derive(Debug, PartialEq, Eq)]
struct Masks {
    feeds: u64,
    returns: u64,
    colons: u64,
    /// Whether a NUL or a byte beyond ASCII is there.
    odd: bool,
}

impl Masks {
    #[cfg(target_arch = "x86_64")]
    #[inline]
    fn of(block: &[u8; BLOCK]) -> Masks {
        use std::arch::x86_64::{
            __m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_or_si128,
            _mm_set1_epi8, _mm_setzero_si128,
        };
        let mut masks = Masks { feeds: 0, returns: 0, colons: 0, odd: false };
        let (chunks, _) = block.as_chunks::<16>();
        for (n, chunk) in chunks.iter().enumerate() {
            // SAFETY: SSE2 is part of x86_64, and the load takes the 16 bytes of `chunk`, aligned or
            // not.
            let (feeds, returns, colons, odd) = unsafe {
                let bytes = _mm_loadu_si128(chunk.as_ptr().cast::<__m128i>());
                let is = |b: u8| {
                    _mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(b.cast_signed())))
                };
                let nul = _mm_cmpeq_epi8(bytes, _mm_setzero_si128());
                (is(b'\n'), is(b'\r'), is(b':'), _mm_movemask_epi8(_mm_or_si128(nul, bytes)))
            };
            let at = |mask: i32| u64::from(mask.cast_unsigned()) << (16 * n);
            masks.feeds |= at(feeds);
            masks.returns |= at(returns);
            masks.colons |= at(colons);
            masks.odd |= odd != 0;
        }
        masks
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn of(block: &[u8; BLOCK]) -> Masks {
        Masks::by_bytes(block)
    }

    /// The same, a byte at a time.
    #[cfg(any(test, not(target_arch = "x86_64")))]
    fn by_bytes(block: &[u8; BLOCK]) -> Masks {
        let of = |wanted: u8| {
            (0..).zip(block).fold(0u64, |mask, (n, b)| mask | u64::from(*b == wanted) << n)
        };
        Masks {
            feeds: of(b'\n'),
            returns: of(b'\r'),
            colons: of(b':'),
            odd: block.iter().any(|b| *b == 0 || !b.is_ascii()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(data: &[u8], begin: usize) -> (Vec<Found>, bool) {
        let mut lines = Lines::new(data, begin);
        let found = std::iter::from_fn(|| lines.next_line()).collect();
        (found, lines.odd)
    }

    /// The same by looking at every byte.
    fn slowly(data: &[u8], begin: usize) -> Vec<Found> {
        let (mut found, mut start) = (Vec::new(), begin);
        while let Some(lf) = data[start..].iter().position(|b| *b == b'\n').map(|at| start + at) {
            let end = if lf > 0 && data[lf - 1] == b'\r' { lf - 1 } else { lf };
            let colon = data[start..lf].iter().position(|b| *b == b':').map(|at| start + at);
            found.push(Found { end, next: lf + 1, colon });
            start = lf + 1;
        }
        found
    }

    #[test]
    fn a_line_that_spans_blocks_keeps_its_first_colon() {
        let text = format!("A: {}:\r\nBB:c\n\r\nx", "y".repeat(200));
        let (found, odd) = all(text.as_bytes(), 0);
        assert_eq!(found, slowly(text.as_bytes(), 0));
        assert_eq!((found[0].colon, found.len(), odd), (Some(1), 3, false));
    }

    #[test]
    fn what_is_odd_is_told_wherever_it_stands() {
        for at in 0..200 {
            for bad in [b'\r', 0, 0xc3] {
                let mut text = vec![b'x'; 200];
                text[at] = bad;
                text.extend_from_slice(b"\r\n");
                assert!(all(&text, 0).1, "{bad} at {at}");
            }
        }
        for before in 0..130 {
            let text = format!("{}\r\n{}\r\n", "a".repeat(before), "b".repeat(70));
            assert!(!all(text.as_bytes(), 0).1, "{before}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            failure_persistence: None,
            ..proptest::prelude::ProptestConfig::default()
        })]

        #[test]
        fn lines_are_those_of_a_byte_by_byte_walk(
            data in proptest::collection::vec(
                proptest::sample::select(vec![b'\n', b'\r', b':', b'a', b' ', 0, 0x80]), 0..300),
            begin in 0usize..4,
        ) {
            let begin = begin.min(data.len());
            let (found, odd) = all(&data, begin);
            // A CR before the begin is no part of the first line's end.
            proptest::prop_assume!(begin == 0 || data[begin - 1] != b'\r' || data.get(begin) != Some(&b'\n'));
            proptest::prop_assert_eq!(found, slowly(&data, begin));
            let text = &data[begin..];
            let stray = (0..text.len()).any(|n| text[n] == b'\r' && text.get(n + 1) != Some(&b'\n'));
            if stray || text.iter().any(|b| *b == 0 || *b >= 0x80) {
                proptest::prop_assert!(odd || text.last() == Some(&b'\r'));
            }
            let (blocks, _) = text.as_chunks::<BLOCK>();
            for block in blocks {
                proptest::prop_assert_eq!(Masks::of(block), Masks::by_bytes(block));
            }
        }
    }
}
