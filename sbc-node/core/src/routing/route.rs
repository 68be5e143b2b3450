//! One route: what it matches and where it leads.
//!
//! Routes are tried in the order of the file; the first whose conditions all hold decides. A route
//! by prefix table holds only for numbers that the table knows.

use std::sync::Arc;

use regex::Regex;

use super::prefix::PrefixTable;
use super::{Numbers, RouteQuery, Trunk};

/// A condition on a user part.
#[derive(Clone, Debug)]
pub enum UserMatch {
    /// Begins with one of these.
    Prefix(Vec<Box<str>>),
    Regex(Regex),
}

impl UserMatch {
    fn holds(&self, user: &str) -> bool {
        match self {
            UserMatch::Prefix(prefixes) => prefixes.iter().any(|p| user.starts_with(&**p)),
            UserMatch::Regex(regex) => regex.is_match(user),
        }
    }
}

/// Conditions that must all hold; an empty one always does. User parts are matched after inbound
/// translation.
#[derive(Clone, Debug, Default)]
pub struct RouteMatch {
    /// Names of source trunks; empty for any.
    pub trunks: Vec<Arc<str>>,
    /// Realms of source interfaces; empty for any.
    pub realms: Vec<Arc<str>>,
    pub ruri: Option<UserMatch>,
    pub from: Option<UserMatch>,
    pub to: Option<UserMatch>,
    /// R-URI hosts, compared without case; empty for any.
    pub domains: Vec<Box<str>>,
    /// From hosts, compared without case; empty for any.
    pub from_domains: Vec<Box<str>>,
}

impl RouteMatch {
    pub(super) fn holds(&self, source: &Trunk, query: &RouteQuery<'_>, numbers: &Numbers) -> bool {
        let user = |m: &Option<UserMatch>, user: &str| m.as_ref().is_none_or(|m| m.holds(user));
        let host = |list: &[Box<str>], host: &str| {
            list.is_empty() || list.iter().any(|d| d.eq_ignore_ascii_case(host))
        };
        (self.trunks.is_empty() || self.trunks.contains(&source.config.name))
            && (self.realms.is_empty() || self.realms.contains(&source.config.realm))
            && host(&self.domains, query.ruri_host)
            && host(&self.from_domains, query.from_host)
            && user(&self.ruri, &numbers.ruri)
            && user(&self.from, &numbers.from)
            && user(&self.to, &numbers.to)
    }
}

/// Where a route leads.
#[derive(Clone, Debug)]
pub enum RouteTarget {
    /// A group or trunk by name.
    To(Arc<str>),
    /// The longest matching prefix of the R-URI user decides.
    Table(Arc<PrefixTable>),
    /// Refused with this status.
    Reject(u16),
}

/// A route as configured.
#[derive(Clone, Debug)]
pub struct RouteConfig {
    /// For logs and CDRs.
    pub name: Arc<str>,
    pub matches: RouteMatch,
    pub target: RouteTarget,
    /// Symbols taken off the front of the R-URI user.
    pub strip: usize,
    /// Put before it afterwards.
    pub prefix: Box<str>,
}
