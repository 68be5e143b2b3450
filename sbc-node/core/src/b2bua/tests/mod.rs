//! Calls on a virtual clock: ladders of both sides, one test per behaviour.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod basic;
mod early;
mod session;
mod world;
