//! Trunks: from the file's words to the routing core's.

use std::sync::Arc;
use std::time::Duration;

use sbc_core::media;
use sbc_core::net::{InterfaceId, Transport};
use sbc_core::routing::{
    CodecPolicy, Credential, FailoverPolicy, Field, HeaderPolicy, Peer, ProbePolicy,
    RegisterConfig, Secret, SessionTimerMode, SessionTimerPolicy, Translation, TrunkConfig,
};
use toml::Spanned;

use super::convert::Context;
use super::interface::Door;
use super::{raw, registrar};

/// Headers that the SBC writes itself, whatever a trunk would like.
const OWN_HEADERS: [&str; 24] = [
    "Via",
    "From",
    "To",
    "Call-ID",
    "CSeq",
    "Contact",
    "Max-Forwards",
    "Route",
    "Record-Route",
    "Path",
    "Service-Route",
    "Content-Length",
    "Content-Type",
    "Authorization",
    "Proxy-Authorization",
    "WWW-Authenticate",
    "Proxy-Authenticate",
    "Require",
    "Proxy-Require",
    "Supported",
    "Session-Expires",
    "Min-SE",
    "RAck",
    "RSeq",
];

/// All trunks of the file, in its order.
pub(super) fn convert(cx: &mut Context<'_>, file: &raw::File, doors: &[Door]) -> Vec<TrunkConfig> {
    let one = |trunk: &Spanned<raw::Trunk>| {
        let trunk = trunk.get_ref();
        let mut config = one(cx, trunk, doors, registrar::domain(file, trunk.name.get_ref()));
        if config.users && matches!(trunk.latch, raw::Latch::Auto) {
            // Phones are behind NAT more often than not, and then they lie in their SDP.
            config.latch = media::Latch::Force;
        }
        // And in their Contact: within a dialog they are reached where they sent from.
        config.symmetric |= config.users;
        if let Some(pass) = trunk.pass_challenges.as_ref().filter(|p| *p.get_ref()) {
            config.pass_challenges = registrar::realm(file);
            if config.users || config.pass_challenges.is_none() {
                let message = "pass-challenges is for a trunk that phones of a [registrar] call by";
                cx.dependent(pass.span(), message);
            }
        }
        config
    };
    file.trunk.iter().map(one).collect()
}

fn one(
    cx: &mut Context<'_>,
    raw: &raw::Trunk,
    doors: &[Door],
    users: Option<String>,
) -> TrunkConfig {
    cx.name(&raw.name);
    let door = doors.iter().find(|d| *d.interface.name == **raw.interface.get_ref());
    if door.is_none() {
        let message = format!("there is no interface \"{}\"", raw.interface.get_ref());
        cx.dependent(raw.interface.span(), message);
    }
    if raw.peers.0.is_empty() && raw.sources.0.is_empty() && users.is_none() {
        cx.dependent(raw.name.span(), "the trunk has neither peers nor sources");
    }
    let interface = door.map_or(InterfaceId(0), |d| d.interface.id);
    let text = |s: &Option<String>| s.as_deref().map(Arc::from);
    TrunkConfig {
        realm: door.map_or_else(|| "".into(), |d| d.interface.realm.clone()),
        peers: match &users {
            Some(domain) => {
                vec![Peer { host: domain.as_str().into(), port: None, transport: None }]
            }
            None => raw.peers.0.iter().map(|p| peer(cx, p, raw, door)).collect(),
        },
        users: users.is_some(),
        sources: raw.sources.0.iter().map(|s| s.get_ref().0).collect(),
        enabled: raw.enabled,
        probe: probe(cx, raw).filter(|_| users.is_none()),
        limits: cx.limits(raw.max_calls, raw.max_cps.as_ref()),
        domain: text(&raw.domain),
        from_domain: text(&raw.from_domain),
        trusted: raw.trusted,
        codecs: CodecPolicy {
            allow: raw.codecs.allow.clone(),
            deny: raw.codecs.deny.clone(),
            prefer: raw.codecs.prefer.clone(),
        },
        translate_in: raw.translate_in.iter().map(|t| translation(cx, t)).collect(),
        translate_out: raw.translate_out.iter().map(|t| translation(cx, t)).collect(),
        latch: match raw.latch {
            raw::Latch::Off => media::Latch::Off,
            raw::Latch::Auto => media::Latch::Auto,
            raw::Latch::Force => media::Latch::Force,
        },
        symmetric: raw.symmetric,
        media_ipv6: match raw.media_family {
            raw::MediaFamily::Auto => None,
            raw::MediaFamily::Ipv4 => Some(false),
            raw::MediaFamily::Ipv6 => Some(true),
        },
        refer: raw.refer,
        route_options: raw.route_options,
        unsolicited_notify: raw.unsolicited_notify,
        rel100: raw.rel100,
        headers: headers(cx, &raw.headers),
        credentials: raw.credentials.iter().filter_map(|c| credential(cx, c)).collect(),
        register: raw.register.iter().map(|r| register(cx, r, raw)).collect(),
        failover: failover(cx, &raw.failover),
        session_timer: session_timer(cx, &raw.session_timer),
        max_duration: raw.max_duration.map(|s| s.0),
        ring_timeout: raw.ring_timeout.map(|s| s.0),
        ..TrunkConfig::new(raw.name.get_ref(), interface)
    }
}

