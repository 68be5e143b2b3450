//! Topology hiding: which headers of one side's message may be copied to the other side, and how
//! those that name hosts are changed. What is not listed here does not cross.
//!
//! Via, Contact, tags and all that makes a message ours is written by `wire.rs`, never copied.

use std::fmt;

use crate::digest::Credentials;
use crate::net::Host;
use crate::routing::{HeaderPolicy, TrunkConfig};
use crate::sip::value::FromValue;
use crate::sip::{
    Builder, Header, HeaderName, Message, NameAddr, Out, Params, Scheme, UriRef, WriteValue,
};

/// What becomes of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Ours to write, or void on the other side; never copied, no policy can change that.
    Never,
    /// Says nothing about its side: crosses unless a policy would have to allow it.
    Always,
    /// Identity of users: crosses between trusted trunks, with our host (RFC 3325).
    Identity,
    /// Says which privacy was asked for: crosses between trusted trunks.
    Privacy,
    /// Crosses from a core that challenges our phones to them.
    Challenge,
    /// Crosses from our phones to such a core, those of our own realm apart.
    Credentials,
    /// Crosses with our name as agent (RFC 3261 §20.43).
    Warning,
    /// Crosses only where both trunks' header policies name it.
    Policy,
}

fn class(name: HeaderName) -> Class {
    use HeaderName as H;
    match name {
        H::Via
        | H::From
        | H::To
        | H::CallId
        | H::CSeq
        | H::MaxForwards
        | H::ContentLength
        | H::ContentType
        | H::Contact
        | H::Route
        | H::RecordRoute
        | H::Path
        | H::ServiceRoute
        | H::UserAgent
        | H::Server
        | H::Allow
        | H::Supported
        | H::Require
        | H::ProxyRequire
        | H::Unsupported
        | H::AuthenticationInfo
        | H::SessionExpires
        | H::MinSe
        | H::RAck
        | H::RSeq
        | H::Replaces
        | H::ReferTo
        | H::ReferredBy
        | H::TargetDialog
        | H::Join
        | H::InReplyTo
        | H::Timestamp
        | H::FlowTimer => Class::Never,
        H::ProxyAuthenticate | H::WwwAuthenticate => Class::Challenge,
        H::Authorization | H::ProxyAuthorization => Class::Credentials,
        H::Accept
        | H::AcceptContact
        | H::AcceptEncoding
        | H::AcceptLanguage
        | H::AllowEvents
        | H::ContentDisposition
        | H::ContentEncoding
        | H::ContentLanguage
        | H::ContentTransferEncoding
        | H::Date
        | H::Event
        | H::Expires
        | H::InfoPackage
        | H::MimeVersion
        | H::MinExpires
        | H::PEarlyMedia
        | H::Priority
        | H::Reason
        | H::RecvInfo
        | H::ReferSub
        | H::RejectContact
        | H::RequestDisposition
        | H::ResourcePriority
        | H::RetryAfter
        | H::SipEtag
        | H::SipIfMatch
        | H::Subject
        | H::SubscriptionState
        | H::SuppressIfMatch
        | H::UserToUser => Class::Always,
        H::PAssertedIdentity
        | H::PPreferredIdentity
        | H::RemotePartyId
        | H::Diversion
        | H::HistoryInfo => Class::Identity,
        H::Privacy => Class::Privacy,
        H::Warning => Class::Warning,
        H::AlertInfo
        | H::CallInfo
        | H::ContentId
        | H::ErrorInfo
        | H::FeatureCaps
        | H::Geolocation
        | H::GeolocationError
        | H::GeolocationRouting
        | H::Identity
        | H::IdentityInfo
        | H::Organization
        | H::PAccessNetworkInfo
        | H::PCalledPartyId
        | H::PChargingFunctionAddresses
        | H::PChargingVector
        | H::PVisitedNetworkId
        | H::ReplyTo
        | H::SessionId
        | H::Other => Class::Policy,
    }
}

/// Which way a message crosses.
pub(crate) struct Crossing<'a> {
    pub(crate) from: &'a TrunkConfig,
    pub(crate) to: &'a TrunkConfig,
    /// What we call ourselves on the side that it goes to.
    pub(crate) host: &'a Host,
    /// Translated user part of the first P-Asserted-Identity (dialog-forming requests).
    pub(crate) pai_user: Option<&'a str>,
}

/// Copies what may cross from `message` into `out`.
pub(crate) fn cross(out: &mut Builder, message: &Message, way: &Crossing<'_>) {
    cross_but(out, message, way, HeaderName::Via);
}

