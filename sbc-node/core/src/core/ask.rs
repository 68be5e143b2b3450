//! Requests of phones that wait until another system has told who their users are.

use hashbrown::HashMap;

use super::{Output, ResolveId};
use crate::b2bua::users::users_trunk;
use crate::b2bua::{Cx, Incoming};
use crate::net::Flow;
use crate::registrar::{AskUser, Found};
use crate::sip::{HeaderName, Message};
use crate::transaction::ServerId;

/// Seconds after which to try again while the other system does not answer.
const RETRY_AFTER_S: u32 = 5;

/// The requests of one shard.
#[derive(Debug, Default)]
pub(crate) struct Waiting(HashMap<ResolveId, Asked>);

/// A request that waits.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) server: ServerId,
    pub(super) flow: Flow,
    pub(super) message: Message,
    pub(super) merged: bool,
    ask: AskUser,
}

impl Waiting {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Lets a request wait if it must; otherwise it is given back.
pub(super) fn wait(
    cx: &mut Cx<'_>,
    server: ServerId,
    flow: Flow,
    message: Message,
    merged: bool,
) -> Option<Message> {
    let now_s = cx.unix_ms() / 1_000;
    let Some(registrar) = &cx.env.registrar else { return Some(message) };
    let Some(policy) = registrar.remote() else { return Some(message) };
    if cx.env.routing.identify(&flow).is_some() || users_trunk(cx, &flow).is_none() {
        return Some(message);
    }
    let Some(ask) = registrar.lacks(&flow, &message, cx.now, now_s) else { return Some(message) };
    if cx.env.waiting.len() >= policy.waiting_max {
        cx.env.stats.unasked += 1;
        refuse(cx, &Incoming { server, flow, message: &message, merged }, policy.unavailable);
        return None;
    }
    let id = ResolveId(cx.next_id());
    cx.env.out.push_back(Output::FindUser { id, ask: Box::new(ask.clone()) });
    cx.env.waiting.0.insert(id, Asked { server, flow, message, merged, ask });
    None
}

/// The other system has answered, or has not in time; yields a request that can be judged now.
pub(super) fn found(cx: &mut Cx<'_>, id: ResolveId, found: &Found) -> Option<Asked> {
    let asked = cx.env.waiting.0.remove(&id)?;
    // Another configuration may have come in between, without another system.
    let policy = cx.env.registrar.as_ref().and_then(|r| r.remote());
    if let (Some(policy), Found::Unavailable) = (policy, found) {
        cx.env.stats.unasked += 1;
        let Asked { server, flow, ref message, merged, .. } = asked;
        refuse(cx, &Incoming { server, flow, message, merged }, policy.unavailable);
        return None;
    }
    if let Some(registrar) = &mut cx.env.registrar {
        registrar.learned(cx.now, &asked.ask, found);
    }
    Some(asked)
}

/// A request that waits was cancelled.
pub(super) fn cancelled(cx: &mut Cx<'_>, server: ServerId) {
    let found = cx.env.waiting.0.iter().find(|(_, asked)| asked.server == server);
    let Some(asked) = found.map(|(id, _)| *id).and_then(|id| cx.env.waiting.0.remove(&id)) else {
        return;
    };
    let Asked { flow, ref message, merged, .. } = asked;
    refuse(cx, &Incoming { server, flow, message, merged }, 487);
}

/// Refuses a request that has waited.
pub(super) fn refuse(cx: &mut Cx<'_>, incoming: &Incoming<'_>, status: u16) {
    let hint = cx.ids().hints().of_message(incoming.message.as_bytes());
    let tag = cx.ids().tag(hint);
    let mut out = cx.response(incoming.message, &incoming.flow, status, "", Some(&tag));
    if status == 503 {
        out.header(HeaderName::RetryAfter, RETRY_AFTER_S);
    }
    cx.respond(None, &incoming.flow, incoming.server, status, out.finish());
}