fn peer(
    cx: &mut Context<'_>,
    peer: &Spanned<super::value::PeerText>,
    raw: &raw::Trunk,
    door: Option<&Door>,
) -> Peer {
    let text = peer.get_ref();
    let transport = text.transport.or(raw.transport.map(|t| t.0));
    let peer_config = Peer { host: (*text.host).into(), port: text.port, transport };
    if let Some(door) = door {
        let ip = peer_config.ip();
        // A literal without transport is reached by UDP (RFC 3263 §4.1).
        let wanted = transport.or(ip.map(|_| Transport::Udp));
        let fits = door.interface.listeners.iter().any(|l| {
            wanted.is_none_or(|t| t == l.transport)
                && ip.is_none_or(|ip| ip.is_ipv4() == l.local.is_ipv4())
        });
        if !fits {
            let family = ip.map_or("", |ip| if ip.is_ipv4() { " over IPv4" } else { " over IPv6" });
            let transport = wanted.map_or(String::new(), |t| format!(" {t}"));
            let message = format!(
                "interface \"{}\" has no{transport} listener{family} to reach \"{}\" by",
                door.interface.name, text.host
            );
            cx.dependent(peer.span(), message);
        }
    }
    peer_config
}

fn probe(cx: &mut Context<'_>, raw: &raw::Trunk) -> Option<ProbePolicy> {
    let probe = raw.probe.0.as_ref()?;
    if probe.timeout.0.is_zero() || probe.interval.0 < probe.timeout.0 {
        let message = "probe.timeout is 0 or longer than probe.interval";
        cx.problem(raw.name.span(), message);
    }
    if probe.up_after == 0 || probe.down_after == 0 {
        cx.problem(raw.name.span(), "probe.up-after and probe.down-after are 1 or more");
    }
    if raw.peers.0.is_empty() {
        cx.dependent(raw.name.span(), "a trunk without peers cannot be probed");
    }
    Some(ProbePolicy {
        interval: probe.interval.0,
        timeout: probe.timeout.0,
        up_after: probe.up_after,
        down_after: probe.down_after,
    })
}

