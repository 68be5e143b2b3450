//! Memory of one established call in this crate: session, streams, both threads' state.
//!
//! Kernel sockets are not in it. The number of calls is bounded by the descriptor limit: four
//! sockets each.

use crate::Relay;
use crate::load::Load;
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
    let mut relay = Ours::start(std::time::Duration::from_millis(2), 1);
    let relay: &mut dyn Relay = &mut relay;
    let before = resident();
    let talked = Load::run(relay, calls, std::time::Duration::from_millis(500));
    let grown = resident().saturating_sub(before);
    println!(
        "{calls} calls: {} bytes resident per call ({} packets relayed meanwhile)",
        grown / calls.max(1),
        talked.received
    );
}

/// Resident bytes of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("proc");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}
