//! Which flows belong into the kernel, and where each one is.
//!
//! ```text
//!              Install                 Installed
//!  Userspace ──────────▶ Asked ────────────────────▶ Kernel
//!   ▲  ▲ │                 │ no longer wanted as is    │ │
//!   │  │ │ Refused         ├───────────────────────────┘ │ Evicted
//!   │  │ └◀────────────────┤ Remove                      │
//!   │  │        Removed    ▼                             │
//!   │  └──────────────── Leaving                         │
//!   └─ retry_after ── Refused ◀──────────────────────────┘
//! ```
//!
//! How the kernel does it is the applier's business (`plan_types.rs`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::session::{SideState, Stream};
use super::{Engine, Output};
use crate::cells::StreamCell;
use crate::config::OffloadConfig;
use crate::plan_types::{Flow, FlowChange, FlowCounters, FlowId, FlowOutcome, Path, Stay, Tuple};
use crate::types::{Component, SessionId, Side, rtcp_of};

/// One direction of one component.
#[derive(Debug, Default)]
pub(super) struct FlowState {
    place: Place,
    /// What the kernel relayed in earlier installations.
    before: FlowCounters,
    /// What it has relayed since the last one.
    since: FlowCounters,
    /// Where a leaving flow is still counted when its stream has ended and begun anew.
    owner: Option<Arc<StreamCell>>,
}

#[derive(Debug, Default)]
enum Place {
    #[default]
    Userspace,
    Refused {
        stay: Stay,
        until: Instant,
    },
    Asked(Box<Flow>),
    Kernel(Box<Flow>),
    Leaving,
}

impl FlowState {
    /// Whether the kernel has it, or may still have it.
    pub(super) fn is_in_kernel(&self) -> bool {
        match self.place {
            Place::Userspace | Place::Refused { .. } => false,
            Place::Asked(_) | Place::Kernel(_) | Place::Leaving => true,
        }
    }

    /// Whether the kernel relays it for sure.
    pub(super) fn is_installed(&self) -> bool {
        matches!(self.place, Place::Kernel(_))
    }

    /// The stream has begun anew with other counters; what is still in the kernel is the old one's.
    pub(super) fn hand_over(self, old: &Arc<StreamCell>) -> FlowState {
        if self.is_in_kernel() {
            FlowState { owner: self.owner.or_else(|| Some(old.clone())), ..self }
        } else {
            FlowState::default()
        }
    }

    /// All that the kernel relayed of it.
    fn total(&self) -> FlowCounters {
        FlowCounters {
            packets: self.before.packets + self.since.packets,
            bytes: self.before.bytes + self.since.bytes,
        }
    }

    fn finish(&mut self, last: FlowCounters) {
        self.since = last;
        self.before = self.total();
        self.since = FlowCounters::default();
    }

    /// Moves towards what is wanted; the change to ask for and the path to show.
    fn steer(
        &mut self,
        now: Instant,
        id: FlowId,
        wanted: Result<Flow, Stay>,
        install: bool,
    ) -> (Option<FlowChange>, Path) {
        let pending = Path::Userspace(Stay::Pending);
        match (&self.place, wanted) {
            (Place::Userspace, Err(stay)) => (None, Path::Userspace(stay)),
            (Place::Refused { stay, until }, Ok(_)) if now < *until => {
                (None, Path::Userspace(*stay))
            }
            (Place::Userspace | Place::Refused { .. }, Ok(_)) if !install => (None, pending),
            (Place::Userspace | Place::Refused { .. }, Ok(flow)) => {
                self.place = Place::Asked(Box::new(flow));
                (Some(FlowChange::Install(flow)), pending)
            }
            (Place::Refused { .. }, Err(stay)) => {
                self.place = Place::Userspace;
                (None, Path::Userspace(stay))
            }
            (Place::Asked(current), Ok(flow)) if **current == flow => (None, pending),
            (Place::Kernel(current), Ok(flow)) if **current == flow => (None, Path::Kernel),
            (Place::Asked(_) | Place::Kernel(_), wanted) => {
                self.place = Place::Leaving;
                (
                    Some(FlowChange::Remove(id)),
                    Path::Userspace(wanted.err().unwrap_or(Stay::Pending)),
                )
            }
            (Place::Leaving, wanted) => {
                (None, Path::Userspace(wanted.err().unwrap_or(Stay::Pending)))
            }
        }
    }

