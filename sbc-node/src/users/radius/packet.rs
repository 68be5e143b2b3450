//! RADIUS packets (RFC 2865) with digest attributes (RFC 5090, draft-sterman-aaa-sip-00): Access-Request
//! written, answers read and proved. No sockets, no time.
//!
//! Every packet has a Message-Authenticator (RFC 3579 §3.2), as its first attribute: without one, a man
//! in the middle can forge an Access-Accept (CVE-2024-3596).

pub mod fuzz;

use md5::{Digest as _, Md5};
use sbc_core::registrar::AskUser;

/// Longest packet (RFC 2865 §3).
pub const PACKET_MAX: usize = 4_096;
const HEADER: usize = 20;
/// Longest value of an attribute.
const VALUE_MAX: usize = 253;

const ACCESS_REQUEST: u8 = 1;
const ACCESS_ACCEPT: u8 = 2;
const ACCESS_REJECT: u8 = 3;
const ACCESS_CHALLENGE: u8 = 11;

const USER_NAME: u8 = 1;
const SERVICE_TYPE: u8 = 6;
const NAS_IDENTIFIER: u8 = 32;
const NAS_PORT_TYPE: u8 = 61;
const MESSAGE_AUTHENTICATOR: u8 = 80;
/// Of RFC 5090: an address of record, any number of them in an Access-Accept.
const SIP_AOR: u8 = 122;
/// Of draft-sterman-aaa-sip-00.
const STERMAN_RESPONSE: u8 = 206;
const STERMAN_ATTRIBUTES: u8 = 207;

/// NAS-Port-Type: Virtual.
const VIRTUAL: u32 = 5;

/// How the digest is put into attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// One attribute each, 103 to 122.
    #[default]
    Rfc5090,
    /// Attributes 206 and 207 with parts, as FreeRADIUS 3, OpenSIPS and Kamailio speak it.
    Sterman,
}

/// What stands in every request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    pub dialect: Dialect,
    pub nas_identifier: String,
    /// Service-Type; 15 is SIP session.
    pub service_type: u32,
    /// Answers without Message-Authenticator are not heard.
    pub proved_answers: bool,
}

/// An Access-Request as it goes out, and what its answer is checked with.
pub struct Request {
    pub bytes: Vec<u8>,
    authenticator: [u8; 16],
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The credentials are right; addresses of record that the server names.
    Accept(Vec<String>),
    /// They are not, or the server wants another nonce than ours.
    Reject,
}

/// Why a datagram is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("a length that is wrong")]
    Length,
    #[error("an answer to another request")]
    Identifier,
    #[error("a code that is no answer to Access-Request")]
    Code,
    #[error("made with another secret")]
    Authenticator,
    #[error("without Message-Authenticator")]
    Unproved,
}

/// Attributes of a packet in the making; one value that does not fit spoils it.
struct Attributes {
    bytes: Vec<u8>,
    fits: bool,
}

impl Attributes {
    fn put(&mut self, kind: u8, value: &[u8]) {
        match u8::try_from(value.len() + 2) {
            Ok(length) if value.len() <= VALUE_MAX => {
                self.bytes.extend([kind, length]);
                self.bytes.extend_from_slice(value);
            }
            Ok(_) | Err(_) => self.fits = false,
        }
    }

    /// A part of Digest-Attributes, in an attribute of its own.
    fn part(&mut self, kind: u8, value: &str) {
        let Ok(length) = u8::try_from(value.len() + 2) else {
            self.fits = false;
            return;
        };
        let mut part = vec![kind, length];
        part.extend_from_slice(value.as_bytes());
        self.put(STERMAN_ATTRIBUTES, &part);
    }
}

/// Digest parameters with their numbers as attributes of RFC 5090 and as parts of draft-sterman.
fn parameters(ask: &AskUser) -> [(u8, u8, &str); 9] {
    [
        (104, 1, &ask.realm),
        (105, 2, &ask.nonce),
        (108, 3, &ask.method),
        (109, 4, &ask.uri),
        (110, 5, ask.qop),
        (111, 6, ask.algorithm.as_str()),
        (113, 8, &ask.cnonce),
        (114, 9, &ask.nc),
        (115, 10, &ask.name),
    ]
}

