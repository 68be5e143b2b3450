//! Probing the peers of trunks with OPTIONS (RFC 3261 §11): when, to whom, and what an answer
//! means. One shard of a node probes for all: health is shared through the routing table.
//!
//! Thresholds and state live in `routing/health.rs`. A peer counts as alive when any of the
//! addresses it resolves to answers with anything but 408 or 503; the next address is tried when
//! one does not. Probes are spread over their interval, so that a thousand trunks are no burst.
//!
//! ```text
//! Waiting ── due ──▶ Resolving ── targets ──▶ Sent ── answer, or no target is left ──▶ Waiting
//! ```

use std::collections::VecDeque;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rand::Rng;

use super::{Destination, Event, Output, ResolveError, ResolveId};
use crate::ids::ShardHint;
use crate::net::{Interface, Target};
use crate::routing::{HealthChange, ProbePolicy, Routing, Trunk, TrunkId};
use crate::sip::{Builder, HeaderName, Method};
use crate::timer::{TimerKey, TimerWheel};
use crate::transaction::{ClientRequest, Large, Owner, TransactionLayer};

/// What a probe may touch outside itself.
pub struct ProbeCx<'a> {
    pub now: Instant,
    pub txn: &'a mut TransactionLayer,
    pub routing: &'a mut Routing,
    /// By `InterfaceId`.
    pub interfaces: &'a [Interface],
    /// Value of our User-Agent; none is written when empty.
    pub product: &'a str,
}

#[derive(Debug)]
enum State {
    Waiting,
    Resolving,
    /// Asked one target; these are left.
    Sent {
        rest: Vec<Target>,
    },
}

/// One peer of one trunk.
#[derive(Debug)]
struct Probe {
    trunk: TrunkId,
    peer: usize,
    policy: ProbePolicy,
    state: State,
    timer: Option<TimerKey>,
}

/// Probes of a node's trunks. Its outputs are [`Output::Resolve`] and [`Event::Peer`].
#[derive(Debug)]
pub struct Prober {
    hint: ShardHint,
    probes: Vec<Probe>,
    wheel: TimerWheel<u32>,
    /// Counts configurations: what was asked under an earlier one is not listened to.
    epoch: u32,
    outputs: VecDeque<Output>,
}

/// Marks owners and resolutions as the prober's. Calls use neither: their owners have one of the
/// two topmost bits set or are zero, their resolutions are small numbers.
const OWNER: u64 = 1 << 61;
const RESOLVE: u64 = 1 << 63;
const EPOCH: u32 = (1 << 29) - 1;

impl Prober {
    /// A prober of the shard that `hint` names, with nothing to probe.
    pub fn new(now: Instant, hint: ShardHint) -> Self {
        Prober {
            hint,
            probes: Vec::new(),
            wheel: TimerWheel::new(now),
            epoch: 0,
            outputs: VecDeque::new(),
        }
    }

    /// Takes the trunks of the routing table. First probes are spread over one interval.
    pub fn configure(&mut self, cx: &mut ProbeCx<'_>) {
        self.epoch = self.epoch.wrapping_add(1) & EPOCH;
        for timer in self.probes.drain(..).filter_map(|probe| probe.timer) {
            self.wheel.cancel(timer);
        }
        let table = cx.routing.table().clone();
        for trunk in table.trunks() {
            let Some(policy) = trunk.config.probe else { continue };
            for peer in 0..trunk.config.peers.len() {
                let state = State::Waiting;
                self.probes.push(Probe { trunk: trunk.id, peer, policy, state, timer: None });
                let first = random_below(cx, policy.interval);
                self.wait(cx, self.probes.len() - 1, first);
            }
        }
    }

    /// Starts the probes that are due.
    pub fn handle_tick(&mut self, cx: &mut ProbeCx<'_>) {
        while let Some((_, index)) = self.wheel.pop(cx.now) {
            let index = index as usize;
            if let Some(probe) = self.probes.get_mut(index) {
                probe.timer = None;
            }
            self.start(cx, index);
        }
    }

