//! Bodies: which one is a session description, alone or inside `multipart/*` (RFC 5621).

use bytes::Bytes;

use crate::sip::{HeaderName, Message, Params, unquote};

fn content_type(message: &Message) -> (&str, Params<'_>) {
    let value = message.header(HeaderName::ContentType).unwrap_or("");
    match memchr::memchr(b';', value.as_bytes()) {
        Some(at) => {
            let (kind, params) = value.split_at(at);
            (kind.trim(), Params(params))
        }
        None => (value.trim(), Params("")),
    }
}

/// Whether the whole body is a session description. A body without Content-Type is taken for one,
/// as old peers mean it.
pub(crate) fn is_sdp(message: &Message) -> bool {
    if message.header(HeaderName::ContentType) == Some("application/sdp") {
        return true;
    }
    let (kind, _) = content_type(message);
    kind.eq_ignore_ascii_case("application/sdp") || kind.is_empty()
}

pub(crate) fn is_multipart(message: &Message) -> bool {
    let (kind, params) = content_type(message);
    kind.get(..10).is_some_and(|k| k.eq_ignore_ascii_case("multipart/")) && params.has("boundary")
}

/// The session description that a message carries, if any.
pub(crate) fn sdp(message: &Message) -> Option<Bytes> {
    if message.body().is_empty() {
        return None;
    }
    if is_sdp(message) {
        return Some(message.body_bytes());
    }
    if !is_multipart(message) {
        return None;
    }
    let (_, params) = content_type(message);
    let boundary = unquote(params.get("boundary")?);
    let body = message.body_bytes();
    part(&body, &boundary).map(|part| body.slice_ref(part))
}

/// The content of the first `application/sdp` part.
fn part<'b>(body: &'b [u8], boundary: &str) -> Option<&'b [u8]> {
    let delimiter = format!("--{boundary}");
    let finder = memchr::memmem::Finder::new(delimiter.as_bytes());
    let mut starts = finder.find_iter(body).peekable();
    while let Some(start) = starts.next() {
        let from = start + delimiter.len();
        let to = starts.peek().copied().unwrap_or(body.len());
        let section = body.get(from..to)?;
        if section.starts_with(b"--") {
            return None;
        }
        if let Some(content) = sdp_content(section) {
            return Some(content);
        }
    }
    None
}

/// Content of one part (headers, blank line, content) when it is a session description.
fn sdp_content(section: &[u8]) -> Option<&[u8]> {
    let head_end = memchr::memmem::find(section, b"\r\n\r\n")?;
    let head = std::str::from_utf8(section.get(..head_end)?).ok()?;
    let is_sdp = head.lines().any(|line| {
        line.split_once(':').is_some_and(|(name, value)| {
            let name = name.trim();
            (name.eq_ignore_ascii_case("Content-Type") || name.eq_ignore_ascii_case("c"))
                && value.trim().to_ascii_lowercase().starts_with("application/sdp")
        })
    });
    let content = section.get(head_end + 4..)?;
    let content = content.strip_suffix(b"\r\n").unwrap_or(content);
    is_sdp.then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc5621_the_description_is_found_among_other_parts() {
        let body = b"preamble\r\n--b1\r\nContent-Type: application/isup\r\n\r\n\x01\x02\r\n--b1\r\n\
            content-type: application/sdp\r\nContent-Disposition: session\r\n\r\nv=0\r\no=x\r\n\r\n--b1--\r\n";
        assert_eq!(part(body, "b1"), Some(&b"v=0\r\no=x\r\n"[..]));
        assert_eq!(part(body, "b2"), None);
        assert_eq!(part(b"--b1--\r\n", "b1"), None);
        assert_eq!(part(b"--b1\r\nContent-Type: text/plain\r\n\r\nx\r\n--b1--", "b1"), None);
    }
}
