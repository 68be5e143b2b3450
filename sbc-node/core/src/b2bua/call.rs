//! The shape of a call: legs, forks, phases, exchanges. What happens to them is in the file of
//! each operation.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::answer::Media;
use super::cdr::{CdrAttempt, CdrLeg, EndedBy, Written};
use super::env::{Cx, ResolveFor, Traced};
use super::invite::Watched;
use super::record::CallId;
use super::repeat::Repeat;
use super::replaces::Replaced;
use super::{secure, wire};
use crate::core::{Destination, Direction, ResolveError, StoreId};
use crate::dialog::{Dialog, Outgoing, SessionTimer};
use crate::ids::ShardHint;
use crate::media::{MediaId, Side};
use crate::net::{ConnId, Flow, InterfaceId, Target};
use crate::registrar::Reached;
use crate::routing::{Permit, Plan, Trunk};
use crate::sip::{Message, Method};
use crate::timer::TimerKey;
use crate::transaction::{ClientId, OkRetransmit, ServerId};

/// Finds a call in its shard's table; dead once the call is gone, even if the slot is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CallKey {
    pub(crate) index: u32,
    pub(crate) id: CallId,
}

/// Which dialog of which call a local tag belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DialogRef {
    pub(crate) call: CallKey,
    pub(crate) side: Side,
    /// Number of the fork while the call is being set up; 0 afterwards.
    pub(crate) fork: u8,
}

/// What the far end of a leg said it can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Bits of [`method_bit`]; 0 when it never sent an Allow.
    pub(crate) allow: u32,
    pub(crate) rel100: bool,
    pub(crate) timer: bool,
    pub(crate) replaces: bool,
}

impl Peer {
    /// For the record: what the flags are on another node.
    pub(crate) fn bits(&self) -> u32 {
        u32::from(self.rel100) | u32::from(self.timer) << 1 | u32::from(self.replaces) << 2
    }

    pub(crate) fn from_bits(allow: u32, bits: u32) -> Self {
        Peer { allow, rel100: bits & 1 != 0, timer: bits & 2 != 0, replaces: bits & 4 != 0 }
    }
}

/// The bit of a method in [`Peer::allow`].
pub(crate) fn method_bit(method: &Method) -> u32 {
    Method::KNOWN.iter().position(|m| m == method).map_or(0, |at| 1 << at)
}

/// How requests of a leg reach its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    pub(crate) interface: InterfaceId,
    pub(crate) target: Target,
    /// The connection or source of the peer's last message, where requests go back on it.
    pub(crate) flow: Option<Flow>,
    /// The host at the far end of a connection that is gone: see `rebind.rs`.
    pub(crate) lost: Option<IpAddr>,
}

/// What we say in SDP on a leg.
#[derive(Clone, Debug, Default)]
pub(crate) struct SdpState {
    pub(crate) session: u64,
    pub(crate) version: u64,
    /// The last description sent and received on the leg.
    pub(crate) local: Option<Bytes>,
    pub(crate) remote: Option<Bytes>,
    /// The family that the peer's description last used.
    pub(crate) ipv6: Option<bool>,
}

/// One side of a call.
#[derive(Clone, Debug)]
pub(crate) struct Leg {
    pub(crate) trunk: Arc<Trunk>,
    pub(crate) dialog: Dialog,
    pub(crate) hop: Hop,
    pub(crate) peer: Peer,
    pub(crate) timer: Option<SessionTimer>,
    pub(crate) sdp: SdpState,
    /// CSeq of the last INVITE of ours whose 2xx we ACKed, and whether the ACK had a body: the
    /// same ACK answers the 2xx when it is repeated.
    pub(crate) acked: Option<(u32, bool)>,
    /// The call was taken over and the peer does not know our addresses yet.
    pub(crate) moved: bool,
    /// Where the leg's first request went to or came from; `None` after a takeover.
    pub(crate) origin: Option<IpAddr>,
}

/// An early (or winning) dialog on leg B and the tag that leg A knows it by.
#[derive(Debug)]
pub(crate) struct Fork {
    /// Names it among the forks of the call.
    pub(crate) number: u8,
    pub(crate) a_tag: Box<str>,
    pub(crate) leg: Leg,
    /// Last RSeq taken from this fork (RFC 3262).
    pub(crate) rseq: Option<u32>,
    /// RSeq on leg A → RSeq and CSeq on leg B, for the PRACK that comes from A.
    pub(crate) reliable: Option<ReliableMap>,
    /// The description that A got from this fork.
    pub(crate) answer: Option<Bytes>,
}

