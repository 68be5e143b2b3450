//! The join key: a secret that all nodes of a cluster are given, for those who have nobody at hand to
//! make tokens. Both ends of a connection prove with TLS that they hold it: it derives one Ed25519
//! key, and who shows a certificate with that key, and signs the handshake with it, is believed.
//!
//! ```text
//! secret ─ HKDF-SHA256 ─▶ Ed25519 seed ─▶ key pair ─▶ a self-signed certificate, made afresh
//! ```
//!
//! It lets its holder join, as a token does, and nothing else: a member is known by its certificate.

use std::fmt;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use ring::hkdf::{HKDF_SHA256, Salt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::pki::PkiError;
use super::tls;

/// The name by which a member is asked to show the join key instead of its certificate.
pub(super) const NAME: &str = "key.sbc-cluster";
/// Shorter secrets can be guessed.
const SECRET_BYTES_MIN: usize = 32;
/// PKCS #8 (RFC 8410) of an Ed25519 key, up to its 32 bytes.
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// A secret that lets a node join. It has no `Debug` that shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinKey {
    seed: [u8; 32],
}

impl fmt::Debug for JoinKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinKey")
    }
}

impl JoinKey {
    /// `None` when the secret has fewer than 32 bytes: too short to be believed in.
    pub fn derive(secret: &[u8]) -> Option<JoinKey> {
        if secret.len() < SECRET_BYTES_MIN {
            return None;
        }
        let key = Salt::new(HKDF_SHA256, b"sbc-cluster").extract(secret);
        let mut seed = [0; 32];
        let info: [&[u8]; 1] = [b"join key 1"];
        key.expand(&info, HKDF_SHA256).ok()?.fill(&mut seed).ok()?;
        Some(JoinKey { seed })
    }

    pub(super) fn proof(&self) -> Result<Proof, PkiError> {
        let pkcs8 = [&PKCS8_HEAD[..], &self.seed[..]].concat();
        let der = PrivatePkcs8KeyDer::from(pkcs8);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)?;
        let certificate = CertificateParams::new([NAME.to_owned()])?.self_signed(&key)?;
        let public = public_key(certificate.der()).ok_or(PkiError::Pem("the join key"))?;
        let provider = tls::provider();
        let signer = provider.key_provider.load_private_key(PrivateKeyDer::Pkcs8(der))?;
        let certified = CertifiedKey::new(vec![certificate.der().clone()], signer);
        let algorithms = provider.signature_verification_algorithms;
        Ok(Proof { certified: Arc::new(certified), public: public.into(), algorithms })
    }
}

fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.public_key().raw.to_vec())
}

/// What shows that we hold the key, and by which we know who does.
#[derive(Clone, Debug)]
pub(super) struct Proof {
    pub(super) certified: Arc<CertifiedKey>,
    public: Arc<[u8]>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Proof {
    /// Whether this certificate is of the join key; that its owner holds the key is shown by the
    /// signature of the handshake, which rustls checks with [`Proof::verify`].
    pub(super) fn is_of(&self, certificate: &CertificateDer<'_>) -> bool {
        public_key(certificate).is_some_and(|public| *public == *self.public)
    }

    pub(super) fn verify(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, dss, &self.algorithms)
    }

    /// One who joins by the key.
    pub(super) fn client(&self) -> Result<ClientConfig, Error> {
        let resolver = SingleCertAndKey::from(Arc::clone(&self.certified));
        let mut config = ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Holder(self.clone())))
            .with_client_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = tls::alpn();
        Ok(config)
    }

    /// A node without data that waits for others like it.
    pub(super) fn server(&self) -> Result<ServerConfig, Error> {
        let mut config = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(Holder(self.clone())))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.certified))));
        config.alpn_protocols = tls::alpn();
        Ok(config)
    }
}

/// Believes whoever holds the key.
#[derive(Debug)]
struct Holder(Proof);

impl Holder {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        if self.0.is_of(certificate) { Ok(()) } else { Err(unknown()) }
    }
}

fn no_tls12() -> Error {
    Error::General("TLS 1.3 only".to_owned())
}

impl ServerCertVerifier for Holder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify(message, certificate, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Holder {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify(message, certificate, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
