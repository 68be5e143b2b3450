//! HEP over TCP: one connection to the collector, made again when it went. Packets follow each other on it
//! as they are: each begins with its own length. Nobody waits for a collector that is away or slow: the
//! queue is bounded, and what was not written is counted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::tap::TapStats;

/// Packets that wait for the connection.
pub(super) const QUEUE: usize = 4096;
/// Written at once.
const BATCH: usize = 64;
/// How long a connection may take to be made, and a batch to be written.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to connect.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Why a connection is not used any more.
enum End {
    /// The node stops.
    NoMorePackets,
    Broken(std::io::Error),
}

/// Writes what comes until there is nobody left to send anything.
pub(super) async fn run(
    collector: String,
    mut packets: mpsc::Receiver<Vec<u8>>,
    stats: Arc<TapStats>,
) {
    // A collector that is away for a day is one warning, not a day of them.
    let mut told = false;
    loop {
        let error = match connect(&collector).await {
            Ok(stream) => {
                tracing::info!(%collector, "HEP collector connected");
                told = false;
                match write(stream, &mut packets, &stats).await {
                    End::NoMorePackets => return,
                    End::Broken(error) => error,
                }
            }
            Err(error) => error,
        };
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(%collector, %error, "HEP collector is away");
        }
        if packets.is_closed() {
            return;
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

async fn connect(collector: &str) -> std::io::Result<TcpStream> {
    let stream = timeout(PATIENCE, TcpStream::connect(collector)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn write(stream: TcpStream, packets: &mut mpsc::Receiver<Vec<u8>>, stats: &TapStats) -> End {
    let (mut from, mut to) = stream.into_split();
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            biased;
            error = ended(&mut from) => return End::Broken(error),
            count = packets.recv_many(&mut batch, BATCH) => if count == 0 {
                return End::NoMorePackets;
            },
        }
        let bytes = batch.concat();
        let written = timeout(PATIENCE, to.write_all(&bytes)).await;
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        batch.clear();
        match written.unwrap_or_else(|late| Err(late.into())) {
            Ok(()) => stats.hep_sent.fetch_add(count, Ordering::Relaxed),
            Err(error) => {
                stats.hep_errors.fetch_add(count, Ordering::Relaxed);
                return End::Broken(error);
            }
        };
    }
}

/// A collector has nothing to say; what it says is passed over until it closes.
async fn ended(from: &mut OwnedReadHalf) -> std::io::Error {
    let mut nothing = [0; 256];
    loop {
        match from.read(&mut nothing).await {
            Ok(0) => return std::io::ErrorKind::UnexpectedEof.into(),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}
