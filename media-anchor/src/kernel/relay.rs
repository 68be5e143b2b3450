//! The kernel relay behind [`Offload`]: which flows are in the kernel, and keeping that true.
//!
//! It owns the table of installed flows. Planning is `plan.rs`, commits are `apply.rs`, the kernel
//! itself is a [`Backend`] and a [`Network`]; repairs are `mend.rs`. It runs on the driver thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};

use super::apply::{Applier, Tx, TxDone};
use super::backend::{Backend, Device, Fault, Op};
use super::element::{Counters, Element, Key};
use super::network::Network;
use super::plan::{self, Reason};
use super::report::{Report, Totals};
use crate::plan_types::{Flow, FlowChange, FlowCounters, FlowId, FlowOutcome, Offload};

/// Limits and rhythm.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Flows at most.
    pub(crate) flows_max: usize,
    /// Devices to look at besides those that the flows name by their addresses.
    pub(crate) devices: Vec<String>,
    /// How often the kernel's elements are compared with the flows.
    pub(crate) audit_every: Duration,
    /// How often it is checked that the table stands.
    pub(crate) check_every: Duration,
    /// How long until a way that was lost is tried again.
    pub(crate) retry_after: Duration,
}

/// A flow in the kernel.
pub(super) struct Installed {
    pub(super) flow: Flow,
    pub(super) element: Element,
    /// Counted by earlier elements of the flow.
    pub(super) carried: Counters,
    /// The last reading of the present element.
    pub(super) last: Counters,
}

impl Installed {
    /// Takes the final counters of the present element; a lost element gives its last reading.
    pub(super) fn settle(&mut self, counted: Option<Counters>) {
        self.carried = self.carried.plus(counted.unwrap_or(self.last));
        self.last = Counters::default();
    }

    pub(super) fn counters(&self) -> FlowCounters {
        let total = self.carried.plus(self.last);
        FlowCounters {
            packets: total.packets,
            bytes: total.payload_bytes(self.element.key.is_v6()),
        }
    }
}

/// The kernel relay over one backend.
pub(crate) struct Relay {
    pub(super) backend: Box<dyn Backend>,
    pub(super) network: Box<dyn Network>,
    pub(super) applier: Applier,
    pub(super) settings: Settings,
    pub(super) flows: HashMap<FlowId, Installed>,
    pub(super) by_key: HashMap<Key, FlowId>,
    /// How many of the flows stand by.
    pub(super) standing_by: u64,
    /// Devices that are looked at, by name, as they were attached.
    pub(super) attached: HashMap<String, Device>,
    pub(super) wanted: HashSet<String>,
    /// Evictions to report at the next poll.
    pub(super) backlog: Vec<FlowOutcome>,
    pub(super) totals: Totals,
    pub(super) refused: [u64; Reason::ALL.len()],
    pub(super) report: Arc<Report>,
    pub(super) down_since: Option<Instant>,
    pub(super) checked_at: Instant,
    pub(super) audited_at: Instant,
    pub(super) auditing: bool,
}

/// What one change asks of the kernel.
enum Step {
    Install(Box<Flow>, Element),
    Remove(FlowId),
}

/// A change on its way: where its outcome goes and where its operation stands.
struct Pending {
    slot: usize,
    tx: usize,
    op: usize,
    step: Step,
}

impl Relay {
    pub(crate) fn new(
        backend: Box<dyn Backend>,
        network: Box<dyn Network>,
        settings: Settings,
        report: Arc<Report>,
    ) -> Self {
        let now = Instant::now();
        let wanted = settings.devices.iter().cloned().collect();
        let mut relay = Relay {
            backend,
            network,
            applier: Applier::default(),
            settings,
            flows: HashMap::new(),
            by_key: HashMap::new(),
            standing_by: 0,
            attached: HashMap::new(),
            wanted,
            backlog: Vec::new(),
            totals: Totals::default(),
            refused: [0; Reason::ALL.len()],
            report,
            down_since: None,
            checked_at: now,
            audited_at: now,
            auditing: false,
        };
        relay.sync_devices();
        relay.publish();
        relay
    }

