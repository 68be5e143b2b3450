//! TLS of the signalling interfaces: certificates by SNI, who is believed, what a peer must show.
//!
//! What is built here is immutable and shared; a reload puts another one in its place, and
//! connections that stand keep theirs. Sockets and records live in `conn.rs`.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme, SupportedProtocolVersion,
};
use sbc_core::cidr::Cidr;

use super::identity::Identities;

/// Where a Debian-like system keeps the authorities that everybody believes.
pub(crate) const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// Not asked for: phones and browsers have none.
    #[default]
    Off,
    /// Asked for; what is shown must be valid.
    Request,
    /// No connection without (mutual TLS).
    Require,
}

/// What the TLS of one interface is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// Chain and key files, PEM. The first is shown to clients that name no other, and to servers
    /// that ask for ours.
    pub certificates: Vec<(PathBuf, PathBuf)>,
    /// Authorities that peers' certificates come from; the system's when absent.
    pub ca: Option<PathBuf>,
    pub clients: ClientAuth,
    /// Whether servers must prove to be who we called (RFC 5922); off only encrypts.
    pub verify: bool,
    /// No TLS 1.2.
    pub tls13_only: bool,
    /// Names that servers at an address must show, where the address is all that is configured.
    pub names: Vec<(IpAddr, Box<str>)>,
    pub demands: Vec<Demand>,
}

/// Clients from these networks must show a certificate of one of these domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    pub sources: Vec<Cidr>,
    pub domains: Vec<Box<str>>,
}

/// A file that does not hold what it should.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct Problem {
    pub path: PathBuf,
    reason: String,
}

/// The TLS of one interface.
pub struct Profile {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
    names: Vec<(IpAddr, Box<str>)>,
    demands: Vec<Demand>,
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile").field("demands", &self.demands).finish_non_exhaustive()
    }
}

impl Profile {
    /// Reads the files and builds both sides.
    ///
    /// # Errors
    /// The first file that cannot be read or does not hold what it should.
    pub fn build(spec: &Spec) -> Result<Profile, Problem> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions: &[&SupportedProtocolVersion] =
            if spec.tls13_only { &[&rustls::version::TLS13] } else { rustls::ALL_VERSIONS };
        let mut keys = Vec::new();
        for (chain, key) in &spec.certificates {
            keys.push(certified(chain, key, &provider)?);
        }
        let first = spec.certificates.first().map_or(Path::new(""), |(chain, _)| chain);
        let at = |path: &Path| {
            let path = path.to_owned();
            move |e: Error| Problem { path, reason: e.to_string() }
        };
        let roots = Arc::new(roots(spec.ca.as_deref())?);
        let ca = spec.ca.clone().unwrap_or_else(|| SYSTEM_ROOTS.into());
        let verifier = || {
            let builder =
                WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider.clone());
            let builder = match spec.clients {
                ClientAuth::Require => builder,
                ClientAuth::Off | ClientAuth::Request => builder.allow_unauthenticated(),
            };
            builder.build().map_err(|e| Problem { path: ca.clone(), reason: e.to_string() })
        };
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(at(first))?;
        let server = match spec.clients {
            ClientAuth::Off => server.with_no_client_auth(),
            ClientAuth::Request | ClientAuth::Require => {
                server.with_client_cert_verifier(verifier()?)
            }
        };
        let server = server.with_cert_resolver(Arc::new(BySni(keys.clone())));
        let algorithms = provider.signature_verification_algorithms;
        let verifier = SipVerifier { roots, algorithms, verify: spec.verify };
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(at(first))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let client = match keys.first() {
            Some((_, key)) => {
                client.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(key))))
            }
            None => client.with_no_client_auth(),
        };
        Ok(Profile {
            server: Arc::new(server),
            client: Arc::new(client),
            names: spec.names.clone(),
            demands: spec.demands.clone(),
        })
    }

    /// The name that a server must show for what we resolved: the domain, or else what is
    /// configured for its address, or else the address.
    pub(super) fn server_name(&self, domain: Option<&str>, ip: IpAddr) -> ServerName<'static> {
        let named = self.names.iter().find(|(at, _)| *at == ip).map(|(_, name)| &**name);
        domain
            .or(named)
            .and_then(|name| ServerName::try_from(name.to_owned()).ok())
            .unwrap_or(ServerName::IpAddress(ip.into()))
    }

    /// Whether a client from `source` that has shown `shown` may stay.
    pub(super) fn admits(&self, source: IpAddr, shown: &Identities) -> bool {
        let mut demands =
            self.demands.iter().filter(|d| d.sources.iter().any(|net| net.contains(source)));
        demands.all(|d| d.domains.iter().any(|name| shown.host(name)))
    }
}

fn problem(path: &Path, reason: impl fmt::Display) -> Problem {
    Problem { path: path.to_owned(), reason: reason.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| problem(path, e))?;
    if all.is_empty() { Err(problem(path, "no certificate")) } else { Ok(all) }
}

fn certified(
    chain: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<(Identities, Arc<CertifiedKey>), Problem> {
    let certificates = certificates(chain)?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| problem(key, e))?;
    let names = certificates.first().map(Identities::of).unwrap_or_default();
    let both = CertifiedKey::from_der(certificates, secret, provider);
    Ok((names, Arc::new(both.map_err(|e| problem(key, e))?)))
}

/// The authorities of a file, or those of the system.
///
/// # Errors
/// A file that cannot be read or holds none.
pub(crate) fn roots(ca: Option<&Path>) -> Result<RootCertStore, Problem> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(ca) => {
            for certificate in certificates(ca)? {
                roots.add(certificate).map_err(|e| problem(ca, e))?;
            }
        }
        None => {
            // A machine without authorities believes nobody, which is safe and shows at once.
            let system = certificates(Path::new(SYSTEM_ROOTS)).unwrap_or_default();
            roots.add_parsable_certificates(system);
        }
    }
    Ok(roots)
}

/// The certificate that speaks for the name a client asks for; the first for all others.
#[derive(Debug)]
struct BySni(Vec<(Identities, Arc<CertifiedKey>)>);

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let wanted = hello.server_name();
        let exact = |name: &str| wanted.is_some_and(|w| name.eq_ignore_ascii_case(w));
        let wild = |name: &str| {
            let parent = wanted.and_then(|w| w.split_once('.')).map(|(_, parent)| parent);
            let of = name.strip_prefix("*.");
            of.zip(parent).is_some_and(|(of, parent)| of.eq_ignore_ascii_case(parent))
        };
        let by = |fits: &dyn Fn(&str) -> bool| {
            self.0.iter().find(|(names, _)| names.served().any(fits)).map(|(_, key)| key.clone())
        };
        by(&exact).or_else(|| by(&wild)).or_else(|| self.0.first().map(|(_, key)| key.clone()))
    }
}

/// Chains as usual, names as RFC 5922 has them.
#[derive(Debug)]
struct SipVerifier {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    verify: bool,
}

impl ServerCertVerifier for SipVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.verify {
            return Ok(ServerCertVerified::assertion());
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let all = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, all)?;
        if Identities::of(end_entity).host(&server_name.to_str()) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
