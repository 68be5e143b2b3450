//! What the node tells the outside: logs, metrics, call detail records, live traces.
//!
//! Nothing here is needed for a call to work, and nothing here makes a shard wait.

pub mod cdr;
pub mod cdr_json;
pub mod events;
pub mod hep;
mod hep_stream;
pub mod http;
pub mod log;
pub mod metrics;
pub mod outside;
mod span_source;
pub mod spans;
pub mod tap;
pub mod time;
pub mod trace;
mod unfinished;