/// A reliable provisional response under way end to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReliableMap {
    pub(crate) a_rseq: u32,
    pub(crate) b_rseq: u32,
}

/// The target of the plan that is being tried, at one place or, where it is a user with several
/// contacts, at several at once.
#[derive(Debug)]
pub(crate) struct Trying {
    /// Index into the plan's targets.
    pub(crate) hop: usize,
    /// Contacts of the registered user that are left to try, the best last.
    pub(crate) contacts: Vec<Reached>,
    pub(crate) permit: Option<Permit>,
    pub(crate) attempts: SmallVec<[Attempt; 1]>,
    /// A failure so far is one after which the plan's next target may be tried.
    pub(crate) over: bool,
}

impl Trying {
    /// The dialogs to be, and the early ones of each.
    pub(crate) fn forks(&self) -> impl Iterator<Item = &Fork> {
        self.attempts.iter().flat_map(|a| &a.forks)
    }

    pub(crate) fn fork_mut(&mut self, number: u8) -> Option<&mut Fork> {
        self.attempts.iter_mut().flat_map(|a| &mut a.forks).find(|f| f.number == number)
    }

    pub(crate) fn leg(&self) -> Option<&Leg> {
        self.attempts.iter().find_map(|a| a.leg.as_ref())
    }
}

/// One place being tried.
#[derive(Debug, Default)]
pub(crate) struct Attempt {
    pub(crate) number: u16,
    /// Resolved addresses of this place that are left to try.
    pub(crate) addresses: SmallVec<[Target; 2]>,
    /// The contact being tried.
    pub(crate) contact: Option<Reached>,
    /// The dialog to be: no remote tag yet.
    pub(crate) leg: Option<Leg>,
    pub(crate) client: Option<ClientId>,
    pub(crate) forks: SmallVec<[Fork; 1]>,
    /// A provisional response came.
    pub(crate) proceeding: bool,
    /// Challenges that were answered in this attempt.
    pub(crate) challenges: u8,
    /// The session interval that the target insists on, after its 422.
    pub(crate) min_se: Option<u32>,
    pub(crate) timer: Option<TimerKey>,
}

/// Everything that is dropped once the caller has its final response.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) server: ServerId,
    pub(crate) invite: Message,
    pub(crate) flow: Flow,
    /// Our tag in responses that belong to no fork.
    pub(crate) a_tag: Box<str>,
    pub(crate) plan: Plan,
    /// Next element of the plan.
    pub(crate) next_hop: usize,
    /// Number of the last attempt.
    pub(crate) attempts: u16,
    pub(crate) trying: Option<Trying>,
    /// The best failure so far: what the caller gets when no target is left.
    pub(crate) failure: Option<Failure>,
    /// A target was left out because it is not reached over TLS (`secure.rs`).
    pub(crate) insecure: bool,
    /// Reliable provisional responses towards the caller.
    pub(crate) reliable: Outgoing,
    pub(crate) reliable_timer: Option<TimerKey>,
    /// The call that this one shall replace (RFC 3891).
    pub(crate) replaced: Option<Replaced>,
    /// The 2xx that waits for its commit.
    pub(crate) committing: Option<Committing>,
    /// How often the call was written for another node before its answer.
    pub(crate) early_writes: u8,
    pub(crate) requires_100rel: bool,
    /// A description went out under `a_tag`.
    pub(crate) a_tag_described: bool,
}

/// A 2xx held back until its dialog is replicated.
#[derive(Debug)]
pub(crate) struct Committing {
    pub(crate) store: StoreId,
    pub(crate) status: u16,
    pub(crate) ok: Bytes,
    pub(crate) client_seq: u32,
}

/// A final failure of a target.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) status: u16,
    pub(crate) message: Option<Message>,
}

/// Where a call is in its life.
#[derive(Debug)]
pub(crate) enum Phase {
    Setup(Box<Setup>),
    Up,
    /// Over for the peers; our own transactions are still running.
    Ending,
}

