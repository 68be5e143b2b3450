//! Dialogs (RFC 3261 §12): identifiers, CSeq both ways, route set, remote target.
//!
//! A dialog here is one leg's view and plain data. Messages are neither parsed nor written, and
//! which call it belongs to is not known here.

mod reliable;
mod session_timer;

pub use reliable::*;
pub use session_timer::*;

/// The state of one dialog, early or confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialog {
    pub call_id: Box<str>,
    pub local_tag: Box<str>,
    /// Empty until the peer has given one, and for ever for RFC 2543 peers.
    pub remote_tag: Box<str>,
    /// Value of our From (To in answers) without tag: a name-addr.
    pub local: Box<str>,
    /// Value of the peer's To (From in its requests) without tag.
    pub remote: Box<str>,
    /// CSeq of our last request; 0 before the first.
    pub local_seq: u32,
    /// CSeq of the peer's last request; `None` before the first.
    pub remote_seq: Option<u32>,
    /// The remote target: the URI of the peer's last Contact.
    pub target: Box<str>,
    /// Route header values in the order in which they are visited.
    pub routes: Vec<Box<str>>,
    /// A dialog of `sips:` URIs: its requests go over TLS and nothing else (RFC 3261 §12.1.1).
    pub secure: bool,
}

/// A request in the dialog that came out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CSeq {got} after {last}")]
pub struct OutOfOrder {
    pub last: u32,
    pub got: u32,
}

/// Where a request in the dialog points: Request-URI and Route headers (RFC 3261 §12.2.1.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path<'a> {
    pub request_uri: &'a str,
    /// Route values; with a strict first hop the remote target comes last.
    pub routes: &'a [Box<str>],
    /// Set with a strict router (no `lr`): goes behind `routes`.
    pub last_route: Option<&'a str>,
}

impl Dialog {
    /// Checks and takes the CSeq of a request of the peer (RFC 3261 §12.2.2). ACK and CANCEL
    /// carry the number of their INVITE and are not to be passed here.
    pub fn take_remote_seq(&mut self, got: u32) -> Result<(), OutOfOrder> {
        match self.remote_seq {
            Some(last) if got < last => Err(OutOfOrder { last, got }),
            _ => {
                self.remote_seq = Some(got);
                Ok(())
            }
        }
    }

    /// The CSeq number of our next request.
    pub fn next_seq(&mut self) -> u32 {
        // RFC 3261 §8.1.1.5 bounds it below 2^31; no call sends so many requests.
        self.local_seq = self.local_seq.saturating_add(1);
        self.local_seq
    }

    /// Whether a message with these tags, as its receiver sees them, belongs here.
    pub fn is(&self, call_id: &str, remote_tag: &str) -> bool {
        *self.call_id == *call_id && *self.remote_tag == *remote_tag
    }

    /// Request-URI and Route of our next request.
    pub fn path(&self) -> Path<'_> {
        match self.routes.split_first() {
            None => Path { request_uri: &self.target, routes: &[], last_route: None },
            Some((first, rest)) if !is_loose(first) => {
                Path { request_uri: bare_uri(first), routes: rest, last_route: Some(&self.target) }
            }
            Some(_) => Path { request_uri: &self.target, routes: &self.routes, last_route: None },
        }
    }

    /// The URI that says where the next request goes: first route or remote target.
    pub fn next_hop(&self) -> &str {
        self.routes.first().map_or(&*self.target, |r| bare_uri(r))
    }
}

/// The URI inside a Route value: `<uri>;params` or a bare URI.
fn bare_uri(route: &str) -> &str {
    let Some((_, rest)) = route.split_once('<') else {
        return route.trim();
    };
    rest.split_once('>').map_or(rest, |(uri, _)| uri)
}

/// Whether the URI of a Route value has the `lr` parameter (RFC 3261 §19.1.1).
fn is_loose(route: &str) -> bool {
    let uri = bare_uri(route);
    let uri = uri.split_once('?').map_or(uri, |(uri, _)| uri);
    uri.split(';').skip(1).any(|p| {
        let name = p.split_once('=').map_or(p, |(name, _)| name);
        name.trim().eq_ignore_ascii_case("lr")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialog(routes: &[&str]) -> Dialog {
        Dialog {
            call_id: "c".into(),
            local_tag: "l".into(),
            remote_tag: "r".into(),
            local: "<sip:us@sbc>".into(),
            remote: "<sip:them@peer>".into(),
            local_seq: 0,
            remote_seq: None,
            target: "sip:them@192.0.2.7:5070".into(),
            routes: routes.iter().map(|&r| r.into()).collect(),
            secure: false,
        }
    }

    #[test]
    fn rfc3261_12_2_1_1_routes() {
        let none = dialog(&[]);
        assert_eq!(none.path().request_uri, "sip:them@192.0.2.7:5070");
        assert_eq!(none.next_hop(), "sip:them@192.0.2.7:5070");

        let loose = dialog(&["<sip:p1;lr>", "<sip:p2>"]);
        assert_eq!(loose.path().request_uri, "sip:them@192.0.2.7:5070");
        assert_eq!(loose.path().routes.len(), 2);
        assert_eq!(loose.path().last_route, None);
        assert_eq!(loose.next_hop(), "sip:p1;lr");

        let strict = dialog(&["<sip:p1;x=lr>", "<sip:p2;lr>"]);
        assert_eq!(strict.path().request_uri, "sip:p1;x=lr");
        assert_eq!(strict.path().routes, ["<sip:p2;lr>".into()]);
        assert_eq!(strict.path().last_route, Some("sip:them@192.0.2.7:5070"));
        assert_eq!(strict.next_hop(), "sip:p1;x=lr");
    }

    #[test]
    fn rfc3261_12_2_2_cseq_never_goes_back() {
        let mut d = dialog(&[]);
        assert_eq!(d.take_remote_seq(5), Ok(()));
        assert_eq!(d.take_remote_seq(4), Err(OutOfOrder { last: 5, got: 4 }));
        assert_eq!(d.take_remote_seq(900), Ok(()));
        assert_eq!((d.next_seq(), d.next_seq()), (1, 2));
    }
}
