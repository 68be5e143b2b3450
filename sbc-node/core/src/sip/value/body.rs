//! Values about bodies and time: Content-Type, Content-Disposition, Date, Timestamp.

use super::{FromValue, ValueError};
use crate::sip::scan::{Params, find_outside, is_token, trim};
use crate::sip::write::{Out, WriteValue};

/// Content-Type (RFC 3261 §20.15), and the elements of Accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentType<'a> {
    pub main: &'a str,
    pub sub: &'a str,
    pub params: Params<'a>,
}

impl ContentType<'_> {
    pub fn is(&self, main: &str, sub: &str) -> bool {
        self.main.eq_ignore_ascii_case(main) && self.sub.eq_ignore_ascii_case(sub)
    }

    pub fn is_sdp(&self) -> bool {
        self.is("application", "sdp")
    }

    pub fn is_multipart(&self) -> bool {
        self.main.eq_ignore_ascii_case("multipart")
    }
}

impl<'a> FromValue<'a> for ContentType<'a> {
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        let end = find_outside(text, b';', b';', false);
        let (kind, params) = text.split_at_checked(end).ok_or(ValueError::Syntax)?;
        let (main, sub) = kind.split_once('/').ok_or(ValueError::Syntax)?;
        let (main, sub) = (trim(main), trim(sub));
        if !is_token(main) || !is_token(sub) {
            return Err(ValueError::Syntax);
        }
        Ok(ContentType { main, sub, params: Params(params) })
    }
}

impl WriteValue for ContentType<'_> {
    fn write_value(&self, out: &mut Out<'_>) {
        (self.main, "/", self.sub, self.params.0).write_value(out);
    }
}

/// Content-Disposition (RFC 3261 §20.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disposition<'a> {
    /// `session`, `render`, `signal`, …
    pub kind: &'a str,
    /// `handling=optional`: a receiver that does not understand the body ignores it.
    pub optional: bool,
}

impl<'a> FromValue<'a> for Disposition<'a> {
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        let end = find_outside(text, b';', b';', false);
        let (kind, params) = text.split_at_checked(end).ok_or(ValueError::Syntax)?;
        let kind = trim(kind);
        if !is_token(kind) {
            return Err(ValueError::Syntax);
        }
        let handling = Params(params).get("handling");
        Ok(Disposition {
            kind,
            optional: handling.is_some_and(|h| h.eq_ignore_ascii_case("optional")),
        })
    }
}

/// Timestamp (RFC 3261 §20.38), in the digits that came: 100 Trying echoes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp<'a> {
    pub value: &'a str,
    pub delay: Option<&'a str>,
}

impl<'a> FromValue<'a> for Timestamp<'a> {
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        let (value, delay) = match text.split_once([' ', '\t']) {
            Some((value, delay)) => (value, Some(trim(delay))),
            None => (text, None),
        };
        let decimal = |t: &str| {
            !t.is_empty()
                && t.bytes().all(|b| b.is_ascii_digit() || b == b'.')
                && t.matches('.').count() <= 1
        };
        if !decimal(value) || !delay.is_none_or(decimal) {
            return Err(ValueError::Number);
        }
        Ok(Timestamp { value, delay })
    }
}

/// Date (RFC 3261 §20.17), as seconds since 1970 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date(pub u64);

const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Days since 1970-01-01 of a date (proleptic Gregorian; years from 1970).
fn days_from(year: u64, month: u64, day: u64) -> u64 {
    // Years begin in March, so that the leap day is the last.
    let y = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (y / 400, y % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

impl<'a> FromValue<'a> for Date {
    /// `Sat, 13 Nov 2010 23:29:00 GMT`; the day of the week is not checked.
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        let (_weekday, rest) = text.split_once(',').ok_or(ValueError::Syntax)?;
        let mut fields = rest.split([' ', '\t', ':']).filter(|f| !f.is_empty());
        let mut next = || fields.next().ok_or(ValueError::Syntax);
        let (day, month, year) = (next()?, next()?, next()?);
        let (h, m, s, zone) = (next()?, next()?, next()?, next()?);
        let month =
            MONTHS.iter().position(|n| n.eq_ignore_ascii_case(month)).ok_or(ValueError::Syntax)?;
        let n = |t: &str, max: u64| {
            crate::sip::scan::number(t).filter(|n| *n <= max).ok_or(ValueError::Number)
        };
        let (day, year) = (n(day, 31)?, n(year, 9999)?);
        if day == 0 || year < 1970 || !zone.eq_ignore_ascii_case("GMT") {
            return Err(ValueError::Syntax);
        }
        let days = days_from(year, month as u64 + 1, day);
        Ok(Date(days * 86_400 + n(h, 23)? * 3600 + n(m, 59)? * 60 + n(s, 60)?))
    }
}

impl WriteValue for Date {
    fn write_value(&self, out: &mut Out<'_>) {
        let (days, seconds) = (self.0 / 86_400, self.0 % 86_400);
        let name = |names: &[&'static str], at: u64| {
            usize::try_from(at).ok().and_then(|at| names.get(at).copied()).unwrap_or("")
        };
        let mut year = 1970 + days / 366;
        while days_from(year + 1, 1, 1) <= days {
            year += 1;
        }
        let mut month = 1;
        while month < 12 && days_from(year, month + 1, 1) <= days {
            month += 1;
        }
        let day = days - days_from(year, month, 1) + 1;
        let (weekday, month) = (name(&DAYS, days % 7), name(&MONTHS, month - 1));
        let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        format_args!("{weekday}, {day:02} {month} {year} {h:02}:{m:02}:{s:02} GMT")
            .write_value(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::{Builder, HeaderName};

    #[test]
    fn rfc3261_20_15_content_type() {
        let value = ContentType::from_value("Multipart/MIXED ; boundary=\"a;b\"").expect("type");
        assert!(value.is_multipart() && value.is("multipart", "mixed"));
        assert_eq!(value.params.get("Boundary"), Some("\"a;b\""));
        assert!(ContentType::from_value("application/sdp").is_ok_and(|t| t.is_sdp()));
        for text in ["", "text", "/", "text/", "text/ht ml"] {
            assert!(ContentType::from_value(text).is_err(), "{text}");
        }
        let value = Disposition::from_value("session ;handling=Optional").expect("disposition");
        assert_eq!((value.kind, value.optional), ("session", true));
    }

    #[test]
    fn rfc3261_20_17_date_round_trips() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Sat, 13 Nov 2010 23:29:00 GMT", 1_289_690_940),
            ("Thu, 29 Feb 2024 12:00:01 GMT", 1_709_208_001),
            ("Fri, 31 Dec 2100 23:59:59 GMT", 4_133_980_799),
        ] {
            assert_eq!(Date::from_value(text), Ok(Date(seconds)), "{text}");
            let mut b = Builder::response(200, "");
            b.header(HeaderName::Date, Date(seconds));
            assert_eq!(
                b.finish(),
                format!("SIP/2.0 200 OK\r\nDate: {text}\r\nContent-Length: 0\r\n\r\n")
            );
        }
        for text in [
            "",
            "Fri, 01 Jan 2010 16:00:00 EST",
            "Sat, 0 Nov 2010 1:1:1 GMT",
            "x, 1 Foo 2010 1:1:1 GMT",
        ] {
            assert!(Date::from_value(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rfc3261_20_38_timestamp() {
        assert_eq!(
            Timestamp::from_value("54.21 .5").map(|t| (t.value, t.delay)),
            Ok(("54.21", Some(".5")))
        );
        assert!(Timestamp::from_value("54.2.1").is_err());
    }
}
