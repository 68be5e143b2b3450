//! One binding: a contact of an address of record, kept small (texts share one allocation).

use std::net::SocketAddr;

use super::gruu::{Device, print};
use super::upstream::{Upstream, device_key};
use crate::net::{ConnId, Flow, InterfaceId, Transport};

/// What a REGISTER says of one contact.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said<'a> {
    pub(super) contact: &'a str,
    pub(super) call_id: &'a str,
    pub(super) cseq: u32,
    /// Path values joined by commas; empty without (RFC 3327).
    pub(super) path: &'a str,
    /// The URN of `+sip.instance` without `<>`; empty without.
    pub(super) instance: &'a str,
    /// 0 without (RFC 5626 §4.2).
    pub(super) reg_id: u32,
    /// Thousandths.
    pub(super) q: u16,
    /// Methods that the contact takes, a bit each; 0 when it does not say.
    pub(super) methods: u32,
    pub(super) natted: bool,
    pub(super) flow: Flow,
}

/// The kept form. Times are seconds since the table's epoch.
#[derive(Debug)]
pub(super) struct Binding {
    /// Contact, Call-ID, instance and path, one after the other.
    text: Box<str>,
    ends: [u16; 3],
    pub(super) interface: InterfaceId,
    pub(super) transport: Transport,
    pub(super) natted: bool,
    /// This node heard the REGISTER. What another node heard is kept for lookups alone.
    pub(super) own: bool,
    /// This node sends the keepalives.
    pub(super) keeper: bool,
    /// Keepalives in a row without an answer.
    pub(super) missed: u8,
    pub(super) q: u16,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) conn: Option<ConnId>,
    pub(super) cseq: u32,
    pub(super) reg_id: u32,
    pub(super) methods: u32,
    pub(super) expires_s: u32,
    pub(super) refreshed_s: u32,
    /// Up to when the replicated copy is good.
    pub(super) stored_s: u32,
    /// When the next keepalive is due; `u32::MAX` for never.
    pub(super) ping_s: u32,
    /// What a core registrar holds of it.
    pub(super) upstream: Option<Box<Upstream>>,
}

impl Binding {
    /// `None` when the texts are longer than any sane message's.
    pub(super) fn new(said: &Said<'_>, now_s: u32, expires_s: u32) -> Option<Self> {
        let parts = [said.contact, said.call_id, said.instance, said.path];
        let mut text = String::with_capacity(parts.iter().map(|p| p.len()).sum());
        let mut ends = [0u16; 3];
        for (n, part) in parts.iter().enumerate() {
            text.push_str(part);
            let end = u16::try_from(text.len()).ok()?;
            if let Some(slot) = ends.get_mut(n) {
                *slot = end;
            }
        }
        Some(Binding {
            text: text.into(),
            ends,
            interface: said.flow.interface,
            transport: said.flow.transport,
            natted: said.natted,
            own: true,
            keeper: true,
            missed: 0,
            q: said.q,
            local: said.flow.local,
            remote: said.flow.remote,
            conn: said.flow.conn,
            cseq: said.cseq,
            reg_id: said.reg_id,
            methods: said.methods,
            expires_s,
            refreshed_s: now_s,
            stored_s: 0,
            ping_s: u32::MAX,
            upstream: None,
        })
    }

    fn part(&self, from: Option<u16>, to: Option<u16>) -> &str {
        let from = from.map_or(0, usize::from);
        let to = to.map_or(self.text.len(), usize::from);
        self.text.get(from..to).unwrap_or("")
    }

    pub(super) fn contact(&self) -> &str {
        self.part(None, Some(self.ends[0]))
    }

    pub(super) fn call_id(&self) -> &str {
        self.part(Some(self.ends[0]), Some(self.ends[1]))
    }

    pub(super) fn instance(&self) -> &str {
        self.part(Some(self.ends[1]), Some(self.ends[2]))
    }

    pub(super) fn path(&self) -> &str {
        self.part(Some(self.ends[2]), None)
    }

