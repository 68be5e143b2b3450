//! Numbers and addresses as text, without the machinery of `fmt`: it is a tenth of a call's cost.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

/// The digits of a number, kept in place.
pub(crate) struct Decimal {
    digits: [u8; 20],
    at: usize,
}

impl Decimal {
    #[inline]
    pub(crate) fn new(mut n: u64) -> Self {
        let mut digits = [b'0'; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            if let (Some(slot), Ok(digit)) = (digits.get_mut(at), u8::try_from(n % 10)) {
                *slot = b'0' + digit;
            }
            n /= 10;
            if n == 0 {
                return Decimal { digits, at };
            }
        }
    }

    #[inline]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.digits.get(self.at..).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

/// An IPv4 address in dotted form, kept in place.
pub(crate) struct Dotted {
    text: [u8; 15],
    len: usize,
}

impl Dotted {
    #[inline]
    pub(crate) fn new(ip: Ipv4Addr) -> Self {
        let mut dotted = Dotted { text: [0; 15], len: 0 };
        for (n, octet) in ip.octets().into_iter().enumerate() {
            if n > 0 {
                dotted.push(b'.');
            }
            if octet >= 100 {
                dotted.push(b'0' + octet / 100);
            }
            if octet >= 10 {
                dotted.push(b'0' + octet / 10 % 10);
            }
            dotted.push(b'0' + octet % 10);
        }
        dotted
    }

    #[inline]
    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.text.get_mut(self.len) {
            *slot = byte;
            self.len += 1;
        }
    }

    #[inline]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

/// Appends a decimal number.
pub(crate) fn push_number(out: &mut String, n: impl Into<u64>) {
    out.push_str(Decimal::new(n.into()).as_str());
}

/// Appends an address, IPv6 without brackets.
pub(crate) fn push_ip(out: &mut String, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => out.push_str(Dotted::new(ip).as_str()),
        // Writing to a String cannot fail.
        IpAddr::V6(ip) => drop(write!(out, "{ip}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_addresses_read_as_fmt_writes_them() {
        for n in [0, 1, 9, 10, 99, 100, 65_535, 4_294_967_295, u64::MAX] {
            assert_eq!(Decimal::new(n).as_str(), n.to_string());
        }
        for octets in [[0, 0, 0, 0], [1, 20, 100, 255], [255; 4], [10, 9, 99, 101]] {
            let ip = Ipv4Addr::from(octets);
            assert_eq!(Dotted::new(ip).as_str(), ip.to_string());
        }
        let mut text = String::new();
        push_ip(&mut text, "2001:db8::1".parse().expect("address"));
        push_number(&mut text, 7u16);
        assert_eq!(text, "2001:db8::17");
    }
}
