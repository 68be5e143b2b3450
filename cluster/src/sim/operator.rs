//! What people do to a cluster on purpose, while other things go wrong: nodes join, leave, are
//! drained, lose their disk and are replaced, are updated; addresses are moved. One change of the
//! membership at a time, as docs/cluster.md asks; each is pursued until it is done.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use bytes::Bytes;
use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::command::Op;

use super::Plant;
use super::disk::Disk;
use super::faults::Faults;
use super::world::{ADDRESSES, ENDS, FAULTS_UNTIL, Happening, LATER, World};
use crate::command::Command;
use crate::core::{Committed, Core, ProposeError, ReplyId};
use crate::state::{NodeState, Tables};
use crate::types::{NodeId, Outcome};

const WORKS_EVERY_MS: u64 = 200;
const TOKEN_TTL_MS: u64 = 600_000;
/// Nodes at most.
const NODES_MAX: usize = 6;

/// What was brought about.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    joined: u64,
    replaced: u64,
    left: u64,
    drained: u64,
    moved: u64,
    updated: u64,
}

impl Tally {
    pub(super) fn each_happened(&self) -> bool {
        [self.joined, self.replaced, self.left, self.drained, self.moved, self.updated]
            .iter()
            .all(|n| *n > 0)
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.joined += other.joined;
        self.replaced += other.replaced;
        self.left += other.left;
        self.drained += other.drained;
        self.moved += other.moved;
        self.updated += other.updated;
    }
}

/// The one change of the membership that is under way.
enum Change {
    Join {
        name: String,
        token: [u8; 32],
        replaces: bool,
        admitted: Option<NodeId>,
    },
    /// It runs and is to come up.
    Await {
        id: NodeId,
        name: String,
        replaces: bool,
    },
    Leave(NodeId),
}

pub(super) struct Operator {
    pub(super) tally: Tally,
    change: Option<Change>,
    /// Answers that name a new node.
    asked: BTreeMap<ReplyId, [u8; 32]>,
    draining: Option<NodeId>,
    /// The cluster began with a former release and is being updated.
    updates: bool,
    next: u64,
}

impl Operator {
    pub(super) fn new(updates: bool) -> Self {
        Operator {
            tally: Tally::default(),
            change: None,
            asked: BTreeMap::new(),
            draining: None,
            updates,
            next: 1,
        }
    }

    pub(super) fn answered(&mut self, reply: ReplyId, result: &Result<Committed, ProposeError>) {
        let Some(asked) = self.asked.remove(&reply) else {
            return;
        };
        if let Ok(Committed { outcome: Outcome::Node(id), .. }) = result
            && let Some(Change::Join { token, admitted, .. }) = &mut self.change
            && *token == asked
        {
            *admitted = Some(*id);
        }
    }

    /// Looks around, goes on with what is under way, and now and then begins something.
    pub(super) fn work(world: &mut World) -> Result<(), String> {
        if world.calm {
            return Ok(());
        }
        if world.now < ENDS {
            world.after_ms(WORKS_EVERY_MS, Happening::Operator);
        }
        let running: Vec<NodeId> = world
            .hosts
            .iter()
            .filter(|(_, host)| host.core.is_some() && host.paused_until <= world.now)
            .map(|(id, _)| *id)
            .collect();
        if running.is_empty() {
            return Ok(());
        }
        let via = world.chance.pick(&running);
        match world.operator.change.take() {
            Some(Change::Join { name, token, replaces, admitted }) => {
                join(world, via, name, token, replaces, admitted)?;
            }
            Some(Change::Await { id, name, replaces }) => awaited(world, via, id, name, replaces),
            Some(Change::Leave(id)) => leave(world, via, id)?,
            None => {}
        }
        if !world.hosts.contains_key(&via) {
            // It was the one that left.
            return Ok(());
        }
        end_drain(world, via)?;
        if world.now >= FAULTS_UNTIL {
            end_drains(world, via)?;
        }
        if world.now < FAULTS_UNTIL {
            begin(world, via, &running)?;
        } else if world.operator.updates {
            // An update is finished, one after another.
            update(world);
        }
        Ok(())
    }
}

