//! Keeping the kernel as the flows say: route and device changes, a table that is gone, elements
//! that are missing or left over, a way that was lost.
//!
//! What is asked for from outside is in `relay.rs`.

use std::time::Instant;

use super::apply::Tx;
use super::backend::{Fault, Op};
use super::element::{Counters, Element, Key};
use super::network::Changes;
use super::plan::{self, Reason};
use super::relay::{Installed, Relay, reason_of};
use crate::plan_types::{FlowId, FlowOutcome};

/// Pieces of a listing read in one poll.
const PIECES_PER_POLL: usize = 8;

impl Relay {
    /// Everything that is done between changes.
    pub(super) fn maintain(&mut self, now: Instant) {
        let changes = self.network.poll();
        if let Some(since) = self.down_since {
            if now.duration_since(since) >= self.settings.retry_after {
                self.come_up(now);
            }
            return;
        }
        if !changes.is_empty() {
            if changes.all || changes.devices {
                self.sync_devices();
            }
            if changes.all || !changes.prefixes.is_empty() {
                self.replan(&changes);
            }
        }
        if now.duration_since(self.checked_at) >= self.settings.check_every {
            self.checked_at = now;
            match self.backend.stands() {
                Ok(true) => {}
                Ok(false) => self.rebuild(),
                Err(Fault::Permission) => self.go_down(),
                Err(fault) => tracing::warn!(%fault, "kernel table can't be checked"),
            }
        }
        if self.auditing || now.duration_since(self.audited_at) >= self.settings.audit_every {
            self.auditing = true;
            self.audit(now);
        }
    }

    /// Attaches devices that came (back), forgets those that went.
    pub(super) fn sync_devices(&mut self) {
        let wanted: Vec<String> = self.wanted.iter().cloned().collect();
        for name in wanted {
            match self.network.named(&name) {
                // It says itself why it can't.
                Some((device, _)) => drop(self.look_at(&device)),
                None => {
                    if self.attached.remove(&name).is_some()
                        && let Err(fault) = self.backend.detach(&name)
                    {
                        tracing::debug!(device = name, %fault, "device not detached");
                    }
                }
            }
        }
    }

    /// Plans the flows again whose way may have changed.
    fn replan(&mut self, changes: &Changes) {
        let touched: Vec<FlowId> = self
            .flows
            .values()
            .filter(|i| changes.touch(i.flow.leaves.dst.ip().to_canonical()))
            .map(|i| i.flow.id)
            .collect();
        let mut moves = Vec::new();
        for id in touched {
            let Some(flow) = self.flows.get(&id).map(|i| i.flow) else { continue };
            let desired = self.plan(&flow);
            let Some(installed) = self.flows.get(&id) else { continue };
            let ops = plan::diff(Some(&installed.element), desired.as_ref().ok());
            if !ops.is_empty() {
                moves.push((id, desired, Tx::from_vec(ops)));
            }
        }
        self.commit_moves(moves);
    }

    fn commit_moves(&mut self, moves: Vec<(FlowId, Result<Element, Reason>, Tx)>) {
        let txs: Vec<Tx> = moves.iter().map(|(_, _, tx)| tx.clone()).collect();
        let results = self.applier.run(self.backend.as_mut(), &txs);
        if results.iter().any(|r| matches!(r, Err(Fault::TableGone | Fault::Permission))) {
            self.rebuild();
            return;
        }
        for ((id, desired, _), result) in moves.into_iter().zip(results) {
            let Some(installed) = self.flows.get_mut(&id) else { continue };
            match (desired, result) {
                (Ok(element), Ok(done)) => {
                    installed.settle(done.first().copied().flatten());
                    installed.element = element;
                    self.totals.replanned += 1;
                }
                (Err(reason), Ok(done)) => {
                    installed.settle(done.first().copied().flatten());
                    self.evict(id, reason);
                }
                (_, Err(fault)) => {
                    let key = installed.element.key;
                    let counted = self.delete_alone(key);
                    if let Some(installed) = self.flows.get_mut(&id) {
                        installed.settle(counted);
                    }
                    self.evict(id, reason_of(fault));
                }
            }
        }
    }

    /// Forgets a flow whose element is out of the kernel and tells so.
    fn evict(&mut self, id: FlowId, reason: Reason) {
        let Some(gone) = self.forget(id) else { return };
        self.totals.evicted += 1;
        self.refused[reason.index()] += 1;
        tracing::debug!(?id, %reason, "flow went back to userspace");
        self.backlog.push(FlowOutcome::Evicted(id, reason.stay(), gone.counters()));
    }

