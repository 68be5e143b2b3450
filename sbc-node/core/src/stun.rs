//! STUN binding (RFC 8489), as much as SIP needs: requests answered with the address that they came
//! from, requests of our own, and the answers to them. No sockets, no table, no credentials.

use std::net::{IpAddr, SocketAddr};

use crate::ids::ShardHint;

/// Names a transaction: 96 bits behind the cookie.
pub type TransactionId = [u8; 12];

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const HEADER: usize = 20;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_ERROR: u16 = 0x0111;
const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const FINGERPRINT: u16 = 0x8028;
/// FINGERPRINT with its head.
const FINGERPRINT_BYTES: usize = 8;
/// What the checksum is mixed with: "STUN" (RFC 8489 §14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554e;
/// Unknown attributes that an error names at most.
const UNKNOWN_MAX: usize = 8;

/// Whether a datagram is STUN and not SIP: the two zero bits, the cookie (RFC 5764 §5.1.2).
pub fn is_stun(data: &[u8]) -> bool {
    data.first().is_some_and(|b| *b < 4) && data.get(4..8) == Some(&COOKIE)
}

/// Whether STUN says by its type that it answers a binding request.
pub fn is_response(data: &[u8]) -> bool {
    matches!(word(data, 0), Some(BINDING_SUCCESS | BINDING_ERROR))
}

/// What a request gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The address that it came from.
    Bound(Vec<u8>),
    /// 420: it holds what must be understood and is not.
    Unknown(Vec<u8>),
}

impl Reply {
    /// The datagram.
    pub fn into_bytes(self) -> Vec<u8> {
        match self {
            Reply::Bound(bytes) | Reply::Unknown(bytes) => bytes,
        }
    }
}

/// The answer to a binding request from `source`; `None` for everything that gets none:
/// indications, responses, what is malformed (RFC 8489 §6.3). FINGERPRINT is answered by FINGERPRINT.
pub fn answer(data: &[u8], source: SocketAddr) -> Option<Reply> {
    let (kind, transaction) = head(data)?;
    if kind != BINDING_REQUEST {
        return None;
    }
    let mut unknown = Vec::new();
    let mut marked = false;
    for attribute in Attributes::of(data) {
        let kind = attribute?;
        marked |= kind == FINGERPRINT;
        // Below 0x8000 an attribute must be understood; credentials are asked of nobody here, so
        // that USERNAME (6) and the two integrities (8, 0x1c) need no answer of their own.
        if kind < 0x8000 && !matches!(kind, 0x0006 | 0x0008 | 0x001c) && unknown.len() < UNKNOWN_MAX
        {
            unknown.push(kind);
        }
    }
    Some(if unknown.is_empty() {
        let address = mapped(source, transaction);
        Reply::Bound(message(
            BINDING_SUCCESS,
            transaction,
            &[(XOR_MAPPED_ADDRESS, address)],
            marked,
        ))
    } else {
        let code = [&[0, 0, 4, 20], &b"Unknown Attribute"[..]].concat();
        let list = unknown.iter().flat_map(|kind| kind.to_be_bytes()).collect();
        let attributes = [(ERROR_CODE, code), (UNKNOWN_ATTRIBUTES, list)];
        Reply::Unknown(message(BINDING_ERROR, transaction, &attributes, marked))
    })
}

/// A transaction of a shard: what answers it comes back there, whoever receives it. `random` has the
/// 64 bits that nobody may guess.
pub fn transaction(ShardHint(hint): ShardHint, random: u64) -> TransactionId {
    let mut id = [0; 12];
    let (place, rest) = id.split_at_mut(4);
    place.copy_from_slice(&hint.to_be_bytes());
    rest.copy_from_slice(&random.to_be_bytes());
    id
}

/// The shard that a response belongs to, as [`transaction`] wrote it.
pub fn hint(data: &[u8]) -> ShardHint {
    let place = data.get(8..).and_then(|id| id.first_chunk());
    ShardHint(place.map_or(0, |place| u32::from_be_bytes(*place)))
}

/// A binding request, with FINGERPRINT.
pub fn request(id: TransactionId) -> Vec<u8> {
    message(BINDING_REQUEST, cookie_and(id), &[], true)
}

