//! Connects to a node: by its socket, or over mutual TLS.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::{Args, Failure};
use crate::admin::tls;

const CONNECT_TIME: Duration = Duration::from_secs(5);

/// A channel to the node that the arguments name.
pub(super) async fn connect(args: &Args) -> Result<Channel, Failure> {
    match (&args.endpoint, &args.ca, &args.cert, &args.key) {
        (Some(endpoint), Some(ca), Some(cert), Some(key)) => remote(endpoint, ca, cert, key).await,
        (Some(_), ..) => Err(Failure::Refused("--endpoint needs --ca, --cert and --key".into())),
        (None, ..) => local(&args.socket).await,
    }
}

async fn local(socket: &Path) -> Result<Channel, Failure> {
    let path = socket.to_owned();
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The name is for the :authority header only.
    Endpoint::from_static("http://node")
        .connect_timeout(CONNECT_TIME)
        .connect_with_connector(connector)
        .await
        .map_err(|error| unreachable(&socket.display().to_string(), &error))
}

async fn remote(endpoint: &str, ca: &Path, cert: &Path, key: &Path) -> Result<Channel, Failure> {
    let bad = |error: String| Failure::Refused(format!("{endpoint}: {error}"));
    let config = tls::client(ca, cert, key).map_err(|e| Failure::Refused(e.to_string()))?;
    let uri: Uri = endpoint.parse().map_err(|_| bad("not a URI".to_owned()))?;
    let host = uri.host().ok_or_else(|| bad("no host".to_owned()))?;
    let host = host.trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().ok_or_else(|| bad("no port".to_owned()))?;
    let name = ServerName::try_from(host.clone()).map_err(|e| bad(e.to_string()))?;
    let connector = TlsConnector::from(Arc::clone(&config));
    let dial = service_fn(move |_: Uri| {
        let (connector, host, name) = (connector.clone(), host.clone(), name.clone());
        async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    // TLS is done by the connector: the channel itself must see plain HTTP/2.
    let plain = Uri::builder().scheme("http").authority("node").path_and_query("/").build();
    Endpoint::from(plain.map_err(|e| bad(e.to_string()))?)
        .connect_timeout(CONNECT_TIME)
        .connect_with_connector(dial)
        .await
        .map_err(|error| unreachable(endpoint, &error))
}

/// The innermost cause says most.
fn unreachable(place: &str, error: &dyn std::error::Error) -> Failure {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    Failure::Unreachable(format!("{place}: {cause}"))
}
