//! Snapshots between nodes: a stream of their own, in chunks, from file to file, so that they hold
//! up no heartbeat and fit in no memory. What arrives is checked whole before Raft hears of it.

use std::io::SeekFrom;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::replication_client::ReplicationClient;
use sbc_proto::cluster::v1::snapshot_chunk::Body;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc::channel;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Local, peer};
use crate::core::Input;
use crate::driver::Order;
use crate::types::NodeId;

const CHUNK_BYTES: usize = 256 * 1024;
const SIZE_MAX: u64 = 64 * 1024 * 1024 * 1024;

/// Sends the snapshot file of `index`, with the message that offers it.
pub(super) async fn send(
    local: &Arc<Local>,
    to: NodeId,
    address: String,
    message: Bytes,
    index: u64,
) -> Result<(), String> {
    let text = |e: std::io::Error| e.to_string();
    let mut file = File::open(local.snapshots.path(index)).await.map_err(text)?;
    let size = file.seek(SeekFrom::End(0)).await.map_err(text)?;
    file.rewind().await.map_err(text)?;
    let connection = peer::connect(to, address, local.client_config()).await?;
    let (chunks, stream) = channel(8);
    let reader = async move {
        let offer = pb::SnapshotOffer { message, size };
        let mut next = Some(Body::Offer(offer));
        while let Some(body) = next.take() {
            if chunks.send(pb::SnapshotChunk { body: Some(body) }).await.is_err() {
                return Ok::<(), String>(());
            }
            let mut data = BytesMut::with_capacity(CHUNK_BYTES);
            while data.len() < CHUNK_BYTES {
                if file.read_buf(&mut data).await.map_err(text)? == 0 {
                    break;
                }
            }
            if !data.is_empty() {
                next = Some(Body::Data(data.freeze()));
            }
        }
        Ok(())
    };
    let mut client = ReplicationClient::new(connection);
    let call = client.install_snapshot(ReceiverStream::new(stream));
    let (read, answer) = tokio::join!(reader, call);
    read?;
    answer.map(drop).map_err(|status| status.to_string())
}

/// Gathers a snapshot in a file, checks it, and gives it to the core.
pub(super) async fn receive(
    local: &Arc<Local>,
    from: NodeId,
    mut chunks: Streaming<pb::SnapshotChunk>,
) -> Result<(), Status> {
    let first = chunks.message().await?.and_then(|chunk| chunk.body);
    let Some(Body::Offer(offer)) = first else {
        return Err(Status::invalid_argument("offer expected"));
    };
    if offer.size > SIZE_MAX {
        return Err(Status::invalid_argument("too large"));
    }
    let path = local.snapshots.incoming(from);
    let disk = |e: std::io::Error| Status::resource_exhausted(e.to_string());
    let mut file = File::create(&path).await.map_err(disk)?;
    let mut size = 0u64;
    while let Some(chunk) = chunks.message().await? {
        let Some(Body::Data(data)) = chunk.body else {
            return Err(Status::invalid_argument("data expected"));
        };
        size += data.len() as u64;
        if size > offer.size {
            return Err(Status::invalid_argument("longer than offered"));
        }
        file.write_all(&data).await.map_err(disk)?;
    }
    if size != offer.size {
        return Err(Status::aborted("shorter than offered"));
    }
    file.flush().await.map_err(disk)?;
    drop(file);
    let snapshots = local.snapshots.clone();
    let accepted = tokio::task::spawn_blocking(move || snapshots.accept(&path)).await;
    let (tables, position) = match accepted {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(e)) => return Err(Status::data_loss(e.to_string())),
        Err(e) => return Err(Status::internal(e.to_string())),
    };
    let orders = local.orders.clone();
    let order = Order::Input(Input::Snapshot {
        from,
        message: offer.message,
        tables: Box::new(tables),
        position,
    });
    // Waits for room in the driver's queue, which is not for this thread to do.
    let put = tokio::task::spawn_blocking(move || orders.put(order)).await;
    put.map_err(|e| Status::internal(e.to_string()))
}
