//! The codecs of an `m=` line: what they are called, and which may pass in what order.

use std::borrow::Cow;

use super::line::Line;
use super::media::Media;
use super::session::Sdp;

/// One format of an RTP stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codec<'a> {
    pub payload: u8,
    /// Encoding name from `a=rtpmap`, or from RFC 3551 for static types; empty when unknown.
    pub name: &'a str,
    /// Clock rate in Hz; 0 when unknown.
    pub clock_hz: u32,
    pub channels: u8,
}

impl Codec<'_> {
    /// Formats that carry no media of their own: they stand or fall with a real codec.
    pub fn is_auxiliary(&self) -> bool {
        ["telephone-event", "CN", "red", "ulpfec", "flexfec-03", "rtx", "tone"]
            .iter()
            .any(|n| self.name.eq_ignore_ascii_case(n))
    }

    fn is(&self, pattern: &str) -> bool {
        match pattern.split_once('/') {
            None => self.name.eq_ignore_ascii_case(pattern),
            Some((name, clock)) => {
                self.name.eq_ignore_ascii_case(name) && clock.parse() == Ok(self.clock_hz)
            }
        }
    }
}

/// What a trunk lets pass. Names compare without case: `PCMA`, or `L16/16000` with a clock rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodecPolicy {
    /// Only these; empty means all.
    pub allow: Vec<String>,
    /// Never these.
    pub deny: Vec<String>,
    /// These first, in this order; the rest keeps its order behind them.
    pub prefer: Vec<String>,
    /// Keep `telephone-event` (RFC 4733) whatever `allow` says.
    pub telephone_event: bool,
}

impl Default for CodecPolicy {
    fn default() -> Self {
        CodecPolicy {
            allow: Vec::new(),
            deny: Vec::new(),
            prefer: Vec::new(),
            telephone_event: true,
        }
    }
}

impl CodecPolicy {
    /// Whether the policy changes nothing.
    pub fn is_transparent(&self) -> bool {
        self.allow.is_empty()
            && self.deny.is_empty()
            && self.prefer.is_empty()
            && self.telephone_event
    }

    fn passes(&self, codec: &Codec<'_>) -> bool {
        if codec.name.eq_ignore_ascii_case("telephone-event") {
            return self.telephone_event && !self.deny.iter().any(|p| codec.is(p));
        }
        let allowed =
            self.allow.is_empty() || codec.is_auxiliary() || self.allow.iter().any(|p| codec.is(p));
        allowed && !self.deny.iter().any(|p| codec.is(p))
    }

    fn rank(&self, codec: &Codec<'_>) -> usize {
        self.prefer.iter().position(|p| codec.is(p)).unwrap_or(self.prefer.len())
    }
}

/// Static payload types of RFC 3551 §6.
fn static_codec(payload: u8) -> Option<(&'static str, u32)> {
    Some(match payload {
        0 => ("PCMU", 8000),
        3 => ("GSM", 8000),
        4 => ("G723", 8000),
        5 => ("DVI4", 8000),
        6 => ("DVI4", 16000),
        7 => ("LPC", 8000),
        8 => ("PCMA", 8000),
        9 => ("G722", 8000),
        10 | 11 => ("L16", 44100),
        12 => ("QCELP", 8000),
        13 => ("CN", 8000),
        14 => ("MPA", 90000),
        15 => ("G728", 8000),
        16 => ("DVI4", 11025),
        17 => ("DVI4", 22050),
        18 => ("G729", 8000),
        25 => ("CelB", 90000),
        26 => ("JPEG", 90000),
        28 => ("nv", 90000),
        31 => ("H261", 90000),
        32 => ("MPV", 90000),
        33 => ("MP2T", 90000),
        34 => ("H263", 90000),
        _ => return None,
    })
}

