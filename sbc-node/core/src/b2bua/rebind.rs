//! Legs whose connection is gone, with a node or by itself: how they are found again.
//!
//! A peer behind a connection that it opened is reached by that one alone. When it is lost the leg
//! is *lost* until the peer sends a request in the dialog by another connection, registers again
//! (the registrar is asked now and then), or, as a trunk, sends any request by a new one. What we
//! have to say meanwhile waits: our own re-INVITE and refresh while the session lasts, a BYE for
//! 64·T1. Requests of the other side are refused and end nothing. No sockets: what a flow is worth
//! shows when it is used.

use std::time::Duration;

use super::call::{Call, CallTimer, Exchange, ExchangeKind, Leg, Phase, slot};
use super::cdr::{EndCause, EndedBy};
use super::end::cause;
use super::env::{Cx, ResolveFor};
use super::peers::find_peer;
use super::{secure, users, wire};
use crate::core::Locate;
use crate::media::Side;
use crate::net::{Flow, Transport};
use crate::registrar::{Reach, Reached};
use crate::sip::{Method, UriRef};

/// Between two looks for a leg of a call that is up, at most.
const SEEK_MAX: Duration = Duration::from_secs(8);
/// Between the first looks, and between those for a BYE that waits.
const SEEK: Duration = Duration::from_secs(1);
/// Looks for the leg of a BYE: 64·T1, as long as a BYE that is sent is repeated (RFC 3261 §17.1.2).
const BYE_LOOKS: u8 = 32;

impl Leg {
    /// Whether a request may get to the peer: by its connection, or where its Contact says.
    pub(crate) fn has_way(&self) -> bool {
        let config = &self.trunk.config;
        let streams = !matches!(self.hop.target.transport, Transport::Ws | Transport::Wss);
        // Where a phone's connection came from nobody listens.
        self.hop.lost.is_none() || (streams && !(config.symmetric && config.users))
    }

    /// Whether it is reached by a connection that its peer opened, or was.
    pub(crate) fn by_connection(&self) -> bool {
        self.hop.lost.is_some() || self.hop.flow.is_some_and(|flow| flow.conn.is_some())
    }

    fn is_overdue(&self, now: std::time::Instant) -> bool {
        let expires = |t: &crate::dialog::SessionTimer| {
            t.since + Duration::from_secs(u64::from(t.expires_s)) <= now
        };
        self.timer.as_ref().is_some_and(expires)
    }
}

impl Call {
    /// The connection that a leg's peer was reached by is gone.
    pub(crate) fn lose_connection(&mut self, cx: &mut Cx<'_>, side: Side) {
        let Some(leg) = self.leg_mut(side) else { return };
        leg.hop.lost.get_or_insert(leg.hop.target.addr.ip());
        if let Some(flow) = leg.hop.flow.take() {
            cx.env.peers.closed(&flow);
        }
        self.follow(cx, side, 0);
        // One that is lost again and again is not asked for again and again.
        match self.seeks[slot(side)] {
            0 => self.seek(cx, side),
            _ => self.seek_later(cx, side),
        }
    }

    /// Looks for another way to a leg's peer.
    pub(crate) fn seek(&mut self, cx: &mut Cx<'_>, side: Side) {
        cx.disarm(&mut self.timers.seek[slot(side)]);
        let looks = &mut self.seeks[slot(side)];
        *looks = looks.saturating_add(1);
        let over = *looks > BYE_LOOKS;
        let Some(leg) = self.leg(side) else { return };
        let Some(host) = leg.hop.lost else { return };
        if matches!(self.phase, Phase::Ending) && (over || self.waiting_bye(side).is_none()) {
            self.exchanges.retain(|e| !is_waiting_bye(e, side));
            return;
        }
        let key = (leg.hop.interface, host);
        let ask = user_of(cx, leg);
        let trunk = !leg.trunk.config.users;
        let peer = trunk.then(|| find_peer(cx, key, (self.key, side))).flatten();
        let whom = ResolveFor::Lost { call: self.key, side };
        let found = ask.and_then(|ask| users::locate(cx, ask, whom)).unwrap_or_default();
        self.seek_later(cx, side);
        match peer {
            Some(flow) => self.rebind(cx, side, flow),
            None => self.sought(cx, side, &found),
        }
    }

    fn seek_later(&mut self, cx: &mut Cx<'_>, side: Side) {
        let looks = u32::from(self.seeks[slot(side)]);
        let wait = match self.phase {
            Phase::Ending => SEEK,
            Phase::Setup(_) | Phase::Up => SEEK_MAX.min(SEEK * looks.max(1)),
        };
        cx.disarm(&mut self.timers.seek[slot(side)]);
        let timer = cx.arm(cx.now + wait, self.key, CallTimer::Seek(side));
        self.timers.seek[slot(side)] = Some(timer);
    }

    /// Where the user of a lost leg is registered now.
    pub(crate) fn sought(&mut self, cx: &mut Cx<'_>, side: Side, found: &[Reached]) {
        let Some(leg) = self.leg(side) else { return };
        let Some(host) = leg.hop.lost else { return };
        // The same device: another one of the user's knows no such dialog.
        let device =
            |r: &Reached, flow: &Flow| r.uri == leg.dialog.target || flow.remote.ip() == host;
        let by = found.iter().find_map(|r| match r.reach {
            Reach::Flow(flow) => {
                let may = flow.conn.is_some()
                    && flow.interface == leg.hop.interface
                    && secure::may_go_by(&leg.dialog, &flow);
                (may && device(r, &flow)).then_some(flow)
            }
            Reach::Uri(_) => None,
        });
        if let Some(flow) = by {
            self.rebind(cx, side, flow);
        }
    }

