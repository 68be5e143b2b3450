//! Calls and requests from and to registered users: who a request comes from, and where a user is.
//!
//! Bindings and digest live in `registrar/`; a user's bindings are owned by one shard of the node,
//! so that a lookup may be a question to another shard.

use std::sync::Arc;

use rand::Rng;
use smallvec::SmallVec;

use super::call::{Attempt, Call, Hop};
use super::env::{Cx, ResolveFor};
use super::invite::{Incoming, Refuse};
use super::{secure, wire};
use crate::core::{Input, Locate, Output, ResolveId, ResolveQuery};
use crate::dialog::Dialog;
use crate::net::{Flow, Target, Transport};
use crate::registrar::{Answer, Invalid, Reach, Reached, Registrar};
use crate::routing::Trunk;
use crate::sip::value::FromValue;
use crate::sip::{Message, Method, NameAddr};

/// The trunk that a request outside dialogs comes from. A stranger on the users' interface must
/// prove to be a user, whatever the method, unless the policy lets it in.
pub(crate) fn source(cx: &mut Cx<'_>, incoming: &Incoming<'_>) -> Result<Arc<Trunk>, Refuse> {
    if let Some(trunk) = by_contact(cx, incoming) {
        return Ok(trunk);
    }
    if let Some(trunk) = cx.env.routing.identify(&incoming.flow) {
        return Ok(trunk.clone());
    }
    let Some(trunk) = users_trunk(cx, &incoming.flow).cloned() else {
        return Err(cx.env.routing.unknown_source().into());
    };
    let (now_s, salt) = (cx.unix_ms() / 1_000, cx.ids().rng().next_u64());
    let Some(registrar) = &cx.env.registrar else {
        return Err(cx.env.routing.unknown_source().into());
    };
    if let Some(admitted) = behind_core(cx, registrar, incoming) {
        return match admitted {
            true => Ok(trunk),
            false => Err(Refuse::new(403, "Register First")),
        };
    }
    match registrar.admit(&incoming.flow, incoming.message, cx.now, now_s, salt) {
        Ok(_) => Ok(trunk),
        Err(answer) => {
            if let Some(guard) = cx.env.guard.as_ref().filter(|_| answer.wrong_password) {
                guard.auth_failed(cx.now, incoming.flow.remote.ip());
            }
            Err(answer.into())
        }
    }
}

impl Cx<'_> {
    /// Answers a request that has come to nothing. A challenge by UDP keeps no transaction, nor does any
    /// refusal where only strangers are not trunks: who asked may be spoofed, and would cost a place for
    /// 32 s and repeats of the answer to somebody who never asked. A repeat is answered anew (RFC 3261
    /// §8.2.7, §26.3.2.4).
    pub(crate) fn answer(&mut self, incoming: &Incoming<'_>, status: u16, data: bytes::Bytes) {
        let flow = &incoming.flow;
        let stranger = !flow.transport.is_reliable()
            && self.env.routing.identify(flow).is_none()
            && (matches!(status, 401 | 407) || users_trunk(self, flow).is_none());
        if !stranger {
            return self.respond(None, flow, incoming.server, status, data);
        }
        self.env.txn.answer_once(incoming.server, data);
    }
}

/// Whether a request in the name of a domain whose registrar stands behind us comes from a phone that
/// this one has let in under that very name; `None` for other domains.
fn behind_core(cx: &Cx<'_>, registrar: &Registrar, incoming: &Incoming<'_>) -> Option<bool> {
    let from = incoming.message.from().ok()?.uri().ok()?;
    let c = cx.env.config.registrar.as_ref()?;
    let holds = |aor: Option<&str>| c.flows.holds(&incoming.flow, aor, cx.now);
    let nameless = from.host().eq_ignore_ascii_case(crate::registrar::ANONYMOUS);
    let anonymous = nameless && holds(None);
    let theirs = registrar.policy().upstream_of(from.host()).is_some();
    let aor = crate::registrar::aor_of(&from);
    let known = anonymous || aor.is_some_and(|aor| holds(Some(&aor)));
    // OPTIONS asks whether we are there: it costs and tells nothing.
    let harmless = incoming.message.method() == Some(&Method::Options);
    (theirs || anonymous).then_some(known || harmless)
}

/// The trunk that a request comes from because it names the Contact that we have registered there,
/// which nobody else can know.
fn by_contact(cx: &mut Cx<'_>, incoming: &Incoming<'_>) -> Option<Arc<Trunk>> {
    let uri = incoming.message.request_uri().ok()?;
    let said = uri.params().get("line")?;
    let table = cx.env.routing.table().clone();
    let hints = *cx.ids().hints();
    let trunk =
        table.trunks().find(|trunk| {
            trunk.config.interface == incoming.flow.interface
                && trunk.config.register.iter().any(|r| {
                    r.match_contact && crate::core::line(&hints, trunk.name(), &r.aor) == said
                })
        });
    trunk.cloned()
}

impl From<Answer> for Refuse {
    fn from(answer: Answer) -> Self {
        Refuse { headers: answer.headers, ..Refuse::new(answer.status, answer.reason) }
    }
}

/// The trunk with the rules for phones, on the interface that they register on.
pub(crate) fn users_trunk<'a>(cx: &'a Cx<'_>, flow: &Flow) -> Option<&'a Arc<Trunk>> {
    let name = &cx.env.config.registrar.as_ref()?.trunk;
    let trunk = cx.env.routing.table().trunk_by_name(name)?;
    (trunk.config.interface == flow.interface && trunk.config.users).then_some(trunk)
}

