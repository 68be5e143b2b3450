//! Calls on a virtual clock: ladders of both sides, one test per behaviour.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod adopt;
mod attacks;
mod basic;
mod cache;
mod early;
mod early_adopt;
mod elsewhere;
mod features;
mod forking;
mod limits;
mod operator;
mod rebind;
mod refuse;
mod secure;
mod session;
mod storm;
mod subscribe;
mod torture;
mod transfer;
mod users;
mod world;
