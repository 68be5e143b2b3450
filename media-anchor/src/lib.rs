//! RTP/RTCP anchoring: ports, sessions, latching, the userspace relay and the kernel relay.
//!
//! The crate knows nothing of SIP or SDP: it is given sessions made of streams of two sides.
//!
//! ```text
//! types.rs       public values: ids, specs, counters, errors, events
//! config.rs      what the anchor is told at start
//! plan_types.rs  the seam to the kernel: flows and the Offload trait
//! kernel/        appliers of that trait (nftables, TC eBPF)
//! ```
//!
//! Entry points: `MediaAnchor::start`, then one `Handle` per signalling shard.

pub mod config;
mod latch;
pub mod plan_types;
mod policy;
mod ports;
mod rfc3550;
mod rtp;
mod types;

pub use types::{
    Component, DropReason, Event, InterfaceId, Latch, Local, MediaError, Remote, SessionId, Side,
    SideSpec, SideStats, StreamKind, StreamStats,
};
