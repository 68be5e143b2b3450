//! Calls: two dialogs tied together, each side hidden from the other.
//!
//! One SIP operation per file. Sockets, clocks, configuration files and the replicated log never
//! live here: a call is told what happened and says what to send.

mod cdr;
mod policy;
mod record;

pub use cdr::*;
pub use policy::*;
pub use record::*;
