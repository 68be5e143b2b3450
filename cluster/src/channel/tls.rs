//! TLS on both ends of the channel: rustls with certificates that can change while it runs. A
//! caller without a certificate of the cluster's CA is let in only while a join token is
//! outstanding, and then to nothing but `Join`.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, RwLock};
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client, server};
use tonic::transport::Uri;
use tonic::transport::server::Connected;
use tower::Service;

use super::key::{self, Proof};
use super::pki::{self, Loaded};
use crate::state::Tables;
use crate::types::{NodeId, Table};

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(ca: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    Ok(Arc::new(roots))
}

pub(super) fn alpn() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec()]
}

/// Hands out whatever certificate is current.
pub(super) struct Current(pub(super) ArcSwap<Loaded>);

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

/// Shows the join key to who asks for it by name, and everyone else the node's certificate.
#[derive(Debug)]
struct Faces {
    current: Arc<Current>,
    key: Option<Arc<Proof>>,
}

impl ResolvesServerCert for Faces {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match &self.key {
            Some(key) if hello.server_name() == Some(key::NAME) => Some(Arc::clone(&key.certified)),
            Some(_) | None => Some(Arc::clone(&self.current.0.load().certified)),
        }
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Members are served, those who hold the join key, and while one is outstanding those with a token.
pub(super) fn server_config(
    current: &Arc<Current>,
    tables: Arc<RwLock<Tables>>,
    key: Option<Arc<Proof>>,
) -> Result<ServerConfig, Error> {
    let roots = roots(&current.0.load().ca)?;
    let members = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|e| Error::General(e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Gate { members, tables, key: key.clone() }))
        .with_cert_resolver(Arc::new(Faces { current: Arc::clone(current), key }));
    config.alpn_protocols = alpn();
    Ok(config)
}

pub(super) fn client_config(current: &Arc<Current>) -> Result<ClientConfig, Error> {
    let roots = roots(&current.0.load().ca)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::clone(current) as Arc<dyn ResolvesClientCert>);
    config.alpn_protocols = alpn();
    Ok(config)
}

/// A joiner has no certificate and knows the cluster by its CA's hash alone.
pub(super) fn joiner_config(ca_hash: [u8; 32]) -> Result<ClientConfig, Error> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let verifier = Pinned { ca_hash, algorithms };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = alpn();
    Ok(config)
}

/// Members only, but for the time in which someone is awaited.
struct Gate {
    members: Arc<dyn ClientCertVerifier>,
    tables: Arc<RwLock<Tables>>,
    key: Option<Arc<Proof>>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl ClientCertVerifier for Gate {
    fn client_auth_mandatory(&self) -> bool {
        let tables = self.tables.read().unwrap_or_else(|e| e.into_inner());
        tables.len(Table::Tokens) == 0
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.members.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // That the caller holds the key, its signature shows below.
        if self.key.as_ref().is_some_and(|key| key.is_of(end_entity)) {
            return Ok(ClientCertVerified::assertion());
        }
        self.members.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.members.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.members.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.members.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct Pinned {
    ca_hash: [u8; 32],
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca = intermediates
            .iter()
            .find(|certificate| pki::sha256(certificate) == self.ca_hash)
            .ok_or_else(|| unknown.clone())?;
        let roots = roots(&ca.clone().into_owned())?;
        // Whoever the CA certified as a node will do: the joiner knows no ids yet.
        let node = pki::node_of(end_entity).ok_or(unknown)?;
        let name = ServerName::try_from(pki::name(node))
            .map_err(|_| Error::InvalidCertificate(CertificateError::NotValidForName))?;
        WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|e| Error::General(e.to_string()))?
            .verify_server_cert(end_entity, &[], &name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Who called: the node that the certificate names, one who holds the join key, or nobody.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) node: Option<NodeId>,
    pub(super) by_key: bool,
}

/// An accepted connection.
pub(super) struct Accepted {
    io: server::TlsStream<TcpStream>,
    caller: Caller,
}

impl Accepted {
    pub(super) fn new(io: server::TlsStream<TcpStream>, key: Option<&Proof>) -> Self {
        let certificates = io.get_ref().1.peer_certificates();
        let certificate = certificates.and_then(|list| list.first());
        let by_key = certificate.is_some_and(|c| key.is_some_and(|key| key.is_of(c)));
        // The CA did not sign what is written in a certificate of the join key.
        let node = if by_key { None } else { certificate.and_then(pki::node_of) };
        Accepted { io, caller: Caller { node, by_key } }
    }
}

impl Connected for Accepted {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Opens TLS connections for tonic; the address is ours to choose, not the URI's.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) address: String,
    pub(super) name: ServerName<'static>,
    pub(super) config: Arc<ClientConfig>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<client::TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let tcp = TcpStream::connect(&this.address).await?;
            tcp.set_nodelay(true)?;
            let tls = TlsConnector::from(this.config).connect(this.name, tcp).await?;
            Ok(TokioIo::new(tls))
        })
    }
}
