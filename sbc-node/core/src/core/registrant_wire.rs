//! What a REGISTER of ours looks like, and what its answer grants.
//!
//! When one is sent is `registrant.rs`.

use rand::Rng;

use super::{ANSWER_TIME, Entry, Goal, OWNER, Registrant, RegistrantCx, SERIAL, name};
use crate::core::Destination;
use crate::ids::HintKey;
use crate::net::Target;
use crate::sip::value::{Contact, FromValue};
use crate::sip::{Builder, HeaderName, Message, Method, UriRef};
use crate::transaction::{ClientRequest, Large, Owner};

impl Registrant {
    pub(super) fn ask(
        &mut self,
        cx: &mut RegistrantCx<'_>,
        index: usize,
        goal: &Goal,
        target: Target,
    ) -> Option<()> {
        let own = self.contact(cx, index, &target)?;
        let cnonce = format!("{:016x}", cx.txn.ids().rng().next_u64());
        let entry = self.entries.get_mut(index)?;
        let interface = entry.trunk.config.interface;
        let listener = cx.interfaces.get(usize::from(interface.0))?.listener_for(&target)?;
        let (branch, tag) = (cx.txn.ids().branch(self.hint), cx.txn.ids().tag(self.hint));
        let uri = format!("sip:{}", entry.config.registrar);
        let (contact, expires_s) = match goal {
            Goal::Register => (&own, entry.expires_s),
            Goal::Remove(contact) => (contact, 0),
        };
        entry.cseq = entry.cseq.saturating_add(1);
        entry.serial = entry.serial.wrapping_add(1) & SERIAL;
        let (host, port) = (&listener.advertise_host, listener.advertise_port);
        let (transport, aor) = (target.transport.via_token(), &entry.config.aor);
        let mut out = Builder::request(&Method::Register, uri.as_str());
        out.header(
            HeaderName::Via,
            format_args!("SIP/2.0/{transport} {host}:{port};branch={branch};rport"),
        )
        .header(HeaderName::MaxForwards, 70u8)
        .header(HeaderName::From, format_args!("<sip:{aor}>;tag={tag}"))
        .header(HeaderName::To, format_args!("<sip:{aor}>"))
        .header(HeaderName::CallId, &*entry.call_id)
        .header(HeaderName::CSeq, format_args!("{} REGISTER", entry.cseq))
        .header(HeaderName::Contact, format_args!("<{contact}>;expires={expires_s}"))
        .header(HeaderName::Expires, expires_s);
        if !cx.product.is_empty() {
            out.header(HeaderName::UserAgent, cx.product);
        }
        for answer in &mut entry.answers {
            let value = answer.answerer.authorize("REGISTER", &uri, b"", &cnonce);
            out.header(answer.header, value.as_str());
        }
        let request = ClientRequest {
            owner: Owner(OWNER | name(index, entry.serial)),
            branch,
            method: Method::Register,
            dest: Destination::Target { interface, target },
            data: out.finish(),
            timeout: Some(ANSWER_TIME),
            large: Large::Udp,
        };
        cx.txn.send_request(cx.now, request).ok().map(|_| ())
    }

    /// URI of our Contact as the trunk at `target` shall see it.
    pub(super) fn contact(
        &self,
        cx: &mut RegistrantCx<'_>,
        index: usize,
        target: &Target,
    ) -> Option<Box<str>> {
        let Entry { trunk, config, .. } = self.entries.get(index)?;
        let interface = usize::from(trunk.config.interface.0);
        let listener = cx.interfaces.get(interface)?.listener_for(target)?;
        let (host, port) = (&listener.advertise_host, listener.advertise_port);
        let user = &config.contact_user;
        let mut contact = match user.is_empty() {
            true => format!("sip:{host}:{port}"),
            false => format!("sip:{user}@{host}:{port}"),
        };
        if let Some(transport) = target.transport.uri_param() {
            contact.push_str(";transport=");
            contact.push_str(transport);
        }
        if config.match_contact {
            contact.push_str(";line=");
            contact.push_str(&line(cx.txn.ids().hints(), trunk.name(), &config.aor));
        }
        Some(contact.into())
    }
}

/// The unguessable parameter of the Contact that a trunk's requests are known by; the same on every
/// node of a cluster.
pub(crate) fn line(hints: &HintKey, trunk: &str, aor: &str) -> String {
    format!("{:016x}", hints.token(&format!("line {trunk} {aor}")))
}

/// How long the registrar keeps our contact, seconds (RFC 3261 §10.2.4): as it says of this contact,
/// or of all, or as we asked.
pub(in crate::core) fn granted(message: &Message, contact: &str, asked: u32) -> u32 {
    let header = message.number(HeaderName::Expires).ok().flatten();
    let ours = UriRef::parse(contact).ok();
    let mut contacts = 0;
    let mut only = None;
    for value in message.values(HeaderName::Contact) {
        let Ok(Contact::Addr(addr)) = Contact::from_value(value) else { continue };
        let expires = addr.params.get("expires").and_then(|v| v.parse().ok()).or(header);
        let same = addr.uri().is_ok_and(|uri| ours.is_some_and(|ours| ours.is_equivalent(&uri)));
        if same {
            return expires.unwrap_or(asked);
        }
        contacts += 1;
        only = expires;
    }
    // Some write it in their own way; then it is the only one.
    if contacts == 1 { only.unwrap_or(asked) } else { header.unwrap_or(asked) }
}
