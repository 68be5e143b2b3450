//! What a trunk lets through and insists on: codecs, headers, failover, session timers, secrets.
//!
//! These are values that the call reads; nothing here touches a message.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Text that must not show in logs or dumps.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    pub fn new(text: &str) -> Secret {
        Secret(text.into())
    }

    /// The text itself; the only way to it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// Credentials for upstream challenges (RFC 3261 §22), used for exactly one realm: a peer that
/// challenges with another trunk's realm gets nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    pub realm: Arc<str>,
    pub username: Arc<str>,
    pub password: Secret,
}

/// Which codecs of an offer reach the trunk and in which order. Names are `a=rtpmap` encoding
/// names with optional clock rate (`PCMA`, `telephone-event/8000`), compared without case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodecPolicy {
    /// Only these; empty for all.
    pub allow: Vec<Box<str>>,
    /// Never these; wins over `allow`.
    pub deny: Vec<Box<str>>,
    /// These first, in this order; the others keep theirs.
    pub prefer: Vec<Box<str>>,
}

impl CodecPolicy {
    /// Nothing is configured: SDP passes as it is.
    pub fn is_open(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty() && self.prefer.is_empty()
    }

    pub fn allows(&self, encoding: &str, clock_rate: u32) -> bool {
        let named = |list: &[Box<str>]| list.iter().any(|n| codec_is(n, encoding, clock_rate));
        !named(&self.deny) && (self.allow.is_empty() || named(&self.allow))
    }

    /// Rank for a stable sort: preferred codecs first.
    pub fn rank(&self, encoding: &str, clock_rate: u32) -> usize {
        let place = self.prefer.iter().position(|n| codec_is(n, encoding, clock_rate));
        place.unwrap_or(self.prefer.len())
    }
}

fn codec_is(name: &str, encoding: &str, clock_rate: u32) -> bool {
    match name.split_once('/') {
        Some((n, rate)) => {
            n.eq_ignore_ascii_case(encoding) && rate.parse::<u32>().is_ok_and(|r| r == clock_rate)
        }
        None => name.eq_ignore_ascii_case(encoding),
    }
}

/// Which headers beyond the SBC's own cross it, and which are added. A header crosses only if the
/// trunk it came from accepts it *and* the trunk it goes to passes it: an untrusted side cannot
/// smuggle headers that only trusted ones may set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderPolicy {
    /// Taken from messages of this trunk. Names without case, `*` at the end matches any rest.
    pub accept: Vec<Box<str>>,
    /// Written into messages to this trunk.
    pub pass: Vec<Box<str>>,
    /// Added to requests to this trunk that start a dialog.
    pub set: Vec<(Box<str>, Box<str>)>,
}

impl HeaderPolicy {
    /// Whether header `name` crosses from a trunk with policy `from` to one with policy `to`.
    pub fn crosses(from: &HeaderPolicy, to: &HeaderPolicy, name: &str) -> bool {
        let listed = |list: &[Box<str>]| list.iter().any(|p| name_matches(p, name));
        listed(&from.accept) && listed(&to.pass)
    }
}

fn name_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(head) => name
            .as_bytes()
            .get(..head.len())
            .is_some_and(|n| n.eq_ignore_ascii_case(head.as_bytes())),
        None => pattern.eq_ignore_ascii_case(name),
    }
}

/// When the next hop is tried without the caller noticing. Transport failures and DNS failures
/// always fail over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverPolicy {
    /// Final statuses that go on to the next hop. 408 stands for timer B too.
    pub codes: Vec<u16>,
    /// No provisional answer to an INVITE within this counts as 408; `None` leaves it to timer B.
    pub no_answer: Option<Duration>,
}

impl Default for FailoverPolicy {
    fn default() -> FailoverPolicy {
        FailoverPolicy {
            codes: vec![408, 500, 502, 503, 504],
            no_answer: Some(Duration::from_secs(5)),
        }
    }
}

impl FailoverPolicy {
    pub fn applies(&self, status: u16) -> bool {
        self.codes.contains(&status)
    }
}

/// How session timers are used on a leg (RFC 4028).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionTimerMode {
    /// Neither offered nor answered.
    Off,
    /// Used when the peer asks.
    Accept,
    /// Offered, and refreshed by us where the peer does not support it.
    Require,
}

/// Session-timer policy of a trunk (RFC 4028).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTimerPolicy {
    pub mode: SessionTimerMode,
    /// Session-Expires that we ask for.
    pub expires: Duration,
    /// Min-SE: shorter ones get 422.
    pub min_se: Duration,
}

impl Default for SessionTimerPolicy {
    fn default() -> SessionTimerPolicy {
        SessionTimerPolicy {
            mode: SessionTimerMode::Require,
            expires: Duration::from_secs(1800),
            min_se: Duration::from_secs(90),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show() {
        let c = Credential {
            realm: "r".into(),
            username: "u".into(),
            password: Secret::new("hunter2"),
        };
        let shown = format!("{c:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert_eq!(c.password.expose(), "hunter2");
    }

    #[test]
    fn codecs_by_name_and_rate() {
        let p = CodecPolicy {
            allow: vec!["pcma".into(), "G722".into(), "telephone-event/8000".into()],
            deny: vec!["g722".into()],
            prefer: vec!["telephone-event".into()],
        };
        assert!(p.allows("PCMA", 8000));
        assert!(!p.allows("G722", 8000));
        assert!(p.allows("telephone-event", 8000));
        assert!(!p.allows("telephone-event", 48000));
        assert!(!p.allows("opus", 48000));
        assert!(p.rank("telephone-event", 8000) < p.rank("PCMA", 8000));
        assert!(CodecPolicy::default().is_open());
        assert!(CodecPolicy::default().allows("opus", 48000));
    }

    #[test]
    fn a_header_crosses_only_with_both_sides() {
        let open = HeaderPolicy {
            accept: vec!["X-Acme-*".into(), "Geolocation".into()],
            pass: vec!["x-acme-*".into()],
            set: vec![],
        };
        let closed = HeaderPolicy::default();
        assert!(HeaderPolicy::crosses(&open, &open, "x-ACME-id"));
        assert!(!HeaderPolicy::crosses(&open, &open, "X-Acm"));
        assert!(!HeaderPolicy::crosses(&open, &open, "Geolocation"));
        assert!(!HeaderPolicy::crosses(&closed, &open, "X-Acme-Id"));
        assert!(!HeaderPolicy::crosses(&open, &closed, "X-Acme-Id"));
    }
}
