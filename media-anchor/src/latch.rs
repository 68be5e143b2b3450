//! Where the media of one side really comes from (symmetric RTP, RFC 4961).
//!
//! ```text
//!            remote(None)            remote(Off)
//!   Closed ◀────────────  (any)  ────────────▶ Off
//!                           │ remote(Auto | Force)
//!                           ▼
//!        signalled    ┌─ Learning ─┐  N consistent packets, grace over (Auto)
//!   ┌─────────────────┤            ├──────────────┐
//!   │                 └────────────┘              ▼
//!   │    signalled, or window over           Provisional
//!   ▼◀────────────────────────────────────────────┘
//! Latched ◀── N consistent packets (Force)
//! ```
//!
//! Nothing leaves `Latched` but a new offer/answer. A pure state machine: no counters, no sockets.

use std::net::SocketAddr;
use std::time::Instant;

use crate::config::Learning;
use crate::types::Latch;

/// Sources on probation at once; a spray cannot push out one that has made progress.
const CANDIDATES: usize = 4;

/// Packets that make a source of headerless media (T.38) consistent.
const RAW_PACKETS: u8 = 2;

/// Sequence numbers of a consistent source advance by less than this.
const MAX_ADVANCE: u16 = 100;

/// What identifies an RTP source beside its address: SSRC and sequence number.
pub(crate) type Ident = Option<(u32, u16)>;

/// The latch of one side of one stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct SideLatch {
    state: State,
    signalled: Option<SocketAddr>,
    /// Latched by another node: what SDP says next was known there already.
    restored: bool,
}

#[derive(Clone, Debug, Default)]
enum State {
    /// No endpoint is known: everything is refused.
    #[default]
    Closed,
    /// Only the signalled address, nothing is learnt.
    Off,
    Learning(Box<Probation>),
    /// Learnt from packets, gives way to the signalled address until `closes`.
    Provisional {
        addr: SocketAddr,
        closes: Instant,
    },
    Latched {
        addr: SocketAddr,
    },
}

#[derive(Clone, Debug)]
struct Probation {
    force: bool,
    /// Where the side was latched before the new offer/answer, when it signalled no new address.
    previous: Option<SocketAddr>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    addr: SocketAddr,
    ident: Ident,
    since: Instant,
    count: u8,
}

/// What a packet's source is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// From the endpoint.
    Accept,
    /// From the endpoint, and it was latched or moved by this very packet.
    Latched,
    /// On probation: not relayed.
    Probation,
    /// Not from the endpoint.
    Stranger,
}

impl SideLatch {
    /// Takes what SDP says. Learning starts anew if `relearn` or when the address is another one.
    pub(crate) fn signal(&mut self, rtp: Option<SocketAddr>, mode: Latch, relearn: bool) {
        let restored = std::mem::take(&mut self.restored) && rtp.is_some() && mode != Latch::Off;
        let moved = rtp != self.signalled && (relearn || !restored);
        let previous = self.learnt().filter(|_| !moved);
        self.signalled = rtp;
        let learning = |force| {
            State::Learning(Box::new(Probation { force, previous, candidates: Vec::new() }))
        };
        self.state = match (std::mem::take(&mut self.state), rtp, mode) {
            // A hold by c=0.0.0.0 keeps what was learnt, unless told otherwise.
            (state @ (State::Latched { .. } | State::Provisional { .. }), None, _) if !relearn => {
                self.signalled = None;
                state
            }
            (_, None, _) => State::Closed,
            (_, Some(_), Latch::Off) => State::Off,
            (State::Closed | State::Off, Some(_), Latch::Auto) => learning(false),
            (State::Closed | State::Off, Some(_), Latch::Force) => learning(true),
            (state, Some(_), Latch::Auto | Latch::Force) if !moved && !relearn => state,
            (
                State::Learning(_) | State::Provisional { .. } | State::Latched { .. },
                Some(_),
                Latch::Auto,
            ) => learning(false),
            (
                State::Learning(_) | State::Provisional { .. } | State::Latched { .. },
                Some(_),
                Latch::Force,
            ) => learning(true),
        };
    }

    /// Takes over what another node had latched; the next [`SideLatch::signal`] keeps it unless it
    /// is to learn anew.
    pub(crate) fn restore(&mut self, addr: SocketAddr) {
        self.state = State::Latched { addr };
        self.restored = true;
    }

