//! Trying targets one after the other: resolution, the B leg's INVITE, failover.
//!
//! What comes back is handled in `progress.rs` and `answered.rs`.

use smallvec::SmallVec;
use std::time::Duration;

use super::answer::{Passing, Refusal, Role};
use super::call::{
    Attempt, Call, CallTimer, DialogRef, Failure, Hop, Leg, Peer, Phase, SdpState, Trying,
};
use super::cdr::{CdrAttempt, CdrLeg, EndCause, EndedBy};
use super::env::{Cx, Purpose, ResolveFor, Sent};
use super::hide::{self, Crossing, Display};
use super::progress::forget_forks;
use super::{body, secure, wire};
use crate::core::{ResolveError, ResolveQuery};
use crate::dialog::Dialog;
use crate::ids::ShardHint;
use crate::media::Side;
use crate::net::{Host, Target};
use crate::routing::{SessionTimerMode, TrunkConfig};
use crate::sip::{Builder, HeaderName, Message, Method, NameAddr, UriRef};
use crate::text::push_number;
use crate::transaction::ClientId;

/// Resolved addresses tried per hop at most.
const MAX_ADDRESSES: usize = 4;

impl Call {
    /// Starts with the next target of the plan, or gives the caller the best failure so far.
    pub(crate) fn try_next(&mut self, cx: &mut Cx<'_>) {
        loop {
            let Phase::Setup(setup) = &mut self.phase else { return };
            let attempts_max = cx.env.config.calls.max_attempts;
            let left = setup.next_hop < setup.plan.targets.len();
            if !left || setup.next_hop >= attempts_max {
                return self.give_up(cx);
            }
            let index = setup.next_hop;
            setup.next_hop += 1;
            let Some(hop) = setup.plan.targets.get(index) else { return self.give_up(cx) };
            let way = secure::way(hop.peer(), secure::wants_tls(&setup.invite));
            let users = hop.trunk.config.users;
            if matches!(way, secure::Way::Insecure) && !users {
                setup.insecure = true;
                setup.failure.get_or_insert(Failure { status: 480, message: None });
                continue;
            }
            let permit = match cx.env.routing.admit_hop(cx.now, &setup.plan, hop) {
                Ok(permit) => permit,
                Err(reject) => {
                    setup.failure.get_or_insert(Failure { status: reject.status, message: None });
                    continue;
                }
            };
            setup.attempts += 1;
            if index > 0 {
                cx.env.stats.failovers += 1;
            }
            let number = setup.attempts;
            let (peer, interface) = (hop.peer().clone(), hop.trunk.config.interface);
            setup.trying = Some(Trying {
                hop: index,
                contacts: Vec::new(),
                permit: Some(permit),
                attempts: SmallVec::from_iter([Attempt { number, ..Attempt::default() }]),
                over: false,
            });
            if users {
                return self.locate(cx, number);
            }
            match way {
                secure::Way::Address(target) => self.resolved(cx, number, Ok(vec![target])),
                secure::Way::Name { sips } => {
                    let whom = ResolveFor::Attempt { call: self.key, attempt: number };
                    cx.resolve(ResolveQuery { sips, ..peer.resolve_query(interface) }, whom);
                }
                secure::Way::Insecure => self.attempt_failed(cx, number, 480, None),
            }
            return;
        }
    }

    /// The targets of a hop are known, or its name does not resolve.
    pub(crate) fn resolved(
        &mut self,
        cx: &mut Cx<'_>,
        number: u16,
        result: Result<Vec<Target>, ResolveError>,
    ) {
        let Some(attempt) = self.attempt_mut(number).filter(|a| a.leg.is_none()) else { return };
        match result {
            Ok(targets) => {
                attempt.addresses = targets.into_iter().take(MAX_ADDRESSES).rev().collect();
                self.next_address(cx, number);
            }
            Err(_) => self.attempt_failed(cx, number, 503, None),
        }
    }

