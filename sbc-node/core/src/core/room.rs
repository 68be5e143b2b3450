//! INVITEs of users that wait until the cluster has said whether there is room for one more call of
//! theirs. Who may call was judged before; it is not judged twice.

use std::sync::Arc;

use hashbrown::HashMap;

use super::{Output, ResolveId};
use crate::b2bua::{Cx, Incoming};
use crate::net::Flow;
use crate::routing::{Trunk, UserPlace};
use crate::sip::Message;
use crate::transaction::ServerId;

/// INVITEs of one shard that may wait; the next one is judged by the room that there is.
const HELD_MAX: usize = 4_096;

/// The INVITEs of one shard.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    held: HashMap<ResolveId, Held>,
    /// Where the INVITE that is being judged has waited, until it counts as no longer waiting.
    pub(crate) judged: Option<UserPlace>,
}

/// An INVITE that waits, and the trunk that it was found to come from.
#[derive(Debug)]
struct Held {
    server: ServerId,
    flow: Flow,
    message: Message,
    merged: bool,
    trunk: Arc<Trunk>,
    place: UserPlace,
}

impl Rooms {
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }
}

/// Asks for room and lets the INVITE wait; false when it cannot.
pub(crate) fn wait(
    cx: &mut Cx<'_>,
    incoming: &Incoming<'_>,
    trunk: &Arc<Trunk>,
    place: UserPlace,
) -> bool {
    let gates = cx.env.routing.table().user_gates();
    if cx.env.rooms.len() >= HELD_MAX || !gates.begin_wait(&place) {
        return false;
    }
    let id = ResolveId(cx.next_id());
    let (server, flow, merged) = (incoming.server, incoming.flow, incoming.merged);
    let (message, trunk) = (incoming.message.clone(), trunk.clone());
    let held = Held { server, flow, message, merged, trunk, place: place.clone() };
    cx.env.rooms.held.insert(id, held);
    cx.env.out.push_back(Output::AskRoom { id, place });
    true
}

/// The cluster has answered: lets `judge` look at what waited, if it was not cancelled meanwhile.
pub(super) fn asked(
    cx: &mut Cx<'_>,
    id: ResolveId,
    judge: impl FnOnce(&mut Cx<'_>, &Incoming<'_>, Arc<Trunk>),
) {
    let Some(held) = cx.env.rooms.held.remove(&id) else { return };
    let Held { server, flow, ref message, merged, trunk, place } = held;
    cx.env.rooms.judged = Some(place);
    judge(cx, &Incoming { server, flow, message, merged }, trunk);
    if let Some(place) = cx.env.rooms.judged.take() {
        cx.env.routing.table().user_gates().end_wait(&place);
    }
}

/// An INVITE that waits was cancelled: what is given for it is given back by itself.
pub(super) fn cancelled(cx: &mut Cx<'_>, server: ServerId) {
    let found = cx.env.rooms.held.iter().find(|(_, held)| held.server == server);
    let Some(held) = found.map(|(id, _)| *id).and_then(|id| cx.env.rooms.held.remove(&id)) else {
        return;
    };
    let Held { flow, ref message, merged, ref place, .. } = held;
    cx.env.routing.table().user_gates().end_wait(place);
    super::ask::refuse(cx, &Incoming { server, flow, message, merged }, 487);
}
