//! Between the core's records and the replicated state.

pub mod record;
