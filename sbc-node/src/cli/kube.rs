//! `sbcctl kube`: what a pod asks of Kubernetes, and how it leaves.
//!
//! The API is asked with the pod's service account for two things only: its node (for an address)
//! and its StatefulSet (whether this ordinal is still wanted). HTTP/1.0 over TLS is all that takes:
//! the answer comes whole and the connection ends with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;

use super::Failure;
use super::drain::{self, Order};
use super::run::Done;
use crate::admin::tls;

const ASK_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: u64 = 8 << 20;

#[derive(Subcommand)]
pub(super) enum Kube {
    /// Write the address that this pod's node is reached by into a file, for `${file:…}`.
    Address {
        /// Which of the node's addresses.
        #[arg(long, value_enum)]
        from: AddressKind,
        /// The annotation, with `--from annotation`.
        #[arg(long, required_if_eq("from", "annotation"))]
        annotation: Option<String>,
        /// The name of the node.
        #[arg(long, env = "NODE_NAME")]
        node: String,
        /// Where it is written.
        #[arg(long)]
        file: PathBuf,
        #[command(flatten)]
        api: Api,
    },
    /// The hook before a pod stops: drain, wait, and leave the cluster where the ordinal of this pod
    /// is no longer wanted.
    PreStop {
        /// Seconds to wait for the calls to be elsewhere.
        #[arg(long, default_value_t = 50)]
        timeout: u64,
        /// The StatefulSet, where the pod may ask for it.
        #[arg(long)]
        statefulset: Option<String>,
        /// The pod's namespace.
        #[arg(long, env = "POD_NAMESPACE")]
        namespace: Option<String>,
        /// The pod's name.
        #[arg(long, env = "POD_NAME")]
        pod: Option<String>,
        #[command(flatten)]
        api: Api,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum AddressKind {
    /// Its address inside of the cluster.
    Internal,
    /// Its address outside.
    External,
    /// What an annotation of the node says.
    Annotation,
}

/// Where the API is and who we are there: as every pod finds them by default.
#[derive(clap::Args)]
pub(super) struct Api {
    #[arg(long, env = "KUBERNETES_SERVICE_HOST", default_value = "kubernetes.default.svc")]
    api_host: String,
    #[arg(long, env = "KUBERNETES_SERVICE_PORT", default_value_t = 443)]
    api_port: u16,
    /// Token and authority of the service account.
    #[arg(long, default_value = "/var/run/secrets/kubernetes.io/serviceaccount")]
    account: PathBuf,
}

/// What needs no node of ours.
pub(super) async fn address(command: &Kube) -> Option<Done> {
    match command {
        Kube::Address { from, annotation, node, file, api } => {
            Some(write_address(*from, annotation.as_deref(), node, file, api).await)
        }
        Kube::PreStop { .. } => None,
    }
}

pub(super) async fn pre_stop(channel: Channel, command: Kube) -> Done {
    let Kube::PreStop { timeout, statefulset, namespace, pod, api } = command else {
        return Ok(());
    };
    let leave = match (statefulset, namespace, pod) {
        (Some(set), Some(namespace), Some(pod)) => {
            // When in doubt it stays a member: it may come back.
            let unwanted = is_unwanted(&api, &namespace, &set, &pod).await;
            unwanted.unwrap_or_else(|error| {
                eprintln!("sbcctl: whether {pod} is still wanted is not known: {error}");
                false
            })
        }
        _ => false,
    };
    let order = Order { wait: Duration::from_secs(timeout), leave, json: false };
    drain::run(channel, order).await
}

async fn write_address(
    from: AddressKind,
    annotation: Option<&str>,
    node: &str,
    file: &Path,
    api: &Api,
) -> Done {
    let answer = api.get(&format!("/api/v1/nodes/{node}")).await?;
    let found = node_address(&answer, from, annotation);
    let found =
        found.ok_or_else(|| Failure::Refused(format!("node {node} has no such address")))?;
    std::fs::write(file, format!("{found}\n"))
        .map_err(|e| Failure::Refused(format!("{}: {e}", file.display())))?;
    println!("{found}");
    Ok(())
}

fn node_address<'a>(
    node: &'a Value,
    from: AddressKind,
    annotation: Option<&str>,
) -> Option<&'a str> {
    let kind = match from {
        AddressKind::Annotation => return node["metadata"]["annotations"][annotation?].as_str(),
        AddressKind::Internal => "InternalIP",
        AddressKind::External => "ExternalIP",
    };
    let addresses = node["status"]["addresses"].as_array()?;
    addresses.iter().find(|a| a["type"] == kind)?["address"].as_str()
}

/// Whether the ordinal of `pod` lies beyond what its StatefulSet wants.
async fn is_unwanted(api: &Api, namespace: &str, set: &str, pod: &str) -> Result<bool, Failure> {
    let path = format!("/apis/apps/v1/namespaces/{namespace}/statefulsets/{set}");
    let answer = api.get(&path).await?;
    let odd = || Failure::Refused(format!("{set} does not say how many it wants of {pod}"));
    let ordinal: u64 = pod
        .strip_prefix(set)
        .and_then(|rest| rest.strip_prefix('-'))
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(odd)?;
    // A set that is being deleted wants none, but its data may be wanted again: nobody leaves.
    if !answer["metadata"]["deletionTimestamp"].is_null() {
        return Ok(false);
    }
    let first = answer["spec"]["ordinals"]["start"].as_u64().unwrap_or(0);
    let wanted = answer["spec"]["replicas"].as_u64().ok_or_else(odd)?;
    Ok(ordinal >= first + wanted)
}

