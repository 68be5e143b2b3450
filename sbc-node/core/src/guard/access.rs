//! Access lists: ordered rules of source, transport and method; the first that fits decides.
//!
//! Rules that name no method can decide before parsing. A rule that does makes the decision wait
//! for the method, so that order always means the same.

use std::net::IpAddr;

use crate::cidr::Cidr;
use crate::net::Transport;

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    Allow,
    /// Nothing is answered.
    Drop,
    /// 403.
    Reject,
}

/// One rule; an empty list fits everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRule {
    pub sources: Vec<Cidr>,
    pub transports: Vec<Transport>,
    /// Method names as they stand in requests.
    pub methods: Vec<Box<str>>,
    pub access: Access,
}

/// An interface's or trunk's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessList {
    pub rules: Vec<AccessRule>,
    /// What holds when no rule fits.
    pub otherwise: Access,
}

impl Default for AccessList {
    fn default() -> AccessList {
        AccessList { rules: Vec::new(), otherwise: Access::Allow }
    }
}

impl AccessList {
    /// The decision for a packet whose method is not known yet; `None` when it depends on it.
    pub fn before_parsing(&self, source: IpAddr, transport: Transport) -> Option<Access> {
        match self.rules.iter().find(|r| r.fits(source, transport)) {
            Some(rule) => rule.methods.is_empty().then_some(rule.access),
            None => Some(self.otherwise),
        }
    }

    /// The decision for a request.
    pub fn decide(&self, source: IpAddr, transport: Transport, method: &str) -> Access {
        let fits = |r: &&AccessRule| {
            r.fits(source, transport)
                && (r.methods.is_empty() || r.methods.iter().any(|m| **m == *method))
        };
        self.rules.iter().find(fits).map_or(self.otherwise, |r| r.access)
    }
}

impl AccessRule {
    fn fits(&self, source: IpAddr, transport: Transport) -> bool {
        (self.transports.is_empty() || self.transports.contains(&transport))
            && (self.sources.is_empty() || self.sources.iter().any(|n| n.contains(source)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_fits_decides_and_waits_for_the_method_where_it_must() {
        let rule = |source: &str, methods: &[&str], access| AccessRule {
            sources: vec![source.parse().unwrap()],
            transports: vec![],
            methods: methods.iter().map(|m| (*m).into()).collect(),
            access,
        };
        let list = AccessList {
            rules: vec![
                rule("10.0.0.9", &[], Access::Drop),
                rule("10.0.0.0/8", &["REGISTER"], Access::Reject),
                AccessRule {
                    transports: vec![Transport::Tcp],
                    ..rule("0.0.0.0/0", &[], Access::Allow)
                },
            ],
            otherwise: Access::Drop,
        };
        let ip = |t: &str| t.parse::<IpAddr>().unwrap();
        let before = |a, t| list.before_parsing(ip(a), t);
        assert_eq!(before("10.0.0.9", Transport::Udp), Some(Access::Drop));
        assert_eq!(before("10.0.0.1", Transport::Udp), None);
        assert_eq!(before("192.0.2.1", Transport::Tcp), Some(Access::Allow));
        assert_eq!(before("192.0.2.1", Transport::Udp), Some(Access::Drop));
        let decide = |a, t, m| list.decide(ip(a), t, m);
        assert_eq!(decide("10.0.0.1", Transport::Udp, "REGISTER"), Access::Reject);
        assert_eq!(decide("10.0.0.1", Transport::Tcp, "INVITE"), Access::Allow);
        assert_eq!(decide("10.0.0.1", Transport::Udp, "INVITE"), Access::Drop);
        assert_eq!(
            AccessList::default().before_parsing(ip("::1"), Transport::Udp),
            Some(Access::Allow)
        );
    }
}
