//! A signalling shard's hand on the anchor: sessions, ports and sockets.
//!
//! Every call is synchronous and short: ports are given out and sockets bound here, so that a
//! refusal is known at once; the rest is posted to the session's relay thread.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::address::Door;
use crate::anchor::Shared;
use crate::cells::StreamCell;
use crate::config::MAX_STREAMS;
use crate::engine::Command;
use crate::plan_types::Path;
use crate::relay::{Letter, NewSide, sys};
use crate::types::{
    Component, Local, MediaError, Remote, SessionId, Side, SideSpec, SideStats, StreamKind,
    StreamStats, rtcp_of,
};

/// Occupied pairs that `bind` skips before it gives up.
const ATTEMPTS: usize = 64;

/// One shard's handle. `Send`, not shared.
pub struct Handle {
    shared: Arc<Shared>,
    shard: usize,
    sessions: HashMap<SessionId, Entry>,
}

#[derive(Default)]
struct Entry {
    streams: Vec<Option<StreamEntry>>,
}

struct StreamEntry {
    cell: Arc<StreamCell>,
    sides: [Option<SideEntry>; 2],
}

#[derive(Clone, Copy)]
struct SideEntry {
    spec: SideSpec,
    kind: StreamKind,
    door: u16,
    port: u16,
    local: Local,
    signalled: Option<SocketAddr>,
}

/// One stream as shown to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamView {
    /// Number of its `m=` line.
    pub index: usize,
    pub a: Option<SideView>,
    pub b: Option<SideView>,
}

/// One side of a stream as shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideView {
    pub kind: StreamKind,
    pub spec: SideSpec,
    pub local: Local,
    /// What the last `remote` said.
    pub signalled: Option<SocketAddr>,
    pub stats: SideStats,
    /// The way of RTP from this side, and why.
    pub rtp: Path,
    /// The way of RTCP from this side, and why.
    pub rtcp: Path,
}

