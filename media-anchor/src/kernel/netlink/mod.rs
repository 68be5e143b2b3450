//! A small netlink: message writer, attribute reader and a socket, enough for nf_tables elements,
//! route look-ups and route/link notices.
//!
//! The ruleset itself is written through `nftnl`; elements are not, because libnftnl allocates per
//! element and can't ask for an echo. No nf_tables or rtnetlink meaning lives here.

mod attr;
mod msg;
mod socket;

pub(crate) use attr::{Attrs, be64, ne32};
pub(crate) use msg::{
    Messages, MsgBuf, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REQUEST,
    Nest, NlMsgView,
};
pub(crate) use socket::{Bus, NetlinkSocket, RecvError};
