//! Keepalives by STUN that are under way (RFC 5626 §3.5.2): binding requests, repeated until they are
//! answered or given up (RFC 8489 §6.2.1). Which bindings get one, and what an answer or silence means
//! for them, is the registrar's.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashbrown::HashMap;
use rand::Rng;

use super::Destination;
use super::users::{PING_TIMEOUT, ping_answered, ping_failed};
use crate::b2bua::Cx;
use crate::ids::ShardHint;
use crate::net::{Flow, InterfaceId};
use crate::registrar::Ping;
use crate::stun::{self, TransactionId};
use crate::timer::{TimerKey, TimerWheel};

/// The first waiting time; each further one is twice as long.
const RTO: Duration = Duration::from_millis(500);

/// A binding request without an answer yet.
#[derive(Debug)]
struct UnderWay {
    /// Names the binding.
    ping: u64,
    interface: InterfaceId,
    to: SocketAddr,
    dest: Destination,
    /// How long to wait after the last transmission.
    wait: Duration,
    give_up: Instant,
    timer: TimerKey,
}

/// The keepalives of one shard. As many at once as client transactions may be; what is too much is
/// sent all the same, its answer counts as stray.
#[derive(Debug)]
pub(super) struct StunPings {
    under_way: HashMap<TransactionId, UnderWay>,
    wheel: TimerWheel<TransactionId>,
}

impl StunPings {
    pub(super) fn new(now: Instant) -> Self {
        StunPings { under_way: HashMap::new(), wheel: TimerWheel::new(now) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.wheel.deadline()
    }

    pub(super) fn send(&mut self, cx: &mut Cx<'_>, ping: &Ping, dest: Destination) {
        // Responses carry the hint: they come back to this shard.
        let hint = ShardHint(cx.env.place.0);
        let id = stun::transaction(hint, cx.ids().rng().next_u64());
        cx.env.txn.transmit(dest, Bytes::from(stun::request(id)));
        if self.under_way.len() >= cx.env.config.transactions.max_clients {
            return;
        }
        let (interface, to) = (ping.flow.interface, ping.flow.remote);
        let timer = self.wheel.insert(cx.now + RTO, id);
        let (wait, give_up) = (RTO, cx.now + PING_TIMEOUT);
        let under_way = UnderWay { ping: ping.id, interface, to, dest, wait, give_up, timer };
        self.under_way.insert(id, under_way);
    }

    /// A STUN response came: to a keepalive of ours, from where that went, or it counts as stray.
    pub(super) fn heard(&mut self, cx: &mut Cx<'_>, flow: &Flow, data: &[u8]) {
        let known = stun::response(data).filter(|id| {
            self.under_way.get(id).is_some_and(|under_way| {
                (flow.interface, flow.remote) == (under_way.interface, under_way.to)
                    && flow.conn.is_none()
            })
        });
        let Some(answered) = known.and_then(|id| self.under_way.remove(&id)) else {
            cx.env.stats.stray_stun += 1;
            return;
        };
        self.wheel.cancel(answered.timer);
        ping_answered(cx, answered.ping);
    }

    /// Repeats what is not answered, and gives up what has not been for too long.
    pub(super) fn handle_tick(&mut self, cx: &mut Cx<'_>) {
        while let Some((_, id)) = self.wheel.pop(cx.now) {
            let Some(under_way) = self.under_way.get_mut(&id) else { continue };
            if cx.now >= under_way.give_up {
                let ping = under_way.ping;
                self.under_way.remove(&id);
                ping_failed(cx, ping);
                continue;
            }
            cx.env.txn.transmit(under_way.dest, Bytes::from(stun::request(id)));
            under_way.wait *= 2;
            let next = (cx.now + under_way.wait).min(under_way.give_up);
            under_way.timer = self.wheel.insert(next, id);
        }
    }
}