    /// Makes the table again with all that belongs in it. Packets meanwhile go to userspace; what
    /// was counted since the last reading is lost with the old table.
    pub(super) fn rebuild(&mut self) {
        self.totals.rebuilt += 1;
        self.auditing = false;
        tracing::warn!(flows = self.flows.len(), "kernel table is gone, made again");
        self.attached.clear();
        if let Err(fault) = self.backend.reset() {
            tracing::warn!(%fault, "kernel table can't be made");
            self.go_down();
            return;
        }
        self.sync_devices();
        let mut ids = Vec::with_capacity(self.flows.len());
        let mut txs = Vec::with_capacity(self.flows.len());
        for (id, installed) in &mut self.flows {
            installed.settle(None);
            ids.push(*id);
            txs.push(Tx::from_iter([Op::Add(installed.element)]));
        }
        let results = self.applier.run(self.backend.as_mut(), &txs);
        if results.iter().any(|r| matches!(r, Err(Fault::TableGone | Fault::Permission))) {
            self.go_down();
            return;
        }
        for (id, result) in ids.into_iter().zip(results) {
            if let Err(fault) = result {
                self.evict(id, reason_of(fault));
            }
        }
    }

    /// Gives the way up for now: all flows go back to userspace.
    pub(super) fn go_down(&mut self) {
        if self.down_since.is_some() {
            return;
        }
        tracing::error!(way = self.backend.name(), "kernel relay lost, relaying in userspace");
        self.down_since = Some(Instant::now());
        // It may still forward what it has: read what can be read, then take it out.
        let ids: Vec<FlowId> = self.flows.keys().copied().collect();
        self.read_counters(&ids);
        self.backend.remove();
        self.attached.clear();
        for id in ids {
            self.evict(id, Reason::Down);
        }
        let way = self.backend.name();
        self.report.update(|status| {
            status.way = "off";
            status.reason = format!("{way} was lost; it is tried again");
        });
    }

    fn come_up(&mut self, now: Instant) {
        self.down_since = Some(now);
        if let Err(fault) = self.backend.reset() {
            tracing::debug!(%fault, "kernel relay still lost");
            return;
        }
        self.down_since = None;
        self.sync_devices();
        let way = self.backend.name();
        tracing::info!(way, "kernel relay is back");
        self.report.update(|status| {
            status.way = way;
            status.reason = format!("{way} came back");
        });
    }

    /// Reads counters into the flows; elements that are missing are put back.
    pub(super) fn read_counters(&mut self, ids: &[FlowId]) {
        let known: Vec<(FlowId, Key)> =
            ids.iter().filter_map(|id| Some((*id, self.flows.get(id)?.element.key))).collect();
        let keys: Vec<Key> = known.iter().map(|(_, key)| *key).collect();
        let mut readings = Vec::with_capacity(keys.len());
        match self.backend.read(&keys, &mut readings) {
            Ok(()) => {}
            Err(Fault::TableGone) => {
                if self.down_since.is_none() {
                    self.rebuild();
                }
                return;
            }
            Err(fault) => {
                tracing::warn!(%fault, "kernel counters can't be read");
                return;
            }
        }
        let mut missing = Vec::new();
        for ((id, _), reading) in known.into_iter().zip(readings) {
            match (self.flows.get_mut(&id), reading) {
                (Some(installed), Some(counters)) => installed.last = counters,
                (Some(_), None) => missing.push(id),
                (None, _) => {}
            }
        }
        if self.down_since.is_none() {
            self.put_back(&missing);
        }
    }

    fn put_back(&mut self, ids: &[FlowId]) {
        if ids.is_empty() {
            return;
        }
        tracing::warn!(elements = ids.len(), "elements were missing in the kernel");
        let add = |installed: &mut Installed| {
            installed.settle(None);
            Tx::from_iter([Op::Add(installed.element)])
        };
        let txs: Vec<Tx> = ids.iter().filter_map(|id| self.flows.get_mut(id).map(add)).collect();
        self.totals.missing += u64::try_from(txs.len()).unwrap_or(0);
        let results = self.applier.run(self.backend.as_mut(), &txs);
        for (id, result) in ids.iter().zip(results) {
            match result {
                Ok(_) => {}
                Err(Fault::TableGone) => return self.rebuild(),
                Err(fault) => self.evict(*id, reason_of(fault)),
            }
        }
    }

    /// Compares a piece of the kernel's listing with the flows. A listing may show what was deleted
    /// meanwhile, so a suspect is looked up before it is deleted.
    fn audit(&mut self, now: Instant) {
        let mut keys = Vec::new();
        for _ in 0..PIECES_PER_POLL {
            match self.backend.list(&mut keys) {
                Ok(false) => {}
                Ok(true) => {
                    self.auditing = false;
                    self.audited_at = now;
                    break;
                }
                Err(fault) => {
                    tracing::debug!(%fault, "kernel listing broke off");
                    self.auditing = false;
                    self.audited_at = now;
                    break;
                }
            }
        }
        keys.retain(|key| !self.by_key.contains_key(key));
        let mut readings: Vec<Option<Counters>> = Vec::new();
        if keys.is_empty() || self.backend.read(&keys, &mut readings).is_err() {
            return;
        }
        for (key, reading) in keys.into_iter().zip(readings) {
            if reading.is_some() {
                tracing::warn!(?key, "element of no flow deleted from the kernel");
                self.totals.leaked += 1;
                self.delete_alone(key);
            }
        }
    }
}
