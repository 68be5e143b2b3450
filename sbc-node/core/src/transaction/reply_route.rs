//! Where the response to a request goes: RFC 3261 §18.2.2 and RFC 3581 §4.
//!
//! The response's own Via is written by `sip::response`, which is given the same source address.

use std::net::{IpAddr, SocketAddr};

use crate::core::Destination;
use crate::net::{Flow, Target, Transport};
use crate::sip::Via;

/// A way back, and the second one if the first fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyRoute {
    pub dest: Destination,
    /// For stream transports: the source address with the port of `sent-by`, by a new connection.
    pub fallback: Option<Destination>,
}

/// The way back of a request that came by `flow` with `via` on top.
///
/// - Streams: the connection; then a new one to the source address and the `sent-by` port.
/// - UDP with `maddr`: that address (unicast only, we do not multicast), `sent-by` port.
/// - UDP with `rport`: exactly where it came from.
/// - Other UDP: the source address, the `sent-by` port.
pub fn reply_route(flow: &Flow, via: &Via<'_>) -> ReplyRoute {
    let port = via.port.unwrap_or(flow.transport.default_port());
    if flow.transport.is_reliable() {
        let addr = SocketAddr::new(flow.remote.ip(), port);
        let target = Target::new(flow.transport, addr);
        // Nobody listens behind a browser's WebSocket (RFC 7118 §5).
        let listens = !matches!(flow.transport, Transport::Ws | Transport::Wss);
        let fallback = Destination::Target { interface: flow.interface, target };
        return ReplyRoute {
            dest: Destination::Flow(*flow),
            fallback: listens.then_some(fallback),
        };
    }
    let (mut maddr, mut rport) = (None, false);
    for (name, value) in via.params.iter() {
        rport |= name.eq_ignore_ascii_case("rport");
        if maddr.is_none() && name.eq_ignore_ascii_case("maddr") {
            maddr = value;
        }
    }
    let remote = match maddr.and_then(|text| usable(text, flow)) {
        Some(ip) => SocketAddr::new(ip, port),
        None if rport => flow.remote,
        None => SocketAddr::new(flow.remote.ip(), port),
    };
    ReplyRoute { dest: Destination::Flow(Flow { remote, ..*flow }), fallback: None }
}

/// The address in `maddr` where it is unicast, of the flow's family, and may be written to.
fn usable(maddr: &str, flow: &Flow) -> Option<IpAddr> {
    let ip: IpAddr = maddr.trim_matches(['[', ']']).parse().ok()?;
    let usable = !ip.is_multicast() && !ip.is_unspecified() && !ip.is_loopback();
    (usable && ip.is_ipv4() == flow.remote.is_ipv4()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{ConnId, InterfaceId};
    use crate::sip::value::FromValue;

    fn flow(transport: Transport) -> Flow {
        Flow {
            interface: InterfaceId(3),
            transport,
            local: "192.0.2.1:5060".parse().expect("addr"),
            remote: "198.51.100.7:40000".parse().expect("addr"),
            conn: transport.is_reliable().then_some(ConnId(9)),
        }
    }

    fn remote(transport: Transport, via: &str) -> String {
        let via = Via::from_value(via).expect("via");
        match reply_route(&flow(transport), &via).dest {
            Destination::Flow(flow) => flow.remote.to_string(),
            Destination::Target { .. } => unreachable!("first way is the flow"),
        }
    }

    #[test]
    fn rfc3261_18_2_2_and_rfc3581_4_udp() {
        for (via, expected) in [
            ("SIP/2.0/UDP 10.0.0.1:5070;branch=z9hG4bK1", "198.51.100.7:5070"),
            ("SIP/2.0/UDP 10.0.0.1;branch=z9hG4bK1", "198.51.100.7:5060"),
            ("SIP/2.0/UDP 10.0.0.1:5070;branch=z9hG4bK1;rport", "198.51.100.7:40000"),
            ("SIP/2.0/UDP h:5070;maddr=203.0.113.5", "203.0.113.5:5070"),
            // Not to where an attacker points us, and not to many at once.
            ("SIP/2.0/UDP h:5070;maddr=127.0.0.1", "198.51.100.7:5070"),
            ("SIP/2.0/UDP h:5070;maddr=224.0.1.75", "198.51.100.7:5070"),
            ("SIP/2.0/UDP h:5070;maddr=[2001:db8::1]", "198.51.100.7:5070"),
        ] {
            assert_eq!(remote(Transport::Udp, via), expected, "{via}");
        }
    }

    #[test]
    fn rfc3261_18_2_2_streams_go_back_and_then_to_sent_by() {
        let via = Via::from_value("SIP/2.0/TCP 10.0.0.1:5070;branch=z9hG4bK1").expect("via");
        let route = reply_route(&flow(Transport::Tcp), &via);
        assert_eq!(route.dest, Destination::Flow(flow(Transport::Tcp)));
        let addr = "198.51.100.7:5070".parse().expect("addr");
        let target = Target::new(Transport::Tcp, addr);
        let fallback = Destination::Target { interface: InterfaceId(3), target };
        assert_eq!(route.fallback, Some(fallback));
        assert_eq!(reply_route(&flow(Transport::Wss), &via).fallback, None);
    }
}
