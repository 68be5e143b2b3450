//! What must hold: an acknowledged write is never lost, an address has one holder at a time, equal
//! index means equal tables, nothing grows without bound, and once all is healed all agree.

use std::collections::{BTreeMap, BTreeSet};

use super::world::{ADDRESSES, World};
use crate::core::{Committed, Core, ProposeError, ReplyId};
use crate::types::{DialogKey, NodeId, Outcome};

#[derive(Default)]
pub(super) struct Checks {
    version: u64,
    asked: BTreeMap<ReplyId, (DialogKey, u64, bool)>,
    /// The highest acknowledged version of each dialog.
    acked: BTreeMap<DialogKey, u64>,
    acked_deletes: BTreeSet<DialogKey>,
    /// A delete was asked for; nothing more is written there.
    ending: BTreeSet<DialogKey>,
    count: u64,
    digests: BTreeMap<u64, u128>,
    declared: usize,
    leaders: BTreeMap<u64, NodeId>,
}

impl Checks {
    pub(super) fn acked(&self) -> u64 {
        self.count
    }

    pub(super) fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    pub(super) fn lives(&self, key: &DialogKey) -> bool {
        !self.ending.contains(key)
    }

    /// Addresses are declared one by one, again and again at first: it may get lost.
    pub(super) fn undeclared_address(&mut self) -> Option<(&'static str, u32)> {
        self.declared += 1;
        (self.declared <= 40).then(|| ADDRESSES[self.declared % ADDRESSES.len()])
    }

    pub(super) fn asked(&mut self, reply: ReplyId, key: DialogKey, version: u64, delete: bool) {
        self.asked.insert(reply, (key, version, delete));
        if delete {
            self.ending.insert(key);
        }
    }

    pub(super) fn answered(
        &mut self,
        reply: ReplyId,
        result: Result<Committed, ProposeError>,
    ) -> Result<(), String> {
        let Some((key, version, delete)) = self.asked.remove(&reply) else {
            return Ok(());
        };
        let Ok(Committed { outcome: Outcome::Done { changed }, .. }) = result else {
            return Ok(());
        };
        self.count += 1;
        if !delete {
            let highest = self.acked.entry(key).or_default();
            *highest = version.max(*highest);
        } else if changed && !self.acked_deletes.insert(key) {
            return Err(format!("{key:?} ended twice: two CDRs"));
        }
        Ok(())
    }

    /// A term has one leader.
    pub(super) fn one_leader(world: &mut World, id: NodeId) -> Result<(), String> {
        let Some(core) = &world.host(id).core else {
            return Ok(());
        };
        let Some(term) = core.reigns_in() else {
            return Ok(());
        };
        let first = *world.checks.leaders.entry(term).or_insert(id);
        if first != id {
            return Err(format!("term {term} has two leaders: {first} and {id}"));
        }
        Ok(())
    }

    /// At every instant: on whose devices an address is, of those who may answer (whose process runs
    /// and whose lease holds).
    pub(super) fn one_holder(world: &World) -> Result<(), String> {
        for (address, _) in ADDRESSES {
            let mut holder = None;
            for (id, host) in &world.hosts {
                let Some(core) = &host.core else {
                    continue;
                };
                let answers = core.leased(host.local(world.now)) && host.edge.holds(address);
                if host.paused_until > world.now || !answers {
                    continue;
                }
                if let Some(other) = holder.replace(*id) {
                    return Err(format!(
                        "{address} is held by two at {:?}: {other} and {id}",
                        world.now
                    ));
                }
            }
        }
        Ok(())
    }

    pub(super) fn digests(world: &mut World, id: NodeId) -> Result<(), String> {
        let Some(core) = &world.host(id).core else {
            return Ok(());
        };
        let index = core.applied();
        let digest = core.tables().read().expect("not poisoned").digest();
        let known = *world.checks.digests.entry(index).or_insert(digest);
        if known != digest {
            return Err(format!("node {id} differs at index {index}"));
        }
        Ok(())
    }

    pub(super) fn bounded(world: &mut World, id: NodeId) -> Result<(), String> {
        let Some(core) = &world.host(id).core else {
            return Ok(());
        };
        let (log_bytes, pending, waiting) = core.sizes();
        let rows = core.tables().read().expect("not poisoned").nodes().count();
        if rows > 9 {
            return Err(format!("node {id} knows {rows} members"));
        }
        if log_bytes > 512 * 1024 || pending > 4_096 || waiting > 2_000 {
            return Err(format!("node {id} grows: {log_bytes}, {pending}, {waiting}"));
        }
        Ok(())
    }

    /// All is healed: all are up and equal, and hold what was acknowledged.
    pub(super) fn converged(world: &World) -> Result<(), String> {
        let mut first: Option<(u64, u128)> = None;
        let mut held: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
        for (id, host) in &world.hosts {
            let core = host.core.as_ref().ok_or(format!("node {id} does not run"))?;
            let status = core.progress();
            let tables = core.tables();
            let tables = tables.read().expect("not poisoned");
            let here = (status.applied, tables.digest());
            let there = *first.get_or_insert(here);
            if here.0.abs_diff(there.0) > 50 || (here.0 == there.0 && here.1 != there.1) {
                return Err(format!("node {id} is at {}, another at {}", here.0, there.0));
            }
            let rows: BTreeSet<NodeId> = tables.nodes().map(|(id, _)| id).collect();
            let hosts: BTreeSet<NodeId> = world.hosts.keys().copied().collect();
            if rows != hosts || status.voters != hosts || !status.learners.is_empty() {
                let all = world.hosts.values().filter_map(|host| host.core.as_ref());
                let all: Vec<_> = all.map(Core::progress).collect();
                return Err(format!("{id} has rows {rows:?}; there are {hosts:?}: {all:#?}"));
            }
            if tables.format() != world.lowest_format() {
                return Err(format!("{id} writes format {}", tables.format()));
            }
            for (other, node) in tables.nodes() {
                if !node.state.is_eligible() {
                    let status = world.hosts.get(&other).and_then(|host| host.core.as_ref());
                    let status = status.map(Core::progress);
                    let ours = core.progress();
                    return Err(format!("{id} says that {other} is {node:?}: {status:?} {ours:?}"));
                }
            }
            for (address, _) in ADDRESSES {
                let by_core = core.holds(host.local(world.now), address);
                let told = host.edge.holds(address);
                if by_core {
                    held.entry(address).or_default().push(*id);
                    if !told {
                        return Err(format!("the edge of {id} was not told of {address}"));
                    }
                }
            }
            world.checks.kept(*id, core)?;
        }
        for (address, _) in ADDRESSES {
            if held.get(address).map(Vec::len) != Some(1) {
                return Err(format!("{address} is held by {:?}", held.get(address)));
            }
        }
        Ok(())
    }

    fn kept(&self, id: NodeId, core: &Core) -> Result<(), String> {
        let tables = core.tables();
        let tables = tables.read().expect("not poisoned");
        for (key, version) in &self.acked {
            match tables.dialog(key) {
                Some(dialog) => {
                    let bytes: [u8; 8] = dialog.value().try_into().expect("a version");
                    let found = u64::from_be_bytes(bytes);
                    if found < *version {
                        return Err(format!("{id} lost {key:?}: {found} instead of {version}"));
                    }
                }
                None if self.ending.contains(key) => {}
                None => return Err(format!("{id} lost {key:?}, version {version}")),
            }
        }
        let risen = self.acked_deletes.iter().find(|key| tables.dialog(key).is_some());
        match risen {
            Some(key) => Err(format!("{key:?} was deleted and is back on {id}")),
            None => Ok(()),
        }
    }
}
