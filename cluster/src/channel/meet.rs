//! How nodes that were only given the join key make one cluster and no second one, whoever of them
//! comes, dies or loses its disk in whatever order.
//!
//! A node without data answers the others that it has none, and asks everyone whom discovery names:
//!
//! - a member answers: it is asked to let the node in, and that is all;
//! - as many nodes as were agreed on (`begin`), itself among them, answer that they have no data
//!   either: the one whose name comes first begins the cluster, the others find a member soon;
//! - otherwise: once more, a little later.
//!
//! A node that holds data never begins, so that one that lost its disk cannot begin a second cluster
//! beside the first: the others do not say that they have none. Only when all `begin` nodes have lost
//! theirs is there nothing to come back to, and a new cluster begins.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::membership_client::MembershipClient;
use sbc_proto::cluster::v1::membership_server::{Membership, MembershipServer};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::sync::mpsc::channel;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::join::{self, Refusal, Seeds};
use super::key::{JoinKey, Proof};
use super::pki::{Files, Request as Csr};
use super::tls::{Accepted, Caller};
use super::{discovery, server};
use crate::config::{Config, Discovery, StartError};

const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// What the nodes came to.
pub(crate) enum Met {
    /// This node begins the cluster.
    Begin,
    /// It was let in; its directory is made.
    Joined(Seeds),
}

/// Meets the others, within [`Config::join_within`].
pub(crate) async fn meet(
    config: &Config,
    key: &JoinKey,
    begin: Option<usize>,
    seeds: &Discovery,
) -> Result<Met, StartError> {
    let failed = |e: super::PkiError| StartError::Pki(e.to_string());
    let proof = Arc::new(key.proof().map_err(failed)?);
    let booth = Booth::open(config, &proof).await?;
    let csr = Files::new(&config.dir).joining().map_err(failed)?;
    let ask = || round(config, &proof, &csr, begin, seeds);
    let met = join::until_let_in(config, "no cluster yet", ask).await?;
    booth.close().await;
    Ok(met)
}

/// Asks everyone once.
async fn round(
    config: &Config,
    proof: &Arc<Proof>,
    csr: &Csr,
    begin: Option<usize>,
    seeds: &Discovery,
) -> Result<Met, Refusal> {
    let addresses = discovery::find(seeds).await.map_err(Refusal::Later)?;
    let mut empty = BTreeSet::from([Name::of(&config.name)]);
    let mut last = "no member answers".to_owned();
    for address in addresses {
        match ask(proof, &address).await {
            Ok(Some(name)) => {
                empty.insert(Name::of(&name));
            }
            Ok(None) => match join::ask_by_key(config, proof, csr, address).await {
                Ok(answer) => {
                    let seeds = join::settle(config, csr, answer);
                    return seeds.map(Met::Joined).map_err(|e| Refusal::Final(e.to_string()));
                }
                Err(Refusal::Final(reason)) => return Err(Refusal::Final(reason)),
                Err(Refusal::Later(reason)) => last = reason,
            },
            Err(reason) => last = format!("{address}: {reason}"),
        }
    }
    let Some(begin) = begin else { return Err(Refusal::Later(last)) };
    let first = empty.first().is_some_and(|first| first.text == config.name);
    if empty.len() >= begin && first {
        return Ok(Met::Begin);
    }
    let names: Vec<&str> = empty.iter().map(|name| name.text.as_str()).collect();
    let names = names.join(", ");
    Err(Refusal::Later(format!("{} of {begin} without data ({names}); {last}", empty.len())))
}

/// The name of a node without data; `None` of a member.
async fn ask(proof: &Arc<Proof>, address: &str) -> Result<Option<String>, String> {
    let channel = join::dial_by_key(proof, address).await?;
    let mut client = MembershipClient::new(channel);
    match timeout(ANSWER_WITHIN, client.ask(pb::AskRequest {})).await {
        Ok(Ok(answer)) => {
            let answer = answer.into_inner();
            Ok(answer.empty.then_some(answer.name))
        }
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err("timeout".to_owned()),
    }
}

/// A node's name in the order that decides who begins: `sbc-2` before `sbc-10`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    stem: String,
    ordinal: u64,
    text: String,
}

impl Name {
    fn of(text: &str) -> Name {
        let stem = text.trim_end_matches(|c: char| c.is_ascii_digit());
        let ordinal = text.get(stem.len()..).and_then(|digits| digits.parse().ok()).unwrap_or(0);
        Name { stem: stem.to_owned(), ordinal, text: text.to_owned() }
    }
}

/// Where a node without data answers that it has none.
struct Booth {
    closing: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Booth {
    async fn open(config: &Config, proof: &Arc<Proof>) -> Result<Booth, StartError> {
        let listen =
            config.listen.ok_or(StartError::Config("a joining node must listen".into()))?;
        let listener = TcpListener::bind(listen).await?;
        let tls = proof.server().map_err(|e| StartError::Pki(e.to_string()))?;
        let (accepted, incoming) = channel::<std::io::Result<Accepted>>(16);
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let service = MembershipServer::new(Empty(config.name.clone()));
        let serve = tonic::transport::Server::builder()
            .max_concurrent_streams(64)
            .add_service(service)
            .serve_with_incoming(ReceiverStream::new(incoming));
        let closing = Arc::new(Notify::new());
        let (closed, proof) = (Arc::clone(&closing), Arc::clone(proof));
        let task = tokio::spawn(async move {
            // Dropping the listener with this task frees the address for the channel.
            tokio::select! {
                () = server::accept(listener, acceptor, Some(proof), accepted) => {}
                _ = serve => {}
                () = closed.notified() => {}
            }
        });
        Ok(Booth { closing, task })
    }

    async fn close(mut self) {
        self.closing.notify_one();
        // It ends by itself; a panic of it is of no more interest.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Booth {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Empty(String);

impl Empty {
    fn known<T>(request: &Request<T>) -> Result<(), Status> {
        let caller = request.extensions().get::<Caller>();
        match caller.is_some_and(|caller| caller.by_key) {
            true => Ok(()),
            false => Err(Status::permission_denied("who asks")),
        }
    }
}

#[tonic::async_trait]
impl Membership for Empty {
    async fn ask(
        &self,
        request: Request<pb::AskRequest>,
    ) -> Result<Response<pb::AskReply>, Status> {
        Empty::known(&request)?;
        Ok(Response::new(pb::AskReply { name: self.0.clone(), empty: true }))
    }

    async fn join(
        &self,
        _: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinResponse>, Status> {
        Err(Status::unavailable("this node is no member yet"))
    }

    async fn renew(
        &self,
        _: Request<pb::RenewRequest>,
    ) -> Result<Response<pb::RenewResponse>, Status> {
        Err(Status::unavailable("this node is no member yet"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals_are_numbers() {
        let mut names = ["sbc-10", "sbc-2", "sbc-0", "a"].map(Name::of);
        names.sort();
        assert_eq!(names.map(|n| n.text), ["a", "sbc-0", "sbc-2", "sbc-10"]);
    }
}
