//! The B2BUA's rewrite: our addresses in, everything that tells of the other side out.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use super::address::{Connection, net_address};
use smallvec::SmallVec;

use super::line::{self, Line};
use super::session::Sdp;

/// What a stream becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamAnchor {
    /// Relayed: these are our advertised addresses for it.
    Relay { rtp: SocketAddr, rtcp: SocketAddr },
    /// Refused or off: port 0.
    Off,
}

/// Everything that a rewrite puts in or takes out.
#[derive(Clone, Copy, Debug)]
pub struct Anchoring<'r> {
    /// `o=` user name; usually `-`.
    pub username: &'r str,
    pub session_id: u64,
    /// Must grow with each description that differs from the one before (RFC 3264 §8).
    pub version: u64,
    /// For `o=` and the session-level `c=`.
    pub address: IpAddr,
    /// By `m=` order; missing ones count as off.
    pub streams: &'r [StreamAnchor],
    /// Leave `a=rtcp-mux` where it is; otherwise it goes.
    pub rtcp_mux: bool,
    /// Leave `a=crypto` (SDES keys pass end to end).
    pub crypto: bool,
    /// Leave `a=fingerprint`, `a=setup`, `a=tls-id` (DTLS passes end to end).
    pub dtls: bool,
}

/// Attributes that hold addresses, names of hosts or products, or are void behind a relay.
fn is_hidden(name: &str) -> bool {
    let hidden: &[&str] = match name.len() {
        3 => &["alt"],
        4 => &["rtcp", "altc", "path", "ssrc", "msid", "tool"],
        6 => &["oldcip"],
        7 => &["ice-pwd"],
        8 => &["ice-lite", "identity"],
        9 => &["candidate", "ice-ufrag"],
        10 => &["ice-pacing", "ssrc-group", "nortpproxy", "oldmediaip"],
        11 => &["ice-options"],
        12 => &["ice-mismatch"],
        13 => &["source-filter", "msid-semantic"],
        17 => &["remote-candidates", "end-of-candidates"],
        _ => &[],
    };
    hidden.iter().any(|h| h.eq_ignore_ascii_case(name))
}

impl Sdp<'_> {
    /// Rewrites the description for the other side. Bandwidth, codecs, directions and unknown
    /// attributes stay; `i=`, `u=`, `e=`, `p=`, `k=` and all that names the other side goes.
    /// A hold by `c=0.0.0.0` becomes a direction attribute first.
    pub fn anchor(&mut self, anchoring: &Anchoring<'_>) {
        self.hold_by_direction();
        let names = self.foreign_names();
        let keep = |l: &Line<'_>| keeps(l, anchoring, &names);
        self.session.retain(keep);
        for media in &mut self.media {
            media.lines.retain(keep);
        }
        self.set_origin(
            anchoring.username,
            anchoring.session_id,
            anchoring.version,
            anchoring.address,
        );
        line::set(&mut self.session, Line::new(b's', Cow::Borrowed("-")));
        self.set_connection(anchoring.address);
        for index in 0..self.media.len() {
            let anchor = anchoring.streams.get(index).copied().unwrap_or(StreamAnchor::Off);
            self.anchor_stream(index, anchor, anchoring);
        }
    }

    fn anchor_stream(&mut self, index: usize, anchor: StreamAnchor, anchoring: &Anchoring<'_>) {
        let Some(media) = self.media.get_mut(index) else { return };
        let (rtp, rtcp) = match anchor {
            StreamAnchor::Relay { rtp, rtcp } if media.port != 0 => (rtp, rtcp),
            StreamAnchor::Relay { .. } | StreamAnchor::Off => return media.reject(),
        };
        media.set_port(rtp.port());
        if rtp.ip() != anchoring.address {
            line::set(&mut media.lines, Line::new(b'c', net_address(rtp.ip())));
        }
        let muxed = media.attribute("rtcp-mux").is_some();
        let usual = rtcp.ip() == rtp.ip() && Some(rtcp.port()) == rtp.port().checked_add(1);
        if media.protocol().is_rtp() && !muxed && !usual {
            let value = if rtcp.ip() == rtp.ip() {
                format!("rtcp:{}", rtcp.port())
            } else {
                format!("rtcp:{} {}", rtcp.port(), net_address(rtcp.ip()))
            };
            media.lines.push(Line::new(b'a', value));
        }
    }

    /// Turns `c=0.0.0.0` into the direction that it stands for.
    fn hold_by_direction(&mut self) {
        let lines = self.session.iter().chain(self.media.iter().flat_map(|m| &m.lines));
        let unspecified = |l: &Line<'_>| {
            l.kind == b'c'
                && Connection::parse(l.value())
                    .and_then(Connection::ip)
                    .is_some_and(|ip| ip.is_unspecified())
        };
        if !lines.into_iter().any(unspecified) {
            return;
        }
        for index in 0..self.media.len() {
            let Some(stream) = self.stream(index) else { continue };
            let held =
                stream.connection.and_then(Connection::ip).is_some_and(|ip| ip.is_unspecified());
            let direction = stream.direction;
            if let (true, Some(media)) = (held, self.media.get_mut(index)) {
                media.set_direction(direction);
            }
        }
    }

    /// Addresses and names that `o=` and `c=` give; no attribute may repeat them.
    fn foreign_names(&self) -> SmallVec<[String; 2]> {
        let mut names: SmallVec<[String; 2]> = SmallVec::new();
        let mut add = |name: &str| {
            let told = memchr::memchr2(b'.', b':', name.as_bytes()).is_some();
            if told && !names.iter().any(|n| n == name) {
                names.push(name.to_owned());
            }
        };
        if let Some(origin) = self.origin() {
            add(origin.address);
        }
        for line in self.session.iter().chain(self.media.iter().flat_map(|m| &m.lines)) {
            if line.kind == b'c' {
                let value = line.value();
                let begin = memchr::memrchr(b' ', value.as_bytes()).map_or(0, |at| at + 1);
                let name = value.get(begin..).unwrap_or("");
                let end = memchr::memchr(b'/', name.as_bytes()).unwrap_or(name.len());
                add(name.get(..end).unwrap_or(""));
            }
        }
        names
    }
}

fn keeps(line: &Line<'_>, anchoring: &Anchoring<'_>, names: &[String]) -> bool {
    if matches!(line.kind, b'i' | b'u' | b'e' | b'p' | b'k') {
        return false;
    }
    let Some((name, value)) = line.attribute() else { return true };
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    if is_hidden(name) {
        return false;
    }
    let by_policy = (anchoring.rtcp_mux || !(is("rtcp-mux") || is("rtcp-mux-only")))
        && (anchoring.crypto || !is("crypto"))
        && (anchoring.dtls || !(is("fingerprint") || is("setup") || is("tls-id")));
    // Addresses and host names hold a dot or a colon; most attributes hold none.
    let suspect = memchr::memchr2(b'.', b':', value.as_bytes()).is_some();
    by_policy && !(suspect && names.iter().any(|n| value.contains(n.as_str())))
}
