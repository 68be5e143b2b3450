//! Messages that follow from another: responses (RFC 3261 §8.2.6), the ACK of a failure
//! (§17.1.1.3) and CANCEL (§9.1).
//!
//! What a B2BUA puts beyond the mandatory headers is its own business.

use std::net::SocketAddr;

use bytes::Bytes;

use super::message::Message;
use super::method::{Method, reason_phrase};
use super::name::HeaderName;
use super::parse::{Limits, ParseError, salvage};
use super::scan::List;
use super::value::{CSeq, Via};
use super::write::{Builder, Out, WriteValue};

/// Begins the response to `request`: Via list, From, To, Call-ID, CSeq, and Timestamp for 100.
///
/// - an empty `reason` stands for the registered phrase;
/// - `to_tag` is added when the request's To has none (give it for all but 100);
/// - `source` is where the request came from: it becomes `received` (RFC 3261 §18.2.1) and, where
///   asked for, `rport` (RFC 3581 §4) of the top Via.
///
/// Record-Route must be copied by the caller into dialog-forming responses (§12.1.1).
pub fn response(
    request: &Message,
    status: u16,
    reason: &str,
    to_tag: Option<&str>,
    source: Option<SocketAddr>,
) -> Builder {
    let mut out = Builder::response(status, reason);
    for (i, line) in request.headers_named(HeaderName::Via).enumerate() {
        match (source, request.via()) {
            (Some(source), Ok(via)) if i == 0 => {
                out.header(HeaderName::Via, TopVia { line: line.value, via, source });
            }
            _ => {
                out.line(line);
            }
        }
    }
    out.copy(request, HeaderName::From);
    match to_tag {
        Some(tag) if request.to().is_ok_and(|to| !to.params.has("tag")) => {
            out.header(
                HeaderName::To,
                (request.header(HeaderName::To).unwrap_or(""), ";tag=", tag),
            );
        }
        _ => {
            out.copy(request, HeaderName::To);
        }
    }
    out.copy(request, HeaderName::CallId).copy(request, HeaderName::CSeq);
    if status == 100 {
        out.copy(request, HeaderName::Timestamp);
    }
    out
}

/// The response to a datagram that [`parse`](super::parse) refused: 400 (or 505, 513) with a reason
/// phrase that says what is wrong, if enough of a Via is there to send it by. `None`: drop it.
pub fn malformed_response(
    data: Bytes,
    error: &ParseError,
    limits: &Limits,
    source: SocketAddr,
) -> Option<Bytes> {
    let request = salvage(data, limits)?;
    let status = error.kind.status();
    let reason = format!("{}: {}", reason_phrase(status), error.kind);
    Some(response(&request, status, &reason, Some("malformed"), Some(source)).finish())
}

/// The first Via line with `received` and `rport` of its first element set from `source`.
struct TopVia<'a> {
    line: &'a str,
    via: Via<'a>,
    source: SocketAddr,
}

impl WriteValue for TopVia<'_> {
    fn write_value(&self, out: &mut Out<'_>) {
        let first = List::new(self.line).next().unwrap_or("");
        let via = &self.via;
        Via { params: Default::default(), ..*via }.write_value(out);
        let mut rport = false;
        for (name, value) in via.params.iter() {
            if name.eq_ignore_ascii_case("rport") {
                rport = true;
                continue;
            }
            if name.eq_ignore_ascii_case("received") {
                continue;
            }
            (";", name).write_value(out);
            if let Some(value) = value {
                ("=", value).write_value(out);
            }
        }
        // RFC 3581 §4: with rport, received is added even where it says nothing new.
        if rport || via.ip() != Some(self.source.ip()) {
            (";received=", self.source.ip()).write_value(out);
        }
        if rport {
            (";rport=", self.source.port()).write_value(out);
        }
        let begin = first.as_ptr() as usize - self.line.as_ptr() as usize;
        out.str(self.line.get(begin + first.len()..).unwrap_or(""));
    }
}

/// The ACK for a non-2xx final response to `invite`, which is the INVITE as it was sent.
pub fn ack_for_failure(invite: &Message, response: &Message) -> Bytes {
    let mut out = Builder::request(&Method::Ack, invite.request_uri_str());
    same_hop(&mut out, invite, "ACK", response);
    out.finish()
}

/// The CANCEL of `invite`, which is the INVITE as it was sent; `reason` is the value of a Reason
/// header (RFC 3326).
pub fn cancel_for(invite: &Message, reason: Option<&str>) -> Bytes {
    let mut out = Builder::request(&Method::Cancel, invite.request_uri_str());
    same_hop(&mut out, invite, "CANCEL", invite);
    if let Some(reason) = reason {
        out.header(HeaderName::Reason, reason);
    }
    out.finish()
}

/// Top Via, Route set, From, Call-ID, CSeq number of the INVITE; To of `to`.
fn same_hop(out: &mut Builder, invite: &Message, method: &str, to: &Message) {
    let via = invite.header(HeaderName::Via).unwrap_or("");
    out.header(HeaderName::Via, List::new(via).next().unwrap_or(""));
    out.header(HeaderName::MaxForwards, 70u8);
    out.copy(invite, HeaderName::Route).copy(invite, HeaderName::From);
    out.copy(to, HeaderName::To).copy(invite, HeaderName::CallId);
    if let Ok(cseq) = invite.cseq() {
        out.header(HeaderName::CSeq, CSeq { number: cseq.number, method });
    }
}
