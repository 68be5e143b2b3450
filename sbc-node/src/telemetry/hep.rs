//! HEP version 3 (EEP) over UDP or TCP: each SIP message of a sampled call, as Homer and its kin take it.
//!
//! ```text
//! "HEP3" length:u16  then chunks: vendor:u16 type:u16 length:u16 (these six bytes included) payload
//! ```
//!
//! Both legs of a call carry its id as correlation id (chunk 0x0011), so that they are one call there.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use sbc_core::core::{Direction, Trace};
use sbc_core::net::Transport;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::hep_stream;
use super::tap::{Share, TapStats, unspecified};
use crate::config::{HepConfig, HepTransport};

/// A datagram cannot be longer, nor can a packet's length say more.
const PACKET_BYTES_MAX: usize = 65_000;
const SIP: u8 = 1;

/// The way to a collector.
pub struct Hep {
    way: Way,
    share: Share,
    capture_id: u32,
    key: Option<String>,
    node: String,
    stats: Arc<TapStats>,
}

enum Way {
    Datagrams(UdpSocket),
    /// To the task that holds the connection.
    Stream(mpsc::Sender<Vec<u8>>),
}

impl Hep {
    /// # Errors
    /// UDP: when the collector's name does not resolve or no socket can be made. Both: a key file that
    /// cannot be read.
    pub async fn open(node: &str, config: &HepConfig, stats: Arc<TapStats>) -> anyhow::Result<Hep> {
        let way = match config.transport {
            HepTransport::Udp => Way::Datagrams(datagrams(&config.collector).await?),
            HepTransport::Tcp => {
                let (sender, packets) = mpsc::channel(hep_stream::QUEUE);
                let collector = config.collector.clone();
                tokio::spawn(hep_stream::run(collector, packets, Arc::clone(&stats)));
                Way::Stream(sender)
            }
        };
        let key = config.key_file.as_deref().map(super::tap::secret).transpose();
        Ok(Hep {
            way,
            share: config.share,
            capture_id: config.capture_id,
            key: key.context("hep.key-file")?,
            node: node.to_owned(),
            stats,
        })
    }

    /// Sends one message; what the network or the queue does not take now is counted and lost.
    pub fn send(&self, at: SystemTime, trace: &Trace) {
        if !self.share.holds(trace.call) {
            return;
        }
        let packet = encode(at, trace, self.capture_id, self.key.as_deref(), &self.node);
        let taken = packet.is_some_and(|packet| match &self.way {
            Way::Datagrams(socket) => socket.try_send(&packet).is_ok(),
            Way::Stream(packets) => packets.try_send(packet).is_ok(),
        });
        match &self.way {
            _ if !taken => self.stats.hep_errors.fetch_add(1, Ordering::Relaxed),
            Way::Datagrams(_) => self.stats.hep_sent.fetch_add(1, Ordering::Relaxed),
            // Counted once it is written.
            Way::Stream(_) => return,
        };
    }
}

async fn datagrams(collector: &str) -> anyhow::Result<UdpSocket> {
    let place = || format!("hep.collector {collector}");
    let found = tokio::net::lookup_host(collector).await.with_context(place)?.next();
    let collector = found.context("no address").with_context(place)?;
    let socket = UdpSocket::bind(unspecified(collector)).await.with_context(place)?;
    socket.connect(collector).await.with_context(place)?;
    Ok(socket)
}

