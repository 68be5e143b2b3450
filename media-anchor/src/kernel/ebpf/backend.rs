//! The TC eBPF way behind [`Backend`]: loading, attaching, encoding of elements.
//!
//! What a packet meets is in `relay.bpf.c`; the layouts here are those of its structures.

use std::error::Error;
use std::net::IpAddr;
use std::os::fd::AsFd;

use aya::maps::{Map as AyaMap, MapData};
use aya::programs::tc::{self, SchedClassifierLinkId};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use aya::{EbpfLoader, include_bytes_aligned};
use hashbrown::HashMap;
use nix::errno::Errno;

use super::super::backend::{Backend, CommitError, Device, Fault, Op};
use super::super::element::{Counters, Element, Key, QUAD4, QUAD6, Quad};
use super::map::Map;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/relay.bpf.o"));

/// Name of the program in the object and of its filter on kernels before 6.6.
const PROGRAM: &str = "sbc_relay";
/// Keys of one piece of a listing.
const LISTED: usize = 512;

const VALUE4: usize = 16 + QUAD4 + 4 + 4 + 4;
const VALUE6: usize = 16 + QUAD6 + 4 + 16 + 8;

/// Why the program can't be used, in words for the status.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("built without its program (clang was missing)")]
    NotBuilt,
    #[error("not permitted (CAP_BPF and CAP_NET_ADMIN)")]
    Permission,
    #[error("{0}")]
    Refused(String),
}

/// The loaded program with its maps and links.
struct Loaded {
    ebpf: aya::Ebpf,
    m4: Map<QUAD4, VALUE4>,
    m6: Map<QUAD6, VALUE6>,
    links: HashMap<String, SchedClassifierLinkId>,
}

/// The eBPF way.
pub(crate) struct Ebpf {
    size: u32,
    loaded: Option<Loaded>,
    walk: Walk,
}

/// Where a listing stands.
#[derive(Clone, Copy)]
enum Walk {
    V4(Option<[u8; QUAD4]>),
    V6(Option<[u8; QUAD6]>),
}

impl Ebpf {
    /// Loads the program; each map may hold `size` elements.
    pub(crate) fn open(size: u32) -> Result<Self, LoadError> {
        let loaded = Some(load(size)?);
        Ok(Ebpf { size, loaded, walk: Walk::V4(None) })
    }

    fn loaded(&self) -> Result<&Loaded, Fault> {
        self.loaded.as_ref().ok_or(Fault::TableGone)
    }
}

fn load(size: u32) -> Result<Loaded, LoadError> {
    if OBJECT.is_empty() {
        return Err(LoadError::NotBuilt);
    }
    let mut ebpf = EbpfLoader::new()
        // Nothing in the program depends on the layout of kernel structures.
        .btf(None)
        .map_max_entries("m4", size)
        .map_max_entries("m6", size)
        .load(OBJECT)
        .map_err(|error| refused(&error))?;
    let program: &mut SchedClassifier = ebpf
        .program_mut(PROGRAM)
        .ok_or(LoadError::NotBuilt)?
        .try_into()
        .map_err(|error: ProgramError| refused(&error))?;
    program.load().map_err(|error| refused(&error))?;
    let m4 = Map::new(descriptor(&mut ebpf, "m4")?);
    let m6 = Map::new(descriptor(&mut ebpf, "m6")?);
    Ok(Loaded { ebpf, m4, m6, links: HashMap::new() })
}

fn descriptor(ebpf: &mut aya::Ebpf, name: &str) -> Result<std::os::fd::OwnedFd, LoadError> {
    let Some(AyaMap::HashMap(data)) = ebpf.take_map(name) else {
        return Err(LoadError::NotBuilt);
    };
    let data: MapData = data;
    data.fd().as_fd().try_clone_to_owned().map_err(|error| refused(&error))
}

/// The errno at the bottom of an error, if it is one of the kernel's.
fn errno_of(error: &(dyn Error + 'static)) -> Option<Errno> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && let Some(raw) = io.raw_os_error()
        {
            return Some(Errno::from_raw(raw));
        }
        at = error.source();
    }
    None
}