/// A 2xx to an INVITE that waits for its ACK on the side that sent the INVITE.
#[derive(Debug)]
pub(crate) struct OkWait {
    /// The side that sent the INVITE and owes the ACK; `None` if the INVITE was ours alone.
    pub(crate) side: Side,
    pub(crate) server: ServerId,
    pub(crate) flow: Flow,
    pub(crate) status: u16,
    /// CSeq of the INVITE on that side, and of ours on the other.
    pub(crate) server_seq: u32,
    /// `None` when we answered without asking the other side.
    pub(crate) client_seq: Option<u32>,
    pub(crate) ok: Bytes,
    pub(crate) schedule: OkRetransmit,
    pub(crate) timer: TimerKey,
    /// The 2xx carried an offer: the ACK carries the answer.
    pub(crate) offer_in_ok: bool,
    /// Of a re-INVITE.
    pub(crate) in_dialog: bool,
}

/// A transaction across both legs, or one of ours on one leg.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) number: u16,
    pub(crate) method: Method,
    /// The side that our request went to.
    pub(crate) to: Side,
    /// Which fork's dialog, while the call was being set up.
    pub(crate) fork: u8,
    /// The request that asked for it; `None` for requests of our own.
    pub(crate) asked: Option<Asked>,
    pub(crate) client: Option<ClientId>,
    /// CSeq of our request.
    pub(crate) client_seq: u32,
    pub(crate) kind: ExchangeKind,
    /// Challenges that were answered.
    pub(crate) challenges: u8,
    /// The request as sent, kept where the peer may challenge it.
    pub(crate) sent: Option<Bytes>,
}

/// The request on the other side that an exchange serves.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) server: ServerId,
    pub(crate) request: Message,
    pub(crate) flow: Flow,
}

impl Asked {
    /// The same, to answer it after it was handed on.
    pub(crate) fn again(&self) -> Asked {
        Asked { server: self.server, request: self.request.clone(), flow: self.flow }
    }
}

/// What an exchange is about beyond passing it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ExchangeKind {
    /// Nothing: headers and body cross.
    Plain,
    /// BYE of ours.
    Bye,
    /// Carries an offer (or asks for one, `offered == false`, re-INVITE only).
    Session { offered: bool },
    /// Our own refresh of the session timer, or the re-INVITE after taking the call over.
    Refresh,
    /// PRACK of a fork of the call being set up; ours when leg A does not do 100rel.
    Prack { offered: bool },
}

/// Who made the offer that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pending {
    /// The side that asks now.
    Theirs,
    /// We, or the other side through us.
    Ours,
}

/// A call in the making, up, or ending.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) key: CallKey,
    pub(crate) hint: ShardHint,
    pub(crate) phase: Phase,
    pub(crate) a: Leg,
    /// Leg B once a fork has won.
    pub(crate) b: Option<Leg>,
    pub(crate) media: Media,
    pub(crate) exchanges: SmallVec<[Box<Exchange>; 1]>,
    pub(crate) next_exchange: u16,
    pub(crate) ok_wait: Option<Box<OkWait>>,
    /// The 2xx of a call that was taken over before its ACK may have come.
    pub(crate) repeat: Option<Box<Repeat>>,
    pub(crate) timers: CallTimers,
    pub(crate) permits: SmallVec<[Permit; 2]>,
    /// What the fraud profiles count it as.
    pub(crate) watched: Option<Watched>,
    pub(crate) facts: Box<Facts>,
    /// REFERs that crossed: the referrer's side, their CSeq there and on the other leg.
    pub(crate) refers: SmallVec<[(Side, u32, u32); 0]>,
    /// The connection that the INVITE came by.
    pub(crate) conn: Option<ConnId>,
    pub(crate) trace: bool,
    pub(crate) revision: u32,
    /// How often each lost leg was looked for.
    pub(crate) seeks: [u8; 2],
}

/// Timers of a call that is up; those of a leg are indexed by [`slot`].
#[derive(Debug, Default)]
pub(crate) struct CallTimers {
    pub(crate) session: [Option<TimerKey>; 2],
    pub(crate) retry: [Option<TimerKey>; 2],
    pub(crate) duration: Option<TimerKey>,
    pub(crate) seek: [Option<TimerKey>; 2],
}

/// The place of a side in a pair.
pub(crate) fn slot(side: Side) -> usize {
    match side {
        Side::A => 0,
        Side::B => 1,
    }
}