    /// Probes all peers of a trunk now; `false` when the trunk is unknown or not probed.
    pub fn probe_now(&mut self, cx: &mut ProbeCx<'_>, trunk: &str) -> bool {
        let Some(id) = cx.routing.table().trunk_by_name(trunk).map(|t| t.id) else { return false };
        let all = 0..self.probes.len();
        let found: Vec<usize> =
            all.filter(|&n| self.probes.get(n).is_some_and(|p| p.trunk == id)).collect();
        for &index in &found {
            if let Some(timer) = self.probes.get_mut(index).and_then(|p| p.timer.take()) {
                self.wheel.cancel(timer);
                self.start(cx, index);
            }
        }
        !found.is_empty()
    }

    /// The answer to a resolution; `false` when it is none of the prober's.
    pub fn resolved(
        &mut self,
        cx: &mut ProbeCx<'_>,
        id: ResolveId,
        result: &Result<Vec<Target>, ResolveError>,
    ) -> bool {
        if id.0 & RESOLVE == 0 {
            return false;
        }
        let Some(index) = self.index(id.0 & !RESOLVE) else { return true };
        if !matches!(self.probes.get(index).map(|p| &p.state), Some(State::Resolving)) {
            return true;
        }
        let targets = result.as_deref().unwrap_or_default().to_vec();
        if let Some((trunk, peer)) = self.trunk(cx, index)
            && !targets.is_empty()
        {
            let addresses: Vec<IpAddr> = targets.iter().map(|t| t.addr.ip()).collect();
            cx.routing.learn(&trunk, peer, &addresses);
        }
        self.send(cx, index, targets);
        true
    }

    /// A response to a probe; `false` when the transaction is none of the prober's.
    pub fn response(&mut self, cx: &mut ProbeCx<'_>, owner: Owner, status: u16) -> bool {
        match status {
            ..200 => owner.0 & OWNER != 0 && owner.0 >> 62 == 0,
            408 | 503 => self.failed(cx, owner),
            200.. => self.outcome(cx, owner, true),
        }
    }