    /// Plans a flow and makes sure that its devices are looked at.
    pub(super) fn plan(&mut self, flow: &Flow) -> Result<Element, Reason> {
        if self.down_since.is_some() {
            return Err(Reason::Down);
        }
        plan::quads(flow)?;
        let (src, dst) = (flow.leaves.src.ip().to_canonical(), flow.leaves.dst.ip().to_canonical());
        let hop = self.network.next_hop(src, dst)?;
        // An address that is not ours yet (standby) has no device: those of the settings and of
        // the other direction are looked at already.
        let ingress = self.network.device_of(flow.arrives.dst.ip().to_canonical());
        let ingress_mtu = ingress.as_ref().map(|(_, mtu)| *mtu);
        let limit = if self.backend.checks_length() { None } else { ingress_mtu };
        let element = plan::element(flow, hop, limit)?;
        let egress = self.network.device(hop.oif);
        for (device, _) in ingress.into_iter().chain(egress) {
            self.look_at(&device)?;
        }
        Ok(element)
    }

    /// Attaches a device unless it is as it was.
    pub(super) fn look_at(&mut self, device: &Device) -> Result<(), Reason> {
        if self.attached.get(&device.name) == Some(device) {
            return Ok(());
        }
        self.wanted.insert(device.name.clone());
        match self.backend.attach(device) {
            Ok(()) => {
                self.attached.insert(device.name.clone(), device.clone());
                Ok(())
            }
            Err(fault) => {
                tracing::warn!(device = device.name, %fault, "device can't be attached");
                Err(Reason::DeviceKind)
            }
        }
    }

    /// Queues what a change asks for, or says at once why not.
    fn stage(&mut self, change: &FlowChange, staged: &Staged) -> Result<Step, FlowOutcome> {
        match change {
            FlowChange::Remove(id) if self.flows.contains_key(id) => Ok(Step::Remove(*id)),
            FlowChange::Remove(id) => Err(FlowOutcome::Removed(*id, FlowCounters::default())),
            FlowChange::Install(flow) => {
                if let Some(outcome) = self.promote(flow, staged) {
                    return Err(outcome);
                }
                match self.plan_new(flow, staged) {
                    Ok(element) => Ok(Step::Install(Box::new(*flow), element)),
                    Err(reason) => Err(self.refuse(flow.id, reason)),
                }
            }
        }
    }

    /// A flow of our own takes over the one that stood by for it, as it is in the kernel; what
    /// stood by otherwise, or in its place, leaves the kernel.
    fn promote(&mut self, flow: &Flow, staged: &Staged) -> Option<FlowOutcome> {
        if flow.id.is_standby() || self.standing_by == 0 {
            return None;
        }
        let planned = self.plan(flow).ok();
        let of_key = planned.and_then(|e| self.by_key.get(&e.key)).filter(|id| id.is_standby());
        let suspects = [Some(flow.id.standby()), of_key.copied()];
        for id in suspects.into_iter().flatten().filter(|id| !staged.touches(*id)) {
            let Some(stood) = self.flows.get(&id) else { continue };
            if Some(stood.element) != planned || self.flows.contains_key(&flow.id) {
                let counted = self.delete_alone(stood.element.key);
                if let Some(mut gone) = self.forget(id) {
                    gone.settle(counted);
                    self.backlog.push(FlowOutcome::Removed(id, gone.counters()));
                }
                continue;
            }
            let mut ours = self.forget(id)?;
            ours.flow = *flow;
            self.by_key.insert(ours.element.key, flow.id);
            self.flows.insert(flow.id, ours);
            self.totals.promoted += 1;
            self.backlog.push(FlowOutcome::Removed(id, FlowCounters::default()));
            return Some(FlowOutcome::Installed(flow.id));
        }
        None
    }

    /// Takes a flow off the books.
    pub(super) fn forget(&mut self, id: FlowId) -> Option<Installed> {
        let gone = self.flows.remove(&id)?;
        if self.by_key.get(&gone.element.key) == Some(&id) {
            self.by_key.remove(&gone.element.key);
        }
        self.standing_by -= u64::from(id.is_standby());
        Some(gone)
    }

