//! A million bindings: process memory per binding, time of a REGISTER and of a lookup.
//!
//! `cargo bench -p sbc-core --bench registrar [-- COUNT]`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use sbc_core::net::{Flow, InterfaceId, Transport};
use sbc_core::registrar::{Device, Registrar, RegistrarPolicy, Replays, Users};
use sbc_core::sip::{self, Limits, Message, Method};

/// Resident bytes of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|n| n.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}

/// A phone behind NAT, as phones write.
fn register(n: usize) -> Message {
    let text = format!(
        "REGISTER sip:example.com SIP/2.0\r\n\
         Via: SIP/2.0/UDP 192.168.1.{};branch=z9hG4bK{n:x};rport\r\nMax-Forwards: 70\r\n\
         From: <sip:user{n:07}@example.com>;tag=a{n:x}\r\nTo: <sip:user{n:07}@example.com>\r\n\
         Call-ID: {n:08x}-3c26700c-1a2b3c4d@192.168.1.10\r\nCSeq: 1 REGISTER\r\n\
         Contact: <sip:user{n:07}@192.168.1.10:5060;ob>\r\nExpires: 3600\r\n\
         Content-Length: 0\r\n\r\n",
        n % 250
    );
    sip::parse(Bytes::from(text), &Limits::default()).expect("well-formed")
}

fn main() {
    let count = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(1_000_000usize);
    let policy = RegistrarPolicy {
        domains: vec!["example.com".into()],
        bindings_max: count,
        ..RegistrarPolicy::default()
    };
    let now = Instant::now();
    let (users, replays) = (Arc::new(Users::default()), Arc::new(Replays::new(2)));
    let mut registrar = Registrar::new(Arc::new(policy), users, replays, now, 0);
    let before = resident();
    let mut spent = std::time::Duration::ZERO;
    for n in 0..count {
        let message = register(n);
        let ip = [10, u8(n >> 16), u8(n >> 8), u8(n)];
        let flow = Flow {
            interface: InterfaceId(0),
            transport: Transport::Udp,
            local: ([192, 0, 2, 1], 5060).into(),
            remote: (ip, 40_000).into(),
            conn: None,
        };
        let start = Instant::now();
        let answer = registrar.register(now, 0, 0, &flow, &message);
        spent += start.elapsed();
        assert_eq!(answer.status, 200);
        while registrar.bindings().poll().is_some() {}
    }
    let per_binding = (resident() - before) / count;
    println!("{count} bindings: {per_binding} B of process memory each");
    println!("REGISTER (first, without parsing): {} ns", spent.as_nanos() / count as u128);
    let users: Vec<String> = (0..count)
        .map(|n| format!("user{:07}@example.com", n.wrapping_mul(7_919) % count))
        .collect();
    let start = Instant::now();
    for user in &users {
        let found = registrar.locate_aor(now, user, &Method::Invite, &Device::Any);
        assert_eq!(black_box(found).len(), 1);
    }
    println!("lookup: {} ns", start.elapsed().as_nanos() / count as u128);
}

fn u8(n: usize) -> u8 {
    u8::try_from(n & 0xff).unwrap_or(0)
}
