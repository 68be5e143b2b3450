//! An INVITE that starts a call: checks, routing, the call's birth.
//!
//! Which target is tried next and what is sent there lives in `attempt.rs`.

use smallvec::SmallVec;

use super::call::{Call, CallKey, DialogRef, Facts, Leg, Peer, Phase, SdpState, Setup};
use super::cdr::{Cdr, CdrLeg, EndCause, EndedBy, Written};
use super::env::Cx;
use super::record::CallId;
use super::replaces::Replaced;
use super::{hide, secure, wire};
use crate::core::Event;
use crate::dialog::{Dialog, MIN_SE_S, Outgoing};
use crate::media::Side;
use crate::net::Flow;
use crate::routing::{Caller, Permit, Plan, RouteQuery, SessionTimerMode, Trunk};
use crate::sip::{HeaderName, Message, NameAddr};
use crate::transaction::ServerId;
use std::sync::Arc;
use std::time::Duration;

/// Option tags that we understand in Require.
const SUPPORTED: [&str; 4] = ["100rel", "timer", "replaces", "norefersub"];

/// A refusal with everything its response needs.
pub(crate) struct Refuse {
    pub(crate) status: u16,
    pub(crate) reason: String,
    pub(crate) headers: Vec<(HeaderName, String)>,
    pub(crate) silent: bool,
}

impl Refuse {
    pub(crate) fn new(status: u16, reason: &str) -> Self {
        Refuse { status, reason: reason.to_owned(), headers: Vec::new(), silent: false }
    }

    pub(crate) fn with(status: u16, reason: &str, name: HeaderName, value: String) -> Self {
        Refuse { headers: vec![(name, value)], ..Refuse::new(status, reason) }
    }
}

impl From<crate::routing::Reject> for Refuse {
    fn from(reject: crate::routing::Reject) -> Self {
        let retry = reject.retry_after_s.map(|s| (HeaderName::RetryAfter, s.to_string()));
        Refuse {
            status: reject.status,
            reason: reject.reason.to_owned(),
            headers: retry.into_iter().collect(),
            silent: reject.silent,
        }
    }
}

/// A new INVITE and the transaction that it came with.
pub(crate) struct Incoming<'a> {
    pub(crate) server: ServerId,
    pub(crate) flow: Flow,
    pub(crate) message: &'a Message,
    pub(crate) merged: bool,
}

/// What an accepted INVITE needs to become a call.
pub(crate) struct Accepted {
    trunk: Arc<Trunk>,
    plan: Plan,
    permit: Permit,
    watched: Option<Watched>,
    pub(crate) replaced: Option<Replaced>,
}

/// Why an INVITE is not a call now.
pub(crate) enum NotYet {
    Refused(Refuse),
    /// It is judged again when the cluster has said whether there is room for it.
    Waits,
}

impl<R: Into<Refuse>> From<R> for NotYet {
    fn from(refuse: R) -> Self {
        NotYet::Refused(refuse.into())
    }
}

/// Checks everything that can be refused before a call exists. `from` is set for one that has waited.
pub(crate) fn accept(
    cx: &mut Cx<'_>,
    incoming: &Incoming<'_>,
    from: Option<Arc<Trunk>>,
    calls: usize,
) -> Result<Accepted, NotYet> {
    let message = incoming.message;
    let has_waited = from.is_some();
    let trunk = match from {
        Some(trunk) => trunk,
        None => super::users::source(cx, incoming)?,
    };
    check(cx, incoming, &trunk, calls)?;
    let plan = route(cx, message, &trunk)?;
    let user = user(message, &trunk);
    let user = user.as_deref();
    if !has_waited && !plan.emergency && waits(cx, incoming, &trunk, user) {
        return Err(NotYet::Waits);
    }
    let mut permit = cx.env.routing.admit(cx.now, &trunk, plan.emergency)?;
    permit.join(caller(cx, user, &plan)?);
    let watched = watch(cx, user, &trunk, &plan)?;
    Ok(Accepted { trunk, plan, permit, watched, replaced: None })
}

/// What does not depend on where the call goes.
fn check(cx: &Cx<'_>, incoming: &Incoming<'_>, trunk: &Trunk, calls: usize) -> Result<(), Refuse> {
    let (message, policy) = (incoming.message, &cx.env.config.calls);
    let retry = || policy.retry_after_s.to_string();
    if cx.env.draining {
        return Err(Refuse::with(503, "Shutting Down", HeaderName::RetryAfter, retry()));
    }
    if incoming.merged {
        return Err(Refuse::new(482, ""));
    }
    if message.max_forwards().ok().flatten() == Some(0) {
        return Err(Refuse::new(483, ""));
    }
    if remote_target(message).is_none() {
        return Err(Refuse::new(400, "Bad Request: no usable Contact"));
    }
    require(message)?;
    body(message)?;
    session_interval(message, trunk)?;
    if calls >= policy.max_calls {
        return Err(Refuse::with(503, "Too Many Calls", HeaderName::RetryAfter, retry()));
    }
    Ok(())
}

