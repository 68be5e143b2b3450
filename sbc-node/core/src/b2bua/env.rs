//! What a call may touch outside itself: transactions, timers, identifiers, routing, the media
//! anchor, and the queue of outputs. One per shard; passed to every operation as [`Cx`].

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashbrown::HashMap;
use smallvec::SmallVec;

use super::call::{CallKey, CallTimer, DialogRef};
use super::peers::Peers;
use super::record::CallId;
use super::stats::Stats;
use super::subscription::SubKey;
use crate::core::{
    Cache, Config, Destination, Direction, Event, Output, Record, ResolveId, ResolveQuery, StoreId,
    Trace, Wanted,
};
use crate::guard::{Guard, Overload};
use crate::ids::{Branch, Ids};
use crate::media::{Anchor, Side};
use crate::net::{ConnId, Flow, InterfaceId, Listener, Target, Transport};
use crate::registrar::Registrar;
use crate::routing::Routing;
use crate::sip::{Message, Method};
use crate::timer::{TimerKey, TimerWheel};
use crate::transaction::{
    ClientId, ClientRequest, Large, Owner, ServerId, TransactionLayer, UDP_LIMIT,
};

/// What a client transaction of ours is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The INVITE of attempt n of a call.
    Invite { call: CallKey, attempt: u16 },
    /// Exchange n of a call.
    Exchange { call: CallKey, number: u16 },
    /// A request outside any dialog that we pass on.
    Relay { index: u32, number: u32 },
    /// Request n in the dialogs of a subscription; never 0.
    Subscription { index: u32, number: u32, exchange: u16 },
    /// BYE of a dialog that no call knows; its outcome matters to nobody.
    Stray,
}

impl Purpose {
    /// Packs into what the transaction layer carries: 2 bits kind, 16 bits number, 24 bits table
    /// index, 22 bits of the call's name to tell a later call in the same place apart.
    pub(crate) fn seal(self) -> Owner {
        let pack = |kind: u64, number: u64, index: u32, check: u64| {
            Owner(kind << 62 | number << 46 | u64::from(index & INDEX) << 22 | check & CHECK)
        };
        match self {
            Purpose::Stray => pack(0, 0, 0, 0),
            Purpose::Invite { call, attempt } => pack(1, u64::from(attempt), call.index, call.id.0),
            Purpose::Exchange { call, number } => pack(2, u64::from(number), call.index, call.id.0),
            Purpose::Relay { index, number } => pack(3, 0, index, u64::from(number)),
            Purpose::Subscription { index, number, exchange } => {
                pack(3, u64::from(exchange), index, u64::from(number))
            }
        }
    }

    /// Undoes [`Purpose::seal`]. The call's key holds only the checked part of its name.
    pub(crate) fn open(Owner(owner): Owner) -> Purpose {
        let index = u32::try_from(owner >> 22 & u64::from(INDEX)).unwrap_or(0);
        let number = u16::try_from(owner >> 46 & 0xffff).unwrap_or(0);
        let check = owner & CHECK;
        let call = CallKey { index, id: CallId(check) };
        match owner >> 62 {
            1 => Purpose::Invite { call, attempt: number },
            2 => Purpose::Exchange { call, number },
            3 => {
                let (exchange, number) = (number, u32::try_from(check).unwrap_or(0));
                match exchange {
                    0 => Purpose::Relay { index, number },
                    _ => Purpose::Subscription { index, number, exchange },
                }
            }
            _ => Purpose::Stray,
        }
    }
}

const INDEX: u32 = (1 << 24) - 1;
/// The bits of a call's name that a [`Purpose`] has room for.
pub(crate) const CHECK: u64 = (1 << 22) - 1;

/// A request on its way out.
pub(crate) struct Sent {
    pub(crate) method: Method,
    pub(crate) branch: Branch,
    pub(crate) dest: Destination,
    pub(crate) data: Bytes,
    pub(crate) purpose: Purpose,
    /// Instead of timer B or F.
    pub(crate) timeout: Option<Duration>,
}

/// What waits for a name to be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResolveFor {
    Attempt {
        call: CallKey,
        attempt: u16,
    },
    /// The next hop of a leg changed to a name.
    Leg {
        call: CallKey,
        side: Side,
    },
    /// Where the user of a leg is whose connection is gone.
    Lost {
        call: CallKey,
        side: Side,
    },
    Relay {
        index: u32,
        number: u32,
    },
    /// The next hop of a subscription's leg is a name.
    Subscription {
        key: SubKey,
        side: Side,
    },
}

/// A timer of the shard's calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timer {
    pub(crate) call: CallKey,
    pub(crate) what: CallTimer,
}

/// Ties the monotonic clock of the core to wall-clock time, for CDRs and records.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    /// An instant and the Unix time that it stands for, milliseconds.
    pub at: Instant,
    pub unix_ms: u64,
}

