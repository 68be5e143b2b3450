//! Certificates of the cluster: one CA made with the cluster and kept in its replicated settings,
//! a certificate per node whose DNS name says which node it is, tokens that name the CA by hash.
//! Private keys of nodes never leave them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::clock;
use crate::hex;
use crate::state::Tables;
use crate::store::write_whole;
use crate::types::NodeId;

/// Settings under which the CA is replicated.
pub(crate) const CA_CERTIFICATE: &str = "cluster/ca-certificate";
pub(crate) const CA_KEY: &str = "cluster/ca-key";
/// What the keys that all nodes share are derived from.
pub(crate) const SECRET: &str = "cluster/secret";

const SUFFIX: &str = ".sbc-cluster";
/// Key and request of a node that is not let in yet.
const JOINING: &str = "joining.pem";
const CA_DAYS: i64 = 20 * 365;
const NODE_DAYS: i64 = 90;
/// A certificate is renewed when less than this is left.
const RENEW_DAYS: i64 = 30;
const DAY_SECONDS: i64 = 86_400;

/// What is wrong with certificates or keys.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PkiError {
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("{0} is not readable as PEM")]
    Pem(&'static str),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error("{0}: {1}")]
    Io(PathBuf, std::io::Error),
    #[error("the join token is malformed")]
    Token,
    #[error("this node does not hold the cluster's CA yet")]
    NoCa,
}

/// The cluster's CA, able to sign.
pub(crate) struct Ca {
    pub(crate) certificate: String,
    key: String,
}

fn validity(params: &mut CertificateParams, days: i64) {
    let now = i64::try_from(clock::wall_ms() / 1_000).unwrap_or(0);
    let base = rcgen::date_time_ymd(1970, 1, 1);
    // Clocks of nodes differ; a certificate made now must hold for one that is behind.
    params.not_before = base + std::time::Duration::from_secs(unsigned(now - DAY_SECONDS));
    params.not_after = base + std::time::Duration::from_secs(unsigned(now + days * DAY_SECONDS));
}

fn unsigned(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0)
}

impl Ca {
    pub(crate) fn create(cluster_id: &[u8]) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("sbc-cluster {}", hex::encode(cluster_id)));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, CA_DAYS);
        let certificate = params.self_signed(&key)?.pem();
        Ok(Ca { certificate, key: key.serialize_pem() })
    }

    pub(crate) fn from_tables(tables: &Tables) -> Result<Self, PkiError> {
        let text = |key| {
            let bytes = tables.reserved_setting(key)?;
            Some(std::str::from_utf8(bytes).ok()?.to_owned())
        };
        match (text(CA_CERTIFICATE), text(CA_KEY)) {
            (Some(certificate), Some(key)) => Ok(Ca { certificate, key }),
            _ => Err(PkiError::NoCa),
        }
    }

    pub(crate) fn settings(&self) -> [(&'static str, &[u8]); 2] {
        [(CA_CERTIFICATE, self.certificate.as_bytes()), (CA_KEY, self.key.as_bytes())]
    }

    /// Signs a request. What the requester wrote about itself is not looked at, only its key.
    pub(crate) fn sign(&self, csr: &[u8], node: NodeId) -> Result<String, PkiError> {
        self.sign_for(csr, node, NODE_DAYS)
    }

    pub(super) fn sign_for(&self, csr: &[u8], node: NodeId, days: i64) -> Result<String, PkiError> {
        let der = CertificateSigningRequestDer::from(csr);
        let mut request = CertificateSigningRequestParams::from_der(&der)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name(node));
        params.subject_alt_names = vec![SanType::DnsName(name(node).try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, days);
        request.params = params;
        let key = KeyPair::from_pem(&self.key)?;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, key)?;
        Ok(request.signed_by(&issuer)?.pem())
    }
}

/// The DNS name in a node's certificate.
pub(crate) fn name(node: NodeId) -> String {
    format!("n{node}{SUFFIX}")
}

/// Which node a certificate, already verified, speaks for.
pub(crate) fn node_of(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => {
            let id = name.strip_prefix('n')?.strip_suffix(SUFFIX)?;
            id.parse().ok().map(NodeId)
        }
        _ => None,
    })
}

/// A key of our own and the request to certify it.
pub(crate) struct Request {
    key: KeyPair,
    pub(crate) csr: Vec<u8>,
}

impl Request {
    pub(crate) fn new() -> Result<Self, PkiError> {
        Ok(Request::make()?.0)
    }

    /// The request, and its text.
    fn make() -> Result<(Self, String), PkiError> {
        let key = KeyPair::generate()?;
        let csr = CertificateParams::default().serialize_request(&key)?;
        let text = csr.pem()?;
        Ok((Request { key, csr: csr.der().to_vec() }, text))
    }
}

/// Who asks to be let in: the hash of the key that a request, signed with that key, asks to certify.
pub(crate) fn joiner(csr: &[u8]) -> Result<[u8; 32], PkiError> {
    let request = CertificateSigningRequestParams::from_der(&csr.into())?;
    Ok(sha256(&request.public_key.subject_public_key_info()))
}

