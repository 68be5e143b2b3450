//! Which node registers with which trunk: a function of the tables, so that all nodes agree, and one
//! does it. What a registrar holds of us lies in the settings, where the next node finds it.
//!
//! Where addresses float the holder of the interface's address registers, for it alone is reached
//! there; elsewhere one of the nodes that are up, by the names of trunk and node, so that a node
//! that comes or goes moves few.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use prost::Message as _;
use sbc_cluster::{Command, Handle, NodeId, Tables};
use sbc_core::core::{Duties, Duty, HeldRegistration, Input};
use sbc_core::net::Interface;
use sbc_core::routing::{Table, Trunk};
use sbc_proto::record::v1 as wire;
use tokio::time::{MissedTickBehavior, interval};

use super::cluster::lookup;
use super::record::VERSION;
use super::tell::Tell;

/// The shard of a node that probes trunks and registers with them.
pub const PROBING_SHARD: usize = 0;

/// How often duties are looked at: the tables change by the log, the lease by the clock.
const TICK: Duration = Duration::from_millis(100);
/// How long a write may take before it is given up; the next refresh writes again.
const WITHIN: Duration = Duration::from_secs(5);

/// What deciding takes.
pub struct Registrants {
    pub handle: Handle,
    /// The routing in force.
    pub routing: Arc<ArcSwapOption<Table>>,
    pub interfaces: Arc<ArcSwap<Vec<Interface>>>,
    pub tell: Arc<Tell>,
    /// This node ends and is told nothing more.
    pub leaving: Arc<AtomicBool>,
}

/// Trunk and address of record.
type Name = (Arc<str>, Arc<str>);

/// Where the tables put the duties.
#[derive(Debug, Default, PartialEq, Eq)]
struct Map {
    /// Who does what; what nobody does is not there.
    heirs: BTreeMap<Name, NodeId>,
}

fn key(trunk: &str, aor: &str) -> String {
    format!("registration/{trunk}/{aor}")
}

/// Writes what a registrar holds of us, or that it holds nothing.
pub fn write(handle: &Handle, trunk: &str, aor: &str, held: Option<&HeldRegistration>) {
    let key = key(trunk, aor);
    let command = match held {
        Some(held) => Command::put_setting(&key, encode(held).into()),
        None => Command::delete_setting(&key),
    };
    handle.submit(command, WITHIN, move |result| {
        if let Err(error) = result {
            tracing::debug!(%key, %error, "a registration was not written");
        }
    });
}

fn encode(held: &HeldRegistration) -> Vec<u8> {
    wire::Registration {
        version: VERSION,
        contact: held.contact.to_string(),
        call_id: held.call_id.to_string(),
        cseq: held.cseq,
        until_ms: held.until_ms,
    }
    .encode_to_vec()
}

/// `None` for what a later release wrote, or nobody: the registration begins anew.
fn decode(value: &[u8]) -> Option<HeldRegistration> {
    let held = wire::Registration::decode(value).ok()?;
    let known = (1..=VERSION).contains(&held.version) && !held.call_id.is_empty();
    known.then(|| HeldRegistration {
        contact: held.contact.into(),
        call_id: held.call_id.into(),
        cseq: held.cseq,
        until_ms: held.until_ms,
    })
}

impl Registrants {
    /// Runs until it is aborted with the runtime.
    pub async fn run(self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told: Option<Vec<Name>> = None;
        loop {
            tick.tick().await;
            if self.leaving.load(Ordering::Relaxed) {
                return;
            }
            let Some(table) = self.routing.load_full() else { continue };
            let map = self.map(&table);
            let own = self.handle.id();
            let mine: Vec<Name> = match self.handle.lease_valid() {
                // Whoever the majority has put in our place does it.
                false => Vec::new(),
                true => map
                    .heirs
                    .iter()
                    .filter(|(_, heir)| **heir == own)
                    .map(|(name, _)| name.clone())
                    .collect(),
            };
            if told.as_ref() == Some(&mine) {
                continue;
            }
            let withdraw = self.handle.lease_valid() && map.heirs.is_empty();
            let all = mine.iter().map(|name| self.duty(name)).collect();
            self.tell.tell(PROBING_SHARD, Input::Duties(Duties { all, withdraw }));
            told = Some(mine);
        }
    }

    fn map(&self, table: &Table) -> Map {
        let interfaces = self.interfaces.load();
        self.handle.read(|tables| {
            let up: Vec<NodeId> =
                tables.nodes().filter(|(_, n)| n.state.is_eligible()).map(|(id, _)| id).collect();
            let mut map = Map::default();
            for trunk in table.trunks() {
                for (config, _) in trunk.registrations() {
                    let name = (Arc::clone(trunk.name()), Arc::clone(&config.aor));
                    let heir = match holder(tables, &interfaces, trunk) {
                        Some(holder) => holder,
                        None => ranked(&name, &up),
                    };
                    map.heirs.extend(heir.map(|heir| (name, heir)));
                }
            }
            map
        })
    }

    fn duty(&self, name: &Name) -> Duty {
        let (trunk, aor) = name.clone();
        let before = self.handle.read(|tables| tables.setting(&key(&trunk, &aor)).and_then(decode));
        Duty { trunk, aor, before }
    }
}

/// Who holds the floating address of a trunk's interface: `None` where it does not float, nobody
/// while it is between two nodes.
fn holder(tables: &Tables, interfaces: &[Interface], trunk: &Trunk) -> Option<Option<NodeId>> {
    let interface = interfaces.iter().find(|i| i.id == trunk.config.interface)?;
    let address =
        interface.listeners.iter().find_map(|l| tables.address(&l.local.ip().to_string()))?;
    Some(address.holder.filter(|holder| address.is_held_by(*holder)))
}

/// One of these nodes, the same wherever it is asked.
fn ranked(name: &Name, nodes: &[NodeId]) -> Option<NodeId> {
    let rank = |node: &NodeId| lookup(&format!("{} {} {node}", name.0, name.1));
    nodes.iter().copied().max_by_key(rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registrar_holds_is_read_as_it_was_written() {
        let held = HeldRegistration {
            contact: "sip:a@198.51.100.9:5060".into(),
            call_id: "c".into(),
            cseq: 7,
            until_ms: 1_000_000,
        };
        assert_eq!(decode(&encode(&held)), Some(held));
        assert_eq!(decode(b"\xff"), None);
        let later = wire::Registration { version: VERSION + 1, ..Default::default() };
        assert_eq!(decode(&later.encode_to_vec()), None);
    }

    #[test]
    fn few_duties_move_when_a_node_goes() {
        let names: Vec<Name> = (0..300).map(|n| (format!("t{n}").into(), "a@b".into())).collect();
        let (all, left) = ([NodeId(1), NodeId(2), NodeId(3)], [NodeId(1), NodeId(3)]);
        let mut each = [0; 3];
        for name in &names {
            let heir = ranked(name, &all).unwrap();
            each[usize::try_from(heir.0).unwrap() - 1] += 1;
            if heir != NodeId(2) {
                assert_eq!(ranked(name, &left), Some(heir));
            }
        }
        assert!(each.iter().all(|n| (40..200).contains(n)), "{each:?}");
        assert_eq!(ranked(&names[0], &[]), None);
    }
}