/// The transaction that a response answers, with success or with an error; `None` for what is no
/// whole response.
pub fn response(data: &[u8]) -> Option<TransactionId> {
    let (kind, _) = head(data)?;
    let whole = Attributes::of(data).all(|attribute| attribute.is_some());
    let answers = matches!(kind, BINDING_SUCCESS | BINDING_ERROR) && whole;
    answers.then(|| data.get(8..HEADER)?.try_into().ok()).flatten()
}

/// Type, and cookie with transaction, of a message whose length is right.
fn head(data: &[u8]) -> Option<(u16, [u8; 16])> {
    let length = usize::from(word(data, 2)?);
    let right = is_stun(data) && length % 4 == 0 && data.len() == HEADER + length;
    right.then(|| Some((word(data, 0)?, data.get(4..HEADER)?.try_into().ok()?)))?
}

fn word(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*data.get(at)?, *data.get(at + 1)?]))
}

fn cookie_and(id: TransactionId) -> [u8; 16] {
    let mut all = [0; 16];
    let (cookie, rest) = all.split_at_mut(4);
    cookie.copy_from_slice(&COOKIE);
    rest.copy_from_slice(&id);
    all
}

/// The attributes of a message one after the other, by their types; an item that is `None` says that
/// the message is malformed, and is the last.
struct Attributes<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Attributes<'a> {
    fn of(data: &'a [u8]) -> Self {
        Attributes { data, at: HEADER }
    }

    fn take(&mut self) -> Option<u16> {
        let (kind, size) = (word(self.data, self.at)?, usize::from(word(self.data, self.at + 2)?));
        let end = self.at + 4 + size.next_multiple_of(4);
        // FINGERPRINT is the last and right (RFC 8489 §14.7).
        let fits = kind != FINGERPRINT
            || (end == self.data.len() && self.data.get(self.at..) == Some(&self.fingerprint()?));
        if end > self.data.len() || !fits {
            return None;
        }
        self.at = end;
        Some(kind)
    }

    fn fingerprint(&self) -> Option<[u8; FINGERPRINT_BYTES]> {
        Some(fingerprint(self.data.get(..self.at)?))
    }
}

impl Iterator for Attributes<'_> {
    type Item = Option<u16>;

    fn next(&mut self) -> Option<Option<u16>> {
        if self.at >= self.data.len() {
            return None;
        }
        let taken = self.take();
        if taken.is_none() {
            self.at = self.data.len();
        }
        Some(taken)
    }
}