/// An even port with its sockets.
struct Pair {
    port: u16,
    rtp: OwnedFd,
    rtcp: Option<OwnedFd>,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>, shard: usize) -> Handle {
        Handle { shared, shard, sessions: HashMap::new() }
    }

    /// Makes a session with no stream. Silence of all its endpoints is reported after `timeout`,
    /// counted from the last packet or the last `remote`, once both endpoints of a stream are
    /// known and a direction is on. An id must not be used again in the life of the process.
    ///
    /// # Errors
    /// `Exists`, `TooManySessions`, `Overloaded`.
    pub fn open(&mut self, id: SessionId, timeout: Option<Duration>) -> Result<(), MediaError> {
        if self.sessions.contains_key(&id) {
            return Err(MediaError::Exists);
        }
        let count = self.shared.sessions.fetch_add(1, Ordering::Relaxed);
        let posted = if count < self.shared.max_sessions {
            self.try_post(id, Letter::Command(Command::Open { id, shard: self.shard, timeout }))
        } else {
            Err(MediaError::TooManySessions)
        };
        if posted.is_err() {
            self.shared.sessions.fetch_sub(1, Ordering::Relaxed);
            return posted;
        }
        self.sessions.insert(id, Entry::default());
        Ok(())
    }

    /// Gives one side of stream `index` a port pair of its own, or moves it to another interface
    /// (the old ports go into quarantine). The same spec again returns the same ports.
    ///
    /// # Errors
    /// `Unknown`, `TooManyStreams`, `NoAddress`, `NoPorts`, `NoSocket`, `Overloaded`.
    pub fn bind(
        &mut self,
        id: SessionId,
        index: usize,
        kind: StreamKind,
        side: Side,
        spec: SideSpec,
    ) -> Result<Local, MediaError> {
        self.bind_with(id, index, kind, side, spec, None)
    }

    /// As `bind`, at a given RTP port: for a call taken over from another node. Quarantine does
    /// not hinder it.
    ///
    /// # Errors
    /// As `bind`; `NoPorts` when the port is in use or not of the interface's range.
    pub fn bind_at(
        &mut self,
        id: SessionId,
        index: usize,
        kind: StreamKind,
        side: Side,
        spec: SideSpec,
        rtp_port: u16,
    ) -> Result<Local, MediaError> {
        self.bind_with(id, index, kind, side, spec, Some(rtp_port))
    }

    fn bind_with(
        &mut self,
        id: SessionId,
        index: usize,
        kind: StreamKind,
        side: Side,
        spec: SideSpec,
        port: Option<u16>,
    ) -> Result<Local, MediaError> {
        let entry = self.sessions.get(&id).ok_or(MediaError::Unknown)?;
        let stream = u8::try_from(index)
            .ok()
            .filter(|_| index < MAX_STREAMS)
            .ok_or(MediaError::TooManyStreams)?;
        let old = entry.side(index, side);
        if let Some(old) = old.filter(|old| {
            old.spec == spec && old.kind == kind && port.is_none_or(|port| port == old.port)
        }) {
            return Ok(old.local);
        }
        let cell = entry.stream(index).map_or_else(Arc::default, |stream| stream.cell.clone());
        let (door_index, door) = self.shared.addresses.door(spec)?;
        let pair = match port {
            Some(port) => open_at(&door, kind, port)?,
            None => open_pair(&door, kind, self.shard, self.shared.early)?,
        };
        let new = SideEntry {
            spec,
            kind,
            door: u16::try_from(door_index).map_err(|_| MediaError::NoAddress)?,
            port: pair.port,
            local: local(&door, pair.port),
            signalled: old.and_then(|old| old.signalled),
        };
        let letter = Letter::Bind(Box::new(NewSide {
            id,
            stream,
            kind,
            side,
            interface: door.interface,
            rtp: SocketAddr::new(door.addr.local, pair.port),
            dscp: door.dscp.of(kind),
            rtp_socket: pair.rtp,
            rtcp_socket: pair.rtcp,
            cell: cell.clone(),
        }));
        if let Err(error) = self.try_post(id, letter) {
            self.release(&new);
            return Err(error);
        }
        if let Some(entry) = self.sessions.get_mut(&id) {
            entry.set_side(index, side, cell, new);
        }
        if let Some(old) = old {
            self.release(&old);
        }
        Ok(new.local)
    }

    /// Tells what SDP says of one side of a stream; opens a new learning window if `relearn`, or
    /// when the RTP address is not the one signalled before.
    ///
    /// # Errors
    /// `Unknown`; `Forbidden` for an address that media may not be sent to (nothing changes then);
    /// `Overloaded`.
    pub fn remote(
        &mut self,
        id: SessionId,
        index: usize,
        side: Side,
        remote: &Remote,
        relearn: bool,
    ) -> Result<(), MediaError> {
        let entry = self.sessions.get(&id).ok_or(MediaError::Unknown)?;
        entry.side(index, side).ok_or(MediaError::Unknown)?;
        let stream = u8::try_from(index).map_err(|_| MediaError::Unknown)?;
        self.check(remote)?;
        let signalled = remote.rtp;
        let remote = *remote;
        self.try_post(id, Letter::Command(Command::Remote { id, stream, side, remote, relearn }))?;
        if let Some(entry) = self.sessions.get_mut(&id).and_then(|e| e.side_mut(index, side)) {
            entry.signalled = signalled;
        }
        Ok(())
    }

    /// Whether media may be sent to what SDP says; asked by itself before a side is bound.
    ///
    /// # Errors
    /// `Forbidden` with the first address that it may not be sent to.
    pub fn check(&self, remote: &Remote) -> Result<(), MediaError> {
        let rtcp = remote.rtcp.filter(|_| !remote.rtcp_mux);
        let mut named = [remote.rtp, rtcp].into_iter().flatten();
        match named.find(|addr| !self.shared.addresses.usable(*addr)) {
            Some(addr) => Err(MediaError::Forbidden(addr)),
            None => Ok(()),
        }
    }

    /// Takes over the source that another node had latched, for a call carried on here: to be said
    /// after `bind_at` and before `remote`, which keeps it unless told to relearn.
    ///
    /// # Errors
    /// `Unknown`; `Forbidden` for an address that media may not be sent to; `Overloaded`.
    pub fn restore(
        &mut self,
        id: SessionId,
        index: usize,
        side: Side,
        latched: SocketAddr,
    ) -> Result<(), MediaError> {
        let entry = self.sessions.get(&id).ok_or(MediaError::Unknown)?;
        entry.side(index, side).ok_or(MediaError::Unknown)?;
        let cell = entry.stream(index).map(|stream| stream.cell.clone());
        let stream = u8::try_from(index).map_err(|_| MediaError::Unknown)?;
        if !self.shared.addresses.usable(latched) {
            return Err(MediaError::Forbidden(latched));
        }
        self.try_post(id, Letter::Command(Command::Restore { id, stream, side, latched }))?;
        // Whoever writes the call down before the relay thread has come to it still names the source.
        if let Some(cell) = cell {
            cell.side(side).latched(Some(latched));
        }
        Ok(())
    }

    /// Ends one stream (`m=` port 0) and frees its ports.
    pub fn drop_stream(&mut self, id: SessionId, index: usize) {
        let stream = self
            .sessions
            .get_mut(&id)
            .and_then(|entry| entry.streams.get_mut(index))
            .and_then(Option::take);
        let (Some(stream), Ok(index)) = (stream, u8::try_from(index)) else { return };
        stream.sides.iter().flatten().for_each(|side| self.release(side));
        self.post(id, Letter::Command(Command::DropStream { id, stream: index }));
    }

    /// Counters of every stream, by `m=` line; empty when the session is unknown. What the kernel
    /// relays is known up to `OffloadConfig::counters_every` ago.
    pub fn stats(&self, id: SessionId) -> Vec<StreamStats> {
        self.sessions.get(&id).map(Entry::stats).unwrap_or_default()
    }

    /// Ends the session, frees everything, returns the counters. If a stream was in the kernel,
    /// the last word follows as [`crate::Event::Final`].
    pub fn close(&mut self, id: SessionId) -> Vec<StreamStats> {
        let Some(entry) = self.sessions.remove(&id) else { return Vec::new() };
        self.shared.sessions.fetch_sub(1, Ordering::Relaxed);
        let stats = entry.stats();
        for side in entry.streams.iter().flatten().flat_map(|stream| stream.sides.iter().flatten())
        {
            self.release(side);
        }
        self.post(id, Letter::Command(Command::Close { id }));
        stats
    }

    /// The streams of a session with their addresses, counters and ways, for status commands.
    pub fn streams(&self, id: SessionId) -> Vec<StreamView> {
        let Some(entry) = self.sessions.get(&id) else { return Vec::new() };
        let indexed = entry.streams.iter().enumerate();
        indexed.filter_map(|(index, stream)| Some(stream.as_ref()?.view(index))).collect()
    }

    /// Sessions of this shard.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether the shard has no session.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    fn release(&self, side: &SideEntry) {
        let free_at = Instant::now() + self.shared.quarantine;
        self.shared.addresses.release(usize::from(side.door), side.port, free_at);
    }

    fn post(&self, id: SessionId, letter: Letter) {
        if let Some(relay) = self.shared.relay(id) {
            relay.post(letter);
        }
    }

    fn try_post(&self, id: SessionId, letter: Letter) -> Result<(), MediaError> {
        let relay = self.shared.relay(id).ok_or(MediaError::Overloaded)?;
        relay.try_post(letter).map_err(|_| MediaError::Overloaded)
    }
}

