//! Users per RADIUS: a server judges the credentials (RFC 5090); HA1 stays there, nothing is remembered.
//!
//! ```text
//! question ─▶ server 1 ─ silent: the same packet again ─▶ server 2 ─ … ─▶ Unavailable when `wait` is over
//! ```
//!
//! Each question has a UDP socket of its own, connected to the server: the kernel drops what comes from
//! elsewhere, ports differ, and no two questions share an identifier. How many there are at once is bounded.

pub mod packet;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sbc_core::registrar::{AskUser, Found, User};
use sbc_core::routing::Secret;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;

use packet::{Answer, Form, PACKET_MAX, Request};

/// `[registrar.radius]`; values only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RadiusConfig {
    /// In the order in which they are asked.
    pub servers: Vec<(SocketAddr, Secret)>,
    pub form: Form,
    /// How often one server is asked, and how long each time.
    pub attempts: u32,
    pub timeout: Duration,
    /// For the whole answer.
    pub wait: Duration,
    /// How long a server that was silent comes after the others.
    pub dead_time: Duration,
    /// Questions under way at most.
    pub requests_max: usize,
}

/// What happened to packets.
#[derive(Debug, Default)]
pub struct RadiusStats {
    pub sent: AtomicU64,
    /// Datagrams that were no answers: forged, cut short, without Message-Authenticator.
    pub dropped: AtomicU64,
    /// Times that a server was given up for the next one.
    pub silent: AtomicU64,
}

/// The servers.
pub struct Radius {
    config: RadiusConfig,
    /// Until when each is asked last, in milliseconds since `begun`.
    dead_until_ms: Vec<AtomicU64>,
    begun: Instant,
    room: Semaphore,
    pub stats: Arc<RadiusStats>,
}

impl Radius {
    pub fn new(config: &RadiusConfig) -> Radius {
        Radius {
            config: config.clone(),
            dead_until_ms: config.servers.iter().map(|_| AtomicU64::new(0)).collect(),
            begun: Instant::now(),
            room: Semaphore::new(config.requests_max),
            stats: Arc::default(),
        }
    }

    /// How long an answer may take.
    pub fn wait(&self) -> Duration {
        self.config.wait
    }

    /// Whether the credentials are right.
    ///
    /// # Errors
    /// No server has told; to be bounded by [`Radius::wait`].
    pub async fn judge(&self, ask: &AskUser) -> anyhow::Result<Found> {
        let _place = self.room.acquire().await?;
        let mut last = None;
        for at in self.order() {
            let Some((address, secret)) = self.config.servers.get(at) else { continue };
            match self.ask(*address, secret, ask).await {
                Ok(Some(found)) => {
                    self.silent_until(at, 0);
                    return Ok(found);
                }
                Ok(None) => last = Some(anyhow::anyhow!("no answer from {address}")),
                Err(error) => last = Some(anyhow::anyhow!("{address}: {error}")),
            }
            self.stats.silent.fetch_add(1, Ordering::Relaxed);
            self.silent_until(at, self.now_ms() + millis(self.config.dead_time));
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no servers")))
    }

    /// Those that answered last time first, each part in the order of the configuration.
    fn order(&self) -> Vec<usize> {
        let now_ms = self.now_ms();
        let mut order: Vec<usize> = (0..self.config.servers.len()).collect();
        let until = |at: &usize| self.dead_until_ms.get(*at).map(|u| u.load(Ordering::Relaxed));
        order.sort_by_key(|at| until(at).is_some_and(|until| until > now_ms));
        order
    }

    fn now_ms(&self) -> u64 {
        millis(self.begun.elapsed())
    }

    fn silent_until(&self, at: usize, until_ms: u64) {
        if let Some(until) = self.dead_until_ms.get(at) {
            until.store(until_ms, Ordering::Relaxed);
        }
    }

    /// One server, the same packet each time (RFC 5080 §2.2.1). `None` when it is silent.
    async fn ask(
        &self,
        address: SocketAddr,
        secret: &Secret,
        ask: &AskUser,
    ) -> std::io::Result<Option<Found>> {
        let secret = secret.expose().as_bytes();
        let form = &self.config.form;
        let (identifier, authenticator) = (rand::random(), rand::random());
        let Some(request) = Request::new(ask, form, secret, identifier, authenticator) else {
            return Ok(Some(Found::Wrong));
        };
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(address).await?;
        for _ in 0..self.config.attempts {
            socket.send(&request.bytes).await?;
            self.stats.sent.fetch_add(1, Ordering::Relaxed);
            let answer = self.receive(&socket, &request, secret);
            if let Ok(answer) = tokio::time::timeout(self.config.timeout, answer).await {
                return answer.map(|answer| Some(found(answer)));
            }
        }
        Ok(None)
    }

    /// The first datagram that is an answer.
    async fn receive(
        &self,
        socket: &UdpSocket,
        request: &Request,
        secret: &[u8],
    ) -> std::io::Result<Answer> {
        let mut datagram = [0; PACKET_MAX];
        loop {
            let length = socket.recv(&mut datagram).await?;
            let datagram = datagram.get(..length).unwrap_or_default();
            match request.answer(datagram, secret, self.config.form.proved_answers) {
                Ok(answer) => return Ok(answer),
                Err(fault) => {
                    self.stats.dropped.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%fault, "a datagram of a RADIUS server is dropped");
                }
            }
        }
    }
}

/// Without addresses from the server the user has its name at every domain.
fn found(answer: Answer) -> Found {
    let Answer::Accept(named) = answer else { return Found::Wrong };
    let plain = |address: &String| {
        let (user, host) = address.strip_prefix("sip:").unwrap_or(address).split_once('@')?;
        let whole = !user.is_empty() && !host.is_empty();
        whole.then(|| format!("{user}@{}", host.to_ascii_lowercase()).into())
    };
    let aors = named.iter().filter_map(plain).collect();
    Found::Right(Arc::new(User { aors, ..User::default() }))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
