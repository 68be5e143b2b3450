//! Connections that the peers of trunks have opened: by which one each was last heard, here or by
//! another shard of the node.
//!
//! ```text
//! lost leg ─▶ heard here? ──────────────────────────────────────▶ goes by it
//!                └─ no ─▶ FindPeer to every other shard ─▶ PeerFound ─▶ goes by it
//! ```
//!
//! A request is handled by the shard of its Call-ID, so that one OPTIONS by a new connection is heard
//! by one shard alone. The others ask when they miss somebody: what is heard all the time costs
//! nobody a message. Who knows nothing does not answer; it is asked again with the next look.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::call::CallKey;
use super::env::Cx;
use crate::core::{Input, Output};
use crate::media::Side;
use crate::net::{ConnId, Flow, InterfaceId};

/// Peers remembered by their connections, and peers asked for at a time.
const PEERS_MAX: usize = 4_096;
/// The other shards are asked for a peer once in so long, however many legs miss it.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// A trunk's peer: the interface and the host that its connections come from.
pub(crate) type Peer = (InterfaceId, IpAddr);

#[derive(Default)]
pub(crate) struct Peers {
    /// The connection that each last sent a request by to this shard.
    heard: HashMap<Peer, Flow>,
    /// Whom the other shards were asked for lately.
    asked: HashMap<Peer, Asked>,
    /// The connection of each that was closed last: another shard may not have heard of it yet.
    gone: HashMap<Peer, ConnId>,
}

struct Asked {
    at: Instant,
    /// The first answer.
    told: Option<Flow>,
    /// Legs that wait for it; each looks again by itself.
    legs: Vec<(CallKey, Side)>,
}

impl Peers {
    fn hear(&mut self, flow: &Flow) {
        let peer = peer_of(flow);
        if self.heard.len() < PEERS_MAX || self.heard.contains_key(&peer) {
            self.heard.insert(peer, *flow);
        }
    }

    /// A connection is gone.
    pub(crate) fn closed(&mut self, flow: &Flow) {
        let peer = peer_of(flow);
        if self.gone.len() >= PEERS_MAX {
            self.gone.clear();
        }
        if let Some(conn) = flow.conn {
            self.gone.insert(peer, conn);
        }
        if self.heard.get(&peer).is_some_and(|heard| heard.conn == flow.conn) {
            self.heard.remove(&peer);
        }
        if let Some(asked) = self.asked.get_mut(&peer)
            && asked.told.is_some_and(|told| told.conn == flow.conn)
        {
            asked.told = None;
        }
    }

    /// Lets a leg wait for what the other shards say. Whether they are to be asked.
    fn wait(&mut self, now: Instant, peer: Peer, leg: (CallKey, Side)) -> bool {
        if let Some(asked) = self.asked.get_mut(&peer)
            && now.saturating_duration_since(asked.at) < ASK_EVERY
        {
            asked.legs.push(leg);
            return false;
        }
        if self.asked.len() >= PEERS_MAX {
            self.asked.retain(|_, asked| now.saturating_duration_since(asked.at) < ASK_EVERY);
        }
        let room = self.asked.len() < PEERS_MAX || self.asked.contains_key(&peer);
        if room {
            self.asked.insert(peer, Asked { at: now, told: None, legs: vec![leg] });
        }
        room
    }

    fn told(&self, now: Instant, peer: Peer) -> Option<Flow> {
        let asked = self.asked.get(&peer)?;
        asked.told.filter(|_| now.saturating_duration_since(asked.at) < ASK_EVERY)
    }

    /// Another shard has heard a peer. Whoever waited for it, once.
    pub(super) fn answered(&mut self, flow: &Flow) -> Vec<(CallKey, Side)> {
        let peer = peer_of(flow);
        let Some(asked) = self.asked.get_mut(&peer) else { return Vec::new() };
        if flow.conn.is_some() && self.gone.get(&peer).copied() == flow.conn {
            return Vec::new();
        }
        asked.told.get_or_insert(*flow);
        std::mem::take(&mut asked.legs)
    }
}

fn peer_of(flow: &Flow) -> Peer {
    (flow.interface, flow.remote.ip())
}

/// A trunk's peer sent a request by a connection: its lost legs may go by it.
pub(crate) fn heard_peer(cx: &mut Cx<'_>, flow: &Flow) {
    if flow.conn.is_none() || !flow.transport.is_reliable() {
        return;
    }
    if cx.env.routing.identify(flow).is_some_and(|trunk| !trunk.config.users) {
        cx.env.peers.hear(flow);
    }
}

/// Another shard asks for a peer.
pub(crate) fn tell_peer(cx: &mut Cx<'_>, from: u32, peer: Peer) {
    if let Some(flow) = cx.env.peers.heard.get(&peer) {
        let input = Box::new(Input::PeerFound { flow: *flow });
        cx.env.out.push_back(Output::Shard { shard: from, input });
    }
}

/// The connection by which a peer is reached; where this shard has heard of none the others are asked,
/// and `leg` is told what they say.
pub(super) fn find_peer(cx: &mut Cx<'_>, peer: Peer, leg: (CallKey, Side)) -> Option<Flow> {
    let peers = &mut cx.env.peers;
    if let Some(flow) = peers.heard.get(&peer).copied().or_else(|| peers.told(cx.now, peer)) {
        return Some(flow);
    }
    let (shard, shards) = cx.env.place;
    if shards > 1 && peers.wait(cx.now, peer, leg) {
        for other in (0..shards).filter(|other| *other != shard) {
            let input = Box::new(Input::FindPeer { from: shard, interface: peer.0, host: peer.1 });
            cx.env.out.push_back(Output::Shard { shard: other, input });
        }
    }
    None
}
