//! Counters of one shard: written by the shard alone, read by anyone.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter or gauge with one writer; readers may see it a moment late.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    pub fn add(&self, n: u64) {
        // One writer: a load and a store are enough, and need no locked instruction.
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How a metric is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

macro_rules! cells {
    ($($(#[doc = $help:literal])+ $kind:ident $name:ident = $metric:literal;)+) => {
        /// What one shard counts.
        #[derive(Debug, Default)]
        pub struct ShardStats {
            $($(#[doc = $help])+ pub $name: Cell,)+
        }

        impl ShardStats {
            /// Every cell: metric name, help, kind, value.
            pub fn each(&self, mut f: impl FnMut(&'static str, &'static str, Kind, u64)) {
                $(f($metric, concat!($($help),+).trim().trim_end_matches('.'), Kind::$kind, self.$name.get());)+
            }
        }
    };
}

cells! {
    /// Datagrams received.
    Counter udp_in = "sbc_udp_received_datagrams";
    /// Bytes received over UDP.
    Counter udp_in_bytes = "sbc_udp_received_bytes";
    /// Datagrams sent.
    Counter udp_out = "sbc_udp_sent_datagrams";
    /// Bytes sent over UDP.
    Counter udp_out_bytes = "sbc_udp_sent_bytes";
    /// Datagrams that the kernel dropped because the receive buffer was full.
    Counter udp_kernel_drops = "sbc_udp_kernel_dropped_datagrams";
    /// Datagrams that could not be sent.
    Counter udp_errors = "sbc_udp_send_errors";
    /// Datagrams refused because the send queue was full.
    Counter udp_queue_full = "sbc_udp_queue_full_datagrams";
    /// ICMP errors received for what we sent.
    Counter icmp_errors = "sbc_udp_icmp_errors";
    /// Datagrams that held no message: NAT keepalives.
    Counter keepalives = "sbc_transport_keepalives";
    /// Messages received over connections.
    Counter stream_in = "sbc_stream_received_messages";
    /// Messages sent over connections.
    Counter stream_out = "sbc_stream_sent_messages";
    /// Open connections.
    Gauge connections = "sbc_stream_connections";
    /// Connections accepted.
    Counter accepted = "sbc_stream_accepted_connections";
    /// Connections opened.
    Counter opened = "sbc_stream_opened_connections";
    /// Connections refused because a limit was reached.
    Counter refused = "sbc_stream_refused_connections";
    /// Connections closed because what came was no SIP framing or was too large.
    Counter framing_errors = "sbc_stream_framing_errors";
    /// Connections closed because a message stayed incomplete.
    Counter half_messages = "sbc_stream_half_message_timeouts";
    /// Connections closed because they brought no whole message in time.
    Counter silent_closed = "sbc_stream_first_message_timeouts";
    /// Connections closed because unfinished messages of the node were too many bytes.
    Counter unfinished_evicted = "sbc_stream_unfinished_evicted_connections";
    /// Connections refused or closed because their source has too many handshakes of TLS under way.
    Counter handshakes_refused = "sbc_tls_handshakes_refused";
    /// Connections closed because they were idle.
    Counter idle_closed = "sbc_stream_idle_closed_connections";
    /// TLS handshakes completed, both ways.
    Counter tls_handshakes = "sbc_tls_handshakes";
    /// Connections ended because of TLS: bad records, no common version, a certificate refused by either side.
    Counter tls_failures = "sbc_tls_failures";
    /// Connections closed because the client's certificate is not one of its trunk.
    Counter tls_identity_refused = "sbc_tls_identity_refused_connections";
    /// Connections closed because a TLS or WebSocket handshake took too long.
    Counter handshake_timeouts = "sbc_stream_handshake_timeouts";
    /// Connections closed because they reached their greatest age.
    Counter lifetime_closed = "sbc_stream_lifetime_closed_connections";
    /// WebSockets refused or ended because of a bad handshake, origin or frame.
    Counter web_errors = "sbc_websocket_errors";
    /// WebSockets closed because a ping was not answered.
    Counter web_dead = "sbc_websocket_dead_connections";
    /// Connections of a load balancer that did not begin with a PROXY protocol v2 header.
    Counter proxy_errors = "sbc_proxy_protocol_errors";
    /// STUN binding requests answered.
    Counter stun_answered = "sbc_stun_answered_requests";
    /// STUN datagrams not answered: over the rate, or no binding request.
    Counter stun_dropped = "sbc_stun_dropped_datagrams";
    /// Connection attempts that failed.
    Counter connect_failures = "sbc_stream_connect_failures";
    /// Messages handed to the shard of their call.
    Counter handed_over = "sbc_shard_handed_over_messages";
    /// Messages lost because the queue of their shard was full.
    Counter handover_full = "sbc_shard_handover_full_messages";
    /// Messages with no way to send them: no listener, connection gone.
    Counter unroutable = "sbc_transport_unroutable_messages";
    /// Name resolutions answered from the cache.
    Counter resolve_hits = "sbc_resolve_cache_hits";
    /// Name resolutions that asked the servers.
    Counter resolve_misses = "sbc_resolve_cache_misses";
    /// Name resolutions refused because too many were under way.
    Counter resolve_full = "sbc_resolve_refused";
    /// Turns of the run loop.
    Counter turns = "sbc_shard_turns";
    /// Replicated writes that no store took.
    Counter unstored = "sbc_store_refused_writes";
    /// How long messages waited for the shard, at most, in microseconds.
    Gauge queue_delay_us = "sbc_shard_queue_delay_microseconds";
    /// Work inside the core in microseconds.
    Counter busy_us = "sbc_shard_busy_microseconds";
}
