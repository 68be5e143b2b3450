//! Interfaces: listeners, advertised addresses, the media side, and what overlaps.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use media_anchor::config::{AddressPolicy, Dscp, Learning, MediaAddr, MediaInterface};
use sbc_core::net::{Host, Interface, InterfaceId, Listener, Transport};
use toml::Spanned;

use super::convert::Context;
use super::raw;
use super::value::{Advertise, Listen, OneOrMany};

/// Interfaces at most, those included that a running node once had.
const INTERFACES_MAX: usize = 1_024;

/// An interface with the media side that belongs to it.
pub(super) struct Door {
    pub(super) interface: Interface,
    media: Option<MediaInterface>,
}

/// Interfaces in the order of their names, so that ids do not depend on the order of the file. Names
/// that the running node knows keep their ids; new ones come after them.
pub(super) fn convert(cx: &mut Context<'_>, file: &raw::File) -> Vec<Door> {
    if file.interface.is_empty() {
        cx.dependent(0..0, "there is no [[interface]]");
    }
    let mut sorted: Vec<&raw::Interface> = file.interface.iter().map(Spanned::get_ref).collect();
    sorted.sort_by(|a, b| a.name.get_ref().cmp(b.name.get_ref()));
    for pair in sorted.windows(2) {
        if let [a, b] = pair
            && a.name.get_ref() == b.name.get_ref()
        {
            let message = format!("the interface name \"{}\" is taken", b.name.get_ref());
            cx.problem(b.name.span(), message);
        }
    }
    let known = cx.surroundings.interfaces;
    let mut next = known.len();
    let mut doors = Vec::new();
    for raw in sorted {
        let index = known.iter().position(|name| **name == **raw.name.get_ref());
        let index = index.unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        if index >= INTERFACES_MAX {
            let message =
                format!("more than {INTERFACES_MAX} interfaces since the node was started");
            cx.problem(raw.name.span(), message);
        }
        doors.push(door(cx, index, raw));
    }
    doors
}

fn door(cx: &mut Context<'_>, index: usize, raw: &raw::Interface) -> Door {
    cx.name(&raw.name);
    let id = InterfaceId(u16::try_from(index).unwrap_or(u16::MAX));
    if raw.listen.0.is_empty() {
        cx.dependent(raw.name.span(), "the interface listens nowhere");
    }
    check_advertise(cx, &raw.advertise);
    let listeners = raw.listen.0.iter().map(|l| listener(cx, l, raw)).collect();
    let name: std::sync::Arc<str> = raw.name.get_ref().as_str().into();
    let interface = Interface {
        id,
        realm: raw.realm.as_deref().map_or_else(|| name.clone(), Into::into),
        name,
        listeners,
        media: raw.media.is_some(),
        large_by_tcp: raw.large_requests == raw::LargeRequests::Tcp,
    };
    let media = raw.media.as_ref().and_then(|m| media_side(cx, id, m, raw));
    Door { interface, media }
}

fn check_advertise(cx: &mut Context<'_>, advertise: &OneOrMany<Spanned<Advertise>>) {
    let family = |a: &Advertise| match a.host {
        Host::Ip(ip) => Some(ip.is_ipv4()),
        Host::Name(_) => None,
    };
    for (index, entry) in advertise.0.iter().enumerate() {
        let same = |e: &Spanned<Advertise>| family(e.get_ref()) == family(entry.get_ref());
        if advertise.0.iter().take(index).any(same) {
            cx.problem(entry.span(), "one address of each family, or one name, can be advertised");
        }
    }
}

/// What is advertised for a local address: the address of its family, or else the name.
fn advertised(raw: &raw::Interface, local: IpAddr) -> Option<&Advertise> {
    let all = || raw.advertise.0.iter().map(Spanned::get_ref);
    all()
        .find(|a| matches!(a.host, Host::Ip(ip) if ip.is_ipv4() == local.is_ipv4()))
        .or_else(|| all().find(|a| matches!(a.host, Host::Name(_))))
}

fn listener(cx: &mut Context<'_>, listen: &Spanned<Listen>, raw: &raw::Interface) -> Listener {
    let Listen { transport, local } = *listen.get_ref();
    let advertise = advertised(raw, local.ip());
    if advertise.is_none() && local.ip().is_unspecified() {
        cx.dependent(
            listen.span(),
            "it listens on all addresses of a family: say in advertise which one the peers use",
        );
    }
    if let Some(Advertise { port: Some(port), .. }) = advertise {
        let ports = raw.listen.0.iter().map(|l| l.get_ref().local.port());
        if ports.clone().any(|p| p != local.port()) {
            cx.problem(
                listen.span(),
                format!("advertise gives port {port} to listeners of different ports"),
            );
        }
    }
    Listener {
        transport,
        local,
        advertise_host: advertise.map_or(Host::Ip(local.ip()), |a| a.host.clone()),
        advertise_port: advertise.and_then(|a| a.port).unwrap_or(local.port()),
        retired: false,
    }
}