/// Lets the INVITE wait where the user's limit is shared with other nodes and this one has no room.
fn waits(cx: &mut Cx<'_>, incoming: &Incoming<'_>, trunk: &Arc<Trunk>, user: Option<&str>) -> bool {
    let place = user.and_then(|user| cx.env.routing.lacks(cx.now, user));
    place.is_some_and(|place| crate::core::wait_for_room(cx, incoming, trunk, place))
}

/// A call that the fraud profiles count: whose, and to which number.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pub(crate) user: Box<str>,
    pub(crate) number: Box<str>,
}

impl Accepted {
    /// The call comes to nothing: the fraud profiles hear of it.
    pub(crate) fn drop_it(self, cx: &Cx<'_>) {
        if let (Some(watched), Some(guard)) = (self.watched, &cx.env.guard) {
            guard.call_ended(cx.now, &watched.user, &watched.number, Duration::ZERO);
        }
    }
}

/// The address of record of a registered user that calls; `None` for a trunk.
fn user(message: &Message, trunk: &Trunk) -> Option<Box<str>> {
    let from = message.from().ok().filter(|_| trunk.config.users)?;
    Some(aor_of(from.uri_str))
}

/// `user@host` of a URI, in lower case.
pub(crate) fn aor_of(uri: &str) -> Box<str> {
    let rest = uri.split_once(':').map_or("", |(_, rest)| rest);
    rest.split([';', '?']).next().unwrap_or("").to_ascii_lowercase().into()
}

/// The number as it is routed, after translation.
fn called(plan: &Plan) -> &str {
    plan.targets.first().map_or("", |hop| &*hop.numbers.ruri)
}

/// The limits of the caller and of the called number.
fn caller(cx: &mut Cx<'_>, user: Option<&str>, plan: &Plan) -> Result<Permit, Refuse> {
    let waited = cx.env.rooms.judged.take();
    let by = Caller { user, waited: waited.as_ref() };
    Ok(cx.env.routing.admit_caller(cx.now, &by, called(plan), plan.emergency)?)
}

/// Tells the fraud profiles of a call; one that they are against is refused.
fn watch(
    cx: &mut Cx<'_>,
    user: Option<&str>,
    trunk: &Trunk,
    plan: &Plan,
) -> Result<Option<Watched>, Refuse> {
    let Some(guard) = cx.env.guard.clone().filter(|g| g.watches_calls()) else { return Ok(None) };
    let user = user.unwrap_or(&trunk.config.name);
    let number = called(plan);
    let found = guard.call_started(cx.now, cx.unix_ms(), user, number);
    if found.is_some_and(|f| f.block) && !plan.emergency {
        guard.call_ended(cx.now, user, number, Duration::ZERO);
        return Err(Refuse::new(403, ""));
    }
    Ok(Some(Watched { user: user.into(), number: number.into() }))
}

/// Option tags in Require that we do not know: 420 with all of them (RFC 3261 §8.2.2.3).
pub(crate) fn require(message: &Message) -> Result<(), Refuse> {
    let unknown: Vec<&str> = message
        .values(HeaderName::Require)
        .filter(|tag| !SUPPORTED.iter().any(|s| s.eq_ignore_ascii_case(tag)))
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(Refuse::with(420, "", HeaderName::Unsupported, unknown.join(", ")))
}

/// Only session descriptions, plain or as part of a multipart body (RFC 3261 §8.2.3).
pub(crate) fn body(message: &Message) -> Result<(), Refuse> {
    if message.body().is_empty() {
        return Ok(());
    }
    let encoded =
        message.values(HeaderName::ContentEncoding).any(|e| !e.eq_ignore_ascii_case("identity"));
    if encoded {
        return Err(Refuse::with(415, "", HeaderName::AcceptEncoding, "identity".to_owned()));
    }
    if super::body::is_sdp(message) || super::body::is_multipart(message) {
        return Ok(());
    }
    Err(Refuse::with(415, "", HeaderName::Accept, "application/sdp".to_owned()))
}

/// RFC 4028 §9: an interval below our minimum, from a peer that understands 422.
fn session_interval(message: &Message, trunk: &Trunk) -> Result<(), Refuse> {
    let policy = &trunk.config.session_timer;
    let min = u32::try_from(policy.min_se.as_secs()).unwrap_or(MIN_SE_S).max(MIN_SE_S);
    let asked = wire::session_expires(message).map(|s| s.seconds);
    let knows = message.lists(HeaderName::Supported, "timer");
    if policy.mode != SessionTimerMode::Off && knows && asked.is_some_and(|s| s < min) {
        return Err(Refuse::with(422, "", HeaderName::MinSe, min.to_string()));
    }
    Ok(())
}

