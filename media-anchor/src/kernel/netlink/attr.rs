//! Reading netlink attributes (type-length-value, 4-byte aligned).
//!
//! Nothing here trusts a length: a short or overlong attribute ends the walk.

/// Mask of the nested and byte-order flags in an attribute type.
const TYPE_MASK: u16 = 0x3fff;

/// Iterator over the attributes of a payload: `(type, value)`.
#[derive(Clone, Copy)]
pub(crate) struct Attrs<'a> {
    rest: &'a [u8],
}

impl<'a> Attrs<'a> {
    pub(crate) fn new(payload: &'a [u8]) -> Self {
        Attrs { rest: payload }
    }

    /// Value of the first attribute of type `kind`.
    pub(crate) fn find(self, kind: u16) -> Option<&'a [u8]> {
        let mut attrs = self;
        attrs.find_map(|(k, v)| (k == kind).then_some(v))
    }

    /// The attributes nested in the first attribute of type `kind`.
    pub(crate) fn nested(self, kind: u16) -> Option<Attrs<'a>> {
        self.find(kind).map(Attrs::new)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16::from_ne_bytes([*self.rest.first()?, *self.rest.get(1)?]));
        let kind = u16::from_ne_bytes([*self.rest.get(2)?, *self.rest.get(3)?]) & TYPE_MASK;
        let value = self.rest.get(4..len)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

/// A host-order u32 attribute.
pub(crate) fn ne32(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// A network-order u64 attribute.
pub(crate) fn be64(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.get(..8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_aligned_attributes_and_strips_flags() {
        let mut raw = Vec::new();
        raw.extend_from_slice(&5u16.to_ne_bytes());
        raw.extend_from_slice(&0x8001u16.to_ne_bytes());
        raw.extend_from_slice(&[9, 0, 0, 0]);
        raw.extend_from_slice(&8u16.to_ne_bytes());
        raw.extend_from_slice(&2u16.to_ne_bytes());
        raw.extend_from_slice(&7u32.to_be_bytes());
        let got: Vec<_> = Attrs::new(&raw).collect();
        assert_eq!(got, vec![(1, &[9u8][..]), (2, &[0, 0, 0, 7][..])]);
        assert_eq!(Attrs::new(&raw).find(2), Some(&[0, 0, 0, 7][..]));
    }

    #[test]
    fn a_lying_length_ends_the_walk() {
        for raw in [&[3u8, 0, 1, 0][..], &[0, 0, 1, 0], &[40, 0, 1, 0, 1], &[4], &[]] {
            assert_eq!(Attrs::new(raw).count(), 0, "{raw:?}");
        }
    }
}
