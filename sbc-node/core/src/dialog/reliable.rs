//! Reliable provisional responses (RFC 3262) as counters: RSeq given out, RSeq seen.
//!
//! Sending, retransmitting and PRACK itself are the call's work.

use std::time::{Duration, Instant};

use bytes::Bytes;

/// A reliable provisional response of ours that waits for its PRACK.
#[derive(Clone, Debug)]
pub struct Unacknowledged {
    pub rseq: u32,
    pub status: u16,
    pub response: Bytes,
    /// Current retransmission interval (T1, doubled each time, RFC 3262 §3).
    pub interval: Duration,
    pub next: Instant,
    /// After 64·T1 the INVITE is refused with a 5xx.
    pub give_up: Instant,
}

/// Our side as UAS of an INVITE: the RSeq numbers that we give out.
#[derive(Clone, Debug, Default)]
pub struct Outgoing {
    last: u32,
    pub waiting: Option<Unacknowledged>,
}

/// What a PRACK that came to us meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrackMatch {
    /// It acknowledges what was waiting.
    Acknowledged,
    /// Nothing with that number waits: 481 (RFC 3262 §3).
    Unknown,
}

impl Outgoing {
    /// Goes on after the RSeq that another node gave out last.
    pub fn after(last: u32) -> Self {
        Outgoing { last, waiting: None }
    }

    /// The RSeq given out last; 0 before the first.
    pub fn last(&self) -> u32 {
        self.last
    }

    /// The next RSeq. The first is small and not zero (§3 wants 1 to 2^31 - 1).
    pub fn next_rseq(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    /// Keeps a response that was just sent until its PRACK comes.
    pub fn wait_for(
        &mut self,
        rseq: u32,
        status: u16,
        response: Bytes,
        now: Instant,
        t1: Duration,
    ) {
        self.waiting = Some(Unacknowledged {
            rseq,
            status,
            response,
            interval: t1,
            next: now + t1,
            give_up: now + t1 * 64,
        });
    }

    /// Takes a PRACK's RAck number (its CSeq and method were checked by the caller).
    pub fn acknowledge(&mut self, rseq: u32) -> PrackMatch {
        match &self.waiting {
            Some(w) if w.rseq == rseq => {
                self.waiting = None;
                PrackMatch::Acknowledged
            }
            Some(_) | None => PrackMatch::Unknown,
        }
    }
}

/// What to do with a reliable provisional response that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// The next in order: take it and PRACK it.
    Next,
    /// Seen before, or out of order: drop it; the peer repeats (RFC 3262 §4).
    Drop,
}

/// Takes an RSeq that came in an early dialog; `last` is what that dialog remembers.
pub fn take_rseq(last: &mut Option<u32>, got: u32) -> Incoming {
    match *last {
        None => {}
        Some(seen) if got == seen.wrapping_add(1) => {}
        Some(_) => return Incoming::Drop,
    }
    *last = Some(got);
    Incoming::Next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3262_3_a_prack_acknowledges_only_what_waits() {
        let mut out = Outgoing::default();
        let now = Instant::now();
        let rseq = out.next_rseq();
        out.wait_for(rseq, 180, Bytes::from_static(b"x"), now, Duration::from_millis(500));
        assert_eq!(out.acknowledge(rseq + 1), PrackMatch::Unknown);
        assert_eq!(out.acknowledge(rseq), PrackMatch::Acknowledged);
        assert_eq!(out.acknowledge(rseq), PrackMatch::Unknown);
        assert_eq!(out.next_rseq(), rseq + 1);
    }

    #[test]
    fn rfc3262_4_out_of_order_is_dropped() {
        let mut last = None;
        assert_eq!(take_rseq(&mut last, 7), Incoming::Next);
        assert_eq!(take_rseq(&mut last, 7), Incoming::Drop);
        assert_eq!(take_rseq(&mut last, 9), Incoming::Drop);
        assert_eq!(take_rseq(&mut last, 8), Incoming::Next);
    }
}