    fn plan_new(&mut self, flow: &Flow, staged: &Staged) -> Result<Element, Reason> {
        let element = self.plan(flow)?;
        if self.flows.len() + staged.installing.len() >= self.settings.flows_max {
            return Err(Reason::Full);
        }
        let owner = self.by_key.get(&element.key);
        let taken = owner.is_some_and(|id| !staged.removing.contains(id))
            || staged.keys.contains(&element.key);
        let living = self.flows.contains_key(&flow.id) && !staged.removing.contains(&flow.id);
        if taken || living { Err(Reason::KeyTaken) } else { Ok(element) }
    }

    pub(super) fn refuse(&mut self, id: FlowId, reason: Reason) -> FlowOutcome {
        self.refused[reason.index()] += 1;
        tracing::debug!(?id, %reason, "flow stays in userspace");
        FlowOutcome::Refused(id, reason.stay())
    }

    /// Commits what was staged and fills the outcomes.
    fn flush(&mut self, staged: &mut Staged, slots: &mut [Option<FlowOutcome>]) {
        let Staged { txs, pending, .. } = std::mem::take(staged);
        if pending.is_empty() {
            return;
        }
        let mut results = self.applier.run(self.backend.as_mut(), &txs);
        if results.iter().any(|r| matches!(r, Err(Fault::TableGone))) {
            // Everything is put back first: removals then find what they remove.
            self.rebuild();
            let again: Vec<usize> = (0..txs.len()).filter(|i| results[*i].is_err()).collect();
            let retry: Vec<Tx> = again.iter().map(|i| txs[*i].clone()).collect();
            let retried = self.applier.run(self.backend.as_mut(), &retry);
            for (i, result) in again.into_iter().zip(retried) {
                results[i] = result;
            }
        }
        if results.iter().any(|r| matches!(r, Err(Fault::Permission | Fault::TableGone))) {
            self.go_down();
        }
        for Pending { slot, tx, op, step } in pending {
            let result = &results[tx];
            let outcome = match step {
                Step::Install(flow, element) => self.installed(*flow, element, result),
                Step::Remove(id) => self.removed(id, op, result),
            };
            if let Some(slot) = slots.get_mut(slot) {
                *slot = Some(outcome);
            }
        }
    }

    fn installed(
        &mut self,
        flow: Flow,
        element: Element,
        result: &Result<TxDone, Fault>,
    ) -> FlowOutcome {
        if let Err(fault) = result {
            tracing::debug!(id = ?flow.id, %fault, "kernel refused a flow");
            return self.refuse(flow.id, reason_of(*fault));
        }
        let id = flow.id;
        let installed =
            Installed { flow, element, carried: Counters::default(), last: Counters::default() };
        self.by_key.insert(element.key, id);
        self.flows.insert(id, installed);
        self.standing_by += u64::from(id.is_standby());
        self.totals.installed += 1;
        FlowOutcome::Installed(id)
    }

    fn removed(&mut self, id: FlowId, op: usize, result: &Result<TxDone, Fault>) -> FlowOutcome {
        let Some(mut gone) = self.forget(id) else {
            return FlowOutcome::Removed(id, FlowCounters::default());
        };
        let counted = match result {
            Ok(done) => done.get(op).copied().flatten(),
            // The rest of its transaction was refused: a deletion must not depend on that.
            Err(_) => self.delete_alone(gone.element.key),
        };
        gone.settle(counted);
        self.totals.removed += 1;
        FlowOutcome::Removed(id, gone.counters())
    }

    /// Deletes one element by itself; what can't be deleted is left to the audit.
    pub(super) fn delete_alone(&mut self, key: Key) -> Option<Counters> {
        let tx = Tx::from_iter([Op::Delete(key)]);
        let results = self.applier.run(self.backend.as_mut(), &[tx]);
        results.into_iter().next()?.ok()?.first().copied().flatten()
    }

