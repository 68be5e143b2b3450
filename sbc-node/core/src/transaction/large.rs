//! Requests too large for UDP: RFC 3261 §18.1.1.
//!
//! The switch rewrites transport and sent-by of the topmost Via, so that neither the TU nor its
//! numbers have to know. Whether to switch is the TU's policy.

use bytes::Bytes;

use crate::core::Destination;
use crate::net::{Target, Transport};

/// Bytes above which a request shall not leave by UDP while the path MTU is unknown.
pub const UDP_LIMIT: usize = 1300;

/// The same request by TCP, its Via naming our TCP listener; `None` where it does not apply: the
/// destination is a flow or not UDP, or the topmost Via does not say UDP.
pub(super) fn switch(
    dest: &Destination,
    data: &Bytes,
    sent_by: &str,
) -> Option<(Destination, Bytes)> {
    let Destination::Target { interface, target } = *dest else { return None };
    if target.transport != Transport::Udp {
        return None;
    }
    let data = by_tcp(data, sent_by)?;
    let target = Target { transport: Transport::Tcp, ..target };
    Some((Destination::Target { interface, target }, data))
}

/// Of a message that we wrote ourselves: its first Via line with another transport and sent-by.
fn by_tcp(data: &Bytes, sent_by: &str) -> Option<Bytes> {
    const BEFORE: &[u8] = b"\r\nVia: SIP/2.0/";
    const UDP: &[u8] = b"UDP ";
    let at = memchr::memmem::find(data, BEFORE)? + BEFORE.len();
    let rest = data.get(at..)?.strip_prefix(UDP)?;
    let end = rest.iter().position(|b| matches!(b, b';' | b',' | b'\r'))?;
    let mut copy = Vec::with_capacity(data.len() + sent_by.len());
    copy.extend_from_slice(data.get(..at)?);
    copy.extend_from_slice(b"TCP ");
    copy.extend_from_slice(sent_by.as_bytes());
    copy.extend_from_slice(rest.get(end..)?);
    Some(copy.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::InterfaceId;

    const REQUEST: &[u8] =
        b"INVITE sip:UDP@h SIP/2.0\r\nVia: SIP/2.0/UDP h:5060;branch=z9hG4bK1\r\nTo: <sip:UDP@h>\r\n\r\n";

    fn dest(transport: Transport) -> Destination {
        let addr = "192.0.2.9:5060".parse().expect("addr");
        Destination::Target { interface: InterfaceId(0), target: Target::new(transport, addr) }
    }

    #[test]
    fn rfc3261_18_1_1_the_via_names_the_listener_of_the_transport() {
        let data = Bytes::from_static(REQUEST);
        let (to, tcp) = switch(&dest(Transport::Udp), &data, "h:5070").expect("switch");
        assert_eq!(to, dest(Transport::Tcp));
        let text = std::str::from_utf8(&tcp).expect("utf-8");
        assert_eq!(
            text,
            String::from_utf8_lossy(REQUEST).replace("2.0/UDP h:5060", "2.0/TCP h:5070")
        );
    }

    #[test]
    fn leaves_other_transports_alone() {
        let data = Bytes::from_static(REQUEST);
        assert!(switch(&dest(Transport::Tls), &data, "h").is_none());
        assert!(switch(&dest(Transport::Tcp), &data, "h").is_none());
        let tcp = Bytes::from(String::from_utf8_lossy(REQUEST).replace("2.0/UDP", "2.0/TCP"));
        assert!(switch(&dest(Transport::Udp), &tcp, "h").is_none());
    }
}
