//! SIP messages: parse by index over `Bytes`, typed headers on demand, writer, stream framer.
//!
//! ```text
//! let message = sip::parse(bytes, &limits)?;      // lines indexed, nothing copied
//! sip::validate(&message)?;                       // Reject {status, reason}
//! let tag = message.from()?.tag();                // a header parsed when asked for
//! let mut out = sip::response(&message, 486, "", Some("tag"), Some(source));
//! out.header(HeaderName::RetryAfter, 5u32);
//! let bytes = out.finish();
//! ```
//!
//! Knows nothing of transactions, dialogs or policy.

mod message;
mod method;
mod multipart;
mod name;
mod parse;
mod reply;
mod scan;
mod stream;
mod uri;
mod uri_eq;
mod validate;
pub mod value;
mod write;

pub use message::{Header, HeaderError, Message, StartLine};
pub use method::{Method, reason_phrase};
pub use multipart::{MultipartError, Part, parse_multipart, write_multipart};
pub use name::{HeaderName, Repeat};
pub use parse::{Limits, ParseError, ParseErrorKind, parse, parse_from, salvage};
pub use reply::{ack_for_failure, cancel_for, malformed_response, response};
pub(crate) use scan::quoted_end;
pub use scan::{List, Params, is_token, is_token_byte, percent_decode, quote, unquote};
pub use stream::{Frame, Framer, StreamError};
pub use uri::{Scheme, Uri, UriRef};
pub use uri_eq::escape_user;
pub use validate::{Defect, Reject, validate};
pub use value::{CSeq, NameAddr, ValueError, Via, has_cookie};
pub use write::{Builder, Out, WriteValue};