    /// Takes the applier's answer; `Some` with the way of the flow when something has changed.
    fn outcome(&mut self, outcome: &FlowOutcome, retry_at: Instant) -> Option<Path> {
        let place = std::mem::take(&mut self.place);
        let (place, path) = match (place, outcome) {
            (Place::Asked(flow), FlowOutcome::Installed(_)) => {
                (Place::Kernel(flow), Some(Path::Kernel))
            }
            (Place::Asked(_), FlowOutcome::Refused(_, stay)) => {
                let place = Place::Refused { stay: *stay, until: retry_at };
                (place, Some(Path::Userspace(*stay)))
            }
            (Place::Asked(_) | Place::Kernel(_), FlowOutcome::Evicted(_, stay, last)) => {
                self.finish(*last);
                let place = Place::Refused { stay: *stay, until: retry_at };
                (place, Some(Path::Userspace(*stay)))
            }
            (Place::Leaving, FlowOutcome::Removed(_, last)) => {
                self.finish(*last);
                (Place::Userspace, Some(Path::Userspace(Stay::Pending)))
            }
            (Place::Leaving, FlowOutcome::Evicted(_, _, last)) => {
                self.finish(*last);
                (Place::Leaving, None)
            }
            // Answers that a later change has overtaken, and contradictions of the applier.
            (place @ Place::Leaving, FlowOutcome::Installed(_) | FlowOutcome::Refused(..))
            | (
                place @ (Place::Userspace | Place::Refused { .. }),
                FlowOutcome::Installed(_)
                | FlowOutcome::Refused(..)
                | FlowOutcome::Removed(..)
                | FlowOutcome::Evicted(..),
            )
            | (
                place @ Place::Kernel(_),
                FlowOutcome::Installed(_) | FlowOutcome::Refused(..) | FlowOutcome::Removed(..),
            )
            | (place @ Place::Asked(_), FlowOutcome::Removed(..)) => (place, None),
        };
        self.place = place;
        path
    }
}

const DIRECTIONS: [(Side, Component); 4] = [
    (Side::A, Component::Rtp),
    (Side::B, Component::Rtp),
    (Side::A, Component::Rtcp),
    (Side::B, Component::Rtcp),
];

impl Engine {
    /// Compares what is in the kernel with what belongs there; installs only if `install`.
    pub(super) fn plan(&mut self, now: Instant, id: SessionId, install: bool) {
        let offload = self.offload;
        let Some(slot) = self.slot(id) else { return };
        let Some(session) = self.sessions.get_mut(slot as usize) else { return };
        if session.closing || !self.kernel {
            return;
        }
        let (mut asked, mut provisional) = (false, false);
        for (index, stream) in (0u8..).zip(session.slots_mut()) {
            let Some(stream) = stream.filter(|stream| !stream.dropped) else { continue };
            for (from, component) in DIRECTIONS {
                let flow_id = FlowId { session: id, stream: index, from, component };
                let wanted = wanted(now, stream, flow_id, &offload);
                provisional |= stream.side(from).latch.closes().is_some_and(|at| at > now);
                let flow = stream.side_mut(from).flow_mut(component);
                let (change, path) = flow.steer(now, flow_id, wanted, install);
                stream.cell.side(from).set_path(component, path);
                if let Some(change) = change {
                    asked |= matches!(change, FlowChange::Install(_));
                    self.outputs.push_back(Output::Flow(change));
                }
            }
        }
        session.had_kernel_flows |= asked;
        if provisional && install {
            self.settling.push_back((now + offload.settle, id));
        }
    }

    /// Takes everything of a session (or of one stream) out of the kernel.
    pub(super) fn withdraw(&mut self, id: SessionId, only: Option<u8>) {
        let Some(slot) = self.slot(id) else { return };
        let Some(session) = self.sessions.get_mut(slot as usize) else { return };
        for (index, stream) in (0u8..).zip(session.slots_mut()) {
            let Some(stream) = stream.filter(|_| only.is_none_or(|only| only == index)) else {
                continue;
            };
            for (from, component) in DIRECTIONS {
                let flow = stream.side_mut(from).flow_mut(component);
                if let Place::Asked(_) | Place::Kernel(_) = flow.place {
                    flow.place = Place::Leaving;
                    let flow_id = FlowId { session: id, stream: index, from, component };
                    self.outputs.push_back(Output::Flow(FlowChange::Remove(flow_id)));
                }
            }
        }
    }

