//! The scalar values of the file: durations, listeners, peers, port ranges, sources.
//!
//! Each parses from text once and says what it wants when it cannot. Nothing here looks at other
//! values.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use sbc_core::cidr::Cidr;
use sbc_core::net::{Host, Transport};
use sbc_core::routing::Source;
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// A text that parses; the error is the whole message.
pub(super) trait FromText: Sized {
    const WANTED: &'static str;
    fn from_text(text: &str) -> Result<Self, String>;
}

/// Makes serde read a `FromText`.
macro_rules! from_text {
    ($($name:ty),+ $(,)?) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                d.deserialize_str(TextVisitor(std::marker::PhantomData))
            }
        }
    )+};
}

struct TextVisitor<T>(std::marker::PhantomData<T>);

impl<T: FromText> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::WANTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        T::from_text(text).map_err(E::custom)
    }
}

/// `200ms`, `5s`, `30m`, `1h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

impl FromText for Span {
    const WANTED: &'static str = "a duration such as \"200ms\", \"5s\", \"30m\", \"1h\"";

    fn from_text(text: &str) -> Result<Span, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let bad = || format!("\"{text}\" is not {}", Self::WANTED);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let ms_per_unit = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        let ms = number.checked_mul(ms_per_unit).ok_or_else(bad)?;
        Ok(Span(Duration::from_millis(ms)))
    }
}

/// A duration, or `"off"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpanOrOff(pub(super) Option<Duration>);

impl FromText for SpanOrOff {
    const WANTED: &'static str = "a duration such as \"5s\", or \"off\"";

    fn from_text(text: &str) -> Result<SpanOrOff, String> {
        match text {
            "off" => Ok(SpanOrOff(None)),
            _ => Span::from_text(text)
                .map(|s| SpanOrOff(Some(s.0)))
                .map_err(|_| format!("\"{text}\" is not {}", Self::WANTED)),
        }
    }
}

/// `udp://192.0.2.1:5060`, `tcp://[2001:db8::1]`; the port defaults to the transport's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listen {
    pub(super) transport: Transport,
    pub(super) local: SocketAddr,
}

impl Listen {
    /// Whether it takes datagrams at an address.
    pub(super) fn is_udp_at(&self, address: SocketAddr) -> bool {
        self.transport == Transport::Udp
            && self.local.port() == address.port()
            && (self.local.ip() == address.ip() || self.local.ip().is_unspecified())
    }
}

impl FromText for Listen {
    const WANTED: &'static str = "a listener such as \"udp://192.0.2.1:5060\"";

    fn from_text(text: &str) -> Result<Listen, String> {
        let bad = || format!("\"{text}\" is not {}", Self::WANTED);
        let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
        let transport = transport(scheme).ok_or_else(bad)?;
        let (host, port) = host_port(rest).ok_or_else(bad)?;
        let ip: IpAddr = host.parse().map_err(|_| bad())?;
        let port = port.unwrap_or(transport.default_port());
        if port == 0 {
            return Err(format!("\"{text}\": a listener needs a port"));
        }
        Ok(Listen { transport, local: SocketAddr::new(ip, port) })
    }
}

/// `203.0.113.5`, `203.0.113.5:5080`, `[2001:db8::5]:5060`, `sbc.example.net`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Advertise {
    pub(super) host: Host,
    pub(super) port: Option<u16>,
}

impl FromText for Advertise {
    const WANTED: &'static str = "an address or name with optional port";

    fn from_text(text: &str) -> Result<Advertise, String> {
        let bad = || format!("\"{text}\" is not {}", Self::WANTED);
        let (host, port) = host_port(text).ok_or_else(bad)?;
        let host = match host.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() || ip.is_multicast() => {
                return Err(format!("\"{text}\" cannot be advertised: nobody can send to it"));
            }
            Ok(ip) => Host::Ip(ip),
            Err(_) if is_name(host) => Host::Name(host.into()),
            Err(_) => return Err(bad()),
        };
        Ok(Advertise { host, port })
    }
}

/// `192.0.2.7`, `192.0.2.7:5070`, `sip.example.net`, `tcp://sip.example.net:5060`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PeerText {
    pub(super) host: Box<str>,
    pub(super) port: Option<u16>,
    pub(super) transport: Option<Transport>,
}

