//! The seam between the relay and the kernel: flows, why a flow stays, and the [`Offload`] trait.
//!
//! The relay decides *what* may leave userspace; an applier under `kernel/` decides *how*. No
//! netlink, no BPF and no sockets live here.
//!
//! ```text
//! relay thread ── FlowChange ──▶ driver thread ── Offload::apply ──▶ kernel
//! relay thread ◀─ FlowOutcome ── driver thread ◀─ outcomes, counters ──┘
//! ```

use std::net::SocketAddr;

use crate::types::{Component, InterfaceId, SessionId, Side, StreamKind};

/// Names one direction of one component of one stream: the packets *received from* `from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    pub session: SessionId,
    pub stream: u8,
    pub from: Side,
    pub component: Component,
}

/// Marks the flows of another node's calls, which are in the kernel before they are ours. Streams
/// are numbered far below it.
const STANDBY: u8 = 0x80;

impl FlowId {
    /// The id under which the flow stands by while another node carries its call.
    pub fn standby(self) -> FlowId {
        FlowId { stream: self.stream | STANDBY, ..self }
    }

    /// Whether it stands by for a call of another node.
    pub fn is_standby(self) -> bool {
        self.stream & STANDBY != 0
    }
}

/// Source and destination of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    pub src: SocketAddr,
    pub dst: SocketAddr,
}

/// One direction that needs nothing but new addresses.
///
/// Both tuples are of one family; addresses are those on the wire (local, never advertised).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    pub id: FlowId,
    pub kind: StreamKind,
    /// As the packet arrives: latched source → our local address.
    pub arrives: Tuple,
    /// As the packet leaves: our local address of the other side → its endpoint.
    pub leaves: Tuple,
    /// The media interface it arrives by; names the device to hook.
    pub ingress: InterfaceId,
    /// The media interface that it leaves by.
    pub egress: InterfaceId,
    /// DSCP to write (0..=63); `None` leaves it as it is.
    pub dscp: Option<u8>,
}

/// What the relay asks for. The changes of one batch are applied in order, in one transaction
/// where the kernel allows: both directions of a call come in one batch. The relay never installs
/// over a living id: a changed flow is `Remove` and then `Install`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowChange {
    Install(Flow),
    Remove(FlowId),
}

/// What the kernel has relayed of a flow since it was installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounters {
    pub packets: u64,
    /// UDP payload bytes (the applier takes IP and UDP headers off).
    pub bytes: u64,
}

/// Why a flow is relayed in userspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stay {
    /// No kernel way is in use (`kernel = "off"`, no capability).
    Off,
    /// The source is not latched yet, or its learning window is open.
    NotLatched,
    /// The endpoint of the other side is unknown.
    NoPeer,
    /// The direction is off: userspace drops and counts.
    Direction,
    /// IPv4 ⇄ IPv6.
    Family,
    /// RTCP is kept in userspace by policy, or RTP and RTCP leave by different ports
    /// (rtcp-mux on one side only).
    Rtcp,
    /// The flow needs more than addresses (SRTP, recording, DTMF).
    Transform,
    /// Asked for, not answered yet.
    Pending,
    /// No route or no usable device.
    NoRoute,
    /// The kernel table is full.
    Full,
    /// The kernel refused (`EPERM`, `ENOBUFS`, …); tried again later.
    Refused,
}

impl Stay {
    /// As shown by `sbcctl media list`.
    pub fn label(self) -> &'static str {
        match self {
            Stay::Off => "kernel relay off",
            Stay::NotLatched => "not latched",
            Stay::NoPeer => "peer unknown",
            Stay::Direction => "direction off",
            Stay::Family => "ipv4/ipv6",
            Stay::Rtcp => "rtcp",
            Stay::Transform => "transform",
            Stay::Pending => "pending",
            Stay::NoRoute => "no route",
            Stay::Full => "kernel table full",
            Stay::Refused => "kernel refused",
        }
    }
}

/// The way a flow goes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    Userspace(Stay),
    Kernel,
}

impl Path {
    /// `kernel`, or why not.
    pub fn label(self) -> &'static str {
        match self {
            Path::Kernel => "kernel",
            Path::Userspace(stay) => stay.label(),
        }
    }
}

impl Default for Path {
    /// Of a stream that nobody has looked at.
    fn default() -> Path {
        Path::Userspace(Stay::Off)
    }
}

/// The applier's answer; every change gets exactly one, and an eviction may come unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowOutcome {
    Installed(FlowId),
    /// Not installed; the relay goes on in userspace and asks again after a while.
    Refused(FlowId, Stay),
    /// Gone, with its last counters (zero when it was not there).
    Removed(FlowId, FlowCounters),
    /// Taken out without being asked (route or device lost), with its last counters.
    Evicted(FlowId, Stay, FlowCounters),
}

impl FlowOutcome {
    /// The flow it speaks of.
    pub fn id(&self) -> FlowId {
        match self {
            FlowOutcome::Installed(id)
            | FlowOutcome::Refused(id, _)
            | FlowOutcome::Removed(id, _)
            | FlowOutcome::Evicted(id, _, _) => *id,
        }
    }
}

/// A way to relay in the kernel. Lives on the driver thread, may block for a netlink round trip.
///
/// Dropping it removes everything it installed.
pub trait Offload: Send {
    /// Name of the way as shown in status: `nftables`, `ebpf`.
    fn name(&self) -> &'static str;

    /// Applies `changes` and appends one outcome for each, in order.
    fn apply(&mut self, changes: &[FlowChange], outcomes: &mut Vec<FlowOutcome>);

    /// Appends the counters since installation of those of `flows` that are installed.
    fn counters(&mut self, flows: &[FlowId], out: &mut Vec<(FlowId, FlowCounters)>);

    /// Called at least every 100 ms: reads route, link and neighbour changes, reconciles, and
    /// reports evictions.
    fn poll(&mut self, outcomes: &mut Vec<FlowOutcome>);
}