    /// Sends the INVITE to the next address of an attempt, or ends it.
    fn next_address(&mut self, cx: &mut Cx<'_>, number: u16) {
        let Some(attempt) = self.attempt_mut(number) else { return };
        let Some(target) = attempt.addresses.pop() else {
            return self.attempt_failed(cx, number, 503, None);
        };
        let Some(leg) = self.new_b_leg(cx, number, target) else {
            return self.attempt_failed(cx, number, 503, None);
        };
        match self.send_invite(cx, number, leg) {
            Ok(()) => {}
            Err(refusal) => self.refuse_offer(cx, refusal),
        }
    }

    /// The caller's offer cannot be carried to any target.
    fn refuse_offer(&mut self, cx: &mut Cx<'_>, refusal: Refusal) {
        self.abandon(cx, None);
        let retry = refusal.retry.then_some(cx.env.config.calls.retry_after_s);
        self.fail(cx, refusal.status, refusal.reason, None, retry, EndedBy::Sbc(EndCause::Media));
    }

    /// A dialog to be: our identifiers and the names that the trunk shall see.
    fn new_b_leg(&mut self, cx: &mut Cx<'_>, number: u16, target: Target) -> Option<Leg> {
        let hint = self.hint;
        let Phase::Setup(setup) = &mut self.phase else { return None };
        let trying = setup.trying.as_ref()?;
        let hop = setup.plan.targets.get(trying.hop)?;
        let (mut dialog, mut route) = outgoing_dialog(cx, hint, &setup.invite, hop, target)?;
        let attempt = trying.attempts.iter().find(|a| a.number == number)?;
        if let Some(contact) = &attempt.contact {
            super::users::point(contact, &mut dialog, &mut route);
        }
        Some(Leg {
            trunk: hop.trunk.clone(),
            dialog,
            origin: Some(route.target.addr.ip()),
            hop: route,
            peer: Peer::default(),
            timer: None,
            sdp: SdpState { session: cx.sdp_session(), ..SdpState::default() },
            acked: None,
            moved: false,
        })
    }

    /// Writes and sends the INVITE of an attempt (again with credentials after a challenge: same
    /// dialog, next CSeq).
    fn send_invite(&mut self, cx: &mut Cx<'_>, number: u16, mut leg: Leg) -> Result<(), Refusal> {
        let Phase::Setup(setup) = &mut self.phase else { return Ok(()) };
        let invite = setup.invite.clone();
        let offer = match body::sdp(&invite) {
            None => None,
            Some(sdp) => Some(self.media.pass(
                cx,
                Passing {
                    from: Side::A,
                    role: Role::Offer,
                    sdp: &sdp,
                    writer: &mut self.a,
                    reader: &mut leg,
                },
            )?),
        };
        self.launch_invite(cx, number, leg, offer, None);
        Ok(())
    }

