//! Calls: two dialogs tied together, each side hidden from the other.
//!
//! One SIP operation per file. Sockets, clocks, configuration files and the replicated log never
//! live here: a call is told what happened and says what to send.

mod ack;
mod answer;
mod answered;
mod attempt;
pub(crate) mod auth;
mod body;
mod bye;
mod call;
mod cancel;
mod cdr;
mod early;
mod end;
mod env;
mod exchange;
mod hide;
mod invite;
mod outside;
mod peers;
mod policy;
mod prack;
mod progress;
mod rebind;
mod record;
mod refer;
mod repeat;
mod replaces;
mod restore;
pub(crate) mod secure;
mod session;
mod session_timer;
mod stats;
mod subscription;
mod summary;
mod table;
#[cfg(test)]
mod tests;
pub(crate) mod users;
mod wire;

pub use cdr::*;
pub use env::WallClock;
pub use policy::*;
pub use record::*;
pub use stats::Stats;
pub use summary::*;

pub(crate) use env::{Cx, Env, Purpose};
pub(crate) use invite::{Incoming, is_emergency};
pub(crate) use peers::{heard_peer, tell_peer};
pub(crate) use table::Calls;
