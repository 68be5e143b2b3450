//! Requests outside any dialog other than INVITE.

use super::call::{Asked, Call};
use super::env::Cx;
use super::invite::{self, Incoming, Refuse};
use super::table::Calls;
use super::wire;
use crate::media::Side;
use crate::sip::{HeaderName, Method};

impl Call {
    /// OPTIONS inside a dialog asks us (RFC 3261 §11.2).
    pub(crate) fn answer_options(&self, cx: &mut Cx<'_>, side: Side, asked: &Asked) {
        let mut out = cx.response(&asked.request, &asked.flow, 200, "", None);
        out.header(HeaderName::Allow, wire::ALLOW).header(HeaderName::Accept, "application/sdp");
        cx.respond(self.traced(side), &asked.flow, asked.server, 200, out.finish());
    }
}

impl Calls {
    pub(crate) fn outside(&mut self, cx: &mut Cx<'_>, incoming: &Incoming<'_>) {
        let method = incoming.message.method();
        if method == Some(&Method::Options) {
            let status = if cx.env.draining { 503 } else { 200 };
            let tag = cx.ids().tag(crate::ids::ShardHint(0));
            let mut out = cx.response(incoming.message, &incoming.flow, status, "", Some(&tag));
            out.header(HeaderName::Allow, wire::ALLOW);
            out.header(HeaderName::Accept, "application/sdp");
            return cx.respond(None, &incoming.flow, incoming.server, status, out.finish());
        }
        let status = match method {
            Some(Method::Other(_)) => 501,
            Some(Method::Bye | Method::Prack | Method::Update | Method::Info) => 481,
            _ => 405,
        };
        invite::refuse(cx, incoming, &Refuse::new(status, ""));
    }
}