/// The same without one header, which the caller writes anew.
pub(crate) fn cross_but(out: &mut Builder, message: &Message, way: &Crossing<'_>, but: HeaderName) {
    let trusted = way.from.trusted && way.to.trusted;
    let mut pai_user = way.pai_user;
    for header in message.headers().filter(|h| h.id != but) {
        match class(header.id) {
            Class::Never => {}
            Class::Always => {
                out.crossing(header);
            }
            Class::Identity if trusted => identities(out, header, way.host, &mut pai_user),
            Class::Privacy if trusted => {
                out.crossing(header);
            }
            Class::Identity | Class::Privacy => {}
            Class::Challenge => {
                if challenges_pass(way.from, way.to) {
                    out.crossing(header);
                }
            }
            Class::Credentials => {
                if way.from.users
                    && way
                        .to
                        .pass_challenges
                        .as_deref()
                        .is_some_and(|own| is_for_others(header.value, own))
                {
                    out.crossing(header);
                }
            }
            Class::Warning => warning(out, header.value, way.host),
            Class::Policy => {
                if HeaderPolicy::crosses(&way.from.headers, &way.to.headers, header.name) {
                    out.crossing(header);
                }
            }
        }
    }
}

/// Whether challenges of one trunk are for the phones of another to answer.
pub(crate) fn challenges_pass(from: &TrunkConfig, to: &TrunkConfig) -> bool {
    from.pass_challenges.is_some() && to.users
}

/// Whether credentials are for another realm than our own. What does not parse is for nobody.
fn is_for_others(value: &str, own: &str) -> bool {
    Credentials::parse(value).is_ok_and(|c| c.realm != own)
}

/// Writes every identity of a header line with our host in place of its own.
fn identities(out: &mut Builder, header: Header<'_>, host: &Host, pai_user: &mut Option<&str>) {
    for value in crate::sip::List::new(header.value) {
        let Ok(identity) = NameAddr::from_value(value) else { continue };
        let Ok(uri) = identity.uri() else { continue };
        let user = match header.id {
            HeaderName::PAssertedIdentity => pai_user.take().or(uri.user()),
            _ => uri.user(),
        };
        let shown = Hosted { uri, user, host };
        out.header(header.id, (Display(identity.display_raw), "<", shown, ">", identity.params.0));
    }
}

/// A display name and the blank behind it.
pub(crate) struct Display<'a>(pub(crate) &'a str);

impl WriteValue for Display<'_> {
    fn write_value(&self, out: &mut Out<'_>) {
        if !self.0.is_empty() {
            (self.0, " ").write_value(out);
        }
    }
}

/// A URI with another host: user part and `user=phone` stay, everything else of the far side goes.
/// tel URIs have no host and stay as they are.
pub(crate) struct Hosted<'a> {
    pub(crate) uri: UriRef<'a>,
    pub(crate) user: Option<&'a str>,
    pub(crate) host: &'a Host,
}

impl fmt::Display for Hosted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.uri.scheme() == Scheme::Tel && self.user == self.uri.user() {
            return f.write_str(self.uri.as_str());
        }
        let sips = self.uri.scheme() == Scheme::Sips;
        f.write_str(if sips { "sips:" } else { "sip:" })?;
        if let Some(user) = self.user.filter(|u| !u.is_empty()) {
            write!(f, "{user}@")?;
        }
        if self.uri.host().eq_ignore_ascii_case("anonymous.invalid") {
            return f.write_str("anonymous.invalid");
        }
        write!(f, "{}", self.host)?;
        if is_phone(self.uri) { f.write_str(";user=phone") } else { Ok(()) }
    }
}

impl WriteValue for Hosted<'_> {
    fn write_value(&self, out: &mut Out<'_>) {
        format_args!("{self}").write_value(out);
    }
}

/// Whether a URI's user part is a telephone number by its own account.
pub(crate) fn is_phone(uri: UriRef<'_>) -> bool {
    uri.scheme() == Scheme::Tel
        || uri.params().get("user").is_some_and(|u| u.eq_ignore_ascii_case("phone"))
}

/// `code agent "text"`: the agent becomes our host (RFC 3261 §20.43).
fn warning(out: &mut Builder, value: &str, host: &Host) {
    for one in crate::sip::List::new(value) {
        let mut parts = one.splitn(3, ' ');
        let (Some(code), Some(_agent), Some(text)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit()) && text.starts_with('"') {
            out.header(HeaderName::Warning, (code, " ", host, " ", text));
        }
    }
}

/// Whether the caller asked that its name be withheld (RFC 3323 §4.2: `user`, `header`).
pub(crate) fn wants_anonymity(message: &Message) -> bool {
    message.lines(HeaderName::Privacy).flat_map(|l| l.split([';', ','])).any(|p| {
        let p = p.trim();
        p.eq_ignore_ascii_case("user") || p.eq_ignore_ascii_case("header")
    })
}

/// The option tags of a list header that `keep` lets stay.
pub(crate) fn has_option(message: &Message, name: HeaderName, tag: &str) -> bool {
    message.lists(name, tag)
}

/// Appends the parameters of a header that may cross: all but those that name tags.
pub(crate) fn push_without_tag(kept: &mut String, params: Params<'_>) {
    for (name, value) in params.iter() {
        if name.eq_ignore_ascii_case("tag") {
            continue;
        }
        kept.push(';');
        kept.push_str(name);
        if let Some(value) = value {
            kept.push('=');
            kept.push_str(value);
        }
    }
}