/// Where a request goes.
pub(crate) fn route(cx: &mut Cx<'_>, message: &Message, trunk: &Trunk) -> Result<Plan, Refuse> {
    let query = query(message, trunk)?;
    Ok(cx.env.routing.route(cx.now, trunk, &query)?)
}

/// What routing looks at in a request.
pub(crate) fn query<'m>(message: &'m Message, trunk: &Trunk) -> Result<RouteQuery<'m>, Refuse> {
    let bad = |_| Refuse::new(400, "Bad Request: malformed URI");
    let ruri = message.request_uri().map_err(bad)?;
    let from = message.from().map_err(|_| Refuse::new(400, ""))?.uri().map_err(bad)?;
    let to = message.to().map_err(|_| Refuse::new(400, ""))?.uri().map_err(bad)?;
    if ruri.scheme() == crate::sip::Scheme::Other {
        return Err(Refuse::new(416, ""));
    }
    let pai = message.first::<NameAddr<'_>>(HeaderName::PAssertedIdentity).ok().flatten();
    let pai = pai.filter(|_| trunk.config.trusted).and_then(|p| p.uri().ok());
    Ok(RouteQuery {
        ruri_user: ruri.user().unwrap_or(""),
        ruri_host: ruri.host(),
        from_user: from.user().unwrap_or(""),
        from_host: from.host(),
        to_user: to.user().unwrap_or(""),
        to_host: to.host(),
        pai_user: pai.and_then(|p| p.user()),
        emergency: is_emergency(message),
    })
}

/// Whether the request itself says that it is an emergency (RFC 4412, RFC 7135). Anyone can say so: it
/// counts from trunks and from users that proved who they are.
pub(crate) fn is_emergency(message: &Message) -> bool {
    message
        .values(HeaderName::ResourcePriority)
        .any(|v| v.get(..6).is_some_and(|p| p.eq_ignore_ascii_case("esnet.")))
}

/// Makes the call. The caller puts it into the table under `key` and starts the first attempt.
pub(crate) fn make(
    cx: &mut Cx<'_>,
    incoming: &Incoming<'_>,
    accepted: Accepted,
    key: CallKey,
) -> Call {
    let message = incoming.message;
    let hint = cx.ids().hints().of_call_id(message.call_id().unwrap_or("").as_bytes());
    let a_tag: Box<str> = cx.ids().tag(hint).as_str().into();
    let mut peer = Peer::default();
    wire::read_peer(message, &mut peer);
    let a = Leg {
        trunk: accepted.trunk,
        dialog: uas_dialog(message, &a_tag, &incoming.flow),
        hop: wire::hop_of_flow(&incoming.flow),
        peer,
        timer: None,
        sdp: SdpState { session: cx.sdp_session(), ..SdpState::default() },
        acked: None,
        moved: false,
        origin: Some(incoming.flow.remote.ip()),
    };
    let text = |v: Option<&str>| v.unwrap_or("").into();
    let facts = Facts {
        started_ms: cx.unix_ms(),
        ringing_ms: None,
        answered_ms: None,
        ends_by_ms: None,
        dialled: message.request_uri_str().into(),
        from: text(message.from().ok().map(|f| f.uri_str)),
        to: text(message.to().ok().map(|t| t.uri_str)),
        attempts: SmallVec::new(),
        tried: None,
        status: 0,
        reason: "".into(),
        ended_by: None,
        end_reason: None,
        protected: false,
        written: Written::Never,
    };
    let setup = Setup {
        server: incoming.server,
        invite: message.clone(),
        flow: incoming.flow,
        a_tag: a_tag.clone(),
        plan: accepted.plan,
        next_hop: 0,
        attempts: 0,
        trying: None,
        failure: None,
        insecure: false,
        reliable: Outgoing::default(),
        reliable_timer: None,
        replaced: accepted.replaced,
        committing: None,
        early_writes: 0,
        a_tag_described: false,
        requires_100rel: hide::has_option(message, HeaderName::Require, "100rel"),
    };
    cx.env.tags.insert(a_tag, DialogRef { call: key, side: Side::A, fork: 0 });
    if let Some(conn) = incoming.flow.conn {
        cx.env.conns.entry(conn).or_default().push(key);
    }
    cx.env.stats.attempts += 1;
    let mut call = Call::new(cx, key, hint, Phase::Setup(Box::new(setup)), a, facts);
    call.permits.push(accepted.permit);
    call.watched = accepted.watched;
    call.conn = incoming.flow.conn;
    call
}

