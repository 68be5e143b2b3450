//! BYE from a peer (RFC 3261 §15.1.2).

use super::call::{Asked, Call, Phase};
use super::cdr::EndedBy;
use super::env::Cx;
use crate::media::Side;
use crate::sip::HeaderName;

impl Call {
    /// A side hangs up: it gets its 200 at once, the other side a BYE with the same reason.
    pub(crate) fn bye(&mut self, cx: &mut Cx<'_>, side: Side, asked: &Asked) {
        let out = cx.response(&asked.request, &asked.flow, 200, "", None);
        cx.respond(self.traced(side), &asked.flow, asked.server, 200, out.finish());
        let by = match side {
            Side::A => EndedBy::Caller,
            Side::B => EndedBy::Callee,
        };
        let reason = asked.request.header(HeaderName::Reason).map(str::to_owned);
        match (&self.phase, side) {
            // A BYE of a callee that is not answered yet ends only its early dialog.
            (Phase::Setup(setup), Side::B) if setup.committing.is_none() => {}
            (Phase::Setup(_) | Phase::Up, _) => self.end(cx, by, Some(side), reason.as_deref()),
            (Phase::Ending, _) => {}
        }
    }
}
