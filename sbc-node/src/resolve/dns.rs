//! The lookups of RFC 3263 §4 over hickory, on the runtime of the slow side.
//!
//! Which lookups follow from which question lives here; how their results are ordered does not.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{ResolverBuilder, TokioResolver};
use sbc_core::core::ResolveError;
use sbc_core::net::Transport;
use tokio::sync::{Semaphore, mpsc};

use super::front::default_transport;
use super::plan::{Candidate, Plan};
use super::{Answer, Key, Request};

/// Lookups under way at once, all shards together.
const CONCURRENT_MAX: usize = 512;
/// SRV records considered per name.
const SRV_MAX: usize = 32;
/// NAPTR records considered per name.
const NAPTR_MAX: usize = 16;
/// How long bad news holds when the servers give no TTL for it.
const NEGATIVE_TTL: Duration = Duration::from_secs(30);
/// How long a timeout holds: long enough that a dead server is not asked for every call.
const TIMEOUT_TTL: Duration = Duration::from_secs(3);

type Builder = ResolverBuilder<TokioRuntimeProvider>;

/// How names are resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name servers (address and port); empty means those of the system.
    pub servers: Vec<SocketAddr>,
    /// For one question to one server.
    pub timeout: Duration,
    /// Questions to one server before the next.
    pub attempts: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { servers: Vec::new(), timeout: Duration::from_secs(2), attempts: 2 }
    }
}

/// Who is asked where nobody is named, as resolv.conf(5) has it.
const THIS_MACHINE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);

/// Builds the client. Its own cache honours TTLs below the shards' caches. Where neither the settings
/// nor the system name a server, as in a minimal container, it says so and asks this machine: names
/// then fail, addresses work.
///
/// # Errors
/// When the client cannot be made.
pub fn client(settings: &Settings) -> Result<TokioResolver, NetError> {
    let system = || TokioResolver::builder_tokio();
    let mut builder = builder(&settings.servers, system);
    let options = builder.options_mut();
    options.timeout = settings.timeout;
    options.attempts = settings.attempts;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.try_tcp_on_error = true;
    options.cache_size = 8_192;
    builder.build()
}

fn builder(servers: &[SocketAddr], system: impl FnOnce() -> Result<Builder, NetError>) -> Builder {
    if !servers.is_empty() {
        return asking(servers);
    }
    system().unwrap_or_else(|error| {
        tracing::warn!(
            reason = %error,
            "no name server is known, neither by [dns] servers nor by /etc/resolv.conf: \
             names cannot be resolved unless one runs on this machine"
        );
        asking(&[THIS_MACHINE])
    })
}

fn asking(servers: &[SocketAddr]) -> Builder {
    let servers = servers.iter().map(|addr| {
        let mut server = NameServerConfig::udp_and_tcp(addr.ip());
        for connection in &mut server.connections {
            connection.port = addr.port();
        }
        server
    });
    let config = ResolverConfig::from_name_servers(servers.collect());
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
}

/// Answers requests until the sender is gone. `deliver` brings an answer to its shard.
pub async fn serve<D, F>(
    client: Arc<TokioResolver>,
    mut requests: mpsc::Receiver<Request>,
    deliver: D,
) where
    D: Fn(usize, Answer) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let permits = Arc::new(Semaphore::new(CONCURRENT_MAX));
    while let Some(Request { shard, key }) = requests.recv().await {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (client, deliver) = (Arc::clone(&client), deliver.clone());
        tokio::spawn(async move {
            let answer = lookup(&client, key).await;
            drop(permit);
            deliver(shard, answer).await;
        });
    }
}

/// One question of RFC 3263 with all the lookups it takes.
pub async fn lookup(client: &TokioResolver, key: Key) -> Answer {
    let mut search = Search { client, key: &key, ttl: Duration::MAX, timed_out: false };
    let candidates = search.run().await;
    let (result, ttl) = if candidates.is_empty() {
        let error = if search.timed_out { ResolveError::Timeout } else { ResolveError::NotFound };
        let most = if search.timed_out { TIMEOUT_TTL } else { NEGATIVE_TTL };
        (Err(error), search.ttl.min(most))
    } else {
        (Ok(Plan { candidates }), search.ttl)
    };
    Answer { key, result, ttl }
}