    /// Sends the INVITE of an attempt whose offer is written.
    pub(crate) fn launch_invite(
        &mut self,
        cx: &mut Cx<'_>,
        number: u16,
        mut leg: Leg,
        offer: Option<bytes::Bytes>,
        authorization: Option<(HeaderName, String)>,
    ) {
        let Phase::Setup(setup) = &mut self.phase else { return };
        let invite = setup.invite.clone();
        let Some(trying) = &mut setup.trying else { return };
        let Some(hop) = setup.plan.targets.get(trying.hop) else { return };
        let attempt = trying.attempts.iter_mut().find(|a| a.number == number);
        let Some(attempt) = attempt else { return };
        let seq = leg.dialog.next_seq();
        let forwards = invite.max_forwards().ok().flatten().unwrap_or(wire::MAX_FORWARDS);
        let forwards = forwards.saturating_sub(1);
        let begun = wire::begin_request(
            cx,
            self.hint,
            &leg.dialog,
            &leg.hop,
            &Method::Invite,
            seq,
            forwards,
        );
        let Some((mut out, branch)) = begun else {
            return self.attempt_failed(cx, number, 503, None);
        };
        if let Some((name, value)) = &authorization {
            out.header(*name, value);
        }
        let to = &hop.trunk.config;
        invite_options(&mut out, &invite, to, offer.is_some(), attempt.min_se);
        if let Some(host) = wire::named_host(cx, &leg.hop, &hop.trunk.config) {
            let pai_user = hop.numbers.pai.as_deref();
            let from = &self.a.trunk.config;
            hide::cross(&mut out, &invite, &Crossing { from, to, host: &host, pai_user });
        }
        for (name, value) in &to.headers.set {
            out.other(name, &**value);
        }
        super::replaces::cross(&mut out, setup.replaced.as_ref(), &hop.trunk);
        let data = match &offer {
            Some(offer) => out.finish_with("application/sdp", offer),
            None => out.finish(),
        };
        let dest = wire::destination(&leg.hop);
        let timeout = to.failover.no_answer;
        let purpose = Purpose::Invite { call: self.key, attempt: attempt.number };
        let sent = Sent { method: Method::Invite, branch, dest, data, purpose, timeout: None };
        attempt.timer = timeout
            .map(|after| cx.arm(cx.now + after, self.key, CallTimer::Attempt(attempt.number)));
        let by_tag = DialogRef { call: self.key, side: Side::B, fork: 0 };
        cx.env.tags.insert(leg.dialog.local_tag.clone(), by_tag);
        attempt.leg = Some(leg);
        let client = cx.send(self.traced(Side::B), sent);
        if let Some(attempt) = self.attempt_mut(number) {
            attempt.client = client;
        }
        match client {
            Some(_) => self.store_early(cx),
            None => self.attempt_failed(cx, number, 503, None),
        }
    }

    /// A final failure of an attempt: what is left of the target, the next target, or the caller
    /// hears of it. While others ring at the same time it is only remembered (RFC 3261 §16.7).
    pub(crate) fn attempt_failed(
        &mut self,
        cx: &mut Cx<'_>,
        number: u16,
        status: u16,
        message: Option<&Message>,
    ) {
        let Some(mut attempt) = self.take_attempt(number) else { return };
        let Phase::Setup(setup) = &mut self.phase else { return };
        let Some(trying) = &mut setup.trying else { return };
        cx.disarm(&mut attempt.timer);
        let hop = setup.plan.targets.get(trying.hop);
        let peer = attempt.leg.as_ref().map(|l| l.hop.target.addr);
        if let Some(hop) = hop {
            let trunk = hop.trunk.config.name.clone();
            self.facts.attempts.push(CdrAttempt { trunk, peer, status });
        }
        self.facts.tried = attempt.leg.as_ref().map(CdrLeg::of);
        forget_attempt(cx, &attempt);
        forget_forks(cx, &attempt, Some(&setup.a_tag));
        trying.over |= message.is_none()
            || hop.is_some_and(|h| h.trunk.config.failover.applies(status))
            || status == 503;
        if status == 503
            && let Some(wait) = retry_after(message)
            && let Some(health) = hop.and_then(|h| h.trunk.peer_health(h.peer))
        {
            health.hold(cx.now + wait);
        }
        keep_best(&mut setup.failure, Failure { status, message: message.cloned() });
        // RFC 3263 §4.3: another address of the same name where this one was not reachable, said
        // 503, or said nothing at all.
        let silent = message.is_none() && status == 408 && !attempt.proceeding;
        if !attempt.addresses.is_empty() && (status == 503 || silent) {
            setup.attempts += 1;
            let (number, addresses) = (setup.attempts, attempt.addresses);
            let contact = attempt.contact;
            trying.attempts.push(Attempt { number, addresses, contact, ..Attempt::default() });
            return self.next_address(cx, number);
        }
        if status >= 600 {
            // The user declined everywhere (§21.6).
            trying.over = hop.is_some_and(|h| h.trunk.config.failover.applies(status));
            self.leave_attempts(cx, None);
        }
        self.go_on(cx);
    }

