//! `[stun]`: the STUN server on ports of its own.

use std::net::SocketAddr;

use serde::Deserialize;
use toml::Spanned;

use super::convert::Context;
use super::raw;
use super::value::OneOrMany;
use crate::transport::stun_server::StunConfig;

/// `[stun]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Stun {
    listen: OneOrMany<Spanned<SocketAddr>>,
    per_source: Option<Spanned<u32>>,
    per_second: Option<Spanned<u32>>,
    max_sources: Option<Spanned<usize>>,
}

/// The server, where there is one.
pub(super) fn convert(cx: &mut Context<'_>, file: &raw::File) -> Option<StunConfig> {
    let raw = file.stun.as_ref()?;
    let mut listen: Vec<SocketAddr> = Vec::new();
    for entry in &raw.get_ref().listen.0 {
        let address = *entry.get_ref();
        if address.ip().is_unspecified() {
            let message = format!(
                "{address} is all addresses: an answer must leave from the one that was asked, name it"
            );
            cx.problem(entry.span(), message);
        } else if address.port() == 0 {
            cx.problem(entry.span(), format!("{address} has no port"));
        } else if listen.contains(&address) {
            cx.problem(entry.span(), format!("{address} is there twice"));
        } else if is_signalling(file, address) {
            let message = format!(
                "{address} is an interface's: binding requests are answered there as it is"
            );
            cx.problem(entry.span(), message);
        }
        listen.push(address);
    }
    if listen.is_empty() {
        cx.problem(raw.span(), "[stun] listens nowhere");
    }
    let raw = raw.get_ref();
    Some(StunConfig {
        listen,
        per_source: cx.bounded(raw.per_source.as_ref(), 10, 1..=1_000_000),
        per_second: cx.bounded(raw.per_second.as_ref(), 10_000, 1..=10_000_000),
        sources_max: cx.bounded(raw.max_sources.as_ref(), 65_536, 1_000..=10_000_000),
    })
}

/// Whether an interface listens there by UDP.
fn is_signalling(file: &raw::File, address: SocketAddr) -> bool {
    let of = |interface: &Spanned<raw::Interface>| {
        interface.get_ref().listen.0.iter().any(|l| l.get_ref().is_udp_at(address))
    };
    file.interface.iter().any(of)
}