struct Search<'a> {
    client: &'a TokioResolver,
    key: &'a Key,
    /// The shortest of all that contributed.
    ttl: Duration,
    timed_out: bool,
}

/// A service of a domain: what to ask SRV for, by which transport, in which place.
struct Service {
    rank: u16,
    transport: Transport,
    name: Name,
}

impl Search<'_> {
    async fn run(&mut self) -> Vec<Candidate> {
        let (key, usable) = (self.key, self.key.usable);
        // §4.2: an explicit port means addresses only.
        if let Some(port) = key.port {
            let transport = key.transport.unwrap_or(default_transport(key.sips, usable));
            return self.hosts(transport, port).await;
        }
        let services = match key.transport {
            Some(transport) => self.srv_names(&[transport]),
            None => {
                let named = self.naptr().await;
                if named.is_empty() { self.srv_names(&preferred(key.sips)) } else { named }
            }
        };
        let mut candidates = Vec::new();
        for service in services {
            candidates.extend(self.srv(&service).await);
        }
        if candidates.is_empty() {
            let transport = key.transport.unwrap_or(default_transport(key.sips, usable));
            return self.hosts(transport, transport.default_port()).await;
        }
        candidates
    }

    /// §4.1: services that we support, in the order that the domain wants.
    async fn naptr(&mut self) -> Vec<Service> {
        let Some(name) = absolute(&self.key.host) else { return Vec::new() };
        let mut found = Vec::new();
        for data in self.records(name, RecordType::NAPTR).await {
            let RData::NAPTR(naptr) = data else { continue };
            let Some(transport) = naptr_transport(&naptr.services, self.key.sips) else { continue };
            let terminal = naptr.flags.eq_ignore_ascii_case(b"s") && naptr.regexp.is_empty();
            if terminal && self.key.usable.has_transport(transport) {
                found.push((naptr.order, naptr.preference, transport, naptr.replacement));
            }
        }
        found.sort_by_key(|(order, preference, ..)| (*order, *preference));
        found.truncate(NAPTR_MAX);
        // "once a match is found the client MUST NOT consider records with a different Order"
        // (RFC 2915) is about rules; RFC 3263 §4.1 falls back through all services we support.
        (0..)
            .zip(found)
            .map(|(rank, (_, _, transport, name))| Service { rank, transport, name })
            .collect()
    }

    /// The well-known SRV names of the host for `transports`, as far as they are usable.
    fn srv_names(&self, transports: &[Transport]) -> Vec<Service> {
        let usable = transports.iter().filter(|t| self.key.usable.has_transport(**t));
        (0..)
            .zip(usable)
            .filter_map(|(rank, &transport)| {
                let prefix = match transport {
                    Transport::Udp => "_sip._udp",
                    Transport::Tcp => "_sip._tcp",
                    Transport::Tls => "_sips._tcp",
                    Transport::Ws => "_sip._ws",
                    Transport::Wss => "_sips._ws",
                };
                let name = absolute(&format!("{prefix}.{}", self.key.host))?;
                Some(Service { rank, transport, name })
            })
            .collect()
    }

    async fn srv(&mut self, service: &Service) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        let records = self.records(service.name.clone(), RecordType::SRV).await;
        for data in records.into_iter().take(SRV_MAX) {
            let RData::SRV(srv) = data else { continue };
            // A target of "." says that the service is decidedly not available.
            if srv.target.is_root() {
                continue;
            }
            let addresses = self.addresses(srv.target.clone(), service.transport).await;
            if !addresses.is_empty() {
                candidates.push(Candidate {
                    rank: service.rank,
                    priority: srv.priority,
                    weight: srv.weight,
                    transport: service.transport,
                    port: srv.port,
                    addresses,
                });
            }
        }
        candidates
    }

    async fn hosts(&mut self, transport: Transport, port: u16) -> Vec<Candidate> {
        let Some(name) = relative(&self.key.host) else { return Vec::new() };
        let addresses = self.addresses(name, transport).await;
        if addresses.is_empty() {
            return Vec::new();
        }
        vec![Candidate { rank: 0, priority: 0, weight: 0, transport, port, addresses }]
    }

    /// A and AAAA, of the families that the transport can be used with.
    async fn addresses(&mut self, name: Name, transport: Transport) -> Vec<IpAddr> {
        let usable = self.key.usable;
        match self.client.lookup_ip(name).await {
            Ok(found) => {
                self.note_ttl(found.valid_until());
                let fits = |ip: &IpAddr| usable.has(transport, ip.is_ipv4());
                found.iter().filter(fits).collect()
            }
            Err(error) => {
                self.note_error(&error);
                Vec::new()
            }
        }
    }

    async fn records(&mut self, name: Name, kind: RecordType) -> Vec<RData> {
        match self.client.lookup(name, kind).await {
            Ok(found) => {
                self.note_ttl(found.valid_until());
                let answers = found.answers().iter().filter(|r| r.record_type() == kind);
                answers.map(|record| record.data.clone()).collect()
            }
            Err(error) => {
                self.note_error(&error);
                Vec::new()
            }
        }
    }

    fn note_ttl(&mut self, until: Instant) {
        self.ttl = self.ttl.min(until.saturating_duration_since(Instant::now()));
    }

    fn note_error(&mut self, error: &NetError) {
        use hickory_resolver::net::DnsError;
        match error {
            NetError::Dns(DnsError::NoRecordsFound(none)) => {
                let ttl = none.negative_ttl.map(|s| Duration::from_secs(s.into()));
                self.ttl = self.ttl.min(ttl.unwrap_or(NEGATIVE_TTL));
            }
            other => {
                tracing::debug!(host = %self.key.host, error = %other, "lookup failed");
                self.timed_out = true;
            }
        }
    }
}

