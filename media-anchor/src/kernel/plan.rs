//! From flows to elements: pure, without a kernel.
//!
//! Next hops are given; nothing here asks for them or applies what it plans.

use std::net::IpAddr;

use super::backend::Op;
use super::element::{Action, Element, Key, Quad};
use crate::plan_types::{Flow, Stay};

/// Where packets to a destination leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NextHop {
    /// Device; never 0.
    pub(crate) oif: u32,
    /// Gateway, or the destination itself.
    pub(crate) via: IpAddr,
    /// Of the route, or of the device.
    pub(crate) mtu: u32,
}

/// Why a flow can't be relayed by the kernel. What the relay itself knows (not latched, SRTP, …)
/// never comes here: see [`Stay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Reason {
    #[error("the address families differ")]
    Family,
    #[error("an address or port that no datagram has")]
    Address,
    #[error("no route")]
    NoRoute,
    #[error("the destination is on this host")]
    LocalDestination,
    #[error("the route forbids it")]
    Blocked,
    #[error("the gateway is of another family")]
    GatewayFamily,
    #[error("the egress device is down or gone")]
    DeviceDown,
    #[error("the egress device has no neighbours")]
    DeviceKind,
    #[error("the egress MTU is smaller than that of the ingress device")]
    Mtu,
    #[error("another flow has the same key")]
    KeyTaken,
    #[error("the kernel table is full")]
    Full,
    #[error("the kernel refused")]
    Refused,
    #[error("the kernel relay is down")]
    Down,
}

impl Reason {
    /// Every reason, in the order of the counters.
    pub const ALL: [Reason; 13] = [
        Reason::Family,
        Reason::Address,
        Reason::NoRoute,
        Reason::LocalDestination,
        Reason::Blocked,
        Reason::GatewayFamily,
        Reason::DeviceDown,
        Reason::DeviceKind,
        Reason::Mtu,
        Reason::KeyTaken,
        Reason::Full,
        Reason::Refused,
        Reason::Down,
    ];

    /// Metric label.
    pub fn label(self) -> &'static str {
        match self {
            Reason::Family => "family",
            Reason::Address => "address",
            Reason::NoRoute => "no_route",
            Reason::LocalDestination => "local_destination",
            Reason::Blocked => "blocked",
            Reason::GatewayFamily => "gateway_family",
            Reason::DeviceDown => "device_down",
            Reason::DeviceKind => "device_kind",
            Reason::Mtu => "mtu",
            Reason::KeyTaken => "key_taken",
            Reason::Full => "full",
            Reason::Refused => "refused",
            Reason::Down => "down",
        }
    }

    pub(crate) fn index(self) -> usize {
        Reason::ALL.iter().position(|r| *r == self).unwrap_or(0)
    }

    /// The relay's word for it.
    pub fn stay(self) -> Stay {
        match self {
            Reason::Family => Stay::Family,
            Reason::NoRoute
            | Reason::LocalDestination
            | Reason::Blocked
            | Reason::GatewayFamily
            | Reason::DeviceDown
            | Reason::DeviceKind
            | Reason::Mtu => Stay::NoRoute,
            Reason::Full => Stay::Full,
            Reason::Down => Stay::Off,
            Reason::Address | Reason::KeyTaken | Reason::Refused => Stay::Refused,
        }
    }
}

/// Key and egress quadruple of a flow.
pub(crate) fn quads(flow: &Flow) -> Result<(Key, Quad), Reason> {
    let tuples = [flow.arrives.src, flow.arrives.dst, flow.leaves.src, flow.leaves.dst];
    let v4 = tuples.iter().filter(|a| a.ip().to_canonical().is_ipv4()).count();
    if v4 != 0 && v4 != tuples.len() {
        return Err(Reason::Family);
    }
    let key = Quad::from_tuple(&flow.arrives).ok_or(Reason::Address)?;
    let leaves = Quad::from_tuple(&flow.leaves).ok_or(Reason::Address)?;
    Ok((key, leaves))
}

/// The element of a flow, given its next hop and whether the way checks lengths itself.
///
/// `ingress_mtu` is the MTU of the device it arrives by, where that way can't send an overlong
/// packet to userspace: then the egress must take whatever comes.
pub(crate) fn element(
    flow: &Flow,
    hop: NextHop,
    ingress_mtu: Option<u32>,
) -> Result<Element, Reason> {
    let (key, leaves) = quads(flow)?;
    if hop.via.is_ipv4() == key.is_v6() {
        return Err(Reason::GatewayFamily);
    }
    if hop.oif == 0 {
        return Err(Reason::DeviceDown);
    }
    if ingress_mtu.is_some_and(|mtu| hop.mtu < mtu) {
        return Err(Reason::Mtu);
    }
    let action = Action {
        leaves,
        oif: hop.oif,
        via: hop.via,
        // A datagram of our socket without a code point has 0: both ways look the same outside.
        dscp: flow.dscp.unwrap_or(0) & 0x3f,
        mtu: hop.mtu,
    };
    Ok(Element { key, action })
}

/// What turns `installed` into `desired`, of one flow. A change of what happens to a packet is a
/// deletion and an addition in one commit, which gives back the counters of the old element.
pub(crate) fn diff(installed: Option<&Element>, desired: Option<&Element>) -> Vec<Op> {
    match (installed, desired) {
        (None, None) => Vec::new(),
        (Some(old), Some(new)) if old == new => Vec::new(),
        (old, new) => {
            old.map(|e| Op::Delete(e.key)).into_iter().chain(new.map(|e| Op::Add(*e))).collect()
        }
    }
}
