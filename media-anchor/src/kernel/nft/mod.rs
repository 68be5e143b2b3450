//! The nftables way: a netdev table of our own, an ingress chain per device, one map per family.
//!
//! ```text
//! expr.rs      expressions that nftnl lacks
//! ruleset.rs   tables, chains and rules, as nftnl messages
//! elements.rs  elements: add, delete with echo, get by key, list
//! ban.rs       the drop set of the guard, in a table of its own
//! backend.rs   all of it behind `Backend`
//! ```

mod backend;
mod ban;

mod elements;
mod expr;
mod ruleset;

pub(crate) use backend::Nft;
pub use ban::{Ban, BanConfig, BanError, BanSet, BanTarget};