/// What to ask for a request that goes to a user; `user` is the translated Request-URI user.
///
/// # Errors
/// The status for one that names nobody.
pub(crate) fn ask(cx: &Cx<'_>, request: &Message, user: &str) -> Result<Locate, u16> {
    let (Some(registrar), Ok(uri), Some(method)) =
        (&cx.env.registrar, request.request_uri(), request.method())
    else {
        return Err(480);
    };
    let named = registrar.named(&crate::sip::percent_decode(user), &uri);
    let (aor, device) = named.map_err(|Invalid| 404u16)?;
    Ok(Locate { aor, method: method.clone(), device })
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
    let found =
        cx.env.registrar.as_ref().map(|r| r.locate_aor(cx.now, &ask.aor, &ask.method, &ask.device));
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
        // What was registered in the clear is not a way to a sips URI.
        Reach::Flow(flow) if secure::is_sips(&contact.uri) && !flow.transport.is_secure() => {
            return Way::None;
        }
        Reach::Flow(flow) => {
            return Way::Address(Target::new(flow.transport, flow.remote));
        }
        Reach::Uri(interface) => interface,
    };
    let path = contact.path.first().and_then(|p| NameAddr::from_value(p).ok());
    let next = path.map_or(&*contact.uri, |p| p.uri_str);
    let sips = secure::is_sips(&contact.uri);
    match wire::next_hop_of(next, interface, Transport::Udp, sips) {
        wire::NextHop::Address(target) => Way::Address(target),
        wire::NextHop::Name(query) => Way::Name(Box::new(query)),
        wire::NextHop::Unusable => Way::None,
    }
}

/// Makes a dialog to be one with this contact.
pub(crate) fn point(contact: &Reached, dialog: &mut Dialog, hop: &mut Hop) {
    dialog.target = match contact.uri.get(..5) {
        // RFC 5630 §5.3: who was called by a sip URI is called by one, over TLS all the same.
        Some(scheme) if !dialog.secure && scheme.eq_ignore_ascii_case("sips:") => {
            format!("sip:{}", contact.uri.get(5..).unwrap_or("")).into()
        }
        _ => contact.uri.clone(),
    };
    dialog.routes = contact.path.clone();
    if let Reach::Flow(flow) = contact.reach {
        hop.flow = Some(flow);
    }
}

impl Call {
    /// The hop that is tried is the registrar's users: asks where this one is.
    pub(crate) fn locate(&mut self, cx: &mut Cx<'_>, number: u16) {
        let whom = ResolveFor::Attempt { call: self.key, attempt: number };
        let Some(setup) = self.setup_mut() else { return };
        let hop = setup.trying.as_ref().and_then(|t| setup.plan.targets.get(t.hop));
        let wanted = hop.map(|hop| ask(cx, &setup.invite, &hop.numbers.ruri));
        let found = match wanted {
            Some(Ok(ask)) => locate(cx, ask, whom),
            Some(Err(status)) => return self.attempt_failed(cx, number, status, None),
            None => Some(Vec::new()),
        };
        if let Some(found) = found {
            self.located(cx, number, found);
        }
    }

    /// Where the user is, best first; nowhere is 480. `number` is the attempt that has waited.
    pub(crate) fn located(&mut self, cx: &mut Cx<'_>, number: u16, mut found: Vec<Reached>) {
        if self.attempt_mut(number).is_none_or(|a| a.leg.is_some()) {
            return;
        }
        if let Some(setup) = self.setup_mut().filter(|s| secure::wants_tls(&s.invite)) {
            let all = found.len();
            found.retain(secure::may_be_given);
            setup.insecure |= found.len() < all;
        }
        if found.is_empty() {
            return self.attempt_failed(cx, number, 480, None);
        }
        self.take_attempt(number);
        if let Some(trying) = self.setup_mut().and_then(|s| s.trying.as_mut()) {
            trying.contacts = found.into_iter().rev().collect();
        }
        self.next_contacts(cx);
    }

    /// Calls the user's next contact, and at the same time those that are as good (RFC 3261 §16.6,
    /// §16.7); the rest waits until all of these failed.
    pub(crate) fn next_contacts(&mut self, cx: &mut Cx<'_>) {
        let together = match cx.env.registrar.as_ref().is_some_and(|r| r.policy().parallel) {
            true => cx.env.config.calls.max_forks.max(1),
            false => 1,
        };
        let Some(setup) = self.setup_mut() else { return };
        let Some(trying) = &mut setup.trying else { return };
        let q = trying.contacts.last().map(|c| c.q);
        let mut numbers: SmallVec<[u16; 4]> = SmallVec::new();
        while numbers.len() < together
            && let Some(contact) = trying.contacts.pop_if(|c| Some(c.q) == q)
        {
            setup.attempts += 1;
            let (number, contact) = (setup.attempts, Some(contact));
            trying.attempts.push(Attempt { number, contact, ..Attempt::default() });
            numbers.push(number);
        }
        // Some of them may fail at once: only the last failure goes on to what comes next.
        for number in numbers {
            self.call_contact(cx, number);
        }
    }

    fn call_contact(&mut self, cx: &mut Cx<'_>, number: u16) {
        let key = self.key;
        let contact = self.attempt_mut(number).and_then(|a| a.contact.as_ref());
        let Some(contact) = contact else { return };
        match way(contact) {
            Way::Address(target) => self.resolved(cx, number, Ok(vec![target])),
            Way::Name(query) => {
                cx.resolve(*query, ResolveFor::Attempt { call: key, attempt: number });
            }
            Way::None => self.attempt_failed(cx, number, 480, None),
        }
    }
}
