//! A STUN server on ports of its own (RFC 8489, binding over UDP and nothing else): who asks hears the
//! address that it has on our side of its NAT.
//!
//! No credentials, no allocation, no state but the rates. What is refused gets no answer at all, so that
//! nobody is flooded in another's name; an answer is at most three times as long as its request.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use sbc_core::cidr::Cidr;
use sbc_core::guard::{Algorithm, OverLimit, RateFacts, RateKey, RateLimit, Rates};
use sbc_core::stun::{self, Reply};

use super::{Settings, sockopt};
use crate::shard::stats::Kind;
use crate::telemetry::metrics::Sample;

/// Longer datagrams are no binding requests.
const DATAGRAM_MAX: usize = 2_048;
/// Datagrams taken before others of the runtime have their turn.
const TURN_MAX: usize = 64;

/// `[stun]`; values only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StunConfig {
    /// Whole addresses: an answer must leave from where it was asked for.
    pub listen: Vec<SocketAddr>,
    /// Answers per second and source (an IPv6 source is its /64), twice as many at once.
    pub per_source: u32,
    /// Answers per second in all.
    pub per_second: u32,
    /// Sources whose rate is known at once.
    pub sources_max: usize,
}

/// What became of datagrams.
#[derive(Debug, Default)]
pub struct StunStats {
    /// Requests answered with an address.
    pub answered: AtomicU64,
    /// Requests answered 420.
    pub unknown: AtomicU64,
    /// Datagrams that were no binding requests.
    pub malformed: AtomicU64,
    /// Requests over a rate.
    pub limited: AtomicU64,
    /// Answers that the socket did not take.
    pub unsent: AtomicU64,
}

impl StunStats {
    /// The metrics.
    pub fn samples(&self, out: &mut Vec<Sample>) {
        for (result, value) in [
            ("answered", &self.answered),
            ("unknown-attribute", &self.unknown),
            ("malformed", &self.malformed),
            ("limited", &self.limited),
            ("unsent", &self.unsent),
        ] {
            out.push(Sample {
                name: "sbc_stun_server_datagrams",
                help: "Datagrams to the STUN server by what became of them",
                kind: Kind::Counter,
                labels: vec![("result", result.to_owned())],
                value: crate::telemetry::metrics::number(value.load(Ordering::Relaxed)),
            });
        }
    }
}

/// What all sockets of the server share.
pub struct StunServer {
    rates: Rates,
    pub stats: Arc<StunStats>,
}

impl StunServer {
    pub fn new(config: &StunConfig, now: Instant) -> StunServer {
        let limit = |key, rate: u32, burst| RateLimit {
            key,
            methods: Vec::new(),
            algorithm: Algorithm::Bucket { per_second: f64::from(rate), burst },
            over: OverLimit::Silence,
            cluster: false,
        };
        // The source first: one that floods takes nothing of what is for all.
        let limits = vec![
            limit(RateKey::Source, config.per_source, config.per_source.saturating_mul(2)),
            limit(RateKey::All, config.per_second, config.per_second),
        ];
        StunServer {
            rates: Rates::new(limits, config.sources_max, now),
            stats: Arc::new(StunStats::default()),
        }
    }

    /// The answer to a datagram; everything is counted.
    pub fn answer(&self, now: Instant, data: &[u8], source: SocketAddr) -> Option<Vec<u8>> {
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let Some(reply) = stun::answer(data, source) else {
            count(&self.stats.malformed);
            return None;
        };
        let facts = RateFacts {
            source: network(source.ip()),
            interface: 0,
            trunk: None,
            aor: "",
            ruri_user: "",
            method: "",
            trusted: false,
        };
        if self.rates.check(now, &facts).is_err() {
            count(&self.stats.limited);
            return None;
        }
        count(match &reply {
            Reply::Bound(_) => &self.stats.answered,
            Reply::Unknown(_) => &self.stats.unknown,
        });
        Some(reply.into_bytes())
    }