    /// A probe timed out or could not be sent; `false` when it is none of the prober's.
    pub fn failed(&mut self, cx: &mut ProbeCx<'_>, owner: Owner) -> bool {
        self.outcome(cx, owner, false)
    }

    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.wheel.deadline()
    }

    fn outcome(&mut self, cx: &mut ProbeCx<'_>, owner: Owner, alive: bool) -> bool {
        if owner.0 >> 62 != 0 || owner.0 & OWNER == 0 {
            return false;
        }
        let Some(index) = self.index(owner.0 & !OWNER) else { return true };
        let Some(probe) = self.probes.get_mut(index) else { return true };
        let State::Sent { rest } = &mut probe.state else { return true };
        let rest = std::mem::take(rest);
        if alive || rest.is_empty() {
            self.conclude(cx, index, alive);
        } else {
            self.send(cx, index, rest);
        }
        true
    }

    fn start(&mut self, cx: &mut ProbeCx<'_>, index: usize) {
        let Some((trunk, peer)) = self.trunk(cx, index) else { return };
        let Some(query) =
            trunk.config.peers.get(peer).map(|p| p.resolve_query(trunk.config.interface))
        else {
            return;
        };
        let id = ResolveId(RESOLVE | self.name(index));
        if let Some(probe) = self.probes.get_mut(index) {
            probe.state = State::Resolving;
            self.outputs.push_back(Output::Resolve { id, query });
        }
    }

    /// Asks the first target that can be asked.
    fn send(&mut self, cx: &mut ProbeCx<'_>, index: usize, mut targets: Vec<Target>) {
        while !targets.is_empty() {
            let target = targets.remove(0);
            if self.ask(cx, index, target).is_some() {
                if let Some(probe) = self.probes.get_mut(index) {
                    probe.state = State::Sent { rest: targets };
                }
                return;
            }
        }
        self.conclude(cx, index, false);
    }

    fn ask(&mut self, cx: &mut ProbeCx<'_>, index: usize, target: Target) -> Option<()> {
        let (trunk, peer) = self.trunk(cx, index)?;
        let peer = trunk.config.peers.get(peer)?;
        let interface = trunk.config.interface;
        let listener = cx.interfaces.get(usize::from(interface.0))?.listener_for(&target)?;
        let (branch, tag) = (cx.txn.ids().branch(self.hint), cx.txn.ids().tag(self.hint));
        let call_id = cx.txn.ids().call_id(self.hint);
        let mut uri = match trunk.config.domain.as_deref() {
            Some(domain) => format!("sip:{domain}"),
            None => match peer.ip() {
                Some(IpAddr::V6(ip)) => format!("sip:[{ip}]"),
                _ => format!("sip:{}", peer.host),
            },
        };
        if let (Some(port), None) = (peer.port, &trunk.config.domain) {
            // Writing to a String cannot fail.
            let _ = write!(uri, ":{port}");
        }
        let (host, port) = (&listener.advertise_host, listener.advertise_port);
        let transport = target.transport.via_token();
        let mut out = Builder::request(&Method::Options, uri.as_str());
        out.header(
            HeaderName::Via,
            format_args!("SIP/2.0/{transport} {host}:{port};branch={branch};rport"),
        )
        .header(HeaderName::MaxForwards, 70u8)
        .header(HeaderName::From, format_args!("<sip:probe@{host}:{port}>;tag={tag}"))
        .header(HeaderName::To, ("<", uri.as_str(), ">"))
        .header(HeaderName::CallId, call_id.as_str())
        .header(HeaderName::CSeq, "1 OPTIONS")
        .header(HeaderName::Contact, format_args!("<sip:{host}:{port}>"))
        .header(HeaderName::Accept, "application/sdp");
        if !cx.product.is_empty() {
            out.header(HeaderName::UserAgent, cx.product);
        }
        let request = ClientRequest {
            owner: Owner(OWNER | self.name(index)),
            branch,
            method: Method::Options,
            dest: Destination::Target { interface, target },
            data: out.finish(),
            timeout: Some(trunk.config.probe?.timeout),
            large: Large::Udp,
        };
        cx.txn.send_request(cx.now, request).ok().map(|_| ())
    }

    /// Tells the peer's health and waits for the next time.
    fn conclude(&mut self, cx: &mut ProbeCx<'_>, index: usize, alive: bool) {
        let Some((trunk, peer)) = self.trunk(cx, index) else { return };
        let Some(probe) = self.probes.get_mut(index) else { return };
        probe.state = State::Waiting;
        let policy = probe.policy;
        let change = trunk.peer_health(peer).and_then(|health| health.probed(&policy, alive));
        if let Some(change) = change {
            let host = trunk.config.peers.get(peer).map_or_else(|| "".into(), |p| p.host.clone());
            let up = change == HealthChange::WentUp;
            let event = Event::Peer { trunk: trunk.name().clone(), host, up };
            self.outputs.push_back(Output::Event(event));
        }
        // A tenth of the interval either way keeps peers and nodes out of step.
        let jitter = random_below(cx, policy.interval / 5);
        self.wait(cx, index, policy.interval - policy.interval / 10 + jitter);
    }

    fn wait(&mut self, cx: &mut ProbeCx<'_>, index: usize, time: Duration) {
        let Ok(name) = u32::try_from(index) else { return };
        let key = self.wheel.insert(cx.now + time, name);
        if let Some(probe) = self.probes.get_mut(index) {
            probe.timer = Some(key);
        }
    }

    fn trunk(&self, cx: &ProbeCx<'_>, index: usize) -> Option<(std::sync::Arc<Trunk>, usize)> {
        let probe = self.probes.get(index)?;
        Some((cx.routing.table().trunk(probe.trunk)?.clone(), probe.peer))
    }

    /// Index and epoch in one number, below 2^61.
    fn name(&self, index: usize) -> u64 {
        u64::from(self.epoch) << 32 | (index as u64 & u64::from(u32::MAX))
    }

    fn index(&self, name: u64) -> Option<usize> {
        let current = name >> 32 == u64::from(self.epoch);
        usize::try_from(name & u64::from(u32::MAX)).ok().filter(|_| current)
    }
}

fn random_below(cx: &mut ProbeCx<'_>, most: Duration) -> Duration {
    let millis = u64::try_from(most.as_millis()).unwrap_or(u64::MAX).max(1);
    Duration::from_millis(cx.txn.ids().rng().next_u64() % millis)
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
