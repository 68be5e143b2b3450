//! `o=` and `c=` (RFC 8866 §5.2, §5.7), and what kind of address one is.

use std::net::IpAddr;

use crate::text::push_ip;

/// The originator of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    pub username: &'a str,
    pub session_id: &'a str,
    pub version: &'a str,
    /// `IP4` or `IP6` as written.
    pub address_type: &'a str,
    pub address: &'a str,
}

impl<'a> Origin<'a> {
    pub(super) fn parse(value: &'a str) -> Option<Self> {
        let mut fields = fields(value);
        let mut next = || fields.next();
        let (username, session_id, version) = (next()?, next()?, next()?);
        let (_net_type, address_type, address) = (next()?, next()?, next()?);
        Some(Origin { username, session_id, version, address_type, address })
    }

    /// Whether both name the same version of the same session (RFC 3264 §8): nothing has changed.
    pub fn same_version(&self, other: &Origin<'_>) -> bool {
        self.session_id == other.session_id
            && self.version == other.version
            && self.username == other.username
            && self.address == other.address
    }
}

/// Where a stream is received, from `c=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection<'a> {
    Ip(IpAddr),
    /// A host name: legal, never resolved by the SBC.
    Name(&'a str),
}

impl<'a> Connection<'a> {
    pub(super) fn parse(value: &'a str) -> Option<Self> {
        let mut fields = fields(value);
        let net = fields.next()?;
        let kind = fields.next()?;
        let address = fields.next()?;
        if !net.eq_ignore_ascii_case("IN") {
            return None;
        }
        // Multicast carries `/ttl` and `/count`.
        let end = address.bytes().position(|b| b == b'/').unwrap_or(address.len());
        let host = address.get(..end).unwrap_or("");
        match host.parse::<IpAddr>() {
            Ok(ip) if ip.is_ipv4() == kind.eq_ignore_ascii_case("IP4") => Some(Connection::Ip(ip)),
            Ok(_) => None,
            Err(_) if kind.eq_ignore_ascii_case("IP4") || kind.eq_ignore_ascii_case("IP6") => {
                let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
                let name = host.bytes().any(|b| b.is_ascii_alphabetic()) && host.bytes().all(legal);
                name.then_some(Connection::Name(host))
            }
            Err(_) => None,
        }
    }

    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Connection::Ip(ip) => Some(ip),
            Connection::Name(_) => None,
        }
    }
}

/// `IN IP4 192.0.2.1`.
pub(super) fn net_address(ip: IpAddr) -> String {
    let mut text = String::with_capacity(24);
    push_net_address(&mut text, ip);
    text
}

/// Appends the same.
pub(super) fn push_net_address(out: &mut String, ip: IpAddr) {
    out.push_str(if ip.is_ipv4() { "IN IP4 " } else { "IN IP6 " });
    push_ip(out, ip);
}

/// The fields of a value, divided by one or more blanks.
pub(super) fn fields(value: &str) -> impl Iterator<Item = &str> {
    let mut rest = value;
    std::iter::from_fn(move || {
        loop {
            let bytes = rest.as_bytes();
            if bytes.is_empty() {
                return None;
            }
            let end = bytes.iter().position(|b| *b == b' ').unwrap_or(bytes.len());
            let field = rest.get(..end)?;
            rest = rest.get(end + 1..).unwrap_or("");
            if !field.is_empty() {
                return Some(field);
            }
        }
    })
}

/// What kind of place an address is; whether media may go there is policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressClass {
    /// A public or private unicast address.
    Unicast,
    /// `0.0.0.0` or `::`: hold in old offers (RFC 3264 §8.4), never a destination.
    Unspecified,
    Loopback,
    Multicast,
    /// `169.254/16`, `fe80::/10`: among them cloud metadata services.
    LinkLocal,
    /// `255.255.255.255`, `0/8`, `240/4`.
    Reserved,
}

/// Classifies an address; IPv4-mapped IPv6 counts as the IPv4 address that it is.
pub fn address_class(ip: IpAddr) -> AddressClass {
    match ip.to_canonical() {
        ip if ip.is_unspecified() => AddressClass::Unspecified,
        ip if ip.is_loopback() => AddressClass::Loopback,
        ip if ip.is_multicast() => AddressClass::Multicast,
        IpAddr::V4(v4) if v4.is_link_local() => AddressClass::LinkLocal,
        IpAddr::V4(v4) if matches!(v4.octets(), [0 | 240..=255, ..]) => AddressClass::Reserved,
        IpAddr::V6(v6) if v6.is_unicast_link_local() => AddressClass::LinkLocal,
        IpAddr::V4(_) | IpAddr::V6(_) => AddressClass::Unicast,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        for (ip, class) in [
            ("192.0.2.1", AddressClass::Unicast),
            ("10.0.0.1", AddressClass::Unicast),
            ("2001:db8::1", AddressClass::Unicast),
            ("0.0.0.0", AddressClass::Unspecified),
            ("::", AddressClass::Unspecified),
            ("::ffff:127.0.0.1", AddressClass::Loopback),
            ("::1", AddressClass::Loopback),
            ("239.1.1.1", AddressClass::Multicast),
            ("ff02::1", AddressClass::Multicast),
            ("169.254.169.254", AddressClass::LinkLocal),
            ("fe80::1", AddressClass::LinkLocal),
            ("255.255.255.255", AddressClass::Reserved),
            ("0.1.2.3", AddressClass::Reserved),
        ] {
            assert_eq!(address_class(ip.parse().expect(ip)), class, "{ip}");
        }
    }

    #[test]
    fn connections() {
        for (value, expected) in [
            ("IN IP4 192.0.2.1", Some(Connection::Ip("192.0.2.1".parse().expect("ip")))),
            ("IN IP4 224.2.1.1/127", Some(Connection::Ip("224.2.1.1".parse().expect("ip")))),
            ("IN IP6 ::1", Some(Connection::Ip("::1".parse().expect("ip")))),
            ("IN IP4 host.example.com", Some(Connection::Name("host.example.com"))),
            ("IN IP4 ::1", None),
            ("IN IP4 999.1.1.1", None),
            ("IN IP4", None),
            ("ATM NSAP 47", None),
        ] {
            assert_eq!(Connection::parse(value), expected, "{value}");
        }
    }
}
