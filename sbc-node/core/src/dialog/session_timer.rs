//! Session timers (RFC 4028) as arithmetic: what is negotiated and when something is due.
//!
//! Sending refreshes and BYEs is the call's work.

use std::time::{Duration, Instant};

/// Who refreshes, seen from a message: the client or the server of that INVITE or UPDATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresher {
    Uac,
    Uas,
}

impl Refresher {
    /// As in the `refresher` parameter (RFC 4028 §4).
    pub fn as_str(self) -> &'static str {
        match self {
            Refresher::Uac => "uac",
            Refresher::Uas => "uas",
        }
    }

    pub fn from_token(token: &str) -> Option<Refresher> {
        match token {
            t if t.eq_ignore_ascii_case("uac") => Some(Refresher::Uac),
            t if t.eq_ignore_ascii_case("uas") => Some(Refresher::Uas),
            _ => None,
        }
    }
}

/// `Session-Expires` of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionExpires {
    pub seconds: u32,
    pub refresher: Option<Refresher>,
}

/// What we want of session timers on a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Ask for a timer even where the peer does not.
    pub always: bool,
    pub expires_s: u32,
    pub min_s: u32,
}

/// RFC 4028 §5: no interval below 90 seconds.
pub const MIN_SE_S: u32 = 90;

/// The session timer of a leg, as it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTimer {
    pub expires_s: u32,
    pub we_refresh: bool,
    /// When the last refresh was.
    pub since: Instant,
}

/// A requested interval below our minimum: 422 with this Min-SE (RFC 4028 §9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("session interval below {min_s} s")]
pub struct TooSmall {
    pub min_s: u32,
}

/// What a UAS answers to a request with or without `Session-Expires` (RFC 4028 §9). `supported`
/// says whether the peer listed `timer`. Yields the Session-Expires of the 2xx.
pub fn answer(
    wish: Wish,
    supported: bool,
    asked: Option<SessionExpires>,
    peer_min_s: Option<u32>,
) -> Result<Option<SessionExpires>, TooSmall> {
    let min_s = wish.min_s.max(MIN_SE_S);
    let seconds = match asked {
        Some(asked) if asked.seconds < min_s => {
            // A UAC that does not know timers cannot act on a 422: then the interval is raised.
            if supported {
                return Err(TooSmall { min_s });
            }
            min_s
        }
        // We may shorten to what we want, never below the peer's Min-SE.
        Some(asked) => {
            asked.seconds.min(wish.expires_s.max(min_s).max(peer_min_s.unwrap_or(MIN_SE_S)))
        }
        None if wish.always => wish.expires_s.max(min_s).max(peer_min_s.unwrap_or(MIN_SE_S)),
        None => return Ok(None),
    };
    let refresher = match (supported, asked.and_then(|a| a.refresher)) {
        // §9 table 2: without support at the UAC, the UAS refreshes.
        (false, _) => Refresher::Uas,
        (true, Some(wanted)) => wanted,
        (true, None) => Refresher::Uac,
    };
    Ok(Some(SessionExpires { seconds, refresher: Some(refresher) }))
}

impl SessionTimer {
    /// The timer that results on the side that sent the request, from the 2xx it got. Without
    /// Session-Expires in the 2xx the UAC may refresh alone (RFC 4028 §7.2).
    pub fn of_uac(wish: Wish, answered: Option<SessionExpires>, now: Instant) -> Option<Self> {
        match answered {
            Some(a) => Some(SessionTimer {
                expires_s: a.seconds.max(MIN_SE_S),
                we_refresh: a.refresher != Some(Refresher::Uas),
                since: now,
            }),
            None if wish.always => Some(SessionTimer {
                expires_s: wish.expires_s.max(MIN_SE_S),
                we_refresh: true,
                since: now,
            }),
            None => None,
        }
    }

    /// The timer that results on the side that answered with `sent`.
    pub fn of_uas(sent: Option<SessionExpires>, now: Instant) -> Option<Self> {
        sent.map(|s| SessionTimer {
            expires_s: s.seconds,
            we_refresh: s.refresher == Some(Refresher::Uas),
            since: now,
        })
    }

    /// When we have to refresh (half the interval, §7.2), or to hang up because the peer did not
    /// (§10: the lesser of 32 s and a third before the end).
    pub fn due(&self) -> Instant {
        let expires = Duration::from_secs(u64::from(self.expires_s));
        let after = if self.we_refresh {
            expires / 2
        } else {
            expires - Duration::from_secs(32).min(expires / 3)
        };
        self.since + after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WISH: Wish = Wish { always: true, expires_s: 1800, min_s: 90 };

    fn se(seconds: u32, refresher: Option<Refresher>) -> Option<SessionExpires> {
        Some(SessionExpires { seconds, refresher })
    }

    #[test]
    fn rfc4028_9_what_a_uas_answers() {
        let quiet = Wish { always: false, ..WISH };
        let uac = Some(Refresher::Uac);
        let uas = Some(Refresher::Uas);
        for (wish, supported, asked, min, want) in [
            (WISH, true, se(1800, None), None, Ok(se(1800, uac))),
            (WISH, true, se(1800, uas), None, Ok(se(1800, uas))),
            (WISH, true, se(7200, uac), None, Ok(se(1800, uac))),
            (WISH, true, se(7200, uac), Some(3600), Ok(se(3600, uac))),
            (WISH, false, se(600, uac), None, Ok(se(600, uas))),
            (WISH, false, None, None, Ok(se(1800, uas))),
            (WISH, true, None, None, Ok(se(1800, uac))),
            (quiet, true, None, None, Ok(None)),
            (WISH, true, se(60, None), None, Err(TooSmall { min_s: 90 })),
            (WISH, false, se(60, None), None, Ok(se(90, uas))),
        ] {
            assert_eq!(answer(wish, supported, asked, min), want, "{supported} {asked:?}");
        }
    }

    #[test]
    fn rfc4028_10_when_something_is_due() {
        let now = Instant::now();
        let ours = SessionTimer::of_uac(WISH, None, now).unwrap();
        assert!(ours.we_refresh);
        assert_eq!(ours.due(), now + Duration::from_secs(900));
        let theirs = SessionTimer::of_uac(WISH, se(90, Some(Refresher::Uas)), now).unwrap();
        assert_eq!(theirs.due(), now + Duration::from_secs(60));
        let theirs = SessionTimer::of_uas(se(1800, Some(Refresher::Uac)), now).unwrap();
        assert_eq!(theirs.due(), now + Duration::from_secs(1768));
        assert_eq!(SessionTimer::of_uac(Wish { always: false, ..WISH }, None, now), None);
    }
}