fn media_side(
    cx: &mut Context<'_>,
    id: InterfaceId,
    media: &Spanned<raw::InterfaceMedia>,
    raw: &raw::Interface,
) -> Option<MediaInterface> {
    let addrs = media_addresses(cx, media, raw);
    if addrs.is_empty() {
        cx.dependent(media.span(), "the media side has no address: say media.address");
        return None;
    }
    let of_family = |v4: bool| addrs.iter().find(|a| a.local.is_ipv4() == v4).copied();
    Some(MediaInterface {
        id: media_anchor::InterfaceId(id.0),
        v4: of_family(true),
        v6: of_family(false),
        ports: media.get_ref().ports.get_ref().0.clone(),
        dscp: Dscp::default(),
    })
}

/// One address of each family at most: those given, or those that the interface listens on.
fn media_addresses(
    cx: &mut Context<'_>,
    media: &Spanned<raw::InterfaceMedia>,
    raw: &raw::Interface,
) -> Vec<MediaAddr> {
    let given = &media.get_ref().address.0;
    let mut locals: Vec<(IpAddr, Range<usize>)> =
        given.iter().map(|a| (*a.get_ref(), a.span())).collect();
    if locals.is_empty() {
        for listen in &raw.listen.0 {
            let ip = listen.get_ref().local.ip();
            let new_family = locals.iter().all(|(l, _)| l.is_ipv4() != ip.is_ipv4());
            if !ip.is_unspecified() && new_family {
                locals.push((ip, media.span()));
            }
        }
    }
    let mut addrs: Vec<MediaAddr> = Vec::new();
    for (local, span) in locals {
        if local.is_unspecified() || local.is_multicast() {
            cx.problem(span.clone(), format!("{local} is no address of this machine"));
        }
        if addrs.iter().any(|a| a.local.is_ipv4() == local.is_ipv4()) {
            cx.problem(span, "one media address of each family at most");
            continue;
        }
        let own = media.get_ref().advertise.0.iter().map(|a| *a.get_ref());
        let inherited = advertised(raw, local).and_then(|a| match a.host {
            Host::Ip(ip) => Some(ip),
            Host::Name(_) => None,
        });
        let advertise = own.clone().find(|a| a.is_ipv4() == local.is_ipv4()).or(inherited);
        addrs.push(MediaAddr { local, advertise: advertise.unwrap_or(local) });
    }
    for advertise in &media.get_ref().advertise.0 {
        if !addrs.iter().any(|a| a.advertise == *advertise.get_ref()) {
            let message = format!("{} has no media address of its family", advertise.get_ref());
            cx.dependent(advertise.span(), message);
        }
    }
    addrs
}

/// The media anchor's part.
pub(super) fn media(
    cx: &mut Context<'_>,
    file: &raw::File,
    doors: &[Door],
    shards: usize,
) -> media_anchor::config::Config {
    let m = &file.media;
    let default = Dscp::default();
    let mut dscp = |value: &Option<Spanned<u8>>, default: Option<u8>| match value {
        None => default,
        Some(_) => Some(cx.bounded(value.as_ref(), 0, 0..=63)),
    };
    let dscp = Dscp {
        audio: dscp(&m.dscp_audio, default.audio),
        video: dscp(&m.dscp_video, default.video),
        other: dscp(&m.dscp_other, default.other),
    };
    let interfaces = doors.iter().filter_map(|d| d.media.clone());
    let interfaces = interfaces.map(|i| MediaInterface { dscp, ..i }).collect();
    let base = media_anchor::config::Config::new(interfaces);
    let learning = Learning::default();
    let cores = cx.surroundings.cores.max(1);
    media_anchor::config::Config {
        relay_threads: cx.bounded(m.relay_threads.as_ref(), cores, 1..=256),
        shards,
        max_sessions: cx.bounded(m.max_sessions.as_ref(), base.max_sessions, 1..=1_000_000),
        quarantine: m.quarantine.map_or(base.quarantine, |s| s.0),
        coalesce: coalesce(cx, file, base.coalesce),
        learning: Learning {
            packets: cx.bounded(m.learning_packets.as_ref(), learning.packets, 1..=100),
            grace: m.learning_grace.map_or(learning.grace, |s| s.0),
            window: m.learning_window.map_or(learning.window, |s| s.0),
        },
        policy: AddressPolicy {
            allow_local: m.allow_local,
            deny: m.deny.iter().map(|n| (n.0.addr(), n.0.prefix_len())).collect(),
        },
        ..base
    }
}

