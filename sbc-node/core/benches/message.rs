//! Cost of one message: parse of a 1,000-byte INVITE with what routing needs, write of the B-leg
//! INVITE, and the SDP between them. Prints the median nanoseconds of many rounds.
//!
//! `cargo bench -p sbc-core --bench message`

#[path = "common/message.rs"]
mod message;

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Instant;

use message::{SDP, b_leg, invite, rewrite_sdp, routing_headers};
use sbc_core::sdp::Sdp;
use sbc_core::sip::{self, Limits};

/// Median, over rounds, of the nanoseconds of one call.
fn measure<T>(name: &str, mut work: impl FnMut() -> T) {
    const ROUNDS: usize = 401;
    const CALLS: u32 = 500;
    // `cargo bench … -- text` runs only what has the text in its name.
    if std::env::args().skip(1).any(|a| !a.starts_with('-') && !name.contains(&a)) {
        return;
    }
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            for _ in 0..CALLS {
                black_box(work());
            }
            begin.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    let at = |percent: usize| rounds.get(ROUNDS * percent / 100).copied().unwrap_or(0.0);
    println!(
        "{name:<44} median {:>7.0} ns   p10 {:>7.0} ns   p90 {:>7.0} ns",
        at(50),
        at(10),
        at(90)
    );
}

fn main() {
    let limits = Limits::default();
    let data = invite();
    let message = sip::parse(data.clone(), &limits).expect("invite");
    sip::validate(&message).expect("valid");
    let rtp: SocketAddr = "198.51.100.1:40000".parse().expect("address");
    let rtcp: SocketAddr = "198.51.100.1:40001".parse().expect("address");
    let body = rewrite_sdp(message.body(), rtp, rtcp);
    println!("INVITE of {} bytes, SDP of {} bytes", data.len(), SDP.len());
    measure("index only", || sip::parse(data.clone(), &limits));
    measure("parse with the headers that routing needs", || {
        routing_headers(&sip::parse(data.clone(), &limits).expect("invite"))
    });
    measure("parse and validate", || {
        let m = sip::parse(data.clone(), &limits).expect("invite");
        sip::validate(&m).is_ok()
    });
    measure("write the B-leg INVITE", || b_leg(&message, &body));
    measure("write a 180 response", || {
        sip::response(&message, 180, "", Some("0f1e2d3c"), Some(rtp)).finish()
    });
    measure("SDP parse", || Sdp::parse(message.body()).map(|s| s.media().len()));
    measure("SDP parse, rewrite, write", || rewrite_sdp(message.body(), rtp, rtcp));
}