    /// Takes the applier's answer to a change.
    pub(crate) fn outcome(&mut self, now: Instant, outcome: &FlowOutcome) {
        let flow_id = outcome.id();
        let retry_after = self.offload.retry_after;
        let Some(session) = self.session_mut(flow_id.session) else { return };
        let Some(stream) = session.stream_mut(flow_id.stream) else { return };
        let cell = stream.cell.clone();
        let side = stream.side_mut(flow_id.from);
        let flow = side.flow_mut(flow_id.component);
        let path = flow.outcome(outcome, now + retry_after);
        let counted = flow.owner.as_ref().unwrap_or(&cell);
        counted.side(flow_id.from).kernel(flow_id.component, flow.total());
        let Some(path) = path else { return };
        if flow.owner.is_some() && !flow.is_in_kernel() {
            *flow = FlowState::default();
        }
        cell.side(flow_id.from).set_path(flow_id.component, path);
        side.reception.interrupt();
        if path != Path::Kernel {
            session.active_at = now;
        }
        match outcome {
            FlowOutcome::Installed(_) => {}
            FlowOutcome::Refused(..) | FlowOutcome::Evicted(..) => {
                self.retrying.push_back((now + retry_after, flow_id.session));
            }
            FlowOutcome::Removed(..) => {
                self.finish_streams(flow_id.session);
                self.changed(now, flow_id.session);
                self.finish(flow_id.session);
            }
        }
    }

    /// There is no kernel any more: every flow is in userspace again.
    pub(crate) fn kernel_gone(&mut self, now: Instant) {
        self.kernel = false;
        let mut outcomes = Vec::new();
        for (_, session) in &self.sessions {
            for (index, stream) in session.indexed() {
                for (from, component) in DIRECTIONS {
                    let id = FlowId { session: session.id, stream: index, from, component };
                    let flow = stream.side(from).flow(component);
                    match flow.place {
                        Place::Userspace | Place::Refused { .. } => {}
                        Place::Asked(_) | Place::Kernel(_) => {
                            outcomes.push(FlowOutcome::Evicted(id, Stay::Off, flow.since));
                        }
                        Place::Leaving => outcomes.push(FlowOutcome::Removed(id, flow.since)),
                    }
                }
            }
        }
        for outcome in &outcomes {
            self.outcome(now, outcome);
            let FlowId { session, stream, from, component } = outcome.id();
            if let Some(stream) = self.session_mut(session).and_then(|s| s.stream_mut(stream)) {
                stream.cell.side(from).set_path(component, Path::Userspace(Stay::Off));
            }
        }
    }

    /// Takes counters since installation, read from the kernel.
    pub(crate) fn counters(&mut self, now: Instant, id: FlowId, counters: FlowCounters) {
        let Some(session) = self.session_mut(id.session) else { return };
        let Some(stream) = session.stream_mut(id.stream) else { return };
        let cell = stream.cell.clone();
        let flow = stream.side_mut(id.from).flow_mut(id.component);
        if !flow.is_installed() || counters.packets <= flow.since.packets {
            return;
        }
        flow.since = counters;
        cell.side(id.from).kernel(id.component, flow.total());
        if id.component == Component::Rtp {
            session.active_at = now;
        }
    }
}

/// The flow of a direction if it needs nothing but new addresses, else why it stays.
pub(super) fn wanted(
    now: Instant,
    stream: &Stream,
    id: FlowId,
    config: &OffloadConfig,
) -> Result<Flow, Stay> {
    let (from, to) = (stream.side(id.from), stream.side(id.from.other()));
    let bound = from.bound.ok_or(Stay::NoPeer)?;
    let src = match id.component {
        Component::Rtp => rtp_source(now, from, to)?,
        Component::Rtcp => rtcp_source(now, from, config)?,
    };
    let endpoint = match id.component {
        Component::Rtp => to.latch.destination(),
        Component::Rtcp => to.rtcp_destination(),
    }
    .ok_or(Stay::NoPeer)?;
    let (_, exit) = to.exit(id.component).ok_or(Stay::NoPeer)?;
    let egress = to.bound.ok_or(Stay::NoPeer)?;
    if src.is_ipv4() != endpoint.is_ipv4() {
        return Err(Stay::Family);
    }
    let entry = match id.component {
        Component::Rtp => bound.rtp,
        Component::Rtcp => rtcp_of(bound.rtp),
    };
    Ok(Flow {
        id,
        kind: stream.kind,
        arrives: Tuple { src, dst: entry },
        leaves: Tuple { src: exit, dst: endpoint },
        ingress: bound.interface,
        egress: egress.interface,
        dscp: egress.dscp,
    })
}

fn rtp_source(now: Instant, from: &SideState, to: &SideState) -> Result<SocketAddr, Stay> {
    if !from.sends_to(to) {
        return Err(Stay::Direction);
    }
    // The kernel does not tell RTCP from RTP: both would leave for the RTP port.
    if from.rtcp_mux() && !to.rtcp_mux() {
        return Err(Stay::Rtcp);
    }
    from.latch.settled(now).ok_or(Stay::NotLatched)
}

fn rtcp_source(now: Instant, from: &SideState, config: &OffloadConfig) -> Result<SocketAddr, Stay> {
    if config.rtcp_in_userspace || from.rtcp_mux() {
        return Err(Stay::Rtcp);
    }
    from.latch.settled(now).and(from.rtcp_learnt).ok_or(Stay::NotLatched)
}