impl Drop for Handle {
    /// A shard that ends takes its sessions with it.
    fn drop(&mut self) {
        let ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in ids {
            self.close(id);
        }
    }
}

impl Entry {
    fn stream(&self, index: usize) -> Option<&StreamEntry> {
        self.streams.get(index)?.as_ref()
    }

    fn side(&self, index: usize, side: Side) -> Option<SideEntry> {
        *self.stream(index)?.sides.get(side.index())?
    }

    fn side_mut(&mut self, index: usize, side: Side) -> Option<&mut SideEntry> {
        self.streams.get_mut(index)?.as_mut()?.sides.get_mut(side.index())?.as_mut()
    }

    fn set_side(&mut self, index: usize, side: Side, cell: Arc<StreamCell>, new: SideEntry) {
        if self.streams.len() <= index {
            self.streams.resize_with(index + 1, || None);
        }
        let Some(place) = self.streams.get_mut(index) else { return };
        let stream = place.get_or_insert_with(|| StreamEntry { cell, sides: [None, None] });
        if let Some(place) = stream.sides.get_mut(side.index()) {
            *place = Some(new);
        }
    }

    fn stats(&self) -> Vec<StreamStats> {
        let stats = |stream: &Option<StreamEntry>| {
            stream.as_ref().map(|stream| stream.cell.stats()).unwrap_or_default()
        };
        self.streams.iter().map(stats).collect()
    }
}

