//! Typed header values: light views that borrow from the message, one file per family.
//!
//! A value knows its grammar and how to write itself; which header may hold it is `name.rs`.

mod basic;
mod body;
mod name_addr;
mod session;
mod via;

pub use basic::{CSeq, RAck};
pub use body::{ContentType, Date, Disposition, Timestamp};
pub use name_addr::{Contact, NameAddr};
pub use session::{
    DialogRef, Event, MinSe, Privacy, Reason, Refresher, RetryAfter, SessionExpires,
    SubscriptionState, Warning,
};
pub use via::{BRANCH_COOKIE, Via, has_cookie};
pub(crate) use via::{Host, parse_ip};

/// Why a value is not in its grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ValueError {
    #[error("not in its grammar")]
    Syntax,
    #[error("bad URI")]
    Uri,
    #[error("unclosed quote or bracket")]
    Unclosed,
    #[error("bad number")]
    Number,
    #[error("bad host or port")]
    Host,
}

/// A type that parses from one header value (one element, for list headers).
pub trait FromValue<'a>: Sized {
    /// # Errors
    /// [`ValueError`] when `text` is not in the grammar of the type.
    fn from_value(text: &'a str) -> Result<Self, ValueError>;
}

impl<'a> FromValue<'a> for &'a str {
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        Ok(text)
    }
}
