//! Who a certificate speaks for: SIP domains by RFC 5922 §7, addresses besides.

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What the subject alternative names of a certificate say. The common name counts for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identities {
    /// Hosts of `sip:` URIs without a user part. Where there are any, `dns` does not count
    /// (RFC 5922 §7.1).
    sip: Vec<Box<str>>,
    dns: Vec<Box<str>>,
    addresses: Vec<IpAddr>,
}

impl Identities {
    /// Of an end entity's certificate; nothing when it cannot be read.
    pub fn of(certificate: &CertificateDer<'_>) -> Identities {
        let mut all = Identities::default();
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return all };
        let Ok(Some(names)) = parsed.subject_alternative_name() else { return all };
        for name in &names.value.general_names {
            match name {
                GeneralName::URI(uri) => all.sip.extend(sip_domain(uri)),
                GeneralName::DNSName(name) => all.dns.push(name.to_ascii_lowercase().into()),
                GeneralName::IPAddress(bytes) => all.addresses.extend(address(bytes)),
                _ => {}
            }
        }
        all
    }

    /// Whether the certificate speaks for a SIP domain: the same name, letter for letter but for
    /// case; wildcards match nothing (RFC 5922 §7.2).
    pub fn domain(&self, domain: &str) -> bool {
        let names = if self.sip.is_empty() { &self.dns } else { &self.sip };
        let domain = domain.trim_end_matches('.');
        names.iter().any(|n| n.eq_ignore_ascii_case(domain))
    }

    pub fn address(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip)
    }

    /// Whether a host of a URI, name or address, is among them.
    pub fn host(&self, host: &str) -> bool {
        match host.trim_matches(['[', ']']).parse() {
            Ok(ip) => self.address(ip),
            Err(_) => self.domain(host),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.sip.is_empty() && self.dns.is_empty() && self.addresses.is_empty()
    }

    /// Names that a client may ask for when it connects (SNI), wildcards as they stand.
    pub(super) fn served(&self) -> impl Iterator<Item = &str> {
        self.dns.iter().chain(&self.sip).map(|n| &**n)
    }
}

/// The domain of `sip:example.com`; none where the URI names a user or another scheme.
fn sip_domain(uri: &str) -> Option<Box<str>> {
    let uri = sbc_core::sip::UriRef::parse(uri).ok()?;
    let whole = uri.is_sip() && uri.scheme() == sbc_core::sip::Scheme::Sip;
    (whole && uri.user().is_none_or(str::is_empty)).then(|| uri.host().to_ascii_lowercase().into())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identities(sans: Vec<rcgen::SanType>) -> Identities {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = sans;
        Identities::of(params.self_signed(&key).unwrap().der())
    }

    fn dns(name: &str) -> rcgen::SanType {
        rcgen::SanType::DnsName(name.try_into().unwrap())
    }

    fn uri(text: &str) -> rcgen::SanType {
        rcgen::SanType::URI(text.try_into().unwrap())
    }

    #[test]
    fn rfc5922_dns_names_count_where_there_is_no_sip_uri() {
        let ids = identities(vec![dns("Example.com"), dns("*.wild.example")]);
        assert!(ids.domain("example.COM") && ids.domain("example.com."));
        assert!(!ids.domain("sip.example.com"));
        // §7.2: no wildcards.
        assert!(!ids.domain("a.wild.example") && !ids.domain("wild.example"));
    }

    #[test]
    fn rfc5922_a_sip_uri_goes_before_dns_names_and_a_user_is_no_domain() {
        let ids = identities(vec![uri("sip:carrier.example"), dns("host.carrier.example")]);
        assert!(ids.domain("carrier.example"));
        assert!(!ids.domain("host.carrier.example"));
        let user = identities(vec![uri("sip:bob@carrier.example"), uri("https://carrier.example")]);
        assert!(!user.domain("carrier.example"));
    }

    #[test]
    fn addresses_stand_for_themselves_alone() {
        let ids = identities(vec![rcgen::SanType::IpAddress([192, 0, 2, 7].into())]);
        assert!(ids.host("192.0.2.7") && !ids.host("192.0.2.8") && !ids.is_empty());
        assert!(!ids.domain("192.0.2.7"));
        assert!(Identities::of(&CertificateDer::from(vec![1, 2, 3])).is_empty());
    }
}