/// What the CDR will say.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) started_ms: u64,
    pub(crate) ringing_ms: Option<u64>,
    pub(crate) answered_ms: Option<u64>,
    pub(crate) ends_by_ms: Option<u64>,
    pub(crate) dialled: Box<str>,
    pub(crate) from: Box<str>,
    pub(crate) to: Box<str>,
    pub(crate) attempts: SmallVec<[CdrAttempt; 1]>,
    /// Leg B of the last target that was tried and did not answer.
    pub(crate) tried: Option<CdrLeg>,
    pub(crate) status: u16,
    pub(crate) reason: Box<str>,
    pub(crate) ended_by: Option<EndedBy>,
    pub(crate) end_reason: Option<Box<str>>,
    pub(crate) protected: bool,
    pub(crate) written: Written,
}

/// What a timer of a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallTimer {
    /// Attempt n had no provisional response, or no final one, in time.
    Attempt(u16),
    /// Repeat the 2xx, or give up waiting for its ACK.
    Ok,
    /// Repeat the 2xx of a call that was taken over.
    Repeat,
    /// Repeat the reliable provisional response, or give up waiting for its PRACK.
    Reliable,
    Session(Side),
    Duration,
    /// Our own re-INVITE hit glare and may be tried again.
    Retry(Side),
    /// Look for the peer of a leg whose connection is gone.
    Seek(Side),
    /// None of a call's: a subscription, by its index and number, has run out.
    Subscription,
}

impl Call {
    /// A call as it begins, here or taken over: nothing is under way, nothing is counted yet.
    pub(crate) fn new(
        cx: &Cx<'_>,
        key: CallKey,
        hint: ShardHint,
        phase: Phase,
        a: Leg,
        facts: Facts,
    ) -> Call {
        Call {
            key,
            hint,
            phase,
            a,
            b: None,
            media: Media::new(MediaId(key.id.0)),
            exchanges: SmallVec::new(),
            next_exchange: 0,
            ok_wait: None,
            repeat: None,
            timers: CallTimers::default(),
            permits: SmallVec::new(),
            watched: None,
            facts: Box::new(facts),
            refers: SmallVec::new(),
            conn: None,
            trace: cx.is_traced(key.id),
            revision: 0,
            seeks: [0; 2],
        }
    }

    /// Whether the call began before `until_ms` and has a leg on an interface, or may yet get one.
    pub(crate) fn uses(&self, interface: InterfaceId, until_ms: u64) -> bool {
        let on = |leg: &Leg| leg.hop.interface == interface;
        let began = self.facts.started_ms <= until_ms;
        began && (on(&self.a) || self.b.as_ref().map_or(matches!(self.phase, Phase::Setup(_)), on))
    }

    /// The leg of a side; leg B exists only after a fork has won.
    pub(crate) fn leg(&self, side: Side) -> Option<&Leg> {
        match side {
            Side::A => Some(&self.a),
            Side::B => self.b.as_ref(),
        }
    }

    pub(crate) fn leg_mut(&mut self, side: Side) -> Option<&mut Leg> {
        match side {
            Side::A => Some(&mut self.a),
            Side::B => self.b.as_mut(),
        }
    }

    /// The leg of a side; of B, while forks ring, that of fork n.
    pub(crate) fn leg_at(&self, side: Side, fork: u8) -> Option<&Leg> {
        match (side, &self.phase, &self.b) {
            (Side::A, _, _) => Some(&self.a),
            (Side::B, Phase::Setup(setup), None) => {
                setup.trying.as_ref()?.forks().find(|f| f.number == fork).map(|f| &f.leg)
            }
            (Side::B, _, b) => b.as_ref(),
        }
    }

    pub(crate) fn leg_at_mut(&mut self, side: Side, fork: u8) -> Option<&mut Leg> {
        match (side, &mut self.phase, &mut self.b) {
            (Side::A, _, _) => Some(&mut self.a),
            (Side::B, Phase::Setup(setup), None) => {
                setup.trying.as_mut()?.fork_mut(fork).map(|f| &mut f.leg)
            }
            (Side::B, _, b) => b.as_mut(),
        }
    }

    pub(crate) fn hop_of(&self, side: Side, fork: u8) -> Hop {
        self.leg_at(side, fork).map_or(self.a.hop, |l| l.hop)
    }

