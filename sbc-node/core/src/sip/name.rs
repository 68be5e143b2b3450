//! Header field names: one small id per name the SBC knows, compact forms, and how values repeat.
//!
//! Values and their grammar never live here.

use std::fmt;

/// How a header's value may repeat (RFC 3261 §7.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// At most once in a message.
    Once,
    /// `#value`: several lines and comma-separated values are the same thing.
    List,
    /// Several lines, never split at commas (the challenge and credential families).
    Lines,
}

macro_rules! header_names {
    ($($id:ident $name:literal $compact:literal $repeat:ident;)*) => {
        /// A header field name. Unknown names are [`HeaderName::Other`]; their text stays in the line.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum HeaderName { $($id,)* Other }

        const NAMES: &[(HeaderName, &str, u8, Repeat)] =
            &[$((HeaderName::$id, $name, $compact, Repeat::$repeat),)*];
    };
}

header_names! {
    Via "Via" b'v' List;
    From "From" b'f' Once;
    To "To" b't' Once;
    CallId "Call-ID" b'i' Once;
    CSeq "CSeq" 0 Once;
    MaxForwards "Max-Forwards" 0 Once;
    ContentLength "Content-Length" b'l' Once;
    ContentType "Content-Type" b'c' Once;
    Contact "Contact" b'm' List;
    Route "Route" 0 List;
    RecordRoute "Record-Route" 0 List;
    Accept "Accept" 0 List;
    AcceptContact "Accept-Contact" b'a' List;
    AcceptEncoding "Accept-Encoding" 0 List;
    AcceptLanguage "Accept-Language" 0 List;
    AlertInfo "Alert-Info" 0 List;
    Allow "Allow" 0 List;
    AllowEvents "Allow-Events" b'u' List;
    AuthenticationInfo "Authentication-Info" 0 Once;
    Authorization "Authorization" 0 Lines;
    CallInfo "Call-Info" 0 List;
    ContentDisposition "Content-Disposition" 0 Once;
    ContentEncoding "Content-Encoding" b'e' List;
    ContentId "Content-ID" 0 Once;
    ContentLanguage "Content-Language" 0 List;
    ContentTransferEncoding "Content-Transfer-Encoding" 0 Once;
    Date "Date" 0 Once;
    Diversion "Diversion" 0 List;
    ErrorInfo "Error-Info" 0 List;
    Event "Event" b'o' Once;
    Expires "Expires" 0 Once;
    FeatureCaps "Feature-Caps" 0 List;
    FlowTimer "Flow-Timer" 0 Once;
    Geolocation "Geolocation" 0 List;
    GeolocationError "Geolocation-Error" 0 Once;
    GeolocationRouting "Geolocation-Routing" 0 Once;
    HistoryInfo "History-Info" 0 List;
    Identity "Identity" b'y' Lines;
    IdentityInfo "Identity-Info" b'n' Once;
    InReplyTo "In-Reply-To" 0 List;
    InfoPackage "Info-Package" 0 Once;
    Join "Join" 0 Once;
    MimeVersion "MIME-Version" 0 Once;
    MinExpires "Min-Expires" 0 Once;
    MinSe "Min-SE" 0 Once;
    Organization "Organization" 0 Once;
    PAccessNetworkInfo "P-Access-Network-Info" 0 List;
    PAssertedIdentity "P-Asserted-Identity" 0 List;
    PCalledPartyId "P-Called-Party-ID" 0 Once;
    PChargingFunctionAddresses "P-Charging-Function-Addresses" 0 Once;
    PChargingVector "P-Charging-Vector" 0 Once;
    PEarlyMedia "P-Early-Media" 0 List;
    PPreferredIdentity "P-Preferred-Identity" 0 List;
    PVisitedNetworkId "P-Visited-Network-ID" 0 List;
    Path "Path" 0 List;
    Priority "Priority" 0 Once;
    Privacy "Privacy" 0 Once;
    ProxyAuthenticate "Proxy-Authenticate" 0 Lines;
    ProxyAuthorization "Proxy-Authorization" 0 Lines;
    ProxyRequire "Proxy-Require" 0 List;
    RAck "RAck" 0 Once;
    RSeq "RSeq" 0 Once;
    Reason "Reason" 0 List;
    RecvInfo "Recv-Info" 0 List;
    ReferSub "Refer-Sub" 0 Once;
    ReferTo "Refer-To" b'r' Once;
    ReferredBy "Referred-By" b'b' Once;
    RejectContact "Reject-Contact" b'j' List;
    RemotePartyId "Remote-Party-ID" 0 List;
    Replaces "Replaces" 0 Once;
    ReplyTo "Reply-To" 0 Once;
    RequestDisposition "Request-Disposition" b'd' List;
    Require "Require" 0 List;
    ResourcePriority "Resource-Priority" 0 List;
    RetryAfter "Retry-After" 0 Once;
    Server "Server" 0 Once;
    ServiceRoute "Service-Route" 0 List;
    SessionExpires "Session-Expires" b'x' Once;
    SessionId "Session-ID" 0 Once;
    SipEtag "SIP-ETag" 0 Once;
    SipIfMatch "SIP-If-Match" 0 Once;
    Subject "Subject" b's' Once;
    SubscriptionState "Subscription-State" 0 Once;
    Supported "Supported" b'k' List;
    SuppressIfMatch "Suppress-If-Match" 0 Once;
    TargetDialog "Target-Dialog" 0 Once;
    Timestamp "Timestamp" 0 Once;
    Unsupported "Unsupported" 0 List;
    UserAgent "User-Agent" 0 Once;
    UserToUser "User-to-User" 0 Lines;
    Warning "Warning" 0 List;
    WwwAuthenticate "WWW-Authenticate" 0 Lines;
}