impl Media<'_> {
    /// The codecs of an RTP stream in order; empty for other protocols.
    pub fn codecs(&self) -> Vec<Codec<'_>> {
        if !self.protocol().is_rtp() {
            return Vec::new();
        }
        self.formats().filter_map(|f| self.codec(f.parse().ok()?)).collect()
    }

    /// The name of the first format that has one.
    pub fn first_codec(&self) -> Option<&str> {
        if !self.protocol().is_rtp() {
            return None;
        }
        let named = |format: &str| Some(self.codec(format.parse().ok()?)?.name);
        self.formats().filter_map(named).find(|name| !name.is_empty())
    }

    fn codec(&self, payload: u8) -> Option<Codec<'_>> {
        let mapped = self.lines().iter().find_map(|line| {
            if !line.is_attribute("rtpmap") {
                return None;
            }
            let (pt, map) = line.attribute()?.1.split_once(' ')?;
            (pt.trim().parse() == Ok(payload)).then_some(map.trim())
        });
        let Some(map) = mapped else {
            let (name, clock_hz) = static_codec(payload).unwrap_or(("", 0));
            return Some(Codec { payload, name, clock_hz, channels: 1 });
        };
        let mut parts = map.split('/');
        let name = parts.next().unwrap_or("");
        let clock_hz = parts.next().and_then(|c| c.trim().parse().ok()).unwrap_or(0);
        let channels = parts.next().and_then(|c| c.trim().parse().ok()).unwrap_or(1);
        Some(Codec { payload, name, clock_hz, channels })
    }

    /// Applies a policy: formats that may not pass go with their `rtpmap`, `fmtp` and `rtcp-fb`,
    /// the rest is reordered. Returns whether a codec that carries media is left; where none is,
    /// nothing is changed and the caller should [`reject`](Media::reject) the stream.
    pub fn filter_codecs(&mut self, policy: &CodecPolicy) -> bool {
        if !self.protocol().is_rtp() || policy.is_transparent() {
            return true;
        }
        let mut keep: Vec<(usize, u8)> = Vec::with_capacity(self.formats.len());
        let codecs = self.codecs();
        for codec in codecs.iter().filter(|c| policy.passes(c)) {
            keep.push((policy.rank(codec), codec.payload));
        }
        let carries = |pt: u8| codecs.iter().any(|c| c.payload == pt && !c.is_auxiliary());
        if !keep.iter().any(|(_, pt)| carries(*pt)) {
            return false;
        }
        // Retransmission of a codec that is gone goes with it (RFC 4588 §8.6).
        let gone = |pt: u8| !keep.iter().any(|(_, kept)| *kept == pt);
        let orphans: Vec<u8> = keep
            .iter()
            .map(|(_, pt)| *pt)
            .filter(|pt| self.associated(*pt).is_some_and(gone))
            .collect();
        keep.retain(|(_, pt)| !orphans.contains(pt));
        keep.sort_by_key(|(rank, _)| *rank);
        let keeps = |pt: &str| pt.parse().is_ok_and(|pt: u8| keep.iter().any(|(_, k)| *k == pt));
        self.lines.retain(|line| format_of(line).is_none_or(|pt| pt == "*" || keeps(pt)));
        self.formats = keep.iter().map(|(_, pt)| Cow::Owned(pt.to_string())).collect();
        true
    }

    /// `apt=` of a retransmission format.
    fn associated(&self, payload: u8) -> Option<u8> {
        self.lines().iter().find_map(|line| {
            let (name, value) = line.attribute()?;
            let (pt, config) = value.split_once(' ')?;
            let own = name.eq_ignore_ascii_case("fmtp") && pt.parse() == Ok(payload);
            let apt = config.split(';').find_map(|p| p.trim().strip_prefix("apt="));
            own.then(|| apt?.trim().parse().ok())?
        })
    }
}

/// The format that an attribute line belongs to.
fn format_of<'l>(line: &'l Line<'_>) -> Option<&'l str> {
    let (name, value) = line.attribute()?;
    let of_format = ["rtpmap", "fmtp", "rtcp-fb"].iter().any(|n| name.eq_ignore_ascii_case(n));
    of_format.then(|| value.split([' ', '\t']).next().unwrap_or(""))
}

impl Sdp<'_> {
    /// Applies a policy to every active stream; those left without a codec are refused. Returns
    /// whether any stream is left on; `false` calls for 488.
    pub fn filter_codecs(&mut self, policy: &CodecPolicy) -> bool {
        for media in self.media.iter_mut().filter(|m| m.port() != 0) {
            if !media.filter_codecs(policy) {
                media.reject();
            }
        }
        self.has_active_stream()
    }
}
