//! The sans-IO core of the SBC: SIP, dialogs, calls, registrar, routing and guard.
//!
//! Everything here is a function of input and time to output. No sockets, no clock, no async
//! runtime, no file form of the configuration, no replicated log: the crate does not depend on
//! them, so the compiler holds the wall. The edge (`sbc-node`) owns sockets, clocks and tasks.

pub mod b2bua;
pub mod cidr;
pub mod core;
pub mod dialog;
pub mod digest;
pub mod fuzz;
pub mod guard;
pub mod ids;
mod lines;
pub mod media;
pub mod net;
pub mod registrar;
pub mod routing;
pub mod sdp;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod sip;
pub mod stun;
mod text;
pub mod timer;
pub mod transaction;
