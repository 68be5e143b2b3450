//! Via (RFC 3261 §20.42, §18.2; RFC 3581).

use std::net::{IpAddr, Ipv6Addr};

use super::{FromValue, ValueError};
use crate::sip::scan::{Params, host_run, is_host_name, is_token, number, quotes_closed, trim};
use crate::sip::write::{Out, WriteValue};

/// The magic cookie of RFC 3261 §8.1.1.7.
pub const BRANCH_COOKIE: &str = "z9hG4bK";

/// Whether a branch names an RFC 3261 transaction: the cookie in any case, and more after it.
#[inline]
pub fn has_cookie(branch: &str) -> bool {
    let branch = branch.as_bytes();
    branch.len() > BRANCH_COOKIE.len()
        && branch
            .get(..BRANCH_COOKIE.len())
            .is_some_and(|c| c.eq_ignore_ascii_case(BRANCH_COOKIE.as_bytes()))
}

/// One Via element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Via<'a> {
    /// The transport token as written: `UDP`, `TCP`, `TLS`, `WS`, `WSS`, or another.
    pub transport: &'a str,
    /// `sent-by` host; IPv6 in brackets.
    pub host: &'a str,
    pub port: Option<u16>,
    pub params: Params<'a>,
}

impl<'a> Via<'a> {
    /// The `branch` parameter; empty when absent.
    #[inline]
    pub fn branch(&self) -> &'a str {
        self.params.get("branch").unwrap_or("")
    }

    /// Whether the branch names an RFC 3261 transaction: the cookie in any case, and more after it.
    #[inline]
    pub fn has_cookie(&self) -> bool {
        has_cookie(self.branch())
    }

    /// The `sent-by` host as an address, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        parse_ip(self.host)
    }

    /// `received`, where it is an address. IPv6 is taken with and without brackets
    /// (RFC 5118 §4.5).
    pub fn received(&self) -> Option<IpAddr> {
        self.params.get("received").and_then(parse_ip)
    }

    /// Whether the client asks for a symmetric response (RFC 3581 §3): `rport` with no value.
    pub fn wants_rport(&self) -> bool {
        self.params.get("rport") == Some("")
    }

    /// The value of `rport`, when it has one.
    pub fn rport(&self) -> Option<u16> {
        self.params.get("rport").and_then(number).and_then(|n| u16::try_from(n).ok())
    }
}

/// An IPv4 address, or an IPv6 address with or without brackets.
pub(crate) fn parse_ip(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[') {
        Some(inner) => parse_ipv6(inner.strip_suffix(']')?).map(IpAddr::V6),
        None => host.parse().ok(),
    }
}

/// An IPv6 address; `:::` before an embedded IPv4 address is taken as `::`, since the grammar of
/// RFC 3261 asks for it (RFC 5118 §4.10).
fn parse_ipv6(text: &str) -> Option<Ipv6Addr> {
    match text.split_once(":::") {
        Some((head, tail)) if tail.contains('.') && !tail.contains(':') => {
            format!("{head}::{tail}").parse().ok()
        }
        _ => text.parse().ok(),
    }
}

/// `host [COLON port]` of Via and URIs, split and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Host<'a> {
    /// Name, IPv4 address, or IPv6 address in brackets.
    pub host: &'a str,
    pub port: Option<u16>,
}

impl<'a> Host<'a> {
    /// A name or IPv4 address with or without port that begins at `begin`, and where it ends. `None`
    /// for what has to be looked at more closely, right or wrong.
    #[inline]
    pub(crate) fn plain(text: &'a str, begin: usize) -> Option<(Self, usize)> {
        let bytes = text.as_bytes();
        let host_end = begin + host_run(bytes.get(begin..)?);
        let host = text.get(begin..host_end).filter(|host| !host.is_empty())?;
        if bytes.get(host_end) != Some(&b':') {
            return Some((Host { host, port: None }, host_end));
        }
        let (mut port, mut end) = (0u32, host_end + 1);
        while let Some(digit @ b'0'..=b'9') = bytes.get(end) {
            port = port * 10 + u32::from(digit - b'0');
            end += 1;
            if end - host_end > 6 {
                return None;
            }
        }
        let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
        Some((Host { host, port: Some(port) }, end))
    }

    /// Splits `host[:port]`. Blanks around the colon are legal in Via (RFC 3261 §25.1 COLON).
    #[inline]
    pub(crate) fn parse(text: &'a str) -> Result<Self, ValueError> {
        let (host, rest) = if text.starts_with('[') {
            let close = memchr::memchr(b']', text.as_bytes()).ok_or(ValueError::Unclosed)?;
            let (host, rest) = text.split_at_checked(close + 1).ok_or(ValueError::Host)?;
            let inner = host.get(1..close).unwrap_or("");
            parse_ipv6(inner).ok_or(ValueError::Host)?;
            (host, trim(rest))
        } else {
            let end = memchr::memchr(b':', text.as_bytes()).unwrap_or(text.len());
            let (host, rest) = text.split_at_checked(end).ok_or(ValueError::Host)?;
            let host = trim(host);
            if !is_host_name(host) {
                return Err(ValueError::Host);
            }
            (host, rest)
        };
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => None,
            None => return Err(ValueError::Host),
            Some(port) => {
                let port = number(trim(port)).and_then(|n| u16::try_from(n).ok());
                Some(port.filter(|p| *p != 0).ok_or(ValueError::Host)?)
            }
        };
        Ok(Host { host, port })
    }
}