fn translation(cx: &mut Context<'_>, raw: &raw::Translate) -> Translation {
    let pattern = raw.pattern.0.clone();
    for name in references(raw.replace.get_ref()) {
        let known = match name.parse::<usize>() {
            Ok(index) => index < pattern.captures_len(),
            Err(_) => pattern.capture_names().flatten().any(|n| n == name),
        };
        if !known {
            cx.problem(
                raw.replace.span(),
                format!(
                    "the pattern has no capture \"{name}\"; write ${{1}} before letters and digits"
                ),
            );
        }
    }
    let fields = raw.fields.iter().map(|f| match f {
        raw::Field::Ruri => Field::RequestUri,
        raw::Field::From => Field::From,
        raw::Field::To => Field::To,
        raw::Field::Pai => Field::Pai,
    });
    Translation { fields: fields.collect(), pattern, replace: raw.replace.get_ref().clone() }
}

/// The captures that a replacement names: `$1`, `${1}`, `$name`, `${name}`; `$$` is a dollar sign.
fn references(replace: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = replace;
    while let Some((_, after)) = rest.split_once('$') {
        if let Some(tail) = after.strip_prefix('$') {
            rest = tail;
            continue;
        }
        let name = match after.strip_prefix('{') {
            Some(braced) => braced.split_once('}').map_or("", |(name, _)| name),
            None => {
                let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
                &after[..after.bytes().take_while(|b| word(b)).count()]
            }
        };
        if !name.is_empty() {
            found.push(name);
        }
        rest = after;
    }
    found
}

fn headers(cx: &mut Context<'_>, raw: &raw::Headers) -> HeaderPolicy {
    for name in raw.accept.iter().chain(&raw.pass) {
        let text = name.get_ref();
        let bare = text.strip_suffix('*').unwrap_or(text);
        if !is_token(bare) {
            cx.problem(name.span(), format!("\"{text}\" is no header name"));
        } else if own_header(text, bare) {
            cx.problem(
                name.span(),
                format!("\"{text}\" names a header that the SBC writes itself"),
            );
        }
    }
    for (name, value) in &raw.set {
        if !is_token(name) || own_header(name, name) {
            cx.problem(value.span(), format!("the header \"{name}\" cannot be set"));
        }
        if value.get_ref().bytes().any(|b| b < b' ' || b == 0x7f) {
            cx.problem(value.span(), format!("the value of \"{name}\" has control characters"));
        }
    }
    let names = |list: &[Spanned<Box<str>>]| list.iter().map(|n| n.get_ref().clone()).collect();
    HeaderPolicy {
        accept: names(&raw.accept),
        pass: names(&raw.pass),
        set: raw.set.iter().map(|(n, v)| (n.clone(), v.get_ref().clone())).collect(),
    }
}

/// `*` alone and patterns that take one of ours in are refused too.
fn own_header(pattern: &str, bare: &str) -> bool {
    OWN_HEADERS.iter().any(|own| {
        let head = own.get(..bare.len());
        if pattern.ends_with('*') {
            head.is_some_and(|h| h.eq_ignore_ascii_case(bare))
        } else {
            own.eq_ignore_ascii_case(bare)
        }
    })
}