/// What a node shows its peers, in `<dir>/pki`.
pub(crate) struct Files {
    dir: PathBuf,
}

impl Files {
    pub(crate) fn new(dir: &Path) -> Self {
        Files { dir: dir.join("pki") }
    }

    /// Key and certificate lie in one file, so that they change together.
    pub(crate) fn save(
        &self,
        request: &Request,
        certificate: &str,
        ca: &str,
    ) -> Result<(), PkiError> {
        self.write("ca.pem", ca)?;
        self.write("node.pem", &format!("{}{certificate}", request.key.serialize_pem()))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), PkiError> {
        std::fs::create_dir_all(&self.dir).map_err(|e| PkiError::Io(self.dir.clone(), e))?;
        let fill = |file: &mut _| std::io::Write::write_all(file, text.as_bytes());
        Ok(write_whole(&self.dir, name, fill)?)
    }

    /// By what this node asks to be let in: chosen once and kept before it is first used, so that who
    /// let it in knows it again when the answer was lost, after a restart as well.
    pub(crate) fn joining(&self) -> Result<Request, PkiError> {
        match self.read(JOINING) {
            Ok(kept) => {
                let bad = || PkiError::Pem(JOINING);
                let text = std::str::from_utf8(&kept).map_err(|_| bad())?;
                let key = KeyPair::from_pem(text).map_err(|_| bad())?;
                let csr = CertificateSigningRequestDer::from_pem_slice(&kept).map_err(|_| bad())?;
                Ok(Request { key, csr: csr.to_vec() })
            }
            Err(PkiError::Io(_, e)) if e.kind() == std::io::ErrorKind::NotFound => {
                let (request, text) = Request::make()?;
                self.write(JOINING, &format!("{}{text}", request.key.serialize_pem()))?;
                Ok(request)
            }
            Err(other) => Err(other),
        }
    }

    /// The node was let in, and knows it for good: another place would be asked for by another key.
    pub(crate) fn joined(&self) -> Result<(), PkiError> {
        let path = self.dir.join(JOINING);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(PkiError::Io(path, e)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, PkiError> {
        let path = self.dir.join(name);
        std::fs::read(&path).map_err(|e| PkiError::Io(path, e))
    }

    pub(crate) fn load(&self, provider: &CryptoProvider) -> Result<Loaded, PkiError> {
        let ca = CertificateDer::from_pem_slice(&self.read("ca.pem")?)
            .map_err(|_| PkiError::Pem("ca.pem"))?;
        let node = self.read("node.pem")?;
        let certificate =
            CertificateDer::from_pem_slice(&node).map_err(|_| PkiError::Pem("node.pem"))?;
        let key = PrivateKeyDer::from_pem_slice(&node).map_err(|_| PkiError::Pem("node.pem"))?;
        let renew_at = X509Certificate::from_der(&certificate)
            .map(|(_, parsed)| parsed.validity().not_after.timestamp() - RENEW_DAYS * DAY_SECONDS)
            .map_err(|_| PkiError::Pem("node.pem"))?;
        let key = provider.key_provider.load_private_key(key)?;
        // The CA goes along: a joiner knows it by its hash alone.
        let certified = CertifiedKey::new(vec![certificate, ca.clone()], key);
        Ok(Loaded { ca, certified: Arc::new(certified), renew_at })
    }
}

/// Certificates in use.
#[derive(Clone)]
pub(crate) struct Loaded {
    pub(crate) ca: CertificateDer<'static>,
    pub(crate) certified: Arc<CertifiedKey>,
    /// Unix time in seconds from which a new certificate is asked for.
    renew_at: i64,
}

impl Loaded {
    pub(crate) fn is_due(&self) -> bool {
        i64::try_from(clock::wall_ms() / 1_000).unwrap_or(i64::MAX) >= self.renew_at
    }
}

/// What a joiner is given: a secret, and by what to know the cluster.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) secret: [u8; 16],
    pub(crate) ca_hash: [u8; 32],
}

pub(crate) fn sha256(data: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, data);
    digest.as_ref().try_into().unwrap_or([0; 32])
}

const TOKEN_PREFIX: &str = "sbcj1.";

impl Token {
    pub(crate) fn new(ca: &CertificateDer<'_>) -> Self {
        Token { secret: clock::entropy(), ca_hash: sha256(ca) }
    }

    pub(crate) fn print(&self) -> String {
        format!("{TOKEN_PREFIX}{}.{}", hex::encode(&self.secret), hex::encode(&self.ca_hash))
    }

    pub(crate) fn parse(text: &str) -> Result<Self, PkiError> {
        let read = || {
            let (secret, ca_hash) = text.trim().strip_prefix(TOKEN_PREFIX)?.split_once('.')?;
            Some(Token {
                secret: hex::decode(secret)?.try_into().ok()?,
                ca_hash: hex::decode(ca_hash)?.try_into().ok()?,
            })
        };
        read().ok_or(PkiError::Token)
    }
}