impl StreamEntry {
    fn view(&self, index: usize) -> StreamView {
        let stats = self.cell.stats();
        let view = |side: Side| {
            let entry = (*self.sides.get(side.index())?)?;
            let cell = self.cell.side(side);
            Some(SideView {
                kind: entry.kind,
                spec: entry.spec,
                local: entry.local,
                signalled: entry.signalled,
                stats: *stats.side(side),
                rtp: cell.path(Component::Rtp),
                rtcp: cell.path(Component::Rtcp),
            })
        };
        StreamView { index, a: view(Side::A), b: view(Side::B) }
    }
}

/// What the peer shall see.
fn local(door: &Door, port: u16) -> Local {
    let rtp = SocketAddr::new(door.addr.advertise, port);
    Local { rtp, rtcp: rtcp_of(rtp) }
}

/// A free pair; pairs that other processes hold are skipped and counted.
fn open_pair(
    door: &Door,
    kind: StreamKind,
    shard: usize,
    early: Duration,
) -> Result<Pair, MediaError> {
    let now = Instant::now();
    for _ in 0..ATTEMPTS {
        let port = door
            .ports
            .take(shard, now)
            .or_else(|| door.ports.take_early(shard, now, early))
            .ok_or(MediaError::NoPorts)?;
        match open_sockets(door, kind, port) {
            Ok(pair) => return Ok(pair),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                door.ports.occupied(port, now);
            }
            Err(error) => {
                door.ports.release(port, now);
                return Err(MediaError::NoSocket(error.kind()));
            }
        }
    }
    Err(MediaError::NoPorts)
}

fn open_at(door: &Door, kind: StreamKind, port: u16) -> Result<Pair, MediaError> {
    if !door.ports.take_port(port) {
        return Err(MediaError::NoPorts);
    }
    open_sockets(door, kind, port).map_err(|error| {
        door.ports.release(port, Instant::now());
        match error.kind() {
            io::ErrorKind::AddrInUse => MediaError::NoPorts,
            kind => MediaError::NoSocket(kind),
        }
    })
}

fn open_sockets(door: &Door, kind: StreamKind, port: u16) -> io::Result<Pair> {
    let dscp = door.dscp.of(kind);
    let addr = SocketAddr::new(door.addr.local, port);
    let rtp = sys::bound_socket(addr, dscp, door.free_bind)?;
    let rtcp = match kind.has_rtcp() {
        true => Some(sys::bound_socket(rtcp_of(addr), dscp, door.free_bind)?),
        false => None,
    };
    Ok(Pair { port, rtp, rtcp })
}