impl FromText for PeerText {
    const WANTED: &'static str =
        "a peer such as \"192.0.2.7\", \"sip.example.net:5060\" or \"tcp://192.0.2.7\"";

    fn from_text(text: &str) -> Result<PeerText, String> {
        let bad = || format!("\"{text}\" is not {}", Self::WANTED);
        let (transport, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(transport(scheme).ok_or_else(bad)?), rest),
            None => (None, text),
        };
        let (host, port) = host_port(rest).ok_or_else(bad)?;
        if port == Some(0) || (host.parse::<IpAddr>().is_err() && !is_name(host)) {
            return Err(bad());
        }
        Ok(PeerText { host: host.into(), port, transport })
    }
}

/// `192.0.2.0/24`, `192.0.2.7:5070` (source port), `tcp://192.0.2.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SourceText(pub(super) Source);

impl FromText for SourceText {
    const WANTED: &'static str = "a source such as \"192.0.2.0/24\" or \"192.0.2.7:5070\"";

    fn from_text(text: &str) -> Result<SourceText, String> {
        let bad = || format!("\"{text}\" is not {}", Self::WANTED);
        let (transport, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(transport(scheme).ok_or_else(bad)?), rest),
            None => (None, text),
        };
        if let Ok(addr) = rest.parse::<SocketAddr>() {
            let net = Cidr::host(addr.ip());
            return Ok(SourceText(Source { net, transport, port: Some(addr.port()) }));
        }
        let net = rest.parse().map_err(|e| format!("\"{text}\": {e}"))?;
        Ok(SourceText(Source { net, transport, port: None }))
    }
}

/// A network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Net(pub(super) Cidr);

impl FromText for Net {
    const WANTED: &'static str = "a network such as \"192.0.2.0/24\"";

    fn from_text(text: &str) -> Result<Net, String> {
        text.parse().map(Net).map_err(|e| format!("\"{text}\": {e}"))
    }
}

/// `20000-29999`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ports(pub(super) RangeInclusive<u16>);

impl FromText for Ports {
    const WANTED: &'static str = "a port range such as \"20000-29999\"";

    fn from_text(text: &str) -> Result<Ports, String> {
        let bad = || format!("\"{text}\" is not {}", Self::WANTED);
        let (first, last) = text.split_once('-').ok_or_else(bad)?;
        let first: u16 = first.trim().parse().map_err(|_| bad())?;
        let last: u16 = last.trim().parse().map_err(|_| bad())?;
        // One pair at least: an even port and the odd one after it (RFC 3550 §11).
        if first == 0 || last <= first || (first % 2 == 1 && last - first < 2) {
            return Err(format!("\"{text}\" holds no even port with its odd neighbour"));
        }
        Ok(Ports(first..=last))
    }
}

/// A regular expression.
#[derive(Clone, Debug)]
pub(super) struct Pattern(pub(super) regex::Regex);

impl FromText for Pattern {
    const WANTED: &'static str = "a regular expression";

    fn from_text(text: &str) -> Result<Pattern, String> {
        regex::Regex::new(text).map(Pattern).map_err(|e| {
            let reason = e.to_string();
            let reason = reason.lines().last().unwrap_or("").trim_start_matches("error: ");
            format!("bad regular expression \"{text}\": {reason}")
        })
    }
}

impl FromText for Transport_ {
    const WANTED: &'static str = "a transport: udp, tcp, tls, ws or wss";

    fn from_text(text: &str) -> Result<Transport_, String> {
        let parsed = transport(text).map(Transport_);
        parsed.ok_or_else(|| format!("\"{text}\" is not {}", Self::WANTED))
    }
}

/// A transport by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transport_(pub(super) Transport);

from_text!(
    Span, SpanOrOff, Listen, Advertise, PeerText, SourceText, Net, Ports, Pattern, Transport_,
);

fn transport(name: &str) -> Option<Transport> {
    Some(match name {
        "udp" => Transport::Udp,
        "tcp" => Transport::Tcp,
        "tls" => Transport::Tls,
        "ws" => Transport::Ws,
        "wss" => Transport::Wss,
        _ => return None,
    })
}

