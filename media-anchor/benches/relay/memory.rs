//! Memory of one established call in this crate (session, streams, both threads' state), and the CPU
//! of setting one up.
//!
//! Kernel sockets are not in it. The number of calls is bounded by the descriptor limit: four
//! sockets each.

use std::net::SocketAddr;
use std::time::Duration;

use crate::Relay;
use crate::load::{Load, thread_time};
use crate::ours::Ours;

const DESCRIPTORS_ELSEWHERE: usize = 200;

/// Sets up as many of `calls` as descriptors allow, lets every one of them talk, prints the growth.
pub(crate) fn run(calls: usize) {
    let (soft, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .expect("a limit");
    let _kept = nix::sys::resource::setrlimit(
        nix::sys::resource::Resource::RLIMIT_NOFILE,
        hard.max(soft),
        hard,
    );
    let room = usize::try_from(hard).unwrap_or(usize::MAX) - DESCRIPTORS_ELSEWHERE;
    let calls = calls.min(room / 4);
    let mut relay = Ours::start(Duration::from_millis(2), 1);
    set_up(&mut relay);
    let relay: &mut dyn Relay = &mut relay;
    let before = resident();
    let talked = Load::run(relay, calls, Duration::from_millis(500));
    let grown = resident().saturating_sub(before);
    println!(
        "{calls} calls: {} bytes resident per call ({} packets relayed meanwhile)",
        grown / calls.max(1),
        talked.received
    );
}

/// Prints the CPU of setting a call up and tearing it down: four sockets bound, watched and closed.
fn set_up(relay: &mut Ours) {
    const CALLS: usize = 500;
    let addr = |port| SocketAddr::from(([127, 0, 0, 21], port));
    let before = thread_time(std::process::id(), |_| true);
    for n in 0..CALLS {
        relay.call(1_000_000 + n, addr(4000), addr(4002));
        relay.close(1_000_000 + n);
    }
    let spent = thread_time(std::process::id(), |_| true) - before;
    println!("{} us CPU to set up and tear down a call", spent.as_micros() / CALLS as u128);
}

/// Resident bytes of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("proc");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}