    /// Answers on a socket until it fails for good.
    pub async fn serve(self: Arc<Self>, socket: tokio::net::UdpSocket) {
        let mut data = vec![0; DATAGRAM_MAX];
        loop {
            if let Err(error) = socket.readable().await {
                tracing::error!(%error, "the STUN server ends");
                return;
            }
            for _ in 0..TURN_MAX {
                match socket.try_recv_from(&mut data) {
                    Ok((length, from)) => self.heard(&socket, &data[..length], from),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => tracing::debug!(%error, "the STUN server's socket"),
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn heard(&self, socket: &tokio::net::UdpSocket, data: &[u8], from: SocketAddr) {
        let Some(answer) = self.answer(Instant::now(), data, from) else { return };
        if socket.try_send_to(&answer, from).is_err() {
            self.stats.unsent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Who counts as one source.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        v6 @ IpAddr::V6(_) => Cidr::new(v6, 64).addr(),
    }
}

/// Opens a socket of the server.
///
/// # Errors
/// When the address cannot be bound, or somebody else has it.
pub fn open(local: SocketAddr, settings: &Settings) -> io::Result<UdpSocket> {
    sockopt::udp_alone(local, settings).map(UdpSocket::from)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn server(per_source: u32, per_second: u32, sources_max: usize) -> (StunServer, Instant) {
        let now = Instant::now();
        let config = StunConfig { listen: Vec::new(), per_source, per_second, sources_max };
        (StunServer::new(&config, now), now)
    }

    fn counts(server: &StunServer) -> [u64; 4] {
        let s = &server.stats;
        [&s.answered, &s.unknown, &s.malformed, &s.limited].map(|c| c.load(Ordering::Relaxed))
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn rfc8489_a_binding_request_is_answered_and_what_is_none_is_counted() {
        let (server, now) = server(10, 1_000, 64);
        let request = stun::request([7; 12]);
        let from = at("198.51.100.7:40000");
        let answer = server.answer(now, &request, from).unwrap();
        assert_eq!(answer[..2], [1, 1]);
        assert_eq!(answer[26..28], (40_000_u16 ^ 0x2112).to_be_bytes());
        // PRIORITY must be understood, and is not.
        let odd = [&[0, 1, 0, 8][..], &request[4..20], &[0, 0x24, 0, 4, 1, 2, 3, 4]].concat();
        assert_eq!(server.answer(now, &odd, from).unwrap()[..2], [1, 0x11]);
        for bad in [&request[..27], b"OPTIONS sip:x SIP/2.0\r\n\r\n", &answer, b""] {
            assert_eq!(server.answer(now, bad, from), None);
        }
        assert_eq!(counts(&server), [1, 1, 4, 0]);
    }

    #[test]
    fn each_source_has_its_rate_and_all_have_one() {
        let (server, now) = server(2, 10, 64);
        let request = stun::request([7; 12]);
        let answered = |from: &str, now| server.answer(now, &request, at(from)).is_some();
        let burst = (0..6).filter(|n| answered(&format!("192.0.2.1:{}", 1_000 + n), now)).count();
        assert_eq!(burst, 4, "twice the rate at once, whatever the port");
        let of_a_net = (0..6).filter(|n| answered(&format!("[2001:db8::{n}]:1"), now)).count();
        assert_eq!(of_a_net, 4, "a /64 is one source");
        let others = (1..9).filter(|n| answered(&format!("198.51.100.{n}:1"), now)).count();
        assert_eq!(others, 2, "ten in all");
        assert!(answered("192.0.2.1:1", now + Duration::from_secs(1)));
        assert_eq!(counts(&server), [11, 0, 0, 10]);
    }

    #[test]
    fn the_table_of_sources_is_bounded() {
        let (server, now) = server(1, 1_000_000, 1_000);
        let request = stun::request([7; 12]);
        for n in 0..20_000_u32 {
            let from = SocketAddr::from((n.to_be_bytes(), 1));
            server.answer(now, &request, from);
        }
        assert!(server.rates.len() <= 1_100, "{}", server.rates.len());
    }
}