impl Api {
    async fn get(&self, path: &str) -> Result<Value, Failure> {
        let asked = tokio::time::timeout(ASK_WITHIN, self.ask(path)).await;
        let place = format!("{}:{}{path}", self.api_host, self.api_port);
        let failed = |what: String| Failure::Unreachable(format!("{place}: {what}"));
        let answer = asked.map_err(|_| failed("timeout".to_owned()))?.map_err(&failed)?;
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).unwrap_or("no answer");
        if status != "200" {
            return Err(Failure::Refused(format!("{place}: {status}")));
        }
        serde_json::from_str(body).map_err(|e| Failure::Refused(format!("{place}: {e}")))
    }

    async fn ask(&self, path: &str) -> Result<Vec<u8>, String> {
        let text = |e: std::io::Error| e.to_string();
        let read = |name: &str| {
            let file = self.account.join(name);
            std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))
        };
        let token = read("token")?;
        let config = trusting(&self.account.join("ca.crt"))?;
        let host = self.api_host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|e| e.to_string())?;
        let tcp = TcpStream::connect((host.as_str(), self.api_port)).await.map_err(text)?;
        let mut tls = TlsConnector::from(config).connect(name, tcp).await.map_err(text)?;
        let request = format!(
            "GET {path} HTTP/1.0\r\nHost: {host}\r\nAuthorization: Bearer {}\r\n\
             Accept: application/json\r\n\r\n",
            token.trim()
        );
        tls.write_all(request.as_bytes()).await.map_err(text)?;
        let mut answer = Vec::new();
        match tls.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await {
            Ok(_) => Ok(answer),
            // Some end the connection without the goodbye of TLS; the status line was read then.
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(answer),
            Err(e) => Err(e.to_string()),
        }
    }
}

fn trusting(ca: &Path) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in tls::certificates(ca).map_err(|e| e.to_string())? {
        roots.add(certificate).map_err(|e| e.to_string())?;
    }
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A server that answers like the API, for one request; returns what it was asked.
    async fn api_server(
        dir: &Path,
        status: &str,
        body: Value,
    ) -> (Api, tokio::task::JoinHandle<String>) {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("make");
        std::fs::write(dir.join("ca.crt"), made.cert.pem()).expect("write");
        std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).expect("write");
        std::fs::write(dir.join("token"), "secret-of-the-account\n").expect("write");
        let server = rustls::ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                tls::certificates(&dir.join("ca.crt")).expect("cert"),
                tls::key(&dir.join("key.pem")).expect("key"),
            )
            .expect("config");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let answer = format!("HTTP/1.0 {status}\r\nContent-Type: application/json\r\n\r\n{body}");
        let task = tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.expect("accept");
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
            let mut tls = acceptor.accept(tcp).await.expect("handshake");
            let mut asked = vec![0; 4096];
            let length = tls.read(&mut asked).await.expect("read");
            tls.write_all(answer.as_bytes()).await.expect("write");
            tls.shutdown().await.expect("close");
            String::from_utf8_lossy(&asked[..length]).into_owned()
        });
        let api = Api { api_host: "127.0.0.1".to_owned(), api_port: port, account: dir.to_owned() };
        (api, task)
    }

    #[tokio::test]
    async fn the_address_of_the_node_is_written_where_the_configuration_reads_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let node = json!({
            "metadata": {"annotations": {"example.net/sip": "198.51.100.4"}},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "10.1.0.4"},
                {"type": "ExternalIP", "address": "203.0.113.4"},
            ]},
        });
        for (from, annotation, found) in [
            (AddressKind::Internal, None, "10.1.0.4"),
            (AddressKind::External, None, "203.0.113.4"),
            (AddressKind::Annotation, Some("example.net/sip"), "198.51.100.4"),
        ] {
            assert_eq!(node_address(&node, from, annotation), Some(found));
        }
        let (api, server) = api_server(dir.path(), "200 OK", node).await;
        let file = dir.path().join("address");
        let written = write_address(AddressKind::External, None, "worker-1", &file, &api).await;
        written.expect("written");
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "203.0.113.4\n");
        let asked = server.await.expect("server");
        assert!(asked.starts_with("GET /api/v1/nodes/worker-1 HTTP/1.0\r\n"), "{asked}");
        assert!(asked.contains("\r\nAuthorization: Bearer secret-of-the-account\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn an_ordinal_is_unwanted_only_beyond_the_replicas() {
        let dir = tempfile::tempdir().expect("tempdir");
        let deleted = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        for (pod, set, unwanted) in [
            ("sbc-2", json!({"spec": {"replicas": 3}}), false),
            ("sbc-3", json!({"spec": {"replicas": 3}}), true),
            ("sbc-3", json!({"spec": {"replicas": 3, "ordinals": {"start": 1}}}), false),
            ("sbc-0", json!({"spec": {"replicas": 0}, "metadata": deleted}), false),
        ] {
            let (api, _server) = api_server(dir.path(), "200 OK", set.clone()).await;
            let found = is_unwanted(&api, "voice", "sbc", pod).await.expect("answer");
            assert_eq!(found, unwanted, "{pod} of {set}");
        }
        let (api, _server) = api_server(dir.path(), "403 Forbidden", json!({})).await;
        let refused = is_unwanted(&api, "voice", "sbc", "sbc-3").await.expect_err("403");
        assert!(refused.to_string().ends_with("/statefulsets/sbc: 403"), "{refused}");
    }
}
