//! Bindings between the core's plain data and the rows of the replicated table.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use prost::Message as _;
use sbc_cluster::AorKey;
use sbc_core::net::{ConnId, Interface, InterfaceId};
use sbc_core::registrar::{BindingRecord, Upstream};
use sbc_proto::record::v1 as wire;
use sha2::{Digest as _, Sha256};

use super::record::{RecordError, VERSION, address_in, address_out, transport_in, transport_out};

/// The names of this node's interfaces: numbers are a node's own, rows hold names.
#[derive(Default)]
pub struct Names(ArcSwap<Vec<Arc<str>>>);

impl Names {
    /// To be given at the start and with each new configuration.
    pub fn set(&self, interfaces: &[Interface]) {
        self.0.store(Arc::new(interfaces.iter().map(|i| Arc::clone(&i.name)).collect()));
    }

    pub fn name(&self, id: InterfaceId) -> String {
        self.0.load().get(usize::from(id.0)).map_or_else(String::new, |name| name.to_string())
    }

    pub fn id(&self, name: &str) -> Option<InterfaceId> {
        let at = self.0.load().iter().position(|known| **known == *name)?;
        u16::try_from(at).ok().map(InterfaceId)
    }
}

/// The name of an address of record in the table.
pub fn aor_key(aor: &str) -> AorKey {
    let digest = Sha256::digest(aor.as_bytes());
    let mut key = [0; 16];
    key.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    AorKey(key)
}

/// Encodes one contact.
pub fn encode(aor: &str, b: &BindingRecord, names: &Names) -> Bytes {
    let binding = wire::Binding {
        version: VERSION,
        aor: aor.to_owned(),
        contact: b.contact.to_string(),
        call_id: b.call_id.to_string(),
        cseq: b.cseq,
        path: b.path.to_string(),
        instance: b.instance.to_string(),
        reg_id: b.reg_id,
        q: b.q.into(),
        methods: b.methods,
        natted: b.natted,
        interface: names.name(b.interface),
        transport: transport_out(b.transport).into(),
        local: address_out(Some(b.local)),
        remote: address_out(Some(b.remote)),
        conn: b.conn.map(|conn| conn.0),
        upstream: b.upstream.as_ref().map(|u| wire::Registration {
            version: VERSION,
            contact: u.contact.to_string(),
            call_id: u.call_id.to_string(),
            cseq: u.cseq,
            until_ms: u.until_ms,
        }),
    };
    binding.encode_to_vec().into()
}

/// Decodes what [`encode`] wrote: the address of record and the contact, good until then. The
/// connection is still the writer's.
pub fn decode(
    value: &[u8],
    flow_only: bool,
    good_until_ms: u64,
    names: &Names,
) -> Result<(String, BindingRecord), RecordError> {
    let b = wire::Binding::decode(value).map_err(|e| RecordError::Malformed(e.to_string()))?;
    if b.version > VERSION || b.version == 0 {
        return Err(RecordError::Version(b.version));
    }
    let address = |bytes: &[u8], what| address_in(bytes, what)?.ok_or(RecordError::Missing(what));
    let record = BindingRecord {
        contact: b.contact.into(),
        call_id: b.call_id.into(),
        cseq: b.cseq,
        path: b.path.into(),
        instance: b.instance.into(),
        reg_id: b.reg_id,
        q: u16::try_from(b.q).map_err(|_| RecordError::Bad("q"))?,
        methods: b.methods,
        natted: b.natted,
        interface: names.id(&b.interface).ok_or(RecordError::Bad("interface"))?,
        transport: transport_in(b.transport)?,
        local: address(&b.local, "local address")?,
        remote: address(&b.remote, "remote address")?,
        conn: b.conn.map(ConnId),
        flow_only,
        good_until_ms,
        upstream: b.upstream.map(|u| Upstream {
            contact: u.contact.into(),
            call_id: u.call_id.into(),
            cseq: u.cseq,
            until_ms: u.until_ms,
        }),
    };
    Ok((b.aor, record))
}

/// The address of record of a row, whatever else it holds.
pub fn aor_of(value: &[u8]) -> Option<String> {
    wire::Binding::decode(value).ok().map(|b| b.aor).filter(|aor| !aor.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sbc_core::net::Transport;

    fn names() -> Names {
        let names = Names::default();
        names.0.store(Arc::new(vec!["core".into(), "access".into()]));
        names
    }

    fn record() -> BindingRecord {
        BindingRecord {
            contact: "sip:alice@198.51.100.7:40000;transport=tcp;ob".into(),
            call_id: "a84b4c76e66710@pc33.example.com".into(),
            cseq: 314,
            path: "<sip:p1.example.com;lr>".into(),
            instance: "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6".into(),
            reg_id: 1,
            q: 700,
            methods: 5,
            natted: true,
            interface: InterfaceId(1),
            transport: Transport::Tcp,
            local: "192.0.2.1:5060".parse().expect("address"),
            remote: "[2001:db8::7]:40000".parse().expect("address"),
            conn: Some(ConnId(3 << 48 | 9)),
            flow_only: true,
            good_until_ms: 1_800_000_000_000,
            upstream: Some(Upstream {
                contact: "sip:alice@203.0.113.5:5060;rd=example.com".into(),
                call_id: "core".into(),
                cseq: 3,
                until_ms: 9,
            }),
        }
    }

    #[test]
    fn a_contact_comes_back_as_it_was_and_stays_small() {
        let (names, record) = (names(), record());
        let bytes = encode("alice@example.com", &record, &names);
        assert!(bytes.len() < 320, "{} bytes", bytes.len());
        let read = decode(&bytes, true, record.good_until_ms, &names).expect("decodes");
        assert_eq!(read, ("alice@example.com".to_owned(), record));
        assert_eq!(aor_of(&bytes).as_deref(), Some("alice@example.com"));
    }

    #[test]
    fn what_cannot_be_used_here_has_a_name() {
        let (names, record) = (names(), record());
        let bytes = encode("alice@example.com", &record, &names);
        let elsewhere = Names::default();
        assert_eq!(decode(&bytes, true, 1, &elsewhere), Err(RecordError::Bad("interface")));
        let newer = wire::Binding { version: VERSION + 1, ..wire::Binding::default() };
        let newer = decode(&newer.encode_to_vec(), true, 1, &names);
        assert_eq!(newer, Err(RecordError::Version(VERSION + 1)));
        assert!(matches!(decode(&[0xff], true, 1, &names), Err(RecordError::Malformed(_))));
    }

    #[test]
    fn keys_stay_the_same_over_releases() {
        assert_eq!(format!("{:?}", aor_key("alice@example.com")), AOR_KEY);
        assert_eq!(sbc_core::registrar::contact_key("sip:alice@192.0.2.1"), CONTACT_KEY);
    }

    const AOR_KEY: &str = "ff8d9819fc0e12bf0d24892e45987e24";
    const CONTACT_KEY: u64 = 0x3bd3_7b8a_d448_9199;
}