/// §4.1: what we prefer where the domain says nothing.
fn preferred(sips: bool) -> Vec<Transport> {
    if sips { vec![Transport::Tls] } else { vec![Transport::Udp, Transport::Tcp, Transport::Tls] }
}

/// The transport of a NAPTR service field (RFC 3263 §4.1, RFC 7118 §8).
fn naptr_transport(service: &[u8], sips: bool) -> Option<Transport> {
    let service = service.to_ascii_uppercase();
    let transport = match service.as_slice() {
        b"SIP+D2U" => Transport::Udp,
        b"SIP+D2T" => Transport::Tcp,
        b"SIPS+D2T" => Transport::Tls,
        b"SIP+D2W" => Transport::Ws,
        b"SIPS+D2W" => Transport::Wss,
        _ => return None,
    };
    // §4.1: a SIPS URI must not leave by a service without TLS.
    let secure = transport.is_secure();
    (!sips || secure).then_some(transport)
}

/// A name that is looked up as it is, without search domains.
fn absolute(host: &str) -> Option<Name> {
    let mut name = Name::from_ascii(host).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// A name without dots may be completed by search domains (`sip-server` in a cluster).
fn relative(host: &str) -> Option<Name> {
    if host.contains('.') { absolute(host) } else { Name::from_ascii(host).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_any_name_server_there_is_a_client_and_names_fail() {
        let mut builder = builder(&[], || Err(NetError::from("no /etc/resolv.conf")));
        let options = builder.options_mut();
        (options.timeout, options.attempts) = (Duration::from_millis(50), 1);
        let client = builder.build().expect("a client");
        let usable = super::super::Usable::default().with(Transport::Udp, true);
        let host = Arc::from("nobody.invalid");
        let key = Key { host, port: Some(5060), transport: None, sips: false, usable };
        let answer = lookup(&client, key).await;
        let named = matches!(answer.result, Err(ResolveError::Timeout | ResolveError::NotFound));
        assert!(named, "{:?}", answer.result);
    }
}