    /// Another shard has heard the peer of a leg that was lost.
    pub(crate) fn heard_elsewhere(&mut self, cx: &mut Cx<'_>, side: Side, flow: Flow) {
        let waits = |leg: &Leg| {
            leg.hop.lost == Some(flow.remote.ip()) && leg.hop.interface == flow.interface
        };
        if self.leg(side).is_some_and(waits) {
            self.rebind(cx, side, flow);
        }
    }

    /// A lost leg's peer is there again: what waited for it goes.
    fn rebind(&mut self, cx: &mut Cx<'_>, side: Side, flow: Flow) {
        if self.leg(side).is_some_and(|leg| !secure::may_go_by(&leg.dialog, &flow)) {
            return;
        }
        self.bound(cx, side, &flow);
        match self.phase {
            Phase::Up => {
                if self.leg(side).is_some_and(|leg| leg.moved) {
                    self.retry_reinvite(cx, side);
                }
                self.store_change(cx);
            }
            Phase::Setup(_) | Phase::Ending => {}
        }
        self.bye_again(cx, side);
    }

    /// A leg has a connection again.
    pub(crate) fn bound(&mut self, cx: &mut Cx<'_>, side: Side, flow: &Flow) {
        cx.disarm(&mut self.timers.seek[slot(side)]);
        if let Some(leg) = self.leg_mut(side) {
            leg.hop = wire::hop_of_flow(flow);
            cx.env.stats.legs_rebound += 1;
        }
    }

    /// The peer of a leg answered: where requests go is right.
    pub(crate) fn reached(&mut self, cx: &mut Cx<'_>, side: Side) {
        if self.seeks[slot(side)] > 0
            && let Some(leg) = self.leg_mut(side)
        {
            leg.hop.lost = None;
            self.seeks[slot(side)] = 0;
            cx.disarm(&mut self.timers.seek[slot(side)]);
        }
    }

    /// A request to a leg whose connection is gone came to nothing; `status` says how.
    pub(crate) fn lost_failed(&mut self, cx: &mut Cx<'_>, exchange: &Exchange, status: u16) {
        let side = exchange.to;
        match exchange.kind {
            ExchangeKind::Bye if status == 503 => self.hold_bye(cx, side),
            ExchangeKind::Refresh => self.refresh_later(cx, side),
            ExchangeKind::Bye
            | ExchangeKind::Plain
            | ExchangeKind::Session { .. }
            | ExchangeKind::Prack { .. } => {}
        }
        if status == 503 {
            self.lose_connection(cx, side);
        }
    }

    /// Tries our own request again while the session lasts.
    pub(crate) fn refresh_later(&mut self, cx: &mut Cx<'_>, side: Side) {
        if !matches!(self.phase, Phase::Up) {
            return;
        }
        if self.leg(side).is_some_and(|leg| leg.is_overdue(cx.now)) {
            let reason = cause(408);
            return self.end(cx, EndedBy::Sbc(EndCause::PeerGone), Some(side), Some(&reason));
        }
        self.retry_later(cx, side);
    }

    /// Keeps a BYE until its peer is there again.
    pub(crate) fn hold_bye(&mut self, cx: &mut Cx<'_>, side: Side) {
        if self.waiting_bye(side).is_some() {
            return;
        }
        let number = self.next_exchange;
        self.next_exchange = number.wrapping_add(1);
        self.exchanges.push(Box::new(Exchange {
            number,
            method: Method::Bye,
            to: side,
            fork: 0,
            asked: None,
            client: None,
            client_seq: 0,
            kind: ExchangeKind::Bye,
            challenges: 0,
            sent: None,
        }));
        self.seek_later(cx, side);
    }

    fn waiting_bye(&self, side: Side) -> Option<usize> {
        self.exchanges.iter().position(|e| is_waiting_bye(e, side))
    }

    /// Sends a BYE that waited.
    pub(crate) fn bye_again(&mut self, cx: &mut Cx<'_>, side: Side) {
        let Some(at) = self.waiting_bye(side) else { return };
        self.exchanges.swap_remove(at);
        let reason = self.facts.end_reason.clone();
        self.send_bye(cx, side, reason.as_deref());
    }

    /// The peer of a leg has hung up by itself: no BYE of ours has to reach it.
    pub(crate) fn drop_waiting_bye(&mut self, side: Side) {
        self.exchanges.retain(|e| !is_waiting_bye(e, side));
    }
}

fn is_waiting_bye(exchange: &Exchange, side: Side) -> bool {
    exchange.to == side && exchange.kind == ExchangeKind::Bye && exchange.client.is_none()
}

/// Whose registration a leg may be found by.
fn user_of(cx: &Cx<'_>, leg: &Leg) -> Option<Locate> {
    let registrar = cx.env.registrar.as_ref().filter(|_| leg.trunk.config.users)?;
    let uri = UriRef::parse(wire::uri_of(&leg.dialog.remote)).ok()?;
    let (aor, device) = registrar.named(&uri.user_decoded(), &uri).ok()?;
    Some(Locate { aor, method: Method::Bye, device })
}
