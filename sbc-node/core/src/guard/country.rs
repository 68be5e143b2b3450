//! Which country an address is registered in, by a file of MaxMind's format (GeoIP2, GeoLite2 and
//! what others publish in it).
//!
//! The file comes as bytes and is replaced as a whole; what a country may do is decided in
//! `access.rs`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use maxminddb::{PathElement, Reader};

/// A country by its two letters (ISO 3166-1), upper case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Country([u8; 2]);

impl FromStr for Country {
    type Err = NoCountry;

    fn from_str(text: &str) -> Result<Country, NoCountry> {
        match *text.as_bytes() {
            [a, b] if a.is_ascii_alphabetic() && b.is_ascii_alphabetic() => {
                Ok(Country([a.to_ascii_uppercase(), b.to_ascii_uppercase()]))
            }
            _ => Err(NoCountry(text.to_owned())),
        }
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{}", char::from(*b)))
    }
}

impl fmt::Debug for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that names no country.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no country: they are two letters of ISO 3166-1, as DE")]
pub struct NoCountry(String);

/// Why bytes are no file of countries.
#[derive(Debug, thiserror::Error)]
pub enum CountryFileError {
    #[error("not a file of MaxMind's format: {0}")]
    Format(String),
    #[error(
        "it is of type \"{0}\" and has no countries: a Country, City or Enterprise file is needed"
    )]
    Kind(String),
}

/// The countries of all networks.
pub struct Countries {
    reader: Reader<Vec<u8>>,
    kind: String,
    built_s: u64,
}

impl fmt::Debug for Countries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Countries { reader: _, kind, built_s } = self;
        f.debug_struct("Countries").field("kind", kind).field("built_s", built_s).finish()
    }
}

impl Countries {
    /// Takes the bytes of a file.
    ///
    /// # Errors
    /// When it is no file of that format, is damaged, or is of a type without countries.
    pub fn new(bytes: Vec<u8>) -> Result<Countries, CountryFileError> {
        let format = |e: maxminddb::MaxMindDbError| CountryFileError::Format(e.to_string());
        let reader = Reader::from_source(bytes).map_err(format)?;
        let (kind, built_s) =
            (reader.metadata().database_type.clone(), reader.metadata().build_epoch);
        if !["Country", "City", "Enterprise"].iter().any(|k| kind.contains(k)) {
            return Err(CountryFileError::Kind(kind));
        }
        // A file that was cut short is told now and not by every packet.
        reader.verify().map_err(format)?;
        Ok(Countries { reader, kind, built_s })
    }

    /// The country of an address; `None` where the file has none, as for private networks.
    pub fn of(&self, address: IpAddr) -> Option<Country> {
        let found = self.reader.lookup(address.to_canonical()).ok()?;
        let code = |of: &'static str| {
            let path = [PathElement::Key(of), PathElement::Key("iso_code")];
            found.decode_path::<&str>(&path).ok().flatten()?.parse().ok()
        };
        code("country").or_else(|| code("registered_country"))
    }

    /// When the file was made, in seconds of Unix time.
    pub fn built_s(&self) -> u64 {
        self.built_s
    }
}

#[cfg(test)]
#[expect(unreachable_pub, reason = "shared with the end-to-end tests")]
#[path = "../../../../tests/src/mmdb.rs"]
mod mmdb;

#[cfg(test)]
mod tests {
    use super::*;

    use super::mmdb::mmdb;

    #[test]
    fn addresses_have_the_country_of_their_network_or_none() {
        let nets = [("192.0.2.0/24", "DE"), ("198.51.100.0/25", "FR"), ("2001:db8::/32", "jp")];
        let countries = Countries::new(mmdb("GeoLite2-Country", &nets)).unwrap();
        let of = |ip: &str| countries.of(ip.parse().unwrap()).map(|c| c.to_string());
        assert_eq!(of("192.0.2.77").as_deref(), Some("DE"));
        assert_eq!(of("::ffff:192.0.2.77").as_deref(), Some("DE"));
        assert_eq!(of("198.51.100.127").as_deref(), Some("FR"));
        assert_eq!(of("198.51.100.128"), None);
        assert_eq!(of("2001:db8::9").as_deref(), Some("JP"));
        assert_eq!(of("10.0.0.1"), None);
        assert_eq!(countries.built_s(), 1_700_000_000);
    }

    #[test]
    fn bad_files_are_told_by_what_is_wrong() {
        let error = |bytes: Vec<u8>| Countries::new(bytes).unwrap_err().to_string();
        assert!(error(Vec::new()).starts_with("not a file of MaxMind's format"));
        assert!(
            error(b"PK\x03\x04 something else".to_vec()).starts_with("not a file of MaxMind's")
        );
        let asn = error(mmdb("GeoLite2-ASN", &[("192.0.2.0/24", "DE")]));
        assert_eq!(
            asn,
            "it is of type \"GeoLite2-ASN\" and has no countries: a Country, City or Enterprise \
             file is needed"
        );
        let mut cut = mmdb("GeoLite2-Country", &[("192.0.2.0/24", "DE")]);
        cut.drain(100..200);
        assert!(error(cut).starts_with("not a file of MaxMind's format"));
    }

    #[test]
    fn countries_are_two_letters() {
        assert_eq!("de".parse::<Country>().unwrap().to_string(), "DE");
        for bad in ["", "D", "DEU", "D1", "ÄÖ"] {
            assert!(bad.parse::<Country>().is_err(), "{bad}");
        }
    }
}
