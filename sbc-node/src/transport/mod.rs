//! Sockets of a signalling shard: UDP in batches, connections (TCP, TLS, WS, WSS), the poller that
//! watches them.
//!
//! Nothing here parses SIP beyond cutting frames out of a stream, and nothing here blocks. A shard
//! owns its sockets alone; `SO_REUSEPORT` lets every shard listen on the same address.

mod conn;
pub mod door;
pub mod identity;
pub mod mmsg;
pub mod poller;
pub mod proxy;
pub mod sockopt;
pub mod sources;
pub mod stun;
pub mod stun_server;
pub mod tcp;
pub mod tls;
pub mod udp;
pub mod unfinished;
pub mod ws;

use std::sync::Arc;
use std::time::Duration;

use sbc_core::core::SendError;
use sbc_core::sip::Limits;

/// Limits and options of the sockets of one shard.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `SO_RCVBUF` and `SO_SNDBUF` of a UDP socket in bytes, forced past `net.core.*mem_max`
    /// where the process may.
    pub udp_buffer_bytes: usize,
    /// Datagrams that may wait for a full socket, per socket; past it the oldest duty, the call,
    /// hears [`SendError::Full`].
    pub udp_queue_max: usize,
    /// Differentiated services code point of signalling (CS3 = 24 unless told).
    pub dscp: u8,
    /// How long a connection attempt may take.
    pub connect_timeout: Duration,
    /// A connection that carried nothing for this long is closed.
    pub idle_timeout: Duration,
    /// A message that began must be whole within this time.
    pub half_message_timeout: Duration,
    /// TLS and WebSocket handshakes must be done within this time.
    pub handshake_timeout: Duration,
    /// A connection older than this is closed when nothing waits on it; `None` for never.
    pub lifetime: Option<Duration>,
    /// A WebSocket that was silent for this long is asked whether it is there, and closed when it
    /// does not answer; `None` never asks.
    pub websocket_ping: Option<Duration>,
    /// Silence after which the kernel asks a TCP peer whether it is there; `None` for never.
    pub tcp_keepalive: Option<Duration>,
    /// STUN binding requests answered per second; 0 answers none.
    pub stun_per_second: u32,
    /// TLS, balancers and web origins of the interfaces.
    pub doors: Arc<door::Doors>,
    /// Connections of one shard, accepted and opened together.
    pub connections_max: usize,
    /// Accepted connections of one remote address on all shards.
    pub connections_per_source_max: usize,
    /// Where they are counted: the same for all shards.
    pub sources: sources::Sources,
    /// Handshakes of TLS under way for one remote address on all shards, where they are counted.
    pub handshakes_per_source_max: usize,
    pub handshakes: sources::Sources,
    /// An accepted connection must bring a whole message within this time; `None` waits for the
    /// idle timeout.
    pub first_message_timeout: Option<Duration>,
    /// Bytes of unfinished messages on all connections of all shards, and their sum.
    pub unfinished_bytes_max: usize,
    pub unfinished: unfinished::Total,
    /// Bytes that may wait on one connection.
    pub write_queue_bytes_max: usize,
    /// Bind addresses that this machine does not hold yet: floating ones of a standby.
    pub free_bind: bool,
    /// Largest SIP message on a stream.
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            udp_buffer_bytes: 8 << 20,
            udp_queue_max: 8_192,
            dscp: 24,
            connect_timeout: Duration::from_secs(4),
            idle_timeout: Duration::from_secs(600),
            half_message_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(5),
            lifetime: None,
            websocket_ping: Some(Duration::from_secs(30)),
            tcp_keepalive: Some(Duration::from_secs(60)),
            stun_per_second: 1_000,
            doors: Arc::default(),
            connections_max: 20_000,
            connections_per_source_max: 256,
            sources: sources::Sources::default(),
            handshakes_per_source_max: 32,
            handshakes: sources::Sources::default(),
            first_message_timeout: Some(Duration::from_secs(30)),
            unfinished_bytes_max: 64 << 20,
            unfinished: unfinished::Total::default(),
            write_queue_bytes_max: 1 << 20,
            free_bind: false,
            limits: Limits::default(),
        }
    }
}

/// What an operating system error of a send means for the message.
pub(crate) fn send_error(errno: i32) -> SendError {
    match errno {
        libc::EMSGSIZE => SendError::TooLarge,
        libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN => SendError::Full,
        libc::ETIMEDOUT => SendError::Timeout,
        libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN => SendError::Closed,
        _ => SendError::Unreachable,
    }
}
