//! The part of a call record that only a call without a final response has.

use sbc_core::b2bua::{AttemptRecord, EarlyRecord, FailedRecord, ForkRecord};
use sbc_proto::record::v1 as wire;

use super::{RecordError, address_in, address_out, leg_in, leg_out, transport_in, transport_out};

pub(super) fn early_out(early: &EarlyRecord) -> wire::Early {
    wire::Early {
        invite: early.invite.clone(),
        transport: transport_out(early.transport).into(),
        local: address_out(Some(early.local)),
        remote: address_out(Some(early.remote)),
        provisional: early.provisional.clone(),
        rseq: early.rseq,
        unacknowledged: early.unacknowledged,
        ringing_ms: early.ringing_ms,
        failed: early
            .failed
            .iter()
            .map(|f| wire::Failed {
                trunk: f.trunk.clone(),
                peer: address_out(f.peer),
                status: f.status.into(),
            })
            .collect(),
        attempts: early.attempts.iter().map(attempt_out).collect(),
    }
}

fn attempt_out(attempt: &AttemptRecord) -> wire::Attempt {
    wire::Attempt {
        leg: Some(leg_out(&attempt.leg)),
        request: attempt.request.clone(),
        proceeding: attempt.proceeding,
        challenges: attempt.challenges.into(),
        min_se: attempt.min_se,
        forks: attempt
            .forks
            .iter()
            .map(|f| wire::Fork {
                number: f.number.into(),
                a_tag: f.a_tag.clone(),
                leg: Some(leg_out(&f.leg)),
                rseq: f.rseq,
                reliable: f.reliable.map(|(a, b)| wire::Reliable { a, b }),
                described: f.described,
            })
            .collect(),
    }
}

fn attempt_in(attempt: wire::Attempt) -> Result<AttemptRecord, RecordError> {
    Ok(AttemptRecord {
        leg: leg_in(attempt.leg.ok_or(RecordError::Missing("leg of an attempt"))?)?,
        request: attempt.request,
        proceeding: attempt.proceeding,
        challenges: u8::try_from(attempt.challenges)
            .map_err(|_| RecordError::Bad("count of challenges"))?,
        min_se: attempt.min_se,
        forks: attempt.forks.into_iter().map(fork_in).collect::<Result<_, _>>()?,
    })
}

pub(super) fn early_in(early: wire::Early) -> Result<EarlyRecord, RecordError> {
    let address = |bytes: &[u8], what| address_in(bytes, what)?.ok_or(RecordError::Missing(what));
    Ok(EarlyRecord {
        transport: transport_in(early.transport)?,
        local: address(&early.local, "our address of the INVITE")?,
        remote: address(&early.remote, "source of the INVITE")?,
        invite: early.invite,
        provisional: early.provisional,
        rseq: early.rseq,
        unacknowledged: early.unacknowledged,
        ringing_ms: early.ringing_ms,
        failed: early.failed.into_iter().map(failed_in).collect::<Result<_, _>>()?,
        attempts: early.attempts.into_iter().map(attempt_in).collect::<Result<_, _>>()?,
    })
}

fn failed_in(failed: wire::Failed) -> Result<FailedRecord, RecordError> {
    Ok(FailedRecord {
        trunk: failed.trunk,
        peer: address_in(&failed.peer, "peer of a failed target")?,
        status: u16::try_from(failed.status).map_err(|_| RecordError::Bad("status"))?,
    })
}

fn fork_in(fork: wire::Fork) -> Result<ForkRecord, RecordError> {
    Ok(ForkRecord {
        number: u8::try_from(fork.number).map_err(|_| RecordError::Bad("fork number"))?,
        a_tag: fork.a_tag,
        leg: leg_in(fork.leg.ok_or(RecordError::Missing("leg of a fork"))?)?,
        rseq: fork.rseq,
        reliable: fork.reliable.map(|r| (r.a, r.b)),
        described: fork.described,
    })
}
