//! Groups and routes, and the check that the routing table builds from them.

use std::sync::Arc;
use std::time::Instant;

use sbc_core::routing::{
    BuildErrorKind, GroupConfig, Item, Member, PrefixTable, RouteConfig, RouteMatch, RouteTarget,
    RoutingConfig, Strategy, Table, UserMatch,
};
use toml::Spanned;

use super::convert::Context;
use super::raw;
use super::value::{OneOrMany, Pattern};

/// Wrong lines of a prefix file that are told.
const MAX_PREFIX_ERRORS: usize = 20;

/// Groups and routes of the file; the rest of the routing configuration stays at its default.
pub(super) fn convert(cx: &mut Context<'_>, file: &raw::File) -> RoutingConfig {
    let groups = file.group.iter().map(|g| group(cx, g.get_ref())).collect();
    let routes: Vec<RouteConfig> =
        file.route.iter().enumerate().map(|(index, r)| route(cx, index, r)).collect();
    for (index, raw) in file.route.iter().enumerate() {
        let earlier = routes.iter().take(index).find(|r| is_catch_all(r));
        if let Some(earlier) = earlier {
            let message =
                format!("the route is never reached: \"{}\" before it takes all", earlier.name);
            cx.dependent(raw.span(), message);
        }
    }
    RoutingConfig { groups, routes, ..RoutingConfig::default() }
}

/// Tells what only the whole table shows: unknown names, unreachable groups, shared sources.
pub(super) fn check(cx: &mut Context<'_>, file: &raw::File, routing: &RoutingConfig) {
    let Err(errors) = Table::build(routing.clone(), None, Instant::now()) else { return };
    for error in errors {
        let span = match error.item {
            Item::Trunk(i) => file.trunk.get(i).map(|t| match error.kind {
                BuildErrorKind::DuplicateName(_) => t.get_ref().name.span(),
                _ => t.get_ref().sources.0.first().map_or_else(
                    || t.get_ref().peers.0.first().map_or(t.span(), Spanned::span),
                    Spanned::span,
                ),
            }),
            Item::Group(i) => file.group.get(i).map(|g| group_span(g, &error.kind)),
            Item::Route(i) => file.route.get(i).map(|r| route_span(r, &error.kind)),
        };
        cx.dependent(span.unwrap_or(0..0), error.to_string());
    }
}

fn group_span(group: &Spanned<raw::Group>, kind: &BuildErrorKind) -> std::ops::Range<usize> {
    let raw = group.get_ref();
    let member = match kind {
        BuildErrorKind::UnknownTrunk(name)
        | BuildErrorKind::NoPeers(name)
        | BuildErrorKind::DuplicateMember(name) => {
            raw.trunks.iter().rfind(|t| t.get_ref().as_str() == &**name)
        }
        _ => None,
    };
    member.map_or_else(|| raw.name.span(), Spanned::span)
}

fn route_span(route: &Spanned<raw::Route>, kind: &BuildErrorKind) -> std::ops::Range<usize> {
    let raw = route.get_ref();
    let named = |list: &OneOrMany<Spanned<String>>, name: &str| {
        list.0.iter().find(|n| n.get_ref() == name).map(Spanned::span)
    };
    let span = match kind {
        BuildErrorKind::UnknownTrunk(name) => named(&raw.source, name),
        BuildErrorKind::UnknownRealm(name) => named(&raw.realm, name),
        BuildErrorKind::UnknownTableTarget(_) => raw.prefixes.as_ref().map(Spanned::span),
        _ => raw.target.as_ref().map(Spanned::span).or(raw.prefixes.as_ref().map(Spanned::span)),
    };
    span.unwrap_or_else(|| route.span())
}

fn is_catch_all(route: &RouteConfig) -> bool {
    let m = &route.matches;
    m.trunks.is_empty()
        && m.realms.is_empty()
        && m.ruri.is_none()
        && m.from.is_none()
        && m.to.is_none()
        && m.domains.is_empty()
        && m.from_domains.is_empty()
        && !matches!(route.target, RouteTarget::Table(_))
}

