//! How a node comes into a cluster: with a token, it finds a member, checks by the token that it is
//! one, and is given an id and a certificate. Its log starts empty; the leader feeds it a snapshot.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls_pki_types::ServerName;
use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::membership_client::MembershipClient;
use tonic::Code;
use tonic::transport::Channel as Http2;

use super::key::{self, Proof};
use super::pki::{Files, Request, Token};
use super::tls::{self, Connector};
use super::{discovery, peer};
use crate::clock;
use crate::config::{Config, Discovery, StartError};
use crate::store::{self, Identity};
use crate::types::NodeId;

const ASK_EVERY: Duration = Duration::from_millis(500);

/// The addresses of members, as the answer listed them.
pub(crate) type Seeds = Vec<(NodeId, String)>;

/// Joins, and makes the node's directory. Returns whom to expect.
pub(crate) async fn join(
    config: &Config,
    token: &str,
    seeds: &Discovery,
) -> Result<Seeds, StartError> {
    let failed = |e: super::PkiError| StartError::Pki(e.to_string());
    let token = Token::parse(token).map_err(failed)?;
    let request = Files::new(&config.dir).joining().map_err(failed)?;
    let ask = || ask_all(config, &token, &request, seeds);
    let answer = until_let_in(config, "not joined yet", ask).await?;
    settle(config, &request, answer)
}

/// Makes the node's directory of what a member answered. Returns whom to expect.
pub(super) fn settle(
    config: &Config,
    request: &Request,
    answer: pb::JoinResponse,
) -> Result<Seeds, StartError> {
    let files = Files::new(&config.dir);
    let saved = files.save(request, &answer.certificate, &answer.ca);
    saved.map_err(|e| StartError::Pki(e.to_string()))?;
    let identity = Identity { cluster_id: answer.cluster_id.to_vec(), node: NodeId(answer.id) };
    store::create(&config.dir, &identity, None)?;
    let nodes = answer.nodes.into_iter();
    Ok(nodes.map(|node| (NodeId(node.id), node.address)).collect())
}

/// Asks again and again, within [`Config::join_within`], until there is an answer or a final refusal.
pub(super) async fn until_let_in<T, F: Future<Output = Result<T, Refusal>>>(
    config: &Config,
    meanwhile: &str,
    ask: impl Fn() -> F,
) -> Result<T, StartError> {
    let deadline = clock::now() + config.join_within;
    loop {
        let reason = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(Refusal::Final(reason)) => return Err(StartError::Join(reason)),
            Err(Refusal::Later(reason)) => reason,
        };
        if clock::now() >= deadline {
            return Err(StartError::Join(reason));
        }
        tracing::info!(%reason, "{meanwhile}");
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Why it was not let in, and whether asking again helps.
pub(super) enum Refusal {
    Final(String),
    Later(String),
}

async fn ask_all(
    config: &Config,
    token: &Token,
    request: &Request,
    seeds: &Discovery,
) -> Result<pb::JoinResponse, Refusal> {
    let addresses = discovery::find(seeds).await.map_err(Refusal::Later)?;
    let mut last = Refusal::Later("no member was found".to_owned());
    for address in addresses {
        match ask(config, token, request, address).await {
            Ok(answer) => return Ok(answer),
            Err(Refusal::Final(reason)) => return Err(Refusal::Final(reason)),
            Err(later) => last = later,
        }
    }
    Err(last)
}

async fn ask(
    config: &Config,
    token: &Token,
    request: &Request,
    address: String,
) -> Result<pb::JoinResponse, Refusal> {
    let later = |reason: String| Refusal::Later(format!("{address}: {reason}"));
    let tls = tls::joiner_config(token.ca_hash).map_err(|e| Refusal::Final(e.to_string()))?;
    // The name is not looked at: the token says whom to believe.
    let name = ServerName::try_from("join.sbc-cluster").map_err(|e| later(e.to_string()))?;
    let connector = Connector { address: address.clone(), name, config: Arc::new(tls) };
    let channel = peer::dial(connector).await.map_err(later)?;
    let secret = Bytes::copy_from_slice(&token.secret);
    send(config, secret, request, channel).await.map_err(|refusal| match refusal {
        Refusal::Later(reason) => later(reason),
        Refusal::Final(reason) => Refusal::Final(reason),
    })
}

/// A connection to whoever holds the join key at `address`.
pub(super) async fn dial_by_key(proof: &Proof, address: &str) -> Result<Http2, String> {
    let tls = proof.client().map_err(|e| e.to_string())?;
    let name = ServerName::try_from(key::NAME).map_err(|e| e.to_string())?;
    let connector = Connector { address: address.to_owned(), name, config: Arc::new(tls) };
    peer::dial(connector).await
}

/// Asks a member that holds the join key to be let in.
pub(super) async fn ask_by_key(
    config: &Config,
    proof: &Proof,
    request: &Request,
    address: String,
) -> Result<pb::JoinResponse, Refusal> {
    let channel = dial_by_key(proof, &address).await.map_err(Refusal::Later)?;
    send(config, Bytes::new(), request, channel).await
}

async fn send(
    config: &Config,
    token: Bytes,
    request: &Request,
    channel: Http2,
) -> Result<pb::JoinResponse, Refusal> {
    let join = pb::JoinRequest {
        token,
        name: config.name.clone(),
        address: config.address(),
        csr: Bytes::copy_from_slice(&request.csr),
        learner: false,
        format: config.format,
    };
    let mut client = MembershipClient::new(channel);
    match tokio::time::timeout(Duration::from_secs(15), client.join(join)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) if status.code() == Code::PermissionDenied => {
            Err(Refusal::Final("the token is unknown, used or expired".to_owned()))
        }
        Ok(Err(status)) if status.code() == Code::Unimplemented => {
            Err(Refusal::Final(status.message().to_owned()))
        }
        Ok(Err(status)) => Err(Refusal::Later(status.to_string())),
        Err(_) => Err(Refusal::Later("timeout".to_owned())),
    }
}