/// Splits `host[:port]`; IPv6 literals with a port are in brackets, without one may be bare.
fn host_port(text: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, tail) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        return match tail.strip_prefix(':') {
            Some(port) => Some((host, Some(port.parse().ok()?))),
            None if tail.is_empty() => Some((host, None)),
            None => None,
        };
    }
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Some((text, None));
    }
    match text.split_once(':') {
        Some((host, port)) => Some((host, Some(port.parse().ok()?))),
        None => Some((text, None)),
    }
}

/// A domain name (RFC 1123 labels, underscores allowed); one that looks like an address is none.
fn is_name(text: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let text = text.strip_suffix('.').unwrap_or(text);
    text.len() <= 253
        && text.split('.').all(label)
        && text.rsplit('.').next().is_some_and(|l| !l.bytes().all(|b| b.is_ascii_digit()))
}

/// One value or a list of them; `parse.rs` makes a list of one before serde sees it.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct OneOrMany<T>(pub(super) Vec<T>);

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        OneOrMany(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn err<T: FromText + fmt::Debug>(text: &str) -> String {
        T::from_text(text).unwrap_err()
    }

    #[test]
    fn durations() {
        let ms = |t| Span::from_text(t).unwrap().0.as_millis();
        assert_eq!((ms("200ms"), ms("5s"), ms("2m"), ms("1h")), (200, 5_000, 120_000, 3_600_000));
        assert_eq!(SpanOrOff::from_text("off"), Ok(SpanOrOff(None)));
        for bad in ["", "5", "s", "-5s", "5 s", "1.5s", "99999999999999999999s"] {
            assert!(err::<Span>(bad).contains("is not a duration"), "{bad}");
        }
    }

    #[test]
    fn listeners() {
        let l = Listen::from_text("tcp://[2001:db8::1]").unwrap();
        assert_eq!(
            (l.transport, l.local.to_string().as_str()),
            (Transport::Tcp, "[2001:db8::1]:5060")
        );
        assert_eq!(Listen::from_text("tls://192.0.2.1").unwrap().local.port(), 5061);
        for bad in ["192.0.2.1:5060", "sctp://192.0.2.1", "udp://sbc.example", "udp://192.0.2.1:x"]
        {
            assert!(err::<Listen>(bad).contains("is not a listener"), "{bad}");
        }
        assert!(err::<Listen>("udp://192.0.2.1:0").contains("needs a port"));
    }

    #[test]
    fn advertised_addresses_and_peers() {
        let a = Advertise::from_text("[2001:db8::5]:5070").unwrap();
        assert_eq!((a.host.to_string().as_str(), a.port), ("[2001:db8::5]", Some(5070)));
        assert!(err::<Advertise>("0.0.0.0").contains("nobody can send to it"));
        assert!(err::<Advertise>("192.0.2.300").contains("is not"));
        let p = PeerText::from_text("tcp://sip.example.net:5070").unwrap();
        assert_eq!(
            (&*p.host, p.port, p.transport),
            ("sip.example.net", Some(5070), Some(Transport::Tcp))
        );
        assert_eq!(&*PeerText::from_text("2001:db8::7").unwrap().host, "2001:db8::7");
        for bad in ["", "a b", "192.0.2.1:0", "-x.example", "sip:192.0.2.1"] {
            assert!(err::<PeerText>(bad).contains("is not a peer"), "{bad}");
        }
    }

    #[test]
    fn sources_and_ports() {
        let s = SourceText::from_text("192.0.2.7:5070").unwrap().0;
        assert_eq!((s.net.to_string().as_str(), s.port), ("192.0.2.7", Some(5070)));
        let s = SourceText::from_text("tcp://2001:db8::/32").unwrap().0;
        assert_eq!(
            (s.net.to_string().as_str(), s.transport),
            ("2001:db8::/32", Some(Transport::Tcp))
        );
        assert_eq!(
            err::<SourceText>("10.0.0.1/8"),
            "\"10.0.0.1/8\": host bits are set: write 10.0.0.0/8"
        );
        assert_eq!(Ports::from_text("20000-29999").unwrap().0, 20000..=29999);
        assert!(err::<Ports>("5-6").contains("no even port"));
        assert!(err::<Ports>("9-1").contains("no even port"));
        assert!(err::<Ports>("1").contains("is not a port range"));
    }

    #[test]
    fn a_bad_pattern_says_why() {
        assert_eq!(err::<Pattern>("^(x"), "bad regular expression \"^(x\": unclosed group");
    }
}