fn refused(error: &(dyn Error + 'static)) -> LoadError {
    match errno_of(error) {
        Some(Errno::EPERM | Errno::EACCES) => LoadError::Permission,
        _ => {
            let mut text = error.to_string();
            let mut at = error.source();
            while let Some(source) = at {
                text = format!("{text}: {source}");
                at = source.source();
            }
            LoadError::Refused(text.chars().take(300).collect())
        }
    }
}

fn fault(errno: Errno) -> Fault {
    match errno {
        Errno::EPERM | Errno::EACCES => Fault::Permission,
        Errno::ENOMEM | Errno::EAGAIN | Errno::EBUSY => Fault::NoRoom,
        Errno::E2BIG => Fault::Full,
        Errno::EEXIST => Fault::Exists,
        Errno::ENOENT => Fault::Missing,
        Errno::ENODEV | Errno::ENXIO => Fault::NoDevice,
        Errno::EINVAL | Errno::EOPNOTSUPP => Fault::Unsupported(errno),
        other => Fault::Other(other),
    }
}

fn mtu(element: &Element) -> [u8; 2] {
    u16::try_from(element.action.mtu).unwrap_or(u16::MAX).to_ne_bytes()
}

fn via<const N: usize>(element: &Element) -> [u8; N] {
    let mut raw = [0; N];
    let copy = |raw: &mut [u8; N], octets: &[u8]| {
        if octets.len() == N {
            raw.copy_from_slice(octets);
        }
    };
    match element.action.via {
        IpAddr::V4(ip) => copy(&mut raw, &ip.octets()),
        IpAddr::V6(ip) => copy(&mut raw, &ip.octets()),
    }
    raw
}

/// `struct value4`, its counters 0.
fn value4(element: &Element) -> [u8; VALUE4] {
    let mut value = [0; VALUE4];
    value[16..28].copy_from_slice(element.action.leaves.bytes());
    value[28..32].copy_from_slice(&element.action.oif.to_ne_bytes());
    value[32..36].copy_from_slice(&via::<4>(element));
    value[36..38].copy_from_slice(&mtu(element));
    value[38] = element.action.dscp << 2;
    value
}

/// `struct value6`, its counters 0.
fn value6(element: &Element) -> [u8; VALUE6] {
    let mut value = [0; VALUE6];
    value[16..52].copy_from_slice(element.action.leaves.bytes());
    value[52..56].copy_from_slice(&element.action.oif.to_ne_bytes());
    value[56..72].copy_from_slice(&via::<16>(element));
    value[72..74].copy_from_slice(&mtu(element));
    value[74] = element.action.dscp << 2;
    value
}

/// The counters at the start of either value.
fn counters(value: &[u8]) -> Counters {
    let word = |at: usize| {
        let raw = value.get(at..at + 8).and_then(|w| w.try_into().ok());
        raw.map_or(0, u64::from_ne_bytes)
    };
    Counters { packets: word(0), bytes: word(8) }
}

/// An element taken out, kept until the rest of its commit is through.
enum Taken {
    V4([u8; QUAD4], [u8; VALUE4]),
    V6([u8; QUAD6], [u8; VALUE6]),
}

impl Loaded {
    fn add(&self, element: &Element) -> Result<(), Errno> {
        match &element.key {
            Quad::V4(key) => self.m4.add(key, &value4(element)),
            Quad::V6(key) => self.m6.add(key, &value6(element)),
        }
    }

    fn take(&self, key: &Key) -> Result<Taken, Errno> {
        match key {
            Quad::V4(key) => self.m4.take(key).map(|value| Taken::V4(*key, value)),
            Quad::V6(key) => self.m6.take(key).map(|value| Taken::V6(*key, value)),
        }
    }

    fn put_back(&self, taken: &Taken) -> Result<(), Errno> {
        match taken {
            Taken::V4(key, value) => self.m4.add(key, value),
            Taken::V6(key, value) => self.m6.add(key, value),
        }
    }

    fn read(&self, key: &Key) -> Result<Counters, Errno> {
        match key {
            Quad::V4(key) => self.m4.get(key).map(|value| counters(&value)),
            Quad::V6(key) => self.m6.get(key).map(|value| counters(&value)),
        }
    }

    /// Takes back what a failed commit had done.
    fn undo(&self, taken: &[(usize, Taken)], added: &[Key]) {
        let undone = added
            .iter()
            .map(|key| self.take(key).map(drop))
            .chain(taken.iter().map(|(_, element)| self.put_back(element)));
        for errno in undone.filter_map(Result::err) {
            // What is wrong now, the audit finds.
            tracing::warn!(%errno, "a failed commit could not be taken back");
        }
    }
}

impl Backend for Ebpf {
    fn name(&self) -> &'static str {
        "ebpf"
    }

    fn checks_length(&self) -> bool {
        true
    }

    fn reset(&mut self) -> Result<(), Fault> {
        self.walk = Walk::V4(None);
        self.loaded = None;
        self.loaded = Some(load(self.size).map_err(|error| {
            tracing::warn!(%error, "eBPF program can't be loaded");
            match error {
                LoadError::Permission => Fault::Permission,
                LoadError::NotBuilt | LoadError::Refused(_) => Fault::Unsupported(Errno::EINVAL),
            }
        })?);
        Ok(())
    }

    fn attach(&mut self, device: &Device) -> Result<(), Fault> {
        if !device.ethernet {
            return Err(Fault::Unsupported(Errno::EAFNOSUPPORT));
        }
        self.detach(&device.name)?;
        let loaded = self.loaded.as_mut().ok_or(Fault::TableGone)?;
        let program: Result<&mut SchedClassifier, ProgramError> =
            loaded.ebpf.program_mut(PROGRAM).ok_or(Fault::TableGone)?.try_into();
        let program = program.map_err(|_| Fault::TableGone)?;
        if before_tcx() {
            // Before tcx a filter outlives its process: make room, and take a dead one's away.
            prepare_filter(&device.name);
        }
        let link = program.attach(&device.name, TcAttachType::Ingress).map_err(|error| {
            tracing::debug!(device = device.name, %error, "eBPF program not attached");
            fault(errno_of(&error).unwrap_or(Errno::EIO))
        })?;
        loaded.links.insert(device.name.clone(), link);
        Ok(())
    }

    fn detach(&mut self, name: &str) -> Result<(), Fault> {
        let Some(loaded) = self.loaded.as_mut() else { return Ok(()) };
        let Some(link) = loaded.links.remove(name) else { return Ok(()) };
        let program: Result<&mut SchedClassifier, ProgramError> =
            loaded.ebpf.program_mut(PROGRAM).ok_or(Fault::TableGone)?.try_into();
        if let Ok(program) = program
            && let Err(error) = program.detach(link)
        {
            // The device, and the link with it, may be gone.
            tracing::debug!(device = name, %error, "eBPF program not detached");
        }
        Ok(())
    }

    fn commit(&mut self, ops: &[Op], done: &mut Vec<Option<Counters>>) -> Result<(), CommitError> {
        let loaded = self.loaded()?;
        let mut taken = Vec::new();
        let mut added = Vec::new();
        let mut failed = None;
        for (at, op) in ops.iter().enumerate() {
            if let Op::Delete(key) = op {
                match loaded.take(key) {
                    Ok(element) => taken.push((at, element)),
                    Err(errno) => failed = failed.or(Some((at, errno))),
                }
            }
        }
        for (at, op) in ops.iter().enumerate().take_while(|_| failed.is_none()) {
            if let Op::Add(element) = op {
                match loaded.add(element) {
                    Ok(()) => added.push(element.key),
                    Err(errno) => {
                        failed = Some((at, errno));
                        break;
                    }
                }
            }
        }
        if let Some((at, errno)) = failed {
            loaded.undo(&taken, &added);
            return Err(CommitError { at: Some(at), fault: fault(errno) });
        }
        let from = done.len();
        done.resize(from + ops.len(), None);
        for (at, element) in &taken {
            done[from + at] = Some(match element {
                Taken::V4(_, value) => counters(value),
                Taken::V6(_, value) => counters(value),
            });
        }
        Ok(())
    }

    fn read(&mut self, keys: &[Key], out: &mut Vec<Option<Counters>>) -> Result<(), Fault> {
        let loaded = self.loaded()?;
        for key in keys {
            out.push(match loaded.read(key) {
                Ok(counters) => Some(counters),
                Err(Errno::ENOENT) => None,
                Err(errno) => return Err(fault(errno)),
            });
        }
        Ok(())
    }

    fn stands(&mut self) -> Result<bool, Fault> {
        // The maps and the program are held by descriptors: nobody else can take them away.
        Ok(self.loaded.is_some())
    }

    fn list(&mut self, keys: &mut Vec<Key>) -> Result<bool, Fault> {
        let loaded = self.loaded.as_ref().ok_or(Fault::TableGone)?;
        for _ in 0..LISTED {
            self.walk = match self.walk {
                Walk::V4(at) => match loaded.m4.next(at.as_ref()).map_err(fault)? {
                    Some(key) => {
                        keys.push(Quad::V4(key));
                        Walk::V4(Some(key))
                    }
                    None => Walk::V6(None),
                },
                Walk::V6(at) => match loaded.m6.next(at.as_ref()).map_err(fault)? {
                    Some(key) => {
                        keys.push(Quad::V6(key));
                        Walk::V6(Some(key))
                    }
                    None => {
                        self.walk = Walk::V4(None);
                        return Ok(true);
                    }
                },
            };
        }
        Ok(false)
    }

    fn remove(&mut self) {
        let names: Vec<String> = self.loaded.iter().flat_map(|l| l.links.keys().cloned()).collect();
        for name in names {
            if let Err(fault) = self.detach(&name) {
                tracing::warn!(device = name, %fault, "eBPF program not detached");
            }
        }
        self.loaded = None;
    }
}

/// Whether the kernel is older than Linux 6.6, which brought links for TC programs.
fn before_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 6, 0))
}

/// Adds the clsact qdisc and detaches a filter of that name, if either is to do.
fn prepare_filter(device: &str) {
    if let Err(error) = tc::qdisc_add_clsact(device) {
        tracing::debug!(device, %error, "clsact not added (it may be there)");
    }
    if let Err(error) = tc::qdisc_detach_program(device, TcAttachType::Ingress, PROGRAM) {
        tracing::debug!(device, %error, "no filter of a former process");
    }
}