/// The URI that the sender of a dialog-forming request wants to be reached at: its Contact, which RFC
/// 3261 demands (§8.1.1.8). A peer of RFC 2543, known by the branch of its Via, may leave it out and
/// is then reached by its From. `None` where there is nothing usable.
fn remote_target(message: &Message) -> Option<&str> {
    let old = || message.via().is_ok_and(|v| !v.has_cookie());
    let named = match message.contact().ok()? {
        Some(contact) => contact,
        None => message.from().ok().filter(|_| old())?,
    };
    named.uri().is_ok().then_some(named.uri_str)
}

/// The dialog as we see it that answer an INVITE (RFC 3261 §12.1.1).
pub(crate) fn uas_dialog(message: &Message, tag: &str, flow: &Flow) -> Dialog {
    let no_tag = |value: Option<NameAddr<'_>>| -> Box<str> {
        match value {
            Some(v) => {
                // As `NameAddr` is shown, with the parameters that may cross.
                let room = v.display_raw.len() + v.uri_str.len() + v.params.0.len() + 3;
                let mut text = String::with_capacity(room);
                if !v.display_raw.is_empty() {
                    text.push_str(v.display_raw);
                    text.push(' ');
                }
                text.push('<');
                text.push_str(v.uri_str);
                text.push('>');
                hide::push_without_tag(&mut text, v.params);
                text.into()
            }
            None => "".into(),
        }
    };
    let contact = remote_target(message).unwrap_or("");
    Dialog {
        call_id: message.call_id().unwrap_or("").into(),
        local_tag: tag.into(),
        remote_tag: message.from_tag().into(),
        local: no_tag(message.to().ok()),
        remote: no_tag(message.from().ok()),
        local_seq: 0,
        remote_seq: message.cseq().ok().map(|c| c.number),
        target: contact.into(),
        routes: wire::route_set(message, false),
        secure: secure::makes_secure(message, flow),
    }
}

/// Answers an INVITE that became no call. An attempt of a known source has its CDR all the same;
/// strangers get none, or a flood of them would fill the disk.
pub(crate) fn refuse_call(cx: &mut Cx<'_>, incoming: &Incoming<'_>, why: &Refuse) {
    refuse(cx, incoming, why);
    let Some(trunk) = cx.env.routing.identify(&incoming.flow).map(|t| t.config.name.clone()) else {
        return;
    };
    let text = |uri: Option<&str>| uri.unwrap_or("").to_owned();
    let message = incoming.message;
    let reason = if why.reason.is_empty() {
        crate::sip::reason_phrase(why.status).to_owned()
    } else {
        why.reason.to_string()
    };
    let cdr = Cdr {
        call: new_call_id(cx),
        started_ms: cx.unix_ms(),
        ringing_ms: None,
        answered_ms: None,
        ended_ms: cx.unix_ms(),
        dialled: message.request_uri_str().to_owned(),
        from: text(message.from().ok().map(|f| f.uri_str)),
        to: text(message.to().ok().map(|t| t.uri_str)),
        a: CdrLeg {
            trunk,
            call_id: message.call_id().unwrap_or("").to_owned(),
            local_tag: String::new(),
            remote_tag: message.from_tag().to_owned(),
            peer: Some(incoming.flow.remote),
        },
        b: None,
        attempts: Vec::new(),
        status: why.status,
        reason,
        ended_by: EndedBy::Sbc(EndCause::Refused),
        end_reason: None,
        codecs: Vec::new(),
        media: Vec::new(),
        protected: false,
        written: Written::Never,
    };
    cx.event(Event::Cdr(Box::new(cdr)));
}

/// Answers a request that no call took.
pub(crate) fn refuse(cx: &mut Cx<'_>, incoming: &Incoming<'_>, refuse: &Refuse) {
    cx.env.stats.refused += 1;
    if refuse.silent {
        return cx.env.txn.forget(incoming.server);
    }
    let hint = cx.ids().hints().of_call_id(incoming.message.call_id().unwrap_or("").as_bytes());
    let tag = cx.ids().tag(hint);
    let mut out =
        cx.response(incoming.message, &incoming.flow, refuse.status, &refuse.reason, Some(&tag));
    for (name, value) in &refuse.headers {
        out.header(*name, value);
    }
    if matches!(refuse.status, 405 | 501) {
        out.header(HeaderName::Allow, wire::ALLOW);
    }
    cx.answer(incoming, refuse.status, out.finish());
}

/// A call's name: random, so that no node needs to ask another.
pub(crate) fn new_call_id(cx: &mut Cx<'_>) -> CallId {
    use rand::Rng;
    CallId(cx.ids().rng().next_u64())
}
