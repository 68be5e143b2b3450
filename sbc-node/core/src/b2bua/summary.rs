//! Snapshots of calls for people: what `sbcctl calls` shows.

use std::net::SocketAddr;
use std::sync::Arc;

use super::call::{Call, Leg, Phase, Trying};
use super::env::WallClock;
use super::record::CallId;
use crate::media::MediaId;

/// Where a call is in its life, as told outward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallState {
    /// No provisional response but 100 has come.
    Calling,
    /// 18x was relayed.
    Ringing,
    /// Answered by B, held back until it is replicated.
    Committing,
    Up,
    Ending,
}

/// One leg of a [`CallSummary`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegSummary {
    pub trunk: Arc<str>,
    pub call_id: String,
    pub local_tag: String,
    pub remote_tag: String,
    /// Where requests of the leg go.
    pub peer: SocketAddr,
    /// Name of the codec or format of each live stream in what we said last.
    pub codecs: Vec<String>,
}

/// A call as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallSummary {
    pub id: CallId,
    pub state: CallState,
    pub from: String,
    pub to: String,
    pub dialled: String,
    /// Unix milliseconds.
    pub started_ms: u64,
    pub answered_ms: Option<u64>,
    pub a: LegSummary,
    /// `None` until a target is tried.
    pub b: Option<LegSummary>,
    /// To ask the anchor for counters; `None` without media.
    pub media: Option<MediaId>,
    pub protected: bool,
}

impl CallSummary {
    pub(crate) fn of(call: &Call, _clock: &WallClock) -> Self {
        let (state, trying) = match &call.phase {
            Phase::Setup(setup) => {
                let state = match (&setup.committing, call.facts.ringing_ms) {
                    (Some(_), _) => CallState::Committing,
                    (None, Some(_)) => CallState::Ringing,
                    (None, None) => CallState::Calling,
                };
                (state, setup.trying.as_ref().and_then(Trying::leg))
            }
            Phase::Up => (CallState::Up, None),
            Phase::Ending => (CallState::Ending, None),
        };
        CallSummary {
            id: call.key.id,
            state,
            from: call.facts.from.to_string(),
            to: call.facts.to.to_string(),
            dialled: call.facts.dialled.to_string(),
            started_ms: call.facts.started_ms,
            answered_ms: call.facts.answered_ms,
            a: leg(&call.a),
            b: call.b.as_ref().or(trying).map(leg),
            media: call.media.open.then_some(call.media.id),
            protected: call.facts.protected,
        }
    }
}

fn leg(leg: &Leg) -> LegSummary {
    LegSummary {
        trunk: leg.trunk.config.name.clone(),
        call_id: leg.dialog.call_id.to_string(),
        local_tag: leg.dialog.local_tag.to_string(),
        remote_tag: leg.dialog.remote_tag.to_string(),
        peer: leg.hop.target.addr,
        codecs: super::answer::Media::codecs(leg.sdp.local.as_ref()),
    }
}
