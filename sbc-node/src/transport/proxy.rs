//! The PROXY protocol, version 2: a load balancer in front says where a connection comes from.

use std::net::{IpAddr, SocketAddr};

use ppp::v2::{Addresses, Command, Header, ParseError};

/// Longest header that is taken: addresses and some TLVs.
const HEADER_MAX: usize = 1_024;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proxied {
    /// The client; none where the balancer speaks for itself (health checks).
    pub source: Option<SocketAddr>,
    /// Bytes of the header.
    pub length: usize,
}

/// A header that is none, or is of version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY protocol v2 header")]
pub struct NoHeader;

/// Reads the header at the beginning of a connection; `None` until it is whole.
///
/// # Errors
/// When what came cannot become one.
pub fn read(data: &[u8]) -> Result<Option<Proxied>, NoHeader> {
    match Header::try_from(data) {
        Ok(header) => {
            let source = match (header.command, &header.addresses) {
                (Command::Local, _) => None,
                (Command::Proxy, Addresses::IPv4(a)) => {
                    Some(SocketAddr::new(IpAddr::V4(a.source_address), a.source_port))
                }
                (Command::Proxy, Addresses::IPv6(a)) => {
                    Some(SocketAddr::new(IpAddr::V6(a.source_address), a.source_port))
                }
                (Command::Proxy, Addresses::Unspecified | Addresses::Unix(_)) => None,
            };
            Ok(Some(Proxied { source, length: header.len() }))
        }
        Err(ParseError::Incomplete(_) | ParseError::Partial(_, _)) if data.len() < HEADER_MAX => {
            Ok(None)
        }
        Err(_) => Err(NoHeader),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4() -> Vec<u8> {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
        header.extend([198, 51, 100, 7, 10, 0, 0, 1, 0x9c, 0x40, 0x13, 0xc5]);
        header
    }

    #[test]
    fn the_client_is_who_the_header_says() {
        let mut data = v4();
        let source = Some("198.51.100.7:40000".parse().unwrap());
        let whole = Ok(Some(Proxied { source, length: 28 }));
        assert_eq!(read(&data), whole);
        data.extend(b"OPTIONS");
        assert_eq!(read(&data), whole);
        for cut in 0..28 {
            assert_eq!(read(&v4()[..cut]), Ok(None), "cut at {cut}");
        }
    }

    #[test]
    fn a_health_check_stands_for_itself_and_garbage_is_refused() {
        let mut local = v4();
        local[12] = 0x20;
        assert_eq!(read(&local).map(|p| p.and_then(|p| p.source)), Ok(None));
        assert_eq!(read(b"OPTIONS sip:x SIP/2.0\r\n"), Err(NoHeader));
        assert_eq!(read(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"), Err(NoHeader));
        let mut long = v4();
        long[14..16].copy_from_slice(&[0xff, 0xff]);
        long.resize(2_000, 0);
        assert_eq!(read(&long), Err(NoHeader));
    }
}
