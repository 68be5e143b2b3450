//! Requests too large for UDP: RFC 3261 §18.1.1.
//!
//! The switch changes the transport in the topmost Via in place (`UDP` and `TCP` are equally long),
//! so that neither the TU nor its numbers have to know. Whether to switch is the TU's policy.

use bytes::{Bytes, BytesMut};

use crate::core::Destination;
use crate::net::{Target, Transport};

/// Bytes above which a request shall not leave by UDP while the path MTU is unknown.
pub const UDP_LIMIT: usize = 1300;

/// The same request for the other transport; `None` where it does not apply: the destination is a
/// flow or of another transport, or the topmost Via does not say `from`.
pub(super) fn switch(
    dest: &Destination,
    data: &Bytes,
    from: Transport,
    to: Transport,
) -> Option<(Destination, Bytes)> {
    let Destination::Target { interface, target } = *dest else { return None };
    if target.transport != from || from.via_token().len() != to.via_token().len() {
        return None;
    }
    let data = replace_via_transport(data, from.via_token(), to.via_token())?;
    Some((Destination::Target { interface, target: Target { transport: to, ..target } }, data))
}

fn replace_via_transport(data: &Bytes, from: &str, to: &str) -> Option<Bytes> {
    let at = top_via_transport(data)?;
    let end = at + from.len();
    if data.get(at..end)? != from.as_bytes() || data.get(end)?.is_ascii_alphanumeric() {
        return None;
    }
    let mut copy = BytesMut::from(&data[..]);
    copy.get_mut(at..end)?.copy_from_slice(to.as_bytes());
    Some(copy.freeze())
}

/// Offset of the transport in the first Via line of a message that we wrote ourselves.
fn top_via_transport(data: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"\r\nVia: SIP/2.0/";
    memchr::memmem::find(data, NAME).map(|at| at + NAME.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::InterfaceId;

    const REQUEST: &[u8] =
        b"INVITE sip:UDP@h SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nTo: <sip:UDP@h>\r\n\r\n";

    fn dest(transport: Transport) -> Destination {
        let addr = "192.0.2.9:5060".parse().expect("addr");
        Destination::Target { interface: InterfaceId(0), target: Target { transport, addr } }
    }

    #[test]
    fn rfc3261_18_1_1_switches_transport_and_back() {
        let data = Bytes::from_static(REQUEST);
        let (to, tcp) =
            switch(&dest(Transport::Udp), &data, Transport::Udp, Transport::Tcp).expect("switch");
        assert_eq!(to, dest(Transport::Tcp));
        let text = std::str::from_utf8(&tcp).expect("utf-8");
        assert_eq!(text, String::from_utf8_lossy(REQUEST).replace("2.0/UDP", "2.0/TCP"));
        let (back, udp) = switch(&to, &tcp, Transport::Tcp, Transport::Udp).expect("switch");
        assert_eq!((back, &udp[..]), (dest(Transport::Udp), REQUEST));
    }

    #[test]
    fn leaves_other_transports_alone() {
        let data = Bytes::from_static(REQUEST);
        assert!(switch(&dest(Transport::Tls), &data, Transport::Udp, Transport::Tcp).is_none());
        assert!(switch(&dest(Transport::Tcp), &data, Transport::Tcp, Transport::Udp).is_none());
    }
}
