//! Name lookups of a shard: answered from its cache, or asked of the resolver beside it.

use std::time::Instant;

use sbc_core::core::{Input, ResolveError, ResolveId, ResolveQuery};

use super::Machine;
use super::run::Shard;
use crate::resolve::front::Step;
use crate::resolve::{Answer, Request, Usable};

impl<M: Machine> Shard<M> {
    pub(super) fn resolve(&mut self, id: ResolveId, query: &ResolveQuery, now: Instant) {
        let interface = self.interfaces.iter().find(|i| i.id == query.interface);
        let usable = interface.map(Usable::of).unwrap_or_default();
        match self.front.query(now, id, query, usable) {
            Step::Ready(result) => {
                self.stats.resolve_hits.add(1);
                // drain() is running: the outputs of this input are polled by the same loop.
                self.machine.handle(now, Input::Resolved { id, result }, &mut *self.anchor);
            }
            Step::Wait => {}
            Step::Ask(key) => {
                self.stats.resolve_misses.add(1);
                let request = Request { shard: self.index, key };
                if !self.outside.resolve(request.clone()) {
                    for id in self.front.refused(&request.key) {
                        self.refuse_resolution(id, now);
                    }
                }
            }
            Step::Full => self.refuse_resolution(id, now),
        }
    }

    pub(super) fn refuse_resolution(&mut self, id: ResolveId, now: Instant) {
        self.stats.resolve_full.add(1);
        let input = Input::Resolved { id, result: Err(ResolveError::Timeout) };
        self.machine.handle(now, input, &mut *self.anchor);
    }

    pub(super) fn resolved(&mut self, answer: Answer, now: Instant) {
        for (id, result) in self.front.answered(now, answer) {
            self.feed(Input::Resolved { id, result }, now);
        }
    }
}