fn group(cx: &mut Context<'_>, raw: &raw::Group) -> GroupConfig {
    cx.name(&raw.name);
    let weights = raw.weights.as_ref().map(|w| w.get_ref().as_slice());
    if let Some(given) = &raw.weights
        && given.get_ref().len() != raw.trunks.len()
    {
        cx.dependent(given.span(), "weights and trunks differ in number");
    }
    let weight = |index: usize| weights.and_then(|w| w.get(index)).copied().unwrap_or(1);
    let members = raw.trunks.iter().enumerate();
    GroupConfig {
        name: raw.name.get_ref().as_str().into(),
        strategy: if weights.is_some() { Strategy::Weighted } else { Strategy::Ordered },
        members: members
            .map(|(index, t)| Member { trunk: t.get_ref().as_str().into(), weight: weight(index) })
            .collect(),
        limits: cx.limits(raw.max_calls, raw.max_cps.as_ref()),
    }
}

fn route(cx: &mut Context<'_>, index: usize, raw: &Spanned<raw::Route>) -> RouteConfig {
    let span = raw.span();
    let raw = raw.get_ref();
    if let Some(name) = &raw.name {
        cx.name(name);
    }
    let name = raw.name.as_ref().map(|n| n.get_ref().clone());
    let names = |list: &OneOrMany<Spanned<String>>| {
        list.0.iter().map(|n| Arc::from(n.get_ref().as_str())).collect()
    };
    let matches = RouteMatch {
        trunks: names(&raw.source),
        realms: names(&raw.realm),
        ruri: user(cx, "ruri", &raw.ruri, raw.ruri_regex.as_ref()),
        from: user(cx, "from", &raw.from, raw.from_regex.as_ref()),
        to: user(cx, "to", &raw.to, raw.to_regex.as_ref()),
        domains: raw.domain.0.clone(),
        from_domains: raw.from_domain.0.clone(),
    };
    RouteConfig {
        name: name.unwrap_or_else(|| format!("route-{}", index + 1)).into(),
        matches,
        target: target(cx, raw, span),
        strip: raw.strip,
        prefix: raw.prepend.clone(),
    }
}

fn user(
    cx: &mut Context<'_>,
    key: &str,
    prefixes: &OneOrMany<Box<str>>,
    regex: Option<&Spanned<Pattern>>,
) -> Option<UserMatch> {
    match (prefixes.0.is_empty(), regex) {
        (true, None) => None,
        (true, Some(regex)) => Some(UserMatch::Regex(regex.get_ref().0.clone())),
        (false, None) => Some(UserMatch::Prefix(prefixes.0.clone())),
        (false, Some(regex)) => {
            cx.problem(regex.span(), format!("{key} and {key}-regex cannot both be given"));
            None
        }
    }
}

fn target(cx: &mut Context<'_>, raw: &raw::Route, span: std::ops::Range<usize>) -> RouteTarget {
    let given = [raw.target.is_some(), raw.prefixes.is_some(), raw.reject.is_some()];
    if given.iter().filter(|g| **g).count() != 1 {
        cx.dependent(span, "a route needs exactly one of target, prefixes and reject");
    }
    if let Some(target) = &raw.target {
        return RouteTarget::To(target.get_ref().as_str().into());
    }
    if let Some(path) = &raw.prefixes {
        return RouteTarget::Table(Arc::new(prefix_table(cx, path)));
    }
    let status = raw.reject.as_ref().map_or(403, |r| *r.get_ref());
    if let Some(reject) = &raw.reject
        && !(400..=699).contains(&status)
    {
        cx.problem(reject.span(), format!("{status} is no failure status"));
    }
    RouteTarget::Reject(status)
}

fn prefix_table(cx: &mut Context<'_>, path: &Spanned<std::path::PathBuf>) -> PrefixTable {
    let parsed = cx.text(path).map(|text| PrefixTable::parse(&text, MAX_PREFIX_ERRORS));
    match parsed {
        Some(Ok(table)) => {
            if table.is_empty() {
                let message = format!("{} holds no prefix", path.get_ref().display());
                cx.problem(path.span(), message);
            }
            table
        }
        Some(Err(errors)) => {
            for error in errors {
                let message = format!("{}: {error}", path.get_ref().display());
                cx.problem(path.span(), message);
            }
            PrefixTable::default()
        }
        None => PrefixTable::default(),
    }
}