fn look<R>(world: &mut World, via: NodeId, look: impl FnOnce(&Tables) -> R) -> R {
    let tables = world.host(via).core.as_ref().map(Core::tables).expect("it runs");
    let tables = tables.read().expect("not poisoned");
    look(&tables)
}

/// Whether Raft's members, the table and the machines agree, on the leader and on a majority: nothing
/// is under way.
fn settled(world: &mut World) -> bool {
    let Some(leader) = Faults::leader(world) else {
        return false;
    };
    let hosts: Vec<NodeId> = world.ids();
    let agrees = |core: &Core| {
        let status = core.progress();
        status.learners.is_empty() && status.voters.iter().copied().eq(hosts.iter().copied())
    };
    let cores = |id: &NodeId| world.hosts[id].core.as_ref();
    let agreed = hosts.iter().filter_map(cores).filter(|core| agrees(core)).count();
    let same = cores(&leader).is_some_and(agrees) && agreed > hosts.len() / 2;
    same && look(world, leader, |tables| {
        tables.nodes().map(|(id, _)| id).eq(hosts.iter().copied())
            && tables.nodes().all(|(_, row)| row.state != NodeState::Joining)
    })
}

fn begin(world: &mut World, via: NodeId, running: &[NodeId]) -> Result<(), String> {
    if !world.chance.percent(25) {
        return Ok(());
    }
    let what = world.chance.below(7);
    let victim = {
        let ids = world.ids();
        world.chance.pick(&ids)
    };
    let free = world.operator.change.is_none() && settled(world);
    match what {
        0 if free && world.hosts.len() < NODES_MAX => {
            let name = format!("j{}", world.operator.next);
            world.operator.change = Some(new_join(world, name, false));
        }
        1 | 2 if free => lose_disk(world, victim),
        3 if free && world.hosts.len() > 3 && world.operator.draining != Some(victim) => {
            world.operator.change = Some(Change::Leave(victim));
        }
        4 if world.operator.draining.is_none() && free => {
            world.operator.draining = Some(victim);
            world.propose(via, Command::drain(victim, false), None)?;
        }
        5 => {
            let (_, group) = world.chance.pick(&ADDRESSES);
            let to = world.chance.pick(running);
            world.operator.tally.moved += 1;
            world.propose(via, Command::move_addresses(group, to), None)?;
        }
        6 if world.operator.updates => update(world),
        _ => {}
    }
    Ok(())
}

fn new_join(world: &mut World, name: String, replaces: bool) -> Change {
    world.operator.next += 1;
    let mut token = [7; 32];
    token[..8].copy_from_slice(&world.operator.next.to_be_bytes());
    Change::Join { name, token, replaces, admitted: None }
}

/// A machine dies with its disk; another is put in its place under the same name.
fn lose_disk(world: &mut World, victim: NodeId) {
    if world.operator.draining == Some(victim) {
        return;
    }
    if world.plant == Plant::SameIdAfterLoss {
        world.crash(victim);
        world.host(victim).disk = Disk::empty();
        world.start_after(victim, 500);
        return;
    }
    let name = world.host(victim).name.clone();
    world.remove_host(victim);
    world.operator.change = Some(new_join(world, name, true));
}

/// Asks for leave to join, then to be let in, until there is an id; then the machine starts.
fn join(
    world: &mut World,
    via: NodeId,
    name: String,
    token: [u8; 32],
    replaces: bool,
    admitted: Option<NodeId>,
) -> Result<(), String> {
    // The release that most run; what was told before was no more than that.
    let formats = world.hosts.values().map(|host| host.format);
    let format = formats.max().unwrap_or(LATER);
    if let Some(id) = admitted {
        world.add_host(id, name.clone(), format, Disk::empty());
        world.operator.change = Some(Change::Await { id, name, replaces });
        return Ok(());
    }
    let hash = Bytes::copy_from_slice(&token);
    let known = look(world, via, |tables| tables.has_token(&token));
    let command = if known {
        Command::new(Op::AddNode(pb::AddNode {
            address: format!("{name}:1"),
            name: name.clone(),
            voter: true,
            joiner: hash.clone(),
            token: hash,
            format,
        }))
    } else {
        Command::new(Op::PutToken(pb::PutToken { hash, ttl_ms: TOKEN_TTL_MS }))
    };
    world.operator.change = Some(Change::Join { name, token, replaces, admitted: None });
    let reply = ReplyId(world.next_reply);
    if known {
        world.operator.asked.insert(reply, token);
    }
    world.propose(via, command, None).map(drop)
}

