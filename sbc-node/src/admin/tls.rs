//! Mutual TLS of the management endpoint, both ends: only holders of a certificate of the
//! operator's own authority get in, and only to a node that has one too.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// gRPC is HTTP/2.
const ALPN: &[u8] = b"h2";

fn invalid(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
}

pub(crate) fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| invalid(path, error))
}

fn roots(path: &Path) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| invalid(path, error))?;
    }
    if roots.is_empty() {
        return Err(invalid(path, "no certificate"));
    }
    Ok(roots)
}

pub(crate) fn key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| invalid(path, error))
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The node's side: clients must show a certificate of `ca`.
///
/// # Errors
/// When a file cannot be read or does not hold what it should.
pub fn server(ca: &Path, certificate: &Path, private: &Path) -> io::Result<Arc<ServerConfig>> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider())
        .build()
        .map_err(|error| invalid(ca, error))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(certificate, error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(certificate)?, key(private)?)
        .map_err(|error| invalid(certificate, error))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// The operator's side.
///
/// # Errors
/// As [`server`].
pub fn client(ca: &Path, certificate: &Path, private: &Path) -> io::Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(certificate, error))?
        .with_root_certificates(roots(ca)?)
        .with_client_auth_cert(certificates(certificate)?, key(private)?)
        .map_err(|error| invalid(certificate, error))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}
