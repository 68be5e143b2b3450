//! One signalling shard as a sans-IO machine: [`Input`] and time in, [`Output`] out.
//!
//! The contract between the core and the edge lives in `io.rs`. What a shard does with it
//! (matching, dispatch to call, registrar or probe) belongs to `shard.rs` beside it.

mod ask;
mod cache;
mod config;
mod guarded;
mod io;
mod probe;
mod registrant;
mod room;
mod shard;
mod stun_pings;
mod users;

pub(crate) use ask::Waiting;
pub(crate) use cache::Cache;
pub use cache::CacheStats;
pub use config::*;
pub use io::*;
pub use probe::{ProbeCx, Prober};
pub(crate) use registrant::line;
pub use registrant::{Registrant, RegistrantCx};
pub(crate) use room::{Rooms, wait as wait_for_room};
pub use shard::Core;
