//! A simulated network on a virtual clock: what the tests of the core run on.
//!
//! A [`World`] owns sans-IO hosts and the wire between them. Nothing here sleeps, opens a socket or
//! reads a clock after the start; the same seed gives the same run, byte for byte. Built for tests
//! only (feature `sim`).
//!
//! ```text
//! let mut world = World::new(seed, Faults { loss: 50, ..Faults::NONE });
//! let ua = world.add(Ua::new(), &[(InterfaceId(0), "10.0.0.1:5060".parse()?)]);
//! world.run_until(Duration::from_secs(60), |w| w.host(ua).done());
//! println!("{}", world.ladder());
//! ```

mod wire;
mod world;

pub use wire::{Fate, Faults, LogEntry};
pub use world::{Host, HostId, Transmit, World};
