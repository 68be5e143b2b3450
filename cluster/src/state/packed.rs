//! What a row holds beside what is looked at when all rows are: a few numbers and the value, in one
//! allocation that copies of the row share. Numbers take as many bytes as they need.

use std::sync::Arc;

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Packed(Arc<[u8]>);

/// Seven bits each, ten bytes at most.
const NUMBER_BYTES_MAX: usize = 10;

#[expect(clippy::cast_possible_truncation, reason = "seven bits at a time")]
fn put(mut number: u64, out: &mut Vec<u8>) {
    while number > 0x7f {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..).step_by(7).take(NUMBER_BYTES_MAX) {
        let Some((byte, rest)) = bytes.split_first() else { break };
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

impl Packed {
    /// `numbers`, then `hashes` of eight bytes each, then the value. Who reads it knows how many
    /// there are.
    pub(super) fn new(numbers: &[u64], hashes: &[u64], value: &[u8]) -> Packed {
        let head = NUMBER_BYTES_MAX * numbers.len() + size_of_val(hashes);
        let mut bytes = Vec::with_capacity(head + value.len());
        for number in numbers {
            put(*number, &mut bytes);
        }
        for hash in hashes {
            bytes.extend_from_slice(&hash.to_le_bytes());
        }
        bytes.extend_from_slice(value);
        Packed(bytes.into())
    }

    /// The first numbers, and all that follows them.
    pub(super) fn numbers<const N: usize>(&self) -> ([u64; N], &[u8]) {
        let mut rest = &*self.0;
        let mut numbers = [0; N];
        for number in &mut numbers {
            *number = take(&mut rest);
        }
        (numbers, rest)
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_take_what_they_need() {
        let numbers = [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::MAX >> 1, u64::MAX];
        let packed = Packed::new(&numbers, &[u64::MAX - 1, 7], b"value");
        let (read, rest) = packed.numbers();
        assert_eq!(read, numbers);
        let (hashes, value) = rest.split_at(16);
        let hashes: Vec<u64> =
            hashes.as_chunks().0.iter().map(|hash| u64::from_le_bytes(*hash)).collect();
        assert_eq!(hashes, [u64::MAX - 1, 7]);
        assert_eq!(value, b"value");
        assert_eq!(packed.0.len(), 1 + 1 + 1 + 2 + 2 + 3 + 9 + 10 + 16 + 5);
    }
}
