//! Session descriptions (RFC 8866): parse, look, rewrite, write back what is not understood.
//!
//! ```text
//! let mut sdp = Sdp::parse(body)?;            // SdpError answers with 488
//! let stream = sdp.stream(0);                 // kind, remote rtp/rtcp, direction, mux
//! sdp.filter_codecs(0, &policy);
//! sdp.anchor(&anchor);                        // our o=, s=, c=, ports; their addresses gone
//! let body = sdp.to_bytes();
//! ```
//!
//! Which addresses, codecs and streams are acceptable is policy and lives elsewhere.

mod address;
mod codec;
mod line;
mod media;
mod parse;
mod rewrite;
mod session;

pub use address::{AddressClass, Connection, Origin, address_class};
pub use codec::{Codec, CodecPolicy};
pub use line::Line;
pub use media::{Direction, Media, Protocol};
pub use parse::{SdpError, SdpErrorKind, formats};
pub use rewrite::{Anchoring, StreamAnchor};
pub use session::{Sdp, Stream};

#[cfg(test)]
mod tests;
