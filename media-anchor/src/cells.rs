//! Counters of one stream, written by its relay thread and read by its signalling shard.
//!
//! Each cell has one writer, so that a plain load and store is enough; readers may see the
//! counters of one packet partly, never a torn number.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::plan_types::{FlowCounters, Path, Stay};
use crate::types::{Component, DropReason, Side, SideStats, StreamStats};

/// Shared counters of one stream.
#[derive(Debug, Default)]
pub(crate) struct StreamCell {
    sides: [SideCell; 2],
}

/// Shared counters of one side of one stream.
#[derive(Debug, Default)]
pub(crate) struct SideCell {
    packets: AtomicU64,
    bytes: AtomicU64,
    rtcp_packets: AtomicU64,
    kernel_packets: AtomicU64,
    kernel_bytes: AtomicU64,
    kernel_rtcp_packets: AtomicU64,
    lost: AtomicU64,
    dropped: [AtomicU32; 7],
    jitter_us: AtomicU32,
    ssrc: AtomicU32,
    /// [`Path`] of RTP and RTCP from this side, as `path_code`.
    paths: [AtomicU8; 2],
    /// Written when an endpoint is latched, not per packet.
    latched: Mutex<Option<SocketAddr>>,
}

fn add64(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
}

impl StreamCell {
    pub(crate) fn side(&self, side: Side) -> &SideCell {
        let [a, b] = &self.sides;
        match side {
            Side::A => a,
            Side::B => b,
        }
    }

    /// What is shown of the stream.
    pub(crate) fn stats(&self) -> StreamStats {
        let in_kernel = |side| self.side(side).path(Component::Rtp) == Path::Kernel;
        StreamStats {
            a: self.side(Side::A).stats(),
            b: self.side(Side::B).stats(),
            kernel: in_kernel(Side::A) || in_kernel(Side::B),
        }
    }
}

impl SideCell {
    /// One media datagram relayed.
    pub(crate) fn media(&self, bytes: usize) {
        add64(&self.packets, 1);
        add64(&self.bytes, bytes as u64);
    }

    /// One RTCP datagram relayed.
    pub(crate) fn rtcp(&self) {
        add64(&self.rtcp_packets, 1);
    }

    pub(crate) fn drop(&self, reason: DropReason) {
        if let Some(cell) = self.dropped.get(reason.index()) {
            cell.store(cell.load(Relaxed).saturating_add(1), Relaxed);
        }
    }

    /// A relayed datagram turned out not to be sendable.
    pub(crate) fn unsent(&self, component: Component, bytes: usize) {
        match component {
            Component::Rtp => {
                add64(&self.packets, 1u64.wrapping_neg());
                add64(&self.bytes, (bytes as u64).wrapping_neg());
            }
            Component::Rtcp => add64(&self.rtcp_packets, 1u64.wrapping_neg()),
        }
        self.drop(DropReason::Send);
    }

    pub(crate) fn reception(&self, lost: u64, jitter_us: u32, ssrc: u32) {
        self.lost.store(lost, Relaxed);
        self.jitter_us.store(jitter_us, Relaxed);
        self.ssrc.store(ssrc, Relaxed);
    }

    /// What the kernel has relayed in all, over every time that it had the flow.
    pub(crate) fn kernel(&self, component: Component, total: FlowCounters) {
        match component {
            Component::Rtp => {
                self.kernel_packets.store(total.packets, Relaxed);
                self.kernel_bytes.store(total.bytes, Relaxed);
            }
            Component::Rtcp => self.kernel_rtcp_packets.store(total.packets, Relaxed),
        }
    }

    pub(crate) fn latched(&self, addr: Option<SocketAddr>) {
        *self.latched.lock().unwrap_or_else(PoisonError::into_inner) = addr;
    }

    pub(crate) fn set_path(&self, component: Component, path: Path) {
        if let Some(cell) = self.paths.get(component.index()) {
            cell.store(path_code(path), Relaxed);
        }
    }

    pub(crate) fn path(&self, component: Component) -> Path {
        self.paths.get(component.index()).map_or(Path::Kernel, |cell| path_of(cell.load(Relaxed)))
    }

    fn stats(&self) -> SideStats {
        let kernel_packets = self.kernel_packets.load(Relaxed);
        SideStats {
            path: self.path(Component::Rtp),
            packets: self.packets.load(Relaxed).wrapping_add(kernel_packets),
            bytes: self.bytes.load(Relaxed).wrapping_add(self.kernel_bytes.load(Relaxed)),
            rtcp_packets: self
                .rtcp_packets
                .load(Relaxed)
                .wrapping_add(self.kernel_rtcp_packets.load(Relaxed)),
            dropped: std::array::from_fn(|n| self.dropped.get(n).map_or(0, |c| c.load(Relaxed))),
            lost: self.lost.load(Relaxed),
            jitter_us: self.jitter_us.load(Relaxed),
            ssrc: self.ssrc.load(Relaxed),
            latched: *self.latched.lock().unwrap_or_else(PoisonError::into_inner),
            kernel_packets,
        }
    }
}

/// The order of the codes; 0 is where a stream starts.
const STAYS: [Stay; 11] = [
    Stay::Off,
    Stay::NotLatched,
    Stay::NoPeer,
    Stay::Direction,
    Stay::Family,
    Stay::Rtcp,
    Stay::Transform,
    Stay::Pending,
    Stay::NoRoute,
    Stay::Full,
    Stay::Refused,
];
const KERNEL: u8 = 255;

fn path_code(path: Path) -> u8 {
    match path {
        Path::Kernel => KERNEL,
        Path::Userspace(stay) => STAYS
            .iter()
            .position(|known| *known == stay)
            .and_then(|at| u8::try_from(at).ok())
            .unwrap_or(0),
    }
}

fn path_of(code: u8) -> Path {
    match code {
        KERNEL => Path::Kernel,
        code => Path::Userspace(STAYS.get(usize::from(code)).copied().unwrap_or(Stay::Off)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_their_code() {
        for path in STAYS.into_iter().map(Path::Userspace).chain([Path::Kernel]) {
            assert_eq!(path_of(path_code(path)), path);
        }
    }

    #[test]
    fn userspace_and_kernel_counters_are_joined() {
        let cell = StreamCell::default();
        let side = cell.side(Side::B);
        side.media(172);
        side.media(172);
        side.unsent(Component::Rtp, 172);
        side.rtcp();
        side.kernel(Component::Rtp, FlowCounters { packets: 10, bytes: 1720 });
        side.set_path(Component::Rtp, Path::Kernel);
        let stats = cell.stats();
        assert_eq!((stats.b.packets, stats.b.bytes, stats.b.kernel_packets), (11, 1892, 10));
        assert_eq!((stats.b.rtcp_packets, stats.b.dropped_total()), (1, 1));
        assert!(stats.kernel);
        assert_eq!(stats.a, SideStats::default());
    }
}
