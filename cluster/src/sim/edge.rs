//! What stands between the core and the network of a node: it holds addresses on devices, takes a
//! moment to drop them, and says to the cluster when it has.

use std::collections::{BTreeMap, BTreeSet};

use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::command::Op;

use super::Plant;
use super::world::{Happening, World};
use crate::command::Command;
use crate::core::Core;
use crate::event::Event;
use crate::state::NodeState;
use crate::types::NodeId;

const LOOKS_EVERY_MS: u64 = 250;

#[derive(Default)]
pub(super) struct Edge {
    /// What the core wants it to hold.
    wanted: BTreeSet<String>,
    /// What is on its devices.
    held: BTreeSet<String>,
    /// Which drain it is in.
    draining: Option<u64>,
}

impl Edge {
    pub(super) fn holds(&self, address: &str) -> bool {
        self.held.contains(address)
    }
}

impl World {
    pub(super) fn edge_told(&mut self, id: NodeId, event: Event) {
        match event {
            Event::OwnedAddresses { add, remove } => {
                let edge = &mut self.host(id).edge;
                edge.wanted.retain(|address| !remove.contains(address));
                edge.wanted.extend(add.iter().cloned());
                if edge.draining.is_none() {
                    edge.held.extend(add);
                }
                self.drop_later(id, remove);
            }
            Event::DrainRequested { drain } => {
                let edge = &mut self.host(id).edge;
                edge.draining = Some(drain);
                let all = edge.held.iter().cloned().collect();
                self.drop_later(id, all);
            }
            _ => {}
        }
    }

    fn drop_later(&mut self, id: NodeId, addresses: Vec<String>) {
        let life = self.host(id).life;
        let ms = self.chance.range(1, 60);
        self.after_ms(ms, Happening::Dropped(id, life, addresses));
        if self.plant == Plant::SaysDroppedTooEarly {
            self.at(self.now, Happening::Edge(id, life));
        }
    }

    pub(super) fn dropped(
        &mut self,
        id: NodeId,
        life: u64,
        addresses: &[String],
    ) -> Result<(), String> {
        let host = self.host(id);
        if host.life != life {
            return Ok(());
        }
        let edge = &mut host.edge;
        for address in addresses {
            if edge.draining.is_some() || !edge.wanted.contains(address) {
                edge.held.remove(address);
            }
        }
        self.say(id)
    }

    pub(super) fn edge_looks(&mut self, id: NodeId, life: u64) -> Result<(), String> {
        if self.host(id).life != life {
            return Ok(());
        }
        self.after_ms(LOOKS_EVERY_MS, Happening::Edge(id, life));
        let (now, host) = (self.now, self.host(id));
        let Some(tables) = host.core.as_ref().map(Core::tables) else {
            return Ok(());
        };
        if host.paused_until > now {
            return Ok(());
        }
        let state = tables.read().expect("not poisoned").node(id).map(|row| row.state);
        if host.edge.draining.is_some() && state == Some(NodeState::Up) {
            host.edge.draining = None;
            host.edge.held = host.edge.wanted.clone();
        }
        self.say(id)
    }

    /// Says what was let go, as often as it takes.
    fn say(&mut self, id: NodeId) -> Result<(), String> {
        let early = self.plant == Plant::SaysDroppedTooEarly;
        let (now, host) = (self.now, self.host(id));
        let Some(tables) = host.core.as_ref().map(Core::tables) else {
            return Ok(());
        };
        if host.paused_until > now {
            return Ok(());
        }
        let (released, state) = {
            let tables = tables.read().expect("not poisoned");
            let groups: BTreeMap<u32, u64> = tables
                .addresses()
                .filter(|(address, _)| early || !host.edge.holds(address))
                .filter_map(|(_, row)| Some((row.group, row.is_asked_of(id)?)))
                .collect();
            (groups, tables.node(id).map(|row| row.state))
        };
        let done = host.edge.draining.filter(|_| early || host.edge.held.is_empty());
        for (group, asked) in released {
            let op = Op::ReleaseAddresses(pb::ReleaseAddresses { group, node: id.0, asked });
            self.propose(id, Command::new(op), None)?;
        }
        if let Some(drain) = done.filter(|_| state == Some(NodeState::Draining)) {
            let op = Op::HandOver(pb::HandOver { id: id.0, drain });
            self.propose(id, Command::new(op), None)?;
        }
        Ok(())
    }
}
