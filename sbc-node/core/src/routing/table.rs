//! The compiled routing table: built once per configuration, shared by all shards.
//!
//! Building checks what spans several items (names, reachability, sources) and reports all of it;
//! what concerns one value alone was parsed before. Selection happens here because it needs the
//! whole table.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hashbrown::{HashMap, HashSet};
use rand::Rng;
use smallvec::SmallVec;

use crate::cidr::Cidr;
use crate::net::Flow;

use super::admission::{CallLimits, Counted, Gate, Permit};
use super::callers::{Caller, CallerLimit, CallerStatus, Callers, NamedLimit};
use super::group::{GroupConfig, Member, Strategy, weighted_order};
use super::prefix::PrefixTarget;
use super::route::{RouteConfig, RouteTarget};
use super::source::Sources;
use super::trunk::{Source, Trunk, TrunkConfig, TrunkId, TrunkState};
use super::users::{UserGates, UserPlace};
use super::{Hop, Numbers, Plan, Reject, RejectCause, RouteQuery};

/// A plan has at most this many hops: a caller waits no longer than that.
const MAX_HOPS: usize = 16;

/// What strangers get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum UnknownSource {
    /// 403 Forbidden.
    #[default]
    Reject,
    /// Nothing at all.
    Silent,
}

/// Limits of the node, and what passes them.
#[derive(Clone, Debug, Default)]
pub struct AdmissionConfig {
    pub node: CallLimits,
    /// R-URI users (before or after inbound translation) that pass every limit.
    pub emergency: Vec<Box<str>>,
    /// Limits by caller and by called number.
    pub callers: Vec<CallerLimit>,
}

/// Everything that routing is configured with.
#[derive(Clone, Debug, Default)]
pub struct RoutingConfig {
    pub trunks: Vec<TrunkConfig>,
    pub groups: Vec<GroupConfig>,
    /// In order: the first that holds decides.
    pub routes: Vec<RouteConfig>,
    pub admission: AdmissionConfig,
    pub unknown_source: UnknownSource,
}

/// The item that an error is about, by its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    Trunk(usize),
    Group(usize),
    Route(usize),
}