impl WallClock {
    /// Unix time of `now`, milliseconds.
    pub fn unix_ms(&self, now: Instant) -> u64 {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        match now.checked_duration_since(self.at) {
            Some(after) => self.unix_ms.saturating_add(millis(after)),
            None => self.unix_ms.saturating_sub(millis(self.at - now)),
        }
    }
}

/// The shard's state that calls share.
pub(crate) struct Env {
    pub(crate) config: Arc<Config>,
    pub(crate) routing: Routing,
    pub(crate) registrar: Option<Registrar>,
    pub(crate) guard: Option<Arc<Guard>>,
    pub(crate) overload: Option<Arc<Overload>>,
    /// Which shard of how many this is.
    pub(crate) place: (u32, u32),
    pub(crate) txn: TransactionLayer,
    pub(crate) timers: TimerWheel<Timer>,
    pub(crate) out: VecDeque<Output>,
    /// Local tag → dialog. Every in-dialog request of a peer carries one of these as its To tag.
    pub(crate) tags: HashMap<Box<str>, DialogRef>,
    /// Calls whose INVITE came by a connection.
    pub(crate) conns: HashMap<ConnId, SmallVec<[CallKey; 1]>>,
    pub(crate) peers: Peers,
    pub(crate) resolves: HashMap<ResolveId, ResolveFor>,
    /// Requests whose users another system is asked for.
    pub(crate) waiting: crate::core::Waiting,
    /// INVITEs that wait for room in a limit of their user.
    pub(crate) rooms: crate::core::Rooms,
    pub(crate) stores: HashMap<StoreId, CallKey>,
    pub(crate) clock: WallClock,
    pub(crate) draining: bool,
    /// What is being handled is for this node and no other.
    pub(crate) here: bool,
    /// Until when an INVITE may be a repeat of one that another node took.
    pub(crate) taking_over_until: Option<Instant>,
    /// Trace every new call.
    pub(crate) trace_all: bool,
    /// Trace new calls whose id is below this: a share of all; the largest number is all of them.
    pub(crate) trace_below: u64,
    pub(crate) stats: Stats,
    /// REGISTERs under way to core registrars.
    pub(crate) cache: Cache,
    pub(crate) next_id: u64,
}

/// One mutation's view of the world.
pub(crate) struct Cx<'a> {
    pub(crate) now: Instant,
    pub(crate) env: &'a mut Env,
    pub(crate) anchor: &'a mut dyn Anchor,
}

/// Who a message is traced for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traced {
    pub(crate) call: CallId,
    pub(crate) side: Side,
}

