//! Far-end NAT: whether what a phone says of itself can be believed.

use std::net::IpAddr;

use crate::net::Flow;
use crate::sip::{UriRef, Via};

/// Whether a contact must be reached by where its REGISTER came from: the Via or the Contact name
/// an address other than the source, a port that a symmetric source does not have, or no address at all
/// that could be resolved (`.invalid`, RFC 7118 §5).
pub fn is_natted(flow: &Flow, via: &Via<'_>, contact: &UriRef<'_>) -> bool {
    let host = contact.host();
    if host.len() >= 8
        && host.get(host.len() - 8..).is_some_and(|h| h.eq_ignore_ascii_case(".invalid"))
    {
        return true;
    }
    let elsewhere = |ip: IpAddr| canonical(ip) != canonical(flow.remote.ip());
    if via.ip().is_some_and(elsewhere) {
        return true;
    }
    match contact.ip() {
        Some(ip) if elsewhere(ip) => true,
        Some(_) if flow.transport.is_reliable() => false,
        // Who asks for `rport` sends from where it listens (RFC 3581 §4).
        Some(_) => {
            let port = contact.port().unwrap_or(flow.transport.default_port());
            via.params.has("rport") && port != flow.remote.port()
        }
        None => false,
    }
}

fn canonical(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}
