//! What goes wrong, and how it is put right at the end.

use std::time::Duration;

use super::world::{Host, SLOW_MS, SYNC_MS, World};
use crate::core::Input;
use crate::types::NodeId;

/// A disk that does not answer for seconds.
const STUCK_MS: u64 = 4_000;

#[derive(Default)]
pub(super) struct Faults {
    pub(super) count: u64,
}

impl Faults {
    pub(super) fn strike(world: &mut World) -> Result<(), String> {
        world.count_fault();
        let ids = world.ids();
        let victim = world.chance.pick(&ids);
        match world.chance.below(12) {
            0 | 1 => crash(world, victim),
            2 => power_cut(world, &ids),
            3 | 4 => {
                let ms = world.chance.range(200, 5_000);
                let until = world.now + Duration::from_millis(ms);
                world.host(victim).paused_until = until;
            }
            5 => split(world, &ids),
            6 => {
                // One alone: often the leader or the holder of an address.
                world.side = [Self::leader(world).unwrap_or(victim)].into();
            }
            7 => world.side = [victim].into(),
            8 => world.side.clear(),
            9 => {
                // Slow for long, or stuck for seconds.
                let stuck = world.chance.percent(30);
                let host = world.host(victim);
                host.sync_ms_max = match host.sync_ms_max {
                    SYNC_MS if stuck => STUCK_MS,
                    SYNC_MS => SLOW_MS,
                    _ => SYNC_MS,
                };
            }
            10 => {
                if let Some(leader) = Self::leader(world) {
                    world.give(leader, Input::TransferLeader(victim))?;
                }
            }
            _ => world.loss_percent = world.chance.below(25),
        }
        Ok(())
    }

    pub(super) fn leader(world: &World) -> Option<NodeId> {
        let leads = |core: &crate::core::Core| core.progress().is_leader;
        let leads = |host: &Host| host.core.as_ref().is_some_and(leads);
        world.hosts.iter().find(|(_, host)| leads(host)).map(|(id, _)| *id)
    }

    pub(super) fn heal(world: &mut World) {
        world.side.clear();
        world.loss_percent = 0;
        for id in world.ids() {
            world.host(id).sync_ms_max = SYNC_MS;
            if world.host(id).core.is_none() {
                world.start_after(id, 10);
            }
        }
    }
}

fn crash(world: &mut World, id: NodeId) {
    world.crash(id);
    let ms = world.chance.range(50, 4_000);
    world.start_after(id, ms);
}

/// A majority, or all, lose power at the same moment.
fn power_cut(world: &mut World, ids: &[NodeId]) {
    let all = world.chance.percent(50);
    for (n, id) in ids.iter().enumerate() {
        if all || n <= ids.len() / 2 {
            crash(world, *id);
        }
    }
}

fn split(world: &mut World, ids: &[NodeId]) {
    world.side.clear();
    for id in ids {
        if world.chance.percent(50) {
            world.side.insert(*id);
        }
    }
}
