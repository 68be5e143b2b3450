//! The raw form of admission, guard and overload: what `raw.rs` is for the rest of the file.

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::value::{Net, OneOrMany, Span, SpanOrOff, Transport_};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Admission {
    pub(super) max_calls: Option<u32>,
    pub(super) max_cps: Option<Spanned<f64>>,
    pub(super) emergency: Vec<Box<str>>,
    pub(super) limit: Vec<Spanned<CallerLimit>>,
}

/// A limit of calls by who calls or by what is called.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct CallerLimit {
    pub(super) name: Spanned<String>,
    pub(super) by: CallsBy,
    #[serde(default)]
    pub(super) users: OneOrMany<Spanned<Box<str>>>,
    #[serde(default)]
    pub(super) prefixes: OneOrMany<Spanned<Box<str>>>,
    pub(super) max_calls: Option<u32>,
    pub(super) max_cps: Option<Spanned<f64>>,
    #[serde(default)]
    pub(super) over: OverLimit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum CallsBy {
    User,
    Prefix,
    All,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Guard {
    pub(super) mode: PikeMode,
    pub(super) window: Option<Spanned<Span>>,
    pub(super) density: Option<Spanned<u16>>,
    pub(super) remove_after: Option<Spanned<Span>>,
    pub(super) ipv6_prefix: Option<Spanned<u8>>,
    pub(super) max_nodes: Option<Spanned<usize>>,
    pub(super) ban_for: Option<SpanOrOff>,
    pub(super) max_bans: Option<Spanned<usize>>,
    pub(super) kernel: Option<bool>,
    pub(super) devices: Vec<String>,
    pub(super) ban_lists: OneOrMany<Spanned<PathBuf>>,
    pub(super) user_allowance: Option<Spanned<u16>>,
    pub(super) trusted: Vec<Net>,
    pub(super) exempt_trunks: Option<bool>,
    pub(super) scanners: Option<bool>,
    pub(super) scanner_file: Option<Spanned<PathBuf>>,
    pub(super) failed_auth: Option<Spanned<u16>>,
    pub(super) unknown_users: Option<Spanned<u8>>,
    pub(super) dictionary_period: Option<Spanned<Span>>,
    pub(super) max_sources: Option<Spanned<usize>>,
    pub(super) max_buckets: Option<Spanned<usize>>,
    pub(super) tls_handshakes: Option<Spanned<u32>>,
    pub(super) tls_handshakes_per_source: Option<Spanned<u32>>,
    pub(super) country_file: Option<Spanned<PathBuf>>,
    pub(super) unknown_country: UnknownCountry,
    pub(super) time_zone: Option<Spanned<String>>,
    pub(super) access: Vec<Spanned<AccessRule>>,
    pub(super) limit: Vec<Spanned<RateLimit>>,
    pub(super) fraud: Vec<Spanned<FraudProfile>>,
}

/// What sources get that the country file does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum UnknownCountry {
    #[default]
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum PikeMode {
    Off,
    Requests,
    #[default]
    All,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct AccessRule {
    pub(super) interface: Option<Spanned<String>>,
    pub(super) realm: Option<Spanned<String>>,
    pub(super) trunk: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) sources: OneOrMany<Net>,
    #[serde(default)]
    pub(super) transports: OneOrMany<Transport_>,
    #[serde(default)]
    pub(super) methods: OneOrMany<Spanned<Box<str>>>,
    pub(super) access: Access,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Access {
    Allow,
    Drop,
    Reject,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RateLimit {
    pub(super) by: RateKey,
    #[serde(default)]
    pub(super) algorithm: Algorithm,
    /// Of `network`.
    pub(super) delay: Option<Spanned<Span>>,
    /// Of `feedback`.
    pub(super) cpu: Option<Spanned<f64>>,
    pub(super) prefix_length: Option<Spanned<u8>>,
    #[serde(default)]
    pub(super) methods: OneOrMany<Spanned<Box<str>>>,
    pub(super) per_second: Option<Spanned<f64>>,
    pub(super) burst: Option<Spanned<u32>>,
    #[serde(default)]
    pub(super) over: OverLimit,
    /// The rate is that of the whole cluster.
    #[serde(default)]
    pub(super) cluster: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Algorithm {
    #[default]
    Bucket,
    Network,
    Feedback,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RateKey {
    All,
    Interface,
    Source,
    Trunk,
    Aor,
    Prefix,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum OverLimit {
    Silence,
    #[default]
    Unavailable,
    Forbidden,
}

/// What a call past a critical threshold gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FraudAction {
    #[default]
    Alarm,
    Block,
}

/// Thresholds are `[warning, critical]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct FraudProfile {
    pub(super) name: Spanned<String>,
    #[serde(default)]
    pub(super) prefixes: OneOrMany<Box<str>>,
    pub(super) hours: Option<Spanned<[u8; 2]>>,
    pub(super) calls_per_minute: Option<Spanned<[u32; 2]>>,
    pub(super) concurrent: Option<Spanned<[u32; 2]>>,
    pub(super) total_minutes: Option<Spanned<[u32; 2]>>,
    pub(super) sequential: Option<Spanned<[u32; 2]>>,
    #[serde(default)]
    pub(super) critical: FraudAction,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Overload {
    pub(super) delay_low: Option<Span>,
    pub(super) delay_high: Option<Spanned<Span>>,
    pub(super) cpu_low: Option<f64>,
    pub(super) cpu_high: Option<Spanned<f64>>,
    pub(super) retry_after_max: Option<Span>,
}