/// One thing wrong with the configuration as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub struct BuildError {
    pub item: Item,
    pub kind: BuildErrorKind,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildErrorKind {
    #[error("the name \"{0}\" is taken; trunks and groups share one space of names")]
    DuplicateName(Arc<str>),
    #[error("there is no trunk \"{0}\"")]
    UnknownTrunk(Arc<str>),
    #[error("there is no interface of realm \"{0}\" with a trunk")]
    UnknownRealm(Arc<str>),
    #[error("there is no group or trunk \"{0}\"")]
    UnknownTarget(Arc<str>),
    #[error("the prefix table names \"{0}\", which is no group or trunk")]
    UnknownTableTarget(Arc<str>),
    #[error("the group has no trunks")]
    EmptyGroup,
    #[error("trunk \"{0}\" is in the group twice")]
    DuplicateMember(Arc<str>),
    #[error("all weights are 0")]
    NoWeight,
    #[error("no route leads to group \"{0}\"")]
    Unreachable(Arc<str>),
    #[error("trunk \"{0}\" has no peers, so that nothing can be sent to it")]
    NoPeers(Arc<str>),
    #[error("source {net} belongs to trunk \"{other}\" on the same interface already")]
    SourceTaken { net: Cidr, other: Arc<str> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct GroupId(usize);

#[derive(Debug)]
struct Group {
    name: Arc<str>,
    strategy: Strategy,
    members: Vec<(u32, TrunkId)>,
    limits: CallLimits,
    gate: Arc<Gate>,
}

#[derive(Debug)]
struct Route {
    config: RouteConfig,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Group(GroupId),
    /// Per entry of the prefix table; `None` rejects.
    Table(Vec<Option<GroupId>>),
    Reject(u16),
}

/// See the module's header.
#[derive(Debug)]
pub struct Table {
    /// By id; ids of removed trunks stay empty.
    trunks: Vec<Option<Arc<Trunk>>>,
    trunk_names: HashMap<Arc<str>, TrunkId>,
    groups: Vec<Group>,
    routes: Vec<Route>,
    sources: Sources,
    admission: AdmissionConfig,
    node: Arc<Gate>,
    callers: Callers,
    unknown_source: UnknownSource,
    /// Zero of the rate limits' time; handed on from table to table.
    epoch: Instant,
}

impl Table {
    /// Compiles a configuration. `previous` hands on counters, health and ids by name.
    pub fn build(
        config: RoutingConfig,
        previous: Option<&Table>,
        now: Instant,
    ) -> Result<Table, Vec<BuildError>> {
        let mut table = Table {
            trunks: previous.map_or_else(Vec::new, |p| p.trunks.iter().map(|_| None).collect()),
            trunk_names: HashMap::new(),
            groups: Vec::new(),
            routes: Vec::new(),
            sources: Sources::default(),
            admission: config.admission,
            node: previous.map_or_else(Arc::default, |p| p.node.clone()),
            callers: Callers::default(),
            unknown_source: config.unknown_source,
            epoch: previous.map_or(now, |p| p.epoch),
        };
        let limits = std::mem::take(&mut table.admission.callers);
        table.callers = Callers::new(limits, previous.map(|p| &p.callers));
        let mut errors = Errors(Vec::new());
        let mut switched = Vec::new();
        for (index, trunk) in config.trunks.into_iter().enumerate() {
            table.add_trunk(index, trunk, previous, &mut switched, &mut errors);
        }
        let mut names = HashMap::new();
        let configured = config.groups.len();
        for (index, group) in config.groups.into_iter().enumerate() {
            table.add_group(index, group, previous, &mut names, &mut errors);
        }
        let mut reached = HashSet::new();
        for (index, route) in config.routes.into_iter().enumerate() {
            table.add_route(index, route, &mut names, &mut reached, &mut errors);
        }
        for (index, group) in table.groups.iter().enumerate().take(configured) {
            if !reached.contains(&GroupId(index)) {
                let kind = BuildErrorKind::Unreachable(group.name.clone());
                errors.push(Item::Group(index), kind);
            }
        }
        if !errors.0.is_empty() {
            return Err(errors.0);
        }
        // The state is shared with the running table: touched only once nothing can fail.
        for (state, enabled) in switched {
            state.enabled.store(enabled, Ordering::Relaxed);
        }
        Ok(table)
    }

    fn add_trunk(
        &mut self,
        index: usize,
        config: TrunkConfig,
        previous: Option<&Table>,
        switched: &mut Vec<(Arc<TrunkState>, bool)>,
        errors: &mut Errors,
    ) {
        let item = Item::Trunk(index);
        if self.trunk_names.contains_key(&config.name) {
            return errors.push(item, BuildErrorKind::DuplicateName(config.name));
        }
        let old = previous.and_then(|p| p.trunk_by_name(&config.name));
        let id = match old {
            Some(old) => old.id,
            None => {
                self.trunks.push(None);
                TrunkId(u32::try_from(self.trunks.len() - 1).unwrap_or(u32::MAX))
            }
        };
        self.trunk_names.insert(config.name.clone(), id);
        for source in effective_sources(&config) {
            if let Err(other) = self.sources.add(config.interface, source, id) {
                // Two accounts with one carrier: what comes to the second is known by its Contact.
                if config.sources.is_empty() && config.register.iter().any(|r| r.match_contact) {
                    continue;
                }
                let other = self.trunk(other).map_or_else(|| "".into(), |t| t.name().clone());
                errors.push(item, BuildErrorKind::SourceTaken { net: source.net, other });
            }
        }
        let state = old.map_or_else(
            || {
                let enabled = AtomicBool::new(config.enabled);
                Arc::new(TrunkState { enabled, gate: Gate::default() })
            },
            |old| {
                // What an operator switched at run time stays, unless the file changed its mind.
                if old.config.enabled != config.enabled {
                    switched.push((old.state.clone(), config.enabled));
                }
                old.state.clone()
            },
        );
        let health = config
            .peers
            .iter()
            .map(|peer| old.and_then(|o| o.health_of(peer)).unwrap_or_default())
            .collect();
        let registrations = config
            .register
            .iter()
            .map(|r| old.and_then(|o| o.registration(&r.aor)).cloned().unwrap_or_default())
            .collect();
        if let Some(slot) = self.trunks.get_mut(id.0 as usize) {
            *slot = Some(Arc::new(Trunk { id, config, state, health, registrations }));
        }
    }

    fn add_group(
        &mut self,
        index: usize,
        config: GroupConfig,
        previous: Option<&Table>,
        names: &mut HashMap<Arc<str>, GroupId>,
        errors: &mut Errors,
    ) {
        let item = Item::Group(index);
        let id = GroupId(self.groups.len());
        let name_taken = self.trunk_names.contains_key(&config.name)
            || names.insert(config.name.clone(), id).is_some();
        if name_taken {
            errors.push(item, BuildErrorKind::DuplicateName(config.name.clone()));
        }
        if config.members.is_empty() {
            errors.push(item, BuildErrorKind::EmptyGroup);
        }
        let weighted = config.strategy == Strategy::Weighted;
        if weighted && !config.members.is_empty() && config.members.iter().all(|m| m.weight == 0) {
            errors.push(item, BuildErrorKind::NoWeight);
        }
        let mut members: Vec<(u32, TrunkId)> = Vec::with_capacity(config.members.len());
        for Member { trunk: name, weight } in config.members {
            match self.trunk_by_name(&name) {
                None => errors.push(item, BuildErrorKind::UnknownTrunk(name)),
                Some(trunk) if trunk.config.peers.is_empty() => {
                    errors.push(item, BuildErrorKind::NoPeers(name));
                }
                Some(trunk) if members.iter().any(|m| m.1 == trunk.id) => {
                    errors.push(item, BuildErrorKind::DuplicateMember(name));
                }
                Some(trunk) => members.push((weight, trunk.id)),
            }
        }
        let gate = previous
            .and_then(|p| p.groups.iter().find(|g| g.name == config.name))
            .map_or_else(Arc::default, |g| g.gate.clone());
        self.groups.push(Group {
            name: config.name,
            strategy: config.strategy,
            members,
            limits: config.limits,
            gate,
        });
    }

    fn add_route(
        &mut self,
        index: usize,
        config: RouteConfig,
        names: &mut HashMap<Arc<str>, GroupId>,
        reached: &mut HashSet<GroupId>,
        errors: &mut Errors,
    ) {
        let item = Item::Route(index);
        for name in &config.matches.trunks {
            if !self.trunk_names.contains_key(name) {
                errors.push(item, BuildErrorKind::UnknownTrunk(name.clone()));
            }
        }
        for realm in &config.matches.realms {
            if !self.trunks.iter().flatten().any(|t| t.config.realm == *realm) {
                errors.push(item, BuildErrorKind::UnknownRealm(realm.clone()));
            }
        }
        let target = match &config.target {
            RouteTarget::Reject(status) => Target::Reject(*status),
            RouteTarget::To(name) => match self.target(name, names) {
                Ok(id) => Target::Group(id),
                Err(kind) => return errors.push(item, kind),
            },
            RouteTarget::Table(table) => {
                let ids = table.entries().iter().map(|entry| match &entry.target {
                    PrefixTarget::Reject => Ok(None),
                    PrefixTarget::To(name) => self.target(name, names).map(Some),
                });
                let mut resolved = Vec::new();
                for id in ids.collect::<Vec<_>>() {
                    match id {
                        Ok(id) => resolved.push(id),
                        Err(BuildErrorKind::UnknownTarget(name)) => {
                            errors.push(item, BuildErrorKind::UnknownTableTarget(name));
                        }
                        Err(kind) => errors.push(item, kind),
                    }
                }
                Target::Table(resolved)
            }
        };
        match &target {
            Target::Group(id) => {
                reached.insert(*id);
            }
            Target::Table(ids) => reached.extend(ids.iter().flatten()),
            Target::Reject(_) => {}
        }
        self.routes.push(Route { config, target });
    }

    /// The group of that name; a trunk named directly becomes a group of one.
    fn target(
        &mut self,
        name: &Arc<str>,
        names: &mut HashMap<Arc<str>, GroupId>,
    ) -> Result<GroupId, BuildErrorKind> {
        if let Some(id) = names.get(name) {
            return Ok(*id);
        }
        let trunk =
            self.trunk_by_name(name).ok_or_else(|| BuildErrorKind::UnknownTarget(name.clone()))?;
        if trunk.config.peers.is_empty() {
            return Err(BuildErrorKind::NoPeers(name.clone()));
        }
        let id = GroupId(self.groups.len());
        let members = vec![(1, trunk.id)];
        self.groups.push(Group {
            name: name.clone(),
            strategy: Strategy::Ordered,
            members,
            limits: CallLimits::default(),
            gate: Arc::default(),
        });
        names.insert(name.clone(), id);
        Ok(id)
    }

    /// All trunks, in no particular order.
    pub fn trunks(&self) -> impl Iterator<Item = &Arc<Trunk>> {
        self.trunks.iter().flatten()
    }

    pub fn trunk(&self, id: TrunkId) -> Option<&Arc<Trunk>> {
        self.trunks.get(id.0 as usize)?.as_ref()
    }

    pub fn trunk_by_name(&self, name: &str) -> Option<&Arc<Trunk>> {
        self.trunk(*self.trunk_names.get(name)?)
    }

    /// Calls of the node that hold a permit, up or in set-up.
    pub fn calls(&self) -> u32 {
        self.node.calls()
    }

    pub(super) fn identify(&self, flow: &Flow) -> Option<TrunkId> {
        self.sources.find(flow.interface, flow.transport, flow.remote.ip(), flow.remote.port())
    }

    pub(super) fn unknown_source(&self) -> Reject {
        Reject {
            silent: self.unknown_source == UnknownSource::Silent,
            ..Reject::new(403, "Forbidden", RejectCause::UnknownSource)
        }
    }

    pub(super) fn route(
        &self,
        now: Instant,
        source: &Trunk,
        query: &RouteQuery<'_>,
        rng: &mut impl Rng,
    ) -> Result<Plan, Reject> {
        let mut numbers = Numbers {
            ruri: query.ruri_user.to_owned(),
            from: query.from_user.to_owned(),
            to: query.to_user.to_owned(),
            pai: query.pai_user.map(str::to_owned),
        };
        numbers.translate(&source.config.translate_in);
        let emergency = query.emergency
            || self.is_emergency(query.ruri_user)
            || self.is_emergency(&numbers.ruri);
        let (route, group) = self
            .routes
            .iter()
            .find_map(|route| self.try_route(route, source, query, &mut numbers))
            .unwrap_or(Err(Reject::new(404, "Not Found", RejectCause::NoRoute)))?;
        let targets = self.hops(now, group, emergency, &numbers, rng);
        if targets.is_empty() {
            return Err(Reject::new(503, "Service Unavailable", RejectCause::NoTrunk));
        }
        Ok(Plan {
            route: route.config.name.clone(),
            targets,
            emergency,
            gate: group.gate.clone(),
            group_limits: group.limits,
        })
    }

    /// See [`Routing::route_on`](super::Routing::route_on).
    pub(super) fn route_on(
        &self,
        now: Instant,
        source: &Trunk,
        query: &RouteQuery<'_>,
        current: &Arc<Trunk>,
        tried: &[&str],
        rng: &mut impl Rng,
    ) -> Plan {
        let mut plan = self.route(now, source, query, rng).unwrap_or_else(|_| Plan {
            route: "".into(),
            targets: SmallVec::new(),
            emergency: query.emergency,
            gate: Arc::default(),
            group_limits: CallLimits::default(),
        });
        let same = |hop: &Hop| hop.trunk.config.name == current.config.name;
        let first = plan.targets.iter().position(same).map(|at| plan.targets.remove(at));
        plan.targets.retain(|hop| !same(hop) && !tried.contains(&&*hop.trunk.config.name));
        // The route may have gone since: the target goes on with the numbers as they came.
        let numbers = || Numbers {
            ruri: query.ruri_user.to_owned(),
            from: query.from_user.to_owned(),
            to: query.to_user.to_owned(),
            pai: query.pai_user.map(str::to_owned),
        };
        let first =
            first.unwrap_or_else(|| Hop { trunk: current.clone(), peer: 0, numbers: numbers() });
        plan.targets.insert(0, first);
        plan
    }

    /// `None` when the route does not hold; otherwise its decision, with `numbers` changed by the
    /// route's strip and prefix.
    fn try_route<'a>(
        &'a self,
        route: &'a Route,
        source: &Trunk,
        query: &RouteQuery<'_>,
        numbers: &mut Numbers,
    ) -> Option<Result<(&'a Route, &'a Group), Reject>> {
        if !route.config.matches.holds(source, query, numbers) {
            return None;
        }
        let group = match (&route.target, &route.config.target) {
            (Target::Group(id), _) => *id,
            (Target::Reject(status), _) => {
                return Some(Err(Reject::new(*status, "Forbidden", RejectCause::Blocked)));
            }
            (Target::Table(ids), RouteTarget::Table(table)) => {
                let at = table.lookup(&numbers.ruri)?;
                let entry = table.entries().get(at)?;
                let Some(id) = ids.get(at).copied().flatten() else {
                    return Some(Err(Reject::new(403, "Forbidden", RejectCause::Blocked)));
                };
                numbers.strip_and_prefix(usize::from(entry.strip), &entry.prefix);
                id
            }
            (Target::Table(_), RouteTarget::To(_) | RouteTarget::Reject(_)) => return None,
        };
        numbers.strip_and_prefix(route.config.strip, &route.config.prefix);
        Some(Ok((route, self.groups.get(group.0)?)))
    }

    fn hops(
        &self,
        now: Instant,
        group: &Group,
        emergency: bool,
        numbers: &Numbers,
        rng: &mut impl Rng,
    ) -> SmallVec<[Hop; 4]> {
        let now_ns = self.ns(now);
        if !emergency && !group.gate.has_room(&group.limits, now_ns) {
            return SmallVec::new();
        }
        let usable: SmallVec<[(u32, &Arc<Trunk>); 4]> = group
            .members
            .iter()
            .filter_map(|&(weight, id)| Some((weight, self.trunk(id)?)))
            .filter(|(_, t)| {
                t.is_enabled() && (emergency || t.state.gate.has_room(&t.config.limits, now_ns))
            })
            .collect();
        let ordered: SmallVec<[&Arc<Trunk>; 4]> = match group.strategy {
            Strategy::Ordered => usable.into_iter().map(|(_, trunk)| trunk).collect(),
            Strategy::Weighted => weighted_order(usable, rng),
        };
        let mut hops = SmallVec::new();
        for trunk in ordered {
            let mut translated: Option<Numbers> = None;
            for (peer, health) in trunk.health.iter().enumerate() {
                if hops.len() == MAX_HOPS {
                    return hops;
                }
                if !health.is_usable(now) {
                    continue;
                }
                let numbers = translated.get_or_insert_with(|| {
                    let mut n = numbers.clone();
                    n.translate(&trunk.config.translate_out);
                    n
                });
                hops.push(Hop { trunk: trunk.clone(), peer, numbers: numbers.clone() });
            }
        }
        hops
    }

    pub(super) fn admit(
        &self,
        now: Instant,
        source: &Trunk,
        emergency: bool,
    ) -> Result<Permit, Reject> {
        if !source.is_enabled() {
            return Err(Reject::new(503, "Service Unavailable", RejectCause::TrunkDisabled));
        }
        let trunk = (Counted::Trunk(source.state.clone()), source.config.limits);
        let node = (Counted::Node(self.node.clone()), self.admission.node);
        Permit::acquire([trunk, node], self.ns(now), emergency)
    }

    pub(super) fn admit_caller(
        &self,
        now: Instant,
        by: &Caller<'_>,
        number: &str,
        force: bool,
    ) -> Result<Permit, Reject> {
        self.callers.admit(by, number, self.ns(now), force)
    }

    /// The limits by called prefix.
    pub fn prefix_limits(&self) -> impl Iterator<Item = &Arc<NamedLimit>> + Clone {
        self.callers.prefixes()
    }

    /// The groups that have limits.
    pub fn group_limits(&self) -> impl Iterator<Item = NamedLimit> {
        let limited = self.groups.iter().filter(|g| g.limits != CallLimits::default());
        limited.map(|g| NamedLimit { name: g.name.clone(), limits: g.limits, gate: g.gate.clone() })
    }

    /// The gates of the users that `[[admission.limit]]` counts.
    pub fn user_gates(&self) -> &Arc<UserGates> {
        self.callers.users()
    }

    /// The limits by user of that name.
    pub fn user_limits(&self, name: &str) -> Option<CallLimits> {
        self.callers.user_limits(name)
    }

    pub(super) fn lacks(&self, now: Instant, user: &str) -> Option<UserPlace> {
        self.callers.lacks(user, self.ns(now))
    }

    /// How the limits by caller and by called number stand, and the calls that no gate could be
    /// made for.
    pub fn caller_status(&self) -> (SmallVec<[CallerStatus; 4]>, u64) {
        (self.callers.status(), self.callers.uncounted())
    }

    /// Counts a call that was admitted elsewhere; never refuses. Of groups it counts in the first one
    /// with limits that the trunk is in.
    pub(super) fn carry_on(&self, now: Instant, trunk: &Trunk) -> Option<Permit> {
        let counted = (Counted::Trunk(trunk.state.clone()), trunk.config.limits);
        let has = |g: &&Group| {
            g.limits != CallLimits::default() && g.members.iter().any(|m| m.1 == trunk.id)
        };
        let group = self.groups.iter().find(has);
        let gate = group.map_or_else(Arc::default, |g| g.gate.clone());
        let group = (Counted::Group(gate), group.map(|g| g.limits).unwrap_or_default());
        Permit::acquire([counted, group], self.ns(now), true).ok()
    }

    pub(super) fn admit_hop(&self, now: Instant, plan: &Plan, hop: &Hop) -> Result<Permit, Reject> {
        let state = hop.trunk.state.clone();
        let trunk = (Counted::Trunk(state), hop.trunk.config.limits);
        let group = (Counted::Group(plan.gate.clone()), plan.group_limits);
        Permit::acquire([trunk, group], self.ns(now), plan.emergency)
    }

    /// Whether a number passes every limit.
    pub fn is_emergency(&self, user: &str) -> bool {
        self.admission.emergency.iter().any(|n| **n == *user)
    }

    /// The time of rate limits.
    pub fn ns(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Reject {
    fn new(status: u16, reason: &'static str, cause: RejectCause) -> Reject {
        Reject { status, reason, retry_after_s: None, silent: false, cause }
    }
}

struct Errors(Vec<BuildError>);

impl Errors {
    fn push(&mut self, item: Item, kind: BuildErrorKind) {
        self.0.push(BuildError { item, kind });
    }
}

/// The configured sources, or the literal peers where there are none.
fn effective_sources(config: &TrunkConfig) -> Vec<Source> {
    if !config.sources.is_empty() {
        return config.sources.clone();
    }
    let literal = config.peers.iter().filter_map(|p| p.ip());
    literal.map(|ip| Source { net: Cidr::host(ip), transport: None, port: None }).collect()
}
