//! What connections of an interface are judged by: `[interface.tls]`, `[interface.websocket]`,
//! `proxy-protocol`, and `tls-names` of trunks.

use std::path::PathBuf;
use std::sync::Arc;

use hashbrown::HashMap;
use sbc_core::cidr::Cidr;
use sbc_core::net::{InterfaceId, Transport};
use serde::Deserialize;
use toml::Spanned;

use super::convert::Context;
use super::interface::Door as Side;
use super::raw;
use crate::transport::door::Door;
use crate::transport::tls::{ClientAuth, Demand, Profile, Spec};
use crate::transport::ws::Rules;

/// `[interface.tls]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Tls {
    #[serde(default)]
    certificates: Vec<Certificate>,
    ca: Option<Spanned<PathBuf>>,
    #[serde(default)]
    clients: Clients,
    #[serde(default = "yes")]
    verify: bool,
    #[serde(default)]
    min_version: MinVersion,
}

fn yes() -> bool {
    true
}

/// A chain with its key, PEM.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Certificate {
    chain: Spanned<PathBuf>,
    key: Spanned<PathBuf>,
}

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Clients {
    #[default]
    Off,
    Request,
    Require,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
enum MinVersion {
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

/// `[interface.websocket]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct WebSocket {
    origins: Vec<Spanned<String>>,
}

/// The rules of every interface.
pub(super) fn doors(
    cx: &mut Context<'_>,
    file: &raw::File,
    sides: &[Side],
) -> HashMap<InterfaceId, Arc<Door>> {
    let mut doors = HashMap::new();
    for side in sides {
        let name = &*side.interface.name;
        let raw = file.interface.iter().find(|i| i.get_ref().name.get_ref() == name);
        let Some(raw) = raw.map(Spanned::get_ref) else { continue };
        let door = Door {
            tls: tls(cx, file, raw),
            proxies: raw.proxy_protocol.0.iter().map(|n| n.0).collect(),
            web: Arc::new(Rules { origins: origins(cx, raw) }),
        };
        doors.insert(side.interface.id, Arc::new(door));
    }
    for trunk in file.trunk.iter().map(Spanned::get_ref) {
        let of =
            file.interface.iter().find(|i| i.get_ref().name.get_ref() == trunk.interface.get_ref());
        let has_tls = of.is_some_and(|i| i.get_ref().tls.is_some());
        if let (Some(first), false) = (trunk.tls_names.0.first(), has_tls) {
            cx.dependent(first.span(), "tls-names need an interface with [interface.tls]");
        }
    }
    doors
}

fn tls(cx: &mut Context<'_>, file: &raw::File, interface: &raw::Interface) -> Option<Arc<Profile>> {
    let listens = interface.listen.0.iter().find(|l| l.get_ref().transport.is_secure());
    let Some(raw) = &interface.tls else {
        if let Some(listen) = listens {
            cx.dependent(listen.span(), "this listener needs [interface.tls] with certificates");
        }
        return None;
    };
    let span = raw.span();
    let raw = raw.get_ref();
    match listens {
        None => cx.problem(span.clone(), "the interface has no tls or wss listener"),
        Some(_) if raw.certificates.is_empty() => {
            cx.problem(span.clone(), "tls.certificates is empty: what shall a client be shown?");
            return None;
        }
        Some(_) => {}
    }
    let path = |p: &Spanned<PathBuf>| cx.path(p.get_ref());
    let mut spec = Spec {
        certificates: raw.certificates.iter().map(|c| (path(&c.chain), path(&c.key))).collect(),
        ca: raw.ca.as_ref().map(path),
        clients: match raw.clients {
            Clients::Off => ClientAuth::Off,
            Clients::Request => ClientAuth::Request,
            Clients::Require => ClientAuth::Require,
        },
        verify: raw.verify,
        tls13_only: raw.min_version == MinVersion::Tls13,
        ..Spec::default()
    };
    for trunk in file.trunk.iter().map(Spanned::get_ref) {
        if trunk.interface.get_ref() == interface.name.get_ref() && !trunk.tls_names.0.is_empty() {
            of_trunk(cx, trunk, &mut spec);
        }
    }
    match Profile::build(&spec) {
        Ok(profile) => Some(Arc::new(profile)),
        Err(problem) => {
            let paths = raw.certificates.iter().flat_map(|c| [&c.chain, &c.key]).chain(&raw.ca);
            let at = paths.into_iter().find(|p| cx.path(p.get_ref()) == problem.path);
            cx.problem(at.map_or(span, Spanned::span), problem.to_string());
            None
        }
    }
}

/// What a trunk's `tls-names` ask of both directions.
fn of_trunk(cx: &mut Context<'_>, trunk: &raw::Trunk, spec: &mut Spec) {
    let domains: Vec<Box<str>> =
        trunk.tls_names.0.iter().map(|n| n.get_ref().to_ascii_lowercase().into()).collect();
    for name in &trunk.tls_names.0 {
        if name.get_ref().is_empty() || name.get_ref().contains(['@', ':', ' ', '/', '*']) {
            cx.problem(name.span(), format!("\"{}\" is no domain", name.get_ref()));
        }
    }
    let first = domains.first().cloned();
    let peers = trunk.peers.0.iter().filter_map(|p| p.get_ref().host.parse().ok());
    let literals: Vec<std::net::IpAddr> = peers.collect();
    let sources: Vec<Cidr> = if trunk.sources.0.is_empty() {
        literals.iter().map(|ip| Cidr::host(*ip)).collect()
    } else {
        trunk.sources.0.iter().map(|s| s.get_ref().0.net).collect()
    };
    if let Some(first) = first {
        spec.names.extend(literals.into_iter().map(|ip| (ip, first.clone())));
    }
    spec.demands.push(Demand { sources, domains });
}

fn origins(cx: &mut Context<'_>, interface: &raw::Interface) -> Vec<Box<str>> {
    let Some(web) = &interface.websocket else { return Vec::new() };
    let web_listener = |l: &Spanned<super::value::Listen>| {
        matches!(l.get_ref().transport, Transport::Ws | Transport::Wss)
    };
    if !interface.listen.0.iter().any(web_listener) {
        cx.dependent(web.span(), "the interface has no ws or wss listener");
    }
    for origin in &web.get_ref().origins {
        let text = origin.get_ref();
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        if host.is_none_or(|h| h.is_empty() || h.contains(['/', ' '])) {
            cx.problem(origin.span(), "an origin looks like \"https://phone.example.com\"");
        }
    }
    web.get_ref().origins.iter().map(|o| o.get_ref().as_str().into()).collect()
}