impl Request {
    /// `None` for credentials that no packet can carry: a value of more than 253 bytes, or `auth-int`, which
    /// is never offered.
    pub fn new(
        ask: &AskUser,
        form: &Form,
        secret: &[u8],
        identifier: u8,
        authenticator: [u8; 16],
    ) -> Option<Request> {
        if ask.qop == "auth-int" {
            return None;
        }
        let mut all = Attributes { bytes: Vec::with_capacity(512), fits: true };
        all.put(MESSAGE_AUTHENTICATOR, &[0; 16]);
        all.put(USER_NAME, ask.name.as_bytes());
        all.put(NAS_IDENTIFIER, form.nas_identifier.as_bytes());
        all.put(NAS_PORT_TYPE, &VIRTUAL.to_be_bytes());
        all.put(SERVICE_TYPE, &form.service_type.to_be_bytes());
        match form.dialect {
            Dialect::Rfc5090 => all.put(103, ask.response.as_bytes()),
            Dialect::Sterman => all.put(STERMAN_RESPONSE, ask.response.as_bytes()),
        }
        for (attribute, part, value) in parameters(ask).into_iter().filter(|p| !p.2.is_empty()) {
            match form.dialect {
                Dialect::Rfc5090 => all.put(attribute, value.as_bytes()),
                Dialect::Sterman => all.part(part, value),
            }
        }
        let length = u16::try_from(HEADER + all.bytes.len()).ok()?;
        if !all.fits || usize::from(length) > PACKET_MAX {
            return None;
        }
        let mut bytes = vec![ACCESS_REQUEST, identifier];
        bytes.extend(length.to_be_bytes());
        bytes.extend(authenticator);
        bytes.append(&mut all.bytes);
        let proof = hmac(secret, &[&bytes]);
        bytes.get_mut(HEADER + 2..HEADER + 18)?.copy_from_slice(&proof);
        Some(Request { bytes, authenticator })
    }

    /// Reads a datagram from the server.
    ///
    /// # Errors
    /// It is no answer to this request, or not by who has the secret; to be dropped, and waited on.
    pub fn answer(&self, datagram: &[u8], secret: &[u8], proved: bool) -> Result<Answer, Fault> {
        let header = datagram.first_chunk::<HEADER>().ok_or(Fault::Length)?;
        let [code, identifier, high, low, theirs @ ..] = header;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        // What stands behind the length is padding (RFC 2865 §3).
        let packet = datagram.get(..length).ok_or(Fault::Length)?;
        let attributes = packet.get(HEADER..).ok_or(Fault::Length)?;
        if Some(identifier) != self.bytes.get(1) {
            return Err(Fault::Identifier);
        }
        let head = [*code, *identifier, *high, *low];
        let made = Md5::new()
            .chain_update(head)
            .chain_update(self.authenticator)
            .chain_update(attributes)
            .chain_update(secret)
            .finalize();
        if !same(&made, theirs) {
            return Err(Fault::Authenticator);
        }
        let all = read(attributes).ok_or(Fault::Length)?;
        match proof(&all) {
            Some((at, given)) => {
                let (before, after) = (attributes.get(..at), attributes.get(at + 16..));
                let (Some(before), Some(after)) = (before, after) else {
                    return Err(Fault::Length);
                };
                let made = hmac(secret, &[&head, &self.authenticator, before, &[0; 16], after]);
                if !same(&made, given) {
                    return Err(Fault::Authenticator);
                }
            }
            None if proved => return Err(Fault::Unproved),
            None => {}
        }
        match *code {
            ACCESS_ACCEPT => {
                let text = |value: &[u8]| std::str::from_utf8(value).ok().map(str::to_owned);
                let named = all.iter().filter(|a| a.kind == SIP_AOR);
                Ok(Answer::Accept(named.filter_map(|a| text(a.value)).collect()))
            }
            ACCESS_REJECT | ACCESS_CHALLENGE => Ok(Answer::Reject),
            _ => Err(Fault::Code),
        }
    }
}

/// An attribute of an answer, and where its value begins.
struct Attribute<'a> {
    kind: u8,
    at: usize,
    value: &'a [u8],
}

/// The attributes one after the other; `None` when a length is wrong.
fn read(bytes: &[u8]) -> Option<Vec<Attribute<'_>>> {
    let (mut all, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let (kind, length) = (*bytes.get(at)?, usize::from(*bytes.get(at + 1)?));
        let value = bytes.get(at + 2..at + length)?;
        all.push(Attribute { kind, at: at + 2, value });
        at += length;
    }
    Some(all)
}

fn proof<'a>(all: &[Attribute<'a>]) -> Option<(usize, &'a [u8])> {
    let found = all.iter().find(|a| a.kind == MESSAGE_AUTHENTICATOR && a.value.len() == 16)?;
    Some((found.at, found.value))
}

/// Compares without telling by time where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}

/// HMAC-MD5 (RFC 2104).
fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let short: [u8; 16] = Md5::digest(key).into();
    let key = if key.len() > 64 { &short[..] } else { key };
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        for (b, k) in block.iter_mut().zip(key) {
            *b ^= k;
        }
        block
    };
    let mut inner = Md5::new_with_prefix(pad(0x36));
    for part in parts {
        inner.update(part);
    }
    Md5::new_with_prefix(pad(0x5c)).chain_update(inner.finalize()).finalize().into()
}

#[cfg(test)]
mod tests;
