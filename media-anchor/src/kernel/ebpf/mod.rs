//! The TC eBPF way: a program at each device's ingress, one hash map per family.
//!
//! ```text
//! relay.bpf.c  the program, compiled by build.rs
//! map.rs       the maps, by bpf(2): add, take with its counters, walk
//! backend.rs   loading (aya), attaching, and all of it behind `Backend`
//! ```
//!
//! Program, maps and links belong to descriptors of this process: they go when it goes.

mod backend;
mod map;

pub(crate) use backend::{Ebpf, LoadError};