    /// Nothing rings any more: the user's next devices, the next target, or the caller hears of it.
    fn go_on(&mut self, cx: &mut Cx<'_>) {
        let Phase::Setup(setup) = &mut self.phase else { return };
        let Some(trying) = &setup.trying else { return };
        match (trying.attempts.is_empty(), trying.contacts.is_empty()) {
            (false, _) => {}
            (true, false) => self.next_contacts(cx),
            (true, true) => {
                let over = trying.over;
                setup.trying = None;
                if over { self.try_next(cx) } else { self.give_up(cx) }
            }
        }
    }

    /// Takes an attempt out of what is being tried.
    pub(crate) fn take_attempt(&mut self, number: u16) -> Option<Attempt> {
        let attempts = &mut self.setup_mut()?.trying.as_mut()?.attempts;
        let at = attempts.iter().position(|a| a.number == number)?;
        Some(attempts.remove(at))
    }

    /// No target is left: the caller gets the best failure.
    fn give_up(&mut self, cx: &mut Cx<'_>) {
        let Phase::Setup(setup) = &mut self.phase else { return };
        let failure = setup.failure.take().unwrap_or(Failure { status: 480, message: None });
        let of = setup.plan.targets.get(setup.next_hop.saturating_sub(1));
        let status = of.map_or_else(
            || mapped(failure.status),
            |hop| told(failure.status, &hop.trunk.config, &self.a.trunk.config),
        );
        let by = if failure.message.is_some() {
            EndedBy::Callee
        } else {
            EndedBy::Sbc(EndCause::SetupTimeout)
        };
        let message = failure.message;
        let retry =
            (status == 503 && message.is_none()).then_some(cx.env.config.calls.retry_after_s);
        // The target's own phrase may name its side.
        self.fail(cx, status, "", message.as_ref(), retry, by);
    }

    /// 422: the same INVITE again, with the interval that the target insists on (RFC 4028 §7.3).
    /// `false` when it did not say, or was given it already.
    pub(crate) fn lengthen_interval(
        &mut self,
        cx: &mut Cx<'_>,
        number: u16,
        message: &Message,
    ) -> bool {
        let min = message.number(HeaderName::MinSe).ok().flatten();
        let Some(attempt) = self.attempt_mut(number) else { return false };
        let (Some(min), None, Some(leg)) = (min, attempt.min_se, attempt.leg.clone()) else {
            return false;
        };
        attempt.min_se = Some(min);
        let mut timer = attempt.timer.take();
        cx.disarm(&mut timer);
        let offer = leg.sdp.local.clone();
        self.launch_invite(cx, number, leg, offer, None);
        true
    }

    pub(crate) fn attempt_mut(&mut self, number: u16) -> Option<&mut Attempt> {
        let attempts = &mut self.setup_mut()?.trying.as_mut()?.attempts;
        attempts.iter_mut().find(|a| a.number == number)
    }

    /// The timer of attempt n: no provisional response, or ringing for too long.
    pub(crate) fn attempt_timer(&mut self, cx: &mut Cx<'_>, number: u16) {
        let Some(attempt) = self.attempt_mut(number) else { return };
        attempt.timer = None;
        let client = attempt.client;
        self.cancel_client(cx, client, None);
        self.attempt_failed(cx, number, 408, None);
    }

    /// Starts the ring timer once the target shows that it is there (timer C).
    pub(crate) fn attempt_proceeds(&mut self, cx: &mut Cx<'_>, number: u16) {
        let ring_default = cx.env.config.calls.ring_timeout;
        let key = self.key;
        let Some(attempt) = self.attempt_mut(number).filter(|a| !a.proceeding) else { return };
        attempt.proceeding = true;
        let ring = attempt.leg.as_ref().and_then(|l| l.trunk.config.ring_timeout);
        cx.disarm(&mut attempt.timer);
        let after = ring.unwrap_or(ring_default);
        attempt.timer = Some(cx.arm(cx.now + after, key, CallTimer::Attempt(number)));
    }

    /// Cancels an INVITE of ours; the layer waits for its provisional response by itself.
    pub(crate) fn cancel_client(
        &mut self,
        cx: &mut Cx<'_>,
        client: Option<ClientId>,
        reason: Option<&str>,
    ) {
        if let Some(client) = client {
            cx.cancel(client, reason);
        }
    }
}

