//! Calls and requests from and to registered users: who a request comes from, and where a user is.
//!
//! Bindings and digest live in `registrar/`; a user's bindings are owned by one shard of the node,
//! so that a lookup may be a question to another shard.

use std::sync::Arc;

use rand::Rng;

use super::call::{Call, Hop};
use super::env::{Cx, ResolveFor};
use super::invite::{Incoming, Refuse};
use super::wire;
use crate::core::{Input, Locate, Output, ResolveId, ResolveQuery};
use crate::dialog::Dialog;
use crate::net::{Flow, Target, Transport};
use crate::registrar::{Answer, Reach, Reached};
use crate::routing::Trunk;
use crate::sip::value::FromValue;
use crate::sip::{Message, Method, NameAddr};

/// The trunk that a request outside dialogs comes from. A stranger on the users' interface must
/// prove to be a user, whatever the method.
pub(crate) fn source(cx: &mut Cx<'_>, incoming: &Incoming<'_>) -> Result<Arc<Trunk>, Refuse> {
    if let Some(trunk) = cx.env.routing.identify(&incoming.flow) {
        return Ok(trunk.clone());
    }
    let Some(trunk) = users_trunk(cx, &incoming.flow) else {
        return Err(cx.env.routing.unknown_source().into());
    };
    let (now_s, salt) = (cx.unix_ms() / 1_000, cx.ids().rng().next_u64());
    let Some(registrar) = &cx.env.registrar else {
        return Err(cx.env.routing.unknown_source().into());
    };
    // OPTIONS asks whether we are there: it costs and tells nothing.
    if incoming.message.method() == Some(&Method::Options) {
        return Ok(trunk);
    }
    match registrar.admit(&incoming.flow, incoming.message, now_s, salt) {
        Ok(_) => Ok(trunk),
        Err(answer) => {
            if let Some(guard) = cx.env.guard.as_ref().filter(|_| answer.wrong_password) {
                guard.auth_failed(cx.now, incoming.flow.remote.ip());
            }
            Err(answer.into())
        }
    }
}

impl From<Answer> for Refuse {
    fn from(answer: Answer) -> Self {
        Refuse { headers: answer.headers, ..Refuse::new(answer.status, answer.reason) }
    }
}

/// The trunk with the rules for phones, on the interface that they register on.
pub(crate) fn users_trunk(cx: &Cx<'_>, flow: &Flow) -> Option<Arc<Trunk>> {
    let name = &cx.env.config.registrar.as_ref()?.trunk;
    let trunk = cx.env.routing.table().trunk_by_name(name)?;
    (trunk.config.interface == flow.interface && trunk.config.users).then(|| trunk.clone())
}

/// What to ask for a request that goes to a user; `user` is the translated Request-URI user.
pub(crate) fn ask(cx: &Cx<'_>, request: &Message, user: &str) -> Option<Locate> {
    let registrar = cx.env.registrar.as_ref()?;
    let uri = request.request_uri().ok()?;
    Some(Locate {
        aor: registrar.aor(&crate::sip::percent_decode(user), uri.host()),
        method: request.method()?.clone(),
        instance: uri.params().get("gr").unwrap_or("").to_owned(),
    })
}

/// Where a user is. `None`: another shard is asked, and answers to `whom`.
pub(crate) fn locate(cx: &mut Cx<'_>, ask: Locate, whom: ResolveFor) -> Option<Vec<Reached>> {
    let owner = owner(cx, &ask.aor);
    let (own, _) = cx.env.place;
    if owner == own {
        return Some(look_up(cx, &ask));
    }
    let id = ResolveId(cx.next_id());
    cx.env.resolves.insert(id, whom);
    let input = Box::new(Input::Locate { from: own, id, ask: Box::new(ask) });
    cx.env.out.push_back(Output::Shard { shard: owner, input });
    None
}

/// The shard that owns a user's bindings.
pub(crate) fn owner(cx: &mut Cx<'_>, aor: &str) -> u32 {
    let shards = cx.env.place.1;
    cx.ids().hints().hash(aor.to_ascii_lowercase().as_bytes()).shard(shards)
}

/// A user's contacts of this shard, best first.
pub(crate) fn look_up(cx: &Cx<'_>, ask: &Locate) -> Vec<Reached> {
    let found = cx
        .env
        .registrar
        .as_ref()
        .map(|r| r.locate_aor(cx.now, &ask.aor, &ask.method, &ask.instance));
    found.map(|f| f.into_vec()).unwrap_or_default()
}

/// How to get to a contact.
pub(crate) enum Way {
    Address(Target),
    Name(Box<ResolveQuery>),
    /// No URI that we can follow.
    None,
}

pub(crate) fn way(contact: &Reached) -> Way {
    let interface = match contact.reach {
        Reach::Flow(flow) => {
            return Way::Address(Target::new(flow.transport, flow.remote));
        }
        Reach::Uri(interface) => interface,
    };
    let path = contact.path.first().and_then(|p| NameAddr::from_value(p).ok());
    let next = path.map_or(&*contact.uri, |p| p.uri_str);
    match wire::next_hop_of(next, interface, Transport::Udp) {
        wire::NextHop::Address(target) => Way::Address(target),
        wire::NextHop::Name(query) => Way::Name(Box::new(query)),
        wire::NextHop::Unusable => Way::None,
    }
}

/// Makes a dialog to be one with this contact.
pub(crate) fn point(contact: &Reached, dialog: &mut Dialog, hop: &mut Hop) {
    dialog.target = contact.uri.clone();
    dialog.routes = contact.path.clone();
    if let Reach::Flow(flow) = contact.reach {
        hop.flow = Some(flow);
    }
}

impl Call {
    /// The hop of an attempt is the registrar's users: asks where this one is.
    pub(crate) fn locate(&mut self, cx: &mut Cx<'_>, number: u16) {
        let whom = ResolveFor::Attempt { call: self.key, attempt: number };
        let Some(setup) = self.setup_mut() else { return };
        let hop = setup.attempt.as_ref().and_then(|a| setup.plan.targets.get(a.hop));
        let wanted = hop.and_then(|hop| ask(cx, &setup.invite, &hop.numbers.ruri));
        let found = match wanted {
            Some(ask) => locate(cx, ask, whom),
            None => Some(Vec::new()),
        };
        if let Some(found) = found {
            self.located(cx, number, found);
        }
    }

    /// Where the user is, best first; nowhere is 480.
    pub(crate) fn located(&mut self, cx: &mut Cx<'_>, number: u16, found: Vec<Reached>) {
        let Some(attempt) = self.attempt_mut(number).filter(|a| a.leg.is_none()) else { return };
        if found.is_empty() {
            return self.attempt_failed(cx, 480, None);
        }
        attempt.contacts = found.into_iter().rev().collect();
        self.next_contact(cx);
    }

    /// Goes to the user's next contact.
    pub(crate) fn next_contact(&mut self, cx: &mut Cx<'_>) {
        let key = self.key;
        let Some(attempt) = self.current_attempt() else { return };
        let number = attempt.number;
        let Some(contact) = attempt.contacts.pop() else {
            return self.attempt_failed(cx, 480, None);
        };
        let way = way(&contact);
        attempt.contact = Some(contact);
        match way {
            Way::Address(target) => self.resolved(cx, number, Ok(vec![target])),
            Way::Name(query) => {
                cx.resolve(*query, ResolveFor::Attempt { call: key, attempt: number });
            }
            Way::None => self.attempt_failed(cx, 480, None),
        }
    }
}
