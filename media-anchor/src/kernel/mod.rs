//! The kernel relay: flows that need nothing but new addresses, forwarded without userspace.
//!
//! ```text
//! open.rs      which way is taken, and why
//! relay.rs     the flows in the kernel, behind `Offload`
//! mend.rs      route changes, lost tables, leaks, missing elements
//! plan.rs      flow and next hop → element; differences → operations
//! apply.rs     transactions → commits; what is done when the kernel refuses
//! network.rs   next hops, devices, addresses, and notices of their change
//! element.rs   key and action of one direction, as both ways encode them
//! backend.rs   what a kernel way does and how it fails
//! bans.rs      the drop set's thread
//! nft/         nftables at ingress
//! ebpf/        a TC program
//! netlink/     message writer, attribute reader, socket
//! report.rs    status
//! ```
//!
//! Entry points: [`open`] for the relay, [`Bans::start`] for the guard's drop set.

mod apply;
mod backend;
mod bans;
mod ebpf;
mod element;
mod mend;
mod netlink;
mod network;
mod nft;
mod open;
mod plan;
mod relay;
mod report;
#[cfg(test)]
mod tests;

pub use bans::{BanStatus, Bans, NotTaken};
pub use nft::{Ban, BanConfig, BanError, BanSet, BanTarget};
pub use open::{KernelConfig, Opened, Way, open};
pub use plan::Reason;
pub use report::{KernelStatus, Report, Totals};