impl<'a> FromValue<'a> for Via<'a> {
    #[inline]
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        // sent-protocol: `SIP SLASH 2.0 SLASH transport LWS`, blanks around slashes allowed.
        let rest = match text.strip_prefix("SIP/2.0/") {
            Some(rest) => rest.trim_ascii_start(),
            None => spaced_protocol(text)?,
        };
        let blank =
            rest.bytes().position(|b| matches!(b, b' ' | b'\t')).ok_or(ValueError::Syntax)?;
        let (transport, rest) = rest.split_at_checked(blank).ok_or(ValueError::Syntax)?;
        if !is_token(transport) {
            return Err(ValueError::Syntax);
        }
        let plain = Host::plain(rest, 1)
            .filter(|(_, end)| matches!(rest.as_bytes().get(*end), None | Some(b';')));
        let (Host { host, port }, params) = match plain {
            Some((host, end)) => (host, rest.get(end..).unwrap_or("")),
            None => {
                let end = memchr::memchr(b';', rest.as_bytes()).unwrap_or(rest.len());
                let (sent_by, params) = rest.split_at_checked(end).ok_or(ValueError::Syntax)?;
                (Host::parse(trim(sent_by))?, params)
            }
        };
        if !quotes_closed(params) {
            return Err(ValueError::Unclosed);
        }
        Ok(Via { transport, host, port, params: Params(params) })
    }
}

fn spaced_protocol(text: &str) -> Result<&str, ValueError> {
    let (name, rest) = text.split_once('/').ok_or(ValueError::Syntax)?;
    let (version, rest) = rest.split_once('/').ok_or(ValueError::Syntax)?;
    // Another version is for the start line to refuse: a 505 must find its way back.
    let version = trim(version).bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if trim(name).eq_ignore_ascii_case("SIP") && version {
        Ok(rest.trim_ascii_start())
    } else {
        Err(ValueError::Syntax)
    }
}

impl WriteValue for Via<'_> {
    fn write_value(&self, out: &mut Out<'_>) {
        out.str("SIP/2.0/");
        out.str(self.transport);
        out.str(" ");
        out.str(self.host);
        if let Some(port) = self.port {
            out.str(":");
            out.int(u64::from(port));
        }
        out.str(self.params.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3261_20_42_forms() {
        for (text, transport, host, port, branch) in [
            ("SIP/2.0/UDP h:5060;branch=z9hG4bK87", "UDP", "h", Some(5060), "z9hG4bK87"),
            (
                "SIP / 2.0 / TCP first.example.com: 4000;ttl=16 ;branch=z9hG4bKa7c6",
                "TCP",
                "first.example.com",
                Some(4000),
                "z9hG4bKa7c6",
            ),
            (
                "sip/2.0/UNKNOWN [2001:db8::1]:5070 ; branch = x",
                "UNKNOWN",
                "[2001:db8::1]",
                Some(5070),
                "x",
            ),
            ("SIP/2.0/UDP 192.0.2.1", "UDP", "192.0.2.1", None, ""),
        ] {
            let v = Via::from_value(text).expect(text);
            assert_eq!(
                (v.transport, v.host, v.port, v.branch()),
                (transport, host, port, branch),
                "{text}"
            );
        }
    }

    #[test]
    fn malformed_vias_are_refused() {
        for text in [
            "",
            "SIP/2.0/UDP",
            "SIP/x/UDP h",
            "HTTP/2.0/UDP h",
            "SIP/2.0/UDP h:70000",
            "SIP/2.0/UDP h:0",
            "SIP/2.0/UDP [::1",
            "SIP/2.0/UDP 2001:db8::1",
            "SIP/2.0/UDP ;branch=x",
            "SIP/2.0/UDP a b",
        ] {
            assert!(Via::from_value(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rfc3581_and_rfc5118_received() {
        let via = Via::from_value("SIP/2.0/UDP h;rport;received=[2001:db8::9]").expect("via");
        assert!(via.wants_rport());
        assert_eq!(via.received(), "2001:db8::9".parse().ok());
        let via = Via::from_value("SIP/2.0/UDP h;received=2001:db8::9;rport=99;branch=z9hG4bK")
            .expect("via");
        assert_eq!((via.rport(), via.wants_rport(), via.has_cookie()), (Some(99), false, false));
        assert_eq!(via.received(), "2001:db8::9".parse().ok());
    }
}
