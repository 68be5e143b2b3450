//! REFER inside a dialog (RFC 3515), and what it leaves in other requests: Refer-To is written with
//! our address, Referred-By with our host, the identifiers in Replaces with those of the other
//! side, `refer;id=` with the CSeq of the other leg, and `message/sipfrag` shrinks to its first
//! line.

use super::call::{Asked, Call};
use super::env::Cx;
use super::exchange::Body;
use super::hide::{Hosted, is_phone};
use super::table::Calls;
use crate::media::Side;
use crate::net::{Host, Listener, Transport};
use crate::sip::value::FromValue;
use crate::sip::{HeaderName, Message, NameAddr, Scheme, UriRef, percent_decode};
use bytes::Bytes;
use std::fmt;

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
        let Some(listener) = self.listener_of(cx, side.other()) else {
            return self.answer(cx, side, &asked, 481, &[]);
        };
        let refer_to = refer_to(uri, listener, referral.replaces.as_deref());
        let mut headers = vec![(HeaderName::ReferTo, refer_to)];
        headers.extend(referred_by(&asked.request, &listener.advertise_host));
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

/// Refer-To with the address of our Contact: the other side's call comes to us, by the listener that
/// it talks to already, and is routed like any.
pub(crate) fn refer_to(uri: UriRef<'_>, at: &Listener, replaces: Option<&str>) -> String {
    let shown = Referred { uri, at };
    match replaces {
        Some(replaces) => format!("<{shown}?Replaces={replaces}>"),
        None => format!("<{shown}>"),
    }
}

/// A URI with our address in place of its own. A port that goes without saying (RFC 3261 §19.1.2) is
/// left out; tel URIs have no host and stay as they are.
struct Referred<'a> {
    uri: UriRef<'a>,
    at: &'a Listener,
}

impl fmt::Display for Referred<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.uri.scheme() == Scheme::Tel {
            return f.write_str(self.uri.as_str());
        }
        let sips = self.uri.scheme() == Scheme::Sips;
        f.write_str(if sips { "sips:" } else { "sip:" })?;
        if let Some(user) = self.uri.user().filter(|u| !u.is_empty()) {
            write!(f, "{user}@")?;
        }
        write!(f, "{}", self.at.advertise_host)?;
        let transport = if sips { Transport::Tls } else { self.at.transport };
        if self.at.advertise_port != transport.default_port() {
            write!(f, ":{}", self.at.advertise_port)?;
        }
        // The scheme sips says by itself that TLS is wanted.
        if let Some(param) = transport.uri_param().filter(|_| !sips) {
            write!(f, ";transport={param}")?;
        }
        if is_phone(self.uri) { f.write_str(";user=phone") } else { Ok(()) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3515_refer_to_names_the_listener_that_the_other_side_knows() {
        let at = |transport, port, host: &str| Listener {
            transport,
            local: ([192, 0, 2, 1], 5060).into(),
            advertise_host: host.parse().map_or_else(|_| Host::Name(host.into()), Host::Ip),
            advertise_port: port,
            retired: false,
        };
        let (udp, tcp, tls) = (Transport::Udp, Transport::Tcp, Transport::Tls);
        for (uri, listener, wanted) in [
            (
                "sip:a@b.example:5099;transport=tcp",
                at(udp, 5060, "203.0.113.9"),
                "<sip:a@203.0.113.9>",
            ),
            ("sip:a@b.example", at(udp, 5080, "203.0.113.9"), "<sip:a@203.0.113.9:5080>"),
            ("sip:a@b.example", at(udp, 5080, "2001:db8::9"), "<sip:a@[2001:db8::9]:5080>"),
            (
                "sip:+49@b;user=phone",
                at(tcp, 5080, "sbc.example"),
                "<sip:+49@sbc.example:5080;transport=tcp;user=phone>",
            ),
            ("sip:b.example", at(tls, 5061, "sbc.example"), "<sip:sbc.example;transport=tls>"),
            ("sips:a@b.example", at(tls, 5061, "sbc.example"), "<sips:a@sbc.example>"),
            ("sips:a@b.example", at(tls, 5071, "sbc.example"), "<sips:a@sbc.example:5071>"),
            ("tel:+4940777", at(tcp, 5080, "sbc.example"), "<tel:+4940777>"),
        ] {
            let parsed = UriRef::parse(uri).expect(uri);
            assert_eq!(refer_to(parsed, &listener, None), wanted, "{uri}");
        }
        let parsed = UriRef::parse("sip:a@b").expect("uri");
        let named = refer_to(parsed, &at(udp, 5080, "203.0.113.9"), Some("x%3Bto-tag%3D1"));
        assert_eq!(named, "<sip:a@203.0.113.9:5080?Replaces=x%3Bto-tag%3D1>");
    }
}