fn coalesce(cx: &mut Context<'_>, file: &raw::File, default: Duration) -> Duration {
    let Some(coalesce) = &file.media.coalesce else { return default };
    let value = coalesce.get_ref().0;
    if value > Duration::from_millis(10) {
        cx.problem(coalesce.span(), "coalesce adds latency to every packet: 10ms at most");
    }
    value
}

/// A socket that the file asks for.
struct Claim {
    what: String,
    span: Range<usize>,
    tcp: bool,
    ip: IpAddr,
    ports: std::ops::RangeInclusive<u16>,
    /// Of a listener: its interface and transport.
    listener: Option<(String, Transport)>,
}

impl Claim {
    /// SIP and WebSocket may share a port of one interface, both secured or neither.
    fn shares(&self, other: &Claim) -> bool {
        use Transport::{Tcp, Tls, Ws, Wss};
        let (Some((a, one)), Some((b, two))) = (&self.listener, &other.listener) else {
            return false;
        };
        let pair = matches!((one, two), (Tcp, Ws) | (Ws, Tcp) | (Tls, Wss) | (Wss, Tls));
        a == b && pair && self.ip == other.ip
    }

    fn clashes(&self, other: &Claim) -> bool {
        let same_ip = self.ip == other.ip
            || (self.ip.is_ipv4() == other.ip.is_ipv4()
                && (self.ip.is_unspecified() || other.ip.is_unspecified()));
        self.tcp == other.tcp
            && same_ip
            && self.ports.start() <= other.ports.end()
            && other.ports.start() <= self.ports.end()
    }
}

/// Reports every two sockets of the file that cannot both be opened.
pub(super) fn check_overlaps(cx: &mut Context<'_>, file: &raw::File) {
    let mut claims: Vec<Claim> = Vec::new();
    for interface in file.interface.iter().map(Spanned::get_ref) {
        let name = interface.name.get_ref();
        for listen in &interface.listen.0 {
            let Listen { transport, local } = *listen.get_ref();
            claims.push(Claim {
                what: format!("listener {transport}://{local} of interface \"{name}\""),
                span: listen.span(),
                tcp: transport != Transport::Udp,
                ip: local.ip(),
                ports: local.port()..=local.port(),
                listener: Some((name.clone(), transport)),
            });
        }
        let Some(media) = &interface.media else { continue };
        let mut quiet = Vec::new();
        let given = media.get_ref().address.0.iter().map(|a| *a.get_ref());
        let listens = interface.listen.0.iter().map(|l| l.get_ref().local.ip());
        quiet.extend(given);
        if quiet.is_empty() {
            quiet.extend(listens.filter(|ip| !ip.is_unspecified()));
            quiet.sort();
            quiet.dedup();
        }
        let ports = media.get_ref().ports.get_ref().0.clone();
        claims.extend(quiet.into_iter().map(|ip| Claim {
            what: format!("media ports {}-{} of interface \"{name}\"", ports.start(), ports.end()),
            span: media.get_ref().ports.span(),
            tcp: false,
            ip,
            ports: ports.clone(),
            listener: None,
        }));
    }
    let tcp = |what: &str, listen: &Spanned<SocketAddr>| Claim {
        what: format!("{what} on {}", listen.get_ref()),
        span: listen.span(),
        tcp: true,
        ip: listen.get_ref().ip(),
        ports: listen.get_ref().port()..=listen.get_ref().port(),
        listener: None,
    };
    claims.extend(file.metrics.listen.iter().map(|l| tcp("metrics", l)));
    claims.extend(file.admin.listen.iter().map(|l| tcp("admin", l)));
    let cluster = file.cluster.iter().filter_map(|c| c.get_ref().listen.as_ref());
    claims.extend(cluster.map(|l| tcp("cluster", l)));
    for (index, claim) in claims.iter().enumerate() {
        let clash =
            claims.iter().take(index).find(|other| claim.clashes(other) && !claim.shares(other));
        if let Some(other) = clash {
            cx.problem(claim.span.clone(), format!("{} overlaps {}", claim.what, other.what));
        }
    }
}
