//! CANCEL of a call that has no final response yet (RFC 3261 §9.2).

use super::call::{Call, Phase};
use super::cdr::EndedBy;
use super::env::Cx;
use crate::sip::{HeaderName, Message};

impl Call {
    /// The caller cancelled. The CANCEL itself has been answered.
    pub(crate) fn cancelled(&mut self, cx: &mut Cx<'_>, message: &Message) {
        if !matches!(self.phase, Phase::Setup(_)) {
            return;
        }
        // RFC 3326: the reason (answered elsewhere, for one) matters to the phone that rings.
        let reason = message.header(HeaderName::Reason).map(str::to_owned);
        self.facts.end_reason = reason.as_deref().map(Into::into);
        self.abandon(cx, reason.as_deref());
        self.fail(cx, 487, "", None, None, EndedBy::Caller);
    }
}
