//! SIPS (RFC 5630, RFC 3261 §26.2.2): a request for a `sips:` URI comes over TLS and goes on over TLS, or
//! not at all.
//!
//! A leg with `secure` in its dialog names itself by a `sips:` Contact and is never sent by anything but
//! TLS, whatever its peer says. What a URI means as a next hop is in `wire.rs`.

use super::env::Cx;
use super::invite::{self, Incoming, Refuse};
use super::users::users_trunk;
use super::wire;
use crate::dialog::Dialog;
use crate::net::{Flow, Target, Transport};
use crate::registrar::{Reach, Reached};
use crate::routing::Peer;
use crate::sip::value::FromValue;
use crate::sip::{Builder, HeaderName, Message, Method, NameAddr};

/// Whether a text is a `sips:` URI.
pub(crate) fn is_sips(uri: &str) -> bool {
    uri.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("sips:"))
}

/// Whether a request is for a `sips:` URI.
pub(crate) fn wants_tls(request: &Message) -> bool {
    is_sips(request.request_uri_str())
}

/// Whether the dialog that a request makes is one of `sips:` URIs on its sender's side (RFC 3261
/// §12.1.1): by its Request-URI, its topmost Record-Route or, without one, its Contact.
pub(crate) fn makes_secure(request: &Message, flow: &Flow) -> bool {
    let route = request.values(HeaderName::RecordRoute).next();
    let named = match route {
        Some(route) => NameAddr::from_value(route).ok(),
        None => request.contact().ok().flatten(),
    };
    flow.transport.is_secure()
        && (wants_tls(request) || named.is_some_and(|named| is_sips(named.uri_str)))
}

/// Refuses what is for a `sips:` URI and has come in the clear, inside dialogs too; whether it did. What
/// strangers begin is refused elsewhere, as anything of theirs.
pub(crate) fn refused(cx: &mut Cx<'_>, incoming: &Incoming<'_>) -> bool {
    let (message, flow) = (incoming.message, &incoming.flow);
    if flow.transport.is_secure() || !wants_tls(message) {
        return false;
    }
    let known = message.to_tag().is_some()
        || cx.env.routing.identify(flow).is_some()
        || users_trunk(cx, flow).is_some();
    if !known {
        return false;
    }
    let warning = not_allowed(cx, flow).map(|w| (HeaderName::Warning, w));
    let refuse = Refuse { headers: warning.into_iter().collect(), ..Refuse::new(480, "") };
    let starts = message.to_tag().is_none();
    match message.method() {
        Some(Method::Invite) if starts => invite::refuse_call(cx, incoming, &refuse),
        _ => invite::refuse(cx, incoming, &refuse),
    }
    true
}

/// Whether a leg may be sent by a flow.
pub(crate) fn may_go_by(dialog: &Dialog, flow: &Flow) -> bool {
    !dialog.secure || flow.transport.is_secure()
}

/// RFC 5630 §5.3: why there is no way on.
fn not_allowed(cx: &Cx<'_>, flow: &Flow) -> Option<String> {
    let host = &cx.listener(&wire::hop_of_flow(flow))?.advertise_host;
    Some(format!("380 {host} \"SIPS Not Allowed\""))
}

/// Says so in a response.
pub(crate) fn warn(cx: &Cx<'_>, flow: &Flow, out: &mut Builder) {
    if let Some(warning) = not_allowed(cx, flow) {
        out.header(HeaderName::Warning, warning);
    }
}

/// How a trunk's peer is reached, over TLS where that is asked for.
pub(crate) enum Way {
    Address(Target),
    /// By its name; over TLS only.
    Name {
        sips: bool,
    },
    /// It is configured with another transport than TLS.
    Insecure,
}

pub(crate) fn way(peer: &Peer, sips: bool) -> Way {
    if sips && peer.transport.is_some_and(|t| !t.is_secure()) {
        return Way::Insecure;
    }
    let Some(ip) = peer.ip() else { return Way::Name { sips } };
    let default = if sips { Transport::Tls } else { Transport::Udp };
    let transport = peer.transport.unwrap_or(default);
    let port = peer.port.unwrap_or(transport.default_port());
    Way::Address(Target::new(transport, (ip, port).into()))
}

/// Whether a contact may be given what is for a `sips:` URI (RFC 5630 §5.3): it is one itself, and its
/// way is TLS.
pub(crate) fn may_be_given(contact: &Reached) -> bool {
    let flow = match contact.reach {
        Reach::Flow(flow) => flow.transport.is_secure(),
        Reach::Uri(_) => {
            let path = contact.path.first().and_then(|p| NameAddr::from_value(p).ok());
            path.is_none_or(|path| is_sips(path.uri_str))
        }
    };
    flow && is_sips(&contact.uri)
}