impl Cx<'_> {
    /// Starts a client transaction. `None` when the table is full (counted by the layer).
    pub(crate) fn send(&mut self, whom: Option<Traced>, sent: Sent) -> Option<ClientId> {
        if let Some(whom) = whom {
            self.trace(whom, Direction::Sent, &sent.dest, &sent.data);
        }
        let large = self.large(&sent.dest, &sent.data);
        let request = ClientRequest {
            owner: sent.purpose.seal(),
            branch: sent.branch,
            method: sent.method,
            dest: sent.dest,
            data: sent.data,
            timeout: sent.timeout,
            large,
        };
        self.env.txn.send_request(self.now, request).ok()
    }

    /// How a request leaves that may be too large for UDP.
    fn large(&self, dest: &Destination, data: &Bytes) -> Large {
        let Destination::Target { interface, target } = *dest else { return Large::Udp };
        if target.transport != Transport::Udp || data.len() <= UDP_LIMIT {
            return Large::Udp;
        }
        let target = Target { transport: Transport::Tcp, ..target };
        let interface = self.env.config.interfaces.get(usize::from(interface.0));
        match interface.filter(|i| i.large_by_tcp).and_then(|i| i.listener_for(&target)) {
            Some(tcp) => Large::Tcp {
                sent_by: format!("{}:{}", tcp.advertise_host, tcp.advertise_port).into(),
            },
            None => Large::Udp,
        }
    }

    /// Answers a server transaction.
    pub(crate) fn respond(
        &mut self,
        whom: Option<Traced>,
        flow: &Flow,
        server: ServerId,
        status: u16,
        data: Bytes,
    ) {
        if let Some(whom) = whom {
            self.trace(whom, Direction::Sent, &Destination::Flow(*flow), &data);
        }
        if self.env.txn.respond(self.now, server, status, data).is_err() {
            self.env.stats.late_responses += 1;
        }
    }

    /// Sends outside any transaction: the ACK of a 2xx.
    pub(crate) fn transmit(&mut self, whom: Option<Traced>, dest: Destination, data: Bytes) {
        if let Some(whom) = whom {
            self.trace(whom, Direction::Sent, &dest, &data);
        }
        self.env.txn.transmit(dest, data);
    }

    /// Says whose a server transaction is.
    pub(crate) fn own_server(&mut self, server: ServerId, purpose: Purpose) {
        self.env.txn.set_owner(server, purpose.seal());
    }

    /// Cancels an INVITE of ours; the layer waits for its provisional response by itself.
    pub(crate) fn cancel(&mut self, client: ClientId, reason: Option<&str>) {
        self.env.txn.cancel(self.now, client, reason);
    }

    pub(crate) fn ids(&mut self) -> &mut Ids {
        self.env.txn.ids()
    }

    /// A session id for `o=`: random, and small enough for peers that read 32 bits.
    pub(crate) fn sdp_session(&mut self) -> u64 {
        use rand::Rng;
        u64::from(self.ids().rng().next_u32() >> 1)
    }

    /// Begins a response with what every response of ours has.
    pub(crate) fn response(
        &self,
        request: &Message,
        flow: &Flow,
        status: u16,
        reason: &str,
        tag: Option<&str>,
    ) -> crate::sip::Builder {
        let mut out = crate::sip::response(request, status, reason, tag, Some(flow.remote));
        if status > 100 && !self.env.config.product.is_empty() {
            out.header(crate::sip::HeaderName::Server, &*self.env.config.product);
        }
        out
    }

    pub(crate) fn listener(&self, dest: &super::call::Hop) -> Option<&Listener> {
        let interface = self.env.config.interfaces.get(usize::from(dest.interface.0))?;
        match dest.flow {
            Some(flow) if flow.conn.is_some() => interface
                .listeners
                .iter()
                .find(|l| l.transport == flow.transport && l.local == flow.local)
                .or_else(|| interface.listener_for(&dest.target)),
            Some(_) | None => interface.listener_for(&dest.target),
        }
    }

    pub(crate) fn store(
        &mut self,
        call: CallKey,
        record: Record,
        wait: Option<Duration>,
    ) -> StoreId {
        let id = StoreId(self.next_id());
        if wait.is_some() {
            self.env.stores.insert(id, call);
        }
        self.env.out.push_back(Output::Store { id, wait, record });
        id
    }

    pub(crate) fn resolve(&mut self, query: ResolveQuery, whom: ResolveFor) -> ResolveId {
        let id = ResolveId(self.next_id());
        self.env.resolves.insert(id, whom);
        self.env.out.push_back(Output::Resolve { id, query });
        id
    }

    pub(crate) fn arm(&mut self, at: Instant, call: CallKey, what: CallTimer) -> TimerKey {
        self.env.timers.insert(at, Timer { call, what })
    }

    pub(crate) fn disarm(&mut self, key: &mut Option<TimerKey>) {
        if let Some(key) = key.take() {
            self.env.timers.cancel(key);
        }
    }

    pub(crate) fn unix_ms(&self) -> u64 {
        self.env.clock.unix_ms(self.now)
    }

    /// Whether what is unknown here may be known to another node.
    pub(crate) fn may_be_elsewhere(&self) -> bool {
        self.env.config.node.is_some() && !self.env.here
    }

    /// Asks for whom a message of an unknown dialog is.
    pub(crate) fn dialog_elsewhere(&mut self, flow: Flow, message: &Message) {
        let call_id = message.call_id().unwrap_or("").into();
        self.elsewhere(Wanted::Dialog(call_id), flow, message);
    }

    pub(crate) fn elsewhere(&mut self, wanted: Wanted, flow: Flow, message: &Message) {
        let data = message.as_bytes().clone();
        self.env.out.push_back(Output::Elsewhere { wanted, flow, data });
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.env.out.push_back(Output::Event(event));
    }

    /// Whether a new call with this id is traced.
    pub(crate) fn is_traced(&self, call: CallId) -> bool {
        let below = self.env.trace_below;
        self.env.trace_all || call.0 < below || below == u64::MAX
    }

    /// Where a message to `to` will leave from, as far as an interface's listeners tell.
    fn local_of(
        &self,
        interface: InterfaceId,
        transport: Transport,
        to: SocketAddr,
    ) -> Option<SocketAddr> {
        let interface = self.env.config.interfaces.iter().find(|i| i.id == interface)?;
        let fits = |l: &&Listener| l.transport == transport && l.local.is_ipv4() == to.is_ipv4();
        interface.listeners.iter().find(fits).map(|l| l.local)
    }

    /// One rung of a traced call's ladder.
    pub(crate) fn trace(
        &mut self,
        whom: Traced,
        direction: Direction,
        dest: &Destination,
        data: &Bytes,
    ) {
        let (local, remote, transport) = match *dest {
            Destination::Flow(flow) => (Some(flow.local), flow.remote, flow.transport),
            Destination::Target { interface, target: Target { transport, addr, .. } } => {
                (self.local_of(interface, transport, addr), addr, transport)
            }
        };
        let trace = Trace {
            call: whom.call,
            side: whom.side,
            direction,
            local,
            remote,
            transport,
            at_ms: self.unix_ms(),
            data: data.clone(),
        };
        self.event(Event::Trace(Box::new(trace)));
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.env.next_id += 1;
        self.env.next_id
    }
}
