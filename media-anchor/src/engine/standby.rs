//! The flows of a call that another node carries, by the same rules as those of our own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::Bound;
use super::flows::wanted;
use super::session::Stream;
use crate::address::Addresses;
use crate::cells::StreamCell;
use crate::config::{MAX_STREAMS, OffloadConfig};
use crate::plan_types::{Flow, FlowId};
use crate::standby::{StandbySide, StandbyStream};
use crate::types::{Component, SessionId, Side};

/// What of a call can stand by in the kernel: RTP whose source was latched and that needs nothing
/// but new addresses. RTCP waits for the takeover.
pub(crate) fn standby_flows(
    call: SessionId,
    streams: &[Option<StandbyStream>],
    addresses: &Addresses,
    config: &OffloadConfig,
) -> Vec<Flow> {
    let now = Instant::now();
    let mut flows = Vec::new();
    for (index, stream) in (0u8..).zip(streams.iter().take(MAX_STREAMS)) {
        let Some(stream) = stream else { continue };
        let mut state = Stream::new(stream.kind, Arc::new(StreamCell::default()));
        for (side, said) in [(Side::A, &stream.a), (Side::B, &stream.b)] {
            let state = state.side_mut(side);
            state.bound = bound(stream, said, addresses);
            if let Some(latched) = said.latched.filter(|l| addresses.usable(*l)) {
                state.restore(latched);
            }
            let usable = |r: &crate::Remote| r.rtp.is_none_or(|rtp| addresses.usable(rtp));
            if let Some(remote) = said.remote.as_ref().filter(|r| usable(r)) {
                state.signal(remote, false);
            }
        }
        for from in [Side::A, Side::B] {
            let id = FlowId { session: call, stream: index, from, component: Component::Rtp };
            flows.extend(wanted(now, &state, id.standby(), config).ok());
        }
    }
    flows
}

fn bound(stream: &StandbyStream, side: &StandbySide, addresses: &Addresses) -> Option<Bound> {
    let (_, door) = addresses.door(side.spec).ok()?;
    Some(Bound {
        interface: door.interface,
        rtp: SocketAddr::new(door.addr.local, side.port),
        dscp: door.dscp.of(stream.kind),
        rtp_token: 0,
        rtcp_token: None,
    })
}
