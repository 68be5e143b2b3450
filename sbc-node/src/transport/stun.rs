//! STUN binding requests on the SIP port (RFC 5626 §3.5.2, RFC 8489): answered with the address that
//! they came from, at a bounded rate, and nothing more.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const HEADER: usize = 20;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_ERROR: u16 = 0x0111;
const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// Unknown attributes that an error names at most.
const UNKNOWN_MAX: usize = 8;

/// Whether a datagram is STUN and not SIP: the two zero bits, the cookie (RFC 5764 §5.1.2).
pub fn is_stun(data: &[u8]) -> bool {
    data.first().is_some_and(|b| *b < 4) && data.get(4..8) == Some(&COOKIE)
}

/// The answer to a binding request from `source`; `None` for everything that gets none:
/// indications, responses, what is malformed (RFC 8489 §6.3).
pub fn answer(data: &[u8], source: SocketAddr) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u16::from_be_bytes([*data.get(at)?, *data.get(at + 1)?]));
    let length = usize::from(word(2)?);
    if word(0)? != BINDING_REQUEST || length % 4 != 0 || data.len() != HEADER + length {
        return None;
    }
    let transaction: [u8; 16] = data.get(4..HEADER)?.try_into().ok()?;
    let mut unknown = Vec::new();
    let mut at = HEADER;
    while at < data.len() {
        let (kind, size) = (word(at)?, usize::from(word(at + 2)?));
        // Below 0x8000 an attribute must be understood; credentials are asked of nobody here, so
        // that USERNAME (6) and the two integrities (8, 0x1c) need no answer of their own.
        if kind < 0x8000 && !matches!(kind, 0x0006 | 0x0008 | 0x001c) && unknown.len() < UNKNOWN_MAX
        {
            unknown.push(kind);
        }
        at += 4 + size.next_multiple_of(4);
    }
    if at != data.len() {
        return None;
    }
    Some(if unknown.is_empty() {
        message(BINDING_SUCCESS, transaction, &[(XOR_MAPPED_ADDRESS, mapped(source, transaction))])
    } else {
        let code = [&[0, 0, 4, 20], &b"Unknown Attribute"[..]].concat();
        let list = unknown.iter().flat_map(|kind| kind.to_be_bytes()).collect();
        message(BINDING_ERROR, transaction, &[(ERROR_CODE, code), (UNKNOWN_ATTRIBUTES, list)])
    })
}

/// `transaction` is the cookie and the id behind it.
fn message(kind: u16, transaction: [u8; 16], attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, value) in attributes {
        body.extend(kind.to_be_bytes());
        body.extend(u16::try_from(value.len()).unwrap_or(0).to_be_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let length = u16::try_from(body.len()).unwrap_or(0);
    [&kind.to_be_bytes()[..], &length.to_be_bytes(), &transaction, &body].concat()
}

/// The value of XOR-MAPPED-ADDRESS (RFC 8489 §14.2).
fn mapped(source: SocketAddr, transaction: [u8; 16]) -> Vec<u8> {
    let port = source.port() ^ 0x2112;
    let (family, address): (u8, Vec<u8>) = match source.ip().to_canonical() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    let address = address.iter().zip(transaction).map(|(a, b)| a ^ b);
    [0, family].into_iter().chain(port.to_be_bytes()).chain(address).collect()
}

/// Answers per second of one shard, with as many at once.
#[derive(Debug)]
pub struct Rate {
    per_second: u32,
    left: u32,
    since: Option<Instant>,
}

impl Rate {
    /// 0 answers nothing.
    pub fn new(per_second: u32) -> Rate {
        Rate { per_second, left: per_second, since: None }
    }

    /// Whether one more may be answered.
    pub fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since).as_secs() >= 1 {
            (self.left, self.since) = (self.per_second, Some(now));
        }
        let room = self.left > 0;
        self.left = self.left.saturating_sub(1);
        room
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn request(attributes: &[u8]) -> Vec<u8> {
        let length = u16::try_from(attributes.len()).unwrap().to_be_bytes();
        let id = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];
        [&[0, 1][..], &length, &COOKIE, &id, attributes].concat()
    }

    #[test]
    fn rfc5769_a_request_hears_its_own_address() {
        // §2.2 and §2.3: 192.0.2.1 and 2001:db8:1234:5678:11:2233:4455:6677, port 32853.
        let v4 = answer(&request(&[]), "192.0.2.1:32853".parse().unwrap()).unwrap();
        assert_eq!(&v4[..4], [1, 1, 0, 12]);
        assert_eq!(&v4[20..], [0, 0x20, 0, 8, 0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
        let source = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap();
        let v6 = answer(&request(&[]), source).unwrap();
        let address = [
            0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79, 0xbc, 0x25, 0xf4, 0xb5, 0xbe, 0xd2,
            0xb9, 0xd9,
        ];
        assert_eq!(&v6[20..28], [0, 0x20, 0, 20, 0, 2, 0xa1, 0x47]);
        assert_eq!(&v6[28..], address);
    }

    #[test]
    fn rfc8489_what_must_be_understood_and_is_not_is_named() {
        let odd = answer(&request(&[0x7f, 1, 0, 1, 9, 0, 0, 0]), "192.0.2.1:1".parse().unwrap());
        let odd = odd.unwrap();
        assert_eq!(&odd[..2], [1, 0x11]);
        assert_eq!(&odd[24..28], [0, 0, 4, 20]);
        assert!(odd.ends_with(&[0, 0x0a, 0, 2, 0x7f, 1, 0, 0]));
        // SOFTWARE and FINGERPRINT may be ignored.
        let known = request(&[0x80, 0x22, 0, 4, b't', b'e', b's', b't']);
        assert_eq!(answer(&known, "192.0.2.1:1".parse().unwrap()).unwrap()[..2], [1, 1]);
    }

    #[test]
    fn what_is_no_request_gets_no_answer() {
        let source = "192.0.2.1:1".parse().unwrap();
        let mut indication = request(&[]);
        indication[1] = 0x11;
        let mut short = request(&[0x80, 0x22, 0, 9, 1, 2, 3, 4]);
        for bad in [indication, request(&[])[..19].to_vec(), short.clone(), vec![0; 20]] {
            assert_eq!(answer(&bad, source), None);
        }
        assert!(is_stun(&short) && !is_stun(b"OPTIONS sip:x SIP/2.0\r\n") && !is_stun(&[0, 1]));
        short.truncate(3);
        assert!(!is_stun(&short));
    }

    #[test]
    fn the_rate_is_bounded() {
        let start = Instant::now();
        let mut rate = Rate::new(2);
        assert_eq!([rate.take(start), rate.take(start), rate.take(start)], [true, true, false]);
        assert!(rate.take(start + Duration::from_secs(1)));
        assert!(!Rate::new(0).take(start));
    }
}
