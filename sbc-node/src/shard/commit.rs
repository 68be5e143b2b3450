//! The seam between a shard and the replicated state.
//!
//! A node without a cluster holds its calls in memory alone; what it would write is dropped, and
//! who waits for a commit is told at once that there is none.

use std::time::Duration;

use bytes::Bytes;
use sbc_core::b2bua::Cdr;
use sbc_core::core::{Record, ResolveId, StoreId, Wanted};
use sbc_core::net::Flow;
use sbc_core::routing::UserPlace;

use super::run::Elsewhere;
use crate::telemetry::cdr::CdrSink;

/// Takes replicated writes off the shards' hands. Called on a shard: it must not wait.
pub trait Store: Send + Sync {
    /// Starts a write; the outcome goes to shard `shard` as `Input::Stored` when `wait` is set.
    /// False means that there will be none: the call goes on unprotected.
    fn write(&self, shard: usize, id: StoreId, wait: Option<Duration>, record: Record) -> bool;

    /// See [`Outside::elsewhere`](super::run::Outside::elsewhere).
    fn elsewhere(&self, _: &Wanted, _: &Flow, _: &Bytes) -> Elsewhere {
        Elsewhere::Here(None)
    }

    /// See [`Outside::send_elsewhere`](super::run::Outside::send_elsewhere).
    fn send_elsewhere(&self, _: &Flow, _: &Bytes) -> bool {
        false
    }

    /// See [`Outside::ask_room`](super::run::Outside::ask_room).
    fn ask_room(&self, _shard: usize, _: ResolveId, _: UserPlace) -> bool {
        false
    }

    /// A call attempt is over: its record goes to `sink`, unless another node tells it.
    fn ended(&self, cdr: Box<Cdr>, sink: &CdrSink) {
        sink.push(cdr);
    }
}

/// A node by itself: nothing is replicated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Store for Alone {
    fn write(&self, _: usize, _: StoreId, _: Option<Duration>, _: Record) -> bool {
        false
    }
}
