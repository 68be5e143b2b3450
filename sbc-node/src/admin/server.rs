//! Listens for management: a unix socket that only its owner may use, TCP with mutual TLS.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use sbc_proto::admin::v1::bans_server::BansServer;
use sbc_proto::admin::v1::calls_server::CallsServer;
use sbc_proto::admin::v1::cluster_server::ClusterServer;
use sbc_proto::admin::v1::config_server::ConfigServer;
use sbc_proto::admin::v1::events_server::EventsServer;
use sbc_proto::admin::v1::media_server::MediaServer;
use sbc_proto::admin::v1::node_server::NodeServer;
use sbc_proto::admin::v1::registrations_server::RegistrationsServer;
use sbc_proto::admin::v1::trunks_server::TrunksServer;
use sbc_proto::admin::v1::users_server::UsersServer;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::transport::server::Router;

use super::bans::BansService;
use super::calls::CallsService;
use super::cluster::ClusterService;
use super::configuration::ConfigService;
use super::events::EventsService;
use super::media::MediaService;
use super::nodes::NodeService;
use super::registrations::RegistrationsService;
use super::tls;
use super::trunks::TrunksService;
use super::users::UsersService;
use crate::config::AdminConfig;
use crate::node::Context;

/// TLS handshakes under way at once, and how long one may take.
const HANDSHAKES_MAX: usize = 16;
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// Starts the configured endpoints.
///
/// # Errors
/// When an endpoint cannot be bound or its certificates cannot be used.
pub fn start(
    context: &Arc<Context>,
    config: &AdminConfig,
    runtime: &Runtime,
) -> anyhow::Result<()> {
    let path = &config.socket;
    let listener = private_socket(path).with_context(|| format!("socket {}", path.display()))?;
    let router = router(context)?;
    runtime.spawn(async move {
        if let Err(error) = router.serve_with_incoming(UnixListenerStream::new(listener)).await {
            tracing::error!(%error, "the management socket failed");
        }
    });
    if let Some((address, files)) = &config.remote {
        let tls = tls::server(&files.ca, &files.certificate, &files.key)?;
        let listener = runtime
            .block_on(TcpListener::bind(*address))
            .with_context(|| format!("management on {address}"))?;
        let (sender, incoming) = mpsc::channel(1);
        runtime.spawn(accept(listener, TlsAcceptor::from(tls), sender));
        let router = self::router(context)?;
        runtime.spawn(async move {
            if let Err(error) = router.serve_with_incoming(ReceiverStream::new(incoming)).await {
                tracing::error!(%error, "the management endpoint failed");
            }
        });
    }
    Ok(())
}

fn router(context: &Arc<Context>) -> anyhow::Result<Router> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(sbc_proto::DESCRIPTORS)
        .build_v1()?;
    // Alive as long as it answers; whether calls are taken is for `Node.Status` and /readyz.
    let (_, health) = tonic_health::server::health_reporter();
    let shared = || Arc::clone(context);
    Ok(Server::builder()
        .add_service(health)
        .add_service(reflection)
        .add_service(NodeServer::new(NodeService(shared())))
        .add_service(BansServer::new(BansService(shared())))
        .add_service(CallsServer::new(CallsService(shared())))
        .add_service(ClusterServer::new(ClusterService(shared())))
        .add_service(EventsServer::new(EventsService(shared())))
        .add_service(TrunksServer::new(TrunksService(shared())))
        .add_service(RegistrationsServer::new(RegistrationsService(shared())))
        .add_service(UsersServer::new(UsersService(shared())))
        .add_service(MediaServer::new(MediaService(shared())))
        .add_service(ConfigServer::new(ConfigService(shared()))))
}

/// Binds a socket with mode 0600, in place of one that nobody listens on any more.
fn private_socket(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir)?;
    }
    if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another node listens on it"));
        }
        std::fs::remove_file(path)?;
    }
    // Bound under a name of its own and moved into place, so that nobody sees it with other
    // rights than it is to have.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = std::path::PathBuf::from(fresh);
    if fresh.exists() {
        std::fs::remove_file(&fresh)?;
    }
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Takes connections, and hands those on whose handshake succeeded.
async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    sender: mpsc::Sender<io::Result<TlsStream<TcpStream>>>,
) {
    let permits = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a management connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        tokio::spawn(async move {
            let _permit = permit;
            match tokio::time::timeout(HANDSHAKE_TIME, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    // A server that is gone takes no more connections.
                    let _ = sender.send(Ok(stream)).await;
                }
                Ok(Err(error)) => tracing::info!(%remote, %error, "management handshake refused"),
                Err(_) => tracing::info!(%remote, "management handshake timed out"),
            }
        });
    }
}
