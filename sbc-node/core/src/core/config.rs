//! What a shard is configured with: values converted from the file form by the edge.

use std::fmt;
use std::sync::Arc;

use crate::b2bua::CallPolicy;
use crate::guard::{Guard, Overload};
use crate::ids::HintKey;
use crate::net::Interface;
use crate::registrar::{Flows, RegistrarPolicy, Replays, Users};
use crate::routing::Table;
use crate::{sip, transaction};

/// Everything that a shard's core needs to know. Replaced as a whole by `Input::Configure`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Value of our `Server` and `User-Agent` headers; none is written when empty.
    pub product: Arc<str>,
    /// All signalling interfaces, those that retire included; `InterfaceId` is the position.
    pub interfaces: Vec<Interface>,
    pub calls: CallPolicy,
    /// Trunks, groups, routes and limits, shared by all shards.
    pub routing: Arc<Table>,
    /// Timer values and table sizes of the transaction layer.
    pub transactions: transaction::Config,
    /// Bounds on messages.
    pub limits: sip::Limits,
    /// The same on all nodes of a cluster; taken when the shard starts, a later one is not.
    pub hint_key: HintKey,
    /// This node's number in its cluster; `None` on a node by itself. Taken when the shard starts.
    pub node: Option<u16>,
    /// The node's one guard, handed on from configuration to configuration. `None`: nothing is
    /// guarded (tests of calls).
    pub guard: Option<Arc<Guard>>,
    /// The node's load, measured by the edge. `None`: nothing is shed.
    pub overload: Option<Arc<Overload>>,
    /// `None`: nobody registers here.
    pub registrar: Option<RegistrarConfig>,
}

/// The registrar of a node, shared by its shards.
#[derive(Clone)]
pub struct RegistrarConfig {
    pub policy: Arc<RegistrarPolicy>,
    pub users: Arc<Users>,
    /// Handed on from configuration to configuration.
    pub replays: Arc<Replays>,
    /// Phones that a core registrar has let in; handed on as well.
    pub flows: Arc<Flows>,
    /// The trunk with the rules for phones (`users` is set in it); they register on its interface.
    pub trunk: Arc<str>,
}

impl fmt::Debug for RegistrarConfig {
    /// Policy and users hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistrarConfig").field("trunk", &self.trunk).finish_non_exhaustive()
    }
}
