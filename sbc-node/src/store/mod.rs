//! Between the core's records and the replicated state: what a call writes, and what is done when
//! the cluster gives this node another's calls or addresses.

pub mod bans;
pub mod binding;
pub mod carrier;
pub mod cluster;
pub mod follow;
pub mod link;
mod owed;
mod pace;
pub mod record;
pub mod registrants;
pub mod rooms;
pub mod shares;
pub mod standby;
pub mod takeover;
pub mod tell;