/// One packet; `None` when the message does not fit into a datagram.
pub fn encode(
    at: SystemTime,
    trace: &Trace,
    capture_id: u32,
    key: Option<&str>,
    node: &str,
) -> Option<Vec<u8>> {
    let ours = trace.local.unwrap_or_else(|| unspecified(trace.remote));
    let (source, destination) = match trace.direction {
        Direction::Received => (trace.remote, ours),
        Direction::Sent => (ours, trace.remote),
    };
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut out = Chunks(b"HEP3\0\0".to_vec());
    out.chunk(0x0001, &[if trace.remote.is_ipv4() { 2 } else { 10 }]);
    out.chunk(0x0002, &[if trace.transport == Transport::Udp { 17 } else { 6 }]);
    out.address(source, 0x0003, 0x0005, 0x0007);
    out.address(destination, 0x0004, 0x0006, 0x0008);
    let seconds = u32::try_from(since.as_secs()).unwrap_or(u32::MAX);
    out.chunk(0x0009, &seconds.to_be_bytes());
    out.chunk(0x000a, &since.subsec_micros().to_be_bytes());
    out.chunk(0x000b, &[SIP]);
    out.chunk(0x000c, &capture_id.to_be_bytes());
    if let Some(key) = key {
        out.chunk(0x000e, key.as_bytes());
    }
    out.chunk(0x0011, trace.call.to_string().as_bytes());
    out.chunk(0x0013, node.as_bytes());
    if out.0.len() + 6 + trace.data.len() > PACKET_BYTES_MAX {
        return None;
    }
    out.chunk(0x000f, &trace.data);
    out.finish()
}

struct Chunks(Vec<u8>);

impl Chunks {
    fn chunk(&mut self, kind: u16, payload: &[u8]) {
        // What is longer than a datagram was refused before.
        let length = u16::try_from(payload.len() + 6).unwrap_or(u16::MAX);
        self.0.extend([0, 0]);
        self.0.extend(kind.to_be_bytes());
        self.0.extend(length.to_be_bytes());
        self.0.extend(payload);
    }

    fn address(&mut self, address: SocketAddr, v4: u16, v6: u16, port: u16) {
        match address.ip() {
            IpAddr::V4(ip) => self.chunk(v4, &ip.octets()),
            IpAddr::V6(ip) => self.chunk(v6, &ip.octets()),
        }
        self.chunk(port, &address.port().to_be_bytes());
    }

    fn finish(mut self) -> Option<Vec<u8>> {
        let length = u16::try_from(self.0.len()).ok()?;
        self.0.get_mut(4..6)?.copy_from_slice(&length.to_be_bytes());
        Some(self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use sbc_core::b2bua::CallId;
    use sbc_core::media::Side;

    use super::*;

    fn message(direction: Direction) -> Trace {
        Trace {
            call: CallId(0xabc),
            side: Side::A,
            direction,
            local: "192.0.2.1:5060".parse().ok(),
            remote: "198.51.100.2:5062".parse().expect("address"),
            transport: Transport::Udp,
            at_ms: 0,
            data: Bytes::from_static(b"BYE"),
        }
    }

    #[test]
    fn a_packet_is_these_bytes() {
        let at = UNIX_EPOCH + Duration::new(0x0102_0304, 5_000);
        let packet = encode(at, &message(Direction::Received), 7, Some("k"), "n").expect("fits");
        let mut wanted: Vec<u8> = b"HEP3\0\x87".to_vec();
        for (kind, payload) in [
            (1_u8, &[2_u8][..]),
            (2, &[17]),
            (3, &[198, 51, 100, 2]),
            (7, &[0x13, 0xc6]),
            (4, &[192, 0, 2, 1]),
            (8, &[0x13, 0xc4]),
            (9, &[1, 2, 3, 4]),
            (0x0a, &[0, 0, 0, 5]),
            (0x0b, &[1]),
            (0x0c, &[0, 0, 0, 7]),
            (0x0e, b"k"),
            (0x11, b"0000000000000abc"),
            (0x13, b"n"),
            (0x0f, b"BYE"),
        ] {
            wanted.extend([0, 0, 0, kind, 0, u8::try_from(payload.len() + 6).expect("short")]);
            wanted.extend(payload);
        }
        wanted[5] = u8::try_from(wanted.len()).expect("short");
        assert_eq!(packet, wanted);
        let sent = encode(at, &message(Direction::Sent), 7, None, "n").expect("fits");
        assert_eq!(&sent[20..30], [0, 0, 0, 3, 0, 10, 192, 0, 2, 1], "ours is the source then");
    }

    #[test]
    fn what_does_not_fit_is_not_cut() {
        let mut big = message(Direction::Sent);
        big.data = Bytes::from(vec![0; 65_000]);
        assert!(encode(UNIX_EPOCH, &big, 1, None, "n").is_none());
    }
}