    /// Judges a packet that looked right by its header. `usable` tells whether an address may be
    /// latched at all.
    pub(crate) fn packet(
        &mut self,
        now: Instant,
        src: SocketAddr,
        ident: Ident,
        config: &Learning,
        usable: impl Fn(SocketAddr) -> bool,
    ) -> Judgement {
        let from_signalled = self.signalled == Some(src);
        match &mut self.state {
            State::Closed => Judgement::Stranger,
            State::Off if from_signalled => Judgement::Accept,
            State::Off => Judgement::Stranger,
            State::Latched { addr } if *addr == src => Judgement::Accept,
            State::Latched { .. } => Judgement::Stranger,
            State::Provisional { addr, closes } => {
                let (addr, open) = (*addr, now < *closes);
                if !open {
                    self.state = State::Latched { addr };
                }
                match (addr == src, open && from_signalled) {
                    (true, _) => Judgement::Accept,
                    (false, true) => self.latch(src),
                    (false, false) => Judgement::Stranger,
                }
            }
            State::Learning(probation) => {
                let known = probation.previous == Some(src) || (from_signalled && !probation.force);
                if known {
                    return self.latch(src);
                }
                if !usable(src) {
                    return Judgement::Stranger;
                }
                let Some(since) = probation.consistent(now, src, ident, config) else {
                    return Judgement::Probation;
                };
                if probation.force {
                    return self.latch(src);
                }
                self.state = State::Provisional { addr: src, closes: since + config.window };
                Judgement::Latched
            }
        }
    }

    /// Whether `src` is the endpoint, for packets that must not latch anything (RTCP with mux).
    pub(crate) fn is_endpoint(&self, src: SocketAddr) -> bool {
        match &self.state {
            State::Closed | State::Learning(_) => false,
            State::Off => self.signalled == Some(src),
            State::Provisional { addr, .. } | State::Latched { addr } => *addr == src,
        }
    }

    /// Where media to this side goes; `None` while nobody may get it.
    pub(crate) fn destination(&self) -> Option<SocketAddr> {
        match &self.state {
            State::Closed => None,
            State::Off => self.signalled,
            State::Learning(probation) if probation.force => probation.previous,
            State::Learning(probation) => probation.previous.or(self.signalled),
            State::Provisional { addr, .. } | State::Latched { addr } => Some(*addr),
        }
    }

    /// The address learnt from packets, if any.
    pub(crate) fn learnt(&self) -> Option<SocketAddr> {
        match &self.state {
            State::Closed | State::Off => None,
            State::Learning(probation) => probation.previous,
            State::Provisional { addr, .. } | State::Latched { addr } => Some(*addr),
        }
    }

    /// The only source that can still be accepted, once nothing but signalling can change it.
    pub(crate) fn settled(&self, now: Instant) -> Option<SocketAddr> {
        match &self.state {
            State::Closed | State::Learning(_) => None,
            State::Off => self.signalled,
            State::Provisional { addr, closes } => (now >= *closes).then_some(*addr),
            State::Latched { addr } => Some(*addr),
        }
    }

    /// When a provisional latch closes.
    pub(crate) fn closes(&self) -> Option<Instant> {
        match &self.state {
            State::Provisional { closes, .. } => Some(*closes),
            State::Closed | State::Off | State::Learning(_) | State::Latched { .. } => None,
        }
    }

    fn latch(&mut self, addr: SocketAddr) -> Judgement {
        self.state = State::Latched { addr };
        Judgement::Latched
    }
}

impl Probation {
    /// Counts a packet of a candidate; the time of its first packet once it has proved consistent
    /// and, unless forced, has waited out the grace.
    fn consistent(
        &mut self,
        now: Instant,
        src: SocketAddr,
        ident: Ident,
        config: &Learning,
    ) -> Option<Instant> {
        let fresh = Candidate { addr: src, ident, since: now, count: 1 };
        let known = self.candidates.iter().position(|candidate| candidate.addr == src);
        let candidate = match known.and_then(|at| self.candidates.get_mut(at)) {
            Some(candidate) => {
                if follows(candidate.ident, ident) {
                    candidate.ident = ident;
                    candidate.count = candidate.count.saturating_add(1);
                } else {
                    *candidate = fresh;
                }
                *candidate
            }
            None => {
                self.admit(fresh);
                fresh
            }
        };
        let needed = if ident.is_some() { config.packets } else { RAW_PACKETS };
        let waited = self.force || now.saturating_duration_since(candidate.since) >= config.grace;
        (candidate.count >= needed && waited).then_some(candidate.since)
    }

    /// A newcomer takes the place of the one with the least progress, the oldest of those.
    fn admit(&mut self, fresh: Candidate) {
        if self.candidates.len() >= CANDIDATES {
            let least = self.candidates.iter().enumerate().min_by_key(|(_, c)| (c.count, c.since));
            if let Some((at, _)) = least {
                self.candidates.remove(at);
            }
        }
        self.candidates.push(fresh);
    }
}

/// Whether a packet continues its source: same SSRC, sequence number a little further.
fn follows(last: Ident, next: Ident) -> bool {
    match (last, next) {
        (None, None) => true,
        (Some((ssrc, seq)), Some((next_ssrc, next_seq))) => {
            ssrc == next_ssrc && (1..MAX_ADVANCE).contains(&next_seq.wrapping_sub(seq))
        }
        (None, Some(_)) | (Some(_), None) => false,
    }
}

#[cfg(test)]
#[path = "latch_tests.rs"]
mod tests;
