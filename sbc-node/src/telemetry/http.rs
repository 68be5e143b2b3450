//! The smallest HTTP server that Prometheus and a kubelet can talk to: `/metrics`, `/healthz`,
//! `/readyz`. It belongs on a private address.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

const REQUEST_BYTES_MAX: usize = 4_096;
const TIME_MAX: Duration = Duration::from_secs(5);
const CONNECTIONS_MAX: usize = 32;
const TEXT: &str = "text/plain; charset=utf-8";

/// What the endpoint shows.
pub trait Pages: Send + Sync + 'static {
    /// The metrics in OpenMetrics text.
    fn metrics(&self) -> impl Future<Output = String> + Send;
    /// Why no new calls should come here: it drains, or no majority confirms it. `None`: they may.
    fn unready(&self) -> Option<&'static str>;
    /// What has stopped turning; `None` while all is alive.
    fn stuck(&self) -> impl Future<Output = Option<String>> + Send;
}

/// Serves until the listener fails for good.
pub async fn serve<P: Pages>(listener: TcpListener, pages: Arc<P>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a metrics connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            let _permit = permit;
            // A client that goes away early or is too slow is its own trouble.
            let _ = tokio::time::timeout(TIME_MAX, answer(stream, &*pages)).await;
        });
    }
}

async fn answer<P: Pages>(mut stream: TcpStream, pages: &P) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut chunk = [0; 1_024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        let count = stream.read(&mut chunk).await?;
        request.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if count == 0 || request.len() > REQUEST_BYTES_MAX {
            return Ok(());
        }
    }
    let line = request.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split(|b| *b == b'?').next().unwrap_or_default();
    const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let (status, kind, body) = match (method, path) {
        (b"GET" | b"HEAD", b"/metrics") => ("200 OK", METRICS, pages.metrics().await),
        (b"GET" | b"HEAD", b"/healthz") => verdict(pages.stuck().await),
        (b"GET" | b"HEAD", b"/readyz") => verdict(pages.unready().map(str::to_owned)),
        (b"GET" | b"HEAD", _) => ("404 Not Found", TEXT, "not found\n".to_owned()),
        _ => ("405 Method Not Allowed", TEXT, "only GET\n".to_owned()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    if method != b"HEAD" {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

/// What a probe is told: ok, or why not.
fn verdict(trouble: Option<String>) -> (&'static str, &'static str, String) {
    match trouble {
        None => ("200 OK", TEXT, "ok\n".to_owned()),
        Some(reason) => ("503 Service Unavailable", TEXT, format!("{reason}\n")),
    }
}
