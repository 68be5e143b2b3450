//! x
pub(crate) fn ways(_flows: usize) {}