    /// Whether another node would reach the user in the same way with what it has of `before`.
    pub(super) fn same_way(&self, before: &Binding) -> bool {
        self.contact() == before.contact()
            && self.instance() == before.instance()
            && self.path() == before.path()
            && (self.own, self.conn) == (before.own, before.conn)
            && self.upstream == before.upstream
            && (self.interface, self.transport, self.local, self.remote)
                == (before.interface, before.transport, before.local, before.remote)
            && (self.q, self.methods, self.reg_id, self.natted)
                == (before.q, before.methods, before.reg_id, before.natted)
    }

    pub(super) fn flow(&self) -> Flow {
        Flow {
            interface: self.interface,
            transport: self.transport,
            local: self.local,
            remote: self.remote,
            conn: self.conn,
        }
    }

    /// Whether it is gone when its connection closes (RFC 5626 §4.2): nobody could open another.
    pub(super) fn by_conn_alone(&self) -> bool {
        self.path().is_empty() && (self.natted || self.reg_id != 0)
    }

    pub(super) fn key(&self) -> u64 {
        contact_key(self.contact())
    }

    /// Whether the way that the REGISTER came is the way back: behind NAT and on connections.
    fn by_flow(&self) -> bool {
        self.path().is_empty() && (self.natted || self.conn.is_some())
    }

    pub(super) fn reach(&self) -> Reach {
        if self.by_flow() { Reach::Flow(self.flow()) } else { Reach::Uri(self.interface) }
    }

    pub(super) fn reached(&self) -> Reached {
        Reached {
            uri: self.contact().into(),
            path: split_path(self.path()),
            q: self.q,
            reach: self.reach(),
        }
    }

    pub(super) fn record(&self, unix_ms_of: impl Fn(u32) -> u64) -> BindingRecord {
        BindingRecord {
            contact: self.contact().into(),
            call_id: self.call_id().into(),
            cseq: self.cseq,
            path: self.path().into(),
            instance: self.instance().into(),
            reg_id: self.reg_id,
            q: self.q,
            methods: self.methods,
            natted: self.natted,
            interface: self.interface,
            transport: self.transport,
            local: self.local,
            remote: self.remote,
            conn: self.conn,
            flow_only: self.conn.is_some() && self.by_conn_alone(),
            good_until_ms: unix_ms_of(self.stored_s),
            upstream: self.upstream.as_deref().cloned(),
        }
    }

    /// As another node heard it.
    pub(super) fn adopted(held: &Held, now_s: u32, until_s: u32) -> Option<Binding> {
        let b = &held.record;
        if b.natted && b.transport.is_reliable() && b.conn.is_none() {
            // Nobody can be called into the void.
            return None;
        }
        let said = Said {
            contact: &b.contact,
            call_id: &b.call_id,
            cseq: b.cseq,
            path: &b.path,
            instance: &b.instance,
            reg_id: b.reg_id,
            q: b.q,
            methods: b.methods,
            natted: b.natted,
            flow: Flow {
                interface: b.interface,
                transport: b.transport,
                local: b.local,
                remote: b.remote,
                conn: b.conn,
            },
        };
        let mut binding = Binding::new(&said, now_s, until_s)?;
        (binding.own, binding.keeper, binding.stored_s) = (false, held.keeper, until_s);
        binding.upstream = b.upstream.clone().map(Box::new);
        Some(binding)
    }

    /// Whether it is of the device that is meant.
    pub(super) fn is_device(&self, device: &Device) -> bool {
        match device {
            Device::Any => true,
            Device::Instance(instance) => self.instance() == instance,
            Device::Temporary(_) if self.instance().is_empty() => false,
            Device::Contact(key) => self.device_key() == *key,
            Device::Temporary(known) => print(self.instance(), self.call_id()) == *known,
        }
    }

    /// See [`device_key`].
    pub(super) fn device_key(&self) -> u64 {
        device_key(self.contact(), self.instance(), self.reg_id)
    }