/// The dialog (or none to be) that a request of A opens on a trunk: our identifiers, the names
/// that the trunk shall see, and the hop. `None` when the trunk's interface cannot reach `target`.
pub(crate) fn outgoing_dialog(
    cx: &mut Cx<'_>,
    hint: ShardHint,
    request: &Message,
    to: &crate::routing::Hop,
    target: Target,
) -> Option<(Dialog, Hop)> {
    let config = &to.trunk.config;
    let route = Hop { interface: config.interface, target, flow: None, lost: None };
    let listener = cx.listener(&route)?;
    let own_host = match &config.from_domain {
        Some(domain) => Host::Name(domain.clone()),
        None => listener.advertise_host.clone(),
    };
    let far_host = match &config.domain {
        Some(domain) => Host::Name(domain.clone()),
        None => peer_host(&to.peer().host),
    };
    let sips = secure::wants_tls(request);
    let scheme = if sips { "sips:" } else { "sip:" };
    let at = |user: &str, uri: Option<UriRef<'_>>, port: Option<u16>| {
        let mut text = String::with_capacity(user.len() + 80);
        push_address(&mut text, scheme, user, &far_host);
        if let Some(port) = port {
            text.push(':');
            push_number(&mut text, port);
        }
        if uri.is_some_and(hide::is_phone) {
            text.push_str(";user=phone");
        }
        text
    };
    let numbers = &to.numbers;
    let by_peer = config.domain.is_none();
    let port = to.peer().port.filter(|_| by_peer);
    let mut request_uri = at(&numbers.ruri, request.request_uri().ok(), port);
    if let Some(param) = target.transport.uri_param().filter(|_| by_peer && !sips) {
        request_uri.push_str(";transport=");
        request_uri.push_str(param);
    }
    let mut remote = at(&numbers.to, request.to().ok()?.uri().ok(), None);
    remote.insert(0, '<');
    remote.push('>');
    let anonymous = !config.trusted && hide::wants_anonymity(request);
    let local = local_name(&request.from().ok()?, &numbers.from, &own_host, anonymous);
    let dialog = Dialog {
        call_id: cx.ids().call_id(hint).as_str().into(),
        local_tag: cx.ids().tag(hint).as_str().into(),
        remote_tag: "".into(),
        local: local.into(),
        remote: remote.into(),
        local_seq: 0,
        remote_seq: None,
        target: request_uri.into(),
        routes: Vec::new(),
        secure: sips,
    };
    Some((dialog, route))
}

/// Drops what the tables know of an attempt's dialogs.
pub(crate) fn forget_attempt(cx: &mut Cx<'_>, attempt: &Attempt) {
    if let Some(leg) = &attempt.leg {
        cx.env.tags.remove(&leg.dialog.local_tag);
    }
}

/// Require, Supported, Allow and Session-Expires of an INVITE towards a trunk.
fn invite_options(
    out: &mut Builder,
    invite: &Message,
    to: &TrunkConfig,
    has_offer: bool,
    longer: Option<u32>,
) {
    out.header(HeaderName::Allow, wire::ALLOW);
    let has = |tag| {
        hide::has_option(invite, HeaderName::Supported, tag)
            || hide::has_option(invite, HeaderName::Require, tag)
    };
    let timer = to.session_timer.mode != SessionTimerMode::Off;
    let mut supported: SmallVec<[&str; 6]> = SmallVec::new();
    // Where A cannot do 100rel we PRACK ourselves, which needs an offer that is already out.
    if to.rel100 && (has("100rel") || has_offer) {
        supported.push("100rel");
    }
    if timer {
        supported.push("timer");
    }
    for tag in ["replaces", "norefersub", "histinfo", "tdialog"] {
        if has(tag) && tag != "tdialog" {
            supported.push(tag);
        }
    }
    out.header(HeaderName::Supported, supported.join(", "));
    if to.session_timer.mode == SessionTimerMode::Require {
        let seconds = |d: Duration| d.as_secs().max(u64::from(crate::dialog::MIN_SE_S));
        let longer = u64::from(longer.unwrap_or(0));
        let (expires, min) = (seconds(to.session_timer.expires), seconds(to.session_timer.min_se));
        out.header(HeaderName::SessionExpires, expires.max(longer));
        out.header(HeaderName::MinSe, min.max(longer));
    }
}