    /// The fork that a request in an early dialog means: by its tag on leg A, by the dialog itself
    /// on leg B.
    pub(crate) fn fork_number(&self, dialog: &DialogRef, request: &Message) -> u8 {
        match (dialog.side, &self.phase) {
            (Side::B, Phase::Setup(setup)) => {
                let (call_id, tag) = (request.call_id().unwrap_or(""), request.from_tag());
                let mut forks = setup.trying.iter().flat_map(Trying::forks);
                forks.find(|f| f.leg.dialog.is(call_id, tag)).map_or(0, |f| f.number)
            }
            (_, _) => dialog.fork,
        }
    }

    /// The connection that leg A lives on is gone: its requests go to where its Contact says, or wait.
    pub(crate) fn conn_closed(&mut self, cx: &mut Cx<'_>, conn: ConnId) {
        if self.a.hop.flow.is_some_and(|f| f.conn == Some(conn)) {
            self.lose_connection(cx, Side::A);
        }
    }

    /// A peer behind NAT is where its last request came from.
    pub(crate) fn came_by(&mut self, cx: &mut Cx<'_>, side: Side, fork: u8, flow: &Flow) {
        // A datagram that came by another node is answered there; who sent it may be reached from
        // here all the same.
        if !flow.transport.is_reliable() && flow.conn.is_some() {
            return;
        }
        let Some(leg) = self.leg_at_mut(side, fork) else { return };
        if !secure::may_go_by(&leg.dialog, flow) {
            return;
        }
        if leg.hop.lost.is_some() && flow.conn.is_some() {
            self.bound(cx, side, flow);
        } else if leg.trunk.config.symmetric {
            leg.hop = wire::hop_of_flow(flow);
        }
    }

    /// Follows a leg's next hop after its target changed: an address at once, a name when it is
    /// resolved.
    pub(crate) fn follow(&mut self, cx: &mut Cx<'_>, side: Side, fork: u8) {
        let key = self.key;
        let Some(leg) = self.leg_at_mut(side, fork) else { return };
        if let Some(query) = wire::follow_target(cx, leg) {
            cx.resolve(query, ResolveFor::Leg { call: key, side });
        }
    }

    /// Whether nothing is left to wait for and the call can be forgotten.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Ending) && self.exchanges.is_empty()
    }

    pub(crate) fn setup_mut(&mut self) -> Option<&mut Setup> {
        match &mut self.phase {
            Phase::Setup(setup) => Some(setup),
            Phase::Up | Phase::Ending => None,
        }
    }

    /// Who messages of a side are traced for, if the call is traced.
    pub(crate) fn traced(&self, side: Side) -> Option<Traced> {
        self.trace.then_some(Traced { call: self.key.id, side })
    }

    pub(crate) fn trace_received(
        &self,
        cx: &mut Cx<'_>,
        side: Side,
        flow: &Flow,
        message: &Message,
    ) {
        if let Some(whom) = self.traced(side) {
            let dest = Destination::Flow(*flow);
            cx.trace(whom, Direction::Received, &dest, message.as_bytes());
        }
    }

    /// A response carries no flow: it came from where its leg's requests go.
    pub(crate) fn trace_response(&self, cx: &mut Cx<'_>, side: Side, message: &Message) {
        let Some(whom) = self.traced(side) else { return };
        let trying = match &self.phase {
            Phase::Setup(setup) => setup.trying.as_ref().and_then(|trying| {
                let call_id = message.call_id().unwrap_or("");
                let mut legs = trying.attempts.iter().filter_map(|a| a.leg.as_ref());
                legs.find(|leg| *leg.dialog.call_id == *call_id)
            }),
            Phase::Up | Phase::Ending => None,
        };
        if let Some(leg) = self.leg(side).or(trying) {
            let dest = wire::destination(&leg.hop);
            cx.trace(whom, Direction::Received, &dest, message.as_bytes());
        }
    }

    /// The name of a leg's next hop was resolved.
    pub(crate) fn hop_resolved(&mut self, side: Side, result: Result<Vec<Target>, ResolveError>) {
        let first = result.ok().and_then(|targets| targets.first().copied());
        if let (Some(target), Some(leg)) = (first, self.leg_mut(side)) {
            leg.hop.target = target;
            leg.hop.flow = None;
        }
    }
}
