//! Registrations as operators see them: listed, taken out, moved to another system and back.

use std::net::SocketAddr;
use std::time::Instant;

use super::binding::{Binding, BindingRecord};
use super::{AorRecord, Registrar};
use crate::net::{InterfaceId, Transport};

/// One contact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    pub uri: Box<str>,
    /// Comma-separated Path values.
    pub path: Box<str>,
    /// The URN of `+sip.instance`; empty without.
    pub instance: Box<str>,
    pub reg_id: u32,
    /// Thousandths.
    pub q: u16,
    pub natted: bool,
    pub interface: InterfaceId,
    pub transport: Transport,
    /// Where its REGISTER came from.
    pub remote: SocketAddr,
    /// Whether it is reached by a connection of this node.
    pub connected: bool,
    /// Keepalives in a row without an answer.
    pub missed: u8,
    pub expires_s: u32,
    /// Seconds since its last REGISTER.
    pub age_s: u32,
}

/// A user with its live contacts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    pub aor: Box<str>,
    pub contacts: Vec<Contact>,
}

fn contact(b: &Binding, now_s: u32) -> Contact {
    Contact {
        uri: b.contact().into(),
        path: b.path().into(),
        instance: b.instance().into(),
        reg_id: b.reg_id,
        q: b.q,
        natted: b.natted,
        interface: b.interface,
        transport: b.transport,
        remote: b.remote,
        connected: b.conn.is_some(),
        missed: b.missed,
        expires_s: b.expires_s.saturating_sub(now_s),
        age_s: now_s.saturating_sub(b.refreshed_s),
    }
}

impl Registrar {
    /// Users whose address or a contact contains `filter`, `limit` at most, and how many there are
    /// in all.
    pub fn registrations(
        &self,
        now: Instant,
        filter: &str,
        limit: usize,
    ) -> (usize, Vec<Registration>) {
        let now_s = self.bindings.seconds(now);
        let mut found = Vec::new();
        let mut total = 0;
        for (aor, bindings) in self.bindings.all() {
            let live = || bindings.iter().filter(|b| b.expires_s > now_s);
            if live().next().is_none() {
                continue;
            }
            total += 1;
            let wanted = aor.contains(filter) || live().any(|b| b.contact().contains(filter));
            if found.len() < limit && wanted {
                let contacts = live().map(|b| contact(b, now_s)).collect();
                found.push(Registration { aor: aor.into(), contacts });
            }
        }
        (total, found)
    }

    /// Some of all users, `places` of the table from `from` on, and where the next ones begin;
    /// `None` there at the end. Who comes or goes in between may be missed.
    pub fn page(
        &self,
        now: Instant,
        from: usize,
        places: usize,
    ) -> (Option<usize>, Vec<Registration>) {
        let now_s = self.bindings.seconds(now);
        let (next, page) = self.bindings.page(from, places);
        let live = |(aor, bindings): (&str, &[Binding])| {
            let live = bindings.iter().filter(|b| b.expires_s > now_s);
            let contacts: Vec<Contact> = live.map(|b| contact(b, now_s)).collect();
            (!contacts.is_empty()).then(|| Registration { aor: aor.into(), contacts })
        };
        (next, page.filter_map(live).collect())
    }

    /// One user; `None` when offline.
    pub fn registration(&self, now: Instant, aor: &str) -> Option<Registration> {
        let now_s = self.bindings.seconds(now);
        let live = self.bindings.of(aor).iter().filter(|b| b.expires_s > now_s);
        let contacts: Vec<Contact> = live.map(|b| contact(b, now_s)).collect();
        (!contacts.is_empty()).then(|| Registration { aor: aor.into(), contacts })
    }

    /// Takes one contact of a user out, or all of them where `uri` is empty; yields how many went.
    /// The device hears nothing and may register again.
    pub fn remove(&mut self, now: Instant, aor: &str, uri: &str) -> usize {
        let all = self.bindings.of(aor);
        let kept: Vec<Binding> = all
            .iter()
            .filter(|b| !uri.is_empty() && b.contact() != uri)
            .map(Binding::copy)
            .collect();
        let gone = all.len() - kept.len();
        // Fewer than before always fit.
        if gone > 0 && self.bindings.replace(now, aor, kept).is_err() {
            return 0;
        }
        gone
    }

    /// Adds contacts from elsewhere to what a user has. Contacts that are here already, and have
    /// more to say, stay as they are.
    ///
    /// # Errors
    /// [`super::Full`]: nothing changed.
    pub fn import(&mut self, now: Instant, record: &AorRecord) -> Result<usize, super::Full> {
        let now_s = self.bindings.seconds(now);
        let mut all: Vec<Binding> =
            self.bindings.of(&record.aor).iter().map(Binding::copy).collect();
        let before = all.len();
        for b in &record.bindings {
            let until_s = self.bindings.seconds_of_unix(b.good_until_ms);
            let here = all.iter().any(|known| known.contact() == &*b.contact);
            // A connection does not move: such a device must register again.
            if here || until_s <= now_s || (b.natted && b.transport.is_reliable()) {
                continue;
            }
            all.extend(imported(b, now_s, until_s));
        }
        let added = all.len() - before;
        if added > 0 {
            self.bindings.replace(now, &record.aor, all)?;
        }
        Ok(added)
    }
}

fn imported(b: &BindingRecord, now_s: u32, until_s: u32) -> Option<Binding> {
    let said = super::binding::Said {
        contact: &b.contact,
        call_id: &b.call_id,
        cseq: b.cseq,
        path: &b.path,
        instance: &b.instance,
        reg_id: b.reg_id,
        q: b.q,
        methods: b.methods,
        natted: b.natted,
        flow: crate::net::Flow {
            interface: b.interface,
            transport: b.transport,
            local: b.local,
            remote: b.remote,
            conn: None,
        },
    };
    Binding::new(&said, now_s, until_s)
}
