//! The clock on the wall of the people whose calls are watched: hours of the day in a time zone.
//!
//! Zone files come as bytes; where they lie is the edge's business.

/// A time zone; UTC unless told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(tz::TimeZone);

/// Why a text or bytes are no time zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no time zone: {0}")]
pub struct NoZone(String);

/// No place on earth is further from UTC.
const OFFSET_MAX_S: i32 = 14 * 3_600;

impl Default for Zone {
    fn default() -> Zone {
        Zone(tz::TimeZone::utc())
    }
}

impl Zone {
    /// A zone file (RFC 9636), with its rules of summer time.
    ///
    /// # Errors
    /// When it is none.
    pub fn file(bytes: &[u8]) -> Result<Zone, NoZone> {
        tz::TimeZone::from_tz_data(bytes).map(Zone).map_err(|e| NoZone(e.to_string()))
    }

    /// A fixed offset, `+HH:MM` or `-HH:MM`; `None` where the text does not look like one.
    ///
    /// # Errors
    /// When it is more than fourteen hours.
    pub fn offset(text: &str) -> Option<Result<Zone, NoZone>> {
        let (sign, rest) = match text.as_bytes().first()? {
            b'+' => (1, text.get(1..)?),
            b'-' => (-1, text.get(1..)?),
            _ => return None,
        };
        let number = |part: &str| {
            let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| part.parse::<i32>().ok()).flatten()
        };
        let parts = rest.split_once(':').and_then(|(h, m)| Some((number(h)?, number(m)?)));
        let bad = || NoZone(format!("\"{text}\" is not -14:00 to +14:00"));
        let seconds = parts.filter(|p| p.1 < 60).map(|(h, m)| h * 3_600 + m * 60);
        let zone = seconds.filter(|s| *s <= OFFSET_MAX_S).ok_or_else(bad);
        Some(zone.and_then(|s| tz::TimeZone::fixed(sign * s).map(Zone).map_err(|_| bad())))
    }

    /// The hour of the day, 0 to 23.
    pub fn hour(&self, unix_ms: u64) -> u8 {
        let unix_s = i64::try_from(unix_ms / 1_000).unwrap_or(i64::MAX / 2);
        // A file without rules for the time to come: its last offset is not known here.
        let offset = self.0.find_local_time_type(unix_s).map_or(0, |t| t.ut_offset());
        let second = (unix_s + i64::from(offset)).rem_euclid(86_400);
        u8::try_from(second / 3_600).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_follow_offsets_and_summer_time() {
        // 2026-01-15 23:30 and 2026-07-15 23:30 UTC.
        let (winter, summer) = (1_768_519_800_000, 1_784_158_200_000);
        assert_eq!(Zone::default().hour(winter), 23);
        let at = |text: &str| Zone::offset(text).unwrap().unwrap();
        assert_eq!((at("+01:00").hour(winter), at("-08:00").hour(winter)), (0, 15));
        assert_eq!(at("+05:45").hour(winter), 5);
        assert_eq!(Zone::offset("Europe/Berlin"), None);
        for bad in ["+15:00", "+1:00", "-00:60", "+", "+ab:cd", "-01:0é"] {
            assert!(Zone::offset(bad).unwrap().is_err(), "{bad}");
        }
        // A zone file of version 2 with nothing but the rule of central Europe.
        let mut file = Vec::new();
        for _ in 0..2 {
            file.extend(b"TZif2");
            file.extend([0; 15]);
            for count in [0_u32, 0, 0, 0, 1, 4] {
                file.extend(count.to_be_bytes());
            }
            file.extend(3_600_u32.to_be_bytes());
            file.extend([0, 0]);
            file.extend(b"CET\0");
        }
        file.extend(b"\nCET-1CEST,M3.5.0,M10.5.0/3\n");
        let berlin = Zone::file(&file).unwrap();
        assert_eq!((berlin.hour(winter), berlin.hour(summer)), (0, 1));
        assert!(Zone::file(b"no zone").is_err());
    }
}