    /// Whether a record is of the same contact, or of the same flow of the same device.
    pub(super) fn is_device_of(&self, record: &BindingRecord) -> bool {
        let flow = (self.instance(), self.reg_id);
        *record.contact == *self.contact()
            || (self.reg_id != 0 && flow == (&*record.instance, record.reg_id))
    }

    /// Whether it was registered after what a record tells (RFC 3261 §10.2.4).
    pub(super) fn is_after(&self, record: &BindingRecord) -> bool {
        *record.call_id == *self.call_id() && self.cseq > record.cseq
    }

    /// It is lost here: to be deleted unless it registered elsewhere since.
    pub(super) fn gone(&self) -> Gone {
        Gone { contact: self.key(), own_only: self.own }
    }

    pub(super) fn copy(&self) -> Binding {
        Binding { text: self.text.clone(), upstream: self.upstream.clone(), ..*self }
    }

    /// Heap bytes behind it.
    pub(super) fn heap_bytes(&self) -> usize {
        self.text.len() + self.upstream.as_deref().map_or(0, Upstream::heap_bytes)
    }
}

fn split_path(path: &str) -> Vec<Box<str>> {
    crate::sip::List::new(path).map(Into::into).collect()
}

/// How a contact is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// By the way its REGISTER came.
    Flow(Flow),
    /// By resolving the first Path URI or the contact, leaving by this interface.
    Uri(InterfaceId),
}

/// One answer of a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The contact: the Request-URI to use.
    pub uri: Box<str>,
    /// Route header values, first hop first (RFC 3327 §5.3).
    pub path: Vec<Box<str>>,
    /// Thousandths.
    pub q: u16,
    pub reach: Reach,
}

/// Names a contact within its address of record, on all nodes and in all releases.
pub fn contact_key(contact: &str) -> u64 {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(contact.as_bytes());
    digest.iter().take(8).fold(0, |key, &byte| key << 8 | u64::from(byte))
}

/// What is to be written of one address of record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AorRecord {
    pub aor: Box<str>,
    /// New, changed, or about to run out in the replicated state.
    pub bindings: Vec<BindingRecord>,
    pub gone: Vec<Gone>,
}

/// A contact that is to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// See [`contact_key`].
    pub contact: u64,
    /// Only if this node wrote it last: it was lost here, and may have registered elsewhere since.
    pub own_only: bool,
}

/// All that the replicated state holds of one address of record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AorState {
    pub aor: Box<str>,
    pub bindings: Vec<Held>,
    /// Contacts that were deleted on purpose just now, by [`contact_key`].
    pub deleted: Vec<u64>,
}

/// One replicated binding as it concerns this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub record: BindingRecord,
    /// This run of this node wrote it last, and knows better.
    pub ours: bool,
    /// This node is to keep the way open: the node that did is gone.
    pub keeper: bool,
}

/// One binding as it is replicated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindingRecord {
    pub contact: Box<str>,
    pub call_id: Box<str>,
    pub cseq: u32,
    /// Comma-separated Path values.
    pub path: Box<str>,
    pub instance: Box<str>,
    pub reg_id: u32,
    /// Thousandths.
    pub q: u16,
    pub methods: u32,
    pub natted: bool,
    pub interface: InterfaceId,
    pub transport: Transport,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// The connection by which it is reached, as the node that holds it names it; on another node
    /// the edge puts a name of its own, by which it finds that node.
    pub conn: Option<ConnId>,
    /// Goes when that connection closes.
    pub flow_only: bool,
    /// Unix milliseconds; past it the binding is forgotten unless written again.
    pub good_until_ms: u64,
    /// What a core registrar holds of it.
    pub upstream: Option<Upstream>,
}

impl BindingRecord {
    /// How its REGISTER came.
    pub fn flow(&self) -> Flow {
        Flow {
            interface: self.interface,
            transport: self.transport,
            local: self.local,
            remote: self.remote,
            conn: self.conn,
        }
    }
}