/// `transaction` is the cookie and the id behind it.
fn message(
    kind: u16,
    transaction: [u8; 16],
    attributes: &[(u16, Vec<u8>)],
    marked: bool,
) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, value) in attributes {
        body.extend(kind.to_be_bytes());
        body.extend(u16::try_from(value.len()).unwrap_or(0).to_be_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    // The length counts FINGERPRINT before it is made.
    let length = body.len() + if marked { FINGERPRINT_BYTES } else { 0 };
    let length = u16::try_from(length).unwrap_or(0);
    let mut all = [&kind.to_be_bytes()[..], &length.to_be_bytes(), &transaction, &body].concat();
    if marked {
        all.extend(fingerprint(&all));
    }
    all
}

/// The attribute behind what stands before it.
fn fingerprint(before: &[u8]) -> [u8; FINGERPRINT_BYTES] {
    let sum = (crc32(before) ^ FINGERPRINT_XOR).to_be_bytes();
    let [a, b] = FINGERPRINT.to_be_bytes();
    let [s0, s1, s2, s3] = sum;
    [a, b, 0, 4, s0, s1, s2, s3]
}

/// CRC-32 of ITU V.42, bit by bit: messages are short and few.
fn crc32(data: &[u8]) -> u32 {
    let step = |sum: u32| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 };
    let byte = |sum: u32, b: &u8| (0..8).fold(sum ^ u32::from(*b), |sum, _| step(sum));
    !data.iter().fold(u32::MAX, byte)
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

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TransactionId =
        [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];

    fn raw(attributes: &[u8]) -> Vec<u8> {
        let length = u16::try_from(attributes.len()).unwrap().to_be_bytes();
        [&[0, 1][..], &length, &COOKIE, &ID, attributes].concat()
    }

    fn bytes(data: &[u8], source: &str) -> Vec<u8> {
        answer(data, source.parse().unwrap()).unwrap().into_bytes()
    }

    #[test]
    fn rfc5769_a_request_hears_its_own_address() {
        // §2.2 and §2.3: 192.0.2.1 and 2001:db8:1234:5678:11:2233:4455:6677, port 32853.
        let v4 = bytes(&raw(&[]), "192.0.2.1:32853");
        assert_eq!(&v4[..4], [1, 1, 0, 12]);
        assert_eq!(&v4[20..], [0, 0x20, 0, 8, 0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
        let v6 = bytes(&raw(&[]), "[2001:db8:1234:5678:11:2233:4455:6677]:32853");
        let address = [
            0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79, 0xbc, 0x25, 0xf4, 0xb5, 0xbe, 0xd2,
            0xb9, 0xd9,
        ];
        assert_eq!(&v6[20..28], [0, 0x20, 0, 20, 0, 2, 0xa1, 0x47]);
        assert_eq!(&v6[28..], address);
    }

    #[test]
    fn rfc8489_what_must_be_understood_and_is_not_is_named() {
        let odd = answer(&raw(&[0x7f, 1, 0, 1, 9, 0, 0, 0]), "192.0.2.1:1".parse().unwrap());
        let Some(Reply::Unknown(odd)) = odd else { panic!("{odd:?}") };
        assert_eq!(&odd[..2], [1, 0x11]);
        assert_eq!(&odd[24..28], [0, 0, 4, 20]);
        assert!(odd.ends_with(&[0, 0x0a, 0, 2, 0x7f, 1, 0, 0]));
        // SOFTWARE may be ignored.
        let known = raw(&[0x80, 0x22, 0, 4, b't', b'e', b's', b't']);
        assert_eq!(bytes(&known, "192.0.2.1:1")[..2], [1, 1]);
    }

    #[test]
    fn rfc5769_the_fingerprint_of_the_sample_request() {
        // §2.1: SOFTWARE, PRIORITY, ICE-CONTROLLED, USERNAME, MESSAGE-INTEGRITY, FINGERPRINT.
        let mut sample = raw(&[
            &b"\x80\x22\x00\x10STUN test client"[..],
            b"\x00\x24\x00\x04\x6e\x00\x01\xff\x80\x29\x00\x08\x93\x2f\xf9\xb1\x51\x26\x3b\x36",
            b"\x00\x06\x00\x09evtj:h6vY   \x00\x08\x00\x14\x9a\xea\xa7\x0c\xbf\xd8\xcb\x56\x78",
            b"\x1e\xf2\xb5\xb2\xd3\xf2\x49\xc1\xb5\x71\xa2\x80\x28\x00\x04\xe5\x7a\x3b\xcf",
        ]
        .concat());
        let source = "192.0.2.1:1".parse().unwrap();
        let Some(Reply::Unknown(error)) = answer(&sample, source) else { panic!("PRIORITY") };
        assert_eq!(error[error.len() - 8..][..4], [0x80, 0x28, 0, 4], "answered by one");
        assert!(response(&error).is_some());
        *sample.last_mut().unwrap() ^= 1;
        assert_eq!(answer(&sample, source), None, "a wrong one is malformed");
    }

    #[test]
    fn our_requests_are_answered_and_their_answers_found() {
        let id = transaction(ShardHint(0x0102_0304), 0x1122_3344_5566_7788);
        let request = request(id);
        assert_eq!(request[..4], [0, 1, 0, 8]);
        assert_eq!(request[8..20], [1, 2, 3, 4, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
        assert!(is_stun(&request) && !is_response(&request));
        assert_eq!(response(&request), None, "a request answers nothing");
        let mut answer = bytes(&request, "192.0.2.1:1");
        assert!(is_response(&answer));
        assert_eq!((response(&answer), hint(&answer)), (Some(id), ShardHint(0x0102_0304)));
        assert_eq!(response(&answer[..answer.len() - 4]), None, "cut short");
        *answer.last_mut().unwrap() ^= 1;
        assert_eq!(response(&answer), None, "a wrong fingerprint");
    }

    #[test]
    fn what_is_no_request_gets_no_answer() {
        let source = "192.0.2.1:1".parse().unwrap();
        let mut indication = raw(&[]);
        indication[1] = 0x11;
        let mut short = raw(&[0x80, 0x22, 0, 9, 1, 2, 3, 4]);
        for bad in [indication, raw(&[])[..19].to_vec(), short.clone(), vec![0; 20]] {
            assert_eq!(answer(&bad, source), None);
        }
        assert!(is_stun(&short) && !is_stun(b"OPTIONS sip:x SIP/2.0\r\n") && !is_stun(&[0, 1]));
        short.truncate(3);
        assert!(!is_stun(&short));
    }
}
