//! Access lists: ordered rules of source, transport, country and method; the first that fits decides.
//!
//! Rules that name no method can decide before parsing. A rule that does makes the decision wait
//! for the method, so that order always means the same.

use std::net::IpAddr;

use crate::cidr::Cidr;
use crate::net::Transport;

use super::Country;

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    Allow,
    /// Nothing is answered.
    Drop,
    /// 403.
    Reject,
}

/// The countries that a rule is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CountryRule {
    #[default]
    All,
    /// These, and with the flag those that are not known.
    In(Vec<Country>, bool),
    /// All but these; with the flag those that are not known as well.
    NotIn(Vec<Country>, bool),
}

impl CountryRule {
    fn fits(&self, country: Option<Country>) -> bool {
        match (self, country) {
            (CountryRule::All, _) => true,
            (CountryRule::In(_, unknown) | CountryRule::NotIn(_, unknown), None) => *unknown,
            (CountryRule::In(list, _), Some(country)) => list.contains(&country),
            (CountryRule::NotIn(list, _), Some(country)) => !list.contains(&country),
        }
    }
}

/// Where a packet comes from.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    pub source: IpAddr,
    pub transport: Transport,
    /// It is of a trusted network: rules by country are not about it.
    pub trusted: bool,
    /// Asked only where a rule is by country.
    pub country: &'a dyn Fn() -> Option<Country>,
}

/// One rule; an empty list fits everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRule {
    pub sources: Vec<Cidr>,
    pub transports: Vec<Transport>,
    pub countries: CountryRule,
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
    pub fn before_parsing(&self, origin: &Origin<'_>) -> Option<Access> {
        match self.rules.iter().find(|r| r.fits(origin)) {
            Some(rule) => rule.methods.is_empty().then_some(rule.access),
            None => Some(self.otherwise),
        }
    }

    /// The decision for a request.
    pub fn decide(&self, origin: &Origin<'_>, method: &str) -> Access {
        let fits = |r: &&AccessRule| {
            r.fits(origin) && (r.methods.is_empty() || r.methods.iter().any(|m| **m == *method))
        };
        self.rules.iter().find(fits).map_or(self.otherwise, |r| r.access)
    }
}

impl AccessRule {
    fn fits(&self, origin: &Origin<'_>) -> bool {
        (self.transports.is_empty() || self.transports.contains(&origin.transport))
            && (self.sources.is_empty() || self.sources.iter().any(|n| n.contains(origin.source)))
            && (self.countries == CountryRule::All
                || (!origin.trusted && self.countries.fits((origin.country)())))
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
            countries: CountryRule::All,
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
        let nowhere = || None;
        let origin =
            |a, transport| Origin { source: ip(a), transport, trusted: false, country: &nowhere };
        let before = |a, t| list.before_parsing(&origin(a, t));
        assert_eq!(before("10.0.0.9", Transport::Udp), Some(Access::Drop));
        assert_eq!(before("10.0.0.1", Transport::Udp), None);
        assert_eq!(before("192.0.2.1", Transport::Tcp), Some(Access::Allow));
        assert_eq!(before("192.0.2.1", Transport::Udp), Some(Access::Drop));
        let decide = |a, t, m| list.decide(&origin(a, t), m);
        assert_eq!(decide("10.0.0.1", Transport::Udp, "REGISTER"), Access::Reject);
        assert_eq!(decide("10.0.0.1", Transport::Tcp, "INVITE"), Access::Allow);
        assert_eq!(decide("10.0.0.1", Transport::Udp, "INVITE"), Access::Drop);
        assert_eq!(
            AccessList::default().before_parsing(&origin("::1", Transport::Udp)),
            Some(Access::Allow)
        );
    }

    #[test]
    fn countries_allowed_denied_and_unknown() {
        let (de, fr): (Country, Country) = ("DE".parse().unwrap(), "FR".parse().unwrap());
        let list = |countries| AccessList {
            rules: vec![AccessRule {
                sources: vec![],
                transports: vec![],
                countries,
                methods: vec![],
                access: Access::Drop,
            }],
            otherwise: Access::Allow,
        };
        let of = |list: &AccessList, country: Option<Country>, trusted| {
            let country = || country;
            let source = IpAddr::from([192, 0, 2, 1]);
            let origin = Origin { source, transport: Transport::Udp, trusted, country: &country };
            list.before_parsing(&origin) == Some(Access::Allow)
        };
        let verdicts = |list: &AccessList| {
            [of(list, Some(de), false), of(list, Some(fr), false), of(list, None, false)]
        };
        let only_de = |unknown| list(CountryRule::NotIn(vec![de], unknown));
        assert_eq!(verdicts(&only_de(false)), [true, false, true]);
        assert_eq!(verdicts(&only_de(true)), [true, false, false]);
        let not_de = |unknown| list(CountryRule::In(vec![de], unknown));
        assert_eq!(verdicts(&not_de(false)), [false, true, true]);
        assert_eq!(verdicts(&not_de(true)), [false, true, false]);
        assert!(of(&not_de(true), Some(de), true), "trusted networks are of no country");
    }
}