/// A joiner is done when it is up. One that was given its id twice, because the token ran out under its
/// repeated asking, finds that it is no member, and joins anew.
fn awaited(world: &mut World, via: NodeId, id: NodeId, name: String, replaces: bool) {
    let (state, known) =
        look(world, via, |tables| (tables.node(id).map(|row| row.state), tables.gave_out(id)));
    match state {
        None if known => {
            world.remove_host(id);
            world.operator.change = Some(new_join(world, name, replaces));
        }
        None | Some(NodeState::Joining) => {
            world.operator.change = Some(Change::Await { id, name, replaces });
        }
        Some(_) => {
            let tally = &mut world.operator.tally;
            *(if replaces { &mut tally.replaced } else { &mut tally.joined }) += 1;
        }
    }
}

/// Drains a node, removes it, and switches it off once the log says that it is gone.
fn leave(world: &mut World, via: NodeId, id: NodeId) -> Result<(), String> {
    let (state, known) =
        look(world, via, |tables| (tables.node(id).map(|row| row.state), tables.gave_out(id)));
    let command = match state {
        // A node that is behind has not heard of it yet.
        None if !known => None,
        None => {
            world.remove_host(id);
            world.operator.tally.left += 1;
            return Ok(());
        }
        Some(NodeState::Up) => Some(Command::drain(id, false)),
        Some(NodeState::Drained) => Some(Command::remove_node(id)),
        Some(NodeState::Joining | NodeState::Draining | NodeState::Down) => None,
    };
    world.operator.change = Some(Change::Leave(id));
    match command {
        Some(command) => world.propose(via, command, None).map(drop),
        None => Ok(()),
    }
}

/// A drained node is taken back after a while.
fn end_drain(world: &mut World, via: NodeId) -> Result<(), String> {
    let Some(id) = world.operator.draining else {
        return Ok(());
    };
    let over = world.now >= FAULTS_UNTIL || world.chance.percent(10);
    match look(world, via, |tables| tables.node(id).map(|row| row.state)) {
        Some(NodeState::Drained | NodeState::Draining) if over => {
            world.propose(via, Command::drain(id, true), None)?;
        }
        Some(NodeState::Up) if over => {
            world.operator.draining = None;
            world.operator.tally.drained += 1;
        }
        Some(NodeState::Up) if world.now < FAULTS_UNTIL => {
            world.propose(via, Command::drain(id, false), None)?;
        }
        Some(_) => {}
        None => world.operator.draining = None,
    }
    Ok(())
}

/// In the end nobody drains but who leaves.
fn end_drains(world: &mut World, via: NodeId) -> Result<(), String> {
    let leaves = match world.operator.change {
        Some(Change::Leave(id)) => Some(id),
        Some(Change::Join { .. } | Change::Await { .. }) | None => None,
    };
    let drained = look(world, via, |tables| {
        let drains = |state| matches!(state, NodeState::Draining | NodeState::Drained);
        let mut rows = tables.nodes().filter(|(_, row)| drains(row.state)).map(|(id, _)| id);
        rows.find(|id| Some(*id) != leaves)
    });
    match drained {
        Some(id) => world.propose(via, Command::drain(id, true), None).map(drop),
        None => Ok(()),
    }
}

/// One node is stopped and comes back with the next release.
fn update(world: &mut World) {
    let old = world.hosts.iter().find(|(_, host)| host.format < LATER).map(|(id, _)| *id);
    if let Some(id) = old {
        world.crash(id);
        world.host(id).format = LATER;
        world.start_after(id, 300);
        world.operator.tally.updated += 1;
    }
}

impl World {
    /// What all nodes read.
    pub(super) fn lowest_format(&self) -> u32 {
        self.hosts.values().map(|host| host.format).min().unwrap_or(LATER)
    }
}
