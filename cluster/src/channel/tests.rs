//! What a member may not say, and certificates that are renewed: over real TLS on loopback.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::peer_frame::Body;
use sbc_proto::cluster::v1::replication_client::ReplicationClient;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::peer;
use super::pki::{Ca, Files, Request};
use super::tls::{self, Current};
use crate::config::{Config, Discovery, Origin};
use crate::state::FORMAT_VERSION;
use crate::{Cluster, Handle, NodeId};

const WAIT: Duration = Duration::from_secs(30);

fn config(dir: &Path, name: &str) -> Config {
    let mut config = Config::new(dir.join(name), name);
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    config.listen = Some(socket.local_addr().expect("address"));
    config
}

fn until(what: &str, mut met: impl FnMut() -> bool) {
    let end = Instant::now() + WAIT;
    while !met() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Two members; the second is stopped, its directory is there.
fn two(dir: &Path) -> (Handle, Config, Config, NodeId) {
    let first = config(dir, "a");
    let a = Cluster::start(first.clone()).expect("a");
    let mut second = config(dir, "b");
    until("a quorum", || a.lease_valid());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let token = runtime.expect("runtime").block_on(a.create_join_token(WAIT)).expect("token");
    let seeds = Discovery::Static(vec![first.listen.expect("listens").to_string()]);
    second.origin = Origin::Join { token, seeds };
    let b = Cluster::start(second.clone()).expect("b");
    let id = b.id();
    until("b to have the tables", || b.secret("x").is_some() && b.lease_valid());
    b.stop();
    (a, first, second, id)
}

fn client(dir: &Path) -> Arc<rustls::ClientConfig> {
    let loaded = Files::new(dir).load(&tls::provider()).expect("certificate");
    let current = Arc::new(Current(ArcSwap::from_pointee(loaded)));
    Arc::new(tls::client_config(&current).expect("TLS"))
}

/// Opens a stream to `a` with the certificate in `dir`, sends `frames`, and returns how it ended.
async fn said(
    a: &Handle,
    to: &Config,
    config: &Arc<rustls::ClientConfig>,
    frames: Vec<pb::PeerFrame>,
) -> Code {
    let address = to.listen.expect("listens").to_string();
    let channel = peer::connect(a.id(), address, Arc::clone(config)).await.expect("connected");
    let (sender, receiver) = tokio::sync::mpsc::channel(frames.len());
    for frame in frames {
        sender.send(frame).await.expect("room");
    }
    // Nothing more comes: a stream without fault ends.
    drop(sender);
    let stream = ReplicationClient::new(channel).stream(ReceiverStream::new(receiver)).await;
    let mut acks = match stream {
        Ok(acks) => acks.into_inner(),
        Err(status) => return status.code(),
    };
    loop {
        match acks.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Code::Ok,
            Err(status) => return status.code(),
        }
    }
}

#[test]
fn a_frame_out_of_place_closes_the_stream_and_is_counted() {
    let dir = tempfile::tempdir().expect("directory");
    let (a, a_config, b_config, b) = two(dir.path());
    let cluster_id = a.read(|tables| Bytes::copy_from_slice(tables.cluster_id()));
    let hello = |cluster_id: &Bytes, node: u64| pb::PeerFrame {
        seq: 1,
        body: Some(Body::Hello(pb::Hello {
            version: FORMAT_VERSION,
            cluster_id: cluster_id.clone(),
            node,
            address: String::new(),
        })),
    };
    let frame = |body| pb::PeerFrame { seq: 2, body };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        let config = client(&b_config.dir);
        let good = hello(&cluster_id, b.0);
        // A later release says hello as well.
        let mut later = good.clone();
        if let Some(Body::Hello(hello)) = &mut later.body {
            hello.version += 1;
        }
        let relay = frame(Some(Body::Relay(Bytes::from_static(b"x"))));
        assert_eq!(said(&a, &a_config, &config, vec![later, relay]).await, Code::Ok);
        let malformed = [
            frame(None),
            good.clone(),
            frame(Some(Body::Relay(vec![0; super::RELAY_BYTES_MAX + 1].into()))),
        ];
        for bad in malformed {
            let code = said(&a, &a_config, &config, vec![good.clone(), bad]).await;
            assert_eq!(code, Code::InvalidArgument);
        }
        // Raft bytes that are none are dropped; the node goes on.
        let garbage = pb::RaftBatch { messages: vec![Bytes::from_static(b"\xff\x01garbage")] };
        let garbage = frame(Some(Body::Raft(garbage)));
        assert_eq!(said(&a, &a_config, &config, vec![good.clone(), garbage]).await, Code::Ok);
        // Another cluster, another node than the certificate's, no hello.
        let other = hello(&Bytes::from_static(b"other"), b.0);
        assert_eq!(said(&a, &a_config, &config, vec![other]).await, Code::PermissionDenied);
        let posing = hello(&cluster_id, a.id().0);
        assert_eq!(said(&a, &a_config, &config, vec![posing]).await, Code::PermissionDenied);
        let rude = said(&a, &a_config, &config, vec![frame(None)]).await;
        assert_eq!(rude, Code::InvalidArgument);
    });
    let status = a.status();
    let peer = status.peers.iter().find(|peer| peer.node == b).expect("b is known");
    assert_eq!(peer.malformed, 3, "those of streams that had begun");
    a.stop();
}

#[test]
fn a_certificate_that_runs_out_is_renewed_by_the_node_itself() {
    let dir = tempfile::tempdir().expect("directory");
    let (a, _, mut b_config, b) = two(dir.path());
    let files = Files::new(&b_config.dir);
    let request = Request::new().expect("key");
    let ca = a.read(Ca::from_tables).expect("the cluster's CA");
    let short = ca.sign_for(&request.csr, b, 10).expect("signed");
    files.save(&request, &short, &ca.certificate).expect("saved");
    assert!(files.load(&tls::provider()).expect("loads").is_due());
    b_config.origin = Origin::New;
    let again = Cluster::start(b_config).expect("b again");
    until("a new certificate", || {
        files.load(&tls::provider()).is_ok_and(|loaded| !loaded.is_due())
    });
    until("b to be a member still", || again.lease_valid() && a.lease_valid());
    let loaded = files.load(&tls::provider()).expect("loads");
    let shown = loaded.certified.cert.first().expect("a certificate");
    assert_eq!(super::pki::node_of(shown), Some(b));
    again.stop();
    a.stop();
}