/// From towards a trunk: display name, translated user, our host; RFC 3323 anonymity where asked.
fn local_name(from: &NameAddr<'_>, user: &str, host: &Host, anonymous: bool) -> String {
    if anonymous {
        return "\"Anonymous\" <sip:anonymous@anonymous.invalid>".to_owned();
    }
    let uri = from.uri().ok();
    let phone = if uri.is_some_and(hide::is_phone) { ";user=phone" } else { "" };
    let display = Display(from.display_raw);
    let (name, blank) = if display.0.is_empty() { ("", "") } else { (display.0, " ") };
    let invalid = uri.is_some_and(|u| u.host().eq_ignore_ascii_case("anonymous.invalid"));
    let mut text = String::with_capacity(name.len() + user.len() + 80);
    text.push_str(name);
    text.push_str(blank);
    text.push('<');
    match (user.is_empty(), invalid) {
        (true, _) => push_address(&mut text, "sip:", "", host),
        (false, true) => {
            push_address(&mut text, "sip:", user, &Host::Name("anonymous.invalid".into()))
        }
        (false, false) => {
            push_address(&mut text, "sip:", user, host);
            text.push_str(phone);
        }
    }
    text.push('>');
    text
}

/// `sip:user@host`, or `sip:host` without a user; `scheme` may be `sips:`.
fn push_address(out: &mut String, scheme: &str, user: &str, host: &Host) {
    out.push_str(scheme);
    if !user.is_empty() {
        out.push_str(user);
        out.push('@');
    }
    host.push_to(out);
}

fn peer_host(host: &std::sync::Arc<str>) -> Host {
    host.parse().map_or_else(|_| Host::Name(host.clone()), Host::Ip)
}

/// Retry-After of a 503.
fn retry_after(message: Option<&Message>) -> Option<Duration> {
    let value = message?.header(HeaderName::RetryAfter)?;
    let digits: String = value.chars().take_while(char::is_ascii_digit).collect();
    let seconds: u64 = digits.parse().ok()?;
    Some(Duration::from_secs(seconds.min(3600)))
}

/// Which of two failures tells the caller more (RFC 3261 §16.7, item 6).
fn keep_best(best: &mut Option<Failure>, new: Failure) {
    let rank = |f: &Failure| match (f.status, &f.message) {
        (600..=699, _) => 0,
        (_, None) => 9,
        (503, Some(_)) => 7,
        (401 | 407 | 415 | 420 | 484, Some(_)) => 1,
        (400..=499, Some(_)) => 2,
        (300..=399, Some(_)) => 3,
        (_, Some(_)) => 4,
    };
    match best {
        Some(old) if rank(old) <= rank(&new) => {}
        _ => *best = Some(new),
    }
}

/// The failure of a target as the caller hears it: [`mapped`], but for challenges that are the caller's
/// to answer.
pub(crate) fn told(status: u16, from: &TrunkConfig, to: &TrunkConfig) -> u16 {
    match status {
        401 | 407 if hide::challenges_pass(from, to) => status,
        other => mapped(other),
    }
}

/// What a target's failure becomes towards the caller: nothing that would make the caller act on
/// our relation with the target.
pub(crate) fn mapped(status: u16) -> u16 {
    match status {
        // A redirection is not followed and not told: the target may only name inside hosts.
        300..=399 => 480,
        // We could not authenticate; the caller cannot either.
        401 | 407 => 403,
        // Session timers and extensions are negotiated per leg.
        420..=422 => 500,
        // Loops and hop counts are per side, but worth telling.
        482 | 483 => status,
        // RFC 3261 §16.7: our 503 says that *we* are unavailable.
        other => other,
    }
}