    /// Writes the snapshot.
    pub(super) fn publish(&mut self) {
        self.totals.split = self.applier.mended.split;
        let mut devices: Vec<String> = self.attached.keys().cloned().collect();
        devices.sort();
        let flows = u64::try_from(self.flows.len()).unwrap_or(u64::MAX);
        let missing = self.applier.mended.missing;
        self.report.update(|status| {
            status.devices = devices;
            status.flows = flows;
            status.standby = self.standing_by;
            status.totals = self.totals;
            status.totals.missing += missing;
            status.totals.leaked += self.applier.mended.stale;
            status.refused = self.refused;
        });
    }
}

/// Changes that go into the next commits together.
#[derive(Default)]
struct Staged {
    txs: Vec<Tx>,
    pending: Vec<Pending>,
    installing: HashSet<FlowId>,
    removing: HashSet<FlowId>,
    keys: HashSet<Key>,
}

impl Staged {
    /// Whether `change` undoes what is staged: that must be committed first.
    fn undone_by(&self, change: &FlowChange) -> bool {
        match change {
            FlowChange::Remove(id) => self.installing.contains(id) || self.removing.contains(id),
            FlowChange::Install(flow) => self.installing.contains(&flow.id),
        }
    }

    /// Whether something is staged that concerns the flow.
    fn touches(&self, id: FlowId) -> bool {
        self.installing.contains(&id) || self.removing.contains(&id)
    }

    fn push(&mut self, slot: usize, step: Step, op: Op, joins: bool) {
        if !joins || self.txs.is_empty() {
            self.txs.push(Tx::new());
        }
        match &step {
            Step::Install(flow, element) => {
                self.installing.insert(flow.id);
                self.keys.insert(element.key);
            }
            Step::Remove(id) => {
                self.removing.insert(*id);
            }
        }
        let tx = self.txs.len() - 1;
        let op_at = self.txs[tx].len();
        self.txs[tx].push(op);
        self.pending.push(Pending { slot, tx, op: op_at, step });
    }
}

/// The flow that a change speaks of.
fn id_of(change: &FlowChange) -> FlowId {
    match change {
        FlowChange::Install(flow) => flow.id,
        FlowChange::Remove(id) => *id,
    }
}

pub(super) fn reason_of(fault: Fault) -> Reason {
    match fault {
        Fault::Full => Reason::Full,
        Fault::Permission | Fault::TableGone => Reason::Down,
        Fault::NoDevice => Reason::DeviceDown,
        Fault::NoRoom
        | Fault::Exists
        | Fault::Missing
        | Fault::Unsupported(_)
        | Fault::Other(_) => Reason::Refused,
    }
}

impl Offload for Relay {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn apply(&mut self, changes: &[FlowChange], outcomes: &mut Vec<FlowOutcome>) {
        let mut slots: Vec<Option<FlowOutcome>> = vec![None; changes.len()];
        let mut staged = Staged::default();
        let mut session = None;
        for (slot, change) in changes.iter().enumerate() {
            if staged.undone_by(change) {
                self.flush(&mut staged, &mut slots);
            }
            match self.stage(change, &staged) {
                Err(outcome) => slots[slot] = Some(outcome),
                Ok(step) => {
                    let op = match &step {
                        Step::Install(_, element) => Op::Add(*element),
                        Step::Remove(id) => Op::Delete(self.flows[id].element.key),
                    };
                    let joins = session == Some(id_of(change).session);
                    session = Some(id_of(change).session);
                    staged.push(slot, step, op, joins);
                }
            }
        }
        self.flush(&mut staged, &mut slots);
        outcomes.extend(slots.into_iter().flatten());
    }

    fn counters(&mut self, flows: &[FlowId], out: &mut Vec<(FlowId, FlowCounters)>) {
        self.read_counters(flows);
        let known = flows.iter().filter_map(|id| Some((*id, self.flows.get(id)?.counters())));
        out.extend(known);
    }

    fn poll(&mut self, outcomes: &mut Vec<FlowOutcome>) {
        self.maintain(Instant::now());
        outcomes.append(&mut self.backlog);
        self.publish();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.backend.remove();
        self.report.update(|status| {
            status.devices.clear();
            status.flows = 0;
            status.standby = 0;
        });
    }
}
