//! The 2xx that may not have reached the caller before its node died: who carries the call on repeats
//! it until the ACK (RFC 3261 §13.3.1.4).
//!
//! Whether the ACK had come is not in the record: writing it would double the writes of every call.
//! So the 2xx of a call answered less than 64*T1 ago is said again. A caller that has ACKed before
//! ACKs once more (§13.2.2.4); one that never does keeps its call, which the silence of its media
//! ends if it is dead.

use std::time::Duration;

use bytes::Bytes;

use super::call::{Call, CallTimer};
use super::env::Cx;
use super::record::{AnswerRecord, CallRecord};
use crate::core::Destination;
use crate::media::Side;
use crate::net::{Flow, Target, Transport};
use crate::timer::TimerKey;
use crate::transaction::{OkDue, OkRetransmit};

/// A 2xx that is repeated without a server transaction.
#[derive(Debug)]
pub(crate) struct Repeat {
    ok: Bytes,
    dest: Destination,
    /// CSeq of the INVITE.
    seq: u32,
    schedule: OkRetransmit,
    timer: TimerKey,
}

/// What another node needs to say this 2xx again; `None` where it could not: a connection dies with
/// its node, and the answer to an offer in the 2xx was in the ACK.
pub(crate) fn answer_record(
    ok: &[u8],
    flow: &Flow,
    offered: bool,
    seq: u32,
) -> Option<AnswerRecord> {
    if flow.transport != Transport::Udp || !offered {
        return None;
    }
    let head = memchr::memmem::find(ok, b"\r\n\r\n")? + 4;
    let head = Bytes::copy_from_slice(ok.get(..head)?);
    Some(AnswerRecord { head, source: flow.remote, seq })
}

impl Call {
    /// Begins to repeat the 2xx of a call that was taken over young.
    pub(crate) fn repeat_answer(&mut self, cx: &mut Cx<'_>, record: &CallRecord) {
        let Some(answer) = &record.answer else { return };
        let timers = cx.env.txn.config().timers;
        let age = Duration::from_millis(cx.unix_ms().saturating_sub(record.answered_ms));
        if age >= timers.t1 * 64 {
            return;
        }
        // The same bytes: to a caller that has it, it is a retransmission.
        let body = self.a.sdp.local.as_deref().unwrap_or_default();
        let ok = Bytes::from([&answer.head, body].concat());
        let target = Target::new(Transport::Udp, answer.source);
        let dest = Destination::Target { interface: self.a.hop.interface, target };
        cx.transmit(self.traced(Side::A), dest, ok.clone());
        let schedule = OkRetransmit::new(cx.now, &timers);
        let timer = cx.arm(schedule.deadline(), self.key, CallTimer::Repeat);
        self.repeat = Some(Box::new(Repeat { ok, dest, seq: answer.seq, schedule, timer }));
    }

    /// It is due again, or 64*T1 are over.
    pub(crate) fn repeat_timer(&mut self, cx: &mut Cx<'_>) {
        let timers = cx.env.txn.config().timers;
        let traced = self.traced(Side::A);
        let Some(repeat) = &mut self.repeat else { return };
        match repeat.schedule.due(cx.now, &timers) {
            OkDue::Wait => {}
            OkDue::Send => cx.transmit(traced, repeat.dest, repeat.ok.clone()),
            OkDue::GiveUp => {
                self.repeat = None;
                return;
            }
        }
        repeat.timer = cx.arm(repeat.schedule.deadline(), self.key, CallTimer::Repeat);
    }

    /// The ACK came, or the call ends.
    pub(crate) fn end_repeat(&mut self, cx: &mut Cx<'_>, acked: Option<u32>) {
        let over = |repeat: &mut Box<Repeat>| acked.is_none_or(|seq| seq == repeat.seq);
        if let Some(repeat) = self.repeat.take_if(over) {
            cx.env.timers.cancel(repeat.timer);
        }
    }
}
