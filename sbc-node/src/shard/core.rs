//! The SIP core as the machine of a shard.

use std::time::Instant;

use bytes::Bytes;
use sbc_core::core::{Core, Input, Output};
use sbc_core::media::Anchor;
use sbc_core::net::Flow;
use sbc_core::sip::{self, HeaderName, Limits, Method};

use super::Machine;

/// Seconds after which a refused caller may come back (RFC 3261 §20.33).
const RETRY_AFTER: u32 = 5;

impl Machine for Core {
    fn handle(&mut self, now: Instant, input: Input, anchor: &mut dyn Anchor) {
        Core::handle(self, now, input, anchor);
    }

    fn poll(&mut self) -> Option<Output> {
        Core::poll(self)
    }

    fn deadline(&self) -> Option<Instant> {
        Core::deadline(self)
    }

    fn owner(&self, data: &[u8], shards: usize) -> Option<usize> {
        let shard = self.hint(data).shard(u32::try_from(shards).unwrap_or(u32::MAX));
        usize::try_from(shard).ok()
    }

    fn lets_in(&self, now: Instant, flow: &Flow) -> bool {
        Core::lets_in(self, now, flow)
    }

    fn welcomes(&self, now: Instant, flow: &Flow) -> bool {
        Core::welcomes(self, now, flow)
    }

    fn overloaded(data: &[u8]) -> Option<Bytes> {
        let request = sip::salvage(Bytes::copy_from_slice(data), &Limits::default())?;
        if !request.is_request() || request.method() == Some(&Method::Ack) {
            return None;
        }
        let mut answer = sip::response(&request, 503, "", Some("overload"), None);
        answer.header(HeaderName::RetryAfter, RETRY_AFTER);
        Some(answer.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3261_a_refused_request_is_told_when_to_come_back_and_an_ack_nothing() {
        let request = "INVITE sip:x SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\n\
             From: <sip:a@x>;tag=1\r\nTo: <sip:b@x>\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\n\
             Content-Length: 0\r\n\r\n";
        let answer = <Core as Machine>::overloaded(request.as_bytes()).unwrap();
        let text = std::str::from_utf8(&answer).unwrap();
        assert!(text.starts_with("SIP/2.0 503 Service Unavailable\r\n"), "{text}");
        assert!(text.contains("Retry-After: 5\r\n"), "{text}");
        let ack = request.replace("INVITE", "ACK");
        assert_eq!(<Core as Machine>::overloaded(ack.as_bytes()), None);
        assert_eq!(<Core as Machine>::overloaded(b"SIP/2.0 200 OK\r\n\r\n"), None);
    }
}
