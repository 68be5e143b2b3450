//! REFER, and what it leaves in other requests: Refer-To, Referred-By, `message/sipfrag`.

use super::call::{Asked, Call};
use super::env::Cx;
use super::exchange::Body;
use crate::media::Side;
use crate::sip::{HeaderName, Message};

impl Call {
    pub(crate) fn refer(&mut self, cx: &mut Cx<'_>, side: Side, asked: Asked) {
        self.pass_on(cx, side, asked);
    }
}

/// Headers of a request in the call that name the other side, rewritten.
pub(crate) fn mapped_headers(
    _cx: &mut Cx<'_>,
    _call: &Call,
    _from: Side,
    _message: &Message,
) -> Vec<(HeaderName, String)> {
    Vec::new()
}

/// A body that names the other side, rewritten.
pub(crate) fn mapped_body(_message: &Message) -> Body {
    None
}
