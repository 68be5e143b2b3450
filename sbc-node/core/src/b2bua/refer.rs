//! REFER inside a dialog (RFC 3515), and what it leaves in other requests: Refer-To and
//! Referred-By are written with our host, the identifiers in Replaces with those of the other
//! side, `refer;id=` with the CSeq of the other leg, and `message/sipfrag` shrinks to its first
//! line.

use super::call::{Asked, Call};
use super::env::Cx;
use super::exchange::Body;
use super::hide::Hosted;
use super::table::Calls;
use crate::media::Side;
use crate::net::Host;
use crate::sip::value::FromValue;
use crate::sip::{HeaderName, Message, NameAddr, UriRef, percent_decode};
use bytes::Bytes;

/// REFERs of a call whose NOTIFYs may still come.
const REFERS_MAX: usize = 8;

/// What a REFER needs to know of other calls, looked up before its own call acts.
pub(crate) struct Referral {
    /// Value of Replaces for the other side, escaped for a URI.
    pub(crate) replaces: Option<String>,
    /// It names a dialog that is none of ours.
    pub(crate) unknown: bool,
}

impl Calls {
    /// Looks up the dialog that the Refer-To of a REFER names.
    pub(crate) fn referral(&self, cx: &Cx<'_>, message: &Message) -> Referral {
        let none = Referral { replaces: None, unknown: false };
        let Ok(Some(refer_to)) = message.first::<NameAddr<'_>>(HeaderName::ReferTo) else {
            return none;
        };
        let Ok(uri) = refer_to.uri() else { return none };
        let Some((_, value)) = uri.headers().find(|(n, _)| n.eq_ignore_ascii_case("Replaces"))
        else {
            return none;
        };
        match self.map_refer(cx, &percent_decode(value)) {
            Some(mapped) => Referral { replaces: Some(escape(&mapped)), unknown: false },
            None => Referral { replaces: None, unknown: true },
        }
    }
}

impl Call {
    /// A REFER of one side, passed to the other with everything that names its side rewritten.
    pub(crate) fn refer(&mut self, cx: &mut Cx<'_>, side: Side, asked: Asked, referral: &Referral) {
        if self.leg(side).is_some_and(|l| !l.trunk.config.refer) {
            return self.answer(cx, side, &asked, 403, &[]);
        }
        let value = asked.request.first::<NameAddr<'_>>(HeaderName::ReferTo).ok().flatten();
        let Some(uri) = value.and_then(|v| v.uri().ok()) else {
            return self.answer(cx, side, &asked, 400, &[]);
        };
        // A transfer to a dialog that we do not know would make the other side call into nowhere.
        if referral.unknown {
            return self.answer(cx, side, &asked, 481, &[]);
        }
        let Some(host) = self.contact_host(cx, side.other()) else {
            return self.answer(cx, side, &asked, 481, &[]);
        };
        let refer_to = refer_to(uri, &host, referral.replaces.as_deref());
        let mut headers = vec![(HeaderName::ReferTo, refer_to)];
        headers.extend(referred_by(&asked.request, &host));
        let seq = asked.request.cseq().map_or(0, |c| c.number);
        self.pass_on_with(cx, side, asked, headers);
        // The exchange just begun carries the other leg's number for this REFER.
        if let Some(exchange) = self.exchanges.last().filter(|e| e.to == side.other()) {
            let pair = (side, seq, exchange.client_seq);
            if self.refers.len() >= REFERS_MAX {
                self.refers.remove(0);
            }
            self.refers.push(pair);
        }
    }

    /// `Event: refer;id=N` of a NOTIFY: N is the CSeq of the REFER on the notifier's leg.
    pub(crate) fn mapped_event(&self, from: Side, message: &Message) -> Option<String> {
        let value = message.header(HeaderName::Event)?;
        let (package, params) = value.split_once(';')?;
        if !package.trim().eq_ignore_ascii_case("refer") {
            return None;
        }
        let id: u32 = crate::sip::Params(params).get("id")?.parse().ok()?;
        let pair = self.refers.iter().find_map(|&(referrer, theirs, ours)| {
            match (referrer == from, id) {
                // A SUBSCRIBE of the referrer names its own number.
                (true, id) if id == theirs => Some(ours),
                (false, id) if id == ours => Some(theirs),
                (_, _) => None,
            }
        })?;
        Some(format!("refer;id={pair}"))
    }
}

/// Refer-To with our host: the other side's call comes to us and is routed like any.
pub(crate) fn refer_to(uri: UriRef<'_>, host: &Host, replaces: Option<&str>) -> String {
    let shown = Hosted { uri, user: uri.user(), host };
    match replaces {
        Some(replaces) => format!("<{shown}?Replaces={replaces}>"),
        None => format!("<{shown}>"),
    }
}

pub(crate) fn referred_by(message: &Message, host: &Host) -> Option<(HeaderName, String)> {
    let value = NameAddr::from_value(message.header(HeaderName::ReferredBy)?).ok()?;
    let uri = value.uri().ok()?;
    let shown = Hosted { uri, user: uri.user(), host };
    let blank = if value.display_raw.is_empty() { "" } else { " " };
    Some((HeaderName::ReferredBy, format!("{}{blank}<{shown}>", value.display_raw)))
}

/// Escapes a header value for the header part of a URI (RFC 3261 §25.1 `hvalue`).
fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 16);
    for b in value.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'!' | b'~' | b'*' => {
                out.push(char::from(b));
            }
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

/// A `message/sipfrag` body (RFC 3420): only its start line says nothing about its side.
pub(crate) fn mapped_body(message: &Message) -> Body {
    let kind = message.header(HeaderName::ContentType)?;
    let main = kind.split(';').next().unwrap_or("").trim();
    if !main.eq_ignore_ascii_case("message/sipfrag") {
        return None;
    }
    let end = memchr::memchr(b'\n', message.body()).unwrap_or(message.body().len());
    let line = message.body().get(..end).unwrap_or_default().trim_ascii_end();
    // A status line is what NOTIFY of refer carries (RFC 3515 §2.4.5); a request line names hosts.
    let line: &[u8] = if line.starts_with(b"SIP/2.0 ") { line } else { b"SIP/2.0 100 Trying" };
    let mut body = line.to_vec();
    body.extend_from_slice(b"\r\n");
    Some(("message/sipfrag;version=2.0".to_owned(), Bytes::from(body)))
}
