//! Entry points for fuzzing what the edge parses by itself. Not for use by the product.

pub use crate::users::radius::packet::fuzz::fuzz_radius;