/// A token (RFC 3261 §25.1).
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.!%_+`'~".contains(&b))
}

fn credential(cx: &mut Context<'_>, raw: &raw::Credential) -> Option<Credential> {
    let password = match (&raw.password, &raw.password_file) {
        (Some(password), None) => password.clone(),
        (None, Some(file)) => cx.text(file)?.trim_end_matches(['\r', '\n']).to_owned(),
        (Some(_), Some(_)) | (None, None) => {
            cx.dependent(raw.realm.span(), "credentials need password or password-file");
            return None;
        }
    };
    Some(Credential {
        realm: raw.realm.get_ref().as_str().into(),
        username: raw.username.as_str().into(),
        password: Secret::new(&password),
    })
}

fn register(
    cx: &mut Context<'_>,
    spanned: &Spanned<raw::Register>,
    trunk: &raw::Trunk,
) -> RegisterConfig {
    let (raw, span) = (spanned.get_ref(), spanned.span());
    let default = RegisterConfig::new(raw.aor.strip_prefix("sip:").unwrap_or(&raw.aor));
    let config = RegisterConfig {
        registrar: raw
            .registrar
            .as_deref()
            .map_or(default.registrar, |r| r.strip_prefix("sip:").unwrap_or(r).into()),
        expires: cx.span(raw.expires.as_ref(), default.expires),
        contact_user: raw.contact_user.as_deref().map_or(default.contact_user, Arc::from),
        match_contact: raw.matching == raw::RegisterMatch::Contact,
        retry: cx.span(raw.retry.as_ref(), default.retry),
        retry_max: cx.span(raw.retry_max.as_ref(), default.retry_max),
        aor: default.aor,
    };
    let uri = |text: &str| {
        let parsed = sbc_core::sip::UriRef::parse(text);
        parsed.is_ok_and(|u| u.is_sip() && u.params().iter().next().is_none())
    };
    let named = config.aor.split_once('@').is_some_and(|(user, _)| !user.is_empty());
    if !named || !uri(&format!("sip:{}", config.aor)) {
        cx.problem(span.clone(), format!("\"{}\" is no address of record", raw.aor));
    }
    if !uri(&format!("sip:{}", config.registrar)) || config.registrar.contains('@') {
        cx.problem(span.clone(), format!("\"{}\" is no registrar", config.registrar));
    }
    if !config.contact_user.is_empty() && !uri(&format!("sip:{}@h", config.contact_user)) {
        cx.problem(span.clone(), format!("\"{}\" is no user part", config.contact_user));
    }
    if config.retry > config.retry_max {
        cx.problem(span.clone(), "register: retry is longer than retry-max");
    }
    if config.expires < Duration::from_secs(10) || config.expires > Duration::from_secs(604_800) {
        cx.problem(span.clone(), "register: expires is 10s to 7d");
    }
    if trunk.peers.0.is_empty() {
        cx.dependent(span.clone(), "a trunk without peers cannot be registered with");
    }
    let same = |r: &&Spanned<raw::Register>| r.get_ref().aor == raw.aor;
    if trunk.register.iter().filter(same).count() > 1 {
        cx.problem(span, format!("\"{}\" is registered twice", raw.aor));
    }
    config
}

fn failover(cx: &mut Context<'_>, raw: &raw::Failover) -> FailoverPolicy {
    let default = FailoverPolicy::default();
    for code in raw.codes.iter().flatten() {
        if !(400..=699).contains(code.get_ref()) {
            cx.problem(code.span(), format!("{} is no failure status", code.get_ref()));
        }
    }
    FailoverPolicy {
        codes: raw
            .codes
            .as_ref()
            .map_or(default.codes, |codes| codes.iter().map(|c| *c.get_ref()).collect()),
        no_answer: raw.no_answer.map_or(default.no_answer, |s| s.0),
    }
}

fn session_timer(cx: &mut Context<'_>, raw: &raw::SessionTimer) -> SessionTimerPolicy {
    let default = SessionTimerPolicy::default();
    let timer = SessionTimerPolicy {
        mode: raw.mode.map_or(default.mode, |m| match m {
            raw::SessionTimerMode::Off => SessionTimerMode::Off,
            raw::SessionTimerMode::Accept => SessionTimerMode::Accept,
            raw::SessionTimerMode::Require => SessionTimerMode::Require,
        }),
        expires: raw.expires.as_ref().map_or(default.expires, |s| s.get_ref().0),
        min_se: raw.min_se.as_ref().map_or(default.min_se, |s| s.get_ref().0),
    };
    if timer.expires < timer.min_se || timer.min_se < Duration::from_secs(1) {
        let span = raw.expires.as_ref().or(raw.min_se.as_ref()).map_or(0..0, Spanned::span);
        cx.problem(span, "session-timer: expires is shorter than min-se, or min-se below 1s");
    }
    timer
}
