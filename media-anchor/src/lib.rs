//! RTP/RTCP anchoring: ports, sessions, latching, the userspace relay and the kernel relay.
//!
//! The crate knows nothing of SIP or SDP: it is given sessions made of streams of two sides.
//!
//! ```text
//! types.rs       public values: ids, specs, counters, errors, events
//! config.rs      what the anchor is told at start
//! anchor.rs      starting and stopping; totals
//! handle.rs      a signalling shard's hand: sessions, ports, sockets
//! engine/        one relay thread's sessions, sans-IO: latching, verdicts, flows, silence
//! relay/         the thread itself: epoll, sockets, clock
//! driver.rs      the thread that talks to the kernel
//! standby.rs     calls of other nodes, in the kernel before they are ours
//! plan_types.rs  the seam to the kernel: flows and the Offload trait
//! kernel/        appliers of that trait (nftables, TC eBPF)
//! ```
//!
//! Entry points: `MediaAnchor::start`, then one `Handle` per signalling shard.

mod address;
mod anchor;
mod cells;
pub mod config;
mod driver;
mod engine;
mod events;
mod handle;
pub mod kernel;
mod latch;
pub mod plan_types;
mod policy;
mod ports;
mod relay;
mod rfc3550;
mod rtp;
mod standby;
mod types;

pub use address::TooManyDoors;
pub use anchor::{MediaAnchor, StartError, Totals};
pub use events::EventSink;
pub use handle::{Handle, SideView, StreamView};
pub use ports::PortCounts;
pub use standby::{Behind, Standby, StandbySide, StandbyStream};
pub use types::{
    Component, DropReason, Event, InterfaceId, Latch, Local, MediaError, Remote, SessionId, Side,
    SideSpec, SideStats, StreamKind, StreamStats,
};
