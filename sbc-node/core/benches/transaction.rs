//! Cost of an INVITE transaction through the layer: time on each side, and bytes while it lasts.
//!
//! `cargo bench -p sbc-core --bench transaction`. Messages are built and parsed outside the timed
//! part, so that the figures are the layer's own. Prints medians over rounds of 10,000.

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sbc_core::core::Destination;
use sbc_core::ids::{Ids, ShardHint};
use sbc_core::net::{Flow, InterfaceId, Target, Transport};
use sbc_core::sip::{self, Limits, Message, Method};
use sbc_core::transaction::{ClientRequest, Config, Event, Large, Owner, TransactionLayer};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system allocator unchanged; the counter touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const N: usize = 10_000;
const ROUNDS: usize = 15;

fn peer() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 20], 5060))
}

fn flow() -> Flow {
    Flow {
        interface: InterfaceId(0),
        transport: Transport::Udp,
        local: SocketAddr::from(([192, 0, 2, 1], 5060)),
        remote: peer(),
        conn: None,
    }
}

fn invite(branch: &str, n: usize) -> Bytes {
    let body = "v=0\r\n".repeat(60);
    Bytes::from(format!(
        "INVITE sip:+4930{n}@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.20:5060;branch={branch};rport\r\n\
         Max-Forwards: 70\r\nFrom: <sip:+4940{n}@192.0.2.20>;tag=f{n}\r\nTo: <sip:+4930{n}@192.0.2.1>\r\n\
         Call-ID: call-{n}@192.0.2.20\r\nCSeq: 1 INVITE\r\nContact: <sip:192.0.2.20>\r\n\
         Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

fn parse(data: Bytes) -> Message {
    sip::parse(data, &Limits::default()).expect("well-formed")
}

fn reply(request: &Message, status: u16) -> Bytes {
    sip::response(request, status, "", Some("totag"), Some(peer())).finish()
}

fn drain(layer: &mut TransactionLayer) {
    while layer.poll_output().is_some() {}
    while layer.poll_event().is_some() {}
}

/// Nanoseconds of one server transaction: INVITE in, 180 and 200 out, timers to the end.
fn server(layer: &mut TransactionLayer, now: &mut Instant, round: usize) -> (u64, usize) {
    let requests: Vec<_> = (0..N)
        .map(|n| {
            let message = parse(invite(&format!("z9hG4bK{round}x{n}"), n));
            let (ringing, ok) = (reply(&message, 180), reply(&message, 200));
            (message, ringing, ok)
        })
        .collect();
    let before = LIVE.load(Ordering::Relaxed);
    let start = Instant::now();
    for (message, ringing, ok) in &requests {
        layer.handle_message(*now, flow(), message.clone());
        while let Some(event) = layer.poll_event() {
            let Event::Request { id, .. } = event else { continue };
            layer.respond(*now, id, 180, ringing.clone()).expect("alive");
            layer.respond(*now, id, 200, ok.clone()).expect("alive");
        }
        while layer.poll_output().is_some() {}
    }
    let during = LIVE.load(Ordering::Relaxed).saturating_sub(before);
    *now += Duration::from_secs(33);
    layer.handle_tick(*now);
    let nanos = nanos_each(start);
    drain(layer);
    assert!(layer.is_idle());
    (nanos, during / N)
}

/// Nanoseconds of one client transaction: INVITE out, 180 and 200 in, timers to the end.
fn client(layer: &mut TransactionLayer, now: &mut Instant) -> (u64, usize) {
    let target = Target::new(Transport::Udp, peer());
    let requests: Vec<_> = (0..N)
        .map(|n| {
            let branch = layer.ids().branch(ShardHint(1));
            let data = invite(&branch.to_string(), n);
            let message = parse(data.clone());
            (branch, data, parse(reply(&message, 180)), parse(reply(&message, 200)))
        })
        .collect();
    let before = LIVE.load(Ordering::Relaxed);
    let start = Instant::now();
    for (branch, data, ringing, ok) in &requests {
        let request = ClientRequest {
            owner: Owner(1),
            branch: *branch,
            method: Method::Invite,
            dest: Destination::Target { interface: InterfaceId(0), target },
            data: data.clone(),
            timeout: None,
            large: Large::Udp,
        };
        layer.send_request(*now, request).expect("room");
        layer.handle_message(*now, flow(), ringing.clone());
        layer.handle_message(*now, flow(), ok.clone());
        drain(layer);
    }
    let during = LIVE.load(Ordering::Relaxed).saturating_sub(before);
    *now += Duration::from_secs(33);
    layer.handle_tick(*now);
    let nanos = nanos_each(start);
    drain(layer);
    assert!(layer.is_idle());
    (nanos, during / N)
}

fn nanos_each(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).expect("short") / N as u64
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

fn main() {
    let mut now = Instant::now();
    for (name, is_server) in [("server", true), ("client", false)] {
        let mut layer = TransactionLayer::new(Config::default(), Ids::from_seed(1), now);
        let (mut nanos, mut bytes) = (Vec::new(), 0);
        for round in 0..ROUNDS {
            let (each, size) = if is_server {
                server(&mut layer, &mut now, round)
            } else {
                client(&mut layer, &mut now)
            };
            nanos.push(each);
            // The first round grows the tables; that is what a transaction costs.
            bytes = bytes.max(size);
        }
        println!(
            "invite {name} transaction: {} ns median, {bytes} bytes while it lasts (message bytes apart)",
            median(nanos)
        );
    }
}
