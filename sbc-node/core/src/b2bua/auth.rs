//! Challenges of a trunk, answered with its credentials (RFC 3261 §22).

use super::call::{Call, Exchange};
use super::env::Cx;
use crate::sip::Message;

impl Call {
    /// The INVITE of the current attempt was challenged. `false` when we cannot answer.
    pub(crate) fn authorize_attempt(&mut self, _cx: &mut Cx<'_>, _message: &Message) -> bool {
        false
    }

    /// A request inside the call was challenged. Yields the exchange back when we cannot answer.
    pub(crate) fn authorize_exchange(
        &mut self,
        _cx: &mut Cx<'_>,
        exchange: Box<Exchange>,
        _message: &Message,
    ) -> Option<Box<Exchange>> {
        Some(exchange)
    }
}