// The presence set of a message is a `u128`.
const _: () = assert!(NAMES.len() < 128);

const SLOTS: usize = 512;
const EMPTY: u8 = u8::MAX;

/// Open-addressed table from the hash of a lower-cased name to an index of [`NAMES`].
static TABLE: [u8; SLOTS] = build_table();

const fn hash(first: u8, middle: u8, last: u8, len: usize) -> usize {
    let h = (first | 0x20) as usize * 31 + (middle | 0x20) as usize * 7;
    (h + (last | 0x20) as usize * 151 + len * 67) & (SLOTS - 1)
}

const fn build_table() -> [u8; SLOTS] {
    let mut table = [EMPTY; SLOTS];
    let mut i = 0;
    while i < NAMES.len() {
        let name = NAMES[i].1.as_bytes();
        let mut slot = hash(name[0], name[name.len() / 2], name[name.len() - 1], name.len());
        while table[slot] != EMPTY {
            slot = (slot + 1) & (SLOTS - 1);
        }
        table[slot] = NAMES[i].0 as u8;
        i += 1;
    }
    table
}

/// Compact form letter to index of [`NAMES`].
static COMPACT: [u8; 26] = build_compact();

const fn build_compact() -> [u8; 26] {
    let mut table = [EMPTY; 26];
    let mut i = 0;
    while i < NAMES.len() {
        if NAMES[i].2 != 0 {
            table[(NAMES[i].2 - b'a') as usize] = NAMES[i].0 as u8;
        }
        i += 1;
    }
    table
}

impl HeaderName {
    /// The id of a name in any case or in compact form (RFC 3261 §7.3.3); `Other` when unknown.
    #[inline]
    pub fn from_bytes(name: &[u8]) -> HeaderName {
        let (Some(&first), Some(&last), Some(&middle)) =
            (name.first(), name.last(), name.get(name.len() / 2))
        else {
            return HeaderName::Other;
        };
        if name.len() == 1 {
            let letter = usize::from((first | 0x20).wrapping_sub(b'a'));
            let index = COMPACT.get(letter).copied().unwrap_or(EMPTY);
            return match NAMES.get(usize::from(index)) {
                Some(entry) if first.is_ascii_alphabetic() => entry.0,
                _ => HeaderName::Other,
            };
        }
        let mut slot = hash(first, middle, last, name.len());
        loop {
            let index = TABLE.get(slot).copied().unwrap_or(EMPTY);
            let Some(entry) = NAMES.get(usize::from(index)) else {
                return HeaderName::Other;
            };
            let known = entry.1.as_bytes();
            // Most peers write names as the RFC does.
            if known.len() == name.len() && (known == name || known.eq_ignore_ascii_case(name)) {
                return entry.0;
            }
            slot = (slot + 1) & (SLOTS - 1);
        }
    }

    /// The name as the RFC that defines it writes it; empty for `Other`.
    #[inline]
    pub fn as_str(self) -> &'static str {
        NAMES.get(self as usize).map_or("", |entry| entry.1)
    }

    /// The compact form, where one is defined.
    pub fn compact(self) -> Option<char> {
        NAMES.get(self as usize).filter(|entry| entry.2 != 0).map(|entry| char::from(entry.2))
    }

    /// How values of this header repeat; unknown headers repeat by lines.
    #[inline]
    pub fn repeat(self) -> Repeat {
        NAMES.get(self as usize).map_or(Repeat::Lines, |entry| entry.3)
    }

    /// The bits of all headers that may stand once, but for Content-Length, whose repetition is
    /// judged by its values.
    pub(super) const ONCE: u128 = {
        let (mut bits, mut i) = (0u128, 0);
        while i < NAMES.len() {
            let once = matches!(NAMES[i].3, Repeat::Once);
            if once && !matches!(NAMES[i].0, HeaderName::ContentLength) {
                bits |= 1 << i;
            }
            i += 1;
        }
        bits
    };

    /// This name's bit in a presence set.
    #[inline]
    pub(super) fn bit(self) -> u128 {
        1u128 << (self as u8)
    }
}

impl fmt::Display for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_in_any_case_and_compact_form() {
        for (index, (id, name, compact, _)) in NAMES.iter().enumerate() {
            assert_eq!(*id as usize, index);
            assert_eq!(HeaderName::from_bytes(name.as_bytes()), *id);
            assert_eq!(HeaderName::from_bytes(name.to_ascii_uppercase().as_bytes()), *id);
            assert_eq!(HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()), *id);
            assert_eq!(id.as_str(), *name);
            if *compact != 0 {
                assert_eq!(HeaderName::from_bytes(&[*compact]), *id);
                assert_eq!(HeaderName::from_bytes(&[compact.to_ascii_uppercase()]), *id);
                assert_eq!(id.compact(), Some(char::from(*compact)));
            }
        }
    }

    #[test]
    fn unknown_names_are_other() {
        for name in ["", "w", "z", "1", "[", "X-Custom", "Vi a", "Froms", "NewFangledHeader"] {
            assert_eq!(HeaderName::from_bytes(name.as_bytes()), HeaderName::Other, "{name}");
        }
        assert_eq!(HeaderName::Other.as_str(), "");
        assert_eq!(HeaderName::Other.repeat(), Repeat::Lines);
    }
}
